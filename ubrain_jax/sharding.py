"""Where each array lies on a mesh of devices: axes ("data", "voxel").

The table of embeddings is striped over "voxel" and never moves; pictures are split
over both axes for the backbone; their projected features are gathered over "voxel",
where each device scores its own stripes. One device is the same code on a 1x1 mesh.
"""

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
            devices up to 8 that divides `stripes`.
        stripes: Stripes of the table (S).
        batch_images: Pictures of a batch (B), split over all devices.
        devices: Default: all of `jax.devices()`.

    Raises:
        errors.ConfigError: If the numbers do not fit each other.
    """
    devices = list(jax.devices()) if devices is None else devices
    count = len(devices)
    if voxel is None:
        left = count // data if data else count
        fits = [d for d in range(1, 9) if left % d == 0 and stripes % d == 0]
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
    return jax.make_mesh(
        (data, voxel),
        ("data", "voxel"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


def place(mesh: jax.sharding.Mesh, spec: PartitionSpec) -> NamedSharding:
    """The sharding of one array."""
    return NamedSharding(mesh, spec)


def put(mesh: jax.sharding.Mesh, spec: PartitionSpec, array: np.ndarray) -> jax.Array:
    """Host array onto the mesh; this process gives the part its devices hold."""
    return jax.make_array_from_process_local_data(place(mesh, spec), array)
