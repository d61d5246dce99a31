"""Reads the one pickle a dataset forces on us: a dictionary {number: name} in a .npy.

`np.save(path, {1: "V1v"})` writes a 0-d object array, whose content is a pickle.
Python's unpickler calls whatever the file names, so it is not used: the opcodes are
interpreted here, and they can build numbers, text, lists, tuples and dictionaries,
nothing else. The names that numpy puts around them (array, dtype, scalar) are
recorded, never imported or called. Anything else is refused by name.
"""

import io
import os
import pathlib
import pickletools
import re
import tokenize
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors

MAX_BYTES = 1_000_000
MAX_OPCODES = 100_000
_ACTION = "Delete the file and obtain it again from the dataset's source."
_ARRAY = "numpy array"
_BLANK = "numpy.ndarray"
_DTYPE = "numpy.dtype"
_SCALAR = "numpy scalar"
# numpy < 2 and >= 2; `numeric` holds the same function since numpy 2.3.
_KNOWN = {
    "numpy.core.multiarray _reconstruct": _ARRAY,
    "numpy._core.multiarray _reconstruct": _ARRAY,
    "numpy ndarray": _BLANK,
    "numpy dtype": _DTYPE,
    "numpy.core.multiarray scalar": _SCALAR,
    "numpy._core.multiarray scalar": _SCALAR,
}
_VALUES = frozenset(
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT SHORT_BINUNICODE BINUNICODE "
    "BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class _Name(NamedTuple):
    """A global of `_KNOWN`: which one."""

    kind: str


class _Record:
    """What a call of such a global would have built: its arguments and its state."""

    __slots__ = ("args", "kind", "state")

    def __init__(self, kind: str, args: tuple):
        self.kind, self.args, self.state = kind, args, None


class _RefusedError(ValueError):
    """Why the pickle is refused, and at which byte."""

    def __init__(self, byte: int | None, found: str):
        super().__init__(found)
        self.byte, self.found = byte, found


def read_mapping(path: str | os.PathLike) -> dict[int, str]:
    """Reads a `.npy` file that holds one dictionary from whole numbers to names.

    Args:
        path: File as `np.save(path, {0: "Unknown", 1: "V1v"})` writes it.

    Returns:
        The dictionary, in the file's order; blanks around names are removed (tables
        split at single blanks leave tabs in them).

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is larger than 1 MB, no such `.npy`, damaged, or asks
            for anything but a dictionary of numbers and text.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/mapping.npy", {0: "Unknown", 1: "V1v"})
        ...     read_mapping(f"{folder}/mapping.npy")
        {0: 'Unknown', 1: 'V1v'}
    """
    path = pathlib.Path(path)
    expected = "a dictionary from whole numbers to names, saved by np.save"
    if not path.is_file():
        raise errors.MissingInputError(
            path, "", "no such file", expected, "Check that the download is complete."
        )
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise errors.InputError(
            path, "", f"{size} bytes", f"at most {MAX_BYTES} of {expected}", _ACTION
        )
    content = path.read_bytes()
    try:
        return _mapping(_load(content, _start(content)))
    except _RefusedError as refused:
        where = "" if refused.byte is None else f"byte {refused.byte}"
        raise errors.InputError(path, where, refused.found, expected, _ACTION) from None


def _start(content: bytes) -> int:
    """Where the pickle starts in a .npy that holds a 0-d object array."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            header = np.lib.format.read_array_header_2_0(stream)
        else:
            raise _RefusedError(6, f".npy version {version[0]}.{version[1]}")
    except _RefusedError:
        raise
    except (ValueError, OverflowError, RecursionError, tokenize.TokenError) as error:
        raise _RefusedError(0, f"no .npy header ({str(error)[:80]})") from None
    shape, _, dtype = header
    if shape != () or dtype != np.dtype(object):
        raise _RefusedError(10, f"an array of {dtype}, shape {shape}")
    return stream.tell()


def _load(content: bytes, start: int) -> Any:
    """Interprets the pickle from byte `start` to the end of the file."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    stream = io.BytesIO(content)
    stream.seek(start)
    opcodes = pickletools.genops(stream)
    count, byte = 0, start
    while True:
        try:
            opcode, argument, position = next(opcodes)
        except StopIteration:
            break
        except (ValueError, IndexError, OverflowError) as error:
            # genops: truncated, unknown opcode, bad text, a length beyond the file
            raise _RefusedError(
                byte, f"a damaged or truncated pickle ({str(error)[:80]})"
            ) from None
        byte = start if position is None else position
        count += 1
        if count > MAX_OPCODES:
            raise _RefusedError(byte, f"more than {MAX_OPCODES} pickle operations")
        try:
            _step(opcode.name, argument, stack, memo, byte)
        except (IndexError, KeyError, TypeError, AttributeError):
            raise _RefusedError(
                byte, f"a damaged pickle ({opcode.name} has nothing to work on)"
            ) from None
    if stream.tell() != len(content):
        left = len(content) - stream.tell()
        raise _RefusedError(stream.tell(), f"{left} bytes after the end of the pickle")
    if len(stack) != 1:
        raise _RefusedError(byte, f"a damaged pickle ({len(stack)} values at its end)")
    return stack[0]


def _step(
    name: str, argument: Any, stack: list[Any], memo: dict[int, Any], byte: int
) -> None:
    """Applies one opcode to the stack."""
    if name in ("PROTO", "FRAME", "STOP"):
        return
    if name in _VALUES:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name == "EMPTY_LIST":
        stack.append([])
    elif name == "EMPTY_TUPLE":
        stack.append(())
    elif name in _TUPLES:
        size = _TUPLES[name]
        items = tuple(stack[len(stack) - size :])
        if len(items) != size or any(item is _MARK for item in items):
            raise IndexError
        stack[-size:] = [items]
    elif name == "TUPLE":
        stack.append(tuple(_pop_mark(stack)))
    elif name in ("APPEND", "APPENDS"):
        items = [stack.pop()] if name == "APPEND" else _pop_mark(stack)
        _typed(stack[-1], list).extend(items)
    elif name in ("SETITEM", "SETITEMS"):
        if name == "SETITEM":
            value = stack.pop()
            items = [stack.pop(), value]
        else:
            items = _pop_mark(stack)
        _set_items(_typed(stack[-1], dict), items, byte)
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name in ("GLOBAL", "STACK_GLOBAL"):
        if name == "STACK_GLOBAL":
            attribute = _typed(stack.pop(), str)
            argument = f"{_typed(stack.pop(), str)} {attribute}"
        if argument not in _KNOWN:
            wanted = argument.replace(" ", ".", 1)[:120]
            raise _RefusedError(byte, f"asks for {wanted}, which could run code")
        stack.append(_Name(_KNOWN[argument]))
    elif name == "REDUCE":
        arguments = _typed(stack.pop(), tuple)
        called = _typed(stack.pop(), _Name)
        stack.append(_Record(called.kind, arguments))
    elif name == "BUILD":
        state = stack.pop()
        _typed(stack[-1], _Record).state = state
    else:
        wanted = f" ({argument[:120]})" if type(argument) is str else ""
        raise _RefusedError(byte, f"uses the pickle operation {name}{wanted}")


def _typed(value: Any, kind: type) -> Any:
    """The value, which must be of exactly this type."""
    if type(value) is not kind:
        raise TypeError
    return value


def _pop_mark(stack: list[Any]) -> list[Any]:
    """Takes everything above the last mark, and the mark."""
    items = []
    while stack[-1] is not _MARK:
        items.append(stack.pop())
    stack.pop()
    return items[::-1]


def _set_items(target: dict, items: list[Any], byte: int) -> None:
    """Fills a dictionary; keys must be numbers, so that hashing stays cheap."""
    if len(items) % 2:
        raise IndexError
    for key, value in zip(items[::2], items[1::2], strict=True):
        number = _scalar(key)
        if type(number) is not int:
            raise _RefusedError(
                byte, f"a dictionary key of type {type(number).__name__}"
            )
        if number in target:
            raise _RefusedError(byte, f"key {number} twice")
        target[number] = value


def _scalar(value: Any) -> Any:
    """A numpy scalar as int or str; other values as they are."""
    if type(value) is not _Record or value.kind != _SCALAR:
        return value
    try:
        kind, content = value.args
        code = _typed(_typed(kind, _Record).args[0], str)
        order = "<"
        if kind.state is not None:  # (version, byte order, ...)
            order = _typed(_typed(kind.state, tuple)[1], str)
        if kind.kind != _DTYPE or not re.fullmatch(r"[iu][1248]|U\d{1,4}", code):
            raise TypeError
        dtype = np.dtype(code).newbyteorder(order)
        (found,) = np.frombuffer(_typed(content, bytes), dtype)
        return str(found) if dtype.kind == "U" else int(found)
    except (TypeError, ValueError, IndexError):
        return value


def _mapping(root: Any) -> dict[int, str]:
    """The dictionary inside the recorded 0-d object array."""
    try:
        if type(root) is not _Record or root.kind != _ARRAY:
            raise TypeError
        _, shape, _, _, items = _typed(root.state, tuple)
        (content,) = _typed(items, list)
        if shape != () or type(content) is not dict:
            raise TypeError
    except (TypeError, ValueError):
        raise _RefusedError(None, "no dictionary") from None
    names = {}
    for number, value in content.items():
        name = _scalar(value)
        if type(name) is not str:
            raise _RefusedError(
                None, f"key {number} holds no name but {type(name).__name__}"
            )
        names[number] = name.strip()
    return names
