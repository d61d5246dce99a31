"""One brain of the Natural Scenes Dataset: the single-subject control.

What:    Subject 1 of NSD alone (39,548 voxels on fsaverage); all else as nsd8.py.
Command: python -m ubrain_jax.main --config=configs/nsd1.py --workdir=runs/nsd1
         --config.data.crowd=nsd.zarr
Cost:    Not measured. Counted: 25 TFLOP a step, 267 steps an epoch; about 8 minutes
         on one H200 at 45% of its peak, 1.4 GB of frozen weights.
Expect:  Not measured. The authors print median r .54 for subject 1 trained with the
         other seven; one subject alone should stay below that.
Checked: 2026-11-23: builds and parses; never trained to the end here.
"""

from ubrain_jax import config


def get_config():
    c = config.default()

    c.data.crowd = ("nsd.zarr",)
    c.data.subjects = ("nsd-subj01",)
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
