"""The optimiser: Adam over trainable weights only, so frozen ones have no state."""

from typing import Any

import jax
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


def take_apart(state: Any) -> tuple[rowsparse.Rows, Any, Any]:
    """Of a state: the table with its moments, the other weights, their optimiser state.

    Args:
        state: With params, optimiser (of `make`) and last.
    """

    def rest(tree: Any) -> Any:
        return {name: leaf for name, leaf in tree.items() if name != "table"}

    adam, schedule = state.optimiser
    table = rowsparse.Rows(
        state.params["table"], adam.mu["table"], adam.nu["table"], state.last
    )
    adam = adam._replace(mu=rest(adam.mu), nu=rest(adam.nu))
    return table, rest(state.params), (adam, schedule)


def put_together(state: Any, table: rowsparse.Rows, rest: Any, optimiser: Any) -> Any:
    """The state with new parts, as `take_apart` gives them."""
    adam, schedule = optimiser
    adam = adam._replace(
        mu={**adam.mu, "table": table.mean}, nu={**adam.nu, "table": table.square}
    )
    params = {**rest, "table": table.values}
    return state._replace(params=params, optimiser=(adam, schedule), last=table.last)
