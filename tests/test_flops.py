"""Operations counted from the architecture against the products that XLA compiles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import scale_table
from ubrain_jax import bench_steps, fit, flops, hlo, memory
from ubrain_jax.backbone import dinov2
from ubrain_jax.model import encoder

VOXELS, IMAGES = 400, 2
PLAIN = dinov2.Geometry(128, 3, 2, "swiglu", 160, image_px=112)
REGISTERS = dinov2.Geometry(128, 3, 2, "gelu", 160, registers=4, image_px=112)


def settings(adapter="lora", remat="none", head_remat="off", keep_cls=False):
    """Sizes that all differ, so that none can stand for another."""
    return scale_table.settings(
        (1, 1),
        data={
            "crowd": ("none",),
            "batch_images": IMAGES,
            "voxels_per_image": VOXELS,
        },
        backbone={
            "name": "",
            "weights": "random",
            "taps": (1, 3),
            "dtype": "float32",
            "image_px": 112,
            "remat": remat,
            "keep_cls": keep_cls,
        },
        head={
            "embed_dim": 32,
            "channels": 48,
            "mlp_ratio": 3,
            "dtype": "float32",
            "remat": head_remat,
        },
        adapter={"kind": adapter, "rank": 5},
        evaluate={"batch_images": IMAGES},
    )


def of_step(experiment, geometry):
    run = scale_table.shapes_of_run(experiment, geometry, 1000)
    return hlo.flops(scale_table.compile_step(run).as_text()) / IMAGES


@pytest.mark.parametrize(
    ("adapter", "keep_cls", "geometry"),
    [("lora", False, PLAIN), ("residual", True, REGISTERS), ("none", False, PLAIN)],
)
def test_a_training_step_computes_what_is_counted(adapter, keep_cls, geometry):
    experiment = settings(adapter, keep_cls=keep_cls)
    counted = flops.training(experiment, geometry, VOXELS)
    assert of_step(experiment, geometry) == pytest.approx(counted.total, rel=1e-3)


def test_a_tap_at_a_time_costs_the_head_once_more():
    experiment = settings(remat="cheap", head_remat="on")
    counted = flops.training(experiment, PLAIN, VOXELS)
    expected = counted.total + counted.head
    found = of_step(experiment, PLAIN)
    # Without the projection and the second product of the MLP, which need no repeat.
    assert 0.9 * expected < found < 1.001 * expected


def test_a_step_keeps_all_taps_where_they_fit(monkeypatch):
    """head.remat 'auto': the products are those of 'off', and of 'on'."""
    experiment = settings(head_remat="auto")
    counted = flops.training(experiment, PLAIN, VOXELS)
    monkeypatch.setattr(memory, "limit", lambda mesh: 10**12)
    assert of_step(experiment, PLAIN) == pytest.approx(counted.total, rel=1e-3)
    monkeypatch.setattr(memory, "limit", lambda mesh: 10**6)
    expected = counted.total + counted.head
    assert 0.9 * expected < of_step(experiment, PLAIN) < 1.001 * expected


def test_transfer_and_prediction_compute_what_is_counted():
    experiment = settings()
    run = scale_table.shapes_of_run(experiment, PLAIN, VOXELS)
    size = encoder.table_shape(VOXELS, 8, 32)
    params, shared = run.parts.trainable, dict(run.parts.trainable)
    shared.pop("table")
    table = params["table"]
    numbers = jax.ShapeDtypeStruct((), jnp.int32)
    features = jax.ShapeDtypeStruct((IMAGES, 2, 64, 48), jnp.float32)
    response = jax.ShapeDtypeStruct((IMAGES, *size[:2]), jnp.float32)
    moments = jax.eval_shape(bench_steps.first_moments, table)
    step = fit.make_step(run, fit.Settings()).lower(
        fit.State(numbers, table, moments),
        table,
        (shared, run.parts.frozen),
        np.float32(0),
        fit.Batch(features, response, np.ones(size[:2], np.float32), None),
        jax.random.key(0),
    )
    found = hlo.flops(step.compile().as_text()) / IMAGES
    counted = flops.transfer(experiment, PLAIN, VOXELS)
    assert found == pytest.approx(counted.total, rel=1e-3)
    programs = encoder.programs(run.parts.graph, run.mesh)
    rows = jax.ShapeDtypeStruct((VOXELS, 32), jnp.float32)
    pictures = jax.ShapeDtypeStruct((IMAGES, 112, 112, 3), jnp.uint8)
    given = params, run.parts.frozen
    both = (
        programs.features.lower(*given, pictures),
        programs.respond.lower(*given, features, rows),
    )
    found = sum(hlo.flops(each.compile().as_text()) for each in both) / IMAGES
    counted = flops.prediction(experiment, PLAIN, VOXELS)
    assert found == pytest.approx(counted.total, rel=1e-3)


def test_counts_of_the_paper_and_of_released_networks():
    """Against the sums of the table of shapes, block by block."""
    experiment = scale_table.settings((1, 1), backbone={"taps": (1, 6, 12, 18, 24)})
    giant = flops.training(experiment, dinov2.GEOMETRIES["dinov2-giant"], 5000)
    qkv, out, mlp = 1536 * 4608, 1536 * 1536, 1536 * (8192 + 4096)
    lora, attention = 2 * 1536 * 16, 2 * 257 * 1536
    block = 257 * (qkv + out + mlp + lora + attention)
    assert giant.backbone == 2 * (24 * block + 256 * 588 * 1536)
    assert giant.backbone + giant.backbone_back < 2.1 * giant.backbone
    fewer = dataclasses.replace(
        experiment, adapter=dataclasses.replace(experiment.adapter, kind="none")
    )
    assert flops.training(fewer, dinov2.GEOMETRIES["dinov2-giant"], 5000)[1] == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: a @ b,
        lambda a, b: jnp.einsum("ij,kj->ik", a, b.T),
        lambda a, b: jax.lax.map(lambda row: row @ b, a),
        lambda a, b: jax.lax.scan(lambda s, row: (s + row @ b, None), b[0], a)[0],
    ],
)
def test_products_are_counted_in_loops_and_out_of_them(make):
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((40, 72), (72, 56))]
    text = jax.jit(make).lower(*shapes).compile().as_text()
    assert hlo.flops(text) == 2 * 40 * 72 * 56


def test_a_loop_of_unknown_length_is_refused():
    def until(x):
        return jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ y, x)

    text = jax.jit(until).lower(jnp.ones((64, 64))).compile().as_text()
    with pytest.raises(ValueError, match="loop of unknown length"):
        hlo.flops(text)


def test_a_kernel_of_cublas_is_a_product():
    text = """ENTRY %main (a: bf16[8,16], b: bf16[16,4]) -> f32[8,4] {
  %a = bf16[8,16]{1,0} parameter(0)
  %b = bf16[16,4]{1,0} parameter(1)
  ROOT %gemm = (f32[8,4]{1,0}, s8[64]{0}) custom-call(%a, %b), """ + (
        'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config"'
        ':{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}\n}\n'
    )
    assert hlo.dots(text) == [hlo.Dot((8, 4), 2 * 8 * 4 * 16, 1)]
