"""Makes a bundle of the authors' released weights, and proves that it computes them.

    python -m ubrain_jax.convert --released=encoder_ch128.pth \\
        --backbone=facebook/dinov2-with-registers-large --out=released-encoder

Files of torch are read without torch and without unpickling them. Before anything is
written, two pictures and up to 1,000 voxels go through `model.encoder` and through a
plain NumPy form of the released code in float64; they must agree.
"""

import os
import pathlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from flax import nnx

import ubrain_jax
from ubrain_jax import cluster, config, crowd, errors, export, sealed
from ubrain_jax.backbone import dinov2, weights
from ubrain_jax.model import (
    bundle,
    encoder,
    released,
    released_names,
    released_numpy,
)

# Voxels of subjects 1..8 of NSD in the released table, in this order.
NSD_VOXELS = (39548, 39548, 39548, 39548, 39548, 39198, 39548, 39511)
PROBE_PICTURES, PROBE_VOXELS = 2, 1000
# Largest difference between the two forms, in standard deviations of the output.
MOST_DIFFERENCE = 1e-3
# Largest difference of a backbone's tensor, as a share of its largest number.
MOST_OF_BACKBONE = 1e-6
# Tensors of a DINOv2 that are beside what a tap depends on.
_BESIDE = re.compile(r"mask_token|norm\.(weight|bias)|blocks\.(\d{1,4})\..+")

CARD = """# A released Universal Brain Encoder, converted

Shared weights and embeddings of the authors' checkpoint ({files}), converted by
`python -m ubrain_jax.convert`. The weights are the work of their authors, who gave
them no licence at the time of writing: ask them before you pass this folder on.
Largest difference from the released computation: {difference:.1e} standard deviations
of its output.
"""


class Probe(NamedTuple):
    """How far our form is from theirs.

    Attributes:
        difference: Largest, in standard deviations of their output.
        scale: That standard deviation.
        num_voxels: Voxels compared.
    """

    difference: float
    scale: float
    num_voxels: int


def parse_subjects(text: str | None, num_rows: int) -> dict[str, int]:
    """Voxels by subject, in the order of the table's rows.

    Args:
        text: NAME:ROWS,... as on the command line; None: the eight subjects of NSD
            where the number of rows is theirs, else one subject, "all".
        num_rows: Of the table.

    Raises:
        errors.ConfigError: If it cannot be read or the rows do not add up.

    Example:
        >>> parse_subjects(None, 315_997)["nsd-subj06"], parse_subjects(None, 7)
        (39198, {'all': 7})
        >>> parse_subjects("me:3,you:4", 7)
        {'me': 3, 'you': 4}
    """
    if text is None:
        if num_rows == sum(NSD_VOXELS):
            return {f"nsd-subj{i + 1:02d}": n for i, n in enumerate(NSD_VOXELS)}
        return {"all": num_rows} if num_rows else {}
    found: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z0-9][\w.-]{0,99}):([1-9]\d{0,8})\s*", part)
        if not match or match[1] in found:
            raise errors.ConfigError(
                "--subjects",
                "",
                f"{part[:80]!r}",
                "NAME:ROWS,... with every name once",
                "Write for example --subjects=nsd-subj01:39548,me:2000.",
            )
        found[match[1]] = int(match[2])
    if sum(found.values()) != num_rows:
        raise errors.ConfigError(
            "--subjects",
            "",
            f"{sum(found.values())} rows in {len(found)} subjects",
            f"{num_rows}, the rows of the table",
            "Give the number of voxels of each subject in the table's order.",
        )
    return found


def check_backbone(
    source: str, geometry: dinov2.Geometry, settings: released_names.Settings
) -> None:
    """The backbone must be shaped like the one that the weights were trained on.

    Raises:
        errors.InputError: Listing what differs.
    """
    patches = (settings.image_px // geometry.patch) ** 2
    wanted = {
        "width": (geometry.width, settings.width),
        "blocks": (geometry.depth, settings.num_adapters),
        "register tokens": (geometry.registers, settings.registers),
        "tokens without registers": (1 + patches, settings.num_tokens),
    }
    faults = {name: pair for name, pair in wanted.items() if pair[0] != pair[1]}
    if faults:
        raise errors.InputError(
            source,
            "",
            ", ".join(f"{pair[0]} {name}" for name, pair in faults.items()),
            ", ".join(f"{pair[1]} {name}" for name, pair in faults.items()),
            "Give the backbone that the released weights were trained on: "
            "facebook/dinov2-with-registers-large for the published ones.",
        )


def compare_backbone(
    found: Mapping[str, np.ndarray], network: dinov2.Dinov2, source: str, path: str
) -> float:
    """The backbone inside the released file against the one that will be used.

    Args:
        found: Tensors of the file by the names of facebookresearch/dinov2.
        network: From `source`.
        source: For messages: --backbone.
        path: For messages: the released file.

    Returns:
        The largest difference of a tensor, as a share of its largest number.

    Raises:
        errors.InputError: If it is beyond `MOST_OF_BACKBONE`, or tensors are missing
            or unknown.
    """
    ours = released_names.original_backbone(network)
    faults = [f"{name} is missing" for name in ours if name not in found]
    for name in found:
        match = _BESIDE.fullmatch(name)
        later = match and (match[2] is None or int(match[2]) >= network.num_blocks)
        if name not in ours and not later:
            faults.append(f"{name} is unknown")
    shares = {}
    for name in ours.keys() & found.keys():
        theirs, own = found[name], ours[name]
        if name == "pos_embed" and theirs.ndim == 3 and theirs.shape != own.shape:
            grid = round((own.shape[1] - 1) ** 0.5)
            rule = "antialias" if network.geometry.registers else "offset"
            theirs = weights.resize_positions(theirs[0], grid, rule)[None]
        if theirs.shape != own.shape:
            faults.append(f"{name} is {theirs.shape}, not {own.shape}")
            continue
        largest = max(float(np.abs(own).max()), np.finfo(np.float32).tiny)
        shares[name] = float(np.abs(theirs - own).max()) / largest
    far = sorted(n for n, share in shares.items() if not share <= MOST_OF_BACKBONE)
    faults += [f"{name} differs by {shares[name]:.1e} of its largest" for name in far]
    if faults:
        more = f"; and {len(faults) - 12} more" if len(faults) > 12 else ""
        raise errors.InputError(
            path,
            "embed_model",
            "; ".join(faults[:12]) + more,
            f"the backbone {source}, within {MOST_OF_BACKBONE:g}",
            "Give the backbone that the encoder was trained on as --backbone.",
        )
    return max(shares.values())


def predict(
    experiment: config.Experiment,
    network: dinov2.Dinov2,
    shared: Mapping[str, Any],
    pictures: np.ndarray,
    embeddings: np.ndarray,
) -> np.ndarray:
    """Responses (B, N) of our form to pictures (B, H, W, 3), float32."""
    graph, state = nnx.split(network)
    frozen = nnx.as_pure(state)
    # Shapes alone: initial values would be drawn for nothing.
    whole = nnx.eval_shape(
        lambda: encoder.Encoder(
            experiment, nnx.merge(graph, frozen), 1, jax.random.key(0)
        )
    )
    parts = encoder.split(whole)
    wanted = {n: leaf.shape for n, leaf in encoder.by_name(parts.trainable).items()}
    found = {n: leaf.shape for n, leaf in encoder.by_name(shared).items()}
    if found != {name: shape for name, shape in wanted.items() if name != "table"}:
        raise ValueError(f"converted weights are {found}, not {wanted}")
    params = {**shared, "table": np.zeros(wanted["table"], np.float32)}

    @jax.jit
    def run(params, frozen, pictures, embeddings):
        model = nnx.merge(parts.graph, params, frozen)
        return model.respond_all(model.features(pictures), embeddings, None)

    frozen = {**parts.frozen, "backbone": frozen}
    with jax.default_matmul_precision("highest"):
        return np.asarray(run(params, frozen, pictures, embeddings))


def probe(
    experiment: config.Experiment,
    network: dinov2.Dinov2,
    shared: Mapping[str, Any],
    source: released.Released,
    table: np.ndarray | None,
    drop: str,
) -> Probe:
    """Seeded pictures and voxels through our form and through theirs.

    Args:
        experiment: Of the converted encoder.
        network: Its backbone.
        shared: From `released_names.trainable`.
        source: The released weights; its own backbone is theirs, where it has one.
        table: (V, E) to draw voxels from; None: random embeddings.
        drop: Of `released_numpy.predict`.
    """
    rng = np.random.default_rng(0)
    px, settings = experiment.backbone.image_px, source.settings
    coarse = rng.integers(0, 256, (PROBE_PICTURES, 8, 8, 3))
    side = np.minimum(np.arange(px) * 8 // px, 7)
    fine = rng.integers(-40, 41, (PROBE_PICTURES, px, px, 3))
    pictures = np.clip(coarse[:, side][:, :, side] + fine, 0, 255).astype(np.uint8)
    if table is None:
        embeddings = rng.standard_normal((PROBE_VOXELS, settings.embed_dim))
        embeddings = embeddings.astype(np.float32) * 0.1
    else:
        count = min(PROBE_VOXELS, len(table))
        embeddings = table[np.sort(rng.choice(len(table), count, replace=False))]
    vit = dict(source.backbone)
    if not vit:
        vit = released_names.original_backbone(network)
    elif not network.geometry.registers:  # another rule than that of the NumPy form
        vit["pos_embed"] = released_names.original_backbone(network)["pos_embed"]
    theirs = released_numpy.predict(
        source.weights,
        vit,
        pictures,
        embeddings,
        taps=settings.taps,
        alpha=settings.alpha,
        drop=drop,
    )
    ours = predict(experiment, network, shared, pictures, embeddings)
    scale = float(theirs.std())
    if not scale > 0:
        raise errors.InputError(
            source.path,
            "",
            f"predictions that are all {theirs.flat[0]:g}",
            "an encoder that answers to pictures or voxels",
            "The weights were never trained, or are damaged.",
        )
    difference = float(np.abs(ours - theirs).max()) / scale
    return Probe(difference, scale, len(embeddings))


def make_subjects(
    table: np.ndarray,
    counts: Mapping[str, int],
    store: str | None,
    provenance: Mapping[str, Any],
) -> Iterator[bundle.Subject]:
    """Rows of the table as subjects; what their voxels are, where a store tells.

    Args:
        table: (V, E).
        counts: Voxels of each subject, in the order of the rows.
        store: A crowd that may hold subjects of these names; None: none.
        provenance: Kept with each.

    Raises:
        errors.InputError: If the store has another number of voxels for one.
    """
    known: dict[str, crowd.SubjectRows] = {}
    if store is not None:
        known = {s.name: s for s in crowd.open_crowd((store,)).subjects}
    wrong = [
        f"{name} has {known[name].num_voxels} voxels there, {count} here"
        for name, count in counts.items()
        if name in known and known[name].num_voxels != count
    ]
    if wrong or (known and not set(known) & set(counts)):
        raise errors.InputError(
            store or "",
            "subjects",
            "; ".join(wrong) or f"only {', '.join(sorted(known))}",
            f"subjects as in the released table: {', '.join(counts)}",
            "Prepare the store with the mask of the released weights, or leave --crowd "
            "out.",
        )
    start = 0
    for name, count in counts.items():
        rows = np.ascontiguousarray(table[start : start + count])
        start += count
        if name in known:
            s = known[name]
            told = s.position, s.roi, s.roi_names, s.ncsnr, dict(s.attrs)
        else:
            nsd = name.startswith("nsd-")
            space = "fsaverage (vertex of each row unknown)"
            told = (
                np.full((count, 3), -1, np.int32),
                np.zeros((count, 0), bool),
                (),
                np.full(count, np.nan, np.float32),
                {
                    "dataset": "nsd" if nsd else "unknown",
                    "space": space if nsd else "unknown (place of each row unknown)",
                },
            )
        yield bundle.Subject(name, rows, *told, dict(provenance))


def convert(
    path: str,
    backbone: str,
    out: str,
    *,
    voxel_embed: str | None = None,
    subjects: str | None = None,
    drop: str = "registers",
    store: str | None = None,
) -> bundle.Bundle:
    """Reads, checks and writes; prints what it finds.

    Args:
        path: The released encoder.
        backbone: Hub id, folder or file of its DINOv2.
        out: Folder of the bundle.
        voxel_embed: File of a table, in place of the encoder's own.
        subjects: See `parse_subjects`.
        drop: Which tokens the head does not see.
        store: Crowd that tells what the voxels are.

    Returns:
        What was written.

    Raises:
        errors.InputError: If anything does not fit; then nothing is written.
    """
    bundle.check_target(out)  # before minutes of work
    began = time.monotonic()
    source = released.open_encoder(path)
    settings = source.settings
    table, base, files = source.table, "", [path]
    if voxel_embed is not None:
        if table is not None:
            print(f"note: the table of {path} ({len(table)} rows) is not used")
        table, base = released.open_table(voxel_embed, settings)
        files.append(voxel_embed)
    counts = parse_subjects(subjects, 0 if table is None else len(table))
    network, provenance = weights.load(
        backbone, settings.taps[-1], settings.image_px, np.float32
    )
    check_backbone(backbone, network.geometry, settings)
    _tell(source, table, base, counts, drop)
    if source.backbone:
        share = compare_backbone(source.backbone, network, backbone, path)
        print(f"backbone: the file's own equals {backbone} within {share:.1e}")
    trained_on = os.path.basename(store.rstrip("/")) if store else "nsd.zarr"
    experiment = released.experiment(
        settings, network.geometry, backbone, drop=drop, crowd=trained_on
    )
    shared = released_names.trainable(source.weights, settings)
    result = probe(experiment, network, shared, source, table, drop)
    print(
        f"self-check: {PROBE_PICTURES} pictures, {result.num_voxels} voxels: largest "
        f"difference {result.difference:.2e} of the output's standard deviation "
        f"({result.scale:.3g})",
        flush=True,
    )
    if not result.difference <= MOST_DIFFERENCE:
        raise errors.InputError(
            path,
            "",
            f"predictions that differ by {result.difference:.2e} standard deviations",
            f"at most {MOST_DIFFERENCE:g}",
            "Nothing was written. Report this with the printed lines: the conversion "
            "is at fault, or this device computes too coarsely (JAX_PLATFORMS=cpu).",
        )
    told: dict[str, Any] = {
        "converted_by": f"ubrain_jax {ubrain_jax.__version__}",
        "files": {
            os.path.basename(f): sealed.sha256_of(pathlib.Path(f)) for f in files
        },
        "drop": drop,
        "assumed": list(settings.assumed),
        "unused_tensors": list(source.unused),
        "self_check": result._asdict(),
    }
    own = () if table is None else make_subjects(table, counts, store, told)
    converted = bundle.Bundle(
        experiment=experiment,
        shared=shared,
        subjects=tuple(own),
        # A table of another file need not be the one that the weights grew with.
        trained_with=() if base else tuple(counts),
        backbone=export.backbone_of(provenance, experiment),
        seen=None,
        provenance=told,
    )
    names = ", ".join(told["files"])
    card = CARD.format(files=names, difference=result.difference)
    bundle.write(out, converted, card)
    print(f"bundle: {out} after {time.monotonic() - began:.0f} s")
    return converted


def _tell(
    source: released.Released,
    table: np.ndarray | None,
    base: str,
    counts: Mapping[str, int],
    drop: str,
) -> None:
    """What was found, a line each."""
    s = source.settings
    print(
        f"encoder: taps {', '.join(map(str, s.taps))}; width {s.width}, C "
        f"{s.channels}, E {s.embed_dim}, {s.num_tokens} tokens; adapter of rank "
        f"{s.rank}, alpha {s.alpha:g}"
    )
    print(f"unused tensors: {_grouped(source.unused)}")
    if s.assumed:
        print(f"note: the file does not tell, so assumed: {'; '.join(s.assumed)}")
    if source.names:
        print(f"note: {len(source.names)} classes that the file names were not used")
    tokens = "CLS and patches" if drop == "registers" else "all but the last patches"
    print(f"drop: {drop} (the head sees {tokens})")
    if base:
        print(f"note: the table was fitted to the base {base!r}")
    if table is None:
        print("subjects: none (the file has no voxel_embed)")
    else:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        print(f"subjects: {listed} voxels", flush=True)


def _grouped(names: Sequence[str]) -> str:
    """Names with the number of a tap or block left out, each once."""
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", n) for n in names))


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    cluster.refuse_several("python -m ubrain_jax.convert")
    values = flags.FLAGS
    errors.check_flags(argv, *(values[n] for n in ("released", "backbone", "out")))
    convert(
        values.released,
        values.backbone,
        values.out,
        voxel_embed=values.voxel_embed,
        subjects=values.subjects,
        drop=values.drop,
        store=values.crowd,
    )
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("released", None, "File of the released encoder (torch.save).")
    flags.DEFINE_string(
        "voxel_embed", None, "File of a table of embeddings or of a fitted subject."
    )
    flags.DEFINE_string(
        "backbone", None, "Hub id, folder or file of the DINOv2 that it was trained on."
    )
    flags.DEFINE_string(
        "subjects", None, "NAME:ROWS,... of the table, where it is not that of NSD."
    )
    flags.DEFINE_string("out", None, "Folder of the bundle.")
    flags.DEFINE_enum(
        "drop",
        "registers",
        released.DROPS,
        "Tokens that the head does not see; 'last_patches' for older releases.",
    )
    flags.DEFINE_string(
        "crowd", None, "Store that tells position, regions and noise of the voxels."
    )
    errors.run_command(main)
