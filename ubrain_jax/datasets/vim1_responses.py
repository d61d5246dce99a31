"""Reads responses of vim-1 to a table, and what repeats say of each voxel.

Every encoding gives the same table, pictures by voxels in the order of the file.
Where single trials are there, each voxel has two numbers besides: the signal-to-noise
ratio by which voxels are chosen, and that of the noise ceiling.

References:
    Allen et al., 2022, Nature Neuroscience 25:116 (noise ceiling).
"""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ubrain_jax.datasets import files, npz, schema
from ubrain_jax.datasets.vim1_files import Plan, Table

# Averages and the mean of single trials may differ by rounding, no more.
_TOLERANCE = 1e-4


class Responses(NamedTuple):
    """Responses of one subject with M pictures, V voxels.

    Attributes:
        values: (M, V) float32, averaged over repeats, training pictures first; not
            finite where the file has no number.
        snr: (V,) float64, see `snr`; None without single trials.
        ncsnr: (V,) float64, see `ncsnr`; NaN without single trials.
    """

    values: np.ndarray
    snr: np.ndarray | None
    ncsnr: np.ndarray


def read_responses(source: pathlib.Path, plan: Plan) -> Responses:
    """Reads one subject: averages, or the mean of the single trials.

    Where both are there, they must be equal.

    Args:
        source: For messages.
        plan: From `inspect`.

    Raises:
        errors.InputError: If the files are damaged, or averages and trials differ.
    """
    tables = plan.means or plan.trials
    axis = 0 if tables["train"].header else 1
    num = {split: tables[split].layout.shape[axis] for split in ("train", "val")}
    values = np.empty((sum(num.values()), len(plan.region)), np.float32)
    rows = {"train": values[: num["train"]], "val": values[num["train"] :]}
    reliability: tuple[np.ndarray, np.ndarray] | None = None
    problems: list[schema.Problem] = []
    for split, target in rows.items():
        if split in plan.means:
            for start, block in _blocks(plan.means[split]):
                with np.errstate(over="ignore"):  # beyond float32 is inf: not finite
                    target[start : start + len(block)] = block
        if split in plan.trials:
            means, noise = _read_trials(plan.trials[split])
            if split in plan.means:
                _compare(plan, split, target, means, problems)
            else:
                with np.errstate(over="ignore"):
                    target[:] = means
            if split == "val":
                repeats = plan.num_repeats(split)
                reliability = snr(means, noise), ncsnr(means, noise, repeats)
            del means
    schema.raise_problems(
        source,
        problems,
        "Take one of them away: the averages, or the files of single trials.",
    )
    if reliability is None:
        return Responses(values, None, np.full(values.shape[1], np.nan))
    return Responses(values, *reliability)


def snr(means: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Signal-to-noise ratio by which voxels are chosen.

    `snr = var_images(mean_repeats) / mean_images(var_repeats)`, both variances
    unbiased (ddof=1). Pure noise scores 1/R with R repeats, not 0.

    Args:
        means: (M, V) mean over repeats.
        noise: (V,) variance over repeats, mean over images.

    Returns:
        (V,) float64; NaN where a response is not finite or never varies over repeats.

    References:
        Beliy et al., 2024, arXiv:2406.12179.
    """
    return _over(means.var(0, ddof=1), noise)


def ncsnr(means: np.ndarray, noise: np.ndarray, num_repeats: int) -> np.ndarray:
    """Noise-ceiling signal-to-noise ratio, of standard deviations.

    `ncsnr = sqrt(max(0, var_images(mean_repeats) - noise / R) / noise)`

    Args:
        means: (M, V) mean over repeats.
        noise: (V,) variance over repeats (ddof=1), mean over images.
        num_repeats: R.

    Returns:
        (V,) float64; NaN where a response is not finite or never varies over repeats.

    References:
        Allen et al., 2022, Nature Neuroscience 25:116.
    """
    signal = np.maximum(means.var(0, ddof=1) - noise / num_repeats, 0)
    return np.sqrt(_over(signal, noise))


def _over(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Ratio; NaN where there is no noise to divide by."""
    known = np.isfinite(signal) & (noise > 0)
    return np.divide(signal, noise, out=np.full(signal.shape, np.nan), where=known)


def _blocks(table: Table) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first picture, block): (m, V), or (R, m, V) of single trials."""
    if table.header is not None:
        yield 0, npz.read(table.path, table.name, table.header)
        return
    num_voxels, num_images, *rest = table.layout.shape
    size = num_voxels * table.layout.dtype.itemsize * (rest[0] if rest else 1)
    step = max(1, schema.BLOCK // size)
    starts = range(0, num_images, step)
    wanted = [
        [(0, num_voxels), (s, min(s + step, num_images)), *((0, r) for r in rest)]
        for s in starts
    ]
    blocks = files.mat_blocks(table.path, table.name, wanted)
    for start, block in zip(starts, blocks, strict=True):
        yield start, block.T


def _read_trials(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """(M, V) means over repeats and (V,) noise, float64."""
    num_voxels, num_images, _ = table.layout.shape
    means = np.empty((num_images, num_voxels))
    noise = np.zeros(num_voxels)
    for start, block in _blocks(table):
        for k in range(block.shape[1]):  # a picture: no float64 copy of the block
            trials = block[:, k].astype(np.float64)
            with np.errstate(invalid="ignore"):  # inf - inf: not finite, as it should
                means[start + k] = trials.mean(0)
                noise += trials.var(0, ddof=1)
    return means, noise / num_images


def _compare(
    plan: Plan,
    split: str,
    averages: np.ndarray,
    means: np.ndarray,
    problems: list[schema.Problem],
) -> None:
    """Notes voxels whose averages are not the mean of their single trials."""
    worst = np.zeros(averages.shape[1])
    for average, mean in zip(averages, means, strict=True):
        with np.errstate(invalid="ignore"):
            gap = np.abs(average - mean) - _TOLERANCE * np.abs(mean)
        np.fmax(worst, gap, out=worst)
    bad = np.flatnonzero(worst > _TOLERANCE)
    if len(bad):
        voxel = int(bad[0])
        gaps = np.abs(averages[:, voxel] - means[:, voxel])
        row = int(np.nanargmax(gaps))
        table = plan.means[split]
        schema.add_problem(
            problems,
            f"{table.path.name}:{table.name}",
            f"{len(bad)} of {len(worst)} voxels are not the mean of their trials "
            f"(first: voxel {voxel}, picture {row + 1}: {averages[row, voxel]:.4g})",
            f"{means[row, voxel]:.4g}, as {plan.trials[split].path.name}",
        )
