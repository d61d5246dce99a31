"""A tiny released encoder and its backbone, as files; and both in torch."""

import math

import numpy as np
from safetensors.numpy import save_file

from tests import torch_files

# Sizes of the tiny one.
TAPS, E, C, RANK, VOXELS = [1, 3], 8, 4, 2, 11
WIDTH, DEPTH, REGISTERS, PX, TOKENS = 64, 4, 2, 28, 5


def backbone(seed=0, width=WIDTH, depth=DEPTH, registers=REGISTERS, side=5):
    """Tensors of a DINOv2 by the names of facebookresearch/dinov2."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0, mean=0.0):
        value = mean + scale * rng.standard_normal(shape, np.float32)
        return value.astype(np.float32)

    found = {
        "cls_token": normal(1, 1, width, scale=0.3),
        "mask_token": normal(1, width),
        "pos_embed": normal(1, 1 + side**2, width, scale=0.3),
        "patch_embed.proj.weight": normal(width, 3, 14, 14, scale=0.03),
        "patch_embed.proj.bias": normal(width, scale=0.1),
        "norm.weight": normal(width),
        "norm.bias": normal(width),
    }
    if registers:
        found["register_tokens"] = normal(1, registers, width, scale=0.5)
    for i in range(depth):
        for name, outputs, inputs in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            scale = 1.2 / math.sqrt(inputs)
            found[f"blocks.{i}.{name}.weight"] = normal(outputs, inputs, scale=scale)
            found[f"blocks.{i}.{name}.bias"] = normal(outputs, scale=0.1)
        for name in ("norm1", "norm2"):
            found[f"blocks.{i}.{name}.weight"] = normal(width, scale=0.2, mean=1)
            found[f"blocks.{i}.{name}.bias"] = normal(width, scale=0.1)
        for name in ("ls1", "ls2"):
            found[f"blocks.{i}.{name}.gamma"] = normal(width, scale=0.1, mean=0.3)
    return found


def weights(
    seed=1,
    *,
    width=WIDTH,
    depth=DEPTH,
    taps=TAPS,
    embed=E,
    channels=C,
    rank=RANK,
    tokens=TOKENS,
    adapter=1.0,
):
    """Tensors of a released encoder without backbone and table.

    Their scales are such that every one of them matters: the adapter changes the
    stream by a tenth in every block, attention is neither flat nor one token.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0, mean=0.0):
        return (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    found = {
        "layer_embed": normal(embed, len(taps)),
        "feat_embed": normal(embed, len(taps) * channels, scale=0.1),
        "pos_embed": normal(tokens, embed, scale=0.3),
    }
    for tap in range(len(taps)):
        for name, outputs, inputs in (
            ("in_project", channels, width),
            ("map_att.{}.project", embed, embed),
            ("map_att.{}.project_x", embed, channels),
            ("mlp.{}.fc1", 4 * channels, channels),
            ("mlp.{}.fc2", channels, 4 * channels),
        ):
            name = name.format(tap) if "{}" in name else f"{name}.{tap}"
            scale = 1 / math.sqrt(inputs)
            found[f"{name}.weight"] = normal(outputs, inputs, scale=scale)
            found[f"{name}.bias"] = normal(outputs, scale=0.1)
        for name, size in (("norm_in", width), ("norm", channels)):
            found[f"{name}.{tap}.weight"] = normal(size, scale=0.2, mean=1)
            found[f"{name}.{tap}.bias"] = normal(size, scale=0.1)
    for block in range(depth):
        found[f"lora_A.{block}.weight"] = normal(width, rank, scale=adapter)
        found[f"lora_B.{block}.weight"] = normal(rank, width, scale=adapter)
    return found


def table(seed=2, voxels=VOXELS, embed=E):
    """Embeddings (V, E)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((voxels, embed)).astype(np.float32)


def config(**changes):
    """What a small export says of the tiny encoder."""
    param = {
        "num_voxels": VOXELS,
        "img_len": PX,
        "inner_ch": C,
        "drop_out": 0.25,
        "embed_dim_vox": E,
        "in_channels": WIDTH,
        "in_spatial": TOKENS,
    }
    told = {
        "param": param,
        "select_layers": TAPS,
        "r": RANK,
        "alpha": 0.2,
        "include_reg_tokens": False,
        "num_reg_tokens": REGISTERS,
        "backbone": "dinov2_vitl14_reg",
    }
    return told | changes


def write_backbone(folder, content=None):
    """The backbone as safetensors in the original names."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vit.safetensors"
    save_file(backbone() if content is None else content, path)
    return path


def write_export(path, content=None, **changes):
    """The small export."""
    content = weights() if content is None else content
    return torch_files.write(path, {"config": config(**changes), "shared": content})


def write_module(path, *, own=None, **changes):
    """The whole pickled module, with table and backbone inside."""
    vit = backbone() if own is None else own
    tensors = {"voxel_embed": table(), **weights()}
    tensors |= {f"embed_model.{name}": array for name, array in vit.items()}
    told = config(**changes)
    told["lora_scale"] = told.pop("alpha") / told["r"]
    told["param"] = torch_files.Call("models p", (), told["param"], new=True)
    return torch_files.write(path, torch_files.module(tensors, **told))
