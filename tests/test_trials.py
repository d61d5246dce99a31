"""Z-scores, averages and noise of single trials against slow loops and known truths."""

import math
import statistics

import numpy as np
import pytest

from ubrain_jax.datasets import trials

# Two runs of training, three of test; a trial that is left out; a picture shown once.
RUNS = [np.array([0, 2, 4]), np.array([1, 3, 5]), np.array([7, 8, 9])]
RUNS += [np.array([10, 11, 12]), np.array([13, 14, 15, 16])]
ROW = np.array([0, 1, 2, 3, 0, 3, -1, 4, 5, 6, 6, 5, 4, 4, 5, 6, 7])
REPEATED = np.arange(17) >= 7


def planted(num_voxels=11):
    rng = np.random.default_rng(4)
    return rng.normal(size=(17, num_voxels)) * 50 + rng.normal(size=num_voxels) * 900


def slow(column):
    """One voxel: its averages and ncsnr, by the words of the docstrings."""
    z = [0.0] * 17
    for run in RUNS:
        values = [float(column[t]) for t in run]
        mean, sd = statistics.fmean(values), statistics.pstdev(values)
        for t in run:
            z[t] = (float(column[t]) - mean) / sd
    mean = [
        statistics.fmean(z[t] for t in range(17) if ROW[t] == row) for row in range(8)
    ]
    shown = [[z[t] for t in range(7, 17) if ROW[t] == row] for row in range(4, 8)]
    noise = statistics.fmean(statistics.variance(s) for s in shown if len(s) > 1)
    signal = max(0.0, statistics.pvariance([v for s in shown for v in s]) - noise)
    return mean, math.sqrt(signal / noise)


@pytest.mark.parametrize("block", [3, 512])
def test_averages_equal_a_slow_loop(block, monkeypatch):
    monkeypatch.setattr(trials, "_VOXELS", block)
    betas = planted()
    found = trials.average(betas, RUNS, ROW, REPEATED)
    expected = [slow(column) for column in betas.T]
    assert found.responses.dtype == found.ncsnr.dtype == np.float32
    np.testing.assert_allclose(
        found.responses.T, [mean for mean, _ in expected], rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(found.ncsnr, [n for _, n in expected], rtol=1e-5)
    assert 0 < np.count_nonzero(found.ncsnr) < 11  # some have no signal
    assert not found.invalid.any()
    assert not found.flat.any()


def test_unit_and_offset_of_a_run_change_nothing():
    betas = planted()
    other = betas.copy()
    for k, run in enumerate(RUNS):
        other[run] = betas[run] * (k + 0.5) - 40 * k
    first, second = (trials.average(b, RUNS, ROW, REPEATED) for b in (betas, other))
    np.testing.assert_allclose(first.responses, second.responses, atol=1e-6)
    np.testing.assert_allclose(first.ncsnr, second.ncsnr, atol=1e-5)


def test_invalid_and_constant_voxels_are_found_and_zero():
    betas = planted()
    betas[3, 0], betas[16, 1], betas[8, 2] = np.nan, -np.inf, 1e200
    betas[6, 4] = np.nan  # of a trial that is left out
    betas[RUNS[1], 5] = 0.1
    betas[:, 6] = 1e6 + 0.1
    found = trials.average(betas, RUNS, ROW, REPEATED)
    assert np.flatnonzero(found.invalid).tolist() == [0, 1, 2]
    assert np.argwhere(found.flat).tolist() == [
        [0, 6],
        [1, 5],
        [1, 6],
        *([k, 6] for k in (2, 3, 4)),
    ]
    assert (found.responses[:, [0, 1, 2, 6]] == 0).all()
    # pictures 1 and 3 are of the second run, 3 there only
    assert (found.responses[[1, 3], 5] == 0).all()
    assert np.isnan(found.ncsnr[[0, 1, 2, 6]]).all()
    clean = trials.average(planted(), RUNS, ROW, REPEATED)
    np.testing.assert_array_equal(
        found.responses[:, [3, 4]], clean.responses[:, [3, 4]]
    )
    np.testing.assert_array_equal(found.ncsnr[[3, 4, 5]], clean.ncsnr[[3, 4, 5]])


@pytest.mark.parametrize("truth", [0.0, 0.3, 1.0, 2.5])
def test_planted_signal_to_noise_is_recovered(truth):
    """The median over 400 voxels, as in the experiment: 50 pictures, 35 runs."""
    rng = np.random.default_rng(7)
    signal = rng.normal(size=(50, 400)) * truth
    signal *= truth / np.maximum(signal.std(0), 1e-9)  # the pictures are all there are
    betas = np.concatenate([signal + rng.normal(size=signal.shape) for _ in range(35)])
    runs = list(np.arange(35 * 50).reshape(35, 50))
    row = np.tile(np.arange(50), 35)
    found = trials.average(betas, runs, row, np.ones(len(row), bool))
    assert abs(np.median(found.ncsnr) - truth) < max(0.02 * truth, 0.06)
    if truth:  # the ceiling that follows is the r^2 with the noiseless responses
        ceiling = found.ncsnr**2 / (found.ncsnr**2 + 1 / 35)
        pairs = zip(found.responses.T, signal.T, strict=True)
        r2 = [np.corrcoef(*pair)[0, 1] ** 2 for pair in pairs]
        assert abs(np.median(r2) - np.median(ceiling)) < 0.02


def test_signal_to_noise_is_nan_where_it_is_undefined():
    z = np.array([[1.0, 1], [-1, 1], [0.5, -2]])
    assert np.isnan(trials.signal_to_noise(z, np.array([1, 2, 3]))).all()
    same = trials.signal_to_noise(z[[0, 1, 0, 1]], np.array([1, 2, 1, 2]))
    assert np.isnan(same).all()
