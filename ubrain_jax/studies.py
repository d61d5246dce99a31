"""Scores of many runs beside each other: means over seeds, paired tests, tables.

A study is a set of cells, each a workdir with metrics.json and voxels/NAME.zarr.
This module reads them and computes; it starts no run, and `maps` shows what is found.
"""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray

from ubrain_jax import errors, significance

# Seeds (or subjects) from which the paired test is of ranks: with 5 pairs the
# smallest two-sided p of a signed-rank test is 1/16.
RANKS_FROM = 6


class Score(NamedTuple):
    """One subject in one cell; NaN where undefined.

    Attributes:
        median_r: Over voxels, of the correlation over test pictures.
        mean_r: The same, mean.
        median_normalised: Median of r / ceiling; NaN where no ceiling is known.
        top1: Share of test pictures ranked first.
        top5: Share ranked fifth or better.
        pool: Pictures ranked.
        voxels: V.
        test_images: M.
        step: Of the weights that were scored.
        seconds: Wall time of the cell; NaN where it was interrupted.
    """

    median_r: float
    mean_r: float
    median_normalised: float
    top1: float
    top5: float
    pool: int
    voxels: int
    test_images: int
    step: int
    seconds: float


class Spread(NamedTuple):
    """Mean and SD (of a sample, N - 1) of the defined values, and their number."""

    mean: float
    sd: float
    num: int


class VoxelTest(NamedTuple):
    """Paired comparison of V voxels.

    Attributes:
        num: Voxels compared.
        left_out: Voxels undefined in one of the two.
        equal: Of those compared, voxels without a difference.
        median_difference: Of first minus second.
        share_better: Share of the compared voxels where the first is higher.
        p: Two-sided, Wilcoxon signed-rank; NaN if nothing differs.
    """

    num: int
    left_out: int
    equal: int
    median_difference: float
    share_better: float
    p: float


class PairTest(NamedTuple):
    """Paired comparison of a few runs or subjects.

    Attributes:
        num: Pairs.
        better: Of those, pairs in which the first is higher.
        mean_difference: Of first minus second.
        sd: Of the differences.
        test: "paired t", "Wilcoxon", or "" where none was made.
        p: Two-sided; NaN where there is no test.
    """

    num: int
    better: int
    mean_difference: float
    sd: float
    test: str
    p: float


# Where nothing is compared voxel by voxel.
NO_VOXELS = VoxelTest(0, 0, 0, math.nan, math.nan, math.nan)


def read_score(folder: str | os.PathLike, subject: str) -> Score:
    """A subject's scores from the metrics.json of a finished cell.

    Raises:
        errors.InputError: If the file cannot be read or lacks the subject.
    """
    path = pathlib.Path(folder) / "metrics.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        own, step = found["subjects"][subject], int(found["step"])
        ranks = own["retrieval"]
        values = (
            own["pearson"]["median"],
            own["pearson"]["mean"],
            own["noise_normalised"]["median"],
            ranks["top1"],
            ranks["top5"],
        )
        r, mean, normalised, top1, top5 = (
            math.nan if value is None else float(value) for value in values
        )
        pool, voxels = int(ranks["pool"]), int(own["num_voxels"])
        images = int(own["num_test_images"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, subject, error) from error
    return Score(r, mean, normalised, top1, top5, pool, voxels, images, step, math.nan)


def read_warnings(folders: Iterable[str | os.PathLike]) -> list[str]:
    """What cells say that a reader must know first, each sentence once."""
    found: dict[str, None] = {}
    for folder in folders:
        path = pathlib.Path(folder) / "metrics.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found |= dict.fromkeys(map(str, content["warnings"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(path, "warnings", error) from error
    return list(found)


def read_voxels(
    folder: str | os.PathLike,
    subject: str,
    columns: Sequence[str] = ("pearson", "position"),
) -> xarray.Dataset:
    """Columns of a subject's per-voxel table of a finished cell, in memory.

    Raises:
        errors.InputError: If it is absent or damaged.
    """
    path = pathlib.Path(folder) / "voxels" / f"{subject}.zarr"
    try:
        with xarray.open_zarr(path) as table:
            return table[list(columns)].load()
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(path, "", error) from error


def _unreadable(path: pathlib.Path, where: str, error: Exception) -> errors.InputError:
    return errors.InputError(
        path,
        where,
        f"cannot be read ({error!r})",
        "the scores of a finished cell",
        "Delete the folder of this cell, and run the command again.",
    )


def seed_mean(folders: Sequence[str | os.PathLike], subject: str) -> np.ndarray:
    """Correlation of each voxel, averaged over cells that differ in the seed.

    Args:
        folders: Of the cells, one or more.
        subject: Whose voxels.

    Returns:
        (V,) float64; NaN where a voxel is undefined in any cell.

    Raises:
        errors.InputError: If the cells are of other voxels.
    """
    tables = [read_voxels(folder, subject) for folder in folders]
    first = tables[0].position.values
    for folder, table in zip(folders, tables, strict=True):
        if not np.array_equal(table.position.values, first):
            raise errors.InputError(
                folder,
                f"voxels/{subject}.zarr",
                "other voxels",
                f"those of {folders[0]}",
                "Delete the folder of this cell, and run the command again.",
            )
    stacked = np.stack([t.pearson.values for t in tables]).astype(np.float64)
    return np.where(np.isfinite(stacked).all(0), stacked.mean(0), np.nan)


def spread(values: Iterable[float]) -> Spread:
    """Mean and SD of the defined values.

    Example:
        >>> spread([1.0, 3.0, float("nan")])
        Spread(mean=2.0, sd=1.4142135623730951, num=2)
    """
    given = np.asarray(list(values), np.float64)
    given = given[np.isfinite(given)]
    mean = float(given.mean()) if len(given) else math.nan
    sd = float(given.std(ddof=1)) if len(given) > 1 else math.nan
    return Spread(mean, sd, len(given))


def spreads(scores: Sequence[Score]) -> dict[str, Spread]:
    """`spread` of each field over seeds; top1 and top5 in percent.

    Raises:
        errors.InputError: If the pools differ: a mean of their top-1 means nothing.
    """
    pools = {score.pool for score in scores}
    if len(pools) > 1:
        raise errors.InputError(
            "metrics.json",
            "retrieval: pool",
            f"pools of {', '.join(map(str, sorted(pools)))} pictures",
            "one pool in all cells of a row",
            "Score all cells on the same test pictures.",
        )
    factors = {"top1": 100, "top5": 100}
    return {
        key: spread(factors.get(key, 1) * getattr(score, key) for score in scores)
        for key in Score._fields
    }


def compare_voxels(a: np.ndarray, b: np.ndarray) -> VoxelTest:
    """Compares two scores (V,) of the same voxels.

    NaN in either leaves the voxel out. p is exact for few voxels and of the normal
    approximation for many, as scipy's method "auto" has it.

    Raises:
        ValueError: If the lengths differ.

    References:
        Wilcoxon 1945, Biometrics Bulletin 1: 80-83.
    """
    if np.shape(a) != np.shape(b):
        raise ValueError(f"scores of {np.shape(a)} and {np.shape(b)} voxels")
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    defined = difference[np.isfinite(difference)]
    some = len(defined) > 0
    return VoxelTest(
        len(defined),
        len(difference) - len(defined),
        int(np.sum(defined == 0)),
        float(np.median(defined)) if some else math.nan,
        float(np.mean(defined > 0)) if some else math.nan,
        significance.signed_rank(defined),
    )


def compare_pairs(a: Sequence[float], b: Sequence[float]) -> PairTest:
    """Compares runs or subjects pair by pair; pairs with NaN are left out.

    Example:
        >>> compare_pairs([0.3, 0.4], [0.2, 0.3]).test  # equal differences: no t
        ''
        >>> round(compare_pairs([0.3, 0.5], [0.2, 0.3]).p, 4)
        0.2048
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    difference = difference[np.isfinite(difference)]
    mean, sd, num = spread(difference)
    test, p = "", math.nan
    if num >= RANKS_FROM:
        test, p = "Wilcoxon", significance.signed_rank(difference)
    elif num >= 2 and sd > 1e-12 * abs(mean):
        import scipy.stats  # here: it takes a second

        found: Any = scipy.stats.ttest_1samp(difference, 0)
        test, p = "paired t", float(found.pvalue)
    better = int(np.sum(difference > 0))
    return PairTest(num, better, mean, sd, test if math.isfinite(p) else "", p)


def holm(p: Sequence[float]) -> list[float]:
    """P values corrected for their number; NaN stays and does not count.

    Example:
        >>> holm([0.01, 0.04, float("nan"), 0.03])
        [0.03, 0.06, nan, 0.06]

    References:
        Holm 1979, Scandinavian Journal of Statistics 6: 65-70.
    """
    given = np.asarray(p, np.float64)
    rows = np.flatnonzero(np.isfinite(given))
    order = rows[np.argsort(given[rows], kind="stable")]
    factor = len(order) - np.arange(len(order))
    out = np.full(given.shape, np.nan)
    out[order] = np.minimum(1, np.maximum.accumulate(given[order] * factor))
    return out.tolist()


class Side(NamedTuple):
    """One arm of a comparison: cells that differ in the seed.

    Attributes:
        voxels: (V,) correlation averaged over seeds, NaN where undefined.
        medians: Median correlation, for each seed.
    """

    voxels: np.ndarray
    medians: list[float]


def read_side(folders: Sequence[str | os.PathLike], subject: str) -> Side:
    """A subject's side of a comparison, from finished cells, one for each seed."""
    medians = [read_score(folder, subject).median_r for folder in folders]
    return Side(seed_mean(folders, subject), medians)


def compare_sides(pairs: Sequence[tuple[Side, Side]]) -> list[dict[str, Any]]:
    """The rows of one table of tests; the same seeds on all sides, in order."""
    return comparison_rows(
        [
            (compare_voxels(a.voxels, b.voxels), compare_pairs(a.medians, b.medians))
            for a, b in pairs
        ]
    )


def comparison_rows(
    pairs: Sequence[tuple[VoxelTest, PairTest]], pairs_of: str = "seeds"
) -> list[dict[str, Any]]:
    """One table of tests, as rows of tests.csv.

    Args:
        pairs: The two tests of each row; p values are corrected over the rows.
        pairs_of: What the second one compares.
    """
    corrected = [holm([pair[k].p for pair in pairs]) for k in (0, 1)]
    return [
        {
            "voxels": voxels.num,
            "voxels_left_out": voxels.left_out,
            "voxels_equal": voxels.equal,
            "median_difference": voxels.median_difference,
            "share_better": voxels.share_better,
            "p_voxels": voxels.p,
            "p_voxels_holm": p,
            "pairs_of": pairs_of,
            "pairs": few.num,
            "pairs_better": few.better,
            "pair_mean_difference": few.mean_difference,
            "pair_sd": few.sd,
            "pair_test": few.test,
            "p_pairs": few.p,
            "p_pairs_holm": q,
        }
        for (voxels, few), p, q in zip(pairs, *corrected, strict=True)
    ]
