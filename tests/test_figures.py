"""Figures by command: files, captions, tables, pools, and what is refused."""

import csv
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests import browser, scored
from ubrain_jax import crowd, errors, figures, results
from ubrain_jax.maps import model_figures

ROOT = pathlib.Path(__file__).parent.parent
HOSTILE = '<img src=x onerror="alert(1)">'
PEOPLE = [
    scored.Person("s1", shared=12),
    scored.Person("s2", voxels=30, shared=12),
    scored.Person("s3", images=24, dataset="u|*"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An encoder, a worse ridge, and one that is better."""
    root = tmp_path_factory.mktemp("runs")
    scored.write(root / "encoder", PEOPLE, noise=1)
    scored.write(root / "ridge", PEOPLE, noise=3, kind="ridge")
    scored.write(root / "better", PEOPLE, noise=0.2, kind="fwrf")
    return root


def draw(kind, runs, out, names=("encoder", "ridge", "better"), **changes):
    plan = figures.Plan(kind, [str(runs / n) for n in names], str(out), **changes)
    pages = figures.run(plan)
    return [page.read_text() for page in pages]


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def check_files(stem):
    for ending in ("png", "svg", "csv", "md"):
        assert stem.with_suffix(f".{ending}").stat().st_size > 200, ending
    with Image.open(stem.with_suffix(".png")) as picture:
        assert np.asarray(picture.convert("L")).std() > 5


def test_models_have_bars_table_and_a_caption_with_n_and_test(runs, tmp_path):
    [page] = draw("models", runs, tmp_path)
    check_files(tmp_path / "models")
    for words in (
        "30 to 40 voxels, 24 to 30 test pictures",
        "95 % interval of a bootstrap over test pictures (40 draws)",
        "Wilcoxon signed-rank test over voxels, two-sided",
        "Holm's correction for 6 comparisons",
        "**Note.** Simulated.",
    ):
        assert words in page, words
    rows = rows_of(tmp_path / "models.csv")
    assert [(r["subject"], r["model"]) for r in rows] == [
        (s, m) for s in ("s1", "s2", "s3") for m in ("encoder", "ridge", "fwrf")
    ]
    models = results.read_models([runs / n for n in ("encoder", "ridge", "better")])
    for row in rows:
        [model] = [m for m in models if m.name == row["model"]]
        for score in results.SCORES:
            value = results.value(model, row["subject"], score)
            assert float(row[score]) == pytest.approx(value.value)
            assert float(row[f"{score}_low"]) == pytest.approx(value.low)
    assert [r["p_holm"] != "" for r in rows] == [False, True, True] * 3


def test_pools_of_different_size_are_said_in_label_and_caption(runs, tmp_path):
    [page] = draw("models", runs, tmp_path)
    assert "Pools differ in size" in page
    found = model_figures.by_subject(results.read_models([runs / "encoder"]))
    labels = [ax.get_ylabel() for ax in found.figure.axes]
    assert ["pools differ in size" in label for label in labels] == [
        *(False, False),
        *(True, True),
        False,
    ]
    texts = {t.get_text() for t in found.figure.axes[2].texts}
    assert {"of 30", "of 24"} <= texts
    # Two subjects with the same pool: nothing to say, but its size.
    same = [
        m._replace(runs={k: m.runs[k] for k in ("s1", "s2")})
        for m in results.read_models([runs / "encoder"])
    ]
    found = model_figures.by_subject(same)
    assert "Pools differ" not in found.caption
    assert "pool 30" in found.figure.axes[2].get_ylabel()


def test_a_shared_pool_can_be_asked_for_and_must_exist(runs, tmp_path):
    draw("models", runs, tmp_path, pool="shared")
    rows = rows_of(tmp_path / "models.csv")
    assert [r["top1_pool"] for r in rows] == ["12"] * 6 + ["0"] * 3
    assert rows[-1]["top1"] == ""
    with pytest.raises(errors.ConfigError, match="shared_full, which no subject has"):
        draw("models", runs, tmp_path / "x", pool="shared_full")
    assert not (tmp_path / "x").exists()


def test_datasets_are_means_over_their_subjects(runs, tmp_path):
    [page] = draw("datasets", runs, tmp_path)
    check_files(tmp_path / "datasets")
    rows = rows_of(tmp_path / "datasets.csv")
    assert [(r["dataset"], r["subjects"]) for r in rows[::3]] == [
        ("t", "2"),
        ("u|*", "1"),
    ]
    [model] = results.read_models([runs / "encoder"])
    both = [results.value(model, s, "r").value for s in ("s1", "s2")]
    assert float(rows[0]["r"]) == pytest.approx(np.mean(both))
    assert float(rows[0]["r_high"]) == pytest.approx(
        np.mean(both) + np.std(both, ddof=1)
    )
    alone = results.value(model, "s3", "r")
    assert float(rows[3]["r_low"]) == pytest.approx(alone.low)
    assert "t n = 2, u\\|\\* n = 1" in page
    assert "Pools differ in size" in page


def test_a_dataset_of_mixed_pools_has_no_mean_of_them(tmp_path):
    people = [scored.Person("s1"), scored.Person("s2", images=20)]
    scored.write(tmp_path / "run", people)
    [page] = draw("datasets", tmp_path, tmp_path / "out", names=["run"])
    [row] = rows_of(tmp_path / "out" / "datasets.csv")
    assert (row["top1"], row["top5"]) == ("", "")
    assert row["top1_pool"] == "20 to 30"
    assert float(row["two_afc"]) > 50
    assert "different pools has none" in page


def test_datasets_leave_out_who_is_not_in_every_model(runs, tmp_path):
    scored.write(tmp_path / "one", PEOPLE[:1], kind="ridge")
    names = [runs / "encoder", tmp_path / "one"]
    [page] = draw("datasets", runs, tmp_path / "out", names=names)
    assert "not scored by every model: s2, s3" in page
    scored.write(tmp_path / "two", PEOPLE[1:], kind="ridge")
    names = [tmp_path / "one", tmp_path / "two"]
    with pytest.raises(errors.ConfigError, match="no subject that all models scored"):
        draw("datasets", runs, tmp_path / "out", names=names)


def test_tests_name_their_kind_and_n(runs, tmp_path):
    [page] = draw("tests", runs, tmp_path)
    check_files(tmp_path / "tests")
    rows = rows_of(tmp_path / "tests.csv")
    assert [r["over"] for r in rows] == ["voxels"] * 6 + ["subjects"] * 2
    assert [r["num"] for r in rows] == ["40", "30", "40"] * 2 + ["3", "3"]
    assert float(rows[0]["median_difference"]) > 0 > float(rows[3]["median_difference"])
    for words in (
        "over n = 30 to 40 voxels of each subject",
        "over n = 3 subjects' medians",
        "Wilcoxon signed-rank test, two-sided",
        "Neighbouring voxels are not independent",
    ):
        assert words in page
    with pytest.raises(errors.ConfigError, match=r"1 model\(s\), encoder"):
        draw("tests", runs, tmp_path, names=["encoder"])


def test_verdicts_say_who_loses(runs):
    models = results.read_models([runs / n for n in ("encoder", "ridge", "better")])
    lines = model_figures.verdicts(models, results.compare(models))
    assert len(lines) == 3
    for line in lines:
        assert re.search(r"encoder beats ridge .*, loses to fwrf", line), line
    same = results.read_models([runs / "encoder", runs / "encoder"])
    [line, *_] = model_figures.verdicts(same, results.compare(same))
    assert "is not told apart from" in line


@pytest.fixture(scope="module")
def store(tmp_path_factory, make_dataset):
    """A store with the pictures t/0000 to t/0029."""
    path = tmp_path_factory.mktemp("store") / "t.zarr"
    dataset = make_dataset(1, 5, 30, voxels=(40,))
    crowd.write(
        str(path),
        dataset._replace(
            subjects=iter([s._replace(name="s1") for s in dataset.subjects])
        ),
        image_px=28,
    )
    return str(path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return scored.write(tmp_path_factory.mktemp("alone") / "run", PEOPLE[:1], noise=2)


def test_retrieved_pictures_are_those_of_the_file(alone, store, tmp_path):
    asked = ["t/0003", "t/0007"]
    [page] = draw(
        "retrieved", alone.parent, tmp_path, ["run"], crowd=[store], queries=asked
    )
    check_files(tmp_path / "retrieved-s1")
    rows = rows_of(tmp_path / "retrieved-s1.csv")
    assert [r["image_id"] for r in rows] == asked
    table = figures.ranks.read(alone, "s1")
    for row in rows:
        k = table.image_id.index(row["image_id"])
        assert int(row["rank"]) == table.rank[k]
        assert row["best_1"] == table.image_id[table.best[k, 0]]
    assert "n = 2 queries, picked by hand" in page
    assert "(chance 3.3 %)" in page
    with Image.open(tmp_path / "retrieved-s1.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), int)
    found = (np.abs(pixels - (0, 158, 115)).max(-1) <= 6).sum()
    inside = sum(r["image_id"] in [r[f"best_{i}"] for i in range(1, 6)] for r in rows)
    assert (found > 300) == (inside > 0)


def test_queries_are_spread_over_the_ranks_by_default(alone, store, tmp_path):
    [page] = draw("retrieved", alone.parent, tmp_path, ["run"], crowd=[store])
    rank = [int(r["rank"]) for r in rows_of(tmp_path / "retrieved-s1.csv")]
    table = figures.ranks.read(alone, "s1")
    assert len(rank) == 6
    assert rank == sorted(rank)
    assert (rank[0], rank[-1]) == (table.rank.min(), table.rank.max())
    assert "evenly over all ranks" in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"queries": ["t/9999"]}, "t/9999, no test picture"),
        ({"subjects": ["s9"]}, "s9 not scored"),
        ({"crowd": []}, "--crowd: not given"),
    ],
)
def test_retrieved_refuses_what_is_not_there(alone, store, tmp_path, changes, words):
    changes = {"crowd": [store], **changes}
    with pytest.raises(errors.ConfigError, match=words):
        draw("retrieved", alone.parent, tmp_path / "out", ["run"], **changes)
    assert not (tmp_path / "out").exists()


def test_report_finds_the_baselines_beside_a_run(runs, tmp_path):
    figures.run(figures.Plan("report", [str(runs / "encoder")], str(tmp_path)))
    text = (tmp_path / "report.html").read_text()
    for words in ("loses to fwrf", "beats ridge", "All controls are at chance"):
        assert words in text, words
    assert "Retrieved pictures are not shown" in text
    figures.run(
        figures.Plan("report", [str(runs / "encoder")], str(tmp_path), baselines=[])
    )
    assert "Baselines" not in (tmp_path / "report.html").read_text()


@pytest.mark.skipif(not os.path.exists(browser.CHROMIUM), reason="needs chromium")
def test_browser_shows_the_whole_report_at_any_width(store, tmp_path):
    name = "s1"
    run = scored.write(tmp_path / "run", PEOPLE[:1], noise=1)
    scored.write(tmp_path / HOSTILE[:4], PEOPLE[:1], noise=3, kind=HOSTILE)
    out = tmp_path / "out"
    figures.run(figures.Plan("report", [str(run)], str(out), crowd=[store]))
    page = out / "report.html"
    with browser.tab(tmp_path) as tab:
        for width in (400, 1600):
            tab.open(page, width)
            assert tab.value("document.documentElement.scrollWidth") == width
            pictures = tab.value(
                "[...document.images].map(i => [i.complete && i.naturalWidth, "
                "i.getBoundingClientRect().width, i.alt])"
            )
            # Six queries of six, loss, three figures of the subject, the models.
            assert len(pictures) == 36 + 1 + 3 + 1
            assert all(
                drawn > 0 and 20 < shown <= width - 32 for drawn, shown, _ in pictures
            )
            labels = tab.value(
                "[...document.querySelectorAll('[role=region]')].map(t => [t.ariaLabel,"
                " t.querySelectorAll('tbody tr').length, t.getBoundingClientRect()"
                ".right <= innerWidth])"
            )
            assert {label for label, _, _ in labels} >= {
                "What was trained",
                "Pictures and voxels of each subject",
                "Scores by subject",
                "Models by subject",
                "Retrieval by subject",
                "Controls by subject",
                f"Scores by region, {name}",
                "Provenance",
            }
            assert all(count > 0 and inside for _, count, inside in labels)
            small = tab.value(
                "Math.min(...[...document.querySelectorAll('p,td,th,li,figcaption')]"
                ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
            )
            assert small >= 11
            tab.shot(tmp_path / f"{width}.png", 1200)
            with Image.open(tmp_path / f"{width}.png") as shot:
                pixels = np.asarray(shot.convert("L"))
            assert pixels.shape[1] == width
            assert 0.6 < (pixels > 250).mean() < 0.99
        assert tab.said == []
        fetched = {u for u in tab.fetched if not u.startswith("data:")}
        assert fetched == {page.as_uri()}
        assert HOSTILE in tab.value("document.body.innerText")
        assert tab.value("document.querySelectorAll('[onerror], script').length") == 0


def test_browser_tells_what_a_page_does_wrong(tmp_path):
    """The checks above can fail: a blocked script, a wide page, an empty image."""
    if not os.path.exists(browser.CHROMIUM):
        pytest.skip("needs chromium")
    page = tmp_path / "bad.html"
    page.write_text(
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        "<script>1</script><img src=data:image/png;base64,AA>"
        '<div style="width:900px">x</div>'
    )
    with browser.tab(tmp_path) as tab:
        tab.open(page, 400)
        assert any("Content Security Policy" in line for line in tab.said)
        assert tab.value("document.images[0].naturalWidth") == 0
        assert tab.value("document.documentElement.scrollWidth") >= 900


@pytest.mark.slow
def test_the_command_reads_its_flags(runs, tmp_path):
    def run(*more):
        return subprocess.run(
            [sys.executable, "-m", "ubrain_jax.figures", f"--out={tmp_path}", *more],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    folders = ",".join(str(runs / n) for n in ("encoder", "ridge"))
    good = run("--kind=models", f"--workdirs={folders}", "--names=mine,theirs")
    assert good.returncode == 0, good.stderr
    assert good.stdout.strip() == str(tmp_path / "models.md")
    assert "mine" in (tmp_path / "models.csv").read_text()
    bad = run("--kind=report", f"--workdirs={folders}")
    assert bad.returncode == 78
    assert "2 workdirs; expected one" in bad.stderr
