"""How many clusters: as many as two halves of the voxels agree upon.

Two numbers are measured for each k. Stability: clusters are found on each of two random
halves of the voxels, all voxels are given to both, and the adjusted Rand index says how
well the two agree; the same for two starts on one half. Likelihood: how probable the
directions in one half are under the clusters of the other, which tells whether more
clusters describe voxels that they have not seen better.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import sklearn.metrics

from ubrain_jax import errors
from ubrain_jax.atlas import clusters, pooled

CANDIDATES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
# Voxels looked at: what a number of clusters depends on is seen in so many.
MOST = 8_000
# Starts of k-means, of which the best counts: fewer than in `clusters.fit`.
_STARTS = 3
# Below this agreement no number of clusters is called stable.
STABLE = 0.6


class Candidate(NamedTuple):
    """What was measured for one number of clusters.

    Attributes:
        k: Number of clusters.
        stability: Mean adjusted Rand index between clusters of two halves.
        stability_sd: Over pairs of halves.
        starts: Mean index between two starts on one half.
        starts_sd: Over halves.
        likelihood: Mean log-likelihood of a voxel of the other half, in nats.
        likelihood_sd: Over halves.
    """

    k: int
    stability: float
    stability_sd: float
    starts: float
    starts_sd: float
    likelihood: float
    likelihood_sd: float


class Choice(NamedTuple):
    """The number of clusters and why.

    Attributes:
        k: The number.
        reason: In words.
        candidates: What was measured, by rising k.
        voxels: How many voxels were looked at.
        repeats: Pairs of halves.
    """

    k: int
    reason: str
    candidates: tuple[Candidate, ...]
    voxels: int
    repeats: int


def choose_k(
    voxels: pooled.Pooled,
    candidates: Sequence[int] | None = None,
    *,
    of: str = "embedding",
    shared: Mapping[str, Any] | None = None,
    method: str = "kmeans",
    repeats: int = 5,
    most: int = MOST,
    seed: int = 0,
) -> Choice:
    """Proposes a number of clusters.

    Of the numbers whose stability is within one standard deviation of the best, the
    one with the highest likelihood: stability alone favours few clusters, likelihood
    alone many.

    Args:
        voxels: That will be clustered.
        candidates: Numbers of clusters, 2 or more; default: those of `CANDIDATES`
            with 5 voxels of a half or more for each cluster.
        of: As `clusters.fit`.
        shared: As there.
        method: As there.
        repeats: Pairs of halves.
        most: Voxels looked at, drawn at random if there are more.
        seed: Of halves and starts.

    Raises:
        errors.ConfigError: If a number is out of range for half of the voxels.
        errors.InputError: As `clusters.fit`.
    """
    rng = np.random.default_rng(seed)
    rows = np.arange(len(voxels.embedding))
    if len(rows) > most:
        rows = np.sort(rng.choice(rows, most, replace=False))
    matrix = clusters.matrix_of(of, shared)
    directions = clusters.unit(voxels.embedding[rows], matrix)
    half = len(directions) // 2
    if candidates is None:
        candidates = [k for k in CANDIDATES if 5 * k <= half]
    numbers = sorted(set(candidates))
    if not numbers or numbers[0] < 2 or numbers[-1] > half or repeats < 1:
        raise errors.ConfigError(
            "candidates",
            "",
            f"{', '.join(map(str, numbers)) or 'none'} clusters, {repeats} repeats, "
            f"{len(directions)} voxels",
            f"numbers in 2..{half}, half of the voxels, and 1 repeat or more",
            "Change the numbers, or lower the least score of a voxel.",
        )
    halves = [
        np.array_split(rng.permutation(len(directions)), 2) for _ in range(repeats)
    ]
    measured = tuple(_measure(directions, k, halves, method, seed) for k in numbers)
    k, reason = decide(measured)
    return Choice(k, reason, measured, len(directions), repeats)


def decide(candidates: Sequence[Candidate]) -> tuple[int, str]:
    """The number chosen among those measured, and the reason.

    Example:
        >>> a = Candidate(4, 0.9, 0.05, 1, 0, 10, 1)
        >>> b = Candidate(8, 0.87, 0.05, 1, 0, 12, 1)
        >>> c = Candidate(16, 0.6, 0.05, 1, 0, 15, 1)
        >>> decide([a, b, c])[0]
        8
    """
    best = max(candidates, key=lambda c: c.stability)
    bound = best.stability - best.stability_sd
    stable = [c for c in candidates if c.stability >= bound]
    chosen = max(stable, key=lambda c: c.likelihood)
    listed = ", ".join(str(c.k) for c in stable)
    reason = (
        f"{chosen.k} clusters: halves of the voxels agree best at k = {best.k} "
        f"(adjusted Rand index {best.stability:.2f} ± {best.stability_sd:.2f}); "
    )
    if len(stable) > 1:
        reason += (
            f"within one standard deviation are k = {listed}, of which {chosen.k} has "
            f"the highest held-out likelihood ({chosen.likelihood:.2f} per voxel)."
        )
    else:
        reason += "no other number is within one standard deviation."
    if best.stability < STABLE:
        reason += (
            f" No number is stable (index below {STABLE:g}): the voxels form a "
            "continuum, and borders between these clusters are arbitrary."
        )
    return chosen.k, reason


def _measure(
    directions: np.ndarray,
    k: int,
    halves: Sequence[Sequence[np.ndarray]],
    method: str,
    seed: int,
) -> Candidate:
    """One number of clusters over all pairs of halves."""
    between, within, likely = [], [], []
    for repeat, (first, second) in enumerate(halves):
        start = seed + 2 * repeat
        parts = [(first, start), (second, start), (first, start + 1)]
        found = [
            clusters.find(
                directions[rows], k, method=method, seed=number, starts=_STARTS
            )
            for rows, number in parts
        ]
        label = [clusters.nearest(directions, *one) for one in found]
        index = sklearn.metrics.adjusted_rand_score
        between.append(index(label[0], label[1]))
        within.append(index(label[0], label[2]))
        for own, other, n in ((first, second, 0), (second, first, 1)):
            model = found[n][1]
            if model is None:
                model = of_labels(directions[own], label[n][own], k)
            score = clusters.model_of(model).score(directions[other].astype(float))
            likely.append(score)
    pairs = [(np.mean(x), np.std(x)) for x in (between, within, likely)]
    return Candidate(k, *(float(value) for pair in pairs for value in pair))


def of_labels(directions: np.ndarray, label: np.ndarray, k: int) -> clusters.Mixture:
    """The mixture that k-means stands for: round components of one variance."""
    size = np.bincount(label, minlength=k)
    mean = np.zeros((k, directions.shape[1]))
    np.add.at(mean, label, directions)
    mean /= np.maximum(size, 1)[:, None]
    # Of unit vectors: E |x - m|^2 = 1 - |m|^2.
    lost = 1 - np.sum(size * np.sum(mean**2, axis=1)) / len(label)
    variance = max(lost / directions.shape[1], 1e-6)
    return clusters.Mixture(
        np.maximum(size, 1) / np.maximum(size, 1).sum(),
        mean,
        np.full(mean.shape, variance),
    )
