"""Reads arrays out of a NumPy archive (.npz) and refuses what is damaged.

Pickles are never opened: an array of objects has a layout and cannot be read. An
array is read to its end, so that the archive's checksum is compared.
"""

import math
import os
import pathlib
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import schema

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # NumPy writes these two
# Most bytes an array may unpack to: this, or 200 times what it takes in the archive.
_LEAST_LIMIT = 1 << 30
_MOST_RATIO = 200
# What a damaged archive raises while it is read.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,  # encrypted
    NotImplementedError,
    *schema.NOT_NPY,
)


class Header(NamedTuple):
    """What an array in the archive says of itself.

    Attributes:
        shape: Its axes.
        dtype: Of its values; of objects if it is a pickle.
        fortran: Whether the first axis runs fastest.
        offset: Where its values start in the unpacked member, bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int


def headers(path: str | os.PathLike) -> dict[str, Header]:
    """Names, shapes and types of the arrays of an archive.

    Args:
        path: The archive.

    Returns:
        A header for each array, pickles included.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is no whole archive of arrays, a name is twice in it,
            or an array is larger or smaller than it says or than it can be.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.MissingInputError(
            path, "", "no such file", "a NumPy archive", "Check the path."
        )
    found: dict[str, Header] = {}
    name = ""
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if not name.isprintable():
                    raise ValueError(f"a name of {len(name)} odd characters")
                if name in found:
                    raise ValueError("twice in the archive")
                found[name] = _header(archive, info)
    except DAMAGED as error:
        place = name if name.isprintable() else ""
        raise _damaged(path, place, error) from None
    return found


def read(path: str | os.PathLike, name: str, header: Header) -> np.ndarray:
    """Reads an array whole.

    Args:
        path: The archive.
        name: Of the array.
        header: Of the array, from `headers`.

    Returns:
        The array, read-only.

    Raises:
        errors.InputError: If it is a pickle, or fails its checksum.
    """
    if header.dtype.hasobject:
        raise errors.InputError(
            path,
            name,
            "holds Python objects (a pickle, which could run code)",
            "numbers or text",
            "Save it again as an array of numbers or text.",
        )
    try:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open(f"{name}.npy") as stream,
        ):
            content = stream.read()  # to the end, where zipfile compares the CRC
        values = np.frombuffer(content, header.dtype, offset=header.offset)
        return values.reshape(header.shape, order="F" if header.fortran else "C")
    except (*DAMAGED, KeyError) as error:
        raise _damaged(path, name, error) from None


def read_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Header:
    """Reads the .npy header of one member; the sizes it declares are not checked.

    Args:
        archive: The open archive.
        info: Of the member.

    Raises:
        ValueError: Or another of `DAMAGED`, if it is none.
    """
    if info.compress_type not in _METHODS:
        raise ValueError(f"packed by method {info.compress_type}")
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            parts = np.lib.format.read_array_header_1_0(stream)
        else:
            parts = np.lib.format.read_array_header_2_0(stream)
        shape, fortran, dtype = parts
        return Header(shape, dtype, fortran, stream.tell())


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Header:
    """Reads a header and checks the sizes it declares."""
    header = read_header(archive, info)
    shape, dtype = header.shape, header.dtype
    declared = header.offset + math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and declared != info.file_size:
        raise ValueError(
            f"{info.file_size} bytes, where {dtype} {shape} takes {declared}"
        )
    if info.file_size > max(_LEAST_LIMIT, _MOST_RATIO * info.compress_size):
        raise ValueError(f"{info.file_size} bytes packed into {info.compress_size}")
    return header


def _damaged(
    path: str | os.PathLike, where: str, error: BaseException
) -> errors.InputError:
    """The archive cannot be read."""
    return errors.InputError(
        path,
        where,
        f"damaged or no NumPy archive ({str(error)[:120]})",
        "a whole archive",
        "The file is damaged: download it again.",
    )
