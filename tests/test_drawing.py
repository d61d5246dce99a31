"""Drawn pictures: what is said to be there is there."""

import numpy as np
import pytest

from ubrain_jax.datasets import drawing


def test_draw_says_what_it_painted():
    shown = np.zeros(len(drawing.CATEGORIES), int)
    for i in range(60):
        picture, scene = drawing.draw(np.random.default_rng([7, i]), 112)
        assert picture.dtype == np.uint8
        assert 1 <= len(scene.objects) <= 3
        visible = set(np.unique(scene.category)) - {-1}
        assert visible <= {item.category for item in scene.objects}
        last = scene.objects[-1]  # nothing lies on top of it
        mass = np.argwhere(scene.category == last.category)
        assert len(mass) > 0.1 * (last.size * 112) ** 2 / 2
        assert 0.22 <= last.size <= 0.54
        shown[list(visible)] += 1
    assert (shown > 5).all()


def test_colour_alone_does_not_tell_the_category():
    colours, labels = [], []
    for i in range(300):
        picture, scene = drawing.draw(np.random.default_rng([8, i]), 56)
        for c in set(np.unique(scene.category)) - {-1}:
            colours.append(picture[scene.category == c].mean(axis=0))
            labels.append(c)
    colours, labels = np.array(colours, float), np.array(labels)
    half = len(labels) // 2
    # Nearest neighbour in mean colour, from the first half to the second.
    far = ((colours[half:, None] - colours[None, :half]) ** 2).sum(axis=2)
    right = (labels[:half][far.argmin(axis=1)] == labels[half:]).mean()
    assert right < 0.35  # chance is 1/6


@pytest.mark.parametrize(("height", "width"), [(112, 112), (112, 160), (150, 112)])
def test_an_object_picture_has_one_large_object_near_the_middle(height, width):
    plain = 0
    for i in range(30):
        rng = np.random.default_rng([9, i])
        category, scene = i % len(drawing.CATEGORIES), i % len(drawing.SCENES)
        picture, shown = drawing.draw_object(rng, category, scene, height, width)
        assert picture.shape == (height, width, 3)
        assert picture.dtype == np.uint8
        assert set(np.unique(shown.category)) == {-1, category}
        mass = np.argwhere(shown.category == category)
        extent = np.ptp(mass, axis=0)
        assert 0.35 * 112 < extent.max() < 1.15 * 112
        middle = (mass.max(axis=0) + mass.min(axis=0)) / 2
        assert (abs(middle - np.array([height, width]) / 2) < 0.3 * 112).all()
        assert shown.scene in (scene, -1)
        plain += shown.scene == -1
        (item,) = shown.objects
        assert 0.55 <= item.size * max(height, width) / 112 <= 0.9
    assert 2 <= plain <= 18  # three in ten


def test_backgrounds_of_object_pictures_are_smooth():
    def roughness(picture, category):
        luminance = picture.mean(axis=-1)
        step = abs(np.diff(luminance, axis=1))
        free = (category[:, 1:] == -1) & (category[:, :-1] == -1)
        return step[free].mean()

    soft, sharp = [], []
    for i in range(25):
        rng = np.random.default_rng([10, i])
        picture, scene = drawing.draw_object(rng, 0, i % 5, 112, 112)
        soft.append(roughness(picture, scene.category))
        picture, scene = drawing.draw(rng, 112)
        sharp.append(roughness(picture, scene.category))
    assert np.median(soft) < 0.7 * np.median(sharp)


def test_a_hole_shows_a_grey_disc_of_the_picture():
    picture, scene = drawing.draw(np.random.default_rng(2), 112)
    seen, left = drawing.through_a_hole(picture, scene, 0.55, 1.0)
    at = (np.arange(112) + 0.5) / 112 - 0.5
    far = np.hypot(at[:, None], at)
    assert (seen[far >= 0.5] == 0.55).all()
    assert (left.category[far >= 0.5] == drawing.HIDDEN).all()
    inside = far < 0.45
    grey = picture.astype(float).mean(axis=-1) / 255
    np.testing.assert_allclose(seen[inside], grey[inside], atol=1e-9)
    assert (left.category[inside] == scene.category[inside]).all()
    assert left.scene == scene.scene
    half, _ = drawing.through_a_hole(picture, scene, 0.55, 0.5)
    np.testing.assert_allclose(half - 0.55, (seen - 0.55) / 2, atol=1e-9)
