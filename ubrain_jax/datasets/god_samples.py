"""What the samples of fMRI-on-ImageNet are: part, run and picture of each.

Stimulus ids are the number of the ImageNet category plus 1e-6 times the number of the
picture, so they need float64: in float32 the 1200 training pictures collapse to 150.

References:
    Horikawa & Kamitani, 2017, Nature Communications 8:15037.
"""

from typing import NamedTuple

import numpy as np

from ubrain_jax.datasets import bdata, schema

TRAINING, TEST, IMAGERY = 1, 2, 3  # DataType
PARTS = {TRAINING: "training", TEST: "test", IMAGERY: "imagery"}
# Keys of the columns that describe a sample, with the names each goes by.
LABELS = (("DataType",), ("Run",), ("stimulus_id", "Label"))
PREFIX = "god/"  # of image ids
ACTION = "Get the file again, or leave the subject out (subjects)."
_STEPS = 1_000_000  # ids are 1e-6 apart,
_ID_TOLERANCE = 2e-8  # and float64 is nearer than this to what is meant


class Samples(NamedTuple):
    """What the T samples of a table are.

    Attributes:
        part: (T,) int, the DataType.
        run: (T,) int, counted within a part; 0 for imagery.
        number: (T,) int64, the stimulus id in steps of 1e-6; 0 for imagery.
    """

    part: np.ndarray
    run: np.ndarray
    number: np.ndarray


def image_id(number: int) -> str:
    """Id of a picture from its stimulus id in steps of 1e-6.

    Example:
        >>> image_id(1443537022563)
        'god/n01443537_22563'
    """
    category, picture = divmod(number, _STEPS)
    return f"{PREFIX}n{category:08d}_{picture}"


def read_samples(table: bdata.Table) -> Samples:
    """Reads and checks what the samples are.

    Args:
        table: From `bdata.open_table`.

    Returns:
        The samples; imagery has no run and no number.

    Raises:
        errors.InputError: If a column is absent, a DataType is unknown, a run or id is
            missing or not a number of its kind, ids went through float32, a picture is
            in training and test, or a run has one sample; all faults are listed.
    """
    kind, run, label = bdata.read_labels(table, LABELS)
    problems: list[schema.Problem] = []
    known = np.isin(kind, list(PARTS))
    if not known.all():
        values = [f"{v:g}" for v in np.unique(kind[~known])]
        schema.add_problem(
            problems,
            "DataType",
            f"{schema.shorten(values, most=6)} in {int((~known).sum())} samples",
            "1 (training), 2 (test) or 3 (imagery)",
        )
    used = np.isin(kind, (TRAINING, TEST))
    no_run = used & ~(np.isfinite(run) & (run == np.rint(run)) & (np.abs(run) < 1e9))
    if no_run.any():
        schema.add_problem(
            problems,
            "Run",
            f"no run number in {int(no_run.sum())} samples (first: sample "
            f"{int(np.argmax(no_run))} has {run[no_run][0]:g})",
            "a whole number for each",
        )
    numbers = numbers_of(label, used, str(table.layout.dtype), problems)
    if not (kind == TRAINING).any():
        schema.add_problem(problems, "DataType", "no training sample", "some (1)")
    schema.raise_problems(table.path, problems, ACTION)
    part = np.where(known, kind, 0).astype(int)
    samples = Samples(part, np.where(used, run, 0).astype(int), numbers)
    both = np.intersect1d(numbers[kind == TRAINING], numbers[kind == TEST])
    if len(both):
        schema.add_problem(
            problems,
            "stimulus_id",
            f"{len(both)} pictures are in training and test "
            f"({schema.shorten([image_id(n) for n in both.tolist()], most=3)})",
            "pictures in one of them",
        )
    short = [
        f"{PARTS[p]} run {r}"
        for (p, r), rows in runs_of(samples).items()
        if len(rows) < 2
    ]
    if short:
        schema.add_problem(
            problems,
            "Run",
            f"{len(short)} runs of one sample ({schema.shorten(short, most=5)})",
            "two or more to z-score",
        )
    schema.raise_problems(table.path, problems, ACTION)
    return samples


def numbers_of(
    label: np.ndarray, used: np.ndarray, dtype: str, problems: list[schema.Problem]
) -> np.ndarray:
    """Stimulus ids as integers.

    Args:
        label: (T,) float64 ids.
        used: (T,) bool: samples whose id matters.
        dtype: Of the table, for messages.
        problems: Gets an entry if an id is none, or if ids went through float32.

    Returns:
        (T,) int64, in steps of 1e-6; 0 where not used and beside a problem.

    Example:
        >>> numbers_of(np.array([1443537.022563]), np.ones(1, bool), "float64", [])
        array([1443537022563])
    """
    numbers = np.zeros(len(label), np.int64)
    found = label[used]
    plausible = (found >= 1) & (found < 1e8)  # False for NaN
    if not plausible.all():
        schema.add_problem(
            problems,
            "stimulus_id",
            f"{int((~plausible).sum())} ids are not of ImageNet (first: "
            f"{found[~plausible][0]:g})",
            "ids such as 1443537.022563",
        )
        return numbers
    distinct = np.unique(found)
    if len(found) and (distinct == distinct.astype(np.float32)).all():
        schema.add_problem(
            problems,
            "stimulus_id",
            f"{len(distinct)} distinct ids in {len(found)} samples, all exact in "
            f"float32 (the table is {dtype}): pictures of a category, "
            "1e-6 apart, are no longer told apart",
            "ids in float64",
        )
        return numbers
    whole = np.rint(found * _STEPS)
    off = np.abs(found - whole / _STEPS) > _ID_TOLERANCE
    if off.any():
        schema.add_problem(
            problems,
            "stimulus_id",
            f"{int(off.sum())} ids are between multiples of 1e-6 (first: "
            f"{float(found[off][0])!r})",
            "ids such as 1443537.022563",
        )
        return numbers
    numbers[used] = whole.astype(np.int64)
    return numbers


def runs_of(samples: Samples) -> dict[tuple[int, int], np.ndarray]:
    """Sample numbers of each run, by (DataType, Run), imagery left out."""
    found: dict[tuple[int, int], list[int]] = {}
    for row, (part, run) in enumerate(
        zip(samples.part.tolist(), samples.run.tolist(), strict=True)
    ):
        if part != IMAGERY:
            found.setdefault((part, run), []).append(row)
    return {key: np.array(found[key]) for key in sorted(found)}
