"""Tuned baselines on the same splits and voxels as an encoder, and their table.

    python -m ubrain_jax.baseline --kind=ridge --config=configs/nsd8.py \\
        --workdir=runs/ridge --config.data.crowd=nsd.zarr [--save_predictions]
    python -m ubrain_jax.baseline --table --workdirs=runs/nsd8,runs/ridge --out=DIR

Kinds: ridge, banded (a weight for each layer and voxel), fwrf (one receptive field
for each voxel) and gaziv (one map and one vector of channels for each voxel and
layer). Of the config they read the stores, subjects, splits, backbone, taps, seed
and how to score; what they write is what `python -m ubrain_jax.main` writes. All of
them read features from one cache. docs/baselines.md says how each is tuned.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import config_flags

from ubrain_jax import (
    baseline_results,
    checkpoint,
    cluster,
    compile_cache,
    config,
    crowd,
    errors,
    evaluate,
    experiments,
)
from ubrain_jax.backbone import vgg
from ubrain_jax.baselines import features, fitting, fwrf, gaziv, ridge
from ubrain_jax.maps import brain, report
from ubrain_jax.model import bundle

KINDS = ("ridge", "banded", "fwrf", "gaziv")
Fit = Callable[[fitting.Data, fitting.Data], fitting.Fitted]


class Plan(NamedTuple):
    """A baseline to run.

    Attributes:
        kind: One of `KINDS`.
        experiment: Of which stores, backbone, seed and scoring are read.
        workdir: Where to write.
        grid: Largest number of cells on a side of features that are kept.
        vgg: File of VGG-19's weights, whose layers replace the taps; kind "gaziv".
        cache: Folder for features; None: beside the first store.
        save_predictions: Whether to keep those of test pictures.
        readout: Settings of kind "gaziv".
    """

    kind: str
    experiment: config.Experiment
    workdir: str
    grid: int = 8
    vgg: str | None = None
    cache: str | None = None
    save_predictions: bool = False
    readout: gaziv.Settings = gaziv.Settings()


def run(plan: Plan) -> dict[str, Any]:
    """Fits every subject, predicts its test pictures once, scores and writes.

    Returns:
        The content of metrics.json.

    Raises:
        errors.InputError: If anything given cannot be used; before any fit where
            that can be seen.
    """
    began = time.monotonic()
    check(plan)
    stores = experiments.open_stores(plan.experiment)
    source = _source(plan)
    seed = plan.experiment.train.seed
    kinds: dict[str, Fit] = {
        "ridge": ridge.fit,
        "banded": functools.partial(ridge.fit, banded=True, seed=seed),
        "fwrf": functools.partial(fwrf.fit, seed=seed),
        "gaziv": functools.partial(gaziv.fit, settings=plan.readout, seed=seed),
    }
    with checkpoint.own_workdir(plan.workdir):
        notes = evaluate.warnings_about(stores, random=source.random)
        for line in notes:
            print(f"note: {line}", flush=True)
        least = evaluate.LEAST_PICTURES
        tested = [s for s in stores.subjects if len(s.samples("test")) >= least]
        for subject in tested:  # before hours of work
            fitting.check(subject)
        batch = plan.experiment.evaluate.batch_images
        found = features.cached(stores, source, plan.cache, batch)
        predictions, chosen = {}, {}
        for subject in tested:
            fitted = kinds[plan.kind](
                fitting.read(subject, found, "train"),
                fitting.read(subject, found, "val"),
            )
            test = found.of(subject.image[subject.samples("test")])
            predictions[subject.name] = fitted.predict(test)
            chosen[subject.name] = fitted.told
            seconds = time.monotonic() - began
            told = json.dumps(fitted.told)
            print(f"{subject.name}: {told}, after {seconds:.0f} s", flush=True)
        model = {
            "kind": plan.kind,
            "features": source.title,
            "grid": plan.grid,
            "chosen": chosen,
        }
        job = _job(plan, stores, source, notes, model)
        if plan.save_predictions:
            save(stores, predictions, plan)
        return evaluate.score_predictions(
            job, lambda subject, _: predictions[subject.name], plan.workdir, began
        )


def check(plan: Plan) -> None:
    """Refuses what cannot be run.

    Raises:
        errors.ConfigError: If a flag does not fit.
        errors.OutputError: If the workdir holds an encoder.
    """
    if plan.grid < 1:
        raise errors.ConfigError(
            "--grid", "", str(plan.grid), "1 or more", "Give another number."
        )
    if plan.vgg and plan.kind != "gaziv":
        raise errors.ConfigError(
            "--vgg",
            "",
            f"given for --kind={plan.kind}",
            "it with --kind=gaziv alone",
            "Leave it out: the others read the taps of the config's backbone.",
        )
    evaluate.refuse_run(plan.workdir, "--workdir")


def _source(plan: Plan) -> features.Source:
    """The frozen network that gives features."""
    settings = plan.experiment.backbone
    if plan.vgg:
        return features.of_vgg(vgg.load(plan.vgg), settings.image_px, plan.grid)
    network = experiments.load_network(settings)
    return features.of_network(network, settings, plan.grid)


def _job(
    plan: Plan,
    stores: crowd.Crowd,
    source: features.Source,
    notes: list[str],
    model: dict[str, Any],
) -> evaluate.Job:
    """What is scored."""
    told = config.without_folders(plan.experiment)
    shown = {
        "baseline": {k: v for k, v in model.items() if k != "chosen"},
        "data": {k: told["data"][k] for k in ("crowd", "subjects", "num_images")},
        "backbone": told["backbone"],
        "train": {"seed": told["train"]["seed"]},
        "evaluate": told["evaluate"],
    }
    if plan.kind == "gaziv":
        shown["baseline"]["settings"] = dataclasses.asdict(plan.readout)
    digest = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()
    return evaluate.Job(
        stores,
        plan.experiment.evaluate,
        {"step": 0, "config_sha256": digest, "model": model},
        notes,
        shown,
        {
            **evaluate.provenance_of(stores),
            "features": source.title,
            **{f"sha256 of {k}": v for k, v in source.sha256.items()},
            "config sha256": digest,
        },
        f"Baseline {plan.kind}: scores on test pictures",
    )


def save(stores: crowd.Crowd, predictions: dict[str, np.ndarray], plan: Plan) -> None:
    """WORKDIR/predictions/NAME.zarr of each subject, as `predict` writes them."""
    folder = pathlib.Path(plan.workdir) / "predictions"
    for subject in stores.subjects:
        if subject.name not in predictions:
            continue
        values = predictions[subject.name]
        rows = subject.image[subject.samples("test")]

        def block(values: np.ndarray = values) -> Iterator[tuple[slice, np.ndarray]]:
            yield slice(0, len(values)), values

        brain.write(
            folder / f"{subject.name}.zarr",
            block(),
            [stores.image_id[row] for row in rows],
            bundle.Subject(
                subject.name,
                np.zeros((subject.num_voxels, 0), np.float32),
                subject.position,
                subject.roi,
                subject.roi_names,
                subject.ncsnr,
                subject.attrs,
                {},
            ),
            about={"Baseline": plan.kind},
            overwrite=True,
        )


def define_flags() -> None:
    """Flags of this command."""
    flags.DEFINE_enum("kind", None, KINDS, "Which baseline.")
    config_flags.DEFINE_config_file(
        "config", None, "File in configs/; change values with --config.section.key=..."
    )
    flags.DEFINE_string("workdir", None, "Folder to write. Made if absent.")
    flags.DEFINE_integer("grid", 8, "Cells on a side to which features are pooled.")
    flags.DEFINE_string(
        "vgg", None, "gaziv: torchvision's vgg19 (.pth, .safetensors), not the taps."
    )
    flags.DEFINE_integer("epochs", gaziv.Settings().epochs, "gaziv: at most so many.")
    flags.DEFINE_string("cache", None, "Folder for features. Default: by the store.")
    flags.DEFINE_bool("save_predictions", False, "Keep those of test pictures.")
    flags.DEFINE_bool("table", False, "Compare finished workdirs instead.")
    flags.DEFINE_list("workdirs", [], "--table: of encoders and baselines.")
    flags.DEFINE_list("names", [], "--table: what they are called there.")
    flags.DEFINE_string("out", None, "--table: folder to write.")


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    cluster.refuse_several("python -m ubrain_jax.baseline")
    values = flags.FLAGS
    if values.table:
        errors.check_flags(argv, values["workdirs"], values["out"])
        print(baseline_results.write(values.workdirs, values.out, values.names))
        return 0
    errors.check_flags(argv, values["kind"], values["config"], values["workdir"])
    plan = Plan(
        values.kind,
        config.parse(values.config, "--config"),
        values.workdir,
        values.grid,
        values.vgg,
        values.cache,
        values.save_predictions,
        gaziv.Settings(epochs=values.epochs),
    )
    print(compile_cache.begin(), flush=True)
    result = run(plan)
    print(report.closing(result, values.workdir))
    return 0


if __name__ == "__main__":
    define_flags()
    errors.run_command(main)
