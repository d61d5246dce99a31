"""The optimiser: Adam over trainable weights only, so frozen ones have no state.

Its state is (adam, schedule[, last]), where `last` is there for a sparse table and
`schedule` is a `Plateau` where validations set the rate.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ubrain_jax import config, rowsparse

# Rows of the table on one device above which updating all of them in every step costs
# more than replaying what the rows of a batch missed.
SPARSE_ABOVE = 1_000_000


def learning_rate(settings: config.Optim, steps: int) -> optax.Schedule:
    """Step -> learning rate, for a run of `steps` steps.

    Example:
        >>> rate = learning_rate(config.Optim(warmup_steps=10), 100)
        >>> float(rate(0)), round(float(rate(10)), 6)
        (0.0, 0.001)
    """
    peak = settings.learning_rate
    if settings.schedule == "cosine":
        rest = max(1, steps - settings.warmup_steps)
        after = optax.cosine_decay_schedule(peak, rest, alpha=0.01)
    else:
        after = optax.constant_schedule(peak)
    if not settings.warmup_steps:
        return after
    before = optax.linear_schedule(0.0, peak, settings.warmup_steps)
    return optax.join_schedules([before, after], [settings.warmup_steps])


def make(settings: config.Optim, steps: int) -> optax.GradientTransformation:
    """Adam as in the paper: beta 0.9 and 0.999, no decay, no clipping."""
    rate = learning_rate(settings, steps)
    adam = _scale_by_amsgrad if settings.amsgrad else optax.scale_by_adam
    return optax.chain(
        adam(b1=rowsparse.B1, b2=rowsparse.B2, eps=rowsparse.EPS),
        _scale_by_plateau(rate)
        if settings.schedule == "plateau"
        else optax.scale_by_learning_rate(rate),
    )


class Amsgrad(NamedTuple):
    """State of Adam that divides by the largest second moment so far.

    Attributes:
        count: Steps done.
        mu: First moments.
        nu: Second moments.
        most: The largest of each second moment, as it was before bias correction.
    """

    count: jax.Array
    mu: Any
    nu: Any
    most: Any


def _scale_by_amsgrad(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam with amsgrad as torch has it.

    With m, v the moments after step t and s the largest v so far,

        m / (1 - b1^t) / (sqrt(s) / sqrt(1 - b2^t) + eps).

    optax.amsgrad takes the largest v / (1 - b2^t) instead, which is never smaller: what
    the first few gradients were, over a small 1 - b2^t, then slows all later steps.

    References:
        Reddi et al., 2018, On the convergence of Adam and beyond, ICLR: algorithm 2.
    """

    def init(params: Any) -> Amsgrad:
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(3)]
        return Amsgrad(jnp.zeros((), jnp.int32), *zeros)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Amsgrad]:
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda g, m: (1 - b1) * g + b1 * m, updates, state.mu)
        nu = jax.tree.map(lambda g, v: (1 - b2) * g**2 + b2 * v, updates, state.nu)
        most = jax.tree.map(jnp.maximum, state.most, nu)
        # 1 - b^t without cancellation, which costs 1e-5 of 1 - b2 in float32.
        whole = [-jnp.expm1(count * math.log(b)) for b in (b1, b2)]

        def direction(m: jax.Array, s: jax.Array) -> jax.Array:
            first, second = (w.astype(m.dtype) for w in whole)
            return m / first / (jnp.sqrt(s) / jnp.sqrt(second) + eps)

        return jax.tree.map(direction, mu, most), Amsgrad(count, mu, nu, most)

    return optax.GradientTransformation(init, update)


class Plateau(NamedTuple):
    """State of a rate that falls when validations stop getting better; scalars.

    Attributes:
        count: Steps done.
        scale: float32, of the learning rate: plateau_factor to the number of cuts.
        best: float32, the highest validation score so far.
        bad: int32, validations since then or since the last cut.
    """

    count: Any
    scale: Any
    best: Any
    bad: Any


# A cut smaller than this is not made, as in torch.
_LEAST_CUT = 1e-8


def _scale_by_plateau(rate: optax.Schedule) -> optax.GradientTransformation:
    """Multiplies by -rate(step) and by the scale that `judged` sets."""

    def init(params: Any) -> Plateau:
        del params
        start = jnp.ones((), jnp.float32), jnp.full((), -jnp.inf, jnp.float32)
        return Plateau(jnp.zeros((), jnp.int32), *start, jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Plateau]:
        del params
        size = -jnp.asarray(rate(state.count)) * state.scale
        moved = jax.tree.map(lambda u: u * size.astype(u.dtype), updates)
        return moved, state._replace(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def judged(settings: config.Optim, plateau: Plateau, score: float) -> Plateau:
    """The state after a validation, as torch's ReduceLROnPlateau(mode="max") has it.

    Args:
        settings: Factor, patience and threshold (absolute).
        plateau: Before it.
        score: Higher is better; NaN never is.

    Returns:
        NumPy scalars, but for `count`, which is as it was.

    Example:
        >>> settings = config.Optim(plateau_patience=0)
        >>> state = Plateau(0, np.float32(1), np.float32(-np.inf), np.int32(0))
        >>> for score in (0.2, 0.3, 0.302):
        ...     state = judged(settings, state, score)
        >>> float(state.scale).__round__(6), float(state.best).__round__(6)
        (0.1, 0.3)
    """
    scale, best, bad = float(plateau.scale), float(plateau.best), int(plateau.bad)
    # What a checkpoint keeps of the best is float32; so is what it is compared with.
    score = float(np.float32(score))
    if score > best + settings.plateau_threshold:
        best, bad = score, 0
    else:
        bad += 1
    if bad > settings.plateau_patience:
        bad, cut = 0, scale * settings.plateau_factor
        if settings.learning_rate * (scale - cut) > _LEAST_CUT:
            scale = cut
    return Plateau(plateau.count, np.float32(scale), np.float32(best), np.int32(bad))


def has_ended(settings: config.Optim, optimiser: Any) -> bool:
    """Whether the rate of an optimiser's state has fallen below plateau_stop."""
    scale = scale_of(optimiser)
    if scale is None:
        return False
    # The scale is rounded to float32: 1e-3 cut four times by 0.1 is not below 1e-7.
    stop = settings.plateau_stop * (1 - 1e-6)
    return settings.learning_rate * float(scale) < stop


def scale_of(optimiser: Any) -> Any:
    """What validations have made of the rate; None where they make nothing of it."""
    schedule = optimiser[1]
    return schedule.scale if isinstance(schedule, Plateau) else None


def table_kind(
    experiment: config.Experiment, num_voxels: int, mesh: jax.sharding.Mesh
) -> str:
    """How the voxel table is updated: "dense" or "sparse" (see `rowsparse`).

    Args:
        experiment: Of which optim.table is read.
        num_voxels: V over all subjects.
        mesh: Its axis "voxel" shares the rows.
    """
    if experiment.optim.table != "auto":
        return experiment.optim.table
    if experiment.optim.amsgrad:  # an idle row's largest moment is not replayed
        return "dense"
    rows = num_voxels / mesh.shape["voxel"]
    return "sparse" if rows > SPARSE_ABOVE else "dense"


def with_last(state: Any) -> Any:
    """A state of `make` made one of a sparse table: every row is at the state's step.

    The note of each row's last step stands behind the optimiser's state, under the
    name that is striped as the table is.
    """
    rows = jnp.full(state.params["table"].shape[:2], state.step, jnp.int32)
    return state._replace(optimiser=(*state.optimiser, {"table": rows}))


def saved(state: Any) -> Any:
    """What a checkpoint holds of a settled state: the same for both kinds of table."""
    return state._replace(optimiser=state.optimiser[:2])


def restored(saved: Any, like: Any) -> Any:
    """What `saved` kept, as a state of the kind and places of `like`."""
    if len(like.optimiser) == 2:
        return saved
    last = like.optimiser[2]["table"]
    # Where it lies, and nowhere else first.
    full = jax.jit(
        lambda step: jnp.full(last.shape, step, jnp.int32), out_shardings=last.sharding
    )
    rows = {"table": full(saved.step)}
    return saved._replace(optimiser=(*saved.optimiser, rows))


def take_apart(state: Any) -> tuple[rowsparse.Rows, Any, Any]:
    """Of a state with a sparse table: the table; the other weights; their optimiser."""
    adam, schedule, last = state.optimiser
    table = rowsparse.Rows(
        state.params["table"], adam.mu["table"], adam.nu["table"], last["table"]
    )
    rest = [without_table(t) for t in (state.params, adam.mu, adam.nu)]
    return table, rest[0], (adam._replace(mu=rest[1], nu=rest[2]), schedule)


def put_together(state: Any, table: rowsparse.Rows, rest: Any, optimiser: Any) -> Any:
    """The state with new parts, as `take_apart` gives them."""
    adam, schedule = optimiser
    adam = adam._replace(
        mu=with_table(adam.mu, table.mean), nu=with_table(adam.nu, table.square)
    )
    return state._replace(
        params=with_table(rest, table.values),
        optimiser=(adam, schedule, {"table": table.last}),
    )


def without_table(tree: Any) -> Any:
    """A tree of the weights with None for the table."""

    def keep(path: Any, leaf: Any) -> Any:
        return None if getattr(path[0], "key", None) == "table" else leaf

    return jax.tree_util.tree_map_with_path(keep, tree)


def with_table(rest: Any, table: Any) -> Any:
    """What `without_table` left, with a table."""
    return jax.tree.map(
        lambda leaf: table if leaf is None else leaf, rest, is_leaf=lambda x: x is None
    )
