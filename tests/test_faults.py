"""The scripts of tests/faults in their short form; `make faults` runs the long one."""

import pathlib
import subprocess
import sys

import pytest

from tests.faults import kill

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("kill", ["--kills=6", "--real=0"], ["kills 6", "steps not whole 0"]),
        ("flip", ["--flips=60"], ["60 bits", "silent and wrong 0"]),
        ("full", [], ["exit 74 at the save after step 10"]),
        ("lock", [], ["ended with 73", "the next one began"]),
    ],
)
def test_a_fault_loses_nothing_and_is_told(name, flags, says):
    result = subprocess.run(
        [sys.executable, "-m", f"tests.faults.{name}", *flags],
        cwd=ROOT,
        env=kill.ENV,
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stderr[-3000:]
    for text in says:
        assert text in result.stdout
