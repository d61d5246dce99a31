"""Folders of simulated data: written whole or not at all, the truth beside the data.

Every simulator writes `truth/truth.json` (settings, names, what was damaged) and one
`truth/<subject>.npz` for each subject. That file is also the mark by which readers
know that no brain was measured.
"""

import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.io

from ubrain_jax import errors
from ubrain_jax.datasets import drawing, planted

# What the simulators imitate, by the names that `prepare` uses for these datasets.
TITLES = {"nsd": "NSD", "god": "fMRI-on-ImageNet", "vim1": "vim-1"}
_FORMAT = "ubrain-simulated-"


def dataset_of(source: str | os.PathLike) -> str | None:
    """Which simulator wrote a folder, or the folder that a file lies in.

    Returns:
        A key of `TITLES`; None if it is no simulated data.
    """
    folder = pathlib.Path(source)
    if not folder.is_dir():
        folder = folder.parent
    path = folder / "truth" / "truth.json"
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        start = stream.read(200)
    found = [name for name in TITLES if f'"{_FORMAT}{name}"'.encode() in start]
    return found[0] if found else None


def write_json(
    root: pathlib.Path,
    dataset: str,
    settings: Mapping[str, Any],
    subjects: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Writes truth/truth.json into a folder and returns its content."""
    truth = {
        "format": f"{_FORMAT}{dataset}",
        "version": 1,
        "settings": settings,
        "kinds": planted.KINDS,
        "categories": drawing.CATEGORIES,
        "scenes": drawing.SCENES,
        "features": planted.FEATURES,
        "subjects": subjects,
    }
    folder = root / "truth"
    folder.mkdir(exist_ok=True)
    text = json.dumps(truth, indent=1) + "\n"
    (folder / "truth.json").write_text(text, encoding="utf-8")
    return truth


def write_arrays(root: pathlib.Path, name: str, **arrays: Any) -> None:
    """Writes arrays as truth/<name>.npz into a folder."""
    folder = root / "truth"
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", **arrays)


def read(root: str | os.PathLike, name: str) -> dict[str, np.ndarray]:
    """Reads the arrays of truth/<name>.npz.

    Args:
        root: Folder that a simulator made.
        name: Of the subject, for example "subj01".

    Returns:
        The arrays by name.
    """
    with np.load(pathlib.Path(root) / "truth" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def summary(content: Mapping[str, Any]) -> list[str]:
    """Lines that tell a user what was made, from the content of truth.json."""
    lines = []
    for s in content["subjects"]:
        kinds = ", ".join(f"{n} {k}" for k, n in s["kinds"].items())
        unit = "sessions" if "sessions" in s else "trials"
        lines.append(
            f"{s['name']}: {s['voxels']} voxels ({kinds}), {s[unit]} {unit}, "
            f"median ncsnr {s['median_ncsnr']:.2f}"
        )
    return lines


def check_ranges(
    settings: Mapping[str, Any], ranges: Mapping[str, tuple[int, int]]
) -> None:
    """Refuses numbers out of their (lowest, highest), all at once.

    Raises:
        errors.ConfigError: If one is.
    """
    wrong = [
        (name, settings[name], low, high)
        for name, (low, high) in ranges.items()
        if not low <= settings[name] <= high
    ]
    if wrong:
        raise errors.ConfigError(
            "simulation",
            ", ".join(name for name, *_ in wrong),
            ", ".join(f"{name} = {value}" for name, value, *_ in wrong),
            ", ".join(f"{name} in {low}..{high}" for name, _, low, high in wrong),
            "Change the flags named here.",
        )


def noise_factors(
    noise: Sequence[float] | None, num_subjects: int
) -> tuple[float, ...]:
    """One factor for the sd of the noise of each subject; 1 for all by default.

    Raises:
        errors.ConfigError: If there is not one for each, or one is not in 0.1..10.
    """
    if noise is None:
        return (1.0,) * num_subjects
    factors = tuple(float(factor) for factor in noise)
    if len(factors) != num_subjects or not all(0.1 <= f <= 10 for f in factors):
        raise errors.ConfigError(
            "simulation",
            "noise",
            f"noise = {','.join(f'{f:g}' for f in factors)}",
            f"{num_subjects} factors in 0.1..10, one for each subject",
            "Change --noise or --subjects.",
        )
    return factors


def publish(
    out: str | os.PathLike,
    dataset: str,
    fill: Callable[[pathlib.Path], dict[str, Any]],
    overwrite: bool,
) -> dict[str, Any]:
    """Fills a new folder beside `out` and moves it there, or leaves all as it was.

    Args:
        out: Folder to make.
        dataset: Key of `TITLES`; only simulated data of the same kind is replaced.
        fill: Writes into the empty folder it is given.
        overwrite: Replace `out` if it exists.

    Returns:
        What `fill` returned.

    Raises:
        errors.OutputError: If `out` exists, or cannot be created.
    """
    out = pathlib.Path(out)
    if out.exists() and not overwrite:
        raise errors.OutputError(
            out, "", "it exists", "a new name", "Choose another, or pass --overwrite."
        )
    if out.exists() and (not out.is_dir() or dataset_of(out) != dataset):
        raise errors.OutputError(
            out,
            "",
            f"it exists and is no simulated {TITLES[dataset]}",
            "one to replace, or a new name",
            "Nothing was deleted; choose another --out.",
        )
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(
            tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent)
        )
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        truth = fill(new)
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    except OSError as error:
        raise errors.OutputError(
            out,
            "",
            error.strerror or str(error),
            "a folder that can be written",
            "Choose another place or free some space.",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return truth


def write_mat(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes variables as MATLAB v5, without the date that scipy puts there."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, dict(content), format="5")
    text = b"MATLAB 5.0 MAT-file, written by ubrain_jax"
    path.write_bytes(text.ljust(116) + buffer.getvalue()[116:])
