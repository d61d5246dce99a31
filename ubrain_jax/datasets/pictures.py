"""Picture files and arrays become square RGB uint8.

Numpy and Pillow only. What a picture means must be certain: transparency, a rotation
in its metadata, 16 bits, several frames or print colours are refused, unless the
caller says what the subject saw. Grey becomes three equal colours. The order of the
colours cannot be checked: red is first.
"""

import io
import os
import pathlib
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from PIL import Image, ImageFile, ImageOps

from ubrain_jax import errors

MAX_PIXELS = 25_000_000
# The formats stimuli come in; Pillow knows others that are programs or vectors.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_BACKGROUNDS = {"white": 255, "black": 0}
# Modes that are 8 bits of light a colour, with or without transparency.
_LIGHT = ("RGB", "L", "P", "1")
_CLEAR = ("RGBA", "LA", "PA", "La", "RGBa")
_EXIF_ORIENTATION = 0x0112


def read_image(
    path: str | os.PathLike,
    *,
    background: str | None = None,
    orientation: str | None = None,
    print_colours: str | None = None,
    notes: dict[str, int] | None = None,
) -> np.ndarray:
    """Decodes one picture file.

    Args:
        path: JPEG, PNG, BMP, GIF, TIFF, WebP or PPM, told by content, not by name.
        background: "white" or "black": what shows through transparent pixels. None
            refuses pictures that have any.
        orientation: "apply" turns the picture as its EXIF tag says, "ignore" keeps
            the stored rows. None refuses pictures whose tag asks for a turn.
        print_colours: "convert" turns CMYK into RGB as Pillow does, without a colour
            profile. None refuses it.
        notes: Counts what was changed or ignored: "grey", "CMYK", "orientation".

    Returns:
        (y, x, 3) uint8, red first.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is empty, truncated, no picture, larger than 25
            megapixels, or ambiguous as said above.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (4, 2), 7).save(f"{folder}/grey.png")
        ...     read_image(f"{folder}/grey.png").shape
        (2, 4, 3)
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise errors.MissingInputError(
            path, "", "no such file", "a picture", "Check the path."
        )
    if not path.is_file():
        raise errors.InputError(
            path, "", "not a file", "a picture", "Name one picture file."
        )
    content = path.read_bytes()
    if not content:
        raise errors.InputError(
            path, "", "the file is empty (0 bytes)", "a picture", "Copy it again."
        )
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata, and of sizes that are an error below.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_header(path, image, print_colours)
                image.load()
                turned = _turn(path, image, orientation)
                if notes is not None:
                    _note(image, notes)
                if image.mode == "CMYK":
                    turned = turned.convert("RGB")
                return on_background(turned, background, path)
    except Image.UnidentifiedImageError:
        start = content[:8].hex(" ")
        raise errors.InputError(
            path,
            "",
            f"not a picture, or damaged at its start (starts with {start})",
            f"one of {', '.join(FORMATS)}",
            "Remove the file or convert it.",
        ) from None
    except Image.DecompressionBombError as error:
        raise errors.InputError(
            path,
            "header",
            str(error),
            f"at most {MAX_PIXELS / 1e6:.0f} megapixels",
            "Scale the picture down.",
        ) from None
    except errors.InputError:
        raise
    except (
        EOFError,
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        IndexError,
        OverflowError,
        struct.error,
        zlib.error,
    ) as error:  # what Pillow's decoders raise on damaged content
        raise errors.InputError(
            path,
            "pixels",
            f"truncated or damaged ({error})",
            "a whole picture",
            "Copy or download it again.",
        ) from None


def read_files(
    paths: Mapping[str, pathlib.Path],
    image_ids: Iterable[str],
    source: str | os.PathLike,
) -> Iterator[np.ndarray]:
    """Decodes the files of pictures asked for by id, in that order.

    Args:
        paths: A file for each image id.
        image_ids: Some of these.
        source: What to call the place of the files in messages.

    Yields:
        (y, x, 3) uint8, see `read_image`.

    Raises:
        errors.InputError: If an id is unknown, or as `read_image`.
    """
    for image_id in image_ids:
        if image_id not in paths:
            raise errors.InputError(
                source,
                "",
                f"no picture {image_id}",
                f"one of {len(paths)} pictures, such as {next(iter(paths), 'none')}",
                "Ask for ids that the subjects list.",
            )
        yield read_image(paths[image_id])


def fit(
    image: np.ndarray | Image.Image, px: int, *, shorter_side: int | None = None
) -> np.ndarray:
    """Scales a picture to its shorter side (bicubic) and cuts the square middle.

    With `shorter_side=256` and `px=224` this is the preprocessing published with
    DINOv2, bit for bit; the default keeps everything a square can hold.

    Args:
        image: (y, x, 3) uint8, or a Pillow picture without transparency.
        px: Side of the result.
        shorter_side: Length to which the shorter side is scaled; px by default.

    Returns:
        (px, px, 3) uint8.

    Raises:
        errors.InputError: If the array is not (y, x, 3) uint8.

    Example:
        >>> fit(np.zeros((50, 80, 3), np.uint8), 28).shape
        (28, 28, 3)
    """
    if isinstance(image, Image.Image):
        image = on_background(image, None)
    _check_array(image)
    short = px if shorter_side is None else shorter_side
    if not 1 <= px <= short:
        raise ValueError(f"px is {px}; expected 1..{short} (the shorter side)")
    height, width = image.shape[:2]
    if width <= height:
        new_width, new_height = short, int(short * height / width)
    else:
        new_width, new_height = int(short * width / height), short
    if (new_width, new_height) != (width, height):
        picture = Image.fromarray(np.ascontiguousarray(image))
        image = np.asarray(
            picture.resize((new_width, new_height), Image.Resampling.BICUBIC)
        )
    top, left = (new_height - px) // 2, (new_width - px) // 2
    return image[top : top + px, left : left + px].copy()


def _note(image: Image.Image, notes: dict[str, int]) -> None:
    """Counts what a picture has that the result has not."""
    tag = image.getexif().get(_EXIF_ORIENTATION, 1)
    facts = {
        "grey": image.mode in ("L", "LA", "1"),
        "CMYK": image.mode == "CMYK",
        "orientation": tag != 1,
    }
    for name in (name for name, holds in facts.items() if holds):
        notes[name] = notes.get(name, 0) + 1


def _check_header(
    path: pathlib.Path, image: ImageFile.ImageFile, print_colours: str | None
) -> None:
    """Size, frames and bits, before a pixel is decoded."""
    if print_colours not in (None, "convert"):
        raise ValueError(f"print_colours is {print_colours!r}; 'convert' or None")
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise errors.InputError(
            path,
            "header",
            f"declares {width}x{height} ({width * height / 1e6:.0f} megapixels)",
            f"at most {MAX_PIXELS / 1e6:.0f}",
            "Scale the picture down.",
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise errors.InputError(
            path,
            "",
            f"has {frames} frames",
            "one",
            "Save the frame that was shown as a picture of its own.",
        )
    kind = {"CMYK": "print colours", "YCbCr": "video colours", "LAB": "Lab colours"}
    converted = image.mode == "CMYK" and print_colours == "convert"
    if _is_deep(image) or not (converted or image.mode in _LIGHT + _CLEAR):
        raise errors.InputError(
            path,
            f"mode {image.mode}",
            kind.get(image.mode, "more than 8 bits a colour"),
            "8-bit RGB or grey",
            "Convert it to 8-bit RGB as it looked on the screen of the experiment.",
        )


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether colours have 16 bits in the file, which Pillow drops in silence."""
    for tile in image.tile:
        arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if any(";16" in str(part) for part in arguments):
            return True
        # Of PPM: the value of white.
        largest = arguments[-1] if image.format == "PPM" else 0
        if isinstance(largest, int) and largest > 255:
            return True
    return False


def _turn(
    path: pathlib.Path, image: Image.Image, orientation: str | None
) -> Image.Image:
    """Applies the EXIF orientation, or refuses to guess."""
    if orientation not in (None, "apply", "ignore"):
        raise ValueError(f"orientation is {orientation!r}; 'apply', 'ignore' or None")
    tag = image.getexif().get(_EXIF_ORIENTATION, 1)
    if tag == 1 or orientation == "ignore":
        return image
    if orientation is None:
        raise errors.InputError(
            path,
            "EXIF",
            f"orientation {tag}: the stored picture is turned or mirrored",
            "orientation 1 or none",
            "Say whether it was shown turned (orientation 'apply') or as stored "
            "('ignore').",
        )
    return ImageOps.exif_transpose(image)


def on_background(
    image: Image.Image, background: str | None, name: str | os.PathLike = "picture"
) -> np.ndarray:
    """(y, x, 3) uint8 of a Pillow picture, transparent pixels laid on a background.

    Args:
        image: 8 bits a colour.
        background: "white", "black", or None: refuse pictures that need one.
        name: For messages.

    Raises:
        errors.InputError: If it has transparent pixels and no background is told, or
            its colours are no 8-bit light.
    """
    if background is not None and background not in _BACKGROUNDS:
        raise ValueError(f"background is {background!r}; 'white', 'black' or None")
    if image.mode not in _LIGHT + _CLEAR:
        raise errors.InputError(
            name, f"mode {image.mode}", "not 8-bit light", "RGB or grey", "Convert it."
        )
    if image.mode not in _CLEAR and "transparency" not in image.info:
        return np.asarray(image.convert("RGB"))
    rgba = np.asarray(image.convert("RGBA"))
    alpha = rgba[..., 3:]
    if (alpha == 255).all():
        return rgba[..., :3].copy()
    if background is None:
        raise errors.InputError(
            name,
            "alpha",
            f"{(alpha < 255).mean():.1%} of the pixels are transparent",
            "an opaque picture",
            "Say what was behind it: background 'white' or 'black'.",
        )
    weight = alpha.astype(np.float32) / 255
    mixed = rgba[..., :3] * weight + _BACKGROUNDS[background] * (1 - weight)
    return np.rint(mixed).astype(np.uint8)


def _check_array(image: np.ndarray) -> None:
    """Refuses arrays whose colours or range would have to be guessed."""
    shape, fault = image.shape, None
    if len(shape) == 3 and shape[0] == 3 and shape[2] != 3:
        fault = "looks channels-first"
    elif len(shape) == 2:
        fault = "has no colours (repeat grey three times)"
    elif len(shape) != 3 or shape[2] != 3 or 0 in shape:
        fault = "is no RGB picture"
    elif image.dtype != np.uint8:
        fault = "is not 0..255 in 8 bits"
    if fault:
        raise errors.InputError(
            "picture",
            "",
            f"{shape} {image.dtype} {fault}",
            "(y, x, 3) uint8",
            "Convert the array.",
        )
