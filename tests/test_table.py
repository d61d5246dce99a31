"""The reader of a lab's own data against what was planted, by slow loops."""

import hashlib
import math
import re

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io
import scipy.stats
import zarr
from PIL import Image

from tests import table_files
from ubrain_jax import crowd
from ubrain_jax.datasets import table, table_health, table_subject


@pytest.fixture
def lab(tmp_path):
    return table_files.write(tmp_path)


def read(lab, **changes):
    """The one subject, and the report."""
    dataset = table.open_dataset(**{**lab.arguments, **changes})
    [subject] = list(dataset.subjects)
    return subject, "\n".join(dataset.report)


def stems(shown):
    return sorted({name.removesuffix(".png") for name in shown})


def assert_responses(subject, expected, prefix="lab-ann/"):
    rows = [expected[i.removeprefix(prefix) + ".png"] for i in subject.image_id]
    np.testing.assert_allclose(subject.responses, rows, rtol=1e-5, atol=1e-6)


def test_every_planted_value_is_read(lab):
    subject, report = read(lab)
    assert subject.name == "lab-ann"
    assert list(subject.image_id) == [f"lab-ann/{s}" for s in stems(lab.shown)]
    assert subject.responses.dtype == np.float32
    expected = table_files.expected_responses(lab.betas, lab.session, lab.shown)
    assert_responses(subject, expected)
    assert subject.repeats.tolist() == [
        lab.shown.count(f"{s}.png") for s in stems(lab.shown)
    ]
    np.testing.assert_array_equal(subject.position[:, 0], range(table_files.VOXELS))
    assert (subject.position[:, 1:] == -1).all()
    assert subject.roi.shape == (table_files.VOXELS, 0)
    assert subject.attrs["sessions"] == list(table_files.SESSIONS)
    assert "z-scored in 3 groups, by session" in report


def test_pictures_are_read_in_the_order_asked_for(lab):
    dataset = table.open_dataset(**lab.arguments)
    ids = ["lab-ann/b/0003", "lab-ann/a/0000"]
    for picture, seed in zip(dataset.read_images(ids), (3, 0), strict=True):
        noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
        np.testing.assert_array_equal(picture, noise)


def test_a_store_is_written_and_read_back(lab, tmp_path):
    path = str(tmp_path / "own.zarr")
    crowd.write(path, table.open_dataset(**lab.arguments), image_px=28)
    stored = crowd.open_crowd((path,))
    subject, _ = read(lab)
    rows = np.arange(len(subject.image_id))
    np.testing.assert_array_equal(
        crowd.read_responses(stored.subjects[0], rows), subject.responses
    )
    files = {s["file"]: s for s in stored.attrs[0]["sources"]}
    digest = hashlib.sha256((tmp_path / "betas.npy").read_bytes()).hexdigest()
    assert files["betas.npy"]["sha256"] == digest
    assert set(files) == {"betas.npy", "trials.csv"}


def test_a_folder_of_betas_is_recorded_with_its_size(lab):
    dataset = table.open_dataset(**lab.arguments | as_zarr_2(lab))
    list(dataset.subjects)
    names = [p for p in (lab.root / "b.zarr").rglob("*") if p.is_file()]
    assert dataset.sources[0] == {
        "file": "b.zarr",
        "size": sum(p.stat().st_size for p in names),
        "sha256": None,
    }


# ---------------------------------------------------------------- formats


def as_int16(lab):
    np.save(lab.root / "i.npy", np.round(lab.betas * 1000).astype(np.int16))
    return {"betas": lab.root / "i.npy"}


def as_big_endian_float64(lab):
    np.save(lab.root / "f.npy", lab.betas.astype(">f8"))
    return {"betas": str(lab.root / "f.npy")}


def as_mat_5(lab):
    content = {"betas": lab.betas, "tr": 2.0, "who": "ann"}
    scipy.io.savemat(lab.root / "b.mat", content)
    return {"betas": lab.root / "b.mat"}


def as_mat_73(lab):
    with h5py.File(lab.root / "b.mat", "w", userblock_size=512) as file:
        for name, array in (("betas", lab.betas), ("tr", np.full((1, 1), 2.0))):
            file[name] = array.T
            file[name].attrs["MATLAB_class"] = np.bytes_("single")
    return {"betas": lab.root / "b.mat"}


def as_named_variable(lab):
    scipy.io.savemat(lab.root / "b.mat", {"x": lab.betas, "y": lab.betas.T})
    return {"betas": f"{lab.root}/b.mat:x"}


def as_zarr_2(lab):
    array = zarr.create_array(
        lab.root / "b.zarr", data=lab.betas, chunks=(7, 5), zarr_format=2
    )
    assert array.metadata.zarr_format == 2
    return {"betas": lab.root / "b.zarr"}


def as_only_array_of_a_zarr_group(lab):
    group = zarr.open_group(lab.root / "b.zarr", mode="w")
    group.create_array("betas", data=lab.betas, chunks=(9, 24))
    return {"betas": lab.root / "b.zarr"}


def as_named_array_of_zarr(lab):
    group = zarr.open_group(lab.root / "b.zarr", mode="w")
    group.create_array("betas", data=lab.betas, chunks=(9, 24))
    group.create_array("other", data=lab.betas[:3])
    return {"betas": f"{lab.root}/b.zarr:betas"}


def as_files_of_unequal_lengths(lab):
    paths = [lab.root / f"part{k}.npy" for k in range(3)]
    for path, part in zip(paths, np.split(lab.betas, [10, 44]), strict=True):
        np.save(path, part)
    return {"betas": paths}


def as_nifti(lab):
    """Voxels of a mask in C order, in two files, scaled by the header."""
    inside = np.zeros((4, 3, 5), bool)
    inside.flat[np.random.default_rng(1).choice(60, table_files.VOXELS, False)] = True
    affine = np.diag([2, 2, 3, 1.0])
    mask = nibabel.Nifti1Image(inside.astype(np.uint8), affine)
    nibabel.save(mask, lab.root / "mask.nii.gz")
    paths = [lab.root / "one.nii", lab.root / "two.nii.gz"]
    for path, part in zip(paths, np.split(lab.betas, [30]), strict=True):
        data = np.zeros((*inside.shape, len(part)))
        for trial, row in enumerate(part):
            place = iter(row)
            for x, y, z in np.ndindex(inside.shape):
                if inside[x, y, z]:
                    data[x, y, z, trial] = next(place)
        image = nibabel.Nifti1Image(np.round((data - 1) * 500).astype(np.int16), affine)
        image.header.set_slope_inter(1 / 500, 1)
        nibabel.save(image, path)
    return {"betas": paths, "mask": lab.root / "mask.nii.gz"}


EXACT = (
    as_big_endian_float64,
    as_mat_5,
    as_mat_73,
    as_named_variable,
    as_zarr_2,
    as_only_array_of_a_zarr_group,
    as_named_array_of_zarr,
    as_files_of_unequal_lengths,
)


@pytest.mark.parametrize("save", EXACT)
def test_every_format_gives_the_same_numbers(lab, save):
    plain, _ = read(lab)
    other, _ = read(lab, **save(lab))
    np.testing.assert_array_equal(other.responses, plain.responses)
    assert list(other.image_id) == list(plain.image_id)


@pytest.mark.parametrize(
    "save", [as_mat_73, as_zarr_2, as_files_of_unequal_lengths, as_big_endian_float64]
)
def test_trials_of_a_session_need_not_follow_each_other(lab, save):
    rows = lab.rows()
    for k, row in enumerate(rows):
        row["session"] = f"s{k % 3}"
    table_files.write_table(lab.root / "trials.csv", rows)
    subject, _ = read(lab, **save(lab))
    groups = [row["session"] for row in rows]
    expected = table_files.expected_responses(lab.betas, groups, lab.shown)
    assert_responses(subject, expected)


@pytest.mark.parametrize("save", [as_int16, as_nifti])
def test_integers_and_volumes_agree_to_their_rounding(lab, save):
    plain, _ = read(lab)
    other, report = read(lab, **save(lab))
    np.testing.assert_allclose(other.responses, plain.responses, atol=2e-3)
    assert "int16" in report


def test_a_mask_gives_places_in_c_order_and_the_affine(lab):
    subject, _ = read(lab, **as_nifti(lab))
    inside = nibabel.load(lab.root / "mask.nii.gz").get_fdata() > 0
    expected = [index for index in np.ndindex(inside.shape) if inside[index]]
    assert subject.position.tolist() == [list(index) for index in expected]
    assert subject.attrs["affine"] == np.diag([2, 2, 3, 1.0]).tolist()
    assert (subject.attrs["space"], subject.attrs["grid"]) == ("volume", [4, 3, 5])
    beside, _ = read(lab, mask=lab.root / "mask.nii.gz")  # betas as columns
    np.testing.assert_array_equal(beside.position, subject.position)


def test_the_size_of_a_block_changes_nothing(lab, monkeypatch):
    whole, report = read(lab)
    monkeypatch.setattr(table_subject, "BLOCK", 8 * len(lab.betas) // 3 * 5)
    assert table_subject.BLOCK // (8 * len(lab.betas) // 3) < table_files.VOXELS
    parts, again = read(lab)
    np.testing.assert_array_equal(parts.responses, whole.responses)
    np.testing.assert_array_equal(parts.ncsnr, whole.ncsnr)
    assert again == report


# ---------------------------------------------------------------- normalisation


def test_runs_of_a_session_are_z_scored_apart(lab):
    subject, report = read(lab, zscore="run")
    groups = [f"{a} {b}" for a, b in zip(lab.session, lab.run, strict=True)]
    expected = table_files.expected_responses(lab.betas, groups, lab.shown)
    assert_responses(subject, expected)
    assert "z-scored in 6 groups, by run" in report


def test_runs_are_the_groups_where_no_session_is_told(lab):
    rows = [{"image": r["image"], "RUN ": r["run"]} for r in lab.rows()]
    table_files.write_table(lab.root / "trials.csv", rows)
    subject, report = read(lab)
    expected = table_files.expected_responses(lab.betas, lab.run, lab.shown)
    assert_responses(subject, expected)
    assert "warning: 2 come back after others (first: run 1)" in report


def test_z_scores_of_the_user_are_only_averaged(lab, monkeypatch):
    betas = scipy.stats.zscore(lab.betas, 0)
    np.save(lab.root / "betas.npy", betas)
    rows = [{"image": name} for name in lab.shown]
    table_files.write_table(lab.root / "trials.csv", rows)
    subject, report = read(lab, zscore="none")
    expected = {
        name: betas[[n == name for n in lab.shown]].astype(float).mean(0)
        for name in set(lab.shown)
    }
    assert_responses(subject, expected)
    assert "taken as z-scores: median SD 1," in report
    assert "do not look z-scored" not in report
    monkeypatch.setattr(table_subject, "BLOCK", 8 * table_files.VOXELS * 7)
    parts, _ = read(lab, zscore="none")
    np.testing.assert_allclose(parts.responses, subject.responses, atol=1e-6)


def test_a_voxel_constant_in_one_session_is_zero_there_and_counted(lab):
    betas = lab.betas.copy()
    betas[[s == "ses-02" for s in lab.session], 5] = 3.3
    np.save(lab.root / "betas.npy", betas)
    subject, report = read(lab)
    expected = table_files.expected_responses(betas, lab.session, lab.shown)
    assert_responses(subject, expected)
    assert subject.attrs["constant_in_group"] == {"session ses-02": 1}
    assert "1 times a voxel is constant in a session" in report


@pytest.mark.parametrize("zscore", ["session", "none"])
def test_voxels_without_numbers_are_dropped_and_named(lab, zscore):
    betas = lab.betas.copy()
    betas[7, 3] = np.nan
    betas[50, [8, 20]] = np.inf
    betas[:, 11] = 2.7
    np.save(lab.root / "betas.npy", betas)
    whole, _ = read(lab, betas=as_big_endian_float64(lab)["betas"], zscore=zscore)
    subject, report = read(lab, zscore=zscore)
    keep = [v for v in range(table_files.VOXELS) if v not in (3, 8, 11, 20)]
    np.testing.assert_array_equal(subject.position[:, 0], keep)
    np.testing.assert_array_equal(subject.responses, whole.responses[:, keep])
    np.testing.assert_array_equal(subject.ncsnr, whole.ncsnr[keep])
    assert "3 voxels dropped, NaN or inf in some trial: columns 3, 8, 20" in report
    where = "all trials" if zscore == "none" else "every session"
    assert f"1 voxels dropped, constant in {where}: columns 11" in report
    counts = [(d["count"], d["columns"]) for d in subject.attrs["dropped"]]
    assert counts == [(3, [3, 8, 20]), (1, [11])]


# ---------------------------------------------------------------- noise ceilings


def slow_ncsnr(z, shown):
    """By loops over voxels and pictures; v pooled over pictures with repeats."""
    out = []
    for voxel in range(z.shape[1]):
        total, freedom = 0.0, 0
        for name in set(shown):
            values = [z[k, voxel] for k, n in enumerate(shown) if n == name]
            middle = sum(values) / len(values)
            total += sum((v - middle) ** 2 for v in values)
            freedom += len(values) - 1
        noise = total / freedom
        signal = max(0.0, np.mean(z[:, voxel] ** 2) - noise)
        out.append(math.sqrt(signal / noise))
    return out


def z_scored(lab):
    z = np.empty(lab.betas.shape)
    for session in table_files.SESSIONS:
        rows = [s == session for s in lab.session]
        z[rows] = scipy.stats.zscore(lab.betas[rows].astype(float), 0)
    return z


def test_ncsnr_of_unequal_repeats_agrees_with_a_slow_loop(lab):
    subject, report = read(lab)
    expected = slow_ncsnr(z_scored(lab), lab.shown)
    np.testing.assert_allclose(subject.ncsnr, expected, rtol=1e-5)
    assert f"median ncsnr {np.median(expected):.3f}, above 0.2 in 100%" in report


def test_ncsnr_of_three_repeats_is_that_of_nsd():
    rng = np.random.default_rng(2)
    z = scipy.stats.zscore(
        rng.standard_normal((40, 1, 6)) + rng.normal(size=(40, 3, 6)), (0, 1)
    )
    noise = z.var(1, ddof=1).mean(0)
    found = table_subject.ncsnr_of_repeats(
        z.sum(1), np.full(40, 3), (z**2).sum((0, 1)), np.ones(6)
    )
    np.testing.assert_allclose(found, np.sqrt(np.maximum(0, 1 - noise) / noise), 1e-6)


def test_planted_ncsnr_is_recovered():
    """Signal and noise of known deviations: their ratio comes back.

    20,000 pictures leave a standard error of 0.6% (0.013 at the largest ratio).
    """
    rng = np.random.default_rng(4)
    planted = np.linspace(0.2, 2, 10)
    repeats = rng.integers(1, 5, 20000)
    row = np.repeat(np.arange(20000), repeats)
    z = (rng.standard_normal((20000, 10)) * planted)[row]
    z += rng.standard_normal(z.shape)
    z /= z.std(0)
    total = np.zeros((20000, 10))
    np.add.at(total, row, z)
    square = (z[repeats[row] > 1] ** 2).sum(0)
    found = table_subject.ncsnr_of_repeats(total, repeats, square, z.var(0))
    np.testing.assert_allclose(found, planted, atol=0.05)


def test_ncsnr_is_unknown_without_repeats_and_where_repeats_are_copies(lab):
    once = [lab.shown.index(name) for name in sorted(set(lab.shown))]
    rows = [lab.rows()[k] | {"session": "1"} for k in once]
    table_files.write_table(lab.root / "trials.csv", rows)
    np.save(lab.root / "betas.npy", lab.betas[once])
    subject, report = read(lab)
    assert np.isnan(subject.ncsnr).all()
    assert "no picture is shown twice" in report
    table_files.write_table(lab.root / "trials.csv", rows * 2)
    np.save(lab.root / "betas.npy", lab.betas[once * 2])
    subject, report = read(lab)
    assert np.isnan(subject.ncsnr).all()
    assert "warning: repeats are copies of each other" in report


def test_reliability_agrees_with_scipy():
    rng = np.random.default_rng(5)
    counts = rng.integers(1, 4, (2, 12))
    halves = rng.standard_normal((2, 12, 7)) + rng.standard_normal((12, 7))
    halves[0, :, 2] = counts[0]  # the mean is 1 throughout
    found = table_health.reliability(halves, counts)
    odd, even = halves[0] / counts[0][:, None], halves[1] / counts[1][:, None]
    expected = [
        scipy.stats.pearsonr(a, b)[0]
        for a, b in zip(odd.T[3:], even.T[3:], strict=True)
    ]
    np.testing.assert_allclose(found[3:], expected, rtol=1e-10)
    assert np.isnan(found[2])
    assert np.isnan(table_health.reliability(halves[:, :2], counts[:, :2])).all()


def test_odd_and_even_presentations_are_correlated(lab):
    z, odd, even = z_scored(lab), [], []
    for name in sorted(set(lab.shown)):
        rows = [k for k, n in enumerate(lab.shown) if n == name]
        if len(rows) > 1:
            odd.append(z[rows[::2]].mean(0))
            even.append(z[rows[1::2]].mean(0))
    pairs = zip(np.array(odd).T, np.array(even).T, strict=True)
    r = np.median([scipy.stats.pearsonr(a, b)[0] for a, b in pairs])
    assert f"{len(odd)} pictures: median r {r:.3f}" in read(lab)[1]


# ---------------------------------------------------------------- splits, pictures


def test_pictures_are_split_by_seed_where_the_table_says_nothing(lab):
    subject, report = read(lab, test_fraction=0.3, val_fraction=0.2, seed=7)
    for image_id, split in zip(subject.image_id, subject.split, strict=True):
        digest = hashlib.sha256(f"7:{image_id}".encode()).hexdigest()
        place = int(digest[:12], 16) / 16.0**12
        assert split == ("test" if place < 0.3 else "val" if place >= 0.8 else "train")
    assert set(subject.split) == {"train", "val", "test"}
    assert "split by seed 7: 30.0% test, 20.0% val" in report


def test_the_split_of_the_table_is_kept(lab):
    rows = lab.rows()
    for row in rows:
        row["Split"] = {"0": "Test", "1": "val"}.get(row["image"][-5], "train")
    table_files.write_table(lab.root / "trials.csv", rows)
    subject, report = read(lab)
    for image_id, split in zip(subject.image_id, subject.split, strict=True):
        assert split == {"0": "test", "1": "val"}.get(image_id[-1], "train")
    assert "split as the table says" in report


def test_subjects_of_one_lab_share_ids_and_splits_by_the_name_of_the_stimuli(lab):
    ann, _ = read(lab, stimuli="lab")
    bob, _ = read(lab, stimuli="lab", name="lab-bob")
    assert ann.image_id == bob.image_id
    assert ann.image_id[0] == "lab/a/0000"
    assert ann.split.tolist() == bob.split.tolist()


def without_endings(name):
    return name.removesuffix(".png")


def as_windows_writes(name):
    return ".\\" + name.replace("/", "\\")


@pytest.mark.parametrize("write", [without_endings, as_windows_writes])
def test_pictures_are_found_however_they_are_written(lab, write):
    plain, _ = read(lab)
    rows = [r | {"image": f" {write(r['image'])} "} for r in lab.rows()]
    table_files.write_table(lab.root / "trials.tsv", rows)
    text = (lab.root / "trials.tsv").read_bytes()
    (lab.root / "trials.tsv").write_bytes(b"\xef\xbb\xbf" + text + b"\t\t\r\n\r\n")
    table_files.write_picture(lab.root / "pictures/unused.png", 0)
    (lab.root / "pictures/notes.txt").write_text("x")
    (lab.root / "pictures/.DS_Store").write_text("x")
    other, report = read(lab, trials=lab.root / "trials.tsv")
    assert other.image_id == plain.image_id
    np.testing.assert_array_equal(other.responses, plain.responses)
    assert "1 pictures in the folder are in no trial" in report
    assert "1 files beside the pictures ignored" in report


def test_transparent_pictures_take_the_background_that_is_said(lab):
    path = lab.root / "pictures/a/0000.png"
    Image.new("RGBA", (6, 6), (9, 9, 9, 0)).save(path)
    dataset = table.open_dataset(**lab.arguments, background="white")
    [picture] = dataset.read_images(["lab-ann/a/0000"])
    assert (picture == 255).all()


# ---------------------------------------------------------------- voxels


def test_regions_places_and_ceilings_follow_the_voxels_that_are_kept(lab):
    betas = lab.betas.copy()
    betas[0, 4] = np.nan
    np.save(lab.root / "betas.npy", betas)
    rng = np.random.default_rng(6)
    roi = rng.integers(0, 2, (table_files.VOXELS, 2))
    only_dropped = (np.arange(table_files.VOXELS) == 4).astype(int)
    cells = [
        {"V1": str(a), "FFA-1": ("false", "TRUE")[b], "lost": str(c)}
        for (a, b), c in zip(roi.tolist(), only_dropped.tolist(), strict=True)
    ]
    position = rng.integers(0, 99, (table_files.VOXELS, 3))
    ncsnr = rng.uniform(0, 1, table_files.VOXELS)
    ncsnr[0] = np.nan
    np.save(lab.root / "p.npy", position)
    np.save(lab.root / "n.npy", ncsnr)
    subject, report = read(
        lab,
        roi=table_files.write_table(lab.root / "roi.csv", cells),
        position=lab.root / "p.npy",
        ncsnr=lab.root / "n.npy",
        space="fsaverage",
    )
    keep = np.arange(table_files.VOXELS) != 4
    np.testing.assert_array_equal(subject.roi, roi[keep] == 1)
    assert subject.roi_names == ["V1", "FFA-1"]
    np.testing.assert_array_equal(subject.position, position[keep])
    np.testing.assert_array_equal(subject.ncsnr, ncsnr[keep].astype(np.float32))
    assert subject.attrs["space"] == "fsaverage"
    assert "regions without voxels, left out: lost" in report
    assert "ncsnr unknown for 1" in report


def test_labels_in_one_array_become_regions(lab):
    labels = np.array([0, 2, -1, 7] * 6)
    np.save(lab.root / "roi.npy", labels)
    subject, _ = read(lab, roi=lab.root / "roi.npy")
    assert subject.roi_names == ["label-2", "label-7"]
    np.testing.assert_array_equal(subject.roi, np.stack([labels == 2, labels == 7], 1))


# ---------------------------------------------------------------- health


def test_the_report_counts_what_was_read(lab):
    subject, report = read(lab)
    num = {s: int((subject.split == s).sum()) for s in ("train", "val", "test")}
    times = ", ".join(f"{(subject.repeats == n).sum()} x {n}" for n in (1, 2, 3, 4))
    assert (
        f"{len(lab.shown)} trials of 30 pictures ({num['train']} train, {num['val']} "
        f"val, {num['test']} test; shown: {times})"
    ) in report
    sd = np.mean(
        [
            lab.betas[[s == name for s in lab.session]].std(0, dtype=float)
            for name in table_files.SESSIONS
        ],
        0,
    )
    assert f"median SD of the betas before z-scoring {np.median(sd):.3g}" in report
    assert f"only {num['train']} train pictures" in report
    assert "no better than chance" not in report


def test_rows_in_another_order_than_the_betas_are_noticed(lab):
    rows = lab.rows()
    images = np.random.default_rng(8).permutation(lab.shown)
    mixed = [r | {"image": i} for r, i in zip(rows, images.tolist(), strict=True)]
    table_files.write_table(lab.root / "trials.csv", mixed)
    assert "repeats agree no better than chance" in read(lab)[1]


def shout(lab):
    np.save(lab.root / "betas.npy", z_scored(lab))


def whisper(lab):
    np.save(lab.root / "betas.npy", lab.betas[:, :9])


def short_sessions(lab):
    rows = lab.rows()
    for k, row in enumerate(rows):
        row["session"] = str(k // 8)
    table_files.write_table(lab.root / "trials.csv", rows)


def more_columns(lab):
    rows = [r | {"Onset": "1", "rt": "2"} for r in lab.rows()]
    table_files.write_table(lab.root / "trials.csv", rows)


@pytest.mark.parametrize(
    ("change", "options", "line"),
    [
        (shout, {}, "warning: the betas look z-scored already"),
        (whisper, {}, "warning: only 9 voxels"),
        (short_sessions, {}, r"warning: 9 of them have fewer than 10 trials"),
        (more_columns, {}, "2 columns of the table ignored: Onset, rt"),
        (None, {}, "scale is like percent signal change; z-scoring removes it"),
        (None, {"zscore": "none"}, r"do not look z-scored \(like percent signal"),
        (None, {"test_fraction": 0.0}, "warning: the test split is empty"),
        (None, {"val_fraction": 0.0}, "warning: the val split is empty"),
        (None, {}, r"warning: only \d test pictures"),
    ],
)
def test_what_looks_wrong_is_said(lab, change, options, line):
    if change:
        change(lab)
    assert re.search(line, read(lab, **options)[1])
