"""Summaries of one subject against the functions they are made of, and pools."""

import json

import numpy as np
import pytest

from ubrain_jax import bootstrap, ceilings, metrics, scoring, significance


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 80))
    measured = signal + rng.normal(size=(60, 80)) * 3
    predicted = signal + rng.normal(size=(60, 80))
    predicted[:, 40:] = rng.normal(size=(60, 40))  # say nothing
    measured[:, 7] = 0.1
    regions = {
        "first": np.arange(80) < 40,
        "last": np.arange(80) >= 40,
        "none": np.zeros(80, bool),
    }
    ceiling = np.full(80, 0.4)
    given = measured, predicted, ceiling, regions
    return given, scoring.voxels(*given, 200, 1000)


def test_columns_are_the_scores_of_every_voxel(scored):
    (measured, predicted, ceiling, _), (columns, _) = scored
    r = metrics.pearson(measured, predicted)
    tested = significance.permutation_test(measured, predicted, 1000)
    expected = {
        "pearson": r,
        "r2": metrics.r2(measured, predicted),
        "explained_variance": metrics.explained_variance(measured, predicted),
        "noise_normalised": metrics.noise_normalised(r, ceiling),
        "noise_normalised_r2": ceilings.noise_normalised_r2(r, ceiling),
        "p": tested.p,
        "q": tested.q,
    }
    assert list(columns) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(columns[name], values)


def test_regions_have_quartiles_intervals_and_shares_of_their_own(scored):
    (measured, predicted, ceiling, regions), (columns, summary) = scored
    assert list(summary["roi"]) == ["first", "last"]
    counts = bootstrap.draws(60, 200)
    for name, entry in summary["roi"].items():
        inside = regions[name]
        assert entry["num_voxels"] == 40
        found = bootstrap.medians(
            measured, predicted, counts, ceiling, inside[:, None]
        ).pearson[:, 0]
        median = entry["pearson"]["median"]
        assert median == metrics.quartiles(columns["pearson"][inside])["median"]
        expected = bootstrap.interval(found, median)
        assert entry["pearson"]["ci"] == pytest.approx(expected, abs=1e-6)
        q = columns["q"][inside]
        q = q[np.isfinite(q)]
        assert entry["significant"]["share"] == np.mean(q < 0.05)
        assert entry["significant"]["voxels"] == len(q)
    assert summary["roi"]["first"]["significant"]["share"] > 0.9
    assert summary["roi"]["last"]["significant"]["share"] < 0.2
    low, high = summary["roi"]["first"]["pearson"]["ci"]
    assert low > summary["roi"]["last"]["pearson"]["ci"][1]
    assert low < high
    assert summary["significant"]["voxels"] == 79
    json.dumps(metrics.null_for_nan(summary), allow_nan=False)


def test_patterns_are_ranked_in_both_directions_and_in_each_pool():
    rng = np.random.default_rng(1)
    measured = rng.normal(size=(30, 50))
    predicted = measured + 4 * rng.normal(size=(30, 50))
    similarity = metrics.similarity(measured, predicted)
    kept = np.arange(30) < 12
    found = scoring.patterns(similarity, 100, {"shared": kept})
    assert found["retrieval"]["top1"] == metrics.retrieval(measured, predicted).top1
    back = metrics.retrieval(predicted, measured)
    assert found["retrieval_of_responses"]["top1"] == back.top1
    assert found["retrieval_of_responses"]["mean_rank"] == back.mean_rank
    pool = found["retrieval_pools"]["shared"]
    some = metrics.retrieval(measured[kept], predicted[kept])
    assert (pool["pool"], pool["top1"]) == (12, some.top1)
    assert pool["of"] == "test pictures that all subjects of the store saw"
    afc = metrics.two_afc(measured, predicted)
    for key in ("mean", "reverse_mean"):
        assert found["two_afc"][key] == getattr(afc, key)
        low, high = found["two_afc"]["ci"][key]
        assert low < found["two_afc"][key] < high
    for entry in (found["retrieval"], found["retrieval_of_responses"], pool):
        assert entry["ci"]["top1"][0] <= entry["top1"] <= entry["ci"]["top1"][1]
    assert "ci" not in scoring.patterns(similarity)["retrieval"]


def shown(images, repeats, store=0):
    return scoring.Shown(store, np.asarray(images), np.asarray(repeats))


def test_pools_are_the_pictures_that_all_subjects_of_a_store_saw():
    """As with 1000, 907 and 515 pictures of NSD: all, seen by all, three times."""
    full, some = np.full(10, 3), np.full(10, 3)
    some[:4] = 2
    one = shown(range(10), full)
    other = shown(range(2, 12), some)
    elsewhere = shown(range(100, 105), np.full(5, 1), store=1)
    a, b, c = scoring.shared_pools([one, other, elsewhere])
    assert one.image[a["shared"]].tolist() == list(range(2, 10))
    assert other.image[b["shared"]].tolist() == list(range(2, 10))
    # Seen three times by both: the second saw 2, 3, 4 and 5 twice.
    assert one.image[a["shared_full"]].tolist() == [6, 7, 8, 9]
    assert other.image[b["shared_full"]].tolist() == [6, 7, 8, 9]
    assert c == {}


def test_there_is_no_pool_where_all_saw_the_same_or_next_to_nothing():
    same = shown(range(10), np.full(10, 3))
    assert scoring.shared_pools([same, same]) == [{}, {}]
    apart = shown(range(8, 18), np.full(10, 3))  # two pictures in common
    assert scoring.shared_pools([same, apart]) == [{}, {}]
    untested = shown([], [])
    assert scoring.shared_pools([same, untested]) == [{}, {}]
    assert scoring.shared_pools([]) == []
