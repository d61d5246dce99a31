"""Shows what the voxels of an encoder do: clusters, fields, maps, a page to explore.

    python -m ubrain_jax.explore --encoder=runs/nsd8 --crowd=nsd.zarr --out=maps
    python -m ubrain_jax.explore --encoder=runs/nsd8 --images=pictures/ --out=maps

Pictures are the test pictures of --crowd, with what was measured, or any of yours.
Neither is needed for the workdir of a run whose stores are still where they were.
docs/explore.md has everything that is written.
"""

import json
import pathlib
import time
from typing import Any

import numpy as np
from absl import flags

from ubrain_jax import (
    cluster,
    errors,
    exploration,
    exploration_files,
    shown,
    universal,
)
from ubrain_jax.atlas import cluster_files, clusters, pooled


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    cluster.refuse_several("python -m ubrain_jax.explore")
    values = flags.FLAGS
    errors.check_flags(argv, values["encoder"], values["out"])
    began = time.monotonic()
    exploration_files.check(values.out, overwrite=values.overwrite)
    encoder = universal.UniversalEncoder.load(values.encoder, backbone=values.backbone)
    settings = exploration.Settings(
        subjects=tuple(values.subjects),
        score_name=values.score,
        least_score=values.least_score,
        k=values.k,
        of=values.of,
        method=values.method,
        within=parse_within(values.within),
        contrasts=parse_contrasts(values.contrast),
        prfs=values.prfs,
        top=values.top,
        degrees=np.nan if values.degrees is None else values.degrees,
        umap=values.umap,
        seed=values.seed,
    )
    exploration.check(encoder, settings)
    names = settings.subjects or encoder.subjects
    scores = pooled.read_scores(values.scores or values.encoder, names, values.score)
    pictures = open_pictures(
        encoder,
        values.encoder,
        values.crowd,
        values.images,
        values.num_pictures,
        values.seed,
    )
    found = exploration.explore(
        encoder,
        pictures,
        scores,
        settings,
        previous=earlier(values.previous, values.out, encoder.sha256, settings.of),
    )
    notes = exploration_files.write(
        values.out,
        found,
        about=about(encoder, values.encoder),
        encoder_sha256=encoder.sha256,
        max_bytes=int(values.max_mb * 1e6),
        figures=values.figures,
        overwrite=values.overwrite,
    )
    print(summary(found))
    for name, own in found.prfs.items():
        print(
            f"{name}: pRFs of {own.num} voxels, angle r {own.angle:.2f}, eccentricity "
            f"rho {own.eccentricity:.2f}, centres {own.distance:.2f} degrees apart"
        )
    for note in notes:
        print(f"note: {note}")
    print(
        f"wrote {values.out}/index.html and the rest, {time.monotonic() - began:.0f} s"
    )
    return 0


def parse_within(words: list[str]) -> dict[str, int]:
    """Regions to split, as ROI:2; sub-clusters are 2 unless told.

    Example:
        >>> parse_within(["PPA:3", "FFA"])
        {'PPA': 3, 'FFA': 2}
    """
    found = {}
    for word in words:
        name, colon, count = word.rpartition(":")
        if not (colon and count.isdigit()):  # names may have colons: kind:scene
            name, count = word, "2"
        found[name] = int(count)
    return found


def parse_contrasts(words: list[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of groups.

    Example:
        >>> parse_contrasts(["PPA vs FFA-1", "c01 vs c05"])
        (('PPA', 'FFA-1'), ('c01', 'c05'))
    """
    found = []
    for word in words:
        first, middle, second = (part.strip() for part in word.partition(" vs "))
        if not (first and middle and second):
            raise errors.ConfigError(
                "--contrast",
                "",
                repr(word),
                "two names of clusters or regions, as 'PPA vs FFA-1'",
                "Write it so.",
            )
        found.append((first, second))
    return tuple(found)


def open_pictures(
    encoder: universal.UniversalEncoder,
    path: str,
    stores: list[str],
    images: str | None,
    num_pictures: int,
    seed: int,
) -> shown.Shown:
    """The pictures to show: of a folder, of stores, or of the stores of the run.

    Raises:
        errors.ConfigError: If both are given, or too few are asked for.
        errors.MissingInputError: If there are none.
    """
    if num_pictures < 2:
        raise errors.ConfigError(
            "--num_pictures", "", str(num_pictures), "2 or more", "Ask for more."
        )
    px = encoder.config.backbone.image_px
    if images and stores:
        raise errors.ConfigError(
            "--images and --crowd", "", "both", "one of them", "Leave one out."
        )
    if images:
        return shown.of_images(images, px, num_pictures)
    if not stores:
        stores = stores_of_run(path)
        gone = [store for store in stores if not pathlib.Path(store).is_dir()]
        if gone or not stores:
            found = f"{', '.join(gone)} of the run is not there" if gone else "no run"
            raise errors.MissingInputError(
                "--crowd or --images",
                "",
                f"not given, and {found}",
                "stores with test pictures, or a folder of pictures",
                "Pass one of them.",
            )
    places = {name: encoder.subject(name).position for name in encoder.subjects}
    return shown.of_stores(stores, places, px, num_pictures, seed)


def stores_of_run(path: str) -> list[str]:
    """Stores that a workdir was trained on, as its settings name them."""
    try:
        told = json.loads((pathlib.Path(path) / "config.json").read_text("utf-8"))
        return [str(p) for p in told["data"]["crowd"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def earlier(
    previous: str | None, out: str, encoder_sha256: str, of: str
) -> clusters.Clusters | None:
    """Clusters whose names are kept: those asked for, or of what is replaced.

    Raises:
        errors.InputError: If those asked for are not there or of another encoder.
    """
    name = "clusters.safetensors"
    if previous is not None:
        return cluster_files.read(pathlib.Path(previous) / name, encoder_sha256)
    try:
        found = cluster_files.read(pathlib.Path(out) / name, encoder_sha256)
    except errors.InputError:
        return None  # nothing is replaced, or what another encoder left
    return found if found.of == of else None


def about(encoder: universal.UniversalEncoder, path: str) -> dict[str, Any]:
    """What the page says of the encoder."""
    told = encoder.provenance
    subjects = [encoder.subject(name) for name in encoder.subjects]
    simulated = [s.name for s in subjects if s.attrs.get("simulated")]
    count = sum(len(s.embedding) for s in subjects)
    data = ", ".join(map(str, told.get("stores", []))) or "data not named"
    lead = (
        f"{len(subjects)} subjects, {count:,} voxels of the encoder "
        f"{pathlib.Path(path).name}, trained for {told.get('step', '?')} steps on "
        f"{data}."
    )
    warnings = [str(line) for line in told.get("warnings", [])]
    if simulated and not any("imulated" in line for line in warnings):
        names = ", ".join(simulated)
        warnings.append(f"Simulated subjects: {names}. No brain was measured.")
    keys = ("ubrain_jax", "jax", "commit", "seed", "config_sha256", "crowd")
    rows = [(key, str(told[key])) for key in keys if key in told]
    return {
        "lead": lead,
        "warnings": warnings,
        "provenance": [*rows, ("encoder sha256", encoder.sha256)],
    }


def summary(found: exploration.Exploration) -> str:
    """Lines for the terminal: a row for each cluster."""
    lines = []
    if found.choice is not None:
        lines.append(found.choice.reason)
    head = (
        f"{'cluster':<8} {'voxels':>8} {'score':>6} {'agree':>6} {'chance':>7}  regions"
    )
    lines.append(head)
    for row in found.rows:
        regions = sorted((r for r in row.regions if r.q < 0.05), key=lambda r: -r.fold)
        lines.append(
            f"{row.name:<8} {row.size:>8,} {row.median_score:>6.2f} "
            f"{row.agreement:>6.2f} {row.chance:>7.2f}  "
            + ", ".join(f"{r.name} x{r.fold:.1f}" for r in regions[:4])
        )
    return "\n".join(lines)


def define_flags() -> None:
    """Flags of this command."""
    for name, text in {
        "encoder": "Workdir of a run, folder of a bundle, or hub id (OWNER/NAME).",
        "out": "Folder to make.",
        "images": "Folder of pictures or .npy (N, H, W, 3), in place of --crowd.",
        "scores": "Workdir with voxels/NAME.zarr, if not the encoder's own.",
        "previous": "An earlier exploration, whose cluster names are kept. Default: "
        "the one that is replaced.",
        "backbone": "Folder, file or hub id of the frozen network, if not where the "
        "encoder says.",
    }.items():
        flags.DEFINE_string(name, None, text)
    flags.DEFINE_list("crowd", [], "Stores whose test pictures are shown.")
    flags.DEFINE_list("subjects", [], "Only these subjects.")
    flags.DEFINE_list(
        "within", [], "Regions to split into sub-clusters, for example PPA:2,FFA:3."
    )
    flags.DEFINE_list(
        "contrast", [], "Clusters or regions to compare, as 'PPA vs FFA-1,c01 vs c05'."
    )
    flags.DEFINE_string(
        "prfs", None, "NSD's folder (holds nsddata): fields are compared with its pRFs."
    )
    flags.DEFINE_enum("score", "pearson", pooled.SCORES, "Score that chooses voxels.")
    flags.DEFINE_float("least_score", 0.1, "Voxels below are in no cluster.")
    flags.DEFINE_integer("k", None, "Number of clusters. Default: chosen.")
    flags.DEFINE_enum("of", "embedding", clusters.OF, "What is clustered.")
    flags.DEFINE_enum("method", "kmeans", clusters.METHODS, "How.")
    flags.DEFINE_integer("num_pictures", 200, "Pictures to show, at most.")
    flags.DEFINE_integer("top", 8, "Pictures at each end of a group's responses.")
    flags.DEFINE_float(
        "degrees", None, "Side of the pictures in degrees of visual angle (NSD: 8.4)."
    )
    flags.DEFINE_bool("figures", True, "Draw figures/ too, some seconds each.")
    flags.DEFINE_bool("umap", False, "Lay the embedding out by UMAP too (extra viz).")
    flags.DEFINE_integer("seed", 0, "Of all that is random.")
    flags.DEFINE_float("max_mb", 25.0, "Size of the page, in megabytes, at most.")
    flags.DEFINE_bool("overwrite", False, "Replace an exploration that is there.")


if __name__ == "__main__":
    define_flags()
    errors.run_command(main)
