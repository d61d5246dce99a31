"""What the compiled training step sends between devices and keeps on each.

    python -m tests.scale_table --what=collectives   bytes of every collective, by mesh
    python -m tests.scale_table --what=memory        a table of 8 million rows, trained

Eight devices of the CPU stand for eight accelerators. The program is the one that
`train` runs; for `collectives` it is compiled for shapes alone, so a table of any size
costs nothing. Not a test: pytest does not collect it; tests/test_mesh.py uses it.
"""

import collections
import gc
import math
import os
import re
import threading
import time
import types
from typing import Any, NamedTuple, cast

# Before JAX starts.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from ubrain_jax import (
    batches,
    bench_steps,
    config,
    experiments,
    memory,
    optim,
    sharding,
    train,
)
from ubrain_jax.backbone import dinov2
from ubrain_jax.model import encoder

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_ITEM = {"pred": 1, "bf16": 2, "f16": 2} | {
    f"{kind}{bits}": bits // 8 for kind in "suf" for bits in (8, 16, 32, 64)
}


class Collective(NamedTuple):
    """One collective of a compiled program.

    Attributes:
        kind: Of KINDS.
        size: Bytes of its result on one device, tuples added up.
        times: How often it runs in one call of the program.
    """

    kind: str
    size: int
    times: int


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled program, with how often it runs.

    Asynchronous forms count once, by the result of their second half. A body of a
    loop counts as often as XLA says it runs.

    Args:
        text: `compiled.as_text()`.

    Raises:
        ValueError: If a collective stands in a loop of unknown length, or has a type
            whose size is not known.
    """
    found: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
    calls: dict[str, list[tuple[str, int | None]]] = collections.defaultdict(list)
    entry = inside = ""
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        begins = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if begins:
            inside = begins[2]
            entry = inside if begins[1] else entry
            continue
        code = line.split(", metadata=")[0]
        op = re.match(r"\s*(?:ROOT )?\S+ = (.*?) ([a-z][a-z-]*)\(", code)
        if not op:
            continue
        kind = op[2].removesuffix("-done")
        if kind in KINDS:
            found[inside].append((kind, _bytes(op[1])))
        times: int | None = 1
        if op[2] == "while":
            known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            times = int(known[1]) if known else None
        names = re.findall(
            r"(?:body|condition|calls|to_apply|\w+_computation)=%?([\w.-]+)", code
        )
        for group in re.findall(
            r"(?:branch_computations|called_computations)=\{([^}]*)\}", code
        ):
            names += re.findall(r"%?([\w.-]+)", group)
        calls[inside] += [(name, times) for name in names]
    return _unrolled(entry, found, calls, 1)


def _unrolled(name: str, found: dict, calls: dict, times: int) -> list[Collective]:
    """Collectives of a computation and of those it calls."""
    out = [Collective(kind, size, times) for kind, size in found[name]]
    for callee, repeats in calls[name]:
        within = _unrolled(callee, found, calls, times * (repeats or 1))
        if within and repeats is None:
            raise ValueError(f"{within[0]} in a loop of unknown length: {callee}")
        out += within
    return out


def _bytes(shape: str) -> int:
    """Size of the shapes in a result's type, such as `(f32[8,2]{1,0}, s32[])`."""
    total = 0
    for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        if dtype not in _ITEM:
            raise ValueError(f"size of {dtype} is not known, in {shape}")
        total += _ITEM[dtype] * math.prod(int(d) for d in dims.split(",") if d)
    return total


def by_kind(found: list[Collective]) -> dict[str, int]:
    """Bytes of one call, for each kind and in all ("total")."""
    sums: collections.Counter[str] = collections.Counter()
    for each in found:
        sums[each.kind] += each.size * each.times
    return {**sums, "total": sums.total()}


# A backbone that weighs nothing beside the head; all else as in configs/nsd8.py.
SMALL = dinov2.Geometry(64, 5, 2, "gelu", 128, image_px=224)


def settings(mesh: tuple[int, int], **changes: Any) -> config.Experiment:
    """The paper's head, batch and sample over a small backbone in float32."""
    values: dict[str, Any] = {
        "data": {"crowd": ("none",), "batch_images": 32},
        "backbone": {
            "name": "",
            "weights": "random",
            "taps": (1, 2, 3, 4, 5),
            "dtype": "float32",
        },
        "head": {"dtype": "float32"},
        "train": {"steps": 10},
        "optim": {"table": "dense"},
        "mesh": {"data": mesh[0], "voxel": mesh[1]},
    }
    for section, more in changes.items():
        values[section] = {**values.get(section, {}), **more}
    return config.from_dict(values, "scale_table")


def open_mesh(experiment: config.Experiment) -> jax.sharding.Mesh:
    """The mesh of the settings, over as many devices as they name."""
    data, voxel = experiment.mesh.data or 1, experiment.mesh.voxel or 1
    return sharding.make_mesh(
        data,
        voxel,
        stripes=experiment.data.stripes,
        batch_images=experiment.data.batch_images,
        devices=jax.devices()[: data * voxel],
    )


def shapes_of_run(
    experiment: config.Experiment, geometry: dinov2.Geometry, rows: int
) -> experiments.Run:
    """A run whose weights are shapes with places: to compile, not to train."""
    mesh, backbone = open_mesh(experiment), experiment.backbone
    blocks, px = backbone.taps[-1], backbone.image_px
    dtype = jnp.dtype(backbone.dtype)

    def make():
        empty = {
            name: jnp.zeros(shape, dtype)
            for name, shape in dinov2.shapes(geometry, blocks, px).items()
        }
        network = dinov2.Dinov2(geometry, empty, blocks, px, dtype)
        return encoder.Encoder(experiment, network, rows, jax.random.key(0))

    parts = encoder.split(nnx.eval_shape(make))
    trainable = _placed(parts.trainable, encoder.placements(parts.trainable, mesh))
    everywhere = sharding.place(mesh, sharding.REPLICATED)
    frozen = jax.tree.map(lambda a: _shape(a.shape, a.dtype, everywhere), parts.frozen)
    # A dict, as `encoder.build` makes it.
    parts = encoder.Parts(parts.graph, trainable, dict(frozen))
    # No store and no weight file: neither the step nor the predictor reads one.
    stores: Any = types.SimpleNamespace(num_voxels=rows)
    provenance = bench_steps.provenance_of(geometry)
    return experiments.Run(experiment, stores, parts, mesh, provenance)


def _shape(shape: tuple, dtype: Any, place: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def _placed(shapes: Any, places: Any) -> Any:
    return jax.tree.map(lambda a, p: _shape(a.shape, a.dtype, p), shapes, places)


def compile_step(run: experiments.Run) -> Any:
    """The training step of `train`, compiled for the shapes of a run."""
    experiment, mesh = run.experiment, run.mesh
    optimiser = optim.make(experiment.optim, experiment.train.steps or 1)

    def start(trainable):
        own = run._replace(parts=run.parts._replace(trainable=trainable))
        return train.initial_state(own, optimiser)[0]

    state = jax.eval_shape(start, run.parts.trainable)
    state = _placed(state, encoder.placements(state, mesh))
    batch = jax.tree.map(
        lambda a, spec: _shape(a.shape, a.dtype, sharding.place(mesh, spec)),
        jax.eval_shape(lambda: draw(experiment, 1, 0)),
        _SPECS,
    )
    step = train.compile_run(run).step
    return step.lower(state, run.parts.frozen, batch, np.uint32(0)).compile()


_SPECS = batches.Batch(
    sharding.IMAGES, sharding.SAMPLES, sharding.SAMPLES, sharding.SAMPLES, None
)


def draw(experiment: config.Experiment, rows: int, seed: int) -> batches.Batch:
    """A batch of noise on the host, for a table with `rows` rows in a stripe."""
    rng, data = np.random.default_rng(seed), experiment.data
    px, stripes = experiment.backbone.image_px, data.stripes
    shape = (data.batch_images, stripes, data.voxels_per_image // stripes)
    return batches.Batch(
        image=rng.integers(0, 256, (data.batch_images, px, px, 3), np.uint8),
        voxel=rng.integers(0, rows, shape).astype(np.int32),
        response=rng.standard_normal(shape).astype(np.float32),
        weight=np.ones(shape, np.float32),
        picture=None,
    )


def compile_evaluation(run: experiments.Run, images: int, voxels: int) -> Any:
    """The program that scores `voxels` rows of the table on `images` pictures."""
    geometry = (len(run.experiment.backbone.taps), run.experiment.backbone.image_px)
    shape = (images, geometry[0], (geometry[1] // 14) ** 2)
    shape += (run.experiment.head.channels,)
    features = _shape(shape, jnp.float32, sharding.place(run.mesh, sharding.FEATURES))
    index = _shape((voxels,), jnp.int32, sharding.place(run.mesh, sharding.TABLE))
    respond = encoder.programs(run.parts.graph, run.mesh).respond_rows
    parts = run.parts
    return respond.lower(
        parts.trainable, parts.frozen, features, index, index
    ).compile()


def peak(compiled: Any) -> int:
    """Bytes on one device while a compiled program runs, as XLA planned them."""
    plan = compiled.memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.temp_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
    )


def count_traffic(
    experiment: config.Experiment,
    geometry: dinov2.Geometry,
    num_voxels: int,
    data: int,
    voxel: int,
    *,
    table: str = "dense",
) -> dict[str, int]:
    """Bytes that one device receives in a step, by what they are.

    Over "voxel": features of B / data images, (L, P, C) each, and in the backward
    pass sums over voxels, (L, P, C + E + 1) each. Over all: gradients of adapter and
    head. Over "data": the gradient of the table, (S / voxel, rows, E) if dense, of
    the drawn rows, (B, N / voxel, E), if "sparse".
    """
    images = experiment.data.batch_images // data
    taps, embed = len(experiment.backbone.taps), experiment.head.embed_dim
    tokens, channels = (
        (experiment.backbone.image_px // 14) ** 2,
        experiment.head.channels,
    )
    shape = encoder.table_shape(num_voxels, experiment.data.stripes, embed)
    one = 4 * images * taps * tokens
    numbers = math.prod(shape) // voxel
    if table == "sparse":
        drawn = experiment.data.batch_images * experiment.data.voxels_per_image
        numbers = drawn // voxel * embed
    several = data * voxel > 1
    return {
        "features": (voxel > 1) * one * channels,
        "gradient of the features": (voxel > 1) * one * (channels + embed + 1),
        "gradient of adapter and head": several
        * 4
        * memory.shared_weights(experiment, geometry),
        "gradient of the table": (data > 1) * 4 * numbers,
    }


def print_collectives(rows_of_tables: tuple[int, ...] = (320_000, 3_200_000)) -> None:
    """Bytes of the collectives of step and evaluation, for each mesh and table."""
    print("| program | mesh | rows | collectives | bytes by kind | counted | peak |")
    for data, voxel in ((1, 8), (2, 4), (8, 1)):
        experiment = settings((data, voxel))
        for rows in rows_of_tables:
            run = shapes_of_run(experiment, SMALL, rows)
            counted = sum(count_traffic(experiment, SMALL, rows, data, voxel).values())
            chunk = experiment.evaluate.chunk_voxels
            for name, compiled, wanted in (
                ("step", compile_step(run), counted),
                ("evaluation", compile_evaluation(run, 32, chunk), None),
            ):
                found = collectives(compiled.as_text())
                kinds = ", ".join(f"{k} {v:,}" for k, v in by_kind(found).items())
                times = sum(each.times for each in found)
                print(
                    f"| {name} | {data}x{voxel} | {rows:,} | {times} | {kinds} | "
                    f"{wanted and format(wanted, ',')} | {peak(compiled):,} |",
                    flush=True,
                )


class Measured(NamedTuple):
    """Memory of a few steps on eight devices of one process, in bytes.

    Attributes:
        predicted: By `memory.predict`, on one device.
        planned: By XLA, on one device.
        resident: Growth of the process at its highest, over all devices.
        losses: Of the steps.
        seconds: Of the last step.
    """

    predicted: int
    planned: int
    resident: int
    losses: list[float]
    seconds: float


def train_table(
    rows: int, changes: dict[str, dict[str, Any]], steps: int = 3
) -> Measured:
    """Trains a table of `rows` rows on 1x8 devices, with noise for data."""
    experiment = settings((1, 8), **changes)
    mesh, backbone = open_mesh(experiment), experiment.backbone
    blocks, px = backbone.taps[-1], backbone.image_px
    compiled = compile_step(shapes_of_run(experiment, SMALL, rows))
    network = dinov2.random(SMALL, blocks, px)
    gc.collect()
    stores: Any = types.SimpleNamespace(num_voxels=rows)
    with Watch() as watch:
        parts = encoder.build(experiment, network, rows, mesh)
        run = experiments.Run(experiment, stores, parts, mesh, cast(Any, None))
        optimiser = optim.make(experiment.optim, experiment.train.steps or 1)
        state, _ = train.initial_state(run, optimiser)
        frozen = parts.frozen
        del run, parts, network  # their table is the state's, which is donated
        losses, seconds = [], 0.0
        for k in range(steps):
            inside = encoder.table_shape(rows, experiment.data.stripes, 1)[1]
            batch = train.put_batch(mesh, draw(experiment, inside, k))
            began = time.monotonic()
            state, loss = compiled(state, frozen, batch, np.uint32(0))
            losses.append(float(loss))
            seconds = time.monotonic() - began
    predicted = memory.predict(experiment, SMALL, rows, 1, 8)
    return Measured(predicted.total, peak(compiled), watch.growth, losses, seconds)


class Watch:
    """Highest growth of this process's resident memory while a block runs."""

    def __enter__(self) -> "Watch":
        self._start = self._highest = resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._stop.wait(0.01):
            self._highest = max(self._highest, resident())

    def __exit__(self, *error: object) -> None:
        self._highest = max(self._highest, resident())
        self._stop.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        """Bytes above the start."""
        return self._highest - self._start


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Little beside the table.
WIDE_TABLE: dict[str, dict[str, Any]] = {
    "data": {"crowd": ("none",), "batch_images": 8, "voxels_per_image": 800},
    "head": {"channels": 16, "mlp_ratio": 2, "dtype": "float32"},
    "backbone": {
        "name": "",
        "weights": "random",
        "taps": (1, 2),
        "image_px": 56,
        "dtype": "float32",
    },
}


def print_memory(rows: int, embed_dim: int) -> None:
    """Predicted, planned and measured memory of a table on eight devices."""
    head = {**WIDE_TABLE["head"], "embed_dim": embed_dim}
    found = train_table(rows, {**WIDE_TABLE, "head": head})
    print(f"{rows:,} rows of {embed_dim} numbers, 1x8, losses {found.losses}")
    print(f"last step {found.seconds:.2f} s")
    for name, each, count in (
        ("predicted", found.predicted, 8),
        ("planned by XLA", found.planned, 8),
        ("measured growth of the process", found.resident, 1),
    ):
        per, ratio = each * count / 8, each * count / 8 / found.predicted
        print(f"{name}: {per / 1e6:,.1f} MB a device, {ratio:.3f} of the predicted")


def main(argv: list[str]) -> None:
    """Prints what is asked for."""
    del argv
    what = flags.FLAGS.what
    if what == "collectives":
        print_collectives()
    else:
        print_memory(flags.FLAGS.rows, flags.FLAGS.embed_dim)


if __name__ == "__main__":
    flags.DEFINE_enum("what", "collectives", ["collectives", "memory"], "")
    flags.DEFINE_integer("rows", 8_000_000, "Rows of the table for --what=memory.")
    flags.DEFINE_integer("embed_dim", 16, "Numbers in each row, for --what=memory.")
    app.run(main)
