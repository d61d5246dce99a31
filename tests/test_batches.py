"""Batches: the same for a seed and a step, fair draws, and no test data in them."""

import dataclasses
import itertools

import grain
import numpy as np
import pytest
import zarr
from scipy import stats

from ubrain_jax import batches, config, crowd, errors, sharding

SETTINGS = config.Data(batch_images=8, voxels_per_image=16, stripes=4, read_threads=1)
# Three subjects of uneven sizes in one table.
VOXELS = (37, 23, 50)


def three(make_dataset, change=None):
    """Three subjects; t/0002 is train for all, t/0003 for two, 9 more for each."""
    dataset = make_dataset(num_subjects=3, voxels=VOXELS)

    def subjects():
        for subject in dataset.subjects:
            split = subject.split.copy()
            split[2:4] = "train"
            if subject.name == "t-subj02":
                split[3] = "val"
            subject = subject._replace(split=split)
            yield change(subject) if change else subject

    return dataset._replace(subjects=subjects())


@pytest.fixture(scope="module")
def stores(tmp_path_factory, make_dataset):
    path = tmp_path_factory.mktemp("batches") / "three.zarr"
    crowd.write(str(path), three(make_dataset), image_px=28)
    return crowd.open_crowd((str(path),))


@pytest.fixture(scope="module")
def pools(stores):
    return batches.find_pools(stores)


def take(source, count):
    return [source[step] for step in range(count)]


def assert_same(a, b):
    """Bit for bit."""
    for name, x, y in zip(batches.Batch._fields, a, b, strict=True):
        assert x.dtype == y.dtype, name
        assert x.tobytes() == y.tobytes(), name
        assert x.shape == y.shape, name


def global_voxels(batch, stripes=4):
    """Rows of the whole table: voxel v lives in row v // S of stripe v % S."""
    return batch.voxel.astype(np.int64) * stripes + np.arange(stripes)[:, None]


def test_shapes_and_types(stores):
    batch = batches.dataset(stores, SETTINGS, 0)[0]
    shapes = {name: a.shape for name, a in batch._asdict().items()}
    assert shapes == {
        "image": (8, 28, 28, 3),
        "voxel": (8, 4, 4),
        "response": (8, 4, 4),
        "weight": (8, 4, 4),
        "picture": (8,),
    }
    assert [a.dtype.name for a in batch] == [
        "uint8",
        "int32",
        "float32",
        "float32",
        "int32",
    ]


def test_pools_hold_train_samples_and_nothing_else(stores, pools):
    for k, subject in enumerate(stores.subjects):
        expected = np.full(len(stores.image_id), -1)
        for sample, (row, split) in enumerate(
            zip(subject.image, subject.split, strict=True)
        ):
            if split == "train":
                expected[row] = sample
        np.testing.assert_array_equal(pools.sample[k], expected)
    ids = {stores.image_id[p] for p in pools.pictures}
    own = {f"t/{1000 * k + i}" for k in (1, 2, 3) for i in range(9)}
    assert ids == own | {"t/0002", "t/0003"}


def test_no_training_picture_is_an_error(tmp_path, make_dataset):
    path = str(tmp_path / "t.zarr")

    def all_test(subject):
        return subject._replace(split=np.full(16, "test"))

    crowd.write(path, three(make_dataset, all_test), image_px=28)
    with pytest.raises(errors.InputError, match="no picture in a train split"):
        batches.find_pools(crowd.open_crowd((path,)))


@pytest.mark.parametrize("changes", [{}, {"replacement": True, "shift_px": 2}])
def test_every_response_is_the_one_in_the_store(stores, changes):
    """Against a slow look-up with zarr-python, one number at a time."""
    root = zarr.open_group(stores.paths[0], mode="r")
    ids = list(root["image_id"][...])
    tables = {
        name: (group["responses"][...], list(group["image"][...]))
        for name, group in root["subjects"].groups()
    }
    owner = [
        (name, v)
        for name, size in zip(sorted(tables), VOXELS, strict=True)
        for v in range(size)
    ]
    images = root["images"][...]
    count = 0
    settings = dataclasses.replace(SETTINGS, **changes)
    for batch in take(batches.dataset(stores, settings, 3), 8):
        voxels = global_voxels(batch)
        for b, picture in enumerate(batch.picture):
            row = ids.index(stores.image_id[picture])
            if not changes:
                np.testing.assert_array_equal(batch.image[b], images[row])
            for s, n in itertools.product(range(4), range(4)):
                name, inside = owner[voxels[b, s, n]]
                table, image = tables[name]
                assert batch.response[b, s, n] == table[image.index(row), inside]
                assert batch.weight[b, s, n] == 1
                count += 1
    assert count == 8 * 8 * 16


def test_voxels_are_of_subjects_who_saw_the_picture_and_none_comes_twice(stores, pools):
    edges = np.cumsum([0, *VOXELS])
    shared = 0
    for batch in take(batches.dataset(stores, SETTINGS, 1), 20):
        voxels = global_voxels(batch).reshape(8, -1)
        for picture, drawn in zip(batch.picture, voxels, strict=True):
            assert len(set(drawn.tolist())) == 16
            who = set(np.searchsorted(edges, drawn, side="right") - 1)
            saw = set(np.flatnonzero(pools.sample[:, picture] >= 0))
            assert who <= saw
            shared += len(saw) == 3
    assert shared > 0  # both kinds of pictures were met


@pytest.mark.parametrize(
    ("image_id", "seen_by"),
    [("t/0002", [0, 1, 2]), ("t/0003", [0, 2]), ("t/2001", [1])],
)
def test_every_voxel_of_the_pool_is_equally_likely(stores, pools, image_id, seen_by):
    picture = stores.image_id.index(image_id)
    saw = pools.sample[:, picture] >= 0
    assert np.flatnonzero(saw).tolist() == seen_by
    ends = np.cumsum(VOXELS)
    pool = np.concatenate(
        [np.arange(e - v, e) for e, v, s in zip(ends, VOXELS, saw, strict=True) if s]
    )
    times, counts = 3000, np.zeros(sum(VOXELS), int)
    for seed in range(times):
        rng = np.random.default_rng(seed)
        drawn = batches.draw_voxels(stores, pools, picture, 4, 16, rng).voxel
        np.testing.assert_array_equal(drawn % 4, np.arange(4)[:, None] + 0 * drawn)
        counts[drawn] += 1
    assert counts.sum() == times * 16
    assert counts[np.setdiff1d(np.arange(110), pool)].sum() == 0
    for stripe in range(4):
        inside = counts[pool[pool % 4 == stripe]]
        assert inside.sum() == times * 4
        # Without replacement counts vary less than chi-square says: a bound.
        assert stats.chisquare(inside).pvalue > 1e-3


def test_drawn_with_replacement_every_voxel_is_as_likely_at_every_place(stores, pools):
    """24 of each stripe of a pool of about 27: repeats, and no padding ever."""
    picture = stores.image_id.index("t/0002")
    rng = np.random.default_rng(0)
    drawn = np.stack(
        [
            batches.draw_voxels(
                stores, pools, picture, 4, 160, rng, replacement=True
            ).voxel
            for _ in range(250)
        ]
    )  # (250, 4, 40)
    assert (drawn >= 0).all()
    np.testing.assert_array_equal(drawn % 4, np.arange(4)[:, None] + 0 * drawn)
    for stripe in range(4):
        size = len(range(stripe, sum(VOXELS), 4))
        counts = np.bincount(drawn[:, stripe].ravel() // 4, minlength=size)
        assert stats.chisquare(counts).pvalue > 1e-3
        # Equal neighbours in a draw: 1 in `size`, were they independent.
        again = (drawn[:, stripe, 1:] == drawn[:, stripe, :-1]).sum()
        assert stats.binomtest(int(again), 250 * 39, 1 / size).pvalue > 1e-3


def test_a_stripe_without_a_voxel_is_padded_with_replacement_too(
    tmp_path, make_dataset
):
    path = str(tmp_path / "t.zarr")
    crowd.write(path, make_dataset(num_subjects=1, voxels=(3,)), image_px=28)
    few = crowd.open_crowd((path,))
    pools, rng = batches.find_pools(few), np.random.default_rng(0)
    picture = int(pools.pictures[0])
    drawn = batches.draw_voxels(few, pools, picture, 4, 16, rng, replacement=True)
    np.testing.assert_array_equal(drawn.voxel, [[0] * 4, [1] * 4, [2] * 4, [-1] * 4])


def slow_shift(picture, down, right):
    """One pixel at a time: what lies `down` above and `right` to the left."""
    height, width, _ = picture.shape
    out = np.empty_like(picture)
    for y, x in np.ndindex(height, width):
        from_y = min(max(y - down, 0), height - 1)
        from_x = min(max(x - right, 0), width - 1)
        out[y, x] = picture[from_y, from_x]
    return out


def test_a_moved_picture_repeats_its_edge():
    """Against a slow loop, and np.pad with a window on it."""
    pictures = np.random.default_rng(0).integers(0, 256, (49, 9, 12, 3), np.uint8)
    shifts = np.array(list(itertools.product(range(-3, 4), repeat=2)))
    found = batches.moved(pictures, shifts)
    assert found.dtype == np.uint8
    for picture, (down, right), ours in zip(pictures, shifts, found, strict=True):
        np.testing.assert_array_equal(ours, slow_shift(picture, down, right))
        wide = np.pad(picture, ((3, 3), (3, 3), (0, 0)), "edge")
        np.testing.assert_array_equal(
            ours, wide[3 - down : 12 - down, 3 - right : 15 - right]
        )


def test_training_pictures_are_moved_evenly_and_as_seed_and_step_say(stores):
    """Every shift of -2..2 as often, found by comparing with the stored picture."""
    settings = dataclasses.replace(SETTINGS, shift_px=2)
    plain, shifted = (batches.dataset(stores, s, 3) for s in (SETTINGS, settings))
    shifts = list(itertools.product(range(-2, 3), repeat=2))
    counts = np.zeros(len(shifts), int)
    for step in range(20):
        still, other = plain[step], shifted[step]
        # Voxels are drawn first, so they do not know of the shift.
        np.testing.assert_array_equal(still.voxel, other.voxel)
        for a, b in zip(still.image, other.image, strict=True):
            fits = [np.array_equal(slow_shift(a, *s), b) for s in shifts]
            assert sum(fits) == 1
            counts[fits.index(True)] += 1
    assert stats.chisquare(counts).pvalue > 1e-3
    assert_same(shifted[7], batches.dataset(stores, settings, 3)[7])
    last = batches.dataset(stores, settings, 4)[7]
    assert not np.array_equal(last.image, shifted[7].image)


def test_draws_are_not_the_same_positions_in_every_stripe(stores, pools):
    """One generator for all stripes, not one seed for each."""
    rng = np.random.default_rng(0)
    rows = batches.draw_voxels(stores, pools, 2, 4, 16, rng).voxel // 4
    assert len({tuple(sorted(r)) for r in rows.tolist()}) > 1


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("start", [0, 1, 5, 11])
def test_an_iterator_started_at_a_step_gives_the_unbroken_rest(stores, start, threads):
    unbroken = batches.iterate(batches.dataset(stores, SETTINGS, 0), 0, 1)
    expected = list(itertools.islice(unbroken, 14))[start:]
    fresh = batches.iterate(batches.dataset(stores, SETTINGS, 0), start, threads)
    for a, b in zip(expected, fresh, strict=False):
        assert_same(a, b)
    direct = batches.dataset(stores, SETTINGS, 0)
    assert_same(expected[-1], direct[13])


def test_another_seed_gives_other_pictures_and_voxels(stores):
    a = batches.dataset(stores, SETTINGS, 0)[0]
    b = batches.dataset(stores, SETTINGS, 1)[0]
    assert a.picture.tolist() != b.picture.tolist()
    assert a.voxel.tolist() != b.voxel.tolist()


def test_every_epoch_shows_each_training_picture_once_in_an_order_of_its_own(
    stores, pools
):
    shown = np.concatenate(
        [b.picture for b in take(batches.dataset(stores, SETTINGS, 0), 11)]
    )
    epochs = shown[: 3 * 29].reshape(3, 29)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), pools.pictures)
    assert len({tuple(e) for e in epochs.tolist()}) == 3
    assert batches.steps_per_epoch(stores, SETTINGS) == 29 / 8


def test_a_picture_has_other_voxels_in_another_epoch(stores):
    drawn = {}
    for batch in take(batches.dataset(stores, SETTINGS, 0), 11):
        for picture, voxel in zip(batch.picture, batch.voxel, strict=True):
            drawn.setdefault(int(picture), []).append(np.sort(voxel).tobytes())
    several = [d for d in drawn.values() if len(d) == 3]
    assert len(several) >= 20
    assert sum(len(set(d)) == 3 for d in several) >= len(several) - 2


def test_test_and_validation_pictures_never_appear(stores):
    train = {
        int(row)
        for s in stores.subjects
        for row, split in zip(s.image, s.split, strict=True)
        if split == "train"
    }
    shown = {
        int(p)
        for b in take(batches.dataset(stores, SETTINGS, 0), 12)
        for p in b.picture
    }
    assert shown == train


@pytest.mark.parametrize("split", ["test", "val"])
def test_responses_outside_the_train_split_change_no_bit(
    stores, tmp_path, make_dataset, split
):
    def shout(subject):
        values = subject.responses.copy()
        values[subject.split == split] = 1e6
        return subject._replace(responses=values)

    path = str(tmp_path / "t.zarr")
    crowd.write(path, three(make_dataset, shout), image_px=28)
    other = crowd.open_crowd((path,))
    rows = stores.subjects[0].samples(split)
    assert (crowd.read_responses(other.subjects[0], rows) == 1e6).all()
    for a, b in zip(
        take(batches.dataset(stores, SETTINGS, 0), 8),
        take(batches.dataset(other, SETTINGS, 0), 8),
        strict=True,
    ):
        assert_same(a, b)


def shares(data, voxel, processes, size=8, stripes=4):
    """What each of several processes holds on a mesh of their devices, in order."""
    place = np.arange(data * voxel).reshape(data, voxel)
    found = []
    for own in np.split(place.ravel(), processes):
        rows, columns = np.nonzero(np.isin(place, own))

        def cut(of, parts, number):
            return slice(min(of) * number // parts, (max(of) + 1) * number // parts)

        images = cut(own, place.size, size)
        samples = cut(rows, data, size), cut(columns, voxel, stripes)
        found.append(sharding.Share(images, *samples, (size, stripes)))
    return found


def assert_shares(whole, parts, given, steps):
    """Parts of batches are what slices of whole batches are."""
    for step in steps:
        all_of_it = whole[step]
        for share, part in zip(given, parts, strict=True):
            own = [
                a[share.rows, share.stripes]
                for a in (all_of_it.voxel, all_of_it.response, all_of_it.weight)
            ]
            picture = all_of_it.picture  # every process can name all
            mine = batches.Batch(all_of_it.image[share.images], *own, picture)
            assert_same(mine, part[step])


MESHES = [(1, 8, 2), (2, 4, 2), (8, 1, 2), (2, 4, 4), (4, 2, 8), (1, 4, 4)]


@pytest.mark.parametrize(("data", "voxel", "processes"), MESHES)
def test_processes_read_their_share_of_the_batch_of_one(stores, data, voxel, processes):
    stripes = 8 if voxel == 8 else 4
    settings = dataclasses.replace(SETTINGS, stripes=stripes)
    given = shares(data, voxel, processes, stripes=stripes)
    parts = [batches.dataset(stores, settings, 0, share) for share in given]
    # 3 and 4 touch two epochs
    assert_shares(batches.dataset(stores, settings, 0), parts, given, (0, 1, 3, 4))


def test_processes_move_their_pictures_as_one_does(stores):
    settings = dataclasses.replace(SETTINGS, shift_px=3, replacement=True)
    given = shares(2, 4, 4)
    parts = [batches.dataset(stores, settings, 0, share) for share in given]
    assert_shares(batches.dataset(stores, settings, 0), parts, given, (0, 3))


def test_a_process_reads_no_pictures_but_its_own(stores, monkeypatch):
    read = []
    real = crowd.read_pictures
    monkeypatch.setattr(
        crowd, "read_pictures", lambda s, rows: read.extend(rows) or real(s, rows)
    )
    share = shares(1, 8, 2, stripes=8)[1]
    settings = dataclasses.replace(SETTINGS, stripes=8)
    batch = batches.dataset(stores, settings, 0, share)[2]
    assert read == batch.picture[4:].tolist()
    assert batch.voxel.shape == (8, 4, 2)


def test_a_pool_too_small_is_padded_with_weight_0(stores, pools):
    settings = config.Data(batch_images=8, voxels_per_image=32, stripes=4)
    padded = 0
    for batch in take(batches.dataset(stores, settings, 0), 4):
        voxels = global_voxels(batch)
        for b, picture in enumerate(batch.picture):
            saw = np.flatnonzero(pools.sample[:, picture] >= 0)
            if list(saw) != [1]:
                assert batch.weight[b].all()
                continue
            pool = np.arange(37, 60)  # 23 voxels for 32 places
            for s in range(4):
                mine = pool[pool % 4 == s]
                weight = batch.weight[b, s]
                assert weight.tolist() == [1] * len(mine) + [0] * (8 - len(mine))
                np.testing.assert_array_equal(np.sort(voxels[b, s, : len(mine)]), mine)
                assert not batch.voxel[b, s, len(mine) :].any()
                assert not batch.response[b, s, len(mine) :].any()
            padded += 1
    assert padded > 0


def test_a_subject_with_fewer_voxels_than_stripes(tmp_path, make_dataset):
    path = str(tmp_path / "t.zarr")
    dataset = make_dataset(num_subjects=1, voxels=(3,))
    crowd.write(path, dataset, image_px=28)
    settings = config.Data(batch_images=3, voxels_per_image=16, stripes=8)
    batch = batches.dataset(crowd.open_crowd((path,)), settings, 0)[0]
    expected = np.zeros((3, 8, 2))
    expected[:, :3, 0] = 1
    np.testing.assert_array_equal(batch.weight, expected)
    assert not batch.voxel.any()
    assert (batch.response[:, :3, 0] != 0).all()


def test_a_batch_larger_than_the_training_set_goes_on_into_the_next_epoch(
    tmp_path, make_dataset
):
    path = str(tmp_path / "t.zarr")
    crowd.write(path, make_dataset(num_subjects=1), image_px=28)  # 9 in train
    settings = config.Data(batch_images=18, voxels_per_image=16, stripes=4)
    batch = batches.dataset(crowd.open_crowd((path,)), settings, 0)[0]
    _, counts = np.unique(batch.picture, return_counts=True)
    assert counts.tolist() == [2] * 9


def test_two_stores_give_voxels_of_both_subjects_for_a_shared_picture(
    tmp_path, make_dataset
):
    paths = [str(tmp_path / name) for name in ("a.zarr", "b.zarr")]
    for k, path in enumerate(paths):
        subject = list(three(make_dataset).subjects)[k]
        dataset = make_dataset()._replace(subjects=iter([subject]))
        crowd.write(path, dataset, image_px=28)
    stores = crowd.open_crowd(paths)
    pools = batches.find_pools(stores)
    picture = stores.image_id.index("t/0002")
    assert (pools.sample[:, picture] >= 0).all()
    rng = np.random.default_rng(0)
    draw = batches.draw_voxels(stores, pools, picture, 4, 60, rng)
    np.testing.assert_array_equal(np.sort(draw.voxel, None), np.arange(60))
    draws = batches.Draw(np.array([picture]), draw.voxel[None])
    batch = batches.gather(stores, pools, draws, 4)
    responses = np.zeros(60)
    for subject in stores.subjects:
        (sample,) = np.flatnonzero(subject.image == picture)
        row = crowd.read_responses(subject, np.array([sample]))[0]
        responses[subject.offset : subject.offset + subject.num_voxels] = row
    np.testing.assert_array_equal(batch.response[0], responses[draw.voxel])


# Several stores

SIZES = {"a": 40, "b": 10, "c": 9}  # training pictures of three stores


@pytest.fixture(scope="module")
def joint(tmp_path_factory, make_dataset):
    """Three stores of one subject each; two more train pictures of b are a's too."""
    folder = tmp_path_factory.mktemp("joint")
    for seed, (name, size) in enumerate(SIZES.items()):
        shared = 2 * (name == "b")
        dataset = make_dataset(1, size + 3 + shared, 0, (20 + 9 * seed,), seed=seed)
        (subject,) = dataset.subjects
        ids = [f"{name}/{k}" for k in range(size + 3 + shared)]
        read = {i: f"{name}{k}" for k, i in enumerate(ids)}
        # b/0 is a/0; b/1 is a/1 by content alone.
        if shared:
            ids[0] = "a/0"
            read |= {"a/0": "a0", "b/1": "a1"}

        def read_images(asked, read=read, dataset=dataset):
            return dataset.read_images([read[i] for i in asked])

        subject = subject._replace(name=f"{name}-s", image_id=ids)
        dataset = dataset._replace(subjects=iter([subject]), read_images=read_images)
        crowd.write(str(folder / f"{name}.zarr"), dataset, image_px=28)
    return crowd.open_crowd([str(folder / f"{name}.zarr") for name in SIZES])


def weighed(power, **changes):
    return config.Data(
        batch_images=8, voxels_per_image=16, stripes=4, store_power=power, **changes
    )


def shown(stores, settings, steps, seed=0):
    return np.concatenate(
        [b.picture for b in take(batches.dataset(stores, settings, seed), steps)]
    )


def test_a_picture_of_two_stores_counts_for_the_first_with_voxels_of_both(joint):
    pools = batches.find_pools(joint)
    assert np.bincount(pools.store).tolist() == list(SIZES.values())
    assert batches.steps_per_epoch(joint, weighed(0.5)) == sum(SIZES.values()) / 8
    for image_id, other in (("a/0", "a/0"), ("a/1", "b/1")):
        picture = joint.image_id.index(image_id)
        assert other == image_id or other not in joint.image_id
        assert (pools.sample[:2, picture] >= 0).all()
        assert pools.store[pools.pictures == picture] == 0
        rng = np.random.default_rng(0)
        draw = batches.draw_voxels(joint, pools, picture, 4, 64, rng)
        drawn = draw.voxel[draw.voxel >= 0]
        np.testing.assert_array_equal(np.sort(drawn), np.arange(49))
    # Without a's subject the picture is b's.
    few = crowd.open_crowd(joint.paths, ("c-s", "b-s"))
    pools = batches.find_pools(few)
    assert np.bincount(pools.store).tolist() == [0, 12, 9]


def test_power_1_is_one_common_shuffle_bit_for_bit(joint):
    """The order there was before stores had weights, written out."""
    pools = batches.find_pools(joint)

    def draw(picture, rng):
        return batches.draw_voxels(joint, pools, picture, 4, 16, rng)

    order = grain.MapDataset.source(pools.pictures.tolist()).seed(5).shuffle().repeat()
    before = order.random_map(draw).batch(8)
    now = batches.dataset(joint, weighed(1.0), 5)
    for step in range(16):  # two epochs
        assert_same(batches.gather(joint, pools, before[step], 4), now[step])


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 0.9])
def test_each_store_is_shown_as_often_as_its_size_to_the_power(joint, power):
    pools = batches.find_pools(joint)
    sizes = np.array(list(SIZES.values()))
    weights = np.array(list(batches.store_weights(pools, power).values()))
    np.testing.assert_allclose(weights / 100, (sizes / 9) ** power, rtol=0.005)
    store = np.full(len(joint.image_id), -1)
    store[pools.pictures] = pools.store
    steps = 60
    of = store[shown(joint, weighed(power), steps)]
    # Spread evenly: after any number of draws, not only at the end.
    for n in (8, 40, 8 * steps):
        counts = np.bincount(of[:n], minlength=3)
        assert np.abs(counts - n * weights / weights.sum()).max() < 2


def test_power_0_of_stores_shows_every_store_in_turn(joint):
    pools = batches.find_pools(joint)
    store = dict(zip(pools.pictures.tolist(), pools.store.tolist(), strict=True))
    of = [store[p] for p in shown(joint, weighed(0.0), 30).tolist()]
    assert {tuple(sorted(of[n : n + 3])) for n in range(0, 240, 3)} == {(0, 1, 2)}


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_each_store_has_epochs_in_orders_of_their_own(joint, power):
    pools = batches.find_pools(joint)
    pictures = shown(joint, weighed(power), 60)
    for k, size in enumerate(SIZES.values()):
        own = pools.pictures[pools.store == k]
        mine = pictures[np.isin(pictures, own)]
        epochs = mine[: len(mine) // size * size].reshape(-1, size)
        assert len(epochs) >= 3
        np.testing.assert_array_equal(np.sort(epochs, 1), [np.sort(own)] * len(epochs))
        assert len({tuple(e) for e in epochs.tolist()}) == len(epochs)


def test_stores_of_one_size_have_orders_of_their_own(tmp_path, make_dataset):
    paths = []
    for k, name in enumerate(("a", "b")):
        (subject,) = make_dataset(1, 33, 0).subjects
        subject = subject._replace(
            name=name, image_id=[f"{name}/{i}" for i in subject.image_id]
        )
        paths.append(str(tmp_path / name))
        dataset = make_dataset()._replace(subjects=iter([subject]))
        crowd.write(paths[k], dataset, image_px=28)
    stores = crowd.open_crowd(paths)
    order = shown(stores, weighed(0.0), 7)
    first, second = order[order < 33], order[order >= 33] - 33
    assert len(first) == len(second) == 28
    assert np.mean(first == second) < 0.3


def test_a_power_says_nothing_of_one_store(stores):
    for a, b in zip(
        take(batches.dataset(stores, weighed(0.0), 0), 6),
        take(batches.dataset(stores, SETTINGS, 0), 6),
        strict=True,
    ):
        assert_same(a, b)


@pytest.mark.parametrize("power", [0.0, 0.5])
@pytest.mark.parametrize("start", [1, 7])
def test_weighed_stores_resume_bit_for_bit(joint, power, start):
    settings = weighed(power)
    unbroken = batches.iterate(batches.dataset(joint, settings, 3), 0, 1)
    expected = list(itertools.islice(unbroken, 12))[start:]
    resumed = batches.iterate(batches.dataset(joint, settings, 3), start, 4)
    for a, b in zip(expected, resumed, strict=False):
        assert_same(a, b)
    other = batches.dataset(joint, settings, 4)[start]
    assert other.picture.tolist() != expected[0].picture.tolist()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_processes_share_the_batch_of_weighed_stores(joint, power):
    settings = weighed(power)
    given = shares(2, 4, 2, settings.batch_images, settings.stripes)
    parts = [batches.dataset(joint, settings, 0, share) for share in given]
    assert_shares(batches.dataset(joint, settings, 0), parts, given, (0, 1, 6, 7))


def test_a_voxel_outside_the_table_raises(stores, pools):
    draws = batches.Draw(np.array([2]), np.array([[[0], [1], [2], [111]]]))
    with pytest.raises(IndexError, match="voxel 111 of a table of 110"):
        batches.gather(stores, pools, draws, 4)


def test_lost_data_stop_the_iterator_with_the_file(tmp_path, make_dataset):
    path = tmp_path / "t.zarr"
    crowd.write(str(path), make_dataset(), image_px=28)
    source = batches.dataset(crowd.open_crowd((str(path),)), SETTINGS, 0)
    iterator = batches.iterate(source, 0, 2)
    next(iterator)
    for file in path.glob("subjects/*/responses/c/*/*"):
        file.unlink()
    with pytest.raises(errors.InputError, match=r"responses/: cannot be read"):
        list(itertools.islice(iterator, 20))
