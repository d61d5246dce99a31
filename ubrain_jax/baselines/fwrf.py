"""Feature-weighted receptive fields: one place in the picture for each voxel.

A voxel's response is linear in the channels of all layers, each averaged under one
Gaussian of the picture that all layers share. Candidates of place and size are tried
one after the other: for each, a ridge regression of every voxel on the training
pictures, for several penalties; a voxel keeps the candidate and the penalty with the
least squared error on the validation pictures.

References:
    St-Yves & Naselaris, 2018, The feature-weighted receptive field: an interpretable
    encoding model for complex feature spaces, NeuroImage 180.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from ubrain_jax.baselines import features, fitting

# Standard deviations of receptive fields, of the side of a picture.
SIZES = (0.06, 0.12, 0.2, 0.35)
# Penalties of features that are divided by the root of their number, of n pictures
# summed: as those of `ridge`.
ALPHAS = tuple(np.logspace(-3, 4, 8))
# Channels of a layer above which its leading principal components stand for it.
CHANNELS = 256
# A voxel's two products of weights are made for this many voxels at a time.
_VOXELS = 16384


class Field(NamedTuple):
    """A receptive field; the picture is the square 0..1, y down.

    Attributes:
        x: Centre.
        y: Centre.
        size: Standard deviation; infinite: the whole picture.
    """

    x: float
    y: float
    size: float


def candidates(sizes: Sequence[float] = SIZES) -> list[Field]:
    """The whole picture, and Gaussians whose centres lie about one size apart.

    Example:
        >>> candidates([0.5])[:2], len(candidates([0.5]))
        ([Field(x=0.5, y=0.5, size=inf), Field(x=0.25, y=0.25, size=0.5)], 5)
        >>> len(candidates())
        163
    """
    found = [Field(0.5, 0.5, float("inf"))]
    for size in sizes:
        count = min(8, int(np.ceil(1 / size)))
        places = (np.arange(count) + 0.5) / count
        found += [Field(float(x), float(y), size) for y in places for x in places]
    return found


def weights(field: Field, side: int) -> np.ndarray:
    """(side, side) float64 weights of the cells of a grid, which sum to 1.

    Example:
        >>> weights(Field(0.5, 0.5, float("inf")), 2)
        array([[0.25, 0.25],
               [0.25, 0.25]])
    """
    places = (np.arange(side) + 0.5) / side
    distance = (places[None] - field.x) ** 2 + (places[:, None] - field.y) ** 2
    gauss = np.exp(-(distance - distance.min()) / (2 * field.size**2))
    return gauss / gauss.sum()


def fit(
    train: fitting.Data,
    val: fitting.Data,
    *,
    sizes: Sequence[float] = SIZES,
    alphas: Sequence[float] = ALPHAS,
    channels: int = CHANNELS,
    seed: int = 0,
) -> fitting.Fitted:
    """Fits one receptive field and one vector of channels for each voxel.

    Args:
        train: Training pictures.
        val: Validation pictures, by which fields and penalties are chosen.
        sizes: Of `candidates`.
        alphas: Penalties.
        channels: Most channels of a layer.
        seed: Of the cells that principal components are taken from.

    Returns:
        `fitting.Fitted`, with told: size, alpha, candidates, channels.
    """
    bases = [_basis(layer, channels, seed) for layer in train.layers]
    train_x, val_x = (_reduced(d.layers, bases) for d in (train, val))
    mean = train.responses.mean(0, dtype=np.float64)
    y, val_y = train.responses - mean, val.responses - mean
    fields = candidates(sizes)
    num_voxels, num_features = y.shape[1], sum(x.shape[-1] for x in train_x)
    best = np.full(num_voxels, np.inf)
    which, penalty = np.zeros(num_voxels, int), np.zeros(num_voxels)
    weight = np.zeros((num_features, num_voxels), np.float32)
    scales = []
    for k, field in enumerate(tqdm.tqdm(fields, desc="fields", disable=None)):
        raw = _pooled(train_x, field)
        scale = features.scaling(raw)
        x, vx = (_scaled(r, scale) for r in (raw, _pooled(val_x, field)))
        scales.append(scale)
        solved = _decompose(x)
        for start in range(0, num_voxels, _VOXELS):
            some = slice(start, start + _VOXELS)
            product, error = _errors(
                solved, x, y[:, some], vx, val_y[:, some], jnp.asarray(alphas)
            )
            error = np.asarray(error)  # (A, n)
            least = np.argmin(error, 0)
            found = np.take_along_axis(error, least[None], 0)[0]
            better = np.flatnonzero(found < best[some])
            if not len(better):
                continue
            at = start + better
            best[at], which[at] = found[better], k
            penalty[at] = np.asarray(alphas)[least[better]]
            # All voxels: a shape for each number of better ones would be compiled.
            new = _weights(solved, product, jnp.asarray(alphas)[least])
            weight[:, at] = np.asarray(new)[:, better]

    def predict(layers: Sequence[np.ndarray]) -> np.ndarray:
        reduced = _reduced(layers, bases)
        out = np.empty((len(layers[0]), num_voxels), np.float32)
        for k in np.unique(which):
            voxels = np.flatnonzero(which == k)
            x = _scaled(_pooled(reduced, fields[k]), scales[k])
            out[:, voxels] = x @ weight[:, voxels] + mean[voxels]
        return out

    size = np.array([fields[k].size for k in which])
    told: dict[str, Any] = {
        "candidates": len(fields),
        "features": num_features,
        "alpha": fitting.spread(penalty),
        "at_smallest_alpha": float(np.mean(penalty <= min(alphas))),
        "at_largest_alpha": float(np.mean(penalty >= max(alphas))),
        "voxels_by_size": {
            "whole picture" if np.isinf(s) else str(s): int(np.sum(size == s))
            for s in sorted({f.size for f in fields})
        },
    }
    return fitting.Fitted(predict, told)


def _basis(
    layer: np.ndarray, channels: int, seed: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean (C,) and leading components (C, channels) of a layer's cells, or None."""
    width = layer.shape[-1]
    if width <= channels:
        return None
    cells = layer.reshape(-1, width)
    if len(cells) > 100_000:
        chosen = np.random.default_rng(seed).choice(len(cells), 100_000, replace=False)
        cells = cells[np.sort(chosen)]
    mean = cells.mean(0, dtype=np.float64)
    _, vectors = np.linalg.eigh(np.cov(cells, rowvar=False, dtype=np.float64))
    return mean, vectors[:, ::-1][:, :channels]


def _reduced(layers: Sequence[np.ndarray], bases: Sequence[Any]) -> list[np.ndarray]:
    """Layers (M, g, g, C) in their leading components, where they have a basis."""
    return [
        layer if basis is None else ((layer - basis[0]) @ basis[1]).astype(np.float32)
        for layer, basis in zip(layers, bases, strict=True)
    ]


def _pooled(layers: Sequence[np.ndarray], field: Field) -> np.ndarray:
    """Layers (M, g, g, C) under a field, side by side: (M, D)."""
    return np.concatenate(
        [_under(layer, weights(field, layer.shape[1])) for layer in layers], 1
    )


def _under(layer: np.ndarray, weight: np.ndarray) -> np.ndarray:
    cells = layer.reshape(len(layer), -1, layer.shape[-1])
    return np.matmul(weight.reshape(1, 1, -1).astype(np.float32), cells)[:, 0]


def _scaled(x: np.ndarray, scale: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """z-scored by the training pictures, over the root of the number of features."""
    z = (x - scale[0]) / scale[1]
    return (z / np.sqrt(x.shape[1])).astype(np.float32)


class _Solved(NamedTuple):
    """Spectrum of x^T x: (r,) values and (D, r) vectors, r = min(n, D)."""

    values: jax.Array
    vectors: jax.Array


@jax.jit
def _decompose(x: jax.Array) -> _Solved:
    """Of training features (n, D)."""
    n, d = x.shape
    if d <= n:
        values, vectors = jnp.linalg.eigh(_product(x.T, x))
        return _Solved(jnp.maximum(values, 0), vectors)
    values, left = jnp.linalg.eigh(_product(x, x.T))
    values = jnp.maximum(values, 0)
    # Where a value is rounding, its vector of features would be too.
    kept = values > jnp.finfo(x.dtype).eps * n * values[-1]
    norm = jnp.sqrt(jnp.where(kept, values, 1))
    return _Solved(values, jnp.where(kept, _product(x.T, left) / norm, 0))


@jax.jit
def _errors(
    solved: _Solved,
    x: jax.Array,
    y: jax.Array,
    val_x: jax.Array,
    val_y: jax.Array,
    alphas: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Projected x^T y (r, n), and validation errors (A, n) of each penalty."""
    product = _product(solved.vectors.T, _product(x.T, y))
    val = _product(val_x, solved.vectors)

    def one(alpha):
        predicted = _product(val / (solved.values + alpha), product)
        return jnp.mean(jnp.square(predicted - val_y), 0)

    return product, jax.lax.map(one, alphas)


@jax.jit
def _weights(solved: _Solved, product: jax.Array, alpha: jax.Array) -> jax.Array:
    """Weights (D, n) of voxels with penalties (n,)."""
    shrunk = product / (solved.values[:, None] + alpha)
    return _product(solved.vectors, shrunk)


# An accelerator's bfloat16 or TF32 would be read as signal by small penalties.
_product = functools.partial(jnp.matmul, precision="highest")
