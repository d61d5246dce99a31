"""Reads BData tables: the format of Generic Object Decoding and its successors.

A table has one row a sample. Some of its columns are voxels, others describe the
sample (run, stimulus). Metadata says which: for each key one value a column, 1 where
the column belongs to the key (0 or NaN where not) or, for voxel_x and the like, a
number.

Four encodings of the same table circulate, told apart here by content: MATLAB 5, MATLAB
7.3 (axes reversed, texts by reference) and HDF5 with names `dataSet`, `metaData` or
`dataset`, `metadata`. What the columns mean for one experiment is not known here.

References:
    github.com/KamitaniLab/bdpy (the format's own library).
    Horikawa & Kamitani, 2017, Nature Communications 8:15037.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import files, schema

_ACTION = "Get the file again from where the dataset is published."


class Table(NamedTuple):
    """An open table of T samples and C columns, not read.

    Attributes:
        path: The file.
        layout: Shape, type and encoding in the file.
        metadata: By key (C,) float64, NaN where a key does not apply.
    """

    path: str | os.PathLike
    layout: files.TableLayout
    metadata: dict[str, np.ndarray]


def open_table(path: str | os.PathLike) -> Table:
    """Opens a table in any encoding and checks that its parts agree.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is damaged or holds no table, if a key occurs twice,
            or if the metadata describe more or fewer columns than there are.
    """
    layout = files.table_layout(path)
    rows, columns = layout.shape
    keys, value = layout.keys, layout.value
    problems: list[schema.Problem] = []
    twice = sorted({k for k in keys if keys.count(k) > 1})
    if twice:
        schema.add_problem(
            problems,
            "metadata",
            f"keys occur twice: {schema.shorten(twice, most=5)}",
            "distinct keys",
        )
    where = "metadata value"
    if len(value) != len(keys):
        turned = ", transposed" if value.shape[1] == len(keys) else ""
        schema.add_problem(
            problems,
            where,
            f"{value.shape[0]} x {value.shape[1]} values for {len(keys)} keys{turned}",
            "one row a key",
        )
    elif value.shape[1] == rows != columns:
        schema.add_problem(
            problems,
            layout.name,
            f"{rows} rows of {columns} columns are transposed: the metadata describe "
            f"{rows} columns",
            f"{columns} rows (samples) of {rows} columns",
        )
    elif value.shape[1] != columns:
        schema.add_problem(
            problems,
            where,
            f"describes {value.shape[1]} columns",
            f"{columns}, the columns of {layout.name}",
        )
    schema.raise_problems(path, problems, _ACTION)
    return Table(path, layout, dict(zip(keys, value, strict=True)))


def select(table: Table, key: str) -> np.ndarray:
    """Numbers of the columns that belong to a key (value 1), ascending.

    Raises:
        errors.InputError: If there is no such key, or no column belongs to it.
    """
    if key not in table.metadata:
        raise errors.InputError(
            table.path,
            "metadata",
            f"no key {key}",
            "a key of the metadata",
            errors.nearest(key, table.metadata),
        )
    columns = np.flatnonzero(table.metadata[key] == 1)
    if not len(columns):
        raise errors.InputError(
            table.path, f"metadata {key}", "is 1 for no column", "columns", _ACTION
        )
    return columns


def read_columns(table: Table, columns: np.ndarray) -> np.ndarray:
    """Reads columns; the rest of the table is never in this process.

    Args:
        table: From `open_table`.
        columns: (V,) column numbers, ascending.

    Returns:
        (T, V) float64 as in the file; NaN is kept.

    Raises:
        errors.InputError: If the file is damaged or has changed since it was opened.
    """
    return files.table_columns(table.path, table.layout, columns)


def read_labels(table: Table, keys: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Reads columns that describe samples.

    Args:
        table: From `open_table`.
        keys: For each column the names its key goes by.

    Returns:
        For each a (T,) float64.

    Raises:
        errors.InputError: If a key is absent, belongs to several columns, or goes by
            two names that disagree; all faults are listed.
    """
    faults: list[errors.InputError] = []
    found: list[list[int]] = []
    for names in keys:
        there = [n for n in names if n in table.metadata] or [names[0]]
        found.append([])
        for name in there:
            with schema.collected(faults):
                columns = select(table, name)
                if len(columns) > 1:
                    raise errors.InputError(
                        table.path,
                        f"metadata {name}",
                        f"belongs to {len(columns)} columns",
                        "one",
                        _ACTION,
                    )
                found[-1].append(int(columns[0]))
    schema.raise_faults(table.path, faults, "a table with one column for each")
    wanted = np.unique([c for columns in found for c in columns])
    content = read_columns(table, wanted)
    labels = []
    for names, columns in zip(keys, found, strict=True):
        first, *others = (content[:, np.searchsorted(wanted, c)] for c in columns)
        if any(not np.array_equal(first, o, equal_nan=True) for o in others):
            raise errors.InputError(
                table.path, " and ".join(names), "differ", "one label", _ACTION
            )
        labels.append(first)
    return labels


def positions(table: Table, columns: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Places of voxels for `schema.Subject.position`, from voxel_x, voxel_y, voxel_z.

    On a regular grid these are the indices of the voxel; the grid is that of all
    voxels of the table, so that it is the same for every choice of columns. Else it is
    the number of the column, -1, -1.

    Args:
        table: From `open_table`.
        columns: (V,) column numbers, ascending.

    Returns:
        (V, 3) int32, and the attributes that say what it is: space, affine, grid.
    """
    axes = [table.metadata.get(f"voxel_{axis}") for axis in "xyz"]
    known = [axis for axis in axes if axis is not None]
    why = "no voxel_x, voxel_y and voxel_z"
    if len(known) == 3:
        mm = np.stack(known, 1)
        there = np.flatnonzero(np.isfinite(mm).all(1))
        placed = grid(mm[there])
        if placed and np.isin(columns, there).all():
            index = placed[0][np.searchsorted(there, columns)]
            return index, {
                "space": "voxels on the grid of voxel_x, voxel_y, voxel_z",
                "affine": placed[1].tolist(),
                "grid": (placed[0].max(0) + 1).tolist(),
            }
        why = "voxel_x, voxel_y, voxel_z are not on a grid along the axes"
        if placed:
            why = "voxel_x, voxel_y, voxel_z are unknown for some voxels"
    position = np.full((len(columns), 3), -1, np.int32)
    position[:, 0] = columns
    return position, {
        "space": f"position is the column of the table, -1, -1: {why}",
    }


def grid(mm: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Voxel indices of coordinates on a regular grid along the axes.

    Args:
        mm: (V, 3) coordinates.

    Returns:
        (V, 3) int32 indices from 0, and the (4, 4) float64 affine that gives back the
        coordinates to 1 % of a step; None if there is no such grid or two voxels
        would share a place.

    Example:
        >>> index, affine = grid(np.array([[-3.0, 1, 0], [0, 4, 0], [6, 1, 0]]))
        >>> index.tolist(), np.diag(affine).tolist()
        ([[0, 0, 0], [1, 1, 0], [3, 0, 0]], [3.0, 3.0, 1.0, 1.0])
    """
    if not len(mm) or not np.isfinite(mm).all():
        return None
    index, affine = np.zeros(mm.shape, np.int32), np.eye(4)
    for axis, values in enumerate(mm.T):
        first, last = values.min(), values.max()
        affine[axis, 3] = first
        gaps = np.diff(np.unique(values)).astype(np.float64)
        gaps = gaps[gaps > 1e-3]  # less is rounding: voxels are no micrometres
        if not len(gaps):
            continue
        count = max(1, round((last - first) / gaps.min()))
        step = (last - first) / count
        place = np.rint((values - first) / step)
        if (np.abs(values - first - place * step) > 0.01 * step).any():
            return None
        index[:, axis] = place
        affine[axis, axis] = step
    if len(np.unique(index, axis=0)) < len(index):
        return None
    return index, affine
