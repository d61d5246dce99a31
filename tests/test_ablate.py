"""Ablations of a tiny run: cells, tables, resuming, refusals."""

import csv
import json
import types

import jax
import pytest

from ubrain_jax import ablate, ablation_results, errors, studies

pytestmark = pytest.mark.slow

ONE = jax.devices()[:1]
CHANGES = {
    "head-plain": {"head.position": False, "head.functional": "shared"},
    "taps-1": {"backbone.taps": (1,)},
}


@pytest.fixture(scope="module")
def base(tiny):
    return tiny(
        backbone={"remat": "none"},
        head={"remat": "off"},
        train={"steps": 3, "checkpoint_every_steps": 3},
        evaluate={"bootstraps": 0, "permutations": 0, "report_queries": 0},
    )


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ablations")
    ablate.run(ablate.Plan(base, CHANGES, str(workdir), [0]), ONE)
    return workdir


def read(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_every_change_is_a_run_with_its_setting_and_its_row(finished, base):
    rows = read(finished / "ablations.csv")
    names = ["base", *CHANGES]
    people = ["t-subj01", "t-subj02"]
    assert [(r["change"], r["subject"]) for r in rows] == [
        (n, s) for n in names for s in people
    ]
    for row in rows:
        folder = finished / f"{row['change']}-0"
        score = studies.read_score(folder, row["subject"])
        assert float(row["median_r"]) == pytest.approx(score.median_r)
        saved = json.loads((folder / "config.json").read_text())
        for key, value in CHANGES.get(row["change"], {}).items():
            section, name = key.split(".")
            value = list(value) if isinstance(value, tuple) else value
            assert saved[section][name] == value
    medians = {r["median_r"] for r in rows if r["subject"] == "t-subj01"}
    assert len(medians) == len(names)  # each change changes something
    assert rows[2]["settings"] == "head.position = False, head.functional = shared"


def test_page_and_tests_compare_each_change_with_the_base(finished):
    rows = read(finished / "tests.csv")
    assert [r["table"] for r in rows] == ["subject"] * 4 + ["over subjects"] * 2
    one = rows[0]
    sides = [
        studies.seed_mean([finished / f"{n}-0"], "t-subj01")
        for n in ("head-plain", "base")
    ]
    want = studies.compare_voxels(*sides)
    assert float(one["median_difference"]) == pytest.approx(want.median_difference)
    assert float(one["p_voxels"]) == pytest.approx(want.p)
    page = (finished / "ablations.md").read_text()
    for words in ("random weights", "backbone.taps = 1", "not independent", "seeds: 1"):
        assert words in page, words
    for ending in ("png", "svg"):
        assert (finished / f"ablations.{ending}").stat().st_size > 5000


def test_finished_runs_are_left_alone_and_other_settings_refused(
    finished, base, capsys
):
    def times():
        return {p: p.stat().st_mtime_ns for p in finished.rglob("metrics.json")}

    before = times()
    ablate.run(
        ablate.Plan(base, {"taps-1": CHANGES["taps-1"]}, str(finished), [0]), ONE
    )
    assert times() == before
    assert capsys.readouterr().out.count("finished before") == 2
    other = {"taps-1": {"backbone.taps": (2,)}}
    with pytest.raises(errors.OutputError, match=r"taps-1-0: backbone\.taps was \[1\]"):
        ablate.run(ablate.Plan(base, other, str(finished), [0]), ONE)
    # A cell that is older than a setting had its default.
    path = finished / "base-0" / "cell.json"
    old = json.loads(path.read_text())
    del old["settings"]["head"]["position"]
    path.write_text(json.dumps(old))
    ablate.run(ablate.Plan(base, {}, str(finished), [0]), ONE)
    assert times() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head.positon": False}, r"sweep\(\): x: .*positon is unknown.*position"),
        ({"heads.position": False}, r"sweep\(\): x:heads\.position.*head"),
        ({"head.position": True}, "values of the config already"),
        ({"head.functional": "none"}, "not one of embedding, shared"),
        ({"data.voxels_per_image": 7}, "multiple of data.stripes"),
    ],
)
def test_changes_that_cannot_be_are_refused_before_training(
    base, tmp_path, changes, words
):
    with pytest.raises(errors.ConfigError, match=words):
        ablate.run(ablate.Plan(base, {"x": changes}, str(tmp_path), [0]), ONE)
    assert list(tmp_path.iterdir()) == []


def test_taps_beyond_the_network_are_refused_before_training(base, tmp_path):
    changes = {"x": {"backbone.taps": (1, 40)}}
    with pytest.raises(errors.InputError, match="40"):
        ablate.run(ablate.Plan(base, changes, str(tmp_path), [0]), ONE)
    assert not list(tmp_path.rglob("cell.json"))


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([("a", {"x.y": 1}), ("a", {"x.y": 2})], "'a' again"),
        ([("base", {"x.y": 1})], "'base' again"),
        ([("../a", {"x.y": 1})], "yields"),
        ([("a", {})], "yields"),
        (["a"], "yields 'a'"),
        (None, "sweep: not defined"),
    ],
)
def test_sweeps_that_cannot_be_run_are_refused(items, words):
    module = types.ModuleType("x")
    if items is not None:
        module.sweep = lambda: iter(items)
    with pytest.raises(errors.ConfigError, match=words):
        ablate.read_sweep("file.py", module)


def test_settings_are_told_in_words():
    found = ablation_results.settings_text({"a.b": (1, 2), "c.d": None})
    assert found == "a.b = 1 2, c.d = None"
