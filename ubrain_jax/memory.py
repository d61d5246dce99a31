"""What a training step keeps on each device, predicted from the settings alone.

Weights, moments and gradients are counted exactly. What the backward pass keeps is
arithmetic fitted to the programs that XLA compiles for the CPU: an accelerator may
need less where its kernels fuse more. Code, the driver and collectives' own buffers
are not counted.
"""

import dataclasses
import json
import math
from typing import NamedTuple

import jax
import numpy as np

from ubrain_jax import cluster, config
from ubrain_jax.backbone import dinov2
from ubrain_jax.model import encoder

# Of a device, what a step may take that keeps all taps of the head (head.remat
# 'auto'): the rest is for validation, and for what is not counted.
SHARE = 0.75


class Memory(NamedTuple):
    """Bytes on one device.

    Attributes:
        table: Embeddings, their two moments, their gradient, and with amsgrad the
            largest second moments; over "data" the sum of the dense gradient beside
            it, as far as the backward pass left no room.
        shared: Adapter and head: the same.
        frozen: Weights of the backbone, up to the last tap.
        batch: Pictures, voxels, responses and weights of a step.
        backbone: What the blocks keep for the backward pass.
        head: What the head keeps for the backward pass.
    """

    table: int
    shared: int
    frozen: int
    batch: int
    backbone: int
    head: int

    @property
    def total(self) -> int:
        """All of them, in bytes."""
        return sum(self)


def shared_weights(experiment: config.Experiment, geometry: dinov2.Geometry) -> int:
    """Trainable numbers outside the table: adapter and head.

    Example:
        >>> shared_weights(config.Experiment(), dinov2.GEOMETRIES["dinov2-giant"])
        3560704
    """
    shapes = encoder.shared_shapes(experiment, geometry)
    return sum(math.prod(shape) for shape in shapes.values())


def predict(
    experiment: config.Experiment,
    geometry: dinov2.Geometry,
    num_voxels: int,
    data: int,
    voxel: int,
    *,
    table: str = "dense",
) -> Memory:
    """Peak memory of a training step on one device of a data x voxel mesh.

    Table: 4 arrays of (S / voxel, rows, E) float32, 5 with amsgrad; with the row-sparse
    optimiser 3, 4 bytes a row and the gradients of the drawn rows. Backbone:
    B / (data voxel) images. Head: B / data images with N / voxel voxels each. What they
    keep stands in `_backbone_bytes` and `_head_bytes`; XLA's plan for the CPU agrees
    within 7 % (docs/scaling.md).

    Args:
        experiment: Sizes and choices.
        geometry: Shape of the backbone.
        num_voxels: V over all subjects.
        data: Devices along "data".
        voxel: Devices along "voxel".
        table: "dense", or "sparse" for the row-sparse optimiser.

    Raises:
        ValueError: If `table` is another word.

    Example:
        >>> giant = dinov2.GEOMETRIES["dinov2-giant"]
        >>> eight = predict(config.Experiment(), giant, 320_000, 1, 8)
        >>> eight.table, eight.shared, eight.frozen
        (163840000, 56971264, 1363055616)
    """
    if table not in ("dense", "sparse"):
        raise ValueError(f"table is {table!r}; expected 'dense' or 'sparse'")
    settings = experiment.data
    images = settings.batch_images // data
    voxels = settings.voxels_per_image // voxel
    embed = experiment.head.embed_dim
    stripes, rows, _ = encoder.table_shape(num_voxels, settings.stripes, embed)
    rows = stripes // voxel * rows
    number = 20 if experiment.optim.amsgrad else 16  # bytes that training makes of it
    if table == "dense":
        embeddings = number * rows * embed
    else:
        drawn = settings.batch_images * voxels  # of all images, summed over "data"
        embeddings = 12 * rows * embed + 4 * rows + 4 * drawn * embed
    shapes = dinov2.shapes(
        geometry, experiment.backbone.taps[-1], experiment.backbone.image_px
    )
    dtype = experiment.backbone.dtype
    frozen = sum(
        math.prod(shape) * dinov2.storage_dtype(name, dtype).itemsize
        for name, shape in shapes.items()
    )
    pixels = 3 * experiment.backbone.image_px**2
    backbone = images // voxel * _backbone_bytes(experiment, geometry)
    kept = images * _head_bytes(experiment, geometry, voxels)
    if table == "dense" and data > 1:
        # What is kept is free again when the gradient is summed.
        embeddings += max(0, 4 * rows * embed - backbone - kept)
    return Memory(
        table=embeddings,
        shared=number * shared_weights(experiment, geometry),
        frozen=frozen,
        batch=images // voxel * pixels + 12 * images * voxels,
        backbone=backbone,
        head=kept,
    )


def limit(mesh: jax.sharding.Mesh) -> int | None:
    """Bytes that the smallest device of a mesh gives; the same on all processes.

    None where devices do not say, as CPUs.
    """
    stats = [d.memory_stats() or {} for d in mesh.local_devices if d.platform != "cpu"]
    own = min((s["bytes_limit"] for s in stats if s.get("bytes_limit")), default=None)
    found = [json.loads(text) for text in cluster.gather(json.dumps(own))]
    return None if None in found else min(found)


def with_remat(
    experiment: config.Experiment,
    geometry: dinov2.Geometry,
    num_voxels: int,
    mesh: jax.sharding.Mesh,
    *,
    table: str = "dense",
) -> config.Experiment:
    """Makes 'on' or 'off' of head.remat 'auto'.

    'off' where a step that keeps all taps needs `SHARE` of a device at most, 'on'
    where it needs more, and on a CPU, which is as fast with it and keeps less.

    Args:
        experiment: Sizes and choices.
        geometry: Shape of the backbone.
        num_voxels: V over all subjects.
        mesh: The devices.
        table: "dense" or "sparse", see `optim.table_kind`.
    """
    if experiment.head.remat != "auto":
        return experiment

    def told(word: str) -> config.Experiment:
        head = dataclasses.replace(experiment.head, remat=word)
        return dataclasses.replace(experiment, head=head)

    room, off = limit(mesh), told("off")
    if room is None:
        return told("on")
    needs = predict(off, geometry, num_voxels, **mesh.shape, table=table)
    return off if needs.total <= SHARE * room else told("on")


def _tokens(experiment: config.Experiment, geometry: dinov2.Geometry) -> int:
    """P: tokens of a tap that the head sees."""
    return len(encoder.token_places(experiment, geometry))


def _backbone_bytes(experiment: config.Experiment, geometry: dinov2.Geometry) -> int:
    """Kept for the backward pass of one image."""
    settings = experiment.backbone
    size = np.dtype(dinov2.COMPUTE_DTYPES[settings.dtype]).itemsize
    tokens = 1 + geometry.registers + (settings.image_px // geometry.patch) ** 2
    width = geometry.width
    up = geometry.mlp_width * (2 if geometry.mlp == "swiglu" else 1)
    # Two inputs of LayerNorm, query, key, value, attention's output, and the input
    # of the activation; unless a kernel fuses them, weights and their product with the
    # values in float32, and the weights that were multiplied where those are others.
    kept = (7 * width + up) * size
    if settings.attention == "xla":
        copied = size if size < 4 else 0
        kept += 4 * width + geometry.heads * tokens * (4 + copied)
    whole = kept + (3 * width + up) * size
    blocks = settings.taps[-1]
    if settings.remat == "none":
        each = blocks * whole
    elif settings.remat == "cheap":
        each = blocks * kept
    else:
        each = blocks * width * size + whole
    # Taps and their gradients.
    return tokens * (each + 2 * len(settings.taps) * width * size)


def _head_bytes(
    experiment: config.Experiment, geometry: dinov2.Geometry, voxels: int
) -> int:
    """Kept for the backward pass of one image with its voxels, in float32.

    The numbers of arrays are those that fit XLA's plan for the CPU. One tap is kept at
    a time, unless `head.remat` is 'off'.
    """
    settings, taps = experiment.head, len(experiment.backbone.taps)
    tokens, c, e = _tokens(experiment, geometry), settings.channels, settings.embed_dim
    hidden = settings.mlp_ratio * c
    # Attention of a tap, the MLP's hidden layer, its channels; the embedding.
    kept = taps if settings.remat == "off" else 1
    pair = kept * (2 * tokens + 3 * hidden + 11 * c) + 2 * e
    # Keys and their product with the query's kernel; features; and gradients.
    image = tokens * (kept * 3 * e + taps * 3 * c)
    return 4 * (voxels * pair + image)
