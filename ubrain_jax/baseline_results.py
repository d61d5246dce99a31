"""An encoder beside baselines: one table, the same subjects, voxels and pictures.

Reads finished workdirs of `main`, `baseline` and `score`; writes baselines.csv and
baselines.md. The first workdir is what the others are compared with.
"""

import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from ubrain_jax import errors, significance, studies, whole
from ubrain_jax.maps import tables

# Two-sided, of a median's interval.
LEVEL = 0.95


class Model(NamedTuple):
    """A finished workdir.

    Attributes:
        name: In the table.
        folder: The workdir.
        kind: "encoder", "ridge", "predictions", ...
        features: What it reads, or "".
        subjects: As in metrics.json.
    """

    name: str
    folder: pathlib.Path
    kind: str
    features: str
    subjects: dict[str, Any]


def write(
    workdirs: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    names: Sequence[str] = (),
) -> str:
    """Writes baselines.csv and baselines.md.

    Args:
        workdirs: Finished, two or more; the first is compared with each other.
        out: Folder to write. Made if absent.
        names: Of the workdirs; none: what they say of themselves.

    Returns:
        baselines.md.

    Raises:
        errors.ConfigError: If there are fewer than two, or other numbers of names.
        errors.InputError: If one cannot be read, or they are of other subjects,
            voxels or test pictures.
    """
    models = read(workdirs, names)
    rows = compare(models)
    page = _page(models, rows)
    folder = pathlib.Path(out)
    whole.write_text(folder / "baselines.csv", tables.csv_text(rows))
    whole.write_text(folder / "baselines.md", page)
    return page


def read(
    workdirs: Sequence[str | os.PathLike], names: Sequence[str] = ()
) -> list[Model]:
    """Finished workdirs, refused where they are not of the same data."""
    if len(workdirs) < 2 or (names and len(names) != len(workdirs)):
        raise errors.ConfigError(
            "--workdirs",
            "",
            f"{len(workdirs)} workdirs and {len(names)} names",
            "two workdirs or more, and a name for each or none",
            "Give them with commas between.",
        )
    models = [_read(pathlib.Path(w)) for w in workdirs]
    given = list(names) or [m.name for m in models]
    if len(set(given)) < len(given):
        raise errors.ConfigError(
            "--names",
            "",
            f"{', '.join(given)}",
            "another name for each workdir",
            "Give --names with commas between.",
        )
    models = [m._replace(name=name) for m, name in zip(models, given, strict=True)]
    first = models[0]
    for model in models[1:]:
        if model.subjects.keys() != first.subjects.keys():
            raise errors.InputError(
                model.folder,
                "metrics.json",
                f"subjects {', '.join(model.subjects)}",
                f"{', '.join(first.subjects)}, as in {first.folder}",
                "Score the same subjects with --config.data.subjects.",
            )
        for name, own in model.subjects.items():
            for key in ("num_voxels", "num_test_images"):
                other = first.subjects[name][key]
                if own[key] != other:
                    raise errors.InputError(
                        model.folder,
                        f"metrics.json:subjects.{name}.{key}",
                        str(own[key]),
                        f"{other}, as in {first.folder}",
                        "Score the same store; pools of different size are never "
                        "compared.",
                    )
    return models


def _read(folder: pathlib.Path) -> Model:
    path = folder / "metrics.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        told = found.get("model", {"kind": "encoder"})
        subjects = dict(found["subjects"])
        kind, source = str(told["kind"]), str(told.get("features", ""))
        for own in subjects.values():
            _scores(own)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.InputError(
            path,
            "",
            f"cannot be read ({error!r})",
            "the scores of a finished run",
            "Run python -m ubrain_jax.main, baseline or score for this folder.",
        ) from error
    name = kind if not source else f"{kind} on {source}"
    return Model(name, folder, kind, source, subjects)


def _scores(own: dict[str, Any]) -> dict[str, float]:
    """The scores of a subject that the table shows; NaN where undefined."""

    def number(value: Any) -> float:
        return math.nan if value is None else float(value)

    low, high = own["pearson"].get("ci") or (None, None)
    return {
        "median_r": number(own["pearson"]["median"]),
        "median_r_low": number(low),
        "median_r_high": number(high),
        "r_over_ceiling": number(own["noise_normalised"]["median"]),
        "median_r2": number(own["r2"]["median"]),
        "top1": number(own["retrieval"]["top1"]),
        "top5": number(own["retrieval"]["top5"]),
        "two_afc": number(own["two_afc"]["mean"]),
        "pool": int(own["retrieval"]["pool"]),
        "worst_control_two_afc": max(
            (c["two_afc"] for c in own["controls"].values()),
            key=lambda share: abs(share - 0.5),
        ),
    }


def compare(models: Sequence[Model]) -> list[dict[str, Any]]:
    """A row for each subject and model, with the test of the first against it.

    p is of `significance.compare` over the voxels of the subject; Holm's correction
    is over all rows. The first model's own rows have no test.

    Raises:
        errors.InputError: If a model was scored on other voxels.
    """
    rows, p = [], []
    for subject in models[0].subjects:
        first = studies.read_voxels(models[0].folder, subject)
        for model in models:
            row: dict[str, Any] = {
                "subject": subject,
                "model": model.name,
                "voxels": model.subjects[subject]["num_voxels"],
                **_scores(model.subjects[subject]),
            }
            other = studies.read_voxels(model.folder, subject)
            if not np.array_equal(first.position.values, other.position.values):
                raise errors.InputError(
                    model.folder,
                    f"voxels/{subject}.zarr",
                    "other voxels",
                    f"those of {models[0].folder}",
                    "Score the same store.",
                )
            test = significance.compare(
                first.pearson.values, other.pearson.values, "voxels"
            )
            difference = first.pearson.values - other.pearson.values
            same = model is models[0]
            row |= {
                "first_minus_this": math.nan if same else test.median_difference,
                "difference_low": math.nan if same else test.low,
                "difference_high": math.nan if same else test.high,
                "compared": 0 if same else test.num,
                "first_better": 0 if same else test.better,
                "rank_biserial": rank_biserial(difference),
                "p_wilcoxon": math.nan if same else test.p,
            }
            rows.append(row)
            p.append(row["p_wilcoxon"])
    for row, corrected in zip(rows, studies.holm(p), strict=True):
        row["p_holm"] = corrected
    return rows


def over_subjects(
    models: Sequence[Model], rows: Sequence[dict[str, Any]]
) -> list[list[str]]:
    """Cells of a table: each model's median r over subjects, against the first's."""
    cells = []
    for model in models:
        own, base = (
            [r["median_r"] for r in rows if r["model"] == name]
            for name in (model.name, models[0].name)
        )
        mean, sd, _ = studies.spread(own)
        line = [model.name, f"{tables.number(mean)} ± {tables.number(sd)}"]
        if model is models[0]:
            cells.append([*line, "", "", ""])
            continue
        test = significance.compare(base, own, "subjects")
        tested = test.num >= studies.RANKS_FROM
        cells.append(
            [
                *line,
                tables.signed(test.median_difference),
                f"{test.better} of {test.num}",
                tables.p_value(test.p) if tested else "too few",
            ]
        )
    return cells


def verdicts(models: Sequence[Model], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Who wins, in words: first over all subjects, then for each.

    By the test a model wins where p is below .05 and both the median and the ranks of
    the differences are on its side. Scores that are higher without that are told too.
    """
    first, subjects = models[0].name, list(models[0].subjects)
    own = {s: [r for r in rows if r["subject"] == s] for s in subjects}
    lines = []
    for model in models[1:]:
        mine = [r for r in rows if r["model"] == model.name]
        won = sum(_side(r) < 0 for r in mine)
        lost = sum(_side(r) > 0 for r in mine)
        lines.append(
            f"Voxel by voxel, {model.name} wins against {first} in {won} of "
            f"{len(subjects)} subjects and loses in {lost}."
        )
    for score, title in TITLES.items():
        higher = {
            model.name: sum(
                _shown(r[score]) > _shown(own[r["subject"]][0][score])
                for r in rows
                if r["model"] == model.name
            )
            for model in models[1:]
        }
        told = [f"{n} in {k} of {len(subjects)}" for n, k in higher.items() if k]
        what = f"Higher than {first} in {title}: "
        lines.append(what + ("; ".join(told) + " subjects." if told else "none."))
    for subject in subjects:
        parts = []
        for side, verb in (
            (-1, "loses to"),
            (1, "beats"),
            (0, "is not told apart from"),
        ):
            some = [r for r in own[subject][1:] if _side(r) == side]
            if some:
                scores = (f"{r['model']} ({_shown(r['median_r']):.3f})" for r in some)
                parts.append(f"{verb} {', '.join(scores)}")
        score = _shown(own[subject][0]["median_r"])
        lines.append(f"{subject}: {first} ({score:.3f}) {'; '.join(parts)}.")
    return lines


TITLES = {"median_r": "median r", "top1": "top-1", "two_afc": "2AFC"}


def _shown(score: float) -> float:
    """A score as the table shows it; one that is undefined is below all."""
    return round(score, 3) if math.isfinite(score) else -2.0


def _side(row: dict[str, Any]) -> int:
    """1 where the first is better by the test, -1 where this one is, 0 otherwise."""
    if not row["p_holm"] < 1 - LEVEL:
        return 0
    signs = np.sign(row["first_minus_this"]), np.sign(row["rank_biserial"])
    return int(signs[0]) if signs[0] == signs[1] else 0


def rank_biserial(difference: np.ndarray) -> float:
    """Effect size of the signed-rank test: (W+ - W-) / (W+ + W-), in [-1, 1].

    Args:
        difference: (V,); NaN and 0 are left out.

    Returns:
        1 if every difference is positive; NaN if there is none.

    Example:
        >>> rank_biserial(np.array([1.0, 2.0, -3.0, 0.0]))
        0.0

    References:
        Kerby 2014, Comprehensive Psychology 3: 1.
    """
    some = difference[np.isfinite(difference) & (difference != 0)]
    ranks = scipy.stats.rankdata(np.abs(some))
    return float(np.sum(ranks * np.sign(some)) / ranks.sum()) if len(some) else math.nan


def _page(models: Sequence[Model], rows: Sequence[dict[str, Any]]) -> str:
    """baselines.md."""
    warnings = studies.read_warnings([m.folder for m in models])
    cells = [
        [
            row["subject"],
            row["model"],
            f"{tables.number(row['median_r'])}{_interval(row)}",
            tables.number(row["r_over_ceiling"]),
            tables.number(row["median_r2"]),
            f"{tables.number(row['top1'])} (1/{row['pool']})",
            tables.number(row["two_afc"]),
            tables.number(row["worst_control_two_afc"]),
            _difference(row),
            f"{row['first_better']} of {row['compared']}" if row["compared"] else "",
            tables.signed(row["rank_biserial"]),
            tables.p_value(row["p_holm"]),
        ]
        for row in rows
    ]
    head = [
        "subject",
        "model",
        "median r [95 % CI]",
        "r / ceiling",
        "R2",
        "top-1 (chance)",
        "2AFC",
        "worst control",
        "first - this [95 % CI]",
        "first better in",
        "rank-biserial",
        "p (Holm)",
    ]
    missing = any(not math.isfinite(row["median_r_low"]) for row in rows)
    parts = [
        f"# {models[0].name} against {len(models) - 1} other models",
        *(f"**Note.** {tables.plain(line)}" for line in warnings),
        tables.markdown_table(head, cells),
        "## Over subjects",
        tables.markdown_table(
            [
                "model",
                "median r, mean ± SD",
                "first - this, median",
                "first better in",
                "p",
            ],
            over_subjects(models, rows),
        ),
        "## In words",
        "\n".join(f"- {tables.plain(line)}" for line in verdicts(models, rows)),
        "Medians are over voxels. The interval is of a bootstrap over test pictures"
        + (
            "; where it is absent, that scoring made none."
            if missing
            else ", as the scoring made it."
        ),
        "first - this: median over voxels of the difference in r, its interval "
        "from order statistics. p: Wilcoxon's "
        "signed-rank test over the voxels of a subject, two-sided, equal values left "
        "out, Holm's correction over all rows. **Neighbouring voxels are not "
        "independent, so p is too small**: read the size of the difference first. A "
        "model wins where p is below .05 and median and ranks of the differences "
        "agree. rank-biserial: the effect size of that test, 1 where the first is "
        "better in every voxel, -1 where this one is. worst control: the forced "
        "choice of shuffled voxels, the mean pattern or wrong images that is farthest "
        "from chance, 0.5.",
    ]
    return "\n\n".join(parts) + "\n"


def _difference(row: dict[str, Any]) -> str:
    text = tables.signed(row["first_minus_this"])
    if not math.isfinite(row["difference_low"]):
        return text
    return f"{text} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"


def _interval(row: dict[str, Any]) -> str:
    low, high = row["median_r_low"], row["median_r_high"]
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f" [{low:.3f}, {high:.3f}]"
