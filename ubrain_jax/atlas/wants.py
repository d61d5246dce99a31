"""What a group of voxels wants: its mean response to pictures, and where it looks.

A group is a cluster, a region, or the part of one inside the other, in one brain or in
several. Its response to a picture is the mean of its voxels' z-scores, so that no voxel
counts for its loudness, and then of the subjects, so that none counts for its number of
voxels. Measured and predicted responses are treated alike, which is what `agreement`
compares. Arrays in, arrays out: nothing here predicts.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ubrain_jax import errors, metrics
from ubrain_jax.atlas import pooled

_BLOCK_ROWS = 512


class Part(NamedTuple):
    """What one subject answers: m pictures, V voxels.

    Attributes:
        responses: (m, V) finite, measured or predicted; an array or a memory map.
        label: (V,) group of each voxel, 0..K-1; -1: of none.
        picture: (m,) number of each row's picture, among the M of all subjects.
    """

    responses: np.ndarray
    label: np.ndarray
    picture: np.ndarray


class GroupResponse(NamedTuple):
    """Responses of K groups to M pictures; S subjects.

    Attributes:
        mean: (M, K) float64 z-scores, mean over the subjects that saw the picture; NaN
            where too few did.
        of_subject: (S, M, K) mean over each subject's voxels; NaN where it did not see
            the picture or has no voxel of the group.
        num_subjects: (M, K) int, of which the mean is.
        num_voxels: (S, K) int; voxels that never change are left out.
    """

    mean: np.ndarray
    of_subject: np.ndarray
    num_subjects: np.ndarray
    num_voxels: np.ndarray


class Contrast(NamedTuple):
    """Pictures to which one group answers more than another.

    Attributes:
        order: (n,) pictures where both are known, most for the first group first.
        difference: (M,) z-scores, mean over subjects; NaN where unknown.
        t: (M,) of a paired t-test over subjects: mean difference over its standard
            error. NaN with fewer than two subjects. It ranks pictures; there are M of
            them, so it is no test of any one.
        num_subjects: (M,) int, which have both groups and saw the picture.
    """

    order: np.ndarray
    difference: np.ndarray
    t: np.ndarray
    num_subjects: np.ndarray


class Agreement(NamedTuple):
    """How far predicted responses of K groups are the measured ones.

    Attributes:
        r: (K,) Pearson over pictures; NaN with fewer than 3, or if one is constant.
        num_pictures: (K,) int, for which both are known.
    """

    r: np.ndarray
    num_pictures: np.ndarray


def parts_of(
    table: pooled.Pooled,
    label: np.ndarray,
    responses: Callable[[str, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> list[Part]:
    """Asks each subject for the responses of its labelled voxels.

    Args:
        table: V voxels.
        label: (V,) group of each row; -1: of none.
        responses: From a subject's name and numbers of voxels (n,): responses (m, n),
            and which pictures they are (m,).

    Returns:
        One for each subject that has labelled voxels.

    Example:
        Predicted, of any folder of pictures::

            def predicted(subject, voxels):
                found = enc.predict("pictures/", subject=subject, voxels=voxels)
                return found.values, np.arange(len(found))
    """
    label = np.asarray(label)
    parts = []
    for k, name in enumerate(table.names):
        rows = np.flatnonzero((table.subject == k) & (label >= 0))
        if len(rows):
            values, picture = responses(name, table.voxel[rows])
            parts.append(Part(values, label[rows], picture))
    return parts


def mean_response(
    parts: Sequence[Part],
    num_groups: int,
    num_pictures: int,
    *,
    least_subjects: int = 1,
) -> GroupResponse:
    """Mean response of each group to each picture.

    Each voxel is z-scored over the pictures that its subject saw; those are averaged
    over the voxels of a group in each subject, and these means over subjects.

    Args:
        parts: Of S subjects.
        num_groups: K.
        num_pictures: M.
        least_subjects: Pictures that fewer subjects saw get NaN in `mean`.

    Returns:
        Mean responses and what they are of.

    Raises:
        errors.InputError: If a part contradicts itself or is not finite.
    """
    shape = (len(parts), num_pictures, num_groups)
    of_subject = np.full(shape, np.nan)
    num_voxels = np.zeros((len(parts), num_groups), int)
    for k, part in enumerate(parts):
        _check(part, k, num_groups, num_pictures)
        found, num_voxels[k] = _group_means(part, num_groups)
        of_subject[k, part.picture] = found
    num_subjects = np.isfinite(of_subject).sum(0)
    mean = _mean(of_subject, num_subjects)
    mean[num_subjects < least_subjects] = np.nan
    return GroupResponse(mean, of_subject, num_subjects, num_voxels)


def top(values: np.ndarray, n: int) -> np.ndarray:
    """Numbers of the n highest values (M,), highest first; ties by number, NaN never.

    Example:
        >>> top(np.array([1.0, np.nan, 3.0, 3.0]), 3).tolist()
        [2, 3, 0]
    """
    return bottom(-np.asarray(values, float), n)


def bottom(values: np.ndarray, n: int) -> np.ndarray:
    """Numbers of the n lowest values (M,), lowest first; ties by number, NaN never."""
    values = np.asarray(values, float)
    order = np.argsort(values, kind="stable")  # NaN come last
    return order[: min(n, int((~np.isnan(values)).sum()))]


def contrast(response: GroupResponse, first: int, second: int) -> Contrast:
    """Pictures by how much more one group answers than another.

    Args:
        response: Of the groups, from `mean_response`.
        first: Number of a group.
        second: And of another.

    Returns:
        Differences of the subjects' own means: a subject without one of the groups, or
        that did not see a picture, does not count there.
    """
    own = response.of_subject
    differences = own[:, :, first] - own[:, :, second]  # (S, M)
    count = np.isfinite(differences).sum(0)
    mean = _mean(differences, count)
    squares = np.where(np.isfinite(differences), (differences - mean) ** 2, 0).sum(0)
    several = count > 1
    error = np.full(len(count), np.nan)
    error[several] = np.sqrt(squares[several] / (count[several] - 1) / count[several])
    t = np.divide(mean, error, out=np.full(len(count), np.nan), where=error > 0)
    return Contrast(top(mean, len(mean)), mean, t, count)


def agreement(predicted: GroupResponse, measured: GroupResponse) -> Agreement:
    """Correlation over pictures of predicted and measured mean responses.

    How much a group's predicted top pictures can be trusted. Each picture counts with
    the subjects for which both are known.

    Args:
        predicted: To the pictures that each subject saw, best those that the encoder
            was not trained on.
        measured: The same subjects, pictures and groups.

    Returns:
        One value for each group.

    Raises:
        errors.InputError: If the shapes differ.
    """
    _check_same(predicted, measured)
    both = np.isfinite(predicted.of_subject) & np.isfinite(measured.of_subject)
    count = both.sum(0)
    x, y = (
        _mean(np.where(both, g.of_subject, np.nan), count)
        for g in (measured, predicted)
    )
    r = np.full(x.shape[1], np.nan)
    for k, known in enumerate((count > 0).T):
        if known.sum() >= 3:
            [r[k]] = metrics.pearson(x[known, k : k + 1], y[known, k : k + 1])
    return Agreement(r, (count > 0).sum(0))


def overlap(first: np.ndarray, second: np.ndarray, n: int) -> float:
    """Share of the top n pictures by one that are in the top n by the other.

    By chance it is n over the number of pictures for which both are known.

    Args:
        first: (M,) for example predicted; NaN: not known.
        second: (M,) for example measured.
        n: How many; NaN where fewer are known.

    Example:
        >>> overlap(np.array([3.0, 2, 1, 0]), np.array([3.0, 0, 2, 1]), 2)
        0.5
    """
    known = np.isfinite(first) & np.isfinite(second)
    if not 0 < n <= known.sum():
        return float("nan")
    a, b = (top(np.where(known, values, np.nan), n) for values in (first, second))
    return len(np.intersect1d(a, b)) / n


def mean_attention(
    spatial: np.ndarray, label: np.ndarray, num_groups: int
) -> np.ndarray:
    """Where a group looks in pictures: the mean of its voxels and of the taps.

    Args:
        spatial: (M, V, L, y, x) of `UniversalEncoder.attention`; NaN in patches that
            the head does not see.
        label: (V,) group of each voxel, 0..K-1; -1: of none.
        num_groups: K.

    Returns:
        (M, K, y, x); NaN for a group without voxels and in those patches.
    """
    label = np.asarray(label)
    num_images, _, _, y, x = spatial.shape
    out = np.full((num_images, num_groups, y, x), np.nan)
    for g in range(num_groups):
        rows = np.flatnonzero(label == g)
        if len(rows):
            out[:, g] = spatial[:, rows].mean((1, 2), dtype=np.float64)
    return out


def in_region(
    table: pooled.Pooled, roi: str | Sequence[str], *, least: int = 1
) -> np.ndarray:
    """Rows (n,) of a region, or of the union of several, over all subjects.

    `table.take(rows)` is a table of it alone, whose clusters are its parts.

    Args:
        table: V voxels.
        roi: Name or names.
        least: Voxels that there must be.

    Raises:
        errors.ConfigError: If there is no such region, or it has too few voxels.
    """
    names = [roi] if isinstance(roi, str) else list(roi)
    for name in names:
        if name not in table.roi_names:
            raise errors.ConfigError(
                "roi",
                "",
                f"no subject has a region {name!r}",
                f"one of {', '.join(table.roi_names) or 'none: there are no regions'}",
                errors.nearest(name, table.roi_names),
            )
    columns = [table.roi_names.index(name) for name in names]
    rows = np.flatnonzero(table.roi[:, columns].any(1))
    if len(rows) < least:
        raise errors.ConfigError(
            "roi",
            "",
            f"{len(rows)} voxels in {', '.join(names)}",
            f"{least} or more",
            "Choose a larger region, or ask for fewer clusters.",
        )
    return rows


def _check(part: Part, k: int, num_groups: int, num_pictures: int) -> None:
    """Refuses a part that contradicts itself."""
    label, picture = np.asarray(part.label), np.asarray(part.picture)
    shape = (len(picture), len(label))
    wrong = None
    if np.shape(part.responses) != shape:
        found = f"{np.shape(part.responses)} responses"
        wrong = f"{found}, {len(picture)} pictures, {len(label)} labels"
    elif len(label) and not (label.min() >= -1 and label.max() < num_groups):
        wrong = f"labels {label.min()}..{label.max()} of {num_groups} groups"
    elif len(picture) and not (picture.min() >= 0 and picture.max() < num_pictures):
        wrong = f"pictures {picture.min()}..{picture.max()} of {num_pictures}"
    elif len(np.unique(picture)) < len(picture):
        wrong = f"{len(picture) - len(np.unique(picture))} pictures twice"
    if wrong:
        raise errors.InputError(
            "responses",
            f"part {k}",
            wrong,
            "responses (m, V), m different pictures, V labels from -1",
            "Average repeats and count groups and pictures from 0.",
        )


def _group_means(part: Part, num_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean z-scores (m, K), NaN for an empty group, and voxels counted (K,)."""
    columns = np.flatnonzero(np.asarray(part.label) >= 0)
    label = np.asarray(part.label)[columns]
    count = len(part.picture)
    blocks = [slice(k, k + _BLOCK_ROWS) for k in range(0, count, _BLOCK_ROWS)]

    def read(some: slice) -> np.ndarray:
        return np.asarray(part.responses[some], np.float64)[:, columns]

    total = np.zeros(len(columns))
    low, high = np.full(len(columns), np.inf), np.full(len(columns), -np.inf)
    for some in blocks:
        values = read(some)
        total += values.sum(0)
        low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
    if not np.isfinite(total).all():
        raise errors.InputError(
            "responses",
            "",
            f"{(~np.isfinite(total)).sum()} voxels have NaN or infinite responses",
            "finite numbers",
            "Leave out pictures that a subject did not see.",
        )
    center = total / max(count, 1)
    squares = np.zeros(len(columns))
    for some in blocks:
        squares += ((read(some) - center) ** 2).sum(0)
    changes = high > low
    scale = np.sqrt(squares / max(count, 1), where=changes, out=np.ones(len(columns)))
    member = np.equal.outer(label, np.arange(num_groups)) & changes[:, None]  # (V, K)
    size = member.sum(0)
    weights = member / scale[:, None] / np.maximum(size, 1)
    means = np.full((count, num_groups), np.nan)
    for some in blocks:
        means[some] = (read(some) - center) @ weights
    means[:, size == 0] = np.nan
    return means, size


def _mean(values: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Over the first axis, of the finite ones; NaN where there is none."""
    total = np.where(np.isfinite(values), values, 0).sum(0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _check_same(predicted: GroupResponse, measured: GroupResponse) -> None:
    shapes = predicted.of_subject.shape, measured.of_subject.shape
    if shapes[0] != shapes[1]:
        raise errors.InputError(
            "responses",
            "",
            f"predicted {shapes[0]} and measured {shapes[1]}",
            "both (S, M, K)",
            "Give the same subjects, pictures and groups.",
        )
