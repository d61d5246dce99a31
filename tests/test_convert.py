"""The command that makes a bundle of released weights: what it writes and refuses."""

import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

from tests import released_files, torch_files
from ubrain_jax import convert, crowd, errors, universal
from ubrain_jax.backbone import weights
from ubrain_jax.model import (
    attached,
    bundle,
    encoder,
    released,
    released_names,
    released_numpy,
)


class Files(NamedTuple):
    """A tiny encoder as published."""

    folder: pathlib.Path
    vit: str
    whole: str
    base: str
    table: str


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("released")
    own = {"voxel_embed": released_files.table()}
    return Files(
        folder,
        str(released_files.write_backbone(folder / "vit")),
        str(released_files.write_module(folder / "whole.pth")),
        str(released_files.write_export(folder / "base.pt")),
        str(torch_files.write(folder / "table.pt", own)),
    )


def refused(kind, *arguments, **options) -> str:
    with pytest.raises(kind) as caught:
        convert.convert(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize("drop", released.DROPS)
def test_a_bundle_predicts_as_the_released_code(files, tmp_path, drop, capsys):
    out = str(tmp_path / "out")
    convert.convert(files.whole, files.vit, out, drop=drop)
    read = bundle.read(out)
    [subject] = read.subjects
    np.testing.assert_array_equal(subject.embedding, released_files.table())
    network, _ = weights.load(files.vit, 3, 28)
    rng = np.random.default_rng(5)
    pictures = rng.integers(0, 256, (2, 28, 28, 3)).astype(np.uint8)
    ours = convert.predict(
        read.experiment, network, read.shared, pictures, subject.embedding
    )

    def theirs(drop, alpha=0.2, table=subject.embedding):
        return released_numpy.predict(
            released_files.weights(),
            released_files.backbone(),
            pictures,
            table,
            taps=(1, 3),
            alpha=alpha,
            drop=drop,
        )

    scale = theirs(drop).std()
    assert np.abs(ours - theirs(drop)).max() < 1e-5 * scale
    # What the comparison must be able to see: tokens, adapter, order of voxels.
    [other] = set(released.DROPS) - {drop}
    for changed in (theirs(other), theirs(drop, 1e-9), theirs(drop)[:, ::-1]):
        assert np.abs(ours - changed).max() > 1e-2 * scale
    told = capsys.readouterr().out
    assert f"drop: {drop}" in told
    assert "self-check: 2 pictures, 11 voxels" in told
    assert "the file's own equals" in told
    assert "layer_embed" in told


def test_the_bundle_loads_and_predicts_like_any_encoder(files, tmp_path):
    convert.convert(files.whole, files.vit, str(tmp_path / "out"))
    loaded = universal.UniversalEncoder.load(tmp_path / "out", backbone=files.vit)
    rng = np.random.default_rng(6)
    pictures = rng.integers(0, 256, (3, 28, 28, 3)).astype(np.uint8)
    found = np.asarray(loaded.predict(pictures, subject="all"))
    wanted = released_numpy.predict(
        released_files.weights(),
        released_files.backbone(),
        pictures,
        released_files.table(),
        taps=(1, 3),
        alpha=0.2,
    )
    assert np.abs(found - wanted).max() < 1e-5 * wanted.std()


def test_both_forms_make_the_same_bundle_but_for_where_it_is_from(files, tmp_path):
    a = convert.convert(files.whole, files.vit, str(tmp_path / "a"))
    b = convert.convert(
        files.base, files.vit, str(tmp_path / "b"), voxel_embed=files.table
    )
    assert attached.tree_sha256(a.shared) == attached.tree_sha256(b.shared)
    assert a.subjects[0].name == b.subjects[0].name == "all"
    np.testing.assert_array_equal(a.subjects[0].embedding, b.subjects[0].embedding)
    assert a.trained_with == b.trained_with == ("all",)
    assert set(b.provenance["files"]) == {"base.pt", "table.pt"}
    assert a.backbone.source == "vit.safetensors"
    assert not a.backbone.random
    read = bundle.read(tmp_path / "b")
    [subject] = read.subjects
    assert (subject.position == -1).all()
    assert np.isnan(subject.ncsnr).all()
    assert subject.roi.shape == (11, 0)
    assert subject.attrs["dataset"] == "unknown"
    assert read.seen is None
    assert read.provenance["self_check"]["difference"] < 1e-5
    assert "no licence" in (tmp_path / "b" / "README.md").read_text()


def test_an_encoder_without_a_table_has_no_subjects(files, tmp_path):
    convert.convert(files.base, files.vit, str(tmp_path / "out"))
    read = bundle.read(tmp_path / "out")
    assert read.subjects == ()
    assert read.trained_with == ()


def test_a_fitted_subject_did_not_train_the_encoder(files, tmp_path, capsys):
    own = {"voxel_embed": released_files.table(seed=9), "base": "base.pt"}
    fitted = torch_files.write(tmp_path / "me.pt", own)
    made = convert.convert(
        files.whole,
        files.vit,
        str(tmp_path / "out"),
        voxel_embed=str(fitted),
        subjects="me:11",
    )
    assert made.trained_with == ()
    assert made.subjects[0].name == "me"
    np.testing.assert_array_equal(made.subjects[0].embedding, own["voxel_embed"])
    told = capsys.readouterr().out
    assert "(11 rows) is not used" in told
    assert "fitted to the base 'base.pt'" in told


def test_a_table_of_nsd_is_split_by_its_subjects(files, tmp_path):
    table = released_files.table(voxels=315_997)
    path = torch_files.write(tmp_path / "nsd.pt", {"voxel_embed": table})
    made = convert.convert(
        files.base, files.vit, str(tmp_path / "out"), voxel_embed=str(path)
    )
    counts = [len(s.embedding) for s in made.subjects]
    assert [s.name for s in made.subjects] == [f"nsd-subj0{i}" for i in range(1, 9)]
    assert counts == [39548] * 5 + [39198, 39548, 39511]
    joined = np.concatenate([s.embedding for s in made.subjects])
    np.testing.assert_array_equal(joined, table)
    attrs = {s.attrs["space"] for s in made.subjects}
    assert attrs == {"fsaverage (vertex of each row unknown)"}
    assert made.provenance["self_check"]["num_voxels"] == 1000


def test_a_store_tells_what_the_voxels_are(files, tmp_path, store):
    table = released_files.table(voxels=70)
    path = torch_files.write(tmp_path / "t.pt", {"voxel_embed": table})

    def run(subjects):
        return convert.convert(
            files.base,
            files.vit,
            str(tmp_path / "out"),
            voxel_embed=str(path),
            subjects=subjects,
            store=store,
        )

    made = run("other:10,t-subj02:23,t-subj01:37")
    names = {s.name: s for s in crowd.open_crowd((store,)).subjects}
    for subject in made.subjects[1:]:
        known = names[subject.name]
        np.testing.assert_array_equal(subject.position, known.position)
        np.testing.assert_array_equal(subject.roi, known.roi)
        np.testing.assert_array_equal(subject.ncsnr, known.ncsnr)
        assert subject.roi_names == known.roi_names
        assert subject.attrs["simulated"]
    np.testing.assert_array_equal(made.subjects[1].embedding, table[10:33])
    assert (made.subjects[0].position == -1).all()
    with pytest.raises(errors.InputError, match="37 voxels there, 38 here"):
        run("t-subj01:38,t-subj02:32")
    with pytest.raises(errors.InputError, match="only t-subj01, t-subj02"):
        run("a:38,b:32")


def test_another_backbone_is_refused(files, tmp_path):
    out = str(tmp_path / "out")

    def refusal(content, source):
        path = released_files.write_backbone(tmp_path / "other", content)
        return refused(errors.InputError, source, str(path), out)

    near = released_files.backbone()
    near["blocks.2.mlp.fc1.weight"][3, 4] *= 1.001
    found = refusal(near, files.whole)
    assert "blocks.2.mlp.fc1.weight differs by" in found
    assert "; and" not in found
    far = refusal(released_files.backbone(seed=8), files.whole)
    assert "differs by" in far
    assert "more" in far
    for changes, text in (
        ({"width": 128}, "128 width"),
        ({"depth": 5}, "5 blocks"),
        ({"registers": 0}, "0 register tokens"),
    ):
        found = refusal(released_files.backbone(**changes), files.base)
        assert text in found
        assert "facebook/dinov2-with-registers-large" in found
    own = released_files.backbone() | {"extra": np.zeros(2, np.float32)}
    del own["blocks.1.ls1.gamma"]
    path = released_files.write_module(tmp_path / "odd.pth", own=own)
    found = refused(errors.InputError, str(path), files.vit, out)
    assert "blocks.1.ls1.gamma is missing; extra is unknown" in found
    assert not pathlib.Path(out).exists()


@pytest.mark.parametrize("fault", ["taps", "turned", "scale"])
def test_a_conversion_at_fault_writes_nothing(files, tmp_path, monkeypatch, fault):
    right = released_names.trainable

    def wrong(tensors, settings):
        tree = right(tensors, settings)
        head = dict(tree["head"])
        if fault == "taps":
            head["fc1_bias"] = head["fc1_bias"][::-1]
        elif fault == "turned":
            head["query_kernel"] = head["query_kernel"].swapaxes(1, 2)
        else:
            head["norm_scale"] = head["norm_scale"] * 1.01
        return {**tree, "head": head}

    monkeypatch.setattr(released_names, "trainable", wrong)
    out = tmp_path / "out"
    found = refused(errors.InputError, files.whole, files.vit, str(out))
    assert "predictions that differ by" in found
    assert not out.exists()


def test_weights_that_predict_nothing_are_refused(files, tmp_path):
    content = released_files.weights()
    content["feat_embed"][:] = 0
    path = released_files.write_export(tmp_path / "flat.pt", content)
    out = tmp_path / "out"
    assert "never trained" in refused(errors.InputError, str(path), files.vit, str(out))
    assert not out.exists()


def test_a_folder_of_something_else_is_not_replaced(files, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    found = refused(errors.OutputError, files.whole, files.vit, str(tmp_path))
    assert "exists and is no bundle" in found
    out = tmp_path / "out"
    for _ in range(2):  # a bundle is
        convert.convert(files.base, files.vit, str(out))
    assert encoder.by_name(bundle.read(out).shared)


def command(*flags):
    return subprocess.run(
        [sys.executable, "-m", "ubrain_jax.convert", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=120,
        check=False,
    )


def test_the_command_writes_a_bundle(files, tmp_path):
    done = command(
        f"--released={files.base}",
        f"--voxel_embed={files.table}",
        f"--backbone={files.vit}",
        "--subjects=a:5,b:6",
        "--drop=last_patches",
        f"--out={tmp_path / 'out'}",
    )
    assert done.returncode == 0, done.stderr
    assert "subjects: a 5, b 6 voxels" in done.stdout
    read = bundle.read(tmp_path / "out")
    assert [s.name for s in read.subjects] == ["a", "b"]
    assert read.experiment.backbone.drop == "last_patches"


@pytest.mark.parametrize(
    ("flags", "code", "found"),
    [
        (["--drop=patches"], 64, "should be one of"),
        (["--backbone="], 78, "--backbone: not given"),
        (["--released=absent.pth"], 66, "no such file"),
        (["--subjects=a:5"], 78, "5 rows in 1 subjects"),
        (["--released={cut}"], 65, "cut short"),
    ],
)
def test_the_command_refuses_with_one_line_and_a_code(
    files, tmp_path, flags, code, found
):
    cut = tmp_path / "cut.pth"
    cut.write_bytes(pathlib.Path(files.whole).read_bytes()[:5000])
    given = {
        "--released": files.whole,
        "--backbone": files.vit,
        "--out": str(tmp_path / "out"),
    }
    for flag in flags:
        name, _, value = flag.partition("=")
        given[name] = value.format(cut=cut)
    done = command(*(f"{k}={v}" for k, v in given.items()))
    assert done.returncode == code
    assert found in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
