"""A lab's own files in miniature, written by plain numpy, csv and Pillow."""

import csv
import pathlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

SESSIONS = ("ses-01", "ses-02", "ses-03")
VOXELS = 24


class Lab(NamedTuple):
    """What was written: T trials of M pictures in V voxels."""

    root: pathlib.Path
    betas: np.ndarray  # (T, V) float32
    shown: list[str]  # T file names
    session: list[str]
    run: list[str]

    @property
    def arguments(self) -> dict[str, Any]:
        """What `open_dataset` is called with."""
        return {
            "betas": self.root / "betas.npy",
            "trials": self.root / "trials.csv",
            "images": self.root / "pictures",
            "name": "lab-ann",
        }

    def rows(self) -> list[dict[str, str]]:
        """Rows of the table."""
        return [
            {"image": image, "session": session, "run": run}
            for image, session, run in zip(
                self.shown, self.session, self.run, strict=True
            )
        ]


def write(root: pathlib.Path, *, pictures=30, seed=0, noise=0.7) -> Lab:
    """Three sessions of two runs; pictures shown 1 to 4 times, in two folders."""
    rng = np.random.default_rng(seed)
    names = [f"{'ab'[k % 2]}/{k:04d}.png" for k in range(pictures)]
    for k, name in enumerate(names):
        write_picture(root / "pictures" / name, k)
    order = rng.permutation(np.repeat(np.arange(pictures), np.arange(pictures) % 4 + 1))
    order = order[: len(order) // 6 * 6]
    session = np.repeat(SESSIONS, len(order) // 3).tolist()
    run = np.tile(np.repeat(["1", "2"], len(order) // 6), 3).tolist()
    signal = rng.standard_normal((pictures, VOXELS))
    betas = signal[order] + noise * rng.standard_normal((len(order), VOXELS))
    scale = rng.uniform(1, 3, (3, VOXELS))
    offset = rng.uniform(-2, 2, (3, VOXELS))
    place = np.repeat(np.arange(3), len(order) // 3)
    betas = (betas * scale[place] + offset[place]).astype(np.float32)
    np.save(root / "betas.npy", betas)
    lab = Lab(root, betas, [names[k] for k in order], session, run)
    write_table(root / "trials.csv", lab.rows())
    return lab


def write_picture(path: pathlib.Path, seed: int) -> None:
    """Noise of 6 by 6 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_table(path: pathlib.Path, rows: list[dict[str, str]]) -> pathlib.Path:
    """Rows as .csv, or .tsv by the name."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def expected_responses(
    betas: np.ndarray, groups: list[str], shown: list[str]
) -> dict[str, np.ndarray]:
    """By picture, float64: z-scored within groups, averaged; a slow loop."""
    z = np.zeros(betas.shape)
    for voxel in range(betas.shape[1]):
        for group in set(groups):
            rows = [k for k, g in enumerate(groups) if g == group]
            values = [float(betas[k, voxel]) for k in rows]
            mean = sum(values) / len(values)
            sd = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
            for k, value in zip(rows, values, strict=True):
                z[k, voxel] = (value - mean) / sd if sd > 1e-9 else 0
    return {
        name: np.mean([z[k] for k, n in enumerate(shown) if n == name], 0)
        for name in set(shown)
    }
