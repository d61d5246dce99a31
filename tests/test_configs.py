"""Every file in configs/ builds, parses, says its five lines, and is sound."""

import importlib.util
import pathlib
import re

import ml_collections
import pytest

from ubrain_jax import ablate, config
from ubrain_jax.backbone import dinov2

FILES = sorted(pathlib.Path(__file__).parent.parent.glob("configs/*.py"))
LINES = ("What:", "Command:", "Cost:", "Expect:", "Checked:")


def load(path) -> tuple[ml_collections.ConfigDict, str]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(), module.__doc__


def test_the_three_configs_of_the_readme_are_there():
    assert {"demo.py", "nsd1.py", "nsd8.py"} <= {p.name for p in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_config_parses_and_says_what_it_costs_and_gives(path):
    given, text = load(path)
    experiment = config.parse(given, str(path))
    assert experiment.data.crowd
    positions = [text.index(f"\n{line}") for line in LINES]
    assert positions == sorted(positions)
    for line in LINES:
        words = re.search(rf"^{line}\s*(.*)$", text, re.M).group(1)
        assert len(words) > 5, line


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_config_is_locked_and_names_the_nearest_key(path):
    given, _ = load(path)
    with pytest.raises(AttributeError, match="learning_rate"):
        given.optim.lerning_rate = 1.0


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_named_backbone_has_the_tapped_blocks(path):
    experiment = config.parse(load(path)[0], str(path))
    if experiment.backbone.name:
        geometry = dinov2.GEOMETRIES[experiment.backbone.name]
        assert experiment.backbone.taps[-1] <= geometry.depth


def test_crowd_is_nsd8_over_three_stores():
    files = {p.stem: p for p in FILES}
    joint, paper = (
        config.to_dict(config.parse(load(files[name])[0], name))
        for name in ("crowd", "nsd8")
    )
    assert joint["data"].pop("crowd") == ["nsd.zarr", "god.zarr", "vim1.zarr"]
    assert paper["data"].pop("crowd") == ["nsd.zarr"]
    assert joint == paper


def test_nsd8_released_is_the_authors_code():
    """Every value of theirs, and of nsd8 what they leave alone."""
    files = {p.stem: p for p in FILES}
    released, paper = (
        config.to_dict(config.parse(load(files[name])[0], name))
        for name in ("nsd8_released", "nsd8")
    )
    changed = {k: v[1] for k, v in config.differences(paper, released).items()}
    assert changed == {
        "backbone.name": "dinov2-with-registers-large",
        "backbone.weights": "facebook/dinov2-with-registers-large",
        "backbone.dtype": "float32",
        "backbone.keep_cls": True,
        "adapter.kind": "residual",
        "adapter.rank": 7,
        "adapter.alpha": 0.01,
        "head.dtype": "float32",
        "loss.kind": "released",
        "optim.amsgrad": True,
        "optim.schedule": "plateau",
        "data.replacement": True,
        "data.shift_px": 3,
        "train.eval_every_steps": 2100,
        "train.select": "best",
        "train.val_score": "p75",
    }
    assert released["backbone"]["taps"] == [1, 6, 12, 18, 24]
    assert (released["backbone"]["image_px"], released["head"]["channels"]) == (
        224,
        128,
    )
    assert (released["head"]["dropout"], released["head"]["mlp_ratio"]) == (0.25, 4)
    assert (released["loss"]["alpha"], released["optim"]["learning_rate"]) == (
        0.1,
        1e-3,
    )
    plateau = ("factor", "patience", "threshold", "stop")
    found = [released["optim"][f"plateau_{name}"] for name in plateau]
    assert found == [0.1, 4, 0.003, 1e-7]
    data, train = released["data"], released["train"]
    assert (data["batch_images"], data["voxels_per_image"]) == (32, 5000)
    assert (train["epochs"], train["steps"]) == (30, None)


def test_nsd8_contrastive_is_nsd8_with_a_term_and_batches_of_one_subject():
    files = {p.stem: p for p in FILES}
    more, paper = (
        config.to_dict(config.parse(load(files[name])[0], name))
        for name in ("nsd8_contrastive", "nsd8")
    )
    changed = config.differences(paper, more)
    assert changed == {
        "data.group_images": (1, 32),
        "loss.contrastive": (0.0, 1.0),
    }
    assert more["loss"]["temperature"] == 0.1


def test_nsd8_is_the_paper():
    e = config.parse(load(next(p for p in FILES if p.stem == "nsd8"))[0], "nsd8")
    assert e.backbone.name == "dinov2-giant"
    assert e.backbone.taps == (1, 6, 12, 18, 24)
    assert (e.data.batch_images, e.data.voxels_per_image) == (32, 5000)
    assert (e.head.embed_dim, e.loss.kind, e.loss.alpha) == (256, "paper", 0.1)
    assert (e.adapter.kind, e.optim.learning_rate) == ("lora", 1e-3)


def test_every_ablation_changes_nsd8_and_covers_what_reviewers_asked_for():
    path = next(p for p in FILES if p.stem == "ablations")
    module = ablate._module(str(path))
    base = config.parse(module.get_config(), str(path))
    sweep = ablate.read_sweep(str(path), module)
    changed = [
        config.differences(
            config.to_dict(base), config.to_dict(ablate.changed(base, name, some, 0))
        )
        for name, some in sweep.items()
    ]
    for (name, some), found in zip(sweep.items(), changed, strict=True):
        assert found.keys() <= some.keys(), name
        assert found, name
    assert {key for found in changed for key in found} == {
        *("head.embed_dim", "head.position", "head.functional"),
        *("adapter.kind", "adapter.rank", "adapter.alpha"),
        *("loss.alpha", "backbone.taps", "data.voxels_per_image"),
    }
    paper = config.parse(load(next(p for p in FILES if p.stem == "nsd8"))[0], "nsd8")
    assert config.differences(config.to_dict(paper), config.to_dict(base)) == {
        "train.select": ("last", "best")
    }
