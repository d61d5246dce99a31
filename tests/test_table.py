"""The reader of a lab's own data against what was planted, by slow loops."""

import hashlib
import math

import nibabel
import numpy as np
import pytest
import scipy.io
import scipy.stats
import zarr

from tests import table_files
from ubrain_jax import crowd
from ubrain_jax.datasets import table, table_health, table_subject


@pytest.fixture
def lab(tmp_path):
    return table_files.write(tmp_path)


def read(lab, **changes):
    """The one subject, and the report."""
    dataset = table.open_dataset(**{**lab.arguments, **changes})
    [subject] = list(dataset.subjects)
    return subject, "\n".join(dataset.report)


def stems(shown):
    return sorted({name.removesuffix(".png") for name in shown})


def assert_responses(subject, expected, prefix="lab-ann/"):
    rows = [expected[i.removeprefix(prefix) + ".png"] for i in subject.image_id]
    np.testing.assert_allclose(subject.responses, rows, rtol=1e-5, atol=1e-6)


def test_every_planted_value_is_read(lab):
    subject, report = read(lab)
    assert subject.name == "lab-ann"
    assert list(subject.image_id) == [f"lab-ann/{s}" for s in stems(lab.shown)]
    assert subject.responses.dtype == np.float32
    expected = table_files.expected_responses(lab.betas, lab.session, lab.shown)
    assert_responses(subject, expected)
    assert subject.repeats.tolist() == [
        lab.shown.count(f"{s}.png") for s in stems(lab.shown)
    ]
    np.testing.assert_array_equal(subject.position[:, 0], range(table_files.VOXELS))
    assert (subject.position[:, 1:] == -1).all()
    assert subject.roi.shape == (table_files.VOXELS, 0)
    assert subject.attrs["sessions"] == list(table_files.SESSIONS)
    assert "z-scored in 3 groups, by session" in report


def test_pictures_are_read_in_the_order_asked_for(lab):
    dataset = table.open_dataset(**lab.arguments)
    ids = ["lab-ann/b/0003", "lab-ann/a/0000"]
    for picture, seed in zip(dataset.read_images(ids), (3, 0), strict=True):
        noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
        np.testing.assert_array_equal(picture, noise)


def test_a_store_is_written_and_read_back(lab, tmp_path):
    path = str(tmp_path / "own.zarr")
    crowd.write(path, table.open_dataset(**lab.arguments), image_px=28)
    stored = crowd.open_crowd((path,))
    subject, _ = read(lab)
    rows = np.arange(len(subject.image_id))
    np.testing.assert_array_equal(
        crowd.read_responses(stored.subjects[0], rows), subject.responses
    )
    files = {s["file"]: s for s in stored.attrs[0]["sources"]}
    digest = hashlib.sha256((tmp_path / "betas.npy").read_bytes()).hexdigest()
    assert files["betas.npy"]["sha256"] == digest
    assert set(files) == {"betas.npy", "trials.csv"}
