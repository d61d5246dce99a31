"""The reader of `fmri_v2.npz` against files made as the released script makes them."""

import hashlib
import pathlib
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest

from ubrain_jax import errors
from ubrain_jax.datasets import released

NUM_VOXELS = (30, 24, 27)
NUM_LEFT = (16, 11, 27 - 9)
NUM_IMAGES = 130
NUM_SHARED = 20


def make(seed: int) -> dict[str, Any]:
    """The arrays of the archive, in the steps of the released script.

    Trials of each subject are put into (image, repeat, voxel) tables full of NaN,
    averaged over repeats, and stored as float16; unseen shared pictures stay NaN.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(NUM_IMAGES)
    shared = np.sort(order[:NUM_SHARED])
    total = sum(NUM_VOXELS)
    single = np.full((NUM_IMAGES, 3, max(NUM_VOXELS)), np.nan)
    multi = np.full((NUM_SHARED, 3, total), np.nan)
    seen = np.zeros((NUM_SHARED, len(NUM_VOXELS)), int)
    owner = np.zeros(NUM_IMAGES, int)
    num_repeats = np.zeros(NUM_IMAGES, int)
    for s, num in enumerate(NUM_VOXELS):
        first = sum(NUM_VOXELS[:s])
        own = order[NUM_SHARED + 34 * s : NUM_SHARED + 34 * (s + 1)]
        for image in own:
            for repeat in range(rng.integers(1, 4)):
                single[image, repeat, :num] = rng.standard_normal(num)
                num_repeats[image] += 1
            owner[image] = s + 1  # the script counts subjects from 1
        for k in range(NUM_SHARED):
            if s == 1 and k in (3, 8):
                continue  # subject 2 did not finish
            for repeat in range(2):
                multi[k, repeat, first : first + num] = rng.standard_normal(num)
                seen[k, s] += 1
            num_repeats[shared[k]] += 1
    kind = np.ones(NUM_IMAGES)  # float64, as np.ones is
    kind[shared] = 2
    kind[num_repeats == 0] = 0
    assert (kind == 0).sum() == NUM_IMAGES - NUM_SHARED - 34 * 3
    one = kind == 1
    mean = [single[i, : num_repeats[i]].mean(0) for i in np.flatnonzero(one)]
    multi_mean = multi[:, :2].mean(1)
    val = np.sort(rng.choice(np.flatnonzero(one), 15, replace=False))
    return {
        "num_voxels_subjects": np.array(NUM_VOXELS),
        "type_sample": kind,
        "single_sub_fmri": np.nan_to_num(mean, nan=0).astype(np.float16),
        "multi_sub_fmri": multi_mean.astype(np.float16),
        "valid_multi_sub_fmri": seen > 0,
        "type_desc": np.array({0: "no measurment", 1: "single sub"}, dtype=object),
        "single_sub": owner[one],
        "val_global_ind": rng.permutation(val),
        "val_single_ind": np.flatnonzero(np.isin(np.flatnonzero(one), val)),
    }


@pytest.fixture
def arrays() -> dict[str, Any]:
    return make(0)


def write(folder: pathlib.Path, arrays: dict[str, Any], save=np.savez) -> pathlib.Path:
    save(folder / "fmri_v2.npz", **arrays)
    pictures = np.random.default_rng(9).integers(0, 256, (NUM_IMAGES, 8, 8, 3), "u1")
    np.save(folder / "nsd_images_224.npy", pictures)
    return folder


def planted(arrays: dict[str, Any], number: int) -> dict[int, np.ndarray]:
    """Responses of a subject by NSD number, looked up one by one."""
    kind, found = arrays["type_sample"], {}
    row = 0
    for image in range(NUM_IMAGES):
        if kind[image] == 1:
            if arrays["single_sub"][row] == number + 1:
                values = arrays["single_sub_fmri"][row, : NUM_VOXELS[number]]
                found[image] = values.astype(np.float32)
            row += 1
    row = 0
    first = sum(NUM_VOXELS[:number])
    for image in range(NUM_IMAGES):
        if kind[image] == 2:
            values = arrays["multi_sub_fmri"][row, first : first + NUM_VOXELS[number]]
            if not np.isnan(values).any():
                found[image] = values.astype(np.float32)
            row += 1
    return found


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_every_planted_value(tmp_path, arrays, save, monkeypatch):
    monkeypatch.setattr(released, "_BLOCK", 500)  # several blocks, the last not full
    dataset = released.open_dataset(write(tmp_path, arrays, save))
    subjects = list(dataset.subjects)
    assert [s.name for s in subjects] == ["nsd-subj01", "nsd-subj02", "nsd-subj03"]
    for number, subject in enumerate(subjects):
        truth = planted(arrays, number)
        ids = [int(i.removeprefix("nsd/")) for i in subject.image_id]
        assert len(ids) == len(set(ids)) == (52 if number == 1 else 54)
        assert set(ids) == set(truth)
        assert subject.responses.dtype == np.float32
        for image, found in zip(ids, subject.responses, strict=True):
            np.testing.assert_array_equal(found, truth[image])
        for image, split in zip(ids, subject.split, strict=True):
            if arrays["type_sample"][image] == 2:
                assert split == "test"
            else:
                held_out = image in arrays["val_global_ind"]
                assert split == ("val" if held_out else "train")
        assert subject.repeats.dtype == np.uint8
        assert np.isnan(subject.ncsnr).all()
        assert subject.ncsnr.shape == (NUM_VOXELS[number],)
        assert subject.position.tolist() == [[-1, -1, -1]] * NUM_VOXELS[number]
        assert subject.roi.shape == (NUM_VOXELS[number], 0)
    assert subjects[1].attrs["unseen_shared_images"] == 2
    text = "\n".join(dataset.report)
    assert "nsd-subj02: 2 shared pictures it never saw left out" in text
    assert text.count("left out") == 1
    assert "validation split: val_single_ind of the file" in text


def test_older_encodings_are_the_same_table(tmp_path, arrays):
    """Subjects from 0, zeros for unseen, no validity, counts beside the file."""
    new, old = tmp_path / "new", tmp_path / "old"
    new.mkdir()
    old.mkdir()
    expected = list(released.open_dataset(write(new, arrays)).subjects)
    for name in ("valid_multi_sub_fmri", "num_voxels_subjects", "val_global_ind"):
        del arrays[name]
    arrays["single_sub"] = (arrays["single_sub"] - 1).astype(np.float64)
    arrays["multi_sub_fmri"] = np.nan_to_num(arrays["multi_sub_fmri"])
    arrays["type_sample"] = arrays["type_sample"].astype(np.uint8)
    write(old, arrays)
    num = np.array([NUM_LEFT, np.subtract(NUM_VOXELS, NUM_LEFT)], np.float64).T
    np.save(old / "num_voxels_all_subjects.npy", num)
    (old / "nsd_images_224.npy").rename(old / "all_images_v2_224.npy")
    dataset = released.open_dataset(old / "fmri_v2.npz")
    for number, (subject, other) in enumerate(
        zip(dataset.subjects, expected, strict=True)
    ):
        np.testing.assert_array_equal(subject.responses, other.responses)
        assert subject.image_id == other.image_id
        assert subject.split.tolist() == other.split.tolist()
        left = NUM_LEFT[number]
        assert subject.position[:, 0].tolist() == [0] * left + [1] * (
            NUM_VOXELS[number] - left
        )
        assert (subject.position[:, 1:] == -1).all()
    assert "nsd-subj02: 2 shared pictures it never saw left out" in dataset.report


def test_subjects_shares_and_pictures(tmp_path, arrays):
    folder = write(tmp_path, arrays)
    dataset = released.open_dataset(
        folder, subjects=["subj03"], val_fraction=0.3, seed=5
    )
    (subject,) = dataset.subjects
    assert subject.name == "nsd-subj03"
    for image_id, split in zip(subject.image_id, subject.split, strict=True):
        digest = hashlib.sha256(f"5:{image_id}".encode()).hexdigest()
        late = int(digest[:12], 16) / 16.0**12 >= 0.7
        shared = arrays["type_sample"][int(image_id[4:])] == 2
        assert split == ("test" if shared else "val" if late else "train")
    pictures = np.load(folder / "nsd_images_224.npy")
    found = list(dataset.read_images(["nsd/00129", "nsd/00000"]))
    np.testing.assert_array_equal(found[0], pictures[129])
    np.testing.assert_array_equal(found[1], pictures[0])
    for wrong in ("nsd/00130", "nsd/7", "x/00001", "nsd/-0001"):
        with pytest.raises(errors.InputError, match=rf"no picture {wrong}; .*00129"):
            next(dataset.read_images([wrong]))
    assert [s["file"] for s in dataset.sources] == ["fmri_v2.npz", "nsd_images_224.npy"]
    content = (folder / "fmri_v2.npz").read_bytes()
    assert dataset.sources[0]["sha256"] == hashlib.sha256(content).hexdigest()
    del arrays["val_single_ind"], arrays["val_global_ind"]
    dataset = released.open_dataset(write(tmp_path, arrays), seed=1)
    assert dataset.report == [
        "validation split: 5.0% of the pictures by seed 1; the file names none"
    ]


def write_masks(folder: pathlib.Path, number: int) -> np.ndarray:
    """An Algonauts roi_masks folder; returns the vertices."""
    folder.mkdir(parents=True)
    rng, vertices = np.random.default_rng(number), []
    left = NUM_LEFT[number]
    for side, num in (("lh", left), ("rh", NUM_VOXELS[number] - left)):
        vertices.append(np.sort(rng.choice(163842, num, replace=False)))
        mask = np.zeros(163842, int)
        mask[vertices[-1]] = 1
        np.save(folder / f"{side}.all-vertices_fsaverage_space.npy", mask)
        np.save(folder / f"{side}.streams_challenge_space.npy", np.arange(num) % 2)
    np.save(folder / "mapping_streams.npy", {0: "Unknown", 1: "early\t"})
    return np.concatenate(vertices)


@pytest.mark.parametrize("layout", ["roi_masks/sub{}", "algonauts/subj0{}/roi_masks"])
def test_masks_give_vertices_and_regions(tmp_path, arrays, layout):
    folder = write(tmp_path, arrays)
    masks = None if layout.startswith("roi_masks") else tmp_path / "algonauts"
    vertices = [write_masks(tmp_path / layout.format(s + 1), s) for s in range(3)]
    dataset = released.open_dataset(folder, masks=masks)
    for number, subject in enumerate(dataset.subjects):
        left = NUM_LEFT[number]
        np.testing.assert_array_equal(subject.position[:, 1], vertices[number])
        assert subject.position[:, 0].tolist() == [0] * left + [1] * (
            NUM_VOXELS[number] - left
        )
        assert subject.attrs["vertices"] == [163842, 163842]
        assert subject.roi_names == ["streams:early"]
        odd = [*(np.arange(left) % 2), *(np.arange(NUM_VOXELS[number] - left) % 2)]
        assert subject.roi[:, 0].tolist() == [bool(v) for v in odd]
    assert any("mapping_streams.npy" in s["file"] for s in dataset.sources)
    num = np.array([np.add(NUM_LEFT, 1), np.subtract(NUM_VOXELS, NUM_LEFT) - 1]).T
    np.save(tmp_path / "num_voxels_all_subjects.npy", num)
    with pytest.raises(
        errors.InputError, match=r"30 vertices, 16 of them lh; .* 17 of"
    ):
        released.open_dataset(folder, masks=masks)
    with pytest.raises(
        errors.MissingInputError, match="no subj01/roi_masks and no sub1"
    ):
        released.open_dataset(folder, masks=tmp_path / "nowhere")


def test_rows_without_response_are_counted(tmp_path, arrays):
    rows = np.flatnonzero(arrays["single_sub"] == 3)
    arrays["single_sub_fmri"][rows[4]] = 0
    arrays["single_sub_fmri"][rows[[9, 10]]] = np.nan
    arrays["single_sub_fmri"][rows[12], NUM_VOXELS[2] :] = 1
    arrays["single_sub_fmri"][rows[[0, 1, 2, 3, 5, 6, 7, 8]], 5] = 0.5
    arrays["single_sub_fmri"][rows[11:], 5] = 0.5
    arrays["multi_sub_fmri"][7, -NUM_VOXELS[2] :] = np.nan  # though said to be valid
    dataset = released.open_dataset(write(tmp_path, arrays), subjects=["subj03"])
    (subject,) = dataset.subjects
    assert len(subject.image_id) == 54 - 4
    assert np.isfinite(subject.responses).all()
    assert subject.attrs["rows_without_response"] == 3
    assert subject.attrs["unseen_shared_images"] == 1
    assert subject.attrs["constant_voxels"] == 1
    text = "\n".join(dataset.report)
    for line in (
        "nsd-subj03: 3 rows of NaN or 0 alone left out",
        "nsd-subj03: 1 shared pictures it never saw left out",
        "nsd-subj03: 1 rows hold values beyond its 27 vertices, ignored",
        "nsd-subj03: 1 vertices are constant in train",
        "nsd-subj03: no vertex masks",
    ):
        assert line in text


def test_memory_is_one_subject_and_a_block(tmp_path, monkeypatch):
    """An archive of 24 MB; a subject of 1.2 MB float32 needs 4 MB."""
    num_rows, num = 6000, 2000
    arrays = {
        "num_voxels_subjects": np.array([num, num]),
        "type_sample": np.r_[np.ones(num_rows), 2 * np.ones(5)],
        "single_sub_fmri": np.ones((num_rows, num), np.float16),
        "multi_sub_fmri": np.ones((5, 2 * num), np.float16),
        "single_sub": np.r_[np.zeros(num_rows - 145), np.ones(145)],
        "val_single_ind": np.arange(0),
    }
    np.savez(tmp_path / "fmri_v2.npz", **arrays)
    np.save(tmp_path / "nsd_images_224.npy", np.zeros((num_rows + 5, 1, 1, 3), "u1"))
    del arrays
    monkeypatch.setattr(released, "_BLOCK", 200_000)
    tracemalloc.start()
    dataset = released.open_dataset(tmp_path, subjects=["subj02"])
    (subject,) = dataset.subjects
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert subject.responses.shape == (150, num)
    assert subject.responses.nbytes == 1_200_000
    assert peak < 4_000_000
    assert (tmp_path / "fmri_v2.npz").stat().st_size > 24_000_000


def changed(name, function):
    def change(arrays):
        arrays[name] = function(arrays[name])

    return change


def set_values(array, index, value):
    array = array.copy()
    array[index] = value
    return array


CASES = {
    "rows": (
        changed("single_sub_fmri", lambda a: a[:-1]),
        ["single_sub_fmri: 101 rows", "102, as type_sample == 1"],
    ),
    "shared rows": (
        changed("type_sample", lambda a: set_values(a, np.flatnonzero(a == 2)[0], 0)),
        ["multi_sub_fmri: 20 rows; expected 19, as type_sample == 2"],
    ),
    "columns": (
        changed("multi_sub_fmri", lambda a: a[:, 1:]),
        ["multi_sub_fmri: 80 columns; expected 81, the vertices of 3 subjects"],
    ),
    "narrow": (
        changed("single_sub_fmri", lambda a: a[:, 4:]),
        ["single_sub_fmri: 26 columns; expected at least 30"],
    ),
    "type_sample": (
        changed("type_sample", lambda a: set_values(a, 3, 4)),
        ["type_sample: float64 (130,); expected a list of 0, 1 and 2"],
    ),
    "single_sub length": (
        changed("single_sub", lambda a: a[1:]),
        ["single_sub: shape (101,); expected (102,), one a row"],
    ),
    "single_sub both": (
        changed("single_sub", lambda a: set_values(a, 5, 0)),
        ["single_sub: values 0..3; expected 0..2 or 1..3, not both"],
    ),
    "single_sub unclear": (
        changed("single_sub", lambda a: np.ones_like(a)),
        ["single_sub: values 1..1 of 3 subjects: from 0 or from 1?"],
    ),
    "single_sub range": (
        changed("single_sub", lambda a: set_values(a, 5, 9)),
        ["single_sub: values 1..9; expected 0..2 or 1..3"],
    ),
    "val range": (
        changed("val_single_ind", lambda a: a + 100),
        ["val_single_ind: rows 1", "0..101, rows of single_sub_fmri"],
    ),
    "val numbers": (
        changed("val_single_ind", lambda a: a / 2),
        ["val_single_ind: float64 (15,); expected a list of row numbers"],
    ),
    "val disagree": (
        changed("val_global_ind", lambda a: a[:-1]),
        ["val_single_ind: 15 pictures, not those of val_global_ind (14)"],
    ),
    "valid shape": (
        changed("valid_multi_sub_fmri", lambda a: a.T),
        ["valid_multi_sub_fmri: shape (3, 20); expected (20, 3)"],
    ),
    "counts": (
        changed("num_voxels_subjects", lambda a: a - 26),
        ["num_voxels_subjects: int64 (3,); expected (subjects,) or (subjects, 2)"],
    ),
    "integers": (
        changed("multi_sub_fmri", lambda a: np.nan_to_num(a).astype(np.int16)),
        ["multi_sub_fmri: int16 (20, 81); expected float16 (pictures, vertices)"],
    ),
    "one axis": (
        changed("single_sub_fmri", np.ravel),
        ["single_sub_fmri: float16 (3060,); expected float16 (pictures, vertices)"],
    ),
    "by columns": (
        changed("single_sub_fmri", np.asfortranarray),
        ["single_sub_fmri: stored by columns", "ascontiguousarray"],
    ),
    "object": (
        changed("single_sub", lambda a: np.array([print] * len(a))),
        ["single_sub: holds object; expected numbers"],
    ),
    "infinite": (
        changed("single_sub_fmri", lambda a: set_values(a, (40, 3), np.inf)),
        ["1 values are not finite (first: single_sub_fmri row 40, vertex 3 is inf)"],
    ),
    "some nan": (
        changed("multi_sub_fmri", lambda a: set_values(a, ([6, 9], [31, 33]), np.nan)),
        [
            "nsd-subj02: 2 values are not finite",
            "multi_sub_fmri row 6, vertex 1 is nan",
        ],
    ),
    "float64 too large": (
        changed(
            "multi_sub_fmri", lambda a: set_values(a.astype(np.float64), (2, 80), 1e99)
        ),
        ["nsd-subj03: 1 values", "multi_sub_fmri row 2, vertex 26 is inf"],
    ),
    "no train": (
        changed("single_sub", lambda a: np.where(a == 2, 1, a)),
        ["nsd-subj02: 0 pictures in the training split"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refuses(tmp_path, arrays, case):
    change, parts = CASES[case]
    change(arrays)
    folder = write(tmp_path, arrays)
    with pytest.raises(errors.InputError) as caught:
        list(released.open_dataset(folder).subjects)
    for part in (str(folder / "fmri_v2.npz"), *parts):
        assert part in str(caught.value)
    assert caught.value.exit_code == 65


def test_lists_all_problems_at_once(tmp_path, arrays):
    arrays["single_sub"] = arrays["single_sub"][1:]
    arrays["multi_sub_fmri"] = arrays["multi_sub_fmri"][:, 1:]
    folder = write(tmp_path, arrays)
    np.save(folder / "nsd_images_224.npy", np.zeros((129, 3, 8, 8), np.uint8))
    with pytest.raises(errors.InputError) as caught:
        released.open_dataset(folder)
    for part in (
        "3 problems: ",
        "multi_sub_fmri: 80 columns (expected 81",
        "single_sub: shape (101,) (expected (102,), one a row)",
        "nsd_images_224.npy: (129, 3, 8, 8) looks channels-first",
    ):
        assert part in str(caught.value)


def test_lists_missing_arrays_and_files(tmp_path, arrays):
    folder = write(tmp_path, arrays)
    np.savez(folder / "fmri_v2.npz", single_sub=[1], betas=[1.0])
    with pytest.raises(errors.MissingInputError) as caught:
        released.open_dataset(folder)
    assert (
        "no single_sub_fmri, multi_sub_fmri, type_sample (found: single_sub, betas)"
        in str(caught.value)
    )
    del arrays["num_voxels_subjects"]
    np.savez(folder / "fmri_v2.npz", **arrays)
    with pytest.raises(errors.MissingInputError, match="no num_voxels_all_subjects"):
        released.open_dataset(folder)
    np.save(folder / "num_voxels_all_subjects.npy", [[1, 2, 3]])
    with pytest.raises(errors.InputError, match=r"\(1, 3\); expected \(subjects,\)"):
        released.open_dataset(folder)
    (folder / "nsd_images_224.npy").unlink()
    with pytest.raises(errors.MissingInputError, match=r"no nsd_images_224\.npy or"):
        released.open_dataset(folder)
    (folder / "fmri_v2.npz").unlink()
    with pytest.raises(errors.MissingInputError, match=r"no fmri_v2\.npz"):
        released.open_dataset(folder)
    with pytest.raises(errors.MissingInputError, match="no such file"):
        released.open_dataset(folder / "elsewhere")


def test_counts_beside_the_file_must_agree(tmp_path, arrays):
    folder = write(tmp_path, arrays)
    num = np.array([NUM_LEFT, NUM_LEFT]).T
    np.save(folder / "num_voxels_all_subjects.npy", num)
    with pytest.raises(errors.InputError) as caught:
        released.open_dataset(folder)
    assert (
        "num_voxels_all_subjects.npy: counts [32, 22, 36]; expected [30, 24, 27]"
        in (str(caught.value))
    )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ["single_sub_fmri", "multi_sub_fmri", "type_sample"])
def test_damage_fails_the_checksum(tmp_path, arrays, name, save, monkeypatch):
    monkeypatch.setattr(released, "_BLOCK", 500)
    folder = write(tmp_path, arrays, save)
    path = folder / "fmri_v2.npz"
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{name}.npy")
    content = bytearray(path.read_bytes())
    # local header: 30 bytes, the name, 20 bytes of 64-bit sizes; then the content
    start = info.header_offset + 30 + len(info.filename) + 20
    content[start + info.compress_size - 70] ^= 1
    path.write_bytes(content)
    with pytest.raises(errors.InputError, match=rf"{name}: damaged or no npz \("):
        list(released.open_dataset(folder).subjects)


def test_refuses_other_files(tmp_path, arrays):
    folder = write(tmp_path, arrays)
    path = folder / "fmri_v2.npz"
    whole = path.read_bytes()
    for content in (b"", b"PK\3\4" + bytes(100), whole[:-30], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(errors.InputError, match=r"npz: damaged or no npz \("):
            released.open_dataset(folder)
    path.write_bytes(whole)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="name"):
        archive.writestr("single_sub.npy", b"x")
    with pytest.raises(errors.InputError, match="single_sub: is twice in the archive"):
        released.open_dataset(folder)


def test_refuses_bombs_and_lies(tmp_path, arrays):
    """Headers that declare more than there is, and zeros packed a thousand times."""
    folder = write(tmp_path, arrays)
    path = folder / "fmri_v2.npz"
    arrays["single_sub_fmri"] = np.zeros((102, 40_000), np.float16)
    np.savez_compressed(path, **arrays)
    with pytest.raises(
        errors.InputError, match=r"packed into \d+; expected at most 200"
    ):
        released.open_dataset(folder)
    arrays["single_sub_fmri"] = np.zeros((102, 30), np.float16)
    np.savez(path, **arrays)
    content = path.read_bytes()
    assert content.count(b"(102, 30)") == 1
    path.write_bytes(content.replace(b"(102, 30)", b"(10**9,)"))
    with pytest.raises(errors.InputError, match="damaged or no npz"):
        released.open_dataset(folder)
    path.write_bytes(content.replace(b"(102, 30), ", b"(102, 39), "))
    with pytest.raises(
        errors.InputError, match=r"6248 bytes; expected 8084 for float16"
    ):
        released.open_dataset(folder)
    arrays["single_sub"] = np.zeros(9_000_000)
    np.savez_compressed(path, **arrays)
    with pytest.raises(errors.InputError, match="single_sub: 72000128 bytes; expected"):
        released.open_dataset(folder)


def test_refuses_wrong_arguments(tmp_path, arrays):
    folder = write(tmp_path, arrays)
    with pytest.raises(errors.ConfigError, match=r"no subject 'subj04'.*Did you mean"):
        released.open_dataset(folder, subjects=["subj04"])
    with pytest.raises(errors.ConfigError, match="val_fraction: is 1"):
        released.open_dataset(folder, val_fraction=1)
    np.save(folder / "nsd_images_224.npy", np.zeros((130, 8, 8, 3), np.float32))
    with pytest.raises(errors.InputError, match=r"float32 \(130, 8, 8, 3\); .* uint8"):
        released.open_dataset(folder)
    np.save(folder / "other.npy", np.zeros((7, 8, 8, 3), np.uint8))
    with pytest.raises(errors.InputError, match="7 pictures; expected 130, as type_"):
        released.open_dataset(folder, images=folder / "other.npy")


def test_no_flipped_bit_changes_a_value(tmp_path, arrays):
    """Each damaged copy is refused, or reads as the whole one does."""
    folder = write(tmp_path, arrays)
    path = folder / "fmri_v2.npz"
    whole = path.read_bytes()
    expected = [s.responses for s in released.open_dataset(folder).subjects]
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            found = [s.responses for s in released.open_dataset(folder).subjects]
        except errors.InputError:
            refused += 1
        else:
            for array, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(array, other)
    assert refused > 100
