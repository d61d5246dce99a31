"""Scores a whole crowd in one pass, and says what a plain loop would take.

    python -m tests.time_metrics --voxels=315997 --images=1000

Measured and predicted responses are two files of float32, written first, and read
image by image in blocks; the voxels are scored (Pearson, R2, explained variance, and
both shares of the noise ceiling) as they pass. Then `scipy.stats.pearsonr`, and
Pearson alone, takes some voxels one after the other from memory, and its time is
extrapolated to all. Prints both, their largest difference on those voxels, and the
peak of memory (resident, of the whole process) before and after. Not a test: pytest
does not collect it.
"""

import pathlib
import resource
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import scipy.stats
from absl import app, flags

from ubrain_jax import ceilings, metrics, moments


def write(folder: pathlib.Path, images: int, voxels: int) -> tuple[str, str]:
    """Two files of rows: a signal with noise, and the signal with other noise."""
    rng = np.random.default_rng(0)
    paths = folder / "measured", folder / "predicted"
    with open(paths[0], "wb") as measured, open(paths[1], "wb") as predicted:
        for _ in range(images):
            x, y, z = rng.standard_normal((3, voxels), np.float32)
            (x + y).tofile(measured)
            (x + 2 * z).tofile(predicted)
    return str(paths[0]), str(paths[1])


def read(
    paths: tuple[str, str], images: int, voxels: int, block: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both files, some images at a time, in memory of our own."""
    with open(paths[0], "rb") as a, open(paths[1], "rb") as b:
        for start in range(0, images, block):
            rows = min(block, images - start)
            x, y = (np.fromfile(f, np.float32, rows * voxels) for f in (a, b))
            yield x.reshape(rows, voxels), y.reshape(rows, voxels)


def peak() -> float:
    """Largest resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(argv: list[str]) -> None:
    """Measures once and prints."""
    del argv
    values = flags.FLAGS
    images, voxels, sample = values.images, values.voxels, values.sample
    with tempfile.TemporaryDirectory(dir=values.folder) as folder:
        paths = write(pathlib.Path(folder), images, voxels)
        before = peak()
        began = time.perf_counter()
        found = moments.scores(read(paths, images, voxels, values.block))
        ceiling = metrics.noise_ceiling(np.full(voxels, 1.0), np.ones(images))
        normalised = metrics.noise_normalised(found.pearson, ceiling)
        explained = ceilings.noise_normalised_r2(found.pearson, ceiling)
        ours, after = time.perf_counter() - began, peak()
        chosen = np.sort(np.random.default_rng(1).choice(voxels, sample, False))
        x, y = (
            np.concatenate(rows)
            for rows in zip(
                *(
                    (a[:, chosen], b[:, chosen])
                    for a, b in read(paths, images, voxels, values.block)
                ),
                strict=True,
            )
        )
    x, y = x.astype(np.float64), y.astype(np.float64)
    began = time.perf_counter()
    scipys = [scipy.stats.pearsonr(x[:, v], y[:, v]).statistic for v in range(sample)]
    loop = (time.perf_counter() - began) / sample * voxels
    apart = np.abs(found.pearson[chosen] - scipys).max()
    print(
        f"{voxels} voxels x {images} images: {ours:.1f} s for five scores, files read "
        f"in blocks of {values.block}; peak {after:.2f} GiB ({before:.2f} before)\n"
        f"scipy.stats.pearsonr on {sample} voxels, extrapolated: {loop:.1f} s; "
        f"ratio {loop / ours:.1f}; largest difference {apart:.1e}\n"
        f"median r {np.median(found.pearson):.3f}, R2 {np.median(found.r2):.3f}, "
        f"explained variance {np.median(found.explained_variance):.3f}, "
        f"r / ceiling {np.median(normalised):.3f}, squared {np.median(explained):.3f}"
    )


if __name__ == "__main__":
    flags.DEFINE_integer("voxels", 315_997, "Voxels: of NSD's eight subjects.")
    flags.DEFINE_integer("images", 1000, "Test images.")
    flags.DEFINE_integer("block", 50, "Images in memory at once.")
    flags.DEFINE_integer("sample", 3000, "Voxels for the loop.")
    flags.DEFINE_string("folder", None, "Where to write 8 bytes a response for a while")
    app.run(main)
