"""Trains an encoder and scores it.

    python -m ubrain_jax.main --config=configs/nsd8.py --workdir=runs/nsd8 \\
        --config.data.crowd=nsd.zarr

The same command resumes an interrupted run. --mode=evaluate scores the newest
checkpoint of a workdir and trains nothing.
"""

import os
import pathlib

import jax
from absl import flags
from ml_collections import config_flags

from ubrain_jax import (
    checkpoint,
    config,
    errors,
    evaluate,
    experiments,
    memory,
    optim,
    train,
)
from ubrain_jax.maps import report

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File in configs/; change values with --config.section.key=value."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, scores, report. Made if absent."
)
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate"], "train: then evaluate. evaluate: alone."
)


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    errors.check_flags(argv, _CONFIG, _WORKDIR)
    experiment = config.parse(_CONFIG.value, "--config")
    workdir = pathlib.Path(str(_WORKDIR.value))
    with checkpoint.own_workdir(str(workdir)):
        return _run(experiment, workdir)


def _run(experiment: config.Experiment, workdir: pathlib.Path) -> int:
    """Trains if asked to, evaluates, prints; returns the exit code."""
    run = experiments.prepare_run(experiment)
    for line in evaluate.warnings_of(run):
        print(f"note: {line}", flush=True)
    trained = sum(a.size for a in jax.tree.leaves(run.parts.trainable))
    frozen = sum(a.size for a in jax.tree.leaves(run.parts.frozen))
    print(
        f"{len(run.stores.subjects)} subjects, {run.stores.num_voxels} voxels, "
        f"{len(run.stores.image_id)} pictures; {trained:,} trainable and "
        f"{frozen:,} frozen weights; mesh {dict(run.mesh.shape)}",
        flush=True,
    )
    print(_memory(run), flush=True)
    if _MODE.value == "train":
        state = train.train(run, str(workdir))
    else:
        steps = train.total_steps(experiment, run.stores)
        optimiser = optim.make(experiment.optim, steps)
        manager, state, _ = train.restored(
            run, str(workdir), optimiser, experiment.train.keep_checkpoints
        )
        manager.close()
        if int(state.step) == 0:
            raise errors.MissingInputError(
                workdir / "checkpoints",
                "",
                "no checkpoint",
                "a trained run",
                "Train first: the same command without --mode=evaluate.",
            )
    params, step = train.chosen_weights(run, state, str(workdir))
    result = evaluate.evaluate(run, params, str(workdir), step)
    print(report.score_table(result))
    for line in result["warnings"]:
        print(f"note: {line}")
    print(f"report: {os.path.join(workdir, 'report.html')}")
    return 0


def _memory(run: experiments.Run) -> str:
    """What a step needs, before it is compiled: a line for the terminal."""
    needs = memory.predict(
        run.experiment,
        run.provenance.geometry,
        run.stores.num_voxels,
        **run.mesh.shape,
    )
    parts = ", ".join(f"{k} {v / 1e9:.2f}" for k, v in needs._asdict().items())
    return f"a step needs about {needs.total / 1e9:.2f} GB on each device ({parts})"


if __name__ == "__main__":
    errors.run_command(main)
