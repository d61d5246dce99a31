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
    frozen.refuse_seen(trained.seen, run.stores)
    old, new = encoder.by_name(trained.shared), encoder.by_name(params)
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
    had = trained.subjects
    faults += [
        f"subject {s.name} had {had[s.name]} voxels and has {s.num_voxels}"
        for s in run.stores.subjects
        if had.get(s.name, s.num_voxels) != s.num_voxels
    ]
    if faults:
        raise errors.InputError(
            "train.init_from",
            trained.workdir,
            "; ".join(faults[:20]),
            "weights that fit this config",
            "Use the backbone, adapter and head settings of that run.",
        )
    given, known, lines = _rows(run, trained)
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
        lambda path, _: mixed[encoder.leaf_name(path)], params
    ), lines


def _rows(
    run: experiments.Run, trained: frozen.Trained
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Embeddings (V, E), whether they are known (V, 1), and a line for each subject."""
    ends = np.cumsum(list(trained.subjects.values()))
    last = dict(zip(trained.subjects, ends, strict=True))
    size = trained.embeddings.shape[-1]
    given = np.zeros((run.stores.num_voxels, size), np.float32)
    known = np.zeros((run.stores.num_voxels, 1), bool)
    lines = []
    for subject in run.stores.subjects:
        if subject.name not in last:
            lines.append(f"{subject.name}: random embeddings")
            continue
        own = slice(subject.offset, subject.offset + subject.num_voxels)
        end = last[subject.name]
        given[own] = trained.embeddings[end - subject.num_voxels : end]
        known[own] = True
        lines.append(f"{subject.name}: embeddings of {trained.workdir}")
    return given, known, lines
