"""What the pages promise is there."""

import json
import pathlib
import re

import pytest
from absl import flags

from tests import check_demo
from ubrain_jax import prepare

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("third_party/*.md")]


def anchors(page):
    """Of the headings of a page, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_lead_somewhere_and_nothing_is_left_to_fill_in(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"DEMO_[A-Z]+|TODO|FIXME|XXX", text)
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        file, _, place = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not place or place in anchors(target), link


def test_paths_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:docs|third_party|configs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ubrain_jax\.(\w+)", text):
        assert (ROOT / "ubrain_jax" / f"{module}.py").exists(), module


def test_the_check_of_the_demo_can_fail():
    roi = {k: {"noise_normalised": {"median": 0.6}} for k in check_demo.KINDS}
    subject = {
        "noise_normalised": {"median": 0.8},
        "retrieval": {"pool": 125, "top1": 0.9},
        "roi": roi,
    }
    good = {"subjects": dict.fromkeys("abc", subject)}
    assert check_demo.shortfalls(good) == []
    bad = json.loads(json.dumps(good))
    bad["subjects"]["b"]["roi"]["kind:object"]["noise_normalised"]["median"] = 0.49
    bad["subjects"]["c"]["retrieval"]["top1"] = 0.15
    assert len(check_demo.shortfalls(bad)) == 2


def test_the_pages_on_datasets_name_every_flag_of_the_command_and_no_other():
    pages = [ROOT / "docs/datasets.md", ROOT / "docs/own_data.md"]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"--(\w+)", text)) - {"config", "workdir"}
    known = flags.FLAGS.flags_by_module_dict()[prepare.__name__]
    simulate = {"dataset", "out"}
    assert named | simulate == {flag.name for flag in known}


@pytest.mark.parametrize("dataset", sorted(prepare.READERS))
def test_every_dataset_has_its_rows(dataset):
    rows = (ROOT / "docs/datasets.md").read_text(encoding="utf-8").splitlines()
    assert sum(f"`--dataset={dataset} " in row for row in rows) == 1
    assert sum(row.startswith(f"| {dataset} |") for row in rows) == 1
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"--dataset={dataset}" in readme
