"""Models beside each other: by subject, by dataset, and their paired tests.

Each function draws one figure and returns it with its caption and its table; the
caption says n, what the intervals are of, and the test. Shares of pictures found
depend on how many pictures there are to choose from: where pools differ in size, the
figure says so beside every group, and nothing is averaged over them.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure

from ubrain_jax import errors, results, scoring, studies, whole
from ubrain_jax.maps import charts, pages, tables

ALPHA = 0.05  # below which a corrected p gets its mark
_RANKED = ("top1", "top5")
_NOT_INDEPENDENT = (
    "Neighbouring voxels are not independent, so p over voxels is too small."
)


class Drawing(NamedTuple):
    """A figure with all that is written beside it.

    Attributes:
        figure: The caption is drawn below its panels.
        caption: n, intervals and tests.
        rows: Its numbers, all with the same keys.
    """

    figure: mpl_figure.Figure
    caption: str
    rows: list[dict[str, Any]]


class Bars(NamedTuple):
    """One pair of axes with G groups of bars; NaN where there is none.

    Attributes:
        ylabel: With the unit.
        series: Name -> heights, lower and upper ends of error bars: (3, G).
        chance: (G,) heights of dotted lines.
        above: (G,) texts at the top of the groups, "" for none.
        marks: Name -> (G,) texts above bars.
        points: Name -> for each group the heights of single dots.
    """

    ylabel: str
    series: Mapping[str, np.ndarray]
    chance: Sequence[float]
    above: Sequence[str]
    marks: Mapping[str, Sequence[str]]
    points: Mapping[str, Sequence[Sequence[float]]]


def write(drawing: Drawing, stem: pathlib.Path, title: str, notes: Sequence[str]):
    """NAME.png, NAME.svg, NAME.csv and NAME.md.

    Args:
        drawing: The figure.
        stem: Files without their ending.
        title: Of the page.
        notes: What a reader must know first.

    Raises:
        errors.OutputError: If a file cannot be written.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    charts.save(drawing.figure, stem)
    whole.write_text(f"{stem}.csv", tables.csv_text(drawing.rows))
    cells = [[shown(key, value) for key, value in r.items()] for r in drawing.rows]
    head = [key.replace("_", " ") for key in drawing.rows[0]] if drawing.rows else []
    parts = [
        f"# {tables.plain(title)}",
        *(f"**Note.** {tables.plain(line)}" for line in notes),
        f"![{tables.plain(title)}]({stem.name}.png)",
        tables.plain(drawing.caption),
        tables.markdown_table(head, cells),
    ]
    whole.write_text(f"{stem}.md", "\n\n".join(parts) + "\n")


def shown(key: str, value: Any) -> str:
    """A cell of a Markdown table."""
    if isinstance(value, float):
        if key.startswith("p_") or key == "p":
            return tables.p_value(value)
        return tables.number(value, 1 if key.startswith(("top", "two_afc")) else 3)
    return str(value)


def by_subject(
    models: Sequence[results.Model], pool: str = "all", *, captioned: bool = True
) -> Drawing:
    """Every score of every model for each subject (the paper's Fig. 4).

    Args:
        models: The first is tested against each other one, over voxels.
        pool: One of `results.POOLS`, for top-1 and top-5.
        captioned: Draw the caption too.

    Raises:
        errors.ConfigError: If no subject has that pool.
        errors.InputError: If two models are of other voxels.
    """
    subjects = results.subjects_of(models)
    found = _values(models, subjects, pool)
    tests = results.compare(models)
    marked = {
        (row["second"], row["subject"])
        for row in tests
        if row["over"] == "voxels" and row["p_holm"] < ALPHA
    }
    panels, differ = [], False
    for score, label in _labels(found, pool).items():
        pools = [
            max(found[m.name, name, score].pool for m in models) for name in subjects
        ]
        uneven = score in _RANKED and len(set(pools) - {0}) > 1
        differ |= uneven
        values = {
            m.name: np.array([found[m.name, name, score][:3] for name in subjects]).T
            for m in models
        }
        marks = {
            m.name: ["*" if (m.name, name) in marked else "" for name in subjects]
            for m in models
        }
        panels.append(
            Bars(
                f"{label},\npools differ in size" if uneven else label,
                values,
                [_chance(score, size) for size in pools],
                [f"of {size:,}" if uneven and size else "" for size in pools],
                marks if score == "r" else {},
                {},
            )
        )
    rows = []
    for name in subjects:
        for model in (m for m in models if name in m.runs):
            rows.append(_row(found, model, name))
            rows[-1] |= _p_of(tests, model, name)
    caption = [
        f"Medians over the voxels of each subject ({_span(rows, 'voxels')} voxels, "
        f"{_span(rows, 'test_images')} test pictures); "
        + (
            "error bars: 95 % interval of a bootstrap over test pictures"
            f"{_draws(models)}; a bar without one was scored without."
            if any(math.isfinite(row["r_low"]) for row in rows)
            else "no error bars: these evaluations made no intervals."
        ),
        _pool_words(rows, pool, differ),
    ]
    if any(row["seeds"] > 1 for row in rows):
        caption.append("Where a model has several seeds: means over them.")
    if tests:
        num = sum(row["over"] == "voxels" for row in tests)
        caption.append(
            f"*: differs from {models[0].name}, Wilcoxon signed-rank test over voxels, "
            f"two-sided, p < {ALPHA} after Holm's correction for {num} "
            f"comparison{'s' * (num > 1)}. {_NOT_INDEPENDENT}"
        )
    text = " ".join(caption)
    fig = _figure(panels, subjects, "subject", text if captioned else "")
    return Drawing(fig, text, rows)


def by_dataset(models: Sequence[results.Model], pool: str = "all") -> Drawing:
    """Means over the subjects of each dataset, for each model (the paper's Fig. 5).

    Subjects that some model did not score are left out and named. Where pools of a
    dataset's subjects differ in size, its top-1 and top-5 are left out.

    Args:
        models: One or more.
        pool: One of `results.POOLS`.

    Raises:
        errors.ConfigError: If no subject has that pool, or all models share none.
    """
    everyone = results.subjects_of(models)
    subjects = [n for n in everyone if all(n in model.runs for model in models)]
    if not subjects:
        raise errors.ConfigError(
            "--workdirs",
            "",
            "no subject that all models scored",
            "models of the same subjects",
            "Give a name that several workdirs share to models of one subject each.",
        )
    found = _values(models, subjects, pool)
    datasets: dict[str, list[str]] = {}
    for name in subjects:
        entry = models[0].runs[name][0].subjects[name]
        datasets.setdefault(str(entry.get("dataset") or "unknown"), []).append(name)
    panels, rows, differ = [], [], False
    kept: dict[tuple[str, str, str], tuple[float, float, float, int]] = {}
    pools: dict[tuple[str, str], set[int]] = {}
    labels = _labels(found, pool)
    for score in labels:
        for dataset, names in datasets.items():
            sizes = {found[m.name, n, score].pool for m in models for n in names}
            pools[score, dataset] = sizes - {0}
            mixed = score in _RANKED and len(pools[score, dataset]) > 1
            for model in models:
                of = [found[model.name, name, score] for name in names]
                kept[model.name, dataset, score] = _mean(of) if not mixed else _NONE
    for score, label in labels.items():
        sizes = [pools[score, dataset] for dataset in datasets]
        uneven = score in _RANKED and len(set().union(*sizes)) > 1
        differ |= uneven
        series = {
            m.name: np.array([kept[m.name, d, score][:3] for d in datasets]).T
            for m in models
        }
        points = {
            m.name: [
                [found[m.name, n, score].value for n in names]
                if len(names) > 1 and kept[m.name, d, score] != _NONE
                else []
                for d, names in datasets.items()
            ]
            for m in models
        }
        above = [f"of {_pool_text(some)}" if uneven else "" for some in sizes]
        chance = [_chance(score, max(s)) if len(s) == 1 else math.nan for s in sizes]
        ylabel = f"{label},\npools differ in size" if uneven else label
        panels.append(Bars(ylabel, series, chance, above, {}, points))
    for dataset, names in datasets.items():
        for model in models:
            row = {"dataset": dataset, "model": model.name, "subjects": len(names)}
            for score in results.SCORES:
                value, low, high, _ = kept.get((model.name, dataset, score), _NONE)
                row |= {score: value, f"{score}_low": low, f"{score}_high": high}
                if score in _RANKED:
                    row[f"{score}_pool"] = _pool_text(pools.get((score, dataset), {0}))
            rows.append(row)
    listed = ", ".join(f"{d} n = {len(names)}" for d, names in datasets.items())
    caption = [
        f"Means over the subjects of each dataset ({listed}) of their medians over "
        "voxels; dots: subjects; error bars: SD over subjects (N - 1), or for a single "
        "subject the 95 % interval of a bootstrap over its test pictures. No test.",
    ]
    if differ:
        caption.append(
            "Pools differ in size ('of N' above the groups), so top-1 and top-5 of "
            "different datasets do not compare; a dataset whose own subjects have "
            "different pools has none. Forced choice does not depend on the pool."
        )
    left = [name for name in everyone if name not in subjects]
    if left:
        caption.append(f"Left out, not scored by every model: {', '.join(left)}.")
    text = " ".join(caption)
    return Drawing(_figure(panels, list(datasets), "dataset", text), text, rows)


def paired_tests(rows: Sequence[dict[str, Any]]) -> Drawing:
    """Differences of the first model against each other one (the paper's S8, S9).

    Args:
        rows: From `results.compare`, one or more.
    """
    seconds = list(dict.fromkeys(row["second"] for row in rows))
    names = list(dict.fromkeys(row["subject"] for row in rows if row["subject"]))
    places = [*names, ""]
    of = {(row["second"], row["subject"]): row for row in rows}
    height = 1.9 + 0.32 * len(places)
    with matplotlib.rc_context(pages.STYLE):
        fig = mpl_figure.Figure((2.2 + 3.4 * len(seconds), height))
        fig.set_layout_engine("constrained")
        axes = fig.subplots(1, len(seconds), squeeze=False, sharey=True)[0]
        for k, (ax, second) in enumerate(zip(axes, seconds, strict=True)):
            for y, place in enumerate(places):
                row = of.get((second, place))
                if row is not None:
                    _draw_test(ax, k + 1, y, row)  # colours as in `by_subject`
            ax.axvline(0, color="#888888", linewidth=1, zorder=0)
            ax.set_title(pages.ascii_label(f"against {second}"), fontsize=10)
            ax.set_xlabel(f"{pages.ascii_label(rows[0]['first'])} - other, r")
            ax.grid(axis="x", color="#eeeeee")
            ax.set_axisbelow(True)
            ax.margins(x=0.25)
        labels = [pages.ascii_label(name) for name in names] + ["over subjects"]
        axes[0].set_yticks(range(len(places)), labels)
        axes[0].set_ylim(len(places) - 0.5, -0.5)
        counts = {
            over: sorted({row["num"] for row in rows if row["over"] == over})
            for over in ("voxels", "subjects")
        }
        n = {k: " to ".join(f"{x:,}" for x in _ends(v)) for k, v in counts.items()}
        caption = (
            f"Median over voxels of the difference in correlation r, "
            f"{rows[0]['first']} minus the other (not the difference of the medians); "
            "thick: its 95 % interval from order statistics, thin: quartiles over "
            f"voxels. p: Wilcoxon signed-rank test, two-sided, equal values left out, "
            f"over n = {n['voxels']} voxels of each subject, and over n = "
            f"{n['subjects']} subjects' medians (below 6 subjects p cannot reach .05 "
            "and there is no interval); after Holm's correction over the rows of each "
            f"kind. {_NOT_INDEPENDENT}"
        )
        charts.write_caption(fig, caption)
    keys = ("first", "second", "over", "subject", "num", "left_out", "equal")
    keys += ("median_difference", "low", "high", "p25", "p75", "better", "p", "p_holm")
    listed = [{k: row[k] for k in (*keys, "test")} for row in rows]
    return Drawing(fig, caption, listed)


def verdicts(models: Sequence[results.Model], tests: Sequence[dict]) -> list[str]:
    """Who is better in each subject, a sentence each: also where the first is not."""
    lines, first = [], models[0].name
    for subject in models[0].runs:
        own = [r for r in tests if r["subject"] == subject and r["over"] == "voxels"]
        said = []
        for row in own:
            # NaN is not below: no test is no difference.
            told = row["p_holm"] < ALPHA and row["median_difference"] != 0
            verb = "is not told apart from"
            if told:
                verb = "beats" if row["median_difference"] > 0 else "loses to"
            said.append(
                f"{verb} {row['second']} (median difference "
                f"{tables.signed(row['median_difference'])}, p "
                f"{tables.p_value(row['p_holm'])})"
            )
        if said:
            lines.append(f"{subject}: {first} {', '.join(said)}.")
    return lines


_NONE = (math.nan, math.nan, math.nan, 0)


def _mean(values: Sequence[results.Value]) -> tuple[float, float, float, int]:
    """Mean with one SD over subjects, or a single one with its interval."""
    known = [v for v in values if math.isfinite(v.value)]
    if not known:
        return _NONE
    if len(known) == 1:
        return (*known[0][:3], 1)
    found = studies.spread(v.value for v in known)
    return found.mean, found.mean - found.sd, found.mean + found.sd, found.num


def _values(
    models: Sequence[results.Model], subjects: Sequence[str], pool: str
) -> dict[tuple[str, str, str], results.Value]:
    """By model, subject and score."""
    found = {
        (m.name, name, score): results.value(m, name, score, pool)
        for m in models
        for name in subjects
        for score in results.SCORES
    }
    if pool != "all" and not any(
        v.pool for key, v in found.items() if key[2] in _RANKED
    ):
        raise errors.ConfigError(
            "--pool",
            "",
            f"{pool}, which no subject has",
            f"a pool of the evaluations: {scoring.POOLS[pool]}",
            "Take --pool=all.",
        )
    return found


def _labels(found: Mapping[tuple, results.Value], pool: str) -> dict[str, str]:
    """Scores that some model has, with what stands beside their axis."""
    labels = {}
    for score, label in results.SCORES.items():
        some = [v for key, v in found.items() if key[2] == score]
        if not any(math.isfinite(v.value) for v in some):
            continue
        sizes = {v.pool for v in some} - {0}
        if score in _RANKED and len(sizes) == 1:
            label = label.replace(" (", f"\n(pool {sizes.pop():,}, ")
        else:
            label = label.replace(" over voxels", "\nover voxels").replace(" (", "\n(")
        labels[score] = label
    return labels


def _row(found: Mapping[tuple, results.Value], model: results.Model, name: str) -> dict:
    """A line of the table of `by_subject`."""
    run = model.runs[name][0]
    entry = run.subjects[name]
    row = {
        "subject": name,
        "model": model.name,
        "voxels": entry["num_voxels"],
        "test_images": entry["num_test_images"],
        "seeds": len(model.runs[name]),
    }
    for score in results.SCORES:
        value = found[model.name, name, score]
        row |= {
            score: value.value,
            f"{score}_low": value.low,
            f"{score}_high": value.high,
            f"{score}_seed_sd": value.seed_sd,
        }
        if score in _RANKED:
            row[f"{score}_pool"] = value.pool
    return row


def _p_of(tests: Sequence[dict[str, Any]], model: results.Model, name: str) -> dict:
    row = {"first_minus_this": math.nan, "p_wilcoxon": math.nan, "p_holm": math.nan}
    for test in tests:
        if (test["second"], test["subject"]) == (model.name, name):
            row["first_minus_this"] = test["median_difference"]
            row |= {"p_wilcoxon": test["p"], "p_holm": test["p_holm"]}
    return row


def _chance(score: str, pool: int) -> float:
    if score == "two_afc":
        return 50.0
    if score in _RANKED and pool:
        return 100 * min(1.0, int(score[3:]) / pool)
    return math.nan


def _ends(values: Sequence[int]) -> list[int]:
    return [values[0], values[-1]] if len(set(values)) > 1 else list(values[:1])


def _span(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    values = sorted({row[key] for row in rows})
    return " to ".join(f"{x:,}" for x in _ends(values))


def _pool_text(sizes: Any) -> str:
    return " to ".join(f"{x:,}" for x in _ends(sorted(sizes))) if sizes else "none"


def _draws(models: Sequence[results.Model]) -> str:
    """How many draws intervals have, where evaluations say so."""
    found = {
        run.subjects[name].get("bootstrap", {}).get("draws")
        for model in models
        for name, runs in model.runs.items()
        for run in runs
    } - {None}
    return f" ({found.pop():,} draws)" if len(found) == 1 else ""


def _pool_words(rows: Sequence[Mapping[str, Any]], pool: str, differ: bool) -> str:
    what = "all test pictures of the subject" if pool == "all" else scoring.POOLS[pool]
    text = f"Top-1 and top-5 are among {what}; dotted: chance."
    if differ:
        text += (
            " Pools differ in size ('of N' above the groups): top-1 and top-5 compare "
            "within a subject, not between subjects. Forced choice does not depend on "
            "the pool."
        )
    return text


def _figure(
    panels: Sequence[Bars], places: Sequence[str], xlabel: str, caption: str
) -> mpl_figure.Figure:
    """Panels below each other, one x axis for all."""
    names = list(panels[0].series)
    width = min(max(6.0, 2.2 + 0.32 * len(places) * (len(names) + 1)), 26)
    with matplotlib.rc_context(pages.STYLE):
        fig = mpl_figure.Figure((width, 2.0 * len(panels) + 1.6))
        fig.set_layout_engine("constrained")
        axes = fig.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for ax, panel in zip(axes, panels, strict=True):
            _draw_bars(ax, panel, names)
        bottom = axes[-1]
        bottom.set_xticks(
            range(len(places)),
            [pages.ascii_label(p) for p in places],
            rotation=0 if len(places) < 4 else 35,
            ha="center" if len(places) < 4 else "right",
        )
        bottom.set_xlim(-0.5, len(places) - 0.5)
        bottom.set_xlabel(xlabel)
        handles, labels = axes[0].get_legend_handles_labels()
        fig.legend(
            handles,
            labels,
            loc="outside upper center",
            ncols=min(len(names), max(2, int(width / 1.8))),
        )
        fig.align_ylabels(axes)
        if caption:
            charts.write_caption(fig, caption)
    return fig


def _draw_bars(ax: Any, panel: Bars, names: Sequence[str]) -> None:
    """Bars side by side; colour and hatch tell the series."""
    wide = 0.8 / max(2, len(names))
    tops = [0.0]
    for k, name in enumerate(names):
        value, low, high = panel.series[name]
        x = np.arange(len(value)) + (k - (len(names) - 1) / 2) * wide
        ax.bar(
            x,
            np.nan_to_num(value),
            wide * 0.94,
            color=charts.COLOURS[k % len(charts.COLOURS)],
            hatch=charts.HATCHES[k % len(charts.HATCHES)],
            edgecolor="white",
            linewidth=0.6,
            label=pages.ascii_label(name),
        )
        ends = np.nan_to_num(np.maximum([value - low, high - value], 0))
        known = np.isfinite(value) & np.isfinite(low) & np.isfinite(high)
        ax.errorbar(
            x[known],
            value[known],
            ends[:, known],
            fmt="none",
            ecolor=pages.INK,
            elinewidth=1.1,
            capsize=2,
        )
        for place, dots in enumerate(panel.points.get(name, ())):
            ax.plot(
                np.full(len(dots), x[place]),
                dots,
                "o",
                color=pages.INK,
                markersize=3,
                markerfacecolor="white",
                markeredgewidth=0.8,
            )
            tops += [dot for dot in dots if math.isfinite(dot)]
        upper = np.where(np.isfinite(high), high, value)
        tops += [float(t) for t in upper if math.isfinite(t)]
        for place, mark in enumerate(panel.marks.get(name, ())):
            if mark and math.isfinite(value[place]):
                y = max(float(upper[place]), 0)
                ax.text(x[place], y, mark, ha="center", va="bottom", fontsize=10)
    for place, height in enumerate(panel.chance):
        if math.isfinite(height):
            ends = [place - 0.45, place + 0.45]
            ax.plot(ends, [height] * 2, color=pages.INK, linewidth=1.1, linestyle=":")
    top = max(tops) * 1.18 or 1.0
    ax.set_ylim(min(0.0, ax.get_ylim()[0]), top)
    for place, text in enumerate(panel.above):
        ax.text(place, top, text, ha="center", va="top", fontsize=8, color="#555555")
    for border in np.arange(1, len(panel.above)) - 0.5:
        ax.axvline(border, color="#eeeeee", linewidth=0.8, zorder=0)
    ax.axhline(0, color="#888888", linewidth=0.8)
    ax.set_ylabel(panel.ylabel)
    ax.grid(axis="y", color="#eeeeee")
    ax.set_axisbelow(True)


def _draw_test(ax: Any, k: int, y: int, row: Mapping[str, Any]) -> None:
    """A difference with its interval, quartiles and p."""
    x = row["median_difference"]
    if not math.isfinite(x):
        return
    colour = charts.COLOURS[k % len(charts.COLOURS)]
    if math.isfinite(row["p25"]):
        ax.plot([row["p25"], row["p75"]], [y, y], color="#9a9a9a", linewidth=1)
    if math.isfinite(row["low"]):
        ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=3.5)
    marker = "o" if row["over"] == "voxels" else "D"
    ax.plot(x, y, marker, color=colour, markersize=6, markeredgecolor="white")
    p = tables.p_value(row["p_holm"])
    text = (
        f"p {p}, n = {row['num']:,}"
        if p.startswith("<")
        else f"p = {p}, n = {row['num']:,}"
    )
    ax.annotate(
        text,
        (1, y),
        (-2, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=7,
        color="#555555",
    )
