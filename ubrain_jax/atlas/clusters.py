"""Functional clusters: voxels of any subjects whose embeddings point the same way.

An embedding says both where in the picture a voxel looks and what it looks for. Voxels
are clustered by the direction of their embedding (`of="embedding"`, as in the paper;
needs nothing else, so it is the default) or of the part of it that says what for
(`of="function"`, `functional_matrix`). Where the question is what voxels do, take the
second: on three simulated brains, 24 clusters merged to the four planted kinds of
tuning have an adjusted Rand index with them of .94 of function and .69 of embedding
(tests/planted_clusters.py).

A cluster is finer than a kind of tuning: k-means finds directions, such as one object
or one colour. Kinds appear in the hierarchy of clusters, `cut`.

References:
    Beliy et al. 2024, arXiv:2406.12179, section 5 (k-means of normalised embeddings).
    Dhillon & Modha 2001, Machine Learning 42: 143-175 (spherical k-means).
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.cluster.hierarchy
import scipy.linalg
import scipy.optimize
import scipy.spatial
import threadpoolctl
from sklearn import cluster, mixture

from ubrain_jax import errors
from ubrain_jax.atlas import pooled

OF = ("embedding", "function")
METHODS = ("kmeans", "mixture")
# Above so many voxels k-means starts from small batches, and mixtures see a sample.
MOST = 20_000
# Voxels taken through a product at once: 67 MB for 256 numbers each.
_CHUNK = 2**16
# Voxels in such a batch.
_BATCH = 8192
# Starts of k-means, of which the best counts.
_STARTS = 10
# Voxels of a cluster that the hierarchy looks at.
_MEMBERS = 200
# Centres of two runs with at least this cosine may be one cluster.
SAME = 0.7


class Mixture(NamedTuple):
    """Gaussian mixture of unit vectors: k components with diagonal covariances.

    Attributes:
        weight: (k,) shares, summing to 1.
        mean: (k, D), inside the unit sphere.
        variance: (k, D).
    """

    weight: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


class Clusters(NamedTuple):
    """k clusters of V voxels, by D numbers made from the E of an embedding.

    Attributes:
        names: k names, of the largest cluster first where it is no renamed one.
        centre: (k, D) float32 unit vectors.
        label: (V,) int32 cluster of each row of the `Pooled` that was clustered.
        tree: (k - 1, 4) merges of clusters, as `scipy.cluster.hierarchy.linkage` has
            them: see `_tree`.
        of: "embedding" or "function".
        matrix: (E, D) float32 that embeddings are multiplied by; None: nothing.
        method: One of `METHODS`.
        mixture: Of that method; else None.
        seed: Of the start.
        used: Highest number ever given in a name, so that none is given twice.
    """

    names: tuple[str, ...]
    centre: np.ndarray
    label: np.ndarray
    tree: np.ndarray
    of: str
    matrix: np.ndarray | None
    method: str
    mixture: Mixture | None
    seed: int
    used: int


class Cut(NamedTuple):
    """Clusters merged into n along their hierarchy.

    Attributes:
        names: n names: those of the merged ones, joined by "+".
        label: (V,) int32 as in `Clusters`.
        group: (k,) int32 which of the n each cluster went to; `group[assign(...)]`
            are labels of other voxels.
    """

    names: tuple[str, ...]
    label: np.ndarray
    group: np.ndarray


def functional_matrix(shared: Mapping[str, Any]) -> np.ndarray:
    """What turns embeddings into directions of functional attention alone.

    A voxel weighs the L taps and C channels by w = e F, F (E, L * C). The matrix is
    the symmetric root of F F^T: products of e times it are the products of w, in E
    numbers instead of L * C.

    Args:
        shared: Weights of a bundle.

    Returns:
        (E, E) float32.

    Raises:
        errors.InputError: If all voxels of the encoder share one w.
    """
    functional = np.asarray(shared["head"]["functional"], np.float64)
    if functional.ndim != 3:
        raise errors.InputError(
            "encoder",
            "head.functional",
            f"shape {functional.shape}: all voxels share their functional attention",
            "(L, E, C), an encoder with head.functional = 'embedding'",
            "Cluster its embeddings instead: of='embedding'.",
        )
    flat = functional.transpose(1, 0, 2).reshape(functional.shape[1], -1)  # (E, L C)
    value, vector = scipy.linalg.eigh(flat @ flat.T)
    root = (vector * np.sqrt(np.maximum(value, 0))) @ vector.T
    return root.astype(np.float32)


def unit(embedding: np.ndarray, matrix: np.ndarray | None = None) -> np.ndarray:
    """Directions of embeddings.

    Args:
        embedding: (V, E), finite, none of them 0.
        matrix: (E, D) that they are multiplied by first; None: nothing.

    Returns:
        (V, D) float32 of length 1.

    Raises:
        errors.InputError: If an embedding is not finite or has no direction.
    """
    embedding = np.asarray(embedding)
    if embedding.ndim != 2 or (
        matrix is not None and embedding.shape[1] != len(matrix)
    ):
        wanted = "E" if matrix is None else str(len(matrix))
        raise errors.InputError(
            "embeddings",
            "",
            f"shape {embedding.shape}",
            f"(V, {wanted})",
            "Give embeddings of the encoder that the clusters are of.",
        )
    width = embedding.shape[1] if matrix is None else matrix.shape[1]
    out = np.empty((len(embedding), width), np.float32)
    infinite, without = [], []
    for start in range(0, len(embedding), _CHUNK):
        part = embedding[start : start + _CHUNK].astype(np.float32)
        infinite.append(~np.isfinite(part).all(1))
        if matrix is not None:
            part = part @ matrix
        length = np.linalg.norm(part, axis=1, keepdims=True)
        without.append(length[:, 0] == 0)
        with np.errstate(invalid="ignore"):  # refused below
            out[start : start + _CHUNK] = part / np.where(length > 0, length, 1)
    for bad, what in ((infinite, "not finite"), (without, "0 in length")):
        rows = np.flatnonzero(np.concatenate(bad)) if bad else np.empty(0, int)
        if len(rows):
            raise errors.InputError(
                "embeddings",
                f"row {rows[0]}",
                f"{len(rows)} of {len(embedding)} are {what}",
                "numbers with a direction",
                "Leave these voxels out, or train the encoder again.",
            )
    return out


def check_count(directions: np.ndarray, k: int, what: str = "voxels") -> None:
    """Refuses fewer voxels, or fewer different ones, than clusters.

    Raises:
        errors.ConfigError: If k is below 1 or above their number.
        errors.InputError: If too few of them differ.
    """
    count = len(directions)
    if not 1 <= k <= count:
        raise errors.ConfigError(
            "k",
            "",
            f"{k} clusters of {count} {what}",
            f"1 to the number of {what}",
            "Ask for fewer clusters, or lower the least score of a voxel.",
        )
    # A sample tells in nearly all cases; else all are looked at.
    differ = len(np.unique(directions[: max(4 * k, 1000)], axis=0))
    if differ < k and len(np.unique(directions, axis=0)) < k:
        raise errors.InputError(
            "embeddings",
            "",
            f"fewer than {k} different directions among {count} {what}",
            f"{k} or more, one for each cluster",
            "Train the encoder longer, or ask for fewer clusters.",
        )


def fit(
    voxels: pooled.Pooled,
    k: int,
    *,
    of: str = "embedding",
    shared: Mapping[str, Any] | None = None,
    method: str = "kmeans",
    seed: int = 0,
) -> Clusters:
    """Finds clusters of voxels over all their subjects.

    k-means of directions, with the best of 10 starts; above `MOST` voxels the starts
    see small batches and the full iteration goes on from the best. A mixture starts
    from k-means and sees at most `MOST` voxels, drawn at random. Every voxel is then
    given a cluster by `assign`.

    Args:
        voxels: Whose embeddings are clustered; choose them by score with
            `pooled.pool(..., least_score=...)`.
        k: How many clusters; `cluster_choice.choose_k` proposes one.
        of: "embedding" or "function".
        shared: Weights of the bundle, for "function".
        method: "kmeans" or "mixture".
        seed: Of starts and samples; nothing else is random.

    Returns:
        Clusters, the largest first, named c01, c02, ...

    Raises:
        errors.ConfigError: If k or a choice is out of range.
        errors.InputError: If embeddings are not finite, 0, or too much alike.
    """
    matrix = matrix_of(of, shared)
    directions = unit(voxels.embedding, matrix)
    centre, found = find(directions, k, method=method, seed=seed)
    label = nearest(directions, centre, found)
    size = np.bincount(label, minlength=k)
    order = np.argsort(-size, kind="stable")
    centre = centre[order]
    if found is not None:
        found = Mixture(*[values[order] for values in found])
    place = np.empty(k, np.int32)
    place[order] = np.arange(k, dtype=np.int32)
    label = place[label]
    names = tuple(_name(number + 1) for number in range(k))
    tree = _tree(directions, label, k, seed)
    return Clusters(names, centre, label, tree, of, matrix, method, found, seed, k)


def matrix_of(of: str, shared: Mapping[str, Any] | None) -> np.ndarray | None:
    """What embeddings are multiplied by, for "embedding" or "function".

    Raises:
        errors.ConfigError: If it is neither, or weights are needed and not given.
    """
    if of == "embedding":
        return None
    if of != "function" or shared is None:
        found = repr(of) if of != "function" else "'function' without shared weights"
        raise errors.ConfigError(
            "of",
            "",
            found,
            "'embedding', or 'function' with shared=, the weights of the bundle",
            "Choose one.",
        )
    return functional_matrix(shared)


def find(
    directions: np.ndarray,
    k: int,
    *,
    method: str = "kmeans",
    seed: int = 0,
    starts: int = _STARTS,
) -> tuple[np.ndarray, Mixture | None]:
    """Centres (k, D) of unit vectors (V, D), and the mixture if that is the method."""
    if method not in METHODS:
        raise errors.ConfigError(
            "method", "", repr(method), " or ".join(METHODS), "Choose one of them."
        )
    check_count(directions, k)
    # One thread for sums over voxels: their order, so their rounding, is always one.
    with threadpoolctl.threadpool_limits(1, "openmp"):
        if method == "mixture":
            found = _mixture(directions, k, seed, starts)
            return _unit_rows(found.mean), found
        return _unit_rows(_kmeans(directions, k, seed, starts)), None


def _kmeans(directions: np.ndarray, k: int, seed: int, starts: Any) -> np.ndarray:
    """Means (k, D) of the clusters."""
    if len(directions) <= MOST:
        start: Any = "k-means++"
    else:
        batches = cluster.MiniBatchKMeans(
            k,
            batch_size=_BATCH,
            init_size=max(_BATCH, 3 * k),
            n_init=starts,
            random_state=seed,
        )
        start = batches.fit(directions).cluster_centers_
        starts = 1
    model = cluster.KMeans(k, init=start, n_init=starts, random_state=seed)
    return model.fit(directions).cluster_centers_


def _mixture(directions: np.ndarray, k: int, seed: int, starts: int) -> Mixture:
    """Fitted to all voxels or `MOST` of them."""
    if len(directions) > MOST:
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.choice(len(directions), MOST, replace=False))
        directions = directions[rows]
    # float64: variances are small differences.
    directions = directions.astype(np.float64)
    model = mixture.GaussianMixture(
        k,
        covariance_type="diag",
        means_init=_kmeans(directions, k, seed, starts),
        # A floor far below the variance of a coordinate of a unit vector, 1 / D.
        reg_covar=1e-3 / directions.shape[1],
        max_iter=200,
        random_state=seed,
    ).fit(directions)
    return Mixture(
        np.asarray(model.weights_),
        np.asarray(model.means_),
        np.asarray(model.covariances_),
    )


def model_of(found: Mixture) -> mixture.GaussianMixture:
    """A mixture as scikit-learn has it, to ask it for likelihoods."""
    model = mixture.GaussianMixture(len(found.weight), covariance_type="diag")
    model.weights_, model.means_, model.covariances_ = found
    model.precisions_cholesky_ = 1 / np.sqrt(found.variance)
    return model


def _unit_rows(mean: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(mean, axis=1, keepdims=True)
    return (mean / np.where(length > 0, length, 1)).astype(np.float32)


def nearest(
    directions: np.ndarray, centre: np.ndarray, found: Mixture | None
) -> np.ndarray:
    """(V,) int32: highest cosine, or likeliest component."""
    label = np.empty(len(directions), np.int32)
    for start in range(0, len(directions), _CHUNK):
        part = directions[start : start + _CHUNK]
        if found is None:
            closest = np.argmax(part @ centre.T, axis=1)
        else:
            closest = model_of(found).predict(part.astype(np.float64))
        label[start : start + _CHUNK] = closest
    return label


def _name(number: int) -> str:
    return f"c{number:02d}"


def _tree(directions: np.ndarray, label: np.ndarray, k: int, seed: int) -> np.ndarray:
    """(k - 1, 4) merges of k clusters of unit vectors, by how near their voxels come.

    Two clusters are as near as the median voxel of one is to the voxel of the other
    that is most parallel to it, in whatever direction. Kinds of tuning are continua
    whose ends are far apart or opposite (all hues, all orientations, a scene liked or
    avoided): along each there are voxels between, and centres do not see them.
    """
    if k < 2:
        return np.empty((0, 4))
    rng = np.random.default_rng(seed)
    members = []
    for c in range(k):
        rows = np.flatnonzero(label == c)
        if len(rows) > _MEMBERS:
            rows = np.sort(rng.choice(rows, _MEMBERS, replace=False))
        members.append(directions[rows])
    # A component of a mixture that is nowhere the likeliest is far from all.
    near = np.zeros((k, k))
    for a in range(k):
        for b in range(k):
            if len(members[a]) and len(members[b]):
                near[a, b] = np.median(np.abs(members[a] @ members[b].T).max(1))
    far = np.maximum(1 - (near + near.T) / 2, 0)
    pairs = scipy.spatial.distance.squareform(far, checks=False)
    return scipy.cluster.hierarchy.linkage(pairs, "average")


def assign(clusters: Clusters, embedding: np.ndarray) -> np.ndarray:
    """Clusters of other voxels, of any subject of the same encoder.

    Args:
        clusters: From `fit`.
        embedding: (n, E).

    Returns:
        (n,) int32: the centre with the highest cosine, or the likeliest component.

    Raises:
        errors.InputError: If an embedding is not finite, 0, or of another length.
    """
    directions = unit(embedding, clusters.matrix)
    if directions.shape[1] != clusters.centre.shape[1]:
        raise errors.InputError(
            "embeddings",
            "",
            f"{directions.shape[1]} numbers each",
            f"{clusters.centre.shape[1]}, as the clusters",
            "Give embeddings of the encoder that the clusters are of.",
        )
    return nearest(directions, clusters.centre, clusters.mixture)


def cut(clusters: Clusters, n: int) -> Cut:
    """Merges clusters into n along their hierarchy.

    Raises:
        errors.ConfigError: If n is not in 1..k.
    """
    k = len(clusters.names)
    if not 1 <= n <= k:
        raise errors.ConfigError(
            "n", "", f"{n} groups of {k} clusters", f"1..{k}", "Change it."
        )
    group = np.zeros(k, np.int32)
    if k > 1:
        group[:] = scipy.cluster.hierarchy.cut_tree(clusters.tree, n)[:, 0]
    names = tuple(
        "+".join(clusters.names[c] for c in np.flatnonzero(group == g))
        for g in range(n)
    )
    return Cut(names, group[clusters.label], group)


def match(centre: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs centres of two runs, one to one, with the highest sum of cosines.

    Args:
        centre: (k, D) unit vectors.
        others: (j, D).

    Returns:
        (k,) int: which of the others, -1 where none is left; (k,) its cosine, NaN
        there.
    """
    cosine = centre @ others.T
    mine, theirs = scipy.optimize.linear_sum_assignment(cosine, maximize=True)
    other, value = np.full(len(centre), -1), np.full(len(centre), np.nan)
    other[mine], value[mine] = theirs, cosine[mine, theirs]
    return other, value


def rename(clusters: Clusters, previous: Clusters, same: float = SAME) -> Clusters:
    """Keeps the names of an earlier run for the clusters that are still there.

    Centres are paired one to one. A cluster whose partner has a cosine below `same`
    gets a number that no cluster ever had.

    Args:
        clusters: To name.
        previous: Of the same encoder, subjects or not.
        same: Least cosine.

    Raises:
        errors.InputError: If they are of different things or lengths.
    """
    now, then = (
        (c.of, c.centre.shape[1], None if c.matrix is None else c.matrix.shape)
        for c in (clusters, previous)
    )
    if now != then:
        raise errors.InputError(
            "clusters",
            "",
            f"clusters of {now[0]} in {now[1]} numbers, named after clusters of "
            f"{then[0]} in {then[1]}",
            "both of one kind and one encoder",
            "Cluster with the same choices.",
        )
    other, cosine = match(clusters.centre, previous.centre)
    used, names = max(_highest(previous.names), previous.used), []
    for partner, value in zip(other, cosine, strict=True):
        if partner >= 0 and value >= same:
            names.append(previous.names[partner])
        else:
            used += 1
            names.append(_name(used))
    return clusters._replace(names=tuple(names), used=used)


def _highest(names: tuple[str, ...]) -> int:
    """The highest number in names of this kind.

    Example:
        >>> _highest(("c02", "faces", "c11"))
        11
    """
    numbers = [re.fullmatch(r"c(\d+)", name) for name in names]
    return max([int(found[1]) for found in numbers if found], default=0)
