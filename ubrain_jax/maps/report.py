"""The report of a run: one HTML file that needs nothing else, and a text table.

`write` makes `report.html`: pictures are embedded, there is no script, and a
content security policy forbids the browser to fetch anything. Every text that
comes from data (subject, region, image id, config) is escaped, and drawn into figures
as outlines of ASCII letters only. Scores are computed elsewhere; here they are shown.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ubrain_jax import errors, results, whole
from ubrain_jax.maps import pages, report_sections
from ubrain_jax.maps.report_figures import SubjectScores
from ubrain_jax.maps.report_sections import Retrieved


def closing(
    metrics: Mapping[str, Any], workdir: str | os.PathLike, **made: str | os.PathLike
) -> str:
    """What a command prints at its end: scores, what to know, where things are.

    Args:
        metrics: The dict of `metrics.json`.
        workdir: With report.html.
        **made: Other files, by what they are.
    """
    lines = [score_table(metrics), *(f"note: {line}" for line in metrics["warnings"])]
    made["report"] = os.path.join(workdir, "report.html")
    return "\n".join([*lines, *(f"{name}: {path}" for name, path in made.items())])


def score_table(metrics: Mapping[str, Any]) -> str:
    """The scores of `metrics.json` as aligned text: a row per subject and region.

    Args:
        metrics: The dict of `metrics.json`; NaN and None print as "-".

    Returns:
        Lines without a final newline.
    """
    region = any(s.get("roi") for s in metrics["subjects"].values())
    rows: list[tuple[str, ...]] = [
        (
            "subject / region" if region else "subject",
            "voxels",
            "r [quartiles]",
            "r / ceiling [..]",
            "R2",
            "q<.05",
            "undefined",
            "top-1 (chance)",
            "top-5 (chance)",
            "pool",
        )
    ]
    for name, subject in metrics["subjects"].items():
        found = subject.get("retrieval")
        rows.append(
            (
                pages.printable(name),
                str(subject["num_voxels"]),
                _spread(subject["pearson"]),
                _spread(subject["noise_normalised"]),
                pages.number(subject["r2"]["median"]),
                _share(subject),
                str(subject["pearson"]["undefined"]),
                *(_top(found, k) if found else "-" for k in (1, 5)),
                str(found["pool"]) if found else "-",
            )
        )
        if "ci" in subject["pearson"]:
            of_tops = (found or {}).get("ci", {})
            rows.append(
                (
                    "  95 % interval",
                    "",
                    _ends(subject["pearson"]["ci"]),
                    _ends(subject["noise_normalised"]["ci"]),
                    *("", "", ""),
                    *(_ends(of_tops.get(f"top{k}")) for k in (1, 5)),
                    "",
                )
            )
        for roi, scores in subject.get("roi", {}).items():
            rows.append(
                (
                    "  " + pages.printable(roi),
                    str(scores["num_voxels"]),
                    _spread(scores["pearson"]),
                    _spread(scores["noise_normalised"]),
                    "",
                    _share(scores),
                    str(scores["pearson"]["undefined"]),
                    *("", "", ""),
                )
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = (
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    lines.append("")
    lines += _reading(metrics["subjects"].values())
    return "\n".join(lines)


def _reading(subjects: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines below the table: what its columns are, and what cannot be compared."""
    lines = [
        "r, r / ceiling and R2 are medians over voxels, quartiles in brackets; "
        "ceiling = sqrt(NC)."
    ]
    subjects = list(subjects)
    drawn = [s["bootstrap"]["draws"] for s in subjects if "bootstrap" in s]
    if drawn:
        lines.append(
            f"95 % interval: {drawn[0]} draws of the test pictures; voxels stay."
        )
    tests = dict.fromkeys(
        s["significant"]["test"] for s in subjects if "significant" in s
    )
    lines += [f"q<.05: share of voxels above chance, {test}." for test in tests]
    pools = {s["retrieval"]["pool"] for s in subjects if s.get("retrieval")}
    if len(pools) > 1:
        lines.append(
            f"Pools of {', '.join(map(str, sorted(pools)))} pictures: top-1 and top-5 "
            "of different pools cannot be compared."
        )
    return lines


def write(
    path: str | os.PathLike,
    *,
    title: str,
    metrics: Mapping[str, Any],
    curves: Iterable[Mapping[str, Any]],
    subjects: Sequence[SubjectScores],
    retrieved: Sequence[Retrieved] = (),
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
    config_text: str = "",
    provenance: Mapping[str, Any] | None = None,
    models: Sequence[results.Model] = (),
) -> None:
    """Writes the report as one HTML file, whole or not at all.

    Args:
        path: Where to; replaced if it exists.
        title: Heading of the page.
        metrics: The dict of `metrics.json`.
        curves: The lines of `metrics.jsonl`: dicts with `step`, `loss`, and any other
            number; those with "val" in their name are drawn too.
        subjects: Scores of the voxels, for the figures.
        retrieved: Queries to show, the seen image beside the best ranked ones.
        warnings: What a reader must know first (random backbone, simulated data);
            shown above everything else.
        notes: Paragraphs shown before the configuration.
        config_text: The configuration of the run as text; of JSON, what was trained
            on what is told first.
        provenance: Names and values: versions, store, commit, device.
        models: This run and baselines on the same voxels and pictures, to show beside
            each other; the first is tested against the others.

    Raises:
        errors.OutputError: If the folder of `path` does not exist, or the file
            cannot be written.
        errors.InputError: If a line of `curves` has no step.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise errors.OutputError(
            path, "", "no such folder", "a folder to write into", "Create it first."
        )
    body = [
        f"<h1>{pages.escape(title)}</h1>",
        *(f'<p class="warning"><b>Note.</b> {pages.escape(w)}</p>' for w in warnings),
        report_sections.summary(metrics),
        "<h2>What was trained on what</h2>",
        report_sections.data_section(metrics, _settings(config_text)),
        "<h2>Scores</h2>",
        report_sections.score_section(metrics),
    ]
    if models:
        body += ["<h2>Baselines</h2>", report_sections.model_section(models)]
    body += [
        "<h2>Retrieval</h2>",
        report_sections.retrieval_section(metrics),
        report_sections.retrieved_section(retrieved),
        "<h2>Controls</h2>",
        report_sections.control_section(metrics),
        "<h2>Training</h2>",
        report_sections.curve_section(curves),
        "<h2>Voxels against the noise ceiling</h2>",
        report_sections.subject_sections(metrics, subjects),
    ]
    if notes:
        body.append("<h2>Notes</h2>")
        body.extend(f"<p>{pages.escape(note)}</p>" for note in notes)
    if provenance:
        rows = [[pages.escape(k), pages.escape(v)] for k, v in provenance.items()]
        table = pages.table(["", ""], rows, "Provenance", "facts")
        body += ["<h2>Provenance</h2>", table]
    if config_text:
        body += [
            "<h2>Configuration</h2>",
            "<details><summary>Show the configuration of this run</summary>"
            f"<pre>{pages.escape(config_text)}</pre></details>",
        ]
    whole.write_text(path, pages.document(title, "\n".join(body)))


def _settings(text: str) -> dict[str, Any] | None:
    """A configuration's sections, where the text is JSON that holds some."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    return {k: v for k, v in found.items() if isinstance(v, dict)}


def _spread(q: Mapping[str, Any]) -> str:
    """Median and quartiles, or "-" where no voxel is defined."""
    if not pages.defined(q["median"]):
        return "-"
    return f"{q['median']:.3f} [{q['p25']:.2f} {q['p75']:.2f}]"


def _ends(ends: Sequence[float | None] | None) -> str:
    """An interval, or "-" where there is none."""
    if not ends or not all(map(pages.defined, ends)):
        return "-"
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def _share(scores: Mapping[str, Any]) -> str:
    """Share of significant voxels, or "-" where none was tested."""
    return pages.number(scores.get("significant", {}).get("share"), "{:.2f}")


def _top(found: Mapping[str, Any], k: int) -> str:
    """Fraction of images ranked k or better, with chance in brackets."""
    chance = min(k, found["pool"]) / found["pool"]
    return f"{found[f'top{k}']:.3f} ({chance:.3f})"
