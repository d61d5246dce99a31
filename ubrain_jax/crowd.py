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
import shutil
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorstore
import tqdm
import xarray
import zarr
import zarr.errors

import ubrain_jax
from ubrain_jax import errors
from ubrain_jax.datasets import pictures, schema

FORMAT = "ubrain-crowd"
VERSION = 1
SPLITS = ("train", "val", "test")

# A shard is one file; rows inside it are read alone.
_SHARD_BYTES = 32 * 2**20


class SubjectRows(NamedTuple):
    """One subject of an open crowd: M samples, V voxels.

    Attributes:
        name: For example "nsd-subj01".
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
        image_id: Ids of the distinct pictures of all stores.
        image_store: For each picture the store that serves it.
        image_row: and its row there.
        pictures: For each store, its pictures (rows, y, x, 3) in TensorStore.
        image_px: Side of the pictures in pixels.
        attrs: Root attributes of each store.
        fingerprint: Hash of everything but pixels and responses; a run refuses to
            resume on a crowd with another one.
    """

    paths: tuple[str, ...]
    subjects: tuple[SubjectRows, ...]
    image_id: tuple[str, ...]
    image_store: np.ndarray
    image_row: np.ndarray
    pictures: tuple[tensorstore.TensorStore, ...]
    image_px: int
    attrs: tuple[dict[str, Any], ...]
    fingerprint: str

    @property
    def num_voxels(self) -> int:
        """Voxels of all subjects (V of the table)."""
        return sum(s.num_voxels for s in self.subjects)


@contextlib.contextmanager
def _quiet_zarr() -> Iterator[None]:
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
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise errors.OutputError(
            path, "", str(error), "a folder that can be written", "Choose another --out."
        ) from error
    try:
        with _quiet_zarr():
            counts = _write_into(partial, dataset, image_px)
        if target.exists():  # rename first: a kill leaves either store whole
            old = target.with_name(f"{target.name}.old-{os.getpid()}")
            target.rename(old)
            partial.rename(target)
            shutil.rmtree(old)
        else:
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


def check_target(path: str, overwrite: bool) -> pathlib.Path:
    """Refuses an output that exists, unless it is a store to be replaced."""
    target = pathlib.Path(path)
    if target.exists() and not overwrite:
        raise errors.OutputError(
            path, "", "exists", "a new path", "Choose another --out or pass --overwrite."
        )
    if target.exists() and not (target / "zarr.json").exists():
        raise errors.OutputError(
            path,
            "",
            "exists and is no store",
            "a store to replace or a new path",
            "Nothing was deleted; choose another --out.",
        )
    return target


def _write_into(
    folder: pathlib.Path, dataset: schema.Dataset, image_px: int
) -> dict[str, Any]:
    """Fills an empty folder with the store."""
    root = zarr.open_group(folder, mode="w", zarr_format=3)
    subjects = root.create_group("subjects")
    rows: dict[str, int] = {}  # image id -> row, by first appearance
    split_of: dict[str, tuple[str, str]] = {}  # image id -> split, subject
    counts: dict[str, Any] = {"subjects": {}, "images": 0}
    for subject in dataset.subjects:
        _check_subject(subject, split_of)
        image = [rows.setdefault(i, len(rows)) for i in subject.image_id]
        group = subjects.create_group(subject.name, attributes=dict(subject.attrs))
        _put_rows(group, "responses", subject.responses, ("sample", "voxel"))
        _put(group, "image", np.asarray(image, np.int32), ("sample",))
        _put(group, "split", np.asarray(subject.split, str), ("sample",))
        _put(group, "repeats", subject.repeats.astype(np.uint8), ("sample",))
        _put(group, "ncsnr", subject.ncsnr.astype(np.float32), ("voxel",))
        _put(group, "position", subject.position.astype(np.int32), ("voxel", "axis"))
        _put(group, "roi", subject.roi.astype(bool), ("voxel", "roi_name"))
        _put(group, "roi_name", np.asarray(subject.roi_names, str), ("roi_name",))
        counts["subjects"][subject.name] = {
            "voxels": subject.responses.shape[1],
            **{s: int(np.sum(np.asarray(subject.split) == s)) for s in SPLITS},
        }
    if not counts["subjects"]:
        raise errors.MissingInputError(
            dataset.name, "", "no subject was read", "one or more", "Check --subjects."
        )
    counts["images"] = len(rows)
    _write_pictures(root, dataset, list(rows), split_of, image_px)
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
    return counts


def _check_subject(
    subject: schema.Subject, split_of: dict[str, tuple[str, str]]
) -> None:
    """Refuses a table that contradicts itself or an earlier subject."""
    where, (m, v) = f"subject {subject.name}", subject.responses.shape
    lengths = {
        "image_id": (len(subject.image_id), m),
        "split": (len(subject.split), m),
        "repeats": (len(subject.repeats), m),
        "ncsnr": (len(subject.ncsnr), v),
        "position": (len(subject.position), v),
        "roi": (len(subject.roi), v),
    }
    faults = [
        f"{name} has {found} rows for {expected}"
        for name, (found, expected) in lengths.items()
        if found != expected
    ]
    if m == 0 or v == 0:
        faults.append(f"{m} samples of {v} voxels")
    if len(set(subject.image_id)) != len(subject.image_id):
        faults.append("an image id occurs twice; repeats are averaged by the reader")
    if unknown := set(subject.split) - set(SPLITS):
        faults.append(f"splits {sorted(unknown)}")
    bad = np.argwhere(~np.isfinite(subject.responses[:: max(1, m // 50)]))
    if len(bad):
        faults.append(f"non-finite responses, first in voxel {bad[0][1]}")
    for image_id, split in zip(subject.image_id, subject.split, strict=True):
        before, other = split_of.setdefault(image_id, (str(split), subject.name))
        if (before == "test") != (split == "test"):
            faults.append(
                f"image {image_id} is {split} here and {before} for {other}: a leak"
            )
            break
    if faults:
        raise errors.InputError(
            where,
            "",
            "; ".join(faults),
            "one row for each sample and voxel, splits by image, finite responses",
            "The reader is at fault or the files changed while being read.",
        )


def _write_pictures(
    root: zarr.Group,
    dataset: schema.Dataset,
    ids: list[str],
    split_of: dict[str, tuple[str, str]],
    image_px: int,
) -> None:
    """Pictures in the order of their rows; the same bytes in train and test: error."""
    shape = (len(ids), image_px, image_px, 3)
    array, shard = _create_rows(root, "images", shape, np.uint8, ("image", "y", "x", "rgb"))
    seen: dict[bytes, str] = {}
    twins, leaks, constant = [], [], []
    block = np.empty((min(shard, len(ids)), *shape[1:]), np.uint8)
    start = 0
    stream = dataset.read_images(ids)
    progress = tqdm.tqdm(ids, desc="images", unit="image", disable=None)
    for row, image_id in enumerate(progress):
        picture = pictures.fit(next(stream), image_px)
        block[row - start] = picture
        digest = hashlib.sha256(picture.tobytes()).digest()
        twin = seen.setdefault(digest, image_id)
        if twin != image_id:
            twins.append((twin, image_id))
            tests = [split_of[i][0] == "test" for i in (twin, image_id)]
            if any(tests) and not all(tests):
                leaks.append((twin, image_id))
        if picture.max() == picture.min():
            constant.append(image_id)
        if row - start == len(block) - 1 or row == len(ids) - 1:
            array[start : row + 1] = block[: row + 1 - start]
            start = row + 1
    if leaks:
        raise errors.InputError(
            dataset.name,
            "images",
            f"{len(leaks)} pictures stand in train and test under two ids "
            f"(first: {leaks[0][0]} and {leaks[0][1]})",
            "a test picture in no train split",
            "Remove one of each pair; scores would be of pictures already seen.",
        )
    if twins:
        dataset.report.append(
            f"{len(twins)} pictures occur under two ids (first: {twins[0]})"
        )
    if constant:
        dataset.report.append(
            f"{len(constant)} of {len(ids)} images are constant (first: {constant[0]})"
        )
    _put(root, "image_id", np.asarray(ids, str), ("image",))


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
    )
    array[...] = values.astype(object) if text else values


def _create_rows(
    group: zarr.Group, name: str, shape: tuple, dtype: Any, dims: tuple
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
    )
    return array, shard


def _put_rows(group: zarr.Group, name: str, values: np.ndarray, dims: tuple) -> None:
    """A large array, written a shard at a time."""
    array, shard = _create_rows(group, name, values.shape, np.float32, dims)
    for start in range(0, len(values), shard):
        array[start : start + shard] = values[start : start + shard]


def open_crowd(paths: Sequence[str], subjects: Sequence[str] = ()) -> Crowd:
    """Opens stores and checks that they make one sound crowd.

    Args:
        paths: One or several stores.
        subjects: Names to keep, in this order; empty: all, in the order of storing.

    Raises:
        errors.MissingInputError: If a store is absent.
        errors.InputError: If a store is damaged or of another version, a subject
            occurs twice, or a test picture is in another subject's train split.
    """
    groups, attrs, images = [], [], []
    for path in paths:
        group = _open_store(path)
        groups.append(group)
        attrs.append(dict(group.attrs))
        images.append(_tensorstore(path, "images"))
    sizes = {tuple(a.shape[1:]) for a in images}
    if len(sizes) > 1:
        raise errors.InputError(
            ", ".join(paths),
            "images",
            f"pictures of sizes {sorted(s[0] for s in sizes)}",
            "one size in all stores",
            "Prepare them again with one --image_px.",
        )
    row_of: dict[str, int] = {}
    store_of, row_in = [], []
    found: dict[str, tuple[int, Any]] = {}
    renumber = []
    for k, group in enumerate(groups):
        ids = [str(i) for i in group["image_id"][...]]
        for row, image_id in enumerate(ids):
            if image_id not in row_of:
                row_of[image_id] = len(row_of)
                store_of.append(k)
                row_in.append(row)
        renumber.append(np.asarray([row_of[i] for i in ids], np.int64))
        for name in sorted(group["subjects"].keys()):
            if name in found:
                raise errors.InputError(
                    paths[k],
                    f"subjects/{name}",
                    f"the name is taken by {paths[found[name][0]]}",
                    "subjects with names of their own",
                    "Leave one store out or prepare it again under another name.",
                )
            found[name] = (k, group["subjects"][name])
    for name in subjects:
        if name not in found:
            raise errors.ConfigError(
                "data.subjects",
                "",
                f"{name!r} is in no store",
                "a subject of the stores",
                errors.nearest(name, found),
            )
    rows, offset = [], 0
    for name in subjects or found:
        k, group = found[name]
        subject = _open_subject(paths[k], name, group, offset, renumber[k])
        rows.append(subject)
        offset += subject.num_voxels
    ids = tuple(row_of)
    opened = Crowd(
        paths=tuple(paths),
        subjects=tuple(rows),
        image_id=ids,
        image_store=np.asarray(store_of),
        image_row=np.asarray(row_in),
        pictures=tuple(images),
        image_px=images[0].shape[1],
        attrs=tuple(attrs),
        fingerprint=_fingerprint(rows, ids),
    )
    _refuse_leaks(opened)
    return opened


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
    try:
        with _quiet_zarr():
            group = zarr.open_group(path, mode="r")
            attrs = dict(group.attrs)
    except (zarr.errors.BaseZarrError, FileNotFoundError, ValueError) as error:
        raise errors.InputError(
            path, "", f"cannot be opened ({error})", "a Zarr v3 store", "Prepare it again."
        ) from error
    if attrs.get("format") != FORMAT or attrs.get("version") != VERSION:
        raise errors.InputError(
            path,
            "zarr.json",
            f"format {attrs.get('format')!r} version {attrs.get('version')!r}",
            f"{FORMAT!r} version {VERSION}",
            "Prepare the dataset again with this version of ubrain_jax.",
        )
    return group


def _open_subject(
    path: str, name: str, group: zarr.Group, offset: int, renumber: np.ndarray
) -> SubjectRows:
    """Reads a subject's small arrays; its responses stay on disk."""
    where = f"subjects/{name}"
    names = ("image", "split", "repeats", "ncsnr", "position", "roi", "roi_name")
    missing = [n for n in (*names, "responses") if n not in group]
    if missing:
        raise errors.InputError(
            path,
            where,
            f"{', '.join(missing)} missing",
            "every array of the store's layout",
            "The store is damaged; prepare it again.",
        )
    with _quiet_zarr():
        image, split, repeats, ncsnr, position, roi, roi_names = (
            group[n][...] for n in names
        )
    responses = _tensorstore(path, f"{where}/responses")
    m, v = responses.shape
    if len(image) != m or len(split) != m or len(ncsnr) != v or len(roi) != v:
        raise errors.InputError(
            path,
            where,
            f"responses are {(m, v)}, with {len(image)} images, {len(ncsnr)} ncsnr",
            "equal lengths",
            "The store is damaged; prepare it again.",
        )
    if m and (image.min() < 0 or image.max() >= len(renumber)):
        raise errors.InputError(
            path,
            f"{where}/image",
            f"rows {image.min()}..{image.max()}",
            f"0..{len(renumber) - 1}",
            "The store is damaged; prepare it again.",
        )
    return SubjectRows(
        name,
        offset,
        v,
        responses,
        renumber[image.astype(np.int64)],
        np.array([str(s) for s in split]),
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
            {"driver": "zarr3", "kvstore": kvstore},
            read=True,
            context=tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}}),
        ).result()
    except (ValueError, OSError) as error:
        raise errors.InputError(
            path,
            name,
            f"cannot be read ({str(error).splitlines()[0]})",
            "an array",
            "The store is damaged; prepare it again.",
        ) from error


def _fingerprint(subjects: Sequence[SubjectRows], ids: Sequence[str]) -> str:
    """Hash of ids, splits and voxels, on which every batch depends."""
    digest = hashlib.sha256()
    for s in subjects:
        head = [s.name, s.offset, s.num_voxels, list(s.responses.shape)]
        digest.update(json.dumps(head).encode())
        digest.update(json.dumps([ids[i] for i in s.image]).encode())
        digest.update(json.dumps(s.split.tolist()).encode())
    return digest.hexdigest()


def _refuse_leaks(crowd: Crowd) -> None:
    """No picture may be test for one subject and train or val for another."""
    roles: dict[Any, dict[bool, tuple[str, str]]] = {}
    keys: Sequence[Any] = crowd.image_id
    kind = "id"
    if len(crowd.paths) > 1:
        keys, kind = _content(crowd), "content"
    for subject in crowd.subjects:
        for row, split in zip(subject.image, subject.split, strict=True):
            role = roles.setdefault(keys[row], {})
            role.setdefault(split == "test", (crowd.image_id[row], subject.name))
    leaks = [role for role in roles.values() if len(role) == 2]
    if leaks:
        (train_id, train), (test_id, test) = leaks[0][False], leaks[0][True]
        raise errors.InputError(
            ", ".join(crowd.paths),
            "split",
            f"{len(leaks)} pictures are test for one subject and train for another, by "
            f"{kind} (first: {test_id} of {test}, {train_id} of {train})",
            "splits by picture over all stores of a run",
            "Prepare the stores with one rule, or leave a subject out (data.subjects).",
        )


def _content(crowd: Crowd) -> list[bytes]:
    """Hash of each picture's pixels; ids of several stores may differ for one."""
    hashes = []
    rows = range(0, len(crowd.image_id), 256)
    for start in tqdm.tqdm(rows, desc="compare pictures of the stores", disable=None):
        block = read_pictures(
            crowd, np.arange(start, min(start + 256, len(crowd.image_id)))
        )
        hashes += [hashlib.sha256(p.tobytes()).digest() for p in block]
    return hashes


def read_pictures(crowd: Crowd, rows: np.ndarray) -> np.ndarray:
    """Pictures (B, y, x, 3) uint8 of rows (B,) of `Crowd.image_id`, in one read."""
    rows = _checked(rows, len(crowd.image_id), "image")
    shape = (len(rows), crowd.image_px, crowd.image_px, 3)
    out = np.empty(shape, np.uint8)
    for k in np.unique(crowd.image_store[rows]):
        mine = crowd.image_store[rows] == k
        handle = crowd.pictures[k].oindex[crowd.image_row[rows[mine]]]
        out[mine] = handle.read().result()
    return out


def read_responses(subject: SubjectRows, samples: np.ndarray) -> np.ndarray:
    """Responses (B, V) float32 of samples (B,), in one read."""
    samples = _checked(samples, subject.responses.shape[0], "sample")
    return subject.responses.oindex[samples].read().result()


def _checked(rows: np.ndarray, size: int, what: str) -> np.ndarray:
    """Row numbers as int64 inside 0..size-1; JAX and TensorStore would not say."""
    rows = np.asarray(rows, np.int64)
    if rows.size and (rows.min() < 0 or rows.max() >= size):
        raise IndexError(f"{what} rows {rows.min()}..{rows.max()}; have 0..{size - 1}")
    return rows


def write_xarray(table: xarray.Dataset, path: pathlib.Path) -> None:
    """A small xarray dataset as Zarr v3, under its name only when whole."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    with _quiet_zarr():
        table.to_zarr(partial, zarr_format=3, consolidated=False)
    if path.exists():
        old = path.with_name(f"{path.name}.old-{os.getpid()}")
        path.rename(old)
        partial.rename(path)
        shutil.rmtree(old)
    else:
        partial.rename(path)
