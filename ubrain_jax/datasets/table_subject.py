"""Reads the betas of a lab's own subject: z-scores, averages, and looks at them.

In memory are the averaged responses and one block of trials. Everything that the
report says is added up on the way, so that betas are read once.

References:
    Allen et al., 2022, Nature Neuroscience 25:116 (ncsnr).
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import (
    nsd,
    schema,
    table_betas,
    table_health,
    table_trials,
    table_voxels,
)

# Larger values, and NaN, are no betas; smaller ones can be squared in float32.
_LARGEST = 1e15
BLOCK = 4 * schema.BLOCK  # bytes of betas read at once
_LISTED = 20  # voxels of a kind, by column
_CORRELATED = 1000  # voxels, spread over the subject, to compare repeats in


class Plan(NamedTuple):
    """A subject, checked, betas not read."""

    name: str
    betas: table_betas.Betas
    trials: table_trials.Trials
    row: np.ndarray  # (T,) picture of each trial
    presentation: np.ndarray  # (T,) how often it was shown before
    repeats: np.ndarray  # (M,)
    image_id: list[str]
    split: np.ndarray  # (M,)
    zscore: str
    groups: dict[str, np.ndarray]  # trials by session or run; any blocks for "none"
    voxels: table_voxels.Voxels
    attrs: dict[str, Any]


class _Sums(NamedTuple):
    """What is added up while the trials are read; see `_add`.

    z stands for what is averaged, A for repeated pictures, C for chosen voxels.
    """

    total: np.ndarray  # (M, V) float32, sum of z over the trials of a picture
    pivot: np.ndarray  # (V,) float32, taken off z
    first: np.ndarray  # (V,) float64, sum of z over all trials
    square: np.ndarray  # (V,) float64, sum of z^2
    repeated: np.ndarray  # (V,) float64, sum of z^2 over trials of repeated pictures
    bad: np.ndarray  # (V,) bool, not finite in some trial
    mean: np.ndarray  # (V,) float64, sum over groups of |mean| as stored
    sd: np.ndarray  # (V,) float64, sum over groups of the SD as stored
    low: np.ndarray  # (T,) float64, lowest number of a trial, inf if it has none
    high: np.ndarray  # (T,) float64
    chosen: np.ndarray  # (C,) voxels
    halves: np.ndarray  # (2, A, C) float32, sums of odd and of even presentations


def read_subject(plan: Plan) -> tuple[schema.Subject, list[str]]:
    """Reads the betas a block at a time; also what to say of them."""
    num_trials, num = plan.betas.shape
    sums = _start(num_trials, num, plan.repeats)
    constant: dict[str, np.ndarray] = {}
    hashes: dict[bytes, str] = {}
    for label, rows in plan.groups.items():
        constant[label] = np.zeros(num, bool)
        digest = hashlib.sha256()
        step = max(1, BLOCK // (8 * len(rows)))
        for start in range(0, num, step):
            columns = slice(start, min(start + step, num))
            block = np.ascontiguousarray(plan.betas.read(rows, columns))
            digest.update(block.data)
            constant[label][columns] = _add(sums, plan, block, rows, columns)
        twin = hashes.setdefault(digest.digest(), label)
        if twin != label:
            raise errors.InputError(
                plan.betas.paths[0],
                "",
                f"the betas of {twin} and of {label} are identical",
                "different betas in each",
                "Put the right betas in the place of one of them.",
            )
    _check_trials(plan, sums)
    return _finish(plan, sums, constant)


def _start(num_trials: int, num: int, repeats: np.ndarray) -> _Sums:
    """Sums of nothing."""
    chosen = np.unique(np.linspace(0, num - 1, min(num, _CORRELATED)).astype(int))
    first, square, repeated, mean, sd = np.zeros((5, num))
    return _Sums(
        total=np.zeros((len(repeats), num), np.float32),
        pivot=np.zeros(num, np.float32),
        first=first,
        square=square,
        repeated=repeated,
        bad=np.zeros(num, bool),
        mean=mean,
        sd=sd,
        low=np.full(num_trials, np.inf),
        high=np.full(num_trials, -np.inf),
        chosen=chosen,
        halves=np.zeros((2, int((repeats > 1).sum()), len(chosen)), np.float32),
    )


def _add(
    sums: _Sums, plan: Plan, block: np.ndarray, rows: np.ndarray, columns: slice
) -> np.ndarray:
    """Adds some voxels of a group of trials; which of them are constant in it."""
    values = block.astype(np.result_type(block.dtype, np.float32), copy=False)
    with np.errstate(invalid="ignore"):  # NaN is what is looked for
        fine = np.abs(values) <= _LARGEST
    bad = np.logical_not(fine.all(0))
    sums.bad[columns] |= bad
    low = np.min(values, axis=1, where=fine, initial=np.inf)
    high = np.max(values, axis=1, where=fine, initial=-np.inf)
    sums.low[rows] = np.minimum(sums.low[rows], low)
    sums.high[rows] = np.maximum(sums.high[rows], high)
    if bad.any():
        values = np.where(bad, np.zeros((), values.dtype), values)
    if plan.zscore == "none":
        if rows[0] == 0:  # a number near the others, so that squares stay exact
            sums.pivot[columns] = values[0]
        z = (values - sums.pivot[columns]).astype(np.float32)
        constant = np.zeros(len(bad), bool)
    else:
        z = np.zeros(values.shape, np.float32)
        constant = nsd.add_z_scores(values, np.arange(len(rows)), z, bad)
        sums.mean[columns] += np.abs(values.mean(0, dtype=np.float64))
        sums.sd[columns] += values.std(0, dtype=np.float64)
    again = plan.repeats[plan.row[rows]] > 1
    sums.first[columns] += z.sum(0, dtype=np.float64)
    sums.square[columns] += _squares(z)
    sums.repeated[columns] += _squares(z[again])
    for trial, row in zip(z, plan.row[rows].tolist(), strict=True):
        sums.total[row, columns] += trial
    inside = (sums.chosen >= columns.start) & (sums.chosen < columns.stop)
    few = z[:, sums.chosen[inside] - columns.start]
    place = np.cumsum(plan.repeats > 1) - 1  # row of each repeated picture in `halves`
    for k in np.flatnonzero(again):
        trial = rows[k]
        half = plan.presentation[trial] % 2
        sums.halves[half, place[plan.row[trial]], inside] += few[k]
    return constant


def _squares(z: np.ndarray) -> np.ndarray:
    """Sum of squares over trials, (V,) float64."""
    return np.einsum("tv,tv->v", z, z, dtype=np.float64)


def _check_trials(plan: Plan, sums: _Sums) -> None:
    """Trials that no response can be like; they would cost all voxels."""
    problems: list[schema.Problem] = []
    nothing = sums.low > sums.high
    same = (sums.low == sums.high) & (len(sums.bad) > 1)
    for fault, found in ((nothing, "no finite number"), (same, "one number only")):
        lines = [plan.trials.lines[k] for k in np.flatnonzero(fault)]
        if lines:
            schema.add_problem(
                problems,
                f"{table_trials.listed(lines)} of {plan.trials.path.name}",
                f"{len(lines)} trials with {found}",
                "different numbers in different voxels",
            )
    schema.raise_problems(
        plan.betas.paths[0],
        problems,
        "Leave these trials out of the table and of the betas.",
    )


def _finish(
    plan: Plan, sums: _Sums, constant: dict[str, np.ndarray]
) -> tuple[schema.Subject, list[str]]:
    """Averages, drops voxels, and tells about both."""
    num_trials = len(plan.row)
    still = ~sums.bad & (sums.square == 0)
    keep = ~(sums.bad | still)
    dropped = _dropped(plan, sums.bad, still)
    variance = sums.square / num_trials - (sums.first / num_trials) ** 2
    if plan.voxels.ncsnr is None:
        ncsnr = ncsnr_of_repeats(sums.total, plan.repeats, sums.repeated, variance)
    else:
        ncsnr = plan.voxels.ncsnr
    ncsnr = ncsnr[keep]
    for row, count in enumerate(plan.repeats):  # a row: no copy of the whole
        sums.total[row] = sums.total[row] / count + sums.pivot
    counts = {k: int(c[keep].sum()) for k, c in constant.items() if c[keep].any()}
    empty = ~plan.voxels.roi[keep].any(0)
    names = plan.voxels.roi_names
    attrs = {
        **plan.attrs,
        "normalisation": _normalisation(plan.zscore),
        "sessions": list(dict.fromkeys(plan.trials.session or ())),
        "trials": num_trials,
        "dropped": [
            {"reason": reason, "count": len(k), "columns": k[:_LISTED].tolist()}
            for reason, k in dropped.items()
        ],
        "constant_in_group": counts,
        "ncsnr": "as given" if plan.voxels.ncsnr is not None else "from repeats",
        "regions_without_voxels": [names[k] for k in np.flatnonzero(empty)],
    }
    subject = schema.Subject(
        plan.name,
        sums.total if keep.all() else np.ascontiguousarray(sums.total[:, keep]),
        plan.image_id,
        plan.split,
        plan.repeats.astype(np.uint8),
        ncsnr,
        plan.voxels.position[keep],
        plan.voxels.roi[np.ix_(keep, ~empty)],
        [names[k] for k in np.flatnonzero(~empty)],
        attrs,
    )
    return subject, _closing_lines(plan, sums, subject, keep, dropped)


def _dropped(plan: Plan, bad: np.ndarray, still: np.ndarray) -> dict[str, np.ndarray]:
    """Columns that are left out, by reason.

    Raises:
        errors.InputError: If they are more than half.
    """
    reasons = {
        "NaN or inf in some trial": np.flatnonzero(bad),
        "constant in all trials": np.flatnonzero(still),
    }
    if plan.zscore != "none":
        reasons[f"constant in every {plan.zscore}"] = reasons.pop(
            "constant in all trials"
        )
    reasons = {reason: columns for reason, columns in reasons.items() if len(columns)}
    lost = sum(map(len, reasons.values()))
    if lost > len(bad) / 2:
        raise errors.InputError(
            plan.betas.paths[0],
            "",
            f"{lost} of {len(bad)} voxels cannot be used: "
            + "; ".join(
                f"{len(k)} {reason} (columns {_columns(k)})"
                for reason, k in reasons.items()
            ),
            "numbers that vary over trials, in most voxels",
            "Save only voxels inside the brain or a mask, and look why the others "
            "have no numbers.",
        )
    return reasons


def _columns(columns: np.ndarray) -> str:
    return schema.shorten([str(k) for k in columns], most=_LISTED)


def _normalisation(zscore: str) -> str:
    if zscore == "none":
        return "as given (said to be z-scored), averaged over repeats"
    return (
        f"z-scored per voxel within each {zscore} over its trials (ddof=0), then "
        f"averaged over repeats; a voxel constant in a {zscore} is 0 there"
    )


def ncsnr_of_repeats(
    total: np.ndarray, repeats: np.ndarray, square: np.ndarray, variance: np.ndarray
) -> np.ndarray:
    """Noise-ceiling signal-to-noise ratio from pictures shown more than once.

    `v = sum (z - mean of its picture)^2 / sum (R - 1)` over pictures with R >= 2, and
    `ncsnr = sqrt(max(0, variance - v) / v)`. With z-scores (variance 1) and R = 3 this
    is NSD's.

    Args:
        total: (M, V) sum of z over the presentations of each picture.
        repeats: (M,) R.
        square: (V,) sum of z^2 over the presentations of pictures with R >= 2.
        variance: (V,) of z over all trials.

    Returns:
        (V,) float32, NaN where nothing is repeated or repeats do not differ.
    """
    noise = square.astype(np.float64)
    for row in np.flatnonzero(repeats > 1):
        noise -= total[row].astype(np.float64) ** 2 / repeats[row]
    freedom = int((repeats - 1).sum())
    noise /= max(1, freedom)
    # Below that are sums rounded to float32, not noise.
    known = (noise > 1e-5 * variance) & (freedom > 0)
    signal = np.maximum(0, variance - noise)
    ratio = np.sqrt(signal / np.where(known, noise, 1))
    return np.where(known, ratio, np.nan).astype(np.float32)


def _closing_lines(
    plan: Plan,
    sums: _Sums,
    subject: schema.Subject,
    keep: np.ndarray,
    dropped: dict[str, np.ndarray],
) -> list[str]:
    """What the numbers say."""
    if plan.zscore == "none":
        num = plan.betas.shape[0]
        mean = sums.first / num
        spread = np.sqrt(np.maximum(0, sums.square / num - mean**2))
        mean = np.abs(mean + sums.pivot)
    else:
        mean, spread = sums.mean / len(plan.groups), sums.sd / len(plan.groups)
    scale = table_health.Scale(
        mean[keep],
        spread[keep],
        min(map(len, plan.groups.values())),
        plan.zscore == "none",
    )
    lines = table_health.scale_lines(scale)
    lines += [
        f"{len(columns)} voxels dropped, {reason}: columns {_columns(columns)}"
        for reason, columns in dropped.items()
    ]
    counts = subject.attrs["constant_in_group"]
    if counts:
        where = schema.shorten([f"{k}: {n}" for k, n in counts.items()], most=8)
        lines.append(
            f"{sum(counts.values())} times a voxel is constant in a {plan.zscore} and "
            f"counts as 0 there ({where})"
        )
    lines += table_health.count_lines(
        plan.repeats, plan.split, int(keep.sum()), subject.ncsnr
    )
    again = plan.repeats[plan.repeats > 1]
    kept = keep[sums.chosen]
    agree = table_health.reliability(
        sums.halves[:, :, kept], np.stack([(again + 1) // 2, again // 2])
    )
    lines += table_health.repeat_lines(plan.repeats, agree)
    empty = subject.attrs["regions_without_voxels"]
    if empty:
        lines.append(f"regions without voxels, left out: {schema.shorten(empty)}")
    if not subject.roi_names:
        lines.append("no regions given; scores will be of all voxels together")
    return lines
