"""Files and folders that are written whole or not at all."""

import contextlib
import errno
import fcntl
import glob
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator

from ubrain_jax import errors


@contextlib.contextmanager
def writing(
    path: str | os.PathLike, needs: str = "a file that can be written"
) -> Iterator[pathlib.Path]:
    """A name to write to; the file gets its own name when the block ends well.

    Args:
        path: Of the file; its folder is made if absent.
        needs: What a message says is expected.

    Yields:
        Path beside it. Whatever stops the block, nothing is left there, and a file
        that had the name before stays.

    Raises:
        errors.OutputError: If it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with writing(f"{folder}/a/b.txt") as unfinished:
        ...         _ = unfinished.write_text("x")
        ...     os.listdir(f"{folder}/a")
        ['b.txt']
    """
    path = pathlib.Path(path)
    unfinished = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        raise errors.OutputError(
            path,
            "",
            f"cannot be written ({error.strerror or error})",
            needs,
            "Free some space or choose another folder.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """A text file in UTF-8, whole or not at all.

    A lone surrogate, as in the name of a file of undecodable bytes, becomes "?".
    """
    with writing(path) as unfinished:
        unfinished.write_bytes(text.encode("utf-8", errors="replace"))


@contextlib.contextmanager
def folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A new folder to fill; it gets its name when the block ends well.

    It is locked while this process lives, so that the next one can tell and remove
    what a killed one left. Where a file system has no locks, leftovers stay.

    Args:
        path: Of the folder; its parent is made if absent. One that had the name goes
            after the new one has it.

    Raises:
        errors.OutputError: If it cannot be written; nothing is left there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with folder(f"{parent}/new") as unfinished:
        ...         _ = (unfinished / "a.txt").write_text("x")
        ...     os.listdir(parent), os.listdir(f"{parent}/new")
        (['new'], ['a.txt'])
    """
    target = pathlib.Path(path)
    try:
        with _partial(target) as partial:
            yield partial
            _place(partial, target)
    except OSError as error:
        raise errors.OutputError(
            path,
            "",
            f"cannot be written ({error.strerror or error})",
            "a folder that can be written, with room",
            "Free some space or choose another place; nothing was left there.",
        ) from error


@contextlib.contextmanager
def _partial(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A locked folder beside the target, gone afterwards unless it was renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f"{glob.escape(target.name)}.partial-*"):
        with contextlib.suppress(OSError), locked(left):
            shutil.rmtree(left, ignore_errors=True)
    partial = target.with_name(f"{target.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                stack.enter_context(locked(partial))
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a folder; OSError if another process has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            # Over NFS only what is open for writing can be locked, so no folder.
            os.close(handle)
            handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _place(partial: pathlib.Path, target: pathlib.Path) -> None:
    """Gives a whole folder its name; what had the name goes only after that."""
    if target.exists():
        target.rename(target.with_name(f"{target.name}.old-{secrets.token_hex(4)}"))
    partial.rename(target)
    for old in target.parent.glob(f"{glob.escape(target.name)}.old-*"):
        shutil.rmtree(old, ignore_errors=True)
