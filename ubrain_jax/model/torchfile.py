"""Reads a file of torch.save without torch and without unpickling it.

A child process takes the tensors out (`_torch_child` tells how, and what it refuses);
here they become NumPy arrays. No class of the file is imported or constructed, so the
file of somebody else, even a whole pickled module, can be looked into.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  (NumPy learns bfloat16 from it)
import numpy as np
import safetensors

from ubrain_jax import errors
from ubrain_jax.model import _torch_child

_EXPECTED = "a file of torch.save (1.6 or later) that holds tensors"


class Content(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: By name: keys of dictionaries, or of parameters, buffers and modules
            of a pickled module, joined by dots. Floats are float32, all are finite.
        plain: Numbers, texts, lists and dictionaries of the file's own dictionary or
            of the attributes of its module; records of anything else are
            {"class": NAME} with "state" where the file gives one.
        module: Name of the class of a pickled module, else empty.
        names: Classes and functions that the file names; none was used.
    """

    tensors: dict[str, np.ndarray]
    plain: dict[str, Any]
    module: str
    names: tuple[str, ...]


def read(path: str | os.PathLike) -> Content:
    """Reads all tensors and plain values of a file.

    Args:
        path: Written by torch.save: a dictionary, a state dict or a whole module.

    Raises:
        errors.MissingInputError: If there is no such file.
        errors.InputError: If it is damaged, in the form before torch 1.6, holds no
            tensors, tensors that reach outside of the file, or numbers that are not
            finite.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise errors.MissingInputError(
            path, "", "no such file", _EXPECTED, "Check the path."
        )
    with tempfile.TemporaryDirectory(prefix="ubrain-torch-") as folder:
        target, told = pathlib.Path(folder, "tensors"), pathlib.Path(folder, "told")
        _run(path, target, told)
        content = json.loads(told.read_text(encoding="utf-8"))
        tensors, broken = {}, []
        with safetensors.safe_open(target, "np") as file:
            for name in file.keys():
                tensors[name], finite = _as_float32(file.get_tensor(name))
                if not finite:
                    broken.append(name)
    if broken:
        listed = ", ".join(broken[:20])
        more = f" and {len(broken) - 20} more" if len(broken) > 20 else ""
        raise errors.InputError(
            path,
            "",
            f"numbers that are not finite in float32: {listed}{more}",
            "finite numbers",
            "The training that made it has failed, or the file is damaged.",
        )
    return Content(
        tensors, dict(content["plain"]), content["module"], tuple(content["names"])
    )


def _as_float32(array: np.ndarray) -> tuple[np.ndarray, bool]:
    """Floats in float32, whole numbers as they are; and whether all are finite."""
    if array.dtype.kind in "iub":
        return array, True
    with np.errstate(over="ignore", invalid="ignore"):
        wide = np.asarray(array, np.float32)
    return wide, bool(np.isfinite(wide).all())


def _run(path: pathlib.Path, target: pathlib.Path, told: pathlib.Path) -> None:
    """Has the child write the two files, or raises what it says."""
    keep = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in keep if name in os.environ}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # threads map memory
    script = [sys.executable, "-I", _torch_child.__file__]
    seconds = 300 + path.stat().st_size // 5_000_000
    try:
        child = subprocess.run(
            [*script, str(path.resolve()), str(target), str(told)],
            capture_output=True,
            text=True,
            cwd=target.parent,
            env=environment,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise errors.InputError(
            path, "", f"not read in {seconds} s", _EXPECTED, "Do not trust the file."
        ) from None
    if child.returncode == _torch_child.REFUSED:
        where, found, action = json.loads(child.stdout)["refused"]
        raise errors.InputError(path, where, found, _EXPECTED, action)
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1][:200]
        raise errors.InputError(
            path,
            "",
            f"the reader stopped with code {child.returncode} ({last})",
            _EXPECTED,
            "Do not trust the file, or download it again.",
        )
