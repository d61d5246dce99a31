"""Retrieved pictures: what a measured pattern finds among the predicted ones."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure
from matplotlib import patches

from ubrain_jax import crowd, errors, ranks
from ubrain_jax.maps import charts, pages
from ubrain_jax.maps.model_figures import Drawing
from ubrain_jax.maps.report_sections import Retrieved


def chosen(found: ranks.Ranks, count: int, queries: Sequence[str] = ()) -> list[int]:
    """Places of the pictures to show.

    Args:
        found: Of a subject.
        count: How many, evenly over the ranks from best to worst.
        queries: Ids to show instead.

    Raises:
        errors.ConfigError: If a query is no test picture of the subject.
    """
    if not queries:
        by_rank = np.argsort(found.rank, kind="stable")
        places = np.linspace(0, len(by_rank) - 1, min(count, len(by_rank))).round()
        return [int(by_rank[int(k)]) for k in places]
    known = {name: k for k, name in enumerate(found.image_id)}
    unknown = [name for name in queries if name not in known]
    if unknown:
        raise errors.ConfigError(
            "--queries",
            "",
            f"{', '.join(unknown)}, no test picture of the subject",
            "ids of its test pictures",
            errors.nearest(unknown[0], list(known)[:10_000])[:300],
        )
    return [known[name] for name in queries]


def read(
    stores: crowd.Crowd, subject: str, found: ranks.Ranks, places: Sequence[int]
) -> list[Retrieved]:
    """The queries with their pixels.

    Raises:
        errors.InputError: If a picture is in none of the stores.
    """
    rows = {name: k for k, name in enumerate(stores.image_id)}
    shown = []
    for place in places:
        best = [int(k) for k in found.best[place] if k >= 0]
        ids = [found.image_id[k] for k in (place, *best)]
        absent = [name for name in ids if name not in rows]
        if absent:
            raise errors.InputError(
                ", ".join(stores.paths),
                "image_id",
                f"{absent[0]} is in none of them",
                "the stores that the workdir was scored with",
                "Name them with --crowd.",
            )
        pictures = crowd.read_pictures(stores, np.array([rows[name] for name in ids]))
        shown.append(
            Retrieved(
                subject,
                ids[0],
                pictures[0],
                ids[1:],
                list(pictures[1:]),
                [float(x) for x in found.correlation[place][: len(best)]],
                int(found.rank[place]),
                found.pool,
            )
        )
    return shown


def draw(queries: Sequence[Retrieved], picked: bool, top1: float) -> Drawing:
    """The seen picture beside the best fits, a row for each query (Fig. 3).

    Args:
        queries: One or more, of one subject.
        picked: Whether someone chose them.
        top1: Share of all test pictures of the subject that are found first.
    """
    widest = max(len(q.best) for q in queries)
    first = queries[0]
    with matplotlib.rc_context(pages.STYLE):
        fig = mpl_figure.Figure((1.25 * (widest + 1) + 0.4, 1.42 * len(queries) + 1.5))
        fig.set_layout_engine("constrained")
        axes = fig.subplots(len(queries), widest + 1, squeeze=False)
        for line, query in zip(axes, queries, strict=True):
            for ax in line:
                ax.set_axis_off()
            _show(line[0], query.seen, f"rank {query.rank:,}", None)
            for ax, name, pixels, r in zip(
                line[1:], query.best_id, query.best, query.correlation, strict=False
            ):
                true = name == query.image_id
                text = f"r = {r:.2f}" if math.isfinite(r) else "-"
                _show(ax, pixels, text, pages.GREEN if true else None)
        axes[0, 0].set_title("seen", fontsize=10, fontweight="bold")
        for k in range(widest):
            axes[0, k + 1].set_title(f"{k + 1}.", fontsize=10)
        how = "picked by hand" if picked else "evenly over all ranks, best to worst"
        caption = (
            f"{first.subject}: left, the picture that was seen; then those whose "
            "predicted patterns correlate best with the measured one (r), among "
            f"{first.pool:,} test pictures. Green: the seen one. n = {len(queries)} "
            f"queries, {how}; of all {first.pool:,}, {100 * top1:.1f} % are found "
            f"first (chance {100 / first.pool:.1f} %). No test."
        )
        charts.write_caption(fig, caption)
    rows = [
        {
            "subject": q.subject,
            "image_id": q.image_id,
            "rank": q.rank,
            "pool": q.pool,
            **{key: value for k in range(widest) for key, value in _best(q, k).items()},
        }
        for q in queries
    ]
    return Drawing(fig, caption, rows)


def _best(query: Retrieved, k: int) -> dict[str, Any]:
    known = k < len(query.best_id)
    return {
        f"best_{k + 1}": query.best_id[k] if known else "",
        f"r_{k + 1}": query.correlation[k] if known else math.nan,
    }


def _show(ax: Any, pixels: np.ndarray, text: str, outline: str | None) -> None:
    """A picture with a line below it, outlined where it is the seen one."""
    ax.imshow(pixels, interpolation="antialiased")
    height, width = pixels.shape[:2]
    ax.text(
        width / 2,
        height * 1.04,
        text,
        ha="center",
        va="top",
        fontsize=8,
        color="#444444",
    )
    if outline:
        box = patches.Rectangle(
            (-0.5, -0.5), width, height, fill=False, edgecolor=outline, linewidth=3.5
        )
        box.set_clip_on(False)
        ax.add_patch(box)
