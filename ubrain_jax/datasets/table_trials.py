"""Reads the table of a lab's own trials, and finds the pictures that it names.

Row k of the table is trial k of the betas. A table that a spreadsheet program saved in
another way than it looks (semicolons, UTF-16, lost zeros) is refused with the reason,
not guessed at.
"""

import csv
import io
import os
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import schema

KNOWN = ("image", "session", "run", "split", "subject")
SPLITS = ("train", "val", "test")
# Endings of the formats that `pictures` decodes.
ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm"),
)
_RESAVE = (
    "Save it as 'CSV UTF-8 (comma delimited)', or as .tsv with tabs between the cells."
)
_ONE_A_TRIAL = "Correct the table: row k must be trial k of the betas."


class Sheet(NamedTuple):
    """A text table with one header line.

    Attributes:
        columns: Cells of each column, without blanks around them; names are in lower
            case.
        names: The same names as they are written.
        lines: Line of the file of each row.
    """

    columns: dict[str, list[str]]
    names: list[str]
    lines: list[int]


class Trials(NamedTuple):
    """What was shown in each of T trials.

    Attributes:
        path: The table.
        lines: Line of the table of each trial.
        image: (T,) names of pictures as written.
        session: T labels, or None without such a column.
        run: T labels, or None.
        split: T of "train", "val" and "test", or None.
        ignored: Names of other columns.
    """

    path: pathlib.Path
    lines: list[int]
    image: list[str]
    session: list[str] | None
    run: list[str] | None
    split: list[str] | None
    ignored: list[str]


class Pictures(NamedTuple):
    """The pictures that trials name.

    Attributes:
        paths: File of each of M pictures by its path inside the folder, "/" between
            the parts and without ending; sorted.
        row: (T,) int64, picture of each trial.
        unused: Number of pictures in the folder that no trial names.
        ignored: Number of other files.
    """

    paths: dict[str, pathlib.Path]
    row: np.ndarray
    unused: int
    ignored: int


def read_sheet(path: str | os.PathLike) -> Sheet:
    """Reads a .csv (commas) or .tsv (tabs) file.

    Blank lines at the end are left out, as are nameless columns without content.

    Args:
        path: UTF-8 text; a byte-order mark is no part of the first name.

    Returns:
        All columns, as text.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is no such table; names the lines.
    """
    path = pathlib.Path(path)
    reader = csv.reader(
        io.StringIO(_read_text(path), newline=""),
        delimiter=_delimiter(path),
        strict=True,
    )
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            rows.append((reader.line_num, [cell.strip() for cell in row]))
    except csv.Error as error:
        raise errors.InputError(
            path,
            f"line {reader.line_num}",
            f"{error} (a quote that is not closed?)".replace("\t", "tab"),
            "a table",
            _RESAVE,
        ) from error
    while rows and not any(rows[-1][1]):
        rows.pop()
    if not rows:
        raise errors.InputError(
            path, "", "no text in it", "a header line and rows", "Write it again."
        )
    head = rows.pop(0)[1]
    problems: list[schema.Problem] = []
    _check_head(path, head, problems)
    for line, row in rows:
        found = None
        if not any(row):
            found = "a blank line"
        elif len(row) != len(head):
            found = f"{len(row)} cells"
        if found:
            expected = f"{len(head)} cells, as in the first line"
            schema.add_problem(problems, f"line {line}", found, expected)
    if not rows:
        schema.add_problem(problems, "line 2", "no rows below the header", "some")
    schema.raise_problems(path, problems, _RESAVE)
    columns: dict[str, list[str]] = {}
    names = []
    for k, name in enumerate(head):
        cells = [row[k] for _, row in rows]
        if name:
            names.append(name)
            columns[name.lower()] = cells
        elif any(cells):
            where = f"column {k + 1}"
            schema.add_problem(problems, where, "cells without a header", "a name")
    schema.raise_problems(path, problems, "Name the column, or delete it.")
    return Sheet(columns, names, [line for line, _ in rows])


def read_trials(path: str | os.PathLike) -> Trials:
    """Reads the table of trials.

    Columns: `image`, and as they apply `session`, `run`, `split` (train, val or test)
    and `subject` (one and the same everywhere). Others are ignored and named.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is no such table; all lines at fault are listed.
    """
    path = pathlib.Path(path)
    sheet = read_sheet(path)
    columns = sheet.columns
    if "image" not in columns:
        raise errors.InputError(
            path,
            "line 1",
            f"no column image (found: {schema.shorten(sheet.names, most=12)})",
            "a column image: the file shown in each trial",
            "Rename or add the column.",
        )
    problems: list[schema.Problem] = []
    for name in KNOWN:
        blank = [
            line
            for line, cell in zip(sheet.lines, columns.get(name, []), strict=False)
            if not cell
        ]
        if blank:
            schema.add_problem(
                problems, listed(blank), f"no {name}", f"a {name} in every row"
            )
    split = None
    if "split" in columns:
        split = [cell.lower() for cell in columns["split"]]
        _check_splits(split, sheet.lines, problems)
    people = list(dict.fromkeys(cell for cell in columns.get("subject", []) if cell))
    if len(people) > 1:
        schema.add_problem(
            problems,
            "column subject",
            f"{len(people)} subjects ({schema.shorten(people, most=6)})",
            "one subject a table: cut table and betas by subject, and prepare each",
        )
    schema.raise_problems(path, problems, _ONE_A_TRIAL)
    return Trials(
        path,
        sheet.lines,
        columns["image"],
        columns.get("session"),
        columns.get("run"),
        split,
        [n for n in sheet.names if n.lower() not in KNOWN],
    )


def find_pictures(trials: Trials, folder: str | os.PathLike) -> Pictures:
    """Finds the file of each picture by its path inside a folder, ending or not.

    Args:
        trials: The table.
        folder: Searched with all folders in it; files whose names start with "." are
            passed over.

    Raises:
        errors.MissingInputError: If the folder or pictures are missing; up to 20 are
            listed.
        errors.InputError: If a name fits several files, or two files used have one
            name but for the ending.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise errors.MissingInputError(
            folder, "", "no such folder", "the folder of pictures", "Check --images."
        )
    known = _list_folder(folder)
    stems: dict[str, list[str]] = {}
    for name in known:
        if name.lower().endswith(ENDINGS):
            stems.setdefault(_stem(name), []).append(name)
    missing: dict[str, list[int]] = {}
    problems: list[schema.Problem] = []
    chosen: dict[str, str] = {}  # name in the table -> name in the folder
    for line, name in zip(trials.lines, trials.image, strict=True):
        plain = _plain(name)
        fits = [plain] if plain in known else stems.get(plain, [])
        if name in chosen or name in missing:
            continue
        if not fits:
            missing[name] = [line]
        elif len(fits) > 1:
            found = f"{name} fits {', '.join(sorted(fits))}"
            schema.add_problem(problems, f"line {line}", found, "one file")
        else:
            chosen[name] = fits[0]
    if missing:
        raise _missing(trials, folder, list(missing), stems)
    schema.raise_problems(trials.path, problems, "Write the names with their endings.")
    used: dict[str, str] = {}
    for name in dict.fromkeys(chosen.values()):
        twin = used.setdefault(_stem(name), name)
        if twin != name:
            schema.add_problem(
                problems, name, f"differs from {twin} only by its ending", "one name"
            )
    schema.raise_problems(folder, problems, "Rename one file of each pair.")
    place = {stem: row for row, stem in enumerate(sorted(used))}
    row = np.asarray([place[_stem(chosen[n])] for n in trials.image], np.int64)
    paths = {stem: known[used[stem]] for stem in place}
    others = [n.lower().endswith(ENDINGS) for n in known.keys() - set(used.values())]
    return Pictures(paths, row, sum(others), len(others) - sum(others))


def splits_by_picture(trials: Trials, shown: Pictures) -> np.ndarray:
    """Split (M,) of each picture, as the column `split` says.

    Raises:
        errors.InputError: If a picture is in two splits; all are listed.
    """
    named: dict[int, dict[str, int]] = {}
    for row, split, line in zip(
        shown.row.tolist(), trials.split or [], trials.lines, strict=True
    ):
        named.setdefault(row, {}).setdefault(split, line)
    stems = list(shown.paths)
    several = [
        f"{stems[row]} ({', '.join(f'{s} in line {n}' for s, n in lines.items())})"
        for row, lines in sorted(named.items())
        if len(lines) > 1
    ]
    if several:
        raise errors.InputError(
            trials.path,
            "column split",
            f"{len(several)} pictures are in several splits: {schema.shorten(several)}",
            "each picture in one split",
            "Give all trials of a picture one split; a test picture must not be "
            "trained on.",
        )
    return np.asarray([next(iter(named[row])) for row in range(len(stems))])


def listed(lines: Sequence[int]) -> str:
    """Names lines of a table.

    Example:
        >>> listed([3]), listed([3, 9])
        ('line 3', 'lines 3, 9')
    """
    kind = "line" if len(lines) == 1 else "lines"
    return f"{kind} {schema.shorten([str(n) for n in lines])}"


def _read_text(path: pathlib.Path) -> str:
    """The text of a file that claims to be a table."""
    if not path.is_file():
        raise errors.MissingInputError(
            path, "", "no such file", "a table, .csv or .tsv", "Check the path."
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(error) from error
    if content[:4] == b"PK\x03\x04":
        raise errors.InputError(path, "", "an Excel workbook", "text", _RESAVE)
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content:
        raise errors.InputError(path, "", "UTF-16 or binary", "UTF-8 text", _RESAVE)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise errors.InputError(
            path, f"line {line}", "characters that are not UTF-8", "UTF-8 text", _RESAVE
        ) from error


def _unreadable(error: OSError) -> errors.InputError:
    """A file or folder that the disk or its owner withholds."""
    return errors.InputError(
        error.filename or "input",
        "",
        f"cannot be read ({error.strerror or error})",
        "permission to read it",
        "Check the disk and the permissions.",
    )


def _delimiter(path: pathlib.Path) -> str:
    """What separates the cells, by the ending of the name."""
    kinds = {".csv": ",", ".tsv": "\t"}
    if path.suffix.lower() not in kinds:
        raise errors.InputError(
            path,
            "",
            f"ends in {path.suffix or 'nothing'}",
            ".csv (commas) or .tsv (tabs)",
            _RESAVE,
        )
    return kinds[path.suffix.lower()]


def _check_head(
    path: pathlib.Path, head: list[str], problems: list[schema.Problem]
) -> None:
    """Other separators than the name of the file promises, and names that clash."""
    mark = _delimiter(path)
    for other, word in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")):
        if len(head) == 1 and other != mark and other in head[0]:
            raise errors.InputError(
                path,
                "line 1",
                f"cells are separated by {word}",
                "commas in a .csv, tabs in a .tsv",
                _RESAVE,
            )
    lowered = [name.lower() for name in head if name]
    for name in dict.fromkeys(n for n in lowered if lowered.count(n) > 1):
        found = f"{lowered.count(name)} columns are called {name}"
        schema.add_problem(problems, "line 1", found, "distinct names")


def _check_splits(
    split: Sequence[str], lines: Sequence[int], problems: list[schema.Problem]
) -> None:
    """Words that are no split, each with its lines."""
    strange: dict[str, list[int]] = {}
    for word, line in zip(split, lines, strict=True):
        if word and word not in SPLITS:
            strange.setdefault(word, []).append(line)
    for word, where in strange.items():
        schema.add_problem(
            problems, listed(where), f"split {word!r}", "train, val or test"
        )


def _list_folder(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Files by their names inside the folder."""
    known: dict[str, pathlib.Path] = {}

    def stop(error: OSError) -> None:  # or a folder would be passed over in silence
        raise _unreadable(error) from error

    for place, _, names in os.walk(folder, onerror=stop):
        for name in names:
            if name.startswith("."):  # settings of macOS, locks of editors
                continue
            path = pathlib.Path(place) / name
            known[_plain(path.relative_to(folder).as_posix())] = path
    return known


def _plain(name: str) -> str:
    """A name as it is compared: macOS splits accents, Windows writes backslashes."""
    plain = unicodedata.normalize("NFC", name).replace("\\", "/")
    return plain.removeprefix("./")


def _stem(name: str) -> str:
    """A path without its ending."""
    return name.removesuffix(pathlib.PurePosixPath(name).suffix)


def _missing(
    trials: Trials,
    folder: pathlib.Path,
    missing: list[str],
    stems: Mapping[str, Sequence[str]],
) -> errors.MissingInputError:
    """All pictures that were not found, and what the first one may be."""

    def loosely(name: str) -> str:  # spreadsheets drop zeros, people cases and endings
        plain = _plain(name)
        stem = _stem(plain) if plain.lower().endswith(ENDINGS) else plain
        folders, _, last = stem.lower().rpartition("/")
        return f"{folders}/{last.lstrip('0')}"

    like = {loosely(name): name for names in stems.values() for name in names}
    close = [(n, like[loosely(n)]) for n in missing if loosely(n) in like]
    if close:
        action = "Is {} the file {}? Write names as the files have them.".format(
            *close[0]
        )
    else:
        examples = [names[0] for names in stems.values()]
        action = (
            f"The folder holds {schema.shorten(examples, most=3) or 'no pictures'}."
        )
    return errors.MissingInputError(
        folder,
        "",
        f"{len(missing)} of {len(set(trials.image))} pictures that {trials.path.name} "
        f"names are not there: {schema.shorten(missing)}",
        "a file for each",
        action,
    )
