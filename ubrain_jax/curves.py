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

import contextlib
import dataclasses
import itertools
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from ubrain_jax import (
    cells,
    checkpoint,
    config,
    crowd,
    errors,
    evaluate,
    fit,
    frozen,
    studies,
    subjects,
    train,
    twin,
)
from ubrain_jax.maps import charts

ARMS = {
    "random": "embeddings fitted from random ones",
    "twin": "embeddings fitted from those of existing voxels that respond alike",
    "twin0": "the embeddings of those voxels, not fitted",
    "scratch": "a model of this subject alone, trained on the same pictures",
}


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


class Place(NamedTuple):
    """Where a cell stands in the study."""

    arm: str
    num_images: int | None
    seed: int


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
        write(plan, stores, study)


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
    pool = int(np.isin(subject.split, ("train", "val")).sum())
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
    stripes = old.data.stripes
    data = dataclasses.replace(
        old.data,
        crowd=(plan.store,),
        subjects=(plan.subject,),
        num_images=place.num_images,
        batch_images=max(count, batch // count * count),
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
    with contextlib.closing(checkpoint.open_manager(encoder, 1)) as manager:
        return int(manager.latest_step() or 0)


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


# Results.


def write(plan: Plan, stores: crowd.Crowd, study: dict[Place, cells.Cell]) -> None:
    """Writes curve.csv, tests.csv, curve.md, curve.png and curve.svg."""
    out, name = pathlib.Path(plan.workdir), plan.subject
    scores = {
        place: studies.read_score(cell.folder, name)._replace(
            seconds=cells.seconds_of(cell)
        )
        for place, cell in study.items()
    }
    pool = int(np.isin(stores.subjects[0].split, ("train", "val")).sum())
    ordered = list(itertools.product(plan.arms, plan.num_images))
    rows = [
        {
            "arm": arm,
            "num_images": count or "all",
            "images": count or pool,
            "seed": seed,
            **scores[Place(arm, count, seed)]._asdict(),
        }
        for arm, count in ordered
        for seed in plan.seeds
    ]
    compared, table = compare(plan, study, scores)
    evaluate.write_text(out / "curve.csv", studies.csv_text(rows))
    evaluate.write_text(out / "tests.csv", studies.csv_text(table))
    means = {
        pair: [scores[Place(*pair, seed)] for seed in plan.seeds] for pair in ordered
    }
    page = _page(plan, pool, means, compared, [c.folder for c in study.values()])
    evaluate.write_text(out / "curve.md", page)
    draw(plan, pool, means)
    print(page.split("## Arms")[0])
    print(f"tables and figure: {out}/curve.csv tests.csv curve.md curve.png curve.svg")


Row = dict[str, Any]
Compared = dict[str, tuple[list[list[str]], list[Row]]]

SAME, CROSS = "same pictures", "against scratch on all pictures"


def compare(
    plan: Plan, study: dict[Place, cells.Cell], scores: dict[Place, studies.Score]
) -> tuple[Compared, list[Row]]:
    """Tests between arms with the same pictures, and of transfer against scratch.

    Returns:
        For each of the two tables the names and columns of its rows; the rows of
        tests.csv.
    """
    one = [
        ((a, count), (b, count))
        for count in plan.num_images
        for a, b in itertools.combinations(plan.arms, 2)
    ]
    whole = ("scratch", None)
    other = [
        ((arm, count), whole)
        for arm in plan.arms
        for count in plan.num_images
        if arm != "scratch" and "scratch" in plan.arms and None in plan.num_images
    ]
    voxels = {}
    for pair in itertools.product(plan.arms, plan.num_images):
        folders = [study[Place(*pair, seed)].folder for seed in plan.seeds]
        voxels[pair] = studies.seed_mean(folders, plan.subject)

    def medians(pair: tuple[str, int | None]) -> list[float]:
        return [scores[Place(*pair, seed)].median_r for seed in plan.seeds]

    compared, table = {}, []
    for name, pairs in ((SAME, one), (CROSS, other)):
        found = studies.comparison_rows(
            [
                (
                    studies.compare_voxels(voxels[a], voxels[b]),
                    studies.compare_pairs(medians(a), medians(b)),
                )
                for a, b in pairs
            ]
        )
        texts = [[str(x or "all") for x in (*a, *b)] for a, b in pairs]
        compared[name] = texts, found
        keys = ("first", "first_images", "second", "second_images")
        table += [
            {"table": name, **dict(zip(keys, text, strict=True)), **row}
            for text, row in zip(texts, found, strict=True)
        ]
    return compared, table


Means = dict[tuple[str, int | None], list[studies.Score]]


def _page(
    plan: Plan,
    pool: int,
    means: Means,
    compared: Compared,
    folders: Sequence[pathlib.Path],
) -> str:
    """curve.md."""
    first = next(iter(means.values()))[0]
    head = ["arm", "pictures", "seeds", "median r", "mean r", "median r / ceiling"]
    head += ["top-1 %", "top-5 %", "step", "seconds"]
    body = []
    for (arm, count), found in means.items():
        columns = {
            key: studies.spread([getattr(s, key) for s in found])
            for key in studies.Score._fields
        }
        shown = [columns[k] for k in ("median_r", "mean_r", "median_normalised")]
        percents = [
            studies.spread([100 * getattr(s, key) for s in found])
            for key in ("top1", "top5")
        ]
        body.append(
            [
                arm,
                f"all ({pool})" if count is None else str(count),
                str(columns["median_r"].num),
                *map(studies.mean_sd, shown),
                *(studies.mean_sd(p, 1) for p in percents),
                *(studies.number(columns[k].mean, 0) for k in ("step", "seconds")),
            ]
        )
    parts = [
        f"# Learning curve of {studies.plain(plan.subject)}",
        *(f"**Note.** {studies.plain(w)}" for w in studies.read_warnings(folders)),
        f"{first.voxels} voxels, {first.test_images} test pictures, the same for all "
        f"cells; {len(plan.seeds)} seeds. Mean ± SD over seeds (N - 1). Chance: top-1 "
        f"{100 / first.pool:.1f} %, top-5 {100 * min(1, 5 / first.pool):.1f} % of a "
        f"pool of {first.pool}. A number of pictures has those for validation in it.",
        "\n".join(f"- {arm}: {ARMS[arm]}." for arm in plan.arms),
        "## Scores",
        studies.markdown_table(head, body),
    ]
    titles = {
        SAME: "## Arms against each other, on the same pictures",
        CROSS: "## Transfer against a model of the subject alone on all its pictures",
    }
    for name, (texts, rows) in compared.items():
        if rows:
            columns = ["first", "pictures", "second", "pictures"]
            found = studies.comparison_table(columns, texts, rows)
            parts += [titles[name], found]
    if any(rows for _, rows in compared.values()):
        parts += [
            "Differences are of the first minus the second, in correlation.",
            "## How to read the tests",
            studies.READING_TESTS,
        ]
    return "\n\n".join(p.strip() for p in parts if p) + "\n"


def draw(plan: Plan, pool: int, means: Means) -> None:
    """curve.png and curve.svg."""
    first = next(iter(means.values()))[0]
    factors = {
        "median_r": ("median correlation r over voxels", 1),
        "median_normalised": ("median r / ceiling over voxels", 1),
        "top1": ("images ranked first (top-1, %)", 100),
    }
    by_size = sorted(plan.num_images, key=lambda count: count or math.inf)
    panels = []
    for key, (ylabel, factor) in factors.items():
        found = {
            pair: studies.spread([factor * getattr(s, key) for s in some])
            for pair, some in means.items()
        }
        if not any(f.num for f in found.values()):
            continue  # no ceiling is known
        series = {}
        for arm in plan.arms:
            line = [found[arm, count] for count in by_size]
            series[arm] = ([f.mean for f in line], [f.sd for f in line])
        level = found.get(("scratch", None))
        panels.append(
            charts.Panel(
                ylabel,
                series,
                level and (level.mean, level.sd, f"scratch, all {pool} pictures"),
                100 / first.pool if key == "top1" else None,
            )
        )
    ticks = ["all" if c is None else str(c) for c in by_size]
    arms = "; ".join(f"{arm}: {ARMS[arm]}" for arm in plan.arms)
    charts.lines(
        pathlib.Path(plan.workdir) / "curve",
        panels,
        [count or pool for count in by_size],
        [f"{pool}\n(all)" if t == "all" else t for t in ticks],
        "pictures of the new subject",
        f"Mean and SD over {len(plan.seeds)} seeds; {first.voxels} voxels of one "
        f"subject, {first.test_images} test pictures, top-1 among {first.pool}. "
        f"{arms}.",
    )


# Command.


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


def _arm(text: str) -> str:
    if text not in ARMS:
        raise ValueError(text)
    return text


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
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
        cells.read_list("arms", values.arms, _arm, f"some of {', '.join(ARMS)}"),
        subjects.read_settings(init="random", seed=0),
        Scratch(*(values[f"scratch_{name}"].value for name in Scratch._fields)),
        values.backbone,
        values.cache,
        values.keep_checkpoints,
    )
    try:
        run(plan)
    except (train.NonFiniteLossError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return train.NonFiniteLossError.exit_code
    return 0


if __name__ == "__main__":
    define_flags()
    errors.run_command(main)
