"""Whether clusters are those of some subjects only, or of all.

Clusters are found again on one half of the subjects alone and matched to those of all.
The voxels of the other half are given to them. What a voxel is called by people who
are not its own is then compared with its cluster.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import sklearn.metrics

from ubrain_jax import errors
from ubrain_jax.atlas import clusters, pooled


class Agreement(NamedTuple):
    """Clusters of V voxels as other subjects have them; k clusters, S subjects.

    Attributes:
        label: (V,) int32 cluster by the other half of the subjects.
        share: (k, S) share of a subject's voxels in a cluster that the others put
            there too; NaN where the subject has none there.
        chance: (k, S) the same if its voxels were dealt out at random: the share of
            all its voxels that the others put in the cluster.
        rand: Adjusted Rand index between the clusters of one half of the subjects
            and those of the other, over all voxels: 0 by chance, 1 if equal.
        halves: Names of the subjects in each half.
    """

    label: np.ndarray
    share: np.ndarray
    chance: np.ndarray
    rand: float
    halves: tuple[tuple[str, ...], tuple[str, ...]]


def across_subjects(
    voxels: pooled.Pooled,
    found: clusters.Clusters,
    *,
    shared: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Agreement:
    """Clusters half of the subjects alone, and gives them the voxels of the rest.

    Args:
        voxels: That were clustered, of 2 subjects or more.
        found: Clusters of all of them.
        shared: As `clusters.fit`, for clusters of "function".
        seed: Of the halves and of the starts.

    Raises:
        errors.InputError: If there is one subject, or the clusters are of others.
        errors.ConfigError: If a half has fewer voxels than there are clusters.
    """
    present = np.unique(voxels.subject)
    if len(present) < 2 or len(found.label) != len(voxels.subject):
        raise errors.InputError(
            "subjects",
            "",
            f"{len(voxels.subject)} voxels of {len(present)} subjects, clusters of "
            f"{len(found.label)}",
            "the voxels that were clustered, of 2 subjects or more",
            "Pool more subjects.",
        )
    drawn = np.random.default_rng(seed).permutation(present)
    halves = [np.sort(some) for some in np.array_split(drawn, 2)]
    k = len(found.names)
    label = np.empty(len(voxels.subject), np.int32)
    both = []
    for own in halves:
        inside = np.isin(voxels.subject, own)
        alone = clusters.fit(
            voxels.take(inside),
            k,
            of=found.of,
            shared=shared,
            method=found.method,
            seed=seed,
        )
        everyone = clusters.assign(alone, voxels.embedding)
        both.append(everyone)
        partner, _ = clusters.match(alone.centre, found.centre)
        label[~inside] = partner[everyone[~inside]]
    share, chance = shares(voxels, found.label, label, k)
    rand = float(sklearn.metrics.adjusted_rand_score(*both))
    named = [tuple(voxels.names[s] for s in some) for some in halves]
    return Agreement(label, share, chance, rand, (named[0], named[1]))


def shares(
    voxels: pooled.Pooled, label: np.ndarray, others: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Agreement (k, S) of two labels of voxels, and what chance gives.

    Args:
        voxels: V voxels of S subjects.
        label: (V,) cluster of each.
        others: (V,) cluster by others.
        k: Number of clusters.
    """
    num_subjects = len(voxels.names)
    size, kept, called = (np.zeros((k, num_subjects)) for _ in range(3))
    np.add.at(size, (label, voxels.subject), 1)
    same = label == others
    np.add.at(kept, (label[same], voxels.subject[same]), 1)
    np.add.at(called, (others, voxels.subject), 1)
    with np.errstate(invalid="ignore"):
        chance = called / np.bincount(voxels.subject, minlength=num_subjects)
        return kept / size, np.where(size > 0, chance, np.nan)
