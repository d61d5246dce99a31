"""Compiled programs kept for the next start, in a folder that only its owner writes.

What is kept is run when it is read, so a folder that others can write to is never
used. JAX's own variables come first: JAX_COMPILATION_CACHE_DIR names another folder,
JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
"""

import os
import pathlib
import stat
from collections.abc import Mapping
from typing import Any

import jax

# The oldest programs go when there are more bytes than this.
_MOST_BYTES = 4 * 2**30


def begin(environ: Mapping[str, str] = os.environ) -> str:
    """Has JAX keep compiled programs from now on; returns a line for the terminal.

    Not on a CPU, unless JAX_COMPILATION_CACHE_DIR is set: XLA prints kilobytes about
    the machine's features for each program that it reads there (jax-ml/jax#38445), and
    a home folder may be shared by machines with other instructions.

    To be called by a command when its processes have found each other, before anything
    is compiled.

    Args:
        environ: Where variables are looked up.
    """
    settings: Any = jax.config  # whose attributes JAX makes as it starts
    told = settings.jax_compilation_cache_dir
    if not settings.jax_enable_compilation_cache:
        return "compiled programs are not kept: JAX_ENABLE_COMPILATION_CACHE is off"
    if told:
        fault = "" if "://" in told else distrust(pathlib.Path(told))
        note = f"; note: {fault}, and what is kept there is run" if fault else ""
        return f"compiled programs are kept in {told}{note}"
    if jax.default_backend() == "cpu":
        return "compiled programs are not kept: on a CPU, without a folder for them"
    folder = folder_of(environ)
    if folder is None:
        return "compiled programs are not kept: no home folder"
    if fault := make(folder) or distrust(folder):
        return f"compiled programs are not kept: {fault}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if settings.jax_compilation_cache_max_size == -1:
        jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
    return f"compiled programs are kept in {folder}"


def folder_of(environ: Mapping[str, str]) -> pathlib.Path | None:
    """The user's own folder for compiled programs, by the XDG rules.

    Example:
        >>> folder_of({"XDG_CACHE_HOME": "/big", "HOME": "/home/me"}).as_posix()
        '/big/ubrain_jax/compiled'
        >>> folder_of({"XDG_CACHE_HOME": "not/absolute", "HOME": "/home/me"}).as_posix()
        '/home/me/.cache/ubrain_jax/compiled'
    """
    for base in (
        pathlib.Path(environ.get("XDG_CACHE_HOME", "")),
        pathlib.Path(environ.get("HOME", ""), ".cache"),
    ):
        if base.is_absolute():
            return base / "ubrain_jax" / "compiled"
    return None


def make(folder: pathlib.Path) -> str:
    """Makes a folder, and what is missing above it, for the user alone.

    Returns:
        Why it cannot be made, or nothing.
    """
    try:
        for path in reversed((folder, *folder.parents)):
            path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        return f"{folder} cannot be made ({error.strerror or error})"
    return ""


def distrust(folder: pathlib.Path) -> str:
    """Who but the user (and root) could put something into a folder, if anyone.

    Counted are the permissions of the folder and of all above it, where another one
    could be put in its place.

    Returns:
        What is wrong, or nothing; nothing too where there is no folder yet.
    """
    folder = folder.resolve()
    for path in (folder, *folder.parents):
        try:
            found = path.stat()
        except OSError:
            continue
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid not in {os.geteuid(), 0}:
            return f"{path} belongs to user {found.st_uid}"
        # In a sticky folder, such as /tmp, only an owner may rename.
        only_owners = path != folder and mode & stat.S_ISVTX
        if mode & 0o022 and not only_owners:
            return f"{path} can be written by others (mode {mode:o})"
    return ""
