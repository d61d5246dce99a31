"""Reads fMRI-on-ImageNet (Generic Object Decoding): one BData table a subject.

Samples are z-scored for each voxel within each run, as is usual for these data, then
averaged over the presentations of a picture. Training samples (DataType 1) are split
into train and val, test samples (DataType 2) are the test split; imagery (3) is left
out. Pictures are not part of the data: they come from the lab or from ImageNet.

The dataset has one atlas, so its regions have plain names: V1, LOC, FFA, VC, ...

References:
    Horikawa & Kamitani, 2017, Nature Communications 8:15037 (data).
    Allen et al., 2022, Nature Neuroscience 25:116 (noise-ceiling SNR).
"""

import collections
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import (
    bdata,
    god_samples,
    imagenet,
    pictures,
    schema,
    simulated,
    trials,
)

_FILE = re.compile(r"(?:subject|sub|s)[-_ ]?0*([1-9]\d*)", re.IGNORECASE)
_ENDINGS = (".mat", ".h5", ".hdf5")


class _Plan(NamedTuple):
    """One subject, checked, responses not read."""

    name: str
    table: bdata.Table
    samples: god_samples.Samples
    columns: np.ndarray  # (V,) of the table


def open_dataset(
    source: str | os.PathLike,
    *,
    images: str | os.PathLike | None,
    subjects: Sequence[str] | None = None,
    roi: str | Sequence[str] = "ROI_VC",
    val_fraction: float = 0.05,
    seed: int = 0,
) -> schema.Dataset:
    """Opens the subjects' tables and checks everything but the responses.

    Args:
        source: Folder with Subject1.mat or Subject1.h5, Subject2..., or one such file.
            The encoding is told by content.
        images: Folder below which the pictures lie under their ImageNet names
            (n01443537_22563.JPEG, any picture ending). Folders named like another
            ImageNet category than one that is needed are not searched.
        subjects: Names such as ("subject1",); all by default.
        roi: Key or keys of the metadata that select voxels; "VoxelData" for all.
        val_fraction: Share of the training pictures for validation, 0..1; who is in
            it depends on `seed` and the image id alone (`schema.share`).
        seed: Of the share.

    Returns:
        The dataset; subjects are called "god-subject1", images
        "god/n01443537_22563". Grey pictures become three equal colours, CMYK is
        converted without a colour profile, and EXIF orientation is ignored (assumed:
        the experiment ran in MATLAB, whose reader ignores it); all are counted in the
        report once pictures are read.

    Raises:
        errors.MissingInputError: If files or pictures are missing; all are listed.
        errors.InputError: If a table is damaged or makes no sense; faults of all
            subjects are listed.
        errors.ConfigError: If a subject is unknown or the share is no share.
    """
    source = pathlib.Path(source)
    schema.check_fractions(val_fraction=val_fraction)
    if images is None:
        raise errors.ConfigError(
            "images",
            "",
            "not given",
            "the folder of the pictures",
            "Get them from the lab or from ImageNet: they are not part of the data.",
        )
    keys = (roi,) if isinstance(roi, str) else tuple(roi)
    if not keys:
        raise errors.ConfigError("roi", "", "is empty", "a key", "Use ROI_VC.")
    paths, report = _find_subjects(source, subjects)
    faults: list[errors.InputError] = []
    plans: list[_Plan] = []
    for name, path in paths.items():
        with schema.collected(faults):
            plans.append(_inspect(name, path, keys))
    schema.raise_faults(source, faults, "tables of one experiment, all with the ROI")
    held_out = _held_out(source, plans)
    needed = {
        god_samples.image_id(number)
        for plan in plans
        for number in np.unique(plan.samples.number[plan.samples.number > 0]).tolist()
    }
    found = imagenet.find_pictures(
        images, {i.removeprefix(god_samples.PREFIX) for i in needed}, report
    )
    known = {god_samples.PREFIX + name: path for name, path in found.items()}

    def split(identifier: str) -> str:
        if identifier in held_out:
            return "test"
        place = schema.share(seed, identifier)
        return "val" if place >= 1 - val_fraction else "train"

    sources: list[dict[str, Any]] = []
    folder = source.parent if source.is_file() else source
    attrs: dict[str, Any] = {"dataset": "god"}
    if simulated.is_simulated(source):
        attrs["simulated"] = True
        report.append("these files are simulated, no brain was measured")

    def read_subjects() -> Iterator[schema.Subject]:
        for plan in plans:
            subject = _read_subject(plan, keys, split, attrs, report)
            sources.append(schema.describe(paths[plan.name], folder))
            yield subject

    def read_images(image_ids: Sequence[str]) -> Iterator[np.ndarray]:
        notes: dict[str, int] = {}
        for identifier in image_ids:
            if identifier not in known:
                raise errors.InputError(
                    source,
                    "",
                    f"no picture {identifier}",
                    f"one of {len(known)}, such as {next(iter(known))}",
                    "Ask for ids that the subjects list.",
                )
            yield pictures.read_image(
                known[identifier],
                orientation="ignore",
                print_colours="convert",
                notes=notes,
            )
        texts = {
            "grey": "grey, shown as three equal colours",
            "CMYK": "in print colours (CMYK), converted without a colour profile",
            "orientation": "with an EXIF orientation, which is ignored",
        }
        report.extend(
            f"{notes[k]} pictures {t}" for k, t in texts.items() if k in notes
        )

    return schema.Dataset("god", read_subjects(), read_images, sources, report)


# ---------------------------------------------------------------- files


def _find_subjects(
    source: pathlib.Path, subjects: Sequence[str] | None
) -> tuple[dict[str, pathlib.Path], list[str]]:
    """The file of each chosen subject, and report lines."""
    if source.is_file():
        match = _FILE.fullmatch(source.stem)
        name = f"subject{match[1]}" if match else source.stem
        return {n: source for n in schema.choose([name], subjects)}, []
    if not source.is_dir():
        raise errors.MissingInputError(
            source,
            "",
            "no such folder",
            "the folder of the subjects",
            "Check the path.",
        )
    found: dict[int, list[pathlib.Path]] = {}
    others = []
    for path in sorted(source.iterdir()):
        match = _FILE.fullmatch(path.stem)
        if match and path.suffix.lower() in _ENDINGS and path.is_file():
            found.setdefault(int(match[1]), []).append(path)
        else:
            others.append(path.name)
    if not found:
        raise errors.MissingInputError(
            source,
            "",
            f"no subject (found: {schema.shorten(others, most=8) or 'nothing'})",
            "Subject1.mat, Subject1.h5, ...",
            "Give the folder that holds them, or one file.",
        )
    known = {f"subject{number}": found[number] for number in sorted(found)}
    chosen = {name: known[name] for name in schema.choose(list(known), subjects)}
    twice = [
        f"{name}: {', '.join(p.name for p in paths)}"
        for name, paths in chosen.items()
        if len(paths) > 1
    ]
    if twice:
        raise errors.InputError(
            source,
            "",
            f"a subject in several files ({schema.shorten(twice, '; ')})",
            "one file a subject",
            "Move the others away, or give one file as the source.",
        )
    report = []
    if others:
        report.append(
            f"{len(others)} other files in the folder ignored: "
            f"{schema.shorten(others, most=5)}"
        )
    return {name: paths[0] for name, paths in chosen.items()}, report


# ---------------------------------------------------------------- design


def _inspect(name: str, path: pathlib.Path, keys: Sequence[str]) -> _Plan:
    """Opens one subject's table; lists all its faults."""
    table = bdata.open_table(path)
    faults: list[errors.InputError] = []
    samples, columns = None, []
    with schema.collected(faults):
        samples = god_samples.read_samples(table)
    for key in keys:
        with schema.collected(faults):
            try:
                columns.append(bdata.select(table, key))
            except errors.InputError as error:
                regions = [k for k in table.metadata if k.startswith("ROI_")]
                raise errors.InputError(
                    path,
                    f"{name}, roi {key}",
                    "absent" if key not in table.metadata else "has no voxel",
                    "a key of the metadata that selects voxels",
                    errors.nearest(key, regions or table.metadata)
                    + " Or leave the subject out (subjects).",
                ) from error
    union = np.unique(np.concatenate([np.zeros(0, int), *columns]))
    design = [
        label
        for names in god_samples.LABELS
        for label in names
        if label in table.metadata and (table.metadata[label][union] == 1).any()
    ]
    if design:
        faults.append(
            errors.InputError(
                path,
                f"metadata {' and '.join(keys)}",
                f"select the column of {', '.join(design)}",
                "columns of voxels",
                "Choose another roi.",
            )
        )
    schema.raise_faults(path, faults, "a table of samples and voxels")
    if samples is None:
        raise RuntimeError("no samples and no fault")
    return _Plan(name, table, samples, union)


def _held_out(source: pathlib.Path, plans: Sequence[_Plan]) -> set[str]:
    """Ids of test pictures; none may be in another subject's training."""
    training: dict[int, str] = {}  # first subject by number
    test: dict[int, str] = {}
    for plan in plans:
        part, number = plan.samples.part, plan.samples.number
        for names, which in (
            (training, god_samples.TRAINING),
            (test, god_samples.TEST),
        ):
            for n in np.unique(number[part == which]).tolist():
                names.setdefault(n, plan.name)
    both = sorted(training.keys() & test.keys())
    if both:
        first = both[0]
        raise errors.InputError(
            source,
            "",
            f"{len(both)} pictures are test for one subject and training for another "
            f"(first: {god_samples.image_id(first)}, test for {test[first]}, training "
            f"for {training[first]})",
            "one test set",
            "Read these subjects one by one (subjects).",
        )
    return {god_samples.image_id(number) for number in test}


# ---------------------------------------------------------------- responses


def _read_subject(
    plan: _Plan,
    keys: Sequence[str],
    split: Callable[[str], str],
    common: dict[str, Any],
    report: list[str],
) -> schema.Subject:
    """Reads the responses of one subject; `common` goes into its attributes."""
    samples, table = plan.samples, plan.table
    numbers, repeats, row = [], [], np.full(len(samples.part), -1)
    for part in (god_samples.TRAINING, god_samples.TEST):  # test pictures last
        here = samples.part == part
        found, place, count = np.unique(
            samples.number[here], return_inverse=True, return_counts=True
        )
        row[here] = place + len(numbers)
        numbers += found.tolist()
        repeats += count.tolist()
    if max(repeats) > 255:
        most = god_samples.image_id(numbers[int(np.argmax(repeats))])
        raise errors.InputError(
            table.path,
            "stimulus_id",
            f"{most} is shown {max(repeats)} times",
            "at most 255",
            god_samples.ACTION,
        )
    count = np.array(repeats)
    runs = god_samples.runs_of(samples)
    averages = trials.average(
        bdata.read_columns(table, plan.columns),
        list(runs.values()),
        row,
        samples.part == god_samples.TEST,
    )
    still = averages.flat.all(0)
    dropped = [
        {"reason": reason, "count": int(which.sum()), "columns": columns}
        for reason, which in (
            ("not finite in a sample", averages.invalid),
            ("constant in every run", still),
        )
        if (columns := plan.columns[which].tolist())
    ]
    keep = ~averages.invalid & ~still
    if not keep.any():
        raise errors.InputError(
            table.path,
            f"metadata {' and '.join(keys)}",
            f"all {len(keep)} voxels are dropped: "
            + ", ".join(f"{d['count']} {d['reason']}" for d in dropped),
            "voxels with responses",
            god_samples.ACTION,
        )
    columns = plan.columns[keep]
    identifiers = [god_samples.image_id(number) for number in numbers]
    splits = np.array([split(i) for i in identifiers])
    if not (splits == "train").any():
        raise errors.InputError(
            table.path, "", "0 pictures to train on", "some", "Lower val_fraction."
        )
    position, place = bdata.positions(table, columns)
    regions = {
        key.removeprefix("ROI_"): table.metadata[key][columns] == 1
        for key in table.metadata
        if key.startswith("ROI_")
    }
    empty = [name for name, inside in regions.items() if not inside.any()]
    names = [name for name in regions if name not in empty]
    roi = np.zeros((len(columns), len(names)), bool)
    for k, name in enumerate(names):
        roi[:, k] = regions[name]
    responses = np.ascontiguousarray(averages.responses[:, keep])
    flat = averages.flat[:, keep]
    attrs = {
        **common,
        **place,
        "mask": ", ".join(keys),
        "voxel_order": "columns of the table",
        "normalisation": "z-scored per voxel in each run (ddof=0), then averaged over "
        "presentations",
        "runs": {
            god_samples.PARTS[p]: sum(1 for q, _ in runs if q == p) for p in (1, 2)
        },
        "samples": {
            god_samples.PARTS[p]: int((samples.part == p).sum())
            for p in god_samples.PARTS
        },
        "encoding": table.layout.encoding,
        "dropped": dropped,
        "constant_in_run": {
            f"{god_samples.PARTS[part]} {run}": int(flat[k].sum())
            for k, (part, run) in enumerate(runs)
            if flat[k].any()
        },
        "constant_in_train": schema.num_constant(responses, splits == "train"),
        "ncsnr": "from the single presentations of the test pictures",
        "regions_without_voxels": empty,
    }
    subject = schema.Subject(
        f"god-{plan.name}",
        responses,
        identifiers,
        splits,
        count.astype(np.uint8),
        averages.ncsnr[keep],
        position,
        roi,
        names,
        attrs,
    )
    report += [f"{plan.name}: {line}" for line in _lines(subject, plan, runs)]
    return subject


def _lines(
    subject: schema.Subject, plan: _Plan, runs: dict[tuple[int, int], np.ndarray]
) -> list[str]:
    """What a user must know about a subject that was read."""
    attrs = subject.attrs
    num = {s: int((subject.split == s).sum()) for s in ("train", "val", "test")}
    lines = [
        ", ".join(f"{n} {s}" for s, n in num.items())
        + f" pictures; {len(subject.ncsnr)} voxels in {attrs['mask']}"
    ]
    for part in (god_samples.TRAINING, god_samples.TEST):
        sizes = [len(rows) for (p, _), rows in runs.items() if p == part]
        if not sizes:
            lines.append("warning: the test split is empty; ncsnr is unknown")
            continue
        tested = subject.split == "test"
        shown = collections.Counter(
            subject.repeats[tested if part == god_samples.TEST else ~tested].tolist()
        )
        lines.append(
            f"{god_samples.PARTS[part]}: {sum(sizes)} samples in {len(sizes)} runs of "
            f"{min(sizes)} to {max(sizes)}; pictures shown: "
            + ", ".join(f"{n} x {k}" for k, n in sorted(shown.items()))
        )
    if imagery := attrs["samples"]["imagery"]:
        lines.append(f"{imagery} samples of imagery left out")
    split_runs = [
        f"{god_samples.PARTS[part]} {run}"
        for (part, run), rows in runs.items()
        if rows[-1] - rows[0] >= len(rows)
    ]
    if split_runs:
        lines.append(
            f"warning: samples of {len(split_runs)} runs do not follow each other "
            f"({schema.shorten(split_runs, most=5)}): numbers used twice?"
        )
    known = subject.ncsnr[np.isfinite(subject.ncsnr)]
    if len(known):
        unknown = len(subject.ncsnr) - len(known)
        lines.append(
            f"median ncsnr {np.median(known):.3f}"
            + (f", unknown for {unknown}" if unknown else "")
        )
    lines += [f"{d['count']} voxels dropped, {d['reason']}" for d in attrs["dropped"]]
    if flat := attrs["constant_in_run"]:
        lines.append(
            f"{sum(flat.values())} times a voxel is constant in a run and counts as 0 "
            f"there ({schema.shorten(list(flat), most=5)})"
        )
    if attrs["constant_in_train"]:
        lines.append(f"{attrs['constant_in_train']} voxels are constant in train; kept")
    if not num["val"]:
        lines.append("val split is empty")
    if attrs["regions_without_voxels"]:
        lines.append(
            "regions without a voxel, left out: "
            + ", ".join(attrs["regions_without_voxels"])
        )
    if "affine" not in attrs:
        lines.append(attrs["space"])
    odd = [
        key
        for key, value in plan.table.metadata.items()
        if key.startswith("ROI_") and not np.isin(value[~np.isnan(value)], (0, 1)).all()
    ]
    if odd:
        lines.append(f"{', '.join(odd)} hold other values than 0 and 1; only 1 counts")
    return lines
