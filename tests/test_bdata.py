"""BData tables in every encoding against what was written, and damage."""

import re

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from tests import god_files
from ubrain_jax import errors
from ubrain_jax.datasets import bdata, files

TABLE, METADATA = god_files.make_subject(0)


@pytest.fixture
def write(tmp_path):
    """Writes a table under a name that says nothing; returns its path."""

    def make(encoding, table=TABLE, metadata=METADATA):
        path = tmp_path / f"{encoding}.data"
        god_files.write_table(path, table, metadata, encoding)
        return path

    return make


def in_memory(metadata):
    """A table of which no file is needed."""
    layout = files.TableLayout("HDF5", "dataSet", TABLE.shape, TABLE.dtype, [], TABLE)
    return bdata.Table("nowhere.h5", layout, metadata)


@pytest.mark.parametrize("encoding", god_files.ENCODINGS)
def test_every_encoding_gives_the_planted_table_bit_for_bit(write, encoding):
    table = bdata.open_table(write(encoding))
    assert table.layout.shape == TABLE.shape
    assert table.layout.dtype == np.float64
    assert list(table.metadata) == list(METADATA)
    for key, value in METADATA.items():
        assert table.metadata[key].tobytes() == value.astype(float).tobytes()
    columns = bdata.select(table, "ROI_VC")
    np.testing.assert_array_equal(columns, np.flatnonzero(METADATA["ROI_VC"] == 1))
    for chosen in (columns, np.arange(TABLE.shape[1])):
        read = bdata.read_columns(table, chosen)
        assert read.dtype == np.float64
        assert read.tobytes() == np.ascontiguousarray(TABLE[:, chosen]).tobytes()


@pytest.mark.parametrize("encoding", ["v5", "v7.3", "lower"])
def test_nan_and_infinity_survive(write, encoding):
    table = TABLE.copy()
    table[3, :3] = np.nan, np.inf, -np.inf
    opened = bdata.open_table(write(encoding, table))
    read = bdata.read_columns(opened, np.arange(3))
    np.testing.assert_array_equal(read, table[:, :3])


@pytest.mark.parametrize("encoding", ["v5", "v7.3", "lower"])
def test_blocks_and_chunks_change_nothing(write, encoding, monkeypatch):
    monkeypatch.setattr(files, "_TABLE_BLOCK", 3 * 8 * TABLE.shape[1])
    path = write(encoding)
    if encoding != "v5":
        with h5py.File(path, "r+") as file:
            name = "dataset" if encoding == "lower" else "dataSet"
            stored = file[name][...]
            del file[name]
            file.create_dataset(name, data=stored, chunks=(4, 5), compression="gzip")
    table = bdata.open_table(path)
    columns = np.array([0, 1, 2, 9, 13, 26])
    read = bdata.read_columns(table, columns)
    assert read.tobytes() == np.ascontiguousarray(TABLE[:, columns]).tobytes()


def test_matlab_may_store_whole_numbers_as_small_integers(tmp_path):
    """As MATLAB does in version 5, whatever the class."""
    table = np.arange(12, dtype=np.uint8).reshape(3, 4)
    value = np.array([[1, 0, 0, 1]], np.uint8)
    struct = {"key": god_files.cells(["A"]), "value": value}
    scipy.io.savemat(tmp_path / "a.mat", {"dataSet": table, "metaData": struct})
    opened = bdata.open_table(tmp_path / "a.mat")
    assert opened.metadata["A"].tolist() == [1, 0, 0, 1]
    assert bdata.read_columns(opened, np.array([0, 3])).tolist() == [
        [0, 3],
        [4, 7],
        [8, 11],
    ]


def test_an_empty_matlab_text_is_an_empty_key(write):
    path = write("v7.3")
    with h5py.File(path, "r+") as file:
        empty = file.create_dataset("#refs#/none", data=np.zeros(2, np.uint64))
        empty.attrs["MATLAB_empty"] = 1
        file["metaData/key"][0, 0] = empty.ref
    assert next(iter(bdata.open_table(path).metadata)) == ""


# ---------------------------------------------------------------- labels, columns


def test_labels_come_under_any_of_their_names(write):
    opened = bdata.open_table(write("capital"))
    (kind, label) = bdata.read_labels(
        opened, [("DataType",), ("Label", "stimulus_id", "x")]
    )
    half = god_files.NUM_VOXELS // 2
    np.testing.assert_array_equal(kind, TABLE[:, half])
    np.testing.assert_array_equal(label, TABLE[:, half + 2])


def test_labels_that_are_absent_or_several_are_listed():
    opened = in_memory(METADATA | {"Run": METADATA["VoxelData"]})
    with pytest.raises(errors.InputError) as caught:
        bdata.read_labels(opened, [("DataTyp",), ("Run",)])
    for part in (
        "2 faults: ",
        "no key DataTyp; expected a key of the metadata. Did you mean DataType",
        "metadata Run: belongs to 24 columns; expected one",
    ):
        assert part in str(caught.value)


def test_two_names_of_a_label_must_agree(write):
    metadata = METADATA | {"Label": METADATA["stimulus_id"]}
    opened = bdata.open_table(write("v5", metadata=metadata))
    (label,) = bdata.read_labels(opened, [("stimulus_id", "Label")])
    assert len(label) == len(TABLE)
    metadata["Label"] = METADATA["Run"]
    opened = bdata.open_table(write("v5", metadata=metadata))
    with pytest.raises(errors.InputError, match="stimulus_id and Label: differ"):
        bdata.read_labels(opened, [("stimulus_id", "Label")])


def test_a_key_without_columns_is_refused():
    metadata = METADATA | {"ROI_VC": METADATA["ROI_V1"] * 0}
    opened = in_memory(metadata)
    with pytest.raises(errors.InputError, match="ROI_VC: is 1 for no column"):
        bdata.select(opened, "ROI_VC")


# ---------------------------------------------------------------- positions


@pytest.mark.parametrize("rounded", [False, True])
def test_grid_gives_back_planted_indices_and_coordinates(rounded):
    rng = np.random.default_rng(3)
    index = np.unique(rng.integers(0, [9, 12, 7], (200, 3)), axis=0)
    index = index[rng.permutation(len(index))]
    index -= index.min(0)
    affine = np.diag([3, 3.1, 2.75, 1])
    affine[:3, 3] = -33.4, 12.8, 0.3
    mm = index @ affine[:3, :3] + affine[:3, 3]
    mm = mm.round(2) if rounded else mm.astype(np.float32).astype(np.float64)
    found, transform = bdata.grid(mm)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, index)
    np.testing.assert_allclose(transform, affine, atol=0.01)
    np.testing.assert_allclose(
        found @ transform[:3, :3] + transform[:3, 3], mm, atol=0.03
    )


@pytest.mark.parametrize(
    "mm",
    [
        np.random.default_rng(0).normal(size=(30, 3)),
        np.array([[0, 0, 0], [3, 0, 0], [0, 0, 0]]),  # a place twice
        np.array([[0, 0, 0], [3, np.nan, 0]]),
        np.array([[0, 0, 0], [3, 0, 0], [7, 0, 0]]),
        np.zeros((0, 3)),
    ],
)
def test_what_is_no_grid_gets_none(mm):
    assert bdata.grid(mm) is None


def test_positions_are_the_same_for_every_choice_of_columns():
    opened = in_memory(METADATA)
    every, place = bdata.positions(opened, bdata.select(opened, "VoxelData"))
    number = np.arange(god_files.NUM_VOXELS)
    x = 3 - number % 4  # the step of x is negative
    np.testing.assert_array_equal(
        every, np.stack([x, number // 4 % 3, number // 12], 1)
    )
    some = bdata.select(opened, "ROI_FFA")
    chosen, same = bdata.positions(opened, some)
    assert same == place
    assert place["grid"] == (every.max(0) + 1).tolist()
    np.testing.assert_array_equal(chosen, every[5:9])
    mm = chosen @ np.array(place["affine"])[:3, :3] + np.array(place["affine"])[:3, 3]
    for axis, key in enumerate(("voxel_x", "voxel_y", "voxel_z")):
        np.testing.assert_allclose(mm[:, axis], METADATA[key][some], atol=1e-9)


def test_without_a_grid_the_position_is_the_column():
    turned = METADATA["voxel_x"] + 0.5 * METADATA["voxel_y"] ** 2
    unknown = METADATA["voxel_x"].copy()
    unknown[1] = np.nan
    for metadata, why in (
        (METADATA | {"voxel_x": turned}, "not on a grid along the axes"),
        (METADATA | {"voxel_x": unknown}, "unknown for some voxels"),
        ({k: v for k, v in METADATA.items() if k != "voxel_y"}, "no voxel_x, voxel_y"),
    ):
        opened = in_memory(metadata)
        columns = bdata.select(opened, "ROI_VC")
        position, place = bdata.positions(opened, columns)
        assert position.dtype == np.int32
        np.testing.assert_array_equal(position[:, 0], columns)
        assert (position[:, 1:] == -1).all()
        assert why in place["space"]
        assert "affine" not in place


# ---------------------------------------------------------------- bad input


def refused(path):
    with pytest.raises(errors.InputError) as caught:
        bdata.read_columns(bdata.open_table(path), np.arange(3))
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("encoding", god_files.ENCODINGS)
def test_truncated_files_are_refused(write, encoding):
    path = write(encoding)
    content = path.read_bytes()
    share = {"v5": 0.5, "v7.3": 0.02, "capital": 0.7, "lower": 0.98, "vlen": 0.3}
    path.write_bytes(content[: int(len(content) * share[encoding])])
    expected = "and whole" if encoding == "v5" else "cannot be read"
    assert expected in refused(path)


@pytest.mark.parametrize("encoding", ["v5", "v7.3", "capital"])
def test_tables_whose_parts_disagree_are_refused(write, encoding):
    rows, columns = TABLE.shape
    text = refused(write(encoding, TABLE.T))
    assert (
        f"dataSet: {columns} rows of {rows} columns are transposed: the metadata "
        f"describe {columns} columns; expected {rows} rows"
    ) in text
    shorter = {k: v[:-2] for k, v in METADATA.items()}
    text = refused(write(encoding, metadata=shorter))
    assert f"describes {columns - 2} columns; expected {columns}" in text


def rewrite(path, name, data):
    with h5py.File(path, "r+") as file:
        del file[name]
        if data is not None:
            file[name] = data


def test_metadata_that_disagree_with_themselves_are_all_listed(write):
    path = write("capital")
    keys = np.array(list(METADATA)[:-1], "S")
    rewrite(path, "metaData/key", np.array(["Run", *keys[1:]], "S"))
    value = np.stack(list(METADATA.values())[:-1])
    rewrite(path, "metaData/value", value.T)
    text = refused(path)
    assert "2 problems: metadata: keys occur twice: Run" in text
    assert f"27 x {len(keys)} values for {len(keys)} keys, transposed" in text


MISFITS = {
    "key number": ("metaData/key", np.arange(3.0), "holds float64; expected text"),
    "key null": (
        "metaData/key",
        np.full((2, 1), h5py.Reference(), h5py.ref_dtype),
        "metaData/key, text 1: refers to nothing",
    ),
    "keys": ("metaData/key", np.full(1001, b"x"), "1001 texts; expected at most 1000"),
    "long": ("metaData/key", np.array([b"x" * 100_001]), "long texts"),
    "value text": ("metaData/value", np.array([[b"x"]]), "expected numbers"),
    "value flat": ("metaData/value", np.zeros(3), "shape [3]; expected rows and"),
    "no value": ("metaData/value", None, "metaData/value: no such dataset (found: des"),
    "data empty": ("dataSet", np.zeros((0, 5)), "dataSet: shape [0, 5]"),
    "no data": ("dataSet", None, "no table (found: metaData); expected dataSet and"),
    "link": ("dataSet", h5py.SoftLink("/metaData/value"), "is a link to :/metaData/va"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_hdf5_that_is_no_table_is_refused(write, case):
    name, data, expected = MISFITS[case]
    path = write("capital")
    rewrite(path, name, data)
    assert expected in refused(path)


def test_files_that_point_elsewhere_are_refused(write, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(8 * TABLE.size))
    other = tmp_path / "other.h5"
    god_files.write_table(other, TABLE, METADATA, "capital")
    path = write("capital")
    for name, link in (
        ("dataSet", h5py.ExternalLink(str(other), "dataSet")),
        ("metaData", h5py.ExternalLink(str(other), "metaData")),
    ):
        god_files.write_table(path, TABLE, METADATA, "capital")
        rewrite(path, name, link)
        assert "is a link to" in refused(path)
    for name, where in (("dataSet", "dataSet"), ("#refs#/key0", "metaData/key, text")):
        path = write("v7.3")
        with h5py.File(path, "r+") as file:
            external = [(str(secret), 0, h5py.h5f.UNLIMITED)]
            shape, dtype = file[name].shape, file[name].dtype
            made = file.create_dataset("far", shape, dtype, external=external)
            if name == "dataSet":
                del file[name]
                file["dataSet"] = made
            else:
                file["metaData/key"][0, 0] = made.ref
        text = refused(path)
        assert f"{where}" in text
        assert "points outside the file" in text


def test_a_reference_to_a_group_is_refused(write):
    path = write("v7.3")
    with h5py.File(path, "r+") as file:
        file["metaData/key"][1, 0] = file["metaData"].ref
    assert "metaData/key, text 2: is a group" in refused(path)


def test_incomplete_hdf5_is_refused(write):
    path = write("capital")
    with h5py.File(path, "r+") as file:
        del file["dataSet"]
        made = file.create_dataset("dataSet", TABLE.shape, chunks=(2, 5), dtype="f8")
        made[:4] = 1
    assert re.search(r"dataSet: has 12 of \d+ chunks", refused(path))


KEYS = god_files.cells(["A"])
ONE = {"key": KEYS, "value": np.ones((1, 3))}
WRONG = {
    "no struct": ({"metaData": np.ones(3)}, "metaData: shape [1, 3], fields: nothing"),
    "no value": ({"metaData": {"key": KEYS}}, "fields: key; expected one struct"),
    "numbers": (
        {"metaData": ONE | {"key": np.array([[1, "A"]], object)}},
        "metaData.key: 2 entries; expected at most 1000 texts",
    ),
    "text": ({"metaData": ONE | {"value": "abc"}}, "metaData.value: holds"),
    "logical": ({"dataSet": np.ones((4, 3), bool)}, "dataSet: holds"),
    "complex": ({"dataSet": np.ones((4, 3)) * 1j}, "dataSet: holds complex128"),
    "sparse": ({"dataSet": scipy.sparse.eye_array(3).tocsc()}, "dataSet: holds sparse"),
    "cube": ({"dataSet": np.ones((4, 3, 2))}, "dataSet: shape [4, 3, 2]"),
    "no table": ({"dataSet": None}, "no table (found: metaData)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_matlab_files_that_are_no_table_are_refused(tmp_path, case):
    change, expected = WRONG[case]
    path = tmp_path / "a.mat"
    content = {"dataSet": np.arange(12.0).reshape(4, 3), "metaData": ONE} | change
    content = {k: v for k, v in content.items() if v is not None}
    scipy.io.savemat(path, content)
    assert expected in refused(path)


def test_what_is_neither_matlab_nor_hdf5_is_refused(tmp_path):
    path = tmp_path / "Subject1.h5"
    path.write_bytes(b"<html>not found</html>" * 40)
    assert "expected an undamaged file" in refused(path)
    with pytest.raises(errors.MissingInputError, match="no such file"):
        bdata.open_table(tmp_path / "Subject2.h5")


def test_a_table_that_changed_since_it_was_opened_is_refused(write):
    for encoding in ("v5", "v7.3"):
        opened = bdata.open_table(write(encoding))
        write(encoding, TABLE[:-1])
        with pytest.raises(errors.InputError, match=r"shape .*Do not change files"):
            bdata.read_columns(opened, np.arange(3))


@pytest.mark.parametrize("encoding", ["v5", "v7.3", "vlen"])
def test_mutated_files_are_read_or_refused(write, encoding):
    path = write(encoding)
    good, rng = path.read_bytes(), np.random.default_rng(2)
    for _ in range(6):
        raw = bytearray(good)
        for place in rng.integers(8, min(len(raw), 6000), 6):
            raw[place] ^= 1 << rng.integers(8)
        path.write_bytes(raw)
        try:
            opened = bdata.open_table(path)
            read = bdata.read_columns(opened, np.arange(opened.layout.shape[1]))
        except errors.InputError:
            continue
        assert read.shape == opened.layout.shape
