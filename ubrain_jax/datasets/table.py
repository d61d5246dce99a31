"""Reads a lab's own subject: betas, a table of trials, and a folder of pictures.

Each voxel is z-scored within each session (or run) over its trials, as in `nsd`, then
the presentations of a picture are averaged. What makes a subject useless, such as
rows in another order than the betas, can often be seen in the numbers; the report says
what was looked at and found.
"""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import (
    pictures,
    schema,
    table_betas,
    table_health,
    table_subject,
    table_trials,
    table_voxels,
)

ZSCORES = ("session", "run", "none")
_ORDER = "Row k of the table must be trial k of the betas."


def open_dataset(
    betas: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    trials: str | os.PathLike,
    images: str | os.PathLike,
    name: str,
    stimuli: str | None = None,
    roi: str | os.PathLike | None = None,
    position: str | os.PathLike | None = None,
    mask: str | os.PathLike | None = None,
    ncsnr: str | os.PathLike | None = None,
    space: str | None = None,
    zscore: str | None = None,
    background: str | None = None,
    orientation: str | None = None,
    val_fraction: float = 0.05,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> schema.Dataset:
    """Opens one subject and checks everything but the numbers of the betas.

    Pictures are called `STIMULI/path`, by their path inside `images` without ending,
    so that "0001" of two labs are two pictures. Subjects who saw the same pictures
    should share one `stimuli`: then a picture is in one split for all of them.

    Without a column `split`, a share `test_fraction` of the pictures is "test" and
    another "val", by `seed` and the id of the picture alone (`schema.share`).

    Where pictures were shown several times, `ncsnr` is computed as in NSD from the
    noise variance, here pooled over pictures with unequal repeats:
    `v = sum (z - mean of its picture)^2 / sum (R - 1)` over pictures with R >= 2, then
    `ncsnr = sqrt(max(0, variance of z - v) / v)`. It is NaN where nothing is repeated
    or repeats are copies.

    Args:
        betas: File of trials by voxels, or files one after the other; see
            `table_betas.open_betas`.
        trials: .csv or .tsv; see `table_trials.read_trials`.
        images: Folder of pictures.
        name: Of the subject, for example "lab-ann".
        stimuli: Prefix of the ids of pictures; `name` by default.
        roi: Regions; see `table_voxels.read_regions`.
        position: .npy (V, 3) int: voxel i, j, k, or hemisphere (0/1), vertex, -1.
        mask: NIfTI mask of the voxels, in C order; gives position and affine.
        ncsnr: .npy (V,) to take instead of what the repeats say.
        space: What the positions are places in, for example "fsaverage".
        zscore: "session", "run", or "none" if the betas are z-scored. By default by
            session if the table has that column, else by run.
        background: See `pictures.read_image`.
        orientation: See `pictures.read_image`.
        val_fraction: Share of pictures for validation, without a column `split`.
        test_fraction: Share of pictures for testing, without a column `split`.
        seed: Of the shares.

    Returns:
        The dataset. Reading its subject raises errors.InputError if the betas are no
        such table: trials without a number or with one number, the same session
        twice, or more than half of the voxels to be dropped. Reading pictures lists
        all that cannot be read.

    Raises:
        errors.MissingInputError: If files or pictures are missing; all are listed.
        errors.InputError: If files are damaged or do not fit each other.
        errors.ConfigError: If a name, share or word is not allowed.
    """
    schema.check_fractions(val_fraction=val_fraction, test_fraction=test_fraction)
    stimuli = name if stimuli is None else stimuli
    _check_name("name", name)
    _check_name("stimuli", stimuli)
    _check_word("zscore", zscore, ZSCORES)
    _check_word("background", background, ("white", "black"))
    _check_word("orientation", orientation, ("apply", "ignore"))
    paths = [betas] if isinstance(betas, str | os.PathLike) else list(betas)
    table = table_trials.read_trials(trials)
    where = None if mask is None else table_betas.read_mask(mask)
    opened = table_betas.open_betas(paths, where)
    _check_lengths(table, opened)
    places = table_voxels.read_voxels(
        opened.shape[1],
        mask=where,
        position=position,
        roi=roi,
        ncsnr=ncsnr,
        space=space,
    )
    shown = table_trials.find_pictures(table, images)
    image_id = [f"{stimuli}/{stem}" for stem in shown.paths]
    repeats = np.bincount(shown.row)
    _check_repeats(table, repeats, image_id)
    if table.split is None:
        split = _seeded(image_id, val_fraction, test_fraction, seed)
    else:
        split = table_trials.splits_by_picture(table, shown)
    if not (split == "train").any():
        raise errors.InputError(
            table.path,
            "split" if table.split is not None else "",
            f"0 of {len(split)} pictures are train",
            "at least one",
            "Give some pictures the split train, or hold out smaller shares.",
        )
    groups, zscore = _groups(table, zscore, opened)
    attrs = {
        "dataset": "table",
        **places.attrs,
        "stimuli": stimuli,
        "split": "as the table says"
        if table.split
        else f"by seed {seed}: {test_fraction:.1%} test, {val_fraction:.1%} val",
    }
    plan = table_subject.Plan(
        name,
        opened,
        table,
        shown.row,
        _presentation(shown.row),
        repeats,
        image_id,
        split,
        zscore,
        groups,
        places,
        attrs,
    )
    known = dict(zip(image_id, shown.paths.values(), strict=True))
    root = pathlib.Path(images)
    sources: list[dict[str, Any]] = []
    report: list[str] = [f"{name}: {line}" for line in _opening_lines(plan, shown)]

    def read_subjects() -> Iterator[schema.Subject]:
        subject, lines = table_subject.read_subject(plan)
        report.extend(f"{name}: {line}" for line in lines)
        sources.extend(_describe(p) for p in (*opened.paths, table.path, *places.paths))
        yield subject

    def read_images(image_ids: Sequence[str]) -> Iterator[np.ndarray]:
        problems: list[schema.Problem] = []
        for image_id in image_ids:
            if image_id not in known:
                raise errors.InputError(
                    root, "", f"no picture {image_id}", "a known id", "Check the ids."
                )
            try:
                picture = pictures.read_image(
                    known[image_id], background=background, orientation=orientation
                )
            except errors.InputError as error:  # go on, to list all that are bad
                schema.add_problem(problems, str(error), "", "")
                continue
            if not problems:
                yield picture
        if problems:
            raise errors.InputError(
                root,
                "",
                f"{len(problems)} pictures cannot be read: "
                + schema.shorten([p.where for p in problems], " "),
                "pictures as they were shown",
                "Mend or replace them.",
            )

    return schema.Dataset("table", read_subjects(), read_images, sources, report)


# ---------------------------------------------------------------- checks


def _check_name(flag: str, name: str) -> None:
    """A subject is a folder in the store, and a prefix of the ids of pictures."""
    plain = name.isprintable() and "/" not in name and not name.startswith("__")
    if not plain or not name.strip(". ") or len(name.encode()) > 200:
        raise errors.ConfigError(
            flag,
            "",
            f"is {name!r}",
            "a name without '/', such as lab-ann",
            f"Change --{flag}.",
        )


def _check_word(flag: str, word: str | None, allowed: Sequence[str]) -> None:
    if word is not None and word not in allowed:
        known = errors.nearest(word, allowed)
        raise errors.ConfigError(flag, "", f"is {word!r}", "a known word", known)


def _check_lengths(trials: table_trials.Trials, betas: table_betas.Betas) -> None:
    """One row for each trial; says so if the betas lie on their side."""
    num, (found, columns) = len(trials.lines), betas.shape
    if num == found:
        return
    path = betas.paths[0]
    if num == columns and len(betas.paths) == 1:
        raise errors.InputError(
            path,
            "",
            f"shape {betas.shape}: {trials.path.name} has {num} rows, so this is "
            "transposed",
            f"(trials, voxels) {betas.shape[::-1]}",
            "Save the transpose: numpy.save('betas.npy', old.T), in MATLAB betas = "
            "betas'.",
        )
    where = f"betas of {found} trials"
    if len(betas.paths) > 1:
        parts = [
            f"{p.name} {n}" for p, n in zip(betas.paths, betas.lengths, strict=True)
        ]
        where += f" ({schema.shorten(parts)})"
    raise errors.InputError(
        trials.path,
        "",
        f"{num} rows, {where} (shape {betas.shape})",
        "one row for each trial",
        f"{_ORDER} Look for trials that only one of them has: blanks, a run that was "
        "cut off, a lost last line.",
    )


def _check_repeats(
    trials: table_trials.Trials, repeats: np.ndarray, image_id: Sequence[str]
) -> None:
    """The store counts presentations in one byte."""
    many = [
        f"{image} ({count})"
        for image, count in zip(image_id, repeats, strict=True)
        if count > 255
    ]
    if many:
        raise errors.InputError(
            trials.path,
            "column image",
            f"{len(many)} pictures are shown more than 255 times: "
            f"{schema.shorten(many)}",
            "1 to 255 presentations",
            "Leave blanks and fixation pictures out of the table and the betas.",
        )


def _seeded(
    image_id: Sequence[str], val_fraction: float, test_fraction: float, seed: int
) -> np.ndarray:
    """Split (M,) by the place of each picture in [0, 1)."""
    place = np.asarray([schema.share(seed, i) for i in image_id])
    split = np.where(place >= 1 - val_fraction, "val", "train")
    return np.where(place < test_fraction, "test", split)


def _presentation(row: np.ndarray) -> np.ndarray:
    """How often the picture of each trial was shown before it, (T,)."""
    order = np.argsort(row, kind="stable")
    _, first, counts = np.unique(row[order], return_index=True, return_counts=True)
    before = np.empty(len(row), np.int64)
    before[order] = np.arange(len(row)) - np.repeat(first, counts)
    return before


def _groups(
    trials: table_trials.Trials, zscore: str | None, betas: table_betas.Betas
) -> tuple[dict[str, np.ndarray], str]:
    """Trials to z-score together by their label, and which labels those are."""
    if zscore == "none":
        step = max(1, table_subject.BLOCK // (8 * betas.shape[1]))
        starts = range(0, betas.shape[0], step)
        every = np.arange(betas.shape[0])
        return {f"trials from {a}": every[a : a + step] for a in starts}, zscore
    columns = {"session": trials.session, "run": trials.run}
    wanted = [zscore] if zscore else [n for n, c in columns.items() if c is not None]
    if not wanted or columns[wanted[0]] is None:
        raise errors.InputError(
            trials.path,
            "line 1",
            f"no column {zscore or 'session or run'}",
            "it, to z-score within",
            "Add it, or pass --zscore=none if the betas are z-scored already.",
        )
    labels = _labels(trials, wanted[0])
    rows: dict[str, list[int]] = {}
    for k, label in enumerate(labels):
        rows.setdefault(label, []).append(k)
    single = [
        f"{label} (line {trials.lines[members[0]]})"
        for label, members in rows.items()
        if len(members) < 2
    ]
    if single:
        raise errors.InputError(
            trials.path,
            f"column {wanted[0]}",
            f"{len(single)} of {len(rows)} have one trial: {schema.shorten(single)}",
            "at least 2 trials in each, to z-score within",
            "Check the labels, or leave those trials out of table and betas.",
        )
    return {label: np.asarray(r) for label, r in rows.items()}, wanted[0]


def _labels(trials: table_trials.Trials, kind: str) -> list[str]:
    """Session, or run of a session, of each trial."""
    if kind == "session" or trials.session is None:
        cells = trials.session if kind == "session" else trials.run
        return [f"{kind} {cell}" for cell in cells or ()]
    pairs = zip(trials.session, trials.run or (), strict=True)
    return [f"session {a} run {b}" for a, b in pairs]


def _opening_lines(plan: table_subject.Plan, shown: table_trials.Pictures) -> list[str]:
    """What is known before the betas are read."""
    trials, lines = plan.trials, []
    kinds = ", ".join(plan.betas.kinds)
    lines.append(
        f"betas of {plan.betas.shape[0]} trials and {plan.betas.shape[1]} voxels "
        f"({kinds})"
    )
    if trials.ignored:
        names = schema.shorten(trials.ignored, most=8)
        lines.append(f"{len(trials.ignored)} columns of the table ignored: {names}")
    lines.append(f"split {plan.attrs['split']}")
    if shown.unused:
        lines.append(f"{shown.unused} pictures in the folder are in no trial")
    if shown.ignored:
        lines.append(f"{shown.ignored} files beside the pictures ignored")
    lines += plan.voxels.report
    if plan.zscore == "none":
        return lines
    lines.append(f"z-scored in {len(plan.groups)} groups, by {plan.zscore}")
    lines += table_health.group_lines({a: len(r) for a, r in plan.groups.items()})
    return lines + table_health.order_lines(_labels(trials, plan.zscore))


def _describe(path: pathlib.Path) -> dict[str, Any]:
    """Entry of `Dataset.sources`; a folder has no hash."""
    if path.is_dir():
        return {"file": path.name, "size": table_betas.size(path), "sha256": None}
    return schema.describe(path, path.parent)
