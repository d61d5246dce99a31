"""Maps of voxels as a BIDS derivative: NIfTI, GIFTI and CIFTI, each with a sidecar.

A file each, in the subject's own space: volumes as .nii.gz; surfaces as .func.gii and
.label.gii of each hemisphere, fsLR also as .dscalar.nii and .dlabel.nii. Names and
colours travel with labels. Predictions of many images are written by `brain` instead.

References:
    BIDS 1.10, derivatives: imaging (dseg, hemi, den); BEP 41 (stat, statmap).
"""

import gzip
import json
import os
import pathlib
import re
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from matplotlib import colors
from nibabel.cifti2 import cifti2, cifti2_axes
from nibabel.gifti import gifti

import ubrain_jax
from ubrain_jax import errors, whole
from ubrain_jax.maps import brain, shades, surface, volume
from ubrain_jax.model import bundle

DESCRIPTION = "dataset_description.json"
BIDS_VERSION = "1.10.0"
# Key 0 of every table: no label. Workbench and FreeSurfer know it by this name.
NONE, _CLEAR = "???", (1.0, 1.0, 1.0, 0.0)
# Spaces by their name in BIDS, and vertices of a hemisphere.
_SPACES = {
    "fsaverage": ("fsaverage", "164k"),
    "fsaverage6": ("fsaverage", "41k"),
    "fsaverage5": ("fsaverage", "10k"),
    "fsLR32k": ("fsLR", "32k"),
}
_PRIMARY = ("CortexLeft", "CortexRight")
_CORTEX = ("CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT")

Labels = tuple[np.ndarray, Sequence[str], Sequence[str] | None]


class _Map(NamedTuple):
    """One map, checked.

    Attributes:
        name: As given.
        word: Letters and digits of it, for names of files.
        values: (V,) float32, NaN where there is none; or int32 keys, 0 for none.
        names: Of keys 1..K; empty if values are numbers.
        rgba: (K, 4) colours of them in 0..1.
        unit: Of numbers; may be empty.
    """

    name: str
    word: str
    values: np.ndarray
    names: tuple[str, ...]
    rgba: np.ndarray
    unit: str


def write(
    folder: str | os.PathLike,
    subject: bundle.Subject,
    maps: Mapping[str, np.ndarray] | None = None,
    labels: Mapping[str, Labels] | None = None,
    *,
    desc: str = "ubrain",
    units: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
    template: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> list[pathlib.Path]:
    """Writes maps of one subject, all files whole or none.

    Args:
        folder: A BIDS derivative; made if absent. Subjects are written one by one.
        subject: Whose voxels they are; its attributes say where they are.
        maps: (V,) numbers by name; NaN: none.
        labels: By name: (V,) whole numbers that count the names, negative or NaN:
            none; K names; K colours, or None for `shades.palette`. In the files
            label k has key k + 1, and 0 is no label.
        desc: What made them, a word of letters and digits.
        units: Of maps, by name.
        about: What else every sidecar should say.
        template: Of grayordinates; see `surface.sides`.
        overwrite: Whether maps of the same subject that are there are replaced, all.

    Returns:
        Files that were written.

    Raises:
        errors.ConfigError: If names leave no word, or two the same.
        errors.InputError: If values are none, or the subject does not say where its
            voxels are.
        errors.OutputError: If something is there already, or cannot be written.
    """
    folder = pathlib.Path(folder)
    said = str(folder)
    found = _checked(said, subject, maps or {}, labels or {}, units or {})
    who, made_by = _word(said, "subject", subject.name), _word(said, "desc", desc)
    space = brain.space_of(subject)
    if not space:
        raise errors.InputError(
            folder,
            subject.name,
            "its attributes name no grid and no vertices (space: "
            f"{subject.attrs.get('space', 'not said')!r})",
            "a subject in a volume or on a surface",
            "Prepare its store again with --mask, or --position and --space.",
        )
    told = {**_about(subject, made_by, desc), **(about or {})}
    begin = f"sub-{who}"
    if space == "volume":
        files = _volumes(said, begin, subject, found, made_by, told)
    else:
        files = _surfaces(said, begin, subject, found, made_by, told, template)
    _place(folder, begin, subject.name, files, overwrite)
    return [folder / name for name in files]


# 1. Checks -------------------------------------------------------------------------


def _word(said: str, what: str, text: str) -> str:
    """Letters and digits of a name, all that BIDS allows.

    Example:
        >>> _word("x", "map", "noise_normalised r²")
        'noisenormalisedr2'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    word = re.sub("[^0-9A-Za-z]", "", plain)
    if not word:
        raise errors.ConfigError(
            said,
            what,
            f"{text!r} has no letter and no digit",
            "some a-z, A-Z, 0-9: names of files in BIDS have nothing else",
            "Give it another name.",
        )
    return word[:64]


def _checked(
    said: str,
    subject: bundle.Subject,
    maps: Mapping[str, np.ndarray],
    labels: Mapping[str, Labels],
    units: Mapping[str, str],
) -> list[_Map]:
    """All maps, their values checked."""
    if not maps and not labels:
        raise errors.ConfigError(said, "", "no maps", "a map or labels", "Pass some.")
    count, found = len(subject.position), []
    if not count:
        raise errors.InputError(said, subject.name, "no voxels", "some", "Pass some.")
    none = np.zeros((0, 4))
    for name, values in maps.items():
        values = _shaped(said, name, values, count).astype(np.float32)
        if np.isinf(values).any():
            some = f"{int(np.isinf(values).sum())} values are infinite"
            raise errors.InputError(said, name, some, "numbers or NaN", "Mend them.")
        word = _word(said, "map", name)
        found.append(_Map(name, word, values, (), none, units.get(name, "")))
    for name, (label, names, colours) in labels.items():
        where = f"{said}: {name}"
        names, colours = shades.checked(where, names, colours)
        label = _shaped(said, name, label, count)
        key = shades.whole_labels(label, where, len(names)) + 1
        # FreeSurfer tells labels by colour alone, so no two are quite the same.
        rgba = colors.to_rgba_array(shades.unique(colours))
        word = _word(said, "labels", name)
        key = key.astype(np.int32)
        found.append(_Map(name, word, key, tuple(names), rgba, ""))
    seen: dict[tuple[str, bool], str] = {}
    for one in found:
        # Some disks take a for A.
        before = seen.setdefault((one.word.lower(), bool(one.names)), one.name)
        if before is not one.name:
            raise errors.ConfigError(
                said,
                "maps",
                f"{before!r} and {one.name!r} would be one file, {one.word}",
                "names that differ in their letters and digits",
                "Rename one.",
            )
    return found


def _shaped(said: str, name: str, values: Any, count: int) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (count,) or not (
        np.issubdtype(values.dtype, np.number) or values.dtype == bool
    ):
        raise errors.InputError(
            said,
            name,
            f"{values.dtype} of shape {values.shape}",
            f"({count},) numbers, one a voxel",
            "Pass the values of one subject.",
        )
    return values


def _about(subject: bundle.Subject, word: str, desc: str) -> dict[str, Any]:
    """What every sidecar says."""
    return {
        "GeneratedBy": [_generator()],
        "Subject": subject.name,
        "Dataset": str(subject.attrs.get("dataset", "not said")),
        "SpatialReference": str(subject.attrs.get("space", "not said")),
        "NumVoxels": len(subject.position),
        **({"Desc": desc} if desc != word else {}),
        **({"Simulated": True} if subject.attrs.get("simulated") else {}),
    }


def _generator() -> dict[str, str]:
    return {"Name": "ubrain_jax", "Version": ubrain_jax.__version__}


# 2. Files of all kinds -------------------------------------------------------------


def _stem(begin: str, middle: str, one: _Map, desc: str, folded: str = "") -> str:
    """Path of a file in the order of entities that BIDS has.

    Example:
        >>> one = _Map("r", "r", np.zeros(0), (), np.zeros((0, 4)), "")
        >>> _stem("sub-a", "_space-fsaverage", one, "ubrain", "_den-164k")
        'sub-a/func/sub-a_space-fsaverage_den-164k_stat-r_desc-ubrain_statmap'
        >>> _stem("sub-a", "_space-orig", one._replace(names=("c",)), "x", "_den-1k")
        'sub-a/anat/sub-a_space-orig_seg-r_den-1k_desc-x_dseg'
    """
    if one.names:
        name = f"{begin}{middle}_seg-{one.word}{folded}_desc-{desc}_dseg"
        return f"{begin}/anat/{name}"
    name = f"{begin}{middle}{folded}_stat-{one.word}_desc-{desc}_statmap"
    return f"{begin}/func/{name}"


def _sidecar(told: Mapping[str, Any], one: _Map, **more: Any) -> bytes:
    """What a file says of itself."""
    kind = {"Labels": list(one.names)} if one.names else {}
    empty = "0: no label, or no voxel" if one.names else "NaN: no value, or no voxel"
    unit = {"Units": one.unit} if one.unit else {}
    text = {"Map": one.name, **kind, **unit, "Background": empty, **told, **more}
    done = json.dumps(text, indent=1, allow_nan=False, default=str) + "\n"
    return done.encode(errors="replace")


def _tables(stem: str, one: _Map) -> dict[str, bytes]:
    """Names and colours of labels, as BIDS and as FreeSurfer read them."""
    tsv = ["index\tname\tcolor", "0\tBackground\t#ffffff"]
    lut = [f"0 {NONE} 0 0 0 0"]
    for key, (name, rgba) in enumerate(zip(one.names, one.rgba, strict=True), 1):
        words = name.split()  # no tabs and no new lines
        tsv.append(f"{key}\t{' '.join(words) or key}\t{colors.to_hex(rgba)}")
        red, green, blue = np.rint(rgba[:3] * 255).astype(int)
        # FreeSurfer takes the first word for the name.
        lut.append(f"{key} {'_'.join(words) or key} {red} {green} {blue} 0")
    return {
        f"{stem}{ending}": ("\n".join(lines) + "\n").encode(errors="replace")
        for ending, lines in ((".tsv", tsv), (".ctab", lut))
    }


def _place(
    folder: pathlib.Path,
    begin: str,
    name: str,
    files: Mapping[str, bytes],
    overwrite: bool,
) -> None:
    """Puts files of a subject in the derivative, or the derivative around them."""
    needs = "a derivative of ours, or a new name"

    def fault(where: os.PathLike, found: str, action: str) -> errors.OutputError:
        return errors.OutputError(where, "", found, needs, action)

    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise fault(folder, "is no folder", "Choose another folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        with whole.folder(folder) as partial:
            (partial / DESCRIPTION).write_bytes(_description())
            (partial / ".bidsignore").write_bytes(b"*.ctab\n*_statmap.*\n")
            _fill(partial, files)
        return
    if not _is_ours(folder):
        found = f"exists, and its {DESCRIPTION} does not name ubrain_jax"
        raise fault(folder, found, "Choose another folder; nothing was changed.")
    own = folder / begin
    other = _owner(own)
    if own.is_symlink() or other not in (None, name):
        found = f"holds maps of {other!r}, not of {name!r}"
        raise fault(own, found, "Choose another folder; nothing was changed.")
    there = [file for file in files if (folder / file).exists()]
    if there and not overwrite:
        found = f"exists, and {len(there) - 1} more" if len(there) > 1 else "exists"
        raise fault(folder / there[0], found, "Change desc, or allow to overwrite.")
    with whole.folder(own) as partial:
        if own.is_dir():
            shutil.copytree(own, partial, dirs_exist_ok=True)
        _fill(partial, {f.removeprefix(f"{begin}/"): b for f, b in files.items()})


def _fill(folder: pathlib.Path, files: Mapping[str, bytes]) -> None:
    for file, data in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)


def _description() -> bytes:
    told = {
        "Name": "Maps of voxels by the Universal Brain Encoder",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [_generator()],
    }
    return (json.dumps(told, indent=1) + "\n").encode()


def _is_ours(folder: pathlib.Path) -> bool:
    """Whether a folder says of itself that we made it."""
    try:
        told = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        return any(one["Name"] == "ubrain_jax" for one in told["GeneratedBy"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _owner(folder: pathlib.Path) -> str | None:
    """Whose maps a folder of a subject holds, None if there are none."""
    for path in sorted(folder.glob("*/*.json")):
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["Subject"])
        except (OSError, ValueError, KeyError, TypeError):
            return f"something that {path.name} does not tell"
    return None


# 3. Volumes ------------------------------------------------------------------------


def _volumes(
    said: str,
    begin: str,
    subject: bundle.Subject,
    maps: Sequence[_Map],
    desc: str,
    told: Mapping[str, Any],
) -> dict[str, bytes]:
    """Path -> bytes of NIfTI files with what belongs to them."""
    where = volume.place(subject, said)
    space = str(subject.attrs.get("space", ""))
    # A text about the space, or none, is no word of a name.
    space = space if re.fullmatch("[0-9A-Za-z]{1,64}", space) else "individual"
    files: dict[str, bytes] = {}
    for one in maps:
        stem = _stem(begin, f"_space-{space}", one, desc)
        files[f"{stem}.nii.gz"] = _nifti(where, one)
        known = {} if where.affine is not None else {"Millimetres": "not known"}
        files[f"{stem}.json"] = _sidecar(told, one, **known)
        files.update(_tables(stem, one) if one.names else {})
    return files


def _nifti(where: volume.Place, one: _Map) -> bytes:
    """A compressed volume of one map."""
    empty = 0 if one.names else np.nan
    values = np.full(int(np.prod(where.grid)), empty, one.values.dtype)
    values[where.index] = one.values
    known = where.affine is not None
    # NIfTI-1 counts to 32,767.
    kind = nib.Nifti1Image if max(where.grid) < 2**15 else nib.Nifti2Image
    image = kind(values.reshape(where.grid, order="F"), where.affine)
    image.set_sform(where.affine, code=2 if known else 0)
    image.set_qform(where.affine, code=2 if known else 0)
    image.header.set_xyzt_units("mm" if known else "unknown")
    if one.names:
        image.header.set_intent("label", name=one.word[:15])
    return gzip.compress(image.to_bytes(), mtime=0)


# 4. Surfaces -----------------------------------------------------------------------


def _surfaces(
    said: str,
    begin: str,
    subject: bundle.Subject,
    maps: Sequence[_Map],
    desc: str,
    told: Mapping[str, Any],
    template: str | os.PathLike | None,
) -> dict[str, bytes]:
    """Path -> bytes of GIFTI and CIFTI files with what belongs to them."""
    sides = surface.sides(subject, said, template)
    space = str(subject.attrs.get("space"))
    known = space in _SPACES and {s.num for s in sides} == {surface.VERTICES[space]}
    name, density = _SPACES[space] if known else ("individual", "")
    den = f"_den-{density}" if density else ""
    if density:
        told = {**told, "Density": f"{sides[0].num} vertices a hemisphere"}
    axis = _brain_models(subject, sides, template) if name == "fsLR" else None
    files: dict[str, bytes] = {}
    for one in maps:
        for letter, side, primary in zip("LR", sides, _PRIMARY, strict=True):
            stem = _stem(begin, f"_hemi-{letter}_space-{name}", one, desc, den)
            ending = ".label.gii" if one.names else ".func.gii"
            files[f"{stem}{ending}"] = _gifti(side, primary, one)
        whole_stem = _stem(begin, f"_space-{name}", one, desc, den)
        if axis is not None:
            ending = ".dlabel.nii" if one.names else ".dscalar.nii"
            files[f"{whole_stem}{ending}"] = _cifti(axis, one)
        # By inheritance one sidecar is of all files that have its entities.
        lost = len(subject.position) - sum(len(side.column) for side in sides)
        more = {"NotOnCortex": lost} if lost else {}
        files[f"{whole_stem}.json"] = _sidecar(told, one, **more)
        files.update(_tables(whole_stem, one) if one.names else {})
    return files


def _xml(text: str) -> str:
    """A text without what XML cannot hold."""
    return surface.NO_XML.sub("?", text)


def _gifti(side: surface.Side, primary: str, one: _Map) -> bytes:
    """One hemisphere of one map."""
    values = np.full(side.num, 0 if one.names else np.nan, one.values.dtype)
    values[side.vertex] = one.values[side.column]
    table = gifti.GiftiLabelTable()
    for key, (name, rgba) in enumerate(_keys(one)) if one.names else ():
        label: Any = gifti.GiftiLabel(key, *rgba)
        label.label = name
        table.labels.append(label)
    array = gifti.GiftiDataArray(
        values,
        intent="NIFTI_INTENT_LABEL" if one.names else "NIFTI_INTENT_NONE",
        datatype="NIFTI_TYPE_INT32" if one.names else "NIFTI_TYPE_FLOAT32",
        encoding="GIFTI_ENCODING_B64GZ",
        meta=gifti.GiftiMetaData(Name=_xml(one.name)),
    )
    about = gifti.GiftiMetaData(AnatomicalStructurePrimary=primary)
    image = gifti.GiftiImage(meta=about, labeltable=table, darrays=[array])
    return image.to_bytes()


def _keys(one: _Map) -> list[tuple[str, tuple[float, ...]]]:
    """Name and colour of key 0, 1, ..."""
    named = zip(one.names, one.rgba.tolist(), strict=True)
    return [(NONE, _CLEAR), *((_xml(n), tuple(c)) for n, c in named)]


class _Models(NamedTuple):
    """Grayordinates, and which voxel each has.

    Attributes:
        axis: Brain models.
        row: (n,) grayordinates with a voxel.
        column: (n,) its number.
    """

    axis: cifti2_axes.BrainModelAxis
    row: np.ndarray
    column: np.ndarray


def _brain_models(
    subject: bundle.Subject,
    sides: tuple[surface.Side, surface.Side],
    template: str | os.PathLike | None,
) -> _Models:
    """Grayordinates of the template, or those vertices that have voxels."""
    if surface.is_gray(subject):
        image: Any = nib.load(os.fspath(template or ""))
        axis = image.header.get_axis(image.ndim - 1)
        return _Models(axis, subject.position[:, 1], np.arange(len(subject.position)))
    parts, columns = [], []
    for side, name in zip(sides, _CORTEX, strict=True):
        order = np.argsort(side.vertex)
        if len(order):
            vertex = side.vertex[order]
            parts.append(
                cifti2_axes.BrainModelAxis.from_surface(vertex, side.num, name)
            )
        columns.append(side.column[order])
    axis = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    return _Models(axis, np.arange(len(axis)), np.concatenate(columns))


def _cifti(models: _Models, one: _Map) -> bytes:
    """All grayordinates of one map."""
    empty = 0 if one.names else np.nan
    values = np.full((1, len(models.axis)), empty, np.float32)
    values[0, models.row] = one.values[models.column]
    name = [_xml(one.name)]
    if one.names:
        axis: Any = cifti2_axes.LabelAxis(name, [dict(enumerate(_keys(one)))])
        intent = "NIFTI_INTENT_CONNECTIVITY_DENSE_LABELS"
    else:
        axis = cifti2_axes.ScalarAxis(name)
        intent = "NIFTI_INTENT_CONNECTIVITY_DENSE_SCALARS"
    image = cifti2.Cifti2Image(values, header=(axis, models.axis))
    header: Any = image.nifti_header
    header.set_intent(intent)
    return image.to_bytes()
