"""Eight brains of the Natural Scenes Dataset, with a loss that tells pictures apart.

What:    nsd8.py plus symmetric InfoNCE over the pictures of a batch, which are of one
         subject and share one sample of voxels (docs/contrastive.md).
Command: python -m ubrain_jax.main --config=configs/nsd8_contrastive.py
         --workdir=runs/nsd8_contrastive --config.data.crowd=nsd.zarr
Cost:    As nsd8.py; the terms add 30 MFLOP to the 25 TFLOP of a step (counted).
Expect:  Not measured. Reported by others for a ViT-L/14 encoder of 8 subjects, with an
         entropy term of weight 0.1: 2AFC .870 to .954, top-1 .356 to .695.
Checked: 2026-11-25: builds and parses; never trained to the end here.
"""

from ubrain_jax import config


def get_config():
    c = config.default()

    c.data.crowd = ("nsd.zarr",)
    c.data.batch_images = 32
    c.data.group_images = 32
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
    c.loss.contrastive = 1.0
    c.loss.temperature = 0.1

    c.optim.learning_rate = 1e-3

    c.train.epochs = 30.0
    c.train.seed = 0
    c.train.eval_every_steps = 2000
    c.train.checkpoint_every_steps = 1000
    return c
