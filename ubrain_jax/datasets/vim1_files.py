"""Finds the response files of vim-1 and checks that they agree.

Every encoding gives a plan of the same kind: which array holds what, and for each
voxel its region and place. Responses are read by `vim1_responses`.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import files, npz, schema, vim1_stimuli

ESTIMATED = "EstimatedResponses.mat"
REGIONS = ("other", "V1", "V2", "V3", "V3A", "V3B", "V4", "LatOcc")  # by code
REPEATS = {"train": 2, "val": 13}  # of the experiment, where only averages are there
GRIDS = {"2008": (64, 64, 18), "2013": (86, 86, 34)}
_ACTION = "Copy the files of vim-1 again, or leave the subject out (subjects)."
_SHORT = {"train": "Trn", "val": "Val"}


class Found(NamedTuple):
    """Files of one subject, by their names.

    Attributes:
        number: 1, 2 or 3.
        form: "2008" (EstimatedResponses.mat), "2013" or "npz".
        paths: Of the files that are there, by what they hold: "averages", "train"
            and "val" (single trials), "aux".
        lacking: Names of files that are needed and absent.
    """

    number: int
    form: str
    paths: dict[str, pathlib.Path]
    lacking: list[str]


class Table(NamedTuple):
    """An array of responses on disk.

    Attributes:
        path: The file.
        name: Of the array in it.
        layout: Its shape and type; (voxels, pictures[, repeats]) in a MATLAB file,
            (pictures, voxels) in an archive.
        header: Of an array in an archive; None in a MATLAB file.
    """

    path: pathlib.Path
    name: str
    layout: files.Layout
    header: npz.Header | None


class Plan(NamedTuple):
    """One subject's files, checked, with V voxels; responses are not read.

    Attributes:
        form: As in `Found`.
        means: Averages over repeats, by split; empty if there are single trials alone.
        trials: Single trials, by split.
        region: (V,) codes.
        region_names: Names of the codes that mean a region.
        region_note: Where the names come from.
        position: (V, 3) int32 i, j, k, from 0; -1 if unknown.
        position_note: How it was found.
        snr: (V,) as distributed; None if there is none.
        paths: Files used.
    """

    form: str
    means: dict[str, Table]
    trials: dict[str, Table]
    region: np.ndarray
    region_names: dict[int, str]
    region_note: str
    position: np.ndarray
    position_note: str
    snr: np.ndarray | None
    paths: list[pathlib.Path]

    def num_repeats(self, split: str) -> int:
        """Presentations that were averaged."""
        if split in self.trials:
            return self.trials[split].layout.shape[2]
        return REPEATS[split]


def find_subjects(source: pathlib.Path) -> tuple[dict[str, Found], list[str]]:
    """Subjects by name ("s1"), and lines about files that are not used.

    The files of 2013 are preferred to EstimatedResponses.mat, since only they can
    hold single trials, and that to the archive, which has a part of one subject.

    Raises:
        errors.MissingInputError: If there is nothing of vim-1.
        errors.InputError: If EstimatedResponses.mat is damaged or holds no subject.
    """
    if source.is_file():
        if source.suffix == ".npz":
            return {"s1": Found(1, "npz", {"averages": source}, [])}, []
        return _find_2008(source), []
    folder = source
    if not folder.is_dir():
        raise errors.MissingInputError(
            source, "", "no such file or folder", "vim-1", "Check the path."
        )
    subjects: dict[str, Found] = {}
    report = []
    estimated, archive = folder / ESTIMATED, folder / vim1_stimuli.ARCHIVE
    if estimated.is_file():
        subjects = _find_2008(estimated)
    for number in (1, 2, 3):
        found = _find_2013(folder, number, report)
        name = f"s{number}"
        if found is not None and name in subjects and found.lacking:
            report.append(
                f"vim1-{name}: {', '.join(p.name for p in found.paths.values())} not "
                f"used without {', '.join(found.lacking)}; responses are those of "
                f"{ESTIMATED}, whose voxels are others"
            )
        elif found is not None:
            if name in subjects:
                report.append(f"vim1-{name}: the files of 2013 used, not {ESTIMATED}")
            subjects[name] = found
    if not subjects and archive.is_file():
        return {"s1": Found(1, "npz", {"averages": archive}, [])}, report
    if archive.is_file():
        report.append(f"{archive.name}: responses not used, there are larger files")
    if not subjects:
        names = sorted(p.name for p in folder.iterdir())
        raise errors.MissingInputError(
            source,
            "",
            f"no responses (found: {schema.shorten(names, most=8) or 'nothing'})",
            f"{ESTIMATED}, or S1aux.mat, S1data.mat, ..., or {archive.name}",
            "Give the folder that holds them.",
        )
    return dict(sorted(subjects.items())), report


def _find_2008(path: pathlib.Path) -> dict[str, Found]:
    """Subjects of an EstimatedResponses.mat, by its variables."""
    [layouts] = files.mat_layouts([path])
    pattern = re.compile(r"(?:dataTrn|dataVal|roi|voxIdx)S([1-9])")
    numbers = {int(m[1]) for m in map(pattern.fullmatch, layouts) if m}
    if not numbers:
        raise errors.InputError(
            path,
            "",
            f"holds {schema.shorten(list(layouts)) or 'no arrays'}",
            "dataTrnS1, dataValS1, roiS1, voxIdxS1 (and of S2)",
            "Give EstimatedResponses.mat of vim-1.",
        )
    return {f"s{n}": Found(n, "2008", {"averages": path}, []) for n in sorted(numbers)}


def _find_2013(folder: pathlib.Path, number: int, report: list[str]) -> Found | None:
    """Files of one subject of 2013; None if there is none."""
    stems = {
        "aux": f"S{number}aux",
        "averages": f"S{number}data",
        "train": f"S{number}data_trn_singletrial",
        "val": f"S{number}data_val_singletrial",
    }
    paths = {}
    for role, stem in stems.items():
        there = [
            path
            for name in (f"{stem}.mat", f"{stem}_v6.mat")
            for path in (folder / name, folder / f"subject-S{number}" / name)
            if path.is_file()
        ]
        if there:
            paths[role] = there[0]
        for path in there[1:]:
            report.append(
                f"vim1-s{number}: {schema.inside(path, folder)} not read, "
                f"{schema.inside(there[0], folder)} is"
            )
    if not paths:
        return None
    needed = ["aux"] if "averages" in paths else ["aux", "train", "val"]
    lacking = [f"{stems[role]}.mat" for role in needed if role not in paths]
    return Found(number, "2013", paths, lacking)


def inspect(
    source: pathlib.Path, subjects: Mapping[str, Found], num_images: Mapping[str, int]
) -> dict[str, Plan]:
    """Checks all arrays against each other and the pictures; reads the small ones.

    Args:
        source: For messages.
        subjects: Those wanted.
        num_images: Pictures there are, by split.

    Returns:
        Plans by name.

    Raises:
        errors.MissingInputError: If files or arrays are missing; all are listed.
        errors.InputError: If shapes or values disagree; all are listed.
    """
    missing = [f"{n}: {name}" for n, f in subjects.items() for name in f.lacking]
    paths = {p for f in subjects.values() if f.form != "npz" for p in f.paths.values()}
    layouts = dict(zip(paths, files.mat_layouts([*paths]), strict=True))
    tables: dict[str, dict[str, Table]] = {}
    for name, found in subjects.items():
        tables[name] = _tables(found, layouts)
        missing += [
            f"{name}: {array} in {path.name}"
            for array, path, needed in _wanted(found)
            if needed and array not in tables[name]
        ]
    if missing:
        raise errors.MissingInputError(
            source,
            "",
            f"{len(missing)} missing: {schema.shorten(missing)}",
            "averages or single trials of both splits, regions and places",
            _ACTION,
        )
    vectors = [
        tables[name][vector]
        for name, found in subjects.items()
        for vector in _vector_names(found)
        if vector in tables[name]
    ]
    values = _read_vectors(vectors)
    problems: list[schema.Problem] = []
    plans = {
        name: _plan(found, tables[name], values, num_images, problems)
        for name, found in subjects.items()
    }
    folder = source if source.is_dir() else source.parent
    schema.raise_problems(folder, problems, _ACTION)
    return plans


def _wanted(found: Found) -> list[tuple[str, pathlib.Path, bool]]:
    """Arrays of a subject: name, file, whether it must be there."""
    suffix, paths = f"S{found.number}", found.paths
    if found.form == "npz":
        path = paths["averages"]
        names = {"responses": True, "responses_test": True, "roi": True}
        return [(name, path, needed) for name, needed in names.items()]
    wanted = []
    if "averages" in paths:
        names = [f"dataTrn{suffix}", f"dataVal{suffix}"]
        wanted += [(name, paths["averages"], True) for name in names]
    for split, short in _SHORT.items():
        if split in paths:
            wanted.append((f"data{short}Single{suffix}", paths[split], True))
    aux = paths["averages"] if found.form == "2008" else paths.get("aux")
    if aux is not None:
        wanted += [(f"roi{suffix}", aux, True), (f"voxIdx{suffix}", aux, True)]
        wanted.append((f"snr{suffix}", aux, False))
    return wanted


def _tables(
    found: Found, layouts: Mapping[pathlib.Path, Mapping[str, files.Layout]]
) -> dict[str, Table]:
    """Arrays of a subject that are there, by name; nothing is read."""
    if found.form == "npz":
        path = found.paths["averages"]
        return {
            name: Table(path, name, files.Layout(h.shape, h.dtype), h)
            for name, h in npz.headers(path).items()
        }
    return {
        name: Table(path, name, layouts[path][name], None)
        for name, path, _ in _wanted(found)
        if name in layouts[path]
    }


def _plan(
    found: Found,
    tables: dict[str, Table],
    vectors: Mapping[tuple[pathlib.Path, str], np.ndarray],
    num_images: Mapping[str, int],
    problems: list[schema.Problem],
) -> Plan:
    """Checks one subject's arrays."""
    suffix = f"S{found.number}"
    if found.form == "npz":
        named = {"train": "responses", "val": "responses_test"}
    else:
        named = {split: f"data{short}{suffix}" for split, short in _SHORT.items()}
    means = {s: tables[n] for s, n in named.items() if n in tables}
    singles = {s: f"data{short}Single{suffix}" for s, short in _SHORT.items()}
    trials = {s: tables[n] for s, n in singles.items() if n in tables}
    num_voxels = _check_shapes(means, trials, num_images, problems)

    names = [n for n in _vector_names(found) if n in tables]
    values = {n: vectors[tables[n].path, n] for n in names}
    for name, array in values.items():
        if num_voxels and array.shape != (num_voxels,):
            schema.add_problem(
                problems,
                f"{tables[name].path.name}:{name}",
                f"{tables[name].layout.shape}, {array.size} numbers",
                f"{num_voxels}, one for each voxel of the responses",
            )
    roi = "roi" if found.form == "npz" else f"roi{suffix}"
    region_names, region_note = _region_names(tables.get("roi_names"), problems)
    region = _check_region(tables[roi], values[roi], region_names, problems)
    regions = {k: n for k, n in region_names.items() if n.lower() not in ("", "other")}
    position = np.full((num_voxels, 3), -1, np.int32)
    note = "not in the file"
    place = f"voxIdx{suffix}"
    if place in values:
        grid = GRIDS[found.form]
        position, note = _places(tables[place], values[place], grid, problems)
    return Plan(
        found.form,
        means,
        trials,
        region,
        regions,
        region_note,
        position,
        note,
        values.get(f"snr{suffix}"),
        list(dict.fromkeys(t.path for t in tables.values())),
    )


def _vector_names(found: Found) -> list[str]:
    """Arrays with one number for each voxel."""
    if found.form == "npz":
        return ["roi"]
    return [f"{name}S{found.number}" for name in ("roi", "voxIdx", "snr")]


def _check_shapes(
    means: dict[str, Table],
    trials: dict[str, Table],
    num_images: Mapping[str, int],
    problems: list[schema.Problem],
) -> int:
    """Shapes of responses against the pictures and each other; returns V."""
    num_voxels = None
    for kind, tables in ((2, means), (3, trials)):
        for split, table in tables.items():
            num = num_images[split]
            shape, where = table.layout.shape, f"{table.path.name}:{table.name}"
            axes = "voxels, pictures" + (", repeats" if kind == 3 else "")
            if table.header is not None:
                axes, shape = "pictures, voxels", shape[::-1]
            expected = f"({axes}) with {num} pictures, as {split} has"
            here = f"{table.layout.dtype} {table.layout.shape}"
            if len(shape) != kind or 0 in shape:
                schema.add_problem(problems, where, here, expected)
            elif shape[1] != num:
                turned = " (transposed?)" if shape[0] == num else ""
                schema.add_problem(problems, where, here + turned, expected)
            elif kind == 3 and not 2 <= shape[2] <= 255:
                schema.add_problem(
                    problems, where, f"{shape[2]} repeats", "2 to 255 repeats"
                )
            elif table.layout.dtype.kind != "f":
                schema.add_problem(problems, where, here, "single or double")
            elif num_voxels not in (None, shape[0]):
                schema.add_problem(
                    problems, where, f"{shape[0]} voxels", f"{num_voxels}"
                )
            else:
                num_voxels = shape[0]
    return num_voxels or 0


def _read_vectors(
    tables: Sequence[Table],
) -> dict[tuple[pathlib.Path, str], np.ndarray]:
    """Small arrays as (n,), by file and name; one file after the other."""
    values: dict[tuple[pathlib.Path, str], np.ndarray] = {}
    for path in dict.fromkeys(t.path for t in tables):
        here = [t for t in tables if t.path == path]
        if here[0].header is None:
            arrays = files.read_mat(path, [t.name for t in here])
        else:
            arrays = {
                t.name: npz.read(path, t.name, t.header) for t in here if t.header
            }
        values |= {(path, name): array.reshape(-1) for name, array in arrays.items()}
    return values


def _region_names(
    table: Table | None, problems: list[schema.Problem]
) -> tuple[dict[int, str], str]:
    """Names of the codes, and whose they are: the archive's, or the published ones."""
    names, note = list(REGIONS), "published names"
    if table is not None and table.header is not None:
        if table.header.dtype.hasobject:
            note = f"published names; {table.name} is a pickle, which is never opened"
        else:
            array = npz.read(table.path, table.name, table.header)
            names, note = array.astype(str).reshape(-1).tolist(), f"{table.name}"
    if len(set(names)) < len(names) or not all(n.isprintable() for n in names):
        found = schema.shorten([ascii(n) for n in names])
        schema.add_problem(problems, "roi_names", found, "names of regions, each once")
    return dict(enumerate(names)), note


def _check_region(
    table: Table,
    codes: np.ndarray,
    names: Mapping[int, str],
    problems: list[schema.Problem],
) -> np.ndarray:
    """(V,) codes as integers."""
    unknown = [v for v in np.unique(codes).tolist() if v not in names]
    if unknown:
        shown = schema.shorten([f"{v}" for v in unknown], most=6)
        schema.add_problem(
            problems,
            f"{table.path.name}:{table.name}",
            f"codes {shown}",
            ", ".join(f"{k} ({n})" for k, n in names.items()),
        )
        return np.zeros(codes.shape, np.int64)
    return codes.astype(np.int64)


def _places(
    table: Table,
    index: np.ndarray,
    grid: tuple[int, int, int],
    problems: list[schema.Problem],
) -> tuple[np.ndarray, str]:
    """(V, 3) int32 places on the grid, from 0, and how they were found.

    The files do not say whether they count from 0 or 1. They come from MATLAB, where
    the first element is 1, so 1 is taken unless a 0 occurs.
    """
    size = int(np.prod(grid))
    whole = bool(np.isfinite(index).all()) and bool((index == np.rint(index)).all())
    low, high = (index.min(), index.max()) if len(index) else (0, 0)
    first = 0 if low == 0 else 1
    name = " x ".join(map(str, grid))
    if not whole or low < 0 or high > size - 1 + first:
        found, expected = f"values {low:g}..{high:g}", f"places on a grid {name}"
    elif len(np.unique(index)) != len(index):
        found, expected = "a place twice", f"{len(index)} places"
    else:
        flat = index.astype(np.int64) - first
        places = np.stack(np.unravel_index(flat, grid, order="F"), 1)
        note = (
            f"i, j, k from 0 on the grid {name}, columns first, taking the file's "
            f"numbers to count from {first} (it does not say); orientation unknown"
        )
        return places.astype(np.int32), note
    schema.add_problem(problems, f"{table.path.name}:{table.name}", found, expected)
    return np.full((len(index), 3), -1, np.int32), ""


def facts(plan: Plan) -> dict[str, Any]:
    """What the attributes of a subject say about its files."""
    form = {
        "2008": ESTIMATED,
        "2013": "single-trial set of 2013",
        "npz": "Neuromatch copy (subject 1, voxels of regions)",
    }[plan.form]
    grid = GRIDS.get("2008" if plan.form == "npz" else plan.form, ())
    placed = bool(len(plan.position)) and bool((plan.position >= 0).all())
    return {
        "dataset": "vim-1",
        "source_format": form,
        **({"grid": list(grid)} if placed else {}),
        "space": f"the subject's own, grid {' x '.join(map(str, grid))}",
        "affine": "not in the files",
        "position": plan.position_note,
        "voxel_order": "of the file",
        "normalisation": "z-scored for each voxel by the distributor, averaged over "
        "repeats",
        "sessions": "all, as distributed",
        "regions": plan.region_note,
        "repeats": "from the single trials"
        if plan.trials.keys() == {"train", "val"}
        else f"not all in the files; of the experiment: {REPEATS['train']} for a "
        f"training picture, {REPEATS['val']} for a validation picture",
    }
