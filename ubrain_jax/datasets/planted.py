"""Plants voxels of known tuning, and computes their responses to pictures.

`feature_maps` measures in pictures everything a simulated voxel can be tuned to.
`plant` makes voxels with a receptive field, a kind of tuning and a noise level;
`drives` and `responses` are what they answer without noise.

No trained network is used anywhere: the pictures are filtered with log-Gabor filters,
and objects and scenes are known because they were drawn.

References:
    Allen et al., 2022, Nature Neuroscience 25:116 (ncsnr).
    Field, 1987, JOSA A 4:2379 (log-Gabor filters).
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.spatial

from ubrain_jax import errors
from ubrain_jax.datasets import drawing

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
    *(f"object-{c}" for c in drawing.CATEGORIES),
    *(f"scene-{s}" for s in drawing.SCENES),
)

_ENERGY = slice(0, len(FREQUENCIES) * NUM_ORIENTATIONS)
_COLOUR = slice(_ENERGY.stop, _ENERGY.stop + 3)
_OBJECT = slice(_COLOUR.stop, _COLOUR.stop + len(drawing.CATEGORIES))
_SCENE = slice(_OBJECT.stop, _OBJECT.stop + len(drawing.SCENES))


class Recipe(NamedTuple):
    """How the voxels of a dataset are spread; the defaults are those of NSD.

    Attributes:
        floor: Least share of each of `KINDS`.
        mixture: Concentrations of a Dirichlet distribution that shares out the rest.
        field: Factor of all receptive field sizes.
        ncsnr: About the median over voxels; each subject has its own.
        spread: Standard deviation of log ncsnr over voxels.
        least: ncsnr is clipped here.
        most: And here.
    """

    floor: float = 0.1
    mixture: tuple[float, float, float, float] = (5, 3, 5, 3)
    field: float = 1.0
    ncsnr: float = 0.45
    spread: float = 0.42
    least: float = 0.15
    most: float = 1.2


NSD = Recipe()


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


def check_px(px: int) -> None:
    """Refuses a side of pictures that does not give whole feature maps.

    Below 112 pixels (four for each cycle of the highest frequency) the cells of a map
    must hold whole pixels.

    Raises:
        errors.ConfigError: If it does not.
    """
    if px < 2 * GRID or (px < 4 * max(FREQUENCIES) and px % GRID):
        raise errors.ConfigError(
            "image_px",
            "",
            f"pictures of {px} pixels",
            f"a multiple of {GRID} from {2 * GRID} on, or {4 * max(FREQUENCIES)} or "
            "more",
            "Choose 112 or 224, for example.",
        )


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


def pool(maps: np.ndarray, side: int) -> np.ndarray:
    """Averages maps over the cells of a coarser grid, by area.

    Args:
        maps: (..., n, n).
        side: At most n; need not divide it.

    Returns:
        (..., side, side).
    """
    n = maps.shape[-1]
    if n % side == 0:
        b = n // side
        return maps.reshape(*maps.shape[:-2], side, b, side, b).mean(axis=(-3, -1))
    edges = np.linspace(0, n, side + 1)
    low = np.maximum(edges[:-1, None], np.arange(n))
    high = np.minimum(edges[1:, None], np.arange(n) + 1)
    share = np.maximum(0, high - low).astype(np.float32)
    share /= share.sum(axis=1, keepdims=True)
    return share @ maps @ share.T


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
        pictures: (B, H, W, 3) uint8, H = W as `check_px` allows.
        category: (B, H, W) int8 as in `drawing.Scene`.
        scene: (B,) index into `drawing.SCENES`, -1 where a picture shows none.

    Returns:
        (B, F, GRID, GRID) float32 in the order of `FEATURES`.
    """
    px = pictures.shape[1]
    check_px(px)
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
        amplitude.append(pool(np.abs(wave), GRID))
    energy = np.concatenate(amplitude, axis=1)  # (B, filters, GRID, GRID)
    local = scipy.ndimage.uniform_filter(
        energy.mean(axis=1), 3, mode="nearest", axes=(1, 2)
    )
    out[:, _ENERGY] = energy / (0.02 + local[:, None])
    red, green, blue = rgb[:, 0], rgb[:, 1], rgb[:, 2]
    opponent = np.stack([red - green, (red + green) / 2 - blue, luminance], axis=1)
    out[:, _COLOUR] = pool(opponent, GRID)
    shown = np.arange(len(drawing.CATEGORIES), dtype=np.int8)[:, None, None]
    covered = pool((category[:, None] == shown).astype(np.float32), GRID)
    out[:, _OBJECT] = covered
    is_scene = np.asarray(scene)[:, None] == np.arange(len(drawing.SCENES))
    hidden = pool((category == drawing.HIDDEN).astype(np.float32), GRID)
    visible = 1 - covered.sum(axis=1) - hidden
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


def drives_of(
    seen: Iterable[tuple[np.ndarray, np.ndarray, int]],
    voxels: Sequence[Voxels],
    block: int = 50,
) -> list[np.ndarray]:
    """What the voxels of each subject see in M pictures, a few in memory at a time.

    Args:
        seen: For each picture (H, H, 3) uint8, (H, H) category and scene.
        voxels: Of each subject.
        block: Pictures measured at once.

    Returns:
        For each subject (M, V, 2) as `drives`.
    """
    parts: list[list[np.ndarray]] = [[] for _ in voxels]
    left = iter(seen)
    while some := list(itertools.islice(left, block)):
        picture, category, scene = (np.stack(x) for x in zip(*some, strict=True))
        maps = feature_maps(picture, category, scene)
        for part, subject in zip(parts, voxels, strict=True):
            part.append(drives(maps, subject))
    return [np.concatenate(part) for part in parts]


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
        [np.maximum(tuned, 0) ** 0.7, np.tanh(standardise(tuned)), np.sqrt(abs(tuned))],
        tuned,
    )
    contrast = standardise(drive[..., 1].astype(np.float64))
    mixed = standardise(shaped) + voxels.contrast * contrast
    return standardise(mixed).astype(np.float32)


def standardise(values: np.ndarray) -> np.ndarray:
    """z-score over the first axis; 0 where nothing varies."""
    centred = values - values.mean(axis=0)
    sd = centred.std(axis=0)
    return centred / np.where(sd > 1e-9, sd, np.inf)


# ---------------------------------------------------------------- subjects


def ellipsoid(dims: tuple[int, int, int]) -> np.ndarray:
    """(X, Y, Z) bool ellipsoid that fills the grid."""
    axes = [(2 * np.arange(n) + 1 - n) / n for n in dims]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 < 1


def plant(
    rng: np.random.Generator,
    brain: np.ndarray,
    num_voxels: int,
    recipe: Recipe = NSD,
) -> Voxels:
    """Plants tuned voxels in the posterior part of a brain.

    Kinds follow one another from posterior to anterior (orientation, colour, object,
    scene) with a ragged border. Fields lie in the visual field opposite to the
    hemisphere for orientation and colour; the first half of x is the left hemisphere.
    Every subject draws its own mixture of kinds, field sizes, preferences and noise.

    Args:
        rng: Where all randomness comes from.
        brain: (X, Y, Z) bool.
        num_voxels: How many.
        recipe: Shares of the kinds, field sizes, noise.

    Returns:
        Voxels in the C order of the grid.
    """
    inside = np.argwhere(brain)
    depth = inside[:, 1] + rng.normal(0, 0.6, len(inside))
    chosen = np.sort(np.argsort(depth, kind="stable")[:num_voxels])
    position, depth = inside[chosen].astype(np.int32), depth[chosen]
    v = num_voxels
    # Mixture: at least the floor of each kind, else free.
    free = 1 - 4 * recipe.floor
    share = recipe.floor + free * rng.dirichlet(recipe.mixture)
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
    liking = 0.06 + 0.64 * rng.dirichlet(np.full(len(drawing.CATEGORIES), 3.0))
    first = rng.choice(len(drawing.CATEGORIES), v, p=liking / liking.sum())
    second = (first + rng.integers(1, len(drawing.CATEGORIES), v)) % len(
        drawing.CATEGORIES
    )
    both = rng.random(v) < 0.3
    like = np.eye(len(drawing.CATEGORIES))
    tuning[thing, _OBJECT] = (like[first] + 0.5 * both[:, None] * like[second])[thing]
    # Scene: one class liked, another a little, one disliked.
    order = np.argsort(rng.random((v, len(drawing.SCENES))), axis=1)
    taste = np.zeros((v, len(drawing.SCENES)))
    for weight, column in ((1.0, 0), (0.4, 1), (-0.4, 2)):
        taste[np.arange(v), order[:, column]] = weight
    tuning[scene, _SCENE] = taste[scene]

    typical = recipe.ncsnr * rng.uniform(0.9, 1.12)
    ncsnr = typical * np.exp(rng.normal(0, recipe.spread, v))
    return Voxels(
        position=position,
        kind=kind,
        centre=centre,
        size=size * recipe.field,
        tuning=tuning,
        category=np.where(thing, first, -1).astype(np.int8),
        contrast=rng.uniform(0.0, 0.2, v),
        ncsnr=np.clip(ncsnr, recipe.least, recipe.most),
    )


def mix(voxels: Voxels, num_units: int) -> Voxels:
    """Lets large voxels hold several populations: their own, and of their neighbours.

    The first unit of a voxel is the voxel itself. The others have the kind, tuning and
    contrast of the nearest voxels in the brain, and a receptive field half way between
    both.

    Args:
        voxels: V voxels.
        num_units: K, at most V.

    Returns:
        V * K units, voxel by voxel.
    """
    tree = scipy.spatial.KDTree(voxels.position)
    near = np.asarray(tree.query(voxels.position, num_units)[1])
    near = near.reshape(-1, num_units)  # (V, K)
    own = np.arange(len(near))[:, None]
    between = {
        name: (getattr(voxels, name)[own] + getattr(voxels, name)[near]) / 2
        for name in ("centre", "size")
    }
    units = {name: values[near] for name, values in voxels._asdict().items()} | between
    here = np.broadcast_to(own, near.shape)
    units |= {name: getattr(voxels, name)[here] for name in ("position", "ncsnr")}
    return Voxels(**{name: a.reshape(-1, *a.shape[2:]) for name, a in units.items()})


def mixed_responses(drive: np.ndarray, units: Voxels, weight: np.ndarray) -> np.ndarray:
    """Noiseless responses of voxels that hold several populations.

    Args:
        drive: (M, V * K, 2) from `drives` for the units.
        units: V * K units of `mix`.
        weight: (K,) share of each unit in its voxel.

    Returns:
        (M, V) float32: weighted sum of the units' `responses`, z-scored over images.
    """
    answer = responses(drive, units).astype(np.float64)
    return standardise(answer.reshape(len(drive), -1, len(weight)) @ weight).astype(
        np.float32
    )


def count_kinds(voxels: Voxels) -> dict[str, int]:
    """How many voxels there are of each of `KINDS`."""
    return {k: int((voxels.kind == i).sum()) for i, k in enumerate(KINDS)}


def by_field_size(voxels: Voxels, members: np.ndarray, parts: int) -> np.ndarray:
    """Ranks some voxels by the size of their receptive field.

    Args:
        voxels: V voxels.
        members: (V,) bool.
        parts: How many groups of equal size to make.

    Returns:
        (V,) int: 1 for the group of the smallest fields to `parts`; 0 for others.
    """
    label = np.zeros(len(members), int)
    order = np.flatnonzero(members)[np.argsort(voxels.size[members], kind="stable")]
    for p, some in enumerate(np.array_split(order, parts)):
        label[some] = p + 1
    return label


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
