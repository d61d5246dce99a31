"""One value a voxel as a picture of the brain: `draw`.

Subjects on a surface are drawn on fsaverage5, which comes with nilearn, or on meshes
that are given; every vertex has its own patch, so what is seen is what is there, not a
blend. Subjects in a volume go to `slices`, colours come from `shades`.
"""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import nibabel as nib
import numpy as np
from matplotlib import collections
from matplotlib import figure as mpl_figure
from nilearn import datasets

from ubrain_jax import errors, whole
from ubrain_jax.maps import brain, charts, pages, places, shades, slices, surface
from ubrain_jax.model import bundle

ENDINGS = (".png", ".svg")
VIEWS = ("inflated", "flat")
MESH = "fsaverage5"
_SIDES = ("left", "right")
_DPI = 160
# Pixels of a panel, 1.5 times those of the picture, so that edges come out smooth.
_PX, _FLAT_PX = 640, 1040
# Pixels between a name or number and the border of its region.
_LEAST_PX = 7
# Pixels looked at together, which bounds memory.
_POINTS = 2**21

# Where the eye is, and where up is; coordinates are right, anterior, superior.
_EYES: dict[str, tuple[Any, Any]] = {
    "from outside": ((-1, 0, 0), (0, 0, 1)),  # of the left; mirrored for the right
    "from inside": ((1, 0, 0), (0, 0, 1)),
    "from behind": ((0, -1, 0), (0, 0, 1)),
    "from below": ((0, 0, -1), (0, 1, 0)),
    "flat": ((0, 0, 1), (0, 1, 0)),
}


class Mesh(NamedTuple):
    """The surface of a hemisphere.

    Attributes:
        point: (n, 3) mm: right, anterior, superior.
        triangle: (t, 3) vertices.
        sulc: (n,) sulcal depth, above 0 in a sulcus; None where it is not known.
    """

    point: np.ndarray
    triangle: np.ndarray
    sulc: np.ndarray | None


class Seen(NamedTuple):
    """What each pixel of a picture sees of a mesh; -1 where it sees nothing.

    Attributes:
        vertex: (y, x) its number.
        triangle: (y, x) number of the triangle.
        depth: (y, x) distance towards the eye; -inf where it sees nothing.
    """

    vertex: np.ndarray
    triangle: np.ndarray
    depth: np.ndarray


class _Panel(NamedTuple):
    """What is drawn of one hemisphere from one side."""

    side: int
    eye: str
    mesh: Mesh
    row: int
    column: slice


def draw(
    path: str | os.PathLike,
    subject: bundle.Subject,
    values: np.ndarray,
    *,
    name: str = "",
    kind: str = "continuous",
    labels: tuple[Sequence[str], Sequence[str] | None] | None = None,
    outlines: Sequence[str] = (),
    limits: tuple[float, float] | None = None,
    views: Sequence[str] = VIEWS,
    meshes: Sequence[str | os.PathLike] | None = None,
    template: str | os.PathLike | None = None,
) -> list[str]:
    """Draws one value a voxel: on the cortex, or in slices of the subject's volume.

    Args:
        path: File to write, .png or .svg; one that is there is replaced.
        subject: Whose voxels they are; its attributes say where they are.
        values: (V,); NaN, or a negative label, is not drawn.
        name: What they are, with the unit: what stands beside the colours.
        kind: One of `shades.KINDS`.
        labels: Names and colours of labels; colours None: `shades.palette`.
        outlines: Regions of the subject to draw a line around.
        limits: Ends of the colours; see `shades.scale`.
        views: Of `VIEWS`, for subjects on fsaverage.
        meshes: GIFTI surfaces, left and right, with the vertices of the subject's own
            surface; None: fsaverage5.
        template: Of grayordinates; see `surface.sides`.

    Returns:
        What the reader must know; the picture says it too.

    Raises:
        errors.ConfigError: If an argument is none, or the subject's surface has no
            mesh.
        errors.InputError: If values are none, or the subject does not say where its
            voxels are.
        errors.OutputError: If the picture cannot be written.

    Example:
        >>> import tempfile
        >>> voxel = np.zeros((3, 3), np.int32)
        >>> voxel[:, 1] = 4, 9, 12  # hemisphere, vertex, -1
        >>> attrs = {"space": "fsaverage5"}
        >>> embedding, roi, ncsnr = np.zeros((3, 2)), np.zeros((3, 0), bool), np.ones(3)
        >>> s = bundle.Subject("s1", embedding, voxel, roi, (), ncsnr, attrs, {})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     draw(f"{folder}/r.png", s, np.array([0.1, 0.2, 0.3]), name="r")
        ['3 of 3 voxels shown', 'on the mesh of fsaverage5']
    """
    path = pathlib.Path(path)
    if path.suffix not in ENDINGS:
        raise errors.ConfigError(
            path, "", "another ending", " or ".join(ENDINGS), "Choose one of them."
        )
    values = np.asarray(values)
    if values.shape != (len(subject.position),) or not len(values):
        raise errors.InputError(
            path,
            subject.name,
            f"values of shape {values.shape}",
            f"({len(subject.position)},), one a voxel",
            "Pass the values of one map.",
        )
    used = shades.scale(values, str(path), kind=kind, labels=labels, limits=limits)
    inside = _regions(path, subject, outlines)
    space = brain.space_of(subject)
    with matplotlib.rc_context(pages.STYLE):
        if space == "volume":
            fig, notes = slices.figure(subject, used, name, inside, str(path))
        elif space == "surface":
            panels, notes = _panels(path, subject, views, meshes, template)
            where = surface.sides(subject, str(path), template)
            fig, shown = _figure(panels, where, used, name, inside)
            notes = [f"{shown:,} of {len(values):,} voxels shown", *notes]
        else:
            raise errors.InputError(
                path,
                subject.name,
                "its attributes name no grid and no vertices (space: "
                f"{subject.attrs.get('space', 'not said')!r})",
                "a subject in a volume or on a surface",
                "Prepare its store again with --mask, or --position and --space; no "
                "picture can be made of voxels whose places are not known.",
            )
        notes += ["simulated data"] if subject.attrs.get("simulated") else []
        told = f"{pages.printable(subject.name)}: {'; '.join(notes)}."
        charts.write_caption(fig, told)
        _save(fig, path)
    return notes


def _regions(
    path: pathlib.Path, subject: bundle.Subject, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """(V,) bool of each region that gets a line."""
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in subject.roi_names:
            raise errors.ConfigError(
                path,
                "outlines",
                f"{subject.name} has no region {name!r}",
                "one of its regions",
                errors.nearest(name, subject.roi_names),
            )
    return {name: subject.roi[:, subject.roi_names.index(name)] for name in names}


def _save(fig: mpl_figure.Figure, path: pathlib.Path) -> None:
    """The picture, whole or not at all; the same one is the same bytes."""
    kind = path.suffix[1:]
    with whole.writing(path) as unfinished:
        marks = {"Date": None} if kind == "svg" else None
        fig.savefig(unfinished, format=kind, dpi=_DPI, metadata=marks)


# 1. Meshes -------------------------------------------------------------------------


@functools.cache
def bundled(view: str, side: int) -> Mesh:
    """The hemisphere of fsaverage5 that comes with nilearn; nothing is downloaded.

    Args:
        view: "inflated" or "flat"; flat has no triangles in the medial wall and cuts.
        side: 0 left, 1 right.

    Example:
        >>> bundled("inflated", 0).point.shape
        (10242, 3)
    """
    files = datasets.fetch_surf_fsaverage(MESH)
    short = {"inflated": "infl", "flat": "flat"}[view]
    point, triangle = _read(files[f"{short}_{_SIDES[side]}"])
    sulc: Any = nib.load(files[f"sulc_{_SIDES[side]}"])
    return Mesh(point, triangle, np.asarray(sulc.darrays[0].data, float))


def _read(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Points and triangles of a GIFTI surface."""
    image: Any = nib.load(path)
    [point] = image.get_arrays_from_intent("NIFTI_INTENT_POINTSET")
    [triangle] = image.get_arrays_from_intent("NIFTI_INTENT_TRIANGLE")
    return np.asarray(point.data, float), np.asarray(triangle.data, int)


def _given(path: str | os.PathLike) -> Mesh:
    """A mesh of the user's."""
    action = "Pass .surf.gii files of the left and of the right hemisphere."
    if not pathlib.Path(path).is_file():
        raise errors.MissingInputError(path, "", "no such file", "a surface", action)
    try:
        point, triangle = _read(path)
    except Exception as error:  # nibabel and expat raise many kinds
        found = f"cannot be read ({str(error)[:200]})"
        raise errors.InputError(path, "", found, "a GIFTI surface", action) from error
    sound = point.shape[1:] == (3,) and np.isfinite(point).all()
    if not (sound and 0 <= triangle.min() and triangle.max() < len(point)):
        found = f"points {point.shape}, triangles {triangle.shape} that do not fit"
        raise errors.InputError(path, "", found, "a GIFTI surface", action)
    return Mesh(point, triangle, None)


def _panels(
    path: pathlib.Path,
    subject: bundle.Subject,
    views: Sequence[str],
    meshes: Sequence[str | os.PathLike] | None,
    template: str | os.PathLike | None,
) -> tuple[list[_Panel], list[str]]:
    """Everything that is drawn, and notes on it."""
    views = [views] if isinstance(views, str) else list(views)
    if not views or set(views) - set(VIEWS):
        raise errors.ConfigError(
            path, "views", f"{views}", f"some of {', '.join(VIEWS)}", "Choose."
        )
    nums = [side.num for side in surface.sides(subject, str(path), template)]
    if meshes is not None:
        return _of_meshes(path, nums, meshes), []
    space = str(subject.attrs.get("space"))
    if space not in places.NESTED or nums != [surface.VERTICES[space]] * 2:
        raise errors.ConfigError(
            path,
            subject.name,
            f"no mesh of its surface ({space}, {nums[0]:,} and {nums[1]:,} vertices)",
            f"a subject on {', '.join(places.NESTED)}, or meshes",
            "Pass meshes=(left, right): .surf.gii files with as many vertices; what "
            "comes along is fsaverage5 alone.",
        )
    made: list[_Panel] = []
    if "inflated" in views:
        for side in range(2):
            mesh = bundled("inflated", side)
            outer = ("from outside", "from inside")
            for k, eye in enumerate(outer[:: 1 - 2 * side]):
                made.append(
                    _Panel(side, eye, mesh, 0, slice(2 * side + k, 2 * side + k + 1))
                )
            lower = ("from behind", "from below")
            for k, eye in enumerate(lower[:: 1 - 2 * side]):
                made.append(
                    _Panel(side, eye, mesh, 1, slice(2 * side + k, 2 * side + k + 1))
                )
    if "flat" in views:
        row = 2 if made else 0
        for side in range(2):
            mesh = bundled("flat", side)
            made.append(_Panel(side, "flat", mesh, row, slice(2 * side, 2 * side + 2)))
    notes = [f"on the mesh of {MESH}"]
    if space != MESH:
        notes = [f"of {space} the vertices that {MESH} shares, {notes[0]}"]
    return made, notes


def _columns(first: int, num: int) -> slice:
    return slice(first, first + num)


def _of_meshes(
    path: pathlib.Path, nums: Sequence[int], meshes: Sequence[str | os.PathLike]
) -> list[_Panel]:
    """Panels of two meshes of the user's, flat ones from above."""
    if len(meshes) != 2:
        raise errors.ConfigError(
            path, "meshes", f"{len(meshes)} files", "left and right", "Pass two."
        )
    read = [_given(file) for file in meshes]
    for file, mesh, num in zip(meshes, read, nums, strict=True):
        if len(mesh.point) != num:
            raise errors.InputError(
                file,
                "",
                f"{len(mesh.point):,} vertices",
                f"{num:,}, as of the subject's surface",
                "Pass the meshes of the space that the subject was prepared in.",
            )
    made = []
    for side, mesh in enumerate(read):
        used = mesh.point[np.unique(mesh.triangle)]
        if np.ptp(used[:, 2]) < 1e-3 * np.ptp(used):
            made.append(_Panel(side, "flat", mesh, 0, slice(2 * side, 2 * side + 2)))
            continue
        outer = ("from outside", "from inside")
        lower = ("from behind", "from below")
        for row, eyes in enumerate((outer, lower)):
            for k, eye in enumerate(eyes[:: 1 - 2 * side]):
                made.append(
                    _Panel(side, eye, mesh, row, slice(2 * side + k, 2 * side + k + 1))
                )
    return made


# 2. The figure ---------------------------------------------------------------------


def _figure(
    panels: Sequence[_Panel],
    where: tuple[surface.Side, surface.Side],
    used: shades.Scale,
    name: str,
    inside: dict[str, np.ndarray],
) -> tuple[mpl_figure.Figure, int]:
    """All panels with their key, and how many voxels are in them."""
    num_rows = 1 + max(panel.row for panel in panels)
    flat = {panel.row for panel in panels if panel.eye == "flat"}
    heights = [1.45 if row in flat else 1.0 for row in range(num_rows)]
    tall = 0.6 + 2.3 * sum(heights)
    key = shades.key_inches(used, tall)
    fig = mpl_figure.Figure(figsize=(10.4 + key, tall), layout="constrained")
    grid = fig.add_gridspec(
        num_rows, 5, width_ratios=[2.5] * 4 + [key], height_ratios=heights
    )
    for panel in panels:
        ax = fig.add_subplot(grid[panel.row, panel.column])
        _draw_panel(ax, panel, where[panel.side], used, inside)
    shown = 0
    for side in range(2):
        drawn = [p.mesh.triangle.ravel() for p in panels if p.side == side]
        shown += int(np.isin(where[side].vertex, np.concatenate(drawn)).sum())
    room = fig.add_subplot(grid[:, 4])
    if used.bar is not None and num_rows > 1:
        room.set_box_aspect(22)
    shades.add_key(fig, used, name, room)
    return fig, shown


def _draw_panel(
    ax: Any,
    panel: _Panel,
    where: surface.Side,
    used: shades.Scale,
    inside: dict[str, np.ndarray],
) -> None:
    """One hemisphere from one side."""
    mesh = panel.mesh
    num = len(mesh.point)
    flat, facing = _project(panel)
    low = flat[np.unique(mesh.triangle), :2].min(0) - 2
    high = flat[np.unique(mesh.triangle), :2].max(0) + 2
    pixel = (high - low).max() / (_FLAT_PX if panel.eye == "flat" else _PX)
    front = facing > 0
    at = np.concatenate([(flat[:, :2] - low) / pixel, flat[:, 2:]], 1)
    seen = look(at, mesh.triangle[front], (high - low) / pixel)
    held = where.vertex < num
    vertex, column = where.vertex[held], where.column[held]
    colour = np.zeros((num, 4))
    colour[vertex] = used.colour[column]
    bright = np.append(facing[front], 0)[seen.triangle]
    image = _coloured(seen.vertex, colour, _ground(mesh), bright)
    extent = (low[0], high[0], low[1], high[1])
    ax.imshow(image, origin="lower", extent=extent, interpolation="auto")
    for name, voxels in inside.items():
        member = np.zeros(num + 1, bool)  # the last one: no vertex
        member[vertex] = voxels[column]
        lines = border(flat, mesh.triangle[front], member)
        row, col = ((lines[:, :, :2].mean(1) - low) / pixel).astype(int).T[::-1]
        # What lies behind another part of the cortex is not seen.
        visible = lines[:, :, 2].mean(1) > seen.depth[row, col] - 3
        for shade, width in (("white", 2.2), (pages.INK, 1.1)):
            drawn = collections.LineCollection(
                list(lines[visible][:, :, :2]), colors=shade, linewidths=width
            )
            ax.add_collection(drawn, autolim=False)
        shades.write_in(
            ax, member[seen.vertex], extent, name, least=_LEAST_PX, size=7.5
        )
    if used.label is not None:
        label = np.full(num + 1, -1)
        label[vertex] = used.label[column]
        for k in np.unique(used.label[used.label >= 0]):
            mask = label[seen.vertex] == k
            shades.write_in(ax, mask, extent, str(k + 1), least=_LEAST_PX, size=6.5)
    ax.set_xlim(*extent[:2])
    ax.set_ylim(*extent[2:])
    ax.axis("off")
    ax.set_title(f"{_SIDES[panel.side]}, {panel.eye}", fontsize=9, pad=2)


def _project(panel: _Panel) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) right, up and towards the eye; (t,) how much triangles face the eye."""
    eye, up = (np.array(v, float) for v in _EYES[panel.eye])
    if panel.side == 1 and panel.eye in ("from outside", "from inside"):
        eye = -eye
    right = np.cross(up, eye)
    flat = panel.mesh.point @ np.stack([right, up, eye], 1)
    a, b, c = flat[panel.mesh.triangle].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    size = np.linalg.norm(normal, axis=1)
    return flat, normal[:, 2] / np.where(size > 0, size, 1)


def look(point: np.ndarray, triangle: np.ndarray, size: np.ndarray) -> Seen:
    """What a grid of pixels sees of a mesh: the nearest triangle, and its vertex.

    A triangle belongs to its three vertices in equal parts, each the part beside it,
    so that every vertex is seen with its own value.

    Args:
        point: (n, 3) right and up in pixels, and the distance towards the eye in mm.
        triangle: (t, 3) those that face the eye.
        size: Width and height in pixels.

    Returns:
        Images whose first row is the lowest.

    Example:
        >>> corner = np.array([[0, 0, 0], [4, 0, 0], [0, 4, 0]], float)
        >>> look(corner, np.array([[0, 1, 2]]), np.array([4, 4])).vertex.tolist()
        [[0, 0, 1, 1], [0, 1, 1, -1], [2, 2, -1, -1], [2, -1, -1, -1]]
    """
    width, height = np.ceil(size).astype(int)
    corner = point[triangle]  # (t, 3, 3)
    start = np.floor(corner[:, :, :2].min(1)).astype(int)
    reach = np.ceil(corner[:, :, :2].max(1)).astype(int) - start
    box = -(-np.maximum(reach.max(1), 1) // 3) * 3  # few sizes, little of it empty
    found = []
    for side in np.unique(box):
        rows = np.flatnonzero(box == side)
        for part in np.array_split(rows, 1 + len(rows) * side**2 // _POINTS):
            found.append(_hits(corner[part], start[part], side, part))
    x, y, depth, number, which = (np.concatenate(c) for c in zip(*found, strict=True))
    held = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    order = np.flatnonzero(held)[np.argsort(depth[held], kind="stable")]
    place = (y * width + x)[order]
    seen = Seen(
        np.full((height, width), -1),
        np.full((height, width), -1),
        np.full((height, width), -np.inf),
    )
    # Of assignments to one place the last stays: the nearest.
    seen.vertex.flat[place] = triangle[number[order], which[order]]
    seen.triangle.flat[place] = number[order]
    seen.depth.flat[place] = depth[order]
    return seen


def _hits(
    corner: np.ndarray, start: np.ndarray, side: int, number: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Pixels inside of triangles that fit in boxes of `side` pixels.

    Returns:
        x, y, depth, number of the triangle and which of its corners is nearest.
    """
    row, column = np.divmod(np.arange(side**2), side)
    left, below = start[:, :1] + column, start[:, 1:] + row
    x, y = left + 0.5, below + 0.5  # where pixels are looked at
    (ax, ay), (bx, by), (cx, cy) = corner[:, :, :2, None].transpose(1, 2, 0, 3)
    double = (by - cy) * (ax - cx) + (cx - bx) * (ay - cy)
    first = ((by - cy) * (x - cx) + (cx - bx) * (y - cy)) / double
    second = ((cy - ay) * (x - cx) + (ax - cx) * (y - cy)) / double
    inside = (first >= -1e-9) & (second >= -1e-9) & (first + second <= 1 + 1e-9)
    triangle, pixel = np.nonzero(inside)
    first, second = first[inside], second[inside]
    weight = np.stack([first, second, 1 - first - second], 1)
    return (
        left[triangle, pixel],
        below[triangle, pixel],
        (weight * corner[triangle, :, 2]).sum(1),
        number[triangle],
        weight.argmax(1),
    )


def _ground(mesh: Mesh) -> np.ndarray:
    """(n,) grey of the cortex below: sulci darker."""
    if mesh.sulc is None:
        return np.full(len(mesh.point), 0.8)
    return 0.8 - 0.12 * np.tanh(3 * mesh.sulc)


def _coloured(
    vertex: np.ndarray, colour: np.ndarray, ground: np.ndarray, bright: np.ndarray
) -> np.ndarray:
    """(y, x, 3) picture; light falls on grey alone, since colours mean values."""
    grey = np.append(ground, 1)[vertex] * (0.72 + 0.28 * bright)
    grey[vertex < 0] = 1
    own = np.concatenate([colour, np.zeros((1, 4))])[vertex]
    covered = own[:, :, 3:]
    return own[:, :, :3] * covered + grey[:, :, None] * (1 - covered)


def border(point: np.ndarray, triangle: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Lines between the vertices of a region and the others.

    Args:
        point: (n, 3) vertices.
        triangle: (t, 3) of them.
        member: (n,) bool, the region.

    Returns:
        (k, 2, 3) ends, each in the middle of an edge.
    """
    held = member[triangle]
    mixed = held.any(1) & ~held.all(1)
    corner, held = point[triangle[mixed]], held[mixed]
    # The vertex that differs from both others; the line cuts its two edges.
    alone = np.where(held.sum(1) == 1, held.argmax(1), (~held).argmax(1))
    rows = np.arange(len(corner))
    tip = corner[rows, alone]
    ends = [(tip + corner[rows, (alone + k) % 3]) / 2 for k in (1, 2)]
    return np.stack(ends, 1)
