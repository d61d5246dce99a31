"""Adam on the rows of a batch against optax.adam on all rows, and a float64 loop."""

import functools
import re
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import states
from ubrain_jax import (
    config,
    errors,
    experiments,
    optim,
    rowsparse,
    sharding,
    train,
)

S, ROWS, E = 8, 40, 4
B, N = 4, 3
STEPS = 420
RATES = {
    "constant": config.Optim(),
    "cosine": config.Optim(schedule="cosine"),
    "warm-up": config.Optim(schedule="cosine", warmup_steps=150),
}


class Played(NamedTuple):
    """Gradients of a run, rows that have them, and the table it starts from."""

    start: np.ndarray  # (S, ROWS, E)
    voxel: np.ndarray  # (STEPS, B, S, N)
    gradient: np.ndarray  # (STEPS, B, S, N, E), 0 where padded


@pytest.fixture(scope="module")
def played() -> Played:
    """Rows of all sorts: often and rarely drawn, with large and tiny gradients."""
    rng = np.random.default_rng(0)
    often = 10.0 ** rng.uniform(-3.5, 0, ROWS)
    voxel = rng.choice(ROWS, (STEPS, B, S, N), p=often / often.sum())
    size = 10.0 ** rng.uniform(-10, 0, (S, ROWS))
    gradient = rng.standard_normal((*voxel.shape, E))
    gradient *= size[np.arange(S)[:, None], voxel][..., None]
    padded = rng.random(voxel.shape) < 0.1
    voxel[padded], gradient[padded] = 0, 0
    start = 0.1 * rng.standard_normal((S, ROWS, E))
    return Played(
        start.astype(np.float32), voxel.astype(np.int32), gradient.astype(np.float32)
    )


def whole_gradient(played: Played, k: int) -> np.ndarray:
    """Of the table at a step, in float64."""
    table = np.zeros((S, ROWS, E))
    stripe = np.broadcast_to(np.arange(S)[:, None], (B, S, N))
    np.add.at(table, (stripe, played.voxel[k]), played.gradient[k])
    return table


@pytest.fixture(scope="module")
def dense_of(played):
    """Kind of rate -> what `dense` gives, computed once."""
    return functools.cache(functools.partial(dense, played))


def dense(played: Played, kind: str) -> tuple:
    """Table and moments of optax.adam, and the table of a float64 loop."""
    rate = optim.learning_rate(RATES[kind], STEPS)
    adam = optim.make(RATES[kind], STEPS)
    values = jnp.asarray(played.start)
    state = adam.init(values)

    @jax.jit
    def step(values, state, gradient):
        updates, state = adam.update(gradient, state, values)
        return optax.apply_updates(values, updates), state

    exact = played.start.astype(np.float64)
    mean, square = np.zeros_like(exact), np.zeros_like(exact)
    for k in range(STEPS):
        g = whole_gradient(played, k)
        values, state = step(values, state, jnp.asarray(g, jnp.float32))
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        hat = mean / (1 - 0.9 ** (k + 1)), square / (1 - 0.999 ** (k + 1))
        exact -= float(rate(k)) * hat[0] / (np.sqrt(hat[1]) + 1e-8)
    return np.asarray(values), state[0], exact


def mesh_of(data: int, voxel: int) -> jax.sharding.Mesh:
    devices = jax.devices()[: data * voxel]
    return sharding.make_mesh(data, voxel, stripes=S, batch_images=8, devices=devices)


def make_step(replay: rowsparse.Replay, mesh: jax.sharding.Mesh):
    """(table, step, voxel, gradient of each voxel) -> table."""
    table = sharding.place(mesh, sharding.TABLE)
    samples = sharding.place(mesh, sharding.SAMPLES)

    def step(rows, count, voxel, gradient):
        read = rowsparse.read(rows, voxel, mesh)
        late = rowsparse.recent(replay, count)
        now = rowsparse.catch_up(replay, late, count, read.rows)

        def loss(values):
            e = rowsparse.look_up(values, read.slot)
            e = jax.lax.with_sharding_constraint(e, samples)
            return jnp.sum(e * gradient)

        now = rowsparse.update(replay, count, now, jax.grad(loss)(now.values))
        return rowsparse.write(rows, read.row, now)

    return jax.jit(step, donate_argnums=0, out_shardings=rowsparse.Rows(*[table] * 4))


def start_of(values: np.ndarray, mesh: jax.sharding.Mesh) -> rowsparse.Rows:
    nothing = np.zeros_like(values)
    rows = (values, nothing, nothing.copy(), np.zeros(values.shape[:2], np.int32))
    return rowsparse.Rows(*(sharding.put(mesh, sharding.TABLE, a) for a in rows))


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("constant", (1, 1)),
        ("cosine", (1, 1)),
        ("warm-up", (1, 1)),
        ("warm-up", (1, 8)),
        ("warm-up", (2, 4)),
    ],
)
def test_rows_move_as_under_adam_on_the_whole_table(played, dense_of, kind, shape):
    """After 420 steps, with padding, duplicates and rows idle up to the whole run."""
    mesh = mesh_of(*shape)
    replay = rowsparse.make(optim.learning_rate(RATES[kind], STEPS), STEPS)
    step = make_step(replay, mesh)
    settle = rowsparse.make_settle(
        replay, sharding.place(mesh, sharding.TABLE), chunk=16
    )
    table, gaps = start_of(played.start, mesh), []
    for k in range(STEPS):
        if k % 100 == 0:
            gaps.append(k - np.asarray(table.last)[np.asarray(table.last) > 0])
        at, g = (
            sharding.put(mesh, sharding.SAMPLES, a)
            for a in (played.voxel[k], played.gradient[k])
        )
        table = step(table, jnp.int32(k), at, g)
    gaps = np.concatenate([*gaps, STEPS - np.asarray(table.last).ravel()])
    assert {0, 1, 2, 5, 20} <= set(gaps.tolist())
    assert (gaps > 50).sum() > 20
    assert (gaps > rowsparse.REACH + 90).any()
    table = settle(jnp.int32(STEPS), table)
    assert (np.asarray(table.last) == STEPS).all()
    values, moments, exact = dense_of(kind)
    move = np.abs(exact - played.start).max()
    ours = np.abs(table.values - exact).max()
    print(
        f"{kind} {shape}: moves {move:.3f}, from optax "
        f"{np.abs(table.values - values).max():.1e}, from float64 {ours:.1e}; optax "
        f"from float64 {np.abs(values - exact).max():.1e}"
    )
    np.testing.assert_allclose(table.values, values, rtol=0, atol=1e-6)
    assert ours < min(1e-6, 2e-5 * move)
    np.testing.assert_allclose(table.mean, moments.mu, rtol=1e-4, atol=1e-30)
    np.testing.assert_allclose(table.square, moments.nu, rtol=1e-4, atol=1e-30)


def missed(rate, last: int, gap: int, mean, square, reach: int | None = None):
    """What a row moves in `gap` steps without a gradient: a loop in float64."""
    move = np.zeros_like(mean)
    for j in range(1, min(gap, reach or gap) + 1):
        t = last + j
        mean_hat = mean * 0.9**j / (1 - 0.9**t)
        square_hat = square * 0.999**j / (1 - 0.999**t)
        move -= float(rate(t - 1)) * mean_hat / (np.sqrt(square_hat) + 1e-8)
    return move


@pytest.fixture(scope="module")
def catching_up():
    """Compiled (step, rows) -> rows, and the learning rates of its run."""
    total, settings = 4000, config.Optim(schedule="cosine", warmup_steps=30)
    rate = optim.learning_rate(settings, total)
    replay = rowsparse.make(rate, total)

    @jax.jit
    def catch_up(step, rows):
        return rowsparse.catch_up(replay, rowsparse.recent(replay, step), step, rows)

    return catch_up, np.asarray(rate(jnp.arange(total + 1)), np.float64)


@pytest.mark.parametrize("last", [1, 2, 7, 40, 300, 2000])
def test_missed_moves_equal_a_loop_for_any_gap_and_size_of_gradient(last, catching_up):
    """Square roots of v from far below eps to far above, m as large as it can be."""
    catch_up, rates = catching_up
    root = 10.0 ** np.linspace(-14, 0, 29)[None]
    mean = 7.27 * root
    for gap in (0, 1, 2, 3, 10, 60, rowsparse.REACH, rowsparse.REACH + 1, 1500):
        step = jnp.int32(last + gap)
        rows = rowsparse.Rows(
            *(jnp.asarray(a, jnp.float32) for a in (0 * mean, mean, root**2)),
            jnp.full(1, last, jnp.int32),
        )
        got = catch_up(step, rows)
        wanted = missed(rates.__getitem__, last, gap, mean, root**2)
        error = np.abs(np.asarray(got.values) - wanted).max()
        assert error <= 2e-5 * rates.max(), (gap, error)
        if gap == 0:
            for a, b in zip(rows, got, strict=True):
                np.testing.assert_array_equal(a, b)


def test_what_is_left_out_after_reach_is_below_float32_of_the_rate():
    mean, square = np.full(1, 7.27), np.ones(1)
    for last in (1, 10, 100, 10_000):
        all_of_it = missed(lambda t: 1.0, last, 3000, mean, square)
        kept = missed(lambda t: 1.0, last, 3000, mean, square, rowsparse.REACH)
        assert 0 < abs(all_of_it - kept)[0] < 2.0**-24


def test_the_largest_first_moment_is_7_3_roots_of_the_second():
    """The bound behind REACH: gradients that grow by b2 / b1 a step attain it."""
    mean = square = 0.0
    for k in range(400):
        g = (rowsparse.B2 / rowsparse.B1) ** (k - 400)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
    assert 7.25 < mean / np.sqrt(square) < 7.3


@pytest.mark.parametrize("num_rows", [5, 40, 1000])
def test_each_row_is_read_once_and_every_voxel_finds_its_own(num_rows):
    rng = np.random.default_rng(num_rows)
    voxel = rng.integers(0, num_rows, (3, 2, 9)).astype(np.int32)
    values = rng.standard_normal((2, num_rows, 2)).astype(np.float32)
    table = start_of(np.repeat(values, 4, 0), mesh_of(1, 1))
    read = rowsparse.read(table, np.repeat(voxel, 4, 1), mesh_of(1, 1))
    for stripe in range(8):
        wanted = np.unique(voxel[:, stripe // 4])
        row = np.asarray(read.row[stripe])
        assert len(row) == min(27, num_rows)
        np.testing.assert_array_equal(row[: len(wanted)], wanted)
        assert (row[len(wanted) :] >= num_rows).all()
    found = rowsparse.look_up(read.rows.values, read.slot)
    stripe = np.arange(2)[:, None]
    np.testing.assert_array_equal(found[:, ::4], values[stripe, voxel])


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_nothing_but_the_table_grows_with_its_rows(shape):
    """Memory and what travels between devices, by XLA, for two sizes of table."""
    mesh = mesh_of(*shape)
    replay = rowsparse.make(lambda _: 1e-3, 10)
    table, samples, same = (
        sharding.place(mesh, spec)
        for spec in (sharding.TABLE, sharding.SAMPLES, sharding.REPLICATED)
    )

    def compiled(rows):
        leaf = jax.ShapeDtypeStruct((S, rows, 16), jnp.float32, sharding=table)
        last = jax.ShapeDtypeStruct((S, rows), jnp.int32, sharding=table)
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=same)
        voxel = jax.ShapeDtypeStruct((8, S, 5), jnp.int32, sharding=samples)
        g = jax.ShapeDtypeStruct((8, S, 5, 16), jnp.float32, sharding=samples)
        rows = rowsparse.Rows(leaf, leaf, leaf, last)
        step = make_step(replay, mesh).lower(rows, count, voxel, g).compile()
        move, decay = rowsparse.settle_programs(replay, table)
        move = move.lower(leaf, leaf, leaf, last, count).compile()
        return step, move, decay.lower(leaf, leaf, last, count).compile()

    small, large = compiled(3000), compiled(30_000)
    of_leaf = 16 * 4 * S * 30_000 // mesh.shape["voxel"]
    in_place = (3 * of_leaf + of_leaf // 16, of_leaf, 2 * of_leaf)
    for one, ten, kept in zip(small, large, in_place, strict=True):
        temporary = [p.memory_analysis().temp_size_in_bytes for p in (one, ten)]
        # The decay of the moments is at most two numbers a row.
        a_row = 0 if kept != 2 * of_leaf else 2 * of_leaf // 16
        assert temporary[1] <= temporary[0] + a_row
        assert ten.memory_analysis().alias_size_in_bytes == kept
    of_batch = 8 * S * 5 * 16 // mesh.shape["voxel"]
    step, *settle = (travelling(p.as_text()) for p in large)
    assert max(step, default=0) <= of_batch
    assert bool(step) == (mesh.size > 1)
    assert settle == [[], []]


def travelling(text: str) -> list[int]:
    """Numbers in each array that a collective of a compiled program gives."""
    names = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    found = re.findall(rf"= (.*?) (?:{names})(?:-start)?\(", text)
    shapes = [s for result in found for s in re.findall(r"\w+\[([\d,]*)\]", result)]
    return [int(np.prod([int(d) for d in s.split(",") if d])) for s in shapes]


def test_a_table_is_sparse_above_a_million_rows_a_device_or_as_it_is_told(tiny):
    one, eight = mesh_of(1, 1), mesh_of(1, 8)
    auto = tiny()
    bound = optim.SPARSE_ABOVE
    assert optim.table_kind(auto, bound, one) == "dense"
    assert optim.table_kind(auto, bound + 1, one) == "sparse"
    assert optim.table_kind(auto, 8 * bound, eight) == "dense"
    assert optim.table_kind(auto, 8 * bound, mesh_of(2, 4)) == "sparse"
    for kind in ("dense", "sparse"):
        told = tiny(optim={"table": kind})
        assert optim.table_kind(told, 10, one) == kind
        assert optim.table_kind(told, 10**9, one) == kind
    with pytest.raises(errors.ConfigError, match=r"optim.table is 'lazy'"):
        tiny(optim={"table": "lazy"})


def trained(tiny, folder, kind: str, shape=(1, 1)) -> dict[str, np.ndarray]:
    """Whole state after the newest checkpoint of 6 steps, by name."""
    settings = {"eval_every_steps": 3, "checkpoint_every_steps": 2, "steps": 6}
    experiment = tiny(
        train=settings,
        optim={"table": kind, "schedule": "cosine"},
        mesh={"data": shape[0], "voxel": shape[1]},
    )
    devices = jax.devices()[: shape[0] * shape[1]]
    run = experiments.prepare_run(experiment, devices)
    folder.mkdir(exist_ok=True)
    state = train.train(run, str(folder))
    leaves = states.leaves_of(folder / "checkpoints")
    table = [a for name, a in leaves.items() if name == "['params']['table']"]
    np.testing.assert_array_equal(table[0], state.params["table"])
    return leaves


def same(one, other, atol):
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], 0, atol, err_msg=name)


@pytest.fixture(scope="module")
def both_kinds(tiny, tmp_path_factory):
    """State and workdir of a run with each kind of table."""
    root = tmp_path_factory.mktemp("kinds")
    return {k: (trained(tiny, root / k, k), root / k) for k in ("dense", "sparse")}


def test_a_run_with_a_sparse_table_saves_what_a_dense_one_does(both_kinds):
    same(both_kinds["sparse"][0], both_kinds["dense"][0], 1e-6)


@pytest.mark.parametrize(
    ("first", "then", "shape", "atol"),
    [
        ("sparse", "sparse", (1, 1), 0),
        ("sparse", "dense", (1, 1), 1e-6),
        ("dense", "sparse", (1, 1), 1e-6),
        ("dense", "sparse", (2, 4), 1e-5),
    ],
)
def test_a_resumed_run_goes_on_the_same_with_either_kind_of_table(
    tiny, tmp_path, both_kinds, first, then, shape, atol
):
    whole, folder = both_kinds[first]
    shutil.copytree(folder, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "6")
    resumed = trained(tiny, tmp_path / "half", then, shape)
    same(resumed, whole, atol)
