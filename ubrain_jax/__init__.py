"""Universal Brain Encoder in JAX: predict any voxel of any brain for any image."""

__version__ = "0.1.0"
