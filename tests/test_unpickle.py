"""The restricted unpickler reads numpy's files and refuses every other pickle."""

import io
import os
import pickle
import subprocess

import numpy as np
import pytest

from ubrain_jax import errors
from ubrain_jax.datasets import unpickle

NAMES = {0: "Unknown", 1: "V1v", 2: "V1d", 3: "V2v", 300: "hV4", 70000: "mTL-words"}


def object_header() -> bytes:
    """The .npy header numpy writes before the pickle of a 0-d object array."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|O", "fortran_order": False, "shape": ()}
    )
    return stream.getvalue()


def write(path, pickled: bytes):
    path.write_bytes(object_header() + pickled)
    return path


class Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touch(folder) -> str:
    """Python source that leaves a trace when it runs."""
    return f"__import__('pathlib').Path({str(folder / 'ran')!r}).touch()"


def test_reads_what_numpy_saves(tmp_path):
    np.save(tmp_path / "mapping.npy", NAMES)
    assert unpickle.read_mapping(tmp_path / "mapping.npy") == NAMES


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_reads_the_protocols_of_numpy(tmp_path, protocol):
    array = np.array(None, object)
    array[()] = NAMES
    path = write(tmp_path / "m.npy", pickle.dumps(array, protocol))
    assert unpickle.read_mapping(path) == NAMES


def test_reads_arrays_of_numpy_1(tmp_path):
    """numpy < 2 wrote the module name without the underscore."""
    array = np.array(NAMES, object)
    pickled = pickle.dumps(array, 3).replace(
        b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    )
    assert b"numpy.core.multiarray" in pickled
    assert unpickle.read_mapping(write(tmp_path / "m.npy", pickled)) == NAMES


def test_reads_numpy_scalars_and_removes_blanks(tmp_path):
    mapping = {
        np.int64(1): np.str_("V1v\t    "),
        np.uint8(7): " hV4",
        np.dtype(">i4").type(-1): "é\t",
    }
    np.save(tmp_path / "m.npy", mapping)
    found = unpickle.read_mapping(tmp_path / "m.npy")
    assert found == {1: "V1v", 7: "hV4", -1: "é"}
    assert all(type(k) is int and type(v) is str for k, v in found.items())


def test_reads_many_entries_and_an_empty_one(tmp_path):
    mapping = {k: f"area {k}" for k in range(3000)}  # several SETITEMS batches
    np.save(tmp_path / "m.npy", mapping)
    np.save(tmp_path / "empty.npy", {})
    assert unpickle.read_mapping(tmp_path / "m.npy") == mapping
    assert unpickle.read_mapping(tmp_path / "empty.npy") == {}


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("kind", ["system", "eval", "exec", "run"])
def test_refuses_calls_by_name(tmp_path, kind, protocol):
    source = touch(tmp_path)
    value = {
        "system": Calls(os.system, f"touch '{tmp_path}/ran'"),
        "eval": Calls(eval, source),
        "exec": Calls(exec, source),
        "run": Calls(subprocess.check_call, ["touch", f"{tmp_path}/ran"]),
    }[kind]
    name = f"{value.call[0].__module__}.{value.call[0].__name__}"
    array = np.array(None, object)
    array[()] = {1: value}
    pickled = pickle.dumps(array, protocol)
    path = write(tmp_path / "m.npy", pickled)
    with pytest.raises(errors.InputError, match=rf"byte \d+: asks for {name}, which"):
        unpickle.read_mapping(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickled)  # noqa: S301  (the control: it does run elsewhere)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("pickled", "found"),
    [
        (
            b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
            "asks for os.system",
        ),
        (
            b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
            "asks for builtins.eval",
        ),
        (b"(X\x04\x00\x00\x00trueios\nsystem\n.", "operation INST (os system)"),
        (b"(cnumpy\ndtype\nX\x04\x00\x00\x00trueo.", "operation OBJ"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "operation NEWOBJ"),
        (b"Pid\n.", "operation PERSID (id)"),
        (b"\x80\x02\x82\x01.", "operation EXT1"),
        (
            b"\x80\x02cnumpy\ndtype.__class__\n.",
            "asks for numpy.dtype.__class__",
        ),
        (b"\x80\x02cnumpy\nfromfile\n)R.", "asks for numpy.fromfile"),
        (
            b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\n\x86R.",
            "asks for builtins.getattr",
        ),
        (b"\x80\x02c_codecs\nencode\n.", "asks for _codecs.encode"),
        # a call of what a call returned, and attributes set on a known name
        (b"\x80\x02cnumpy\ndtype\n)R)R.", "REDUCE has nothing to work on"),
        (b"\x80\x02cnumpy\ndtype\n}b.", "BUILD has nothing to work on"),
    ],
)
def test_refuses_gadgets_written_by_hand(tmp_path, pickled, found):
    path = write(tmp_path / "m.npy", pickled)
    with pytest.raises(errors.InputError) as caught:
        unpickle.read_mapping(path)
    assert found in str(caught.value)
    assert str(path) in str(caught.value)


def test_known_names_are_recorded_not_called(tmp_path):
    """numpy's own constructors with wild arguments make nothing."""
    huge = pickle.dumps(10**15, 2)[2:-1]
    pickled = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + huge
        + b"\x85X\x01\x00\x00\x00b\x87R."
    )
    with pytest.raises(errors.InputError, match="no dictionary"):
        unpickle.read_mapping(write(tmp_path / "m.npy", pickled))


def test_huge_memo_index_costs_nothing(tmp_path):
    """LONG_BINPUT with index 2^32 - 1 makes Python's unpickler allocate 32 GB."""
    array = np.array(NAMES, object)
    pickled = pickle.dumps(array, 3)
    pickled = pickled[:-1] + b"r\xff\xff\xff\xff."
    assert unpickle.read_mapping(write(tmp_path / "m.npy", pickled)) == NAMES


def test_refuses_huge_lengths_and_counts(tmp_path):
    length = b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"abc."
    many = b"\x80\x02" + b"N0" * 60_000 + b"}."
    loop = b"\x80\x02" + b"]q\x00" + b"h\x00a" * 50_001 + b"."
    for content, found in (
        (length, "damaged or truncated pickle"),
        (many, "pickle operation POP"),
        (loop, "more than 100000 pickle operations"),
    ):
        with pytest.raises(errors.InputError, match=found):
            unpickle.read_mapping(write(tmp_path / "m.npy", content))
    (tmp_path / "big.npy").write_bytes(bytes(unpickle.MAX_BYTES + 1))
    with pytest.raises(errors.InputError, match="1000001 bytes"):
        unpickle.read_mapping(tmp_path / "big.npy")


def test_nested_keys_are_not_hashed(tmp_path):
    """60 times t = (t, t) makes 2^60 leaves; hashing that would never end."""
    doubled = b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"Ns."
    with pytest.raises(errors.InputError, match="dictionary key of type tuple"):
        unpickle.read_mapping(write(tmp_path / "m.npy", doubled))


def test_every_truncation_is_refused(tmp_path):
    np.save(tmp_path / "whole.npy", NAMES)
    content = (tmp_path / "whole.npy").read_bytes()
    for size in range(len(content)):
        path = tmp_path / "cut.npy"
        path.write_bytes(content[:size])
        with pytest.raises(errors.InputError):
            unpickle.read_mapping(path)


def test_flipped_bytes_never_do_more_than_raise(tmp_path):
    """Each byte in turn replaced: a dictionary of int to str, or InputError."""
    np.save(tmp_path / "whole.npy", NAMES)
    content = (tmp_path / "whole.npy").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "flip.npy"
    refused = 0
    for place in range(128, len(content)):
        for value in rng.integers(0, 256, 4):
            path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            try:
                found = unpickle.read_mapping(path)
            except errors.InputError:
                refused += 1
            else:
                assert all(type(k) is int for k in found)
                assert all(type(v) is str for v in found.values())
    assert refused > 500


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (np.array(3), "an array of int64, shape ()"),
        (np.array([{1: "a"}], object), "an array of object, shape (1,)"),
        ({1: 2}, "key 1 holds no name but int"),
        ({"V1v": 1}, "dictionary key of type str"),
        ({(1, 2): "a"}, "dictionary key of type tuple"),
        ({True: "a"}, "dictionary key of type bool"),
        ({1.5: "a"}, "dictionary key of type float"),
        ({1: ["a"]}, "key 1 holds no name but list"),
    ],
)
def test_refuses_other_content(tmp_path, content, found):
    np.save(tmp_path / "m.npy", content)
    with pytest.raises(errors.InputError) as caught:
        unpickle.read_mapping(tmp_path / "m.npy")
    assert found in str(caught.value)
    assert "expected a dictionary from whole numbers to names" in str(caught.value)


def test_refuses_other_files(tmp_path):
    with pytest.raises(errors.MissingInputError, match="no such file"):
        unpickle.read_mapping(tmp_path / "absent.npy")
    (tmp_path / "m.npy").write_bytes(pickle.dumps({1: "a"}))
    with pytest.raises(errors.InputError, match=r"no \.npy header"):
        unpickle.read_mapping(tmp_path / "m.npy")
    write(tmp_path / "m.npy", pickle.dumps({1: "a"}))  # no array around it
    with pytest.raises(errors.InputError, match="no dictionary"):
        unpickle.read_mapping(tmp_path / "m.npy")
    np.save(tmp_path / "m.npy", NAMES)
    content = (tmp_path / "m.npy").read_bytes()
    (tmp_path / "m.npy").write_bytes(content + b"more")
    with pytest.raises(errors.InputError, match="4 bytes after the end"):
        unpickle.read_mapping(tmp_path / "m.npy")
