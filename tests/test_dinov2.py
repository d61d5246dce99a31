import dataclasses
import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ubrain_jax.backbone import dinov2

# Compiles in less than half the time; no test here is about speed.
QUICK = {"xla_backend_optimization_level": 0}
TINY = dinov2.Geometry(48, 4, 3, "swiglu", 40, registers=2, image_px=56)
PLAIN = dataclasses.replace(TINY, mlp="gelu", registers=0)


def weights(geometry, num_blocks, px, seed=0):
    """Nontrivial values everywhere, layer scales and biases too."""
    rng = np.random.default_rng(seed)
    return {
        name: (
            (rng.standard_normal(shape) * 0.2 + name.endswith("scale")).astype("f4")
            if "kernel" not in name
            else (rng.standard_normal(shape) * shape[-2] ** -0.5).astype("f4")
        )
        for name, shape in dinov2.shapes(geometry, num_blocks, px).items()
    }


def network(geometry, num_blocks=4, px=56, seed=0, dtype="float32"):
    return dinov2.Dinov2(
        geometry, weights(geometry, num_blocks, px, seed), num_blocks, px, dtype
    )


def pictures(px=56, batch=2, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, px, px, 3)).astype("f4")


def adapter(kind, geometry, num_blocks=4, rank=3, seed=5):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((num_blocks, geometry.width, rank)).astype("f4")
    b = rng.standard_normal((num_blocks, rank, geometry.width)).astype("f4")
    return dinov2.Adapter(kind, jnp.asarray(a * 0.1), jnp.asarray(b * 0.1), 0.5)


def run(net, image, taps, change=None, **options):
    """Compiled call, in full float32 on any device."""
    with jax.default_matmul_precision("highest"):
        call = jax.jit(
            lambda x: net(x, taps, adapter=change, **options), compiler_options=QUICK
        )
        return np.asarray(call(image))


def slow_float64(w, g, image, change=None):
    """One image through plain loops over patches, heads and tokens, in float64."""
    w = {name: np.asarray(value, np.float64) for name, value in w.items()}
    side = image.shape[0] // g.patch
    tokens = [w["cls"] + w["position"][0], *w["registers"]]
    for i in range(side):
        for j in range(side):
            cut = image[i * g.patch : (i + 1) * g.patch]
            cut = cut[:, j * g.patch : (j + 1) * g.patch].astype(np.float64)
            here = w["position"][1 + i * side + j]
            tokens.append(cut.reshape(-1) @ w["patch_kernel"] + w["patch_bias"] + here)
    x, taps = np.stack(tokens), []

    def norm(x, k, which):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        y = (x - mean) / np.sqrt(var + g.eps)
        scale, bias = w[f"blocks.{which}_scale"][k], w[f"blocks.{which}_bias"][k]
        return y * scale + bias

    def dense(x, k, which):
        return x @ w[f"blocks.{which}_kernel"][k] + w[f"blocks.{which}_bias"][k]

    size = g.width // g.heads
    for k in range(w["blocks.scale1"].shape[0]):
        q, key, v = np.split(dense(norm(x, k, "norm1"), k, "qkv"), 3, -1)
        heads = np.empty_like(x)
        for h in range(g.heads):
            own = slice(h * size, (h + 1) * size)
            for t in range(len(x)):
                logits = np.array([q[t, own] @ key[s, own] for s in range(len(x))])
                share = np.exp(logits / math.sqrt(size))
                heads[t, own] = share @ v[:, own] / share.sum()
        y = dense(heads, k, "out")
        if change is not None and change.kind == "lora":
            low = heads @ np.asarray(change.a[k]) @ np.asarray(change.b[k])
            y = y + change.scale * low
        x = x + y * w["blocks.scale1"][k]
        u = dense(norm(x, k, "norm2"), k, "up")
        if g.mlp == "gelu":
            u = u * 0.5 * (1 + np.vectorize(math.erf)(u / math.sqrt(2)))
        else:
            gate, value = np.split(u, 2, -1)
            u = gate / (1 + np.exp(-gate)) * value
        x = x + dense(u, k, "down") * w["blocks.scale2"][k]
        if change is not None and change.kind == "residual":
            low = x @ np.asarray(change.a[k]) @ np.asarray(change.b[k])
            x = x + change.scale * low
        taps.append(x)
    return np.stack(taps)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("small", 22.06), ("base", 86.58), ("large", 304.37), ("giant", 1136.48)],
)
def test_parameter_counts_are_those_published(name, millions):
    g = dinov2.GEOMETRIES[f"dinov2-{name}"]
    count = sum(math.prod(s) for s in dinov2.shapes(g, g.depth, 518).values())
    count += 3 * g.width  # final LayerNorm and mask token, which are not kept
    assert round(count / 1e6, 2) == millions
    registers = dinov2.GEOMETRIES[f"dinov2-with-registers-{name}"]
    assert dataclasses.replace(registers, registers=0) == g
    assert registers.registers == 4


@pytest.mark.parametrize("kind", [None, "lora", "residual"])
@pytest.mark.parametrize("geometry", [TINY, PLAIN])
def test_every_tap_equals_slow_float64_loops(geometry, kind):
    change = None if kind is None else adapter(kind, geometry)
    image = pictures(batch=1)
    expected = slow_float64(weights(geometry, 4, 56), geometry, image[0], change)
    found = run(network(geometry), image, (1, 2, 3, 4), change)
    assert found.shape == (4, 1, 17 + geometry.registers, 48)
    assert np.abs(found[:, 0] - expected).max() / expected.std() < 1e-5


def test_taps_are_the_same_whichever_are_asked_for():
    net, image = network(TINY, 4, 28), pictures(28)
    every = run(net, image, (1, 2, 3, 4))
    for taps in ((2, 4), (3,)):
        some = every[np.array(taps) - 1]
        np.testing.assert_allclose(run(net, image, taps), some, rtol=1e-5, atol=1e-5)


def test_untrained_adapter_changes_nothing():
    net, image = network(TINY, 2, 28), pictures(28)
    plain = run(net, image, (2,))
    for kind in ("lora", "residual"):
        change = adapter(kind, TINY, 2)
        same = run(net, image, (2,), change._replace(b=jnp.zeros((2, 3, 48))))
        np.testing.assert_allclose(same, plain, rtol=1e-5, atol=1e-5)
        assert np.abs(run(net, image, (2,), change) - plain).max() > 1e-2


@pytest.mark.parametrize("kind", ["lora", "residual"])
def test_adapter_gradients_are_those_of_finite_differences(kind):
    # On the float64 loops, so that differences are exact to 1e-7.
    image, change = pictures(28, 1), adapter(kind, TINY)
    w, net = weights(TINY, 4, 28), network(TINY, 4, 28)

    def loss(a, b, scale=0.5):
        moved = dinov2.Adapter(kind, a, b, scale)
        return np.sin(slow_float64(w, TINY, image[0], moved)[1::2]).sum()

    def jax_loss(a, b):
        taps = net(image, (2, 4), adapter=dinov2.Adapter(kind, a, b, 0.5))
        return jnp.sin(taps).sum()

    gradients = jax.jit(jax.grad(jax_loss, (0, 1)), compiler_options=QUICK)(
        change.a, change.b
    )
    rng = np.random.default_rng(0)
    for turn in range(2):
        direction = [rng.standard_normal(v.shape) for v in (change.a, change.b)]
        plus, minus = (
            [np.asarray(v, np.float64) + sign * 1e-5 * d for v, d in pairs]
            for sign in (1, -1)
            for pairs in [list(zip((change.a, change.b), direction, strict=True))]
        )
        slope = (loss(*plus) - loss(*minus)) / 2e-5
        found = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
        assert abs(found - slope) < 1e-4 * abs(slope), turn


@functools.cache
def compiled(geometry, taps, remat, with_gradient, px):
    graph, state = nnx.split(network(geometry, geometry.depth, px))
    change = adapter("lora", geometry, geometry.depth)

    def loss(low_rank, state, image):
        net = nnx.merge(graph, state)
        moved = dinov2.Adapter("lora", *low_rank, 0.5)
        return jnp.sum(net(image, taps, adapter=moved, remat=remat) ** 2)

    function = jax.value_and_grad(loss) if with_gradient else loss
    arguments = ((change.a, change.b), state, pictures(px))
    return jax.jit(function).lower(*arguments).compile(compiler_options=QUICK)


WIDE = dinov2.Geometry(128, 6, 2, "swiglu", 344, image_px=112)


@pytest.mark.parametrize(
    ("remat", "low", "high"),
    [("none", 1.5, 2.1), ("cheap", 1.5, 2.1), ("full", 2.3, 3.1)],
)
def test_backward_runs_no_product_for_frozen_weights(remat, low, high):
    # Of two segments; the analysis counts a loop once.
    forward = compiled(WIDE, (3, 6), "none", False, 112).cost_analysis()["flops"]
    both = compiled(WIDE, (3, 6), remat, True, 112).cost_analysis()["flops"]
    assert low < both / forward < high


def test_cheap_remat_keeps_less_and_full_remat_least():
    none, cheap, full = (
        compiled(WIDE, (3, 6), remat, True, 112).memory_analysis().temp_size_in_bytes
        for remat in dinov2.REMAT
    )
    assert none > 1.2 * cheap
    assert cheap > 2 * full


@pytest.mark.parametrize("with_gradient", [False, True])
def test_network_is_in_memory_once(with_gradient):
    geometry = dinov2.Geometry(256, 8, 4, "gelu", 1024, image_px=28)
    size = sum(math.prod(s) * 4 for s in dinov2.shapes(geometry, 8, 28).values())
    step = compiled(geometry, (4, 8), "cheap", with_gradient, 28)
    # Slices of segments would be 100 % of the blocks.
    assert step.memory_analysis().temp_size_in_bytes < 0.25 * size


def test_remat_leaves_values_and_gradients_alone():
    net, image, change = network(TINY, 4, 28), pictures(28), adapter("lora", TINY)

    def loss(low_rank, remat):
        moved = dinov2.Adapter("lora", *low_rank, 0.5)
        return jnp.sin(net(image, (4,), adapter=moved, remat=remat)).sum()

    both = jax.jit(jax.value_and_grad(loss), static_argnums=1, compiler_options=QUICK)
    none, *others = (both((change.a, change.b), remat) for remat in dinov2.REMAT)
    assert len(jax.tree.leaves(none[1])) == 2
    for other in others:
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4),
            none,
            other,
        )


# Logits of about 1000 have steps of 6e-5, and exp of them alone would overflow.
@pytest.mark.parametrize(
    ("dtype", "spread", "tolerance"),
    [("float32", 1, 2e-6), ("float32", 30, 2e-4), ("bfloat16", 1, 2e-2)],
)
def test_attention_is_that_of_jax_with_its_gradients(dtype, tolerance, spread):
    qkv = np.random.default_rng(0).standard_normal((2, 17, 3, 4, 8)).astype("f4")
    out = np.random.default_rng(1).standard_normal((2, 17, 32)).astype("f4")
    qkv[:, :, :2] *= spread

    def reference(qkv):
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        y = jax.nn.dot_product_attention(query, key, value, implementation="xla")
        return y.reshape(2, 17, 32)

    def both(attend, qkv):
        y, back = jax.vjp(attend, qkv)
        return [np.asarray(x, "f4") for x in (y, *back(jnp.asarray(out, y.dtype)))]

    with jax.default_matmul_precision("highest"):
        wanted = both(reference, jnp.asarray(qkv))
        found = both(lambda x: dinov2.attend(x, "xla"), jnp.asarray(qkv, dtype))
    for x, y in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max())


@pytest.fixture(params=[True, False])
def nnx_mode(request):
    names = ("nnx_graph_mode", "nnx_graph_updates")
    before = {name: getattr(flax.config, name) for name in names}
    for name in before:
        flax.config.update(name, request.param)
    yield
    for name, value in before.items():
        flax.config.update(name, value)


@pytest.mark.usefixtures("nnx_mode")
def test_split_and_merge_work_in_graph_and_tree_mode():
    net, image = network(TINY, 2, 28), pictures(28)
    graph, trainable, frozen = nnx.split(net, nnx.Param, dinov2.Frozen)
    assert jax.tree.leaves(trainable) == []
    call = jax.jit(lambda f, x: nnx.merge(graph, trainable, f)(x, (1, 2)))
    again = call(nnx.as_pure(frozen), image)
    np.testing.assert_allclose(again, run(net, image, (1, 2)), rtol=1e-4, atol=1e-4)


def test_bfloat16_stores_products_narrow_and_norms_wide():
    wide, narrow = network(TINY), network(TINY, dtype=jnp.bfloat16)
    assert narrow.blocks.qkv_kernel[...].dtype == jnp.bfloat16
    assert narrow.blocks.norm1_scale[...].dtype == jnp.float32
    expected, found = run(wide, pictures(), (4,)), run(narrow, pictures(), (4,))
    assert found.dtype == jnp.bfloat16
    error = found.astype(np.float32) - expected
    assert 1e-4 < np.sqrt((error**2).mean()) / np.std(expected) < 2e-2


def test_layer_norm_survives_a_large_mean():
    # float32 holds 300 + 1e-2 x to 3e-5; E[x^2] - E[x]^2 would lose the variance.
    rng = np.random.default_rng(0)
    x = (300 + 1e-2 * rng.standard_normal((2, 64))).astype("f4")
    one, zero = np.ones(64, "f4"), np.zeros(64, "f4")
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(
        exact.var(-1, keepdims=True) + 1e-6
    )
    found = dinov2._layer_norm(jnp.asarray(x), one[None], zero[None], eps=1e-6)
    assert np.abs(found - exact).max() < 5e-3


def test_works_under_strict_promotion(monkeypatch):
    net, image = network(TINY, dtype=jnp.bfloat16), pictures()
    # JAX's own attention promotes bfloat16 inside; the rest is ours.
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, **_: q + k * v)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for kind in ("lora", "residual"):
            call = functools.partial(net, taps=(1, 4), adapter=adapter(kind, TINY))
            assert jax.eval_shape(call, image).dtype == jnp.bfloat16


def test_patches_drop_cls_and_registers():
    net = network(TINY)
    taps = jnp.arange(2.0 * 2 * 19 * 48).reshape(2, 2, 19, 48)
    assert net.num_tokens == 19
    np.testing.assert_array_equal(net.patches(taps), taps[:, :, 3:])
    with_cls = net.patches(taps[0], keep_cls=True)
    np.testing.assert_array_equal(with_cls[:, 0], taps[0, :, 0])
    np.testing.assert_array_equal(with_cls[:, 1:], taps[0, :, 3:])
    older = net.patches(taps[0], keep_cls=True, drop="last_patches")
    np.testing.assert_array_equal(older, taps[0, :, :17])
    with pytest.raises(ValueError, match=r"last_patches.*keep_cls=False"):
        net.patches(taps, drop="last_patches")
    with pytest.raises(ValueError, match="drop is 'cls'"):
        net.patches(taps, keep_cls=True, drop="cls")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="16 tokens; expected 19"):
        net.patches(net.patches(taps))


def test_random_blocks_do_not_depend_on_how_many_there_are():
    short = dinov2.random(TINY, 2, 28, seed=3)
    long = dinov2.random(TINY, 4, 28, seed=3)
    other = dinov2.random(TINY, 2, 28, seed=4)
    key = "qkv_kernel"
    kernels = [getattr(net.blocks, key)[...] for net in (short, long, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1][:2])
    assert np.abs(kernels[0] - kernels[2]).max() > 0.1
    assert np.abs(kernels[1][0] - kernels[1][1]).max() > 0.1


def test_random_features_tell_pictures_apart():
    geometry = dinov2.Geometry(96, 6, 3, "gelu", 384, image_px=56)
    taps = run(dinov2.random(geometry, 6, 56), pictures(batch=6), (1, 6))
    assert 0.1 < taps[0].std() < taps[1].std() < 30
    between = taps[:, :, 1:].mean(2).std(1).mean(-1)
    assert (between > 0.05 * taps[:, :, 1:].std((1, 2, 3))).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"taps": (4, 1)}, "increasing"),
        ({"taps": (0, 1)}, "increasing numbers from 1"),
        ({"taps": ()}, "increasing"),
        ({"taps": (1, 3)}, "tap 3 lies after the last block; 2 of 4"),
        ({"remat": "cheep"}, "expected one of"),
        ({"attention": "flash"}, "expected one of"),
        ({"attention": "cudnn"}, "needs a bfloat16"),
        ({"adapter": adapter("lora", TINY, 3)}, r"expected \(2, 48, r\)"),
        ({"adapter": adapter("lorra", TINY, 2)}, "'lora' or 'residual'"),
        ({"images": np.zeros((1, 28, 42, 3), "f4")}, r"expected \(B, 28, 28, 3\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    net = network(TINY, 2, 28)
    call = {"images": pictures(28), "taps": (1, 2)} | arguments
    with pytest.raises(ValueError, match=message):
        net(call.pop("images"), call.pop("taps"), **call)


def test_pixels_that_are_not_normalised_are_refused():
    with pytest.raises(TypeError, match=r"uint8; expected floats"):
        network(TINY, 2, 28)(np.zeros((1, 28, 28, 3), np.uint8), (1,))


def test_weights_that_do_not_fit_are_all_named():
    w = weights(TINY, 2, 28)
    w["blocks.extra"] = w.pop("cls")
    w["position"] = w["position"][:3]
    with pytest.raises(ValueError, match="do not fit") as caught:
        dinov2.Dinov2(TINY, w, 2, 28)
    for part in ("blocks.extra is", "cls is None", "position is (3, 48)"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp": "relu"}, "relu"),
        ({"heads": 5}, "no multiple of 5 heads"),
        ({"image_px": 50}, "no multiple of the patch 14"),
    ],
)
def test_impossible_geometry_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
    with pytest.raises(ValueError, match=r"expected 1\.\.4"):
        dinov2.shapes(TINY, 5, 28)
