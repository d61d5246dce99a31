"""Settings: what is refused, how it is said, and what a config file may hold."""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
import typing

import ml_collections
import pytest
from ml_collections import config_dict

from ubrain_jax import config, errors

FIELDS = {
    (section.name, field.name): field
    for section in dataclasses.fields(config.Experiment)
    for field in dataclasses.fields(section.type)
}
REPOSITORY = pathlib.Path(__file__).parents[1]


def valid(**changes):
    """The smallest settings that pass; `section={...}` changes some."""
    settings = {"data": {"crowd": ("a.zarr",)}, "train": {"steps": 10}}
    for section, values in changes.items():
        settings[section] = {**settings.get(section, {}), **values}
    return settings


def refused(settings) -> str:
    with pytest.raises(errors.ConfigError) as caught:
        config.from_dict(settings, "some.py")
    assert caught.value.exit_code == 78
    assert str(caught.value).startswith("some.py: ")
    return str(caught.value)


def test_defaults_are_the_papers_values():
    e = config.from_dict(valid(), "x")
    assert e.data.batch_images == 32
    assert e.data.voxels_per_image == 5000
    assert e.data.stripes == 8
    assert e.backbone.name == "dinov2-giant"
    assert e.backbone.taps == (1, 6, 12, 18, 24)
    assert (e.adapter.kind, e.adapter.rank) == ("lora", 16)
    assert (e.head.embed_dim, e.head.channels) == (256, 128)
    assert (e.loss.kind, e.loss.alpha) == ("paper", 0.1)
    assert e.optim.learning_rate == 1e-3


def test_default_has_every_key_of_every_section():
    c = config.default()
    assert {(s, k) for s in c for k in c[s]} == set(FIELDS)
    assert c.is_locked
    for (section, key), field in FIELDS.items():
        assert c[section][key] == field.default, (section, key)


def test_a_config_file_can_set_what_is_none_by_default():
    c = config.default()
    c.data.crowd = ("a.zarr",)
    c.train.epochs = 2.5
    c.mesh.voxel = 4
    e = config.parse(c)
    assert (e.train.steps, e.train.epochs, e.mesh) == (None, 2.5, config.Mesh(None, 4))
    with pytest.raises(TypeError):
        c.train.steps = "3"
    with pytest.raises(AttributeError, match="steps"):
        c.train.stepz = 3


@pytest.mark.parametrize("name", ["crowd", "demo", "nsd1", "nsd8", "nsd8_released"])
def test_each_file_in_configs_parses(name):
    space = {}
    exec((REPOSITORY / "configs" / f"{name}.py").read_text(), space)  # noqa: S102
    config.parse(space["get_config"](), name)


def test_round_trip_through_json():
    e = config.from_dict(
        valid(backbone={"taps": (2, 4)}, data={"crowd": ("a", "b")}), "x"
    )
    again = config.from_dict(json.loads(json.dumps(config.to_dict(e))), "x")
    assert again == e
    assert config.sha256(again) == config.sha256(e)


def test_experiments_cannot_be_changed():
    e = config.from_dict(valid(), "x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        e.train.steps = 5
    hash(e)


# Unknown keys


def test_an_unknown_key_is_named_with_the_nearest_one():
    message = refused(valid(train={"stepz": 3}))
    assert "train.stepz is unknown (Did you mean steps" in message


def test_an_unknown_section_is_named_with_the_nearest_one():
    assert "trian is unknown (Did you mean train" in refused(valid(trian={"steps": 3}))


def test_all_faults_are_listed_at_once():
    message = refused(
        valid(trian={}, data={"batch_image": 3, "stripes": "8"}, optim={"lr": 1})
    )
    assert "trian is unknown" in message
    assert "data.batch_image is unknown (Did you mean batch_images" in message
    assert "data.stripes is '8', not a value of type int" in message
    assert "optim.lr is unknown" in message


def test_all_values_out_of_range_are_listed_at_once():
    message = refused(valid(head={"dropout": 1.5}, data={"read_threads": 0}))
    assert "head.dropout is 1.5, not in [0, 1)" in message
    assert "data.read_threads is 0, not 1 or more" in message


@pytest.mark.parametrize("value", [5, None, "x", [1]])
def test_a_section_that_is_no_section(value):
    settings = valid()
    settings["head"] = value
    assert f"head is {value!r}, not a section" in refused(settings)


@pytest.mark.parametrize("given", [None, {"data": {}}, 3])
def test_a_config_file_that_returns_something_else(given):
    with pytest.raises(errors.ConfigError, match=f"returns {type(given).__name__}"):
        config.parse(given, "x.py")


def test_parse_takes_a_config_that_nobody_locked():
    c = ml_collections.ConfigDict(valid())
    assert config.parse(c).train.steps == 10
    c.train.stepz = 3
    with pytest.raises(errors.ConfigError, match="Did you mean steps"):
        config.parse(c)


# Types


def other_types(hint) -> list:
    """Values that are not of a field's type."""
    inner = config._inner_type(hint)
    wrong = {
        int: ["3", 2.5, 3.0, True, (3,), {}],
        float: ["0.1", True, (0.1,), []],
        bool: [1, 0, "true", None],
        str: [3, True, 0.5, ("a",), None],
    }
    if typing.get_origin(inner) is tuple:
        (element, _) = typing.get_args(inner)
        return [3, 1.5, None, {}, *([w] for w in wrong[element])]
    return wrong[inner] if inner is not hint else [*wrong[inner], None]


CASES = [
    (section, key, value)
    for section, key in FIELDS
    for value in other_types(
        typing.get_type_hints(getattr(config, section.capitalize()))[key]
    )
    if (section, key, value) != ("head", "remat", True)  # of older configs
]


def test_every_key_has_cases_of_other_types():
    assert {case[:2] for case in CASES} == set(FIELDS)


@pytest.mark.parametrize(("section", "key"), FIELDS)
def test_values_of_another_type_are_refused(section, key):
    for case in CASES:
        if case[:2] == (section, key):
            value = case[2]
            message = refused(valid(**{section: {key: value}}))
            assert f"{section}.{key} is {value!r}, not a" in message


def test_an_integer_is_a_float_where_a_float_is_wanted():
    e = config.from_dict(valid(adapter={"alpha": 4}), "x")
    assert isinstance(e.adapter.alpha, float)
    assert config.sha256(e) == config.sha256(
        config.from_dict(valid(adapter={"alpha": 4.0}), "x")
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.zarr", ("a.zarr",)),
        ("a.zarr,b.zarr", ("a.zarr", "b.zarr")),
        (" a.zarr, b.zarr,", ("a.zarr", "b.zarr")),
        (("a.zarr,b.zarr",), ("a.zarr", "b.zarr")),
        (["a.zarr", "b.zarr"], ("a.zarr", "b.zarr")),
        ("gs://bucket/a.zarr", ("gs://bucket/a.zarr",)),
    ],
)
def test_stores_may_come_as_text_with_commas(given, expected):
    assert config.from_dict(valid(data={"crowd": given}), "x").data.crowd == expected


@pytest.mark.parametrize("given", ["", (), ("",)])
def test_an_empty_text_is_no_store(given):
    assert "data.crowd is (), not at least one store" in refused(
        valid(data={"crowd": given})
    )


# Ranges


@pytest.mark.parametrize(
    ("section", "key", "bad", "good"),
    [
        ("data", "batch_images", (0, -1), (1,)),
        ("data", "voxels_per_image", (0, -8, 7, 5001), (8, 40)),
        ("data", "stripes", (0, -8), (1, 2, 5)),
        ("data", "read_threads", (0,), (1,)),
        ("data", "store_power", (-0.1, 1.1, math.nan, math.inf), (0.0, 0.5, 1.0)),
        ("data", "shift_px", (-1, 224), (0, 3)),
        ("data", "subjects", (("a", "a"), "a,a"), ((), ("a", "b"))),
        ("backbone", "taps", ((), (0, 1), (2, 1), (1, 1), (-1, 2)), ((1,), (3, 9))),
        ("backbone", "image_px", (0, 225, -14, 7), (14, 518)),
        ("backbone", "dtype", ("float16", "", "BFLOAT16"), ("float32",)),
        ("backbone", "attention", ("flash",), ("cudnn",)),
        ("backbone", "remat", ("yes",), ("full", "none")),
        ("head", "remat", ("yes",), ("on", "off")),
        ("backbone", "drop", ("cls", "last_patches"), ("registers",)),
        ("adapter", "kind", ("LoRA",), ("residual", "none")),
        ("adapter", "rank", (0,), (1,)),
        ("adapter", "alpha", (0.0, -1.0, math.nan, math.inf), (0.5,)),
        ("head", "embed_dim", (0,), (1,)),
        ("head", "channels", (0,), (1,)),
        ("head", "mlp_ratio", (0,), (1,)),
        ("head", "dropout", (1.0, -0.1, math.nan), (0.0, 0.99)),
        ("head", "dtype", ("float64",), ("float32",)),
        ("loss", "kind", ("mse",), ("released",)),
        ("loss", "alpha", (-0.1, 1.1, math.nan), (0.0, 1.0)),
        ("optim", "learning_rate", (0.0, -1e-3, math.nan, math.inf), (1.0,)),
        ("optim", "schedule", ("linear",), ("cosine", "plateau")),
        ("optim", "plateau_factor", (0.0, 1.0, -1.0, math.nan), (0.1, 0.99)),
        ("optim", "plateau_patience", (-1,), (0, 9)),
        ("optim", "plateau_threshold", (-1e-3, math.nan, math.inf), (0.0, 0.1)),
        ("optim", "plateau_stop", (-1e-9, 1e-3, math.nan), (0.0, 1e-4)),
        ("optim", "warmup_steps", (-1, 11), (0, 10)),
        ("train", "steps", (-1,), (1,)),
        ("train", "seed", (-1, 2**31), (0, 2**31 - 1)),
        ("train", "eval_every_steps", (-1,), (0, 1)),
        ("train", "val_score", ("mean", "p25"), ("p75",)),
        ("train", "checkpoint_every_steps", (0,), (1,)),
        ("train", "keep_checkpoints", (0,), (1,)),
        ("train", "log_every_steps", (0,), (1,)),
        ("mesh", "data", (0, -1), (None, 1, 3)),
        ("mesh", "voxel", (0, -1, 3, 16), (None, 1, 8)),
        ("evaluate", "batch_images", (0,), (1,)),
        ("evaluate", "chunk_voxels", (0,), (1,)),
        ("evaluate", "val_images", (0,), (1,)),
        ("evaluate", "report_queries", (-1,), (0, 9)),
        ("evaluate", "bootstraps", (-1,), (0, 5000)),
        ("evaluate", "permutations", (-1,), (0, 5000)),
    ],
)
def test_ranges(section, key, bad, good):
    for value in bad:
        assert f"{section}.{key} is " in refused(valid(**{section: {key: value}}))
    for value in good:
        config.from_dict(valid(**{section: {key: value}}), "x")


def test_voxels_must_share_evenly_among_the_stripes():
    message = refused(valid(data={"voxels_per_image": 100, "stripes": 16}))
    assert (
        "data.voxels_per_image is 100, not a multiple of data.stripes (16)" in message
    )
    config.from_dict(valid(data={"voxels_per_image": 96, "stripes": 16}), "x")


@pytest.mark.parametrize(
    ("bad", "good", "message"),
    [
        (
            {"backbone": {"drop": "last_patches"}},
            {"backbone": {"keep_cls": True}},
            "backbone.drop is 'last_patches', not .* with backbone.keep_cls",
        ),
        (
            {"optim": {"amsgrad": True, "table": "sparse"}},
            {"optim": {"table": "auto"}},
            "optim.table is 'sparse', not 'dense' or 'auto', which optim.amsgrad needs",
        ),
        (
            {"optim": {"schedule": "plateau"}, "train": {"eval_every_steps": 0}},
            {"train": {"eval_every_steps": 5}},
            "optim.schedule is 'plateau', not 'plateau' with train.eval_every_steps",
        ),
    ],
)
def test_choices_that_need_another_one(bad, good, message):
    assert re.search(message, refused(valid(**bad)))
    mended = {s: {**bad.get(s, {}), **good.get(s, {})} for s in {*bad, *good}}
    config.from_dict(valid(**mended), "x")


@pytest.mark.parametrize(
    ("steps", "epochs", "ok"),
    [
        (None, None, False),
        (0, 0.0, False),
        (5, 1.0, False),
        (-5, None, False),
        (None, -1.0, False),
        (None, math.inf, False),
        (None, math.nan, False),
        (5, None, True),
        (None, 0.5, True),
        (0, 0.5, True),
        (5, 0, True),
    ],
)
def test_exactly_one_of_steps_and_epochs(steps, epochs, ok):
    settings = valid(train={"steps": steps, "epochs": epochs})
    if not ok:
        assert re.search(r"train\.(steps|epochs)", refused(settings))
        return
    train = config.from_dict(settings, "x").train
    assert (train.steps, train.epochs) == (steps or None, epochs or None)


# Hash and differences


def test_the_hash_is_of_the_values_alone():
    e = config.from_dict(valid(), "x")
    reordered = dict(reversed(valid(data={"crowd": ["a.zarr"]}).items()))
    assert config.sha256(config.from_dict(reordered, "y")) == config.sha256(e)
    # Another process, machine or Python must find the same; folders do not count.
    values = json.loads(json.dumps(dataclasses.asdict(e)))
    values["backbone"]["weights"] = "dinov2-giant"
    plain = json.dumps(values, sort_keys=True)
    assert config.sha256(e) == hashlib.sha256(plain.encode()).hexdigest()
    moved = valid(data={"crowd": ["/elsewhere/a.zarr"]})
    assert config.sha256(config.from_dict(moved, "y")) == config.sha256(e)


def test_the_hash_and_differences_see_every_key():
    base = config.from_dict(valid(), "x")
    seen = {config.sha256(base)}
    other = {bool: lambda v: not v, str: lambda v: f"{v}!"}
    for (section, key), field in FIELDS.items():
        value = getattr(getattr(base, section), key)
        if isinstance(value, tuple):
            new = (*value, "more")
        elif value is None:
            new = 1
        else:
            new = other.get(type(value), lambda v: v + 1)(value)
        changed = dataclasses.replace(
            base,
            **{section: dataclasses.replace(getattr(base, section), **{key: new})},
        )
        assert config.sha256(changed) not in seen, field.name
        seen.add(config.sha256(changed))
        a, b = config.to_dict(base), config.to_dict(changed)
        expected = {f"{section}.{key}": (a[section][key], b[section][key])}
        assert config.differences(a, b) == expected
        assert config.differences(b, b) == {}


def test_a_config_of_before_remat_had_auto_is_read():
    for old, new in ((True, "on"), (False, "off")):
        found = config.from_dict(valid(head={"remat": old}), "x")
        assert found.head.remat == new


def test_differences_name_keys_that_one_side_lacks():
    old = {"train": {"seed": 1, "gone": 2}}
    new = {"train": {"seed": 1}, "late": {"key": 3}}
    assert config.differences(old, new) == {
        "train.gone": (2, None),
        "late.key": (None, 3),
    }


def test_resumable_keys_exist_and_change_no_number_of_the_training():
    assert {tuple(k.split(".")) for k in config.RESUMABLE} <= set(FIELDS)
    # The same numbers either way: test_rowsparse.py, test_dinov2.py, test_head.py.
    same = {"optim.table", "backbone.remat", "head.remat"}
    touched = {k.split(".")[0] for k in set(config.RESUMABLE) - same}
    assert touched.isdisjoint({"backbone", "adapter", "head", "loss", "optim"})
    assert "train.seed" not in config.RESUMABLE
    assert set(config.RESUMABLE).isdisjoint(
        {"data.crowd", "data.store_power", "data.stripes", "data.batch_images"}
    )


def test_placeholders_refuse_other_types_on_the_way_in():
    c = config.default()
    assert c.get_ref("mesh").get().get_ref("data").get() is None
    assert isinstance(c.train.get_ref("epochs"), config_dict.FieldReference)
    c.train.epochs = 3  # an integer on a command line
    assert isinstance(c.train.epochs, float)
