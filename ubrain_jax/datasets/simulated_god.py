"""Simulated fMRI-on-ImageNet (Generic Object Decoding) with a known truth.

Unlike the simulated NSD: pictures of one large object before a plain or blurred
background, in JPEG files of unequal sides; voxels of 3 mm that mix several populations
and have larger receptive fields; more noise in a single presentation, training
pictures shown once, test pictures many times; a gain and an offset for each run.

    DIR/Subject1.h5 ...                      or Subject1.mat (MATLAB v5)
    DIR/images/training/n01234567_890.JPEG   and images/test
    DIR/truth/

A table has one row for each block: DataType 1 training, 2 test, 3 imagery (of a test
picture's category), runs numbered from 1 within each of them.

References:
    Horikawa & Kamitani, 2017, Nature Communications 8:15037 (design, ROIs).
"""

import io
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import h5py
import numpy as np
from PIL import Image

from ubrain_jax import errors
from ubrain_jax.datasets import drawing, planted, truth

# Larger voxels at 3 tesla: larger fields, more noise.
RECIPE = planted.Recipe(field=1.4, ncsnr=0.2, spread=0.45, least=0.05, most=0.6)
SHARES = np.array([0.4, 0.2, 0.2, 0.2])  # of the populations in a voxel
VOXEL_MM = 3
PER_CATEGORY = 8  # training pictures
RUN_LENGTH = 50  # blocks of a training run, at most
IMAGERY_REPEATS = 10
IMAGERY_STRENGTH = 0.4  # of the response to the picture
ENCODINGS = ("h5", "mat")
ROIS = ("V1", "V2", "V3", "V4", "LOC", "FFA", "PPA", "LVC", "HVC", "VC")
# Streams of random numbers of one seed, apart from those of the simulated NSD.
_PICTURES, _NAMES, _VOXELS, _NOISE = range(200, 204)


class Pictures(NamedTuple):
    """The stimuli: num_train training pictures, then num_test test pictures.

    Attributes:
        synset: (M,) number of the WordNet id.
        number: (M,) number of the picture within it.
        group: (M,) 1-based index of the synset within training or test.
        num_train: How many are for training.
    """

    synset: np.ndarray
    number: np.ndarray
    group: np.ndarray
    num_train: int

    def stems(self) -> list[str]:
        """File names without their ending, for example n01443537_22563."""
        pairs = zip(self.synset, self.number, strict=True)
        return [f"n{int(s):08d}_{int(n)}" for s, n in pairs]


class Rows(NamedTuple):
    """Blocks of one subject, in order.

    Attributes:
        data_type: (T,) 1 training, 2 test, 3 imagery.
        run: (T,) 1-based, within the data type.
        picture: (T,) row of `Pictures`; for imagery the test picture of the category.
    """

    data_type: np.ndarray
    run: np.ndarray
    picture: np.ndarray


def name_pictures(seed: int, num_train: int, num_test: int) -> Pictures:
    """Names of the pictures; two numbers of each training synset are neighbours.

    As ids (synset + number / 1e6) those are 1e-6 apart, which float32 cannot hold.
    """
    rng = np.random.default_rng([seed, _NAMES])
    groups = -(-num_train // PER_CATEGORY)
    synsets = rng.choice(np.arange(1_400_000, 4_700_000), groups + num_test, False)
    synset = np.repeat(np.sort(synsets[:groups]), PER_CATEGORY)[:num_train]
    number = []
    for _ in range(groups):
        some = rng.choice(np.arange(2, 40_000, 2), PER_CATEGORY, replace=False)
        some[1] = some[0] + 1
        number.append(np.sort(some))
    return Pictures(
        synset=np.r_[synset, np.sort(synsets[groups:])],
        number=np.r_[
            np.concatenate(number)[:num_train], rng.integers(2, 40_000, num_test)
        ],
        group=np.r_[np.arange(num_train) // PER_CATEGORY, np.arange(num_test)] + 1,
        num_train=num_train,
    )


def draw(
    seed: int, index: int, pictures: Pictures, px: int
) -> tuple[bytes, drawing.Scene]:
    """One picture as a JPEG file.

    The pictures of a synset show one kind of object, more often than not before its
    usual kind of scene. One file in 25 is grey.

    Args:
        seed: Of the dataset.
        index: Row of `pictures`.
        pictures: All of them.
        px: Shorter side in pixels.

    Returns:
        Content of the file; and what it shows, in all of it.
    """
    rng = np.random.default_rng([seed, _PICTURES, index])
    kind = int(pictures.synset[index])
    scene = kind // len(drawing.CATEGORIES) % len(drawing.SCENES)
    if rng.random() < 0.4:
        scene = int(rng.integers(len(drawing.SCENES)))
    long = round(px * rng.choice([1, 4 / 3, 3 / 2, rng.uniform(1, 1.8)]))
    height, width = (px, long) if rng.random() < 0.7 else (long, px)
    category = kind % len(drawing.CATEGORIES)
    picture, shown = drawing.draw_object(rng, category, scene, height, width)
    image = Image.fromarray(picture)
    if rng.random() < 0.04:
        image = image.convert("L")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue(), shown


def middle(array: np.ndarray) -> np.ndarray:
    """The square middle of (H, W, ...): all that the subject saw of a picture."""
    height, width = array.shape[:2]
    px = min(height, width)
    top, left = (height - px) // 2, (width - px) // 2
    return array[top : top + px, left : left + px]


def _seen(
    root: pathlib.Path, seed: int, pictures: Pictures, px: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Writes every picture; yields it as the subject saw it: decoded, the middle."""
    folders = [root / "images" / name for name in ("training", "test")]
    for folder in folders:
        folder.mkdir(parents=True)
    for index, stem in enumerate(pictures.stems()):
        content, scene = draw(seed, index, pictures, px)
        folder = folders[index >= pictures.num_train]
        (folder / f"{stem}.JPEG").write_bytes(content)
        with Image.open(io.BytesIO(content)) as image:
            decoded = np.asarray(image.convert("RGB"))
        yield middle(decoded), middle(scene.category), scene.scene


def _rows(
    rng: np.random.Generator, num_train: int, num_test: int, repeats: int
) -> Rows:
    """Draws the order of a subject's blocks."""
    training = np.array_split(rng.permutation(num_train), -(-num_train // RUN_LENGTH))
    test = [num_train + rng.permutation(num_test) for _ in range(repeats)]
    imagery = [
        num_train + half
        for _ in range(IMAGERY_REPEATS)
        for half in np.array_split(rng.permutation(num_test), 2)
    ]
    parts = [training, test, imagery]
    counted = [
        (kind, run, picture)
        for kind, runs in enumerate(parts, 1)
        for run, some in enumerate(runs, 1)
        for picture in some
    ]
    return Rows(*np.array(counted).T)


def regions(voxels: planted.Voxels) -> dict[str, np.ndarray]:
    """Which voxels belong to each of `ROIS`.

    V1 to V3: orientation voxels by tercile of field size; V4: colour voxels; LOC:
    object voxels; FFA and PPA: those of them that prefer faces or houses, and to PPA
    belong the scene voxels. LVC is V1 to V3, HVC is LOC, FFA and PPA, VC is all.

    Args:
        voxels: V voxels.

    Returns:
        (V,) bool for each.
    """
    kind = np.array(planted.KINDS)[voxels.kind]
    area = planted.by_field_size(voxels, kind == "orientation", 3)
    prefers = {
        c: voxels.category == drawing.CATEGORIES.index(c) for c in ("face", "house")
    }
    member = {f"V{a}": area == a for a in (1, 2, 3)}
    member |= {"V4": kind == "colour", "LOC": kind == "object"}
    member |= {
        "FFA": prefers["face"],
        "PPA": prefers["house"] | (kind == "scene"),
        "LVC": area > 0,
        "HVC": (kind == "object") | (kind == "scene"),
        "VC": np.ones(len(kind), bool),
    }
    return {name: member[name] for name in ROIS}


def _responses(
    rng: np.random.Generator, signal: np.ndarray, rows: Rows, noise: float
) -> np.ndarray:
    """(T, V) responses in percent: signal and noise, with a gain and offset per run.

    Args:
        rng: Where all randomness comes from.
        signal: (M, V) noiseless responses, in units of the noise before its factor.
        rows: T blocks.
        noise: Factor of the noise.
    """
    num = signal.shape[1]
    percent = 0.8 * np.exp(rng.normal(0, 0.3, num))
    base = rng.normal(0.2, 0.4, num)
    strength = np.where(rows.data_type == 3, IMAGERY_STRENGTH, 1.0)
    out = signal[rows.picture] * strength[:, None]
    out += noise * rng.standard_normal(out.shape)
    for kind in (1, 2, 3):
        for run in range(1, 1 + rows.run[rows.data_type == kind].max()):
            here = (rows.data_type == kind) & (rows.run == run)
            out[here] *= np.exp(rng.normal(0, 0.15, num))
            out[here] += rng.normal(0, 0.6, num)
    return percent * out + base


class Table(NamedTuple):
    """A table as distributed: T rows, one column for each voxel and design variable.

    Attributes:
        data: (T, C) float64.
        key: K names of metadata.
        description: K texts.
        value: (K, C) float64, NaN where a key does not apply to a column.
    """

    data: np.ndarray
    key: list[str]
    description: list[str]
    value: np.ndarray


def _table(
    responses: np.ndarray,
    design: Mapping[str, np.ndarray],
    position: np.ndarray,
    member: Mapping[str, np.ndarray],
    voxels_first: bool,
) -> Table:
    """Joins responses (T, V), design columns and what is known of the voxels.

    An ROI has 1 for its voxels and 0 for others; those made of several ROIs have NaN
    for others: both are in circulation.
    """
    num_voxels, num_design = responses.shape[1], len(design)
    columns = np.stack(list(design.values()), axis=1).astype(np.float64)
    is_voxel = np.r_[np.ones(num_voxels, bool), np.zeros(num_design, bool)]
    blank = np.full(num_voxels + num_design, np.nan)
    rows, texts = {}, {}

    def add(key: str, text: str, of: np.ndarray, values: Any) -> None:
        rows[key] = blank.copy()
        rows[key][of] = values
        texts[key] = text

    add("VoxelData", "1 = voxel data", is_voxel, 1)
    for d, name in enumerate(design):
        add(name, f"1 = {name}", np.arange(len(blank)) == num_voxels + d, 1)
    for axis, name in enumerate("xyz"):
        add(f"voxel_{name}", f"Voxel {name} coordinate", is_voxel, position[:, axis])
    for name, members in member.items():
        other = np.nan if name in ("LVC", "HVC", "VC") else 0.0
        values = np.where(members, 1.0, other)
        add(f"ROI_{name}", f"1 = ROI {name}", is_voxel, values)
    order = np.argsort(is_voxel != voxels_first, kind="stable")
    return Table(
        data=np.concatenate([responses, columns], axis=1)[:, order],
        key=list(rows),
        description=list(texts.values()),
        value=np.stack(list(rows.values()))[:, order],
    )


def _write_h5(path: pathlib.Path, table: Table) -> None:
    """Writes dataSet and metaData as HDF5, text as bytes of fixed length."""
    with h5py.File(path, "w") as file:
        for name, data in {
            "dataSet": table.data,
            "metaData/key": np.array(table.key, "S"),
            "metaData/description": np.array(table.description, "S"),
            "metaData/value": table.value,
        }.items():
            file.create_dataset(name, data=data, track_times=False)


def _write_mat(path: pathlib.Path, table: Table) -> None:
    """Writes dataSet and metaData as MATLAB v5, text as cells."""
    meta = {
        "key": np.array([table.key], object),
        "description": np.array([table.description], object),
        "value": table.value,
    }
    truth.write_mat(path, {"dataSet": table.data, "metaData": meta})


def _brain(num_voxels: int, subject: int) -> np.ndarray:
    """(X, Y, Z) bool brain with room for the voxels, unequal sides."""
    sides = np.array([(13, 16, 11), (12, 15, 13), (15, 14, 11)][subject % 3], float)
    while planted.ellipsoid(tuple(np.ceil(sides).astype(int))).sum() < 1.4 * num_voxels:
        sides *= 1.05
    return planted.ellipsoid(tuple(np.ceil(sides).astype(int)))


def _write_subject(
    root: pathlib.Path,
    settings: Mapping[str, Any],
    subject: int,
    pictures: Pictures,
    brain: np.ndarray,
    voxels: planted.Voxels,
    units: planted.Voxels,
    clean: np.ndarray,
) -> dict[str, Any]:
    """Writes the file of a subject; returns what truth.json says about it."""
    seed, num_train = settings["seed"], pictures.num_train
    factor = settings["noise"][subject - 1]
    rng = np.random.default_rng([seed, _NOISE, subject])
    rows = _rows(rng, num_train, settings["num_test"], settings["num_repeats"])
    # Beside the tuned voxels a few of the brain that answer nothing.
    quiet = brain.copy()
    quiet[tuple(voxels.position.T)] = False
    others = np.argwhere(quiet)[: max(1, len(voxels.kind) // 5)]
    place = np.concatenate([voxels.position, others])
    order = np.lexsort(place.T[::-1])  # the C order of the grid
    column = np.argsort(order)[: len(voxels.kind)]
    signal = np.zeros((len(clean), len(place)))
    signal[:, column] = clean * (voxels.ncsnr * factor)
    responses = _responses(rng, signal, rows, factor)
    member = {}
    for name, members in regions(voxels).items():
        member[name] = np.zeros(len(place), bool)
        member[name][column] = members
    # Millimetres; left, posterior and inferior are negative.
    corner = VOXEL_MM * np.array([-(brain.shape[0] - 1) / 2, -32, -8])
    is_imagery = rows.data_type == 3
    picture_id = pictures.synset + pictures.number / 1e6
    design = {
        "DataType": rows.data_type,
        "Run": rows.run,
        "stimulus_id": np.where(
            is_imagery, pictures.synset[rows.picture], picture_id[rows.picture]
        ),
        "category_index": pictures.group[rows.picture],
        "image_index": np.where(
            is_imagery, 0, 1 + rows.picture - num_train * (rows.data_type == 2)
        ),
    }
    to_mat = settings["encoding"] == "mat"
    if to_mat:  # as distributed: three design columns, before the voxels
        design = {k: design[k] for k in ("DataType", "Run", "stimulus_id")}
        design["Label"] = design.pop("stimulus_id")
    table = _table(
        responses, design, VOXEL_MM * place[order] + corner, member, not to_mat
    )
    name = f"Subject{subject}"
    if to_mat:
        _write_mat(root / f"{name}.mat", table)
    else:
        _write_h5(root / f"{name}.h5", table)
    inner = {
        f"unit_{k}": a.reshape(len(voxels.kind), len(SHARES), *a.shape[1:])
        for k, a in units._asdict().items()
        if k in ("kind", "centre", "size", "tuning", "contrast")
    }
    truth.write_arrays(
        root,
        name,
        **voxels._asdict(),
        **inner,
        unit_share=SHARES,
        column=column,
        responses=clean,
        noise_ceiling=100
        * voxels.ncsnr**2
        / (voxels.ncsnr**2 + 1 / settings["num_repeats"]),
        image=np.array(pictures.stems()),
    )
    return {
        "name": name,
        "voxels": len(voxels.kind),
        "grid": list(brain.shape),
        "trials": len(rows.run),
        "kinds": {
            k: int((voxels.kind == i).sum()) for i, k in enumerate(planted.KINDS)
        },
        "median_ncsnr": round(float(np.median(voxels.ncsnr)), 4),
    }


def _fill(root: pathlib.Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Writes the dataset into an empty folder; returns the content of truth.json."""
    seed, num_voxels = settings["seed"], settings["num_voxels"]
    pictures = name_pictures(seed, settings["num_train"], settings["num_test"])
    subjects = []
    for subject in range(1, settings["num_subjects"] + 1):
        brain = _brain(num_voxels, subject)
        rng = np.random.default_rng([seed, _VOXELS, subject])
        voxels = planted.plant(rng, brain, num_voxels, RECIPE)
        factor = settings["noise"][subject - 1]
        voxels = voxels._replace(ncsnr=voxels.ncsnr / factor)
        subjects.append((brain, voxels, planted.mix(voxels, len(SHARES))))
    seen = _seen(root, seed, pictures, settings["image_px"])
    drive = planted.drives_of(seen, [units for *_, units in subjects])
    told = []
    for s, (brain, voxels, units) in enumerate(subjects):
        clean = planted.mixed_responses(drive[s], units, SHARES)
        told.append(
            _write_subject(root, settings, s + 1, pictures, brain, voxels, units, clean)
        )
    return truth.write_json(root, "god", settings, told)


def write(
    out: str | os.PathLike,
    *,
    num_subjects: int = 3,
    num_train: int = 400,
    num_test: int = 50,
    num_repeats: int = 35,
    num_voxels: int = 300,
    image_px: int = 112,
    encoding: str = "h5",
    seed: int = 0,
    noise: Sequence[float] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a simulated fMRI-on-ImageNet folder, whole or not at all.

    Args:
        out: Folder to make.
        num_subjects: 1 to 5.
        num_train: Training pictures, eight of each category, at least 16.
        num_test: Test pictures, at least 4, each of a category of its own.
        num_repeats: Presentations of each test picture, at least 2.
        num_voxels: Tuned voxels (ROI_VC) of each subject, at least 20; a fifth as many
            untuned ones lie around them.
        image_px: Shorter side of the pictures, as `planted.check_px` allows.
        encoding: "h5" (capital names, voxels first) or "mat" (MATLAB v5, `Label`).
        seed: Everything follows from it: same settings, same bytes.
        noise: For each subject a factor of the sd of its noise, 0.1 to 10; all 1 by
            default.
        overwrite: Replace `out` if it is a simulated folder of this kind.

    Returns:
        What was planted, as in `truth/truth.json`.

    Raises:
        ConfigError: A number is out of range.
        OutputError: `out` exists, or cannot be created.
    """
    settings: dict[str, Any] = {
        "num_subjects": num_subjects,
        "num_train": num_train,
        "num_test": num_test,
        "num_repeats": num_repeats,
        "num_voxels": num_voxels,
        "image_px": image_px,
        "encoding": encoding,
        "seed": seed,
    }
    ranges = {
        "num_subjects": (1, 5),
        "num_train": (2 * PER_CATEGORY, 10**5),
        "num_test": (4, 10**4),
        "num_repeats": (2, 1000),
        "num_voxels": (20, 10**5),
        "seed": (0, 2**63),
    }
    truth.check_ranges(settings, ranges)
    planted.check_px(image_px)
    if encoding not in ENCODINGS:
        raise errors.ConfigError(
            "simulation",
            "encoding",
            f"encoding = {encoding}",
            " or ".join(ENCODINGS),
            errors.nearest(encoding, ENCODINGS),
        )
    settings["noise"] = truth.noise_factors(noise, num_subjects)
    return truth.publish(out, "god", lambda root: _fill(root, settings), overwrite)
