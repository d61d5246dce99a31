"""Predictions in a subject's own volume, as NIfTI: (x, y, z, image).

Places without a voxel of the subject are NaN, which no prediction is; 0 would be one.
"""

import pathlib
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from ubrain_jax import errors
from ubrain_jax.maps.sheets import Sheet
from ubrain_jax.model import bundle

_MOST = 2**15 - 1  # of a side, or of images, in NIfTI-1
DESCRIPTION = "Predicted responses, ubrain_jax. NaN: no voxel. Images: .json"


class Place(NamedTuple):
    """Where V voxels are in a volume.

    Attributes:
        grid: X, Y, Z.
        affine: (4, 4) voxel to mm, or None where it is not known.
        index: (V,) place of each in the bytes of a volume, x fastest.
    """

    grid: tuple[int, int, int]
    affine: np.ndarray | None
    index: np.ndarray


def place(subject: bundle.Subject, said: str) -> Place:
    """Where the voxels of a subject are.

    Args:
        subject: Its attributes name `grid`; `affine` where it is known.
        said: File or flag that errors name.

    Raises:
        errors.InputError: If the attributes or positions are of no volume.
    """
    attrs = subject.attrs

    def fault(found: str, expected: str) -> errors.InputError:
        action = "Prepare its store again; or write .npy or .zarr."
        return errors.InputError(said, subject.name, found, expected, action)

    grid: Any = attrs.get("grid")
    if not isinstance(grid, list | tuple) or len(grid) != 3:
        raise fault(f"attribute grid is {grid!r}", "the sides of its volume")
    sides = (int(grid[0]), int(grid[1]), int(grid[2]))
    outside = ((subject.position < 0) | (subject.position >= sides)).any(1)
    if outside.any():
        found = f"{int(outside.sum())} voxels outside of its grid {list(sides)}"
        raise fault(found, "positions i, j, k in it")
    index = subject.position.astype(int) @ np.cumprod([1, *sides[:2]])
    if len(np.unique(index)) < len(index):
        found = f"{len(index) - len(np.unique(index))} voxels at the place of another"
        raise fault(found, "a place for each voxel")
    affine: Any = attrs.get("affine")
    if affine is None or isinstance(affine, str):  # a text says why there is none
        return Place(sides, None, index)
    affine = np.asarray(affine, float)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise fault(f"attribute affine is {affine.tolist()}", "4 x 4 numbers")
    if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise fault("attribute affine is singular", "one that can be inverted")
    return Place(sides, affine, index)


def sheet(path: pathlib.Path, where: Place, num_images: int) -> Sheet:
    """A NIfTI file; NIfTI-2 where NIfTI-1 cannot count the images.

    Args:
        path: Ends in .nii or .nii.gz.
        where: From `place`.
        num_images: M.
    """
    shape = (*where.grid, num_images)
    known = where.affine is not None
    kind = nib.Nifti1Image if max(shape) <= _MOST else nib.Nifti2Image
    # Codes: 2, aligned to some scan of the subject; 0, millimetres are not known.
    image = kind(np.empty((0, 0, 0, 0), "<f4"), where.affine if known else None)
    header = image.header
    header.set_data_shape(shape)
    header.set_data_dtype(np.dtype("<f4"))
    header.set_xyzt_units("mm" if known else "unknown")
    header.set_slope_inter(1, 0)
    header["descrip"] = DESCRIPTION
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    if known:
        image.set_sform(where.affine, code=2)
        image.set_qform(where.affine, code=2)
    begin = header.binaryblock + bytes(4)  # no extensions
    volume = np.full(int(np.prod(where.grid)), np.nan, "<f4")

    def one(_: int, row: np.ndarray) -> bytes:
        volume[where.index] = row
        return volume.tobytes()

    packed = path.name.endswith(".gz")
    room = 7 * len(where.index) + volume.nbytes // 200 if packed else volume.nbytes
    return Sheet(path, begin, one, b"", packed, room)
