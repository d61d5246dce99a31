"""Training data that stay on the devices, where a batch is picked: data.on_device.

Pictures are split over all devices, responses over "voxel" by the stripe of their
voxel, as the table of embeddings is; nothing is there twice but responses over
"data". The host draws pictures and voxels (`batches.draws`) and sends their numbers.
What is picked is what `batches.gather` reads, bit for bit.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from ubrain_jax import batches, cluster, config, crowd, errors, memory, sharding, watch
from ubrain_jax.backbone import dinov2

# Of the memory that a training step leaves free, what data may take with 'auto';
# scoring validation pictures needs some too.
SHARE = 0.5
# Numbers in a row of responses; a multiple of a TPU's 128 lanes. Two small numbers
# say where a response is, one would not fit 32 bits.
_WIDTH = 1024
# Samples and pictures that are read at a time.
_CHUNK = 128


class Data(NamedTuple):
    """Of the train split, on the mesh: P pictures, K subjects, S stripes.

    Attributes:
        image: (P, y x 3) uint8, over all devices; padded to a multiple of those.
        response: (S, rows, width) float32, over "voxel". In a stripe the samples
            follow each other, by subject; each is as long as the subject's voxels in
            its fullest stripe.
        first: (S, K) int32 row of the stripe that is each subject's first, over
            "voxel".
    """

    # JAX arrays, or their places on the mesh.
    image: Any
    response: Any
    first: Any


class Numbers(NamedTuple):
    """What the devices need to pick a batch of B pictures.

    Attributes:
        image: (B,) int32 rows of `Data.image`.
        shift: (B, 2) int32 pixels down and to the right.
        voxel: (B, S, n) int32 rows inside the stripe, -1 where padded.
        start: (B, K, 2) int32 row and column of `Data.response` where the responses
            of each subject to the picture begin; 0 where there are none.
    """

    image: Any
    shift: Any
    voxel: Any
    start: Any


class Layout(NamedTuple):
    """Where things are in `Data`.

    Attributes:
        row: (all pictures,) int32 row in `Data.image`, -1 where not for training.
        place: (K, all pictures) int32 number among the subject's train samples, or -1.
        base: (K,) int64 number of responses in a stripe before those of the subject.
        length: (K,) int64 of one sample in a stripe.
        rows: Of `Data.response`.
        first: (S, K) int32, as in `Data`.
    """

    row: np.ndarray
    place: np.ndarray
    base: np.ndarray
    length: np.ndarray
    rows: int
    first: np.ndarray


def lay_out(stores: crowd.Crowd, pools: batches.Pools, stripes: int) -> Layout:
    """Layout of the train split of a crowd."""
    row = np.full(len(stores.image_id), -1, np.int32)
    row[pools.pictures] = np.arange(len(pools.pictures))
    place = np.full(pools.sample.shape, -1, np.int32)
    counts = []
    for own, sample in zip(place, pools.sample, strict=True):
        seen = np.flatnonzero(sample >= 0)
        own[seen[np.argsort(sample[seen])]] = np.arange(len(seen))
        counts.append(len(seen))
    offset = np.asarray([s.offset for s in stores.subjects])
    length = np.asarray([-(-s.num_voxels // stripes) for s in stores.subjects])
    ends = np.cumsum(np.asarray(counts) * length)
    # The first voxel of a subject in stripe s is the first v >= offset, v % S == s.
    stripe = np.arange(stripes)[:, None]
    first = (offset + (stripe - offset) % stripes) // stripes
    return Layout(
        row,
        place,
        np.concatenate([[0], ends[:-1]]),
        length,
        -(-int(ends[-1]) // _WIDTH),
        first.astype(np.int32),
    )


def bytes_on_device(
    stores: crowd.Crowd, stripes: int, mesh: jax.sharding.Mesh
) -> tuple[int, int]:
    """Bytes of pictures and of responses on each device, without reading any."""
    pictures, responses = np.zeros(len(stores.image_id), bool), 0
    for subject in stores.subjects:
        samples = subject.samples("train")
        pictures[subject.image[samples]] = True
        responses += len(samples) * -(-subject.num_voxels // stripes)
    rows = math.ceil(int(pictures.sum()) / mesh.size)
    return (
        3 * rows * stores.image_px**2,
        4 * responses * (stripes // mesh.shape["voxel"]),
    )


def fits(
    stores: crowd.Crowd,
    experiment: config.Experiment,
    geometry: dinov2.Geometry,
    mesh: jax.sharding.Mesh,
    *,
    table: str = "dense",
) -> tuple[bool, str]:
    """Whether training data shall be on the devices, and why, for the terminal.

    'auto' is off on CPUs, whose memory the stores are read into anyway. Several
    processes decide alike, by the smallest device of all.

    Args:
        stores: The crowd.
        experiment: All settings; data.on_device decides.
        geometry: Of the backbone, for what a step needs.
        mesh: The devices.
        table: 'dense' or 'sparse', see `optim.table_kind`.

    Raises:
        errors.ConfigError: If data.on_device is 'on' and they do not fit.
    """
    wanted, settings = experiment.data.on_device, experiment.data
    if wanted == "off":
        return False, "data.on_device is 'off'"
    parts = bytes_on_device(stores, settings.stripes, mesh)
    size = f"{sum(parts) / 1e9:.2f} GB on each device"
    free = _free(stores, experiment, geometry, mesh, table)
    if wanted == "on":
        if free is not None and sum(parts) > free:
            raise errors.ConfigError(
                "data.on_device",
                "",
                f"'on': pictures and responses take {size}, where {free / 1e9:.2f} GB "
                "are left beside a step",
                "data that fit",
                "Set it to 'auto' or 'off', or use more devices.",
            )
        return True, size
    if free is None:
        return False, "data.on_device is 'auto', on a CPU"
    if sum(parts) > SHARE * free:
        return False, f"{size}, more than {SHARE:.0%} of {free / 1e9:.2f} GB free"
    return True, size


def _free(
    stores: crowd.Crowd,
    experiment: config.Experiment,
    geometry: dinov2.Geometry,
    mesh: jax.sharding.Mesh,
    table: str,
) -> float | None:
    """Bytes that a step leaves on the fullest device; None on a CPU."""
    limit = memory.limit(mesh)
    if limit is None:
        return None
    voxels = stores.num_voxels
    told = memory.with_remat(experiment, geometry, voxels, mesh, table=table)
    needs = memory.predict(told, geometry, voxels, **mesh.shape, table=table)
    return max(0, limit - needs.total)


def load(
    stores: crowd.Crowd,
    pools: batches.Pools,
    layout: Layout,
    mesh: jax.sharding.Mesh,
) -> Data:
    """Reads the train split onto the mesh.

    Each process reads the pictures of its devices, and all samples of which it keeps
    its stripes; they pass through as much memory of the host.

    Args:
        stores: The crowd.
        pools: From `batches.find_pools`.
        layout: From `lay_out`.
        mesh: The devices.

    Raises:
        errors.InputError: If a store cannot be read or a response is not finite.
    """
    stripes = len(layout.first)
    shape = (stripes, layout.rows, _WIDTH)
    own = sharding.block(mesh, sharding.TABLE, shape)[0]
    total = len(pools.pictures) + sum(len(s.samples("train")) for s in stores.subjects)
    with tqdm.tqdm(
        total=total, desc="onto the devices", disable=not cluster.is_first()
    ) as progress:

        def tell(count: int) -> None:
            progress.update(count)
            watch.alive("reading pictures and responses onto the devices")

        response = np.full((own.stop - own.start, layout.rows * _WIDTH), np.nan, "f4")
        for k, subject in enumerate(stores.subjects):
            _fill(response, subject, layout, k, own.start, tell)
        response = response.reshape(-1, *shape[1:])
        placed = sharding.put_block(mesh, sharding.TABLE, shape, response)
        placed.block_until_ready()
        del response  # before the pictures are read

        def rows_of(at: Any) -> np.ndarray:
            return _pictures(stores, pools.pictures, at[0], size, tell)

        size = math.ceil(len(pools.pictures) / mesh.size) * mesh.size
        image = jax.make_array_from_callback(
            (size, 3 * stores.image_px**2),
            sharding.place(mesh, sharding.IMAGES),
            rows_of,
        )
    return Data(image, placed, sharding.put(mesh, sharding.TABLE, layout.first))


def _fill(
    out: np.ndarray,
    subject: crowd.SubjectRows,
    layout: Layout,
    k: int,
    first_stripe: int,
    tell: Callable[[int], Any],
) -> None:
    """Writes the train samples of subject k into (own stripes, numbers)."""
    stripes, length = len(layout.first), int(layout.length[k])
    rows = subject.samples("train")
    for start in range(0, len(rows), _CHUNK):
        values = crowd.read_responses(subject, rows[start : start + _CHUNK])
        begin = int(layout.base[k]) + start * length
        block = out[:, begin : begin + len(values) * length]
        block = block.reshape(len(out), len(values), length)
        for stripe, samples in enumerate(block, first_stripe):
            own = values[:, (stripe - subject.offset) % stripes :: stripes]
            samples[:, : own.shape[1]] = own
        tell(len(values))


def _pictures(
    stores: crowd.Crowd,
    pictures: np.ndarray,
    at: slice,
    size: int,
    tell: Callable[[int], Any],
) -> np.ndarray:
    """Some rows of `Data.image`, of `size` rows in all; 0 after the last picture."""
    start, stop, _ = at.indices(size)
    out = np.zeros((stop - start, 3 * stores.image_px**2), np.uint8)
    for row in range(start, min(stop, len(pictures)), _CHUNK):
        wanted = pictures[row : min(row + _CHUNK, stop)]
        read = crowd.read_pictures(stores, wanted)
        out[row - start : row - start + len(read)] = read.reshape(len(read), -1)
        tell(len(read))
    return out


def numbers(layout: Layout, stores: crowd.Crowd, drawn: batches.Draw) -> Numbers:
    """What to send of a batch of draws.

    Args:
        layout: From `lay_out`.
        stores: The crowd.
        drawn: Stacked, from `batches.draws`.
    """
    picture, voxel = np.asarray(drawn.picture), np.asarray(drawn.voxel)
    if voxel.max(initial=0) >= stores.num_voxels:
        raise IndexError(f"voxel {voxel.max()} of a table of {stores.num_voxels}")
    image = layout.row[picture]
    if image.min(initial=0) < 0:
        raise IndexError("a picture of no train split")
    place = layout.place[:, picture].T  # (B, K)
    cell = np.where(place < 0, 0, layout.base + place * layout.length)
    return Numbers(
        image,
        np.broadcast_to(drawn.shift, (len(picture), 2)).astype(np.int32),
        # -1 stays: // rounds down.
        (voxel // len(layout.first)).astype(np.int32),
        np.stack(np.divmod(cell, _WIDTH), -1).astype(np.int32),
    )


def make_pick(
    mesh: jax.sharding.Mesh, image_px: int, *, moves: bool = False
) -> Callable[[Data, Numbers], batches.Batch]:
    """The compiled choice of a batch: (data, numbers) -> batch, all on the mesh.

    Args:
        mesh: Of the data.
        image_px: Side of the pictures.
        moves: Whether pictures are moved, by data.shift_px.
    """
    axes = ("data", "voxel")

    def pick(data: Data, sent: Numbers):
        image = _pick_images(data.image, sent.image, mesh.size, axes)
        image = image.reshape(-1, image_px, image_px, 3)
        if moves:
            image = _moved(image, sent.shift)
        response = jax.vmap(_pick_responses, (0, 0, 1, None), 1)(
            data.response, data.first, sent.voxel, sent.start
        )
        real = sent.voxel >= 0
        return (
            image,
            jnp.maximum(sent.voxel, 0),
            jnp.where(real, response, 0),
            real.astype(jnp.float32),
        )

    split = jax.shard_map(
        pick,
        mesh=mesh,
        in_specs=(_PLACES, _SPECS),
        out_specs=(sharding.IMAGES, *[sharding.SAMPLES] * 3),
    )
    images, samples = (
        sharding.place(mesh, spec) for spec in (sharding.IMAGES, sharding.SAMPLES)
    )
    return jax.jit(
        lambda data, sent: batches.Batch(*split(data, sent), picture=None),
        # As `train.put_batch` does: another place would be another program.
        out_shardings=batches.Batch(images, samples, samples, samples, None),
    )


_PLACES = Data(image=sharding.IMAGES, response=sharding.TABLE, first=sharding.TABLE)
_SPECS = Numbers(
    image=sharding.REPLICATED,
    shift=sharding.IMAGES,
    voxel=sharding.SAMPLES,
    start=sharding.FEATURES,
)


def put(mesh: jax.sharding.Mesh, sent: Numbers) -> Numbers:
    """Numbers onto the mesh; every process has all of them."""
    return Numbers(
        *(
            sharding.put(mesh, spec, array)
            for spec, array in zip(_SPECS, sent, strict=True)
        )
    )


def _pick_images(
    image: jax.Array, row: jax.Array, devices: int, axes: tuple[str, str]
) -> jax.Array:
    """This device's pictures of a batch, wherever they lie.

    Each device gives those that it holds, black for the others, and the sum is split:
    what travels is one batch of pictures.
    """
    if devices == 1:
        return image[row]
    inside = row - jax.lax.axis_index(axes) * len(image)
    mine = (inside >= 0) & (inside < len(image))
    own = image[jnp.clip(inside, 0, len(image) - 1)]
    own = jnp.where(mine[:, None], own, 0).astype(jnp.uint8)
    return jax.lax.psum_scatter(own, axes, tiled=True)


def _pick_responses(
    response: jax.Array, first: jax.Array, voxel: jax.Array, start: jax.Array
) -> jax.Array:
    """Responses (B, n) of one stripe (rows, width) to voxels (B, n) of it.

    NaN if the numbers lead outside: the loss would say so.
    """
    voxel = jnp.maximum(voxel, 0)
    subject = jnp.searchsorted(first, voxel, side="right", method="compare_all") - 1
    begin = jax.vmap(lambda of, k: of[k])(start, subject)  # (B, n, 2)
    place = begin[..., 1] + voxel - first[subject]
    row = begin[..., 0] + place // _WIDTH
    return response.at[row, place % _WIDTH].get(mode="fill", fill_value=jnp.nan)


def _moved(pictures: jax.Array, shift: jax.Array) -> jax.Array:
    """As `batches.moved`."""
    _, height, width, _ = pictures.shape
    y = jnp.clip(jnp.arange(height) - shift[:, :1], 0, height - 1)  # (B, H)
    x = jnp.clip(jnp.arange(width) - shift[:, 1:], 0, width - 1)  # (B, W)
    picture = jnp.arange(len(pictures))[:, None, None]
    return pictures[picture, y[:, :, None], x[:, None]]


def feed(
    stores: crowd.Crowd,
    settings: config.Data,
    seed: int,
    mesh: jax.sharding.Mesh,
    start: int,
) -> Iterator[batches.Batch]:
    """Batches on the mesh from step `start`, picked from data that stay there.

    Args:
        stores: The crowd.
        settings: Batch and sample sizes.
        seed: Of order and draws.
        mesh: The devices.
        start: First step.
    """
    pools = batches.find_pools(stores)
    layout = lay_out(stores, pools, settings.stripes)
    data = load(stores, pools, layout, mesh)
    pick = make_pick(mesh, stores.image_px, moves=settings.shift_px > 0)
    drawn = batches.draws(stores, pools, settings, seed)
    sent = drawn.map(lambda of: numbers(layout, stores, of))
    ahead = batches.iterate(sent, start, settings.read_threads)
    return (pick(data, put(mesh, one)) for one in ahead)
