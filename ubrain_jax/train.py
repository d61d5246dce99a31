"""Training: one jitted step over the mesh, and the loop around it.

Order in the loop, which resuming relies on: (1) take the batch of this step,
(2) run the step, (3) check the loss of the step before, (4) log, (5) score the
validation images, keep the weights if they are the best, and set the learning rate if
the schedule is 'plateau', (6) save, (7) stop if that schedule has ended or a signal
asked for it. Nothing here depends on the clock but the speed shown.

With several processes all of them run all of this; process 0 alone writes and prints.
"""

import contextlib
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from flax import nnx

from ubrain_jax import (
    batches,
    checkpoint,
    cluster,
    config,
    crowd,
    errors,
    evaluate,
    experiments,
    frozen,
    losses,
    memory,
    optim,
    resident,
    rowsparse,
    sharding,
    validation,
    warmstart,
    watch,
    whole,
)
from ubrain_jax.model import encoder

_ENDED = "the learning rate fell below optim.plateau_stop"


class State(NamedTuple):
    """Everything that training changes; `optim.saved` of it is in a checkpoint."""

    step: jax.Array
    params: Any
    optimiser: Any


def loss_of_batch(
    model: encoder.Encoder,
    batch: batches.Batch,
    key: jax.Array | None,
    mesh: jax.sharding.Mesh,
    settings: config.Loss,
    embeddings: Any = None,
    group_images: int = 1,
) -> jax.Array:
    """Mean over the pictures of a batch of their loss over their sampled voxels.

    With loss.contrastive, plus the mean over its groups of what compares pictures.

    Args:
        model: The encoder.
        batch: On the mesh.
        key: For dropout; None: without.
        mesh: For the places of what travels.
        settings: Loss weights.
        embeddings: Of the voxels of the batch (B, S, n, E); None: from the table.
        group_images: Pictures of a group, for loss.contrastive.
    """
    constrain = jax.lax.with_sharding_constraint
    pictures = constrain(batch.image, sharding.place(mesh, sharding.IMAGES))
    features = model.features(pictures)
    features = constrain(features, sharding.place(mesh, sharding.FEATURES))
    if embeddings is None:
        embeddings = model.embeddings(batch.voxel)  # (B, S, n, E)
    embeddings = constrain(embeddings, sharding.place(mesh, sharding.SAMPLES))
    size = batch.voxel.shape[0]
    keys = None if key is None else jax.random.split(key, size)
    flat = embeddings.reshape(size, -1, embeddings.shape[-1])
    predicted = model.respond(features, flat, keys)  # (B, N)
    response, weight = (x.reshape(size, -1) for x in (batch.response, batch.weight))
    each = jax.vmap(
        lambda p, y, w: losses.encoder_loss(p, y, w, settings.alpha, settings.kind)
    )
    loss = jnp.mean(each(predicted, response, weight))
    if settings.contrastive > 0:
        loss += losses.contrast_loss(
            predicted,
            response,
            weight,
            group_images,
            settings.contrastive,
            settings.entropy,
            settings.temperature,
        )
    return loss


class Programs(NamedTuple):
    """Compiled pieces that runs of one shape share: all but pictures and seed."""

    step: Callable[..., tuple[State, jax.Array]]
    settled: Callable[[State], State]
    predictor: evaluate.Predictor


def compile_run(run: experiments.Run) -> Programs:
    """What `train` needs compiled, for itself and for runs that differ only in seed
    and pictures; nothing is computed before it is used."""
    steps = total_steps(run.experiment, run.stores)
    optimiser = optim.make(run.experiment.optim, steps)
    places, replay = _places(run, optimiser), _replay(run)
    return Programs(
        _compile_step(run, optimiser, places, replay),
        make_settled(run, replay),
        evaluate.Predictor(run),
    )


def make_step(
    run: experiments.Run, optimiser: optax.GradientTransformation, places: State
) -> Callable[[State, Any, batches.Batch], tuple[State, jax.Array]]:
    """The compiled step: (state, frozen weights, batch) -> (state, loss).

    The state is donated: the old one is gone after the call. Dropout of a step comes
    from the seed and the step alone.
    """
    return _with_seed(_compile_step(run, optimiser, places, _replay(run)), run)


def _with_seed(step: Callable, run: experiments.Run) -> Callable:
    root = np.uint32(run.experiment.train.seed)
    return lambda state, frozen, batch: step(state, frozen, batch, root)


def _compile_step(
    run: experiments.Run,
    optimiser: optax.GradientTransformation,
    places: State,
    replay: rowsparse.Replay | None,
) -> Callable[..., tuple[State, jax.Array]]:
    """(state, frozen weights, batch, seed) -> (state, loss): one for all seeds."""
    experiment, graph, mesh = run.experiment, run.parts.graph, run.mesh
    voxels = run.stores.num_voxels
    kind = optim.table_kind(experiment, voxels, mesh)
    head = memory.with_remat(
        experiment, run.provenance.geometry, voxels, mesh, table=kind
    ).head

    def step(state: State, frozen: Any, batch: batches.Batch, root: Any):
        key = jax.random.fold_in(jax.random.key(root), state.step)

        def loss(params, embeddings=None):
            model = nnx.merge(graph, params, frozen)
            model.head.remat = head.remat == "on"
            return loss_of_batch(
                *(model, batch, key, mesh, experiment.loss, embeddings),
                experiment.data.group_images,
            )

        if replay is None:
            state, value = _dense(optimiser, state, loss)
        else:
            state, value = _sparse(optimiser, replay, state, loss, batch.voxel, mesh)
        return state._replace(step=state.step + 1), value

    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(places, sharding.place(mesh, sharding.REPLICATED)),
    )


def _dense(
    optimiser: optax.GradientTransformation, state: State, loss: Callable
) -> tuple[State, jax.Array]:
    """All weights after a step, and the loss before it."""
    value, gradient = jax.value_and_grad(loss)(state.params)
    updates, moments = optimiser.update(gradient, state.optimiser, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(params=params, optimiser=moments), value


def _sparse(
    optimiser: optax.GradientTransformation,
    replay: rowsparse.Replay,
    state: State,
    loss: Callable,
    voxel: jax.Array,
    mesh: jax.sharding.Mesh,
) -> tuple[State, jax.Array]:
    """As `_dense`, but of the table only the rows of `voxel` (B, S, n) are touched."""
    table, rest, moments = optim.take_apart(state)
    replay = rowsparse.scaled(replay, optim.scale_of(state.optimiser))
    read = rowsparse.read(table, voxel, mesh)
    late = rowsparse.recent(replay, state.step)
    rows = rowsparse.catch_up(replay, late, state.step, read.rows)

    def of_parts(rest, values):
        params = optim.with_table(rest, table.values)  # which is not read
        return loss(params, rowsparse.look_up(values, read.slot))

    both = jax.value_and_grad(of_parts, (0, 1))
    value, (gradient, of_rows) = both(rest, rows.values)
    rows = rowsparse.update(replay, state.step, rows, of_rows)
    table = rowsparse.write(table, read.row, rows)
    updates, moments = optimiser.update(gradient, moments, rest)
    rest = optax.apply_updates(rest, updates)
    return optim.put_together(state, table, rest, moments), value


def _replay(run: experiments.Run) -> rowsparse.Replay | None:
    """What a sparse table needs of the schedule; None where the table is dense."""
    experiment = run.experiment
    if optim.table_kind(experiment, run.stores.num_voxels, run.mesh) == "dense":
        return None
    steps = total_steps(experiment, run.stores)
    return rowsparse.make(optim.learning_rate(experiment.optim, steps), steps)


def make_settled(
    run: experiments.Run, replay: rowsparse.Replay | None
) -> Callable[[State], State]:
    """state -> the state in which no row of the table is behind (donated).

    It has the weights and moments of dense Adam; to be called before weights are
    evaluated, saved or returned.
    """
    if replay is None:
        return lambda state: state
    settle = rowsparse.make_settle(replay, sharding.place(run.mesh, sharding.TABLE))

    def settled(state: State) -> State:
        table, rest, moments = optim.take_apart(state)
        table = settle(state.step, table, optim.scale_of(state.optimiser))
        return optim.put_together(state, table, rest, moments)

    return settled


def initial_state(
    run: experiments.Run, optimiser: optax.GradientTransformation
) -> tuple[State, State]:
    """State before the first step, and the sharding of each of its leaves."""

    places = _places(run, optimiser)
    make = functools.partial(_start, run, optimiser)
    return jax.jit(make, out_shardings=places)(run.parts.trainable), places


def _start(
    run: experiments.Run, optimiser: optax.GradientTransformation, params: Any
) -> State:
    step = jnp.zeros((), jnp.int32)
    state = State(step, params, optimiser.init(params))
    kind = optim.table_kind(run.experiment, run.stores.num_voxels, run.mesh)
    return optim.with_last(state) if kind == "sparse" else state


def _places(run: experiments.Run, optimiser: optax.GradientTransformation) -> State:
    """Sharding of each leaf of the state."""
    make = functools.partial(_start, run, optimiser)
    shapes = jax.eval_shape(make, run.parts.trainable)
    return encoder.placements(shapes, run.mesh)


def put_batch(
    mesh: jax.sharding.Mesh, batch: batches.Batch, share: sharding.Share | None = None
) -> batches.Batch:
    """What the step needs of a host batch, on the mesh: all but `picture`.

    Args:
        mesh: Where to.
        batch: This process's share.
        share: Which that is; None: all.
    """
    size, stripes = batch.voxel.shape[:2] if share is None else share.shape
    shapes = {"image": (size, *batch.image.shape[1:])}
    samples = (size, stripes, *batch.voxel.shape[2:])
    shapes |= dict.fromkeys(("voxel", "response", "weight"), samples)
    placed = {
        name: sharding.put_block(
            mesh,
            sharding.IMAGES if name == "image" else sharding.SAMPLES,
            shape,
            getattr(batch, name),
        )
        for name, shape in shapes.items()
    }
    return batches.Batch(**placed, picture=None)


def feed(run: experiments.Run, start: int) -> Iterator[batches.Batch]:
    """Batches on the mesh from step `start`: from the stores or from the devices.

    Which one, data.on_device says; the batches are the same. Prints it.

    Raises:
        errors.ConfigError: If data must be on the devices and do not fit.
    """
    settings, seed = run.experiment.data, run.experiment.train.seed
    table = optim.table_kind(run.experiment, run.stores.num_voxels, run.mesh)
    stay, why = resident.fits(
        run.stores, run.experiment, run.provenance.geometry, run.mesh, table=table
    )
    if stay:
        print(f"pictures and responses go onto the devices: {why}", flush=True)
        return resident.feed(run.stores, settings, seed, run.mesh, start)
    print(f"batches are read from the stores: {why}", flush=True)
    return _read(run, start)


def _read(run: experiments.Run, start: int) -> Iterator[batches.Batch]:
    """Batches read from the stores by threads, put on the mesh."""
    settings = run.experiment.data
    share = sharding.share_of_batch(run.mesh, settings.batch_images, settings.stripes)
    data = batches.dataset(run.stores, settings, run.experiment.train.seed, share)
    for batch in batches.iterate(data, start, settings.read_threads):
        yield put_batch(run.mesh, batch, share)


def _pictures_of(run: experiments.Run, step: int) -> list[str]:
    """Ids of the pictures of a step."""
    settings, seed = run.experiment.data, run.experiment.train.seed
    pools = batches.find_pools(run.stores)
    drawn = cast(batches.Draw, batches.draws(run.stores, pools, settings, seed)[step])
    return [run.stores.image_id[i] for i in drawn.picture]


def total_steps(experiment: config.Experiment, stores: crowd.Crowd) -> int:
    """Steps of the run, from train.steps or train.epochs."""
    if experiment.train.steps is not None:
        return experiment.train.steps
    per_epoch = batches.steps_per_epoch(stores, experiment.data)
    return max(1, round((experiment.train.epochs or 0) * per_epoch))


def meta_of(run: experiments.Run) -> dict[str, Any]:
    """What a checkpoint says of its run, to be checked when it is resumed."""
    return {
        "config": config.to_dict(run.experiment),
        "config_sha256": config.sha256(run.experiment),
        "crowd": run.stores.fingerprint,
        "subjects": {s.name: s.num_voxels for s in run.stores.subjects},
        "backbone_sha256": run.provenance.sha256,
        "backbone_random": run.provenance.random,
    }


# What else a schedule makes part of the numbers of a training.
_SCHEDULED_BY = {
    "cosine": ("train.steps", "train.epochs"),
    "plateau": ("train.eval_every_steps", "evaluate.val_images"),
}


def check_resumable(meta: dict[str, Any], run: experiments.Run, workdir: str) -> None:
    """Refuses to go on with other settings, data or weights than the run began with.

    Raises:
        errors.ConfigError: Listing every key that differs and changes the numbers.
        errors.InputError: If the crowd or the backbone is another one.
    """
    # Read through the present settings: a key that is newer than the run has its
    # default there.
    old = config.to_dict(config.from_dict(meta["config"], f"{workdir}/checkpoints"))
    changed = config.differences(old, config.to_dict(run.experiment))
    hard = {k: v for k, v in changed.items() if k not in config.RESUMABLE}
    schedule = _SCHEDULED_BY.get(run.experiment.optim.schedule, ())
    hard |= {k: v for k, v in changed.items() if k in schedule}
    # A folder may move; what is in it is compared below.
    hard.pop("data.crowd", None)
    hard.pop("backbone.weights", None)
    if hard:
        listed = "; ".join(f"{k} was {a!r}, is {b!r}" for k, (a, b) in hard.items())
        raise errors.ConfigError(
            workdir,
            "checkpoints",
            listed,
            "the settings that the run began with",
            "Set them back, or start a new run in another --workdir.",
        )
    for what, old, new in (
        ("crowd", meta["crowd"], run.stores.fingerprint),
        ("backbone_sha256", meta["backbone_sha256"], run.provenance.sha256),
    ):
        if old != new:
            raise errors.InputError(
                workdir,
                f"checkpoints: {what}",
                f"{str(old)[:90]}, now {str(new)[:90]}",
                "the data and backbone that the run began with",
                "Point at the same stores and weights, or take another --workdir.",
            )


def restored(
    run: experiments.Run,
    workdir: str,
    optimiser: optax.GradientTransformation,
    keep: int,
) -> tuple[Any, State, State]:
    """Checkpoint manager, newest state of the workdir (or the initial one), places.

    Raises:
        errors.DiskError: If there is no room for the checkpoints of a new run.
    """
    manager = checkpoint.open_manager(workdir, keep)
    state, places = initial_state(run, optimiser)
    latest = manager.latest_step()
    _check_room(run, manager.directory, state, keep)
    if latest is not None:
        check_resumable(checkpoint.read_meta(manager.directory, latest), run, workdir)
        saved = checkpoint.restore(manager, latest, optim.saved(state))
        state = optim.restored(saved, state)
    elif run.experiment.train.init_from:
        trained = frozen.read_encoder(run.experiment.train.init_from)
        params, lines = warmstart.begin(run, state.params, trained)
        state = state._replace(params=params)
        print("\n".join(lines), flush=True)
    return manager, state, places


def _check_room(run: experiments.Run, folder: Any, state: State, keep: int) -> None:
    """Refuses to begin what the disk cannot hold: all checkpoints and one more."""
    there = len(checkpoint.steps_in(folder))
    sizes = [checkpoint.bytes_of(state)] * max(1, keep + 1 - there)
    if run.experiment.train.select == "best" and not there:
        sizes += [checkpoint.bytes_of(state.params)] * 2
    checkpoint.check_room(folder, *sizes)


def train(
    run: experiments.Run, workdir: str, programs: Programs | None = None
) -> State:
    """Trains to the last step, from the newest checkpoint of `workdir` if any.

    A schedule 'plateau' may end it before.

    Writes checkpoints/ and metrics.jsonl; on one CPU the final numbers equal those
    of an unbroken run bit for bit.

    Args:
        run: The experiment.
        workdir: Its folder.
        programs: From `compile_run` of a run of this shape, where they exist already.

    Raises:
        errors.NonFiniteLossError: If the loss stops being finite; checkpoints stay.
        errors.InputError: If validations are needed and there is nothing to validate.
        watch.StoppedError: If a signal asked to stop; the state is saved.
    """
    experiment, settings = run.experiment, run.experiment.train
    if experiment.optim.schedule == "plateau":
        validation.check(run)
    steps = total_steps(experiment, run.stores)
    optimiser = optim.make(experiment.optim, steps)
    manager, state, _ = restored(run, workdir, optimiser, settings.keep_checkpoints)
    start = int(state.step)
    meta = meta_of(run)
    if cluster.is_first():
        text = json.dumps(meta["config"], indent=1) + "\n"
        whole.write_text(pathlib.Path(workdir) / "config.json", text)
        _write_trained_on(run, workdir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(manager))
        keep_best = None
        if settings.select == "best":
            keep_best = stack.enter_context(
                contextlib.closing(validation.Best(workdir, settings.val_score))
            )
        if start >= steps:
            print(f"already at step {start} of {steps}; nothing to train")
            return state
        if optim.has_ended(experiment.optim, state.optimiser):
            print(f"{_ENDED} at step {start}; nothing to train")
            return state
        if start:
            print(f"resuming at step {start} of {steps}")
        programs = programs or compile_run(run)
        step_fn = _with_seed(programs.step, run)
        batches_of = feed(run, start)
        always = {"backbone": "random"} if run.provenance.random else {}
        log = stack.enter_context(contextlib.closing(_Log(workdir, start, always)))
        predictor = programs.predictor.of(run)

        def check(loss: jax.Array | None, step: int) -> None:
            if loss is not None and not np.isfinite(float(loss)):
                seen = _pictures_of(run, step - 1)
                _stop_non_finite(float(loss), step, seen, manager)

        previous = None
        pace = _Pace(start)
        first_seconds, ended = None, False
        progress = tqdm.tqdm(
            range(start, steps),
            desc="train",
            unit="step",
            initial=start,
            total=steps,
            disable=not cluster.is_first(),
        )
        sign = watch.StopSign(run.mesh)
        stack.enter_context(watch.loop())
        watch.alive("compiling the first step")
        for step in progress:
            asked = time.monotonic()
            batch = next(batches_of)
            began = time.monotonic()
            if previous is None or previous.is_ready():
                pace.waited(began - asked)
            state, loss = step_fn(state, run.parts.frozen, batch)
            if first_seconds is None:
                loss.block_until_ready()
                first_seconds = time.monotonic() - began
                progress.write(f"first step after {first_seconds:.1f} s of compiling")
                pace.restart(step + 1)
            # One step late, so that the device never waits for the host.
            check(previous, step)
            previous = loss
            done = step + 1
            manager.check()
            stopping = sign.seen()
            watch.alive(f"step {done + 1}")
            if done % settings.log_every_steps == 0 or done == steps:
                check(loss, done)
                speed = pace.measure(done, experiment.data.batch_images)
                log.write(step=done, loss=float(loss), **speed)
                progress.set_postfix_str(
                    f"loss {float(loss):.4f}, "
                    f"{speed['images_per_second'] or 0:.0f} images/s",
                    refresh=False,
                )
            if settings.eval_every_steps and done % settings.eval_every_steps == 0:
                watch.alive(f"validation after step {done}")
                state = programs.settled(state)
                scores = evaluate.validate(predictor, state.params)
                if scores:
                    log.write(step=done, loss=float(loss), **scores)
                    progress.write(f"step {done}: {_in_words(scores)}")
                if keep_best is not None:
                    keep_best.offer(scores, done, state.params, meta)
                if experiment.optim.schedule == "plateau":
                    state = validation.judge(run, state, scores)
                    ended = optim.has_ended(experiment.optim, state.optimiser)
                pace.restart(done)
                watch.alive(f"step {done + 1}")
            last = done == steps or stopping or ended
            if done % settings.checkpoint_every_steps == 0 or last:
                check(loss, done)
                watch.alive(f"saving step {done}")
                state = programs.settled(state)
                _check_params(state, done, manager)
                manager.save(done, optim.saved(state), meta)
                watch.alive(f"step {done + 1}")
            if stopping:
                watch.alive(f"saving step {done}")
                manager.wait_until_finished()
                progress.close()
                raise watch.StoppedError(
                    f"saved step {done} of {steps}; the same command goes on from there"
                )
            if ended:
                progress.close()
                print(f"{_ENDED} at step {done} of {steps}")
                break
        watch.alive("saving the last step")
        manager.wait_until_finished()
        print(pace.summary(), flush=True)
    return state


def chosen_weights(run: experiments.Run, state: State, workdir: str) -> tuple[Any, int]:
    """The weights to evaluate and their step: the last, or the best by validation.

    Raises:
        errors.MissingInputError: If the best are wanted and no validation has run.
    """
    if run.experiment.train.select == "last":
        return state.params, int(state.step)
    params, _, step = checkpoint.read_params(workdir, "best")
    # By name: what was read are plain dicts, the state's are of another type.
    read = encoder.by_name(params)
    placed = jax.tree_util.tree_map_with_path(
        lambda path, like: sharding.put_as(
            like.sharding, read[encoder.leaf_name(path)]
        ),
        state.params,
    )
    return placed, step


def _write_trained_on(run: experiments.Run, workdir: str) -> None:
    """trained_on.json: the pictures that shape the weights, for leak checks later."""
    path = pathlib.Path(workdir) / "trained_on.json"
    if path.exists():  # a resumed run has the same pictures, checked before
        return
    used = np.zeros(len(run.stores.image_id), bool)
    for subject in run.stores.subjects:
        used[subject.image[np.isin(subject.split, ("train", "val"))]] = True
    rows = np.flatnonzero(used)
    content = crowd.picture_hashes(run.stores)
    table = {run.stores.image_id[r]: content[r] for r in rows}
    if run.experiment.train.init_from:
        table |= _seen_before(run.experiment.train.init_from, table)
    text = json.dumps({"image_sha256": table}) + "\n"
    whole.write_text(path, text)


def _seen_before(workdir: str, table: dict[str, str]) -> dict[str, str]:
    """Pictures that shaped the weights a run began with: they shape its own."""
    seen = frozen.pictures_of(workdir)
    if seen is None:
        print(f"note: {workdir} has no trained_on.json: its pictures are not known")
    return {
        (i if table.get(i, digest) == digest else f"{i} of {workdir}"): digest
        for digest, i in (seen or {}).items()
    }


def _in_words(scores: dict[str, float | None]) -> str:
    """Scores for the terminal; None is an undefined one."""
    return ", ".join(
        f"{name} {'undefined' if value is None else f'{value:.3f}'}"
        for name, value in scores.items()
    )


def _stop_non_finite(loss: float, step: int, pictures: list[str], manager: Any) -> None:
    """Stops on a NaN or infinite loss and names the checkpoint that is left."""
    manager.wait_until_finished()
    raise errors.NonFiniteLossError(
        f"the loss of step {step} is {loss}; the newest checkpoint is "
        f"{manager.latest_step()}. Lower optim.learning_rate or look at the responses "
        f"to the pictures of that step ({', '.join(pictures)}); starting again "
        "resumes from the checkpoint."
    )


@jax.jit
def _are_finite(tree: Any) -> Any:
    """Whether all numbers of each leaf are."""
    return jax.tree.map(lambda a: jnp.isfinite(a).all(), tree)


def _check_params(state: State, step: int, manager: Any) -> None:
    """Refuses to save weights that are not finite."""
    finite = encoder.by_name(_are_finite(state.params))
    bad = [name for name, ok in finite.items() if not bool(ok)]
    if bad:
        manager.wait_until_finished()
        raise errors.NonFiniteLossError(
            f"after step {step} these weights are not finite: {', '.join(bad)}; the "
            f"newest checkpoint is {manager.latest_step()} and stays."
        )


class _Pace:
    """Speed since the last line of the log, and what the devices wait for input.

    A step's input counts as waited for if the step before had ended when it came: the
    devices cannot have waited longer. The first step, which compiles, is left out.
    """

    def __init__(self, step: int):
        self._steps, self._seconds, self._all_waited = 0, 0.0, 0.0
        self.restart(step)

    def restart(self, step: int) -> None:
        """What was done since the last line does not count."""
        self._since, self._shown, self._waited = step, time.monotonic(), 0.0

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def measure(self, step: int, images: int) -> dict[str, float | None]:
        """Means since the last line, which ends here: two fields of the next."""
        steps, seconds = step - self._since, time.monotonic() - self._shown
        found: dict[str, float | None] = {"images_per_second": None, "wait_s": None}
        if steps:
            found["images_per_second"] = round(steps * images / seconds, 2)
            found["wait_s"] = round(self._waited / steps, 6)
        self._steps += steps
        self._seconds += seconds
        self._all_waited += self._waited
        self.restart(step)
        return found

    def summary(self) -> str:
        """A line for the terminal."""
        if not self._steps:
            return "one step or none: no speed to tell"
        step, wait = (1e3 * x / self._steps for x in (self._seconds, self._all_waited))
        return (
            f"a step took {step:.1f} ms, of which the devices waited {wait:.1f} ms "
            "or less for pictures and responses"
        )


class _Log:
    """metrics.jsonl, and TensorBoard when tensorboardX is installed.

    `always` stands in every line. Only process 0 writes.
    """

    def __init__(self, workdir: str, start: int, always: dict[str, Any]):
        self._always = always
        self._file = self._board = None
        if not cluster.is_first():
            return
        path = pathlib.Path(workdir) / "metrics.jsonl"
        kept = [x for x in evaluate.read_log(workdir) if x["step"] <= start]
        text = "".join(json.dumps(x) + "\n" for x in kept)
        whole.write_text(path, text)
        self._file = path.open("a", encoding="utf-8")
        with contextlib.suppress(ImportError):
            import tensorboardX

            folder = str(pathlib.Path(workdir) / "tensorboard")
            self._board = tensorboardX.SummaryWriter(folder, purge_step=start)

    def write(self, *, step: int, loss: float, **more: Any) -> None:
        if self._file is None:
            return
        line = {"step": step, "loss": loss, **more, **self._always}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            self._board.add_scalar("loss", loss, step)
            for name, value in more.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
