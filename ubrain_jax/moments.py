"""Scores of voxels whose images come in blocks: one pass, whatever is in memory.

A block is some images of all V voxels, as stores and files of predictions hold them:
row by row. Means and sums of products are merged block by block in float64, so that
memory is a block and a dozen numbers for each voxel. The scores are those of
`metrics.pearson`, `metrics.r2` and `metrics.explained_variance`, to rounding.

References:
    Chan, Golub & LeVeque 1983, The American Statistician 37: 242-247.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ubrain_jax import errors, metrics


class Scores(NamedTuple):
    """Scores of V voxels over M images, NaN where undefined.

    Attributes:
        images: M.
        pearson: (V,) float64.
        r2: (V,) float64.
        explained_variance: (V,) float64.
    """

    images: int
    pearson: np.ndarray
    r2: np.ndarray
    explained_variance: np.ndarray


class _Sums(NamedTuple):
    """Of n images: means and sums of products of deviations, (V,) each.

    Values are taken from the first image's on: a constant voxel then is exactly 0.
    """

    num: int
    mean: np.ndarray  # (2, V) of measured, predicted
    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray


def scores(blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Scores:
    """Scores all voxels in one pass over blocks of images.

    Args:
        blocks: Pairs of (b, V) arrays, measured and predicted responses to the same b
            images, b 1 or more and free to change; V is the same in all.

    Raises:
        errors.InputError: If shapes differ, or all blocks have fewer than 3 images.
    """
    first, sums, finite = np.zeros((2, 0)), None, np.zeros((2, 0), bool)
    step = [0.0, 0.0]
    for measured, predicted in blocks:
        both = [np.asarray(measured), np.asarray(predicted)]
        if sums is None:
            _check(both, both[0].shape[1:])
            first = np.stack([x[0].astype(np.float64) for x in both])
            finite = np.ones(first.shape, bool)
            first = np.where(np.isfinite(first), first, 0)
            zeros = np.zeros_like(first)
            sums = _Sums(0, zeros, zeros[0], zeros[0], zeros[0])
        _check(both, first.shape[1:])
        step = [max(s, metrics.rounding(x)) for s, x in zip(step, both, strict=True)]
        parts = []
        # Columns by blocks: float64 copies then stay in the caches.
        for some in metrics.blocks(first.shape[1]):
            part = [
                _clean(x[:, some], finite[k, some]) - first[k, some]
                for k, x in enumerate(both)
            ]
            parts.append(_sums(*part))
        sums = _merged(sums, _side_by_side(parts))
    if sums is None or sums.num < 3:
        raise errors.InputError(
            "blocks",
            "",
            f"{sums.num if sums else 0} images",
            "at least 3 (with 2 every correlation is 1 or -1)",
            "Evaluate on more images.",
        )
    return _scored(sums, first, finite, step)


def _check(both: list[np.ndarray], voxels: tuple[int, ...]) -> None:
    """Refuses a block that is not one or more images of the same voxels."""
    shapes = [x.shape for x in both]
    if shapes[0] != shapes[1] or shapes[0][1:] != voxels or len(shapes[0]) != 2:
        raise errors.InputError(
            "blocks",
            "",
            f"measured {shapes[0]}, predicted {shapes[1]}",
            f"the same images of voxels {voxels}",
            metrics.SAME,
        )
    if not shapes[0][0]:
        raise errors.InputError(
            "blocks", "", "a block of no images", "1 or more", "Leave it out."
        )


def _clean(values: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """(b, n) in float64 with 0 for what is not finite, which `finite` remembers."""
    good = np.isfinite(values)
    if good.all():
        return values.astype(np.float64)
    finite &= good.all(axis=0)
    return np.where(good, values, 0).astype(np.float64)


def _sums(x: np.ndarray, y: np.ndarray) -> _Sums:
    """Of one block (b, n): two passes."""
    mean = np.stack([x.mean(axis=0), y.mean(axis=0)])
    x, y = x - mean[0], y - mean[1]
    products = (np.einsum("MV,MV->V", a, b) for a, b in ((x, x), (y, y), (x, y)))
    return _Sums(len(x), mean, *products)


def _side_by_side(parts: list[_Sums]) -> _Sums:
    """Sums of the same images, of voxels that follow each other."""
    num, *rest = zip(*parts, strict=True)
    return _Sums(num[0], *(np.concatenate(values, axis=-1) for values in rest))


def _merged(a: _Sums, b: _Sums) -> _Sums:
    """Sums of two blocks as one."""
    num = a.num + b.num
    difference = b.mean - a.mean
    weight = a.num * b.num / num
    dx, dy = difference
    return _Sums(
        num,
        a.mean + difference * (b.num / num),
        a.xx + b.xx + weight * dx * dx,
        a.yy + b.yy + weight * dy * dy,
        a.xy + b.xy + weight * dx * dy,
    )


def _scored(
    sums: _Sums, first: np.ndarray, finite: np.ndarray, step: list[float]
) -> Scores:
    """The scores; a voxel that does not vary is told as in `metrics.centred`."""
    mean = np.abs(first + sums.mean)
    rms = np.sqrt(np.stack([sums.xx, sums.yy]) / sums.num)
    varies = finite & (rms > np.asarray(step)[:, None] * mean)
    defined = varies.all(axis=0)
    norm = np.sqrt(sums.xx) * np.sqrt(sums.yy)
    r = np.full(norm.shape, np.nan)
    np.divide(sums.xy, norm, out=r, where=defined)
    known = varies[0] & finite[1]
    # Sum of squares of measured - predicted around their mean difference.
    residual = np.maximum(sums.xx - 2 * sums.xy + sums.yy, 0)
    shift = (first + sums.mean)[0] - (first + sums.mean)[1]
    scored = []
    for total in (residual + sums.num * shift**2, residual):
        ratio = np.full(norm.shape, np.nan)
        scored.append(1 - np.divide(total, sums.xx, out=ratio, where=known))
    return Scores(sums.num, np.clip(r, -1, 1), *scored)
