"""Figures of a run's report: each comes with its caption.

Scores are computed elsewhere (`metrics`); here they are only shown.
"""

import collections
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure

from ubrain_jax import errors
from ubrain_jax.maps import pages

# Limits that keep the file at a few megabytes; reaching one is said in the report.
MAX_POINTS = 100_000
MAX_CURVE_POINTS = 2_000
MAX_SUBJECT_FIGURES = 24
MAX_REGIONS = 40


class SubjectScores(NamedTuple):
    """Scores of the V voxels of one subject, NaN where undefined.

    Attributes:
        name: As in the store.
        pearson: (V,) correlation over test images.
        ceiling: (V,) noise ceiling of R2, a fraction; all NaN where unknown.
        noise_normalised: (V,) r / sqrt(ceiling).
    """

    name: str
    pearson: np.ndarray
    ceiling: np.ndarray
    noise_normalised: np.ndarray


def figures(
    folder: str | os.PathLike,
    *,
    curves: Iterable[Mapping[str, Any]],
    subjects: Sequence[SubjectScores],
) -> list[pathlib.Path]:
    """Writes the figures of the report as PNG files, for pages and slides.

    Args:
        folder: Existing folder.
        curves: As for `write`.
        subjects: As for `write`.

    Returns:
        The files: loss.png, validation.png if the log has validation numbers, then
        ceiling-N.png (if a ceiling is known) and histogram-N.png for subject N,
        counted from 1.
    """
    folder = pathlib.Path(folder)
    drawn = [(name, fig) for name, fig, _ in curve_figures(curves)]
    for number, subject in enumerate(subjects, start=1):
        for kind, fig, _ in subject_figures(subject):
            drawn.append((f"{kind}-{number}", fig))
    files = []
    for name, fig in drawn:
        files.append(folder / f"{name}.png")
        with matplotlib.rc_context(pages.STYLE):
            fig.savefig(files[-1], dpi=160)
    return files


def _axes(xlabel: str, ylabel: str) -> tuple[mpl_figure.Figure, Any]:
    fig = mpl_figure.Figure(figsize=(4.6, 3.5), layout="constrained")
    ax = fig.add_subplot()
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    return fig, ax


def _series(
    curves: Iterable[Mapping[str, Any]],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> steps and values; of a step logged twice (a resumed run) the last."""
    found: dict[str, dict[int, float]] = collections.defaultdict(dict)
    for number, line in enumerate(curves, start=1):
        if "step" not in line:
            raise errors.InputError(
                "metrics.jsonl",
                f"line {number}",
                f"keys {', '.join(map(str, line)) or 'none'}",
                "a line with 'step'",
                "Give the lines that training wrote.",
            )
        for key, value in line.items():
            if key != "loss" and "val" not in key.lower():
                continue
            if value is None or (
                isinstance(value, int | float) and not isinstance(value, bool)
            ):
                number_or_nan = math.nan if value is None else float(value)
                found[key][int(line["step"])] = number_or_nan
    series = {}
    for key in sorted(found, key=lambda k: (k != "loss", k)):
        steps = sorted(found[key])
        values = np.array([found[key][s] for s in steps])
        values[~np.isfinite(values)] = np.nan
        series[key] = np.array(steps), values
    return series


def _thinned(
    steps: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """At most `MAX_CURVE_POINTS` means of neighbours, and how many make one."""
    width = -(-len(steps) // MAX_CURVE_POINTS)
    if width == 1:
        return steps, values, 1
    starts = np.arange(0, len(steps), width)
    counts = np.diff(np.append(starts, len(steps)))
    # A NaN inside makes its mean NaN: the gap stays visible.
    return (
        steps[np.minimum(starts + width // 2, len(steps) - 1)],
        np.add.reduceat(values, starts) / counts,
        width,
    )


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean of the defined values in a window that is cut at the ends."""
    defined = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(defined, values, 0))])
    count = np.concatenate([[0], np.cumsum(defined)])
    index = np.arange(len(values))
    low = np.maximum(index - width // 2, 0)
    high = np.minimum(index + width // 2 + 1, len(values))
    num = count[high] - count[low]
    mean = np.full(len(values), np.nan)
    return np.divide(total[high] - total[low], num, out=mean, where=defined)


def curve_figures(
    curves: Iterable[Mapping[str, Any]],
) -> list[tuple[str, mpl_figure.Figure, str]]:
    """Name, figure, caption: the losses, and other validation numbers if any."""
    series = _series(curves)
    drawn = []
    for name in ("loss", "validation"):
        lines = {
            k: v for k, v in series.items() if ("loss" in k.lower()) == (name == "loss")
        }
        if not lines:
            continue
        with matplotlib.rc_context(pages.STYLE):
            ylabel = pages.ascii_label(next(iter(lines))) if len(lines) == 1 else name
            fig, ax = _axes("training step", ylabel)
            caption = _draw_curves(ax, lines)
        drawn.append((name, fig, caption))
    return drawn


def _draw_curves(ax: Any, lines: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Draws the series of one group; returns the caption."""
    text = []
    colours = [
        pages.BLUE,
        pages.ORANGE,
        pages.GREEN,
        "#cc79a7",
        "#56b4e9",
        "#e69f00",
        pages.INK,
    ]
    styles = ["-", "--", ":"]
    for i, (key, (steps, values)) in enumerate(lines.items()):
        label = pages.ascii_label(key)
        look = {
            "color": colours[i % len(colours)],
            "linestyle": styles[i // len(colours) % len(styles)],
        }
        x, y, width = _thinned(steps, values)
        say = f"{label}: {pages.plural(len(steps), 'value')}"
        if width > 1:
            say += f", drawn as means of {width}"
        missing = int(np.isnan(values).sum())
        if missing:
            say += f", {missing} not finite (gaps)"
        if len(x) > 60:
            window = max(len(x) // 30, 5)
            ax.plot(x, y, **look | {"linestyle": "-"}, alpha=0.25, linewidth=0.8)
            ax.plot(x, _running_mean(y, window), **look, linewidth=1.8, label=label)
            say += f"; bold: running mean of {window}"
        else:
            ax.plot(
                *(x, y), **look, linewidth=1.6, marker="o", markersize=3.5, label=label
            )
        text.append(say)
    ax.grid(axis="y", color="#eeeeee")
    ax.set_axisbelow(True)
    if len(lines) > 1:
        ax.legend()
    return ". ".join(text) + "."


def subject_figures(
    subject: SubjectScores,
) -> list[tuple[str, mpl_figure.Figure, str]]:
    """Kind, figure, caption: against the ceiling if it is known, and a histogram."""
    drawn = []
    if np.isfinite(subject.ceiling).any():
        drawn.append(("ceiling", *_ceiling_figure(subject)))
    drawn.append(("histogram", *_histogram(subject)))
    return drawn


def _ceiling_figure(subject: SubjectScores) -> tuple[mpl_figure.Figure, str]:
    """r of each voxel against the highest r its noise allows."""
    x = np.sqrt(np.asarray(subject.ceiling, np.float64))
    y = np.asarray(subject.pearson, np.float64)
    drawable = np.isfinite(x) & np.isfinite(y)
    x, y = x[drawable], y[drawable]
    left_out = drawable.size - len(x)
    say = f"n = {len(x):,} voxels"
    if left_out:
        say += f"; {left_out:,} without r or known ceiling left out"
    if len(x) > MAX_POINTS:
        chosen = np.random.default_rng(0).choice(len(x), MAX_POINTS, replace=False)
        x, y = x[chosen], y[chosen]
        say += f"; a random {MAX_POINTS:,} of them drawn"
    with matplotlib.rc_context(pages.STYLE):
        fig, ax = _axes("highest r the noise allows, √NC", "correlation r")
        low = min(-0.1, float(y.min()) - 0.05) if len(y) else -0.1
        if len(x) > 3000:
            cells = ax.hexbin(
                *(x, y),
                gridsize=(50, 40),
                extent=(0, 1, low, 1),
                bins="log",
                mincnt=1,
                cmap="Blues",
                vmin=0.3,
                linewidths=0.1,
                rasterized=True,
            )
            # A plain format: the usual one of a log scale is math text, which is off.
            bar = fig.colorbar(cells, ax=ax, format="{x:.0f}", shrink=0.8, pad=0.02)
            bar.set_label("voxels per cell")
            bar.outline.set_visible(False)
            bar.minorticks_off()
            bar.ax.set_ylim(bottom=1)  # the palest blues would not show on white
        else:
            ax.scatter(
                x, y, s=9, color=pages.BLUE, alpha=0.45, linewidths=0, rasterized=True
            )
        ax.plot([0, 1], [0, 1], color=pages.INK, linestyle="--", linewidth=1)
        ax.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        ax.set_xlim(0, 1)
        ax.set_ylim(low, 1)
    return fig, f"Correlation of each voxel; on the dashed line r = ceiling. {say}."


def _histogram(subject: SubjectScores) -> tuple[mpl_figure.Figure, str]:
    """Distribution of r / ceiling, or of r where no ceiling is known."""
    values = np.asarray(subject.noise_normalised, np.float64)
    known = bool(np.isfinite(values).any())
    if not known:
        values = np.asarray(subject.pearson, np.float64)
    defined = values[np.isfinite(values)]
    edges = np.linspace(-0.5, 1.5, 41) if known else np.linspace(-1, 1, 41)
    name = "r / ceiling" if known else "correlation r"
    inside = defined[(defined >= edges[0]) & (defined <= edges[-1])]
    counts, _ = np.histogram(inside, edges)
    with matplotlib.rc_context(pages.STYLE):
        fig, ax = _axes(name, "voxels")
        ax.stairs(counts, edges, fill=True, color=pages.PALE)
        ax.stairs(counts, edges, color=pages.BLUE, linewidth=1)
        if known:
            ax.axvline(1, color=pages.INK, linestyle="--", linewidth=1)
        if len(defined):
            ax.axvline(np.median(defined), color=pages.ORANGE, linewidth=2)
        ax.set_xlim(edges[0], edges[-1])
        ax.set_ylim(0, max(int(counts.max()), 1) * 1.08)
    say = f"Distribution of {name}, n = {len(defined):,} voxels"
    if len(defined):
        say += f"; orange line: median {np.median(defined):.3f}"
    if known:
        say += "; dashed line: the ceiling"
    else:
        say += "; the noise ceiling of this subject is unknown"
    if values.size > len(defined):
        say += f"; {values.size - len(defined):,} undefined left out"
    if len(defined) > len(inside):
        say += f"; {len(defined) - len(inside):,} lie outside the axis"
    return fig, say + "."


def region_bars(regions: Mapping[str, Any]) -> tuple[mpl_figure.Figure, str]:
    """Median score of each region with its interval, and its caption.

    Args:
        regions: The `roi` of a subject's entry of metrics.json, one or more.
    """
    known = any(
        pages.defined(s["noise_normalised"]["median"]) for s in regions.values()
    )
    key = "noise_normalised" if known else "pearson"
    label = "median r / ceiling" if known else "median correlation r"
    names = list(regions)[:MAX_REGIONS]
    with matplotlib.rc_context(pages.STYLE):
        fig, ax = _axes(label, "")
        fig.set_size_inches(4.6, max(1.6, 0.9 + 0.26 * len(names)))
        for place, name in enumerate(names):
            median = regions[name][key]["median"]
            if not pages.defined(median):
                continue
            ax.barh(place, median, 0.7, color=pages.BLUE)
            low, high = regions[name][key].get("ci") or (None, None)
            if pages.defined(low) and pages.defined(high):
                ends = [[max(median - low, 0)], [max(high - median, 0)]]
                ax.errorbar(
                    *(median, place),
                    xerr=ends,
                    fmt="none",
                    ecolor=pages.INK,
                    elinewidth=1.1,
                    capsize=2,
                )
        if known:
            ax.axvline(1, color=pages.INK, linestyle="--", linewidth=1)
        ax.axvline(0, color="#888888", linewidth=0.8)
        labels = [
            f"{pages.ascii_label(name)} ({regions[name]['num_voxels']:,})"
            for name in names
        ]
        ax.set_yticks(range(len(names)), labels, fontsize=9)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.grid(axis="x", color="#eeeeee")
        ax.set_axisbelow(True)
    say = f"{label[0].upper()}{label[1:]} of each region (n voxels)"
    if any(regions[name][key].get("ci") for name in names):
        say += "; error bars: 95 % bootstrap interval over test images"
    if known:
        say += "; dashed line: the ceiling"
    if len(regions) > len(names):
        say += f"; the first {len(names)} of {len(regions)} regions, the table has all"
    return fig, say + "."
