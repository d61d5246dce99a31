"""The command: what it writes, that test responses reach nothing, what it refuses."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import xarray

from ubrain_jax import baseline, crowd, errors, evaluate, score
from ubrain_jax.baselines import gaziv

ROOT = pathlib.Path(__file__).parent.parent
QUICK = gaziv.Settings(channels=4, epochs=2, learning_rates=(1e-2,), batch_images=4)


def poisoned(make_dataset, path):
    """The tiny store with other responses to test pictures."""
    dataset = make_dataset()

    def subjects():
        for subject in dataset.subjects:
            responses = subject.responses.copy()
            test = np.asarray(subject.split) == "test"
            responses[test] = 1e3 * np.arange(responses[test].size).reshape(
                responses[test].shape
            )
            yield subject._replace(responses=responses)

    crowd.write(str(path), dataset._replace(subjects=subjects()), image_px=28)
    return str(path)


def predictions(workdir):
    """Of each subject, as written."""
    found = {}
    for path in sorted((pathlib.Path(workdir) / "predictions").glob("*.zarr")):
        with xarray.open_zarr(path) as table:
            found[path.stem] = table.response.values, list(table.image.values)
    return found


@pytest.mark.parametrize("kind", baseline.KINDS)
def test_a_baseline_writes_what_an_evaluation_writes_and_no_test_response_reaches_it(
    kind, tiny, make_dataset, tmp_path
):
    def run(stores, name):
        plan = baseline.Plan(
            kind,
            tiny(data={"crowd": (stores,), "subjects": ("t-subj02",)}),
            str(tmp_path / name),
            cache=str(tmp_path / "cache"),
            save_predictions=True,
            readout=QUICK,
        )
        return baseline.run(plan)

    plain = tmp_path / "plain.zarr"
    crowd.write(str(plain), make_dataset(), image_px=28)
    result = run(str(plain), "a")
    other = run(poisoned(make_dataset, tmp_path / "poisoned.zarr"), "b")
    written = predictions(tmp_path / "a")
    for name, (values, ids) in predictions(tmp_path / "b").items():
        np.testing.assert_array_equal(values, written[name][0])
        assert ids == written[name][1] == [f"t/{i:04d}" for i in range(4)]
    assert list(written) == ["t-subj02"]
    scores = [r["subjects"]["t-subj02"]["pearson"] for r in (result, other)]
    assert scores[0] != scores[1]
    assert result["model"]["kind"] == kind
    assert list(result["model"]["chosen"]) == ["t-subj02"]
    assert json.loads((tmp_path / "a/metrics.json").read_text()) == result
    assert any("random weights" in line for line in result["warnings"])
    assert (tmp_path / "a/voxels/t-subj02.zarr").is_dir()
    page = (tmp_path / "a/report.html").read_text()
    assert f"Baseline {kind}" in page
    # The same predictions, given as a folder, have the same scores.
    stores = crowd.open_crowd((str(plain),), ("t-subj02",))
    model = score.of_predictions(stores, str(tmp_path / "a/predictions"))
    again = score.run(stores, model, str(tmp_path / "c"))
    assert again["subjects"] == result["subjects"]
    assert set(again) == set(result)


def test_a_workdir_of_an_encoder_is_left_alone(tiny, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(errors.OutputError, match="trained encoder"):
        baseline.run(baseline.Plan("ridge", tiny(), str(tmp_path)))
    with pytest.raises(errors.OutputError, match="trained encoder"):
        evaluate.refuse_run(tmp_path, "--out")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]


def test_a_subject_without_validation_pictures_is_refused_before_any_feature(
    tiny, make_dataset, tmp_path
):
    dataset = make_dataset()

    def subjects():
        for subject in dataset.subjects:
            split = np.where(subject.split == "val", "train", subject.split)
            yield subject._replace(split=split)

    path = tmp_path / "x.zarr"
    crowd.write(str(path), dataset._replace(subjects=subjects()), image_px=28)
    plan = baseline.Plan(
        "ridge", tiny(data={"crowd": (str(path),)}), str(tmp_path / "w")
    )
    with pytest.raises(errors.InputError, match=r"0 val.*--val_fraction"):
        baseline.run(plan)
    assert not (tmp_path / "x.zarr.cache").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grid": 0}, "--grid"),
        ({"vgg": "vgg19.pth"}, "--kind=gaziv"),
        ({"kind": "gaziv", "vgg": "vgg19.pth"}, "vgg19.pth: no such file"),
    ],
)
def test_flags_that_do_not_fit_are_refused(change, words, tiny, tmp_path):
    plan = baseline.Plan("ridge", tiny(), str(tmp_path / "w"))._replace(**change)
    with pytest.raises(errors.InputError, match=words):
        baseline.run(plan)
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_the_command_fits_a_store_and_says_what_is_wrong(store, tmp_path):
    text = (
        "from ubrain_jax import config\n\ndef get_config():\n  c = config.default()\n"
    )
    for line in (
        f"data.crowd = ({store!r},)",
        "backbone.name = ''",
        "backbone.weights = 'bundled'",
        "backbone.taps = (1, 2)",
        "backbone.image_px = 28",
        "backbone.dtype = 'float32'",
        "train.steps = 1",
    ):
        text += f"  c.{line}\n"
    file = tmp_path / "config.py"
    file.write_text(text + "  return c\n")

    def command(*words):
        return subprocess.run(
            [sys.executable, "-m", "ubrain_jax.baseline", *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=240,
            check=False,
        )

    workdir = str(tmp_path / "w")
    given = [f"--config={file}", f"--workdir={workdir}", f"--cache={tmp_path}/c"]
    done = command("--kind=ridge", *given)
    assert done.returncode == 0, done.stderr
    assert "t-subj02" in done.stdout
    assert "features" in json.loads((tmp_path / "w/metrics.json").read_text())["model"]
    wrong = command("--kind=ridge", *given, "--config.data.subjects=nobody")
    assert wrong.returncode == errors.EXIT_CONFIG
    assert "nobody" in wrong.stderr
