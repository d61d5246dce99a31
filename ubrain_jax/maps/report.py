"""The report of a run: one HTML file that needs nothing else, and a text table.

`write` makes `report.html`: pictures are embedded, there is no script, and a
content security policy forbids the browser to fetch anything. Every text that
comes from data (subject, region, image id, config) is escaped, and none is drawn into a
figure. Scores are computed elsewhere (`metrics`); here they are only shown.
"""

import base64
import collections
import html
import io
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure
from PIL import Image

from ubrain_jax import errors, whole

# Limits that keep the file at a few megabytes; reaching one is said in the report.
MAX_POINTS = 100_000
MAX_CURVE_POINTS = 2_000
MAX_SUBJECT_FIGURES = 24
MAX_QUERIES = 48
PICTURE_PX = 144

# Okabe and Ito's colours, told apart with any colour vision.
BLUE, ORANGE, GREEN, INK, PALE = "#0072b2", "#d55e00", "#009e73", "#222222", "#c9d9e6"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "ubrain-jax",  # the same figure is the same bytes
    "text.parse_math": False,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}


class SubjectScores(NamedTuple):
    """Scores of the V voxels of one subject, NaN where undefined.

    Attributes:
        name: As in the store.
        pearson: (V,) correlation over test images.
        ceiling: (V,) noise ceiling of R2, a fraction; all NaN where unknown.
        noise_normalised: (V,) r / sqrt(ceiling).
    """

    name: str
    pearson: np.ndarray
    ceiling: np.ndarray
    noise_normalised: np.ndarray


class Retrieved(NamedTuple):
    """One seen image and the images whose predicted patterns fit best.

    Attributes:
        subject: Whose measured pattern asked.
        image_id: The seen image.
        seen: (y, x, 3) uint8.
        best_id: Ids of the best ranked images, best first.
        best: As many (y, x, 3) uint8 images.
        correlation: As many correlations between measured and predicted pattern.
        rank: Rank of the seen image, 1 = best.
        pool: Number of images ranked.
    """

    subject: str
    image_id: str
    seen: np.ndarray
    best_id: Sequence[str]
    best: Sequence[np.ndarray]
    correlation: Sequence[float]
    rank: int
    pool: int


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
                _printable(name),
                str(subject["num_voxels"]),
                _spread(subject["pearson"]),
                _spread(subject["noise_normalised"]),
                _number(subject["r2"]["median"]),
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
                    "  " + _printable(roi),
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
        config_text: The configuration of the run as text.
        provenance: Names and values: versions, store, commit, device.

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
        f"<h1>{_escape(title)}</h1>",
        *(f'<p class="warning"><b>Note.</b> {_escape(w)}</p>' for w in warnings),
        _summary(metrics),
        "<h2>Scores</h2>",
        _score_section(metrics),
        "<h2>Retrieval</h2>",
        _retrieval_section(metrics),
        _retrieved_section(retrieved),
        "<h2>Training</h2>",
        _curve_section(curves),
        "<h2>Voxels against the noise ceiling</h2>",
        _subject_sections(metrics, subjects),
    ]
    if notes:
        body.append("<h2>Notes</h2>")
        body.extend(f"<p>{_escape(note)}</p>" for note in notes)
    if provenance:
        rows = [[_escape(k), _escape(v)] for k, v in provenance.items()]
        body += ["<h2>Provenance</h2>", _table(["", ""], rows, "Provenance", "facts")]
    if config_text:
        body += [
            "<h2>Configuration</h2>",
            "<details><summary>Show the configuration of this run</summary>"
            f"<pre>{_escape(config_text)}</pre></details>",
        ]
    page = _PAGE.format(title=_escape(title), style=_CSS, body="\n".join(body))
    whole.write_text(path, page)


def figures(
    folder: str | os.PathLike,
    *,
    curves: Iterable[Mapping[str, Any]],
    subjects: Sequence[SubjectScores],
) -> list[pathlib.Path]:
    """Writes the figures of the report as PNG files, for pages and slides.

    Args:
        folder: Existing folder.
        curves: As for `write`.
        subjects: As for `write`.

    Returns:
        The files: loss.png, validation.png if the log has validation numbers, then
        ceiling-N.png (if a ceiling is known) and histogram-N.png for subject N,
        counted from 1.
    """
    folder = pathlib.Path(folder)
    drawn = [(name, fig) for name, fig, _ in _curve_figures(curves)]
    for number, subject in enumerate(subjects, start=1):
        for kind, fig, _ in _subject_figures(subject):
            drawn.append((f"{kind}-{number}", fig))
    files = []
    for name, fig in drawn:
        files.append(folder / f"{name}.png")
        with matplotlib.rc_context(STYLE):
            fig.savefig(files[-1], dpi=160)
    return files


# Text.


def _escape(value: object) -> str:
    return html.escape(str(value), quote=True)


def _printable(text: str) -> str:
    """Without characters that would move a terminal's cursor or colour it."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _defined(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _number(value: float | None, form: str = "{:.3f}") -> str:
    return form.format(value) if _defined(value) else "-"


def _spread(q: Mapping[str, Any]) -> str:
    """Median and quartiles, or "-" where no voxel is defined."""
    if not _defined(q["median"]):
        return "-"
    return f"{q['median']:.3f} [{q['p25']:.2f} {q['p75']:.2f}]"


def _ends(ends: Sequence[float | None] | None) -> str:
    """An interval, or "-" where there is none."""
    if not ends or not all(map(_defined, ends)):
        return "-"
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def _share(scores: Mapping[str, Any]) -> str:
    """Share of significant voxels, or "-" where none was tested."""
    return _number(scores.get("significant", {}).get("share"), "{:.2f}")


def _top(found: Mapping[str, Any], k: int) -> str:
    """Fraction of images ranked k or better, with chance in brackets."""
    chance = min(k, found["pool"]) / found["pool"]
    return f"{found[f'top{k}']:.3f} ({chance:.3f})"


# Sections of the page: each returns HTML.


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], label: str, kind: str = ""
) -> str:
    """A table that scrolls by itself on a narrow screen; cells are HTML."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    top = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    lines = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll {kind}" role="region" tabindex="0" '
        f'aria-label="{_escape(label)}">'
        f"<table>{top}<tbody>{lines}</tbody></table></div>"
    )


def _spread_cell(q: Mapping[str, Any]) -> str:
    if not _defined(q["median"]):
        return "–"
    return (
        f'{q["median"]:.3f} <span class="range">{q["p25"]:.2f} to {q["p75"]:.2f}</span>'
    )


def _range_cell(q: Mapping[str, Any]) -> str:
    """Median and quartiles on a line from 0 to 1; the numbers stand beside it."""
    if not _defined(q["median"]):
        return ""

    def x(value: float) -> str:
        return f"{5 + 110 * min(max(value, 0.0), 1.0):.1f}"

    return (
        '<svg class="spread" viewBox="0 0 120 14" width="120" height="14" '
        'aria-hidden="true">'
        '<path d="M5 7H115M5 4V10M60 5V9M115 4V10" stroke="#c4c4c4" fill="none"/>'
        f'<path d="M{x(q["p25"])} 7H{x(q["p75"])}" stroke="{BLUE}" stroke-width="4" '
        'stroke-opacity=".45" stroke-linecap="round"/>'
        f'<circle cx="{x(q["median"])}" cy="7" r="4" fill="{BLUE}"/></svg>'
    )


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def _summary(metrics: Mapping[str, Any]) -> str:
    """One line under the heading: how much was scored, and after which step."""
    subjects = metrics["subjects"].values()
    parts = [
        _plural(len(subjects), "subject"),
        _plural(sum(s["num_voxels"] for s in subjects), "voxel"),
    ]
    images = sorted({s["num_test_images"] for s in subjects})
    if images:
        span = f"{images[0]:,} to " if len(images) > 1 else ""
        parts.append(f"{span}{_plural(images[-1], 'test image')} each")
    if metrics.get("step") is not None:
        parts.append(f"after {metrics['step']:,} training steps")
    return f'<p class="lead">{_escape(" · ".join(parts))}</p>'


def _score_section(metrics: Mapping[str, Any]) -> str:
    rows = [
        [
            _escape(name),
            f"{s['num_voxels']:,}",
            _spread_cell(s["pearson"]),
            _spread_cell(s["noise_normalised"]),
            _range_cell(s["noise_normalised"]),
            _number(s["r2"]["median"]),
            f"{s['pearson']['undefined']:,}",
            f"{s['noise_normalised']['undefined']:,}",
        ]
        for name, s in metrics["subjects"].items()
    ]
    head = [
        "Subject",
        "Voxels",
        'Correlation r <span class="range">quartiles</span>',
        'r / ceiling <span class="range">quartiles</span>',
        '<span class="scale"><span>0</span><span>1</span></span>',
        "R²",
        "no r",
        "no r / ceiling",
    ]
    return (
        "<p>Medians over the voxels of each subject. r is the Pearson correlation "
        "between measured and predicted responses over the test images; r / ceiling "
        "divides it by the highest correlation that the noise of the voxel allows, "
        "the square root of its noise ceiling. The last two columns count voxels left "
        "out: constant ones have no r, those without a known ceiling above 0 have no "
        "r / ceiling.</p>" + _table(head, rows, "Scores by subject")
    )


def _with_chance(value: float, chance: float, unit: str = "") -> str:
    return f'{value:,.1f}{unit} <span class="range">{chance:,.1f}{unit}</span>'


def _retrieval_section(metrics: Mapping[str, Any]) -> str:
    rows = []
    for name, subject in metrics["subjects"].items():
        found = subject.get("retrieval")
        if not found:
            continue
        pool = found["pool"]
        choice = subject.get("two_afc")
        rows.append(
            [
                _escape(name),
                f"{pool:,}",
                _with_chance(100 * choice["mean"], 50, " %") if choice else "–",
                _with_chance(100 * found["top1"], 100 / pool, " %"),
                _with_chance(100 * found["top5"], 100 * min(1, 5 / pool), " %"),
                _with_chance(found["mean_rank"], (pool + 1) / 2),
                _with_chance(found["median_rank"], (pool + 1) / 2),
            ]
        )
    if not rows:
        return "<p>Not computed.</p>"
    head = ["Subject", "Pool"] + [
        f'{name} <span class="range">chance</span>'
        for name in ("2AFC", "Top-1", "Top-5", "Mean rank", "Median rank")
    ]
    return (
        "<p>The measured pattern of a test image is correlated with the patterns "
        "predicted for all images of the pool. Rank 1 means that the image "
        "the subject saw fits best; a tie counts against it. 2AFC is how often it fits "
        "better than one other image, a tie counting half.</p>"
        + _table(head, rows, "Retrieval by subject")
        + _control_table(metrics)
    )


def _control_table(metrics: Mapping[str, Any]) -> str:
    """Scores of predictions that cannot know the image, where there are any."""
    rows = [
        [
            _escape(f"{name}: {control.replace('_', ' ')}"),
            _with_chance(100 * found["two_afc"], 50, " %"),
            _with_chance(100 * found["top1"], 100 / found["pool"], " %"),
        ]
        for name, subject in metrics["subjects"].items()
        for control, found in subject.get("controls", {}).items()
    ]
    if not rows:
        return ""
    head = ["Control"] + [
        f'{name} <span class="range">chance</span>' for name in ("2AFC", "Top-1")
    ]
    return (
        "<details><summary>Controls: predictions that cannot know the image</summary>"
        "<p>The voxels of each prediction in another order; the mean prediction for "
        "every image; the prediction for another image. Above chance they would say "
        "that the comparison itself gives the image away.</p>"
        + _table(head, rows, "Controls by subject")
        + "</details>"
    )


def _picture(pixels: np.ndarray) -> str:
    """(y, x, 3) uint8 -> data URI of a JPEG of at most `PICTURE_PX`."""
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    image.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return _data_uri("image/jpeg", buffer.getvalue())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _cell(pixels: np.ndarray, image_id: str, label: str, kind: str) -> str:
    return (
        f'<div class="cell {kind}"><img src="{_picture(pixels)}" '
        f'alt="{_escape(image_id)}" title="{_escape(image_id)}">'
        f"<span>{label}</span></div>"
    )


def _retrieved_section(retrieved: Sequence[Retrieved]) -> str:
    """Queries grouped by subject: the seen image, then the best ranked ones."""
    if not retrieved:
        return ""
    groups = collections.defaultdict(list)
    for query in retrieved[:MAX_QUERIES]:
        groups[query.subject].append(query)
    parts = [
        "<h3>What the measured patterns found</h3><p>Left: the image the subject saw. "
        "Then the images whose predicted patterns correlate best with the measured "
        "one, with the correlation below. The seen image, where it is among them, is "
        'outlined and marked <span class="true-mark">✓</span>.</p>'
    ]
    if len(retrieved) > MAX_QUERIES:
        parts.append(
            f"<p>The first {MAX_QUERIES} of {len(retrieved)} queries are shown.</p>"
        )
    for subject, queries in groups.items():
        parts.append(f"<h4>{_escape(subject)}</h4>")
        for query in queries:
            cells = [_cell(query.seen, query.image_id, "seen", "seen")]
            for image_id, pixels, r in zip(
                query.best_id, query.best, query.correlation, strict=True
            ):
                true = image_id == query.image_id
                label = f"{'✓ ' if true else ''}{_number(r, '{:.2f}')}"
                cells.append(_cell(pixels, image_id, label, "true" if true else ""))
            parts.append(
                f'<figure class="query"><div class="row">{"".join(cells)}</div>'
                f"<figcaption>{_escape(query.image_id)}: rank {query.rank:,} of "
                f"{query.pool:,}</figcaption></figure>"
            )
    return "".join(parts)


def _figure_html(fig: mpl_figure.Figure, caption: str, alt: str) -> str:
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        fig.savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    uri = _data_uri("image/svg+xml", buffer.getvalue())
    return (
        f'<figure><img src="{uri}" alt="{_escape(alt)}">'
        f"<figcaption>{_escape(caption)}</figcaption></figure>"
    )


def _curve_section(curves: Iterable[Mapping[str, Any]]) -> str:
    drawn = _curve_figures(curves)
    if not drawn:
        return "<p>No training log was given.</p>"
    parts = [
        _figure_html(fig, text, f"{name} over training steps")
        for name, fig, text in drawn
    ]
    return f'<div class="figures">{"".join(parts)}</div>'


def _subject_sections(
    metrics: Mapping[str, Any], subjects: Sequence[SubjectScores]
) -> str:
    parts = []
    shown = {subject.name for subject in subjects[:MAX_SUBJECT_FIGURES]}
    if len(subjects) > MAX_SUBJECT_FIGURES:
        parts.append(
            f"<p>Figures of the first {MAX_SUBJECT_FIGURES} of {len(subjects)} "
            "subjects; the tables hold all.</p>"
        )
    scores = {subject.name: subject for subject in subjects}
    for name in dict.fromkeys([*metrics["subjects"], *scores]):
        parts.append(f"<section><h3>{_escape(name)}</h3>")
        if name in shown:
            parts.append('<div class="figures">')
            for kind, fig, text in _subject_figures(scores[name]):
                parts.append(_figure_html(fig, text, f"{name}: {kind}"))
            parts.append("</div>")
        regions = metrics["subjects"].get(name, {}).get("roi", {})
        if regions:
            head = [
                "Region",
                "Voxels",
                'r <span class="range">quartiles</span>',
                'r / ceiling <span class="range">quartiles</span>',
                '<span class="scale"><span>0</span><span>1</span></span>',
                "no r",
                "no r / ceiling",
            ]
            rows = [
                [
                    _escape(roi),
                    f"{s['num_voxels']:,}",
                    _spread_cell(s["pearson"]),
                    _spread_cell(s["noise_normalised"]),
                    _range_cell(s["noise_normalised"]),
                    f"{s['pearson']['undefined']:,}",
                    f"{s['noise_normalised']['undefined']:,}",
                ]
                for roi, s in regions.items()
            ]
            parts.append(_table(head, rows, f"Scores by region, {name}"))
        parts.append("</section>")
    return "".join(parts)


# Figures: each returns the figure and its caption.


def _axes(xlabel: str, ylabel: str) -> tuple[mpl_figure.Figure, Any]:
    fig = mpl_figure.Figure(figsize=(4.6, 3.5), layout="constrained")
    ax = fig.add_subplot()
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    return fig, ax


def _series(
    curves: Iterable[Mapping[str, Any]],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> steps and values; of a step logged twice (a resumed run) the last."""
    found: dict[str, dict[int, float]] = collections.defaultdict(dict)
    for number, line in enumerate(curves, start=1):
        if "step" not in line:
            raise errors.InputError(
                "metrics.jsonl",
                f"line {number}",
                f"keys {', '.join(map(str, line)) or 'none'}",
                "a line with 'step'",
                "Give the lines that training wrote.",
            )
        for key, value in line.items():
            if key != "loss" and "val" not in key.lower():
                continue
            if value is None or (
                isinstance(value, int | float) and not isinstance(value, bool)
            ):
                number_or_nan = math.nan if value is None else float(value)
                found[key][int(line["step"])] = number_or_nan
    series = {}
    for key in sorted(found, key=lambda k: (k != "loss", k)):
        steps = sorted(found[key])
        values = np.array([found[key][s] for s in steps])
        values[~np.isfinite(values)] = np.nan
        series[key] = np.array(steps), values
    return series


def _thinned(
    steps: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """At most `MAX_CURVE_POINTS` means of neighbours, and how many make one."""
    width = -(-len(steps) // MAX_CURVE_POINTS)
    if width == 1:
        return steps, values, 1
    starts = np.arange(0, len(steps), width)
    counts = np.diff(np.append(starts, len(steps)))
    # A NaN inside makes its mean NaN: the gap stays visible.
    return (
        steps[np.minimum(starts + width // 2, len(steps) - 1)],
        np.add.reduceat(values, starts) / counts,
        width,
    )


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean of the defined values in a window that is cut at the ends."""
    defined = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(defined, values, 0))])
    count = np.concatenate([[0], np.cumsum(defined)])
    index = np.arange(len(values))
    low = np.maximum(index - width // 2, 0)
    high = np.minimum(index + width // 2 + 1, len(values))
    num = count[high] - count[low]
    mean = np.full(len(values), np.nan)
    return np.divide(total[high] - total[low], num, out=mean, where=defined)


def _curve_figures(
    curves: Iterable[Mapping[str, Any]],
) -> list[tuple[str, mpl_figure.Figure, str]]:
    """Name, figure, caption: the losses, and other validation numbers if any."""
    series = _series(curves)
    drawn = []
    for name in ("loss", "validation"):
        lines = {
            k: v for k, v in series.items() if ("loss" in k.lower()) == (name == "loss")
        }
        if not lines:
            continue
        with matplotlib.rc_context(STYLE):
            ylabel = ascii_label(next(iter(lines))) if len(lines) == 1 else name
            fig, ax = _axes("training step", ylabel)
            caption = _draw_curves(ax, lines)
        drawn.append((name, fig, caption))
    return drawn


def ascii_label(key: str) -> str:
    """A key of the log as the figures' font can draw it."""
    return key.encode("ascii", "replace").decode()


def _draw_curves(ax: Any, lines: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Draws the series of one group; returns the caption."""
    text = []
    colours = [BLUE, ORANGE, GREEN, "#cc79a7", "#56b4e9", "#e69f00", INK]
    styles = ["-", "--", ":"]
    for i, (key, (steps, values)) in enumerate(lines.items()):
        label = ascii_label(key)
        look = {
            "color": colours[i % len(colours)],
            "linestyle": styles[i // len(colours) % len(styles)],
        }
        x, y, width = _thinned(steps, values)
        say = f"{label}: {_plural(len(steps), 'value')}"
        if width > 1:
            say += f", drawn as means of {width}"
        missing = int(np.isnan(values).sum())
        if missing:
            say += f", {missing} not finite (gaps)"
        if len(x) > 60:
            window = max(len(x) // 30, 5)
            ax.plot(x, y, **look | {"linestyle": "-"}, alpha=0.25, linewidth=0.8)
            ax.plot(x, _running_mean(y, window), **look, linewidth=1.8, label=label)
            say += f"; bold: running mean of {window}"
        else:
            ax.plot(
                *(x, y), **look, linewidth=1.6, marker="o", markersize=3.5, label=label
            )
        text.append(say)
    ax.grid(axis="y", color="#eeeeee")
    ax.set_axisbelow(True)
    if len(lines) > 1:
        ax.legend()
    return ". ".join(text) + "."


def _subject_figures(
    subject: SubjectScores,
) -> list[tuple[str, mpl_figure.Figure, str]]:
    """Kind, figure, caption: against the ceiling if it is known, and a histogram."""
    drawn = []
    if np.isfinite(subject.ceiling).any():
        drawn.append(("ceiling", *_ceiling_figure(subject)))
    drawn.append(("histogram", *_histogram(subject)))
    return drawn


def _ceiling_figure(subject: SubjectScores) -> tuple[mpl_figure.Figure, str]:
    """r of each voxel against the highest r its noise allows."""
    x = np.sqrt(np.asarray(subject.ceiling, np.float64))
    y = np.asarray(subject.pearson, np.float64)
    drawable = np.isfinite(x) & np.isfinite(y)
    x, y = x[drawable], y[drawable]
    left_out = drawable.size - len(x)
    say = f"n = {len(x):,} voxels"
    if left_out:
        say += f"; {left_out:,} without r or known ceiling left out"
    if len(x) > MAX_POINTS:
        chosen = np.random.default_rng(0).choice(len(x), MAX_POINTS, replace=False)
        x, y = x[chosen], y[chosen]
        say += f"; a random {MAX_POINTS:,} of them drawn"
    with matplotlib.rc_context(STYLE):
        fig, ax = _axes("highest r the noise allows, √NC", "correlation r")
        low = min(-0.1, float(y.min()) - 0.05) if len(y) else -0.1
        if len(x) > 3000:
            cells = ax.hexbin(
                *(x, y),
                gridsize=(50, 40),
                extent=(0, 1, low, 1),
                bins="log",
                mincnt=1,
                cmap="Blues",
                vmin=0.3,
                linewidths=0.1,
                rasterized=True,
            )
            # A plain format: the usual one of a log scale is math text, which is off.
            bar = fig.colorbar(cells, ax=ax, format="{x:.0f}", shrink=0.8, pad=0.02)
            bar.set_label("voxels per cell")
            bar.outline.set_visible(False)
            bar.minorticks_off()
            bar.ax.set_ylim(bottom=1)  # the palest blues would not show on white
        else:
            ax.scatter(x, y, s=9, color=BLUE, alpha=0.45, linewidths=0, rasterized=True)
        ax.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
        ax.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        ax.set_xlim(0, 1)
        ax.set_ylim(low, 1)
    return fig, f"Correlation of each voxel; on the dashed line r = ceiling. {say}."


def _histogram(subject: SubjectScores) -> tuple[mpl_figure.Figure, str]:
    """Distribution of r / ceiling, or of r where no ceiling is known."""
    values = np.asarray(subject.noise_normalised, np.float64)
    known = bool(np.isfinite(values).any())
    if not known:
        values = np.asarray(subject.pearson, np.float64)
    defined = values[np.isfinite(values)]
    edges = np.linspace(-0.5, 1.5, 41) if known else np.linspace(-1, 1, 41)
    name = "r / ceiling" if known else "correlation r"
    inside = defined[(defined >= edges[0]) & (defined <= edges[-1])]
    counts, _ = np.histogram(inside, edges)
    with matplotlib.rc_context(STYLE):
        fig, ax = _axes(name, "voxels")
        ax.stairs(counts, edges, fill=True, color=PALE)
        ax.stairs(counts, edges, color=BLUE, linewidth=1)
        if known:
            ax.axvline(1, color=INK, linestyle="--", linewidth=1)
        if len(defined):
            ax.axvline(np.median(defined), color=ORANGE, linewidth=2)
        ax.set_xlim(edges[0], edges[-1])
        ax.set_ylim(0, max(int(counts.max()), 1) * 1.08)
    say = f"Distribution of {name}, n = {len(defined):,} voxels"
    if len(defined):
        say += f"; orange line: median {np.median(defined):.3f}"
    if known:
        say += "; dashed line: the ceiling"
    else:
        say += "; the noise ceiling of this subject is unknown"
    if values.size > len(defined):
        say += f"; {values.size - len(defined):,} undefined left out"
    if len(defined) > len(inside):
        say += f"; {len(defined) - len(inside):,} lie outside the axis"
    return fig, say + "."


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_CSS = """
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #222; font: 16px/1.55 system-ui,
  -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.25; margin: 0 0 .5rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid #ddd; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; overflow-wrap: anywhere; }
h4 { font-size: .95rem; margin: 1.25rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.lead { color: #555; margin-bottom: 1rem; }
.warning { background: #fff4d6; border: 1px solid #c98a00; border-left-width: 6px;
  border-radius: 4px; padding: .6rem .9rem; max-width: none; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .85rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #eaeaea; }
th:first-child { text-align: left; padding-left: 0; }
thead th { color: #555; font-weight: 600; border-bottom: 1px solid #999;
  vertical-align: bottom; }
tbody th { font-weight: 600; }
.facts th { color: #555; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.range { color: #6b6b6b; font-weight: 400; font-size: .85em; }
.scale { display: flex; justify-content: space-between; width: 120px;
  color: #6b6b6b; font-weight: 400; font-size: .85em; }
.spread { display: block; }
figure { margin: 0; }
figcaption { color: #555; font-size: .85rem; line-height: 1.4; margin-top: .25rem;
  overflow-wrap: anywhere; }
.figures { display: grid; gap: 1.25rem 2rem; margin: .75rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.figures img { width: 100%; max-width: 30rem; height: auto; display: block; }
.query { margin: .4rem 0 1rem; }
.row { display: grid; gap: .5rem;
  grid-template-columns: minmax(0, 7rem) .25rem repeat(5, minmax(0, 7rem)); }
.cell.seen + .cell { grid-column: 3; }
.cell { text-align: center; font-size: .8rem; color: #555; }
.cell img { width: 100%; height: auto; display: block; border-radius: 3px;
  border: 3px solid transparent; }
.cell.true img { border-color: #009e73; }
.cell.true, .true-mark { color: #00694d; font-weight: 600; }
pre { background: #f6f6f6; padding: .75rem 1rem; border-radius: 4px; font-size: .8rem;
  line-height: 1.4; white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; }
@media (max-width: 40rem) {
  main { padding: 1.25rem 1rem 3rem; }
  th, td { padding: .3rem .5rem; }
  .row { gap: .25rem; }
}
@media print {
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; }
  th, td { padding: .2rem .4rem; }
  .figures { grid-template-columns: 1fr 1fr; }
  figure, tr, section > h3 { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
