"""Files that are written whole or not at all."""

import contextlib
import os
import pathlib
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
