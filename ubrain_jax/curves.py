"""Learning curves: how well a new subject is predicted from how many pictures.

    python -m ubrain_jax.curves --encoder=runs/nsd7 --crowd=new.zarr \\
        --subject=nsd-subj01 --workdir=runs/curves --num_images=50,100,200,400,all \\
        --seeds=0,1,2,3,4

For every number of pictures and seed the subject is taken into the encoder from random
embeddings (arm random), from twins (twin), from twins without a step (twin0), and a
model of that subject alone is trained on the same pictures (scratch). Each is a cell
in a folder of its own; the same command goes on where it stopped. docs/curves.md says
what the tables hold.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from ubrain_jax import (
    cells,
    checkpoint,
    cluster,
    compile_cache,
    config,
    crowd,
    curve_results,
    errors,
    fit,
    frozen,
    subjects,
    twin,
)
from ubrain_jax.curve_results import ARMS, Place


class Scratch(NamedTuple):
    """Training of the arm scratch; None: see `scratch_experiment`."""

    steps: int | None = None
    batch_images: int | None = None
    eval_every_steps: int | None = None


class Plan(NamedTuple):
    """A study of learning curves.

    Attributes:
        encoder: Workdir of the trained encoder.
        store: That holds the new subject.
        subject: Its name there.
        workdir: Where to write.
        num_images: Numbers of pictures, val among them; None is all.
        seeds: Of pictures, start, order and dropout.
        arms: Some of `ARMS`.
        settings: Of the transfer arms; init, seed and, for twin0, steps are replaced.
        scratch: Of the arm scratch.
        backbone: The frozen network, where it is elsewhere now.
        cache: Folder for features too large for memory.
        keep_checkpoints: Of finished scratch cells.
    """

    encoder: str
    store: str
    subject: str
    workdir: str
    num_images: Sequence[int | None]
    seeds: Sequence[int]
    arms: Sequence[str] = tuple(ARMS)
    settings: fit.Settings = fit.Settings()
    scratch: Scratch = Scratch()
    backbone: str | None = None
    cache: str | None = None
    keep_checkpoints: bool = False


def run(plan: Plan, devices: list[Any] | None = None) -> None:
    """Runs the cells that are not finished and writes the tables and the figure.

    Args:
        plan: What to do.
        devices: Of the mesh; default: all.

    Raises:
        errors.InputError: If anything in the plan cannot work, before any training.
    """
    workdir = pathlib.Path(plan.workdir)
    with checkpoint.own_workdir(plan.workdir):
        trained = frozen.read_encoder(plan.encoder)
        stores = crowd.open_crowd((plan.store,), (plan.subject,))
        check(plan, stores)
        experiments = {
            place: scratch_experiment(plan, trained, stores, place, devices)
            for place in places(plan)
            if place.arm == "scratch"
        }
        study = {
            place: cells.Cell(
                workdir / f"{place.arm}-{place.num_images or 'all'}-{place.seed}",
                _settings(plan, trained, stores, place, experiments.get(place)),
            )
            for place in places(plan)
        }
        cells.check(list(study.values()))
        where = {cell.folder: place for place, cell in study.items()}
        todo = [p for p, cell in study.items() if not cells.is_finished(cell)]
        ready = step = None
        if any(place.arm != "scratch" for place in todo):
            ready, step = _make_ready(plan, trained, devices)
        trainer = cells.Trainer(devices)

        def work(cell: cells.Cell) -> dict[str, Any]:
            place = where[cell.folder]
            if ready is None or place.arm == "scratch":
                return trainer(experiments[place], cell.folder)
            settings = transfer_settings(plan.settings, place)
            return subjects.transfer(
                ready, settings, place.num_images, str(cell.folder), step
            )

        cells.run_all(
            list(study.values()), work, keep_checkpoints=plan.keep_checkpoints
        )
        results = curve_results.Study(
            plan.subject,
            _pool(stores),
            plan.arms,
            plan.num_images,
            plan.seeds,
            {place: cell.folder for place, cell in study.items()},
            {place: cells.seconds_of(cell) for place, cell in study.items()},
        )
        print(curve_results.write(results, workdir))
    print(f"tables and figure: {workdir}/curve.md curve.csv tests.csv curve.png")


def _make_ready(
    plan: Plan, trained: frozen.Trained, devices: list[Any] | None
) -> tuple[subjects.Ready, Any]:
    """Features of all pictures, and one compiled step for all transfer cells."""
    ready = subjects.make_ready(
        trained,
        plan.store,
        plan.subject,
        backbone=plan.backbone,
        cache=plan.cache,
        devices=devices,
    )
    if trained.seen is None:
        print(
            "note: the encoder's run has no trained_on.json, so whether it has seen "
            "the test pictures is not known"
        )
    return ready, fit.make_step(ready.run, plan.settings)


def places(plan: Plan) -> list[Place]:
    """All cells, in the order in which they run: the costly arm last, seed by seed."""
    every = (
        Place(arm, count, seed)
        for seed in plan.seeds
        for count in plan.num_images
        for arm in plan.arms
    )
    return sorted(every, key=lambda place: place.arm == "scratch")


def check(plan: Plan, stores: crowd.Crowd) -> None:
    """Refuses what the subject has too few pictures for, all at once.

    Raises:
        errors.ConfigError: If a number of pictures is too large or small.
        errors.InputError: If the store's splits are.
    """
    [subject] = stores.subjects
    pool = _pool(stores)
    faults = []
    for count in plan.num_images:
        if count is not None and count > pool:
            faults.append(f"{count} of {pool} that {subject.name} has")
            continue
        train_images = len(_chosen(stores, count, 0).samples("train"))
        needs_twins = {"twin", "twin0"} & set(plan.arms)
        if needs_twins and train_images < 2 * twin.FOLDS:
            faults.append(
                f"{count or 'all'} leaves {train_images} to train on, and twins need "
                f"{2 * twin.FOLDS}"
            )
    if faults:
        raise errors.ConfigError(
            "--num_images",
            "",
            "; ".join(faults),
            f"numbers up to {pool}, large enough for the arms",
            "Change --num_images or --arms.",
        )
    counts = {split: len(subject.samples(split)) for split in crowd.SPLITS}
    least = {"train": 1, "test": 3}
    if None in plan.num_images and "scratch" in plan.arms:
        least["val"] = 3  # which choose the step
    short = [f"{counts[s]} {s}, not {n}" for s, n in least.items() if counts[s] < n]
    if short:
        raise errors.InputError(
            plan.store,
            f"subjects/{subject.name}/split",
            "; ".join(short),
            "pictures in each split",
            "Prepare the store with these splits.",
        )


def _pool(stores: crowd.Crowd) -> int:
    """How many pictures all are."""
    return int(np.isin(stores.subjects[0].split, ("train", "val")).sum())


def _chosen(
    stores: crowd.Crowd, num_images: int | None, seed: int
) -> crowd.SubjectRows:
    """The subject with the pictures of a cell."""
    return crowd.with_images(stores, num_images, seed).subjects[0]


def transfer_settings(settings: fit.Settings, place: Place) -> fit.Settings:
    """How a cell of a transfer arm is fitted."""
    changed = dataclasses.replace(
        settings, init=place.arm.removesuffix("0"), seed=place.seed
    )
    return changed if place.arm != "twin0" else dataclasses.replace(changed, steps=0)


def scratch_experiment(
    plan: Plan,
    trained: frozen.Trained,
    stores: crowd.Crowd,
    place: Place,
    devices: list[Any] | None = None,
) -> config.Experiment:
    """The encoder's own settings for the new subject alone.

    By default as many steps as the encoder was trained for, its batch but not more
    images than there are, and 20 validations, of which the best gives the weights.

    Raises:
        errors.ConfigError: If the flags make no experiment.
    """
    old, given = trained.experiment, plan.scratch
    [subject] = stores.subjects
    steps = given.steps or _steps_of(plan.encoder)
    every = given.eval_every_steps or max(1, steps // 20)
    count = len(devices or jax.devices())
    images = len(_chosen(stores, place.num_images, place.seed).samples("train"))
    batch = min(given.batch_images or old.data.batch_images, images)
    batch = max(count, batch // count * count)
    stripes = old.data.stripes
    data = dataclasses.replace(
        old.data,
        crowd=(plan.store,),
        subjects=(plan.subject,),
        num_images=place.num_images,
        batch_images=batch,
        group_images=math.gcd(batch, old.data.group_images),
        # More would be padding.
        voxels_per_image=min(
            old.data.voxels_per_image, -(-subject.num_voxels // stripes) * stripes
        ),
    )
    weights = plan.backbone or old.backbone.weights
    experiment = dataclasses.replace(
        old,
        data=data,
        backbone=dataclasses.replace(old.backbone, weights=weights),
        train=dataclasses.replace(
            old.train,
            steps=steps,
            epochs=None,
            seed=place.seed,
            select="best",
            eval_every_steps=min(every, steps),
            checkpoint_every_steps=min(every, steps),
            keep_checkpoints=1,
        ),
        mesh=config.Mesh(),
    )
    return config.from_dict(config.to_dict(experiment), "the arm scratch")


def _steps_of(encoder: str) -> int:
    """Steps that a run was trained for, whichever weights are its best."""
    return checkpoint.newest_whole(pathlib.Path(encoder).absolute() / "checkpoints")


def _settings(
    plan: Plan,
    trained: frozen.Trained,
    stores: crowd.Crowd,
    place: Place,
    experiment: config.Experiment | None,
) -> dict[str, Any]:
    """All that the numbers of a cell depend on."""
    told = {**place._asdict(), "subject": plan.subject}
    if experiment is not None:
        values = cells.settings_of(experiment, stores)
        # Known by content, wherever it lies.
        values["backbone"]["weights"] = trained.backbone_sha256 or "random"
        return {**told, **values}
    settings = transfer_settings(plan.settings, place)
    return {
        **told,
        **dataclasses.asdict(settings),
        "crowd": stores.fingerprint,
        "encoder_sha256": trained.sha256,
    }


def define_flags() -> None:
    """Flags of this command."""
    subjects.define_flags()
    subjects.define_settings("init", "seed")
    flags.DEFINE_list(
        "num_images",
        ["50", "100", "200", "400", "all"],
        "Numbers of pictures to learn from, those for validation among them; 'all': "
        "all, in the store's splits.",
    )
    flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds.")
    flags.DEFINE_list("arms", list(ARMS), f"Of {', '.join(ARMS)}.")
    for name, text in {
        "steps": "Steps. Default: the encoder's.",
        "batch_images": "Images in a batch. Default: the encoder's, or fewer.",
        "eval_every_steps": "Steps between validations. Default: a 20th of all.",
    }.items():
        flags.DEFINE_integer(
            f"scratch_{name}", None, f"Arm scratch: {text}", lower_bound=1
        )
    flags.DEFINE_bool("keep_checkpoints", False, "Keep those of the arm scratch.")


def _number_of_images(text: str) -> int | None:
    if text == "all":
        return None
    if int(text) < 4:
        raise ValueError(text)
    return int(text)


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    cluster.refuse_several("python -m ubrain_jax.curves")
    values = flags.FLAGS
    needed = ("encoder", "crowd", "subject", "workdir")
    errors.check_flags(argv, *(values[name] for name in needed))
    plan = Plan(
        values.encoder,
        values.crowd,
        values.subject,
        values.workdir,
        cells.read_list(
            "num_images", values.num_images, _number_of_images, "4 or more, or all"
        ),
        cells.read_list("seeds", values.seeds, cells.seed, "seeds in 0..2^31-1"),
        cells.read_names("arms", values.arms, ARMS),
        subjects.read_settings(init="random", seed=0),
        Scratch(*(values[f"scratch_{name}"].value for name in Scratch._fields)),
        values.backbone,
        values.cache,
        values.keep_checkpoints,
    )
    print(compile_cache.begin(), flush=True)
    run(plan)
    return 0


if __name__ == "__main__":
    define_flags()
    errors.run_command(main)
