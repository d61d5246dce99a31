"""Measures clusters of a simulated crowd against the tuning that was planted.

    python -m tests.planted_clusters --encoder=demo/run --data=demo/nsd
    python -m tests.planted_clusters --encoder=crowd/encoder \\
        --data=crowd/nsd,crowd/god,crowd/vim1

Adjusted Rand index (1: equal, 0: chance) between clusters and the four planted kinds
of tuning: orientation, colour, object, scene. Of clusters of everyone, and of clusters
of half of the subjects that are given the voxels of the rest. k = 4 finds no kinds: a
kind is no direction but a continuum of preferences (six orientations, all hues, seven
objects, four scenes), so the measure is of finer clusters merged to four along their
hierarchy. "pure" is the index if each cluster were merged to the kind of most of its
voxels: about the most that a hierarchy can reach. Not a test: pytest does not collect
it.
"""

import pathlib

import numpy as np
from absl import app, flags
from sklearn import metrics

from ubrain_jax import hub
from ubrain_jax.atlas import cluster_agreement, cluster_choice, clusters, pooled
from ubrain_jax.datasets import planted, simulated_vim1, truth
from ubrain_jax.model import bundle


def kinds(voxels: pooled.Pooled, folders: list[str]) -> np.ndarray:
    """(V,) planted kind of each voxel, -1 where nothing was planted."""
    kind = np.full(len(voxels.voxel), -1)
    names = {
        f"{truth.dataset_of(folder)}-{path.stem}".lower(): (folder, path.stem)
        for folder in folders
        for path in pathlib.Path(folder, "truth").glob("*.npz")
    }
    for number, name in enumerate(voxels.names):
        rows = np.flatnonzero(voxels.subject == number)
        arrays = truth.read(*names[name])
        kind[rows] = match(voxels.position[rows], arrays["position"], arrays["kind"])
    return kind


def match(position: np.ndarray, places: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Kinds (V,) by place, up to the corner that a dataset puts the brain in."""
    corners = [
        (0, 0, 0),
        simulated_vim1.CORNER,
        simulated_vim1.CORNER_SINGLE,
        position.min(0) - places.min(0),
    ]
    best = np.full(len(position), -1)
    for corner in corners:
        at = {
            tuple(p): k for p, k in zip((places + corner).tolist(), kind, strict=True)
        }
        found = np.array([at.get(tuple(p), -1) for p in position.tolist()])
        if (found >= 0).sum() > (best >= 0).sum():
            best = found
    if (best >= 0).sum() < 0.9 * min(len(places), len(position)):
        raise ValueError("the voxels are not those that were planted")
    return best


def purest(kind: np.ndarray, label: np.ndarray) -> float:
    """Index after merging each cluster to the kind of most of its voxels."""
    most = {c: np.bincount(kind[label == c]).argmax() for c in np.unique(label)}
    return metrics.adjusted_rand_score(kind, [most[c] for c in label])


def across(
    voxels: pooled.Pooled, kind: np.ndarray, k: int, of: str, shared: dict, seed: int
) -> float:
    """Index of voxels that clusters of the other half of the subjects were given."""
    drawn = np.random.default_rng(seed).permutation(len(voxels.names))
    label, index = np.empty(len(kind), int), []
    for own in np.array_split(drawn, 2):
        inside = np.isin(voxels.subject, own)
        found = clusters.fit(voxels.take(inside), k, of=of, shared=shared, seed=seed)
        group = clusters.cut(found, len(planted.KINDS)).group
        label = group[clusters.assign(found, voxels.embedding[~inside])]
        index.append(metrics.adjusted_rand_score(kind[~inside], label))
    return float(np.mean(index))


def report(
    voxels: pooled.Pooled, kind: np.ndarray, shared: dict, seeds: int, of: str
) -> None:
    """Prints all figures for one set of voxels."""
    choice = cluster_choice.choose_k(voxels, of=of, shared=shared)
    print(f"  of {of}: {choice.reason}")
    for c in choice.candidates:
        print(
            f"    k {c.k:2d}: halves {c.stability:.2f} ± {c.stability_sd:.2f}, starts "
            f"{c.starts:.2f} ± {c.starts_sd:.2f}, held-out {c.likelihood:.2f}"
        )
    four = len(planted.KINDS)
    for k in dict.fromkeys((four, 12, choice.k, 32)):
        plain, merged, pure, others, halves, kept = ([] for _ in range(6))
        for seed in range(seeds):
            found = clusters.fit(voxels, k, of=of, shared=shared, seed=seed)
            cut = clusters.cut(found, four)
            index = metrics.adjusted_rand_score
            plain.append(index(kind, found.label))
            merged.append(index(kind, cut.label))
            pure.append(purest(kind, found.label))
            others.append(across(voxels, kind, k, of, shared, seed))
            seen = cluster_agreement.across_subjects(
                voxels, found, shared=shared, seed=seed
            )
            halves.append(seen.rand)
            kept.append(np.mean(seen.label == found.label))
        told = " chosen" if k == choice.k else ""
        print(
            f"    k = {k}{told}: plain {_spread(plain)}, merged to {four} "
            f"{_spread(merged)}, pure {_spread(pure)}; by the other half of the "
            f"subjects, merged {_spread(others)}; halves with each other "
            f"{_spread(halves)}, voxels put in the same cluster {_spread(kept)}",
            flush=True,
        )


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main(argv: list[str]) -> None:
    """Prints the figures of all voxels and of the well predicted ones."""
    del argv
    values = flags.FLAGS
    found = hub.find(values.encoder)
    trained = bundle.read(found.folder, within=found.within)
    subjects = [
        s for s in trained.subjects if not values.subjects or s.name in values.subjects
    ]
    names = [s.name for s in subjects]
    name = "noise_normalised"
    scores = pooled.read_scores(values.encoder, names, name)
    if scores is None:
        raise ValueError("nothing was evaluated")
    voxels = pooled.pool(subjects, scores, score_name=name)
    kind = kinds(voxels, values.data)
    for least in (None, values.least_score):
        rows = kind >= 0
        if least is not None:
            rows &= voxels.score > least
        some = voxels.take(rows)
        told = "all planted" if least is None else f"{name} r > {least:g}"
        count = np.bincount(kind[rows], minlength=len(planted.KINDS))
        print(
            f"{len(some.voxel)} voxels of {len(voxels.names)} subjects ({told}): "
            + ", ".join(f"{n} {k}" for k, n in zip(planted.KINDS, count, strict=True))
        )
        for of in clusters.OF:
            report(some, kind[rows], trained.shared, values.seeds, of)


if __name__ == "__main__":
    flags.DEFINE_string("encoder", None, "Workdir of a finished run.", required=True)
    flags.DEFINE_list("data", None, "Folders of the simulated data.", required=True)
    flags.DEFINE_list("subjects", [], "Only these.")
    flags.DEFINE_float("least_score", 0.5, "Of the second set of voxels.")
    flags.DEFINE_integer("seeds", 3, "Starts, and halves of the subjects.")
    app.run(main)
