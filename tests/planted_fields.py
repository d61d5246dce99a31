"""Receptive fields and levels from attention, against those that were planted.

    python -m tests.planted_fields demo/run demo/nsd.zarr demo/nsd [--every] [--hide=40]

The workdir of a run (or of `score`), its store, and the simulated folder with truth/.
Bounds: median error of the centre below 1.5 patches for voxels with noise-normalised
r > 0.5; the level tells orientation and colour from object and scene voxels with an AUC
of .85 or more. An encoder that predicts the same for mirrored pictures has not learned
left from right, and no map of it can show that.

--every adds single taps and other ways to combine them; --hide=M covers one patch of M
pictures after the other and takes what that does to the prediction for the map: what
the model knows, whether attention shows it or not. Exits 1 and says what is short.
"""

import argparse
import pathlib
import sys
from typing import NamedTuple

import numpy as np
import scipy.stats
import sklearn.metrics

from ubrain_jax import crowd, metrics, studies, universal
from ubrain_jax.atlas import fields
from ubrain_jax.datasets import planted, truth

MOST_ERROR, LEAST_AUC, LEAST_R = 1.5, 0.85, 0.5
COLUMNS = ("all", *planted.KINDS, "local")


class Voxels(NamedTuple):
    """Voxels of all subjects: what was planted, and what the encoder looks at."""

    kind: np.ndarray
    centre: np.ndarray
    size: np.ndarray
    score: np.ndarray
    embedding: np.ndarray
    spatial: np.ndarray
    covariance: np.ndarray
    share: np.ndarray


def planted_rows(arrays: dict, subject) -> np.ndarray:
    """Rows of the truth at the subject's voxels, checked by their noise."""
    # Datasets count from other corners: of the voxels themselves all agree.
    own, whole = (
        (p - p.min(0)).tolist() for p in (subject.position, arrays["position"])
    )
    row = {tuple(p): k for k, p in enumerate(whole)}
    if not all(tuple(p) in row for p in own):
        raise SystemExit(f"{subject.name}: voxels at places where none was planted")
    rows = np.array([row[tuple(p)] for p in own])
    r = np.corrcoef(arrays["ncsnr"][rows], subject.ncsnr)[0, 1]
    if not r > 0.5:  # three times the noise: .75; other voxels: 0
        raise SystemExit(f"{subject.name}: planted and measured ncsnr agree by {r:.2f}")
    return rows


def gather(
    encoder, workdir: str, root: str, subjects: list[str], pictures: np.ndarray
) -> Voxels:
    """Everything about the voxels of those subjects that the encoder knows."""
    parts, paths = [], pathlib.Path(root).glob("truth/*.npz")
    stems = {path.stem.lower(): path.stem for path in paths}
    for name in subjects:
        if name not in encoder.subjects:
            continue
        arrays = truth.read(root, stems[name.partition("-")[2]])
        scores = studies.read_voxels(workdir, name, ["noise_normalised"])
        subject = encoder.subject(name)
        rows = planted_rows(arrays, subject)
        seen = encoder.mean_attention(pictures, subject=name)
        parts.append(
            Voxels(
                *(arrays[k][rows] for k in ("kind", "centre", "size")),
                scores.noise_normalised.values,
                subject.embedding,
                *(seen[k].values for k in ("spatial", "covariance", "share")),
            )
        )
    return Voxels(*map(np.concatenate, zip(*parts, strict=True)))


def predict(encoder, embedding: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """(M, V) for voxels of several subjects at once."""
    blocks = encoder._blocks(encoder._open(pictures, None), embedding)
    return np.concatenate([block.values for block in blocks])


def hidden_maps(
    encoder, embedding: np.ndarray, pictures: np.ndarray, side: int
) -> np.ndarray:
    """(V, y, x) root mean square of what covering a patch does to predictions.

    A soft round piece of another picture is laid over it.
    """

    plain, px = predict(encoder, embedding, pictures), pictures.shape[1]
    at = (np.arange(px) + 0.5) / px
    maps = np.empty((len(embedding), side, side))
    for y, x in np.ndindex(side, side):
        far = (at[:, None] - (y + 0.5) / side) ** 2 + (at - (x + 0.5) / side) ** 2
        cover = np.exp(-far * side**2 / 2 / 0.56**2)[..., None]
        mixed = pictures * (1 - cover) + np.roll(pictures, 1, axis=0) * cover
        changed = predict(encoder, embedding, mixed.round().astype(np.uint8)) - plain
        maps[:, y, x] = np.sqrt((changed**2).mean(0))
    return maps


def line(name: str, maps: np.ndarray, v: Voxels) -> float:
    """Prints how well fields of these maps are those planted; the median error."""
    found, side = fields.fit(maps), maps.shape[-1]
    error = np.hypot(found.x - v.centre[:, 0], found.y - v.centre[:, 1]) * side
    return report(name, error, v, found)


def report(name: str, error: np.ndarray, v: Voxels, found=None) -> float:
    """One line of the table."""
    good = v.score > LEAST_R
    local = good & (v.size < 0.5)  # the others see the whole picture
    groups = [good, *(good & (v.kind == k) for k in range(4)), local]
    cells = [f"{np.median(error[g]):7.2f}" for g in groups]
    if found is not None:
        pairs = (
            (found.x, v.centre[:, 0]),
            (found.y, v.centre[:, 1]),
            (found.size, v.size),
            (found.quality, -error),
        )
        rho = [scipy.stats.spearmanr(a[local], b[local])[0] for a, b in pairs]
        cells += [f"{r:6.2f}" for r in rho] + [f"{np.median(found.quality[good]):5.2f}"]
    print(f"{name:24s}", *cells)
    return float(np.median(error[good]))


def auc(weights: np.ndarray, v: Voxels) -> tuple[float, float]:
    """Of the level and of the preferred tap: low against high kinds."""
    some = (v.score > LEAST_R) & (weights.sum(1) > 0)
    levels, high = fields.level(weights[some]), v.kind[some] >= 2
    values = (levels.level, levels.tap)
    return tuple(sklearn.metrics.roc_auc_score(high, x) for x in values)


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("workdir", "store", "root"):
        parser.add_argument(name)
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--hide", type=int, default=0)
    parser.add_argument("--encoder")
    given = parser.parse_args()
    encoder = universal.UniversalEncoder.load(given.encoder or given.workdir)
    stores = crowd.open_crowd([given.store])
    test = [s.image[s.split == "test"] for s in stores.subjects]
    pictures = crowd.read_pictures(stores, np.unique(np.concatenate(test)))
    names = [s.name for s in stores.subjects]
    v = gather(encoder, given.workdir, given.root, names, pictures)
    side = v.spatial.shape[-1]
    counts = [int(((v.score > LEAST_R) & (v.kind == k)).sum()) for k in range(4)]
    print(
        f"{len(pictures)} test pictures, {len(v.kind)} voxels, "
        f"{sum(counts)} with r / ceiling > {LEAST_R}: "
        f"{', '.join(f'{n} {k}' for n, k in zip(counts, planted.KINDS, strict=True))}"
    )
    print("median error of the centre, patches; rho of x, y, size, quality; quality")
    print(f"{'map':24s}", *(f"{c[:7]:>7s}" for c in COLUMNS))
    report("middle of the picture", np.hypot(*(v.centre - 0.5).T) * side, v)
    weights = fields.tap_weights(v.covariance)
    weights = np.nan_to_num(weights, nan=1 / weights.shape[1])
    whole = fields.combine(v.spatial, weights)
    error = line("taps by covariance", whole, v)
    line("  minus their mean", whole - whole.mean(0), v)
    sd = np.sqrt(np.maximum(np.einsum("vll->vl", v.covariance), 0))
    if given.every:
        other = {"all taps alike": np.ones_like(sd), "sd": sd, "share": v.share}
        for name, some in other.items():
            maps = fields.combine(v.spatial, some / some.sum(1, keepdims=True))
            line(name, maps, v)
        line("  divided by the mean", whole / whole.mean(0), v)
        for tap in range(v.spatial.shape[1]):
            line(f"tap {tap + 1}", v.spatial[:, tap], v)
    if given.hide:
        some = np.random.default_rng(0).permutation(len(pictures))[: given.hide]
        line(
            "hiding a patch", hidden_maps(encoder, v.embedding, pictures[some], side), v
        )
    turned = np.ascontiguousarray(pictures[:, :, ::-1])
    pair = [predict(encoder, v.embedding, p) for p in (pictures, turned)]
    r = metrics.pearson(*pair)
    beside = np.abs(v.centre[:, 0] - 0.5) > 0.1
    print("median r of predictions with those of mirrored pictures, fields at a side")
    for k, kind in enumerate(planted.KINDS):
        some = beside & (v.score > LEAST_R) & (v.kind == k)
        print(f"{kind:24s} {np.median(r[some]) if some.any() else np.nan:7.2f}")
    print("AUC of the level, and of the preferred tap, low against high kinds")
    ways = {"covariance": weights, "sd": sd, "share": v.share}
    found = {name: auc(w, v) for name, w in ways.items()}
    for name, pair in found.items():
        print(f"{name:24s} {pair[0]:7.3f} {pair[1]:7.3f}")
    missed = []
    if not error < MOST_ERROR:
        missed.append(f"median error {error:.2f} patches, bound {MOST_ERROR}")
    if not found["covariance"][0] >= LEAST_AUC:
        missed.append(f"AUC {found['covariance'][0]:.3f}, bound {LEAST_AUC}")
    print("\n".join(missed) or "both bounds are reached")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
