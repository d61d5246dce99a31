"""Tests of voxels and models against scipy, all permutations, and known answers."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from ubrain_jax import errors, metrics, significance


def noise(images, voxels, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(images, voxels)), rng.normal(size=(images, voxels))


@pytest.mark.parametrize("images", [125, 300])
def test_voxels_of_noise_are_significant_as_often_as_they_may_be(images):
    """5 % +- 1.5 % uncorrected and below 1 % corrected, of 2,000."""
    measured, predicted = noise(images, 2000)
    for two_sided in (False, True):
        found = significance.permutation_test(
            measured, predicted, 1000, two_sided=two_sided
        )
        shares = significance.share_significant(found)
        assert shares["voxels"] == 2000
        assert shares["uncorrected"] == pytest.approx(0.05, abs=0.015)
        assert shares["share"] < 0.01
        assert found.permutations >= 1000


def test_p_is_uniform_over_many_experiments_with_few_pictures():
    """Exact at any size: P(p <= alpha) <= alpha, and near it."""
    measured, predicted = noise(8, 4000, seed=1)
    # Each voxel is an experiment; several rings, so that voxels share little.
    p = np.concatenate(
        [
            significance.permutation_test(
                measured[:, k::20], predicted[:, k::20], 500, seed=k
            ).p
            for k in range(20)
        ]
    )
    for alpha in (0.01, 0.05, 0.2, 0.5):
        share = np.mean(p <= alpha)
        spread = math.sqrt(alpha * (1 - alpha) / 4000)
        assert share == pytest.approx(alpha, abs=4 * spread)


def test_p_agrees_with_scipys_permutations_and_with_the_t_distribution():
    rng = np.random.default_rng(2)
    measured = rng.normal(size=(40, 6))
    predicted = 0.3 * measured + rng.normal(size=(40, 6))
    for two_sided, side in ((False, "greater"), (True, "two-sided")):
        found = significance.permutation_test(
            measured, predicted, 20_000, two_sided=two_sided
        )
        for v in range(6):
            x, y = measured[:, v], predicted[:, v]
            method = scipy.stats.PermutationMethod(20_000, rng=rng)
            scipys = scipy.stats.pearsonr(x, y, alternative=side, method=method)
            assert found.p[v] == pytest.approx(scipys.pvalue, abs=0.015)
            by_t = scipy.stats.pearsonr(x, y, alternative=side).pvalue
            assert found.p[v] == pytest.approx(by_t, abs=0.02)


def test_p_is_that_of_all_orders_where_images_are_few():
    """With 5 pictures all 120 orders can be made; 40,000 permutations come near."""
    measured, predicted = noise(5, 4, seed=3)
    found = significance.permutation_test(measured, predicted, 40_000)
    for v in range(4):
        x, y = measured[:, v], predicted[:, v]
        true = np.corrcoef(x, y)[0, 1]
        rs = [
            np.corrcoef(x, y[list(o)])[0, 1] for o in itertools.permutations(range(5))
        ]
        exact = np.mean(np.array(rs) >= true - 1e-12)
        assert found.p[v] == pytest.approx(exact, abs=0.01)


def test_every_turn_of_every_order_is_counted(monkeypatch):
    """Against a loop over the permutations that the docstring describes."""
    measured, predicted = noise(11, 7, seed=4)
    monkeypatch.setattr(significance, "_TRANSFORMED", 33)  # 3 voxels at a time
    found = significance.permutation_test(measured, predicted, 40, seed=9)
    assert found.permutations == 43
    rng = np.random.default_rng(9)
    ring = rng.permutation(11)
    orders = [ring, *(rng.permutation(11) for _ in range(3))]
    true = metrics.pearson(measured, predicted)
    reached = np.zeros(7)
    for order in orders:
        for turn in range(11):
            given = predicted[np.roll(order, -turn)]
            reached += metrics.pearson(measured[ring], given) >= true - 1e-12
    np.testing.assert_allclose(found.p, reached / 44)


def test_ties_reach_the_true_correlation():
    """A response in two values has few correlations: many permutations equal it."""
    rng = np.random.default_rng(5)
    measured = np.repeat([0.0, 1.0], 6)[:, None]
    predicted = rng.permutation(measured)
    predicted[:3] = 1 - predicted[:3]
    found = significance.permutation_test(measured, predicted, 30_000)
    together = int(np.sum(measured * predicted))
    ones = int(predicted.sum())
    exact = scipy.stats.hypergeom.sf(together - 1, 12, ones, 6)
    assert found.p[0] == pytest.approx(exact, abs=0.01)


def test_a_perfect_prediction_has_the_smallest_p_and_a_reversed_one_has_one():
    measured, _ = noise(50, 3, seed=6)
    found = significance.permutation_test(measured, measured * [1, -1, 1])
    n = found.permutations
    np.testing.assert_allclose(found.p, [1 / (n + 1), 1, 1 / (n + 1)])
    both = significance.permutation_test(
        measured, measured * [1, -1, 1], two_sided=True
    )
    np.testing.assert_allclose(both.p, 1 / (n + 1))


def test_undefined_voxels_are_not_tested_and_do_not_count():
    measured, predicted = (a.astype(np.float32) for a in noise(40, 8, seed=7))
    predicted[:, 4:] = measured[:, 4:]
    clean = significance.permutation_test(measured[:, 4:], predicted[:, 4:])
    measured[:, 0] = 0.1
    measured[::2, 1] = np.nextafter(np.float32(0.1), np.float32(1))
    measured[1::2, 1] = 0.1
    measured[3, 2], predicted[3, 3] = np.nan, np.inf
    found = significance.permutation_test(measured, predicted)
    assert np.isnan(found.p).tolist() == [True] * 4 + [False] * 4
    np.testing.assert_array_equal(found.p[4:], clean.p)
    np.testing.assert_array_equal(found.q[4:], clean.q)
    shares = significance.share_significant(found)
    assert shares == {"share": 1.0, "uncorrected": 1.0, "voxels": 4}
    none = significance.share_significant(found, np.arange(8) < 4)
    assert none["voxels"] == 0
    assert math.isnan(none["share"])


def test_all_voxels_have_the_same_permutations():
    measured, predicted = noise(30, 5, seed=8)
    twice = np.tile(measured, 2), np.tile(predicted, 2)
    found = significance.permutation_test(*twice)
    np.testing.assert_array_equal(found.p[:5], found.p[5:])
    other = significance.permutation_test(*twice, seed=1)
    assert (found.p != other.p).any()


def test_no_permutation_is_refused():
    with pytest.raises(errors.InputError, match="permutations: 0"):
        significance.permutation_test(*noise(10, 3), 0)


def test_q_is_benjamini_and_hochbergs():
    p = np.random.default_rng(9).random(200) ** 3
    q = significance.false_discovery(p)
    order = np.argsort(p)
    by_hand = np.minimum.accumulate((p[order] * 200 / np.arange(1, 201))[::-1])[::-1]
    np.testing.assert_allclose(q[order], by_hand)
    holes = np.insert(p, [0, 100], np.nan)
    found = significance.false_discovery(holes)
    np.testing.assert_array_equal(found[np.isfinite(found)], q)
    assert np.isnan(significance.false_discovery(np.full(3, np.nan))).all()


def test_planted_voxels_are_found_and_false_ones_stay_few():
    measured, predicted = noise(200, 1000, seed=10)
    predicted[:, :300] += 0.6 * measured[:, :300]
    q = significance.permutation_test(measured, predicted, 4000).q
    called = q < 0.05
    assert called[:300].mean() > 0.95
    assert called[300:].sum() / called.sum() < 0.1


def test_paired_test_over_voxels_is_scipys_and_says_what_it_left_out():
    rng = np.random.default_rng(11)
    a, b = rng.normal(0.1, 1, 500), rng.normal(0, 1, 500)
    a[:4], b[4] = np.nan, np.inf
    b[5:9] = a[5:9]
    found = significance.compare(a, b, "voxels")
    difference = (a - b)[5:]
    assert (found.num, found.left_out, found.equal) == (495, 5, 4)
    assert found.p == scipy.stats.wilcoxon(difference, zero_method="wilcox").pvalue
    assert found.median_difference == np.median(difference)
    assert found.low < found.median_difference < found.high
    assert found.better == np.sum(difference > 0)
    assert found.test.startswith("Wilcoxon signed-rank over 495 voxels")


def test_paired_test_over_subjects_is_exact_and_has_no_interval_below_six():
    found = significance.compare([0.5] * 8, np.linspace(0.1, 0.4, 8), "subjects")
    assert found.p == 2 / 2**8
    assert found.better == 8
    assert (found.low, found.high) == pytest.approx((0.1, 0.4))
    few = significance.compare([0.5] * 5, np.linspace(0.1, 0.4, 5), "subjects")
    assert few.p == 2 / 2**5
    assert math.isnan(few.low)
    assert math.isnan(few.high)
    same = significance.compare([0.5], [0.5], "subjects")
    assert (same.num, same.equal) == (1, 1)
    assert math.isnan(same.p)


def test_interval_of_a_median_is_scipys():
    rng = np.random.default_rng(12)
    for num in (6, 7, 20, 51, 1000):
        values = rng.normal(size=num)
        scipys = scipy.stats.quantile_test(values, p=0.5).confidence_interval(0.95)
        assert significance.median_interval(values) == pytest.approx(
            (scipys.low, scipys.high)
        )


def test_models_of_other_voxels_are_refused():
    with pytest.raises(errors.InputError, match=r"shapes \(3,\) and \(4,\)"):
        significance.compare(np.ones(3), np.ones(4), "voxels")
    with pytest.raises(ValueError, match="over 'seeds'"):
        significance.compare([1.0], [1.0], "seeds")
