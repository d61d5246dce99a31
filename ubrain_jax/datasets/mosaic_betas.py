"""Reads the betas of one file of MOSAIC: averaged, z-scored, with a noise ceiling.

Trials are streamed picture by picture. Z-scoring is affine, so repeats are averaged
first and mean and SD, known at the end, are applied to the averages.

References:
    Prince et al., 2022, eLife 11:e77599 (noise ceiling).
"""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import files, mosaic_index, schema

_HUGE = 1e6  # no beta, z-scored or in percent, is larger; swapped bytes are


class Moments:
    """Mean and sums of squares of trials, added picture by picture, for V voxels.

    Float64, by the pairwise rule of Chan, so that a mean far from 0 costs nothing.

    Attributes:
        num: Trials so far.
        num_repeated: Degrees of freedom within pictures: the trials of pictures shown
            more than once, less those pictures.
        mean: (V,) over trials.
        total: (V,) sum of squares about the mean.
        within: (V,) sum of squares of trials about the mean of their picture.

    References:
        Chan et al., 1983, The American Statistician 37:242.
    """

    def __init__(self, num_voxels: int):
        self.num = self.num_repeated = 0
        self.mean = np.zeros(num_voxels)
        self.total = np.zeros(num_voxels)
        self.within = np.zeros(num_voxels)

    def add(self, trials: np.ndarray) -> np.ndarray:
        """Adds all trials (R, V) of one picture; returns their mean (V,)."""
        num = len(trials)
        mean = trials.mean(0, dtype=np.float64)
        within = np.square(trials - mean).sum(0) if num > 1 else 0.0
        shift = mean - self.mean
        self.total += within + shift**2 * (self.num * num / (self.num + num))
        self.within += within
        self.num += num
        self.num_repeated += num - 1
        self.mean += shift * (num / self.num)
        return mean

    def constant(self) -> np.ndarray:
        """(V,) bool: no variance beyond the rounding of the mean."""
        eps = np.finfo(np.float64).eps
        return self.total <= self.num * (self.num * np.abs(self.mean) * eps) ** 2

    def ncsnr(self) -> np.ndarray:
        """Noise-ceiling signal-to-noise ratio, (V,) float64.

        With noise = within / num_repeated, the variance over repeats pooled over
        pictures, and signal = max(0, total / num - noise): sqrt(signal / noise). The
        definition of GLMsingle and NSD with any number of repeats, as MOSAIC has it.

        Returns:
            NaN where no picture is repeated or repeats do not vary.
        """
        if not self.num_repeated:
            return np.full(len(self.mean), np.nan)
        noise = self.within / self.num_repeated
        signal = np.maximum(0, self.total / self.num - noise)
        return np.sqrt(signal / np.where(noise > 0, noise, np.nan))


def read_subject(
    file: mosaic_index.File,
    columns: np.ndarray,
    mask_name: str,
    val_fraction: float,
    seed: int,
) -> tuple[schema.Subject, list[str]]:
    """Streams the trials of a subject.

    Args:
        file: Listed by `mosaic_index.inspect`, without problems.
        columns: Sorted grayordinates wanted.
        mask_name: How to call these.
        val_fraction: Share of the training pictures for validation.
        seed: Of that share.

    Returns:
        The subject, and what a user must know of it, in lines.

    Raises:
        errors.InputError: If a trial is NaN in all grayordinates or a copy of another,
            values are absurd, or no voxel or training picture is left.
    """
    read = np.setdiff1d(columns, file.lost)
    if not len(read):
        raise errors.InputError(
            file.path,
            "",
            "NaN in all chosen grayordinates",
            "some valid",
            mosaic_index.AGAIN,
        )
    responses, origin, moments, invalid = _average(file, read)
    train = moments["train"]
    constant = train.constant() & ~invalid
    keep = ~(invalid | constant)
    if not keep.any():
        raise errors.InputError(
            file.path,
            "betas",
            f"{int(invalid.sum())} grayordinates hold NaN or inf, {int(constant.sum())}"
            " are constant in training: none is left",
            "responses that vary",
            mosaic_index.AGAIN,
        )
    deviation = np.sqrt(train.total[keep] / (train.num - 1))
    responses = _standardise(responses, keep, (train.mean - origin)[keep], deviation)
    kept = read[keep]
    ncsnr, basis = moments["test"].ncsnr()[keep], "repeats of the test pictures"
    distributed = np.full(len(kept), np.nan)
    if file.ceiling:
        distributed = _read_ceiling(file)[kept]
    lines = []
    if not moments["test"].num_repeated:
        ncsnr, basis = distributed, f"noise ceiling in the file ({file.ceiling})"
    elif np.isfinite(distributed).any():
        difference = np.abs(_single(ncsnr) - _single(distributed))
        lines.append(
            "single-trial noise ceiling differs from that in the file by "
            f"{100 * np.nanmedian(difference):.3g} points (median)"
        )
    if not np.isfinite(ncsnr).any():
        basis = "unknown"
    ids = list(file.groups)
    splits = np.array(
        [
            "test"
            if group[0].phase != "train"
            else "val"
            if schema.share(seed, image) >= 1 - val_fraction
            else "train"
            for image, group in file.groups.items()
        ]
    )
    if not (splits == "train").any():
        raise errors.InputError(
            file.path,
            "",
            "0 pictures in the training split",
            "at least one",
            "Hold out a smaller share.",
        )
    structure = np.digitize(kept, (mosaic_index.NUM_LEFT, mosaic_index.NUM_CORTEX))
    repeats = np.array([len(group) for group in file.groups.values()])
    dropped = {
        "listed as NaN": len(columns) - len(read),
        "NaN or inf in a trial": int(invalid.sum()),
        "constant in training": int(constant.sum()),
    }
    films = sum(g[0].stimulus.is_film for g in file.groups.values())
    attrs = {
        "dataset": "mosaic",
        "part": file.dataset,
        "subject": file.subject,
        "space": "fsLR32k",
        "surface": "fsLR32k, 91k grayordinates",
        "vertices": [mosaic_index.NUM_VERTICES, mosaic_index.NUM_VERTICES],
        "position": "structure (0 left cortex, 1 right cortex, 2 subcortex), "
        f"grayordinate 0..{mosaic_index.NUM_GRAYORDINATES - 1}, -1",
        "num_left": int((structure == 0).sum()),
        "mask": mask_name,
        "normalisation": "as distributed (z-scored with mean and SD of training "
        "trials), then z-scored with mean and SD (ddof=1) of the train-phase trials "
        "of the file, then averaged over repeats",
        "sessions": "not in the file; all trials",
        "trials": int(repeats.sum()),
        "dropped": [{"reason": r, "count": n} for r, n in dropped.items() if n],
        "ncsnr": basis,
        "artificial_left_out": file.artificial,
        "films": films,
    }
    attrs |= file.about
    lines = _report(file, splits, repeats, attrs, ncsnr) + lines
    subject = schema.Subject(
        name=file.name,
        responses=responses,
        image_id=ids,
        split=splits,
        repeats=repeats.astype(np.uint8),
        ncsnr=ncsnr.astype(np.float32),
        position=np.stack([structure, kept, np.full(len(kept), -1)], 1).astype("i4"),
        roi=np.zeros((len(kept), 0), bool),
        roi_names=[],
        attrs=attrs,
    )
    return subject, lines


def _average(
    file: mosaic_index.File, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, Moments], np.ndarray]:
    """Streams all trials of a file and averages those of each picture.

    Returns:
        responses: (M, V) float32, mean beta of each picture less the origin.
        origin: (V,) float64, those of the first picture; float32 then keeps as much of
            betas far from 0 as of others.
        moments: Of the trials of each phase.
        invalid: (V,) bool, where a value is no number; all else means nothing there.

    Raises:
        errors.InputError: As `read_subject`, or if two trials are one array: a copy
            would count as a perfect repeat.
    """
    num = len(columns)
    responses = np.empty((len(file.groups), num), np.float32)
    moments = {phase: Moments(num) for phase in mosaic_index.PHASES}
    invalid = np.zeros(num, bool)
    groups = list(file.groups.values())
    names = [[f"betas/{trial.member}" for trial in group] for group in groups]
    origin = np.zeros(num)
    seen: dict[bytes, str] = {}
    twins = []
    stream = files.hdf5_rows(file.path, names, columns, file.dtype)
    for row, (group, trials) in enumerate(zip(groups, stream, strict=True)):
        for trial, values in zip(group, trials, strict=True):
            digest = hashlib.sha256(values.data).digest()
            first = seen.setdefault(digest, trial.member)
            if first != trial.member:
                twins.append(f"{first} and {trial.member}")
        bad = _find_bad(trials, group, file.path)
        if bad is not None:
            invalid |= bad
            trials[:, bad] = 0
        mean = moments[group[0].phase].add(trials)
        origin = origin if row else mean
        responses[row] = mean - origin
    if twins:
        raise errors.InputError(
            file.path,
            "betas",
            f"{len(twins)} trials are copies of others: {schema.shorten(twins, '; ')}",
            "different betas in each trial",
            mosaic_index.AGAIN,
        )
    return responses, origin, moments, invalid


def _find_bad(
    trials: np.ndarray, group: Sequence[mosaic_index.Trial], path: pathlib.Path
) -> np.ndarray | None:
    """Voxels (V,) where trials (R, V) of a picture are no numbers; None: nowhere."""
    finite = np.asarray(np.isfinite(trials))
    some = np.asarray(finite.any(1))
    highest = np.abs(trials).max(1, where=finite, initial=0)
    wrong = np.flatnonzero(~some | (highest > _HUGE))
    if len(wrong):
        trial = int(wrong[0])
        found = f"|max| is {highest[trial]:.3g}; wrong endianness?"
        raise errors.InputError(
            path,
            f"/betas/{group[trial].member}",
            found if some[trial] else "NaN or inf in all chosen grayordinates",
            f"betas within +-{_HUGE:g}",
            mosaic_index.AGAIN,
        )
    return None if finite.all() else np.asarray(~finite.all(0))


def _standardise(
    responses: np.ndarray, keep: np.ndarray, mean: np.ndarray, deviation: np.ndarray
) -> np.ndarray:
    """(responses[:, keep] - mean) / deviation, in the memory of the responses.

    Args:
        responses: (M, V) float32, C order; overwritten.
        keep: (V,) bool, K of them.
        mean: (K,) float64.
        deviation: (K,) float64.

    Returns:
        (M, K) float32, a view.
    """
    num = int(keep.sum())
    flat = responses.reshape(-1)
    for row, values in enumerate(responses):  # rows move forward, never onto later ones
        flat[row * num : (row + 1) * num] = (values[keep] - mean) / deviation
    return flat[: len(responses) * num].reshape(-1, num)


def _read_ceiling(file: mosaic_index.File) -> np.ndarray:
    """ncsnr (91282,) float64 from the noise ceiling of single trials; NaN: unknown."""
    name = f"noiseceilings/{file.ceiling}"
    [[ceiling]] = files.hdf5_rows(
        file.path, [[name]], np.arange(mosaic_index.NUM_GRAYORDINATES), "f8"
    )
    ceiling[file.ceiling_lost] = np.nan
    ceiling[~np.isfinite(ceiling)] = np.nan
    known = ceiling[~np.isnan(ceiling)]
    low, high = (known.min(), known.max()) if len(known) else (0, 0)
    if low < 0 or high > 100:
        raise errors.InputError(
            file.path,
            name,
            f"values {low:.4g}..{high:.4g}",
            "percent, 0..100",
            mosaic_index.AGAIN,
        )
    if high > 1:  # MOSAIC's own are percent; fractions cannot exceed 1
        ceiling /= 100
    return np.sqrt(ceiling / np.where(ceiling < 1, 1 - ceiling, np.nan))


def _single(ncsnr: np.ndarray) -> np.ndarray:
    """Noise ceiling of single trials, a fraction."""
    return ncsnr**2 / (ncsnr**2 + 1)


def _report(
    file: mosaic_index.File,
    splits: np.ndarray,
    repeats: np.ndarray,
    attrs: dict[str, Any],
    ncsnr: np.ndarray,
) -> list[str]:
    """Lines about a subject."""
    parts = ", ".join(f"{(splits == s).sum()} {s}" for s in ("train", "val", "test"))
    times = ", ".join(f"{(repeats == n).sum()} x {n}" for n in np.unique(repeats))
    lines = [
        f"{attrs['trials']} trials of {len(repeats)} pictures ({parts}; shown: {times})"
    ]
    text = f"{len(ncsnr)} grayordinates of {attrs['mask']}; ncsnr: {attrs['ncsnr']}"
    known = ncsnr[np.isfinite(ncsnr)]
    if len(known):
        text += f", median {np.median(known):.3f}"
        if len(known) < len(ncsnr):
            text += f", unknown for {len(ncsnr) - len(known)}"
    lines.append(text)
    lines += [f"{d['count']} dropped, {d['reason']}" for d in attrs["dropped"]]
    if file.artificial:
        lines.append(
            f"{file.artificial} artificial stimuli left out (artificial keeps them)"
        )
    if attrs["films"]:
        lines.append(f"{attrs['films']} films, each stands as one picture")
    if file.dataset == "NSD":
        lines.append("names are COCO's; pictures must be the crops that NSD showed")
    lines += [f"{s} split is empty" for s in ("val", "test") if not (splits == s).any()]
    return lines
