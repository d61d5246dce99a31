import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ubrain_jax import errors
from ubrain_jax.datasets import pictures

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (21, 34, 3), dtype=np.uint8)


def save(path, image, **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(path, **options)
    return path


def png(width, height, bits, colour, rows):
    """A PNG written by hand, for headers that Pillow does not write."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


def message(path, kind=errors.InputError, **options):
    with pytest.raises(kind) as caught:
        pictures.read_image(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "ppm", "webp"])
def test_lossless_files_come_back_as_they_were(ending, tmp_path):
    path = save(tmp_path / f"a.{ending}", RGB, **{"lossless": True})
    found = pictures.read_image(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, RGB)


def test_jpeg_is_decoded_whatever_its_name(tmp_path):
    smooth = np.asarray(Image.fromarray(RGB).resize((80, 60), Image.Resampling.BICUBIC))
    buffer = io.BytesIO()
    Image.fromarray(smooth).save(buffer, "JPEG", quality=95, subsampling=0)
    path = tmp_path / "photo.png"
    path.write_bytes(buffer.getvalue())
    found = pictures.read_image(path).astype(int)
    assert np.abs(found - smooth).mean() < 6


def test_grey_one_bit_and_palette_pictures_become_rgb(tmp_path):
    grey = RGB[..., 0]
    found = pictures.read_image(save(tmp_path / "grey.png", grey))
    np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, -1))
    bits = Image.fromarray(grey).convert("1")
    found = pictures.read_image(save(tmp_path / "bits.png", bits))
    np.testing.assert_array_equal(found[..., 1], np.asarray(bits) * 255)
    palette = Image.fromarray(RGB // 128 * 255).quantize(8)
    found = pictures.read_image(save(tmp_path / "palette.gif", palette))
    np.testing.assert_array_equal(found, RGB // 128 * 255)


def test_transparency_is_refused_unless_the_background_is_known(tmp_path):
    alpha = np.full((21, 34, 1), 255, np.uint8)
    opaque = save(tmp_path / "opaque.png", np.concatenate([RGB, alpha], -1))
    np.testing.assert_array_equal(pictures.read_image(opaque), RGB)
    alpha[0], alpha[1] = 0, 51
    path = save(tmp_path / "cat.png", np.concatenate([RGB, alpha], -1))
    assert "9.5% of the pixels are transparent" in message(path)
    for background, value in (("white", 255), ("black", 0)):
        found = pictures.read_image(path, background=background)
        assert (found[0] == value).all()
        expected = np.rint(RGB[1] * 0.2 + value * 0.8)
        assert np.abs(found[1] - expected).max() <= 1
        np.testing.assert_array_equal(found[2:], RGB[2:])
    with pytest.raises(ValueError, match="'white', 'black'"):
        pictures.read_image(path, background="pink")


def test_transparent_palette_and_grey_are_refused(tmp_path):
    palette = Image.fromarray(RGB).quantize(8)
    path = save(tmp_path / "p.png", palette, transparency=0)
    assert "transparent" in message(path)
    grey = np.stack([RGB[..., 0], np.zeros((21, 34), np.uint8)], -1)
    assert "100.0% of the pixels" in message(save(tmp_path / "la.png", grey))


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_turned_pictures_are_refused_unless_told(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "photo.png", RGB, exif=exif)
    assert f"EXIF: orientation {orientation}" in message(path)
    kept = pictures.read_image(path, orientation="ignore")
    np.testing.assert_array_equal(kept, RGB)
    expected = {
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        6: np.rot90(RGB, -1),
        8: np.rot90(RGB, 1),
    }[orientation]
    found = pictures.read_image(path, orientation="apply")
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="'apply', 'ignore'"):
        pictures.read_image(path, orientation="guess")


def test_upright_pictures_need_no_word(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 1
    path = save(tmp_path / "photo.png", RGB, exif=exif)
    np.testing.assert_array_equal(pictures.read_image(path), RGB)


def test_more_than_eight_bits_are_refused(tmp_path):
    deep = np.full((4, 4), 40000, np.uint16)
    for ending in ("png", "tiff"):
        text = message(save(tmp_path / f"grey.{ending}", deep))
        assert "more than 8 bits a colour" in text
    rgb16 = tmp_path / "rgb16.png"  # Pillow calls it RGB and drops the low byte
    rgb16.write_bytes(png(2, 1, 16, 2, b"\0" + struct.pack(">6H", *range(6))))
    assert "mode RGB: more than 8 bits" in message(rgb16)
    ppm16 = tmp_path / "rgb16.ppm"
    ppm16.write_bytes(b"P6 2 1 65535\n" + struct.pack(">6H", *range(6)))
    assert "more than 8 bits" in message(ppm16)
    floats = Image.fromarray(np.ones((3, 3), np.float32))
    assert "mode F: more than 8 bits" in message(save(tmp_path / "f.tiff", floats))


def test_print_colours_are_refused(tmp_path):
    path = save(tmp_path / "cmyk.jpg", Image.new("CMYK", (8, 8)))
    assert "mode CMYK: print colours" in message(path)


def test_print_colours_are_converted_when_told(tmp_path):
    """Red is magenta and yellow ink; JPEG keeps one colour nearly exact."""
    path = save(tmp_path / "cmyk.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))
    found = pictures.read_image(path, print_colours="convert")
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - (255, 0, 0)).max() < 6
    with pytest.raises(ValueError, match="'convert' or None"):
        pictures.read_image(path, print_colours="invert")


def test_notes_count_what_a_picture_lost(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [
        save(tmp_path / "a.png", RGB),
        save(tmp_path / "b.png", RGB[..., 0]),
        save(tmp_path / "c.png", RGB[..., 0], exif=exif),
        save(tmp_path / "d.jpg", Image.new("CMYK", (8, 8))),
    ]
    notes: dict[str, int] = {}
    for path in paths:
        pictures.read_image(
            path, orientation="apply", print_colours="convert", notes=notes
        )
    assert notes == {"grey": 2, "orientation": 1, "CMYK": 1}


@pytest.mark.parametrize("ending", ["gif", "png", "tiff", "webp"])
def test_pictures_that_move_are_refused(ending, tmp_path):
    frames = [Image.fromarray(np.roll(RGB, i, 0)) for i in range(4)]
    path = tmp_path / f"clip.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert "has 4 frames" in message(path)


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "tiff", "webp", "bmp"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_truncated_files_are_refused(ending, part, tmp_path):
    path = save(tmp_path / f"a.{ending}", RGB)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert "truncated or damaged" in message(path) or "damaged at its" in message(path)


def test_bombs_are_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "big.png"
    path.write_bytes(png(14000, 14000, 8, 2, b""))  # above Pillow's own limit
    assert "196000000 pixels" in message(path)
    path.write_bytes(png(10000, 10000, 8, 2, b""))  # Pillow would only warn
    assert "declares 10000x10000 (100 megapixels); expected at most 25" in message(path)
    path.write_bytes(png(5001, 5000, 8, 2, b""))
    assert "declares 5001x5000" in message(path)


def test_what_is_no_picture_is_refused(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("<html>not here</html>")
    assert "starts with 3c 68 74 6d" in message(path)
    path.write_bytes(b"")
    assert "the file is empty" in message(path)
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert "not a picture" in message(path)
    assert "not a file" in message(tmp_path)
    assert "no such file" in message(tmp_path / "none.png", errors.MissingInputError)


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "tiff", "webp", "bmp", "ppm"])
def test_damaged_files_end_in_one_kind_of_error(ending, tmp_path):
    """600 flipped, cut and zeroed files: a picture or an InputError, nothing else."""
    good = save(tmp_path / f"good.{ending}", RGB).read_bytes()
    rng, path = np.random.default_rng(1), tmp_path / f"bad.{ending}"
    outcomes = {"read": 0, "refused": 0}
    for turn in range(600):
        content = bytearray(good)
        # Headers are short: aim half of the damage at them.
        end = len(content) if turn % 2 else min(64, len(content))
        for place in rng.integers(0, end, rng.integers(1, 5)):
            content[place] = rng.integers(0, 256)
        if turn % 5 == 0:
            del content[rng.integers(1, len(content)) :]
        path.write_bytes(bytes(content))
        try:
            found = pictures.read_image(path)
        except errors.InputError:
            outcomes["refused"] += 1
        else:
            assert found.dtype == np.uint8
            assert found.shape[2:] == (3,)
            outcomes["read"] += 1
    assert outcomes["refused"] > 50


def test_fit_keeps_the_middle_of_a_picture():
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 200
    assert (pictures.fit(wide, 40) == 200).all()
    tall = np.ascontiguousarray(wide.transpose(1, 0, 2))
    assert (pictures.fit(tall, 20)[3:-3] == 200).all()
    assert (pictures.fit(tall, 20) > 180).all()
    np.testing.assert_array_equal(pictures.fit(wide[:, :40], 40), wide[:, :40])
    inner = pictures.fit(wide[:, :40], 20, shorter_side=40)
    np.testing.assert_array_equal(inner, wide[10:30, 10:30])


def cubic(x):
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def test_fit_is_antialiased_bicubic():
    """Against a slow loop: a = -0.5, support widened by the scale, each axis."""
    old, new = 45, 14
    image = RNG.integers(0, 256, (old, old, 3), dtype=np.uint8)
    weight, scale = np.zeros((new, old)), old / new
    for row in range(new):
        for i in range(old):
            weight[row, i] = cubic((i + 0.5 - (row + 0.5) * scale) / scale)
        weight[row] /= weight[row].sum()
    exact = np.einsum("yi,xj,ijc->yxc", weight, weight, image.astype(float))
    found = pictures.fit(image, new).astype(float)
    # Pillow rounds to 8 bits after each axis.
    assert np.abs(found - exact.clip(0, 255)).max() <= 1.5


@pytest.mark.parametrize(
    ("image", "part"),
    [
        (np.zeros((3, 50, 50), np.uint8), "looks channels-first"),
        (np.zeros((50, 50), np.uint8), "has no colours"),
        (np.zeros((50, 50, 4), np.uint8), "is no RGB picture"),
        (np.zeros((50, 50, 3), np.float32), "is not 0..255 in 8 bits"),
        (np.zeros((0, 50, 3), np.uint8), "is no RGB picture"),
        (np.zeros((2, 50, 50, 3), np.uint8), "is no RGB picture"),
        (Image.new("CMYK", (9, 9)), "not 8-bit light"),
        (Image.new("RGBA", (9, 9)), "transparent"),
    ],
)
def test_arrays_that_need_a_guess_are_refused(image, part):
    with pytest.raises(errors.InputError, match=part):
        pictures.fit(image, 28)


def test_fit_takes_pillow_pictures_and_refuses_odd_sizes():
    picture = Image.fromarray(RGB)
    np.testing.assert_array_equal(pictures.fit(picture, 21), pictures.fit(RGB, 21))
    with pytest.raises(ValueError, match="px is 30"):
        pictures.fit(RGB, 30, shorter_side=20)
