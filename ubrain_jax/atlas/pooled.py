"""The voxels of several subjects in one table, so that they can be compared.

Embeddings of one encoder lie in one space whoever's brain they come from; everything in
`atlas` starts from a `Pooled` and speaks of voxels by their row in it.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ubrain_jax import errors, studies
from ubrain_jax.maps import surface
from ubrain_jax.model import bundle

# Per-voxel scores of an evaluation by which voxels can be chosen.
SCORES = ("pearson", "noise_normalised")
LEFT, RIGHT, UNKNOWN = 0, 1, -1


class Pooled(NamedTuple):
    """V voxels of S subjects, subject after subject.

    Attributes:
        names: S names of subjects.
        subject: (V,) int32 index into `names`.
        voxel: (V,) int64 number of the voxel in its subject.
        embedding: (V, E) float32, as learned.
        position: (V, 3) int32, as in the store.
        hemisphere: (V,) int8 `LEFT`, `RIGHT` or `UNKNOWN`.
        roi: (V, R) bool over the regions of all subjects.
        roi_names: R names, in the order in which they first occur.
        ncsnr: (V,) float32, NaN where unknown.
        score: (V,) float32, NaN where unknown.
        score_name: One of `SCORES`, or "" if there are no scores.
    """

    names: tuple[str, ...]
    subject: np.ndarray
    voxel: np.ndarray
    embedding: np.ndarray
    position: np.ndarray
    hemisphere: np.ndarray
    roi: np.ndarray
    roi_names: tuple[str, ...]
    ncsnr: np.ndarray
    score: np.ndarray
    score_name: str

    def take(self, rows: np.ndarray) -> "Pooled":
        """The same with these rows (n,) or this mask (V,) alone."""
        columns = "subject voxel embedding position hemisphere roi ncsnr score".split()
        return self._replace(**{n: getattr(self, n)[rows] for n in columns})


def pool(
    subjects: Sequence[bundle.Subject],
    scores: Mapping[str, np.ndarray] | None = None,
    *,
    score_name: str = "pearson",
    least_score: float | None = None,
) -> Pooled:
    """Puts the voxels of subjects side by side.

    Args:
        subjects: Of one encoder.
        scores: (V,) of each subject by name, all its voxels; None: there are none.
        score_name: What they are.
        least_score: Voxels below, or without a score, are left out; None: none is.

    Returns:
        Voxels in the order of the subjects.

    Raises:
        errors.InputError: If a subject has no scores, or another number of them.
        errors.ConfigError: If no voxel is left.
    """
    names = tuple(dict.fromkeys(n for s in subjects for n in s.roi_names))
    parts = [_part(s, names, scores, score_name) for s in subjects]
    columns = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
    number = [np.full(len(p["voxel"]), k, np.int32) for k, p in enumerate(parts)]
    all_voxels = Pooled(
        names=tuple(s.name for s in subjects),
        subject=np.concatenate(number),
        roi_names=names,
        score_name=score_name if scores is not None else "",
        **columns,
    )
    if least_score is None:
        return all_voxels
    kept = all_voxels.score >= least_score  # False for NaN
    if not kept.any():
        best = np.nanmax(all_voxels.score, initial=-np.inf)
        raise errors.ConfigError(
            "least_score",
            "",
            f"no voxel has a {score_name} of {least_score:g} or more; the best of "
            f"{len(kept)} is {best:.3g}",
            "a lower bound, or an encoder that predicts these subjects",
            "Lower it.",
        )
    return all_voxels.take(kept)


def _part(
    subject: bundle.Subject,
    roi_names: Sequence[str],
    scores: Mapping[str, np.ndarray] | None,
    score_name: str,
) -> dict[str, np.ndarray]:
    """Columns of one subject, its regions among those of all."""
    count = len(subject.embedding)
    roi = np.zeros((count, len(roi_names)), bool)
    roi[:, [roi_names.index(name) for name in subject.roi_names]] = subject.roi
    score = np.full(count, np.nan, np.float32)
    if scores is not None:
        found = np.asarray(scores.get(subject.name, ()), np.float32)
        if found.shape != (count,):
            raise errors.InputError(
                f"{score_name} of {subject.name}",
                "",
                f"{len(found)} scores for {count} voxels",
                "one for each",
                "Evaluate the encoder again: python -m ubrain_jax.main --mode=evaluate "
                "or python -m ubrain_jax.score.",
            )
        score = found
    return {
        "voxel": np.arange(count),
        "embedding": np.asarray(subject.embedding, np.float32),
        "position": np.asarray(subject.position, np.int32),
        "hemisphere": hemispheres(subject),
        "roi": roi,
        "ncsnr": np.asarray(subject.ncsnr, np.float32),
        "score": score,
    }


def hemispheres(subject: bundle.Subject) -> np.ndarray:
    """(V,) int8: by surface, or by the sign of x in mm where the affine is known.

    Example:
        >>> import numpy as np
        >>> from ubrain_jax.model import bundle
        >>> s = bundle.Subject("a", *[np.zeros((2, 3), int)] * 3, (), np.zeros(2),
        ...     {"grid": [4, 4, 4], "affine": np.diag([1.0, 1, 1, 1]).tolist()}, {})
        >>> hemispheres(s._replace(position=np.array([[0, 0, 0], [3, 1, 1]]))).tolist()
        [1, 1]
    """
    position, attrs = np.asarray(subject.position), subject.attrs
    side = np.full(len(position), UNKNOWN, np.int8)
    if attrs.get("grid"):
        affine = attrs.get("affine")
        if isinstance(affine, list | np.ndarray):
            affine = np.asarray(affine, float)
            x = position @ affine[0, :3] + affine[0, 3]
            side[:] = np.where(x < 0, LEFT, RIGHT)
    elif (
        attrs.get("vertices")
        or attrs.get("space") in surface.VERTICES
        or surface.is_gray(subject)
    ):
        on_cortex = (position[:, 0] == LEFT) | (position[:, 0] == RIGHT)
        side[on_cortex] = position[on_cortex, 0]
    return side


def read_scores(
    workdir: str | os.PathLike, subjects: Sequence[str], score_name: str = "pearson"
) -> dict[str, np.ndarray] | None:
    """Scores of all voxels as an evaluation left them in WORKDIR/voxels.

    Args:
        workdir: Of a run, or of `python -m ubrain_jax.score`.
        subjects: Names; those without test pictures have no file and are left out.
        score_name: One of `SCORES`.

    Returns:
        (V,) float32 by subject; None if there are none at all.

    Raises:
        errors.InputError: If a file cannot be read or has no such score.
    """
    found = {}
    for name in subjects:
        path = pathlib.Path(workdir) / "voxels" / f"{name}.zarr"
        if not path.is_dir():
            continue
        table = studies.read_voxels(workdir, name, [score_name])
        found[name] = table[score_name].values.astype(np.float32)
    return found or None
