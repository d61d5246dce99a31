"""Finished evaluations read back, so that models can be put beside each other.

A model is one workdir or several: a model of one subject has a workdir for each, and
seeds have one each. What is read are metrics.json and voxels/NAME.zarr, as every
evaluation leaves them, whatever made the predictions. Scores of pools of different
size are never put side by side for one subject: that is refused here.
"""

import csv
import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors, scoring, significance, studies, whole

# Pools in which pictures can be sought: all of a subject, or `scoring.POOLS`.
POOLS = ("all", *scoring.POOLS)
SCORES = {
    "r": "median correlation r over voxels",
    "r_ceiling": "median r / ceiling over voxels",
    "top1": "found first (top-1, %)",
    "top5": "among best five (top-5, %)",
    "two_afc": "forced choice (2AFC, %)",
}
_RERUN = "Run python -m ubrain_jax.main --mode=evaluate for it again."


class Result(NamedTuple):
    """One finished workdir.

    Attributes:
        folder: The workdir.
        kind: "encoder", or what the evaluation says of itself: "ridge", ...
        content: metrics.json.
    """

    folder: pathlib.Path
    kind: str
    content: dict[str, Any]

    @property
    def subjects(self) -> dict[str, Any]:
        """Entries by name."""
        return self.content["subjects"]


class Model(NamedTuple):
    """What is shown as one: for each subject its workdirs, one for each seed.

    Attributes:
        name: In figures and tables.
        runs: Subject -> finished workdirs that scored it.
    """

    name: str
    runs: dict[str, list[Result]]


class About(NamedTuple):
    """about.json of a workdir: what a report says beside the scores.

    Attributes:
        title: Of the report.
        settings: The configuration, without folders.
        provenance: Versions, weights, stores.
    """

    title: str
    settings: dict[str, Any]
    provenance: dict[str, str]


class Value(NamedTuple):
    """A score of a subject, NaN where undefined; percent for shares.

    Attributes:
        value: Mean over seeds.
        low: End of the 95 % interval over test pictures, mean over seeds; NaN where
            the evaluation made none.
        high: Its other end.
        seeds: Runs with a value.
        seed_sd: SD over them (N - 1); NaN for one.
        pool: Pictures among which one is found; 2 for forced choice; 0 for others.
    """

    value: float
    low: float
    high: float
    seeds: int
    seed_sd: float
    pool: int


def read(folder: str | os.PathLike) -> Result:
    """A finished workdir.

    Raises:
        errors.MissingInputError: If there is no metrics.json.
        errors.InputError: If it is no evaluation's.
    """
    path = pathlib.Path(folder) / "metrics.json"
    if not path.exists():
        raise errors.MissingInputError(
            path, "", "not found", "the scores of a finished run", _RERUN
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = str(content.get("model", {"kind": "encoder"})["kind"])
        for entry in content["subjects"].values():
            for key in ("num_voxels", "num_test_images"):
                int(entry[key])
            for key in ("pearson", "noise_normalised"):
                _number(entry[key]["median"])
        list(content["warnings"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.InputError(
            path, "", f"cannot be read ({error!r})", "an evaluation's scores", _RERUN
        ) from error
    return Result(pathlib.Path(folder), kind, content)


def write_about(folder: str | os.PathLike, about: About) -> None:
    """about.json, from which the report can be made again with baselines beside it."""
    text = json.dumps(about._asdict(), indent=1) + "\n"
    whole.write_text(pathlib.Path(folder) / "about.json", text)


def read_about(folder: str | os.PathLike) -> About:
    """What `write_about` wrote.

    Raises:
        errors.MissingInputError: If there is none.
        errors.InputError: If it cannot be read.
    """
    path = pathlib.Path(folder) / "about.json"
    if not path.exists():
        raise errors.MissingInputError(
            path, "", "not found", "what an evaluation leaves", _RERUN
        )
    try:
        found = About(**json.loads(path.read_text(encoding="utf-8")))
        return About(str(found.title), dict(found.settings), dict(found.provenance))
    except (OSError, ValueError, TypeError) as error:
        raise errors.InputError(
            path, "", f"cannot be read ({error!r})", "what an evaluation left", _RERUN
        ) from error


def read_models(
    workdirs: Sequence[str | os.PathLike], names: Sequence[str] = ()
) -> list[Model]:
    """Workdirs as models; those with one name are one model.

    A workdir of `python -m ubrain_jax.compare` stands for its arms, with their names.

    Args:
        workdirs: One or more.
        names: One for each; none: what the workdirs say of themselves.

    Raises:
        errors.ConfigError: If there is no workdir, or another number of names.
        errors.InputError: If a workdir cannot be read, or if the models scored other
            voxels or test pictures of a subject.
    """
    if not workdirs or (names and len(names) != len(workdirs)):
        raise errors.ConfigError(
            "--workdirs",
            "",
            f"{len(workdirs)} workdirs and {len(names)} names",
            "one workdir or more, and a name for each or none",
            "Give them with commas between.",
        )
    found: dict[str, dict[str, list[Result]]] = {}
    for place, folder in enumerate(workdirs):
        arms = _arms(pathlib.Path(folder))
        if arms is None:
            result = read(folder)
            name = names[place] if names else _own_name(result, found, folder)
            arms = [(name, subject, result) for subject in result.subjects]
        for name, subject, result in arms:
            found.setdefault(name, {}).setdefault(subject, []).append(result)
    models = [Model(name, runs) for name, runs in found.items()]
    check(models)
    return models


def _own_name(result: Result, taken: Iterable[str], folder: str | os.PathLike) -> str:
    """Kind of the model; with the folder's name where that is taken."""
    taken = list(taken)
    if result.kind not in taken:
        return result.kind
    base = f"{result.kind} {pathlib.Path(folder).absolute().name}"
    name, count = base, 2
    while name in taken:
        name, count = f"{base} {count}", count + 1
    return name


def _arms(folder: pathlib.Path) -> list[tuple[str, str, Result]] | None:
    """Arm, subject and run of each row of compare.csv; None where there is none."""
    path = folder / "compare.csv"
    if not path.exists():
        return None
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        cells = [(row["arm"], row["subject"], row["run"]) for row in rows]
    except (OSError, ValueError, KeyError) as error:
        raise errors.InputError(
            path,
            "",
            f"cannot be read ({error!r})",
            "the table of python -m ubrain_jax.compare",
            "Run that command again: it goes on where it stopped.",
        ) from error
    results = {run: read(folder / run) for run in dict.fromkeys(c[2] for c in cells)}
    return [(arm, subject, results[run]) for arm, subject, run in cells]


def subjects_of(models: Sequence[Model]) -> list[str]:
    """All subjects, in the order in which they first occur."""
    return list(dict.fromkeys(name for model in models for name in model.runs))


def check(models: Sequence[Model]) -> None:
    """Refuses models that scored other voxels or test pictures of a subject.

    Raises:
        errors.InputError: Naming both workdirs and what differs.
    """
    for subject in subjects_of(models):
        runs = [run for m in models for run in m.runs.get(subject, [])]
        first = runs[0]
        for run in runs[1:]:
            one, other = (_sizes(r.subjects[subject]) for r in (run, first))
            for key in (k for k in one if k in other):
                if one[key] != other[key]:
                    raise errors.InputError(
                        run.folder / "metrics.json",
                        f"subjects.{subject}.{key}",
                        str(one[key]),
                        f"{other[key]}, as in {first.folder}",
                        "Score the same store: top-1 among other numbers of pictures "
                        "and medians over other voxels do not compare.",
                    )


def _sizes(entry: dict[str, Any]) -> dict[str, int]:
    """What must be the same in all models of a subject, where they have it."""
    sizes = {key: entry[key] for key in ("num_test_images", "num_voxels")}
    if entry.get("retrieval"):
        sizes["retrieval.pool"] = entry["retrieval"]["pool"]
    for name, found in entry.get("retrieval_pools", {}).items():
        sizes[f"retrieval_pools.{name}.pool"] = found["pool"]
    return sizes


def warnings_of(models: Sequence[Model]) -> list[str]:
    """What a reader must know first, each sentence once."""
    runs = (run for model in models for some in model.runs.values() for run in some)
    lines = (str(line) for run in runs for line in run.content["warnings"])
    return list(dict.fromkeys(lines))


def value(model: Model, subject: str, score: str, pool: str = "all") -> Value:
    """A score of `SCORES`; NaN where the model has none.

    Args:
        model: The model.
        subject: Whose score.
        score: A key of `SCORES`.
        pool: One of `POOLS`, for top1 and top5.
    """
    parts = [
        _one(run.subjects[subject], score, pool) for run in model.runs.get(subject, [])
    ]
    parts = [part for part in parts if math.isfinite(part[0])]
    if not parts:
        return Value(math.nan, math.nan, math.nan, 0, math.nan, 0)
    middle = studies.spread(part[0] for part in parts)
    low, high = (float(np.mean([part[k] for part in parts])) for k in (1, 2))
    return Value(middle.mean, low, high, middle.num, middle.sd, parts[0][3])


def _one(entry: dict[str, Any], score: str, pool: str) -> tuple:
    """Value, both ends and pool of one run."""
    missing = (math.nan, math.nan, math.nan, 0)
    if score in ("r", "r_ceiling"):
        found = entry["pearson" if score == "r" else "noise_normalised"]
        low, high = found.get("ci") or (None, None)
        return (*(_number(x) for x in (found["median"], low, high)), 0)
    if score == "two_afc":
        if "two_afc" not in entry:
            return missing
        found, key, size = entry["two_afc"], "mean", 2
    else:
        pools = entry.get("retrieval_pools", {})
        found = entry.get("retrieval") if pool == "all" else pools.get(pool)
        if not found:
            return missing
        key, size = score, int(found["pool"])
    low, high = found.get("ci", {}).get(key) or (None, None)
    return (*(100 * _number(x) for x in (found[key], low, high)), size)


def _number(given: Any) -> float:
    return math.nan if given is None else float(given)


def compare(models: Sequence[Model]) -> list[dict[str, Any]]:
    """Tests of the first model against each other one, a row each.

    For each subject over voxels, of the correlation averaged over seeds; then over
    subjects, of their median correlations. Holm's correction is over the rows of each
    of the two kinds.

    Raises:
        errors.InputError: If voxels of two models are not the same.
    """
    first, kinds = models[0], {"voxels": [], "subjects": []}
    sides: dict[tuple[str, str], np.ndarray] = {}

    def side(model: Model, subject: str) -> np.ndarray:
        key = model.name, subject
        if key not in sides:
            folders = [run.folder for run in model.runs[subject]]
            sides[key] = studies.seed_mean(folders, subject)
        return sides[key]

    for other in models[1:]:
        both = [name for name in first.runs if name in other.runs]
        for subject in both:
            _same_voxels(first, other, subject)
            a, b = side(first, subject), side(other, subject)
            test = significance.compare(a.tolist(), b.tolist(), "voxels")
            q = np.nanpercentile(a - b, [25, 75]) if test.num else (math.nan,) * 2
            row = {"p25": float(q[0]), "p75": float(q[1])}
            kinds["voxels"].append(_row(first, other, subject, test) | row)
        a, b = (
            [value(model, name, "r").value for name in both] for model in (first, other)
        )
        if both:
            test = significance.compare(a, b, "subjects")
            row = {"p25": math.nan, "p75": math.nan}
            kinds["subjects"].append(_row(first, other, "", test) | row)
    for rows in kinds.values():
        for row, p in zip(rows, studies.holm([r["p"] for r in rows]), strict=True):
            row["p_holm"] = p
    return kinds["voxels"] + kinds["subjects"]


def _row(
    first: Model, other: Model, subject: str, test: significance.Paired
) -> dict[str, Any]:
    found = test._asdict()
    return {"first": first.name, "second": other.name, "subject": subject, **found}


def _same_voxels(first: Model, other: Model, subject: str) -> None:
    folders = [model.runs[subject][0].folder for model in (first, other)]
    tables = [studies.read_voxels(folder, subject) for folder in folders]
    if not np.array_equal(*(table.position.values for table in tables)):
        raise errors.InputError(
            folders[1] / "voxels" / f"{subject}.zarr",
            "position",
            "other voxels",
            f"those of {folders[0]}",
            "Score the same store.",
        )
