"""Clusters in a file, so that a later run can assign voxels and keep names.

safetensors with a JSON header, as a subject's file; nothing is unpickled. Centres mean
something only beside the weights that the embeddings were learned with, so the file
names their hash, and reading it for other weights is refused.
"""

import os
from collections.abc import Callable, Mapping

import numpy as np

from ubrain_jax import errors
from ubrain_jax.atlas import clusters
from ubrain_jax.model import attached

KIND = attached.Kind(
    format="ubrain-clusters",
    version=1,
    key="clusters",
    what="clusters of an earlier run",
    made="clusters of",
    again="Copy the file again, or cluster again.",
    other="Directions mean nothing beside other weights: give the encoder that was "
    "clustered, or cluster this one.",
)


def write(
    path: str | os.PathLike, found: clusters.Clusters, encoder_sha256: str
) -> None:
    """Writes clusters, whole or not at all.

    Args:
        path: File, usually NAME.safetensors.
        found: From `clusters.fit`.
        encoder_sha256: Of the encoder whose voxels they are: `Bundle.sha256`.

    Raises:
        errors.OutputError: If it cannot be written.
    """
    tensors = {
        "centre": np.ascontiguousarray(found.centre, np.float32),
        "label": np.ascontiguousarray(found.label, np.int32),
        "tree": np.ascontiguousarray(found.tree, np.float64),
    }
    if found.matrix is not None:
        tensors["matrix"] = np.ascontiguousarray(found.matrix, np.float32)
    if found.mixture is not None:
        for name, values in found.mixture._asdict().items():
            tensors[name] = np.ascontiguousarray(values, np.float64)
    told = {
        "names": list(found.names),
        "of": found.of,
        "method": found.method,
        "seed": int(found.seed),
        "used": int(found.used),
    }
    attached.write(path, KIND, tensors, told, encoder_sha256)


def read(path: str | os.PathLike, encoder_sha256: str) -> clusters.Clusters:
    """Reads clusters of an encoder.

    Args:
        path: Of `write`.
        encoder_sha256: Of the encoder whose voxels shall be assigned or named.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is damaged, of another version, or of another encoder.
    """

    def fault(where: str, found: str, expected: str) -> errors.InputError:
        return attached.fault(path, KIND, where, found, expected)

    tensors, told = attached.read(path, KIND, encoder_sha256)
    try:
        names = tuple(map(str, told["names"]))
        of, method = str(told["of"]), str(told["method"])
        seed, used = int(told["seed"]), int(told["used"])
    except (KeyError, ValueError, TypeError) as error:
        raise fault("clusters", f"cannot be read ({error!r})", "its JSON") from error
    _check(tensors, len(names), of, method, fault)
    found = None
    if method == "mixture":
        found = clusters.Mixture(*[tensors[n] for n in clusters.Mixture._fields])
    return clusters.Clusters(
        names,
        tensors["centre"],
        tensors["label"],
        tensors["tree"],
        of,
        tensors.get("matrix"),
        method,
        found,
        seed,
        used,
    )


def _check(
    tensors: Mapping[str, np.ndarray],
    k: int,
    of: str,
    method: str,
    fault: Callable[[str, str, str], errors.InputError],
) -> None:
    """Refuses arrays that do not belong together."""
    centre = tensors.get("centre", np.empty(()))
    d = centre.shape[1] if centre.ndim == 2 else 0
    expected = {
        "centre": ("float32", (k, d)),
        "label": ("int32", tensors.get("label", np.empty(0)).shape[:1]),
        "tree": ("float64", (max(k - 1, 0), 4)),
    }
    if of == "function":
        rows = tensors.get("matrix", np.empty(0)).shape[:1]
        expected["matrix"] = ("float32", (*rows, d))
    if method == "mixture":
        shapes = ((k,), (k, d), (k, d))
        for name, shape in zip(clusters.Mixture._fields, shapes, strict=True):
            expected[name] = ("float64", shape)
    found = {n: (str(a.dtype), a.shape) for n, a in tensors.items()}
    if found != expected or min(k, d) == 0 or of not in clusters.OF:
        raise fault("tensors", str(found), str(expected))
    label = tensors["label"]
    if len(label) and not (0 <= label.min() and label.max() < k):
        raise fault("label", f"up to {label.max()}", f"0..{k - 1}")
    if not all(np.isfinite(a).all() for a in tensors.values()):
        raise fault("tensors", "values that are not finite", "numbers")
