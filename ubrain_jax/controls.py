"""Controls for leaks: scores of predictions that cannot know the picture.

Each must be at chance. One that is above it says that the comparison of patterns, and
not the encoder, finds the picture, so that the subject's scores mean nothing.
"""

from typing import Any

import numpy as np

from ubrain_jax import metrics

# A control above chance by accident is as rare as this, for each score.
LEVEL = 0.001


def scores(
    measured: np.ndarray, predicted: np.ndarray, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Forced choice and retrieval where the predictions say nothing of the picture.

    shuffled_voxels: each predicted pattern has its voxels in an order of its own.
        One order for all pictures would keep how far the pictures are from the mean,
        and with patterns of few dimensions that strays from chance far more than its
        number of pictures allows.
    mean_pattern: the mean prediction over pictures stands for each; 0.5 and rank M by
        ties.
    wrong_image: each picture has the prediction of another one.

    Args:
        measured: (M, V) responses, repeats averaged.
        predicted: (M, V) predictions for the same images and voxels.
        seed: Of orders and exchanges.

    Returns:
        For each control: two_afc, reverse_two_afc, top1 and pool.

    Raises:
        errors.InputError: As `metrics.similarity`.
    """
    return scores_in(metrics.similarity(measured, predicted), measured, predicted, seed)


def scores_in(
    found: metrics.Similarity,
    measured: np.ndarray,
    predicted: np.ndarray,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """`scores` where the correlations of the true pairs are known."""
    rng = np.random.default_rng(seed)
    size = len(predicted)
    # Along one ring through all images: each has another's prediction.
    ring = rng.permutation(size)
    other = np.empty(size, int)
    other[ring] = np.roll(ring, 1)
    with np.errstate(invalid="ignore"):  # infinite values, whose voxels are left out
        mean = np.asarray(np.mean(predicted, axis=0, dtype=np.float64))
    with_mean = metrics.pattern_correlation(measured, mean[None])
    correlations = {
        "shuffled_voxels": _shuffled(found, measured, predicted, rng),
        "mean_pattern": np.repeat(with_mean, size, axis=1),
        "wrong_image": found.correlation[:, other],
    }
    table = {}
    for name, correlation in correlations.items():
        changed = found._replace(correlation=correlation)
        choice = metrics.two_afc_in(changed)
        table[name] = {
            "two_afc": choice.mean,
            "reverse_two_afc": choice.reverse_mean,
            "top1": metrics.retrieval_in(changed).top1,
            "pool": choice.pool,
        }
    return table


def above_chance(table: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each score of a control that accident does not explain.

    An image's share counts as one toss of a coin, which spreads more than any share
    does; a first rank has one chance in the pool.

    Args:
        table: From `scores`.

    Example:
        >>> fair = {"two_afc": 0.52, "reverse_two_afc": 0.5, "top1": 0.02, "pool": 100}
        >>> above_chance({"wrong_image": fair})
        []
        >>> above_chance({"wrong_image": {**fair, "two_afc": 0.7}})
        ['wrong_image has two_afc 0.700 where chance is 0.500 (pool 100, p = 4e-05)']
    """
    from scipy import stats  # here: it takes a second

    lines = []
    for name, found in table.items():
        pool = found["pool"]
        chances = {"two_afc": 0.5, "reverse_two_afc": 0.5, "top1": 1 / pool}
        for score, chance in chances.items():
            hits = np.floor(found[score] * pool + 1e-9)
            p = float(stats.binom.sf(hits - 1, pool, chance))
            if p < LEVEL:
                lines.append(
                    f"{name} has {score} {found[score]:.3f} where chance is "
                    f"{chance:.3f} (pool {pool}, p = {p:.0e})"
                )
    return lines


def _shuffled(
    found: metrics.Similarity,
    measured: np.ndarray,
    predicted: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """(M, M) correlations with each prediction's voxels in another order.

    An order is one for all, turned by a number of places for each image: so it is
    made block by block, without a second (M, V) array.
    """
    size = len(predicted)
    defined = np.isfinite(measured).all(0) & np.isfinite(predicted).all(0)
    voxels = np.flatnonzero(defined)
    order = rng.permutation(voxels)
    start = rng.integers(len(voxels), size=(size, 1))
    both = (measured, predicted)
    mean = [
        np.mean(x, axis=1, where=defined, dtype=np.float64, keepdims=True) for x in both
    ]
    product, square = np.zeros((size, size)), np.zeros((2, size))
    for first in range(0, len(voxels), metrics.BLOCK_VOXELS):
        at = np.arange(first, min(first + metrics.BLOCK_VOXELS, len(voxels)))
        x = measured[:, voxels[at]] - mean[0]
        turned = order[(at + start) % len(voxels)]  # (M, block)
        y = np.take_along_axis(predicted, turned, axis=1) - mean[1]
        product += x @ y.T
        square += np.sum(x * x, 1), np.sum(y * y, 1)
    # Where a pattern is constant there is no correlation, in any order.
    undefined = np.isnan(found.correlation)
    norm = np.sqrt(np.where(square > 0, square, 1))
    return np.where(undefined, np.nan, product / np.outer(*norm))
