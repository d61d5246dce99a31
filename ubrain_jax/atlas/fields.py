"""Receptive fields of voxels, and the depth at which they look, from attention.

A map over the grid of patches says where a voxel looks; an isotropic Gaussian on an
offset is fitted to it. What the network gives is averaged over patches, so the Gaussian
is integrated over each patch, and fields smaller than a patch keep their centre.

Places and lengths are fractions of the picture: x to the right, y down, 0..1. Angles
are those of the visual field: counter-clockwise on screen, 0 to the right.
"""

from typing import NamedTuple

import numpy as np
import scipy.special
import xarray

from ubrain_jax import errors

# Standard deviations of a field, from a fraction of a patch to the whole picture.
LEAST_SIZE, MOST_SIZE = 0.25, 1.0
# How far outside the picture a centre may lie, in pictures.
MARGIN = 0.25
_STEPS = 20  # of Levenberg-Marquardt; most voxels need fewer than ten
_ENOUGH = 1e-5  # last step, of a centre in pictures, of a size relative to it
_CHUNK = 512  # voxels fitted at once: what is computed stays in the cache


class Fields(NamedTuple):
    """Receptive fields of V voxels; NaN where there is nothing to fit.

    Attributes:
        x: (V,) centre, from the left edge of the picture, fraction of it.
        y: (V,) from the upper edge.
        size: (V,) standard deviation of the Gaussian, fraction.
        eccentricity: (V,) distance of the centre from the middle of the picture,
            fraction.
        angle: (V,) radians in -pi..pi, from the middle of the picture to the centre:
            0 right, pi / 2 up.
        quality: (V,) R2 of the Gaussian: share of the variance of the map over
            patches that it explains, at most 1.
        height: (V,) of the Gaussian above the offset, in the unit of the map.
        map: (V, y, x) what it was fitted to.
        degrees: Side of the picture in degrees of visual angle; NaN if not known.
    """

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    eccentricity: np.ndarray
    angle: np.ndarray
    quality: np.ndarray
    height: np.ndarray
    map: np.ndarray
    degrees: float


class Levels(NamedTuple):
    """How deep in the network V voxels look; NaN (tap -1) where no tap has a weight.

    Attributes:
        level: (V,) mean place of the taps by weight: 1 the first, L the last.
        tap: (V,) int, place 0..L-1 of the tap with the largest weight.
        entropy: (V,) of the weights, 0 (one tap) to 1 (all alike).
    """

    level: np.ndarray
    tap: np.ndarray
    entropy: np.ndarray


def of_attention(
    seen: xarray.Dataset, *, degrees: float = np.nan
) -> tuple[Fields, Levels]:
    """Fields and levels of voxels from their mean attention.

    A field is only as good as what training taught the encoder: one that predicts the
    same for mirrored pictures has fields near the middle, well fitted and wrong; the
    quality does not tell. Compare with measured fields (`prf`) where there are any.
    What voxels share (borders, the middle of photographs) can be taken off before the
    fit, `fit(maps - maps.mean(0))`: on simulated voxels that brings small fields nearer
    to their place, and throws those of voxels that see the whole picture to a corner.

    Args:
        seen: From `UniversalEncoder.mean_attention`.
        degrees: As in `fit`.

    Returns:
        Fitted to the maps of all taps together, weighted by `tap_weights`, and the
        levels of these weights. NaN for a voxel whose prediction does not vary.
    """
    weights = tap_weights(seen.covariance.values)
    maps = combine(seen.spatial.values, weights)
    return fit(maps, degrees=degrees), level(weights)


def tap_weights(covariance: np.ndarray) -> np.ndarray:
    """Share of each tap in the variance of the predicted response over pictures.

    The covariance of what a tap adds with the whole prediction, divided by the
    variance of the prediction. These shares sum to 1; a tap that works against the
    others has a negative one, which is set to 0 and the rest scaled to sum to 1.

    On simulated voxels these tell low from high levels better than the sizes of
    contributions, which hold what a tap adds to every picture alike.

    Args:
        covariance: (V, L, L) of contributions over pictures, as
            `UniversalEncoder.mean_attention` returns.

    Returns:
        (V, L); NaN for a voxel whose prediction does not vary.

    Example:
        >>> tap_weights(np.array([[[3.0, 1.0], [1.0, -1.0]], [[2.0, 0.0], [0.0, 6.0]]]))
        array([[1.  , 0.  ],
               [0.25, 0.75]])
    """
    covariance = np.asarray(covariance, np.float64)
    share = np.maximum(covariance.sum(2), 0)
    total = share.sum(1, keepdims=True)
    return np.divide(share, total, out=np.full_like(share, np.nan), where=total > 0)


def combine(spatial: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One map for each voxel: its maps in the taps, by weight.

    Args:
        spatial: (V, L, y, x) attention, a map for each tap.
        weights: (V, L), summing to 1.

    Returns:
        (V, y, x); NaN where the weights are.
    """
    return np.einsum("VLyx,VL->Vyx", spatial, weights)


def level(weights: np.ndarray) -> Levels:
    """How deep voxels look, from the weights of the taps.

    Args:
        weights: (V, L), 0 or more, as of `tap_weights`; any scale. Shares of
            functional attention do as well.

    Returns:
        One level for each voxel.

    Example:
        >>> found = level(np.array([[0.5, 0.5, 0.0], [0.0, 0.1, 0.9]]))
        >>> found.level.tolist(), found.tap.tolist()
        ([1.5, 2.9], [0, 2])
    """
    weights = np.asarray(weights, np.float64)
    total = weights.sum(1)
    known = total > 0  # False for NaN
    share = weights[known] / total[known, None]
    number = np.arange(1, weights.shape[1] + 1)
    mean, entropy = (np.full(len(weights), np.nan) for _ in range(2))
    tap = np.full(len(weights), -1)
    mean[known] = share @ number
    tap[known] = share.argmax(1)
    entropy[known] = scipy.special.entr(share).sum(1) / max(np.log(len(number)), 1e-9)
    return Levels(mean, tap, entropy)


def fit(maps: np.ndarray, *, degrees: float = np.nan) -> Fields:
    """Fits offset + height * Gaussian to the map of each voxel by least squares.

    Every centre and size of a grid is tried, then Levenberg-Marquardt goes on from the
    best. The Gaussian is positive: a voxel that looks everywhere but in one place has
    its field elsewhere. Centres stay within `MARGIN` of the picture, sizes between
    `LEAST_SIZE` patches and `MOST_SIZE` pictures.

    Args:
        maps: (V, y, x) in any unit. NaN in the same patches for all voxels: they are
            left out. Voxels that are NaN everywhere, or constant, get NaN.
        degrees: Side of the picture in degrees of visual angle (NSD: 8.4).

    Returns:
        One field for each voxel.

    Raises:
        errors.InputError: If the maps have fewer than 6 patches, or miss different
            ones.

    Example:
        >>> maps = gaussians(np.array([[0.3, 0.6, 0.1]]), (8, 8)) + 2
        >>> found = fit(maps)
        >>> [round(float(a[0]), 3) for a in (found.x, found.y, found.size)]
        [0.3, 0.6, 0.1]
    """
    maps = np.asarray(maps)
    known = _known(maps)
    fitted = np.full((len(maps), 5), np.nan)
    quality = np.full(len(maps), np.nan)
    flat = maps.reshape(len(maps), -1)[:, known.ravel()]
    with np.errstate(invalid="ignore"):
        useful = np.ptp(flat, axis=1) > 1e-6 * np.abs(flat).max(1, initial=0)
    rows = np.flatnonzero(useful)
    for first in range(0, len(rows), _CHUNK):
        some = rows[first : first + _CHUNK]
        values = flat[some].astype(np.float64)
        scale = values.std(1, keepdims=True)
        standard = (values - values.mean(1, keepdims=True)) / scale
        best = _refine(standard, _start(standard, known), known)
        fitted[some] = best.parameters
        fitted[some, 3] *= scale[:, 0]
        quality[some] = 1 - best.loss / standard.shape[1]
    x, y, size, height = fitted[:, 0], fitted[:, 1], fitted[:, 2], fitted[:, 3]
    return Fields(
        x=x,
        y=y,
        size=size,
        eccentricity=np.hypot(x - 0.5, y - 0.5),
        angle=np.arctan2(0.5 - y, x - 0.5),
        quality=quality,
        height=height,
        map=maps,
        degrees=float(degrees),
    )


def gaussians(fields: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Isotropic Gaussians of height 1, averaged over each patch of a grid.

    Args:
        fields: (V, 3) x, y, size in fractions of the picture.
        shape: Rows and columns of the grid.

    Returns:
        (V, y, x) float64.
    """
    column, row = (
        _profile(fields[:, k], fields[:, 2], n)[0]
        for k, n in ((0, shape[1]), (1, shape[0]))
    )
    return row[:, :, None] * column[:, None, :]


def _profile(centre: np.ndarray, size: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
    """A Gaussian averaged over n intervals of 0..1: (V, n), by centre, by log size."""
    edge = (np.arange(n + 1) / n - centre[:, None]) / size[:, None]
    bell = np.exp(-0.5 * edge**2)
    unit = n * size[:, None]
    mass = unit * np.sqrt(2 * np.pi) * np.diff(scipy.special.ndtr(edge))
    return mass, -n * np.diff(bell), mass - unit * np.diff(edge * bell)


def _known(maps: np.ndarray) -> np.ndarray:
    """(y, x) patches that maps have."""
    if maps.ndim != 3:
        raise errors.InputError(
            "maps", "", f"shape {maps.shape}", "(V, y, x)", "Give one map for a voxel."
        )
    absent = np.isnan(maps)
    seen = ~absent.all((1, 2))
    known = ~absent[seen].any(0) if seen.any() else np.ones(maps.shape[1:], bool)
    if (absent[seen] & known).any() or (~absent[seen] & ~known).any():
        raise errors.InputError(
            "maps",
            "",
            "NaN in different patches of different voxels",
            "the same patches for all",
            "Fit the voxels of one encoder at a time.",
        )
    if known.sum() < 6:
        raise errors.InputError(
            "maps",
            "",
            f"{known.sum()} patches",
            "6 or more: a Gaussian on an offset has 5 numbers",
            "Use an encoder with larger pictures.",
        )
    return np.asarray(known)


def _start(maps: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The best Gaussian of a grid for each standardised map: (V, 3)."""
    rows, columns = known.shape
    patch = 1 / max(rows, columns)
    sizes = np.geomspace(max(LEAST_SIZE, 0.4) * patch, 0.6 * MOST_SIZE, 6)
    x = (np.arange(-1, 2 * columns + 2) / 2) / columns  # every half patch
    y = (np.arange(-1, 2 * rows + 2) / 2) / rows
    if rows * columns > 100:  # every patch is near enough
        x, y = (np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows
    grid = np.stack(np.meshgrid(x, y, sizes, indexing="ij"), -1).reshape(-1, 3)
    shapes = gaussians(grid, known.shape)[:, known]
    shapes -= shapes.mean(1, keepdims=True)
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
    fit = maps.astype(np.float32) @ shapes.T.astype(np.float32)
    return grid[np.argmax(fit, axis=1)]


class _Fit(NamedTuple):
    """x, y, size, height, offset (V, 5) of standardised maps, and what is left (V,)."""

    parameters: np.ndarray
    loss: np.ndarray


def _refine(maps: np.ndarray, start: np.ndarray, known: np.ndarray) -> _Fit:
    """Levenberg-Marquardt in x, y and log size; height and offset are solved for.

    With these two at their best for each trial, the Jacobian of the rest is projected
    off them (Kaufman's variable projection).
    """
    rows, columns = known.shape
    least = np.array([-MARGIN, -MARGIN, np.log(LEAST_SIZE / max(rows, columns))])
    most = np.array([1 + MARGIN, 1 + MARGIN, np.log(MOST_SIZE)])
    at = np.clip(np.c_[start[:, :2], np.log(start[:, 2])], least, most)
    damping = np.full(len(at), 1e-2)
    active = np.arange(len(at))
    now = _residual(maps, at, known)
    for _ in range(_STEPS):
        jacobian, left = now.jacobian[active], now.left[active]
        square = jacobian @ jacobian.swapaxes(1, 2)
        slope = (jacobian @ left[..., None])[..., 0]
        diagonal = np.einsum("vkk->vk", square)
        square = (
            square + np.eye(3) * (damping[active, None] * diagonal + 1e-9)[:, None, :]
        )
        step = np.linalg.solve(square, slope[..., None])[..., 0]
        trial = np.clip(at[active] + np.clip(step, -0.5, 0.5), least, most)
        new = _residual(maps[active], trial, known)
        gain = now.loss[active] - new.loss
        better = gain > 0
        kept = active[better]
        at[kept] = trial[better]
        for old, fresh in zip(now, new, strict=True):
            old[kept] = fresh[better]
        damping[active] = np.where(better, damping[active] / 5, damping[active] * 5)
        moving = np.abs(step).max(1) > _ENOUGH
        active = active[moving & (damping[active] < 1e6)]
        if not len(active):
            break
    return _Fit(np.c_[at[:, :2], np.exp(at[:, 2]), now.height, now.offset], now.loss)


class _Residual(NamedTuple):
    """What a Gaussian leaves of maps: (V, P), its square sum, and how it changes."""

    left: np.ndarray
    loss: np.ndarray
    height: np.ndarray
    offset: np.ndarray
    jacobian: np.ndarray  # (V, 3, P) of the fitted map


def _residual(maps: np.ndarray, at: np.ndarray, known: np.ndarray) -> _Residual:
    rows, columns = known.shape
    size = np.exp(at[:, 2])
    column, by_x, column_by_size = _profile(at[:, 0], size, columns)
    row, by_y, row_by_size = _profile(at[:, 1], size, rows)

    def outer(down: np.ndarray, across: np.ndarray) -> np.ndarray:
        whole = down[:, :, None] * across[:, None, :]
        return whole.reshape(len(whole), known.size) if known.all() else whole[:, known]

    shape = outer(row, column)
    mean = shape.mean(1)
    centred = shape - mean[:, None]
    power = np.maximum((centred**2).sum(1), 1e-30)
    height = np.maximum((centred * maps).sum(1) / power, 0)
    left = maps - height[:, None] * centred
    slopes = np.stack(
        [
            outer(row, by_x),
            outer(by_y, column),
            outer(row_by_size, column) + outer(row, column_by_size),
        ],
        1,
    )
    slopes -= slopes.mean(2, keepdims=True)
    along = (slopes @ centred[..., None])[..., 0] / power[:, None]
    slopes -= along[:, :, None] * centred[:, None]
    return _Residual(
        left, (left**2).sum(1), height, -height * mean, height[:, None, None] * slopes
    )
