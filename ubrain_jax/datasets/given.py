"""Pictures as a user gives them: arrays, Pillow pictures, files, folders.

What is done with each is decided here, once, for every function that takes pictures:

========================  ======================================================
(N, H, W, 3) uint8        scaled to the shorter side (bicubic), middle square cut
(N, H, W, 3) float        0..1, times 255 and rounded; outside 0..1 is refused
(N, H, W), (N, H, W, 1)   grey, three equal colours
(N, H, W, 4)              red, green, blue, alpha: opaque, or laid on `background`
(H, W), (H, W, C)         one picture
Pillow picture, file      turned as its EXIF tag says; transparency as above
file ending in .npy       as the array in it, which is mapped into memory
folder                    its picture files, by name
list or tuple of these    one picture each, folders and (N, ...) arrays excepted
========================  ======================================================

Pictures stay where they are until a block of them is asked for.
"""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ubrain_jax import errors
from ubrain_jax.datasets import pictures

ENDINGS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".pgm",
)


class Given(NamedTuple):
    """M pictures, read when asked for.

    Attributes:
        ids: (M,) names: of files, or the number of each.
        read: Of a slice of them, (n, px, px, 3) uint8.
    """

    ids: tuple[str, ...]
    read: Callable[[slice], np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)


def open_pictures(given: Any, px: int, *, background: str | None = None) -> Given:
    """Pictures of any form of the table above, as squares.

    Args:
        given: The pictures.
        px: Side of the squares.
        background: "white" or "black": what shows through transparent pixels; None
            refuses pictures that have any.

    Raises:
        errors.MissingInputError: If a file is absent or a folder has no picture.
        errors.InputError: If an array is of another shape, type or range. Files and
            pixels are looked at when they are read.

    Example:
        >>> grey = open_pictures(np.full((2, 30, 40), 0.5), 28)
        >>> first = grey.read(slice(0, 1))
        >>> grey.ids, first.shape, int(first[0, 0, 0, 0])
        (('0', '1'), (1, 28, 28, 3), 128)
    """
    if background not in (None, "white", "black"):
        raise errors.ConfigError(
            "background", "", repr(background), "'white', 'black' or None", "Choose."
        )
    if isinstance(given, str | os.PathLike):
        path = pathlib.Path(given)
        if path.suffix == ".npy":
            return _array(_npy(path), px, background, str(path))
        if path.is_dir():
            return _list(_in_folder(path), px, background)
        return _list([path], px, background)
    if isinstance(given, Image.Image):
        return _list([given], px, background)
    if isinstance(given, Sequence):
        if not len(given):
            raise _no_picture("images")
        return _list(given, px, background)
    return _array(np.asarray(given), px, background, "images")


def _no_picture(where: str) -> errors.MissingInputError:
    endings = ", ".join(ENDINGS)
    return errors.MissingInputError(
        where, "", "no picture", f"one or more ({endings})", "Check the argument."
    )


def _in_folder(path: pathlib.Path) -> list[pathlib.Path]:
    """Picture files of a folder, by name."""
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS)
    if not found:
        raise _no_picture(str(path))
    return found


def _npy(path: pathlib.Path) -> np.ndarray:
    """An array file, mapped into memory."""
    if not path.is_file():
        raise errors.MissingInputError(
            path, "", "no such file", "an array of pictures", "Check the path."
        )
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise errors.InputError(
            path, "", f"cannot be read ({error})", "a .npy of numbers", "Save it again."
        ) from error


def _array(array: np.ndarray, px: int, background: str | None, name: str) -> Given:
    """A stack of pictures, or one."""
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4)):
        array = array[None]
    if array.ndim == 3:
        array = array[..., None]
    shape = array.shape
    if array.ndim != 4 or shape[-1] not in (1, 3, 4) or 0 in shape:
        hint = ""
        if array.ndim == 4 and shape[1] in (1, 3, 4):
            hint = "; colours come last: images.transpose(0, 2, 3, 1)"
        raise errors.InputError(
            name, "", f"shape {shape}{hint}", "(N, H, W, 3)", "Convert the array."
        )
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise errors.InputError(
            name,
            "",
            f"numbers of type {array.dtype}",
            "uint8 (0..255) or float (0..1)",
            "Convert the array.",
        )

    def read(some: slice) -> np.ndarray:
        first = range(*some.indices(len(array)))
        block = (_square(array[i], px, background, f"{name}[{i}]") for i in first)
        return _stack(block, px)

    return Given(tuple(map(str, range(len(array)))), read)


def _list(given: Sequence[Any], px: int, background: str | None) -> Given:
    """Pictures of any form, one each."""
    ids = tuple(_name(item, k) for k, item in enumerate(given))
    missing = [str(p) for p in given if _is_path(p) and not os.path.isfile(p)]
    if missing:
        raise errors.MissingInputError(
            missing[0],
            "",
            f"no such file ({len(missing)} of {len(given)} pictures)",
            "a picture",
            "Check the names.",
        )

    def one(k: int) -> np.ndarray:
        item = given[k]
        if _is_path(item):
            picture = pictures.read_image(
                item, background=background, orientation="apply"
            )
            return pictures.fit(picture, px)
        if isinstance(item, Image.Image):
            item = ImageOps.exif_transpose(item)
            item = np.asarray(item.convert("RGBA")) if _clear(item) else _light(item, k)
        return _square(np.asarray(item), px, background, f"images[{k}]")

    def read(some: slice) -> np.ndarray:
        return _stack((one(k) for k in range(*some.indices(len(given)))), px)

    return Given(ids, read)


def _is_path(item: Any) -> bool:
    return isinstance(item, str | os.PathLike)


def _name(item: Any, place: int) -> str:
    return pathlib.Path(item).name if _is_path(item) else str(place)


def _clear(picture: Image.Image) -> bool:
    """Whether a picture may have transparent pixels."""
    return "A" in picture.getbands() or "transparency" in picture.info


def _light(picture: Image.Image, place: int) -> np.ndarray:
    """RGB of an opaque Pillow picture of 8 bits a colour."""
    if picture.mode not in ("RGB", "L", "P", "1"):
        raise errors.InputError(
            f"images[{place}]",
            "",
            f"a Pillow picture of mode {picture.mode}",
            "8-bit RGB or grey",
            "Convert it: picture.convert('RGB').",
        )
    return np.asarray(picture.convert("RGB"))


def _square(
    picture: np.ndarray, px: int, background: str | None, name: str
) -> np.ndarray:
    """One picture as (px, px, 3) uint8."""
    if picture.ndim == 2:
        picture = picture[..., None]
    if picture.ndim != 3 or picture.shape[-1] not in (1, 3, 4) or 0 in picture.shape:
        raise errors.InputError(
            name, "", f"shape {picture.shape}", "(H, W, 3)", "Convert the array."
        )
    if picture.dtype.kind == "f":
        low, high = float(picture.min()), float(picture.max())
        if not (low >= 0 and high <= 1):  # NaN too
            raise errors.InputError(
                name,
                "",
                f"float values {low:g}..{high:g}",
                "0..1 (not normalised, not 0..255)",
                "Scale it, or give uint8.",
            )
        picture = np.rint(picture * 255).astype(np.uint8)
    if picture.dtype != np.uint8:
        raise errors.InputError(
            name, "", str(picture.dtype), "uint8 or float", "Convert the array."
        )
    if picture.shape[-1] == 1:
        picture = np.repeat(picture, 3, -1)
    if picture.shape[-1] == 4:
        return pictures.fit(_opaque(picture, background, name), px)
    return pictures.fit(picture, px)


def _opaque(picture: np.ndarray, background: str | None, name: str) -> np.ndarray:
    """(H, W, 4) -> (H, W, 3) on a background."""
    image = Image.fromarray(np.ascontiguousarray(picture), "RGBA")
    return pictures.on_background(image, background, name)


def _stack(block: Any, px: int) -> np.ndarray:
    squares = list(block)
    return np.stack(squares) if squares else np.zeros((0, px, px, 3), np.uint8)
