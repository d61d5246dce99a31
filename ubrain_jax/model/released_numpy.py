"""The authors' released encoder in plain NumPy, one operation after the other.

Slow and without any part of this package: what `model.encoder` computes with
converted weights is compared with it. Written from a table of the operations of the
released code, in the names of its weight files; torch's (out, in) order of matrices.
Letters: B images, T tokens of the backbone, P of them for the head, N voxels, C
channels, E embedding.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special

Weights = Mapping[str, np.ndarray]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
HEAD_CHANNELS = 64  # of every DINOv2


def predict(
    weights: Weights,
    vit: Weights,
    pictures: np.ndarray,
    embeddings: np.ndarray,
    *,
    taps: Sequence[int],
    alpha: float,
    drop: str = "registers",
    dtype: type = np.float64,
) -> np.ndarray:
    """Responses of voxels to pictures.

    Args:
        weights: Of the released encoder, without `embed_model.` and `voxel_embed`.
        vit: Of the backbone, in the names of facebookresearch/dinov2. Positions of a
            larger grid are resized.
        pictures: (B, H, W, 3) uint8.
        embeddings: (N, E).
        taps: 1-based numbers of the blocks that are looked at.
        alpha: Of the adapter; its rank is read from the weights.
        drop: "registers" gives the head CLS and patches; "last_patches" CLS,
            registers and all patches but as many at the end, as older releases did.
        dtype: Of all arithmetic.

    Returns:
        (B, N).
    """
    embeddings = np.asarray(embeddings, dtype)
    x = tokens_of(vit, pictures, dtype)  # (B, T, width)
    registers = vit["register_tokens"].shape[1] if "register_tokens" in vit else 0
    parts = []
    for i in range(max(taps)):
        x = block(vit, i, x)
        # The adapter, after every block, on the residual stream itself.
        a = weights[f"lora_A.{i}.weight"].astype(dtype)  # (width, r)
        b = weights[f"lora_B.{i}.weight"].astype(dtype)  # (r, width)
        x = x + x @ b.T @ a.T * (alpha / a.shape[1])
        if i + 1 in taps:
            if drop == "registers":
                seen = np.concatenate([x[:, :1], x[:, 1 + registers :]], 1)
            elif drop == "last_patches":
                seen = x[:, : x.shape[1] - registers]
            else:
                raise ValueError(f"drop is {drop!r}")
            parts.append(one_tap(weights, len(parts), seen, embeddings))
    functional = embeddings @ weights["feat_embed"].astype(dtype)  # (N, L C)
    return np.sum(np.concatenate(parts, -1) * functional[None], -1)


def one_tap(
    weights: Weights, tap: int, tokens: np.ndarray, embeddings: np.ndarray
) -> np.ndarray:
    """Tokens (B, P, width) of a tap, embeddings (N, E) -> (B, N, C)."""
    f = layer_norm(weights, f"norm_in.{tap}", tokens, 1e-5)
    f = linear(weights, f"in_project.{tap}", f)  # (B, P, C)
    query = linear(weights, f"map_att.{tap}.project", embeddings)  # (N, E)
    key = linear(weights, f"map_att.{tap}.project_x", f)
    key = key + weights["pos_embed"].astype(f.dtype)[None]  # (B, P, E)
    s = np.stack(
        [softmax(query @ own.T) @ values for own, values in zip(key, f, strict=True)]
    )
    u = layer_norm(weights, f"norm.{tap}", s, 1e-5)
    hidden = gelu(linear(weights, f"mlp.{tap}.fc1", u))
    return u + linear(weights, f"mlp.{tap}.fc2", hidden)


def tokens_of(vit: Weights, pictures: np.ndarray, dtype: type) -> np.ndarray:
    """Pictures (B, H, W, 3) uint8 -> CLS, registers and patches (B, T, width)."""
    x = (pictures.astype(dtype) / 255 - np.array(MEAN, dtype)) / np.array(STD, dtype)
    kernel = vit["patch_embed.proj.weight"].astype(dtype)  # (width, 3, y, x)
    patch, grid = kernel.shape[-1], x.shape[1] // kernel.shape[-1]
    rows = []
    for y in range(grid):
        for z in range(grid):
            cut = x[:, y * patch : (y + 1) * patch, z * patch : (z + 1) * patch]
            rows.append(np.einsum("byxc,wcyx->bw", cut, kernel, optimize=True))
    x = np.stack(rows, 1) + vit["patch_embed.proj.bias"].astype(dtype)
    cls = np.broadcast_to(vit["cls_token"].astype(dtype), (len(x), 1, x.shape[-1]))
    x = np.concatenate([cls, x], 1) + positions(vit["pos_embed"], grid, dtype)
    if "register_tokens" not in vit:
        return x
    registers = vit["register_tokens"].astype(dtype)
    registers = np.broadcast_to(registers, (len(x), *registers.shape[1:]))
    return np.concatenate([x[:, :1], registers, x[:, 1:]], 1)


def positions(stored: np.ndarray, grid: int, dtype: type) -> np.ndarray:
    """Positions (1, 1 + G G, width) for a grid of another side: (1, 1 + g g, width).

    Bicubic with antialiasing, as DINOv2 with registers does: each new place is the
    mean of the old ones around it, weighted by a cubic that is as wide as the step.
    """
    cls, old = stored[0, :1].astype(dtype), stored[0, 1:].astype(dtype)
    side = round(len(old) ** 0.5)
    if side == grid:
        return stored.astype(dtype)
    old = old.reshape(side, side, -1)
    step = side / grid
    if step < 1:
        raise ValueError(f"positions of {side} x {side} for {grid} x {grid}")

    def cubic(x: float) -> float:
        x = abs(x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    one = np.array(
        [
            [cubic((j + 0.5 - (i + 0.5) * step) / step) for j in range(side)]
            for i in range(grid)
        ],
        dtype,
    )
    one /= one.sum(1, keepdims=True)
    new = np.tensordot(one, np.tensordot(one, old, (1, 0)), (1, 1))  # (x, y, width)
    new = new.swapaxes(0, 1).reshape(grid * grid, -1)
    return np.concatenate([cls, new])[None]


def block(vit: Weights, i: int, x: np.ndarray) -> np.ndarray:
    """Block i (from 0) of the vision transformer: (B, T, width) -> the same."""
    at = f"blocks.{i}"
    y = layer_norm(vit, f"{at}.norm1", x, 1e-6)
    y = attention(vit, f"{at}.attn", y)
    x = x + y * vit[f"{at}.ls1.gamma"].astype(x.dtype)
    y = layer_norm(vit, f"{at}.norm2", x, 1e-6)
    if f"{at}.mlp.w12.weight" in vit:
        gate, value = np.split(linear(vit, f"{at}.mlp.w12", y), 2, -1)
        y = linear(vit, f"{at}.mlp.w3", gate / (1 + np.exp(-gate)) * value)
    else:
        y = linear(vit, f"{at}.mlp.fc2", gelu(linear(vit, f"{at}.mlp.fc1", y)))
    return x + y * vit[f"{at}.ls2.gamma"].astype(x.dtype)


def attention(vit: Weights, at: str, x: np.ndarray) -> np.ndarray:
    """Self-attention, one picture and one head after the other."""
    width = x.shape[-1]
    heads = max(width // HEAD_CHANNELS, 1)
    channels = width // heads
    query, key, value = np.split(linear(vit, f"{at}.qkv", x), 3, -1)
    out = np.empty_like(x)
    for b in range(len(x)):
        for head in range(heads):
            own = slice(head * channels, (head + 1) * channels)
            logits = query[b, :, own] @ key[b, :, own].T / np.sqrt(channels)
            out[b, :, own] = softmax(logits.astype(x.dtype)) @ value[b, :, own]
    return linear(vit, f"{at}.proj", out)


def linear(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """x W^T + b."""
    kernel = weights[f"{name}.weight"].astype(x.dtype)
    return x @ kernel.T + weights[f"{name}.bias"].astype(x.dtype)


def layer_norm(weights: Weights, name: str, x: np.ndarray, eps: float) -> np.ndarray:
    """Over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    scale, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return x * scale.astype(x.dtype) + bias.astype(x.dtype)


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def gelu(x: np.ndarray) -> np.ndarray:
    """Exact: x times the normal distribution function."""
    return x * 0.5 * (1 + scipy.special.erf(x / np.sqrt(2)))
