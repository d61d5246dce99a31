"""Draws pictures of scenes and objects, and says what is in them.

`draw` paints a background scene, textured patches and one to three objects;
`draw_object` one large object before little else; `through_a_hole` makes any picture
grey and shows a disc of it. All randomness comes from the generator that is passed in.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from PIL import Image, ImageDraw

CATEGORIES = ("face", "house", "star", "tree", "car", "animal")
SCENES = ("landscape", "indoor", "water", "forest", "city")
HIDDEN = -2  # in `Scene.category`: neither an object nor the scene can be seen there


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
        scene: Index into `SCENES` of the background, -1 if it shows none.
        category: (H, W) int8 index into `CATEGORIES` of the visible object at each
            pixel, -1 where none is, `HIDDEN` where the picture is covered.
        objects: Back to front.
    """

    scene: int
    category: np.ndarray
    objects: tuple[Placed, ...]


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
        px: Side of the picture in pixels.

    Returns:
        The (px, px, 3) uint8 picture, and what it shows.

    Example:
        >>> picture, scene = draw(np.random.default_rng(0))
        >>> picture.shape, scene.category.shape
        ((112, 112, 3), (112, 112))
    """
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


def draw_object(
    rng: np.random.Generator, category: int, scene: int, height: int, width: int
) -> tuple[np.ndarray, Scene]:
    """Draws one large object near the middle, before a plain or blurred background.

    The object measures 0.55 to 0.9 of the shorter side. Three backgrounds in ten are
    one colour with a faint gradient and show no scene.

    Args:
        rng: Where all randomness comes from.
        category: Index into `CATEGORIES`.
        scene: Index into `SCENES` of the background, unless it is plain.
        height: Of the picture in pixels.
        width: Of the picture in pixels.

    Returns:
        The (height, width, 3) uint8 picture, and what it shows; the place of the object
        in fractions of the square that has the longer side and the same middle.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> draw_object(rng, category=4, scene=0, height=112, width=150)[0].shape
        (112, 150, 3)
    """
    side, short = max(height, width), min(height, width)
    if rng.random() < 0.3:
        scene = -1
        y, x = np.mgrid[:side, :side].astype(np.float32) / side - 0.5
        flat = _hsv(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.3, 1))
        slope = x * rng.normal(0, 0.15) + y * rng.normal(0, 0.15)
        canvas = (flat + slope[..., None]).astype(np.float32)
    else:
        blur = short * rng.uniform(0.02, 0.05)
        canvas = _background(rng, side, scene)
        canvas = scipy.ndimage.gaussian_filter(canvas, (blur, blur, 0))
    item = Placed(
        category=category,
        x=0.5 + float(rng.normal(0, 0.03)) * short / side,
        y=0.5 + float(rng.normal(0, 0.03)) * short / side,
        size=float(rng.uniform(0.55, 0.9)) * short / side,
        rotation=float(rng.uniform(-0.25, 0.25)),
        mirrored=bool(rng.random() < 0.5),
    )
    shown = np.full((side, side), -1, np.int8)
    _paint(rng, canvas, shown, item)
    canvas += rng.normal(0, 0.015, canvas.shape)
    top, left = (side - height) // 2, (side - width) // 2
    cut = np.s_[top : top + height, left : left + width]
    picture = np.round(255 * np.clip(canvas[cut], 0, 1)).astype(np.uint8)
    return picture, Scene(scene, shown[cut], (item,))


def through_a_hole(
    picture: np.ndarray, scene: Scene, grey: float, contrast: float
) -> tuple[np.ndarray, Scene]:
    """Shows a picture in shades of grey through a circular hole in a grey field.

    Args:
        picture: (H, H, 3) uint8.
        scene: What it shows.
        grey: Brightness of the field around it, in [0, 1].
        contrast: 0 leaves only the field, 1 the picture's own differences to it.

    Returns:
        (H, H) float64 brightness in [0, 1], `grey` outside the hole; and what is still
        seen, `HIDDEN` outside.
    """
    px = len(picture)
    at = (np.arange(px) + 0.5) / px - 0.5
    far = np.hypot(at[:, None], at)
    window = np.clip((0.5 - far) * px / 3, 0, 1)  # fades over three pixels
    luminance = picture.mean(axis=-1) / 255
    seen = np.clip(grey + window * contrast * (luminance - grey), 0, 1)
    category = np.where(window > 0, scene.category, HIDDEN).astype(np.int8)
    return seen, scene._replace(category=category)
