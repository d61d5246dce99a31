"""Groups of pictures of one subject, for losses that compare pictures.

Patterns of two pictures can only be compared over the same voxels, so the pictures of
a group are of one subject and share one sample of voxels (`batches` draws it). Here is
which pictures: a pure function of (seed, number of the group), without any reading.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ubrain_jax import errors


class Group(NamedTuple):
    """Pictures that go together.

    Attributes:
        subject: Whose responses; a row of `saw`.
        picture: (K,) different pictures that the subject saw, columns of `saw`.
    """

    subject: int
    picture: np.ndarray


def of_epoch(saw: np.ndarray, size: int) -> np.ndarray:
    """Groups of each subject in an epoch, the same in every epoch.

    Pictures that the same m subjects saw are dealt out evenly among them, so a subject
    has its share of each such set, rounded up; and groups enough to hold them.

    Args:
        saw: (subjects, pictures) bool.
        size: Pictures of a group (K).

    Returns:
        (subjects,) int.

    Example:
        >>> saw = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 1]], bool)
        >>> of_epoch(saw, 2)  # at most 2 of the common 3, and 2 or 1 of one's own
        array([2, 2])
    """
    sets, counts = np.unique(saw, axis=1, return_counts=True)
    most = sets @ np.ceil(counts / np.maximum(1, sets.sum(0))).astype(int)
    return -(-most // size)


def endless(
    saw: np.ndarray, size: int, seed: int | Sequence[int]
) -> Callable[[int], Group]:
    """The groups of a run: a function of their number, epoch after epoch.

    In an epoch each picture belongs to one of the subjects who saw it: to each of them
    once in as many epochs, beginning with one by the seed. Each subject's pictures are
    shuffled and cut into groups; the last one is filled up with others of the pictures
    that the subject saw. The groups of all subjects are then shuffled. So an epoch
    shows every picture at least once, and twice only what fills up.

    Args:
        saw: (subjects, pictures) bool; a picture that nobody saw is in no group, a
            subject who saw none has no group.
        size: Pictures of a group (K), at most the fewest that such a subject saw.
        seed: Of the whole.
    """
    per_subject = of_epoch(saw, size)
    total = int(per_subject.sum())
    root = np.random.SeedSequence(seed)
    turn = _turns(saw, np.random.default_rng(root.spawn(1)[0]))
    entropy = root.generate_state(4).tolist()

    @functools.lru_cache(2)  # threads read on both sides of the end of an epoch
    def epoch(number: int) -> list[Group]:
        rng = np.random.default_rng([*entropy, number])
        owner = _owners(saw, turn + number)
        groups = [
            Group(subject, picture)
            for subject, count in enumerate(per_subject.tolist())
            for picture in _cut(
                np.flatnonzero(owner == subject),
                np.flatnonzero(saw[subject]),
                count,
                size,
                rng,
            )
        ]
        return [groups[k] for k in rng.permutation(total)]

    return lambda number: epoch(number // total)[number % total]


def check(saw: np.ndarray, size: int, names: Sequence[str]) -> None:
    """Refuses groups that a subject cannot fill.

    Raises:
        errors.ConfigError: Naming each subject with fewer training pictures.
    """
    counts = saw.sum(1)
    few = [
        f"{name} has {n}" for name, n in zip(names, counts, strict=True) if 0 < n < size
    ]
    if few:
        raise errors.ConfigError(
            "data.group_images",
            "",
            f"{size}, and of training pictures {', '.join(few)}",
            "at most the training pictures of every subject",
            "Lower data.group_images, or leave these subjects out (data.subjects).",
        )


def _turns(saw: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(pictures,) which of its subjects has a picture first, evenly within each set."""
    turn = np.zeros(saw.shape[1], int)
    _, which = np.unique(saw, axis=1, return_inverse=True)
    for members in range(which.max(initial=-1) + 1):
        columns = np.flatnonzero(which.ravel() == members)
        turn[columns] = rng.permutation(len(columns))
    return turn


def _owners(saw: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """(pictures,) subject whose turn it is among those who saw it, or -1."""
    seen_by = saw.sum(0)
    # The subject before whom as many others saw it.
    at = turn % np.maximum(1, seen_by)
    mine = saw & (np.cumsum(saw, 0) - 1 == at)
    return np.where(seen_by > 0, mine.argmax(0), -1)


def _cut(
    own: np.ndarray,
    seen: np.ndarray,
    count: int,
    size: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """`count` groups that hold all of `own`, filled up with others of `seen`."""
    own = rng.permutation(own)
    groups = []
    for k in range(count):
        part = own[k * size : (k + 1) * size]
        if len(part) < size:
            others = np.setdiff1d(seen, part)
            fill = rng.choice(others, size - len(part), replace=False)
            part = np.concatenate([part, fill])
        groups.append(part)
    return groups
