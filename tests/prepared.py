"""Runs the command `prepare` for tests, and compares stores with readers."""

import contextlib
import io
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import xarray
from absl import flags
from absl.testing import flagsaver

from ubrain_jax import crowd, prepare
from ubrain_jax.datasets import pictures

# Of a plain shell, where output waits in a buffer.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}


def run(*given) -> str:
    """Calls the command with flags; returns what it printed."""
    printed = io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stdout(printed):
        flags.FLAGS(["prepare", *map(str, given)])
        assert prepare.main(["prepare"]) == 0
    return printed.getvalue()


def opened(*given) -> Any:
    """What the command opens with flags."""
    with flagsaver.flagsaver():
        flags.FLAGS(["prepare", *map(str, given)])
        return prepare.open_dataset()


def as_flags(values: dict[str, Any]) -> list[str]:
    """--name=value of each."""
    return [f"--{name}={value}" for name, value in values.items()]


def start(*given) -> subprocess.Popen:
    """Starts the command as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "ubrain_jax.prepare", *map(str, given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=pathlib.Path(prepare.__file__).parents[1],
    )


def process(*given) -> tuple[int, list[str], str]:
    """Runs it as a process: exit code, lines of standard output, standard error."""
    with start(*given) as child:
        printed, complaints = child.communicate(timeout=120)
    return child.returncode, printed.splitlines(), complaints


def assert_holds(path, dataset, image_px=28):
    """The store holds what the reader gives, subject by subject."""
    opened = crowd.open_crowd((str(path),))
    given = sorted(dataset.subjects, key=lambda s: s.name)
    assert [s.name for s in opened.subjects] == [s.name for s in given]
    for subject, stored in zip(given, opened.subjects, strict=True):
        rows = np.arange(len(subject.image_id))
        np.testing.assert_array_equal(
            crowd.read_responses(stored, rows), subject.responses
        )
        assert [opened.image_id[i] for i in stored.image] == list(subject.image_id)
        for name in ("split", "repeats", "ncsnr", "position", "roi"):
            np.testing.assert_array_equal(getattr(stored, name), getattr(subject, name))
        assert stored.roi_names == tuple(subject.roi_names)
        assert_xarray_holds(path, subject)
    shown = [pictures.fit(p, image_px) for p in dataset.read_images(opened.image_id)]
    np.testing.assert_array_equal(
        crowd.read_pictures(opened, np.arange(len(opened.image_id))), shown
    )
    assert opened.attrs[0]["dataset"] == dataset.name
    assert {s["file"] for s in opened.attrs[0]["sources"]}
    return opened


def assert_xarray_holds(path, subject):
    """So does the store as other programs open it."""
    with xarray.open_zarr(path) as root:
        image_id = root.image_id.values
    with xarray.open_zarr(path, group=f"subjects/{subject.name}") as stored:
        np.testing.assert_array_equal(stored.responses.values, subject.responses)
        assert image_id[stored.image.values].tolist() == list(subject.image_id)
        assert stored.split.values.tolist() == list(subject.split)
        assert stored.roi_name.values.tolist() == list(subject.roi_names)
        assert stored.attrs["normalisation"] == subject.attrs["normalisation"]
        assert stored.attrs.get("simulated") == subject.attrs.get("simulated")
