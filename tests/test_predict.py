"""The command that writes predictions, as a process, and its page."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import nibabel as nib
import numpy as np
import pytest
import xarray
from PIL import Image

from ubrain_jax import errors, experiments, export, predict, sharding, universal
from ubrain_jax.model import bundle, encoder

ROOT = pathlib.Path(__file__).parent.parent
GRID, AFFINE = (5, 7, 3), [[-2.0, 0, 0, 9], [0, 1.5, 0, -4], [0, 0, 3, 7], [0, 0, 0, 1]]
NAMES = ["a.png", "b.png", "c.png"]


def make_subject(name, position, **attrs):
    rng = np.random.default_rng(len(name))
    count = len(position)
    return bundle.Subject(
        name,
        rng.standard_normal((count, 8)).astype(np.float32),
        np.asarray(position, np.int32),
        np.arange(count)[:, None] % 2 == np.arange(2),
        ("V1v", "FFA-1"),
        np.linspace(0.1, 1, count).astype(np.float32),
        attrs,
        {},
    )


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """A folder with an encoder of two subjects that nobody trained, and pictures."""
    root = tmp_path_factory.mktemp("predict")
    settings = tiny(data={"crowd": ("t.zarr",), "stripes": 4})
    network = experiments.load_network(settings.backbone)
    mesh = sharding.make_mesh(
        None, None, stripes=4, batch_images=1, devices=jax.devices()[:1]
    )
    parts = encoder.build(settings, network.backbone, 4, mesh)
    shared = {k: v for k, v in parts.trainable.items() if k != "table"}
    rng = np.random.default_rng(0)
    grid = np.argwhere(rng.random(GRID) < 0.3)
    vertices = [[0, 163841, -1], [0, 4, -1], [1, 4, -1], [1, 99, -1], [1, 7, -1]]
    trained = bundle.Bundle(
        settings,
        jax.tree.map(np.asarray, shared),
        (
            make_subject("vol", grid, grid=list(GRID), affine=AFFINE),
            make_subject("surf", vertices, space="fsaverage"),
            make_subject("none", [[0, -1, -1]], space="column of the betas"),
        ),
        ("vol", "surf", "none"),
        export.backbone_of(network.provenance, settings),
        None,
        {},
    )
    bundle.write(root / "enc", trained)
    (root / "pictures").mkdir()
    for name in NAMES:
        pixels = rng.integers(0, 256, (30, 34, 3), np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / name)
    return root


@pytest.fixture(scope="module")
def enc(place):
    return universal.UniversalEncoder.load(place / "enc", devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def expected(place, enc):
    """Predictions of both subjects, by the Python interface."""
    pictures = place / "pictures"
    return {s: enc.predict(pictures, subject=s).values for s in ("vol", "surf")}


def run(place, *arguments):
    """The command with the flags that are not given; its exit code and output."""
    given = {a.split("=")[0] for a in arguments}
    usual = ["--encoder=enc", "--subject=vol", "--images=pictures", "--out=p.npy"]
    usual = [a for a in usual if a.split("=")[0] not in given]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "ubrain_jax.predict", *usual, *arguments],
        cwd=place,
        env={**environment, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = [x for x in done.stderr.splitlines() if "cpu_aot_loader" not in x]  # XLA
    return done.returncode, done.stdout, "\n".join(said)


@pytest.mark.slow
def test_a_region_of_a_volume_comes_as_nifti(place, expected):
    code, out, err = run(place, "--roi=FFA-1", "--out=new/p.nii.gz")
    assert (code, err) == (0, "")
    assert out.splitlines()[1:] == ["wrote new/p.nii.gz", "wrote new/p.json"]
    data = nib.load(place / "new/p.nii.gz").get_fdata(dtype=np.float32)
    enc = bundle.read(place / "enc")
    [position] = [s.position[1::2] for s in enc.subjects if s.name == "vol"]
    values = expected["vol"][:, 1::2]
    found = data[tuple(position.T)].T
    np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6)
    assert np.isfinite(data).sum() == values.size
    told = json.loads((place / "new/p.json").read_text())
    assert (told["Images"], told["Regions"]) == (NAMES, ["FFA-1"])


@pytest.fixture(scope="module")
def written(place, enc):
    """What the page's examples open."""
    for subject, names in {
        "vol": ["subj01.nii.gz"],
        "surf": ["subj02.func.gii", "subj02.zarr", "subj02.mgz"],
    }.items():
        for name in names:
            out, again = place / name, name.endswith(".mgz")  # the same sidecar
            predict.to_file(
                enc, place / "pictures", out, subject=subject, overwrite=again
            )
    return place


def test_the_examples_of_the_page_run(written, expected):
    page = (ROOT / "docs/predict.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    printed = []
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block],
            cwd=written,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        printed.append(done.stdout)
    count = expected["vol"].shape[1]
    assert printed == [f"(5, 7, 3, 3) {count} a.png\n", "True\nTrue\n"]


@pytest.mark.parametrize("roi", [(), ("FFA-1",)])
def test_zarr_opens_as_what_predict_returns(place, enc, tmp_path, roi):
    out, pictures = tmp_path / "p.zarr", place / "pictures"
    predict.to_file(enc, pictures, out, subject="surf", roi=roi)
    wanted = enc.predict(pictures, subject="surf", roi=list(roi) or None)
    with xarray.open_zarr(out) as table:
        found = table.response.load()
    assert found.name == wanted.name
    xarray.testing.assert_equal(found, wanted)
    assert set(found.coords) == set(wanted.coords)


def test_the_page_names_every_flag_and_ending(place):
    page = (ROOT / "docs/predict.md").read_text(encoding="utf-8")
    code, out, _ = run(place, "--help")
    assert code == 1  # as absl has it
    own = out.split("flags:")[1]
    for flag in re.findall(r"^  --(?:\[no\])?(\w+):", own, re.MULTILINE):
        assert f"--{flag}" in page, flag
    for ending in predict.brain.ENDINGS:
        assert f"`{ending}`" in page, ending


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--out=p.txt"], 78, r"error: p\.txt: another ending; expected .*\.func\.gii"),
        (["--encoder=absent"], 66, "error: absent: no such folder"),
        (["--ruo=V1v"], 64, "error: .*ruo"),
    ],
)
def test_bad_flags_end_with_one_line_and_a_code(place, arguments, code, message):
    before = sorted(place.rglob("*"))
    found, out, err = run(place, *arguments)
    assert (found, out) == (code, "")
    assert re.fullmatch(message + ".*", err), err
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("changed", "code", "message"),
    [
        ({"roi": ["V1"]}, 78, "roi: vol has no region 'V1'.*V1v"),
        ({"subject": "voll"}, 78, "no subject 'voll'.*Did you mean vol"),
        ({"images": "absent"}, 66, "absent: no such file"),
        ({"out": "p.func.gii"}, 78, "surface is asked for.*in a volume"),
        ({"subject": "none", "out": "p.nii"}, 65, "no grid and no vertices"),
        ({"out": "enc/encoder.json/p.npy"}, 73, "is no folder"),
        ({"out": "enc"}, 78, "no ending"),
    ],
)
def test_what_cannot_be_is_refused_before_computing(
    place, enc, monkeypatch, changed, code, message
):
    monkeypatch.setattr(enc, "_ready", lambda: pytest.fail("computed"))
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    usual = {"images": "pictures", "out": "p.npy", "subject": "vol", **changed}
    with pytest.raises(errors.InputError, match=message) as caught:
        predict.to_file(enc, **usual)
    assert caught.value.exit_code == code
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("ending", ["npy", "zarr", "nii.gz"])
def test_a_picture_that_cannot_be_read_leaves_nothing(place, enc, tmp_path, ending):
    (tmp_path / "a.png").write_bytes((place / "pictures/a.png").read_bytes())
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(errors.InputError, match=r"b\.png"):
        predict.to_file(enc, tmp_path, tmp_path / f"out/p.{ending}", subject="vol")
    assert not list((tmp_path / "out").iterdir())


def test_pictures_that_change_while_they_are_read_are_refused():
    block = universal.Block(("a", "c"), np.zeros((2, 4), np.float32))
    [(rows, values)] = predict.in_rows(iter([block]), ("a", "c"))
    assert (rows, values.shape) == (slice(0, 2), (2, 4))
    with pytest.raises(errors.InputError, match="a, c where a, b was listed"):
        list(predict.in_rows(iter([block]), ("a", "b")))
