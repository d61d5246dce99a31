"""A bundle of random numbers: valid in every field, and small."""

import hashlib

import numpy as np

from ubrain_jax import config
from ubrain_jax.backbone import dinov2
from ubrain_jax.model import bundle, encoder

GEOMETRY = dinov2.Geometry(32, 3, 2, "gelu", 64, image_px=28)


def make(tiny_dict, **changes) -> bundle.Bundle:
    """Random numbers in the shapes of a tiny encoder."""
    experiment = config.from_dict(tiny_dict(), "test")
    rng = np.random.default_rng(0)
    shared: dict = {}
    for name, shape in encoder.shared_shapes(experiment, GEOMETRY).items():
        part, leaf = name.split("/")
        values = rng.standard_normal(shape).astype(np.float32)
        shared.setdefault(part, {})[leaf] = values
    subjects = tuple(
        bundle.Subject(
            name,
            rng.standard_normal((voxels, 8)).astype(np.float32),
            rng.integers(0, 9, (voxels, 3)).astype(np.int32),
            rng.random((voxels, 2)) < 0.5,
            ("V1v", "V1d"),
            rng.random(voxels).astype(np.float32),
            {"dataset": "nsd", "space": "fsaverage"},
            {},
        )
        for name, voxels in (("nsd-subj01", 7), ("lab-ann", 4))
    )
    seen = {hashlib.sha256(b"x").hexdigest(): "nsd/00001"}
    return bundle.Bundle(
        experiment,
        shared,
        subjects,
        ("nsd-subj01",),
        bundle.Backbone("a/b", {"model.safetensors": "0" * 64}, False, GEOMETRY),
        seen,
        {"step": 3},
    )._replace(**changes)
