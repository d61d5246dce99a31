"""A table of clusters: whose voxels, in which regions, how well predicted.

How to read the tests: whether a region has more voxels of a cluster than its share is
told by the hypergeometric distribution, one-sided, among the voxels of those subjects
who have the region; q is p after Benjamini and Hochberg over all clusters and regions.
Neighbouring voxels are not independent, so p is too small: read how many times more
first.
"""

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from ubrain_jax import errors, significance
from ubrain_jax.atlas import cluster_agreement, clusters, pooled
from ubrain_jax.maps import tables


class Region(NamedTuple):
    """How many voxels of a cluster lie in a region.

    Attributes:
        name: Of the region.
        inside: Voxels of the cluster there.
        expected: If the voxels of the region were drawn from all voxels of the
            subjects who have it.
        fold: inside / expected; NaN where none is expected.
        p: Of so many or more by chance; NaN where none is expected.
        q: p after Benjamini and Hochberg, over all clusters and regions.
    """

    name: str
    inside: int
    expected: float
    fold: float
    p: float
    q: float


class Row(NamedTuple):
    """One cluster.

    Attributes:
        name: Of the cluster.
        size: Voxels.
        share: Of all voxels.
        subjects: Voxels of each subject, in the order of `Pooled.names`.
        left: Voxels in the left hemisphere.
        right: In the right one.
        unknown: Where that is not known.
        mean_score: Over voxels with a score; NaN if there is none.
        median_score: The same.
        agreement: Mean over subjects of `cluster_agreement.Agreement.share`; NaN
            where it was not measured.
        chance: What it would be by chance.
        regions: In the order of `Pooled.roi_names`.
    """

    name: str
    size: int
    share: float
    subjects: tuple[int, ...]
    left: int
    right: int
    unknown: int
    mean_score: float
    median_score: float
    agreement: float
    chance: float
    regions: tuple[Region, ...]


def table(
    voxels: pooled.Pooled,
    found: clusters.Clusters | clusters.Cut,
    others: np.ndarray | None = None,
) -> list[Row]:
    """One row for each cluster.

    Args:
        voxels: That were clustered.
        found: Their clusters, or those merged.
        others: (V,) clusters by other subjects, from
            `cluster_agreement.across_subjects` (through `group` if merged); None: not
            measured.

    Raises:
        errors.InputError: If the clusters are of other voxels.
    """
    k, label = len(found.names), found.label
    given = [len(label)] + ([] if others is None else [len(others)])
    if any(count != len(voxels.subject) for count in given):
        raise errors.InputError(
            "clusters",
            "",
            f"of {' and '.join(map(str, given))} voxels",
            f"of these {len(voxels.subject)}",
            "Give the voxels that were clustered.",
        )
    agreement = chance = np.full((k, len(voxels.names)), np.nan)
    if others is not None:
        agreement, chance = cluster_agreement.shares(voxels, label, others, k)
    regions = enrichment(voxels, label, k)
    rows = []
    for c, name in enumerate(found.names):
        inside = label == c
        side, score = voxels.hemisphere[inside], voxels.score[inside]
        score = score[np.isfinite(score)].astype(float)
        whose = np.bincount(voxels.subject[inside], minlength=len(voxels.names))
        rows.append(
            Row(
                name=name,
                size=int(inside.sum()),
                share=float(inside.mean()),
                subjects=tuple(map(int, whose)),
                left=int((side == pooled.LEFT).sum()),
                right=int((side == pooled.RIGHT).sum()),
                unknown=int((side == pooled.UNKNOWN).sum()),
                mean_score=float(score.mean()) if len(score) else math.nan,
                median_score=float(np.median(score)) if len(score) else math.nan,
                agreement=_mean(agreement[c]),
                chance=_mean(chance[c]),
                regions=regions[c],
            )
        )
    return rows


def _mean(values: np.ndarray) -> float:
    """Over those that are defined; NaN where none is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def enrichment(
    voxels: pooled.Pooled, label: np.ndarray, k: int
) -> list[tuple[Region, ...]]:
    """Regions of each of k clusters, tested.

    Args:
        voxels: V voxels, R regions.
        label: (V,) cluster of each.
        k: Number of clusters.

    Returns:
        R regions for each cluster.
    """
    num_regions = len(voxels.roi_names)
    inside, total, of_cluster, of_region = (
        np.zeros((k, num_regions), np.int64) for _ in range(4)
    )
    for r in range(num_regions):
        member = voxels.roi[:, r]
        # Others were not asked: their voxels are no evidence against the region.
        asked = np.isin(voxels.subject, np.unique(voxels.subject[member]))
        inside[:, r] = np.bincount(label[member], minlength=k)
        of_cluster[:, r] = np.bincount(label[asked], minlength=k)
        total[:, r], of_region[:, r] = asked.sum(), member.sum()
    possible = (of_cluster > 0) & (of_region > 0)
    expected = of_cluster * of_region / np.maximum(total, 1)
    p, fold = (np.full(inside.shape, np.nan) for _ in range(2))
    p[possible] = scipy.stats.hypergeom.sf(
        inside[possible] - 1,
        total[possible],
        of_region[possible],
        of_cluster[possible],
    )
    p = np.clip(p, 0, 1)
    fold[possible] = inside[possible] / expected[possible]
    q = significance.false_discovery(p)
    columns = (inside, expected, fold, p, q)
    return [
        tuple(
            Region(name, int(inside[c, r]), *(float(x[c, r]) for x in columns[1:]))
            for r, name in enumerate(voxels.roi_names)
        )
        for c in range(k)
    ]


def write_csv(
    path: str | os.PathLike, rows: Sequence[Row], subjects: Sequence[str]
) -> None:
    """Writes the table: a line for each cluster, without its regions.

    Args:
        path: File to write, UTF-8.
        rows: From `table`.
        subjects: `Pooled.names`; a column "voxels NAME" for each.

    Raises:
        errors.OutputError: If it cannot be written.
    """
    fields = [n for n in Row._fields if n not in ("subjects", "regions")]
    at = fields.index("share") + 1
    head = [*fields[:at], *(f"voxels {name}" for name in subjects), *fields[at:]]
    lines = []
    for row in rows:
        values = [getattr(row, name) for name in fields]
        lines.append([*values[:at], *row.subjects, *values[at:]])
    tables.write_csv(path, [head, *lines])


def write_regions_csv(path: str | os.PathLike, rows: Sequence[Row]) -> None:
    """Writes a line for each cluster and region.

    Args:
        path: File to write, UTF-8.
        rows: From `table`.

    Raises:
        errors.OutputError: If it cannot be written.
    """
    lines = [(row.name, *region) for row in rows for region in row.regions]
    tables.write_csv(path, [("cluster", "region", *Region._fields[1:]), *lines])
