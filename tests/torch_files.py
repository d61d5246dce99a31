"""Writes files of torch.save without torch, and pickles that torch never writes."""

import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np

STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "complex64": "ComplexFloatStorage",
}


class Call(NamedTuple):
    """Pickled as a call of what "module name" names, then given a state."""

    name: str
    args: tuple = ()
    state: Any = None
    new: bool = False  # as an object of a class, not a call


class View(NamedTuple):
    """A tensor as torch tells it: a view of a storage, right or wrong."""

    base: np.ndarray
    offset: int
    shape: tuple
    stride: tuple
    claimed: int | None = None  # elements that the pickle says the storage has


def write(path, value, *, parts=None, compression=zipfile.ZIP_STORED):
    """A zip as torch.save writes it; `parts` replaces members by name."""
    storages: list[np.ndarray] = []
    content = b"\x80\x02" + _pickled(value, storages) + b"."
    members = {"data.pkl": content, "byteorder": b"little", "version": b"3\n"}
    members |= {f"data/{k}": a.tobytes() for k, a in enumerate(storages)}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, part in {**members, **(parts or {})}.items():
            if part is not None:
                archive.writestr(f"archive/{name}", part)
    return path


def module(tensors, **attributes):
    """A pickled torch module tree with tensors by the names of its state dict."""
    tree: dict = {}
    for name, array in tensors.items():
        *path, leaf = name.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = array

    def build(level, **own):
        state = {
            **own,
            "training": False,
            "_parameters": {k: v for k, v in level.items() if not isinstance(v, dict)},
            "_buffers": {},
            "_modules": {k: build(v) for k, v in level.items() if isinstance(v, dict)},
        }
        return Call("models.encoder_models Encoder", (), state, new=True)

    return build(tree, **attributes)


def _pickled(value, storages) -> bytes:
    """Opcodes of protocol 2."""

    def items(values) -> bytes:
        return b"".join(_pickled(v, storages) for v in values)

    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        size = value.bit_length() // 8 + 1
        return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, bytes):  # opcodes as they are
        return value
    if isinstance(value, dict):
        pairs = [part for pair in value.items() for part in pair]
        return b"}(" + items(pairs) + b"u"
    if isinstance(value, list):
        return b"](" + items(value) + b"e"
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        strides = tuple(s // array.itemsize for s in array.strides)
        return _pickled(View(array, 0, array.shape, strides), storages)
    if isinstance(value, Call):
        name = f"c{value.name.replace(' ', chr(10))}\n".encode()
        call = name + _pickled(tuple(value.args), storages)
        call += b"\x81" if value.new else b"R"
        return call if value.state is None else call + items([value.state]) + b"b"
    if isinstance(value, View):
        key = str(len(storages))
        storages.append(value.base)
        kind = STORAGES[value.base.dtype.name]
        numel = value.base.size if value.claimed is None else value.claimed
        place = b"(" + items(["storage"]) + f"ctorch\n{kind}\n".encode()
        place += items([key, "cpu", numel]) + b"tQ"
        args = (place, value.offset, tuple(value.shape), tuple(value.stride), False)
        hooks = Call("collections OrderedDict")
        return _pickled(
            Call("torch._utils _rebuild_tensor_v2", (*args, hooks)), storages
        )
    return b"(" + items(value) + b"t"
