"""The simulated vim-1: exact file formats, planted truth, seeds."""

import json
import pathlib
import subprocess
import sys

import h5py
import numpy as np
import pytest
import scipy.io

from tests import folders, planted_loop
from ubrain_jax import errors
from ubrain_jax.datasets import planted, simulated, simulated_vim1, truth

SMALL = {
    "num_subjects": 2,
    "num_train": 60,
    "num_test": 40,
    "num_voxels": 45,
    "image_px": 56,
    "seed": 3,
}
NUM = 45 + 15  # with the untuned voxels


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("simulated") / "vim1"
    simulated_vim1.write(out, **SMALL)
    return out


def _read(path: pathlib.Path, name: str) -> np.ndarray:
    """An array as HDF5 orders it: axes opposite to MATLAB's."""
    with h5py.File(path) as file:
        return file[name][:]


def test_responses_are_matlab_7_3_with_axes_reversed_and_gzip_3(root):
    path = root / "EstimatedResponses.mat"
    head = path.read_bytes()[:128]
    assert head.startswith(b"MATLAB 7.3 MAT-file, Platform: ")
    assert head[124:] == b"\x00\x02IM"
    names = ("dataTrn", "dataVal", "roi", "voxIdx")
    with h5py.File(path) as file:
        assert file.userblock_size == 512
        assert sorted(file) == sorted(f"{n}S{s}" for n in names for s in (1, 2))
        for name, made in file.items():
            assert (made.compression, made.compression_opts) == ("gzip", 3)
            kind = {"f4": b"single", "f8": b"double"}[made.dtype.str[1:]]
            assert made.attrs["MATLAB_class"] == kind
            rows = {"dataTrn": 60, "dataVal": 40}.get(name[:7], 1)
            assert made.shape == (rows, NUM)


def test_places_are_column_major_indices_in_two_volumes(root):
    told = truth.read(root, "S1")
    old = _read(root / "EstimatedResponses.mat", "voxIdxS1")[0].astype(int)
    new = _read(root / "S1aux.mat", "voxIdxS1")[0].astype(int)
    for index, grid in ((old, (64, 64, 18)), (new, (86, 86, 34))):
        assert (np.diff(index) > 0).all()
        assert 1 <= index[0] <= index[-1] <= np.prod(grid)
        i = (index - 1) % grid[0]
        j = (index - 1) // grid[0] % grid[1]
        k = (index - 1) // (grid[0] * grid[1])
        place = np.stack([i, j, k], axis=1)[told["column"]]
        shift = place - told["position"]
        assert (shift == shift[0]).all()


def test_codes_of_regions_follow_the_planted_kinds(root):
    for subject in ("S1", "S2"):
        told = truth.read(root, subject)
        code = _read(root / "EstimatedResponses.mat", f"roi{subject}")[0]
        assert (code == _read(root / f"{subject}aux.mat", f"roi{subject}")[0]).all()
        tuned = np.zeros(NUM, bool)
        tuned[told["column"]] = True
        assert (code[~tuned] == 0).all()
        code = code[told["column"]]
        kind = np.array(planted.KINDS)[told["kind"]]
        early = kind == "orientation"
        assert (early == ((code >= 1) & (code <= 5))).all()
        assert set(code[early]) == {1, 2, 3, 4, 5}
        assert told["size"][code == 1].max() <= told["size"][code == 3].min()
        assert ((code == 6) == (kind == "colour")).all()
        assert ((code == 7) == (kind == "object")).all()
        assert early.mean() > 0.5


def test_stimuli_are_matlab_5_floats_around_a_grey_field_of_zero(root):
    path = root / "Stimuli.mat"
    assert path.read_bytes().startswith(b"MATLAB 5.0 MAT-file")
    content = scipy.io.loadmat(path)
    at = (np.arange(56) + 0.5) / 56 - 0.5
    outside = np.hypot(at[:, None], at) > 0.5
    for name, count, repeats in (("Trn", 60, 2), ("Val", 40, 13)):
        shown = content[f"stim{name}"]
        assert shown.shape == (count, 56, 56)
        assert shown.dtype == np.float32
        assert (shown[:, outside] == 0).all()
        assert -0.55 <= shown.min() < -0.3
        assert 0.2 < shown.max() <= 0.4501
        assert (shown[:, 14:42, 14:42].std(axis=(1, 2)) > 0.01).all()
        order = content[f"seq{name}"][0].astype(int)
        assert (np.bincount(order)[1:] == repeats).all()
    for index in (0, 59, 60, 99):
        grey, _ = simulated_vim1.draw(3, index, 56)
        stored = content["stimTrn" if index < 60 else "stimVal"][index % 60]
        assert (np.round(255 * (stored + 0.55)) == grey).all()


def _seen(root: pathlib.Path) -> np.ndarray:
    """Feature maps of the stored pictures, three equal colours."""
    content = scipy.io.loadmat(root / "Stimuli.mat")
    level = np.concatenate([content["stimTrn"], content["stimVal"]])
    grey = np.round(255 * (level + 0.55)).astype(np.uint8)
    scenes = [simulated_vim1.draw(3, index, 56)[1] for index in range(100)]
    return planted.feature_maps(
        np.repeat(grey[..., None], 3, axis=3),
        np.stack([s.category for s in scenes]),
        np.array([s.scene for s in scenes]),
    )


def test_noiseless_responses_by_a_slow_loop(root):
    told = truth.read(root, "S2")
    maps = _seen(root)
    # Grey pictures have no colour contrast, and nothing is seen outside the hole.
    for name in ("red-green", "yellow-blue"):
        assert not maps[:, planted.FEATURES.index(name)].any()
    first = planted.FEATURES.index("object-face")
    corner = maps[:, first:, 0, 0]
    assert not corner.any()
    for v in [np.flatnonzero(told["kind"] == k)[0] for k in range(4)]:
        fields = ("kind", "centre", "size", "tuning", "contrast")
        want = planted_loop.response(maps, **{k: told[k][v] for k in fields})
        np.testing.assert_allclose(told["responses"][:, v], want, atol=1e-3)


def test_single_trials_and_averages_agree(root):
    for subject in ("S1", "S2"):
        told = truth.read(root, subject)
        finite = np.ones(NUM, bool)
        finite[[*told["never"], *told["sometimes"]]] = False
        for split, rows, repeats in (("Trn", 60, 2), ("Val", 40, 13)):
            path = root / f"{subject}data_{split.lower()}_singletrial.mat"
            single = _read(path, f"data{split}Single{subject}")
            assert single.shape == (repeats, rows, NUM)
            assert single.dtype == np.float32
            name = f"data{split}{subject}"
            average = _read(root / f"{subject}data.mat", name)
            assert average.shape == (rows, NUM)
            np.testing.assert_allclose(average, single.mean(axis=0), atol=1e-5)
            estimated = _read(root / "EstimatedResponses.mat", name)
            np.testing.assert_array_equal(estimated, average)
            if split == "Trn":
                np.testing.assert_allclose(average[:, finite].mean(0), 0, atol=1e-5)
                np.testing.assert_allclose(average[:, finite].std(0), 1, atol=1e-4)


def test_lost_voxels_are_nan_for_some_or_all_pictures(root):
    content = json.loads((root / "truth/truth.json").read_text())
    for subject in content["subjects"]:
        name = subject["name"]
        told = truth.read(root, name)
        path = root / "EstimatedResponses.mat"
        values = np.concatenate(
            [_read(path, f"data{split}{name}") for split in ("Trn", "Val")]
        )
        lost = np.isnan(values)
        assert np.flatnonzero(lost.all(axis=0)).tolist() == subject["never_finite"]
        some = lost.any(axis=0) & ~lost.all(axis=0)
        assert np.flatnonzero(some).tolist() == subject["sometimes_finite"]
        assert len(subject["never_finite"]) >= 1
        assert len(subject["sometimes_finite"]) >= 1
        for v in subject["sometimes_finite"]:
            assert np.flatnonzero(lost[:, v]).tolist() == told["absent"].tolist()


def _val_trials(root: pathlib.Path, subject: str) -> np.ndarray:
    """(R, M, V) single trials of the tuned voxels; NaN where lost."""
    path = root / f"{subject}data_val_singletrial.mat"
    trials = _read(path, f"dataValSingle{subject}").astype(np.float64)
    return trials[:, :, truth.read(root, subject)["column"]]


def test_planted_ncsnr_is_recovered_from_the_single_trials(root):
    measured, want = [], []
    for subject in ("S1", "S2"):
        told, trials = truth.read(root, subject), _val_trials(root, subject)
        finite = np.isfinite(trials).all(axis=(0, 1))
        noise = trials.var(axis=0, ddof=1).mean(axis=0)
        signal = trials.mean(axis=0).var(axis=0, ddof=1) - noise / 13
        measured.append((signal / noise)[finite])
        clean = told["responses"][60:]
        want.append(((told["ncsnr"] * clean.std(axis=0, ddof=1)) ** 2)[finite])
    measured, want = np.concatenate(measured), np.concatenate(want)
    # Standard errors of 40 means of 13 trials: 0.02, and 0.1 of the signal's sd.
    assert (abs(measured - want) < 4 * (0.02 + 0.1 * np.sqrt(want))).all()
    assert abs(np.mean(measured - want)) < 0.02
    assert np.corrcoef(measured, want)[0, 1] > 0.9


def test_the_ready_made_snr_is_the_ratio_over_the_validation_trials(root):
    for subject in ("S1", "S2"):
        path = root / f"{subject}data_val_singletrial.mat"
        trials = _read(path, f"dataValSingle{subject}").astype(np.float64)
        snr = _read(root / f"{subject}aux.mat", f"snr{subject}")
        assert snr.shape == (1, NUM)
        told = truth.read(root, subject)
        for v in range(NUM):
            if v in told["never"] or v in told["sometimes"]:
                assert np.isnan(snr[0, v])
                continue
            mean = [np.mean(trials[:, m, v]) for m in range(40)]
            spread = [np.var(trials[:, m, v], ddof=1) for m in range(40)]
            ratio = np.var(mean, ddof=1) / np.mean(spread)
            assert snr[0, v] == pytest.approx(ratio, rel=1e-5)
        tuned = snr[0, told["column"]]
        quiet = np.delete(snr[0], told["column"])
        assert np.nanmedian(quiet) < 0.11  # pure noise: 1/13
        assert np.nanmedian(tuned) > 1.3 * np.nanmedian(quiet)


def test_noise_factors_raise_the_noise_and_leave_the_signal(root, tmp_path):
    simulated_vim1.write(tmp_path / "vim1", **SMALL, noise=(1, 3))
    same = [(r / "S1data.mat").read_bytes() for r in (root, tmp_path / "vim1")]
    assert same[0] == same[1]
    two, before = (truth.read(r, "S2") for r in (tmp_path / "vim1", root))
    np.testing.assert_allclose(two["ncsnr"], before["ncsnr"] / 3)
    np.testing.assert_array_equal(two["responses"], before["responses"])
    trials = [_val_trials(r, "S2") for r in (root, tmp_path / "vim1")]
    noise = [np.sqrt(t.var(axis=0, ddof=1).mean(axis=0)) for t in trials]
    signal = [
        [
            np.polyfit(before["responses"][60:, v], t.mean(axis=0)[:, v], 1)[0]
            for v in np.flatnonzero(np.isfinite(noise[0]))
        ]
        for t in trials
    ]
    # In units of what is left the same: sd of signal over sd of noise falls to a third.
    ratio = [np.sum(s) / np.nansum(n) for s, n in zip(signal, noise, strict=True)]
    assert ratio[1] / ratio[0] == pytest.approx(1 / 3, abs=0.1)


def test_single_trials_can_be_left_out(root, tmp_path):
    simulated_vim1.write(tmp_path / "vim1", **SMALL, single_trials=False)
    names = sorted(p.name for p in (tmp_path / "vim1").iterdir())
    assert names == ["EstimatedResponses.mat", "Stimuli.mat", "truth"]
    for name in names[:2]:
        assert (tmp_path / "vim1" / name).read_bytes() == (root / name).read_bytes()


def test_same_seed_same_bytes_other_seed_other_brains(root, tmp_path):
    simulated_vim1.write(tmp_path / "again", **SMALL)
    assert folders.digest(tmp_path / "again") == folders.digest(root)
    simulated_vim1.write(tmp_path / "other", **(SMALL | {"seed": 4}))
    one, other = (truth.read(r, "S1") for r in (root, tmp_path / "other"))
    assert not np.array_equal(one["ncsnr"], other["ncsnr"])
    first = [simulated_vim1.draw(seed, 0, 56)[0] for seed in (3, 4)]
    assert (first[0] != first[1]).mean() > 0.5


def test_readers_know_that_it_is_simulated(root):
    assert simulated.is_simulated(root)
    assert simulated.is_simulated(root / "EstimatedResponses.mat")
    content = json.loads((root / "truth/truth.json").read_text())
    assert content["format"] == "ubrain-simulated-vim1"
    assert content["settings"]["noise"] == [1, 1]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_subjects": 3, "num_test": 3}, "num_subjects = 3, num_test = 3"),
        ({"num_train": 9}, "num_train in 10"),
        ({"num_voxels": 10001}, "num_voxels = 10001"),
        ({"image_px": 100}, "100 pixels"),
        ({"noise": (1, 20)}, "2 factors"),
    ],
)
def test_settings_out_of_range(tmp_path, change, match):
    with pytest.raises(errors.ConfigError, match=match):
        simulated_vim1.write(tmp_path / "vim1", **(SMALL | change))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("subject", [1, 2])
@pytest.mark.parametrize("num_voxels", [20, 300, 10_000])
def test_brains_fit_into_both_volumes(num_voxels, subject):
    brain = simulated_vim1._brain(num_voxels, subject)
    assert brain.sum() >= 1.4 * num_voxels
    for corner, grid in (
        (simulated_vim1.CORNER, simulated_vim1.GRID),
        (simulated_vim1.CORNER_SINGLE, simulated_vim1.GRID_SINGLE),
    ):
        assert (np.add(brain.shape, corner) <= grid).all()


def test_the_command_writes_it(tmp_path):
    flags = ["--dataset=vim1", "--subjects=1", "--images=10", "--test_images=4"]
    flags += ["--voxels=20", "--image_px=56", "--nosingle_trials", "--noise=2"]
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "ubrain_jax.simulate"),
            *(*flags, f"--out={tmp_path / 'vim1'}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "S1: 20 voxels" in ran.stdout
    content = json.loads((tmp_path / "vim1/truth/truth.json").read_text())
    assert content["settings"]["noise"] == [2]
    assert not (tmp_path / "vim1/S1data.mat").exists()
