"""Every setting of an experiment: frozen dataclasses, with ConfigDict at the edge.

The comment above a field gives its unit and the paper's value where that differs
from the default. A file in configs/ changes values of `default()`; the command line
changes them again; `parse` turns the result into `Experiment` and refuses unknown
keys, other types and values out of range, all at once.
"""

import dataclasses
import hashlib
import json
import math
import os
import types
import typing
from typing import Any, cast

import ml_collections
from ml_collections import config_dict

from ubrain_jax import errors


@dataclasses.dataclass(frozen=True)
class Data:
    # Stores written by `prepare`, trained on together.
    crowd: tuple[str, ...] = ()
    # Subjects to use, by name; empty: all subjects of all stores.
    subjects: tuple[str, ...] = ()
    # Pictures of each subject to use for training and validation, a choice by
    # train.seed; a smaller number is part of a larger one. None: all.
    num_images: int | None = None
    # How often each store gives an image: in proportion to its number of training
    # images to this power. 1: every image equally often; 0: every store.
    store_power: float = 1.0
    # Images in a training batch, over all devices.
    batch_images: int = 32
    # Images of a batch in a row that are of one subject and share one draw of voxels,
    # for loss.contrastive; 1: each image has its own, of all subjects who saw it.
    group_images: int = 1
    # Voxels drawn for each image.
    voxels_per_image: int = 5000
    # Draw them with replacement (the paper: without), N / S from each stripe.
    replacement: bool = False
    # Each training image is moved by a whole number of pixels in -shift_px..shift_px
    # in x and in y, its edge repeated. The authors' released code: 3.
    shift_px: int = 0
    # Stripes of the voxel table; fixed for the life of a run.
    stripes: int = 8
    # Threads that read batches ahead of the device.
    read_threads: int = 4
    # Training pictures and responses stay on the devices: 'on', 'off', or 'auto',
    # where they fit beside a step (never on a CPU). The batches are the same.
    on_device: str = "auto"


@dataclasses.dataclass(frozen=True)
class Backbone:
    # A name in backbone.dinov2.GEOMETRIES; needed when weights are 'random', checked
    # against the weights otherwise. Empty: whatever the weights are.
    name: str = "dinov2-giant"
    # Hub id, folder, file, 'bundled', or 'random' (then every output says so).
    weights: str = "facebook/dinov2-giant"
    # Blocks whose output is used, 1-based; nothing after the last one runs.
    taps: tuple[int, ...] = (1, 6, 12, 18, 24)
    # Side of the square images the network sees, pixels.
    image_px: int = 224
    # 'bfloat16' or 'float32', for weights and products of the frozen network.
    dtype: str = "bfloat16"
    # 'xla', or 'cudnn' on NVIDIA GPUs.
    attention: str = "xla"
    # 'none', 'cheap' (elementwise parts are recomputed) or 'full'.
    remat: str = "cheap"
    # Give the CLS token to the head beside the patches (the paper: patches only).
    keep_cls: bool = False
    # Tokens that the head is not given, with keep_cls: 'registers', or 'last_patches':
    # as many patches from the end as there are registers (older released weights).
    drop: str = "registers"


@dataclasses.dataclass(frozen=True)
class Adapter:
    # 'lora' on the attention output projections, 'residual' after each block, 'none'.
    kind: str = "lora"
    rank: int = 16
    # The low-rank product is scaled by alpha / rank.
    alpha: float = 16.0


@dataclasses.dataclass(frozen=True)
class Head:
    # Numbers in a voxel's embedding (E).
    embed_dim: int = 256
    # Channels of the projected features (C).
    channels: int = 128
    # Hidden width of the MLP over channels.
    mlp_ratio: int = 4
    dropout: float = 0.25
    # A learned vector for each token is added to the keys of the spatial attention.
    position: bool = True
    # What weighs taps and channels: 'embedding', each voxel by its own, or 'shared',
    # one weight for all voxels, which then differ in where they look alone.
    functional: str = "embedding"
    # 'bfloat16' or 'float32', for products; softmax and sums are float32.
    dtype: str = "bfloat16"
    # 'on': the backward pass recomputes one tap at a time instead of keeping all;
    # 'off': keeps them; 'auto': keeps them where a step then fits well in the memory
    # of the devices (never on a CPU, which gains nothing).
    remat: str = "auto"


@dataclasses.dataclass(frozen=True)
class Loss:
    # 'paper': alpha MSE - (1 - alpha) cosine; 'released': MSE - alpha cosine.
    kind: str = "paper"
    alpha: float = 0.1
    # Weight of symmetric InfoNCE over the images of a group (data.group_images).
    contrastive: float = 0.0
    # Correlations of patterns are divided by it.
    temperature: float = 0.1
    # Weight of the entropy over the other images of a group, which is made large.
    entropy: float = 0.0


@dataclasses.dataclass(frozen=True)
class Optim:
    learning_rate: float = 1e-3
    # Adam divides by the largest second moment so far, not by the present one; needs
    # a dense table.
    amsgrad: bool = False
    # 'constant', 'cosine' down to 1% of learning_rate at the last step, or 'plateau':
    # the rate is multiplied by plateau_factor when more than plateau_patience
    # validations running are not above the best by plateau_threshold; training ends
    # when the rate is below plateau_stop. What is judged is train.val_score.
    schedule: str = "constant"
    plateau_factor: float = 0.1
    plateau_patience: int = 4
    # Correlation, absolute.
    plateau_threshold: float = 0.003
    plateau_stop: float = 1e-7
    # Steps of linear increase from 0.
    warmup_steps: int = 0
    # Update of the voxel table: 'dense' reads and writes every row in every step,
    # 'sparse' the rows of the batch; the numbers are the same but for rounding.
    # 'auto': sparse where a device holds more than `optim.SPARSE_ABOVE` rows.
    table: str = "auto"


@dataclasses.dataclass(frozen=True)
class Train:
    # One of steps and epochs, the other None or 0; an epoch shows every training
    # image once (with data.store_power below 1: as many images as there are).
    steps: int | None = None
    epochs: float | None = None
    seed: int = 0
    # Score the validation images every so many steps; 0: never.
    eval_every_steps: int = 2000
    # The weights that are evaluated: of the 'last' step, or of the 'best' validation.
    select: str = "last"
    # What makes a validation better: the mean over subjects of the 'median' of their
    # voxels' correlations, or of their 75th percentile, 'p75'.
    val_score: str = "median"
    # Workdir of a run whose weights a new one begins with: the shared ones, and the
    # embeddings of subjects of the same name. Empty: random ones.
    init_from: str = ""
    checkpoint_every_steps: int = 1000
    keep_checkpoints: int = 3
    log_every_steps: int = 50
    # Seconds without a finished step, block of an evaluation, save or compilation
    # after which the process ends (exit code 76) and prints where it was; 0: never.
    watchdog_seconds: float = 1800.0


@dataclasses.dataclass(frozen=True)
class Mesh:
    # Devices along each axis; None: chosen from the number of devices.
    data: int | None = None
    voxel: int | None = None


@dataclasses.dataclass(frozen=True)
class Evaluate:
    # Images and voxels in one call of the network; bounds memory, not results.
    batch_images: int = 32
    chunk_voxels: int = 8192
    # Validation images scored during training (a fixed, seeded choice).
    val_images: int = 256
    # Test images whose best matches the report shows.
    report_queries: int = 4
    # Draws of test images for the 95 % intervals of medians and retrieval; 0: none.
    bootstraps: int = 1000
    # Permutations of test images, at least, for each voxel's p and q; 0: no test.
    permutations: int = 1000


@dataclasses.dataclass(frozen=True)
class Experiment:
    data: Data = Data()
    backbone: Backbone = Backbone()
    adapter: Adapter = Adapter()
    head: Head = Head()
    loss: Loss = Loss()
    optim: Optim = Optim()
    train: Train = Train()
    mesh: Mesh = Mesh()
    evaluate: Evaluate = Evaluate()


# Keys that may differ when a run is resumed: they change no number of the training,
# but for rounding (mesh, remat, optim.table) and a schedule that falls to the last step
# (steps, epochs), which `train.check_resumable` looks at.
RESUMABLE = (
    "train.steps",
    "train.epochs",
    "train.eval_every_steps",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.log_every_steps",
    "train.watchdog_seconds",
    "data.read_threads",
    "data.on_device",
    "backbone.remat",
    "head.remat",
    "optim.table",
    "mesh.data",
    "mesh.voxel",
    "evaluate.batch_images",
    "evaluate.chunk_voxels",
    "evaluate.val_images",
    "evaluate.report_queries",
    "evaluate.bootstraps",
    "evaluate.permutations",
)


def default() -> ml_collections.ConfigDict:
    """The paper's values, every key, locked: an unknown key raises on assignment.

    Example:
        >>> default().backbone.taps
        (1, 6, 12, 18, 24)
    """
    sections = {}
    for section in dataclasses.fields(Experiment):
        values = {}
        for name, hint in typing.get_type_hints(section.type).items():
            value = getattr(section.default, name)
            if value is None:
                value = config_dict.placeholder(_inner_type(hint))
            values[name] = value
        sections[section.name] = values
    return ml_collections.ConfigDict(sections).lock()


def parse(given: ml_collections.ConfigDict, file: str = "config") -> Experiment:
    """Checked, immutable form of a config.

    Args:
        given: From a config file, after the changes of the command line.
        file: Name for messages.

    Raises:
        errors.ConfigError: Naming every unknown key (with the nearest known one),
            value of another type and value out of range.
    """
    if not isinstance(given, ml_collections.ConfigDict):
        raise errors.ConfigError(
            file,
            "get_config",
            f"returns {type(given).__name__}",
            "what config.default() returns, with changes",
            "See the files in configs/.",
        )
    return from_dict(given.to_dict(), file)


def from_dict(given: dict[str, Any], file: str) -> Experiment:
    """`parse` for plain dicts, for example a workdir's config.json."""
    faults: list[str] = []
    known = {f.name: f for f in dataclasses.fields(Experiment)}
    sections = {}
    for name in given:
        if name not in known:
            faults.append(f"{name} is unknown ({errors.nearest(name, known)[:-1]})")
    for name, field in known.items():
        hints = typing.get_type_hints(field.type)
        values = {}
        section = given.get(name, {})
        if not isinstance(section, dict):
            faults.append(f"{name} is {section!r}, not a section with keys")
            section = {}
        for key, value in section.items():
            if key not in hints:
                close = errors.nearest(key, hints)[:-1]
                faults.append(f"{name}.{key} is unknown ({close})")
                continue
            if (name, key) == ("head", "remat") and isinstance(value, bool):
                value = "on" if value else "off"  # of before there was 'auto'
            try:
                values[key] = _convert(value, hints[key])
            except TypeError as error:
                faults.append(f"{name}.{key} is {value!r}, not {error}")
        sections[name] = cast(type, field.type)(**values)
    # A command line cannot say None, with which to leave a preset's epochs for steps.
    train, data = sections["train"], sections["data"]
    sections["train"] = dataclasses.replace(
        train, steps=train.steps or None, epochs=train.epochs or None
    )
    sections["data"] = dataclasses.replace(data, num_images=data.num_images or None)
    experiment = Experiment(**sections)
    if not faults:
        faults = _out_of_range(experiment)
    if faults:
        raise errors.ConfigError(
            file,
            "",
            "; ".join(faults),
            "known keys with values of their type and range",
            "See the comments in ubrain_jax/config.py and mend the lines named.",
        )
    return experiment


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Plain nested dict for JSON; tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def without_folders(experiment: Experiment) -> dict[str, Any]:
    """`to_dict` with names for paths: where a file lies is no part of an experiment."""
    values = to_dict(experiment)
    values["data"]["crowd"] = [os.path.basename(p) for p in experiment.data.crowd]
    values["backbone"]["weights"] = os.path.basename(experiment.backbone.weights)
    values["train"]["init_from"] = os.path.basename(experiment.train.init_from)
    return values


def sha256(experiment: Experiment) -> str:
    """Hash of the settings, the same for equal settings on any machine."""
    text = json.dumps(without_folders(experiment), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple]:
    """Keys whose values differ, as "section.key": (old, new)."""
    keys = sorted(
        {f"{s}.{k}" for d in (old, new) for s in d for k in d[s]},
    )
    found = {}
    for key in keys:
        section, name = key.split(".")
        a, b = old.get(section, {}).get(name), new.get(section, {}).get(name)
        if a != b:
            found[key] = (a, b)
    return found


def _inner_type(hint: Any) -> type:
    """`int` of `int | None`."""
    if isinstance(hint, types.UnionType):
        return next(t for t in typing.get_args(hint) if t is not type(None))
    return hint


def _convert(value: Any, hint: Any) -> Any:
    """Value as the type of the hint; TypeError says what was expected."""
    if isinstance(hint, types.UnionType):
        return None if value is None else _convert(value, _inner_type(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        if isinstance(value, str):
            value = (value,)
        if not isinstance(value, tuple | list):
            raise TypeError(f"a tuple of {inner.__name__}")
        if inner is str:  # a command line gives a,b,c as one text
            value = [p for v in value for p in _split(v)]
        return tuple(_convert(v, inner) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TypeError(f"a value of type {hint.__name__}")
    return value


def _split(value: Any) -> list:
    """Parts of a text with commas; anything else as it is."""
    if not isinstance(value, str):
        return [value]
    return [part.strip() for part in value.split(",") if part.strip()]


def _out_of_range(e: Experiment) -> list[str]:
    """One line for each value that cannot work."""
    rules = [
        ("data.crowd", e.data.crowd, len(e.data.crowd) > 0, "at least one store"),
        *(
            (key, value, value >= 1, "1 or more")
            for key, value in {
                "data.batch_images": e.data.batch_images,
                "data.voxels_per_image": e.data.voxels_per_image,
                "data.group_images": e.data.group_images,
                "data.stripes": e.data.stripes,
                "data.read_threads": e.data.read_threads,
                "adapter.rank": e.adapter.rank,
                "head.embed_dim": e.head.embed_dim,
                "head.channels": e.head.channels,
                "head.mlp_ratio": e.head.mlp_ratio,
                "train.checkpoint_every_steps": e.train.checkpoint_every_steps,
                "train.keep_checkpoints": e.train.keep_checkpoints,
                "train.log_every_steps": e.train.log_every_steps,
                "evaluate.batch_images": e.evaluate.batch_images,
                "evaluate.chunk_voxels": e.evaluate.chunk_voxels,
                "evaluate.val_images": e.evaluate.val_images,
            }.items()
        ),
        (
            "data.store_power",
            e.data.store_power,
            0 <= e.data.store_power <= 1,
            "in [0, 1]",
        ),
        (
            "data.shift_px",
            e.data.shift_px,
            0 <= e.data.shift_px < e.backbone.image_px,
            f"0 or more, below backbone.image_px ({e.backbone.image_px})",
        ),
        (
            "backbone.drop",
            e.backbone.drop,
            e.backbone.drop != "last_patches" or e.backbone.keep_cls,
            "'registers', or 'last_patches' with backbone.keep_cls",
        ),
        (
            "data.group_images",
            e.data.group_images,
            e.data.group_images < 1 or e.data.batch_images % e.data.group_images == 0,
            f"a divisor of data.batch_images ({e.data.batch_images})",
        ),
        (
            "data.voxels_per_image",
            e.data.voxels_per_image,
            e.data.stripes < 1 or e.data.voxels_per_image % e.data.stripes == 0,
            f"a multiple of data.stripes ({e.data.stripes})",
        ),
        (
            "backbone.taps",
            e.backbone.taps,
            len(e.backbone.taps) > 0
            and list(e.backbone.taps) == sorted(set(e.backbone.taps))
            and e.backbone.taps[0] >= 1,
            "increasing block numbers from 1",
        ),
        (
            "backbone.image_px",
            e.backbone.image_px,
            e.backbone.image_px >= 14 and e.backbone.image_px % 14 == 0,
            "a multiple of the patch, 14",
        ),
        *(
            (key, value, value in choices, f"one of {', '.join(choices)}")
            for key, value, choices in (
                ("data.on_device", e.data.on_device, ("auto", "on", "off")),
                ("backbone.dtype", e.backbone.dtype, ("bfloat16", "float32")),
                ("backbone.attention", e.backbone.attention, ("xla", "cudnn")),
                ("backbone.remat", e.backbone.remat, ("none", "cheap", "full")),
                ("adapter.kind", e.adapter.kind, ("lora", "residual", "none")),
                ("head.dtype", e.head.dtype, ("bfloat16", "float32")),
                ("head.functional", e.head.functional, ("embedding", "shared")),
                ("head.remat", e.head.remat, ("auto", "on", "off")),
                ("loss.kind", e.loss.kind, ("paper", "released")),
                (
                    "optim.schedule",
                    e.optim.schedule,
                    ("constant", "cosine", "plateau"),
                ),
                ("backbone.drop", e.backbone.drop, ("registers", "last_patches")),
                ("train.val_score", e.train.val_score, ("median", "p75")),
                ("optim.table", e.optim.table, ("auto", "dense", "sparse")),
                ("train.select", e.train.select, ("last", "best")),
            )
        ),
        (
            "data.num_images",
            e.data.num_images,
            e.data.num_images is None or e.data.num_images >= 4,
            "4 or more (some are for validation)",
        ),
        (
            "train.select",
            e.train.select,
            e.train.select == "last" or e.train.eval_every_steps > 0,
            "'best' with train.eval_every_steps above 0",
        ),
        (
            "adapter.alpha",
            e.adapter.alpha,
            math.isfinite(e.adapter.alpha) and e.adapter.alpha > 0,
            "finite and above 0",
        ),
        *(
            (key, value, value >= 0, ">= 0")
            for key, value in (
                ("evaluate.report_queries", e.evaluate.report_queries),
                ("evaluate.bootstraps", e.evaluate.bootstraps),
                ("evaluate.permutations", e.evaluate.permutations),
            )
        ),
        (
            "data.subjects",
            e.data.subjects,
            len(set(e.data.subjects)) == len(e.data.subjects),
            "each subject once",
        ),
        (
            "backbone.attention",
            e.backbone.attention,
            e.backbone.attention != "cudnn" or e.backbone.dtype == "bfloat16",
            "'cudnn' with backbone.dtype 'float32'; it needs bfloat16",
        ),
        ("head.dropout", e.head.dropout, 0 <= e.head.dropout < 1, "in [0, 1)"),
        ("loss.alpha", e.loss.alpha, 0 <= e.loss.alpha <= 1, "in [0, 1]"),
        *(
            (key, value, 0 <= value < math.inf, "finite and >= 0")
            for key, value in (
                ("loss.contrastive", e.loss.contrastive),
                ("loss.entropy", e.loss.entropy),
            )
        ),
        (
            "loss.temperature",
            e.loss.temperature,
            0 < e.loss.temperature < math.inf,
            "finite and above 0",
        ),
        (
            "data.group_images",
            e.data.group_images,
            e.loss.contrastive <= 0 or e.data.group_images >= 2,
            f"2 or more, for loss.contrastive {e.loss.contrastive}",
        ),
        (
            "loss.entropy",
            e.loss.entropy,
            e.loss.entropy <= 0 or e.loss.contrastive > 0,
            "0 without loss.contrastive",
        ),
        (
            "data.group_images",
            e.data.group_images,
            e.loss.entropy <= 0 or e.data.group_images >= 3,
            f"3 or more, for loss.entropy {e.loss.entropy}",
        ),
        (
            "optim.learning_rate",
            e.optim.learning_rate,
            math.isfinite(e.optim.learning_rate) and e.optim.learning_rate > 0,
            "finite and above 0",
        ),
        (
            "optim.table",
            e.optim.table,
            e.optim.table != "sparse" or not e.optim.amsgrad,
            "'dense' or 'auto', which optim.amsgrad needs",
        ),
        (
            "optim.schedule",
            e.optim.schedule,
            e.optim.schedule != "plateau" or e.train.eval_every_steps > 0,
            "'plateau' with train.eval_every_steps above 0",
        ),
        (
            "optim.plateau_factor",
            e.optim.plateau_factor,
            0 < e.optim.plateau_factor < 1,
            "between 0 and 1",
        ),
        (
            "optim.plateau_patience",
            e.optim.plateau_patience,
            e.optim.plateau_patience >= 0,
            ">= 0",
        ),
        *(
            (key, value, 0 <= value < limit, f"0 or more, below {limit}")
            for key, value, limit in (
                ("optim.plateau_threshold", e.optim.plateau_threshold, math.inf),
                ("optim.plateau_stop", e.optim.plateau_stop, e.optim.learning_rate),
            )
        ),
        ("optim.warmup_steps", e.optim.warmup_steps, e.optim.warmup_steps >= 0, ">= 0"),
        (
            "optim.warmup_steps",
            e.optim.warmup_steps,
            e.optim.warmup_steps <= (e.train.steps or math.inf),
            f"at most train.steps ({e.train.steps})",
        ),
        (
            "train.steps and train.epochs",
            (e.train.steps, e.train.epochs),
            (e.train.steps is None) != (e.train.epochs is None),
            "exactly one of the two",
        ),
        ("train.steps", e.train.steps, (e.train.steps or 1) >= 1, "1 or more"),
        (
            "train.epochs",
            e.train.epochs,
            0 < (e.train.epochs or 1) < math.inf,
            "finite and above 0",
        ),
        ("train.seed", e.train.seed, 0 <= e.train.seed < 2**31, "in 0..2^31-1"),
        (
            "train.eval_every_steps",
            e.train.eval_every_steps,
            e.train.eval_every_steps >= 0,
            ">= 0",
        ),
        (
            "train.watchdog_seconds",
            e.train.watchdog_seconds,
            0 <= e.train.watchdog_seconds < math.inf,
            ">= 0",
        ),
        *(
            (key, value, value is None or value >= 1, "1 or more")
            for key, value in (
                ("mesh.data", e.mesh.data),
                ("mesh.voxel", e.mesh.voxel),
            )
        ),
        (
            "mesh.voxel",
            e.mesh.voxel,
            e.data.stripes % (e.mesh.voxel or 1) == 0,
            f"a divisor of data.stripes ({e.data.stripes})",
        ),
    ]
    return [
        f"{key} is {value!r}, not {wanted}"
        for key, value, ok, wanted in rules
        if not ok
    ]
