"""The files of an encoder to pass on: a bundle, and subjects that attach to it.

A bundle is a folder: encoder.safetensors (shared weights), encoder.json (everything
else, with the hash of every file), subjects/NAME.safetensors each, seen.json (pictures
that shaped the weights), README.md (for people). A subject is its embeddings and what
its voxels are; it means something only beside the shared weights that it was fitted
with, so its file names their hash, and reading it for other weights is refused.
safetensors and JSON; nothing is unpickled.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from ubrain_jax import config, errors, sealed, whole
from ubrain_jax.backbone import dinov2
from ubrain_jax.model import attached, encoder

SUBJECT = attached.Kind(
    format="ubrain-subject",
    version=1,
    key="subject",
    what="a fitted subject",
    made="fitted with",
    again="Copy the file again, or fit the subject again.",
    other="Embeddings mean nothing beside other weights: give the encoder that the "
    "subject was fitted with, or fit it again in another --workdir.",
)
FORMAT_ENCODER = "ubrain-encoder"
VERSION_ENCODER = 1
WEIGHTS, DESCRIPTION, SEEN = "encoder.safetensors", "encoder.json", "seen.json"


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
        **({} if head.position else {"position": False}),
        **({} if head.functional == "embedding" else {"functional": head.functional}),
        "shared": attached.tree_sha256(shared),
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
    attached.write(path, SUBJECT, tensors, told, encoder_sha256)


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

    def fault(where: str, found: str, expected: str) -> errors.InputError:
        return attached.fault(path, SUBJECT, where, found, expected)

    tensors, told = attached.read(path, SUBJECT, encoder_sha256)
    try:
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


class Backbone(NamedTuple):
    """The frozen network that a bundle names and does not contain.

    Attributes:
        source: Hub id, "bundled", "random", or the name of a folder or file.
        sha256: Digest of each of its weight files, by file name; empty if random.
        random: Whether its weights are random.
        geometry: Its shape.
    """

    source: str
    sha256: dict[str, str]
    random: bool
    geometry: dinov2.Geometry


class Bundle(NamedTuple):
    """A trained encoder to pass on: all but the frozen network.

    Attributes:
        experiment: Its settings.
        shared: Tree of the trainable weights without the table, float32 NumPy.
        subjects: Their embeddings and what their voxels are.
        trained_with: Names of the subjects that shaped the shared weights, in the
            order of the training; the others were fitted later.
        backbone: The frozen network.
        seen: Ids of the pictures that shaped the weights, by the sha256 of their
            pixels; None where that is not known.
        provenance: Data, commit, seeds, step, metrics: JSON-able.
    """

    experiment: config.Experiment
    shared: Any
    subjects: tuple[Subject, ...]
    trained_with: tuple[str, ...]
    backbone: Backbone
    seen: dict[str, str] | None
    provenance: dict[str, Any]

    @property
    def sha256(self) -> str:
        """What its subjects attach to."""
        return encoder_sha256(self.experiment, self.shared, self.backbone.sha256)


def write(path: str | os.PathLike, bundle: Bundle, card: str | None = None) -> None:
    """Writes a bundle's folder, whole or not at all; one that is there is replaced.

    Args:
        path: Folder.
        bundle: What to write.
        card: Text of README.md; None: none.

    Raises:
        errors.OutputError: If it cannot be written, or what is there is no bundle.
        errors.InputError: If the bundle contradicts itself.
    """
    path = pathlib.Path(path)
    check_target(path)
    shared = {
        name: np.ascontiguousarray(value, np.float32)
        for name, value in encoder.by_name(bundle.shared).items()
    }
    _check_shared(path, bundle.experiment, bundle.backbone.geometry, shared)
    names = [subject.name for subject in bundle.subjects]
    _check_names(path, names, bundle.trained_with)
    digest = bundle._replace(shared=_tree(shared)).sha256  # of what is written
    with whole.folder(path) as folder:
        content = safetensors.numpy.save(shared, {"format": FORMAT_ENCODER})
        (folder / WEIGHTS).write_bytes(content)
        for subject in bundle.subjects:
            write_subject(folder / subject_file(subject.name), subject, digest)
        if bundle.seen is not None:
            (folder / SEEN).write_text(json.dumps(bundle.seen, sort_keys=True) + "\n")
        settings = config.without_folders(bundle.experiment)
        settings["backbone"]["weights"] = bundle.backbone.source
        told = {
            "format": FORMAT_ENCODER,
            "version": VERSION_ENCODER,
            "encoder_sha256": digest,
            "experiment": settings,
            "backbone": {
                **bundle.backbone._asdict(),
                "geometry": dataclasses.asdict(bundle.backbone.geometry),
            },
            "subjects": {
                s.name: {"file": subject_file(s.name), "voxels": len(s.embedding)}
                for s in bundle.subjects
            },
            "trained_with": list(bundle.trained_with),
            "provenance": bundle.provenance,
            "files": {
                name: {
                    "bytes": (folder / name).stat().st_size,
                    "sha256": sealed.sha256_of(folder / name),
                }
                for name in _files_of(names, bundle.seen is not None)
            },
        }
        (folder / DESCRIPTION).write_text(_sealed_text(told), encoding="utf-8")
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")


def read(path: str | os.PathLike, *, within: str | os.PathLike | None = None) -> Bundle:
    """Reads a bundle and checks all of it: names, hashes, shapes.

    README.md is for people: it is not read, and may be edited.

    Args:
        path: Folder.
        within: Folder that links of the bundle must stay in; default: its own. (The
            hub's cache links into a folder above.)

    Raises:
        errors.MissingInputError: If it is no bundle.
        errors.InputError: If anything in it is damaged, missing, too much, of another
            version, or lies outside it.
    """
    path = pathlib.Path(path)
    root = pathlib.Path(within or path).resolve()
    told = _description(path)

    def fault(where: str, found: str, expected: str) -> errors.InputError:
        return errors.InputError(
            path, where, found, expected, "Copy or download the bundle again."
        )

    try:
        experiment = config.from_dict(told["experiment"], f"{path}/{DESCRIPTION}")
        geometry = dinov2.Geometry(**told["backbone"].pop("geometry"))
        backbone = Backbone(geometry=geometry, **told["backbone"])
        subjects = {str(k): v["file"] for k, v in told["subjects"].items()}
        trained_with = tuple(map(str, told["trained_with"]))
        files, provenance = dict(told["files"]), dict(told["provenance"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise fault(DESCRIPTION, f"cannot be read ({error!r})", "its keys") from error
    _check_names(path, list(subjects), trained_with)
    expected = _files_of(list(subjects), SEEN in files)
    listed = [*files, *(str(f) for f in subjects.values())]
    strange = sorted(set(listed) - set(expected)) + sorted(set(expected) - set(files))
    if strange:
        raise fault("files", f"{strange[0]!r}", f"exactly {', '.join(expected)}")
    for name in expected:
        _check_file(path / name, root, files[name], fault)
    shared = _tensors(path / WEIGHTS, fault)
    _check_shared(path / WEIGHTS, experiment, geometry, shared)
    tree = _tree(shared)
    digest = encoder_sha256(experiment, tree, backbone.sha256)
    if digest != told["encoder_sha256"]:
        raise fault("encoder_sha256", str(told["encoder_sha256"])[:16], digest[:16])
    seen = None
    if SEEN in files:
        seen = {str(k): str(v) for k, v in _json(path / SEEN, fault).items()}
    read_ones = tuple(
        read_subject(path / subject_file(name), digest) for name in subjects
    )
    for name, subject in zip(subjects, read_ones, strict=True):
        if subject.name != name:
            raise fault(subject_file(name), f"subject {subject.name}", name)
    return Bundle(experiment, tree, read_ones, trained_with, backbone, seen, provenance)


def _tree(named: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Shared weights by name as a tree."""
    tree: dict[str, Any] = {}
    for name, value in named.items():
        part, _, leaf = name.partition("/")
        tree.setdefault(part, {})[leaf] = value
    return tree


def is_bundle(path: str | os.PathLike) -> bool:
    """Whether a folder says that it is one."""
    return (pathlib.Path(path) / DESCRIPTION).is_file()


def subject_file(name: str) -> str:
    """Name inside a bundle of a subject's file."""
    return f"subjects/{name}.safetensors"


def check_target(path: str | os.PathLike) -> None:
    """Refuses a path that holds anything but a bundle to replace.

    Raises:
        errors.OutputError: If it does.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return
    if not path.is_dir() or not (is_bundle(path) or not any(path.iterdir())):
        raise errors.OutputError(
            path,
            "",
            "exists and is no bundle",
            "a new folder, or a bundle to replace",
            "Choose another folder.",
        )


def _files_of(subjects: list[str], has_seen: bool) -> list[str]:
    """Every file of a bundle but the description and README.md."""
    files = [WEIGHTS, *(subject_file(name) for name in subjects)]
    return [*files, SEEN] if has_seen else files


def _sealed_text(told: dict[str, Any]) -> str:
    """The description with a hash of itself, in one form; order is kept."""
    plain = json.dumps(told, indent=1)
    digest = hashlib.sha256(plain.encode()).hexdigest()
    return json.dumps({**told, "sha256": digest}, indent=1) + "\n"


def _description(path: pathlib.Path) -> dict[str, Any]:
    """What encoder.json tells, its version and hash checked."""
    file = path / DESCRIPTION
    if not file.is_file():
        raise errors.MissingInputError(
            file, "", "no such file", "an encoder's bundle", "Check the path."
        )

    def fault(where: str, found: str, expected: str) -> errors.InputError:
        action = "Copy or download the bundle again."
        return errors.InputError(file, where, found, expected, action)

    told = _json(file, fault)
    kind = told.get("format"), told.get("version")
    if kind != (FORMAT_ENCODER, VERSION_ENCODER):
        raise errors.InputError(
            file,
            "format and version",
            f"{kind}",
            f"{(FORMAT_ENCODER, VERSION_ENCODER)}",
            "Use the version of ubrain_jax that wrote it.",
        )
    digest = told.pop("sha256", None)
    text = _sealed_text(told)
    if text.encode() != file.read_bytes() or json.loads(text)["sha256"] != digest:
        raise fault("sha256", "content and sha256 differ", "an unchanged file")
    return told


def _json(path: pathlib.Path, fault: Any) -> dict[str, Any]:
    """A JSON object, or a refusal by the file's name."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise fault(path.name, f"cannot be read ({error})", "JSON") from error
    if not isinstance(value, dict):
        raise fault(path.name, type(value).__name__, "a JSON object")
    return value


def _check_names(
    path: pathlib.Path, names: Sequence[str], trained_with: Sequence[str]
) -> None:
    """Names of subjects name files: none may lead out of the folder."""
    bad = [n for n in names if not is_name(n)]
    bad += [n for n in set(names) if list(names).count(n) > 1]
    bad += [n for n in trained_with if n not in names]
    if bad:
        raise errors.InputError(
            path,
            "subjects",
            f"{bad[0]!r}",
            "distinct names that are plain file names",
            "Rename the subject, or distrust the bundle.",
        )


def is_name(name: str) -> bool:
    """Whether a text can name a subject, and so a file.

    Example:
        >>> [is_name(n) for n in ("nsd-subj01", "../x", "a/b", "", "..")]
        [True, False, False, False, False]
    """
    plain = name.isprintable() and not set(name) & set("/\\:") and name == name.strip()
    return plain and bool(name.strip(".")) and len(name.encode()) <= 200


def _check_file(
    path: pathlib.Path, root: pathlib.Path, told: Any, fault: Callable
) -> None:
    """One file of a bundle: there, inside, as large and with the content as told."""
    name = path.name
    try:
        expected = int(told["bytes"]), str(told["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise fault(f"files: {name}", repr(told)[:80], "bytes and sha256") from error
    if not path.resolve().is_relative_to(root):
        raise fault(name, f"a link to {path.resolve()}", f"a file inside {root}")
    if not path.is_file():
        raise fault(name, "no such file", "a whole bundle")
    found = path.stat().st_size
    if found != expected[0]:
        raise fault(name, f"{found} bytes", f"{expected[0]} bytes")
    digest = sealed.sha256_of(path)
    if digest != expected[1]:
        raise fault(name, f"sha256 {digest[:16]}...", f"{expected[1][:16]}...")


def _tensors(path: pathlib.Path, fault: Callable) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file."""
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise fault(path.name, f"cannot be read ({error})", "safetensors") from error


def _check_shared(
    path: pathlib.Path,
    experiment: config.Experiment,
    geometry: dinov2.Geometry,
    found: Mapping[str, np.ndarray],
) -> None:
    """Exactly the tensors that the settings ask for, all at once."""
    wanted = encoder.shared_shapes(experiment, geometry)
    faults = [f"{n} is missing" for n in wanted.keys() - found.keys()]
    faults += [f"{n} is too much" for n in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        kind = str(found[name].dtype), found[name].shape
        if kind != ("float32", wanted[name]):
            faults.append(f"{name} is {kind[0]} {kind[1]}, not float32 {wanted[name]}")
        elif not np.isfinite(found[name]).all():
            faults.append(f"{name} has values that are not finite")
    if faults:
        raise errors.InputError(
            path,
            "tensors",
            "; ".join(sorted(faults)[:20]),
            "the tensors of its settings, float32 and finite",
            "Copy or download the bundle again.",
        )
