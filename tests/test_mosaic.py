"""The MOSAIC reader against files written here by h5py; damage is elsewhere."""

import hashlib
import math
import shutil

import h5py
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from tests import mosaic_files
from tests.mosaic_files import NSD, NUM
from ubrain_jax import crowd, errors
from ubrain_jax.datasets import mosaic, mosaic_betas

CORTEX = 59412


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file and its pictures, not to be changed."""
    root = tmp_path_factory.mktemp("mosaic")
    truth = mosaic_files.write_file(root)
    mosaic_files.write_pictures(root / "stimuli/raw", NSD)
    return root, truth


@pytest.fixture
def copy(made, tmp_path):
    """A folder with a copy of that file; opens it."""
    path = shutil.copy(made[1].path, tmp_path)

    def read(**changes):
        dataset = mosaic.open_dataset(
            tmp_path, **({"images": made[0] / "stimuli"} | changes)
        )
        return list(dataset.subjects), dataset

    return path, read


def reference(truth, columns):
    """ids, responses, ncsnr by two passes over all trials in float64."""
    betas = truth.betas[:, columns].astype(np.float64)
    train = betas[truth.phase == "train"]
    z = (betas - train.mean(0)) / train.std(0, ddof=1)
    ids = sorted(set(truth.stem), key=truth.stem.tolist().index)
    mean = np.stack([z[truth.stem == i].mean(0) for i in ids])
    test = truth.phase == "test"
    repeated = [i for i in ids if test[truth.stem == i].any()]
    var = [z[truth.stem == i].var(0, ddof=1) for i in repeated]
    noise = np.mean(var, 0)
    ncsnr = np.sqrt(np.maximum(0, z[test].var(0) - noise) / noise)
    return [f"mosaic/{i}" for i in ids], mean, ncsnr


# ---------------------------------------------------------------- values


def test_reads_every_planted_value(made):
    root, truth = made
    dataset = mosaic.open_dataset(root, images=root, val_fraction=0.3, seed=4)
    [subject] = dataset.subjects
    ids, mean, ncsnr = reference(truth, slice(0, CORTEX))
    order = [list(subject.image_id).index(i) for i in ids]
    assert subject.name == "mosaic-nsd-sub01"
    assert len(subject.image_id) == len(ids)
    assert subject.responses.dtype == np.float32
    np.testing.assert_allclose(subject.responses[order], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(subject.ncsnr, ncsnr, rtol=1e-4, atol=1e-4)
    assert subject.repeats.dtype == np.uint8
    assert subject.repeats[order].tolist() == [n for *_, n in NSD]
    for image, split in zip(subject.image_id, subject.split, strict=True):
        digest = hashlib.sha256(f"4:{image}".encode()).hexdigest()
        place = int(digest[:12], 16) / 16.0**12
        is_test = int(image.split("/")[1]) >= 900
        expected = "test" if is_test else "val" if place >= 0.7 else "train"
        assert split == expected
    assert {"train", "val", "test"} == set(subject.split.tolist())
    assert subject.roi.shape == (CORTEX, 0)
    assert subject.attrs["space"] == "fsLR32k"
    assert subject.attrs["visual_angle"] == 8.4
    assert not {"age", "sex", "owner_email"} & subject.attrs.keys()
    assert subject.attrs["sessions"] == "not in the file; all trials"


def test_one_voxel_by_hand(made):
    root, truth = made
    [subject] = mosaic.open_dataset(root, images=root).subjects
    for voxel in (0, 29696, 59411):
        trials = [float(b) for b in truth.betas[:, voxel]]
        train = [b for b, p in zip(trials, truth.phase, strict=True) if p == "train"]
        mean = math.fsum(train) / len(train)
        total = math.fsum((b - mean) ** 2 for b in train)
        sd = math.sqrt(total / (len(train) - 1))
        for row, image in enumerate(subject.image_id):
            here = [
                (b - mean) / sd
                for b, stem in zip(trials, truth.stem, strict=True)
                if f"mosaic/{stem}" == image
            ]
            found = subject.responses[row, voxel]
            assert found == pytest.approx(math.fsum(here) / len(here), abs=2e-6)


def test_betas_far_from_zero_lose_nothing(tmp_path):
    betas = mosaic_files.make_betas(NSD, dtype=np.float64) + 1e5
    truth = mosaic_files.write_file(tmp_path, betas=betas)
    images = mosaic_files.write_pictures(tmp_path / "p", NSD)
    np.save(tmp_path / "mask.npy", np.arange(500))
    [subject] = mosaic.open_dataset(
        tmp_path, images=images, mask=tmp_path / "mask.npy"
    ).subjects
    ids, mean, ncsnr = reference(truth, slice(0, 500))
    order = [list(subject.image_id).index(i) for i in ids]
    np.testing.assert_allclose(subject.responses[order], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(subject.ncsnr, ncsnr, rtol=1e-4, atol=1e-4)


def test_single_precision_file_equals_double(made, tmp_path):
    """Also with a second axis of one, as the first description has it."""
    root, truth = made
    mosaic_files.write_file(tmp_path, betas=truth.betas[..., None].astype(np.float64))
    [one] = mosaic.open_dataset(root, images=root).subjects
    [other] = mosaic.open_dataset(tmp_path, images=root).subjects
    np.testing.assert_array_equal(one.responses, other.responses)
    assert list(one.image_id) == list(other.image_id)


def test_moments_equal_two_passes():
    rng = np.random.default_rng(0)
    groups = [rng.normal(3e4, 2, (n, 40)) for n in (1, 3, 2, 7, 1, 4)]
    moments = mosaic_betas.Moments(40)
    for group in groups:
        np.testing.assert_allclose(moments.add(group), group.mean(0), rtol=1e-14)
    trials = np.concatenate(groups)
    assert moments.num == 18
    assert moments.num_repeated == 18 - 6
    np.testing.assert_allclose(moments.mean, trials.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.total / 17, trials.var(0, ddof=1), rtol=1e-9)
    within = sum(len(g) * g.var(0) for g in groups)
    np.testing.assert_allclose(moments.within, within, rtol=1e-9)
    # The mean square error of scipy's one-way analysis of variance.
    f = scipy.stats.f_oneway(*[g[:, 0] for g in groups if len(g) > 1]).statistic
    repeated = np.concatenate([g for g in groups if len(g) > 1])[:, 0]
    means = sum(
        len(g) * (g[:, 0].mean() - repeated.mean()) ** 2 for g in groups if len(g) > 1
    )
    noise = means / 3 / f
    assert moments.within[0] / moments.num_repeated == pytest.approx(noise, rel=1e-9)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, 2.0])
def test_ncsnr_finds_what_was_planted(ratio):
    rng = np.random.default_rng(1)
    moments = mosaic_betas.Moments(3000)
    for n in rng.integers(1, 5, 400):
        signal = ratio * rng.standard_normal(3000)
        moments.add(5 + 0.7 * (signal + rng.standard_normal((n, 3000))))
    ncsnr = moments.ncsnr()
    # A squared ratio is unbiased but for the variance that 400 pictures leave.
    assert np.mean(ncsnr**2) == pytest.approx(ratio**2, abs=0.02 + 0.01 * ratio**2)
    assert np.isnan(mosaic_betas.Moments(3).ncsnr()).all()


def test_constant_voxel_is_seen_whatever_the_rounding():
    moments = mosaic_betas.Moments(4)
    value = np.array([0.1, 0.0, 1e6 + 1 / 3, 0.1])
    for n in (1, 3, 7, 2):
        moments.add(np.tile(value, (n, 1)) + (n == 7) * np.array([0, 0, 0, 1e-9]))
    assert moments.constant().tolist() == [True, True, True, False]


# ---------------------------------------------------------------- grayordinates


def test_mask_chooses_grayordinates(copy, tmp_path):
    _, read = copy
    [everything], _ = read(mask="all")
    assert len(everything.position) == NUM
    structure = np.repeat([0, 1, 2], [29696, 29716, NUM - CORTEX])
    np.testing.assert_array_equal(everything.position[:, 0], structure)
    np.testing.assert_array_equal(everything.position[:, 1], np.arange(NUM))
    assert (everything.position[:, 2] == -1).all()
    assert everything.position.dtype == np.int32
    assert everything.attrs["vertices"] == [32492, 32492]
    chosen = np.array([5, 6, 7, 29700, 70000, 91281])
    mask = np.zeros(NUM, bool)
    mask[chosen] = True
    for array in (mask, mask.astype(np.uint8), chosen[::-1]):
        np.save(tmp_path / "m.npy", array)
        [subject], _ = read(mask=str(tmp_path / "m.npy"))
        np.testing.assert_array_equal(subject.position[:, 1], chosen)
        np.testing.assert_array_equal(
            subject.responses, everything.responses[:, chosen]
        )
        assert subject.attrs["mask"] == "m.npy"
    [cortex], _ = read()
    np.testing.assert_array_equal(cortex.responses, everything.responses[:, :CORTEX])


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros(NUM, bool), "selects nothing"),
        (np.zeros(0, int), "selects nothing"),
        (np.ones(59412, bool), r"bool \(59412,\)"),
        (np.array([3, 3, 4]), "1 indices twice"),
        (np.array([-1, 4]), "indices -1..4"),
        (np.array([0, NUM]), "indices 0..91282"),
        (np.ones(NUM), r"float64 \(91282,\)"),
        (np.array(["V1"]), "<U2"),
    ],
)
def test_mask_that_is_none_is_refused(copy, tmp_path, array, found):
    np.save(tmp_path / "m.npy", array)
    with pytest.raises(errors.InputError, match=rf"m\.npy: {found}.*; expected 91282"):
        copy[1](mask=tmp_path / "m.npy")
    with pytest.raises(errors.MissingInputError, match=r"V1: no such file.*'all'"):
        copy[1](mask="V1")


@pytest.mark.parametrize("listed", ["dataset", "attribute", "trials"])
def test_unusable_grayordinates_are_dropped_and_counted(tmp_path, listed):
    betas = mosaic_files.make_betas(NSD)
    betas[:, 7] = np.nan
    betas[4, 11] = np.inf
    betas[:, 20] = 0.1
    truth = mosaic_files.write_file(tmp_path, betas=betas, nan_indices_all=False)
    with h5py.File(truth.path, "a") as file:
        if listed == "dataset":  # unordered, and NaN of a noise ceiling too
            file["nan_indices_all"] = np.array([11, 50, 7])
        elif listed == "attribute":
            file.attrs["nan_indices_all"] = np.array([11, 50, 7], float)
        else:  # NaN filled from neighbours: only the attribute tells
            file["betas"][next(iter(file["betas"]))].attrs["nan_indices"] = [50]
    images = mosaic_files.write_pictures(tmp_path / "p", NSD)
    dataset = mosaic.open_dataset(tmp_path, images=images)
    [subject] = dataset.subjects
    keep = np.setdiff1d(np.arange(CORTEX), [7, 11, 20, 50])
    np.testing.assert_array_equal(subject.position[:, 1], keep)
    ids, mean, ncsnr = reference(truth, keep)
    order = [list(subject.image_id).index(i) for i in ids]
    np.testing.assert_allclose(subject.responses[order], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(subject.ncsnr, ncsnr, rtol=1e-4, atol=1e-4)
    assert subject.attrs["dropped"] == [
        {"reason": "listed as NaN", "count": 3},
        {"reason": "constant in training", "count": 1},
    ]
    text = "\n".join(dataset.report)
    assert "mosaic-nsd-sub01: 3 dropped, listed as NaN" in text
    assert "mosaic-nsd-sub01: 1 dropped, constant in training" in text


def test_nan_that_no_list_names_is_dropped_too(tmp_path):
    betas = mosaic_files.make_betas(NSD)
    truth = mosaic_files.write_file(tmp_path, betas=betas)
    betas = betas.copy()
    with h5py.File(truth.path, "a") as file:
        for name in list(file["betas"])[2:5]:
            file["betas"][name][3] = np.nan
        file["betas"][name][NUM - 1] = np.inf
    images = mosaic_files.write_pictures(tmp_path / "p", NSD)
    [subject] = mosaic.open_dataset(tmp_path, images=images, mask="all").subjects
    keep = np.setdiff1d(np.arange(NUM), [3, NUM - 1])
    np.testing.assert_array_equal(subject.position[:, 1], keep)
    assert subject.attrs["dropped"] == [{"reason": "NaN or inf in a trial", "count": 2}]
    ids, mean, _ = reference(truth, keep)
    order = [list(subject.image_id).index(i) for i in ids]
    np.testing.assert_allclose(subject.responses[order], mean, rtol=1e-5, atol=1e-5)
    assert np.isfinite(subject.responses).all()


# ---------------------------------------------------------------- noise ceiling


ONCE = [(s, p, 1) for s, p, _ in NSD]


@pytest.mark.parametrize("scale", [100, 1])
def test_without_repeats_the_noise_ceiling_of_the_file_counts(made, tmp_path, scale):
    truth = mosaic_files.write_file(tmp_path, stimuli=ONCE)
    planted = np.random.default_rng(2).uniform(0, 1.5, NUM)
    values = scale * planted**2 / (planted**2 + 1)
    values[4] = np.nan
    for phase, n, other in (("train", "1", 0.3), ("artificial", "1", 0.4)):
        full = np.full(NUM, other * scale)
        mosaic_files.write_ceiling(truth.path, "sub-01_NSD", full, phase, n)
    mosaic_files.write_ceiling(truth.path, "sub-01_NSD", values, nan=[4, 9])
    mosaic_files.write_ceiling(truth.path, "sub-01_NSD", values / 2, n="avg")
    dataset = mosaic.open_dataset(tmp_path, images=made[0])
    [subject] = dataset.subjects
    planted[[4, 9]] = np.nan
    np.testing.assert_allclose(subject.ncsnr, planted[:CORTEX], rtol=1e-5)
    assert "sub-01_NSD_phase-test_n-1_noiseceiling" in subject.attrs["ncsnr"]
    assert "unknown for 2" in "\n".join(dataset.report)


def test_noise_ceiling_of_repeats_agrees_with_that_of_the_file(copy, made):
    """The file's, as its maker computes it: all test trials, noise pooled."""
    path, read = copy
    truth = made[1]
    _, _, ncsnr = reference(truth, slice(None))
    values = 100 * ncsnr**2 / (ncsnr**2 + 1)
    mosaic_files.write_ceiling(path, "sub-01_NSD", values)
    [subject], dataset = read()
    np.testing.assert_allclose(subject.ncsnr, ncsnr[:CORTEX], rtol=1e-4, atol=1e-4)
    assert subject.attrs["ncsnr"] == "repeats of the test pictures"
    [line] = [line for line in dataset.report if "differs from that" in line]
    assert float(line.split("by ")[1].split()[0]) < 1e-3


def test_nothing_to_tell_the_noise_ceiling_from(made, tmp_path):
    mosaic_files.write_file(tmp_path, stimuli=ONCE)
    [subject] = mosaic.open_dataset(tmp_path, images=made[0]).subjects
    assert np.isnan(subject.ncsnr).all()
    assert subject.attrs["ncsnr"] == "unknown"


@pytest.mark.parametrize("value", [-1, 101])
def test_impossible_noise_ceiling_is_refused(copy, value):
    path, read = copy
    mosaic_files.write_ceiling(path, "sub-01_NSD", np.full(NUM, value))
    with pytest.raises(errors.InputError, match=f"n-1_noiseceiling: values {value}"):
        read()


# ---------------------------------------------------------------- several subjects


GOD = [(f"n0144353{k}_22563.JPEG", "train", 1) for k in range(4)]
GOD += [("n01677366_18182.JPEG", "test", 4)]


@pytest.fixture
def both(copy, tmp_path):
    """GOD in a folder below, named as the portal does."""
    truth = mosaic_files.write_file(tmp_path, "sub-03_GOD", GOD, seed=8)
    (tmp_path / "GOD").mkdir()
    path = tmp_path / "GOD/sub-03_GOD_crc32-32353cf9.hdf5"
    truth.path.rename(path)
    images = mosaic_files.write_pictures(tmp_path / "both", [*NSD, *GOD])
    np.save(tmp_path / "m.npy", np.arange(60))
    return tmp_path, path, {"images": images, "mask": tmp_path / "m.npy"}


def test_store_of_two_datasets_opens(both, tmp_path):
    """Without regions; ImageNet's pictures have the ids of the GOD reader."""
    folder, _, options = both
    dataset = mosaic.open_dataset(folder, val_fraction=0.2, **options)
    crowd.write(str(tmp_path / "m.zarr"), dataset, image_px=14)
    opened = crowd.open_crowd([str(tmp_path / "m.zarr")])
    god, nsd = opened.subjects
    assert (god.name, nsd.name) == ("mosaic-god-sub03", "mosaic-nsd-sub01")
    assert god.roi.shape == (60, 0)
    assert god.roi_names == ()
    ids = {opened.image_id[i] for i in god.image}
    assert ids == {"god/" + s.split(".")[0] for s, *_ in GOD}
    assert sorted(god.repeats.tolist()) == [1, 1, 1, 1, 4]
    assert {"NSD showed" in line for line in dataset.report} == {True, False}
    names = [s["file"] for s in dataset.sources]
    assert names == ["GOD/sub-03_GOD_crc32-32353cf9.hdf5", "sub-01_NSD.hdf5"]
    assert all(len(s["sha256"]) == 64 for s in dataset.sources)
    [subject] = mosaic.open_dataset(
        folder, subjects=["NSD-sub-01"], val_fraction=0.2, **options
    ).subjects
    assert [opened.image_id[i] for i in nsd.image] == list(subject.image_id)
    assert nsd.split.tolist() == subject.split.tolist()


@pytest.mark.parametrize(
    "asked",
    ["sub-03_GOD", "god-sub-03", "mosaic-god-sub03", "sub-03_GOD_crc32-32353cf9"],
)
def test_subject_may_be_called_by_several_names(both, asked):
    folder, path, options = both
    for source in (folder, path):
        dataset = mosaic.open_dataset(source, subjects=[asked], **options)
        assert [s.name for s in dataset.subjects] == ["mosaic-god-sub03"]
        assert dataset.sources[0]["file"].endswith(path.name)


def test_unknown_subject_is_refused_with_the_known_ones(both):
    folder, _, options = both
    pattern = r"no subject 'sub-03_NSD'.*Did you mean sub-03_GOD|sub-01_NSD"
    with pytest.raises(errors.ConfigError, match=pattern):
        mosaic.open_dataset(folder, subjects=["sub-03_NSD"], **options)


def test_pictures_come_in_the_order_asked(both):
    folder, _, options = both
    dataset = mosaic.open_dataset(folder, **options)
    ids = ["god/n01677366_18182", "mosaic/000000000900", "god/n01677366_18182"]
    for image, found in zip(ids, dataset.read_images(ids), strict=True):
        ending = ".JPEG" if image[0] == "g" else ".jpg"
        expected = mosaic_files.picture(image.split("/")[1] + ending)
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(errors.InputError, match="no picture nsd/00013; expected one o"):
        next(dataset.read_images(["nsd/00013"]))


def test_test_picture_of_one_is_no_train_picture_of_another(both):
    folder, _, options = both
    clash = [(s, "train" if p == "test" else p, n) for s, p, n in GOD]
    clash += [("n01518878_10042.JPEG", "test", 1)]
    mosaic_files.write_file(folder, "sub-04_GOD", clash, seed=9)
    mosaic_files.write_pictures(options["images"], clash)
    with pytest.raises(errors.InputError) as caught:
        mosaic.open_dataset(folder, **options)
    for part in (
        "1 times a picture is test for one subject and train for another",
        "god/n01677366_18182: test for sub-03_GOD, train for sub-04_GOD",
        "overlap 'drop'",
    ):
        assert part in str(caught.value)
    dataset = mosaic.open_dataset(folder, overlap="drop", **options)
    subjects = {s.name: s for s in dataset.subjects}
    assert "god/n01677366_18182" in subjects["mosaic-god-sub03"].image_id
    assert sorted(subjects["mosaic-god-sub04"].repeats) == [1] * 5
    line = "mosaic-god-sub04: 1 pictures (4 trials) left out of training"
    assert line in "\n".join(dataset.report)
    # what is dropped takes no part in z-scoring either
    train = subjects["mosaic-god-sub04"].responses[
        [s != "test" for s in subjects["mosaic-god-sub04"].split]
    ]
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(0, ddof=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "stimulus", "phase"),
    [
        ("sub-01_NSD", "017.jpg", "test"),
        ("sub-01_deeprecon", "colorExpStim01_red_square.tiff", "test"),
        ("sub-01_deeprecon", "Alphabet_A.tif", "test"),
        ("sub-02_BOLD5000", "anything.jpg", "artificial"),
    ],
)
def test_artificial_stimuli_are_left_out_unless_wanted(tmp_path, name, stimulus, phase):
    natural = [NSD[0], NSD[1], NSD[-1]]
    stimuli = [*natural, (stimulus, phase, 2)]
    mosaic_files.write_file(tmp_path, name, stimuli)
    images = mosaic_files.write_pictures(tmp_path / "p", natural)
    dataset = mosaic.open_dataset(tmp_path, images=images)
    [subject] = dataset.subjects
    assert len(subject.image_id) == len(natural)
    assert "1 artificial stimuli left out" in "\n".join(dataset.report)
    mosaic_files.write_pictures(images, stimuli)
    [more] = mosaic.open_dataset(tmp_path, images=images, artificial=True).subjects
    row = list(more.image_id).index(f"mosaic/{stimulus.split('.')[0]}")
    assert more.split[row] == "test"
    assert more.repeats[row] == 2
    np.testing.assert_array_equal(more.ncsnr, subject.ncsnr)
    np.testing.assert_array_equal(np.delete(more.responses, row, 0), subject.responses)


def test_trials_renamed_from_artificial_to_test_stay_artificial(copy):
    path, read = copy
    with h5py.File(path, "a") as file:
        for name in [n for n in file["betas"] if "000000000900" in n]:
            file["betas"][name].attrs["phase"] = "artificial"
    [subject], _ = read()
    assert "mosaic/000000000900" not in subject.image_id
    assert subject.attrs["artificial_left_out"] == 1


# ---------------------------------------------------------------- pictures


def test_missing_pictures_are_counted_and_listed_before_anything_is_read(tmp_path):
    stimuli = [(f"{k:012d}.jpg", "train", 1) for k in range(25)]
    mosaic_files.write_file(tmp_path, stimuli=stimuli, betas=np.zeros((25, NUM), "f4"))
    images = mosaic_files.write_pictures(tmp_path / "p", stimuli[:2])
    with pytest.raises(errors.MissingInputError) as caught:
        mosaic.open_dataset(tmp_path, images=images)
    assert "23 of 25 pictures are missing: 000000000002.jpg, " in str(caught.value)
    assert "000000000021.jpg and 3 more" in str(caught.value)
    with pytest.raises(errors.MissingInputError, match="no such folder"):
        mosaic.open_dataset(tmp_path, images=tmp_path / "nowhere")


def test_several_files_of_a_picture_must_be_identical(copy, made, tmp_path):
    _, read = copy
    images = tmp_path / "p"
    shutil.copytree(made[0] / "stimuli", images)
    twin = images / "twin" / NSD[0][0]
    twin.parent.mkdir()
    shutil.copy(images / "raw" / NSD[0][0], twin)
    read(images=images)
    Image.new("RGB", (8, 8)).save(twin)
    pattern = rf"1 pictures have several files that differ: mosaic/{NSD[0][0][:-4]} \("
    with pytest.raises(errors.InputError, match=pattern):
        read(images=images)


def test_film_is_shown_by_its_picture_or_middle_frame(tmp_path):
    """As BMD and HAD: names with dots, and frames beside the middle one."""
    films = [(f"{k}-2.4-9.mp4", "train" if k else "test", 2) for k in range(4)]
    truth = mosaic_files.write_file(tmp_path, "sub-01_BMD", films)
    images = tmp_path / "p"
    frames = {"0": "_frame-0045_0090", "1": "_frame-0045_0091", "2": ""}
    shown = [f"{k}-2.4-9{frames[k]}.jpg" for k in frames]
    others = ["0-2.4-9_frame-0044_0090.jpg", "0-2.4-9_frame-0045_0091.txt"]
    mosaic_files.write_pictures(images, [(s, "", 0) for s in shown])
    mosaic_files.write_pictures(images, [(others[0], "", 0)])
    (images / others[1]).write_text("no picture")
    with pytest.raises(errors.MissingInputError, match=r"1 of 4 .*: 3-2\.4-9\.mp4;"):
        mosaic.open_dataset(tmp_path, images=images)
    with h5py.File(truth.path, "a") as file:
        for name in [n for n in file["betas"] if "stimulus-3" in n]:
            file["betas"][name].attrs["image_stimulus_filename"] = "three.png"
    mosaic_files.write_pictures(images, [("three.png", "", 0)])
    dataset = mosaic.open_dataset(tmp_path, images=images)
    ids = [f"mosaic/{k}-2.4-9" for k in range(4)]
    for name, found in zip(
        [*shown, "three.png"], dataset.read_images(ids), strict=True
    ):
        np.testing.assert_array_equal(found, mosaic_files.picture(name))
    [subject] = dataset.subjects
    assert subject.attrs["films"] == 4
    assert "4 films, each stands as one picture" in "\n".join(dataset.report)
