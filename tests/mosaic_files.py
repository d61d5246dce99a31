"""Writes miniature MOSAIC files for tests, from the description of their format.

Shares no code with the package: what it writes is what h5py makes of the published
layout. Only the number of trials is small; a trial has its 91,282 grayordinates.
"""

import pathlib
from typing import NamedTuple

import h5py
import numpy as np
from PIL import Image

NUM = 91282
LONG = {
    "NSD": "NaturalScenesDataset",
    "GOD": "GenericObjectDecoding",
    "BMD": "BOLDMomentsDataset",
    "deeprecon": "deeprecon",
}
# Stimulus, phase, repeats: as NSD, with COCO's names.
NSD = [(f"{100 + 7 * k:012d}.jpg", "train", 1 + k % 3) for k in range(9)]
NSD += [(f"{900 + k:012d}.jpg", "test", 3) for k in range(3)]


class Truth(NamedTuple):
    """What was written: one entry a trial."""

    path: pathlib.Path
    betas: np.ndarray  # (T, 91282)
    stem: np.ndarray  # (T,)
    phase: np.ndarray  # (T,)


def member_name(name: str, stimulus: str, phase: str, repetition: int) -> str:
    stem = stimulus.rsplit(".", 1)[0]
    return f"{name}_stimulus-{stem}_phase-{phase}_rep-{repetition}"


def make_betas(stimuli, seed=0, dtype=np.float32) -> np.ndarray:
    """Betas (T, 91282) with a signal that repeats, in the order of the stimuli."""
    rng = np.random.default_rng(seed)
    rows = []
    for _, _, repeats in stimuli:
        signal = rng.standard_normal(NUM, np.float32)
        for _ in range(repeats):
            rows.append(signal + rng.standard_normal(NUM, np.float32) + 0.25)
    return np.stack(rows).astype(dtype)


def write_file(
    root: pathlib.Path,
    name: str = "sub-01_NSD",
    stimuli=tuple(NSD),
    *,
    betas: np.ndarray | None = None,
    seed: int = 0,
    nan_indices_all: bool = True,
) -> Truth:
    """One subject's file; listed as NaN is what is not finite in the betas."""
    subject, dataset = name.split("_")
    betas = make_betas(stimuli, seed) if betas is None else betas
    path = root / f"{name}.hdf5"
    stems, phases, lost = [], [], set()
    with h5py.File(path, "w") as file:
        file.attrs["subjectID"] = subject
        file.attrs["dataset_name"] = LONG.get(dataset, dataset)
        file.attrs["visual_angle"] = 8.4
        file.attrs["age"], file.attrs["sex"] = "27", "F"
        file.attrs["owner_email"] = "someone@example.org"
        file.attrs["beta_pipeline"] = "GLMsinglev1.2"
        group = file.create_group("betas", track_order=True)
        for stimulus, phase, repeats in stimuli:
            for repetition in range(repeats):
                beta = betas[len(stems)]
                made = group.create_dataset(
                    member_name(name, stimulus, phase, repetition),
                    data=beta,
                    track_order=True,
                )
                nan = np.where(~np.isfinite(beta))[0]
                made.attrs.create("nan_indices", nan)
                made.attrs.create("phase", phase)
                made.attrs.create("repetition", repetition)
                made.attrs.create("presented_stimulus_filename", stimulus)
                stems.append(stimulus.rsplit(".", 1)[0])
                phases.append(phase)
                lost.update(nan.tolist())
        if nan_indices_all:
            file.create_dataset("nan_indices_all", data=np.array(list(lost)))
    return Truth(path, betas, np.array(stems), np.array(phases))


def write_ceiling(
    path: pathlib.Path, name: str, values: np.ndarray, phase="test", n="1", nan=()
) -> None:
    """A noise ceiling as the file's maker adds it, percent."""
    with h5py.File(path, "a") as file:
        group = file.require_group("noiseceilings")
        full = f"{name}_phase-{phase}_n-{n}_noiseceiling"
        made = group.create_dataset(full, data=values, track_order=True)
        made.attrs.create("nan_indices", np.array(nan, int))
        made.attrs.create("n", n)
        made.attrs.create("phase", "train" if phase == "train" else "test")


def picture(stimulus: str) -> np.ndarray:
    """Pixels (8, 8, 3) of a stimulus."""
    rng = np.random.default_rng([*stimulus.encode()])
    return rng.integers(0, 256, (8, 8, 3), np.uint8)


def write_pictures(folder: pathlib.Path, stimuli) -> pathlib.Path:
    """PNG content under the names of the stimuli."""
    folder.mkdir(parents=True, exist_ok=True)
    for stimulus, _, _ in stimuli:
        Image.fromarray(picture(stimulus)).save(folder / stimulus, format="PNG")
    return folder
