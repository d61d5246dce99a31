"""Groups: one subject and one draw of voxels each, every picture in every epoch."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests import test_batches as plain
from ubrain_jax import batches, config, crowd, errors, groups

SETTINGS = config.Data(
    batch_images=8, voxels_per_image=16, stripes=4, read_threads=1, group_images=4
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory, make_dataset):
    """Three subjects; of 11, 10 and 11 training pictures one is of all, one of two."""
    path = tmp_path_factory.mktemp("groups") / "three.zarr"
    crowd.write(str(path), plain.three(make_dataset), image_px=28)
    return crowd.open_crowd((str(path),))


def seen(seed, subjects=4, pictures=97, chance=0.4):
    """Who saw what; some pictures nobody."""
    return np.random.default_rng(seed).random((subjects, pictures)) < chance


def epoch(saw, size, seed, number):
    get = groups.endless(saw, size, seed)
    total = int(groups.of_epoch(saw, size).sum())
    return [get(number * total + k) for k in range(total)]


@pytest.mark.parametrize("size", [2, 5, 16])
@pytest.mark.parametrize("number", [0, 1, 7])
def test_an_epoch_shows_every_picture_and_few_twice(size, number):
    saw = seen(0)
    found = epoch(saw, size, 3, number)
    for group in found:
        assert len(set(group.picture.tolist())) == size
        assert saw[group.subject, group.picture].all()
    counts = np.bincount(np.concatenate([g.picture for g in found]), minlength=97)
    assert (counts[saw.any(0)] >= 1).all()
    assert (counts[~saw.any(0)] == 0).all()
    own = np.bincount([g.subject for g in found], minlength=4)
    np.testing.assert_array_equal(own, groups.of_epoch(saw, size))
    # Rounding: a group of each subject, and a picture for each set of subjects.
    assert counts.sum() - saw.any(0).sum() < 4 * (size + 2**4)


def test_pictures_of_one_subject_each_are_shown_once_but_for_the_last_group():
    saw = np.zeros((3, 60), bool)
    for subject, (first, last) in enumerate(((0, 32), (32, 50), (50, 60))):
        saw[subject, first:last] = True
    assert groups.of_epoch(saw, 4).tolist() == [8, 5, 3]  # 18 and 10: two to fill
    for number in range(3):
        found = epoch(saw, 4, 0, number)
        shown = np.concatenate([g.picture for g in found])
        counts = np.bincount(shown, minlength=60)
        assert (counts[:32] == 1).all()
        assert sorted(counts[32:50]) == [1] * 16 + [2] * 2
        assert sorted(counts[50:]) == [1] * 8 + [2] * 2


def test_a_picture_of_several_subjects_is_each_ones_in_turn():
    """So none of them sees a part of its pictures only."""
    saw = np.ones((3, 24), bool)
    saw[0, 20:] = False
    assert groups.of_epoch(saw, 2).tolist() == [4, 5, 5]
    owners = np.full((6, 24), -1)
    for number in range(6):
        owner = groups._owners(saw, _turn(saw) + number)
        assert saw[owner, np.arange(24)].all()
        owners[number] = owner
    for picture in range(24):
        members = np.flatnonzero(saw[:, picture])
        times = np.bincount(owners[:, picture], minlength=3)[members]
        assert (times == 6 // len(members)).all()
    # and in every epoch in equal parts
    parts = [np.bincount(o[:20], minlength=3) for o in owners]
    assert all(sorted(p) == [6, 7, 7] for p in parts)


def _turn(saw):
    return groups._turns(saw, np.random.default_rng(5))


def test_every_subject_shows_all_its_pictures_over_epochs():
    saw = seen(1, chance=0.7)
    pairs = set()
    for number in range(4):  # as many as subjects
        for group in epoch(saw, 8, 0, number):
            pairs |= {(group.subject, p) for p in group.picture.tolist()}
    assert pairs == set(zip(*np.nonzero(saw), strict=True))


def test_groups_are_a_function_of_seed_and_number_alone():
    saw = seen(2)
    one, two = (groups.endless(saw, 4, 9) for _ in range(2))
    numbers = [500, 3, 77, 0, 3, 76, 12_345_678]
    first = [one(k) for k in numbers]
    second = {k: two(k) for k in sorted(numbers, reverse=True)}
    for k, group in zip(numbers, first, strict=True):
        assert group.subject == second[k].subject
        np.testing.assert_array_equal(group.picture, second[k].picture)
    other = groups.endless(saw, 4, 10)
    assert any(one(k).picture.tolist() != other(k).picture.tolist() for k in range(3))
    orders = {tuple(g.picture.tobytes() for g in epoch(saw, 4, 9, e)) for e in range(3)}
    assert len(orders) == 3


def test_a_batch_is_groups_that_share_subject_and_voxels(stores):
    edges = np.cumsum([0, *plain.VOXELS])
    pools = batches.find_pools(stores)
    subjects, draws = set(), set()
    for batch in plain.take(batches.dataset(stores, SETTINGS, 1), 9):
        voxels = plain.global_voxels(batch).reshape(8, -1)
        for rows in (slice(0, 4), slice(4, 8)):
            assert len(set(batch.picture[rows].tolist())) == 4
            assert (voxels[rows] == voxels[rows][:1]).all()
            assert len(set(voxels[rows][0].tolist())) == 16
            who = np.searchsorted(edges, voxels[rows][0], side="right") - 1
            assert len(set(who.tolist())) == 1
            assert (pools.sample[who[0], batch.picture[rows]] >= 0).all()
            subjects.add(int(who[0]))
            draws.add(voxels[rows][0].tobytes())
    assert subjects == {0, 1, 2}
    assert len(draws) == 18


def test_responses_of_a_group_are_those_of_its_subject_in_the_store(stores):
    edges = np.cumsum([0, *plain.VOXELS])
    for batch in plain.take(batches.dataset(stores, SETTINGS, 3), 4):
        voxels = plain.global_voxels(batch)
        pictures = crowd.read_pictures(stores, batch.picture)
        np.testing.assert_array_equal(batch.image, pictures)
        for b, picture in enumerate(batch.picture):
            who = np.searchsorted(edges, voxels[b, 0, 0], side="right") - 1
            subject = stores.subjects[who]
            [sample] = np.flatnonzero(subject.image == picture)
            assert subject.split[sample] == "train"
            row = crowd.read_responses(subject, np.array([sample]))[0]
            np.testing.assert_array_equal(
                batch.response[b], row[voxels[b] - subject.offset]
            )
        assert batch.weight.all()


def test_voxels_of_a_group_are_padded_where_its_subject_has_too_few(stores):
    settings = dataclasses.replace(SETTINGS, voxels_per_image=32)
    sizes = {37: 32, 23: 23, 50: 32}
    found = set()
    for batch in plain.take(batches.dataset(stores, settings, 0), 6):
        np.testing.assert_array_equal(batch.weight[0], batch.weight[3])
        voxels = plain.global_voxels(batch)[0][batch.weight[0] > 0]
        owner = np.searchsorted(np.cumsum(plain.VOXELS), voxels[0], side="right")
        assert batch.weight[0].sum() == sizes[plain.VOXELS[owner]]
        found.add(int(owner))
    assert 1 in found  # the one with 23


def test_an_epoch_of_batches_has_all_training_pictures(stores):
    pools = batches.find_pools(stores)
    per_epoch = batches.steps_per_epoch(stores, SETTINGS)
    assert per_epoch == 4.5  # 9 groups of 4 for 29 pictures
    shown = plain.shown(stores, SETTINGS, 9).reshape(2, 36)
    for pictures in shown:
        np.testing.assert_array_equal(np.unique(pictures), pools.pictures)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(("start", "size"), [(1, 4), (6, 4), (5, 8), (100_000, 2)])
def test_grouped_batches_resume_bit_for_bit(stores, start, size, threads):
    settings = dataclasses.replace(SETTINGS, group_images=size)
    first = max(0, start - 6)
    unbroken = batches.iterate(batches.dataset(stores, settings, 0), first, 1)
    expected = list(itertools.islice(unbroken, 12))[start - first :]
    fresh = batches.iterate(batches.dataset(stores, settings, 0), start, threads)
    for a, b in zip(expected, fresh, strict=False):
        plain.assert_same(a, b)
    other = batches.dataset(stores, settings, 1)[start]
    assert other.picture.tolist() != expected[0].picture.tolist()
    assert other.voxel.tolist() != expected[0].voxel.tolist()


@pytest.mark.parametrize(("data", "voxel", "processes"), [(2, 4, 2), (8, 1, 8)])
def test_processes_read_their_share_of_groups(stores, data, voxel, processes):
    given = plain.shares(data, voxel, processes)
    parts = [batches.dataset(stores, SETTINGS, 0, share) for share in given]
    whole = batches.dataset(stores, SETTINGS, 0)
    plain.assert_shares(whole, parts, given, (0, 4, 5))


def test_only_the_subject_of_a_group_is_read(stores, monkeypatch):
    """Others saw some of its pictures too."""
    read = []
    real = crowd.read_responses
    monkeypatch.setattr(
        crowd, "read_responses", lambda s, rows: read.append(len(rows)) or real(s, rows)
    )
    data = batches.dataset(stores, SETTINGS, 0)
    for step in range(9):
        read.clear()
        assert data[step].weight.all()
        assert sum(read) == 8


def test_a_subject_with_fewer_pictures_than_a_group_is_named(stores):
    settings = dataclasses.replace(SETTINGS, batch_images=22, group_images=11)
    with pytest.raises(
        errors.ConfigError, match=r"11, and of training pictures t-subj02 has 10"
    ):
        batches.dataset(stores, settings, 0)
    with pytest.raises(errors.ConfigError, match="t-subj02"):
        batches.steps_per_epoch(stores, settings)


# Several stores.


@pytest.fixture(scope="module")
def joint(tmp_path_factory, make_dataset):
    """24, 12 and 8 training pictures; those of c are all a's too."""
    folder = tmp_path_factory.mktemp("joint")
    sizes = {"a": 24, "b": 12, "c": 8}
    for seed, (name, size) in enumerate(sizes.items()):
        dataset = make_dataset(1, size + 3, 0, (20 + 9 * seed,), seed=seed)
        (subject,) = dataset.subjects
        ids = [f"{'a' if name == 'c' else name}/{k}" for k in range(size)]
        ids += [f"{name}/val{k}" for k in range(3)]
        subject = subject._replace(name=f"{name}-s", image_id=ids)
        dataset = dataset._replace(subjects=iter([subject]))
        crowd.write(str(folder / f"{name}.zarr"), dataset, image_px=28)
    return crowd.open_crowd([str(folder / f"{name}.zarr") for name in sizes])


def subjects_of(stores, settings, steps):
    """Subject of each group shown, and the pictures."""
    who, pictures = [], []
    ends = np.cumsum([s.num_voxels for s in stores.subjects])
    for batch in plain.take(batches.dataset(stores, settings, 0), steps):
        first = plain.global_voxels(batch)[::4, 0, 0]
        who += np.searchsorted(ends, first, side="right").tolist()
        pictures += batch.picture.reshape(-1, 4).tolist()
    return np.array(who), np.array(pictures)


@pytest.mark.parametrize(
    ("power", "share"), [(1.0, [5, 3, 1]), (0.5, [24, 12, 8]), (0.0, [1, 1, 1])]
)
def test_stores_of_groups_are_weighted_by_their_pictures(joint, power, share):
    settings = dataclasses.replace(SETTINGS, store_power=power)
    share = np.array(share) ** (power or 1.0)
    who, pictures = subjects_of(joint, settings, 36)
    counts = np.bincount(who, minlength=3)
    assert np.abs(counts - 72 * share / share.sum()).max() <= 2
    saw = batches.find_pools(joint).sample >= 0
    assert saw[who[:, None], pictures].all()
    if power < 1:  # every store has epochs of its own
        mine = pictures[who == 2]
        for number in range(len(mine) // 2):
            own = np.sort(mine[2 * number : 2 * number + 2].ravel())
            np.testing.assert_array_equal(own, np.flatnonzero(saw[2]))


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_weighted_stores_of_groups_resume_and_are_shared(joint, power):
    settings = dataclasses.replace(SETTINGS, store_power=power)
    whole = batches.dataset(joint, settings, 3)
    resumed = batches.iterate(batches.dataset(joint, settings, 3), 5, 4)
    for step, batch in zip(range(5, 9), resumed, strict=False):
        plain.assert_same(whole[step], batch)
    given = plain.shares(2, 4, 2)
    parts = [batches.dataset(joint, settings, 3, share) for share in given]
    plain.assert_shares(whole, parts, given, (0, 7))
