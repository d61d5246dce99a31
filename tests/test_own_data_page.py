"""The example of docs/own_data.md does what the page says."""

import csv
import pathlib
import re
import subprocess
import sys

from tests import table_files

ROOT = pathlib.Path(__file__).parent.parent


def test_the_example_runs_and_prints_what_the_page_shows(tmp_path):
    page = (ROOT / "docs/own_data.md").read_text(encoding="utf-8")
    blocks = dict.fromkeys(("csv", "python", "text"), "")
    for kind, block in re.findall(r"```(csv|python|text)\n(.*?)```", page, re.DOTALL):
        blocks[kind] += block
    (tmp_path / "trials.csv").write_text(blocks["csv"])
    for seed, row in enumerate(csv.DictReader(blocks["csv"].splitlines())):
        table_files.write_picture(tmp_path / "pictures" / row["image"], seed)
    done = subprocess.run(
        [sys.executable, "-c", blocks["python"]],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == blocks["text"]
