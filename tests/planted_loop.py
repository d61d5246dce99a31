"""Noiseless responses of planted voxels by loops that share no code with them."""

import math

import numpy as np

from ubrain_jax.datasets import planted


def standard(values: np.ndarray) -> np.ndarray:
    """z-score, 0 where nothing varies."""
    centred = values - values.mean()
    sd = math.sqrt((centred**2).mean())
    return centred / sd if sd > 1e-9 else centred * 0


def response(
    maps: np.ndarray,
    kind: int,
    centre: np.ndarray,
    size: float,
    tuning: np.ndarray,
    contrast: float,
) -> np.ndarray:
    """(M,) response of one population to maps (M, F, GRID, GRID), z-scored."""
    side = planted.GRID
    field = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            dx = (column + 0.5) / side - centre[0]
            dy = (row + 0.5) / side - centre[1]
            field[row, column] = math.exp(-(dx**2 + dy**2) / (2 * size**2))
    field /= field.sum()
    drive, energy = np.zeros(len(maps)), np.zeros(len(maps))
    for m, features in enumerate(maps.astype(np.float64)):
        seen = [(field * feature).sum() for feature in features]
        drive[m] = sum(w * s for w, s in zip(tuning, seen, strict=True))
        energy[m] = sum(seen[:18]) / 18
    shaped = {
        "orientation": lambda: np.maximum(drive, 0) ** 0.7,
        "colour": lambda: np.tanh(standard(drive)),
        "object": lambda: np.sqrt(abs(drive)),
        "scene": lambda: drive,
    }[planted.KINDS[kind]]()
    return standard(standard(shaped) + contrast * standard(energy))
