"""The report and the score table: what they say, and what they must never do."""

import base64
import html.parser
import io
import os
import pathlib
import re
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests import browser
from ubrain_jax import controls, errors, metrics
from ubrain_jax.maps import pages, report, report_figures

HOSTILE = '<img src=x onerror="alert(1)">'


class Page(html.parser.HTMLParser):
    """Every start tag with its attributes, and the text outside <style>."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._hidden = [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag == "style"

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        self.text += "" if self._hidden else data


def _picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)


def _subject(name, images=40, voxels=60, ncsnr=0.8, seed=0):
    """Scores of a planted subject, by the functions that score real ones."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(images, voxels))
    measured = ncsnr * signal + rng.normal(size=(images, voxels)) / np.sqrt(3)
    predicted = signal + 0.5 * rng.normal(size=(images, voxels))
    if voxels > 3:
        predicted[:, :2] = 0.1
    r = metrics.pearson(measured, predicted)
    ceiling = metrics.noise_ceiling(np.full(voxels, ncsnr), np.full(images, 3))
    scores = report.SubjectScores(
        name, r, ceiling, metrics.noise_normalised(r, ceiling)
    )
    return scores, measured, predicted


def _entry(scores, measured, predicted, regions):
    found = metrics.retrieval(measured, predicted)._asdict()
    choice = metrics.two_afc(measured, predicted)
    roi = {
        region: {
            "pearson": metrics.quartiles(scores.pearson[i :: len(regions)]),
            "noise_normalised": metrics.quartiles(
                scores.noise_normalised[i :: len(regions)]
            ),
            "num_voxels": len(scores.pearson[i :: len(regions)]),
        }
        for i, region in enumerate(regions)
    }
    return {
        "pearson": metrics.quartiles(scores.pearson),
        "noise_normalised": metrics.quartiles(scores.noise_normalised),
        "r2": metrics.quartiles(metrics.r2(measured, predicted)),
        "retrieval": {
            k: found[k] for k in ("pool", "top1", "top5", "mean_rank", "median_rank")
        },
        "two_afc": {"pool": choice.pool, "mean": choice.mean},
        "controls": controls.scores(measured, predicted),
        "roi": roi,
        "num_test_images": len(measured),
        "num_voxels": len(scores.pearson),
    }


def _arguments(names=("sub-a", "sub-b"), regions=("V1", "FFA")):
    subjects, entries = [], {}
    for seed, name in enumerate(names):
        scores, measured, predicted = _subject(name, seed=seed)
        subjects.append(scores)
        entries[name] = _entry(scores, measured, predicted, regions)
    retrieved = [
        report.Retrieved(
            subject=names[0],
            image_id="nsd/00003",
            seen=_picture(3),
            best_id=[f"nsd/{i:05d}" for i in (1, 3, 5, 6, 7)],
            best=[_picture(i) for i in (1, 3, 5, 6, 7)],
            correlation=[0.9, 0.8, 0.7, 0.6, float("nan")],
            rank=2,
            pool=40,
        )
    ]
    curves = [{"step": s, "loss": 1 / s, "images_per_s": 3.0} for s in range(1, 31)]
    return {
        "title": "A run",
        "metrics": metrics.null_for_nan({"subjects": entries, "step": 30}),
        "curves": [*curves, {"step": 30, "val_loss": 0.5, "val_pearson": 0.25}],
        "subjects": subjects,
        "retrieved": retrieved,
        "notes": ["Scored on the shared images."],
        "config_text": '{"seed": 0}',
        "provenance": {"jax": "0.10.1"},
    }


def _written(tmp_path, **changes):
    path = tmp_path / "report.html"
    report.write(path, **_arguments() | changes)
    return path.read_text(encoding="utf-8")


def _svg(page, alt):
    """The figure whose alternative text ends in `alt`."""
    (source,) = [
        a["src"] for t, a in page.tags if t == "img" and a["alt"].endswith(alt)
    ]
    kind, data = source.split(";base64,")
    assert kind == "data:image/svg+xml"
    return base64.b64decode(data).decode()


def test_report_holds_scores_chance_figures_and_provenance(tmp_path):
    arguments = _arguments()
    page = Page(_written(tmp_path))
    for name, entry in arguments["metrics"]["subjects"].items():
        assert name in page.text
        for key in ("pearson", "noise_normalised"):
            assert f"{entry[key]['median']:.3f}" in page.text
            assert f"{entry['roi']['FFA'][key]['median']:.3f}" in page.text
    for text in ("2 subjects · 120 voxels · 40 test images each", "20.5", "2.5 %"):
        assert text in page.text
    for text in ("Scored on the shared", '{"seed": 0}', "0.10.1", "n = 58 voxels"):
        assert text in page.text
    images = [a for t, a in page.tags if t == "img"]
    # Loss, validation, three figures of two subjects; one query with five answers.
    assert len(images) == 2 + 6 + 6
    assert all(a["alt"] for a in images)


def test_report_shows_forced_choice_and_controls_with_their_chance(tmp_path):
    arguments = _arguments(names=("sub-a", "old"))
    entries = arguments["metrics"]["subjects"]
    del entries["old"]["two_afc"], entries["old"]["controls"]  # of an older run
    entries["sub-a"]["two_afc"]["mean"] = 0.8126
    page = Page(_written(tmp_path, **arguments))
    assert "81.3 % 50.0 %" in page.text
    assert re.search(r"oldimages by responses40.*–", page.text)
    assert "sub-a: mean pattern4050.0 % 50.0 %" in page.text
    assert "old: mean pattern" not in page.text


def test_report_is_self_contained_and_runs_nothing(tmp_path):
    text = _written(tmp_path)
    page = Page(text)
    policy = [a for t, a in page.tags if a.get("http-equiv")]
    assert policy == [
        {
            "http-equiv": "Content-Security-Policy",
            "content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
        }
    ]
    assert not {"script", "link", "iframe", "object", "base", "form"} & {
        t for t, _ in page.tags
    }
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        assert "href" not in attrs
        assert attrs.get("src", "data:").startswith("data:")
    assert "url(" not in text
    assert "@import" not in text


def test_text_from_data_is_shown_and_never_parsed(tmp_path):
    arguments = _arguments(names=(HOSTILE,), regions=(f"{HOSTILE}$x$", "</table>"))
    query = arguments["retrieved"][0]
    plain = Page(_written(tmp_path, **_arguments(names=("a",), regions=("b", "c"))))
    changed = arguments | {
        "title": f"</title>{HOSTILE}",
        "warnings": [HOSTILE],
        "notes": [f"</p><script>{HOSTILE}"],
        "config_text": f"</pre></details>{HOSTILE}",
        "provenance": {HOSTILE: "'\"><b>"},
        "curves": [*arguments["curves"], {"step": 31, f"val_loss$_{{{HOSTILE}": 1.0}],
        "retrieved": [
            query._replace(
                image_id=HOSTILE, best_id=[HOSTILE, *query.best_id[1:]], subject=HOSTILE
            )
        ],
    }
    page = Page(_written(tmp_path, **changed))
    assert page.text.count(HOSTILE) >= 8
    # The warning is the only new element: nothing of the data became one.
    assert [t for t, _ in page.tags if t not in ("p", "b")] == [
        t for t, _ in plain.tags if t not in ("p", "b")
    ]
    assert all("onerror" not in a for _, a in page.tags)


def test_name_of_undecodable_bytes_does_not_stop_the_report(tmp_path):
    name = b"sub-\xff".decode("utf-8", "surrogateescape")
    arguments = _arguments(names=(name,))
    assert "sub-?" in _written(tmp_path, **arguments)
    assert "sub-?" in report.score_table(arguments["metrics"])


def test_warnings_stand_above_everything_else(tmp_path):
    text = Page(_written(tmp_path, warnings=["The backbone is random."])).text
    assert text.index("The backbone is random.") < text.index("2 subjects")
    assert "random" not in Page(_written(tmp_path)).text


def test_seen_image_is_outlined_and_its_rank_told(tmp_path):
    text = _written(tmp_path)
    assert re.findall(r'class="cell true"><img [^>]*alt="([^"]*)"', text) == [
        "nsd/00003"
    ]
    assert "nsd/00003: rank 2 of 40" in text
    assert "✓ 0.80" in text
    source = re.search(r'src="data:image/jpeg;base64,([^"]+)"', text).group(1)
    with Image.open(io.BytesIO(base64.b64decode(source))) as picture:
        assert picture.size == (64, 64)
        seen = np.asarray(picture, float)
    assert np.corrcoef(seen.ravel(), _picture(3).ravel())[0, 1] > 0.5


def test_undefined_scores_are_dashes_and_counts_never_nan(tmp_path):
    scores, measured, predicted = _subject("sub-a")
    unknown = np.full(60, np.nan)
    scores = scores._replace(ceiling=unknown, noise_normalised=unknown)
    entry = _entry(scores, measured, predicted, ["V1"])
    values = {"subjects": {"sub-a": entry}}
    for form in (values, metrics.null_for_nan(values)):
        text = Page(_written(tmp_path, metrics=form, subjects=[scores])).text
        assert not re.search(r"\b(nan|none)\b", text.lower())
        assert "ceiling of this subject is unknown" in text
        assert "Correlation of each voxel" not in text
        assert "nan" not in report.score_table(form)


def test_values_that_are_not_finite_are_gaps_and_counted(tmp_path):
    curves = [{"step": s, "loss": 1.0 / s} for s in range(1, 11)]
    curves[3]["loss"] = float("nan")
    curves[6]["loss"] = None
    curves[8]["loss"] = float("inf")
    page = Page(_written(tmp_path, curves=curves))
    assert "loss: 10 values, 3 not finite (gaps)." in page.text
    # The line starts anew after each gap: points 1-3, 5-6, 8 and 10.
    drawing = _svg(page, "loss over training steps")
    stroke = f'style="fill: none; stroke: {pages.BLUE}'
    path = re.search(rf'<path d="([^"]*)" clip-path="[^"]*" {stroke}', drawing)[1]
    assert path.count("M") == 4


def test_log_of_a_resumed_run_shows_each_step_once(tmp_path):
    curves = [{"step": s, "loss": 5.0} for s in (1, 2, 3, 4)]
    again = [{"step": s, "loss": 1.0} for s in (3, 4, 5)]
    resumed = Page(_written(tmp_path, curves=curves + again))
    clean = Page(_written(tmp_path, curves=curves[:2] + again))
    assert "loss: 5 values." in resumed.text
    name = "loss over training steps"
    assert _svg(resumed, name) == _svg(clean, name)


def test_line_without_a_step_is_refused(tmp_path):
    with pytest.raises(errors.InputError, match=r"metrics.jsonl:line 2: keys loss"):
        _written(tmp_path, curves=[{"step": 1, "loss": 1.0}, {"loss": 2.0}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", ["single", "constant", "undefined", "far", "none"])
def test_degenerate_subjects_are_drawn(case, tmp_path):
    values = {
        "single": np.array([0.4]),
        "constant": np.full(50, 0.4),
        "undefined": np.full(50, np.nan),
        "far": np.array([0.2, -40.0, 1e9]),
        "none": np.zeros(0),
    }[case]
    ceiling = np.full(values.shape, 0.25)
    scores = report.SubjectScores("sub-a", np.clip(values, -1, 1), ceiling, values)
    curves = [] if case == "none" else [{"step": 7, "loss": 2.0}]
    page = Page(_written(tmp_path, subjects=[scores], curves=curves))
    num = int(np.isfinite(values).sum())
    assert f"n = {num:,} voxels" in page.text
    if case == "far":
        assert "2 lie outside the axis" in page.text
    if case == "undefined":
        assert "50 undefined left out" in page.text
    if case == "none":
        assert "No training log was given." in page.text


def test_a_million_points_are_downsampled_and_the_file_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    ceiling = rng.uniform(0, 1, 1_000_000)
    r = np.sqrt(ceiling) * 0.8 + 0.1 * rng.normal(size=1_000_000)
    scores = report.SubjectScores("sub-a", r, ceiling, r / np.sqrt(ceiling))
    curves = [{"step": s, "loss": float(rng.normal())} for s in range(300_000)]
    text = _written(tmp_path, subjects=[scores], curves=curves)
    assert "n = 1,000,000 voxels; a random 100,000 of them drawn" in text
    assert "loss: 300,000 values, drawn as means of 150" in text
    assert len(text) < 3e6


def test_curve_of_means_keeps_values_and_gaps():
    values = np.arange(6001.0)
    steps, means, width = report_figures._thinned(np.arange(6001), values)
    assert width == 4
    assert len(means) == 1501 <= report_figures.MAX_CURVE_POINTS
    np.testing.assert_array_equal(means[:-1], steps[:-1] - 0.5)
    assert means[-1] == 6000
    values[5] = np.nan
    means = report_figures._thinned(np.arange(6001), values)[1]
    assert np.flatnonzero(np.isnan(means)).tolist() == [1]


def test_running_mean_equals_a_loop():
    rng = np.random.default_rng(1)
    values = rng.normal(size=80)
    values[[0, 30, 31]] = np.nan
    ours = report_figures._running_mean(values, 7)
    for i in range(80):
        expected = np.nan
        if np.isfinite(values[i]):
            expected = np.nanmean(values[max(i - 3, 0) : i + 4])
        np.testing.assert_allclose(ours[i], expected, rtol=1e-12)


def test_many_subjects_keep_their_rows_and_say_which_figures_are_left_out(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(report_figures, "MAX_SUBJECT_FIGURES", 2)
    scores, measured, predicted = _subject("x")
    names = [f"sub-{i:02d}" for i in range(5)]
    entry = _entry(scores, measured, predicted, [])
    page = Page(
        _written(
            tmp_path,
            metrics={"subjects": dict.fromkeys(names, entry)},
            subjects=[scores._replace(name=name) for name in names],
        )
    )
    assert "first 2 of 5 subjects" in page.text
    assert [t for t, _ in page.tags].count("section") == 5
    assert all(page.text.count(name) >= 3 for name in names)


def test_same_arguments_give_the_same_bytes(tmp_path):
    assert _written(tmp_path) == _written(tmp_path)


def test_report_is_whole_or_absent(tmp_path, monkeypatch):
    with pytest.raises(errors.OutputError, match="no such folder"):
        report.write(tmp_path / "absent" / "report.html", **_arguments())
    before = _written(tmp_path)

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(errors.OutputError, match="No space left on device"):
        _written(tmp_path, title="Another")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before


def test_figures_are_png_files_with_something_in_them(tmp_path):
    arguments = _arguments(names=("a",))
    files = report_figures.figures(
        tmp_path, curves=arguments["curves"], subjects=arguments["subjects"]
    )
    assert [f.name for f in files] == [
        "loss.png",
        "validation.png",
        "ceiling-1.png",
        "histogram-1.png",
    ]
    for file in files:
        with Image.open(file) as picture:
            assert picture.size == (736, 560)
            assert np.asarray(picture.convert("L")).std() > 5


def test_score_table_is_aligned_and_prints_pool_and_chance():
    arguments = _arguments(names=("a", "a-longer-name"), regions=("V1", "scene"))
    entry = arguments["metrics"]["subjects"]["a"]
    lines = report.score_table(arguments["metrics"]).splitlines()
    head, rule, first, v1, *_ = lines
    assert head.split()[:3] == ["subject", "/", "region"]
    assert set(rule) == {"-"}
    q = entry["pearson"]
    spread = f"{q['median']:.3f} [{q['p25']:.2f} {q['p75']:.2f}]"
    end = head.index("r [quartiles]") + len("r [quartiles]")
    assert first[:end].endswith(spread)
    assert first.startswith("a  ")
    assert v1.startswith("  V1  ")
    found = entry["retrieval"]
    assert f"{found['top1']:.3f} (0.025)" in first
    assert f"{found['top5']:.3f} (0.125)" in first
    assert first.endswith(" 40")
    assert first[: head.index("undefined") + 9].endswith(" 2")
    body = lines[2:8]
    voxels = [line[: head.index("voxels") + 6].split()[-1] for line in body]
    assert voxels == ["60", "30", "30"] * 2


def test_score_table_without_regions_or_retrieval():
    scores, measured, predicted = _subject("a")
    entry = _entry(scores, measured, predicted, [])
    del entry["roi"], entry["retrieval"]
    lines = report.score_table({"subjects": {"a": entry}}).splitlines()
    assert lines[0].split()[:2] == ["subject", "voxels"]
    assert lines[2].split()[-3:] == ["-", "-", "-"]


def _with_uncertainty(entry):
    """An entry of metrics.json as an evaluation with draws and permutations has it."""
    for name in ("pearson", "noise_normalised", "r2"):
        entry[name]["ci"] = [0.1, 0.2345]
    entry["bootstrap"] = {"draws": 1000, "level": 0.95, "over": "40 test pictures"}
    entry["significant"] = {"share": 0.75, "uncorrected": 0.8, "voxels": 58}
    entry["significant"] |= {"test": "a test in words", "permutations": 1000}
    entry["retrieval"]["ci"] = {"top1": [0.9, 1.0], "top5": [0.98, None]}
    for scores in entry["roi"].values():
        scores["significant"] = {"share": 0.5, "uncorrected": 0.6, "voxels": 30}
    return entry


def test_score_table_shows_intervals_and_shares_of_voxels_in_132_columns():
    arguments = _arguments(names=("nsd-subj01",), regions=("kind:orientation",))
    [entry] = arguments["metrics"]["subjects"].values()
    entry["num_voxels"] = 315_997
    lines = report.score_table({"subjects": {"a": _with_uncertainty(entry)}})
    head, _, first, ends, region, *below = lines.splitlines()
    assert max(map(len, lines.splitlines())) <= 132
    assert ends.split()[:3] == ["95", "%", "interval"]
    end = head.index("r [quartiles]") + len("r [quartiles]")
    assert ends[:end].endswith("0.100 to 0.234")
    assert ends[: head.index("top-1 (chance)") + 14].endswith("0.900 to 1.000")
    assert ends.endswith("-")  # an end that is unknown
    column = head.index("q<.05") + len("q<.05")
    assert [x[:column].split()[-1] for x in (first, region)] == ["0.75", "0.50"]
    assert any("1000 draws of the test pictures" in line for line in below)
    assert any("a test in words" in line for line in below)
    assert not any("cannot be compared" in line for line in below)


def test_score_table_says_that_pools_of_other_size_cannot_be_compared():
    arguments = _arguments(names=("a", "b"))
    arguments["metrics"]["subjects"]["b"]["retrieval"]["pool"] = 515
    last = report.score_table(arguments["metrics"]).splitlines()[-1]
    assert last.startswith("Pools of 40, 515 pictures")
    assert "cannot be compared" in last


def test_score_table_cannot_steer_the_terminal():
    scores, measured, predicted = _subject("a")
    name = "\x1b[31mred\x1b[0m\r\n\x07"
    entry = _entry(scores, measured, predicted, [name])
    table = report.score_table({"subjects": {name: entry}})
    assert table.replace("\n", "").isprintable()
    assert table.count("?[31mred?[0m???") == 2


@pytest.mark.skipif(not os.path.exists(browser.CHROMIUM), reason="needs chromium")
def test_browser_shows_the_report(tmp_path):
    arguments = _arguments(names=(HOSTILE, "sub-b"))
    _written(tmp_path, **arguments, warnings=["Simulated data."])
    shot = tmp_path / "shot.png"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [browser.CHROMIUM, *browser.FLAGS, profile]
    uri = (tmp_path / "report.html").as_uri()
    subprocess.run(
        [*command, f"--screenshot={shot}", "--window-size=900,2600", uri],
        check=True,
        capture_output=True,
        timeout=120,
    )
    with Image.open(shot) as picture:
        assert picture.size == (900, 2600)
        pixels = np.asarray(picture.convert("RGB"), int)
    assert (pixels == 255).all(axis=-1).mean() > 0.5  # dark text on white
    # Drawn, not blocked by our own policy: the green outline, the blue of the curves.
    for colour in ((0, 158, 115), (0, 114, 178)):
        assert (np.abs(pixels - colour).max(axis=-1) <= 6).sum() > 100
    dom = subprocess.run(
        [*command, "--dump-dom", uri], check=True, capture_output=True, timeout=120
    ).stdout.decode()
    page = Page(dom)
    assert HOSTILE in page.text
    assert all("onerror" not in attrs for _, attrs in page.tags)
    median = arguments["metrics"]["subjects"]["sub-b"]["pearson"]["median"]
    assert re.search(rf"sub-b\s*60\s*{median:.3f}", page.text)
