"""uint8 pictures on the device become the input of the backbone.

Files, colours and sizes are dealt with before, on the host: `datasets.pictures`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Of pixels in 0..1, red, green, blue: what DINOv2 was trained with.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalise(images: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Pixels 0..255 -> (pixel / 255 - mean) / std, per colour.

    Args:
        images: (..., H, W, 3) uint8, red first.
        dtype: Of the result; the arithmetic is float32.

    Returns:
        The same shape, values within -2.2..2.7.

    Raises:
        TypeError: If the images are not uint8: floats may be normalised already.
        ValueError: If colours are not the last axis.

    Example:
        >>> white = normalise(jnp.full((1, 2, 2, 3), 255, jnp.uint8))[0, 0, 0]
        >>> [f"{value:.4f}" for value in white]
        ['2.2489', '2.4286', '2.6400']
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"images are {images.dtype}; expected uint8, not normalised")
    if images.shape[-1] != 3:
        raise ValueError(f"images are {images.shape}; expected (..., H, W, 3)")
    axes = (1,) * (images.ndim - 1) + (3,)
    mean, std = IMAGENET_MEAN.reshape(axes), IMAGENET_STD.reshape(axes)
    return ((images.astype(jnp.float32) / 255 - mean) / std).astype(dtype)
