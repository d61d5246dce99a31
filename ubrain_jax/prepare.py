"""Turns a dataset as distributed into a store for training.

    python -m ubrain_jax.prepare --dataset=nsd --source=/data/nsd --out=nsd.zarr

--check reads everything, reports, and writes nothing.
"""

import numpy as np
from absl import flags

from ubrain_jax import crowd, errors
from ubrain_jax.datasets import algonauts, nsd, released, schema

_DATASET = flags.DEFINE_enum(
    "dataset", None, ["nsd", "algonauts", "released"], "What --source holds."
)
_SOURCE = flags.DEFINE_string(
    "source", None, "Folder (nsd, algonauts) or file (released) as distributed."
)
_OUT = flags.DEFINE_string("out", None, "Store to write, usually NAME.zarr.")
_IMAGES = flags.DEFINE_string(
    "images", None, "Pictures, where they lie elsewhere than the dataset puts them."
)
_SUBJECTS = flags.DEFINE_list(
    "subjects", [], "For example subj01,subj02. Default: all that are on disk."
)
_SPACE = flags.DEFINE_enum(
    "space", "fsaverage", ["fsaverage", "func1pt8mm"], "nsd: which betas to read."
)
_BETAS = flags.DEFINE_string(
    "betas", "betas_fithrf_GLMdenoise_RR", "nsd: version of the betas."
)
_MASK = flags.DEFINE_string(
    "mask",
    None,
    "nsd: name of an ROI, or a NIfTI file, that selects voxels. Default: nsdgeneral "
    "(on fsaverage together with nsdgeneralRSC where it is on disk).",
)
_SESSIONS = flags.DEFINE_list("sessions", [], "nsd: numbers. Default: all on disk.")
_VAL = flags.DEFINE_float(
    "val_fraction",
    None,
    "Share of the pictures outside the test set for validation. Default: 0.05, or "
    "what the file says (released).",
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the choice of validation pictures.")
_PX = flags.DEFINE_integer("image_px", 224, "Side of the stored pictures, pixels.")
_EXCLUDE = flags.DEFINE_list(
    "exclude", [], "Ids of pictures to leave out, for example nsd/00013,nsd/07777."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a store at --out.")
_CHECK = flags.DEFINE_bool("check", False, "Only read and report.")


# Flags that not every dataset knows.
_KNOWN_BY = {
    "images": ("nsd", "released"),
    "space": ("nsd",),
    "betas": ("nsd",),
    "mask": ("nsd",),
    "sessions": ("nsd",),
}


def open_dataset() -> schema.Dataset:
    """The dataset that the flags name, opened and checked."""
    source = str(_SOURCE.value)
    shared = {"subjects": tuple(_SUBJECTS.value) or None, "seed": _SEED.value}
    if _VAL.value is not None:
        shared["val_fraction"] = _VAL.value
    if _DATASET.value == "nsd":
        try:
            sessions = tuple(int(s) for s in _SESSIONS.value) or None
        except ValueError as error:
            raise errors.ConfigError(
                "--sessions",
                "",
                ",".join(_SESSIONS.value),
                "numbers, for example 1,2,3",
                "Write numbers with commas between them.",
            ) from error
        return nsd.open_dataset(
            source,
            space=_SPACE.value,
            betas=_BETAS.value,
            mask=_MASK.value,
            sessions=sessions,
            stimuli=_IMAGES.value,
            **shared,
        )
    if _DATASET.value == "algonauts":
        return algonauts.open_dataset(source, **shared)
    return released.open_dataset(source, images=_IMAGES.value, **shared)


def without_pictures(dataset: schema.Dataset, ids: set[str]) -> schema.Dataset:
    """The dataset less the samples of some pictures; says how many those were.

    Raises:
        errors.ConfigError: If an id is of no picture (once all subjects are read).
    """
    if not ids:
        return dataset

    def subjects():
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
    errors.check_flags(argv, _DATASET, _SOURCE, *([] if _CHECK.value else [_OUT]))
    for name, datasets in _KNOWN_BY.items():
        if flags.FLAGS[name].present and _DATASET.value not in datasets:
            raise errors.ConfigError(
                f"--{name}",
                "",
                f"given for {_DATASET.value}",
                f"it only with --dataset={' or '.join(datasets)}",
                "Leave it out.",
            )
    if _VAL.value is not None and not 0 <= _VAL.value < 1:
        raise errors.ConfigError(
            "--val_fraction", "", str(_VAL.value), "0 <= x < 1", "Change it."
        )
    if _PX.value < 14 or _PX.value % 14:
        raise errors.ConfigError(
            "--image_px", "", str(_PX.value), "a multiple of the patch, 14", "Use 224."
        )
    if not _CHECK.value:
        crowd.check_target(str(_OUT.value), _OVERWRITE.value)  # before hours of reading
    dataset = without_pictures(open_dataset(), set(_EXCLUDE.value))
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


def _check(dataset: schema.Dataset, image_px: int) -> None:
    """Reads every response and picture as for a store and reports; writes nothing."""
    splits: dict[str, tuple[str, str]] = {}
    for subject in crowd.checked_subjects(dataset, splits):
        spread = subject.responses.std(0)
        constant = subject.responses.max(0) == subject.responses.min(0)
        print(
            f"{subject.name}: {subject.responses.shape[0]} pictures, "
            f"{subject.responses.shape[1]} voxels, median SD over pictures "
            f"{np.median(spread):.3f}, {int(constant.sum())} constant"
        )
    count = sum(1 for _ in crowd.checked_pictures(dataset, splits, image_px))
    for line in dataset.report:
        print(line)
    print(f"{count} pictures; nothing was written")


if __name__ == "__main__":
    errors.run_command(main)
