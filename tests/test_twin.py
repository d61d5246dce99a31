"""Twins against slow loops: the best candidate, its cross-validated score, clusters."""

import numpy as np
import pytest
import scipy.stats

from ubrain_jax import twin


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def slow_best_of(predicted, responses):
    """The definition, one voxel and one candidate at a time, in float64."""
    predicted, responses = predicted.astype(float), responses.astype(float)
    m = len(predicted) // twin.FOLDS
    best, score = [], []
    for y in responses.T:

        def correlations(rows, y=y):
            return [scipy.stats.pearsonr(p[rows], y[rows])[0] for p in predicted.T]

        everything = np.arange(len(y))
        best.append(np.argmax(correlations(everything)))
        left_out = np.empty(len(y))
        for fold in range(twin.FOLDS):
            held = everything[fold * m : (fold + 1) * m]
            kept = np.setdiff1d(everything, held)
            p = predicted[:, np.argmax(correlations(kept))]
            left_out[held] = (p[held] - p[kept].mean()) / p[kept].std()
        score.append(scipy.stats.pearsonr(left_out, y)[0])
    return np.array(best), np.array(score)


def test_best_candidate_and_score_equal_a_slow_loop():
    predicted = noise(0, 40, 7) * np.linspace(0.1, 30, 7) + 5
    mixing = noise(1, 7, 9) ** 3
    responses = predicted @ mixing / 50 + 2 * noise(2, 40, 9)
    best, score = twin.best_of(predicted, responses)
    slow, slow_score = slow_best_of(predicted, responses)
    np.testing.assert_array_equal(best, slow)
    np.testing.assert_allclose(score, slow_score, rtol=1e-5, atol=1e-6)


def test_more_voxels_than_a_block_change_nothing(monkeypatch):
    predicted, responses = noise(0, 20, 5), noise(1, 20, 11)
    whole = twin.best_of(predicted, responses)
    monkeypatch.setattr(twin, "_BLOCK", 4)
    parts = twin.best_of(predicted, responses)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-12)


def test_score_of_the_best_of_many_is_not_flattered_by_noise():
    """500 candidates of noise: the best of all correlates .5, its score is about 0."""
    predicted, responses = noise(0, 40, 500), noise(1, 40, 60)
    best, score = twin.best_of(predicted, responses)
    fitted = [
        scipy.stats.pearsonr(predicted[:, k], y)[0]
        for k, y in zip(best, responses.T, strict=True)
    ]
    assert np.mean(fitted) > 0.4
    assert abs(np.mean(score)) < 0.1


def test_constant_voxel_has_no_score_and_constant_candidate_is_not_chosen():
    predicted, responses = noise(0, 20, 3), noise(1, 20, 2)
    predicted[:, 1] = 2
    responses[:, 0] = 7
    best, score = twin.best_of(predicted, responses)
    assert np.isnan(score[0])
    assert np.isfinite(score[1])
    assert best[1] != 1


class Linear:
    """Stands for a predictor: a response is a linear function of the embedding."""

    def of_embeddings(self, params, features, embeddings):
        return features @ embeddings.T


def test_voxel_that_has_a_twin_finds_it():
    features, candidates = noise(0, 100, 6), noise(1, 200, 6)
    chosen = [3, 150, 77]
    responses = features @ candidates[chosen].T
    found = twin.find(Linear(), None, features, responses, candidates)
    assert found.candidate.tolist() == chosen
    np.testing.assert_array_equal(found.embedding, candidates[chosen])
    # Not 1: each fold is standardised by the others.
    assert (found.score > 0.99).all()


def test_start_where_nothing_stands_out_is_the_mean_of_a_cluster():
    """A voxel between the members of a tight cluster, seen through noise."""
    rng = np.random.default_rng(3)
    centres = 4 * noise(4, 10, 6)
    candidates = (centres[np.arange(400) % 10] + 1.5 * noise(5, 400, 6)).astype("f4")
    features = noise(6, 60, 6)
    clean = features @ centres.T
    responses = clean + 3 * clean.std(0) * rng.standard_normal(clean.shape)
    found = twin.find(Linear(), None, features, responses, candidates)
    means = twin.cluster_means(candidates, 0)
    of_cluster = found.candidate < 0
    assert of_cluster.any()
    np.testing.assert_array_equal(
        found.embedding[of_cluster], means[-1 - found.candidate[of_cluster]]
    )


def test_constant_voxels_get_a_finite_start():
    features, candidates = noise(0, 20, 4), noise(1, 50, 4)
    found = twin.find(Linear(), None, features, np.ones((20, 2)), candidates)
    assert np.isfinite(found.embedding).all()
    assert np.isnan(found.score).all()


def test_cluster_means_are_means_of_the_embeddings_themselves():
    rng = np.random.default_rng(0)
    direction = np.eye(4, dtype=np.float32)[np.arange(80) % 4]
    length = rng.uniform(1, 3, (80, 1)).astype(np.float32)
    means = twin.cluster_means(direction * length, seed=0)
    assert means.shape == (4, 4)
    expected = [length[np.arange(80) % 4 == k].mean() for k in range(4)]
    np.testing.assert_allclose(np.sort(means.max(1)), np.sort(expected), rtol=1e-6)
    assert len(twin.cluster_means(noise(1, 5, 4), 0)) == 1


def test_too_few_pictures_are_refused():
    with pytest.raises(ValueError, match="9 pictures; twins need 10"):
        twin.find(Linear(), None, noise(0, 9, 4), noise(1, 9, 2), noise(2, 30, 4))
