"""Single trials become one response a picture: z-scored, averaged, with their noise.

References:
    Allen et al., 2022, Nature Neuroscience 25:116 (noise-ceiling SNR).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ubrain_jax.datasets import schema

_HUGE = 1e100  # responses whose squares would not be finite
_VOXELS = 512  # z-scored at once


class Averages(NamedTuple):
    """Responses of M pictures, and what was found on the way, for V voxels.

    Attributes:
        responses: (M, V) float32; 0 for invalid voxels.
        ncsnr: (V,) float32, NaN where undefined.
        invalid: (V,) bool: not finite, or beyond 1e100, in a trial.
        flat: (runs, V) bool: constant in a run, therefore 0 there, and not invalid.
    """

    responses: np.ndarray
    ncsnr: np.ndarray
    invalid: np.ndarray
    flat: np.ndarray


def average(
    betas: np.ndarray,
    runs: Sequence[np.ndarray],
    row: np.ndarray,
    repeated: np.ndarray,
) -> Averages:
    """Z-scores within run and averages over presentations, in blocks of voxels.

    Args:
        betas: (T, V) float64, in any unit.
        runs: For each run the numbers of its trials.
        row: (T,) place of the trial's picture, from 0 to M - 1; -1 for trials that
            are left out.
        repeated: (T,) bool: trials that `signal_to_noise` rests on.

    Returns:
        The averages; computed in float64.
    """
    used = row >= 0
    repeats = np.bincount(row[used])
    num = betas.shape[1]
    responses = np.zeros((len(repeats), num), np.float32)
    ncsnr = np.full(num, np.nan, np.float32)
    invalid, flat = np.zeros(num, bool), np.zeros((len(runs), num), bool)
    for start in range(0, num, _VOXELS):
        part = slice(start, start + _VOXELS)
        z = betas[:, part].copy()
        z[~used] = 0
        invalid[part] = ~(np.abs(z) < _HUGE).all(0)
        z[:, invalid[part]] = 0
        for k, trials in enumerate(runs):
            block = z[trials]
            flat[k, part] = schema.z_score(block)
            z[trials] = block
        total = np.zeros((len(repeats), z.shape[1]))
        for trial in np.flatnonzero(used):
            total[row[trial]] += z[trial]
        responses[:, part] = total / repeats[:, None]
        if repeated.any():
            ncsnr[part] = signal_to_noise(z[repeated], row[repeated])
    return Averages(responses, ncsnr, invalid, flat & ~invalid)


def signal_to_noise(responses: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Noise-ceiling SNR of each voxel from repeated presentations.

    As NSD defines it, with the total variance measured, not assumed to be 1:

        noise^2  = mean over pictures of the variance over repeats (ddof=1)
        signal^2 = max(0, variance over all samples (ddof=0) - noise^2)
        ncsnr    = signal / noise

    Each picture with two or more presentations counts once in noise^2, however many
    it has. The part of the variance that repeats explains is ncsnr^2 / (ncsnr^2 + 1/k)
    for an average over k presentations.

    Args:
        responses: (T, V) float64, z-scored within run, finite.
        picture: (T,) number of the picture of each sample.

    Returns:
        (V,) float64 >= 0. NaN where it is undefined: if no picture is repeated, or
        where repeats never differ (noise is 0).

    References:
        Allen et al., 2022, Nature Neuroscience 25:116, Methods, "Noise ceiling".

    Example:
        >>> z = np.array([[2.0], [1.0], [-1.0], [-2.0]])
        >>> signal_to_noise(z, np.array([1, 1, 2, 2])).round(3).tolist()
        [2.0]
    """
    noise, count = np.zeros(responses.shape[1]), 0
    for number in np.unique(picture):
        here = responses[picture == number]
        if len(here) > 1:
            noise += here.var(0, ddof=1)
            count += 1
    if not count:
        return np.full(responses.shape[1], np.nan)
    noise /= count
    signal = np.maximum(0, np.var(responses, 0) - noise)
    noise[noise == 0] = np.nan
    return np.sqrt(signal / noise)
