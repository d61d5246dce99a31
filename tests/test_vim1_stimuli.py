"""The pictures of vim-1: one set of grey levels out of every encoding."""

import numpy as np
import pytest

from tests import vim1_files as vf
from ubrain_jax import errors
from ubrain_jax.datasets import schema, vim1_stimuli

ALL = [(s, k) for s in vf.NUM for k in range(vf.NUM[s])]


@pytest.fixture(scope="module")
def truth():
    return vf.make()


@pytest.fixture
def opened(tmp_path):
    """Writes pictures as the Neuromatch copy and opens them."""

    def make(train, val, **arguments):
        arrays = {"stimuli": train, "stimuli_test": val}
        path = vf.write_archive(tmp_path, arrays)
        return vim1_stimuli.open_stimuli(path, **arguments)

    return make


def levels(values, black, white):
    """Grey levels of one picture, value by value."""
    spread = white - black
    rounded = [[round(255 * (v - black) / spread) for v in row] for row in values]
    return np.clip(rounded, 0, 255).astype(np.uint8)


def check(stimuli, pictures, wanted, black=-0.55, white=0.45):
    """Compares pictures read with those planted, one by one."""
    report = []
    found = list(vim1_stimuli.read(stimuli, wanted, report))
    assert len(found) == len(wanted)
    for (split, number), picture in zip(wanted, found, strict=True):
        values = pictures[split][number].astype(np.float32).tolist()
        expected = levels(values, black, white)
        assert picture.dtype == np.uint8
        for colour in range(3):
            np.testing.assert_array_equal(picture[..., colour], expected)
    return report


def of_side(truth, side):
    return {split: truth.pictures[split, side] for split in vf.NUM}


@pytest.mark.parametrize("save", [vf.save_v5, vf.save_v73])
def test_small_pictures_are_upright_in_both_versions(
    truth, tmp_path, monkeypatch, save
):
    monkeypatch.setattr(schema, "BLOCK", 2000)  # several blocks of columns
    save(tmp_path / "Stimuli.mat", vf.stimuli(truth))
    stimuli = vim1_stimuli.open_stimuli(tmp_path)
    assert (stimuli.num("train"), stimuli.num("val")) == (30, 8)
    report = check(stimuli, of_side(truth, vf.SIDE), ALL)
    assert "0 pixels (0.00%) in 0 of 38 pictures lay outside" in report[0]
    first = next(vim1_stimuli.read(stimuli, [("val", 2)], []))
    assert (first[0, 0] == 0).all()  # planted: the upper left corner is black
    assert (first[0, 1] == 255).all()
    assert (first[1:, -1] == 140).all()  # and the right edge is background


def test_full_resolution_is_preferred(truth, tmp_path, monkeypatch):
    vf.full_resolution(truth, tmp_path)
    vf.save_v5(tmp_path / "Stimuli.mat", vf.stimuli(truth))
    stimuli = vim1_stimuli.open_stimuli(tmp_path)
    assert "10 x 10 grey from Stimuli_Trn_FullRes_*.mat and" in stimuli.report[-1]
    # Two windows; out of order, across files, and one picture twice.
    monkeypatch.setattr(vim1_stimuli, "_WINDOW", 4 * vf.FULL_SIDE**2)
    wanted = [("train", 29), ("val", 7), ("train", 0), ("train", 2), ("train", 29)]
    check(stimuli, of_side(truth, vf.FULL_SIDE), wanted)


def test_an_incomplete_full_resolution_is_told(truth, tmp_path):
    vf.full_resolution(truth, tmp_path)
    (tmp_path / "Stimuli_Trn_FullRes_04.mat").unlink()
    (tmp_path / "Stimuli_Trn_FullRes_11.mat").unlink()
    with pytest.raises(errors.MissingInputError) as caught:
        vim1_stimuli.open_stimuli(tmp_path)
    text = "2 missing: Stimuli_Trn_FullRes_04.mat, Stimuli_Trn_FullRes_11.mat"
    assert text in str(caught.value)
    vf.save_v5(tmp_path / "Stimuli.mat", vf.stimuli(truth))
    stimuli = vim1_stimuli.open_stimuli(tmp_path)
    assert "2 of 16 files missing: Stimuli_Trn_FullRes_04.mat" in stimuli.report[0]
    assert stimuli.parts[0].shape == (30, vf.SIDE, vf.SIDE)


def test_the_archive_holds_the_same_pictures(truth, tmp_path):
    vf.write_archive(tmp_path, vf.archive(truth))
    stimuli = vim1_stimuli.open_stimuli(tmp_path)
    check(stimuli, of_side(truth, vf.SIDE), ALL)


@pytest.mark.parametrize(
    ("change", "grey"),
    [
        (lambda v: (v * 255 + 140).round().clip(0, 255).astype(np.uint8), (0, 255)),
        (lambda v: (v * 255 + 140).round().clip(0, 255), (0, 255)),
        (lambda v: v + 0.55, (0, 1)),
    ],
)
def test_other_ranges_are_told_by_themselves(truth, opened, change, grey):
    pictures = {s: change(truth.pictures[s, vf.SIDE]) for s in vf.NUM}
    stimuli = opened(pictures["train"], pictures["val"])
    assert stimuli.grey == grey
    wanted = f"{grey[0]} is black, {grey[1]} white, told from the range"
    assert wanted in stimuli.report[0]
    [picture] = vim1_stimuli.read(stimuli, [("train", 4)], [])
    expected = levels(pictures["train"][4].tolist(), *grey)
    np.testing.assert_array_equal(picture[..., 0], expected)
    if grey == (0, 255):
        np.testing.assert_array_equal(picture[..., 2], pictures["train"][4])


def test_clipped_pixels_are_counted(truth, opened):
    train = truth.pictures["train", vf.SIDE].copy()
    train[5, 2, :3] = 0.6, -0.7, 0.4515  # the last rounds to 255
    train[9, 1, 1] = 0.5
    stimuli = opened(train, truth.pictures["val", vf.SIDE])
    report = check(stimuli, {"train": train}, [("train", k) for k in range(10)])
    assert "3 pixels (0.83%) in 2 of 10 pictures lay outside black to" in report[0]


def test_the_caller_may_say_what_is_black_and_white(truth, opened):
    pictures = of_side(truth, vf.SIDE)
    stimuli = opened(pictures["train"], pictures["val"], grey=(-0.1, 0.2))
    assert stimuli.report[0].endswith("-0.1 is black, 0.2 white")
    report = check(stimuli, pictures, ALL[:4], -0.1, 0.2)
    assert not report[0].startswith("pictures: 0 pixels")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda v: v * 10, ["values -5.5..4.5", "about -0.55..0.45, or 0..1"]),
        (lambda v: v * 0.1, ["values -0.055..0.045", "(grey)"]),
        (lambda v: v * 2000 + 5000.5, ["stimuli_test: values 3900..5900"]),
        (lambda v: np.where(v > 0.449, np.nan, v), ["8 pixels are not finite (first"]),
        (lambda v: v[:, :, :4], ["sizes 6 x 4, 6 x 6", "one size (y, x)"]),
        (lambda v: v[0], ["stimuli_test: (6, 6); expected (pictures, y, x)"]),
        (lambda v: v[:0], ["stimuli_test: float64 (0, 6, 6)"]),
    ],
)
def test_refuses(truth, opened, change, parts):
    with pytest.raises(errors.InputError) as caught:
        opened(truth.pictures["train", vf.SIDE], change(truth.pictures["val", vf.SIDE]))
    for part in parts:
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (0.8, "values -0.55..0.8; expected about -0.55..0.45, as the validation"),
        (np.nan, "1 pixels are not finite (first in picture 13)"),
    ],
)
def test_refuses_training_pictures_of_another_range(truth, opened, value, part):
    train = truth.pictures["train", vf.SIDE].copy()
    train[12, 3, 3] = value
    stimuli = opened(train, truth.pictures["val", vf.SIDE])
    with pytest.raises(errors.InputError) as caught:
        list(vim1_stimuli.read(stimuli, ALL, []))
    assert part in str(caught.value)


def test_missing_arrays_and_files_are_named(truth, tmp_path):
    with pytest.raises(errors.MissingInputError, match=r"none; expected Stimuli_Trn_"):
        vim1_stimuli.open_stimuli(tmp_path)
    vf.save_v5(tmp_path / "Stimuli.mat", {"stimVal": np.zeros((3, 4, 4))})
    with pytest.raises(errors.InputError, match=r"holds stimVal; expected an array st"):
        vim1_stimuli.open_stimuli(tmp_path)
    path = vf.write_archive(tmp_path, {"stimuli": np.zeros((3, 4, 4))})
    with pytest.raises(errors.InputError, match=r"stimuli_test: not in the archive"):
        vim1_stimuli.open_stimuli(path)
