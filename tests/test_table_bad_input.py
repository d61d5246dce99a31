"""What is wrong with a lab's own data is refused with the place and what to do."""

import csv
import json
import os
import re

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io
import zarr

from tests import table_files
from ubrain_jax import errors
from ubrain_jax.datasets import files, table


@pytest.fixture
def lab(tmp_path):
    return table_files.write(tmp_path)


def read_all(lab, **changes):
    """Reads everything, as --check does."""
    dataset = table.open_dataset(**{**lab.arguments, **changes})
    for subject in dataset.subjects:
        for _ in dataset.read_images(subject.image_id):
            pass


def refuse(lab, pattern, **changes):
    """The error, whose text is the PROBLEM line of a check."""
    with pytest.raises(errors.InputError, match=pattern) as caught:
        read_all(lab, **changes)
    assert re.search(r"; expected .+\. \S.*\S$", str(caught.value))
    return caught.value


def save_rows(lab, rows):
    table_files.write_table(lab.root / "trials.csv", rows)


def save_text(lab, text, encoding="utf-8"):
    (lab.root / "trials.csv").write_bytes(text.encode(encoding))


def text_of(lab):
    return (lab.root / "trials.csv").read_text()


# ---------------------------------------------------------------- table of trials


def one_row_short(lab):
    save_rows(lab, lab.rows()[:-1])


def lost_run_numbers(lab):
    rows = lab.rows()
    rows[3]["run"] = rows[8]["run"] = " "
    save_rows(lab, rows)


def unknown_split(lab):
    rows = [r | {"split": "train"} for r in lab.rows()]
    rows[1]["split"] = rows[5]["split"] = "training"
    rows[2]["split"] = ""
    save_rows(lab, rows)


def picture_in_two_splits(lab):
    rows = [r | {"split": "train"} for r in lab.rows()]
    k = lab.shown.index("b/0003.png")
    rows[k]["split"] = "test"
    save_rows(lab, rows)


def nothing_to_train_on(lab):
    save_rows(lab, [r | {"split": "test"} for r in lab.rows()])


def duplicate_header(lab):
    save_text(lab, text_of(lab).replace("image,session,run", "image,run,Run"))


def empty(lab):
    save_text(lab, "")


def only_a_header(lab):
    save_text(lab, "image,session,run\r\n\r\n")


def no_image_column(lab):
    save_text(lab, text_of(lab).replace("image,", "stimulus,"))


def no_session_and_no_run(lab):
    save_rows(lab, [{"image": r["image"]} for r in lab.rows()])


def semicolons(lab):
    save_text(lab, text_of(lab).replace(",", ";"))


def utf_16(lab):
    save_text(lab, text_of(lab), "utf-16")


def latin_1(lab):
    save_text(lab, text_of(lab).replace("a/0004", "ä/0004"), "latin-1")


def ragged(lab):
    lines = text_of(lab).splitlines()
    lines[2] += ",5"
    lines[6] = lines[6].replace(",1", "")
    save_text(lab, "\n".join(lines))


def blank_line(lab):
    lines = text_of(lab).splitlines()
    save_text(lab, "\n".join([*lines[:4], ",,", *lines[4:]]))


def open_quote(lab):
    save_text(lab, text_of(lab).replace("a/0002", '"a/0002', 1))


def cells_without_a_header(lab):
    lines = text_of(lab).splitlines()
    save_text(lab, "\n".join([lines[0] + ",", *(x + ",5" for x in lines[1:])]))


def two_subjects(lab):
    rows = [r | {"subject": "ann"} for r in lab.rows()]
    rows[9]["subject"] = "bob"
    save_rows(lab, rows)


def session_of_one_trial(lab):
    rows = lab.rows()
    rows[4]["session"] = "ses-09"
    save_rows(lab, rows)


def a_picture_300_times(lab):
    rows = [{"image": "a/0000.png", "session": "1"}] * 300
    save_rows(lab, rows)
    np.save(lab.root / "betas.npy", np.random.default_rng(0).normal(size=(300, 4)))


TABLES = [
    (one_row_short, r"trials.csv: 71 rows, betas of 72 trials \(shape \(72, 24\)\)"),
    (lost_run_numbers, r"trials.csv:lines 5, 10: no run; expected a run in every row"),
    (unknown_split, r"line 4: no split .*lines 3, 7: split 'training' \(expected tra"),
    (picture_in_two_splits, r"1 pictures are in .*: b/0003 \(test in line \d+, train"),
    (nothing_to_train_on, r"trials.csv:split: 0 of 30 pictures are train"),
    (duplicate_header, r"trials.csv:line 1: 2 columns are called run"),
    (empty, r"trials.csv: no text in it"),
    (only_a_header, r"trials.csv:line 2: no rows below the header"),
    (no_image_column, r"no column image \(found: stimulus, session, run\)"),
    (no_session_and_no_run, r"no column session or run; .* pass --zscore=none"),
    (semicolons, r"line 1: cells are separated by semicolons; .* UTF-8 \(comma"),
    (utf_16, r"trials.csv: UTF-16 or binary; expected UTF-8 text"),
    (latin_1, r"trials.csv:line \d+: characters that are not UTF-8"),
    (ragged, r"line 3: 4 cells .*line 7: 2 cells \(expected 3 cells, as in"),
    (blank_line, r"trials.csv:line 5: a blank line"),
    (open_quote, r"trials.csv:line \d+: .*a quote that is not closed"),
    (cells_without_a_header, r"trials.csv:column 4: cells without a header"),
    (two_subjects, r"2 subjects \(ann, bob\); expected one subject a table: cut"),
    (session_of_one_trial, r"1 of 4 have one trial: session ses-09 \(line 6\)"),
    (a_picture_300_times, r"more than 255 times: lab-ann/a/0000 \(300\)"),
]


@pytest.mark.parametrize(
    ("damage", "pattern"), TABLES, ids=lambda d: getattr(d, "__name__", "")
)
def test_a_table_of_trials_at_fault_is_refused(lab, damage, pattern):
    damage(lab)
    refuse(lab, pattern)


def test_a_workbook_or_another_ending_is_refused(lab):
    (lab.root / "trials.csv").write_bytes(b"PK\x03\x04...")
    refuse(lab, "trials.csv: an Excel workbook; expected text")
    (lab.root / "trials.txt").write_text("image session")
    refuse(lab, r"ends in .txt; expected .csv", trials=lab.root / "trials.txt")
    refuse(lab, "no.csv: no such file", trials=lab.root / "no.csv")


def test_a_column_that_zscore_needs_must_be_there(lab):
    save_rows(lab, [{"image": r["image"], "run": r["run"]} for r in lab.rows()])
    refuse(lab, "line 1: no column session; expected it", zscore="session")


# ---------------------------------------------------------------- pictures


def test_missing_pictures_are_counted_and_listed(lab):
    for k in range(0, 24):
        os.remove(lab.root / "pictures" / f"{'ab'[k % 2]}/{k:04d}.png")
    error = refuse(lab, r"24 of 30 pictures that trials.csv names are not there: ")
    assert isinstance(error, errors.MissingInputError)
    assert " and 4 more; expected" in str(error)
    assert "The folder holds " in str(error)


def test_zeros_that_a_spreadsheet_dropped_are_guessed(lab):
    rows = [r | {"image": r["image"].replace("/000", "/")} for r in lab.rows()]
    save_rows(lab, rows)
    refuse(lab, r"Is ([ab])/(\d)\.png the file \1/000\2\.png\?")


def test_a_name_that_fits_two_files_is_refused(lab):
    table_files.write_picture(lab.root / "pictures/a/0004.jpg", 0)
    rows = [r | {"image": r["image"].removesuffix(".png")} for r in lab.rows()]
    save_rows(lab, rows)
    refuse(lab, r"a/0004 fits a/0004.jpg, a/0004.png; expected one file")


def test_two_pictures_of_one_name_are_refused(lab):
    table_files.write_picture(lab.root / "pictures/a/0006.jpg", 0)
    rows = lab.rows()
    rows[lab.shown.index("a/0006.png")]["image"] = "a/0006.jpg"
    save_rows(lab, rows)
    refuse(lab, "differs from a/0006.(jpg|png) only by its ending")


def test_all_pictures_that_cannot_be_read_are_listed(lab):
    for name in ("a/0002.png", "b/0005.png"):
        (lab.root / "pictures" / name).write_bytes(b"no picture")
    error = refuse(lab, "2 pictures cannot be read: .*a/0002.png.*b/0005.png")
    assert str(error).count("not a picture") == 2


def test_a_folder_or_an_id_that_is_not_there_is_refused(lab):
    refuse(lab, "none: no such folder", images=lab.root / "none")
    dataset = table.open_dataset(**lab.arguments)
    with pytest.raises(errors.InputError, match="no picture nsd/00013"):
        next(dataset.read_images(["nsd/00013"]))


def test_a_folder_that_must_not_be_read_is_not_passed_over(lab, monkeypatch):
    scan = os.scandir

    def withhold(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", withhold)
    refuse(lab, r"pictures/b: cannot be read \(Permission denied\)")


# ---------------------------------------------------------------- betas


def saved(array, name="betas.npy", **options):
    """Saves other betas than the lab's."""

    def damage(lab):
        np.save(lab.root / name, array(lab.betas), **options)

    return damage


def with_trials(values):
    def change(betas):
        betas = betas.copy()
        for trial, value in values.items():
            betas[trial] = value
        return betas

    return change


def mostly_nan(betas):
    return np.where(np.arange(24) < 13, np.nan, betas)


def truncated(lab):
    path = lab.root / "betas.npy"
    path.write_bytes(path.read_bytes()[:-100])


def a_session_twice(betas):
    return np.concatenate([betas[:24], betas[24:48], betas[:24]])


BETAS = [
    (saved(lambda b: b.T), r"\(24, 72\): trials.csv has 72 rows, so this is transp"),
    (saved(lambda b: b[:, 0]), r"1 axes \(72,\); expected 2 axes: trials, voxels"),
    (saved(lambda b: b.reshape(3, 24, 24)), r"3 axes \(3, 24, 24\); expected 2"),
    (saved(lambda b: b[:, :0]), r"shape \(72, 0\); expected trials and voxels"),
    (saved(lambda b: b.astype(object), allow_pickle=True), r"no whole .npy.*object"),
    (saved(lambda b: b + 1j), r"holds complex64; expected numbers"),
    (saved(lambda b: b > 0), r"holds bool; expected numbers"),
    (truncated, r"betas.npy: no whole .npy array \(\d+ bytes"),
    (saved(with_trials({5: np.nan})), r"line 7 of trials.csv: 1 trials with no fin"),
    (saved(with_trials({5: 0, 9: 0})), r"lines 7, 11 of .*: 2 trials with one number"),
    (
        saved(mostly_nan),
        r"13 of 24 voxels .*13 NaN or inf in some trial \(columns 0, 1",
    ),
    (saved(a_session_twice), r"betas of session ses-01 and of session ses-03 are ide"),
]


@pytest.mark.parametrize(("damage", "pattern"), BETAS)
def test_betas_at_fault_are_refused(lab, damage, pattern):
    damage(lab)
    refuse(lab, pattern)


def test_constant_voxels_are_refused_where_they_are_most(lab):
    np.save(lab.root / "betas.npy", np.where(np.arange(24) < 14, 3, lab.betas))
    refuse(lab, "14 of 24 voxels cannot be used: 14 constant in every session")


def test_files_that_are_missing_are_all_listed(lab):
    paths = [lab.root / "x.npy", lab.root / "betas.npy", lab.root / "y.mat"]
    refuse(lab, r"betas: no file \S*x.npy, \S*y.mat", betas=paths)
    refuse(lab, "none given", betas=[])


def test_files_of_other_voxels_or_lengths_are_refused(lab):
    np.save(lab.root / "less.npy", lab.betas[:, 1:])
    paths = [lab.root / "betas.npy", lab.root / "less.npy"]
    refuse(lab, "less.npy: 23 voxels; expected 24, as in betas.npy", betas=paths)
    paths = [lab.root / "betas.npy"] * 2
    refuse(lab, r"betas of 144 trials \(betas.npy 72, betas.npy 72\)", betas=paths)
    (lab.root / "b.txt").write_text("1 2")
    refuse(lab, r"ends in .txt; expected .npy", betas=lab.root / "b.txt")


def save_mat(lab, **content):
    scipy.io.savemat(lab.root / "b.mat", content)
    return lab.root / "b.mat"


def test_a_matlab_file_must_say_which_table(lab):
    path = save_mat(lab, x=lab.betas, y=lab.betas.T, tr=2.0)
    refuse(lab, r"2 tables \(found: x 72x24, y 24x72, tr 1x1\).*b.mat:NAME", betas=path)
    refuse(lab, "no numbers called z", betas=f"{path}:z")
    refuse(lab, "transposed", betas=f"{path}:y")
    refuse(lab, r"72 rows, betas of 1 trials \(shape \(1, 1\)\)", betas=f"{path}:tr")


@pytest.mark.parametrize(
    ("content", "name", "pattern"),
    [
        ({"x": np.zeros((3, 4, 5))}, "", r"0 tables \(found: x 3x4x5\)"),
        ({"x": np.zeros((3, 4, 5))}, ":x", r"3 axes \(3, 4, 5\)"),
        ({"x": "text"}, ":x", "no numbers called x"),
        ({"x": np.ones((72, 24)) * 1j}, "", "holds complex128"),
    ],
)
def test_matlab_variables_that_are_no_table_are_refused(lab, content, name, pattern):
    refuse(lab, pattern, betas=f"{save_mat(lab, **content)}{name}")


def test_damaged_and_foreign_matlab_files_are_refused(lab):
    path = lab.root / "b.mat"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (24, 72), "f4", chunks=(24, 8))
    refuse(lab, "0 of 9 chunks", betas=path)
    path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    refuse(lab, "b.mat: ", betas=path)
    path.write_bytes(b"")
    refuse(lab, "the file is empty", betas=path)


def test_only_numbers_of_matlab_files_are_listed(tmp_path):
    content = {"x": np.zeros((3, 4), np.int16), "s": "text"}
    scipy.io.savemat(tmp_path / "5.mat", content)
    whole = files.Layout((3, 4), np.dtype(np.int16))
    assert files.mat_layouts([tmp_path / "5.mat"]) == [{"x": whole}]
    with h5py.File(tmp_path / "7.mat", "w") as file:
        file["x"] = np.zeros((4, 3))
        file["s"] = np.zeros((4, 1), np.uint16)
        file["s"].attrs["MATLAB_class"] = np.bytes_("char")
        file["away"] = h5py.ExternalLink("other.mat", "/x")
        file.create_group("#refs#")
    numbers = files.Layout((3, 4), np.dtype(np.float64))
    assert files.mat_layouts([tmp_path / "7.mat"]) == [{"x": numbers}]


def test_zarr_with_lost_chunks_is_refused(lab):
    path = lab.root / "b.zarr"
    zarr.create_array(path, data=lab.betas, chunks=(8, 24))
    os.remove(path / "c/3/0")
    refuse(lab, "1 of 9 chunks are not there; .* all 0.0 there", betas=path)


def test_damaged_zarr_is_refused(lab):
    path = lab.root / "b.zarr"
    zarr.create_array(path, data=lab.betas, chunks=(8, 24))
    (path / "c/3/0").write_bytes(b"abc")
    refuse(lab, "b.zarr: cannot be read", betas=path)
    (path / "zarr.json").write_text("{")
    refuse(lab, "b.zarr: cannot be read", betas=path)


def test_a_zarr_group_must_say_which_array(lab):
    group = zarr.open_group(lab.root / "b.zarr", mode="w")
    refuse(lab, r"a group of 0 arrays \(nothing\)", betas=lab.root / "b.zarr")
    group.create_array("x", data=lab.betas)
    group.create_array("y", data=lab.betas)
    refuse(lab, r"2 arrays \(x, y\); .*--betas=b.zarr:NAME", betas=lab.root / "b.zarr")
    refuse(lab, "cannot be read", betas=f"{lab.root}/b.zarr:z")


@pytest.mark.parametrize("place", ["filters", "compressor"])
def test_pickled_zarr_is_refused_unread(lab, place, monkeypatch):
    path = lab.root / "b.zarr"
    zarr.create_array(path, data=lab.betas, zarr_format=2)
    facts = json.loads((path / ".zarray").read_text())
    coded = {"id": "pickle"}
    facts[place] = [coded] if place == "filters" else coded
    (path / ".zarray").write_text(json.dumps(facts))
    monkeypatch.setattr("pickle.loads", lambda *_: pytest.fail("unpickled"))
    refuse(lab, "pickle", betas=path)


def test_volumes_need_a_mask_of_their_grid(lab):
    affine = np.eye(4)
    rng = np.random.default_rng(0)
    image = nibabel.Nifti1Image(rng.normal(size=(2, 3, 4, 72)).astype("f4"), affine)
    nibabel.save(image, lab.root / "b.nii.gz")
    betas = {"betas": lab.root / "b.nii.gz"}
    refuse(lab, r"b.nii.gz: 24 voxels and no mask; .* --mask", **betas)

    def mask(shape, affine=affine, value=1):
        data = np.full(shape, value, np.uint8)
        nibabel.save(nibabel.Nifti1Image(data, affine), lab.root / "m.nii.gz")
        return {"mask": lab.root / "m.nii.gz"}

    refuse(
        lab, "betas 2x3x4, mask 2x4x3; expected one grid", **betas, **mask((2, 4, 3))
    )
    moved = np.diag([2, 1, 1, 1.0])
    refuse(lab, "differ by 1 mm in the affine", **betas, **mask((2, 3, 4), moved))
    refuse(lab, "mask has 0 voxels", **betas, **mask((2, 3, 4), value=0))
    refuse(lab, "m.nii.gz: 4 axes; expected 3", **betas, **mask((2, 3, 4, 2)))
    refuse(lab, "12 voxels in the mask, 24 columns in betas.npy", **mask((2, 3, 2)))
    nibabel.save(image.slicer[..., 0], lab.root / "b.nii.gz")
    refuse(lab, r"3 axes \(2, 3, 4\); expected 4", **betas, **mask((2, 3, 4)))


# ---------------------------------------------------------------- voxels, arguments


def roi_file(lab, rows):
    with (lab.root / "roi.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return {"roi": lab.root / "roi.csv"}


def array_file(lab, key, array):
    np.save(lab.root / "x.npy", array)
    return {key: lab.root / "x.npy"}


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (
            lambda lab: roi_file(lab, [["V1"]] + [["1"]] * 23),
            "23 rows, betas of 24 vox",
        ),
        (
            lambda lab: roi_file(lab, [["V1"], ["2"], ["x"]] + [["1"]] * 22),
            "'x' in line 3",
        ),
        (
            lambda lab: roi_file(lab, [["V1", "v1"]] + [["1", "0"]] * 24),
            "2 columns are",
        ),
        (lambda lab: array_file(lab, "roi", np.ones(23, int)), "23 rows, betas of 24"),
        (lambda lab: array_file(lab, "roi", np.ones(24)), r"\(24,\) float64; expected"),
        (
            lambda lab: array_file(lab, "position", np.ones((9, 3), int)),
            "9 rows, betas",
        ),
        (lambda lab: array_file(lab, "position", np.ones((24, 3))), r"\(24, 3\) integ"),
        (lambda lab: array_file(lab, "position", np.full((24, 3), 2**40)), "32-bit"),
        (
            lambda lab: array_file(lab, "ncsnr", np.full(24, -0.5)),
            "24 values are negat",
        ),
        (lambda lab: array_file(lab, "ncsnr", np.ones(25)), "25 rows, betas of 24 vox"),
        (lambda lab: {"ncsnr": lab.root / "no.npy"}, "no.npy: no such file"),
    ],
)
def test_files_of_other_voxels_are_refused(lab, make, pattern):
    refuse(lab, pattern, **make(lab))


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"name": "a/b"}, "name: is 'a/b'"),
        ({"name": ".."}, "name: is '..'"),
        ({"stimuli": ""}, "stimuli: is ''"),
        ({"zscore": "sessions"}, "zscore: is 'sessions'.*Did you mean session"),
        ({"background": "grey"}, "background: is 'grey'"),
        ({"orientation": "up"}, "orientation: is 'up'"),
        ({"test_fraction": 1.0}, "test_fraction: is 1.0"),
        ({"position": "p.npy", "mask": "MASK"}, "given beside a mask"),
    ],
)
def test_options_that_are_none_are_refused(lab, options, pattern):
    if "mask" in options:
        image = nibabel.Nifti1Image(np.ones((2, 3, 4), np.uint8), np.eye(4))
        nibabel.save(image, lab.root / "m.nii.gz")
        options = {**options, "mask": lab.root / "m.nii.gz"}
    assert isinstance(refuse(lab, pattern, **options), errors.ConfigError)
