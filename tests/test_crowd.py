"""The store: its layout, that it is whole or absent, and what opening refuses."""

import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import warnings

import numpy as np
import pytest
import xarray
import zarr

from ubrain_jax import crowd, errors, lookalikes, whole
from ubrain_jax.datasets import pictures

NAME = "t-subj01"
# Name of an array under subjects/NAME: its dimensions and type.
LAYOUT = {
    "responses": (("sample", "voxel"), np.dtype(np.float32)),
    "image": (("sample",), np.dtype(np.int32)),
    "split": (("sample",), np.dtypes.StringDType()),
    "repeats": (("sample",), np.dtype(np.uint8)),
    "ncsnr": (("voxel",), np.dtype(np.float32)),
    "position": (("voxel", "axis"), np.dtype(np.int32)),
    "roi": (("voxel", "roi_name"), np.dtype(bool)),
    "roi_name": (("roi_name",), np.dtypes.StringDType()),
}


@pytest.fixture
def copy(store, tmp_path):
    """A copy of the session's store that a test may damage."""
    path = tmp_path / "copy.zarr"
    shutil.copytree(store, path)
    return path


def with_subjects(dataset, change):
    """The dataset with `change` applied to the list of its subjects."""
    return dataset._replace(subjects=iter(change(list(dataset.subjects))))


def changed(dataset, **fields):
    """The dataset with fields of its first subject replaced."""
    return with_subjects(dataset, lambda s: [s[0]._replace(**fields), *s[1:]])


def renamed(dataset, name, ids=None, start=0):
    """One subject of the dataset under another name and other image ids."""

    def one(subjects):
        subject = subjects[start]
        new = [ids(i) if ids else i for i in subject.image_id]
        return [subject._replace(name=name, image_id=new)]

    return with_subjects(dataset, one)


def around(path):
    """Names beside a path, itself included."""
    return sorted(p.name for p in pathlib.Path(path).parent.iterdir())


# Layout


def test_layout_is_the_documented_one(store):
    root = zarr.open_group(store, mode="r")
    assert root.metadata.zarr_format == 3
    assert root.attrs["format"] == "ubrain-crowd"
    assert root.attrs["version"] == 1
    assert root.attrs["dataset"] == "t"
    assert root.attrs["created_by"].startswith("ubrain_jax ")
    assert root.attrs["sources"] == []
    hashes = ["image_phash", "image_sha256"]
    assert sorted(root.keys()) == ["image_id", *hashes, "images", "subjects"]
    assert sorted(root["subjects"].keys()) == ["t-subj01", "t-subj02"]
    for name, (dims, dtype) in LAYOUT.items():
        array = root[f"subjects/{NAME}/{name}"]
        assert array.metadata.dimension_names == dims, name
        assert array[...].dtype == dtype, name
    assert sorted(root[f"subjects/{NAME}"].keys()) == sorted(LAYOUT)
    assert root["images"].metadata.dimension_names == ("image", "y", "x", "rgb")
    assert root["images"].dtype == np.uint8
    for name in ("image_id", *hashes):
        assert root[name].metadata.dimension_names == ("image",)
        assert root[name].shape == (28,)
    assert root["image_phash"].dtype == np.uint64


def test_rows_are_inner_chunks_of_shards_without_compression(store):
    for name, row in (("images", (28, 28, 3)), (f"subjects/{NAME}/responses", (37,))):
        meta = json.loads((pathlib.Path(store) / name / "zarr.json").read_text())
        (codec,) = meta["codecs"]
        assert codec["name"] == "sharding_indexed"
        assert codec["configuration"]["chunk_shape"] == [1, *row]
        inner = [c["name"] for c in codec["configuration"]["codecs"]]
        assert inner == ["bytes"]
        shard = meta["chunk_grid"]["configuration"]["chunk_shape"]
        assert shard == [meta["shape"][0], *row]


def test_xarray_opens_every_group_without_a_warning(store):
    root = xarray.open_zarr(store)
    assert root.images.dims == ("image", "y", "x", "rgb")
    subject = xarray.open_zarr(store, group=f"subjects/{NAME}")
    assert {k: v.dims for k, v in subject.variables.items()} == {
        name: dims for name, (dims, _) in LAYOUT.items()
    }
    assert list(subject.roi.coords["roi_name"].values) == ["first", "second"]
    assert len(subject.attrs.pop("responses_sha256")) == 64
    assert subject.attrs == {"dataset": "t", "space": "none", "simulated": True}
    tests = subject.responses[(subject.split == "test").values]
    assert tests.shape == (4, 37)


def test_what_the_reader_gave_comes_back_through_all_three_readers(store, make_dataset):
    opened = crowd.open_crowd((store,))
    by_zarr = zarr.open_group(store, mode="r")
    offset = 0
    for given, subject in zip(make_dataset().subjects, opened.subjects, strict=True):
        group = f"subjects/{given.name}"
        by_xarray = xarray.open_zarr(store, group=group)
        rows = np.arange(len(given.image_id))
        assert (subject.name, subject.offset) == (given.name, offset)
        assert subject.num_voxels == given.responses.shape[1]
        offset += subject.num_voxels
        for values in (
            crowd.read_responses(subject, rows),
            by_zarr[f"{group}/responses"][...],
            by_xarray.responses.values,
        ):
            np.testing.assert_array_equal(values, given.responses)
        ids = [opened.image_id[i] for i in subject.image]
        assert ids == list(given.image_id)
        assert list(by_zarr["image_id"][...][by_xarray.image.values]) == ids
        np.testing.assert_array_equal(subject.split, given.split)
        np.testing.assert_array_equal(subject.repeats, given.repeats)
        np.testing.assert_array_equal(subject.ncsnr, given.ncsnr)
        np.testing.assert_array_equal(subject.position, given.position)
        np.testing.assert_array_equal(subject.roi, given.roi)
        np.testing.assert_array_equal(subject.samples("val"), [13, 14, 15])
        assert subject.roi_names == tuple(given.roi_names)
        digest = hashlib.sha256(given.responses.tobytes()).hexdigest()
        assert subject.attrs == {**given.attrs, "responses_sha256": digest}
    assert opened.num_voxels == offset == 60
    given = [pictures.fit(p, 28) for p in make_dataset().read_images(opened.image_id)]
    rows = np.arange(len(given))
    np.testing.assert_array_equal(crowd.read_pictures(opened, rows), given)
    np.testing.assert_array_equal(by_zarr["images"][...], given)


def test_rows_are_read_in_the_order_asked_for(store):
    opened = crowd.open_crowd((store,))
    every = crowd.read_pictures(opened, np.arange(28))
    rows = np.array([27, 3, 3, 0])
    np.testing.assert_array_equal(crowd.read_pictures(opened, rows), every[rows])
    subject = opened.subjects[1]
    table = crowd.read_responses(subject, np.arange(16))
    rows = np.array([15, 0, 7, 7])
    np.testing.assert_array_equal(crowd.read_responses(subject, rows), table[rows])
    assert crowd.read_pictures(opened, np.array([], int)).shape == (0, 28, 28, 3)
    assert crowd.read_responses(subject, np.array([], int)).shape == (0, 23)


def test_several_shards_hold_the_same_values(tmp_path, make_dataset, monkeypatch):
    path = tmp_path / "t.zarr"
    monkeypatch.setattr(crowd, "_SHARD_BYTES", 5 * 28 * 28 * 3)  # 5 pictures a file
    crowd.write(str(path), make_dataset(voxels=(2400, 10)), image_px=28)
    assert len(os.listdir(path / "images/c")) == 6  # 28 pictures
    assert len(os.listdir(path / f"subjects/{NAME}/responses/c")) == 16
    opened = crowd.open_crowd((str(path),))
    given = [pictures.fit(p, 28) for p in make_dataset().read_images(opened.image_id)]
    np.testing.assert_array_equal(crowd.read_pictures(opened, np.arange(28)), given)
    first = next(make_dataset(voxels=(2400, 10)).subjects)
    np.testing.assert_array_equal(
        crowd.read_responses(opened.subjects[0], np.arange(16)), first.responses
    )


def test_counts_name_voxels_and_splits(tmp_path, make_dataset):
    counts = crowd.write(str(tmp_path / "t.zarr"), make_dataset(), image_px=28)
    assert counts == {
        "subjects": {
            "t-subj01": {"voxels": 37, "train": 9, "val": 3, "test": 4},
            "t-subj02": {"voxels": 23, "train": 9, "val": 3, "test": 4},
        },
        "images": 28,
    }


def test_names_in_other_scripts_and_no_regions(tmp_path, make_dataset):
    path = str(tmp_path / "Köpfe 頭.zarr")
    first = next(make_dataset().subjects)
    ids = [f"ü/頭 {i}" for i in range(len(first.image_id))]
    given = first._replace(
        name="Jürgen 一号",
        image_id=ids,
        roi=np.zeros((37, 0), bool),
        roi_names=(),
    )
    dataset = make_dataset()

    def read_images(asked):
        assert list(asked) == ids
        return make_dataset().read_images(first.image_id)

    dataset = dataset._replace(subjects=iter([given]), read_images=read_images)
    crowd.write(path, dataset, image_px=28)
    opened = crowd.open_crowd((path,), ("Jürgen 一号",))
    assert opened.image_id == tuple(ids)
    assert opened.subjects[0].roi.shape == (37, 0)
    assert opened.subjects[0].roi_names == ()
    group = xarray.open_zarr(path, group="subjects/Jürgen 一号")
    np.testing.assert_array_equal(group.responses.values, given.responses)


def test_black_pictures_and_zero_responses_are_values_not_losses(
    tmp_path, make_dataset
):
    path = str(tmp_path / "t.zarr")
    first = next(make_dataset().subjects)
    zeros = np.zeros_like(first.responses)
    dataset = make_dataset()._replace(
        subjects=iter([first._replace(responses=zeros, split=["train"] * 16)]),
        read_images=lambda ids: (np.zeros((28, 28, 3), np.uint8) for _ in ids),
    )
    crowd.write(path, dataset, image_px=28)
    opened = crowd.open_crowd((path,))
    assert not crowd.read_pictures(opened, np.arange(16)).any()
    assert not crowd.read_responses(opened.subjects[0], np.arange(16)).any()
    assert opened.attrs[0]["report"] == [
        "15 pictures occur under two ids (first: ('t/0000', 't/0001'))",
        "16 of 16 images are constant (first: t/0000)",
    ]


# Written whole or not at all


class ReaderError(Exception):
    """What a test's reader raises; nothing in the package knows it."""


def late_subjects(dataset):
    def subjects():
        yield next(dataset.subjects)
        raise ReaderError

    return dataset._replace(subjects=subjects())


def late_pictures(dataset):
    def read_images(ids):
        yield from list(dataset.read_images(ids[:7]))
        raise ReaderError

    return dataset._replace(read_images=read_images)


def interrupted_pictures(dataset):
    def read_images(ids):
        yield from list(dataset.read_images(ids[:7]))
        raise KeyboardInterrupt

    return dataset._replace(read_images=read_images)


@pytest.mark.parametrize(
    ("change", "raised"),
    [
        (late_subjects, ReaderError),
        (late_pictures, ReaderError),
        (interrupted_pictures, KeyboardInterrupt),
    ],
)
def test_a_failing_reader_leaves_nothing(tmp_path, make_dataset, change, raised):
    with pytest.raises(raised):
        crowd.write(str(tmp_path / "t.zarr"), change(make_dataset()), image_px=28)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_while_reading_is_not_blamed_on_the_output(
    tmp_path, make_dataset
):
    def read_images(ids):
        yield from make_dataset().read_images(ids[:2])
        raise OSError(errno.EIO, "Input/output error", "/data/nsd/stimuli.hdf5")

    dataset = make_dataset()._replace(read_images=read_images)
    with pytest.raises(errors.InputError, match=r"stimuli\.hdf5: cannot be read"):
        crowd.write(str(tmp_path / "t.zarr"), dataset, image_px=28)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path, make_dataset):
    path = str(tmp_path / "t.zarr")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))  # pictures: 66 kB
    try:
        with pytest.raises(errors.OutputError, match=r"t\.zarr: cannot be written"):
            crowd.write(path, make_dataset(), image_px=28)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    crowd.write(path, make_dataset(), image_px=28)


WRITE_AND_HANG = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("conftest", sys.argv[1])
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)
dataset = conftest.make_dataset()
def read_images(ids):
    yield from list(dataset.read_images(ids[:7]))
    print("middle", flush=True)
    time.sleep(600)
conftest.crowd.write(
    sys.argv[2], dataset._replace(read_images=read_images), image_px=28, overwrite=True
)
"""


def test_kill_in_the_middle_keeps_the_old_store_and_the_next_write_cleans(
    copy, make_dataset
):
    before = crowd.open_crowd((str(copy),))
    conftest = pathlib.Path(__file__).with_name("conftest.py")
    command = [sys.executable, "-c", WRITE_AND_HANG, str(conftest), str(copy)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline() == "middle\n"
            (partial,) = (n for n in around(copy) if n != copy.name)
            assert partial.startswith(f"{copy.name}.partial-")
            # While it lives, another writer leaves its folder alone.
            crowd.write(str(copy), make_dataset(seed=1), image_px=28, overwrite=True)
            assert around(copy) == [copy.name, partial]
        finally:
            child.send_signal(signal.SIGKILL)
        assert child.wait(20) == -signal.SIGKILL
    assert around(copy) == [copy.name, partial]
    opened = crowd.open_crowd((str(copy),))
    # The other store: same ids, splits and voxels, but not the same responses.
    assert opened.fingerprint != before.fingerprint
    first = next(make_dataset(seed=1).subjects)
    rows = np.arange(16)
    np.testing.assert_array_equal(
        crowd.read_responses(opened.subjects[0], rows), first.responses
    )
    crowd.write(str(copy), make_dataset(seed=2), image_px=28, overwrite=True)
    assert around(copy) == [copy.name]


def test_overwriting_keeps_the_old_store_until_the_new_one_is_whole(copy, make_dataset):
    def files():
        return {p: p.read_bytes() for p in sorted(copy.rglob("*")) if p.is_file()}

    before = files()
    with pytest.raises(ReaderError):
        crowd.write(
            str(copy), late_pictures(make_dataset(seed=1)), image_px=28, overwrite=True
        )
    assert files() == before
    assert around(copy) == [copy.name]
    crowd.write(str(copy), make_dataset(seed=1), image_px=28, overwrite=True)
    assert around(copy) == [copy.name]
    first = next(make_dataset(seed=1).subjects)
    opened = crowd.open_crowd((str(copy),))
    np.testing.assert_array_equal(
        crowd.read_responses(opened.subjects[0], np.array([5])), first.responses[[5]]
    )


def test_a_store_that_was_moved_aside_is_not_lost(copy, make_dataset):
    """A kill between the two renames of an overwrite leaves the old store aside."""
    aside = copy.rename(f"{copy}.old-0a1b2c3d")
    with pytest.raises(ReaderError):
        crowd.write(str(copy), late_pictures(make_dataset()), image_px=28)
    assert crowd.open_crowd((str(aside),)).num_voxels == 60
    crowd.write(str(copy), make_dataset(), image_px=28)
    assert around(copy) == [copy.name]


def test_an_output_that_exists_is_refused_before_anything_is_read(copy, make_dataset):
    dataset = make_dataset()
    with pytest.raises(errors.OutputError, match="exists") as caught:
        crowd.write(str(copy), dataset, image_px=28)
    assert caught.value.exit_code == 73
    assert next(dataset.subjects).name == "t-subj01"  # still unread


@pytest.mark.parametrize("kind", ["folder", "other zarr", "file"])
def test_what_is_no_store_is_never_overwritten(tmp_path, make_dataset, kind):
    path = tmp_path / "thesis"
    if kind == "folder":
        path.mkdir()
        (path / "chapter.txt").write_text("years of work")
    elif kind == "other zarr":
        zarr.open_group(path, mode="w", attributes={"format": "other"})
    else:
        path.write_text("years of work")
    before = {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    with pytest.raises(errors.OutputError, match="is no store"):
        crowd.write(str(path), make_dataset(), image_px=28, overwrite=True)
    assert {p: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")} == before


def test_a_store_that_appears_meanwhile_is_not_replaced(store, tmp_path, make_dataset):
    path = tmp_path / "t.zarr"

    def read_images(ids):
        shutil.copytree(store, path)
        return make_dataset().read_images(ids)

    dataset = make_dataset(seed=1)._replace(read_images=read_images)
    with pytest.raises(errors.OutputError, match="exists"):
        crowd.write(str(path), dataset, image_px=28)
    assert around(path) == ["t.zarr"]


@pytest.mark.parametrize("path", ["gs://bucket/t.zarr", "s3://bucket/t.zarr"])
def test_remote_outputs_are_refused_not_written_to_a_folder_gs(
    tmp_path, make_dataset, monkeypatch, path
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.OutputError, match="not a local folder"):
        crowd.write(path, make_dataset(), image_px=28)
    assert list(tmp_path.iterdir()) == []


def test_an_output_below_a_file_is_an_output_error(tmp_path, make_dataset):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.OutputError, match="cannot be written"):
        crowd.write(str(tmp_path / "file" / "t.zarr"), make_dataset(), image_px=28)


# What a reader may not give


def nan_in_the_last_row(subject):
    values = subject.responses.copy()
    values[-1, 5] = np.nan
    return {"responses": values}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan_in_the_last_row, "non-finite responses, first in sample 15 voxel 5"),
        (lambda s: {"responses": np.full_like(s.responses, np.inf)}, "sample 0 voxel"),
        (lambda s: {"responses": s.responses[:, :0]}, "16 samples of 0 voxels"),
        (lambda s: {"image_id": s.image_id[:-1]}, r"image_id is \(15,\), not \(16,\)"),
        (lambda s: {"split": s.split[:-1]}, r"split is \(15,\), not \(16,\)"),
        (lambda s: {"repeats": s.repeats[:-1]}, r"repeats is \(15,\)"),
        (lambda s: {"ncsnr": s.ncsnr[:-1]}, r"ncsnr is \(36,\), not \(37,\)"),
        (lambda s: {"position": s.position[:, :2]}, r"position is \(37, 2\)"),
        (lambda s: {"roi": s.roi[:, :1]}, r"roi is \(37, 1\), not \(37, 2\)"),
        (lambda s: {"roi_names": ("a", "a")}, "a region's name occurs twice"),
        (lambda s: {"repeats": np.arange(16)}, "repeats 0..15, outside"),
        (lambda s: {"repeats": np.full(16, 300)}, "repeats 300..300, outside"),
        (lambda s: {"split": np.array(["dev"] * 16)}, r"splits \['dev'\]"),
        (lambda s: {"image_id": ["t/1"] * 16}, "an image id occurs twice"),
        (lambda s: {"name": "t-subj02"}, "the name occurs twice"),
        (lambda s: {"name": "../t"}, "the name holds"),
        (lambda s: {"name": ".."}, "the name holds"),
        (lambda s: {"name": ""}, "the name holds"),
        (lambda s: {"name": "a\nb"}, "the name holds"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(
    tmp_path, make_dataset, change, message
):
    first = next(make_dataset().subjects)
    dataset = changed(make_dataset(), **change(first))
    with pytest.raises(errors.InputError, match=message):
        crowd.write(str(tmp_path / "t.zarr"), dataset, image_px=28)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_in_train_of_one_subject_and_test_of_another_is_refused(
    tmp_path, make_dataset
):
    split = next(make_dataset().subjects).split.copy()
    split[2] = "train"  # t/0002 is shared and test for the second
    dataset = changed(make_dataset(), split=split)
    with pytest.raises(errors.InputError, match=r"t/0002 is test here and train for t"):
        crowd.write(str(tmp_path / "t.zarr"), dataset, image_px=28)
    assert list(tmp_path.iterdir()) == []


def test_the_same_bytes_in_train_and_test_are_refused(tmp_path, make_dataset):
    def read_images(ids):
        same = dict(zip(ids, ids, strict=True)) | {"t/2003": "t/0001"}
        return make_dataset().read_images([same[i] for i in ids])

    dataset = make_dataset()._replace(read_images=read_images)
    with pytest.raises(errors.InputError, match=r"t/0001 and t/2003.*--exclude"):
        crowd.write(str(tmp_path / "t.zarr"), dataset, image_px=28)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "message"), [(27, "no picture for t/2011"), (29, "more pictures than")]
)
def test_a_reader_that_miscounts_pictures_is_refused(
    tmp_path, make_dataset, count, message
):
    def read_images(ids):
        return make_dataset().read_images([*ids, "t/extra"][:count])

    dataset = make_dataset()._replace(read_images=read_images)
    with pytest.raises(errors.InputError, match=message):
        crowd.write(str(tmp_path / "t.zarr"), dataset, image_px=28)
    assert list(tmp_path.iterdir()) == []


def test_no_subject_is_missing_input(tmp_path, make_dataset):
    dataset = make_dataset()._replace(subjects=iter(()))
    with pytest.raises(errors.MissingInputError, match="no subject was read"):
        crowd.write(str(tmp_path / "t.zarr"), dataset, image_px=28)


# Opening


def other_store(tmp_path, make_dataset, name="u-subj01", ids=None, **changes):
    """A second store of one subject; its first 4 pictures are test, as `store`'s."""
    path = str(tmp_path / "other.zarr")
    crowd.write(path, renamed(make_dataset(**changes), name, ids, 0), image_px=28)
    return path


def test_a_picture_of_two_stores_is_one_picture_of_both_subjects(
    store, tmp_path, make_dataset
):
    other = other_store(tmp_path, make_dataset, seed=1)
    one = crowd.open_crowd((store,))
    opened = crowd.open_crowd((store, other))
    assert opened.image_id == one.image_id
    assert [s.name for s in opened.subjects] == ["t-subj01", "t-subj02", "u-subj01"]
    assert [s.offset for s in opened.subjects] == [0, 37, 60]
    assert opened.num_voxels == 97
    first, _, third = opened.subjects
    np.testing.assert_array_equal(first.image, third.image)
    assert opened.fingerprint != one.fingerprint


def test_stores_with_own_pictures_serve_each_its_own(store, tmp_path, make_dataset):
    other = other_store(tmp_path, make_dataset, ids=lambda i: i.replace("t/", "u/"))
    # Other ids need other pixels, or the twins would be refused where splits differ.
    a, b = crowd.open_crowd((store,)), crowd.open_crowd((other,))
    opened = crowd.open_crowd((store, other))
    assert opened.image_id == a.image_id + b.image_id
    rows = np.array([40, 2, 28, 27])
    expected = [
        crowd.read_pictures(a if r < 28 else b, np.array([r % 28]))[0] for r in rows
    ]
    np.testing.assert_array_equal(crowd.read_pictures(opened, rows), expected)
    image = opened.subjects[2].image
    assert [opened.image_id[i] for i in image[:2]] == ["u/0000", "u/0001"]


def flipped(subjects):
    """The second subject, with its shared pictures in train and its own in test."""
    subject = subjects[1]
    split = np.where(np.asarray(subject.split) == "test", "train", "test")
    return [subject._replace(name="u-subj01", split=split)]


def test_an_id_in_train_of_one_store_and_test_of_another_is_refused(
    store, tmp_path, make_dataset
):
    path = str(tmp_path / "other.zarr")
    crowd.write(path, with_subjects(make_dataset(), flipped), image_px=28)
    crowd.open_crowd((path,))
    with pytest.raises(errors.InputError, match=r"16 pictures .* by id: ") as caught:
        crowd.open_crowd((store, path))
    message = str(caught.value)
    assert "by id: t/0000 (test of t-subj01, train of u-subj01); t/0001 (" in message
    assert "t/2011 (test of u-subj01, val of t-subj02); expected" in message
    assert store in message
    assert path in message
    # Only the first subject: the shared pictures are what contradicts.
    with pytest.raises(errors.InputError, match="4 pictures are test"):
        crowd.open_crowd((store, path), ("t-subj01", "u-subj01"))
    assert crowd.open_crowd((store, path), ("u-subj01",)).num_voxels == 23


def test_the_same_pixels_under_other_ids_are_refused_over_two_stores(
    store, tmp_path, make_dataset
):
    def other(subjects):
        (subject,) = flipped(subjects)
        return [subject._replace(image_id=[f"u/{i[2:]}" for i in subject.image_id])]

    dataset = with_subjects(make_dataset(), other)

    def read_images(ids):
        return make_dataset().read_images([f"t/{i[2:]}" for i in ids])

    path = str(tmp_path / "other.zarr")
    crowd.write(path, dataset._replace(read_images=read_images), image_px=28)
    with pytest.raises(
        errors.InputError, match=r"16 pictures .* by content: "
    ) as error:
        crowd.open_crowd((store, path))
    listed = "by content: t/0000 (test of t-subj01) is u/0000 (train of u-subj01); t/0"
    assert listed in str(error.value)


def with_pictures(dataset, change):
    """The dataset with each picture changed: `change(id, picture)`."""
    read = dataset.read_images

    def read_images(ids):
        for image_id, picture in zip(ids, read(ids), strict=True):
            yield change(image_id, picture)

    return dataset._replace(read_images=read_images)


def copy_under_other_ids(tmp_path, make_dataset, change=lambda _, picture: picture):
    """A store of one subject with the pictures of the first, under ids of its own."""
    dataset = renamed(make_dataset(seed=1), "u-subj01", lambda i: f"u/{i[2:]}")

    def read_images(ids):
        return make_dataset().read_images([f"t/{i[2:]}" for i in ids])

    path = str(tmp_path / "other.zarr")
    dataset = with_pictures(dataset._replace(read_images=read_images), change)
    crowd.write(path, dataset, image_px=28)
    return path


def test_a_picture_of_two_stores_under_two_ids_is_one_picture_of_both_subjects(
    store, tmp_path, make_dataset
):
    path = copy_under_other_ids(
        tmp_path, make_dataset, lambda i, p: 255 - p if i == "u/1011" else p
    )
    first, second, third = crowd.open_crowd((store, path)).subjects
    opened = crowd.open_crowd((store, path))
    assert opened.image_id == (*crowd.open_crowd((store,)).image_id, "u/1011")
    np.testing.assert_array_equal(third.image[:15], first.image[:15])
    assert third.image[15] == 28
    assert opened.notes == (
        "15 pictures are in several stores under other ids; each is one example under "
        "its first id: "
        + ", ".join(f"u/{i[2:]} is {i}" for i in opened.image_id[:15])
        + ".",
    )
    # The same crowd as if both stores had one name for each.
    assert second.image.max() == 27
    pixels = crowd.read_pictures(opened, np.array([3, 28]))
    apart = crowd.open_crowd((path,))
    np.testing.assert_array_equal(pixels, crowd.read_pictures(apart, np.array([3, 15])))


def test_pictures_that_look_alike_are_said_with_their_ids_and_not_refused(
    store, tmp_path, make_dataset
):
    """u/0000, u/0001: brighter copies of test pictures, moved into training."""
    dataset = renamed(make_dataset(seed=1), "u-subj01", lambda i: f"u/{i[2:]}")
    split = ["train", "val", "test", "test", *["train"] * 12]
    dataset = changed(dataset, split=np.array(split))

    def read_images(ids):
        same = {f"u/{n:04d}": f"t/{n:04d}" for n in (0, 1, 2)}
        for picture in make_dataset().read_images([same.get(i, i) for i in ids]):
            yield np.clip(picture.astype(int) + 3, 0, 255).astype(np.uint8)

    path = str(tmp_path / "other.zarr")
    crowd.write(path, dataset._replace(read_images=read_images), image_px=28)
    opened = crowd.open_crowd((store, path))
    assert len(opened.image_id) == 28 + 16
    leaks, across = opened.notes
    assert leaks.startswith("2 pairs of a test picture and a train or val picture")
    assert re.search(r"training: t/000(\d) and u/000\1 \(\d\); t/000\d and u", leaks)
    assert across.startswith("1 pairs of pictures of two stores look alike")
    assert re.search(r"own: t/0002 and u/0002 \(\d\)\.$", across)
    # Only what the chosen subjects saw counts.
    assert crowd.open_crowd((store, path), ("u-subj01",)).notes == ()


def test_stored_hashes_are_those_of_the_stored_pixels(store):
    root = zarr.open_group(store, mode="r")
    pixels = root["images"][...]
    sha256 = tuple(hashlib.sha256(p.tobytes()).hexdigest() for p in pixels)
    assert tuple(root["image_sha256"][...]) == sha256
    looks = [lookalikes.perceptual_hash(p) for p in pixels]
    assert root["image_phash"][...].tolist() == looks
    assert len(set(looks)) == 28
    opened = crowd.open_crowd((store,))
    assert opened.image_sha256 == crowd.picture_hashes(opened) == sha256


def without_hashes(path, names=("image_sha256", "image_phash")):
    """As `prepare` wrote stores before there were hashes."""
    for name in names:
        shutil.rmtree(pathlib.Path(path) / name)


def test_an_older_store_alone_is_not_read_and_said_to_be_older(copy, monkeypatch):
    sha256 = crowd.open_crowd((str(copy),)).image_sha256
    without_hashes(copy)
    with monkeypatch.context() as patch:
        patch.setattr(crowd, "_read", None)
        opened = crowd.open_crowd((str(copy),))
    assert opened.image_sha256 == ()
    (note,) = opened.notes
    assert note.startswith("copy.zarr: no hashes of the pictures are in the store")
    assert crowd.picture_hashes(opened) == sha256


@pytest.mark.parametrize(
    "names", [("image_sha256", "image_phash"), ("image_sha256",), ("image_phash",)]
)
def test_an_older_store_among_others_is_hashed_by_reading(
    copy, tmp_path, make_dataset, names
):
    path = copy_under_other_ids(
        tmp_path, make_dataset, lambda i, p: p // 2 if i == "u/0001" else p
    )
    new = crowd.open_crowd((str(copy), path))
    assert len(new.image_id) == 29
    assert "15 pictures are in several stores" in new.notes[0]
    assert "t/0001 and u/0001" in new.notes[1]
    without_hashes(copy, names)
    old = crowd.open_crowd((str(copy), path))
    assert old.notes[0].startswith("copy.zarr: no hashes of the pictures")
    assert "every picture is read at each start" in old.notes[0]
    assert old.notes[1:] == new.notes
    assert old.image_sha256 == new.image_sha256
    assert (old.image_id, old.fingerprint) == (new.image_id, new.fingerprint)


def test_one_id_for_two_different_pictures_is_refused(store, tmp_path, make_dataset):
    def read_images(ids):
        return make_dataset().read_images([f"x/{i}" for i in ids])

    path = str(tmp_path / "other.zarr")
    dataset = renamed(make_dataset(), "u-subj01")._replace(read_images=read_images)
    crowd.write(path, dataset, image_px=28)
    with pytest.raises(errors.InputError, match=r"16 ids .* pictures: t/0000, t/00"):
        crowd.open_crowd((store, path))


def test_a_picture_saved_again_with_loss_is_still_the_same(
    store, tmp_path, make_dataset
):
    def read_images(ids):
        for picture in make_dataset().read_images(ids):
            yield np.clip(picture.astype(int) + 3, 0, 255).astype(np.uint8)

    path = str(tmp_path / "other.zarr")
    dataset = renamed(make_dataset(), "u-subj01")._replace(read_images=read_images)
    crowd.write(path, dataset, image_px=28)
    assert len(crowd.open_crowd((store, path)).image_id) == 28


def test_a_subject_of_two_stores_is_refused(store, copy):
    with pytest.raises(
        errors.InputError, match=f"t-subj01: the name is taken by {store}"
    ):
        crowd.open_crowd((store, str(copy)))


def test_pictures_of_two_sizes_are_refused(store, tmp_path, make_dataset):
    path = str(tmp_path / "other.zarr")
    crowd.write(path, renamed(make_dataset(), "u-subj01"), image_px=42)
    with pytest.raises(errors.InputError, match=r"sizes \[28, 42\]"):
        crowd.open_crowd((store, path))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("t-subj1",), "'t-subj1' is in no store.*Did you mean t-subj01"),
        (("t-subj01", "t-subj01"), "'t-subj01' is given twice"),
    ],
)
def test_subjects_to_keep_must_be_there_once(store, names, message):
    with pytest.raises(errors.ConfigError, match=message):
        crowd.open_crowd((store,), names)


def test_kept_subjects_come_in_the_order_given(store):
    opened = crowd.open_crowd((store,), ("t-subj02", "t-subj01"))
    assert [(s.name, s.offset) for s in opened.subjects] == [
        ("t-subj02", 0),
        ("t-subj01", 23),
    ]
    assert opened.fingerprint != crowd.open_crowd((store,)).fingerprint
    assert (
        opened.fingerprint == crowd.open_crowd((store,), ("t-subj02", "t-subj01"))[-1]
    )


def test_an_absent_store_is_missing_input(tmp_path):
    with pytest.raises(
        errors.MissingInputError, match=r"no\.zarr: not found"
    ) as caught:
        crowd.open_crowd((str(tmp_path / "no.zarr"),))
    assert caught.value.exit_code == 66


# Damage

SHARDED = ("images/c/0/0/0/0", f"subjects/{NAME}/responses/c/0/0")
SMALL = (
    "image_id/c/0",
    "image_sha256/c/0",
    "image_phash/c/0",
    *(f"subjects/{NAME}/{n}/c/0" for n in ("image", "split", "repeats", "ncsnr")),
    *(f"subjects/{NAME}/{n}/c/0/0" for n in ("position", "roi")),
    f"subjects/{NAME}/roi_name/c/0",
)


@pytest.mark.parametrize("file", SHARDED + SMALL)
def test_a_lost_chunk_is_refused_not_read_as_zeros(copy, file):
    (copy / file).unlink()
    name = pathlib.Path(file.split("/c/")[0]).name
    with pytest.raises(errors.InputError, match=f"{name} has lost files"):
        crowd.open_crowd((str(copy),))


def test_one_lost_shard_of_several_is_refused(tmp_path, make_dataset, monkeypatch):
    path = tmp_path / "t.zarr"
    monkeypatch.setattr(crowd, "_SHARD_BYTES", 5 * 28 * 28 * 3)
    crowd.write(str(path), make_dataset(), image_px=28)
    crowd.open_crowd((str(path),))
    (path / "images/c/5/0/0/0").unlink()  # the last, which is not full
    with pytest.raises(errors.InputError, match="images has lost files"):
        crowd.open_crowd((str(path),))


@pytest.mark.parametrize("file", SMALL)
@pytest.mark.parametrize("left", ["half", "3 bytes", "nothing"])
def test_a_truncated_small_array_is_refused(copy, file, left):
    size = (copy / file).stat().st_size
    os.truncate(copy / file, {"half": size // 2, "3 bytes": 3, "nothing": 0}[left])
    with pytest.raises(errors.InputError, match="damaged"):
        crowd.open_crowd((str(copy),))


@pytest.mark.parametrize("left", ["half", "3 bytes", "nothing", "no file"])
def test_a_truncated_shard_is_refused_when_read(copy, left):
    opened = crowd.open_crowd((str(copy),))
    reads = {
        SHARDED[0]: lambda: crowd.read_pictures(opened, np.array([0])),
        SHARDED[1]: lambda: crowd.read_responses(opened.subjects[0], np.array([0])),
    }
    for file, read in reads.items():
        read()
        size = (copy / file).stat().st_size
        if left == "no file":
            (copy / file).unlink()
        else:
            kept = {"half": size // 2, "3 bytes": 3, "nothing": 0}[left]
            os.truncate(copy / file, kept)
        folder = file.split("/c/")[0]
        with pytest.raises(errors.InputError, match=f"{folder}/: cannot be read"):
            read()


def test_responses_that_are_not_finite_are_refused_when_read(copy):
    array = zarr.open_group(copy, mode="r+")[f"subjects/{NAME}/responses"]
    array[11, 4] = np.inf
    subject = crowd.open_crowd((str(copy),)).subjects[0]
    crowd.read_responses(subject, np.arange(11))
    with pytest.raises(errors.InputError, match="sample 11: inf in voxel 4"):
        crowd.read_responses(subject, np.array([2, 11]))


@pytest.mark.parametrize("name", sorted(LAYOUT))
def test_a_missing_array_is_named(copy, name):
    shutil.rmtree(copy / "subjects" / NAME / name)
    with pytest.raises(errors.InputError, match=rf"subjects/{NAME}: {name} is missing"):
        crowd.open_crowd((str(copy),))


@pytest.mark.parametrize("name", ["images", "image_id", "subjects"])
def test_a_missing_part_of_the_root_is_named(copy, name):
    shutil.rmtree(copy / name)
    with pytest.raises(errors.InputError, match=f"{name}.*(is missing|be opened)"):
        crowd.open_crowd((str(copy),))


@pytest.mark.parametrize(
    "name", ["images", "image_id", "image_phash", f"subjects/{NAME}/split"]
)
def test_damaged_metadata_of_an_array_is_refused(copy, name):
    (copy / name / "zarr.json").write_text('{"shape": [')
    with pytest.raises(errors.InputError, match="cannot be opened"):
        crowd.open_crowd((str(copy),))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": 0},
        {"format": "other"},
        {"format": None},
    ],
)
def test_another_format_or_version_is_refused(copy, change):
    file = copy / "zarr.json"
    node = json.loads(file.read_text())
    node["attributes"].update(change)
    file.write_text(json.dumps(node))
    with pytest.raises(errors.InputError, match="expected 'ubrain-crowd' version 1"):
        crowd.open_crowd((str(copy),))


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_that_is_no_zarr_is_refused(tmp_path, content):
    path = tmp_path / "no.zarr"
    path.mkdir()
    if content is not None:
        (path / "zarr.json").write_text(content)
    with pytest.raises(errors.InputError, match=r"no\.zarr: cannot be opened"):
        crowd.open_crowd((str(path),))


def test_a_file_in_place_of_a_store_is_refused(tmp_path):
    path = tmp_path / "no.zarr"
    path.write_text("a file")
    with pytest.raises(errors.InputError, match=r"no\.zarr: cannot be opened"):
        crowd.open_crowd((str(path),))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("image", np.arange(15), r"image is \(15,\), not \(16,\)"),
        ("image", np.arange(16) + 20, r"image holds 20..35 of 28"),
        ("image", np.arange(16) - 1, r"image holds -1..14 of 28"),
        ("image", np.repeat(np.arange(8), 2), "image holds a picture twice"),
        ("repeats", np.ones(17, np.uint8), r"repeats is \(17,\)"),
        ("ncsnr", np.ones(36, np.float32), r"ncsnr is \(36,\), not \(37,\)"),
        ("position", np.ones((37, 2), np.int32), r"position is \(37, 2\)"),
        ("roi", np.ones((37, 3), bool), r"roi is \(37, 3\), not \(37, 2\)"),
    ],
)
def test_arrays_that_disagree_are_refused(copy, name, values, message):
    group = zarr.open_group(copy, mode="r+")[f"subjects/{NAME}"]
    group.create_array(name, data=values, overwrite=True)
    with pytest.raises(errors.InputError, match=message):
        crowd.open_crowd((str(copy),))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("image_sha256", ["0" * 64] * 27, "image_sha256 holds 27 for 28 ids, 0 of"),
        ("image_sha256", ["0" * 64] * 26 + ["", "A" * 64], "28 for 28 ids, 2 of them"),
        ("image_phash", np.ones(27, np.uint64), r"image_phash is \(27,\) uint64"),
        ("image_phash", np.ones(28, np.int64), r"image_phash is \(28,\) int64"),
    ],
)
def test_hashes_that_are_none_are_refused(copy, name, values, message):
    values = np.array(values)
    text = values.dtype.kind == "U"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.UnstableSpecificationWarning)
        array = zarr.open_group(copy, mode="r+").create_array(
            name,
            shape=values.shape,
            dtype=str if text else values.dtype,
            overwrite=True,
        )
        array[...] = values.astype(object) if text else values
    with pytest.raises(errors.InputError, match=message):
        crowd.open_crowd((str(copy),))


def test_an_unknown_split_is_refused(copy):
    array = zarr.open_group(copy, mode="r+")[f"subjects/{NAME}/split"]
    array[3] = "Train"
    with pytest.raises(errors.InputError, match=r"split holds \['Train'\]"):
        crowd.open_crowd((str(copy),))


@pytest.mark.parametrize("row", [-1, 28, 2**31, 2**32])
def test_rows_out_of_range_raise(store, row):
    opened = crowd.open_crowd((store,))
    with pytest.raises(IndexError, match="image rows"):
        crowd.read_pictures(opened, np.array([0, row]))
    with pytest.raises(IndexError, match="sample rows"):
        crowd.read_responses(opened.subjects[0], np.array([0, row]))


def test_rows_that_are_no_integers_raise(store):
    opened = crowd.open_crowd((store,))
    with pytest.raises(TypeError, match="not integers"):
        crowd.read_pictures(opened, np.array([0.7]))


def test_opening_reads_no_picture_and_no_response(
    store, tmp_path, make_dataset, monkeypatch
):
    other = other_store(tmp_path, make_dataset, seed=1)  # of the same pictures

    def refuse(*_):
        raise AssertionError("read")

    monkeypatch.setattr(crowd, "_read", refuse)
    assert crowd.open_crowd((store,)).notes == ()
    opened = crowd.open_crowd((store, other))
    assert (len(opened.image_id), opened.notes) == (28, ())


# The small tables of the evaluation


def table(value):
    return xarray.Dataset({"r": ("voxel", np.full(5, value))}, attrs={"step": 3})


def test_an_xarray_table_is_replaced_whole(tmp_path):
    path = tmp_path / "subj.zarr"
    for value in (1.0, 2.0):
        crowd.write_xarray(table(value), path)
        xarray.testing.assert_identical(
            xarray.open_zarr(path, consolidated=False).load(), table(value)
        )
        assert around(path) == ["subj.zarr"]


def test_an_xarray_table_that_cannot_be_written_leaves_the_old(tmp_path, monkeypatch):
    path = tmp_path / "subj.zarr"
    crowd.write_xarray(table(1.0), path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(xarray.Dataset, "to_zarr", full)
    with pytest.raises(errors.OutputError, match="No space left"):
        crowd.write_xarray(table(2.0), path)
    assert around(path) == ["subj.zarr"]
    xarray.testing.assert_identical(
        xarray.open_zarr(path, consolidated=False).load(), table(1.0)
    )


def test_a_folder_over_nfs_is_locked_through_a_file(tmp_path, monkeypatch):
    """NFS refuses to lock what is not open for writing."""
    real = fcntl.flock

    def flock(handle, flags):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        return real(handle, flags)

    monkeypatch.setattr(fcntl, "flock", flock)
    with whole.locked(tmp_path), pytest.raises(BlockingIOError):
        with whole.locked(tmp_path):
            pass
    with whole.locked(tmp_path):
        pass
