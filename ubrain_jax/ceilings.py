"""Noise ceilings from repeats, and scores as shares of them.

A ceiling here is that of R2: the share of the variance of the averaged responses that
repeats, in [0, 1). `metrics.noise_ceiling` makes it of a dataset's ncsnr; `split_half`
makes it of the single presentations. A correlation's ceiling is its root.

References:
    Spearman 1910, British Journal of Psychology 3: 271-295; Brown 1910, ibid. 296-322.
    Schoppe et al. 2016, Frontiers in Computational Neuroscience 10: 10 (measures of
    performance with a finite number of repeats).
"""

import numpy as np

from ubrain_jax import errors, metrics


def split_half(responses: np.ndarray, splits: int = 100, seed: int = 0) -> np.ndarray:
    """Noise ceiling of R2 for the average over all presentations, by halving them.

    In each split the k presentations of an image fall at random into halves of
    floor(k/2) and ceil(k/2), and either half into A or B. r is the correlation over
    images of the means of A and of B, averaged over splits. For signal variance x in
    units of the noise variance of one presentation

        r = x / sqrt((x + a) (x + b)),  a, b = mean over images of 1 / size of A, of B

    which is solved for x; the ceiling is x / (x + mean of 1/k). With k even and the
    same everywhere that is Spearman and Brown's 2 r / (1 + r); the form above also
    holds for odd and unequal k. Images with one presentation are in no half, but
    count in the mean of 1/k.

    Time and memory are those of the responses, times `splits`, a block of voxels at a
    time.

    Args:
        responses: (M, R, V) single presentations, normalised, not averaged. An image
            with fewer than R has NaN in all voxels for the missing ones.
        splits: Number of random halvings.
        seed: Of the halvings.

    Returns:
        (V,) float64 in [0, 1]; 0 where r <= 0. NaN where a half is constant, or where
        a presentation that is there has a value that is not finite.

    Raises:
        errors.InputError: If fewer than 3 images have 2 presentations, an image has
            none, or no split is asked for.

    Example:
        >>> signal = np.arange(6.0)[:, None, None]
        >>> noise = np.array([[1, -1, 1, -1, 1, -1], [1, 1, -1, -1, 1, -1]]).T
        >>> split_half(signal + noise[:, :, None]).round(2)
        array([0.88])
    """
    responses = np.asarray(responses)
    if responses.ndim != 3 or splits < 1:
        raise errors.InputError(
            "responses",
            "",
            f"shape {responses.shape}, {splits} splits",
            "(images, presentations, voxels) and 1 split or more",
            "Give single presentations, not their averages.",
        )
    images, _, voxels = responses.shape
    there = np.logical_not(np.isnan(responses).all(axis=2))
    repeats = there.sum(axis=1)
    twice = np.flatnonzero(repeats >= 2)
    if len(twice) < 3 or not np.all(repeats >= 1):
        raise errors.InputError(
            "responses",
            "",
            f"{len(twice)} of {images} images with 2 presentations or more, "
            f"{int(np.sum(repeats == 0))} with none",
            "3 or more, and none without",
            "Use a ceiling from ncsnr, or images that were shown again.",
        )
    size = max(1, 2**22 // max(1, responses[:, :, 0].size))
    rng = np.random.default_rng(seed)
    halves = [_halves(there[twice], rng) for _ in range(splits)]
    ceiling = np.full(voxels, np.nan)
    for start in range(0, voxels, size):
        block = responses[:, :, start : start + size].astype(np.float64)
        finite = (np.isfinite(block) | ~there[:, :, None]).all(axis=(0, 1))
        block = np.where(there[:, :, None] & finite, block, 0)[twice]
        total = np.zeros(block.shape[2])
        inverse = np.zeros(2)
        for in_a in halves:
            in_b = there[twice] & ~in_a
            means, sizes = [], []
            for half in (in_a, in_b):
                count = half.sum(axis=1)
                sums = np.einsum("MR,MRV->MV", half.astype(np.float64), block)
                means.append(sums / count[:, None])
                sizes.append(np.mean(1 / count))
            total += metrics.pearson(*means)
            inverse += sizes
        a, b = inverse / splits
        x = _signal(np.where(finite, total / splits, np.nan), float(a), float(b))
        ceiling[start : start + size] = _share(x, float(np.mean(1 / repeats)))
    return ceiling


def _halves(there: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(M, R) bool -> (M, R) bool: which presentations are in half A."""
    order = np.argsort(np.where(there, rng.random(there.shape), 2), axis=1)
    place = np.argsort(order, axis=1)  # of each presentation, missing ones last
    count = there.sum(axis=1)
    # Either half may be the larger one.
    first = (count + rng.integers(0, 2, len(count))) // 2
    return there & (place < first[:, None])


def _signal(r: np.ndarray, a: float, b: float) -> np.ndarray:
    """x >= 0 with r = x / sqrt((x + a) (x + b)); infinite for r = 1."""
    r = np.where(r > 0, r, np.where(np.isnan(r), np.nan, 0))
    left = 1 - r**2
    root = np.sqrt((r**2 * (a + b)) ** 2 + 4 * left * r**2 * a * b)
    with np.errstate(divide="ignore"):
        return (r**2 * (a + b) + root) / (2 * left)


def _share(x: np.ndarray, noise: float) -> np.ndarray:
    """x / (x + noise), 1 where x is infinite."""
    with np.errstate(divide="ignore"):
        return 1 / (1 + noise / x)


def noise_normalised_r2(pearson: np.ndarray, ceiling: np.ndarray) -> np.ndarray:
    """Explainable variance that is explained, r^2 with its sign, over the ceiling.

    r |r| / NC: 1 for the true response whatever the noise, and negative where the
    prediction goes the wrong way, so that a median over voxels of noise stays near 0
    (r^2 alone is positive by accident). Not clipped, as `metrics.noise_normalised`,
    whose signed square it is; scale and offset do not count, unlike in R2.

    Args:
        pearson: (V,) correlation.
        ceiling: (V,) noise ceiling of R2 as a fraction.

    Returns:
        (V,) float64. NaN where the correlation is undefined, or the ceiling is 0 or
        unknown.

    Example:
        >>> noise_normalised_r2(np.array([0.4, -0.4, 0.4]), np.array([0.25, 0.25, 0]))
        array([ 0.64, -0.64,   nan])
    """
    normalised = metrics.noise_normalised(pearson, ceiling)
    return normalised * np.abs(normalised)
