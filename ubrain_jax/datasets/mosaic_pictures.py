"""Finds the picture of each stimulus of MOSAIC in a folder of the user's.

MOSAIC distributes no stimuli. Its files name them; this looks for these names in a
folder and below. Reading a picture is the business of `pictures`.
"""

import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ubrain_jax import errors
from ubrain_jax.datasets import schema

FILMS = (".mp4", ".avi", ".mov", ".webm", ".mkv", ".mpg", ".mpeg")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")
_FRAME = re.compile(r"(.+)_frame-(\d+)_(\d+)")


class Stimulus(NamedTuple):
    """What a file says of a stimulus.

    Attributes:
        stem: Its name without ending.
        presented: File name of what was shown, "" if unknown.
        image: File name of the picture that stands for it, "" if not said.
    """

    stem: str
    presented: str
    image: str

    @property
    def is_film(self) -> bool:
        """Whether what was shown moved."""
        return self.presented.lower().endswith(FILMS)


def find(
    folder: pathlib.Path, stimuli: Mapping[str, Iterable[Stimulus]]
) -> dict[str, pathlib.Path]:
    """Files of pictures, by image id.

    A picture has the name of what was shown. For a film it has that name with the
    ending of a picture, or is the middle of its T frames, `<stem>_frame-M_T.jpg` with
    M = T // 2. Several files of one name must be identical.

    Args:
        folder: Searched at any depth.
        stimuli: For each image id all that is said of it, at least one stimulus.

    Returns:
        A file for each id.

    Raises:
        errors.MissingInputError: If pictures are missing; says how many and lists 20.
        errors.InputError: If files of one id differ.
    """
    if not folder.is_dir():
        raise errors.MissingInputError(
            folder, "", "no such folder", "a folder of pictures", "Check images."
        )
    by_name, by_stem = _list(folder)
    found: dict[str, pathlib.Path] = {}
    missing, clashes = [], []
    for image_id, group in stimuli.items():
        paths = []
        for stimulus in sorted(set(group)):
            here = _candidates(stimulus, by_name, by_stem)
            if not here:
                missing.append(stimulus.image or stimulus.presented or stimulus.stem)
            paths += [path for path in here if path not in paths]
        if len({_digest(path) for path in paths} if len(paths) > 1 else paths) > 1:
            names = ", ".join(schema.inside(path, folder) for path in paths[:3])
            clashes.append(f"{image_id} ({names})")
        if paths:
            found[image_id] = paths[0]
    if missing:
        raise errors.MissingInputError(
            folder,
            "",
            f"{len(missing)} of {len(stimuli)} pictures are missing: "
            f"{schema.shorten(missing)}",
            "a file for each stimulus, at any depth",
            "Get the stimuli from the makers of each dataset, or leave subjects out.",
        )
    if clashes:
        raise errors.InputError(
            folder,
            "",
            f"{len(clashes)} pictures have several files that differ: "
            f"{schema.shorten(clashes, '; ')}",
            "one file, or identical ones",
            "Keep the one that was shown.",
        )
    return found


def _list(
    folder: pathlib.Path,
) -> tuple[dict[str, list[pathlib.Path]], dict[str, list[pathlib.Path]]]:
    """Files by name, and pictures by stem (of a middle frame: that of the film)."""
    by_name: dict[str, list[pathlib.Path]] = {}
    by_stem: dict[str, list[pathlib.Path]] = {}
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = pathlib.Path(place, name)
            by_name.setdefault(name, []).append(path)
            stem, ending = os.path.splitext(name)
            if name.startswith(".") or ending.lower() not in PICTURES:
                continue
            frame = _FRAME.fullmatch(stem)
            if not frame:
                by_stem.setdefault(stem, []).append(path)
            elif int(frame[2]) == int(frame[3]) // 2:
                by_stem.setdefault(frame[1], []).append(path)
    return by_name, by_stem


def _candidates(
    stimulus: Stimulus,
    by_name: Mapping[str, list[pathlib.Path]],
    by_stem: Mapping[str, list[pathlib.Path]],
) -> list[pathlib.Path]:
    """Files that a stimulus may mean."""
    if stimulus.image:
        return by_name.get(stimulus.image, [])
    if stimulus.presented and not stimulus.is_film:
        name = stimulus.presented
        if name in by_name or os.path.splitext(name)[1].lower() in PICTURES:
            return by_name.get(name, [])
    return by_stem.get(stimulus.stem, [])


def _digest(path: pathlib.Path) -> bytes:
    """Hash of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
