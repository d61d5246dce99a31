"""Checkpoints of a run: trainable weights, optimiser state, step, config, data.

Orbax writes a step under a temporary name and renames it when whole, so a process
killed at any moment leaves only whole steps. Old steps are renamed before they are
deleted. The frozen backbone is never stored; its hash is.
"""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from ubrain_jax import errors

FORMAT = 1


def open_manager(workdir: str, keep: int) -> ocp.CheckpointManager:
    """Checkpoints under `workdir`/checkpoints; keeps the newest `keep`."""
    folder = pathlib.Path(workdir).absolute() / "checkpoints"
    return ocp.CheckpointManager(
        folder,
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
