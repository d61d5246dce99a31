"""A new run begins from the weights of another, its subjects found by name."""

import json

import jax
import numpy as np
import pytest

from ubrain_jax import config, crowd, errors, experiments, frozen, train, warmstart
from ubrain_jax.model import encoder


@pytest.fixture(scope="module")
def old(tiny, tmp_path_factory):
    """Workdir of a run of t-subj01 (37 voxels) and t-subj02 (23), four stripes."""
    workdir = tmp_path_factory.mktemp("old")
    experiment = tiny(train={"steps": 2, "checkpoint_every_steps": 2})
    train.train(experiments.prepare_run(experiment, jax.devices()[:1]), str(workdir))
    return workdir


@pytest.fixture(scope="module")
def renamed(make_dataset, tmp_path_factory):
    """A store of other pictures and other subjects."""
    path = str(tmp_path_factory.mktemp("more") / "n.zarr")
    data = make_dataset(seed=1)
    subjects = (
        s._replace(
            name=s.name.replace("t-", "n-"), image_id=[f"n{i}" for i in s.image_id]
        )
        for s in data.subjects
    )
    crowd.write(path, data._replace(subjects=subjects), image_px=28)
    return path


def run_of(tiny, *devices, **changes):
    return experiments.prepare_run(tiny(**changes), devices or jax.devices()[:1])


def begun(run, old):
    params, lines = warmstart.begin(
        run, run.parts.trainable, frozen.read_encoder(str(old))
    )
    total = run.stores.num_voxels
    return params, encoder.rows_of_table(np.asarray(params["table"]), total), lines


@pytest.mark.parametrize("stripes", [2, 4, 8])
def test_embeddings_follow_their_subject_whatever_else_changes(
    tiny, store, renamed, old, stripes
):
    """t-subj01 dropped, two subjects added before t-subj02, other stripes."""
    run = run_of(
        tiny,
        data={
            "crowd": (renamed, store),
            "subjects": ("n-subj01", "n-subj02", "t-subj02"),
            "stripes": stripes,
        },
    )
    params, rows, lines = begun(run, old)
    trained = frozen.read_encoder(str(old))
    at = {s.name: slice(s.offset, s.offset + s.num_voxels) for s in run.stores.subjects}
    np.testing.assert_array_equal(rows[at["t-subj02"]], trained.embeddings[37:60])
    random = encoder.rows_of_table(
        np.asarray(run.parts.trainable["table"]), run.stores.num_voxels
    )
    for name in ("n-subj01", "n-subj02"):
        np.testing.assert_array_equal(rows[at[name]], random[at[name]])
    assert sorted(line.split(":")[0] for line in lines) == sorted(at)
    flat = jax.tree_util.tree_leaves_with_path(trained.shared)
    for path, value in flat:
        leaf = params
        for key in path:
            leaf = leaf[key.key]
        np.testing.assert_array_equal(leaf, value)


def test_a_run_from_another_trains_on_eight_devices_and_knows_the_old_pictures(
    tiny, renamed, old, tmp_path
):
    experiment = tiny(
        data={"crowd": (renamed,)},
        train={"steps": 1, "init_from": str(old)},
        mesh={"data": 2, "voxel": 4},
    )
    train.train(experiments.prepare_run(experiment), str(tmp_path))
    seen, before = (
        json.loads((w / "trained_on.json").read_text())["image_sha256"]
        for w in (tmp_path, old)
    )
    assert before.items() <= seen.items()
    assert len(seen) > len(before)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"head": {"channels": 6}}, r"head/fc1_kernel is \(2, 8, 16\), not"),
        ({"head": {"embed_dim": 4}}, "embeddings have 8 numbers, not 4"),
        ({"adapter": {"kind": "none"}}, "is not used"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tiny, old, changes, says):
    with pytest.raises(errors.InputError, match=says):
        begun(run_of(tiny, **changes), old)


def test_a_subject_of_another_size_is_refused(tiny, dataset_store, old):
    other = dataset_store(seed=3)
    trained = frozen.read_encoder(str(old))._replace(seen=None)
    run = run_of(tiny, data={"crowd": (other,)})
    with pytest.raises(errors.InputError, match="t-subj01 had 37 voxels and has 36"):
        warmstart.begin(run, run.parts.trainable, trained)


def test_a_test_picture_that_shaped_the_weights_is_refused(tiny, store, old):
    trained = frozen.read_encoder(str(old))
    run = run_of(tiny)
    test = run.stores.image_id[run.stores.subjects[0].image[0]]
    seen = {**(trained.seen or {}), "0" * 64: test}
    with pytest.raises(errors.InputError, match=f"shaped the encoder's.*{test}"):
        warmstart.begin(run, run.parts.trainable, trained._replace(seen=seen))


def test_where_the_old_run_lies_is_no_part_of_the_experiment(tiny):
    here, there = (
        config.sha256(tiny(train={"init_from": f"/{place}/old"})) for place in "ab"
    )
    assert here == there
