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

    `a` is uniform within 1 / sqrt(width), as kaiming-uniform with slope sqrt 5 gives,
    and `b` is zero: training starts at the pretrained network.
    """

    def __init__(self, settings: config.Adapter, num_blocks: int, width: int, key):
        self.kind = settings.kind
        self.scale = settings.alpha / settings.rank
        shape = (num_blocks, width, settings.rank)
        bound = width**-0.5
        self.a = nnx.Param(jax.random.uniform(key, shape, jnp.float32, -bound, bound))
        self.b = nnx.Param(jnp.zeros((num_blocks, settings.rank, width), jnp.float32))

    def __call__(self) -> dinov2.Adapter:
        """The form that the backbone takes."""
        return dinov2.Adapter(self.kind, self.a[...], self.b[...], self.scale)
