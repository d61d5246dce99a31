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

from ubrain_jax import errors, studies, whole
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

    p is of Wilcoxon's signed-rank test over the voxels of the subject; Holm's
    correction is over all rows. The first model's own rows have no test.
    """
    rows, found = [], []
    for subject in models[0].subjects:
        first = studies.seed_mean([models[0].folder], subject)
        own_p = studies.read_voxels(models[0].folder, subject).position.values
        for model in models:
            row: dict[str, Any] = {"subject": subject, "model": model.name}
            row |= _scores(model.subjects[subject])
            test = studies.VoxelTest(0, 0, 0, math.nan, math.nan, math.nan)
            if model is not models[0]:
                position = studies.read_voxels(model.folder, subject).position.values
                if not np.array_equal(position, own_p):
                    raise errors.InputError(
                        model.folder,
                        f"voxels/{subject}.zarr",
                        "other voxels",
                        f"those of {models[0].folder}",
                        "Score the same store.",
                    )
                other = studies.seed_mean([model.folder], subject)
                test = studies.compare_voxels(first, other)
            rows.append(row)
            found.append(test)
    for row, test, p in zip(
        rows, found, studies.holm([t.p for t in found]), strict=True
    ):
        row |= {
            "voxels": test.num or models[0].subjects[row["subject"]]["num_voxels"],
            "first_minus_this": test.median_difference,
            "share_first_better": test.share_better,
            "p_wilcoxon": test.p,
            "p_holm": p,
        }
    return rows


def verdicts(models: Sequence[Model], rows: Sequence[dict[str, Any]]) -> list[str]:
    """Who wins each subject, in words; a tie where the test says nothing."""
    lines, first = [], models[0].name
    for subject in models[0].subjects:
        own = [r for r in rows if r["subject"] == subject]
        base, others = own[0], own[1:]
        better = [
            r for r in others if r["p_holm"] < 1 - LEVEL and r["first_minus_this"] < 0
        ]
        worse = [
            r for r in others if r["p_holm"] < 1 - LEVEL and r["first_minus_this"] > 0
        ]
        even = [r for r in others if r not in better and r not in worse]
        parts = []
        for some, verb in (
            (better, "loses to"),
            (worse, "beats"),
            (even, "is not told apart from"),
        ):
            if some:
                listed = ", ".join(
                    f"{r['model']} ({tables.number(r['median_r'])})" for r in some
                )
                parts.append(f"{verb} {listed}")
        text = f"{subject}: {first} ({tables.number(base['median_r'])}) "
        lines.append(text + "; ".join(parts) + ".")
        for score, title in (("top1", "top-1"), ("two_afc", "2AFC")):
            best = max(own, key=lambda r, s=score: r[s] if r[s] == r[s] else -1)
            if best[score] > base[score]:
                lines.append(
                    f"{subject}: in {title} {best['model']} is highest "
                    f"({best[score]:.3f}; {first} {base[score]:.3f})."
                )
    return lines


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
            tables.signed(row["first_minus_this"]),
            tables.percent(row["share_first_better"]),
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
        "first - this",
        "first better in",
        "p (Holm)",
    ]
    missing = any(not math.isfinite(row["median_r_low"]) for row in rows)
    parts = [
        f"# {models[0].name} against {len(models) - 1} other models",
        *(f"**Note.** {tables.plain(line)}" for line in warnings),
        tables.markdown_table(head, cells),
        "## In words",
        "\n".join(f"- {tables.plain(line)}" for line in verdicts(models, rows)),
        "Medians are over voxels. The interval is of a bootstrap over test pictures"
        + (
            "; where it is absent, that scoring made none."
            if missing
            else ", as the scoring made it."
        ),
        "first - this: median over voxels of the difference in r. p: Wilcoxon's "
        "signed-rank test over the voxels of a subject, two-sided, equal values left "
        "out, Holm's correction over all rows. **Neighbouring voxels are not "
        "independent, so p is too small**: read the size of the difference first. A "
        "model beats another here where p is below .05. worst control: the forced "
        "choice of shuffled voxels, the mean pattern or wrong images that is farthest "
        "from chance, 0.5.",
    ]
    return "\n\n".join(parts) + "\n"


def _interval(row: dict[str, Any]) -> str:
    low, high = row["median_r_low"], row["median_r_high"]
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f" [{low:.3f}, {high:.3f}]"
