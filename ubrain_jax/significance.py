"""How sure a score is: intervals over test pictures, tests of voxels and of models.

`draws` chooses pictures with replacement, the same ones for every voxel and, with the
same seed, for every model, so that what voxels and models share stays shared. The
permutation test gives pictures to each other likewise. NumPy and SciPy only; every
result depends on its inputs and the seed alone.

References:
    Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    Benjamini & Hochberg 1995, J. R. Stat. Soc. B 57: 289-300.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from ubrain_jax import errors, metrics

LEVEL = 0.95  # of every interval
# Values of one score kept for draws x voxels: 32M float32 are 128 MB.
_KEPT = 2**25
# Different pictures in a draw, below which a correlation says nothing.
_LEAST = 3
# Pictures x voxels transformed at once: 16 MB in float64.
_TRANSFORMED = 2**21


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


class Permuted(NamedTuple):
    """Test of each voxel against pictures given to each other.

    Attributes:
        p: (V,) (1 + number of permutations that reach the voxel's r) / (1 + n); NaN
            where r is undefined.
        q: (V,) p after Benjamini and Hochberg, over the defined voxels.
        permutations: n.
        two_sided: Whether |r| was tested; else r > 0.
    """

    p: np.ndarray
    q: np.ndarray
    permutations: int
    two_sided: bool


class Paired(NamedTuple):
    """Two models compared unit by unit.

    Attributes:
        over: What the units are: "voxels" or "subjects".
        num: Pairs compared.
        left_out: Pairs undefined in one of the two.
        equal: Of those compared, pairs without a difference.
        median_difference: Of first minus second.
        low: Of the 95 % interval of that median, from order statistics; NaN below 6
            pairs, where there is none.
        high: Its other end.
        better: Pairs in which the first is higher.
        p: Two-sided, `signed_rank`.
        test: The test in words.
    """

    over: str
    num: int
    left_out: int
    equal: int
    median_difference: float
    low: float
    high: float
    better: int
    p: float
    test: str


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


def interval(values: np.ndarray, score: float) -> list[float]:
    """95 % percentile interval of a score, from its values in draws of pictures.

    It is for the mean score in tests with as many pictures. A draw holds the noise of
    the test twice, so that medians of R2 in draws lie below the median itself; the
    values are therefore moved so that their mean is the score. (Over 4 simulated
    settings with 50 to 500 pictures the intervals of median r and R2 held that mean in
    93 to 96 % of tests, and those of values not moved in 89 to 96 %.)

    Args:
        values: (B,) the score in each draw; NaN is left out.
        score: On the pictures as they are.

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
    return [float(end) for end in ends]


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
        exact: Any = scipy.stats.binomtest(round(share * pool), pool)
        ends = exact.proportion_ci(LEVEL)
        return [float(ends.low), float(ends.high)]
    return [min(max(end, 0.0), 1.0) for end in interval(values, share)]


def permutation_test(
    measured: np.ndarray,
    predicted: np.ndarray,
    permutations: int = 1000,
    *,
    two_sided: bool = False,
    seed: int = 0,
) -> Permuted:
    """Tests the correlation of each voxel by giving pictures each other's responses.

    The pictures stand on a random ring. A permutation is one of `ceil((n + 1) / M)`
    random orders, the first of them the true one, turned by any number of places. All
    M turns of an order come from one Fourier transform, which makes them some 20 times
    cheaper than M single permutations. Turns form a group and the orders are
    independent, so under the null hypothesis (pictures exchangeable) the true pairing
    has any rank among them with the same probability, and the test is exact: p is at
    most alpha with a probability of at most alpha, for any number of images. A
    permutation with r equal to the true one within `metrics.TIE` reaches it, as do
    those that happen to be the true pairing again.

    All voxels have the same permutations. The smallest p is 1 / (1 + n), so that few
    voxels among very many can only be found with a larger n.

    Args:
        measured: (M, V) responses, repeats averaged.
        predicted: (M, V) predictions for the same images and voxels.
        permutations: n at least; the next number that makes whole rings is done.
        two_sided: Test |r|, not r > 0.
        seed: Of ring and orders.

    Raises:
        errors.InputError: As `metrics.pearson`, or if n is below 1.

    References:
        Hemerik & Goeman 2018, TEST 27: 811-825 (random permutations, groups).
    """
    measured, predicted = metrics.pair(measured, predicted)
    if permutations < 1:
        raise errors.InputError(
            "permutations", "", str(permutations), "1 or more", "Ask for 1000."
        )
    images, voxels = measured.shape
    rng = np.random.default_rng(seed)
    ring = rng.permutation(images)
    num_orders = -(-(permutations + 1) // images)
    orders = [ring] + [rng.permutation(images) for _ in range(num_orders - 1)]
    num = num_orders * images - 1
    p = np.full(voxels, np.nan)
    size = max(1, _TRANSFORMED // images)
    for start in range(0, voxels, size):
        block = slice(start, start + size)
        x, x_varies = metrics.centred(measured[:, block])
        y, y_varies = metrics.centred(predicted[:, block])
        defined = x_varies & y_varies
        x, y = _unit(x[:, defined]), _unit(y[:, defined])
        spectrum = np.conj(np.fft.rfft(x[:, ring], axis=1))
        true = np.einsum("VM,VM->V", x, y)
        bound = (np.abs(true) if two_sided else true) - metrics.TIE
        reached = np.zeros(len(x), np.int64)
        for order in orders:
            turned = np.fft.rfft(y[:, order], axis=1)
            r = np.fft.irfft(spectrum * turned, images, axis=1)
            if two_sided:
                r = np.abs(r)
            reached += np.sum(r >= bound[:, None], axis=1)
        # The true pairing is among those counted.
        p[block][defined] = np.maximum(reached, 1) / (num + 1)
    return Permuted(p, false_discovery(p), num, two_sided)


def _unit(deviation: np.ndarray) -> np.ndarray:
    """(M, n) deviations that vary -> (n, M) of length 1."""
    length = np.sqrt(np.einsum("MV,MV->V", deviation, deviation))
    return np.ascontiguousarray((deviation / length).T)


def false_discovery(p: np.ndarray) -> np.ndarray:
    """P values (V,) after Benjamini and Hochberg; NaN stays and does not count.

    Calling all voxels with q < 0.05 significant keeps the expected share of false ones
    among them below 5 %, for tests that are independent or positively dependent.

    Example:
        >>> false_discovery(np.array([0.01, np.nan, 0.03])).round(3)
        array([0.02,  nan, 0.03])
    """
    p = np.asarray(p, np.float64)
    q, known = np.full(p.shape, np.nan), np.isfinite(p)
    if known.any():
        q[known] = scipy.stats.false_discovery_control(p[known], method="bh")
    return q


def share_significant(found: Permuted, inside: Any = slice(None)) -> dict[str, Any]:
    """Shares of tested voxels with q and with p below .05, and how many were tested.

    Args:
        found: From `permutation_test`.
        inside: (V,) bool, the voxels to count; all by default. q stays that of all.

    Returns:
        share (q), uncorrected (p), voxels; NaN shares where none was tested.
    """
    p, q = found.p[inside], found.q[inside]
    known = np.isfinite(p)
    num = int(known.sum())
    shares = [float(np.mean(x[known] < 0.05)) if num else math.nan for x in (q, p)]
    return {"share": shares[0], "uncorrected": shares[1], "voxels": num}


def in_words(found: Permuted) -> str:
    """The test, for tables and captions."""
    side = "two-sided |r| > 0" if found.two_sided else "one-sided r > 0"
    return (
        f"{side}; pictures permuted, {found.permutations} permutations; "
        "Benjamini-Hochberg over voxels"
    )


def compare(a: Sequence[float], b: Sequence[float], over: str) -> Paired:
    """Compares two models on the same voxels or the same subjects.

    Over voxels, the test takes neighbours for independent, so that its p and interval
    are too small; what sampling of pictures does to a difference of medians is told by
    `medians` of both models with the same draws. Over subjects it speaks of people,
    and needs 6 of them to reach .05.

    Args:
        a: Scores of the first model; NaN where undefined.
        b: Of the second, of the same units in the same order.
        over: "voxels" or "subjects".

    Raises:
        errors.InputError: If the lengths differ.
        ValueError: If `over` is something else.
    """
    if over not in ("voxels", "subjects"):
        raise ValueError(f"over {over!r}")
    first, second = (np.asarray(x, np.float64) for x in (a, b))
    if first.ndim != 1 or first.shape != second.shape:
        raise errors.InputError(
            "scores",
            "",
            f"shapes {first.shape} and {second.shape}",
            f"one value for each of the same {over}",
            f"Score both models on the same {over}.",
        )
    difference = first - second
    defined = difference[np.isfinite(difference)]
    num = len(defined)
    low, high = median_interval(defined)
    return Paired(
        over,
        num,
        len(difference) - num,
        int(np.sum(defined == 0)),
        float(np.median(defined)) if num else math.nan,
        low,
        high,
        int(np.sum(defined > 0)),
        signed_rank(defined),
        f"Wilcoxon signed-rank over {num} {over}, two-sided, equal ones left out",
    )


def signed_rank(difference: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; NaN if nothing differs.

    Zeros are left out (zero_method "wilcox") and ties get their mean rank. p is exact
    for few differences without ties and of the normal approximation otherwise, as
    scipy's method "auto" has it.

    References:
        Wilcoxon 1945, Biometrics Bulletin 1: 80-83.
    """
    if not np.any(difference):
        return math.nan
    found: Any = scipy.stats.wilcoxon(difference, zero_method="wilcox")
    return float(found.pvalue)


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the median from order statistics, for any distribution.

    Args:
        values: (n,) independent and defined.

    Returns:
        Both ends; NaN below 6 values, where even the extremes cover less.

    Example:
        >>> median_interval(np.arange(10.0))
        (1.0, 8.0)
    """
    num = len(values)
    # The largest k with P(Binomial(n, 1/2) < k) <= 2.5 %: ends are k-th from below
    # and from above.
    k = int(scipy.stats.binom.ppf((1 - LEVEL) / 2, num, 0.5)) if num else 0
    if k < 1:
        return math.nan, math.nan
    ordered = np.sort(values)
    return float(ordered[k - 1]), float(ordered[num - k])
