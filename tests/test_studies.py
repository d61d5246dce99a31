"""Means over seeds, paired tests, tables and charts, against slow references."""

import csv
import io
import json
import math
import warnings

import matplotlib.image
import numpy as np
import pytest
import scipy.stats
import xarray
import zarr.errors

from ubrain_jax import errors, studies
from ubrain_jax.maps import charts, tables


def write_cell(folder, name, r, median=0.5, position=None, **more):
    """What an evaluation leaves of one subject."""
    folder.mkdir(parents=True, exist_ok=True)
    position = np.arange(len(r))[:, None] if position is None else position
    columns = {"pearson": ("voxel", r), "position": (("voxel", "axis"), position)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        xarray.Dataset(columns).to_zarr(
            folder / "voxels" / f"{name}.zarr", zarr_format=3, consolidated=True
        )
    subject = {
        "pearson": {"median": median, "mean": 0.4},
        "noise_normalised": {"median": None},
        "retrieval": {"pool": 20, "top1": 0.25, "top5": 0.5},
        "num_voxels": len(r),
        "num_test_images": 20,
    }
    content = {"subjects": {name: subject}, "step": 7, "warnings": ["w"], **more}
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def holm_by_hand(p):
    """Step down: multiply the k-th smallest by how many are left, never decreasing."""
    out, largest = [math.nan] * len(p), 0.0
    tests = sorted((v, k) for k, v in enumerate(p) if not math.isnan(v))
    for done, (value, k) in enumerate(tests):
        largest = max(largest, value * (len(tests) - done))
        out[k] = min(1.0, largest)
    return out


def signed_rank_by_hand(d):
    """Exact two-sided p of few differences without ties: all 2^n signs."""
    d = d[d != 0]
    rank = np.argsort(np.argsort(np.abs(d))) + 1
    found = rank[d > 0].sum()
    signs = (np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1
    sums = signs @ rank
    return min(1.0, 2 * min(np.mean(sums <= found), np.mean(sums >= found)))


@pytest.mark.parametrize("seed", range(4))
def test_holm_equals_a_loop_by_hand(seed):
    rng = np.random.default_rng(seed)
    p = rng.uniform(0, 0.2, 9).round(2)  # with ties
    p[rng.integers(0, 9, 2)] = math.nan
    np.testing.assert_allclose(studies.holm(p), holm_by_hand(p), rtol=1e-12)


def test_holm_of_nothing_and_of_nan_alone():
    assert studies.holm([]) == []
    assert math.isnan(studies.holm([math.nan])[0])


@pytest.mark.parametrize("count", [6, 9, 12])
def test_few_voxels_have_the_p_of_all_signs(count):
    rng = np.random.default_rng(count)
    a, b = rng.normal(0.3, 1, count), rng.normal(0, 1, count)
    found = studies.compare_voxels(a, b)
    assert found.p == pytest.approx(signed_rank_by_hand(a - b), rel=1e-12)
    assert (found.num, found.left_out, found.equal) == (count, 0, 0)


def test_many_voxels_with_nan_and_ties_have_scipys_p_and_are_counted():
    rng = np.random.default_rng(0)
    a = rng.normal(0.1, 1, 400)
    b = rng.normal(0, 1, 400)
    a[:30], b[20:35], b[100:110] = math.nan, math.nan, a[100:110]
    found = studies.compare_voxels(a, b)
    d = (a - b)[35:]
    assert (found.num, found.left_out, found.equal) == (365, 35, 10)
    assert found.p == scipy.stats.wilcoxon(d, zero_method="wilcox").pvalue
    assert found.median_difference == np.median(d)
    better = sum(1 for x, y in zip(a[35:], b[35:], strict=True) if x > y)
    assert found.share_better == better / 365


def test_swapping_the_two_sides_changes_signs_and_not_p():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.2, 1, 80), rng.normal(0, 1, 80)
    one, other = studies.compare_voxels(a, b), studies.compare_voxels(b, a)
    assert one.p == pytest.approx(other.p)
    assert one.median_difference == -other.median_difference
    assert one.share_better == 1 - other.share_better


def test_equal_or_undefined_voxels_have_no_p():
    same = np.ones(5)
    found = studies.compare_voxels(same, same)
    assert (found.equal, found.median_difference, found.share_better) == (5, 0, 0)
    assert math.isnan(found.p)
    nothing = studies.compare_voxels(same, np.full(5, math.nan))
    assert (nothing.num, nothing.left_out) == (0, 5)
    assert math.isnan(nothing.median_difference)
    with pytest.raises(ValueError, match="voxels"):
        studies.compare_voxels(same, np.ones(4))


def test_few_pairs_have_a_t_test_and_six_have_ranks():
    rng = np.random.default_rng(2)
    for count in (2, 5, 6, 9):
        a, b = rng.normal(0.2, 0.1, count), rng.normal(0, 0.1, count)
        found = studies.compare_pairs(a, b)
        assert found.num == count
        assert found.better == sum(x > y for x, y in zip(a, b, strict=True))
        d = a - b
        mean = sum(d) / count
        sd = math.sqrt(sum((x - mean) ** 2 for x in d) / (count - 1))
        assert found.mean_difference == pytest.approx(mean)
        assert found.sd == pytest.approx(sd)
        if count < 6:
            t = mean / (sd / math.sqrt(count))
            p = 2 * scipy.stats.t.sf(abs(t), count - 1)
            assert (found.test, found.p) == ("paired t", pytest.approx(p))
        else:
            assert found.test == "Wilcoxon"
            assert found.p == pytest.approx(signed_rank_by_hand(d))


@pytest.mark.parametrize(
    ("a", "b", "num"),
    [
        ([0.4], [0.3], 1),
        ([0.4, 0.5, 0.6], [0.3, 0.4, 0.5], 3),  # all the same difference
        ([0.4] * 7, [0.4] * 7, 7),
        ([0.4, math.nan, 0.5], [0.3, 0.1, math.nan], 1),
        ([], [], 0),
    ],
)
def test_pairs_without_spread_are_told_and_not_tested(a, b, num):
    found = studies.compare_pairs(a, b)
    assert (found.num, found.test) == (num, "")
    assert math.isnan(found.p)


def test_spread_is_of_a_sample_and_leaves_undefined_seeds_out():
    values = [0.2, math.nan, 0.5, 0.3]
    mean = (0.2 + 0.5 + 0.3) / 3
    sd = math.sqrt(sum((v - mean) ** 2 for v in (0.2, 0.5, 0.3)) / 2)
    found = studies.spread(values)
    assert (found.mean, found.sd) == (pytest.approx(mean), pytest.approx(sd))
    assert found.num == 3
    assert studies.spread([0.3])[0::2] == (0.3, 1)
    assert math.isnan(studies.spread([0.3]).sd)
    assert math.isnan(studies.spread([]).mean)


def test_seed_mean_equals_a_loop_and_a_voxel_undefined_once_is_undefined(tmp_path):
    rng = np.random.default_rng(3)
    tables_of = rng.normal(size=(3, 11))
    tables_of[1, 4] = tables_of[2, 9] = math.nan
    folders = [write_cell(tmp_path / str(k), "s|1", r) for k, r in enumerate(tables_of)]
    found = studies.seed_mean(folders, "s|1")
    for voxel in range(11):
        values = [float(t[voxel]) for t in tables_of]
        if voxel in (4, 9):
            assert math.isnan(found[voxel])
        else:
            assert found[voxel] == pytest.approx(sum(values) / 3)


def test_cells_of_other_voxels_are_not_averaged(tmp_path):
    r = np.zeros(4)
    one = write_cell(tmp_path / "one", "s", r)
    other = write_cell(tmp_path / "two", "s", r, position=np.arange(4)[:, None] + 1)
    with pytest.raises(errors.InputError, match=r"two.*s\.zarr: other voxels"):
        studies.seed_mean([one, other], "s")


def test_scores_are_those_of_the_file_and_undefined_ones_are_nan(tmp_path):
    folder = write_cell(tmp_path / "a", "s", np.zeros(4), median=0.25)
    found = studies.read_score(folder, "s")
    assert found[:2] == (0.25, 0.4)
    assert math.isnan(found.median_normalised)
    assert found[3:9] == (0.25, 0.5, 20, 4, 20, 7)
    more = write_cell(tmp_path / "b", "s", np.zeros(4), warnings=["x", "w"])
    assert studies.read_warnings([folder, more]) == ["w", "x"]


@pytest.mark.parametrize("text", ["", "{}", '{"subjects": {"s": 3}, "step": 1}', "[]"])
def test_a_damaged_cell_is_named(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(errors.InputError, match=r"metrics\.json:s: cannot be read"):
        studies.read_score(tmp_path, "s")
    with pytest.raises(errors.InputError, match=r"metrics\.json:warnings"):
        studies.read_warnings([tmp_path])
    with pytest.raises(errors.InputError, match=r"s\.zarr: cannot be read"):
        studies.read_voxels(tmp_path, "s")


def test_a_table_of_tests_is_corrected_over_its_rows(tmp_path):
    rng = np.random.default_rng(4)
    sides = []
    for arm in range(3):
        folders = [
            write_cell(
                tmp_path / f"{arm}-{seed}",
                "s",
                rng.normal(0.2 * arm, 1, 40),
                median=0.1 * arm + 0.01 * rng.normal(),
            )
            for seed in range(3)
        ]
        sides.append(studies.read_side(folders, "s"))
    pairs = [(sides[0], sides[1]), (sides[0], sides[2]), (sides[1], sides[2])]
    rows = studies.compare_sides(pairs)
    p = [scipy.stats.wilcoxon(a.voxels - b.voxels).pvalue for a, b in pairs]
    q = [scipy.stats.ttest_rel(a.medians, b.medians).pvalue for a, b in pairs]
    np.testing.assert_allclose([r["p_voxels"] for r in rows], p)
    np.testing.assert_allclose([r["p_voxels_holm"] for r in rows], holm_by_hand(p))
    np.testing.assert_allclose([r["p_pairs"] for r in rows], q)
    np.testing.assert_allclose([r["p_pairs_holm"] for r in rows], holm_by_hand(q))
    text = tables.comparison_table({"arm": "arm"}, [{"arm": "a|b", **r} for r in rows])
    assert text.count("\n") == 4
    assert "| a\\|b | 40 (0) |" in text
    back = list(csv.DictReader(io.StringIO(tables.csv_text(rows))))
    assert [float(r["p_voxels"]) for r in back] == [r["p_voxels"] for r in rows]


def test_score_tables_show_mean_sd_chance_and_what_is_undefined():
    score = studies.Score(
        0.3, 0.31, math.nan, 0.1, 0.4, 20, 5, 20, 100, 2.0
    )  # a pool of 20
    other = score._replace(median_r=0.5, seconds=math.nan)
    text = tables.score_table(["arm"], [["x"], ["y"]], [[score, other], [score]])
    two, one = (line.split(" | ") for line in text.splitlines()[2:])
    assert two[:4] == ["| x", "2", "0.400 ± 0.141", "0.310 ± 0.000"]
    assert two[4:] == ["-", "10.0 ± 0.0 (5.0)", "40.0 ± 0.0 (25.0)", "100", "2 |"]
    assert one[1:3] == ["1", "0.300"]


def test_a_mean_over_pools_of_different_size_is_refused():
    score = studies.Score(0.3, 0.31, math.nan, 0.1, 0.4, 20, 5, 20, 100, 2.0)
    other = score._replace(pool=30)
    with pytest.raises(errors.InputError, match="pools of 20, 30 pictures"):
        tables.score_table(["arm"], [["x"]], [[score, other]])


def test_undefined_numbers_are_empty_cells_and_names_are_quoted():
    rows = [{"name": 'a,"b"\n', "r": math.nan}, {"name": "=1", "r": np.float64(0.5)}]
    text = tables.csv_text(rows)
    assert text == 'name,r\n"a,""b""\n",\n=1,0.5\n'
    assert tables.csv_text([]).strip() == ""


def panel(names, k, **more):
    values = {n: (np.linspace(0.1, 0.5, k) + j / 9, [0.05] * k) for j, n in names}
    return charts.Panel("median r", values, **more)


def test_charts_are_written_whole_with_a_mark_for_each_series(tmp_path):
    names = list(enumerate(["random", "twin", "scratch"]))
    shown = panel(names, 3, level=(0.4, 0.01, "all"), chance=0.05)
    charts.lines(tmp_path / "a", [shown, shown], [5, 50, 500], "abc", "x", "text")
    pixels = matplotlib.image.imread(tmp_path / "a.png")[..., :3]
    for colour in ("0072b2", "d55e00", "009e73"):
        rgb = [int(colour[k : k + 2], 16) / 255 for k in (0, 2, 4)]
        drawn = (np.abs(pixels - rgb).max(-1) < 0.01).sum()
        assert drawn > 300, colour
    svg = (tmp_path / "a.svg").read_bytes()
    charts.lines(tmp_path / "a", [shown, shown], [5, 50, 500], "abc", "x", "text")
    assert (tmp_path / "a.svg").read_bytes() == svg
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "a.svg"]


def test_charts_stand_odd_names_one_seed_and_missing_points(tmp_path):
    names = list(enumerate(["$a$", "b\ud800", "脳"]))
    shown = panel(names, 2)
    for means, sds in shown.series.values():
        means[1], sds[0] = math.nan, math.nan
    charts.groups(tmp_path / "b", [shown, shown], ["$x_1", "脳 <i>"], "subject", "$y$")
    assert matplotlib.image.imread(tmp_path / "b.png").std() > 0.01
    charts.lines(tmp_path / "c", [shown], [5, 5], "ab", "x", "")
    assert (tmp_path / "c.svg").stat().st_size > 1000


def test_a_chart_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "no").write_text("a file, not a folder")
    with pytest.raises(errors.OutputError, match="cannot be written"):
        charts.groups(
            tmp_path / "no" / "b", [panel([(0, "a")], 1)], ["x"], "subject", ""
        )
