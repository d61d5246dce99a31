"""Where the voxels of a subject are drawn: fsaverage5, their volume, or nowhere."""

from typing import NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.maps import surface, volume
from ubrain_jax.model import bundle

# Surfaces whose first vertices are those of fsaverage5: FreeSurfer's icosahedra.
NESTED = ("fsaverage5", "fsaverage6", "fsaverage")


class Places(NamedTuple):
    """Of V voxels.

    Attributes:
        kind: "surface", "volume" or "none".
        position: (V, 3) float32: on a surface hemisphere (0 left, 1 right), vertex of
            fsaverage5, -1; in a volume mm, or numbers of voxels where millimetres are
            not known; NaN for "none".
        shown: (V,) bool: those that have a place to be drawn at.
        note: What a reader must know; "" if nothing.
        axes: Where the three numbers grow: right, anterior, superior, or voxel axes.
    """

    kind: str
    position: np.ndarray
    shown: np.ndarray
    note: str
    axes: tuple[str, str, str] = ("R", "A", "S")


def of_subject(subject: bundle.Subject) -> Places:
    """Where the voxels of a subject are.

    Example:
        >>> voxel = np.array([[0, 5, -1], [1, 20000, -1]], np.int32)
        >>> s = bundle.Subject("a", voxel, voxel, voxel > 0, (), voxel[:, 0],
        ...     {"space": "fsaverage"}, {})
        >>> found = of_subject(s)
        >>> found.kind, found.shown.tolist(), found.note
        ('surface', [True, False], '1 of 2 vertices are on fsaverage5, and drawn')
    """
    count = len(subject.position)
    space = str(subject.attrs.get("space", "not said"))
    position = np.full((count, 3), np.nan, np.float32)
    nowhere = Places("none", position, np.ones(count, bool), "")
    try:
        if subject.attrs.get("grid"):
            where = volume.place(subject, subject.name)
            position[:] = subject.position
            if where.affine is None:
                note = "millimetres are not known; drawn by the numbers of its voxels"
                axes = ("i", "j", "k")
                return Places("volume", position, nowhere.shown, note, axes)
            position[:] = subject.position @ where.affine[:3, :3].T
            position += where.affine[:3, 3].astype(np.float32)
            return Places("volume", position, nowhere.shown, "")
        if space in NESTED and not surface.is_gray(subject):
            surface.sides(subject, subject.name)
            shown = subject.position[:, 1] < surface.VERTICES["fsaverage5"]
            position[:] = subject.position
            note = ""
            if not shown.all():
                note = f"{shown.sum()} of {count} vertices are on fsaverage5, and drawn"
            if shown.any():
                return Places("surface", position, shown, note)
    except errors.InputError as error:
        return nowhere._replace(note=f"its voxels have no place: {error}")
    return nowhere._replace(
        note=f"no picture of the space {space!r} comes with this program"
    )
