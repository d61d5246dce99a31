"""The trainable low-rank change of the frozen backbone.

Only the arrays and their start; what they do inside a block is
`backbone.dinov2.Adapter`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ubrain_jax import config
from ubrain_jax.backbone import dinov2


class LowRank(nnx.Module):
    """Arrays a (K, width, r) and b (K, r, width) for K blocks.

    Training starts at the pretrained network. For "lora" `a` is uniform within
    1 / sqrt(width), as kaiming-uniform with slope sqrt 5 gives, and `b` is zero. For
    "residual" `a` is zero and `b` uniform within 1 / sqrt(r), the same rule for its r
    inputs: so the authors' released code begins.
    """

    def __init__(self, settings: config.Adapter, num_blocks: int, width: int, key):
        self.kind = settings.kind
        self.scale = settings.alpha / settings.rank
        rank = settings.rank
        down, up = (num_blocks, width, rank), (num_blocks, rank, width)
        shape, inputs = (up, rank) if self.kind == "residual" else (down, width)
        bound = inputs**-0.5
        drawn = jax.random.uniform(key, shape, jnp.float32, -bound, bound)
        if self.kind == "residual":
            a, b = jnp.zeros(down, jnp.float32), drawn
        else:
            a, b = drawn, jnp.zeros(up, jnp.float32)
        self.a, self.b = nnx.Param(a), nnx.Param(b)

    def __call__(self) -> dinov2.Adapter:
        """The form that the backbone takes."""
        return dinov2.Adapter(self.kind, self.a[...], self.b[...], self.scale)
