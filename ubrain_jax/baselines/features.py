"""Features of pictures for the baselines: computed once, kept on disk, pooled.

A layer of a frozen network gives a grid of vectors for a picture. Its cells are
averaged down to at most `grid` a side before anything is kept, since the whole grids
of ten thousand pictures do not fit on a disk. All baselines read the same files.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import tqdm
from flax import nnx

from ubrain_jax import config, crowd, errors, experiments, sealed, whole
from ubrain_jax.backbone import images, vgg


class Source(NamedTuple):
    """What gives features.

    Attributes:
        title: For readers, for example "dinov2-giant, taps 1, 6, 12, 18, 24".
        key: Text that differs where features would.
        layers: Name of each layer.
        compute: Pictures (B, y, x, 3) uint8 -> for each layer (B, g, g, C).
        dtype: In which features are kept.
        random: Whether the weights are random numbers.
        sha256: Digest of each weight file.
    """

    title: str
    key: str
    layers: tuple[str, ...]
    compute: Callable[[np.ndarray], Sequence[Any]]
    dtype: np.dtype
    random: bool
    sha256: dict[str, str]


class Features(NamedTuple):
    """Features of M pictures.

    Attributes:
        rows: (M,) rows of `Crowd.image_id`, increasing.
        layers: Of each layer (M, g, g, C), mapped into memory.
    """

    rows: np.ndarray
    layers: tuple[np.ndarray, ...]

    def of(self, rows: np.ndarray) -> list[np.ndarray]:
        """Features of rows (n,) of `Crowd.image_id`: each layer (n, g, g, C) float32.

        Raises:
            KeyError: If a row is not among those computed.
        """
        at = np.searchsorted(self.rows, rows)
        if len(rows) and (at.max() >= len(self.rows) or (self.rows[at] != rows).any()):
            raise KeyError("a picture whose features were not computed")
        return [np.asarray(layer[at], np.float32) for layer in self.layers]


def of_network(
    network: experiments.Network, settings: config.Backbone, grid: int
) -> Source:
    """Taps of the frozen backbone, patches only.

    Args:
        network: The backbone.
        settings: Of which taps and precision are read.
        grid: Largest number of cells on a side that is kept.
    """
    provenance = network.provenance
    graph, state = nnx.split(network.backbone)
    attention: Any = settings.attention
    side = settings.image_px // provenance.geometry.patch

    @jax.jit
    def compute(state, pictures):
        backbone = nnx.merge(graph, state)
        x = images.normalise(pictures, jnp.dtype(backbone.dtype))
        taps = backbone(x, settings.taps, attention=attention)
        patches = backbone.patches(taps).astype(jnp.float32)  # (L, B, P, C)
        cells = patches.reshape(*patches.shape[:2], side, side, -1)
        return [pooled(layer, grid) for layer in cells]

    source = os.path.basename(settings.weights.rstrip("/")) or settings.name
    taps = ", ".join(map(str, settings.taps))
    identity = provenance.sha256 or {"random": str(provenance.geometry)}
    described = [identity, settings.taps, settings.image_px, settings.dtype, grid]
    return Source(
        f"{settings.name or source}, taps {taps}",
        json.dumps(["dinov2", *described], sort_keys=True),
        tuple(f"tap {tap}" for tap in settings.taps),
        lambda pictures: compute(state, pictures),
        np.dtype(ml_dtypes.bfloat16 if settings.dtype == "bfloat16" else np.float32),
        provenance.random,
        provenance.sha256,
    )


def of_vgg(network: vgg.Vgg, image_px: int, grid: int) -> Source:
    """Layers conv1_2 to conv4_4 of VGG-19.

    Args:
        network: Its weights.
        image_px: Side of the pictures.
        grid: Largest number of cells on a side that is kept.

    Raises:
        errors.ConfigError: If its poolings do not divide the pictures.
    """
    if image_px % 8:
        raise errors.ConfigError(
            "backbone.image_px",
            "",
            f"{image_px}, with VGG-19",
            "a multiple of 8",
            "Prepare a store with another --image_px.",
        )

    @jax.jit
    def compute(params, pictures):
        found = vgg.layers(params, images.normalise(pictures))
        return [pooled(layer, grid) for layer in found]

    return Source(
        f"VGG-19, {', '.join(vgg.LAYERS)}",
        json.dumps(["vgg19", network.sha256, image_px, grid], sort_keys=True),
        vgg.LAYERS,
        lambda pictures: compute(network.params, pictures),
        np.dtype(np.float32),
        False,
        network.sha256,
    )


def pooled(cells: Any, grid: int) -> Any:
    """Averages a grid of cells down to at most `grid` a side, by area.

    Args:
        cells: (..., g, g, C), NumPy or JAX.
        grid: Cells on a side that are wanted; a smaller grid stays as it is.

    Returns:
        (..., min(g, grid), min(g, grid), C).

    Example:
        >>> pooled(np.arange(16.0).reshape(4, 4, 1), 2)[..., 0]
        array([[ 2.5,  4.5],
               [10.5, 12.5]])
    """
    side = cells.shape[-2]
    if side <= grid:
        return cells
    matrix = _areas(side, grid).astype(np.float32)
    xp = np if isinstance(cells, np.ndarray) else jnp
    rows = xp.einsum("ai,...ijc->...ajc", matrix, cells)
    return xp.einsum("bj,...ajc->...abc", matrix, rows)


def _areas(side: int, grid: int) -> np.ndarray:
    """(grid, side): share of each new cell that is covered by each old one."""
    edges = np.arange(grid + 1) * side / grid
    old = np.arange(side)
    low = np.maximum(edges[:-1, None], old)
    high = np.minimum(edges[1:, None], old + 1)
    return np.clip(high - low, 0, None) * grid / side


def flat(layers: Sequence[np.ndarray], grid: int) -> list[np.ndarray]:
    """Each layer (M, g, g, C) pooled to `grid` a side, as (M, D) float32."""
    return [pooled(layer, grid).reshape(len(layer), -1) for layer in layers]


def cached(
    stores: crowd.Crowd,
    source: Source,
    cache: str | os.PathLike | None = None,
    batch_images: int = 32,
) -> Features:
    """Features of all pictures that the subjects of a crowd use.

    The files have their hash beside them; a damaged one is computed again.

    Args:
        stores: Their pictures.
        source: What gives features.
        cache: Folder for the files; None: beside the first store.
        batch_images: Pictures in one call of the network.

    Raises:
        errors.InputError: If a picture has features that are not finite.
        errors.OutputError: If the files cannot be written.
    """
    used = [s.image[np.isin(s.split, crowd.SPLITS)] for s in stores.subjects]
    rows = np.unique(np.concatenate(used))
    content = crowd.picture_hashes(stores)
    key = json.dumps([source.key, [content[row] for row in rows]])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    folder = pathlib.Path(cache or f"{stores.paths[0].rstrip('/')}.cache")
    first = [np.asarray(x) for x in source.compute(_block(stores, rows[:1], 1))]
    shapes = [(len(rows), *x.shape[1:]) for x in first]
    paths = [folder / f"{name}-{k}.features" for k in range(len(shapes))]
    if not all(
        sealed.is_proven(path, int(np.prod(shape)) * source.dtype.itemsize)
        for path, shape in zip(paths, shapes, strict=True)
    ):
        _compute(stores, source, rows, paths, shapes, batch_images)
    else:
        print(f"features from {folder}", flush=True)
    layers = (
        np.memmap(path, source.dtype, "r", shape=shape)
        for path, shape in zip(paths, shapes, strict=True)
    )
    return Features(rows, tuple(layers))


def _block(stores: crowd.Crowd, rows: np.ndarray, size: int) -> np.ndarray:
    """Pictures (size, y, x, 3), the rows repeated to one size."""
    return crowd.read_pictures(stores, np.resize(rows, size))


def _compute(
    stores: crowd.Crowd,
    source: Source,
    rows: np.ndarray,
    paths: Sequence[pathlib.Path],
    shapes: Sequence[tuple[int, ...]],
    batch_images: int,
) -> None:
    """Fills the files, which have their names only when whole."""
    total = sum(int(np.prod(s)) for s in shapes) * source.dtype.itemsize
    with contextlib.ExitStack() as stack:
        room = f"room for {total / 1e9:.1f} GB (--cache)"
        unfinished = [stack.enter_context(whole.writing(p, room)) for p in paths]
        out = [
            np.memmap(path, source.dtype, "w+", shape=shape)
            for path, shape in zip(unfinished, shapes, strict=True)
        ]
        starts = range(0, len(rows), batch_images)
        for start in tqdm.tqdm(starts, desc="features", disable=None):
            part = rows[start : start + batch_images]
            blocks = source.compute(_block(stores, part, batch_images))
            for layer, block in zip(out, blocks, strict=True):
                values = np.asarray(block, np.float32)[: len(part)]
                if not np.isfinite(values).all():
                    raise _not_finite(stores, source, part, values)
                layer[start : start + len(part)] = values
        for path, temporary, layer in zip(paths, unfinished, out, strict=True):
            layer.flush()
            whole.write_text(sealed.proof_of(path), sealed.sha256_of(temporary) + "\n")


def _not_finite(
    stores: crowd.Crowd, source: Source, rows: np.ndarray, values: np.ndarray
) -> errors.InputError:
    bad = int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(1)))
    return errors.InputError(
        source.title,
        stores.image_id[rows[bad]],
        "features that are not finite",
        "finite numbers",
        "Take backbone.dtype 'float32', or other weights.",
    )


def scaling(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each feature (D,) over training pictures (n, D).

    A feature without variance has deviation 1, so that it becomes 0.
    """
    mean = train.mean(0, dtype=np.float64)
    deviation = train.std(0, dtype=np.float64)
    tiny = deviation <= np.finfo(np.float32).eps * np.abs(mean)
    return mean, np.where(tiny | (deviation == 0), 1, deviation)
