"""The authors' released weights: what their files hold, and where it goes in ours.

Three kinds of files, all of torch.save: the encoder as a whole pickled module; the
small export, a dictionary of `config` and `shared`; a table of embeddings, a
dictionary of `voxel_embed` (and `base`, of a fitted subject). `open_encoder` and
`open_table` read them, `trainable` names the arrays as `model.encoder` does.
Every tensor is used or known as unused; anything else is refused, all at once.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import config, errors
from ubrain_jax.backbone import dinov2
from ubrain_jax.model import torchfile

DROPS = ("registers", "last_patches")
# Of the released ViT-L encoder, where its file does not tell.
_TAPS = (1, 6, 12, 18, 24)
_ALPHA = 0.01
_DROPOUT = 0.25
_IMAGE_PX = 224
_BACKBONE = "embed_model."
_ACTION = "Use a released file as it was published, with the parts that belong to it."


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


class Released(NamedTuple):
    """A released encoder.

    Attributes:
        path: Its file.
        weights: By the names of its state dict, without backbone and table.
        table: (V, E) embeddings, or None.
        backbone: Tensors of the backbone in the names of facebookresearch/dinov2;
            empty where the file has none.
        settings: Its sizes and choices.
        unused: Tensors that have no effect on a prediction.
        names: Classes that a pickled module names; none was used.
    """

    path: str
    weights: dict[str, np.ndarray]
    table: np.ndarray | None
    backbone: dict[str, np.ndarray]
    settings: Settings
    unused: tuple[str, ...]
    names: tuple[str, ...]


def open_encoder(path: str | os.PathLike) -> Released:
    """Reads the module or the small export.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is damaged, another kind of file, or its tensors do
            not fit each other; lists all that do not.
    """
    path = os.fspath(path)
    content = torchfile.read(path)
    tensors = content.tensors
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {n.removeprefix("module."): a for n, a in tensors.items()}
    if set(tensors) == {"voxel_embed"}:
        raise errors.InputError(
            path,
            "",
            "a table of embeddings (voxel_embed) alone",
            "the encoder: a pickled module, or a dictionary of config and shared",
            "Give this file as --voxel_embed and the encoder as --released.",
        )
    told: Mapping[str, Any] = content.plain
    if any(name.startswith("shared.") for name in tensors):  # the small export
        told = _section(content.plain, "config")
        tensors = {n.removeprefix("shared."): a for n, a in tensors.items()}
        if len(tensors) != len(content.tensors):
            raise errors.InputError(
                path, "shared", "tensors of equal names", "every name once", _ACTION
            )
    backbone = {
        name.removeprefix(_BACKBONE): array
        for name, array in tensors.items()
        if name.startswith(_BACKBONE)
    }
    rest = {n: a for n, a in tensors.items() if not n.startswith(_BACKBONE)}
    table = rest.pop("voxel_embed", None)
    settings = _settings(path, rest, told)
    unused = _check(path, rest, settings)
    if table is not None:
        _check_table(path, table)
        _check_embed_dim(path, table, settings)
    return Released(path, rest, table, backbone, settings, unused, content.names)


def open_table(path: str | os.PathLike, settings: Settings) -> tuple[np.ndarray, str]:
    """Reads a table of embeddings (V, E), and the base of a fitted subject or "".

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is damaged, another kind of file, or of another E.
    """
    path = os.fspath(path)
    content = torchfile.read(path)
    if set(content.tensors) != {"voxel_embed"}:
        listed = ", ".join(sorted(content.tensors)[:4])
        more = " ..." if len(content.tensors) > 4 else ""
        raise errors.InputError(
            path,
            "",
            f"{len(content.tensors)} tensors ({listed}{more})",
            "a dictionary with voxel_embed alone, beside what says where it is from",
            "Give the encoder as --released; a whole pickled module has its own table "
            "and needs no --voxel_embed.",
        )
    table = content.tensors["voxel_embed"]
    _check_table(path, table)
    _check_embed_dim(path, table, settings)
    base = content.plain.get("base")
    return table, base if isinstance(base, str) else ""


def _section(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A dictionary inside another one; that of an object's state as well."""
    found = told.get(name)
    if isinstance(found, dict) and isinstance(found.get("state"), dict):
        return found["state"]
    return found if isinstance(found, dict) else {}


def _check_table(path: str, table: np.ndarray) -> None:
    if table.ndim != 2 or table.dtype != np.float32 or not table.size:
        raise errors.InputError(
            path,
            "voxel_embed",
            f"{table.dtype} {table.shape}",
            "floats (voxels, E)",
            _ACTION,
        )


def _check_embed_dim(path: str, table: np.ndarray, settings: Settings) -> None:
    if table.shape[1] != settings.embed_dim:
        raise errors.InputError(
            path,
            "voxel_embed",
            f"embeddings of {table.shape[1]} numbers",
            f"{settings.embed_dim}, as the encoder has",
            "Give a table that was trained or fitted with this encoder.",
        )


# Settings ------------------------------------------------------------------------


def _settings(
    path: str, tensors: Mapping[str, np.ndarray], told: Mapping[str, Any]
) -> Settings:
    """Sizes from shapes; choices from what the file tells; both compared."""

    def size(name: str, axis: int) -> int:
        if name not in tensors or tensors[name].ndim != 2:
            found = tensors[name].shape if name in tensors else "absent"
            listed = ", ".join(sorted(tensors)[:4])
            raise errors.InputError(
                path,
                name,
                f"{found} (the file has {len(tensors)} tensors: {listed} ...)",
                "a matrix, as in a released encoder",
                "Name the file of an encoder: a pickled module, or a dictionary of "
                "config and shared.",
            )
        return tensors[name].shape[axis]

    param = _section(told, "param")
    channels, width = size("in_project.0.weight", 0), size("in_project.0.weight", 1)
    embed_dim = size("feat_embed", 0)
    rank, num_tokens = size("lora_A.0.weight", 1), size("pos_embed", 0)
    num_taps = _count(tensors, r"in_project\.(\d+)\.weight")
    num_adapters = _count(tensors, r"lora_A\.(\d+)\.weight")
    faults: list[str] = []
    assumed: list[str] = []

    def number(name: str, value: Any, standard: Any, kinds: type | tuple) -> Any:
        if isinstance(value, bool) and kinds is not bool:
            value = str(value)
        if value is None:
            assumed.append(f"{name} {standard}")
            return standard
        if not isinstance(value, kinds):
            faults.append(f"{name} is {str(value)[:60]!r}, not a {kinds}")
            return standard
        return value

    taps = told.get("select_layers")
    if taps is None:
        taps = list(_TAPS)
        assumed.append(f"select_layers {taps}")
    if (
        not isinstance(taps, list)
        or not all(type(tap) is int for tap in taps)
        or taps != sorted(set(taps))
        or len(taps) != num_taps
        or not 1 <= min(taps, default=0) <= max(taps, default=0) <= num_adapters
    ):
        faults.append(
            f"select_layers is {str(taps)[:60]}, with {num_taps} projections and "
            f"{num_adapters} adapters"
        )
        taps = list(range(1, num_taps + 1))
    alpha = told.get("alpha")
    if alpha is None and isinstance(told.get("lora_scale"), float):
        alpha = told["lora_scale"] * rank
    alpha = number("alpha", alpha, _ALPHA, (int, float))
    registers = number("num_reg_tokens", told.get("num_reg_tokens"), 4, int)
    if number("include_reg_tokens", told.get("include_reg_tokens"), False, bool):
        faults.append(
            "include_reg_tokens is True: registers as tokens of the head are not read"
        )
    for name, where, found in (
        ("r", told, rank),
        ("inner_ch", param, channels),
        ("embed_dim_vox", param, embed_dim),
        ("in_channels", param, width),
        ("in_spatial", param, num_tokens),
    ):
        value = where.get(name, found)
        if isinstance(value, int | float) and value != found:
            faults.append(f"{name} is {value}, the tensors have {found}")
    dropout = number("drop_out", param.get("drop_out"), _DROPOUT, float)
    image_px = number("img_len", param.get("img_len"), _IMAGE_PX, int)
    hidden = size("mlp.0.fc1.weight", 0)
    if hidden % channels:
        faults.append(f"the MLP has {hidden} channels, no multiple of {channels}")
    if faults:
        raise errors.InputError(
            path,
            "config",
            "; ".join(faults),
            "settings that fit the tensors",
            _ACTION,
        )
    return Settings(
        tuple(taps),
        image_px,
        width,
        registers,
        num_adapters,
        rank,
        float(alpha),
        embed_dim,
        channels,
        hidden // channels,
        dropout,
        num_tokens,
        tuple(assumed),
    )


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number in names of a pattern."""
    numbers = [re.fullmatch(pattern, name) for name in names]
    return max((int(n[1]) + 1 for n in numbers if n and len(n[1]) < 5), default=0)


def experiment(
    settings: Settings,
    geometry: dinov2.Geometry,
    backbone: str,
    *,
    drop: str = "registers",
    crowd: str = "nsd.zarr",
) -> config.Experiment:
    """Settings of the released encoder as an experiment, its training included.

    Args:
        settings: From the file.
        geometry: Of the backbone.
        backbone: Its folder, file or hub id.
        drop: Which tokens the head does not see; see `released_numpy.predict`.
        crowd: Store that it says it was trained on.

    Raises:
        errors.ConfigError: If a value is out of range.
    """
    names = [name for name, g in dinov2.GEOMETRIES.items() if g == geometry]
    given = {
        "data": {"crowd": [crowd], "replacement": True, "shift_px": 3},
        "backbone": {
            "name": names[0] if names else "",
            "weights": backbone,
            "taps": settings.taps,
            "image_px": settings.image_px,
            "dtype": "float32",
            "keep_cls": True,
            "drop": drop,
        },
        "adapter": {
            "kind": "residual",
            "rank": settings.rank,
            "alpha": settings.alpha,
        },
        "head": {
            "embed_dim": settings.embed_dim,
            "channels": settings.channels,
            "mlp_ratio": settings.mlp_ratio,
            "dropout": settings.dropout,
            "dtype": "float32",
        },
        "loss": {"kind": "released", "alpha": 0.1},
        "optim": {"amsgrad": True, "schedule": "plateau"},
        "train": {
            "epochs": 30.0,
            "eval_every_steps": 2100,
            "select": "best",
            "val_score": "p75",
        },
    }
    return config.from_dict(given, "the settings of the released file")


# Names ---------------------------------------------------------------------------

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


def _check(path: str, tensors: Mapping[str, np.ndarray], s: Settings) -> tuple:
    """All tensors against the table; returns the names of those without effect."""
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
            _ACTION,
        )
    return tuple(name for name in unused if name in tensors)


def _listed(names: list[str], most: int = 40) -> str:
    """Names in a sentence."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def trainable(released: Released) -> dict[str, dict[str, np.ndarray]]:
    """Trainable weights without the table, as `encoder.split` has them.

    Returns:
        {"adapter": {"a": (K, width, r), ...}, "head": {"in_kernel": ..., ...}},
        float32, with L taps and K blocks along axis 0.
    """
    tree: dict[str, dict[str, np.ndarray]] = {}
    for part in _table(released.settings):
        arrays = [part.form(released.weights[name]) for name in part.theirs]
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
