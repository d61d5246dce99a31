"""Planted voxels: what they see, what they answer, how noisy they are."""

import numpy as np
import pytest

from tests import planted_loop
from ubrain_jax import errors
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


@pytest.mark.parametrize("px", [112, 128])
def test_an_orientation_channel_answers_its_own_grating(px):
    y, x = (np.mgrid[:px, :px] + 0.5) / px
    for f, cycles in enumerate(planted.FREQUENCIES):
        for o in range(planted.NUM_ORIENTATIONS):
            angle = np.pi * o / planted.NUM_ORIENTATIONS
            wave = np.cos(angle) * x - np.sin(angle) * y
            grey = 128 + 80 * np.sin(2 * np.pi * cycles * wave)
            picture = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
            none = np.full((1, px, px), -1, np.int8)
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


def test_covered_parts_show_neither_object_nor_scene():
    picture, scene = drawing.draw(np.random.default_rng(5), 56)
    category = scene.category.copy()
    category[:28] = drawing.HIDDEN
    maps = planted.feature_maps(picture[None], category[None], np.array([scene.scene]))
    shown = dict(zip(planted.FEATURES, maps[0], strict=True))
    named = [shown[n] for n in planted.FEATURES if n[:6] in ("object", "scene-")]
    total = np.sum(named, axis=0)
    np.testing.assert_allclose(total[:14], 0, atol=1e-6)
    np.testing.assert_allclose(total[14:], 1, atol=1e-6)
    # Without a scene, only what the objects cover is left.
    maps = planted.feature_maps(picture[None], scene.category[None], np.array([-1]))
    shown = dict(zip(planted.FEATURES, maps[0], strict=True))
    assert not any(shown[f"scene-{s}"].any() for s in drawing.SCENES)


@pytest.mark.parametrize("n", [16, 19, 32])
def test_pooling_is_the_mean_over_areas(n):
    maps = np.random.default_rng(n).random((2, n, n))
    fine = np.repeat(np.repeat(maps, 16, axis=1), 16, axis=2)  # 16 n is whole in 16
    want = fine.reshape(2, 16, n, 16, n).mean(axis=(2, 4))
    np.testing.assert_allclose(planted.pool(maps, 16), want, rtol=1e-5)


@pytest.mark.parametrize(
    ("px", "fits"), [(28, 0), (56, 1), (100, 0), (112, 1), (128, 1)]
)
def test_sides_of_pictures(px, fits):
    if fits:
        planted.check_px(px)
    else:
        with pytest.raises(errors.ConfigError, match=f"{px} pixels"):
            planted.check_px(px)


def _drawn(count: int) -> np.ndarray:
    """Feature maps of some pictures."""
    drawn = [drawing.draw(np.random.default_rng([9, i]), 56) for i in range(count)]
    return planted.feature_maps(
        np.stack([p for p, _ in drawn]),
        np.stack([s.category for _, s in drawn]),
        np.array([s.scene for _, s in drawn]),
    )


def test_responses_by_a_slow_loop():
    brain = planted.ellipsoid((9, 10, 8))
    voxels = planted.plant(np.random.default_rng(2), brain, 60)
    maps = _drawn(30)
    clean = planted.responses(planted.drives(maps, voxels), voxels)
    for v in range(0, 60, 4):
        of = {k: getattr(voxels, k)[v] for k in ("kind", "centre", "size", "tuning")}
        want = planted_loop.response(maps, **of, contrast=voxels.contrast[v])
        np.testing.assert_allclose(clean[:, v], want, atol=1e-3)


def test_a_recipe_spreads_kinds_fields_and_noise():
    brain = planted.ellipsoid((13, 15, 12))
    base = planted.plant(np.random.default_rng(1), brain, 500)
    recipe = planted.Recipe(field=1.5, ncsnr=0.2, spread=0.2, least=0.1, most=0.25)
    other = planted.plant(np.random.default_rng(1), brain, 500, recipe)
    np.testing.assert_allclose(other.size, 1.5 * base.size)
    np.testing.assert_array_equal(other.tuning, base.tuning)
    assert 0.1 <= other.ncsnr.min() < np.median(other.ncsnr) < 0.25
    assert other.ncsnr.max() == 0.25
    recipe = planted.Recipe(floor=0.02, mixture=(100, 1, 1, 1))
    early = planted.plant(np.random.default_rng(1), brain, 500, recipe)
    counts = planted.count_kinds(early)
    assert counts["orientation"] > 400
    assert min(counts.values()) >= 9
    assert sum(counts.values()) == 500


def test_large_voxels_hold_their_own_population_and_those_of_neighbours():
    brain = planted.ellipsoid((8, 9, 7))
    voxels = planted.plant(np.random.default_rng(4), brain, 70)
    units = planted.mix(voxels, 3)
    kind = units.kind.reshape(70, 3)
    assert (kind[:, 0] == voxels.kind).all()
    assert (units.centre.reshape(70, 3, 2)[:, 0] == voxels.centre).all()
    assert (units.tuning.reshape(70, 3, -1)[:, 0] == voxels.tuning).all()
    assert (units.position.reshape(70, 3, 3) == voxels.position[:, None]).all()
    for v in range(70):
        far = np.linalg.norm(voxels.position - voxels.position[v], axis=1)
        for k in (1, 2):
            tuning = units.tuning.reshape(70, 3, -1)[v, k]
            same = np.flatnonzero((voxels.tuning == tuning).all(axis=1))
            centre = (voxels.centre[same] + voxels.centre[v]) / 2
            at = units.centre.reshape(70, 3, 2)[v, k]
            neighbour = same[(abs(centre - at) < 1e-9).all(axis=1)]
            assert len(neighbour)
            assert far[neighbour[0]] == np.sort(far)[k]
            size = (voxels.size[neighbour[0]] + voxels.size[v]) / 2
            assert units.size.reshape(70, 3)[v, k] == pytest.approx(size)


def test_mixed_responses_are_the_weighted_sum_of_the_populations():
    brain = planted.ellipsoid((8, 9, 7))
    voxels = planted.plant(np.random.default_rng(4), brain, 40)
    units = planted.mix(voxels, 3)
    share = np.array([0.5, 0.3, 0.2])
    drive = planted.drives(_drawn(20), units)
    single = planted.responses(drive, units).astype(np.float64)
    mixed = planted.mixed_responses(drive, units, share)
    assert mixed.shape == (20, 40)
    for v in range(40):
        total = sum(share[k] * single[:, 3 * v + k] for k in range(3))
        np.testing.assert_allclose(mixed[:, v], planted_loop.standard(total), atol=1e-5)


def test_drives_do_not_depend_on_how_many_pictures_are_measured_at_once():
    voxels = planted.plant(np.random.default_rng(2), planted.ellipsoid((8, 8, 8)), 30)
    drawn = [drawing.draw(np.random.default_rng([9, i]), 56) for i in range(7)]
    seen = [(picture, scene.category, scene.scene) for picture, scene in drawn]
    whole = planted.drives(_drawn(7), voxels)
    for block in (3, 7, 50):
        one, two = planted.drives_of(iter(seen), [voxels, voxels], block)
        np.testing.assert_allclose(one, whole, atol=1e-6)
        np.testing.assert_array_equal(one, two)
