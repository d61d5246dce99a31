"""Intervals over draws of pictures against loops that draw pictures."""

import numpy as np
import pytest
import scipy.stats

from ubrain_jax import bootstrap, errors, metrics


def arrays(seed=0, images=30, voxels=25):
    rng = np.random.default_rng(seed)
    measured = rng.normal(size=(images, voxels)) * rng.uniform(0.1, 9, voxels) + 3
    predicted = 0.4 * measured + rng.normal(size=(images, voxels)) * 2
    return measured, predicted


def everything(voxels):
    return np.ones((voxels, 1), bool)


def taken(counts):
    """Numbers of the pictures of one draw, each as often as drawn."""
    return np.repeat(np.arange(len(counts)), counts)


def test_draws_have_the_number_and_the_chances_of_pictures():
    counts = bootstrap.draws(50, 4000)
    assert (counts.sum(1) == 50).all()
    np.testing.assert_allclose(counts.mean(0), 1, atol=0.1)
    assert counts.var() == pytest.approx(1 - 1 / 50, abs=0.03)
    np.testing.assert_array_equal(counts, bootstrap.draws(50, 4000))
    assert (counts != bootstrap.draws(50, 4000, seed=1)).any()


def test_no_draw_has_fewer_than_three_pictures():
    assert (bootstrap.draws(3, 500) == 1).all()
    assert ((bootstrap.draws(4, 500) > 0).sum(1) >= 3).all()
    for images, count in ((2, 10), (10, 0)):
        with pytest.raises(errors.InputError, match=f"{count} draws of {images}"):
            bootstrap.draws(images, count)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_medians_are_those_of_pictures_drawn_one_by_one(dtype):
    measured, predicted = (a.astype(dtype) for a in arrays())
    ceiling = np.linspace(0, 0.9, 25)
    groups = np.stack([np.ones(25, bool), np.arange(25) < 8, np.zeros(25, bool)], 1)
    counts = bootstrap.draws(30, 12)
    found = bootstrap.medians(measured, predicted, counts, ceiling, groups)
    for b, count in enumerate(counts):
        x, y = (a[taken(count)] for a in (measured, predicted))
        r, r2 = metrics.pearson(x, y), metrics.r2(x, y)
        normalised = metrics.noise_normalised(r, ceiling)
        for g in (0, 1):
            own = groups[:, g]
            assert found.pearson[b, g] == pytest.approx(np.median(r[own]), abs=1e-5)
            assert found.r2[b, g] == pytest.approx(np.median(r2[own]), abs=1e-4)
            assert found.noise_normalised[b, g] == pytest.approx(
                np.nanmedian(normalised[own]), abs=1e-5
            )
    assert np.isnan(found.pearson[:, 2]).all()


def test_undefined_voxels_are_left_out_of_medians():
    measured, predicted = (a.astype(np.float32) for a in arrays(1))
    measured[:, 0] = 0.1
    measured[::2, 0] = np.nextafter(np.float32(0.1), np.float32(1))
    predicted[:, 1] = -2.0  # r undefined, R2 not
    measured[4, 2], predicted[9, 3] = np.nan, np.inf
    counts = bootstrap.draws(30, 9)
    none = np.full(25, np.nan)
    with np.errstate(all="raise"):
        found = bootstrap.medians(measured, predicted, counts, none, everything(25))
    assert np.isnan(found.noise_normalised).all()
    for b, count in enumerate(counts):
        x, y = (a[taken(count)] for a in (measured, predicted))
        want = np.median(metrics.pearson(x, y)[4:])
        assert found.pearson[b, 0] == pytest.approx(want, abs=1e-5)
        keep = [1, *range(4, 25)]
        want = np.median(metrics.r2(x, y)[keep])
        assert found.r2[b, 0] == pytest.approx(want, abs=1e-4)


def test_a_voxel_that_varies_in_one_picture_is_undefined_in_draws_without_it():
    measured, predicted = arrays(2, voxels=1)
    measured[:] = 7.0
    measured[3] = 9.0
    counts = bootstrap.draws(30, 40)
    found = bootstrap.medians(
        measured, predicted, counts, np.full(1, 0.5), everything(1)
    )
    without = counts[:, 3] == 0
    assert 0 < without.sum() < 40
    np.testing.assert_array_equal(np.isnan(found.pearson[:, 0]), without)
    np.testing.assert_array_equal(np.isnan(found.r2[:, 0]), without)


def test_parts_of_draws_and_blocks_of_voxels_change_nothing(monkeypatch):
    measured, predicted = arrays(3)
    args = bootstrap.draws(30, 20), np.full(25, 0.5), everything(25)
    whole = bootstrap.medians(measured, predicted, *args)
    monkeypatch.setattr(bootstrap, "_KEPT", 25 * 7)
    monkeypatch.setattr(metrics, "BLOCK_VOXELS", 6)
    parts = bootstrap.medians(measured, predicted, *args)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_medians_of_other_shapes_are_refused():
    measured, predicted = arrays(4)
    good = {
        "counts": bootstrap.draws(30, 5),
        "ceiling": np.full(25, 0.5),
        "groups": everything(25),
    }
    for name, bad in (
        ("counts", bootstrap.draws(29, 5)),
        ("ceiling", np.ones(24)),
        ("groups", everything(24)),
    ):
        with pytest.raises(errors.InputError, match=name):
            bootstrap.medians(measured, predicted, **{**good, name: bad})


def found_by_loop(correlation, count):
    """Top-1, top-5 and forced choice; the copies of a picture are no rivals of it."""
    rows = taken(count)
    ranks, wins, pairs = [], 0.0, 0
    for i in rows:
        rivals = [j for j in rows if j != i]
        other = correlation[i, rivals]
        ranks.append(1 + np.sum(other >= correlation[i, i]))
        wins += np.sum(other < correlation[i, i])
        wins += np.sum(other == correlation[i, i]) / 2
        pairs += len(rivals)
    ranks = np.array(ranks)
    return np.mean(ranks <= 1), np.mean(ranks <= 5), wins / pairs


@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_retrieval_of_draws_is_that_of_a_loop_over_pairs(noise):
    rng = np.random.default_rng(5)
    measured = rng.normal(size=(20, 60))
    predicted = measured + noise * rng.normal(size=(20, 60))
    similarity = metrics.similarity(measured, predicted)
    similarity.correlation[2, 7] = similarity.correlation[2, 2]  # a tie
    counts = bootstrap.draws(20, 30)
    found = bootstrap.found_in(similarity, counts)
    loops = [found_by_loop(similarity.correlation, count) for count in counts]
    np.testing.assert_allclose(
        np.stack([found.top1, found.top5, found.two_afc], 1), loops, atol=1e-12
    )
    assert found.all == {
        "top1": metrics.retrieval_in(similarity).top1,
        "top5": metrics.retrieval_in(similarity).top5,
        "two_afc": metrics.two_afc_in(similarity).mean,
    }


def test_a_picture_drawn_twice_does_not_find_itself_wrong():
    rng = np.random.default_rng(6)
    measured = rng.normal(size=(15, 200))
    similarity = metrics.similarity(measured, measured)
    counts = bootstrap.draws(15, 200)
    assert counts.max() >= 3
    found = bootstrap.found_in(similarity, counts)
    for values in (found.top1, found.top5, found.two_afc):
        np.testing.assert_array_equal(values, 1)


def test_a_constant_prediction_is_at_chance_in_every_draw():
    measured = np.random.default_rng(7).normal(size=(15, 60))
    same = np.tile(measured.mean(0), (15, 1))
    found = bootstrap.found_in(
        metrics.similarity(measured, same), bootstrap.draws(15, 50)
    )
    np.testing.assert_allclose(found.two_afc, 0.5, atol=1e-12)
    assert (found.top1 == 0).all()


def test_an_interval_is_centred_on_the_score_and_has_its_percentiles():
    values = np.random.default_rng(8).normal(3, 2, 100_000)
    low, high = bootstrap.interval(values, 10.0)
    half = scipy.stats.norm.ppf(0.975) * 2
    assert (low, high) == pytest.approx((10 - half, 10 + half), abs=0.05)
    cut = bootstrap.interval(values, 10.0, (7.0, 12.0))
    assert cut == [7.0, 12.0]
    some = np.where(np.arange(100_000) % 2, values, np.nan)
    assert np.isfinite(bootstrap.interval(some, 10.0)).all()
    assert np.isnan(bootstrap.interval(values, np.nan)).all()
    assert np.isnan(bootstrap.interval(np.full(5, np.nan), 1.0)).all()


def test_an_interval_of_a_share_stays_in_0_to_1_and_is_exact_at_the_ends():
    values = np.random.default_rng(9).normal(0.2, 0.1, 1000)
    low, high = bootstrap.share_interval(values, 0.05, 40)
    assert low == 0
    assert 0.05 < high < 0.3
    for share in (0, 1):
        exact = scipy.stats.binomtest(share * 40, 40).proportion_ci(0.95)
        found = bootstrap.share_interval(np.full(9, float(share)), share, 40)
        assert found == pytest.approx([exact.low, exact.high])


def test_intervals_hold_the_score_of_other_tests_as_often_as_they_say():
    """The true score is the mean over 200 tests of other pictures."""
    rng = np.random.default_rng(10)
    mix = rng.normal(size=(8, 60))

    def test():
        signal = rng.normal(size=(60, 8)) @ mix
        noise = rng.normal(size=(2, 60, 60)) * 2.5
        return signal + noise[0], signal + noise[1]

    counts, held, scores = bootstrap.draws(60, 300), [], []
    for _ in range(200):
        x, y = test()
        similarity = metrics.similarity(x, y)
        found = bootstrap.found_in(similarity, counts)
        of = bootstrap.medians(x, y, counts, np.full(60, 0.5), everything(60))
        score = found.all["top1"], float(np.median(metrics.pearson(x, y)))
        scores.append(score)
        held.append(
            [
                bootstrap.share_interval(found.top1, score[0], 60),
                bootstrap.interval(of.pearson[:, 0], score[1]),
            ]
        )
    mean = np.mean(scores, 0)
    ends = np.array(held)  # (tests, scores, 2)
    coverage = np.mean((ends[..., 0] <= mean) & (mean <= ends[..., 1]), 0)
    assert 0.3 < mean[0] < 0.9
    assert (coverage >= 0.90).all()
    assert (coverage <= 1.0).all()


def test_two_models_with_the_same_draws_differ_by_less_than_each_spreads():
    """What the pictures do to both cancels in the difference of medians."""
    ceiling, every = np.full(100, 0.5), everything(100)
    rng = np.random.default_rng(11)
    signal = rng.normal(size=(80, 6)) @ rng.normal(size=(6, 100))
    measured = signal + rng.normal(size=(80, 100)) * 4
    models = [signal + rng.normal(size=(80, 100)) * k for k in (1.0, 1.2)]
    a, b, other = (
        bootstrap.medians(
            measured, model, bootstrap.draws(80, 300, seed), ceiling, every
        ).pearson[:, 0]
        for model, seed in ((models[0], 0), (models[1], 0), (models[1], 1))
    )
    assert np.std(a - b) < 0.7 * np.std(a - other)
