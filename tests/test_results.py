"""Workdirs read back as models: values, pools, tests, refusals."""

import json

import numpy as np
import pytest
import scipy.stats
import xarray

from tests import scored
from ubrain_jax import crowd, errors, results

PEOPLE = [scored.Person("s1"), scored.Person("s2", voxels=30)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A good model with two seeds, and a worse one in a workdir for each subject."""
    root = tmp_path_factory.mktemp("runs")
    scored.write(root / "a0", PEOPLE, noise=0.5, seed=0)
    scored.write(root / "a1", PEOPLE, noise=0.5, seed=1)
    scored.write(root / "b1", PEOPLE[:1], noise=3, kind="ridge")
    scored.write(root / "b2", PEOPLE[1:], noise=3, kind="ridge")
    return root


@pytest.fixture(scope="module")
def models(runs):
    folders = [runs / name for name in ("a0", "a1", "b1", "b2")]
    return results.read_models(folders, ["good", "good", "bad", "bad"])


def content(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_workdirs_with_one_name_are_seeds_or_other_subjects(models):
    assert [m.name for m in models] == ["good", "bad"]
    assert [len(models[0].runs[s]) for s in ("s1", "s2")] == [2, 2]
    assert [len(models[1].runs[s]) for s in ("s1", "s2")] == [1, 1]


def test_values_are_means_over_seeds_with_their_intervals(runs, models):
    parts = [content(runs / name)["subjects"]["s1"] for name in ("a0", "a1")]
    medians = [p["pearson"]["median"] for p in parts]
    found = results.value(models[0], "s1", "r")
    assert found.value == pytest.approx(np.mean(medians))
    assert found.low == pytest.approx(np.mean([p["pearson"]["ci"][0] for p in parts]))
    assert found.seed_sd == pytest.approx(np.std(medians, ddof=1))
    assert (found.seeds, found.pool) == (2, 0)
    top = results.value(models[0], "s1", "top1")
    assert top.pool == 30
    assert top.value == pytest.approx(
        100 * np.mean([p["retrieval"]["top1"] for p in parts])
    )
    ends = [p["retrieval"]["ci"]["top1"][1] for p in parts]
    assert top.high == pytest.approx(100 * np.mean(ends))
    choice = results.value(models[1], "s1", "two_afc")
    assert choice.low < choice.value < choice.high
    assert not np.isfinite(results.value(models[0], "s3", "r").value)


def test_tests_equal_scipy_and_holm_by_hand(runs, models):
    rows = results.compare(models)
    assert [(r["over"], r["subject"]) for r in rows] == [
        ("voxels", "s1"),
        ("voxels", "s2"),
        ("subjects", ""),
    ]
    p = []
    for row, worse in zip(rows, ("b1", "b2"), strict=False):
        tables = [
            xarray.open_zarr(runs / name / "voxels" / f"{row['subject']}.zarr")
            for name in ("a0", "a1", worse)
        ]
        a, b, c = (t.pearson.values for t in tables)
        difference = (a + b) / 2 - c
        p.append(scipy.stats.wilcoxon(difference).pvalue)
        assert row["p"] == pytest.approx(p[-1])
        assert row["median_difference"] == pytest.approx(np.median(difference))
        assert row["num"] == len(difference)
    low, high = sorted(p)
    by_size = {low: min(1, 2 * low), high: min(1, max(2 * low, high))}
    for row, one in zip(rows, p, strict=False):
        assert row["p_holm"] == pytest.approx(by_size[one])
    over = rows[2]
    medians = [[results.value(m, s, "r").value for s in ("s1", "s2")] for m in models]
    assert over["median_difference"] == pytest.approx(np.median(np.subtract(*medians)))


def test_a_workdir_of_compare_stands_for_its_arms(runs, tmp_path):
    for name in ("a0", "b1", "b2"):
        (tmp_path / name).symlink_to(runs / name)
    (tmp_path / "compare.csv").write_text(
        "subject,arm,run,seed\n"
        "s1,single,b1,0\ns1,crowd,a0,0\ns2,single,b2,0\ns2,crowd,a0,0\n"
    )
    found = results.read_models([tmp_path])
    assert [m.name for m in found] == ["single", "crowd"]
    assert found[0].runs["s2"][0].folder == tmp_path / "b2"
    assert found[1].runs["s1"][0] == found[1].runs["s2"][0]


def test_models_without_names_are_told_apart(runs):
    found = results.read_models([runs / "a0", runs / "a1", runs / "b1"])
    assert [m.name for m in found] == ["encoder", "encoder a1", "ridge"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (scored.Person("s1", images=31), "num_test_images: 31; expected 30"),
        (scored.Person("s1", voxels=41), "num_voxels: 41; expected 40"),
    ],
)
def test_pools_and_voxels_of_other_size_are_refused(runs, tmp_path, other, words):
    scored.write(tmp_path / "x", [other])
    with pytest.raises(errors.InputError, match=words):
        results.read_models([runs / "a0", tmp_path / "x"])


def test_another_pool_among_as_many_pictures_is_refused(runs, tmp_path):
    person = scored.Person("s1", shared=12)
    scored.write(tmp_path / "x", [person])
    scored.write(tmp_path / "y", [person._replace(shared=13)])
    results.read_models([runs / "a0", tmp_path / "x"])
    with pytest.raises(errors.InputError, match=r"retrieval_pools\.shared\.pool: 13"):
        results.read_models([tmp_path / "x", tmp_path / "y"])


def test_as_many_voxels_that_are_others_are_refused(tmp_path):
    first = scored.write(tmp_path / "x", PEOPLE[:1])
    second = scored.write(tmp_path / "y", PEOPLE[:1])
    path = second / "voxels" / "s1.zarr"
    table = xarray.open_zarr(path).load()
    table["position"] = table["position"] + 1
    crowd.write_xarray(table.drop_encoding(), path)
    with pytest.raises(errors.InputError, match=r"s1\.zarr:position: other voxels"):
        results.compare(results.read_models([first, second]))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, errors.MissingInputError),
        ("{", errors.InputError),
        ('{"subjects": {"s1": {}}}', errors.InputError),
        ("[]", errors.InputError),
    ],
)
def test_workdirs_that_cannot_be_read_are_named(tmp_path, text, error):
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(error, match=r"metrics\.json"):
        results.read(tmp_path)


def test_names_must_be_as_many_as_workdirs(runs):
    with pytest.raises(errors.ConfigError, match="1 workdirs and 2 names"):
        results.read_models([runs / "a0"], ["x", "y"])


def test_about_comes_back_and_is_missed(tmp_path):
    about = results.About("A <b>", {"a": {"b": [1]}}, {"jax": "1"})
    results.write_about(tmp_path, about)
    assert results.read_about(tmp_path) == about
    (tmp_path / "about.json").write_text("{}")
    with pytest.raises(errors.InputError, match="about"):
        results.read_about(tmp_path)
    with pytest.raises(errors.MissingInputError):
        results.read_about(tmp_path / "x")
