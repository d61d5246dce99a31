"""Looks at a lab's own subject as a colleague would, and says what it saw.

Nothing here changes or refuses data: faults are refused by the readers.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ubrain_jax.datasets import schema

FEWEST_TRIALS = 10  # of a session, to z-score within
FEWEST_TRAIN = 100
FEWEST_TEST = 20
FEWEST_VOXELS = 16
FEWEST_REPEATS = 20  # second and later presentations, for a noise ceiling
GOOD_NCSNR = 0.2


class Scale(NamedTuple):
    """Betas as stored, for each of V voxels.

    Attributes:
        mean: (V,) |mean| within a group of trials, averaged over groups.
        sd: (V,) the same of the SD.
        trials: In the smallest group.
        zscored: Whether the user says that they are z-scores.
    """

    mean: np.ndarray
    sd: np.ndarray
    trials: int
    zscored: bool


def reliability(halves: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Correlation of odd with even presentations over pictures.

    Args:
        halves: (2, M, V) sums of the responses to the first, third, ... and to the
            second, fourth, ... presentation of M pictures.
        counts: (2, M) how many were added up, at least 1.

    Returns:
        (V,) float64 Pearson correlation, NaN where a half is constant or M < 3.
    """
    odd, even = halves.astype(np.float64) / counts[..., None]
    if len(odd) < 3:
        return np.full(odd.shape[1], np.nan)
    odd, even = odd - odd.mean(0), even - even.mean(0)
    scale = np.sqrt((odd**2).sum(0) * (even**2).sum(0))
    flat = scale < 1e-12
    return np.where(flat, np.nan, (odd * even).sum(0) / np.where(flat, 1, scale))


def scale_lines(scale: Scale) -> list[str]:
    """What the means and deviations of the betas look like."""
    sd, mean = float(np.median(scale.sd)), float(np.median(scale.mean))
    if scale.zscored:
        lines = [f"betas taken as z-scores: median SD {sd:.3g}, |mean| {mean:.3g}"]
        if not 0.8 < sd < 1.25 or mean > 0.2:
            like = " (like percent signal change)" if 0.2 < sd < 20 else ""
            lines.append(
                f"warning: the betas do not look z-scored{like}; leave --zscore=none "
                "out"
            )
        return lines
    lines = [f"median SD of the betas before z-scoring {sd:.3g}, |mean| {mean:.3g}"]
    slack = 0.02 + 1 / scale.trials  # an SD with ddof=1 is a little less
    near = (np.abs(scale.sd - 1) < slack) & (scale.mean < 0.02)
    if near.mean() > 0.9:
        lines.append(
            "warning: the betas look z-scored already in these groups; z-scoring "
            "again changes little. If they were z-scored by other groups, pass "
            "--zscore=none"
        )
    elif 0.2 < sd < 20:
        lines.append("the scale is like percent signal change; z-scoring removes it")
    return lines


def count_lines(
    repeats: np.ndarray, split: np.ndarray, num_voxels: int, ncsnr: np.ndarray
) -> list[str]:
    """Counts of pictures, repeats and voxels, and whether they are enough.

    Args:
        repeats: (M,) presentations of each picture.
        split: (M,) "train", "val" or "test".
        num_voxels: V, of those kept.
        ncsnr: (V,) NaN where unknown.
    """
    num = {s: int((split == s).sum()) for s in ("train", "val", "test")}
    times = [f"{int((repeats == n).sum())} x {n}" for n in np.unique(repeats)]
    lines = [
        f"{int(repeats.sum())} trials of {len(repeats)} pictures "
        f"({', '.join(f'{n} {s}' for s, n in num.items())}; shown: "
        f"{schema.shorten(times, most=12)})"
    ]
    known = ncsnr[np.isfinite(ncsnr)]
    line = f"{num_voxels} voxels"
    if len(known):
        line += (
            f"; median ncsnr {np.median(known):.3f}, above {GOOD_NCSNR} in "
            f"{(known > GOOD_NCSNR).mean():.0%}"
        )
    if len(known) < len(ncsnr):
        line += f"; ncsnr unknown for {len(ncsnr) - len(known)}"
    lines.append(line)
    few = [
        ("train", FEWEST_TRAIN, "embeddings of so few will generalise badly"),
        ("test", FEWEST_TEST, "scores of so few are not worth much"),
    ]
    for part, least, what in few:
        if 0 < num[part] < least:
            lines.append(f"warning: only {num[part]} {part} pictures; {what}")
    for part in ("val", "test"):
        if not num[part]:
            lines.append(f"warning: the {part} split is empty")
    if num["test"] and repeats[split == "test"].max() < 2:
        lines.append("warning: no test picture is shown twice")
    if num_voxels < FEWEST_VOXELS:
        lines.append(f"warning: only {num_voxels} voxels")
    return lines


def repeat_lines(repeats: np.ndarray, again: np.ndarray) -> list[str]:
    """Whether presentations of one picture agree.

    Args:
        repeats: (M,) presentations of each picture.
        again: `reliability` of some of the voxels.
    """
    num = int((repeats > 1).sum())
    spare = int((repeats - 1).sum())
    if not num:
        return ["no picture is shown twice: no noise ceiling, no check of the order"]
    lines = []
    if spare < FEWEST_REPEATS:
        lines.append(f"warning: ncsnr rests on {spare} repeats; do not trust it")
    known = again[np.isfinite(again)]
    if not len(known):
        return [*lines, f"{num} repeated pictures are too few to correlate repeats"]
    middle, high = np.quantile(known, (0.5, 0.95))
    lines.append(
        f"odd with even repeats of {num} pictures: median r {middle:.3f}, best 5% of "
        f"voxels above {high:.3f}"
    )
    if middle > 0.999:
        lines.append(
            "warning: repeats are copies of each other: were they averaged already? "
            "Then give one row a picture"
        )
    # By chance the best 5% of voxels lie above 1.6 / sqrt(num - 1).
    if num >= 10 and high < 2.5 / np.sqrt(num - 1):
        lines.append(
            "warning: repeats agree no better than chance: are the rows of the table "
            "in the order of the betas?"
        )
    return lines


def group_lines(sizes: Mapping[str, int]) -> list[str]:
    """Sessions or runs with few trials to z-score within, of all by their label."""
    few = [f"{name} ({num})" for name, num in sizes.items() if num < FEWEST_TRIALS]
    if not few:
        return []
    return [
        f"warning: {len(few)} of them have fewer than {FEWEST_TRIALS} trials: "
        f"{schema.shorten(few, most=5)}"
    ]


def order_lines(labels: Sequence[str]) -> list[str]:
    """Labels of sessions or runs that come back after others."""
    starts = [a for k, a in enumerate(labels) if not k or labels[k - 1] != a]
    apart = [a for a in dict.fromkeys(starts) if starts.count(a) > 1]
    if not apart:
        return []
    return [
        f"warning: {len(apart)} come back after others (first: {apart[0]}): is a "
        "column session missing, or was the table sorted?"
    ]
