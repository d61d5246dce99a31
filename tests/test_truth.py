"""Folders of simulated data: their mark, and whole or not at all."""

import json

import numpy as np
import pytest

from ubrain_jax import errors
from ubrain_jax.datasets import simulated, truth


def _fill(dataset):
    """A function that fills a folder as little as a simulator can."""
    return lambda root: truth.write_json(root, dataset, {"seed": 1}, [])


@pytest.mark.parametrize("dataset", ["nsd", "god", "vim1"])
def test_a_simulated_folder_and_its_files_are_known(tmp_path, dataset):
    truth.publish(tmp_path / "a", dataset, _fill(dataset), False)
    (tmp_path / "a/file.mat").write_bytes(b"x")
    for source in (tmp_path / "a", tmp_path / "a/file.mat", str(tmp_path / "a")):
        assert truth.dataset_of(source) == dataset
        assert simulated.is_simulated(source)
    content = json.loads((tmp_path / "a/truth/truth.json").read_text())
    assert content["settings"] == {"seed": 1}


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b'{"format": "ubrain-simulated"}', b"\xff\x00" * 200]
)
def test_other_folders_are_not(tmp_path, content):
    (tmp_path / "truth").mkdir()
    if content is not None:
        (tmp_path / "truth/truth.json").write_bytes(content)
    assert truth.dataset_of(tmp_path) is None
    assert not simulated.is_simulated(tmp_path / "absent.h5")
    assert not simulated.is_simulated(tmp_path / "absent" / "absent.h5")


def test_only_a_folder_of_the_same_kind_is_replaced(tmp_path):
    out = tmp_path / "a"
    truth.publish(out, "god", _fill("god"), False)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(errors.OutputError, match="it exists"):
        truth.publish(out, "god", _fill("god"), False)
    for other in ("nsd", "vim1"):
        with pytest.raises(errors.OutputError, match="Nothing was deleted"):
            truth.publish(out, other, _fill(other), True)
    assert (out / "mine.txt").read_text() == "mine"
    truth.publish(out, "god", _fill("god"), True)
    assert not (out / "mine.txt").exists()
    (out / "data.h5").write_bytes(b"x")
    with pytest.raises(errors.OutputError, match="Nothing was deleted"):
        truth.publish(out / "data.h5", "god", _fill("god"), True)
    assert (out / "data.h5").read_bytes() == b"x"
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "thesis.txt").write_text("five years")
    with pytest.raises(errors.OutputError, match="no simulated vim-1"):
        truth.publish(thesis, "vim1", _fill("vim1"), True)
    assert (thesis / "thesis.txt").read_text() == "five years"


def test_a_failure_leaves_nothing_behind(tmp_path):
    def fill(root):
        (root / "half").write_text("x")
        raise OSError(28, "No space left on device")

    with pytest.raises(errors.OutputError, match="No space left"):
        truth.publish(tmp_path / "a", "god", fill, False)
    assert list(tmp_path.iterdir()) == []


def test_arrays_come_back(tmp_path):
    truth.write_arrays(tmp_path, "s", a=np.arange(3), b=np.array(["x"]))
    back = truth.read(tmp_path, "s")
    assert sorted(back) == ["a", "b"]
    assert back["a"].tolist() == [0, 1, 2]


def test_noise_is_one_for_each_subject_by_default():
    assert truth.noise_factors(None, 3) == (1, 1, 1)
    assert truth.noise_factors([1, "2.5"], 2) == (1, 2.5)
    for wrong in ([], [1], [1, 0.05], [1, 11], [1, float("nan")]):
        with pytest.raises(errors.ConfigError, match="2 factors"):
            truth.noise_factors(wrong, 2)


def test_the_same_mat_file_has_the_same_bytes(tmp_path):
    for name in ("a.mat", "b.mat"):
        truth.write_mat(tmp_path / name, {"x": np.arange(4.0)})
    first, second = ((tmp_path / n).read_bytes() for n in ("a.mat", "b.mat"))
    assert first == second
    assert b"Created on" not in first[:128]
