"""Batches of pictures and sampled voxels: a pure function of (seed, step).

An example is a picture; its pool is every voxel of every subject who saw it in the
train split. Each stripe of the table gives the same number of voxels, drawn without
replacement (but with data.replacement), so the draw does not depend on devices or
processes. A picture whose pool is smaller than that is padded with weight 0. With
data.shift_px each picture is moved by a few pixels.

With data.group_images above 1 a batch is made of groups, see `groups`: their pictures
share one draw from the voxels of one subject.
"""

from typing import Any, NamedTuple

import grain
import numpy as np

from ubrain_jax import config, crowd, errors, groups, sharding

# Groups of a run: more than any run takes, and grain's arithmetic is exact with it.
_ENDLESS = 2**50


class Batch(NamedTuple):
    """B pictures with n voxels of each of S stripes.

    One of several processes has `sharding.Share` of them: other pictures in `image`
    than rows in `voxel`, `response` and `weight`; `picture` has all B.

    Attributes:
        image: (B, H, W, 3) uint8.
        voxel: (B, S, n) int32 rows inside the stripe; 0 where padded.
        response: (B, S, n) float32; 0 where padded.
        weight: (B, S, n) float32: 1, or 0 where padded.
        picture: (B,) int32 row of `Crowd.image_id`, for messages; stays on the host.
    """

    # NumPy arrays from the host, JAX arrays on the mesh.
    image: Any
    voxel: Any
    response: Any
    weight: Any
    picture: Any


class Draw(NamedTuple):
    """What one example needs from the stores.

    Attributes:
        picture: Row of `Crowd.image_id`; (K,) rows for a group.
        voxel: (S, n) int64 global voxels, -1 where padded.
        shift: (2,) int64 pixels that the picture is moved down and to the right.
    """

    picture: Any
    voxel: np.ndarray
    shift: np.ndarray = np.zeros(2, np.int64)


class Pools(NamedTuple):
    """Who saw which training picture.

    Attributes:
        pictures: (M,) rows of `Crowd.image_id` with at least one train sample.
        store: (M,) first store of a subject with such a sample.
        sample: (subjects, all pictures) int32 sample in the train split, or -1.
    """

    pictures: np.ndarray
    store: np.ndarray
    sample: np.ndarray


def find_pools(stores: crowd.Crowd) -> Pools:
    """Training pictures and the samples behind them.

    Raises:
        errors.InputError: If no picture is in a train split.
    """
    sample = np.full((len(stores.subjects), len(stores.image_id)), -1, np.int32)
    for k, subject in enumerate(stores.subjects):
        rows = subject.samples("train")
        sample[k, subject.image[rows]] = rows
    pictures = np.flatnonzero((sample >= 0).any(0))
    if not len(pictures):
        raise errors.InputError(
            ", ".join(stores.paths),
            "split",
            "no picture in a train split",
            "one or more",
            "Check the split of the stores and data.subjects.",
        )
    of_subject = np.asarray([s.store for s in stores.subjects])[:, None]
    store = np.where(sample[:, pictures] >= 0, of_subject, len(stores.paths)).min(0)
    return Pools(pictures, store, sample)


def draw_voxels(
    stores: crowd.Crowd,
    pools: Pools,
    picture: int,
    stripes: int,
    count: int,
    rng: np.random.Generator,
    *,
    subject: int | None = None,
    replacement: bool = False,
) -> Draw:
    """Draws `count` voxels for one picture, count / stripes from each stripe.

    Each voxel of a stripe's pool is equally likely; none occurs twice, but with
    `replacement`, which fills up a pool of any size. The pool is of all subjects who
    saw the picture, or of one of them (its number).
    """
    seen = [
        s
        for k, (s, sample) in enumerate(
            zip(stores.subjects, pools.sample[:, picture], strict=True)
        )
        if sample >= 0 and subject in (None, k)
    ]
    per_stripe = count // stripes
    voxel = np.full((stripes, per_stripe), -1, np.int64)
    offset = np.asarray([s.offset for s in seen])
    num_voxels = np.asarray([s.num_voxels for s in seen])
    # Of each stripe and subject: the first voxel, and how many there are.
    first = (np.arange(stripes)[:, None] - offset) % stripes
    sizes = np.maximum(0, -((first - num_voxels) // stripes))
    ends = np.cumsum(sizes, axis=1)
    # What turns a place in a stripe's pool into a voxel.
    starts = offset + first - (ends - sizes) * stripes
    for stripe, pool in enumerate(ends[:, -1].tolist()):
        if replacement:
            chosen = rng.integers(pool, size=per_stripe if pool else 0)
        else:
            chosen = rng.choice(
                pool, min(per_stripe, pool), replace=False, shuffle=False
            )
        start = starts[stripe, 0]
        if len(seen) > 1:
            start = starts[stripe, np.searchsorted(ends[stripe], chosen, side="right")]
        voxel[stripe, : len(chosen)] = start + chosen * stripes
    return Draw(picture, voxel)


def moved(pictures: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Pictures, each moved by whole pixels, its edge repeated where it left.

    Args:
        pictures: (B, H, W, 3).
        shift: (B, 2) pixels down and to the right.

    Example:
        >>> row = np.arange(4).reshape(1, 1, 4, 1)
        >>> moved(row, np.array([[0, -1]])).ravel().tolist()
        [1, 2, 3, 3]
    """
    if not shift.any():
        return pictures
    height, width = pictures.shape[1:3]
    y = np.clip(np.arange(height) - shift[:, :1], 0, height - 1)  # (B, H)
    x = np.clip(np.arange(width) - shift[:, 1:], 0, width - 1)  # (B, W)
    picture = np.arange(len(pictures))[:, None, None]
    return pictures[picture, y[:, :, None], x[:, None]]


def gather(
    stores: crowd.Crowd,
    pools: Pools,
    drawn: Draw,
    stripes: int,
    share: sharding.Share | None = None,
) -> Batch:
    """Reads what a batch of draws needs: one read for each subject and store.

    Args:
        stores: The crowd.
        pools: From `find_pools`.
        drawn: Stacked: picture (B,), voxel (B, S, n), shift (B, 2).
        stripes: S.
        share: Of this process; None: all. Stores keep all voxels of a sample in one
            chunk, so a share of the stripes still reads whole samples.
    """
    picture, voxel = np.asarray(drawn.picture), np.asarray(drawn.voxel)
    if voxel.max(initial=0) >= stores.num_voxels:
        raise IndexError(f"voxel {voxel.max()} of a table of {stores.num_voxels}")
    whole, seen = picture, picture
    shift = np.broadcast_to(drawn.shift, (len(whole), 2))
    if share is not None:
        voxel = voxel[share.rows, share.stripes]
        picture, seen = whole[share.rows], whole[share.images]
        shift = shift[share.images]
    weight = voxel >= 0
    response = np.zeros(voxel.shape, np.float32)
    for k, subject in enumerate(stores.subjects):
        sample = pools.sample[k, picture]
        saw = np.flatnonzero(sample >= 0)
        inside = voxel[saw] - subject.offset  # padding is below 0
        mine = (inside >= 0) & (inside < subject.num_voxels)
        needed = mine.any((1, 2))
        if not needed.any():
            continue
        rows = crowd.read_responses(subject, sample[saw[needed]])  # (needed, V)
        if mine.all():  # no other subject saw these pictures
            response[saw] = rows[np.arange(len(rows))[:, None, None], inside]
            continue
        image, stripe, slot = np.nonzero(mine)
        of = np.cumsum(needed) - 1  # rows of those needed
        response[saw[image], stripe, slot] = rows[of[image], inside[mine]]
    return Batch(
        image=moved(crowd.read_pictures(stores, seen), shift),
        voxel=np.where(weight, voxel // stripes, 0).astype(np.int32),
        response=response,
        weight=weight.astype(np.float32),
        picture=whole.astype(np.int32),
    )


def dataset(
    stores: crowd.Crowd,
    settings: config.Data,
    seed: int,
    share: sharding.Share | None = None,
) -> grain.MapDataset:
    """All batches of a run: element `step` is the batch of that step.

    Every process draws the whole batch, see `draws`, and reads its share of it, so
    pictures and voxels of a step are the same for any number of processes.

    Args:
        stores: The crowd.
        settings: Batch and sample sizes.
        seed: Of order and draws.
        share: Of this process; None: all.
    """
    pools = find_pools(stores)

    def read(drawn: Draw) -> Batch:
        return gather(stores, pools, drawn, settings.stripes, share)

    return draws(stores, pools, settings, seed).map(read)


def draws(
    stores: crowd.Crowd, pools: Pools, settings: config.Data, seed: int
) -> grain.MapDataset:
    """What the batches of a run need, for `gather`; nothing is read.

    Every epoch shows each training picture once, in an order of its own. With
    data.store_power below 1 every store has epochs of its own and the stores take
    turns, see `store_weights`. What an epoch of groups (data.group_images) shows is
    told in `groups.endless`.

    Args:
        stores: The crowd.
        pools: From `find_pools`.
        settings: Batch and sample sizes.
        seed: Of order and draws.

    Returns:
        Element `step` is a stacked `Draw`: picture (B,), voxel (B, S, n), shift (B, 2).
    """
    stripes, count = settings.stripes, settings.voxels_per_image
    most, replacement = settings.shift_px, settings.replacement
    size = settings.group_images

    def draw(picture: int, rng: np.random.Generator) -> Draw:
        drawn = draw_voxels(
            stores, pools, int(picture), stripes, count, rng, replacement=replacement
        )
        if not most:
            return drawn
        return drawn._replace(shift=rng.integers(-most, most + 1, 2))

    def draw_group(group: groups.Group, rng: np.random.Generator) -> Draw:
        drawn = draw_voxels(
            stores,
            pools,
            int(group.picture[0]),
            stripes,
            count,
            rng,
            subject=group.subject,
            replacement=replacement,
        )
        shift = np.zeros((size, 2), np.int64)
        if most:
            shift = rng.integers(-most, most + 1, (size, 2))
        return Draw(group.picture, drawn.voxel, shift)

    if size > 1:
        seen, weights = _seen_by_store(stores, pools, settings)
        order = _mixed(
            [_endless_groups(seen[k], size, _seed_of_store(seed, k)) for k in weights],
            list(weights.values()),
        )
        drawn = order.seed(seed).random_map(draw_group)
        return drawn.batch(settings.batch_images // size).map(_apart)
    weights = store_weights(pools, settings.store_power)
    if len(weights) == 1 or settings.store_power == 1:
        order = _endless(pools.pictures, seed)
    else:
        order = grain.MapDataset.mix(
            [
                _endless(pools.pictures[pools.store == k], _seed_of_store(seed, k))
                for k in weights
            ],
            list(weights.values()),
        )
    return order.random_map(draw).batch(settings.batch_images)


def _seed_of_store(seed: int, store: int) -> int:
    """Stores of one size would else share an order."""
    return int(np.random.SeedSequence((seed, store)).generate_state(1)[0])


def _mixed(parts: list[grain.MapDataset], weights: list[int]) -> grain.MapDataset:
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)


def _seen_by_store(
    stores: crowd.Crowd, pools: Pools, settings: config.Data
) -> tuple[dict[int, np.ndarray], dict[int, int]]:
    """What groups are made of: who saw what in each store, and the stores' weights.

    A picture of several stores is in the epochs of each. With data.store_power 1 all
    are one store.
    """
    saw = pools.sample >= 0
    groups.check(saw, settings.group_images, [s.name for s in stores.subjects])
    if settings.store_power == 1:
        return {0: saw}, {0: 1}
    store = np.asarray([s.store for s in stores.subjects])[:, None]
    seen = {k: saw & (store == k) for k in range(len(stores.paths))}
    counts = [int(of.any(0).sum()) for of in seen.values()]
    own = pools._replace(store=np.repeat(list(seen), counts))
    return seen, store_weights(own, settings.store_power)


def _endless_groups(saw: np.ndarray, size: int, seed: int) -> grain.MapDataset:
    """Groups of one store, or of all; see `groups.endless`."""
    return grain.MapDataset.range(_ENDLESS).map(groups.endless(saw, size, seed))


def _apart(drawn: Draw) -> Draw:
    """Groups (G, K) with voxels (G, S, n) -> pictures (G K) with voxels (G K, S, n)."""
    picture = np.asarray(drawn.picture)
    voxel = np.repeat(np.asarray(drawn.voxel), picture.shape[1], axis=0)
    return Draw(picture.reshape(-1), voxel, np.asarray(drawn.shift).reshape(-1, 2))


def _endless(pictures: np.ndarray, seed: int) -> grain.MapDataset:
    """Pictures, each once in an epoch, in an order of each epoch's own."""
    order = grain.MapDataset.source([int(p) for p in pictures])
    return order.seed(seed).shuffle().repeat()


def store_weights(pools: Pools, power: float) -> dict[int, int]:
    """How often pictures of each store are drawn, relative to the other stores.

    The weight of a store is its number of training pictures to a power: 1 is in
    proportion, 0 equally often. It is rounded to hundredths of the smallest, so what
    is drawn is within 0.5% of it. Grain spreads the stores evenly over the steps, with
    no chance in it.

    Args:
        pools: From `find_pools`; a picture of several stores counts for the first.
        power: data.store_power, in [0, 1].

    Returns:
        {store: weight}, the smallest 100.

    Example:
        >>> pools = Pools(np.arange(5), np.array([0, 0, 0, 0, 2]), np.zeros((1, 5)))
        >>> [store_weights(pools, power) for power in (1, 0.5, 0)]
        [{0: 400, 2: 100}, {0: 200, 2: 100}, {0: 100, 2: 100}]
    """
    names, counts = np.unique(pools.store, return_counts=True)
    weights = np.rint(100 * (counts / counts.min()) ** power).astype(int)
    return dict(zip(names.tolist(), weights.tolist(), strict=True))


def iterate(batches: grain.MapDataset, start: int, threads: int) -> Any:
    """Iterator over the batches from step `start`, read ahead by threads."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterator = iter(batches.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator


def steps_per_epoch(stores: crowd.Crowd, settings: config.Data) -> float:
    """Batches that show as many pictures as there are for training.

    Those are every picture once, but with data.store_power below 1 pictures of small
    stores several times and not all of large ones. With groups a few are shown twice,
    see `groups.endless`: then those of an epoch of every store.
    """
    pools = find_pools(stores)
    if settings.group_images > 1:
        seen, weights = _seen_by_store(stores, pools, settings)
        count = sum(
            groups.of_epoch(seen[k], settings.group_images).sum() for k in weights
        )
        return float(count) * settings.group_images / settings.batch_images
    return len(pools.pictures) / settings.batch_images
