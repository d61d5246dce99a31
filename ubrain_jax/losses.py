"""The training loss: squared error of every voxel and direction of the pattern.

Written for one image and its N sampled voxels; `jax.vmap` adds images. It is made of
five sums over voxels, so devices that hold different voxels of an image add their
sums and need nothing else of each other. Averaging over images is the caller's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class LossSums(NamedTuple):
    """Sums over the sampled voxels of one image; all scalars, adding over devices.

    Attributes:
        weight: Sum of w: the number of voxels that are no padding.
        error: Sum of w (predicted - response)^2.
        product: Sum of w predicted * response.
        predicted: Sum of w predicted^2.
        response: Sum of w response^2.
    """

    weight: jax.Array
    error: jax.Array
    product: jax.Array
    predicted: jax.Array
    response: jax.Array


def loss_weights(kind: str, alpha: float) -> tuple[float, float]:
    """Weights of the squared error and of the cosine.

    Args:
        kind: "paper" for alpha * MSE - (1 - alpha) * cosine, "released" for
            MSE - alpha * cosine, which is what the authors' code computes.
        alpha: In [0, 1]; 0.1 in both.

    Raises:
        ValueError: If `kind` is another word.

    Example:
        >>> loss_weights("paper", 0.1), loss_weights("released", 0.1)
        ((0.1, 0.9), (1.0, 0.1))
    """
    if kind == "paper":
        return alpha, 1 - alpha
    if kind == "released":
        return 1.0, alpha
    raise ValueError(f"loss kind {kind!r}; expected 'paper' or 'released'")


def loss_sums(predicted: jax.Array, response: jax.Array, weight: jax.Array) -> LossSums:
    """The five sums over the sampled voxels of one image.

    Args:
        predicted: (N,) predictions, any float dtype; added up in float32 or wider.
        response: (N,) measured responses.
        weight: (N,) 1, or 0 for padding. What stands in a padded place, even NaN,
            changes neither the sums nor their gradient.
    """
    dtype = jnp.float64 if predicted.dtype == jnp.float64 else jnp.float32
    weight = weight.astype(dtype)
    used = weight > 0
    p = jnp.where(used, predicted.astype(dtype), 0)  # (N,)
    y = jnp.where(used, response.astype(dtype), 0)  # (N,)
    # Elementwise and not `p @ y`, which accelerators may round to bfloat16 or TF32.
    return LossSums(
        weight=jnp.sum(weight),
        error=jnp.sum(weight * jnp.square(p - y)),
        product=jnp.sum(weight * p * y),
        predicted=jnp.sum(weight * jnp.square(p)),
        response=jnp.sum(weight * jnp.square(y)),
    )


def loss_from_sums(
    sums: LossSums, mse_weight: float, cosine_weight: float
) -> jax.Array:
    """mse_weight * MSE - cosine_weight * cosine.

    Without a voxel (all weights 0) the loss is 0 and so is its gradient. Where
    all predictions or all responses are 0 the cosine has no value: it counts as 0
    and gives no gradient (torch divides by 1e-8 there, and Adam's second moment would
    remember that gradient for thousands of steps).

    Args:
        sums: From `loss_sums`, added over the devices that share the image.
        mse_weight: From `loss_weights`.
        cosine_weight: From `loss_weights`.

    Returns:
        Scalar of the sums' dtype.
    """
    mse = sums.error / jnp.where(sums.weight > 0, sums.weight, 1)
    # `where` inside and outside: the branch not taken must have a finite gradient.
    defined = (sums.predicted > 0) & (sums.response > 0)
    one = jnp.ones_like(sums.predicted)
    predicted_norm = jnp.sqrt(jnp.where(defined, sums.predicted, one))
    response_norm = jnp.sqrt(jnp.where(defined, sums.response, one))
    cosine = jnp.where(defined, sums.product / predicted_norm / response_norm, 0)
    return mse_weight * mse - cosine_weight * cosine


def encoder_loss(
    predicted: jax.Array,
    response: jax.Array,
    weight: jax.Array,
    alpha: float,
    kind: str = "paper",
) -> jax.Array:
    """Loss of one image over its sampled voxels.

    alpha * MSE - (1 - alpha) * cosine for `kind` "paper"; see `loss_weights`.

    Args:
        predicted: (N,) predictions.
        response: (N,) measured responses, z-scored.
        weight: (N,) 1, or 0 for padding, which changes neither value nor gradient.
        alpha: Weight of the squared error, in [0, 1]; the paper's is 0.1.
        kind: "paper" or "released".

    Returns:
        Scalar, float32 or wider; 0 where all weights are 0.

    Example:
        >>> response = jnp.array([1.0, -1.0, 5.0])
        >>> weight = jnp.array([1.0, 1.0, 0.0])
        >>> encoder_loss(response, response, weight, 0.1).item().__round__(6)
        -0.9

    References:
        Beliy et al. 2024, The Wisdom of a Crowd of Brains: A Universal Brain Encoder.
    """
    sums = loss_sums(predicted, response, weight)
    return loss_from_sums(sums, *loss_weights(kind, alpha))
