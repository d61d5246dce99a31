"""The explorer: one HTML file with brains to turn, clusters, pictures and attention.

`write` makes it from plain arrays; nothing is computed here that a reader would take
for a result. The page needs no network, no library and no GPU: a small rasteriser draws
into canvases. Its script and style lie in `explorer_page`, and a content security
policy allows exactly these two by their hashes. Texts from data are in JSON that only
ever becomes the text of an element; numbers are gzip-compressed arrays.
"""

import base64
import gzip
import hashlib
import importlib.resources
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ubrain_jax import errors, whole
from ubrain_jax.maps import pages

# Of one subject: more are slow to draw, and smaller than a pixel.
MOST_VOXELS = 6000
# Pixels of a picture, and how few voxels of a subject come before fewer pixels.
_STEPS = ((112, 1000), (80, 500), (56, 100))
# In the order in which they are read: one script, in parts that hold one idea each.
_SCRIPTS = [
    f"{part}.js"
    for part in (
        *("arrays", "colours", "draw", "panels", "state", "legend", "brains"),
        *("details", "lists", "address", "page"),
    )
]
_SCALARS = ("score", "x", "y", "size", "eccentricity", "angle", "level")


class Brain(NamedTuple):
    """v voxels of one subject, R regions, M pictures, T top pictures.

    Attributes:
        name: Of the subject.
        space: Shown as it is.
        kind: "surface" or "volume".
        position: (v, 3) float32; in a volume millimetres, or voxel units where no
            affine is known; on a surface hemisphere (0 left, 1 right), vertex of
            fsaverage5, -1.
        voxel: (v,) int, number of the voxel in its subject.
        total: Voxels of which these v are some.
        cluster: (v,) int16 index into the clusters, -1 for none.
        region: (v, R) bool.
        score: (v,) float32, NaN where unknown.
        field: (v, side, side) float32, mean attention over pictures, rows from above.
        x: (v,) float32 centre of the field, fraction of the picture from the left.
        y: (v,) float32, from above. NaN where unknown, here and below.
        size: (v,) float32 in the exploration's `size_unit`.
        eccentricity: (v,) float32 in the same unit.
        angle: (v,) float32 radians, counter-clockwise from the right of the screen.
        level: (v,) float32 preferred tap, 1 the earliest.
        predicted: (M, v) float32 responses to the shown pictures, z-scores.
        top_attention: (v, T, side, side) float32 attention of each voxel on the T
            pictures it is predicted to respond to most, strongest first; or None.
        axes: Where the three coordinates of a volume grow to: right, front (anterior)
            and up in millimetres; ("i", "j", "k") where that is not known.
    """

    name: str
    space: str
    kind: str
    position: np.ndarray
    voxel: np.ndarray
    total: int
    cluster: np.ndarray
    region: np.ndarray
    score: np.ndarray
    field: np.ndarray
    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    eccentricity: np.ndarray
    angle: np.ndarray
    level: np.ndarray
    predicted: np.ndarray
    top_attention: np.ndarray | None = None
    axes: tuple[str, str, str] = ("R", "A", "S")

    def take(self, rows: np.ndarray) -> "Brain":
        """The same with these voxels alone, of as many as before in all."""
        columns = {name: getattr(self, name)[rows] for name in _PER_VOXEL}
        top = None if self.top_attention is None else self.top_attention[rows]
        return self._replace(
            predicted=self.predicted[:, rows], top_attention=top, **columns
        )


_PER_VOXEL = ("position", "voxel", "cluster", "region", "field", *_SCALARS)


class Group(NamedTuple):
    """A cluster, or a region with its voxels in all subjects.

    Attributes:
        name: Shown in the list.
        about: (label, text) facts.
        table: Head and rows of text.
        top: Indices of the shown pictures with the strongest predicted response,
            strongest first.
        top_measured: The same for measured responses; () where there are none.
        bottom: Those with the weakest predicted response, weakest first.
        top_attention: (T, side, side) float32 mean attention of the group on its first
            T top pictures, or None.
        field: (side, side) float32 mean attention over pictures, or None.
        kind: What it is, in a word.
    """

    name: str
    about: Sequence[tuple[str, str]]
    table: tuple[Sequence[str], Sequence[Sequence[str]]]
    top: Sequence[int]
    top_measured: Sequence[int] = ()
    bottom: Sequence[int] = ()
    top_attention: np.ndarray | None = None
    field: np.ndarray | None = None
    kind: str = "cluster"


class Mesh(NamedTuple):
    """Both hemispheres, left and right, of fsaverage5.

    Attributes:
        vertices: Two (10242, 3) float32, millimetres.
        faces: Two (20480, 3) int, counter-clockwise from outside.
        sulc: Two (10242,) float32, positive in a sulcus.
    """

    vertices: tuple[np.ndarray, np.ndarray]
    faces: tuple[np.ndarray, np.ndarray]
    sulc: tuple[np.ndarray, np.ndarray]


class Exploration(NamedTuple):
    """All that the page shows.

    Attributes:
        title: Of the page.
        lead: What was trained on what.
        warnings: What a reader must know before believing it.
        pictures: (M, px, px, 3) uint8.
        picture_ids: M names.
        roi_names: R names.
        brains: S subjects.
        clusters: Those that `Brain.cluster` means.
        regions: R groups, in the order of `roi_names`.
        mesh: If any brain is a surface.
        provenance: (label, text) rows.
        score_name: What `Brain.score` is.
        size_unit: Of sizes and eccentricities.
        picture_size: Width of a picture in that unit, 1 if it is the unit itself.
    """

    title: str
    lead: str
    warnings: Sequence[str]
    pictures: np.ndarray
    picture_ids: Sequence[str]
    roi_names: Sequence[str]
    brains: Sequence[Brain]
    clusters: Sequence[Group]
    regions: Sequence[Group]
    mesh: Mesh | None = None
    provenance: Sequence[tuple[str, str]] = ()
    score_name: str = "score"
    size_unit: str = "picture widths"
    picture_size: float = 1.0


def fsaverage5() -> Mesh:
    """The inflated surface that comes with nilearn; nothing is downloaded."""
    from nilearn import datasets, surface

    files = datasets.fetch_surf_fsaverage("fsaverage5")
    meshes = [surface.load_surf_mesh(files[f"infl_{h}"]) for h in ("left", "right")]
    sulc = [surface.load_surf_data(files[f"sulc_{h}"]) for h in ("left", "right")]
    return Mesh(
        (meshes[0].coordinates, meshes[1].coordinates),
        (meshes[0].faces, meshes[1].faces),
        (sulc[0], sulc[1]),
    )


def even_subset(group: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Some of n voxels at random, with the same share of every group.

    A draw by score would show the model better than it is, and a plain draw loses
    small clusters. Every group keeps at least one voxel while there is room.

    Args:
        group: (n,) int, for example the cluster of each voxel.
        count: How many are wanted; all are kept where there are fewer.
        seed: Of the draw.

    Returns:
        Their rows, ascending.

    Example:
        >>> group = np.array([0] * 90 + [1] * 9 + [2])
        >>> np.bincount(group[even_subset(group, 20)]).tolist()
        [17, 2, 1]
    """
    if count >= len(group):
        return np.arange(len(group))
    rng = np.random.default_rng(seed)
    _, label, sizes = np.unique(group, return_inverse=True, return_counts=True)
    if len(sizes) > count:
        return np.sort(rng.permutation(len(group))[:count])
    wanted = 1 + (sizes - 1) * (count - len(sizes)) / (len(group) - len(sizes))
    share = np.floor(wanted).astype(int)
    left = np.argsort(share - wanted, kind="stable")[: count - share.sum()]
    share[left] += 1
    order = rng.permutation(len(group))
    order = order[np.argsort(label[order], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    rank = np.arange(len(group)) - starts[label[order]]
    return np.sort(order[rank < share[label[order]]])


def write(
    path: str | os.PathLike, exploration: Exploration, *, max_bytes: int = 25_000_000
) -> list[str]:
    """Writes the page, whole or not at all.

    What makes it too large goes in this order: attention of single voxels on single
    pictures; voxels down to 1,000 a subject; then voxels and sharpness of the pictures
    by turns. The page says what went.

    Args:
        path: Of the HTML file.
        exploration: What it shows.
        max_bytes: The file is no larger.

    Returns:
        What was reduced, a sentence each.

    Raises:
        errors.InputError: If arrays do not fit together.
        errors.ConfigError: If `max_bytes` is too few for the smallest page.
        errors.OutputError: If the file cannot be written.
    """
    _check(path, exploration)
    text, notes = _fit(path, exploration, max_bytes)
    whole.write_text(path, text)
    return notes


def _fit(path: Any, whole_of_it: Exploration, max_bytes: int) -> tuple[str, list[str]]:
    """The richest page that is not too large, and what it lacks."""
    most, with_attention = MOST_VOXELS, True
    for px, least in _STEPS:
        while True:
            shown = _reduce(whole_of_it, most, with_attention)
            notes = _notes(whole_of_it, shown, px)
            page = _page(shown, notes, px)
            if len(page.encode(errors="replace")) <= max_bytes:
                return page, notes
            if with_attention and any(
                b.top_attention is not None for b in shown.brains
            ):
                with_attention = False
                continue
            largest = max(len(b.voxel) for b in shown.brains)
            if largest <= least:
                break
            share = 0.95 * max_bytes / len(page)
            most = max(least, int(min(share, 0.9) * largest))
    raise errors.ConfigError(
        path,
        "max_bytes",
        f"{max_bytes:,}; the smallest page has {len(page):,}",
        "room for the page",
        "Raise it, or show fewer pictures or subjects.",
    )


def _reduce(whole_of_it: Exploration, most: int, with_attention: bool) -> Exploration:
    """With so many voxels a subject, evenly over clusters."""
    brains = []
    for number, brain in enumerate(whole_of_it.brains):
        if not with_attention:
            brain = brain._replace(top_attention=None)
        if len(brain.voxel) > most:
            brain = brain.take(even_subset(brain.cluster, most, seed=number))
        brains.append(brain)
    return whole_of_it._replace(brains=brains)


def _notes(asked: Exploration, shown: Exploration, px: int) -> list[str]:
    """What the page shows less of than it was given."""
    notes = []
    for brain in shown.brains:
        if len(brain.voxel) < brain.total:
            notes.append(
                f"{brain.name}: {len(brain.voxel):,} of {brain.total:,} voxels shown, "
                "drawn at random with the same share of every cluster"
            )
    if any(b.top_attention is not None for b in asked.brains) and not any(
        b.top_attention is not None for b in shown.brains
    ):
        notes.append("attention of single voxels on single pictures left out")
    if px < min(asked.pictures.shape[1], _STEPS[0][0]):
        notes.append(f"pictures shown at {px} pixels")
    return notes


def _check(path: Any, exploration: Exploration) -> None:
    """Refuses arrays that do not fit together, naming all that do not."""
    num_pictures, num_rois = len(exploration.pictures), len(exploration.roi_names)
    groups = len(exploration.clusters)
    wrong = []

    def expect(name: str, found: Any, wanted: Any) -> None:
        if found != wanted:
            wrong.append(f"{name} {found} instead of {wanted}")

    expect("picture_ids", len(exploration.picture_ids), num_pictures)
    expect("regions", len(exploration.regions), num_rois)
    expect("pictures", exploration.pictures.dtype, np.uint8)
    expect("pictures", exploration.pictures.shape[3:], (3,))
    for brain in exploration.brains:
        v, said = len(brain.voxel), brain.name
        for name in _PER_VOXEL:
            expect(f"{said}.{name}", len(getattr(brain, name)), v)
        expect(f"{said}.position", brain.position.shape[1:], (3,))
        expect(f"{said}.region", brain.region.shape, (v, num_rois))
        expect(f"{said}.predicted", brain.predicted.shape, (num_pictures, v))
        expect(f"{said}.field", brain.field.ndim, 3)
        if brain.top_attention is not None:
            expect(f"{said}.top_attention", len(brain.top_attention), v)
        if v and not -1 <= brain.cluster.min() <= brain.cluster.max() < groups:
            wrong.append(f"{said}.cluster outside of -1..{groups - 1}")
        if brain.kind not in ("surface", "volume"):
            wrong.append(f"{said}.kind {brain.kind!r}")
        if not np.isfinite(brain.position).all():
            wrong.append(f"{said}.position not finite")
        if not np.isfinite(brain.predicted).all():
            wrong.append(f"{said}.predicted not finite")
        if brain.kind == "surface":
            wrong.extend(_check_surface(brain, exploration.mesh))
    for group in (*exploration.clusters, *exploration.regions):
        for picture in (*group.top, *group.top_measured, *group.bottom):
            if not 0 <= picture < num_pictures:
                wrong.append(f"{group.name}: picture {picture} of {num_pictures}")
    if not 0 < exploration.picture_size < np.inf:
        wrong.append(f"picture_size {exploration.picture_size}")
    if not exploration.brains:
        wrong.append("no brain")
    if wrong:
        found = "; ".join(wrong[:5]) + (f"; {len(wrong) - 5} more" * (len(wrong) > 5))
        raise errors.InputError(
            path, "", found, "arrays that fit together", "Mend what made them."
        )


def _check_surface(brain: Brain, mesh: Mesh | None) -> list[str]:
    if mesh is None:
        return [f"{brain.name} is a surface without a mesh"]
    hemisphere, vertex = brain.position[:, 0], brain.position[:, 1]
    known = np.isin(hemisphere, (0, 1)).all() and (vertex >= 0).all()
    if not known or (vertex >= len(mesh.vertices[0])).any():
        return [f"{brain.name}.position outside of the surface"]
    return []


def _page(shown: Exploration, notes: Sequence[str], px: int) -> str:
    """The HTML of the whole page."""
    folder = importlib.resources.files("ubrain_jax.maps") / "explorer_page"
    style = (folder / "page.css").read_text(encoding="utf-8")
    parts = [(folder / name).read_text(encoding="utf-8") for name in _SCRIPTS]
    # One function around all: nothing of the page is visible to others.
    script = '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"
    table, packed = _pack(dict(_arrays(shown)))
    texts = {**_texts(shown, notes, px), "arrays": table}
    return _PAGE.format(
        title=pages.escape(shown.title),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        body=(folder / "page.html").read_text(encoding="utf-8"),
        texts=_json(texts),
        packed=packed,
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _json(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    # Lone surrogates of undecodable file names cannot be written as UTF-8.
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _texts(shown: Exploration, notes: Sequence[str], px: int) -> dict[str, Any]:
    """All that is not an array."""
    return {
        "title": str(shown.title),
        "lead": str(shown.lead),
        "warnings": [str(w) for w in shown.warnings],
        "notes": list(notes),
        "score": str(shown.score_name),
        "unit": str(shown.size_unit),
        "width": float(shown.picture_size),
        "provenance": _pairs(shown.provenance),
        "pictures": [_jpeg(p, px) for p in shown.pictures],
        "ids": [str(i) for i in shown.picture_ids],
        "rois": [str(r) for r in shown.roi_names],
        "clusters": [_group(g) for g in shown.clusters],
        "regions": [_group(g) for g in shown.regions],
        "brains": [
            {
                "name": str(b.name),
                "space": str(b.space),
                "kind": b.kind,
                "axes": list(b.axes),
                "total": int(b.total),
            }
            for b in shown.brains
        ],
    }


def _pairs(rows: Sequence[tuple[str, str]]) -> list[list[str]]:
    return [[str(label), str(text)] for label, text in rows]


def _group(group: Group) -> dict[str, Any]:
    head, rows = group.table
    return {
        "name": str(group.name),
        "kind": str(group.kind),
        "about": _pairs(group.about),
        "head": [str(h) for h in head],
        "rows": [[str(cell) for cell in row] for row in rows],
        "top": [int(i) for i in group.top],
        "measured": [int(i) for i in group.top_measured],
        "bottom": [int(i) for i in group.bottom],
    }


def _jpeg(pixels: np.ndarray, px: int) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((px, px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _arrays(shown: Exploration) -> Iterator[tuple[str, np.ndarray]]:
    """Named arrays, as few bytes as look the same."""
    for number, brain in enumerate(shown.brains):
        name = f"brain{number}"
        for key in _SCALARS:
            yield f"{name}/{key}", np.asarray(getattr(brain, key), np.float32)
        yield f"{name}/position", np.asarray(brain.position, np.float32)
        yield f"{name}/voxel", np.asarray(brain.voxel, np.int32)
        yield f"{name}/cluster", np.asarray(brain.cluster, np.int16)
        yield f"{name}/region", np.asarray(brain.region, np.uint8)
        yield f"{name}/field", _relative(brain.field)
        # A scale for each voxel, or weak voxels would have many equal pictures.
        predicted = np.asarray(brain.predicted, np.float32).T
        scale = np.abs(predicted).max(1, initial=1e-9) / 127
        yield f"{name}/scale", scale.astype(np.float32)
        yield f"{name}/predicted", np.rint(predicted / scale[:, None]).astype(np.int8)
        if brain.top_attention is not None:
            yield f"{name}/attention", _relative(brain.top_attention)
    for kind, groups in (("cluster", shown.clusters), ("region", shown.regions)):
        for number, group in enumerate(groups):
            if group.field is not None:
                yield f"{kind}{number}/field", _relative(group.field)
            if group.top_attention is not None:
                yield f"{kind}{number}/attention", _relative(group.top_attention)
    if shown.mesh is not None:
        both = (np.concatenate(part) for part in (shown.mesh.vertices, shown.mesh.sulc))
        vertices, sulc = both
        left, right = shown.mesh.faces
        yield "mesh/vertices", np.rint(vertices * 100).astype(np.int16)
        yield "mesh/sulc", (sulc > 0).astype(np.uint8)
        shifted = np.concatenate([left, right + len(shown.mesh.vertices[0])])
        yield "mesh/faces", shifted.astype(np.uint16)


def _relative(maps: np.ndarray) -> np.ndarray:
    """(..., side, side) -> uint8, 255 the strongest place of each map."""
    maps = np.nan_to_num(np.asarray(maps, np.float32)).clip(0)
    peak = maps.max((-2, -1), keepdims=True, initial=0)
    return np.rint(maps / np.where(peak > 0, peak, 1) * 255).astype(np.uint8)


def _pack(arrays: dict[str, np.ndarray]) -> tuple[dict[str, Any], str]:
    """Where each array lies in one block of bytes, and the block for a page."""
    table, blocks, place = {}, [], 0
    for name, array in arrays.items():
        kind = array.dtype.newbyteorder("<")
        data = np.ascontiguousarray(array, kind).tobytes()
        table[name] = [str(array.dtype), list(array.shape), place]
        blocks += [data, bytes(-len(data) % 4)]
        place += len(data) + len(blocks[-1])
    # No time in the header: the same arrays are the same bytes.
    packed = gzip.compress(b"".join(blocks), compresslevel=6, mtime=0)
    return table, base64.b64encode(packed).decode("ascii")


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
img-src data:; style-src {style_hash}; script-src {script_hash}; \
base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
<script type="application/json" id="texts">{texts}</script>
<script type="application/octet-stream" id="arrays">{packed}</script>
<script>{script}</script>
</body>
</html>
"""
