"""The loss against plain numpy, finite differences and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ubrain_jax import losses


def _example(seed, num=40, padded=0):
    rng = np.random.default_rng(seed)
    response = rng.normal(size=num).astype(np.float32)
    predicted = (0.3 * response + 0.5 * rng.normal(size=num)).astype(np.float32)
    weight = np.ones(num, np.float32)
    weight[num - padded :] = 0
    return predicted, response, weight


def _by_hand(predicted, response, mse_weight, cosine_weight):
    p, y = predicted.astype(np.float64), response.astype(np.float64)
    cosine = p @ y / np.linalg.norm(p) / np.linalg.norm(y)
    return mse_weight * np.mean((p - y) ** 2) - cosine_weight * cosine


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.7, 1.0])
def test_loss_is_the_papers_formula(alpha):
    predicted, response, weight = _example(0)
    loss = losses.encoder_loss(predicted, response, weight, alpha)
    expected = _by_hand(predicted, response, alpha, 1 - alpha)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_released_kind_keeps_the_whole_squared_error():
    predicted, response, weight = _example(1)
    loss = losses.encoder_loss(predicted, response, weight, 0.1, kind="released")
    np.testing.assert_allclose(loss, _by_hand(predicted, response, 1, 0.1), rtol=1e-5)
    with pytest.raises(ValueError, match=r"'papr'.*'paper' or 'released'"):
        losses.loss_weights("papr", 0.1)


@pytest.mark.parametrize("filler", [0.0, 3.0, np.nan, np.inf])
def test_padding_changes_neither_value_nor_gradient(filler):
    predicted, response, weight = _example(2)
    grad = jax.value_and_grad(losses.encoder_loss)
    value, slope = grad(predicted, response, weight, 0.1)
    padded = [
        np.append(a, np.full(9, f, np.float32))
        for a, f in ((predicted, filler), (response, -filler), (weight, 0))
    ]
    padded_value, padded_slope = grad(*padded, 0.1)
    np.testing.assert_allclose(padded_value, value, rtol=1e-6)
    np.testing.assert_allclose(padded_slope[:40], slope, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(padded_slope[40:], 0)


@pytest.mark.parametrize("which", ["no voxel", "predicted 0", "response 0", "both 0"])
def test_loss_and_gradient_are_finite_at_the_hard_points(which):
    predicted, response, weight = _example(3)
    if which == "no voxel":
        weight = 0 * weight
    if which in ("predicted 0", "both 0"):
        predicted = 0 * predicted
    if which in ("response 0", "both 0"):
        response = 0 * response
    value, slope = jax.value_and_grad(losses.encoder_loss)(
        predicted, response, weight, 0.1
    )
    if which == "no voxel":
        assert value == 0
        np.testing.assert_array_equal(slope, 0)
    else:  # the squared error remains, the cosine is left out
        np.testing.assert_allclose(
            value, 0.1 * np.mean((predicted - response) ** 2), rtol=1e-5
        )
        np.testing.assert_allclose(
            slope, 0.2 * (predicted - response) / 40, rtol=1e-5, atol=1e-9
        )


@pytest.mark.parametrize("num", [1, 2, 17])
def test_gradient_agrees_with_finite_differences(num):
    with jax.enable_x64(True):
        predicted, response, weight = (
            jnp.asarray(a, jnp.float64) for a in _example(4, num, padded=num // 4)
        )

        def loss(p, y):
            return losses.encoder_loss(p, y, weight, 0.3)

        assert loss(predicted, response).dtype == jnp.float64
        check_grads(
            loss,
            (predicted, response),
            order=1,
            modes=["fwd", "rev"],
            eps=1e-6,
            atol=1e-6,
            rtol=1e-6,
        )


def test_sums_of_parts_give_the_loss_of_the_whole():
    """Devices hold 7, 0 and 33 voxels of one image; only their sums are added."""
    predicted, response, weight = _example(5, padded=5)
    whole = losses.encoder_loss(predicted, response, weight, 0.1)
    parts = [
        losses.loss_sums(predicted[s], response[s], weight[s])
        for s in (slice(0, 7), slice(7, 7), slice(7, 40))
    ]
    total = jax.tree.map(lambda *x: sum(x), *parts)
    np.testing.assert_allclose(losses.loss_from_sums(total, 0.1, 0.9), whole, rtol=1e-6)
    assert total.weight == 35


def test_vmap_over_images_equals_a_loop():
    images = [_example(seed, padded=seed) for seed in range(5)]
    predicted, response, weight = (np.stack(a) for a in zip(*images, strict=True))
    batched = jax.jit(jax.vmap(losses.encoder_loss, in_axes=(0, 0, 0, None)))(
        predicted, response, weight, 0.1
    )
    for b in range(5):
        n = 40 - b
        expected = _by_hand(predicted[b, :n], response[b, :n], 0.1, 0.9)
        np.testing.assert_allclose(batched[b], expected, rtol=1e-5)


def test_weights_that_are_no_padding_count_as_repeats():
    predicted, response, weight = _example(6)
    weight[3] = 2
    repeated = [np.append(a, a[3]) for a in (predicted, response, np.ones(40))]
    np.testing.assert_allclose(
        losses.encoder_loss(predicted, response, weight, 0.1),
        losses.encoder_loss(*map(jnp.asarray, repeated), 0.1),
        rtol=1e-6,
    )


def test_bfloat16_predictions_are_summed_in_float32():
    predicted, response, weight = _example(7, num=5000)
    low = jnp.asarray(predicted, jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        loss = losses.encoder_loss(low, jnp.asarray(response), jnp.asarray(weight), 0.1)
    assert loss.dtype == jnp.float32
    expected = _by_hand(np.asarray(low, np.float32), response, 0.1, 0.9)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_small_predictions_keep_their_direction():
    """Squares of 1e-15 are near float32's end; their product would be 0."""
    predicted, response, weight = _example(8)
    loss = losses.encoder_loss(predicted * np.float32(1e-15), response, weight, 0.0)
    expected = _by_hand(predicted, response, 0, 1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["paper", "released"])
def test_loss_and_gradient_equal_torch(kind):
    import torch

    predicted, response, weight = _example(9, num=300)
    value, slope = jax.value_and_grad(losses.encoder_loss)(
        predicted, response, weight, 0.1, kind
    )
    p = torch.tensor(predicted, dtype=torch.float64, requires_grad=True)
    y = torch.tensor(response, dtype=torch.float64)
    mse = torch.nn.functional.mse_loss(p, y)
    cosine = torch.nn.functional.cosine_similarity(p, y, dim=0)
    theirs = 0.1 * mse - 0.9 * cosine if kind == "paper" else mse - 0.1 * cosine
    theirs.backward()
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    np.testing.assert_allclose(slope, p.grad.numpy(), rtol=1e-4, atol=1e-7)
