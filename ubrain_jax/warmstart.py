"""A new run that begins from the weights of another: train.init_from.

Shared weights are taken whole. Embeddings go by the name of their subject, never by
their place: the other run may have had other subjects, in another order, in another
number of stripes. Subjects that it did not have begin as in any new run.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ubrain_jax import errors, experiments, frozen, sharding
from ubrain_jax.model import encoder


def begin(
    run: experiments.Run, params: Any, trained: frozen.Trained
) -> tuple[Any, list[str]]:
    """The weights to begin with, on the mesh of the run, and lines about them.

    Args:
        run: The new run.
        params: Its random weights; the table is (S, rows, E).
        trained: From `frozen.read_encoder` of the other.

    Raises:
        errors.InputError: If backbone, leaves or shapes differ, a subject has another
            number of voxels, or a test picture of the new run shaped the weights.
    """
    if run.provenance.sha256 != trained.backbone_sha256:
        raise errors.InputError(
            "train.init_from",
            trained.workdir,
            f"its backbone is {trained.backbone_sha256 or 'random'}",
            f"that of this run, {run.provenance.sha256 or 'random'}",
            "Use the same backbone.weights.",
        )
    frozen.refuse_seen(trained, run.stores)
    old, new = _by_name(trained.shared), _by_name(params)
    table = new.pop("table")
    faults = [f"{name} is missing" for name in sorted(new.keys() - old.keys())]
    faults += [f"{name} is not used" for name in sorted(old.keys() - new.keys())]
    faults += [
        f"{name} is {old[name].shape}, not {new[name].shape}"
        for name in sorted(old.keys() & new.keys())
        if old[name].shape != new[name].shape
    ]
    if trained.embeddings.shape[-1] != table.shape[-1]:
        faults.append(
            f"embeddings have {trained.embeddings.shape[-1]} numbers, not "
            f"{table.shape[-1]}"
        )
    given, known, lines = _rows(run, trained, table.shape[-1])
    faults += [line for line in lines if line.startswith("subject ")]
    if faults:
        raise errors.InputError(
            "train.init_from",
            trained.workdir,
            "; ".join(faults[:20]),
            "weights that fit this config",
            "Use the backbone, adapter and head settings of that run.",
        )
    stripes = run.experiment.data.stripes
    rows, mask = (encoder.table_of_rows(x, stripes) for x in (given, known))
    placed = [sharding.put_as(table.sharding, x) for x in (rows, mask)]
    mix = jax.jit(
        lambda random, rows, mask: jnp.where(mask, rows, random),
        out_shardings=table.sharding,
    )
    mixed = {"table": mix(table, *placed)}
    mixed |= {n: sharding.put_as(like.sharding, old[n]) for n, like in new.items()}
    return jax.tree_util.tree_map_with_path(
        lambda path, _: mixed[_name(path)], params
    ), lines


def _rows(
    run: experiments.Run, trained: frozen.Trained, size: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Embeddings (V, E), whether they are known (V, 1), and a line for each subject.

    Lines that begin with "subject " are faults.
    """
    starts = dict(
        zip(
            trained.subjects,
            np.cumsum([0, *trained.subjects.values()])[:-1],
            strict=True,
        )
    )
    given = np.zeros((run.stores.num_voxels, size), np.float32)
    known = np.zeros((run.stores.num_voxels, 1), bool)
    lines = []
    for subject in run.stores.subjects:
        count = trained.subjects.get(subject.name)
        if count is None:
            lines.append(f"{subject.name}: random embeddings")
        elif count != subject.num_voxels:
            lines.append(
                f"subject {subject.name} had {count} voxels and has "
                f"{subject.num_voxels}"
            )
        elif trained.embeddings.shape[-1] == size:
            own = slice(subject.offset, subject.offset + count)
            first = starts[subject.name]
            given[own] = trained.embeddings[first : first + count]
            known[own] = True
            lines.append(f"{subject.name}: embeddings of {trained.workdir}")
    return given, known, lines


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_name(tree: Any) -> dict[str, Any]:
    return {_name(p): a for p, a in jax.tree_util.tree_leaves_with_path(tree)}
