"""The steps that `bench` times, in a process of their own.

The programs are those of training, transfer and prediction; weights are random and,
without a store, so are pictures, voxels and responses. `bench` starts this module; see
`rounds` for how they talk.
"""

import dataclasses
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ubrain_jax import (
    batches,
    config,
    errors,
    experiments,
    fit,
    flops,
    hlo,
    optim,
    rounds,
    sharding,
    train,
)
from ubrain_jax.backbone import dinov2, weights
from ubrain_jax.model import encoder

# Dense products of bfloat16, FLOP/s of one chip, as their data sheets say. The first
# name that is in the device's kind counts.
DATASHEET = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}


class Sizes(NamedTuple):
    """What a config does not say.

    Attributes:
        voxels: Of one subject, which is predicted and fitted.
        rows: Of the table in training: voxels over all subjects.
        gemm: Side of the square matrices whose product measures the peak; None: 8192,
            or 2048 on a CPU.
    """

    voxels: int
    rows: int
    gemm: int | None


def datasheet_peak(device_kind: str) -> float | None:
    """FLOP/s of bfloat16 products by the data sheet; None where it is not known.

    Example:
        >>> datasheet_peak("NVIDIA H200"), datasheet_peak("cpu")
        (989000000000000.0, None)
    """
    return next((f for name, f in DATASHEET.items() if name in device_kind), None)


def of_device(
    experiment: config.Experiment, platform: str
) -> tuple[config.Experiment, list[str]]:
    """Settings that a platform can run, and notes of what was changed.

    A CPU has no products of bfloat16; cuDNN is of NVIDIA's GPUs.
    """
    notes = []
    backbone, head = experiment.backbone, experiment.head
    if backbone.attention == "cudnn" and platform != "gpu":
        backbone = dataclasses.replace(backbone, attention="xla")
        notes.append(f"attention by xla: there is no cudnn on {platform}")
    if platform == "cpu" and "bfloat16" in (backbone.dtype, head.dtype):
        backbone = dataclasses.replace(backbone, dtype="float32")
        head = dataclasses.replace(head, dtype="float32")
        notes.append("float32 in place of bfloat16, which a CPU has not")
    return dataclasses.replace(experiment, backbone=backbone, head=head), notes


def geometry_of(settings: config.Backbone) -> dinov2.Geometry:
    """Shape of the backbone that a config names; no weight file is read.

    Raises:
        errors.ConfigError: If it does not name one.
    """
    if settings.name in dinov2.GEOMETRIES:
        return dinov2.GEOMETRIES[settings.name]
    if settings.weights == "bundled":
        return experiments.load_network(settings).provenance.geometry
    raise errors.ConfigError(
        "--config",
        "backbone.name",
        repr(settings.name),
        f"one of {', '.join(dinov2.GEOMETRIES)}",
        "Name the geometry: weights are random here, no file is read.",
    )


def random_network(
    geometry: dinov2.Geometry, settings: config.Backbone
) -> dinov2.Dinov2:
    """As `dinov2.random`, but drawn on the device: seconds for a large network."""

    def draw(name: str, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
        dtype = dinov2.storage_dtype(name, settings.dtype)
        if name.endswith("kernel"):
            scale = shape[-2] ** -0.5
        elif name in ("cls", "position", "registers"):
            scale = 0.02
        else:
            return jnp.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype)
        return (scale * jax.random.normal(key, shape)).astype(dtype)

    blocks, px = settings.taps[-1], settings.image_px
    shapes = dinov2.shapes(geometry, blocks, px)

    def draw_all(key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, len(shapes))
        named = zip(shapes.items(), keys, strict=True)
        return {name: draw(name, shape, key) for (name, shape), key in named}

    drawn = jax.jit(draw_all)(jax.random.key(0))
    return dinov2.Dinov2(geometry, drawn, blocks, px, settings.dtype)


def noise_run(
    experiment: config.Experiment,
    geometry: dinov2.Geometry,
    rows: int,
    devices: list[Any] | None = None,
) -> experiments.Run:
    """A run with random weights and no store; on all devices, or on those given."""
    settings = experiment.data
    mesh = sharding.make_mesh(
        experiment.mesh.data,
        experiment.mesh.voxel,
        stripes=settings.stripes,
        batch_images=settings.batch_images,
        devices=devices,
    )
    network = random_network(geometry, experiment.backbone)
    parts = encoder.build(experiment, network, rows, mesh)
    return experiments.Run(
        experiment, _no_stores(rows), parts, mesh, provenance_of(geometry)
    )


def _no_stores(rows: int) -> Any:
    return types.SimpleNamespace(num_voxels=rows)


def provenance_of(geometry: dinov2.Geometry) -> weights.Provenance:
    """Of random weights."""
    return weights.Provenance("random", "random", {}, geometry, True, ())


def noise_batch(experiment: config.Experiment, rows: int, seed: int) -> batches.Batch:
    """A batch of noise on the host, for a table of `rows` voxels."""
    rng, data = np.random.default_rng(seed), experiment.data
    px, stripes = experiment.backbone.image_px, data.stripes
    shape = (data.batch_images, stripes, data.voxels_per_image // stripes)
    inside = encoder.table_shape(rows, stripes, 1)[1]
    return batches.Batch(
        image=rng.integers(0, 256, (data.batch_images, px, px, 3), np.uint8),
        voxel=rng.integers(0, inside, shape).astype(np.int32),
        response=rng.standard_normal(shape).astype(np.float32),
        weight=np.ones(shape, np.float32),
        picture=None,
    )


def make(told: dict[str, Any]) -> rounds.Ready:
    """Steps of one part of `bench.PARTS`.

    Args:
        told: part; config, a dict; voxels, rows and gemm of `Sizes`.
    """
    device = jax.devices()[0]
    experiment = config.from_dict(told["config"], "--config")
    experiment, notes = of_device(experiment, device.platform)
    sizes = Sizes(told["voxels"], told["rows"], told["gemm"])
    steps, facts = _PARTS[told["part"]](experiment, sizes)
    facts = {
        "platform": device.platform,
        "device_kind": device.device_kind,
        "num_devices": jax.device_count(),
        "jax": jax.__version__,
        "config": config.to_dict(experiment),
        "notes": notes,
        **facts,
    }
    return rounds.Ready(steps, facts, _peak_of(device))


def _peak_of(device: Any) -> Callable[[], int] | None:
    """Highest bytes in use on a device; None where it does not count them."""
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        return None
    return lambda: int(device.memory_stats()["peak_bytes_in_use"])


def _gemm(experiment: config.Experiment, sizes: Sizes) -> tuple[dict, dict]:
    """Product of two square matrices: the most that this device gives."""
    dtype = jnp.dtype(experiment.backbone.dtype)
    size = sizes.gemm or (2048 if jax.default_backend() == "cpu" else 8192)
    x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    multiply = jax.jit(lambda a, b: (a @ b).astype(dtype))

    def step(times: int) -> dict:
        out = x
        for _ in range(times):
            out = multiply(x, x)
        out.block_until_ready()
        return {}

    kind = jax.devices()[0].device_kind
    facts = {
        "size": size,
        "dtype": dtype.name,
        "flops": 2 * size**3,
        "datasheet": datasheet_peak(kind) if dtype == jnp.bfloat16 else None,
    }
    return {"gemm": step}, facts


class _Training(NamedTuple):
    """A training step that is compiled, and what it runs on."""

    step: Callable
    state: train.State
    facts: dict[str, Any]


def _compiled(run: experiments.Run, batch: batches.Batch) -> _Training:
    """The step that `train` runs, compiled with the clock running."""
    experiment = run.experiment
    optimiser = optim.make(experiment.optim, train.total_steps(experiment, run.stores))
    state, _ = train.initial_state(run, optimiser)
    seed = np.uint32(experiment.train.seed)
    began = time.perf_counter()
    step = (
        train.compile_run(run)
        .step.lower(state, run.parts.frozen, batch, seed)
        .compile()
    )
    seconds = time.perf_counter() - began
    model = flops.training(
        experiment, run.provenance.geometry, experiment.data.voxels_per_image
    )
    facts = {
        "compile_seconds": seconds,
        "images": experiment.data.batch_images,
        "model_flops": model.total * experiment.data.batch_images,
        "backbone_flops": model.backbone * experiment.data.batch_images,
        "xla_flops": _xla_flops(step, run.mesh.size),
        "planned_bytes": _planned(step),
    }
    return _Training(step, state, facts)


def _xla_flops(program: Any, devices: int) -> int | None:
    """Of the products that XLA compiled, all devices together; None: not countable."""
    try:
        return hlo.flops(program.as_text()) * devices
    except (ValueError, KeyError):
        return None


def _planned(program: Any) -> dict[str, int] | None:
    """Bytes on one device by XLA's plan: arguments, results, and between them."""
    plan = program.memory_analysis()
    if plan is None:
        return None
    return {
        "arguments": plan.argument_size_in_bytes,
        "new_results": plan.output_size_in_bytes - plan.alias_size_in_bytes,
        "temporary": plan.temp_size_in_bytes,
    }


def _train(experiment: config.Experiment, sizes: Sizes) -> tuple[dict, dict]:
    """The training step on one batch that stays on the device."""
    run = noise_run(experiment, geometry_of(experiment.backbone), sizes.rows)
    batch = train.put_batch(run.mesh, noise_batch(experiment, sizes.rows, 0))
    made = _compiled(run, batch)
    return {"train": _by_turns(made, run, [batch])}, made.facts


def _transfer(experiment: config.Experiment, sizes: Sizes) -> tuple[dict, dict]:
    """Steps that learn embeddings alone: on features computed before, and on pictures.

    As many voxels as a training step; "all" takes all of the subject's, as `fit` does
    where memory allows.
    """
    geometry = geometry_of(experiment.backbone)
    stripes, images = experiment.data.stripes, experiment.data.batch_images
    run = noise_run(experiment, geometry, sizes.voxels)
    few = min(experiment.data.voxels_per_image, sizes.voxels) // stripes * stripes
    rows = encoder.table_shape(sizes.voxels, stripes, 1)[1]
    rng = np.random.default_rng(0)
    table = run.parts.trainable["table"]
    shared = {k: v for k, v in run.parts.trainable.items() if k != "table"}
    fixed, pull = (shared, run.parts.frozen), np.float32(0)
    key = jax.random.key(0)
    start = table + 0
    moments = first_moments(table)
    state = fit.State(jnp.zeros((), jnp.int32), table + 0, moments)
    fit_step = fit.make_step(run, fit.Settings())
    programs = encoder.programs(run.parts.graph, run.mesh)
    px = experiment.backbone.image_px
    pictures = rng.integers(0, 256, (images, px, px, 3), np.uint8)

    def features() -> jax.Array:
        placed = sharding.put(run.mesh, sharding.IMAGES, pictures)
        return programs.features(run.parts.trainable, run.parts.frozen, placed)

    # In the precision in which `frozen.features` keeps them.
    kept = np.asarray(features().astype(experiment.head.dtype))
    responses = rng.standard_normal((images, sizes.voxels)).astype(np.float32)
    from_host = fit.from_host(run, kept, responses)
    on_devices = fit.on_devices(run, kept, responses)

    def computed(some: np.ndarray, drawn: np.ndarray | None) -> tuple:
        return features(), on_devices(some, drawn)[1]

    def step(pick: fit.Pick, voxels: int | None) -> rounds.Step:
        count = rows if voxels is None else voxels // stripes
        weight = np.ones((stripes, count), np.float32)
        drawn = None
        if voxels is not None:
            drawn = np.tile(np.arange(count, dtype=np.int32), (stripes, 1))

        def run_steps(times: int) -> dict:
            nonlocal state
            loss = jnp.nan
            for _ in range(times):
                some = pick(np.arange(images), drawn)
                placed = [
                    x if x is None else sharding.put(run.mesh, sharding.TABLE, x)
                    for x in (weight, drawn)
                ]
                batch = fit.Batch(*some, *placed)
                state, loss = fit_step(state, start, fixed, pull, batch, key)
            return {"loss": float(loss)}

        return run_steps

    model = flops.transfer(experiment, geometry, few)
    facts = {
        "images": images,
        "voxels": few,
        "model_flops": model.total * images,
        "voxels_of_subject": sizes.voxels,
    }
    steps = {
        "cached": step(on_devices, few),
        "cached_on_host": step(from_host, few),
        "uncached": step(computed, few),
    }
    # All of a subject's voxels only where `fit` would take them.
    own = run._replace(stores=_one_subject(sizes.voxels))
    if fit.voxels_that_fit(own, images, 0) == sizes.voxels:
        steps["cached_all"] = step(on_devices, None)
    return steps, facts


def first_moments(table: jax.Array) -> Any:
    """Of Adam, before `fit`'s first step."""
    return optax.adam(0.0).init(cast(Any, table))


def _one_subject(voxels: int) -> Any:
    subject = types.SimpleNamespace(num_voxels=voxels)
    return types.SimpleNamespace(num_voxels=voxels, subjects=[subject])


def _predict(experiment: config.Experiment, sizes: Sizes) -> tuple[dict, dict]:
    """The features of a block of pictures, alone and with all voxels of a subject.

    As `UniversalEncoder.predict` does it, with the block and the chunk of evaluate.
    """
    geometry = geometry_of(experiment.backbone)
    run = noise_run(experiment, geometry, sizes.voxels)
    settings, px = experiment.evaluate, experiment.backbone.image_px
    images = -(-settings.batch_images // run.mesh.size) * run.mesh.size
    programs = encoder.programs(run.parts.graph, run.mesh)
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (images, px, px, 3), np.uint8)
    params, frozen = run.parts.trainable, run.parts.frozen
    chunk = min(settings.chunk_voxels, sizes.voxels)
    rows = rng.standard_normal((sizes.voxels, experiment.head.embed_dim))
    chunks = [
        sharding.put(run.mesh, sharding.TABLE, np.resize(part, (chunk, part.shape[1])))
        for part in (
            rows[first : first + chunk].astype(np.float32) * 0.1
            for first in range(0, sizes.voxels, chunk)
        )
    ]

    def features() -> jax.Array:
        placed = sharding.put(run.mesh, sharding.IMAGES, pictures)
        return programs.features(params, frozen, placed)

    def backbone(times: int) -> dict:
        out = None
        for _ in range(times):
            out = features()
        jax.block_until_ready(out)
        return {}

    def predict(times: int) -> dict:
        def dispatched() -> Iterator[tuple[int, jax.Array]]:
            for turn in range(times):
                found = features()
                for part in chunks:
                    yield turn, programs.respond(params, frozen, found, part)

        for _ in sharding.fetched(dispatched()):
            pass
        return {}

    model = flops.prediction(experiment, geometry, sizes.voxels)
    facts = {
        "images": images,
        "voxels": sizes.voxels,
        "model_flops": model.total * images,
        "backbone_flops": model.backbone * images,
    }
    return {"backbone": backbone, "predict": predict}, facts


def _input(experiment: config.Experiment, sizes: Sizes) -> tuple[dict, dict]:
    """Batches read from the stores, alone and while the step runs."""
    del sizes
    geometry = geometry_of(experiment.backbone)
    stores = experiments.open_stores(experiment)
    run = noise_run(experiment, geometry, stores.num_voxels)._replace(stores=stores)
    share = sharding.share_of_batch(
        run.mesh, experiment.data.batch_images, experiment.data.stripes
    )
    data = batches.dataset(stores, experiment.data, experiment.train.seed, share)
    first = train.put_batch(run.mesh, cast(batches.Batch, data[0]), share)
    made = _compiled(run, first)
    state, seed = made.state, np.uint32(experiment.train.seed)
    threads, place = experiment.data.read_threads, 0
    iterator = batches.iterate(data, 0, threads)

    def read(times: int) -> dict:
        # From a new place: an iterator that has waited has batches ready.
        nonlocal place
        place += times
        cold = batches.iterate(data, place, threads)
        for _ in range(times):
            next(cold)
        return {}

    def loop(times: int) -> dict:
        nonlocal state
        waited, loss = 0.0, jnp.nan
        for _ in range(times):
            began = time.perf_counter()
            host = next(iterator)
            waited += time.perf_counter() - began
            batch = train.put_batch(run.mesh, host, share)
            state, loss = made.step(state, run.parts.frozen, batch, seed)
        return {"wait_seconds": waited / times, "loss": float(loss)}

    return {"read": read, "loop": loop}, made.facts


def _curves(experiment: config.Experiment, sizes: Sizes) -> tuple[dict, dict]:
    """Training in both types from the same weights, on a few batches by turns."""
    if jax.default_backend() == "cpu":
        raise ValueError("not measured: a CPU has no bfloat16 to compare")
    geometry = geometry_of(experiment.backbone)
    steps, facts = {}, {}
    for dtype in ("float32", "bfloat16"):
        own = dataclasses.replace(
            experiment,
            backbone=dataclasses.replace(
                experiment.backbone, dtype=dtype, attention="xla"
            ),
            head=dataclasses.replace(experiment.head, dtype=dtype),
        )
        run = noise_run(own, geometry, sizes.rows)
        few = [
            train.put_batch(run.mesh, noise_batch(own, sizes.rows, seed))
            for seed in range(_CURVE_BATCHES)
        ]
        made = _compiled(run, few[0])
        facts[dtype] = made.facts
        steps[dtype] = _by_turns(made, run, few)
    return steps, {**facts["bfloat16"], "by_dtype": facts}


_CURVE_BATCHES = 8


def _by_turns(
    made: _Training, run: experiments.Run, few: list[batches.Batch]
) -> rounds.Step:
    """Trains on each batch in turn, on and on."""
    state, done = made.state, 0
    seed, frozen = np.uint32(run.experiment.train.seed), run.parts.frozen

    def step(times: int) -> dict:
        nonlocal state, done
        losses = []
        for _ in range(times):
            state, loss = made.step(state, frozen, few[done % len(few)], seed)
            losses.append(loss)
            done += 1
        return {"loss": float(jnp.stack(losses[-len(few) :]).mean())}

    return step


_PARTS = {
    "curves": _curves,
    "gemm": _gemm,
    "train": _train,
    "transfer": _transfer,
    "predict": _predict,
    "input": _input,
}


if __name__ == "__main__":
    rounds.serve(make)
