"""What groups of voxels want: against loops, scipy and planted answers."""

import numpy as np
import pytest
import scipy.stats

from ubrain_jax import errors
from ubrain_jax.atlas import pooled, wants
from ubrain_jax.model import bundle

M, K = 30, 3


def make_parts(seed=0):
    """Two subjects that saw different pictures, with voxels of no group."""
    rng = np.random.default_rng(seed)
    parts = []
    for seen, voxels in ((np.arange(0, 20), 9), (np.arange(12, 30)[::-1], 14)):
        loudness = 10.0 ** rng.uniform(-2, 2, voxels)
        responses = 5 + loudness * rng.standard_normal((len(seen), voxels))
        label = rng.integers(-1, K, voxels)
        label[:K] = np.arange(K)
        parts.append(wants.Part(responses.astype(np.float32), label, seen))
    return parts


def by_loop(parts):
    """(S, M, K) in plain loops."""
    out = np.full((len(parts), M, K), np.nan)
    for s, part in enumerate(parts):
        z = scipy.stats.zscore(part.responses.astype(np.float64), axis=0)
        for row, picture in enumerate(part.picture):
            for g in range(K):
                out[s, picture, g] = z[row, part.label == g].mean()
    return out


def test_mean_responses_are_those_of_a_loop(monkeypatch):
    monkeypatch.setattr(wants, "_BLOCK_ROWS", 7)
    parts = make_parts()
    found = wants.mean_response(parts, K, M)
    own = by_loop(parts)
    np.testing.assert_allclose(found.of_subject, own, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.mean, np.nanmean(own, 0), rtol=1e-9, atol=1e-9)
    assert found.num_subjects[:, 0].tolist() == [1] * 12 + [2] * 8 + [1] * 10
    both = wants.mean_response(parts, K, M, least_subjects=2)
    assert (
        np.isfinite(both.mean).all(1).tolist()
        == [False] * 12 + [True] * 8 + [False] * 10
    )


def test_each_voxel_and_each_subject_count_alike():
    picture = np.arange(4)
    quiet, loud = np.array([0.0, 0, 0, 1]), np.array([0.0, 900, 0, 0])
    a = wants.Part(np.stack([quiet, loud], 1), np.zeros(2, int), picture)
    z = (np.array([0, 0, 0, 1]) - 0.25) / np.sqrt(3 / 16)
    found = wants.mean_response([a], 1, 4).mean[:, 0]
    np.testing.assert_allclose(found, (z + z[[0, 3, 2, 1]]) / 2)
    many = wants.Part(np.tile(loud[:, None], 50), np.zeros(50, int), picture)
    one = wants.Part(quiet[:, None], np.zeros(1, int), picture)
    found = wants.mean_response([many, one], 1, 4).mean[:, 0]
    np.testing.assert_allclose(found, (z + z[[0, 3, 2, 1]]) / 2)


def test_voxels_that_never_change_and_empty_groups_are_left_out():
    [part, _] = make_parts()
    responses = np.concatenate([part.responses, np.full((20, 1), 0.1)], 1)
    more = part._replace(responses=responses, label=np.append(part.label, 0))
    plain = wants.mean_response([part], K + 1, M)
    found = wants.mean_response([more], K + 1, M)
    np.testing.assert_array_equal(found.mean, plain.mean)
    np.testing.assert_array_equal(found.num_voxels, plain.num_voxels)
    assert np.isnan(found.mean[:, K]).all()
    assert (found.num_voxels[0, K], found.num_subjects[0, K]) == (0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.full(9, K)}, "labels 3..3 of 3 groups"),
        ({"label": np.zeros(8, int)}, "8 labels"),
        ({"picture": np.arange(11, 31)}, "pictures 11..30 of 30"),
        ({"picture": np.repeat(np.arange(10), 2)}, "10 pictures twice"),
        ({"responses": np.full((20, 9), np.nan)}, "9 voxels have NaN"),
    ],
)
def test_parts_that_contradict_themselves_are_refused(change, message):
    part = make_parts()[0]._replace(**change)
    if "responses" in change:
        part = part._replace(label=np.zeros(9, int))
    with pytest.raises(errors.InputError, match=message):
        wants.mean_response([part], K, M)


def test_top_and_bottom_are_in_order_and_leave_nan_out():
    values = np.array([2.0, np.nan, 5, 2, 5, -1, np.nan])
    assert wants.top(values, 3).tolist() == [2, 4, 0]
    assert wants.bottom(values, 3).tolist() == [5, 0, 3]
    assert wants.top(values, 99).tolist() == [2, 4, 0, 3, 5]
    assert wants.bottom(np.full(3, np.nan), 2).tolist() == []


def test_contrasts_are_a_paired_t_over_subjects():
    parts = [make_parts(seed)[0] for seed in range(5)]
    parts[4] = parts[4]._replace(label=np.where(parts[4].label == 1, -1, 0))
    own = wants.mean_response(parts, K, M)
    found = wants.contrast(own, 0, 1)
    a, b = own.of_subject[:4, :20, 0], own.of_subject[:4, :20, 1]
    expected = scipy.stats.ttest_rel(a, b, axis=0)
    np.testing.assert_allclose(found.t[:20], expected.statistic, rtol=1e-9)
    np.testing.assert_allclose(found.difference[:20], (a - b).mean(0), rtol=1e-9)
    assert found.num_subjects.tolist() == [4] * 20 + [0] * 10
    np.testing.assert_array_equal(found.order, np.argsort(-found.difference[:20]))
    alone = wants.contrast(wants.mean_response(parts[:1], K, M), 0, 1)
    assert np.isfinite(alone.difference[:20]).all()
    assert np.isnan(alone.t).all()


def test_a_planted_preference_is_on_top_of_the_contrast():
    rng = np.random.default_rng(3)
    indoor = np.arange(M) % 3 == 0
    parts = []
    for _ in range(3):
        label = np.repeat([0, 1], 20)
        drive = np.where(label == 0, indoor[:, None], ~indoor[:, None])
        noise = rng.standard_normal((M, 40))
        parts.append(wants.Part(drive + noise, label, np.arange(M)))
    found = wants.contrast(wants.mean_response(parts, 2, M), 0, 1)
    assert indoor[found.order[: indoor.sum()]].all()
    assert np.median(found.t[indoor]) > 3


def test_agreement_is_pearson_over_the_pictures_known_to_both():
    parts = make_parts()
    measured = wants.mean_response(parts, K, M)
    noisy = [p._replace(responses=-p.responses) for p in parts]
    assert wants.agreement(measured, measured).r == pytest.approx([1, 1, 1])
    flipped = wants.agreement(wants.mean_response(noisy, K, M), measured)
    assert flipped.r == pytest.approx([-1, -1, -1])
    other = wants.mean_response(make_parts(9), K, M)
    other.of_subject[1] = np.nan  # predicted for the first subject alone
    found = wants.agreement(other, measured)
    for g in range(K):
        expected = scipy.stats.pearsonr(
            other.of_subject[0, :20, g], measured.of_subject[0, :20, g]
        )
        assert found.r[g] == pytest.approx(expected.statistic, rel=1e-9)
    assert found.num_pictures.tolist() == [20] * K
    with pytest.raises(errors.InputError, match="the same subjects"):
        wants.agreement(wants.mean_response(parts[:1], K, M), measured)


def test_overlap_is_of_pictures_known_to_both():
    a, b = np.array([9.0, 8, 7, 6, np.nan, 0]), np.array([np.nan, 9, 1, 8, 7, 0])
    assert wants.overlap(a, b, 2) == 0.5  # 1, 2 and 1, 3
    assert wants.overlap(a, b, 4) == 1
    assert np.isnan(wants.overlap(a, b, 5))


def test_attention_is_the_mean_over_voxels_and_taps():
    rng = np.random.default_rng(0)
    spatial = rng.random((2, 5, 3, 4, 4)).astype(np.float32)
    spatial[..., 0, 0] = np.nan
    found = wants.mean_attention(spatial, np.array([1, -1, 0, 1, 1]), 3)
    for image in range(2):
        expected = np.mean(
            [spatial[image, v, t] for v in (0, 3, 4) for t in range(3)], 0
        )
        np.testing.assert_allclose(found[image, 1], expected, rtol=1e-5)
    assert np.isnan(found[:, :, 0, 0]).all()
    assert np.isnan(found[:, 2]).all()


def make_table():
    rng = np.random.default_rng(0)
    subjects = [
        bundle.Subject(
            name,
            rng.standard_normal((6, 4)).astype(np.float32),
            np.zeros((6, 3), np.int32),
            np.arange(6)[:, None] % 3 == np.arange(len(regions)),
            regions,
            np.full(6, np.nan, np.float32),
            {},
            {},
        )
        for name, regions in (("a", ("PPA", "V1v")), ("b", ("V1v",)))
    ]
    return pooled.pool(subjects)


def test_a_region_is_its_rows_in_all_subjects():
    table = make_table()
    assert wants.in_region(table, "V1v").tolist() == [1, 4, 6, 9]
    assert wants.in_region(table, ["PPA", "V1v"]).tolist() == [0, 1, 3, 4, 6, 9]
    with pytest.raises(errors.ConfigError, match=r"'V1'.*Did you mean V1v"):
        wants.in_region(table, "V1")
    with pytest.raises(errors.ConfigError, match="2 voxels in PPA; expected 3 or"):
        wants.in_region(table, "PPA", least=3)


def test_subjects_are_asked_for_the_voxels_of_groups_alone():
    table = make_table().take(np.arange(1, 12))
    label = np.full(11, -1)
    label[[0, 3, 7]] = 0, 1, 1
    asked = []

    def responses(name, voxels):
        asked.append((name, voxels.tolist()))
        return np.arange(3.0)[:, None] * (voxels + 1), np.array([5, 7, 6])

    parts = wants.parts_of(table, label, responses)
    assert asked == [("a", [1, 4]), ("b", [2])]
    assert [p.label.tolist() for p in parts] == [[0, 1], [1]]
    found = wants.mean_response(parts, 2, 8)
    assert wants.top(found.mean[:, 1], 3).tolist() == [6, 7, 5]
