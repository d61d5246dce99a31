"""Times steps of Adam on a voxel table: all rows against the rows of the batch.

    python -m tests.time_table --rows=100000,1000000,4000000 --embed=64

A step looks up the rows of a batch, has their gradient from a small loss, and updates
the table. The kinds take turns on the same batches, so that both see the same machine;
the ratio of their medians is what counts. Random rows of a large table miss the caches,
which a second figure leaves out: the least time of sparse steps on the same rows again,
alone. It shows whether anything is done for every row of the table. One size is in
memory at a time, about 9 tables. Not a test: pytest does not collect it.
"""

import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from ubrain_jax import config, optim, rowsparse, sharding

STRIPES = 8


def programs(steps: int, mesh: jax.sharding.Mesh) -> tuple[Any, Any, Any]:
    """The steps, (state, step, voxel) -> state, and the settling of a sparse table."""
    settings = config.Optim(schedule="cosine")
    rate = optim.learning_rate(settings, steps)
    adam, replay = optim.make(settings, steps), rowsparse.make(rate, steps)

    def loss(e: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(jnp.sum(e * jnp.cos(e), -1) - 1))

    def dense(state: Any, count: jax.Array, voxel: jax.Array) -> Any:
        del count  # Adam has its own
        values, moments = state
        gradient = jax.grad(lambda a: loss(rowsparse.look_up(a, voxel)))(values)
        updates, moments = adam.update(gradient, moments, values)
        return optax.apply_updates(values, updates), moments

    def sparse(table: rowsparse.Rows, count: jax.Array, voxel: jax.Array) -> Any:
        read = rowsparse.read(table, voxel, mesh)
        late = rowsparse.recent(replay, count)
        rows = rowsparse.catch_up(replay, late, count, read.rows)
        gradient = jax.grad(lambda a: loss(rowsparse.look_up(a, read.slot)))
        rows = rowsparse.update(replay, count, rows, gradient(rows.values))
        return rowsparse.write(table, read.row, rows)

    place = sharding.place(mesh, sharding.TABLE)
    jitted = [jax.jit(f, donate_argnums=0) for f in (dense, sparse)]
    return jitted[0], jitted[1], rowsparse.make_settle(replay, place)


def measure(num_rows: int, values: Any, mesh: jax.sharding.Mesh) -> dict[str, float]:
    """Median seconds of each step, and of settling the whole table once."""
    shape = (STRIPES, num_rows // STRIPES, values.embed)
    steps = values.repeats + 2
    dense, sparse, settle = programs(10_000, mesh)
    rng = np.random.default_rng(0)
    of_stripe = (values.images, STRIPES, values.voxels // STRIPES)
    voxel = [
        jnp.asarray(rng.integers(0, shape[1], of_stripe), jnp.int32)
        for _ in range(steps)
    ]
    zeros = functools.partial(jnp.zeros, shape, jnp.float32)
    start = jnp.asarray(rng.standard_normal(shape, np.float32)) * 0.01
    adam = optim.make(config.Optim(schedule="cosine"), 10_000)
    states = {
        "dense": (start, adam.init(start)),
        "sparse": rowsparse.Rows(
            start + 0, zeros(), zeros(), jnp.zeros(shape[:2], jnp.int32)
        ),
    }
    del start
    seconds: dict[str, list[float]] = {"dense": [], "sparse": []}
    for k in range(steps):
        for kind, step in (("dense", dense), ("sparse", sparse)):
            began = time.perf_counter()
            states[kind] = step(states[kind], jnp.int32(k), voxel[k])
            jax.block_until_ready(states[kind])
            seconds[kind].append(time.perf_counter() - began)
    found = {k: statistics.median(v[2:]) for k, v in seconds.items()}
    again = []
    for k in range(steps, 3 * steps):  # the same rows, which the caches hold
        began = time.perf_counter()
        states["sparse"] = sparse(states["sparse"], jnp.int32(k), voxel[-1])
        jax.block_until_ready(states["sparse"])
        again.append(time.perf_counter() - began)
    found["again"] = min(again)
    for name in ("first", "settle"):  # the first compiles
        began = time.perf_counter()
        states["sparse"] = settle(jnp.int32(3 * steps), states["sparse"])
        jax.block_until_ready(states["sparse"])
        found[name] = time.perf_counter() - began
    return found


def main(argv: list[str]) -> None:
    """Times every size and prints a line for it."""
    del argv
    values = flags.FLAGS
    device = jax.devices()[0]
    mesh = sharding.make_mesh(
        1, 1, stripes=STRIPES, batch_images=values.images, devices=[device]
    )
    print(
        f"{device.device_kind}: {values.images} images x {values.voxels} voxels, "
        f"E = {values.embed}, medians of {values.repeats} steps"
    )
    for text in values.rows:
        found = measure(int(text), values, mesh)
        ratio = found["sparse"] / found["dense"]
        print(
            f"{int(text):>9} rows: dense {found['dense'] * 1e3:8.1f} ms, "
            f"sparse {found['sparse'] * 1e3:8.1f} ms, sparse / dense {ratio:6.3f}, "
            f"on the same rows again {found['again'] * 1e3:7.1f} ms, "
            f"settling once {found['settle'] * 1e3:7.1f} ms",
            flush=True,
        )


if __name__ == "__main__":
    flags.DEFINE_list("rows", ["100000", "1000000", "4000000"], "Rows of the table.")
    flags.DEFINE_integer("embed", 64, "Numbers in a row.")
    flags.DEFINE_integer("images", 32, "Images of a batch.")
    flags.DEFINE_integer("voxels", 5000, "Voxels drawn for each image.")
    flags.DEFINE_integer("repeats", 7, "Timed steps of each kind.")
    app.run(main)
