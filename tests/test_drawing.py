"""Drawn pictures: what is said to be there is there."""

import numpy as np

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
