"""Reads MOSAIC: eight fMRI datasets, 93 subjects, one HDF5 file each, one layout.

A file holds every trial as a small dataset of 91,282 grayordinates (fsLR32k cortex
and subcortex). Trials are streamed picture by picture, so that in memory are the
averaged responses and the repeats of one picture. Pictures are not distributed with
MOSAIC and come from a folder of the user's.

Not here: MOSAIC's own lists of similar pictures. Crops of one photograph under two
names stay two pictures.

References:
    Lahner et al., 2025, MOSAIC; layout: github.com/blahner/mosaic-preprocessing.
    Glasser et al., 2013, NeuroImage 80:105 (grayordinates).
    Prince et al., 2022, eLife 11:e77599 (noise ceiling).
"""

import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import (
    mosaic_betas,
    mosaic_index,
    mosaic_pictures,
    pictures,
    schema,
)

# ---------------------------------------------------------------- opening


def open_dataset(
    source: str | os.PathLike,
    *,
    images: str | os.PathLike,
    subjects: Sequence[str] | None = None,
    mask: str | os.PathLike | None = None,
    val_fraction: float = 0.05,
    seed: int = 0,
    overlap: str = "refuse",
    artificial: bool = False,
) -> schema.Dataset:
    """Opens MOSAIC files and checks everything but the responses.

    Normalisation: MOSAIC's betas come z-scored with the mean and SD of the training
    trials (NSD: of each session). Here each voxel is z-scored once more, with mean
    and SD (ddof=1) of the train-phase trials of the file, before repeats are averaged;
    test trials with the same. That changes little, and makes files alike that were
    made otherwise. The session of a trial is not in the files.

    Splits: the phase "test" of the file is "test"; of the phase "train" a share is
    "val" (`schema.share` of `seed` and the image id), the rest "train". A picture that
    is test for one subject and train for another is refused, or with
    `overlap="drop"` left out of the training of the latter, as MOSAIC does.

    Left out and counted: grayordinates that the file lists as NaN (`nan_indices`,
    `nan_indices_all`; in some files they are filled from neighbours), hold other
    values that are no numbers, or are constant in training; and, unless `artificial`,
    the stimuli that MOSAIC keeps apart as artificial: NSD-synthetic (three-digit
    names), the shapes and letters of deeprecon (.tif, .tiff).

    Pictures are called "mosaic/<name without ending>", ImageNet's "god/n01443537_22563"
    as in Generic Object Decoding, whichever dataset showed them. Names of NSD are
    COCO's; NSD showed square crops of those, which is what `images` should hold.
    For a film (BMD, HAD) stands the picture of that name, or its middle frame
    `<name>_frame-0045_0090.jpg`.

    Args:
        source: A file `sub-01_NSD.hdf5`, or a folder that holds such files at any
            depth.
        images: Folder that holds the pictures at any depth.
        subjects: For example ("sub-01_NSD",); "NSD-sub-01" and "mosaic-nsd-sub01" mean
            the same. All by default.
        mask: Which grayordinates: None is the cortex (59,412), "all" the subcortex
            too (91,282), otherwise a .npy file of 91,282 bool or of indices from 0.
        val_fraction: Share of the training pictures for validation, 0..1.
        seed: Of that share.
        overlap: "refuse" or "drop", see above.
        artificial: Keep artificial stimuli, in the split of their phase (test).

    Returns:
        The dataset; subjects are called "mosaic-nsd-sub01". The position of a voxel is
        structure (0 left cortex, 1 right cortex, 2 subcortex), grayordinate
        (0..91281), -1. There are no regions. ncsnr is of the repeats of the test
        pictures (`Moments.ncsnr`); without repeats it follows from the noise ceiling
        in the file, if that has one, else it is NaN. Reading a subject raises
        errors.InputError if its responses cannot be used.

    Raises:
        errors.MissingInputError: If files or pictures are missing.
        errors.InputError: If files disagree; all disagreements are listed.
        errors.ConfigError: If an argument is out of range.
    """
    source = pathlib.Path(source)
    folder = source.parent if source.is_file() else source
    schema.check_fractions(val_fraction=val_fraction)
    if overlap not in ("refuse", "drop"):
        raise errors.ConfigError(
            "overlap", "", f"is {overlap!r}", "'refuse' or 'drop'", "Choose one."
        )
    columns, mask_name = _read_mask(mask)
    paths, ignored = _find_files(source)
    chosen = schema.choose(list(paths), _canonical(list(paths), subjects))
    problems: list[schema.Problem] = []
    opened: dict[str, mosaic_index.File] = {}
    for name in chosen:
        file = mosaic_index.inspect(paths[name], artificial, folder, problems)
        if file:
            opened[name] = file
    schema.raise_problems(source, problems, mosaic_index.AGAIN)
    report = [f"{len(ignored)} other HDF5 files ignored: {schema.shorten(ignored)}"]
    report = report if ignored else []
    report += _resolve_overlap(opened, overlap, source)
    known = _find_pictures(opened, pathlib.Path(images))
    sources: list[dict[str, Any]] = []

    def read_subjects() -> Iterator[schema.Subject]:
        for file in opened.values():
            sources.append(schema.describe(file.path, folder))
            subject, lines = mosaic_betas.read_subject(
                file, columns, mask_name, val_fraction, seed
            )
            report.extend(f"{subject.name}: {line}" for line in lines)
            yield subject

    def read_images(image_ids: Sequence[str]) -> Iterator[np.ndarray]:
        return pictures.read_files(known, image_ids, images)

    return schema.Dataset("mosaic", read_subjects(), read_images, sources, report)


def _read_mask(mask: str | os.PathLike | None) -> tuple[np.ndarray, str]:
    """Sorted grayordinates (V,) int64 that a mask selects, and how to call it."""
    if mask is None:
        return np.arange(mosaic_index.NUM_CORTEX), "cortex"
    if os.fspath(mask) == "all":
        return np.arange(mosaic_index.NUM_GRAYORDINATES), "cortex and subcortex"
    path = pathlib.Path(mask)
    num = mosaic_index.NUM_GRAYORDINATES
    if not path.exists():
        raise errors.MissingInputError(
            mask, "", "no such file", "None, 'all' or a .npy file", "Check the mask."
        )
    problems: list[schema.Problem] = []
    array = schema.open_npy(path, path.parent, problems)
    if array is not None:
        found = ""
        whole = array.shape == (num,)
        if array.dtype == bool and whole:
            array = np.flatnonzero(array)
        elif array.dtype.kind not in "iu" or array.ndim != 1:
            found = f"{array.dtype} {array.shape}"
        elif whole and set(np.unique(array).tolist()) <= {0, 1}:
            array = np.flatnonzero(array)  # a mask of 0 and 1
        elif len(np.unique(array)) < len(array):
            found = f"{len(array) - len(np.unique(array))} indices twice"
        elif len(array) and not 0 <= array.min() <= array.max() < num:
            found = f"indices {array.min()}..{array.max()}"
        if not found and not len(array):
            found = "selects nothing"
        if found:
            expected = f"{num} bool, or indices 0..{num - 1}"
            schema.add_problem(problems, "", found, expected)
    schema.raise_problems(path, problems, "Save the mask with numpy.save.")
    return np.sort(np.asarray(array)).astype(np.int64), path.name


def _find_files(source: pathlib.Path) -> tuple[dict[str, pathlib.Path], list[str]]:
    """Files by "sub-01_NSD", by dataset, and names of other HDF5 files."""
    if not source.exists():
        raise errors.MissingInputError(
            source, "", "no such file or folder", "MOSAIC's files", "Check the path."
        )
    found: dict[str, list[pathlib.Path]] = {}
    ignored = []
    single = source.is_file()
    for path in [source] if single else sorted(source.rglob("*")):
        match = mosaic_index.FILE.fullmatch(path.stem)
        if not path.is_file() or (path.suffix not in (".hdf5", ".h5") and not single):
            continue
        if match:
            found.setdefault(f"{match[1]}_{match[2]}", []).append(path)
        else:
            ignored.append(schema.inside(path, source))
    if not found:
        raise errors.MissingInputError(
            source,
            "",
            f"no subject's file (found: {schema.shorten(ignored) or 'no HDF5 file'})",
            "sub-01_NSD.hdf5, ...",
            "Give the folder or the file of single subjects, with their names.",
        )
    problems: list[schema.Problem] = []
    for name, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(schema.inside(p, source) for p in paths)
            schema.add_problem(problems, name, f"{len(paths)} files ({names})", "one")
    schema.raise_problems(source, problems, "Move all but one elsewhere.")
    names = sorted(found, key=lambda name: name.split("_")[::-1])
    return {name: found[name][0] for name in names}, ignored


def _canonical(known: list[str], subjects: Sequence[str] | None) -> list[str] | None:
    """The subjects asked for, under the names of files where they are understood."""
    if subjects is None:
        return None
    aliases = {}
    for name in known:
        subject, dataset = name.split("_")
        full = mosaic_index.full_name(subject, dataset)
        for alias in (name, f"{dataset}-{subject}", full):
            aliases[alias.lower()] = name
    found = []
    for asked in subjects:
        match = mosaic_index.FILE.fullmatch(asked)
        asked = f"{match[1]}_{match[2]}" if match else asked
        found.append(aliases.get(asked.lower(), asked))
    return found


# ---------------------------------------------------------------- all files


def _resolve_overlap(
    opened: dict[str, mosaic_index.File], overlap: str, source: pathlib.Path
) -> list[str]:
    """Refuses pictures that are test and train, or drops them from train."""
    tested: dict[str, str] = {}
    for name, file in opened.items():
        for image, group in file.groups.items():
            if group[0].phase != "train":
                tested.setdefault(image, name)
    lines, listed = [], []
    for name, file in opened.items():
        both = [i for i, g in file.groups.items() if g[0].phase == "train"]
        both = [i for i in both if i in tested]
        listed += [f"{i}: test for {tested[i]}, train for {name}" for i in both]
        if both:
            lines.append(
                f"{file.name}: {len(both)} pictures "
                f"({sum(len(file.groups[i]) for i in both)} trials) left out of "
                "training, because another subject has them in test"
            )
        for image in both if overlap == "drop" else ():
            del file.groups[image]
    if listed and overlap == "refuse":
        raise errors.InputError(
            source,
            "",
            f"{len(listed)} times a picture is test for one subject and train for "
            f"another: {schema.shorten(listed, '; ')}",
            "each picture in one split",
            "Drop them from training (overlap 'drop') or open fewer subjects.",
        )
    problems: list[schema.Problem] = []
    for name, file in opened.items():
        num = file.trials("train")
        if num < 2:
            schema.add_problem(problems, name, f"{num} training trials left", "two")
    schema.raise_problems(source, problems, "Leave the subject out (subjects).")
    return lines


def _find_pictures(
    opened: dict[str, mosaic_index.File], folder: pathlib.Path
) -> dict[str, pathlib.Path]:
    """Files of all pictures by image id."""
    stimuli: dict[str, set[mosaic_pictures.Stimulus]] = {}
    for file in opened.values():
        for image, group in file.groups.items():
            stimuli.setdefault(image, set()).update(trial.stimulus for trial in group)
    return mosaic_pictures.find(folder, stimuli)
