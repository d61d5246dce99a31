"""Finds pictures that go by their ImageNet name, such as n01443537_22563.JPEG."""

import filecmp
import os
import pathlib
import re

from PIL import Image

from ubrain_jax import errors
from ubrain_jax.datasets import pictures, schema

_CATEGORY = re.compile(r"n\d{8}")


def find_pictures(
    folder: str | os.PathLike, wanted: set[str], report: list[str]
) -> dict[str, pathlib.Path]:
    """Finds pictures by name below a folder.

    Args:
        folder: Searched with all below it, links to folders included, but for those
            named like an ImageNet category of which no picture is wanted.
        wanted: Names without ending.
        report: Gets a line if some pictures lie there twice.

    Returns:
        File by name, in the order of names. Of identical files the first.

    Raises:
        errors.MissingInputError: If there is no folder, or pictures are missing.
        errors.InputError: If two files of one name differ.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise errors.MissingInputError(
            folder,
            "",
            "no such folder",
            "the folder of the pictures",
            "Check the path.",
        )
    categories = {stem.partition("_")[0] for stem in wanted}
    known = Image.registered_extensions().items()
    endings = {ending for ending, kind in known if kind in pictures.FORMATS}
    found: dict[str, list[pathlib.Path]] = {}
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(
            f for f in folders if f in categories or not _CATEGORY.fullmatch(f)
        )
        for name in sorted(names):
            stem, ending = os.path.splitext(name)
            if stem in wanted and ending.lower() in endings:
                found.setdefault(stem, []).append(pathlib.Path(place, name))
    missing = [stem for stem in sorted(wanted) if stem not in found]
    if missing:
        raise errors.MissingInputError(
            folder,
            "",
            f"{len(missing)} of {len(wanted)} pictures missing: "
            f"{schema.shorten(missing)}",
            "a picture file for each",
            "Get the stimuli from the lab, or from ImageNet (Fall 2011).",
        )
    twice = {stem: paths for stem, paths in found.items() if len(paths) > 1}
    differ = [
        " and ".join(schema.inside(p, folder) for p in paths)
        for paths in twice.values()
        if not all(filecmp.cmp(paths[0], p, shallow=False) for p in paths[1:])
    ]
    if differ:
        raise errors.InputError(
            folder,
            "",
            f"{len(differ)} names stand for different files: "
            f"{schema.shorten(differ, '; ', most=5)}",
            "one picture a name",
            "Give a folder with one set of pictures.",
        )
    if twice:
        report.append(f"{len(twice)} pictures lie in several identical files")
    return {stem: found[stem][0] for stem in sorted(wanted)}
