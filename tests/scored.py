"""Finished evaluations of planted subjects, as every evaluation leaves them."""

import json
import pathlib
from typing import NamedTuple

import numpy as np
import xarray

from ubrain_jax import controls, crowd, metrics, ranks, results, scoring


class Person(NamedTuple):
    """A planted subject: its size, dataset, and the pictures of a smaller pool."""

    name: str
    images: int = 30
    voxels: int = 40
    dataset: str = "t"
    shared: int = 0


def responses(person: Person) -> tuple[np.ndarray, np.ndarray]:
    """What drives the voxels, and what was measured, (M, V)."""
    rng = np.random.default_rng([*person.name.encode()])
    truth = rng.standard_normal((person.images, person.voxels))
    return truth, truth + rng.standard_normal(truth.shape)


def ids(person: Person) -> list[str]:
    return [f"t/{k:04d}" for k in range(person.images)]


def write(
    folder: pathlib.Path,
    people: list[Person],
    noise: float = 1.0,
    seed: int = 0,
    kind: str | None = None,
    draws: int = 40,
) -> pathlib.Path:
    """A workdir whose model predicts the truth with so much noise."""
    (folder / "voxels").mkdir(parents=True)
    entries = {}
    for person in people:
        truth, measured = responses(person)
        rng = np.random.default_rng([seed, int(100 * noise)])
        predicted = truth + noise * rng.standard_normal(truth.shape)
        ceiling = np.full(person.voxels, 0.5)
        half = np.arange(person.voxels) < person.voxels // 2
        regions = {"V1": half, "FFA": ~half}
        columns, entry = scoring.voxels(
            measured, predicted, ceiling, regions, draws, draws
        )
        table = xarray.Dataset({k: ("voxel", v) for k, v in columns.items()})
        table["noise_ceiling"] = ("voxel", ceiling)
        place = np.repeat(np.arange(person.voxels)[:, None], 3, axis=1)
        table["position"] = (("voxel", "axis"), place)
        crowd.write_xarray(table, folder / "voxels" / f"{person.name}.zarr")
        similarity = metrics.similarity(measured, predicted)
        pools = {}
        if person.shared:
            pools["shared"] = np.arange(person.images) < person.shared
        entries[person.name] = {
            **entry,
            **scoring.patterns(similarity, draws, pools),
            "controls": controls.scores_in(similarity, measured, predicted),
            "num_test_images": person.images,
            "num_train_images": 200,
            "num_val_images": 20,
            "num_voxels": person.voxels,
            "dataset": person.dataset,
        }
        ranks.write(folder, person.name, ids(person), ranks.make(similarity))
    told = {"model": {"kind": kind, "features": "taps"}} if kind else {}
    content = {"subjects": entries, "step": 7, "warnings": ["Simulated."], **told}
    text = json.dumps(metrics.null_for_nan(content))
    (folder / "metrics.json").write_text(text)
    settings = {"data": {"crowd": ["t.zarr"], "batch_images": 8}, "train": {"steps": 7}}
    about = results.About("A run", settings, {"jax": "0.10.1"})
    results.write_about(folder, about)
    lines = [json.dumps({"step": k, "loss": 1 / k}) for k in range(1, 8)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return folder
