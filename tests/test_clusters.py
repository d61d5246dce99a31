"""Clusters of embeddings: found, kept, merged, chosen, written, refused."""

import json

import numpy as np
import pytest
import safetensors.numpy
import scipy.cluster.hierarchy
import scipy.special
import scipy.stats
from sklearn import metrics

from ubrain_jax import errors
from ubrain_jax.atlas import cluster_choice, cluster_files, clusters, pooled
from ubrain_jax.model import attached


def planted(k=5, per=60, e=16, noise=0.1, subjects=2, seed=0):
    """Voxels around k random directions, of any length, and the truth."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((k, e))
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    sizes = per + 10 * np.arange(k)
    truth = rng.permutation(np.repeat(np.arange(k), sizes))
    v = len(truth)
    embedding = centre[truth] + noise * rng.standard_normal((v, e))
    embedding *= rng.uniform(0.1, 5, (v, 1))
    return of(embedding, np.sort(rng.integers(0, subjects, v))), truth, centre


def of(embedding, subject=None):
    v = len(embedding)
    subject = np.zeros(v, np.int32) if subject is None else subject.astype(np.int32)
    return pooled.Pooled(
        tuple(f"s{k}" for k in range(subject.max() + 1)),
        subject,
        np.arange(v),
        np.asarray(embedding, np.float32),
        np.zeros((v, 3), np.int32),
        np.full(v, -1, np.int8),
        np.zeros((v, 0), bool),
        (),
        np.full(v, np.nan, np.float32),
        np.full(v, np.nan, np.float32),
        "",
    )


@pytest.mark.parametrize("method", clusters.METHODS)
def test_planted_directions_are_found_whatever_the_length(method):
    voxels, truth, centre = planted()
    found = clusters.fit(voxels, 5, method=method)
    assert metrics.adjusted_rand_score(truth, found.label) == 1
    # The largest first: planted sizes rise.
    np.testing.assert_array_equal(found.label, 4 - truth)
    assert np.all(np.sum(found.centre * centre[::-1], 1) > 0.98)
    np.testing.assert_allclose(np.linalg.norm(found.centre, axis=1), 1, rtol=1e-5)
    assert found.names == ("c01", "c02", "c03", "c04", "c05")


def test_labels_are_those_of_the_nearest_centre():
    voxels, _, _ = planted(noise=0.5)
    found = clusters.fit(voxels, 7)
    x = voxels.embedding.astype(np.float64)
    cosine = [
        [v @ c / np.linalg.norm(v) for c in found.centre.astype(np.float64)] for v in x
    ]
    np.testing.assert_array_equal(found.label, np.argmax(cosine, 1))
    np.testing.assert_array_equal(
        clusters.assign(found, 3 * voxels.embedding[:9]), found.label[:9]
    )


def test_a_mixture_gives_the_likeliest_component():
    voxels, _, _ = planted(noise=0.4)
    found = clusters.fit(voxels, 4, method="mixture")
    x = clusters.unit(voxels.embedding).astype(np.float64)
    log = np.stack(
        [
            np.log(w) + scipy.stats.norm.logpdf(x, m, np.sqrt(s)).sum(1)
            for w, m, s in zip(*found.mixture, strict=True)
        ],
        1,
    )
    np.testing.assert_array_equal(found.label, log.argmax(1))
    likelihood = clusters.model_of(found.mixture).score(x)
    expected = np.mean(scipy.special.logsumexp(log, 1))
    assert likelihood == pytest.approx(expected, rel=1e-9)


def test_same_seed_same_clusters():
    voxels, _, _ = planted(noise=0.6)
    first, again = clusters.fit(voxels, 6, seed=3), clusters.fit(voxels, 6, seed=3)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_many_voxels_start_from_batches(monkeypatch):
    voxels, truth, _ = planted(k=6, per=300, noise=0.15)
    whole = clusters.fit(voxels, 6)
    monkeypatch.setattr(clusters, "MOST", 500)
    monkeypatch.setattr(clusters, "_CHUNK", 100)
    for method in clusters.METHODS:
        found = clusters.fit(voxels, 6, method=method)
        assert metrics.adjusted_rand_score(truth, found.label) > 0.99
        assert metrics.adjusted_rand_score(whole.label, found.label) > 0.99


def shared_of(functional):
    return {"head": {"functional": functional}}


def test_functional_matrix_keeps_products_of_functional_attention():
    rng = np.random.default_rng(0)
    functional = rng.standard_normal((3, 8, 20))  # (L, E, C)
    e = rng.standard_normal((5, 8))
    w = np.einsum("ve,lec->vlc", e, functional).reshape(5, -1)
    seen = e @ clusters.functional_matrix(shared_of(functional))
    np.testing.assert_allclose(seen @ seen.T, w @ w.T, rtol=1e-4)
    with pytest.raises(errors.InputError, match="share their functional attention"):
        clusters.functional_matrix(shared_of(rng.standard_normal((3, 20))))


def test_clusters_of_function_do_not_see_where_a_voxel_looks():
    voxels, truth, _ = planted(k=3, e=16, noise=0.02)
    rng = np.random.default_rng(1)
    # Half of the numbers say what for, the other half, which are larger, where.
    where = 4 * np.eye(16)[rng.integers(0, 4, len(truth))]
    length = np.linalg.norm(voxels.embedding, axis=1, keepdims=True)
    both = np.concatenate([voxels.embedding / length, where], 1)
    functional = np.zeros((2, 32, 16))
    functional[:, :16] = np.eye(16)
    voxels = voxels._replace(embedding=both.astype(np.float32))
    found = clusters.fit(voxels, 3, of="function", shared=shared_of(functional))
    assert metrics.adjusted_rand_score(truth, found.label) == 1
    np.testing.assert_array_equal(clusters.assign(found, both), found.label)
    plain = clusters.fit(voxels, 3)
    assert metrics.adjusted_rand_score(truth, plain.label) < 0.5


def test_a_hierarchy_merges_the_nearest():
    rng = np.random.default_rng(2)
    pairs = np.eye(3, 12).repeat(2, 0) + 0.25 * np.eye(6, 12, 3)
    truth = np.repeat(np.arange(6), 40)
    voxels = of(pairs[truth] + 0.02 * rng.standard_normal((240, 12)))
    found = clusters.fit(voxels, 6)
    cut = clusters.cut(found, 3)
    assert metrics.adjusted_rand_score(truth // 2, cut.label) == 1
    np.testing.assert_array_equal(cut.group[found.label], cut.label)
    assert sorted("+".join(cut.names).split("+")) == sorted(found.names)
    assert [len(n.split("+")) for n in cut.names] == [2, 2, 2]
    assert clusters.cut(found, 6).names == found.names
    assert set(clusters.cut(found, 1).label) == {0}
    assert clusters.cut(clusters.fit(voxels, 1), 1).names == ("c01",)
    with pytest.raises(errors.ConfigError, match=r"7 groups of 6 clusters"):
        clusters.cut(found, 7)


def test_a_hierarchy_follows_continua_whose_ends_are_opposite():
    rng = np.random.default_rng(4)
    # Four kinds, each all directions of a plane: k-means cuts them into sectors.
    plane = np.linalg.qr(rng.standard_normal((16, 8)))[0].T.reshape(4, 2, 16)
    truth = np.repeat(np.arange(4), 150)
    angle = rng.uniform(0, 2 * np.pi, 600)
    at = np.stack([np.cos(angle), np.sin(angle)], 1)
    embedding = np.einsum("va,vae->ve", at, plane[truth])
    voxels = of(embedding + 0.05 * rng.standard_normal((600, 16)))
    found = clusters.fit(voxels, 20)
    cut = clusters.cut(found, 4)
    assert metrics.adjusted_rand_score(truth, cut.label) == 1
    tree = scipy.cluster.hierarchy.linkage(found.centre, "average", metric="cosine")
    group = scipy.cluster.hierarchy.cut_tree(tree, 4)[:, 0]
    assert metrics.adjusted_rand_score(truth, group[found.label]) < 0.9


def test_names_are_kept_and_none_is_given_twice():
    voxels, truth, _ = planted(k=5)
    first = clusters.fit(voxels, 5)
    kept = voxels.take(truth != 4)  # the largest, c01, is gone
    second = clusters.rename(clusters.fit(kept, 4, seed=1), first)
    assert second.names == ("c02", "c03", "c04", "c05")
    other, _, _ = planted(k=2, per=200, seed=9)
    joined = of(np.concatenate([kept.embedding, other.embedding]))
    third = clusters.rename(clusters.fit(joined, 6), second)
    assert third.names == ("c06", "c07", "c02", "c03", "c04", "c05")
    assert third.used == 7
    # c06 and c07 are gone again: their names are not given to others.
    fourth = clusters.rename(clusters.fit(kept, 4), third)
    assert fourth.names == second.names
    fifth = clusters.rename(clusters.fit(other, 2), fourth)
    assert fifth.names == ("c08", "c09")


def test_names_of_another_kind_of_clusters_are_not_taken():
    voxels, _, _ = planted(e=8)
    shared = shared_of(np.random.default_rng(0).standard_normal((1, 8, 9)))
    a = clusters.fit(voxels, 3)
    b = clusters.fit(voxels, 3, of="function", shared=shared)
    with pytest.raises(errors.InputError, match="one kind and one encoder"):
        clusters.rename(a, b)


@pytest.mark.parametrize("method", clusters.METHODS)
def test_the_planted_number_is_chosen(method):
    voxels, _, _ = planted(k=6, per=80, noise=0.12)
    choice = cluster_choice.choose_k(
        voxels, [3, 4, 6, 9, 14], repeats=3, method=method, most=400
    )
    assert choice.k == 6
    assert choice.voxels == 400
    assert "6 clusters" in choice.reason
    by_k = {c.k: c for c in choice.candidates}
    assert by_k[6].stability > 0.98 > by_k[9].stability
    assert by_k[6].likelihood > by_k[3].likelihood


def test_no_number_of_a_continuum_is_called_stable():
    rng = np.random.default_rng(0)
    voxels = of(rng.standard_normal((600, 12)))
    choice = cluster_choice.choose_k(voxels, [4, 8, 16], repeats=2)
    assert "No number is stable" in choice.reason
    assert max(c.stability for c in choice.candidates) < 0.5


def test_the_likelihood_of_k_means_is_that_of_round_components():
    rng = np.random.default_rng(0)
    x = clusters.unit(rng.standard_normal((50, 5)))
    label = rng.integers(0, 3, 50)
    found = cluster_choice.of_labels(x, label, 3)
    residual = x - np.stack([x[label == c].mean(0) for c in range(3)])[label]
    variance = np.mean(np.asarray(residual, np.float64) ** 2)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-5)
    np.testing.assert_allclose(found.weight, np.bincount(label) / 50)


@pytest.mark.parametrize("method", clusters.METHODS)
def test_a_file_holds_all_of_it(tmp_path, method):
    voxels, _, _ = planted(e=8)
    shared = shared_of(np.random.default_rng(0).standard_normal((2, 8, 9)))
    found = clusters.fit(voxels, 4, of="function", shared=shared, method=method)
    found = found._replace(names=("c01", "ümlaut <b>", "c09", "c04"), used=12)
    path = tmp_path / "new" / "clusters.safetensors"
    cluster_files.write(path, found, "a" * 64)
    again = cluster_files.read(path, "a" * 64)
    assert again.names == found.names
    assert again.used == 12
    np.testing.assert_array_equal(again.label, found.label)
    np.testing.assert_array_equal(clusters.assign(again, voxels.embedding), found.label)
    np.testing.assert_array_equal(
        clusters.cut(again, 2).group, clusters.cut(found, 2).group
    )
    with pytest.raises(errors.InputError, match="clusters of encoder aaaa"):
        cluster_files.read(path, "b" * 64)
    with pytest.raises(errors.MissingInputError, match="no such file"):
        cluster_files.read(tmp_path / "other", "a" * 64)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    cluster_files.write(path, clusters.fit(planted()[0], 3), "a")
    content = path.read_bytes()
    for k in (len(content) - 4, len(content) // 2):
        path.write_bytes(content[:k] + bytes([content[k] ^ 1]) + content[k + 1 :])
        with pytest.raises(errors.InputError, match=r"sha256 differ|cannot be read"):
            cluster_files.read(path, "a")
    path.write_bytes(content[:50])
    with pytest.raises(errors.InputError, match="cannot be read"):
        cluster_files.read(path, "a")
    path.write_bytes(safetensors.numpy.save({"x": np.zeros(2)}, {"format": "pt"}))
    with pytest.raises(errors.InputError, match="format and version"):
        cluster_files.read(path, "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("a", "b")}, "tensors"),
        ({"label": np.array([0, 5])}, "label: up to 5"),
        ({"centre": np.full((3, 16), np.nan)}, "not finite"),
        ({"of": "function"}, "tensors"),
        ({"of": "taste"}, "tensors"),
        ({"method": "mixture"}, "tensors"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, change, message):
    found = clusters.fit(planted()[0], 3)._replace(**change)
    cluster_files.write(tmp_path / "c", found, "a")
    with pytest.raises(errors.InputError, match=message):
        cluster_files.read(tmp_path / "c", "a")


def test_a_header_without_its_keys_is_refused(tmp_path):
    cluster_files.write(tmp_path / "c", clusters.fit(planted()[0], 3), "a")
    tensors = safetensors.numpy.load_file(tmp_path / "c")
    for text in ("[]", json.dumps({"names": 3}), "{"):
        digest = attached._content(tensors, text)
        header = {
            "format": "ubrain-clusters",
            "version": "1",
            "encoder_sha256": "a",
            "clusters": text,
            "sha256": digest,
        }
        (tmp_path / "d").write_bytes(safetensors.numpy.save(tensors, header))
        with pytest.raises(errors.InputError, match="cannot be read"):
            cluster_files.read(tmp_path / "d", "a")


def test_embeddings_without_a_direction_are_refused():
    voxels, _, _ = planted()
    for value, message in (
        (np.nan, "1 of .* not finite"),
        (0.0, "1 of .* 0 in length"),
    ):
        bad = voxels.embedding.copy()
        bad[7] = value
        with pytest.raises(errors.InputError, match=f"row 7: {message}"):
            clusters.fit(voxels._replace(embedding=bad), 3)
    bad = voxels.embedding.copy()
    bad[3, 2] = np.inf
    with pytest.raises(errors.InputError, match="row 3: 1 of"):
        clusters.fit(voxels._replace(embedding=bad), 3)
    found = clusters.fit(voxels, 3)
    with pytest.raises(errors.InputError, match="15 numbers each"):
        clusters.assign(found, voxels.embedding[:, :15])
    with pytest.raises(errors.InputError, match=r"shape \(16,\)"):
        clusters.assign(found, voxels.embedding[0])


def test_too_few_voxels_are_refused():
    voxels, _, _ = planted()
    some = voxels.take(np.arange(6))
    for k in (7, 0):
        with pytest.raises(errors.ConfigError, match=f"{k} clusters of 6 voxels"):
            clusters.fit(some, k)
    with pytest.raises(errors.ConfigError, match=r"numbers in 2..3"):
        cluster_choice.choose_k(some)
    with pytest.raises(errors.ConfigError, match=r"numbers in 2..3"):
        cluster_choice.choose_k(some, [2, 4])
    alike = of(np.ones((40, 4)))
    with pytest.raises(errors.InputError, match="fewer than 2 different directions"):
        clusters.fit(alike, 2)
    assert clusters.fit(alike, 1).label.tolist() == [0] * 40


def test_unknown_choices_are_refused():
    voxels, _, _ = planted()
    with pytest.raises(errors.ConfigError, match="method: 'ward'"):
        clusters.fit(voxels, 3, method="ward")
    with pytest.raises(errors.ConfigError, match="without shared weights"):
        clusters.fit(voxels, 3, of="function")
    with pytest.raises(errors.ConfigError, match="'taste'"):
        clusters.fit(voxels, 3, of="taste")
