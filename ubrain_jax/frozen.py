"""A trained encoder without its data: read from a run, attached to a new subject.

`read_encoder` takes the weights out of a run, `attach` makes a run of a new subject
with them, `features` computes what the frozen part says of each picture, once.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import ml_dtypes
import numpy as np
import tqdm

from ubrain_jax import (
    checkpoint,
    config,
    crowd,
    errors,
    evaluate,
    experiments,
    sealed,
    sharding,
    whole,
)
from ubrain_jax.model import bundle, encoder

# Share of the memory of the machine that cached features may take.
_SHARE = 0.25


class Trained(NamedTuple):
    """A trained encoder without its data.

    Attributes:
        workdir: Where it was read from.
        experiment: Its settings.
        shared: Trainable weights but the table, NumPy.
        embeddings: (V, E) of all its voxels.
        subjects: Their numbers of voxels by name, in the order of `embeddings`.
        step: Steps trained.
        backbone_sha256: Digest of each file of the frozen network.
        seen: Id of each picture that shaped the weights, by sha256 of its pixels;
            None where the run did not record them.
        sha256: What a subject attaches to (`bundle.encoder_sha256`).
    """

    workdir: str
    experiment: config.Experiment
    shared: Any
    embeddings: np.ndarray
    subjects: dict[str, int]
    step: int
    backbone_sha256: dict[str, str]
    seen: dict[str, str] | None
    sha256: str


def read_encoder(workdir: str) -> Trained:
    """Reads the weights of a run that are evaluated: the last or the best.

    Args:
        workdir: Of a run, or a bundle.

    Raises:
        errors.MissingInputError: If there is neither.
        errors.InputError: If it cannot be read.
    """
    if bundle.is_bundle(workdir):
        return of_bundle(bundle.read(workdir), workdir)
    params, meta, step = checkpoint.read_params(workdir)
    experiment = config.from_dict(meta["config"], f"{workdir}/checkpoints")
    if experiment.train.select == "best":
        params, meta, step = checkpoint.read_params(workdir, "best")
    shared = {k: v for k, v in params.items() if k != "table"}
    subjects = {str(k): int(v) for k, v in meta["subjects"].items()}
    rows = encoder.rows_of_table(params["table"], sum(subjects.values()))
    digests = dict(meta["backbone_sha256"])
    return Trained(
        workdir,
        experiment,
        shared,
        np.ascontiguousarray(rows),
        subjects,
        step,
        digests,
        pictures_of(workdir),
        bundle.encoder_sha256(experiment, shared, digests),
    )


def of_bundle(given: bundle.Bundle, path: str) -> Trained:
    """The encoder of a bundle; subjects that were fitted later are left out."""
    by_name = {subject.name: subject for subject in given.subjects}
    own = [by_name[name].embedding for name in given.trained_with]
    width = given.experiment.head.embed_dim
    return Trained(
        path,
        given.experiment,
        given.shared,
        np.concatenate([np.zeros((0, width), np.float32), *own]),
        {name: len(by_name[name].embedding) for name in given.trained_with},
        int(given.provenance.get("step", 0)),
        given.backbone.sha256,
        given.seen,
        given.sha256,
    )


def pictures_of(workdir: str) -> dict[str, str] | None:
    """Ids of the pictures of trained_on.json by the sha256 of their pixels."""
    path = pathlib.Path(workdir) / "trained_on.json"
    if not path.exists():
        return None
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["image_sha256"]
        return {str(digest): str(image_id) for image_id, digest in table.items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise errors.InputError(
            path,
            "",
            f"cannot be read ({error!r})",
            "the pictures of the run",
            "Copy the workdir again.",
        ) from error


def attach(
    trained: Trained,
    store: str | Sequence[str] | crowd.Crowd,
    subject: str,
    *,
    seed: int = 0,
    backbone: str | None = None,
    network: experiments.Network | None = None,
    devices: list[Any] | None = None,
) -> tuple[experiments.Run, Any]:
    """A run of one new subject with the encoder's weights.

    Args:
        trained: The encoder.
        store: Where the subject is, or an open crowd of it alone.
        subject: Its name there.
        seed: Of its random embeddings.
        backbone: Folder or file of the frozen network, where it is elsewhere now.
        network: The same, where it is loaded already.
        devices: Of the mesh; default: all.

    Returns:
        The run (its one subject is the new one), and the encoder's trainable weights
        on its mesh, with random embeddings in the table.

    Raises:
        errors.ConfigError: If the subject is one of the encoder's.
        errors.InputError: If the backbone is another one, or a test picture of the
            subject shaped the encoder's weights.
    """
    if subject in trained.subjects:
        raise errors.ConfigError(
            "--subject",
            "",
            f"{subject} is one of the encoder's own subjects",
            "a subject that it was not trained with",
            "Train an encoder without it (data.subjects), or score it with "
            "python -m ubrain_jax.main --mode=evaluate.",
        )
    old = trained.experiment
    opened = store if isinstance(store, crowd.Crowd) else None
    paths = opened.paths if opened else store
    paths = (paths,) if isinstance(paths, str) else tuple(cast(Any, paths))
    experiment = dataclasses.replace(
        old,
        data=dataclasses.replace(
            old.data, crowd=paths, subjects=(subject,), num_images=None
        ),
        backbone=dataclasses.replace(
            old.backbone, weights=backbone or old.backbone.weights
        ),
        train=dataclasses.replace(old.train, seed=seed),
        mesh=config.Mesh(),
    )
    run = experiments.prepare_run(experiment, devices, stores=opened, network=network)
    if run.provenance.sha256 != trained.backbone_sha256:
        raise errors.InputError(
            experiment.backbone.weights,
            "",
            f"{run.provenance.sha256 or 'random weights'}",
            f"the backbone of the encoder, {trained.backbone_sha256}",
            "Give its folder with --backbone.",
        )
    refuse_seen(trained.seen, run.stores)
    everywhere = sharding.place(run.mesh, sharding.REPLICATED)
    shared = jax.tree.map(lambda a: jax.device_put(a, everywhere), trained.shared)
    return run, {**shared, "table": run.parts.trainable["table"]}


def refuse_seen(seen: Mapping[str, str] | None, stores: crowd.Crowd) -> None:
    """A test picture must not have shaped the weights that are tested on it.

    Args:
        seen: As `Trained.seen`; None: not known, so nothing is refused.
        stores: Whose test pictures are looked at.

    Raises:
        errors.InputError: Listing those that have.
    """
    if seen is None:
        return
    ids = set(seen.values())
    tests = [subject.image[subject.samples("test")] for subject in stores.subjects]
    rows = np.unique(np.concatenate(tests))
    content = crowd.picture_hashes(stores)
    leaks = [
        (stores.image_id[row], seen.get(content[row], stores.image_id[row]))
        for row in rows
        if content[row] in seen or stores.image_id[row] in ids
    ]
    if leaks:
        listed = ", ".join(a if a == b else f"{a} (there {b})" for a, b in leaks[:20])
        raise errors.InputError(
            ", ".join(stores.paths),
            f"subjects/{', '.join(s.name for s in stores.subjects)}/split",
            f"{len(leaks)} test pictures shaped the encoder's weights: {listed}",
            "test pictures that the encoder has not seen",
            "Leave them out with prepare --exclude, or take another encoder.",
        )


def features(
    trained: Trained,
    run: experiments.Run,
    predictor: evaluate.Predictor,
    params: Any,
    rows: np.ndarray,
    *,
    cache: str | os.PathLike | None = None,
) -> np.ndarray:
    """What the frozen part says of pictures, computed once.

    They are kept in the precision in which the head multiplies them, so that caching
    changes no result. In memory where they fit in a quarter of it; else in a file of
    the cache folder, which the next fit with the same encoder and pictures reads.

    Args:
        trained: The encoder.
        run: From `attach`.
        predictor: Compiled for the run.
        params: From `attach`.
        rows: (M,) pictures of the run's crowd.
        cache: Folder for what is too large for memory; None: beside the store.

    Returns:
        (M, L, P, C) bfloat16 or float32, an array or a file mapped into memory.
    """
    dtype = np.dtype(
        ml_dtypes.bfloat16 if run.experiment.head.dtype == "bfloat16" else np.float32
    )
    first = predictor.features(params, rows[:1])
    shape = (len(rows), *first.shape[1:])
    size = int(np.prod(shape)) * dtype.itemsize
    if size <= _SHARE * host_memory():
        return _compute(predictor, params, rows, np.empty(shape, dtype))
    folder = pathlib.Path(cache or f"{run.stores.paths[0].rstrip('/')}.cache")
    content = crowd.picture_hashes(run.stores)
    digests = [content[row] for row in rows]
    key = json.dumps([trained.sha256, run.experiment.backbone.dtype, digests])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    path = folder / f"{name}.features"
    if sealed.is_proven(path, size):
        print(f"features from {path}", flush=True)
        return np.memmap(path, dtype, "r", shape=shape)
    return _compute_to_file(predictor, params, rows, path, dtype, shape)


def _compute(
    predictor: evaluate.Predictor, params: Any, rows: np.ndarray, out: np.ndarray
) -> np.ndarray:
    """Fills `out`, some hundred pictures at a time."""
    starts = range(0, len(rows), 512)
    for start in tqdm.tqdm(starts, desc="features", disable=None):
        some = slice(start, start + 512)
        out[some] = predictor.features(params, rows[some]).astype(out.dtype)
    return out


def _compute_to_file(
    predictor: evaluate.Predictor,
    params: Any,
    rows: np.ndarray,
    path: pathlib.Path,
    dtype: np.dtype,
    shape: tuple[int, ...],
) -> np.ndarray:
    """Features in a file that has its name only when whole, with its hash beside it."""
    room = f"room for {int(np.prod(shape)) * dtype.itemsize / 1e9:.1f} GB (--cache)"
    with whole.writing(path, room) as unfinished:
        out = np.memmap(unfinished, dtype, "w+", shape=shape)
        _compute(predictor, params, rows, out)
        whole.write_text(sealed.proof_of(path), sealed.sha256_of(unfinished) + "\n")
    return np.memmap(path, dtype, "r", shape=shape)


def host_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
