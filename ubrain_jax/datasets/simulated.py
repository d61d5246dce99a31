"""Simulated crowd: a miniature Natural Scenes Dataset with a known truth.

`draw` paints pictures (a background scene, textured patches, one to three objects)
and says what it painted. `feature_maps` measures in them what voxels here can be
tuned to. `write` plants voxels with a receptive field, a kind of tuning and a noise
level, and writes their responses in NSD's own folders and file formats, so that
everything that reads NSD reads this too; the truth lies beside it under `truth/`.

No trained network is used anywhere: the pictures are filtered with log-Gabor filters,
and objects and scenes are known because they were drawn.

References:
    Allen et al., 2022, Nature Neuroscience 25:116 (NSD: design, files, ncsnr).
    Field, 1987, JOSA A 4:2379 (log-Gabor filters).
"""

import gzip
import io
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import h5py
import nibabel
import numpy as np
import scipy.fft
import scipy.io
import scipy.ndimage
from PIL import Image, ImageDraw

from ubrain_jax import errors

CATEGORIES = ("face", "house", "star", "tree", "car", "animal")
SCENES = ("landscape", "indoor", "water", "forest", "city")
KINDS = ("orientation", "colour", "object", "scene")
NUM_ORIENTATIONS = 6  # 0 is a vertical grating, turning counter-clockwise on screen
FREQUENCIES = (28, 14, 7)  # cycles per picture
GRID = 28  # side of a feature map, cells
FEATURES = (
    *(
        f"energy-{f}-{180 * o // NUM_ORIENTATIONS}"
        for f in FREQUENCIES
        for o in range(NUM_ORIENTATIONS)
    ),
    *("red-green", "yellow-blue", "luminance"),
    *(f"object-{c}" for c in CATEGORIES),
    *(f"scene-{s}" for s in SCENES),
)
BETAS = "betas_fithrf_GLMdenoise_RR"
RUNS = 12  # runs of a session, as in NSD
VOXEL_MM = 1.8
ATLASES = {
    "nsdgeneral": ("nsdgeneral",),
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "kind": KINDS,
}

# Streams of random numbers of one seed: pictures, design, a subject's voxels, ...
_PICTURES, _DESIGN, _VOXELS, _NOISE, _BEHAVIOUR = range(5)

_ENERGY = slice(0, len(FREQUENCIES) * NUM_ORIENTATIONS)
_COLOUR = slice(_ENERGY.stop, _ENERGY.stop + 3)
_OBJECT = slice(_COLOUR.stop, _COLOUR.stop + len(CATEGORIES))
_SCENE = slice(_OBJECT.stop, _OBJECT.stop + len(SCENES))


class Placed(NamedTuple):
    """One drawn object; lengths and places are fractions of the picture.

    Attributes:
        category: Index into `CATEGORIES`.
        x: Centre, from the left.
        y: Centre, from the top.
        size: Side of the square that holds the upright shape.
        rotation: Radians, clockwise on screen.
        mirrored: Whether left and right are exchanged.
    """

    category: int
    x: float
    y: float
    size: float
    rotation: float
    mirrored: bool


class Scene(NamedTuple):
    """What `draw` painted.

    Attributes:
        scene: Index into `SCENES` of the background.
        category: (H, W) int8 index into `CATEGORIES` of the visible object at each
            pixel, -1 where none is.
        objects: Back to front.
    """

    scene: int
    category: np.ndarray
    objects: tuple[Placed, ...]


class Voxels(NamedTuple):
    """Planted voxels of one subject, in the C order of the nsdgeneral mask.

    Attributes:
        position: (V, 3) int32 voxel i, j, k.
        kind: (V,) int8 index into `KINDS`.
        centre: (V, 2) x, y of the receptive field, fractions of the picture.
        size: (V,) standard deviation of the receptive field, fraction of the picture.
        tuning: (V, F) weight of each of `FEATURES`.
        category: (V,) int8 preferred object category, -1 for the other kinds.
        contrast: (V,) how much local contrast of any orientation is mixed in.
        ncsnr: (V,) planted signal-to-noise ratio: sd of the noiseless response over
            images divided by the sd of single-trial noise.
    """

    position: np.ndarray
    kind: np.ndarray
    centre: np.ndarray
    size: np.ndarray
    tuning: np.ndarray
    category: np.ndarray
    contrast: np.ndarray
    ncsnr: np.ndarray


# ---------------------------------------------------------------- pictures


def _smooth(rng: np.random.Generator, px: int, cells: int) -> np.ndarray:
    """(px, px) float32 smooth noise around 0, about `cells` bumps across."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((px, px), Image.Resampling.BICUBIC))


def _hsv(h: float, s: float, v: float) -> np.ndarray:
    """(3,) RGB in [0, 1] of a hue (any real, period 1), saturation and value."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * h) % 6
    return v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)


def _shade(
    rng: np.random.Generator, hue: float, value: tuple[float, float]
) -> np.ndarray:
    """A colour near a hue; one time in three of any hue, so that hue tells little."""
    if rng.random() < 1 / 3:
        hue = rng.random()
    h = hue + rng.normal(0, 0.06)
    return _hsv(h, rng.uniform(0.1, 0.7), rng.uniform(*value)).astype(np.float32)


def _background(rng: np.random.Generator, px: int, scene: int) -> np.ndarray:
    """(px, px, 3) float32 background of a scene class, around [0, 1]."""
    y, x = (np.mgrid[:px, :px].astype(np.float32) + 0.5) / px
    name = SCENES[scene]
    top = _shade(rng, 0.6, (0.5, 1.0))
    low = _shade(rng, 0.6, (0.4, 1.0))
    canvas = top + (low - top) * y[..., None]
    horizon = rng.uniform(0.3, 0.65)
    if name == "landscape":
        ridge = horizon + 0.12 * _smooth(rng, px, 6)[:1] + 0.02 * _smooth(rng, px, 30)
        canvas += 0.12 * _smooth(rng, px, 5)[..., None]
        ground = _shade(rng, 0.22, (0.25, 0.8))
        texture = 1 + 0.35 * _smooth(rng, px, 24) * np.clip(3 * (y - horizon), 0.2, 1)
        canvas = np.where((y > ridge)[..., None], ground * texture[..., None], canvas)
    elif name == "indoor":
        left, right = rng.uniform(0.1, 0.35), rng.uniform(0.65, 0.9)
        ceiling, floor = rng.uniform(0.05, 0.25), rng.uniform(0.6, 0.85)
        wall = _shade(rng, 0.1, (0.4, 0.95))
        stripes = np.sin(2 * np.pi * rng.uniform(6, 20) * x) * rng.uniform(0, 0.12)
        canvas = wall * (1 + stripes + 0.05 * _smooth(rng, px, 4))[..., None]
        # How far outside the back wall, in units of the margin on that side.
        out = [(left - x) / left, (x - right) / (1 - right)]
        out += [(ceiling - y) / ceiling, (y - floor) / (1 - floor)]
        side = np.argmax(out, axis=0)
        inside = np.max(out, axis=0) < 0
        tint = _shade(rng, 0.08, (0.25, 0.8))
        for s, light in enumerate(rng.uniform(0.55, 1.15, 4)):
            colour = tint if s == 3 else wall
            canvas[(side == s) & ~inside] = colour * light
        if rng.random() < 0.7:  # a window on the back wall
            wx, wy = rng.uniform(left, right - 0.15), rng.uniform(ceiling, 0.4)
            pane = (abs(x - wx - 0.1) < 0.1) & (abs(y - wy - 0.1) < 0.1)
            bar = (abs(x - wx - 0.1) < 0.012) | (abs(y - wy - 0.1) < 0.012)
            canvas[pane & inside] = _shade(rng, 0.55, (0.8, 1.0))
            canvas[pane & bar & inside] = wall * 0.5
    elif name == "water":
        depth = np.clip((y - horizon) / (1 - horizon), 1e-3, 1)
        phase = rng.uniform(14, 26) * np.log(depth + 0.08)
        phase += 1.6 * _smooth(rng, px, 9)
        water = _shade(rng, 0.52, (0.3, 0.85))
        waves = 1 + rng.uniform(0.15, 0.35) * np.sin(2 * np.pi * phase / 3)
        canvas = np.where((y > horizon)[..., None], water * waves[..., None], canvas)
    elif name == "forest":
        leaf = _shade(rng, 0.3, (0.3, 0.8))
        grain = 1 + 0.5 * _smooth(rng, px, 28) + 0.3 * _smooth(rng, px, 7)
        canvas = leaf * grain[..., None]
        bark = _shade(rng, 0.08, (0.1, 0.6))
        lean = 0.06 * _smooth(rng, px, 4)
        for _ in range(rng.integers(5, 11)):
            at, wide = rng.uniform(0, 1), rng.uniform(0.008, 0.035)
            trunk = abs(x + lean - at) < wide
            canvas[trunk] = bark * rng.uniform(0.6, 1.3)
    else:  # city
        for _ in range(rng.integers(6, 11)):
            at, wide = rng.uniform(-0.05, 1), rng.uniform(0.06, 0.14)
            roof = rng.uniform(0.1, 0.6)
            front = _shade(rng, 0.05, (0.2, 0.8))
            block = (abs(x - at) < wide) & (y > roof)
            canvas[block] = front
            rows, cols = rng.uniform(12, 24, 2)
            lit = (((x - at) * cols) % 1 < 0.45) & (((y - roof) * rows) % 1 < 0.5)
            canvas[block & lit] = front * rng.uniform(0.4, 1.6)
        street = _shade(rng, 0.1, (0.2, 0.6))
        canvas[y > rng.uniform(0.78, 0.92)] = street
    return canvas.astype(np.float32)


def _ellipse(
    x: float, y: float, rx: float, ry: float, arc: tuple[float, float] = (0, 1)
) -> np.ndarray:
    """Points of an ellipse or a sector cut off by its chord; `arc` in turns."""
    t = 2 * np.pi * np.linspace(*arc, 28)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], axis=1)


def _box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)


def _parts(rng: np.random.Generator, category: int) -> list[tuple[str, np.ndarray]]:
    """Polygons of an object, back to front, with the role of their colour.

    The shape fills [-0.5, 0.5] x [-0.5, 0.5], y downwards.
    """
    u = rng.uniform
    name = CATEGORIES[category]
    if name == "face":
        wide, eye, gap = u(0.34, 0.42), u(0.06, 0.085), u(0.14, 0.18)
        parts = [("accent", _ellipse(0, -0.08, wide + 0.06, 0.42))]
        parts += [("main", _ellipse(0, 0.03, wide, 0.46))]
        for s in (-1, 1):
            parts += [("light", _ellipse(s * gap, -0.08, eye * 1.3, eye))]
            parts += [("dark", _ellipse(s * gap, -0.08, eye * 0.6, eye * 0.75))]
            parts += [("dark", _box(s * gap - 0.1, -0.22, s * gap + 0.1, -0.185))]
        parts += [("accent", np.array([(0, -0.03), (-0.06, 0.13), (0.06, 0.13)]))]
        parts += [("dark", _ellipse(0, 0.24, u(0.12, 0.2), u(0.06, 0.11), (0, 0.5)))]
        return parts
    if name == "house":
        eave, door = u(-0.15, -0.02), u(-0.2, 0.1)
        parts = [("main", _box(-0.4, eave, 0.4, 0.5))]
        parts += [
            ("accent", np.array([(-0.5, eave), (u(-0.1, 0.1), -0.5), (0.5, eave)]))
        ]
        parts += [("dark", _box(door - 0.08, 0.2, door + 0.08, 0.5))]
        for at in (-0.28, 0.28):
            parts += [("light", _box(at - 0.09, eave + 0.08, at + 0.09, eave + 0.24))]
            parts += [("dark", _box(at - 0.01, eave + 0.08, at + 0.01, eave + 0.24))]
        return parts
    if name == "star":
        points, inner = int(rng.integers(5, 8)), u(0.2, 0.26)
        turn = np.arange(2 * points) * np.pi / points - np.pi / 2
        ring = np.stack([np.cos(turn), np.sin(turn)], axis=1)
        ring *= np.where(np.arange(2 * points) % 2, inner, 0.5)[:, None]
        core = [("accent", 0.55 * ring), ("light", _ellipse(0, 0, 0.07, 0.07))]
        return [("main", ring), *core, ("dark", _ellipse(0, 0, 0.03, 0.03))]
    if name == "tree":
        wide = u(0.32, 0.45)
        parts = [("dark", _box(-0.07, 0.2, 0.07, 0.5))]
        for low, high, part in (
            (0.32, -0.12, 1),
            (0.08, -0.32, 0.8),
            (-0.15, -0.5, 0.58),
        ):
            cone = np.array([(-wide * part, low), (0, high), (wide * part, low)])
            parts += [("accent", np.add(cone, (0, 0.035))), ("main", cone)]
        for at in ((-0.15, 0.22), (0.12, 0.02), (-0.03, -0.22)):
            parts += [("light", _ellipse(*at, 0.035, 0.035))]
        return parts
    if name == "car":
        cab = u(-0.1, 0.05)
        roof = [(cab - 0.3, -0.02), (cab - 0.17, -0.28), (cab + 0.15, -0.28)]
        parts = [("accent", np.array([*roof, (cab + 0.32, -0.02)]))]
        parts += [("light", _box(cab - 0.17, -0.22, cab - 0.02, -0.04))]
        parts += [("light", _box(cab + 0.03, -0.22, cab + 0.18, -0.04))]
        parts += [("main", _box(-0.5, -0.05, 0.5, 0.2))]
        for at in (-0.28, 0.28):
            parts += [("dark", _ellipse(at, 0.2, 0.13, 0.13))]
            parts += [("light", _ellipse(at, 0.2, 0.055, 0.055))]
        return parts
    parts = []  # animal, looking left
    for at in (-0.22, -0.1, 0.2, 0.32):
        parts += [("main", _box(at - 0.04, 0.1, at + 0.04, 0.5))]
    tail = [(0.33, -0.03), (0.5, u(-0.4, -0.2)), (0.42, 0.05)]
    parts += [("main", np.array(tail))]
    parts += [("main", _ellipse(0.06, 0.06, 0.36, u(0.15, 0.21)))]
    for at in ((-0.05, 0.03), (0.12, 0.1), (0.22, 0.01)):
        parts += [("accent", _ellipse(*at, 0.055, 0.045))]
    for at in (-0.4, -0.24):
        parts += [
            ("accent", np.array([(at - 0.07, -0.22), (at, -0.45), (at + 0.07, -0.22)]))
        ]
    parts += [("main", _ellipse(-0.32, -0.14, 0.17, 0.15))]
    parts += [("light", _ellipse(-0.37, -0.17, 0.04, 0.04))]
    parts += [("dark", _ellipse(-0.37, -0.17, 0.02, 0.02))]
    return [*parts, ("dark", _ellipse(-0.48, -0.1, 0.03, 0.025))]


def _grating(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A grating over places in picture fractions, and the colour it modulates."""
    angle = rng.uniform(0, np.pi)
    cycles = np.exp(rng.uniform(np.log(5), np.log(32)))
    wave = np.cos(angle) * x - np.sin(angle) * y
    wave = np.sin(2 * np.pi * (cycles * wave + rng.random()))
    if rng.random() < 0.3:
        wave = np.sign(wave)
    colour = np.ones(3) if rng.random() < 0.6 else rng.normal(0, 1, 3)
    return wave, colour / np.linalg.norm(colour)


def _paint(
    rng: np.random.Generator, canvas: np.ndarray, category: np.ndarray, item: Placed
) -> None:
    """Paints one object over the canvas and its category over the map, in place."""
    px = canvas.shape[0]
    fine = 3  # drawn at three times the resolution, then averaged
    half = math.ceil(0.75 * item.size * px) + 1
    cx, cy = round(item.x * px), round(item.y * px)
    side = 2 * half
    turn = np.array(
        [
            (math.cos(item.rotation), math.sin(item.rotation)),
            (-math.sin(item.rotation), math.cos(item.rotation)),
        ]
    )
    shift = (item.x * px - cx + half, item.y * px - cy + half)
    # The same ranges for every category: colour says nothing about the object.
    colours = {
        "main": _hsv(rng.random(), rng.uniform(0.2, 1), rng.uniform(0.35, 1)),
        "accent": _hsv(rng.random(), rng.uniform(0.2, 1), rng.uniform(0.2, 1)),
        "light": _hsv(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.8, 1)),
        "dark": _hsv(rng.random(), rng.uniform(0, 0.6), rng.uniform(0, 0.25)),
    }
    ink = {k: tuple(int(255 * c) for c in v) for k, v in colours.items()}
    rgb = Image.new("RGB", (fine * side, fine * side), ink["main"])
    mask = Image.new("L", rgb.size, 0)
    rgb_pen, mask_pen = ImageDraw.Draw(rgb), ImageDraw.Draw(mask)
    for role, points in _parts(rng, item.category):
        if item.mirrored:
            points = points * (-1, 1)
        at = fine * (points @ turn * item.size * px + shift)
        flat = at.ravel().tolist()
        rgb_pen.polygon(flat, fill=ink[role])
        mask_pen.polygon(flat, fill=255)
    colour = np.asarray(rgb.reduce(fine), np.float32) / 255
    alpha = np.asarray(mask.reduce(fine), np.float32)[..., None] / 255
    # The part of the stamp that lies on the canvas.
    y0, x0 = max(0, cy - half), max(0, cx - half)
    y1, x1 = min(px, cy + half), min(px, cx + half)
    cut = np.s_[y0 - cy + half : y1 - cy + half, x0 - cx + half : x1 - cx + half]
    colour, alpha = colour[cut], alpha[cut]
    y, x = np.mgrid[y0:y1, x0:x1] / px
    light = 1 + 0.25 * ((x - item.x) * rng.normal() + (y - item.y) * rng.normal()) / (
        item.size
    )
    colour = colour * light[..., None]
    if rng.random() < 0.35:
        wave, tint = _grating(rng, x, y)
        colour = colour + rng.uniform(0.05, 0.2) * wave[..., None] * tint
    spot = np.s_[y0:y1, x0:x1]
    canvas[spot] += (colour - canvas[spot]) * alpha
    category[spot][alpha[..., 0] > 0.5] = item.category


def draw(rng: np.random.Generator, px: int = 112) -> tuple[np.ndarray, Scene]:
    """Draws one picture: a background scene, textured patches, one to three objects.

    Objects measure 0.22 to 0.54 of the picture (25 to 60 of 112 pixels), may lie on
    top of one another and partly outside, and take their colours from the same
    ranges whatever they are.

    Args:
        rng: Where all randomness comes from.
        px: Side of the picture in pixels, a multiple of 28.

    Returns:
        The (px, px, 3) uint8 picture, and what it shows.

    Example:
        >>> picture, scene = draw(np.random.default_rng(0))
        >>> picture.shape, scene.category.shape
        ((112, 112, 3), (112, 112))
    """
    _check_px(px)
    which = int(rng.integers(len(SCENES)))
    canvas = _background(rng, px, which)
    y, x = np.mgrid[:px, :px].astype(np.float32) / px
    for _ in range(rng.integers(1, 4)):
        radius = rng.uniform(0.08, 0.24)
        far = np.hypot(x - rng.uniform(0, 1), y - rng.uniform(0, 1)) / radius
        window = np.clip(3 - 3 * far, 0, 1)[..., None]
        wave, colour = _grating(rng, x, y)
        strength = rng.uniform(0.15, 0.5)
        if rng.random() < 0.4:  # opaque: a flat patch of its own colour
            flat = _hsv(rng.random(), rng.uniform(0, 1), rng.uniform(0.2, 1))
            canvas += (flat - canvas) * window
        canvas += strength * window * wave[..., None] * colour
    category = np.full((px, px), -1, np.int8)
    placed = []
    for _ in range(rng.integers(1, 4)):
        item = Placed(
            category=int(rng.integers(len(CATEGORIES))),
            x=float(rng.uniform(0.12, 0.88)),
            y=float(rng.uniform(0.12, 0.88)),
            size=float(np.exp(rng.uniform(np.log(0.22), np.log(0.54)))),
            rotation=float(rng.uniform(-0.45, 0.45)),
            mirrored=bool(rng.random() < 0.5),
        )
        _paint(rng, canvas, category, item)
        placed.append(item)
    canvas += rng.normal(0, 0.02, canvas.shape)
    picture = np.round(255 * np.clip(canvas, 0, 1)).astype(np.uint8)
    return picture, Scene(which, category, tuple(placed))


def _check_px(px: int) -> None:
    if px < 2 * GRID or px % GRID:
        raise errors.ConfigError(
            "image_px",
            "",
            f"pictures of {px} pixels",
            f"a multiple of {GRID}, at least {2 * GRID}",
            "Choose 112 or 224, for example.",
        )


# ---------------------------------------------------------------- what they show


def _filters(px: int) -> list[tuple[int, np.ndarray]]:
    """For each frequency: side n of the cropped spectrum, (O, n, n) log-Gabor gains.

    The gains are one-sided, so that the filtered picture is complex and its modulus
    is the local amplitude whatever the phase. They shift the n samples of each axis
    to the centres of the px / n pixels that a sample stands for.
    """
    bank = []
    for cycles in FREQUENCIES:
        n = min(px, 4 * cycles)  # passes up to twice the frequency
        frequency = np.fft.fftfreq(n, 1 / n)
        fy, fx = np.meshgrid(frequency, frequency, indexing="ij")
        radius = np.hypot(fx, fy)
        radius[0, 0] = 1
        radial = np.exp(-0.5 * (np.log(radius / cycles) / math.log(0.7)) ** 2)
        # Nyquist has one sign only, which would favour orientations on that side.
        radial[np.maximum(abs(fx), abs(fy)) == n / 2] = 0
        radial[0, 0] = 0
        shift = (px / n - 1) / 2 / px
        phase = np.exp(2j * np.pi * shift * (fx + fy))
        gains = []
        for o in range(NUM_ORIENTATIONS):
            # Rows grow downwards, so counter-clockwise on screen is -fy.
            off = np.arctan2(-fy, fx) - np.pi * o / NUM_ORIENTATIONS
            off = np.angle(np.exp(1j * off))
            gains.append(radial * phase * np.exp(-0.5 * (off / math.radians(20)) ** 2))
        bank.append((n, np.stack(gains).astype(np.complex64)))
    return bank


def _cells(maps: np.ndarray) -> np.ndarray:
    """(..., n, n) -> (..., GRID, GRID) by averaging blocks."""
    n = maps.shape[-1]
    if n == GRID:
        return maps
    b = n // GRID
    return maps.reshape(*maps.shape[:-2], GRID, b, GRID, b).mean(axis=(-3, -1))


def feature_maps(
    pictures: np.ndarray, category: np.ndarray, scene: np.ndarray
) -> np.ndarray:
    """Measures in pictures everything a simulated voxel can be tuned to.

    Energy is the amplitude of one-sided log-Gabor filters on luminance, divided by
    0.02 plus the local mean over all filters (contrast normalisation). Colours are
    opponent values: R - G, (R + G) / 2 - B, and luminance, R, G, B in [0, 1].
    Objects are the covered fraction of a cell; a scene is the fraction of a cell
    where the background of that class is visible.

    Args:
        pictures: (B, H, W, 3) uint8, H = W a multiple of 28.
        category: (B, H, W) int8 as in `Scene`.
        scene: (B,) index into `SCENES`.

    Returns:
        (B, F, GRID, GRID) float32 in the order of `FEATURES`.
    """
    px = pictures.shape[1]
    _check_px(px)
    rgb = np.moveaxis(pictures, -1, 1).astype(np.float32) / 255  # (B, 3, H, W)
    luminance = rgb.mean(axis=1)
    out = np.empty((len(pictures), len(FEATURES), GRID, GRID), np.float32)
    # The FFT wraps around: fade the border to the mean so that no edge is seen there.
    ramp = np.clip((np.arange(px) + 0.5) / (px / GRID), 0, 1)
    ramp = (ramp * ramp[::-1]).astype(np.float32)
    centred = luminance - luminance.mean(axis=(1, 2), keepdims=True)
    windowed = centred * ramp[:, None] * ramp
    spectrum = np.asarray(scipy.fft.fft2(windowed))  # (B, H, W) complex64
    amplitude = []
    for n, gains in _filters(px):
        keep = np.fft.fftfreq(n, 1 / n).astype(int)
        part = spectrum[:, keep[:, None], keep]
        wave = scipy.fft.ifft2(part[:, None] * gains) * (n / px) ** 2
        amplitude.append(_cells(np.abs(wave)))
    energy = np.concatenate(amplitude, axis=1)  # (B, filters, GRID, GRID)
    local = scipy.ndimage.uniform_filter(
        energy.mean(axis=1), 3, mode="nearest", axes=(1, 2)
    )
    out[:, _ENERGY] = energy / (0.02 + local[:, None])
    red, green, blue = rgb[:, 0], rgb[:, 1], rgb[:, 2]
    opponent = np.stack([red - green, (red + green) / 2 - blue, luminance], axis=1)
    out[:, _COLOUR] = _cells(opponent)
    shown = np.arange(len(CATEGORIES), dtype=np.int8)[:, None, None]
    covered = _cells((category[:, None] == shown).astype(np.float32))
    out[:, _OBJECT] = covered
    is_scene = np.asarray(scene)[:, None] == np.arange(len(SCENES))
    visible = 1 - covered.sum(axis=1)
    out[:, _SCENE] = is_scene[:, :, None, None] * visible[:, None]
    return out


def receptive_fields(centre: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Gaussian weights over the cells of a feature map, each field summing to 1.

    Args:
        centre: (V, 2) x, y in fractions of the picture.
        size: (V,) standard deviation, fraction of the picture.

    Returns:
        (V, GRID * GRID) float32.
    """
    at = (np.arange(GRID) + 0.5) / GRID
    gx, gy = (
        np.exp(-0.5 * ((at - centre[:, i, None]) / size[:, None]) ** 2) for i in (0, 1)
    )
    field = (gy[:, :, None] * gx[:, None, :]).reshape(len(size), -1)
    return (field / field.sum(axis=1, keepdims=True)).astype(np.float32)


def drives(maps: np.ndarray, voxels: Voxels) -> np.ndarray:
    """What each voxel sees, before its nonlinearity.

    Args:
        maps: (B, F, GRID, GRID) from `feature_maps`.
        voxels: V voxels.

    Returns:
        (B, V, 2) float32: the tuned drive, and the local contrast of any orientation.
    """
    flat = maps.reshape(*maps.shape[:2], -1)
    field = receptive_fields(voxels.centre, voxels.size)
    seen = flat @ field.T  # (B, F, V)
    tuned = np.einsum("BFV,VF->BV", seen, voxels.tuning, optimize=True)
    return np.stack([tuned, seen[:, _ENERGY].mean(axis=1)], axis=-1)


def responses(drive: np.ndarray, voxels: Voxels) -> np.ndarray:
    """Noiseless responses: nonlinearity by kind, a little contrast, z-scored.

    Orientation: drive^0.7. Colour: tanh of the standardised drive. Object: drive^0.5,
    a saturating presence. Scene: linear. Then `contrast` times the standardised local
    contrast is added.

    Args:
        drive: (M, V, 2) from `drives` for the M images of the subject.
        voxels: V voxels.

    Returns:
        (M, V) float32, mean 0 and sd 1 (ddof=0) over images; 0 for a voxel that does
        not vary.
    """
    tuned = drive[..., 0].astype(np.float64)
    kind = np.array(KINDS)[voxels.kind]
    shaped = np.select(
        [kind == "orientation", kind == "colour", kind == "object"],
        [np.maximum(tuned, 0) ** 0.7, np.tanh(_standard(tuned)), np.sqrt(abs(tuned))],
        tuned,
    )
    contrast = _standard(drive[..., 1].astype(np.float64))
    mixed = _standard(shaped) + voxels.contrast * contrast
    return _standard(mixed).astype(np.float32)


def _standard(values: np.ndarray) -> np.ndarray:
    """z-score over the first axis; 0 where nothing varies."""
    centred = values - values.mean(axis=0)
    sd = centred.std(axis=0)
    return centred / np.where(sd > 1e-9, sd, np.inf)


# ---------------------------------------------------------------- subjects


def _brain(dims: tuple[int, int, int]) -> np.ndarray:
    """(X, Y, Z) bool ellipsoid that fills the grid."""
    axes = [(2 * np.arange(n) + 1 - n) / n for n in dims]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 < 1


def _grid(num_voxels: int, subject: int) -> tuple[int, int, int]:
    """Grid of a subject: unequal sides, other for each, room for the voxels."""
    base = ((13, 15, 12), (12, 16, 13), (14, 14, 12))[(subject - 1) % 3]
    scale = (num_voxels / 600) ** (1 / 3)
    x, y, z = (max(4, round(n * scale)) for n in base)
    while _brain((x, y, z)).sum() < 1.4 * num_voxels:
        x, y, z = x + 1, y + 1, z + 1
    return x, y, z


def plant(rng: np.random.Generator, brain: np.ndarray, num_voxels: int) -> Voxels:
    """Plants tuned voxels in the posterior part of a brain.

    Kinds follow one another from posterior to anterior (orientation, colour, object,
    scene) with a ragged border. Fields lie in the visual field opposite to the
    hemisphere for orientation and colour; the first half of x is the left hemisphere.
    Every subject draws its own mixture of kinds, field sizes, preferences and noise.

    Args:
        rng: Where all randomness comes from.
        brain: (X, Y, Z) bool.
        num_voxels: How many.

    Returns:
        Voxels in the C order of the grid.
    """
    inside = np.argwhere(brain)
    depth = inside[:, 1] + rng.normal(0, 0.6, len(inside))
    chosen = np.sort(np.argsort(depth, kind="stable")[:num_voxels])
    position, depth = inside[chosen].astype(np.int32), depth[chosen]
    v = num_voxels
    # Mixture: at least a tenth of each kind, else free.
    share = 0.1 + 0.6 * rng.dirichlet((5, 3, 5, 3))
    border = np.round(np.cumsum(share)[:-1] * v).astype(int)
    kind = np.empty(v, np.int8)
    for k, members in enumerate(np.split(np.argsort(depth, kind="stable"), border)):
        kind[members] = k
    orientation, colour, thing, scene = (kind == k for k in range(4))

    # Receptive fields: polar angle and eccentricity (0.5 is the edge of the picture).
    left = position[:, 0] < brain.shape[0] / 2
    angle = rng.uniform(-np.pi / 2, np.pi / 2, v) + np.where(left, 0, np.pi)
    far = np.where(thing, 0.3, 0.44) * rng.uniform(0, 1, v) ** rng.uniform(0.5, 0.8)
    centre = 0.5 + far[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    spread = np.exp(rng.normal(0, 0.2, v)) * rng.uniform(0.85, 1.2)
    size = np.clip((0.035 + 0.13 * far) * spread, 0.03, 0.15)
    size[thing] = np.clip((0.12 + 0.25 * far) * spread, 0.1, 0.3)[thing]
    whole = scene & (rng.random(v) < 0.5)
    half = scene & ~whole
    centre[whole], size[whole] = 0.5, 0.5
    centre[half] = np.where(left, 0.75, 0.25)[half, None] * (1, 0) + (0, 0.5)
    size[half] = 0.2

    tuning = np.zeros((v, len(FEATURES)), np.float32)
    # Orientation: small fields like high frequencies.
    finest = np.clip(np.log2(size / 0.05) + rng.normal(0, 0.7, v), -0.49, 2.49)
    frequency = np.round(finest).astype(int)
    preferred = rng.uniform(0, np.pi, v)
    steps = np.pi * np.arange(NUM_ORIENTATIONS) / NUM_ORIENTATIONS
    bump = np.exp(3 * (np.cos(2 * (preferred[:, None] - steps)) - 1))
    for f in range(len(FREQUENCIES)):
        at = np.flatnonzero(orientation & (frequency == f))
        first = f * NUM_ORIENTATIONS
        tuning[at, first : first + NUM_ORIENTATIONS] = bump[at]
    hue = rng.uniform(0, 2 * np.pi, v)
    opponent = np.stack([np.cos(hue), np.sin(hue), 0.3 * rng.normal(0, 1, v)], axis=1)
    tuning[colour, _COLOUR] = opponent[colour]
    liking = 0.06 + 0.64 * rng.dirichlet(np.full(len(CATEGORIES), 3.0))
    first = rng.choice(len(CATEGORIES), v, p=liking / liking.sum())
    second = (first + rng.integers(1, len(CATEGORIES), v)) % len(CATEGORIES)
    both = rng.random(v) < 0.3
    like = np.eye(len(CATEGORIES))
    tuning[thing, _OBJECT] = (like[first] + 0.5 * both[:, None] * like[second])[thing]
    # Scene: one class liked, another a little, one disliked.
    order = np.argsort(rng.random((v, len(SCENES))), axis=1)
    taste = np.zeros((v, len(SCENES)))
    for weight, column in ((1.0, 0), (0.4, 1), (-0.4, 2)):
        taste[np.arange(v), order[:, column]] = weight
    tuning[scene, _SCENE] = taste[scene]

    typical = 0.45 * rng.uniform(0.9, 1.12)
    ncsnr = np.clip(typical * np.exp(rng.normal(0, 0.42, v)), 0.15, 1.2)
    return Voxels(
        position=position,
        kind=kind,
        centre=centre,
        size=size,
        tuning=tuning,
        category=np.where(thing, first, -1).astype(np.int8),
        contrast=rng.uniform(0.0, 0.2, v),
        ncsnr=ncsnr,
    )


def regions(voxels: Voxels, brain: np.ndarray) -> dict[str, np.ndarray]:
    """Label volumes of the atlases: -1 outside the brain, 0 without label, else 1..N.

    prf-visualrois: orientation voxels by tercile of field size (V1, V2, V3) and
    vertical field half (v is the upper half), colour voxels hV4. floc-faces and
    floc-places: voxels that prefer faces or houses, by field size; RSC holds the
    scene voxels. kind: `KINDS`.

    Args:
        voxels: V voxels of the subject.
        brain: (X, Y, Z) bool.

    Returns:
        For each atlas an (X, Y, Z) float64 volume, as NSD stores them.
    """
    kind = np.array(KINDS)[voxels.kind]
    upper = voxels.centre[:, 1] < 0.5

    def rank(members: np.ndarray, parts: int) -> np.ndarray:
        """1..parts by field size within members, 0 elsewhere."""
        label = np.zeros(len(kind), int)
        order = np.flatnonzero(members)[np.argsort(voxels.size[members], kind="stable")]
        for p, some in enumerate(np.array_split(order, parts)):
            label[some] = p + 1
        return label

    area = rank(kind == "orientation", 3)
    prf = np.where(area > 0, 2 * area - upper, 0) + 7 * (kind == "colour")
    faces = rank(voxels.category == CATEGORIES.index("face"), 3)
    places = rank(voxels.category == CATEGORIES.index("house"), 2)
    labels = {
        "nsdgeneral": np.ones(len(kind)),
        "prf-visualrois": prf,
        "floc-faces": faces,
        "floc-places": places + 3 * (kind == "scene"),
        "kind": voxels.kind + 1,
    }
    volumes = {}
    for name, label in labels.items():
        volume = np.where(brain, 0.0, -1.0)
        volume[tuple(voxels.position.T)] = label
        volumes[name] = volume
    return volumes


# ---------------------------------------------------------------- experiment


class Design(NamedTuple):
    """Which picture is shown when; numbers as in NSD's files.

    Attributes:
        order: (T,) int, 1-based index into a subject's list of pictures, same for all
            subjects; every picture comes three times.
        lists: (8, M) int, 1-based picture ids; the shared ones first and sorted.
        slots: (sessions, 12, 75) uint8, 1 where a trial slot shows a picture.
        trials_per_session: T is a multiple of it.
    """

    order: np.ndarray
    lists: np.ndarray
    slots: np.ndarray
    trials_per_session: int


def _design(
    seed: int, num_subjects: int, num_shared: int, num_own: int, per_session: int
) -> Design:
    """Draws ids and order; repeats are spread over all sessions, never back to back."""
    rng = np.random.default_rng([seed, _DESIGN])
    num_images = num_shared + num_own
    total = num_shared + num_subjects * num_own
    ids = 1 + rng.permutation(total)
    shared = np.sort(ids[:num_shared])
    own = ids[num_shared:].reshape(num_subjects, num_own)
    # NSD's file always has eight rows.
    lists = np.stack([np.r_[shared, own[s % num_subjects]] for s in range(8)])
    order = rng.permutation(np.repeat(np.arange(1, num_images + 1), 3))
    while len(back := np.flatnonzero(order[1:] == order[:-1])):
        for i in back:
            j = rng.integers(len(order))
            order[[i, j]] = order[[j, i]]
    sessions = len(order) // per_session
    slots = np.zeros((sessions, RUNS, 75), np.uint8)
    for run, count in enumerate(_run_sizes(per_session)):
        # Three blanks before, at least four after, the others scattered, as in NSD.
        for session in range(sessions):
            at = 3 + np.sort(rng.permutation(68)[:count])
            slots[session, run, at] = 1
    return Design(order, lists, slots, per_session)


def _run_sizes(per_session: int) -> list[int]:
    """Trials in each of the twelve runs: 63, 62, 63, ... for 750."""
    low, more = divmod(per_session, RUNS)
    sizes = [low] * RUNS
    for run in [*range(0, RUNS, 2), *range(1, RUNS, 2)][:more]:
        sizes[run] += 1
    return sizes


def ncsnr(betas: np.ndarray, image: np.ndarray, per_session: int) -> np.ndarray:
    """Noise-ceiling signal-to-noise ratio from single trials, as NSD computes it.

    Each voxel is z-scored over the trials of each session (ddof=1). With v² the mean,
    over images with exactly three trials, of the variance over the three (ddof=1),
    ncsnr = sqrt(max(0, 1 - v²)) / v.

    A session in which a voxel is constant has no valid data: its trials, and the
    images shown in it, do not count for that voxel.

    Args:
        betas: (T, V) single-trial responses, in any unit; T a multiple of per_session.
        image: (T,) which image each trial shows.
        per_session: Trials in a session.

    Returns:
        (V,) float32; NaN where no image has three valid trials.
    """
    z = np.empty(betas.shape, np.float64)
    for first in range(0, len(betas), per_session):
        part = betas[first : first + per_session].astype(np.float64)
        sd = part.std(axis=0, ddof=1)
        centred = part - part.mean(axis=0)
        z[first : first + per_session] = centred / np.where(sd > 0, sd, np.nan)
    order = np.argsort(image, kind="stable")
    ranked = image[order]
    start = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    count = np.diff(np.r_[start, len(ranked)])
    first = np.extract(count == 3, start).reshape(-1, 1)
    triples = order[first + np.arange(3)]  # (M, 3) trials
    total, num = np.zeros(betas.shape[1]), np.zeros(betas.shape[1])
    for some in np.array_split(triples, max(1, len(triples) // 256)):
        if len(some):
            variance = z[some].var(axis=1, ddof=1)
            total += np.nansum(variance, axis=0)
            num += np.isfinite(variance).sum(axis=0)
    v2 = total / np.where(num > 0, num, np.nan)
    signal = np.sqrt(np.maximum(0, 1 - v2))
    return (signal / np.where(v2 > 0, np.sqrt(v2), np.nan)).astype(np.float32)


def _single_trials(
    rng: np.random.Generator,
    clean: np.ndarray,
    voxels: Voxels,
    brain: np.ndarray,
    design: Design,
) -> tuple[np.ndarray, dict[str, Any]]:
    """(T, X, Y, Z) int16 betas (300 x percent signal change), and what was damaged."""
    per_session = design.trials_per_session
    sessions = len(design.order) // per_session
    shown = design.order[: sessions * per_session] - 1
    untuned = brain.copy()
    untuned[tuple(voxels.position.T)] = False
    others = np.argwhere(untuned)  # brain without signal
    where = np.r_[voxels.position, others]
    signal = np.zeros((len(clean), len(where)), np.float32)
    signal[:, : len(voxels.kind)] = clean * voxels.ncsnr
    # Units of the noise: 1.2 percent signal change, give or take.
    percent = 1.2 * np.exp(rng.normal(0, 0.3, len(where)))
    base = rng.normal(0.4, 0.5, len(where))
    betas = np.zeros((len(shown), *brain.shape), np.int16)
    zeroed, saturated = [], []
    quiet = rng.choice(len(voxels.kind), min(3, len(voxels.kind)), replace=False)
    for session in range(sessions):
        trials = np.s_[session * per_session : (session + 1) * per_session]
        noise = rng.standard_normal((per_session, len(where)), np.float32)
        gain = np.exp(rng.normal(0, 0.15, len(where)))
        offset = rng.normal(0, 0.4, len(where))
        psc = percent * gain * (signal[shown[trials]] + noise) + base + offset
        # Noise from outside can exceed what int16 holds: NSD's files saturate.
        for _ in range(3 if len(others) else 0):
            t, o = rng.integers(per_session), rng.integers(len(others))
            psc[t, len(voxels.kind) + o] = rng.choice([-1, 1]) * rng.uniform(112, 150)
            saturated.append([int(session), int(t), *map(int, others[o])])
        for i, voxel in enumerate(quiet):
            if i % sessions == session and sessions > 1:
                psc[:, voxel] = 0
                zeroed.append([int(session), *map(int, where[voxel])])
        fixed = np.clip(np.round(300 * psc), -32768, 32767).astype(np.int16)
        betas[trials][:, *where.T] = fixed
    damage = {"zero_sessions": zeroed, "saturated_trials": saturated}
    return betas, damage


# ---------------------------------------------------------------- files


def _write_nifti(path: pathlib.Path, volume: np.ndarray) -> None:
    """Writes a volume with the header fields of NSD's files, gzip without a date.

    nibabel would store slope 1; NSD's files have slope and intercept 0.
    """
    header = nibabel.Nifti1Header()
    header.set_data_dtype(volume.dtype)
    header.set_data_shape(volume.shape)
    header["pixdim"][1:4] = VOXEL_MM
    header["qform_code"], header["sform_code"] = 0, 1
    for axis, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = 0
        header[name][axis] = VOXEL_MM
        header[name][3] = (1 - (1 + volume.shape[axis]) / 2) * VOXEL_MM
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header["scl_slope"], header["scl_inter"] = 0, 0
    header["xyzt_units"] = 10  # mm and s
    raw = header.structarr.tobytes() + bytes(4) + volume.tobytes(order="F")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw, 6, mtime=0))


def _write_expdesign(path: pathlib.Path, design: Design, num_shared: int) -> None:
    """Writes nsd_expdesign.mat (MATLAB v5)."""
    sessions = len(design.slots)
    counts = np.zeros((3, sessions), np.uint16)
    for session in range(sessions):
        first = session * design.trials_per_session
        shown = design.order[first : first + design.trials_per_session]
        times = np.unique(shown, return_counts=True)[1]
        counts[:, session] = [(times == n).sum() for n in (1, 2, 3)]
    small = np.uint16 if design.lists.max() < 2**16 else np.int32
    content = {
        "masterordering": design.order[None].astype(small),
        "subjectim": design.lists.astype(small),
        "sharedix": design.lists[:1, :num_shared].astype(small),
        "stimpattern": design.slots,
        "basiccnt": counts,
    }
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, content, format="5")
    text = b"MATLAB 5.0 MAT-file, written by ubrain_jax"
    # scipy puts the date here; without it the same seed gives the same bytes.
    path.write_bytes(text.ljust(116) + buffer.getvalue()[116:])


def _write_stim_info(path: pathlib.Path, design: Design, num_shared: int) -> None:
    """Writes nsd_stim_info_merged.csv: one row per picture."""
    num_images = int(design.lists.max())
    reps = np.zeros((num_images, 8, 3), int)
    member = np.zeros((num_images, 8), int)
    order = np.argsort(design.order, kind="stable").reshape(-1, 3)  # trials of each
    for subject, ids in enumerate(design.lists):
        member[ids - 1, subject] = 1
        reps[ids - 1, subject] = order + 1
    shared = np.isin(np.arange(1, num_images + 1), design.lists[0, :num_shared])
    columns = ["cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000"]
    columns += ["shared1000", *(f"subject{s}" for s in range(1, 9))]
    columns += [f"subject{s}_rep{r}" for s in range(1, 9) for r in range(3)]
    lines = ["," + ",".join(columns)]
    for i in range(num_images):
        row = [i, i + 1, "train2017", '"(0.0, 0.0, 0.0, 0.0)"', "0.0", i, False, False]
        row += [bool(shared[i]), *member[i], *reps[i].ravel()]
        lines.append(",".join(map(str, row)))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


RESPONSE_COLUMNS = (
    "SUBJECT SESSION RUN TRIAL 73KID 10KID TIME ISOLD ISCORRECT RT CHANGEMIND "
    "MEMORYRECENT MEMORYFIRST ISOLDCURRENT ISCORRECTCURRENT TOTAL1 TOTAL2 BUTTON "
    "MISSINGDATA"
).split()


def _write_responses(
    path: pathlib.Path, seed: int, subject: int, design: Design
) -> None:
    """Writes responses.tsv: an old/new recognition task, nine answers in ten right."""
    rng = np.random.default_rng([seed, _BEHAVIOUR, subject])
    sizes = _run_sizes(design.trials_per_session)
    run = np.repeat(np.arange(1, RUNS + 1), sizes)
    within = np.concatenate([np.arange(1, n + 1) for n in sizes])
    seen: dict[int, list[int]] = {}
    lines = ["\t".join(RESPONSE_COLUMNS)]
    done = len(design.slots) * design.trials_per_session
    for trial, index in enumerate(design.order[:done].tolist()):
        session, t = divmod(trial, design.trials_per_session)
        before = seen.setdefault(index, [])
        old = bool(before)
        old_now = old and before[-1] >= session * design.trials_per_session
        correct = bool(rng.random() < 0.9)
        says_old = old == correct
        recent = trial - before[-1] - 1 if old else "NaN"
        first = trial - before[0] - 1 if old else "NaN"
        # MATLAB's day number: one session a week, one trial every four seconds.
        time = 737000 + 7 * session + (t * 4 + run[t] * 60) / 86400
        picture = int(design.lists[subject - 1, index - 1])
        row = [subject, session + 1, run[t], within[t], picture, index, f"{time:.6f}"]
        row += [int(old), int(correct), f"{rng.uniform(400, 2500):.3f}", 0]
        row += [recent, first, int(old_now), int(says_old == old_now)]
        row += [int(not says_old), int(says_old), 1 + int(says_old), 0]
        lines.append("\t".join(map(str, row)))
        before.append(trial)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_hdf5(path: pathlib.Path, name: str, data: np.ndarray, chunks: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        made = file.create_dataset(
            name, data.shape, data.dtype, chunks=chunks, track_times=False
        )
        made[...] = data


def _write_subject(
    root: pathlib.Path,
    seed: int,
    subject: int,
    design: Design,
    voxels: Voxels,
    brain: np.ndarray,
    clean: np.ndarray,
) -> dict[str, Any]:
    """Writes everything of one subject; returns what truth.json says about it."""
    name = f"subj{subject:02d}"
    space = root / "nsddata" / "ppdata" / name / "func1pt8mm"
    _write_nifti(space / "brainmask.nii.gz", brain.astype(np.int16))
    labels = root / "nsddata" / "freesurfer" / name / "label"
    labels.mkdir(parents=True)
    right = np.arange(brain.shape[0])[:, None, None] >= brain.shape[0] / 2
    for atlas, volume in regions(voxels, brain).items():
        _write_nifti(space / "roi" / f"{atlas}.nii.gz", volume)
        for side, other in (("lh", right), ("rh", ~right)):
            half = np.where(other, -1.0, volume)
            _write_nifti(space / "roi" / f"{side}.{atlas}.nii.gz", half)
        names = ["Unknown", *ATLASES[atlas]]
        text = "".join(f"{i} {n}\t    \n" for i, n in enumerate(names))
        (labels / f"{atlas}.mgz.ctab").write_text(text, encoding="utf-8")
    behaviour = root / "nsddata" / "ppdata" / name / "behav" / "responses.tsv"
    _write_responses(behaviour, seed, subject, design)

    rng = np.random.default_rng([seed, _NOISE, subject])
    betas, damage = _single_trials(rng, clean, voxels, brain, design)
    folder = root / "nsddata_betas" / "ppdata" / name / "func1pt8mm" / BETAS
    per_session = design.trials_per_session
    sessions = len(betas) // per_session
    for session in range(sessions):
        # MATLAB writes (X, Y, Z, T); read row by row that is (T, Z, Y, X).
        part = betas[session * per_session :][:per_session].transpose(0, 3, 2, 1)
        path = folder / f"betas_session{session + 1:02d}.hdf5"
        _write_hdf5(path, "betas", part, (per_session, 1, 1, 1))
    measured = np.full(brain.shape, np.nan, np.float32)
    measured[brain] = ncsnr(betas[:, brain], design.order[: len(betas)], per_session)
    _write_nifti(folder / "ncsnr.nii.gz", measured)

    truth = root / "truth"
    truth.mkdir(exist_ok=True)
    np.savez(
        truth / f"{name}.npz",
        **voxels._asdict(),
        noise_sd=1 / voxels.ncsnr,
        noise_ceiling=100 * voxels.ncsnr**2 / (voxels.ncsnr**2 + 1 / 3),
        responses=clean,
        nsd_id=design.lists[subject - 1] - 1,
    )
    number = {k: int((voxels.kind == i).sum()) for i, k in enumerate(KINDS)}
    return {
        "name": name,
        "voxels": len(voxels.kind),
        "grid": list(brain.shape),
        "sessions": sessions,
        "kinds": number,
        "median_ncsnr": round(float(np.median(measured[tuple(voxels.position.T)])), 4),
        **damage,
    }


def _fill(root: pathlib.Path, settings: dict[str, int]) -> dict[str, Any]:
    """Writes the dataset into an empty folder; returns the content of truth.json."""
    seed, num_subjects = settings["seed"], settings["num_subjects"]
    num_shared, px = settings["num_shared"], settings["image_px"]
    design = _design(
        seed,
        num_subjects,
        num_shared,
        settings["num_own"],
        settings["trials_per_session"],
    )
    subjects = []
    for subject in range(1, num_subjects + 1):
        brain = _brain(_grid(settings["num_voxels"], subject))
        rng = np.random.default_rng([seed, _VOXELS, subject])
        subjects.append((brain, plant(rng, brain, settings["num_voxels"])))

    # Pictures, a few at a time: drawn, measured, seen by every subject that has them.
    total = int(design.lists.max())
    pictures = np.empty((total, px, px, 3), np.uint8)
    scenes = np.empty(total, np.int8)
    seen = [np.empty((design.lists.shape[1], len(v.kind), 2)) for _, v in subjects]
    for first in range(0, total, 50):
        ids = np.arange(first, min(first + 50, total))
        drawn = [
            draw(np.random.default_rng([seed, _PICTURES, int(i)]), px) for i in ids
        ]
        pictures[ids] = [picture for picture, _ in drawn]
        scenes[ids] = [scene.scene for _, scene in drawn]
        category = np.stack([scene.category for _, scene in drawn])
        maps = feature_maps(pictures[ids], category, scenes[ids])
        for s, (_, voxels) in enumerate(subjects):
            row = np.flatnonzero(
                (design.lists[s] > first) & (design.lists[s] <= ids[-1] + 1)
            )
            if len(row):
                here = maps[design.lists[s, row] - 1 - first]
                seen[s][row] = drives(here, voxels)

    experiment = root / "nsddata" / "experiments" / "nsd"
    experiment.mkdir(parents=True)
    _write_expdesign(experiment / "nsd_expdesign.mat", design, num_shared)
    _write_stim_info(experiment / "nsd_stim_info_merged.csv", design, num_shared)
    stimuli = root / "nsddata_stimuli" / "stimuli" / "nsd" / "nsd_stimuli.hdf5"
    _write_hdf5(stimuli, "imgBrick", pictures, (1, px, px, 3))
    told = []
    for s, (brain, voxels) in enumerate(subjects):
        clean = responses(seen[s], voxels)
        told.append(_write_subject(root, seed, s + 1, design, voxels, brain, clean))
    truth = {
        "format": "ubrain-simulated-nsd",
        "version": 1,
        "settings": settings,
        "kinds": KINDS,
        "categories": CATEGORIES,
        "scenes": SCENES,
        "features": FEATURES,
        "subjects": told,
    }
    np.savez(root / "truth" / "pictures.npz", scene=scenes)
    text = json.dumps(truth, indent=1) + "\n"
    (root / "truth" / "truth.json").write_text(text, encoding="utf-8")
    return truth


def write(
    out: str | os.PathLike,
    *,
    num_subjects: int = 3,
    num_shared: int = 125,
    num_own: int = 875,
    num_voxels: int = 600,
    image_px: int = 112,
    trials_per_session: int = 750,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a simulated NSD folder, whole or not at all.

    Every picture of a subject is shown three times; only whole sessions are written,
    so that the last trials fall away (and some pictures have fewer repeats) unless
    3 x (num_shared + num_own) is a multiple of trials_per_session.

    Args:
        out: Folder to make.
        num_subjects: 1 to 8.
        num_shared: Pictures that all subjects see (the test split of the readers).
        num_own: Further pictures of each subject, seen by no other.
        num_voxels: Voxels in nsdgeneral of each subject, at least 20.
        image_px: Side of the pictures, a multiple of 28.
        trials_per_session: 12 to 816; NSD has 750.
        seed: Everything follows from it: same settings, same bytes.
        overwrite: Replace `out` if it exists.

    Returns:
        What was planted, as in `truth/truth.json`.

    Raises:
        ConfigError: A number is out of range.
        OutputError: `out` exists, or cannot be created.
    """
    settings = {
        "num_subjects": num_subjects,
        "num_shared": num_shared,
        "num_own": num_own,
        "num_voxels": num_voxels,
        "image_px": image_px,
        "trials_per_session": trials_per_session,
        "seed": seed,
    }
    _check_settings(settings)
    out = pathlib.Path(out)
    if out.exists() and not overwrite:
        raise errors.OutputError(
            out, "", "it exists", "a new name", "Choose another, or pass --overwrite."
        )
    if out.exists() and not is_simulated(out):
        raise errors.OutputError(
            out,
            "",
            "it exists and is no simulated NSD",
            "one to replace, or a new name",
            "Nothing was deleted; choose another --out.",
        )
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(
            tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent)
        )
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        truth = _fill(new, settings)
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    except OSError as error:
        raise errors.OutputError(
            out,
            "",
            error.strerror or str(error),
            "a folder that can be written",
            "Choose another place or free some space.",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return truth


def is_simulated(source: pathlib.Path) -> bool:
    """Whether the project's own simulator wrote the folder."""
    path = source / "truth/truth.json"
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return b'"ubrain-simulated-nsd"' in stream.read(200)


def _check_settings(settings: dict[str, int]) -> None:
    trials = 3 * (settings["num_shared"] + settings["num_own"])
    ranges = {
        "num_subjects": (1, 8),
        "num_shared": (1, 10**5),
        "num_own": (0, 10**5),
        "num_voxels": (20, 10**6),
        "trials_per_session": (RUNS, min(68 * RUNS, trials)),
        "seed": (0, 2**63),
    }
    wrong = [
        (name, settings[name], low, high)
        for name, (low, high) in ranges.items()
        if not low <= settings[name] <= high
    ]
    if wrong:
        raise errors.ConfigError(
            "simulation",
            ", ".join(name for name, *_ in wrong),
            ", ".join(f"{name} = {value}" for name, value, *_ in wrong),
            ", ".join(f"{name} in {low}..{high}" for name, _, low, high in wrong),
            "Change the flags named here.",
        )
    _check_px(settings["image_px"])


def read_truth(root: str | os.PathLike, name: str) -> dict[str, np.ndarray]:
    """Reads the planted truth of a subject, arrays as in `Voxels` and more.

    Args:
        root: Folder that `write` made.
        name: For example "subj01".

    Returns:
        The fields of `Voxels`, and noise_sd (V,), noise_ceiling (V,) in percent for
        three repeats, responses (M, V) noiseless, nsd_id (M,) 0-based.
    """
    with np.load(pathlib.Path(root) / "truth" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def summary(truth: dict[str, Any]) -> Sequence[str]:
    """Lines that tell a user what `write` made."""
    lines = []
    for s in truth["subjects"]:
        kinds = ", ".join(f"{n} {k}" for k, n in s["kinds"].items())
        lines.append(
            f"{s['name']}: {s['voxels']} voxels ({kinds}), {s['sessions']} sessions, "
            f"median ncsnr {s['median_ncsnr']:.2f}"
        )
    return lines
