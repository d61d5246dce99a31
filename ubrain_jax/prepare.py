"""Turns a dataset as distributed into a store for training.

    python -m ubrain_jax.prepare --dataset=nsd --source=/data/nsd --out=nsd.zarr

--check reads everything as for a store, reports, and writes nothing; its last line is
ALL GOOD or PROBLEM. What each dataset needs and knows: docs/datasets.md.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import flags

from ubrain_jax import crowd, errors
from ubrain_jax.datasets import (
    algonauts,
    god,
    mosaic,
    nsd,
    released,
    schema,
    table,
    vim1,
)

READERS = {
    "nsd": nsd,
    "algonauts": algonauts,
    "god": god,
    "vim1": vim1,
    "released": released,
    "mosaic": mosaic,
    "table": table,
}
_NEEDED = {
    **dict.fromkeys(READERS, ("source",)),
    "god": ("source", "images"),
    "mosaic": ("source", "images"),
    "table": ("name", "betas", "trials", "images"),
}
_DISTRIBUTED = tuple(name for name in READERS if name != "table")
# Flags that not every dataset knows. A reader gets those that were given.
_KNOWN_BY = {
    "source": _DISTRIBUTED,
    "subjects": _DISTRIBUTED,
    "images": ("nsd", "god", "vim1", "released", "mosaic", "table"),
    "test_fraction": ("algonauts", "table"),
    "space": ("nsd", "table"),
    "betas": ("nsd", "table"),
    "mask": ("nsd", "mosaic", "table"),
    "sessions": ("nsd",),
    "roi": ("god", "table"),
    "voxels": ("vim1",),
    "num_voxels": ("vim1",),
    "grey": ("vim1",),
    "overlap": ("mosaic",),
    "artificial": ("mosaic",),
    "name": ("table",),
    "trials": ("table",),
    "stimuli": ("table",),
    "position": ("table",),
    "ncsnr": ("table",),
    "zscore": ("table",),
    "background": ("table",),
    "orientation": ("table",),
}
_SHARES = ("val_fraction", "test_fraction")

_DATASET = flags.DEFINE_enum("dataset", None, list(READERS), "What is to be read.")
_OUT = flags.DEFINE_string("out", None, "Store to write, usually NAME.zarr.")
_PX = flags.DEFINE_integer("image_px", 224, "Side of the stored pictures, pixels.")
_EXCLUDE = flags.DEFINE_list(
    "exclude", [], "Ids of pictures to leave out, for example nsd/00013,nsd/07777."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a store at --out.")
_CHECK = flags.DEFINE_bool("check", False, "Only read and report.")

flags.DEFINE_integer("seed", 0, "Of the choice of validation and test pictures.")
flags.DEFINE_float(
    "val_fraction",
    None,
    "Share of the pictures outside the test set for validation (table: of all "
    "pictures). Default: 0.05, or what the file says (released, table).",
)
flags.DEFINE_float(
    "test_fraction",
    None,
    "algonauts, table: share of the pictures for testing, where the data name no test "
    "pictures. Default: 0.1.",
)
flags.DEFINE_list(
    "subjects",
    [],
    "nsd, algonauts, released: subj01,subj02; god: subject1; vim1: s1; mosaic: "
    "sub-01_NSD. Default: all that are on disk.",
)
flags.DEFINE_list("sessions", [], "nsd: numbers. Default: all on disk.")
flags.DEFINE_integer(
    "num_voxels", None, "vim1: how many voxels of highest score to keep (7000)."
)
flags.DEFINE_list(
    "grey",
    [],
    "vim1: values of the pictures shown black and white, for example -0.55,0.45. "
    "Default: told from their range.",
)
flags.DEFINE_bool("artificial", None, "mosaic: keep artificial stimuli, as test.")
_TEXTS = {
    "source": "Folder, or file, as distributed. Not for table, see --betas.",
    "images": "Pictures. god, mosaic, table: their folder, always needed; nsd, vim1, "
    "released: where they lie elsewhere than the dataset puts them.",
    "space": "nsd: which betas to read, fsaverage (default) or func1pt8mm; table: what "
    "the positions are places in.",
    "betas": "nsd: version of the betas (betas_fithrf_GLMdenoise_RR); table: file of "
    "trials by voxels, or several with commas between them.",
    "mask": "nsd: name of an ROI, or a NIfTI file, that selects voxels; default "
    "nsdgeneral (on fsaverage together with nsdgeneralRSC where it is on disk). "
    "mosaic: all, or a .npy file; default the cortex. table: NIfTI file of the voxels "
    "of the betas.",
    "roi": "god: keys of the metadata that select voxels, for example ROI_V1,ROI_V2 "
    "(ROI_VC; VoxelData: all). table: .csv, .tsv or .npy of regions.",
    "voxels": "vim1: snr, roi, all, or a file of scores (.npy, .txt; {subject} in its "
    "name is replaced). Default: snr where the files allow it, else all.",
    "overlap": "mosaic: refuse (default) a picture that is test for one subject and "
    "train for another, or drop it from training.",
    "name": "table: of the subject, for example lab-ann.",
    "trials": "table: .csv or .tsv, a row for each trial.",
    "stimuli": "table: prefix of the ids of pictures. Default: --name.",
    "position": "table: .npy (voxels, 3): i, j, k, or hemisphere, vertex, -1.",
    "ncsnr": "table: .npy (voxels,) to take instead of what the repeats say.",
    "zscore": "table: within session (default) or run, or none if done already.",
    "background": "table: white or black, behind transparent pixels.",
    "orientation": "table: apply or ignore the turn in a picture's metadata.",
}
for _name, _text in _TEXTS.items():
    flags.DEFINE_string(_name, None, _text)


def open_dataset() -> schema.Dataset:
    """The dataset that the flags name, opened and checked."""
    name = str(_DATASET.value)
    # The reader's default is the volume.
    arguments: dict[str, Any] = {"space": "fsaverage"} if name == "nsd" else {}
    for flag in (*_KNOWN_BY, "val_fraction", "seed"):
        value = flags.FLAGS[flag].value
        if name in _KNOWN_BY.get(flag, READERS) and value not in (None, []):
            arguments[flag] = value
    _convert(arguments, "sessions", int, "1,2,3")
    _convert(arguments, "grey", float, "-0.55,0.45")
    if name == "nsd" and "images" in arguments:
        arguments["stimuli"] = arguments.pop("images")
    if name == "god" and "roi" in arguments:
        arguments["roi"] = arguments["roi"].split(",")
    if name == "table":
        arguments["betas"] = arguments["betas"].split(",")
    try:
        return READERS[name].open_dataset(**arguments)
    except OSError as error:
        raise errors.InputError(
            error.filename or name,
            "",
            f"cannot be read ({error.strerror or error})",
            "a file that can be read",
            "Check the disk, the path and its permissions.",
        ) from error


def _convert(
    arguments: dict[str, Any], flag: str, kind: Callable[[str], Any], example: str
) -> None:
    """Makes numbers of the words of a list flag, if it was given."""
    if flag not in arguments:
        return
    words = arguments[flag]
    try:
        arguments[flag] = tuple(kind(word) for word in words)
    except ValueError as error:
        raise errors.ConfigError(
            f"--{flag}",
            "",
            ",".join(words),
            f"numbers, for example {example}",
            "Write numbers with commas between them.",
        ) from error


def with_facts(dataset: schema.Dataset) -> schema.Dataset:
    """The dataset; its report says how responses were normalised and what ncsnr is."""

    def subjects() -> Iterator[schema.Subject]:
        for subject in dataset.subjects:
            scale, basis = (
                subject.attrs.get(key, "not said") for key in ("normalisation", "ncsnr")
            )
            num = len(subject.ncsnr)
            known = subject.ncsnr[np.isfinite(subject.ncsnr)]
            line = f"{subject.name}: normalisation: {scale}; ncsnr: {basis}"
            if len(known):
                line += f", median {np.median(known):.3f}"
            if len(known) < num:
                line += f", NaN for {num - len(known)} of {num} voxels"
            dataset.report.append(line)
            yield subject

    return dataset._replace(subjects=subjects())


def without_pictures(dataset: schema.Dataset, ids: set[str]) -> schema.Dataset:
    """The dataset less the samples of some pictures; says how many those were.

    Raises:
        errors.ConfigError: If an id is of no picture (once all subjects are read).
    """
    if not ids:
        return dataset

    def subjects() -> Iterator[schema.Subject]:
        unseen = set(ids)
        for subject in dataset.subjects:
            keep = np.asarray([i not in ids for i in subject.image_id])
            unseen -= set(subject.image_id)
            dataset.report.append(
                f"{subject.name}: {int((~keep).sum())} pictures left out by --exclude"
            )
            yield subject._replace(
                responses=subject.responses[keep],
                image_id=[i for i in subject.image_id if i not in ids],
                split=np.asarray(subject.split)[keep],
                repeats=subject.repeats[keep],
            )
        if unseen:
            raise errors.ConfigError(
                "--exclude",
                "",
                f"{', '.join(sorted(unseen))} seen by no subject",
                "ids of pictures",
                "Correct or drop them.",
            )

    return dataset._replace(subjects=subjects())


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    _check_flags(argv)
    if not _CHECK.value:
        crowd.check_target(str(_OUT.value), _OVERWRITE.value)  # before hours of reading
    dataset = with_facts(without_pictures(open_dataset(), set(_EXCLUDE.value)))
    if _CHECK.value:
        _check(dataset, _PX.value)
        return 0
    counts = crowd.write(
        str(_OUT.value), dataset, image_px=_PX.value, overwrite=_OVERWRITE.value
    )
    for line in dataset.report:
        print(line)
    for name, subject in counts["subjects"].items():
        print(f"{name}: " + ", ".join(f"{v} {k}" for k, v in subject.items()))
    print(f"wrote {_OUT.value}: {counts['images']} pictures")
    return 0


def _check_flags(argv: list[str]) -> None:
    """Refuses flags that the dataset does not know, lacks, or cannot mean."""
    errors.check_flags(argv, _DATASET)
    name = str(_DATASET.value)
    for flag, datasets in _KNOWN_BY.items():
        if flags.FLAGS[flag].present and name not in datasets:
            raise errors.ConfigError(
                f"--{flag}",
                "",
                f"given for {name}",
                f"it only with --dataset={' or '.join(datasets)}",
                "Leave it out.",
            )
        if flags.FLAGS[flag].present and flags.FLAGS[flag].value == "":
            raise errors.ConfigError(
                f"--{flag}", "", "is empty", "a value", "Give one or leave it out."
            )
    needed = [flags.FLAGS[flag] for flag in _NEEDED[name]]
    errors.check_flags(argv, *needed, *([] if _CHECK.value else [_OUT]))
    for flag in _SHARES:
        share = flags.FLAGS[flag].value
        if share is not None and not 0 <= share < 1:
            raise errors.ConfigError(
                f"--{flag}", "", str(share), "0 <= x < 1", "Change it."
            )
    if _PX.value < 14 or _PX.value % 14:
        raise errors.ConfigError(
            "--image_px", "", str(_PX.value), "a multiple of the patch, 14", "Use 224."
        )


def _check(dataset: schema.Dataset, image_px: int) -> None:
    """Reads every response and picture as for a store and reports; writes nothing."""
    splits: dict[str, tuple[str, str]] = {}
    try:
        for subject in crowd.checked_subjects(dataset, splits):
            spread = subject.responses.std(0)
            constant = subject.responses.max(0) == subject.responses.min(0)
            print(
                f"{subject.name}: {subject.responses.shape[0]} pictures, "
                f"{subject.responses.shape[1]} voxels, median SD over pictures "
                f"{np.median(spread):.3f}, {int(constant.sum())} constant"
            )
        count = sum(1 for _ in crowd.checked_pictures(dataset, splits, image_px))
    finally:  # what was found out helps beside a problem, too
        for line in dataset.report:
            print(line)
    print(f"{count} pictures; nothing was written")
    if warnings := sum("warning:" in line for line in dataset.report):
        print(f"warnings in the lines above: {warnings}")
    print("ALL GOOD")


def _is_check() -> bool:
    """Whether --check was given, also where other flags could not be read."""
    return bool(flags.FLAGS["check"].value) or "--check" in sys.argv


if __name__ == "__main__":
    errors.run_command(main, is_check=_is_check)
