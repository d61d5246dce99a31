"""Pictures that look alike although their bytes differ: a hash, and a search by it.

The hash of a picture is 64 signs of its coarse structure, so a copy that was saved
with loss, resized, brightened or turned grey differs from it in a few bits, and
another picture in about half of them. Numpy, SciPy and Pillow only.

References:
    Zauner, 2010, Implementation and benchmarking of perceptual image hash functions
    (DCT hash).
    Norouzi, Punjani & Fleet, 2012, Fast search in Hamming space with multi-index
    hashing.
"""

from typing import NamedTuple

import numpy as np
import scipy.fft
from PIL import Image

# Bits in which two hashes of one picture may differ. Measured on 1000 pictures of
# `datasets.drawing.draw` (448 pixels, stored at 224), copies that are missed: JPEG at
# quality 70 or 30, 425 or 112 pixels and back, grey, 20% darker: none of 1000;
# 20% brighter (clipped) 1.0%; cropped by 2% 1.2%, by 4% 15.7%, by 10% 84.6%; mirrored
# all. Of 12,497,500 pairs of other pictures none is taken for a copy (at 8 bits 3, at
# 10 bits 37); of as many behind one grey round mask, as vim-1 has, 2 (26, 160).
# Photographs were not measured. A picture that varies along one axis only has
# most of its signs from rounding, and may be missed.
DISTANCE = 6

_GRID = 32  # side of the thumbnail
_BAND_BITS = 16  # of four bands
_MOST_CANDIDATES = 2**22  # bounds memory


class Pairs(NamedTuple):
    """K pairs that look alike, by rows of the two arrays searched.

    Attributes:
        first: (K,) int64 rows of the first array.
        second: (K,) int64 rows of the second array.
        distance: (K,) int64 bits that differ.
    """

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray


def perceptual_hash(picture: np.ndarray) -> int:
    """Signs of the 64 lowest frequencies of a grey thumbnail, as one number.

    They are rows and columns 0..7 of the cosine transform of 32 x 32 means; the
    mean of the whole picture gives its place to frequency (8, 0).

    Args:
        picture: (y, x, 3) uint8.

    Returns:
        0 .. 2^64 - 1; 0 for a picture of one grey level, which `find_pairs` leaves
        out.

    Example:
        >>> noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        >>> perceptual_hash(noise) == perceptual_hash(noise // 2 + 9)
        True
    """
    grey = Image.fromarray(np.ascontiguousarray(picture)).convert("L")
    lowest, highest = grey.getextrema()
    if lowest == highest:
        return 0
    # "F": means are not rounded to grey levels.
    small = grey.convert("F").resize((_GRID, _GRID), Image.Resampling.BOX)
    waves = np.asarray(scipy.fft.dctn(np.asarray(small, np.float64), norm="ortho"))
    coarse = waves[:8, :8].copy()
    coarse[0, 0] = waves[8, 0]
    return int.from_bytes(np.packbits(coarse > 0).tobytes(), "big")


def find_pairs(
    first: np.ndarray, second: np.ndarray, distance: int = DISTANCE
) -> Pairs:
    """All pairs of hashes that differ in at most `distance` bits.

    Exact: of four bands of 16 bits, one differs in at most distance // 4, so only
    pairs that agree so far in a band are compared.

    Args:
        first: (M,) uint64 hashes; 0 looks like nothing.
        second: (K,) uint64 hashes, the same.
        distance: Bits that may differ.

    Returns:
        Pairs, ordered by distance, then by their rows.

    Example:
        >>> a, b = np.array([1, 2**40], np.uint64), np.array([3, 0], np.uint64)
        >>> find_pairs(a, b).first.tolist(), find_pairs(a, b).distance.tolist()
        ([0, 1], [1, 3])
    """
    rows, columns = np.flatnonzero(first), np.flatnonzero(second)
    a = np.ascontiguousarray(first[rows], np.uint64)
    b = np.ascontiguousarray(second[columns], np.uint64)
    bands = np.arange(2**_BAND_BITS)
    masks = bands[np.bitwise_count(bands) <= distance // 4]
    found = [np.empty(0, np.int64)]  # pairs as one number
    for mine, theirs in zip(_bands(a), _bands(b), strict=True):
        order = np.argsort(theirs, kind="stable")
        sizes = np.bincount(theirs, minlength=len(bands))
        starts = np.cumsum(sizes) - sizes
        waiting = [np.arange(len(a))[k : k + 4096] for k in range(0, len(a), 4096)]
        while waiting:
            some = waiting.pop()
            keys = mine[some, None] ^ masks
            counts = sizes[keys]
            if counts.sum() > _MOST_CANDIDATES and len(some) > 1:
                waiting += np.array_split(some, 2)
                continue
            i = np.repeat(some, counts.sum(1))
            each = counts.ravel()
            skipped = np.repeat(np.cumsum(each) - each - starts[keys].ravel(), each)
            j = order[np.arange(len(i)) - skipped]
            near = np.bitwise_count(a[i] ^ b[j]) <= distance
            found.append(i[near] * len(b) + j[near])
    i, j = np.divmod(np.unique(np.concatenate(found)), max(1, len(b)))
    bits = np.bitwise_count(a[i] ^ b[j]).astype(np.int64)
    nearest = np.argsort(bits, kind="stable")
    return Pairs(rows[i][nearest], columns[j][nearest], bits[nearest])


def _bands(hashes: np.ndarray) -> np.ndarray:
    """(4, M) int64 bands of (M,) uint64 hashes."""
    return hashes.view(np.uint16).reshape(-1, 64 // _BAND_BITS).T.astype(np.int64)
