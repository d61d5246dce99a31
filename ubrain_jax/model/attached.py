"""Files that mean something beside one encoder only: safetensors, sealed by hashes.

The header names the hash of the encoder's shared weights, and holds everything that is
no array as JSON, with a hash of arrays and text together: safetensors has none.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from ubrain_jax import errors, whole
from ubrain_jax.model import encoder


class Kind(NamedTuple):
    """What such files are.

    Attributes:
        format: Name in the header.
        version: Number in the header.
        key: Name of the JSON in the header.
        what: In words, for messages.
        made: How it depends on the encoder, for example "fitted with".
        again: What to do with a damaged one.
        other: What to do with another encoder's.
    """

    format: str
    version: int
    key: str
    what: str
    made: str
    again: str
    other: str


def tree_sha256(tree: Any) -> str:
    """Hash of all names, types, shapes and bytes of a tree of arrays."""
    digest = hashlib.sha256()
    named = encoder.by_name(tree)
    for name in sorted(named):
        array = np.ascontiguousarray(named[name])
        digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write(
    path: str | os.PathLike,
    kind: Kind,
    tensors: Mapping[str, np.ndarray],
    told: Mapping[str, Any],
    encoder_sha256: str,
) -> None:
    """Writes a file, whole or not at all.

    Args:
        path: Of the file.
        kind: What it is.
        tensors: Arrays, contiguous, by name.
        told: Everything else, JSON-able.
        encoder_sha256: Of the encoder.

    Raises:
        errors.OutputError: If it cannot be written.
    """
    text = json.dumps(told, sort_keys=True)
    header = {
        "format": kind.format,
        "version": str(kind.version),
        "encoder_sha256": encoder_sha256,
        kind.key: text,
        "sha256": _content(tensors, text),
    }
    with whole.writing(path, "a folder that can be written, with room") as unfinished:
        unfinished.write_bytes(safetensors.numpy.save(dict(tensors), header))


def _content(tensors: Mapping[str, np.ndarray], text: str) -> str:
    """Hash of everything that a file tells."""
    return hashlib.sha256((tree_sha256(dict(tensors)) + text).encode()).hexdigest()


def fault(
    path: str | os.PathLike, kind: Kind, where: str, found: str, expected: str
) -> errors.InputError:
    """An error of a damaged file."""
    return errors.InputError(path, where, found, expected, kind.again)


def read(
    path: str | os.PathLike, kind: Kind, encoder_sha256: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a file for an encoder.

    Args:
        path: Of `write`.
        kind: What it must be.
        encoder_sha256: Of the encoder that it must belong to.

    Returns:
        Arrays by name, and everything else; which they are is for the caller to check.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is damaged, of another kind or version, or of another
            encoder.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.MissingInputError(
            path, "", "no such file", kind.what, "Check the path."
        )
    try:
        with safetensors.safe_open(path, "np") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        found = f"cannot be read ({error})"
        raise fault(path, kind, "", found, "a safetensors file") from error
    found = header.get("format"), header.get("version")
    if found != (kind.format, str(kind.version)):
        expected = f"{kind.format} {kind.version}"
        raise fault(path, kind, "header", f"format and version {found}", expected)
    if header.get("encoder_sha256") != encoder_sha256:
        raise errors.InputError(
            path,
            "encoder_sha256",
            f"{kind.made} encoder {str(header.get('encoder_sha256'))[:16]}...",
            f"encoder {encoder_sha256[:16]}...",
            kind.other,
        )
    text = header.get(kind.key, "")
    if header.get("sha256") != _content(tensors, text):
        found = "content and sha256 differ"
        raise fault(path, kind, "", found, "an undamaged file")
    try:
        return tensors, dict(json.loads(text))
    except (ValueError, TypeError) as error:
        found = f"cannot be read ({error!r})"
        raise fault(path, kind, kind.key, found, "its JSON") from error
