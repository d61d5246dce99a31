"""Predictions as files that programs of the field open, chosen by their ending.

`check` refuses what cannot be written before anything is computed, `write` writes
blocks of images as they come. Places in a brain are found in `volume` and `surface`,
bytes are written by `sheets`.
"""

import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray
import zarr

import ubrain_jax
from ubrain_jax import crowd, errors
from ubrain_jax.maps import sheets, surface, volume
from ubrain_jax.model import bundle

FORMAT = "ubrain-prediction"
VOLUME = (".nii", ".nii.gz")
SURFACE = (".func.gii", ".mgh", ".mgz")
ENDINGS = (".npy", ".zarr", *VOLUME, *SURFACE)
# Bytes of predictions in a chunk of .zarr, and in memory while it fills.
_CHUNK = 2**25


class Output(NamedTuple):
    """Files of a prediction that can be written.

    Attributes:
        path: As asked for.
        files: What will be there, the sidecar last.
        sheets: How they are written; none for .zarr.
        notes: What a user must know about them.
        size: Subject, images and voxels, in words.
    """

    path: pathlib.Path
    files: list[pathlib.Path]
    sheets: list[sheets.Sheet]
    notes: list[str]
    size: str


def ending(path: str | os.PathLike) -> str:
    """Which of `ENDINGS` a path has.

    Raises:
        errors.ConfigError: If none.

    Example:
        >>> ending("out/all.nii.gz")
        '.nii.gz'
    """
    name = pathlib.Path(path).name
    for known in ENDINGS:
        if name.endswith(known) and name != known:
            return known
    raise errors.ConfigError(
        path,
        "",
        "another ending" if "." in name.strip(".") else "no ending",
        f"a name that ends in {', '.join(ENDINGS)}",
        "The ending says what is written: choose one.",
    )


def check(
    path: str | os.PathLike,
    image_id: Sequence[str],
    subject: bundle.Subject,
    *,
    voxels: np.ndarray | None = None,
    template: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> Output:
    """Refuses what cannot be written.

    Args:
        path: File to write.
        image_id: M ids of images.
        subject: Whose voxels are predicted.
        voxels: (V,) numbers of those that are; None: all of them.
        template: See `surface.sides`.
        overwrite: Whether files that exist are replaced.

    Raises:
        errors.ConfigError: If the ending is unknown, or of a space that the subject is
            not in.
        errors.OutputError: If a file exists, or there is no room.
        errors.InputError: If the subject's attributes do not say where voxels are.
    """
    path, kind, ids = pathlib.Path(path), ending(path), list(image_id)
    subject = _take(subject, voxels)
    plain, notes = len(subject.position) * 4, []
    stem = path.name.removesuffix(kind)
    sidecar = path.with_name(f"{stem}.json")
    made: list[sheets.Sheet] = []
    if kind in VOLUME:
        _check_space(path, subject, "volume")
        where = volume.place(subject, str(path))
        made = [volume.sheet(path, where, len(ids))]
        if where.affine is None:
            notes.append(
                f"millimetres of {subject.name} are not known; "
                "the file says so (sform and qform codes 0)"
            )
    elif kind in SURFACE:
        _check_space(path, subject, "surface")
        sides = surface.sides(subject, str(path), template)
        made = surface.sheets(path, sides, ids)
        lost = len(subject.position) - sum(len(side.column) for side in sides)
        if lost:
            notes.append(f"{lost} voxels are on no hemisphere and left out")
    elif kind == ".npy":
        made = [_npy(path, len(ids), len(subject.position))]
    files = [*(s.path for s in made), sidecar] if made else [path]
    _check_absent(path, files, overwrite)
    room = sum(s.room for s in made) if made else plain
    sheets.check_room(path, room * len(ids))
    size = f"{subject.name}: {len(ids)} pictures, {len(subject.position)} voxels"
    return Output(path, files, made, notes, size)


def write(
    path: str | os.PathLike,
    values: sheets.Values,
    image_id: Sequence[str],
    subject: bundle.Subject,
    *,
    voxels: np.ndarray | None = None,
    about: Mapping[str, Any] | None = None,
    template: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> Output:
    """Writes predictions, all files whole or none.

    Memory is bounded by a block, a volume and, for .zarr, a chunk of 32 MB.

    Args:
        path: Its ending is one of `ENDINGS`.
        values: Blocks of images in order: (rows, (images, V) float32).
        image_id: M ids.
        subject: Whose voxels they are.
        voxels: (V,) numbers of those that are, in their order; None: all of them.
        about: What else the sidecar, or the attributes of .zarr, should say.
        template: See `surface.sides`.
        overwrite: Whether files that exist are replaced.

    Returns:
        What was written.

    Raises:
        errors.InputError: As `check`, or if predictions are not finite.
        errors.OutputError: If it cannot be written.
    """
    output = check(
        path,
        image_id,
        subject,
        voxels=voxels,
        template=template,
        overwrite=overwrite,
    )
    subject, numbers = _take(subject, voxels), _numbers(subject, voxels)
    rows = sheets.rows_of(values, image_id, len(numbers))
    told = {**_about(subject), **(about or {})}
    if not output.sheets:
        _write_zarr(output.path, rows, list(image_id), subject, numbers, told)
        return output
    told["Files"] = [file.name for file in output.files[:-1]]
    told["Images"] = list(image_id)
    if output.path.name.endswith(".npy"):
        told["Voxels"] = {"voxel": numbers.tolist(), **_voxels(subject)}
    text = json.dumps(told, indent=1, allow_nan=False, default=str) + "\n"
    sheets.write(output.sheets, rows, output.files[-1], text)
    return output


def _numbers(subject: bundle.Subject, voxels: np.ndarray | None) -> np.ndarray:
    """(V,) numbers of the voxels that are predicted."""
    return np.arange(len(subject.position)) if voxels is None else np.asarray(voxels)


def _take(subject: bundle.Subject, voxels: np.ndarray | None) -> bundle.Subject:
    """The subject with these voxels alone."""
    chosen = _numbers(subject, voxels)
    names = ("embedding", "position", "roi", "ncsnr")
    return subject._replace(**{n: getattr(subject, n)[chosen] for n in names})


def _about(subject: bundle.Subject) -> dict[str, Any]:
    """What every file says of itself."""
    return {
        "Description": "Predicted fMRI responses, one for each image",
        "GeneratedBy": [{"Name": "ubrain_jax", "Version": ubrain_jax.__version__}],
        "Subject": subject.name,
        "Space": str(subject.attrs.get("space", "not said")),
        "Normalisation": str(subject.attrs.get("normalisation", "not said")),
        "Background": "NaN: no voxel of the subject is there",
        "NumVoxels": len(subject.position),
    }


def _voxels(subject: bundle.Subject) -> dict[str, Any]:
    """What the columns of an array without coordinates are."""
    ncsnr = subject.ncsnr.astype(float).round(6)
    return {
        "position": subject.position.tolist(),
        "ncsnr": [x if np.isfinite(x) else None for x in ncsnr.tolist()],
        "roi": {
            name: np.flatnonzero(inside).tolist()
            for name, inside in zip(subject.roi_names, subject.roi.T, strict=True)
        },
    }


def space_of(subject: bundle.Subject) -> str:
    """Whether a subject is in a "volume", on a "surface", or does not say it: "".

    Decides by the attributes `grid`, `vertices` and `space`.
    """
    if subject.attrs.get("grid"):
        return "volume"
    known = str(subject.attrs.get("space")) in surface.VERTICES
    return "surface" if subject.attrs.get("vertices") or known else ""


def _check_space(path: pathlib.Path, subject: bundle.Subject, asked: str) -> None:
    """An ending for the space that the subject's positions are in."""
    found = space_of(subject)
    if not found:
        raise errors.InputError(
            path,
            subject.name,
            f"its attributes name no grid and no vertices (space: "
            f"{subject.attrs.get('space', 'not said')!r})",
            f"a subject in a {asked}",
            "Prepare its store again: older ones do not say it, and your own data need "
            "--mask, or --position and --space=fsaverage. Or write .npy or .zarr.",
        )
    if found != asked:
        ways = VOLUME if found == "volume" else SURFACE
        raise errors.ConfigError(
            path,
            subject.name,
            f"a {asked} is asked for, the subject is in a {found}",
            f"one of {', '.join((*ways, '.npy', '.zarr'))}",
            "Choose another ending.",
        )


def _check_absent(
    path: pathlib.Path, files: Sequence[pathlib.Path], overwrite: bool
) -> None:
    """Files that exist are replaced on request; folders only if they are ours."""
    there = [f for f in files if f.exists() or f.is_symlink()]
    if there and not overwrite:
        raise errors.OutputError(
            ", ".join(map(str, there)),
            "",
            "exists" if len(there) == 1 else "exist",
            "a new name",
            "Choose another --out or pass --overwrite.",
        )
    folder = path.name.endswith(".zarr")
    foreign = [f for f in there if not (_is_ours(f) if folder else f.is_file())]
    if foreign:
        raise errors.OutputError(
            ", ".join(map(str, foreign)),
            "",
            "exists and is no prediction" if folder else "is no file",
            "a prediction to replace or a new name",
            "Nothing was deleted; choose another --out.",
        )


def _is_ours(folder: pathlib.Path) -> bool:
    """Whether a folder says of itself that it is a prediction."""
    try:
        node = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
        return node["attributes"]["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _npy(path: pathlib.Path, num_images: int, num_voxels: int) -> sheets.Sheet:
    """float32 (M, V), as numpy.save writes it."""
    told = {"descr": "<f4", "fortran_order": False, "shape": (num_images, num_voxels)}
    begin = io.BytesIO()
    np.lib.format.write_array_header_1_0(begin, told)

    def one(_: int, row: np.ndarray) -> bytes:
        return row.astype("<f4").tobytes()

    return sheets.Sheet(path, begin.getvalue(), one, b"", False, 4 * num_voxels)


def _write_zarr(
    path: pathlib.Path,
    rows: Iterator[np.ndarray],
    ids: list[str],
    subject: bundle.Subject,
    numbers: np.ndarray,
    told: Mapping[str, Any],
) -> None:
    """`response` (image, voxel) with the coordinates of `UniversalEncoder.predict`."""
    coordinates: dict[str, Any] = {
        "image": ("image", np.asarray(ids, object)),
        "voxel": ("voxel", numbers),
        "ncsnr": ("voxel", subject.ncsnr),
    }
    for axis, values in zip("xyz", subject.position.T, strict=True):
        coordinates[axis] = ("voxel", values)
    for name, inside in zip(subject.roi_names, subject.roi.T, strict=True):
        # Zarr would take a slash for a folder.
        coordinates[f"roi_{name.replace('/', '|')}"] = ("voxel", inside)
    attrs = {"format": FORMAT, "version": 1, **told}
    table = xarray.Dataset(coords=coordinates, attrs=attrs)
    crowd.write_xarray(table, path, _filling((len(ids), len(numbers)), rows))


def _filling(
    shape: tuple[int, int], rows: Iterator[np.ndarray]
) -> Callable[[zarr.Group], None]:
    """What adds the predictions to the group, a chunk at a time."""

    def fill(group: zarr.Group) -> None:
        chunk = max(1, min(shape[0], _CHUNK // (4 * shape[1])))
        array = group.create_array(
            "response",
            shape=shape,
            dtype=np.float32,
            chunks=(chunk, shape[1]),
            fill_value=np.nan,
            dimension_names=("image", "voxel"),
        )
        block, start = np.empty((chunk, shape[1]), np.float32), 0
        for number, row in enumerate(rows):
            block[number - start] = row
            if number - start == chunk - 1 or number == shape[0] - 1:
                array[start : number + 1] = block[: number + 1 - start]
                start = number + 1

    return fill
