"""The simulated fMRI-on-ImageNet: exact file formats, planted truth, seeds."""

import io
import json
import pathlib
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from tests import folders, planted_loop
from ubrain_jax import errors
from ubrain_jax.datasets import drawing, planted, simulated, simulated_god, truth

SMALL = {
    "num_subjects": 2,
    "num_train": 60,
    "num_test": 30,
    "num_repeats": 35,
    "num_voxels": 40,
    "image_px": 56,
    "seed": 3,
}
KEYS = [
    *("VoxelData", "DataType", "Run", "stimulus_id", "category_index", "image_index"),
    *("voxel_x", "voxel_y", "voxel_z"),
    *(f"ROI_{name}" for name in "V1 V2 V3 V4 LOC FFA PPA LVC HVC VC".split()),
]
NAME = re.compile(r"n(\d{8})_(\d+)\.JPEG")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("simulated") / "god"
    simulated_god.write(out, **SMALL)
    return out


def _table(path: pathlib.Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """dataSet, and the metadata value by key, of an .h5 file."""
    with h5py.File(path) as file:
        keys = [key.decode() for key in file["metaData/key"][:]]
        value = file["metaData/value"][:]
        return file["dataSet"][:], dict(zip(keys, value, strict=True))


def _column(path: pathlib.Path, key: str) -> np.ndarray:
    data, meta = _table(path)
    return data[:, meta[key] == 1][:, 0]


def _voxels(path: pathlib.Path, roi: str = "ROI_VC") -> np.ndarray:
    data, meta = _table(path)
    return data[:, meta[roi] == 1]


def _test_trials(root: pathlib.Path, subject: str) -> np.ndarray:
    """(R, M, V) z-scored by run, test pictures in the order of the truth."""
    path = root / f"{subject}.h5"
    kind, run = _column(path, "DataType"), _column(path, "Run")
    image, voxels = _column(path, "image_index").astype(int), _voxels(path)
    trials = np.zeros((SMALL["num_repeats"], SMALL["num_test"], voxels.shape[1]))
    for r in range(SMALL["num_repeats"]):
        here = (kind == 2) & (run == r + 1)
        z = (voxels[here] - voxels[here].mean(0)) / voxels[here].std(0)
        trials[r, image[here] - 1] = z
    return trials


def test_the_h5_file_has_capital_names_and_text_of_fixed_length(root):
    with h5py.File(root / "Subject1.h5") as file:
        assert sorted(file) == ["dataSet", "metaData"]
        assert sorted(file["metaData"]) == ["description", "key", "value"]
        rows = 60 + 30 * 35 + 30 * 10
        columns = 40 + 8 + 5
        assert file["dataSet"].shape == (rows, columns)
        assert file["dataSet"].dtype == np.float64
        assert file["metaData/key"].dtype.kind == "S"
        assert file["metaData/description"].dtype.kind == "S"
        assert file["metaData/value"].shape == (len(KEYS), columns)
        assert file["metaData/value"].dtype == np.float64
        assert [k.decode() for k in file["metaData/key"][:]] == KEYS
        assert np.isfinite(file["dataSet"][:]).all()


def test_metadata_hold_one_zero_and_nan(root):
    _, meta = _table(root / "Subject1.h5")
    voxel = meta["VoxelData"] == 1
    assert (voxel == (np.arange(53) < 48)).all()  # voxels come first
    assert np.isnan(meta["VoxelData"][~voxel]).all()
    for key in KEYS[1:6]:
        assert (meta[key] == 1).sum() == 1
        assert np.isnan(meta[key]).sum() == 52
    for name in ("V1", "V2", "V3", "V4", "LOC", "FFA", "PPA"):
        assert set(meta[f"ROI_{name}"][voxel]) == {0.0, 1.0}
    for name in ("LVC", "HVC", "VC"):
        assert set(meta[f"ROI_{name}"][voxel & (meta[f"ROI_{name}"] == 1)]) == {1.0}
        assert np.isnan(meta[f"ROI_{name}"][voxel]).any()
        assert not (meta[f"ROI_{name}"] == 0).any()
    for axis in "xyz":
        assert np.isnan(meta[f"voxel_{axis}"][~voxel]).all()
        steps = np.diff(np.unique(meta[f"voxel_{axis}"][voxel]))
        np.testing.assert_allclose(steps / 3, np.round(steps / 3))


def test_regions_follow_the_planted_kinds(root):
    _, meta = _table(root / "Subject2.h5")
    told = truth.read(root, "Subject2")
    all_voxels = np.flatnonzero(meta["ROI_VC"] == 1)
    assert (all_voxels == told["column"]).all()
    inside = {k[4:]: v[all_voxels] == 1 for k, v in meta.items() if k[:4] == "ROI_"}
    kind = np.array(planted.KINDS)[told["kind"]]
    early = inside["V1"] | inside["V2"] | inside["V3"]
    assert (early == (kind == "orientation")).all()
    assert told["size"][inside["V1"]].max() <= told["size"][inside["V3"]].min()
    assert (inside["V4"] == (kind == "colour")).all()
    assert (inside["LOC"] == (kind == "object")).all()
    face, house = (drawing.CATEGORIES.index(c) for c in ("face", "house"))
    assert (inside["FFA"] == (told["category"] == face)).all()
    assert (inside["PPA"] == ((told["category"] == house) | (kind == "scene"))).all()
    assert (inside["LVC"] == early).all()
    assert (inside["HVC"] == (inside["LOC"] | inside["FFA"] | inside["PPA"])).all()
    place = np.stack([meta[f"voxel_{a}"][all_voxels] for a in "xyz"], axis=1)
    shift = place - 3 * told["position"]
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape))


def test_rows_are_training_once_test_many_times_and_imagery(root):
    for subject in (1, 2):
        path = root / f"Subject{subject}.h5"
        kind, run = _column(path, "DataType"), _column(path, "Run")
        image, group = _column(path, "image_index"), _column(path, "category_index")
        assert [(kind == k).sum() for k in (1, 2, 3)] == [60, 1050, 300]
        assert sorted(image[kind == 1]) == list(range(1, 61))
        assert set(run[kind == 1]) == {1, 2}
        assert (group[kind == 1] == 1 + (image[kind == 1] - 1) // 8).all()
        for r in range(1, 36):
            assert sorted(image[(kind == 2) & (run == r)]) == list(range(1, 31))
        assert len(set(run[kind == 3])) == 20
        assert (np.bincount(group[kind == 3].astype(int))[1:] == 10).all()
        assert (image[kind == 3] == 0).all()


def test_ids_are_those_of_the_files_and_collapse_in_float32(root):
    path = root / "Subject1.h5"
    kind, ids = _column(path, "DataType"), _column(path, "stimulus_id")
    for folder, k in (("training", 1), ("test", 2)):
        names = sorted(p.name for p in (root / "images" / folder).iterdir())
        back = {
            f"n{int(i):08d}_{round((i - int(i)) * 1e6)}.JPEG" for i in ids[kind == k]
        }
        assert back == set(names)
    train = np.unique(ids[kind == 1])
    assert len(train) == 60
    assert np.diff(train).min() == pytest.approx(1e-6, rel=1e-3)
    assert len(np.unique(train.astype(np.float32))) < 60
    # Training and test share no category; imagery is of the test categories.
    assert not set(np.floor(train)) & set(np.floor(ids[kind == 2]))
    assert set(ids[kind == 3]) == set(np.floor(ids[kind == 2]))
    synset = [NAME.fullmatch(p.name)[1] for p in (root / "images/training").iterdir()]
    assert sorted(synset.count(s) for s in set(synset)) == [4, *[8] * 7]


def test_pictures_are_jpeg_of_unequal_sides(root):
    shapes, modes = set(), []
    pictures = simulated_god.name_pictures(3, 60, 30)
    for index, stem in enumerate(pictures.stems()):
        folder = "training" if index < 60 else "test"
        path = root / "images" / folder / f"{stem}.JPEG"
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert min(image.size) == 56
            shapes.add(image.size)
            modes.append(image.mode)
        if index in (0, 33, 75):
            content, scene = simulated_god.draw(3, index, pictures, 56)
            assert path.read_bytes() == content
            assert scene.category.shape == image.size[::-1]
    assert len(shapes) > 10
    assert any(w > h for w, h in shapes)
    assert any(w < h for w, h in shapes)
    assert set(modes) == {"RGB", "L"}


def _maps(root: pathlib.Path) -> np.ndarray:
    """Feature maps of the square middle of the files, as the subjects saw them."""
    pictures = simulated_god.name_pictures(3, 60, 30)
    seen, category, scenes = [], [], []
    for index, stem in enumerate(pictures.stems()):
        folder = "training" if index < 60 else "test"
        content = (root / "images" / folder / f"{stem}.JPEG").read_bytes()
        decoded = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        _, scene = simulated_god.draw(3, index, pictures, 56)
        top, left = ((n - 56) // 2 for n in decoded.shape[:2])
        cut = np.s_[top : top + 56, left : left + 56]
        seen.append(decoded[cut])
        category.append(scene.category[cut])
        scenes.append(scene.scene)
    return planted.feature_maps(np.stack(seen), np.stack(category), np.array(scenes))


def test_noiseless_responses_by_a_slow_loop(root):
    told = truth.read(root, "Subject1")
    stems = simulated_god.name_pictures(3, 60, 30).stems()
    assert list(told["image"]) == stems
    maps = _maps(root)
    kinds = [np.flatnonzero(told["kind"] == k)[0] for k in range(4)]
    for v in kinds:
        mixed = np.zeros(90)
        for unit, share in enumerate((0.4, 0.2, 0.2, 0.2)):
            fields = ("kind", "centre", "size", "tuning", "contrast")
            of = {k: told[f"unit_{k}"][v, unit] for k in fields}
            mixed += share * planted_loop.response(maps, **of)
        want = planted_loop.standard(mixed)
        np.testing.assert_allclose(told["responses"][:, v], want, atol=1e-3)
    # The first population of a voxel is its own, the others those of neighbours.
    assert (told["unit_kind"][:, 0] == told["kind"]).all()
    assert len(set(map(tuple, told["unit_kind"]))) > 4


def test_planted_ncsnr_is_recovered_from_the_test_trials(root):
    measured, want, planted_ncsnr = [], [], []
    for subject in ("Subject1", "Subject2"):
        told = truth.read(root, subject)
        v2 = _test_trials(root, subject).var(axis=0, ddof=1).mean(axis=0)
        measured.append((1 - v2) / v2)
        # What these 30 pictures make of a signal with sd 1 over all 90.
        want.append((told["ncsnr"] * told["responses"][60:].std(axis=0)) ** 2)
        planted_ncsnr.append(told["ncsnr"])
    measured, want = np.concatenate(measured), np.concatenate(want)
    # The variance of 30 means of 35 trials has a standard error of about 0.02.
    np.testing.assert_allclose(measured, want, atol=0.1)
    assert abs(np.mean(measured - want)) < 0.01
    assert np.corrcoef(measured, want)[0, 1] > 0.9
    # Far below the simulated NSD, whose median is 0.45.
    assert 0.1 < np.median(np.concatenate(planted_ncsnr)) < 0.3


def test_the_mean_over_repeats_follows_the_noiseless_response(root):
    told = truth.read(root, "Subject1")
    mean = _test_trials(root, "Subject1").mean(axis=0)
    clean = told["responses"][60:]
    r, null = (
        [np.corrcoef(a, b)[0, 1] for a, b in zip(mean.T, other.T, strict=True)]
        for other in (clean, np.roll(clean, 7, axis=0))
    )
    ceiling = np.sqrt(told["noise_ceiling"] / 100)
    assert abs(np.median(r) - np.median(ceiling)) < 0.12
    assert abs(np.median(null)) < 0.2


def test_imagery_is_a_weak_echo_of_the_picture(root):
    path = root / "Subject1.h5"
    told = truth.read(root, "Subject1")
    kind, run = _column(path, "DataType"), _column(path, "Run")
    group, voxels = _column(path, "category_index").astype(int), _voxels(path)
    mean = np.zeros((30, 40))
    for r in set(run[kind == 3]):
        here = (kind == 3) & (run == r)
        np.add.at(mean, group[here] - 1, voxels[here] - voxels[here].mean(0))
    clean = told["responses"][60:]
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(mean.T, clean.T, strict=True)]
    assert 0.05 < np.mean(r) < 0.5


def test_runs_differ_in_offset_and_gain(root):
    path = root / "Subject1.h5"
    kind, run, voxels = _column(path, "DataType"), _column(path, "Run"), _voxels(path)
    parts = [voxels[(kind == 2) & (run == r)] for r in range(1, 36)]
    offset = np.stack([p.mean(0) for p in parts]).std(0)
    standard_error = np.median([p.std(0) for p in parts]) / np.sqrt(30)
    assert np.median(offset) > 2 * standard_error
    gain = np.log(np.stack([p.std(0) for p in parts])).std(0)
    assert np.median(gain) > 0.16  # 0.13 of 30 samples alone, 0.15 of the gain


def test_noise_factors_raise_the_noise_and_leave_the_signal(root, tmp_path):
    simulated_god.write(tmp_path / "god", **SMALL, noise=(1, 4))
    one, two, before = (
        truth.read(r, s)
        for r, s in (
            (tmp_path / "god", "Subject1"),
            (tmp_path / "god", "Subject2"),
            (root, "Subject2"),
        )
    )
    np.testing.assert_array_equal(one["ncsnr"], truth.read(root, "Subject1")["ncsnr"])
    np.testing.assert_allclose(two["ncsnr"], before["ncsnr"] / 4)
    np.testing.assert_array_equal(two["responses"], before["responses"])
    same = [(r / "Subject1.h5").read_bytes() for r in (root, tmp_path / "god")]
    assert same[0] == same[1]
    spread = []
    for folder in (root, tmp_path / "god"):
        path = folder / "Subject2.h5"
        test = _column(path, "DataType") == 2
        run = _column(path, "Run")[test]
        voxels = _voxels(path)[test]
        spread.append([voxels[run == r].std(0) for r in (1, 2, 3)])
    ratio = np.median(np.array(spread[1]) / np.array(spread[0]))
    assert 3.6 < ratio < 4  # the signal stays


def test_the_mat_file_is_matlab_5_with_three_design_columns_first(root, tmp_path):
    simulated_god.write(tmp_path / "god", **SMALL, encoding="mat")
    path = tmp_path / "god/Subject1.mat"
    assert path.read_bytes().startswith(b"MATLAB 5.0 MAT-file")
    assert not list((tmp_path / "god").glob("*.h5"))
    content = scipy.io.loadmat(path)
    meta = content["metaData"][0, 0]
    keys = [str(k[0]) for k in meta["key"][0]]
    assert keys[:4] == ["VoxelData", "DataType", "Run", "Label"]
    assert meta["key"].shape == meta["description"].shape == (1, len(keys))
    assert meta["value"].shape == (len(keys), 3 + 48)
    value = dict(zip(keys, meta["value"], strict=True))
    for column, key in enumerate(("DataType", "Run", "Label")):
        assert np.flatnonzero(value[key] == 1).tolist() == [column]
    data, other = _table(root / "Subject1.h5")
    for column, key in enumerate(("DataType", "Run", "stimulus_id")):
        want = data[:, other[key] == 1][:, 0]
        assert (content["dataSet"][:, column] == want).all()
    assert (content["dataSet"][:, 3:] == data[:, other["VoxelData"] == 1]).all()
    assert (value["ROI_V1"][3:] == other["ROI_V1"][:48]).all()


def test_same_seed_same_bytes_other_seed_other_brains(root, tmp_path):
    simulated_god.write(tmp_path / "again", **SMALL)
    assert folders.digest(tmp_path / "again") == folders.digest(root)
    simulated_god.write(tmp_path / "other", **(SMALL | {"seed": 4}))
    one, other = (truth.read(r, "Subject1") for r in (root, tmp_path / "other"))
    assert not np.array_equal(one["ncsnr"], other["ncsnr"])
    assert not set(one["image"]) & set(other["image"])


def test_readers_know_that_it_is_simulated(root, tmp_path):
    assert simulated.is_simulated(root)
    assert simulated.is_simulated(root / "Subject1.h5")
    content = json.loads((root / "truth/truth.json").read_text())
    assert content["format"] == "ubrain-simulated-god"
    assert content["settings"]["noise"] == [1, 1]
    assert not simulated.is_simulated(root / "images")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_subjects": 6, "num_test": 3}, "num_subjects = 6, num_test = 3"),
        ({"num_train": 15}, "num_train in 16"),
        ({"num_repeats": 1}, "num_repeats = 1"),
        ({"image_px": 100}, "100 pixels"),
        ({"encoding": "h6"}, "Known: h5, mat"),
        ({"noise": (1, 2, 3)}, "2 factors"),
    ],
)
def test_settings_out_of_range(tmp_path, change, match):
    with pytest.raises(errors.ConfigError, match=match):
        simulated_god.write(tmp_path / "god", **(SMALL | change))
    assert list(tmp_path.iterdir()) == []


def _command(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "ubrain_jax.simulate", *flags],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_writes_it(tmp_path):
    flags = ["--dataset=god", "--subjects=2", "--images=16", "--test_images=4"]
    flags += ["--repeats=2", "--voxels=20", "--image_px=56", "--encoding=mat"]
    ran = _command(*flags, "--noise=1,2", f"--out={tmp_path / 'god'}")
    assert ran.returncode == 0, ran.stderr
    assert "Subject2: 20 voxels" in ran.stdout
    assert (tmp_path / "god/Subject2.mat").exists()
    content = json.loads((tmp_path / "god/truth/truth.json").read_text())
    assert content["settings"]["noise"] == [1, 2]


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--shared=3", "--single_trials"], "--shared, --single_trials given for god"),
        (["--noise=a"], "--noise: a"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, flags, match):
    ran = _command("--dataset=god", f"--out={tmp_path / 'god'}", *flags)
    assert ran.returncode == errors.EXIT_CONFIG
    assert match in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
