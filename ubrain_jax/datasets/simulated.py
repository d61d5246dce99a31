"""Simulated crowd: a miniature Natural Scenes Dataset with a known truth.

`write` draws pictures (`drawing`), plants voxels that respond to them (`planted`) and
writes the responses in NSD's own folders and file formats, so that everything that
reads NSD reads this too; the truth lies beside it under `truth/`.

References:
    Allen et al., 2022, Nature Neuroscience 25:116 (NSD: design, files, ncsnr).
"""

import gzip
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import h5py
import nibabel
import numpy as np

from ubrain_jax.datasets import drawing, planted, truth

BETAS = "betas_fithrf_GLMdenoise_RR"
RUNS = 12  # runs of a session, as in NSD
VOXEL_MM = 1.8
ATLASES = {
    "nsdgeneral": ("nsdgeneral",),
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "kind": planted.KINDS,
}

# Streams of random numbers of one seed: pictures, design, a subject's voxels, ...
_PICTURES, _DESIGN, _VOXELS, _NOISE, _BEHAVIOUR = range(5)


def regions(voxels: planted.Voxels, brain: np.ndarray) -> dict[str, np.ndarray]:
    """Label volumes of the atlases: -1 outside the brain, 0 without label, else 1..N.

    prf-visualrois: orientation voxels by tercile of field size (V1, V2, V3) and
    vertical field half (v is the upper half), colour voxels hV4. floc-faces and
    floc-places: voxels that prefer faces or houses, by field size; RSC holds the
    scene voxels. kind: `planted.KINDS`.

    Args:
        voxels: V voxels of the subject.
        brain: (X, Y, Z) bool.

    Returns:
        For each atlas an (X, Y, Z) float64 volume, as NSD stores them.
    """
    kind = np.array(planted.KINDS)[voxels.kind]
    upper = voxels.centre[:, 1] < 0.5

    area = planted.by_field_size(voxels, kind == "orientation", 3)
    prf = np.where(area > 0, 2 * area - upper, 0) + 7 * (kind == "colour")
    face, house = (
        voxels.category == drawing.CATEGORIES.index(c) for c in ("face", "house")
    )
    places = planted.by_field_size(voxels, house, 2)
    labels = {
        "nsdgeneral": np.ones(len(kind)),
        "prf-visualrois": prf,
        "floc-faces": planted.by_field_size(voxels, face, 3),
        "floc-places": places + 3 * (kind == "scene"),
        "kind": voxels.kind + 1,
    }
    volumes = {}
    for name, label in labels.items():
        volume = np.where(brain, 0.0, -1.0)
        volume[tuple(voxels.position.T)] = label
        volumes[name] = volume
    return volumes


def _grid(num_voxels: int, subject: int) -> tuple[int, int, int]:
    """Grid of a subject: unequal sides, other for each, room for the voxels."""
    base = ((13, 15, 12), (12, 16, 13), (14, 14, 12))[(subject - 1) % 3]
    scale = (num_voxels / 600) ** (1 / 3)
    x, y, z = (max(4, round(n * scale)) for n in base)
    while planted.ellipsoid((x, y, z)).sum() < 1.4 * num_voxels:
        x, y, z = x + 1, y + 1, z + 1
    return x, y, z


# ---------------------------------------------------------------- experiment


class Design(NamedTuple):
    """Which picture is shown when; numbers as in NSD's files.

    Attributes:
        order: (T,) int, 1-based index into a subject's list of pictures, same for all
            subjects; every picture comes three times.
        lists: (8, M) int, 1-based picture ids; the shared ones first and sorted.
        slots: (sessions, 12, 75) uint8, 1 where a trial slot shows a picture.
        trials_per_session: T is a multiple of it.
    """

    order: np.ndarray
    lists: np.ndarray
    slots: np.ndarray
    trials_per_session: int


def _design(
    seed: int, num_subjects: int, num_shared: int, num_own: int, per_session: int
) -> Design:
    """Draws ids and order; repeats are spread over all sessions, never back to back."""
    rng = np.random.default_rng([seed, _DESIGN])
    num_images = num_shared + num_own
    total = num_shared + num_subjects * num_own
    ids = 1 + rng.permutation(total)
    shared = np.sort(ids[:num_shared])
    own = ids[num_shared:].reshape(num_subjects, num_own)
    # NSD's file always has eight rows.
    lists = np.stack([np.r_[shared, own[s % num_subjects]] for s in range(8)])
    order = rng.permutation(np.repeat(np.arange(1, num_images + 1), 3))
    while len(back := np.flatnonzero(order[1:] == order[:-1])):
        for i in back:
            j = rng.integers(len(order))
            order[[i, j]] = order[[j, i]]
    sessions = len(order) // per_session
    slots = np.zeros((sessions, RUNS, 75), np.uint8)
    for run, count in enumerate(_run_sizes(per_session)):
        # Three blanks before, at least four after, the others scattered, as in NSD.
        for session in range(sessions):
            at = 3 + np.sort(rng.permutation(68)[:count])
            slots[session, run, at] = 1
    return Design(order, lists, slots, per_session)


def _run_sizes(per_session: int) -> list[int]:
    """Trials in each of the twelve runs: 63, 62, 63, ... for 750."""
    low, more = divmod(per_session, RUNS)
    sizes = [low] * RUNS
    for run in [*range(0, RUNS, 2), *range(1, RUNS, 2)][:more]:
        sizes[run] += 1
    return sizes


def _single_trials(
    rng: np.random.Generator,
    clean: np.ndarray,
    voxels: planted.Voxels,
    brain: np.ndarray,
    design: Design,
    noise_factor: float,
) -> tuple[np.ndarray, dict[str, Any]]:
    """(T, X, Y, Z) int16 betas (300 x percent signal change), and what was damaged."""
    per_session = design.trials_per_session
    sessions = len(design.order) // per_session
    shown = design.order[: sessions * per_session] - 1
    untuned = brain.copy()
    untuned[tuple(voxels.position.T)] = False
    others = np.argwhere(untuned)  # brain without signal
    where = np.r_[voxels.position, others]
    signal = np.zeros((len(clean), len(where)), np.float32)
    signal[:, : len(voxels.kind)] = clean * voxels.ncsnr
    # Units of the noise: 1.2 percent signal change, give or take.
    percent = noise_factor * 1.2 * np.exp(rng.normal(0, 0.3, len(where)))
    base = rng.normal(0.4, 0.5, len(where))
    betas = np.zeros((len(shown), *brain.shape), np.int16)
    zeroed, saturated = [], []
    quiet = rng.choice(len(voxels.kind), min(3, len(voxels.kind)), replace=False)
    for session in range(sessions):
        trials = np.s_[session * per_session : (session + 1) * per_session]
        noise = rng.standard_normal((per_session, len(where)), np.float32)
        gain = np.exp(rng.normal(0, 0.15, len(where)))
        offset = rng.normal(0, 0.4, len(where))
        psc = percent * gain * (signal[shown[trials]] + noise) + base + offset
        # Noise from outside can exceed what int16 holds: NSD's files saturate.
        for _ in range(3 if len(others) else 0):
            t, o = rng.integers(per_session), rng.integers(len(others))
            psc[t, len(voxels.kind) + o] = rng.choice([-1, 1]) * rng.uniform(112, 150)
            saturated.append([int(session), int(t), *map(int, others[o])])
        for i, voxel in enumerate(quiet):
            if i % sessions == session and sessions > 1:
                psc[:, voxel] = 0
                zeroed.append([int(session), *map(int, where[voxel])])
        fixed = np.clip(np.round(300 * psc), -32768, 32767).astype(np.int16)
        betas[trials][:, *where.T] = fixed
    damage = {"zero_sessions": zeroed, "saturated_trials": saturated}
    return betas, damage


# ---------------------------------------------------------------- files


def _write_nifti(path: pathlib.Path, volume: np.ndarray) -> None:
    """Writes a volume with the header fields of NSD's files, gzip without a date.

    nibabel would store slope 1; NSD's files have slope and intercept 0.
    """
    header = nibabel.Nifti1Header()
    header.set_data_dtype(volume.dtype)
    header.set_data_shape(volume.shape)
    header["pixdim"][1:4] = VOXEL_MM
    header["qform_code"], header["sform_code"] = 0, 1
    for axis, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = 0
        header[name][axis] = VOXEL_MM
        header[name][3] = (1 - (1 + volume.shape[axis]) / 2) * VOXEL_MM
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header["scl_slope"], header["scl_inter"] = 0, 0
    header["xyzt_units"] = 10  # mm and s
    raw = header.structarr.tobytes() + bytes(4) + volume.tobytes(order="F")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw, 6, mtime=0))


def _write_expdesign(path: pathlib.Path, design: Design, num_shared: int) -> None:
    """Writes nsd_expdesign.mat (MATLAB v5)."""
    sessions = len(design.slots)
    counts = np.zeros((3, sessions), np.uint16)
    for session in range(sessions):
        first = session * design.trials_per_session
        shown = design.order[first : first + design.trials_per_session]
        times = np.unique(shown, return_counts=True)[1]
        counts[:, session] = [(times == n).sum() for n in (1, 2, 3)]
    small = np.uint16 if design.lists.max() < 2**16 else np.int32
    content = {
        "masterordering": design.order[None].astype(small),
        "subjectim": design.lists.astype(small),
        "sharedix": design.lists[:1, :num_shared].astype(small),
        "stimpattern": design.slots,
        "basiccnt": counts,
    }
    truth.write_mat(path, content)


def _write_stim_info(path: pathlib.Path, design: Design, num_shared: int) -> None:
    """Writes nsd_stim_info_merged.csv: one row per picture."""
    num_images = int(design.lists.max())
    reps = np.zeros((num_images, 8, 3), int)
    member = np.zeros((num_images, 8), int)
    order = np.argsort(design.order, kind="stable").reshape(-1, 3)  # trials of each
    for subject, ids in enumerate(design.lists):
        member[ids - 1, subject] = 1
        reps[ids - 1, subject] = order + 1
    shared = np.isin(np.arange(1, num_images + 1), design.lists[0, :num_shared])
    columns = ["cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000"]
    columns += ["shared1000", *(f"subject{s}" for s in range(1, 9))]
    columns += [f"subject{s}_rep{r}" for s in range(1, 9) for r in range(3)]
    lines = ["," + ",".join(columns)]
    for i in range(num_images):
        row = [i, i + 1, "train2017", '"(0.0, 0.0, 0.0, 0.0)"', "0.0", i, False, False]
        row += [bool(shared[i]), *member[i], *reps[i].ravel()]
        lines.append(",".join(map(str, row)))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


RESPONSE_COLUMNS = (
    "SUBJECT SESSION RUN TRIAL 73KID 10KID TIME ISOLD ISCORRECT RT CHANGEMIND "
    "MEMORYRECENT MEMORYFIRST ISOLDCURRENT ISCORRECTCURRENT TOTAL1 TOTAL2 BUTTON "
    "MISSINGDATA"
).split()


def _write_responses(
    path: pathlib.Path, seed: int, subject: int, design: Design
) -> None:
    """Writes responses.tsv: an old/new recognition task, nine answers in ten right."""
    rng = np.random.default_rng([seed, _BEHAVIOUR, subject])
    sizes = _run_sizes(design.trials_per_session)
    run = np.repeat(np.arange(1, RUNS + 1), sizes)
    within = np.concatenate([np.arange(1, n + 1) for n in sizes])
    seen: dict[int, list[int]] = {}
    lines = ["\t".join(RESPONSE_COLUMNS)]
    done = len(design.slots) * design.trials_per_session
    for trial, index in enumerate(design.order[:done].tolist()):
        session, t = divmod(trial, design.trials_per_session)
        before = seen.setdefault(index, [])
        old = bool(before)
        old_now = old and before[-1] >= session * design.trials_per_session
        correct = bool(rng.random() < 0.9)
        says_old = old == correct
        recent = trial - before[-1] - 1 if old else "NaN"
        first = trial - before[0] - 1 if old else "NaN"
        # MATLAB's day number: one session a week, one trial every four seconds.
        time = 737000 + 7 * session + (t * 4 + run[t] * 60) / 86400
        picture = int(design.lists[subject - 1, index - 1])
        row = [subject, session + 1, run[t], within[t], picture, index, f"{time:.6f}"]
        row += [int(old), int(correct), f"{rng.uniform(400, 2500):.3f}", 0]
        row += [recent, first, int(old_now), int(says_old == old_now)]
        row += [int(not says_old), int(says_old), 1 + int(says_old), 0]
        lines.append("\t".join(map(str, row)))
        before.append(trial)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_hdf5(path: pathlib.Path, name: str, data: np.ndarray, chunks: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        made = file.create_dataset(
            name, data.shape, data.dtype, chunks=chunks, track_times=False
        )
        made[...] = data


def _write_subject(
    root: pathlib.Path,
    seed: int,
    subject: int,
    design: Design,
    voxels: planted.Voxels,
    brain: np.ndarray,
    clean: np.ndarray,
    noise_factor: float,
) -> dict[str, Any]:
    """Writes everything of one subject; returns what truth.json says about it."""
    name = f"subj{subject:02d}"
    space = root / "nsddata" / "ppdata" / name / "func1pt8mm"
    _write_nifti(space / "brainmask.nii.gz", brain.astype(np.int16))
    labels = root / "nsddata" / "freesurfer" / name / "label"
    labels.mkdir(parents=True)
    right = np.arange(brain.shape[0])[:, None, None] >= brain.shape[0] / 2
    for atlas, volume in regions(voxels, brain).items():
        _write_nifti(space / "roi" / f"{atlas}.nii.gz", volume)
        for side, other in (("lh", right), ("rh", ~right)):
            half = np.where(other, -1.0, volume)
            _write_nifti(space / "roi" / f"{side}.{atlas}.nii.gz", half)
        names = ["Unknown", *ATLASES[atlas]]
        text = "".join(f"{i} {n}\t    \n" for i, n in enumerate(names))
        (labels / f"{atlas}.mgz.ctab").write_text(text, encoding="utf-8")
    behaviour = root / "nsddata" / "ppdata" / name / "behav" / "responses.tsv"
    _write_responses(behaviour, seed, subject, design)

    rng = np.random.default_rng([seed, _NOISE, subject])
    betas, damage = _single_trials(rng, clean, voxels, brain, design, noise_factor)
    folder = root / "nsddata_betas" / "ppdata" / name / "func1pt8mm" / BETAS
    per_session = design.trials_per_session
    sessions = len(betas) // per_session
    for session in range(sessions):
        # MATLAB writes (X, Y, Z, T); read row by row that is (T, Z, Y, X).
        part = betas[session * per_session :][:per_session].transpose(0, 3, 2, 1)
        path = folder / f"betas_session{session + 1:02d}.hdf5"
        _write_hdf5(path, "betas", part, (per_session, 1, 1, 1))
    measured = np.full(brain.shape, np.nan, np.float32)
    measured[brain] = planted.ncsnr(
        betas[:, brain], design.order[: len(betas)], per_session
    )
    _write_nifti(folder / "ncsnr.nii.gz", measured)

    truth.write_arrays(
        root,
        name,
        **voxels._asdict(),
        noise_sd=1 / voxels.ncsnr,
        noise_ceiling=100 * voxels.ncsnr**2 / (voxels.ncsnr**2 + 1 / 3),
        responses=clean,
        nsd_id=design.lists[subject - 1] - 1,
    )
    return {
        "name": name,
        "voxels": len(voxels.kind),
        "grid": list(brain.shape),
        "sessions": sessions,
        "kinds": planted.count_kinds(voxels),
        "median_ncsnr": round(float(np.median(measured[tuple(voxels.position.T)])), 4),
        **damage,
    }


def _fill(
    root: pathlib.Path, settings: dict[str, Any], noise: Sequence[float]
) -> dict[str, Any]:
    """Writes the dataset into an empty folder; returns the content of truth.json."""
    seed, num_subjects = settings["seed"], settings["num_subjects"]
    num_shared, px = settings["num_shared"], settings["image_px"]
    design = _design(
        seed,
        num_subjects,
        num_shared,
        settings["num_own"],
        settings["trials_per_session"],
    )
    subjects = []
    for subject in range(1, num_subjects + 1):
        brain = planted.ellipsoid(_grid(settings["num_voxels"], subject))
        rng = np.random.default_rng([seed, _VOXELS, subject])
        voxels = planted.plant(rng, brain, settings["num_voxels"])
        voxels = voxels._replace(ncsnr=voxels.ncsnr / noise[subject - 1])
        subjects.append((brain, voxels))

    # Pictures, a few at a time: drawn, measured, seen by every subject that has them.
    total = int(design.lists.max())
    pictures = np.empty((total, px, px, 3), np.uint8)
    scenes = np.empty(total, np.int8)
    seen = [np.empty((design.lists.shape[1], len(v.kind), 2)) for _, v in subjects]
    for first in range(0, total, 50):
        ids = np.arange(first, min(first + 50, total))
        drawn = [
            drawing.draw(np.random.default_rng([seed, _PICTURES, int(i)]), px)
            for i in ids
        ]
        pictures[ids] = [picture for picture, _ in drawn]
        scenes[ids] = [scene.scene for _, scene in drawn]
        category = np.stack([scene.category for _, scene in drawn])
        maps = planted.feature_maps(pictures[ids], category, scenes[ids])
        for s, (_, voxels) in enumerate(subjects):
            row = np.flatnonzero(
                (design.lists[s] > first) & (design.lists[s] <= ids[-1] + 1)
            )
            if len(row):
                here = maps[design.lists[s, row] - 1 - first]
                seen[s][row] = planted.drives(here, voxels)

    experiment = root / "nsddata" / "experiments" / "nsd"
    experiment.mkdir(parents=True)
    _write_expdesign(experiment / "nsd_expdesign.mat", design, num_shared)
    _write_stim_info(experiment / "nsd_stim_info_merged.csv", design, num_shared)
    stimuli = root / "nsddata_stimuli" / "stimuli" / "nsd" / "nsd_stimuli.hdf5"
    _write_hdf5(stimuli, "imgBrick", pictures, (1, px, px, 3))
    told = []
    for s, (brain, voxels) in enumerate(subjects):
        clean = planted.responses(seen[s], voxels)
        told.append(
            _write_subject(root, seed, s + 1, design, voxels, brain, clean, noise[s])
        )
    truth.write_arrays(root, "pictures", scene=scenes)
    return truth.write_json(root, "nsd", settings, told)


def write(
    out: str | os.PathLike,
    *,
    num_subjects: int = 3,
    num_shared: int = 125,
    num_own: int = 875,
    num_voxels: int = 600,
    image_px: int = 112,
    trials_per_session: int = 750,
    seed: int = 0,
    noise: Sequence[float] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a simulated NSD folder, whole or not at all.

    Every picture of a subject is shown three times; only whole sessions are written,
    so that the last trials fall away (and some pictures have fewer repeats) unless
    3 x (num_shared + num_own) is a multiple of trials_per_session.

    Args:
        out: Folder to make.
        num_subjects: 1 to 8.
        num_shared: Pictures that all subjects see (the test split of the readers).
        num_own: Further pictures of each subject, seen by no other.
        num_voxels: Voxels in nsdgeneral of each subject, at least 20.
        image_px: Side of the pictures, a multiple of 28.
        trials_per_session: 12 to 816; NSD has 750.
        seed: Everything follows from it: same settings, same bytes.
        noise: For each subject a factor of the sd of its noise, 0.1 to 10; all 1 by
            default.
        overwrite: Replace `out` if it exists.

    Returns:
        What was planted, as in `truth/truth.json`.

    Raises:
        ConfigError: A number is out of range.
        OutputError: `out` exists, or cannot be created.
    """
    settings: dict[str, Any] = {
        "num_subjects": num_subjects,
        "num_shared": num_shared,
        "num_own": num_own,
        "num_voxels": num_voxels,
        "image_px": image_px,
        "trials_per_session": trials_per_session,
        "seed": seed,
    }
    _check_settings(settings)
    factors = truth.noise_factors(noise, num_subjects)
    if set(factors) != {1.0}:  # else the bytes of truth.json stay what they were
        settings["noise"] = factors
    return truth.publish(
        out, "nsd", lambda root: _fill(root, settings, factors), overwrite
    )


def is_simulated(source: str | os.PathLike) -> bool:
    """Whether a simulator of this project wrote the folder, or the folder of a file.

    NSD, fMRI-on-ImageNet and vim-1 alike.
    """
    return truth.dataset_of(source) is not None


def _check_settings(settings: dict[str, Any]) -> None:
    trials = 3 * (settings["num_shared"] + settings["num_own"])
    ranges = {
        "num_subjects": (1, 8),
        "num_shared": (1, 10**5),
        "num_own": (0, 10**5),
        "num_voxels": (20, 10**6),
        "trials_per_session": (RUNS, min(68 * RUNS, trials)),
        "seed": (0, 2**63),
    }
    truth.check_ranges(settings, ranges)
    planted.check_px(settings["image_px"])


def read_truth(root: str | os.PathLike, name: str) -> dict[str, np.ndarray]:
    """Reads the planted truth of a subject, arrays as in `planted.Voxels` and more.

    Args:
        root: Folder that `write` made.
        name: For example "subj01".

    Returns:
        The fields of `planted.Voxels`, and noise_sd (V,), noise_ceiling (V,) in percent
        for three repeats, responses (M, V) noiseless, nsd_id (M,) 0-based.
    """
    return truth.read(root, name)
