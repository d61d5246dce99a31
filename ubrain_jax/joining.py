"""Pictures of several stores become one set: what is one, what leaks, what looks alike.

Works on ids, hashes and splits alone; `crowd` reads them. A picture is told by its id
and by its content (sha256 of the stored pixels); what merely looks alike is said, never
acted on.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors, lookalikes
from ubrain_jax.datasets import schema


class Pictures(NamedTuple):
    """The M pictures of one store.

    Attributes:
        path: The store.
        ids: M distinct ids.
        sha256: M hashes of the pixels in hex; None where the store has none.
        phash: (M,) uint64 of `lookalikes.perceptual_hash`; None likewise.
    """

    path: str
    ids: Sequence[str]
    sha256: Sequence[str] | None
    phash: np.ndarray | None


class Seen(NamedTuple):
    """What one subject saw: M samples.

    Attributes:
        name: The subject.
        store: Its place among the stores.
        image: (M,) rows of that store's pictures.
        split: (M,) "train", "val" or "test".
    """

    name: str
    store: int
    image: np.ndarray
    split: np.ndarray


def merge(stores: Sequence[Pictures]) -> list[np.ndarray]:
    """Numbers the distinct pictures of all stores, in the order they appear.

    A picture of a later store is the one of an earlier store that has its id, or else
    its content. Two pictures of one store stay two, whatever stands in other stores,
    since one subject may have a sample of each.

    Args:
        stores: All, or none of them, with sha256; without, ids alone count.

    Returns:
        For each store the numbers (M,) int64 of its pictures.

    Example:
        >>> a = Pictures("a", ["x", "y"], ["1", "2"], None)
        >>> b = Pictures("b", ["z", "x", "w"], ["2", "1", "3"], None)
        >>> [rows.tolist() for rows in merge([a, b])]
        [[0, 1], [1, 0, 2]]
    """
    names: dict[str, list[int]] = {}  # the id under which a number appeared first
    others: dict[str, list[int]] = {}  # ids it had later
    contents: dict[str, list[int]] = {}
    count, merged = 0, []
    for store in stores:
        rows, taken = np.full(len(store.ids), -1, np.int64), {-1}
        for known, keys in (
            (names, store.ids),
            (others, store.ids),
            (contents, store.sha256 or ()),
        ):
            for n, key in enumerate(keys):
                if rows[n] < 0:
                    free = (row for row in known.get(key, ()) if row not in taken)
                    rows[n] = next(free, -1)
                    taken.add(int(rows[n]))
        new = rows < 0
        rows[new] = count + np.arange(new.sum())
        count += int(new.sum())
        names |= {store.ids[n]: [int(rows[n])] for n in np.flatnonzero(new).tolist()}
        for known, keys in ((others, store.ids), (contents, store.sha256 or ())):
            for key, row in zip(keys, rows.tolist(), strict=False):
                if row not in known.setdefault(key, []):
                    known[key].append(row)
        merged.append(rows)
    return merged


def refuse_leaks(
    stores: Sequence[Pictures], merged: Sequence[np.ndarray], subjects: Sequence[Seen]
) -> None:
    """A test picture of one subject may be in train or val of none.

    Args:
        stores: All stores of a run.
        merged: From `merge`.
        subjects: The subjects in use.

    Raises:
        errors.InputError: Listing the pairs, told by id and by content.
    """
    leaks: dict[tuple[str, str], str] = {}  # (test id, other id) -> both, in words
    # What is one by id or content may still be two numbers: twins inside a store.
    for kind in ("number", "id", "content"):
        roles: dict[int | str, dict[bool, tuple[str, str, str]]] = {}
        for subject in subjects:
            store, rows = stores[subject.store], merged[subject.store]
            keys: Any = {"number": rows, "id": store.ids, "content": store.sha256}[kind]
            if keys is None:
                continue
            splits = zip(subject.image.tolist(), subject.split.tolist(), strict=True)
            for row, split in splits:
                role = roles.setdefault(keys[row], {})
                fact = (store.ids[int(row)], split, subject.name)
                role.setdefault(split == "test", fact)
        for role in roles.values():
            if len(role) == 2:
                (test, _, tester), (other, split, trainer) = role[True], role[False]
                parting = ", " if test == other else f") is {other} ("
                words = f"{test} (test of {tester}{parting}{split} of {trainer})"
                leaks.setdefault((test, other), words)
    faults = []
    for kind, wanted in (("id", True), ("content", False)):
        some = [words for (a, b), words in leaks.items() if (a == b) == wanted]
        if some:
            faults.append(
                f"{len(some)} pictures are test for one subject and train or val for "
                f"another, by {kind}: {schema.shorten(some, '; ')}"
            )
    if faults:
        raise errors.InputError(
            ", ".join(s.path for s in stores),
            "split",
            "; ".join(faults),
            "splits by picture over all stores of a run",
            "Prepare the stores with one rule, leave pictures out (prepare "
            "--exclude=ID,ID), or leave a subject out (data.subjects).",
        )


def merged_notes(
    stores: Sequence[Pictures], merged: Sequence[np.ndarray], ids: Sequence[str]
) -> list[str]:
    """A note on pictures that are one by content under several ids.

    Args:
        stores: All stores of a run.
        merged: From `merge`.
        ids: Id under which each merged picture goes.

    Returns:
        One sentence, or none.
    """
    pairs = [
        f"{image_id} is {ids[row]}"
        for store, rows in zip(stores, merged, strict=True)
        for image_id, row in zip(store.ids, rows, strict=True)
        if image_id != ids[row]
    ]
    if not pairs:
        return []
    return [
        f"{len(pairs)} pictures are in several stores under other ids; each is one "
        f"example under its first id: {schema.shorten(pairs)}."
    ]


def lookalike_notes(
    phash: np.ndarray,
    ids: Sequence[str],
    store: np.ndarray,
    tests: np.ndarray,
    others: np.ndarray,
) -> list[str]:
    """Notes on pictures in use that look alike and are not one.

    Args:
        phash: (M,) uint64 of all merged pictures.
        ids: M ids.
        store: (M,) store of each.
        tests: Rows of the pictures in a test split.
        others: Rows of those in train or val.

    Returns:
        One sentence on pairs of a test and another picture, and one on other pairs of
        two stores, as far as there are any; the nearest pairs stand first.
    """
    notes = []
    leaks = _pairs(phash, tests, others)
    if leaks:
        notes.append(
            f"{len(leaks)} pairs of a test picture and a train or val picture look "
            "alike (bits of 64 that differ); where they show the same, scores are of "
            f"pictures seen in training: {_in_words(leaks, ids)}."
        )
    across = []
    for rows in (tests, others):
        for k in range(store.max(initial=0)):
            mine, later = rows[store[rows] == k], rows[store[rows] > k]
            across += _pairs(phash, mine, later)
    if across:
        notes.append(
            f"{len(across)} pairs of pictures of two stores look alike (bits of 64 "
            "that differ), both in test or neither; each is an example of its own: "
            f"{_in_words(sorted(across), ids)}."
        )
    return notes


def _pairs(
    phash: np.ndarray, first: np.ndarray, second: np.ndarray
) -> list[tuple[int, int, int]]:
    """(bits that differ, row, row) of each pair of some pictures with others."""
    found = lookalikes.find_pairs(phash[first], phash[second])
    columns = (found.distance, first[found.first], second[found.second])
    return list(zip(*(c.tolist() for c in columns), strict=True))


def _in_words(pairs: Sequence[tuple[int, int, int]], ids: Sequence[str]) -> str:
    """The first pairs by id, with their distance."""
    return schema.shorten([f"{ids[a]} and {ids[b]} ({d})" for d, a, b in pairs], "; ")
