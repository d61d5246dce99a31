"""One run over two stores whose subjects have little in common."""

import json

import jax
import numpy as np
import pytest
import xarray

from ubrain_jax import batches, crowd, evaluate, experiments, train
from ubrain_jax.maps import report


@pytest.fixture(scope="module")
def stores(store, tmp_path_factory, make_dataset):
    """The session's store, and one of other ids, with a bare subject in it.

    u-bare has no noise ceiling, no region and fewer voxels than a draw; u-wide has
    more voxels than anyone. u/0000 is t/0000, and u/0001 a brighter t/1000, which is
    in training: test pictures both.
    """
    dataset = make_dataset(2, 8, voxels=(10, 90), seed=7)
    bare, wide = dataset.subjects
    bare = bare._replace(
        name="u-bare",
        ncsnr=np.full(10, np.nan, np.float32),
        roi=np.zeros((10, 0), bool),
        roi_names=(),
        attrs={"dataset": "u", "space": "none"},
    )
    wide = wide._replace(name="u-wide", attrs={"space": "none"})
    renamed = [
        s._replace(image_id=[f"u/{i[2:]}" for i in s.image_id]) for s in (bare, wide)
    ]

    def read_images(ids):
        read = {"u/0000": "t/0000", "u/0001": "t/1000"}
        source = make_dataset().read_images([read.get(i, i) for i in ids])
        for image_id, picture in zip(ids, source, strict=True):
            more = 3 * (image_id == "u/0001")
            yield np.clip(picture.astype(int) + more, 0, 255).astype(np.uint8)

    path = str(tmp_path_factory.mktemp("joint") / "u.zarr")
    dataset = dataset._replace(subjects=iter(renamed), read_images=read_images)
    crowd.write(path, dataset, image_px=28)
    return store, path


@pytest.fixture(scope="module")
def make_run(tiny, stores):
    def make(steps=2, **data):
        settings = tiny(
            data={"crowd": stores, **data},
            train={
                "steps": steps,
                "eval_every_steps": 2,
                "checkpoint_every_steps": 1,
                "log_every_steps": 1,
            },
        )
        return experiments.prepare_run(settings, jax.devices()[:1])

    return make


@pytest.fixture(scope="module")
def finished(make_run, tmp_path_factory):
    """A run, its workdir and the content of metrics.json."""
    workdir = tmp_path_factory.mktemp("run")
    run = make_run(store_power=0.5)
    state = train.train(run, str(workdir))
    evaluate.evaluate(run, state.params, str(workdir), 2)
    return run, workdir, json.loads((workdir / "metrics.json").read_text())


def test_pictures_of_both_stores_become_one_set(finished):
    run = finished[0]
    opened = run.stores
    assert [s.name for s in opened.subjects] == [
        *("t-subj01", "t-subj02", "u-bare", "u-wide")
    ]
    assert [s.num_voxels for s in opened.subjects] == [37, 23, 10, 90]
    assert len(opened.image_id) == 28 + 4 + 2 * 8 - 1
    shared = opened.image_id.index("t/0000")
    assert [s.image[0] for s in opened.subjects] == [shared] * 4


def test_a_subject_smaller_than_the_draw_is_padded_with_weight_0(finished):
    run = finished[0]
    bare = run.stores.subjects[2]
    own = set(bare.image[bare.split == "train"].tolist())
    data = batches.dataset(run.stores, run.experiment.data, 0)
    weights = {
        int(picture): weight.sum()
        for batch in (data[step] for step in range(8))
        for picture, weight in zip(batch.picture, batch.weight, strict=True)
    }
    padded = {picture for picture, weight in weights.items() if weight < 16}
    assert padded == own & set(weights)
    assert {weights[p] for p in padded} == {10}
    assert len(padded) == 5


def test_every_subject_has_scores_and_what_is_unknown_is_null(finished):
    run, _, result = finished
    assert list(result["subjects"]) == [s.name for s in run.stores.subjects]
    for subject in run.stores.subjects:
        scores = result["subjects"][subject.name]
        assert scores["num_voxels"] == subject.num_voxels
        assert scores["pearson"]["num"] == subject.num_voxels
        assert -1 <= scores["pearson"]["median"] <= 1
        assert list(scores["roi"]) == list(subject.roi_names)
    bare = result["subjects"]["u-bare"]
    unknown = dict.fromkeys(("median", "p25", "p75", "mean"))
    unknown |= {"num": 0, "undefined": 10}
    assert bare["noise_normalised_r2"] == unknown
    assert bare["noise_normalised"] == {**unknown, "ci": [None, None]}
    assert result["subjects"]["u-wide"]["noise_normalised"]["num"] == 90
    datasets = [s["dataset"] for s in result["subjects"].values()]
    assert datasets == ["t", "t", "u", None]


def test_merged_and_similar_pictures_are_said_in_metrics_and_report(finished):
    _, workdir, result = finished
    merged = "1 pictures are in several stores under other ids; each is one example"
    similar = "1 pairs of a test picture and a train or val picture look alike"
    page = (workdir / "report.html").read_text()
    for words in (f"{merged} under its first id: u/0000 is t/0000.", similar):
        assert sum(words in w for w in result["warnings"]) == 1
        assert words in page
    assert any("training: u/0001 and t/1000 (" in w for w in result["warnings"])


def test_report_and_tables_stand_a_subject_without_ceiling_and_regions(finished):
    _, workdir, result = finished
    text = report.score_table(result)
    (line,) = (x for x in text.splitlines() if x.startswith("u-bare"))
    assert line.split()[1] == "10"
    assert " - " in line  # r / ceiling
    page = (workdir / "report.html").read_text()
    assert all(name in page for name in result["subjects"])
    table = xarray.open_zarr(workdir / "voxels" / "u-bare.zarr")
    assert table.roi.shape == (10, 0)
    assert np.isnan(table.noise_ceiling.values).all()
    assert np.isfinite(table.pearson.values).all()


def test_validation_during_training_scores_every_subject(finished):
    _, workdir, _ = finished
    lines = [
        json.loads(x) for x in (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    last = lines[-1]
    for name in ("t-subj01", "t-subj02", "u-bare", "u-wide"):
        assert -1 <= last[f"val_median_r/{name}"] <= 1


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_a_joint_run_resumes_bit_for_bit(make_run, tmp_path, power):
    whole = train.train(make_run(4, store_power=power), str(tmp_path / "whole"))
    train.train(make_run(1, store_power=power), str(tmp_path / "broken"))
    again = train.train(make_run(4, store_power=power), str(tmp_path / "broken"))
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    assert int(again.step) == 4


def test_another_power_is_another_run(make_run, tmp_path):
    train.train(make_run(1, store_power=0.5), str(tmp_path))
    with pytest.raises(ValueError, match=r"data\.store_power was 0\.5, is 0\.0"):
        train.train(make_run(2, store_power=0.0), str(tmp_path))
