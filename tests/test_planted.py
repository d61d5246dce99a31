"""Planted voxels: what they see, what they answer, how noisy they are."""

import numpy as np
import pytest

from ubrain_jax.datasets import drawing, planted


def test_ncsnr_counts_images_with_exactly_three_trials():
    rng = np.random.default_rng(0)
    image = np.r_[np.repeat(np.arange(50), 3), [50, 50], [51]]
    image = np.r_[image, np.full(60 - len(image) % 60, 52)]
    betas = rng.normal(size=(len(image), 2))
    base = planted.ncsnr(betas, image, 60)
    betas_b = betas.copy()
    # Exchanging trials of pictures with another number of trials changes nothing.
    betas_b[[150, 151]] = betas_b[[151, 150]]
    np.testing.assert_allclose(planted.ncsnr(betas_b, image, 60), base)
    betas[:, 1] = 7
    assert np.isnan(planted.ncsnr(betas, image, 60)[1])


def test_measured_ncsnr_recovers_the_planted_one():
    rng = np.random.default_rng(1)
    level = np.linspace(0.2, 1.2, 40)
    image = np.concatenate([rng.permutation(500) for _ in range(3)])
    signal = rng.normal(size=(500, 40)) * level
    betas = signal[image] + rng.normal(size=(1500, 40))
    betas *= np.repeat([1, 5, 0.1], 500)[:, None]  # a gain for each session
    measured = planted.ncsnr(betas, image, 500)
    np.testing.assert_allclose(measured, level, atol=0.12)


def test_an_orientation_channel_answers_its_own_grating():
    y, x = (np.mgrid[:112, :112] + 0.5) / 112
    for f, cycles in enumerate(planted.FREQUENCIES):
        for o in range(planted.NUM_ORIENTATIONS):
            angle = np.pi * o / planted.NUM_ORIENTATIONS
            wave = np.cos(angle) * x - np.sin(angle) * y
            grey = 128 + 80 * np.sin(2 * np.pi * cycles * wave)
            picture = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
            none = np.full((1, 112, 112), -1, np.int8)
            maps = planted.feature_maps(picture[None], none, np.zeros(1))
            middle = maps[0, :18, 8:20, 8:20].mean(axis=(1, 2))
            assert middle.argmax() == f * planted.NUM_ORIENTATIONS + o


def test_colour_object_and_scene_maps_against_a_loop():
    picture, scene = drawing.draw(np.random.default_rng(5), 56)
    maps = planted.feature_maps(
        picture[None], scene.category[None], np.array([scene.scene])
    )[0]
    named = dict(zip(planted.FEATURES, maps, strict=True))
    for cy, cx in ((0, 0), (13, 20), (27, 4)):
        cell = np.s_[2 * cy : 2 * cy + 2, 2 * cx : 2 * cx + 2]
        rgb = picture[cell].reshape(-1, 3).mean(axis=0) / 255
        at = (cy, cx)
        assert named["red-green"][at] == pytest.approx(rgb[0] - rgb[1], abs=1e-5)
        yellow = (rgb[0] + rgb[1]) / 2 - rgb[2]
        assert named["yellow-blue"][at] == pytest.approx(yellow, abs=1e-5)
        for c, category in enumerate(drawing.CATEGORIES):
            covered = (scene.category[cell] == c).mean()
            assert named[f"object-{category}"][at] == pytest.approx(covered)
        free = (scene.category[cell] < 0).mean()
        for s, name in enumerate(drawing.SCENES):
            want = free if s == scene.scene else 0
            assert named[f"scene-{name}"][at] == pytest.approx(want)


def test_fields_are_normalised_gaussians():
    field = planted.receptive_fields(np.array([[0.25, 0.75]]), np.array([0.1]))
    field = field.reshape(planted.GRID, planted.GRID)
    assert field.sum() == pytest.approx(1, abs=1e-5)
    at = (np.arange(planted.GRID) + 0.5) / planted.GRID
    assert field.sum(axis=0) @ at == pytest.approx(0.25, abs=0.01)  # x: columns
    assert field.sum(axis=1) @ at == pytest.approx(0.75, abs=0.01)


def test_planted_noise_covers_the_range_of_nsd():
    brain = planted.ellipsoid((13, 15, 12))
    values = [
        planted.plant(np.random.default_rng(s), brain, 600).ncsnr for s in range(4)
    ]
    values = np.concatenate(values)
    assert 0.4 < np.median(values) < 0.52
    assert 0.15 <= values.min() < 0.2
    assert 0.9 < values.max() <= 1.2
