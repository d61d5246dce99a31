"""The command that times: its plan, its parts, its table."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys
from typing import ClassVar

import pytest

from ubrain_jax import bench, bench_steps, bench_table, config, errors, rounds


def plan(**changes):
    backbone = config.Backbone("dinov2-small", "random", (1, 2), 28, "bfloat16")
    data = config.Data(("none",), batch_images=4, voxels_per_image=16)
    train = config.Train(steps=5)
    experiment = config.Experiment(data=data, backbone=backbone, train=train)
    return bench.Plan(experiment, repeats=3, steps=2, **changes)


def times(part):
    """Seconds of each step that the stand-in of a child tells."""
    return {
        "gemm": {"gemm": 0.5},
        "train": {"train": 2.0},
        "transfer": {"cached": 0.1, "uncached": 1.5},
        "predict": {"backbone": 1.0, "predict": 1.2},
        "input": {"read": 0.1, "loop": 2.0},
        "curves": {"float32": 3.0, "bfloat16": 2.0},
    }[part]


class FakeChild:
    """Answers without a process; the part in `fails` does not start."""

    fails = ()
    made: ClassVar[list] = []

    def __init__(self, module, settings, deadline, **options):
        del deadline, options
        self.made.append((module, settings))
        part = settings.get("part", "train")
        if part in self.fails or settings.get("compile") in self.fails:
            raise rounds.Failed("out of memory")
        self.steps = {"train": 5.0} if "torch" in module else times(part)
        self.facts = {
            "first_step_seconds": {k: 9.0 for k in self.steps},
            "platform": "gpu",
            "device_kind": "NVIDIA H200",
            "num_devices": 1,
            "jax": "0",
            "notes": [],
            "config": config.to_dict(plan().experiment),
            "images": 4,
            "model_flops": 4e12,
            "flops": 100e12,
            "datasheet": 989e12,
        }
        if "torch" in module:
            self.facts = {
                "torch": "2",
                "device": "H200",
                "threads": 1,
                "first_step_seconds": {"train": 9.0},
            }

    def run(self, step, count):
        seconds = self.steps[step] * count
        return {
            "seconds": seconds,
            "cpu_seconds": seconds,
            "wait_seconds": 0.01,
            "loss": 1.5,
        }

    def peak(self):
        return {"peak_bytes": 3_000_000_000, "process_bytes": {}}

    def close(self):
        pass


@pytest.fixture
def fake(monkeypatch):
    own = type("Own", (FakeChild,), {"made": []})
    monkeypatch.setattr(bench.rounds, "Child", own)
    monkeypatch.setattr(bench, "check_torch", lambda: pathlib.Path())
    return own


def test_all_parts_are_timed_and_written(fake, tmp_path):
    out = tmp_path / "bench.json"
    found = bench.run(plan(compare="torch", crowd=("a.zarr",)), out)
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    rows = {(row["part"], row["step"]): row for row in found["figures"]}
    train = rows["train", "train"]
    assert train["images_per_second"] == 2
    assert train["tflops_per_second"] == 2
    assert train["of_gemm"] == pytest.approx(2 / 200)
    assert train["of_datasheet"] == pytest.approx(2 / 989)
    assert train["peak_gb"] == 3
    assert rows["train", "torch eager"]["images_per_second"] == pytest.approx(0.8)
    assert rows["train", "torch compiled"]["compile_s"] == pytest.approx(4)
    ratios = {k: r for p in found["parts"].values() for k, r in p["ratios"].items()}
    assert {k: round(r["median"], 3) for k, r in ratios.items()} == {
        "torch eager / train": 2.5,
        "torch compiled / train": 2.5,
        "uncached / cached": 15,
        "predict / backbone": 1.2,
        "float32 / bfloat16": 1.5,
    }
    told = dict(fake.made)["tests.torch_step"]
    assert (told["device"], told["tokens"], told["rows"]) == ("cuda", 4, 320_000)


@pytest.mark.parametrize("part", bench.PARTS)
def test_a_part_that_fails_does_not_lose_the_others(fake, part, tmp_path):
    fake.fails = (part,)
    found = bench.run(plan(crowd=("a.zarr",)), tmp_path / "b.json")
    assert "out of memory" in found["parts"].pop(part)["failed"]
    assert len(found["parts"]) == len(bench.PARTS) - 1
    assert all(entry["timed"] for entry in found["parts"].values())
    assert "1 x NVIDIA H200" in bench_table.text(found)


def test_a_form_that_does_not_compile_leaves_the_others(fake):
    fake.fails = ("whole",)
    entry = bench.run(plan(compare="torch", parts=("train",)))["parts"]["train"]
    assert set(entry["timed"]) == {"train", "torch eager"}
    assert entry["lost"] == {"torch compiled": "out of memory"}


def test_without_a_store_the_input_is_said_to_be_unmeasured(fake):
    found = bench.run(plan(parts=("gemm", "input")))
    assert found["parts"]["input"]["failed"] == (
        "not measured: no store is given (--crowd)"
    )
    text = bench_table.text(found)
    assert "200 TFLOP/s measured, 989 by the data sheet" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parts": ("gemm", "trian")}, "--parts has 'trian' (Did you mean train"),
        ({"parts": ()}, "--parts is empty"),
        ({"voxels": 3}, "--voxels is 3, not 8 or more"),
        ({"seconds": float("nan")}, "--seconds is nan, not 0 or more"),
        ({"parts": ("gemm",), "compare": "torch"}, "of the part train"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(changes, said):
    with pytest.raises(errors.ConfigError) as caught:
        bench.run(plan(**changes))
    assert said in str(caught.value)


def test_a_backbone_without_a_name_is_refused():
    nameless = dataclasses.replace(plan().experiment.backbone, name="")
    with pytest.raises(errors.ConfigError, match="Name the geometry"):
        bench_steps.geometry_of(nameless)


def test_without_torch_or_a_clone_the_comparison_says_what_to_do(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "torch" else find(name),
    )
    with pytest.raises(errors.MissingInputError, match="parity"):
        bench.check_torch()
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "ubrain_jax" / "bench.py"))
    with pytest.raises(errors.MissingInputError, match="Run from a clone"):
        bench.check_torch()


def test_a_cpu_gets_settings_that_it_can_run():
    given = plan().experiment
    given = dataclasses.replace(
        given, backbone=dataclasses.replace(given.backbone, attention="cudnn")
    )
    found, notes = bench_steps.of_device(given, "cpu")
    assert (found.backbone.dtype, found.head.dtype) == ("float32", "float32")
    assert found.backbone.attention == "xla"
    assert len(notes) == 2
    assert bench_steps.of_device(given, "gpu") == (given, [])


@pytest.mark.slow
def test_the_command_times_the_real_steps(tmp_path, store):
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "ubrain_jax.bench", f"--out={out}"]
    command += ["--config=configs/nsd8.py", "--config.backbone.name=dinov2-small"]
    command += ["--config.backbone.image_px=28", "--config.backbone.taps=1,2"]
    command += ["--config.data.batch_images=8", "--config.data.voxels_per_image=16"]
    command += ["--config.head.embed_dim=8", "--config.head.channels=8"]
    command += ["--voxels=40", "--subjects=2", "--repeats=2", "--steps=1", "--gemm=64"]
    command += [f"--crowd={store}", "--part_seconds=300"]
    command += ["--parts=gemm,train,transfer,predict,input"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    steps = {name for part in found["parts"].values() for name in part["timed"]}
    assert steps == {
        *("gemm", "train", "cached", "cached_on_host", "uncached", "cached_all"),
        *("backbone", "predict", "read", "loop"),
    }
    assert "float32 in place of bfloat16" in done.stdout
    facts = found["parts"]["train"]["facts"]["jax"]
    # The head's taps are computed again.
    assert 1 < facts["xla_flops"] / facts["model_flops"] < 1.3
