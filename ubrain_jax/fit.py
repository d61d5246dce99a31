"""A new subject for a trained encoder: its embeddings learned, all else frozen.

Every voxel of the subject trains at every step, on features that `frozen` computed
once, unless memory forbids it; pictures of the val split say when to stop. Features and
responses stay on an accelerator where they fit.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from flax import nnx

from ubrain_jax import (
    errors,
    evaluate,
    experiments,
    frozen,
    losses,
    memory,
    metrics,
    sharding,
    twin,
)
from ubrain_jax.model import encoder

# Pictures that twins are looked for with, and existing voxels among which.
TWIN_IMAGES = 256
TWIN_CANDIDATES = 20_000
# Share of the memory that the voxels of one step may take, and as much again the
# features and responses that stay there.
_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a new subject is fitted: the flags of `transfer`."""

    # 'random' (as the table of a new encoder) or 'twin' (see the module twin).
    init: str = "random"
    # Most steps; 0: the start itself is the result.
    steps: int = 2000
    # Images in a step; fewer where there are fewer.
    batch_images: int = 32
    # Voxels in a step, drawn anew each step; 0: all, or as many as memory allows.
    voxels_per_step: int = 0
    learning_rate: float = 1e-3
    # Pull of a voxel to its twin, in images: its weight is (pull / images)^2, so that
    # it counts for little when there are more than these; 0: none.
    pull: float = 100.0
    # Validation every so many steps, and how many without a better one end it.
    eval_every_steps: int = 20
    patience: int = 10
    seed: int = 0


class State(NamedTuple):
    """What fitting changes."""

    step: jax.Array
    table: jax.Array
    optimiser: Any


class Batch(NamedTuple):
    """B pictures, n voxels of each of S stripes, the same for all pictures.

    Attributes:
        features: (B, L, P, C).
        response: (B, S, n) float32.
        weight: (S, n) float32: 1, or 0 where a stripe is short of a voxel.
        rows: (S, n) int32 inside the stripe, or None: all, in order.
    """

    features: Any
    response: Any
    weight: Any
    rows: Any


class Fitted(NamedTuple):
    """Embeddings of a new subject.

    Attributes:
        table: (S, rows, E) float32 of the best validation.
        step: Steps until then.
        steps: Steps done.
        score: Mean correlation over voxels on the val pictures; NaN without.
        log: One dict for each validation: step, loss, val_mean_r.
        seconds: Of the steps, without compiling and validation.
    """

    table: np.ndarray
    step: int
    steps: int
    score: float
    log: list[dict[str, Any]]
    seconds: float


def check(settings: Settings) -> None:
    """Refuses settings that cannot work, all at once.

    Raises:
        errors.ConfigError: Naming each.
    """
    least = {
        "steps": 0,
        "batch_images": 1,
        "voxels_per_step": 0,
        "pull": 0,
        "eval_every_steps": 1,
        "patience": 1,
        "seed": 0,
    }
    values = dataclasses.asdict(settings)
    faults = [
        f"--{name} is {values[name]}, not {low} or more"
        for name, low in least.items()
        if not (math.isfinite(values[name]) and values[name] >= low)
    ]
    if not (math.isfinite(settings.learning_rate) and settings.learning_rate > 0):
        faults.append(f"--learning_rate is {settings.learning_rate}, not above 0")
    if faults:
        raise errors.ConfigError(
            "flags", "", "; ".join(faults), "values in range", "Change them."
        )


def pull_weight(settings: Settings, num_images: int) -> float:
    """Weight of the squared distance to the start, in units of its mean square.

    Example:
        >>> twin = Settings(init="twin", pull=100.0)
        >>> [pull_weight(twin, n) for n in (50, 100, 1000)]
        [4.0, 1.0, 0.010000000000000002]
    """
    return (settings.pull / num_images) ** 2 if settings.init == "twin" else 0.0


def on_mesh(table: np.ndarray, like: jax.Array) -> jax.Array:
    """A table (S, rows, E) in the place of another."""
    return jax.device_put(table, like.sharding)


def make_step(run: experiments.Run, settings: Settings) -> Callable:
    """The compiled step: (state, start, fixed, pull, batch, key) -> (state, loss).

    Only the table has a gradient. `fixed` is (shared, frozen) weights; `start` the
    table that `pull` draws the voxels to. What the head computes is kept for the
    backward pass where all taps of a step fit in memory, else recomputed by tap.
    """
    graph, loss_settings = run.parts.graph, run.experiment.loss
    optimiser = optax.adam(settings.learning_rate)

    def step(state, start, fixed, pull, batch, key):
        shared, backbone = fixed
        key = jax.random.fold_in(key, state.step)
        keys = jax.random.split(key, batch.features.shape[0])

        def loss(table):
            model = nnx.merge(graph, {**shared, "table": table}, backbone)
            taps, size = model.head.num_taps, batch.weight.size * len(keys)
            model.head.remat = size * taps * _bytes_of_voxel(run) > _room(run)
            own, anchor = table, start
            if batch.rows is not None:
                take = jax.vmap(lambda stripe, rows: stripe[rows])
                own, anchor = take(table, batch.rows), take(start, batch.rows)
            flat = own.reshape(-1, own.shape[-1])  # (N, E)
            predicted = model.respond_all(batch.features, flat, keys)  # (B, N)
            weight = batch.weight.reshape(-1)
            response = batch.response.reshape(len(predicted), -1)
            each = jax.vmap(
                lambda p, y: losses.encoder_loss(
                    p, y, weight, loss_settings.alpha, loss_settings.kind
                )
            )(predicted, response)
            far = jnp.mean(jnp.square(own - anchor), -1)  # (S, n)
            return jnp.mean(each) + pull * jnp.sum(far * batch.weight) / jnp.sum(weight)

        value, gradient = jax.value_and_grad(loss)(state.table)
        updates, moments = optimiser.update(gradient, state.optimiser, state.table)
        table = cast(jax.Array, optax.apply_updates(state.table, updates))
        return State(state.step + 1, table, moments), value

    return jax.jit(step, donate_argnums=0)


def voxels_that_fit(run: experiments.Run, batch_images: int, wanted: int) -> int:
    """Voxels of one step: those wanted, or all (0), as far as memory allows.

    One tap of every picture and voxel of a step must fit in the memory set apart.
    """
    most = run.stores.subjects[0].num_voxels
    room = int(_room(run) / (batch_images * _bytes_of_voxel(run)))
    stripes = run.experiment.data.stripes
    room = max(stripes, room // stripes * stripes)
    return min(wanted or most, most, room)


def _bytes_of_voxel(run: experiments.Run) -> int:
    """What one tap keeps for one picture and voxel until the backward pass.

    In float32: attention over P tokens, the MLP, and the dropout around it.
    """
    head = run.experiment.head
    tokens = len(encoder.token_places(run.experiment, run.provenance.geometry))
    hidden = head.mlp_ratio * head.channels
    return 4 * (3 * tokens + 3 * hidden + 4 * head.channels)


def _room(run: experiments.Run) -> float:
    """Bytes for that: a quarter of the devices' memory, or of the host's on a CPU."""
    device = run.mesh.devices.flat[0]
    if device.platform == "cpu":
        return _SHARE * frozen.host_memory()
    limit = memory.limit(run.mesh) or frozen.host_memory()
    return _SHARE * limit * run.mesh.size


def _stays(run: experiments.Run, features: np.ndarray, responses: np.ndarray) -> bool:
    """Whether training data stay on the devices: a quarter of one must hold them."""
    if run.mesh.devices.flat[0].platform == "cpu":
        return False
    size = features.nbytes + 4 * responses.size / run.mesh.shape["voxel"]
    return size < _room(run) / run.mesh.size


# Pictures (B,) of a step and rows (S, n) or None -> features and responses of `Batch`.
Pick = Callable[[np.ndarray, np.ndarray | None], tuple[Any, Any]]


def from_host(
    run: experiments.Run, features: np.ndarray, responses: np.ndarray
) -> Pick:
    """Features (M, L, P, C) and responses (M, V): those of each step are sent."""
    stripes = run.experiment.data.stripes

    def pick(pictures: np.ndarray, rows: np.ndarray | None) -> tuple:
        response = _arrange(responses[pictures], stripes)
        if rows is not None:
            response = response[:, np.arange(stripes)[:, None], rows]
        return (
            sharding.put(run.mesh, sharding.FEATURES, np.asarray(features[pictures])),
            sharding.put(run.mesh, sharding.SAMPLES, response),
        )

    return pick


def on_devices(
    run: experiments.Run, features: np.ndarray, responses: np.ndarray
) -> Pick:
    """Sent once: features to every device, responses to the stripes of the table."""
    mesh, stripes = run.mesh, run.experiment.data.stripes
    kept = sharding.put(mesh, sharding.REPLICATED, np.asarray(features))
    arranged = np.swapaxes(_arrange(responses, stripes), 0, 1)  # (S, M, rows)
    response = sharding.put(mesh, sharding.TABLE, arranged)

    def take(features, response, pictures, rows):
        some = response[:, pictures]  # (S, B, rows)
        if rows is not None:
            some = jnp.take_along_axis(some, rows[:, None], 2)
        return features[pictures], some.swapaxes(0, 1)

    specs = (sharding.FEATURES, sharding.SAMPLES)
    places = tuple(sharding.place(mesh, spec) for spec in specs)
    compiled = jax.jit(take, out_shardings=places)
    return lambda pictures, rows: compiled(
        kept, response, pictures.astype(np.int32), rows
    )


def fit(
    run: experiments.Run,
    predictor: evaluate.Predictor,
    params: Any,
    pictures: dict[str, np.ndarray],
    responses: dict[str, np.ndarray],
    settings: Settings,
    *,
    step_fn: Callable | None = None,
    on_device: bool | None = None,
    quiet: bool = False,
) -> Fitted:
    """Trains the embeddings of the run's one subject.

    Args:
        run: From `attach`.
        predictor: Compiled for the run.
        params: From `attach`, with the start in the table.
        pictures: Features (M, L, P, C) of "train" and "val" pictures.
        responses: (M, V) measured responses to them.
        settings: How.
        step_fn: From `make_step` with these settings, where it exists already.
        on_device: Whether features and responses stay on the devices, where batches
            are picked from them; None: where they fit, but not on a CPU. The batches
            are the same.
        quiet: No progress bar.

    Returns:
        The embeddings of the best validation, the start among them; of the last step
        where there are fewer than 3 val pictures.
    """
    stripes, mesh = run.experiment.data.stripes, run.mesh
    train = pictures["train"]
    images = min(settings.batch_images, len(train))
    data_size = mesh.shape["data"]
    images = max(data_size, images // data_size * data_size)
    subject = run.stores.subjects[0]
    voxels = voxels_that_fit(run, images, settings.voxels_per_step)
    count = None if voxels == subject.num_voxels else max(1, voxels // stripes)
    weight = _arrange(np.ones((1, subject.num_voxels), np.float32), stripes)[0]

    if on_device is None:
        on_device = _stays(run, train, responses["train"])
    pick = (on_devices if on_device else from_host)(run, train, responses["train"])
    all_weight = sharding.put(mesh, sharding.TABLE, weight)

    def batch_of(step: int) -> Batch:
        rows = _pictures_of_step(settings.seed, step, images, len(train))
        drawn = _rows_of_step(settings.seed, step, weight, count)
        features, response = pick(rows, drawn)
        if drawn is None:
            return Batch(features, response, all_weight, None)
        own = weight[np.arange(stripes)[:, None], drawn]
        placed = (sharding.put(mesh, sharding.TABLE, x) for x in (own, drawn))
        return Batch(features, response, *placed)

    step_fn = step_fn or make_step(run, settings)
    shared = {k: v for k, v in params.items() if k != "table"}
    start = params["table"]

    def make(table: jax.Array) -> State:
        moments = optax.adam(0.0).init(cast(Any, table))
        return State(jnp.zeros((), jnp.int32), table + 0, moments)

    places = encoder.placements(
        jax.eval_shape(lambda t: {"table": make(t)}, start), mesh
    )
    # A copy of the table: the step gives its arguments away.
    state = jax.jit(make, out_shardings=places["table"])(start)
    scale = float(jnp.mean(jnp.square(start))) or 1.0
    pull = np.float32(pull_weight(settings, len(train)) / scale)
    fixed, key = (shared, run.parts.frozen), jax.random.key(settings.seed)

    can_choose = len(pictures["val"]) >= 3
    everyone = evaluate.voxels_of(subject)

    def score(table: jax.Array) -> float:
        if not can_choose:
            return float("nan")
        predicted = predictor.responses(
            {**shared, "table": table}, pictures["val"], everyone
        )
        r = metrics.pearson(responses["val"], predicted)
        return float(np.nan_to_num(r).mean())  # undefined counts as 0

    best, best_step, best_score = np.asarray(start), 0, score(start)
    log = []
    seconds, steps, loss = 0.0, 0, jnp.nan
    progress = tqdm.tqdm(total=settings.steps, desc="fit", disable=quiet or None)
    while steps < settings.steps:
        until = min(settings.steps, steps + settings.eval_every_steps)
        began, first = time.monotonic(), steps
        while steps < until:
            state, loss = step_fn(state, start, fixed, pull, batch_of(steps), key)
            steps += 1
        value = float(loss)
        seconds += time.monotonic() - began if first else 0.0
        if not np.isfinite(value):
            raise errors.NonFiniteLossError(
                f"the loss of step {steps} is {value}; lower --learning_rate"
            )
        found = score(state.table)
        log.append(
            {"step": steps, "loss": value, "val_mean_r": metrics.null_for_nan(found)}
        )
        progress.update(until - first)
        progress.set_postfix_str(f"loss {value:.4f}, val mean r {found:.3f}")
        if not can_choose or found > best_score:
            best, best_step, best_score = np.asarray(state.table), steps, found
        elif steps - best_step >= settings.patience * settings.eval_every_steps:
            break
    progress.close()
    return Fitted(best, best_step, steps, best_score, log, seconds)


def start_table(
    trained: frozen.Trained,
    run: experiments.Run,
    predictor: evaluate.Predictor,
    params: Any,
    pictures: np.ndarray,
    responses: np.ndarray,
    settings: Settings,
) -> tuple[Any, list[str]]:
    """The table to start from, on the mesh, and lines about it.

    Args:
        trained: The encoder.
        run: From `attach`.
        predictor: Compiled for the run.
        params: From `attach`.
        pictures: (M, L, P, C) features of the train pictures; val pictures would not
            be a fair judge of a start that they chose.
        responses: (M, V) measured responses to them.
        settings: `init` and `seed`.
    """
    if settings.init == "random":
        key = jax.random.key(settings.seed)
        table = params["table"]
        return on_mesh(np.asarray(encoder.initial_table(key, table.shape)), table), []
    if len(pictures) < 2 * twin.FOLDS:
        raise errors.ConfigError(
            "--num_images",
            "",
            f"{len(pictures)} pictures",
            f"{2 * twin.FOLDS} or more for --init=twin",
            "Use more pictures or --init=random.",
        )
    rng = np.random.default_rng(settings.seed)
    some = np.arange(len(pictures))
    if len(some) > TWIN_IMAGES:
        some = np.sort(rng.choice(some, TWIN_IMAGES, replace=False))
    rows = np.arange(len(trained.embeddings))
    if len(rows) > TWIN_CANDIDATES:
        rows = np.sort(rng.choice(rows, TWIN_CANDIDATES, replace=False))
    found = twin.find(
        predictor,
        params,
        np.asarray(pictures[some]),
        responses[some],
        trained.embeddings[rows],
        seed=settings.seed,
    )
    single = found.candidate >= 0
    owner = np.repeat(list(trained.subjects), list(trained.subjects.values()))
    names, counts = np.unique(owner[rows[found.candidate[single]]], return_counts=True)
    whose = ", ".join(f"{c} of {n}" for n, c in zip(names, counts, strict=True))
    median = metrics.quartiles(found.score)["median"]
    lines = [
        f"twins: {int(single.sum())} of {len(single)} voxels start at one existing "
        f"voxel ({whose}), the others at the mean of a cluster; median cross-validated "
        f"r {median:.3f}"
    ]
    table = encoder.table_of_rows(found.embedding, run.experiment.data.stripes)
    return on_mesh(table, params["table"]), lines


def _arrange(values: np.ndarray, stripes: int) -> np.ndarray:
    """(M, V) in the order of voxels -> (M, S, rows), 0 where there is none."""
    rows = -(-values.shape[1] // stripes)
    padded = np.zeros((len(values), rows * stripes), np.float32)
    padded[:, : values.shape[1]] = values
    return np.ascontiguousarray(padded.reshape(-1, rows, stripes).swapaxes(1, 2))


def _pictures_of_step(seed: int, step: int, batch: int, count: int) -> np.ndarray:
    """(batch,) of `count` pictures: each epoch shows all once, in its own order."""
    place = np.arange(step * batch, (step + 1) * batch)
    out = np.empty(batch, np.int64)
    for epoch in np.unique(place // count):
        order = np.random.default_rng([seed, 0, int(epoch)]).permutation(count)
        mine = place // count == epoch
        out[mine] = order[place[mine] % count]
    return out


def _rows_of_step(
    seed: int, step: int, weight: np.ndarray, count: int | None
) -> np.ndarray | None:
    """(S, count) rows drawn from each stripe without replacement; None: all.

    Only rows with a voxel (weight 1, the first ones) are drawn.
    """
    if count is None:
        return None
    rng = np.random.default_rng([seed, 1, step])
    drawn = [rng.choice(int(w.sum()), count, replace=False) for w in weight]
    return np.stack(drawn).astype(np.int32)
