"""Matrix products of a compiled program, with how often each runs.

XLA's own cost analysis counts the body of a loop once; a scan over blocks runs it
many times.
"""

import collections
import json
import math
import re
from typing import NamedTuple

_ENTRY = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)")
_SHAPE = re.compile(r"\w+\[([\d,]*)\]")
# Kernels of libraries that are a product, and may be.
_GEMM = re.compile(r'custom_call_target="(__cublas\$\S*|__onednn\$matmul)"')
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(
    r"(?:body|condition|calls|to_apply|\w+_computation)=%?([\w.-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)


class Dot(NamedTuple):
    """One matrix product of a compiled program.

    Attributes:
        shape: Of its result.
        flops: Of one run: 2 times the numbers of the result times the sum's length.
        times: How often it runs in one call of the program.
    """

    shape: tuple[int, ...]
    flops: int
    times: int


def dots(text: str) -> list[Dot]:
    """Every product of a compiled program.

    Kernels of cuBLAS and oneDNN count; a fused attention kernel is not seen.

    Args:
        text: `compiled.as_text()`.

    Raises:
        ValueError: If a product stands in a loop of unknown length.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> def f(x):
        ...     return jax.lax.scan(lambda y, _: (y @ x, None), x, None, length=3)[0]
        >>> program = jax.jit(f).lower(jnp.zeros((4, 4))).compile().as_text()
        >>> sum(dot.flops * dot.times for dot in dots(program))
        384
    """
    found: dict[str, list[Dot]] = collections.defaultdict(list)
    calls: dict[str, list[tuple[str, int | None]]] = collections.defaultdict(list)
    shapes: dict[str, tuple[int, ...]] = {}
    entry = inside = ""
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        begins = _ENTRY.match(line)
        if begins:
            inside, shapes = begins[2], {}
            entry = inside if begins[1] else entry
            continue
        operation = _OPERATION.match(line)
        if not operation:
            continue
        name, result, kind, rest = operation.groups()
        shapes[name] = _shape(result)
        if kind == "dot" or (kind == "custom-call" and _GEMM.search(rest)):
            length = math.prod(_summed(rest, shapes))
            flops = 2 * math.prod(shapes[name]) * length
            found[inside].append(Dot(shapes[name], flops, 1))
        times: int | None = 1
        if kind == "while":
            known = _TRIPS.search(rest)
            times = int(known[1]) if known else None
        code = rest.split(", metadata=")[0]
        for one, several in _CALLED.findall(code):
            names = [one] if one else re.findall(r"%?([\w.-]+)", several)
            calls[inside] += [(each, times) for each in names]
    return _unrolled(entry, found, calls, 1)


def flops(text: str) -> int:
    """Of all products in one call of a compiled program."""
    return sum(dot.flops * dot.times for dot in dots(text))


def shapes(text: str) -> set[tuple[int, ...]]:
    """Shapes of all results in a program, those inside fusions among them."""
    return {
        tuple(int(d) for d in dims.split(",") if d)
        for dims in set(_SHAPE.findall(text))
    }


def _shape(result: str) -> tuple[int, ...]:
    """Of the first array in a result's type, such as `(f32[8,2]{1,0}, s8[4])`."""
    first = _SHAPE.search(result)
    return tuple(int(d) for d in first[1].split(",") if d) if first else ()


def _summed(rest: str, shapes: dict[str, tuple[int, ...]]) -> list[int]:
    """Sizes of the axes that a product adds up."""
    left = re.match(r"\s*(?:\w+(\[[\d,]*\])\S* )?%?([\w.-]+)", rest)
    if left is None:
        raise ValueError(f"no operand in: {rest}")
    shape = _shape("x" + left[1]) if left[1] else shapes[left[2]]
    plain = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    if plain:
        axes = plain[1].split(",")
    else:
        known = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', rest)
        axes = json.loads(known[1]) if known else [len(shape) - 1]
    return [shape[int(axis)] for axis in axes if axis != ""]


def _unrolled(name: str, found: dict, calls: dict, times: int) -> list[Dot]:
    """Products of a computation and of those it calls."""
    out = [dot._replace(times=times) for dot in found[name]]
    for callee, repeats in calls[name]:
        within = _unrolled(callee, found, calls, times * (repeats or 1))
        if within and repeats is None:
            raise ValueError(f"a product in a loop of unknown length: {callee}")
        out += within
    return out
