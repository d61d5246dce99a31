"""Takes the tensors out of a file of torch.save, as a script in a child process.

Neither torch nor Python's unpickler is used. A file of torch.save is a zip of one
pickle and of raw storages. The opcodes of the pickle are interpreted here: they can
build numbers, text, lists, dictionaries and views of storages, nothing else. What
else the pickle names (classes, functions) is never imported or called; a record of
the name, its arguments and its state stands in for it, so that the parameters of a
whole pickled module can be found.

Nothing of the package is imported. `torchfile.read` is the caller; it starts this
script under `python -I` with an empty environment. Two files come out: tensors in
safetensors, in the types that they have, and plain values in JSON.
"""

import io
import json
import math
import os
import pickletools
import re
import resource
import struct
import sys
import zipfile
from typing import Any, NamedTuple

REFUSED = 65
MOST_PICKLE_BYTES = 64 * 2**20
MOST_OPCODES = 5_000_000
MOST_MEMBERS = 100_000
MOST_TENSORS = 20_000
MOST_AXES = 8
MOST_DEPTH = 64  # of modules inside modules, and of plain values
MOST_VALUES = 50_000  # plain ones
LONGEST_NAME = 300
LONGEST_TEXT = 10_000
AGAIN = "Copy or download it again."
DISTRUST = "Do not trust the file; obtain it from its authors."

# First bytes of files of torch before 1.6: a pickled magic number.
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# Type of a storage: name in safetensors, bytes of an element.
STORAGES = {
    "torch FloatStorage": ("F32", 4),
    "torch DoubleStorage": ("F64", 8),
    "torch HalfStorage": ("F16", 2),
    "torch BFloat16Storage": ("BF16", 2),
    "torch LongStorage": ("I64", 8),
    "torch IntStorage": ("I32", 4),
    "torch ShortStorage": ("I16", 2),
    "torch CharStorage": ("I8", 1),
    "torch ByteStorage": ("U8", 1),
    "torch BoolStorage": ("BOOL", 1),
}
TENSOR = "torch._utils _rebuild_tensor_v2"
PARAMETERS = (
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
)
SUBCLASS = "torch._tensor _rebuild_from_type_v2"
ORDERED = "collections OrderedDict"
LISTS = ("builtins set", "__builtin__ set", "torch Size")

VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 "
    "STRING BINSTRING SHORT_BINSTRING".split()
)
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NOTHING = frozenset("PROTO FRAME STOP".split())
MARK = object()


class Refused(ValueError):
    """The file cannot be used: where, what was found, what to do."""

    def __init__(self, where: str, found: str, action: str = AGAIN):
        super().__init__(where, found, action)


class Name(NamedTuple):
    """A class or function that the pickle names: "module attribute"."""

    text: str


class Storage(NamedTuple):
    """Raw numbers of the file: its member, type, bytes of one, how many."""

    key: str
    dtype: str
    itemsize: int
    numel: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Inert:
    """What a call of `name` would have made; nothing was called."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: Any):
        self.name, self.args, self.state = name, args, None


# 1. The pickle -------------------------------------------------------------------


def interpret(content: bytes) -> tuple[Any, set[str]]:
    """What the pickle builds, and every name in it that is not a tensor's."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    names: set[str] = set()
    stream = io.BytesIO(content)
    opcodes = pickletools.genops(stream)
    byte = 0
    for count in range(MOST_OPCODES + 1):
        try:
            opcode, argument, position = next(opcodes)
        except StopIteration:
            break
        except (ValueError, IndexError, OverflowError) as error:
            found = f"a damaged or truncated pickle ({str(error)[:80]})"
            raise Refused(f"byte {byte}", found) from None
        byte = position or 0
        if count == MOST_OPCODES:
            raise Refused(f"byte {byte}", f"more than {MOST_OPCODES} operations")
        try:
            step(opcode.name, argument, stack, memo, names)
        except (IndexError, KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, Refused):
                where, *rest = error.args
                raise Refused(f"byte {byte}{where}", *rest) from None
            found = f"a damaged pickle ({opcode.name} has nothing to work on)"
            raise Refused(f"byte {byte}", found) from None
    if stream.tell() != len(content) or len(stack) != 1:
        left = len(content) - stream.tell()
        raise Refused(
            f"byte {byte}", f"{left} bytes after the pickle, {len(stack)} values"
        )
    return stack[0], names


def step(
    name: str, argument: Any, stack: list[Any], memo: dict[int, Any], names: set[str]
) -> None:
    """Applies one opcode to the stack."""
    if name in NOTHING:
        return
    if name in VALUES:
        stack.append(argument)
    elif name in CONSTANTS:
        stack.append(CONSTANTS[name])
    elif name == "MARK":
        stack.append(MARK)
    elif name == "POP":
        stack.pop()
    elif name == "POP_MARK":
        pop_mark(stack)
    elif name == "DUP":
        stack.append(stack[-1])
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name in ("EMPTY_LIST", "EMPTY_SET"):
        stack.append([])
    elif name == "EMPTY_TUPLE":
        stack.append(())
    elif name in TUPLES:
        size = TUPLES[name]
        items = tuple(stack[len(stack) - size :])
        if len(items) != size or any(item is MARK for item in items):
            raise IndexError
        stack[-size:] = [items]
    elif name == "TUPLE":
        stack.append(tuple(pop_mark(stack)))
    elif name in ("LIST", "FROZENSET"):
        stack.append(pop_mark(stack))
    elif name == "DICT":
        items = pop_mark(stack)
        stack.append(fill({}, items))
    elif name in ("APPEND", "APPENDS", "ADDITEMS"):
        items = [stack.pop()] if name == "APPEND" else pop_mark(stack)
        if type(stack[-1]) is list:
            stack[-1].extend(items)
        else:
            typed(stack[-1], Inert)  # a list of a class of its own: left empty
    elif name in ("SETITEM", "SETITEMS"):
        if name == "SETITEM":
            value = stack.pop()
            items = [stack.pop(), value]
        else:
            items = pop_mark(stack)
        if type(stack[-1]) is dict:
            fill(stack[-1], items)
        else:
            typed(stack[-1], Inert)
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name in ("GLOBAL", "STACK_GLOBAL"):
        if name == "STACK_GLOBAL":
            attribute = typed(stack.pop(), str)
            argument = f"{typed(stack.pop(), str)} {attribute}"
        stack.append(named(argument, names))
    elif name == "BINPERSID":
        stack.append(storage(stack.pop()))
    elif name == "REDUCE":
        args = typed(stack.pop(), tuple)
        stack.append(called(stack.pop(), args))
    elif name in ("NEWOBJ", "NEWOBJ_EX"):
        if name == "NEWOBJ_EX":
            stack.pop()
        args = typed(stack.pop(), tuple)
        stack.append(called(typed(stack.pop(), Name), args))
    elif name == "OBJ":
        kind, *args = pop_mark(stack)
        stack.append(called(typed(kind, Name), tuple(args)))
    elif name == "INST":
        args = tuple(pop_mark(stack))
        stack.append(called(named(argument, names), args))
    elif name == "BUILD":
        state = stack.pop()
        if type(stack[-1]) is Inert:
            stack[-1].state = state
        elif type(stack[-1]) not in (dict, list, Tensor):  # metadata of a state dict
            raise TypeError
    else:
        raise Refused("", f"the pickle operation {name}", DISTRUST)


def typed(value: Any, kind: type) -> Any:
    """The value, which must be of exactly this type."""
    if type(value) is not kind:
        raise TypeError
    return value


def pop_mark(stack: list[Any]) -> list[Any]:
    """Takes everything above the last mark, and the mark."""
    items = []
    while stack[-1] is not MARK:
        items.append(stack.pop())
    stack.pop()
    return items[::-1]


def named(text: str, names: set[str]) -> Name:
    """Records a name; it is not looked up."""
    known = text in STORAGES or text in (TENSOR, *PARAMETERS, SUBCLASS, ORDERED)
    if not known and text not in LISTS:
        names.add(text.replace(" ", ".", 1)[:LONGEST_NAME])
    return Name(text)


def fill(target: dict, items: list[Any]) -> dict:
    """Sets items; a key that is no number or text cannot name a tensor."""
    if len(items) % 2:
        raise IndexError
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int, float, bool, bytes, type(None)):
            key = f"<{type(key).__name__} {len(target)}>"
        target[key] = value
    return target


def called(what: Any, args: tuple) -> Any:
    """A tensor or an ordered dictionary; for all else a record of the call."""
    if type(what) is not Name:
        return Inert("a call of no name", args)
    if what.text == TENSOR:
        return view(args)
    if what.text in PARAMETERS:
        return typed(args[0], Tensor)
    if what.text == SUBCLASS:  # function, type, its arguments, state
        return called(args[0], typed(args[2], tuple))
    if what.text == ORDERED:
        pairs = args[0] if args else []
        if not all(type(pair) in (tuple, list) and len(pair) == 2 for pair in pairs):
            raise TypeError
        return fill({}, [item for pair in pairs for item in pair])
    if what.text in LISTS:
        return list(typed(args[0], list)) if args else []
    return Inert(what.text.replace(" ", ".", 1)[:LONGEST_NAME], args)


def storage(found: Any) -> Storage:
    """The record of a storage: ("storage", type, key, device, elements)."""
    kind, tag, key, _, numel = typed(found, tuple)
    if kind != "storage":
        raise TypeError
    text = typed(tag, Name).text
    if text not in STORAGES:
        name = text.replace(" ", ".", 1)[:80]
        raise Refused(
            "",
            f"numbers of type {name}",
            "Save the tensors as float32, float16, bfloat16 or float64.",
        )
    if not re.fullmatch(r"\d{1,9}", typed(key, str)) or typed(numel, int) < 0:
        raise Refused("", f"a storage named {key[:40]!r} of {numel}", DISTRUST)
    return Storage(key, *STORAGES[text], numel)


def view(args: tuple) -> Tensor:
    """Arguments of the rebuilding function as a view that lies inside its storage."""
    place, offset, shape, stride = args[:4]
    numbers = [offset, *shape, *stride]
    if type(place) is not Storage or type(shape) not in (tuple, list):
        raise TypeError
    if any(type(n) is not int or n < 0 for n in numbers) or len(shape) != len(stride):
        raise Refused("", f"a tensor of shape {shape}, strides {stride}", DISTRUST)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    size = math.prod(shape)
    if len(shape) > MOST_AXES or size > place.numel or (size and last >= place.numel):
        raise Refused(
            "",
            f"a tensor of shape {tuple(shape)}, strides {tuple(stride)} and offset "
            f"{offset} in a storage of {place.numel} elements",
            DISTRUST,
        )
    return Tensor(place, offset, tuple(shape), tuple(stride))


# 2. What it holds ----------------------------------------------------------------


def tensors_of(root: Any) -> dict[str, Tensor]:
    """Tensors by their names in a state dict; of dictionaries, keys joined by dots."""
    found: dict[str, Tensor] = {}

    def put(name: str, value: Tensor) -> None:
        if name in found or len(found) >= MOST_TENSORS or len(name) > LONGEST_NAME:
            raise Refused(
                name[:80],
                f"twice, or one of more than {MOST_TENSORS} tensors, or its name "
                f"longer than {LONGEST_NAME}",
                DISTRUST,
            )
        if not name.isprintable():
            raise Refused(repr(name[:80]), "a name that cannot be printed", DISTRUST)
        found[name] = value

    visits = 0

    def walk(prefix: str, value: Any, depth: int) -> None:
        nonlocal visits
        visits += 1
        if depth > MOST_DEPTH or visits > MOST_VALUES:
            raise Refused(
                prefix[:80], f"deeper than {MOST_DEPTH} or too large", DISTRUST
            )
        if type(value) is Tensor:
            put(prefix.removesuffix("."), value)
        elif is_module(value):
            state, absent = value.state, value.state.get("_non_persistent_buffers_set")
            hidden = absent if type(absent) is list else []
            for part in ("_parameters", "_buffers", "_modules"):
                members = state.get(part)
                for key, member in members.items() if type(members) is dict else ():
                    if part != "_buffers" or key not in hidden:
                        walk(f"{prefix}{key}.", member, depth + 1)
        elif type(value) is dict:
            for key, member in value.items():
                if type(key) is str:
                    walk(f"{prefix}{key}.", member, depth + 1)

    walk("", root, 0)
    return found


def is_module(value: Any) -> bool:
    """Whether a record has the state of a torch module."""
    return (
        type(value) is Inert and type(value.state) is dict and "_modules" in value.state
    )


def plain_of(root: Any) -> Any:
    """Numbers and texts; of a record its name and state, of a tensor its shape."""
    left = MOST_VALUES

    def plain(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MOST_DEPTH:
            raise Refused("", "too many or too deep plain values", DISTRUST)
        if value is None or type(value) is bool:
            return value
        if type(value) is int:
            return value if abs(value) < 2**63 else None
        if type(value) is float:
            return value if math.isfinite(value) else str(value)
        if type(value) is str:
            return value[:LONGEST_TEXT]
        if type(value) in (list, tuple):
            return [plain(item, depth + 1) for item in value]
        if type(value) is dict:
            return {
                key: plain(item, depth + 1)
                for key, item in value.items()
                if type(key) is str and len(key) <= LONGEST_NAME
            }
        if type(value) is Tensor:
            return {"tensor": list(value.shape)}
        if type(value) is Inert:
            told = {"class": value.name}
            if type(value.state) is dict and not is_module(value):
                told["state"] = plain(value.state, depth + 1)
            return told
        return {"class": type(value).__name__}

    if is_module(root):  # its own attributes
        root = {
            key: value
            for key, value in root.state.items()
            if type(key) is str and not key.startswith("_")
        }
    elif type(root) is dict:
        root = {k: v for k, v in root.items() if type(v) is not Tensor}
    # A dictionary of tensors is told by their names.
    skip = {
        key
        for key, value in (root.items() if type(root) is dict else ())
        if type(value) is dict and any(type(item) is Tensor for item in value.values())
    }
    return plain({k: v for k, v in root.items() if k not in skip}, 0)


# 3. The zip ----------------------------------------------------------------------


def open_zip(source: str) -> tuple[zipfile.ZipFile, str, dict[str, zipfile.ZipInfo]]:
    """The zip, the folder in it that holds data.pkl, and its members by name."""
    with open(source, "rb") as file:
        start = file.read(len(LEGACY))
    if start == LEGACY:
        raise Refused(
            "",
            "the form of torch before 1.6",
            "Where you trust the file, load it with torch and save it again: "
            "torch.save(torch.load(FILE, weights_only=True), NEW).",
        )
    size = os.path.getsize(source)
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        cut = "a zip that is cut short or damaged" if start[:2] == b"PK" else "no zip"
        raise Refused("", f"{cut} ({str(error)[:80]})") from None
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in members or len(members) >= MOST_MEMBERS:
            raise Refused(info.filename[:80], "a member twice, or too many", DISTRUST)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
            found = f"{info.file_size} bytes, packed, in a file of {size}"
            raise Refused(info.filename[:80], found, DISTRUST)
        members[info.filename] = info
    pickles = [name for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(pickles) != 1:
        raise Refused("", f"a zip with {len(pickles)} data.pkl", "Name a torch file.")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise Refused(
            "", "a TorchScript archive", "Save the state dict of the model instead."
        )
    return archive, folder, members


def member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Bytes of a member; their checksum is compared."""
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
        found = f"damaged or cut short ({str(error)[:80]})"
        raise Refused(info.filename[:80], found) from None


def write_tensors(
    archive: zipfile.ZipFile,
    folder: str,
    members: dict[str, zipfile.ZipInfo],
    tensors: dict[str, Tensor],
    target: str,
    most: int,
) -> None:
    """safetensors, one tensor after the other, so that one is in memory."""
    import numpy as np

    # By storage: views of the same one follow each other.
    order = sorted(tensors, key=lambda name: int(tensors[name].storage.key))
    header, at = {}, 0
    for name in order:
        tensor = tensors[name]
        place = f"{folder}data/{tensor.storage.key}"
        expected = tensor.storage.numel * tensor.storage.itemsize
        if place not in members or members[place].file_size != expected:
            found = members[place].file_size if place in members else "no"
            raise Refused(name, f"{found} bytes in {place}, not {expected}")
        size = math.prod(tensor.shape) * tensor.storage.itemsize
        header[name] = {
            "dtype": tensor.storage.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        at += size
    if at > most:
        raise Refused("", f"{at} bytes of tensors in a file of {most // 2}", DISTRUST)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        key, content = None, b""
        for name in order:
            tensor = tensors[name]
            if tensor.storage.key != key:
                key = tensor.storage.key
                content = member(archive, members[f"{folder}data/{key}"])
            item = tensor.storage.itemsize
            if math.prod(tensor.shape):
                array = np.ndarray(
                    tensor.shape,
                    f"u{item}",
                    content,
                    tensor.offset * item,
                    [step * item for step in tensor.stride],
                )
                out.write(np.ascontiguousarray(array).data)


def convert(source: str, target: str, told: str) -> None:
    """Writes the tensors of `source` to `target` and its plain values to `told`."""
    archive, folder, members = open_zip(source)
    info = members[f"{folder}data.pkl"]
    if info.file_size > MOST_PICKLE_BYTES:
        found = f"a pickle of {info.file_size} bytes"
        raise Refused(info.filename[:80], found, DISTRUST)
    order = members.get(f"{folder}byteorder")
    if order is not None and member(archive, order) != b"little":
        raise Refused(order.filename[:80], "not little", "Save it on another machine.")
    try:
        root, names = interpret(member(archive, info))
        tensors = tensors_of(root)
        if not tensors:
            kind = root.name if type(root) is Inert else type(root).__name__
            raise Refused("data.pkl", f"{kind[:80]} without tensors", "Name a model.")
        content = {
            "module": root.name if is_module(root) else "",
            "plain": plain_of(root),
            "names": sorted(names)[:1000],
        }
    except Refused as error:
        where, *rest = error.args
        where = "data.pkl" if where in ("", "data.pkl") else f"data.pkl, {where}"
        raise Refused(where, *rest) from None
    most = 2 * os.path.getsize(source) + 2**20
    write_tensors(archive, folder, members, tensors, target, most)
    with open(told, "w", encoding="utf-8") as out:
        json.dump(content, out)


def main(source: str, target: str, told: str) -> int:
    """Converts under limits; a refusal goes to stdout as one JSON line."""
    size = os.path.getsize(source)
    import numpy  # noqa: F401  (before the limits: it maps its libraries)

    limits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": 60 + size // 10_000_000,  # seconds
        "RLIMIT_FSIZE": 2 * size + 64 * 2**20,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_AS": 2 * 2**30 + 3 * size,
    }
    for name, value in limits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(number, (value, value))
    try:
        convert(source, target, told)
    except Refused as error:
        print(json.dumps({"refused": error.args}))
        return REFUSED
    except MemoryError:
        print(json.dumps({"refused": ["", "needs too much memory", DISTRUST]}))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
