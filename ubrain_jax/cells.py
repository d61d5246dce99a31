"""The cells of a study: one run each in a folder of its own, done once.

A cell's cell.json holds its settings from the start, and how long it took once it is
finished. A finished cell is left alone, an unfinished one goes on from what is there,
and one with other settings is refused before anything is computed.
"""

import dataclasses
import json
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ubrain_jax import config, crowd, errors, evaluate, experiments, train, whole
from ubrain_jax.maps import tables

_CHECKPOINTS = ("checkpoints", "best")


class Cell(NamedTuple):
    """One run of a study.

    Attributes:
        folder: Its workdir.
        settings: All that its numbers depend on, as JSON has it.
    """

    folder: pathlib.Path
    settings: dict[str, Any]


def check(cells: Sequence[Cell]) -> None:
    """Refuses folders that hold a cell with other settings, all at once.

    Raises:
        errors.OutputError: Naming folders and settings.
        errors.InputError: If a cell.json cannot be read.
    """
    faults = []
    # A setting that is newer than a cell had its default there.
    defaults = _flat(config.to_dict(config.Experiment()))
    for cell in cells:
        old = (_read(cell) or {}).get("settings", cell.settings)
        before, now = _flat(old), _flat(cell.settings)
        before = {k: defaults[k] for k in now.keys() & defaults.keys()} | before
        faults += [
            f"{cell.folder.name}: {key} was {before.get(key)!r}, is {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
    if faults:
        more = f"; and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise errors.OutputError(
            cells[0].folder.parent,
            "",
            "; ".join(faults[:20]) + more,
            "the settings that these cells began with",
            "Set them back, take another --workdir, or delete the folders named.",
        )


def is_finished(cell: Cell) -> bool:
    """Whether the cell has its scores."""
    return "seconds" in (_read(cell) or {}) and (cell.folder / "metrics.json").exists()


def seconds_of(cell: Cell) -> float:
    """Wall time of a finished cell; NaN where it was interrupted."""
    found = (_read(cell) or {}).get("seconds")
    return math.nan if found is None else float(found)


def run_all(
    cells: Sequence[Cell],
    work: Callable[[Cell], dict[str, Any]],
    *,
    keep_checkpoints: bool = False,
) -> None:
    """Runs those that are not finished, one after the other.

    Args:
        cells: In order; `check` has passed them.
        work: Writes the scores of one into its folder; returns metrics.json.
        keep_checkpoints: Leave the weights of finished cells.
    """
    for count, cell in enumerate(cells, start=1):
        where = f"[{count} of {len(cells)}] {cell.folder.name}"
        if is_finished(cell):
            print(f"{where}: finished before", flush=True)
        else:
            print(f"{where}: begins", flush=True)
            began, whole = time.monotonic(), _read(cell) is None
            cell.folder.mkdir(exist_ok=True)
            _write(cell, {"settings": cell.settings})
            result = work(cell)
            seconds = time.monotonic() - began
            # Of an interrupted cell only the last part is known.
            told = round(seconds, 2) if whole else None
            _write(cell, {"settings": cell.settings, "seconds": told})
            medians = ", ".join(
                f"{name} {tables.number(found['pearson']['median'])}"
                for name, found in result["subjects"].items()
            )
            print(f"{where}: median r {medians}; {seconds:.1f} s", flush=True)
        if not keep_checkpoints:
            for name in _CHECKPOINTS:
                shutil.rmtree(cell.folder / name, ignore_errors=True)


class Trainer:
    """Trains and scores runs; those of one shape share their compiled programs.

    Args:
        devices: Of the mesh; None: all.
    """

    def __init__(self, devices: list[Any] | None = None):
        self._devices = devices
        self._programs: dict[Any, train.Programs] = {}
        self._first: experiments.Run | None = None

    def __call__(
        self, experiment: config.Experiment, folder: pathlib.Path
    ) -> dict[str, Any]:
        """One run with its evaluation, resumed where it stopped; its metrics.json."""
        run = experiments.prepare_run(experiment, self._devices)
        if self._first is None:
            self._first = run
        elif _network(run) == _network(self._first):
            # One backbone on the device, whichever runs the programs remember.
            frozen = self._first.parts.frozen
            run = run._replace(parts=run.parts._replace(frozen=frozen))
        shape = _shape(run)
        if shape not in self._programs:
            self._programs[shape] = train.compile_run(run)
        programs = self._programs[shape]
        state = train.train(run, str(folder), programs)
        params, step = train.chosen_weights(run, state, str(folder))
        predictor = programs.predictor.of(run)
        return evaluate.evaluate(run, params, str(folder), step, predictor)


def _network(run: experiments.Run) -> Any:
    """What the weights of the frozen network depend on: blocks after the last tap are
    not read, and positions are made for the size of the pictures."""
    settings = run.experiment.backbone
    return run.provenance, settings.taps[-1], settings.image_px, settings.dtype


def _shape(run: experiments.Run) -> Any:
    """What compiled programs depend on: settings but seed and pictures, and voxels."""
    old = run.experiment
    settings = dataclasses.replace(
        old,
        data=dataclasses.replace(old.data, num_images=None, crowd=(), subjects=()),
        train=dataclasses.replace(
            old.train, seed=0, steps=train.total_steps(old, run.stores), epochs=None
        ),
    )
    return settings, run.stores.num_voxels


def settings_of(experiment: config.Experiment, stores: crowd.Crowd) -> dict[str, Any]:
    """What the numbers of a training run depend on, wherever its files lie."""
    values = config.without_folders(experiment)
    # The fingerprint tells what is in the stores.
    del values["data"]["crowd"]
    for key in config.RESUMABLE:
        # Which weights are scored depends on these.
        if key not in ("train.steps", "train.eval_every_steps", "evaluate.val_images"):
            section, name = key.split(".")
            del values[section][name]
    return {"crowd": stores.fingerprint, **values}


def read_list(
    flag: str, given: Sequence[str], convert: Callable[[str], Any], wanted: str
) -> list[Any]:
    """The values of a flag with commas, each once.

    Args:
        flag: Its name, for messages.
        given: Its parts.
        convert: Raises ValueError for a part that cannot be.
        wanted: What could.

    Raises:
        errors.ConfigError: Naming every part that is wrong.
    """
    values, faults = [], []
    for part in given:
        try:
            value = convert(part.strip())
        except ValueError:
            faults.append(f"{part.strip()!r} is none")
            continue
        if value in values:
            faults.append(f"{part.strip()!r} is given twice")
        values.append(value)
    if faults or not values:
        raise errors.ConfigError(
            f"--{flag}",
            "",
            "; ".join(faults) or "empty",
            f"{wanted}, with commas between",
            "Change it.",
        )
    return values


def read_names(flag: str, given: Sequence[str], known: Iterable[str]) -> list[str]:
    """`read_list` of some of the known names."""
    names = list(known)

    def convert(text: str) -> str:
        if text not in names:
            raise ValueError(text)
        return text

    return read_list(flag, given, convert, f"some of {', '.join(names)}")


def seed(text: str) -> int:
    """A seed, for `read_list`."""
    value = int(text)
    if not 0 <= value < 2**31:
        raise ValueError(text)
    return value


def _read(cell: Cell) -> dict[str, Any] | None:
    """cell.json; None where the cell has not begun."""
    path = cell.folder / "cell.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"settings": dict(found["settings"]), **found}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.InputError(
            path,
            "",
            f"cannot be read ({error!r})",
            "what this command wrote",
            "Delete the folder of this cell.",
        ) from error


def _write(cell: Cell, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1) + "\n"
    whole.write_text(cell.folder / "cell.json", text)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings as "section.key"; values as JSON gives them back."""
    flat = {}
    for key, value in json.loads(json.dumps(settings)).items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in _flat(value).items()}
        else:
            flat[key] = value
    return flat
