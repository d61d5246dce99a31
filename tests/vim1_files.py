"""Writes a miniature vim-1 in all its encodings, from the description of its formats.

Shares no code with the package: what it writes is what h5py, scipy and NumPy make of
the published layout. Everything random follows from a seed.
"""

import pathlib
from typing import NamedTuple

import h5py
import numpy as np
import scipy.io

NUM = {"train": 30, "val": 8}
REPEATS = {"train": 2, "val": 13}
NUM_VOXELS = {1: 60, 2: 45, 3: 50}
GRIDS = {"2008": (64, 64, 18), "2013": (86, 86, 34)}
NAMES = ("Other", "V1", "V2", "V3", "V3A", "V3B", "V4", "LatOcc")
SIDE, FULL_SIDE = 6, 10
SHORT = {"train": "Trn", "val": "Val"}


class Truth(NamedTuple):
    """What was written: voxels and pictures from 0."""

    trials: dict  # (subject, split): (R, M, V) float64
    roi: dict  # subject: (V,)
    index: dict  # subject: (V,), from 1
    pictures: dict  # (split, side): (M, y, x) float64, -0.55..0.45
    holes: dict  # subject: voxels that are not finite

    def means(self, subject, split):
        """(M, V), by a loop over the repeats."""
        total = np.zeros(self.trials[subject, split].shape[1:])
        for trial in self.trials[subject, split]:
            total += trial
        return total / len(self.trials[subject, split])

    def finite(self, subject):
        """Voxels without a hole, in order."""
        bad = self.holes[subject]
        return [v for v in range(NUM_VOXELS[subject]) if v not in bad]


def make(seed=0):
    """Numbers of three subjects: voxel 3 has no response, voxel 7 lacks one."""
    rng = np.random.default_rng(seed)
    trials, roi, index, holes = {}, {}, {}, {}
    for subject, num in NUM_VOXELS.items():
        gain = rng.permutation(np.linspace(0.05, 2, num))
        for split, count in NUM.items():
            signal = gain * rng.standard_normal((count, num))
            noise = rng.standard_normal((REPEATS[split], count, num))
            trials[subject, split] = signal + noise
            trials[subject, split][:, :, 3] = np.nan
        trials[subject, "train"][:, 4, 7] = np.nan
        roi[subject] = np.concatenate([np.arange(8), rng.integers(0, 8, num - 8)])
        size = np.prod(GRIDS["2008"])
        index[subject] = np.sort(rng.choice(size, num, replace=False)) + 1
        holes[subject] = [3, 7]
    pictures = {}
    for split, count in NUM.items():
        for side in (SIDE, FULL_SIDE):
            values = rng.uniform(-0.55, 0.45, (count, side, side))
            values[:, 0, :2] = -0.55, 0.45  # asymmetric: a turn shows
            values[:, :, -1] = 0
            pictures[split, side] = values
    return Truth(trials, roi, index, pictures, holes)


# ---------------------------------------------------------------- containers


def save_v73(path, variables):
    """HDF5 behind 512 bytes, axes reversed, gzip 3, as MATLAB 7.3 stores arrays."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, data in variables.items():
            file.create_dataset(name, data=data.T, compression="gzip")
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    with pathlib.Path(path).open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def save_v5(path, variables):
    scipy.io.savemat(path, variables, do_compression=True)


def row(vector):
    """As MATLAB has vectors."""
    return np.asarray(vector, np.float64)[None]


# ---------------------------------------------------------------- files


def estimated(truth, subjects=(1, 2), dtype=np.float64):
    """Variables of EstimatedResponses.mat."""
    variables = {}
    for s in subjects:
        for split, short in SHORT.items():
            variables[f"data{short}S{s}"] = truth.means(s, split).T.astype(dtype)
        variables[f"roiS{s}"] = row(truth.roi[s])
        variables[f"voxIdxS{s}"] = row(truth.index[s])
    return variables


def stimuli(truth, side=SIDE):
    """Variables of Stimuli.mat."""
    return {
        "stimTrn": truth.pictures["train", side].astype(np.float32),
        "stimVal": truth.pictures["val", side].astype(np.float32),
        "seqTrn": row(np.arange(5)),
    }


def write_2008(folder, truth, *, save=save_v73, save_stimuli=save_v5, **changes):
    """EstimatedResponses.mat and Stimuli.mat."""
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "EstimatedResponses.mat", estimated(truth, **changes))
    save_stimuli(folder / "Stimuli.mat", stimuli(truth))
    return folder


def singles(truth, subject):
    """Variables of the two files of single trials, (voxels, pictures, repeats)."""
    return {
        split: {
            f"data{SHORT[split]}SingleS{subject}": truth.trials[
                subject, split
            ].transpose(2, 1, 0)
        }
        for split in NUM
    }


def aux(truth, subject, snr=None):
    """Variables of S1aux.mat."""
    variables = {
        f"roiS{subject}": row(truth.roi[subject]),
        f"voxIdxS{subject}": row(truth.index[subject]),
    }
    if snr is not None:
        variables[f"snrS{subject}"] = row(snr)
    return variables


def write_2013(folder, truth, subject, *, save=save_v5, ending="", snr=None):
    """Averages, single trials and S1aux.mat of one subject."""
    folder.mkdir(parents=True, exist_ok=True)
    averages = {
        f"data{short}S{subject}": truth.means(subject, split).T
        for split, short in SHORT.items()
    }
    stem = f"{folder}/S{subject}"
    save(f"{stem}data.mat", averages)
    trials = singles(truth, subject)
    save(f"{stem}data_trn_singletrial{ending}.mat", trials["train"])
    save(f"{stem}data_val_singletrial{ending}.mat", trials["val"])
    save(f"{stem}aux.mat", aux(truth, subject, snr))
    return folder


def full_resolution(truth, folder):
    """The 15 files of training pictures, two each, and that of validation pictures."""
    whole = truth.pictures["train", FULL_SIDE].astype(np.float32)
    for k in range(15):
        name = f"Stimuli_Trn_FullRes_{k + 1:02d}.mat"
        save_v73(folder / name, {"stimTrn": whole[2 * k : 2 * k + 2]})
    val = truth.pictures["val", FULL_SIDE].astype(np.float32)
    save_v73(folder / "Stimuli_Val_FullRes.mat", {"stimVal": val})


def archive(truth):
    """Arrays of kay_images.npz: finite voxels of subject 1 in a region."""
    keep = [v for v in truth.finite(1) if truth.roi[1][v] > 0]
    return {
        "stimuli": truth.pictures["train", SIDE].astype(np.float32),
        "stimuli_test": truth.pictures["val", SIDE].astype(np.float32),
        "responses": truth.means(1, "train")[:, keep].astype(np.float32),
        "responses_test": truth.means(1, "val")[:, keep].astype(np.float32),
        "roi": truth.roi[1][keep],
        "roi_names": np.array(NAMES),
    }


def write_archive(folder, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "kay_images.npz", **arrays)
    return folder / "kay_images.npz"
