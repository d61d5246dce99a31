"""Evaluation against a slow loop, and what it leaves on disk."""

import json

import jax
import numpy as np
import pytest
import xarray
from flax import nnx
from scipy import stats

from ubrain_jax import (
    controls,
    crowd,
    evaluate,
    experiments,
    metrics,
    ranks,
    results,
)
from ubrain_jax.maps import report


@pytest.fixture(scope="module")
def run(tiny):
    return experiments.prepare_run(tiny(), jax.devices()[:1])


@pytest.fixture(scope="module")
def workdir(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    evaluate.evaluate(run, run.parts.trainable, str(path), 0)
    return path


def slow_predictions(run, subject, samples):
    """One image and one voxel at a time, from the modules, without chunks."""
    model = nnx.merge(run.parts.graph, run.parts.trainable, run.parts.frozen)
    table = np.asarray(model.table[...])
    out = np.empty((len(samples), subject.num_voxels))
    pictures = crowd.read_pictures(run.stores, subject.image[samples])
    respond = jax.jit(lambda f, e: model.head.respond(f, e, None))
    for m, picture in enumerate(pictures):
        features = model.features(picture[None])[0]
        for v in range(subject.num_voxels):
            row = subject.offset + v
            out[m, v] = respond(features, table[row % 4, row // 4])
    return out


def test_scores_equal_a_slow_loop_with_scipy(run, workdir):
    for subject in run.stores.subjects:
        samples = subject.samples("test")
        predicted = slow_predictions(run, subject, samples)
        measured = crowd.read_responses(subject, samples)
        table = xarray.open_zarr(workdir / "voxels" / f"{subject.name}.zarr")
        want = [
            stats.pearsonr(measured[:, v], predicted[:, v])[0]
            for v in range(subject.num_voxels)
        ]
        np.testing.assert_allclose(table.pearson.values, want, atol=2e-4)
        want = 1 - ((measured - predicted) ** 2).sum(0) / (
            (measured - measured.mean(0, dtype=np.float64)) ** 2
        ).sum(0)
        np.testing.assert_allclose(table.r2.values, want, atol=1e-5)
        ceiling = subject.ncsnr**2 / (subject.ncsnr**2 + 1 / 3)
        np.testing.assert_allclose(table.noise_ceiling.values, ceiling, rtol=1e-5)


def test_chunks_and_batches_do_not_change_predictions(run, tiny):
    one = evaluate.Predictor(run)
    other = run._replace(
        experiment=tiny(evaluate={"batch_images": 3, "chunk_voxels": 7})
    )
    many = evaluate.Predictor(other)
    rows, voxel = np.arange(5), np.arange(2, 40)
    params = run.parts.trainable
    a = one.responses(params, one.features(params, rows), voxel)
    b = many.responses(params, many.features(params, rows), voxel)
    assert a.shape == (5, 38)
    np.testing.assert_allclose(a, b, atol=1e-6)
    # and voxels asked for in another order are the same voxels
    c = one.responses(params, one.features(params, rows), voxel[::-1])
    np.testing.assert_allclose(a, c[:, ::-1], atol=1e-6)


def test_metrics_json_has_the_schema(workdir, run):
    result = json.loads((workdir / "metrics.json").read_text())
    assert set(result) >= {"subjects", "step", "config_sha256", "seconds"}
    for subject in run.stores.subjects:
        s = result["subjects"][subject.name]
        assert s["num_voxels"] == subject.num_voxels
        assert s["num_test_images"] == 4
        for score in ("pearson", "noise_normalised", "r2"):
            assert set(s[score]) >= {"median", "p25", "p75", "mean"}
        found = s["retrieval"]
        assert found["pool"] == 4
        assert set(found) >= {"top1", "top5", "mean_rank", "median_rank"}
        choice = s["two_afc"]
        assert choice["pool"] == 4
        assert 0 <= choice["mean"] <= 1
        assert list(s["controls"]) == ["shuffled_voxels", "mean_pattern", "wrong_image"]
        assert s["controls"]["mean_pattern"]["two_afc"] == 0.5
        assert all(c["pool"] == 4 for c in s["controls"].values())
        sizes = [r["num_voxels"] for r in s["roi"].values()]
        assert list(s["roi"]) == ["first", "second"]
        assert sum(sizes) == subject.num_voxels
    table = report.score_table(result)
    assert "t-subj01" in table
    assert "second" in table


def test_metrics_json_has_intervals_tests_and_the_other_direction(workdir, run):
    result = json.loads((workdir / "metrics.json").read_text())
    for subject in run.stores.subjects:
        s = result["subjects"][subject.name]
        for scores in (s, *s["roi"].values()):
            for name in ("pearson", "noise_normalised", "r2"):
                low, high = scores[name]["ci"]
                assert low <= scores[name]["median"] <= high
            for name in ("explained_variance", "noise_normalised_r2"):
                assert set(scores[name]) >= {"median", "p25", "p75", "undefined"}
            assert 0 <= scores["significant"]["share"] <= 1
        assert s["significant"]["voxels"] == subject.num_voxels
        assert s["significant"]["permutations"] >= 1000
        assert "one-sided" in s["significant"]["test"]
        assert s["bootstrap"]["draws"] == 1000
        assert s["retrieval"]["of"] == "all test pictures of the subject"
        for name in ("retrieval", "retrieval_of_responses"):
            assert s[name]["pool"] == 4
            for k in ("top1", "top5"):
                low, high = s[name]["ci"][k]
                assert 0 <= low <= s[name][k] <= high <= 1
        assert set(s["two_afc"]["ci"]) == {"mean", "reverse_mean"}
        table = xarray.open_zarr(workdir / "voxels" / f"{subject.name}.zarr")
        assert np.isfinite(table.p.values).all()
        assert (table.q.values >= table.p.values).all()
        squared = table.noise_normalised.values * abs(table.noise_normalised.values)
        np.testing.assert_array_equal(table.noise_normalised_r2.values, squared)
        assert (table.explained_variance.values >= table.r2.values).all()
    table = report.score_table(result)
    assert table.count("95 % interval  ") == len(run.stores.subjects)


def test_intervals_and_tests_can_be_left_out(run, tiny, tmp_path):
    settings = tiny(evaluate={"bootstraps": 0, "permutations": 0})
    quick = run._replace(experiment=settings)
    evaluate.evaluate(quick, run.parts.trainable, str(tmp_path), 0)
    text = (tmp_path / "metrics.json").read_text()
    for key in ("ci", "bootstrap", "significant"):
        assert f'"{key}"' not in text
    assert "retrieval_of_responses" in text
    table = xarray.open_zarr(tmp_path / "voxels" / "t-subj01.zarr")
    assert not {"p", "q"} & set(table)


def test_what_each_pattern_found_and_the_settings_are_left_beside_the_scores(
    workdir, run
):
    result = json.loads((workdir / "metrics.json").read_text())
    for subject in run.stores.subjects:
        entry = result["subjects"][subject.name]
        found = ranks.read(workdir, subject.name)
        assert found.image_id == [
            run.stores.image_id[k] for k in subject.image[subject.samples("test")]
        ]
        assert np.mean(found.rank) == entry["retrieval"]["mean_rank"]
        assert np.mean(found.rank == 1) == entry["retrieval"]["top1"]
        for split in ("train", "val"):
            assert entry[f"num_{split}_images"] == len(subject.samples(split))
    about = results.read_about(workdir)
    assert about.settings["head"]["embed_dim"] == 8
    assert about.provenance["crowd fingerprint"] == run.stores.fingerprint
    page = (workdir / "report.html").read_text()
    assert "What was trained on what" in page
    assert "lora, rank 2" in page


def test_constant_voxels_are_undefined_and_counted(run):
    subject = run.stores.subjects[0]
    samples = subject.samples("test")
    measured = crowd.read_responses(subject, samples).copy()
    measured[:, 5] = 0.1
    rng = np.random.default_rng(0)
    predicted = rng.standard_normal(measured.shape).astype(np.float32)
    predicted[:, 9] = 3.0
    table, summary, _ = evaluate.score_subject(subject, samples, measured, predicted)
    assert np.isnan(table.pearson.values[[5, 9]]).all()
    assert summary["pearson"]["undefined"] == 2
    assert summary["r2"]["undefined"] == 1
    assert summary["pearson"]["num"] == subject.num_voxels - 2


def test_shuffled_test_images_score_at_chance():
    """A leak control: predictions of one picture against responses to another."""
    rng = np.random.default_rng(1)
    truth = rng.standard_normal((100, 300)).astype(np.float32)
    predicted = truth + rng.standard_normal(truth.shape).astype(np.float32)
    right = metrics.retrieval(truth, predicted)
    wrong = metrics.retrieval(truth, np.roll(predicted, 1, axis=0))
    assert right.top1 > 0.9
    assert wrong.top1 < 0.06
    assert abs(np.nanmean(metrics.pearson(truth, np.roll(predicted, 1, 0)))) < 0.03


def test_a_control_above_chance_is_a_warning(run, tmp_path, monkeypatch):
    leak = {"two_afc": 0.9, "reverse_two_afc": 0.5, "top1": 0.0, "pool": 50}
    fair = {**leak, "two_afc": 0.5}
    given = iter([{"wrong_image": fair}, {"wrong_image": leak}])
    monkeypatch.setattr(controls, "scores_in", lambda *_: next(given))
    result = evaluate.evaluate(run, run.parts.trainable, str(tmp_path), 0)
    names = [s.name for s in run.stores.subjects]
    [line] = [w for w in result["warnings"] if w.startswith("A control")]
    assert names[1] in line
    assert names[0] not in line
    assert "wrong_image has two_afc 0.900" in line
    assert "pool 50" in line
    assert "wrong_image has two_afc" in (tmp_path / "report.html").read_text()


def test_random_backbone_and_simulated_brains_are_said_everywhere(run, workdir):
    result = json.loads((workdir / "metrics.json").read_text())
    page = (workdir / "report.html").read_text()
    for words in ("random weights", "Simulated subjects"):
        assert any(words in w for w in result["warnings"])
        table = xarray.open_zarr(workdir / "voxels" / "t-subj01.zarr")
        assert any(words in w for w in table.attrs["warnings"])
        assert words in page
