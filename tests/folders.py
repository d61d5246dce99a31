"""What tests say about whole folders."""

import hashlib
import pathlib


def digest(folder: pathlib.Path) -> dict[str, str]:
    """sha256 of every file, by its name in the folder."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
