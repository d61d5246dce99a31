"""The table of an encoder and baselines: its tests, its words, what it refuses."""

import csv
import json

import numpy as np
import pytest
import xarray
from scipy import stats

from ubrain_jax import baseline_results, crowd, errors

VOXELS, PICTURES = 60, 40


def workdir(path, shift, *, kind=None, seed=1, voxels=VOXELS, pool=PICTURES, moved=0):
    """Finished scores of two subjects; r of every voxel is moved by about `shift`."""
    subjects = {}
    for k, name in enumerate(("a", "b")):
        rng = np.random.default_rng(k)
        r = rng.uniform(0.2, 0.6, voxels)
        r += shift[k] + 0.01 * np.random.default_rng(seed).standard_normal(voxels)
        r[0] = np.nan
        position = np.stack([np.arange(voxels) + moved] * 3, 1)
        table = xarray.Dataset(
            {"pearson": ("voxel", r), "position": (("voxel", "axis"), position)}
        )
        crowd.write_xarray(table, path / "voxels" / f"{name}.zarr")
        median = float(np.nanmedian(r))
        control = {"two_afc": 0.47, "reverse_two_afc": 0.5, "top1": 0.0, "pool": pool}
        subjects[name] = {
            "pearson": {"median": median, "mean": 0.1, "ci": [median - 0.1, 0.9]},
            "noise_normalised": {"median": None},
            "r2": {"median": 0.1},
            "retrieval": {"pool": pool, "top1": 0.5 + shift[k], "top5": 0.9},
            "two_afc": {"mean": 0.9},
            "controls": {"x": {**control, "two_afc": 0.51}, "y": control},
            "num_voxels": voxels,
            "num_test_images": pool,
        }
    found = {"subjects": subjects, "step": 0, "warnings": ["No brain | was measured."]}
    if kind:
        found["model"] = {"kind": kind, "features": "taps 1, 2"}
    (path / "metrics.json").write_text(json.dumps(found))
    return path


@pytest.fixture
def three(tmp_path):
    """An encoder, one that beats it for one subject, and one that is as good."""
    return [
        workdir(tmp_path / "encoder", (0, 0)),
        workdir(tmp_path / "ridge", (0.1, -0.1), kind="ridge", seed=2),
        workdir(tmp_path / "fwrf", (0, 0), kind="fwrf", seed=3),
    ]


def r_of(path, name):
    with xarray.open_zarr(path / "voxels" / f"{name}.zarr") as table:
        return table.pearson.values


def test_each_row_is_the_test_of_scipy_with_holms_correction(three, tmp_path):
    baseline_results.write(three, tmp_path / "out")
    with open(tmp_path / "out/baselines.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["subject"], r["model"]) for r in rows[:3]] == [
        ("a", "encoder"),
        ("a", "ridge on taps 1, 2"),
        ("a", "fwrf on taps 1, 2"),
    ]
    want = []
    for name in ("a", "b"):
        for folder in three[1:]:
            difference = r_of(three[0], name) - r_of(folder, name)
            difference = difference[np.isfinite(difference)]
            want.append((np.median(difference), stats.wilcoxon(difference).pvalue))
    tested = [r for r in rows if r["model"] != "encoder"]
    found = [float(r["p_wilcoxon"]) for r in tested]
    np.testing.assert_allclose(found, [p for _, p in want])
    np.testing.assert_allclose(
        [float(r["first_minus_this"]) for r in tested], [d for d, _ in want]
    )
    order, corrected, high = np.argsort(found), np.zeros(4), 0.0
    for k, at in enumerate(order):
        high = max(high, min(1.0, found[at] * (4 - k)))
        corrected[at] = high
    np.testing.assert_allclose([float(r["p_holm"]) for r in tested], corrected)
    assert all(r["p_holm"] == "" for r in rows if r["model"] == "encoder")
    assert {float(r["worst_control_two_afc"]) for r in rows} == {0.47}
    assert {r["compared"] for r in tested} == {str(VOXELS - 1)}


def test_a_baseline_that_wins_is_said_to_win(three, tmp_path):
    page = baseline_results.write(three, tmp_path / "out", ("mine", "ridge", "fwrf"))
    assert (tmp_path / "out/baselines.md").read_text() == page
    told = (
        "- Voxel by voxel, ridge wins against mine in 1 of 2 subjects and loses in 1."
    )
    assert told in page
    assert "- Higher than mine in top-1: ridge in 1 of 2 subjects." in page
    assert "- Higher than mine in 2AFC: none." in page
    assert "- Higher than mine in median r: ridge in 1 of 2" in page
    [a] = [line for line in page.splitlines() if line.startswith("- a: mine")]
    assert "loses to ridge" in a
    assert "is not told apart from fwrf" in a
    [b] = [line for line in page.splitlines() if line.startswith("- b: mine")]
    assert "beats ridge" in b
    assert "No brain \\| was measured." in page
    assert "too few" in page


def test_a_win_needs_the_ranks_and_the_median_on_its_side(three, tmp_path):
    """Many small differences one way and some large ones the other are no win."""
    for name in ("a", "b"):
        path = three[2] / "voxels" / f"{name}.zarr"
        table = xarray.open_zarr(path).load()
        r = r_of(three[0], name)
        table["pearson"] = "voxel", np.where(np.arange(VOXELS) < 34, r - 0.001, r + 0.3)
        crowd.write_xarray(table, path)
    rows = baseline_results.compare(baseline_results.read([three[0], three[2]]))
    [a, _] = [r for r in rows if r["model"] != "encoder"]
    assert a["first_minus_this"] > 0
    assert a["rank_biserial"] < 0
    difference = r_of(three[0], "a") - r_of(three[2], "a")
    difference = difference[1:]
    found = stats.wilcoxon(difference, alternative="greater").statistic
    ranks = VOXELS * (VOXELS - 1) / 2
    assert a["rank_biserial"] == pytest.approx(2 * found / ranks - 1)
    assert a["p_holm"] < 0.05
    page = baseline_results.write([three[0], three[2]], tmp_path / "out")
    assert "wins against encoder in 0 of 2 subjects and loses in 0." in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"voxels": 50}, r"num_voxels: 50; expected 60"),
        ({"pool": 30}, r"num_test_images: 30; expected 40.*different size"),
        ({"moved": 1}, r"voxels/a.zarr: other voxels"),
    ],
)
def test_scores_of_other_data_are_not_compared(change, words, three, tmp_path):
    other = workdir(tmp_path / "other", (0, 0), kind="x", **change)
    with pytest.raises(errors.InputError, match=words):
        baseline_results.write([three[0], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_workdirs_and_names_that_do_not_fit_are_refused(three, tmp_path):
    for given, names, words in (
        (three[:1], (), "1 workdirs"),
        (three, ("a", "b"), "3 workdirs and 2 names"),
        ([three[0], three[0]], (), "encoder, encoder"),
    ):
        with pytest.raises(errors.ConfigError, match=words):
            baseline_results.write(given, tmp_path / "out", names)
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.InputError, match=r"empty.metrics\.json: cannot be read"):
        baseline_results.write([three[0], tmp_path / "empty"], tmp_path / "out")
    metrics = json.loads((three[1] / "metrics.json").read_text())
    del metrics["subjects"]["b"]
    (three[1] / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(errors.InputError, match="subjects a; expected a, b"):
        baseline_results.write(three, tmp_path / "out")
