"""Files that carry an encoder's parts: so far, one subject that attaches to it.

A subject is its embeddings and what its voxels are. It means something only beside
the shared weights that it was fitted with, so its file names their hash, and reading
it for other weights is refused. safetensors and JSON; nothing is unpickled.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from ubrain_jax import config, errors, whole
from ubrain_jax.model import encoder

FORMAT = "ubrain-subject"
VERSION = 1


class Subject(NamedTuple):
    """A subject that attaches to an encoder: V voxels, R regions.

    Attributes:
        name: For example "nsd-subj01".
        embedding: (V, E) float32.
        position: (V, 3) int32, as in the store.
        roi: (V, R) bool.
        roi_names: R names.
        ncsnr: (V,) float32, NaN where unknown.
        attrs: Of the subject in its store: dataset, space, normalisation, ...
        provenance: How it was fitted: settings, data, pictures, seed, scores.
    """

    name: str
    embedding: np.ndarray
    position: np.ndarray
    roi: np.ndarray
    roi_names: tuple[str, ...]
    ncsnr: np.ndarray
    attrs: dict[str, Any]
    provenance: dict[str, Any]


def tree_sha256(tree: Any) -> str:
    """Hash of all names, types, shapes and bytes of a tree of arrays."""
    digest = hashlib.sha256()
    named = encoder.by_name(tree)
    for name in sorted(named):
        array = np.ascontiguousarray(named[name])
        digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def encoder_sha256(
    experiment: config.Experiment, shared: Any, backbone_sha256: Mapping[str, str]
) -> str:
    """What an embedding depends on: shared weights, backbone and the choices of both.

    Precision and recomputation are left out: they change rounding, not meaning.

    Args:
        experiment: Of the encoder.
        shared: Trainable weights without the table.
        backbone_sha256: Digest of each file of the frozen network; empty if random.
    """
    backbone, head = experiment.backbone, experiment.head
    choices = {
        "backbone": backbone_sha256 or f"random {backbone.name}",
        "taps": backbone.taps,
        "image_px": backbone.image_px,
        "keep_cls": backbone.keep_cls,
        # Absent by default, as in files that are older than the choice.
        **({} if backbone.drop == "registers" else {"drop": backbone.drop}),
        "adapter": dataclasses.asdict(experiment.adapter),
        "head": [head.embed_dim, head.channels, head.mlp_ratio],
        "shared": tree_sha256(shared),
    }
    text = json.dumps(choices, sort_keys=True, default=dict)
    return hashlib.sha256(text.encode()).hexdigest()


def write_subject(
    path: str | os.PathLike, subject: Subject, encoder_sha256: str
) -> None:
    """Writes a subject's file, whole or not at all.

    Args:
        path: Usually subjects/NAME.safetensors.
        subject: The subject.
        encoder_sha256: Of the encoder it was fitted with.

    Raises:
        errors.OutputError: If it cannot be written.
    """
    told = {
        "name": subject.name,
        "roi_names": list(subject.roi_names),
        "attrs": subject.attrs,
        "provenance": subject.provenance,
    }
    tensors = {
        "embedding": np.ascontiguousarray(subject.embedding, np.float32),
        "position": np.ascontiguousarray(subject.position, np.int32),
        "roi": np.ascontiguousarray(subject.roi, np.bool_),
        "ncsnr": np.ascontiguousarray(subject.ncsnr, np.float32),
    }
    text = json.dumps(told, sort_keys=True)
    header = {
        "format": FORMAT,
        "version": str(VERSION),
        "encoder_sha256": encoder_sha256,
        "subject": text,
        "sha256": _content(tensors, text),
    }
    with whole.writing(path, "a folder that can be written, with room") as unfinished:
        unfinished.write_bytes(safetensors.numpy.save(tensors, header))


def _content(tensors: Mapping[str, np.ndarray], text: str) -> str:
    """Hash of everything a subject's file tells; safetensors has none."""
    return hashlib.sha256((tree_sha256(dict(tensors)) + text).encode()).hexdigest()


def read_subject(path: str | os.PathLike, encoder_sha256: str) -> Subject:
    """Reads a subject's file for an encoder.

    Args:
        path: Of `write_subject`.
        encoder_sha256: Of the encoder that it shall attach to.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is damaged, of another version, or was fitted with
            another encoder.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.MissingInputError(
            path, "", "no such file", "a fitted subject", "Check the path."
        )

    def fault(where: str, found: str, expected: str) -> errors.InputError:
        action = "Copy the file again, or fit the subject again."
        return errors.InputError(path, where, found, expected, action)

    try:
        with safetensors.safe_open(path, "np") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise fault("", f"cannot be read ({error})", "a safetensors file") from error
    kind = header.get("format"), header.get("version")
    if kind != (FORMAT, str(VERSION)):
        raise fault("header", f"format and version {kind}", f"{FORMAT} {VERSION}")
    if header.get("encoder_sha256") != encoder_sha256:
        raise errors.InputError(
            path,
            "encoder_sha256",
            f"fitted with encoder {str(header.get('encoder_sha256'))[:16]}...",
            f"encoder {encoder_sha256[:16]}...",
            "Embeddings mean nothing beside other weights: give the encoder that the "
            "subject was fitted with, or fit it again in another --workdir.",
        )
    text = header.get("subject", "")
    if header.get("sha256") != _content(tensors, text):
        raise fault("", "content and sha256 differ", "an undamaged file")
    try:
        told = json.loads(text)
        name, names = str(told["name"]), tuple(map(str, told["roi_names"]))
        attrs, provenance = dict(told["attrs"]), dict(told["provenance"])
    except (KeyError, ValueError, TypeError) as error:
        raise fault("subject", f"cannot be read ({error!r})", "its JSON") from error
    shape = tensors.get("embedding", np.empty(())).shape
    v = shape[0] if len(shape) == 2 else 0
    expected = {
        "embedding": ("float32", (v, *shape[1:])),
        "position": ("int32", (v, 3)),
        "roi": ("bool", (v, len(names))),
        "ncsnr": ("float32", (v,)),
    }
    found = {n: (str(a.dtype), a.shape) for n, a in tensors.items()}
    if found != expected or v == 0:
        raise fault("tensors", str(found), str(expected))
    if not np.isfinite(tensors["embedding"]).all():
        raise fault("embedding", "values that are not finite", "numbers")
    return Subject(
        name,
        tensors["embedding"],
        tensors["position"],
        tensors["roi"],
        names,
        tensors["ncsnr"],
        attrs,
        provenance,
    )
