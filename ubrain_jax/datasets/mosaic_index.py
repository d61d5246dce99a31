"""Lists one file of MOSAIC and checks that it agrees with its name and with itself.

Nothing of the betas is read here. What the public writer of these files left open is
taken both ways: names and attributes may each be absent, numbers may be text; what is
said twice must agree.

References:
    github.com/blahner/mosaic-preprocessing (layout).
"""

import pathlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.datasets import files, mosaic_pictures, schema

NUM_GRAYORDINATES = 91282
NUM_LEFT, NUM_RIGHT = 29696, 29716  # cortex, without the medial wall
NUM_VERTICES = 32492  # of a hemisphere, with it
NUM_CORTEX = NUM_LEFT + NUM_RIGHT
# What the attribute dataset_name of the files calls the datasets of their names.
LONG_NAMES = {
    "BMD": "BOLDMomentsDataset",
    "BOLD5000": "BOLD5000",
    "deeprecon": "deeprecon",
    "GOD": "GenericObjectDecoding",
    "HAD": "HumanActionsDataset",
    "NOD": "NaturalObjectDataset",
    "NSD": "NaturalScenesDataset",
    "THINGS": "THINGS_fmri",
}
AGAIN = "Download the file again, or leave the subject out (subjects)."
PHASES = ("train", "test", "artificial")
FILE = re.compile(r"(sub-\d+)_([A-Za-z0-9]+)(?:_crc32-[0-9a-f]+)?")
_TRIAL = re.compile(r"(sub-\d+)_([A-Za-z0-9]+)_stimulus-(.+)_phase-([a-z]+)_rep-(\d+)")
_CEILING = re.compile(r".*_phase-test_n-1(?:_.*)?")
# Attributes of the file that go into the store; age, sex and owner do not.
_ABOUT = ("visual_angle", "preprocessing_pipeline", "beta_pipeline")
_MEMBER = ("phase", "repetition", "presented_stimulus_filename")
_IMAGE = "image_stimulus_filename"
_SHAPES = ((NUM_GRAYORDINATES,), (NUM_GRAYORDINATES, 1))
_MOST_REPEATS = 255  # repeats are kept as uint8


class Trial(NamedTuple):
    """One presentation.

    Attributes:
        member: Name of its dataset in the group betas.
        phase: One of `PHASES`.
        repetition: From 0; it tells trials of one stimulus apart and means no order.
        stimulus: What was shown.
    """

    member: str
    phase: str
    repetition: int
    stimulus: mosaic_pictures.Stimulus


class File(NamedTuple):
    """One subject's file, listed and checked, responses not read.

    Attributes:
        path: The file.
        subject: For example "sub-01".
        dataset: For example "NSD".
        groups: Trials of each picture by image id, in order of repetitions; all of
            one phase.
        dtype: Of the betas, "f4" or "f8".
        about: Attributes of the file worth keeping.
        lost: Sorted grayordinates that the file lists as NaN.
        ceiling: Name of the noise ceiling of single test trials; "" if there is none.
        ceiling_lost: Sorted grayordinates that are NaN in a noise ceiling.
        artificial: Number of artificial stimuli left out.
    """

    path: pathlib.Path
    subject: str
    dataset: str
    groups: dict[str, list[Trial]]
    dtype: str
    about: dict[str, Any]
    lost: np.ndarray
    ceiling: str
    ceiling_lost: np.ndarray
    artificial: int

    @property
    def name(self) -> str:
        """Of the subject, for example "mosaic-nsd-sub01"."""
        return full_name(self.subject, self.dataset)

    def trials(self, phase: str) -> int:
        """How many trials a phase has."""
        return sum(len(g) for g in self.groups.values() if g[0].phase == phase)


def image_id(stem: str) -> str:
    """Id of a picture by its file name without ending.

    Example:
        >>> image_id("000000123456"), image_id("n01443537_22563")
        ('mosaic/000000123456', 'god/n01443537_22563')
    """
    imagenet = re.fullmatch(r"n\d{8}_\d+", stem)
    return f"god/{stem}" if imagenet else f"mosaic/{stem}"


def full_name(subject: str, dataset: str) -> str:
    """Name of a subject in the store.

    Example:
        >>> full_name("sub-01", "NSD")
        'mosaic-nsd-sub01'
    """
    return f"mosaic-{dataset.lower()}-{subject.replace('-', '')}"


def inspect(
    path: pathlib.Path,
    artificial: bool,
    source: pathlib.Path,
    problems: list[schema.Problem],
) -> File | None:
    """Lists one file and checks it.

    Args:
        path: Named like sub-01_NSD.hdf5.
        artificial: Keep artificial stimuli.
        source: Folder that messages leave out of names.
        problems: Gets all that is wrong.

    Returns:
        The file, not to be used beside problems; None if it cannot be listed.
    """
    match = FILE.fullmatch(path.stem)
    if not match:
        raise ValueError(f"{path} is not named like sub-01_NSD.hdf5")
    subject, dataset = match.groups()
    where = schema.inside(path, source)

    def fault(found: str, expected: str) -> None:
        schema.add_problem(problems, where, found, expected)

    try:
        contents = files.hdf5_contents(
            path,
            ["betas", "noiseceilings"],
            attributes=["subjectID", "dataset_name", *_ABOUT, *_MEMBER, _IMAGE],
            numbers=("nan_indices_all", "nan_indices"),
        )
    except errors.InputError as error:
        fault(str(error), "a file of MOSAIC")
        return None
    members = contents.members.get("betas", [])
    if not members:
        names = schema.shorten(contents.names, most=6) or "nothing"
        merged = any(FILE.fullmatch(n) for n in contents.names)
        fault(
            f"{'an empty' if 'betas' in contents.names else 'no'} group betas (found: "
            f"{names}{'; a merged file' if merged else ''})",
            "the betas of one subject",
        )
        return None
    for key, known in (
        ("subjectID", {subject}),
        ("dataset_name", {dataset, LONG_NAMES.get(dataset, dataset)}),
    ):
        said = str(contents.attributes.get(key, subject if key[0] == "s" else dataset))
        # A dataset that is not in the table may call itself what it likes.
        if said not in known and (key == "subjectID" or dataset in LONG_NAMES):
            fault(f"{key} is {said!r}", f"{' or '.join(sorted(known))}, as its name")
    trials = [_parse(m, subject, dataset, where, problems) for m in members]
    groups, left_out = _group([t for t in trials if t], artificial, fault)
    ceilings = contents.members.get("noiseceilings", [])
    ceilings = [m for m in ceilings if _CEILING.fullmatch(m.name)]
    if len(ceilings) > 1:
        fault(f"noise ceilings {', '.join(m.name for m in ceilings)}", "one of them")
    for member in ceilings:
        if member.layout.shape not in _SHAPES:
            fault(f"{member.name} has shape {member.layout.shape}", str(_SHAPES[0]))
    lost = {key: _indices(n, fault) for key, n in contents.numbers.items()}
    none = np.zeros(0, np.int64)
    return File(
        path,
        subject,
        dataset,
        groups,
        "f8" if any(m.layout.dtype.itemsize > 4 for m in members) else "f4",
        {k: v for k, v in contents.attributes.items() if k in _ABOUT},
        np.union1d(lost.get("", none), lost.get("betas", none)),
        ceilings[0].name if ceilings else "",
        lost.get("noiseceilings", none),
        left_out,
    )


def _parse(
    member: files.Member,
    subject: str,
    dataset: str,
    where: str,
    problems: list[schema.Problem],
) -> Trial | None:
    """A trial as its name and its attributes say; None beside a problem."""
    faults: list[schema.Problem] = []

    def fault(found: str, expected: str) -> None:
        schema.add_problem(faults, f"{where}:/betas/{member.name}", found, expected)

    if member.layout.shape not in _SHAPES:
        fault(f"shape {member.layout.shape}", str(_SHAPES[0]))
    if member.layout.dtype.kind != "f" or member.layout.dtype.itemsize not in (4, 8):
        fault(f"holds {member.layout.dtype}", "float32 or float64")
    match = _TRIAL.fullmatch(member.name)
    named = match.groups() if match else (subject, dataset, "", "", "")
    said = {key: str(member.attributes.get(key, "")) for key in (*_MEMBER, _IMAGE)}
    presented, image = said["presented_stimulus_filename"], said[_IMAGE]
    if named[:2] != (subject, dataset):
        fault(f"is of {named[0]}_{named[1]}", f"{subject}_{dataset}, as the file")
    phase = _agree("phase", named[3], said["phase"], fault)
    repetition = _agree(
        "repetition", _plain(named[4]), _plain(said["repetition"]), fault
    )
    stem = named[2] or _stem(presented)
    if named[2] and presented and named[2] not in (presented, _stem(presented)):
        fault(f"presented_stimulus_filename is {presented!r}", f"{named[2]!r}, ...")
    if not stem:
        fault(
            "no presented_stimulus_filename",
            f"it, or a name like {subject}_{dataset}_stimulus-X_phase-train_rep-0",
        )
    if "/" in presented + image:
        fault(f"stimulus {presented!r}, {image!r} is a path", "a file name")
    if phase and phase not in PHASES:
        fault(f"phase is {phase!r}", f"one of {', '.join(PHASES)}")
    if repetition and not re.fullmatch(r"\d{1,6}", repetition):
        fault(f"repetition is {repetition!r}", "a number")
    problems.extend(faults)
    if faults:
        return None
    if _is_artificial(dataset, stem, presented):
        phase = "artificial"
    stimulus = mosaic_pictures.Stimulus(stem, presented, image)
    return Trial(member.name, phase, int(repetition), stimulus)


def _agree(what: str, named: str, said: str, fault: Callable[[str, str], None]) -> str:
    """What the name of a trial and its attribute say, or the one that says it."""
    # Artificial trials were renamed to test in some files, their attributes not.
    if {named, said} == {"test", "artificial"}:
        return "artificial"
    if named and said and named != said:
        fault(f"{what} is {said!r} in the attribute", f"{named!r}, as in the name")
    if not named and not said:
        fault(f"no {what}", f"an attribute {what}, or it in the name")
    return named or said


def _plain(number: str) -> str:
    """Text of a number without zeros in front; 1.0 is 1."""
    return re.sub(r"^0+(?=\d)|\.0$", "", number)


def _stem(name: str) -> str:
    """A file name without its ending."""
    return name.rsplit(".", 1)[0] if "." in name else name


def _is_artificial(dataset: str, stem: str, presented: str) -> bool:
    """Whether MOSAIC lists a stimulus as no natural picture, by its name."""
    if dataset == "NSD":  # all others have the 12 digits of COCO
        return bool(re.fullmatch(r"\d{3}", stem))
    return dataset == "deeprecon" and presented.lower().endswith((".tif", ".tiff"))


def _group(
    trials: Sequence[Trial], artificial: bool, fault: Callable[[str, str], None]
) -> tuple[dict[str, list[Trial]], int]:
    """Trials by image id, and how many artificial stimuli were left out."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(image_id(trial.stimulus.stem), []).append(trial)
    left_out, mixed, often, twice = [], [], [], []
    for image, group in groups.items():
        group.sort(key=lambda trial: trial.repetition)
        counts = Counter(trial.repetition for trial in group)
        if len({trial.phase for trial in group}) > 1:
            mixed.append(image)
        elif group[0].phase == "artificial" and not artificial:
            left_out.append(image)
        elif len(group) > _MOST_REPEATS:
            often.append(f"{image}: {len(group)}")
        elif len(counts) < len(group):
            twice.append(f"{image} repetition {counts.most_common(1)[0][0]}")
    for listed, found, expected in (
        (mixed, "pictures are in two phases", "each in one"),
        (often, "pictures have too many trials", f"at most {_MOST_REPEATS} each"),
        (twice, "pictures have a repetition twice", "each repetition once"),
    ):
        if listed:
            fault(f"{len(listed)} {found}: {schema.shorten(listed)}", expected)
    for image in left_out:
        del groups[image]
    num = sum(len(g) for g in groups.values() if g[0].phase == "train")
    if num < 2 and trials:
        fault(f"{num} trials of phase train", "two or more, to z-score with")
    return groups, len(left_out)


def _indices(numbers: np.ndarray, fault: Callable[[str, str], None]) -> np.ndarray:
    """Grayordinates that the file lists as NaN, int64."""
    inside = np.isin(numbers, np.arange(NUM_GRAYORDINATES))
    if not inside.all():
        listed = schema.shorten([f"{n:g}" for n in numbers[~inside]], most=5)
        fault(f"nan_indices hold {listed}", f"0..{NUM_GRAYORDINATES - 1}")
    return numbers[inside].astype(np.int64)
