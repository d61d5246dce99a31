"""Checkpoints of a run: trainable weights, optimiser state, step, config, data.

Orbax writes a step under a temporary name; before it gets its own name, all files are
hashed into a manifest inside (`sealed`), so a process killed at any moment leaves only
whole steps, and a damaged one is seen when it is read. Old steps are renamed before
they are deleted. The frozen backbone is never stored; its hash is.

`checkpoints/` holds the newest steps. `best/`, where the run chooses by validation
(train.select), holds the weights of the best validation so far, without the optimiser.
Damaged steps are moved to `damaged/` in either.

With several processes all call all of this, on one file system that they share.
"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import socket
import time
from collections.abc import Iterator
from typing import Any, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from ubrain_jax import cluster, errors, sealed, whole
from ubrain_jax.model import encoder

FORMAT = 1
# Orbax writes these two at the last moment, after the manifest. Nobody reads the
# second; of the first a copy is sealed, and only the time of the end may differ.
_ORBAX = "_CHECKPOINT_METADATA"
UNSEALED = (_ORBAX, "commit_success.txt")
_COPY = "orbax.json"
_OWNER = "lock.json"
# Bytes of a checkpoint beside its arrays, generously.
_SMALL = 1 << 20


@contextlib.contextmanager
def own_workdir(workdir: str) -> Iterator[None]:
    """Makes the folder of a run, if absent, and locks it for this process.

    The lock is the operating system's: it is free the moment its holder is gone.
    lock.json tells who holds it.

    Raises:
        errors.OutputError: If it cannot be made or written, or another process has it.
    """
    folder = pathlib.Path(workdir)
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(whole.locked(folder))
        except BlockingIOError as error:
            raise errors.OutputError(
                workdir,
                "",
                f"another process works in it ({_holder(folder)})",
                "a workdir of its own for each run",
                "Wait for the other run, or choose another --workdir.",
            ) from error
        except OSError as error:
            if folder.is_dir() and error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
                print(f"note: {workdir} cannot be locked ({error}); run one job in it")
            else:
                raise errors.OutputError(
                    workdir,
                    "",
                    str(error),
                    "a folder that can be written",
                    "Choose another --workdir.",
                ) from error
        # Also shows, before anything is computed, that the folder can be written.
        whole.write_text(folder / _OWNER, json.dumps(owner) + "\n")
        yield


def _holder(folder: pathlib.Path) -> str:
    """Who holds the lock, as far as lock.json can be read."""
    try:
        owner = json.loads((folder / _OWNER).read_text(encoding="utf-8"))
        return f"pid {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it left no name"


class Checkpoints:
    """The steps of one folder; `open_manager` makes it.

    Args:
        folder: Of the steps.
        keep: The newest so many are kept.
    """

    def __init__(self, folder: pathlib.Path, keep: int):
        self.directory = folder
        self._saving: int | None = None
        self._manager = ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=True,
                cleanup_tmp_directories=True,
                todelete_subdir="trash",
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
                # Else checkpoints/ and best/ meet at one barrier between processes
                # when they save the same step.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=folder.name
                ),
            ),
            # Named, so that what a checkpoint holds can be listed before it is read.
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )
        self._purge()

    def latest_step(self) -> int | None:
        """The newest whole step."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Saves after `step` steps; returns when the arrays have left the device.

        Raises:
            errors.DiskError: If this save or the one before cannot be written.
        """
        self.wait_until_finished()
        self._purge()
        check_room(self.directory, bytes_of(state))
        self._saving = step
        with self._told():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    meta=ocp.args.JsonSave({**meta, "format": FORMAT, "step": step}),
                ),
            )

    def check(self) -> None:
        """Raises what went wrong in a save, as soon as it is known.

        Raises:
            errors.DiskError: If it cannot be written.
        """
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait_until_finished()

    def wait_until_finished(self) -> None:
        """Returns when the newest save is whole on disk.

        Raises:
            errors.DiskError: If it cannot be written.
        """
        with self._told():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        self._saving = None

    def close(self) -> None:
        """Waits for a save and lets go of the folder."""
        self._manager.close()

    def _unfinished(self) -> list[pathlib.Path]:
        return list(self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"))

    def _seal(self) -> None:
        """Called by Orbax in process 0 when all processes have written their part."""
        (folder,) = self._unfinished()
        (folder / _COPY).write_text(_written_record(folder), encoding="utf-8")
        sealed.seal(folder, UNSEALED)

    def _purge(self) -> None:
        """Deletes what Orbax has moved out of the way."""
        if cluster.is_first():
            shutil.rmtree(self.directory / "trash", ignore_errors=True)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of a save as one of ours, with room made for other things."""
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # another process is gone, not the disk
        except (OSError, ValueError, RuntimeError) as error:
            if cluster.is_lost_peer(error):
                raise
            for folder in self._unfinished() if cluster.is_first() else ():
                shutil.rmtree(folder, ignore_errors=True)
            free = shutil.disk_usage(self.directory).free
            text = " ".join(str(error).split())
            raise errors.DiskError(
                self.directory,
                f"step {self._saving}",
                f"cannot be written with {free:,} bytes free ({text[:300]})",
                "room for a checkpoint",
                f"The newest whole step is {self.latest_step()}. Free some space; the "
                "same command goes on from there.",
            ) from error


def open_manager(workdir: str, keep: int, folder: str = "checkpoints") -> Checkpoints:
    """Checkpoints under `workdir`/`folder`, for writing; keeps the newest `keep`.

    The newest step is checked against its manifest. One that fails is moved to
    `damaged/`, with a line that says so, and the one before is checked.

    Raises:
        errors.InputError: If there are steps, or were, and none is whole.
    """
    root = pathlib.Path(workdir).absolute() / folder
    found = cluster.from_first(lambda: _set_aside(root))
    if found:
        raise errors.InputError(
            root,
            "",
            found,
            "a whole checkpoint to go on from",
            "Bring one back from a copy of the workdir, or delete the folder damaged "
            "to start from the first step.",
        )
    return Checkpoints(root, keep)


def _set_aside(root: pathlib.Path) -> str:
    """Moves damaged steps away; says so where none is left."""
    damaged = root / "damaged"
    for step in reversed(steps_in(root)):
        faults = faults_of(root, step)
        if not faults:
            return ""
        damaged.mkdir(exist_ok=True)
        to = damaged / f"{step}-{time.time_ns()}"
        (root / str(step)).rename(to)
        print(f"note: checkpoint {step} is damaged ({_some(faults)}); moved to {to}")
    if damaged.is_dir() and any(damaged.iterdir()):
        return f"no whole step; {len(list(damaged.iterdir()))} in {damaged}"
    return ""


def faults_of(root: pathlib.Path, step: int) -> list[str]:
    """What is wrong with a step, a line each; none if it is as it was saved."""
    folder = root / str(step)
    faults = sealed.faults(folder, UNSEALED)
    if faults:
        return faults
    try:
        if _orbax_record(folder) != (folder / _COPY).read_text(encoding="utf-8"):
            return [f"{_ORBAX} has another content"]
        saved = json.loads((folder / "meta" / "metadata").read_text(encoding="utf-8"))
        if saved["step"] != step:
            return [f"it was saved as step {saved['step']}"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"cannot be read ({error!r})"]
    return []


def _orbax_record(folder: pathlib.Path) -> str:
    """What Orbax notes of a step, but for the time at which it ended."""
    told = json.loads((folder / _ORBAX).read_text(encoding="utf-8"))
    if type(told.pop("commit_timestamp_nsecs", 0)) not in (int, type(None)):
        raise TypeError("commit_timestamp_nsecs is not a number")
    return json.dumps(told, sort_keys=True)


def _written_record(folder: pathlib.Path, seconds: float = 60) -> str:
    """The same, once it is there: Orbax writes it from a thread of its own."""
    end = time.monotonic() + seconds
    while True:
        try:
            return _orbax_record(folder)
        except (OSError, json.JSONDecodeError):  # absent, empty or half of it
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _some(faults: list[str]) -> str:
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return "; ".join(faults[:3]) + more


def steps_in(root: pathlib.Path) -> list[int]:
    """Steps of a folder, ascending; other names are none of ours."""
    if not root.is_dir():
        return []
    names = [p.name for p in root.iterdir() if p.name.isdecimal() and p.is_dir()]
    return sorted(int(name) for name in names if str(int(name)) == name)


def bytes_of(state: Any) -> int:
    """Bytes of the arrays of a tree."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state))


def check_room(folder: pathlib.Path, *sizes: int) -> None:
    """Refuses to go on when a disk has no room for more checkpoints.

    Args:
        folder: Where they would be.
        *sizes: Bytes of the arrays of each.

    Raises:
        errors.DiskError: Saying how much is free and needed, a tenth more than both.
    """
    needed = int(sum(size * 1.1 + _SMALL for size in sizes))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise errors.DiskError(
            folder,
            "",
            f"{free:,} bytes free",
            f"{needed:,} for {len(sizes)} checkpoints of up to {max(sizes):,}",
            "Free some space, keep fewer (train.keep_checkpoints) or choose another "
            "--workdir.",
        )


def read_meta(folder: pathlib.Path, step: int) -> dict[str, Any]:
    """What was saved beside the arrays of a checked step: config, crowd, ...

    Args:
        folder: Of the steps, such as `Checkpoints.directory`.
        step: One of them.
    """
    path = folder / str(step) / "meta" / "metadata"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise errors.InputError(
            path, "", f"cannot be read ({error})", "a whole checkpoint", _COPY_AGAIN
        ) from error
    if meta.get("format") != FORMAT:
        raise errors.InputError(
            folder,
            f"step {step}",
            f"checkpoint format {meta.get('format')!r}",
            f"format {FORMAT}",
            "Use the version of ubrain_jax that wrote it.",
        )
    return meta


_COPY_AGAIN = (
    "Copy the workdir again, or delete this step so that an older one is used."
)


def restore(manager: Checkpoints, step: int, like: Any) -> Any:
    """State of a checked step, on the devices and with the shapes of `like`.

    Args:
        manager: From `open_manager`.
        step: Its `latest_step()`.
        like: Tree of arrays or `jax.ShapeDtypeStruct` with shardings, of any mesh.

    Raises:
        errors.InputError: If the checkpoint holds other leaves or shapes, listing
            them; nothing is padded or cut to fit.
    """
    path = manager.directory / str(step) / "state"
    with _reader(ocp.StandardCheckpointHandler()) as reader:
        stored = cast(Any, reader.metadata(path).item_metadata)
        faults = _mismatch(stored.tree, like)
        if faults:
            raise errors.InputError(
                manager.directory,
                f"step {step}",
                "; ".join(faults[:20]),
                "the leaves and shapes of this config",
                "Resume with the config and stores of the run, or take a new "
                "--workdir.",
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return reader.restore(path, args=ocp.args.StandardRestore(abstract))


@contextlib.contextmanager
def _reader(handler: Any, **options: Any) -> Iterator[ocp.Checkpointer]:
    """Reads one item by its path; Orbax would warn of every item without metadata."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.closing(ocp.Checkpointer(handler, **options)) as reader:
            yield reader
    finally:
        logging.set_verbosity(verbosity)


def newest_whole(root: pathlib.Path) -> int:
    """The newest step that is as it was sealed, for readers who change nothing.

    Raises:
        errors.MissingInputError: If there is no step.
        errors.InputError: If none is whole.
    """
    told = ""
    # Again when a step vanishes meanwhile: its run may be writing.
    for _ in range(5):
        steps = steps_in(root)
        if not steps:
            raise _no_checkpoint(root)
        for step in reversed(steps):
            faults = faults_of(root, step)
            if not faults:
                return step
            if not (root / str(step)).is_dir():
                break
            told = f"step {step}: {_some(faults)}"
            print(f"note: {root / str(step)} is damaged and not used: {_some(faults)}")
        else:
            break
    raise errors.InputError(root, "", told, "a whole checkpoint", _COPY_AGAIN)


def read_params(
    workdir: str, folder: str = "checkpoints"
) -> tuple[Any, dict[str, Any], int]:
    """Trainable weights alone of the newest checkpoint, for other programs.

    Neither the stores of the run nor its devices are needed, and the optimiser's
    moments are not read. Nothing in the workdir is changed. One of several processes
    may read without the others.

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
    step = newest_whole(root)
    meta = read_meta(root, step)
    path = root / str(step) / "state"
    own = jax.process_index()
    # Orbax would wait for all processes.
    alone: dict[str, Any] = {
        "multiprocessing_options": ocp.options.MultiprocessingOptions(
            primary_host=own,
            active_processes={own},
            barrier_sync_key_prefix=f"process-{own}",
        )
    }
    try:
        with _reader(ocp.PyTreeCheckpointHandler(**alone), **alone) as reader:
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
            _COPY_AGAIN,
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
        leaves = encoder.by_name(tree).items()
        return {name: tuple(a.shape) for name, a in leaves if hasattr(a, "shape")}

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
