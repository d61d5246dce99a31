"""The command `explore`: what it finds, what it writes, what it refuses."""

import csv
import functools
import json
import pathlib
import time

import jax
import nibabel as nib
import numpy as np
import pytest
import xarray
from absl import flags

from tests import browser
from ubrain_jax import (
    config,
    crowd,
    errors,
    evaluate,
    experiments,
    exploration,
    explore,
    export,
    shown,
    train,
    universal,
)
from ubrain_jax.atlas import fields, pooled, prf

ONE = jax.devices()[:1]
AFFINE = np.diag([-2.0, 2, 2, 1])
VOLUME = {"grid": [30, 30, 30], "affine": AFFINE.tolist(), "space": "func1pt8mm"}
NAMES = ("nsd-subj01", "t-subj02", "t-subj03")


@pytest.fixture(scope="module")
def workdir(make_dataset, tiny_dict, tmp_path_factory):
    """A run of three subjects: in a volume, on fsaverage, and nowhere."""
    root = tmp_path_factory.mktemp("explore")
    dataset = make_dataset(num_subjects=3, voxels=(24, 24, 24), px=56)

    def placed():
        spaces = [VOLUME, {"space": "fsaverage"}, {"space": "not told"}]
        for subject, space in zip(dataset.subjects, spaces, strict=True):
            v = len(subject.position)
            vertex = np.stack([np.arange(v) % 2, np.arange(v) * 700, -np.ones(v)], 1)
            position = vertex.astype(np.int32) if "grid" not in space else None
            yield subject._replace(
                name=subject.name.replace("t-subj01", "nsd-subj01"),
                position=subject.position if position is None else position,
                attrs={**subject.attrs, **space},
            )

    store = str(root / "t.zarr")
    crowd.write(store, dataset._replace(subjects=placed()), image_px=56)
    settings = tiny_dict(
        data={"crowd": (store,)},
        backbone={"image_px": 56},
        train={"steps": 2},
        evaluate={"bootstraps": 0, "permutations": 0},
    )

    run = experiments.prepare_run(config.from_dict(settings, "test"), ONE)
    folder = str(root / "run")
    state = train.train(run, folder)
    result = evaluate.evaluate(run, state.params, folder, 2)
    export.write(run, folder, result)
    return pathlib.Path(folder)


@pytest.fixture(scope="module")
def found(workdir):
    """What is found from Python, with all voxels in clusters."""
    encoder = universal.UniversalEncoder.load(workdir, devices=ONE)
    places = {n: encoder.subject(n).position for n in NAMES}
    pictures = shown.of_stores([str(workdir.parent / "t.zarr")], places, 56, 6)
    settings = exploration.Settings(
        k=3,
        top=2,
        within={"first": 2},
        contrasts=(("c02", "first"), ("c01", "c03")),
        least_score=None,
    )
    scores = pooled.read_scores(workdir, NAMES)
    return encoder, exploration.explore(encoder, pictures, scores, settings)


def command(*given) -> None:
    """The command in this process, which has its programs compiled already."""
    own = flags.FlagValues()
    with pytest.MonkeyPatch.context() as patch:
        # Other tests define flags of the same names.
        for name in ("string", "list", "enum", "float", "integer", "bool"):
            define = functools.partial(
                getattr(flags, f"DEFINE_{name}"), flag_values=own
            )
            patch.setattr(explore.flags, f"DEFINE_{name}", define)
        explore.define_flags()
        patch.setattr(explore.flags, "FLAGS", own)
        own(["explore", *map(str, given)])
        assert explore.main(["explore"]) == 0


@pytest.fixture(scope="module")
def folder(workdir):
    """What the command writes."""
    out = workdir.parent / "maps"
    command(
        *(f"--encoder={workdir}", f"--out={out}", "--k=3", "--least_score=-1"),
        *("--top=2", "--within=first:2,second", "--nofigures"),
    )
    return out


def test_every_voxel_is_predicted_and_in_its_own_cluster(found):
    encoder, whole = found
    assert [b.subject.name for b in whole.brains] == list(NAMES)
    for number, brain in enumerate(whole.brains):
        expected = encoder.predict(whole.pictures.pixels, subject=NAMES[number])
        np.testing.assert_allclose(brain.predicted, expected.values, atol=1e-6)
        mine = whole.voxels.subject == number
        np.testing.assert_array_equal(
            brain.label[whole.voxels.voxel[mine]], whole.clusters.label[mine]
        )
    assert len(whole.rows) == 3
    assert sum(row.size for row in whole.rows) == len(whole.voxels.subject)


def test_a_cluster_wants_the_pictures_with_the_highest_mean_z_score(found):
    _, whole = found
    per_subject = []
    for brain in whole.brains:
        inside = brain.predicted[:, brain.label == 1].astype(float)
        if inside.shape[1]:
            per_subject.append(((inside - inside.mean(0)) / inside.std(0)).mean(1))
    np.testing.assert_allclose(
        whole.of_clusters.predicted.mean[:, 1], np.mean(per_subject, 0), atol=1e-5
    )
    assert whole.of_clusters.measured is not None
    assert np.isfinite(whole.of_clusters.agreement.r).all()


def test_attention_of_a_group_is_that_of_its_voxels_on_its_pictures(found):
    encoder, whole = found
    region = whole.of_regions[0]
    best = int(np.argmax(region.predicted.mean[:, 0]))
    total, count = 0, 0
    for brain in whole.brains:
        rows = brain.looked_at
        rows = rows[brain.subject.roi[rows, 0]]
        looked = encoder.attention(
            whole.pictures.pixels[best], subject=brain.subject.name, voxels=rows
        )
        maps = fields.combine(looked.spatial.values[0], brain.share[rows])
        total, count = total + maps.sum(0), count + len(rows)
    np.testing.assert_allclose(region.attention[0, 0], total / count, atol=1e-6)


def test_groups_are_set_against_each_other_within_each_subject(found):
    _, whole = found
    mixed, clusters = whole.against
    expected = whole.of_clusters.predicted.of_subject[:, :, [0, 2]]
    expected = np.nanmean(expected[:, :, 0] - expected[:, :, 1], 0)
    np.testing.assert_allclose(clusters.predicted.difference, expected, atol=1e-12)
    own = whole.of_clusters.predicted.of_subject[:, :, 1]
    region = whole.of_regions[0].predicted.of_subject[:, :, 0]
    expected = np.nanmean(own - region, 0)
    np.testing.assert_allclose(mixed.predicted.difference, expected, atol=1e-12)
    assert mixed.predicted.order[0] == np.argmax(expected)
    assert mixed.measured is not None


def test_fields_are_compared_with_measured_ones(workdir, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "nsd/nsddata/ppdata/subj01/func1pt8mm"
    folder.mkdir(parents=True)
    for name, most in (("angle", 360), ("eccentricity", 4), ("size", 3), ("R2", 80)):
        values = rng.uniform(0, most, VOLUME["grid"]).astype(np.float32)
        nib.save(nib.Nifti1Image(values, AFFINE), folder / f"prf_{name}.nii.gz")
    given = (f"--encoder={workdir}", "--k=2", "--least_score=-1", "--nofigures")
    given += (f"--prfs={tmp_path / 'nsd'}", "--contrast=first vs second", "--top=2")
    with pytest.raises(errors.ConfigError, match=r"degrees.*8\.4"):
        command(*given, f"--out={tmp_path / 'maps'}")
    command(*given, f"--out={tmp_path / 'maps'}", "--degrees=8.4")
    with (tmp_path / "maps/prf.csv").open(encoding="utf-8") as file:
        [row] = csv.DictReader(file)
    encoder = universal.UniversalEncoder.load(workdir, devices=ONE)
    subject = encoder.subject("nsd-subj01")
    with xarray.open_zarr(tmp_path / "maps/voxels/nsd-subj01.zarr") as table:
        field = fields.fit(table.attention.values, degrees=8.4)
    expected = prf.compare(field, prf.read(folder, subject))
    assert int(row["num"]) == expected.num > 10
    for name in ("angle", "eccentricity", "size", "distance"):
        value = float(row[name] or "nan")  # sizes of so few patches may be all alike
        same = pytest.approx(getattr(expected, name), abs=1e-3, nan_ok=True)
        assert value == same
    with (tmp_path / "maps/contrasts.csv").open(encoding="utf-8") as file:
        assert {line["first"] for line in csv.DictReader(file)} == {"first"}


def test_only_voxels_with_a_place_are_looked_at(found):
    _, whole = found
    surface = whole.brains[1]
    assert (surface.subject.position[surface.looked_at, 1] < 10242).all()
    assert 0 < len(surface.looked_at) < len(surface.score)
    assert len(whole.brains[2].looked_at) == len(whole.brains[2].score)


def test_tables_have_a_line_for_each_cluster_and_picture(folder):
    with (folder / "clusters.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["c01", "c02", "c03"]
    assert sum(int(row["size"]) for row in rows) == 3 * 24
    with (folder / "wants.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    groups = {(line["kind"], line["group"]) for line in lines}
    assert ("cluster", "c02") in groups
    assert ("region", "first") in groups
    assert ("within second", "c01") in groups
    pictures = {line["picture"] for line in lines}
    assert len(lines) == len(groups) * len(pictures)
    assert {p.name for p in (folder / "within").iterdir()} == {
        "first.csv",
        "second.csv",
    }
    told = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    assert told["settings"]["k"] == 3
    assert any("t-subj03" in note for note in told["notes"])


def test_voxels_have_a_table_that_xarray_opens(folder, workdir):
    with xarray.open_zarr(folder / "voxels/t-subj02.zarr") as table:
        assert set(table.cluster.values) <= {"c01", "c02", "c03"}
        assert table.attention.shape == (24, 4, 4)
        scores = pooled.read_scores(workdir, ["t-subj02"])["t-subj02"]
        np.testing.assert_array_equal(table.score.values, scores)


def test_the_page_opens_and_shows_what_a_cluster_is(folder, tmp_path):
    with browser.tab(tmp_path) as tab:
        tab.open(folder / "index.html", 1600)
        end = time.monotonic() + 60
        while not tab.value("document.documentElement.dataset.ready"):
            assert time.monotonic() < end
        text = tab.value("document.body.innerText")
        assert tab.said == []
        assert not [u for u in tab.fetched if not u.startswith(("file:", "data:"))]
    for expected in ("c01", *NAMES, "no place known: laid out by embedding"):
        assert expected in text


@pytest.mark.slow
def test_a_second_run_keeps_names_and_replaces_only_its_own(folder, workdir, tmp_path):
    before = (folder / "clusters.csv").read_text()
    again = ("--encoder=" + str(workdir), f"--out={folder}", "--k=3", "--top=2")
    with pytest.raises(errors.OutputError, match="exists"):
        command(*again, "--least_score=-1")
    command(*again, "--least_score=-1", "--overwrite", "--subjects=nsd-subj01")
    after = (folder / "clusters.csv").read_text()
    assert before != after
    drawn = {path.name for path in (folder / "figures").iterdir()}
    maps = ("cluster", "score", "eccentricity", "size", "angle", "level")
    assert {f"nsd-subj01_{name}.png" for name in maps} <= drawn
    assert {"wants.png", "embedding_pca.png", "hierarchy.png"} <= drawn
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(errors.OutputError, match="no exploration"):
        command(f"--encoder={workdir}", f"--out={tmp_path}", "--overwrite")
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--within=frist"], r"region 'frist'.*mean first"),
        (["--k=200", "--least_score=-1"], r"72 voxels.*200 or more"),
        (["--k=1"], r"2 or more"),
        (["--least_score=2"], r"no voxel has a pearson of 2"),
        (["--subjects=t-subj1"], r"no subject 't-subj1'"),
        (["--contrast=first vs c99", "--least_score=-1", "--k=2"], r"region 'c99'"),
        (["--contrast=first"], r"two names"),
        (["--num_pictures=1"], r"num_pictures"),
        (["--crowd=a.zarr", "--images=b"], r"both"),
        (["--crowd=none.zarr"], r"none\.zarr"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    workdir, tmp_path, given, message
):
    out = tmp_path / "maps"
    with pytest.raises(errors.InputError, match=message):
        command(f"--encoder={workdir}", f"--out={out}", *given)
    assert not list(tmp_path.iterdir())


def test_names_are_kept_of_the_run_that_is_named_or_replaced(folder, workdir, tmp_path):
    sha256 = universal.UniversalEncoder.load(workdir).sha256
    there, none = str(folder), str(tmp_path)
    assert explore.earlier(None, there, sha256, "embedding") is not None
    assert explore.earlier(there, none, sha256, "embedding") is not None
    assert explore.earlier(None, none, sha256, "embedding") is None
    # A retrained encoder replaces what the old one left.
    assert explore.earlier(None, there, "0" * 64, "embedding") is None
    with pytest.raises(errors.MissingInputError):
        explore.earlier(none, there, sha256, "embedding")
    with pytest.raises(errors.InputError, match="clusters of encoder"):
        explore.earlier(there, none, "0" * 64, "embedding")


def test_an_encoder_without_its_run_needs_pictures_and_clusters_all_voxels(
    workdir, tmp_path
):
    bundle = workdir / "encoder"
    with pytest.raises(errors.MissingInputError, match="--images"):
        command(f"--encoder={bundle}", f"--out={tmp_path / 'x'}")
