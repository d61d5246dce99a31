"""Noise ceilings from repeats against planted ones and other people's formulas."""

import himalaya.scoring
import numpy as np
import pytest
import scipy.stats

from ubrain_jax import ceilings, errors, metrics
from ubrain_jax.datasets import trials


def presentations(ncsnr, images=500, repeats=3, seed=0):
    """Signal (M, V) of SD ncsnr, and presentations (M, R, V) with noise of SD 1."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(images, len(ncsnr))) * ncsnr
    noise = rng.normal(size=(images, repeats, len(ncsnr)))
    return signal, signal[:, None] + noise


def unequal(responses, seed=1):
    """The presentations with 1, 2, ... of each image there, at any places."""
    rng = np.random.default_rng(seed)
    images, most, _ = responses.shape
    count = rng.integers(1, most + 1, images)
    place = np.argsort(rng.random((images, most)), axis=1)
    gone = place >= count[:, None]
    return np.where(gone[:, :, None], np.nan, responses), count


@pytest.mark.parametrize("repeats", [2, 3, 4, 7])
def test_ceiling_is_the_planted_one_whatever_the_repeats(repeats):
    """The mean of 200 voxels has a standard error below .005 at each level."""
    levels = np.array([0.2, 0.5, 1.0, 2.0])
    ncsnr = np.repeat(levels, 200)
    _, responses = presentations(ncsnr, 500, repeats)
    found = ceilings.split_half(responses, 10).reshape(4, 200)
    planted = levels**2 / (levels**2 + 1 / repeats)
    assert np.abs(found.mean(1) - planted).max() < 0.02
    assert np.abs(np.median(found, 1) - planted).max() < 0.02


def test_each_voxel_is_within_two_hundredths_where_images_are_many():
    ncsnr = np.linspace(0.3, 2, 12)
    _, responses = presentations(ncsnr, 20_000, 3)
    planted = ncsnr**2 / (ncsnr**2 + 1 / 3)
    assert np.abs(ceilings.split_half(responses, 10) - planted).max() < 0.02


def test_unequal_repeats_have_the_ceiling_of_what_was_averaged():
    ncsnr = np.repeat([0.3, 1.0], 200)
    signal, responses = presentations(ncsnr, 600, 4)
    some, count = unequal(responses)
    found = ceilings.split_half(some, 10)
    planted = metrics.noise_ceiling(ncsnr, count)
    for level in (0.3, 1.0):
        own = ncsnr == level
        assert found[own].mean() == pytest.approx(planted[own][0], abs=0.02)
    measured = np.nanmean(some, axis=1)
    truth = metrics.pearson(measured, signal)
    normalised = metrics.noise_normalised(truth, found)
    assert np.median(normalised[ncsnr == 1.0]) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("repeats", [2, 3, 6])
def test_the_true_response_reaches_the_ceiling(repeats):
    """Noise-normalised r and r2 are 1.00 +- 0.03 for what made the responses."""
    ncsnr = np.random.default_rng(2).uniform(0.4, 2, 400)
    signal, responses = presentations(ncsnr, 1000, repeats)
    r = metrics.pearson(responses.mean(1), signal)
    known = metrics.noise_ceiling(ncsnr, np.full(1000, repeats))
    flat = np.repeat(np.arange(1000), repeats)
    estimated = trials.signal_to_noise(responses.reshape(-1, 400), flat)
    for ceiling in (
        known,
        ceilings.split_half(responses, 10),
        metrics.noise_ceiling(estimated, np.full(1000, repeats)),
    ):
        assert np.median(metrics.noise_normalised(r, ceiling)) == pytest.approx(
            1, abs=0.03
        )
        explained = ceilings.noise_normalised_r2(r, ceiling)
        assert np.median(explained) == pytest.approx(1, abs=0.03)
        assert np.abs(ceiling - known).mean() < 0.02


def test_two_repeats_are_spearman_brown_of_scipys_correlation():
    """With two there are 2^M halvings that differ by which half is A: here all."""
    _, responses = presentations(np.linspace(0.5, 2, 3), 4, 2, seed=3)
    rs = []
    for code in range(16):
        swap = np.array([code >> k & 1 for k in range(4)], bool)
        a = np.where(swap[:, None], responses[:, 1], responses[:, 0])
        b = np.where(swap[:, None], responses[:, 0], responses[:, 1])
        rs.append([scipy.stats.pearsonr(a[:, v], b[:, v])[0] for v in range(3)])
    r = np.mean(rs, 0)
    found = ceilings.split_half(responses, 4000)
    np.testing.assert_allclose(found, np.maximum(2 * r / (1 + r), 0), atol=0.02)


def test_even_halves_agree_with_himalayas_split_scores():
    """Correlation of one half with the other, as himalaya computes it."""
    _, responses = presentations(np.full(30, 1.0), 300, 2, seed=4)
    r = himalaya.scoring.correlation_score(responses[:, 0], responses[:, 1])
    expected = 2 * r / (1 + r)
    found = ceilings.split_half(responses, 50)
    assert np.abs(found - expected).max() < 0.02


def test_a_voxel_of_noise_has_a_ceiling_near_zero_and_no_share_of_it():
    _, responses = presentations(np.zeros(300), 400, 3)
    found = ceilings.split_half(responses, 20)
    assert found.min() == 0
    assert np.median(found) < 0.02
    normalised = metrics.noise_normalised(np.full(300, 0.1), found)
    assert np.isnan(normalised[found == 0]).all()


def test_undefined_voxels_are_alone():
    _, responses = presentations(np.ones(6), 50, 3)
    clean = ceilings.split_half(responses, 5)
    responses[:, :, 1] = np.float32(0.1)
    responses[4, 1, 2] = np.nan
    responses[4, 0, 3] = np.inf
    responses[9, 2] = np.nan  # a presentation that is not there
    found = ceilings.split_half(responses, 5)
    assert np.isnan(found).tolist() == [False, True, True, True, False, False]
    np.testing.assert_allclose(found[[0, 4, 5]], clean[[0, 4, 5]], atol=0.05)


def test_a_voxel_scores_alone_as_among_others_and_the_seed_counts():
    _, responses = presentations(np.linspace(0.3, 2, 9), 40, 3)
    whole = ceilings.split_half(responses, 5)
    one = [ceilings.split_half(responses[:, :, [v]], 5)[0] for v in range(9)]
    np.testing.assert_allclose(whole, one, rtol=1e-12)
    assert (whole != ceilings.split_half(responses, 5, seed=1)).all()


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        (np.zeros((5, 3)), r"shape \(5, 3\)"),
        (np.zeros((5, 1, 2)), "0 of 5 images with 2 presentations"),
        (np.full((5, 2, 2), np.nan), "5 with none"),
    ],
)
def test_responses_without_repeats_are_refused(responses, message):
    with pytest.raises(errors.InputError, match=message):
        ceilings.split_half(responses)


def test_squared_share_has_the_sign_of_the_correlation():
    r, ceiling = np.array([0.5, -0.5, 0.2, np.nan]), np.array([0.5, 0.5, 0, 0.5])
    found = ceilings.noise_normalised_r2(r, ceiling)
    np.testing.assert_allclose(found, [0.5, -0.5, np.nan, np.nan])
