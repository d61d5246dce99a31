"""One value a voxel as slices and projections of the subject's own volume.

A subject's volume is no standard brain, so no outline of one stands around it: what is
drawn is the voxels, with left and right named where the affine tells them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib import collections, colors
from matplotlib import figure as mpl_figure
from nibabel import affines, orientations

from ubrain_jax.maps import pages, shades, volume
from ubrain_jax.model import bundle

_NUM = 6  # slices of each kind
# Darker than the white of 0.
_EMPTY = "#dedede"  # no voxel of the subject
_UNKNOWN = "#9a9a9a"  # a voxel without a value
# Of a volume whose axes are right, anterior, superior: what is across, up and through.
_CUTS = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
_ENDS = (("L", "R"), ("P", "A"), ("I", "S"))
# Axes that lean more than this against those of the scanner have no mm of their own.
_STRAIGHT = 0.02


class _Turned(NamedTuple):
    """V voxels in a volume whose axes are right, anterior, superior where known.

    Attributes:
        index: (V, 3) places in it.
        size: (3,) sides of a voxel, mm or 1.
        told: From an axis and a place on it to words.
        known: Whether left and right are known.
    """

    index: np.ndarray
    size: np.ndarray
    told: Callable[[int, int], str]
    known: bool


def figure(
    subject: bundle.Subject,
    used: shades.Scale,
    name: str,
    inside: Mapping[str, np.ndarray],
    said: str,
) -> tuple[mpl_figure.Figure, list[str]]:
    """Slices through the voxels in three directions, and projections along them.

    Args:
        subject: In a volume.
        used: Colours of its V voxels.
        name: What they mean.
        inside: (V,) bool of each region that gets a line.
        said: What errors name.

    Returns:
        The figure, to be saved in the style of `pages`; what a reader must know.

    Raises:
        errors.InputError: As `volume.place`.
    """
    turned, notes = _turn(subject, said)
    notes.append(f"a projection shows {used.over} of each line")
    if unknown := int((used.colour[:, 3] == 0).sum()):
        notes.append(f"dark grey: {unknown:,} voxels without a value")
    mm = (np.ptp(turned.index, 0) + 1 + 2 * _margin(turned)) * turned.size
    across, up, _ = np.transpose(list(_CUTS.values()))
    inch = 10 / _NUM / mm[across].max()
    heights = [*(mm[up] * inch), 2 * mm[up].max() * inch]
    tall = sum(heights) + 1.6
    key = shades.key_inches(used, tall)
    fig = mpl_figure.Figure((10.4 + key, tall), layout="constrained")
    spec = fig.add_gridspec(
        4, _NUM + 1, width_ratios=[10 / _NUM] * _NUM + [key], height_ratios=heights
    )
    for row, (kind, axes) in enumerate(_CUTS.items()):
        kind = kind if turned.known else f"along {'ijk'[axes[2]]}"
        depth = turned.index[:, axes[2]]
        places = _spread(depth)
        most = {
            region: max(places, key=lambda k, v=v, d=depth: int(v[d == k].sum()))
            for region, v in inside.items()
        }
        for column, place in enumerate(places):
            ax = fig.add_subplot(spec[row, column])
            voxel = np.flatnonzero(depth == place)
            _draw(ax, turned, axes, voxel, used)
            named = [region for region, k in most.items() if k == place]
            _outline(ax, turned, axes, voxel, inside, named)
            if not column:
                _name_ends(ax, turned, axes)
            first = f"{kind}, " if not column else ""
            ax.set_title(first + turned.told(axes[2], place), fontsize=8, pad=2)
        ax = fig.add_subplot(spec[3, 2 * row : 2 * row + 2])
        _draw(ax, turned, axes, foremost(turned.index[:, list(axes)], used), used)
        _outline(ax, turned, axes, np.arange(len(depth)), inside, list(inside))
        _name_ends(ax, turned, axes)
        ax.set_title(f"{kind}, projection", fontsize=8, pad=2)
    rows = slice(0, 3 if used.bar is not None else 4)
    shades.add_key(fig, used, name, fig.add_subplot(spec[rows, _NUM]))
    return fig, notes


def _turn(subject: bundle.Subject, said: str) -> tuple[_Turned, list[str]]:
    """The voxels, turned where it is known how, and notes on it."""
    where = volume.place(subject, said)
    index = subject.position.astype(int)
    shape = " x ".join(map(str, where.grid))
    notes = [f"{len(index):,} voxels in its own volume of {shape}"]
    if where.affine is None:
        notes.append("left, right and millimetres are not known")
        return _Turned(index, np.ones(3), _plain, False), notes
    turn = orientations.io_orientation(where.affine)
    affine = where.affine @ orientations.inv_ornt_aff(turn, where.grid)
    index = np.rint(affines.apply_affine(np.linalg.inv(affine) @ where.affine, index))
    size = affines.voxel_sizes(affine)
    lean = np.abs(affine[:3, :3] / size - np.eye(3)).max()

    def told(axis: int, place: int) -> str:
        if lean < _STRAIGHT:
            at = affine[axis, axis] * place + affine[axis, 3]
            return f"{'xyz'[axis]} = {round(at)} mm"
        source = int(np.flatnonzero(turn[:, 0] == axis)[0])
        last = where.grid[source] - 1
        return f"{'ijk'[source]} = {place if turn[source, 1] > 0 else last - place}"

    if lean >= _STRAIGHT:
        notes.append("its axes are oblique; left, right, ... are the nearest ones")
    return _Turned(index.astype(int), size, told, True), notes


def _plain(axis: int, place: int) -> str:
    """A place in a volume whose directions are not known."""
    return f"{'ijk'[axis]} = {place}"


def _spread(depth: np.ndarray) -> list[int]:
    """At most `_NUM` places that have voxels, as dense as the voxels are."""
    ranks = np.linspace(0.04, 0.96, _NUM) * (len(depth) - 1)
    return np.unique(np.sort(depth)[np.rint(ranks).astype(int)]).tolist()


def foremost(place: np.ndarray, used: shades.Scale) -> np.ndarray:
    """One voxel of each line through the volume, as `used.over` says.

    Args:
        place: (V, 3) across, up, through.
        used: Colours of the voxels.
    """
    line = place[:, 0] * (place[:, 1].max() + 1) + place[:, 1]
    strength = used.strength
    if used.label is not None:
        most = int(used.label.max(initial=0)) + 2
        _, back, count = np.unique(
            line * most + used.label + 1, return_inverse=True, return_counts=True
        )
        strength = np.where(used.label >= 0, count[back], -np.inf)
    order = np.lexsort((place[:, 2], strength, line))
    last = np.append(np.diff(line[order]) > 0, True)
    return order[last]


def _margin(turned: _Turned) -> int:
    """Voxels around all of them, where the names of the ends stand."""
    return 1 + int(np.ptp(turned.index, 0).max()) // 16


def _plane(
    turned: _Turned, axes: tuple[int, int, int], voxel: np.ndarray
) -> tuple[np.ndarray, tuple[int, int], tuple[float, float, float, float]]:
    """(n, 2) x, y of voxels; height and width; extent in mm, with a margin."""
    plane = list(axes[:2])
    margin = _margin(turned)
    low = turned.index.min(0)[plane] - margin
    width, height = (turned.index.max(0)[plane] + margin + 1 - low).tolist()
    across, up = turned.size[plane].tolist()
    extent = (0.0, width * across, 0.0, height * up)
    return turned.index[voxel][:, plane] - low, (height, width), extent


def _draw(
    ax: Any,
    turned: _Turned,
    axes: tuple[int, int, int],
    voxel: np.ndarray,
    used: shades.Scale,
) -> None:
    """Voxels, one a place, in a plane."""
    place, shape, extent = _plane(turned, axes, voxel)
    image = np.tile(colors.to_rgb(_EMPTY), (*shape, 1))
    held = used.colour[voxel, 3:]
    unknown = np.array(colors.to_rgb(_UNKNOWN))
    x, y = place.T
    image[y, x] = used.colour[voxel, :3] * held + unknown * (1 - held)
    ax.imshow(image, origin="lower", extent=extent, interpolation="nearest")
    if used.label is not None:
        for k in np.unique(used.label[voxel]):
            mask = np.zeros(shape, bool)
            mask[y, x] = used.label[voxel] == k
            if k >= 0:
                shades.write_in(ax, mask, extent, str(k + 1), least=1.6, size=6)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def _outline(
    ax: Any,
    turned: _Turned,
    axes: tuple[int, int, int],
    voxel: np.ndarray,
    inside: Mapping[str, np.ndarray],
    named: list[str],
) -> None:
    """Lines around what regions have of some voxels."""
    place, shape, extent = _plane(turned, axes, voxel)
    for region, member in inside.items():
        mask = np.zeros(shape, bool)
        x, y = place[member[voxel]].T
        mask[y, x] = True
        lines = _edges(mask) * turned.size[list(axes[:2])]
        for shade, width in (("white", 1.8), (pages.INK, 0.9)):
            drawn = collections.LineCollection(
                list(lines), colors=shade, linewidths=width, capstyle="projecting"
            )
            ax.add_collection(drawn, autolim=False)
        if region in named:
            shades.write_in(ax, mask, extent, region, least=1, size=7)


def _edges(mask: np.ndarray) -> np.ndarray:
    """(n, 2, 2) sides of pixels, from x, y to x, y, between a region and the rest.

    Example:
        >>> _edges(np.array([[True]])).tolist()
        [[[0, 0], [0, 1]], [[1, 0], [1, 1]], [[0, 0], [1, 0]], [[0, 1], [1, 1]]]
    """
    wide = np.pad(mask, 1)
    y, x = np.nonzero(wide[1:-1, 1:] != wide[1:-1, :-1])
    upright = np.stack([np.stack([x, y], 1), np.stack([x, y + 1], 1)], 1)
    y, x = np.nonzero(wide[1:, 1:-1] != wide[:-1, 1:-1])
    level = np.stack([np.stack([x, y], 1), np.stack([x + 1, y], 1)], 1)
    return np.concatenate([upright, level])


def _name_ends(ax: Any, turned: _Turned, axes: tuple[int, int, int]) -> None:
    """Left, right, ... at the sides of a panel, or the names of its axes."""
    style: dict[str, Any] = {"fontsize": 7.5, "color": "#555555"}
    if not turned.known:
        ax.set_xlabel("ijk"[axes[0]], labelpad=1, **style)
        ax.set_ylabel("ijk"[axes[1]], labelpad=1, **style)
        return
    (left, right), (below, above) = (_ENDS[k] for k in axes[:2])
    for text, x, y, ha, va in (
        (left, 0.01, 0.5, "left", "center"),
        (right, 0.99, 0.5, "right", "center"),
        (below, 0.5, 0.01, "center", "bottom"),
        (above, 0.5, 0.99, "center", "top"),
    ):
        ax.text(x, y, text, transform=ax.transAxes, ha=ha, va=va, **style)
