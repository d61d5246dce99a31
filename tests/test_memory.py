"""Memory foreseen from the settings, against trees of weights and against XLA."""

import dataclasses
import math
import pathlib
import re
import subprocess
import sys
import types

import jax
import pytest

from configs import nsd8
from tests import scale_table, scaling_page
from ubrain_jax import config, experiments, main, memory, sharding
from ubrain_jax.backbone import dinov2

GIANT = dinov2.GEOMETRIES["dinov2-giant"]


def bytes_of(tree) -> int:
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dinov2-giant", {}),
        ("dinov2-with-registers-large", {"adapter": {"kind": "residual", "rank": 4}}),
        ("dinov2-small", {"adapter": {"kind": "none"}, "backbone": {"keep_cls": True}}),
        (
            "dinov2-with-registers-small",
            {"backbone": {"keep_cls": True, "drop": "last_patches"}},
        ),
    ],
)
def test_weights_are_those_of_the_encoder(name, changes):
    """Bytes of every tree that `encoder` makes, for a table of odd length."""
    taps = {"taps": (1, 2, 5), "dtype": "bfloat16"}
    changes = {
        **changes,
        "backbone": {"name": "", **taps, **changes.get("backbone", {})},
    }
    experiment = scale_table.settings((1, 1), **changes)
    geometry = dinov2.GEOMETRIES[name]
    parts = scale_table.shapes_of_run(experiment, geometry, 10_001).parts
    found = memory.predict(experiment, geometry, 10_001, 1, 1)
    table = bytes_of(parts.trainable["table"])
    assert found.frozen == bytes_of(parts.frozen)
    assert found.table == 4 * table
    assert found.shared == 4 * (bytes_of(parts.trainable) - table)


def test_amsgrad_keeps_one_array_more():
    plain = config.Experiment()
    amsgrad = config.Experiment(optim=config.Optim(amsgrad=True))
    four, five = (memory.predict(e, GIANT, 10_001, 1, 1) for e in (plain, amsgrad))
    assert (4 * five.table, 4 * five.shared) == (5 * four.table, 5 * four.shared)
    assert five[2:] == four[2:]


def test_what_a_device_holds_falls_with_the_axis_that_splits_it():
    def on(data, voxel, table="dense"):
        settings = config.Experiment()
        return memory.predict(settings, GIANT, 320_000, data, voxel, table=table)

    one, data, voxel = on(1, 1), on(8, 1), on(1, 8)
    assert one.frozen == data.frozen == voxel.frozen
    assert one.shared == data.shared == voxel.shared
    assert (data.table, voxel.table) == (one.table, one.table // 8)
    assert data.backbone == voxel.backbone == one.backbone // 8
    assert data.batch == voxel.batch == one.batch // 8
    assert data.head == one.head // 8 < voxel.head < one.head // 4
    # Row-sparse: no dense gradient, but a step number a row and the drawn gradients.
    rows, drawn = 40_000, 32 * 625
    less = 4 * rows * 256 - 4 * rows - 4 * drawn * 256
    assert voxel.table - on(1, 8, "sparse").table == less
    with pytest.raises(ValueError, match="'lazy'; expected 'dense' or 'sparse'"):
        on(1, 1, "lazy")


def test_taps_of_the_head_are_kept_where_three_quarters_hold_the_step(monkeypatch):
    """head.remat 'auto'; a word that was chosen stays."""
    plain = config.Experiment()
    off = dataclasses.replace(plain, head=dataclasses.replace(plain.head, remat="off"))
    mesh = sharding.make_mesh(2, 4, stripes=8, batch_images=32)
    needs = memory.predict(off, GIANT, 10_001, 2, 4, table="sparse").total
    assert needs > memory.predict(plain, GIANT, 10_001, 2, 4, table="sparse").total

    def chosen(experiment, room):
        monkeypatch.setattr(memory, "limit", lambda found: room)
        found = memory.with_remat(experiment, GIANT, 10_001, mesh, table="sparse")
        assert found.data == experiment.data
        return found.head.remat

    least = math.ceil(needs / memory.SHARE)
    found = [chosen(plain, room) for room in (least, least - 2, None)]
    assert found == ["off", "on", "on"]
    assert chosen(off, 1) == "off"


def test_the_room_of_a_mesh_is_that_of_its_smallest_device():
    def mesh(*limits):
        stats = [{"bytes_limit": n} if n else None for n in limits]
        devices = [
            types.SimpleNamespace(platform="gpu", memory_stats=lambda s=s: s)
            for s in stats
        ]
        return types.SimpleNamespace(local_devices=devices)

    assert memory.limit(mesh(9, 7, 8)) == 7
    assert memory.limit(mesh(None)) is None
    assert memory.limit(sharding.make_mesh(1, 8, stripes=8, batch_images=8)) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "size", "rows", "changes"),
    [
        ((2, 4), "large", 100_000, {"head": {"embed_dim": 128, "channels": 64}}),
        ((1, 8), "giant", 100_000, {"backbone": {"remat": "full"}}),
        ((1, 8), "large", 100_000, {"head": {"remat": "off"}}),
        # The gradient of the table is larger than all that the backward pass keeps.
        ((8, 1), "small", 2_000_000, {}),
    ],
)
def test_the_prediction_is_within_a_tenth_of_what_xla_plans(mesh, size, rows, changes):
    """For real sizes, compiled for shapes; float32, the only type that a CPU has."""
    geometry = dinov2.GEOMETRIES[f"dinov2-{size}"]
    taps = {"name": "", "weights": "random", "taps": (1, 3, 6, 9, 12)}
    changes = {
        "data": {"crowd": ("none",), "batch_images": 8, "voxels_per_image": 2000},
        "backbone": {**taps, "dtype": "float32", **changes.get("backbone", {})},
        "head": {"dtype": "float32", **changes.get("head", {})},
    }
    experiment = scale_table.settings(mesh, **changes)
    run = scale_table.shapes_of_run(experiment, geometry, rows)
    planned = scale_table.peak(scale_table.compile_step(run))
    predicted = memory.predict(experiment, geometry, rows, *mesh).total
    print(f"{size} {mesh}: predicted {predicted / planned:.3f} of the plan")
    assert predicted == pytest.approx(planned, rel=0.1)


@pytest.mark.slow
def test_a_table_of_800_thousand_rows_trains_in_the_memory_foreseen():
    """In a process of its own, whose memory no other test has used before."""
    command = [sys.executable, "-m", "tests.scale_table", "--what=memory"]
    command += ["--rows=800000", "--embed_dim=32"]
    found = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=pathlib.Path(__file__).parent.parent,
    )
    ratios = dict(
        re.findall(r"(planned|measured).*, ([\d.]+) of the pred", found.stdout)
    )
    assert {k: float(v) for k, v in ratios.items()} == {
        "planned": pytest.approx(1, abs=0.2),
        "measured": pytest.approx(1, abs=0.2),
    }


PAGE = (pathlib.Path(__file__).parent.parent / "docs/scaling.md").read_text("utf-8")


@pytest.mark.parametrize("name", ["bfloat16", "float32", "parts", "traffic"])
def test_the_page_on_scaling_has_the_tables_that_the_formulas_give(name):
    assert scaling_page.tables()[name] in PAGE


def test_the_code_of_the_page_on_scaling_runs_and_prints_what_it_says(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block, {})  # noqa: S102
    said = re.search(r"print\(.*# (.*)", block)
    assert said
    assert capsys.readouterr().out == said[1] + "\n"


def test_the_command_of_the_page_on_scaling_is_one_that_configs_accept():
    """Its values for 64 devices, over the preset that it names."""
    settings = nsd8.get_config()
    flags = re.findall(r"--config\.(\w+)\.(\w+)=(\d+)", PAGE)
    assert len(flags) == 5
    settings.update_from_flattened_dict(
        {f"{section}.{key}": int(value) for section, key, value in flags}
    )
    mesh = config.parse(settings).mesh
    assert (mesh.data, mesh.voxel) == (1, 64)


def test_the_command_says_what_a_step_needs_of_its_own_mesh(tiny):
    experiment = tiny(data={"voxels_per_image": 20_000}, mesh={"data": 2, "voxel": 4})
    run = experiments.prepare_run(experiment, jax.devices())
    small = dinov2.GEOMETRIES["dinov2-small"]
    needs = memory.predict(experiment, small, 60, 2, 4)
    assert needs != memory.predict(experiment, small, 60, 4, 2)
    line = main._memory(run)
    assert line.startswith(f"a step needs about {needs.total / 1e9:.2f} GB on each")
    assert (
        f"head {needs.head / 1e9:.2f}; dense updates of the table; head.remat on)"
        in line
    )
