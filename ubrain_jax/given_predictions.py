"""Predictions that another program wrote, matched to the test pictures of a store.

A file is of one subject: NAME.zarr as `python -m ubrain_jax.predict` and
`python -m ubrain_jax.baseline --save_predictions` write it, or NAME.npy (M, V) with
ids beside it. A folder holds one for each subject. Rows may be in any order and of
more pictures than the test split has; columns are the voxels of the store, in order.
"""

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import zarr
import zarr.errors

from ubrain_jax import crowd, errors

ENDINGS = (".zarr", ".npy")


class Given(NamedTuple):
    """Predictions of one subject.

    Attributes:
        path: File or folder.
        subject: Whom the file says it is of; None: not said.
        ids: (M,) of pictures.
        num_voxels: V.
        read: Rows (n,) -> (n, V).
    """

    path: pathlib.Path
    subject: str | None
    ids: tuple[str, ...]
    num_voxels: int
    read: Callable[[np.ndarray], np.ndarray]


def find(
    path: str | os.PathLike, subjects: Sequence[str], ids: str | None = None
) -> dict[str, Given]:
    """The predictions of each subject.

    Args:
        path: A file, or a folder with NAME.zarr or NAME.npy of each subject.
        subjects: Who is scored.
        ids: File that names the pictures of rows, where it is not the one beside.

    Raises:
        errors.MissingInputError: If there is no file, or a subject has none.
        errors.InputError: If one cannot be read, or is of another subject.
    """
    given = pathlib.Path(path)
    if given.suffix in ENDINGS:
        found = _open(given, ids)
        names = [found.subject] if found.subject else list(subjects)
        if len(names) != 1 or list(subjects) != names:
            raise errors.InputError(
                given,
                "",
                f"predictions of {found.subject or 'a subject that is not named'}",
                f"those of {', '.join(subjects)}",
                "Name the one subject with --subjects, or give a folder.",
            )
        return {names[0]: found}
    if not given.is_dir():
        raise errors.MissingInputError(
            given,
            "",
            "no such file or folder",
            f"a folder, or a name that ends in {', '.join(ENDINGS)}",
            "Check --predictions.",
        )
    files = {
        name: [f for e in ENDINGS if (f := given / f"{name}{e}").exists()]
        for name in subjects
    }
    absent = [name for name, own in files.items() if len(own) != 1]
    if absent:
        there = sorted(f.name for f in given.iterdir() if f.suffix in ENDINGS)
        raise errors.MissingInputError(
            given,
            "",
            f"not one file each for {', '.join(absent)} (there: {', '.join(there)})",
            "NAME.zarr or NAME.npy of each subject",
            "Name those that are scored with --subjects.",
        )
    found = {name: _open(own[0], ids) for name, own in files.items()}
    for name, one in found.items():
        if one.subject not in (None, name):
            raise errors.InputError(
                one.path, "", f"predictions of {one.subject}", name, "Rename the file."
            )
    return found


def check(given: Given, subject: crowd.SubjectRows, wanted: Sequence[str]) -> list[int]:
    """Rows of the test pictures, in order.

    Args:
        given: The predictions.
        subject: Who is scored.
        wanted: Ids of its test pictures.

    Raises:
        errors.InputError: If a picture is absent or there twice, or the voxels are
            not those of the store.
    """
    faults = []
    if given.num_voxels != subject.num_voxels:
        faults.append(f"{given.num_voxels} voxels, not {subject.num_voxels}")
    place: dict[str, int] = {}
    twice = []
    for row, name in enumerate(given.ids):
        if name in place:
            twice.append(name)
        place[name] = row
    if twice:
        faults.append(f"{len(twice)} pictures twice: {_listed(twice)}")
    missing = [name for name in wanted if name not in place]
    if missing:
        faults.append(
            f"{len(missing)} of {len(wanted)} test pictures missing: "
            f"{_listed(missing)} (there: {_listed(given.ids)})"
        )
    if faults:
        raise errors.InputError(
            given.path,
            subject.name,
            "; ".join(faults),
            "each test picture once, by its id in the store, and every voxel in order",
            "Name the pictures of rows with --ids; --write_pictures writes the ids.",
        )
    return [place[name] for name in wanted]


def read(given: Given, rows: Sequence[int]) -> np.ndarray:
    """Predictions (n, V) float32 of rows (n,).

    Raises:
        errors.InputError: If one is not finite.
    """
    try:
        values = np.asarray(given.read(np.asarray(rows)), np.float32)
    except (OSError, ValueError) as error:
        raise _unreadable(given.path, error) from error
    finite = np.isfinite(values)
    if not finite.all():
        row, voxel = np.argwhere(~finite)[0]
        raise errors.InputError(
            given.path,
            f"{given.ids[rows[row]]}, voxel {voxel}",
            f"{values[row, voxel]} ({int((~finite).sum())} values are not finite)",
            "a finite prediction for every test picture and voxel",
            "Leave no voxel out: predict a constant where there is no model.",
        )
    return values


def _open(path: pathlib.Path, ids: str | None) -> Given:
    """One file, without its values."""
    if not path.exists():
        raise errors.MissingInputError(
            path, "", "no such file", "predictions", "Check --predictions."
        )
    try:
        found = _zarr(path) if path.suffix == ".zarr" else _npy(path, ids)
    except (OSError, ValueError, KeyError, TypeError, zarr.errors.BaseZarrError) as e:
        if isinstance(e, errors.InputError):
            raise
        raise _unreadable(path, e) from e
    return found._replace(ids=read_ids(pathlib.Path(ids))) if ids else found


def _zarr(path: pathlib.Path) -> Given:
    """`response` (image, voxel) with the coordinates image and voxel."""
    with crowd.quiet_zarr():
        group = zarr.open_group(path, mode="r")
        arrays: list[Any] = [group[k] for k in ("response", "image", "voxel")]
    if not all(isinstance(array, zarr.Array) for array in arrays):
        raise ValueError("a group where an array should be")
    response, image, voxel = arrays
    shape = response.shape
    if len(shape) != 2 or image.shape != shape[:1] or voxel.shape != shape[1:]:
        raise ValueError(f"response is {shape}, image {image.shape}")
    lost = response.nchunks - response.nchunks_initialized
    if lost:
        raise ValueError(f"response has lost {lost} of {response.nchunks} chunks")
    numbers = np.asarray(voxel[...])
    if not np.array_equal(numbers, np.arange(len(numbers))):
        raise errors.InputError(
            path,
            "voxel",
            f"voxels {numbers.min()}..{numbers.max()}, {len(numbers)} of them",
            "every voxel of the subject in order",
            "Predict without --roi.",
        )
    name = group.attrs.get("Subject")
    ids = tuple(str(i) for i in np.asarray(image[...]).tolist())
    return Given(
        path,
        None if name is None else str(name),
        ids,
        shape[1],
        lambda rows: np.asarray(response.oindex[rows]),
    )


def _npy(path: pathlib.Path, ids: str | None) -> Given:
    """(M, V) numbers; ids and subject are in NAME.json, as `predict` writes it."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise ValueError(f"{array.dtype} {array.shape}, not floats (M, V)")
    beside, subject, found = path.with_suffix(".json"), None, ()
    if beside.exists():
        told = json.loads(beside.read_text(encoding="utf-8"))
        if isinstance(told, dict) and "Subject" in told:
            subject = str(told["Subject"])
        if not ids:
            found = read_ids(beside)
    elif not ids:
        raise errors.MissingInputError(
            beside,
            "",
            "no such file, and no --ids",
            "the ids of the pictures of rows",
            "Give --ids=FILE: one id a line, or a JSON list.",
        )
    if not ids and len(found) != len(array):
        raise ValueError(f"{len(array)} rows, {len(found)} ids in {beside.name}")
    return Given(path, subject, found, array.shape[1], lambda rows: array[rows])


def read_ids(path: pathlib.Path) -> tuple[str, ...]:
    """Ids of a file: one a line, a JSON list, or a JSON object with Images.

    Raises:
        errors.MissingInputError: If it is absent.
        errors.InputError: If it is neither.
    """
    if not path.is_file():
        raise errors.MissingInputError(path, "", "no such file", "ids", "Check --ids.")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".json":
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        told: Any = json.loads(text)
        listed = told["Images"] if isinstance(told, dict) else told
        if not isinstance(listed, list) or not all(isinstance(i, str) for i in listed):
            raise ValueError("no list of texts")
        return tuple(listed)
    except (OSError, ValueError, KeyError) as error:
        raise errors.InputError(
            path,
            "",
            f"cannot be read ({error})",
            'one id a line, or JSON: ["ID", ...] or {"Images": ["ID", ...]}',
            "Mend the file.",
        ) from error


def _unreadable(path: pathlib.Path, error: Exception) -> errors.InputError:
    return errors.InputError(
        path,
        "",
        f"cannot be read ({error})",
        "response (image, voxel) with image and voxel, or floats (M, V)",
        "Write it again; docs/baselines.md has an example.",
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(list(names)[:5])
    return f"{shown}, ..." if len(names) > 5 else shown
