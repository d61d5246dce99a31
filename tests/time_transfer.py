"""Times a transfer step on cached features beside steps that run the backbone.

The same step with features computed in it, and a whole training step (LoRA, head and
embeddings learned).

    python -m tests.time_transfer --backbone=dinov2-giant --images=4 --voxels=5000

The network has random weights of the real geometry. The steps take turns, so that all
see the same machine; the ratios of their medians are what counts. Not a test: pytest
does not collect it.
"""

import dataclasses
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from ubrain_jax import batches, config, crowd, experiments, fit, optim, train
from ubrain_jax.datasets import schema


def dataset(voxels: int, count: int) -> schema.Dataset:
    """Noise for one subject."""
    rng = np.random.default_rng(0)
    split = np.array(["train"] * (count - 6) + ["val"] * 3 + ["test"] * 3)
    subject = schema.Subject(
        "new",
        rng.standard_normal((count, voxels)).astype(np.float32),
        [f"t/{i}" for i in range(count)],
        split,
        np.ones(count, np.uint8),
        np.full(voxels, np.nan, np.float32),
        np.zeros((voxels, 3), np.int32),
        np.zeros((voxels, 0), bool),
        (),
        {"dataset": "noise"},
    )

    def read_images(ids):
        return (rng.integers(0, 256, (224, 224, 3), np.uint8) for _ in ids)

    return schema.Dataset("noise", iter([subject]), read_images, [], [])


def main(argv: list[str]) -> None:
    """Makes the run, times, prints."""
    del argv
    values = flags.FLAGS
    images, voxels = values.images, values.voxels
    base = config.Experiment()
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/new.zarr"
        crowd.write(path, dataset(voxels, images + 6))
        experiment = dataclasses.replace(
            base,
            data=dataclasses.replace(
                base.data,
                crowd=(path,),
                batch_images=images,
                voxels_per_image=voxels,
            ),
            backbone=dataclasses.replace(
                base.backbone,
                name=values.backbone,
                weights="random",
                taps=tuple(int(t) for t in values.taps),
                dtype=values.dtype,
                remat="none",
            ),
            head=dataclasses.replace(base.head, dtype=values.dtype),
            train=dataclasses.replace(base.train, steps=1),
        )
        run = experiments.prepare_run(experiment, jax.devices()[:1])
        pictures = crowd.read_pictures(run.stores, np.arange(images))
        response = crowd.read_responses(run.stores.subjects[0], np.arange(images))
        batch = batches.dataset(run.stores, experiment.data, 0)[0]
    settings = fit.Settings()
    step = fit.make_step(run, settings)
    params = {k: v for k, v in run.parts.trainable.items()}
    shared = {k: v for k, v in params.items() if k != "table"}
    fixed, table = (shared, run.parts.frozen), params["table"]
    stripes = experiment.data.stripes
    arranged = fit._arrange(response, stripes)
    weight = fit._arrange(np.ones((1, voxels), np.float32), stripes)[0]

    features_of = jax.jit(
        lambda params, frozen, x: nnx.merge(run.parts.graph, params, frozen).features(x)
    )
    key, pull = jax.random.key(0), np.float32(0)
    optimiser = optim.make(experiment.optim, 1)
    whole, places = train.initial_state(run, optimiser)
    train_step = train.make_step(run, optimiser, places)
    drawn = train.put_batch(run.mesh, batch)
    moments = optax.adam(0.0).init(table)
    states = {
        "fit": fit.State(jnp.zeros((), jnp.int32), table + 0, moments),
        "train": whole,
    }
    cached = np.asarray(features_of(params, run.parts.frozen, pictures))

    def timed(kind: str) -> float:
        began = time.monotonic()
        if kind == "training step":
            states["train"], loss = train_step(states["train"], run.parts.frozen, drawn)
        else:
            features = cached
            if kind == "with the backbone":
                features = features_of(params, run.parts.frozen, pictures)
            given = fit.Batch(features, arranged, weight, None)
            states["fit"], loss = step(states["fit"], table, fixed, pull, given, key)
        loss.block_until_ready()
        return time.monotonic() - began

    kinds = ["cached", "with the backbone", "training step"]
    for kind in kinds * 2:  # compile, for arrays of the host and of the device
        timed(kind)
    times = {kind: [] for kind in kinds}
    for _ in range(values.repeats):
        for kind in kinds:
            times[kind].append(timed(kind))
    print(f"{values.backbone}, {images} images, {voxels} voxels, {values.dtype}:")
    fast = statistics.median(times["cached"])
    for kind in kinds:
        middle = statistics.median(times[kind])
        print(
            f"{kind}: {middle:.3f} s ({min(times[kind]):.3f}..{max(times[kind]):.3f}), "
            f"{middle / fast:.1f} times the cached"
        )


if __name__ == "__main__":
    flags.DEFINE_string("backbone", "dinov2-giant", "Geometry.")
    flags.DEFINE_list("taps", ["1", "6", "12", "18", "24"], "Blocks, 1-based.")
    flags.DEFINE_integer("images", 4, "In a step.")
    flags.DEFINE_integer("voxels", 5000, "Of the new subject, all in a step.")
    flags.DEFINE_string("dtype", "float32", "Of backbone and head.")
    flags.DEFINE_integer("repeats", 5, "Of each step.")
    app.run(main)
