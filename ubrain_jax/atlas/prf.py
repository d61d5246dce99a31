"""Receptive fields from attention beside those measured in the scanner.

NSD mapped the population receptive field (pRF) of every voxel in a session of its own.
Its files are read at the voxels of a subject of the encoder, and both are compared.
Nothing here trains anything: the files tell how far attention can be trusted.

References:
    Allen et al., 2022, Nature Neuroscience 25:116; NSD data manual, "Functional data
    (pRF, fLoc)": units, NaN, names of files.
    Fisher & Lee, 1983, Biometrika 70:327 (correlation of angles).
"""

import os
import pathlib
from typing import NamedTuple

import numpy as np
import scipy.stats

from ubrain_jax import errors
from ubrain_jax.atlas import fields
from ubrain_jax.datasets import files
from ubrain_jax.maps import surface, volume
from ubrain_jax.model import bundle

NSD_DEGREES = 8.4  # side of NSD's pictures, degrees of visual angle
QUANTITIES = ("angle", "eccentricity", "size", "R2")
_SIDES = ("lh", "rh")
_TOLERANCE = 0.01  # mm, between the affine of a file and that of a subject


class Measured(NamedTuple):
    """pRFs measured at V voxels; NaN where nothing was.

    Attributes:
        angle: (V,) radians in -pi..pi, counter-clockwise from the right.
        eccentricity: (V,) degrees of visual angle from the middle of the picture.
        size: (V,) standard deviation, degrees.
        r2: (V,) share of the variance that the pRF explains, at most 1.
        files: What was read.
    """

    angle: np.ndarray
    eccentricity: np.ndarray
    size: np.ndarray
    r2: np.ndarray
    files: tuple[pathlib.Path, ...]


class Agreement(NamedTuple):
    """How well fields agree with measured ones, over `num` voxels; NaN if under 3.

    Attributes:
        num: Voxels compared.
        num_weak: Left out: measured R2 too low, or no measurement.
        num_outside: Of the others, left out: measured centre outside the picture.
        num_unfitted: Of the others, left out: no field was found.
        angle: Correlation of angles, -1..1 (Fisher & Lee); a turn of all does not
            lower it.
        angle_error: Median absolute difference of angles, degrees.
        eccentricity: Spearman's correlation.
        size: Spearman's correlation.
        distance: Median distance of centres, degrees of visual angle.
        distance_middle: The same if every field lay in the middle of the picture.
    """

    num: int
    num_weak: int
    num_outside: int
    num_unfitted: int
    angle: float = np.nan
    angle_error: float = np.nan
    eccentricity: float = np.nan
    size: float = np.nan
    distance: float = np.nan
    distance_middle: float = np.nan


def find(source: str | os.PathLike, subject: bundle.Subject) -> pathlib.Path | None:
    """Folder of the measured pRFs of a subject of NSD, as NSD is distributed.

    Those of a volume are in nsddata/ppdata/subjAA/func1pt8mm. On fsaverage NSD has
    none: map the native ones there (nsdcode) as lh.prfangle.mgz, ... and give their
    folder to `read`.

    Args:
        source: Folder that holds nsddata.
        subject: Of the encoder, named nsd-subjAA.

    Returns:
        The folder; None if it holds no angles, or the subject is none of NSD.
    """
    dataset, _, name = subject.name.partition("-")
    if dataset != "nsd" or not subject.attrs.get("grid"):
        return None
    space = str(subject.attrs.get("space"))
    if not (bundle.is_name(name) and bundle.is_name(space)):
        return None
    folder = pathlib.Path(source) / "nsddata/ppdata" / name / space
    return folder if (folder / "prf_angle.nii.gz").is_file() else None


def read(folder: str | os.PathLike, subject: bundle.Subject) -> Measured:
    """Reads measured pRFs at the voxels of a subject.

    Args:
        folder: Holds prf_angle.nii.gz, prf_eccentricity.nii.gz, prf_size.nii.gz and
            prf_R2.nii.gz of the subject's grid; or, for a subject on a surface,
            lh.prfangle.mgz, rh.prfangle.mgz, ... of its vertices. Units are NSD's:
            angle in 0..360 degrees counter-clockwise from the right, eccentricity and
            size in degrees, R2 in percent.
        subject: Of the encoder.

    Returns:
        One pRF for each voxel. A voxel without an angle has eccentricity 0 in NSD: its
        angle alone is NaN.

    Raises:
        errors.MissingInputError: If a file is missing.
        errors.InputError: If one is damaged, of another grid or surface, or holds
            what is no such quantity.
    """
    folder = pathlib.Path(folder)
    in_volume = bool(subject.attrs.get("grid"))
    take = _of_volume if in_volume else _of_surface
    found = {name: take(folder, name, subject) for name in QUANTITIES}
    values = {name: value for name, (value, _) in found.items()}
    paths = tuple(path for _, some in found.values() for path in some)
    limits = {"angle": 360, "eccentricity": np.inf, "size": np.inf}
    for name, most in limits.items():
        with np.errstate(invalid="ignore"):
            outside = (values[name] < 0) | (values[name] > most)
        if outside.any():
            raise errors.InputError(
                found[name][1][0],
                subject.name,
                f"{int(outside.sum())} voxels with a value of "
                f"{values[name][outside][0]:g}",
                f"{name} in degrees, 0 or more"
                + (f", at most {most}" if np.isfinite(most) else ""),
                "Give the files of NSD, or files in their units.",
            )
    turned = np.radians(values["angle"])
    return Measured(
        angle=np.arctan2(np.sin(turned), np.cos(turned)),
        eccentricity=values["eccentricity"],
        size=values["size"],
        r2=values["R2"] / 100,
        files=paths,
    )


def compare(
    found: fields.Fields,
    measured: Measured,
    *,
    least_r2: float = 0.1,
    kept: np.ndarray | None = None,
) -> Agreement:
    """Compares fields with measured ones where these can be trusted.

    Args:
        found: V fields; their `degrees` must be known.
        measured: Of the same voxels.
        least_r2: Voxels with a measured R2 below are left out.
        kept: (V,) bool, other voxels are not looked at, for example those of a region
            or those that are predicted well; None: all.

    Raises:
        errors.InputError: If the numbers of voxels differ, or `degrees` is NaN.
    """
    if len(found.x) != len(measured.angle) or not np.isfinite(found.degrees):
        raise errors.InputError(
            "fields",
            "",
            f"{len(found.x)} fields in a picture of {found.degrees:g} degrees, "
            f"{len(measured.angle)} measured ones",
            "as many, and the side of the picture in degrees",
            f"Fit with degrees= (NSD: {NSD_DEGREES}).",
        )
    left = np.ones(len(found.x), bool) if kept is None else np.asarray(kept, bool)
    x = measured.eccentricity * np.cos(measured.angle)  # (V,) degrees, to the right
    y = measured.eccentricity * np.sin(measured.angle)  # up
    with np.errstate(invalid="ignore"):
        sound = (measured.r2 >= least_r2) & np.isfinite(x + measured.size)
        inside = np.maximum(np.abs(x), np.abs(y)) <= found.degrees / 2
    fitted = np.isfinite(found.x)
    some = left & sound & inside & fitted
    nothing = Agreement(
        num=int(some.sum()),
        num_weak=int((left & ~sound).sum()),
        num_outside=int((left & sound & ~inside).sum()),
        num_unfitted=int((left & sound & inside & ~fitted).sum()),
    )
    if nothing.num < 3:
        return nothing
    off_x = (found.x[some] - 0.5) * found.degrees - x[some]
    off_y = (0.5 - found.y[some]) * found.degrees - y[some]
    turn = found.angle[some] - measured.angle[some]
    turn = np.abs(np.arctan2(np.sin(turn), np.cos(turn)))
    far = measured.eccentricity[some]
    return nothing._replace(
        angle=angle_correlation(found.angle[some], measured.angle[some]),
        angle_error=float(np.degrees(np.median(turn))),
        eccentricity=_spearman(found.eccentricity[some], far),
        size=_spearman(found.size[some], measured.size[some]),
        distance=float(np.median(np.hypot(off_x, off_y))),
        distance_middle=float(np.median(far)),
    )


def angle_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two sets of angles by Fisher & Lee.

    Over all pairs i, j: sum of sin(a_i - a_j) sin(b_i - b_j), divided by the root of
    the product of the sums of squares. 1: one is the other turned; -1: mirrored.

    Args:
        a: (n,) radians, finite.
        b: (n,) radians, finite.

    Returns:
        NaN where one of them does not vary.

    Example:
        >>> a = np.array([0.1, 1.5, 3.0, -2.0])
        >>> round(angle_correlation(a, a + 1), 6), round(angle_correlation(a, -a), 6)
        (1.0, -1.0)
    """
    with np.errstate(invalid="ignore"):
        both = np.mean(np.cos(a) * np.cos(b)) * np.mean(np.sin(a) * np.sin(b))
        both -= np.mean(np.cos(a) * np.sin(b)) * np.mean(np.sin(a) * np.cos(b))
        spread = [1 - np.abs(np.mean(np.exp(2j * c))) ** 2 for c in (a, b)]
    scale = np.sqrt(max(spread[0], 0) * max(spread[1], 0))
    return float(4 * both / scale) if scale > 1e-12 else np.nan


class Region(NamedTuple):
    """A quantity in a region: voxels with a value, and their quartiles."""

    num: int
    lower: float
    median: float
    upper: float


def by_region(
    values: np.ndarray, roi: np.ndarray, roi_names: tuple[str, ...]
) -> dict[str, Region]:
    """Quartiles of a quantity in each region: of sizes in V1v, V2v, ..., for example.

    Args:
        values: (V,); NaN are left out.
        roi: (V, R) bool.
        roi_names: R names.

    Returns:
        By region in the order given, those without a value left out.

    Example:
        >>> roi = np.array([[True, False], [True, False], [True, False]])
        >>> by_region(np.array([1.0, 3.0, np.nan]), roi, ("V1v", "V2v"))["V1v"].median
        2.0
    """
    found = {}
    for k, name in enumerate(roi_names):
        own = values[roi[:, k] & np.isfinite(values)]
        if len(own):
            found[name] = Region(
                len(own), *map(float, np.quantile(own, [0.25, 0.5, 0.75]))
            )
    return found


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """NaN where one does not vary."""
    if not (np.ptp(a) and np.ptp(b)):
        return np.nan
    return float(np.asarray(scipy.stats.spearmanr(a, b))[0])


def _of_volume(
    folder: pathlib.Path, name: str, subject: bundle.Subject
) -> tuple[np.ndarray, list[pathlib.Path]]:
    """Values (V,) of a NIfTI file on the subject's grid."""
    path = folder / f"prf_{name}.nii.gz"
    where = volume.place(subject, str(path))
    found = files.read_nifti(path)
    data, shape = found.data, found.data.shape
    if shape != where.grid:
        raise _other(path, f"grid {shape}", f"that of {subject.name}, {where.grid}")
    if where.affine is not None:
        off = np.abs(found.affine - where.affine).max()
        if not off < _TOLERANCE:
            raise _other(path, f"an affine {off:.3g} mm off", "the subject's affine")
    return data[tuple(subject.position.T)].astype(np.float64), [path]


def _of_surface(
    folder: pathlib.Path, name: str, subject: bundle.Subject
) -> tuple[np.ndarray, list[pathlib.Path]]:
    """Values (V,) of the MGH files of both hemispheres."""
    paths = [folder / f"{side}.prf{name}.mgz" for side in _SIDES]
    values = np.full(len(subject.position), np.nan)
    for path, side in zip(paths, surface.sides(subject, str(folder)), strict=True):
        data = files.read_mgh(path).data.reshape(-1)
        if len(data) != side.num:
            raise _other(path, f"{len(data)} values", f"one a vertex, {side.num}")
        values[side.column] = data[side.vertex]
    return values, paths


def _other(path: pathlib.Path, found: str, expected: str) -> errors.InputError:
    return errors.InputError(
        path, "", found, expected, "Give the files of this subject and space."
    )
