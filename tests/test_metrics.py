"""Scores against scipy, scikit-learn, himalaya and plain loops."""

import json
import math

import himalaya.scoring
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from ubrain_jax import errors, metrics


def _scores(seed, images, voxels, noise=1.0):
    rng = np.random.default_rng(seed)
    measured = rng.normal(size=(images, voxels)) * rng.uniform(0.1, 9, voxels)
    measured += rng.normal(size=voxels) * 5
    predicted = measured + noise * rng.normal(size=(images, voxels))
    return measured, predicted


@pytest.mark.parametrize(("images", "voxels"), [(3, 1), (57, 33), (40, 5000)])
def test_pearson_equals_scipy_and_himalaya(images, voxels):
    measured, predicted = _scores(0, images, voxels, noise=3.0)
    ours = metrics.pearson(measured, predicted)
    scipys = scipy.stats.pearsonr(measured, predicted, axis=0).statistic
    himalayas = himalaya.scoring.correlation_score(measured, predicted)
    np.testing.assert_allclose(ours, scipys, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours, himalayas, rtol=0, atol=1e-10)
    assert ours.dtype == np.float64


def test_pearson_equals_a_loop_in_exact_sums():
    measured, predicted = _scores(1, 50, 7)
    for v in range(7):
        x, y = measured[:, v].tolist(), predicted[:, v].tolist()
        mx, my = math.fsum(x) / 50, math.fsum(y) / 50
        xy = math.fsum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
        xx = math.fsum((a - mx) ** 2 for a in x)
        yy = math.fsum((b - my) ** 2 for b in y)
        expected = xy / math.sqrt(xx * yy)
        assert metrics.pearson(measured, predicted)[v] == pytest.approx(
            expected, abs=1e-12
        )


def test_float32_voxels_far_from_zero_are_scored_in_float64():
    measured, predicted = (a.astype(np.float32) + 1000 for a in _scores(2, 200, 50))
    exact = scipy.stats.pearsonr(
        measured.astype(np.float64), predicted.astype(np.float64), axis=0
    ).statistic
    np.testing.assert_allclose(
        metrics.pearson(measured, predicted), exact, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("images", [3, 750, 10_000])
@pytest.mark.parametrize("value", [0.1, 0.0, -7e12, 1e-30])
def test_constant_voxel_is_undefined_on_either_side(value, images):
    varied = np.random.default_rng(3).normal(size=(images, 1)).astype(np.float32)
    constant = np.full((images, 1), value, np.float32)
    assert np.isnan(metrics.pearson(constant, varied)).all()
    assert np.isnan(metrics.pearson(varied, constant)).all()
    assert np.isnan(metrics.r2(constant, varied)).all()
    assert np.isfinite(metrics.r2(varied, constant)).all()


def test_constant_voxel_with_rounding_dust_is_undefined():
    """A float32 voxel of 0.1 has a spread of 7.5e-9 after some arithmetic."""
    dust = np.full((750, 1), 0.1, np.float32)
    dust[::2] = np.nextafter(np.float32(0.1), np.float32(1))
    assert dust.std(dtype=np.float64) > 0
    varied = np.random.default_rng(4).normal(size=(750, 1))
    assert np.isnan(metrics.pearson(dust, varied)).all()
    assert np.isnan(metrics.pearson(varied, dust)).all()
    assert np.isnan(metrics.r2(dust, varied)).all()
    # Small is not constant: the same spread around zero is a voxel like any other.
    small = varied.astype(np.float32) * np.float32(7e-9)
    assert metrics.pearson(small, varied)[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxel_with_a_value_that_is_not_finite_is_undefined_and_alone(bad):
    measured, predicted = _scores(5, 20, 4)
    clean = metrics.pearson(measured, predicted), metrics.r2(measured, predicted)
    measured[3, 1] = bad
    predicted[7, 2] = bad
    for score, before in zip(
        (metrics.pearson(measured, predicted), metrics.r2(measured, predicted)),
        clean,
        strict=True,
    ):
        assert np.isnan(score).tolist() == [False, True, True, False]
        np.testing.assert_array_equal(score[[0, 3]], before[[0, 3]])


@pytest.mark.parametrize("seed", range(5))
def test_pearson_keeps_under_scaling_shift_and_permutation(seed):
    rng = np.random.default_rng(seed)
    measured, predicted = _scores(seed, 30, 40, noise=4.0)
    r = metrics.pearson(measured, predicted)
    scaled = predicted * rng.uniform(1e-6, 1e6, 40) + rng.normal(size=40) * 10
    np.testing.assert_allclose(metrics.pearson(measured, scaled), r, atol=1e-8)
    np.testing.assert_allclose(metrics.pearson(measured, -predicted), -r, atol=1e-12)
    np.testing.assert_allclose(metrics.pearson(predicted, measured), r, atol=1e-12)
    voxel, image = rng.permutation(40), rng.permutation(30)
    np.testing.assert_allclose(
        metrics.pearson(measured[:, voxel], predicted[:, voxel]), r[voxel], atol=1e-12
    )
    np.testing.assert_allclose(
        metrics.pearson(measured[image], predicted[image]), r, atol=1e-12
    )
    assert np.abs(r).max() <= 1


def test_perfect_prediction_scores_exactly_one_at_most():
    measured, _ = _scores(6, 100, 300)
    r = metrics.pearson(measured, measured * 3)
    assert r.max() <= 1
    np.testing.assert_allclose(r, 1, atol=1e-12)


def test_block_size_does_not_change_a_score(monkeypatch):
    measured, predicted = _scores(7, 25, 100)
    predicted[4, 90] = np.nan
    whole = metrics.pearson(measured, predicted), metrics.r2(measured, predicted)
    found = metrics.retrieval(measured, predicted)
    monkeypatch.setattr(metrics, "BLOCK_VOXELS", 7)
    np.testing.assert_array_equal(metrics.pearson(measured, predicted), whole[0])
    np.testing.assert_array_equal(metrics.r2(measured, predicted), whole[1])
    np.testing.assert_array_equal(
        metrics.retrieval(measured, predicted).rank, found.rank
    )


def test_shuffled_images_score_zero():
    measured, predicted = _scores(8, 400, 500)
    r = metrics.pearson(measured[np.random.default_rng(8).permutation(400)], predicted)
    assert abs(r.mean()) < 3 / math.sqrt(400)
    assert r.std() == pytest.approx(1 / math.sqrt(399), rel=0.15)


@pytest.mark.parametrize(("images", "voxels"), [(3, 2), (57, 33), (40, 5000)])
def test_r2_equals_sklearn_and_himalaya(images, voxels):
    measured, predicted = _scores(9, images, voxels, noise=3.0)
    ours = metrics.r2(measured, predicted)
    sklearns = sklearn.metrics.r2_score(measured, predicted, multioutput="raw_values")
    np.testing.assert_allclose(ours, sklearns, rtol=1e-10, atol=1e-10)
    himalayas = himalaya.scoring.r2_score(measured, predicted)
    np.testing.assert_allclose(ours, himalayas, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("images", "voxels"), [(3, 2), (57, 33), (40, 5000)])
def test_explained_variance_equals_sklearn(images, voxels):
    measured, predicted = _scores(9, images, voxels, noise=3.0)
    predicted += np.random.default_rng(9).normal(size=voxels) * 40  # is forgiven
    ours = metrics.explained_variance(measured, predicted)
    sklearns = sklearn.metrics.explained_variance_score(
        measured, predicted, multioutput="raw_values"
    )
    np.testing.assert_allclose(ours, sklearns, rtol=1e-10, atol=1e-10)
    assert (ours >= metrics.r2(measured, predicted)).all()


def test_explained_variance_is_undefined_where_r2_is():
    measured, predicted = _scores(5, 20, 6)
    measured[:, 0] = 0.1
    measured[3, 1], predicted[7, 2] = np.nan, np.inf
    predicted[:, 3] = -7.0
    score = metrics.explained_variance(measured, predicted)
    np.testing.assert_array_equal(
        np.isnan(score), np.isnan(metrics.r2(measured, predicted))
    )
    assert np.isnan(score).tolist() == [True, True, True, False, False, False]
    assert score[3] == 0


@pytest.mark.parametrize(
    "score",
    [metrics.pearson, metrics.r2, metrics.explained_variance, metrics.retrieval],
)
def test_too_few_images_and_other_shapes_are_refused(score):
    with pytest.raises(errors.InputError, match=r"2 images; expected at least 3"):
        score(np.ones((2, 5)), np.ones((2, 5)))
    with pytest.raises(errors.InputError, match=r"shape \(4, 6\).*\(4, 5\)"):
        score(np.ones((4, 5)), np.ones((4, 6)))
    with pytest.raises(errors.InputError, match=r"shape \(4,\)"):
        score(np.ones(4), np.ones(4))


def test_noise_ceiling_of_equal_repeats_is_nsds_formula():
    ncsnr = np.array([0.0, 0.361, 0.49, 2.0, np.nan], np.float32)
    ceiling = metrics.noise_ceiling(ncsnr, np.full(10, 3, np.uint8))
    expected = ncsnr.astype(float) ** 2 / (ncsnr.astype(float) ** 2 + 1 / 3)
    np.testing.assert_allclose(ceiling, expected, rtol=1e-12)
    assert np.isnan(ceiling[4])
    # NSD, fsaverage, subjects 1 and 2: median ncsnr .490 and .510 go with ceilings
    # of 41.9 and 43.8 percent.
    percent = 100 * metrics.noise_ceiling(np.array([0.490, 0.510]), np.array([3]))
    np.testing.assert_allclose(percent, [41.9, 43.8], atol=0.1)


def test_noise_ceiling_of_mixed_repeats_averages_one_over_k():
    """A, B, C images with 1, 2, 3 trials: k = (A/1 + B/2 + C/3) / (A + B + C)."""
    repeats = np.repeat([1, 2, 3], [5, 7, 11])
    k = (5 / 1 + 7 / 2 + 11 / 3) / 23
    assert metrics.noise_ceiling(np.array([0.8]), repeats)[0] == pytest.approx(
        0.64 / (0.64 + k), rel=1e-12
    )


def test_noise_ceiling_is_reached_by_the_planted_signal():
    """Signal of variance ncsnr^2, noise of variance 1/k: r^2 of the truth is NC."""
    rng = np.random.default_rng(10)
    ncsnr = np.array([0.3, 0.8, 1.5])
    signal = rng.normal(size=(20_000, 3)) * ncsnr
    measured = signal + rng.normal(size=(20_000, 3, 3)).mean(axis=1)
    ceiling = metrics.noise_ceiling(ncsnr, np.full(20_000, 3))
    r = metrics.pearson(measured, signal)
    np.testing.assert_allclose(r**2, ceiling, atol=0.02)
    np.testing.assert_allclose(metrics.noise_normalised(r, ceiling), 1, atol=0.03)


@pytest.mark.parametrize(
    ("ncsnr", "repeats", "message"),
    [
        ([1.0, -0.1], [3], r"ncsnr:voxel 1: -0.1"),
        ([np.inf], [3], r"ncsnr:voxel 0: inf"),
        ([1.0], [], r"0 of 0 images"),
        ([1.0], [3, 0, 1], r"1 of 3 images without a presentation"),
        ([1.0], [3, np.nan], r"1 of 2 images"),
    ],
)
def test_impossible_noise_ceiling_is_refused(ncsnr, repeats, message):
    with pytest.raises(errors.InputError, match=message):
        metrics.noise_ceiling(np.array(ncsnr), np.array(repeats))


def test_noise_normalised_score_is_undefined_without_ceiling_and_not_clipped():
    r = np.array([0.5, -0.2, 0.5, 0.5, np.nan, 0.3])
    ceiling = np.array([0.25, 0.04, 0.0, np.nan, 0.5, 0.01])
    score = metrics.noise_normalised(r, ceiling)
    np.testing.assert_allclose(score, [1, -1, np.nan, np.nan, np.nan, 3])
    with pytest.raises(errors.InputError, match=r"shape \(2,\)"):
        metrics.noise_normalised(r, ceiling[:2])


def _rank_by_loop(measured, predicted):
    ranks = []
    for i, pattern in enumerate(measured):
        r = [scipy.stats.pearsonr(pattern, other).statistic for other in predicted]
        ranks.append(1 + sum(r[j] >= r[i] for j in range(len(r)) if j != i))
    return ranks


@pytest.mark.parametrize("noise", [0.5, 3.0, 30.0])
def test_retrieval_equals_a_loop_over_pairs(noise):
    rng = np.random.default_rng(11)
    measured = rng.normal(size=(24, 60)) + rng.normal(size=60) * 2
    predicted = measured + noise * rng.normal(size=(24, 60))
    found = metrics.retrieval(measured.astype(np.float32), predicted)
    ranks = np.array(_rank_by_loop(measured.astype(np.float32), predicted))
    np.testing.assert_array_equal(found.rank, ranks)
    assert found.pool == 24
    assert found.top1 == np.mean(ranks == 1)
    assert found.top5 == np.mean(ranks <= 5)
    assert found.mean_rank == np.mean(ranks)
    assert found.median_rank == np.median(ranks)
    assert (found.num_voxels, found.undefined) == (60, 0)


def test_pattern_correlation_equals_scipy():
    rng = np.random.default_rng(12)
    measured = rng.normal(size=(4, 5000)) + 50
    predicted = rng.normal(size=(9, 5000)) * 1e-3 - 7
    ours = metrics.pattern_correlation(measured, predicted)
    for q in range(4):
        for m in range(9):
            r = scipy.stats.pearsonr(measured[q], predicted[m]).statistic
            assert ours[q, m] == pytest.approx(r, abs=1e-10)


@pytest.mark.parametrize("constant", [0.0, 0.1])
def test_constant_prediction_is_ranked_last(constant):
    """The same for all images, or for all voxels too: it knows nothing."""
    rng = np.random.default_rng(13)
    measured = rng.normal(size=(37, 501))
    same_for_images = np.tile(rng.normal(size=501), (37, 1))
    assert (metrics.retrieval(measured, same_for_images).rank == 37).all()
    everywhere = np.full((37, 501), constant, np.float32)
    found = metrics.retrieval(measured, everywhere)
    assert (found.rank == 37).all()
    assert (found.top1, found.top5) == (0, 0)


def test_one_constant_prediction_loses_only_its_own_image():
    rng = np.random.default_rng(14)
    measured = rng.normal(size=(10, 300))
    predicted = measured.copy()
    predicted[4] = 0.1
    found = metrics.retrieval(measured, predicted)
    assert found.rank.tolist() == [1, 1, 1, 1, 10, 1, 1, 1, 1, 1]


def test_duplicate_predictions_tie_against_the_true_image():
    rng = np.random.default_rng(15)
    measured = rng.normal(size=(6, 200))
    predicted = measured.copy()
    predicted[1] = predicted[0]
    rank = metrics.retrieval(measured, predicted).rank
    assert rank[0] == 2
    assert rank[2:].tolist() == [1, 1, 1, 1]


def test_the_other_direction_is_retrieval_with_the_arrays_exchanged():
    rng = np.random.default_rng(19)
    measured = rng.normal(size=(24, 60))
    predicted = rng.uniform(0.2, 5, (24, 1)) * (measured + rng.normal(size=(24, 60)))
    predicted[3] = predicted[4]
    found = metrics.similarity(measured, predicted)
    ours = metrics.retrieval_in(metrics.reversed_in(found))
    ranks = np.array(_rank_by_loop(predicted, measured))
    np.testing.assert_array_equal(ours.rank, ranks)
    assert metrics.retrieval_in(found).rank.tolist() != ranks.tolist()
    assert ours.pool == 24


def test_within_a_pool_only_its_pictures_ask_and_are_ranked():
    rng = np.random.default_rng(20)
    measured = rng.normal(size=(30, 50))
    predicted = measured + 4 * rng.normal(size=(30, 50))
    kept = rng.random(30) < 0.5
    some = metrics.within(metrics.similarity(measured, predicted), kept)
    expected = metrics.retrieval(measured[kept], predicted[kept])
    np.testing.assert_array_equal(metrics.retrieval_in(some).rank, expected.rank)
    assert metrics.retrieval_in(some).pool == kept.sum() < 30


def test_retrieval_leaves_undefined_voxels_out_and_counts_them():
    rng = np.random.default_rng(16)
    measured = rng.normal(size=(15, 90))
    predicted = measured + 2 * rng.normal(size=(15, 90))
    keep = np.ones(90, bool)
    keep[[3, 40, 89]] = False
    expected = metrics.retrieval(measured[:, keep], predicted[:, keep])
    measured[2, 3] = np.nan
    predicted[0, 40] = np.inf
    predicted[14, 89] = np.nan
    found = metrics.retrieval(measured, predicted)
    np.testing.assert_array_equal(found.rank, expected.rank)
    assert (found.num_voxels, found.undefined) == (87, 3)
    predicted[0, 2:] = np.nan
    with pytest.raises(errors.InputError, match="2 of 90 voxels with finite"):
        metrics.retrieval(measured, predicted)


def test_retrieval_keeps_under_voxel_permutation_and_pattern_scaling():
    rng = np.random.default_rng(17)
    measured = rng.normal(size=(20, 70))
    predicted = measured + 4 * rng.normal(size=(20, 70))
    rank = metrics.retrieval(measured, predicted).rank
    voxel = rng.permutation(70)
    moved = predicted * rng.uniform(0.1, 9, (20, 1)) + rng.normal(size=(20, 1))
    np.testing.assert_array_equal(
        metrics.retrieval(measured[:, voxel], moved[:, voxel]).rank, rank
    )
    image = rng.permutation(20)
    np.testing.assert_array_equal(
        metrics.retrieval(measured[image], predicted[image]).rank, rank[image]
    )


def test_unrelated_prediction_retrieves_at_chance():
    rng = np.random.default_rng(18)
    found = metrics.retrieval(rng.normal(size=(500, 400)), rng.normal(size=(500, 400)))
    # Ranks are uniform on 1..500: mean 250.5, standard error 144.3 / sqrt(500).
    assert found.mean_rank == pytest.approx(250.5, abs=3 * 144.3 / math.sqrt(500))
    assert found.top5 < 0.03


def test_quartiles_count_what_is_undefined():
    values = np.array([0.3, np.nan, 0.1, 0.9, -0.2, np.inf])
    q = metrics.quartiles(values)
    defined = [-0.2, 0.1, 0.3, 0.9]
    assert q["median"] == np.median(defined)
    assert q["p25"] == np.quantile(defined, 0.25)
    assert q["p75"] == np.quantile(defined, 0.75)
    assert q["mean"] == pytest.approx(0.275)
    assert (q["num"], q["undefined"]) == (4, 2)
    empty = metrics.quartiles(np.full(3, np.nan))
    assert math.isnan(empty["median"])
    assert (empty["num"], empty["undefined"]) == (0, 3)


def test_scores_go_into_json_without_nan():
    scores = {"a": metrics.quartiles(np.full(3, np.nan)), "rank": np.arange(2)}
    text = json.dumps(metrics.null_for_nan(scores), allow_nan=False)
    assert json.loads(text)["a"]["median"] is None
    assert json.loads(text)["rank"] == [0, 1]
