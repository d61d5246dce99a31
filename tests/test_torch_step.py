"""The torch form of the training step has the package's loss and gradients."""

import dataclasses

import jax
import numpy as np
import pytest

from tests import scale_table
from ubrain_jax import bench_steps, config, train
from ubrain_jax.backbone import dinov2
from ubrain_jax.model import encoder

pytestmark = pytest.mark.parity

PAPER = {
    "adapter": {"kind": "lora", "rank": 3},
    "backbone": {"keep_cls": False},
    "loss": {"kind": "paper"},
}
RELEASED = {
    "adapter": {"kind": "residual", "rank": 3, "alpha": 0.3},
    "backbone": {"keep_cls": True},
    "loss": {"kind": "released"},
    "optim": {"amsgrad": True},
}
GEOMETRIES = {
    "swiglu": dinov2.Geometry(32, 3, 2, "swiglu", 40, image_px=42),
    "gelu": dinov2.Geometry(32, 3, 2, "gelu", 64, registers=2, image_px=42),
}
ROWS = 64


def settings(changes):
    """Three blocks, two taps, no dropout, which the two draw in their own ways."""
    tiny = {
        "data": {"crowd": ("none",), "batch_images": 4, "voxels_per_image": 24},
        "head": {"embed_dim": 12, "channels": 8, "mlp_ratio": 2, "dropout": 0.0},
        "backbone": {"taps": (1, 3), "image_px": 42, **changes["backbone"]},
    }
    return scale_table.settings((1, 1), **{**changes, **tiny})


def weights_that_matter(run, seed):
    """Random values for all that training would start at zero or one."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: (a + 0.2 * rng.standard_normal(a.shape)).astype(a.dtype),
        (run.parts.trainable, run.parts.frozen),
    )


def by_torch(experiment, geometry, params, frozen, batch):
    """Loss and gradients by name, and the module."""
    import torch

    from tests import torch_step

    told = config.to_dict(experiment)
    tokens = len(encoder.token_places(experiment, geometry))
    model = torch_step.build(told, dataclasses.asdict(geometry), tokens, ROWS)
    torch_step.fill(model, 0)
    arrays = encoder.by_name(jax.tree.map(np.asarray, (params, frozen)))
    arrays = {name.split("/", 1)[1]: a for name, a in arrays.items()}
    state = torch_step.state_of(arrays, geometry.patch)
    state = torch_step.named_mlp(state, geometry.mlp)
    given = {k: torch.tensor(np.array(v)) for k, v in state.items()}
    absent = set(model.state_dict()) - set(given)
    biases = {f"map_att.{k}.project_x.bias" for k in range(2)}
    unused = {"layer_embed", "embed_model.mask_token"}
    assert absent - {"embed_model.norm.weight", "embed_model.norm.bias"} == (
        biases | unused
    )
    model.load_state_dict(given, strict=False)
    rows = np.arange(8)[:, None] * (ROWS // 8) + batch.voxel
    flat = (x.reshape(len(rows), -1) for x in (rows, batch.response, batch.weight))
    tensors = tuple(torch.from_numpy(np.array(x)) for x in (batch.image, *flat))
    loss = torch_step.loss_of(model, tensors, told)
    loss.backward()
    found = {
        k: p.grad.numpy() for k, p in model.named_parameters() if p.grad is not None
    }
    return loss.item(), found


@pytest.mark.parametrize("kind", GEOMETRIES)
@pytest.mark.parametrize("preset", [PAPER, RELEASED], ids=["paper", "released"])
def test_loss_and_gradients_equal_torch(preset, kind):
    from tests import torch_step

    experiment, geometry = settings(preset), GEOMETRIES[kind]
    run = bench_steps.noise_run(experiment, geometry, ROWS, jax.devices()[:1])
    params, frozen = weights_that_matter(run, 1)
    batch = bench_steps.noise_batch(experiment, ROWS, 2)

    def loss(params):
        from flax import nnx

        model = nnx.merge(run.parts.graph, params, frozen)
        return train.loss_of_batch(model, batch, None, run.mesh, experiment.loss)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    expected, found = by_torch(experiment, geometry, params, frozen, batch)
    # A difference of two terms of .1 or more, which nearly cancel: 1e-5 of these.
    assert value == pytest.approx(expected, abs=1e-6)
    arrays = encoder.by_name(jax.tree.map(np.asarray, gradient))
    ours = torch_step.state_of(arrays, geometry.patch)
    keys = {f"map_att.{k}.project_x.bias" for k in range(2)}  # ours has none
    assert set(ours) == set(found) - keys
    for name, wanted in found.items():
        if name in keys:
            assert np.abs(wanted).max() < 1e-6
            continue
        scale = np.abs(wanted).max()
        assert scale > 0, name
        np.testing.assert_allclose(
            ours[name] / scale, wanted / scale, atol=1e-4, rtol=0, err_msg=name
        )
