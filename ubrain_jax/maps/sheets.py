"""Files that are written one image after another, so that memory is bounded.

In NIfTI, MGH, GIFTI and .npy what belongs to one image lies together, after a header
that is known before. So all are written from the front, plain or through gzip; nothing
is mapped into memory, where a full disk would kill the process instead of failing.
"""

import contextlib
import gzip
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, NamedTuple

import numpy as np

from ubrain_jax import errors, whole

# 300 volumes with 2 % voxels: level 1 38 MB in 5 s, level 6 31 MB in 10 s; 300 images
# of fsaverage as .mgz: 75 MB in 6 s, 69 MB in 12 s or more.
_LEVEL = 1
_NEEDS = "a folder that can be written, with room"

Values = Iterable[tuple[slice | Sequence[int] | np.ndarray, np.ndarray]]


class Sheet(NamedTuple):
    """One file of M images.

    Attributes:
        path: Of the file.
        begin: Bytes before the first image.
        image: From the number of an image and its (V,) float32 values to its bytes.
        end: Bytes after the last image.
        packed: Whether all of it goes through gzip.
        room: Bytes of an image on disk, about; what the check for room counts with.
    """

    path: pathlib.Path
    begin: bytes
    image: Callable[[int, np.ndarray], bytes]
    end: bytes
    packed: bool
    room: int


def write(
    sheets: Sequence[Sheet],
    rows: Iterable[np.ndarray],
    sidecar: pathlib.Path,
    text: str,
) -> None:
    """Writes files side by side, all of them whole or none.

    Args:
        sheets: The files.
        rows: (V,) float32 of each image in turn.
        sidecar: A file that has no images; like the others it comes whole.
        text: What it says.

    Raises:
        errors.OutputError: If one cannot be written.
    """
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(_stream(sheet)) for sheet in sheets]
        beside = stack.enter_context(whole.writing(sidecar, _NEEDS))
        for sheet, stream in zip(sheets, streams, strict=True):
            stream.write(sheet.begin)
        for number, row in enumerate(rows):
            for sheet, stream in zip(sheets, streams, strict=True):
                stream.write(sheet.image(number, row))
        for sheet, stream in zip(sheets, streams, strict=True):
            stream.write(sheet.end)
        beside.write_bytes(text.encode(errors="replace"))


@contextlib.contextmanager
def _stream(sheet: Sheet) -> Iterator[IO[bytes]]:
    """What takes the bytes of a file; it has its name when the block ends well."""
    with whole.writing(sheet.path, _NEEDS) as unfinished, unfinished.open("wb") as file:
        if not sheet.packed:
            yield file
            return
        # No name and no time: the same prediction gives the same bytes.
        with gzip.GzipFile("", "wb", _LEVEL, file, mtime=0) as packed:
            yield packed  # pyright: ignore[reportReturnType]  (has write)


def rows_of(
    values: Values, image_id: Sequence[str], num_voxels: int
) -> Iterator[np.ndarray]:
    """The rows of blocks of images, checked: in order, complete and finite.

    Args:
        values: (rows, block): numbers of images, and (images, V) of them.
        image_id: M ids.
        num_voxels: V.

    Yields:
        (V,) float32, M times.

    Raises:
        ValueError: If blocks are of another shape, out of order or not all there.
        errors.InputError: If a prediction is not finite; NaN means that no voxel is
            there.
    """
    numbers, done = np.arange(len(image_id)), 0
    for rows, block in values:
        block = np.asarray(block, np.float32)
        here = numbers[rows]
        if block.shape != (len(here), num_voxels):
            raise ValueError(f"block {block.shape}; have {(len(here), num_voxels)}")
        if not np.array_equal(here, np.arange(done, done + len(here))):
            raise ValueError(f"images {here} after {done} images; they come in order")
        bad = np.flatnonzero(~np.isfinite(block).all(1))
        if len(bad):
            raise errors.InputError(
                str(image_id[done + bad[0]]),
                "",
                f"predicted responses of {len(bad)} images are not finite",
                "numbers",
                "Check the weights of the encoder; nothing was written.",
            )
        yield from block
        done += len(here)
    if done < len(image_id):
        raise ValueError(f"{done} of {len(image_id)} images came")


def check_room(path: pathlib.Path, size: float) -> None:
    """Refuses what has no room, before anything is computed.

    Args:
        path: File or folder to write.
        size: Bytes it will take, about.

    Raises:
        errors.OutputError: If its folder cannot be made or written, or is too full.
    """
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        found = "cannot be written" if folder.is_dir() else "is no folder"
        raise errors.OutputError(folder, "", found, _NEEDS, "Choose another --out.")
    usage = os.statvfs(folder)
    free = usage.f_bavail * usage.f_frsize
    if size > free:
        raise errors.OutputError(
            path,
            "",
            f"takes about {size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
            _NEEDS,
            "Free some space, predict fewer images or voxels, or choose another --out.",
        )
