"""Times clusters of a crowd: 40,000 voxels of 8 subjects, 256 numbers each.

    python -m tests.time_clusters

Prints seconds of each step, those of its CPUs, and the peak memory of the process. The
embeddings are 30 planted directions and noise, of random lengths. Not a test: pytest
does not collect it.
"""

import resource
import time

import numpy as np
from absl import app, flags
from sklearn import metrics

from ubrain_jax.atlas import (
    cluster_agreement,
    cluster_choice,
    cluster_tables,
    clusters,
    pooled,
)

REGIONS = 30


def crowd(subjects: int, per: int, e: int, k: int, noise: float) -> tuple:
    """Voxels around k directions and which one each is of."""
    rng = np.random.default_rng(0)
    v = subjects * per
    centre = rng.standard_normal((k, e), np.float32)
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    truth = rng.integers(0, k, v)
    embedding = centre[truth]
    for start in range(0, v, per):
        some = slice(start, start + per)
        embedding[some] += noise / e**0.5 * rng.standard_normal((per, e), np.float32)
    embedding *= rng.uniform(0.1, 1, (v, 1)).astype(np.float32)
    voxels = pooled.Pooled(
        tuple(f"subj{n}" for n in range(subjects)),
        np.repeat(np.arange(subjects, dtype=np.int32), per),
        np.tile(np.arange(per), subjects),
        embedding,
        rng.integers(0, 80, (v, 3)).astype(np.int32),
        rng.integers(0, 2, v).astype(np.int8),
        rng.random((v, REGIONS)) < 0.05,
        tuple(f"region{n}" for n in range(REGIONS)),
        rng.random(v).astype(np.float32),
        rng.random(v).astype(np.float32),
        "pearson",
    )
    return voxels, truth


def main(argv: list[str]) -> None:
    """Prints a line for each step."""
    del argv
    values = flags.FLAGS
    voxels, truth = crowd(
        values.subjects, values.voxels, values.embed, values.k, values.noise
    )
    print(f"{voxels.embedding.shape}, {peak()}")
    began = total = now()

    def tell(what: str) -> None:
        nonlocal began
        print(f"{what}: {since(began)}", flush=True)
        began = now()

    for method in values.methods:
        k = values.clusters
        if not k:
            choice = cluster_choice.choose_k(voxels, method=method)
            tell(f"{method}: number of clusters")
            print(f"  {choice.reason}")
            k = choice.k
        found = clusters.fit(voxels, k, method=method)
        tell(f"{method}: clusters")
        rand = metrics.adjusted_rand_score(truth, found.label)
        print(f"  adjusted Rand index with the truth {rand:.3f}")
        seen = cluster_agreement.across_subjects(voxels, found)
        tell(f"{method}: agreement across subjects")
        rows = cluster_tables.table(voxels, found, seen.label)
        tell(f"{method}: table of {len(rows)} clusters and {REGIONS} regions")
        print(f"{method}: all {since(total)}", flush=True)
        total = now()


def now() -> tuple[float, float]:
    """Wall and CPU clock."""
    return time.perf_counter(), time.process_time()


def since(then: tuple[float, float]) -> str:
    """Seconds and peak."""
    wall, cpu = (a - b for a, b in zip(now(), then, strict=True))
    return f"{wall:.1f} s, {cpu:.1f} s of CPU, {peak()}"


def peak() -> str:
    """Highest memory so far."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"peak {kib / 2**20:.2f} GiB"


if __name__ == "__main__":
    flags.DEFINE_integer("subjects", 8, "Subjects.")
    flags.DEFINE_integer("voxels", 40_000, "Voxels of each.")
    flags.DEFINE_integer("embed", 256, "Numbers in an embedding.")
    flags.DEFINE_integer("k", 30, "Planted directions.")
    flags.DEFINE_integer("clusters", 0, "Number of clusters; 0: it is chosen.")
    flags.DEFINE_float("noise", 1.0, "Length of the noise; the signal has 1.")
    flags.DEFINE_list("methods", ["kmeans"], "kmeans, mixture or both.")
    app.run(main)
