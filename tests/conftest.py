"""Settings and small crowds that the tests share."""

import importlib.util
import os
import tempfile

# Before JAX starts: eight devices, so that every test may build a mesh.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests and the commands they start compile the same few programs: once.
_CACHE = tempfile.TemporaryDirectory(prefix="compiled-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import numpy as np
import pytest

from ubrain_jax import config, crowd
from ubrain_jax.datasets import schema

jax.config.update("jax_default_matmul_precision", "highest")


def pytest_runtest_setup(item):
    if item.get_closest_marker("parity") and not importlib.util.find_spec("torch"):
        pytest.skip("needs torch: make parity")


def make_dataset(
    num_subjects=2, num_own=12, num_shared=4, voxels=(37, 23, 50), px=28, seed=0
) -> schema.Dataset:
    """A crowd made of noise: valid in every field, small, and of uneven sizes."""
    rng = np.random.default_rng(seed)
    shared = [f"t/{i:04d}" for i in range(num_shared)]

    def subjects():
        for k in range(num_subjects):
            own = [f"t/{1000 * (k + 1) + i}" for i in range(num_own)]
            ids = shared + own
            split = np.array(["test"] * num_shared + ["train"] * num_own)
            split[-3:] = "val"
            v = voxels[k]
            roi = np.zeros((v, 2), bool)
            roi[: v // 2, 0] = roi[v // 2 :, 1] = True
            yield schema.Subject(
                f"t-subj{k + 1:02d}",
                rng.standard_normal((len(ids), v)).astype(np.float32),
                ids,
                split,
                np.full(len(ids), 3, np.uint8),
                np.linspace(0.1, 1, v).astype(np.float32),
                np.stack([np.arange(v)] * 3, 1).astype(np.int32),
                roi,
                ("first", "second"),
                {"dataset": "t", "space": "none", "simulated": True},
            )

    def read_images(ids):
        for image_id in ids:
            noise = np.random.default_rng([*image_id.encode()])
            yield noise.integers(0, 256, (px + 4, px + 8, 3), np.uint8)

    return schema.Dataset("t", subjects(), read_images, [], [])


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> str:
    """A written store of two subjects, 60 voxels, 28-pixel pictures."""
    path = tmp_path_factory.mktemp("crowd") / "t.zarr"
    crowd.write(str(path), make_dataset(), image_px=28)
    return str(path)


@pytest.fixture(scope="session", name="make_dataset")
def make_dataset_of_noise():
    """`make_dataset`, for test modules, which cannot import this file."""
    return make_dataset


@pytest.fixture(scope="session")
def tiny(store):
    """Makes a tiny experiment on that store, in float32 with random weights."""

    def make(**changes) -> config.Experiment:
        return config.from_dict(tiny_settings(store, **changes), "test")

    return make


@pytest.fixture(scope="session")
def tiny_dict(store):
    """The settings of `tiny` as nested dicts."""
    return lambda **changes: tiny_settings(store, **changes)


@pytest.fixture
def dataset_store(tmp_path):
    """Writes another store of noise, of other voxels; returns its path."""

    def make(**changes) -> str:
        path = str(tmp_path / f"other-{len(list(tmp_path.iterdir()))}.zarr")
        voxels = (36, 24, 50)
        crowd.write(path, make_dataset(voxels=voxels, **changes), image_px=28)
        return path

    return make


def tiny_settings(store: str, **changes) -> dict:
    """Settings of the tiny experiment; `section={...}` changes some."""
    settings = {
        "data": {
            "crowd": (store,),
            "batch_images": 8,
            "voxels_per_image": 16,
            "stripes": 4,
            "read_threads": 1,
        },
        "backbone": {
            "name": "dinov2-small",
            "weights": "random",
            "taps": (1, 2),
            "image_px": 28,
            "dtype": "float32",
        },
        "adapter": {"rank": 2},
        "head": {"embed_dim": 8, "channels": 8, "mlp_ratio": 2, "dtype": "float32"},
        "train": {"steps": 6, "eval_every_steps": 0, "checkpoint_every_steps": 2},
        "mesh": {"data": 1, "voxel": 1},
        "evaluate": {"batch_images": 4, "chunk_voxels": 16, "report_queries": 2},
    }
    for section, values in changes.items():
        settings[section] = {**settings.get(section, {}), **values}
    return settings
