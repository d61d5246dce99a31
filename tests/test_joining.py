"""Several stores as one set of pictures: what is merged, refused, and only said."""

import numpy as np
import pytest

from ubrain_jax import errors, joining


def pictures(path, *known):
    """Pictures of a store, each "id=content"; content stands for a hash."""
    ids, contents = zip(*(k.split("=") for k in known), strict=True)
    return joining.Pictures(path, list(ids), list(contents), None)


def seen(name, store, **splits):
    """A subject who saw rows of a store: split="0 1 4"."""
    rows = [(int(r), s) for s, some in splits.items() for r in some.split()]
    image, split = zip(*rows, strict=True)
    return joining.Seen(name, store, np.array(image), np.array(split))


def as_lists(merged):
    return [rows.tolist() for rows in merged]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (["x=1", "z=9"], [0, 2]),  # by id
        (["z=1", "w=2"], [0, 1]),  # by content
        (["z=2", "w=9", "v=1"], [1, 2, 0]),
        (["x=7"], [0]),  # saved again with loss: the id counts
        (["z=1", "x=7"], [2, 0]),  # an id goes before a content that comes earlier
        (["z=1", "w=1"], [0, 2]),  # twins of one store stay two
        (["y=1", "x=2"], [1, 0]),  # ids exchanged: ids count; `crowd` looks at pixels
    ],
)
def test_a_picture_is_one_by_id_or_else_by_content(second, expected):
    stores = [pictures("a", "x=1", "y=2"), pictures("b", *second)]
    assert as_lists(joining.merge(stores)) == [[0, 1], expected]


def test_twins_of_two_stores_are_paired():
    stores = [pictures("a", "x=1", "y=1"), pictures("b", "z=1", "w=1", "v=1")]
    assert as_lists(joining.merge(stores)) == [[0, 1], [0, 1, 2]]


def test_a_third_store_joins_either_content_of_an_id():
    stores = [pictures("a", "x=1"), pictures("b", "x=2"), pictures("c", "z=2")]
    assert as_lists(joining.merge(stores)) == [[0], [0], [0]]


def test_two_ids_that_are_one_elsewhere_stay_two_where_one_store_has_both():
    one = pictures("a", "x=1"), pictures("b", "y=1")
    assert as_lists(joining.merge([*one, pictures("c", "y=1", "x=1")])) == [
        [0],
        [0],
        [1, 0],
    ]
    # And a leak by that id is still one.
    stores = [*one, pictures("c", "x=1", "y=2")]
    subjects = [seen("t", 1, test="0"), seen("u", 2, train="1")]
    assert "by id: y (test of t, train of u)" in refusal(stores, subjects)


def test_without_hashes_only_ids_count():
    stores = [joining.Pictures("a", ["x", "y"], None, None)]
    assert as_lists(joining.merge(stores)) == [[0, 1]]
    stores.append(joining.Pictures("b", ["z", "y"], None, None))
    assert as_lists(joining.merge(stores)) == [[0, 1], [2, 1]]


@pytest.mark.parametrize("seed", range(60))
def test_what_merging_promises_holds_on_random_stores(seed):
    rng = np.random.default_rng(seed)
    stores = []
    for name in "abcd":
        ids = rng.choice(12, rng.integers(1, 9), replace=False)
        contents = rng.choice(6, len(ids))
        known = [f"{i}={c}" for i, c in zip(ids, contents, strict=True)]
        stores.append(pictures(name, *known))
    merged = joining.merge(stores)
    everything = np.concatenate(merged)
    numbers, first = np.unique(everything, return_index=True)
    assert numbers.tolist() == list(range(len(first)))
    assert (np.diff(first) > 0).all()  # numbered as they appear
    names = [i for s in stores for i in s.ids]
    names = [names[n] for n in first]
    assert len(set(names)) == len(names)
    before = set()  # (number, content) in earlier stores
    for store, rows in zip(stores, merged, strict=True):
        mine = rows.tolist()
        assert len(set(mine)) == len(mine)
        for image_id, content, row in zip(store.ids, store.sha256, mine, strict=True):
            if image_id in names[: len({r for r, _ in before})]:
                assert row == names.index(image_id)
            elif row not in {r for r, _ in before}:  # new: every partner is taken
                assert {r for r, c in before if c == content} <= set(mine)
        before |= set(zip(mine, store.sha256, strict=True))


def refusal(stores, subjects):
    with pytest.raises(errors.InputError) as caught:
        joining.refuse_leaks(stores, joining.merge(stores), subjects)
    return str(caught.value)


@pytest.mark.parametrize("other", ["train", "val"])
def test_a_leak_by_id_names_the_picture_and_both_subjects(other):
    stores = [pictures("a.zarr", "x=1", "y=2"), pictures("b.zarr", "x=1", "z=3")]
    subjects = [seen("s", 0, test="0", train="1"), seen("t", 1, **{other: "0 1"})]
    message = refusal(stores, subjects)
    assert message.startswith("a.zarr, b.zarr:split: 1 pictures are test")
    assert f"by id: x (test of s, {other} of t); expected" in message


def test_a_leak_by_content_names_both_ids():
    stores = [pictures("a", "x=1", "y=2"), pictures("b", "w=2", "z=1")]
    subjects = [seen("s", 0, train="0 1"), seen("t", 1, test="1", val="0")]
    message = refusal(stores, subjects)
    assert "1 pictures" in message
    assert "by content: z (test of t) is x (train of s); expected" in message


def test_leaks_by_id_and_by_content_are_told_at_once():
    stores = [pictures("a", "x=1", "y=2"), pictures("b", "x=1", "z=2")]
    subjects = [seen("s", 0, test="0 1"), seen("t", 1, train="0 1")]
    message = refusal(stores, subjects)
    assert "by id: x (test of s, train of t); 1 pictures" in message
    assert "by content: y (test of s) is z (train of t); expected" in message


def test_a_twin_that_is_not_merged_leaks_too():
    stores = [pictures("a", "x=1", "y=2"), pictures("b", "z=1", "w=1")]
    subjects = [seen("s", 0, test="0"), seen("t", 1, train="1")]
    assert as_lists(joining.merge(stores)) == [[0, 1], [0, 2]]
    assert "by content: x (test of s) is w (train of t)" in refusal(stores, subjects)


def test_a_leak_through_a_third_store_is_found():
    """b says that two contents are one picture; nobody in use saw it there."""
    stores = [pictures("a", "x=1"), pictures("b", "x=2", "o=5"), pictures("c", "z=2")]
    subjects = [seen("s", 0, test="0"), seen("t", 1, train="1"), seen("u", 2, val="0")]
    assert "by content: x (test of s) is z (val of u)" in refusal(stores, subjects)


def test_the_first_twenty_leaks_are_listed_and_the_rest_counted():
    known = [f"i{n}={n}" for n in range(30)]
    stores = [pictures("a", *known), pictures("b", *known)]
    everything = " ".join(map(str, range(30)))
    subjects = [seen("s", 0, test=everything), seen("t", 1, train=everything)]
    message = refusal(stores, subjects)
    assert "30 pictures are test" in message
    assert [f"i{n} (test of s" in message for n in range(30)] == [True] * 20 + [
        False
    ] * 10
    assert "and 10 more" in message


def test_the_same_split_everywhere_is_no_leak():
    stores = [pictures("a", "x=1", "y=2"), pictures("b", "z=1", "y=2", "v=3")]
    subjects = [seen("s", 0, test="0", train="1"), seen("t", 1, test="0", val="1 2")]
    joining.refuse_leaks(stores, joining.merge(stores), subjects)


def test_a_leak_of_subjects_that_are_left_out_does_not_count():
    stores = [pictures("a", "x=1"), pictures("b", "x=1", "y=2")]
    subjects = [seen("s", 0, test="0"), seen("t", 1, train="1")]
    joining.refuse_leaks(stores, joining.merge(stores), subjects)


def test_pictures_under_other_ids_are_noted_with_their_number():
    stores = [pictures("a", "x=1", "y=2"), pictures("b", "z=2", "x=1", "w=1")]
    merged = joining.merge(stores)
    assert as_lists(merged) == [[0, 1], [1, 0, 2]]
    notes = joining.merged_notes(stores, merged, ["x", "y", "w"])
    assert notes == [
        "1 pictures are in several stores under other ids; each is one example under "
        "its first id: z is y."
    ]
    assert joining.merged_notes(stores[:1], merged[:1], ["x", "y"]) == []


def test_lookalikes_are_noted_by_kind_with_the_nearest_first():
    base = np.uint64(0x0123456789ABCDEF)
    far = ~base
    phash = np.array(
        [base, base ^ np.uint64(0b111), far, base ^ np.uint64(1), far ^ np.uint64(3)],
        np.uint64,
    )
    ids, store = ["a", "b", "c", "d", "e"], np.array([0, 0, 0, 1, 1])
    notes = joining.lookalike_notes(
        phash, ids, store, tests=np.array([0]), others=np.array([1, 2, 3, 4])
    )
    assert notes[0].startswith("2 pairs of a test picture and a train or val picture")
    assert notes[0].endswith("training: a and d (1); a and b (3).")
    # b and d, c and e: both in training, of two stores.
    assert notes[1].startswith("2 pairs of pictures of two stores look alike")
    assert notes[1].endswith("own: b and d (2); c and e (2).")
    assert len(notes) == 2
    # Inside one store and one split, nothing is said.
    alone = joining.lookalike_notes(
        phash, ids, 0 * store, tests=np.array([2]), others=np.array([0, 1, 3])
    )
    assert alone == []


def test_a_picture_in_two_stores_is_no_lookalike_of_itself():
    phash = np.array([5, 6], np.uint64) << np.uint64(20)
    notes = joining.lookalike_notes(
        phash, ["a", "b"], np.array([0, 0]), np.array([], int), np.array([0, 1])
    )
    assert notes == []


def test_the_first_twenty_lookalikes_are_listed_and_the_rest_counted():
    rng = np.random.default_rng(0)
    half = rng.integers(1, 2**64, 25, np.uint64)
    phash = np.concatenate([half, half ^ np.uint64(4)])
    ids = [f"p{n}" for n in range(50)]
    (note,) = joining.lookalike_notes(
        phash, ids, np.zeros(50, int), np.arange(25), np.arange(25, 50)
    )
    assert note.startswith("25 pairs")
    assert "p19 and p44 (1) and 5 more." in note
    assert "p20" not in note
