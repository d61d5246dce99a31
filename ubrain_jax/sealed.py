"""A manifest of hashes in a folder, so that nothing in it changes unseen.

Orbax restores an array whose file has a flipped bit without a word. The manifest has
the SHA-256 and the size of every file, and a hash of itself.
"""

import hashlib
import json
import os
import pathlib

NAME = "manifest.json"


def seal(folder: pathlib.Path, unread: tuple[str, ...] = ()) -> None:
    """Writes the manifest of all files below a folder.

    Args:
        folder: Whose files are whole and change no more.
        unread: Files at its top that nobody reads and that may still change.
    """
    files = {
        name: {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for name, path in _files(folder, unread).items()
    }
    line = json.dumps({"version": 1, "files": files}, sort_keys=True)
    with (folder / NAME).open("w", encoding="utf-8") as file:
        file.write(f"{line}\n{hashlib.sha256(line.encode()).hexdigest()}\n")
        file.flush()
        os.fsync(file.fileno())


def faults(folder: pathlib.Path, unread: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with a sealed folder, a line each; none if it is as sealed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = pathlib.Path(name)
        ...     _ = (folder / "a").write_bytes(b"xyz")
        ...     seal(folder)
        ...     print(faults(folder))
        ...     _ = (folder / "a").write_bytes(b"xy")
        ...     print(faults(folder))
        []
        ['a has 2 bytes instead of 3']
    """
    try:
        text = (folder / NAME).read_bytes()
    except OSError as error:
        return [f"{NAME} cannot be read ({error.strerror})"]
    line, _, rest = text.partition(b"\n")
    if rest != hashlib.sha256(line).hexdigest().encode() + b"\n":
        return [f"{NAME} is damaged"]
    try:
        told = json.loads(line)
        version, sealed = told["version"], told["files"]
        sealed = {
            str(k): (int(v["bytes"]), str(v["sha256"])) for k, v in sealed.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{NAME} is not a manifest"]
    if version != 1:
        return [f"{NAME} is of version {version}, not 1"]
    there = _files(folder, unread)
    found = [f"{name} is missing" for name in sorted(sealed.keys() - there.keys())]
    found += [f"{name} is not in {NAME}" for name in sorted(there.keys() - sealed)]
    for name in sorted(sealed.keys() & there.keys()):
        try:
            size = there[name].stat().st_size
            expected, digest = sealed[name]
            if size != expected:
                found.append(f"{name} has {size} bytes instead of {expected}")
            elif sha256_of(there[name]) != digest:
                found.append(f"{name} has another content")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
    return found


def _files(folder: pathlib.Path, unread: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """Name inside the folder -> path of every file; links count as files."""
    skipped = {NAME, *unread}
    return {
        name: path
        for path in folder.rglob("*")
        if (path.is_symlink() or not path.is_dir())
        and (name := path.relative_to(folder).as_posix()) not in skipped
    }


def proof_of(path: pathlib.Path) -> pathlib.Path:
    """Where the hash of a file of its own stands: NAME.sha256 beside it."""
    return path.with_suffix(".sha256")


def is_proven(path: pathlib.Path, size: int) -> bool:
    """Whether a file is there, of that size, with the content its proof tells.

    One that is damaged is named on the terminal; its owner makes it anew.
    """
    proof = proof_of(path)
    if not (path.exists() and proof.exists()):
        return False
    told = proof.read_text().strip()
    if path.stat().st_size == size and sha256_of(path) == told:
        return True
    print(f"note: {path} is damaged and computed again", flush=True)
    return False


def sha256_of(path: pathlib.Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
