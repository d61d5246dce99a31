"""A bundle's folder: whole, unchanged, and nothing outside it."""

import hashlib
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from tests import bundles
from ubrain_jax import errors
from ubrain_jax.model import bundle, card, encoder


@pytest.fixture
def folder(tiny_dict, tmp_path) -> pathlib.Path:
    path = tmp_path / "bundle"
    made = bundles.make(tiny_dict)
    bundle.write(path, made, card.text(made))
    return path


def reseal(path, change) -> None:
    """Changes what encoder.json tells and makes all its hashes right again."""
    told = json.loads((path / "encoder.json").read_text())
    told.pop("sha256")
    for name, entry in told["files"].items():
        if (path / name).is_file():
            content = (path / name).read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            entry.update(bytes=len(content), sha256=digest)
    change(told)
    (path / "encoder.json").write_text(bundle._sealed_text(told))


def test_what_was_written_is_read_bit_for_bit(tiny_dict, folder):
    ours, theirs = bundles.make(tiny_dict), bundle.read(folder)
    for a, b in zip(ours.subjects, theirs.subjects, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    named = encoder.by_name(theirs.shared)
    assert [s.name for s in theirs.subjects] == ["nsd-subj01", "lab-ann"]
    for name, value in encoder.by_name(ours.shared).items():
        np.testing.assert_array_equal(value, named[name])
    assert theirs.sha256 == ours.sha256
    assert theirs.backbone == ours.backbone
    assert theirs.trained_with == ("nsd-subj01",)
    assert (theirs.seen, theirs.provenance) == (ours.seen, ours.provenance)
    assert theirs.experiment.head == ours.experiment.head
    assert theirs.experiment.backbone.weights == "a/b"


@pytest.mark.parametrize(
    "name",
    [
        "encoder.safetensors",
        "encoder.json",
        "seen.json",
        "subjects/nsd-subj01.safetensors",
        "subjects/lab-ann.safetensors",
    ],
)
def test_every_changed_byte_is_refused_by_the_files_name(folder, name):
    path = folder / name
    content = path.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 60)):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(errors.InputError, match=pathlib.Path(name).stem):
            bundle.read(folder)
    path.write_bytes(content[:-1])
    with pytest.raises(errors.InputError, match=pathlib.Path(name).stem):
        bundle.read(folder)
    path.unlink()
    with pytest.raises(errors.InputError, match=pathlib.Path(name).stem):
        bundle.read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head/functional"), "head/functional is missing"),
        (lambda t: t.update(extra=np.zeros(2, np.float32)), "extra is too much"),
        (
            lambda t: t.update({"adapter/a": t["adapter/a"][:1]}),
            r"adapter/a is float32 \(1, 32, 2\), not float32 \(2, 32, 2\)",
        ),
        (
            lambda t: t.update({"head/fc1_bias": t["head/fc1_bias"].astype("float64")}),
            "head/fc1_bias is float64",
        ),
        (
            lambda t: t.update({"head/fc1_bias": t["head/fc1_bias"] * np.nan}),
            "head/fc1_bias has values that are not finite",
        ),
        (
            lambda t: t.update({"head/fc1_bias": t["head/fc1_bias"] * 2}),
            "encoder_sha256",
        ),
    ],
)
def test_tensors_must_be_those_of_the_settings_though_hashes_agree(
    folder, change, message
):
    path = folder / "encoder.safetensors"
    tensors = dict(safetensors.numpy.load_file(path))
    change(tensors)
    path.write_bytes(safetensors.numpy.save(tensors, {"format": "ubrain-encoder"}))
    reseal(folder, lambda told: None)
    with pytest.raises(errors.InputError, match=message):
        bundle.read(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(version=2), "version.*2.*ubrain_jax that wrote it"),
        (lambda t: t.update(format="zarr"), "zarr"),
        (lambda t: t["files"].pop("seen.json"), "subjects|files|seen"),
        (
            lambda t: t["subjects"].update(
                {"../../x": t["subjects"].pop("nsd-subj01")}
            ),
            r"\.\./\.\./x",
        ),
        (
            lambda t: t["subjects"]["lab-ann"].update(file="../lab-ann.safetensors"),
            r"\.\./lab-ann",
        ),
        (
            lambda t: t["files"].update({"/etc/passwd": {"bytes": 1, "sha256": "0"}}),
            "/etc/passwd",
        ),
        (lambda t: t.update(trained_with=["nobody"]), "nobody"),
        (lambda t: t["experiment"]["head"].update(heads=2), "head.heads is unknown"),
        (lambda t: t["backbone"].pop("sha256"), "sha256"),
    ],
)
def test_descriptions_that_say_something_else_are_refused(folder, change, message):
    reseal(folder, change)
    if message == "subjects|files|seen":  # a bundle need not know what it has seen
        assert bundle.read(folder).seen is None
        return
    with pytest.raises(errors.InputError, match=message):
        bundle.read(folder)


def test_links_out_of_the_folder_are_refused_unless_they_stay_within(folder, tmp_path):
    blob = tmp_path / "blobs" / "1"
    blob.parent.mkdir()
    shutil.move(folder / "encoder.safetensors", blob)
    os.symlink(blob, folder / "encoder.safetensors")
    with pytest.raises(errors.InputError, match=r"encoder\.safetensors: a link to"):
        bundle.read(folder)
    assert bundle.read(folder, within=tmp_path).provenance == {"step": 3}


def test_only_a_bundle_is_replaced_and_what_is_there_survives_a_fault(
    tiny_dict, folder, tmp_path
):
    made = bundles.make(tiny_dict)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(errors.OutputError, match="exists and is no bundle"):
        bundle.write(tmp_path / "mine", made)
    twice = made._replace(subjects=made.subjects * 2)
    with pytest.raises(errors.InputError, match="distinct names"):
        bundle.write(folder, twice)
    assert bundle.read(folder).provenance == {"step": 3}
    bundle.write(folder, made._replace(provenance={"step": 4}, seen=None))
    assert bundle.read(folder).provenance == {"step": 4}
    assert not (folder / "seen.json").exists()


def test_weights_of_a_wider_type_are_written_in_float32_and_read(tiny_dict, tmp_path):
    made = bundles.make(tiny_dict)
    wide = {
        k: {n: a.astype("float64") for n, a in v.items()}
        for k, v in made.shared.items()
    }
    bundle.write(tmp_path / "a", made._replace(shared=wide))
    assert bundle.read(tmp_path / "a").sha256 == made.sha256


def test_what_is_no_bundle_is_said_to_be_none(tmp_path):
    with pytest.raises(errors.MissingInputError, match=r"encoder\.json: no such file"):
        bundle.read(tmp_path)


def test_the_card_tells_data_accuracy_and_licences(tiny_dict):
    scores = {
        "nsd-subj01": {
            "num_voxels": 7,
            "pearson": {"median": 0.5, "p25": 0.4, "p75": 0.6},
            "noise_normalised": {"median": None},
            "retrieval": {"top1": 0.25, "pool": 1000},
            "roi": {"V1v": {"num_voxels": 3, "pearson": {"median": 0.7}}},
        }
    }
    made = bundles.make(
        tiny_dict, provenance={"metrics": scores, "warnings": ["Beware."]}
    )
    text = card.text(made)
    assert text.startswith("---\nlibrary_name: ")
    assert 'base_model: "a/b"' in text
    assert "| nsd-subj01 | 7 | 0.500 (0.400, 0.600) | - (-, -) | 0.250 | 1000 |" in text
    assert "| nsd-subj01 / V1v | 3 | 0.700 (-, -) |" in text
    assert "> **Note.** Beware." in text
    assert "Natural Scenes Dataset" in text
    assert "fitted later" in text
    assert made.sha256 in text
