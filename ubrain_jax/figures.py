"""Figures of the paper and the page of a run, from finished evaluations.

    python -m ubrain_jax.figures --kind=models --out=figures \\
        --workdirs=runs/crowd,runs/single1,runs/single2,runs/ridge \\
        --names=crowd,single,single,ridge

Kinds: retrieved (Fig. 3), models (Fig. 4: by subject), datasets (Fig. 5), transfer
(Fig. 6: of a workdir of `python -m ubrain_jax.curves`), tests (S8, S9: the first model
against each other one), report (report.html of one workdir, with baselines). Each
figure is written as PNG and SVG with its numbers as CSV and Markdown; n, intervals and
tests are named in its caption. Nothing is scored here. docs/figures.md says more.
"""

import csv
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import xarray
from absl import flags

from ubrain_jax import (
    cluster,
    crowd,
    curve_results,
    errors,
    evaluate,
    ranks,
    results,
)
from ubrain_jax.maps import model_figures, report, retrieved_figures


class Plan(NamedTuple):
    """What to draw.

    Attributes:
        kind: A key of `KINDS`.
        workdirs: Finished evaluations.
        out: Folder to write.
        names: Of the models, one for each workdir; empty: what they say themselves.
        pool: One of `results.POOLS`, for top-1 and top-5.
        baselines: report: workdirs to show beside it; None: those found beside it.
        subjects: retrieved: whose patterns ask; empty: all.
        queries: retrieved: ids of pictures; empty: evenly over the ranks.
        num_queries: retrieved: how many then.
        crowd: Stores with the pixels; empty: those in the workdir's config.json.
    """

    kind: str
    workdirs: Sequence[str]
    out: str
    names: Sequence[str] = ()
    pool: str = "all"
    baselines: Sequence[str] | None = None
    subjects: Sequence[str] = ()
    queries: Sequence[str] = ()
    num_queries: int = 6
    crowd: Sequence[str] = ()


def run(plan: Plan) -> list[pathlib.Path]:
    """Draws, and returns the pages that were written."""
    return KINDS[plan.kind](plan)


def _models(plan: Plan) -> list[pathlib.Path]:
    models = results.read_models(plan.workdirs, plan.names)
    drawn = model_figures.by_subject(models, plan.pool)
    return [_write(plan, drawn, "models", "Models by subject", models)]


def _datasets(plan: Plan) -> list[pathlib.Path]:
    models = results.read_models(plan.workdirs, plan.names)
    drawn = model_figures.by_dataset(models, plan.pool)
    return [_write(plan, drawn, "datasets", "Models by dataset", models)]


def _tests(plan: Plan) -> list[pathlib.Path]:
    models = results.read_models(plan.workdirs, plan.names)
    rows = results.compare(models)
    if not rows:
        raise errors.ConfigError(
            "--workdirs",
            "",
            f"{len(models)} model(s), {', '.join(m.name for m in models)}",
            "two models or more that scored the same subjects",
            "Give workdirs of different --names.",
        )
    title = f"{models[0].name} against other models"
    drawn = model_figures.paired_tests(rows)
    return [_write(plan, drawn, "tests", title, models)]


def _write(
    plan: Plan,
    drawn: model_figures.Drawing,
    name: str,
    title: str,
    models: Sequence[results.Model],
) -> pathlib.Path:
    stem = pathlib.Path(plan.out) / name
    model_figures.write(drawn, stem, title, results.warnings_of(models))
    return pathlib.Path(f"{stem}.md")


def _retrieved(plan: Plan) -> list[pathlib.Path]:
    """One figure for each subject; of one workdir."""
    workdir = _only(plan)
    result = results.read(workdir)
    names = list(result.subjects)
    unknown = [name for name in plan.subjects if name not in names]
    if unknown:
        raise errors.ConfigError(
            "--subjects",
            "",
            f"{', '.join(unknown)} not scored",
            f"subjects of {workdir}",
            errors.nearest(unknown[0], names),
        )
    stores = crowd.open_crowd(_stores(plan, workdir), names)
    pages = []
    drawings = {}
    for name in plan.subjects or names:
        found = ranks.read(workdir, name)
        places = retrieved_figures.chosen(found, plan.num_queries, plan.queries)
        shown = retrieved_figures.read(stores, name, found, places)
        top1 = float((found.rank == 1).mean())
        drawings[name] = retrieved_figures.draw(shown, bool(plan.queries), top1)
    for name, drawn in drawings.items():
        stem = pathlib.Path(plan.out) / f"retrieved-{name}"
        title = f"Pictures retrieved from the patterns of {name}"
        model_figures.write(drawn, stem, title, result.content["warnings"])
        pages.append(pathlib.Path(f"{stem}.md"))
    return pages


def _only(plan: Plan) -> str:
    if len(plan.workdirs) != 1:
        raise errors.ConfigError(
            "--workdirs",
            "",
            f"{len(plan.workdirs)} workdirs",
            f"one, for --kind={plan.kind}",
            "Draw them one after the other.",
        )
    return plan.workdirs[0]


def _stores(plan: Plan, workdir: str) -> tuple[str, ...]:
    """Where the pixels are: --crowd, or what the run was trained with."""
    if plan.crowd:
        return tuple(plan.crowd)
    path = pathlib.Path(workdir) / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["data"]["crowd"]
        return tuple(map(str, found))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.ConfigError(
            "--crowd",
            "",
            f"not given, and {path} does not tell ({error!r})",
            "the stores with the test pictures",
            "Pass --crowd=STORE.zarr.",
        ) from error


def _transfer(plan: Plan) -> list[pathlib.Path]:
    """The curves of each workdir, in a folder of its own where there are several."""
    studies = {pathlib.Path(w).absolute(): None for w in plan.workdirs}
    names = [path.name for path in studies]
    if len(set(names)) < len(plan.workdirs):
        raise errors.ConfigError(
            "--workdirs",
            "",
            f"folders called {', '.join(names)}",
            "another name for each, which its figures get",
            "Draw them one after the other.",
        )
    pages = []
    for workdir, study in [(w, _read_study(w)) for w in studies]:
        folder = pathlib.Path(plan.out)
        folder = folder / workdir.name if len(studies) > 1 else folder
        folder.mkdir(parents=True, exist_ok=True)
        curve_results.write(study, folder)
        pages.append(folder / "curve.md")
    return pages


def _read_study(workdir: pathlib.Path) -> curve_results.Study:
    """The cells that curve.csv names."""
    path = workdir / "curve.csv"
    if not path.exists():
        raise errors.MissingInputError(
            path,
            "",
            "not found",
            "the table of python -m ubrain_jax.curves",
            "Give the --workdir of that command.",
        )
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        places = {
            curve_results.Place(
                row["arm"],
                None if row["num_images"] == "all" else int(row["num_images"]),
                int(row["seed"]),
            ): row
            for row in rows
        }
        seconds = {p: float(row["seconds"] or "nan") for p, row in places.items()}
        pool = max(int(row["images"]) for row in rows)
        folders = {
            p: workdir / f"{p.arm}-{p.num_images or 'all'}-{p.seed}" for p in places
        }
        cell = next(iter(folders.values())) / "cell.json"
        subject = json.loads(cell.read_text(encoding="utf-8"))["settings"]["subject"]
        arms, counts, seeds = (
            list(dict.fromkeys(key)) for key in zip(*places, strict=True)
        )
        if len(places) != len(arms) * len(counts) * len(seeds):
            raise ValueError(f"{len(places)} cells")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.InputError(
            path,
            "",
            f"cannot be read ({error!r})",
            "the table of a finished python -m ubrain_jax.curves",
            "Run that command again: it goes on where it stopped.",
        ) from error
    return curve_results.Study(subject, pool, arms, counts, seeds, folders, seconds)


def _report(plan: Plan) -> list[pathlib.Path]:
    """report.html of a workdir, with baselines; the evaluation's own has none."""
    workdir = _only(plan)
    result, about = results.read(workdir), results.read_about(workdir)
    beside = plan.baselines
    if beside is None:
        beside = [str(r.folder) for r in _beside(result)]
    models: list[results.Model] = []
    if beside:
        models = results.read_models([workdir, *beside])
        names = ", ".join(m.name for m in models[1:])
        print(f"baselines: {names}")
    retrieved, notes = [], []
    try:
        stores = crowd.open_crowd(_stores(plan, workdir), list(result.subjects))
        for name in result.subjects:
            found = ranks.read(workdir, name)
            places = retrieved_figures.chosen(found, plan.num_queries)
            retrieved += retrieved_figures.read(stores, name, found, places)
    except errors.InputError as error:
        if plan.crowd:
            raise
        notes.append("Retrieved pictures are not shown: their store was not found.")
        print(f"note: no retrieved pictures: {error}")
    path = pathlib.Path(plan.out) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    report.write(
        path,
        title=about.title,
        metrics=result.content,
        curves=evaluate.read_log(workdir),
        subjects=[_scores(result, name) for name in result.subjects],
        retrieved=retrieved,
        warnings=result.content["warnings"],
        notes=notes,
        config_text=json.dumps(about.settings, indent=1),
        provenance=about.provenance,
        models=models,
    )
    return [path]


def _beside(result: results.Result) -> list[results.Result]:
    """Baselines in the same folder, of the same subjects, voxels and pictures."""
    found = []
    here = result.folder.absolute()
    for path in sorted(here.parent.glob("*/metrics.json")):
        if path.parent == here:
            continue
        try:
            other = results.read(path.parent)
        except errors.InputError:
            continue  # not asked for, so no fault of this command
        keys = ("num_voxels", "num_test_images")
        same = other.subjects.keys() == result.subjects.keys() and all(
            other.subjects[name][key] == entry[key]
            for name, entry in result.subjects.items()
            for key in keys
        )
        if other.kind != "encoder" and same:
            found.append(other)
    return found


def _scores(result: results.Result, name: str) -> report.SubjectScores:
    path = result.folder / "voxels" / f"{name}.zarr"
    try:
        with xarray.open_zarr(path) as stored:
            keys = ("pearson", "noise_ceiling", "noise_normalised")
            return report.SubjectScores(name, *(stored[k].values for k in keys))
    except (OSError, ValueError, KeyError) as error:
        raise errors.InputError(
            path,
            "",
            f"cannot be read ({error!r})",
            "the scores of an evaluation",
            "Run python -m ubrain_jax.main --mode=evaluate again.",
        ) from error


KINDS: dict[str, Callable[[Plan], list[pathlib.Path]]] = {
    "retrieved": _retrieved,
    "models": _models,
    "datasets": _datasets,
    "transfer": _transfer,
    "tests": _tests,
    "report": _report,
}


def define_flags() -> None:
    """Flags of this command."""
    flags.DEFINE_enum("kind", None, list(KINDS), "Which figure.")
    flags.DEFINE_list("workdirs", [], "Finished evaluations, the first one first.")
    flags.DEFINE_string("out", None, "Folder to write. Made if absent.")
    flags.DEFINE_list(
        "names",
        [],
        "One for each workdir. Those with one name are one model: of "
        "other subjects, or of other seeds.",
    )
    flags.DEFINE_enum(
        "pool", "all", list(results.POOLS), "models, datasets: for top-1 and top-5."
    )
    flags.DEFINE_list(
        "baselines", None, "report: workdirs to compare with. Default: those beside."
    )
    flags.DEFINE_list("subjects", [], "retrieved: whose patterns ask. Default: all.")
    flags.DEFINE_list(
        "queries", [], "retrieved: ids of pictures. Default: evenly over the ranks."
    )
    flags.DEFINE_integer(
        "num_queries", 6, "retrieved, report: how many then.", lower_bound=1
    )
    flags.DEFINE_list(
        "crowd", [], "retrieved, report: stores with the pictures. Default: the run's."
    )


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    cluster.refuse_several("python -m ubrain_jax.figures")
    values = flags.FLAGS
    errors.check_flags(argv, values["kind"], values["workdirs"], values["out"])
    plan = Plan(*(getattr(values, field) for field in Plan._fields))
    for path in run(plan):
        print(path)
    return 0


if __name__ == "__main__":
    define_flags()
    errors.run_command(main)
