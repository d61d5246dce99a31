"""Eight brains of the Natural Scenes Dataset, as in the paper.

What:    One encoder for the 8 subjects of NSD: ViT-g/14 up to block 24, LoRA on the
         attention output projections, 315,997 voxels on fsaverage, loss of the paper.
Command: python -m ubrain_jax.main --config=configs/nsd8.py --workdir=runs/nsd8
         --config.data.crowd=nsd.zarr
Cost:    Not measured. Counted: 25 TFLOP a step, 2,100 steps an epoch; about 1 hour on
         one H200 at 45% of its peak, 1.4 GB of frozen weights, 1 GB of table and Adam.
Expect:  Not measured. The authors print median r .54 .57 .59 .43 for subjects 1 2 5 7
         on the shared 1000 images, with their released preset.
Checked: 2026-11-23: first steps on a small NSD-format folder with ViT-g geometry and
         random weights (docs/log.md); never trained to the end here.
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
    c.train.checkpoint_every_steps = 1000
    return c
