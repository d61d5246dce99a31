"""A finished run as a bundle: weights that were evaluated, subjects, provenance."""

import os
import pathlib
import subprocess
from typing import Any

import jax
import numpy as np

import ubrain_jax
from ubrain_jax import config, experiments, frozen
from ubrain_jax.model import bundle, card


def write(run: experiments.Run, workdir: str | os.PathLike, result: dict) -> str:
    """Writes WORKDIR/encoder, whole or not at all.

    Args:
        run: The experiment.
        workdir: Its folder, with checkpoints.
        result: What `evaluate.evaluate` returned.

    Returns:
        Path of the bundle.
    """
    path = pathlib.Path(workdir) / "encoder"
    found = of_run(run, str(workdir), result)
    bundle.write(path, found, card.text(found))
    return str(path)


def of_run(run: experiments.Run, workdir: str, result: dict[str, Any]) -> bundle.Bundle:
    """The bundle of a run, from its checkpoints and its stores."""
    trained = frozen.read_encoder(workdir)
    settings = run.experiment
    subjects, first = [], 0
    for rows in run.stores.subjects:
        last = first + rows.num_voxels
        subjects.append(
            bundle.Subject(
                rows.name,
                np.ascontiguousarray(trained.embeddings[first:last]),
                rows.position,
                rows.roi,
                rows.roi_names,
                rows.ncsnr,
                rows.attrs,
                {"images": {s: len(rows.samples(s)) for s in ("train", "val", "test")}},
            )
        )
        first = last
    provenance = {
        **versions(),
        "step": trained.step,
        "seed": settings.train.seed,
        "config_sha256": config.sha256(settings),
        "stores": [os.path.basename(p.rstrip("/")) for p in run.stores.paths],
        "datasets": [a.get("dataset") for a in run.stores.attrs],
        "prepared_by": [a.get("created_by") for a in run.stores.attrs],
        "crowd": run.stores.fingerprint,
        "metrics": result.get("subjects", {}),
        "warnings": result.get("warnings", []),
    }
    return bundle.Bundle(
        settings,
        trained.shared,
        tuple(subjects),
        tuple(trained.subjects),
        backbone_of(run.provenance, settings),
        trained.seen,
        provenance,
    )


def backbone_of(provenance: Any, settings: config.Experiment) -> bundle.Backbone:
    """What a bundle says of a backbone that was loaded.

    Args:
        provenance: From `backbone.weights.load`.
        settings: Of which backbone.weights is read; of a path the last name is kept.
    """
    source = settings.backbone.weights
    path = os.path.expanduser(source)
    if os.path.exists(path):
        source = os.path.basename(os.path.abspath(path))
    return bundle.Backbone(
        source, provenance.sha256, provenance.random, provenance.geometry
    )


def versions() -> dict[str, str]:
    """Of what wrote a bundle: packages, and the commit where there is one."""
    return {
        "ubrain_jax": ubrain_jax.__version__,
        "jax": jax.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    """Of the checkout that the package lies in; "unknown" where it is installed."""
    here = pathlib.Path(ubrain_jax.__file__).parent
    if not (here.parent / ".git").exists():
        return "unknown"
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
