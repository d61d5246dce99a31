"""Pictures to show voxels, with what was measured where somebody saw them.

Test pictures of stores, those that most subjects saw first; or any pictures a user has,
for which there are only predictions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import crowd, errors
from ubrain_jax.datasets import given


class Shown(NamedTuple):
    """M pictures.

    Attributes:
        ids: (M,) of the pictures.
        pixels: (M, px, px, 3) uint8.
        measured: (M, V) float32 of a subject by name, all its voxels; rows of NaN for
            pictures that it did not see. Subjects that saw none are absent.
        notes: What a user must know, a sentence each.
    """

    ids: tuple[str, ...]
    pixels: np.ndarray
    measured: Mapping[str, np.ndarray]
    notes: tuple[str, ...]


def of_stores(
    paths: Sequence[str],
    subjects: Mapping[str, np.ndarray],
    px: int,
    num_pictures: int,
    seed: int = 0,
) -> Shown:
    """Test pictures of stores, as many of each store as there can be.

    Args:
        paths: Of the stores.
        subjects: Names to (V, 3) positions, by which voxels must agree with the
            encoder's. Those in no store have no measured responses.
        px: Side of the encoder's pictures.
        num_pictures: M, or less where there are fewer.
        seed: Of the choice among pictures that as many subjects saw.

    Raises:
        errors.InputError: If pictures are of another size, a subject has other voxels,
            or there is no test picture.
    """
    stores = crowd.open_crowd(paths)
    where = ", ".join(paths)
    if stores.image_px != px:
        raise errors.InputError(
            where,
            "images",
            f"pictures of {stores.image_px} pixels",
            f"{px}, as the encoder was trained with",
            "Prepare the store with that --image_px.",
        )
    known = [s for s in stores.subjects if s.name in subjects]
    for subject in known:
        if not np.array_equal(subject.position, subjects[subject.name]):
            raise errors.InputError(
                where,
                subject.name,
                f"{subject.num_voxels} voxels, others than the encoder's",
                f"its {len(subjects[subject.name])} voxels at their positions",
                "Give the store that it was trained or fitted with.",
            )
    tests = {s.name: s.samples("test") for s in stores.subjects}
    seen = np.zeros(len(stores.image_id), int)
    for subject in stores.subjects:
        seen[np.unique(subject.image[tests[subject.name]])] += 1
    chosen = _choose(seen, stores.image_store, num_pictures, seed)
    if not len(chosen):
        raise errors.InputError(
            where,
            "split",
            "no test picture",
            "pictures that shaped no weights",
            "Give pictures with --images.",
        )
    place = np.full(len(stores.image_id), -1)
    place[chosen] = np.arange(len(chosen))
    measured = {}
    for subject in known:
        samples = tests[subject.name]
        samples = samples[place[subject.image[samples]] >= 0]
        if len(samples):
            values = np.full((len(chosen), subject.num_voxels), np.nan, np.float32)
            values[place[subject.image[samples]]] = crowd.read_responses(
                subject, samples
            )
            measured[subject.name] = values
    return Shown(
        tuple(stores.image_id[k] for k in chosen),
        crowd.read_pictures(stores, chosen),
        measured,
        stores.notes,
    )


def _choose(
    seen: np.ndarray, store: np.ndarray, num_pictures: int, seed: int
) -> np.ndarray:
    """Pictures in order of their rows, a fair share of each store.

    Example:
        >>> seen = np.array([1, 2, 0, 2, 1, 1])
        >>> _choose(seen, np.array([0, 0, 0, 0, 1, 1]), 4, seed=0).tolist()
        [1, 3, 4, 5]
    """
    rng = np.random.default_rng(seed)
    rank = np.lexsort((rng.random(len(seen)), -seen))
    rank = rank[seen[rank] > 0]
    # The nth best of each store comes before the n + 1st of any other.
    turn = np.empty(len(rank), int)
    for k in np.unique(store):
        mine = store[rank] == k
        turn[mine] = np.arange(mine.sum())
    return np.sort(rank[np.argsort(turn, kind="stable")][:num_pictures])


def of_images(images: Any, px: int, num_pictures: int) -> Shown:
    """A user's own pictures, the first so many by name.

    Args:
        images: As `datasets.given` takes them.
        px: Side of the encoder's pictures.
        num_pictures: At most.
    """
    opened = given.open_pictures(images, px)
    count = min(len(opened), num_pictures)
    notes = ()
    if count < len(opened):
        notes = (f"the first {count} of {len(opened)} pictures are shown.",)
    return Shown(opened.ids[:count], opened.read(slice(0, count)), {}, notes)
