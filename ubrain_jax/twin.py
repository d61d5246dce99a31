"""Starting embeddings for new voxels: those of existing voxels that respond alike.

A new voxel's twin is the existing voxel whose predicted responses to the new
subject's own training pictures correlate best with what was measured. The best of
thousands is good by chance on few pictures, so the choice is made on some of them
and judged on the others; where a cluster of voxels does better there, its mean is the
start. Nothing of the existing subjects' data is needed, only their embeddings.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.cluster

from ubrain_jax import evaluate

FOLDS = 5
_BLOCK = 512  # new voxels correlated at once
_SMALLEST = 1e-12  # variance below which a response does not vary


class Twins(NamedTuple):
    """Starts of V new voxels.

    Attributes:
        embedding: (V, E) float32.
        candidate: (V,) int64 row of the candidates, or -1 - cluster.
        score: (V,) cross-validated correlation of the start that was taken, NaN
            where the voxel does not vary.
    """

    embedding: np.ndarray
    candidate: np.ndarray
    score: np.ndarray


def find(
    predictor: evaluate.Predictor,
    params: Any,
    features: np.ndarray,
    responses: np.ndarray,
    candidates: np.ndarray,
    *,
    seed: int = 0,
) -> Twins:
    """Finds a start for each new voxel.

    Args:
        predictor: Compiled for the encoder.
        params: Its trainable weights; the table is not used.
        features: (M, L, P, C) of pictures that the new subject saw; `FOLDS` or more.
        responses: (M, V) measured responses to them.
        candidates: (K, E) embeddings of existing voxels.
        seed: Of the folds and clusters.

    Raises:
        ValueError: With fewer than 2 * `FOLDS` pictures.
    """
    if len(features) < 2 * FOLDS:
        raise ValueError(f"{len(features)} pictures; twins need {2 * FOLDS} or more")
    order = np.random.default_rng(seed).permutation(len(features))
    order = order[: len(order) // FOLDS * FOLDS]  # folds of one size
    features, responses = np.asarray(features)[order], responses[order]
    clusters = cluster_means(candidates, seed)
    found = []
    for group in (candidates, clusters):
        predicted = predictor.of_embeddings(params, features, group)
        found.append(best_of(predicted, responses))
    (single, single_score), (mean, mean_score) = found
    # Where both are undefined the voxel does not vary, and any start will do.
    alone = np.nan_to_num(single_score, nan=-2) > np.nan_to_num(mean_score, nan=-2)
    return Twins(
        np.where(alone[:, None], candidates[single], clusters[mean]),
        np.where(alone, single, -1 - mean),
        np.where(alone, single_score, mean_score),
    )


def cluster_means(candidates: np.ndarray, seed: int) -> np.ndarray:
    """Means of k-means clusters of the L2-normalised embeddings, (clusters, E).

    As many clusters as 20 voxels each allow, 64 at most; the mean is of the
    embeddings themselves, whose length carries the size of the response.
    """
    count = int(np.clip(len(candidates) // 20, 1, 64))
    length = np.linalg.norm(candidates, axis=1, keepdims=True)
    unit = candidates / np.where(length > 0, length, 1)
    means = sklearn.cluster.KMeans(count, random_state=seed)
    label = means.fit_predict(unit.astype(np.float64))
    return np.stack([candidates[label == k].mean(0) for k in np.unique(label)])


def best_of(
    predicted: np.ndarray, responses: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each voxel the candidate that correlates best, and how good such a choice is.

    The score chooses the best candidate on all folds but one, standardises its
    predictions there, predicts the left-out fold, and correlates the left-out
    predictions of all folds with the responses.

    Args:
        predicted: (M, K) responses of candidates; M is a multiple of `FOLDS`, the
            folds follow each other.
        responses: (M, V) measured.

    Returns:
        (V,) int64 best candidate on all pictures; (V,) float64 its cross-validated
        correlation, NaN where the responses do not vary.
    """
    predicted = _scaled(predicted)
    m, k = predicted.shape
    p = jnp.asarray(predicted.reshape(FOLDS, m // FOLDS, k))
    best = np.empty(responses.shape[1], np.int64)
    score = np.empty(responses.shape[1])
    for start in range(0, responses.shape[1], _BLOCK):
        some = slice(start, start + _BLOCK)
        y = _scaled(responses[:, some])
        chosen = np.asarray(_choose(p, jnp.asarray(y.reshape(FOLDS, m // FOLDS, -1))))
        best[some] = chosen[FOLDS]
        score[some] = _cross_validated(predicted, y, chosen[:FOLDS])
    return best, score


def _scaled(values: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and variance 1 (0 where constant), float32."""
    centred = values - values.mean(0, dtype=np.float64)
    sd = centred.std(0)
    return (centred / np.where(sd > np.sqrt(_SMALLEST), sd, np.inf)).astype(np.float32)


@jax.jit
def _choose(p: jax.Array, y: jax.Array) -> jax.Array:
    """(F, m, K), (F, m, V) -> (F + 1, V) best candidate without each fold, with all."""
    sums = jnp.einsum("FMV,FMK->FVK", y, p, precision="highest")
    p1, p2 = p.sum(1), (p * p).sum(1)  # (F, K)
    y1, y2 = y.sum(1), (y * y).sum(1)  # (F, V)

    def others(x):
        return jnp.concatenate([x.sum(0)[None] - x, x.sum(0)[None]])

    folds, m = p.shape[:2]
    n = jnp.concatenate([jnp.full(folds, (folds - 1) * m), jnp.full(1, folds * m)])
    n = n[:, None]
    p1, p2, y1, y2, sums = (others(x) for x in (p1, p2, y1, y2, sums))
    p_var = p2 / n - (p1 / n) ** 2
    y_var = y2 / n - (y1 / n) ** 2
    covariance = sums / n[..., None] - (y1 / n)[..., None] * (p1 / n)[:, None]
    varies = (p_var[:, None] > _SMALLEST) & (y_var[..., None] > _SMALLEST)
    spread = jnp.sqrt(jnp.where(varies, p_var[:, None] * y_var[..., None], 1))
    return jnp.argmax(jnp.where(varies, covariance / spread, -2), -1)


def _cross_validated(
    predicted: np.ndarray, responses: np.ndarray, chosen: np.ndarray
) -> np.ndarray:
    """Correlation of left-out predictions with responses (M, V) -> (V,).

    `chosen` (F, V) holds the candidate for each left-out fold.
    """
    m = len(predicted) // FOLDS
    left_out = np.empty(responses.shape)
    for fold in range(FOLDS):
        held = np.arange(fold * m, (fold + 1) * m)
        kept = np.setdiff1d(np.arange(len(predicted)), held)
        seen = predicted[kept][:, chosen[fold]].astype(np.float64)
        mean, sd = seen.mean(0), seen.std(0)
        own = predicted[held][:, chosen[fold]]
        left_out[held] = (own - mean) / np.where(sd > 0, sd, np.inf)
    a = left_out - left_out.mean(0)
    b = responses - responses.mean(0, dtype=np.float64)
    norm = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    return (a * b).sum(0) / np.where(norm > 0, norm, np.nan)
