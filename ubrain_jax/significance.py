"""Tests: of each voxel against chance, and of two models against each other.

The permutation test gives pictures to each other, the same way for all voxels. NumPy
and SciPy only; every result depends on its inputs and the seed alone.

References:
    Benjamini & Hochberg 1995, J. R. Stat. Soc. B 57: 289-300.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors, metrics

LEVEL = 0.95  # of the intervals of medians
# Voxels with q or p below it count as significant.
ALPHA = 0.05
# Pictures x voxels transformed at once: 16 MB in float64.
_TRANSFORMED = 2**21


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
        import scipy.stats  # here: it takes a second

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
    shares = [float(np.mean(x[known] < ALPHA)) if num else math.nan for x in (q, p)]
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
    `bootstrap.medians` of both models with the same draws. Over subjects it speaks of
    people, and needs 6 of them to reach .05.

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
    import scipy.stats  # here: it takes a second

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
    import scipy.stats  # here: it takes a second

    num = len(values)
    # The largest k with P(Binomial(n, 1/2) < k) <= 2.5 %: ends are k-th from below
    # and from above.
    k = int(scipy.stats.binom.ppf((1 - LEVEL) / 2, num, 0.5)) if num else 0
    if k < 1:
        return math.nan, math.nan
    ordered = np.sort(values)
    return float(ordered[k - 1]), float(ordered[num - k])
