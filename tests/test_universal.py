"""The encoder from Python: the same numbers as the commands, whatever is asked."""

import dataclasses

import jax
import numpy as np
import pytest
import xarray
from PIL import Image

import ubrain_jax
from ubrain_jax import (
    crowd,
    errors,
    evaluate,
    experiments,
    export,
    fit,
    frozen,
    metrics,
    subjects,
    train,
)
from ubrain_jax.datasets import schema

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def run(tiny):
    return experiments.prepare_run(tiny(), ONE)


@pytest.fixture(scope="module")
def workdir(run, tmp_path_factory):
    """A trained, evaluated and exported run of two subjects."""
    folder = str(tmp_path_factory.mktemp("run"))
    state = train.train(run, folder)
    result = evaluate.evaluate(run, state.params, folder, int(state.step))
    export.write(run, folder, result)
    return folder


@pytest.fixture(scope="module")
def enc(workdir):
    return ubrain_jax.UniversalEncoder.load(
        workdir, devices=ONE, batch_images=4, chunk_voxels=16
    )


@pytest.fixture(scope="module")
def images(run):
    return crowd.read_pictures(run.stores, np.arange(11))


def test_predictions_are_those_of_the_evaluation(enc, run, workdir, images):
    trained = frozen.read_encoder(workdir)
    predictor = evaluate.Predictor(run)
    params = {**trained.shared, "table": run.parts.trainable["table"]}
    features = predictor.features(params, np.arange(11))
    expected = predictor.of_embeddings(params, features, trained.embeddings)
    assert enc.subjects == ("t-subj01", "t-subj02")
    for name, columns in zip(enc.subjects, (slice(0, 37), slice(37, 60)), strict=True):
        found = enc.predict(images, subject=name)
        assert found.dims == ("image", "voxel")
        np.testing.assert_allclose(
            found.values, expected[:, columns], rtol=1e-5, atol=1e-6
        )
        assert np.ptp(found.values) > 0


def test_one_picture_at_a_time_gives_the_same(enc, images):
    together = enc.predict(images, subject="t-subj01").values
    alone = [enc.predict(x, subject="t-subj01").values[0] for x in images]
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_features_stand_for_their_pictures(enc, images):
    features = enc.features(images)
    assert features.values.dtype == np.float32
    assert len(features.ids) == len(features.values) == len(images)
    for ask in (enc.predict, enc.attention, enc.mean_attention):
        direct = ask(images, subject="t-subj02", voxels=[3, 1])
        through = ask(features, subject="t-subj02", voxels=[3, 1])
        xarray.testing.assert_allclose(through, direct, rtol=1e-6, atol=1e-6)
    with pytest.raises(errors.InputError, match="pictures themselves"):
        enc.score(features, np.zeros((len(images), 23)), subject="t-subj02")


def test_regions_and_voxels_choose_columns_with_their_coordinates(enc, images):
    every = enc.predict(images[:2], subject="t-subj01")
    first = enc.predict(images[:2], subject="t-subj01", roi="first")
    np.testing.assert_array_equal(first.voxel, np.arange(18))
    np.testing.assert_allclose(first, every[:, :18], rtol=1e-5, atol=1e-6)
    assert first.roi_first.all()
    assert not first.roi_second.any()
    both = enc.predict(images[:2], subject="t-subj01", roi=["second", "first"])
    np.testing.assert_array_equal(both.voxel, np.arange(37))
    some = enc.predict(images[:2], subject="t-subj01", voxels=[30, 2])
    np.testing.assert_allclose(some, every[:, [30, 2]], rtol=1e-5, atol=1e-6)
    mask = np.arange(37) % 5 == 0
    np.testing.assert_array_equal(
        enc.predict(images[:1], subject="t-subj01", roi="first", voxels=mask).voxel,
        [0, 5, 10, 15],
    )
    np.testing.assert_array_equal(every.y, np.arange(37))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"subject": "t-subj1"}, r"no subject 't-subj1'.*t-subj01, t-subj02"),
        ({"roi": "frist"}, r"no region 'frist'.*first, second.*mean first"),
        ({"voxels": [37]}, r"voxel 37 is not there"),
        ({"voxels": [20], "roi": "first"}, r"voxel 20 is not there"),
        ({"voxels": [0.5]}, r"float64.*numbers of voxels"),
        ({"voxels": np.zeros(37, bool)}, r"no voxel is left"),
    ],
)
def test_what_is_not_there_is_refused_by_name(enc, images, given, message):
    with pytest.raises(errors.ConfigError, match=message):
        enc.predict(images[:1], **{"subject": "t-subj01", **given})


def test_programs_are_compiled_once_for_each_shape(enc, images, caplog):
    enc.predict(images, subject="t-subj01")
    enc.predict(images[:3], subject="t-subj02")
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for count in (11, 9, 4, 3):
            enc.predict(images[:count], subject="t-subj01")
            enc.predict(images[:count], subject="t-subj02")
    assert "Compiling" not in caplog.text


def test_attention_sums_to_one_and_its_parts_to_the_prediction(enc, run, images):
    seen = enc.attention(images[:5], subject="t-subj02", voxels=[3, 0, 21])
    assert dict(seen.sizes) == {
        "image": 5,
        "voxel": 3,
        "tap": 2,
        "y": 2,
        "x": 2,
        "channel": 8,
    }
    np.testing.assert_allclose(
        seen.spatial.sum(("y", "x")) + seen.elsewhere, 1, rtol=1e-5
    )
    predicted = enc.predict(images[:5], subject="t-subj02", voxels=[3, 0, 21])
    np.testing.assert_allclose(
        seen.contribution.sum("tap"), predicted, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(seen.share.sum(("tap", "channel")), 1, rtol=1e-5)
    # Against the softmax written out for one voxel and image.
    head = {k: np.asarray(v, float) for k, v in enc._bundle.shared["head"].items()}
    e = enc.subject("t-subj02").embedding[21].astype(float)
    trained = {**enc._bundle.shared, "table": run.parts.trainable["table"]}
    features = evaluate.Predictor(run).features(trained, np.arange(5))[4].astype(float)
    for tap in range(2):
        q = e @ head["query_kernel"][tap] + head["query_bias"][tap]
        k = features[tap] @ head["key_kernel"][tap] + head["position"]
        weights = np.exp(k @ q - (k @ q).max())
        weights /= weights.sum()
        np.testing.assert_allclose(
            seen.spatial[4, 2, tap].values.ravel(), weights, rtol=1e-4
        )
        np.testing.assert_allclose(
            seen.functional[2, tap], e @ head["functional"][tap], rtol=1e-4, atol=1e-8
        )


def test_mean_attention_is_the_mean_over_pictures(enc, images):
    chosen = {"subject": "t-subj02", "voxels": [3, 0, 21]}
    every, mean = enc.attention(images, **chosen), enc.mean_attention(images, **chosen)
    assert mean.attrs["num_images"] == 11
    for name in ("spatial", "elsewhere", "contribution"):
        np.testing.assert_allclose(
            mean[name], every[name].mean("image"), rtol=1e-5, atol=1e-6
        )
    for k in range(3):
        np.testing.assert_allclose(
            mean.covariance[k],
            np.cov(every.contribution[:, k].T, ddof=0),
            rtol=1e-3,
            atol=1e-6,
        )
    np.testing.assert_allclose(mean.share, every.share.sum("channel"), rtol=1e-5)
    np.testing.assert_allclose(
        mean.covariance.sum(("tap", "other_tap")),
        enc.predict(images, **chosen).values.var(0),
        rtol=1e-3,
        atol=1e-6,
    )


def test_mean_attention_of_one_picture_is_refused(enc, images):
    with pytest.raises(errors.InputError, match=r"1 picture.*2 or more"):
        enc.mean_attention(images[0], subject="t-subj01")


def test_a_head_without_positions_and_functional_attention_is_loaded_and_looks(
    tiny, images, tmp_path
):
    settings = tiny(
        head={"position": False, "functional": "shared"},
        train={"steps": 1},
        evaluate={"bootstraps": 0, "permutations": 0, "report_queries": 0},
    )
    plain = experiments.prepare_run(settings, ONE)
    state = train.train(plain, str(tmp_path))
    result = evaluate.evaluate(plain, state.params, str(tmp_path), 1)
    export.write(plain, str(tmp_path), result)
    enc = ubrain_jax.UniversalEncoder.load(str(tmp_path), devices=ONE, batch_images=4)
    seen = enc.attention(images[:3], subject="t-subj02", voxels=[3, 0])
    weights = state.params["head"]["functional"]
    for voxel in range(2):
        np.testing.assert_array_equal(seen.functional[voxel], weights)
    np.testing.assert_allclose(
        seen.contribution.sum("tap"),
        enc.predict(images[:3], subject="t-subj02", voxels=[3, 0]),
        rtol=1e-5,
        atol=1e-6,
    )
    assert "position" not in enc._bundle.shared["head"]


def test_scores_are_those_of_the_metrics_and_seen_pictures_are_counted(
    enc, run, images
):
    [subject, _] = run.stores.subjects
    test = subject.samples("test")
    shown = crowd.read_pictures(run.stores, subject.image[test])
    measured = crowd.read_responses(subject, test)
    predicted = enc.predict(shown, subject="t-subj01").values
    for metric, expected in (
        ("r2", metrics.r2(measured, predicted)),
        ("pearson", metrics.pearson(measured, predicted)),
    ):
        score = enc.score(shown, measured, subject="t-subj01", metric=metric)
        np.testing.assert_array_equal(score.values, expected)
        assert score.attrs["seen_images"] == 0
    normalised = enc.score(
        shown, measured, subject="t-subj01", metric="noise_normalised", repeats=3
    )
    ceiling = metrics.noise_ceiling(subject.ncsnr, np.full(len(test), 3))
    np.testing.assert_array_equal(
        normalised.values, metrics.noise_normalised(expected, ceiling)
    )
    known = subject.samples("train")[:6]
    with pytest.warns(UserWarning, match="6 of 6 pictures shaped the weights"):
        enc.score(
            crowd.read_pictures(run.stores, subject.image[known]),
            crowd.read_responses(subject, known),
            subject="t-subj01",
        )
    with pytest.raises(errors.InputError, match=r"shape \(37, 4\).*\(4, 37\)"):
        enc.score(shown, measured.T, subject="t-subj01")


def test_bundle_comes_back_bit_for_bit(enc, images, tmp_path):
    enc.save(tmp_path / "a")
    again = ubrain_jax.UniversalEncoder.load(
        tmp_path / "a", devices=ONE, batch_images=4, chunk_voxels=16
    )
    for name in enc.subjects:
        for ours, theirs in zip(enc.subject(name), again.subject(name), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(
            enc.predict(images, subject=name), again.predict(images, subject=name)
        )
    assert again.provenance == enc.provenance
    ours, theirs = enc._bundle, again._bundle
    assert (ours.sha256, ours.seen) == (theirs.sha256, theirs.seen)
    assert ours.backbone == theirs.backbone
    jax.tree.map(np.testing.assert_array_equal, ours.shared, theirs.shared)


@pytest.mark.parametrize("init", ["random", "twin"])
def test_fitting_from_arrays_is_the_transfer_command(
    enc, workdir, tmp_path, make_dataset, init
):
    store = str(tmp_path / "new.zarr")
    crowd.write(store, make_dataset(3, 40, 12, seed=3), image_px=28)
    settings = fit.Settings(init=init, steps=12, eval_every_steps=4, seed=5)
    trained = frozen.read_encoder(workdir)
    ready = subjects.make_ready(
        trained, store, "t-subj03", num_images=20, seed=5, devices=ONE
    )
    expected, _ = subjects.fit_subject(ready, settings, 20)

    [rows] = crowd.with_images(ready.run.stores, 20, 5).subjects
    used = np.flatnonzero(np.isin(rows.split, ("train", "val")))
    mine = ubrain_jax.UniversalEncoder.load(workdir, devices=ONE)
    told = mine.fit_subject(
        crowd.read_pictures(ready.run.stores, rows.image[used]),
        crowd.read_responses(rows, used),
        name="t-subj03",
        image_id=[ready.run.stores.image_id[i] for i in rows.image[used]],
        init=init,
        steps=12,
        eval_every_steps=4,
        seed=5,
    )
    found = mine.subject("t-subj03")
    np.testing.assert_allclose(
        found.embedding, expected.embedding, rtol=1e-4, atol=1e-6
    )
    assert told["step"] == expected.provenance["step"]
    assert told["images"] == {"train": 17, "val": 3, "test": 0}
    assert "t-subj03" in mine.subjects
    mine.save(tmp_path / "with")
    again = ubrain_jax.UniversalEncoder.load(tmp_path / "with")
    np.testing.assert_array_equal(again.subject("t-subj03").embedding, found.embedding)
    assert again._bundle.trained_with == ("t-subj01", "t-subj02")


def test_fitted_pictures_count_as_seen_and_a_name_is_given_once(enc, tmp_path):
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 256, (8, 28, 28, 3), np.uint8)
    measured = rng.standard_normal((8, 5)).astype(np.float32)
    mine = ubrain_jax.UniversalEncoder(enc._bundle, devices=ONE)
    mine.fit_subject(
        shown,
        measured,
        name="lab-ann",
        roi={"V1": np.arange(5) < 2},
        position=np.zeros((5, 3), np.int32),
        steps=2,
    )
    assert mine.predict(shown, subject="lab-ann", roi="V1").shape == (8, 2)
    with pytest.warns(UserWarning, match="8 of 8 pictures"):
        mine.score(shown, measured, subject="lab-ann")
    with pytest.raises(errors.ConfigError, match="'lab-ann' is taken"):
        mine.fit_subject(shown, measured, name="lab-ann")
    with pytest.raises(errors.ConfigError, match=r"stepps.*mean steps"):
        mine.fit_subject(shown, measured, name="lab-bob", stepps=3)
    for raw in (50 * measured, measured + 400):
        with pytest.raises(errors.InputError, match="expected z-scores"):
            mine.fit_subject(shown, raw, name="lab-bob")
    twice = shown[[0, 1, 2, 3, 0, 5, 6, 7]]
    with pytest.raises(errors.InputError, match="1 pictures occur again"):
        mine.fit_subject(twice, measured, name="lab-bob")
    measured[3, 2] = np.nan
    with pytest.raises(errors.InputError, match="sample 3 voxel 2"):
        mine.fit_subject(shown, measured, name="lab-bob")
    assert "lab-ann" not in enc.subjects


def test_a_subject_of_the_transfer_command_joins(enc, workdir, tmp_path):
    own = enc.subject("t-subj01")._replace(name="t-subj09")
    path = tmp_path / "t-subj09.safetensors"
    from ubrain_jax.model import bundle

    bundle.write_subject(path, own, enc.sha256)
    mine = ubrain_jax.UniversalEncoder(enc._bundle, devices=ONE)
    assert mine.add_subject(path) == "t-subj09"
    with pytest.raises(errors.ConfigError, match="taken"):
        mine.add_subject(path)


def test_another_backbone_is_refused(enc, tmp_path):
    other = dataclasses.replace(enc.config.backbone, name="", weights="bundled")
    network = experiments.load_network(dataclasses.replace(other, image_px=28))
    assert network.provenance.sha256
    mine = ubrain_jax.UniversalEncoder(enc._bundle, backbone="bundled", devices=ONE)
    with pytest.raises((errors.InputError, errors.ConfigError), match="bundled"):
        mine.predict(np.zeros((1, 28, 28, 3), np.uint8), subject="t-subj01")


def test_pictures_of_every_form_are_one_picture(enc, tmp_path):
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 256, (28, 28, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", picture[None])
    alpha = np.dstack([picture, np.full((28, 28), 255, np.uint8)])
    (tmp_path / "folder").mkdir()
    Image.fromarray(picture).save(tmp_path / "folder" / "b.png")
    forms = [
        picture,
        picture[None],
        [picture],
        picture / np.float32(255),
        alpha,
        Image.fromarray(picture),
        [Image.fromarray(alpha, "RGBA")],
        tmp_path / "a.png",
        [str(tmp_path / "a.png")],
        str(tmp_path / "a.npy"),
        tmp_path / "folder",
    ]
    expected = enc.predict(picture, subject="t-subj01").values
    for form in forms:
        found = enc.predict(form, subject="t-subj01")
        np.testing.assert_array_equal(found.values, expected)
    assert enc.predict(tmp_path / "folder", subject="t-subj01").image == ["b.png"]


def test_voxels_tell_what_they_are(enc):
    told = enc.voxels("t-subj02")
    assert dict(told.sizes) == {"voxel": 23, "axis": 3, "roi_name": 2, "embed": 8}
    assert told.roi.sel(roi_name="first").sum() == 11
    assert told.attrs["space"] == "none"


def test_schema_of_subjects_is_that_of_stores():
    assert {"position", "roi", "ncsnr", "attrs"} <= set(schema.Subject._fields)
