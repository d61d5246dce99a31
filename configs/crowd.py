"""Three datasets as one crowd: NSD, fMRI-on-ImageNet and vim-1.

What:    One encoder for the 8 subjects of NSD, the 5 of fMRI-on-ImageNet (Generic
         Object Decoding) and those of vim-1, whose pictures are grey; all else as
         nsd8.py. Subjects are named DATASET-SUBJECT: nsd-subj01, god-subject1, vim1-s1.
Command: python -m ubrain_jax.main --config=configs/crowd.py --workdir=runs/crowd
         --config.data.crowd=nsd.zarr,god.zarr,vim1.zarr
Cost:    Not measured. Counted: 25 TFLOP a step, 2,200 steps an epoch (NSD is 96% of the
         training images); about 1 hour on one H200 at 45% of its peak. Memory as
         nsd8.py and 3 kB for each voxel of the two other stores.
Expect:  Not measured. NSD subjects should score as with nsd8.py: their images are drawn
         as often, but for 1 in 25.
Checked: 2026-11-25: builds and parses; never trained here. Joint training of two small
         stores is tested (tests/test_joint_run.py).
"""

from ubrain_jax import config


def get_config():
    c = config.default()

    c.data.crowd = ("nsd.zarr", "god.zarr", "vim1.zarr")
    # In proportion to images. 0.5 would show those of GOD 6 times as often, and those
    # of NSD 0.8 times.
    c.data.store_power = 1.0
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
