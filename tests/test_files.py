"""The low-level readers against the libraries that wrote the files, and damage."""

import gzip
import os
import pathlib
import time

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io

from tests import nsd_files
from ubrain_jax import errors
from ubrain_jax.datasets import files

RNG = np.random.default_rng(0)
CONTENT = {
    "order": RNG.integers(1, 200, (1, 30)).astype(np.uint8),
    "table": RNG.normal(size=(3, 5)),
    "single": RNG.normal(size=(2, 3, 4)).astype(np.float32),
}


# ---------------------------------------------------------------- MATLAB


@pytest.mark.parametrize("compressed", [True, False])
def test_mat_v5_equals_what_was_written(tmp_path, compressed):
    path = tmp_path / "a.mat"
    text = {"note": "some text"}
    scipy.io.savemat(path, CONTENT | text, do_compression=compressed)
    read = files.read_mat(path, [*CONTENT, "note"])
    for name, array in CONTENT.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype
    assert read["note"].tolist() == ["some text"]


def test_mat_v73_has_the_axes_of_matlab(tmp_path):
    path = tmp_path / "a.mat"
    nsd_files.write_mat73(path, CONTENT)
    read = files.read_mat(path, ["table", "single"])
    np.testing.assert_array_equal(read["table"], CONTENT["table"])
    np.testing.assert_array_equal(read["single"], CONTENT["single"])


def test_missing_variable_is_named_with_what_there_is(tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, CONTENT)
    with pytest.raises(errors.InputError, match=r"lacks x, y \(found: order, table"):
        files.read_mat(path, ["x", "order", "y"])
    nsd_files.write_mat73(path, CONTENT)
    with pytest.raises(errors.InputError, match=r"lacks x \(found: order, single"):
        files.read_mat(path, ["x"])


def test_layouts_of_mat_are_those_of_the_arrays(tmp_path):
    odd = {
        "note": "text",
        "record": {"a": np.ones(2)},
        "cells": np.array([["a"]], object),
    }
    scipy.io.savemat(tmp_path / "a.mat", CONTENT | odd)
    nsd_files.write_mat73(tmp_path / "b.mat", CONTENT)
    with h5py.File(tmp_path / "b.mat", "r+") as file:
        file.create_group("record")
        file["other"] = h5py.ExternalLink("c.mat", "table")
        file["soft"] = h5py.SoftLink("/table")
        file["words"] = "text"
    for layouts in files.mat_layouts([tmp_path / "a.mat", tmp_path / "b.mat"]):
        assert sorted(layouts) == sorted(CONTENT)
        for name, layout in layouts.items():
            assert layout.shape == CONTENT[name].shape
            assert layout.dtype == CONTENT[name].dtype
    (tmp_path / "b.mat").write_bytes(b"text" * 200)
    with pytest.raises(errors.InputError, match=r"b\.mat"):
        files.mat_layouts([tmp_path / "a.mat", tmp_path / "b.mat"])
    with pytest.raises(errors.MissingInputError, match="no such file"):
        files.mat_layouts([tmp_path / "c.mat"])


@pytest.mark.parametrize("save", [scipy.io.savemat, nsd_files.write_mat73])
def test_blocks_of_mat_are_slices_of_the_array(tmp_path, save):
    save(tmp_path / "a.mat", CONTENT)
    blocks = [[(0, 2), (1, 3), (0, None)], [(1, 2), (0, 3), (2, 4)]]
    found = list(files.mat_blocks(tmp_path / "a.mat", "single", blocks))
    whole = CONTENT["single"]
    np.testing.assert_array_equal(found[0], whole[0:2, 1:3])
    np.testing.assert_array_equal(found[1], whole[1:2, 0:3, 2:4])
    assert len(found) == 2
    with pytest.raises(errors.InputError, match="single"):
        list(files.mat_blocks(tmp_path / "a.mat", "double", [[(0, 1)]]))


def test_mat_without_variables(tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {})
    with pytest.raises(errors.InputError, match="no variables found; expected x"):
        files.read_mat(path, ["x"])


def test_struct_is_refused(tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"x": {"a": 1}})
    with pytest.raises(errors.InputError, match=r"a.mat:x: holds .*; expected an arr"):
        files.read_mat(path, ["x"])


def test_crash_of_the_reader_is_an_error(tmp_path):
    """A data tag of type 8 makes scipy read address 0."""
    path = tmp_path / "a.mat"
    table = np.arange(40.0).reshape(5, 8) + 0.5
    scipy.io.savemat(path, {"table": table}, do_compression=False)
    raw = bytearray(path.read_bytes())
    place = raw.index(np.array([9, 320], "<u4").tobytes())  # doubles, 320 bytes
    raw[place] = 8
    path.write_bytes(raw)
    with pytest.raises(
        errors.InputError, match=r"reader crashed \(signal 11\); .*dama"
    ):
        files.read_mat(path, ["table"])


def test_mutated_mat_files_never_stop_this_process(tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, CONTENT, do_compression=False)
    good, rng = path.read_bytes(), np.random.default_rng(5)
    for _ in range(6):
        raw = bytearray(good)
        for place in rng.integers(128, len(raw), 12):
            raw[place] ^= 1 << rng.integers(8)
        path.write_bytes(raw)
        try:
            read = files.read_mat(path, list(CONTENT))
        except errors.InputError:
            continue
        assert set(read) == set(CONTENT)


# ---------------------------------------------------------------- HDF5


@pytest.fixture
def hdf5(tmp_path):
    """A file with arrays as NSD, GOD and others store them."""
    path = tmp_path / "a.h5"
    betas = RNG.integers(-900, 900, (6, 4, 5, 3)).astype(np.int16)
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=betas, chunks=(6, 1, 1, 1))
        file.create_dataset("group/packed", data=CONTENT["table"], compression="gzip")
        file["plain"] = CONTENT["single"].astype(">f4")
        file["scalar"] = 3.5
        file["text"] = "words"
        file.create_dataset("none", data=h5py.Empty("f4"))
        file["soft"] = h5py.SoftLink("/betas")
    return path, betas


@pytest.mark.parametrize("name", ["betas", "group/packed", "plain", "scalar"])
def test_hdf5_equals_what_was_written(hdf5, name):
    path, _ = hdf5
    with h5py.File(path) as file:
        expected = file[name][...]
    read = files.read_hdf5(path, name)
    np.testing.assert_array_equal(read, expected)
    assert read.dtype == expected.dtype


def test_blocks_come_in_order_over_files(hdf5, tmp_path):
    path, betas = hdf5
    other = tmp_path / "b.h5"
    nsd_files.write_hdf5(other, "betas", betas + 1)
    blocks = [
        [(0, None), (2, 3), (1, 4), (0, 3)],
        [(1, 2), (0, 4), (0, 5), (2, 2)],
    ]
    read = list(files.hdf5_blocks([path, other], "betas", blocks))
    for k, whole in enumerate((betas, betas + 1)):
        np.testing.assert_array_equal(read[2 * k], whole[:, 2:3, 1:4, :3])
        assert read[2 * k + 1].shape == (1, 4, 5, 0)


def test_layouts_report_each_file_by_itself(hdf5, tmp_path):
    path, _ = hdf5
    broken = tmp_path / "b.h5"
    broken.write_bytes(path.read_bytes()[:700])
    wanted = [(path, "betas"), (broken, "betas"), (tmp_path / "c.h5", "betas")]
    first, second, third, fourth = files.hdf5_layouts([*wanted, (path, "plain")])
    assert first == ((6, 4, 5, 3), np.int16)
    assert isinstance(second, errors.InputError)
    assert "b.h5" in str(second)
    assert isinstance(third, errors.MissingInputError)
    assert fourth == ((2, 3, 4), np.dtype(">f4"))


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("beta", r"/beta: no such dataset \(found: betas, group, none, plain, scalar"),
        ("group", r"/group: is a group \(holds: packed\); expected a dataset"),
        ("group/other", r"/group/other: no such dataset \(found: packed\)"),
        ("text", r"/text: holds object; expected numbers"),
        ("none", r"/none: is empty; expected an array"),
        ("soft", r"/soft: is a link to :/betas; expected data inside the file"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(hdf5, name, pattern):
    with pytest.raises(errors.InputError, match=pattern):
        files.read_hdf5(hdf5[0], name)


def test_unwritten_contiguous_array_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (5, 4), "f4")
    with pytest.raises(errors.InputError, match=r"has 0 of 80 bytes; .*incomplete"):
        files.read_hdf5(tmp_path / "a.h5", "x")


def test_gzip_bomb_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        made = file.create_dataset(
            "x", (2**21, 1024), "u1", chunks=(2**13, 1024), compression="gzip"
        )
        made[: 2**13] = 7
    with pytest.raises(errors.InputError, match="declares 2,147,483,648 bytes in a fi"):
        files.read_hdf5(path, "x")


def test_names_from_a_file_cannot_write_to_the_terminal(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["\x1b[2Jevil\n"] = 1
    with pytest.raises(errors.InputError) as caught:
        files.read_hdf5(tmp_path / "a.h5", "x")
    assert str(caught.value).isprintable()
    assert "evil" in str(caught.value)


# ---------------------------------------------------------------- many datasets


@pytest.fixture
def many(tmp_path):
    """A group of 300 small arrays of 40 numbers, with attributes."""
    path, data = tmp_path / "a.h5", RNG.normal(size=(300, 40))
    with h5py.File(path, "w") as file:
        file.attrs["subject"] = "one"
        file["lost"] = np.array([7, 3, 3])
        for k, row in enumerate(data):
            made = file.create_dataset(
                f"g/x{k:03d}", data=row[:, None] if k % 2 else row
            )
            made.attrs["phase"] = np.bytes_("test") if k % 3 else "train"
            made.attrs["number"] = np.int16(k)
            made.attrs["nan"] = np.array([k % 5, 20], float)
            made.attrs["other"] = np.arange(9)
        file.create_dataset("empty/x", data=np.zeros(2)).attrs["nan"] = []
    return path, data


def test_contents_tell_names_layouts_and_attributes(many):
    path, _ = many
    wanted = ["phase", "number", "subject", "absent"]
    found = files.hdf5_contents(
        path, ["g", "nothing", "empty"], attributes=wanted, numbers=("lost", "nan")
    )
    assert sorted(found.names) == ["empty", "g", "lost"]
    assert found.attributes == {"subject": "one"}
    assert found.members.keys() == {"g", "empty"}
    assert len(found.members["g"]) == 300
    for k, member in enumerate(found.members["g"]):
        assert member.name == f"x{k:03d}"
        assert member.layout == ((40, 1) if k % 2 else (40,), np.float64)
        assert member.attributes == {"phase": "test" if k % 3 else "train", "number": k}
    assert {k: v.tolist() for k, v in found.numbers.items()} == {
        "": [3, 7],
        "g": [0, 1, 2, 3, 4, 20],
        "empty": [],
    }


@pytest.mark.parametrize("columns", [[0, 1, 2], [5, 6, 8, 39], range(40), [39]])
def test_rows_are_the_elements_asked_for(many, columns):
    path, data = many
    rows = [[4, 299, 4], [0], list(range(50, 70))]
    lists = [[f"g/x{k:03d}" for k in row] for row in rows]
    columns = np.array(columns)
    stream = files.hdf5_rows(path, lists, columns, "f8")
    for row, found in zip(rows, stream, strict=True):
        np.testing.assert_array_equal(found, data[row][:, columns])
    [single] = files.hdf5_rows(path, lists[:1], columns)
    np.testing.assert_array_equal(single, data[rows[0]][:, columns].astype("f4"))


def test_rows_that_are_not_there_are_refused(many):
    path, _ = many
    with pytest.raises(errors.InputError, match=r"/g/x9: no such dataset"):
        list(files.hdf5_rows(path, [["g/x000", "g/x9"]], np.arange(3)))
    with pytest.raises(errors.InputError, match=r"/g/x001: shape \[40, 1\] has no ele"):
        list(files.hdf5_rows(path, [["g/x001"]], np.array([2, 40])))


def test_stream_that_is_left_ends_its_process(hdf5):
    path, _ = hdf5
    block = [(0, 6), (0, 4), (0, 5), (0, 3)]
    stream = files.hdf5_blocks([path], "betas", [block] * 5000)
    next(stream)
    children = _children()
    assert children
    stream.close()
    assert not _children() & children


def _children():
    """Process numbers of the children of this process."""
    path = pathlib.Path(f"/proc/self/task/{os.getpid()}/children")
    return set(path.read_text().split())


def test_environment_and_folder_do_not_reach_the_reader(hdf5, tmp_path, monkeypatch):
    """A module named h5py beside the user's script must not be imported."""
    (tmp_path / "h5py.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HDF5_PLUGIN_PATH", str(tmp_path))
    assert files.read_hdf5(hdf5[0], "scalar") == 3.5


@pytest.mark.parametrize("read", [files.read_nifti, files.read_mgh])
@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"<html>", bytes(400)])
def test_what_is_no_volume_is_refused_by_name(tmp_path, read, content):
    path = tmp_path / "x.nii.gz"
    path.write_bytes(content)
    with pytest.raises(errors.InputError, match=r"x\.nii\.gz: .*; expected "):
        read(path)


# ---------------------------------------------------------------- NIfTI


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8", ">i2"])
@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 3, 5, 6)])
def test_nifti_equals_nibabel(tmp_path, ending, dtype, shape):
    path = tmp_path / f"x{ending}"
    data = RNG.integers(0, 200, shape).astype(dtype)
    affine = RNG.normal(size=(4, 4))
    affine[3] = 0, 0, 0, 1
    header = nibabel.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    nibabel.Nifti1Image(data, affine, header).to_filename(path)
    volume, image = files.read_nifti(path), nibabel.load(path)
    np.testing.assert_array_equal(volume.data, np.asarray(image.dataobj))
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_allclose(volume.affine, image.affine, atol=1e-6)
    assert files.nifti_header(path).shape == shape


def test_nifti_scaling_is_applied(tmp_path):
    path = tmp_path / "x.nii.gz"
    data = RNG.integers(-50, 50, (4, 3, 5)).astype(np.int16)
    nsd_files.write_nifti(path, data, slope=0.5, intercept=3)
    np.testing.assert_allclose(files.read_nifti(path).data, data * 0.5 + 3)
    np.testing.assert_array_equal(next(iter(files.nifti_volumes(path))), data)


@pytest.mark.parametrize(
    ("place", "value", "pattern"),
    [
        (112, np.float32(np.nan), r"scl_slope is nan, .*scaling unknown"),
        (112, np.float32(np.inf), r"scl_slope is inf"),
        (112, np.float32(1e30), r"scl_slope is 1e\+30"),
        (116, np.float32(np.nan), None),  # slope 0: the intercept has no meaning
        (280, np.float32(np.nan), r"the affine holds NaN or inf"),
        (42, np.int16(-3), r"dimensions \[3, -3, 3, 5"),
        (42, np.int16(9), r"the file has 592 bytes; expected 1432, says its header"),
        (70, np.int16(999), r"bad header|holds"),
        (70, np.int16(32), r"holds complex64; expected numbers"),
        (108, np.float32(17.5), r"vox_offset is 17.5; expected 352"),
        (344, np.int32(0), r"magic b''; expected a NIfTI-1|magic .*expected a NIfTI-1"),
    ],
)
def test_damaged_nifti_header(tmp_path, place, value, pattern):
    path = tmp_path / "x.nii"
    nsd_files.write_nifti(path, RNG.normal(size=(2, 3, 5)).astype(np.float64))
    raw = bytearray(path.read_bytes())
    raw[place : place + value.nbytes] = value.tobytes()
    path.write_bytes(raw)
    if pattern is None:
        assert np.isfinite(files.read_nifti(path).data).all()
        return
    with pytest.raises(errors.InputError, match=pattern):
        files.read_nifti(path)


def test_no_flipped_bit_of_a_gz_file_passes_unseen(tmp_path):
    path = tmp_path / "x.nii.gz"
    data = (RNG.normal(size=(12, 10, 8)) * 300).astype(np.int16)
    nsd_files.write_nifti(path, data)
    good, volume = path.read_bytes(), files.read_nifti(path)
    rng, caught = np.random.default_rng(1), 0
    for _ in range(300):
        raw = bytearray(good)
        raw[rng.integers(10, len(raw))] ^= 1 << rng.integers(8)
        path.write_bytes(raw)
        try:
            read = files.read_nifti(path)
        except errors.InputError:
            caught += 1
        else:
            np.testing.assert_array_equal(read.data, volume.data)
            np.testing.assert_array_equal(read.affine, volume.affine)
    assert caught > 290


def test_gz_bomb_is_refused_before_unpacking(tmp_path):
    path = tmp_path / "x.nii.gz"
    header = nibabel.Nifti1Header()
    header.set_data_shape((2000, 2000, 2000))
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.write_bytes(gzip.compress(header.structarr.tobytes() + bytes(4)))
    start = time.monotonic()
    with pytest.raises(errors.InputError, match=r"declares [\d,]+ bytes in a file of"):
        files.read_nifti(path)
    assert time.monotonic() - start < 5


# ---------------------------------------------------------------- MGH


@pytest.mark.parametrize("ending", [".mgh", ".mgz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
@pytest.mark.parametrize("shape", [(30, 1, 1), (30, 1, 1, 4), (3, 4, 5)])
def test_mgh_equals_nibabel(tmp_path, ending, dtype, shape):
    path = tmp_path / f"x{ending}"
    data = RNG.integers(0, 200, shape).astype(dtype)
    affine = np.array([[-1, 0, 0, 81921], [0, 0, 1, -0.5], [0, -1, 0, 0.5]])
    affine = np.vstack([affine, [0, 0, 0, 1]])
    nibabel.MGHImage(data, affine).to_filename(str(path))
    volume, raw = files.read_mgh(path), path.read_bytes()
    raw = gzip.decompress(raw) if ending == ".mgz" else raw
    image = nibabel.MGHImage.from_bytes(raw)
    expected = np.asarray(image.dataobj)
    np.testing.assert_array_equal(volume.data.reshape(expected.shape), expected)
    np.testing.assert_allclose(volume.affine, image.affine, atol=1e-3)


def test_truncated_mgz_is_refused(tmp_path):
    path = tmp_path / "x.mgz"
    nsd_files.write_mgh(path, RNG.normal(size=(500, 3)).astype(np.float32))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(errors.InputError, match=r"x.mgz: fails its gzip checks"):
        files.read_mgh(path)


# ---------------------------------------------------------------- tables


def test_table_takes_columns_by_name(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b,c\r\n1,"x, y",3\r\n\r\n4,z,6\r\n')
    read = files.read_table(path, ["c", "b", "a"], ",")
    assert read == {"c": ["3", "6"], "b": ["x, y", "z"], "a": ["1", "4"]}


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("a\tb\n1\t2\t3\n", r"line 2: 3 cells; expected 2, as in the first line"),
        ("a b\n", r"line 1: no tab; expected columns a, b"),
        ("a\tc\n", r"line 1: no column b \(found: a, c\)"),
        ('a\tb\n"1\t2\n', r"line \d: unexpected end of data"),
        ("", r"x.tsv: the file is empty"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text, pattern):
    (tmp_path / "x.tsv").write_text(text)
    with pytest.raises(errors.InputError, match=pattern):
        files.read_table(tmp_path / "x.tsv", ["a", "b"], "\t")


def test_folder_or_nothing_in_place_of_a_file(tmp_path):
    with pytest.raises(errors.MissingInputError, match="no such file"):
        files.read_mat(tmp_path / "x.mat", ["x"])
    with pytest.raises(errors.InputError, match="no regular file"):
        files.read_nifti(tmp_path)
