"""How sure a score is: intervals over draws of the test pictures.

`draws` chooses pictures with replacement, the same ones for every voxel and, with the
same seed, for every model, so that what voxels and models share stays shared: the
difference of two models' medians in each draw has an interval too. NumPy and SciPy
only; every result depends on its inputs and the seed alone.

References:
    Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
"""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors, metrics

LEVEL = 0.95  # of every interval
# Values of one score kept for draws x voxels: 32M float32 are 128 MB.
_KEPT = 2**25
# Different pictures in a draw, below which a correlation says nothing.
_LEAST = 3


class Medians(NamedTuple):
    """Medians over the voxels of G groups in each of B draws of pictures.

    Attributes:
        pearson: (B, G), NaN where no voxel of the group is defined.
        noise_normalised: (B, G) of r / sqrt(ceiling), the ceiling held fixed.
        r2: (B, G).
    """

    pearson: np.ndarray
    noise_normalised: np.ndarray
    r2: np.ndarray


class Found(NamedTuple):
    """Shares of pictures found in each of B draws, and on all pictures.

    Attributes:
        top1: (B,), as `metrics.Retrieval`.
        top5: (B,).
        two_afc: (B,), as `metrics.TwoAfc.mean`.
        all: The three on the pictures as they are.
        pool: M.
    """

    top1: np.ndarray
    top5: np.ndarray
    two_afc: np.ndarray
    all: dict[str, float]
    pool: int


def draws(images: int, count: int, seed: int = 0) -> np.ndarray:
    """How often each of M pictures is drawn, in each of B draws with replacement.

    A draw of fewer than 3 different pictures is drawn again: no correlation is
    defined in it.

    Args:
        images: M, 3 or more.
        count: B, 1 or more.
        seed: Of the draws; the same for models that are to be compared.

    Returns:
        (B, M) int64, each row with the sum M.

    Raises:
        errors.InputError: If there are fewer than 3 images, or no draw is asked for.

    Example:
        >>> draws(4, 2).sum(axis=1)
        array([4, 4])
    """
    if images < _LEAST or count < 1:
        raise errors.InputError(
            "draws",
            "",
            f"{count} draws of {images} images",
            f"1 draw or more of {_LEAST} images or more",
            "Evaluate on more images, or set evaluate.bootstraps to 0.",
        )
    rng = np.random.default_rng(seed)
    share = np.full(images, 1 / images)
    counts = rng.multinomial(images, share, size=count)
    while (poor := np.sum(counts > 0, axis=1) < _LEAST).any():
        counts[poor] = rng.multinomial(images, share, size=int(poor.sum()))
    return counts


def medians(
    measured: np.ndarray,
    predicted: np.ndarray,
    counts: np.ndarray,
    ceiling: np.ndarray,
    groups: np.ndarray,
) -> Medians:
    """Median scores of groups of voxels in each draw of pictures.

    r and R2 of a draw come from weighted sums, so a block of voxels takes five
    products of the counts (B, M) with (M, block). Memory is that of two scores of
    `_KEPT` values; with more draws x voxels the draws are made in parts.

    Args:
        measured: (M, V) responses, repeats averaged.
        predicted: (M, V) predictions for the same images and voxels.
        counts: (B, M) from `draws`.
        ceiling: (V,) noise ceiling of R2; NaN or 0 where there is none.
        groups: (V, G) bool.

    Raises:
        errors.InputError: As `metrics.pearson`, or if `counts`, `ceiling` or `groups`
            are of other images or voxels.
    """
    measured, predicted = metrics.pair(measured, predicted)
    voxels = measured.shape[1]
    for name, values, shape in (
        ("counts", counts, (len(counts), len(measured))),
        ("ceiling", ceiling, (voxels,)),
        ("groups", groups, (voxels, groups.shape[-1])),
    ):
        if values.shape != shape:
            raise errors.InputError(
                name, "", f"shape {values.shape}", str(shape), metrics.SAME
            )
    ceiling = np.asarray(ceiling, np.float64)
    root = np.sqrt(np.where(ceiling > 0, ceiling, np.nan)).astype(np.float32)
    size = max(1, _KEPT // max(1, voxels))
    parts = []
    for start in range(0, len(counts), size):
        some = counts[start : start + size].astype(np.float32)
        r, r2 = (np.empty((len(some), voxels), np.float32) for _ in range(2))
        for block in metrics.blocks(voxels):
            r[:, block], r2[:, block] = _weighted(
                measured[:, block], predicted[:, block], some
            )
        parts.append(
            [
                np.stack([_median(x[:, g]) for g in groups.T], axis=1)
                for x in (r, r / root, r2)
            ]
        )
    return Medians(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def _weighted(
    measured: np.ndarray, predicted: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(M, n), (M, n), (B, M) -> r and R2 of each draw, (B, n), NaN where undefined.

    Centred in float64; the sums of a draw are float32, which takes half the time and
    leaves some 1e-6 of error in numbers that spread a thousand times as much.
    """
    x, x_varies = metrics.centred(measured)
    y, y_varies = metrics.centred(predicted)
    # Deviations of unit size: what is left of a difference of squares is then
    # precise, and its rounding known.
    sizes = [np.sqrt(np.mean(d * d, axis=0)) for d in (x, y)]
    sizes = [np.where(size > 0, size, 1) for size in sizes]
    x, y = ((d / s).astype(np.float32) for d, s in zip((x, y), sizes, strict=True))
    counts = counts / np.float32(len(x))
    sx, sy, sxx, syy, sxy = (counts @ d for d in (x, y, x * x, y * y, x * y))
    variance_x, variance_y = sxx - sx * sx, syy - sy * sy
    defined_x = x_varies & (variance_x > 1e-5)
    defined = defined_x & y_varies & (variance_y > 1e-5)
    nan = np.float32(np.nan)
    norm = np.sqrt(np.where(defined, variance_x * variance_y, 1))
    r = np.where(defined, np.clip((sxy - sx * sy) / norm, -1, 1), nan)
    # In units of the measured size: measured - predicted = x - a y - b.
    finite = np.isfinite(predicted).all(axis=0)
    shift = np.zeros(x.shape[1])
    use = x_varies & finite
    shift[use] = np.mean(predicted[:, use].astype(np.float64) - measured[:, use], 0)
    a, b = np.where(y_varies, sizes[1] / sizes[0], 0), shift / sizes[0]
    a, b = a.astype(np.float32), b.astype(np.float32)
    # Mean square in each draw.
    residual = sxx - 2 * a * sxy + a**2 * syy + b**2 - 2 * b * (sx - a * sy)
    ratio = residual / np.where(defined_x, variance_x, 1)
    return r, np.where(defined_x & finite, 1 - ratio, nan)


def _median(values: np.ndarray) -> np.ndarray:
    """(B, n) -> (B,), of the defined values; NaN where there are none."""
    if not np.isnan(values).any():
        return np.median(values, axis=1) if values.size else _nothing(len(values))
    # Voxels undefined in every draw first: nanmedian takes long.
    values = values[:, ~np.isnan(values).all(axis=0)]
    if not values.size:
        return _nothing(len(values))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        return np.nanmedian(values, axis=1)


def _nothing(count: int) -> np.ndarray:
    return np.full(count, np.nan)


def found_in(similarity: metrics.Similarity, counts: np.ndarray) -> Found:
    """Retrieval and forced choice in each draw of pictures.

    A picture asks as often as it was drawn, and so often stands among the rivals of
    the others; its own copies are no rivals of it. Undefined correlations and ties
    count as in `metrics.retrieval_in` and `metrics.two_afc_in`.

    Args:
        similarity: From `metrics.similarity`; of its transpose for the other
            direction (`metrics.reversed_in`).
        counts: (B, M) from `draws`.
    """
    correlation, true = metrics.with_true(similarity.correlation)
    below = correlation < true[:, None] - metrics.TIE
    tied = ~below & (correlation <= true[:, None] + metrics.TIE)
    rival = (~below).astype(np.float64)
    won = below + tied / 2
    np.fill_diagonal(rival, 0)
    np.fill_diagonal(won, 0)
    drawn = counts.astype(np.float64)
    images = len(true)
    ahead = drawn @ rival.T  # (B, M) rivals, copies counted
    wins = np.sum(drawn * (drawn @ won.T), axis=1)
    pairs = np.sum(drawn * (images - drawn), axis=1)
    tops = [np.sum(drawn * (ahead < k - 0.5), axis=1) / images for k in (1, 5)]
    choice = metrics.two_afc_in(similarity)
    ranks = metrics.retrieval_in(similarity)
    return Found(
        tops[0],
        tops[1],
        wins / pairs,
        {"top1": ranks.top1, "top5": ranks.top5, "two_afc": choice.mean},
        images,
    )


def interval(
    values: np.ndarray,
    score: float,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> list[float]:
    """95 % percentile interval of a score, from its values in draws of pictures.

    It is for the mean score in tests with as many pictures. A draw holds the noise of
    the test twice, so that medians of R2 in draws lie below the median itself; the
    values are therefore moved so that their mean is the score. (Over 4 simulated
    settings with 50 to 500 pictures the intervals of median r and R2 held that mean in
    93 to 96 % of tests, and those of values not moved in 89 to 96 %.)

    Args:
        values: (B,) the score in each draw; NaN is left out.
        score: On the pictures as they are.
        limits: Of the score's kind; ends beyond them are cut.

    Returns:
        Both ends; NaN where the score is, or no draw has one.

    Example:
        >>> [round(end) for end in interval(np.arange(1001.0), 600.0)]
        [125, 1075]
    """
    values = values[np.isfinite(values)]
    if not values.size or not math.isfinite(score):
        return [math.nan, math.nan]
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    ends = np.quantile(values, tails) - np.mean(values) + score
    return [float(end) for end in np.clip(ends, *limits)]


def share_interval(values: np.ndarray, share: float, pool: int) -> list[float]:
    """95 % interval of a share of M pictures, from its values in draws.

    As `interval`, cut at 0 and 1. Moving matters here: a draw lacks a third of the
    pictures, so that whoever had one rival ahead is first in a third of the draws, and
    top-1 of draws is up to 1.6 times the score, at chance. (Over 14 simulated settings
    the intervals held the mean share in 95 to 98 % of tests; not moved, in 87 to 98 %;
    with pictures that ask drawn and rivals fixed, in 85 to 98 %.) Where every picture
    is found, or none, draws cannot differ: the interval is Clopper and Pearson's then.

    Args:
        values: (B,) of `Found`.
        share: The same on the pictures as they are.
        pool: M.

    Example:
        >>> [round(end, 3) for end in share_interval(np.ones(9), 1.0, 100)]
        [0.964, 1.0]
    """
    if share in (0, 1):
        import scipy.stats  # here: it takes a second

        exact: Any = scipy.stats.binomtest(round(share * pool), pool)
        ends = exact.proportion_ci(LEVEL)
        return [float(ends.low), float(ends.high)]
    return interval(values, share, (0, 1))
