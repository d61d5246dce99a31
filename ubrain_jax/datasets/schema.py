"""What every dataset reader returns: subjects one at a time, images by id.

Readers are numpy only. They stop with `errors.InputError` at the first group of
faults; whatever they leave out (voxels, sessions, images) they count and report.
"""

import contextlib
import hashlib
import os
import pathlib
import tokenize
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors, sealed

# What NumPy raises at a damaged .npy; its repair of Python 2 headers adds the last.
NOT_NPY = (ValueError, OSError, EOFError, OverflowError, tokenize.TokenError)
_HASH_BELOW = 100_000_000  # bytes
BLOCK = 64_000_000  # bytes of responses looked at at once


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


class Problem(NamedTuple):
    """One thing wrong with the files: where, what is there, what should be."""

    where: str
    found: str
    expected: str


def share(seed: int, image_id: str) -> float:
    """Place of a picture in [0, 1), the same for every subject, run and machine.

    Example:
        >>> round(share(0, "nsd/00013"), 6)
        0.650165
    """
    digest = hashlib.sha256(f"{seed}:{image_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def check_fractions(**fractions: float) -> None:
    """Refuses shares below 0, or that leave nothing to train on.

    Raises:
        errors.ConfigError: If one is not in [0, 1), or their sum is not.
    """
    for name, value in {
        **fractions,
        "+".join(fractions): sum(fractions.values()),
    }.items():
        if not 0 <= value < 1:
            raise errors.ConfigError(
                name, "", f"is {value}", "0 <= share < 1", "Change the share."
            )


def choose(known: list[str], subjects: Sequence[str] | None) -> list[str]:
    """The subjects asked for, in the order they are known.

    Args:
        known: Names there are.
        subjects: Names asked for; None for all.

    Returns:
        Some of the known names, each once.

    Raises:
        errors.ConfigError: If one is unknown or none is asked for.
    """
    if subjects is None:
        return known
    for name in subjects:
        if name not in known:
            raise errors.ConfigError(
                "subjects",
                "",
                f"no subject {name!r}",
                "subjects of the folder",
                errors.nearest(name, known),
            )
    if not subjects:
        raise errors.ConfigError(
            "subjects", "", "is empty", "at least one", errors.nearest("", known)
        )
    return [name for name in known if name in subjects]


def raise_problems(
    source: str | os.PathLike, problems: Sequence[Problem], action: str
) -> None:
    """Raises one error for all problems; returns if there is none.

    Raises:
        errors.InputError: If there is a problem.
    """
    if len(problems) == 1:
        raise errors.InputError(source, *problems[0], action)
    if problems:
        listed = [f"{p.where}: {p.found} (expected {p.expected})" for p in problems]
        raise errors.InputError(
            source,
            "",
            f"{len(problems)} problems: {shorten(listed, '; ')}",
            "files that agree",
            action,
        )


@contextlib.contextmanager
def collected(faults: list[errors.InputError]) -> Iterator[None]:
    """Notes an input error instead of raising it."""
    try:
        yield
    except errors.InputError as error:
        faults.append(error)


def raise_faults(
    source: str | os.PathLike, faults: Sequence[errors.InputError], expected: str
) -> None:
    """Raises the faults as one error; returns if there is none.

    Args:
        source: Folder that the listed faults leave out of their places.
        faults: From `collected`.
        expected: What several faults together are measured against.

    Raises:
        errors.InputError: If there is a fault; `MissingInputError` if something is
            missing and all else is right.
    """
    if len(faults) == 1:
        raise faults[0]
    if faults:
        missing = all(isinstance(f, errors.MissingInputError) for f in faults)
        kind = errors.MissingInputError if missing else errors.InputError
        inside = [str(f).replace(f"{os.fspath(source)}{os.sep}", "") for f in faults]
        texts = [f"({i + 1}) {text}" for i, text in enumerate(inside)]
        raise kind(
            source,
            "",
            f"{len(faults)} faults: {shorten(texts, ' ')}",
            expected,
            "Mend all of these.",
        )


def add_problem(problems: list[Problem], where: str, found: str, expected: str) -> None:
    """Notes a problem."""
    problems.append(Problem(where, found, expected))


def shorten(items: Sequence[str], joint: str = ", ", most: int = 20) -> str:
    """Joins at most `most` items and counts the rest.

    Example:
        >>> shorten(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    left = len(items) - most
    return joint.join(items[:most]) + (f" and {left} more" if left > 0 else "")


def describe(path: pathlib.Path, source: pathlib.Path) -> dict[str, Any]:
    """Entry of `Dataset.sources`: name inside the source, size, sha256 if < 100 MB."""
    size = path.stat().st_size
    digest = None
    if size < _HASH_BELOW:
        digest = sealed.sha256_of(path)
    return {"file": inside(path, source), "size": size, "sha256": digest}


def inside(path: pathlib.Path, source: pathlib.Path) -> str:
    """Name of a file inside the source, or its last part."""
    if path.is_relative_to(source):
        return path.relative_to(source).as_posix()
    return path.name


def open_npy(
    file: pathlib.Path, source: pathlib.Path, problems: list[Problem]
) -> np.ndarray | None:
    """Maps a .npy file into memory.

    Args:
        file: The file.
        source: Folder that messages leave out of its name.
        problems: Gets an entry if it is no whole array of numbers or text.

    Returns:
        The array, read-only; None beside a problem.
    """
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except NOT_NPY as error:
        size = file.stat().st_size if file.is_file() else 0
        add_problem(
            problems,
            inside(file, source),
            f"no whole .npy array ({size} bytes; {str(error)[:100]})",
            "an array of numbers",
        )
    return None


def z_score(block: np.ndarray) -> np.ndarray:
    """Z-scores each column in place, with ddof=0; constant columns become 0.

    A column counts as constant if its variance is within the rounding error of the
    mean (the rule of scikit-learn's `_is_constant_feature`).

    Args:
        block: (T, V) float64, finite.

    Returns:
        (V,) bool: columns that are constant.

    Example:
        >>> block = np.array([[1.0, 5.0], [3.0, 5.0]])
        >>> z_score(block).tolist(), block.tolist()
        ([False, True], [[-1.0, 0.0], [1.0, 0.0]])
    """
    num, eps = len(block), np.finfo(np.float64).eps
    mean = block.mean(0)
    block -= mean
    var = np.mean(block * block, 0)
    flat = var <= num * eps * var + (num * mean * eps) ** 2
    block /= np.sqrt(np.where(flat, 1, var))
    block[:, flat] = 0
    return flat


def num_constant(responses: np.ndarray, rows: np.ndarray) -> int:
    """How many columns hold one value in all chosen rows.

    Args:
        responses: (M, V), finite.
        rows: (M,) bool.

    Returns:
        Number of constant columns; 0 if no row is chosen.

    Example:
        >>> num_constant(np.array([[1, 2], [1, 3], [5, 3]]), np.arange(3) < 2)
        1
    """
    chosen = np.flatnonzero(rows)
    if not len(chosen):
        return 0
    same = np.ones(responses.shape[1], bool)
    step = max(1, BLOCK // max(1, responses[:1].nbytes))
    for start in range(0, len(chosen), step):
        block = responses[chosen[start : start + step]]
        same &= (block == responses[chosen[0]]).all(0)
    return int(same.sum())
