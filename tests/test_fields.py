"""Receptive fields are those that were planted, and as scipy fits them."""

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import xarray

from ubrain_jax import errors
from ubrain_jax.atlas import fields


def planted(count, seed=0):
    """x, y, size of random fields inside the picture."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.uniform(np.log(0.035), np.log(0.4), count))
    return np.c_[rng.uniform(0, 1, (count, 2)), size]


def test_a_gaussian_of_a_patch_is_its_mean_over_the_patch():
    x, y, size = 0.4, 0.7, 0.06
    found = fields.gaussians(np.array([[x, y, size]]), (4, 8))
    assert found.shape == (1, 4, 8)

    def height(v, u):
        return np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * size**2))

    for row, column in ((2, 3), (3, 4), (2, 2)):
        mass, _ = scipy.integrate.dblquad(
            height, column / 8, (column + 1) / 8, row / 4, (row + 1) / 4
        )
        assert found[0, row, column] == pytest.approx(mass * 32, rel=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (16, 16), (6, 12)])
def test_planted_fields_are_found_whatever_the_height_and_offset(shape):
    truth = planted(300)
    rng = np.random.default_rng(1)
    height, offset = np.exp(rng.normal(0, 2, 300)), rng.normal(0, 2, 300)
    maps = fields.gaussians(truth, shape) * height[:, None, None]
    found = fields.fit(maps + offset[:, None, None])
    # A field that lies between patches and is far smaller has no single place.
    wide = truth[:, 2] > 0.4 / min(shape)
    np.testing.assert_allclose(found.x[wide], truth[wide, 0], atol=1e-3)
    np.testing.assert_allclose(found.y[wide], truth[wide, 1], atol=1e-3)
    np.testing.assert_allclose(found.size[wide], truth[wide, 2], rtol=1e-2)
    np.testing.assert_allclose(found.height[wide], height[wide], rtol=2e-2)
    assert found.quality.min() > 0.99


def test_noisy_maps_are_fitted_as_scipy_fits_them():
    truth, rng = planted(40), np.random.default_rng(2)
    maps = fields.gaussians(truth, (8, 8))
    maps += 0.5 * maps.std((1, 2), keepdims=True) * rng.normal(size=maps.shape)
    found = fields.fit(maps)

    def model(_, x, y, log_size, height, offset):
        one = np.array([[x, y, np.exp(log_size)]])
        return (offset + height * fields.gaussians(one, (8, 8))[0]).ravel()

    for k, (x, y, size) in enumerate(truth):
        given, _ = scipy.optimize.curve_fit(
            model,
            None,
            maps[k].ravel(),
            p0=[x, y, np.log(size), 1, 0],
            bounds=(
                [-0.25, -0.25, np.log(0.25 / 8), 0, -np.inf],
                [1.25, 1.25, 0, np.inf, np.inf],
            ),
        )
        left = ((model(None, *given) - maps[k].ravel()) ** 2).sum()
        r2 = 1 - left / ((maps[k] - maps[k].mean()) ** 2).sum()
        assert found.quality[k] > r2 - 1e-3
        if abs(found.quality[k] - r2) < 1e-6:  # else ours is a better minimum
            assert found.x[k] == pytest.approx(given[0], abs=2e-3)
            assert found.y[k] == pytest.approx(given[1], abs=2e-3)


def test_angle_and_eccentricity_are_those_of_the_visual_field():
    middle = np.array([[0.8, 0.5], [0.5, 0.2], [0.2, 0.5], [0.5, 0.9]])
    maps = fields.gaussians(np.c_[middle, np.full(4, 0.1)], (8, 8))
    found = fields.fit(maps, degrees=8.4)
    np.testing.assert_allclose(found.eccentricity, [0.3, 0.3, 0.3, 0.4], atol=1e-6)
    turned = np.exp(1j * found.angle)
    np.testing.assert_allclose(turned, [1, 1j, -1, -1j], atol=1e-5)
    assert found.degrees == 8.4


def test_quality_tells_noise_from_a_field():
    rng = np.random.default_rng(0)
    maps = fields.gaussians(planted(100), (8, 8))
    noise = rng.normal(size=maps.shape)
    good = fields.fit(maps + 0.1 * maps.std((1, 2), keepdims=True) * noise).quality
    bad = fields.fit(noise).quality
    assert good.min() > 0.9
    assert bad.max() < 0.6


def test_missing_patches_and_voxels_are_left_out():
    truth = planted(20)
    truth[:, :2] = 0.2 + 0.5 * truth[:, :2]
    truth[:, 2] = 0.12
    maps = fields.gaussians(truth, (8, 8))
    maps[:, 7, 4:] = np.nan
    maps[3], maps[4] = np.nan, np.where(np.isnan(maps[4]), np.nan, 5.0)
    found = fields.fit(maps)
    lost = np.isin(np.arange(20), (3, 4))
    np.testing.assert_allclose(found.x[~lost], truth[~lost, 0], atol=1e-3)
    for values in (found.x, found.size, found.angle, found.quality, found.height):
        assert np.isnan(values[lost]).all()
        assert np.isfinite(values[~lost]).all()
    assert np.isnan(fields.fit(np.full((2, 8, 8), np.nan)).x).all()


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (np.zeros((3, 64)), r"\(V, y, x\)"),
        (np.random.default_rng(0).random((3, 2, 2)), "6 or more"),
        (
            np.where(np.eye(8)[None] * [[[1]], [[0]]] > 0, np.nan, 1),
            "different patches",
        ),
    ],
)
def test_maps_that_cannot_be_fitted_are_refused(maps, message):
    with pytest.raises(errors.InputError, match=message):
        fields.fit(maps)


def test_weights_of_taps_are_their_covariance_with_the_prediction():
    rng = np.random.default_rng(0)
    added = rng.normal(size=(50, 4, 3)) * [0.1, 1, 2] + [5, 0, 0]  # (M, V, L)
    covariance = np.stack([np.cov(added[:, v].T, ddof=0) for v in range(4)])
    found = fields.tap_weights(covariance)
    for v in range(4):
        total = added[:, v].sum(1)
        slope = [np.cov(added[:, v, k], total, ddof=0)[0, 1] for k in range(3)]
        own = np.maximum(slope, 0)
        np.testing.assert_allclose(found[v], own / own.sum(), rtol=1e-9)
    assert np.isnan(fields.tap_weights(np.zeros((1, 3, 3)))).all()


def test_combined_maps_are_the_weighted_sum():
    rng = np.random.default_rng(0)
    spatial, weights = rng.random((3, 2, 4, 5)), rng.random((3, 2))
    expected = [sum(w * m for w, m in zip(*vs)) for vs in zip(weights, spatial)]  # noqa: B905
    np.testing.assert_allclose(fields.combine(spatial, weights), expected)


def test_attention_in_the_tap_that_drives_the_prediction_gives_the_field():
    truth = planted(6)
    shared = fields.gaussians(np.array([[0.5, 0.5, 0.3]] * 6), (8, 8))
    own = fields.gaussians(truth, (8, 8))
    covariance = np.zeros((6, 2, 2))
    covariance[:, 1, 1] = np.arange(6)  # the prediction of voxel 0 is constant
    seen = xarray.Dataset(
        {
            "spatial": (("voxel", "tap", "y", "x"), np.stack([shared, own], 1)),
            "covariance": (("voxel", "tap", "other_tap"), covariance),
        }
    )
    found, levels = fields.of_attention(seen, degrees=8.4)
    np.testing.assert_allclose(found.x[1:], truth[1:, 0], atol=1e-4)
    np.testing.assert_allclose(levels.level, [np.nan, 2, 2, 2, 2, 2])
    assert np.isnan(found.x[0])
    assert found.degrees == 8.4


def test_levels_of_one_tap_of_all_and_of_none():
    weights = np.array([[0, 0, 2.0], [1, 1, 1], [0, 0, 0], [np.nan, 0, 1]])
    found = fields.level(weights)
    np.testing.assert_allclose(found.level, [3, 2, np.nan, np.nan])
    np.testing.assert_array_equal(found.tap, [2, 0, -1, -1])
    np.testing.assert_allclose(found.entropy, [0, 1, np.nan, np.nan], atol=1e-12)
