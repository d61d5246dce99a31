"""What a checkpoint holds, read without the project's own reader."""

import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp


def leaves_of(folder: pathlib.Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Name -> array of a step of a folder of checkpoints; the newest by default."""
    if step is None:
        step = max(int(p.name) for p in folder.iterdir() if p.name.isdecimal())
    with ocp.StandardCheckpointer() as reader:
        tree = reader.restore(folder / str(step) / "state")
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
