"""The example of docs/own_data.md does what the page says."""

import csv
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tests import table_files

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def example(tmp_path):
    """The blocks of the page by kind, and what runs Python beside its files."""
    page = (ROOT / "docs/own_data.md").read_text(encoding="utf-8")
    blocks = dict.fromkeys(("", "console", "csv", "python", "text"), "")
    for kind, block in re.findall(r"```(\w*)\n(.*?)```", page, re.DOTALL):
        blocks[kind] += block
    (tmp_path / "trials.csv").write_text(blocks["csv"])
    for seed, row in enumerate(csv.DictReader(blocks["csv"].splitlines())):
        table_files.write_picture(tmp_path / "pictures" / row["image"], seed)

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        return done.stdout

    return blocks, run


def test_the_example_runs_and_prints_what_the_page_shows(example):
    blocks, run = example
    assert run("-c", blocks["python"]) == blocks["text"]


def test_the_commands_check_and_write_as_the_page_says(example, tmp_path):
    blocks, run = example
    run("-c", blocks["python"])  # saves the betas
    check, write, train = blocks[""].replace("\\\n", "").splitlines()
    assert train.startswith("python -m ubrain_jax.main ")
    printed = run(*shlex.split(check)[1:]).splitlines(keepends=True)
    assert "".join(printed[-3:]) == blocks["console"]
    assert not (tmp_path / "ann.zarr").exists()
    last = run(*shlex.split(write)[1:]).splitlines()[-1]
    assert last == "wrote ann.zarr: 3 pictures"
