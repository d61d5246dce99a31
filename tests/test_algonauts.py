"""The Algonauts-2023 reader against folders written here by plain numpy and Pillow."""

import hashlib
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ubrain_jax import errors
from ubrain_jax.datasets import algonauts

NUM_VERTICES = {"lh": 30, "rh": 25}
VISUAL = {0: "Unknown", 1: "V1v\t    ", 2: "V1d\t", 3: "V2v"}  # tabs as in the ctab
FACES = {0: "Unknown", 1: "OFA", 2: "FFA-1", 5: "aTL-faces"}
STREAMS = {0: "Unknown", 1: "early", 5: "ventral"}
CLASSES = {"prf-visualrois": VISUAL, "floc-faces": FACES, "streams": STREAMS}


def write_subject(
    root: pathlib.Path,
    name: str,
    train: list[int],
    test: list[int],
    *,
    seed: int,
    test_fmri: bool = False,
) -> dict[str, Any]:
    """One subject as challenge_data_preparation.py of the challenge saves it."""
    rng = np.random.default_rng(seed)
    path = root / name
    truth: dict[str, Any] = {"train": train, "test": test}
    for split, short, ids in (("training", "train", train), ("test", "test", test)):
        folder = path / f"{split}_split/{split}_images"
        folder.mkdir(parents=True)
        for row, number in enumerate(ids):
            picture = np.random.default_rng(number).integers(0, 256, (6, 6, 3), "u1")
            Image.fromarray(picture).save(
                folder / f"{short}-{row + 1:04d}_nsd-{number:05d}.png"
            )
        if split == "test" and not test_fmri:
            continue
        (path / f"{split}_split/{split}_fmri").mkdir()
        for side, num in NUM_VERTICES.items():
            array = rng.standard_normal((len(ids), num)).astype(np.float32)
            truth[side, short] = array
            np.save(path / f"{split}_split/{split}_fmri/{side}_{split}_fmri", array)
    (path / "test_split/noise_ceiling").mkdir()
    (path / "roi_masks").mkdir()
    for side, num in NUM_VERTICES.items():
        truth[side, "ncsnr"] = ncsnr = rng.uniform(0, 1.5, num)
        ncsnr[0] = np.nan
        np.save(
            path / f"test_split/noise_ceiling/{side}_noise_ceiling",
            ncsnr**2 / (ncsnr**2 + 1 / 3),
        )
        mask = np.zeros(163842, int)
        truth[side, "vertex"] = np.sort(rng.choice(163842, num, replace=False))
        mask[truth[side, "vertex"]] = 1
        np.save(path / f"roi_masks/{side}.all-vertices_fsaverage_space", mask)
        for area, mapping in CLASSES.items():
            label = rng.choice([k for k in mapping if k != 2 or area[0] == "p"], num)
            truth[side, area] = label
            np.save(path / f"roi_masks/{side}.{area}_challenge_space", label)
            full = np.zeros(163842, int)
            full[truth[side, "vertex"]] = label
            np.save(path / f"roi_masks/{side}.{area}_fsaverage_space", full)
    for area, mapping in CLASSES.items():
        np.save(path / f"roi_masks/mapping_{area}", mapping)
    return truth


@pytest.fixture
def folder(tmp_path) -> tuple[pathlib.Path, dict[str, dict[str, Any]]]:
    """Two subjects, sharing pictures 13, 72, ..., without test responses."""
    rng = np.random.default_rng(3)
    shared = rng.choice(73000, 20, replace=False)
    truth = {}
    for number in (1, 2):
        own = rng.choice(73000, 41, replace=False)
        ids = sorted({13, 72999, *shared, *own})
        test = sorted({*range(1000, 1004)} - {*ids})
        truth[f"subj0{number}"] = write_subject(
            tmp_path, f"subj0{number}", ids, test, seed=number
        )
    return tmp_path, truth


def expected_split(number: int, test: float, val: float, seed: int) -> str:
    """The rule of the docstring, in other words."""
    text = f"{seed}:nsd/{number:05d}".encode()
    place = int(hashlib.sha256(text).hexdigest()[:12], 16) / 16.0**12
    return "test" if place < test else "val" if place >= 1 - val else "train"


def test_reads_every_planted_value(folder):
    root, truth = folder
    dataset = algonauts.open_dataset(root, val_fraction=0.2, test_fraction=0.3, seed=7)
    subjects = list(dataset.subjects)
    assert [s.name for s in subjects] == ["algonauts-subj01", "algonauts-subj02"]
    for subject, planted in zip(subjects, truth.values(), strict=True):
        assert subject.responses.dtype == np.float32
        np.testing.assert_array_equal(
            subject.responses,
            np.hstack([planted["lh", "train"], planted["rh", "train"]]),
        )
        assert list(subject.image_id) == [f"nsd/{i:05d}" for i in planted["train"]]
        assert subject.split.tolist() == [
            expected_split(i, 0.3, 0.2, 7) for i in planted["train"]
        ]
        assert {"train", "val", "test"} == set(subject.split.tolist())
        assert subject.position.dtype == np.int32
        np.testing.assert_array_equal(
            subject.position,
            [(0, v, -1) for v in planted["lh", "vertex"]]
            + [(1, v, -1) for v in planted["rh", "vertex"]],
        )
        np.testing.assert_allclose(
            subject.ncsnr,
            np.r_[planted["lh", "ncsnr"], planted["rh", "ncsnr"]],
            rtol=1e-5,
        )
        assert np.isnan(subject.ncsnr[[0, 30]]).all()
        assert subject.repeats.dtype == np.uint8
        assert subject.repeats.tolist() == [3] * len(planted["train"])
        assert subject.attrs["space"] == "fsaverage"
        assert subject.attrs["vertices"] == [163842, 163842]


def test_regions_are_the_planted_labels(folder):
    root, truth = folder
    subject = next(algonauts.open_dataset(root, subjects=["subj02"]).subjects)
    assert subject.name == "algonauts-subj02"
    planted = truth["subj02"]
    names = {"V1v": 1, "V1d": 2, "V2v": 3}
    names |= {"OFA": 1, "aTL-faces": 5}  # FFA-1 has no vertex
    names |= {"streams:early": 1, "streams:ventral": 5}
    assert sorted(subject.roi_names) == sorted(names)
    assert subject.roi.shape == (55, len(names))
    for name, value in names.items():
        area = "floc-faces" if "O" in name or "-f" in name else "prf-visualrois"
        area = "streams" if ":" in name else area
        labels = np.r_[planted["lh", area], planted["rh", area]]
        column = subject.roi[:, list(subject.roi_names).index(name)]
        np.testing.assert_array_equal(column, labels == value)
    assert subject.attrs["empty_regions"] == ["FFA-1"]


def test_splits_agree_between_subjects_and_calls(folder):
    root, _ = folder
    both = algonauts.open_dataset(root, test_fraction=0.4, val_fraction=0.2, seed=1)
    split: dict[str, str] = {}
    for subject in both.subjects:
        for image_id, name in zip(subject.image_id, subject.split, strict=True):
            assert split.setdefault(image_id, name) == name
    alone = algonauts.open_dataset(
        root, subjects=["subj02"], test_fraction=0.4, val_fraction=0.2, seed=1
    )
    subject = next(alone.subjects)
    assert [split[i] for i in subject.image_id] == subject.split.tolist()
    other = next(algonauts.open_dataset(root, test_fraction=0.4, seed=2).subjects)
    assert other.split.tolist() != [split[i] for i in other.image_id]


def test_own_test_responses_are_the_test_split(tmp_path):
    """Also for a subject that saw such a picture in its training folder."""
    truth = {
        "subj01": write_subject(
            tmp_path, "subj01", [*range(5, 65)], [70, 71], seed=1, test_fmri=True
        ),
        "subj03": write_subject(
            tmp_path, "subj03", [*range(20, 72)], [90, 91, 95], seed=3, test_fmri=True
        ),
    }
    dataset = algonauts.open_dataset(tmp_path, val_fraction=0.25, seed=4)
    for subject, planted in zip(dataset.subjects, truth.values(), strict=True):
        ids = planted["train"] + planted["test"]
        assert list(subject.image_id) == [f"nsd/{i:05d}" for i in ids]
        for side, columns in (("lh", slice(0, 30)), ("rh", slice(30, 55))):
            np.testing.assert_array_equal(
                subject.responses[:, columns],
                np.vstack([planted[side, "train"], planted[side, "test"]]),
            )
        assert subject.split.tolist() == [
            "test" if i in (70, 71, 90, 91, 95) else expected_split(i, 0, 0.25, 4)
            for i in ids
        ]
    text = "\n".join(dataset.report)
    assert "test split: 5 pictures with test responses" in text
    assert "algonauts-subj03: 2 pictures of the training folder are in the test" in text
    assert "held out as test split" not in text
    # a subject without them: hashed share on top, for all
    shutil.rmtree(tmp_path / "subj03/test_split/test_fmri")
    dataset = algonauts.open_dataset(
        tmp_path, subjects=["subj01"], test_fraction=0.5, val_fraction=0
    )
    subject = next(dataset.subjects)
    assert subject.split.tolist() == [
        "test" if i in (70, 71) else expected_split(i, 0.5, 0, 0)
        for i in truth["subj01"]["train"] + [70, 71]
    ]
    assert "test responses are not in subj03: 50.0% of all pictures" in "\n".join(
        dataset.report
    )


def test_pictures_come_in_the_order_asked(folder):
    root, truth = folder
    dataset = algonauts.open_dataset(root)
    numbers = [72999, 13, truth["subj02"]["train"][3], 13]
    found = list(dataset.read_images([f"nsd/{i:05d}" for i in numbers]))
    for number, picture in zip(numbers, found, strict=True):
        planted = np.random.default_rng(number).integers(0, 256, (6, 6, 3), "u1")
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, planted)
    with pytest.raises(errors.InputError, match="no picture nsd/13"):
        next(dataset.read_images(["nsd/13"]))


def test_reports_counts_and_sources(folder):
    root, truth = folder
    pictures = root / "subj01/training_split/training_images"
    (pictures / ".DS_Store").write_bytes(b"x")
    (pictures / "._train-0001_nsd-00013.png").write_bytes(b"x")
    lh = root / "subj01/training_split/training_fmri/lh_training_fmri.npy"
    changed = truth["subj01"]["lh", "train"].copy()
    changed[:, 4] = 0.25
    np.save(lh, changed.astype(np.float64))
    for file in (root / "subj01/test_split/noise_ceiling").iterdir():
        file.unlink()
    (root / "subj01/test_split/noise_ceiling").rmdir()
    dataset = algonauts.open_dataset(root, subjects=["subj01"])
    subject = next(dataset.subjects)
    np.testing.assert_array_equal(subject.responses[:, :30], changed)
    assert subject.attrs["constant_voxels"] == 1
    assert np.isnan(subject.ncsnr).all()
    text = "\n".join(dataset.report)
    for line in (
        "test responses are not in subj01, subj02: 10.0% of all pictures, chosen by "
        "seed 0",
        "algonauts-subj01: 2 files beside the pictures ignored",
        "1 vertices are constant in train",
        "responses are float32, float64, read as float32",
        "regions without a vertex, left out: FFA-1",
        "no noise ceiling in the folder; ncsnr is NaN",
        "55 vertices (30 lh)",
    ):
        assert line in text
    assert f"{(subject.split == 'train').sum()} train, " in text
    sources = {s["file"]: s for s in dataset.sources}
    name = "subj01/training_split/training_fmri/lh_training_fmri.npy"
    assert sources[name]["sha256"] == hashlib.sha256(lh.read_bytes()).hexdigest()
    assert sources[name]["size"] == lh.stat().st_size
    assert "subj01/roi_masks/mapping_streams.npy" in sources
    assert len(sources) == 2 + 2 + 3 * 3


def test_one_subject_folder_and_no_labels(folder):
    root, _ = folder
    for file in (root / "subj02/roi_masks").iterdir():
        if "all-vertices" not in file.name:
            file.unlink()
    dataset = algonauts.open_dataset(root / "subj02")
    (subject,) = dataset.subjects
    assert subject.name == "algonauts-subj02"
    assert subject.roi.shape == (55, 0)
    assert "algonauts-subj02: no ROI labels in roi_masks" in dataset.report


def test_read_surface(folder):
    root, truth = folder
    surface = algonauts.read_surface(root / "subj01/roi_masks")
    assert surface.num_left == 30
    np.testing.assert_array_equal(
        surface.position[:30, 1], truth["subj01"]["lh", "vertex"]
    )
    with pytest.raises(errors.MissingInputError, match=r"no lh\.all-vertices"):
        algonauts.read_surface(root)


def damaged(root, change):
    """The message of opening and reading the folder after a change."""
    change(root / "subj01")
    with pytest.raises(errors.InputError) as caught:
        list(algonauts.open_dataset(root).subjects)
    return caught.value


def save_changed(file, function):
    np.save(file, function(np.load(file)))


FMRI = "training_split/training_fmri/{}_training_fmri.npy"
PICTURES = "training_split/training_images"


def set_values(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def rename(folder, old, new):
    (found,) = folder.glob(old)
    found.rename(folder / new.format(found.name))


CASES = {
    "rows": (
        lambda p: save_changed(p / FMRI.format("rh"), lambda a: a[:-1]),
        ["subj01/training_split/training_fmri/rh_training_fmri.npy: ", "rows"],
    ),
    "columns": (
        lambda p: save_changed(p / FMRI.format("lh"), lambda a: a[:, 1:]),
        ["lh_training_fmri.npy: 29 columns; expected 30, one a vertex of the mask"],
    ),
    "transposed": (
        lambda p: save_changed(p / FMRI.format("lh"), lambda a: a.T),
        ["transposed", "(pictures, vertices)"],
    ),
    "integers": (
        lambda p: save_changed(p / FMRI.format("lh"), lambda a: a.astype(np.int16)),
        ["lh_training_fmri.npy: holds int16; expected float32"],
    ),
    "nan": (
        lambda p: save_changed(
            p / FMRI.format("rh"), lambda a: set_values(a, ([3, 9], [7, 0]), np.nan)
        ),
        ["2 values are not finite (first: row 3, column 7 is nan)"],
    ),
    "infinite": (
        lambda p: save_changed(
            p / FMRI.format("lh"),
            lambda a: set_values(a.astype(np.float64), (5, 2), 1e300),
        ),
        ["1 values are not finite (first: row 5, column 2 is inf)"],
    ),
    "truncated": (
        lambda p: (p / FMRI.format("lh")).write_bytes(
            (p / FMRI.format("lh")).read_bytes()[:-100]
        ),
        ["lh_training_fmri.npy: no whole .npy array"],
    ),
    "pickled": (
        lambda p: np.save(p / FMRI.format("lh"), np.array([[1, "a"]], object)),
        ["lh_training_fmri.npy: no whole .npy array", "object"],
    ),
    "header": (
        lambda p: (p / FMRI.format("lh")).write_bytes(
            (p / FMRI.format("lh")).read_bytes().replace(b")", b" ", 1)
        ),
        ["lh_training_fmri.npy: no whole .npy array", "multi-line"],
    ),
    "empty": (
        lambda p: (p / FMRI.format("lh")).write_bytes(b""),
        ["lh_training_fmri.npy: no whole .npy array (0 bytes"],
    ),
    "name": (
        lambda p: rename(p / PICTURES, "train-0003_*.png", "third.png"),
        ["1 names not understood (third.png)", "rows are not 1..", "train-0003"],
    ),
    "number": (
        lambda p: rename(p / PICTURES, "train-0003_*.png", "train-0003_nsd-73000.png"),
        ["train-0003_nsd-73000.png", "NSD number below 73000"],
    ),
    "row twice": (
        lambda p: Image.new("RGB", (4, 4)).save(
            p / PICTURES / "train-0002_nsd-00014.png"
        ),
        ["row twice: train-0002_nsd-"],
    ),
    "order": (
        lambda p: rename(p / PICTURES, "train-0005_*.png", "train-0005_nsd-00013.png"),
        ["row 0005 has NSD number 00013 after a number as large", "renamed?"],
    ),
    "gap": (
        lambda p: next((p / PICTURES).glob("train-0007_*")).unlink(),
        ["1 missing (train-0007)"],
    ),
    "no pictures": (
        lambda p: [f.unlink() for f in (p / PICTURES).iterdir()],
        ["training_images: 0 pictures"],
    ),
    "mask size": (
        lambda p: save_changed(
            p / "roi_masks/lh.all-vertices_fsaverage_space.npy", lambda a: a[1:]
        ),
        ["(163841,); expected (163842,), the vertices of an fsaverage hemisphere"],
    ),
    "mask values": (
        lambda p: save_changed(
            p / "roi_masks/lh.all-vertices_fsaverage_space.npy",
            lambda a: set_values(a, 7, 3),
        ),
        ["values 0, 1, 3; expected a mask of 0 and 1"],
    ),
    "mask empty": (
        lambda p: save_changed(
            p / "roi_masks/rh.all-vertices_fsaverage_space.npy", np.zeros_like
        ),
        ["rh.all-vertices_fsaverage_space.npy: 0 vertices"],
    ),
    "label": (
        lambda p: save_changed(
            p / "roi_masks/rh.streams_challenge_space.npy",
            lambda a: set_values(a, 3, 4),
        ),
        ["labels without a name: 4; expected labels of mapping_streams.npy: 1, 5"],
    ),
    "label shape": (
        lambda p: save_changed(
            p / "roi_masks/rh.streams_challenge_space.npy", lambda a: a[:-2]
        ),
        ["rh.streams_challenge_space.npy: int64 (23,); expected int (25,)"],
    ),
    "label files": (
        lambda p: (p / "roi_masks/rh.streams_challenge_space.npy").unlink(),
        ["rh.streams_challenge_space.npy: no such file; expected all files of class"],
    ),
    "name twice": (
        lambda p: np.save(p / "roi_masks/mapping_floc-faces", FACES | {1: "V1v"}),
        ["mapping_floc-faces.npy: region V1v occurs in two classes"],
    ),
    "mapping": (
        lambda p: np.save(p / "roi_masks/mapping_streams", {1: print}),
        ["mapping_streams.npy", "asks for builtins.print, which could run code"],
    ),
    "percent": (
        lambda p: save_changed(
            p / "test_split/noise_ceiling/lh_noise_ceiling.npy", lambda a: a * 100
        ),
        ["lh_noise_ceiling.npy: values ", ", percent?; expected 0 <= NC < 1"],
    ),
    "ceiling shape": (
        lambda p: save_changed(
            p / "test_split/noise_ceiling/lh_noise_ceiling.npy", lambda a: a[:9]
        ),
        ["lh_noise_ceiling.npy: float64 (9,); expected float (30,), as the mask"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refuses(folder, case):
    change, parts = CASES[case]
    error = damaged(folder[0], change)
    for part in parts:
        assert part in str(error), str(error)
    assert str(folder[0]) in str(error)
    assert "leave the subject out" in str(error)
    assert error.exit_code == 65


def test_lists_all_that_is_missing_at_once(folder):
    root, _ = folder
    (root / "subj01" / FMRI.format("rh")).unlink()
    (root / "subj02/roi_masks/lh.all-vertices_fsaverage_space.npy").unlink()
    (root / "subj02/test_split/noise_ceiling/rh_noise_ceiling.npy").unlink()
    (root / "subj02/test_split/test_fmri").mkdir()
    np.save(root / "subj02/test_split/test_fmri/lh_test_fmri", np.zeros((4, 30)))
    with pytest.raises(errors.MissingInputError) as caught:
        algonauts.open_dataset(root)
    for part in (
        "4 missing: ",
        "subj01/training_split/training_fmri/rh_training_fmri.npy",
        "subj02/roi_masks/lh.all-vertices_fsaverage_space.npy",
        "subj02/test_split/noise_ceiling/rh_noise_ceiling.npy",
        "subj02/test_split/test_fmri/rh_test_fmri.npy",
    ):
        assert part in str(caught.value)
    assert caught.value.exit_code == 66


def test_lists_all_problems_at_once(folder):
    root, _ = folder
    save_changed(root / "subj01" / FMRI.format("rh"), lambda a: a[:, :-1])
    save_changed(root / "subj02" / FMRI.format("lh"), lambda a: a[:-5])
    with pytest.raises(errors.InputError) as caught:
        algonauts.open_dataset(root)
    assert "2 problems: " in str(caught.value)
    assert "24 columns (expected 25" in str(caught.value)
    assert "subj02/training_split/training_fmri/lh_training" in str(caught.value)


def test_refuses_a_picture_in_both_splits(tmp_path):
    write_subject(tmp_path, "subj01", [1, 2, 3], [3, 4], seed=0, test_fmri=True)
    with pytest.raises(errors.InputError, match=r"in both splits \(nsd/00003\)"):
        algonauts.open_dataset(tmp_path)


def test_refuses_wrong_arguments(folder):
    root, _ = folder
    with pytest.raises(errors.ConfigError, match=r"no subject 'sub01'.*mean subj01"):
        algonauts.open_dataset(root, subjects=["sub01"])
    with pytest.raises(errors.ConfigError, match="is empty"):
        algonauts.open_dataset(root, subjects=[])
    with pytest.raises(errors.ConfigError, match=r"val_fraction: is -0\.1"):
        algonauts.open_dataset(root, val_fraction=-0.1)
    with pytest.raises(errors.ConfigError, match=r"val_fraction\+test_fraction: is 1"):
        algonauts.open_dataset(root, val_fraction=0.5, test_fraction=0.5)
    with pytest.raises(errors.MissingInputError, match="no such folder"):
        algonauts.open_dataset(root / "nowhere")
    shutil.rmtree(root / "subj01/training_split")
    with pytest.raises(errors.MissingInputError, match=r"\(found: roi_masks, test_sp"):
        algonauts.open_dataset(root / "subj01")
