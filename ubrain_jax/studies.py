"""Scores of many runs beside each other: means over seeds, paired tests, tables.

A study is a set of cells, each a workdir with metrics.json and voxels/NAME.zarr.
This module reads them and computes; it starts no run and draws nothing.
"""

import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
import xarray

from ubrain_jax import errors, metrics

# Seeds (or subjects) from which the paired test is of ranks: with 5 pairs the
# smallest two-sided p of a signed-rank test is 1/16.
RANKS_FROM = 6

READING_TESTS = """\
- Over voxels: Wilcoxon's signed-rank test of the differences between two arms of each
  voxel's correlation, averaged over seeds (plain mean); two-sided, equal values left
  out (scipy's zero_method "wilcox"). A voxel without a value in any seed of either
  arm is left out of the pair and counted. **Neighbouring voxels are not independent,
  so this p is too small**: it says that the difference is no accident of single
  voxels of this brain, not that another brain would show it. Read the size of the
  difference first.
- Over seeds: the differences of the median correlation between runs with the same
  seed; a paired t-test with 2 to 5 seeds, Wilcoxon's signed-rank test with 6 or more.
  Seeds share brain and test pictures: this p says nothing of other brains.
- Holm's correction is over the rows of each table, for each of the two tests alone.
"""


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
        mean_difference: Of first minus second.
        sd: Of the differences.
        test: "paired t", "Wilcoxon", or "" where none was made.
        p: Two-sided; NaN where there is no test.
    """

    num: int
    mean_difference: float
    sd: float
    test: str
    p: float


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
        values = [
            *(own["pearson"][key] for key in ("median", "mean")),
            own["noise_normalised"]["median"],
            *(ranks[key] for key in ("top1", "top5")),
        ]
        numbers = [math.nan if v is None else float(v) for v in values]
        counts = int(ranks["pool"]), int(own["num_voxels"]), int(own["num_test_images"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, subject, error) from error
    return Score(*numbers, *counts, step, math.nan)


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


def read_voxels(folder: str | os.PathLike, subject: str) -> xarray.Dataset:
    """A subject's per-voxel table of a finished cell, in memory.

    Raises:
        errors.InputError: If it is absent or damaged.
    """
    path = pathlib.Path(folder) / "voxels" / f"{subject}.zarr"
    try:
        with xarray.open_zarr(path) as table:
            return table[["pearson", "position"]].load()
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
        _signed_rank(defined),
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
        test, p = "Wilcoxon", _signed_rank(difference)
    elif num >= 2 and sd > 1e-12 * abs(mean):
        test, p = "paired t", float(scipy.stats.ttest_1samp(difference, 0).pvalue)
    return PairTest(num, mean, sd, test if math.isfinite(p) else "", p)



def _signed_rank(difference: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's test; NaN if nothing differs."""
    if not np.any(difference):
        return math.nan
    return float(scipy.stats.wilcoxon(difference, zero_method="wilcox").pvalue)


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


TEST_COLUMNS = (
    "voxels",
    "voxels_left_out",
    "voxels_equal",
    "median_difference",
    "share_better",
    "p_voxels",
    "p_voxels_holm",
    "seeds",
    "seed_mean_difference",
    "seed_sd",
    "seed_test",
    "p_seeds",
    "p_seeds_holm",
)


def comparison_rows(
    pairs: Sequence[tuple[VoxelTest, PairTest]],
) -> list[dict[str, Any]]:
    """The rows of one table of tests, corrected over them: see `TEST_COLUMNS`."""
    corrected = [holm([pair[k].p for pair in pairs]) for k in (0, 1)]
    return [
        dict(zip(TEST_COLUMNS, (*voxels, p, *seeds, q), strict=True))
        for (voxels, seeds), p, q in zip(pairs, *corrected, strict=True)
    ]


_TEST_HEAD = (
    "voxels (left out)",
    "median difference",
    "better in",
    "p voxels",
    "Holm",
    "seeds",
    "mean difference ± SD",
    "test",
    "p seeds",
    "Holm",
)


def comparison_table(
    head: Sequence[str], names: Sequence[Sequence[str]], rows: Sequence[dict[str, Any]]
) -> str:
    """A table of tests as Markdown.

    Args:
        head: Names of the first columns.
        names: Their cells, for each row.
        rows: From `comparison_rows`.
    """
    cells = [
        [
            *name,
            f"{row['voxels']} ({row['voxels_left_out']})",
            signed(row["median_difference"]),
            percent(row["share_better"]),
            p_value(row["p_voxels"]),
            p_value(row["p_voxels_holm"]),
            str(row["seeds"]),
            f"{signed(row['seed_mean_difference'])} ± {number(row['seed_sd'])}",
            row["seed_test"] or "-",
            p_value(row["p_seeds"]),
            p_value(row["p_seeds_holm"]),
        ]
        for name, row in zip(names, rows, strict=True)
    ]
    return markdown_table([*head, *_TEST_HEAD], cells)


# Text.


def number(value: float | None, digits: int = 3) -> str:
    """A score, or "-" where undefined."""
    defined = value is not None and math.isfinite(value)
    return f"{value:.{digits}f}" if defined else "-"


def signed(value: float) -> str:
    """A difference with its sign."""
    return f"{value:+.3f}" if math.isfinite(value) else "-"


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.0f} %" if math.isfinite(value) else "-"


def p_value(value: float) -> str:
    """A p value; one that is 0 in double precision is no 0.

    Example:
        >>> [p_value(p) for p in (0.0312, 2e-9, 0.0, float("nan"))]
        ['0.031', '2e-09', '<1e-300', '-']
    """
    if not math.isfinite(value):
        return "-"
    if value < 1e-300:
        return "<1e-300"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def mean_sd(found: Spread, digits: int = 3) -> str:
    """Mean ± SD over seeds; the mean alone where there is one."""
    if found.num < 2:
        return number(found.mean, digits)
    return f"{number(found.mean, digits)} ± {number(found.sd, digits)}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; what cells hold is shown, not interpreted."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(c if c == "---" else plain(c) for c in line) + " |"
        for line in lines
    )


def plain(text: str) -> str:
    r"""Text from data, such as a subject's name, for a Markdown page.

    Example:
        >>> plain("a|b <i>*c*")
        'a\\|b &lt;i&gt;\\*c\\*'
    """
    text = "".join(c if c.isprintable() else "?" for c in text)
    for mark in "\\`*_|[]":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as CSV; NaN is an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        known = metrics.null_for_nan(row)
        writer.writerow({k: "" if v is None else v for k, v in known.items()})
    return out.getvalue()
