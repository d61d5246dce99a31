"""A new subject: learns, leaves the encoder alone, and is refused where it must be."""

import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ubrain_jax import (
    checkpoint,
    config,
    crowd,
    errors,
    evaluate,
    experiments,
    fit,
    frozen,
    losses,
    metrics,
    subjects,
    train,
)
from ubrain_jax.model import encoder

NEW = "t-subj03"


@pytest.fixture(scope="module")
def encoder_dir(tiny, tmp_path_factory):
    """A run of two subjects, trained for six steps."""
    workdir = str(tmp_path_factory.mktemp("encoder"))
    run = experiments.prepare_run(tiny(), jax.devices()[:1])
    train.train(run, workdir)
    return workdir


@pytest.fixture(scope="module")
def trained(encoder_dir):
    return frozen.read_encoder(encoder_dir)


@pytest.fixture(scope="module")
def new_store(tmp_path_factory, make_dataset):
    """Three subjects with other pictures of their own; the third is new."""
    path = str(tmp_path_factory.mktemp("new") / "new.zarr")
    dataset = make_dataset(num_subjects=3, num_own=40, num_shared=12, seed=3)
    crowd.write(path, dataset, image_px=28)
    return path


@pytest.fixture(scope="module")
def ready(trained, new_store):
    return subjects.make_ready(trained, new_store, NEW, devices=jax.devices()[:1])


def tree_of(folder) -> dict[str, str]:
    root = pathlib.Path(folder)
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def planted(ready, scale=1.0, noise=0.0, seed=0):
    """Features of train and val pictures, responses of secret embeddings to them."""
    [subject] = ready.run.stores.subjects
    rng = np.random.default_rng(seed)
    shape = (subject.num_voxels, ready.trained.embeddings.shape[1])
    secret = scale * rng.standard_normal(shape).astype(np.float32)
    places = {
        s: np.searchsorted(ready.rows, subject.image[subject.samples(s)])
        for s in ("train", "val")
    }
    pictures = {s: ready.features[k] for s, k in places.items()}
    clean = {
        s: ready.predictor.of_embeddings(ready.params, f, secret)
        for s, f in pictures.items()
    }
    mean, sd = clean["train"].mean(0), clean["train"].std(0)
    responses = {
        s: ((c - mean) / sd + noise * rng.standard_normal(c.shape)).astype(np.float32)
        for s, c in clean.items()
    }
    return secret, pictures, responses


# ---------------------------------------------------------------- reading


def test_weights_read_alone_are_those_of_the_checkpoint(tiny, encoder_dir, trained):
    run = experiments.prepare_run(tiny(), jax.devices()[:1])
    from ubrain_jax import optim

    optimiser = optim.make(run.experiment.optim, 6)
    manager, state, _ = train.restored(run, encoder_dir, optimiser, 3)
    manager.close()
    table = np.asarray(state.params["table"])
    for v in range(60):
        np.testing.assert_array_equal(trained.embeddings[v], table[v % 4, v // 4])
    theirs = jax.tree_util.tree_leaves_with_path(trained.shared)
    ours = {
        jax.tree_util.keystr(p): a
        for p, a in jax.tree_util.tree_leaves_with_path(state.params)
    }
    assert len(theirs) == len(ours) - 1
    for path, array in theirs:
        np.testing.assert_array_equal(array, ours[jax.tree_util.keystr(path)])
    assert trained.step == 6
    assert trained.subjects == {"t-subj01": 37, "t-subj02": 23}


def test_run_without_checkpoints_is_no_encoder(tmp_path):
    with pytest.raises(errors.MissingInputError, match="no checkpoint"):
        frozen.read_encoder(str(tmp_path))


def test_table_and_rows_are_inverse():
    rows = np.arange(22.0).reshape(11, 2)
    table = encoder.table_of_rows(rows, 4)
    assert table.shape == (4, 3, 2)
    np.testing.assert_array_equal(encoder.rows_of_table(table, 11), rows)
    np.testing.assert_array_equal(table[3, 2], 0)


# ---------------------------------------------------------------- the step


def test_step_is_adam_on_the_gradient_of_the_loss_over_voxels_that_count(ready):
    """Against the head itself, one picture and one voxel at a time."""
    settings = fit.Settings(learning_rate=0.01, init="twin", pull=0.0)
    head = dataclasses.replace(ready.run.experiment.head, dropout=0.0)
    experiment = dataclasses.replace(ready.run.experiment, head=head)
    run = experiments.prepare_run(experiment, jax.devices()[:1])
    shared = {k: v for k, v in ready.params.items() if k != "table"}
    table = jnp.asarray(np.random.default_rng(1).standard_normal((4, 13, 8)), "f4")
    response = np.random.default_rng(2).standard_normal((3, 50)).astype(np.float32)
    features = ready.features[:3]
    pull = np.float32(0.37)
    start = table * 0.5
    some = [0, 1, 2, 3, 17, 30, 46, 49]
    used = np.isin(np.arange(50), some).astype(np.float32)

    def slow(table):
        model = nnx.merge(run.parts.graph, {**shared, "table": table}, run.parts.frozen)
        total = 0.0
        for image in range(3):
            predicted = jnp.stack(
                [
                    model.head.respond(features[image], table[v % 4, v // 4], None)
                    for v in some
                ]
            )
            measured = response[image][np.array(some)]
            total += losses.encoder_loss(predicted, measured, np.ones(8), 0.1)
        far = sum(
            ((table[v % 4, v // 4] - start[v % 4, v // 4]) ** 2).mean() for v in some
        )
        return total / 3 + pull * far / 8

    value, gradient = jax.value_and_grad(slow)(table)
    adam = optax.adam(0.01)
    updates, _ = adam.update(gradient, adam.init(table))
    expected = np.asarray(table + updates)

    batch = fit.Batch(
        features,
        fit._arrange(response, 4),
        fit._arrange(used[None], 4)[0],
        None,
    )
    state = fit.State(jnp.zeros((), jnp.int32), table + 0, adam.init(table))
    step = fit.make_step(run, settings)
    fixed = (shared, run.parts.frozen)
    state, loss = step(state, start, fixed, pull, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    np.testing.assert_allclose(state.table, expected, atol=1e-5)
    # Where no voxel counts, nothing moves.
    np.testing.assert_array_equal(state.table[2:, 12], table[2:, 12])
    np.testing.assert_array_equal(state.table[0, 1], table[0, 1])


def test_pull_holds_few_pictures_and_lets_many_go(ready):
    """Responses that the twins cannot explain: ten pictures stay nearer than all."""
    _, pictures, responses = planted(ready, seed=4)
    start = np.asarray(ready.params["table"])
    moved = []
    for count in (10, 33):
        few = {
            s: {"train": x["train"][:count], "val": x["val"][:0]}
            for s, x in (("pictures", pictures), ("responses", responses))
        }
        settings = fit.Settings(init="twin", steps=60, learning_rate=0.02, pull=30.0)
        fitted = fit.fit(
            ready.run, ready.predictor, ready.params, few["pictures"],
            few["responses"], settings, quiet=True,
        )  # fmt: skip
        moved.append(np.square(fitted.table - start).mean())
    assert moved[0] < moved[1] / 2
    assert fit.pull_weight(fit.Settings(init="random", pull=30.0), 10) == 0


def test_sampled_voxels_alone_move_at_first(ready):
    settings = fit.Settings(steps=1, voxels_per_step=8, eval_every_steps=1)
    _, pictures, responses = planted(ready)
    none = {"val": responses["val"][:0], "train": responses["train"]}
    fitted = fit.fit(
        ready.run,
        ready.predictor,
        ready.params,
        {"train": pictures["train"], "val": pictures["val"][:0]},
        none,
        settings,
        quiet=True,
    )
    moved = (fitted.table != np.asarray(ready.params["table"])).any(-1)
    assert moved.sum(1).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("voxels", [0, 24])
def test_batches_picked_on_the_devices_are_those_of_the_host(ready, voxels):
    _, pictures, responses = planted(ready)
    settings = fit.Settings(steps=7, voxels_per_step=voxels, eval_every_steps=3)
    host, device = (
        fit.fit(
            *(ready.run, ready.predictor, ready.params, pictures, responses, settings),
            on_device=on_device,
            quiet=True,
        )
        for on_device in (False, True)
    )
    np.testing.assert_array_equal(host.table, device.table)
    assert host.log == device.log


def test_every_epoch_shows_every_picture_once():
    rows = [fit._pictures_of_step(5, step, 8, 12) for step in range(6)]
    seen = np.concatenate(rows).reshape(4, 12)
    assert (np.sort(seen, 1) == np.arange(12)).all()
    assert len({tuple(epoch) for epoch in seen.tolist()}) == 4
    np.testing.assert_array_equal(rows[3], fit._pictures_of_step(5, 3, 8, 12))


def test_voxels_of_a_step_depend_on_memory(ready, monkeypatch):
    assert fit.voxels_that_fit(ready.run, 32, 0) == 50
    assert fit.voxels_that_fit(ready.run, 32, 24) == 24
    monkeypatch.setattr(frozen, "host_memory", lambda: 1_000_000)
    small = fit.voxels_that_fit(ready.run, 32, 0)
    assert small < 50
    assert small % 4 == 0


# ---------------------------------------------------------------- learning


def test_random_start_learns_planted_embeddings(ready):
    _, pictures, responses = planted(ready)
    settings = fit.Settings(
        steps=300, learning_rate=0.02, eval_every_steps=50, patience=9
    )
    start = {**ready.params}
    fitted = fit.fit(
        ready.run, ready.predictor, start, pictures, responses, settings, quiet=True
    )
    rows = encoder.rows_of_table(fitted.table, 50)
    predicted = ready.predictor.of_embeddings(ready.params, pictures["val"], rows)
    r = metrics.pearson(responses["val"], predicted)
    assert np.median(r) > 0.7
    assert fitted.score == pytest.approx(float(np.nan_to_num(r).mean()), abs=1e-5)
    assert [line["step"] for line in fitted.log][:2] == [50, 100]


def test_twin_start_finds_planted_twins_and_keeps_them(ready):
    """New voxels that are copies of old ones start right and are not made worse."""
    [subject] = ready.run.stores.subjects
    some = np.random.default_rng(0).choice(60, subject.num_voxels, replace=False)
    # Untrained embeddings are nearly alike: set them apart first.
    far = np.random.default_rng(1).standard_normal((60, 8)).astype(np.float32)
    old = ready.trained._replace(embeddings=far)
    _, pictures, _ = planted(ready)
    responses = {
        s: ready.predictor.of_embeddings(ready.params, f, far[some])
        for s, f in pictures.items()
    }
    settings = fit.Settings(init="twin", steps=20, eval_every_steps=10)
    table, lines = fit.start_table(
        old,
        ready.run,
        ready.predictor,
        ready.params,
        pictures["train"],
        responses["train"],
        settings,
    )
    rows = encoder.rows_of_table(np.asarray(table), 50)
    assert (rows == far[some]).all(1).mean() > 0.9
    assert "twins" in lines[0]
    start = {**ready.params, "table": table}
    zero = dataclasses.replace(settings, steps=0)
    at_start = fit.fit(
        ready.run, ready.predictor, start, pictures, responses, zero, quiet=True
    )
    fitted = fit.fit(
        ready.run, ready.predictor, start, pictures, responses, settings, quiet=True
    )
    assert at_start.step == at_start.steps == 0
    assert at_start.score > 0.9
    assert fitted.score >= at_start.score


def test_best_validation_is_kept_and_patience_ends_the_fit(ready):
    """Responses of noise: there is nothing to learn, so an early table is kept."""
    _, pictures, responses = planted(ready, noise=30)
    settings = fit.Settings(
        steps=400, learning_rate=0.05, eval_every_steps=5, patience=3
    )
    fitted = fit.fit(
        ready.run,
        ready.predictor,
        ready.params,
        pictures,
        responses,
        settings,
        quiet=True,
    )
    assert fitted.steps == fitted.step + 15 < 400
    scores = [line["val_mean_r"] for line in fitted.log]
    assert fitted.score >= max(scores)


def test_eight_devices_fit_as_one(trained, new_store, ready):
    other = subjects.make_ready(trained, new_store, NEW)
    assert other.run.mesh.size == 8
    settings = fit.Settings(steps=5, batch_images=8, eval_every_steps=5)
    tables = []
    for some in (ready, other):
        _, pictures, responses = planted(some)
        pictures = {
            s: np.asarray(ready.features)[: len(f)] for s, f in pictures.items()
        }
        fitted = fit.fit(
            some.run,
            some.predictor,
            some.params,
            pictures,
            responses,
            settings,
            quiet=True,
        )
        tables.append(encoder.rows_of_table(fitted.table, 50))
    np.testing.assert_allclose(tables[0], tables[1], atol=1e-5)


# ---------------------------------------------------------------- features


def test_cached_features_predict_as_pictures_do(tiny, tmp_path, new_store):
    """With a bfloat16 head features are kept in bfloat16, and nothing changes."""
    run = experiments.prepare_run(tiny(head={"dtype": "bfloat16"}), jax.devices()[:1])
    train.train(run, str(tmp_path))
    ready = subjects.make_ready(
        frozen.read_encoder(str(tmp_path)), new_store, NEW, devices=jax.devices()[:1]
    )
    assert ready.features.dtype == jnp.bfloat16
    fresh = ready.predictor.features(ready.params, ready.rows)
    voxels = np.arange(50)
    np.testing.assert_array_equal(
        ready.predictor.responses(ready.params, ready.features, voxels),
        ready.predictor.responses(ready.params, fresh, voxels),
    )


def test_features_too_large_for_memory_are_kept_beside_the_store(
    trained, ready, monkeypatch, tmp_path, capsys
):
    def again():
        args = (trained, ready.run, ready.predictor, ready.params, ready.rows)
        return frozen.features(*args, cache=tmp_path / "cache")

    monkeypatch.setattr(frozen, "host_memory", lambda: 1000)
    stored = again()
    assert isinstance(stored, np.memmap)
    np.testing.assert_array_equal(stored, ready.features)
    [file] = (tmp_path / "cache").glob("*.features")
    before = file.stat().st_mtime_ns
    np.testing.assert_array_equal(again(), ready.features)
    assert file.stat().st_mtime_ns == before
    with file.open("r+b") as damaged:
        damaged.seek(100)
        damaged.write(b"\xff\xff")
    capsys.readouterr()
    np.testing.assert_array_equal(again(), ready.features)
    assert "damaged" in capsys.readouterr().out
    other = trained._replace(sha256="0" * 64)
    frozen.features(
        other,
        ready.run,
        ready.predictor,
        ready.params,
        ready.rows,
        cache=tmp_path / "cache",
    )
    names = sorted(p.suffix for p in (tmp_path / "cache").iterdir())
    assert names == [".features", ".features", ".sha256", ".sha256"]


# ---------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def done(ready, encoder_dir, tmp_path_factory):
    """One transfer with 20 pictures, and the encoder's files before it."""
    before = tree_of(encoder_dir)
    workdir = tmp_path_factory.mktemp("done")
    settings = fit.Settings(steps=6, eval_every_steps=2, init="twin", seed=1)
    result = subjects.transfer(ready, settings, 20, str(workdir))
    return before, workdir, settings, result


def test_transfer_leaves_the_encoder_byte_for_byte(done, encoder_dir, ready, trained):
    assert tree_of(encoder_dir) == done[0]
    for new, old in zip(
        jax.tree.leaves({k: v for k, v in ready.params.items() if k != "table"}),
        jax.tree.leaves(trained.shared),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(new), old)


def test_transfer_writes_scores_and_how_it_was_fitted(done):
    _, workdir, settings, result = done
    told = json.loads((workdir / "transfer.json").read_text())
    assert told["images"] == {"train": 17, "val": 3, "test": 12}
    assert told["asked"]["num_images"] == 20
    assert told["asked"]["init"] == settings.init
    entry = json.loads((workdir / "metrics.json").read_text())["subjects"][NEW]
    assert entry["num_test_images"] == 12
    assert entry["num_voxels"] == 50
    assert result["subjects"].keys() == {NEW}
    lines = evaluate.read_log(workdir)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert (workdir / "report.html").exists()
    assert (workdir / "voxels" / f"{NEW}.zarr").exists()


def test_subject_of_the_file_scores_as_it_did(done, ready, capsys):
    _, workdir, settings, result = done
    file = workdir / "subjects" / f"{NEW}.safetensors"
    before = file.read_bytes()
    again = subjects.transfer(ready, settings, 20, str(workdir))
    assert "fitted already" in capsys.readouterr().out
    assert again["subjects"] == result["subjects"]
    assert file.read_bytes() == before


def test_other_settings_in_the_same_workdir_are_refused(done, ready):
    _, workdir, settings, _ = done
    other = dataclasses.replace(settings, seed=2)
    with pytest.raises(errors.OutputError, match="seed was 1, is 2"):
        subjects.transfer(ready, other, 20, str(workdir))


def test_subject_of_another_encoder_is_refused(done, ready):
    _, workdir, settings, _ = done
    other = ready._replace(trained=ready.trained._replace(sha256="f" * 64))
    with pytest.raises(errors.InputError, match="fitted with encoder"):
        subjects.transfer(other, settings, 20, str(workdir))


def test_changed_frozen_weights_are_noticed(ready, tmp_path):
    params = jax.tree.map(lambda a: a, ready.params)
    params["head"] = {**params["head"], "position": params["head"]["position"] + 1}
    with pytest.raises(RuntimeError, match="frozen weights changed"):
        subjects.transfer(
            ready._replace(params=params), fit.Settings(steps=0), 20, str(tmp_path)
        )
    assert not (tmp_path / "subjects").exists()


# ---------------------------------------------------------------- refusals


def test_subject_of_the_encoder_is_refused(trained, new_store):
    with pytest.raises(errors.ConfigError, match="t-subj01 is one of the encoder's"):
        frozen.attach(trained, new_store, "t-subj01")


def test_absent_subject_is_named_with_the_nearest(trained, new_store):
    with pytest.raises(errors.ConfigError, match=r"in no store.*t-subj03"):
        frozen.attach(trained, new_store, "t-subj3")


def test_another_backbone_is_refused(trained, new_store):
    other = trained._replace(backbone_sha256={"model.safetensors": "ab"})
    with pytest.raises(errors.InputError, match="the backbone of the encoder"):
        frozen.attach(other, new_store, NEW)


def test_test_pictures_that_the_encoder_has_seen_are_refused(trained, new_store):
    """By id, and by content under another id."""
    store = crowd.open_crowd((new_store,), (NEW,))
    digests = crowd.picture_hashes(store)
    rows = store.subjects[0].image[store.subjects[0].samples("test")]
    by_id = trained._replace(seen={"0": store.image_id[rows[0]]})
    with pytest.raises(errors.InputError, match=r"1 test pictures .*: t/0000;"):
        frozen.attach(by_id, new_store, NEW)
    seen = {digests[rows[1]]: "other/1", digests[rows[2]]: "other/2"}
    with pytest.raises(errors.InputError, match=r"2 test .*t/0001 \(there other/1\)"):
        frozen.attach(trained._replace(seen=seen), new_store, NEW)


def test_training_records_the_pictures_it_saw(trained, store):
    opened = crowd.open_crowd((store,))
    used = {
        opened.image_id[i]
        for s in opened.subjects
        for i in s.image[np.isin(s.split, ("train", "val"))]
    }
    assert set(trained.seen.values()) == used
    assert len(used) == 24


def test_too_few_pictures_for_twins_are_refused(ready):
    settings = fit.Settings(init="twin")
    with pytest.raises(errors.ConfigError, match="10 or more for --init=twin"):
        subjects.transfer(ready, settings, 8, "unused")


def test_more_pictures_than_there_are_is_refused(ready):
    with pytest.raises(errors.ConfigError, match="t-subj03 has 40 to train on"):
        subjects.transfer(ready, fit.Settings(), 41, "unused")


@pytest.mark.parametrize(
    "bad",
    [{"steps": -1}, {"batch_images": 0}, {"learning_rate": 0.0}, {"pull": -1.0},
     {"patience": 0}, {"eval_every_steps": 0}, {"learning_rate": float("nan")}],
)  # fmt: skip
def test_settings_out_of_range_are_named(bad):
    with pytest.raises(errors.ConfigError, match=f"--{next(iter(bad))} is"):
        fit.check(fit.Settings(**bad))


# ---------------------------------------------------------------- choices of pictures


def test_a_smaller_choice_of_pictures_is_part_of_a_larger(new_store):
    store = crowd.open_crowd((new_store,))

    def chosen(n, seed=0):
        some = crowd.with_images(store, n, seed).subjects
        return [{s: set(x.image[x.split == s]) for s in ("train", "val")} for x in some]

    few, more = chosen(12), chosen(30)
    for a, b, subject in zip(few, more, store.subjects, strict=True):
        assert len(a["train"]) == 9
        assert len(a["val"]) == 3
        assert len(b["train"]) == 27
        assert a["train"] | a["val"] < b["train"] | b["val"]
        assert not (b["train"] | b["val"]) & set(subject.image[subject.split == "test"])
    assert chosen(12, seed=1) != few
    assert crowd.with_images(store, None, 0) is store


def test_training_uses_the_chosen_pictures_alone(tiny, new_store):
    experiment = tiny(data={"crowd": (new_store,), "num_images": 10})
    run = experiments.prepare_run(experiment, jax.devices()[:1])
    assert [len(s.samples("train")) for s in run.stores.subjects] == [7, 7, 7]
    assert [len(s.samples("test")) for s in run.stores.subjects] == [12, 12, 12]


# ---------------------------------------------------------------- best weights


def test_the_best_validation_is_what_is_evaluated(tiny, new_store, tmp_path):
    data = {"crowd": (new_store,), "batch_images": 8}
    schedule = {"steps": 8, "eval_every_steps": 2, "select": "best"}
    run = experiments.prepare_run(tiny(data=data, train=schedule), jax.devices()[:1])
    state = train.train(run, str(tmp_path))
    lines = [x for x in evaluate.read_log(tmp_path) if "val_median_r/t-subj01" in x]
    score = [
        np.mean([v or 0 for k, v in x.items() if k.startswith("val_median_r/")])
        for x in lines
    ]
    best = lines[int(np.argmax(score))]["step"]
    params, step = train.chosen_weights(run, state, str(tmp_path))
    assert step == best
    scores = evaluate.validate(evaluate.Predictor(run), params)
    assert scores["val_median_r/t-subj01"] == pytest.approx(
        lines[int(np.argmax(score))]["val_median_r/t-subj01"], abs=1e-6
    )
    _, meta, _ = checkpoint.read_params(str(tmp_path), "best")
    assert meta["val_score"] == pytest.approx(max(score), abs=1e-9)
    assert frozen.read_encoder(str(tmp_path)).step == best


def test_best_without_validation_is_refused(tiny_dict):
    settings = tiny_dict(train={"select": "best", "eval_every_steps": 0})
    with pytest.raises(errors.ConfigError, match=r"train\.select"):
        config.from_dict(settings, "test")


# ---------------------------------------------------------------- the command


def command(*flags) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "ubrain_jax.transfer", *flags]
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent.parent)}
    return subprocess.run(words, capture_output=True, text=True, env=env, check=False)


def test_command_fits_scores_and_says_where(encoder_dir, new_store, tmp_path):
    shared = (f"--encoder={encoder_dir}", f"--crowd={new_store}")
    place = (f"--subject={NEW}", f"--workdir={tmp_path / 'out'}")
    done = command(*shared, *place, "--num_images=20", "--steps=2", "--init=twin")
    assert done.returncode == 0, done.stderr
    assert "t-subj03: 50 voxels, features of 20 pictures" in done.stdout
    assert "twins: " in done.stdout
    path = tmp_path / "out" / "subjects" / f"{NEW}.safetensors"
    assert f"subject: {path}" in done.stdout
    assert path.exists()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ((), 78, "--encoder, --crowd, --subject, --workdir: not given"),
        (("--encoder=x", "--crowd=x", "--subject=x"), 78, "--workdir: not given"),
        (("--init=nearest",), 64, "init"),
    ],
)
def test_command_names_missing_and_wrong_flags(flags, code, message):
    done = command(*flags)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
