"""Opens a lab's own betas, trials by voxels, from the formats labs keep them in.

One file or several, one after the other: .npy, .mat (version 5, 7 or 7.3), .zarr, and
4-D NIfTI, whose mask says which voxels count. Parts are read as they are asked for;
only NIfTI files and MATLAB files before 7.3, which have to be unpacked from their
start, are held in memory, one at a time.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import zarr

from ubrain_jax import errors
from ubrain_jax.datasets import files, nsd, schema

VOLUMES = (".nii", ".nii.gz")
_AFFINE_TOLERANCE = 0.01  # mm
_AGAIN = "Copy or save the file again."
# What zarr and its codecs raise at damaged metadata or chunks.
_NOT_ZARR = (ValueError, OSError, EOFError, RuntimeError, TypeError, KeyError)
# Rows (sorted) and columns of a part.
Take = Callable[[np.ndarray, slice], np.ndarray]


class Mask(NamedTuple):
    """Which voxels of a volume count: (X, Y, Z) bool, and its (4, 4) affine."""

    path: pathlib.Path
    inside: np.ndarray
    affine: np.ndarray


class _Part(NamedTuple):
    """One file; `open` gives what reads it, `kind` says of which numbers."""

    path: pathlib.Path
    shape: tuple[int, int]
    kind: str
    open: Callable[[], Take]


class Betas(NamedTuple):
    """Betas of T trials and V voxels, not read.

    Attributes:
        paths: Files, in the order of their trials.
        shape: (T, V).
        kinds: Types of the numbers in the files.
        lengths: Trials in each file.
        read: For sorted trials (n,) and a slice of voxels, (n, voxels) as stored.
    """

    paths: list[pathlib.Path]
    shape: tuple[int, int]
    kinds: list[str]
    lengths: list[int]
    read: Take


def read_mask(path: str | os.PathLike) -> Mask:
    """Reads a NIfTI mask of 0 and 1 (-1 counts as 0).

    Raises:
        errors.InputError: If it is no such file, or empty.
    """
    path = pathlib.Path(path)
    header = files.nifti_header(path)
    if len(header.shape) != 3:
        raise errors.InputError(
            path, "", f"{len(header.shape)} axes", "3: x, y, z", "Save one volume."
        )
    return Mask(path, nsd.read_mask(path, header.shape, None), header.affine)


def open_betas(sources: Sequence[str | os.PathLike], mask: Mask | None) -> Betas:
    """Opens files of betas and checks that they are parts of one table.

    Args:
        sources: Files in the order of their trials. `file.mat:NAME` and
            `folder.zarr:NAME` name an array where there are several.
        mask: For NIfTI files the voxels that count, in C order (x slowest). Other
            files must have as many columns as it has voxels.

    Raises:
        errors.MissingInputError: If files are missing; all are listed.
        errors.InputError: If one is damaged or no table of numbers, or they do not fit
            each other or the mask.
    """
    places = [_locate(os.fspath(source)) for source in sources]
    missing = [str(path) for path, _ in places if not path.exists()]
    if missing or not places:
        raise errors.MissingInputError(
            "betas",
            "",
            f"no file {schema.shorten(missing)}" if missing else "none given",
            "files on this machine",
            "Check --betas.",
        )
    parts = [_open(path, name, mask) for path, name in places]
    problems: list[schema.Problem] = []
    num = parts[0].shape[1]
    for part in parts:
        if part.shape[1] != num:
            schema.add_problem(
                problems,
                str(part.path),
                f"{part.shape[1]} voxels",
                f"{num}, as in {parts[0].path.name}",
            )
    schema.raise_problems(
        "betas", problems, "Save all parts with the same voxels in the same order."
    )
    if mask is not None and num != (inside := int(mask.inside.sum())):
        raise errors.InputError(
            mask.path,
            "",
            f"{inside} voxels in the mask, {num} columns in {parts[0].path.name}",
            "one column for each voxel of the mask",
            "Give the mask that the betas were taken with.",
        )
    starts = np.cumsum([0] + [part.shape[0] for part in parts])
    held: dict[int, Take] = {}

    def read(rows: np.ndarray, columns: slice) -> np.ndarray:
        blocks = []
        for k, part in enumerate(parts):
            mine = rows[(rows >= starts[k]) & (rows < starts[k + 1])] - starts[k]
            if not len(mine):
                continue
            if k not in held:
                held.clear()
                held[k] = part.open()
            with _readable(part.path):
                blocks.append(held[k](mine, columns))
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    kinds = sorted({part.kind for part in parts})
    lengths = [part.shape[0] for part in parts]
    return Betas([p.path for p in parts], (sum(lengths), num), kinds, lengths, read)


def size(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    inside = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sum(p.stat().st_size for p in inside)


def _locate(source: str) -> tuple[pathlib.Path, str]:
    """The path, and the name of an array inside it or nothing."""
    match = re.fullmatch(r"(.+\.(?:mat|zarr)/?):(.+)", source, re.IGNORECASE)
    if match and not pathlib.Path(source).exists():
        return pathlib.Path(match[1]), match[2]
    return pathlib.Path(source), ""


def _open(path: pathlib.Path, name: str, mask: Mask | None) -> _Part:
    """Opens one file by its ending."""
    lowered = path.name.lower()
    if lowered.endswith(VOLUMES):
        return _open_nifti(path, mask)
    if lowered.endswith(".npy"):
        return _open_npy(path)
    if lowered.endswith(".mat"):
        return _open_mat(path, name)
    if path.is_dir():
        return _open_zarr(path, name)
    raise errors.InputError(
        path,
        "",
        f"ends in {path.suffix or 'nothing'}",
        ".npy, .mat, .zarr, .nii or .nii.gz",
        "Save the betas as one of these, for example with numpy.save.",
    )


def _check(path: pathlib.Path, where: str, shape: tuple, dtype: np.dtype) -> None:
    """Refuses what is no table of numbers."""
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise errors.InputError(
            path, where, f"holds {dtype}", "numbers (float or int)", _AGAIN
        )
    if len(shape) != 2:
        raise errors.InputError(
            path,
            where,
            f"{len(shape)} axes {tuple(shape)}",
            "2 axes: trials, voxels",
            "Reshape the array so that row k is trial k and save it again.",
        )
    if 0 in shape:
        raise errors.InputError(
            path, where, f"shape {tuple(shape)}", "trials and voxels", _AGAIN
        )


def _kind(dtype: np.dtype) -> str:
    """A type without its byte order, for the report."""
    return str(dtype.newbyteorder("="))


def _rows(array: Any, rows: np.ndarray, columns: slice) -> np.ndarray:
    """Rows and columns of an array on disk; a run of rows is one read."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return np.asarray(array[int(rows[0]) : int(rows[-1]) + 1, columns])
    if isinstance(array, zarr.Array):
        return np.asarray(array.oindex[rows, columns])
    return np.asarray(array[rows, columns])


def _take_from(array: Any) -> Take:
    return lambda rows, columns: _rows(array, rows, columns)


def _open_npy(path: pathlib.Path) -> _Part:
    problems: list[schema.Problem] = []
    array = schema.open_npy(path, path.parent, problems)
    if array is None:
        raise errors.InputError(
            path, "", problems[0].found, problems[0].expected, _AGAIN
        )
    _check(path, "", array.shape, array.dtype)
    return _Part(path, array.shape, _kind(array.dtype), lambda: _take_from(array))


def _open_mat(path: pathlib.Path, name: str) -> _Part:
    """A variable of a MATLAB file, the only table if no name is given."""
    [found] = files.mat_layouts([path])
    tables = [n for n, v in found.items() if len(v.shape) == 2 and min(v.shape) > 1]
    chosen = [n for n in found if n == name] if name else tables
    if len(chosen) != 1:
        listing = [f"{n} {_size(v.shape)}" for n, v in found.items()] or ["nothing"]
        what = f"no numbers called {name}" if name else f"{len(chosen)} tables"
        raise errors.InputError(
            path,
            "",
            f"{what} (found: {schema.shorten(listing, most=8)})",
            "one table of trials and voxels",
            f"Say which: --betas={path.name}:NAME.",
        )
    [name] = chosen
    shape, dtype = found[name]
    packed = files.is_hdf5(path)
    # Before 7.3 the type shows when it is read: MATLAB packs whole numbers.
    _check(path, name, shape, np.dtype(np.float64))

    def take(rows: np.ndarray, columns: slice) -> np.ndarray:
        first = int(rows[0])
        block = [(first, int(rows[-1]) + 1), (columns.start, columns.stop)]
        [array] = files.mat_blocks(path, name, [block])
        return array[rows - first]

    def load() -> Take:
        if packed:
            return take
        array = files.read_mat(path, [name])[name]
        _check(path, name, array.shape, array.dtype)
        return _take_from(array)

    kind = _kind(dtype) if packed else "MATLAB numbers"
    return _Part(path, (shape[0], shape[1]), kind, load)


def _size(shape: Sequence[int]) -> str:
    """Shape as MATLAB prints it."""
    return "x".join(map(str, shape)) or "no numbers"


def _open_nifti(path: pathlib.Path, mask: Mask | None) -> _Part:
    """The voxels of a mask in a 4-D NIfTI file."""
    header = files.nifti_header(path)
    if len(header.shape) != 4:
        raise errors.InputError(
            path,
            "",
            f"{len(header.shape)} axes {header.shape}",
            "4 axes: x, y, z, trials",
            "Merge the trials into one 4-D file, or give a file for each session.",
        )
    if mask is None:
        raise errors.InputError(
            path,
            "",
            f"{math.prod(header.shape[:3])} voxels and no mask",
            "a mask of the voxels that count",
            "Pass --mask=MASK.nii.gz on the grid of the betas.",
        )
    if header.shape[:3] != mask.inside.shape:
        found = f"betas {_size(header.shape[:3])}, mask {_size(mask.inside.shape)}"
        raise errors.InputError(
            path, "", found, "one grid", "Resample the mask to the betas."
        )
    differ = float(np.abs(header.affine - mask.affine).max())
    if differ > _AFFINE_TOLERANCE:
        raise errors.InputError(
            path,
            "affine",
            f"betas and mask differ by {differ:.3g} mm in the affine",
            "one space",
            "Resample the mask to the betas.",
        )
    # The C order of the mask, as places in a volume stored x first.
    grid = mask.inside.shape
    where = np.ravel_multi_index(np.nonzero(mask.inside), grid, order="F")
    scaled = (header.slope, header.intercept) != (1, 0)
    dtype = np.dtype("f4") if scaled else header.dtype.newbyteorder("=")

    def load() -> Take:
        betas = np.empty((header.shape[3], len(where)), dtype)
        for trial, volume in enumerate(files.nifti_volumes(path)):
            row = volume.reshape(-1, order="F")[where]
            betas[trial] = row * header.slope + header.intercept if scaled else row
        return _take_from(betas)

    return _Part(path, (header.shape[3], len(where)), _kind(header.dtype), load)


def _open_zarr(path: pathlib.Path, name: str) -> _Part:
    """An array of a Zarr folder, the only one if no name is given."""
    with _readable(path):
        node = zarr.open(path, mode="r", path=name or None)
        if isinstance(node, zarr.Group):
            arrays = dict(node.arrays())
            if len(arrays) != 1:
                found = schema.shorten(sorted(arrays), most=8) or "nothing"
                raise errors.InputError(
                    path,
                    name,
                    f"a group of {len(arrays)} arrays ({found})",
                    "one array",
                    f"Say which: --betas={path.name}:NAME.",
                )
            [node] = arrays.values()
        facts = {**node.metadata.to_dict(), "attributes": None}
        codecs = json.dumps(facts, default=str)
    if "pickle" in codecs:
        raise errors.InputError(
            path,
            node.path,
            "is coded by pickle, which runs code from the file",
            "numbers",
            "Save it again with another codec.",
        )
    _check(path, node.path, node.shape, np.dtype(node.dtype))
    lost = node.nchunks - node.nchunks_initialized
    if lost > 0:  # Zarr would read them as its fill value
        raise errors.InputError(
            path,
            node.path,
            f"{lost} of {node.nchunks} chunks are not there",
            "all of them",
            "Copy the folder again. If the betas really are all "
            f"{node.fill_value} there, leave those voxels or trials out.",
        )
    shape = (node.shape[0], node.shape[1])
    return _Part(path, shape, _kind(np.dtype(node.dtype)), lambda: _take_from(node))


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    """What a library raises at damaged files, as our error."""
    try:
        yield
    except errors.InputError:
        raise
    except (*_NOT_ZARR, zlib.error) as error:
        found = f"cannot be read ({' '.join(str(error).split())[:150]})"
        raise errors.InputError(path, "", found, "an undamaged file", _AGAIN) from error
