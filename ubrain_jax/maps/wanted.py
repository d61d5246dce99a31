"""The pictures that groups of voxels want most and least, as one sheet."""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure

from ubrain_jax import whole
from ubrain_jax.maps import charts, pages

# Groups on one sheet; a taller one is hard to read.
MOST_ROWS = 40
_INCH = 0.75  # side of a picture


class Row(NamedTuple):
    """One group.

    Attributes:
        name: At the left.
        blocks: Pictures (indices) of each block of columns; -1: an empty place.
    """

    name: str
    blocks: Sequence[Sequence[int]]


def draw(
    path: str | os.PathLike,
    pictures: np.ndarray,
    heads: Sequence[str],
    rows: Sequence[Row],
    caption: str,
) -> None:
    """Draws a row of pictures for each group, in blocks with a head each.

    Args:
        path: Of the .png.
        pictures: (M, px, px, 3) uint8.
        heads: Of the blocks, for example "strongest" and "weakest".
        rows: One for each group, as many blocks as heads; of more than `MOST_ROWS`
            the first are drawn and the caption says so.
        caption: Below.

    Raises:
        errors.OutputError: If it cannot be written.
    """
    path = pathlib.Path(path)
    if len(rows) > MOST_ROWS:
        caption += f" The first {MOST_ROWS} of {len(rows)} groups."
        rows = rows[:MOST_ROWS]
    widths = [
        max((len(r.blocks[k]) for r in rows), default=1) for k in range(len(heads))
    ]
    starts = np.cumsum([0, *(w + 0.4 for w in widths)])  # a gap between blocks
    wide = max(float(starts[-1]), 5.0)
    with matplotlib.rc_context(pages.STYLE):
        fig = mpl_figure.Figure(
            figsize=(1.6 + _INCH * wide, 1.2 + _INCH * 1.06 * len(rows)),
            layout="constrained",
        )
        ax = fig.add_subplot()
        ax.set_axis_off()
        ax.set_aspect("equal")
        ax.set_xlim(0, wide)
        ax.set_ylim(1.06 * len(rows), -0.5)
        for start, head in zip(starts, heads, strict=False):
            ax.text(start, -0.15, pages.ascii_label(head), fontsize=9, color=pages.INK)
        for down, row in enumerate(rows):
            at = 1.06 * down
            label = pages.ascii_label(row.name)
            ax.text(-0.15, at + 0.5, label, ha="right", va="center", fontsize=9)
            for start, block in zip(starts, row.blocks, strict=False):
                for k, picture in enumerate(block):
                    if picture >= 0:
                        box = (start + k, start + k + 0.96, at + 0.96, at)
                        ax.imshow(
                            pictures[picture], extent=box, interpolation="antialiased"
                        )
        ax.set_xlim(0, wide)
        ax.set_ylim(1.06 * len(rows), -0.5)
        charts.write_caption(fig, caption)
        with whole.writing(path) as unfinished:
            fig.savefig(unfinished, format="png", dpi=110)
