"""The ways in which an evaluation goes wrong unseen, each caught.

Elsewhere: constant and near-constant voxels and values that are not finite, for each
score (test_metrics, test_moments, test_bootstrap, test_significance, test_ceilings);
a picture in train for one subject and in test for another, by id or by its pixels, in
one store (test_crowd) or over several (test_joining); means over pools of different
size (test_studies), and a table of them (test_report).
"""

import json

import jax
import numpy as np
import pytest

from ubrain_jax import crowd, errors, evaluate, experiments, metrics, train


@pytest.fixture(scope="module")
def subject(tiny):
    run = experiments.prepare_run(tiny(), jax.devices()[:1])
    return run.stores.subjects[0]


def scored(subject, measured, predicted):
    """As `evaluate` scores a subject, of as many made-up pictures as are given."""
    samples = np.resize(subject.samples("test"), len(measured))
    table, summary, _ = evaluate.score_subject(
        subject, samples, measured, predicted, bootstraps=50, permutations=200
    )
    return table, summary


def made_up(voxels, seed=0, images=40):
    rng = np.random.default_rng(seed)
    measured = rng.normal(size=(images, voxels)).astype(np.float32)
    predicted = measured + rng.normal(size=measured.shape).astype(np.float32)
    return measured, predicted


def dust():
    """A float32 voxel of 0.1 after some arithmetic: it varies by one rounding step."""
    values = np.full(40, 0.1, np.float32)
    values[::2] = np.nextafter(np.float32(0.1), np.float32(1))
    return values


@pytest.mark.parametrize(
    "bad",
    [np.full(40, 0.1, np.float32), dust(), np.r_[np.nan, np.ones(39)]],
    ids=["constant", "near-constant", "NaN"],
)
def test_a_voxel_without_a_score_is_counted_and_changes_no_other(subject, bad):
    measured, predicted = made_up(subject.num_voxels)
    clean, before = scored(subject, measured, predicted)
    measured[:, 5] = bad
    table, summary = scored(subject, measured, predicted)
    others = np.arange(subject.num_voxels) != 5
    for name in ("pearson", "r2", "explained_variance", "noise_normalised", "p"):
        values = table[name].values
        assert np.isnan(values[5]), name
        np.testing.assert_array_equal(values[others], clean[name].values[others])
    assert np.isnan(table.q.values[5])
    for name in ("pearson", "r2", "explained_variance"):
        assert summary[name]["undefined"] == before[name]["undefined"] + 1
    assert summary["significant"]["voxels"] == subject.num_voxels - 1
    for name in ("pearson", "r2"):
        low, high = summary[name]["ci"]
        assert low < summary[name]["median"] < high
    json.dumps(metrics.null_for_nan(summary), allow_nan=False)


def test_responses_that_are_not_finite_are_not_read_from_a_store(
    make_dataset, tmp_path
):
    [subject, _] = make_dataset().subjects
    subject.responses[-1, 3] = np.nan
    dataset = make_dataset()._replace(subjects=iter([subject]))
    with pytest.raises(errors.InputError, match="non-finite responses"):
        crowd.write(str(tmp_path / "t.zarr"), dataset, image_px=28)


def test_repeats_of_a_picture_are_never_in_train_and_test(make_dataset, tmp_path):
    """A reader that does not average them gives the id twice, whatever the splits."""
    [subject, _] = make_dataset().subjects
    ids, split = list(subject.image_id), subject.split.copy()
    assert (split[0], split[8]) == ("test", "train")
    ids[8] = ids[0]
    dataset = make_dataset()._replace(subjects=iter([subject._replace(image_id=ids)]))
    with pytest.raises(errors.InputError) as refused:
        crowd.write(str(tmp_path / "t.zarr"), dataset, image_px=28)
    assert "an image id occurs twice; repeats are averaged" in str(refused.value)
    assert "is train here and test for" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_training_depends_on_a_test_response(
    make_dataset, store, tiny, tmp_path
):
    """Poisoned test responses leave weights, validation and its choice bitwise."""

    def poisoned():
        for subject in make_dataset().subjects:
            values = subject.responses.copy()
            values[subject.split == "test"] = 1e6
            yield subject._replace(responses=values)

    other = str(tmp_path / "t.zarr")
    crowd.write(other, make_dataset()._replace(subjects=poisoned()), image_px=28)
    found = []
    for path in (store, other):
        settings = tiny(
            data={"crowd": (path,)},
            train={"steps": 4, "eval_every_steps": 2, "select": "best"},
        )
        run = experiments.prepare_run(settings, jax.devices()[:1])
        workdir = tmp_path / f"run{len(found)}"
        state = train.train(run, str(workdir))
        params, step = train.chosen_weights(run, state, str(workdir))
        log = evaluate.read_log(workdir)
        for line in log:
            for name in ("images_per_second", "wait_s"):
                line.pop(name, None)
        found.append((state, params, step, log))
    clean, poison = found
    jax.tree.map(np.testing.assert_array_equal, clean[:3], poison[:3])
    assert clean[3] == poison[3]
    stores = [crowd.open_crowd((path,)) for path in (store, other)]
    rows = stores[0].subjects[0].samples("test")
    first, second = (crowd.read_responses(s.subjects[0], rows) for s in stores)
    assert (second == 1e6).all()
    assert not (first == 1e6).any()
