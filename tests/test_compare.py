"""Crowd experiments on two tiny stores: runs, sharing, resuming, refusals, tables."""

import csv
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.stats
import xarray

from ubrain_jax import compare, compare_results, config, crowd, errors, train

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
ONE = jax.devices()[:1]
ODD = "u-odd|$x$"


@pytest.fixture(scope="module")
def other(tmp_path_factory, make_dataset):
    """A store of one subject: other pictures, no ceiling, an odd name."""
    dataset = make_dataset(1, 12, 4, seed=3)
    [subject] = dataset.subjects
    subject = subject._replace(
        name=ODD,
        image_id=[f"u/{i[2:]}" for i in subject.image_id],
        ncsnr=np.full(37, np.nan, np.float32),
    )

    def read_images(ids):
        for image_id in ids:
            noise = np.random.default_rng([7, *image_id.encode()])
            yield noise.integers(0, 256, (32, 36, 3), np.uint8)

    path = str(tmp_path_factory.mktemp("other") / "u.zarr")
    dataset = dataset._replace(subjects=iter([subject]), read_images=read_images)
    crowd.write(path, dataset, image_px=28)
    return path


@pytest.fixture(scope="module")
def settings(tiny_dict, store, other):
    def make(**changes):
        values = {
            "data": {"crowd": (store, other), **changes.pop("data", {})},
            "backbone": {"taps": (1,), "remat": "none"},
            "head": {"remat": "off"},
            "train": {
                "steps": 2,
                "select": "best",
                "eval_every_steps": 1,
                **changes.pop("train", {}),
            },
        }
        return tiny_dict(**values)

    return make


@pytest.fixture(scope="module")
def make_plan(settings):
    def make(workdir, data=None, training=None, **changes) -> compare.Plan:
        values = settings(data=data or {}, train=training or {})
        plan = compare.Plan(
            config.from_dict(values, "test"),
            str(workdir),
            seeds=(0, 1),
            subjects=("t-subj01", ODD),
        )
        return plan._replace(**changes)

    return make


@pytest.fixture(scope="module")
def finished(make_plan, tmp_path_factory):
    """A workdir with all runs."""
    workdir = tmp_path_factory.mktemp("compare")
    compare.run(make_plan(workdir), ONE)
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def read(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def times(workdir):
    return {p: p.stat().st_mtime_ns for p in workdir.rglob("metrics.json")}


def test_runs_are_shared_by_the_subjects_and_arms_that_they_serve(finished):
    folders = {p.parent.name for p in finished.rglob("cell.json")}
    names = ("single-t-subj01", f"single-{ODD}", "dataset-t", "crowd")
    assert folders == {f"{name}-{seed}" for name in names for seed in (0, 1)}
    rows = read(finished / "compare.csv")
    runs = {(r["subject"], r["arm"]): r["run"][:-2] for r in rows if r["seed"] == "1"}
    assert runs == {
        ("t-subj01", "single"): "single-t-subj01",
        ("t-subj01", "dataset"): "dataset-t",
        ("t-subj01", "crowd"): "crowd",
        (ODD, "single"): f"single-{ODD}",
        (ODD, "dataset"): f"single-{ODD}",
        (ODD, "crowd"): "crowd",
    }
    trained = {}
    for name in names:
        saved = json.loads((finished / f"{name}-0" / "config.json").read_text())
        trained[name] = saved["data"]["subjects"]
        assert (saved["train"]["steps"], saved["train"]["seed"]) == (2, 0)
    assert list(trained.values()) == [
        ["t-subj01"],
        [ODD],
        ["t-subj01", "t-subj02"],
        ["t-subj01", "t-subj02", ODD],
    ]


def test_every_row_has_the_numbers_of_its_run_on_the_same_test_pictures(finished):
    rows = read(finished / "compare.csv")
    assert len(rows) == 2 * 3 * 2
    for row in rows:
        folder = finished / row["run"]
        name = f"{row['subject']}.zarr"
        r = xarray.open_zarr(folder / "voxels" / name).pearson.values
        assert float(row["median_r"]) == pytest.approx(np.median(r))
        saved = json.loads((folder / "metrics.json").read_text())
        own = saved["subjects"][row["subject"]]
        assert float(row["top5"]) == own["retrieval"]["top5"]
        assert (row["voxels"], row["test_images"], row["pool"]) == ("37", "4", "4")
        assert (row["median_normalised"] == "") == (row["subject"] == ODD)
        assert not (folder / "checkpoints").exists()


def test_tests_are_of_seed_averaged_voxels_and_no_two_runs_meet_twice(finished):
    rows = read(finished / "tests.csv")
    of = [(r["subject"], r["first"], r["second"]) for r in rows]
    assert of == [
        ("t-subj01", "dataset", "single"),
        ("t-subj01", "crowd", "single"),
        ("t-subj01", "crowd", "dataset"),
        (ODD, "crowd", "single"),
        ("", "dataset", "single"),
        ("", "crowd", "single"),
        ("", "crowd", "dataset"),
    ]
    mean = {
        run: np.mean(
            [
                xarray.open_zarr(
                    finished / f"{run}-{seed}" / "voxels" / "t-subj01.zarr"
                ).pearson.values
                for seed in (0, 1)
            ],
            axis=0,
        )
        for run in ("crowd", "single-t-subj01")
    }
    d = mean["crowd"] - mean["single-t-subj01"]
    assert float(rows[1]["p_voxels"]) == pytest.approx(scipy.stats.wilcoxon(d).pvalue)
    assert float(rows[1]["median_difference"]) == pytest.approx(np.median(d))
    assert [r["pairs_of"] for r in rows] == ["seeds"] * 4 + ["subjects"] * 3
    assert [r["pairs"] for r in rows[4:]] == ["1", "2", "2"]
    assert {r["pair_test"] for r in rows[4:]} == {""}


def test_the_page_says_what_is_shared_missing_and_not_tested(finished):
    page = (finished / "compare.md").read_text()
    for words in (
        "random weights",
        f"Simulated subjects: t-subj01, t-subj02, {ODD.replace('|', chr(92) + '|')}.",
        "dataset (is single)",
        "Fewer than 6 subjects: told, not tested.",
        "not independent",
        "2 steps in every run",
    ):
        assert page.count(words) >= 1, words
    for name in ("compare.png", "compare.svg"):
        assert (finished / name).stat().st_size > 5000


def test_finished_runs_are_left_alone_and_a_stopped_one_goes_on(
    copied, make_plan, monkeypatch, capsys
):
    before, table = times(copied), read(copied / "compare.csv")
    shutil.rmtree(copied / "crowd-1")
    real = train.chosen_weights

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "chosen_weights", stop)
    with pytest.raises(KeyboardInterrupt):
        compare.run(make_plan(copied), ONE)
    monkeypatch.setattr(train, "chosen_weights", real)
    compare.run(make_plan(copied), ONE)
    out = capsys.readouterr().out
    assert "already at step 2 of 2" in out
    after = times(copied)
    changed = {p.parent.name for p in before if before[p] != after[p]}
    assert changed == {"crowd-1"}
    again = read(copied / "compare.csv")
    assert {r["run"] for r in again if not r["seconds"]} == {"crowd-1"}
    for row in (*table, *again):
        row.pop("seconds")
    assert again == table


def test_the_command_reads_its_flags_and_refuses_other_settings(
    copied, settings, tmp_path
):
    lines = ["from ubrain_jax import config", "def get_config():"]
    lines += ["    c = config.default()"]
    for section, values in settings().items():
        lines += [f"    c.{section}.{key} = {v!r}" for key, v in values.items()]
    path = tmp_path / "tiny.py"
    path.write_text("\n".join([*lines, "    return c", ""]))

    def run(*more):
        return subprocess.run(
            [
                *(sys.executable, "-m", "ubrain_jax.compare"),
                *(f"--config={path}", f"--workdir={copied}", "--seeds=0,1", *more),
            ],
            env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    before = times(copied)
    good = run(f"--subjects=t-subj01,{ODD}")
    assert good.returncode == 0, good.stderr
    assert good.stdout.count("finished before") == 8
    other = run("--config.optim.learning_rate=0.5", "--arms=crowd")
    assert other.returncode == 73
    assert "crowd-0: optim.learning_rate was 0.001, is 0.5" in other.stderr
    assert times(copied) == before
    bad = run("--arms=crowds")
    assert bad.returncode == 78
    assert "--arms: 'crowds' is none; expected some of single, dataset" in bad.stderr


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"subjects": ("t-subj01", "t-sub2")}, errors.ConfigError, "t-sub2 not in"),
        ({"data": {"num_images": 13}}, errors.ConfigError, "13 pictures, but"),
        ({"data": {"crowd": ("/no.zarr",)}}, errors.MissingInputError, "not found"),
    ],
)
def test_plans_that_cannot_work_are_refused_before_training(
    make_plan, tmp_path, changes, error, words
):
    with pytest.raises(error, match=words):
        compare.run(make_plan(tmp_path, **changes), ONE)
    assert not list(tmp_path.rglob("cell.json"))


def test_stores_without_val_or_test_pictures_are_refused_together(
    make_plan, tmp_path, dataset_store, make_dataset
):
    dataset = make_dataset()

    def cut():
        for subject in dataset.subjects:
            split = np.where(subject.split == "val", "train", subject.split)
            if subject.name == "t-subj02":
                split[1:4] = "train"
            yield subject._replace(
                split=split, image_id=[f"{subject.name}{i}" for i in subject.image_id]
            )

    path = str(tmp_path / "cut.zarr")
    named = dataset._replace(
        subjects=cut(),
        read_images=lambda ids: make_dataset().read_images(ids),
    )
    crowd.write(path, named, image_px=28)
    plan = make_plan(tmp_path / "w", data={"crowd": (path,)}, subjects=())
    with pytest.raises(errors.InputError) as caught:
        compare.run(plan, ONE)
    text = str(caught.value)
    assert "t-subj02 has 15 train, 1 test" in text
    assert "no subject of dataset-cut has 3 val" in text


@pytest.mark.parametrize(
    ("names", "arms", "expected"),
    [
        (("t-subj01",), ("single", "dataset", "crowd"), ["single-t-subj01"]),
        (
            ("t-subj01", "t-subj02"),
            ("single", "crowd"),
            ["single-t-subj01", "single-t-subj02", "dataset-t"],
        ),
        (("t-subj01", ODD), ("dataset", "crowd"), None),
    ],
)
def test_arms_that_come_to_the_same_subjects_are_one_run(
    make_plan, store, other, names, arms, expected
):
    plan = make_plan("w", data={"subjects": names}, arms=arms)
    opened = crowd.open_crowd((store, other), names)
    groups = compare.find_groups(plan, opened, names)
    found = list(dict.fromkeys(g.name for g in groups.values()))
    assert found == (expected or ["single-t-subj01", f"single-{ODD}", "crowd"])
    for group in groups.values():
        assert len(group.stores) == (2 if group.name == "crowd" else 1)


def test_stores_of_one_file_name_have_runs_of_their_own(make_plan, store, other):
    opened = crowd.open_crowd((store, other), ())
    opened = opened._replace(paths=("a/x.zarr", "b/x.zarr/"))
    plan = make_plan("w", arms=("dataset",))
    groups = compare.find_groups(plan, opened, ["t-subj01", "t-subj02"])
    assert {g.name for g in groups.values()} == {"dataset-0-x"}


def test_epochs_of_the_config_are_those_of_the_whole_crowd(make_plan, store, other):
    plan = make_plan("w", training={"steps": 0, "epochs": 2.0})
    everyone = crowd.open_crowd((store, other), ())
    steps = train.total_steps(plan.experiment, everyone)
    assert steps == round(2 * (18 + 9) / 8)
    group = compare.Group("single-t-subj01", (store,), ("t-subj01",))
    made = compare.experiment_of(plan.experiment, group, 5, steps)
    assert (made.train.steps, made.train.epochs, made.train.seed) == (steps, None, 5)
    same = dataclasses.replace(made, data=plan.experiment.data)
    same = dataclasses.replace(same, train=plan.experiment.train)
    assert same == plan.experiment


def test_six_subjects_are_tested_over_subjects(tmp_path):
    """By hand: all six better, so p = 2 / 2^6."""
    names = [f"s{k}" for k in range(6)]
    folders = {
        (arm, n, 0): tmp_path / arm / n for arm in ("single", "crowd") for n in names
    }
    study = compare_results.Study(names, ("single", "crowd"), (0,), 1, folders, {})
    score = compare_results.studies.Score(*(0.0,) * 10)
    rng = np.random.default_rng(0)
    scores = {}
    for name in names:
        r = rng.uniform(0, 0.5)
        scores["single", name] = [score._replace(median_r=r)]
        scores["crowd", name] = [score._replace(median_r=r + rng.uniform(0.01, 0.1))]
    [row] = compare_results.compare_over_subjects(study, scores)
    assert (row["first"], row["second"]) == ("crowd", "single")
    assert (row["pairs"], row["pairs_better"], row["pair_test"]) == (6, 6, "Wilcoxon")
    assert row["p_pairs"] == pytest.approx(2 / 64)
    fewer = study._replace(subjects=names[:5])
    [row] = compare_results.compare_over_subjects(fewer, scores)
    assert (row["pairs"], row["pair_test"]) == (5, "")
    assert row["pair_mean_difference"] > 0
    assert np.isnan(row["p_pairs"])
