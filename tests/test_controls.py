"""Forced choice against loops, and controls that must know nothing."""

import itertools

import numpy as np
import pytest
from scipy import stats

from ubrain_jax import controls, errors, metrics


def planted(seed, images=20, voxels=60, noise=1.5):
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(images, voxels)) + rng.normal(size=voxels)
    measured = signal + noise * rng.normal(size=signal.shape)
    return measured.astype(np.float32), (signal * 0.1 + 3).astype(np.float32)


def few_dimensions(seed, images=300, voxels=1500):
    """Patterns along three axes, the first one strong: as global signals are."""
    rng = np.random.default_rng(seed)
    axes = rng.normal(size=(3, voxels)) * [[5], [1], [1]]
    signal = rng.normal(size=(images, 3)) @ axes
    return signal + rng.normal(size=signal.shape), signal


def by_loops(measured, predicted):
    """Share of each image, both ways, one pair of images at a time."""
    images = len(measured)
    r = np.empty((images, images))
    for i, j in itertools.product(range(images), repeat=2):
        r[i, j] = stats.pearsonr(measured[i].astype(float), predicted[j].astype(float))[
            0
        ]
    shares = np.zeros((2, images))
    for i, j in itertools.product(range(images), repeat=2):
        if i != j:
            for way, rival in enumerate((r[i, j], r[j, i])):
                tie = abs(rival - r[i, i]) < 1e-10
                shares[way, i] += 0.5 if tie else float(rival < r[i, i])
    return shares / (images - 1)


@pytest.mark.parametrize("images", [3, 20])
def test_forced_choice_equals_a_slow_loop_with_scipy(images):
    measured, predicted = planted(0, images)
    predicted[1] = predicted[0]  # a tie
    found = metrics.two_afc(measured, predicted)
    want = by_loops(measured, predicted)
    np.testing.assert_allclose(found.share, want[0], atol=1e-12)
    np.testing.assert_allclose(found.reverse_share, want[1], atol=1e-12)
    assert (found.mean, found.reverse_mean) == pytest.approx(want.mean(1))
    assert found.pool == images
    swapped = metrics.two_afc(predicted, measured)
    np.testing.assert_allclose(swapped.share, found.reverse_share)


def test_forced_choice_is_1_where_right_0_where_wrong_and_half_where_alike():
    measured, _ = planted(1)
    assert metrics.two_afc(measured, 5 * measured + 2).mean == 1
    assert metrics.two_afc(measured, -measured).mean == 0
    alike = metrics.two_afc(measured, np.tile(measured[:1], (20, 1)))
    assert (alike.share == 0.5).all()


def test_an_undefined_pattern_loses_and_ties_with_its_like():
    measured, _ = planted(2)
    predicted = measured.copy()
    predicted[3:5] = 0.1
    found = metrics.two_afc(measured, predicted)
    assert found.share[[3, 4]].tolist() == [0.5 / 19] * 2
    assert (np.delete(found.share, [3, 4]) == 1).all()
    flat = metrics.two_afc(np.full((20, 60), 0.1), predicted)
    assert (flat.share == 0.5).all()


def test_voxels_that_are_not_finite_are_left_out():
    measured, predicted = planted(3)
    want = metrics.two_afc(measured[:, 2:], predicted[:, 2:])
    measured[4, 0], predicted[2, 1] = np.nan, np.inf
    found = metrics.two_afc(measured, predicted)
    np.testing.assert_array_equal(found.share, want.share)
    table = controls.scores(measured, predicted)
    assert all(np.isfinite(list(row.values())).all() for row in table.values())


def test_what_does_not_belong_together_is_refused():
    measured, predicted = planted(4)
    for a, b in ((measured, predicted[:, 1:]), (measured[:2], predicted[:2])):
        for score in (metrics.two_afc, controls.scores):
            with pytest.raises(errors.InputError):
                score(a, b)


def test_blocks_of_voxels_change_no_score(monkeypatch):
    measured, predicted = planted(5)
    whole = controls.scores(measured, predicted)
    monkeypatch.setattr(metrics, "BLOCK_VOXELS", 7)
    assert controls.scores(measured, predicted) == whole


def test_controls_are_these_exchanges():
    """Written out: which prediction stands for which image."""
    measured, predicted = planted(6, noise=0.3)
    table = controls.scores(measured, predicted, seed=5)
    rng = np.random.default_rng(5)
    ring = rng.permutation(20).tolist()
    other = {image: ring[k - 1] for k, image in enumerate(ring)}
    assert all(image != stands for image, stands in other.items())
    moved = predicted[[other[i] for i in range(20)]]
    order, start = rng.permutation(60), rng.integers(60, size=20)
    turned = np.stack(
        [
            p[order[(np.arange(60) + s) % 60]]
            for p, s in zip(predicted, start, strict=True)
        ]
    )
    assert (np.sort(turned, 1) == np.sort(predicted, 1)).all()
    mean = np.tile(predicted.mean(0, dtype=float), (20, 1))
    changed = {"shuffled_voxels": turned, "mean_pattern": mean, "wrong_image": moved}
    assert list(table) == list(changed)
    for name, instead in changed.items():
        shares = by_loops(measured, instead)
        assert table[name]["two_afc"] == pytest.approx(shares[0].mean())
        assert table[name]["top1"] == metrics.retrieval(measured, instead).top1
        assert table[name]["pool"] == 20
        if name != "mean_pattern":
            assert table[name]["reverse_two_afc"] == pytest.approx(shares[1].mean())
    assert table["mean_pattern"]["two_afc"] == 0.5
    assert table["mean_pattern"]["top1"] == 0


@pytest.mark.parametrize("make", [planted, few_dimensions])
def test_controls_of_a_good_encoder_are_at_chance(make):
    """Over seeds: their mean is chance, their spread no more than the bound assumes."""
    measured, predicted = make(7, images=300, voxels=1500)
    assert metrics.two_afc(measured, predicted).mean > 0.85
    found = [controls.scores(measured, predicted, seed) for seed in range(12)]
    assert not any(controls.above_chance(table) for table in found)
    for name in ("shuffled_voxels", "wrong_image"):
        choice = np.array([t[name]["two_afc"] for t in found])
        assert abs(choice.mean() - 0.5) < 4 * 0.5 / np.sqrt(300 * 12)
        assert choice.std() < 0.5 / np.sqrt(300) * 1.3
        assert len(set(choice)) > 8
        top1 = np.mean([t[name]["top1"] for t in found])
        assert top1 < 3 / 300
    assert all(t["mean_pattern"]["two_afc"] == 0.5 for t in found)


def test_one_order_of_voxels_for_all_images_would_stray():
    """Why every image has an order of its own."""
    measured, predicted = few_dimensions(8)
    rng = np.random.default_rng(0)
    means = [
        metrics.two_afc(measured, predicted[:, rng.permutation(1500)]).mean
        for _ in range(12)
    ]
    assert np.std(means) > 3 / np.sqrt(12 * 300)


@pytest.mark.parametrize(
    ("score", "low", "high"),
    [("two_afc", 0.6, 0.7), ("reverse_two_afc", 0.6, 0.7), ("top1", 0.04, 0.08)],
)
def test_a_control_above_chance_is_named_with_its_pool(score, low, high):
    row = {"two_afc": 0.5, "reverse_two_afc": 0.5, "top1": 0.01, "pool": 100}
    assert controls.above_chance({"shuffled_voxels": {**row, score: low}}) == []
    [line] = controls.above_chance({"shuffled_voxels": {**row, score: high}})
    assert f"shuffled_voxels has {score} {high:.3f}" in line
    assert "pool 100" in line
