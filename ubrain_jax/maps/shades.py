"""From values of voxels to colours, and what tells them: a bar, a legend, names.

Colour maps are read alike with any colour vision: viridis, RdBu for values around 0,
twilight for angles; labels have colours of their own and numbers beside them.
"""

import colorsys
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import cm, colors, patches, patheffects
from matplotlib import figure as mpl_figure
from scipy import ndimage

from ubrain_jax import errors
from ubrain_jax.maps import charts, pages

KINDS = ("continuous", "angle", "labels")
# How much white (above 0) or black a colour gets each time the six come round again.
_TINTS = (0.0, -0.42, 0.58, -0.7, 0.8)
# Of a legend: inches of a row and of a letter, columns, and letters of a name.
_ROW, _LETTER, _COLUMNS, _LETTERS = 0.18, 0.062, 3, 26


class Scale(NamedTuple):
    """How V values are drawn.

    Attributes:
        colour: (V, 4) red, green, blue, alpha in 0..1; alpha 0 where there is no value.
        label: (V,) int, -1 where there is none; None unless they are labels.
        names: K names of labels, or none.
        colours: K colours of labels, or none.
        bar: What the colour bar shows; None for labels.
        extend: Which ends of the bar have values beyond: "neither", "min", ...
        strength: (V,) a projection shows the voxel where it is largest, of equal ones
            the nearest; -inf where there is no value.
        over: The same in words.
    """

    colour: np.ndarray
    label: np.ndarray | None
    names: tuple[str, ...]
    colours: tuple[str, ...]
    bar: cm.ScalarMappable | None
    extend: str
    strength: np.ndarray
    over: str


def palette(num: int) -> list[str]:
    """Colours that all differ, the first six of Okabe and Ito's.

    Example:
        >>> palette(2)
        ['#0072b2', '#d55e00']
        >>> len(set(palette(300)))
        300
    """
    made: list[str] = []
    for k in range(num):
        turn, place = divmod(k, len(charts.COLOURS))
        rgb = np.array(colors.to_rgb(charts.COLOURS[place]))
        if turn < len(_TINTS):
            tint = _TINTS[turn]
            rgb = rgb * (1 - abs(tint)) + max(tint, 0)
        else:  # hues a golden angle apart
            rgb = colorsys.hls_to_rgb(k * 0.618034 % 1, 0.35 + k * 7 % 5 / 12, 0.7)
        made.append(colors.to_hex((rgb[0], rgb[1], rgb[2])))
    return unique(made)


def unique(given: Sequence[str]) -> list[str]:
    """Colours of which none is black and no two are the same, each hardly changed.

    FreeSurfer knows the labels of a surface by their colours alone; black is none.

    Example:
        >>> unique(["#ff0000", "#ff0000", "#000000"])
        ['#ff0000', '#ff0001', '#000001']
    """
    made: list[str] = []
    taken = {0}
    for colour in given:
        number = int(colors.to_hex(colour)[1:], 16)
        while number in taken:
            number = number + 1 if number < 0xFFFFFF else 1
        taken.add(number)
        made.append(f"#{number:06x}")
    return made


def scale(
    values: np.ndarray,
    said: str,
    *,
    kind: str = "continuous",
    labels: tuple[Sequence[str], Sequence[str] | None] | None = None,
    limits: tuple[float, float] | None = None,
) -> Scale:
    """Colours of values.

    Args:
        values: (V,); NaN, or a negative label, is no value.
        said: What errors name.
        kind: "continuous": viridis, or red and blue around 0 where there are values
            on both sides; "angle": a cycle over the limits, default 0..360;
            "labels": whole numbers that count the names.
        labels: K names and K colours, None for `palette`; of labels alone.
        limits: Ends of the colours; default: what 98 % of the values lie between,
            the same on both sides of 0.

    Raises:
        errors.ConfigError: If kind, labels or limits are none.
        errors.InputError: If values are infinite, or no labels.
    """

    def fault(where: str, found: str, expected: str, action: str) -> Exception:
        return errors.ConfigError(said, where, found, expected, action)

    if kind not in KINDS:
        raise fault("kind", repr(kind), f"one of {', '.join(KINDS)}", "Choose one.")
    values = np.asarray(values)
    if kind == "labels":
        return _labelled(values, said, labels)
    values = values.astype(float)
    finite = np.isfinite(values)
    if np.isinf(values).any():
        found = f"{int(np.isinf(values).sum())} values are infinite"
        raise errors.InputError(said, "values", found, "numbers or NaN", "Mend them.")
    if limits is None:
        limits = _limits(values[finite], kind)
    low, high = map(float, limits)
    if not (np.isfinite([low, high]).all() and low < high):
        raise fault("limits", f"{low:g}, {high:g}", "a lower, a higher", "Swap them?")
    name = "viridis" if low >= 0 or high <= 0 else "RdBu_r"
    if kind == "angle":
        name = "twilight"
    bar = cm.ScalarMappable(colors.Normalize(low, high), matplotlib.colormaps[name])
    colour = np.asarray(bar.to_rgba(np.where(finite, values, low)))
    colour[~finite, 3] = 0
    below = bool((values[finite] < low - 1e-9).any())
    above = bool((values[finite] > high + 1e-9).any())
    extend = ("neither", "max", "min", "both")[2 * below + above]
    over, strength = "the largest value", values
    if name == "RdBu_r":
        over, strength = "the value farthest from 0", np.abs(values)
    elif kind == "angle":
        over, strength = "the nearest value", np.zeros(len(values))
    strength = np.where(finite, strength, -np.inf)
    return Scale(colour, None, (), (), bar, extend, strength, over)


def _limits(values: np.ndarray, kind: str) -> tuple[float, float]:
    """Ends of a bar that single voxels do not stretch."""
    if kind == "angle":
        return 0.0, 360.0
    if not len(values):
        return 0.0, 1.0
    low, high = np.percentile(values, (1, 99))
    if values.min() < 0 < values.max():
        most = max(abs(low), abs(high)) or float(np.abs(values).max())
        return -most, most
    if low == high:
        return float(low), float(low) + (abs(float(low)) or 1.0)
    return float(low), float(high)


def _labelled(
    values: np.ndarray,
    said: str,
    labels: tuple[Sequence[str], Sequence[str] | None] | None,
) -> Scale:
    """The scale of labels."""
    if labels is None:
        raise errors.ConfigError(
            said, "labels", "none", "names and colours", "Pass labels=(names, None)."
        )
    names, colours = checked(said, *labels)
    label = whole_labels(values, said, len(names))
    table = np.concatenate([colors.to_rgba_array(colours), np.zeros((1, 4))])
    return Scale(
        colour=table[label],
        label=label,
        names=tuple(names),
        colours=tuple(colours),
        bar=None,
        extend="neither",
        strength=np.where(label >= 0, 0.0, -np.inf),
        over="the most frequent label",
    )


def checked(
    said: str, names: Sequence[str], colours: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Names of labels and their colours as hex.

    Raises:
        errors.ConfigError: If there is no name, a name is there twice, or colours are
            of another number or none that matplotlib knows.
    """

    def fault(found: str, expected: str) -> errors.ConfigError:
        return errors.ConfigError(said, "labels", found, expected, "Mend the labels.")

    names = [str(name) for name in names]
    if not names or len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise fault(f"named twice: {twice[:5]}" if twice else "no names", "K names")
    colours = palette(len(names)) if colours is None else list(colours)
    if len(colours) != len(names):
        raise fault(f"{len(colours)} colours of {len(names)} names", "one each")
    bad = [c for c in colours if not colors.is_color_like(c)]
    if bad:
        raise fault(f"{bad[:5]} are no colours", "colours such as #0072b2")
    return names, [colors.to_hex(c) for c in colours]


def whole_labels(values: np.ndarray, said: str, num: int) -> np.ndarray:
    """(V,) int64 labels, -1 where there is none.

    Raises:
        errors.InputError: If they do not count `num` names.
    """
    given = np.where(np.isnan(values.astype(float)), -1, values).astype(float)
    bad = (given != np.rint(given)) | (given >= num)
    if bad.any():
        some = ", ".join(f"{x:g}" for x in np.unique(given[bad])[:5])
        raise errors.InputError(
            said,
            "labels",
            f"{int(bad.sum())} values ({some}) of no name",
            f"whole numbers 0..{num - 1}; negative: no label",
            "Mend the labels or name them all.",
        )
    return np.where(given < 0, -1, given).astype(np.int64)


def key_inches(used: Scale, height: float) -> float:
    """Width that `add_key` needs in a figure of this height, in inches."""
    if used.bar is not None:
        return 0.16
    entries, columns, _ = _entries(used, height)
    longest = max((len(text) for _, text in entries), default=0)
    return max(1.3, columns * (0.55 + _LETTER * longest))


def _entries(used: Scale, height: float) -> tuple[list[tuple[int, str]], int, int]:
    """Labels and texts of a legend, its columns, and labels that do not fit."""
    there = [] if used.label is None else np.unique(used.label[used.label >= 0])
    rows = max(1, int((height - 1.2) / _ROW))
    columns = min(_COLUMNS, -(-len(there) // rows)) or 1
    texts = []
    for k in there[: rows * columns]:
        text = pages.ascii_label(pages.printable(used.names[k]))
        short = text if len(text) <= _LETTERS else f"{text[: _LETTERS - 3]}..."
        texts.append((int(k), f"{k + 1}  {short}"))
    return texts, columns, len(there) - len(texts)


def add_key(fig: mpl_figure.Figure, used: Scale, name: str, room: Any) -> None:
    """A colour bar or a legend in the axes `room`.

    Args:
        fig: Figure that `room` is of.
        used: From `scale`.
        name: What is drawn, with the unit.
        room: Axes that hold nothing else, as wide as `key_inches`.
    """
    text = pages.ascii_label(pages.printable(name))
    if used.bar is not None:
        bar = fig.colorbar(used.bar, cax=room, extend=used.extend)
        bar.set_label(text, color=pages.INK)
        bar.outline.set_linewidth(0.5)  # pyright: ignore[reportCallIssue]
        return
    room.axis("off")
    entries, columns, more = _entries(used, fig.get_figheight())
    handles = [
        patches.Patch(
            facecolor=used.colours[k], edgecolor="#555555", linewidth=0.5, label=told
        )
        for k, told in entries
    ]
    legend = room.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(0, 0.5),
        borderpad=0,
        title=textwrap.fill(text, 18 * columns)
        + (f"\nand {more} more" if more else ""),
        ncols=columns,
        columnspacing=1,
        fontsize=8,
        title_fontsize=9,
        handlelength=1.2,
        handleheight=1.0,
    )
    legend.set_in_layout(False)  # it has its room


def write_in(
    ax: Any,
    mask: np.ndarray,
    extent: tuple[float, float, float, float],
    text: str,
    *,
    least: float,
    size: float,
) -> None:
    """A name at the place of a region that is farthest from its border.

    Args:
        ax: Axes that show the image.
        mask: (y, x) pixels of the region, the first row below.
        extent: Left, right, bottom and top of the image in the axes.
        text: The name.
        least: Pixels to the border that it needs; without, nothing is written.
        size: Of the letters, in points.
    """
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return
    rows, columns = found[0]
    room: Any = ndimage.distance_transform_edt(np.pad(mask[rows, columns], 1))
    if room.max() < least:
        return
    y, x = np.unravel_index(room.argmax(), room.shape)
    height, width = mask.shape
    ax.text(
        extent[0] + (x + columns.start - 0.5) / width * (extent[1] - extent[0]),
        extent[2] + (y + rows.start - 0.5) / height * (extent[3] - extent[2]),
        pages.ascii_label(pages.printable(text)),
        fontsize=size,
        color=pages.INK,
        ha="center",
        va="center",
        path_effects=[patheffects.withStroke(linewidth=2.2, foreground="white")],
    )
