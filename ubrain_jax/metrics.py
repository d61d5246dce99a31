"""Scores: how well predicted responses follow the measured ones, voxel by voxel.

Everything here returns one value per voxel (or one rank per image); averaging is a
decision of whoever reports, through `quartiles`. Numbers are float64, whatever comes
in. A score that cannot be computed is NaN, never 0, and is counted.

Undefined voxels: a voxel is constant when the root mean square of its deviations
is at most the rounding step of its dtype times its mean, so that a float32 voxel
that holds 0.1 throughout stays constant after arithmetic has left dust on it. A voxel
with a value that is not finite is undefined too.
"""

from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors

# 1000 images x 2048 voxels in float64 are 16 MB: a few such arrays live at a time.
BLOCK_VOXELS = 2048
# Two float64 correlations closer than this are a tie; BLAS sums in another order at
# the edges of a matrix, so equal patterns may differ by some 1e-15.
TIE = 1e-12


class Retrieval(NamedTuple):
    """How well each measured pattern finds its image among all M images of a pool.

    Attributes:
        pool: M, the number of images among which the true one is sought.
        rank: (M,) int64, 1 = best, M = worst; a tie counts against the true image.
        top1: Fraction of images with rank 1; chance is 1 / pool.
        top5: Fraction with rank 5 or better; chance is min(5, pool) / pool.
        mean_rank: Chance is (pool + 1) / 2.
        median_rank: Chance is (pool + 1) / 2.
        num_voxels: Voxels that the patterns are made of.
        undefined: Voxels left out, for a value that is not finite.
    """

    pool: int
    rank: np.ndarray
    top1: float
    top5: float
    mean_rank: float
    median_rank: float
    num_voxels: int
    undefined: int


class TwoAfc(NamedTuple):
    """Two-alternative forced choice among all pairs of M images; chance is 0.5.

    Attributes:
        pool: M, the number of images.
        share: (M,) of each measured pattern: the share of the other images whose
            prediction correlates less with it than that of its own; ties count half.
        mean: Mean of `share`: how often the true one of two predictions is chosen.
        reverse_share: (M,) the same the other way: of each prediction, the share of
            the other images whose measured pattern correlates less with it.
        reverse_mean: Mean of `reverse_share`.
    """

    pool: int
    share: np.ndarray
    mean: float
    reverse_share: np.ndarray
    reverse_mean: float


class Similarity(NamedTuple):
    """Correlations of patterns, which `retrieval_in` and `two_afc_in` share.

    Attributes:
        correlation: (M, M), measured by predicted; NaN where a pattern is constant.
        num_voxels: Voxels that the patterns are made of.
        undefined: Voxels left out, for a value that is not finite.
    """

    correlation: np.ndarray
    num_voxels: int
    undefined: int


def pearson(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pearson correlation over images, for each voxel.

    Two passes in float64: centred first, then multiplied.

    Args:
        measured: (M, V) responses, repeats averaged.
        predicted: (M, V) predictions for the same images and voxels.

    Returns:
        (V,) float64 in [-1, 1]. NaN where the measured or the predicted voxel is
        constant or holds a value that is not finite.

    Raises:
        errors.InputError: If the shapes differ, or M < 3 (two points always lie on
            a line: r = 1 or -1).

    Example:
        >>> measured = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
        >>> predicted = np.array([[0.0, 1.0], [5.0, 2.0], [10.0, 4.0]])
        >>> pearson(measured, predicted)
        array([ 1., nan])
    """
    measured, predicted = pair(measured, predicted)
    score = np.full(measured.shape[1], np.nan)
    for block in blocks(measured.shape[1]):
        x, x_varies = centred(measured[:, block])
        y, y_varies = centred(predicted[:, block])
        defined = x_varies & y_varies
        # Each norm apart: their product of squares could leave float64's range.
        norm = np.sqrt(_dot(x, x)) * np.sqrt(_dot(y, y))
        r = np.divide(_dot(x, y), norm, out=np.full_like(norm, np.nan), where=defined)
        score[block] = np.clip(r, -1, 1)
    return score


def r2(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Coefficient of determination over images, for each voxel.

    R2 = 1 - sum (measured - predicted)^2 / sum (measured - its mean)^2. Unlike the
    correlation it also counts wrong scale and offset, and has no lower bound.

    Args:
        measured: (M, V) responses, repeats averaged.
        predicted: (M, V) predictions for the same images and voxels.

    Returns:
        (V,) float64, at most 1. NaN where the measured voxel is constant, or either
        holds a value that is not finite.

    Raises:
        errors.InputError: If the shapes differ, or M < 3.

    Example:
        >>> measured = np.array([[1.0], [2.0], [3.0]])
        >>> r2(measured, measured), r2(measured, np.full((3, 1), 2.0))
        (array([1.]), array([0.]))
    """
    measured, predicted = pair(measured, predicted)
    score = np.full(measured.shape[1], np.nan)
    for block in blocks(measured.shape[1]):
        x, varies = centred(measured[:, block])
        y, finite = _finite(predicted[:, block])
        defined = varies & finite
        residual = np.where(defined, measured[:, block], 0) - np.where(defined, y, 0)
        score[block] = _taken_away(residual, x, defined)
    return score


def explained_variance(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Share of the variance over images that the prediction takes away.

    EV = 1 - variance (measured - predicted) / variance (measured), as scikit-learn
    has it: R2 where an offset of the prediction is forgiven, but not a wrong scale.

    Args:
        measured: (M, V) responses, repeats averaged.
        predicted: (M, V) predictions for the same images and voxels.

    Returns:
        (V,) float64, at most 1, at least R2. NaN where R2 is.

    Raises:
        errors.InputError: If the shapes differ, or M < 3.

    Example:
        >>> measured = np.array([[1.0], [2.0], [3.0]])
        >>> explained_variance(measured, measured + 5), r2(measured, measured + 5)
        (array([1.]), array([-36.5]))
    """
    measured, predicted = pair(measured, predicted)
    score = np.full(measured.shape[1], np.nan)
    for block in blocks(measured.shape[1]):
        x, varies = centred(measured[:, block])
        # Not `centred`: a constant prediction is no fault here.
        y, finite = _finite(predicted[:, block])
        y -= y[:1]
        residual = x - (y - y.mean(axis=0))
        score[block] = _taken_away(residual, x, varies & finite)
    return score


def noise_ceiling(ncsnr: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """Largest R2 (squared correlation) a perfect model can expect, for each voxel.

    NC = ncsnr^2 / (ncsnr^2 + mean over images of 1/k), for k averaged presentations
    of an image; with k the same everywhere, ncsnr^2 / (ncsnr^2 + 1/k).

    Args:
        ncsnr: (V,) noise-ceiling signal-to-noise ratio, >= 0; NaN where unknown.
        repeats: (M,) presentations averaged for each test image, >= 1.

    Returns:
        (V,) float64, a fraction in [0, 1) (NSD's papers print percent); NaN where
        ncsnr is.

    Raises:
        errors.InputError: If there is no image, a repeat count below 1, or an ncsnr
            that is negative or infinite.

    Example:
        >>> noise_ceiling(np.array([1.0, 0.0, np.nan]), np.array([3, 3, 3]))
        array([0.75, 0.  ,  nan])

    References:
        Allen et al. 2022, Nature Neuroscience 25, Methods: noise ceiling estimation.
    """
    ncsnr = np.asarray(ncsnr, np.float64)
    repeats = np.asarray(repeats, np.float64)
    if repeats.ndim != 1 or repeats.size == 0 or not np.all(repeats >= 1):
        low = int(np.sum(~(repeats >= 1)))
        raise errors.InputError(
            "repeats",
            "",
            f"{low} of {repeats.size} images without a presentation",
            "one count >= 1 for each test image",
            "Give the number of presentations averaged for each test image.",
        )
    bad = (ncsnr < 0) | np.isinf(ncsnr)
    if np.any(bad):
        first = int(np.flatnonzero(bad)[0])
        raise errors.InputError(
            "ncsnr",
            f"voxel {first}",
            f"{ncsnr.flat[first]} ({int(bad.sum())} voxels are negative or infinite)",
            "values >= 0, or NaN where unknown",
            "Check the ncsnr file of this subject.",
        )
    signal = ncsnr**2
    return signal / (signal + np.mean(1 / repeats))


def noise_normalised(pearson: np.ndarray, ceiling: np.ndarray) -> np.ndarray:
    """Correlation as a fraction of the highest one the noise allows, r / sqrt(NC).

    Not clipped: sampling error, above all in voxels with a low ceiling, takes single
    values above 1 and far below 0. So compare medians, or choose voxels by ceiling.

    Args:
        pearson: (V,) correlation.
        ceiling: (V,) noise ceiling of R2 as a fraction, from `noise_ceiling`.

    Returns:
        (V,) float64. NaN where the correlation is undefined, or the ceiling is 0 or
        unknown (NaN); no other voxel is left out.

    Example:
        >>> noise_normalised(np.array([0.4, 0.4]), np.array([0.25, 0.0]))
        array([0.8, nan])
    """
    r = np.asarray(pearson, np.float64)
    ceiling = np.asarray(ceiling, np.float64)
    if r.shape != ceiling.shape:
        raise errors.InputError(
            "ceiling", "", f"shape {ceiling.shape}", f"{r.shape} as pearson", SAME
        )
    out = np.full(r.shape, np.nan)
    return np.divide(r, np.sqrt(ceiling), out=out, where=ceiling > 0)


def pattern_correlation(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pearson correlation over voxels between measured and predicted patterns.

    Args:
        measured: (Q, V) measured responses to Q images.
        predicted: (M, V) predicted responses to M images, of the same voxels.

    Returns:
        (Q, M) float64 in [-1, 1]. NaN where a pattern is the same in every voxel.
        Voxels with a value that is not finite in either array are left out.

    Raises:
        errors.InputError: If the numbers of voxels differ, or fewer than 3 voxels
            are defined.
    """
    return _pattern_correlation(measured, predicted)[0]


def retrieval(measured: np.ndarray, predicted: np.ndarray) -> Retrieval:
    """Ranks the true image of every measured pattern among all images of the set.

    The measured pattern of each image is correlated (Pearson over voxels) with the
    predicted patterns of all M images; its rank is 1 + the number of other images
    that correlate at least as well. So a prediction that is the same for all images
    has rank M everywhere, and so has an image whose own correlation is undefined.

    Time is that of one (M, V) x (V, M) product; memory M^2 and a block of voxels.

    Args:
        measured: (M, V) responses, repeats averaged.
        predicted: (M, V) predictions for the same images and voxels.

    Returns:
        `Retrieval`.

    Raises:
        errors.InputError: If the shapes differ, M < 3, or fewer than 3 voxels are
            defined.

    Example:
        >>> found = retrieval(np.eye(4), np.eye(4))
        >>> found.pool, found.rank, found.top1
        (4, array([1, 1, 1, 1]), 1.0)
    """
    return retrieval_in(similarity(measured, predicted))


def similarity(measured: np.ndarray, predicted: np.ndarray) -> Similarity:
    """`pattern_correlation` of M images with themselves, checked.

    Raises:
        errors.InputError: If the shapes differ, M < 3, or fewer than 3 voxels are
            defined.
    """
    measured, predicted = pair(measured, predicted)
    correlation, num_voxels = _pattern_correlation(measured, predicted)
    return Similarity(correlation, num_voxels, measured.shape[1] - num_voxels)


def retrieval_in(found: Similarity) -> Retrieval:
    """`retrieval` where the correlations are known."""
    correlation, true = with_true(found.correlation)
    rank = np.sum(correlation >= true[:, None] - TIE, axis=1)  # counts the true one
    return Retrieval(
        pool=len(rank),
        rank=rank,
        top1=float(np.mean(rank <= 1)),
        top5=float(np.mean(rank <= 5)),
        mean_rank=float(np.mean(rank)),
        median_rank=float(np.median(rank)),
        num_voxels=found.num_voxels,
        undefined=found.undefined,
    )


def reversed_in(found: Similarity) -> Similarity:
    """The other direction: each prediction asks, measured patterns are the pool."""
    return found._replace(correlation=found.correlation.T)


def within(found: Similarity, kept: np.ndarray) -> Similarity:
    """The correlations of some of the images, which are then the pool.

    Args:
        found: Of M images.
        kept: (M,) bool, or numbers of images.
    """
    return found._replace(correlation=found.correlation[kept][:, kept])


def two_afc(measured: np.ndarray, predicted: np.ndarray) -> TwoAfc:
    """How often the true one of two images is told by correlation over voxels.

    Time and memory are those of `retrieval`.

    Args:
        measured: (M, V) responses, repeats averaged.
        predicted: (M, V) predictions for the same images and voxels.

    Raises:
        errors.InputError: If the shapes differ, M < 3, or fewer than 3 voxels are
            defined.

    Example:
        >>> found = two_afc(np.eye(4), np.eye(4)[[0, 1, 3, 2]])
        >>> found.share.round(2), round(found.mean, 2)
        (array([1.  , 1.  , 0.33, 0.33]), 0.67)
    """
    return two_afc_in(similarity(measured, predicted))


def two_afc_in(found: Similarity) -> TwoAfc:
    """`two_afc` where the correlations are known."""
    correlation, true = with_true(found.correlation)

    def shares(rows: np.ndarray) -> np.ndarray:
        less = np.sum(rows < true[:, None] - TIE, axis=1)
        tied = np.sum(rows <= true[:, None] + TIE, axis=1) - less - 1  # not itself
        return (less + tied / 2) / (len(true) - 1)

    share, reverse = shares(correlation), shares(correlation.T)
    return TwoAfc(
        len(true), share, float(np.mean(share)), reverse, float(np.mean(reverse))
    )


def with_true(correlation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, M) without NaN, and its diagonal."""
    # An undefined correlation loses against every defined one, ties with its like.
    correlation = np.where(np.isnan(correlation), -2, correlation)
    return correlation, np.diagonal(correlation)


def quartiles(values: np.ndarray) -> dict[str, float | int]:
    """Median, quartiles and mean of the defined values, and how many there are.

    Args:
        values: (V,) scores, NaN where undefined.

    Returns:
        median, p25, p75, mean (float, NaN if no value is defined), num (defined
        values) and undefined (the others).

    Example:
        >>> quartiles(np.array([1.0, 2.0, 3.0, 4.0, 5.0, np.nan]))
        {'median': 3.0, 'p25': 2.0, 'p75': 4.0, 'mean': 3.0, 'num': 5, 'undefined': 1}
    """
    values = np.asarray(values, np.float64)
    defined = values[np.isfinite(values)]
    if defined.size:
        p25, median, p75 = (float(q) for q in np.percentile(defined, [25, 50, 75]))
        mean = float(np.mean(defined))
    else:
        p25 = median = p75 = mean = float("nan")
    return {
        "median": median,
        "p25": p25,
        "p75": p75,
        "mean": mean,
        "num": int(defined.size),
        "undefined": int(values.size - defined.size),
    }


def null_for_nan(value: Any) -> Any:
    """The same nested dicts and lists with None for every NaN: JSON has no NaN.

    Example:
        >>> null_for_nan({"median": float("nan"), "num": np.int64(0), "rank": [1.0]})
        {'median': None, 'num': 0, 'rank': [1.0]}
    """
    if isinstance(value, dict):
        return {key: null_for_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [null_for_nan(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return null_for_nan(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


SAME = "Give arrays of the same images and voxels."


def pair(measured: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checks that two (M, V) arrays belong together; no copy."""
    measured, predicted = np.asarray(measured), np.asarray(predicted)
    if measured.ndim != 2 or measured.shape != predicted.shape:
        raise errors.InputError(
            "predicted",
            "",
            f"shape {predicted.shape}",
            f"(images, voxels) as measured, which is {measured.shape}",
            SAME,
        )
    if len(measured) < 3:
        raise errors.InputError(
            "measured",
            "",
            f"{len(measured)} images",
            "at least 3 (with 2 every correlation is 1 or -1)",
            "Evaluate on more images.",
        )
    return measured, predicted


def blocks(num_voxels: int) -> list[slice]:
    """Slices of `BLOCK_VOXELS` that cover all voxels."""
    starts = range(0, num_voxels, BLOCK_VOXELS)
    return [slice(start, start + BLOCK_VOXELS) for start in starts]


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(M, V), (M, V) -> (V,): products summed over images."""
    return np.einsum("MV,MV->V", a, b)


def _taken_away(
    residual: np.ndarray, deviation: np.ndarray, defined: np.ndarray
) -> np.ndarray:
    """(M, V), (M, V), (V,) -> (V,): 1 - ratio of the sums of squares, else NaN."""
    out = np.full(defined.shape, np.nan)
    squares = _dot(residual, residual), _dot(deviation, deviation)
    return 1 - np.divide(*squares, out=out, where=defined)


def _finite(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, V) -> float64 with 0 in voxels that hold a non-finite value, and (V,)."""
    finite = np.asarray(np.isfinite(values).all(axis=0))
    return np.where(finite, values, 0).astype(np.float64), finite


def rounding(values: np.ndarray) -> float:
    """Relative rounding step of the dtype; integers are exact and take float64's."""
    dtype = values.dtype if values.dtype.kind == "f" else np.dtype(np.float64)
    return float(np.finfo(dtype).eps)


def centred(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, V) -> deviations from the mean over images in float64, (V,) it varies."""
    step = rounding(values)
    values, finite = _finite(values)
    # From the first image first: a constant voxel then deviates by exactly 0.
    first = values[:1]
    deviation = values - first
    shift = deviation.mean(axis=0)
    deviation -= shift
    rms = np.sqrt(_dot(deviation, deviation) / len(values))
    varies = rms > step * np.abs(first[0] + shift)
    return deviation, finite & varies


def _pattern_correlation(
    measured: np.ndarray, predicted: np.ndarray
) -> tuple[np.ndarray, int]:
    """(Q, V), (M, V) -> (Q, M) correlations and the number of voxels used."""
    measured, predicted = np.asarray(measured), np.asarray(predicted)
    if measured.ndim != 2 or measured.shape[1:] != predicted.shape[1:]:
        raise errors.InputError(
            "predicted",
            "",
            f"shape {predicted.shape}",
            f"the voxels of measured, which is {measured.shape}",
            "Give arrays of the same voxels.",
        )
    parts = blocks(measured.shape[1])
    defined = np.concatenate(
        [
            np.isfinite(measured[:, b]).all(axis=0)
            & np.isfinite(predicted[:, b]).all(axis=0)
            for b in parts
        ]
        or [np.zeros(0, bool)]
    )
    num_voxels = int(defined.sum())
    if num_voxels < 3:
        raise errors.InputError(
            "measured",
            "",
            f"{num_voxels} of {defined.size} voxels with finite values",
            "at least 3",
            "Check that the responses and the predictions are finite.",
        )

    first_voxel = int(np.flatnonzero(defined)[0])

    def patterns(values: np.ndarray, block: slice) -> np.ndarray:
        # From the first voxel: a constant pattern then deviates by exactly 0.
        kept = values[:, block][:, defined[block]].astype(np.float64)
        return kept - values[:, first_voxel, None].astype(np.float64)

    both = (measured, predicted)
    shift = [
        np.sum([patterns(values, b).sum(axis=1) for b in parts], 0)[:, None]
        / num_voxels
        for values in both
    ]
    product = np.zeros((len(measured), len(predicted)))
    square = [np.zeros(len(measured)), np.zeros(len(predicted))]
    for b in parts:
        x, y = (patterns(values, b) - s for values, s in zip(both, shift, strict=True))
        product += x @ y.T
        square[0] += np.einsum("QV,QV->Q", x, x)
        square[1] += np.einsum("MV,MV->M", y, y)
    norm = []
    for values, s, total in zip(both, shift, square, strict=True):
        mean = values[:, first_voxel].astype(np.float64) + s[:, 0]
        varies = np.sqrt(total / num_voxels) > rounding(values) * np.abs(mean)
        norm.append(np.where(varies, np.sqrt(total), np.nan))
    return np.clip(product / np.outer(*norm), -1, 1), num_voxels
