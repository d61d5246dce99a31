"""The store of a crowd: written once by `prepare`, read in training row by row.

A store is a Zarr v3 group in the layout of docs/store.md: pictures, their ids, and
one group of responses for each subject. Any program can open it with
`xarray.open_zarr(path, group="subjects/NAME")`; training reads it through
TensorStore, one read for a batch. This module knows nothing of any dataset's files.
"""

import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import tensorstore
import tqdm
import xarray
import zarr
import zarr.errors

import ubrain_jax
from ubrain_jax import errors, joining, lookalikes, whole
from ubrain_jax.datasets import pictures, schema

FORMAT = "ubrain-crowd"
VERSION = 1
SPLITS = ("train", "val", "test")

# A shard is one file; rows inside it are read alone.
_SHARD_BYTES = 32 * 2**20
# Mean difference in grey levels above which two pictures are not the same picture
# (JPEG and resizing stay below 5, unrelated photographs are near 70).
_OTHER_PICTURE = 16
_SHA256 = re.compile("[0-9a-f]{64}")
# Chunks of zeros are written too, so that one that is absent is a lost one.
_KEEP_ALL: Any = {"write_empty_chunks": True}


class SubjectRows(NamedTuple):
    """One subject of an open crowd: M samples, V voxels.

    Attributes:
        name: For example "nsd-subj01".
        store: Its store in `Crowd.paths`.
        offset: First row of this subject in the table of all voxels.
        num_voxels: V.
        responses: (M, V) float32 in TensorStore.
        image: (M,) int64 rows of `Crowd.image_id`.
        split: (M,) "train", "val" or "test".
        repeats: (M,) uint8 presentations averaged.
        ncsnr: (V,) float32, NaN where unknown.
        position: (V, 3) int32.
        roi: (V, R) bool.
        roi_names: R names.
        attrs: What `prepare` recorded.
    """

    name: str
    store: int
    offset: int
    num_voxels: int
    responses: tensorstore.TensorStore
    image: np.ndarray
    split: np.ndarray
    repeats: np.ndarray
    ncsnr: np.ndarray
    position: np.ndarray
    roi: np.ndarray
    roi_names: tuple[str, ...]
    attrs: dict[str, Any]

    def samples(self, split: str) -> np.ndarray:
        """Rows of `responses` in one split, in order."""
        return np.flatnonzero(self.split == split)


class Crowd(NamedTuple):
    """Open stores, as one crowd.

    Attributes:
        paths: The stores.
        subjects: All subjects; their voxels follow each other in the table.
        image_id: Ids of the distinct pictures of all stores. A picture that several
            stores have, by id or by content, is one, with its first id.
        image_sha256: Of the pixels of each picture, in hex; empty where a store that
            is opened alone has none.
        image_store: For each picture the store that serves it.
        image_row: and its row there.
        pictures: For each store, its pictures (rows, y, x, 3) in TensorStore.
        image_px: Side of the pictures in pixels.
        attrs: Root attributes of each store.
        notes: What a user must know of these stores together, a sentence each.
        fingerprint: Hash of everything but pixels; a run refuses to resume on a
            crowd with another one.
    """

    paths: tuple[str, ...]
    subjects: tuple[SubjectRows, ...]
    image_id: tuple[str, ...]
    image_sha256: tuple[str, ...]
    image_store: np.ndarray
    image_row: np.ndarray
    pictures: tuple[tensorstore.TensorStore, ...]
    image_px: int
    attrs: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    fingerprint: str

    @property
    def num_voxels(self) -> int:
        """Voxels of all subjects (V of the table)."""
        return sum(s.num_voxels for s in self.subjects)


@contextlib.contextmanager
def quiet_zarr() -> Iterator[None]:
    """Zarr warns that v3 strings may change; both our readers take them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.UnstableSpecificationWarning)
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        yield


def write(
    path: str,
    dataset: schema.Dataset,
    *,
    image_px: int = 224,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a store, under its name only when it is whole.

    Subjects are written one after the other as the reader yields them. Pictures are
    cropped to a square and resized to `image_px`; each is kept once.

    Args:
        path: Folder to create, usually NAME.zarr.
        dataset: From a reader in `datasets`.
        image_px: Side of the stored pictures.
        overwrite: Replace a store that is there.

    Returns:
        Counts: subjects, images, voxels.

    Raises:
        errors.OutputError: If the path exists or cannot be written.
        errors.InputError: If the data are at fault; nothing is left under `path`.
    """
    target = check_target(path, overwrite)
    with whole.folder(target) as partial:
        with quiet_zarr():
            counts = _write_into(partial, path, dataset, image_px)
        check_target(path, overwrite)  # another process may have been faster
    return counts


def check_target(path: str, overwrite: bool) -> pathlib.Path:
    """Refuses an output that exists, unless it is a store to be replaced."""
    target = pathlib.Path(path)
    if "://" in str(path):
        raise errors.OutputError(
            path,
            "",
            "is not a local folder",
            "a path on this machine",
            "Write the store to disk and copy it; training reads it from there.",
        )
    if target.exists() and not overwrite:
        raise errors.OutputError(
            path,
            "",
            "exists",
            "a new path",
            "Choose another --out or pass --overwrite.",
        )
    if target.exists() and not _is_store(target):
        raise errors.OutputError(
            path,
            "",
            "exists and is no store",
            "a store to replace or a new path",
            "Nothing was deleted; choose another --out.",
        )
    return target


def _is_store(folder: pathlib.Path) -> bool:
    """Whether a folder says of itself that it is a crowd."""
    try:
        node = json.loads((folder / "zarr.json").read_text())
        return node["attributes"]["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_into(
    folder: pathlib.Path, path: str, dataset: schema.Dataset, image_px: int
) -> dict[str, Any]:
    """Fills an empty folder with the store; `path` is for messages."""
    # Not "w", which makes the folder anew and so loses its lock.
    root = zarr.open_group(folder, mode="w-", zarr_format=3)
    subjects = root.create_group("subjects")
    splits: dict[str, tuple[str, str]] = {}
    rows: dict[str, int] = {}  # image id -> row, by first appearance
    counts: dict[str, Any] = {"subjects": {}, "images": 0}
    for subject in checked_subjects(dataset, splits):
        image = [rows.setdefault(i, len(rows)) for i in subject.image_id]
        responses = np.ascontiguousarray(subject.responses, np.float32)
        digest = hashlib.sha256(cast(Any, responses))
        attrs = {**subject.attrs, "responses_sha256": digest.hexdigest()}
        group = subjects.create_group(subject.name, attributes=attrs)
        _put_rows(group, "responses", subject.responses, ("sample", "voxel"))
        _put(group, "image", np.asarray(image, np.int32), ("sample",))
        _put(group, "split", np.asarray(subject.split, str), ("sample",))
        _put(group, "repeats", subject.repeats.astype(np.uint8), ("sample",))
        _put(group, "ncsnr", subject.ncsnr.astype(np.float32), ("voxel",))
        _put(group, "position", subject.position.astype(np.int32), ("voxel", "axis"))
        _put(group, "roi", subject.roi.astype(bool), ("voxel", "roi_name"))
        _put(group, "roi_name", np.asarray(subject.roi_names, str), ("roi_name",))
        # xarray looks for it in each group that it opens, and warns without.
        zarr.consolidate_metadata(folder, path=f"subjects/{subject.name}")
        counts["subjects"][subject.name] = {
            "voxels": subject.responses.shape[1],
            **{s: int(np.sum(np.asarray(subject.split) == s)) for s in SPLITS},
        }
    counts["images"] = len(rows)
    _write_pictures(
        root, checked_pictures(dataset, splits, image_px), list(rows), image_px
    )
    root.attrs.update(
        {
            "format": FORMAT,
            "version": VERSION,
            "dataset": dataset.name,
            "created_by": f"ubrain_jax {ubrain_jax.__version__}",
            "created": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
            "sources": dataset.sources,
            "report": dataset.report,
        }
    )
    zarr.consolidate_metadata(folder)
    return counts


def checked_subjects(
    dataset: schema.Dataset, splits: dict[str, tuple[str, str]]
) -> Iterator[schema.Subject]:
    """The subjects of a dataset, each one refused if it contradicts itself.

    Args:
        dataset: From a reader.
        splits: Filled with the split and the first subject of each image id, in the
            order of first appearance.

    Raises:
        errors.InputError: If lengths differ, a response is not finite, or a picture
            is test for one subject and not for another.
    """
    names: set[str] = set()
    for subject in _read_all(dataset, dataset.subjects):
        _check_subject(subject, names, splits)
        names.add(subject.name)
        yield subject
    if not names:
        raise errors.MissingInputError(
            dataset.name, "", "no subject was read", "one or more", "Check --subjects."
        )


def _read_all(dataset: schema.Dataset, stream: Iterable[Any]) -> Iterator[Any]:
    """What a reader yields; a fault of the disk it reads from becomes ours."""
    try:
        yield from stream
    except OSError as error:
        raise errors.InputError(
            error.filename or dataset.name,
            "",
            f"cannot be read ({error.strerror or error})",
            "a file that can be read",
            "Check the disk and the permissions of --source.",
        ) from error


def _check_subject(
    subject: schema.Subject, names: set[str], splits: dict[str, tuple[str, str]]
) -> None:
    """Refuses a table that contradicts itself or an earlier subject."""
    m, v = subject.responses.shape
    shapes = {
        "image_id": ((len(subject.image_id),), (m,)),
        "split": (np.shape(subject.split), (m,)),
        "repeats": (np.shape(subject.repeats), (m,)),
        "ncsnr": (np.shape(subject.ncsnr), (v,)),
        "position": (np.shape(subject.position), (v, 3)),
        "roi": (np.shape(subject.roi), (v, len(subject.roi_names))),
    }
    faults = [
        f"{name} is {found}, not {expected}"
        for name, (found, expected) in shapes.items()
        if found != expected
    ]
    if not _is_name(subject.name):
        faults.append("the name holds '/', control characters or only dots")
    if subject.name in names:
        faults.append("the name occurs twice")
    if m == 0 or v == 0:
        faults.append(f"{m} samples of {v} voxels")
    if len(set(subject.image_id)) != len(subject.image_id):
        faults.append("an image id occurs twice; repeats are averaged by the reader")
    if len(set(subject.roi_names)) != len(subject.roi_names):
        faults.append("a region's name occurs twice")
    if unknown := {str(s) for s in subject.split} - set(SPLITS):
        faults.append(f"splits {sorted(unknown)}")
    repeats = np.asarray(subject.repeats)
    if m and not ((repeats >= 1) & (repeats <= 255)).all():
        faults.append(f"repeats {repeats.min()}..{repeats.max()}, outside 1..255")
    for row, values in enumerate(subject.responses):  # a row: no copy of the whole
        if not np.isfinite(values).all():
            voxel = int(np.argmin(np.isfinite(values)))
            faults.append(f"non-finite responses, first in sample {row} voxel {voxel}")
            break
    for image_id, split in zip(subject.image_id, subject.split, strict=False):
        before, other = splits.setdefault(image_id, (str(split), subject.name))
        if (before == "test") != (split == "test"):
            faults.append(
                f"image {image_id} is {split} here and {before} for {other}: a leak"
            )
            break
    if faults:
        raise errors.InputError(
            f"subject {subject.name}",
            "",
            "; ".join(faults),
            "one row for each sample and voxel, splits by image, finite responses",
            "The reader is at fault or the files changed while being read.",
        )


def _is_name(name: str) -> bool:
    """Whether a text can be the name of a group, and so of a folder."""
    plain = name.isprintable() and "/" not in name and not name.startswith("__")
    return plain and bool(name.strip(".")) and len(name.encode()) <= 200


def checked_pictures(
    dataset: schema.Dataset, splits: dict[str, tuple[str, str]], image_px: int
) -> Iterator[np.ndarray]:
    """Square pictures (image_px, image_px, 3) uint8 of all ids of `splits`, in order.

    What is odd about them is added to the report of the dataset.

    Raises:
        errors.InputError: If the reader gives more or fewer, or the same pixels stand
            in test and outside it under two ids.
    """
    seen: dict[bytes, str] = {}
    twins, leaks, constant = [], [], []
    stream = _read_all(dataset, dataset.read_images(list(splits)))
    for image_id in tqdm.tqdm(splits, desc="images", unit="image", disable=None):
        picture = next(stream, None)
        if picture is None:
            raise _miscounted(dataset, f"no picture for {image_id}", len(splits))
        picture = pictures.fit(picture, image_px)
        digest = hashlib.sha256(picture.tobytes()).digest()
        twin = seen.setdefault(digest, image_id)
        if twin != image_id:
            twins.append((twin, image_id))
            if (splits[twin][0] == "test") != (splits[image_id][0] == "test"):
                leaks.append((twin, image_id))
        if picture.max() == picture.min():
            constant.append(image_id)
        yield picture
    if next(stream, None) is not None:
        raise _miscounted(dataset, "more pictures than ids", len(splits))
    if leaks:
        raise errors.InputError(
            dataset.name,
            "images",
            f"{len(leaks)} pictures stand in train and test under two ids: "
            + "; ".join(f"{a} and {b}" for a, b in leaks[:50]),
            "a test picture in no train split",
            "Leave the train one of each pair out with --exclude=ID,ID; scores would "
            "be of pictures already seen.",
        )
    if twins:
        dataset.report.append(
            f"{len(twins)} pictures occur under two ids (first: {twins[0]})"
        )
    if constant:
        dataset.report.append(
            f"{len(constant)} of {len(splits)} images are constant "
            f"(first: {constant[0]})"
        )


def _miscounted(
    dataset: schema.Dataset, found: str, expected: int
) -> errors.InputError:
    return errors.InputError(
        dataset.name,
        "images",
        found,
        f"{expected} pictures, one for each id",
        "The reader is at fault or the files changed while being read.",
    )


def _write_pictures(
    root: zarr.Group, stream: Iterator[np.ndarray], ids: list[str], image_px: int
) -> None:
    """Pictures in the order of their rows, a shard at a time, ids and hashes."""
    shape = (len(ids), image_px, image_px, 3)
    dims = ("image", "y", "x", "rgb")
    array, shard = _create_rows(root, "images", shape, np.uint8, 0, dims)
    block = np.empty((shard, *shape[1:]), np.uint8)
    start = 0
    hashes = []
    for row, picture in enumerate(stream):
        hashes.append(_hashes_of(picture))
        block[row - start] = picture
        if row - start == shard - 1 or row == len(ids) - 1:
            array[start : row + 1] = block[: row + 1 - start]
            start = row + 1
    _put(root, "image_id", np.asarray(ids, str), ("image",))
    sha256, looks = zip(*hashes, strict=True)
    _put(root, "image_sha256", np.asarray(sha256, str), ("image",))
    _put(root, "image_phash", np.asarray(looks, np.uint64), ("image",))


def picture_sha256(picture: np.ndarray) -> str:
    """Hash of the bytes of a picture (y, x, 3) uint8, as stores have it."""
    return hashlib.sha256(picture.tobytes()).hexdigest()


def _hashes_of(picture: np.ndarray) -> tuple[str, int]:
    """Of a stored picture: sha256 of its pixels in hex, and what it looks like."""
    return picture_sha256(picture), lookalikes.perceptual_hash(picture)


def _put(group: zarr.Group, name: str, values: np.ndarray, dims: tuple) -> None:
    """A small array, whole; text as variable-length UTF-8."""
    text = values.dtype.kind == "U"
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=str if text else values.dtype,
        chunks=tuple(max(1, n) for n in values.shape),
        compressors=None,
        dimension_names=dims,
        config=_KEEP_ALL,
    )
    array[...] = values.astype(object) if text else values


def _create_rows(
    group: zarr.Group, name: str, shape: tuple, dtype: Any, fill: Any, dims: tuple
) -> tuple[zarr.Array, int]:
    """An array with one uncompressed inner chunk for each row; its rows per shard."""
    row_bytes = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
    shard = min(shape[0], max(1, _SHARD_BYTES // row_bytes))
    array = group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(1, *shape[1:]),
        shards=(shard, *shape[1:]),
        compressors=None,
        dimension_names=dims,
        fill_value=fill,
        config=_KEEP_ALL,
    )
    return array, shard


def _put_rows(group: zarr.Group, name: str, values: np.ndarray, dims: tuple) -> None:
    """A large array, written a shard at a time."""
    # Any program that meets a lost row reads NaN, not a response of 0.
    array, shard = _create_rows(group, name, values.shape, np.float32, np.nan, dims)
    for start in range(0, len(values), shard):
        array[start : start + shard] = values[start : start + shard]


def open_crowd(paths: Sequence[str], subjects: Sequence[str] = ()) -> Crowd:
    """Opens stores and checks that they make one sound crowd.

    Args:
        paths: One or several stores.
        subjects: Names to keep, in this order; empty: all, by store, then by name.

    Raises:
        errors.MissingInputError: If a store is absent.
        errors.ConfigError: If a subject to keep is in no store.
        errors.InputError: If a store is damaged or of another version, a subject
            occurs twice, one id names two pictures, or a test picture is in another
            subject's train or val split.
    """
    attrs, arrays, stores = [], [], []
    for path in paths:
        group = _open_store(path)
        attrs.append(dict(group.attrs))
        array, pictures_of = _open_pictures(path, group)
        arrays.append(array)
        stores.append(pictures_of)
    sizes = {a.shape[1] for a in arrays}
    if len(sizes) > 1:
        raise errors.InputError(
            ", ".join(paths),
            "images",
            f"pictures of sizes {sorted(sizes)}",
            "one size in all stores",
            "Prepare them again with one --image_px.",
        )
    stores, notes = _with_hashes(stores, arrays)
    merged = joining.merge(stores)
    subject_rows, offset = [], 0
    for name, k in _find_subjects(paths, subjects).items():
        subject = _open_subject(paths[k], name, k, offset, len(stores[k].ids))
        subject_rows.append(subject)
        offset += subject.num_voxels
    seen = [joining.Seen(s.name, s.store, s.image, s.split) for s in subject_rows]
    joining.refuse_leaks(stores, merged, seen)
    subject_rows = [s._replace(image=merged[s.store][s.image]) for s in subject_rows]
    # Of each picture the first store that has it, and its row there.
    _, first = np.unique(np.concatenate(merged), return_index=True)
    home = np.concatenate([np.full(len(rows), k) for k, rows in enumerate(merged)])
    inside = np.concatenate([np.arange(len(rows)) for rows in merged])
    every_id = [i for s in stores for i in s.ids]
    every_hash = [h for s in stores for h in s.sha256 or ()]
    ids = tuple(every_id[n] for n in first)
    opened = Crowd(
        paths=tuple(paths),
        subjects=tuple(subject_rows),
        image_id=ids,
        image_sha256=tuple(every_hash[n] for n in first) if every_hash else (),
        image_store=home[first],
        image_row=inside[first],
        pictures=tuple(arrays),
        image_px=arrays[0].shape[1],
        attrs=tuple(attrs),
        notes=(),
        fingerprint=_fingerprint(subject_rows, ids),
    )
    _refuse_clashes(opened, stores, merged)
    notes += joining.merged_notes(stores, merged, ids)
    if all(s.phash is not None for s in stores):
        phash = np.concatenate([cast(np.ndarray, s.phash) for s in stores])[first]
        image = np.concatenate([s.image for s in subject_rows])
        is_test = np.concatenate([s.split == "test" for s in subject_rows])
        tests, others = np.unique(image[is_test]), np.unique(image[~is_test])
        notes += joining.lookalike_notes(phash, ids, home[first], tests, others)
    return opened._replace(notes=tuple(notes))


def in_memory(subject: schema.Subject, squares: np.ndarray) -> Crowd:
    """A crowd of one subject whose pictures and responses are arrays.

    Args:
        subject: M samples.
        squares: (M, image_px, image_px, 3) uint8, the picture of each sample.

    Raises:
        errors.InputError: If the subject contradicts itself, or two of its pictures
            are one.
    """
    _check_subject(subject, set(), {})
    if squares.dtype != np.uint8 or len(squares) != len(subject.image_id):
        raise ValueError(f"pictures {squares.shape} {squares.dtype}")
    sha256 = tuple(_hashes_of(picture)[0] for picture in squares)
    first_of: dict[str, int] = {}
    again = [k for k, s in enumerate(sha256) if first_of.setdefault(s, k) != k]
    if again:
        first = first_of[sha256[again[0]]]
        raise errors.InputError(
            f"subject {subject.name}",
            "images",
            f"{len(again)} pictures occur again (first: {subject.image_id[first]} and "
            f"{subject.image_id[again[0]]})",
            "each picture once, its repeats averaged",
            "Average the responses to repeats first.",
        )
    m, v = subject.responses.shape
    rows = SubjectRows(
        subject.name,
        0,
        0,
        v,
        tensorstore.array(np.ascontiguousarray(subject.responses, np.float32)),
        np.arange(m),
        np.asarray(subject.split),
        np.asarray(subject.repeats),
        np.asarray(subject.ncsnr, np.float32),
        np.asarray(subject.position, np.int32),
        np.asarray(subject.roi, bool),
        tuple(subject.roi_names),
        subject.attrs,
    )
    ids = tuple(subject.image_id)
    return Crowd(
        paths=("memory",),
        subjects=(rows,),
        image_id=ids,
        image_sha256=sha256,
        image_store=np.zeros(m, int),
        image_row=np.arange(m),
        pictures=(tensorstore.array(squares),),
        image_px=squares.shape[1],
        attrs=({},),
        notes=(),
        fingerprint=_fingerprint([rows], ids),
    )


def _open_pictures(
    path: str, group: zarr.Group
) -> tuple[tensorstore.TensorStore, joining.Pictures]:
    """Pictures of a store, their ids and hashes, checked; no pixel is read."""
    optional = ("image_sha256", "image_phash")
    arrays = _open_arrays(path, group, ("images", "image_id", *optional), optional)
    small = {n: _whole(path, a) for n, a in arrays.items() if n != "images"}
    ids = [str(i) for i in small["image_id"]]
    images = _tensorstore(path, "images")
    _check_pictures(path, images, ids)
    sha256, phash = small.get("image_sha256"), small.get("image_phash")
    faults = []
    if sha256 is not None:
        sha256 = [str(x) for x in sha256.ravel()]
        odd = [x for x in sha256 if not _SHA256.fullmatch(x)]
        if len(sha256) != len(ids) or odd:
            faults.append(
                f"image_sha256 holds {len(sha256)} for {len(ids)} ids, {len(odd)} of "
                "them no hash"
            )
    if phash is not None and (phash.shape, phash.dtype) != ((len(ids),), np.uint64):
        faults.append(f"image_phash is {phash.shape} {phash.dtype}")
    if faults:
        found = "; ".join(faults)
        raise _damaged(path, "", found, f"hashes of {len(ids)} pictures")
    return images, joining.Pictures(path, ids, sha256, phash)


def _with_hashes(
    stores: Sequence[joining.Pictures], arrays: Sequence[tensorstore.TensorStore]
) -> tuple[list[joining.Pictures], list[str]]:
    """Hashes by reading, where stores of an older version are opened with others.

    A store that is alone was compared with itself when written: it is not read.

    Returns:
        The stores, and a note if some have no hashes.
    """
    lacking = [s.path for s in stores if s.sha256 is None or s.phash is None]
    if not lacking:
        return list(stores), []
    names = ", ".join(os.path.basename(path.rstrip("/")) for path in lacking)
    note = f"{names}: no hashes of the pictures are in the store, so "
    if len(stores) == 1:
        note += "no lookalikes were searched. Prepare it again to have that done."
        return list(stores), [note]
    note += "every picture is read at each start. Prepare it again to save that."
    full = []
    for store, array in zip(stores, arrays, strict=True):
        if store.path in lacking:
            sha256, phash = zip(*_read_hashes(store.path, array), strict=True)
            phash = np.asarray(phash, np.uint64)
            store = store._replace(sha256=sha256, phash=phash)
        full.append(store)
    return full, [note]


def _read_hashes(
    path: str, array: tensorstore.TensorStore
) -> Iterator[tuple[str, int]]:
    """Both hashes of every picture of a store, from its pixels."""
    count = array.shape[0]
    starts = range(0, count, 256)
    for start in tqdm.tqdm(starts, desc=f"hash {path}", disable=None):
        for picture in _read(array, np.arange(start, min(start + 256, count))):
            yield _hashes_of(picture)


def _find_subjects(paths: Sequence[str], subjects: Sequence[str]) -> dict[str, int]:
    """The subjects to keep (all if none is named), each with its store."""
    found: dict[str, int] = {}
    for k, path in enumerate(paths):
        for name in sorted(_open_group(path, "subjects").group_keys()):
            if name in found:
                raise errors.InputError(
                    path,
                    f"subjects/{name}",
                    f"the name is taken by {paths[found[name]]}",
                    "subjects with names of their own",
                    "Leave one store out or prepare it again under another name.",
                )
            found[name] = k
    for n, name in enumerate(subjects):
        if name not in found or name in subjects[:n]:
            raise errors.ConfigError(
                "data.subjects",
                "",
                f"{name!r} is {'given twice' if name in found else 'in no store'}",
                "subjects of the stores, each once",
                errors.nearest(name, found),
            )
    return {name: found[name] for name in subjects or found}


def _open_store(path: str) -> zarr.Group:
    """Root group of one store, of a format and version that this code knows."""
    remote = "://" in path
    if not remote and not pathlib.Path(path).exists():
        raise errors.MissingInputError(
            path,
            "",
            "not found",
            "a store written by python -m ubrain_jax.prepare",
            "Check data.crowd, or prepare the dataset first.",
        )
    group = _open_group(path, "")
    attrs = dict(group.attrs)
    if attrs.get("format") != FORMAT or attrs.get("version") != VERSION:
        raise errors.InputError(
            path,
            "zarr.json",
            f"format {attrs.get('format')!r} version {attrs.get('version')!r}",
            f"{FORMAT!r} version {VERSION}",
            "Prepare the dataset again with this version of ubrain_jax.",
        )
    return group


def _open_arrays(
    path: str, group: zarr.Group, names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, zarr.Array]:
    """Arrays of a group, refused where a file of theirs is gone.

    Zarr would read a chunk that is gone as zeros. Optional ones may be absent.
    """
    arrays, faults = {}, []
    for name in names:
        try:
            with quiet_zarr():
                array = group[name]
        except KeyError:
            if name not in optional:
                faults.append(f"{name} is missing")
            continue
        except (ValueError, OSError) as error:
            faults.append(f"{name} cannot be opened ({error})")
            continue
        if not isinstance(array, zarr.Array):
            faults.append(f"{name} is no array")
            continue
        arrays[name] = array
        lost = array.nchunks - array.nchunks_initialized
        if lost > 0:
            faults.append(f"{name} has lost files ({lost} or more chunks)")
    if faults:
        raise _damaged(path, group.path, "; ".join(faults), "every array, whole")
    return arrays


def _whole(path: str, array: zarr.Array) -> np.ndarray:
    """All values of a small array."""
    try:
        return np.asarray(array[...])
    except (ValueError, OSError) as error:
        found = f"cannot be read ({error})"
        raise _damaged(path, array.path, found, "an array") from error


def _damaged(path: str, where: str, found: str, expected: str) -> errors.InputError:
    return errors.InputError(
        path,
        where,
        found,
        expected,
        "The store is damaged: copy it again, or prepare it again.",
    )


def _check_pictures(
    path: str, array: tensorstore.TensorStore, ids: Sequence[str]
) -> None:
    """Refuses pictures that are not one square of bytes for each id."""
    shape = tuple(array.shape)
    square = len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3
    if not square or array.dtype.name != "uint8" or shape[0] != len(ids):
        raise _damaged(
            path,
            "images",
            f"{shape} {array.dtype.name} for {len(ids)} ids",
            "(ids, side, side, 3) uint8",
        )
    if len(set(ids)) != len(ids):
        raise _damaged(path, "image_id", "an id occurs twice", "distinct ids")


def _open_group(path: str, name: str) -> zarr.Group:
    """One group of a store; each array's own file counts, not the copy for xarray."""
    try:
        with quiet_zarr():
            return zarr.open_group(path, path=name, mode="r", use_consolidated=False)
    except (ImportError, ValueError, OSError, KeyError, TypeError) as error:
        # gs:// and s3:// need gcsfs or s3fs, which the error names.
        found = f"cannot be opened ({error})"
        raise _damaged(path, name, found, "a Zarr v3 group") from error


def _open_subject(
    path: str, name: str, store: int, offset: int, num_images: int
) -> SubjectRows:
    """Reads a subject's small arrays; its responses stay on disk.

    `image` holds rows of the store still.
    """
    group = _open_group(path, f"subjects/{name}")
    names = ("image", "split", "repeats", "ncsnr", "position", "roi", "roi_name")
    arrays = _open_arrays(path, group, (*names, "responses"))
    image, split, repeats, ncsnr, position, roi, roi_names = (
        _whole(path, arrays[n]) for n in names
    )
    responses = _tensorstore(path, f"subjects/{name}/responses")
    m, v = responses.shape
    wanted = {
        "image": (image, (m,)),
        "split": (split, (m,)),
        "repeats": (repeats, (m,)),
        "ncsnr": (ncsnr, (v,)),
        "position": (position, (v, 3)),
        "roi": (roi, (v, len(roi_names))),
    }
    faults = [
        f"{key} is {values.shape}, not {shape}"
        for key, (values, shape) in wanted.items()
        if values.shape != shape
    ]
    split = np.array([str(s) for s in split])
    if unknown := set(split.tolist()) - set(SPLITS):
        faults.append(f"split holds {sorted(unknown)}")
    if m and (image.min() < 0 or image.max() >= num_images):
        faults.append(f"image holds {image.min()}..{image.max()} of {num_images}")
    elif len(set(image.tolist())) != len(image):
        faults.append("image holds a picture twice")
    if faults:
        raise _damaged(
            path, group.path, "; ".join(faults), f"{m} samples of {v} voxels"
        )
    return SubjectRows(
        name,
        store,
        offset,
        v,
        responses,
        image.astype(np.int64),
        split,
        repeats,
        ncsnr,
        position,
        roi,
        tuple(str(r) for r in roi_names),
        dict(group.attrs),
    )


def _tensorstore(path: str, name: str) -> tensorstore.TensorStore:
    """Read-only handle of one array; gs:// and s3:// work as in TensorStore."""
    if "://" in path:
        kvstore: Any = f"{path.rstrip('/')}/{name}/"
    else:
        kvstore = {"driver": "file", "path": f"{os.path.abspath(path)}/{name}/"}
    try:
        return tensorstore.open(
            # Lost chunks are errors, not zeros.
            {"driver": "zarr3", "kvstore": kvstore, "fill_missing_data_reads": False},
            read=True,
            context=tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}}),
        ).result()
    except (ValueError, OSError) as error:
        message = str(error).split(" [tensorstore_spec=")[0]
        raise _damaged(path, name, f"cannot be read ({message})", "an array") from error


def _fingerprint(subjects: Sequence[SubjectRows], ids: Sequence[str]) -> str:
    """Hash of everything on which a batch or a score depends, but for the pixels.

    Responses come in through the hash that `write` took of them.
    """
    digest = hashlib.sha256()
    for s in subjects:
        head = [s.name, s.offset, s.num_voxels, list(s.responses.shape)]
        digest.update(json.dumps(head).encode())
        digest.update(json.dumps([ids[i] for i in s.image]).encode())
        digest.update(json.dumps(s.split.tolist()).encode())
        digest.update(json.dumps([s.roi_names, s.attrs], sort_keys=True).encode())
        for array in (s.repeats, s.ncsnr, s.position, s.roi):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _refuse_clashes(
    crowd: Crowd, stores: Sequence[joining.Pictures], merged: Sequence[np.ndarray]
) -> None:
    """An id that several stores have must be one picture in all of them.

    Args:
        crowd: The opened stores.
        stores: Their pictures.
        merged: For each store, the row in `Crowd.image_id` of each of its pictures.
    """
    for k, (store, rows) in enumerate(zip(stores, merged, strict=True)):
        sha256 = store.sha256 or ()
        again = [
            n
            for n in np.flatnonzero(crowd.image_store[rows] != k).tolist()
            if sha256[n] != crowd.image_sha256[rows[n]]  # equal bytes need no look
        ]
        clashes: list[int] = []
        for start in range(0, len(again), 256):
            block = np.asarray(again[start : start + 256])
            here = _read(crowd.pictures[k], block).astype(np.int16)
            there = read_pictures(crowd, rows[block])
            other = np.abs(here - there).mean((1, 2, 3)) > _OTHER_PICTURE
            clashes += rows[block[other]].tolist()
        if clashes:
            first = sorted({crowd.paths[crowd.image_store[row]] for row in clashes})
            ids = schema.shorten([crowd.image_id[row] for row in clashes])
            raise errors.InputError(
                ", ".join([*first, store.path]),
                "images",
                f"{len(clashes)} ids name two different pictures: {ids}",
                "ids that mean the same picture in all stores",
                "Prepare one of the stores again under other ids.",
            )


def picture_hashes(crowd: Crowd) -> tuple[str, ...]:
    """`Crowd.image_sha256`, by reading the pictures where the store has no hashes."""
    if crowd.image_sha256:
        return crowd.image_sha256
    # Only a store that is alone lacks them, so its rows are the crowd's.
    return tuple(sha for sha, _ in _read_hashes(crowd.paths[0], crowd.pictures[0]))


def with_images(crowd: Crowd, num_images: int | None, seed: int) -> Crowd:
    """The crowd with a seeded choice of each subject's training pictures.

    Train and val pictures of a subject are put in an order that depends on the seed
    and their ids alone; the first `num_images` stay, a tenth of them (3 or more) as
    val, the others get the split "unused". So 50 pictures are part of 100 of the same
    seed, for whatever is trained on them. Test pictures stay.

    Args:
        crowd: Open stores.
        num_images: Pictures of each subject to keep, val among them; None: all, in
            the splits of the store.
        seed: Of the choice.

    Raises:
        errors.ConfigError: If a subject has fewer.
    """
    if num_images is None:
        return crowd
    short, subjects = [], []
    for subject in crowd.subjects:
        pool = np.flatnonzero(np.isin(subject.split, ("train", "val")))
        places = [schema.share(seed, crowd.image_id[i]) for i in subject.image[pool]]
        chosen = pool[np.argsort(places, kind="stable")][:num_images]
        if len(chosen) < num_images:
            short.append(f"{subject.name} has {len(pool)}")
        split = np.where(subject.split == "test", "test", "unused").astype("<U6")
        split[chosen] = "train"
        split[chosen[_val_places(len(chosen))]] = "val"
        subjects.append(subject._replace(split=split))
    if short:
        raise errors.ConfigError(
            "num_images",
            "",
            f"{num_images} pictures, but {'; '.join(short)} to train on",
            "no more than every subject has",
            "Take a smaller number, or leave it out to use all.",
        )
    return crowd._replace(subjects=tuple(subjects))


def _val_places(count: int) -> np.ndarray:
    """Places of the val pictures among `count`: 0, 10, 20, ... and 3 or more.

    Example:
        >>> _val_places(45).tolist(), _val_places(8).tolist()
        ([0, 10, 20, 30, 40], [0, 1, 2])
    """
    return np.arange(3) if count <= 20 else np.arange(0, count, 10)


def read_pictures(crowd: Crowd, rows: np.ndarray) -> np.ndarray:
    """Pictures (B, y, x, 3) uint8 of rows (B,) of `Crowd.image_id`, in one read."""
    rows = _checked(rows, len(crowd.image_id), "image")
    shape = (len(rows), crowd.image_px, crowd.image_px, 3)
    out = np.empty(shape, np.uint8)
    for k in np.unique(crowd.image_store[rows]):
        mine = crowd.image_store[rows] == k
        out[mine] = _read(crowd.pictures[k], crowd.image_row[rows[mine]])
    return out


def read_responses(subject: SubjectRows, samples: np.ndarray) -> np.ndarray:
    """Responses (B, V) float32 of samples (B,), in one read."""
    samples = _checked(samples, subject.responses.shape[0], "sample")
    values = _read(subject.responses, samples)
    if not np.isfinite(values).all():
        row, voxel = np.argwhere(~np.isfinite(values))[0]
        raise _damaged(
            _folder(subject.responses),
            f"sample {samples[row]}",
            f"{values[row, voxel]} in voxel {voxel}",
            "finite responses",
        )
    return values


def _read(array: tensorstore.TensorStore, rows: np.ndarray) -> np.ndarray:
    """Some rows of an array, in one read."""
    try:
        return array.oindex[rows].read().result()
    except (ValueError, OSError) as error:
        found = f"cannot be read ({error})"
        raise _damaged(_folder(array), "", found, "whole files") from error


def _folder(array: tensorstore.TensorStore) -> str:
    """Where an array lies, for messages."""
    return array.kvstore.path if array.kvstore else "an array"


def _checked(rows: np.ndarray, size: int, what: str) -> np.ndarray:
    """Row numbers as int64 inside 0..size-1; JAX and TensorStore would not say."""
    rows = np.asarray(rows)
    if rows.dtype.kind not in "iu" and rows.size:
        raise TypeError(f"{what} rows are {rows.dtype}, not integers")
    if rows.size and (rows.min() < 0 or rows.max() >= size):
        raise IndexError(f"{what} rows {rows.min()}..{rows.max()}; have 0..{size - 1}")
    return rows.astype(np.int64)


def write_xarray(
    table: xarray.Dataset,
    path: pathlib.Path,
    fill: Callable[[zarr.Group], None] | None = None,
) -> None:
    """A small xarray dataset as Zarr v3, under its name only when whole.

    Args:
        table: The dataset.
        path: Folder to make, or to replace.
        fill: Adds to the group what is too large for memory.
    """
    with whole.folder(path) as partial, quiet_zarr():
        table.to_zarr(partial, zarr_format=3, consolidated=True)
        if fill is not None:
            fill(zarr.open_group(partial))
            zarr.consolidate_metadata(partial)
