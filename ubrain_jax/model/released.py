"""The authors' released weights: what their files hold, and where it goes in ours.

Three kinds of files, all of torch.save: the encoder as a whole pickled module; the
small export, a dictionary of `config` and `shared`; a table of embeddings, a
dictionary of `voxel_embed` (and `base`, of a fitted subject). Where their tensors go in
our encoder is `released_names`; what they compute, in NumPy, `released_numpy`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import config, errors
from ubrain_jax.backbone import dinov2
from ubrain_jax.model import released_names, torchfile

DROPS = ("registers", "last_patches")
# Of the released ViT-L encoder, where its file does not tell.
_TAPS = (1, 6, 12, 18, 24)
_ALPHA = 0.01
_DROPOUT = 0.25
_IMAGE_PX = 224
_BACKBONE = "embed_model."


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
    settings: released_names.Settings
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
                path,
                "shared",
                "tensors of equal names",
                "every name once",
                released_names.ACTION,
            )
    backbone = {
        name.removeprefix(_BACKBONE): array
        for name, array in tensors.items()
        if name.startswith(_BACKBONE)
    }
    rest = {n: a for n, a in tensors.items() if not n.startswith(_BACKBONE)}
    table = rest.pop("voxel_embed", None)
    settings = _settings(path, rest, told)
    unused = released_names.check(path, rest, settings)
    if table is not None:
        _check_table(path, table)
        _check_embed_dim(path, table, settings)
    return Released(path, rest, table, backbone, settings, unused, content.names)


def open_table(
    path: str | os.PathLike, settings: released_names.Settings
) -> tuple[np.ndarray, str]:
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
            released_names.ACTION,
        )


def _check_embed_dim(
    path: str, table: np.ndarray, settings: released_names.Settings
) -> None:
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
) -> released_names.Settings:
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

    def told_or(standard: Any, name: str, value: Any, *kinds: type) -> Any:
        if value is None:
            assumed.append(f"{name} {standard}")
            return standard
        if type(value) not in kinds:
            words = " or ".join(kind.__name__ for kind in kinds)
            faults.append(f"{name} is {str(value)[:60]!r}, not of type {words}")
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
    alpha = told_or(_ALPHA, "alpha", alpha, int, float)
    registers = told_or(4, "num_reg_tokens", told.get("num_reg_tokens"), int)
    if told_or(False, "include_reg_tokens", told.get("include_reg_tokens"), bool):
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
    dropout = told_or(_DROPOUT, "drop_out", param.get("drop_out"), int, float)
    image_px = told_or(_IMAGE_PX, "img_len", param.get("img_len"), int)
    hidden = size("mlp.0.fc1.weight", 0)
    if hidden % channels:
        faults.append(f"the MLP has {hidden} channels, no multiple of {channels}")
    if faults:
        raise errors.InputError(
            path,
            "config",
            "; ".join(faults),
            "settings that fit the tensors",
            released_names.ACTION,
        )
    return released_names.Settings(
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
        float(dropout),
        num_tokens,
        tuple(assumed),
    )


def _count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number in names of a pattern."""
    numbers = [re.fullmatch(pattern, name) for name in names]
    return max((int(n[1]) + 1 for n in numbers if n and len(n[1]) < 5), default=0)


def experiment(
    settings: released_names.Settings,
    geometry: dinov2.Geometry,
    backbone: str,
    *,
    drop: str = "registers",
    crowd: str = "nsd.zarr",
) -> config.Experiment:
    """The released encoder as an experiment, its training included.

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
