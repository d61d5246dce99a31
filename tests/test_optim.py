"""amsgrad and the plateau: against loops in NumPy, and against torch where it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ubrain_jax import config, errors, optim, sharding

STEPS = 400
RTOL = {"float32": 5e-6, "float64": 1e-12}


def gradients() -> np.ndarray:
    """(STEPS, 3, 5): sizes fall by 1e-3 and rise again, so that v falls below its
    largest and goes above it once more."""
    k = np.arange(STEPS)[:, None, None]
    size = 10.0 ** (-3 * np.sin(k / STEPS * np.pi))
    noise = np.random.default_rng(0).standard_normal((STEPS, 3, 5))
    return size * noise


def moves(settings: config.Optim, dtype: str, change=None) -> np.ndarray:
    """(STEPS, 3, 5) values after each step; `change` alters a state before a step."""
    with jax.enable_x64(dtype == "float64"):
        adam, values = optim.make(settings, STEPS), jnp.ones((3, 5), dtype)
        state, out = adam.init(values), []
        step = jax.jit(adam.update)
        for k, g in enumerate(gradients()):
            state = change(k, state) if change else state
            updates, state = step(jnp.asarray(g, dtype), state, values)
            values = optax.apply_updates(values, updates)
            assert values.dtype == dtype
            out.append(np.asarray(values))
    return np.stack(out)


def loop(rates, *, corrected: bool) -> np.ndarray:
    """The same in float64, a number at a time; `corrected`: the rule of optax."""
    out = np.empty((STEPS, 3, 5))
    g = gradients()
    for i, j in np.ndindex(3, 5):
        value, m, v, most = 1.0, 0.0, 0.0, 0.0
        for t in range(1, STEPS + 1):
            m = 0.9 * m + 0.1 * g[t - 1, i, j]
            v = 0.999 * v + 0.001 * g[t - 1, i, j] ** 2
            if corrected:
                most = max(most, v / (1 - 0.999**t))
                root = most**0.5
            else:
                most = max(most, v)
                root = (most / (1 - 0.999**t)) ** 0.5
            value -= rates[t - 1] * m / (1 - 0.9**t) / (root + 1e-8)
            out[t - 1, i, j] = value
    return out


@pytest.mark.parametrize("dtype", RTOL)
def test_amsgrad_takes_the_largest_raw_moment(dtype):
    ours = moves(config.Optim(amsgrad=True), dtype)
    exact = loop([1e-3] * STEPS, corrected=False)
    np.testing.assert_allclose(ours, exact, rtol=RTOL[dtype])
    assert np.abs(ours - loop([1e-3] * STEPS, corrected=True)).max() > 1e-2
    assert np.abs(ours - moves(config.Optim(), dtype)).max() > 5e-4


@pytest.mark.parity
@pytest.mark.parametrize("dtype", RTOL)
def test_amsgrad_is_that_of_torch(dtype):
    import torch

    values = torch.ones((3, 5), dtype=getattr(torch, dtype), requires_grad=True)
    adam, theirs = torch.optim.Adam([values], lr=1e-3, amsgrad=True), []
    for g in gradients():
        values.grad = torch.tensor(g, dtype=values.dtype)
        adam.step()
        theirs.append(values.detach().numpy().copy())
    ours = moves(config.Optim(amsgrad=True), dtype)
    np.testing.assert_allclose(ours, np.stack(theirs), rtol=RTOL[dtype])


def test_a_table_under_amsgrad_is_dense_whatever_its_size(tiny):
    mesh = sharding.make_mesh(
        1, 1, stripes=4, batch_images=8, devices=jax.devices()[:1]
    )
    told = tiny(optim={"amsgrad": True})
    assert optim.table_kind(told, 10**9, mesh) == "dense"
    assert optim.table_kind(tiny(), 10**9, mesh) == "sparse"
    with pytest.raises(errors.ConfigError, match=r"optim.table is 'sparse'"):
        tiny(optim={"amsgrad": True, "table": "sparse"})


# ---------------------------------------------------------------- the plateau


def fresh() -> optim.Plateau:
    return optim.make(config.Optim(schedule="plateau"), 9).init(jnp.ones(2))[1]


def judge_all(settings: config.Optim, scores) -> list[float]:
    """The rate after each validation."""
    state, rates = fresh(), []
    for score in scores:
        state = optim.judged(settings, state, score)
        rates.append(settings.learning_rate * float(state.scale))
    return rates


def test_the_rate_falls_after_more_than_patience_validations_without_a_gain():
    settings = config.Optim(plateau_patience=2, plateau_factor=0.5)
    scores = [0.1, 0.2, 0.202, 0.19, 0.2029, 0.3, 0.3, 0.304, 0.304, 0.1, np.nan, 0.3]
    #         best best  bad   bad   cut    best bad  best  bad    bad   cut   bad
    falls = [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    np.testing.assert_allclose(judge_all(settings, scores), 1e-3 * np.array(falls))


def random_scores(seed: int) -> np.ndarray:
    """120 noisy validations that rise and level off, some undefined."""
    rng = np.random.default_rng(seed)
    scores = 0.5 * (1 - np.exp(-np.arange(120) / 20)) + rng.normal(0, 0.01, 120)
    scores[rng.random(120) < 0.05] = np.nan
    return scores


PLATEAUS = [(0.1, 4, 0.003), (0.5, 0, 0.0), (0.7, 1, 0.02)]


@pytest.mark.parametrize(("factor", "patience", "threshold"), PLATEAUS)
def test_the_plateau_equals_a_loop_that_looks_back(factor, patience, threshold):
    """Without a state: the best, and the bad ones since, are found anew each time."""
    settings = config.Optim(
        plateau_factor=factor, plateau_patience=patience, plateau_threshold=threshold
    )
    scores, rate, rates, since = random_scores(0), 1e-3, [], 0
    best = -np.inf
    for k, score in enumerate(scores):
        if score > best + threshold:
            best, since = score, k + 1
        if k + 1 - since > patience:
            since = k + 1
            rate = rate * factor if rate * (1 - factor) > 1e-8 else rate
        rates.append(rate)
    np.testing.assert_allclose(judge_all(settings, scores), rates, rtol=1e-5)
    assert rates[-1] < 1e-6


@pytest.mark.parity
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("factor", "patience", "threshold"), PLATEAUS)
def test_the_plateau_is_that_of_torch(factor, patience, threshold, seed):
    import torch

    adam = torch.optim.Adam([torch.ones(1, requires_grad=True)], lr=1e-3)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        adam,
        mode="max",
        factor=factor,
        patience=patience,
        threshold=threshold,
        threshold_mode="abs",
    )
    rates = []
    for score in random_scores(seed):
        theirs.step(score)
        rates.append(adam.param_groups[0]["lr"])
    settings = config.Optim(
        plateau_factor=factor, plateau_patience=patience, plateau_threshold=threshold
    )
    ours = judge_all(settings, random_scores(seed))
    np.testing.assert_allclose(ours, rates, rtol=1e-5)


def test_training_ends_below_the_stop_and_not_at_it():
    """1e-3, cut four times by 0.1, is 1e-7 in every arithmetic."""
    settings = config.Optim(schedule="plateau", plateau_patience=0)
    plateau, ended = optim.judged(settings, fresh(), 0.5), []
    for _ in range(5):
        plateau = optim.judged(settings, plateau, 0.5)
        ended.append(optim.has_ended(settings, (None, plateau)))
    assert ended == [False, False, False, False, True]
    assert not optim.has_ended(settings, (None, optax.EmptyState()))


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_scale_multiplies_the_rate_with_its_warm_up(amsgrad):
    settings = config.Optim(schedule="plateau", warmup_steps=10, amsgrad=amsgrad)

    def change(k, state):
        adam, plateau = state
        assert int(plateau.count) == k
        scale = jnp.float32(0.1) if k >= 20 else plateau.scale
        return adam, plateau._replace(scale=scale)

    ours = moves(settings, "float32", change)
    rates = [1e-3 * min(1, k / 10) * (0.1 if k >= 20 else 1) for k in range(STEPS)]
    if amsgrad:
        np.testing.assert_allclose(
            ours, loop(rates, corrected=False), rtol=RTOL["float32"]
        )
    plain = np.diff(moves(config.Optim(amsgrad=amsgrad), "float64"), axis=0)
    np.testing.assert_allclose(
        np.diff(ours, axis=0),
        plain * np.array(rates[1:])[:, None, None] / 1e-3,
        0,
        2e-7,
    )
