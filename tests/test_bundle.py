"""A subject's file: whole, of one encoder, and refused by name otherwise."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from ubrain_jax import config, errors
from ubrain_jax.model import attached, bundle


@pytest.fixture
def subject():
    rng = np.random.default_rng(0)
    return bundle.Subject(
        "nsd-subj01",
        rng.standard_normal((7, 4)).astype(np.float32),
        rng.integers(0, 9, (7, 3)).astype(np.int32),
        rng.random((7, 2)) < 0.5,
        ("V1v", "V1d"),
        np.array([0.1, np.nan, 0.3, 1, 2, 3, 4], np.float32),
        {"dataset": "Natural Scenes Dataset"},
        {"step": 3, "asked": {"seed": 1}},
    )


def test_file_comes_back_bit_for_bit(subject, tmp_path):
    path = tmp_path / "subjects" / "a.safetensors"
    bundle.write_subject(path, subject, "e" * 64)
    read = bundle.read_subject(path, "e" * 64)
    for ours, theirs in zip(subject, read, strict=True):
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
        else:
            assert ours == theirs
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.safetensors"]


def test_dropped_tokens_are_part_of_the_hash_but_for_the_default():
    """The hash of files that are older than the choice stays what it was."""
    shared = {"head": {"a": np.arange(3.0)}}
    backbone = config.Backbone(keep_cls=True)
    given = config.Experiment(backbone=backbone)
    choices = {
        "backbone": {"x": "1"},
        "taps": backbone.taps,
        "image_px": 224,
        "keep_cls": True,
        "adapter": {"kind": "lora", "rank": 16, "alpha": 16.0},
        "head": [256, 128, 4],
        "shared": attached.tree_sha256(shared),
    }
    text = json.dumps(choices, sort_keys=True).encode()
    found = bundle.encoder_sha256(given, shared, {"x": "1"})
    assert found == hashlib.sha256(text).hexdigest()
    other = dataclasses.replace(backbone, drop="last_patches")
    other = dataclasses.replace(given, backbone=other)
    assert bundle.encoder_sha256(other, shared, {"x": "1"}) != found


def test_another_encoder_is_refused(subject, tmp_path):
    bundle.write_subject(tmp_path / "a", subject, "e" * 64)
    with pytest.raises(errors.InputError, match=r"fitted with encoder eeee.*ffff"):
        bundle.read_subject(tmp_path / "a", "f" * 64)


def test_every_changed_byte_is_refused(subject, tmp_path):
    bundle.write_subject(tmp_path / "a", subject, "e" * 64)
    content = (tmp_path / "a").read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 4
        (tmp_path / "b").write_bytes(changed)
        with pytest.raises(errors.InputError, match=str(tmp_path / "b")):
            bundle.read_subject(tmp_path / "b", "e" * 64)


def rewrite(path, *, drop=(), header=None, **tensors):
    """The file with other tensors or header, its own hash made right again."""
    with safetensors.safe_open(path, "np") as file:
        old = file.metadata()
        kept = {k: file.get_tensor(k) for k in file.keys() if k not in drop}
    kept |= tensors
    old |= header or {}
    old["sha256"] = attached._content(kept, old["subject"])
    path.write_bytes(safetensors.numpy.save(kept, old))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": ["roi"]}, "tensors"),
        ({"more": np.zeros(3)}, "tensors.*more"),
        ({"ncsnr": np.zeros(6, np.float32)}, "tensors"),
        ({"embedding": np.zeros((7, 4))}, "tensors.*float64"),
        ({"embedding": np.full((7, 4), np.nan, np.float32)}, "not finite"),
        ({"embedding": np.zeros((7, 4, 1), np.float32)}, "tensors"),
        ({"header": {"version": "2"}}, "version.*2"),
        ({"header": {"format": "other"}}, "format.*other"),
        ({"header": {"subject": "{"}}, "subject"),
        ({"header": {"subject": "{}"}}, "subject"),
    ],
)
def test_wrong_content_is_refused(subject, tmp_path, changes, message):
    path = tmp_path / "a"
    bundle.write_subject(path, subject, "e" * 64)
    rewrite(path, **changes)
    with pytest.raises(errors.InputError, match=message):
        bundle.read_subject(path, "e" * 64)


def test_absent_and_foreign_files_are_refused(subject, tmp_path):
    with pytest.raises(errors.MissingInputError, match="no such file"):
        bundle.read_subject(tmp_path / "a", "e")
    (tmp_path / "a").write_bytes(b"\x80\x04pickle")
    with pytest.raises(errors.InputError, match="cannot be read"):
        bundle.read_subject(tmp_path / "a", "e")
    (tmp_path / "dir").write_text("")
    with pytest.raises(errors.OutputError, match="cannot be written"):
        bundle.write_subject(tmp_path / "dir" / "a", subject, "e")


def test_hash_of_an_encoder_tells_weights_and_choices_but_not_precision():
    shared = {"head": {"a": np.arange(3.0)}, "adapter": {"b": np.zeros(2)}}
    base = config.Experiment()

    def digest(experiment=base, tree=shared, backbone=None):
        return bundle.encoder_sha256(experiment, tree, backbone or {"f": "1"})

    def changed(section, **values):
        old = getattr(base, section)
        return base.__class__(**{section: old.__class__(**values)})

    assert digest() == digest(changed("backbone", dtype="float32"))
    assert digest() == digest(changed("train", seed=4))
    others = {
        digest(),
        digest(tree={**shared, "head": {"a": np.array([0, 1, 2.5])}}),
        digest(tree={**shared, "head": {"c": np.arange(3.0)}}),
        digest(tree={**shared, "head": {"a": np.arange(3.0, dtype=np.float32)}}),
        digest(backbone={"f": "2"}),
        digest(changed("backbone", taps=(1, 2))),
        digest(changed("adapter", alpha=8.0)),
        digest(changed("head", embed_dim=128)),
        digest(changed("head", position=False)),
        digest(changed("head", functional="shared")),
    }
    assert len(others) == 10
