"""Reads what a lab knows of its voxels: places, regions, noise ceilings.

One row for each column of the betas, in the same order.
"""

import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import schema, table_betas, table_trials

_SAME = "Save it again with one row for each voxel, in the order of the betas."
_INSIDE = {"0": False, "0.0": False, "false": False}
_INSIDE |= {"1": True, "1.0": True, "true": True}


class Voxels(NamedTuple):
    """V voxels as the betas have them.

    Attributes:
        position: (V, 3) int32.
        roi: (V, R) bool.
        roi_names: R names.
        ncsnr: (V,) float32 as given, or None.
        attrs: space, and affine and grid where there is a mask.
        paths: Files read.
        report: What is odd about them.
    """

    position: np.ndarray
    roi: np.ndarray
    roi_names: list[str]
    ncsnr: np.ndarray | None
    attrs: dict[str, Any]
    paths: list[pathlib.Path]
    report: list[str]


def read_voxels(
    num: int,
    *,
    mask: table_betas.Mask | None,
    position: str | os.PathLike | None,
    roi: str | os.PathLike | None,
    ncsnr: str | os.PathLike | None,
    space: str | None,
) -> Voxels:
    """Reads the files there are about `num` voxels.

    Args:
        num: V, columns of the betas.
        mask: Gives positions i, j, k in its C order (x slowest), and the affine.
        position: .npy (V, 3) int. Without it and a mask, a position is
            (column of the betas, -1, -1).
        roi: See `read_regions`.
        ncsnr: .npy (V,), at least 0 or NaN.
        space: Name of the space of the positions.

    Raises:
        errors.MissingInputError: If a file is missing.
        errors.InputError: If one is of another length, or holds something else.
        errors.ConfigError: If both a mask and positions are given.
    """
    if mask is not None and position is not None:
        raise errors.ConfigError(
            "position", "", "given beside a mask", "one of them", "Leave one out."
        )
    paths = [pathlib.Path(p) for p in (position, roi, ncsnr) if p is not None]
    report: list[str] = []
    attrs: dict[str, Any] = {"space": space or "not said"}
    places = np.full((num, 3), -1, np.int32)
    if mask is not None:
        places = np.argwhere(mask.inside).astype(np.int32)
        paths.append(mask.path)
        attrs = {
            "space": space or "volume",
            "affine": mask.affine.tolist(),
            "grid": list(mask.inside.shape),
        }
    elif position is not None:
        places = _read_positions(pathlib.Path(position), num)
        twice = num - len(np.unique(places, axis=0))
        if twice:
            report.append(f"warning: {twice} voxels have the position of another")
    else:
        places[:, 0] = np.arange(num)
        attrs["space"] = "column of the betas" if space is None else space
    regions, names = np.zeros((num, 0), bool), []
    if roi is not None:
        regions, names = read_regions(roi, num)
    ceilings = None if ncsnr is None else _read_ncsnr(pathlib.Path(ncsnr), num)
    return Voxels(places, regions, names, ceilings, attrs, paths, report)


def read_regions(path: str | os.PathLike, num: int) -> tuple[np.ndarray, list[str]]:
    """Reads regions.

    Args:
        path: .csv or .tsv with one column for each region, headed by its name, and
            cells 1 (or true) and 0 (or false); or .npy (V,) of labels,
            0 and less for none, whose regions are called "label-1", ...
        num: V.

    Returns:
        (V, R) bool and R names; regions without voxels are kept.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is of another length or holds something else.
    """
    path = pathlib.Path(path)
    if path.suffix == ".npy":
        labels = _array(path, (num,), "iub")
        found = np.unique(labels[labels > 0])
        return labels[:, None] == found, [f"label-{int(k)}" for k in found]
    sheet = table_trials.read_sheet(path)
    _check_length(path, len(sheet.lines), num)
    problems: list[schema.Problem] = []
    columns = []
    for name, cells in zip(sheet.names, sheet.columns.values(), strict=True):
        lowered = [cell.lower() for cell in cells]
        wrong = [
            f"{cell!r} in line {line}"
            for cell, line in zip(lowered, sheet.lines, strict=True)
            if cell not in _INSIDE
        ]
        if wrong:
            found = schema.shorten(wrong, most=5)
            schema.add_problem(problems, f"column {name}", found, "0 or 1")
        columns.append([_INSIDE.get(cell, False) for cell in lowered])
    schema.raise_problems(path, problems, "Give each region a column of 0 and 1.")
    return np.asarray(columns, bool).T, sheet.names


def _read_positions(path: pathlib.Path, num: int) -> np.ndarray:
    """Positions (V, 3) int32."""
    array = _array(path, (num, 3), "iu")
    if array.min() < -(2**31) or array.max() >= 2**31:
        found = f"values {array.min()}..{array.max()}"
        raise errors.InputError(path, "", found, "32-bit integers", _SAME)
    return array.astype(np.int32)


def _read_ncsnr(path: pathlib.Path, num: int) -> np.ndarray:
    """Ratios (V,) float32, NaN where unknown."""
    array = _array(path, (num,), "f").astype(np.float32)
    wrong = np.isinf(array) | (array < 0)
    if wrong.any():
        raise errors.InputError(
            path,
            "",
            f"{int(wrong.sum())} values are negative or inf",
            "ratios of at least 0, or NaN",
            "Pass ncsnr, not a noise ceiling: ncsnr = sqrt(NC / (1 - NC) / repeats).",
        )
    return array


def _array(path: pathlib.Path, shape: tuple[int, ...], kinds: str) -> np.ndarray:
    """A small .npy of one shape and some kinds of numbers."""
    if not path.is_file():
        raise errors.MissingInputError(
            path, "", "no such file", "a .npy file", "Check the path."
        )
    problems: list[schema.Problem] = []
    array = schema.open_npy(path, path.parent, problems)
    if array is None:
        raise errors.InputError(
            path, "", problems[0].found, problems[0].expected, _SAME
        )
    if array.ndim == len(shape) and array.shape[1:] == shape[1:]:
        _check_length(path, len(array), shape[0])
    if array.shape != shape or array.dtype.kind not in kinds:
        words = {"iub": "integers", "iu": "integers", "f": "floats"}
        found = f"{array.shape} {array.dtype}"
        raise errors.InputError(path, "", found, f"{shape} {words[kinds]}", _SAME)
    return np.asarray(array)


def _check_length(path: pathlib.Path, found: int, num: int) -> None:
    """One row for each voxel."""
    if found != num:
        raise errors.InputError(
            path,
            "",
            f"{found} rows, betas of {num} voxels",
            "one row for each voxel",
            _SAME,
        )
