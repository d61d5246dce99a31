"""Reads the Algonauts-2023 folder: NSD on fsaverage, as the challenge gave it out.

Responses are z-scored in each session and averaged over repeats by whoever made the
folder; nothing here changes them. The rows are those of the pictures' numbers, the
columns the vertices of the `all-vertices` masks, left hemisphere first.

Not in the folder, therefore assumed and said so in `attrs`: how many presentations a
row averages, and on how many the noise ceiling rests.

References:
    Gifford et al., 2023, arXiv:2301.03198 (challenge, folder).
    Allen et al., 2022, Nature Neuroscience 25:116 (noise ceiling).
"""

import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import pictures, schema, unpickle

NUM_VERTICES = 163842  # of one hemisphere of fsaverage
NUM_IMAGES = 73000  # of NSD
REPEATS = 3  # presentations of each picture in NSD's design
HEMISPHERES = ("lh", "rh")
# Classes whose labels are known by themselves; the names of others need the class.
PLAIN_CLASSES = (
    "prf-visualrois",
    "floc-bodies",
    "floc-faces",
    "floc-places",
    "floc-words",
)
_ACTION = (
    "Unpack the Algonauts-2023 download again, or leave the subject out (subjects)."
)


class Surface(NamedTuple):
    """Which vertices of fsaverage the columns are, with V vertices and R regions.

    Attributes:
        position: (V, 3) int32: hemisphere (0 left, 1 right), vertex, -1.
        roi: (V, R) bool.
        roi_names: R names.
        num_left: How many of the V are in the left hemisphere.
        empty: Names that have a number but no vertex.
        files: Files read.
    """

    position: np.ndarray
    roi: np.ndarray
    roi_names: list[str]
    num_left: int
    empty: list[str]
    files: list[pathlib.Path]


class _Folder(NamedTuple):
    """One subject's folder, listed and checked, responses not read."""

    path: pathlib.Path
    surface: Surface
    train: dict[str, pathlib.Path]  # picture by image id, in row order
    test: dict[str, pathlib.Path]
    ignored: int  # files among the pictures that are none
    test_fmri: bool


def open_dataset(
    source: str | os.PathLike,
    *,
    subjects: Sequence[str] | None = None,
    val_fraction: float = 0.05,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> schema.Dataset:
    """Opens an Algonauts-2023 folder and checks everything but the responses.

    Splits are by picture: a picture is in the same split for every subject. Pictures
    whose test responses are in the folder (`test_split/test_fmri`) are "test". The
    challenge withheld those; if any subject of the folder lacks them, a share
    `test_fraction` of all pictures is "test" too, and "val" is another share. Who is
    in a share depends on `seed` and the image id alone (`schema.share`).

    The noise ceiling in the folder becomes
    `ncsnr = sqrt(NC / (1 - NC) / 3)`, as if every test picture had been shown three
    times. That holds for the subjects with 40 sessions (1, 2, 5, 7); for the others
    some were shown less often, and ncsnr comes out too small.

    Args:
        source: Folder with `subj01`, `subj02`, ..., or one of these.
        subjects: Names of folders, for example ("subj01",); all by default.
        val_fraction: Share of pictures for validation, 0..1.
        test_fraction: Share of pictures for the test split when the challenge's own
            is not in the folder, 0..1.
        seed: Of the shares.

    Returns:
        The dataset; subjects are called "algonauts-subj01", images "nsd/00013" by
        the 0-based NSD number. Reading a subject raises errors.InputError if its
        responses hold non-finite values.

    Raises:
        errors.MissingInputError: If files are missing; all are listed.
        errors.InputError: If files disagree; all disagreements are listed.
        errors.ConfigError: If a subject is unknown or the shares are no shares.
    """
    source = pathlib.Path(source)
    schema.check_fractions(val_fraction=val_fraction, test_fraction=test_fraction)
    paths = _find_subjects(source)
    chosen = schema.choose(list(paths), subjects)
    missing = [m for name in chosen for m in _missing(paths[name], source)]
    if missing:
        raise errors.MissingInputError(
            source,
            "",
            f"{len(missing)} missing: {schema.shorten(missing)}",
            "the files of the Algonauts-2023 folder",
            _ACTION,
        )
    problems: list[schema.Problem] = []
    folders = {n: _inspect(paths[n], source, problems) for n in chosen}
    held_out, withheld = _held_out(paths, folders, source, problems)
    schema.raise_problems(source, problems, _ACTION)

    def split(image_id: str) -> str:
        if image_id in held_out:
            return "test"
        place = schema.share(seed, image_id)
        if withheld and place < test_fraction:
            return "test"
        return "val" if place >= 1 - val_fraction else "train"

    sources: list[dict[str, Any]] = []
    report: list[str] = []
    if held_out:
        report.append(f"test split: {len(held_out)} pictures with test responses")
    if withheld:
        report.append(
            f"test responses are not in {', '.join(withheld)}: {test_fraction:.1%} of "
            f"all pictures, chosen by seed {seed}, are held out as test split; scores "
            "on them are not scores of the challenge"
        )
    known = {i: p for f in folders.values() for i, p in {**f.test, **f.train}.items()}

    def read_subjects() -> Iterator[schema.Subject]:
        for name, folder in folders.items():
            yield _read_subject(name, folder, split, source, sources, report)

    def read_images(image_ids: Sequence[str]) -> Iterator[np.ndarray]:
        return pictures.read_files(known, image_ids, source)

    return schema.Dataset("algonauts", read_subjects(), read_images, sources, report)


def read_surface(folder: str | os.PathLike) -> Surface:
    """Reads a `roi_masks` folder: which vertex each column is, and its regions.

    Labels of `PLAIN_CLASSES` keep their names ("V1v", "FFA-1"); others are prefixed
    with their class ("streams:early"). 0 and -1 mean no label.

    Args:
        folder: Holds `{lh,rh}.all-vertices_fsaverage_space.npy`, and for each class
            `{lh,rh}.<class>_challenge_space.npy` and `mapping_<class>.npy`.

    Returns:
        The surface; regions without a vertex are left out and named in `empty`.

    Raises:
        errors.MissingInputError: If the masks of all vertices are missing.
        errors.InputError: If files disagree; all disagreements are listed.
    """
    folder = pathlib.Path(folder)
    missing = [
        name
        for name in (f"{h}.all-vertices_fsaverage_space.npy" for h in HEMISPHERES)
        if not (folder / name).is_file()
    ]
    if missing:
        raise errors.MissingInputError(
            folder, "", f"no {', '.join(missing)}", "both vertex masks", _ACTION
        )
    problems: list[schema.Problem] = []
    surface = _surface(folder, folder, problems)
    schema.raise_problems(folder, problems, _ACTION)
    return surface


def _find_subjects(source: pathlib.Path) -> dict[str, pathlib.Path]:
    """Folders subj01, subj02, ... by name."""
    if not source.is_dir():
        raise errors.MissingInputError(
            source, "", "no such folder", "the Algonauts-2023 folder", "Check the path."
        )
    if (source / "training_split").is_dir():
        return {source.name: source}
    found = {
        p.name: p
        for p in sorted(source.iterdir())
        if re.fullmatch(r"subj\d\d", p.name) and p.is_dir()
    }
    if not found:
        names = sorted(p.name for p in source.iterdir())
        raise errors.MissingInputError(
            source,
            "",
            f"no subject folder (found: {schema.shorten(names, most=8) or 'nothing'})",
            "subj01, subj02, ...",
            "Give the folder that holds them.",
        )
    return found


def _fmri(path: pathlib.Path, split: str, hemisphere: str) -> pathlib.Path:
    """File of responses, `split` is "training" or "test"."""
    return path / f"{split}_split/{split}_fmri/{hemisphere}_{split}_fmri.npy"


def _missing(path: pathlib.Path, source: pathlib.Path) -> list[str]:
    """Files that every subject needs and this one lacks."""
    needed = [path / "training_split/training_images"]
    for hemisphere in HEMISPHERES:
        needed.append(_fmri(path, "training", hemisphere))
        needed.append(path / f"roi_masks/{hemisphere}.all-vertices_fsaverage_space.npy")
    test = [_fmri(path, "test", h) for h in HEMISPHERES]
    if any(p.exists() for p in test):  # then both, with their pictures
        needed += [*test, path / "test_split/test_images"]
    ceilings = [_ceiling(path, h) for h in HEMISPHERES]
    if any(p.exists() for p in ceilings):
        needed += ceilings
    return [schema.inside(p, source) for p in needed if not p.exists()]


def _ceiling(path: pathlib.Path, hemisphere: str) -> pathlib.Path:
    """File of the noise ceiling."""
    return path / f"test_split/noise_ceiling/{hemisphere}_noise_ceiling.npy"


def _has_test_fmri(path: pathlib.Path) -> bool:
    """Whether test responses are there."""
    return all(_fmri(path, "test", h).exists() for h in HEMISPHERES)


def _held_out(
    paths: dict[str, pathlib.Path],
    folders: dict[str, _Folder],
    source: pathlib.Path,
    problems: list[schema.Problem],
) -> tuple[set[str], list[str]]:
    """Image ids with test responses in any subject, and the subjects that lack them.

    All subjects of the folder count, chosen or not, so that choosing fewer moves no
    picture to another split.
    """
    held_out: set[str] = set()
    withheld = []
    for name, path in paths.items():
        if not _has_test_fmri(path):
            withheld.append(name)
        elif name in folders:
            held_out.update(folders[name].test)
        else:
            images, _ = _list_pictures(
                path / "test_split/test_images", "test", source, problems
            )
            held_out.update(images)
    return held_out, withheld


def _inspect(
    path: pathlib.Path, source: pathlib.Path, problems: list[schema.Problem]
) -> _Folder:
    """Lists one subject and checks that its files agree."""
    surface = _surface(path / "roi_masks", source, problems)
    train, ignored = _list_pictures(
        path / "training_split/training_images", "train", source, problems
    )
    test: dict[str, pathlib.Path] = {}
    has_test = _has_test_fmri(path)
    if has_test:
        test, ignored_test = _list_pictures(
            path / "test_split/test_images", "test", source, problems
        )
        ignored += ignored_test
    both = sorted(train.keys() & test.keys())
    if both:
        schema.add_problem(
            problems,
            schema.inside(path, source),
            f"{len(both)} pictures are in both splits ({schema.shorten(both, most=3)})",
            "pictures in one split",
        )
    if len(surface.position):
        _check_arrays(path, surface, train, test, source, problems)
    return _Folder(path, surface, train, test, ignored, has_test)


def _check_arrays(
    path: pathlib.Path,
    surface: Surface,
    train: dict[str, pathlib.Path],
    test: dict[str, pathlib.Path],
    source: pathlib.Path,
    problems: list[schema.Problem],
) -> None:
    """Responses against pictures and vertices, noise ceilings against vertices."""
    counts = (surface.num_left, len(surface.position) - surface.num_left)
    for hemisphere, num in zip(HEMISPHERES, counts, strict=True):
        for split, images in (("training", train), ("test", test)):
            file = _fmri(path, split, hemisphere)
            if split == "test" and not _has_test_fmri(path):
                continue
            array = schema.open_npy(file, source, problems)
            if array is not None:
                shape = (len(images), num)
                _check_responses(array, shape, schema.inside(file, source), problems)
        if _ceiling(path, hemisphere).exists():
            _check_ceiling(_ceiling(path, hemisphere), num, source, problems)


def _check_responses(
    array: np.ndarray,
    shape: tuple[int, int],
    where: str,
    problems: list[schema.Problem],
) -> None:
    """Shape against pictures and vertices, and the type."""
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        schema.add_problem(problems, where, f"holds {array.dtype}", "float32")
    if array.ndim != 2:
        schema.add_problem(
            problems, where, f"shape {array.shape}", "(pictures, vertices)"
        )
    elif array.shape == shape[::-1] and shape[0] != shape[1]:
        schema.add_problem(
            problems,
            where,
            f"shape {array.shape}, transposed",
            f"(pictures, vertices) {shape}",
        )
    else:
        if array.shape[0] != shape[0]:
            schema.add_problem(
                problems, where, f"{array.shape[0]} rows", f"{shape[0]}, one a picture"
            )
        if array.shape[1] != shape[1]:
            schema.add_problem(
                problems,
                where,
                f"{array.shape[1]} columns",
                f"{shape[1]}, one a vertex of the mask",
            )


def _check_ceiling(
    file: pathlib.Path, num: int, source: pathlib.Path, problems: list[schema.Problem]
) -> None:
    """Noise ceilings are fractions, one for each vertex; NaN is unknown."""
    array = schema.open_npy(file, source, problems)
    if array is None:
        return
    where = schema.inside(file, source)
    if array.dtype.kind != "f" or array.shape != (num,):
        schema.add_problem(
            problems,
            where,
            f"{array.dtype} {array.shape}",
            f"float ({num},), as the mask",
        )
    elif not (np.isnan(array) | ((array >= 0) & (array < 1))).all():
        low, high = np.nanmin(array), np.nanmax(array)
        percent = ", percent?" if high > 1 else ""
        schema.add_problem(
            problems, where, f"values {low:.4g}..{high:.4g}{percent}", "0 <= NC < 1"
        )


def _list_pictures(
    folder: pathlib.Path,
    split: str,
    source: pathlib.Path,
    problems: list[schema.Problem],
) -> tuple[dict[str, pathlib.Path], int]:
    """Pictures by image id in row order, and how many other files there are."""
    pattern = re.compile(rf"{split}-(\d{{4,5}})_nsd-(\d{{5}})\.png")
    where = schema.inside(folder, source)
    rows: dict[int, tuple[int, pathlib.Path]] = {}
    strange, twice, ignored = [], [], 0
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    for name in names:
        match = pattern.fullmatch(name)
        if match and int(match[2]) < NUM_IMAGES:
            row, number = int(match[1]), int(match[2])
            if row in rows:
                twice.append(f"{name} and {rows[row][1].name}")
            rows[row] = number, folder / name
        elif name.startswith(".") or not name.lower().endswith(".png"):
            ignored += 1  # folder settings of macOS and Windows
        else:
            strange.append(name)
    if strange:
        schema.add_problem(
            problems,
            where,
            f"{len(strange)} names not understood ({schema.shorten(strange, most=3)})",
            f"{split}-0001_nsd-00013.png, NSD number below {NUM_IMAGES}",
        )
    if twice:
        schema.add_problem(
            problems,
            where,
            f"row twice: {schema.shorten(twice, most=3)}",
            "one file a row",
        )
    if not rows:
        schema.add_problem(problems, where, "0 pictures", f"{split}-0001_nsd-?????.png")
        return {}, ignored
    gaps = sorted(set(range(1, max(rows) + 1)) - rows.keys())
    if gaps or 0 in rows:
        first = [f"{split}-{g:04d}" for g in gaps] or [f"{split}-0000 is there"]
        schema.add_problem(
            problems,
            where,
            f"rows are not 1..{max(rows)}: {len(gaps)} missing "
            f"({schema.shorten(first, most=5)})",
            "a picture for every row",
        )
    numbers = [rows[r][0] for r in sorted(rows)]
    if (np.diff(numbers) <= 0).any():
        at = sorted(rows)[int(np.argmax(np.diff(numbers) <= 0)) + 1]
        schema.add_problem(
            problems,
            where,
            f"row {at:04d} has NSD number {rows[at][0]:05d} after a number as "
            "large or larger",
            "rows in order of NSD numbers (were files renamed?)",
        )
    return {f"nsd/{rows[r][0]:05d}": rows[r][1] for r in sorted(rows)}, ignored


def _surface(
    folder: pathlib.Path, source: pathlib.Path, problems: list[schema.Problem]
) -> Surface:
    """`read_surface`, adding to the problems; no vertices if the masks are faulty."""
    files, positions, before = [], [], len(problems)
    for side, hemisphere in enumerate(HEMISPHERES):
        file = folder / f"{hemisphere}.all-vertices_fsaverage_space.npy"
        files.append(file)
        vertices = _read_mask(file, source, problems)
        positions.append(
            np.stack(
                [np.full_like(vertices, side), vertices, -np.ones_like(vertices)], 1
            )
        )
    if len(problems) > before:  # nothing can be compared with a broken mask
        return Surface(
            np.zeros((0, 3), np.int32), np.zeros((0, 0), bool), [], 0, [], []
        )
    num_left = len(positions[0])
    position = np.concatenate(positions).astype(np.int32)
    columns: dict[str, np.ndarray] = {}
    empty: list[str] = []
    for area in _classes(folder):
        labels, read = _read_labels(
            folder, area, (num_left, len(position) - num_left), source, problems
        )
        files += read
        for name, column in labels.items():
            if name in columns or name in empty:
                schema.add_problem(
                    problems,
                    schema.inside(folder / f"mapping_{area}.npy", source),
                    f"region {name} occurs in two classes",
                    "distinct names",
                )
            elif column.any():
                columns[name] = column
            else:
                empty.append(name)
    roi = (
        np.stack(list(columns.values()), 1)
        if columns
        else np.zeros((len(position), 0), bool)
    )
    return Surface(position, roi, list(columns), num_left, empty, files)


def _read_mask(
    file: pathlib.Path, source: pathlib.Path, problems: list[schema.Problem]
) -> np.ndarray:
    """Vertices of one hemisphere's mask, (vertices,) int64."""
    array = schema.open_npy(file, source, problems)
    if array is None:
        return np.zeros(0, np.int64)
    where = schema.inside(file, source)
    if array.shape != (NUM_VERTICES,) or array.dtype.kind not in "biuf":
        schema.add_problem(
            problems,
            where,
            f"{array.dtype} {array.shape}",
            f"({NUM_VERTICES},), the vertices of an fsaverage hemisphere",
        )
        return np.zeros(0, np.int64)
    if not np.isin(array, (0, 1)).all():
        values = [f"{v:g}" for v in np.unique(array)]
        schema.add_problem(
            problems,
            where,
            f"values {schema.shorten(values, most=6)}",
            "a mask of 0 and 1",
        )
    elif not array.any():
        schema.add_problem(problems, where, "0 vertices", "at least one")
    return np.flatnonzero(array == 1)


def _classes(folder: pathlib.Path) -> list[str]:
    """Names of the ROI classes with a file in the folder, plain ones first."""
    found = set()
    for name in os.listdir(folder) if folder.is_dir() else []:
        match = re.fullmatch(r"(?:[lr]h\.(.+)_challenge_space|mapping_(.+))\.npy", name)
        if match:
            found.add(match[1] or match[2])
    plain = [c for c in PLAIN_CLASSES if c in found]
    return plain + sorted(found.difference(plain))


def _read_labels(
    folder: pathlib.Path,
    area: str,
    counts: tuple[int, int],
    source: pathlib.Path,
    problems: list[schema.Problem],
) -> tuple[dict[str, np.ndarray], list[pathlib.Path]]:
    """Regions of one class: (V,) bool by name, and the files read."""
    mapping = folder / f"mapping_{area}.npy"
    files = [folder / f"{h}.{area}_challenge_space.npy" for h in HEMISPHERES]
    absent = [f for f in (mapping, *files) if not f.is_file()]
    if absent:
        problems += [
            schema.Problem(
                schema.inside(f, source), "no such file", f"all files of class {area}"
            )
            for f in absent
        ]
        return {}, []
    try:
        names = unpickle.read_mapping(mapping)
    except errors.InputError as error:
        schema.add_problem(
            problems,
            schema.inside(mapping, source),
            str(error),
            "a mapping of ROI names",
        )
        return {}, []
    prefix = "" if area in PLAIN_CLASSES else f"{area}:"
    wanted = {number: prefix + name for number, name in names.items() if number > 0}
    values = []
    for file, num in zip(files, counts, strict=True):
        array = schema.open_npy(file, source, problems)
        if array is None:
            continue
        where = schema.inside(file, source)
        unknown: list[Any] = []
        if array.shape == (num,) and array.dtype.kind in "iuf":
            found = np.unique(array)
            unknown = [v for v in found.tolist() if v not in {0, -1, *wanted}]
            values.append(array)
        else:
            schema.add_problem(
                problems,
                where,
                f"{array.dtype} {array.shape}",
                f"int ({num},), as the mask",
            )
        if unknown:
            schema.add_problem(
                problems,
                where,
                f"labels without a name: {schema.shorten([f'{v:g}' for v in unknown])}",
                f"labels of {mapping.name}: {schema.shorten([str(k) for k in wanted])}",
            )
    if len(values) < len(files):
        return {}, []
    label = np.concatenate(values)
    return {n: label == number for number, n in wanted.items()}, [mapping, *files]


def _read_subject(
    name: str,
    folder: _Folder,
    split: Callable[[str], str],
    source: pathlib.Path,
    sources: list[dict[str, Any]],
    report: list[str],
) -> schema.Subject:
    """Reads the responses of one subject."""
    surface, path = folder.surface, folder.path
    parts = [("training", folder.train)]
    if folder.test_fmri:
        parts.append(("test", folder.test))
    num_rows = sum(len(images) for _, images in parts)
    responses = np.empty((num_rows, len(surface.position)), np.float32)
    problems: list[schema.Problem] = []
    files = list(surface.files)
    row = 0
    dtypes = set()
    for part, images in parts:
        rows = slice(row, row + len(images))
        row = rows.stop
        for hemisphere, columns in zip(
            HEMISPHERES,
            (slice(0, surface.num_left), slice(surface.num_left, None)),
            strict=True,
        ):
            file = _fmri(path, part, hemisphere)
            array = np.lib.format.open_memmap(file, mode="r")
            dtypes.add(str(array.dtype.newbyteorder("=")))
            _copy(
                array, responses[rows, columns], schema.inside(file, source), problems
            )
            files.append(file)
    schema.raise_problems(source, problems, _ACTION)
    image_id = [i for _, images in parts for i in images]
    splits = np.array([split(i) for i in image_id])
    ncsnr, ceilings = _read_ncsnr(folder)
    constant = schema.num_constant(responses, splits == "train")
    sources += [schema.describe(file, source) for file in files + ceilings]
    num = {s: int((splits == s).sum()) for s in ("train", "val", "test")}
    if not num["train"]:
        raise errors.InputError(
            source,
            name,
            "0 pictures in the training split",
            "at least one",
            "Hold out a smaller share.",
        )
    moved = sum(1 for i in folder.train if split(i) == "test")
    lines = [
        f"{num['train']} train, {num['val']} val, {num['test']} test pictures; "
        f"{responses.shape[1]} vertices ({surface.num_left} lh)"
    ]
    if folder.test_fmri and moved:
        lines.append(f"{moved} pictures of the training folder are in the test split")
    lines += [f"{s} split is empty" for s in ("val", "test") if not num[s]]
    if constant:
        lines.append(f"{constant} vertices are constant in train; kept, no score")
    if dtypes != {"float32"}:
        lines.append(f"responses are {', '.join(sorted(dtypes))}, read as float32")
    if not surface.roi_names:
        lines.append("no ROI labels in roi_masks")
    if surface.empty:
        lines.append(f"regions without a vertex, left out: {', '.join(surface.empty)}")
    if not ceilings:
        lines.append("no noise ceiling in the folder; ncsnr is NaN")
    elif np.isnan(ncsnr).any():
        lines.append(f"noise ceiling unknown for {np.isnan(ncsnr).sum()} vertices")
    if folder.ignored:
        lines.append(f"{folder.ignored} files beside the pictures ignored")
    report += [f"algonauts-{name}: {line}" for line in lines]
    return schema.Subject(
        name=f"algonauts-{name}",
        responses=responses,
        image_id=image_id,
        split=splits,
        repeats=np.full(num_rows, REPEATS, np.uint8),
        ncsnr=ncsnr,
        position=surface.position,
        roi=surface.roi,
        roi_names=surface.roi_names,
        attrs={
            "dataset": "algonauts-2023",
            "space": "fsaverage",
            "surface": f"fsaverage, {NUM_VERTICES} vertices a hemisphere, lh first",
            "vertices": [NUM_VERTICES, NUM_VERTICES],
            "num_left": surface.num_left,
            "normalisation": "z-scored per vertex in each session by the distributor, "
            "then averaged over repeats",
            "sessions": "training pictures: all but the last three; test pictures: "
            "the last three",
            "repeats": f"not in the files; {REPEATS}, NSD's design, is an upper bound",
            "ncsnr": f"from the noise ceiling, assuming {REPEATS} presentations a test "
            "picture (exact for 40 sessions, else a lower bound)"
            if ceilings
            else "unknown",
            "dropped_voxels": 0,
            "constant_voxels": constant,
            "empty_regions": surface.empty,
        },
    )


def _copy(
    array: np.ndarray, target: np.ndarray, where: str, problems: list[schema.Problem]
) -> None:
    """Copies in blocks of rows and looks for values that are no numbers."""
    step = max(1, schema.BLOCK // max(1, array[:1].nbytes))
    bad, first = 0, ""
    for start in range(0, len(array), step):
        block = target[start : start + step]
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf: found
            block[...] = array[start : start + step]
        finite = np.isfinite(block)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            bad += int((~finite).sum())
            first = first or (
                f"row {start + row}, column {column} is {block[row, column]}"
            )
    if bad:
        schema.add_problem(
            problems, where, f"{bad} values are not finite (first: {first})", "numbers"
        )


def _read_ncsnr(folder: _Folder) -> tuple[np.ndarray, list[pathlib.Path]]:
    """Inverts NC = ncsnr^2 / (ncsnr^2 + 1/3); NaN where there is none."""
    files = [_ceiling(folder.path, h) for h in HEMISPHERES]
    if not all(f.exists() for f in files):
        return np.full(len(folder.surface.position), np.nan, np.float32), []
    ceiling = np.concatenate([np.load(f, allow_pickle=False) for f in files])
    ceiling = ceiling.astype(np.float64)
    return np.sqrt(ceiling / (1 - ceiling) / REPEATS).astype(np.float32), files
