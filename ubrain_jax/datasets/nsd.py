"""Reads the Natural Scenes Dataset as distributed: betas, design, regions, pictures.

Each voxel is z-scored within each session over its trials (mean and SD with ddof=0, in
float64), then the presentations of a picture are averaged over the sessions used. That
is all that is done to the numbers; a scale such as NSD's percent x 300 has no effect.

Numbers of pictures are 1-based in nsd_expdesign.mat and responses.tsv and 0-based in
nsd_stim_info_merged.csv, nsd_stimuli.hdf5 and from here on. Voxels are in the C order
of the NIfTI mask (x slowest, z fastest), vertices in their own order, left before
right.

References:
    Allen et al., 2022, Nature Neuroscience 25:116.
    NSD data manual: cvnlab.slite.page/p/CT9Fwl4_hc
"""

import contextlib
import hashlib
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import algonauts, files, schema, simulated

SPACES = ("func1pt8mm", "fsaverage")
NUM_SUBJECTS = 8
# Sessions of each subject since the last three were released in August 2023.
RELEASED_SESSIONS = (40, 40, 32, 30, 40, 32, 40, 30)
# func1pt8mm grids (X, Y, Z) of subj01 ... subj08.
GRIDS = (
    (81, 104, 83),
    (82, 106, 84),
    (81, 106, 82),
    (85, 99, 80),
    (79, 97, 78),
    (85, 113, 83),
    (78, 95, 81),
    (80, 103, 78),
)
_PRF = ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4")
# Names of labels 1, 2, ... for atlases whose .ctab is not on disk.
LABELS = {
    "nsdgeneral": ("nsdgeneral",),
    "nsdgeneralRSC": ("RSC",),
    "prf-visualrois": _PRF,
    "prf-eccrois": ("ecc0pt5", "ecc1", "ecc2", "ecc4", "ecc4+"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "streams": (
        "early",
        "midventral",
        "midlateral",
        "midparietal",
        "ventral",
        "lateral",
        "parietal",
    ),
    "Kastner2015": (
        *_PRF,
        *("VO1", "VO2", "PHC1", "PHC2", "TO2", "TO1", "LO2", "LO1", "V3B", "V3A"),
        *("IPS0", "IPS1", "IPS2", "IPS3", "IPS4", "IPS5", "SPL1", "FEF"),
    ),
}
# Atlases whose labels are known by themselves; others are written ATLAS:LABEL.
PLAIN_ATLASES = ("nsdgeneral", *algonauts.PLAIN_CLASSES)
NORMALISATION = (
    "z-scored per voxel within each session over its trials (ddof=0), then averaged "
    "over the presentations of a picture; a voxel constant in a session is 0 there"
)
_HDF5 = (".hdf5", ".mat")
_SURFACE = (".mgh", ".mgz")
_BLOCK = 4096  # voxels z-scored at once: 750 trials of them are 25 MB
_HUGE = 1e6  # percent or int16; no response is larger, swapped bytes are
_AFFINE_TOLERANCE = 0.01  # mm
_AGAIN = "Download the file again, or leave the subject out (--subjects)."
_SAME = "Take all files of a subject from one release."


class Design(NamedTuple):
    """Which picture is shown when.

    Attributes:
        order: (trials,) int64, 1-based column of `lists` shown in each trial.
        lists: (8, columns) int64, 1-based picture numbers of each subject.
        shared: Sorted 0-based numbers of the pictures that all subjects see.
    """

    order: np.ndarray
    lists: np.ndarray
    shared: np.ndarray


class _Atlas(NamedTuple):
    """Labels of all voxels or vertices; 0 where there is none."""

    name: str
    labels: np.ndarray  # (X, Y, Z), or (vertices,) of lh then rh; int16
    names: dict[int, str]
    paths: list[pathlib.Path]


class _Grid(NamedTuple):
    """Where the voxels or vertices of a subject are that responses come from."""

    mask: np.ndarray  # (X, Y, Z), or (vertices,) of lh then rh; bool
    position: np.ndarray  # (V, 3) int32
    num_left: int  # vertices of lh; 0 for a volume
    affine: np.ndarray | None  # of a volume


class _Plan(NamedTuple):
    """A subject, checked, betas not read."""

    name: str
    sessions: dict[int, tuple[pathlib.Path, ...]]  # file, or files of lh and rh
    trials: dict[int, np.ndarray]  # 0-based picture of each trial, by session
    last_session: int  # in responses.tsv
    grid: _Grid
    mask_name: str
    atlases: list[tuple[str, dict[int, str], np.ndarray]]  # labels (V,)
    ncsnr: np.ndarray  # (V,)
    has_ncsnr: bool
    paths: list[pathlib.Path]  # small files read


def open_dataset(
    source: str | os.PathLike,
    *,
    subjects: Sequence[str] | None = None,
    space: str = "func1pt8mm",
    betas: str = "betas_fithrf_GLMdenoise_RR",
    mask: str | os.PathLike | None = None,
    sessions: Sequence[int] | None = None,
    val_fraction: float = 0.05,
    seed: int = 0,
    stimuli: str | os.PathLike | None = None,
) -> schema.Dataset:
    """Opens NSD and checks everything but the numbers in the betas.

    The shared pictures are the test split. Of the others a share `val_fraction` is
    for validation: which ones follows from `seed` and the number of the picture
    alone (`schema.share`), whatever subjects and sessions are read.

    Args:
        source: Folder that holds nsddata, nsddata_betas and nsddata_stimuli.
        subjects: For example ("subj01",); all with a betas folder by default.
        space: "func1pt8mm" (.hdf5, .nii.gz, or old .mat) or "fsaverage" (.mgh).
        betas: Version of the betas, the name of their folder.
        mask: Which voxels: an atlas ("nsdgeneral", "streams": any label), a region
            ("V1v", "streams:early"), or in a volume a NIfTI file of 0 and 1. None is
            nsdgeneral, on fsaverage together with nsdgeneralRSC where that exists.
        sessions: Numbers; all on disk by default.
        val_fraction: 0 <= share < 1.
        seed: Of the choice of validation pictures.
        stimuli: nsd_stimuli.hdf5, if it is elsewhere.

    Returns:
        The dataset; subjects are "nsd-subj01", pictures "nsd/00013" (0-based). While
        a subject is read, errors.InputError is raised if its betas are damaged, hold
        NaN or inf where none may be, or two sessions are the same.

    Raises:
        errors.MissingInputError: If files are missing.
        errors.InputError: If files are damaged or disagree. All faults are listed.
        errors.ConfigError: If an argument names what does not exist.
    """
    source = pathlib.Path(source)
    schema.check_fractions(val_fraction=val_fraction)
    _check_arguments(source, space, sessions)
    folders = _betas_folders(source, space, betas)
    chosen = schema.choose(list(folders), subjects)

    faults: list[errors.InputError] = []
    experiment = source / "nsddata/experiments/nsd"
    brick = _stimuli_path(source, stimuli)
    common = [experiment / "nsd_expdesign.mat", brick]
    report: list[str] = []
    design, catalogue, layout = None, None, None
    with schema.collected(faults):
        design = read_design(common[0])
    sessions_of: dict[str, dict[int, tuple[pathlib.Path, ...]]] = {}
    for name in chosen:
        with schema.collected(faults):
            sessions_of[name] = _find_sessions(folders[name], space, sessions)
    betas_files = [
        path
        for found in sessions_of.values()
        for paths in found.values()
        for path in paths
    ]
    layouts = _read_layouts(brick, betas_files)
    with schema.collected(faults):
        layout = _check_brick(brick, layouts[brick])
    table = experiment / "nsd_stim_info_merged.csv"
    if not table.exists():
        report.append(f"{table.name} is not on disk: not compared with the design")
    elif design is not None:
        with schema.collected(faults):
            catalogue = _read_catalogue(table, design)
            common.append(table)
    plans = []
    for name in chosen:
        notes: list[str] = []
        plan = _inspect(
            source,
            folders[name],
            space,
            mask,
            sessions_of.get(name),
            layouts,
            design,
            faults,
            notes,
        )
        plans += [plan] if plan else []
        report += [f"{name}: {note}" for note in notes]
    for plan in plans:
        shown = np.unique(np.concatenate(list(plan.trials.values())))
        with schema.collected(faults):
            _check_pictures(plan.name, shown, layout, brick, catalogue, table)
    _raise(source, faults)
    if design is None or layout is None:  # then there was a fault
        raise AssertionError

    attrs: dict[str, Any] = {
        "dataset": "Natural Scenes Dataset",
        "space": space,
        "betas": betas,
        "normalisation": NORMALISATION,
        "test": "the pictures shared by all subjects (sharedix)",
        "val": f"{val_fraction} of the others, by seed {seed} and picture",
    }
    if simulated.is_simulated(source):
        attrs["simulated"] = True
        report.append("these files are simulated, no brain was measured")
    described = [schema.describe(path, source) for path in common]

    def split(number: int) -> str:
        if _is_in(design.shared, number):
            return "test"
        place = schema.share(seed, image_id(number))
        return "val" if place >= 1 - val_fraction else "train"

    def read_subjects() -> Iterator[schema.Subject]:
        for plan in plans:
            yield _read_subject(plan, source, split, attrs, described, report)

    def read_images(image_ids: Sequence[str]) -> Iterator[np.ndarray]:
        return _read_images(brick, layout, image_ids)

    return schema.Dataset("nsd", read_subjects(), read_images, described, report)


def image_id(number: int) -> str:
    """Id of a picture by its 0-based NSD number.

    Example:
        >>> image_id(13)
        'nsd/00013'
    """
    return f"nsd/{number:05d}"


# ---------------------------------------------------------------- faults


def _raise(source: pathlib.Path, faults: list[errors.InputError]) -> None:
    """Raises the faults as one error; returns if there is none."""
    schema.raise_faults(source, faults, "NSD's files, complete and of one release")


# ---------------------------------------------------------------- design


def _check_arguments(
    source: pathlib.Path, space: str, sessions: Sequence[int] | None
) -> None:
    if space not in SPACES:
        raise errors.ConfigError(
            "space", "", f"is {space!r}", "a space", errors.nearest(space, SPACES)
        )
    if sessions is not None:
        wrong = [s for s in sessions if s < 1]
        if wrong or not sessions or len(set(sessions)) != len(sessions):
            raise errors.ConfigError(
                "sessions",
                "",
                f"are {list(sessions)}",
                "numbers from 1, each once",
                "Change --sessions.",
            )
    lacking = [n for n in ("nsddata", "nsddata_betas") if not (source / n).is_dir()]
    if lacking:
        found = sorted(p.name for p in source.iterdir()) if source.is_dir() else []
        raise errors.MissingInputError(
            source,
            "",
            f"no folder {', '.join(lacking)} "
            f"(found: {schema.shorten(found, most=8) or 'nothing'})",
            "the top folder of NSD",
            "Give the folder that holds nsddata, nsddata_betas and nsddata_stimuli.",
        )


def _betas_folders(
    source: pathlib.Path, space: str, betas: str
) -> dict[str, pathlib.Path]:
    """Betas folder of each subject that has one."""
    root = source / "nsddata_betas/ppdata"
    found = {
        path.parts[-3]: path
        for path in sorted(root.glob(f"subj*/{space}/*"))
        if path.name == betas and path.is_dir()
    }
    if not found:
        others = sorted(
            {f"{p.parts[-2]}/{p.name}" for p in root.glob("subj*/*/*") if p.is_dir()}
        )
        raise errors.MissingInputError(
            root,
            f"subj*/{space}/{betas}",
            f"no such folder (found: {schema.shorten(others) or 'nothing'})",
            "betas of one subject or more",
            "Pass --space and --betas as they are on disk.",
        )
    return found


def _integers(
    path: pathlib.Path, where: str, values: Any, lines: bool = False
) -> np.ndarray:
    """Numbers from a file as int64; refuses what is no whole number."""
    expected, found = "whole numbers", None
    try:
        array = np.asarray(values)
        if array.dtype.kind == "U":
            array = array.astype(np.float64)
    except ValueError:
        array = np.asarray([_number(v) for v in values])
    if array.dtype.kind not in "iuf":
        found = f"holds {array.dtype}"
    elif array.size == 0:
        found = "is empty"
    elif array.dtype.kind == "f":
        whole = np.isfinite(array) & (array == np.round(array)) & (abs(array) < 2**53)
        if not whole.all():
            at = int(np.argmin(whole.reshape(-1)))
            cell = np.asarray(values).reshape(-1)[at]
            place = f"line {at + 2}" if lines else f"place {at}"
            found = f"{str(cell)[:40]!r} in {place} is no whole number"
    if found:
        raise errors.InputError(path, where, found, expected, _AGAIN)
    return array.astype(np.int64)


def _number(cell: str) -> float:
    """The number in a cell, NaN if there is none."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def read_design(path: str | os.PathLike) -> Design:
    """Reads nsd_expdesign.mat.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is damaged, lacks a table, or its tables disagree.
    """
    path = pathlib.Path(path)
    names = ("masterordering", "subjectim", "sharedix")
    read = files.read_mat(path, names)
    faults: list[errors.InputError] = []
    tables: dict[str, np.ndarray] = {}
    for name in names:
        with schema.collected(faults):
            tables[name] = _integers(path, name, read[name])

    def fault(where: str, found: str, expected: str) -> None:
        faults.append(errors.InputError(path, where, found, expected, _AGAIN))

    for name, table in tables.items():
        if table.min() < 1:
            fault(name, f"contains {table.min()}", "MATLAB indices, which start at 1")
    _raise(path, faults)
    order, lists = tables["masterordering"].reshape(-1), tables["subjectim"]
    shared = tables["sharedix"].reshape(-1)
    if lists.ndim != 2 or lists.shape[0] != NUM_SUBJECTS:
        size = "x".join(map(str, lists.shape))
        fault("subjectim", f"is {size}", f"{NUM_SUBJECTS} rows, one a subject")
        _raise(path, faults)
    columns = lists.shape[1]
    if order.max() > columns:
        found = f"has {order.max()}; subjectim has {columns} columns"
        fault("masterordering", found, f"1..{columns}")
    for row, ids in enumerate(lists):
        num_twice = columns - len(np.unique(ids))
        if num_twice:
            where = f"subjectim row {row + 1}"
            fault(where, f"{num_twice} pictures stand there twice", "each once")
    if len(np.unique(shared)) != len(shared) or len(shared) > columns:
        found = f"{len(shared)} numbers, {len(np.unique(shared))} distinct"
        fault("sharedix", found, f"at most {columns}, each once")
    elif any(set(ids) != set(shared) for ids in lists[:, : len(shared)]):
        found = f"is not the set in the first {len(shared)} columns of subjectim"
        fault("sharedix", found, "the pictures that every subject sees")
    _raise(path, faults)
    return Design(order, lists, np.sort(shared) - 1)


def _read_catalogue(path: pathlib.Path, design: Design) -> np.ndarray:
    """Sorted 0-based numbers in nsd_stim_info_merged.csv, compared with the design."""
    table = files.read_table(path, ["nsdId", "shared1000"], ",")
    numbers = _integers(path, "nsdId", table["nsdId"], lines=True)
    flags = {"true": True, "1": True, "false": False, "0": False}
    shared = [flags.get(cell.strip().lower()) for cell in table["shared1000"]]
    if None in shared:
        at = shared.index(None)
        raise errors.InputError(
            path,
            f"line {at + 2}",
            f"shared1000 is {table['shared1000'][at]!r}",
            "True or False",
            _AGAIN,
        )
    if len(np.unique(numbers)) != len(numbers):
        raise errors.InputError(
            path, "nsdId", "numbers occur twice", "each number once", _AGAIN
        )
    differ = np.flatnonzero(np.array(shared) != np.isin(numbers, design.shared))
    if len(differ):
        at = int(differ[0])
        hint = ""
        if set(numbers[np.array(shared)] - 1) == set(design.shared):
            hint = "; its numbers look 1-based"
        raise errors.InputError(
            path,
            f"line {at + 2}",
            f"shared1000 of nsdId {numbers[at]} is {shared[at]}, not what sharedix of "
            f"nsd_expdesign.mat says ({len(differ)} lines differ{hint})",
            "one set of shared pictures, nsdId 0-based",
            _SAME,
        )
    return np.sort(numbers)


def _read_trials(
    path: pathlib.Path, subject: int, design: Design
) -> dict[int, np.ndarray]:
    """0-based pictures of the trials of each session in responses.tsv.

    Raises:
        errors.InputError: If a line disagrees with the design; names the first.
    """
    wanted = ["SUBJECT", "SESSION", "73KID", "10KID"]
    table = files.read_table(path, wanted, "\t")
    values = {name: _integers(path, name, table[name], lines=True) for name in wanted}
    session, picture, index = (values[n] for n in wanted[1:])
    num = len(session)

    def fault(at: int, found: str, expected: str) -> errors.InputError:
        return errors.InputError(path, f"line {at + 2}", found, expected, _SAME)

    other = np.flatnonzero(values["SUBJECT"] != subject)
    if len(other):
        found = f"SUBJECT is {values['SUBJECT'][other[0]]}"
        raise fault(int(other[0]), found, f"{subject}, as the folder is named")
    steps = np.diff(session, prepend=0)
    jumps = np.flatnonzero((steps < 0) | (steps > 1))
    if len(jumps):
        at = int(jumps[0])
        before = session[at - 1] if at else 0
        found = f"SESSION {session[at]} follows session {before}"
        raise fault(at, found, "sessions 1, 2, 3, ... in order")
    if num > len(design.order):
        raise errors.InputError(
            path,
            "",
            f"{num} trials; masterordering of nsd_expdesign.mat has "
            f"{len(design.order)}",
            "no more trials than the design",
            _SAME,
        )
    expected = design.lists[subject - 1, design.order[:num] - 1]
    for name, found, should in (
        ("73KID", picture, expected),
        ("10KID", index, design.order[:num]),
    ):
        differ = np.flatnonzero(found != should)
        if len(differ):
            at = int(differ[0])
            hint = ""
            if (found == should - 1).all():
                hint = "; all are one less: 0-based?"
            raise fault(
                at,
                f"{name} is {found[at]} ({len(differ)} of {num} lines disagree with "
                f"nsd_expdesign.mat{hint})",
                f"{should[at]}",
            )
    return {int(s): picture[session == s] - 1 for s in np.unique(session)}


# ---------------------------------------------------------------- pictures


def _stimuli_path(
    source: pathlib.Path, stimuli: str | os.PathLike | None
) -> pathlib.Path:
    if stimuli is None:
        return source / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    path = pathlib.Path(stimuli)
    return path / "nsd_stimuli.hdf5" if path.is_dir() else path


def _check_brick(
    path: pathlib.Path, layout: files.Layout | errors.InputError
) -> files.Layout:
    """Refuses pictures of another form."""
    if isinstance(layout, errors.InputError):
        raise layout
    shape = layout.shape
    if len(shape) != 4 or shape[3] != 3 or layout.dtype != np.uint8:
        first = len(shape) == 4 and shape[1] == 3
        hint = ", looks channels-first" if first else ""
        raise errors.InputError(
            path,
            "/imgBrick",
            f"{layout.dtype} {shape}{hint}",
            "uint8 (pictures, y, x, 3)",
            "Use nsd_stimuli.hdf5 as distributed.",
        )
    return layout


def _check_pictures(
    name: str,
    shown: np.ndarray,
    layout: files.Layout | None,
    brick: pathlib.Path,
    catalogue: np.ndarray | None,
    table: pathlib.Path,
) -> None:
    """Whether all pictures that a subject saw are there; `shown` is sorted."""
    if layout is not None and shown[-1] >= layout.shape[0]:
        raise errors.InputError(
            brick,
            "/imgBrick",
            f"has {layout.shape[0]} pictures (0..{layout.shape[0] - 1}); {name} saw "
            f"picture {shown[-1]} (0-based)",
            "every picture of the design",
            "Use nsd_stimuli.hdf5 whole, as distributed.",
        )
    if catalogue is not None:
        lacking = np.setdiff1d(shown, catalogue)
        if len(lacking):
            raise errors.InputError(
                table,
                "nsdId",
                f"lacks {len(lacking)} pictures that {name} saw, first {lacking[0]}",
                "every picture of the design",
                _SAME,
            )


def _read_images(
    path: pathlib.Path, layout: files.Layout, image_ids: Sequence[str]
) -> Iterator[np.ndarray]:
    """Streams pictures (y, x, 3) uint8, in the order asked for."""
    num, *rest = layout.shape
    rows = []
    for name in image_ids:
        match = re.fullmatch(r"nsd/(\d{5,9})", name)
        row = int(match[1]) if match else -1
        if not 0 <= row < num:
            raise errors.InputError(
                path,
                "/imgBrick",
                f"no picture {name!r}",
                f"nsd/00000 to {image_id(num - 1)}",
                "Ask for ids that the subjects list.",
            )
        rows.append(row)
    if not rows:
        return
    whole = [(0, n) for n in rest]
    blocks = [[(row, row + 1), *whole] for row in rows]
    for block in files.hdf5_blocks([path], "imgBrick", blocks):
        yield block[0]


# ---------------------------------------------------------------- betas on disk


def _find_sessions(
    folder: pathlib.Path, space: str, wanted: Sequence[int] | None
) -> dict[int, tuple[pathlib.Path, ...]]:
    """File of each session, or files of lh and rh, by number."""
    if space == "fsaverage":
        pattern, sides = r"(lh|rh)\.betas_session(\d+)\.mg[hz]", ("lh", "rh")
    else:
        pattern, sides = r"()betas_session(\d+)\.(?:hdf5|nii\.gz|nii|mat)", ("",)
    found: dict[tuple[int, str], list[pathlib.Path]] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(pattern, path.name)
        if match:
            found.setdefault((int(match[2]), match[1]), []).append(path)
    faults: list[errors.InputError] = []
    numbers = sorted({number for number, _ in found})
    for number in numbers:
        for side in sides:
            paths = found.get((number, side), [])
            if len(paths) > 1:
                names = " and ".join(p.name for p in paths)
                faults.append(
                    errors.InputError(
                        folder,
                        f"session {number}",
                        f"is there as {names}",
                        "one file a session",
                        "Move one of them away.",
                    )
                )
            if not paths and (wanted is None or number in wanted):
                faults.append(
                    errors.MissingInputError(
                        folder,
                        f"session {number}",
                        f"no {side}.betas_session{number:02d}.mgh",
                        "both hemispheres",
                        "Download it, or leave the session out (--sessions).",
                    )
                )
    if not numbers:
        names = sorted(p.name for p in folder.iterdir())
        raise errors.MissingInputError(
            folder,
            "",
            f"no betas (found: {schema.shorten(names, most=8) or 'nothing'})",
            "betas_session01.hdf5, .nii.gz or .mat; on fsaverage lh. and rh. .mgh",
            "Download the betas, or leave the subject out (--subjects).",
        )
    lacking = [s for s in wanted or () if s not in numbers]
    if lacking:
        faults.append(
            errors.MissingInputError(
                folder,
                "",
                f"no session {', '.join(map(str, lacking))} "
                f"(on disk: {_ranges(numbers)})",
                "the sessions asked for",
                "Change --sessions, or download them.",
            )
        )
    _raise(folder, faults)
    return {
        number: tuple(found[number, side][0] for side in sides)
        for number in numbers
        if wanted is None or number in wanted
    }


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers written short.

    Example:
        >>> _ranges([1, 2, 3, 5])
        '1-3, 5'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


class _Betas(NamedTuple):
    """What the header of a betas file says."""

    space: tuple[int, ...]  # (X, Y, Z) or (vertices,)
    num_trials: int
    affine: np.ndarray | None


def _read_layouts(
    brick: pathlib.Path, betas_files: Sequence[pathlib.Path]
) -> dict[pathlib.Path, files.Layout | errors.InputError]:
    """Layouts of all HDF5 files at once: one start of the process that reads them."""
    datasets = [(path, "betas") for path in betas_files if path.suffix in _HDF5]
    datasets.append((brick, "imgBrick"))
    layouts = files.hdf5_layouts(datasets)
    return {path: found for (path, _), found in zip(datasets, layouts, strict=True)}


def _headers(
    paths: Sequence[pathlib.Path],
    layouts: dict[pathlib.Path, files.Layout | errors.InputError],
    faults: list[errors.InputError],
) -> dict[pathlib.Path, _Betas]:
    """Reads the headers of betas files; those at fault are left out."""
    found: dict[pathlib.Path, _Betas] = {}

    def add(path: pathlib.Path, layout: files.Layout, affine: Any) -> None:
        shape, surface = layout.shape, path.suffix in _SURFACE
        if len(shape) == 3 and not surface:
            shape = (*shape, 1)
        flat = not surface or shape[1:3] == (1, 1)
        if len(shape) != 4 or layout.dtype.kind not in "iuf" or not flat:
            raise errors.InputError(
                path,
                "/betas" if path.suffix in _HDF5 else "",
                f"holds {layout.dtype} {_size(shape)}",
                "numbers, (vertices, 1, 1, trials)" if surface else "numbers, 4 axes",
                _AGAIN,
            )
        found[path] = _Betas(shape[:1] if surface else shape[:3], shape[3], affine)

    for path in paths:
        surface = path.suffix in _SURFACE
        with schema.collected(faults):
            if path.suffix in _HDF5:
                layout, affine = layouts[path], None
                if isinstance(layout, errors.InputError):
                    raise layout
                # MATLAB's axes are reversed in HDF5.
                layout = files.Layout(layout.shape[::-1], layout.dtype)
            else:
                read = files.mgh_header if surface else files.nifti_header
                header = read(path)
                affine = None if surface else header.affine
                layout = files.Layout(header.shape, header.dtype)
            add(path, layout, affine)
    return found


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _check_sessions(
    name: str,
    sessions: dict[int, tuple[pathlib.Path, ...]],
    layouts: dict[pathlib.Path, files.Layout | errors.InputError],
    trials: dict[int, np.ndarray] | None,
    shapes: Sequence[tuple[int, ...]] | None,
    affine: np.ndarray | None,
    faults: list[errors.InputError],
) -> None:
    """Compares the headers of all sessions with design, regions and each other.

    `shapes` are those of the regions, for each file of a session.
    """
    paths = [path for session in sessions.values() for path in session]
    headers = _headers(paths, layouts, faults)
    first: dict[int, tuple[int, tuple[int, ...]]] = {}
    for number, side, path in [
        (number, side, path)
        for number, paths in sessions.items()
        for side, path in enumerate(paths)
        if path in headers
    ]:
        space, num, own_affine = headers[path]
        before, shape = first.setdefault(side, (number, space))
        place = "Check that the file is in the right folder."
        owners = [f"subj{k + 1:02d}" for k, grid in enumerate(GRIDS) if grid == space]
        fault = None
        if owners and name not in owners:
            fault = f"{_size(space)} is {owners[0]}'s grid", f"that of {name}", place
        elif space != shape:
            found = (
                f"session {number} is {_size(space)}, session {before} is "
                f"{_size(shape)}: another subject?"
            )
            fault = found, "one shape in all sessions", place
        elif shapes is not None and space != shapes[side]:
            found = f"betas are {_size(space)}, regions {_size(shapes[side])}"
            if (num, *space[::-1])[:3] == shapes[side]:
                found += "; the axes look reversed"
            fault = found, "one grid", _SAME
        elif trials is not None and number not in trials:
            found = (
                f"session {number} is on disk; responses.tsv ends with session "
                f"{max(trials)}"
            )
            action = "Take responses.tsv of the same release, or pass --sessions."
            fault = found, "no more sessions than responses.tsv", action
        elif trials is not None and num != len(trials[number]):
            found = f"session {number} has {num} trials"
            fault = found, f"{len(trials[number])}, as responses.tsv lists", _SAME
        if fault:
            where = "/betas" if path.suffix in _HDF5 else ""
            faults.append(errors.InputError(path, where, *fault))
        with schema.collected(faults):
            _check_affine(path, own_affine, affine, "betas")


def _check_affine(
    path: pathlib.Path, found: np.ndarray | None, expected: np.ndarray | None, what: str
) -> None:
    """Refuses two files of one shape in two places; None is not compared."""
    if found is None or expected is None:
        return
    differ = float(np.abs(found - expected).max())
    if differ > _AFFINE_TOLERANCE:
        raise errors.InputError(
            path,
            "affine",
            f"{what} and regions differ by {differ:.3g} mm in the affine",
            "one space",
            _SAME,
        )


# ---------------------------------------------------------------- regions


def _read_atlases(
    source: pathlib.Path,
    name: str,
    surface: bool,
    faults: list[errors.InputError],
    notes: list[str],
) -> tuple[list[_Atlas], list[tuple[int, ...]], np.ndarray | None]:
    """All atlases on disk, the shape of their files (a side), and their affine."""
    labels = source / "nsddata/freesurfer" / name / "label"
    if surface:
        folder = source / "nsddata/freesurfer/fsaverage/label"
        ending, read, tables = ".mgz", files.read_mgh, (folder, labels)
    else:
        folder = source / "nsddata/ppdata" / name / "func1pt8mm/roi"
        ending, read, tables = ".nii.gz", files.read_nifti, (labels,)
    found: dict[str, dict[str, pathlib.Path]] = {}
    for path in sorted(folder.glob(f"*{ending}")):
        side, dot, atlas = path.name.removesuffix(ending).partition(".")
        if dot and side in ("lh", "rh"):
            found.setdefault(atlas, {})[side] = path
        elif not surface:
            found.setdefault(path.name.removesuffix(ending), {})["both"] = path
    if not found:
        faults.append(
            errors.MissingInputError(
                folder,
                "",
                f"no *{ending}",
                "regions, at least nsdgeneral",
                "Download them from nsddata.",
            )
        )
    atlases: list[_Atlas] = []
    shapes: dict[int, tuple[int, ...]] = {}
    affine = None
    for atlas, sided in found.items():
        paths = [sided["both"]] if "both" in sided else list(sided.values())
        if len(paths) == 1 and "both" not in sided:
            faults.append(
                errors.MissingInputError(
                    folder,
                    atlas,
                    f"only {paths[0].name}",
                    "both hemispheres",
                    "Download the other, or move this one away.",
                )
            )
            continue
        with schema.collected(faults):
            parts = []
            for side, path in enumerate(paths):
                volume = read(path)
                part = _labels(path, volume.data, surface)
                if part is None:
                    notes.append(f"{path.name} holds partial values: left out")
                    break
                wanted = shapes.setdefault(side if surface else 0, part.shape)
                if part.shape != wanted:
                    found_size = f"is {_size(part.shape)}"
                    expected = f"{_size(wanted)}, as {atlases[0].name}"
                    raise errors.InputError(path, "", found_size, expected, _SAME)
                if not surface:
                    affine = volume.affine if affine is None else affine
                    _check_affine(path, volume.affine, affine, "this region")
                parts.append(part)
            if len(parts) == len(paths):
                # A volume of one hemisphere holds no label in the other.
                joined = np.concatenate(parts) if surface else np.maximum.reduce(parts)
                names, table = _label_names(atlas, tables)
                atlases.append(_Atlas(atlas, joined, names, paths + table))
    return atlases, [shapes[side] for side in sorted(shapes)], affine


def _labels(path: pathlib.Path, data: np.ndarray, surface: bool) -> np.ndarray | None:
    """Labels as int16, 0 where NSD has -1 or 0; None if they are no whole numbers."""
    shape = data.shape[:1] if surface else data.shape
    action = "Move the file away, or replace it by whole labels."

    def fault(found: str) -> errors.InputError:
        return errors.InputError(path, "", found, "labels -1, 0, 1, 2, ...", action)

    if data.size != math.prod(shape) or len(shape) != (1 if surface else 3):
        raise fault(f"is {_size(data.shape)}")
    num_nan = int(np.isnan(data).sum())
    if num_nan:
        raise fault(f"holds {num_nan} NaN")
    if (data != np.round(data)).any():
        return None
    if data.min() < -1 or data.max() > np.iinfo(np.int16).max:
        raise fault(f"holds {data.min():g}..{data.max():g}")
    return np.maximum(data.reshape(shape), 0).astype(np.int16)


def _label_names(
    atlas: str, folders: Sequence[pathlib.Path]
) -> tuple[dict[int, str], list[pathlib.Path]]:
    """Names of labels from <atlas>.mgz.ctab, else the built-in ones; files read."""
    for folder in folders:
        path = folder / f"{atlas}.mgz.ctab"
        if not path.exists():
            continue
        names: dict[int, str] = {}
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines):
            # NSD's files pad the names with tabs and blanks.
            words = line.split()[:2]
            if not words:
                continue
            number_and_name = len(words) == 2 and words[0].isdecimal()
            if not (number_and_name and words[1].isprintable()):
                raise errors.InputError(
                    path,
                    f"line {number + 1}",
                    f"is {line.strip()[:40]!r}",
                    "a number and a name",
                    _AGAIN,
                )
            names[int(words[0])] = words[1]
        return names, [path]
    return dict(enumerate(LABELS.get(atlas, ()), 1)), []


def region_name(atlas: str, label: int, names: dict[int, str]) -> str:
    """How a region is called: "V1v", "streams:early", or "thalamus:3".

    Example:
        >>> region_name("floc-faces", 2, {2: "FFA-1"})
        'FFA-1'
        >>> region_name("streams", 1, {1: "early"})
        'streams:early'
        >>> region_name("thalamus", 3, {})
        'thalamus:3'
    """
    if label not in names:
        return f"{atlas}:{label}"
    plain = atlas in PLAIN_ATLASES
    return names[label] if plain else f"{atlas}:{names[label]}"


def _select(
    name: str,
    atlases: list[_Atlas],
    shape: tuple[int, ...],
    mask: str | os.PathLike | None,
    affine: np.ndarray | None,
    surface: bool,
) -> tuple[np.ndarray, str, list[pathlib.Path]]:
    """The mask, what it is called, and files read for it."""
    by_name = {atlas.name: atlas for atlas in atlases}
    text = os.fspath(mask) if mask is not None else "nsdgeneral"
    if text.endswith((".nii", ".nii.gz")) and not surface:
        return read_mask(pathlib.Path(text), shape, affine), text, [pathlib.Path(text)]
    if text in by_name:
        chosen = by_name[text].labels > 0
        if mask is None and surface and "nsdgeneralRSC" in by_name:
            chosen |= by_name["nsdgeneralRSC"].labels > 0
            text = "nsdgeneral and nsdgeneralRSC"
    else:
        regions = {}
        for atlas in atlases:
            for label in np.unique(atlas.labels[atlas.labels > 0]).tolist():
                key = region_name(atlas.name, label, atlas.names)
                regions.setdefault(key, (atlas, label))
        if text not in regions:
            kind = "an atlas or region" + ("" if surface else ", or a NIfTI file")
            raise errors.ConfigError(
                "mask",
                name,
                f"no region {text!r}",
                kind,
                errors.nearest(text, [*by_name, *regions]),
            )
        atlas, label = regions[text]
        chosen = atlas.labels == label
    if not chosen.any():
        raise errors.InputError(
            "mask", name, f"{text!r} has 0 voxels", "one or more", "Choose another."
        )
    return chosen, text, []


def read_mask(
    path: pathlib.Path, shape: tuple[int, ...], affine: np.ndarray | None
) -> np.ndarray:
    """Reads a mask: a NIfTI file of 0 and 1 (-1 counts as 0).

    Args:
        path: The file.
        shape: Grid that the mask must have.
        affine: Voxel to mm that it must have; None is not compared.

    Returns:
        (X, Y, Z) bool.

    Raises:
        errors.InputError: If it is on another grid, no mask, or empty.
    """
    volume = files.read_nifti(path)

    def fault(found: str, expected: str, action: str) -> errors.InputError:
        return errors.InputError(path, "", found, expected, action)

    data = volume.data
    if data.shape != shape:
        found = f"mask {_size(data.shape)}, regions {_size(shape)}"
        raise fault(found, "one grid", "Resample the mask to the betas.")
    _check_affine(path, volume.affine, affine, "mask")
    num_nan = int(np.isnan(data).sum())
    if num_nan:
        raise fault(f"mask holds {num_nan} NaN", "0 and 1", "Replace them by 0.")
    values = np.unique(data)
    if not np.isin(values, (-1, 0, 1)).all():
        if (values != np.round(values)).any():
            part = int((data != np.round(data)).sum())
            found = f"mask holds {part} partial values, {values[0]:g}..{values[-1]:g}"
            raise fault(found, "0 and 1", "Apply a threshold and save the result.")
        listed = schema.shorten([f"{v:g}" for v in values], most=8)
        raise fault(f"mask holds {{{listed}}}", "0 and 1", "Save one label as 1.")
    if values[-1] < 1:
        raise fault("mask has 0 voxels", "one or more", "Choose another mask.")
    return data == 1


# ---------------------------------------------------------------- one subject


def _inspect(
    source: pathlib.Path,
    folder: pathlib.Path,
    space: str,
    mask: str | os.PathLike | None,
    sessions: dict[int, tuple[pathlib.Path, ...]] | None,
    layouts: dict[pathlib.Path, files.Layout | errors.InputError],
    design: Design | None,
    faults: list[errors.InputError],
    notes: list[str],
) -> _Plan | None:
    """Checks a subject without reading betas; None beside a fault."""
    before = len(faults)
    name = folder.parts[-3]
    match = re.fullmatch(r"subj0?([1-8])", name)
    if not match:
        faults.append(
            errors.InputError(
                folder, "", f"subject {name}", "subj01 to subj08", "Rename the folder."
            )
        )
        return None
    surface = space == "fsaverage"
    responses = source / "nsddata/ppdata" / name / "behav/responses.tsv"
    trials = None
    if design is not None:
        with schema.collected(faults):
            trials = _read_trials(responses, int(match[1]), design)
    atlases, shapes, affine = _read_atlases(source, name, surface, faults, notes)
    if sessions is not None:
        known = shapes if len(shapes) == 1 + surface else None
        _check_sessions(name, sessions, layouts, trials, known, affine, faults)
    if not atlases:
        return None
    shape = atlases[0].labels.shape
    chosen = None
    with schema.collected(faults):
        chosen, text, paths = _select(name, atlases, shape, mask, affine, surface)
    if chosen is None:
        return None
    ncsnr = None
    with schema.collected(faults):
        ncsnr, ncsnr_paths = _read_ncsnr(folder, surface, shapes, chosen, affine)
    if len(faults) > before or ncsnr is None or sessions is None or trials is None:
        return None
    num_left = shapes[0][0] if surface else 0
    if surface:
        vertex = np.flatnonzero(chosen)
        right = vertex >= num_left
        position = np.stack([right, vertex - num_left * right, vertex * 0 - 1], 1)
    else:
        position = np.argwhere(chosen)
    grid = _Grid(chosen, position.astype(np.int32), num_left, affine)
    return _Plan(
        name,
        sessions,
        {number: trials[number] for number in sessions},
        max(trials),
        grid,
        text,
        [(a.name, a.names, a.labels[chosen]) for a in atlases],
        ncsnr,
        bool(ncsnr_paths),
        [responses, *paths, *(p for a in atlases for p in a.paths), *ncsnr_paths],
    )


def _read_ncsnr(
    folder: pathlib.Path,
    surface: bool,
    shapes: list[tuple[int, ...]],
    mask: np.ndarray,
    affine: np.ndarray | None,
) -> tuple[np.ndarray, list[pathlib.Path]]:
    """ncsnr (V,), NaN where unknown, and the files it came from."""
    names = ("lh.ncsnr.mgh", "rh.ncsnr.mgh") if surface else ("ncsnr.nii.gz",)
    paths = [folder / name for name in names if (folder / name).exists()]
    if not paths:
        return np.full(int(mask.sum()), np.nan, np.float32), []
    if len(paths) < len(names):
        raise errors.MissingInputError(
            folder, "", f"only {paths[0].name}", "both hemispheres", _AGAIN
        )
    parts = []
    for path, shape in zip(paths, shapes, strict=True):
        volume = files.read_mgh(path) if surface else files.read_nifti(path)
        if volume.data.size != math.prod(shape):
            raise errors.InputError(
                path,
                "",
                f"ncsnr is {_size(volume.data.shape)}, regions {_size(shape)}",
                "one grid",
                _SAME,
            )
        if not surface:
            _check_affine(path, volume.affine, affine, "ncsnr")
        parts.append(volume.data.reshape(-1) if surface else volume.data)
    values = (np.concatenate(parts) if surface else parts[0]).reshape(mask.shape)
    ncsnr = values[mask].astype(np.float32)
    wrong = np.isinf(ncsnr) | (ncsnr < 0)
    if wrong.any():
        raise errors.InputError(
            paths[0],
            "",
            f"{int(wrong.sum())} values are negative or inf",
            "ratios of at least 0, or NaN",
            _AGAIN,
        )
    return ncsnr, paths


def _read_sessions(plan: _Plan) -> Iterator[np.ndarray]:
    """Betas (T, V) of each session as stored, in the order of `grid.position`."""
    grid = plan.grid
    num = len(grid.position)
    stored = [paths[0] for paths in plan.sessions.values() if paths[0].suffix in _HDF5]
    # MATLAB wrote (X, Y, Z, T): HDF5 shows (T, Z, Y, X). A plane at a time, of it
    # the box around the mask: each voxel is a chunk of its own.
    planes, blocks = [], []
    for z in np.unique(grid.position[:, 2]).tolist() if stored else []:
        columns = np.flatnonzero(grid.position[:, 2] == z)
        x, y = grid.position[columns, :2].T
        planes.append((columns, y - y.min(), x - x.min()))
        box = [(y.min(), y.max() + 1), (x.min(), x.max() + 1)]
        blocks.append([(0, None), (z, z + 1), *box])
    with contextlib.closing(files.hdf5_blocks(stored, "betas", blocks)) as stream:
        for number, paths in plan.sessions.items():
            shape = (len(plan.trials[number]), num)
            if paths[0].suffix in _HDF5:
                betas = np.empty(0)
                for columns, y, x in planes:
                    block = next(stream)
                    if not len(betas):
                        betas = np.empty(shape, block.dtype.newbyteorder("="))
                    betas[:, columns] = block[:, 0, y, x]
                yield betas
            elif paths[0].suffix in _SURFACE:
                yield _read_surface_session(paths, grid, shape)
            else:
                dtype = files.nifti_header(paths[0]).dtype.newbyteorder("=")
                betas = np.empty(shape, dtype)
                # The C order of the mask, as places in a volume stored x first.
                size = grid.mask.shape
                where = np.ravel_multi_index(grid.position.T, size, order="F")
                for trial, volume in enumerate(files.nifti_volumes(paths[0])):
                    betas[trial] = volume.reshape(-1, order="F")[where]
                yield betas


def _read_surface_session(
    paths: tuple[pathlib.Path, ...], grid: _Grid, shape: tuple[int, int]
) -> np.ndarray:
    """Betas (T, V) of lh, then rh."""
    betas = np.empty(shape, np.float32)
    halves = (grid.mask[: grid.num_left], grid.mask[grid.num_left :])
    start = 0
    for path, half in zip(paths, halves, strict=True):
        where = np.flatnonzero(half)
        for trial, frame in enumerate(files.mgh_frames(path)):
            betas[trial, start : start + len(where)] = frame[where, 0, 0]
        start += len(where)
    return betas


def _check_finite(
    betas: np.ndarray, path: pathlib.Path, grid: _Grid, number: int
) -> np.ndarray:
    """Which voxels (V,) are NaN in the whole session; that may be on a surface.

    Raises:
        errors.InputError: If other numbers are NaN, inf or absurdly large.
    """
    none = np.zeros(betas.shape[1], bool)
    if betas.dtype.kind != "f":
        return none
    where = f"session {number}"
    finite = np.isfinite(betas)
    invalid = none
    if grid.num_left:
        invalid = np.asarray(np.isnan(betas).all(0))
    bad = ~finite
    bad[:, invalid] = False
    if bad.any():
        voxels, trials = np.any(bad, 0), np.any(bad, 1)
        trial = int(np.argmax(trials))
        voxel = int(np.argmax(bad[trial]))
        place = tuple(grid.position[voxel].tolist())
        found = (
            f"{int(voxels.sum())} of {len(none)} voxels hold NaN or inf, first "
            f"{betas[trial, voxel]} in voxel {place} trial {trial}"
        )
        if (bad[trial] | invalid).all():
            found = f"trial {trial} is NaN or inf in all voxels"
        elif not grid.num_left and np.all(np.isnan(betas[:, voxels])):
            found += "; they are NaN in all trials"
        raise errors.InputError(
            path, where, found, "finite betas", "Pass a --mask without these voxels."
        )
    highest = float(np.abs(betas, where=finite, out=np.zeros_like(betas)).max())
    if highest > _HUGE:
        raise errors.InputError(
            path,
            where,
            f"|max| is {highest:.3g}; wrong endianness?",
            f"betas within +-{_HUGE:g}",
            _AGAIN,
        )
    return invalid


def add_z_scores(
    betas: np.ndarray, row: np.ndarray, total: np.ndarray, skip: np.ndarray
) -> np.ndarray:
    """Z-scores one session and adds each trial to the row of its picture.

    Computed as `schema.z_score` does; constant voxels add 0.

    Args:
        betas: (T, V), in any unit.
        row: (T,) rows of `total`.
        total: (M, V) float32; added to.
        skip: (V,) bool; these voxels are left alone.

    Returns:
        (V,) bool: voxels that are constant in the session and not skipped.
    """
    num = betas.shape[1]
    constant = np.zeros(num, bool)
    for start in range(0, num, _BLOCK):
        part = slice(start, start + _BLOCK)
        z = betas[:, part].astype(np.float64)
        z[:, skip[part]] = 0
        flat = schema.z_score(z)
        constant[part] = flat & ~skip[part]
        for trial, place in enumerate(row):
            total[place, part] += z[trial]
    return constant


def _read_subject(
    plan: _Plan,
    source: pathlib.Path,
    split: Any,
    shared_attrs: dict[str, Any],
    sources: list[dict[str, Any]],
    report: list[str],
) -> schema.Subject:
    """Streams the sessions of a subject: in memory are its responses and one."""
    grid, num = plan.grid, len(plan.grid.position)
    shown = np.concatenate(list(plan.trials.values()))
    numbers, repeats = np.unique(shown, return_counts=True)
    if repeats.max() > 255:
        raise errors.InputError(
            source, plan.name, "a picture is shown more than 255 times", "3", _AGAIN
        )
    total = np.zeros((len(numbers), num), np.float32)
    invalid = np.zeros(num, bool)
    constant: dict[int, np.ndarray] = {}
    lost: dict[int, int] = {}
    hashes: dict[bytes, int] = {}
    stream = _read_sessions(plan)
    for number, betas in zip(plan.sessions, stream, strict=True):
        paths = plan.sessions[number]
        digest = hashlib.sha256(betas.data).digest()
        twin = hashes.setdefault(digest, number)
        if twin != number:
            raise errors.InputError(
                paths[0],
                "",
                f"sessions {twin} and {number} are identical arrays (sha256 equal)",
                "different betas in each session",
                "Download one of them again.",
            )
        here = _check_finite(betas, paths[0], grid, number)
        lost[number] = int(here.sum())
        invalid |= here
        row = np.searchsorted(numbers, plan.trials[number])
        constant[number] = add_z_scores(betas, row, total, here)
        del betas
    for row, count in enumerate(repeats):  # a row: no copy of the whole
        total[row] /= count
    keep = ~invalid
    if not keep.any():
        raise errors.InputError(
            plan.sessions[next(iter(plan.sessions))][0].parent,
            "",
            "every vertex is NaN in a session or another",
            "vertices that are valid in all sessions",
            "Leave sessions out (--sessions).",
        )
    if invalid.any():
        total = np.ascontiguousarray(total[:, keep])
    roi, roi_names, empty = _regions(plan, keep)
    still = np.logical_and.reduce(list(constant.values()))[keep]
    counts = {str(k): int(v[keep].sum()) for k, v in constant.items() if v[keep].any()}
    ncsnr = plan.ncsnr[keep]
    ids = [image_id(number) for number in numbers.tolist()]
    splits = np.array([split(number) for number in numbers.tolist()])

    attrs = dict(shared_attrs)
    if grid.num_left:
        attrs["surface"] = (
            f"fsaverage, {grid.num_left} and {len(grid.mask) - grid.num_left} "
            "vertices, lh before rh"
        )
        attrs["vertices"] = [grid.num_left, len(grid.mask) - grid.num_left]
    else:
        attrs["grid"] = list(grid.mask.shape)
        if grid.affine is not None:
            attrs["affine"] = grid.affine.tolist()
    attrs |= {
        "mask": plan.mask_name,
        "sessions": list(plan.sessions),
        "trials": len(shown),
        "dropped": [
            {
                "reason": "NaN in all trials of a session",
                "count": int(invalid.sum()),
                "sessions": {str(k): n for k, n in lost.items() if n},
            }
        ]
        if invalid.any()
        else [],
        "constant_in_session": counts,
        "constant_in_all_sessions": int(still.sum()),
        "ncsnr": "as distributed" if plan.has_ncsnr else "not on disk",
        "regions_without_voxels": empty,
    }
    sources += [schema.describe(p, source) for p in plan.paths]
    used = [p for session in plan.sessions.values() for p in session]
    sources += [schema.describe(p, source) for p in used]
    report += _report_lines(plan, repeats, splits, attrs, ncsnr, num)
    return schema.Subject(
        f"nsd-{plan.name}",
        total,
        ids,
        splits,
        repeats.astype(np.uint8),
        ncsnr,
        grid.position[keep],
        roi,
        roi_names,
        attrs,
    )


def _regions(plan: _Plan, keep: np.ndarray) -> tuple[np.ndarray, list[str], list[str]]:
    """Regions (V, R), their names, and names of those without a voxel."""
    columns: dict[str, np.ndarray] = {}
    empty = []
    for atlas, names, labels in plan.atlases:
        labels = labels[keep]
        known = {k for k in names if k > 0} | set(np.unique(labels[labels > 0]))
        for label in sorted(int(k) for k in known):
            name = region_name(atlas, label, names)
            inside = labels == label
            if not inside.any():
                empty.append(name)
            elif name not in columns:
                columns[name] = inside
            elif f"{atlas}:{label}" not in columns:  # one name for two regions
                columns[f"{atlas}:{label}"] = inside
    roi = np.zeros((int(keep.sum()), len(columns)), bool)
    for column, inside in enumerate(columns.values()):
        roi[:, column] = inside
    return roi, list(columns), empty


def _report_lines(
    plan: _Plan,
    repeats: np.ndarray,
    splits: np.ndarray,
    attrs: dict[str, Any],
    ncsnr: np.ndarray,
    num_masked: int,
) -> list[str]:
    """What a user must know about a subject that was read."""
    name, used = plan.name, list(plan.sessions)
    line = f"{name}: sessions {_ranges(used)} of {plan.last_session}"
    real = RELEASED_SESSIONS[int(name[-1]) - 1]
    if attrs["trials"] == 750 * len(used) and len(used) < real:
        if "simulated" not in attrs:
            line += f"; NSD's final release has {real}"
    lines = [line]
    parts = ", ".join(f"{(splits == s).sum()} {s}" for s in ("train", "val", "test"))
    times = ", ".join(f"{(repeats == n).sum()} x {n}" for n in np.unique(repeats))
    lines.append(
        f"{name}: {attrs['trials']} trials of {len(repeats)} pictures ({parts}; "
        f"shown: {times})"
    )
    where = f"{len(ncsnr)} voxels in {plan.mask_name}"
    if num_masked == plan.grid.mask.size:
        where += ", which keeps 100 % of the grid"
    known = ncsnr[np.isfinite(ncsnr)]
    if not plan.has_ncsnr:
        where += "; ncsnr is not on disk, unknown"
    elif len(known):
        where += f"; median ncsnr {np.median(known):.3f}"
        if len(known) < len(ncsnr):
            where += f", unknown for {len(ncsnr) - len(known)}"
    lines.append(f"{name}: {where}")
    for dropped in attrs["dropped"]:
        lines.append(
            f"{name}: {dropped['count']} vertices dropped, {dropped['reason']} "
            f"(sessions {_ranges(int(s) for s in dropped['sessions'])})"
        )
    counts = attrs["constant_in_session"]
    if counts:
        lines.append(
            f"{name}: {sum(counts.values())} times a voxel is constant in a session "
            f"and counts as 0 there (sessions {_ranges(int(s) for s in counts)}); "
            f"{attrs['constant_in_all_sessions']} voxels are so in all sessions"
        )
    empty = attrs["regions_without_voxels"]
    if empty:
        lines.append(
            f"{name}: {len(empty)} regions have no voxel in the mask and are left "
            f"out: {schema.shorten(empty, most=8)}"
        )
    for part in ("train", "test"):
        if not (splits == part).any():
            lines.append(f"{name}: warning: the {part} split is empty")
    test = repeats[splits == "test"]
    if len(test) and test.max() < 2:
        lines.append(f"{name}: warning: no test picture is shown twice")
    return lines


def _is_in(numbers: np.ndarray, number: int) -> bool:
    """Whether a sorted array holds a number."""
    at = int(np.searchsorted(numbers, number))
    return at < len(numbers) and int(numbers[at]) == number
