"""A flat map of all embeddings: two coordinates for each voxel, and its picture.

PCA shows the two directions in which embeddings differ most, and how much of them that
is. UMAP shows who is near whom; its axes and its empty spaces mean nothing. Both are of
embeddings scaled to length 1, as everything in `atlas` compares them.

References:
    McInnes et al., 2018, arXiv:1802.03426 (UMAP).
"""

import importlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import figure as mpl_figure
from matplotlib import patheffects
from scipy import spatial
from sklearn import decomposition

from ubrain_jax import errors
from ubrain_jax.atlas import neighbours, pooled
from ubrain_jax.maps import charts, pages

METHODS = ("pca", "umap")
MOST_POINTS = 20_000
_MARKERS = ("o", "s", "^", "D", "v", "P")
_REST = "#c8c8c8"
# Categories with a legend; more have their names on the map.
_IN_LEGEND = len(charts.COLOURS)


class Flat(NamedTuple):
    """Two coordinates of V voxels.

    Attributes:
        xy: (V, 2) float32.
        axes: What x and y are, for PCA with their shares of the variance.
        method: One of `METHODS`.
    """

    xy: np.ndarray
    axes: tuple[str, str]
    method: str


class Colour(NamedTuple):
    """By what a panel is coloured.

    Attributes:
        title: Above the panel; of numbers with their unit.
        values: (V,) numbers, NaN where unknown, or int indices into `names`, -1 for
            none.
        names: Of the categories; None: values are numbers.
    """

    title: str
    values: np.ndarray
    names: tuple[str, ...] | None = None


def map2d(table: pooled.Pooled, *, method: str = "pca", seed: int = 0) -> Flat:
    """Lays embeddings out in two dimensions.

    Args:
        table: V voxels, 3 or more.
        method: "pca", or "umap" (cosine, 15 neighbours), which needs the extra `viz`.
        seed: Of UMAP, which is then the same on one machine; PCA has no chance in it.

    Returns:
        Coordinates and what they are.

    Raises:
        errors.ConfigError: If the method is unknown, UMAP is not installed, or there
            are too few voxels.
        errors.InputError: If an embedding is not finite.
    """
    if method not in METHODS:
        raise errors.ConfigError(
            "method", "", repr(method), ", ".join(METHODS), "Choose one."
        )
    # With fewer than its 15 neighbours UMAP has no neighbourhoods to show.
    least = 3 if method == "pca" else 16
    if len(table.subject) < least:
        raise errors.ConfigError(
            "table",
            "",
            f"{len(table.subject)} voxels",
            f"{least} or more for {method}",
            "Take more voxels.",
        )
    points = neighbours.unit(table.embedding).astype(np.float32)
    if method == "umap":
        return Flat(_umap(points, seed), ("UMAP 1", "UMAP 2"), method)
    # By the covariance, whose size is that of an embedding, however many voxels.
    pca = decomposition.PCA(2, svd_solver="covariance_eigh")
    xy = pca.fit_transform(points)
    shares = 100 * pca.explained_variance_ratio_
    first, second = (
        f"PC {k} ({share:.0f}% of variance)" for k, share in enumerate(shares, 1)
    )
    return Flat(xy.astype(np.float32), (first, second), method)


def colours(
    table: pooled.Pooled,
    *,
    cluster: np.ndarray | None = None,
    roi_names: Sequence[str] | None = None,
    more: Mapping[str, np.ndarray] | None = None,
) -> list[Colour]:
    """What there is to colour by: region, subject, cluster, score and more.

    Args:
        table: V voxels.
        cluster: (V,) numbers of clusters, -1 for none; None: no such panel.
        roi_names: Regions to show; None: all. A voxel of several has the first of
            them, in this order.
        more: Numbers (V,) by title, for example the eccentricity of receptive fields.

    Returns:
        Panels for `draw`; none for what the table lacks.
    """
    found = []
    regions = tuple(table.roi_names if roi_names is None else roi_names)
    inside = table.roi[:, [table.roi_names.index(name) for name in regions]]
    if inside.any():
        first = np.where(inside.any(1), inside.argmax(1), -1)
        found.append(_only_used(Colour("region", first, regions)))
    found.append(Colour("subject", table.subject, table.names))
    if cluster is not None:
        label = np.asarray(cluster)
        names = tuple(str(k) for k in range(int(label.max(initial=-1)) + 1))
        found.append(Colour("cluster", label, names))
    if np.isfinite(table.score).any():
        title = f"score ({table.score_name.replace('_', ' ')})"
        found.append(Colour(title, table.score))
    for title, values in (more or {}).items():
        found.append(Colour(title, np.asarray(values, float)))
    return found


def draw(
    stem: str | os.PathLike,
    flat: Flat,
    panels: Sequence[Colour],
    caption: str,
    *,
    most_points: int = MOST_POINTS,
    seed: int = 0,
) -> None:
    """Draws the map once for each colouring, as STEM.png and STEM.svg.

    Up to six categories have a legend, more have their names on the map, where their
    points lie closest: a category may lie in several places. Grey is what is of none,
    or has no number.

    Args:
        stem: File without its ending.
        flat: Of `map2d`.
        panels: Of `colours`.
        caption: Below all panels.
        most_points: Of more voxels these many are drawn, by chance; the caption says
            so.
        seed: Of that choice, and of the order in which points cover each other.

    Raises:
        errors.ConfigError: If there is nothing to draw.
        errors.OutputError: If a file cannot be written.
    """
    count = len(flat.xy)
    if not panels or not count:
        raise errors.ConfigError(
            "panels", "", "nothing to draw", "voxels and a colouring", "Give some."
        )
    order = np.random.default_rng(seed).permutation(count)[:most_points]
    if len(order) < count:
        caption = f"{caption} {len(order):,} of {count:,} voxels, drawn by chance."
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(pages.STYLE):
        fig = mpl_figure.Figure(
            figsize=(4.4 * columns, 4.4 * rows + 0.5), layout="constrained"
        )
        axes = fig.subplots(rows, columns, squeeze=False).ravel()
        for ax in axes[len(panels) :]:
            ax.remove()
        for ax, panel in zip(axes, panels, strict=False):
            _draw(fig, ax, flat, panel, order)
        charts.write_caption(fig, caption)
        charts.save(fig, pathlib.Path(stem))


def _umap(points: np.ndarray, seed: int) -> np.ndarray:
    try:
        # By name: type checkers need not have it.
        umap = importlib.import_module("umap")
    except ImportError as error:
        raise errors.ConfigError(
            "method",
            "",
            f"umap-learn cannot be imported ({error})",
            "the extra viz, or method pca",
            "Install it: pip install 'ubrain_jax[viz]'",
        ) from error
    # One thread, without which the seed does not decide.
    layout = umap.UMAP(
        n_neighbors=15, metric="cosine", random_state=seed, n_jobs=1, init="pca"
    )
    return np.asarray(layout.fit_transform(points), np.float32)


def _only_used(panel: Colour) -> Colour:
    """Without the categories that no voxel has."""
    used = np.unique(panel.values[panel.values >= 0])
    new = np.full(len(panel.names or ()) + 1, -1)  # the last is that of -1
    new[used] = np.arange(len(used))
    names = tuple((panel.names or ())[k] for k in used)
    return panel._replace(values=new[panel.values], names=names)


def _draw(
    fig: mpl_figure.Figure, ax: Any, flat: Flat, panel: Colour, order: np.ndarray
) -> None:
    """One panel."""
    xy, values = flat.xy[order], np.asarray(panel.values)[order]
    size = float(np.clip(9000 / len(order), 1.5, 14))
    ax.set_title(pages.ascii_label(panel.title), loc="left", fontsize=10)
    ax.set_xlabel(flat.axes[0])
    ax.set_ylabel(flat.axes[1])
    ax.set_xticks([])
    ax.set_yticks([])
    known = values >= 0 if panel.names is not None else np.isfinite(values)
    ax.scatter(*xy[~known].T, s=size, c=_REST, linewidths=0, rasterized=True)
    if panel.names is None:
        low, high = np.percentile(values[known], [2, 98]) if known.any() else (0, 1)
        drawn = ax.scatter(
            *xy[known].T,
            s=size,
            c=values[known],
            cmap="cividis",
            vmin=low,
            vmax=high,
            linewidths=0,
            rasterized=True,
        )
        fig.colorbar(drawn, ax=ax, shrink=0.7, extend="both")
        return
    few = len(panel.names) <= _IN_LEGEND
    # In turns, so that no category covers all others.
    for turn, some in enumerate(np.array_split(np.arange(len(order)), 8)):
        for k, name in enumerate(panel.names):
            ax.scatter(
                *xy[some][values[some] == k].T,
                s=size,
                c=charts.COLOURS[k % _IN_LEGEND],
                # The second round of colours is told from the first by its marker.
                marker=_MARKERS[(k if few else k // _IN_LEGEND) % len(_MARKERS)],
                label=None if turn else pages.ascii_label(name),
                linewidths=0,
                rasterized=True,
            )
    if few:
        ax.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.08),
            ncols=min(len(panel.names), 3),
            markerscale=max(1.0, 5 / np.sqrt(size)),
            fontsize=8.5,
            handletextpad=0.2,
        )
    else:
        _label(ax, xy, values, panel.names)


def _label(ax: Any, xy: np.ndarray, values: np.ndarray, names: tuple[str, ...]) -> None:
    """Names where their points lie closest, moved up or down where they collide."""
    present = [k for k in range(len(names)) if (values == k).any()]
    peaks = np.array([_densest(xy[values == k]) for k in present])
    low, high = xy.min(0), xy.max(0)
    span = np.where(high > low, high - low, 1)
    # In shares of the axes; a line of text is about 0.045 high.
    at = (peaks - low) / span
    placed = _apart(at, [0.02 * len(names[k]) + 0.02 for k in present], 0.045)
    for k, point, place in zip(present, peaks, placed, strict=True):
        colour = charts.COLOURS[k % _IN_LEGEND]
        ax.annotate(
            pages.ascii_label(names[k]),
            point,
            low + place * span,
            ha="center",
            va="center",
            fontsize=8,
            color=pages.INK,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1.2},
            bbox={
                "boxstyle": "round,pad=0.15",
                "facecolor": "white",
                "edgecolor": colour,
                "linewidth": 1.2,
                "alpha": 0.85,
            },
            path_effects=[patheffects.withStroke(linewidth=1.5, foreground="white")],
        )


def _densest(points: np.ndarray) -> np.ndarray:
    """The point (2,) whose nearest tenth of the others is nearest.

    Example:
        >>> _densest(np.array([[0.0, 0], [9, 0], [9, 1], [9, 2]])).tolist()
        [9.0, 0.0]
    """
    points = points[:400]  # in an order by chance: enough for a place
    near = spatial.KDTree(points).query(points, k=2 + len(points) // 10)[0]
    return points[near[:, -1].argmin()]


def _apart(places: np.ndarray, widths: Sequence[float], height: float) -> np.ndarray:
    """Centres (n, 2) of boxes moved up or down until none covers another.

    Example:
        >>> _apart(np.array([[0.5, 0.5], [0.5, 0.5]]), [0.1, 0.1], 0.25)[:, 1].tolist()
        [0.5, 0.75]
    """
    placed: list[np.ndarray] = []
    done: list[int] = []
    for k in np.argsort(places[:, 1], kind="stable"):
        for step in range(2 * len(places) + 1):
            # 0, 1 up, 1 down, 2 up, ...
            shift = (step + 1) // 2 * (1 if step % 2 else -1) * height
            here = places[k] + [0, shift]
            clear = all(
                abs(here[0] - other[0]) >= (widths[k] + widths[j]) / 2
                or abs(here[1] - other[1]) >= height - 1e-9
                for j, other in zip(done, placed, strict=True)
            )
            if clear:
                break
        placed.append(here)
        done.append(int(k))
    out = np.empty_like(places)
    out[done] = placed
    return out
