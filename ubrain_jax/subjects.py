"""A new subject of a trained encoder, from its store to its file and its scores.

What the commands `transfer` and `curves` share: their flags, the features of the
subject's pictures, and one fit with everything that it leaves in a workdir.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from ubrain_jax import (
    crowd,
    errors,
    evaluate,
    experiments,
    fit,
    frozen,
    metrics,
    whole,
)
from ubrain_jax.model import bundle, encoder


class Ready(NamedTuple):
    """A new subject beside an encoder, with what the frozen part says of its pictures.

    Attributes:
        trained: The encoder.
        run: Of the one new subject.
        predictor: Compiled for it.
        params: The encoder's trainable weights and random embeddings.
        rows: (M,) pictures of the subject's train and val splits, sorted.
        features: (M, L, P, C) of them.
    """

    trained: frozen.Trained
    run: experiments.Run
    predictor: evaluate.Predictor
    params: Any
    rows: np.ndarray
    features: np.ndarray


def make_ready(
    trained: frozen.Trained,
    store: str | crowd.Crowd,
    subject: str,
    *,
    num_images: int | None = None,
    seed: int = 0,
    backbone: str | None = None,
    network: experiments.Network | None = None,
    cache: str | None = None,
    devices: list[Any] | None = None,
) -> Ready:
    """Attaches a subject and computes the features of its pictures.

    Args:
        trained: From `frozen.read_encoder`.
        store: Where the subject is, or an open crowd of it alone.
        subject: Its name there.
        num_images: Pictures that will be used, a choice by `seed`; None: all.
        seed: See `num_images`.
        backbone: Folder or file of the frozen network, where it is elsewhere now.
        network: The same, where it is loaded already.
        cache: Folder for features that are too large for memory.
        devices: Of the mesh; default: all.
    """
    run, params = frozen.attach(
        trained,
        store,
        subject,
        seed=seed,
        backbone=backbone,
        network=network,
        devices=devices,
    )
    predictor = evaluate.Predictor(run)
    [used] = crowd.with_images(run.stores, num_images, seed).subjects
    rows = np.unique(used.image[np.isin(used.split, ("train", "val"))])
    if not (used.split == "train").any():
        raise errors.InputError(
            ", ".join(run.stores.paths),
            f"subjects/{subject}/split",
            "no train pictures",
            "one or more",
            "Prepare the store with a train split.",
        )
    features = frozen.features(trained, run, predictor, params, rows, cache=cache)
    return Ready(trained, run, predictor, params, rows, features)


def transfer(
    ready: Ready,
    settings: fit.Settings,
    num_images: int | None,
    workdir: str,
    step_fn: Callable | None = None,
) -> dict[str, Any]:
    """Fits a subject, writes its file and its scores.

    A workdir that holds the subject, fitted with these settings, is only scored.

    Args:
        ready: From `make_ready`.
        settings: How to fit; its seed also chooses the pictures.
        num_images: Pictures to use, val among them; None: all.
        workdir: Where to write.
        step_fn: From `fit.make_step` with this learning rate, where it exists already.

    Returns:
        The content of metrics.json.

    Raises:
        errors.OutputError: If the workdir holds a subject fitted otherwise.
    """
    trained, out = ready.trained, pathlib.Path(workdir)
    stores = crowd.with_images(ready.run.stores, num_images, settings.seed)
    run = ready.run._replace(stores=stores)
    [subject] = stores.subjects
    path = out / bundle.subject_file(subject.name)
    asked = _asked(settings, num_images, stores)
    if path.exists():
        old = bundle.read_subject(path, trained.sha256)
        _refuse_other(path, old.provenance["asked"], asked)
        print(f"{subject.name} is fitted already: {path}", flush=True)
        rows, step = old.embedding, int(old.provenance["step"])
    else:
        own, log = fit_subject(ready, settings, num_images, step_fn)
        rows, step = own.embedding, int(own.provenance["step"])
        text = "".join(json.dumps(line) + "\n" for line in log)
        whole.write_text(out / "metrics.jsonl", text)
        told = json.dumps(own.provenance, indent=1)
        whole.write_text(out / "transfer.json", told + "\n")
        bundle.write_subject(path, own, trained.sha256)
    table = encoder.table_of_rows(rows, run.experiment.data.stripes)
    old_table = ready.params["table"]
    placed = {**ready.params, "table": fit.on_mesh(table, old_table)}
    return evaluate.evaluate(run, placed, workdir, step, ready.predictor)


def fit_subject(
    ready: Ready,
    settings: fit.Settings,
    num_images: int | None,
    step_fn: Callable | None = None,
) -> tuple[bundle.Subject, list[dict[str, Any]]]:
    """Learns a subject's embeddings.

    Args:
        ready: From `make_ready`.
        settings: How to fit; its seed also chooses the pictures.
        num_images: Pictures to use, val among them; None: all.
        step_fn: From `fit.make_step` with this learning rate, where it exists already.

    Returns:
        The subject, whose provenance says how it was fitted, and the log of the fit.
    """
    trained = ready.trained
    stores = crowd.with_images(ready.run.stores, num_images, settings.seed)
    [subject] = stores.subjects
    fitted, lines = _fit(ready, ready.run._replace(stores=stores), settings, step_fn)
    _check_frozen(trained, ready.params)
    told = {
        "asked": _asked(settings, num_images, stores),
        "encoder": trained.workdir,
        "encoder_sha256": trained.sha256,
        "encoder_step": trained.step,
        "encoder_subjects": list(trained.subjects),
        "images": {s: len(subject.samples(s)) for s in crowd.SPLITS},
        "step": fitted.step,
        "steps_done": fitted.steps,
        "val_mean_r": metrics.null_for_nan(fitted.score),
        "fit_seconds": round(fitted.seconds, 3),
        "notes": lines,
    }
    own = bundle.Subject(
        subject.name,
        np.ascontiguousarray(encoder.rows_of_table(fitted.table, subject.num_voxels)),
        subject.position,
        subject.roi,
        subject.roi_names,
        subject.ncsnr,
        subject.attrs,
        told,
    )
    return own, fitted.log


def _asked(
    settings: fit.Settings, num_images: int | None, stores: crowd.Crowd
) -> dict[str, Any]:
    """What a fit depends on, to tell one from another."""
    return {
        **dataclasses.asdict(settings),
        "num_images": num_images,
        "subject": stores.subjects[0].name,
        "crowd": stores.fingerprint,
    }


def _fit(
    ready: Ready,
    run: experiments.Run,
    settings: fit.Settings,
    step_fn: Callable | None,
) -> tuple[fit.Fitted, list[str]]:
    """The fitted embeddings, and lines about their start."""
    [subject] = run.stores.subjects
    samples = {s: subject.samples(s) for s in ("train", "val")}
    inside = {
        s: np.searchsorted(ready.rows, subject.image[k]) for s, k in samples.items()
    }
    pictures = {s: ready.features[k] for s, k in inside.items()}
    responses = {s: crowd.read_responses(subject, k) for s, k in samples.items()}
    table, lines = fit.start_table(
        ready.trained,
        run,
        ready.predictor,
        ready.params,
        pictures["train"],
        responses["train"],
        settings,
    )
    for line in lines:
        print(line, flush=True)
    start = {**ready.params, "table": table}
    fitted = fit.fit(
        run, ready.predictor, start, pictures, responses, settings, step_fn=step_fn
    )
    return fitted, lines


def _check_frozen(trained: frozen.Trained, params: Any) -> None:
    """The shared weights on the device are still those that were read."""
    shared = {k: v for k, v in params.items() if k != "table"}
    now = bundle.encoder_sha256(trained.experiment, shared, trained.backbone_sha256)
    if now != trained.sha256:
        raise RuntimeError("the frozen weights changed while embeddings were fitted")


def _refuse_other(path: pathlib.Path, old: dict[str, Any], asked: dict) -> None:
    """A finished fit is kept; another one needs another place."""
    changed = {k: (old.get(k), v) for k, v in asked.items() if old.get(k) != v}
    if changed:
        listed = "; ".join(f"{k} was {a!r}, is {b!r}" for k, (a, b) in changed.items())
        raise errors.OutputError(
            path,
            "",
            f"fitted otherwise: {listed}",
            "the settings that it was fitted with",
            "Take another --workdir, or delete this file.",
        )


def define_flags() -> None:
    """Flags of commands that take in a subject."""
    for name, text in {
        "encoder": "Workdir of a run of python -m ubrain_jax.main.",
        "crowd": "Store that holds the new subject.",
        "subject": "Its name there.",
        "workdir": "Folder to write. Made if absent.",
        "backbone": "Folder of the frozen network, if it is elsewhere now.",
        "cache": "Folder for features too large for memory. Default: beside the store.",
    }.items():
        flags.DEFINE_string(name, None, text)


def define_settings(*but: str) -> None:
    """A flag for each of `fit.Settings`, but for some."""
    default = dataclasses.asdict(fit.Settings())
    texts = {
        "init": "Start of each voxel: random, or twin: the existing voxel that "
        "responds alike.",
        "steps": "Most steps; 0: the start itself is the result.",
        "batch_images": "Images in a step.",
        "voxels_per_step": "Voxels in a step; 0: all, or as many as memory allows.",
        "learning_rate": "Of Adam.",
        "pull": "Images beyond which a voxel's twin counts for little; 0: no pull.",
        "eval_every_steps": "Score the val pictures every so many steps.",
        "patience": "Validations without a better one that end a fit.",
        "seed": "Of pictures, start, order and dropout.",
    }
    for name in default.keys() - set(but):
        if name == "init":
            flags.DEFINE_enum(name, default[name], ["random", "twin"], texts[name])
        elif isinstance(default[name], float):
            flags.DEFINE_float(name, default[name], texts[name])
        else:
            flags.DEFINE_integer(name, default[name], texts[name])


def read_settings(**given: Any) -> fit.Settings:
    """Settings from the flags, some given instead; checked."""
    names = {f.name for f in dataclasses.fields(fit.Settings)} - set(given)
    values: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
    settings = fit.Settings(**values, **given)
    fit.check(settings)
    return settings
