"""Crowd experiments: is a subject predicted better by a model of many brains?

    python -m ubrain_jax.compare --config=configs/crowd.py --workdir=runs/compare \\
        --seeds=0,1,2 --config.train.steps=20000 --config.train.select=best

Three models score the test pictures of each subject: one of this subject alone (arm
single), one of all subjects of its store (dataset), and one of all subjects of all
stores (crowd). Every run has the same settings and the same number of steps, and is
run once for all the subjects that it scores. The same command goes on where it
stopped. docs/curves.md says what the tables hold.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from ubrain_jax import (
    cells,
    checkpoint,
    cluster,
    compare_results,
    compile_cache,
    config,
    crowd,
    errors,
    train,
)
from ubrain_jax.compare_results import ARMS


class Plan(NamedTuple):
    """A crowd experiment.

    Attributes:
        experiment: Settings of every run. Its stores and subjects are the crowd.
        workdir: Where to write.
        seeds: Of the training.
        arms: Some of `ARMS`.
        subjects: Those to compare; empty: all of the crowd.
        keep_checkpoints: Of finished runs.
    """

    experiment: config.Experiment
    workdir: str
    seeds: Sequence[int]
    arms: Sequence[str] = tuple(ARMS)
    subjects: Sequence[str] = ()
    keep_checkpoints: bool = False


class Group(NamedTuple):
    """Subjects that are trained together."""

    name: str
    stores: tuple[str, ...]
    subjects: tuple[str, ...]


def run(plan: Plan, devices: list[Any] | None = None) -> None:
    """Trains what is not finished and writes the tables and the figure.

    Args:
        plan: What to do.
        devices: Of the mesh; default: all.

    Raises:
        errors.InputError: If anything in the plan cannot work, before any training.
    """
    workdir, old = pathlib.Path(plan.workdir), plan.experiment
    with checkpoint.own_workdir(plan.workdir):
        everyone = crowd.open_crowd(old.data.crowd, old.data.subjects)
        subjects = chosen_subjects(plan, everyone)
        # Of the whole crowd, where the config says epochs.
        steps = train.total_steps(
            old, crowd.with_images(everyone, old.data.num_images, 0)
        )
        groups = find_groups(plan, everyone, subjects)
        distinct = list(dict.fromkeys(groups.values()))
        opened = {g: crowd.open_crowd(g.stores, g.subjects) for g in distinct}
        check(plan, opened)
        study = {
            (group, seed): cells.Cell(
                workdir / f"{group.name}-{seed}",
                cells.settings_of(
                    experiment_of(old, group, seed, steps), opened[group]
                ),
            )
            for seed in plan.seeds
            for group in distinct
        }
        cells.check(list(study.values()))
        for line in everyone.notes:
            print(f"note: {line}", flush=True)
        if old.train.select == "last":
            print("note: train.select is 'last': the arms may overfit differently")
        where = {cell.folder: key for key, cell in study.items()}
        trainer = cells.Trainer(devices)

        def work(cell: cells.Cell) -> dict[str, Any]:
            group, seed = where[cell.folder]
            return trainer(experiment_of(old, group, seed, steps), cell.folder)

        cells.run_all(
            list(study.values()), work, keep_checkpoints=plan.keep_checkpoints
        )
        results = compare_results.Study(
            subjects,
            [arm for arm in ARMS if arm in plan.arms],
            plan.seeds,
            steps,
            {
                (arm, name, seed): study[group, seed].folder
                for (arm, name), group in groups.items()
                for seed in plan.seeds
            },
            {cell.folder: cells.seconds_of(cell) for cell in study.values()},
        )
        print(compare_results.write(results, workdir))
    print(f"tables and figure: {workdir}/compare.md compare.csv tests.csv compare.png")


def chosen_subjects(plan: Plan, everyone: crowd.Crowd) -> list[str]:
    """The subjects to compare, in the order of the crowd.

    Raises:
        errors.ConfigError: If one is not in the crowd.
    """
    names = [s.name for s in everyone.subjects]
    unknown = [name for name in plan.subjects if name not in names]
    if unknown:
        raise errors.ConfigError(
            "--subjects",
            "",
            f"{', '.join(unknown)} not in the crowd",
            "subjects of the config's stores",
            errors.nearest(unknown[0], names),
        )
    return [name for name in names if name in plan.subjects or not plan.subjects]


def find_groups(
    plan: Plan, everyone: crowd.Crowd, subjects: Sequence[str]
) -> dict[tuple[str, str], Group]:
    """Who is trained together, for each arm and subject.

    Arms that come to the same subjects are one group, which is run once.
    """
    paths = everyone.paths
    stems = [os.path.splitext(os.path.basename(p.rstrip("/")))[0] for p in paths]
    groups = {}
    for arm in plan.arms:
        for name in subjects:
            [store] = {s.store for s in everyone.subjects if s.name == name}
            within = {
                "single": [s for s in everyone.subjects if s.name == name],
                "dataset": [s for s in everyone.subjects if s.store == store],
                "crowd": list(everyone.subjects),
            }[arm]
            used = sorted({s.store for s in within})
            stem = stems[used[0]]
            if stems.count(stem) > 1:
                stem = f"{used[0]}-{stem}"
            title = "crowd" if len(used) > 1 else f"dataset-{stem}"
            if len(within) == 1:
                title = f"single-{within[0].name}"
            groups[arm, name] = Group(
                title, tuple(paths[k] for k in used), tuple(s.name for s in within)
            )
    return groups


def experiment_of(
    old: config.Experiment, group: Group, seed: int, steps: int
) -> config.Experiment:
    """The settings of one run."""
    return dataclasses.replace(
        old,
        data=dataclasses.replace(old.data, crowd=group.stores, subjects=group.subjects),
        train=dataclasses.replace(old.train, steps=steps, epochs=None, seed=seed),
    )


def check(plan: Plan, opened: dict[Group, crowd.Crowd]) -> None:
    """Refuses runs that cannot be trained, chosen by validation or scored.

    Raises:
        errors.ConfigError: If a subject has fewer pictures than data.num_images.
        errors.InputError: If the splits of a subject are too small.
    """
    faults, best = {}, plan.experiment.train.select == "best"
    for group, stores in opened.items():
        stores = crowd.with_images(stores, plan.experiment.data.num_images, 0)
        counts = {
            s.name: {split: len(s.samples(split)) for split in crowd.SPLITS}
            for s in stores.subjects
        }
        for name, count in counts.items():
            if count["train"] < 1 or count["test"] < 3:
                faults[name] = (
                    f"{name} has {count['train']} train, {count['test']} test"
                )
        if best and all(count["val"] < 3 for count in counts.values()):
            faults[group.name] = f"no subject of {group.name} has 3 val"
    if faults:
        raise errors.InputError(
            ", ".join(plan.experiment.data.crowd),
            "split",
            "; ".join(faults.values()),
            "for each subject a train picture and 3 test pictures"
            + (", and for train.select='best' 3 val pictures in each run" * best),
            "Prepare the stores with these splits, or leave subjects out with "
            "data.subjects.",
        )


def define_flags() -> None:
    """Flags of this command."""
    config_flags.DEFINE_config_file(
        "config", None, "File in configs/; change values with --config.section.key=..."
    )
    flags.DEFINE_string("workdir", None, "Folder to write. Made if absent.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the training.")
    flags.DEFINE_list("arms", list(ARMS), f"Of {', '.join(ARMS)}.")
    flags.DEFINE_list("subjects", [], "To compare. Default: all of the config.")
    flags.DEFINE_bool("keep_checkpoints", False, "Keep those of finished runs.")


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    cluster.refuse_several("python -m ubrain_jax.compare")
    values = flags.FLAGS
    errors.check_flags(argv, values["config"], values["workdir"])
    plan = Plan(
        config.parse(values.config, "--config"),
        values.workdir,
        cells.read_list("seeds", values.seeds, cells.seed, "seeds in 0..2^31-1"),
        cells.read_names("arms", values.arms, ARMS),
        cells.read_list("subjects", values.subjects, str, "names")
        if values.subjects
        else (),
        values.keep_checkpoints,
    )
    print(compile_cache.begin(), flush=True)
    run(plan)
    return 0


if __name__ == "__main__":
    define_flags()
    errors.run_command(main)
