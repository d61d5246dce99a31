"""Tables and figure of crowd experiments, from the scores of finished runs."""

import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ubrain_jax import studies, whole
from ubrain_jax.maps import charts, tables

ARMS = {
    "single": "a model of this subject alone",
    "dataset": "a model of all subjects of its store",
    "crowd": "a model of all subjects of all stores",
}

Key = tuple[str, str]  # arm, subject
Scores = dict[Key, list[studies.Score]]


class Study(NamedTuple):
    """Finished runs.

    Attributes:
        subjects: Their names.
        arms: Some of `ARMS`, in the order in which they are shown.
        seeds: Seeds.
        steps: Of every run.
        folders: Of arm, subject and seed; arms may share a run.
        seconds: Wall time of each folder; NaN where it was interrupted.
    """

    subjects: Sequence[str]
    arms: Sequence[str]
    seeds: Sequence[int]
    steps: int
    folders: dict[tuple[str, str, int], pathlib.Path]
    seconds: dict[pathlib.Path, float]

    def of(self, arm: str, subject: str) -> list[pathlib.Path]:
        """One folder for each seed."""
        return [self.folders[arm, subject, seed] for seed in self.seeds]


def write(study: Study, out: pathlib.Path) -> str:
    """Writes compare.csv, tests.csv, compare.md, compare.png and compare.svg.

    Returns:
        The first part of compare.md: notes and scores.
    """
    scores = {
        (arm, name): [
            studies.read_score(folder, name)._replace(seconds=study.seconds[folder])
            for folder in study.of(arm, name)
        ]
        for name in study.subjects
        for arm in study.arms
    }
    rows = [
        {"subject": name, "arm": arm, "run": folder.name, "seed": seed}
        | score._asdict()
        for (arm, name), found in scores.items()
        for seed, folder, score in zip(
            study.seeds, study.of(arm, name), found, strict=True
        )
    ]
    subjects, over = compare(study), compare_over_subjects(study, scores)
    whole.write_text(out / "compare.csv", tables.csv_text(rows))
    listed = [{"table": "subject", **row} for row in subjects]
    listed += [{"table": "over subjects", "subject": "", **row} for row in over]
    whole.write_text(out / "tests.csv", tables.csv_text(listed))
    first = _scores_page(study, scores)
    whole.write_text(out / "compare.md", first + _tests_page(study, subjects, over))
    draw(study, scores, out / "compare")
    return first


def _arm_pairs(study: Study) -> list[tuple[str, str]]:
    """The wider arm first."""
    return [(b, a) for a, b in itertools.combinations(study.arms, 2)]


def _differ(study: Study, a: str, b: str, name: str) -> bool:
    return study.of(a, name) != study.of(b, name)


def compare(study: Study) -> list[dict[str, Any]]:
    """Tests between arms, for each subject; the same two runs only once."""
    seen: dict[Any, tuple[str, str, str]] = {}
    for name in study.subjects:
        for a, b in _arm_pairs(study):
            if _differ(study, a, b, name):
                runs = name, *study.of(a, name), *study.of(b, name)
                seen.setdefault(runs, (name, a, b))
    wanted = list(seen.values())
    sides = {
        (arm, name): studies.read_side(study.of(arm, name), name)
        for arm, name in {(arm, name) for name, *arms in wanted for arm in arms}
    }
    rows = studies.compare_sides([(sides[a, n], sides[b, n]) for n, a, b in wanted])
    return [
        {"subject": name, "first": a, "second": b, **row}
        for (name, a, b), row in zip(wanted, rows, strict=True)
    ]


def compare_over_subjects(study: Study, scores: Scores) -> list[dict[str, Any]]:
    """The same over subjects, of their seed-averaged medians.

    There is a test with `studies.RANKS_FROM` subjects or more; with fewer the
    difference is only told.
    """
    names, pairs = [], []
    for a, b in _arm_pairs(study):
        some = [n for n in study.subjects if _differ(study, a, b, n)]
        if not some:
            continue
        means = [
            [studies.spreads(scores[arm, n])["median_r"].mean for n in some]
            for arm in (a, b)
        ]
        few = studies.compare_pairs(*means)
        if few.num < studies.RANKS_FROM:
            few = few._replace(test="", p=math.nan)
        names.append({"first": a, "second": b})
        pairs.append((studies.NO_VOXELS, few))
    rows = studies.comparison_rows(pairs, "subjects")
    return [{**name, **row} for name, row in zip(names, rows, strict=True)]


def _scores_page(study: Study, scores: Scores) -> str:
    """compare.md as far as the scores."""
    names = []
    for arm, name in scores:
        same = [
            other
            for other in study.arms[: list(study.arms).index(arm)]
            if not _differ(study, arm, other, name)
        ]
        found = scores[arm, name][0]
        shown = f"{arm} (is {same[0]})" if same else arm
        names.append([name, shown, str(found.voxels), str(found.test_images)])
    # Its runs have all the subjects.
    widest = [f for name in study.subjects for f in study.of(study.arms[-1], name)]
    parts = [
        "# Models of one subject, of a dataset, of a crowd",
        *(f"**Note.** {tables.plain(line)}" for line in studies.read_warnings(widest)),
        f"subjects: {len(study.subjects)}, seeds: {len(study.seeds)}; {study.steps} "
        "steps in every run. Mean ± SD over seeds (N - 1). step: of the weights that "
        "were scored. seconds: of the whole run, which may have scored several "
        "subjects.",
        "\n".join(f"- {arm}: {ARMS[arm]}." for arm in study.arms),
        "## Scores",
        tables.score_table(
            ["subject", "arm", "voxels", "test pictures"], names, scores.values()
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _tests_page(
    study: Study, subjects: list[dict[str, Any]], over: list[dict[str, Any]]
) -> str:
    """The rest of compare.md."""
    if not subjects:
        return "\nNothing to compare: the arms are the same runs.\n"
    head = {"subject": "subject", "first": "first", "second": "second"}
    few = f"Fewer than {studies.RANKS_FROM} subjects: told, not tested."
    cells = [
        [
            row["first"],
            row["second"],
            f"{row['pairs_better']} of {row['pairs']}",
            f"{tables.signed(row['pair_mean_difference'])} ± "
            f"{tables.number(row['pair_sd'])}",
            row["pair_test"] or "-",
            tables.p_value(row["p_pairs"]),
            tables.p_value(row["p_pairs_holm"]),
        ]
        for row in over
    ]
    titles = ["first", "second", "subjects better", "mean difference ± SD"]
    parts = [
        "## Arms against each other, for each subject",
        tables.comparison_table(head, subjects),
        "## Over subjects",
        tables.markdown_table([*titles, "test", "p", "Holm"], cells),
        few if any(row["pairs"] < studies.RANKS_FROM for row in over) else "",
        "Differences are of the first minus the second, in correlation; over subjects, "
        "of their median correlation averaged over seeds. The same two runs are "
        "compared once for a subject, whatever arms they stand for.",
        tables.READING_TESTS,
    ]
    return "".join(f"\n{part}\n" for part in parts if part)


def draw(study: Study, scores: Scores, stem: pathlib.Path) -> None:
    """Means and SDs of each subject, as NAME.png and NAME.svg."""
    found = {key: studies.spreads(some) for key, some in scores.items()}
    pools = {some[0].pool for some in scores.values()}
    panels = []
    for key, ylabel in charts.LABELS.items():
        if not any(of[key].num for of in found.values()):
            continue  # no ceiling is known
        series = {}
        for arm in study.arms:
            line = [found[arm, name][key] for name in study.subjects]
            series[arm] = ([f.mean for f in line], [f.sd for f in line])
        chance = 100 / pools.pop() if key == "top1" and len(pools) == 1 else None
        panels.append(charts.Panel(ylabel, series, None, chance))
    counts = [
        f"{min(values)} to {max(values)}" if len(set(values)) > 1 else f"{values[0]}"
        for values in (
            [getattr(some[0], key) for some in scores.values()]
            for key in ("voxels", "test_images")
        )
    ]
    arms = "; ".join(f"{arm}: {ARMS[arm]}" for arm in study.arms)
    charts.groups(
        stem,
        panels,
        study.subjects,
        "subject",
        f"Mean and SD over seeds (n = {len(study.seeds)}); {counts[0]} voxels and "
        f"{counts[1]} test pictures of each subject; {study.steps} steps in every run. "
        f"{arms}.",
    )
