"""The vim-1 reader against a miniature of every encoding and slow computations."""

import hashlib
import shutil
import statistics

import numpy as np
import pytest

from tests import vim1_files as vf
from ubrain_jax import crowd, errors
from ubrain_jax.datasets import schema, vim1, vim1_responses

IDS = [f"vim1/{s}/{k + 1:04d}" for s in vf.NUM for k in range(vf.NUM[s])]


@pytest.fixture(scope="module")
def truth():
    return vf.make()


@pytest.fixture(scope="module")
def folder_2008(truth, tmp_path_factory):
    return vf.write_2008(tmp_path_factory.mktemp("2008"), truth)


@pytest.fixture(scope="module")
def folder_2013(truth, tmp_path_factory):
    """Subjects 1 (version 5) and 3 (version 7.3, in a folder of its own)."""
    folder = tmp_path_factory.mktemp("2013")
    snr = np.random.default_rng(1).permutation(vf.NUM_VOXELS[1])
    vf.write_2013(folder, truth, 1, ending="_v6", snr=snr)
    vf.write_2013(folder / "subject-S3", truth, 3, save=vf.save_v73)
    vf.write_archive(folder, vf.archive(truth))  # for the pictures
    return folder


@pytest.fixture
def archive(truth, tmp_path):
    """Arrays of the Neuromatch copy, and how to write and open them changed."""
    arrays = vf.archive(truth)

    def open_changed(*, change=None, **arguments):
        changed = arrays | (change or {})
        path = vf.write_archive(tmp_path / "npz", changed)
        return vim1.open_dataset(path, **arguments)

    return arrays, open_changed


def planted(truth, subject, voxels):
    """(M, V) float64 averages of some voxels, training pictures first."""
    rows = [truth.means(subject, split)[:, voxels] for split in vf.NUM]
    return np.concatenate(rows)


def check(subject, truth, number, voxels, form):
    """Compares a subject with what was planted in these voxels of the file."""
    assert subject.name == f"vim1-s{number}"
    assert subject.responses.dtype == np.float32
    expected = planted(truth, number, voxels)
    np.testing.assert_allclose(subject.responses, expected, rtol=1e-6, atol=1e-6)
    assert list(subject.image_id) == IDS
    assert subject.split[-8:].tolist() == ["test"] * 8
    assert subject.repeats.tolist() == [2] * 30 + [13] * 8
    assert subject.repeats.dtype == np.uint8
    width, height, _ = vf.GRIDS[form]
    assert subject.attrs["grid"] == list(vf.GRIDS[form])
    flat = [i + width * (j + height * k) + 1 for i, j, k in subject.position.tolist()]
    assert flat == truth.index[number][voxels].tolist()
    for name, column in zip(subject.roi_names, subject.roi.T, strict=True):
        code = vf.NAMES.index(name)
        assert column.tolist() == (truth.roi[number][voxels] == code).tolist()


# ---------------------------------------------------------------- encodings


def test_averages_are_read_as_planted(truth, folder_2008):
    dataset = vim1.open_dataset(folder_2008)
    for number, subject in zip((1, 2), dataset.subjects, strict=True):
        check(subject, truth, number, truth.finite(number), "2008")
        assert np.isnan(subject.ncsnr).all()
        dropped = subject.attrs["dropped_voxels"]
        assert dropped["without a finite response"] == 1
        assert dropped["not finite for some pictures"] == 1
    text = "\n".join(dataset.report)
    assert "vim1-s1: 58 of 60 voxels kept: all; left out: 1 without a finite" in text
    assert "vim1-s2: no single trials and no SNR in the files, so every voxel" in text
    assert "30 training and 8 validation pictures; vim-1 has 1750 and 120" in text
    assert [s["file"] for s in dataset.sources] == [
        "EstimatedResponses.mat",
        "Stimuli.mat",
    ]


@pytest.mark.parametrize(
    ("save", "dtype"), [(vf.save_v5, np.float64), (vf.save_v73, np.float32)]
)
def test_other_versions_hold_the_same_table(truth, tmp_path, monkeypatch, save, dtype):
    monkeypatch.setattr(schema, "BLOCK", 3000)  # several blocks, the last not full
    folder = vf.write_2008(tmp_path, truth, save=save, dtype=dtype, subjects=(2,))
    [subject] = vim1.open_dataset(folder / "EstimatedResponses.mat").subjects
    check(subject, truth, 2, truth.finite(2), "2008")


def test_regions_of_the_averages_are_the_neuromatch_copy(truth, folder_2008, archive):
    arrays, open_changed = archive
    dataset = vim1.open_dataset(folder_2008, subjects=["s1"], voxels="roi")
    [whole] = dataset.subjects
    [part] = open_changed().subjects
    np.testing.assert_array_equal(whole.responses, part.responses)
    np.testing.assert_array_equal(whole.roi, part.roi)
    assert whole.roi_names == part.roi_names == list(vf.NAMES[1:])
    assert list(whole.image_id) == list(part.image_id) == IDS
    assert whole.split.tolist() == part.split.tolist()
    assert part.position.tolist() == [[-1, -1, -1]] * len(arrays["roi"])
    assert "grid" not in part.attrs
    assert "all in a region" in whole.attrs["voxels"]


def test_single_trials_are_averaged(truth, folder_2013, monkeypatch):
    monkeypatch.setattr(schema, "BLOCK", 20_000)
    dataset = vim1.open_dataset(folder_2013)
    first, third = dataset.subjects
    check(first, truth, 1, truth.finite(1), "2013")
    check(third, truth, 3, truth.finite(3), "2013")
    text = "\n".join(dataset.report)
    assert "no single trials" not in text
    assert "vim1-s3: fewer than 7000 voxels can be had: all taken" in text
    assert "SNR over 13 repeats of the validation pictures (ddof=1)" in text


@pytest.mark.parametrize("without", ["averages", "trials"])
def test_averages_or_single_trials_are_enough(truth, folder_2013, tmp_path, without):
    folder = tmp_path / "vim1"
    shutil.copytree(folder_2013, folder)
    shutil.rmtree(folder / "subject-S3")
    if without == "averages":
        (folder / "S1data.mat").unlink()
    else:
        (folder / "S1data_trn_singletrial_v6.mat").unlink()
        (folder / "S1data_val_singletrial_v6.mat").unlink()
    dataset = vim1.open_dataset(folder, num_voxels=10)
    [subject] = dataset.subjects
    scores = np.random.default_rng(1).permutation(vf.NUM_VOXELS[1])  # snrS1
    if without == "averages":
        scores = [slow_ratios(truth.trials[1, "val"][:, :, v])[0] for v in range(60)]
    usable = sorted(truth.finite(1), key=lambda v: -scores[v])
    check(subject, truth, 1, sorted(usable[:10]), "2013")
    assert subject.attrs["least_score"] == pytest.approx(scores[usable[9]])
    assert np.isnan(subject.ncsnr).all() == (without == "trials")


def test_files_of_2013_come_before_those_of_2008(truth, folder_2013, tmp_path):
    vf.write_2008(tmp_path, truth)
    for name in ("S1data.mat", "S1aux.mat"):
        shutil.copy(folder_2013 / name, tmp_path)
    shutil.copy(folder_2013 / "S1aux.mat", tmp_path / "S2aux.mat")
    vf.write_archive(tmp_path, vf.archive(truth))
    dataset = vim1.open_dataset(tmp_path)
    first, second = dataset.subjects
    check(first, truth, 1, truth.finite(1), "2013")
    check(second, truth, 2, truth.finite(2), "2008")
    text = "\n".join(dataset.report)
    assert "vim1-s1: the files of 2013 used, not EstimatedResponses.mat" in text
    assert "vim1-s2: S2aux.mat not used without S2data_trn_singletrial.mat" in text
    assert "kay_images.npz: responses not used" in text


# ---------------------------------------------------------------- repeats


def slow_ratios(trials):
    """SNR and ncsnr of one voxel, (R, M), by the standard library."""
    columns = trials.T.tolist()
    noise = statistics.fmean([statistics.variance(repeats) for repeats in columns])
    spread = statistics.variance([statistics.fmean(repeats) for repeats in columns])
    signal = max(spread - noise / len(trials), 0)
    return spread / noise, (signal / noise) ** 0.5


def test_ratios_equal_the_slow_computation(truth, folder_2013):
    [subject] = vim1.open_dataset(folder_2013, subjects=["s3"]).subjects
    trials = truth.trials[3, "val"]
    expected = [slow_ratios(trials[:, :, v])[1] for v in truth.finite(3)]
    np.testing.assert_allclose(subject.ncsnr, expected, rtol=1e-5)
    assert 0 in expected  # floored
    noise = trials.var(0, ddof=1).mean(0)
    snr = vim1_responses.snr(trials.mean(0), noise)
    assert np.isnan(snr[3])
    expected = [slow_ratios(trials[:, :, v])[0] for v in truth.finite(3)]
    np.testing.assert_allclose(snr[truth.finite(3)], expected, rtol=1e-10)


def test_ratios_recover_what_was_planted():
    rng = np.random.default_rng(0)
    planted = np.array([0, 0.5, 1, 2])
    images, repeats = 4000, 13
    signal = planted * rng.standard_normal((images, 4))
    trials = signal + rng.standard_normal((repeats, images, 4))
    means, noise = trials.mean(0), trials.var(0, ddof=1).mean(0)
    found = vim1_responses.ncsnr(means, noise, repeats)
    np.testing.assert_allclose(found, planted, atol=0.1)
    # Noise alone scores 1/R with ddof=1; signal adds its share.
    snr = vim1_responses.snr(means, noise)
    np.testing.assert_allclose(snr, planted**2 + 1 / repeats, rtol=0.1)


def test_a_voxel_without_noise_has_no_ratio():
    means, noise = np.arange(6.0).reshape(3, 2), np.array([0.0, 2.0])
    assert np.isnan(vim1_responses.snr(means, noise)).tolist() == [True, False]
    ratios = vim1_responses.ncsnr(means, noise, 2)
    assert np.isnan(ratios).tolist() == [True, False]


@pytest.mark.parametrize("split", ["train", "val"])
def test_averages_that_are_not_those_of_the_trials_are_refused(
    truth, tmp_path, monkeypatch, split
):
    vf.write_2013(tmp_path, truth, 1, save=vf.save_v73)
    vf.write_archive(tmp_path, vf.archive(truth))
    averages = {f"data{short}S1": truth.means(1, s).T for s, short in vf.SHORT.items()}
    averages[f"data{vf.SHORT[split]}S1"][[5, 9], 2] += 0.01
    vf.save_v73(tmp_path / "S1data.mat", averages)
    dataset = vim1.open_dataset(tmp_path)
    with pytest.raises(errors.InputError) as caught:
        list(dataset.subjects)
    text = str(caught.value)
    assert "2 of 60 voxels are not the mean of their trials (first: voxel 5" in text
    assert "picture 3" in text
    assert "Take one of them away" in text


# ---------------------------------------------------------------- voxels


def test_highest_scores_are_taken_in_the_order_of_the_file(truth, archive, tmp_path):
    arrays, open_changed = archive
    num = len(arrays["roi"])
    scores = np.random.default_rng(2).integers(0, 5, num).astype(float)  # many ties
    scores[4] = np.nan
    np.save(tmp_path / "s1.npy", scores)
    np.savetxt(tmp_path / "scores.txt", scores)
    usable = [v for v in range(num) if v != 4]
    best = sorted(sorted(usable, key=lambda v: (-scores[v], v))[:20])
    for file in ("{subject}.npy", "scores.txt"):
        dataset = open_changed(voxels=str(tmp_path / file), num_voxels=20)
        [subject] = dataset.subjects
        expected = np.concatenate([arrays["responses"], arrays["responses_test"]])
        np.testing.assert_array_equal(subject.responses, expected[:, best])
        assert subject.attrs["least_score"] == scores[best].min()
        dropped = subject.attrs["dropped_voxels"]
        assert (dropped["without a score"], dropped["not chosen"]) == (1, num - 21)
        told = file.replace("{subject}", "s1")
        assert any(
            f"at most 20 of highest scores in {told}" in r for r in dataset.report
        )
        assert dataset.sources[-1]["file"] == told


@pytest.mark.parametrize("num_voxels", [1, 5, 100])
def test_selection_equals_sorting(num_voxels):
    rng = np.random.default_rng(num_voxels)
    scores, usable = rng.integers(0, 4, 60).astype(float), rng.random(60) < 0.7
    scores[rng.random(60) < 0.1] = np.inf
    scores[rng.random(60) < 0.2] = np.nan
    ranked = [v for v in range(60) if usable[v] and np.isfinite(scores[v])]
    ranked = sorted(ranked, key=lambda v: (-scores[v], v))[:num_voxels]
    found = vim1.select_voxels(scores, usable, num_voxels)
    assert found.keep.tolist() == sorted(ranked)
    assert found.threshold == scores[ranked[-1]]
    assert found.unscored == int((usable & ~np.isfinite(scores)).sum())


def test_constant_voxels_are_left_out_and_counted(archive):
    arrays, open_changed = archive
    changed = arrays["responses"].copy()
    changed[:, [2, 6]] = 0, 1.5
    dataset = open_changed(change={"responses": changed})
    [subject] = dataset.subjects
    keep = np.delete(np.arange(changed.shape[1]), [2, 6])
    np.testing.assert_array_equal(subject.responses[:30], changed[:, keep])
    assert "left out: 2 constant in the training pictures" in "\n".join(dataset.report)


def test_unusual_responses_are_told(archive):
    arrays, open_changed = archive
    assert "z-scores are expected" not in told(open_changed())
    raw = {n: arrays[n] * 100 + 500 for n in ("responses", "responses_test")}
    assert "z-scores are expected, check the file" in told(open_changed(change=raw))


def told(dataset):
    """The report once every subject is read."""
    list(dataset.subjects)
    return "\n".join(dataset.report)


def test_splits_are_by_picture_and_seed(archive):
    _, open_changed = archive
    [subject] = open_changed(val_fraction=0.3, seed=5).subjects
    expected = []
    for name in IDS:
        place = int(hashlib.sha256(f"5:{name}".encode()).hexdigest()[:12], 16) / 16**12
        split = "val" if place >= 0.7 else "train"
        expected.append("test" if "/val/" in name else split)
    assert subject.split.tolist() == expected
    assert {"train", "val"} < set(expected)
    dataset = open_changed(val_fraction=0)
    assert "val split is empty" in told(dataset)


def test_places_with_a_zero_count_from_zero_and_pictures_lie_elsewhere(truth, tmp_path):
    variables = vf.estimated(truth, subjects=(1,))
    variables["voxIdxS1"] = vf.row(truth.index[1] - truth.index[1].min())
    vf.save_v73(tmp_path / "EstimatedResponses.mat", variables)
    images = vf.write_archive(tmp_path / "pictures", vf.archive(truth))
    dataset = vim1.open_dataset(tmp_path, images=images)
    [subject] = dataset.subjects
    shift = truth.index[1].min()
    flat = [i + 64 * (j + 64 * k) + shift for i, j, k in subject.position.tolist()]
    assert flat == truth.index[1][truth.finite(1)].tolist()
    assert "count from 0" in subject.attrs["position"]
    assert dataset.sources[1]["file"] == "pictures/kay_images.npz"
    assert len(list(dataset.read_images(IDS))) == 38


@pytest.mark.parametrize("names", [None, np.array(vf.NAMES, object)])
def test_names_in_a_pickle_are_not_opened(archive, names, monkeypatch):
    arrays, open_changed = archive
    change = {} if names is None else {"roi_names": names}
    if names is None:
        monkeypatch.delitem(arrays, "roi_names")
    dataset = open_changed(change=change)
    [subject] = dataset.subjects
    assert subject.roi_names == list(vf.NAMES[1:])
    text = "\n".join(dataset.report)
    assert "names of regions: published names" in text
    assert ("is a pickle, which is never opened" in text) == (names is not None)


def test_names_in_the_archive_are_the_codes(archive):
    arrays, open_changed = archive
    change = {"roi": arrays["roi"] % 3, "roi_names": np.array(["A", "other", "B"])}
    dataset = open_changed(change=change, voxels="roi")
    [subject] = dataset.subjects
    codes = arrays["roi"] % 3
    assert subject.roi_names == ["A", "B"]
    assert subject.roi[:, 0].tolist() == (codes[codes != 1] == 0).tolist()
    assert subject.attrs["dropped_voxels"]["not chosen"] == int((codes == 1).sum())


def test_the_store_takes_it(truth, folder_2008, tmp_path):
    dataset = vim1.open_dataset(folder_2008, subjects=["s2"])
    counts = crowd.write(str(tmp_path / "vim1.zarr"), dataset, image_px=14)
    assert counts["subjects"]["vim1-s2"]["voxels"] == 43
    opened = crowd.open_crowd([str(tmp_path / "vim1.zarr")])
    assert list(opened.image_id) == IDS
    assert opened.subjects[0].attrs["space"].endswith("grid 64 x 64 x 18")
