"""Universal Brain Encoder in JAX: predict any voxel of any brain for any image."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`UniversalEncoder` when asked for: it needs JAX, which readers do not."""
    if name == "UniversalEncoder":
        from ubrain_jax import universal

        return universal.UniversalEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
