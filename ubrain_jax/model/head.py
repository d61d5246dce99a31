"""From the taps of one image to the response of one voxel: cross-attention.

`Head.project` brings every tap to C channels; `Head.respond` lets one voxel, through
its embedding, look at where (spatial attention, one map per tap) and at what
(functional attention over taps and channels). Both are written for one image, the
second for one voxel; `jax.vmap` adds voxels, then images. Products are matrix
products throughout, so that the batched program is a handful of GEMMs.

Reference: Beliy et al. 2024, arXiv:2406.12179, section 3. What its text leaves open
follows the authors' released code (docs/decisions/0003-model.md).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ubrain_jax import config
from ubrain_jax.backbone import dinov2

# Of LayerNorm over channels, as in torch's nn.LayerNorm.
_EPS = 1e-5


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """LayerNorm over the last axis in float32: two passes, variance after centring."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = x - jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(centred * centred, -1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + _EPS) * scale + bias


@jax.checkpoint
def weighted_gelu(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Sum of w_h gelu(x_h): (H,), (H,) -> (); backward from these two alone."""
    return jnp.sum(weights * dinov2.gelu(x))


class Head(nnx.Module):
    """Weights shared by all voxels, each stacked over the L taps.

    Args:
        settings: Sizes: E, C, hidden width, dropout, dtype.
        num_taps: L.
        width: Channels of the backbone.
        num_tokens: P, the tokens of a tap that the head sees.
        key: For the initial values: linear layers uniform within 1 / sqrt(inputs),
            positions and functional embedding normal with deviation 1 / (2 sqrt 32).
    """

    def __init__(
        self, settings: config.Head, num_taps: int, width: int, num_tokens: int, key
    ):
        e, c = settings.embed_dim, settings.channels
        hidden = settings.mlp_ratio * c
        keys = iter(jax.random.split(key, 12))

        def linear(inputs: int, outputs: int) -> tuple[nnx.Param, nnx.Param]:
            bound = inputs**-0.5

            def draw(*shape):
                shape = (num_taps, *shape)
                value = jax.random.uniform(
                    next(keys), shape, jnp.float32, -bound, bound
                )
                return nnx.Param(value)

            return draw(inputs, outputs), draw(outputs)

        def normal(*shape: int) -> nnx.Param:
            value = jax.random.normal(next(keys), shape, jnp.float32)
            return nnx.Param(value / (2 * math.sqrt(32)))

        self.num_taps = num_taps
        self.dropout = settings.dropout
        # Of 'auto' a training step makes what its memory allows.
        self.remat = settings.remat != "off"
        self.dtype = settings.dtype
        self.norm_in_scale = nnx.Param(jnp.ones((num_taps, width)))
        self.norm_in_bias = nnx.Param(jnp.zeros((num_taps, width)))
        self.in_kernel, self.in_bias = linear(width, c)
        self.query_kernel, self.query_bias = linear(e, e)
        # Without a bias: it would shift all logits alike and change nothing.
        self.key_kernel, _ = linear(c, e)
        position = normal(num_tokens, e)  # one for all taps
        # Drawn either way, so that the other weights do not depend on the choice.
        self.has_position = settings.position
        if self.has_position:
            self.position = position
        self.norm_scale = nnx.Param(jnp.ones((num_taps, c)))
        self.norm_bias = nnx.Param(jnp.zeros((num_taps, c)))
        self.fc1_kernel, self.fc1_bias = linear(c, hidden)
        self.fc2_kernel, self.fc2_bias = linear(hidden, c)
        self.is_shared = settings.functional == "shared"
        self.functional = normal(num_taps, *(() if self.is_shared else (e,)), c)

    def _dot(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Product in the head's dtype, summed and returned in float32."""
        return jnp.matmul(
            x.astype(self.dtype),
            y.astype(self.dtype),
            preferred_element_type=jnp.promote_types(self.dtype, jnp.float32),
        )

    def project(self, taps: jax.Array) -> jax.Array:
        """Taps of one image (L, P, width), any float -> features (L, P, C) float32."""

        def one(tap, scale, bias, kernel, kernel_bias):
            x = layer_norm(tap, scale[None], bias[None])
            return self._dot(x, kernel) + kernel_bias[None]

        return jax.vmap(one)(
            taps,
            self.norm_in_scale[...],
            self.norm_in_bias[...],
            self.in_kernel[...],
            self.in_bias[...],
        )

    def spatial_attention(
        self, tap: Any, features: jax.Array, embedding: jax.Array
    ) -> jax.Array:
        """Where one voxel looks: features (P, C) of one tap, (E,) -> weights (P,).

        softmax over tokens of (K q), without 1 / sqrt(E); q = e Wq + bq and
        K = F Wk + position, where there is one (a bias of K would cancel in the
        softmax). K Wq^T is made first: it does not depend on the voxel, so under vmap
        it is made once for each image.
        """
        keys = self._dot(features, self.key_kernel[tap])  # (P, E)
        if self.has_position:
            keys = keys + self.position[...]
        folded = self._dot(keys, self.query_kernel[tap].T)  # (P, E)
        shift = self._dot(keys, self.query_bias[tap])  # (P,)
        # The voxel first: under vmap the logits of a voxel then lie in a row.
        return jax.nn.softmax(self._dot(embedding, folded.T) + shift)

    def _contribution(
        self,
        tap: Any,
        weights: jax.Array,
        features: jax.Array,
        embedding: jax.Array,
        key: jax.Array | None,
        is_common: bool = False,
    ) -> jax.Array:
        """What one tap adds to the response: weights (P,), features (P, C) -> ()."""
        s = self._dot(weights, features)  # (C,)
        u = layer_norm(s, self.norm_scale[tap], self.norm_bias[tap])
        if key is not None and self.dropout > 0:
            kept = jax.random.bernoulli(
                jax.random.fold_in(key, tap), 1 - self.dropout, u.shape
            )
            u = jnp.where(kept, u / (1 - self.dropout), 0)
        hidden = self._dot(u, self.fc1_kernel[tap]) + self.fc1_bias[tap]
        looks_at = self.functional_attention(tap, embedding)  # (C,)
        # Under vmap sums of products are elementwise over voxels whatever their form.
        if is_common:
            on_hidden = self._dot(looks_at, self.fc2_kernel[tap].T)  # (hidden,)
            u = u + self.fc2_bias[tap]
            return jnp.sum(looks_at * u) + weighted_gelu(on_hidden, hidden)
        m = (
            u
            + self._dot(dinov2.gelu(hidden), self.fc2_kernel[tap])
            + self.fc2_bias[tap]
        )
        return jnp.sum(looks_at * m)

    def functional_attention(self, tap: Any, embedding: jax.Array) -> jax.Array:
        """At what one voxel looks in a tap: (E,) -> signed weights (C,)."""
        if self.is_shared:
            return self.functional[tap]
        return self._dot(embedding, self.functional[tap])

    def look(self, features: jax.Array, embedding: jax.Array) -> tuple:
        """Where one voxel looks in one image, and what each tap adds to its response.

        Args:
            features: (L, P, C) from `project`.
            embedding: (E,) of the voxel.

        Returns:
            Spatial attention (L, P), each tap summing to 1, and contributions (L,),
            summing to `respond`.
        """
        weights, added = [], []
        for tap in range(self.num_taps):
            weights.append(self.spatial_attention(tap, features[tap], embedding))
            added.append(
                self._contribution(tap, weights[-1], features[tap], embedding, None)
            )
        return jnp.stack(weights), jnp.stack(added)

    def respond(
        self,
        features: jax.Array,
        embedding: jax.Array,
        key: jax.Array | None,
        *,
        is_common: bool = False,
    ) -> jax.Array:
        """Response of one voxel to one image.

        Args:
            features: (L, P, C) from `project`.
            embedding: (E,) of the voxel.
            key: For dropout; None: no dropout.
            is_common: Whether images have the voxel in common. The second product of
                the MLP is then one of the voxel alone, which `jax.vmap` over images
                makes once for all of them.

        Returns:
            Scalar, float32, in the units of the responses (z-scores).
        """

        def one_tap(tap: Any, features: jax.Array, embedding: jax.Array) -> jax.Array:
            weights = self.spatial_attention(tap, features, embedding)
            return self._contribution(tap, weights, features, embedding, key, is_common)

        if self.remat:
            # In a scan: side by side, XLA keeps what all taps computed again.
            again = jax.checkpoint(one_tap)
            taps = jnp.arange(self.num_taps)
            start = jnp.zeros((), jnp.promote_types(self.dtype, jnp.float32))
            return jax.lax.scan(
                lambda total, tap: (total + again(*tap, embedding), None),
                start,
                (taps, features),
            )[0]
        taps = range(self.num_taps)
        each = [one_tap(tap, features[tap], embedding) for tap in taps]
        return jnp.sum(jnp.stack(each))
