"""The step and the loop: gradients, frozen weights, cost, resuming, stopping."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import states
from ubrain_jax import (
    batches,
    checkpoint,
    config,
    errors,
    evaluate,
    experiments,
    losses,
    optim,
    train,
)
from ubrain_jax.backbone import dinov2, images
from ubrain_jax.model import encoder


def prepare(experiment) -> experiments.Run:
    return experiments.prepare_run(experiment, jax.devices()[:1])


@pytest.fixture(scope="module")
def run(store, tiny):
    return prepare(tiny())


def first_batch(run, step=0):
    data = batches.dataset(run.stores, run.experiment.data, run.experiment.train.seed)
    return data[step]


def loss_and_tree(run, key=None):
    """The whole loss as a function of the trainable tree."""
    batch = train.put_batch(run.mesh, first_batch(run))

    def loss(params):
        model = nnx.merge(run.parts.graph, params, run.parts.frozen)
        return train.loss_of_batch(model, batch, key, run.mesh, run.experiment.loss)

    return loss, run.parts.trainable


@pytest.mark.slow
def test_gradient_of_the_whole_loss_equals_finite_differences(run):
    """In float64: pictures to loss, through frozen blocks to every trainable leaf."""
    with jax.enable_x64(True):

        def to64(a):
            return jnp.asarray(np.asarray(a, np.float64))

        batch = first_batch(run)
        rng = np.random.default_rng(0)
        # LoRA's b starts at 0, where its partner has no gradient, and embeddings
        # start small, where attention is flat: so away from the start.
        tree = jax.tree.map(
            lambda a: to64(a) + 0.1 * rng.standard_normal(a.shape), run.parts.trainable
        )
        frozen = jax.tree.map(to64, run.parts.frozen)
        pictures = images.normalise(jnp.asarray(batch.image), jnp.float64)
        response, weight = (
            to64(x).reshape(len(x), -1) for x in (batch.response, batch.weight)
        )

        def loss(params, pictures, response, weight):
            """The whole model, every part of it in float64."""
            model = nnx.merge(run.parts.graph, params, frozen)
            model.head.dtype = model.backbone.dtype = "float64"
            model.backbone_remat = "none"
            taps = model.backbone(pictures, model.taps, adapter=model.adapter())
            tokens = model.backbone.patches(taps)
            features = jax.vmap(model.head.project, in_axes=1)(tokens)
            e = model.embeddings(batch.voxel)
            predicted = model.respond(
                features, e.reshape(len(e), -1, e.shape[-1]), None
            )
            assert predicted.dtype == jnp.float64
            each = jax.vmap(lambda p, y, w: losses.encoder_loss(p, y, w, 0.1))
            return jnp.mean(each(predicted, response, weight))

        loss = jax.jit(loss)
        data = (pictures, response, weight)
        gradient = jax.jit(jax.grad(loss))(tree, *data)
        leaves, treedef = jax.tree.flatten(tree)
        for (path, g), k in zip(
            jax.tree_util.tree_leaves_with_path(gradient),
            range(len(leaves)),
            strict=True,
        ):
            direction = rng.standard_normal(leaves[k].shape)

            def moved(t, k=k, direction=direction):
                changed = list(leaves)
                changed[k] = leaves[k] + t * direction
                return float(loss(treedef.unflatten(changed), *data))

            step = 1e-3
            numeric = (
                8 * (moved(step) - moved(-step)) - (moved(2 * step) - moved(-2 * step))
            ) / (12 * step)
            analytic = float(jnp.vdot(g, direction))
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            # JAX's attention keeps float32 logits, which bounds what this can show.
            assert abs(analytic - numeric) < 1e-5 * max(1e-2, abs(numeric)), name


def test_every_trainable_leaf_has_a_gradient_and_no_frozen_one_is_in_the_tree(run):
    loss, tree = loss_and_tree(run)
    tree = jax.tree.map(lambda a: a + 0.05, tree)  # b of LoRA starts at 0
    gradient = jax.grad(loss)(tree)
    zero = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, g in jax.tree_util.tree_leaves_with_path(gradient)
        if not np.any(np.asarray(g))
    ]
    assert zero == []
    names = {str(path[0].key) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
    assert names == {"adapter", "head", "table"}
    state, _ = train.initial_state(run, optim.make(run.experiment.optim, 6))
    moments = [a for a in jax.tree.leaves(state.optimiser) if a.ndim]
    assert sum(a.size for a in moments) == 2 * sum(
        a.size for a in jax.tree.leaves(tree)
    )


def test_only_sampled_rows_of_the_table_have_a_gradient(run):
    loss, tree = loss_and_tree(run)
    g = np.asarray(jax.grad(loss)(tree)["table"])
    batch = first_batch(run)
    drawn = np.zeros(g.shape[:2], bool)
    _, stripe, slot = np.nonzero(batch.weight)
    image = np.nonzero(batch.weight)[0]
    drawn[stripe, batch.voxel[image, stripe, slot]] = True
    np.testing.assert_array_equal(np.abs(g).sum(-1) > 0, drawn)


def test_training_leaves_the_backbone_as_it_was_and_moves_the_rest(run):
    before = jax.tree.map(np.asarray, run.parts.frozen)
    start = jax.tree.map(np.asarray, run.parts.trainable)
    optimiser = optim.make(run.experiment.optim, 6)
    state, places = train.initial_state(run, optimiser)
    step = train.make_step(run, optimiser, places)
    for k in range(3):
        batch = train.put_batch(run.mesh, first_batch(run, k))
        state, loss = step(state, run.parts.frozen, batch)
    assert np.isfinite(float(loss))
    jax.tree.map(np.testing.assert_array_equal, before, run.parts.frozen)
    moved = jax.tree.map(lambda a, b: np.any(a != np.asarray(b)), start, state.params)
    assert all(jax.tree.leaves(moved))


def test_backward_through_the_backbone_costs_no_weight_gradients():
    """FLOPs of step and forward, by XLA, where the backbone is nearly all the cost."""
    geometry = dinov2.Geometry(128, 6, 2, "gelu", 512, image_px=112)
    network = dinov2.random(geometry, 6, 112)
    graph, state = nnx.split(network)
    state = nnx.as_pure(state)
    images = jnp.zeros((4, 112, 112, 3))
    low_rank = (jnp.full((6, 128, 4), 0.1), jnp.full((6, 4, 128), 0.1))

    def forward(low_rank, state, images):
        adapter = dinov2.Adapter("lora", *low_rank, 1.0)
        # One scan per block: XLA counts the body of a loop once.
        taps = nnx.merge(graph, state)(
            images, (1, 2, 3, 4, 5, 6), adapter=adapter, remat="cheap"
        )
        return jnp.sum(taps**2)

    def flops(f):
        return (
            jax.jit(f).lower(low_rank, state, images).compile().cost_analysis()["flops"]
        )

    ratio = flops(jax.value_and_grad(forward)) / flops(forward)
    print(f"FLOPs of the step / forward: {ratio:.3f}")
    assert 1.5 < ratio <= 2.1


def test_loss_of_the_first_step_equals_the_loss_without_jit_or_mesh(run):
    loss, tree = loss_and_tree(run, key=jax.random.key(5))
    np.testing.assert_allclose(float(jax.jit(loss)(tree)), float(loss(tree)), rtol=1e-5)


def params_of(workdir) -> dict[str, np.ndarray]:
    return states.leaves_of(workdir / "checkpoints")


def test_resumed_run_equals_unbroken_run_bit_for_bit(tiny, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    train.train(prepare(tiny()), str(whole))
    half = tiny(train={"steps": 4})
    train.train(prepare(half), str(broken))
    with (broken / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')  # cut by a kill
    train.train(prepare(tiny()), str(broken))
    a, b = params_of(whole), params_of(broken)
    assert set(a) == set(b)
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)
    text = (broken / "metrics.jsonl").read_text()
    lines = [json.loads(x) for x in text.splitlines()]
    assert [x["step"] for x in lines] == [4, 6]
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert lines[-1]["loss"] == last["loss"]
    # Again at the last step: nothing to do, nothing changes.
    state = train.train(prepare(tiny()), str(broken))
    assert int(state.step) == 6


def test_resuming_with_other_settings_data_or_weights_is_refused(
    tiny, tmp_path, store, dataset_store
):
    train.train(prepare(tiny()), str(tmp_path))
    other = prepare(tiny(optim={"learning_rate": 2e-3}))
    with pytest.raises(
        errors.ConfigError, match=r"optim.learning_rate was 0.001, is 0.002"
    ):
        train.train(other, str(tmp_path))
    other = prepare(tiny(data={"crowd": (dataset_store(seed=1),)}))
    # Same shapes, other voxels: only the fingerprint can tell.
    with pytest.raises(errors.InputError, match="crowd"):
        train.train(other, str(tmp_path))
    same = prepare(tiny(train={"log_every_steps": 1}))
    assert int(train.train(same, str(tmp_path)).step) == 6


def test_non_finite_loss_stops_and_keeps_the_last_checkpoint(
    tiny, tmp_path, monkeypatch
):
    run = prepare(tiny())
    real = batches.gather

    def poisoned(*args):
        batch = real(*args)
        if poisoned.calls == 4:
            batch.response[0, 0, 0] = np.inf
        poisoned.calls += 1
        return batch

    poisoned.calls = 0
    monkeypatch.setattr(batches, "gather", poisoned)
    with pytest.raises(errors.NonFiniteLossError, match=r"newest checkpoint is 4"):
        train.train(run, str(tmp_path))
    for name, value in params_of(tmp_path).items():
        assert np.isfinite(value).all(), name


def test_checkpoint_of_another_model_lists_every_leaf_and_pads_nothing(tiny, tmp_path):
    train.train(prepare(tiny()), str(tmp_path))
    other = prepare(tiny(head={"channels": 6}))
    state, _ = train.initial_state(other, optim.make(other.experiment.optim, 6))
    with (
        contextlib.closing(checkpoint.open_manager(str(tmp_path), 3)) as manager,
        pytest.raises(errors.InputError, match=r"shape: .*head/fc1_kernel.*against"),
    ):
        checkpoint.restore(manager, 6, state)


def two_updates(experiment, data, voxel):
    """Losses of two steps, gradient of the first, and the state's table."""
    settings = dataclasses.replace(experiment, mesh=config.Mesh(data=data, voxel=voxel))
    run = experiments.prepare_run(settings, jax.devices()[: data * voxel])
    optimiser = optim.make(settings.optim, 6)
    state, places = train.initial_state(run, optimiser)
    step = train.make_step(run, optimiser, places)
    losses = []
    for k in range(2):
        batch = train.put_batch(run.mesh, first_batch(run, k))
        state, loss = step(state, run.parts.frozen, batch)
        losses.append(float(loss))
        if k == 0:  # Adam's first moment is 0.1 of the gradient
            gradient = jax.tree.map(np.asarray, state.optimiser[0].mu)
    return losses, gradient, state.params["table"]


@pytest.fixture(scope="module")
def one_device(tiny):
    return two_updates(tiny(), 1, 1)


@pytest.mark.parametrize("mesh", [(8, 1), (2, 4)])
def test_any_mesh_gives_the_loss_and_gradient_of_one_device(tiny, one_device, mesh):
    losses, gradient, table = two_updates(tiny(), *mesh)
    assert table.sharding.shard_shape(table.shape)[0] == 4 // mesh[1]
    np.testing.assert_allclose(losses, one_device[0], atol=1e-5)
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(one_device[1]),
        jax.tree.leaves(gradient),
        strict=True,
    )
    for (path, one), many in pairs:
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(
            many, one, rtol=1e-4, atol=1e-5 * np.abs(one).max(), err_msg=name
        )


def test_out_of_table_voxels_are_refused_on_the_host():
    for bad in (-1, 60, 2**31, 2**33):
        with pytest.raises(errors.InputError, match=rf"row {bad} for a table of 60"):
            encoder.table_rows(np.array([0, bad]), 60, 4)
    stripe, row = encoder.table_rows(np.arange(60), 60, 4)
    assert len(set(zip(stripe.tolist(), row.tolist(), strict=True))) == 60


def test_table_is_born_in_its_stripes(tiny):
    run = experiments.prepare_run(tiny(mesh={"data": 2, "voxel": 4}), jax.devices())
    table = run.parts.trainable["table"]
    assert table.shape == (4, 15, 8)
    assert {s.data.shape for s in table.addressable_shards} == {(1, 15, 8)}
    deviation = float(np.std(table))
    assert deviation == pytest.approx(0.1 / (2 * 8**0.5), rel=0.1)


def test_epochs_become_steps(run):
    settings = dataclasses.replace(run.experiment.train, steps=None, epochs=3.0)
    experiment = dataclasses.replace(run.experiment, train=settings)
    # 18 training pictures, batches of 8.
    assert train.total_steps(experiment, run.stores) == round(3 * 18 / 8)


def test_workdir_of_a_run_is_complete(tiny, tmp_path):
    run = prepare(tiny())
    state = train.train(run, str(tmp_path))
    result = evaluate.evaluate(run, state.params, str(tmp_path), 6)
    for name in ("config.json", "metrics.jsonl", "metrics.json", "report.html"):
        assert (tmp_path / name).is_file(), name
    saved = json.loads((tmp_path / "config.json").read_text())
    assert config.sha256(config.from_dict(saved, "x")) == result["config_sha256"]
    page = (tmp_path / "report.html").read_text()
    assert "random weights" in page
    assert "Simulated" in page
    shutil.rmtree(pathlib.Path(tmp_path) / "checkpoints")


def test_the_best_weights_are_those_of_the_best_validation(tiny, tmp_path):
    """They come back in the form of the state's, after training and after resuming."""
    settings = tiny(train={"steps": 4, "select": "best", "eval_every_steps": 1})
    run = prepare(settings)
    state = train.train(run, str(tmp_path))
    lines = evaluate.read_log(tmp_path)
    scores = {
        x["step"]: np.mean([v for k, v in x.items() if k.startswith("val_median")])
        for x in lines
        if "val_median_r/t-subj01" in x
    }
    params, step = train.chosen_weights(run, state, str(tmp_path))
    assert step == max(scores, key=scores.get)
    assert jax.tree.structure(params) == jax.tree.structure(state.params)
    found = evaluate.validate(evaluate.Predictor(run), params)
    assert np.mean(list(found.values())) == pytest.approx(scores[step], abs=1e-6)
    again = prepare(settings)
    resumed = train.train(again, str(tmp_path))
    same, _ = train.chosen_weights(again, resumed, str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, params, same)


def test_runs_of_one_shape_share_their_programs_and_no_number(tiny, tmp_path):
    programs = train.compile_run(prepare(tiny(train={"seed": 3})))
    settings = tiny(data={"num_images": 12}, train={"seed": 1, "eval_every_steps": 3})
    own = train.train(prepare(settings), str(tmp_path / "own"))
    shared = train.train(prepare(settings), str(tmp_path / "shared"), programs)
    jax.tree.map(np.testing.assert_array_equal, own, shared)
    logs = [evaluate.read_log(tmp_path / name) for name in ("own", "shared")]
    for line in (*logs[0], *logs[1]):
        for name in ("images_per_second", "wait_s"):
            line.pop(name, None)
    assert logs[0] == logs[1]
    assert any("val_median_r/t-subj02" in line for line in logs[0])


def test_cosine_schedule_refuses_another_length(tiny, tmp_path):
    """The rate falls to the last step: another length is another schedule."""
    cosine = {"schedule": "cosine"}
    train.train(prepare(tiny(optim=cosine, train={"steps": 4})), str(tmp_path))
    with pytest.raises(errors.ConfigError, match=r"train.steps was 4, is 6"):
        train.train(prepare(tiny(optim=cosine)), str(tmp_path))


def test_settings_newer_than_the_run_have_their_default(run, tmp_path):
    meta = json.loads(json.dumps(train.meta_of(run)))
    del meta["config"]["head"]["remat"]
    train.check_resumable(meta, run, str(tmp_path))
    meta["config"]["head"]["dropout"] = 0.5
    with pytest.raises(errors.ConfigError, match=r"head\.dropout was 0\.5"):
        train.check_resumable(meta, run, str(tmp_path))


def test_a_save_is_sealed_when_orbax_has_written_its_record(tmp_path):
    path = tmp_path / "_CHECKPOINT_METADATA"
    path.touch()
    done = threading.Event()

    def write():
        time.sleep(0.1)
        path.write_text('{"a": 1,', encoding="utf-8")
        time.sleep(0.1)
        done.set()
        path.write_text('{"a": 1, "commit_timestamp_nsecs": 7}', encoding="utf-8")

    thread = threading.Thread(target=write)
    thread.start()
    assert checkpoint._written_record(tmp_path) == '{"a": 1}'
    assert done.is_set()
    thread.join()
    path.write_text("", encoding="utf-8")
    with pytest.raises(json.JSONDecodeError):
        checkpoint._written_record(tmp_path, seconds=0.05)
