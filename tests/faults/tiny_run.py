"""A run of the real command that takes seconds: random weights, pictures of noise."""

import pathlib

import numpy as np

from ubrain_jax import crowd
from ubrain_jax.datasets import schema

_CONFIG = """from ubrain_jax import config


def get_config():
    c = config.default()
    c.data.crowd = ({store!r},)
    c.data.batch_images = 4
    c.data.voxels_per_image = 16
    c.data.stripes = 4
    c.data.read_threads = 1
    c.backbone.name = "dinov2-small"
    c.backbone.weights = "random"
    c.backbone.taps = (1,)
    c.backbone.image_px = 28
    c.backbone.dtype = "float32"
    c.adapter.rank = 2
    c.head.embed_dim = 8
    c.head.channels = 8
    c.head.mlp_ratio = 2
    c.head.dtype = "float32"
    c.train.epochs = None
    c.train.steps = {steps}
    c.train.checkpoint_every_steps = {save_every}
    c.train.log_every_steps = 1
    c.train.eval_every_steps = 0
    c.evaluate.batch_images = 4
    c.evaluate.report_queries = 0
    return c
"""


def write(folder: pathlib.Path, steps: int, save_every: int) -> pathlib.Path:
    """A store and a config that uses it; returns the config's path."""
    rng = np.random.default_rng(0)
    count, voxels = 16, 40
    subject = schema.Subject(
        "noise-s1",
        rng.standard_normal((count, voxels)).astype(np.float32),
        [f"noise/{i}" for i in range(count)],
        np.array(["train"] * 12 + ["test"] * 4),
        np.ones(count, np.uint8),
        np.full(voxels, np.nan, np.float32),
        np.zeros((voxels, 3), np.int32),
        np.zeros((voxels, 0), bool),
        (),
        {"dataset": "noise", "simulated": True},
    )

    def read_images(ids):
        return (rng.integers(0, 256, (28, 28, 3), np.uint8) for _ in ids)

    store = str(folder / "noise.zarr")
    crowd.write(
        store,
        schema.Dataset("noise", iter([subject]), read_images, [], []),
        image_px=28,
    )
    path = folder / "tiny.py"
    text = _CONFIG.format(store=store, steps=steps, save_every=save_every)
    path.write_text(text, encoding="utf-8")
    return path
