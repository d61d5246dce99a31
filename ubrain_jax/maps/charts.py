"""Charts of studies: lines over numbers of pictures, and points in groups.

Means over seeds with bars of one SD. Each is written twice, as NAME.png and NAME.svg.
Every series has a colour of Okabe and Ito's and a marker of its own.
"""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure
from matplotlib import ticker

from ubrain_jax import whole
from ubrain_jax.maps import pages

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
HATCHES = ("", "//", "..", "\\\\", "xx", "--")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))

# What is drawn of the scores, and its axis.
LABELS = {
    "median_r": "median correlation r over voxels",
    "median_normalised": "median r / ceiling over voxels",
    "top1": "pictures ranked first (top-1, %)",
}


class Panel(NamedTuple):
    """One pair of axes; K places on the x axis.

    Attributes:
        ylabel: With the unit.
        series: Name -> means (K,) and SDs (K,), NaN where there is none (a single
            seed has no SD).
        level: Mean, SD and name of a horizontal line, if any.
        chance: Height of a dotted line, if any.
    """

    ylabel: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    level: tuple[float, float, str] | None = None
    chance: float | None = None


def lines(
    stem: pathlib.Path,
    panels: Sequence[Panel],
    counts: Sequence[int],
    ticks: Sequence[str],
    xlabel: str,
    caption: str,
) -> None:
    """Draws each series as a line over counts, on a logarithmic axis.

    Args:
        stem: File without its ending.
        panels: Side by side.
        counts: (K,) places on the x axis, above 0.
        ticks: (K,) what stands below them.
        xlabel: With the unit.
        caption: Below the panels.

    Raises:
        errors.OutputError: If a file cannot be written.
    """
    names = _names(panels)
    with matplotlib.rc_context(pages.STYLE):
        fig, axes = _figure(panels, 4.4 * len(panels), 4.0)
        for ax, panel in zip(axes, panels, strict=True):
            for name, (mean, sd) in panel.series.items():
                k = names.index(name)
                # Side by side, so that bars at one count do not hide each other.
                x = np.asarray(counts) * 1.02 ** (k - (len(names) - 1) / 2)
                _draw(ax, k, x, mean, sd, joined=True)
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(ticker.FixedLocator(list(counts)))
            ax.xaxis.set_major_formatter(ticker.FixedFormatter(list(ticks)))
            ax.xaxis.set_minor_locator(ticker.NullLocator())
            ax.set_xlim(min(counts) / 1.15, max(counts) * 1.15)
            ax.set_xlabel(xlabel)
        _finish(fig, axes, panels, names, caption)
        save(fig, stem)


def groups(
    stem: pathlib.Path,
    panels: Sequence[Panel],
    places: Sequence[str],
    xlabel: str,
    caption: str,
) -> None:
    """Draws the points of all series beside each other at each named place.

    Args:
        stem: File without its ending.
        panels: Below each other, one x axis for all.
        places: (K,) names, for example subjects.
        xlabel: What they are.
        caption: Below the panels.

    Raises:
        errors.OutputError: If a file cannot be written.
    """
    names = _names(panels)
    width = min(max(5.0, 2.0 + 0.22 * len(places) * (len(names) + 1)), 24)
    with matplotlib.rc_context(pages.STYLE):
        fig, axes = _figure(panels, width, 2.6 * len(panels) + 0.8, below=True)
        for ax, panel in zip(axes, panels, strict=True):
            for name, (mean, sd) in panel.series.items():
                k = names.index(name)
                offset = (k - (len(names) - 1) / 2) * 0.7 / len(names)
                x = np.arange(len(places)) + offset
                _draw(ax, k, x, mean, sd, joined=False)
            for border in np.arange(1, len(places)) - 0.5:
                ax.axvline(border, color="#eeeeee", linewidth=0.8, zorder=0)
            ax.set_xlim(-0.5, len(places) - 0.5)
        axes[-1].set_xticks(
            range(len(places)),
            [pages.ascii_label(p) for p in places],
            rotation=0 if len(places) < 4 else 35,
            ha="center" if len(places) < 4 else "right",
        )
        axes[-1].set_xlabel(xlabel)
        _finish(fig, axes, panels, names, caption)
        save(fig, stem)


def _names(panels: Sequence[Panel]) -> list[str]:
    """All series in the order in which they first occur."""
    return list(dict.fromkeys(name for panel in panels for name in panel.series))


def _figure(
    panels: Sequence[Panel], width: float, height: float, below: bool = False
) -> tuple[mpl_figure.Figure, list[Any]]:
    fig = mpl_figure.Figure(figsize=(width, height), layout="constrained")
    shape = (len(panels), 1) if below else (1, len(panels))
    axes = fig.subplots(*shape, squeeze=False, sharex=below).ravel()
    return fig, list(axes)


def _draw(ax: Any, k: int, x: Any, mean: Any, sd: Any, *, joined: bool) -> None:
    """Means with bars of one SD; a point without an SD has no bar."""
    ax.errorbar(
        x,
        np.asarray(mean, float),
        np.nan_to_num(np.asarray(sd, float)),
        color=COLOURS[k % len(COLOURS)],
        marker=_MARKERS[k % len(_MARKERS)],
        linestyle=_LINES[k % len(_LINES)] if joined else "none",
        linewidth=1.6,
        markersize=6,
        markeredgecolor="white",
        markeredgewidth=0.7,
        capsize=2.5,
        elinewidth=1.2,
    )


def _finish(
    fig: mpl_figure.Figure,
    axes: Sequence[Any],
    panels: Sequence[Panel],
    names: Sequence[str],
    caption: str,
) -> None:
    """Lines across, grids, one legend above all and the caption below."""
    handles: dict[str, Any] = {}
    for ax, panel in zip(axes, panels, strict=True):
        ax.set_ylabel(panel.ylabel)
        ax.grid(axis="y", color="#eeeeee")
        ax.set_axisbelow(True)
        drawn = dict(zip(panel.series, ax.containers, strict=True))
        handles = {**drawn, **handles}
        if panel.level is not None:
            mean, sd, name = panel.level
            line = ax.axhline(mean, color=pages.INK, linewidth=1, linestyle="--")
            if np.isfinite(sd):
                ax.axhspan(mean - sd, mean + sd, color=pages.INK, alpha=0.1, lw=0)
            handles.setdefault(name, line)
        if panel.chance is not None:
            line = ax.axhline(panel.chance, color="#888888", linewidth=1, linestyle=":")
            handles["chance"] = line
    order = [*names, *(n for n in handles if n not in names)]
    fig.legend(
        [handles[n] for n in order],
        [pages.ascii_label(n) for n in order],
        loc="outside upper center",
        ncols=min(len(order), max(2, int(fig.get_figwidth() / 1.4))),
    )
    write_caption(fig, caption)


def write_caption(fig: mpl_figure.Figure, text: str) -> None:
    """Text below all panels, in lines as wide as the figure."""
    wide = textwrap.fill(pages.ascii_label(text), int(fig.get_figwidth() * 15))
    fig.supxlabel(wide, fontsize=8.5, color="#555555", x=0.01, ha="left")


def save(fig: mpl_figure.Figure, stem: pathlib.Path) -> None:
    """NAME.png and NAME.svg, each whole or not at all."""
    # Without a date the same figure is the same bytes.
    for ending, marks in (("png", None), ("svg", {"Date": None})):
        path = stem.with_suffix(f".{ending}")
        with whole.writing(path) as unfinished:
            fig.savefig(unfinished, format=ending, dpi=160, metadata=marks)
