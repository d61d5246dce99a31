"""What every dataset reader returns: subjects one at a time, images by id.

Readers are numpy only. They stop with `errors.InputError` at the first group of
faults; whatever they leave out (voxels, sessions, images) they count and report.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np


class Subject(NamedTuple):
    """Averaged responses of one subject, with M samples (distinct images), V voxels.

    Attributes:
        name: For example "nsd-subj01".
        responses: (M, V) float32, z-scored within session or run, repeats averaged,
            finite.
        image_id: (M,) image ids, distinct, for example "nsd/00013".
        split: (M,) "train", "val" or "test".
        repeats: (M,) uint8, how many presentations were averaged.
        ncsnr: (V,) float32 noise-ceiling signal-to-noise ratio, NaN where unknown.
        position: (V, 3) int32: voxel i, j, k, or hemisphere (0/1), vertex, -1.
        roi: (V, R) bool.
        roi_names: R names.
        attrs: JSON-able facts: dataset, space, affine or surface, normalisation,
            sessions used, dropped voxels and why.
    """

    name: str
    responses: np.ndarray
    image_id: Sequence[str]
    split: np.ndarray
    repeats: np.ndarray
    ncsnr: np.ndarray
    position: np.ndarray
    roi: np.ndarray
    roi_names: Sequence[str]
    attrs: dict[str, Any]


class Dataset(NamedTuple):
    """A dataset as distributed, opened and checked.

    Attributes:
        name: "nsd", "algonauts", ...
        subjects: Yields one `Subject` after the other, so that one is in memory.
        read_images: For image ids, yields one (y, x, 3) uint8 array for each, in
            order, at the size they have on disk.
        sources: Files read so far: dicts with file, size and sha256 (None when the
            file is too large to be worth hashing); filled while reading.
        report: Lines for the user about what was used and left out; filled while
            reading.
    """

    name: str
    subjects: Iterator[Subject]
    read_images: Callable[[Sequence[str]], Iterator[np.ndarray]]
    sources: list[dict[str, Any]]
    report: list[str]
