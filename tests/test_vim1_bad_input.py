"""Faulty copies of vim-1 stop with file, place, what is there and what should be."""

import shutil

import numpy as np
import pytest

from tests import vim1_files as vf
from ubrain_jax import errors
from ubrain_jax.datasets import vim1


@pytest.fixture(scope="module")
def truth():
    return vf.make()


@pytest.fixture(scope="module")
def original(truth, tmp_path_factory):
    folder = tmp_path_factory.mktemp("2008")
    return vf.write_2008(folder, truth, subjects=(1,), save=vf.save_v73)


@pytest.fixture
def folder(original, tmp_path):
    shutil.copytree(original, tmp_path / "vim1")
    return tmp_path / "vim1"


@pytest.fixture
def copy(truth, tmp_path):
    """The Neuromatch copy: 48 voxels, no child process."""
    return vf.write_archive(tmp_path / "npz", vf.archive(truth))


def message(source, **arguments):
    """Of the error that opening and reading it raises."""
    with pytest.raises(errors.InputError) as caught:
        list(vim1.open_dataset(source, **arguments).subjects)
    return str(caught.value)


def without(variables, *names):
    return {n: v for n, v in variables.items() if n not in names}


CASES = {
    "transposed": (
        lambda v: v | {"dataTrnS1": v["dataTrnS1"].T},
        ["dataTrnS1: float64 (30, 60) (transposed?)", "(voxels, pictures) with 30"],
    ),
    "pictures": (
        lambda v: v | {"dataValS1": v["dataValS1"][:, 1:]},
        ["dataValS1: float64 (60, 7); expected (voxels, pictures) with 8 pictures"],
    ),
    "voxels": (
        lambda v: v | {"dataValS1": v["dataValS1"][1:]},
        ["dataValS1: 59 voxels", "expected 60"],
    ),
    "axes": (
        lambda v: v | {"dataValS1": v["dataValS1"][..., None, None]},
        ["dataValS1: float64 (60, 8, 1, 1)"],
    ),
    "integers": (
        lambda v: v | {"dataTrnS1": np.zeros((60, 30), np.int16)},
        ["dataTrnS1: int16 (60, 30); expected single or double"],
    ),
    "roi length": (
        lambda v: v | {"roiS1": v["roiS1"][:, :-1]},
        ["roiS1: (1, 59), 59 numbers; expected 60, one for each voxel"],
    ),
    "index length": (
        lambda v: v | {"voxIdxS1": v["voxIdxS1"][:, 1:]},
        ["voxIdxS1: (1, 59), 59 numbers; expected 60"],
    ),
    "roi codes": (
        lambda v: v | {"roiS1": v["roiS1"] + 0.5},
        ["roiS1: codes 0.5, 1.5", "1 (V1), 2 (V2)"],
    ),
    "index range": (
        lambda v: v | {"voxIdxS1": v["voxIdxS1"] + 73728},
        ["voxIdxS1: values ", "places on a grid 64 x 64 x 18"],
    ),
    "index twice": (
        lambda v: v | {"voxIdxS1": np.minimum(v["voxIdxS1"], 60000)},
        ["voxIdxS1: a place twice; expected 60 places"],
    ),
    "arrays": (
        lambda v: without(v, "dataValS1", "roiS1"),
        ["2 missing: s1: dataValS1 in EstimatedResponses.mat, s1: roiS1 in"],
    ),
    "other file": (
        lambda v: {"x": v["roiS1"]},
        ["EstimatedResponses.mat: holds x; expected dataTrnS1"],
    ),
    "no number": (
        lambda v: v | {"dataTrnS1": v["dataTrnS1"] * np.nan},
        ["s1: 0 of 60 voxels left (1 without a finite response, 59 not finite for"],
    ),
    "beyond float32": (
        lambda v: v | {"dataTrnS1": np.full_like(v["dataTrnS1"], 1e300)},
        ["0 of 60 voxels left (1 without a finite response, 59 not finite for some"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refuses(truth, folder, case):
    change, parts = CASES[case]
    variables = change(vf.estimated(truth, subjects=(1,)))
    vf.save_v73(folder / "EstimatedResponses.mat", variables)
    text = message(folder)
    for part in parts:
        assert part in text, text
    assert str(folder) in text


def test_a_truncated_file_is_damaged(folder):
    path = folder / "EstimatedResponses.mat"
    path.write_bytes(path.read_bytes()[:-2000])
    text = message(folder)
    assert "EstimatedResponses.mat" in text
    assert "damaged" in text


def test_a_damaged_block_is_not_read_as_numbers(folder):
    path = folder / "EstimatedResponses.mat"
    content = bytearray(path.read_bytes())
    at = content.index(b"\x78\x5e", 5000) + 40  # in a gzip stream
    content[at : at + 60] = bytes(60)
    path.write_bytes(bytes(content))
    assert "cannot be read" in message(folder)


def test_missing_files_of_2013_are_listed_for_all_subjects(truth, folder):
    (folder / "EstimatedResponses.mat").unlink()
    vf.write_2013(folder, truth, 1)
    for name in ("S1data.mat", "S1data_val_singletrial.mat", "S1aux.mat"):
        (folder / name).unlink()
    vf.save_v5(folder / "S3aux.mat", vf.aux(truth, 3))
    text = message(folder)
    assert (
        "4 missing: s1: S1aux.mat, s1: S1data_val_singletrial.mat, s3: S3data" in text
    )
    assert "leave the subject out" in text


def test_one_repeat_is_too_few(truth, folder):
    vf.write_2013(folder, truth, 1)
    trials = vf.singles(truth, 1)["val"]
    cut = {name: values[:, :, :1] for name, values in trials.items()}
    vf.save_v73(folder / "S1data_val_singletrial.mat", cut)
    text = message(folder)
    # A last axis of length one is kept by version 7.3.
    assert "dataValSingleS1: 1 repeats; expected 2 to 255 repeats" in text


def test_subjects_and_settings_are_checked(copy):
    assert "no subject 's3'" in message(copy, subjects=["s3"])
    assert "subjects: is empty" in message(copy, subjects=[])
    assert "voxels: is 'rio'; expected auto, snr" in message(copy, voxels="rio")
    assert "num_voxels: is 0" in message(copy, num_voxels=0)
    assert "grey: is (0.5, -0.5)" in message(copy, grey=(0.5, -0.5))
    assert "val_fraction: is 1" in message(copy, val_fraction=1)
    assert "no signal-to-noise ratio follows" in message(copy, voxels="snr")
    assert "pictures in the training split" in message(copy, val_fraction=1 - 1e-9)


def test_missing_places_are_named(folder, tmp_path):
    assert "no such file or folder" in message(tmp_path / "nowhere")
    assert "the pictures. Check" in message(folder, images=tmp_path / "nowhere")
    (folder / "EstimatedResponses.mat").unlink()
    text = message(folder)
    assert "no responses (found: Stimuli.mat)" in text


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.npy", np.ones(47), "float64 (47,); expected (48,), a number for each"),
        ("a.npy", np.ones((48, 1)), "float64 (48, 1); expected (48,)"),
        ("a.txt", "1\n" * 47, "float64 (47,); expected (48,)"),
        ("a.txt", "1\n" * 24 + "x\n" * 24, "not a list of numbers"),
        ("a.npy", None, "no such file; expected a score for each voxel"),
        ("a.npy", np.array([None] * 48), "no whole .npy array"),
    ],
)
def test_scores_must_be_one_a_voxel(copy, tmp_path, name, content, part):
    path = tmp_path / name
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        np.save(path, content)
    assert part in message(copy, voxels=str(path))


def test_scores_of_no_voxel_leave_nothing(copy, tmp_path):
    np.save(tmp_path / "a.npy", np.full(48, np.nan))
    text = message(copy, voxels=str(tmp_path / "a.npy"))
    assert "0 of 48 voxels left (48 without a score)" in text


def test_unknown_pictures_are_named(copy):
    dataset = vim1.open_dataset(copy)
    with pytest.raises(errors.InputError, match=r"no picture vim1/train/0031, vim1/7"):
        next(dataset.read_images(["vim1/train/0001", "vim1/train/0031", "vim1/7"]))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"responses": None}, "1 missing: s1: responses in kay_images.npz"),
        ({"roi": np.zeros(3)}, "kay_images.npz:roi: (3,), 3 numbers; expected 48"),
        ({"roi": np.full(48, 9)}, "kay_images.npz:roi: codes 9"),
        ({"roi_names": np.array(["a"] * 8)}, "'a', 'a'; expected names of regions"),
        ({"roi": np.array(["V1"] * 48)}, "kay_images.npz:roi: codes V1; expected 0 ("),
        ({"roi": np.array([1] * 48, object)}, "kay_images.npz:roi: holds Python obj"),
        ({"responses": np.zeros((48, 30))}, "(48, 30) (transposed?)"),
        ({"responses": np.full((30, 48), None)}, "object (30, 48); expected single"),
    ],
)
def test_faults_of_the_archive_are_named(truth, tmp_path, change, part):
    arrays = {n: v for n, v in (vf.archive(truth) | change).items() if v is not None}
    text = message(vf.write_archive(tmp_path, arrays))
    assert part in text, text
