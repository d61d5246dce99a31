"""Where each array lies on a mesh of devices: axes ("data", "voxel").

The table of embeddings is striped over "voxel" and never moves; pictures are split
over both axes for the backbone; their projected features are gathered over "voxel",
where each device scores its own stripes. One device is the same code on a 1x1 mesh.

With several processes each holds a block of a batch, those of its devices, and reads
no more than that.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ubrain_jax import errors

# Shapes: B pictures, S stripes, n voxels of a stripe, L taps, P tokens, C channels.
IMAGES = PartitionSpec(("data", "voxel"))  # (B, H, W, 3)
FEATURES = PartitionSpec("data")  # (B, L, P, C)
SAMPLES = PartitionSpec("data", "voxel")  # (B, S, n) and embeddings (B, S, n, E)
TABLE = PartitionSpec("voxel")  # (S, rows, E)
REPLICATED = PartitionSpec()


class Share(NamedTuple):
    """What one process holds of a batch of B pictures and S stripes.

    Attributes:
        images: Of B, the pictures for the backbone.
        rows: Of B, the pictures whose voxels it scores.
        stripes: Of S, the stripes of those voxels.
        shape: (B, S).
    """

    images: slice
    rows: slice
    stripes: slice
    shape: tuple[int, int]


def make_mesh(
    data: int | None,
    voxel: int | None,
    *,
    stripes: int,
    batch_images: int,
    devices: list | None = None,
) -> jax.sharding.Mesh:
    """Mesh over all devices.

    Args:
        data: Devices along "data"; None: all that "voxel" leaves.
        voxel: Devices along "voxel"; None: the largest divisor of the number of
            devices up to 8 that divides `stripes` and fits the processes.
        stripes: Stripes of the table (S).
        batch_images: Pictures of a batch (B), split over all devices.
        devices: Default: all of `jax.devices()`.

    Raises:
        errors.ConfigError: If the numbers do not fit each other.
    """
    devices = list(jax.devices()) if devices is None else devices
    count, processes = len(devices), len({d.process_index for d in devices})
    own = count // processes  # devices of a process
    if voxel is None:
        left = count // data if data else count
        fits = [d for d in range(1, 9) if left % d == 0 and stripes % d == 0]
        fits = [d for d in fits if own % d == 0 or d % own == 0]
        voxel = max(d for d in fits if d <= max(1, left))
    data = count // voxel if data is None else data
    found = f"data {data} x voxel {voxel} with {count} devices"
    if data * voxel != count:
        raise errors.ConfigError(
            "mesh",
            "",
            found,
            f"a product of {count}",
            "Leave mesh.data and mesh.voxel unset to have them chosen.",
        )
    if stripes % voxel:
        raise errors.ConfigError(
            "mesh.voxel",
            "",
            f"{found} and {stripes} stripes",
            "a divisor of data.stripes",
            "Change mesh.voxel, or data.stripes for a new run.",
        )
    if batch_images % count:
        below, above = batch_images // count * count, -(-batch_images // count) * count
        raise errors.ConfigError(
            "data.batch_images",
            "",
            f"{batch_images} images over {count} devices",
            f"a multiple of {count} (nearest: {below or above}, {above})",
            "Change data.batch_images or use fewer devices.",
        )
    # Auto axes: make_mesh defaults to Explicit, under which a table look-up with
    # sharded indices raises.
    axes: Any = ("data", "voxel"), (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((data, voxel), axes[0], axes[1], devices=devices)
    if not in_blocks(_processes(mesh)):  # laid out for the network between devices
        devices = sorted(devices, key=lambda d: (d.process_index, d.id))
        grid = np.asarray(devices, object).reshape(data, voxel)
        mesh = jax.sharding.Mesh(grid, *axes)
    if not in_blocks(_processes(mesh)):
        raise errors.ConfigError(
            "mesh.voxel",
            "",
            f"{found}, {own} in each of {processes} processes",
            "a divisor or a multiple of the devices of a process",
            "Leave mesh.data and mesh.voxel unset to have them chosen.",
        )
    return mesh


def _processes(mesh: jax.sharding.Mesh) -> np.ndarray:
    """Process of each device, (data, voxel)."""
    return np.vectorize(lambda d: d.process_index, otypes=[int])(mesh.devices)


def in_blocks(processes: np.ndarray) -> bool:
    """Whether each process's devices are one block of the mesh, in one stretch.

    Example:
        >>> in_blocks(np.array([[0, 0], [1, 1]])), in_blocks(np.array([[0, 1], [1, 0]]))
        (True, False)
        >>> in_blocks(np.array([[0, 0, 1], [1, 2, 2]]))
        False
    """
    for process in np.unique(processes):
        rows, columns = np.nonzero(processes == process)
        flat = np.flatnonzero(processes == process)
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        if len(flat) != area or np.ptp(flat) + 1 != area:
            return False
    return True


def place(mesh: jax.sharding.Mesh, spec: PartitionSpec) -> NamedSharding:
    """The sharding of one array."""
    return NamedSharding(mesh, spec)


def put(mesh: jax.sharding.Mesh, spec: PartitionSpec, array: Any) -> jax.Array:
    """Array onto the mesh; every process has all of it."""
    return put_as(place(mesh, spec), array)


def fetched(dispatched: Iterable[tuple[Any, jax.Array]]) -> Iterator[tuple[Any, Any]]:
    """Arrays on the host, each copied while the devices compute the one after it.

    Args:
        dispatched: Anything, and an array that is being computed.
    """
    before = None
    for what, array in dispatched:
        array.copy_to_host_async()
        if before is not None:
            yield before[0], np.asarray(before[1])
        before = what, array
    if before is not None:
        yield before[0], np.asarray(before[1])


def padded(rows: np.ndarray, size: int) -> np.ndarray:
    """With rows of 0 behind, so that a program of one shape serves.

    Example:
        >>> padded(np.array([3, 4]), 4).tolist()
        [3, 4, 0, 0]
    """
    out = np.zeros((size, *rows.shape[1:]), rows.dtype)
    out[: len(rows)] = rows
    return out


def put_as(sharding: Any, array: Any) -> jax.Array:
    """`put` for a sharding.

    `jax.device_put` would compare the array between all processes, over the network.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda at: array[at])


def block(
    mesh: jax.sharding.Mesh, spec: PartitionSpec, shape: tuple[int, ...]
) -> tuple[slice, ...]:
    """The part of an array that this process's devices hold.

    Raises:
        ValueError: If it is more than one block.
    """
    return hull(
        place(mesh, spec).addressable_devices_indices_map(shape).values(), shape
    )


def hull(parts: Iterable[Any], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The block that parts of an array fill.

    Args:
        parts: Index of each: a slice for each axis; may be equal, else disjoint.
        shape: Of the array.

    Raises:
        ValueError: If they leave a part of the block out.

    Example:
        >>> hull([(slice(0, 2), slice(None)), (slice(2, 4), slice(None))], (8, 3))
        (slice(0, 4, None), slice(0, 3, None))
    """
    ends = np.unique(
        [[s.indices(n)[:2] for s, n in zip(p, shape, strict=True)] for p in parts],
        axis=0,
    )  # (parts, axes, 2)
    low, high = ends[..., 0].min(0), ends[..., 1].max(0)
    filled = np.prod(ends[..., 1] - ends[..., 0], axis=1).sum()
    if filled != np.prod(high - low):
        raise ValueError(f"devices hold {filled} of a block from {low} to {high}")
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def put_block(
    mesh: jax.sharding.Mesh,
    spec: PartitionSpec,
    shape: tuple[int, ...],
    array: np.ndarray,
) -> jax.Array:
    """Array of `shape` of which this process has its `block` alone."""
    starts = [part.start for part in block(mesh, spec, shape)]

    def piece(at: Any) -> np.ndarray:
        own = zip(at, shape, starts, strict=True)
        ends = [(*s.indices(n)[:2], first) for s, n, first in own]
        return array[tuple(slice(a - first, b - first) for a, b, first in ends)]

    return jax.make_array_from_callback(shape, place(mesh, spec), piece)


def share_of_batch(mesh: jax.sharding.Mesh, batch_images: int, stripes: int) -> Share:
    """What this process holds of a batch."""
    (images,) = block(mesh, IMAGES, (batch_images,))
    rows, own = block(mesh, SAMPLES, (batch_images, stripes))
    return Share(images, rows, own, (batch_images, stripes))
