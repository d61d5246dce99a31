"""Sections of a run's report: each returns HTML.

Whatever comes from data goes through `pages.escape`. What an older evaluation did not
write is left out, or a dash.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import controls as leaks
from ubrain_jax import results
from ubrain_jax.maps import model_figures, pages, report_figures, tables

MAX_QUERIES = 48


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


def summary(metrics: Mapping[str, Any]) -> str:
    """One line under the heading: how much was scored, and after which step."""
    subjects = metrics["subjects"].values()
    parts = [
        pages.plural(len(subjects), "subject"),
        pages.plural(sum(s["num_voxels"] for s in subjects), "voxel"),
    ]
    images = sorted({s["num_test_images"] for s in subjects})
    if images:
        span = f"{images[0]:,} to " if len(images) > 1 else ""
        parts.append(f"{span}{pages.plural(images[-1], 'test image')} each")
    if metrics.get("step") is not None:
        parts.append(f"after {metrics['step']:,} training steps")
    return f'<p class="lead">{pages.escape(" · ".join(parts))}</p>'


def data_section(metrics: Mapping[str, Any], config: Mapping[str, Any] | None) -> str:
    """What was trained on what: network, settings, and the pictures of each subject."""
    parts = []
    if config:
        facts = [
            [pages.escape(name), pages.escape(text)] for name, text in _facts(config)
        ]
        if facts:
            parts.append(pages.table(["", ""], facts, "What was trained", "facts"))
    counts = ("num_train_images", "num_val_images", "num_test_images")
    rows = [
        [
            pages.escape(name),
            pages.escape(s.get("dataset") or "–"),
            *(f"{s[key]:,}" if s.get(key) is not None else "–" for key in counts),
            f"{s['num_voxels']:,}",
        ]
        for name, s in metrics["subjects"].items()
    ]
    head = ["Subject", "Dataset", "Training", "Validation", "Test", "Voxels"]
    parts.append(pages.table(head, rows, "Pictures and voxels of each subject"))
    return "".join(parts)


def _facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings that a reader asks for first, where the configuration has them."""

    def get(section: str, key: str) -> Any:
        return (config.get(section) or {}).get(key)

    taps = get("backbone", "taps") or ()
    kind, rank = get("adapter", "kind"), get("adapter", "rank")
    adapter = (
        None if kind is None else kind if kind == "none" else f"{kind}, rank {rank}"
    )
    loss = get("loss", "kind")
    steps, epochs = get("train", "steps"), get("train", "epochs")
    found = {
        "Model": (config.get("baseline") or {}).get("kind"),
        "Stores": ", ".join(map(str, get("data", "crowd") or ())),
        "Frozen network": get("backbone", "weights"),
        "Taps": ", ".join(map(str, taps)),
        "Adapter": adapter,
        "Embedding": get("head", "embed_dim"),
        "Loss": None if loss is None else f"{loss}, alpha {get('loss', 'alpha')}",
        "Batch": None
        if get("data", "batch_images") is None
        else f"{get('data', 'batch_images')} images x "
        f"{get('data', 'voxels_per_image')} voxels",
        "Training": f"{steps} steps"
        if steps
        else f"{epochs} epochs"
        if epochs
        else None,
        "Seed": get("train", "seed"),
    }
    return [(k, str(v)) for k, v in found.items() if v not in (None, "")]


def score_section(metrics: Mapping[str, Any]) -> str:
    """Every subject's scores with their intervals, and its share of voxels above 0."""
    rows = [
        [
            pages.escape(name),
            *_scores(s),
            pages.number(s["r2"]["median"]),
            *_undefined(s),
        ]
        for name, s in metrics["subjects"].items()
    ]
    head = ["Subject", *_SCORE_HEAD, "R²", "no r", "no r / ceiling"]
    return (
        "<p>Medians over the voxels of each subject. r is the Pearson correlation "
        "between measured and predicted responses over the test images; r / ceiling "
        "divides it by the highest correlation that the noise of the voxel allows, "
        "the square root of its noise ceiling. "
        + _of_intervals(metrics)
        + "The last two columns count voxels left out: constant ones have no r, those "
        "without a known ceiling above 0 have no r / ceiling.</p>"
        + pages.table(head, rows, "Scores by subject")
    )


_SCORE_HEAD = [
    "Voxels",
    'Correlation r <span class="range">[95 %]</span>',
    '<span class="range">quartiles</span>',
    'r / ceiling <span class="range">[95 %]</span>',
    '<span class="range">quartiles</span>',
    '<span class="scale"><span>0</span><span>1</span></span>',
    'Significant <span class="range">uncorrected</span>',
]


def _scores(s: Mapping[str, Any]) -> list[str]:
    """Cells under `_SCORE_HEAD`, of a subject or a region."""
    return [
        f"{s['num_voxels']:,}",
        _median_cell(s["pearson"]),
        _quartile_cell(s["pearson"]),
        _median_cell(s["noise_normalised"]),
        _quartile_cell(s["noise_normalised"]),
        _range_cell(s["noise_normalised"]),
        _share_cell(s.get("significant")),
    ]


def _undefined(s: Mapping[str, Any]) -> list[str]:
    return [f"{s[key]['undefined']:,}" for key in ("pearson", "noise_normalised")]


def _of_intervals(metrics: Mapping[str, Any]) -> str:
    """What the intervals are of, and how voxels were tested, where they were."""
    subjects = metrics["subjects"].values()
    said = []
    draws = {s["bootstrap"]["draws"] for s in subjects if s.get("bootstrap")}
    if draws:
        listed = ", ".join(f"{n:,}" for n in sorted(draws))
        said.append(
            f"95 %: bootstrap interval over test images ({listed} draws), the ceiling "
            "held fixed."
        )
    tested = [s["significant"] for s in subjects if "test" in s.get("significant", {})]
    if tested:
        counts = sorted({found["permutations"] for found in tested})
        many = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        kinds = dict.fromkeys(
            found["test"].replace(f"{found['permutations']} perm", f"{many} perm")
            for found in tested
        )
        said.append(
            "Significant: share of voxels with q below .05, beside it that with p "
            f"below .05 before correction; {pages.escape('; '.join(kinds))}."
        )
    return "".join(f"{line} " for line in said)


def _median_cell(q: Mapping[str, Any]) -> str:
    if not pages.defined(q["median"]):
        return "–"
    return f"{q['median']:.3f}{_interval(q.get('ci'), '{:.3f}')}"


def _quartile_cell(q: Mapping[str, Any]) -> str:
    if not pages.defined(q["median"]):
        return ""
    return f'<span class="range">{q["p25"]:.2f} to {q["p75"]:.2f}</span>'


def _interval(ends: Sequence[float | None] | None, form: str, factor: float = 1) -> str:
    """A 95 % interval beside its score, or nothing."""
    low, high = ends or (None, None)
    if low is None or high is None or not (pages.defined(low) and pages.defined(high)):
        return ""
    shown = f"{form.format(factor * low)} to {form.format(factor * high)}"
    return f' <span class="range">[{shown}]</span>'


def _share_cell(found: Mapping[str, Any] | None) -> str:
    """Share of significant voxels after and before correction."""
    if not found or not pages.defined(found["share"]):
        return "–"
    return (
        f"{100 * found['share']:.1f} % "
        f'<span class="range">{100 * found["uncorrected"]:.1f} %</span>'
    )


def _range_cell(q: Mapping[str, Any]) -> str:
    """Median and quartiles on a line from 0 to 1; the numbers stand beside it."""
    if not pages.defined(q["median"]):
        return ""

    def x(value: float) -> str:
        return f"{5 + 110 * min(max(value, 0.0), 1.0):.1f}"

    return (
        '<svg class="spread" viewBox="0 0 120 14" width="120" height="14" '
        'aria-hidden="true">'
        '<path d="M5 7H115M5 4V10M60 5V9M115 4V10" stroke="#c4c4c4" fill="none"/>'
        f'<path d="M{x(q["p25"])} 7H{x(q["p75"])}" stroke="{pages.BLUE}" '
        'stroke-width="4" stroke-opacity=".45" stroke-linecap="round"/>'
        f'<circle cx="{x(q["median"])}" cy="7" r="4" fill="{pages.BLUE}"/></svg>'
    )


def _with_chance(
    value: float, chance: float, unit: str = "", interval: str = ""
) -> str:
    """A score, its interval, and what chance would give."""
    return (
        f'{value:,.1f}{unit}{interval} <span class="range">{chance:,.1f}{unit}</span>'
    )


def retrieval_section(metrics: Mapping[str, Any]) -> str:
    """How often the seen image is found, in both directions, each with its pool."""
    rows = []
    for name, subject in metrics["subjects"].items():
        choice = subject.get("two_afc") or {}
        for key, title in (
            ("retrieval", "images by responses"),
            ("retrieval_of_responses", "responses by image"),
        ):
            if subject.get(key):
                mean = "mean" if key == "retrieval" else "reverse_mean"
                rows.append(
                    [
                        pages.escape(name),
                        title,
                        *_found(subject[key]),
                        _chosen(choice, mean),
                    ]
                )
        for pool, found in (subject.get("retrieval_pools") or {}).items():
            title = f"{pool.replace('_', ' ')}: {found.get('of', '')}"
            rows.append([pages.escape(name), pages.escape(title), *_found(found), "–"])
    if not rows:
        return "<p>Not computed.</p>"
    head = ["Subject", "Pool of", "Pool"] + [
        f'{name} <span class="range">[95 %] chance</span>'
        for name in ("Top-1", "Top-5", "Mean rank", "Median rank", "2AFC")
    ]
    sizes = {
        s["retrieval"]["pool"]
        for s in metrics["subjects"].values()
        if s.get("retrieval")
    }
    return (
        "<p>The measured pattern of a test image is correlated with the patterns "
        "predicted for all images of the pool. Rank 1 means that the image "
        "the subject saw fits best; a tie counts against it. 2AFC is how often it fits "
        "better than one other image, a tie counting half. Responses by image is the "
        "other way round: the predicted pattern asks, and measured ones are ranked."
        + (
            " <b>Pools differ in size between subjects, so their ranks, top-1 and "
            "top-5 do not compare; 2AFC does.</b>"
            if len(sizes) > 1
            else ""
        )
        + "</p>"
        + pages.table(head, rows, "Retrieval by subject")
    )


def _found(found: Mapping[str, Any]) -> list[str]:
    """Pool, top-1, top-5 and ranks of one direction."""
    pool, ci = found["pool"], found.get("ci") or {}
    tops = [
        _with_chance(
            100 * found[f"top{k}"],
            100 * min(1, k / pool),
            " %",
            _interval(ci.get(f"top{k}"), "{:.1f}", 100),
        )
        for k in (1, 5)
    ]
    ranks = [
        _with_chance(found[key], (pool + 1) / 2) for key in ("mean_rank", "median_rank")
    ]
    return [f"{pool:,}", *tops, *ranks]


def _chosen(choice: Mapping[str, Any], key: str) -> str:
    if not pages.defined(choice.get(key)):
        return "–"
    ends = (choice.get("ci") or {}).get(key)
    return _with_chance(100 * choice[key], 50, " %", _interval(ends, "{:.1f}", 100))


def control_section(metrics: Mapping[str, Any]) -> str:
    """Predictions that cannot know the image, and whether they are at chance."""
    rows, above = [], []
    for name, subject in metrics["subjects"].items():
        table = subject.get("controls") or {}
        above += [f"{name}: {line}" for line in leaks.above_chance(table)]
        for control, found in table.items():
            rows.append(
                [
                    pages.escape(f"{name}: {control.replace('_', ' ')}"),
                    f"{found['pool']:,}",
                    _with_chance(100 * found["two_afc"], 50, " %"),
                    _with_chance(100 * found["top1"], 100 / found["pool"], " %"),
                ]
            )
    if not rows:
        return "<p>Not computed.</p>"
    head = ["Control", "Pool"] + [
        f'{name} <span class="range">chance</span>' for name in ("2AFC", "Top-1")
    ]
    verdict = "<p><b>All controls are at chance.</b></p>"
    if above:
        lines = "".join(f"<li>{pages.escape(line)}</li>" for line in above)
        verdict = (
            f"<p><b>Above chance, so scores cannot be trusted:</b></p><ul>{lines}</ul>"
        )
    return (
        "<p>The voxels of each prediction in another order; the mean prediction for "
        "every image; the prediction for another image. Above chance they would say "
        "that the comparison itself gives the image away.</p>"
        + verdict
        + pages.table(head, rows, "Controls by subject")
    )


def model_section(models: Sequence[results.Model]) -> str:
    """This run beside baselines: who is better, in words, bars and a table."""
    if not models:
        return ""
    tests = results.compare(models)
    drawn = model_figures.by_subject(models, captioned=False)
    said = model_figures.verdicts(models, tests)
    rows = [
        [
            pages.escape(f"{row['subject']}: {row['model']}"),
            *(
                pages.number(row[key], form)
                + _interval([row[f"{key}_low"], row[f"{key}_high"]], form)
                for key, form in (
                    ("r", "{:.3f}"),
                    ("r_ceiling", "{:.3f}"),
                    ("top1", "{:.1f}"),
                    ("top5", "{:.1f}"),
                    ("two_afc", "{:.1f}"),
                )
            ),
            f"{row['top1_pool']:,}",
            pages.escape(tables.signed(row["first_minus_this"])),
            pages.escape(tables.p_value(row["p_holm"])),
        ]
        for row in drawn.rows
    ]
    head = ["Model", "r", "r / ceiling", "top-1 %", "top-5 %", "2AFC %", "pool"]
    head += ["first - this", "p (Holm)"]
    lines = "".join(f"<li>{pages.escape(line)}</li>" for line in said)
    return (
        f"<ul>{lines}</ul>"
        + pages.table(head, rows, "Models by subject")
        + pages.figure_html(drawn.figure, drawn.caption, "scores of models by subject")
    )


def _cell(pixels: np.ndarray, image_id: str, label: str, kind: str) -> str:
    return (
        f'<div class="cell {kind}"><img src="{pages.picture(pixels)}" '
        f'alt="{pages.escape(image_id)}" title="{pages.escape(image_id)}">'
        f"<span>{label}</span></div>"
    )


def retrieved_section(retrieved: Sequence[Retrieved]) -> str:
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
        parts.append(f"<h4>{pages.escape(subject)}</h4>")
        for query in queries:
            cells = [_cell(query.seen, query.image_id, "seen", "seen")]
            for image_id, pixels, r in zip(
                query.best_id, query.best, query.correlation, strict=True
            ):
                true = image_id == query.image_id
                label = f"{'✓ ' if true else ''}{pages.number(r, '{:.2f}')}"
                cells.append(_cell(pixels, image_id, label, "true" if true else ""))
            parts.append(
                f'<figure class="query"><div class="row">{"".join(cells)}</div>'
                f"<figcaption>{pages.escape(query.image_id)}: rank {query.rank:,} of "
                f"{query.pool:,}</figcaption></figure>"
            )
    return "".join(parts)


def curve_section(curves: Iterable[Mapping[str, Any]]) -> str:
    drawn = report_figures.curve_figures(curves)
    if not drawn:
        return "<p>No training log was given.</p>"
    parts = [
        pages.figure_html(fig, text, f"{name} over training steps")
        for name, fig, text in drawn
    ]
    return f'<div class="figures">{"".join(parts)}</div>'


def subject_sections(
    metrics: Mapping[str, Any], subjects: Sequence[report_figures.SubjectScores]
) -> str:
    """Each subject's voxels against their ceiling, and its regions."""
    limit = report_figures.MAX_SUBJECT_FIGURES
    parts = []
    shown = {subject.name for subject in subjects[:limit]}
    if len(subjects) > limit:
        parts.append(
            f"<p>Figures of the first {limit} of {len(subjects)} "
            "subjects; the tables hold all.</p>"
        )
    scores = {subject.name: subject for subject in subjects}
    for name in dict.fromkeys([*metrics["subjects"], *scores]):
        regions = metrics["subjects"].get(name, {}).get("roi") or {}
        parts.append(f"<section><h3>{pages.escape(name)}</h3>")
        if name in shown:
            drawn = report_figures.subject_figures(scores[name])
            if regions:
                drawn.append(("regions", *report_figures.region_bars(regions)))
            parts.append('<div class="figures">')
            for kind, fig, text in drawn:
                parts.append(pages.figure_html(fig, text, f"{name}: {kind}"))
            parts.append("</div>")
        if regions:
            head = ["Region", *_SCORE_HEAD, "no r", "no r / ceiling"]
            rows = [
                [pages.escape(roi), *_scores(s), *_undefined(s)]
                for roi, s in regions.items()
            ]
            parts.append(pages.table(head, rows, f"Scores by region, {name}"))
        parts.append("</section>")
    return "".join(parts)
