"""DINOv2 vision transformers that stop at any block and return what they passed.

All sizes (small, base, large, giant), with and without register tokens. Weights
are frozen: gradients flow through the blocks to an adapter, never to a weight.
Reading weight files is `weights`; turning uint8 pictures into input is `images`.

References:
    Oquab et al., 2023, DINOv2, arXiv:2304.07193.
    Darcet et al., 2023, Vision transformers need registers, arXiv:2309.16588.
    Hu et al., 2021, LoRA, arXiv:2106.09685.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

REMAT = ("none", "cheap", "full")
Attention = Literal["xla", "cudnn"]
Drop = Literal["registers", "last_patches"]
COMPUTE_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Shape of a DINOv2 network.

    Attributes:
        width: Channels of the residual stream.
        depth: Blocks of the whole network, used or not.
        heads: Attention heads; each has width / heads channels.
        mlp: "gelu" (two layers) or "swiglu" (gated, three matrices).
        mlp_width: Hidden channels; of each half, for "swiglu".
        patch: Side of a patch in pixels.
        registers: Number of register tokens, 0 or 4 in released weights.
        image_px: Image side of the position grid in the weight file (518 in released
            weights); images of other sizes resize that grid once, when loading.
        eps: Added to the variance in LayerNorm.
    """

    width: int
    depth: int
    heads: int
    mlp: str
    mlp_width: int
    patch: int = 14
    registers: int = 0
    image_px: int = 518
    eps: float = 1e-6

    def __post_init__(self):
        if self.mlp not in ("gelu", "swiglu"):
            raise ValueError(f"mlp is {self.mlp!r}; expected 'gelu' or 'swiglu'")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        if self.image_px % self.patch:
            raise ValueError(
                f"image_px {self.image_px} is no multiple of the patch {self.patch}"
            )


def _released() -> dict[str, Geometry]:
    plain = {
        "small": Geometry(384, 12, 6, "gelu", 1536),
        "base": Geometry(768, 12, 12, "gelu", 3072),
        "large": Geometry(1024, 24, 16, "gelu", 4096),
        "giant": Geometry(1536, 40, 24, "swiglu", 4096),
    }
    named = {f"dinov2-{size}": geometry for size, geometry in plain.items()}
    for size, geometry in plain.items():
        named[f"dinov2-with-registers-{size}"] = dataclasses.replace(
            geometry, registers=4
        )
    return named


# By the names of the models on the Hugging Face hub, without "facebook/".
GEOMETRIES = _released()


class Adapter(NamedTuple):
    """Trainable low-rank change of the blocks that run (K of them, rank r).

    Build it inside the traced function: `kind` is a word, not an array.

    Attributes:
        kind: "lora": the output projection of the attention becomes
            `y = x W + bias + scale (x a) b`. "residual": after the whole block
            `x <- x + scale (x a) b`, and taps are taken after that.
        a: (K, width, r).
        b: (K, r, width); zeros leave the network unchanged.
        scale: alpha / r.
    """

    kind: str
    a: jax.Array
    b: jax.Array
    scale: float


class Frozen(nnx.Variable):
    """A backbone weight: no gradient, no optimiser state."""


class Blocks(nnx.Module):
    """Weights of the blocks that run, each stacked along a leading depth axis."""

    def __init__(self, weights: Mapping[str, Any]):
        for name, value in weights.items():
            setattr(self, name, Frozen(value))


# Vectors that act in float32 whatever the compute dtype.
_NORMS = ("norm1_scale", "norm1_bias", "norm2_scale", "norm2_bias")


def shapes(
    geometry: Geometry, num_blocks: int, image_px: int
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of `Dinov2`; those of blocks lead with depth.

    Kernels are (in, out). `qkv_kernel` holds query, key and value side by side;
    `up_kernel` of "swiglu" holds the gate, then the value.

    Example:
        >>> shapes(GEOMETRIES["dinov2-small"], 4, 224)["blocks.up_kernel"]
        (4, 384, 1536)
        >>> shapes(GEOMETRIES["dinov2-giant"], 24, 224)["position"]
        (257, 1536)
    """
    if not 1 <= num_blocks <= geometry.depth:
        raise ValueError(f"num_blocks is {num_blocks}; expected 1..{geometry.depth}")
    if image_px % geometry.patch or image_px < geometry.patch:
        raise ValueError(
            f"image_px is {image_px}; expected a multiple of {geometry.patch}"
        )
    width, hidden = geometry.width, geometry.mlp_width
    up = 2 * hidden if geometry.mlp == "swiglu" else hidden
    block = {
        "norm1_scale": (width,),
        "norm1_bias": (width,),
        "qkv_kernel": (width, 3 * width),
        "qkv_bias": (3 * width,),
        "out_kernel": (width, width),
        "out_bias": (width,),
        "scale1": (width,),
        "norm2_scale": (width,),
        "norm2_bias": (width,),
        "up_kernel": (width, up),
        "up_bias": (up,),
        "down_kernel": (hidden, width),
        "down_bias": (width,),
        "scale2": (width,),
    }
    return {
        "patch_kernel": (geometry.patch**2 * 3, width),
        "patch_bias": (width,),
        "cls": (width,),
        "position": (1 + (image_px // geometry.patch) ** 2, width),
        "registers": (geometry.registers, width),
    } | {f"blocks.{name}": (num_blocks, *shape) for name, shape in block.items()}


def storage_dtype(name: str, dtype: Any) -> np.dtype:
    """Type in which the weight `name` is kept when products run in `dtype`.

    Example:
        >>> storage_dtype("blocks.qkv_kernel", "bfloat16").name
        'bfloat16'
        >>> storage_dtype("blocks.norm1_scale", "bfloat16").name
        'float32'
    """
    wanted = jnp.dtype(dtype)
    if wanted.name not in COMPUTE_DTYPES:
        raise ValueError(f"dtype is {wanted.name}; expected float32 or bfloat16")
    if name.removeprefix("blocks.") in _NORMS:
        return np.dtype(np.float32)
    return np.dtype(COMPUTE_DTYPES[wanted.name])


class Dinov2(nnx.Module):
    """The first `num_blocks` blocks of a DINOv2 network, for square images.

    Products and the residual stream run in the dtype of the weights; LayerNorm,
    softmax and the activation of the MLP run in float32.

    Args:
        geometry: Shape of the network.
        weights: Arrays named and shaped as `shapes` says; the positions are already
            resized to `image_px`. The mapping is emptied, so that a large network
            is in memory once.
        num_blocks: Blocks to keep; the last tap.
        image_px: Side of the images in pixels, a multiple of the patch.
        dtype: float32 or bfloat16.

    Raises:
        ValueError: If a weight is missing, unknown or of another shape.
    """

    def __init__(
        self,
        geometry: Geometry,
        weights: dict[str, Any],
        num_blocks: int,
        image_px: int,
        dtype: Any = jnp.float32,
    ):
        expected = shapes(geometry, num_blocks, image_px)
        found = {name: tuple(value.shape) for name, value in weights.items()}
        if found != expected:
            wrong = sorted(
                name
                for name in {*found, *expected}
                if found.get(name) != expected.get(name)
            )
            raise ValueError(
                "weights do not fit: "
                + "; ".join(
                    f"{name} is {found.get(name)}, expected {expected.get(name)}"
                    for name in wrong
                )
            )

        def take(name: str) -> jax.Array:
            return jnp.asarray(weights.pop(name), storage_dtype(name, dtype))

        self.geometry = geometry
        self.num_blocks = num_blocks
        self.image_px = image_px
        self.dtype = jnp.dtype(dtype).name
        self.patch_kernel = Frozen(take("patch_kernel"))
        self.patch_bias = Frozen(take("patch_bias"))
        self.cls = Frozen(take("cls"))
        self.position = Frozen(take("position"))
        self.registers = Frozen(take("registers"))
        self.block_names = tuple(
            name.removeprefix("blocks.")
            for name in expected
            if name.startswith("blocks.")
        )
        self.blocks = Blocks(
            {name: take(f"blocks.{name}") for name in self.block_names}
        )

    @property
    def num_tokens(self) -> int:
        """CLS, registers and patches of one image."""
        return 1 + self.geometry.registers + self.num_patches

    @property
    def num_patches(self) -> int:
        """Patches of one image (P)."""
        return (self.image_px // self.geometry.patch) ** 2

    def embed(self, images: jax.Array) -> jax.Array:
        """Images (B, H, W, 3), normalised -> tokens before block 1 (B, T, width)."""
        side, patch = self.image_px, self.geometry.patch
        if images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"images are {images.shape}; expected (B, {side}, {side}, 3)"
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(
                f"images are {images.dtype}; expected floats from images.normalise"
            )
        batch, grid = images.shape[0], side // patch
        x = images.astype(self.dtype).reshape(batch, grid, patch, grid, patch, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid * grid, patch**2 * 3)
        x = x @ self.patch_kernel[...] + self.patch_bias[...][None, None]
        # Registers have no position, so they come in after it is added.
        position = self.position[...]
        first = jnp.concatenate(
            [(self.cls[...] + position[0])[None], self.registers[...]]
        )
        first = jnp.broadcast_to(first[None], (batch, *first.shape))
        return jnp.concatenate([first, x + position[None, 1:]], 1)

    def __call__(
        self,
        images: jax.Array,
        taps: Sequence[int],
        *,
        adapter: Adapter | None = None,
        remat: str = "cheap",
        attention: Attention = "xla",
    ) -> jax.Array:
        """Residual stream after each tapped block, without the final LayerNorm.

        Args:
            images: (B, H, W, 3) float, normalised, H = W = image_px.
            taps: Increasing 1-based numbers of blocks; nothing runs after the last.
            adapter: Trainable change of the blocks, or None.
            remat: What the backward pass computes again instead of keeping: "none";
                "cheap": LayerNorm and the activation of the MLP (elementwise, so
                no product runs twice); "full": the whole block.
            attention: "xla", or "cudnn" (NVIDIA GPUs, bfloat16 only).

        Returns:
            (L, B, T, width) in the compute dtype; tokens are CLS, registers, then
            patches row by row.

        Raises:
            ValueError: If an argument is out of range or does not fit the weights.
        """
        taps = tuple(taps)
        self._check(taps, adapter, remat, attention)
        blocks = {name: getattr(self.blocks, name)[...] for name in self.block_names}
        step = functools.partial(
            _block, blocks, self.geometry, adapter, remat == "cheap", attention
        )
        if remat == "full":
            step = jax.checkpoint(step, prevent_cse=False)

        def body(x, index_and_low_rank):
            return step(x, *index_and_low_rank), None

        x, start, outputs = self.embed(images), 0, []
        for stop in taps:
            # Blocks are reached by index, not as the scanned operand: slicing a
            # segment off the stack would copy every weight.
            low_rank = None
            if adapter is not None:
                low_rank = (adapter.a[start:stop], adapter.b[start:stop])
            x, _ = jax.lax.scan(body, x, (jnp.arange(start, stop), low_rank))
            outputs.append(x)
            start = stop
        return jnp.stack(outputs)

    def patches(
        self, taps: jax.Array, *, keep_cls: bool = False, drop: Drop = "registers"
    ) -> jax.Array:
        """Drops registers and CLS: (..., T, width) -> (..., P, width).

        Args:
            taps: Output of the call, or one tap of it.
            keep_cls: Keep CLS as the first token: (..., 1 + P, width).
            drop: With `keep_cls`, "last_patches" keeps CLS and the R registers and
                drops the last R patches instead: again 1 + P tokens.
        """
        if drop not in get_args(Drop) or (drop == "last_patches" and not keep_cls):
            raise ValueError(f"drop is {drop!r} with keep_cls={keep_cls}")
        if taps.shape[-2] != self.num_tokens:
            raise ValueError(
                f"taps have {taps.shape[-2]} tokens; expected {self.num_tokens}"
            )
        if drop == "last_patches":
            return taps[..., : 1 + self.num_patches, :]
        patches = taps[..., 1 + self.geometry.registers :, :]
        if not keep_cls:
            return patches
        return jnp.concatenate([taps[..., :1, :], patches], -2)

    def _check(
        self,
        taps: tuple[int, ...],
        adapter: Adapter | None,
        remat: str,
        attention: Attention,
    ) -> None:
        """Refuses arguments that XLA would clamp or that would fail far inside."""
        if not taps or list(taps) != sorted(set(taps)) or taps[0] < 1:
            raise ValueError(f"taps are {taps}; expected increasing numbers from 1")
        if taps[-1] > self.num_blocks:
            raise ValueError(
                f"tap {taps[-1]} lies after the last block; {self.num_blocks} of "
                f"{self.geometry.depth} were loaded"
            )
        if remat not in REMAT:
            raise ValueError(f"remat is {remat!r}; expected one of {REMAT}")
        known = get_args(Attention)
        if attention not in known:
            raise ValueError(f"attention is {attention!r}; expected one of {known}")
        if attention == "cudnn" and self.dtype != "bfloat16":
            raise ValueError("attention 'cudnn' needs a bfloat16 backbone")
        if adapter is None:
            return
        if adapter.kind not in ("lora", "residual"):
            raise ValueError(
                f"adapter.kind is {adapter.kind!r}; expected 'lora' or 'residual'"
            )
        width, rank = self.geometry.width, adapter.a.shape[-1]
        if adapter.a.shape != (self.num_blocks, width, rank) or (
            adapter.b.shape != (self.num_blocks, rank, width)
        ):
            raise ValueError(
                f"adapter.a is {adapter.a.shape} and adapter.b is {adapter.b.shape}; "
                f"expected ({self.num_blocks}, {width}, r) and "
                f"({self.num_blocks}, r, {width})"
            )


@functools.partial(jax.checkpoint, prevent_cse=False)
def _dense(
    x: jax.Array, kernels: jax.Array, biases: jax.Array, index: jax.Array
) -> jax.Array:
    """`x W + b` with the weights of one block of the stack.

    Under jax.checkpoint, for the slice and not for the product: a scan would else
    keep every block's slice for the backward pass, a second copy of the network.
    The backward pass of a frozen product needs no product again, so none is run.
    """
    return x @ kernels[index] + biases[index][None, None]


def _wide_type(dtype: Any) -> Any:
    """float32, or float64 where a test runs the network so; in words, for runs under
    strict promotion."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(_wide_type(x.dtype))


def _layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, eps: float
) -> jax.Array:
    """LayerNorm in float32, two passes: E[x^2] - E[x]^2 cancels in ViT-g."""
    wide = _wide(x)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.mean(centred * centred, -1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps) * scale + bias).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x, through erf as in torch.

    jax.nn.gelu takes erfc, which costs twice as much on a CPU.
    """
    wide = _wide(x)
    return (wide * 0.5 * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def _swiglu(x: jax.Array) -> jax.Array:
    """SwiGLU; the first half of the channels is the gate."""
    gate, value = jnp.split(_wide(x), 2, -1)
    return (jax.nn.silu(gate) * value).astype(x.dtype)


def attend(qkv: jax.Array, implementation: Attention) -> jax.Array:
    """Self-attention: query, key and value (B, T, 3, A, D) -> (B, T, A D)."""
    batch, tokens, _, heads, size = qkv.shape
    if implementation == "cudnn":
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        y = jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
        return y.reshape(batch, tokens, heads * size)
    # Heads first, one batch axis: XLA's products of (B, T, A, D) as they lie take 2.5
    # times as long on a CPU.
    query, key, value = qkv.transpose(2, 0, 3, 1, 4).reshape(
        3, batch * heads, tokens, size
    )
    wide = _wide_type(qkv.dtype)
    logits = jnp.matmul(query, key.mT, preferred_element_type=wide) * size**-0.5
    most = jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
    weights = jnp.exp(logits - most)
    total = jnp.sum(weights, -1, keepdims=True)
    y = jnp.matmul(weights.astype(qkv.dtype), value, preferred_element_type=wide)
    y = (y / total).astype(qkv.dtype)  # (B A, T, D)
    y = y.reshape(batch, heads, tokens, size).swapaxes(1, 2)
    return y.reshape(batch, tokens, heads * size)


def _block(
    blocks: dict[str, jax.Array],
    geometry: Geometry,
    adapter: Adapter | None,
    cheap: bool,
    attention: Attention,
    x: jax.Array,
    index: jax.Array,
    low_rank: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
    """Block `index` of the stack, with its adapter: (B, T, width) -> the same."""
    lean: Callable = (
        functools.partial(jax.checkpoint, prevent_cse=False) if cheap else lambda f: f
    )
    norm = lean(functools.partial(_layer_norm, eps=geometry.eps))
    activation = lean(gelu if geometry.mlp == "gelu" else _swiglu)
    # (1, 1, width): broadcast in words, for runs under rank promotion "raise".
    vector = {n: v[index][None, None] for n, v in blocks.items() if v.ndim == 2}

    def dense(x: jax.Array, name: str) -> jax.Array:
        return _dense(x, blocks[f"{name}_kernel"], blocks[f"{name}_bias"], index)

    def adapted(kind: str, x: jax.Array, y: jax.Array) -> jax.Array:
        """Adds the low-rank product of x to y, if the adapter is of this kind."""
        if adapter is None or low_rank is None or adapter.kind != kind:
            return y
        a, b = (array.astype(x.dtype) for array in low_rank)
        return y + jnp.asarray(adapter.scale, x.dtype) * (x @ a @ b)

    batch, tokens, width = x.shape
    y = norm(x, vector["norm1_scale"], vector["norm1_bias"])
    heads = (batch, tokens, 3, geometry.heads, width // geometry.heads)
    y = attend(dense(y, "qkv").reshape(heads), attention)
    x = x + adapted("lora", y, dense(y, "out")) * vector["scale1"]
    y = norm(x, vector["norm2_scale"], vector["norm2_bias"])
    y = dense(activation(dense(y, "up")), "down")
    x = x + y * vector["scale2"]
    return adapted("residual", x, x)


def random(
    geometry: Geometry,
    num_blocks: int,
    image_px: int,
    seed: int = 0,
    dtype: Any = jnp.float32,
) -> Dinov2:
    """A network with random weights: a control, and a stand-in for tests.

    Kernels are normal with variance 1 / inputs, cut at two standard deviations,
    tokens and positions normal with standard deviation 0.02, layer scales 1. Block k
    has the same weights whatever `num_blocks` is. Never a silent fallback: callers
    ask for it by name.

    Example:
        >>> tiny = Geometry(32, 3, 2, "gelu", 64, image_px=28)
        >>> random(tiny, 2, 28)(jnp.zeros((1, 28, 28, 3)), (1, 2)).shape
        (2, 1, 5, 32)
    """

    def draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]):
        if name.endswith("kernel"):
            normal = rng.standard_normal(shape, np.float32)
            return np.clip(normal, -2, 2) * np.float32(shape[0] ** -0.5)
        if name in ("cls", "position", "registers"):
            return rng.standard_normal(shape, np.float32) * np.float32(0.02)
        return 0.0 if name.endswith("bias") else 1.0

    weights = {}
    for name, shape in shapes(geometry, num_blocks, image_px).items():
        array = weights[name] = np.empty(shape, storage_dtype(name, dtype))
        key = [seed, *name.encode()]
        if name.startswith("blocks."):
            short = name.removeprefix("blocks.")
            for k in range(num_blocks):
                rng = np.random.default_rng([*key, k])
                array[k] = draw(rng, short, shape[1:])
        else:
            array[...] = draw(np.random.default_rng(key), name, shape)
    return Dinov2(geometry, weights, num_blocks, image_px, dtype)
