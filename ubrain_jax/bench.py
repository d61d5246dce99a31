"""Times training, transfer and prediction of a config on this machine.

    python -m ubrain_jax.bench --config=configs/nsd8.py --out=bench.json \\
        [--compare=torch] [--parts=gemm,train,transfer,predict,input,curves]

Weights are random, and so are pictures and responses, but for --crowd: nothing is
learned and no file of weights is read. Every part runs in a process of its own, within
--part_seconds; the JSON is written after each, so one that fails costs the others
nothing. docs/speed.md says what the figures mean.
"""

import dataclasses
import datetime
import importlib.util
import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import config_flags

import ubrain_jax
from ubrain_jax import (
    bench_steps,
    bench_table,
    cluster,
    config,
    errors,
    rounds,
    whole,
)
from ubrain_jax.model import encoder

PARTS = ("gemm", "train", "transfer", "predict", "input", "curves")
# In a round of the part curves, whose steps must be as many in each type.
_CURVE_STEPS = 20


class Plan(NamedTuple):
    """What is to be timed, and how long.

    Attributes:
        experiment: The config.
        parts: Some of `PARTS`.
        voxels: Of one subject.
        subjects: Whose voxels are in the table of training.
        compare: "torch" or "".
        torch_compile: How torch.compile is used: "whole", "blocks" or "" (not).
        crowd: Stores for the part input; none: it is left out.
        repeats: Rounds of each step.
        seconds: Of all rounds of one step, about.
        steps: Steps in a round; None: as many as fit.
        part_seconds: Most that a part may take, compiling included; twice that where
            it compares.
        gemm: Side of the matrices; None: 8192, on a CPU 2048.
    """

    experiment: config.Experiment
    parts: Sequence[str] = PARTS
    voxels: int = 40_000
    subjects: int = 8
    compare: str = ""
    torch_compile: str = "whole"
    crowd: Sequence[str] = ()
    repeats: int = 7
    seconds: float = 10.0
    steps: int | None = None
    part_seconds: float = 120.0
    gemm: int | None = None


def run(plan: Plan, out: str | os.PathLike | None = None) -> dict[str, Any]:
    """Times what is planned; one entry for each part.

    Args:
        plan: What.
        out: JSON file, written anew after each part; None: none.

    Returns:
        {"parts": {PART: {"timed": {STEP: ...}, "ratios": ..., "facts": ...}}, ...}; a
        part that failed has "failed", a sentence.

    Raises:
        errors.ConfigError: If the plan cannot work.
        errors.MissingInputError: If torch or its form of the step is absent.
    """
    check(plan)
    found: dict[str, Any] = {
        "format": "ubrain-bench 1",
        "version": ubrain_jax.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "weights": "random",
        "config": config.without_folders(plan.experiment),
        "plan": {k: v for k, v in plan._asdict().items() if k != "experiment"},
        "load_before": _load(),
        "parts": {},
    }
    for part in (p for p in PARTS if p in plan.parts):
        found["parts"][part] = _part(plan, part)
        found["load_after"] = _load()
        found["figures"] = [row._asdict() for row in bench_table.rows(found["parts"])]
        if out is not None:
            whole.write_text(out, json.dumps(found, indent=1) + "\n")
    return found


def check(plan: Plan) -> None:
    """Refuses a plan that cannot work, before a process is started.

    Raises:
        errors.ConfigError: Naming each fault.
        errors.MissingInputError: If torch or its form of the step is absent.
    """
    unknown = [p for p in plan.parts if p not in PARTS]
    faults = [f"--parts has {p!r} ({errors.nearest(p, PARTS)[:-1]})" for p in unknown]
    least: dict[str, float] = {
        "voxels": plan.experiment.data.stripes,
        "subjects": 1,
        "repeats": 2,
    }
    least |= {"seconds": 0, "part_seconds": 1, "steps": 1, "gemm": 1}
    for name, low in least.items():
        value = getattr(plan, name)
        if value is not None and not value >= low:
            faults.append(f"--{name} is {value}, not {low} or more")
    if not plan.parts:
        faults.append("--parts is empty")
    if plan.compare and "train" not in plan.parts:
        faults.append(f"--compare={plan.compare} is of the part train, not asked for")
    if faults:
        raise errors.ConfigError(
            "flags", "", "; ".join(faults), "values in range", "Change them."
        )
    bench_steps.geometry_of(plan.experiment.backbone)
    if plan.compare:
        check_torch()


def check_torch() -> pathlib.Path:
    """Folder of the clone, whose tests hold the torch form of the step."""
    clone = pathlib.Path(__file__).parent.parent
    if not (clone / "tests" / "torch_step.py").is_file():
        raise errors.MissingInputError(
            clone / "tests" / "torch_step.py",
            "",
            "no such file",
            "a clone of the repository, which has the step in torch",
            "Run from a clone, or leave --compare=torch out.",
        )
    if importlib.util.find_spec("torch") is None:
        raise errors.MissingInputError(
            "torch",
            "",
            "not installed",
            "torch, to compare with",
            "pip install '.[parity]', or leave --compare=torch out.",
        )
    return clone


def _load() -> float:
    """Processes that want to run on this machine, over the last minute."""
    return round(os.getloadavg()[0], 2)


def _settings(plan: Plan, part: str) -> dict[str, Any]:
    """First line for `bench_steps`."""
    experiment = plan.experiment
    if part == "input":
        data = dataclasses.replace(experiment.data, crowd=tuple(plan.crowd))
        experiment = dataclasses.replace(experiment, data=data)
    return {
        "part": part,
        "config": config.to_dict(experiment),
        "voxels": plan.voxels,
        "rows": plan.voxels * plan.subjects,
        "gemm": plan.gemm,
    }


_TO_START = 0.7  # of a part's time, most that all its processes take to get ready
_ENV = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}


def _part(plan: Plan, part: str) -> dict[str, Any]:
    """One part: its children, timed in turn.

    Time for the rounds is kept from a child that compiles too long; it is left out.
    """
    if part == "input" and not plan.crowd:
        return {"failed": "not measured: no store is given (--crowd)"}
    began = time.monotonic()
    compares = part == "train" and plan.compare
    limit = plan.part_seconds * (2 if compares else 1)
    entry: dict[str, Any] = {"timed": {}, "facts": {}, "memory": {}, "lost": {}}
    children: dict[str, rounds.Child] = {}

    def start(name: str, module: str, settings: dict, folder: Any = None) -> None:
        try:
            children[name] = rounds.Child(
                module,
                settings,
                began + limit,
                ready_by=began + _TO_START * limit,
                folder=folder,
                env=_ENV,
            )
            entry["facts"][name] = children[name].facts
        except rounds.Failed as error:
            entry["lost"][name] = str(error)

    try:
        start("jax", "ubrain_jax.bench_steps", _settings(plan, part))
        if compares and "jax" in children:
            for how in dict.fromkeys(("", plan.torch_compile)):
                facts, clone = children["jax"].facts, check_torch()
                settings = torch_settings(plan, facts, how)
                if settings is None:
                    entry["lost"]["torch"] = f"no torch on {facts['platform']}"
                    continue
                name = "torch compiled" if how else "torch eager"
                start(name, "tests.torch_step", settings, clone)
        turns = [
            rounds.Turn(step if name == "jax" else name, child, step)
            for name, child in children.items()
            for step in child.facts["first_step_seconds"]
        ]
        steps = plan.steps
        if part == "curves":
            steps = steps or _CURVE_STEPS
        timed = rounds.alternate(
            turns, plan.repeats, plan.seconds, steps, entry["lost"].__setitem__
        )
        for name, child in children.items():
            try:
                entry["memory"][name] = child.peak()
            except rounds.Failed as error:
                entry["lost"].setdefault(name, str(error))
    finally:
        for child in children.values():
            child.close()
    if not timed:
        entry["failed"] = "; ".join(f"{k}: {v}" for k, v in entry["lost"].items())
    for name, each in timed.items():
        entry["timed"][name] = {
            **rounds.spread(each.seconds)._asdict(),
            "steps_in_round": each.times,
            "seconds": each.seconds,
            "cpu_seconds": each.cpu_seconds,
            "told": each.told,
        }
    entry["ratios"] = _ratios(timed)
    entry["part_seconds"] = round(time.monotonic() - began, 1)
    return entry


def _ratios(timed: dict[str, rounds.Timed]) -> dict[str, dict[str, float]]:
    """How many times longer one step took than another, paired by round."""
    pairs = {
        "torch eager / train": ("train", "torch eager"),
        "torch compiled / train": ("train", "torch compiled"),
        "uncached / cached": ("cached", "uncached"),
        "uncached / cached_on_host": ("cached_on_host", "uncached"),
        "predict / backbone": ("backbone", "predict"),
        "float32 / bfloat16": ("bfloat16", "float32"),
    }
    return {
        name: rounds.spread(rounds.ratios(timed[one], timed[other]))._asdict()
        for name, (one, other) in pairs.items()
        if one in timed and other in timed
    }


def torch_settings(
    plan: Plan, facts: dict[str, Any], how: str
) -> dict[str, Any] | None:
    """First line for tests.torch_step: the same architecture and batch.

    Args:
        plan: What is timed.
        facts: Of the process that runs JAX: its config is the one that ran.
        how: Of torch.compile.

    Returns:
        None where torch has no such device.
    """
    device = {"cpu": "cpu", "gpu": "cuda"}.get(facts["platform"])
    if device is None:
        return None
    experiment = config.from_dict(facts["config"], "--config")
    geometry = bench_steps.geometry_of(experiment.backbone)
    rows, stripes = plan.voxels * plan.subjects, experiment.data.stripes
    return {
        "config": facts["config"],
        "geometry": dataclasses.asdict(geometry),
        "tokens": len(encoder.token_places(experiment, geometry)),
        "rows": stripes * encoder.table_shape(rows, stripes, 1)[1],
        "device": device,
        "compile": how,
    }


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    # A TPU lets one process in, and memory of a GPU is for those that are timed.
    jax.config.update("jax_platforms", "cpu")
    cluster.refuse_several("python -m ubrain_jax.bench")
    values = flags.FLAGS
    errors.check_flags(argv, values["config"])
    given = values.config
    with given.unlocked():
        given.data.crowd = given.data.crowd or ("none",)  # no store is opened
    experiment = config.parse(given, "--config")
    train = dataclasses.replace(experiment.train, steps=1000, epochs=None)
    told: dict[str, Any] = {name: values[name].value for name in _FLAGS}
    plan = Plan(dataclasses.replace(experiment, train=train), **told)
    print("random weights, no file of weights is read", flush=True)
    found = run(plan, values.out)
    print(bench_table.text(found))
    if values.out:
        print(f"wrote {values.out}")
    failed = [p for p, e in found["parts"].items() if "failed" in e]
    asked = [p for p in failed if "not measured" not in found["parts"][p]["failed"]]
    return errors.EXIT_INTERNAL if asked else 0


_FLAGS = Plan._fields[1:]  # all but the experiment


def define_flags() -> None:
    """Flags of this command."""
    default = Plan(config.Experiment())
    config_flags.DEFINE_config_file("config", None, "Experiment, a file in configs/.")
    flags.DEFINE_list("parts", list(PARTS), f"Some of {', '.join(PARTS)}.")
    flags.DEFINE_integer("voxels", default.voxels, "Of one subject.")
    flags.DEFINE_integer("subjects", default.subjects, "In the table of training.")
    flags.DEFINE_enum("compare", "", ["", "torch"], "Run this beside the train step.")
    flags.DEFINE_enum(
        "torch_compile",
        default.torch_compile,
        ["", "whole", "blocks"],
        "torch.compile of the whole loss, of each block and the head, or not at all.",
    )
    flags.DEFINE_list("crowd", [], "Stores for the part input.")
    flags.DEFINE_integer("repeats", default.repeats, "Rounds of each step.")
    flags.DEFINE_float("seconds", default.seconds, "Of all rounds of a step, about.")
    flags.DEFINE_integer("steps", None, "Steps in a round. Default: what fits.")
    flags.DEFINE_float("part_seconds", default.part_seconds, "Most for one part.")
    flags.DEFINE_integer("gemm", None, "Side of the product. Default: 8192, CPU 2048.")
    flags.DEFINE_string("out", None, "JSON file to write.")


if __name__ == "__main__":
    define_flags()
    errors.run_command(main)
