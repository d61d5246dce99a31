"""Floating-point operations of a step, counted from the architecture alone.

A product of (m, k) and (k, n) counts 2 m k n; nothing else counts. What a backward
pass computes again is no part of the model and is left out, so a share of a machine's
peak from these counts is the smaller one.
"""

from typing import NamedTuple

from ubrain_jax import config
from ubrain_jax.backbone import dinov2
from ubrain_jax.model import encoder


class Flops(NamedTuple):
    """Of one image and its voxels.

    Attributes:
        backbone: Forward pass of the frozen network with its adapter.
        backbone_back: Its backward pass.
        head: Forward pass of projection and head.
        head_back: Their backward pass.
    """

    backbone: int
    backbone_back: int
    head: int
    head_back: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def training(
    experiment: config.Experiment, geometry: dinov2.Geometry, voxels: int
) -> Flops:
    """A training step: adapter, head and embeddings learn.

    Of the frozen network only gradients of activations are computed, and none before
    the first adapter.

    Args:
        experiment: Sizes and choices.
        geometry: Shape of the backbone.
        voxels: N of each image.

    Example:
        >>> giant = dinov2.GEOMETRIES["dinov2-giant"]
        >>> found = training(config.Experiment(), giant, 5000)
        >>> [round(each / 1e9, 1) for each in found]
        [360.1, 364.3, 13.9, 27.7]
    """
    forward, back = _backbone(experiment, geometry)
    shared, each = _of_image(experiment, geometry), _of_voxel(experiment, geometry)
    functional = _functional(experiment)
    head = shared + voxels * (each + functional)
    # Without an adapter gradients end at the norm before the projection.
    learns = experiment.adapter.kind != "none"
    return Flops(forward, back if learns else 0, head, 2 * head)


def transfer(
    experiment: config.Experiment, geometry: dinov2.Geometry, voxels: int
) -> Flops:
    """A step in which only embeddings learn, on features that are there already.

    Args:
        experiment: Sizes and choices.
        geometry: Shape of the backbone.
        voxels: The same for all images of a step.
    """
    shared = _of_image(experiment, geometry) - _projection(experiment, geometry)
    # Once for all images, and once for its gradient.
    each = _of_common(experiment, geometry, experiment.data.batch_images)
    head, back = shared + voxels * each, voxels * each
    return Flops(0, 0, round(head), round(back))


def prediction(
    experiment: config.Experiment, geometry: dinov2.Geometry, voxels: int
) -> Flops:
    """Responses of the same voxels to each image of a block.

    Args:
        experiment: Sizes and choices.
        geometry: Shape of the backbone.
        voxels: Of the subject.
    """
    forward, _ = _backbone(experiment, geometry)
    each = _of_common(experiment, geometry, experiment.evaluate.batch_images)
    head = _of_image(experiment, geometry) + voxels * each
    return Flops(forward, 0, round(head), 0)


def _backbone(
    experiment: config.Experiment, geometry: dinov2.Geometry
) -> tuple[int, int]:
    """Forward and backward pass of the blocks up to the last tap."""
    patches = (experiment.backbone.image_px // geometry.patch) ** 2
    tokens, width = 1 + geometry.registers + patches, geometry.width
    up = geometry.mlp_width * (2 if geometry.mlp == "swiglu" else 1)
    qkv, out = 2 * tokens * width * 3 * width, 2 * tokens * width * width
    attention = 4 * tokens * tokens * width
    mlp = 2 * tokens * width * (up + geometry.mlp_width)
    kind = experiment.adapter.kind
    low_rank = 4 * tokens * width * experiment.adapter.rank if kind != "none" else 0
    blocks = experiment.backbone.taps[-1]
    embed = 2 * patches * 3 * geometry.patch**2 * width
    block = qkv + attention + out + mlp + low_rank
    # Of attention, four products for two; of the adapter, weights learn too.
    back = qkv + 2 * attention + out + mlp + 2 * low_rank
    # Below the first adapter nothing has a gradient.
    first = (mlp if kind == "lora" else 0) + low_rank * 3 // 2
    return embed + blocks * block, first + (blocks - 1) * back


def _projection(experiment: config.Experiment, geometry: dinov2.Geometry) -> int:
    """Taps of one image to C channels."""
    tokens = len(encoder.token_places(experiment, geometry))
    taps, channels = len(experiment.backbone.taps), experiment.head.channels
    return 2 * taps * tokens * geometry.width * channels


def _of_image(experiment: config.Experiment, geometry: dinov2.Geometry) -> int:
    """What the head computes once for an image: projection and keys."""
    settings, taps = experiment.head, len(experiment.backbone.taps)
    tokens = len(encoder.token_places(experiment, geometry))
    embed = settings.embed_dim
    # Keys, then their products with the query's kernel and bias.
    keys = settings.channels * embed + embed * embed + embed
    return _projection(experiment, geometry) + 2 * taps * tokens * keys


def _of_voxel(experiment: config.Experiment, geometry: dinov2.Geometry) -> int:
    """What the head computes for each voxel of an image."""
    settings, taps = experiment.head, len(experiment.backbone.taps)
    tokens = len(encoder.token_places(experiment, geometry))
    attention = 2 * taps * tokens * (settings.embed_dim + settings.channels)
    return attention + 2 * _second(experiment)


def _of_common(
    experiment: config.Experiment, geometry: dinov2.Geometry, images: int
) -> float:
    """The same for each voxel that so many images have in common."""
    once = (_functional(experiment) + _second(experiment)) / images
    return _of_voxel(experiment, geometry) - _second(experiment) + once


def _second(experiment: config.Experiment) -> int:
    """The second product of the MLP; once for a voxel that images have in common."""
    settings, taps = experiment.head, len(experiment.backbone.taps)
    return 2 * taps * settings.channels * settings.mlp_ratio * settings.channels


def _functional(experiment: config.Experiment) -> int:
    """What a voxel's embedding makes of the weights over taps and channels."""
    settings, taps = experiment.head, len(experiment.backbone.taps)
    if settings.functional == "shared":
        return 0
    return 2 * taps * settings.embed_dim * settings.channels
