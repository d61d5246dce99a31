"""Tables of clusters: counts, regions against references, agreement of subjects."""

import csv

import numpy as np
import pytest
import scipy.stats

from ubrain_jax import errors
from ubrain_jax.atlas import cluster_agreement, cluster_tables, clusters, pooled


def crowd(subjects=4, per=150, k=4, e=12, noise=0.15, seed=0):
    """Voxels of k planted directions in all subjects; region PPA is the last of them.

    Subject 0 has no PPA, though it has the voxels.
    """
    rng = np.random.default_rng(seed)
    centre = np.linalg.qr(rng.standard_normal((e, k)))[0].T
    v = subjects * per
    truth = rng.choice(k, v, p=np.arange(k, 0, -1) / np.arange(k + 1).sum())
    subject = np.repeat(np.arange(subjects), per).astype(np.int32)
    score = rng.random(v).astype(np.float32)
    score[::7] = np.nan
    roi = np.stack([rng.random(v) < 0.3, (truth == k - 1) & (subject > 0)], 1)
    roi[:, 1] |= (rng.random(v) < 0.05) & (subject > 0)
    voxels = pooled.Pooled(
        tuple(f"s{n}" for n in range(subjects)),
        subject,
        np.arange(v),
        (centre[truth] + noise * rng.standard_normal((v, e))).astype(np.float32),
        np.zeros((v, 3), np.int32),
        rng.choice([-1, 0, 1], v).astype(np.int8),
        roi,
        ("V1", "PPA"),
        np.full(v, np.nan, np.float32),
        score,
        "pearson",
    )
    return voxels, truth


def test_counts_are_those_of_a_slow_loop():
    voxels, _ = crowd()
    found = clusters.fit(voxels, 4)
    rows = cluster_tables.table(voxels, found)
    assert [row.name for row in rows] == list(found.names)
    for c, row in enumerate(rows):
        members = [v for v in range(len(voxels.voxel)) if found.label[v] == c]
        assert row.size == len(members)
        assert row.share == pytest.approx(len(members) / len(voxels.voxel))
        for s in range(4):
            count = sum(voxels.subject[v] == s for v in members)
            assert row.subjects[s] == count
        sides = [voxels.hemisphere[v] for v in members]
        assert [row.left, row.right, row.unknown] == [
            sides.count(x) for x in (0, 1, -1)
        ]
        scores = [voxels.score[v] for v in members if not np.isnan(voxels.score[v])]
        assert row.mean_score == pytest.approx(np.mean(scores), rel=1e-5)
        assert row.median_score == pytest.approx(np.median(scores), rel=1e-5)
        assert np.isnan(row.agreement)


def test_enrichment_is_fishers_exact_test_of_subjects_with_the_region():
    voxels, _ = crowd()
    found = clusters.fit(voxels, 4)
    rows = cluster_tables.table(voxels, found)
    p = []
    for c, row in enumerate(rows):
        assert [region.name for region in row.regions] == ["V1", "PPA"]
        for r, region in enumerate(row.regions):
            asked = voxels.subject > 0 if r else np.ones(len(voxels.voxel), bool)
            inside, member = found.label[asked] == c, voxels.roi[asked, r]
            square = [
                [np.sum(inside & member), np.sum(inside & ~member)],
                [np.sum(~inside & member), np.sum(~inside & ~member)],
            ]
            expected = scipy.stats.fisher_exact(square, "greater").pvalue
            assert region.p == pytest.approx(expected, rel=1e-6)
            assert region.inside == square[0][0]
            assert region.expected == pytest.approx(inside.sum() * member.mean())
            assert region.fold == pytest.approx(member[inside].mean() / member.mean())
            p.append(region.p)
    q = scipy.stats.false_discovery_control(p, method="bh")
    np.testing.assert_allclose([g.q for row in rows for g in row.regions], q)


def test_a_planted_region_is_found_and_a_random_one_is_not():
    voxels, truth = crowd()
    found = clusters.fit(voxels, 4)
    rows = cluster_tables.table(voxels, found)
    ppa = found.label[np.flatnonzero(truth == 3)[0]]
    for c, row in enumerate(rows):
        first, second = row.regions
        assert (second.q < 1e-10) == (c == ppa)
        assert first.q > 0.05
    assert rows[ppa].regions[1].fold > 3


def test_p_of_a_random_region_is_no_smaller_than_chance():
    voxels, _ = crowd(per=100)
    found = clusters.fit(voxels, 4)
    rng = np.random.default_rng(5)
    roi = rng.random((len(voxels.voxel), 400)) < 0.2
    many = voxels._replace(roi=roi, roi_names=tuple(map(str, range(400))))
    p = np.array(
        [[g.p for g in row.regions] for row in cluster_tables.table(many, found)]
    )
    # Discrete tests are conservative, never liberal: 1600 of them.
    assert np.mean(p < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / p.size)
    assert np.mean(p < 0.05) > 0.02


def test_regions_nobody_has_are_undefined():
    voxels, _ = crowd()
    voxels = voxels._replace(roi=voxels.roi & [True, False])
    rows = cluster_tables.table(voxels, clusters.fit(voxels, 4))
    for row in rows:
        assert row.regions[1].inside == 0
        assert np.isnan([row.regions[1].fold, row.regions[1].p, row.regions[1].q]).all()
        assert np.isfinite(row.regions[0].q)


def test_other_subjects_put_the_voxels_in_the_same_clusters():
    voxels, _ = crowd()
    found = clusters.fit(voxels, 4)
    seen = cluster_agreement.across_subjects(voxels, found)
    assert seen.rand > 0.99
    assert seen.share.shape == (4, 4)
    assert np.all(seen.share > 0.98)
    assert sorted(seen.halves[0] + seen.halves[1]) == ["s0", "s1", "s2", "s3"]
    expected = np.array(
        [
            [np.mean(seen.label[voxels.subject == s] == c) for s in range(4)]
            for c in range(4)
        ]
    )
    np.testing.assert_allclose(seen.chance, expected)
    rows = cluster_tables.table(voxels, found, seen.label)
    assert [row.agreement for row in rows] == pytest.approx(seen.share.mean(1))
    assert [row.chance for row in rows] == pytest.approx(expected.mean(1))


def test_subjects_with_clusters_of_their_own_do_not_agree():
    voxels, truth = crowd(subjects=2, per=400)
    # The second subject's directions are turned: nothing is shared.
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    own = voxels.embedding.copy()
    own[voxels.subject == 1] = own[voxels.subject == 1] @ turn
    voxels = voxels._replace(embedding=own.astype(np.float32))
    found = clusters.fit(voxels, 8)
    seen = cluster_agreement.across_subjects(voxels, found)
    rows = cluster_tables.table(voxels, found, seen.label)
    assert np.mean([row.agreement for row in rows]) < 0.6
    assert len(truth) == 800


def test_agreement_of_labels_dealt_at_random_is_chance():
    voxels, _ = crowd(subjects=3, per=4000)
    rng = np.random.default_rng(3)
    v = len(voxels.voxel)
    label, others = rng.choice(3, v, p=[0.5, 0.3, 0.2]), rng.integers(0, 3, v)
    share, chance = cluster_agreement.shares(voxels, label, others, 4)
    np.testing.assert_allclose(share[:3], chance[:3], atol=0.06)
    assert np.isnan(share[3]).all()
    assert np.isnan(chance[3]).all()


def test_merged_clusters_have_a_table_too():
    voxels, _ = crowd()
    found = clusters.fit(voxels, 4)
    cut = clusters.cut(found, 2)
    others = cut.group[cluster_agreement.across_subjects(voxels, found).label]
    rows = cluster_tables.table(voxels, cut, others)
    assert sum(row.size for row in rows) == len(voxels.voxel)
    assert all(row.agreement > 0.98 for row in rows)


def test_csv_reads_back_and_takes_any_name(tmp_path):
    voxels, _ = crowd()
    voxels = voxels._replace(names=('a,"b"', "<b>é", "c", "d"))
    found = clusters.fit(voxels, 4)
    rows = cluster_tables.table(voxels, found)
    cluster_tables.write_csv(tmp_path / "new" / "c.csv", rows, voxels.names)
    cluster_tables.write_regions_csv(tmp_path / "r.csv", rows)
    with (tmp_path / "new" / "c.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["name"] for line in lines] == list(found.names)
    assert int(lines[1]['voxels a,"b"']) == rows[1].subjects[0]
    assert int(lines[1]["voxels <b>é"]) == rows[1].subjects[1]
    assert float(lines[2]["mean_score"]) == rows[2].mean_score
    assert lines[0]["agreement"] == ""
    with (tmp_path / "r.csv").open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 8
    assert (lines[3]["cluster"], lines[3]["region"]) == ("c02", "PPA")
    assert float(lines[3]["q"]) == rows[1].regions[1].q


def test_clusters_of_other_voxels_are_refused():
    voxels, _ = crowd()
    found = clusters.fit(voxels, 4)
    some = voxels.take(np.arange(100))
    with pytest.raises(errors.InputError, match="of 600 voxels; expected of these 100"):
        cluster_tables.table(some, found)
    with pytest.raises(errors.InputError, match="100 voxels of 1 subjects"):
        cluster_agreement.across_subjects(some, clusters.fit(some, 4))
    with pytest.raises(errors.InputError, match="2 subjects or more"):
        cluster_agreement.across_subjects(voxels.take(voxels.subject < 2), found)
