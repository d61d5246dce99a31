"""Tables and figure of learning curves, from the scores of finished cells."""

import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ubrain_jax import studies, whole
from ubrain_jax.maps import charts, tables

ARMS = {
    "random": "embeddings fitted from random ones",
    "twin": "embeddings fitted from those of existing voxels that respond alike",
    "twin0": "the embeddings of those voxels, not fitted",
    "scratch": "a model of this subject alone, trained on the same pictures",
}
SAME, CROSS = "same pictures", "against scratch on all pictures"

Pair = tuple[str, int | None]  # arm, number of pictures


class Place(NamedTuple):
    """Where a cell stands in the study; `num_images` None is all."""

    arm: str
    num_images: int | None
    seed: int


class Study(NamedTuple):
    """Finished cells.

    Attributes:
        subject: Name of the new subject.
        pool: Its train and val pictures: how many all are.
        arms: Some of `ARMS`, in the order in which they are shown.
        num_images: Numbers of pictures; None is all.
        seeds: Seeds.
        folders: Of each cell.
        seconds: Wall time of each; NaN where it was interrupted.
    """

    subject: str
    pool: int
    arms: Sequence[str]
    num_images: Sequence[int | None]
    seeds: Sequence[int]
    folders: dict[Place, pathlib.Path]
    seconds: dict[Place, float]

    def pairs(self) -> list[Pair]:
        """All arms with all numbers of pictures."""
        return list(itertools.product(self.arms, self.num_images))


def write(study: Study, out: pathlib.Path) -> str:
    """Writes curve.csv, tests.csv, curve.md, curve.png and curve.svg.

    Returns:
        The first part of curve.md: notes and scores.
    """
    scores = {
        pair: [
            studies.read_score(study.folders[place], study.subject)._replace(
                seconds=study.seconds[place]
            )
            for place in (Place(*pair, seed) for seed in study.seeds)
        ]
        for pair in study.pairs()
    }
    rows = [
        {
            "arm": arm,
            "num_images": count or "all",
            "images": count or study.pool,
            "seed": seed,
            **score._asdict(),
        }
        for (arm, count), found in scores.items()
        for seed, score in zip(study.seeds, found, strict=True)
    ]
    tests = compare(study)
    whole.write_text(out / "curve.csv", tables.csv_text(rows))
    listed = [{"table": name, **row} for name, rows in tests.items() for row in rows]
    whole.write_text(out / "tests.csv", tables.csv_text(listed))
    first = _scores_page(study, scores)
    whole.write_text(out / "curve.md", first + _tests_page(tests))
    draw(study, scores, out / "curve")
    return first


def compare(study: Study) -> dict[str, list[dict[str, Any]]]:
    """Tests between arms with the same pictures, and of transfer against scratch.

    Returns:
        The rows of the two tables, `SAME` and `CROSS`.
    """
    sides = {
        pair: studies.read_side(
            [study.folders[Place(*pair, seed)] for seed in study.seeds], study.subject
        )
        for pair in study.pairs()
    }
    same = [
        ((a, count), (b, count))
        for count in study.num_images
        for a, b in itertools.combinations(study.arms, 2)
    ]
    whole = ("scratch", None)
    transfers = [pair for pair in study.pairs() if pair[0] != "scratch"]
    cross = [(pair, whole) for pair in transfers if whole in sides]
    keys = ("first", "first_images", "second", "second_images")
    return {
        name: [
            {**dict(zip(keys, (str(x or "all") for x in (*a, *b)), strict=True)), **row}
            for (a, b), row in zip(
                pairs,
                studies.compare_sides([(sides[a], sides[b]) for a, b in pairs]),
                strict=True,
            )
        ]
        for name, pairs in ((SAME, same), (CROSS, cross))
    }


def _scores_page(study: Study, scores: dict[Pair, list[studies.Score]]) -> str:
    """curve.md as far as the scores."""
    first = next(iter(scores.values()))[0]
    warnings = studies.read_warnings(study.folders.values())
    names = [[a, f"all ({study.pool})" if n is None else str(n)] for a, n in scores]
    parts = [
        f"# Learning curve of {tables.plain(study.subject)}",
        *(f"**Note.** {tables.plain(line)}" for line in warnings),
        f"{first.voxels} voxels, {first.test_images} test pictures, the same for all "
        f"cells; seeds: {len(study.seeds)}. Mean ± SD over seeds (N - 1). top-1 and "
        f"top-5 are of a pool of {first.pool}. A number of pictures has those for "
        "validation in it. step: of the weights that were scored.",
        "\n".join(f"- {arm}: {ARMS[arm]}." for arm in study.arms),
        "## Scores",
        tables.score_table(["arm", "pictures"], names, scores.values()),
    ]
    return "\n\n".join(parts) + "\n"


def _tests_page(tests: dict[str, list[dict[str, Any]]]) -> str:
    """The rest of curve.md."""
    titles = {
        SAME: "## Arms against each other, on the same pictures",
        CROSS: "## Transfer against a model of the subject alone on all its pictures",
    }
    head = {"first": "first", "first_images": "pictures"}
    head |= {"second": "second", "second_images": "pictures"}
    shown = {name: rows for name, rows in tests.items() if rows}
    parts = []
    for name, rows in shown.items():
        parts += [titles[name], tables.comparison_table(head, rows)]
    if shown:
        parts += [
            "Differences are of the first minus the second, in correlation.",
            tables.READING_TESTS,
        ]
    return "".join(f"\n{part}\n" for part in parts)


def draw(
    study: Study, scores: dict[Pair, list[studies.Score]], stem: pathlib.Path
) -> None:
    """Means and SDs over numbers of pictures, as NAME.png and NAME.svg."""
    first = next(iter(scores.values()))[0]
    found = {pair: studies.spreads(some) for pair, some in scores.items()}
    by_size = sorted(study.num_images, key=lambda count: count or math.inf)
    panels = []
    for key, ylabel in charts.LABELS.items():
        if not any(of[key].num for of in found.values()):
            continue  # no ceiling is known
        series = {}
        for arm in study.arms:
            line = [found[arm, count][key] for count in by_size]
            series[arm] = ([f.mean for f in line], [f.sd for f in line])
        level = None
        if ("scratch", None) in found:
            whole = found["scratch", None][key]
            level = whole.mean, whole.sd, f"scratch, all {study.pool} pictures"
        panels.append(
            charts.Panel(
                ylabel,
                series,
                level,
                100 / first.pool if key == "top1" else None,
            )
        )
    arms = "; ".join(f"{arm}: {ARMS[arm]}" for arm in study.arms)
    charts.lines(
        stem,
        panels,
        [count or study.pool for count in by_size],
        [f"{study.pool}\n(all)" if c is None else str(c) for c in by_size],
        "pictures of the new subject",
        f"Mean and SD over seeds (n = {len(study.seeds)}); {first.voxels} voxels of "
        f"one subject, {first.test_images} test pictures, top-1 among {first.pool}. "
        f"{arms}.",
    )
