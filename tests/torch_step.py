"""The training step in torch: what `python -m ubrain_jax.bench --compare=torch` times.

The same architecture, batch, loss and Adam as the package's own step, written with
torch's means: scaled_dot_product_attention, automatic mixed precision in the head, a
frozen backbone in its compute dtype, fused Adam. tests/test_torch_step.py shows that
loss and gradients are those of the package. Needs torch; takes no part of JAX.

    python -m tests.torch_step     answers on standard output, see ubrain_jax.rounds
"""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from tests import torch_encoder
from ubrain_jax import rounds

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def build(
    settings: dict[str, Any], geometry: dict[str, Any], tokens: int, rows: int
) -> torch_encoder.Encoder:
    """The module of a config with uninitialised weights.

    Args:
        settings: A config as nested dicts.
        geometry: Of the backbone: width, heads, mlp, mlp_width, registers, patch.
        tokens: That the head sees.
        rows: Of the table.

    Raises:
        ValueError: If the config asks for what is not written in torch.
    """
    backbone, head, adapter = (settings[k] for k in ("backbone", "head", "adapter"))
    if head["functional"] != "embedding" or not head["position"]:
        raise ValueError("the torch form has each voxel's functional attention only")
    vit = torch_encoder.Vit(
        geometry["width"],
        backbone["taps"][-1],
        geometry["registers"],
        backbone["image_px"] // geometry["patch"],
        geometry["heads"],
        geometry["mlp"],
        geometry["mlp_width"],
    )
    model = torch_encoder.Encoder(
        vit,
        voxels=rows,
        taps=backbone["taps"],
        embed=head["embed_dim"],
        channels=head["channels"],
        rank=adapter["rank"],
        alpha=adapter["alpha"],
        tokens=tokens,
        kind=adapter["kind"],
        keep_cls=backbone["keep_cls"],
        mlp_ratio=head["mlp_ratio"],
        dropout=head["dropout"],
    )
    model.drop = backbone["drop"]
    vit.to(getattr(torch, backbone["dtype"])).requires_grad_(False)
    # Of the released files; nothing reads it.
    model.layer_embed.requires_grad_(False)
    return model


@torch.no_grad()
def fill(model: torch_encoder.Encoder, seed: int) -> None:
    """Random weights of the size that the package begins with."""
    torch.manual_seed(seed)
    for name, x in model.named_parameters():
        if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
            x.fill_(1)
        elif name.endswith("bias"):
            x.zero_()
        elif name.endswith(("token", "tokens", "_embed")):
            x.normal_(0, 0.02)
        else:
            x.normal_(0, x[0].numel() ** -0.5)


def state_of(weights: dict[str, np.ndarray], patch: int) -> dict[str, np.ndarray]:
    """Weights, or their gradients, of the package under the names of the module.

    Args:
        weights: By name, as head/fc1_kernel or backbone/blocks/up_kernel.
        patch: Side of a patch in pixels.
    """
    found = {}
    for name, array in weights.items():
        part, *rest = name.split("/")
        leaf = rest[-1] if rest else ""
        if part == "table":
            found["voxel_embed"] = array.reshape(-1, array.shape[-1])
        elif part == "adapter":
            # Ours goes down by a and up by b.
            given = {"a": "lora_B", "b": "lora_A"}[leaf]
            found |= {f"{given}.{k}.weight": w.T for k, w in enumerate(array)}
        elif part == "head":
            found |= _of_head(leaf, array)
        else:
            found |= _of_backbone(leaf, array, patch)
    return found


_HEAD = {
    "norm_in_scale": "norm_in.{}.weight",
    "norm_in_bias": "norm_in.{}.bias",
    "in_kernel": "in_project.{}.weight",
    "in_bias": "in_project.{}.bias",
    "query_kernel": "map_att.{}.project.weight",
    "query_bias": "map_att.{}.project.bias",
    "key_kernel": "map_att.{}.project_x.weight",
    "norm_scale": "norm.{}.weight",
    "norm_bias": "norm.{}.bias",
    "fc1_kernel": "mlp.{}.fc1.weight",
    "fc1_bias": "mlp.{}.fc1.bias",
    "fc2_kernel": "mlp.{}.fc2.weight",
    "fc2_bias": "mlp.{}.fc2.bias",
}


def _of_head(leaf: str, array: np.ndarray) -> dict[str, np.ndarray]:
    if leaf == "position":
        return {"pos_embed": array}
    if leaf == "functional":  # (L, E, C)
        return {"feat_embed": np.concatenate(list(array), -1)}
    flip = leaf.endswith("kernel")
    return {
        _HEAD[leaf].format(k): each.T if flip else each for k, each in enumerate(array)
    }


_BLOCK = {
    "norm1_scale": "norm1.weight",
    "norm1_bias": "norm1.bias",
    "qkv_kernel": "attn.qkv.weight",
    "qkv_bias": "attn.qkv.bias",
    "out_kernel": "attn.proj.weight",
    "out_bias": "attn.proj.bias",
    "scale1": "ls1.gamma",
    "norm2_scale": "norm2.weight",
    "norm2_bias": "norm2.bias",
    "scale2": "ls2.gamma",
}


def _of_backbone(leaf: str, array: np.ndarray, patch: int) -> dict[str, np.ndarray]:
    start = "embed_model."
    if leaf == "patch_kernel":
        kernel = array.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
        return {f"{start}patch_embed.proj.weight": kernel}
    if leaf == "patch_bias":
        return {f"{start}patch_embed.proj.bias": array}
    whole = {
        "cls": "cls_token",
        "position": "pos_embed",
        "registers": "register_tokens",
    }
    if leaf in whole:
        shape = (1, 1, -1) if leaf == "cls" else (1, *array.shape)
        return {start + whole[leaf]: array.reshape(shape)}
    return {
        f"{start}blocks.{k}.{_BLOCK[leaf]}": w.T if leaf.endswith("kernel") else w
        for k, w in enumerate(array)
    }


def named_mlp(state: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """With the names of the layers of an MLP of this kind."""
    first, second = {"gelu": ("fc1", "fc2"), "swiglu": ("w12", "w3")}[kind]
    return {
        k.replace("mlp.up", f"mlp.{first}").replace("mlp.down", f"mlp.{second}"): v
        for k, v in state.items()
    }


_BLOCK |= {
    "up_kernel": "mlp.up.weight",
    "up_bias": "mlp.up.bias",
    "down_kernel": "mlp.down.weight",
    "down_bias": "mlp.down.bias",
}


def loss_of(
    model: torch_encoder.Encoder,
    batch: tuple[torch.Tensor, ...],
    settings: dict[str, Any],
) -> torch.Tensor:
    """Mean over images of their loss over their voxels.

    Args:
        model: From `build`.
        batch: Pictures (B, H, W, 3) uint8; rows of the table, responses and weights
            (B, N).
        settings: A config as nested dicts.
    """
    picture, row, response, weight = batch
    device = picture.device
    mean, std = (torch.tensor(x, device=device) for x in (MEAN, STD))
    x = ((picture / 255 - mean) / std).permute(0, 3, 1, 2)
    tapped = model.tapped(x.to(getattr(torch, settings["backbone"]["dtype"])))
    embedding = F.embedding(row, model.voxel_embed)
    mixed = settings["head"]["dtype"] == "bfloat16"
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        if not mixed:
            tapped = [tap.float() for tap in tapped]
        predicted = model.respond(tapped, embedding)
    p, alpha = predicted.float(), settings["loss"]["alpha"]
    error = (weight * (p - response).square()).sum(1) / weight.sum(1)
    norms = (weight * p.square()).sum(1).sqrt() * (
        (weight * response.square()).sum(1).sqrt()
    )
    cosine = (weight * p * response).sum(1) / norms
    if settings["loss"]["kind"] == "paper":
        return (alpha * error - (1 - alpha) * cosine).mean()
    return (error - alpha * cosine).mean()


def compiled(model: torch_encoder.Encoder, how: str) -> Any:
    """`loss_of` by torch.compile: "whole", "blocks" and the head apart, or not ("")."""
    if how == "whole":
        return torch.compile(loss_of, dynamic=False)
    if how == "blocks":  # one program for all blocks
        model.block = torch.compile(model.block, dynamic=False)
        model.respond = torch.compile(model.respond, dynamic=False)
    return loss_of


def make(told: dict[str, Any]) -> rounds.Ready:
    """The step, on a batch of noise that stays on the device.

    Args:
        told: config and geometry, dicts; tokens; rows of the table; device, "cpu" or
            "cuda"; compile, for `compiled`.
    """
    settings, rows, device = told["config"], told["rows"], told["device"]
    torch.set_float32_matmul_precision("high")  # as JAX has it on a GPU
    with torch.device(device):
        model = build(settings, told["geometry"], told["tokens"], rows)
    fill(model, 0)
    data, px = settings["data"], settings["backbone"]["image_px"]
    images, voxels = data["batch_images"], data["voxels_per_image"]
    rng = np.random.default_rng(0)
    batch = tuple(
        torch.from_numpy(x).to(device)
        for x in (
            rng.integers(0, 256, (images, px, px, 3), np.uint8),
            rng.integers(0, rows, (images, voxels)),
            rng.standard_normal((images, voxels)).astype(np.float32),
            np.ones((images, voxels), np.float32),
        )
    )
    chosen = settings["optim"]
    optimiser = torch.optim.Adam(
        [x for x in model.parameters() if x.requires_grad],
        chosen["learning_rate"],
        amsgrad=chosen["amsgrad"],
        fused=True,
    )
    loss_fn = compiled(model, told["compile"])

    def step(times: int) -> dict[str, Any]:
        loss = torch.tensor(torch.nan)
        for _ in range(times):
            optimiser.zero_grad(set_to_none=True)
            loss = loss_fn(model, batch, settings)
            loss.backward()
            optimiser.step()
        return {"loss": float(loss.detach())}

    facts = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }
    peak = torch.cuda.max_memory_allocated if device == "cuda" else None
    return rounds.Ready({"train": step}, facts, peak)


if __name__ == "__main__":
    rounds.serve(make)
