"""Similar voxels from Python and as a command, and its page."""

import csv
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from tests import bundles
from ubrain_jax import (
    crowd,
    errors,
    experiments,
    export,
    sharding,
    similar,
    universal,
)
from ubrain_jax.model import bundle, encoder

ROOT = pathlib.Path(__file__).parent.parent


def make_subject(name, count, regions=("V1v", "PPA"), seed=0, **attrs):
    rng = np.random.default_rng(seed)
    return bundle.Subject(
        name,
        rng.standard_normal((count, 8)).astype(np.float32),
        np.stack([np.arange(count), np.full(count, 2), np.full(count, 5)], 1),
        np.arange(count)[:, None] % 2 == np.arange(len(regions)),
        regions,
        np.full(count, np.nan, np.float32),
        attrs,
        {},
    )


@pytest.fixture(scope="module")
def folder(tiny_dict, tmp_path_factory):
    """An encoder of three subjects; those of b are a's, turned round and scaled."""
    root = tmp_path_factory.mktemp("similar")
    a = make_subject("ann", 12, grid=[20, 9, 9])
    b = a._replace(
        name="bob",
        embedding=2 * a.embedding[::-1],
        roi=np.ones((12, 1), bool),
        roi_names=("<b>V1\x1b[2J</b>, =1+1",),
    )
    c = make_subject("cyd", 20, (), seed=1)
    c = c._replace(position=np.stack([np.zeros(20), np.arange(20), -np.ones(20)], 1))
    made = bundles.make(tiny_dict, subjects=(a, b, c), trained_with=("ann",))
    bundle.write(root / "enc", made)
    return root


@pytest.fixture(scope="module")
def enc(folder):
    return universal.UniversalEncoder.load(folder / "enc")


def test_the_same_voxel_of_another_brain_is_the_most_similar(enc):
    found = enc.similar("ann", voxel=3)
    assert found.sizes["neighbour"] == 10
    assert (found.subject.values[0], found.voxel.values[0]) == ("bob", 8)
    assert found.similarity.values[0] == pytest.approx(1, abs=1e-6)
    assert (np.diff(found.similarity) <= 0).all()
    assert "ann" not in found.subject
    np.testing.assert_array_equal(found.position[0], [8, 2, 5])
    by_place = enc.similar("ann", position=(3, 2, 5))
    np.testing.assert_array_equal(by_place.similarity, found.similarity)
    assert enc.similar("cyd", position=(0, 4), n=2).attrs["num_queried"] == 1


def test_a_region_stands_for_the_mean_of_its_unit_embeddings(enc):
    found = enc.similar("ann", roi="PPA", among=["cyd"], n=100)
    assert set(found.subject.values) == {"cyd"}
    assert found.sizes["neighbour"] == 20
    own, other = enc.subject("ann"), enc.subject("cyd").embedding.astype(float)
    inside = own.embedding[own.roi[:, 1]].astype(float)
    mean = (inside / np.linalg.norm(inside, axis=1)[:, None]).mean(0)
    cosine = other @ mean / np.linalg.norm(other, axis=1) / np.linalg.norm(mean)
    np.testing.assert_array_equal(found.voxel, np.argsort(-cosine))
    np.testing.assert_allclose(found.similarity, np.sort(cosine)[::-1], rtol=1e-5)
    both = enc.similar("ann", roi=["V1v", "PPA"], other_brains=False, n=100)
    assert set(both.subject.values) == {"bob", "cyd"}  # all of ann's were asked for


def test_the_own_brain_is_searched_where_that_is_asked(enc):
    found = enc.similar("ann", voxel=3, other_brains=False, among=["ann"], n=99)
    assert sorted(found.voxel.values.tolist()) == [k for k in range(12) if k != 3]
    assert found.regions.values[found.voxel.values == 1] == ["PPA"]


@pytest.mark.parametrize(
    ("subject", "asked", "message"),
    [
        ("an", {"voxel": 1}, "no subject 'an'.*Did you mean ann"),
        ("ann", {"voxel": 12}, r"voxel 12 is not there; expected 0\.\.11"),
        ("ann", {"voxel": -1}, "voxel -1"),
        ("ann", {"roi": "V1"}, "no region 'V1'.*V1v"),
        ("ann", {"position": (3, 2, 9)}, "voxel 3 at 3,2,5 is nearest, 4.0 voxels"),
        ("ann", {"voxel": 1, "among": ["bo"]}, "no subject 'bo'.*bob"),
        ("ann", {"voxel": 1, "among": ["ann"]}, "no voxel but ann's own"),
        ("ann", {"voxel": 1, "n": 0}, "n = 0"),
        ("ann", {}, "none of them, or several"),
        ("ann", {"voxel": 1, "roi": "V1v"}, "none of them, or several"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(enc, subject, asked, message):
    with pytest.raises(errors.ConfigError, match=message):
        enc.similar(subject, **asked)


def run(folder, *arguments):
    """The command as a process: exit code and output."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "ubrain_jax.similar", "--encoder=enc", *arguments],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_it(folder, enc):
    code, out, err = run(folder, "--subject=ann", "--voxel=3", "--out=t.csv", "--n=3")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == list(similar.HEAD)
    assert re.split(" {2,}", lines[1])[:5] == ["1", "bob", "8", "1.0000", "8,2,5"]
    assert "\x1b" not in out
    assert lines[-1] == "wrote t.csv"
    with (folder / "t.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    expected = similar.table(enc.similar("ann", voxel=3, n=3))
    assert rows == [list(row) for row in expected]
    before = (folder / "t.csv").read_bytes()
    code, out, err = run(folder, "--subject=ann", "--voxel=4", "--out=t.csv")
    assert (code, out) == (73, "")
    assert "it exists" in err
    assert (folder / "t.csv").read_bytes() == before


def test_bad_flags_end_with_one_line_and_a_code(folder):
    code, out, err = run(folder, "--subject=ann", "--position=1,x,2")
    assert (code, out) == (78, "")
    assert re.fullmatch("error: --position: 1,x,2; expected whole.*\n", err), err


def test_other_endings_and_names_that_are_taken_are_refused(folder):
    with pytest.raises(errors.ConfigError, match=r"t\.txt: another ending"):
        similar.check_out("t.txt", True)
    (folder / "old.csv").write_text("x")
    similar.check_out(folder / "old.csv", True)
    with pytest.raises(errors.OutputError, match="it exists"):
        similar.check_out(folder / "old.csv", False)


def test_the_page_names_every_flag(folder):
    page = (ROOT / "docs/similar.md").read_text(encoding="utf-8")
    own = run(folder, "--help")[1].split("flags:")[1]
    flags = re.findall(r"^  --(?:\[no\])?(\w+):", own, re.MULTILINE)
    assert len(flags) > 8
    for flag in flags:
        assert f"--{flag}" in page, flag


@pytest.fixture(scope="module")
def untrained(tiny, store, tmp_path_factory):
    """A folder with an encoder of the store's subjects that nobody trained."""
    root = tmp_path_factory.mktemp("page")
    settings = tiny()
    network = experiments.load_network(settings.backbone)
    mesh = sharding.make_mesh(
        None, None, stripes=4, batch_images=1, devices=jax.devices()[:1]
    )
    parts = encoder.build(settings, network.backbone, 4, mesh)
    shared = {k: v for k, v in parts.trainable.items() if k != "table"}
    subjects = tuple(
        make_subject(s.name, s.num_voxels, s.roi_names, seed=k)._replace(roi=s.roi)
        for k, s in enumerate(crowd.open_crowd([store]).subjects)
    )
    made = bundle.Bundle(
        settings,
        jax.tree.map(np.asarray, shared),
        subjects,
        tuple(s.name for s in subjects),
        export.backbone_of(network.provenance, settings),
        None,
        {},
    )
    bundle.write(root / "runs" / "nsd8", made)
    (root / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for k in range(20):
        pixels = rng.integers(0, 256, (30, 30, 3), np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / f"{k:02d}.png")
    return root


def test_the_examples_of_the_page_run(untrained, store, monkeypatch):
    page = (ROOT / "docs/similar.md").read_text(encoding="utf-8")
    similar_block, *blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = "\n".join([*blocks, similar_block])
    for theirs, ours in {
        "PPA": "first",
        "nsd.zarr": store,
        "nsd-subj01": "t-subj01",
        "nsd-subj05": "t-subj02",
    }.items():
        assert theirs in code
        code = code.replace(theirs, ours)
    monkeypatch.chdir(untrained)
    told = {}
    exec(code, told)  # noqa: S102  (our own page)
    assert set(told["found"].subject.values) == {"t-subj02"}
    assert told["apart"].order.shape == (20,)
    assert set(told["best"]) & set(told["worst"]) == set()
    num_test = told["truth"].num_subjects[:, 0]
    assert sorted(num_test)[-5:] == [0, 2, 2, 2, 2]
    assert 0 <= told["shared"] <= 1 or np.isnan(told["shared"])
    assert told["maps"].shape == (20, 1, 2, 2)
    assert (untrained / "map.png").is_file()
