"""Reads `fmri_v2.npz`, the file the encoder's authors trained on: all of NSD at once.

Its arrays, with J pictures seen by one subject, K seen by all, S subjects:

    single_sub_fmri       (J, most vertices) float16; row j belongs to one subject and
                          fills as many columns as that subject has vertices
    single_sub            (J,) which subject, counted from 0 or from 1
    multi_sub_fmri        (K, all vertices) float16, subjects side by side; NaN where
                          a subject did not see the picture
    valid_multi_sub_fmri  (K, S) whether it did (newer files)
    type_sample           (73000,) 0 nobody saw it, 1 one subject, 2 all; rows above
                          are in order of NSD numbers
    val_single_ind        rows of the J held out for validation
    num_voxels_subjects   (S,), or beside it num_voxels_all_subjects.npy (S, 2): lh, rh

The two large arrays (5.8 GB) are streamed out of the archive by rows, once for each
subject, so that one subject is in memory; the archive's checksums are verified
thereby. `type_desc`, a pickle, is never opened.

References:
    Beliy et al., 2025 (Brain-IT), data/nsd_data/DATA_README of the released code.
"""

import math
import os
import pathlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import algonauts, npz, schema

FILE = "fmri_v2.npz"
IMAGE_FILES = ("nsd_images_224.npy", "all_images_v2_224.npy")
NUM_VOXELS_FILE = "num_voxels_all_subjects.npy"
VAL_FRACTION = 0.05  # where the file names no validation rows
_NEEDED = ("single_sub_fmri", "single_sub", "multi_sub_fmri", "type_sample")
_OPTIONAL = ("valid_multi_sub_fmri", "val_single_ind", "val_global_ind")
_NUM_VOXELS = ("num_voxels_subjects", "num_voxels")
_SMALL = 64_000_000  # bytes of an array that is read whole
_RATIO = 200  # beyond it a compressed array of responses is no array of responses
_BLOCK = 16_000_000  # bytes of responses in memory beside the subject's
_ACTION = "Copy or make the file again with the released scripts."


class _Tables(NamedTuple):
    """Everything but responses, with J single rows, K shared rows, S subjects."""

    subject: np.ndarray  # (J,) from 0
    single_id: np.ndarray  # (J,) NSD number
    multi_id: np.ndarray  # (K,) NSD number
    valid: np.ndarray  # (K, S) bool
    val: np.ndarray | None  # (J,) bool
    num_voxels: np.ndarray  # (S,)
    num_left: np.ndarray | None  # (S,)
    num_images: int


def open_dataset(
    source: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    masks: str | os.PathLike | None = None,
    subjects: Sequence[str] | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
) -> schema.Dataset:
    """Opens the authors' `fmri_v2.npz` and checks everything but the responses.

    "test" are the pictures all subjects were to see, "val" the rows that the file
    names, or a share of the others. Pictures for which a subject has no response
    (unseen: marked so, or all NaN, or all zero) are left out of it and counted.

    Args:
        source: The file, or the folder that holds it.
        images: (73000, y, x, 3) uint8 `.npy` in order of NSD numbers; by default
            `nsd_images_224.npy` or `all_images_v2_224.npy` beside the file.
        masks: Folder with `subj01/roi_masks` (Algonauts-2023) or `sub1` (the
            authors') inside; by default `roi_masks` beside the file, if there. Gives
            vertices and regions.
        subjects: For example ("subj01",); all by default.
        val_fraction: Share of the pictures outside the test split for validation,
            0..1; None takes the rows named in the file, or 5 % if it names none.
        seed: Of the share (`schema.share`).

    Returns:
        The dataset; subjects are called "nsd-subj01", images "nsd/00013". Reading a
        subject raises errors.InputError if a row holds single non-finite values or
        the archive fails its checksum.

    Raises:
        errors.MissingInputError: If a file or array is missing.
        errors.InputError: If arrays disagree; all disagreements are listed.
        errors.ConfigError: If a subject is unknown or the share is none.
    """
    source = pathlib.Path(source)
    if val_fraction is not None:
        schema.check_fractions(val_fraction=val_fraction)
    path = _find(source, (FILE,), "the authors' responses")
    image_path = _find(
        path.parent if images is None else pathlib.Path(images),
        IMAGE_FILES,
        "the pictures, (73000, 224, 224, 3) uint8",
    )
    problems: list[schema.Problem] = []
    arrays = _headers(path, problems)
    tables = _read_tables(path, arrays, problems)
    pictures = _open_pictures(image_path, tables.num_images, problems)
    schema.raise_problems(path, problems, _ACTION)

    known = [f"subj{s + 1:02d}" for s in range(len(tables.num_voxels))]
    chosen = schema.choose(known, subjects)
    surfaces = _find_surfaces(path, masks, chosen, tables)
    report: list[str] = []
    fraction = val_fraction
    if fraction is None and tables.val is None:
        fraction = VAL_FRACTION
    if fraction is None:
        report.append("validation split: val_single_ind of the file")
    else:
        why = "; the file names none" if val_fraction is None else ""
        report.append(
            f"validation split: {fraction:.1%} of the pictures by seed {seed}{why}"
        )
    sources = [
        schema.describe(p, path.parent)
        for p in (path, path.parent / NUM_VOXELS_FILE, image_path)
        if p.is_file()
    ]

    def read_subjects() -> Iterator[schema.Subject]:
        for name in chosen:
            surface = surfaces.get(name)
            if surface is not None:
                sources.extend(schema.describe(f, path.parent) for f in surface.files)
            number = known.index(name)
            yield _read_subject(
                path, arrays, tables, number, surface, fraction, seed, report
            )

    def read_images(image_ids: Sequence[str]) -> Iterator[np.ndarray]:
        for image_id in image_ids:
            match = re.fullmatch(r"nsd/(\d{5})", image_id)
            if not match or int(match[1]) >= tables.num_images:
                raise errors.InputError(
                    image_path,
                    "",
                    f"no picture {image_id}",
                    f"nsd/00000 to nsd/{tables.num_images - 1:05d}",
                    "Ask for ids that the subjects list.",
                )
            yield np.array(pictures[int(match[1])])

    return schema.Dataset("released", read_subjects(), read_images, sources, report)


def _find(place: pathlib.Path, names: Sequence[str], what: str) -> pathlib.Path:
    """The file itself, or the first of the names in a folder."""
    if place.is_file():
        return place
    for name in names:
        if (place / name).is_file():
            return place / name
    raise errors.MissingInputError(
        place,
        "",
        f"no {' or '.join(names)}" if place.is_dir() else "no such file",
        what,
        "Check the path, or say where it lies (source, images).",
    )


def _headers(
    path: pathlib.Path, problems: list[schema.Problem]
) -> dict[str, npz.Header]:
    """Shapes and types of the arrays in the archive; pickles are left out."""
    arrays: dict[str, npz.Header] = {}
    name = ""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            for info in infos:
                name = info.filename.removesuffix(".npy")
                if name in arrays:
                    problems.append(
                        schema.Problem(name, "is twice in the archive", "once")
                    )
                elif name in (*_NEEDED, *_NUM_VOXELS, *_OPTIONAL):
                    arrays[name] = _header(archive, info, problems)
    except npz.DAMAGED as error:
        raise _damaged(path, name, error) from None
    missing = [name for name in _NEEDED if name not in arrays]
    if missing:
        found = [i.filename.removesuffix(".npy") for i in infos]
        raise errors.MissingInputError(
            path,
            "",
            f"no {', '.join(missing)} (found: "
            f"{schema.shorten(found, most=12) or 'nothing'})",
            f"the arrays of {FILE}",
            "Give the file that the released scripts write.",
        )
    return arrays


def _header(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, problems: list[schema.Problem]
) -> npz.Header:
    """Reads the .npy header of one member and checks the sizes it declares."""
    name = info.filename.removesuffix(".npy")
    array = npz.read_header(archive, info)
    shape, dtype, fortran, _ = array
    declared = array.offset + math.prod(shape) * dtype.itemsize
    fmri = name in ("single_sub_fmri", "multi_sub_fmri")
    if dtype.hasobject or dtype.kind not in "biuf":
        found, expected = f"holds {dtype}", "numbers"
    elif fmri and (len(shape) != 2 or dtype.kind != "f"):
        found, expected = f"{dtype} {shape}", "float16 (pictures, vertices)"
    elif declared != info.file_size:
        found = f"{info.file_size} bytes"
        expected = f"{declared} for {dtype} {shape}"
    elif not fmri and declared > _SMALL:
        found, expected = f"{declared} bytes", f"at most {_SMALL}"
    elif fmri and fortran:
        found, expected = "stored by columns", "rows (np.ascontiguousarray)"
    elif fmri and info.file_size > _RATIO * max(info.compress_size, 1):
        found = f"{info.file_size} bytes packed into {info.compress_size}"
        expected = f"at most {_RATIO} times as many"
    else:
        return array
    problems.append(schema.Problem(name, found, expected))
    return array


def _damaged(path: pathlib.Path, where: str, error: BaseException) -> errors.InputError:
    """The archive cannot be read."""
    return errors.InputError(
        path,
        where,
        f"damaged or no npz ({str(error)[:100]})",
        "a whole archive",
        _ACTION,
    )


def _read_small(path: pathlib.Path, name: str, array: npz.Header) -> np.ndarray:
    """Reads a whole array of the archive; its checksum is verified."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            content = stream.read()[array.offset :]
    except npz.DAMAGED as error:
        raise _damaged(path, name, error) from None
    order = "F" if array.fortran else "C"
    return np.frombuffer(content, array.dtype).reshape(array.shape, order=order)


def _stream(
    path: pathlib.Path, name: str, array: npz.Header
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, rows) of a large array; verifies its checksum at the end."""
    num_rows, num_columns = array.shape
    row_bytes = num_columns * array.dtype.itemsize
    step = max(1, _BLOCK // max(1, row_bytes))
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            stream.read(array.offset)
            for start in range(0, num_rows, step):
                size = min(step, num_rows - start)
                content = stream.read(size * row_bytes)
                rows = np.frombuffer(content, array.dtype).reshape(size, num_columns)
                yield start, rows
            if stream.read(1):  # nothing left; at the end zipfile compares the CRC
                raise EOFError("more bytes than the header declares")
    except npz.DAMAGED as error:
        raise _damaged(path, name, error) from None


def _read_tables(
    path: pathlib.Path,
    arrays: dict[str, npz.Header],
    problems: list[schema.Problem],
) -> _Tables:
    """Reads the small arrays and checks that all shapes fit together."""
    schema.raise_problems(path, problems, _ACTION)  # nothing to compare with
    small = {
        name: _read_small(path, name, array)
        for name, array in arrays.items()
        if name not in ("single_sub_fmri", "multi_sub_fmri")
    }

    def fault(where: str, found: str, expected: str) -> None:
        problems.append(schema.Problem(where, found, expected))

    num_voxels, num_left = _read_num_voxels(path, small, problems)
    num_single, widest = arrays["single_sub_fmri"].shape
    num_multi, width = arrays["multi_sub_fmri"].shape
    if num_voxels.sum() != width:
        fault(
            "multi_sub_fmri",
            f"{width} columns",
            f"{num_voxels.sum()}, the vertices of {len(num_voxels)} subjects",
        )
    if num_voxels.max() > widest:
        fault("single_sub_fmri", f"{widest} columns", f"at least {num_voxels.max()}")

    kind = small["type_sample"]
    if kind.ndim != 1 or not np.isin(kind, (0, 1, 2)).all():
        fault("type_sample", f"{kind.dtype} {kind.shape}", "a list of 0, 1 and 2")
        kind = np.zeros(0)
    single_id, multi_id = np.flatnonzero(kind == 1), np.flatnonzero(kind == 2)
    for name, ids, rows in (
        ("single_sub_fmri", single_id, num_single),
        ("multi_sub_fmri", multi_id, num_multi),
    ):
        if len(kind) and len(ids) != rows:
            value = 1 if ids is single_id else 2
            fault(name, f"{rows} rows", f"{len(ids)}, as type_sample == {value}")

    subject = small["single_sub"]
    if subject.shape != (num_single,):
        fault("single_sub", f"shape {subject.shape}", f"({num_single},), one a row")
        subject = np.zeros(0, np.int64)
    else:
        subject = _from_zero(subject, len(num_voxels), problems)
    valid = small.get("valid_multi_sub_fmri")
    if valid is None:
        valid = np.ones((num_multi, len(num_voxels)), bool)
    elif valid.shape != (num_multi, len(num_voxels)):
        fault(
            "valid_multi_sub_fmri",
            f"shape {valid.shape}",
            f"({num_multi}, {len(num_voxels)})",
        )
    val = _read_val(small, num_single, single_id, problems)
    return _Tables(
        subject,
        single_id,
        multi_id,
        valid.astype(bool),
        val,
        num_voxels,
        num_left,
        len(kind),
    )


def _read_num_voxels(
    path: pathlib.Path,
    small: dict[str, np.ndarray],
    problems: list[schema.Problem],
) -> tuple[np.ndarray, np.ndarray | None]:
    """Vertices of each subject, (S,), and of its left hemisphere if known."""
    tables = {n: small[n] for n in _NUM_VOXELS if n in small}
    beside = path.parent / NUM_VOXELS_FILE
    if beside.is_file():
        array = schema.open_npy(beside, path.parent, problems)
        schema.raise_problems(path.parent, problems, _ACTION)
        tables[NUM_VOXELS_FILE] = np.array(array)
    if not tables:
        raise errors.MissingInputError(
            path,
            "",
            f"no {' or '.join(_NUM_VOXELS)} inside and no {NUM_VOXELS_FILE} beside it",
            "how many vertices each subject has",
            f"Put {NUM_VOXELS_FILE} beside the file.",
        )
    totals, num_left = {}, None
    for name, table in tables.items():
        whole = table.dtype.kind in "iuf" and table.size and (table == table // 1).all()
        if not whole or table.min() < 1 or table.shape[1:] not in ((), (2,)):
            raise errors.InputError(
                path,
                name,
                f"{table.dtype} {table.shape}",
                "(subjects,) or (subjects, 2) counts above 0",
                _ACTION,
            )
        if table.ndim == 2:
            num_left = table[:, 0].astype(np.int64)
            table = table.sum(1)
        totals[name] = table.astype(np.int64)
    (first, total), *others = totals.items()
    for name, other in others:
        if total.tolist() != other.tolist():
            problems.append(
                schema.Problem(
                    name, f"counts {other.tolist()}", f"{total.tolist()}, as {first}"
                )
            )
    return total, num_left


def _from_zero(
    subject: np.ndarray, num: int, problems: list[schema.Problem]
) -> np.ndarray:
    """Subject numbers from 0; the file may count from 0 or from 1.

    Both are in use, and taking one for the other would give every row to the wrong
    brain, so the numbers themselves must tell.
    """
    low, high = (subject.min(), subject.max()) if len(subject) else (0, 0)
    if (subject != subject // 1).any() or low < 0 or high > num:
        found, expected = f"values {low:g}..{high:g}", f"0..{num - 1} or 1..{num}"
    elif low == 0 and high == num:
        found, expected = f"values 0..{num}", f"0..{num - 1} or 1..{num}, not both"
    elif low > 0 and high < num:
        found = f"values {low:g}..{high:g} of {num} subjects: from 0 or from 1?"
        expected = f"a row of the first subject (0) or of the last ({num})"
    else:
        return subject.astype(np.int64) - (1 if high == num else 0)
    problems.append(schema.Problem("single_sub", found, expected))
    return np.zeros(0, np.int64)


def _read_val(
    small: dict[str, np.ndarray],
    num_single: int,
    single_id: np.ndarray,
    problems: list[schema.Problem],
) -> np.ndarray | None:
    """(J,) bool: rows held out for validation; None if the file names none."""
    rows = small.get("val_single_ind")
    if rows is None:
        return None
    val = np.zeros(num_single, bool)
    if rows.dtype == bool and rows.shape == (num_single,):
        val |= rows
    elif rows.ndim != 1 or rows.dtype.kind not in "iu":
        problems.append(
            schema.Problem(
                "val_single_ind", f"{rows.dtype} {rows.shape}", "a list of row numbers"
            )
        )
        return None
    elif len(rows) and (rows.min() < 0 or rows.max() >= num_single):
        problems.append(
            schema.Problem(
                "val_single_ind",
                f"rows {rows.min()}..{rows.max()}",
                f"0..{num_single - 1}, rows of single_sub_fmri",
            )
        )
        return None
    else:
        val[rows] = True
    ids = small.get("val_global_ind")
    if ids is not None and len(single_id) == num_single:
        named = np.unique(ids)
        if named.tolist() != single_id[val].tolist():
            problems.append(
                schema.Problem(
                    "val_single_ind",
                    f"{val.sum()} pictures, not those of val_global_ind ({len(named)})",
                    "the same pictures",
                )
            )
    return val


def _open_pictures(
    path: pathlib.Path, num: int, problems: list[schema.Problem]
) -> np.ndarray:
    """Maps the pictures into memory, (73000, y, x, 3) uint8."""
    found = schema.open_npy(path, path.parent, problems)
    if found is None:
        return np.zeros((0, 1, 1, 3), np.uint8)
    shape, where = found.shape, path.name
    if found.dtype != np.uint8 or len(shape) != 4 or 3 not in shape[1::2]:
        problems.append(
            schema.Problem(where, f"{found.dtype} {shape}", "uint8 (N, y, x, 3)")
        )
    elif shape[3] != 3:
        problems.append(
            schema.Problem(where, f"{shape} looks channels-first", "(N, y, x, 3)")
        )
    elif num and shape[0] != num:
        problems.append(
            schema.Problem(where, f"{shape[0]} pictures", f"{num}, as type_sample")
        )
    return found


def _find_surfaces(
    path: pathlib.Path,
    masks: str | os.PathLike | None,
    chosen: Sequence[str],
    tables: _Tables,
) -> dict[str, algonauts.Surface]:
    """Vertices and regions of subjects that have masks."""
    folder = path.parent / "roi_masks" if masks is None else pathlib.Path(masks)
    if masks is None and not folder.is_dir():
        return {}
    surfaces = {}
    for name in chosen:
        number = int(name.removeprefix("subj"))
        places = (folder / f"{name}/roi_masks", folder / name, folder / f"sub{number}")
        place = next((p for p in places if p.is_dir()), None)
        if place is None:
            raise errors.MissingInputError(
                folder,
                "",
                f"no {name}/roi_masks and no sub{number}",
                "vertex masks of every subject read",
                "Add them, or give no masks (vertices are then unknown).",
            )
        surface = algonauts.read_surface(place)
        num = int(tables.num_voxels[number - 1])
        left = None if tables.num_left is None else int(tables.num_left[number - 1])
        found = len(surface.position), surface.num_left
        if found != (num, found[1] if left is None else left):
            raise errors.InputError(
                place,
                "",
                f"masks of {found[0]} vertices, {found[1]} of them lh",
                f"{num}" + ("" if left is None else f", {left} of them lh"),
                "Give the masks the file was made with.",
            )
        surfaces[name] = surface
    return surfaces


def _position(
    num: int, num_left: int | None, surface: algonauts.Surface | None
) -> np.ndarray:
    """(V, 3) int32: hemisphere, vertex, -1; -1 where unknown."""
    if surface is not None:
        return surface.position
    position = np.full((num, 3), -1, np.int32)
    if num_left is not None:
        position[:, 0] = np.arange(num) >= num_left
    return position


class _Part(NamedTuple):
    """What was taken of one large array for one subject."""

    kept: np.ndarray  # row numbers in the file
    num_blank: int  # rows left out because they hold no response
    num_bad: int  # values that are no numbers
    first_bad: str
    num_padding: int  # rows with values in columns that belong to nobody


def _fill(
    path: pathlib.Path,
    name: str,
    array: npz.Header,
    wanted: np.ndarray,
    columns: slice,
    responses: np.ndarray,
) -> _Part:
    """Copies the wanted rows that hold a response to the start of `responses`."""
    kept = [np.zeros(0, np.int64)]
    num, num_blank, num_bad, first_bad, num_padding = 0, 0, 0, "", 0
    for start, block in _stream(path, name, array):
        rows = np.flatnonzero(wanted[start : start + len(block)])
        with np.errstate(over="ignore"):  # float64 beyond float32 is reported as inf
            values = block[rows, columns].astype(np.float32)
        blank = ~((values != 0) & ~np.isnan(values)).any(1)
        bad = ~np.isfinite(values) & ~blank[:, None]
        if bad.any():
            row, column = np.argwhere(bad)[0]
            num_bad += int(bad.sum())
            first_bad = first_bad or (
                f"{name} row {start + rows[row]}, vertex {column} is "
                f"{values[row, column]}"
            )
        if name == "single_sub_fmri":
            rest = block[rows, columns.stop :]
            num_padding += int((np.isfinite(rest) & (rest != 0)).any(1).sum())
        here = values[~blank]
        responses[num : num + len(here)] = here
        num += len(here)
        num_blank += int(blank.sum())
        kept.append(start + rows[~blank])
    return _Part(np.concatenate(kept), num_blank, num_bad, first_bad, num_padding)


def _read_subject(
    path: pathlib.Path,
    arrays: dict[str, npz.Header],
    tables: _Tables,
    number: int,
    surface: algonauts.Surface | None,
    fraction: float | None,
    seed: int,
    report: list[str],
) -> schema.Subject:
    """Streams both large arrays and keeps one subject's rows and columns."""
    name = f"nsd-subj{number + 1:02d}"
    num = int(tables.num_voxels[number])
    own = tables.subject == number
    seen = tables.valid[:, number]
    responses = np.empty((int(own.sum() + seen.sum()), num), np.float32)
    first = int(tables.num_voxels[:number].sum())
    single = _fill(
        path,
        "single_sub_fmri",
        arrays["single_sub_fmri"],
        own,
        slice(0, num),
        responses,
    )
    num_single = len(single.kept)
    multi = _fill(
        path,
        "multi_sub_fmri",
        arrays["multi_sub_fmri"],
        seen,
        slice(first, first + num),
        responses[num_single:],
    )
    responses = responses[: num_single + len(multi.kept)]
    if single.num_bad + multi.num_bad:
        raise errors.InputError(
            path,
            name,
            f"{single.num_bad + multi.num_bad} values are not finite (first: "
            f"{single.first_bad or multi.first_bad})",
            "numbers, or a whole row of NaN or 0 where there is no response",
            _ACTION,
        )
    ids = np.concatenate([tables.single_id[single.kept], tables.multi_id[multi.kept]])
    image_id = [f"nsd/{i:05d}" for i in ids]
    split = np.array(["train"] * num_single + ["test"] * len(multi.kept))
    if fraction is None and tables.val is not None:
        split[:num_single][tables.val[single.kept]] = "val"
    elif fraction is not None:
        places = [schema.share(seed, i) for i in image_id[:num_single]]
        split[:num_single][np.array(places) >= 1 - fraction] = "val"
    counts = {s: int((split == s).sum()) for s in ("train", "val", "test")}
    if not counts["train"]:
        raise errors.InputError(
            path, name, "0 pictures in the training split", "at least one", _ACTION
        )
    constant = schema.num_constant(responses, split == "train")
    left = None if tables.num_left is None else int(tables.num_left[number])
    attrs: dict[str, Any] = {
        "dataset": "nsd",
        "source_format": FILE,
        "space": "fsaverage",
        "surface": f"fsaverage, {algonauts.NUM_VERTICES} vertices a hemisphere, lh "
        "first" + ("" if surface else "; vertex numbers not in the file"),
        "vertices": [algonauts.NUM_VERTICES, algonauts.NUM_VERTICES],
        "normalisation": "z-scored per vertex in each session by the distributor, "
        "averaged over repeats, rounded to float16",
        "sessions": "all of the subject, as distributed",
        "repeats": f"not in the file; {algonauts.REPEATS}, NSD's design, is an upper "
        "bound",
        "ncsnr": "unknown",
        "dropped_voxels": 0,
        "constant_voxels": constant,
        "unseen_shared_images": int((~seen).sum()) + multi.num_blank,
        "rows_without_response": single.num_blank,
    }
    lines = [
        f"{counts['train']} train, {counts['val']} val, {counts['test']} test "
        f"pictures; {num} vertices",
        *(f"{s} split is empty" for s in ("val", "test") if not counts[s]),
    ]
    if attrs["unseen_shared_images"]:
        lines.append(
            f"{attrs['unseen_shared_images']} shared pictures it never saw left out"
        )
    if single.num_blank:
        lines.append(f"{single.num_blank} rows of NaN or 0 alone left out")
    if single.num_padding:
        lines.append(
            f"{single.num_padding} rows hold values beyond its {num} vertices, ignored"
        )
    if constant:
        lines.append(f"{constant} vertices are constant in train; kept, no score")
    if surface is None:
        lines.append("no vertex masks: vertex numbers and regions unknown")
    elif surface.empty:
        lines.append(f"regions without a vertex, left out: {', '.join(surface.empty)}")
    report += [f"{name}: {line}" for line in lines]
    return schema.Subject(
        name=name,
        responses=responses,
        image_id=image_id,
        split=split,
        repeats=np.full(len(ids), algonauts.REPEATS, np.uint8),
        ncsnr=np.full(num, np.nan, np.float32),
        position=_position(num, left, surface),
        roi=np.zeros((num, 0), bool) if surface is None else surface.roi,
        roi_names=[] if surface is None else surface.roi_names,
        attrs=attrs,
    )
