"""A simulated crowd of three datasets on two CPU cores: the experiments in small.

What:    Eight simulated subjects (as NSD, fMRI-on-ImageNet and vim-1) on the small
         network that comes with the package, without adapter. No brain was measured.
Command: make crowd-demo
Cost:    9 minutes and 1.1 GB on two busy CPU cores, simulating and preparing included.
Expect:  Median r / ceiling over 5 seeds, all eight subjects together: nsd-subj01 .76,
         nsd-subj03 (three times the noise) .66, .62 alone; vim1-s1 .56, vim1-s2 .63.
         make crowd-demo, where nsd-subj01 joins from 100 pictures: .63.
Checked: 2026-11-25, make crowd-demo in a new clone: nsd-subj02 .72, nsd-subj03 .64,
         god .62 .52 .63, vim1 .57 .63; nsd-subj01 from 100 pictures .63.
"""

from ubrain_jax import config


def get_config():
    c = config.default()

    c.data.crowd = ("crowd/nsd.zarr", "crowd/god.zarr", "crowd/vim1.zarr")
    c.data.batch_images = 32
    c.data.voxels_per_image = 320
    c.data.stripes = 8

    c.backbone.name = ""
    c.backbone.weights = "bundled"
    c.backbone.taps = (2, 4, 6)
    c.backbone.image_px = 112
    c.backbone.dtype = "float32"
    c.backbone.remat = "none"

    c.adapter.kind = "none"

    c.head.embed_dim = 64
    c.head.channels = 64
    c.head.mlp_ratio = 2
    c.head.dropout = 0.25
    c.head.dtype = "float32"
    c.head.remat = "off"

    c.loss.kind = "paper"
    c.loss.alpha = 0.1

    c.optim.learning_rate = 2e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 50

    c.train.steps = 500
    c.train.seed = 0
    c.train.eval_every_steps = 100
    c.train.select = "best"
    c.train.checkpoint_every_steps = 250
    c.train.log_every_steps = 50

    c.evaluate.batch_images = 25
    c.evaluate.val_images = 64
    c.evaluate.report_queries = 2
    return c
