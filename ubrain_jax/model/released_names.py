"""Where each tensor of a released encoder goes in ours, and what it must look like.

One table: our array, the tensors of the file that make it, their shape, and how.
Every tensor is in it or known to have no effect. Reading files is `released`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.backbone import dinov2

ACTION = "Use a released file as it was published, with the parts that belong to it."


class Settings(NamedTuple):
    """What the file tells of the encoder, in our words.

    Attributes:
        taps: 1-based numbers of the blocks that are looked at.
        image_px: Side of the pictures.
        width: Channels of the backbone.
        registers: Register tokens of the backbone.
        num_adapters: Blocks with an adapter, those of the backbone.
        rank: Of the adapter.
        alpha: Its scale is alpha / rank.
        embed_dim: E.
        channels: C.
        mlp_ratio: Hidden width of the MLP over channels.
        dropout: Of training.
        num_tokens: P.
        assumed: What the file does not tell, in words.
    """

    taps: tuple[int, ...]
    image_px: int
    width: int
    registers: int
    num_adapters: int
    rank: int
    alpha: float
    embed_dim: int
    channels: int
    mlp_ratio: int
    dropout: float
    num_tokens: int
    assumed: tuple[str, ...]


_Form = Callable[[np.ndarray], np.ndarray]


class _Part(NamedTuple):
    """One of our arrays: its name, what makes it, the shape of each, and how."""

    ours: str
    theirs: tuple[str, ...]
    shape: tuple[int, ...]
    form: _Form


def _table(s: Settings) -> list[_Part]:
    """Our arrays in terms of theirs; several of theirs are stacked along axis 0."""

    def same(array: np.ndarray) -> np.ndarray:
        return array

    def turned(array: np.ndarray) -> np.ndarray:  # torch keeps (out, in)
        return array.T

    def by_tap(ours: str, theirs: str, shape: tuple[int, ...], form: _Form) -> _Part:
        names = tuple(theirs.format(tap) for tap in range(len(s.taps)))
        return _Part(f"head/{ours}", names, shape, form)

    def by_block(ours: str, theirs: str, shape: tuple[int, ...]) -> _Part:
        names = tuple(theirs.format(block) for block in range(s.taps[-1]))
        return _Part(f"adapter/{ours}", names, shape, turned)

    e, c, hidden = s.embed_dim, s.channels, s.mlp_ratio * s.channels
    num_taps = len(s.taps)

    def split_taps(array: np.ndarray) -> np.ndarray:  # (E, L C) -> (L, E, C)
        return array.reshape(e, num_taps, c).swapaxes(0, 1)

    return [
        # x + A(B(x)) alpha / r: their B comes first, as our a does.
        by_block("a", "lora_B.{}.weight", (s.rank, s.width)),
        by_block("b", "lora_A.{}.weight", (s.width, s.rank)),
        by_tap("norm_in_scale", "norm_in.{}.weight", (s.width,), same),
        by_tap("norm_in_bias", "norm_in.{}.bias", (s.width,), same),
        by_tap("in_kernel", "in_project.{}.weight", (c, s.width), turned),
        by_tap("in_bias", "in_project.{}.bias", (c,), same),
        by_tap("query_kernel", "map_att.{}.project.weight", (e, e), turned),
        by_tap("query_bias", "map_att.{}.project.bias", (e,), same),
        by_tap("key_kernel", "map_att.{}.project_x.weight", (e, c), turned),
        by_tap("norm_scale", "norm.{}.weight", (c,), same),
        by_tap("norm_bias", "norm.{}.bias", (c,), same),
        by_tap("fc1_kernel", "mlp.{}.fc1.weight", (hidden, c), turned),
        by_tap("fc1_bias", "mlp.{}.fc1.bias", (hidden,), same),
        by_tap("fc2_kernel", "mlp.{}.fc2.weight", (c, hidden), turned),
        by_tap("fc2_bias", "mlp.{}.fc2.bias", (c,), same),
        _Part("head/position", ("pos_embed",), (s.num_tokens, e), same),
        _Part("head/functional", ("feat_embed",), (e, num_taps * c), split_taps),
    ]


def _unused(s: Settings) -> dict[str, tuple[int, ...]]:
    """Tensors without effect, by name: their shapes."""
    known: dict[str, tuple[int, ...]] = {"layer_embed": (s.embed_dim, len(s.taps))}
    for tap in range(len(s.taps)):  # shifts all logits of a voxel alike
        known[f"map_att.{tap}.project_x.bias"] = (s.embed_dim,)
    for block in range(s.taps[-1], s.num_adapters):  # after the last tap
        known[f"lora_A.{block}.weight"] = (s.width, s.rank)
        known[f"lora_B.{block}.weight"] = (s.rank, s.width)
    return known


def check(path: str, tensors: Mapping[str, np.ndarray], s: Settings) -> tuple[str, ...]:
    """All tensors against the table; returns the names of those without effect.

    Args:
        path: Of their file, for messages.
        tensors: By name, without backbone and table.
        s: Their sizes.

    Raises:
        errors.InputError: Listing all that is missing, unknown or of another shape.
    """
    needed = {name: part.shape for part in _table(s) for name in part.theirs}
    unused = _unused(s)
    known = needed | unused
    missing = [name for name in needed if name not in tensors]
    unknown = [name for name in tensors if name not in known]
    shaped = [n for n in known if n in tensors and tensors[n].shape != known[n]]
    typed = [n for n in needed if n in tensors and tensors[n].dtype != np.float32]
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing: {_listed(missing)}")
    if unknown:
        faults.append(f"{len(unknown)} unknown: {_listed(unknown)}")
    if shaped:
        told = [f"{n} {tensors[n].shape}, expected {known[n]}" for n in shaped]
        faults.append(f"{len(shaped)} of another shape: {_listed(told)}")
    if typed:
        told = [f"{n} {tensors[n].dtype}" for n in typed]
        faults.append(f"{len(typed)} not floating point: {_listed(told)}")
    if faults:
        raise errors.InputError(
            path,
            "",
            "; ".join(faults),
            f"the {len(needed)} tensors of an encoder with {len(s.taps)} taps of width "
            f"{s.width}, C {s.channels}, E {s.embed_dim}, rank {s.rank}",
            ACTION,
        )
    return tuple(name for name in unused if name in tensors)


def _listed(names: list[str], most: int = 40) -> str:
    """Names in a sentence."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def trainable(
    tensors: Mapping[str, np.ndarray], settings: Settings
) -> dict[str, dict[str, np.ndarray]]:
    """Trainable weights without the table, as `encoder.split` has them.

    Args:
        tensors: By name, as `check` wants them.
        settings: Their sizes.

    Returns:
        {"adapter": {"a": (K, width, r), ...}, "head": {"in_kernel": ..., ...}},
        float32, with L taps and K blocks along axis 0.
    """
    tree: dict[str, dict[str, np.ndarray]] = {}
    for part in _table(settings):
        arrays = [part.form(tensors[name]) for name in part.theirs]
        single = part.ours in ("head/position", "head/functional")
        array = arrays[0] if single else np.stack(arrays)
        section, name = part.ours.split("/")
        tree.setdefault(section, {})[name] = np.ascontiguousarray(array)
    return tree


# Backbone ------------------------------------------------------------------------

# Ours -> theirs, of vectors and of matrices that are kept (in, out).
_BLOCK_NAMES = {
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
_MLP_NAMES = {"gelu": ("fc1", "fc2"), "swiglu": ("w12", "w3")}


def original_backbone(network: dinov2.Dinov2) -> dict[str, np.ndarray]:
    """A loaded backbone in the names of facebookresearch/dinov2."""
    up, down = _MLP_NAMES[network.geometry.mlp]
    names = {
        **_BLOCK_NAMES,
        "up_kernel": f"mlp.{up}.weight",
        "up_bias": f"mlp.{up}.bias",
        "down_kernel": f"mlp.{down}.weight",
        "down_bias": f"mlp.{down}.bias",
    }
    patch = network.geometry.patch
    kernel = np.asarray(network.patch_kernel[...])  # (y x rgb, width)
    kernel = kernel.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
    found = {
        "patch_embed.proj.weight": kernel,
        "patch_embed.proj.bias": np.asarray(network.patch_bias[...]),
        "cls_token": np.asarray(network.cls[...])[None, None],
        "pos_embed": np.asarray(network.position[...])[None],
    }
    if network.geometry.registers:
        found["register_tokens"] = np.asarray(network.registers[...])[None]
    for ours, theirs in names.items():
        stacked = np.asarray(getattr(network.blocks, ours)[...])
        for k in range(network.num_blocks):
            found[f"blocks.{k}.{theirs}"] = stacked[k].T  # of a vector, itself
    return found
