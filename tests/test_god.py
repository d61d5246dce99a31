"""The fMRI-on-ImageNet reader against tables written here from their description."""

import hashlib
import shutil
import statistics

import numpy as np
import pytest
from PIL import Image

from tests import god_files
from ubrain_jax import crowd, errors
from ubrain_jax.datasets import god, god_samples

NAMES = god_files.names_of(god_files.TRAIN), god_files.names_of(god_files.TEST)
HALF = god_files.NUM_VOXELS // 2  # the column of DataType; Run and id follow


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """The pictures of all stimuli."""
    folder = tmp_path_factory.mktemp("stimuli")
    god_files.write_pictures(folder)
    return folder


@pytest.fixture
def write(tmp_path):
    """Writes subjects' tables; returns their folder."""

    def make(*tables, encoding="capital"):
        for k, (table, metadata) in enumerate(tables):
            path = tmp_path / f"Subject{k + 1}.h5"
            god_files.write_table(path, table, metadata, encoding)
        return tmp_path

    return make


def slow(table, metadata, key="ROI_VC"):
    """By picture name the (V,) averages, and (V,) ncsnr, one sample at a time."""
    columns = [c for c in range(table.shape[1]) if metadata[key][c] == 1]
    label = "Label" if "Label" in metadata else "stimulus_id"
    design = [list(metadata[k]).index(1) for k in ("DataType", "Run", label)]
    runs: dict[tuple, list[int]] = {}
    for t, (part, run, _) in enumerate(table[:, design]):
        runs.setdefault((part, run), []).append(t)
    shown: dict[str, list[list[float]]] = {}
    for (part, _), here in runs.items():
        mean = [statistics.fmean(table[here, c]) for c in columns]
        sd = [statistics.pstdev(table[here, c]) for c in columns]
        for t in here:
            z = [
                (table[t, c] - m) / s for c, m, s in zip(columns, mean, sd, strict=True)
            ]
            number = f"{table[t, design[2]]:.6f}"
            name = f"n{int(number[:-7]):08d}_{int(number[-6:])}"
            if part != 3:
                shown.setdefault(name, []).append(z)
    averages = {
        name: [statistics.fmean(v) for v in zip(*zs, strict=True)]
        for name, zs in shown.items()
    }
    ncsnr = []
    for k in range(len(columns)):
        test = [[z[k] for z in shown[name]] for name in NAMES[1] if name in shown]
        noise = statistics.fmean(statistics.variance(v) for v in test)
        signal = statistics.pvariance([z for v in test for z in v]) - noise
        ncsnr.append(max(0.0, signal / noise) ** 0.5)
    return averages, ncsnr


def expected_split(name, val, seed):
    """The rule of the docstring, in other words."""
    if name in NAMES[1]:
        return "test"
    digest = hashlib.sha256(f"{seed}:god/{name}".encode()).hexdigest()
    return "val" if int(digest[:12], 16) / 16.0**12 >= 1 - val else "train"


def test_responses_equal_a_slow_loop_over_the_written_table(write, images):
    """The second subject has more voxels and its design columns elsewhere."""
    tables = [god_files.make_subject(1), god_files.make_subject(2, 31, label="Label")]
    dataset = god.open_dataset(write(*tables), images=images, val_fraction=0.4, seed=3)
    names = [name for part in NAMES for name in sorted(part, key=number_of)]
    subjects = list(dataset.subjects)
    assert [s.name for s in subjects] == ["god-subject1", "god-subject2"]
    for subject, written in zip(subjects, tables, strict=True):
        averages, ncsnr = slow(*written)
        assert list(subject.image_id) == [f"god/{name}" for name in names]
        np.testing.assert_allclose(
            subject.responses, [averages[n] for n in names], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(subject.ncsnr, ncsnr, rtol=1e-5)
        assert subject.split.tolist() == [expected_split(n, 0.4, 3) for n in names]
        assert {"train", "val", "test"} == set(subject.split.tolist())
        assert subject.repeats.dtype == np.uint8
        assert subject.repeats.tolist() == [1] * 8 + [god_files.REPEATS] * 3
        assert subject.responses.dtype == subject.ncsnr.dtype == np.float32


def number_of(name):
    wnid, _, number = name.partition("_")
    return int(wnid[1:]), int(number)


def test_every_encoding_gives_the_same_subject(tmp_path, images):
    table, metadata = god_files.make_subject(4)
    for k, encoding in enumerate(god_files.ENCODINGS):
        path = tmp_path / f"Subject{k + 1}.mat"  # whatever it is
        god_files.write_table(path, table, metadata, encoding)
    subjects = list(god.open_dataset(tmp_path, images=images).subjects)
    first = subjects[0]
    assert [s.name for s in subjects] == [f"god-subject{k}" for k in range(1, 6)]
    encodings = [s.attrs["encoding"] for s in subjects]
    assert encodings == ["MATLAB 5", "MATLAB 7.3", "HDF5", "HDF5", "HDF5"]
    for other in subjects[1:]:
        for field in ("responses", "repeats", "ncsnr", "position", "roi"):
            assert getattr(other, field).tobytes() == getattr(first, field).tobytes()
        assert list(other.image_id) == list(first.image_id)
        assert other.roi_names == first.roi_names
        assert other.split.tolist() == first.split.tolist()


def test_regions_and_positions_are_the_planted_ones(write, images):
    root = write(god_files.make_subject(1))
    number = np.array([n for n in range(god_files.NUM_VOXELS) if n % 6 != 5])
    (subject,) = god.open_dataset(root, images=images).subjects
    assert list(subject.roi_names) == ["V1", "FFA", "VC"]
    np.testing.assert_array_equal(
        subject.roi, np.stack([number < 5, (number > 4) & (number < 9), number > -1], 1)
    )
    np.testing.assert_array_equal(
        subject.position,
        np.stack([3 - number % 4, number // 4 % 3, number // 12], 1),
    )
    assert np.diag(subject.attrs["affine"]).tolist() == [3, 3, 3.5, 1]
    both = god.open_dataset(root, images=images, roi=("ROI_FFA", "ROI_V1"))
    (subject,) = both.subjects
    assert subject.responses.shape[1] == 9
    assert subject.attrs["mask"] == "ROI_FFA, ROI_V1"
    np.testing.assert_array_equal(subject.roi[:, 0], np.arange(9) < 5)
    (every,) = god.open_dataset(root, images=images, roi="VoxelData").subjects
    np.testing.assert_array_equal(every.position[:9], subject.position)


def test_training_pictures_shown_twice_are_averaged_and_counted(write, images):
    table, metadata = god_files.make_subject(5)
    first, other = np.flatnonzero(table[:, HALF] == 1)[[0, 5]]
    table[other, HALF + 2] = table[first, HALF + 2]
    dataset = god.open_dataset(write((table, metadata)), images=images)
    (subject,) = dataset.subjects
    averages, ncsnr = slow(table, metadata)
    assert sorted(subject.repeats.tolist()) == [1] * 6 + [2] + [4] * 3
    for identifier, row in zip(subject.image_id, subject.responses, strict=True):
        np.testing.assert_allclose(row, averages[identifier[4:]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(subject.ncsnr, ncsnr, rtol=1e-5)
    assert "pictures shown: 6 x 1, 1 x 2" in "\n".join(dataset.report)


def test_what_is_left_out_is_counted_and_listed(write, images):
    table, metadata = god_files.make_subject(6)
    columns = np.flatnonzero(metadata["ROI_VC"] == 1)
    training = np.flatnonzero(table[:, HALF] == 1)
    table[training[2], columns[[1, 4]]] = np.nan, np.inf
    table[-1, columns[2]] = np.nan  # in imagery, which nobody reads
    table[:, columns[6]] = 7.25
    for part, run in np.unique(table[:, HALF : HALF + 2], axis=0):
        here = (table[:, HALF] == part) & (table[:, HALF + 1] == run)
        table[here, columns[7]] = 10 * part + run  # constant in each run
    table[table[:, HALF + 1] == 1, columns[8]] = 3
    metadata["ROI_PPA"] = metadata["ROI_VC"] * np.nan
    metadata["ROI_V4"] = np.where(metadata["ROI_VC"] == 1, 2.0, 0)
    metadata["ROI_V4"][columns[0]] = 1
    (write((table, metadata)) / "notes.txt").write_text("x")
    dataset = god.open_dataset(write((table, metadata)), images=images)
    (subject,) = dataset.subjects
    dropped = columns[[1, 4, 6, 7]].tolist()
    kept = [c for c in columns if c not in dropped]
    assert subject.attrs["dropped"] == [
        {"reason": "not finite in a sample", "count": 2, "columns": dropped[:2]},
        {"reason": "constant in every run", "count": 2, "columns": dropped[2:]},
    ]
    x = [metadata["voxel_x"][c] for c in kept]
    np.testing.assert_allclose(
        subject.position[:, 0] * 3 + subject.attrs["affine"][0][3], x
    )
    assert np.isfinite(subject.responses).all()
    assert subject.attrs["constant_in_run"] == {"training 1": 1, "test 1": 1}
    assert subject.attrs["samples"] == {"training": 8, "test": 12, "imagery": 2}
    assert subject.attrs["runs"] == {"training": 2, "test": 4}
    text = "\n".join(dataset.report)
    for line in (
        "1 other files in the folder ignored: notes.txt",
        "subject1: 2 samples of imagery left out",
        "subject1: 2 voxels dropped, not finite in a sample",
        "subject1: 2 voxels dropped, constant in every run",
        "subject1: 2 times a voxel is constant in a run and counts as 0 there",
        "regions without a voxel, left out: PPA",
        "ROI_V4 hold other values than 0 and 1; only 1 counts",
        "training: 8 samples in 2 runs of 4 to 4; pictures shown: 8 x 1",
        "test: 12 samples in 4 runs of 3 to 3; pictures shown: 3 x 4",
        f"test pictures; {len(kept)} voxels in ROI_VC",
        "median ncsnr ",
    ):
        assert line in text, text
    assert "do not follow each other" not in text
    [source] = dataset.sources
    content = (write((table, metadata)) / "Subject1.h5").read_bytes()
    assert source["file"] == "Subject1.h5"
    assert source["size"] == len(content)


def test_run_numbers_used_twice_are_noticed(write, images):
    table, metadata = god_files.make_subject(6)
    order = np.r_[0:8, 8:11, 14:17, 11:14, 17 : len(table)]
    table[14:17, HALF + 1] = 1  # test run 3 calls itself 1
    dataset = god.open_dataset(write((table[order], metadata)), images=images)
    list(dataset.subjects)
    assert "do not follow each other" not in "\n".join(dataset.report)
    dataset = god.open_dataset(write((table, metadata)), images=images)
    list(dataset.subjects)
    assert "samples of 1 runs do not follow each other (test 1)" in "\n".join(
        dataset.report
    )


def test_a_table_without_test_samples_has_no_ncsnr(write, images):
    table, metadata = god_files.make_subject(6)
    table = table[table[:, HALF] != 2]
    metadata = {k: v for k, v in metadata.items() if k != "voxel_z"}
    dataset = god.open_dataset(write((table, metadata)), images=images, val_fraction=0)
    (subject,) = dataset.subjects
    assert np.isnan(subject.ncsnr).all()
    columns = np.flatnonzero(metadata["ROI_VC"] == 1)
    np.testing.assert_array_equal(subject.position[:, 0], columns)
    text = "\n".join(dataset.report)
    assert "warning: the test split is empty; ncsnr is unknown" in text
    assert "val split is empty" in text
    assert "position is the column of the table, -1, -1: no voxel_x" in text


# ---------------------------------------------------------------- files, pictures


@pytest.mark.parametrize(
    "name", ["subject3.H5", "Subject03.mat", "sub-03.h5", "s3.hdf5"]
)
def test_subjects_are_known_by_their_number(tmp_path, images, name):
    god_files.write_table(tmp_path / name, *god_files.make_subject(1), "vlen")
    source = tmp_path / name if name.startswith("sub") else tmp_path
    dataset = god.open_dataset(source, images=images, subjects=["subject3"])
    assert [s.name for s in dataset.subjects] == ["god-subject3"]


def test_one_file_of_any_name_is_a_subject(tmp_path, images):
    god_files.write_table(tmp_path / "anna.h5", *god_files.make_subject(1), "lower")
    dataset = god.open_dataset(tmp_path / "anna.h5", images=images)
    assert [s.name for s in dataset.subjects] == ["god-anna"]
    digest = hashlib.sha256((tmp_path / "anna.h5").read_bytes()).hexdigest()
    size = (tmp_path / "anna.h5").stat().st_size
    assert dataset.sources == [{"file": "anna.h5", "size": size, "sha256": digest}]


def test_a_subject_in_two_files_is_refused_unless_one_is_meant(write, images):
    root = write(god_files.make_subject(1), god_files.make_subject(2))
    shutil.copy(root / "Subject1.h5", root / "Subject1.mat")
    with pytest.raises(
        errors.InputError,
        match=r"several files \(subject1: Subject1\.h5, Subject1\.mat\)",
    ):
        god.open_dataset(root, images=images)
    dataset = god.open_dataset(root, images=images, subjects=["subject2"])
    assert [s.name for s in dataset.subjects] == ["god-subject2"]
    dataset = god.open_dataset(root / "Subject1.mat", images=images)
    assert [s.name for s in dataset.subjects] == ["god-subject1"]


def test_pictures_come_in_the_order_asked(write, images):
    dataset = god.open_dataset(write(god_files.make_subject(1)), images=images)
    names = [NAMES[1][0], NAMES[0][4], NAMES[0][0], NAMES[1][0]]
    found = list(dataset.read_images([f"god/{name}" for name in names]))
    for name, image in zip(names, found, strict=True):
        planted = np.asarray(god_files.picture(name), int)
        assert np.abs(image[:, 4::8] - planted[:, 4::8]).max() < 12  # JPEG
    assert len(dataset.report) == 0
    with pytest.raises(errors.InputError, match="no picture god/n00000001_1"):
        next(dataset.read_images(["god/n00000001_1"]))


def test_grey_print_colour_and_turned_pictures_are_read_and_counted(
    write, images, tmp_path
):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    exif = Image.Exif()
    exif[0x0112] = 6
    paths = [folder / f"training/{name}.JPEG" for name in NAMES[0][:4]]
    Image.new("L", (20, 9), 70).save(paths[0])
    Image.new("CMYK", (20, 9), (0, 255, 255, 0)).save(paths[1])  # red ink
    Image.new("RGB", (20, 9), (10, 20, 30)).save(paths[2], exif=exif)
    Image.new("L", (20, 9), 80).save(paths[3])
    dataset = god.open_dataset(write(god_files.make_subject(1)), images=folder)
    identifiers = [f"god/{name}" for names in NAMES for name in names]
    grey, red, turned, *_ = dataset.read_images(identifiers)
    assert (grey == 70).all()
    assert np.abs(red[4, 4].astype(int) - (255, 0, 0)).max() < 6
    assert turned.shape == (9, 20, 3)
    assert dataset.report[-3:] == [
        "2 pictures grey, shown as three equal colours",
        "1 pictures in print colours (CMYK), converted without a colour profile",
        "1 pictures with an EXIF orientation, which is ignored",
    ]


def test_missing_pictures_are_listed_before_a_response_is_read(
    write, images, tmp_path, monkeypatch
):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    (folder / f"training/{NAMES[0][3]}.JPEG").unlink()
    (folder / f"test/{NAMES[1][2]}.JPEG").unlink()
    with pytest.raises(errors.MissingInputError) as caught:
        god.open_dataset(write(god_files.make_subject(1)), images=folder)
    assert (
        f"2 of 11 pictures missing: {NAMES[0][3]}, {NAMES[1][2]}; expected a picture"
    ) in str(caught.value)
    assert caught.value.exit_code == 66


def test_the_store_takes_what_the_reader_gives(write, images, tmp_path):
    root = write(god_files.make_subject(1), god_files.make_subject(2, 31))
    dataset = god.open_dataset(root, images=images, val_fraction=0.4)
    crowd.write(str(tmp_path / "god.zarr"), dataset, image_px=28)
    opened = crowd.open_crowd([str(tmp_path / "god.zarr")])
    again = god.open_dataset(root, images=images, val_fraction=0.4)
    for stored, read in zip(opened.subjects, again.subjects, strict=True):
        assert stored.name == read.name
        np.testing.assert_array_equal(stored.responses.read().result(), read.responses)
        ids = [opened.image_id[k] for k in stored.image]
        assert ids == list(read.image_id)
        assert stored.roi_names == ("V1", "FFA", "VC")
        assert stored.attrs["affine"] == read.attrs["affine"]


# ---------------------------------------------------------------- bad input


def set_design(column, rows, value):
    def change(table, metadata):
        table[rows, HALF + column] = value

    return change


def rename(old, new):
    def change(table, metadata):
        metadata[new] = metadata.pop(old)

    return change


def to_float32(table, metadata):
    table[:, HALF + 2] = table[:, HALF + 2].astype(np.float32)


def select_design(table, metadata):
    metadata["ROI_VC"][HALF + 1] = 1


FAULTS = {
    "float32 ids": (
        to_float32,
        [
            "stimulus_id: 4 distinct ids in 20 samples, all exact in float32",
            "in float64",
        ],
    ),
    "category ids": (
        lambda t, m: set_design(2, slice(0, 20), 1443537.0)(t, m),
        ["1 distinct ids in 20 samples, all exact in float32"],
    ),
    "nan id": (
        set_design(2, [3, 9], np.nan),
        ["2 ids are not of ImageNet (first: nan); expected ids such as 1443537.022563"],
    ),
    "wrong id": (set_design(2, 3, 12e7), ["1 ids are not of ImageNet (first: 1.2e+08"]),
    "half id": (
        set_design(2, 4, 1443537.0225634),
        ["1 ids are between multiples of 1e-6 (first: 1443537.0225634)"],
    ),
    "part": (
        set_design(0, [2, 5, 19], [4, np.nan, 4]),
        ["DataType: 4, nan in 3 samples; expected 1 (training), 2 (test) or 3"],
    ),
    "no training": (set_design(0, slice(0, 8), 3), ["no training sample"]),
    "nan run": (
        set_design(1, [6, 7], np.nan),
        ["Run: no run number in 2 samples (first: sample 6 has nan)"],
    ),
    "half run": (
        set_design(1, 6, 1.5),
        ["no run number in 1 samples (first: sample 6"],
    ),
    "short run": (
        set_design(1, 9, 77),
        ["Run: 1 runs of one sample (test run 77); expected two or more"],
    ),
    "leak": (
        set_design(2, 12, god_files.TRAIN[1][0] + god_files.TRAIN[1][1] * 1e-6),
        [f"1 pictures are in training and test (god/{NAMES[0][1]})"],
    ),
    "no run key": (rename("Run", "Runs"), ["no key Run; expected", "mean Runs?"]),
    "no label": (rename("stimulus_id", "stim"), ["no key stimulus_id"]),
    "roi": (
        rename("ROI_VC", "ROI_VCX"),
        ["subject2, roi ROI_VC: absent", "Did you mean ROI_VCX", "leave the subject"],
    ),
    "roi empty": (
        lambda t, m: m.update(ROI_VC=m["ROI_VC"] * 0),
        ["subject2, roi ROI_VC: has no voxel"],
    ),
    "roi of design": (
        select_design,
        ["metadata ROI_VC: select the column of Run; expected columns of voxels"],
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_refuses_and_names_the_subject(write, images, case):
    change, parts = FAULTS[case]
    table, metadata = god_files.make_subject(8)
    change(table, metadata)
    root = write(god_files.make_subject(1), (table, metadata))
    with pytest.raises(errors.InputError) as caught:
        god.open_dataset(root, images=images)
    for part in [*parts, "Subject2.h5"]:
        assert part in str(caught.value), str(caught.value)
    assert "Subject1.h5" not in str(caught.value)
    assert caught.value.exit_code == 65


def test_a_table_in_float32_is_refused(write, images):
    table, metadata = god_files.make_subject(1)
    root = write((table.astype(np.float32), metadata))
    with pytest.raises(
        errors.InputError, match=r"all exact in float32 \(the table is f"
    ):
        god.open_dataset(root, images=images)


def test_faults_of_all_subjects_are_listed_at_once(write, images):
    tables = [god_files.make_subject(k) for k in range(3)]
    tables[0][1].pop("ROI_VC")
    tables[0][0][5, HALF] = 9
    root = write(*tables)
    content = (root / "Subject3.h5").read_bytes()
    (root / "Subject3.h5").write_bytes(content[:2000])
    with pytest.raises(errors.InputError) as caught:
        god.open_dataset(root, images=images)
    for part in ("2 faults", "DataType: 9", "roi ROI_VC: absent", "Subject3.h5"):
        assert part in str(caught.value)
    dataset = god.open_dataset(root, images=images, subjects=["subject2"])
    assert [s.name for s in dataset.subjects] == ["god-subject2"]


def test_voxels_that_are_all_dropped_are_an_error(write, images):
    table, metadata = god_files.make_subject(1)
    voxels = metadata["ROI_V1"] == 1
    table[0, voxels] = np.nan
    dataset = god.open_dataset(write((table, metadata)), images=images, roi="ROI_V1")
    with pytest.raises(
        errors.InputError, match="all 5 voxels are dropped: 5 not finite in a sample"
    ):
        next(dataset.subjects)


def test_a_picture_shown_too_often_is_refused(write, images):
    table, metadata = god_files.make_subject(1)
    again = np.repeat(table[8:9], 300, 0)
    again[:, HALF + 1] = np.arange(300) // 2 + 100
    again[:, 0] = np.arange(300)
    dataset = god.open_dataset(
        write((np.vstack([table, again]), metadata)), images=images
    )
    with pytest.raises(errors.InputError, match="is shown 304 times; expected at most"):
        next(dataset.subjects)


def test_test_pictures_of_one_subject_are_no_training_of_another(write, images):
    table, metadata = god_files.make_subject(2)
    test = table[table[:, HALF] == 2][0, HALF + 2]
    swapped = np.flatnonzero(table[:, HALF + 2] == test)
    old = table[0, HALF + 2]
    table[swapped, HALF + 2], table[0, HALF + 2] = old, test
    root = write(god_files.make_subject(1), (table, metadata))
    with pytest.raises(
        errors.InputError,
        match=r"2 pictures are test for one subject and training for another "
        r"\(first: god/n\d{8}_\d+, test for subject\d, training for subject\d\)",
    ):
        god.open_dataset(root, images=images)


def test_refuses_wrong_arguments(write, images, tmp_path):
    root = write(god_files.make_subject(1))
    for arguments, text in (
        ({"subjects": ["subject9"]}, "no subject 'subject9'.*mean subject1"),
        ({"subjects": []}, "is empty"),
        ({"val_fraction": 1.5}, r"val_fraction: is 1\.5"),
        ({"images": None}, "images: not given"),
        ({"roi": ()}, "roi: is empty"),
    ):
        with pytest.raises(errors.ConfigError, match=text):
            god.open_dataset(root, **{"images": images, **arguments})
    with pytest.raises(errors.MissingInputError, match="no such folder"):
        god.open_dataset(tmp_path / "nowhere", images=images)
    with pytest.raises(
        errors.MissingInputError, match=r"no subject \(found: test, tra"
    ):
        god.open_dataset(images, images=images)


# ---------------------------------------------------------------- ids


def test_ids_restore_every_name():
    """In float64, over the range of ImageNet's categories and pictures."""
    rng = np.random.default_rng(0)
    wnids = rng.integers(1_440_764, 15_200_000, 500)
    numbers = np.r_[rng.integers(0, 999_999, 490), 0:10]
    design = np.ones((500, 3))
    design[:, 2] = [float(f"{w}.{n:06d}") for w, n in zip(wnids, numbers, strict=True)]
    problems: list = []
    found = god_samples.numbers_of(design[:, 2], np.ones(500, bool), "f8", problems)
    assert not problems
    assert [god_samples.image_id(n) for n in found.tolist()] == [
        f"god/n{w:08d}_{n}" for w, n in zip(wnids, numbers, strict=True)
    ]
