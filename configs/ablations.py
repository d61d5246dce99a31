"""What each part of the encoder is worth: one setting changed at a time.

What:    nsd8.py, scored at its best validation, and 20 changes of it: embedding size,
         positional code, functional attention, adapter kind and rank, weight of the
         loss, number of taps, voxels per image.
Command: python -m ubrain_jax.ablate --config=configs/ablations.py
         --workdir=runs/ablations --seeds=0,1,2 --config.data.crowd=nsd.zarr
Cost:    Not measured. 21 runs for each seed, each about as nsd8.py; --only names some
         of sweep(), and --config.train.epochs=5 makes all of them shorter.
Expect:  Not measured here on brains. Reviewers of the paper asked for these; it prints
         none of them.
Checked: 2026-11-25: builds, and every change parses; never trained to the end here.
         Two changes of a tiny simulated run were (tests/test_ablate.py).
"""

from ubrain_jax import config


def get_config():
    c = config.default()

    c.data.crowd = ("nsd.zarr",)
    c.data.batch_images = 32
    c.data.voxels_per_image = 5000
    c.data.stripes = 8

    c.backbone.name = "dinov2-giant"
    c.backbone.weights = "facebook/dinov2-giant"
    c.backbone.taps = (1, 6, 12, 18, 24)
    c.backbone.image_px = 224
    c.backbone.dtype = "bfloat16"

    c.adapter.kind = "lora"
    c.adapter.rank = 16
    c.adapter.alpha = 16.0

    c.head.embed_dim = 256
    c.head.channels = 128
    c.head.mlp_ratio = 4
    c.head.dropout = 0.25
    c.head.dtype = "bfloat16"

    c.loss.kind = "paper"
    c.loss.alpha = 0.1

    c.optim.learning_rate = 1e-3

    c.train.epochs = 30.0
    c.train.seed = 0
    c.train.eval_every_steps = 2000
    c.train.select = "best"
    c.train.checkpoint_every_steps = 1000
    return c


def sweep():
    for size in (32, 64, 128, 512):
        yield f"embed-{size}", {"head.embed_dim": size}
    yield "position-off", {"head.position": False}
    yield "functional-shared", {"head.functional": "shared"}
    yield "adapter-none", {"adapter.kind": "none"}
    for rank in (4, 64):  # alpha / rank stays 1
        yield f"lora-{rank}", {"adapter.rank": rank, "adapter.alpha": float(rank)}
    residual = {"adapter.kind": "residual", "adapter.rank": 7, "adapter.alpha": 0.01}
    yield "residual-7", residual
    for alpha in (0.0, 0.5, 1.0):  # cosine alone .. MSE alone
        yield f"alpha-{alpha:g}", {"loss.alpha": alpha}
    for taps in ((24,), (12, 24), (1, 12, 24), (1, 4, 8, 12, 16, 20, 24)):
        yield f"taps-{len(taps)}", {"backbone.taps": taps}
    for voxels in (500, 1000, 10000):  # stripes of 8 divide 504, not 500
        voxels += -voxels % 8
        yield f"voxels-{voxels}", {"data.voxels_per_image": voxels}
