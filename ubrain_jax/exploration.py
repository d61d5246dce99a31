"""What an encoder's embeddings say of the brains it knows: everything, as arrays.

One pass over the pictures for each subject: predictions, mean attention, attention on
the pictures that voxels and groups want most. Clusters are found over all subjects
together. `exploration_files` writes what is found here.
"""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from ubrain_jax import errors, shown, universal
from ubrain_jax.atlas import (
    cluster_agreement,
    cluster_choice,
    cluster_tables,
    clusters,
    fields,
    pooled,
    prf,
    wants,
)
from ubrain_jax.maps import explorer, places
from ubrain_jax.model import bundle

# Scored voxels below which no cluster means anything.
LEAST_VOXELS = 20
# Voxels whose attention is looked at picture by picture, over all subjects.
LOOKED_AT = 12_000
_BLOCK = 4  # pictures whose attention is in memory at once


class Settings(NamedTuple):
    """What is looked at, and how.

    Attributes:
        subjects: Names; none: all of the encoder.
        score_name: By which voxels are chosen; one of `pooled.SCORES`.
        least_score: Voxels below are in no cluster; None: all are.
        k: Number of clusters; None: chosen by stability and likelihood.
        of: "embedding" or "function", as `clusters.fit`.
        method: "kmeans" or "mixture".
        within: Regions to split, and into how many sub-clusters each.
        contrasts: Pairs of clusters or regions whose wants are set against each other.
        prfs: Folder that holds nsddata, whose measured pRFs fields are compared with.
        top: Pictures shown at each end.
        degrees: Side of the pictures in degrees of visual angle; NaN: not known.
        umap: Whether the embedding is laid out by UMAP too; needs the extra `viz`.
        seed: Of all that is random.
    """

    subjects: tuple[str, ...] = ()
    score_name: str = "pearson"
    least_score: float | None = 0.1
    k: int | None = None
    of: str = "embedding"
    method: str = "kmeans"
    within: Mapping[str, int] = {}
    contrasts: tuple[tuple[str, str], ...] = ()
    prfs: str | None = None
    top: int = 8
    degrees: float = np.nan
    umap: bool = False
    seed: int = 0


class Brain(NamedTuple):
    """One subject: V voxels, M pictures, T taps' shares.

    Attributes:
        subject: As the encoder has it.
        score: (V,) float32, NaN where unknown.
        label: (V,) int32 cluster, -1 for voxels in none.
        predicted: (M, V) float32, z-scores.
        measured: (M, V) float32, rows of NaN for pictures not seen; None: none seen.
        field: Receptive fields.
        level: (V,) preferred depth.
        share: (V, L) weight of each tap.
        looked_at: (v,) voxels whose attention on single pictures is kept.
        top_attention: (v, T, side, side) on the T pictures that each wants most.
    """

    subject: bundle.Subject
    score: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    measured: np.ndarray | None
    field: fields.Fields
    level: np.ndarray
    share: np.ndarray
    looked_at: np.ndarray
    top_attention: np.ndarray


def maps_of(one: Brain) -> dict[str, tuple[str, np.ndarray, str]]:
    """Name -> words with the unit, (V,) values, kind of colours."""
    field = one.field
    unit, scale = "picture widths", 1.0
    if np.isfinite(field.degrees):
        unit, scale = "degrees", field.degrees
    return {
        "score": ("score", one.score, "continuous"),
        "eccentricity": (
            f"eccentricity ({unit})",
            field.eccentricity * scale,
            "continuous",
        ),
        "size": (f"size of the field ({unit})", field.size * scale, "continuous"),
        "angle": ("angle (degrees)", np.degrees(field.angle) % 360, "angle"),
        "level": ("level (tap)", one.level, "continuous"),
    }


class Wants(NamedTuple):
    """What K groups want of M pictures.

    Attributes:
        names: K names.
        predicted: Mean predicted responses.
        measured: Measured ones; None where no subject saw a picture.
        agreement: How far the two are the same; None likewise.
        attention: (K, T, side, side) mean attention of a group on its top T pictures;
            NaN for a group without a voxel that was looked at.
        field: (K, side, side) mean attention over all pictures.
    """

    names: tuple[str, ...]
    predicted: wants.GroupResponse
    measured: wants.GroupResponse | None
    agreement: wants.Agreement | None
    attention: np.ndarray
    field: np.ndarray


class Within(NamedTuple):
    """Sub-clusters of one region.

    Attributes:
        roi: Its name.
        voxels: The scored voxels in it.
        clusters: Of these.
        rows: Their table.
        wants: What they want.
    """

    roi: str
    voxels: pooled.Pooled
    clusters: clusters.Clusters
    rows: list[cluster_tables.Row]
    wants: Wants


class Against(NamedTuple):
    """Two groups set against each other.

    Attributes:
        names: Of the groups.
        predicted: By predicted responses.
        measured: By measured ones; None where no subject saw a picture.
    """

    names: tuple[str, str]
    predicted: wants.Contrast
    measured: wants.Contrast | None


class Exploration(NamedTuple):
    """All that was found.

    Attributes:
        settings: That were used, with the k that was chosen.
        pictures: M pictures.
        voxels: The scored ones, that were clustered.
        clusters: Of them.
        choice: Why so many; None where k was given.
        agreement: Between subjects; None for one subject.
        rows: Table of the clusters.
        brains: One for each subject.
        of_clusters: What they want.
        of_regions: The same of each of `voxels.roi_names`, a group of all its voxels.
        within: Sub-clusters of regions.
        against: Groups set against each other.
        prfs: Agreement of fields with measured pRFs, by subject.
        notes: What a reader must know, a sentence each.
    """

    settings: Settings
    pictures: shown.Shown
    voxels: pooled.Pooled
    clusters: clusters.Clusters
    choice: cluster_choice.Choice | None
    agreement: cluster_agreement.Agreement | None
    rows: list[cluster_tables.Row]
    brains: list[Brain]
    of_clusters: Wants
    of_regions: tuple[Wants, ...]
    within: list[Within]
    against: list[Against]
    prfs: dict[str, prf.Agreement]
    notes: tuple[str, ...]


def explore(
    encoder: universal.UniversalEncoder,
    pictures: shown.Shown,
    scores: Mapping[str, np.ndarray] | None,
    settings: Settings,
    *,
    previous: clusters.Clusters | None = None,
) -> Exploration:
    """Looks at an encoder from all sides.

    Args:
        encoder: With one subject or more.
        pictures: M pictures, 2 or more.
        scores: (V,) of each subject; None: not known, so every voxel is taken.
        settings: What to do.
        previous: Clusters of an earlier run, whose names are kept.

    Raises:
        errors.ConfigError: If a setting does not fit the encoder.
        errors.InputError: If too few voxels have a score, or embeddings are at fault.
    """
    check(encoder, settings)
    names = settings.subjects or encoder.subjects
    subjects = [encoder.subject(name) for name in names]
    notes = list(pictures.notes)
    least = settings.least_score
    if scores is None:
        notes.append("no scores of voxels were found, so all voxels are clustered.")
        least = None
    else:
        unscored = [name for name in names if name not in scores]
        if unscored:
            notes.append(f"{', '.join(unscored)}: no scores, so in no cluster.")
        scores = {
            s.name: scores.get(s.name, np.full(len(s.embedding), np.nan))
            for s in subjects
        }
    voxels = pooled.pool(
        subjects, scores, score_name=settings.score_name, least_score=least
    )
    _check_enough(voxels, settings)
    shared = encoder.shared
    found, choice = _cluster(voxels, settings, shared)
    if previous is not None:
        found = clusters.rename(found, previous)
    _check_contrasts(settings, (*found.names, *voxels.roi_names))
    agreement = _across(voxels, found, shared, settings.seed, notes)
    rows = cluster_tables.table(voxels, found, agreement and agreement.label)
    parts = [
        _subdivide(voxels, roi, k, settings, shared)
        for roi, k in settings.within.items()
    ]
    labels = _labels(voxels, found.label, subjects)
    most = LOOKED_AT // len(subjects)
    features = encoder.features(pictures.pixels)  # once for all subjects
    brains = [
        _look(encoder, pictures, features, subject, scores, label, settings, most)
        for subject, label in zip(
            tqdm.tqdm(subjects, desc="subjects", disable=None, delay=2),
            labels,
            strict=True,
        )
    ]
    sets = [
        _Set(found.names, labels),
        *_sets_of_regions(voxels.roi_names, subjects),
        *(
            _Set(own.names, _labels(some, own.label, subjects))
            for _, some, own, _ in parts
        ),
    ]
    answers = [_answers(some, brains) for some in sets]
    tops = [_tops(predicted, settings.top) for predicted, *_ in answers]
    brains, attention = _attend(encoder, features, brains, sets, tops, settings.top)
    all_wants = [
        Wants(some.names, *answer, seen, _mean_field(some, brains))
        for some, answer, seen in zip(sets, answers, attention, strict=True)
    ]
    count = len(voxels.roi_names)
    of_clusters, regions = all_wants[0], all_wants[1 : 1 + count]
    return Exploration(
        settings=settings._replace(k=len(found.names), subjects=tuple(names)),
        pictures=pictures,
        voxels=voxels,
        clusters=found,
        choice=choice,
        agreement=agreement,
        rows=rows,
        brains=brains,
        of_clusters=of_clusters,
        of_regions=tuple(regions),
        within=[
            Within(*part, some)
            for part, some in zip(parts, all_wants[1 + count :], strict=True)
        ],
        against=[_against(pair, of_clusters, regions) for pair in settings.contrasts],
        prfs=_compare_prfs(brains, settings, notes),
        notes=tuple(notes),
    )


def check(encoder: universal.UniversalEncoder, settings: Settings) -> None:
    """Refuses settings that do not fit an encoder, before anything is computed."""
    for name in settings.subjects:
        encoder.subject(name)
    for name, values, known in (
        ("score", settings.score_name, pooled.SCORES),
        ("of", settings.of, clusters.OF),
        ("method", settings.method, clusters.METHODS),
    ):
        if values not in known:
            raise errors.ConfigError(
                name, "", repr(values), " or ".join(known), "Choose one of them."
            )
    counts = {"k": settings.k, **settings.within}
    for name, count in counts.items():
        if count is not None and count < 2:
            raise errors.ConfigError(
                name, "", f"{count} clusters", "2 or more", "Ask for more."
            )
    if settings.umap and importlib.util.find_spec("umap") is None:
        raise errors.ConfigError(
            "umap",
            "",
            "umap-learn is not installed",
            "the extra viz",
            "pip install 'ubrain_jax[viz]', or leave it out.",
        )
    if settings.top < 1:
        raise errors.ConfigError(
            "top", "", f"{settings.top} pictures", "1 or more", "Ask for more."
        )
    subjects = [encoder.subject(n) for n in settings.subjects or encoder.subjects]
    known = dict.fromkeys(n for s in subjects for n in s.roi_names)
    asked = [("within", roi) for roi in settings.within]
    pairs = [name for pair in settings.contrasts for name in pair]
    # Which clusters there will be is known when they are found.
    asked += [("contrast", n) for n in pairs if not re.fullmatch(r"c\d+", n)]
    for flag, roi in asked:
        if roi not in known:
            raise errors.ConfigError(
                flag,
                "",
                f"no subject has a region {roi!r}",
                f"one of {', '.join(known) or 'none: there are no regions'}",
                errors.nearest(roi, known),
            )
    if settings.prfs is not None and not np.isfinite(settings.degrees):
        raise errors.ConfigError(
            "degrees",
            "",
            "not given",
            "the side of the pictures in degrees, to compare with measured pRFs",
            f"Give it (NSD: {prf.NSD_DEGREES}).",
        )


def _check_enough(voxels: pooled.Pooled, settings: Settings) -> None:
    count = len(voxels.subject)
    least = max(LEAST_VOXELS, settings.k or 0)
    if count < least:
        raise errors.ConfigError(
            "least_score" if voxels.score_name else "k",
            "",
            f"{count} voxels"
            + (
                f" with a {voxels.score_name} of {settings.least_score:g} or more"
                if voxels.score_name and settings.least_score is not None
                else ""
            ),
            f"{least} or more" + (f" for {settings.k} clusters" if settings.k else ""),
            "Lower the least score, ask for fewer clusters, or train longer.",
        )


def _check_contrasts(settings: Settings, known: Sequence[str]) -> None:
    """Refuses a name of no cluster and no region, before pictures are looked at."""
    for name in (name for pair in settings.contrasts for name in pair):
        if name not in known:
            raise errors.ConfigError(
                "contrast",
                "",
                f"no cluster or region {name!r}",
                f"one of {', '.join(known)}",
                errors.nearest(name, known),
            )


def _cluster(
    voxels: pooled.Pooled, settings: Settings, shared: Mapping[str, Any]
) -> tuple[clusters.Clusters, cluster_choice.Choice | None]:
    """Clusters of all subjects, as many as asked for or as are stable."""
    how = _how(settings, shared)
    if settings.k is None:
        choice = cluster_choice.choose_k(voxels, **how)
        return clusters.fit(voxels, choice.k, **how), choice
    return clusters.fit(voxels, settings.k, **how), None


def _how(settings: Settings, shared: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of everything that clusters."""
    names = ("of", "method", "seed")
    return {"shared": shared, **{name: getattr(settings, name) for name in names}}


def _across(
    voxels: pooled.Pooled,
    found: clusters.Clusters,
    shared: Mapping[str, Any],
    seed: int,
    notes: list[str],
) -> cluster_agreement.Agreement | None:
    """How far other subjects have the same clusters; None, and why, where unknown."""
    if len(np.unique(voxels.subject)) < 2:
        notes.append("one subject: clusters cannot be compared between subjects.")
        return None
    try:
        return cluster_agreement.across_subjects(
            voxels, found, shared=shared, seed=seed
        )
    except errors.ConfigError as error:
        notes.append(f"clusters were not compared between subjects: {error}")
        return None


def _subdivide(
    voxels: pooled.Pooled,
    roi: str,
    k: int,
    settings: Settings,
    shared: Mapping[str, Any],
) -> tuple[str, pooled.Pooled, clusters.Clusters, list[cluster_tables.Row]]:
    """Sub-clusters of the scored voxels of a region: a `Within` without its wants."""
    own = voxels.take(wants.in_region(voxels, roi, least=max(k, 2)))
    found = clusters.fit(own, k, **_how(settings, shared))
    return roi, own, found, cluster_tables.table(own, found)


def _look(
    encoder: universal.UniversalEncoder,
    pictures: shown.Shown,
    features: universal.Features,
    subject: bundle.Subject,
    scores: Mapping[str, np.ndarray] | None,
    label: np.ndarray,
    settings: Settings,
    most: int,
) -> Brain:
    """What one subject's voxels answer and where they look on average."""
    predicted = encoder.predict(features, subject=subject.name).values
    looked = encoder.mean_attention(features, subject=subject.name)
    found, levels = fields.of_attention(looked, degrees=settings.degrees)
    drawn = np.flatnonzero(places.of_subject(subject).shown)
    score = np.full(len(subject.embedding), np.nan, np.float32)
    if scores is not None:
        score = np.asarray(scores[subject.name], np.float32)
    return Brain(
        subject,
        score,
        label,
        predicted,
        pictures.measured.get(subject.name),
        found,
        levels.level,
        fields.tap_weights(looked.covariance.values),
        drawn[explorer.even_subset(label[drawn], most, settings.seed)],
        np.empty(0, np.float32),
    )


class _Set(NamedTuple):
    """Groups that share no voxel: names, and (V,) group of each subject's voxels."""

    names: tuple[str, ...]
    labels: list[np.ndarray]


def _labels(
    voxels: pooled.Pooled, label: np.ndarray, subjects: Sequence[bundle.Subject]
) -> list[np.ndarray]:
    """(V,) of each subject; -1 for voxels that are not among the pooled."""
    found = []
    for number, subject in enumerate(subjects):
        own = np.full(len(subject.embedding), -1, np.int32)
        mine = voxels.subject == number
        own[voxels.voxel[mine]] = label[mine]
        found.append(own)
    return found


def _sets_of_regions(
    names: Sequence[str], subjects: Sequence[bundle.Subject]
) -> list[_Set]:
    """A set for each region: regions overlap."""
    found = []
    for name in names:
        labels = []
        for subject in subjects:
            own = np.full(len(subject.embedding), -1, np.int32)
            if name in subject.roi_names:
                own[subject.roi[:, subject.roi_names.index(name)]] = 0
            labels.append(own)
        found.append(_Set((name,), labels))
    return found


def _answers(
    some: _Set, brains: Sequence[Brain]
) -> tuple[wants.GroupResponse, wants.GroupResponse | None, wants.Agreement | None]:
    """Predicted and measured responses of the groups, and whether they agree."""
    k, num = len(some.names), len(brains[0].predicted)
    everything, seen, measured = [], [], []
    for brain, label in zip(brains, some.labels, strict=True):
        inside = np.flatnonzero(label >= 0)
        own = label[inside]
        everything.append(wants.Part(brain.predicted[:, inside], own, np.arange(num)))
        if brain.measured is not None:
            rows = np.flatnonzero(np.isfinite(brain.measured).all(1))
            seen.append(wants.Part(brain.predicted[np.ix_(rows, inside)], own, rows))
            measured.append(wants.Part(brain.measured[np.ix_(rows, inside)], own, rows))
    predicted = wants.mean_response(everything, k, num)
    if not measured:
        return predicted, None, None
    response = wants.mean_response(measured, k, num)
    # z-scored over the same pictures.
    agreement = wants.agreement(wants.mean_response(seen, k, num), response)
    return predicted, response, agreement


def _against(
    pair: tuple[str, str], of_clusters: Wants, regions: Sequence[Wants]
) -> Against:
    """Two groups by name, clusters or regions."""
    places = {name: (of_clusters, k) for k, name in enumerate(of_clusters.names)}
    places |= {some.names[0]: (some, 0) for some in regions}
    found = []
    for kind in ("predicted", "measured"):
        both = [(getattr(places[n][0], kind), places[n][1]) for n in pair]
        if None in (response for response, _ in both):
            found.append(None)
            continue
        # Columns of the two side by side; every subject has its row in both.
        own = [response.of_subject[:, :, k] for response, k in both]
        whole = both[0][0]._replace(of_subject=np.stack(own, 2))
        found.append(wants.contrast(whole, 0, 1))
    return Against(pair, found[0], found[1])


def _compare_prfs(
    brains: Sequence[Brain], settings: Settings, notes: list[str]
) -> dict[str, prf.Agreement]:
    """Fields beside measured ones, of subjects that have any."""
    found: dict[str, prf.Agreement] = {}
    if settings.prfs is None:
        return found
    for brain in brains:
        folder = prf.find(settings.prfs, brain.subject)
        if folder is None:
            notes.append(
                f"{brain.subject.name}: no measured pRFs of its space in "
                f"{settings.prfs}."
            )
            continue
        kept = None
        if settings.least_score is not None and np.isfinite(brain.score).any():
            kept = brain.score >= settings.least_score
        measured = prf.read(folder, brain.subject)
        found[brain.subject.name] = prf.compare(brain.field, measured, kept=kept)
    return found


def _tops(response: wants.GroupResponse, top: int) -> np.ndarray:
    """(k, T) pictures, the strongest first; -1 where a group has no response."""
    count = min(top, len(response.mean))
    found = np.full((response.mean.shape[1], count), -1)
    for group, values in enumerate(response.mean.T):
        best = wants.top(values, count)
        found[group, : len(best)] = best
    return found


def _attend(
    encoder: universal.UniversalEncoder,
    features: universal.Features,
    brains: Sequence[Brain],
    sets: Sequence[_Set],
    tops: Sequence[np.ndarray],
    top: int,
) -> tuple[list[Brain], list[np.ndarray]]:
    """Attention of voxels, and of groups, on the pictures that they want most.

    Args:
        tops: (k, T) pictures of each set's groups.

    Returns:
        The brains with `top_attention`; (k, T, side, side) for each set.
    """
    grid = brains[0].field.map.shape[1:]
    sums = [np.zeros((*t.shape, *grid)) for t in tops]
    counts = [np.zeros(t.shape) for t in tops]
    done = []
    for number, brain in enumerate(brains):
        rows = brain.looked_at
        count = min(top, len(brain.predicted))
        own = np.argsort(-brain.predicted[:, rows], axis=0, kind="stable")[:count].T
        kept = np.zeros((len(rows), count, *grid), np.float32)
        known = np.isfinite(brain.share[rows]).all(1)
        for start in range(0, len(features.ids), _BLOCK):
            some = slice(start, start + _BLOCK)
            block = universal.Features(features.ids[some], features.values[some])
            looked = encoder.attention(block, subject=brain.subject.name, voxels=rows)
            for picture, spatial in enumerate(looked.spatial.values, start):
                seen = fields.combine(spatial, brain.share[rows])  # (v, side, side)
                voxel, place = np.nonzero(own == picture)
                kept[voxel, place] = seen[voxel]
                for k, some in enumerate(sets):
                    for group, place in np.argwhere(tops[k] == picture):
                        inside = known & (some.labels[number][rows] == group)
                        sums[k][group, place] += seen[inside].sum(0)
                        counts[k][group, place] += inside.sum()
        done.append(brain._replace(top_attention=kept))
    with np.errstate(invalid="ignore"):
        return done, [
            total / count[..., None, None]
            for total, count in zip(sums, counts, strict=True)
        ]


def _mean_field(some: _Set, brains: Sequence[Brain]) -> np.ndarray:
    """(k, side, side) mean attention of the groups; NaN for one without voxels."""
    grid = brains[0].field.map.shape[1:]
    total, count = np.zeros((len(some.names), *grid)), np.zeros(len(some.names))
    for brain, label in zip(brains, some.labels, strict=True):
        for group in range(len(some.names)):
            inside = (label == group) & np.isfinite(brain.share).all(1)
            total[group] += brain.field.map[inside].sum(0)
            count[group] += inside.sum()
    with np.errstate(invalid="ignore"):
        return total / count[:, None, None]
