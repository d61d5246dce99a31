"""Hashes of what pictures look like: against slow references, and what they survive."""

import io
import itertools
import time

import numpy as np
import pytest
from PIL import Image

from ubrain_jax import lookalikes
from ubrain_jax.datasets import drawing, pictures


def brute_force(first, second, distance):
    """Every pair, one at a time, with Python's integers."""
    found = []
    for (i, a), (j, b) in itertools.product(enumerate(first), enumerate(second)):
        bits = (int(a) ^ int(b)).bit_count()
        if a and b and bits <= distance:
            found.append((bits, i, j))
    return sorted(found)


def as_list(pairs):
    """(bits, row, row) in the order given."""
    return list(zip(pairs.distance, pairs.first, pairs.second, strict=True))


def near(rng, hashes, most):
    """Copies with up to `most` bits turned."""
    copies = [int(h) for h in hashes]
    for n, copy in enumerate(copies):
        for bit in rng.choice(64, rng.integers(most + 1), replace=False):
            copy ^= 1 << int(bit)
        copies[n] = copy
    return np.array(copies, np.uint64)


@pytest.mark.parametrize("distance", [0, 1, 3, 4, 6, 8, 13])
def test_pairs_are_those_of_a_brute_force_search(distance):
    rng = np.random.default_rng(distance)
    first = rng.integers(0, 2**64, 90, np.uint64)
    second = np.concatenate(
        [rng.integers(0, 2**64, 50, np.uint64), near(rng, first, 2 * distance + 2)]
    )
    expected = brute_force(first, second, distance)
    found = lookalikes.find_pairs(first, second, distance)
    assert as_list(found) == expected
    assert 5 < len(expected) < 91


def test_pairs_in_crowded_bands_are_those_of_a_brute_force_search(monkeypatch):
    """Hashes that share most bits, searched in blocks that must be cut again."""
    monkeypatch.setattr(lookalikes, "_MOST_CANDIDATES", 50)
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 2**9, n, np.uint64) << 30 for n in (80, 70))
    expected = brute_force(first, second, 3)
    assert len(expected) > 300
    assert as_list(lookalikes.find_pairs(first, second, 3)) == expected


@pytest.mark.parametrize(("first", "second"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_looks_like_nothing(first, second):
    some = np.full(5, 2**63 + 1, np.uint64)
    assert as_list(lookalikes.find_pairs(some[:first], some[:second])) == []
    flat = np.zeros(3, np.uint64)
    assert as_list(lookalikes.find_pairs(flat, flat)) == []


def test_as_many_pictures_as_nsd_has_are_searched_in_seconds():
    """73,000 by 73,000 took 0.11 s."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(1, 2**64, (2, 73_000), np.uint64)
    second[40_000:40_050] = near(rng, first[:50], lookalikes.DISTANCE)
    began = time.monotonic()
    found = lookalikes.find_pairs(first, second)
    assert time.monotonic() - began < 10
    planted = found.second - found.first == 40_000
    assert sorted(found.first[planted]) == list(range(50))
    # 5.3e9 pairs, of which a share of 4.5e-12 differs in at most 6 bits by chance.
    assert len(found.first) - 50 < 3


def slow_hash(picture):
    """Luminance, block means and cosine sums written out."""
    red, green, blue = picture.astype(np.int64).transpose(2, 0, 1)
    grey = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    side = len(grey) // 32
    small = grey.reshape(32, side, 32, side).mean((1, 3))
    value = 0
    for u, v in itertools.product(range(8), range(8)):
        u = 8 if u == v == 0 else u
        wave = [
            [
                np.cos(np.pi * u * (2 * y + 1) / 64)
                * np.cos(np.pi * v * (2 * x + 1) / 64)
                for x in range(32)
            ]
            for y in range(32)
        ]
        value = 2 * value + int((small * wave).sum() > 0)
    return value


@pytest.mark.parametrize("px", [32, 64, 224])
def test_the_hash_is_the_signs_of_cosine_sums(px):
    for seed in range(3):
        noise = np.random.default_rng(seed).integers(0, 256, (px, px, 3), np.uint8)
        assert lookalikes.perceptual_hash(noise) == slow_hash(noise)


def test_pictures_of_one_grey_level_have_no_hash():
    for level in (0, 7, 255):
        flat = np.full((28, 28, 3), level, np.uint8)
        assert lookalikes.perceptual_hash(flat) == 0
    flat[3:14, 5:20] = 9
    assert lookalikes.perceptual_hash(flat) != 0


def jpeg(picture):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=70)
    return np.asarray(Image.open(stream))


def resized(picture, px):
    image = Image.fromarray(picture).resize((px, px), Image.Resampling.BICUBIC)
    return np.asarray(image)


CHANGES = {
    "JPEG": jpeg,
    "enlarged": lambda p: resized(p, 425),
    "reduced and back": lambda p: resized(resized(p, 112), 224),
    "darker": lambda p: (0.8 * p).astype(np.uint8),
    "grey": lambda p: np.asarray(Image.fromarray(p).convert("L").convert("RGB")),
}


@pytest.fixture(scope="module")
def drawn():
    return [drawing.draw(np.random.default_rng(k), 224)[0] for k in range(60)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_looks_like_its_picture_and_like_no_other(drawn, change):
    copies = [pictures.fit(CHANGES[change](p), 224) for p in drawn]
    assert all((c != p).any() for c, p in zip(copies, drawn, strict=True))
    first, second = (
        np.array([lookalikes.perceptual_hash(p) for p in some], np.uint64)
        for some in (drawn, copies)
    )
    found = lookalikes.find_pairs(first, second)
    assert sorted(found.first) == list(range(60))
    np.testing.assert_array_equal(found.first, found.second)


def test_a_small_crop_is_missed_once_in_a_while(drawn):
    """Two pixels of 224 from each side: 1 in 60 here, see `lookalikes.DISTANCE`."""
    crops = [pictures.fit(p[2:-2, 2:-2], 224) for p in drawn]
    first, second = (
        np.array([lookalikes.perceptual_hash(p) for p in some], np.uint64)
        for some in (drawn, crops)
    )
    found = lookalikes.find_pairs(first, second)
    np.testing.assert_array_equal(found.first, found.second)
    assert 57 <= len(found.first) < 60


def test_another_picture_differs_in_half_of_the_bits(drawn):
    hashes = np.array([lookalikes.perceptual_hash(p) for p in drawn], np.uint64)
    bits = np.bitwise_count(hashes[:, None] ^ hashes)[np.triu_indices(60, 1)]
    assert 31 < bits.mean() < 33
    assert bits.min() > 10
    mirrored = [lookalikes.perceptual_hash(p[:, ::-1]) for p in drawn]
    assert np.bitwise_count(hashes ^ np.array(mirrored, np.uint64)).min() > 20
