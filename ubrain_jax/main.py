"""Trains an encoder and scores it.

    python -m ubrain_jax.main --config=configs/nsd8.py --workdir=runs/nsd8 \\
        --config.data.crowd=nsd.zarr

The same command resumes an interrupted run. --mode=evaluate scores the newest
checkpoint of a workdir and trains nothing.

On several machines the same command runs on each. JAX finds the others in a TPU pod,
a Slurm or Open MPI job and an indexed Kubernetes job; elsewhere --coordinator,
--num_processes and --process_id tell. SIGTERM to any of them saves and ends all.
"""

import contextlib
import os
import pathlib
from typing import Any

import flax
import jax
from absl import flags
from ml_collections import config_flags

import ubrain_jax
from ubrain_jax import (
    checkpoint,
    cluster,
    compile_cache,
    config,
    errors,
    evaluate,
    experiments,
    export,
    memory,
    optim,
    train,
    watch,
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
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT on which process 0 listens for the others."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Processes of this run; 1: none but this one."
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This one's number, from 0.")
_JOIN_SECONDS = flags.DEFINE_integer(
    "join_seconds", 300, "How long to wait for all processes at the start."
)


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    errors.check_flags(argv, _CONFIG, _WORKDIR)
    experiment = config.parse(_CONFIG.value, "--config")
    workdir = pathlib.Path(str(_WORKDIR.value))
    watch.catch_signals()
    cluster.start(
        _COORDINATOR.value,
        _NUM_PROCESSES.value,
        _PROCESS_ID.value,
        _JOIN_SECONDS.value,
    )
    watch.start_watchdog(experiment.train.watchdog_seconds)
    with cluster.ending_together(), contextlib.ExitStack() as stack:
        if not cluster.is_first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        print(compile_cache.begin(), flush=True)
        cluster.agree(_facts(experiment, workdir))
        cluster.first_enters(stack, checkpoint.own_workdir(str(workdir)))
        code = _run(experiment, workdir)
    watch.alive("waiting for the other processes to finish")
    cluster.leave()
    return code


def _facts(experiment: config.Experiment, workdir: pathlib.Path) -> dict[str, Any]:
    """What all processes of a run must have in common before data are opened."""
    settings = config.without_folders(experiment)
    return {
        **{f"{s}.{k}": v for s, values in settings.items() for k, v in values.items()},
        "--workdir": str(workdir),
        "--mode": _MODE.value,
        "version of ubrain_jax": ubrain_jax.__version__,
        "version of jax": jax.__version__,
        "version of flax": flax.__version__,
        "number of devices": jax.local_device_count(),
    }


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
        try:
            state = train.train(run, str(workdir))
        except watch.StoppedError as stopped:
            print(stopped, flush=True)
            return stopped.exit_code
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
    if not cluster.is_first():
        return 0
    watch.alive("writing the encoder")
    exported = export.write(run, workdir, result)
    print(report.closing(result, workdir, encoder=exported))
    return 0


def _memory(run: experiments.Run) -> str:
    """What a step needs, before it is compiled: a line for the terminal."""
    voxels = run.stores.num_voxels
    table = optim.table_kind(run.experiment, voxels, run.mesh)
    geometry = run.provenance.geometry
    told = memory.with_remat(run.experiment, geometry, voxels, run.mesh, table=table)
    needs = memory.predict(told, geometry, voxels, **run.mesh.shape, table=table)
    parts = ", ".join(f"{k} {v / 1e9:.2f}" for k, v in needs._asdict().items())
    return (
        f"a step needs about {needs.total / 1e9:.2f} GB on each device ({parts}; "
        f"{table} updates of the table; head.remat {told.head.remat})"
    )


if __name__ == "__main__":
    errors.run_command(main)
