"""Simulated vim-1 (Kay et al., 2008) with a known truth.

Unlike the simulated NSD: grey pictures seen through a circular hole in a grey field,
voxels mostly of early visual areas, two presentations of a training picture and
thirteen of a validation picture.

    DIR/Stimuli.mat                    MATLAB v5; brightness, 0 is the grey field
    DIR/EstimatedResponses.mat         v7.3; averages over repeats, regions, places
    DIR/S1aux.mat S1data.mat           v7.3; regions, places, SNR; averages
    DIR/S1data_trn_singletrial.mat     v7.3; and S1data_val_singletrial.mat
    DIR/truth/

A voxel is scaled so that its training averages have mean 0 and sd 1. Both sets of
responses hold the same voxels in the same order (column-major in the volume); the real
ones were analysed apart and differ.

References:
    Kay et al., 2008, Nature 452:352.
    Naselaris et al., 2009, Neuron 63:902.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from ubrain_jax.datasets import drawing, planted, truth

RECIPE = planted.Recipe(
    floor=0.04, mixture=(20, 1, 5, 2), ncsnr=0.3, spread=0.5, least=0.05, most=1.0
)
GREY = 0.55  # brightness that the files store as 0
REPEATS = {"Trn": 2, "Val": 13}
GRID = (64, 64, 18)  # volume of EstimatedResponses.mat
CORNER = (8, 2, 0)  # of the brain in it
GRID_SINGLE = (86, 86, 34)  # volume of the single-trial files
CORNER_SINGLE = (14, 5, 7)
# Codes of roiS1; 0 is anywhere else.
REGIONS = {"V1": 1, "V2": 2, "V3": 3, "V3A": 4, "V3B": 5, "V4": 6, "LatOcc": 7}
# Region of each ninth of the orientation voxels, from small to large fields.
_EARLY = ("V1", "V1", "V2", "V2", "V2", "V3", "V3", "V3A", "V3B")
# Streams of random numbers of one seed, apart from those of the other simulators.
_PICTURES, _ORDER, _VOXELS, _NOISE = range(300, 304)


def draw(seed: int, index: int, px: int) -> tuple[np.ndarray, drawing.Scene]:
    """One picture as shown.

    Args:
        seed: Of the dataset.
        index: Training pictures first, then validation pictures.
        px: Side in pixels.

    Returns:
        (px, px) uint8 grey levels; and what is seen of the scene.
    """
    rng = np.random.default_rng([seed, _PICTURES, index])
    picture, scene = drawing.draw(rng, px)
    seen, scene = drawing.through_a_hole(picture, scene, GREY, rng.uniform(0.6, 1))
    return np.round(255 * seen).astype(np.uint8), scene


def regions(voxels: planted.Voxels) -> np.ndarray:
    """(V,) region codes.

    Orientation voxels by field size: two ninths V1, three V2, two V3, one each V3A and
    V3B. Colour voxels are V4 (on grey pictures they follow brightness), object voxels
    LatOcc, scene voxels 0.
    """
    kind = np.array(planted.KINDS)[voxels.kind]
    ninth = planted.by_field_size(voxels, kind == "orientation", len(_EARLY))
    early = np.array([0, *(REGIONS[name] for name in _EARLY)])[ninth]
    return np.select(
        [kind == "colour", kind == "object"], [REGIONS["V4"], REGIONS["LatOcc"]], early
    )


def _brain(num_voxels: int, subject: int) -> np.ndarray:
    """(X, Y, Z) bool brain with room for the voxels, flat enough for `GRID`."""
    part = 0.2 + 0.02 * (subject % 2)
    while True:
        sides = [max(4, round(n * part)) for n in (46, 58, 18)]
        brain = planted.ellipsoid((sides[0], sides[1], sides[2]))
        if brain.sum() >= 1.4 * num_voxels:
            return brain
        part *= 1.05


def _linear(place: np.ndarray, corner: Sequence[int], grid: Sequence[int]) -> Any:
    """(V,) 1-based column-major index of places, with the brain at a corner."""
    inside = (place + np.array(corner)).T
    return 1 + np.ravel_multi_index(tuple(inside), tuple(grid), order="F")


def _write_mat73(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as MATLAB v7.3 does, gzip level 3; axes as MATLAB shows them."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            # MATLAB stores the first axis last.
            made = file.create_dataset(
                name,
                data=array.T,
                compression="gzip",
                compression_opts=3,
                track_times=False,
            )
            kind = {"float32": "single", "float64": "double"}[array.dtype.name]
            made.attrs["MATLAB_class"] = np.bytes_(kind)
    text = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, written by ubrain_jax HDF5 schema"
    with path.open("r+b") as stream:
        stream.write(text.ljust(116) + bytes(8) + b"\x00\x02IM")


def _write_stimuli(
    path: pathlib.Path, seed: int, grey: np.ndarray, num_train: int
) -> None:
    """Writes Stimuli.mat: brightness less that of the field, and an order of showing.

    Args:
        path: The file.
        seed: Of the dataset.
        grey: (M, px, px) uint8.
        num_train: The first pictures are for training.
    """
    rng = np.random.default_rng([seed, _ORDER])
    content = {}
    parts = {"Trn": grey[:num_train], "Val": grey[num_train:]}
    for name, some in parts.items():
        level = some / 255.0 - GREY
        level[some == round(255 * GREY)] = 0  # the field exactly
        content[f"stim{name}"] = level.astype(np.float32)
        shown = np.repeat(np.arange(1, 1 + len(some)), REPEATS[name])
        content[f"seq{name}"] = rng.permutation(shown)[None].astype(np.uint16)
    truth.write_mat(path, content)


def _single_trials(
    rng: np.random.Generator, signal: np.ndarray, factor: float, num_train: int
) -> dict[str, np.ndarray]:
    """Single trials of both sets, in units of the training averages.

    Args:
        rng: Where all randomness comes from.
        signal: (M, V) noiseless responses, in units of the noise before its factor.
        factor: Of the noise.
        num_train: The first pictures are for training.

    Returns:
        For "Trn" and "Val" (V, M, R) float64; the training averages over repeats have
        mean 0 and sd 1 for each voxel.
    """
    trials = {}
    parts = {"Trn": signal[:num_train].T, "Val": signal[num_train:].T}
    for name, part in parts.items():
        noise = rng.standard_normal((*part.shape, REPEATS[name]))
        trials[name] = part[..., None] + factor * noise
    average = trials["Trn"].mean(axis=2)
    mean, sd = (f(average, axis=1)[:, None, None] for f in (np.mean, np.std))
    return {name: (some - mean) / sd for name, some in trials.items()}


def _write_subject(
    root: pathlib.Path,
    settings: Mapping[str, Any],
    subject: int,
    brain: np.ndarray,
    voxels: planted.Voxels,
    clean: np.ndarray,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Writes the files of a subject.

    Returns:
        What truth.json says about it, and its arrays of EstimatedResponses.mat.
    """
    num_train = settings["num_train"]
    factor = settings["noise"][subject - 1]
    rng = np.random.default_rng([settings["seed"], _NOISE, subject])
    # Beside the tuned voxels a third as many that answer nothing.
    quiet = brain.copy()
    quiet[tuple(voxels.position.T)] = False
    others = np.argwhere(quiet)[: max(4, len(voxels.kind) // 3)]
    place = np.concatenate([voxels.position, others])
    order = np.lexsort(place.T)  # column-major: i runs fastest
    place = place[order]
    column = np.argsort(order)[: len(voxels.kind)]
    num = len(place)
    signal = np.zeros((len(clean), num))
    signal[:, column] = clean * (voxels.ncsnr * factor)
    code = np.zeros(num)
    code[column] = regions(voxels)
    trials = _single_trials(rng, signal, factor, num_train)
    # A few voxels at the edge of what was scanned: no value for some or all pictures.
    lost = rng.choice(num, max(2, num // 25), replace=False)
    never, sometimes = np.sort(lost[::2]), np.sort(lost[1::2])
    absent = rng.random(len(clean)) < 0.1
    absent[0] = True
    parts = {"Trn": absent[:num_train], "Val": absent[num_train:]}
    for name, part in parts.items():
        trials[name][never] = np.nan
        trials[name][np.ix_(sometimes, np.flatnonzero(part))] = np.nan
        trials[name] = trials[name].astype(np.float32)
    average = {
        name: some.mean(axis=2, dtype=np.float64).astype(np.float32)
        for name, some in trials.items()
    }
    noise = trials["Val"].var(axis=2, ddof=1, dtype=np.float64).mean(axis=1)
    snr = average["Val"].var(axis=1, ddof=1, dtype=np.float64) / noise
    name = f"S{subject}"
    averages = {f"data{k}{name}": a for k, a in average.items()}
    estimated = dict(averages)
    estimated[f"roi{name}"] = code[:, None]
    estimated[f"voxIdx{name}"] = _linear(place, CORNER, GRID)[:, None].astype(float)
    if settings["single_trials"]:
        index = _linear(place, CORNER_SINGLE, GRID_SINGLE)
        aux = {"roi": code, "snr": snr, "voxIdx": index.astype(float)}
        _write_mat73(
            root / f"{name}aux.mat", {f"{k}{name}": a[:, None] for k, a in aux.items()}
        )
        _write_mat73(root / f"{name}data.mat", averages)
        for k, some in trials.items():
            path = root / f"{name}data_{k.lower()}_singletrial.mat"
            _write_mat73(path, {f"data{k}Single{name}": some})
    truth.write_arrays(
        root,
        name,
        **voxels._asdict(),
        column=column,
        region=code[column],
        never=never,
        sometimes=sometimes,
        absent=np.flatnonzero(absent),
        responses=clean,
        noise_ceiling=100 * voxels.ncsnr**2 / (voxels.ncsnr**2 + 1 / REPEATS["Val"]),
    )
    told = {
        "name": name,
        "voxels": len(voxels.kind),
        "grid": list(brain.shape),
        "trials": sum(some[0].size for some in trials.values()),
        "kinds": planted.count_kinds(voxels),
        "median_ncsnr": round(float(np.median(voxels.ncsnr)), 4),
        "never_finite": never.tolist(),
        "sometimes_finite": sometimes.tolist(),
    }
    return told, estimated


def _fill(root: pathlib.Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Writes the dataset into an empty folder; returns the content of truth.json."""
    seed, px, num_voxels = (settings[k] for k in ("seed", "image_px", "num_voxels"))
    subjects = []
    for subject in range(1, settings["num_subjects"] + 1):
        brain = _brain(num_voxels, subject)
        rng = np.random.default_rng([seed, _VOXELS, subject])
        voxels = planted.plant(rng, brain, num_voxels, RECIPE)
        factor = settings["noise"][subject - 1]
        subjects.append((brain, voxels._replace(ncsnr=voxels.ncsnr / factor)))

    num_images = settings["num_train"] + settings["num_test"]
    grey = np.empty((num_images, px, px), np.uint8)

    def seen() -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        for index in range(num_images):
            grey[index], scene = draw(seed, index, px)
            yield np.repeat(grey[index, ..., None], 3, 2), scene.category, scene.scene

    drive = planted.drives_of(seen(), [voxels for _, voxels in subjects])
    _write_stimuli(root / "Stimuli.mat", seed, grey, settings["num_train"])
    told, estimated = [], {}
    for s, (brain, voxels) in enumerate(subjects):
        clean = planted.responses(drive[s], voxels)
        one, arrays = _write_subject(root, settings, s + 1, brain, voxels, clean)
        told.append(one)
        estimated |= arrays
    _write_mat73(root / "EstimatedResponses.mat", estimated)
    return truth.write_json(root, "vim1", settings, told)


def write(
    out: str | os.PathLike,
    *,
    num_subjects: int = 2,
    num_train: int = 300,
    num_test: int = 60,
    num_voxels: int = 300,
    image_px: int = 128,
    single_trials: bool = True,
    seed: int = 0,
    noise: Sequence[float] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a simulated vim-1 folder, whole or not at all.

    Args:
        out: Folder to make.
        num_subjects: 1 or 2.
        num_train: Training pictures, at least 10; vim-1 has 1750.
        num_test: Validation pictures, at least 4; vim-1 has 120.
        num_voxels: Tuned voxels of each subject, 20 to 10,000; a third as many untuned
            ones lie around them.
        image_px: Side of the pictures, as `planted.check_px` allows; vim-1's small
            ones have 128.
        single_trials: Whether to write the files with every presentation.
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
        "num_voxels": num_voxels,
        "image_px": image_px,
        "single_trials": single_trials,
        "seed": seed,
    }
    ranges = {
        "num_subjects": (1, 2),
        "num_train": (10, 10**4),
        "num_test": (4, 10**4),
        "num_voxels": (20, 10**4),
        "seed": (0, 2**63),
    }
    truth.check_ranges(settings, ranges)
    planted.check_px(image_px)
    settings["noise"] = truth.noise_factors(noise, num_subjects)
    return truth.publish(out, "vim1", lambda root: _fill(root, settings), overwrite)
