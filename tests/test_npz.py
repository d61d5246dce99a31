"""NumPy archives: read as NumPy reads them, damage refused, pickles never opened."""

import io
import zipfile

import numpy as np
import pytest

from ubrain_jax import errors
from ubrain_jax.datasets import npz

ARRAYS = {
    "table": np.random.default_rng(0).normal(size=(7, 5)),
    "columns": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "names": np.array(["V1", "LatOcc"]),
    "scalar": np.array(2.5),
}


def write(path, save=np.savez, **more):
    save(path, **ARRAYS, **more)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_that_numpy_reads(tmp_path, save):
    path = write(tmp_path / "a.npz", save)
    headers = npz.headers(path)
    assert list(headers) == list(ARRAYS)
    with np.load(path, allow_pickle=False) as expected:
        for name, header in headers.items():
            array = npz.read(path, name, header)
            np.testing.assert_array_equal(array, expected[name])
            assert (array.dtype, array.shape) == (header.dtype, header.shape)
            assert array.dtype == expected[name].dtype


def test_a_pickle_is_listed_and_not_opened(tmp_path):
    path = write(tmp_path / "a.npz", objects=np.array([print], object))
    header = npz.headers(path)["objects"]
    assert header.dtype.hasobject
    with pytest.raises(
        errors.InputError, match=r"a\.npz:objects: holds Python objects"
    ):
        npz.read(path, "objects", header)


def member(array, cut=0, more=b""):
    stream = io.BytesIO()
    np.save(stream, array)
    content = stream.getvalue()
    return content[: len(content) - cut] + more


@pytest.mark.parametrize(
    ("members", "part"),
    [
        ([("x.npy", member(np.ones(4), cut=8))], "152 bytes, where float64 (4,)"),
        ([("x.npy", member(np.ones(4), more=b"1"))], "161 bytes, where float64"),
        ([("x.npy", b"text")], "x: damaged or no NumPy archive"),
        ([("x.npy", member(np.ones(1)))] * 2, "twice in the archive"),
        ([("a\x1b[31m.npy", member(np.ones(1)))], "a name of 6 odd characters"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_are_no_whole_arrays_are_refused(tmp_path, members, part):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    with pytest.raises(errors.InputError) as caught:
        npz.headers(tmp_path / "a.npz")
    assert part in str(caught.value)


def test_other_packing_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", member(np.ones(4)))
    with pytest.raises(errors.InputError, match="packed by method 14"):
        npz.headers(tmp_path / "a.npz")


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "_LEAST_LIMIT", 1000)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(100_000))
    with pytest.raises(errors.InputError, match=r"800128 bytes packed into"):
        npz.headers(tmp_path / "a.npz")


def test_truncation_and_flipped_bits_are_refused(tmp_path):
    path = write(tmp_path / "a.npz")
    headers = npz.headers(path)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[content.index(ARRAYS["table"].tobytes()) + 3] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(errors.InputError, match=r"a\.npz:table: damaged.*CRC"):
        npz.read(path, "table", headers["table"])
    path.write_bytes(content[:-30])
    with pytest.raises(errors.InputError, match="damaged or no NumPy archive"):
        npz.headers(path)
    with pytest.raises(errors.MissingInputError, match="no such file"):
        npz.headers(tmp_path / "b.npz")
