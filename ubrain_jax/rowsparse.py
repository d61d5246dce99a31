"""Adam on the rows of a table that a batch reads, equal to Adam on all of them.

Under Adam a row without a gradient still moves: its moments decay and go on pushing
it. Here such a row is left alone, remembers its last step, and is moved by the sum of
what it missed when it is next read. With m, v the moments after step s, step t = s + j
moves it by

    rate(t) m b1^j / (1 - b1^t) / (sqrt(v b2^j / (1 - b2^t)) + eps)
        = m a(t) r^j / (sqrt(v) + h(t)),

where r = b1 / sqrt(b2), a(t) = rate(t) sqrt(1 - b2^t) / (1 - b1^t) and
h(t) = eps sqrt(1 - b2^t) b2^(-j/2). Only sqrt(v) differs between the numbers of a row,
and h moves little, so the sum over j is interpolated in log h on NODES Chebyshev nodes
y: m sum_i w_i / (sqrt(v) + y_i), where w depends on s and on how many steps are
missed, not on the row. That is NODES divisions a number, however long the gap.

|m| <= 7.3 sqrt(v) at any time (Cauchy-Schwarz over the gradients) and r = 0.9005, so
all terms after REACH are together below 73 r^REACH = 2^-24 of the rate: they are left
out, and only the decay of the moments goes on.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ubrain_jax import sharding

B1, B2, EPS = 0.9, 0.999, 1e-8
# Missed steps that still move a row.
REACH = 200
# At 8 the interpolated sum is off by at most 4e-6 of the rate (1e-12 after step 300).
NODES = 8

_DECAY = B1 / math.sqrt(B2)
_ANGLE = math.pi * (np.arange(NODES) + 0.5) / NODES
_POINTS = np.cos(_ANGLE)
# Moments of Chebyshev polynomials -> weights of the nodes.
_BASIS = np.cos(np.arange(NODES)[:, None] * _ANGLE) * 2 / NODES
_BASIS[0] /= 2


class Rows(NamedTuple):
    """Some rows and what Adam knows of them.

    Attributes:
        values: (..., R, E) float32.
        mean: (..., R, E) first moments.
        square: (..., R, E) second moments.
        last: (..., R) int32, the step after which this is their state.
    """

    values: Any
    mean: Any
    square: Any
    last: Any


class Replay(NamedTuple):
    """What replaying needs of the schedule, for every step t of a run.

    Attributes:
        push: (T + REACH + 1,) a(t); 0 at t = 0.
        log_root: (T + REACH + 1,) log sqrt(1 - b2^t).
        whole: (T + 1, NODES) weights of all that a row misses after step s.
        rate: Step (from 0) -> learning rate.
    """

    push: np.ndarray
    log_root: np.ndarray
    whole: np.ndarray
    rate: optax.Schedule


def make(rate: optax.Schedule, steps: int) -> Replay:
    """Tables for a run of `steps` steps, computed in float64."""
    t = np.arange(steps + REACH + 1)
    rates = jax.jit(rate)(jnp.maximum(jnp.asarray(t) - 1, 0))
    rates = np.broadcast_to(np.asarray(rates, np.float64), t.shape)
    with np.errstate(divide="ignore"):
        log_root = 0.5 * np.log(-np.expm1(t * math.log(B2)))
    log_root[0] = log_root[1]  # no row has a moment then
    push = rates * np.exp(log_root) / -np.expm1(np.maximum(t, 1) * math.log(B1))
    push[0] = 0
    ahead = np.arange(1, REACH + 1)
    whole = []
    # In parts, for the memory of REACH terms a step.
    for s in np.array_split(np.arange(steps + 1), steps // 256 + 1):
        at = s[:, None] + ahead
        moments = _moments(push[at], log_root[at], np)
        whole.append(_weights([m.sum(1) for m in moments], np))
    return Replay(
        push.astype(np.float32),
        log_root.astype(np.float32),
        np.concatenate(whole).astype(np.float32),
        rate,
    )


def scaled(replay: Replay, scale: Any) -> Replay:
    """For learning rates `scale` times as large, a number or a traced scalar.

    None: as they are. Right only for rows that missed nothing under another scale: it
    may change where the table is settled.
    """
    if scale is None:
        return replay
    return replay._replace(
        push=replay.push * scale,
        whole=replay.whole * scale,
        rate=lambda step: replay.rate(step) * scale,
    )


def _range(log_root: Any) -> tuple[Any, Any]:
    """Middle and half width of log(h / eps) from log sqrt(1 - b2^t), (..., REACH)."""
    low = log_root[..., 0] - 0.5 * math.log(B2)
    high = log_root[..., -1] - 0.5 * REACH * math.log(B2)
    return 0.5 * (low + high), 0.5 * (high - low)


def _moments(push: Any, log_root: Any, xp: Any) -> Any:
    """Share of each missed step in the Chebyshev moments of log h.

    Args:
        push: (..., REACH) a(t) for t = s + 1, ..., s + REACH.
        log_root: (..., REACH) log sqrt(1 - b2^t).
        xp: numpy or jax.numpy.

    Returns:
        NODES arrays (..., REACH).
    """
    ahead = np.arange(1, REACH + 1)
    middle, half = _range(log_root)
    place = log_root - 0.5 * math.log(B2) * ahead - middle[..., None]
    place = xp.clip(place / half[..., None], -1, 1)
    size = push * (_DECAY**ahead).astype(push.dtype)
    terms = [size, size * place]
    while len(terms) < NODES:
        terms.append(2 * place * terms[-1] - terms[-2])
    return terms


def _weights(moments: list, xp: Any) -> Any:
    """Moments, NODES arrays (...) -> weights of the nodes (..., NODES)."""
    # Sums of products, since a matrix unit would round them to bfloat16.
    return xp.stack(
        [
            sum(float(_BASIS[m, i]) * moments[m] for m in range(NODES))
            for i in range(NODES)
        ],
        -1,
    )


def recent(replay: Replay, step: jax.Array) -> jax.Array:
    """Weights at a step for rows that have missed 0, 1, ..., REACH steps.

    Returns:
        (REACH + 1, NODES) float32.
    """
    gap = jnp.arange(REACH + 1)
    ahead = jnp.arange(1, REACH + 1)
    since = jnp.maximum(step - gap, 0)
    at = since[:, None] + ahead
    moments = _moments(
        jnp.asarray(replay.push)[at], jnp.asarray(replay.log_root)[at], jnp
    )
    missed = ahead <= gap[:, None]
    return _weights([jnp.sum(jnp.where(missed, m, 0), 1) for m in moments], jnp)


def catch_up(replay: Replay, weights: jax.Array, step: jax.Array, rows: Rows) -> Rows:
    """Rows (..., R, E) as Adam with zero gradients has them after `step`.

    Args:
        replay: From `make`.
        weights: From `recent` at that step.
        step: int32.
        rows: None of them ahead of `step`.
    """
    gap = step - rows.last
    late = (gap > REACH)[..., None]
    whole = jnp.asarray(replay.whole)[rows.last]
    weight = jnp.where(late, whole, weights[jnp.minimum(gap, REACH)])
    log_root = jnp.asarray(replay.log_root)
    ends = jnp.stack([log_root[rows.last + 1], log_root[rows.last + REACH]], -1)
    middle, half = _range(ends)
    root = jnp.sqrt(rows.square)
    push = jnp.zeros_like(root)
    for i in range(NODES):
        node = EPS * jnp.exp(middle + half * float(_POINTS[i]))
        push += weight[..., i, None] / (root + node[..., None])
    missed = gap[..., None].astype(jnp.float32)
    return Rows(
        rows.values - rows.mean * push,
        rows.mean * B1**missed,
        rows.square * B2**missed,
        # Not the step alone: what is written must follow from what was read, or XLA
        # orders the write first and copies the whole of `last` for the reading.
        jnp.maximum(rows.last, step),
    )


def update(replay: Replay, step: jax.Array, rows: Rows, gradient: jax.Array) -> Rows:
    """One step of Adam on rows that are at `step`, as optax has it."""
    count = step + 1
    mean = (1 - B1) * gradient + B1 * rows.mean
    square = (1 - B2) * gradient**2 + B2 * rows.square
    mean_hat = mean / (1 - B1**count).astype(jnp.float32)
    square_hat = square / (1 - B2**count).astype(jnp.float32)
    change = -jnp.asarray(replay.rate(step)) * mean_hat / (jnp.sqrt(square_hat) + EPS)
    return Rows(rows.values + change, mean, square, jnp.maximum(rows.last, count))


class Read(NamedTuple):
    """The rows of the table that a batch reads, each once.

    Attributes:
        rows: (S, D, E) as they are kept, D <= B n.
        row: (S, D) int32, rising; spare ones lie behind the last row of the table.
        slot: (B, S, n) int32, place among D of each voxel of the batch.
    """

    rows: Rows
    row: jax.Array
    slot: jax.Array


def read(table: Rows, voxel: jax.Array, mesh: jax.sharding.Mesh) -> Read:
    """Rows of a table (S, V / S, E) for voxels (B, S, n); spare ones are zero.

    All is done stripe by stripe, so that no row travels between stripes.
    """
    num_rows = table.last.shape[1]
    by_stripe = jnp.swapaxes(voxel, 0, 1).reshape(voxel.shape[1], -1)
    place = sharding.place(mesh, sharding.TABLE)
    by_stripe = jax.lax.with_sharding_constraint(by_stripe, place)
    row, slot = jax.vmap(lambda rows: _distinct(rows, num_rows))(by_stripe)

    def one(stripe, row):
        return stripe.at[row].get(
            mode="fill", fill_value=0, indices_are_sorted=True, unique_indices=True
        )

    rows = Rows(*(jax.vmap(one)(a, row) for a in table))
    slot = slot.reshape(voxel.shape[1], voxel.shape[0], voxel.shape[2])
    return Read(rows, row, jnp.swapaxes(slot, 0, 1))


def _distinct(rows: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
    """Rows (R,) -> at most min(R, num_rows) distinct ones, and where each is there."""
    size = min(rows.shape[0], num_rows)
    order = jnp.argsort(rows)
    ordered = rows[order]
    new = jnp.concatenate([jnp.zeros(1, bool), ordered[1:] != ordered[:-1]])
    place = jnp.cumsum(new, dtype=jnp.int32)
    slot = jnp.zeros_like(rows).at[order].set(place, unique_indices=True)
    spare = num_rows + jnp.arange(size, dtype=jnp.int32)
    row = spare.at[place].set(ordered, indices_are_sorted=True)
    return row, slot


def look_up(values: jax.Array, slot: jax.Array) -> jax.Array:
    """Values (S, D, E) at slots (B, S, n) -> (B, S, n, E).

    Its gradient sums over the pictures that read the same row.
    """
    return jax.vmap(lambda stripe, slots: stripe[slots], (0, 1), 1)(values, slot)


def write(table: Rows, row: jax.Array, rows: Rows) -> Rows:
    """Puts rows (S, D, E) back where `read` took them from, in place if donated."""

    def one(stripe, row, new):
        return stripe.at[row].set(
            new, mode="drop", indices_are_sorted=True, unique_indices=True
        )

    return Rows(*(jax.vmap(one)(a, row, b) for a, b in zip(table, rows, strict=True)))


def settle_programs(
    replay: Replay, place: jax.sharding.NamedSharding, chunk: int = 1024
) -> tuple[Any, Any]:
    """The two programs of `make_settle`: of the values, and of the moments.

    The first takes a scale of the learning rate as its last argument, or nothing.
    """
    # Two programs: nothing orders the writing of the moments behind their reading for
    # the values, so in one XLA would copy them whole.
    move = jax.jit(
        functools.partial(_settled_values, replay, chunk),
        donate_argnums=0,
        out_shardings=place,
    )
    return move, jax.jit(_settled_moments, donate_argnums=(0, 1), out_shardings=place)


def make_settle(
    replay: Replay, place: jax.sharding.NamedSharding, chunk: int = 1024
) -> Callable[..., Rows]:
    """(step, table[, scale]) -> the table with every row at `step`; the old is donated.

    `scale` multiplies the learning rates of `replay`.

    Args:
        replay: From `make`.
        place: Of the table (S, rows, E).
        chunk: Rows of a stripe at a time, which bounds the memory.
    """
    move, decay = settle_programs(replay, place, chunk)

    def settle(step: jax.Array, table: Rows, scale: Any = None) -> Rows:
        values, mean, square, last = table
        values = move(values, mean, square, last, step, scale)
        return Rows(values, *decay(mean, square, last, step))

    return settle


def _settled_values(
    replay: Replay,
    chunk: int,
    values: jax.Array,
    mean: jax.Array,
    square: jax.Array,
    last: jax.Array,
    step: jax.Array,
    scale: Any = None,
) -> jax.Array:
    """Values of the whole table after `step`."""
    replay = scaled(replay, scale)
    num_rows = last.shape[1]
    chunk = min(chunk, num_rows)
    weights = recent(replay, step)

    def part(k: jax.Array, carry: tuple) -> tuple:
        values, done = carry
        # The last part overlaps the one before, whose rows are not moved again.
        start = jnp.minimum(k * chunk, num_rows - chunk)
        rows = Rows(
            *(
                jax.lax.dynamic_slice_in_dim(a, start, chunk, 1)
                for a in (values, mean, square, last)
            )
        )
        moved = catch_up(replay, weights, step, rows).values
        new = (start + jnp.arange(chunk) >= done)[:, None]
        moved = jnp.where(new, moved, rows.values)
        values = jax.lax.dynamic_update_slice_in_dim(values, moved, start, 1)
        return values, start + chunk

    return jax.lax.fori_loop(0, -(-num_rows // chunk), part, (values, 0))[0]


def _settled_moments(
    mean: jax.Array, square: jax.Array, last: jax.Array, step: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Moments of the whole table after `step`, and the note that they are there."""
    missed = (step - last)[..., None].astype(jnp.float32)
    return mean * B1**missed, square * B2**missed, jnp.full_like(last, step)
