"""The step of configs/nsd8.py at full size, compiled for shapes: nothing is allocated.

In float32, the only type of a CPU; an accelerator keeps half of most of it.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from configs import nsd8
from tests import scale_table
from ubrain_jax import config, flops, hlo
from ubrain_jax.backbone import dinov2

GIANT = dinov2.GEOMETRIES["dinov2-giant"]
ROWS = 320_000


def settings():
    """The config on one device."""
    given = nsd8.get_config()
    given.backbone.dtype = given.head.dtype = "float32"
    given.mesh.data = given.mesh.voxel = 1
    experiment = config.parse(given)
    train = dataclasses.replace(experiment.train, steps=1000, epochs=None)
    return dataclasses.replace(experiment, train=train)


@pytest.fixture(scope="module")
def run():
    return scale_table.shapes_of_run(settings(), GIANT, ROWS)


@pytest.mark.slow
def test_the_whole_step_fits_and_computes_no_more_than_it_must(run):
    step = scale_table.compile_step(run)
    text, data = step.as_text(), run.experiment.data
    images, voxels = data.batch_images, data.voxels_per_image
    counted = flops.training(run.experiment, GIANT, voxels)
    done = hlo.flops(text) / images
    peak, forward = scale_table.peak(step), counted.backbone
    print(
        f"peak {peak / 1e9:.1f} GB, temporary "
        f"{step.memory_analysis().temp_size_in_bytes / 1e9:.1f} GB; "
        f"{done / 1e9:.1f} GF an image, {done / forward:.3f} forward passes of the "
        f"backbone, {done / counted.total:.3f} of what the architecture needs"
    )
    assert peak <= 40e9
    # The head once more, a tap at a time (head.remat), and nothing else.
    assert done == pytest.approx(counted.total + counted.head, rel=0.01)
    assert done <= 2.2 * forward
    # Tokens x voxels x channels, of one image.
    most = 256 * voxels * run.experiment.head.channels
    with_voxels = {voxels, voxels // data.stripes, images * voxels}
    large = [
        shape
        for shape in hlo.shapes(text)
        if with_voxels & set(shape) and math.prod(shape) >= most
    ]
    assert not large


@pytest.mark.slow
def test_forward_and_backward_of_the_backbone_are_two_forward_passes(run):
    """A third would be gradients of frozen weights, or products computed again."""
    pixels = (2, 224, 224, 3)

    def passes(params, frozen, pictures):
        model = nnx.merge(run.parts.graph, params, frozen)
        return jnp.sum(model.features(pictures))

    shapes = jax.ShapeDtypeStruct(pixels, jnp.uint8)
    given = run.parts.trainable, run.parts.frozen, shapes
    both = jax.jit(jax.grad(passes)).lower(*given).compile()
    one = jax.jit(passes).lower(*given).compile()
    ratio = hlo.flops(both.as_text()) / hlo.flops(one.as_text())
    print(f"{ratio:.3f} forward passes")
    assert ratio <= 2.1


@pytest.mark.slow
def test_the_head_keeps_less_than_250_mb_for_an_image(run):
    head, backbone = run.experiment.head, run.experiment.backbone
    images, voxels = 2, run.experiment.data.voxels_per_image
    features = (images, len(backbone.taps), 256, head.channels)
    embeddings = (images, voxels, head.embed_dim)

    def loss(params, features, embeddings, frozen):
        model = nnx.merge(run.parts.graph, params, frozen)
        return jnp.mean(jnp.square(model.respond(features, embeddings, None)))

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (features, embeddings)]
    step = jax.jit(jax.grad(loss, (0, 1, 2))).lower(
        run.parts.trainable, *shapes, run.parts.frozen
    )
    each = step.compile().memory_analysis().temp_size_in_bytes / images
    print(f"{each / 1e6:.0f} MB for an image")
    assert each <= 250e6
