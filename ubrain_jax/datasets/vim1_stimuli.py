"""Reads the pictures of vim-1: grey values around a grey background, to uint8.

Three encodings hold the same 1750 training and 120 validation pictures:

    Stimuli_Trn_FullRes_01.mat ... _15.mat, Stimuli_Val_FullRes.mat    500 x 500
    Stimuli.mat                                                        128 x 128
    kay_images.npz (Neuromatch Academy)                                128 x 128

In MATLAB an array is (pictures, y, x). Values are about -0.55 to 0.45, with 0 the
background: a luminance of 0 to 1 less that of the background. One fixed affine map
for all pictures, never one for each, gives 0 to 255.

References:
    Kay et al., 2008, Nature 452:352 (pictures).
"""

import math
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import files, npz, schema

FULL = [f"Stimuli_Trn_FullRes_{k:02d}.mat" for k in range(1, 16)]
FULL_VAL = "Stimuli_Val_FullRes.mat"
SMALL = "Stimuli.mat"
ARCHIVE = "kay_images.npz"
# Values shown black and white.
CENTRED = (-0.55, 0.45)
UNIT = (0.0, 1.0)
BYTES = (0.0, 255.0)
# What may lie outside, as a share of black to white, before the map is refused.
_MOST_OUTSIDE = 0.25
_LEAST_SPAN = 0.2
_WINDOW = 128_000_000  # bytes of pictures in memory at once
_ACTION = (
    "Copy the pictures of vim-1 again, or say where they lie (images) and what is "
    "black and white (grey)."
)


class Part(NamedTuple):
    """One array of pictures.

    Attributes:
        split: "train" or "val", as in the file's name.
        path: The file.
        name: Of the array in it.
        first: Number of its first picture in the split, from 0.
        shape: (pictures, y, x).
        dtype: Of its values.
        header: Of an array in an archive; None in a MATLAB file.
    """

    split: str
    path: pathlib.Path
    name: str
    first: int
    shape: tuple[int, int, int]
    dtype: np.dtype
    header: npz.Header | None


class Stimuli(NamedTuple):
    """All pictures, found and checked, most of them not read.

    Attributes:
        parts: The arrays, training before validation.
        grey: Values shown black and white.
        given: Whether the caller said so; then nothing is refused, only clipped.
        report: Lines about what is used.
    """

    parts: list[Part]
    grey: tuple[float, float]
    given: bool
    report: list[str]

    def num(self, split: str) -> int:
        """How many pictures a split has."""
        return sum(p.shape[0] for p in self.parts if p.split == split)


def open_stimuli(
    place: pathlib.Path, *, grey: tuple[float, float] | None = None
) -> Stimuli:
    """Finds the pictures and what their values mean.

    Full resolution is preferred where all 16 files are there, then `Stimuli.mat`,
    then `kay_images.npz`.

    Args:
        place: Folder that holds the files, or one of the latter two.
        grey: Values shown black and white. None tells them from the validation
            pictures: whole numbers are 0 to 255, else values without a sign 0 to 1,
            else -0.55 to 0.45.

    Returns:
        The pictures; validation pictures were read.

    Raises:
        errors.MissingInputError: If there are none, or only some of the 15 files.
        errors.InputError: If the arrays are no pictures of one size, or their values
            fit no range above.
    """
    parts, report = _find(place)
    problems: list[schema.Problem] = []
    sizes = {p.shape[1:] for p in parts}
    for part in parts:
        if min(part.shape) < 1 or part.dtype.kind not in "iuf":
            found = f"{part.dtype} {part.shape}"
            schema.add_problem(problems, _where(part), found, "(pictures, y, x)")
    if len(sizes) > 1:
        sizes_found = schema.shorten([f"{y} x {x}" for y, x in sorted(sizes)])
        schema.add_problem(
            problems, "pictures", f"sizes {sizes_found}", "one size (y, x) for all"
        )
    schema.raise_problems(place, problems, _ACTION)
    height, width = parts[0].shape[1:]
    given = grey is not None
    if grey is None:
        grey = _guess([p for p in parts if p.split == "val"])
    black, white = grey
    report.append(
        f"pictures: {height} x {width} grey from {_names(parts)}; one map for all: "
        f"{black:g} is black, {white:g} white"
        + ("" if given else ", told from the range of the validation pictures (grey)")
    )
    return Stimuli(parts, grey, given, report)


def describe(stimuli: Stimuli) -> str:
    """The pictures in one phrase, for attributes."""
    height, width = stimuli.parts[0].shape[1:]
    black, white = stimuli.grey
    return (
        f"{height} x {width} grey from {_names(stimuli.parts)}; {black:g} is "
        f"black, {white:g} white, to the nearest of 0..255"
    )


def read(
    stimuli: Stimuli, pictures: Sequence[tuple[str, int]], report: list[str]
) -> Iterator[np.ndarray]:
    """Yields pictures in the order asked for.

    Several are read at once (`_WINDOW`), since a file keeps its pictures interleaved.

    Args:
        stimuli: From `open_stimuli`.
        pictures: Pairs of a split ("train" or "val") and a number from 0.
        report: Gets a line about clipped pixels behind the last one.

    Yields:
        (y, x, 3) uint8, three equal colours.

    Raises:
        errors.InputError: If values are not finite, or far outside the range.
    """
    shape = stimuli.parts[0].shape[1:]
    step = max(1, _WINDOW // math.prod(shape))
    clipped, num_clipped = 0, 0
    for start in range(0, len(pictures), step):
        wanted = pictures[start : start + step]
        out = np.empty((len(wanted), *shape), np.uint8)
        outside = np.zeros(len(wanted), np.int64)
        for part in stimuli.parts:
            rows = [
                (row, number - part.first)
                for row, (split, number) in enumerate(wanted)
                if split == part.split and 0 <= number - part.first < part.shape[0]
            ]
            if rows:
                _fill(stimuli, part, np.array(rows), out, outside)
        clipped += int(outside.sum())
        num_clipped += int((outside > 0).sum())
        for picture in out:
            yield np.repeat(picture[..., None], 3, 2)
    share = clipped / max(1, len(pictures) * math.prod(shape))
    report.append(
        f"pictures: {clipped} pixels ({share:.2%}) in {num_clipped} of {len(pictures)} "
        "pictures lay outside black to white and were clipped"
    )


def to_uint8(values: np.ndarray, grey: tuple[float, float]) -> np.ndarray:
    """Grey levels of values, not yet clipped: black 0, white 255, to the nearest.

    Args:
        values: Any shape.
        grey: Values shown black and white.

    Returns:
        float64 whole numbers; below 0 or above 255 where the value lies outside.

    Example:
        >>> to_uint8(np.array([-0.55, 0, 0.45, 0.5]), (-0.55, 0.45))
        array([  0., 140., 255., 268.])
    """
    black, white = grey
    scaled = (values.astype(np.float64) - black) * (255 / (white - black))
    return np.rint(scaled) + 0.0  # no -0


def _find(place: pathlib.Path) -> tuple[list[Part], list[str]]:
    """The arrays of the best encoding there is, and lines about the choice."""
    if place.is_file():
        if place.suffix == ".npz":
            return _archive_parts(place), []
        return _mat_parts([(place, "train"), (place, "val")]), []
    full = [*FULL, FULL_VAL]
    there = [name for name in full if (place / name).is_file()]
    missing = [name for name in full if name not in there]
    if not missing:
        splits = ["train"] * len(FULL) + ["val"]
        named = [place / name for name in full]
        return _mat_parts(list(zip(named, splits, strict=True))), []
    report = []
    if there:
        report.append(
            f"pictures: full resolution not used, {len(missing)} of {len(full)} files "
            f"missing: {schema.shorten(missing)}"
        )
    small = place / SMALL
    if small.is_file():
        return _mat_parts([(small, "train"), (small, "val")]), report
    if (place / ARCHIVE).is_file():
        return _archive_parts(place / ARCHIVE), report
    found = f"{len(missing)} missing: {schema.shorten(missing)}" if there else "none"
    raise errors.MissingInputError(
        place,
        "",
        f"pictures: {found}",
        f"{FULL[0]} to {FULL[-1][-6:-4]} and {FULL_VAL}, or {SMALL}, or {ARCHIVE}",
        "Put them there, or say where they lie (images).",
    )


def _mat_parts(named: Sequence[tuple[pathlib.Path, str]]) -> list[Part]:
    """Arrays stimTrn and stimVal of MATLAB files, in order."""
    paths = list(dict.fromkeys(path for path, _ in named))
    layouts = dict(zip(paths, files.mat_layouts(paths), strict=True))
    parts: list[Part] = []
    first = {"train": 0, "val": 0}
    problems: list[schema.Problem] = []
    for path, split in named:
        name = "stimTrn" if split == "train" else "stimVal"
        layout = layouts[path].get(name)
        if layout is None:
            held = schema.shorten(list(layouts[path])) or "nothing"
            schema.add_problem(problems, path.name, f"holds {held}", f"an array {name}")
        elif len(layout.shape) != 3:
            schema.add_problem(
                problems, f"{path.name}:{name}", f"{layout.shape}", "(pictures, y, x)"
            )
        else:
            num, height, width = layout.shape
            shape = num, height, width
            part = Part(split, path, name, first[split], shape, layout.dtype, None)
            parts.append(part)
            first[split] += num
    schema.raise_problems(paths[0].parent, problems, _ACTION)
    return parts


def _archive_parts(path: pathlib.Path) -> list[Part]:
    """Arrays `stimuli` and `stimuli_test` of the Neuromatch copy."""
    headers = npz.headers(path)
    parts = []
    problems: list[schema.Problem] = []
    for name, split in (("stimuli", "train"), ("stimuli_test", "val")):
        header = headers.get(name)
        if header is None or len(header.shape) != 3:
            found = "not in the archive" if header is None else f"{header.shape}"
            schema.add_problem(problems, name, found, "(pictures, y, x)")
        else:
            num, height, width = header.shape
            shape = num, height, width
            parts.append(Part(split, path, name, 0, shape, header.dtype, header))
    schema.raise_problems(path, problems, _ACTION)
    return parts


def _guess(parts: Sequence[Part]) -> tuple[float, float]:
    """Values of black and white, told by the range of some pictures."""
    low, high, whole = math.inf, -math.inf, True
    for part in parts:
        for _, block in _blocks(part):
            _check_finite(part, block)
            low, high = min(low, float(block.min())), max(high, float(block.max()))
            whole = whole and bool((block == np.rint(block)).all())
    if whole and high > 1:
        grey = BYTES
    else:
        grey = UNIT if low >= 0 else CENTRED
    if not _fits(low, high, grey) or high - low < _LEAST_SPAN * (grey[1] - grey[0]):
        raise errors.InputError(
            parts[0].path,
            parts[0].name,
            f"values {low:.4g}..{high:.4g}",
            "about -0.55..0.45, or 0..1, or whole numbers 0..255",
            "Say which values are black and white (grey), or copy the file again.",
        )
    return grey


def _fits(low: float, high: float, grey: tuple[float, float]) -> bool:
    """Whether values can be those of pictures with this black and white."""
    span = grey[1] - grey[0]
    return low >= grey[0] - _MOST_OUTSIDE * span and (
        high <= grey[1] + _MOST_OUTSIDE * span
    )


def _fill(
    stimuli: Stimuli,
    part: Part,
    rows: np.ndarray,
    out: np.ndarray,
    outside: np.ndarray,
) -> None:
    """Copies pictures of one array; `rows` holds pairs (row of out, row of array)."""
    target, source = rows.T
    for columns, block in _blocks(part):
        values = block[source]
        _check_finite(part, values)
        low, high = float(values.min()), float(values.max())
        if not stimuli.given and not _fits(low, high, stimuli.grey):
            black, white = stimuli.grey
            raise errors.InputError(
                part.path,
                part.name,
                f"values {low:.4g}..{high:.4g}",
                f"about {black:g}..{white:g}, as the validation pictures",
                _ACTION,
            )
        levels = to_uint8(values, stimuli.grey)
        outside[target] += ((levels < 0) | (levels > 255)).sum((1, 2))
        out[target, :, columns] = np.clip(levels, 0, 255)


def _blocks(part: Part) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields (columns, (pictures, y, columns)) of one array.

    Columns of pixels, because MATLAB has the last axis slowest.
    """
    num, height, width = part.shape
    if part.header is not None:
        yield slice(0, width), npz.read(part.path, part.name, part.header)
        return
    step = max(1, schema.BLOCK // (num * height * part.dtype.itemsize))
    starts = range(0, width, step)
    wanted = [[(0, num), (0, height), (x, min(x + step, width))] for x in starts]
    for start, block in zip(
        starts, files.mat_blocks(part.path, part.name, wanted), strict=True
    ):
        if block.ndim != 3 or block.shape[:2] != (num, height):
            raise errors.InputError(  # only if the file is written to meanwhile
                part.path, part.name, f"{block.shape}", f"{part.shape}", _ACTION
            )
        yield slice(start, start + step), block


def _check_finite(part: Part, block: np.ndarray) -> None:
    """Refuses pictures with holes."""
    bad = ~np.isfinite(block)
    if bad.any():
        picture = part.first + int(np.argmax(bad.any((1, 2)))) + 1
        raise errors.InputError(
            part.path,
            part.name,
            f"{int(bad.sum())} pixels are not finite (first in picture {picture})",
            "grey values",
            _ACTION,
        )


def _where(part: Part) -> str:
    """File and array, for messages."""
    return f"{part.path.name}:{part.name}"


def _names(parts: Sequence[Part]) -> str:
    """Files of the arrays, the 15 numbered ones as one."""
    names = [re.sub(r"_\d\d\.mat$", "_*.mat", p.path.name) for p in parts]
    return " and ".join(dict.fromkeys(names))
