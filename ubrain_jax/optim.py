"""The optimiser: Adam over trainable weights only, so frozen ones have no state."""

from typing import Any

import jax
import jax.numpy as jnp
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
    return optax.adam(rate, b1=rowsparse.B1, b2=rowsparse.B2, eps=rowsparse.EPS)


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
