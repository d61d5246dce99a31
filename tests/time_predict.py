"""Memory and equality of predictions that stream.

    python -m tests.time_predict --images=1000 --voxels=40000 --head=demo

An encoder with random weights is saved, loaded, and predicts random pictures for one
subject; the peak of the process is printed beside the size of the result, and some
pictures are predicted again one at a time.
"""

import argparse
import resource
import sys
import tempfile
import time

import numpy as np

import ubrain_jax
from ubrain_jax import config, experiments, export
from ubrain_jax.model import bundle, card, encoder

HEADS = {
    "demo": {"embed_dim": 64, "channels": 64, "mlp_ratio": 2, "dtype": "float32"},
    "paper": {"dtype": "float32"},
}


def make(head: str, voxels: int, folder: str) -> None:
    """A bundle of one subject with random embeddings, on the bundled backbone."""
    px = {"demo": 112, "paper": 224}[head]
    experiment = config.from_dict(
        {
            "data": {"crowd": ("none",)},
            "backbone": {
                "name": "",
                "weights": "bundled",
                "taps": (1, 2, 3, 4, 6),
                "image_px": px,
                "dtype": "float32",
            },
            "head": HEADS[head],
            "train": {"steps": 1},
        },
        "time_predict",
    )
    network = experiments.load_network(experiment.backbone)
    backbone = export.backbone_of(network.provenance, experiment)
    rng, shared = np.random.default_rng(0), {}
    shapes = encoder.shared_shapes(experiment, backbone.geometry)
    for name, shape in shapes.items():
        part, leaf = name.split("/")
        values = rng.standard_normal(shape).astype(np.float32)
        shared.setdefault(part, {})[leaf] = values / np.sqrt(shape[-1])
    rows = rng.standard_normal((voxels, experiment.head.embed_dim))
    subject = bundle.Subject(
        "simulated",
        rows.astype(np.float32),
        np.full((voxels, 3), -1, np.int32),
        np.zeros((voxels, 0), bool),
        (),
        np.full(voxels, np.nan, np.float32),
        {"dataset": "none"},
        {},
    )
    made = bundle.Bundle(experiment, shared, (subject,), (), backbone, None, {})
    bundle.write(folder, made, card.text(made))


def peak() -> float:
    """Of this process so far, in GB."""
    scale = 1e9 if sys.platform == "darwin" else 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--voxels", type=int, default=40_000)
    parser.add_argument("--head", choices=HEADS, default="demo")
    parser.add_argument("--again", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(args.head, args.voxels, f"{folder}/bundle")
        enc = ubrain_jax.UniversalEncoder.load(f"{folder}/bundle")
    px = enc.config.backbone.image_px
    rng = np.random.default_rng(1)
    shown = rng.integers(0, 256, (args.images, px, px, 3), np.uint8)
    enc.predict(shown[:1], subject="simulated", voxels=[0])
    before, began = peak(), time.monotonic()
    found = enc.predict(shown, subject="simulated")
    seconds = time.monotonic() - began
    print(
        f"{args.head} head: {args.images} images x {args.voxels} voxels in "
        f"{seconds:.0f} s; peak {peak():.2f} GB, {before:.2f} GB before, of which "
        f"pictures {shown.nbytes / 1e9:.2f}, result {found.values.nbytes / 1e9:.2f}"
    )
    some = np.linspace(0, args.images - 1, args.again).astype(int)
    alone = np.concatenate(
        [enc.predict(shown[k], subject="simulated").values for k in some]
    )
    far = np.abs(alone - found.values[some]).max() / found.values.std()
    print(
        f"{args.again} of them one at a time: largest difference {far:.1e} of the "
        "predictions' standard deviation"
    )


if __name__ == "__main__":
    main()
