"""Reads the files datasets come in, and refuses what is damaged.

HDF5 and MATLAB files are parsed in a child process (`_child`), because both libraries
crash on damaged files and HDF5 can open others. NIfTI and MGH are parsed here: a
header of fixed layout, then numbers. A compressed stream is read to its end, so that
its checksum is compared. Nothing here unpickles.

References:
    NIfTI-1: nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
    MGH: surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat
"""

import csv
import gzip
import io
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import nibabel
import numpy as np
from nibabel import spatialimages

from ubrain_jax import errors

_DAMAGED = "The file is damaged: download it again."
_CHILD = pathlib.Path(__file__).with_name("_child.py")
# Most bytes a small compressed file may unpack to; large ones: 200 times their size.
_LEAST_LIMIT = 1 << 30
_MOST_RATIO = 200
_CHILD_MEMORY = 6 << 30  # bytes of address space
_LONGEST_HEADER = 1 << 20  # bytes of a line of the child
_TABLE_BLOCK = 64_000_000  # bytes of a table that the child reads at once
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_MGH_TYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2"}
_MGH_HEADER = 284  # bytes


class Layout(NamedTuple):
    """Shape and type of an array that was not read."""

    shape: tuple[int, ...]
    dtype: np.dtype


class TableLayout(NamedTuple):
    """What a file holds of a BData table whose T rows and C columns were not read.

    Attributes:
        encoding: "MATLAB 5", "MATLAB 7.3" or "HDF5".
        name: Of the table in the file.
        shape: (T, C): samples, columns.
        dtype: Of the numbers in the file.
        keys: K names of metadata.
        value: (K, columns) float64: metadata of the columns, as many as it describes.
    """

    encoding: str
    name: str
    shape: tuple[int, int]
    dtype: np.dtype
    keys: list[str]
    value: np.ndarray


class Member(NamedTuple):
    """A dataset of a group: its name there, its layout, and attributes it has."""

    name: str
    layout: Layout
    attributes: dict[str, Any]


class Contents(NamedTuple):
    """What an HDF5 file holds, without its arrays.

    Attributes:
        names: Of what lies at the top of the file (the first 1000).
        attributes: Those of the file that were asked for and are there.
        members: For each group that was asked for and is there, its datasets, in the
            order of the file.
        numbers: Sorted distinct numbers in the attributes asked for: of the file
            under "", of all datasets of a group under its name.
    """

    names: list[str]
    attributes: dict[str, Any]
    members: dict[str, list[Member]]
    numbers: dict[str, np.ndarray]


class Header(NamedTuple):
    """What the header of a volume or surface file says.

    Attributes:
        shape: Axes as the format orders them: (X, Y, Z) or (X, Y, Z, T).
        dtype: Of the numbers in the file.
        affine: (4, 4) float64, voxel to mm.
        slope: A value is slope * what is stored + intercept.
        intercept: See slope.
        offset: Where the numbers start, bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    slope: float
    intercept: float
    offset: int


class Volume(NamedTuple):
    """An array (X, Y, Z) or (X, Y, Z, T) and its (4, 4) voxel-to-mm affine."""

    data: np.ndarray
    affine: np.ndarray


# ---------------------------------------------------------------- HDF5, MATLAB


def read_mat(path: str | os.PathLike, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads variables of a MATLAB file of version 5, 7 or 7.3.

    Args:
        path: The file.
        names: Variables, arrays of numbers or text.

    Returns:
        The arrays by name, with the axes in MATLAB's order.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is damaged or lacks a variable.
    """
    jobs = [{"do": "mat", "path": _absolute(path), "names": list(names)}]
    return {h["name"]: a for _, h, a in _ask(jobs, [path]) if a is not None}


def hdf5_layouts(
    datasets: Sequence[tuple[str | os.PathLike, str]],
) -> list[Layout | errors.InputError]:
    """Shapes and types of many datasets, without reading them.

    Args:
        datasets: Pairs of an HDF5 file and a name in it.

    Returns:
        For each its layout, or what is wrong with its file.
    """
    found: dict[int, Layout | errors.InputError] = {}
    jobs: dict[int, dict[str, Any]] = {}
    for index, (path, name) in enumerate(datasets):
        try:
            jobs[index] = {"do": "layout", "path": _absolute(path), "name": name}
        except errors.InputError as error:
            found[index] = error
    while jobs:  # a file at fault ends the process; go on behind it
        left = list(jobs)
        paths = [datasets[index][0] for index in left]
        try:
            for k, header, _ in _ask(list(jobs.values()), paths):
                shape, dtype = header["layout"], np.dtype(header["dtype"])
                found[left[k]] = Layout(tuple(shape), dtype)
                del jobs[left[k]]
        except errors.InputError as error:
            index = next(iter(jobs))
            found[index] = error
            del jobs[index]
    return [found[index] for index in range(len(datasets))]


def hdf5_blocks(
    paths: Sequence[str | os.PathLike],
    name: str,
    blocks: Sequence[Sequence[tuple[int, int | None]]],
) -> Generator[np.ndarray, None, None]:
    """Streams parts of one dataset in each of many files, one in memory at a time.

    Args:
        paths: HDF5 files, or MATLAB files of version 7.3.
        name: Of the dataset; it must hold numbers and lie in its file, whole.
        blocks: For each part (start, stop) along every axis; stop None is the end.

    Yields:
        The parts of the first file in the order asked for, those of the second, ...

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If one is damaged, incomplete, larger than it can be, points
            outside itself, or has no such dataset.
    """
    wanted = [[(int(a), b if b is None else int(b)) for a, b in k] for k in blocks]
    job = {"do": "blocks", "name": name, "blocks": wanted}
    jobs = [job | {"path": _absolute(path)} for path in paths]
    for _, _, array in _ask(jobs, paths):
        if array is not None:
            yield array


def read_hdf5(path: str | os.PathLike, name: str) -> np.ndarray:
    """Reads a whole dataset; see `hdf5_blocks`."""
    [layout] = hdf5_layouts([(path, name)])
    if isinstance(layout, errors.InputError):
        raise layout
    [array] = hdf5_blocks([path], name, [[(0, None)] * len(layout.shape)])
    return array


def table_layout(path: str | os.PathLike) -> TableLayout:
    """Metadata of a BData table in any of its encodings, told by content.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is damaged, points outside itself or holds no table.
    """
    [(_, header, value)] = _ask([{"do": "table", "path": _absolute(path)}], [path])
    if value is None:
        raise RuntimeError("the child sent no metadata")
    rows, columns = header["table"]
    return TableLayout(
        header["encoding"],
        header["name"],
        (rows, columns),
        np.dtype(header["type"]),
        header["keys"],
        value,
    )


def table_columns(
    path: str | os.PathLike, layout: TableLayout, columns: np.ndarray
) -> np.ndarray:
    """Reads columns of a BData table; the others are never in this process.

    Args:
        path: The file.
        layout: Its `table_layout`.
        columns: (V,) column numbers, ascending.

    Returns:
        (T, V) float64, in C order.

    Raises:
        errors.InputError: As `table_layout`, or if the file has changed since.
    """
    table = np.full((layout.shape[0], len(columns)), np.nan)
    job = {
        "do": "columns",
        "path": _absolute(path),
        "name": layout.name,
        "turned": layout.encoding == "MATLAB 7.3",
        "columns": columns.tolist(),
        "shape": layout.shape,
        "block": _TABLE_BLOCK,
    }
    for _, header, array in _ask([job], [path]):
        if array is None:
            continue
        start = header["start"]
        if header["turned"]:
            table[:, start : start + len(array)] = array.T
        else:
            table[start : start + len(array)] = array
    return table


def mat_layouts(
    paths: Sequence[str | os.PathLike],
) -> list[dict[str, Layout]]:
    """Shapes and types of the variables of MATLAB files, without reading them.

    Args:
        paths: Files of version 5, 7 or 7.3.

    Returns:
        For each file its variables of numbers by name, axes in MATLAB's order.
        Variables of other kinds (structures, cells, links to other files) are left
        out.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If one is damaged.
    """
    jobs = [{"do": "whos", "path": _absolute(path)} for path in paths]
    found: list[dict[str, Layout]] = [{} for _ in paths]
    for job, header, _ in _ask(jobs, paths):
        shape, dtype = header["layout"], np.dtype(header["dtype"])
        found[job][header["name"]] = Layout(tuple(shape), dtype)
    return found


def is_hdf5(path: str | os.PathLike) -> bool:
    """Whether a file is HDF5 or MATLAB 7.3, which is HDF5 behind 512 bytes.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is empty.
    """
    _check_file(path)
    with pathlib.Path(path).open("rb") as file:
        head = file.read(520)
    return _HDF5_MAGIC in (head[:8], head[512:])


def mat_blocks(
    path: str | os.PathLike,
    name: str,
    blocks: Sequence[Sequence[tuple[int, int | None]]],
) -> Iterator[np.ndarray]:
    """Reads parts of one variable of a MATLAB file.

    Of version 7.3 one part is in memory at a time, so parts along the last axis, the
    slowest on disk, are cheapest. Versions 5 and 7 cannot be read in parts: the whole
    variable is in memory.

    Args:
        path: File of version 5, 7 or 7.3.
        name: Of the variable, an array of numbers.
        blocks: For each part (start, stop) along every axis, in MATLAB's order; stop
            None is the end.

    Yields:
        The parts, axes in MATLAB's order.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is damaged or lacks the variable.
    """
    if is_hdf5(path):
        reverse = [list(reversed(block)) for block in blocks]
        for array in hdf5_blocks([path], name, reverse):
            yield array.T
        return
    whole = read_mat(path, [name])[name]
    for block in blocks:
        yield whole[tuple(slice(start, stop) for start, stop in block)]


def hdf5_contents(
    path: str | os.PathLike,
    groups: Sequence[str],
    *,
    attributes: Sequence[str],
    numbers: tuple[str, str],
) -> Contents:
    """Lists the datasets of groups with their attributes; reads none of them.

    Args:
        path: HDF5 file.
        groups: Names of groups; absent ones are left out.
        attributes: Names of attributes that are one text or one number.
        numbers: Names of attributes that are lists of numbers, perhaps empty: of the
            file, where it may also be a dataset, and of the datasets of the groups.

    Returns:
        What was found.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is damaged, a member is no whole array of numbers in
            this file, or an attribute is of another kind.
    """
    job = {"do": "members", "path": _absolute(path), "groups": list(groups)}
    job |= {"attributes": list(attributes), "numbers": list(numbers)}
    found = Contents([], {}, {}, {})
    for _, header, array in _ask([job], [path]):
        if array is not None:
            found.numbers[header["group"]] = array
        elif "names" in header:
            found.names.extend(header["names"])
            found.attributes.update(header["attributes"])
        else:
            found.members.setdefault(header["group"], []).extend(
                Member(name, Layout(tuple(shape), np.dtype(dtype)), attrs)
                for name, shape, dtype, attrs in header["members"]
            )
    return found


def hdf5_rows(
    path: str | os.PathLike,
    lists: Sequence[Sequence[str]],
    columns: np.ndarray,
    dtype: str = "f4",
) -> Generator[np.ndarray, None, None]:
    """Streams chosen elements of many datasets, each list of them as one array.

    The file is opened once; a dataset has shape (V,) or (V, 1).

    Args:
        path: HDF5 file.
        lists: Names of datasets, at least one in each list.
        columns: Elements wanted, sorted and distinct, at least one.
        dtype: Of the result.

    Yields:
        (names of a list, columns), one array in memory at a time.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: As `hdf5_blocks`.
    """
    breaks = np.flatnonzero(np.diff(columns) != 1) + 1
    runs = [[int(run[0]), int(run[-1]) + 1] for run in np.split(columns, breaks)]
    job = {"do": "rows", "path": _absolute(path), "dtype": dtype, "runs": runs}
    for _, _, array in _ask([job | {"lists": [list(n) for n in lists]}], [path]):
        if array is not None:
            yield array


def _absolute(path: str | os.PathLike) -> str:
    """The path for a process in another folder, if there is a file to read."""
    _check_file(path)
    return str(pathlib.Path(path).resolve())


def _check_file(path: str | os.PathLike) -> int:
    """Size of an existing file that is not empty."""
    path = pathlib.Path(path)
    if not path.exists():
        raise errors.MissingInputError(
            path, "", "no such file", "a file", "Check the path or download it."
        )
    if not path.is_file():
        raise errors.InputError(path, "", "no regular file", "a file", "Check the path")
    size = path.stat().st_size
    if size == 0:
        raise errors.InputError(
            path, "", "the file is empty", "data", "Download it again."
        )
    return size


def _ask(
    jobs: Sequence[dict[str, Any]], paths: Sequence[str | os.PathLike]
) -> Iterator[tuple[int, dict[str, Any], np.ndarray | None]]:
    """Runs jobs in a child process; yields (job, header, array or None)."""
    size = sum(pathlib.Path(p).stat().st_size for p in paths)
    limits = {
        "RLIMIT_AS": _CHILD_MEMORY,
        "RLIMIT_CPU": 120 + len(jobs) * 20 + size // 1_000_000,  # seconds
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }
    # "::" keeps HDF5 from loading filters: they are shared libraries.
    environment = {"HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1"}
    job = 0
    with tempfile.TemporaryFile() as request:
        request.write(json.dumps({"limits": limits, "jobs": list(jobs)}).encode())
        request.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-I", str(_CHILD)],
            stdin=request,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
        )
    stream: Any = child.stdout
    with child:
        try:
            while job < len(jobs):
                line = stream.readline(_LONGEST_HEADER)
                header = _parse(line)
                if header is None:
                    raise _crash(child, paths[job])
                if "failed" in header:
                    found = f"cannot be read ({header['failed']})"
                    raise errors.InputError(
                        paths[job], "", found, "an undamaged file", _DAMAGED
                    )
                if "fault" in header:
                    raise errors.InputError(paths[job], *header["fault"])
                if "done" in header:
                    job += 1
                    continue
                array = None
                if "shape" in header:
                    array = _receive(stream, header)
                    if array is None:
                        raise _crash(child, paths[job])
                yield job, header, array
        finally:
            child.kill()


def _parse(line: bytes) -> dict[str, Any] | None:
    """A header of the child; None if it is cut off."""
    return json.loads(line) if line.endswith(b"\n") else None


def _receive(stream: Any, header: dict[str, Any]) -> np.ndarray | None:
    """The array behind a header; None if the stream ends in it."""
    array = np.empty(header["shape"], np.dtype(header["dtype"]))
    left = array.reshape(-1).view(np.uint8).data
    while len(left):
        count = stream.readinto(left)
        if not count:
            return None
        left = left[count:]
    return array


def _crash(child: subprocess.Popen, path: str | os.PathLike) -> errors.InputError:
    """How the child ended, as an error about the file it was reading."""
    code = child.wait()
    if code == -signal.SIGXCPU:
        found = "reader ran out of time"
    elif code < 0:
        found = f"reader crashed (signal {-code})"
    else:
        found = f"reader stopped (exit code {code})"
    return errors.InputError(path, "", found, "an undamaged file", _DAMAGED)


# ---------------------------------------------------------------- NIfTI, MGH


class _Stream:
    """A file read from start to end, unpacked if it is gzip."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.size = _check_file(path)
        with self.path.open("rb") as file:
            self.packed = file.read(2) == b"\x1f\x8b"
        opener = gzip.open if self.packed else open
        self.file = opener(self.path, "rb")
        self.position = 0

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        parts, left = [], count
        while left:
            part = self.some(left)
            if not part:
                unit = " unpacked" if self.packed else ""
                end = self.position
                raise self.fault(
                    f"ends after {end}{unit} bytes", f"at least {end + left} bytes"
                )
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def some(self, count: int) -> bytes:
        """At most `count` bytes; none at the end."""
        try:
            part = self.file.read(count)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            found = f"fails its gzip checks ({error})"
            raise self.fault(found, "a stream with the right CRC") from error
        self.position += len(part)
        return part

    def finish(self) -> None:
        """Reads what is left: only then has gzip compared its checksum."""
        while self.packed and self.some(1 << 20):
            pass

    def check_declared(self, declared: int) -> None:
        """Refuses to unpack what a small file blows up to."""
        if not self.packed and declared > self.size:
            raise self.fault(
                f"the file has {self.size} bytes", f"{declared}, says its header"
            )
        if declared > max(_LEAST_LIMIT, _MOST_RATIO * self.size):
            raise self.fault(
                f"declares {declared:,} bytes in a file of {self.size:,}",
                f"at most {_MOST_RATIO} times the size of the file",
            )

    def fault(self, found: str, expected: str) -> errors.InputError:
        """An error about this file."""
        return errors.InputError(self.path, "", found, expected, _DAMAGED)


def nifti_header(path: str | os.PathLike) -> Header:
    """Reads and checks the header of a NIfTI-1 file (.nii, .nii.gz).

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is no NIfTI-1 file, or its shape, type, scaling or
            affine make no sense.
    """
    with _Stream(path) as stream:
        return _nifti_header(stream)


def nifti_volumes(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """Streams the volumes of a NIfTI-1 file and compares its checksum at the end.

    Yields:
        (X, Y, Z) as stored (not scaled), one for each T; in Fortran order.

    Raises:
        errors.InputError: As `nifti_header`, or if the file is truncated or damaged.
    """
    with _Stream(path) as stream:
        header = _nifti_header(stream)
        stream.read(header.offset - stream.position)
        count = math.prod(header.shape[:3]) * header.dtype.itemsize
        for _ in range(math.prod(header.shape[3:])):
            flat = np.frombuffer(stream.read(count), header.dtype)
            yield flat.reshape(header.shape[:3], order="F")
        stream.finish()


def read_nifti(path: str | os.PathLike) -> Volume:
    """Reads a NIfTI-1 file, scaled as its header says.

    Returns:
        The array, in the file's type, or float64 if it is scaled; NaN is kept.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is damaged, truncated or no NIfTI-1 file.
    """
    header = nifti_header(path)
    volumes = list(nifti_volumes(path))
    data = np.stack(volumes, -1) if len(header.shape) > 3 else volumes[0]
    data = data.astype(header.dtype.newbyteorder("="))
    if (header.slope, header.intercept) != (1, 0):
        with np.errstate(all="ignore"):
            data = data * np.float64(header.slope) + header.intercept
    return Volume(data, header.affine)


def _nifti_header(stream: _Stream) -> Header:
    raw = stream.read(352)
    try:
        parsed = nibabel.Nifti1Header(raw[:348], check=False)
        size, dtype = int(parsed["sizeof_hdr"]), parsed.get_data_dtype()
    except (spatialimages.HeaderDataError, KeyError) as error:
        raise stream.fault(f"bad header ({error})", "a NIfTI-1 header") from error
    magic = bytes(parsed["magic"].item())
    if size != 348 or not magic.startswith(b"n+1"):
        raise stream.fault(
            f"starts with {raw[:4].hex(' ')}, magic {magic!r}", "a NIfTI-1 file (n+1)"
        )
    dims = parsed["dim"].tolist()
    shape = tuple(dims[1 : dims[0] + 1]) if 0 < dims[0] < 8 else ()
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise stream.fault(f"dimensions {dims}", "3 or 4 axes, none empty")
    if dtype.kind not in "iuf":
        raise stream.fault(f"holds {dtype}", "numbers")
    slope, intercept = float(parsed["scl_slope"]), float(parsed["scl_inter"])
    if slope == 0:  # the standard's way to say: not scaled
        slope, intercept = 1.0, 0.0
    # No scanner's unit is this far from 1: bytes were swapped or flipped.
    if not 1e-12 <= abs(slope) <= 1e12 or not abs(intercept) <= 1e12:
        raise stream.fault(
            f"scl_slope is {slope:g}, scl_inter {intercept:g}: scaling unknown",
            "finite scaling of usual size",
        )
    with np.errstate(all="ignore"):  # damaged quaternions; checked below
        try:
            affine = np.asarray(parsed.get_best_affine(), np.float64)
        except ValueError as error:
            raise stream.fault(f"bad affine ({error})", "a finite affine") from error
    if not np.isfinite(affine).all():
        raise stream.fault("the affine holds NaN or inf", "a finite affine")
    offset = float(parsed["vox_offset"])
    if not (offset.is_integer() and 352 <= offset <= 1 << 24):
        raise stream.fault(f"vox_offset is {offset}", "352 or a little more")
    header = Header(shape, dtype, affine, slope, intercept, int(offset))
    stream.check_declared(header.offset + math.prod(shape) * dtype.itemsize)
    return header


def mgh_header(path: str | os.PathLike) -> Header:
    """Reads and checks the header of a FreeSurfer file (.mgh, .mgz).

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is no MGH file, or its shape or type make no sense.
    """
    with _Stream(path) as stream:
        return _mgh_header(stream)


def mgh_frames(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """Streams the frames of a FreeSurfer file and compares its checksum at the end.

    Yields:
        (X, Y, Z) as stored (big-endian), one for each frame; in Fortran order.

    Raises:
        errors.InputError: As `mgh_header`, or if the file is truncated or damaged.
    """
    with _Stream(path) as stream:
        header = _mgh_header(stream)
        count = math.prod(header.shape[:3]) * header.dtype.itemsize
        for _ in range(header.shape[3]):
            flat = np.frombuffer(stream.read(count), header.dtype)
            yield flat.reshape(header.shape[:3], order="F")
        stream.finish()


def read_mgh(path: str | os.PathLike) -> Volume:
    """Reads a FreeSurfer file (.mgh, .mgz); NaN is kept.

    Returns:
        (X, Y, Z, T) in the file's type; surfaces are (V, 1, 1, T).

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is damaged, truncated or no MGH file.
    """
    header = mgh_header(path)
    data = np.stack(list(mgh_frames(path)), -1)
    return Volume(data.astype(header.dtype.newbyteorder("=")), header.affine)


def _mgh_header(stream: _Stream) -> Header:
    raw = stream.read(_MGH_HEADER)
    version, *shape, kind = np.frombuffer(raw, ">i4", 6).tolist()
    if version != 1 or kind not in _MGH_TYPES:
        raise stream.fault(
            f"starts with {raw[:4].hex(' ')}, type {kind}",
            "an MGH file (version 1, type 0, 1, 3 or 4)",
        )
    if min(shape) < 1:
        raise stream.fault(f"dimensions {shape}", "4 axes, none empty")
    affine = np.eye(4)
    if np.frombuffer(raw, ">i2", 1, 28)[0] > 0:  # else the orientation is not known
        with np.errstate(all="ignore"):  # damaged numbers; checked below
            numbers = np.frombuffer(raw, ">f4", 15, 30).astype(np.float64)
            axes, centre = numbers[3:12].reshape(3, 3).T, numbers[12:]
            affine[:3, :3] = axes * numbers[:3]
            affine[:3, 3] = centre - affine[:3, :3] @ (np.array(shape[:3]) / 2)
        if not np.isfinite(affine).all():
            raise stream.fault("the affine holds NaN or inf", "a finite affine")
    dtype = np.dtype(_MGH_TYPES[kind])
    header = Header(tuple(shape), dtype, affine, 1.0, 0.0, _MGH_HEADER)
    stream.check_declared(_MGH_HEADER + math.prod(shape) * dtype.itemsize)
    return header


# ---------------------------------------------------------------- text


def read_table(
    path: str | os.PathLike, columns: Sequence[str], delimiter: str
) -> dict[str, list[str]]:
    """Reads columns of a table with one header line.

    Args:
        path: Text file, UTF-8.
        columns: Those wanted; others are ignored.
        delimiter: "," or a tab.

    Returns:
        Cells of each column wanted, from the second line on.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is not such a table; names the line.
    """
    _check_file(path)
    tab = "tab" if delimiter == "\t" else repr(delimiter)

    def fault(line: int, found: str, expected: str) -> errors.InputError:
        return errors.InputError(path, f"line {line}", found, expected, _DAMAGED)

    try:
        # -sig: a byte-order mark, as Excel writes, is no part of the first name.
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte {error.start} is not UTF-8"
        raise errors.InputError(path, "", found, "UTF-8 text", _DAMAGED) from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        head = next(reader, [])
        lacking = [c for c in columns if c not in head]
        if len(head) < 2:
            raise fault(1, f"no {tab}", f"columns {', '.join(columns)}, with {tab}s")
        if lacking:
            names = "".join(c if c.isprintable() else "?" for c in ", ".join(head))
            found = f"no column {', '.join(lacking)} (found: {names[:300]})"
            raise fault(1, found, f"columns {', '.join(columns)}")
        for row in reader:
            if not row:
                continue
            if len(row) != len(head):
                raise fault(
                    reader.line_num,
                    f"{len(row)} cells",
                    f"{len(head)}, as in the first line",
                )
            rows.append(row)
    except csv.Error as error:
        found = str(error).replace("\t", "tab")
        raise fault(reader.line_num, found, f"{tab}-separated cells") from error
    place = {c: head.index(c) for c in columns}
    return {c: [row[i] for row in rows] for c, i in place.items()}
