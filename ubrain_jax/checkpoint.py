"""Checkpoints of a run: trainable weights, optimiser state, step, config, data.

Orbax writes a step under a temporary name and renames it when whole, so a process
killed at any moment leaves only whole steps. Old steps are renamed before they are
deleted. The frozen backbone is never stored; its hash is.

`checkpoints/` holds the newest steps. `best/`, where the run chooses by validation
(train.select), holds the weights of the best validation so far, without the optimiser.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any, cast

import jax
import numpy as np
import orbax.checkpoint as ocp

from ubrain_jax import crowd, errors

FORMAT = 1


@contextlib.contextmanager
def own_workdir(workdir: str) -> Iterator[None]:
    """Makes the folder of a run, if absent, and locks it for this process.

    Raises:
        errors.OutputError: If it cannot be made, or another process has it.
    """
    folder = pathlib.Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.OutputError(
            workdir,
            "",
            str(error),
            "a folder that can be written",
            "Choose another --workdir.",
        ) from error
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(crowd.locked(folder))
        except BlockingIOError as error:
            raise errors.OutputError(
                workdir,
                "",
                "another process works in it",
                "a workdir of its own for each run",
                "Wait for the other run, or choose another --workdir.",
            ) from error
        except OSError as error:  # a file system without locks
            print(f"note: {workdir} cannot be locked ({error}); run one job in it")
        yield


def open_manager(
    workdir: str, keep: int, folder: str = "checkpoints"
) -> ocp.CheckpointManager:
    """Checkpoints under `workdir`/`folder`; keeps the newest `keep`."""
    return ocp.CheckpointManager(
        pathlib.Path(workdir).absolute() / folder,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            cleanup_tmp_directories=True,
            todelete_subdir="trash",
            enable_async_checkpointing=True,
        ),
        # Named, so that what a checkpoint holds can be listed before it is read.
        item_handlers={
            "state": ocp.StandardCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        },
    )


def save(
    manager: ocp.CheckpointManager, step: int, state: Any, meta: dict[str, Any]
) -> None:
    """Saves after `step` steps; returns when the arrays have left the device.

    An error of the save before this one is raised here, not lost.
    """
    manager.wait_until_finished()
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({**meta, "format": FORMAT, "step": step}),
        ),
    )


def read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """What was saved beside the arrays: config, fingerprint of the crowd, ..."""
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
        "meta"
    ]
    if meta.get("format") != FORMAT:
        raise errors.InputError(
            manager.directory,
            f"step {step}",
            f"checkpoint format {meta.get('format')!r}",
            f"format {FORMAT}",
            "Use the version of ubrain_jax that wrote it.",
        )
    return meta


def restore(manager: ocp.CheckpointManager, step: int, like: Any) -> Any:
    """State of a step, on the devices and with the shapes of `like`.

    Args:
        manager: From `open_manager`.
        step: One of `manager.all_steps()`.
        like: Tree of arrays or `jax.ShapeDtypeStruct` with shardings.

    Raises:
        errors.InputError: If the checkpoint holds other leaves or shapes, listing
            them; nothing is padded or cut to fit.
    """
    stored = manager.item_metadata(step)["state"]
    faults = _mismatch(stored, like)
    if faults:
        raise errors.InputError(
            manager.directory,
            f"step {step}",
            "; ".join(faults[:20]),
            "the leaves and shapes of this config",
            "Resume with the config and stores of the run, or take a new --workdir.",
        )
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    )["state"]


def read_params(
    workdir: str, folder: str = "checkpoints"
) -> tuple[Any, dict[str, Any], int]:
    """Trainable weights alone of the newest checkpoint, for other programs.

    Neither the stores of the run nor its devices are needed, and the optimiser's
    moments are not read.

    Args:
        workdir: Of a run.
        folder: "checkpoints" or "best".

    Returns:
        Tree of NumPy arrays as `encoder.split` has it (the table is (S, rows, E)),
        what `read_meta` gives, and the step.

    Raises:
        errors.MissingInputError: If there is no checkpoint.
        errors.InputError: If it cannot be read.
    """
    root = pathlib.Path(workdir).absolute() / folder
    if not root.is_dir():
        raise _no_checkpoint(root)
    with contextlib.closing(open_manager(workdir, 1, folder)) as manager:
        step = manager.latest_step()
        if step is None:
            raise _no_checkpoint(root)
        meta = read_meta(manager, step)
    path = root / str(step) / "state"
    try:
        # Another handler than the manager's, which would want the whole state.
        with contextlib.closing(
            ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        ) as reader:
            stored = cast(Any, reader.metadata(path).item_metadata).tree["params"]
            like = {"params": stored}
            host = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like
            )
            some = ocp.args.PyTreeRestore(like, restore_args=host, partial_restore=True)
            return reader.restore(path, args=some)["params"], meta, step
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.InputError(
            path,
            "params",
            f"cannot be read ({str(error)[:200]})",
            "a whole checkpoint",
            "Copy the workdir again, or delete this step so that an older one is used.",
        ) from error


def _no_checkpoint(folder: pathlib.Path) -> errors.MissingInputError:
    return errors.MissingInputError(
        folder,
        "",
        "no checkpoint",
        "a trained run",
        "Give the --workdir of a run of python -m ubrain_jax.main.",
    )


def _mismatch(stored: Any, like: Any) -> list[str]:
    """Leaves that differ between a checkpoint's metadata and a tree.

    By name, because tuples come back from disk as lists or dicts.
    """

    def flat(tree: Any) -> dict[str, tuple]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in leaves
            if hasattr(leaf, "shape")
        }

    old, new = flat(stored), flat(like)
    return [
        *(f"missing: {name}" for name in sorted(set(new) - set(old))),
        *(f"extra: {name}" for name in sorted(set(old) - set(new))),
        *(
            f"shape: {name} {old[name]} against {new[name]}"
            for name in sorted(set(old) & set(new))
            if old[name] != new[name]
        ),
    ]
