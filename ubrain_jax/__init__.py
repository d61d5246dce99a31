"""Universal Brain Encoder in JAX: predict any voxel of any brain for any image."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`ubrain_jax.UniversalEncoder`, which needs JAX: commands that read files do not."""
    if name == "UniversalEncoder":
        from ubrain_jax import universal

        return universal.UniversalEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
