"""What each measured pattern found: against a loop, and as it lies on disk."""

import numpy as np
import pytest

from ubrain_jax import errors, metrics, ranks


def patterns(images=9, voxels=20, seed=0):
    rng = np.random.default_rng(seed)
    measured = rng.standard_normal((images, voxels))
    return measured, measured + 1.5 * rng.standard_normal(measured.shape)


def test_ranks_and_best_fits_equal_a_loop():
    measured, predicted = patterns()
    found = ranks.make(metrics.similarity(measured, predicted))
    for m in range(9):
        r = [np.corrcoef(measured[m], predicted[k])[0, 1] for k in range(9)]
        order = sorted(range(9), key=lambda k, r=r: -r[k])
        assert found.best[m].tolist() == order[:5]
        np.testing.assert_allclose(found.correlation[m], sorted(r)[::-1][:5])
        assert found.rank[m] == 1 + order.index(m)
    assert found.pool == 9


def test_fewer_pictures_than_places_and_undefined_fits():
    measured, predicted = patterns(images=4)
    predicted[2] = 0.5  # a constant pattern correlates with nothing
    found = ranks.make(metrics.similarity(measured, predicted))
    assert found.best.shape == (4, 4)
    assert (found.best[:, 3] == -1).all()
    assert np.isnan(found.correlation[:, 3]).all()
    assert not (found.best[:, :3] == 2).any()


def test_file_comes_back(tmp_path):
    found = ranks.make(metrics.similarity(*patterns()))
    names = [f"t/{k}|<é>" for k in range(9)]
    ranks.write(tmp_path, "s1", names, found)
    again = ranks.read(tmp_path, "s1")
    assert again.image_id == names
    np.testing.assert_array_equal(again.rank, found.rank)
    np.testing.assert_array_equal(again.best, found.best)
    np.testing.assert_allclose(again.correlation, found.correlation, rtol=1e-6)


def test_absent_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(errors.MissingInputError, match=r"retrieval/s1\.zarr"):
        ranks.read(tmp_path, "s1")
    found = ranks.make(metrics.similarity(*patterns()))
    names = [f"t/{k}" for k in range(9)]
    ranks.write(tmp_path, "s1", names, found._replace(best=found.best + 9))
    with pytest.raises(errors.InputError, match="cannot be read"):
        ranks.read(tmp_path, "s1")
