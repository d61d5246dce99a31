"""A schedule that waits for validations: in a run, over a stop, and to its end."""

from typing import Any

import jax
import numpy as np
import pytest

from tests import states
from ubrain_jax import (
    config,
    crowd,
    errors,
    evaluate,
    experiments,
    optim,
    train,
    validation,
)
from ubrain_jax.backbone import dinov2, images
from ubrain_jax.model import adapters, encoder

# The released preset, but for the sizes of the network, the batch and the run.
PRESET = {
    "data": {"replacement": True, "shift_px": 3},
    "backbone": {"name": "dinov2-with-registers-small", "keep_cls": True},
    "adapter": {"kind": "residual", "rank": 7, "alpha": 0.01},
    "loss": {"kind": "released"},
    # No validation is above the best by 1: each but the first cuts.
    "optim": {
        "amsgrad": True,
        "schedule": "plateau",
        "plateau_patience": 0,
        "plateau_threshold": 1.0,
    },
}
TRAIN = {
    "steps": 20,
    "eval_every_steps": 2,
    "select": "best",
    "val_score": "p75",
    "checkpoint_every_steps": 3,
}


def prepare(experiment) -> experiments.Run:
    return experiments.prepare_run(experiment, jax.devices()[:1])


def preset(tiny, **changes):
    """A run of 20 steps at most; `changes` are of the section train."""
    return prepare(tiny(**PRESET, train={**TRAIN, **changes}))


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run, its last state and its workdir."""
    workdir = tmp_path_factory.mktemp("plateau")
    run = preset(tiny)
    return run, train.train(run, str(workdir)), workdir


def validations(workdir) -> dict[int, float]:
    """Step -> mean over subjects of the 75th percentile."""
    return {
        x["step"]: np.mean([v for k, v in x.items() if k.startswith("val_p75_r/")])
        for x in evaluate.read_log(workdir)
        if "val_p75_r/t-subj01" in x
    }


def test_a_run_ends_when_the_rate_falls_below_the_stop(whole, capsys):
    """The first validation is the best, the five after it cut: at 12 of 20 steps."""
    run, state, workdir = whole
    _, plateau = state.optimiser
    scores = validations(workdir)
    assert int(state.step) == int(plateau.count) == 12
    assert list(scores) == [2, 4, 6, 8, 10, 12]
    assert float(plateau.scale) == pytest.approx(1e-5)
    assert float(plateau.best) == pytest.approx(scores[2], abs=1e-7)
    assert "best" in {p.name for p in workdir.iterdir()}
    # The same command again: nothing is trained, nothing written changes.
    before = (workdir / "metrics.jsonl").read_bytes()
    again = train.train(run, str(workdir))
    assert "below optim.plateau_stop at step 12; nothing to train" in (
        capsys.readouterr().out
    )
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_run_that_ended_is_scored_with_its_best_weights(whole, tmp_path):
    run, state, workdir = whole
    params, step = train.chosen_weights(run, state, str(workdir))
    scores = validations(workdir)
    assert step == max(scores, key=scores.get)
    found = evaluate.validate(evaluate.Predictor(run), params)
    assert validation.score_of(found, "p75") == pytest.approx(scores[step], abs=1e-6)
    assert validation.score_of(found, "median") != pytest.approx(scores[step], abs=1e-3)
    result = evaluate.evaluate(run, params, str(tmp_path), step)
    assert result["step"] == step
    assert set(result["subjects"]) == {"t-subj01", "t-subj02"}
    assert np.isfinite(result["subjects"]["t-subj01"]["pearson"]["median"])


@pytest.mark.parametrize("stops", [(5,), (2, 12)])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(tiny, whole, tmp_path, stops):
    """The best score, the bad ones and the rate are in the checkpoint."""
    _, state, workdir = whole
    for stop in stops:
        train.train(preset(tiny, steps=stop), str(tmp_path))
    resumed = train.train(preset(tiny), str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    for folder in ("checkpoints", "best"):
        a, b = (states.leaves_of(d / folder) for d in (workdir, tmp_path))
        assert set(a) == set(b)
        for name, value in a.items():
            np.testing.assert_array_equal(value, b[name], err_msg=name)
    assert validations(tmp_path) == validations(workdir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {**TRAIN, "eval_every_steps": 4}}, "train.eval_every_steps was 2"),
        ({"train": {**TRAIN, "val_score": "median"}}, "train.val_score was 'p75'"),
        ({"train": TRAIN, "evaluate": {"val_images": 5}}, "evaluate.val_images was"),
        (
            {"train": TRAIN, "optim": {**PRESET["optim"], "plateau_patience": 1}},
            "optim.plateau_patience was 0",
        ),
        ({"train": TRAIN, "data": {"shift_px": 2}}, "data.shift_px was 3, is 2"),
    ],
)
def test_resuming_with_other_validations_is_refused(tiny, whole, changes, message):
    run, _, workdir = whole
    other = run._replace(experiment=tiny(**{**PRESET, **changes}))
    with pytest.raises(errors.ConfigError, match=message):
        train.check_resumable(train.meta_of(run), other, str(workdir))
    longer = run._replace(experiment=tiny(**PRESET, train={**TRAIN, "steps": 99}))
    train.check_resumable(train.meta_of(run), longer, str(workdir))


def test_without_pictures_to_validate_with_it_is_refused(tiny, make_dataset, tmp_path):
    dataset = make_dataset(num_subjects=1)

    def subjects():
        for subject in dataset.subjects:
            split = np.where(subject.split == "val", "train", subject.split)
            split[-2:] = "val"
            yield subject._replace(split=split)

    path = str(tmp_path / "few.zarr")
    crowd.write(path, dataset._replace(subjects=subjects()), image_px=28)
    data = {**PRESET["data"], "crowd": (path,)}
    few = tiny(**{**PRESET, "data": data}, train=TRAIN)
    some = tiny(**PRESET, train=TRAIN, evaluate={"val_images": 2})
    for experiment, message in (
        (few, r"t-subj01 2, .*3 or more"),
        (some, r"evaluate.val_images \(2\)"),
    ):
        stores = crowd.open_crowd(experiment.data.crowd)
        run: Any = experiments.Run(experiment, stores, *[None] * 3)  # not looked at
        with pytest.raises(errors.InputError, match=message):
            train.train(run, str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_a_score_is_the_mean_over_subjects_and_none_counts_as_0():
    scores = {"val_p75_r/a": 0.6, "val_median_r/a": 0.4, "val_median_r/b": None}
    assert validation.score_of(scores, "median") == 0.2
    assert validation.score_of(scores, "p75") == 0.6
    assert validation.score_of({}, "p75") == -np.inf


def test_a_sparse_table_follows_the_plateau_as_a_dense_one(tiny, tmp_path):
    """Rows that waited while the rate fell have moved at the rate of their steps."""
    trained = []
    for table in ("dense", "sparse"):
        plain = {**PRESET["optim"], "amsgrad": False, "table": table}
        settings = {**TRAIN, "steps": 7, "select": "last"}
        data = {"voxels_per_image": 4, "batch_images": 2}
        run = prepare(tiny(optim=plain, train=settings, data=data))
        (tmp_path / table).mkdir()
        state = train.train(run, str(tmp_path / table))
        assert float(optim.scale_of(state.optimiser)) == pytest.approx(0.01)
        trained.append(states.leaves_of(tmp_path / table / "checkpoints"))
    for name, value in trained[0].items():
        np.testing.assert_allclose(value, trained[1][name], 1e-5, 1e-6, err_msg=name)


# ---------------------------------------------------------------- tokens, adapter


@pytest.mark.parametrize("drop", ["registers", "last_patches"])
def test_places_of_tokens_are_those_of_the_tokens_the_head_is_given(tiny, drop):
    """Each token of the backbone carries its own number through to the head."""
    backbone = {**PRESET["backbone"], "drop": drop, "image_px": 56}
    experiment = tiny(backbone=backbone)
    network = dinov2.random(dinov2.GEOMETRIES[backbone["name"]], 2, 56)
    tokens = np.arange(21)[:, None]  # CLS, 4 registers, 16 patches
    given = network.patches(tokens, keep_cls=True, drop=drop)[:, 0]
    places = encoder.token_places(experiment, network.geometry)
    np.testing.assert_array_equal(places, np.where(given >= 5, given - 5, -1))
    assert places.shape == (17,)
    assert (places == -1).sum() == {"registers": 1, "last_patches": 5}[drop]


@pytest.mark.parametrize("drop", ["registers", "last_patches"])
def test_the_encoder_gives_its_head_the_tokens_it_is_told_to(tiny, drop):
    """Of 1 + 4 + 16 tokens, told apart by putting them through the head one way."""
    backbone = {**PRESET["backbone"], "drop": drop, "image_px": 56, "taps": (1,)}
    experiment = tiny(backbone=backbone)
    network = dinov2.random(dinov2.GEOMETRIES[backbone["name"]], 1, 56)
    model = encoder.Encoder(experiment, network, 8, jax.random.key(0))
    pictures = np.random.default_rng(0).integers(0, 256, (1, 56, 56, 3), np.uint8)
    kept = {"registers": [0, *range(5, 21)], "last_patches": list(range(17))}[drop]
    taps = network(
        images.normalise(pictures, np.float32), (1,), adapter=model.adapter()
    )
    expected = model.head.project(taps[:, 0, kept])  # (1, 17, C)
    np.testing.assert_allclose(model.features(pictures)[0], expected, 1e-4, 1e-5)


@pytest.mark.parametrize("kind", ["residual", "lora"])
def test_an_adapter_begins_as_no_change_with_the_inputs_rule(kind):
    settings = config.Adapter(kind=kind, rank=7, alpha=0.01)
    adapter = adapters.LowRank(settings, 3, 640, jax.random.key(0))()
    assert (adapter.a.shape, adapter.b.shape) == ((3, 640, 7), (3, 7, 640))
    assert adapter.scale == pytest.approx(0.01 / 7)
    drawn, zero = (adapter.b, adapter.a) if kind == "residual" else adapter[1:3]
    bound = 7**-0.5 if kind == "residual" else 640**-0.5
    assert not np.any(zero)
    assert np.abs(drawn).max() <= bound
    assert np.std(drawn) == pytest.approx(bound / 3**0.5, rel=0.02)
