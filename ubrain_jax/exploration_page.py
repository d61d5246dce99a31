"""An exploration as the explorer page shows it: texts, tables, the voxels drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ubrain_jax import exploration
from ubrain_jax.atlas import cluster_tables, flat, pooled, wants
from ubrain_jax.maps import explorer, pages, places
from ubrain_jax.model import bundle

# Lines of a table on the page; the whole ones are in the .csv files.
MOST_ROWS = 15


def page_of(
    found: exploration.Exploration, about: dict[str, Any]
) -> explorer.Exploration:
    """What the explorer page shows."""
    roi_names = found.voxels.roi_names
    where = [places.of_subject(one.subject) for one in found.brains]
    brains = [
        _brain(one, roi_names, own)
        for one, own in zip(found.brains, where, strict=True)
    ]
    notes = [
        *found.notes,
        *(
            f"{one.subject.name}: {own.note}."
            for one, own in zip(found.brains, where, strict=True)
            if own.note
        ),
    ]
    top = found.settings.top
    groups = [
        _group(found.of_clusters, number, top, "cluster", *_about_cluster(found, row))
        for number, row in enumerate(found.rows)
    ]
    regions = [
        _group(some, 0, top, "region", *_about_region(found, number))
        for number, some in enumerate(found.of_regions)
    ]
    in_degrees = bool(np.isfinite(found.settings.degrees))
    on_surface = any(b.kind == "surface" for b in brains)
    return explorer.Exploration(
        title="Explorer of a brain encoder",
        lead=about["lead"],
        warnings=[*about["warnings"], *notes],
        pictures=found.pictures.pixels,
        picture_ids=found.pictures.ids,
        roi_names=roi_names,
        brains=brains,
        clusters=groups,
        regions=regions,
        mesh=explorer.fsaverage5() if on_surface else None,
        provenance=about["provenance"],
        score_name=found.voxels.score_name or "score (not known)",
        size_unit="degrees" if in_degrees else "picture widths",
        picture_size=found.settings.degrees if in_degrees else 1.0,
    )


def _brain(
    one: exploration.Brain, roi_names: Sequence[str], where: places.Places
) -> explorer.Brain:
    """The voxels that were looked at, where they are."""
    rows, subject = one.looked_at, one.subject
    region = np.zeros((len(rows), len(roi_names)), bool)
    region[:, [roi_names.index(n) for n in subject.roi_names]] = subject.roi[rows]
    maps = {key: values for key, (_, values, _) in exploration.maps_of(one).items()}
    maps["angle"] = one.field.angle  # radians there
    columns = {key: values[rows].astype(np.float32) for key, values in maps.items()}
    space, kind, position = str(subject.attrs.get("space")), where.kind, where.position
    axes = where.axes
    if kind == "none":  # nothing to lay them on but what they do
        kind, position = "volume", _by_embedding(subject)
        axes = ("PC 1", "PC 2", "-")
        space = "no place known: laid out by embedding"
    return explorer.Brain(
        name=subject.name,
        space=space,
        kind=kind,
        position=position[rows].astype(np.float32),
        voxel=rows,
        total=len(one.score),
        cluster=one.label[rows].astype(np.int16),
        region=region,
        field=one.field.map[rows].astype(np.float32),
        x=one.field.x[rows].astype(np.float32),
        y=one.field.y[rows].astype(np.float32),
        predicted=one.predicted[:, rows],
        top_attention=one.top_attention,
        axes=axes,
        **columns,
    )


def _by_embedding(subject: bundle.Subject) -> np.ndarray:
    """(V, 3) its own map of embeddings by PCA, 100 wide, and 0."""
    at = flat.map2d(pooled.pool([subject])).xy
    at = 100 * at / max(float(np.ptp(at)), 1e-30)
    return np.pad(at, ((0, 0), (0, 1)))


def _group(
    some: exploration.Wants,
    number: int,
    top: int,
    kind: str,
    about: Sequence[tuple[str, str]],
    table: tuple[Sequence[str], Sequence[Sequence[str]]],
) -> explorer.Group:
    """A cluster or a region of the page."""
    facts = list(about)
    measured: Sequence[int] = ()
    if some.measured is not None:
        measured = wants.top(some.measured.mean[:, number], top).tolist()
    if some.agreement is not None and np.isfinite(some.agreement.r[number]):
        facts.append(
            (
                "predicted against measured",
                f"r = {some.agreement.r[number]:.2f} over "
                f"{some.agreement.num_pictures[number]} pictures",
            )
        )
    attention = some.attention[number]
    field = some.field[number]
    return explorer.Group(
        name=some.names[number],
        about=facts,
        table=table,
        top=wants.top(some.predicted.mean[:, number], top).tolist(),
        top_measured=measured,
        bottom=wants.bottom(some.predicted.mean[:, number], top).tolist(),
        top_attention=_known(attention),
        field=_known(field),
        kind=kind,
    )


def _known(values: np.ndarray) -> np.ndarray | None:
    """None where a group has no voxel."""
    return values.astype(np.float32) if np.isfinite(values).any() else None


def _about_cluster(
    found: exploration.Exploration, row: cluster_tables.Row
) -> tuple[list[tuple[str, str]], tuple[list[str], list[list[str]]]]:
    """Facts and the table of regions of a cluster."""
    number = pages.number
    facts = [
        ("voxels", f"{row.size:,} of {len(found.voxels.subject):,} ({row.share:.0%})"),
        ("by subject", _counts(found.voxels.names, row.subjects)),
        ("hemispheres", f"{row.left:,} left, {row.right:,} right"),
    ]
    if row.unknown:
        facts[-1] = ("hemispheres", f"{facts[-1][1]}, {row.unknown:,} not known")
    if np.isfinite(row.median_score):
        facts.append((f"median {found.voxels.score_name}", f"{row.median_score:.3f}"))
    if np.isfinite(row.agreement):
        facts.append(
            (
                "same cluster by other subjects",
                f"{row.agreement:.0%} of its voxels (by chance {row.chance:.0%})",
            )
        )
    regions = sorted((r for r in row.regions if r.inside), key=lambda r: r.p)
    head = ["region", "voxels", "expected", "times", "q"]
    lines = [
        [
            r.name,
            f"{r.inside:,}",
            f"{r.expected:.1f}",
            number(r.fold, "{:.2f}"),
            number(r.q, "{:.2g}"),
        ]
        for r in regions[:MOST_ROWS]
    ]
    return facts, (head, lines)


def _about_region(
    found: exploration.Exploration, number: int
) -> tuple[list[tuple[str, str]], tuple[list[str], list[list[str]]]]:
    """Facts and the table of clusters of a region."""
    name = found.voxels.roi_names[number]
    counts, scores = [], []
    for one in found.brains:
        inside = np.zeros(len(one.score), bool)
        if name in one.subject.roi_names:
            inside = one.subject.roi[:, one.subject.roi_names.index(name)]
        counts.append(int(inside.sum()))
        scores.append(one.score[inside])
    values = np.concatenate(scores)
    values = values[np.isfinite(values)]
    names = [one.subject.name for one in found.brains]
    facts = [
        ("voxels", f"{sum(counts):,}"),
        ("by subject", _counts(names, counts)),
    ]
    if len(values):
        label = f"median {found.voxels.score_name}"
        facts.append((label, f"{np.median(values):.3f}"))
    lines = [
        [
            row.name,
            f"{r.inside:,}",
            pages.number(r.fold, "{:.2f}"),
            pages.number(r.q, "{:.2g}"),
        ]
        for row in found.rows
        for r in row.regions
        if r.name == name and r.inside
    ]
    lines.sort(key=lambda line: -int(line[1].replace(",", "")))
    return facts, (
        ["cluster", "scored voxels", "times expected", "q"],
        lines[:MOST_ROWS],
    )


def _counts(names: Sequence[str], counts: Sequence[int]) -> str:
    """Of the subjects that have any."""
    return ", ".join(f"{n} {c:,}" for n, c in zip(names, counts, strict=True) if c)
