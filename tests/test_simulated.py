"""The simulated NSD: exact file formats, planted truth, seeds."""

import csv
import gzip
import json
import pathlib
import subprocess
import sys

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io

from tests import folders
from ubrain_jax import errors
from ubrain_jax.datasets import drawing, planted, simulated

SMALL = {
    "num_subjects": 2,
    "num_shared": 6,
    "num_own": 20,
    "num_voxels": 60,
    "image_px": 56,
    "trials_per_session": 26,
    "seed": 3,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("simulated") / "nsd"
    simulated.write(out, **SMALL)
    return out


def _betas(root: pathlib.Path, subject: str) -> np.ndarray:
    """(T, X, Y, Z) of all sessions."""
    folder = root / "nsddata_betas/ppdata" / subject / "func1pt8mm" / simulated.BETAS
    parts = []
    for path in sorted(folder.glob("betas_session*.hdf5")):
        with h5py.File(path) as file:
            parts.append(file["betas"][:].transpose(0, 3, 2, 1))
    return np.concatenate(parts)


def _roi(root: pathlib.Path, subject: str, name: str) -> np.ndarray:
    path = root / "nsddata/ppdata" / subject / "func1pt8mm/roi" / f"{name}.nii.gz"
    return np.asanyarray(nibabel.load(path).dataobj)


def _design(root: pathlib.Path) -> dict[str, np.ndarray]:
    return scipy.io.loadmat(root / "nsddata/experiments/nsd/nsd_expdesign.mat")


def test_betas_are_matlab_hdf5(root):
    folder = root / "nsddata_betas/ppdata/subj02/func1pt8mm" / simulated.BETAS
    names = sorted(path.name for path in folder.glob("*.hdf5"))
    assert names == [f"betas_session0{n}.hdf5" for n in (1, 2, 3)]
    mask = root / "nsddata/ppdata/subj02/func1pt8mm/brainmask.nii.gz"
    x, y, z = nibabel.load(mask).shape
    assert len({x, y, z}) > 1  # a wrong order of axes would show
    for name in names:
        with h5py.File(folder / name) as file:
            assert list(file) == ["betas"]
            betas = file["betas"]
            assert betas.dtype == np.int16
            assert betas.shape == (26, z, y, x)
            assert betas.chunks == (26, 1, 1, 1)
            assert betas.compression is None


def test_betas_are_zero_outside_the_brain_and_saturate_inside(root):
    for subject in ("subj01", "subj02"):
        mask = root / "nsddata/ppdata" / subject / "func1pt8mm/brainmask.nii.gz"
        brain = np.asanyarray(nibabel.load(mask).dataobj)
        assert set(np.unique(brain)) == {0, 1}
        betas = _betas(root, subject)
        assert not betas[:, brain == 0].any()
        assert (betas == 32767).any() or (betas == -32768).any()
        told = json.loads((root / "truth/truth.json").read_text())["subjects"]
        told = next(s for s in told if s["name"] == subject)
        silent = np.argwhere(
            (betas.reshape(3, 26, *brain.shape) == 0).all(axis=1) & (brain == 1)
        )
        assert sorted(map(list, silent)) == sorted(told["zero_sessions"])
        assert len(silent) == 3
        for session, trial, *place in told["saturated_trials"]:
            assert abs(int(betas[session * 26 + trial, *place])) >= 32767


def test_nifti_header_bytes_are_those_of_nsd(root):
    path = root / "nsddata/ppdata/subj01/func1pt8mm/roi/prf-visualrois.nii.gz"
    raw = gzip.decompress(path.read_bytes())
    header = np.frombuffer(raw[:348], nibabel.nifti1.header_dtype)[0]
    shape = tuple(header["dim"][1:4])
    assert header["datatype"] == 64  # float64
    assert header["scl_slope"] == 0
    assert header["scl_inter"] == 0
    assert header["vox_offset"] == 352
    assert header["magic"] == b"n+1"
    assert (header["qform_code"], header["sform_code"]) == (0, 1)
    np.testing.assert_allclose(header["pixdim"][1:4], 1.8, rtol=1e-6)
    assert len(raw) == 352 + 8 * np.prod(shape)
    image = nibabel.load(path)
    offset = [(1 - (1 + n) / 2) * 1.8 for n in shape]
    want = np.diag([1.8, 1.8, 1.8, 1.0])
    want[:3, 3] = offset
    np.testing.assert_allclose(image.affine, want, rtol=1e-6)
    assert path.read_bytes()[4:8] == bytes(4)  # no date in the gzip header


def test_expdesign_has_the_layout_of_nsd(root):
    design = _design(root)
    assert design["masterordering"].shape == (1, 78)
    assert design["subjectim"].shape == (8, 26)
    assert design["sharedix"].shape == (1, 6)
    assert design["stimpattern"].shape == (3, 12, 75)
    assert design["basiccnt"].shape == (3, 3)
    lists = design["subjectim"].astype(int)
    shared = design["sharedix"][0].astype(int)
    assert (np.diff(shared) > 0).all()
    assert (lists[:, :6] == shared).all()
    assert (lists[2] == lists[0]).all()  # subjects that are not simulated
    assert (lists[3] == lists[1]).all()
    # 1-based, every picture of the dataset in some list, own ones in one.
    assert sorted({*lists[0], *lists[1]}) == list(range(1, 6 + 40 + 1))
    assert not set(lists[0, 6:]) & set(lists[1, 6:])
    order = design["masterordering"][0].astype(int)
    assert (np.bincount(order)[1:] == 3).all()
    assert (order[1:] != order[:-1]).all()
    assert (design["stimpattern"].sum(axis=(1, 2)) == 26).all()
    counts = np.zeros((3, 3), int)
    for session in range(3):
        for image in set(order[26 * session : 26 * (session + 1)]):
            times = (order[26 * session : 26 * (session + 1)] == image).sum()
            counts[times - 1, session] += 1
    assert (design["basiccnt"] == counts).all()


def test_full_sessions_have_runs_of_63_and_62():
    assert simulated._run_sizes(750) == [63, 62] * 6


def test_responses_tsv_agrees_with_expdesign(root):
    design = _design(root)
    for subject in (1, 2):
        path = root / f"nsddata/ppdata/subj{subject:02d}/behav/responses.tsv"
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert list(rows[0]) == (
            "SUBJECT SESSION RUN TRIAL 73KID 10KID TIME ISOLD ISCORRECT RT "
            "CHANGEMIND MEMORYRECENT MEMORYFIRST ISOLDCURRENT ISCORRECTCURRENT "
            "TOTAL1 TOTAL2 BUTTON MISSINGDATA".split()
        )
        order = design["masterordering"][0].astype(int)
        assert [int(r["10KID"]) for r in rows] == list(order)
        lists = design["subjectim"].astype(int)
        ids = lists[subject - 1, order - 1]
        assert [int(r["73KID"]) for r in rows] == list(ids)
        assert [int(r["SESSION"]) for r in rows] == list(1 + np.arange(78) // 26)
        first = {}
        for t, (row, image) in enumerate(zip(rows, order, strict=True)):
            assert (row["ISOLD"] == "1") == (image in first)
            gap = str(t - first[image] - 1) if image in first else "NaN"
            assert row["MEMORYFIRST"] == gap
            first.setdefault(image, t)


def test_stim_info_agrees_with_expdesign(root):
    path = root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 46
    assert len(rows[0]) == 9 + 8 + 24
    design = _design(root)
    order = design["masterordering"][0].astype(int)
    lists = design["subjectim"].astype(int)
    shared = {i + 1 for i, r in enumerate(rows) if r["shared1000"] == "True"}
    assert shared == set(design["sharedix"][0])
    for subject in range(1, 9):
        for trial, image in enumerate(order, 1):
            row = rows[lists[subject - 1, image - 1] - 1]
            assert row[f"subject{subject}"] == "1"
            reps = [row[f"subject{subject}_rep{k}"] for k in range(3)]
            assert str(trial) in reps
    assert [int(r["nsdId"]) for r in rows] == list(range(46))


def test_pictures_on_disk(root):
    with h5py.File(root / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5") as file:
        brick = file["imgBrick"]
        assert brick.dtype == np.uint8
        assert brick.shape == (46, 56, 56, 3)
        pictures = brick[:]
    for i in (0, 17, 45):
        again, _ = drawing.draw(np.random.default_rng([3, 0, i]), 56)
        assert (pictures[i] == again).all()
    assert len({p.tobytes() for p in pictures}) == 46


def test_rois_show_the_planted_voxels(root):
    for subject in ("subj01", "subj02"):
        truth = simulated.read_truth(root, subject)
        volume = {a: _roi(root, subject, a) for a in simulated.ATLASES}
        for atlas, values in volume.items():
            assert values.dtype == np.float64
            names = simulated.ATLASES[atlas]
            assert set(np.unique(values)) <= {-1.0, *map(float, range(len(names) + 1))}
        general = volume["nsdgeneral"] == 1
        # The order of the truth is the C order of the mask.
        assert (np.argwhere(general) == truth["position"]).all()
        kinds = volume["kind"][general]
        assert (kinds - 1 == truth["kind"]).all()
        assert set(kinds) == {1, 2, 3, 4}
        face = truth["category"] == drawing.CATEGORIES.index("face")
        assert ((volume["floc-faces"][general] > 0) == face).all()
        prf = volume["prf-visualrois"][general]
        assert ((prf == 7) == (truth["kind"] == 1)).all()
        ventral = np.isin(prf, (1, 3, 5))
        assert (truth["centre"][ventral, 1] < 0.5).all()
        brain = volume["nsdgeneral"] >= 0
        assert general.sum() == 60 < brain.sum()
        left, right = (_roi(root, subject, f"{s}.kind") for s in ("lh", "rh"))
        assert (np.maximum(left, right) == volume["kind"]).all()
        assert not ((left >= 0) & (right >= 0)).any()


def test_label_tables_have_trailing_tabs(root):
    text = (root / "nsddata/freesurfer/subj01/label/floc-places.mgz.ctab").read_text()
    assert text.splitlines()[0].split() == ["0", "Unknown"]
    assert text.splitlines()[3] == "3 RSC\t    "


def test_ncsnr_file_is_the_formula_over_the_betas(root):
    betas = _betas(root, "subj01")
    general = _roi(root, "subj01", "nsdgeneral") == 1
    order = _design(root)["masterordering"][0].astype(int)
    folder = root / "nsddata_betas/ppdata/subj01/func1pt8mm" / simulated.BETAS
    image = nibabel.load(folder / "ncsnr.nii.gz")
    assert image.get_data_dtype() == np.float32
    written = np.asanyarray(image.dataobj)
    outside = _roi(root, "subj01", "nsdgeneral") < 0
    assert np.isnan(written[outside]).all()
    for x, y, z in np.argwhere(general)[::3]:
        z_scored = []
        for session in range(3):
            part = betas[26 * session : 26 * (session + 1), x, y, z].astype(float)
            sd = part.std(ddof=1)
            z_scored += list((part - part.mean()) / sd) if sd else [np.nan] * 26
        variances = []
        for i in range(1, 27):
            trials = [z_scored[t] for t in range(78) if order[t] == i]
            if np.isfinite(trials).all():
                variances.append(np.var(trials, ddof=1))
        v2 = np.mean(variances)
        want = np.sqrt(max(0, 1 - v2)) / np.sqrt(v2)
        np.testing.assert_allclose(written[x, y, z], want, rtol=1e-5)


def test_betas_carry_the_planted_signal(root):
    truth = simulated.read_truth(root, "subj01")
    betas = _betas(root, "subj01")[:, *truth["position"].T].astype(float)
    order = _design(root)["masterordering"][0].astype(int) - 1
    z = betas.reshape(3, 26, 60)
    z = (z - z.mean(1, keepdims=True)) / np.maximum(z.std(1, keepdims=True), 1e-9)
    z = z.reshape(78, 60)
    mean = np.stack([z[order == i].mean(0) for i in range(26)])
    clean = truth["responses"]
    r = np.array([np.corrcoef(mean[:, v], clean[:, v])[0, 1] for v in range(60)])
    ceiling = np.sqrt(truth["noise_ceiling"] / 100)
    # 26 pictures: single voxels scatter, their median does not.
    assert abs(np.median(r) - np.median(ceiling)) < 0.15
    shuffled = np.roll(clean, 5, axis=0)
    null = [np.corrcoef(mean[:, v], shuffled[:, v])[0, 1] for v in range(60)]
    assert abs(np.median(null)) < 0.2


def test_truth_can_be_computed_again_from_the_pictures(root):
    truth = simulated.read_truth(root, "subj02")
    voxels = planted.Voxels(**{k: truth[k] for k in planted.Voxels._fields})
    drawn = [
        drawing.draw(np.random.default_rng([3, 0, i]), 56) for i in truth["nsd_id"]
    ]
    maps = planted.feature_maps(
        np.stack([p for p, _ in drawn]),
        np.stack([s.category for _, s in drawn]),
        np.array([s.scene for _, s in drawn]),
    )
    clean = planted.responses(planted.drives(maps, voxels), voxels)
    np.testing.assert_allclose(clean, truth["responses"], atol=2e-4)
    varies = clean.std(axis=0) > 0
    np.testing.assert_allclose(clean.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(clean.std(axis=0)[varies], 1, atol=1e-4)
    assert varies.mean() > 0.9


def test_same_seed_same_bytes_other_seed_other_brains(root, tmp_path):
    simulated.write(tmp_path / "again", **SMALL)
    assert folders.digest(tmp_path / "again") == folders.digest(root)
    simulated.write(tmp_path / "other", **(SMALL | {"seed": 4}))
    other = simulated.read_truth(tmp_path / "other", "subj01")
    one, two = (simulated.read_truth(root, s) for s in ("subj01", "subj02"))
    assert not np.array_equal(other["ncsnr"], one["ncsnr"])
    # Subjects differ in mixture, fields and noise.
    assert not np.array_equal(np.bincount(one["kind"]), np.bincount(two["kind"]))
    assert not np.array_equal(one["size"], two["size"])
    assert not np.array_equal(one["ncsnr"], two["ncsnr"])


def test_noise_factors_raise_the_noise_and_leave_the_signal(root, tmp_path):
    simulated.write(tmp_path / "same", **SMALL, noise=(1, 1))
    for path in ("truth/truth.json", "truth/subj02.npz"):
        assert (tmp_path / "same" / path).read_bytes() == (root / path).read_bytes()
    told = simulated.write(tmp_path / "nsd", **SMALL, noise=(1, 3))
    assert told["settings"]["noise"] == (1, 3)
    one, before = (simulated.read_truth(r, "subj01") for r in (tmp_path / "nsd", root))
    for name in before:
        np.testing.assert_array_equal(one[name], before[name])
    two, before = (simulated.read_truth(r, "subj02") for r in (tmp_path / "nsd", root))
    np.testing.assert_allclose(two["ncsnr"], before["ncsnr"] / 3)
    np.testing.assert_array_equal(two["responses"], before["responses"])
    # Residuals over the noiseless response: noise, three times as much of it.
    order = _design(root)["masterordering"][0].astype(int) - 1
    design = np.stack([np.ones(26), np.zeros(26)], axis=1)
    spread = []
    for folder in (root, tmp_path / "nsd"):
        betas = _betas(folder, "subj02")[:26][:, *before["position"].T].astype(float)
        left = []
        for v in range(60):
            design[:, 1] = before["responses"][order[:26], v]
            left.append(np.linalg.lstsq(design, betas[:, v], rcond=None)[1].sum())
        spread.append(np.sqrt(np.array(left)))
    used = spread[0] > 0  # not the voxels that are zero for the session
    np.testing.assert_allclose(spread[1][used], 3 * spread[0][used], rtol=0.01)


@pytest.mark.parametrize("noise", [(1,), (1, 0), (1, float("nan"))])
def test_noise_factors_out_of_range(tmp_path, noise):
    with pytest.raises(errors.ConfigError, match="2 factors"):
        simulated.write(tmp_path / "nsd", **SMALL, noise=noise)
    assert list(tmp_path.iterdir()) == []


def test_left_hemisphere_sees_the_right_visual_field(root):
    truth = simulated.read_truth(root, "subj01")
    shape = _roi(root, "subj01", "kind").shape
    left = truth["position"][:, 0] < shape[0] / 2
    early = truth["kind"] < 2
    assert (truth["centre"][early & left, 0] > 0.5).all()
    assert (truth["centre"][early & ~left, 0] < 0.5).all()


def test_incomplete_last_session_falls_away(tmp_path):
    settings = SMALL | {"num_subjects": 1, "trials_per_session": 36, "image_px": 56}
    told = simulated.write(tmp_path / "nsd", **settings)
    assert told["subjects"][0]["sessions"] == 2
    assert len(_betas(tmp_path / "nsd", "subj01")) == 72
    rows = (tmp_path / "nsd/nsddata/ppdata/subj01/behav/responses.tsv").read_text()
    assert len(rows.splitlines()) == 73
    assert _design(tmp_path / "nsd")["masterordering"].shape == (1, 78)


def test_existing_folder_is_kept_unless_told(tmp_path):
    out = tmp_path / "nsd"
    simulated.write(out, **SMALL)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(errors.OutputError, match="it exists"):
        simulated.write(out, **SMALL)
    assert (out / "mine.txt").read_text() == "mine"
    simulated.write(out, **(SMALL | {"num_subjects": 1}), overwrite=True)
    assert not (out / "mine.txt").exists()
    assert (out / "truth/subj01.npz").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["nsd"]  # nothing left behind


def test_failure_leaves_what_was_there(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(simulated, "_write_stim_info", full)
        with pytest.raises(errors.OutputError, match="No space left"):
            simulated.write(tmp_path / "nsd", **SMALL)
    assert list(tmp_path.iterdir()) == []

    simulated.write(tmp_path / "nsd", **SMALL)
    (tmp_path / "nsd/mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    rename = pathlib.Path.rename

    def fail_to_publish(self, target):
        if self.name == "new":
            full()
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", fail_to_publish)
    with pytest.raises(errors.OutputError, match="No space left"):
        simulated.write(tmp_path / "nsd", **SMALL, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_subjects": 9}, "num_subjects = 9"),
        ({"num_voxels": 5, "seed": -1}, "num_voxels = 5, seed = -1"),
        ({"image_px": 100}, "100 pixels"),
        ({"trials_per_session": 79}, "trials_per_session in 12..78"),
    ],
)
def test_settings_out_of_range(tmp_path, change, match):
    with pytest.raises(errors.ConfigError, match=match):
        simulated.write(tmp_path / "nsd", **(SMALL | change))
    assert list(tmp_path.iterdir()) == []


def test_command_writes_without_importing_jax(tmp_path):
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n"
        "    runpy.run_module('ubrain_jax.simulate', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "loaded = {'jax', 'flax', 'ubrain_jax.backbone'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    flags = ["--shared=4", "--images=8", "--subjects=1", "--voxels=30"]
    flags += ["--image_px=56", "--trials_per_session=12", f"--out={tmp_path / 'nsd'}"]
    ran = subprocess.run(
        [sys.executable, "-c", code, "simulate", *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "subj01: 30 voxels" in ran.stdout
    assert (tmp_path / "nsd/truth/truth.json").exists()


def test_command_says_what_is_wrong_in_one_line(tmp_path):
    (tmp_path / "nsd").mkdir()
    ran = subprocess.run(
        [sys.executable, "-m", "ubrain_jax.simulate", f"--out={tmp_path / 'nsd'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == errors.EXIT_OUTPUT
    assert ran.stderr.startswith("error: ")
    assert len(ran.stderr.splitlines()) == 1


def test_overwrite_never_deletes_a_folder_of_something_else(tmp_path):
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "thesis.txt").write_text("five years")
    with pytest.raises(errors.OutputError, match="Nothing was deleted"):
        simulated.write(out, overwrite=True)
    assert (out / "thesis.txt").read_text() == "five years"
