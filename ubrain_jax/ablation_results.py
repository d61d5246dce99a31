"""Tables and figure of an ablation study, from the scores of finished runs."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ubrain_jax import studies, whole
from ubrain_jax.maps import charts, tables

BASE = "base"

Scores = dict[tuple[str, str], list[studies.Score]]


class Study(NamedTuple):
    """Finished runs.

    Attributes:
        subjects: Their names.
        changes: Name -> keys and values; `BASE` changes nothing.
        seeds: Seeds.
        folders: Of name and seed.
        seconds: Wall time of each folder; NaN where it was interrupted.
    """

    subjects: Sequence[str]
    changes: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    folders: dict[tuple[str, int], pathlib.Path]
    seconds: dict[pathlib.Path, float]

    def of(self, name: str) -> list[pathlib.Path]:
        """One folder for each seed."""
        return [self.folders[name, seed] for seed in self.seeds]


def write(study: Study, out: pathlib.Path) -> str:
    """Writes ablations.csv, tests.csv, ablations.md, ablations.png and ablations.svg.

    Returns:
        The first part of ablations.md: notes and scores.
    """
    scores: Scores = {
        (name, subject): [
            studies.read_score(folder, subject)._replace(seconds=study.seconds[folder])
            for folder in study.of(name)
        ]
        for name, subject in itertools.product(study.changes, study.subjects)
    }
    rows = [
        {
            "change": name,
            "settings": settings_text(study.changes[name]),
            "subject": subject,
            "seed": seed,
            **score._asdict(),
        }
        for (name, subject), found in scores.items()
        for seed, score in zip(study.seeds, found, strict=True)
    ]
    by_subject, over = compare(study), compare_over_subjects(study, scores)
    whole.write_text(out / "ablations.csv", tables.csv_text(rows))
    listed = [{"table": "subject", **row} for row in by_subject]
    listed += [{"table": "over subjects", **row} for row in over]
    whole.write_text(out / "tests.csv", tables.csv_text(listed))
    first = _scores_page(study, scores, over)
    whole.write_text(out / "ablations.md", first + _tests_page(by_subject))
    draw(study, scores, out / "ablations")
    return first


def settings_text(changes: Mapping[str, Any]) -> str:
    """The changed keys in words.

    Example:
        >>> settings_text({"adapter.kind": "none", "backbone.taps": (6, 12)})
        'adapter.kind = none, backbone.taps = 6 12'
    """
    shown = {
        key: " ".join(map(str, value)) if isinstance(value, tuple | list) else value
        for key, value in changes.items()
    }
    return ", ".join(f"{key} = {value}" for key, value in shown.items())


def compare(study: Study) -> list[dict[str, Any]]:
    """Tests of each change against the base, for each subject."""
    names = [name for name in study.changes if name != BASE]
    places = list(itertools.product(names, study.subjects))
    sides = {
        (name, subject): studies.read_side(study.of(name), subject)
        for name, subject in itertools.product(study.changes, study.subjects)
    }
    rows = studies.compare_sides([(sides[n, s], sides[BASE, s]) for n, s in places])
    return [
        {"change": name, "subject": subject, **row}
        for (name, subject), row in zip(places, rows, strict=True)
    ]


def compare_over_subjects(study: Study, scores: Scores) -> list[dict[str, Any]]:
    """The same over subjects, of their seed-averaged medians.

    There is a test with `studies.RANKS_FROM` subjects or more.
    """
    names = [name for name in study.changes if name != BASE]
    pairs = []
    for name in names:
        means = [
            [studies.spreads(scores[n, s])["median_r"].mean for s in study.subjects]
            for n in (name, BASE)
        ]
        few = studies.compare_pairs(*means)
        if few.num < studies.RANKS_FROM:
            few = few._replace(test="", p=float("nan"))
        pairs.append((studies.NO_VOXELS, few))
    rows = studies.comparison_rows(pairs, "subjects")
    return [
        {"change": name, "subject": "", **row}
        for name, row in zip(names, rows, strict=True)
    ]


def _scores_page(study: Study, scores: Scores, over: list[dict[str, Any]]) -> str:
    """ablations.md as far as the scores."""
    runs = [folder for name in study.changes for folder in study.of(name)]
    names = [[name, subject] for name, subject in scores]
    told = {row["change"]: row for row in over}
    summary = []
    for name, changes in study.changes.items():
        found = [studies.spreads(scores[name, s]) for s in study.subjects]
        means = {
            key: studies.spread(of[key].mean for of in found).mean
            for key in ("median_r", "median_normalised", "top1", "seconds")
        }
        row = told.get(name)
        difference = better = p = "-"
        if row:
            difference = tables.signed(row["pair_mean_difference"])
            better = f"{row['pairs_better']} of {row['pairs']}"
            p = tables.p_value(row["p_pairs_holm"])
        summary.append(
            [
                name,
                settings_text(changes) or "-",
                tables.number(means["median_r"]),
                tables.number(means["median_normalised"]),
                tables.number(means["top1"], 1),
                difference,
                better,
                p,
                tables.number(means["seconds"], 0),
            ]
        )
    head = ["change", "settings", "median r", "r / ceiling", "top-1 %"]
    head += ["minus base, r", "better in", "p (Holm)", "seconds"]
    pools = sorted({some[0].pool for some in scores.values()})
    listed = " and ".join(str(pool) for pool in pools)
    parts = [
        "# Ablations",
        *(f"**Note.** {tables.plain(line)}" for line in studies.read_warnings(runs)),
        f"subjects: {len(study.subjects)}, seeds: {len(study.seeds)}. Means over "
        "subjects of means over seeds. p: over subjects, Wilcoxon's signed-rank test, "
        f"two-sided, Holm's correction; none below {studies.RANKS_FROM} subjects. "
        f"top-1 among {listed} test pictures"
        + (", **pools of different size, averaged**" if len(pools) > 1 else "")
        + ". The same pictures, splits and voxels in every run.",
        tables.markdown_table(head, summary),
        "## Scores of each subject",
        tables.score_table(["change", "subject"], names, scores.values()),
    ]
    return "\n\n".join(parts) + "\n"


def _tests_page(by_subject: list[dict[str, Any]]) -> str:
    """The rest of ablations.md."""
    if not by_subject:
        return "\nNothing was changed.\n"
    head = {"change": "change", "subject": "subject"}
    parts = [
        "## Each change against the base",
        tables.comparison_table(head, by_subject),
        "Differences are of the change minus the base, in correlation.",
        tables.READING_TESTS,
    ]
    return "".join(f"\n{part}\n" for part in parts)


def draw(study: Study, scores: Scores, stem: pathlib.Path) -> None:
    """Means and SDs of each change, a series for each subject."""
    found = {key: studies.spreads(some) for key, some in scores.items()}
    pools = {some[0].pool for some in scores.values()}
    panels = []
    for key, ylabel in charts.LABELS.items():
        if not any(of[key].num for of in found.values()):
            continue  # no ceiling is known
        if key == "top1" and len(pools) > 1:
            ylabel += ",\npools of different size"
        series = {}
        for subject in study.subjects:
            line = [found[name, subject][key] for name in study.changes]
            series[subject] = ([f.mean for f in line], [f.sd for f in line])
        chance = 100 / min(pools) if key == "top1" and len(pools) == 1 else None
        panels.append(charts.Panel(ylabel, series, None, chance))
    charts.groups(
        stem,
        panels,
        list(study.changes),
        "what was changed",
        f"Mean and SD over seeds (n = {len(study.seeds)}) of each subject (n = "
        f"{len(study.subjects)}). {BASE}: the config as it is.",
    )
