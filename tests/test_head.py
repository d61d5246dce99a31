"""The head against a plain NumPy loop, finite differences, and its compiled form."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from ubrain_jax import config
from ubrain_jax.model import head

L, P, C, E, WIDTH = 3, 9, 8, 12, 16


def make(dropout=0.0, remat="off", dtype="float32", **choices):
    settings = config.Head(
        **choices,
        embed_dim=E,
        channels=C,
        mlp_ratio=2,
        dropout=dropout,
        dtype=dtype,
        remat=remat,
    )
    model = head.Head(settings, L, WIDTH, P, jax.random.key(0))
    # Starting values hide faults: LayerNorm scales of 1, biases of 0.
    graph, state = nnx.split(model)
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(
        lambda a: a + 0.3 * rng.standard_normal(a.shape).astype(np.float32), state
    )
    return nnx.merge(graph, noisy)


def weights64(model) -> dict[str, np.ndarray]:
    state = nnx.to_pure_dict(nnx.state(model))
    return {name: np.asarray(value, np.float64) for name, value in state.items()}


def norm64(x, scale, bias):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * scale + bias


def plain_response(w, taps, embedding) -> float:
    """One voxel, one image, in float64, a token at a time, from the design's words."""
    total = 0.0
    for tap in range(L):
        f = np.stack(
            [
                norm64(t, w["norm_in_scale"][tap], w["norm_in_bias"][tap])
                @ w["in_kernel"][tap]
                + w["in_bias"][tap]
                for t in taps[tap]
            ]
        )
        q = embedding @ w["query_kernel"][tap] + w["query_bias"][tap]
        bias = np.linspace(-3, 3, E)  # of the released weights; cancels
        keys = f @ w["key_kernel"][tap] + bias + w.get("position", 0)
        logits = np.array([k @ q for k in keys])
        a = np.exp(logits - logits.max())
        a /= a.sum()
        s = sum(a[p] * f[p] for p in range(P))
        u = norm64(s, w["norm_scale"][tap], w["norm_bias"][tap])
        h = u @ w["fc1_kernel"][tap] + w["fc1_bias"][tap]
        h = h * 0.5 * (1 + scipy.special.erf(h / math.sqrt(2)))
        m = u + h @ w["fc2_kernel"][tap] + w["fc2_bias"][tap]
        looked = w["functional"][tap]  # (E, C), or (C,) where all voxels share it
        total += (embedding @ looked if looked.ndim == 2 else looked) @ m
    return float(total)


def inputs(num_images=2, num_voxels=5):
    rng = np.random.default_rng(2)
    taps = rng.standard_normal((num_images, L, P, WIDTH)).astype(np.float32) * 3 + 1
    embeddings = rng.standard_normal((num_images, num_voxels, E)).astype(np.float32)
    return taps, embeddings


def batched(model, taps, embeddings, is_common=False):
    def image(taps, embeddings):
        features = model.project(taps)
        one = functools.partial(model.respond, features, is_common=is_common)
        return jax.vmap(lambda e: one(e, None))(embeddings)

    return jax.vmap(image)(taps, embeddings)


@pytest.mark.parametrize(
    ("remat", "choices"),
    [
        ("off", {}),
        ("on", {}),
        ("off", {"position": False}),
        ("on", {"functional": "shared"}),
        ("off", {"position": False, "functional": "shared"}),
    ],
)
@pytest.mark.parametrize("is_common", [False, True])
def test_vmapped_head_equals_a_plain_float64_loop(remat, choices, is_common):
    model = make(remat=remat, **choices)
    taps, embeddings = inputs()
    got = np.asarray(
        jax.jit(lambda t, e: batched(model, t, e, is_common))(taps, embeddings)
    )
    w = weights64(model)
    want = np.array(
        [
            [plain_response(w, taps[b], e) for e in embeddings[b].astype(np.float64)]
            for b in range(2)
        ]
    )
    assert want.std() > 0.5
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * want.std())


def test_weighted_gelu_and_its_gradients_equal_float64():
    """Over images that have the weights in common, whose gradients add up."""
    rng = np.random.default_rng(0)
    weights, x = rng.standard_normal((7, 40)), 3 * rng.standard_normal((4, 7, 40))
    g = rng.standard_normal((4, 7))
    below = scipy.special.ndtr(x)
    slope = below + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    want = (
        (weights * x * below).sum(-1),
        (g[..., None] * x * below).sum(0),
        g[..., None] * weights * slope,
    )
    sums = jax.vmap(jax.vmap(head.weighted_gelu), (None, 0))
    given = [jnp.asarray(a, jnp.float32) for a in (weights, x)]
    value, back = jax.vjp(sums, *given)
    for found, expected in zip((value, *back(jnp.float32(g))), want, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_without_positions_moving_the_tokens_changes_nothing():
    taps, embeddings = inputs()
    order = np.random.default_rng(3).permutation(P)
    for kept in (True, False):
        model = make(position=kept)
        moved = batched(model, taps[:, :, order], embeddings)
        same = np.allclose(moved, batched(model, taps, embeddings), atol=1e-4)
        assert same is not kept


def test_choices_of_the_head_change_no_other_initial_weight():
    def weights(**choices):
        settings = config.Head(embed_dim=E, channels=C, mlp_ratio=2, **choices)
        state = nnx.state(head.Head(settings, L, WIDTH, P, jax.random.key(5)))
        return nnx.to_pure_dict(state)

    plain, changed = weights(), weights(position=False, functional="shared")
    assert plain.keys() - changed.keys() == {"position"}
    assert changed["functional"].shape == (L, C)
    for name in changed.keys() - {"functional"}:
        np.testing.assert_array_equal(plain[name], changed[name])


def test_vmapped_head_equals_a_python_loop_over_voxels_and_images():
    model = make()
    taps, embeddings = inputs()
    got = batched(model, taps, embeddings)
    for b, n in itertools.product(range(2), range(5)):
        one = model.respond(model.project(taps[b]), embeddings[b, n], None)
        np.testing.assert_allclose(got[b, n], one, rtol=1e-5, atol=1e-5)


def test_spatial_attention_is_a_distribution_over_tokens():
    model = make()
    taps, embeddings = inputs()
    a = model.spatial_attention(1, model.project(taps[0])[1], embeddings[0, 0])
    assert a.shape == (P,)
    np.testing.assert_allclose(a.sum(), 1, rtol=1e-6)
    assert (a > 0).all()
    assert a.max() > 2 / P  # not uniform: no 1 / sqrt(E)


def test_permuting_voxels_permutes_predictions():
    model = make()
    taps, embeddings = inputs()
    order = np.array([3, 0, 4, 1, 2])
    got = batched(model, taps, embeddings[:, order])
    np.testing.assert_array_equal(got, batched(model, taps, embeddings)[:, order])


def test_dropout_differs_by_voxel_and_key_and_keeps_the_mean():
    model = make(dropout=0.5)
    taps, embeddings = inputs(1, 1)
    features = model.project(taps[0])
    keys = jax.random.split(jax.random.key(3), 4000)
    # One embedding for all: only the mask differs.
    many = jax.vmap(lambda k: model.respond(features, embeddings[0, 0], k))(keys)
    assert len(np.unique(np.asarray(many))) > 3900
    again = model.respond(features, embeddings[0, 0], keys[7])
    np.testing.assert_allclose(again, many[7], rtol=1e-5)
    u_only = make(dropout=0.5)  # with the MLP off the response is linear in u
    u_only.fc2_kernel = nnx.Param(jnp.zeros_like(u_only.fc2_kernel[...]))
    many = jax.vmap(lambda k: u_only.respond(features, embeddings[0, 0], k))(keys)
    none = u_only.respond(features, embeddings[0, 0], None)
    error = np.std(many) / math.sqrt(len(keys))
    assert abs(np.mean(many) - none) < 4 * error


def test_bfloat16_head_stays_close_to_float32():
    taps, embeddings = inputs(2, 40)
    exact = np.asarray(batched(make(), taps, embeddings))
    rough = np.asarray(batched(make(dtype="bfloat16"), taps, embeddings))
    assert rough.dtype == np.float32
    error = np.sqrt(np.mean((rough - exact) ** 2)) / exact.std()
    assert 1e-5 < error < 1.5e-2


def test_compiled_head_has_no_array_of_tokens_by_voxels_by_embedding():
    """At the real size, compiled only: N = 5000, P = 256, E = 256, one image."""
    settings = config.Head(dtype="float32", dropout=0.0, remat="off")
    model = nnx.eval_shape(lambda: head.Head(settings, 5, 1536, 256, jax.random.key(0)))
    graph, state = nnx.split(model)
    state = nnx.as_pure(state)

    def loss(state, taps, embeddings):
        return jnp.mean(batched(nnx.merge(graph, state), taps, embeddings) ** 2)

    shapes = (
        jax.ShapeDtypeStruct((1, 5, 256, 1536), jnp.float32),
        jax.ShapeDtypeStruct((1, 5000, 256), jnp.float32),
    )
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 2)))
    compiled = step.lower(state, *shapes).compile()
    largest = 0
    for dims in re.findall(r"f32\[([\d,]+)\]", compiled.as_text()):
        sizes = [int(d) for d in dims.split(",")]
        largest = max(largest, math.prod(sizes))
    # (N, P) logits of five taps are 6.4 M numbers; (N, P, C) would be 164 M.
    assert largest <= 5 * 5000 * 512, largest
    temp = compiled.memory_analysis().temp_size_in_bytes
    print(f"largest array {largest:,} numbers, temporary memory {temp / 1e6:.0f} MB")
    assert temp < 500e6
