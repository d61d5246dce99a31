"""The mesh: every number of devices, and what does not fit is refused with numbers."""

import jax
import numpy as np
import pytest

from ubrain_jax import errors, sharding


def mesh(data=None, voxel=None, *, stripes=8, batch_images=32, count=8):
    return sharding.make_mesh(
        data,
        voxel,
        stripes=stripes,
        batch_images=batch_images,
        devices=jax.devices()[:count],
    )


@pytest.mark.parametrize("stripes", [1, 2, 3, 4, 6, 8, 12, 16])
@pytest.mark.parametrize("count", range(1, 9))
def test_the_chosen_mesh_uses_all_devices_and_the_most_on_voxel(count, stripes):
    """Against a search over all pairs."""
    pairs = [
        (d, v)
        for d in range(1, count + 1)
        for v in range(1, min(8, count) + 1)
        if d * v == count and stripes % v == 0
    ]
    chosen = mesh(stripes=stripes, batch_images=840, count=count)
    assert chosen.axis_names == ("data", "voxel")
    assert chosen.devices.shape == max(pairs, key=lambda p: p[1])
    assert set(chosen.devices.flat) == set(jax.devices()[:count])


@pytest.mark.parametrize(
    ("data", "voxel", "shape"),
    [
        (None, None, (1, 8)),
        (1, None, (1, 8)),
        (2, None, (2, 4)),
        (8, None, (8, 1)),
        (None, 1, (8, 1)),
        (None, 2, (4, 2)),
        (4, 2, (4, 2)),
    ],
)
def test_what_is_given_is_kept(data, voxel, shape):
    assert mesh(data, voxel).devices.shape == shape


def test_all_devices_are_the_default():
    chosen = sharding.make_mesh(None, None, stripes=8, batch_images=8)
    assert chosen.devices.size == len(jax.devices()) == 8


@pytest.mark.parametrize(
    ("data", "voxel", "found"),
    [
        (3, None, "data 3 x voxel 2 with 8 devices"),
        (16, None, "data 16 x voxel 1 with 8 devices"),
        (None, 3, "data 2 x voxel 3 with 8 devices"),
        (None, 16, "data 0 x voxel 16 with 8 devices"),
        (2, 2, "data 2 x voxel 2 with 8 devices"),
    ],
)
def test_a_product_that_is_not_the_number_of_devices_is_refused(data, voxel, found):
    with pytest.raises(errors.ConfigError, match=f"{found}; expected a product of 8"):
        mesh(data, voxel, stripes=48)


def test_stripes_must_divide_over_voxel():
    with pytest.raises(errors.ConfigError, match="4 stripes; expected a divisor"):
        mesh(1, 8, stripes=4)


@pytest.mark.parametrize(
    ("images", "hint"), [(100, "nearest: 96, 104"), (3, "nearest: 8, 8")]
)
def test_pictures_must_share_evenly_among_devices(images, hint):
    with pytest.raises(errors.ConfigError, match=hint):
        mesh(batch_images=images)


def test_arrays_lie_where_the_module_says():
    chosen = mesh(2, 4)
    table = np.arange(8 * 3 * 2, dtype=np.float32).reshape(8, 3, 2)
    placed = sharding.put(chosen, sharding.TABLE, table)
    np.testing.assert_array_equal(placed, table)
    for shard in placed.addressable_shards:
        column = int(np.argwhere(chosen.devices == shard.device)[0][1])
        np.testing.assert_array_equal(shard.data, table[2 * column : 2 * column + 2])
    pictures = np.arange(16, dtype=np.uint8).reshape(16, 1, 1, 1)
    placed = sharding.put(chosen, sharding.IMAGES, pictures)
    order = {d: k for k, d in enumerate(chosen.devices.flat)}
    for shard in placed.addressable_shards:
        k = order[shard.device]
        np.testing.assert_array_equal(shard.data, pictures[2 * k : 2 * k + 2])
    everywhere = sharding.put(chosen, sharding.REPLICATED, np.float32(3))
    assert len(everywhere.addressable_shards) == 8


def test_the_axes_let_the_compiler_choose():
    """A look-up with sharded indices raises under the default, Explicit."""
    chosen = mesh(2, 4)
    table = sharding.put(chosen, sharding.TABLE, np.eye(8, dtype=np.float32)[:, None])
    index = sharding.put(chosen, sharding.SAMPLES, np.zeros((2, 8, 5), np.int32))
    rows = jax.jit(lambda t, i: jax.vmap(lambda a, b: a[b], (0, 1))(t, i))(table, index)
    np.testing.assert_array_equal(
        rows, np.broadcast_to(np.eye(8)[:, None, None], (8, 2, 5, 8))
    )


@pytest.mark.parametrize(("data", "voxel"), [(1, 8), (2, 4), (8, 1)])
def test_a_block_put_piece_by_piece_is_the_array(data, voxel):
    chosen = mesh(data, voxel)
    array = np.arange(16 * 8 * 3).reshape(16, 8, 3)
    share = sharding.share_of_batch(chosen, 16, 8)
    assert share == (slice(0, 16), slice(0, 16), slice(0, 8), (16, 8))
    for spec in (sharding.IMAGES, sharding.SAMPLES):
        placed = sharding.put_block(chosen, spec, array.shape, array)
        np.testing.assert_array_equal(placed, array)
        assert placed.sharding.spec == spec


def test_parts_that_are_no_block_are_refused():
    every = slice(None)
    quarters = [(slice(0, 4), slice(0, 1)), (slice(4, 8), slice(1, 2))]
    with pytest.raises(ValueError, match=r"hold 8 of a block from \[0 0\] to \[8 2\]"):
        sharding.hull(quarters, (8, 2))
    both = [(slice(2, 4), every)] * 3  # held by three devices
    assert sharding.hull(both, (8, 2)) == (slice(2, 4), slice(0, 2))


class Device:
    """What `make_mesh` looks at."""

    platform = device_kind = "cpu"

    def __init__(self, number, process):
        self.id, self.process_index = number, process

    def __repr__(self):
        return f"{self.process_index}.{self.id}"


@pytest.mark.parametrize(
    ("processes", "own", "shape"), [(2, 4, (1, 8)), (3, 6, (3, 6)), (4, 3, (2, 6))]
)
def test_the_chosen_mesh_gives_each_process_a_block(processes, own, shape):
    devices = [Device(k, k % processes) for k in range(processes * own)]
    grid = sharding.make_mesh(None, None, stripes=24, batch_images=72, devices=devices)
    assert grid.devices.shape == shape
    assert [d.process_index for d in grid.devices.flat] == sorted(
        d.process_index for d in devices
    )


def test_a_mesh_that_cuts_a_process_in_two_is_refused():
    devices = [Device(k, k // 4) for k in range(12)]
    with pytest.raises(errors.ConfigError, match="4 in each of 3 processes"):
        sharding.make_mesh(2, 6, stripes=24, batch_images=24, devices=devices)
