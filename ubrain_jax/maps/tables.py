"""Tables of studies: Markdown to read, CSV to go on with."""

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ubrain_jax import metrics, studies, whole

READING_TESTS = """\
How to read the tests:

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

_SCORE_HEAD = (
    "seeds",
    "median r",
    "mean r",
    "median r / ceiling",
    "top-1 % (chance)",
    "top-5 % (chance)",
    "step",
    "seconds",
)


def score_table(
    head: Sequence[str],
    names: Iterable[Sequence[str]],
    scores: Iterable[Sequence[studies.Score]],
) -> str:
    """Mean ± SD over seeds as Markdown.

    Args:
        head: Names of the first columns.
        names: Their cells, for each row.
        scores: Of each row, one for each seed.
    """
    rows = []
    for name, found in zip(names, scores, strict=True):
        of, pool = studies.spreads(found), found[0].pool
        tops = [
            f"{mean_sd(of[f'top{k}'], 1)} ({100 * min(k, pool) / pool:.1f})"
            for k in (1, 5)
        ]
        shown = [mean_sd(of[k]) for k in ("median_r", "mean_r", "median_normalised")]
        ends = [number(of[k].mean, 0) for k in ("step", "seconds")]
        rows.append([*name, str(of["median_r"].num), *shown, *tops, *ends])
    return markdown_table([*head, *_SCORE_HEAD], rows)


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


def comparison_table(head: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of tests as Markdown.

    Args:
        head: Keys of `rows` for the first columns, and their titles.
        rows: From `studies.comparison_rows`, with these keys added.
    """
    cells = [
        [
            *(str(row[key]) for key in head),
            f"{row['voxels']} ({row['voxels_left_out']})",
            signed(row["median_difference"]),
            percent(row["share_better"]),
            p_value(row["p_voxels"]),
            p_value(row["p_voxels_holm"]),
            str(row["pairs"]),
            f"{signed(row['pair_mean_difference'])} ± {number(row['pair_sd'])}",
            row["pair_test"] or "-",
            p_value(row["p_pairs"]),
            p_value(row["p_pairs_holm"]),
        ]
        for row in rows
    ]
    return markdown_table([*head.values(), *_TEST_HEAD], cells)


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


def mean_sd(found: studies.Spread, digits: int = 3) -> str:
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


def write_csv(path: str | os.PathLike, lines: Iterable[Sequence[object]]) -> None:
    """Writes lines of cells, UTF-8, whole or not at all; NaN are empty cells.

    Raises:
        errors.OutputError: If it cannot be written.
    """
    text = io.StringIO()
    undefined = (
        ["" if isinstance(x, float) and math.isnan(x) else x for x in line]
        for line in lines
    )
    csv.writer(text, lineterminator="\n").writerows(undefined)
    whole.write_text(path, text.getvalue())
