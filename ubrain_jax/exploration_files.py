"""An exploration as a folder: the explorer page, pictures, tables, maps.

    DIR/index.html              the page to explore
    DIR/about.json              what was done, with what, and notes
    DIR/clusters.safetensors    centres and names, for the next run
    DIR/clusters.csv ...        tables
    DIR/within/ROI.csv          sub-clusters of a region
    DIR/contrasts.csv           pictures that two groups answer differently
    DIR/prf.csv                 fields beside NSD's measured ones
    DIR/voxels/NAME.zarr        all of each voxel
    DIR/figures/                brains, the map of the embedding, what groups want
    DIR/derivatives/            the same values as NIfTI, GIFTI, CIFTI

The folder comes whole or not at all.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import scipy.cluster.hierarchy
import xarray
from matplotlib import figure as mpl_figure

import ubrain_jax
from ubrain_jax import crowd, errors, exploration, exploration_page, whole
from ubrain_jax.atlas import cluster_files, cluster_tables, clusters, flat, prf, wants
from ubrain_jax.maps import (
    charts,
    cortex,
    derivatives,
    explorer,
    pages,
    shades,
    tables,
    wanted,
)
from ubrain_jax.model import bundle

MOST_OUTLINES = 12
FORMAT = "ubrain-exploration"
VERSION = 1


def check(out: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Refuses a folder that exists, unless it is an exploration to be replaced.

    Raises:
        errors.OutputError: If it is refused.
    """
    path = pathlib.Path(out)
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise errors.OutputError(
            path, "", "exists", "a new name", "Choose another, or pass --overwrite."
        )
    if not _is_ours(path):
        raise errors.OutputError(
            path,
            "",
            "exists and is no exploration",
            "one to replace, or a new name",
            "Nothing was deleted; choose another --out.",
        )


def _is_ours(folder: pathlib.Path) -> bool:
    try:
        told = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        return told["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write(
    out: str | os.PathLike,
    found: exploration.Exploration,
    *,
    about: dict[str, Any],
    encoder_sha256: str,
    max_bytes: int = 25_000_000,
    figures: bool = True,
    overwrite: bool = False,
) -> list[str]:
    """Writes all of it.

    Args:
        out: Folder to make.
        found: From `exploration.explore`.
        about: What the page and about.json should say of the encoder: `lead`, a
            sentence; `warnings`; `provenance`, (label, text) rows.
        encoder_sha256: Of the encoder.
        max_bytes: Of the page.
        figures: Whether figures are drawn.
        overwrite: Replace an exploration that is there.

    Returns:
        Notes: what was reduced or cannot be drawn, a sentence each.

    Raises:
        errors.OutputError: If it cannot be written.
    """
    check(out, overwrite=overwrite)
    notes = list(found.notes)
    with whole.folder(out) as folder:
        cluster_files.write(
            folder / "clusters.safetensors", found.clusters, encoder_sha256
        )
        _tables(folder, found)
        for one in found.brains:
            _voxels(folder / "voxels" / f"{one.subject.name}.zarr", one, found)
        if figures:
            notes += _figures(folder / "figures", found)
        notes += _derivatives(folder / "derivatives", found)
        page = exploration_page.page_of(found, about)
        notes += explorer.write(folder / "index.html", page, max_bytes=max_bytes)
        told = {
            "format": FORMAT,
            "version": VERSION,
            "created_by": f"ubrain_jax {ubrain_jax.__version__}",
            "encoder_sha256": encoder_sha256,
            "settings": _settings(found),
            "pictures": list(found.pictures.ids),
            "choice_of_k": found.choice.reason if found.choice else "k was given",
            **about,
            "notes": notes,
        }
        text = json.dumps(told, indent=1, default=str) + "\n"
        whole.write_text(folder / "about.json", text)
        check(out, overwrite=overwrite)  # another process may have been faster
    return notes


def _settings(found: exploration.Exploration) -> dict[str, Any]:
    """NaN, which JSON has not, as null."""
    told = found.settings._asdict()
    told["within"] = dict(told["within"])
    told["prfs"] = found.settings.prfs and pathlib.Path(found.settings.prfs).name
    if not np.isfinite(told["degrees"]):
        told["degrees"] = None
    return told


def _tables(folder: pathlib.Path, found: exploration.Exploration) -> None:
    names = found.voxels.names
    cluster_tables.write_csv(folder / "clusters.csv", found.rows, names)
    cluster_tables.write_regions_csv(folder / "regions.csv", found.rows)
    if found.choice is not None:
        lines = [found.choice.candidates[0]._fields, *found.choice.candidates]
        tables.write_csv(folder / "choice_of_k.csv", lines)
    tables.write_csv(folder / "wants.csv", _wants_lines(found))
    if found.against:
        tables.write_csv(folder / "contrasts.csv", _contrast_lines(found))
    if found.prfs:
        lines = [("subject", *prf.Agreement._fields)]
        lines += [(name, *own) for name, own in found.prfs.items()]
        tables.write_csv(folder / "prf.csv", lines)
    for part in found.within:
        stem = folder / "within" / file_name(part.roi)
        cluster_tables.write_csv(stem.with_suffix(".csv"), part.rows, names)


def file_name(text: str) -> str:
    """A region's name as part of a file's name.

    Example:
        >>> file_name("PPA/../x y")
        'PPA-..-x-y'
    """
    return "".join(c if c.isalnum() or c in "._" else "-" for c in text)


def _wants_lines(found: exploration.Exploration) -> Iterator[tuple]:
    """Mean response of each group to each picture."""
    yield (
        "kind",
        "group",
        "picture",
        "predicted_z",
        "measured_z",
        "num_subjects_measured",
    )
    sets = [("cluster", found.of_clusters)]
    sets += [("region", some) for some in found.of_regions]
    sets += [(f"within {part.roi}", part.wants) for part in found.within]
    for kind, some in sets:
        for group, name in enumerate(some.names):
            for picture, picture_id in enumerate(found.pictures.ids):
                measured, count = float("nan"), 0
                if some.measured is not None:
                    measured = float(some.measured.mean[picture, group])
                    count = int(some.measured.num_subjects[picture, group])
                predicted = float(some.predicted.mean[picture, group])
                yield kind, name, picture_id, predicted, measured, count


def _contrast_lines(found: exploration.Exploration) -> Iterator[tuple]:
    """How much more the first group answers each picture than the second."""
    head = ("first", "second", "picture", "predicted_z", "predicted_t", "measured_z")
    yield (*head, "num_subjects_measured")
    for pair in found.against:
        for picture, picture_id in enumerate(found.pictures.ids):
            measured, count = float("nan"), 0
            if pair.measured is not None:
                measured = float(pair.measured.difference[picture])
                count = int(pair.measured.num_subjects[picture])
            told = float(pair.predicted.difference[picture])
            t = float(pair.predicted.t[picture])
            yield *pair.names, picture_id, told, t, measured, count


def _voxels(
    path: pathlib.Path, one: exploration.Brain, found: exploration.Exploration
) -> None:
    """Everything of each voxel of one subject."""
    names = np.array([*found.clusters.names, ""], dtype=object)
    field, subject = one.field, one.subject
    table = xarray.Dataset(
        {
            "cluster": ("voxel", names[one.label]),
            "score": ("voxel", one.score),
            "x": ("voxel", field.x),
            "y": ("voxel", field.y),
            "size": ("voxel", field.size),
            "eccentricity": ("voxel", field.eccentricity),
            "angle": ("voxel", field.angle),
            "field_quality": ("voxel", field.quality),
            "level": ("voxel", one.level),
            "tap_share": (("voxel", "tap"), one.share),
            "attention": (("voxel", "y_patch", "x_patch"), field.map),
            "position": (("voxel", "axis"), subject.position),
            "roi": (("voxel", "roi_name"), subject.roi),
        },
        coords={
            "voxel": np.arange(len(one.score)),
            "roi_name": np.asarray(subject.roi_names, object),
        },
        attrs={
            "subject": subject.name,
            "space": str(subject.attrs.get("space", "not said")),
            "score_name": found.voxels.score_name or "none",
            "units": "x, y, size, eccentricity: fractions of the picture; angle: "
            "radians counter-clockwise from the right; level: number of the tap, 1 the "
            "first",
        },
    )
    path.parent.mkdir(exist_ok=True)
    crowd.write_xarray(table, path)


def _figures(folder: pathlib.Path, found: exploration.Exploration) -> list[str]:
    """Pictures; what cannot be drawn is said, not hidden."""
    notes: list[str] = []
    folder.mkdir()
    for one in found.brains:
        subject = one.subject
        labels = (found.clusters.names, shades.palette(len(found.clusters.names)))
        stem = f"{subject.name}_"
        try:
            said = cortex.draw(
                folder / f"{stem}cluster.png",
                subject,
                one.label,
                name="cluster",
                kind="labels",
                labels=labels,
                outlines=_outlines(subject),
            )
            for key, (words, values, kind) in exploration.maps_of(one).items():
                if np.isfinite(values).any():
                    cortex.draw(
                        folder / f"{stem}{key}.png",
                        subject,
                        values,
                        name=words,
                        kind=kind,
                    )
            notes += [f"{subject.name}: {line}" for line in said]
        except errors.InputError as error:
            notes.append(
                f"{subject.name} is in no picture of a brain: {_why(error, folder)}"
            )
    _embedding_figure(folder / "embedding", found)
    _draw_wants(folder / "wants.png", found, found.of_clusters, "cluster")
    for part in found.within:
        path = folder / f"within_{file_name(part.roi)}.png"
        _draw_wants(path, found, part.wants, f"sub-cluster of {part.roi}")
        names, response = part.wants.names, part.wants.predicted
        pairs = [
            (f"{names[0]} - {names[k]}", wants.contrast(response, 0, k))
            for k in range(1, len(names))
        ]
        _draw_contrasts(path.with_stem(f"{path.stem}_contrast"), found, pairs, part.roi)
    if found.against:
        pairs = [(" - ".join(pair.names), pair.predicted) for pair in found.against]
        _draw_contrasts(folder / "contrasts.png", found, pairs, "all subjects")
    _draw_hierarchy(folder / "hierarchy.png", found.clusters)
    return notes


def _why(error: errors.InputError, folder: pathlib.Path) -> str:
    """Without the folder that is being filled, whose name nobody will find."""
    return str(error).replace(f"{folder}{os.sep}", "").removeprefix(f"{folder}:")


def _outlines(subject: bundle.Subject) -> list[str]:
    """The largest regions of a subject: more lines than these hide the colours."""
    size = subject.roi.sum(0)
    order = np.argsort(-size, kind="stable")[:MOST_OUTLINES]
    return [subject.roi_names[k] for k in order if size[k]]


def _embedding_figure(stem: pathlib.Path, found: exploration.Exploration) -> None:
    """The map of all embeddings, by PCA and, where asked for, by UMAP."""
    voxels, settings = found.voxels, found.settings
    extra = {}
    for key in ("eccentricity", "level"):
        parts = [exploration.maps_of(one)[key] for one in found.brains]
        values = np.full(len(voxels.subject), np.nan)
        for number, (_, own, _) in enumerate(parts):
            mine = voxels.subject == number
            values[mine] = own[voxels.voxel[mine]]
        extra[parts[0][0]] = values
    panels = flat.colours(voxels, more=extra)
    named = flat.Colour("cluster", found.clusters.label, found.clusters.names)
    panels.insert(1, named)
    caption = (
        f"{len(voxels.subject):,} voxels of {len(voxels.names)} subjects; each point "
        "is a voxel at its embedding, scaled to length 1."
    )
    for method in ("pca", "umap") if settings.umap else ("pca",):
        laid = flat.map2d(voxels, method=method, seed=settings.seed)
        flat.draw(stem.with_name(f"{stem.name}_{method}"), laid, panels, caption)


def _draw_wants(
    path: pathlib.Path,
    found: exploration.Exploration,
    some: exploration.Wants,
    kind: str,
) -> None:
    top = found.settings.top
    heads = [f"strongest {top}, predicted"]
    if some.measured is not None:
        heads.append(f"strongest {top}, measured")
    heads.append(f"weakest {top}, predicted")
    rows = []
    for group, name in enumerate(some.names):
        blocks = [wants.top(some.predicted.mean[:, group], top).tolist()]
        if some.measured is not None:
            blocks.append(wants.top(some.measured.mean[:, group], top).tolist())
        blocks.append(wants.bottom(some.predicted.mean[:, group], top).tolist())
        rows.append(wanted.Row(name, blocks))
    caption = (
        f"Of {len(found.pictures.ids)} pictures those to which each {kind} responds "
        "most and least: mean z-score over its voxels, then over subjects."
    )
    wanted.draw(path, found.pictures.pixels, heads, rows, caption)


def _draw_contrasts(
    path: pathlib.Path,
    found: exploration.Exploration,
    pairs: Sequence[tuple[str, wants.Contrast]],
    what: str,
) -> None:
    """Pictures that tell the groups of each pair apart."""
    top, rows = found.settings.top, []
    for name, contrast in pairs:
        order = contrast.order.tolist()
        rows.append(wanted.Row(name, [order[:top], order[::-1][:top]]))
    caption = (
        f"{what}: pictures by the difference of the predicted responses of two groups, "
        "mean over subjects."
    )
    heads = ["more for the first", "more for the second"]
    wanted.draw(path, found.pictures.pixels, heads, rows, caption)


def _draw_hierarchy(path: pathlib.Path, found: clusters.Clusters) -> None:
    """Which clusters merge first."""
    names = [f"{n} ({c})" for n, c in zip(found.names, _sizes(found), strict=True)]
    with matplotlib.rc_context(pages.STYLE):
        fig = mpl_figure.Figure(
            figsize=(6.4, 1.4 + 0.22 * len(names)), layout="constrained"
        )
        ax = fig.add_subplot()
        scipy.cluster.hierarchy.dendrogram(
            found.tree,
            labels=names,
            orientation="right",
            ax=ax,
            link_color_func=lambda _: pages.BLUE,
        )
        ax.set_xlabel("distance at which clusters merge")
        ax.spines["left"].set_visible(False)
        text = "Clusters (voxels): two are near where their nearest voxels are alike."
        charts.write_caption(fig, text)
        with whole.writing(path) as unfinished:
            fig.savefig(unfinished, format="png", dpi=130)


def _sizes(found: clusters.Clusters) -> list[int]:
    return np.bincount(found.label, minlength=len(found.names)).tolist()


def _derivatives(folder: pathlib.Path, found: exploration.Exploration) -> list[str]:
    """Values of each subject in files that programs of the field open."""
    notes: list[str] = []
    names = found.clusters.names
    for one in found.brains:
        unit = "fraction of the picture"
        if np.isfinite(one.field.degrees):
            unit = "degrees of visual angle"
        units = {"eccentricity": unit, "size": unit, "angle": "degrees", "level": "tap"}
        maps = {key: values for key, (_, values, _) in exploration.maps_of(one).items()}
        labels = {"cluster": (one.label, names, shades.palette(len(names)))}
        try:
            derivatives.write(
                folder, one.subject, maps, labels, desc="explore", units=units
            )
        except errors.InputError as error:
            notes.append(
                f"{one.subject.name} is in no file of maps: {_why(error, folder)}"
            )
    return notes
