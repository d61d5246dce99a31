"""Files of torch.save: tensors come out, and nothing of the file is run."""

import io
import os
import pickle
import subprocess
import zipfile

import ml_dtypes
import numpy as np
import pytest

from tests import torch_files
from tests.torch_files import Call, View
from ubrain_jax import errors
from ubrain_jax.model import torchfile


def refused(path) -> str:
    with pytest.raises(errors.InputError) as caught:
        torchfile.read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_tensors_and_plain_values_of_a_dictionary(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "single": rng.standard_normal((3, 4)).astype(np.float32),
        "double": rng.standard_normal((2, 1, 5)),
        "half": rng.standard_normal(7).astype(np.float16),
        "brain": rng.standard_normal((2, 2)).astype(ml_dtypes.bfloat16),
        "whole": np.arange(5),
        "none": np.zeros((0, 3), np.float32),
        "scalar": np.array(2.5, np.float32),
    }
    config = {"r": 7, "alpha": 0.01, "taps": [1, 6], "on": True, "base": None}
    path = torch_files.write(tmp_path / "a.pt", {"shared": arrays, "config": config})
    found = torchfile.read(path)
    assert set(found.tensors) == {f"shared.{name}" for name in arrays}
    for name, array in arrays.items():
        own = found.tensors[f"shared.{name}"]
        assert own.dtype == (np.int64 if name == "whole" else np.float32)
        np.testing.assert_array_equal(own, array.astype(own.dtype))
    assert found.plain == {"config": config}
    assert found.names == ()
    assert found.module == ""


def test_views_of_one_storage_and_turned_ones(tmp_path):
    base = np.arange(24, dtype=np.float32)
    grid = base.reshape(4, 6)
    path = torch_files.write(
        tmp_path / "a.pt",
        {
            "turned": View(base, 0, (6, 4), (1, 6)),
            "part": View(base, 7, (2, 3), (6, 2)),
            "row": View(base, 18, (6,), (1,)),
        },
    )
    found = torchfile.read(path).tensors
    np.testing.assert_array_equal(found["turned"], grid.T)
    np.testing.assert_array_equal(found["part"], grid[1:3, 1:6:2])
    np.testing.assert_array_equal(found["row"], grid[3])


def test_a_whole_module_gives_the_names_of_its_state_dict(tmp_path):
    arrays = {"a": np.ones(2, np.float32), "b.0.weight": np.zeros((2, 3), np.float32)}
    param = Call("models p", (), {"inner_ch": 128}, new=True)
    value = torch_files.module(arrays, select_layers=[1, 6], param=param, lora=0.5)
    value.state["_buffers"] = {"kept": np.ones(1), "lost": np.ones(1)}
    value.state["_non_persistent_buffers_set"] = Call("__builtin__ set", (["lost"],))
    found = torchfile.read(torch_files.write(tmp_path / "a.pth", value))
    assert set(found.tensors) == {*arrays, "kept"}
    assert found.module == "models.encoder_models.Encoder"
    assert found.names == ("models.encoder_models.Encoder", "models.p")
    assert found.plain == {
        "select_layers": [1, 6],
        "param": {"class": "models.p", "state": {"inner_ch": 128}},
        "lora": 0.5,
        "training": False,
    }


class Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class SetsState:
    """Runs something when its state is set."""

    def __init__(self, source):
        self.source = source

    def __setstate__(self, state):
        exec(state["source"])  # noqa: S102  (what a hostile file would do)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", ["system", "eval", "exec", "run", "setstate"])
def test_payloads_that_run_elsewhere_do_nothing(tmp_path, kind, protocol):
    mark = tmp_path / "ran"
    source = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    value = {
        "system": Calls(os.system, f"touch '{mark}'"),
        "eval": Calls(eval, source),
        "exec": Calls(exec, source),
        "run": Calls(subprocess.check_call, ["touch", str(mark)]),
        "setstate": SetsState(source),
    }[kind]
    pickled = pickle.dumps(value, protocol)
    # The same object as a value beside a tensor, and as the whole file.
    body = pickled[2:-1] if protocol == 2 else pickled[11:-1]
    beside = torch_files.write(
        tmp_path / "a.pt", {"x": np.ones(3, np.float32), "evil": body}
    )
    found = torchfile.read(beside)
    assert list(found.tensors) == ["x"]
    assert found.plain["evil"]["class"] in found.names
    alone = torch_files.write(tmp_path / "b.pt", body)
    assert "without tensors" in refused(alone)
    assert not mark.exists()
    with zipfile.ZipFile(beside) as archive:  # the control: it does run elsewhere
        content = archive.read("archive/data.pkl")

    class Runs(pickle.Unpickler):
        def persistent_load(self, pid):
            return pid

        def find_class(self, module, name):
            if module.startswith("torch"):
                return lambda *args: args
            return super().find_class(module, name)

    Runs(io.BytesIO(content)).load()
    assert mark.exists()


X = np.arange(6, dtype=np.float32)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"x": View(X, 1, (6,), (1,))}, "offset 1 in a storage of 6"),
        ({"x": View(X, 0, (2, 3), (4, 1))}, "strides (4, 1)"),
        ({"x": View(X, 0, (1000, 1000), (0, 0))}, "storage of 6 elements"),
        ({"x": View(X, -1, (2,), (1,))}, "a tensor of shape"),
        ({"x": View(X, 3, (2,), (-1,))}, "a tensor of shape"),
        ({"x": View(X, 0, (2**40, 2**40), (1, 1))}, "storage of 6 elements"),
        (
            {"x": View(X, 0, (8,), (1,), claimed=8)},
            "24 bytes in archive/data/0, not 32",
        ),
        ({"x": X.astype(np.complex64)}, "torch.ComplexFloatStorage"),
        ({"config": {"a": 1}}, "dict without tensors"),
        ({"x": X, "y": b"P7\n"}, "operation PERSID"),
        ({"x": X, "y": b"\x82\x01"}, "operation EXT1"),
        ({"x": X, "y": b"\x97"}, "operation NEXT_BUFFER"),
        ({"x": X, "y": b"h\xff"}, "BINGET has nothing to work on"),
        ({"x": X, "y": b"cos\nsystem\n}b"}, "BUILD has nothing to work on"),
        ({"a.b": X, "a": {"b": X}}, "twice"),
        ({"x\n": X}, "cannot be printed"),
        ({"x": X, "y": b"(" * 9}, "SETITEMS has nothing to work on"),
    ],
)
def test_refuses_what_reaches_outside_or_means_nothing(tmp_path, value, found):
    path = torch_files.write(tmp_path / "a.pt", value)
    assert found in refused(path)


def test_numbers_that_are_not_finite_are_named(tmp_path):
    bad = {
        "good": X,
        "nan": np.array([1, np.nan], np.float32),
        "inf": np.array([np.inf], np.float16),
        "brain": np.array([-np.inf], ml_dtypes.bfloat16),
        "beyond float32": np.array([1e300]),
    }
    message = refused(torch_files.write(tmp_path / "a.pt", bad))
    for name in bad:
        assert (name in message) == (name != "good")


def test_depth_and_size_have_limits(tmp_path):
    deep = X
    for _ in range(100):
        deep = {"d": deep}
    assert "deeper than" in refused(torch_files.write(tmp_path / "deep.pt", deep))
    # Doubled 60 times by the memo: a list of 2^60 ones.
    laughs = b"](K\x01K\x01eq\x00" + b"".join(
        b"](h%ch%ce" % (i, i) + b"q%c" % (i + 1) for i in range(60)
    )
    path = torch_files.write(tmp_path / "laughs.pt", {"x": X, "y": laughs})
    assert "too many or too deep" in refused(path)
    # A list that holds itself.
    path = torch_files.write(tmp_path / "self.pt", {"x": X, "y": b"]q\x00h\x00a"})
    assert "too many or too deep" in refused(path)
    # Python's unpickler would make a memo of 4 billion places.
    path = torch_files.write(
        tmp_path / "m.pt", {"x": X, "y": b"K\x01r\xff\xff\xff\xff"}
    )
    assert list(torchfile.read(path).tensors) == ["x"]
    # A dictionary of tuples in tuples: hashing them would exhaust the stack.
    nested = b"}" + b")" + b"\x85" * 100_000 + b"K\x01s"
    path = torch_files.write(tmp_path / "n.pt", {"x": X, "y": nested})
    assert list(torchfile.read(path).tensors) == ["x"]
    # A length that the file does not have.
    path = torch_files.write(tmp_path / "l.pt", {"x": X, "y": b"X\xff\xff\xff\x7f"})
    assert "truncated" in refused(path)


def test_another_container_is_refused(tmp_path):
    good = torch_files.write(tmp_path / "good.pt", {"x": X})
    content = good.read_bytes()

    def file(name, data):
        (tmp_path / name).write_bytes(data)
        return refused(tmp_path / name)

    legacy = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    assert "before 1.6" in file("old.pt", legacy)
    assert "no zip" in file("text.pt", b"hello")
    assert "no zip" in file("empty.pt", b"")
    for cut in (len(content) - 1, len(content) // 2, 40):
        assert "cut short" in file("cut.pt", content[:cut])
    at = content.index(X.tobytes()) + 5
    broken = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    assert "Bad CRC" in file("flip.pt", broken)
    packed = tmp_path / "packed.pt"
    torch_files.write(packed, {"x": X}, compression=zipfile.ZIP_DEFLATED)
    assert "packed" in refused(packed)
    for parts, found in (
        ({"constants.pkl": b""}, "TorchScript"),
        ({"byteorder": b"big"}, "not little"),
        ({"data.pkl": None}, "0 data.pkl"),
        ({"data/0": None}, "no bytes in archive/data/0"),
    ):
        path = torch_files.write(tmp_path / "p.pt", {"x": X}, parts=parts)
        assert found in refused(path)
    with pytest.raises(errors.MissingInputError, match="no such file"):
        torchfile.read(tmp_path / "absent.pt")


@pytest.mark.parity
@pytest.mark.parametrize("form", ["module", "state", "half"])
def test_reads_what_torch_saves(tmp_path, form):
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.GRU(4, 3)
    )
    model.tied = model[0].weight
    if form == "half":
        model = model.to(torch.bfloat16)
    torch.save(model if form == "module" else model.state_dict(), tmp_path / "m.pt")
    found = torchfile.read(tmp_path / "m.pt").tensors
    state = model.state_dict()
    assert set(found) == set(state)
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.float().numpy())
