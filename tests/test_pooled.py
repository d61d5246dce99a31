"""Voxels of several subjects in one table."""

import numpy as np
import pytest
import xarray

from ubrain_jax import crowd, errors
from ubrain_jax.atlas import pooled
from ubrain_jax.model import bundle


def subject(name, count, regions, attrs, seed=0):
    rng = np.random.default_rng(seed)
    return bundle.Subject(
        name,
        rng.standard_normal((count, 4)).astype(np.float32),
        rng.integers(0, 8, (count, 3)).astype(np.int32),
        rng.random((count, len(regions))) < 0.5,
        regions,
        rng.random(count).astype(np.float32),
        attrs,
        {},
    )


VOLUME = {"grid": [8, 8, 8], "affine": np.diag([-2.0, 2, 2, 1]).tolist()}


def test_regions_of_all_subjects_are_columns_by_name():
    a = subject("a", 5, ("V1", "V2"), VOLUME)
    b = subject("b", 3, ("PPA", "V1"), VOLUME, 1)
    both = pooled.pool([a, b])
    assert both.roi_names == ("V1", "V2", "PPA")
    assert both.subject.tolist() == [0] * 5 + [1] * 3
    assert both.voxel.tolist() == [*range(5), *range(3)]
    np.testing.assert_array_equal(both.roi[:5, :2], a.roi)
    assert not both.roi[:5, 2].any()
    np.testing.assert_array_equal(both.roi[5:, 2], b.roi[:, 0])
    np.testing.assert_array_equal(both.roi[5:, 0], b.roi[:, 1])
    np.testing.assert_array_equal(both.embedding[5:], b.embedding)
    assert both.score_name == ""
    assert np.isnan(both.score).all()


def test_voxels_below_a_score_or_without_one_are_left_out():
    a, b = subject("a", 4, (), VOLUME), subject("b", 3, (), VOLUME, 1)
    scores = {"a": np.array([0.1, 0.5, np.nan, 0.2]), "b": np.array([-1, 0.2, 0.9])}
    kept = pooled.pool([a, b], scores, least_score=0.2)
    assert kept.subject.tolist() == [0, 0, 1, 1]
    assert kept.voxel.tolist() == [1, 3, 1, 2]
    np.testing.assert_array_equal(kept.embedding[2:], b.embedding[1:])
    with pytest.raises(errors.ConfigError, match=r"the best of 7 is 0\.9"):
        pooled.pool([a, b], scores, least_score=1.0)


def test_scores_of_another_number_of_voxels_are_refused():
    a = subject("a", 4, (), VOLUME)
    for scores in ({"a": np.zeros(3)}, {"b": np.zeros(4)}):
        with pytest.raises(errors.InputError, match="scores for 4 voxels"):
            pooled.pool([a], scores)


def test_hemispheres_follow_the_affine_the_surface_or_are_unknown():
    place = np.array([[0, 3, 3], [3, 0, 0]], np.int32)
    a = subject("a", 2, (), VOLUME)._replace(position=place)
    told = {
        **VOLUME,
        "affine": [[-2, 0, 0, 3], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]],
    }
    assert pooled.hemispheres(a._replace(attrs=told)).tolist() == [1, 0]
    unknown = {"grid": [8, 8, 8], "affine": "not known"}
    assert pooled.hemispheres(a._replace(attrs=unknown)).tolist() == [-1, -1]
    assert pooled.hemispheres(a._replace(attrs={})).tolist() == [-1, -1]
    vertex = np.array([[1, 7, -1], [0, 9, -1]], np.int32)
    surface = a._replace(position=vertex, attrs={"space": "fsaverage"})
    assert pooled.hemispheres(surface).tolist() == [1, 0]
    gray = np.array([[2, 90000, -1], [0, 9, -1]], np.int32)
    mosaic = a._replace(position=gray, attrs={"dataset": "mosaic"})
    assert pooled.hemispheres(mosaic).tolist() == [-1, 0]


def test_scores_are_read_from_a_workdir(tmp_path):
    assert pooled.read_scores(tmp_path, ["a"]) is None
    values = np.array([0.25, np.nan])
    table = xarray.Dataset({"pearson": ("voxel", values)})
    (tmp_path / "voxels").mkdir()
    crowd.write_xarray(table, tmp_path / "voxels" / "a.zarr")
    found = pooled.read_scores(tmp_path, ["a", "b"])
    assert list(found) == ["a"]
    np.testing.assert_array_equal(found["a"], values.astype(np.float32))
    with pytest.raises(errors.InputError, match="noise_normalised"):
        pooled.read_scores(tmp_path, ["a"], "noise_normalised")
