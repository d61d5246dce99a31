"""Scores an encoder, or predictions of any program, on the test split of stores.

    python -m ubrain_jax.score --crowd=nsd.zarr --encoder=runs/nsd8 --out=DIR
    python -m ubrain_jax.score --crowd=nsd.zarr --predictions=FOLDER --out=DIR
    python -m ubrain_jax.score --crowd=nsd.zarr --subjects=NAME --write_pictures=DIR

What it writes is what `python -m ubrain_jax.main` writes: metrics.json, voxels/ and
report.html. The last form writes the test pictures (images.npy) and their ids
(ids.txt), to predict elsewhere. docs/baselines.md has the forms of a prediction.
"""

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from ubrain_jax import (
    checkpoint,
    cluster,
    config,
    crowd,
    errors,
    evaluate,
    frozen,
    given_predictions,
    hub,
    universal,
    whole,
)
from ubrain_jax.maps import report
from ubrain_jax.model import bundle


class Model(NamedTuple):
    """What predicts.

    Attributes:
        predict: As `evaluate.Predict`.
        settings: How to score.
        marks: step, config_sha256 and model of metrics.json.
        random: Whether its backbone has random weights.
        shown: Settings that the report prints.
        provenance: Rows of the report.
    """

    predict: evaluate.Predict
    settings: config.Evaluate
    marks: dict[str, Any]
    random: bool
    shown: dict[str, Any]
    provenance: dict[str, str]


def run(stores: crowd.Crowd, model: Model, out: str) -> dict[str, Any]:
    """Scores and writes; returns the content of metrics.json."""
    evaluate.refuse_run(out, "--out")
    notes = evaluate.warnings_about(stores, random=model.random)
    job = evaluate.Job(
        stores,
        model.settings,
        model.marks,
        notes,
        model.shown,
        {**evaluate.provenance_of(stores), **model.provenance},
        "Scores on test pictures",
    )
    with checkpoint.own_workdir(out):
        return evaluate.score_predictions(job, model.predict, out)


def of_encoder(stores: crowd.Crowd, path: str, backbone: str | None = None) -> Model:
    """An encoder's bundle, a run's workdir or a hub id.

    Args:
        stores: Of subjects that it has, in their voxels.
        path: Where it is.
        backbone: Of the frozen network, where it is elsewhere now.

    Raises:
        errors.ConfigError: If it lacks a subject.
        errors.InputError: If a subject has other voxels there, or a test picture
            shaped the weights.
    """
    found = hub.find(path)
    trained = bundle.read(found.folder, within=found.within)
    known = {s.name: s for s in trained.subjects}
    for subject in stores.subjects:
        if subject.name not in known:
            raise errors.ConfigError(
                "--subjects",
                "",
                f"the encoder has no subject {subject.name}",
                f"some of {', '.join(known)}",
                errors.nearest(subject.name, known),
            )
        own = known[subject.name]
        if not np.array_equal(own.position, subject.position):
            raise errors.InputError(
                path,
                subject.name,
                f"{len(own.position)} voxels at other positions",
                f"the {subject.num_voxels} voxels of the store",
                "Give the store that it was trained or fitted with.",
            )
    _refuse_seen(trained, known, stores)
    settings = trained.experiment
    if stores.image_px != settings.backbone.image_px:
        raise errors.InputError(
            ", ".join(stores.paths),
            "images",
            f"pictures of {stores.image_px} pixels",
            f"{settings.backbone.image_px}, as the encoder was trained with",
            "Prepare the store with that --image_px.",
        )
    encoder = universal.UniversalEncoder(
        trained,
        backbone=backbone or found.backbone,
        batch_images=settings.evaluate.batch_images,
        chunk_voxels=settings.evaluate.chunk_voxels,
    )

    def predict(subject: crowd.SubjectRows, samples: np.ndarray) -> np.ndarray:
        out = np.empty((len(samples), subject.num_voxels), np.float32)
        for start in range(0, len(samples), 256):  # pictures in memory
            some = slice(start, start + 256)
            pictures = crowd.read_pictures(stores, subject.image[samples[some]])
            out[some] = encoder.predict(pictures, subject=subject.name).values
        return out

    digest = config.sha256(settings)
    return Model(
        predict,
        settings.evaluate,
        {
            "step": int(trained.provenance.get("step", 0)),
            "config_sha256": digest,
            "model": {"kind": "encoder", "sha256": trained.sha256},
        },
        trained.backbone.random,
        config.without_folders(settings),
        {
            "encoder": os.path.basename(os.path.abspath(path)),
            "encoder sha256": trained.sha256,
            "backbone": trained.backbone.source,
            **{f"sha256 of {k}": v for k, v in trained.backbone.sha256.items()},
            "config sha256": digest,
        },
    )


def _refuse_seen(
    trained: bundle.Bundle,
    known: dict[str, bundle.Subject],
    stores: crowd.Crowd,
) -> None:
    """Test pictures that shaped weights or a subject's embeddings are refused."""
    if trained.seen is None:
        return
    for subject in stores.subjects:
        own = known[subject.name].provenance.get("image_sha256", [])
        seen = {**dict.fromkeys(own, ""), **trained.seen}
        frozen.refuse_seen(seen, stores._replace(subjects=(subject,)))


def of_predictions(stores: crowd.Crowd, path: str, ids: str | None = None) -> Model:
    """Predictions that a file or folder holds.

    Raises:
        errors.InputError: If they do not have each test picture once and every voxel.
    """
    names = [s.name for s in stores.subjects]
    found = given_predictions.find(path, names, ids)
    rows, digest = {}, hashlib.sha256()
    for subject in stores.subjects:  # all faults before the first score
        wanted = [stores.image_id[i] for i in subject.image[subject.samples("test")]]
        given = found[subject.name]
        rows[subject.name] = given_predictions.check(given, subject, wanted)
        values = given_predictions.read(given, rows[subject.name])
        digest.update(np.ascontiguousarray(values).data)

    def predict(subject: crowd.SubjectRows, samples: np.ndarray) -> np.ndarray:
        return given_predictions.read(found[subject.name], rows[subject.name])

    name = os.path.basename(os.path.abspath(path))
    told = {"kind": "predictions", "features": name, "sha256": digest.hexdigest()}
    return Model(
        predict,
        config.Evaluate(),
        {"step": 0, "config_sha256": digest.hexdigest(), "model": told},
        False,
        {"predictions": name, "files": {k: v.path.name for k, v in found.items()}},
        {"predictions": name, "sha256 of predictions": digest.hexdigest()},
    )


def write_pictures(stores: crowd.Crowd, out: str) -> int:
    """Writes images.npy (M, y, x, 3) uint8 and ids.txt of all test pictures.

    Returns:
        M.

    Raises:
        errors.OutputError: If the files exist or cannot be written.
    """
    folder = pathlib.Path(out)
    there = [n for n in ("images.npy", "ids.txt") if (folder / n).exists()]
    if there:
        raise errors.OutputError(
            folder, "", f"{', '.join(there)} exist", "a new folder", "Choose another."
        )
    tests = [s.image[s.samples("test")] for s in stores.subjects]
    rows = np.unique(np.concatenate(tests))
    shape = (len(rows), stores.image_px, stores.image_px, 3)
    with whole.writing(folder / "images.npy") as unfinished:
        array = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
        for start in range(0, len(rows), 256):
            some = slice(start, start + 256)
            array[some] = crowd.read_pictures(stores, rows[some])
        array.flush()
    ids = "".join(f"{stores.image_id[row]}\n" for row in rows)
    whole.write_text(folder / "ids.txt", ids)
    return len(rows)


def define_flags() -> None:
    """Flags of this command."""
    flags.DEFINE_list("crowd", [], "Stores with the test pictures and responses.")
    flags.DEFINE_list("subjects", [], "To score. Default: all of the stores.")
    flags.DEFINE_string("out", None, "Folder to write. Made if absent.")
    flags.DEFINE_string("encoder", None, "Bundle, workdir of a run, or hub id.")
    flags.DEFINE_string("backbone", None, "Of the encoder, if not where it says.")
    flags.DEFINE_string("predictions", None, "NAME.zarr, NAME.npy, or their folder.")
    flags.DEFINE_string("ids", None, "Pictures of rows: a line each, or JSON.")
    flags.DEFINE_string("write_pictures", None, "Folder for pictures to predict.")


class Asked(NamedTuple):
    """What the flags say; see `define_flags`."""

    crowd: Sequence[str]
    subjects: Sequence[str] = ()
    out: str | None = None
    encoder: str | None = None
    backbone: str | None = None
    predictions: str | None = None
    ids: str | None = None
    write_pictures: str | None = None


def answer(asked: Asked) -> dict[str, Any] | None:
    """Does what was asked; returns the content of metrics.json, if there is one.

    Raises:
        errors.ConfigError: If not one thing was asked for, or flags do not fit.
        errors.InputError: If what is given cannot be used.
    """
    ways = ("encoder", "predictions", "write_pictures")
    chosen = [name for name in ways if getattr(asked, name)]
    if len(chosen) != 1:
        raise errors.ConfigError(
            ", ".join(f"--{name}" for name in ways),
            "",
            f"{len(chosen)} given",
            "one of them",
            "Say what is scored, or where the pictures go.",
        )
    needs = {"out": chosen != ["write_pictures"]}
    allowed = {"backbone": "encoder", "ids": "predictions", "out": ""}
    for name, way in allowed.items():
        given, fits = getattr(asked, name), needs.get(name, [way] == chosen)
        if (given and not fits) or (needs.get(name) and not given):
            raise errors.ConfigError(
                f"--{name}",
                "",
                "given" if given else "not given",
                f"{'it' if fits else 'no such flag'} with --{chosen[0]}",
                f"{'Pass' if fits else 'Leave out'} --{name}.",
            )
    stores = crowd.open_crowd(tuple(asked.crowd), tuple(asked.subjects))
    if asked.write_pictures:
        count = write_pictures(stores, asked.write_pictures)
        print(f"wrote {count} pictures and their ids to {asked.write_pictures}")
        return None
    if asked.encoder:
        model = of_encoder(stores, asked.encoder, asked.backbone)
    else:
        model = of_predictions(stores, str(asked.predictions), asked.ids)
    return run(stores, model, str(asked.out))


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    cluster.refuse_several("python -m ubrain_jax.score")
    values = flags.FLAGS
    errors.check_flags(argv, values["crowd"])
    told: dict[str, Any] = {name: values[name].value for name in Asked._fields}
    result = answer(Asked(**told))
    if result is None:
        return 0
    print(report.closing(result, values.out))
    return 0


if __name__ == "__main__":
    define_flags()
    errors.run_command(main)
