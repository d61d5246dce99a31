"""Weight files become a `dinov2.Dinov2`, checked tensor by tensor.

Sources: a Hugging Face folder or hub id (config.json and safetensors), the original
.pth files of facebookresearch/dinov2, the small network shipped with the package
("bundled"), or random numbers ("random"), which nothing falls back to. Every tensor
of the file is used or known as unneeded, every weight is filled, every shape and
number is checked, and all faults are told at once. The stages are in this order:

1. locate   source -> configuration and tensor files
2. geometry configuration (or, for original files, shapes) -> Geometry
3. check    names and shapes against what the network needs
4. fill     one tensor at a time into stacked arrays in the compute dtype
5. resize   position embeddings, by the rule of the code the weights come from
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
import safetensors

from ubrain_jax import errors, sealed
from ubrain_jax.backbone import dinov2, pth

BUNDLED = pathlib.Path(__file__).parent / "bundled"
MAX_JSON_BYTES = 10_000_000
_FLOATS = ("F64", "F32", "F16", "BF16")
_MODEL_TYPES = ("dinov2", "dinov2_with_registers")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HEAD_CHANNELS = 64  # of every released DINOv2; original files do not say


class Provenance(NamedTuple):
    """Where the weights of a backbone come from.

    Attributes:
        source: What was asked for: path, hub id, "bundled" or "random".
        origin: "hf", "original", "bundled" or "random": whose code made the weights,
            which decides how positions are resized.
        sha256: Digest of each weight file, by file name; empty when random.
        geometry: Of the whole network in the file.
        random: True if the weights are random; every output must then say so.
        unneeded: Tensors of the file that were left out, as grouped names.
    """

    source: str
    origin: str
    sha256: dict[str, str]
    geometry: dinov2.Geometry
    random: bool
    unneeded: tuple[str, ...]


def load(
    source: str | os.PathLike,
    num_blocks: int,
    image_px: int,
    dtype: Any = jnp.float32,
    *,
    geometry: str | dinov2.Geometry | None = None,
    seed: int = 0,
) -> tuple[dinov2.Dinov2, Provenance]:
    """Reads the weights of the first blocks of a DINOv2.

    Args:
        source: One of
            a folder with config.json and model.safetensors (or its shards),
            a .safetensors file (Hugging Face names: config.json beside it),
            a .pth file of facebookresearch/dinov2 (read by torch in a child process),
            a hub id such as "facebook/dinov2-giant",
            "bundled": the small network of this package,
            "random": random weights of `geometry`.
        num_blocks: Blocks to keep, up to the last tap.
        image_px: Side of the images; positions are resized to it.
        dtype: float32 or bfloat16, of products and of the weights kept.
        geometry: A name of `dinov2.GEOMETRIES` (or a Geometry) that the file must
            have; needed for "random".
        seed: Of "random".

    Returns:
        The network and where it comes from.

    Raises:
        errors.ConfigError: If a number or name does not fit the network.
        errors.MissingInputError: If a file is absent, or the hub out of reach.
        errors.InputError: If files are damaged or do not fit; lists all faults.

    Example:
        >>> tiny = dinov2.Geometry(32, 3, 2, "gelu", 64, image_px=28)
        >>> net, provenance = load("random", 2, 28, geometry=tiny)
        >>> net.num_tokens, provenance.random
        (5, True)
    """
    source = os.fspath(source)
    dinov2.storage_dtype("cls", dtype)  # refuses other types before long reads
    wanted = _wanted_geometry(geometry)
    if source == "random":
        if wanted is None:
            raise errors.ConfigError(
                "backbone.name",
                "",
                "no geometry is given for random weights",
                f"one of {', '.join(dinov2.GEOMETRIES)}",
                "Name one.",
            )
        _check_use(source, wanted, num_blocks, image_px)
        net = dinov2.random(wanted, num_blocks, image_px, seed, dtype)
        return net, Provenance(source, "random", {}, wanted, True, ())
    with contextlib.ExitStack() as stack:
        config_path, files, hashed = _locate(source, stack)
        tensors = _open(files, stack)
        original = _is_original(source, tensors)
        if original:
            tensors = _plain_names(source, tensors)
        if config_path is not None:
            found = _read_config(config_path)
        elif original:
            found = _infer_geometry(source, tensors, wanted)
        else:
            raise errors.MissingInputError(
                pathlib.Path(source).parent / "config.json",
                "",
                "no such file",
                "the configuration that belongs to the weights",
                "Put the config.json of the model beside the weight file.",
            )
        _check_same(config_path or source, found, wanted, geometry)
        _check_use(source, found, num_blocks, image_px)
        layout = _ORIGINAL if original else _HF
        unneeded = _check_names(source, layout, tensors, found, num_blocks)
        weights = _fill(source, layout, tensors, found, num_blocks, dtype)
    if original:
        origin, rule = "original", "antialias" if found.registers else "offset"
    else:
        origin = "bundled" if source == "bundled" else "hf"
        rule = "antialias" if found.registers else "size"
    resized = resize_positions(
        weights["position"], image_px // found.patch, rule
    )  # float32 until here: one rounding
    weights["position"] = resized.astype(dinov2.storage_dtype("position", dtype))
    net = dinov2.Dinov2(found, weights, num_blocks, image_px, dtype)
    digests = {path.name: sealed.sha256_of(path) for path in hashed}
    return net, Provenance(source, origin, digests, found, False, unneeded)


def resize_positions(positions: np.ndarray, grid: int, rule: str) -> np.ndarray:
    """Resizes a square grid of position embeddings, bicubic, as torch does.

    Args:
        positions: (1 + G*G, C) float, CLS first, then the grid row by row.
        grid: New side of the grid. The same side changes nothing.
        rule: "size": Hugging Face, no registers: coordinates from the sizes,
            a = -0.75, no antialiasing. "antialias": Hugging Face and original with
            registers: a = -0.5, kernel widened when shrinking. "offset": original
            without registers: as "size", with the scale (grid + 0.1) / G.

    Returns:
        (1 + grid*grid, C) in the dtype given.

    References:
        facebookresearch/dinov2, vision_transformer.py, interpolate_pos_encoding.
    """
    side = round((positions.shape[0] - 1) ** 0.5)
    if grid == side:
        return positions
    step = side / (grid + 0.1) if rule == "offset" else side / grid
    matrix = _cubic_matrix(side, grid, step, antialias=rule == "antialias")
    old = positions[1:].reshape(side, side, -1).astype(np.float64)
    new = np.einsum("yi,xj,ijC->yxC", matrix, matrix, old, optimize=True)
    new = new.reshape(grid * grid, -1).astype(positions.dtype)
    return np.concatenate([positions[:1], new])


def _cubic_matrix(old: int, new: int, step: float, *, antialias: bool) -> np.ndarray:
    """(new, old) weights of one axis of torch's bicubic interpolation."""
    a = -0.5 if antialias else -0.75
    width = max(step, 1.0) if antialias else 1.0
    matrix = np.zeros((new, old))
    for row in range(new):
        centre = (row + 0.5) * step
        if antialias:  # taps outside are left out, the rest is renormalised
            first = max(int(centre - 2 * width + 0.5), 0)
            last = min(int(centre + 2 * width + 0.5), old)
        else:  # four taps; those outside repeat the border
            first = int(np.floor(centre - 0.5)) - 1
            last = first + 4
        taps = np.arange(first, last)
        x = np.abs((taps - centre + 0.5) / width)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * a
        weight = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
        if antialias:
            weight /= weight.sum()
        np.add.at(matrix[row], np.clip(taps, 0, old - 1), weight)
    return matrix


class _Layout(NamedTuple):
    """Names of tensors in a file: of our weight, those that make it, side by side."""

    outer: dict[str, str]
    block_prefix: str
    block: dict[str, tuple[str, ...]]
    up_down: dict[str, tuple[str, str]]  # by Geometry.mlp
    unneeded: tuple[str, ...]


def _block_names(
    parts: dict[str, str], qkv: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """Adds kernel/bias or scale/bias and .weight/.bias to the names of layers."""
    names: dict[str, tuple[str, ...]] = {
        "scale1": (parts["scale1"],),
        "scale2": (parts["scale2"],),
    }
    for norm in ("norm1", "norm2"):
        names[f"{norm}_scale"] = (f"{norm}.weight",)
        names[f"{norm}_bias"] = (f"{norm}.bias",)
    names["out_kernel"] = (f"{parts['out']}.weight",)
    names["out_bias"] = (f"{parts['out']}.bias",)
    names["qkv_kernel"] = tuple(f"{part}.weight" for part in qkv)
    names["qkv_bias"] = tuple(f"{part}.bias" for part in qkv)
    return names


_HF = _Layout(
    outer={
        "patch_kernel": "embeddings.patch_embeddings.projection.weight",
        "patch_bias": "embeddings.patch_embeddings.projection.bias",
        "cls": "embeddings.cls_token",
        "position": "embeddings.position_embeddings",
        "registers": "embeddings.register_tokens",
    },
    block_prefix="encoder.layer.",
    block=_block_names(
        {
            "scale1": "layer_scale1.lambda1",
            "scale2": "layer_scale2.lambda1",
            "out": "attention.output.dense",
        },
        tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    ),
    up_down={
        "gelu": ("mlp.fc1", "mlp.fc2"),
        "swiglu": ("mlp.weights_in", "mlp.weights_out"),
    },
    unneeded=("embeddings.mask_token", "layernorm.weight", "layernorm.bias"),
)
_ORIGINAL = _Layout(
    outer={
        "patch_kernel": "patch_embed.proj.weight",
        "patch_bias": "patch_embed.proj.bias",
        "cls": "cls_token",
        "position": "pos_embed",
        "registers": "register_tokens",
    },
    block_prefix="blocks.",
    block=_block_names(
        {"scale1": "ls1.gamma", "scale2": "ls2.gamma", "out": "attn.proj"},
        ("attn.qkv",),
    ),
    up_down={"gelu": ("mlp.fc1", "mlp.fc2"), "swiglu": ("mlp.w12", "mlp.w3")},
    unneeded=("mask_token", "norm.weight", "norm.bias"),
)


class _Tensor(NamedTuple):
    """A tensor of an open file, not read yet."""

    handle: Any
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> np.ndarray:
        return self.handle.get_tensor(self.name)


def _wanted_geometry(
    geometry: str | dinov2.Geometry | None,
) -> dinov2.Geometry | None:
    if geometry is None or isinstance(geometry, dinov2.Geometry):
        return geometry
    if geometry not in dinov2.GEOMETRIES:
        raise errors.ConfigError(
            "backbone.name",
            "",
            f"{geometry!r} is unknown",
            "the name of a DINOv2",
            errors.nearest(geometry, dinov2.GEOMETRIES),
        )
    return dinov2.GEOMETRIES[geometry]


def _check_use(
    source: str, geometry: dinov2.Geometry, num_blocks: int, image_px: int
) -> None:
    """The taps and the image size must fit the network."""
    if not 1 <= num_blocks <= geometry.depth:
        raise errors.ConfigError(
            "backbone.taps",
            "",
            f"the last tap is {num_blocks}; {source} has {geometry.depth} blocks",
            f"1..{geometry.depth}",
            "Choose other taps or a deeper backbone.",
        )
    if image_px < geometry.patch or image_px % geometry.patch:
        raise errors.ConfigError(
            "image_px",
            "",
            f"images of {image_px} px do not divide into patches of {geometry.patch}",
            f"a multiple of {geometry.patch}, such as {16 * geometry.patch}",
            "Choose another size.",
        )


def _check_same(
    place: str | os.PathLike,
    found: dinov2.Geometry,
    wanted: dinov2.Geometry | None,
    name: str | dinov2.Geometry | None,
) -> None:
    """The file must hold the network that the configuration names."""
    if wanted is None or found == wanted:
        return
    # The position grid is resized anyway, so its size in the file is free.
    fields = ("width", "depth", "heads", "mlp", "mlp_width", "patch", "registers")
    differ = [f for f in fields if getattr(found, f) != getattr(wanted, f)]
    if differ:
        raise errors.InputError(
            place,
            "",
            "the weights have " + ", ".join(f"{f} {getattr(found, f)}" for f in differ),
            f"{name if isinstance(name, str) else 'the geometry asked for'} with "
            + ", ".join(f"{f} {getattr(wanted, f)}" for f in differ),
            "Set backbone.name and backbone.weights to the same network.",
        )


# 1. Locate -----------------------------------------------------------------------


def _locate(
    source: str, stack: contextlib.ExitStack
) -> tuple[pathlib.Path | None, list[pathlib.Path], list[pathlib.Path]]:
    """Configuration, safetensors files to read, and files that identify them."""
    path = BUNDLED if source == "bundled" else pathlib.Path(source).expanduser()
    if path.is_dir():
        config = path / "config.json"
        if not config.is_file():
            raise errors.MissingInputError(
                config,
                "",
                "no such file",
                "a Hugging Face folder (config.json and model.safetensors)",
                "Name the .pth or .safetensors file itself if that is what you have.",
            )
        files = _folder_files(path)
        return config, files, files
    if path.is_file():
        config = path.parent / "config.json"
        beside = config if config.is_file() else None
        if path.suffix == ".safetensors":
            return beside, [path], [path]
        if path.suffix in (".pth", ".pt", ".bin"):
            # A config.json beside a .pth may belong to something else: not read.
            return None, [_convert(path, stack)], [path]
        raise errors.InputError(
            path,
            "",
            f"the ending is {path.suffix!r}",
            ".safetensors, .pth or a folder",
            "Name a weight file.",
        )
    looks_like_path = source.startswith((".", "/", "~")) or path.suffix in (
        ".pth",
        ".pt",
        ".bin",
        ".safetensors",
    )
    if looks_like_path or not _HUB_ID.fullmatch(source):
        raise errors.MissingInputError(
            source,
            "",
            "no such file or folder",
            "a folder, a .safetensors or .pth file, a hub id such as "
            "facebook/dinov2-giant, 'bundled' or 'random'",
            "Check backbone.weights.",
        )
    return _hub_files(source)


def _folder_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """model.safetensors, or the shards its index names, of a folder."""
    single, index = folder / "model.safetensors", folder / _INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        pickles = sorted(p.name for p in folder.glob("*.bin"))
        raise errors.MissingInputError(
            single,
            "",
            f"no such file (found {', '.join(pickles)})" if pickles else "no such file",
            f"model.safetensors or {_INDEX}",
            "Download the safetensors form of the model.",
        )
    names = _shard_names(index)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise errors.MissingInputError(
            index,
            "weight_map",
            f"{len(missing)} of {len(names)} files are absent: {', '.join(missing)}",
            "every file of the index beside it",
            "Download them again.",
        )
    return [folder / name for name in names]


_INDEX = "model.safetensors.index.json"


def _shard_names(index: pathlib.Path) -> list[str]:
    """Files of an index, plain names only: an index must not reach outside."""
    content = _read_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise errors.InputError(
            index,
            "weight_map",
            "absent or empty",
            "tensor names and their files",
            "Download the file again.",
        )
    names = sorted({str(name) for name in weight_map.values()})
    outside = [
        name
        for name in names
        if re.fullmatch(r"[\w.-]+\.safetensors", name) is None or name.startswith(".")
    ]
    if outside:
        raise errors.InputError(
            index,
            "weight_map",
            f"{', '.join(repr(name[:80]) for name in outside[:8])} refused",
            "names of .safetensors files in the same folder",
            "Do not trust this folder; download the model from its source.",
        )
    return names


def _hub_files(
    repo: str,
) -> tuple[pathlib.Path, list[pathlib.Path], list[pathlib.Path]]:
    """The same from the Hugging Face cache, downloading what is not there."""
    import huggingface_hub
    from huggingface_hub import errors as hub_errors

    def fetch(name: str) -> pathlib.Path:
        return pathlib.Path(huggingface_hub.hf_hub_download(repo, name))

    try:
        config = fetch("config.json")
        try:
            files = [fetch("model.safetensors")]
        except hub_errors.EntryNotFoundError:
            files = [fetch(name) for name in _shard_names(fetch(_INDEX))]
    except (OSError, hub_errors.HFValidationError) as error:
        if isinstance(error, errors.InputError):
            raise
        cache = huggingface_hub.constants.HF_HUB_CACHE
        why = str(error.__cause__ or error).strip().splitlines()[0][:200]
        raise errors.MissingInputError(
            repo,
            "",
            f"not a folder here, not in the cache {cache}, and the Hugging Face hub "
            f"did not give it ({why})",
            "weights that can be reached",
            f"On a machine with internet run 'hf download {repo} config.json "
            "model.safetensors', then copy its cache here and set HF_HUB_CACHE to it, "
            "or set backbone.weights to a folder with the two files.",
        ) from None
    return config, files, files


def _convert(path: pathlib.Path, stack: contextlib.ExitStack) -> pathlib.Path:
    """Has a child process write the tensors of a .pth as safetensors."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ubrain-pth-"))
    target = pathlib.Path(folder) / "model.safetensors"
    keep = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "HOME", "TMPDIR")
    child = subprocess.run(
        [sys.executable, "-I", pth.__file__, str(path.resolve()), str(target)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={name: os.environ[name] for name in keep if name in os.environ},
        check=False,
    )
    if child.returncode == pth.REFUSED:
        reason = json.loads(child.stdout)["refused"]
        found, _, action = reason.partition(". ")
        raise errors.InputError(path, "", found, "a .pth that holds tensors", action)
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1][:200]
        raise errors.InputError(
            path,
            "",
            f"the reader stopped with code {child.returncode} ({last})",
            "a .pth that holds tensors",
            "Copy or download the file again.",
        )
    return target


# 2. Geometry ---------------------------------------------------------------------


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """A small JSON object, or a clear refusal."""
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise errors.InputError(
            path,
            "",
            f"{size / 1e6:.0f} MB of JSON",
            f"at most {MAX_JSON_BYTES // 10**6} MB",
            "This is no configuration or index; download it again.",
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise errors.InputError(
            path, "", f"not JSON ({error})", "a JSON object", "Download it again."
        ) from None
    if not isinstance(content, dict):
        raise errors.InputError(
            path,
            "",
            f"a JSON {type(content).__name__}",
            "a JSON object",
            "Download it again.",
        )
    return content


def _read_config(path: pathlib.Path) -> dinov2.Geometry:
    """Geometry of a Hugging Face config.json; all that does not fit is listed."""
    content = _read_json(path)
    model_type = content.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise errors.InputError(
            path,
            "model_type",
            f"{model_type!r}",
            " or ".join(_MODEL_TYPES),
            "Only DINOv2 backbones are read.",
        )
    # transformers makes a list as long as the depth, so numbers are checked first.
    limit = 100_000  # far above any ViT
    whole = {
        "hidden_size": 1,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "patch_size": 1,
        "image_size": 1,
        "num_register_tokens": 0,
    }
    faults = [
        f"{key} is {content[key]!r}, expected a whole number in {low}..{limit}"
        for key, low in whole.items()
        if key in content
        and (type(content[key]) is not int or not low <= content[key] <= limit)
    ]
    if faults:
        raise errors.InputError(
            path, "", "; ".join(faults), f"a {model_type}", "Download it again."
        )
    # Seconds to import, and not needed by other sources.
    import transformers
    from huggingface_hub import errors as hub_errors

    registers = model_type == "dinov2_with_registers"
    kind = transformers.Dinov2Config
    if registers:
        kind = transformers.Dinov2WithRegistersConfig
    try:
        config = kind.from_dict(content)
    except (hub_errors.StrictDataclassError, ValueError, TypeError) as error:
        raise errors.InputError(
            path,
            "",
            " ".join(str(error).split())[:300],
            f"a configuration of {model_type}",
            "Download it again.",
        ) from None
    fixed = {"num_channels": 3, "qkv_bias": True, "hidden_act": "gelu"}
    faults = [
        f"{key} is {getattr(config, key)!r}, expected {value!r}"
        for key, value in fixed.items()
        if getattr(config, key) != value
    ]
    if not config.mlp_ratio > 0:
        faults.append(f"mlp_ratio is {config.mlp_ratio!r}, expected above 0")
    if not config.layer_norm_eps > 0:
        faults.append(f"layer_norm_eps is {config.layer_norm_eps!r}, expected above 0")
    for number, part in (
        ("hidden_size", "num_attention_heads"),
        ("image_size", "patch_size"),
    ):
        if getattr(config, number) % getattr(config, part):
            faults.append(
                f"{number} {getattr(config, number)} is no multiple of "
                f"{part} {getattr(config, part)}"
            )
    if faults:
        raise errors.InputError(
            path,
            "",
            "; ".join(faults),
            "a DINOv2 as released",
            "This network cannot be run here.",
        )
    hidden = int(config.hidden_size * config.mlp_ratio)
    if config.use_swiglu_ffn:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return dinov2.Geometry(
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp="swiglu" if config.use_swiglu_ffn else "gelu",
        mlp_width=hidden,
        patch=cast(int, config.patch_size),
        registers=config.num_register_tokens if registers else 0,
        image_px=cast(int, config.image_size),
        eps=config.layer_norm_eps,
    )


def _infer_geometry(
    source: str, tensors: dict[str, _Tensor], wanted: dinov2.Geometry | None
) -> dinov2.Geometry:
    """Geometry of an original file from its shapes; heads from `wanted` or width."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors or len(tensors[name].shape) != rank:
            found = tensors[name].shape if name in tensors else "absent"
            raise errors.InputError(
                source,
                name,
                str(found),
                f"a tensor of rank {rank}, as in facebookresearch/dinov2",
                "This is no DINOv2 weight file, or a damaged one.",
            )
        return tensors[name].shape

    width, _, patch, _ = shape("patch_embed.proj.weight", 4)
    side = max(round(max(shape("pos_embed", 3)[1] - 1, 1) ** 0.5), 1)
    mlp = "swiglu" if "blocks.0.mlp.w12.weight" in tensors else "gelu"
    down = "blocks.0.mlp." + ("w3" if mlp == "swiglu" else "fc2") + ".weight"
    hidden = shape(down, 2)[1]
    numbers = [re.match(r"blocks\.(\d{1,4})\.", name) for name in tensors]
    registers = 0
    if "register_tokens" in tensors:
        registers = shape("register_tokens", 3)[1]
    heads = wanted.heads if wanted is not None else max(width // _HEAD_CHANNELS, 1)
    if width % heads:
        raise errors.InputError(
            source,
            "patch_embed.proj.weight",
            f"width {width} does not divide into heads of {_HEAD_CHANNELS} channels",
            "a released DINOv2",
            "Give the geometry, or the Hugging Face form with its config.json.",
        )
    return dinov2.Geometry(
        width=width,
        depth=max(int(match[1]) for match in numbers if match) + 1,
        heads=heads,
        mlp=mlp,
        mlp_width=hidden,
        patch=patch,
        registers=registers,
        image_px=side * patch,
    )


# 3. Check ------------------------------------------------------------------------


def _open(files: list[pathlib.Path], stack: contextlib.ExitStack) -> dict[str, _Tensor]:
    """Names, shapes and types of the tensors of safetensors files."""
    tensors: dict[str, _Tensor] = {}
    twice = []
    for path in files:
        _check_header(path)
        try:
            handle = stack.enter_context(safetensors.safe_open(path, "numpy"))
        except safetensors.SafetensorError as error:
            raise errors.InputError(
                path,
                "header",
                f"damaged or truncated ({error})",
                "a safetensors file",
                "Copy or download it again.",
            ) from None
        for name in handle.keys():
            if name in tensors:
                twice.append(name)
            view = handle.get_slice(name)
            tensors[name] = _Tensor(
                handle, name, tuple(view.get_shape()), view.get_dtype()
            )
    if twice:
        raise errors.InputError(
            files[0].parent,
            "",
            f"in two files: {_grouped(twice)}",
            "every tensor once",
            "Download the model again.",
        )
    return tensors


def _check_header(path: pathlib.Path) -> None:
    """The first 8 bytes say how long the header is; it must fit in the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if size < 8 or header > size - 8:
        raise errors.InputError(
            path,
            "header",
            f"the header says {header} bytes in a file of {size} bytes"
            if size >= 8
            else f"the file has {size} bytes",
            "a safetensors file",
            "The file is cut short or no safetensors; download it again.",
        )


def _is_original(source: str, tensors: dict[str, _Tensor]) -> bool:
    """Whether names are those of facebookresearch/dinov2."""
    if any(name.startswith("embeddings.") for name in tensors):
        return False
    if any(re.search(r"(^|\.)(patch_embed\.|pos_embed$)", name) for name in tensors):
        return True
    raise errors.InputError(
        source,
        "",
        f"no tensor of a DINOv2 among {len(tensors)} "
        f"({', '.join(sorted(tensors)[:4])} ...)",
        "names such as embeddings.cls_token or pos_embed",
        "Name the weights of the backbone.",
    )


def _plain_names(source: str, tensors: dict[str, _Tensor]) -> dict[str, _Tensor]:
    """Names of training checkpoints -> those of the hub.

    Training wraps the backbone ("backbone.", beside the heads of the losses) and
    chunks its blocks ("blocks.<chunk>.<number>"; numbers run over all chunks).
    """
    plain, twice = {}, []
    for name, tensor in tensors.items():
        short = name.removeprefix("module.").removeprefix("backbone.")
        short = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", short)
        if short in plain:
            twice.append(short)
        plain[short] = tensor
    if twice:
        raise errors.InputError(
            source,
            "",
            f"two tensors for {_grouped(twice)}",
            "every block once",
            "Save the backbone alone.",
        )
    return plain


def read_tensors(path: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, _Tensor]:
    """Tensors of a .safetensors or .pth file of any network, open while `stack` is.

    Raises:
        errors.InputError: If it is damaged, or holds anything but tensors.
    """
    if path.suffix in (".pth", ".pt", ".bin"):
        path = _convert(path, stack)
    elif path.suffix != ".safetensors":
        raise errors.InputError(
            path,
            "",
            f"the ending is {path.suffix!r}",
            ".safetensors or .pth",
            "Name a weight file.",
        )
    return _open([path], stack)


class _Need(NamedTuple):
    """What one weight of the network takes from the file."""

    target: str
    block: int | None
    sources: tuple[str, ...]
    shape: tuple[int, ...]  # of each source


def _needs(
    layout: _Layout, geometry: dinov2.Geometry, num_blocks: int
) -> Iterator[_Need]:
    """All tensors that the first blocks need, with their shapes in the file."""
    names = dict(layout.block)
    for ours, theirs in zip(("up", "down"), layout.up_down[geometry.mlp], strict=True):
        names[f"{ours}_kernel"] = (f"{theirs}.weight",)
        names[f"{ours}_bias"] = (f"{theirs}.bias",)
    expected = dinov2.shapes(geometry, num_blocks, geometry.image_px)
    width, patch = geometry.width, geometry.patch
    for target, name in layout.outer.items():
        shape = expected[target]
        if target == "patch_kernel":
            shape = (width, 3, patch, patch)
        elif target == "cls":
            shape = (1, 1, width)
        elif target in ("position", "registers"):
            shape = (1, *shape)
        if target != "registers" or geometry.registers:
            yield _Need(target, None, (name,), shape)
    for target, parts in names.items():
        shape = expected[f"blocks.{target}"][1:]
        shape = (shape[-1] // len(parts), *shape[:-1])  # (out, in), or (out,)
        for k in range(num_blocks):
            prefix = f"{layout.block_prefix}{k}."
            sources = tuple(prefix + part for part in parts)
            yield _Need(f"blocks.{target}", k, sources, shape)


def _check_names(
    source: str,
    layout: _Layout,
    tensors: dict[str, _Tensor],
    geometry: dinov2.Geometry,
    num_blocks: int,
) -> tuple[str, ...]:
    """Compares the file with the needs; returns the known tensors left out."""
    needed = {
        name: need.shape
        for need in _needs(layout, geometry, num_blocks)
        for name in need.sources
    }
    later = {
        name
        for need in _needs(layout, geometry, geometry.depth)
        for name in need.sources
    }
    known = later | set(layout.unneeded)
    heads = ("dino_head.", "ibot_head.")  # beside the backbone in training checkpoints
    unneeded = [
        name
        for name in tensors
        if name not in needed and (name in known or name.startswith(heads))
    ]
    missing = [name for name in needed if name not in tensors]
    extra = [n for n in tensors if n not in needed and n not in set(unneeded)]
    both = [name for name in needed if name in tensors]
    shaped = [n for n in both if tensors[n].shape != needed[n]]
    typed = [n for n in both if tensors[n].dtype not in _FLOATS]
    broken = [
        n
        for n in both
        if n not in shaped and n not in typed and not _finite(tensors[n])
    ]
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing: {_grouped(missing)}")
    if extra:
        faults.append(f"{len(extra)} unknown: {_grouped(extra)}")
    if shaped:
        listed = _grouped(
            f"{n} {tensors[n].shape}, expected {needed[n]}" for n in shaped
        )
        faults.append(f"{len(shaped)} of another shape: {listed}")
    if typed:
        listed = _grouped(f"{n} {tensors[n].dtype}" for n in typed)
        faults.append(f"{len(typed)} not floating point: {listed}")
    if broken:
        faults.append(f"{len(broken)} with non-finite values: {_grouped(broken)}")
    if faults:
        raise errors.InputError(
            source,
            "",
            "; ".join(faults),
            f"the {len(needed)} tensors of {num_blocks} blocks of width "
            f"{geometry.width}",
            "Use weights and a configuration that belong together.",
        )
    return tuple(_group(unneeded))


def _finite(tensor: _Tensor) -> bool:
    """Whether all values are finite, and stay so in float32."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(tensor.read().astype(np.float32, copy=False)).all())


def _grouped(names: Iterable[str]) -> str:
    return ", ".join(_group(names))


def _group(names: Iterable[str]) -> list[str]:
    """Names that differ in the number of the block only, as one.

    Example:
        >>> _group(["blocks.0.a", "blocks.1.a", "blocks.2.a", "b", "blocks.5.a"])
        ['blocks.[0-2,5].a', 'b']
    """
    numbers: dict[tuple[str, str], list[int]] = {}
    for name in names:
        match = re.match(r"(blocks\.|encoder\.layer\.)(\d+)(\..*)", name)
        if match:
            numbers.setdefault((match[1], match[3]), []).append(int(match[2]))
        else:
            numbers.setdefault((name, ""), [])
    grouped = []
    for (before, after), blocks in numbers.items():
        runs: list[list[int]] = []
        for number in sorted(blocks):
            if runs and number == runs[-1][1] + 1:
                runs[-1][1] = number
            else:
                runs.append([number, number])
        text = ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
        if len(blocks) > 1:
            text = f"[{text}]"
        grouped.append(f"{before}{text}{after}")
    return grouped


# 4. Fill -------------------------------------------------------------------------


def _fill(
    source: str,
    layout: _Layout,
    tensors: dict[str, _Tensor],
    geometry: dinov2.Geometry,
    num_blocks: int,
    dtype: Any,
) -> dict[str, np.ndarray]:
    """Our weights from checked tensors; positions stay float32 at their own size."""
    weights = {}
    for name, shape in dinov2.shapes(geometry, num_blocks, geometry.image_px).items():
        kept = np.float32 if name == "position" else dinov2.storage_dtype(name, dtype)
        weights[name] = np.empty(shape, kept)
    for need in _needs(layout, geometry, num_blocks):
        target = weights[need.target]
        if need.block is not None:
            target = target[need.block]
        size = target.shape[-1] // len(need.sources)
        for i, name in enumerate(need.sources):
            value = tensors[name].read()
            if need.target == "patch_kernel":  # (out, rgb, y, x) -> (y x rgb, out)
                value = value.transpose(2, 3, 1, 0)
                value = value.reshape(-1, value.shape[-1])
            elif need.block is not None:
                value = value.T
            part = target[..., i * size : (i + 1) * size]
            part[...] = value.reshape(part.shape)
    return weights
