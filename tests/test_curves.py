"""Learning curves of a tiny new subject: cells, resuming, refusals, tables."""

import csv
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import xarray

from ubrain_jax import (
    config,
    crowd,
    curves,
    errors,
    evaluate,
    experiments,
    figures,
    fit,
    subjects,
    train,
    whole,
)

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
ONE = jax.devices()[:1]
NEW = "t-new|*<b>"


@pytest.fixture(scope="module")
def new_store(tmp_path_factory, make_dataset):
    """A subject to train an encoder with, and one to take in, with 20 pictures."""
    dataset = make_dataset(2, 20, 6, voxels=(20, 11))
    first, second = dataset.subjects
    named = dataset._replace(subjects=iter([first, second._replace(name=NEW)]))
    path = str(tmp_path_factory.mktemp("curves") / "t.zarr")
    crowd.write(path, named, image_px=28)
    return path


@pytest.fixture(scope="module")
def encoder(new_store, tiny, tmp_path_factory):
    """A trained run, of 3 steps."""
    settings = tiny(
        data={"crowd": (new_store,), "subjects": ("t-subj01",)},
        backbone={"taps": (1,), "remat": "none"},
        head={"remat": "off"},
        train={"steps": 3},
    )
    workdir = tmp_path_factory.mktemp("encoder")
    train.train(experiments.prepare_run(settings, ONE), str(workdir))
    return str(workdir)


@pytest.fixture(scope="module")
def make_plan(encoder, new_store):
    def make(workdir, **changes) -> curves.Plan:
        plan = curves.Plan(
            encoder,
            new_store,
            NEW,
            str(workdir),
            num_images=(14, None),
            seeds=(0, 1),
            settings=fit.Settings(steps=4, eval_every_steps=2, batch_images=8),
            scratch=curves.Scratch(steps=4, eval_every_steps=1),
        )
        return plan._replace(**changes)

    return make


@pytest.fixture(scope="module")
def finished(make_plan, tmp_path_factory):
    """A workdir with all cells."""
    workdir = tmp_path_factory.mktemp("study")
    curves.run(make_plan(workdir), ONE)
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it to change."""
    return shutil.copytree(finished, tmp_path / "copy")


def read(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def times(workdir):
    return {p: p.stat().st_mtime_ns for p in workdir.rglob("metrics.json")}


def test_every_cell_has_its_row_with_the_numbers_of_its_folder(finished):
    rows = read(finished / "curve.csv")
    places = itertools.product(curves.ARMS, ("14", "all"), ("0", "1"))
    assert [(r["arm"], r["num_images"], r["seed"]) for r in rows] == list(places)
    for row in rows:
        folder = finished / f"{row['arm']}-{row['num_images']}-{row['seed']}"
        table = xarray.open_zarr(folder / "voxels" / f"{NEW}.zarr")
        r = table.pearson.values
        assert float(row["median_r"]) == pytest.approx(np.median(r))
        assert float(row["mean_r"]) == pytest.approx(np.mean(r))
        saved = json.loads((folder / "metrics.json").read_text())
        assert int(row["step"]) == saved["step"]
        own = saved["subjects"][NEW]["retrieval"]
        assert (float(row["top1"]), int(row["pool"])) == (own["top1"], own["pool"])
        assert (row["voxels"], row["test_images"]) == ("11", "6")
        assert row["images"] == ("20" if row["num_images"] == "all" else "14")
        assert float(row["seconds"]) > 0
        assert not (folder / "checkpoints").exists()
        assert not (folder / "best").exists()


def test_arms_differ_in_what_they_should(finished):
    told = {
        arm: json.loads((finished / f"{arm}-14-1" / "transfer.json").read_text())
        for arm in ("random", "twin", "twin0")
    }
    assert [told[a]["asked"]["init"] for a in told] == ["random", "twin", "twin"]
    assert [told[a]["asked"]["steps"] for a in told] == [4, 4, 0]
    assert {told[a]["asked"]["seed"] for a in told} == {1}
    assert {told[a]["images"]["train"] for a in told} == {11}
    own = json.loads((finished / "scratch-14-1" / "config.json").read_text())
    assert own["data"]["subjects"] == [NEW]
    assert (own["data"]["num_images"], own["train"]["seed"]) == (14, 1)
    assert (own["data"]["batch_images"], own["train"]["select"]) == (8, "best")
    assert own["data"]["voxels_per_image"] == 12  # 11, in stripes of 4


def test_scratch_sees_the_pictures_that_the_transfer_arms_see(
    finished, make_plan, new_store
):
    opened = crowd.open_crowd((new_store,), (NEW,))
    [chosen] = crowd.with_images(opened, 14, 1).subjects
    used = np.isin(chosen.split, ("train", "val"))
    wanted = {opened.image_id[k] for k in chosen.image[used]}
    seen = json.loads((finished / "scratch-14-1" / "trained_on.json").read_text())
    assert set(seen["image_sha256"]) == wanted
    assert len(wanted) == 14


def test_a_transfer_cell_is_what_the_transfer_command_would_give(
    finished, make_plan, encoder, new_store, tmp_path
):
    """One ready subject and one compiled step for all cells change no number."""
    settings = dataclasses.replace(make_plan(tmp_path).settings, init="twin", seed=1)
    trained = subjects.frozen.read_encoder(encoder)
    alone = subjects.make_ready(
        trained, new_store, NEW, num_images=14, seed=1, devices=ONE
    )
    result = subjects.transfer(alone, settings, 14, str(tmp_path))
    cell = json.loads((finished / "twin-14-1" / "metrics.json").read_text())
    assert cell["subjects"] == json.loads(json.dumps(result["subjects"]))


def test_a_scratch_cell_is_what_a_run_of_its_own_gives(finished, make_plan, tmp_path):
    """Compiled programs that cells share change no number."""
    saved = json.loads((finished / "scratch-all-1" / "config.json").read_text())
    run = experiments.prepare_run(config.from_dict(saved, "cell"), ONE)
    state = train.train(run, str(tmp_path))
    params, step = train.chosen_weights(run, state, str(tmp_path))
    result = evaluate.evaluate(run, params, str(tmp_path), step)
    cell = json.loads((finished / "scratch-all-1" / "metrics.json").read_text())
    assert cell["subjects"] == json.loads(json.dumps(result["subjects"]))
    assert cell["step"] == step


def test_tests_and_page_have_every_pair_and_say_their_limits(finished):
    rows = read(finished / "tests.csv")
    same = [r for r in rows if r["table"] == "same pictures"]
    cross = [r for r in rows if r["table"] == "against scratch on all pictures"]
    assert (len(same), len(cross)) == (2 * 6, 3 * 2)
    assert {(r["second"], r["second_images"]) for r in cross} == {("scratch", "all")}
    page = (finished / "curve.md").read_text()
    for words in (
        "random weights",
        "Simulated",
        "not independent",
        "Holm",
        "11 voxels, 6 test pictures",
        "seeds: 2",
        "t-new\\|\\*&lt;b&gt;",
    ):
        assert words in page, words
    for line in page.splitlines():
        assert not line.startswith("|") or line.endswith("|")
    for name in ("curve.png", "curve.svg"):
        assert (finished / name).stat().st_size > 5000


def test_the_figure_can_be_drawn_again_from_the_workdir(finished, tmp_path):
    figures.run(figures.Plan("transfer", [str(finished)], str(tmp_path)))
    for name in ("curve.csv", "tests.csv", "curve.md", "curve.svg"):
        assert (tmp_path / name).read_text() == (finished / name).read_text(), name
    both = [str(finished), str(finished)]
    with pytest.raises(errors.ConfigError, match="another name for each"):
        figures.run(figures.Plan("transfer", both, str(tmp_path)))
    with pytest.raises(errors.MissingInputError, match=r"curve\.csv: not found"):
        figures.run(figures.Plan("transfer", [str(tmp_path / "x")], str(tmp_path)))


def test_finished_cells_are_left_alone_and_a_missing_one_is_made(
    copied, make_plan, capsys
):
    before, table = times(copied), (copied / "curve.csv").read_text()
    curves.run(make_plan(copied), ONE)
    assert times(copied) == before
    assert (copied / "curve.csv").read_text() == table
    assert capsys.readouterr().out.count("finished before") == 16
    shutil.rmtree(copied / "twin0-14-0")
    curves.run(make_plan(copied), ONE)
    after = times(copied)
    changed = {p.parent.name for p in after if before.get(p) != after[p]}
    assert changed == {"twin0-14-0"}
    again = read(copied / "curve.csv")
    old = list(csv.DictReader(table.splitlines()))
    for row in (*old, *again):
        row.pop("seconds")
    assert again == old


def test_a_stopped_scratch_cell_goes_on_and_ends_with_the_same_numbers(
    finished, make_plan, tmp_path, monkeypatch, capsys
):
    plan = make_plan(tmp_path, arms=("scratch",), num_images=(None,), seeds=(1,))
    real, calls = evaluate.validate, []

    def stop_at_third(predictor, params):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(predictor, params)

    monkeypatch.setattr(evaluate, "validate", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        curves.run(plan, ONE)
    assert not (tmp_path / "scratch-all-1" / "metrics.json").exists()
    monkeypatch.setattr(evaluate, "validate", real)
    curves.run(plan, ONE)
    assert "resuming at step 2 of 4" in capsys.readouterr().out
    [row] = read(tmp_path / "curve.csv")
    assert row.pop("seconds") == ""  # nobody knows
    [whole] = [
        r
        for r in read(finished / "curve.csv")
        if (r["arm"], r["num_images"], r["seed"]) == ("scratch", "all", "1")
    ]
    whole.pop("seconds")
    assert row == whole


def test_other_settings_are_refused_with_their_names_before_anything_runs(
    copied, make_plan, monkeypatch
):
    for name in ("make_ready", "transfer"):
        monkeypatch.setattr(subjects, name, None)  # must not be called
    settings = dataclasses.replace(
        make_plan(copied).settings, steps=5, learning_rate=0.5
    )
    with pytest.raises(errors.OutputError) as caught:
        curves.run(make_plan(copied, settings=settings), ONE)
    text = str(caught.value)
    assert "random-14-0: learning_rate was 0.001, is 0.5" in text
    assert "random-14-0: steps was 4, is 5" in text
    assert "twin0-14-0: steps" not in text
    assert "scratch" not in text
    longer = curves.Scratch(steps=9, eval_every_steps=1)
    with pytest.raises(
        errors.OutputError, match=r"scratch-all-1: train\.steps was 4, is 9"
    ):
        curves.run(make_plan(copied, scratch=longer), ONE)
    (copied / "twin-14-0" / "cell.json").write_text("{")
    with pytest.raises(errors.InputError, match=r"twin-14-0/cell\.json: cannot"):
        curves.run(make_plan(copied), ONE)


def test_the_command_reads_its_flags_and_goes_on(copied, encoder, new_store):
    def run(**changes):
        values = {
            "encoder": encoder,
            "crowd": new_store,
            "subject": NEW,
            "workdir": copied,
            "num_images": "14,all",
            "seeds": "0,1",
            "steps": 4,
            "eval_every_steps": 2,
            "batch_images": 8,
            "scratch_steps": 4,
            "scratch_eval_every_steps": 1,
            **changes,
        }
        return subprocess.run(
            [
                *(sys.executable, "-m", "ubrain_jax.curves"),
                *(f"--{k}={v}" for k, v in values.items()),
            ],
            env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    before = times(copied)
    good = run()
    assert good.returncode == 0, good.stderr
    assert good.stdout.count("finished before") == 16
    assert "| twin0 | all (20) | 2 |" in good.stdout
    assert times(copied) == before
    bad = run(arms="twin,scrach", num_images="14,x")
    assert bad.returncode == 78
    assert "--num_images: 'x' is none" in bad.stderr
    with whole.locked(copied):
        assert run().returncode == 73


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"num_images": (14, 21, 400)},
            errors.ConfigError,
            "--num_images: 21 of 20 that .*; 400 of 20",
        ),
        ({"num_images": (8,)}, errors.ConfigError, "8 leaves 5 to train on, and twins"),
        ({"subject": "t-nwe"}, errors.ConfigError, "Known: t-new"),
        ({"subject": "t-subj01"}, errors.ConfigError, "own subjects"),
        ({"encoder": "/no/such"}, errors.MissingInputError, "no checkpoint"),
        ({"store": "/no/such.zarr"}, errors.MissingInputError, "not found"),
    ],
)
def test_plans_that_cannot_work_are_refused_before_training(
    make_plan, tmp_path, changes, error, words
):
    with pytest.raises(error, match=words):
        curves.run(make_plan(tmp_path, **changes), ONE)
    assert not list(tmp_path.rglob("cell.json"))


def test_few_pictures_are_enough_without_twins(make_plan, tmp_path):
    plan = make_plan(
        tmp_path, num_images=(8,), arms=("random",), seeds=(3,), backbone="random"
    )
    curves.run(plan, ONE)
    [row] = read(tmp_path / "curve.csv")
    assert (row["images"], row["median_normalised"] != "") == ("8", True)
    assert "How to read" not in (tmp_path / "curve.md").read_text()


def test_scratch_follows_the_encoder_where_no_flag_says_otherwise(
    make_plan, encoder, new_store
):
    plan = make_plan("w", scratch=curves.Scratch())
    trained = subjects.frozen.read_encoder(encoder)
    opened = crowd.open_crowd((new_store,), (NEW,))
    place = curves.Place("scratch", 14, 5)
    made = curves.scratch_experiment(plan, trained, opened, place, ONE)
    old = trained.experiment
    assert made.train.steps == 3
    assert made.train.eval_every_steps == 1
    for section in ("backbone", "adapter", "head", "loss", "optim"):
        assert getattr(made, section) == getattr(old, section), section
    many = curves.scratch_experiment(plan, trained, opened, place, jax.devices())
    assert many.data.batch_images == 8  # 11 images, over 8 devices
    few = dataclasses.replace(old.data, batch_images=32)
    big = trained._replace(experiment=dataclasses.replace(old, data=few))
    made = curves.scratch_experiment(plan, big, opened, place, ONE)
    assert made.data.batch_images == 11


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1])
def test_a_seed_that_is_an_argument_gives_the_key_of_a_constant_one(seed):
    """The compiled step takes it as one; dropout must not notice."""
    given = jax.jit(lambda s: jax.random.key_data(jax.random.key(s)))(np.uint32(seed))
    np.testing.assert_array_equal(given, jax.random.key_data(jax.random.key(seed)))
