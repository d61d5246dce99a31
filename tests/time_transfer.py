"""Times a transfer step on cached features beside the same step with the backbone.

    python -m tests.time_transfer --backbone=dinov2-giant --images=4 --voxels=5000

The network has random weights of the real geometry. The two steps take turns, so that
both see the same machine; the ratio of their medians is what counts. Not a test: pytest
does not collect it.
"""

import dataclasses
import statistics
import tempfile
import time

import jax
import numpy as np
from absl import app, flags

from ubrain_jax import config, crowd, experiments, fit
from ubrain_jax.datasets import schema

_BACKBONE = flags.DEFINE_string("backbone", "dinov2-giant", "Geometry.")
_TAPS = flags.DEFINE_list("taps", ["1", "6", "12", "18", "24"], "Blocks, 1-based.")
_IMAGES = flags.DEFINE_integer("images", 4, "In a step.")
_VOXELS = flags.DEFINE_integer("voxels", 5000, "Of the new subject, all in a step.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Of backbone and head.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Of each step.")


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
    del argv
    images, voxels = _IMAGES.value, _VOXELS.value
    base = config.Experiment()
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/new.zarr"
        crowd.write(path, dataset(voxels, images + 6))
        experiment = dataclasses.replace(
            base,
            data=dataclasses.replace(base.data, crowd=(path,), batch_images=images),
            backbone=dataclasses.replace(
                base.backbone,
                name=_BACKBONE.value,
                weights="random",
                taps=tuple(int(t) for t in _TAPS.value),
                dtype=_DTYPE.value,
                remat="none",
            ),
            head=dataclasses.replace(base.head, dtype=_DTYPE.value),
            train=dataclasses.replace(base.train, steps=1),
        )
        run = experiments.prepare_run(experiment, jax.devices()[:1])
        pictures = crowd.read_pictures(run.stores, np.arange(images))
        response = crowd.read_responses(run.stores.subjects[0], np.arange(images))
    settings = fit.Settings()
    step = fit.make_step(run, settings)
    params = {k: v for k, v in run.parts.trainable.items()}
    shared = {k: v for k, v in params.items() if k != "table"}
    fixed, table = (shared, run.parts.frozen), params["table"]
    stripes = experiment.data.stripes
    arranged = fit._arrange(response, stripes)
    weight = fit._arrange(np.ones((1, voxels), np.float32), stripes)[0]

    from flax import nnx

    features_of = jax.jit(
        lambda params, frozen, x: nnx.merge(run.parts.graph, params, frozen).features(x)
    )
    key, pull = jax.random.key(0), np.float32(0)

    def timed(with_backbone: bool, state, features):
        began = time.monotonic()
        if with_backbone:
            features = features_of(params, run.parts.frozen, pictures)
        batch = fit.Batch(features, arranged, weight, None)
        state, loss = step(state, table, fixed, pull, batch, key)
        loss.block_until_ready()
        return time.monotonic() - began, state

    import optax

    moments = optax.adam(0.0).init(table)
    state = fit.State(jax.numpy.zeros((), jax.numpy.int32), table + 0, moments)
    cached = np.asarray(features_of(params, run.parts.frozen, pictures))
    for kind in (True, False):  # compile
        _, state = timed(kind, state, cached)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(_REPEATS.value):
        for kind in (True, False):
            seconds, state = timed(kind, state, cached)
            times[kind].append(seconds)
    slow, fast = (statistics.median(times[kind]) for kind in (True, False))
    print(
        f"{_BACKBONE.value}, {images} images, {voxels} voxels, {_DTYPE.value}: with the "
        f"backbone {slow:.3f} s, cached {fast:.3f} s, ratio {slow / fast:.1f} "
        f"(median of {_REPEATS.value}; ranges {min(times[True]):.3f}.."
        f"{max(times[True]):.3f}, {min(times[False]):.3f}..{max(times[False]):.3f})"
    )


if __name__ == "__main__":
    app.run(main)
