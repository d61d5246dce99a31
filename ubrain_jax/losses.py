"""The training loss: squared error of every voxel and direction of the pattern.

Written for one image and its N sampled voxels; `jax.vmap` adds images. It is made of
five sums over voxels, so devices that hold different voxels of an image add their
sums and need nothing else of each other. Averaging over images is the caller's.

The contrastive terms are of a group of images: what their patterns say of each other.
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


class Contrast(NamedTuple):
    """Terms over the B images of a group; scalars.

    Attributes:
        info_nce: Symmetric cross-entropy, in nats; log B without any information.
        entropy: Mean entropy, in nats, of the matches with other images; at most
            log(B - 1).
    """

    info_nce: jax.Array
    entropy: jax.Array


def pattern_similarity(
    predicted: jax.Array, response: jax.Array, weight: jax.Array
) -> jax.Array:
    """Correlation over voxels of every predicted pattern with every measured one.

    Each pattern (a row, one image) is z-scored over its voxels: over images there is
    nothing to compare, a batch holds too few. A pattern that is the same in all voxels
    has no correlation: it counts as 0 and gives no gradient, as in `loss_from_sums`.

    Args:
        predicted: (B, N) predictions for B images, any float dtype.
        response: (B, N) measured responses of the same voxels.
        weight: (B, N) 1, or 0 for padding; the same row B times.

    Returns:
        (B, B), rows predicted and columns measured, float32 or wider.
    """
    p, y = (_standardised(x, weight) for x in (predicted, response))
    # In full precision: accelerators may round the factors to bfloat16 or TF32.
    return jnp.matmul(p, y.T, precision=jax.lax.Precision.HIGHEST)


def _standardised(values: jax.Array, weight: jax.Array) -> jax.Array:
    """(B, N) -> each row centred and of length 1; 0 where padded or constant."""
    dtype = jnp.float64 if values.dtype == jnp.float64 else jnp.float32
    weight = weight.astype(dtype)
    used = weight > 0
    x = jnp.where(used, values.astype(dtype), 0)
    count = jnp.sum(weight, 1, keepdims=True)
    mean = jnp.sum(weight * x, 1, keepdims=True) / jnp.where(count > 0, count, 1)
    x = jnp.where(used, x - mean, 0) * jnp.sqrt(weight)
    square = jnp.sum(jnp.square(x), 1, keepdims=True)
    # Centring leaves dust of a constant, some rounding steps of it for each voxel.
    dust = 16 * jnp.finfo(dtype).eps * jnp.abs(mean)
    defined = square > count * jnp.square(dust)
    # `where` inside and outside: the branch not taken must have a finite gradient.
    return jnp.where(defined, x / jnp.sqrt(jnp.where(defined, square, 1)), 0)


def contrast(similarity: jax.Array, temperature: float) -> Contrast:
    """How surely each pattern finds its image among those of the group.

    With logits = similarity / temperature, `info_nce` is the mean of two
    cross-entropies: predicted patterns that look for their measured one, and measured
    patterns that look for their predicted one. `entropy` is that of the softmax over
    the *other* images, j != i, of each predicted pattern: high where no other image is
    mistaken more than the rest.

    Args:
        similarity: (B, B), predicted by measured, from `pattern_similarity`.
        temperature: Above 0.

    Example:
        >>> alike = contrast(jnp.zeros((4, 4)), 0.1)
        >>> [round(x.item(), 4) for x in alike]  # log 4 and log 3
        [1.3863, 1.0986]

    References:
        van den Oord et al. 2018, arXiv:1807.03748 (InfoNCE); Radford et al. 2021,
        arXiv:2103.00020 (both ways).
    """
    logits = similarity / temperature
    true = jnp.diagonal(logits)
    ways = [jax.nn.logsumexp(logits, axis) - true for axis in (1, 0)]
    own = jnp.eye(len(logits), dtype=bool)
    # A finite number in place of minus infinity, whose gradient would be NaN.
    log_share = jax.nn.log_softmax(jnp.where(own, -1e9, logits), 1)
    share = jnp.where(own, 0, jnp.exp(log_share))
    entropy = -jnp.sum(share * jnp.where(own, 0, log_share), 1)
    return Contrast(jnp.mean(ways[0] + ways[1]) / 2, jnp.mean(entropy))


def contrast_loss(
    predicted: jax.Array,
    response: jax.Array,
    weight: jax.Array,
    group_images: int,
    contrastive: float,
    entropy: float,
    temperature: float,
) -> jax.Array:
    """contrastive * InfoNCE - entropy * entropy, averaged over groups.

    Args:
        predicted: (B, N) predictions; each `group_images` rows in turn are a group
            of one subject and one sample of voxels.
        response: (B, N) measured responses.
        weight: (B, N) 1, or 0 for padding.
        group_images: Images of a group, a divisor of B.
        contrastive: Weight of InfoNCE.
        entropy: Weight of the entropy, which is to be large.
        temperature: Above 0.

    Returns:
        Scalar, float32 or wider.
    """

    def of_group(p: jax.Array, y: jax.Array, w: jax.Array) -> jax.Array:
        found = contrast(pattern_similarity(p, y, w), temperature)
        return contrastive * found.info_nce - entropy * found.entropy

    groups = [
        x.reshape(-1, group_images, x.shape[-1]) for x in (predicted, response, weight)
    ]
    return jnp.mean(jax.vmap(of_group)(*groups))
