"""Data on the devices: the batches of the host, bit for bit, and runs that show it."""

import dataclasses
import time
from typing import NamedTuple

import jax
import numpy as np
import pytest
import tensorstore

from ubrain_jax import (
    batches,
    config,
    crowd,
    errors,
    evaluate,
    experiments,
    memory,
    resident,
    train,
)
from ubrain_jax.backbone import dinov2

SETTINGS = config.Data(batch_images=8, voxels_per_image=64, stripes=8, read_threads=1)
MESHES = [(1, 1), (8, 1), (1, 8), (2, 4)]
CHANGES = [
    {},
    {"voxels_per_image": 512, "shift_px": 3},
    {"replacement": True, "store_power": 0.0},
    {"group_images": 2, "shift_px": 1},
    {"stripes": 16},
]


def shared_train(dataset, prefix, split_of):
    """The dataset with names of its own, and more pictures in the train split."""

    def subjects():
        for k, subject in enumerate(dataset.subjects):
            split = subject.split.copy()
            split[2:4] = split_of[k]
            name = f"{prefix}-{subject.name}"
            yield subject._replace(name=name, split=split)

    return dataset._replace(subjects=subjects())


@pytest.fixture(scope="module")
def stores(tmp_path_factory, make_dataset):
    """Two stores: three subjects and two, with pictures that several of them saw."""
    folder = tmp_path_factory.mktemp("resident")
    sizes = {"a": (37, 3, 90), "b": (50, 41)}
    for seed, (name, voxels) in enumerate(sizes.items()):
        made = make_dataset(
            num_subjects=len(voxels), voxels=voxels, seed=seed, num_own=9 + seed
        )
        splits = ["train"] * len(voxels)
        crowd.write(
            str(folder / f"{name}.zarr"), shared_train(made, name, splits), image_px=28
        )
    return crowd.open_crowd([str(folder / f"{name}.zarr") for name in sizes])


def mesh_of(data, voxel):
    devices = np.asarray(jax.devices()[: data * voxel]).reshape(data, voxel)
    return jax.sharding.Mesh(devices, ("data", "voxel"))


@pytest.mark.parametrize("shape", MESHES, ids=lambda m: f"{m[0]}x{m[1]}")
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_what_is_picked_is_what_the_host_reads(stores, shape, changes):
    settings, mesh = dataclasses.replace(SETTINGS, **changes), mesh_of(*shape)
    read = batches.dataset(stores, settings, 5)
    feed = resident.feed(stores, settings, 5, mesh, 2)
    padded = 0
    for step in range(2, 6):
        expected, picked = train.put_batch(mesh, read[step]), next(feed)
        for name, host in expected._asdict().items():
            if name == "picture":
                continue
            own = getattr(picked, name)
            assert own.dtype == host.dtype, name
            assert own.sharding == host.sharding, name
            assert np.asarray(own).tobytes() == np.asarray(host).tobytes(), name
        padded += int((read[step].weight == 0).sum())
    assert (padded > 0) == (not changes.get("replacement"))


@pytest.mark.parametrize("shape", MESHES, ids=lambda m: f"{m[0]}x{m[1]}")
def test_bytes_are_counted_before_anything_is_read(stores, shape):
    mesh, pools = mesh_of(*shape), batches.find_pools(stores)
    layout = resident.lay_out(stores, pools, 8)
    data = resident.load(stores, pools, layout, mesh)
    of_pictures, of_responses = resident.bytes_on_device(stores, 8, mesh)
    shards = [array.addressable_shards[0].data.nbytes for array in data]
    assert shards[0] == of_pictures
    # The last row is filled up.
    assert 0 <= shards[1] - of_responses < 4 * 1024 * 8


def test_a_response_that_is_not_finite_never_reaches_the_devices(stores):
    subject = stores.subjects[0]
    values = np.asarray(subject.responses).copy()
    values[subject.samples("train")[-1], 5] = np.nan
    bad = subject._replace(responses=tensorstore.array(values))
    broken = stores._replace(subjects=(bad, *stores.subjects[1:]))
    with pytest.raises(errors.InputError, match=r"sample \d+: nan in voxel 5"):
        resident.feed(broken, SETTINGS, 0, mesh_of(1, 1), 0)


def test_numbers_that_lead_outside_are_refused(stores):
    pools = batches.find_pools(stores)
    layout = resident.lay_out(stores, pools, 8)
    test = stores.subjects[0].image[stores.subjects[0].samples("test")[:1]]
    voxel = np.zeros((1, 8, 1), int)
    with pytest.raises(IndexError, match="a picture of no train split"):
        resident.numbers(layout, stores, batches.Draw(test, voxel))
    draw = batches.Draw(pools.pictures[:1], voxel + stores.num_voxels)
    with pytest.raises(IndexError, match="voxel 221 of a table of 221"):
        resident.numbers(layout, stores, draw)


class Device(NamedTuple):
    """As much of an accelerator as is asked for its memory."""

    bytes_limit: int
    platform: str = "gpu"

    def memory_stats(self):
        return {"bytes_limit": self.bytes_limit}


class Devices(NamedTuple):
    """As much of a mesh."""

    local_devices: list
    shape: dict
    size: int


def fits(tiny, stores, limits, **data):
    """What `resident.fits` says of accelerators with so many bytes free."""
    experiment = tiny(data={"stripes": 8, **data})
    geometry = dinov2.GEOMETRIES["dinov2-small"]
    shape = {"data": 1, "voxel": len(limits)}
    step = memory.predict(experiment, geometry, stores.num_voxels, **shape).total
    mesh = Devices([Device(step + free) for free in limits], shape, len(limits))
    return resident.fits(stores, experiment, geometry, mesh)


def test_data_stay_where_half_of_what_a_step_leaves_is_enough(tiny, stores):
    one = Devices([], {"data": 1, "voxel": 1}, 1)
    size = sum(resident.bytes_on_device(stores, 8, one))
    assert fits(tiny, stores, [2 * size])[0]
    stay, why = fits(tiny, stores, [2 * size - 2])
    assert not stay
    assert "more than 50% of 0.00 GB free" in why
    # Each of 8 devices holds about an eighth; the fullest counts.
    assert fits(tiny, stores, [size] * 8)[0]
    assert not fits(tiny, stores, [size] * 7 + [size // 8])[0]
    assert not fits(tiny, stores, [2 * size], on_device="off")[0]
    assert fits(tiny, stores, [size], on_device="on")[0]
    with pytest.raises(errors.ConfigError, match="'on': pictures and responses take"):
        fits(tiny, stores, [size - 1], on_device="on")


def test_a_cpu_keeps_data_only_when_told(tiny, stores):
    geometry = dinov2.GEOMETRIES["dinov2-small"]
    for value, expected in (("auto", False), ("on", True)):
        experiment = tiny(data={"stripes": 8, "on_device": value})
        stay, _ = resident.fits(stores, experiment, geometry, mesh_of(1, 1))
        assert stay == expected


def run_of(tiny, on_device, steps, **changes):
    settings = tiny(
        data={"on_device": on_device, **changes.pop("data", {})},
        train={"steps": steps, "log_every_steps": 1},
        **changes,
    )
    return experiments.prepare_run(settings, jax.devices()[: settings.mesh.data])


@pytest.mark.slow
def test_a_run_is_the_same_from_devices_from_stores_and_in_turns(tiny, tmp_path):
    change = {"voxels_per_image": 48, "shift_px": 2}  # more than a pool holds
    found = {}
    for name, plan in {
        "off": [("off", 6)],
        "on": [("on", 6)],
        "turns": [("off", 2), ("on", 4), ("off", 6)],
        "other turns": [("on", 2), ("off", 4), ("on", 6)],
    }.items():
        folder = str(tmp_path / name)
        for on_device, steps in plan:
            run = run_of(tiny, on_device, steps, data=change)
            state = train.train(run, folder)
        losses = [line["loss"] for line in evaluate.read_log(folder)]
        assert len(set(losses)) == 6
        found[name] = (losses, jax.tree.map(np.asarray, state))
    for name in ("on", "turns", "other turns"):
        jax.tree.map(np.testing.assert_array_equal, found[name], found["off"])


def test_the_log_tells_how_long_devices_waited(tiny, tmp_path, monkeypatch, capsys):
    real = batches.gather

    def slow(*args):
        time.sleep(0.6)
        return real(*args)

    waits = {}
    for name, gather in (("quick", real), ("slow", slow)):
        monkeypatch.setattr(batches, "gather", gather)
        train.train(run_of(tiny, "off", 6), str(tmp_path / name))
        lines = evaluate.read_log(tmp_path / name)
        assert lines[0]["wait_s"] is None  # the step that compiled
        waits[name] = [line["wait_s"] for line in lines[1:]]
    assert sum(waits["slow"]) > 1 + 2 * sum(waits["quick"])
    assert "of which the devices waited" in capsys.readouterr().out
