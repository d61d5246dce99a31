"""An ablation study: one setting changed at a time, and what that does to the scores.

    python -m ubrain_jax.ablate --config=configs/ablations.py \\
        --workdir=runs/ablations --seeds=0,1,2 --config.data.crowd=nsd.zarr \\
        [--only=position-off,embed-64]

The config file has `get_config()`, the run that is changed, and `sweep()`, which yields
a name and the keys that it changes. Each change and seed is a run in a folder of its
own, and so is the unchanged one, `base`; the same command goes on where it stopped.
docs/ablations.md says what the tables hold.
"""

import importlib.machinery
import pathlib
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from ubrain_jax import (
    ablation_results,
    cells,
    checkpoint,
    cluster,
    compile_cache,
    config,
    crowd,
    errors,
    experiments,
)
from ubrain_jax.ablation_results import BASE


class Plan(NamedTuple):
    """An ablation study.

    Attributes:
        experiment: The run that is changed.
        changes: Name -> keys, as "section.key", and their values.
        workdir: Where to write.
        seeds: Of the training.
        keep_checkpoints: Of finished runs.
    """

    experiment: config.Experiment
    changes: Mapping[str, Mapping[str, Any]]
    workdir: str
    seeds: Sequence[int]
    keep_checkpoints: bool = False


def run(plan: Plan, devices: list[Any] | None = None) -> None:
    """Trains what is not finished and writes the tables and the figure.

    Args:
        plan: What to do.
        devices: Of the mesh; default: all.

    Raises:
        errors.InputError: If anything in the plan cannot work, before any training.
    """
    workdir = pathlib.Path(plan.workdir)
    made = {
        (name, seed): changed(plan.experiment, name, changes, seed)
        for seed in plan.seeds
        for name, changes in {BASE: {}, **plan.changes}.items()
    }
    data = plan.experiment.data
    with checkpoint.own_workdir(plan.workdir):
        stores = crowd.open_crowd(data.crowd, data.subjects)
        check(stores, data.crowd)
        study = {
            key: cells.Cell(
                workdir / f"{key[0]}-{key[1]}", cells.settings_of(experiment, stores)
            )
            for key, experiment in made.items()
        }
        cells.check(list(study.values()))
        _check_networks(list(made.values()))
        where = {cell.folder: key for key, cell in study.items()}
        trainer = cells.Trainer(devices)

        def work(cell: cells.Cell) -> dict[str, Any]:
            return trainer(made[where[cell.folder]], cell.folder)

        cells.run_all(
            list(study.values()), work, keep_checkpoints=plan.keep_checkpoints
        )
        results = ablation_results.Study(
            [s.name for s in stores.subjects],
            {BASE: {}, **plan.changes},
            plan.seeds,
            {key: cell.folder for key, cell in study.items()},
            {cell.folder: cells.seconds_of(cell) for cell in study.values()},
        )
        print(ablation_results.write(results, workdir))
    print(f"tables and figure: {workdir}/ablations.md ablations.csv tests.csv")


def changed(
    base: config.Experiment, name: str, changes: Mapping[str, Any], seed: int
) -> config.Experiment:
    """The base with other values, checked like any config.

    Raises:
        errors.ConfigError: If a key is unknown, a value cannot be, or nothing changes.
    """
    values = config.to_dict(base)
    values["train"]["seed"] = seed
    before = config.from_dict(values, "--config")
    for key, value in changes.items():
        section, _, field = key.partition(".")
        if not isinstance(values.get(section), dict) or not field:
            raise errors.ConfigError(
                f"sweep(): {name}",
                key,
                "no section and key",
                "a key such as head.embed_dim",
                errors.nearest(section, values),
            )
        values[section][field] = value
    after = config.from_dict(values, f"sweep(): {name}")
    if changes and after == before:
        raise errors.ConfigError(
            f"sweep(): {name}",
            "",
            f"{dict(changes)} are the values of the config already",
            "a change",
            f"Leave it out with --only, or change the config; {BASE} is always run.",
        )
    return after


def check(stores: crowd.Crowd, paths: Sequence[str]) -> None:
    """Refuses subjects that cannot be trained on and scored.

    Raises:
        errors.InputError: If one has no train picture, or fewer than 3 for test.
    """
    short = [
        f"{s.name} has {len(s.samples('train'))} train, {len(s.samples('test'))} test"
        for s in stores.subjects
        if len(s.samples("train")) < 1 or len(s.samples("test")) < 3
    ]
    if short:
        raise errors.InputError(
            ", ".join(paths),
            "split",
            "; ".join(short),
            "for each subject a train picture and 3 test pictures",
            "Leave subjects out with data.subjects.",
        )


def _check_networks(made: Sequence[config.Experiment]) -> None:
    """Loads the deepest frozen network: taps beyond its blocks are refused here."""
    deepest = max((e.backbone for e in made), key=lambda b: b.taps[-1])
    experiments.load_network(deepest)


def read_sweep(file: str, module: ModuleType) -> dict[str, dict[str, Any]]:
    """What `sweep()` of a config file yields, by name.

    Raises:
        errors.ConfigError: If there is none, or a name cannot be a folder or is not
            the only one.
    """
    if not callable(getattr(module, "sweep", None)):
        raise errors.ConfigError(
            file,
            "sweep",
            "not defined",
            "a function that yields names and changes",
            "See configs/ablations.py.",
        )
    found: dict[str, dict[str, Any]] = {}
    for item in module.sweep():
        good = isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], dict)
        name = str(item[0]) if good else repr(item)
        if not good or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or not item[1]:
            raise errors.ConfigError(
                file,
                "sweep",
                f"yields {item!r}",
                "a name of letters, digits, dots and dashes, and a dict of changes",
                "Write yield 'embed-64', {'head.embed_dim': 64}.",
            )
        if name in found or name == BASE:
            raise errors.ConfigError(
                file, "sweep", f"{name!r} again", "each name once", "Rename it."
            )
        found[name] = dict(item[1])
    return found


def _module(file: str) -> ModuleType:
    """The config file, as ml_collections runs it."""
    loader = importlib.machinery.SourceFileLoader("ablations", file)
    module = ModuleType(loader.name)
    module.__file__ = file
    loader.exec_module(module)
    return module


def define_flags() -> Any:
    """Flags of this command; the one of the config."""
    flags.DEFINE_string("workdir", None, "Folder to write. Made if absent.")
    flags.DEFINE_list("seeds", ["0"], "Seeds of the training.")
    flags.DEFINE_list("only", [], "Names of sweep(). Default: all.")
    flags.DEFINE_bool("keep_checkpoints", False, "Keep those of finished runs.")
    return config_flags.DEFINE_config_file(
        "config",
        None,
        "File with get_config() and sweep(); change values with --config.section.key=.",
    )


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    cluster.refuse_several("python -m ubrain_jax.ablate")
    values = flags.FLAGS
    errors.check_flags(argv, values["config"], values["workdir"])
    file = config_flags.get_config_filename(values["config"])
    sweep = read_sweep(file, _module(file))
    names = cells.read_names("only", values.only, sweep) if values.only else list(sweep)
    plan = Plan(
        config.parse(values.config, "--config"),
        {name: sweep[name] for name in names},
        values.workdir,
        cells.read_list("seeds", values.seeds, cells.seed, "seeds in 0..2^31-1"),
        values.keep_checkpoints,
    )
    print(compile_cache.begin(), flush=True)
    run(plan)
    return 0


if __name__ == "__main__":
    define_flags()
    errors.run_command(main)
