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
