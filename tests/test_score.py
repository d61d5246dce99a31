"""Scores of an encoder's bundle and of predictions of any program."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import xarray

from ubrain_jax import (
    crowd,
    errors,
    evaluate,
    experiments,
    export,
    given_predictions,
    predict,
    score,
    train,
    universal,
)

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ("t-subj01", "t-subj02")


@pytest.fixture(scope="module")
def workdir(tiny, tmp_path_factory):
    """A run of two steps, evaluated and exported."""
    path = tmp_path_factory.mktemp("run")
    run = experiments.prepare_run(tiny(train={"steps": 2}), jax.devices()[:1])
    state = train.train(run, str(path))
    params, step = train.chosen_weights(run, state, str(path))
    result = evaluate.evaluate(run, params, str(path), step)
    export.write(run, path, result)
    return path


@pytest.fixture(scope="module")
def pictures(store, tmp_path_factory):
    """What --write_pictures leaves: images.npy and ids.txt."""
    out = tmp_path_factory.mktemp("pictures") / "here"
    score.answer(score.Asked([store], write_pictures=str(out)))
    return out


def assert_same_scores(found, workdir, atol=2e-5):
    """metrics.json of a run: the same keys, and values to rounding."""
    want = json.loads((workdir / "metrics.json").read_text())
    assert found.keys() == want.keys() | {"model"}

    def compare(a, b, where):
        assert type(a) is type(b), where
        if isinstance(a, dict):
            assert list(a) == list(b), where
            for key in a:
                compare(a[key], b[key], f"{where}.{key}")
        elif isinstance(a, float):
            assert a == pytest.approx(b, abs=atol), where
        else:
            assert a == b, where

    compare(found["subjects"], want["subjects"], "subjects")
    return want


def test_a_bundle_has_the_scores_of_its_run(store, workdir, tmp_path):
    score.answer(score.Asked([store], encoder=str(workdir), out=str(tmp_path)))
    found = json.loads((tmp_path / "metrics.json").read_text())
    want = assert_same_scores(found, workdir)
    for key in ("step", "config_sha256", "warnings"):
        assert found[key] == want[key]
    for name in NAMES:
        a, b = (
            xarray.open_zarr(w / "voxels" / f"{name}.zarr") for w in (tmp_path, workdir)
        )
        np.testing.assert_allclose(a.pearson, b.pearson, atol=2e-5)
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("ending", [".zarr", ".npy"])
def test_predictions_of_predict_have_the_scores_of_the_run(
    ending, store, workdir, pictures, tmp_path
):
    encoder = universal.UniversalEncoder.load(workdir)
    for name in NAMES:
        file = tmp_path / "given" / f"{name}{ending}"
        predict.to_file(encoder, str(pictures / "images.npy"), file, subject=name)
    given, ids = str(tmp_path / "given"), str(pictures / "ids.txt")
    out = str(tmp_path / "out")
    score.answer(score.Asked([store], predictions=given, ids=ids, out=out))
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert_same_scores(found, workdir)
    assert found["model"]["kind"] == "predictions"


def test_written_pictures_are_the_test_pictures_in_the_order_of_their_ids(
    store, pictures
):
    stores = crowd.open_crowd((store,))
    ids = given_predictions.read_ids(pictures / "ids.txt")
    images = np.load(pictures / "images.npy", allow_pickle=False)
    assert sorted(ids) == [f"t/{i:04d}" for i in range(4)]
    rows = np.array([stores.image_id.index(i) for i in ids])
    np.testing.assert_array_equal(images, crowd.read_pictures(stores, rows))
    with pytest.raises(errors.OutputError, match=r"ids\.txt exist"):
        score.write_pictures(stores, str(pictures))


@pytest.fixture
def one(store, tmp_path):
    """Writes predictions of one subject as .npy and .json; scores them."""
    stores = crowd.open_crowd((store,), ("t-subj01",))
    subject = stores.subjects[0]
    wanted = [stores.image_id[i] for i in subject.image[subject.samples("test")]]
    values = np.random.default_rng(0).standard_normal((4, subject.num_voxels))

    def run(change=lambda values, ids: (values, ids), name="t-subj01.npy", **told):
        array, ids = change(values.copy(), list(wanted))
        np.save(tmp_path / name, array)
        sidecar = (tmp_path / name).with_suffix(".json")
        sidecar.write_text(json.dumps({"Images": ids, **told}))
        model = score.of_predictions(stores, str(tmp_path / name))
        return score.run(stores, model, str(tmp_path / "out"))

    return run, values


def test_rows_in_another_order_and_of_more_pictures_change_nothing(one):
    run, _ = one
    want = run()["subjects"]

    def change(values, ids):
        more = np.concatenate([values, np.full((1, values.shape[1]), np.nan)])
        order = [2, 4, 0, 3, 1]
        return more[order], [[*ids, "t/other"][i] for i in order]

    assert run(change)["subjects"] == want


FAULTS = {
    "a missing picture": (
        lambda v, ids: (v[1:], ids[1:]),
        "1 of 4 test pictures missing: t/0000",
    ),
    "a picture twice": (
        lambda v, ids: (v[[0, 0, 1, 2, 3]], [ids[0], *ids]),
        "1 pictures twice: t/0000",
    ),
    "fewer voxels": (lambda v, ids: (v[:, 1:], ids), "36 voxels, not 37"),
    "NaN": (
        lambda v, ids: (np.where(np.arange(37) == 5, np.nan, v), ids),
        r"t/0000, voxel 5: nan \(4 values",
    ),
    "fewer ids than rows": (lambda v, ids: (v, ids[1:]), "4 rows, 3 ids"),
    "whole numbers": (lambda v, ids: (v.astype(int), ids), r"int64 \(4, 37\)"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_predictions_that_do_not_fit_are_refused_by_name(name, one, tmp_path):
    run, _ = one
    change, words = FAULTS[name]
    with pytest.raises(errors.InputError, match=words):
        run(change)
    assert not (tmp_path / "out").exists()


def test_predictions_of_another_subject_are_refused(one, store, tmp_path):
    run, _ = one
    with pytest.raises(errors.InputError, match="predictions of t-subj02"):
        run(Subject="t-subj02")
    stores = crowd.open_crowd((store,))
    (tmp_path / "t-subj01.json").write_text('["t/0000", "t/0001", "a", "b"]')
    with pytest.raises(errors.InputError, match="a subject that is not named"):
        score.of_predictions(stores, str(tmp_path / "t-subj01.npy"))
    with pytest.raises(errors.MissingInputError, match=r"t-subj02 \(there: t-subj01"):
        score.of_predictions(stores, str(tmp_path))
    with pytest.raises(errors.MissingInputError, match="no such file"):
        score.of_predictions(stores, str(tmp_path / "nowhere"))


def test_pickles_are_not_read(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.array([[{}]], object), allow_pickle=True)
    path.with_suffix(".json").write_text('["a"]')
    with pytest.raises(errors.InputError, match="cannot be read"):
        given_predictions.find(path, ["x"])


def test_a_region_of_voxels_and_a_lost_chunk_are_refused(
    workdir, pictures, store, tmp_path
):
    stores = crowd.open_crowd((store,), ("t-subj01",))
    encoder = universal.UniversalEncoder.load(workdir)
    source, file = str(pictures / "images.npy"), tmp_path / "t-subj01.zarr"
    predict.to_file(encoder, source, file, subject="t-subj01", roi=["second"])
    with pytest.raises(errors.InputError, match="without --roi"):
        score.of_predictions(stores, str(file), str(pictures / "ids.txt"))
    predict.to_file(encoder, source, file, subject="t-subj01", overwrite=True)
    (file / "response" / "c" / "0" / "0").unlink()
    with pytest.raises(errors.InputError, match="lost 1 of 1 chunks"):
        score.of_predictions(stores, str(file), str(pictures / "ids.txt"))


def test_an_encoder_with_other_voxels_or_without_the_subject_is_refused(
    workdir, dataset_store, make_dataset, tmp_path
):
    other = crowd.open_crowd((dataset_store(),))  # 36 and 24 voxels
    with pytest.raises(errors.InputError, match=r"t-subj01: 37 voxels at other"):
        score.of_encoder(other, str(workdir))
    three = crowd.open_crowd((dataset_store(num_subjects=3),), ("t-subj03",))
    with pytest.raises(errors.ConfigError, match="no subject t-subj03"):
        score.of_encoder(three, str(workdir))


def test_test_pictures_that_the_encoder_was_trained_on_are_refused(
    workdir, make_dataset, tmp_path
):
    dataset = make_dataset()

    def swapped():
        for subject in dataset.subjects:
            split = np.asarray(subject.split).copy()
            split[:4], split[4:8] = "train", "test"
            yield subject._replace(split=split)

    path = tmp_path / "swapped.zarr"
    crowd.write(str(path), dataset._replace(subjects=swapped()), image_px=28)
    stores = crowd.open_crowd((str(path),), ("t-subj01",))
    with pytest.raises(errors.InputError, match="4 test pictures shaped"):
        score.of_encoder(stores, str(workdir))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"out": "x"}, "0 given; expected one of them"),
        ({"out": "x", "encoder": "a", "predictions": "b"}, "2 given"),
        ({"encoder": "a"}, "--out: not given; expected it with --encoder"),
        ({"out": "x", "write_pictures": "a"}, "--out: given; expected no such flag"),
        ({"out": "x", "encoder": "a", "ids": "b"}, "--ids: given; expected no such"),
        ({"out": "x", "predictions": "a", "backbone": "b"}, "Leave out --backbone"),
    ],
)
def test_flags_that_do_not_fit_are_refused(given, words, store):
    with pytest.raises(errors.ConfigError, match=words):
        score.answer(score.Asked([store], **given))


@pytest.mark.slow
def test_the_command_scores_and_says_what_is_wrong_in_a_line(store, workdir, tmp_path):
    def command(*words):
        return subprocess.run(
            [sys.executable, "-m", "ubrain_jax.score", f"--crowd={store}", *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=240,
            check=False,
        )

    done = command(f"--encoder={workdir}", f"--out={tmp_path / 'a'}")
    assert done.returncode == 0, done.stderr
    assert "t-subj02" in done.stdout
    wrong = command(f"--predictions={tmp_path / 'none'}", f"--out={tmp_path / 'b'}")
    assert wrong.returncode == errors.EXIT_MISSING_INPUT
    assert wrong.stderr.startswith("error: ")
    assert "no such file or folder" in wrong.stderr
    assert not (tmp_path / "b").exists()
