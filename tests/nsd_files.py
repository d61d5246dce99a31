"""Writes a miniature NSD folder for tests, from the description of its formats.

Shares no code with the package: what it writes is what h5py, nibabel and scipy make of
the published layout. Everything random follows from a seed.
"""

import csv
import gzip
import pathlib
import shutil
from typing import NamedTuple

import h5py
import nibabel
import numpy as np
import scipy.io

BETAS = "betas_fithrf_GLMdenoise_RR"
GRIDS = {1: (7, 9, 8), 2: (6, 9, 7)}
VERTICES = (40, 44)
NUM_IMAGES = 160
NUM_SHARED, NUM_OWN = 6, 18
TRIALS = 24
SESSIONS = {1: 3, 2: 2}
RESPONSES = (
    "SUBJECT SESSION RUN TRIAL 73KID 10KID TIME ISOLD ISCORRECT RT CHANGEMIND "
    "MEMORYRECENT MEMORYFIRST ISOLDCURRENT ISCORRECTCURRENT TOTAL1 TOTAL2 BUTTON "
    "MISSINGDATA"
).split()


class Truth(NamedTuple):
    """What was written; sessions and subjects from 1, pictures 0-based."""

    root: pathlib.Path
    lists: np.ndarray  # (8, 24), 1-based
    order: np.ndarray  # (72,), 1-based
    bricks: np.ndarray  # (160, 10, 12, 3)
    betas: dict  # (subject, session): (T, X, Y, Z) int16
    surface: dict  # (subject, session): (T, lh + rh) float32
    rois: dict  # (subject, atlas): (X, Y, Z); ("fsaverage", atlas): (lh + rh,)
    ncsnr: dict  # subject: (X, Y, Z); ("fsaverage", subject): (lh + rh,)


# ---------------------------------------------------------------- places


def name_of(subject):
    return f"subj{subject:02d}"


def betas_folder(root, subject, space="func1pt8mm"):
    return (
        pathlib.Path(root) / "nsddata_betas/ppdata" / name_of(subject) / space / BETAS
    )


def roi_folder(root, subject):
    return pathlib.Path(root) / "nsddata/ppdata" / name_of(subject) / "func1pt8mm/roi"


def label_folder(root, owner):
    return pathlib.Path(root) / "nsddata/freesurfer" / owner / "label"


def responses_path(root, subject):
    return (
        pathlib.Path(root) / "nsddata/ppdata" / name_of(subject) / "behav/responses.tsv"
    )


def experiment(root):
    return pathlib.Path(root) / "nsddata/experiments/nsd"


def brick_path(root):
    return pathlib.Path(root) / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"


# ---------------------------------------------------------------- single files


def affine_of(shape):
    affine = np.diag([1.8, 1.8, 1.8, 1.0])
    affine[:3, 3] = [(1 - (1 + n) / 2) * 1.8 for n in shape]
    return affine


def write_nifti(path, data, affine=None, slope=0.0, intercept=0.0):
    """A .nii or .nii.gz as NSD's: sform only, scaling fields 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(data, affine_of(data.shape[:3]))
    if affine is not None:
        image.set_sform(affine, 1)
    image.set_qform(None, 0)
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([slope, intercept], "<f4").tobytes()
    path.write_bytes(gzip.compress(raw, 1) if path.suffix == ".gz" else raw)


def write_mgh(path, data):
    """An .mgh or .mgz surface file of (V,) or (V, T)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = data.shape[1:] if data.shape[1:] != (1,) else ()
    data = data.reshape(len(data), 1, 1, *frames)
    affine = [[-1, 0, 0, 81921], [0, 0, 1, -0.5], [0, -1, 0, 0.5], [0, 0, 0, 1]]
    nibabel.MGHImage(data, np.array(affine, float)).to_filename(str(path))


def write_hdf5(path, name, data, chunks=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=data, chunks=chunks)


def write_mat73(path, variables):
    """A MATLAB 7.3 file: HDF5 behind 512 bytes, axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, data in variables.items():
            made = file.create_dataset(name, data=np.ascontiguousarray(data.T))
            made.attrs["MATLAB_class"] = np.bytes_("double")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116))
        file.seek(124)
        file.write(b"\x00\x02IM")


def write_volume_betas(folder, session, betas, ending="hdf5"):
    """`betas` is (T, X, Y, Z)."""
    path = folder / f"betas_session{session:02d}.{ending}"
    stored = betas.transpose(0, 3, 2, 1)
    if ending == "hdf5":
        write_hdf5(path, "betas", stored, (len(betas), 1, 1, 1))
    elif ending == "mat":
        folder.mkdir(parents=True, exist_ok=True)
        write_mat73(path, {"betas": betas.transpose(1, 2, 3, 0)})
    else:
        write_nifti(path, np.ascontiguousarray(betas.transpose(1, 2, 3, 0)))
    return path


def write_expdesign(root, lists, order, **changes):
    """nsd_expdesign.mat, version 5, integers as small as MATLAB keeps them."""
    content = {
        "masterordering": order[None].astype(np.uint8),
        "subjectim": lists.astype(np.uint8),
        "sharedix": lists[:1, :NUM_SHARED].astype(np.uint8),
        "stimpattern": np.ones((3, 12, 2), np.uint8),
        "basiccnt": np.ones((3, 3), np.uint8),
    } | changes
    path = experiment(root) / "nsd_expdesign.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {k: v for k, v in content.items() if v is not None})
    return path


def write_responses(root, subject, lists, order, sessions):
    """responses.tsv: 19 columns, a row for each trial that was run."""
    path = responses_path(root, subject)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for trial, index in enumerate(order[: sessions * TRIALS]):
        session, t = divmod(trial, TRIALS)
        picture = lists[subject - 1, index - 1]
        row = [subject, session + 1, t // 2 + 1, t % 2 + 1, picture, index, 737000.25]
        rows.append([*row, 0, 1, 812.5, 0, "NaN", "NaN", 0, 1, 1, 0, 1, 0])
    lines = ["\t".join(map(str, row)) for row in [RESPONSES, *rows]]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_stim_info(root, lists, num=NUM_IMAGES, first=0, shared=None):
    """nsd_stim_info_merged.csv with nsdId 0-based."""
    path = experiment(root) / "nsd_stim_info_merged.csv"
    shared = set(lists[0, :NUM_SHARED] - 1) if shared is None else shared
    reps = [f"subject{s}_rep{r}" for s in range(1, 9) for r in range(3)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        head = "cocoId cocoSplit cropBox loss nsdId flagged BOLD5000 shared1000".split()
        writer.writerow(["", *head, *(f"subject{s}" for s in range(1, 9)), *reps])
        for i in range(num):
            row = [i, i * 7, "train2017", "(0.0, 0.0, 0.1, 0.1)", 0.1, i + first]
            writer.writerow([*row, False, False, i in shared, *[0] * 8, *[0] * 24])
    return path


def write_ctab(folder, atlas, names):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{i} {n}\t    " for i, n in enumerate(["Unknown", *names])]
    (folder / f"{atlas}.mgz.ctab").write_text("\n".join(lines) + "\n")


# ---------------------------------------------------------------- the folder


def write(root, *, ending="hdf5", surface=False, seed=0):
    """Writes two subjects, of three sessions and of two; returns the truth.

    Volume betas hold saturated values, a voxel that is 0 in session 2 of subj01, and 0
    outside the brain. On the surface (if asked for) vertex 3 of lh is NaN in session 2
    of subj01.
    """
    root = pathlib.Path(root)
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(NUM_IMAGES)[: NUM_SHARED + 8 * NUM_OWN] + 1
    lists = np.empty((8, NUM_SHARED + NUM_OWN), int)
    lists[:, :NUM_SHARED] = np.sort(numbers[:NUM_SHARED])
    lists[:, NUM_SHARED:] = numbers[NUM_SHARED:].reshape(8, NUM_OWN)
    order = rng.permutation(np.repeat(np.arange(1, lists.shape[1] + 1), 3))
    bricks = rng.integers(0, 256, (NUM_IMAGES, 10, 12, 3)).astype(np.uint8)
    truth = Truth(root, lists, order, bricks, {}, {}, {}, {})
    write_expdesign(root, lists, order)
    write_stim_info(root, lists)
    write_hdf5(brick_path(root), "imgBrick", bricks)
    for subject, sessions in SESSIONS.items():
        write_responses(root, subject, lists, order, sessions)
        _write_volumes(truth, rng, subject, sessions, ending)
        if surface:
            _write_surfaces(truth, rng, subject, sessions)
    if surface:
        _write_surface_labels(truth, rng)
    return truth


def _write_volumes(truth, rng, subject, sessions, ending):
    shape = GRIDS[subject]
    brain = rng.random(shape) < 0.7
    general = np.where(brain, 0.0, -1.0)
    general[brain & (rng.random(shape) < 0.35)] = 1
    visual = np.where(general >= 0, 0.0, -1.0)
    inside = np.argwhere(general == 1)
    for k, place in enumerate(inside[::2]):
        visual[tuple(place)] = k % 6 + 1  # label 7, hV4, is nowhere
    streams = np.where(brain, 0.0, -1.0)
    streams[brain & (rng.random(shape) < 0.3)] = 5
    faces = np.where(brain, rng.integers(0, 3, shape), -1).astype(float)
    thalamus = np.where(general == 1, rng.integers(0, 3, shape), -1).astype(float)
    right = np.arange(shape[0])[:, None, None] >= shape[0] // 2
    labels = label_folder(truth.root, name_of(subject))
    for atlas, volume, combined, names in (
        ("nsdgeneral", general, True, ["nsdgeneral"]),
        ("prf-visualrois", visual, True, "V1v V1d V2v V2d V3v V3d hV4".split()),
        ("streams", streams, True, None),
        ("floc-faces", faces, False, ["OFA", "FFA-1"]),
        ("thalamus", thalamus, True, None),
    ):
        truth.rois[subject, atlas] = volume
        folder = roi_folder(truth.root, subject)
        if combined:
            write_nifti(folder / f"{atlas}.nii.gz", volume)
        write_nifti(folder / f"lh.{atlas}.nii.gz", np.where(right, -1.0, volume))
        write_nifti(folder / f"rh.{atlas}.nii.gz", np.where(right, volume, -1.0))
        if names:
            write_ctab(labels, atlas, names)
    folder = betas_folder(truth.root, subject)
    level = rng.normal(0, 900, shape)
    for session in range(1, sessions + 1):
        betas = level + rng.normal(0, 400, (TRIALS, *shape))
        betas[:, ~brain] = 0
        place = tuple(inside[4])
        betas[(3, *place)], betas[(5, *place)] = 40000, -40000  # saturate
        betas = np.clip(np.round(betas), -32768, 32767).astype(np.int16)
        if subject == 1 and session == 2:
            betas[(slice(None), *inside[7])] = 0
        truth.betas[subject, session] = betas
        write_volume_betas(folder, session, betas, ending)
    ncsnr = np.where(brain, rng.uniform(0, 1, shape), np.nan).astype(np.float32)
    truth.ncsnr[subject] = ncsnr
    write_nifti(folder / "ncsnr.nii.gz", ncsnr)


def _write_surfaces(truth, rng, subject, sessions):
    folder = betas_folder(truth.root, subject, "fsaverage")
    left = VERTICES[0]
    for session in range(1, sessions + 1):
        betas = rng.normal(0.4, 1.2, (TRIALS, sum(VERTICES))).astype(np.float32)
        betas[:, 10] = np.float32(0.1)  # constant, though not 0
        if subject == 1 and session == 2:
            betas[:, 3] = np.nan
        truth.surface[subject, session] = betas
        for side, part in (("lh", betas[:, :left]), ("rh", betas[:, left:])):
            write_mgh(folder / f"{side}.betas_session{session:02d}.mgh", part.T)
    ncsnr = rng.uniform(0, 1, sum(VERTICES)).astype(np.float32)
    truth.ncsnr["fsaverage", subject] = ncsnr
    write_mgh(folder / "lh.ncsnr.mgh", ncsnr[:left])
    write_mgh(folder / "rh.ncsnr.mgh", ncsnr[left:])


def _write_surface_labels(truth, rng):
    folder = label_folder(truth.root, "fsaverage")
    left, num = VERTICES[0], sum(VERTICES)
    general = (rng.random(num) < 0.6).astype(np.int32)
    general[[3, 10, left, left + 1]] = 1
    rsc = ((general == 0) & (rng.random(num) < 0.5)).astype(np.int32)
    streams = rng.integers(-1, 8, num).astype(np.int32)
    for atlas, labels in (
        ("nsdgeneral", general),
        ("nsdgeneralRSC", rsc),
        ("streams", streams),
    ):
        truth.rois["fsaverage", atlas] = labels
        write_mgh(folder / f"lh.{atlas}.mgz", labels[:left])
        write_mgh(folder / f"rh.{atlas}.mgz", labels[left:])
    write_ctab(folder, "nsdgeneral", ["nsdgeneral"])


def copy(truth, root):
    """A copy of the folder that a test may break."""
    shutil.copytree(truth.root, root)
    return truth._replace(root=pathlib.Path(root))


# ---------------------------------------------------------------- the slow way


def expected_responses(sessions, pictures):
    """Z-scored and averaged with loops over voxels and trials, in float64.

    Args:
        sessions: Arrays (T, V), one a session.
        pictures: Lists of T pictures, one a session.

    Returns:
        dict from picture to (V,), and dict from picture to its number of trials.
    """
    total, count = {}, {}
    for betas, shown in zip(sessions, pictures, strict=True):
        num = betas.shape[1]
        z = np.zeros(betas.shape)
        for v in range(num):
            values = [float(b) for b in betas[:, v]]
            if max(values) == min(values):
                continue
            mean = sum(values) / len(values)
            sd = (sum((b - mean) ** 2 for b in values) / len(values)) ** 0.5
            z[:, v] = [(b - mean) / sd for b in values]
        for t, picture in enumerate(shown):
            total[picture] = total.get(picture, np.zeros(num)) + z[t]
            count[picture] = count.get(picture, 0) + 1
    return {p: total[p] / count[p] for p in total}, count
