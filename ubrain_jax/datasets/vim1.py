"""Reads vim-1: fMRI of two or three people who looked at 1870 grey photographs.

1750 training pictures were shown twice, 120 validation pictures 13 times. The
validation pictures are the test split here. Pictures are called by file and number
from 1: "vim1/train/0007" is row 7 of stimTrn, "vim1/val/0007" row 7 of stimVal (its
split is "test"). Responses come as distributed, z-scored for each voxel; nothing here
scales them. Three encodings are read:

    EstimatedResponses.mat    2008 (CRCNS): dataTrnS1 (voxels, 1750), dataValS1
                              (voxels, 120), roiS1, voxIdxS1; averages over repeats
    S1aux.mat, S1data.mat, S1data_trn_singletrial.mat, S1data_val_singletrial.mat
                              processed again in 2013: dataTrnSingleS1 (voxels, 1750,
                              2), dataValSingleS1 (voxels, 120, 13), snrS1
    kay_images.npz            Neuromatch Academy: voxels of subject 1 in a region

References:
    Kay et al., 2008, Nature 452:352 (experiment).
    Naselaris et al., 2009, Neuron 63:902 (experiment).
    Kay, Naselaris, Gallant, 2011, CRCNS, doi:10.6080/K0QN64NG (files of 2008).
    Beliy et al., 2024, arXiv:2406.12179 (voxels of highest SNR).
"""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import (
    schema,
    simulated,
    vim1_files,
    vim1_responses,
    vim1_stimuli,
)

NUM_IMAGES = {"train": 1750, "val": 120}
RULES = ("auto", "snr", "roi", "all")
# Averages of two z-scored responses have means near 0 and SDs of 0.7 to 1.
_USUAL_MEAN, _USUAL_SD = 0.2, (0.2, 2.0)


class _Choice(NamedTuple):
    """Which voxels are wanted: the rule, how many, and (V,) scores of the caller."""

    rule: str
    num_voxels: int
    scores: np.ndarray | None


class Selection(NamedTuple):
    """Which voxels were taken.

    Attributes:
        keep: (V,) their numbers in the file, ascending.
        threshold: Least score taken; NaN if none was compared.
        unscored: Voxels that could not be compared, left out.
    """

    keep: np.ndarray
    threshold: float
    unscored: int


def open_dataset(
    source: str | os.PathLike,
    *,
    images: str | os.PathLike | None = None,
    subjects: Sequence[str] | None = None,
    voxels: str = "auto",
    num_voxels: int = 7000,
    grey: tuple[float, float] | None = None,
    val_fraction: float = 0.05,
    seed: int = 0,
) -> schema.Dataset:
    """Opens vim-1 and checks everything but the responses.

    A voxel whose response to any of the pictures is not finite, or that has one value
    for all training pictures, is left out and counted, and so are voxels that
    `voxels` does not choose:

    * "snr": the `num_voxels` voxels of highest signal-to-noise ratio, from the single
      trials of the validation pictures (`snr`), else as distributed in S1aux.mat;
    * "roi": all voxels in a region (V1, V2, V3, V3A, V3B, V4, LatOcc);
    * "all": all voxels;
    * a file of scores, .npy or .txt, one number for each voxel of the subject's file
      in its order, NaN for none: the `num_voxels` voxels of highest score. "{subject}"
      in its name is replaced ("s1");
    * "auto": "snr" where it can be had, else "all".

    Of equal scores the first in the file is taken. The order of the file is kept.

    Args:
        source: Folder of vim-1 (those of 2013 may lie in `subject-S1`), or one file,
            EstimatedResponses.mat or kay_images.npz.
        images: Folder of the pictures, Stimuli.mat or kay_images.npz, if elsewhere.
        subjects: Some of "s1", "s2", "s3"; all that are there by default.
        voxels: See above.
        num_voxels: How many the first and the last rule take at most.
        grey: Values shown black and white, see `vim1_stimuli.open_stimuli`.
        val_fraction: Share of the training pictures for validation, 0..1.
        seed: Of the share (`schema.share`).

    Returns:
        The dataset; subjects are called "vim1-s1". Reading a subject raises
        errors.InputError if averages and single trials differ, or nothing is left.

    Raises:
        errors.MissingInputError: If files or arrays are missing; all are listed.
        errors.InputError: If files disagree; all disagreements are listed.
        errors.ConfigError: If a subject, rule or share is unknown or impossible.
    """
    source = pathlib.Path(source)
    schema.check_fractions(val_fraction=val_fraction)
    _check_arguments(voxels, num_voxels, grey)
    found, report = vim1_files.find_subjects(source)
    chosen = schema.choose(list(found), subjects)
    stimuli = vim1_stimuli.open_stimuli(_pictures_place(source, images), grey=grey)
    num = {split: stimuli.num(split) for split in NUM_IMAGES}
    plans = vim1_files.inspect(source, {n: found[n] for n in chosen}, num)
    choices, score_paths = {}, []
    for name, plan in plans.items():
        scores = None
        rule = _rule(source, name, plan, voxels)
        if rule not in RULES:
            score_paths.append(pathlib.Path(rule))
            scores = _read_scores(score_paths[-1], len(plan.region))
        if voxels == "auto" and rule == "all":
            report.append(
                f"vim1-{name}: no single trials and no SNR in the files, so every "
                "voxel that can be used is kept, where Beliy et al. keep the 7000 of "
                f"highest SNR; give S{name[1:]}data_val_singletrial.mat and its like, "
                "or choose (voxels) roi, all or a file of scores"
            )
        choices[name] = _Choice(rule, num_voxels, scores)

    report += stimuli.report
    is_simulated = simulated.is_simulated(source)
    if is_simulated:
        report.append("these files are simulated, no brain was measured")
    elif num != NUM_IMAGES:
        report.append(
            f"{num['train']} training and {num['val']} validation pictures; vim-1 has "
            f"{NUM_IMAGES['train']} and {NUM_IMAGES['val']}"
        )
    paths = [path for plan in plans.values() for path in plan.paths]
    paths += [part.path for part in stimuli.parts] + score_paths
    folder = source if source.is_dir() else source.parent
    sources = [schema.describe(path, folder) for path in dict.fromkeys(paths)]
    known = {f"vim1/{s}/{k + 1:04d}": (s, k) for s in num for k in range(num[s])}
    split = np.array([_split(i, s, val_fraction, seed) for i, (s, _) in known.items()])
    if not (split == "train").any():
        raise errors.InputError(
            source,
            "",
            "0 pictures in the training split",
            "at least one",
            "Hold out a smaller share (val_fraction).",
        )

    def read_subjects() -> Iterator[schema.Subject]:
        for name, plan in plans.items():
            subject = _read_subject(
                source, name, plan, choices[name], list(known), split, stimuli, report
            )
            if is_simulated:
                subject.attrs["simulated"] = True
            yield subject

    def read_images(image_ids: Sequence[str]) -> Iterator[np.ndarray]:
        unknown = [i for i in image_ids if i not in known]
        if unknown:
            raise errors.InputError(
                source,
                "",
                f"no picture {schema.shorten(unknown, most=5)}",
                f"one of {len(known)} pictures, such as {next(iter(known))}",
                "Ask for ids that the subjects list.",
            )
        yield from vim1_stimuli.read(stimuli, [known[i] for i in image_ids], report)

    return schema.Dataset("vim1", read_subjects(), read_images, sources, report)


def _check_arguments(
    voxels: str, num_voxels: int, grey: tuple[float, float] | None
) -> None:
    """Refuses settings that mean nothing."""
    if voxels not in RULES and pathlib.Path(voxels).suffix not in (".npy", ".txt"):
        raise errors.ConfigError(
            "voxels",
            "",
            f"is {voxels!r}",
            f"{', '.join(RULES)}, or a file of scores (.npy, .txt)",
            errors.nearest(voxels, RULES),
        )
    if num_voxels < 1:
        raise errors.ConfigError(
            "num_voxels", "", f"is {num_voxels}", "1 or more", "Change it."
        )
    if grey is not None and not (
        len(grey) == 2 and np.isfinite(grey).all() and grey[0] < grey[1]
    ):
        raise errors.ConfigError(
            "grey",
            "",
            f"is {grey}",
            "the values shown black and white, for example (-0.55, 0.45)",
            "Change it.",
        )


def _pictures_place(
    source: pathlib.Path, images: str | os.PathLike | None
) -> pathlib.Path:
    """Where the pictures are looked for."""
    if images is None:
        whole = source.is_dir() or source.suffix == ".npz"
        return source if whole else source.parent
    place = pathlib.Path(images)
    if not place.exists():
        raise errors.MissingInputError(
            place, "", "no such file or folder", "the pictures", "Check the path."
        )
    return place


def _split(image_id: str, file_split: str, val_fraction: float, seed: int) -> str:
    """Split of a picture, from the file it is in and its place in [0, 1)."""
    if file_split == "val":
        return "test"
    return "val" if schema.share(seed, image_id) >= 1 - val_fraction else "train"


def _rule(source: pathlib.Path, name: str, plan: vim1_files.Plan, voxels: str) -> str:
    """The rule for one subject; "auto" is settled by what its files hold."""
    has_snr = "val" in plan.trials or plan.snr is not None
    if voxels == "auto":
        return "snr" if has_snr else "all"
    if voxels == "snr" and not has_snr:
        raise errors.ConfigError(
            "voxels",
            "",
            f"'snr', but {source} has averages alone for {name}, from which no "
            "signal-to-noise ratio follows",
            f"S{name[1:]}data_val_singletrial.mat, or snrS{name[1:]} in "
            f"S{name[1:]}aux.mat",
            "Add them, or choose roi, all or a file of scores.",
        )
    return voxels.replace("{subject}", name)


def _read_scores(path: pathlib.Path, num_voxels: int) -> np.ndarray:
    """(V,) float64 scores of the caller; NaN is none."""
    if not path.is_file():
        raise errors.MissingInputError(
            path, "", "no such file", "a score for each voxel", "Check voxels."
        )
    problems: list[schema.Problem] = []
    array = None
    if path.suffix == ".npy":
        array = schema.open_npy(path, path.parent, problems)
    else:
        try:
            array = np.loadtxt(path, ndmin=1)
        except ValueError as error:  # not a number, or not UTF-8
            found = f"not a list of numbers ({str(error)[:100]})"
            schema.add_problem(problems, path.name, found, "one number a line")
    if array is not None and (
        array.shape != (num_voxels,) or array.dtype.kind not in "iuf"
    ):
        schema.add_problem(
            problems,
            path.name,
            f"{array.dtype} {array.shape}",
            f"({num_voxels},), a number for each voxel of the responses",
        )
    schema.raise_problems(
        path.parent, problems, "Make the scores again, in the order of the responses."
    )
    return np.array(array, np.float64)


def select_voxels(scores: np.ndarray, usable: np.ndarray, num_voxels: int) -> Selection:
    """The voxels of highest score; of equal ones the first.

    Args:
        scores: (V,), higher is better; not finite is no score.
        usable: (V,) bool, voxels that may be taken.
        num_voxels: How many at most.

    Returns:
        The selection; all usable voxels with a score if there are fewer.

    Example:
        >>> select_voxels(np.array([1, 5, np.nan, 5, 5]), np.arange(5) != 1, 2)
        Selection(keep=array([3, 4]), threshold=5.0, unscored=1)
    """
    scored = np.flatnonzero(usable & np.isfinite(scores))
    order = np.argsort(-scores[scored].astype(np.float64), kind="stable")[:num_voxels]
    best = scored[order]
    threshold = float(scores[best[-1]]) if len(best) else float("nan")
    return Selection(np.sort(best), threshold, int(usable.sum()) - len(scored))


def _unusable(values: np.ndarray, num_train: int) -> dict[str, np.ndarray]:
    """(V,) bool by reason: voxels to leave out, each under its first reason."""
    finite = np.zeros(values.shape[1], np.int64)
    for row in values:  # a row: no copy of the whole
        finite += np.isfinite(row)
    train = values[:num_train]
    empty, part = finite == 0, (finite > 0) & (finite < len(values))
    constant = (finite == len(values)) & (train.min(0) == train.max(0))
    return {
        "without a finite response": empty,
        "not finite for some pictures": part,
        "constant in the training pictures": constant,
    }


def _choose(
    plan: vim1_files.Plan,
    choice: _Choice,
    usable: np.ndarray,
    snr: np.ndarray | None,
) -> tuple[Selection, str]:
    """Applies the rule; returns the voxels and the rule in words."""
    nan = float("nan")
    if choice.rule == "all":
        return Selection(np.flatnonzero(usable), nan, 0), "all"
    if choice.rule == "roi":
        labelled = np.isin(plan.region, list(plan.region_names))
        return Selection(np.flatnonzero(usable & labelled), nan, 0), "all in a region"
    if choice.scores is not None:
        scores, words = choice.scores, f"scores in {pathlib.Path(choice.rule).name}"
    elif snr is not None:
        repeats = plan.num_repeats("val")
        scores = snr
        words = f"SNR over {repeats} repeats of the validation pictures (ddof=1)"
    else:
        scores = np.zeros(0) if plan.snr is None else plan.snr
        words = "SNR as distributed (ddof not said)"
    selection = select_voxels(scores, usable, choice.num_voxels)
    return selection, f"at most {choice.num_voxels} of highest {words}"


def _read_subject(
    source: pathlib.Path,
    name: str,
    plan: vim1_files.Plan,
    choice: _Choice,
    image_id: list[str],
    split: np.ndarray,
    stimuli: vim1_stimuli.Stimuli,
    report: list[str],
) -> schema.Subject:
    """Reads one subject and takes the voxels wanted."""
    read = vim1_responses.read_responses(source, plan)
    num_train = stimuli.num("train")
    dropped = _unusable(read.values, num_train)
    usable = ~np.any(list(dropped.values()), axis=0)
    selection, rule = _choose(plan, choice, usable, read.snr)
    keep = selection.keep
    counts = {reason: int(bad.sum()) for reason, bad in dropped.items()}
    counts["without a score"] = selection.unscored
    counts["not chosen"] = int(usable.sum()) - selection.unscored - len(keep)
    told = ", ".join(f"{n} {reason}" for reason, n in counts.items() if n)
    if not len(keep):
        raise errors.InputError(
            source,
            name,
            f"0 of {len(usable)} voxels left ({told})",
            "at least one",
            "Choose others (voxels), or copy the files again.",
        )
    responses = read.values[:, keep]
    region, names, empty = _regions(plan, keep)
    mean, spread = _moments(responses)
    repeats = [plan.num_repeats(s) for s in NUM_IMAGES]
    scored = not np.isnan(selection.threshold)

    lines = [
        f"{int((split == 'train').sum())} train, {int((split == 'val').sum())} val, "
        f"{int((split == 'test').sum())} test pictures (test: the validation pictures "
        f"of vim-1); {repeats[0]} and {repeats[1]} repeats",
        f"{len(keep)} of {len(usable)} voxels kept: {rule}"
        + (f", least {selection.threshold:.4g}" if scored else "")
        + (f"; left out: {told}" if told else ""),
    ]
    if scored and len(keep) < choice.num_voxels:
        lines.append(f"fewer than {choice.num_voxels} voxels can be had: all taken")
    usual = abs(mean) <= _USUAL_MEAN and _USUAL_SD[0] <= spread <= _USUAL_SD[1]
    lines.append(
        f"responses as in the file: median over voxels of mean {mean:.3f}, "
        f"SD {spread:.3f}"
        + ("" if usual else "; z-scores are expected, check the file")
    )
    if "val" not in plan.trials:
        lines.append("no single trials of the validation pictures: ncsnr is NaN")
    if plan.form == "npz":
        lines.append(f"names of regions: {plan.region_note}")
    if empty:
        lines.append(f"regions without a voxel, left out: {', '.join(empty)}")
    if not split[:num_train].tolist().count("val"):
        lines.append("val split is empty")
    report += [f"vim1-{name}: {line}" for line in lines]
    return schema.Subject(
        name=f"vim1-{name}",
        responses=responses,
        image_id=image_id,
        split=split,
        repeats=np.repeat(
            np.array(repeats, np.uint8), [num_train, len(image_id) - num_train]
        ),
        ncsnr=read.ncsnr[keep].astype(np.float32),
        position=plan.position[keep],
        roi=region,
        roi_names=names,
        attrs={
            **vim1_files.facts(plan),
            "pictures": vim1_stimuli.describe(stimuli),
            "splits": "the validation pictures of vim-1 are test",
            "ncsnr": "from the single trials of the validation pictures"
            if "val" in plan.trials
            else "unknown",
            "voxels": rule,
            "voxels_in_file": len(usable),
            "least_score": selection.threshold if scored else None,
            "dropped_voxels": counts,
            "response_mean": mean,
            "response_sd": spread,
            "empty_regions": empty,
        },
    )


def _moments(responses: np.ndarray) -> tuple[float, float]:
    """Medians over voxels of the mean and the SD over pictures."""
    parts = np.array_split(responses, 1 + responses.shape[1] // 1000, axis=1)
    moments = [(p.mean(0, dtype=float), p.std(0, dtype=float)) for p in parts]
    means, spreads = (np.concatenate(m) for m in zip(*moments, strict=True))
    return float(np.median(means)), float(np.median(spreads))


def _regions(
    plan: vim1_files.Plan, keep: np.ndarray
) -> tuple[np.ndarray, list[str], list[str]]:
    """Regions of the voxels kept: (V, R) bool, R names, and names without a voxel."""
    columns = {n: plan.region[keep] == k for k, n in plan.region_names.items()}
    names = [n for n, column in columns.items() if column.any()]
    empty = [n for n in columns if n not in names]
    region = [columns[n] for n in names]
    return (
        np.stack(region, 1) if names else np.zeros((len(keep), 0), bool),
        names,
        empty,
    )
