"""Three simulated brains on a laptop's CPU: the whole line in minutes.

What:    One encoder for the simulated crowd of `python -m ubrain_jax.simulate`, on the
         small network that comes with the package. No brain was measured.
Command: make demo
Cost:    5 minutes and 1.8 GB on 2 CPU cores, of which training 4 minutes.
Expect:  Median r / ceiling .81 .80 .83 for the three subjects, .66 or more in each kind
         of tuning, top-1 of 125 at .98 or more; one seed. tests/check_demo.py holds
         the bounds: .75, .5 and 20 times chance.
Checked: 2026-11-23 in a new clone (docs/log.md).
"""

from ubrain_jax import config


def get_config():
    c = config.default()

    c.data.crowd = ("demo/nsd.zarr",)
    c.data.batch_images = 32
    c.data.voxels_per_image = 400
    c.data.stripes = 8

    c.backbone.name = ""
    c.backbone.weights = "bundled"
    c.backbone.taps = (1, 2, 3, 4, 6)
    c.backbone.image_px = 112
    c.backbone.dtype = "float32"
    c.backbone.remat = "none"

    c.adapter.kind = "lora"
    c.adapter.rank = 4
    c.adapter.alpha = 4.0

    c.head.embed_dim = 64
    c.head.channels = 64
    c.head.mlp_ratio = 2
    c.head.dropout = 0.1
    c.head.dtype = "float32"
    c.head.remat = "off"

    c.loss.kind = "paper"
    c.loss.alpha = 0.1

    c.optim.learning_rate = 2e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 50

    c.train.steps = 700
    c.train.seed = 0
    c.train.eval_every_steps = 350
    c.train.checkpoint_every_steps = 100
    c.train.log_every_steps = 20

    c.evaluate.batch_images = 25
    c.evaluate.val_images = 64
    return c
