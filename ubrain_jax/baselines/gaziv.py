"""The subject-specific encoder of Gaziv et al.: a map and channels for each voxel.

Each layer of a frozen network passes a small convolution that all voxels share; then
a voxel sums the cells by a map of its own, the channels by a vector of its own, and
the layers by their weights. Trained by Adam on one subject with
MSE - alpha * cosine; the epoch and the learning rate are those of the least
validation loss. The paper's layers are of VGG-19 (`backbone.vgg`); with others, such
as the taps of DINOv2, this is its readout alone.

What the authors' public code has and this has not: 3 x 3 neighbourhoods of channels
in the readout, a stride in the convolutions (here layers are pooled before), batch
normalisation that follows the batch (here: the training pictures), penalties of the
maps' smoothness and of absolute weights (here: weight decay and early stopping), and
random shifts of the pictures.

References:
    Gaziv, Beliy, Granot et al., 2022, Self-supervised natural image reconstruction
    and large-scale semantic classification from brain activity, NeuroImage 254.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from ubrain_jax import errors, losses
from ubrain_jax.baselines import features, fitting


@dataclasses.dataclass(frozen=True)
class Settings:
    """How it is trained; the values in brackets are the authors' code's.

    Attributes:
        channels: Of the shared convolutions (32).
        dropout: Of a voxel's channels, in steps of 1/256 (0.25).
        alpha: Weight of the cosine (0.1; 0.3 in their script).
        learning_rates: Each is tried; the best on validation pictures stays (1e-3).
        weight_decay: Of AdamW.
        batch_images: Pictures in a step (64).
        epochs: At most (50).
        patience: Epochs without a better validation after which one ends.
    """

    channels: int = 32
    dropout: float = 0.25
    alpha: float = 0.1
    learning_rates: tuple[float, ...] = (3e-4, 1e-3)
    weight_decay: float = 1e-2
    batch_images: int = 64
    epochs: int = 50
    patience: int = 6


def fit(
    train: fitting.Data,
    val: fitting.Data,
    *,
    settings: Settings = Settings(),
    seed: int = 0,
) -> fitting.Fitted:
    """Trains the encoder of one subject.

    Args:
        train: Training pictures.
        val: Validation pictures, by which epoch and learning rate are chosen.
        settings: How.
        seed: Of initial weights, order and dropout.

    Returns:
        `fitting.Fitted`, with told: learning_rate, epoch, steps, val_loss.

    Raises:
        errors.NonFiniteLossError: If no learning rate gives a finite validation loss.
        errors.ConfigError: If a setting cannot work.
    """
    check(settings)
    scales = [_cell_scaling(layer) for layer in train.layers]
    inputs = [_scaled(train.layers, scales), _scaled(val.layers, scales)]
    shapes = [layer.shape[1:] for layer in train.layers]
    size = min(settings.batch_images, len(train.responses))
    best: dict[str, Any] = {"val_loss": np.inf}
    num_voxels = train.responses.shape[1]
    start = jax.jit(lambda key: init(key, shapes, num_voxels, settings.channels))
    params = start(jax.random.key(seed))
    step = _step(settings)
    for rate in settings.learning_rates:
        found = _train(step, params, inputs, train, val, settings, rate, size, seed)
        if found["val_loss"] < best["val_loss"]:
            best = found
    if not np.isfinite(best["val_loss"]):
        raise errors.NonFiniteLossError(
            "the baseline gaziv has no finite validation loss at learning rates "
            f"{', '.join(map(str, settings.learning_rates))}; take smaller ones"
        )
    params = best.pop("params")

    def predict(layers: Sequence[np.ndarray]) -> np.ndarray:
        return _predict(params, _scaled(layers, scales), size)

    return fitting.Fitted(predict, {**best, "settings": dataclasses.asdict(settings)})


def check(settings: Settings) -> None:
    """Refuses settings that cannot work.

    Raises:
        errors.ConfigError: Naming the first.
    """
    rules = {
        "channels": settings.channels >= 1,
        "dropout": 0 <= settings.dropout <= 0.99,
        "alpha": settings.alpha >= 0,
        "learning_rates": len(settings.learning_rates) > 0
        and min(settings.learning_rates) > 0,
        "weight_decay": settings.weight_decay >= 0,
        "batch_images": settings.batch_images >= 1,
        "epochs": settings.epochs >= 1,
        "patience": settings.patience >= 1,
    }
    for name, good in rules.items():
        if not good:
            raise errors.ConfigError(
                f"--{name}",
                "",
                f"{getattr(settings, name)!r}",
                "a number in range",
                "See ubrain_jax/baselines/gaziv.py.",
            )


def init(
    key: jax.Array,
    shapes: Sequence[tuple[int, ...]],
    num_voxels: int,
    channels: int,
) -> dict[str, Any]:
    """Initial weights.

    Args:
        key: Random.
        shapes: (g, g, C) of each layer.
        num_voxels: V.
        channels: K of the shared convolutions.

    Returns:
        For each layer (in lists): kernel (3, 3, C, K), shift (K,), map (V, g g),
        channel (V, K), and for all mix (V, L) and bias (V,).
    """
    params: dict[str, Any] = {"kernel": [], "shift": [], "map": [], "channel": []}
    for part, (height, width, depth) in zip(
        jax.random.split(key, len(shapes)), shapes, strict=True
    ):
        keys = jax.random.split(part, 3)
        normal = functools.partial(jax.random.normal, dtype=jnp.float32)
        fan = 9 * depth
        kernel = normal(keys[0], (3, 3, depth, channels)) * np.sqrt(2 / fan)
        cells = height * width
        # An even map with noise: all of the picture, until the data say where.
        place = (1 + 0.1 * normal(keys[1], (num_voxels, cells))) / cells
        channel = normal(keys[2], (num_voxels, channels)) / np.sqrt(channels)
        params["kernel"].append(kernel)
        params["shift"].append(jnp.zeros(channels))
        params["map"].append(place)
        params["channel"].append(channel)
    params["mix"] = jnp.full((num_voxels, len(shapes)), 1 / len(shapes))
    params["bias"] = jnp.zeros(num_voxels)
    return params


def respond(
    params: dict[str, Any],
    layers: Sequence[jax.Array],
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Scaled layers (B, g, g, C) -> responses (B, V).

    Args:
        params: From `init`.
        layers: z-scored by the training pictures.
        dropout: Share of a voxel's channels that are set to 0, with a key.
        key: Turns dropout on.
    """
    out = params["bias"][None]
    for k, layer in enumerate(layers):
        x = jax.lax.conv_general_dilated(
            layer,
            params["kernel"][k],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + params["shift"][k])
        cells = x.reshape(len(x), -1, x.shape[-1])  # (B, P, K)
        seen = jnp.einsum("BPK,VP->BVK", cells, params["map"][k])
        if key is not None:
            # A byte of chance, of four, is enough and a quarter of the work.
            part = jax.random.fold_in(key, k)
            chance = jax.random.bits(part, seen.shape, jnp.uint8)
            dropped = round(256 * dropout)
            seen = jnp.where(chance >= dropped, seen * 256 / (256 - dropped), 0)
        own = jnp.einsum("BVK,VK->BV", seen, params["channel"][k])
        out = out + own * jnp.abs(params["mix"][:, k])
    return out


def loss(
    params: dict[str, Any],
    layers: Sequence[jax.Array],
    responses: jax.Array,
    alpha: float,
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Mean over pictures of MSE - alpha * cosine over voxels."""
    return _mean_loss(respond(params, layers, dropout, key), responses, alpha)


def _mean_loss(predicted: jax.Array, responses: jax.Array, alpha: float) -> jax.Array:
    one = functools.partial(losses.encoder_loss, alpha=alpha, kind="released")
    return jnp.mean(jax.vmap(one)(predicted, responses, jnp.ones_like(responses)))


def _direction(settings: Settings) -> optax.GradientTransformation:
    """AdamW but for the learning rate, so that all rates are one program."""
    return optax.chain(
        optax.scale_by_adam(), optax.add_decayed_weights(settings.weight_decay)
    )


def _step(settings: Settings) -> Any:
    """One step of training, compiled when first called."""
    gradient, direction = jax.grad(loss), _direction(settings)

    @jax.jit
    def step(params, state, layers, responses, key, rate):
        grads = gradient(
            params, layers, responses, settings.alpha, settings.dropout, key
        )
        updates, state = direction.update(grads, state, params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), state

    return step


def _train(
    step: Any,
    params: dict[str, Any],
    inputs: list[list[np.ndarray]],
    train: fitting.Data,
    val: fitting.Data,
    settings: Settings,
    rate: float,
    size: int,
    seed: int,
) -> dict[str, Any]:
    """Weights of the best epoch at one learning rate."""
    state, rng, count = (
        _direction(settings).init(params),
        np.random.default_rng(seed),
        0,
    )
    best: dict[str, Any] = {"val_loss": np.inf, "params": params}
    keys = jax.random.key(seed + 1)
    for epoch in tqdm.tqdm(
        range(1, settings.epochs + 1), desc=f"rate {rate:g}", disable=None
    ):
        order = rng.permutation(len(train.responses))
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            layers = [layer[rows] for layer in inputs[0]]
            key = jax.random.fold_in(keys, count)
            measured = train.responses[rows]
            params, state = step(params, state, layers, measured, key, rate)
            count += 1
        predicted = _predict(params, inputs[1], size)
        both = jnp.asarray(predicted), jnp.asarray(val.responses)
        value = float(_mean_loss(*both, settings.alpha))
        if value < best["val_loss"]:
            best = {
                "val_loss": value,
                "learning_rate": rate,
                "epoch": epoch,
                "steps": count,
                "params": params,
            }
        elif epoch - best.get("epoch", 0) >= settings.patience:
            break
    return best


_respond = jax.jit(respond)


def _predict(
    params: dict[str, Any], layers: Sequence[np.ndarray], size: int
) -> np.ndarray:
    """Scaled layers (M, g, g, C) -> (M, V), `size` pictures at a time."""
    count = len(layers[0])
    out = np.empty((count, len(params["bias"])), np.float32)
    for start in range(0, count, size):
        some = np.arange(start, min(start + size, count))
        block = _respond(params, [layer[np.resize(some, size)] for layer in layers])
        out[some] = np.asarray(block)[: len(some)]
    return out


def _cell_scaling(layer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel over pictures and cells."""
    return features.scaling(layer.reshape(-1, layer.shape[-1]))


def _scaled(
    layers: Sequence[np.ndarray], scales: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[np.ndarray]:
    return [
        ((layer - mean) / deviation).astype(np.float32)
        for layer, (mean, deviation) in zip(layers, scales, strict=True)
    ]
