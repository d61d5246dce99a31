"""Predictions on the cortical surface, as GIFTI or MGH: one file a hemisphere.

Every vertex has a value in every image: NaN where there is no voxel of the subject.
"""

import os
import pathlib
import re
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.cifti2 import cifti2, cifti2_axes
from nibabel.freesurfer import mghformat
from nibabel.gifti import gifti

from ubrain_jax import errors
from ubrain_jax.maps.sheets import Sheet
from ubrain_jax.model import bundle

# Vertices of a hemisphere, for stores whose attributes name only the space.
VERTICES = {
    "fsaverage": 163842,
    "fsaverage6": 40962,
    "fsaverage5": 10242,
    "fsLR32k": 32492,
}
GRAYORDINATES = 91282
_CORTEX = ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")
_PRIMARY = ("CortexLeft", "CortexRight")
_MGH_HEAD = mghformat.header_dtype.itemsize
# What XML 1.0 cannot hold, and halves of surrogate pairs.
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Side(NamedTuple):
    """Voxels on one hemisphere.

    Attributes:
        num: Vertices of the whole hemisphere.
        column: (K,) columns of the predictions.
        vertex: (K,) their vertices.
    """

    num: int
    column: np.ndarray
    vertex: np.ndarray


def is_gray(subject: bundle.Subject) -> bool:
    """Whether positions are grayordinates (structure, grayordinate, -1)."""
    return subject.attrs.get("dataset") == "mosaic"


def sides(
    subject: bundle.Subject, said: str, template: str | os.PathLike | None = None
) -> tuple[Side, Side]:
    """Where the voxels of a subject are, left and right.

    Args:
        subject: Its attributes name `vertices`, or a known `space`.
        said: File or flag that errors name.
        template: For grayordinates, any CIFTI-2 file of the 91,282: it tells their
            vertices. What is in no cortex is left out.

    Raises:
        errors.InputError: If the attributes or positions are of no surface, or the
            template is no such file.
    """
    attrs, action = subject.attrs, "Prepare its store again; or write .npy or .zarr."

    def fault(found: str, expected: str, action: str = action) -> errors.InputError:
        return errors.InputError(said, subject.name, found, expected, action)

    hemisphere, vertex, _ = subject.position.T
    if is_gray(subject):
        if template is None:
            raise fault(
                "positions are grayordinates, which leave out the medial wall",
                "a file that tells their vertices",
                "Pass --template=FILE: any .dscalar.nii or .dtseries.nii of "
                f"{GRAYORDINATES} grayordinates. Or write .npy or .zarr.",
            )
        nums, vertices = _read_template(template)
        inside = (vertex >= 0) & (vertex < GRAYORDINATES)
        if not inside.all():
            found = f"{int((~inside).sum())} grayordinates"
            raise fault(found, f"numbers 0..{GRAYORDINATES - 1}")
        hemisphere, vertex = vertices[vertex].T
    else:
        known: Any = (
            attrs.get("vertices") or [VERTICES.get(str(attrs.get("space")))] * 2
        )
        if len(known) != 2 or None in known:
            found = f"attributes vertices {attrs.get('vertices')!r}, space "
            raise fault(f"{found}{attrs.get('space')!r}", "the size of its surfaces")
        nums = int(known[0]), int(known[1])
        if (vertex < 0).any():
            raise fault(
                f"vertex numbers of {int((vertex < 0).sum())} voxels are not known",
                "hemisphere, vertex, -1",
                "Prepare its store again with --masks; or write .npy or .zarr.",
            )
        size = np.array(nums)[hemisphere.clip(0, 1)]
        outside = (hemisphere < 0) | (hemisphere > 1) | (vertex >= size)
        if outside.any():
            found = f"{int(outside.sum())} voxels outside of {nums[0]} and {nums[1]}"
            raise fault(f"{found} vertices", "hemisphere 0 or 1, vertex, -1")
    found = []
    for side, num in enumerate(nums):
        column = np.flatnonzero(hemisphere == side)
        own = vertex[column]
        if len(np.unique(own)) < len(own):
            count = len(own) - len(np.unique(own))
            raise fault(f"{count} voxels at the place of another", "one a vertex")
        found.append(Side(num, column, own))
    return found[0], found[1]


def _read_template(path: str | os.PathLike) -> tuple[tuple[int, int], np.ndarray]:
    """Vertices of both hemispheres; (91282, 2) hemisphere and vertex, -1 in none."""
    action = (
        f"Give a .dscalar.nii of {GRAYORDINATES} grayordinates, for example of HCP."
    )

    def fault(found: str) -> errors.InputError:
        expected = f"a CIFTI-2 file of {GRAYORDINATES} grayordinates"
        return errors.InputError(path, "", found, expected, action)

    if not pathlib.Path(path).is_file():
        raise errors.MissingInputError(path, "", "no such file", "a file", action)
    try:
        image: Any = nib.load(path)
        if not isinstance(image, cifti2.Cifti2Image):
            raise fault(f"is {type(image).__name__}")
        axis = image.header.get_axis(image.ndim - 1)
    except errors.InputError:
        raise
    except Exception as error:  # nibabel and expat raise many kinds
        raise fault(f"cannot be read ({str(error)[:200]})") from error
    if not isinstance(axis, cifti2_axes.BrainModelAxis) or len(axis) != GRAYORDINATES:
        raise fault(f"its last axis is {type(axis).__name__} of {len(axis)}")
    nums = [int(axis.nvertices.get(name, 0)) for name in _CORTEX]
    if not all(nums):
        raise fault(f"has surfaces of {', '.join(map(str, axis.nvertices)) or 'none'}")
    vertices = np.full((GRAYORDINATES, 2), -1)
    for side, name in enumerate(_CORTEX):
        inside = axis.name == name
        vertices[inside, 0], vertices[inside, 1] = side, axis.vertex[inside]
    return (nums[0], nums[1]), vertices


def paths(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Files of the left and right hemisphere, as their programs name them.

    Example:
        >>> [p.name for p in paths(pathlib.Path("a.func.gii"))]
        ['a_hemi-L.func.gii', 'a_hemi-R.func.gii']
        >>> [p.name for p in paths(pathlib.Path("a.mgh"))]
        ['lh.a.mgh', 'rh.a.mgh']
    """
    name = path.name
    if name.endswith(".func.gii"):
        stem = name.removesuffix(".func.gii")
        left, right = (f"{stem}_hemi-{h}.func.gii" for h in "LR")
    else:
        left, right = f"lh.{name}", f"rh.{name}"
    return path.with_name(left), path.with_name(right)


def sheets(
    path: pathlib.Path, where: tuple[Side, Side], image_id: list[str]
) -> list[Sheet]:
    """The files of both hemispheres.

    Args:
        path: Ends in .func.gii, .mgh or .mgz; see `paths`.
        where: From `sides`.
        image_id: M ids; GIFTI names its arrays so.
    """
    both = zip(paths(path), where, _PRIMARY, strict=True)
    if path.name.endswith(".gii"):
        return [_gifti(file, side, name, image_id) for file, side, name in both]
    return [_mgh(file, side, len(image_id)) for file, side, _ in both]


def _gifti(path: pathlib.Path, side: Side, primary: str, ids: list[str]) -> Sheet:
    """A GIFTI file with an array for each image."""
    about = gifti.GiftiMetaData(AnatomicalStructurePrimary=primary)
    text = gifti.GiftiImage(meta=about).to_xml().decode()
    counted = text.replace('NumberOfDataArrays="0"', f'NumberOfDataArrays="{len(ids)}"')
    begin, tag, rest = counted.rpartition("</GIFTI>")
    whole = np.full(side.num, np.nan, np.float32)

    def one(number: int, row: np.ndarray) -> bytes:
        whole[side.vertex] = row[side.column]
        array = gifti.GiftiDataArray(
            whole,
            intent="NIFTI_INTENT_NONE",
            datatype="NIFTI_TYPE_FLOAT32",
            encoding="GIFTI_ENCODING_B64GZ",
            meta=gifti.GiftiMetaData(Name=NO_XML.sub("?", ids[number])),
        )
        return array.to_xml()

    room = 6 * len(side.vertex) * 4 // 3 + 1000 + side.num // 50
    return Sheet(path, begin.encode(), one, (tag + rest).encode(), False, room)


def _mgh(path: pathlib.Path, side: Side, num_images: int) -> Sheet:
    """An MGH file: (vertices, 1, 1, M), big-endian."""
    header = mghformat.MGHHeader()
    header.set_data_shape((side.num, 1, 1, num_images))
    header.set_data_dtype(np.dtype(np.float32))
    both = header.binaryblock  # in the file the footer stands behind the data
    begin = both[:_MGH_HEAD].ljust(mghformat.DATA_OFFSET, b"\0")
    whole = np.full(side.num, np.nan, ">f4")

    def one(_: int, row: np.ndarray) -> bytes:
        whole[side.vertex] = row[side.column]
        return whole.tobytes()

    packed = path.name.endswith(".mgz")
    room = 6 * len(side.vertex) + whole.nbytes // 200 if packed else whole.nbytes
    return Sheet(path, begin, one, both[_MGH_HEAD:], packed, room)
