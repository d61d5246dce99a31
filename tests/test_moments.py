"""Scores of blocks of images against the scores of whole arrays."""

import numpy as np
import pytest

from ubrain_jax import errors, metrics, moments


def arrays(seed=0, images=57, voxels=40, dtype=np.float64):
    rng = np.random.default_rng(seed)
    measured = rng.normal(size=(images, voxels)) * rng.uniform(0.1, 9, voxels)
    measured += rng.normal(size=voxels) * 50
    predicted = 0.5 * measured + 3 * rng.normal(size=(images, voxels))
    return measured.astype(dtype), predicted.astype(dtype)


def in_blocks(measured, predicted, sizes):
    start = 0
    for size in sizes:
        yield measured[start : start + size], predicted[start : start + size]
        start += size
    assert start == len(measured)


def assert_as_whole(found, measured, predicted, atol=1e-12):
    assert found.images == len(measured)
    for name in ("pearson", "r2", "explained_variance"):
        whole = getattr(metrics, name)(measured, predicted)
        np.testing.assert_allclose(getattr(found, name), whole, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("sizes", [(57,), (1,) * 57, (20, 1, 36), (56, 1)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_blocks_have_the_scores_of_whole_arrays(sizes, dtype):
    measured, predicted = arrays(dtype=dtype)
    found = moments.scores(in_blocks(measured, predicted, sizes))
    assert_as_whole(found, measured, predicted)


def test_columns_are_taken_in_blocks_too(monkeypatch):
    measured, predicted = arrays(1)
    monkeypatch.setattr(metrics, "BLOCK_VOXELS", 7)
    found = moments.scores(in_blocks(measured, predicted, (30, 27)))
    assert_as_whole(found, measured, predicted)


def test_values_far_from_zero_keep_their_precision():
    measured, predicted = arrays(2, images=400)
    far = measured + 1e8, predicted - 1e8
    found = moments.scores(in_blocks(*far, (100,) * 4))
    expected = metrics.pearson(measured, predicted)
    np.testing.assert_allclose(found.pearson, expected, atol=1e-7)
    np.testing.assert_allclose(found.pearson, metrics.pearson(*far), atol=1e-12)


@pytest.mark.parametrize("sizes", [(750,), (1, 749), (250, 250, 250)])
def test_what_is_undefined_in_a_whole_array_is_so_in_blocks(sizes):
    measured, predicted = arrays(3, images=750, voxels=8, dtype=np.float32)
    measured[:, 0] = 0.1
    measured[:, 1] = 0.1
    measured[::2, 1] = np.nextafter(np.float32(0.1), np.float32(1))  # dust
    measured[700, 2] = np.nan
    predicted[0, 3] = np.inf
    predicted[:, 4] = -3.0
    measured[0, 5] = -np.inf
    found = moments.scores(in_blocks(measured, predicted, sizes))
    assert np.isnan(found.pearson).tolist() == [True] * 6 + [False] * 2
    assert np.isnan(found.r2).tolist() == [True] * 4 + [False, True, False, False]
    assert_as_whole(found, measured, predicted)


def test_a_perfect_prediction_scores_one_and_never_above():
    measured, _ = arrays(4)
    found = moments.scores(in_blocks(measured, measured, (19, 38)))
    for values in (found.pearson, found.r2, found.explained_variance):
        np.testing.assert_allclose(values, 1, atol=1e-12)
        assert values.max() <= 1


def test_blocks_of_other_shapes_and_too_few_images_are_refused():
    x = np.zeros((4, 3))
    for blocks, found in (
        ([(x, x[:, :2])], r"measured \(4, 3\), predicted \(4, 2\)"),
        ([(x, x), (x[:, :2], x[:, :2])], r"measured \(4, 2\).*voxels \(3,\)"),
        ([(x, x), (x[:0], x[:0])], "a block of no images"),
        ([(x[0], x[0])], r"measured \(3,\)"),
        ([(x[:2], x[:2])], "2 images; expected at least 3"),
        ([], "0 images; expected at least 3"),
    ):
        with pytest.raises(errors.InputError, match=found):
            moments.scores(blocks)


def test_a_block_is_not_kept_so_its_memory_may_be_used_again():
    rng = np.random.default_rng(5)
    block = [rng.normal(size=(10, 30)).astype(np.float32) for _ in range(2)]
    alive = []

    def again():
        for k in range(50):
            block[0] += np.float32(k % 3)
            alive.append(block[0].copy())
            yield block[0], block[1]

    found = moments.scores(again())
    whole = np.concatenate(alive), np.tile(block[1], (50, 1))
    np.testing.assert_allclose(found.pearson, metrics.pearson(*whole), atol=1e-12)
