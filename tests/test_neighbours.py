"""Nearest embeddings, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn import neighbors

from ubrain_jax import errors
from ubrain_jax.atlas import neighbours, pooled
from ubrain_jax.model import bundle


def make_table(counts=(40, 30, 50), size=6, seed=0):
    rng = np.random.default_rng(seed)
    return pooled.pool(
        [
            bundle.Subject(
                f"s{k}",
                rng.standard_normal((count, size)).astype(np.float32),
                np.zeros((count, 3), np.int32),
                np.zeros((count, 0), bool),
                (),
                np.full(count, np.nan, np.float32),
                {},
                {},
            )
            for k, count in enumerate(counts)
        ]
    )


def by_hand(table, row, n, allowed):
    """The rows of one query in plain Python, ties by row."""
    x = table.embedding.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [
        (-np.float32(x[row] @ x[k]), k)
        for k in range(len(x))
        if allowed[k] and k != row
    ]
    return [k for _, k in sorted(pairs)[:n]]


@pytest.fixture(params=[3, 7, 8192])
def block(request, monkeypatch):
    """Blocks smaller and larger than the number of neighbours."""
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", request.param)
    monkeypatch.setattr(neighbours, "BLOCK_QUERIES", request.param)


@pytest.mark.usefixtures("block")
def test_neighbours_are_those_of_scikit_learn():
    table = make_table()
    query = np.random.default_rng(1).standard_normal((9, 6))
    found = neighbours.nearest(table, query, 5)
    oracle = neighbors.NearestNeighbors(metric="cosine", algorithm="brute")
    distance, row = oracle.fit(table.embedding).kneighbors(query, 5)
    np.testing.assert_array_equal(found.row, row)
    np.testing.assert_allclose(found.similarity, 1 - distance, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("block")
def test_a_voxel_is_not_its_own_neighbour_nor_its_own_brain_if_others_are_asked():
    table = make_table()
    rows = np.array([0, 45, 119, 3])
    everywhere = neighbours.nearest(table, rows, 6)
    elsewhere = neighbours.nearest(table, rows, 6, other_brains=True)
    for k, row in enumerate(rows):
        all_rows = np.ones(120, bool)
        assert everywhere.row[k].tolist() == by_hand(table, row, 6, all_rows)
        others = table.subject != table.subject[row]
        assert elsewhere.row[k].tolist() == by_hand(table, row, 6, others)


@pytest.mark.usefixtures("block")
def test_equal_embeddings_come_in_the_order_of_the_rows():
    table = make_table()
    doubled = np.tile(table.embedding[:4], (30, 1))  # each of 4 voxels 30 times
    doubled *= 2.0 ** np.random.default_rng(0).integers(-3, 4, (120, 1))
    table = table._replace(embedding=doubled)
    found = neighbours.nearest(table, np.array([61]), 40)
    assert found.row[0, :29].tolist() == [k for k in range(1, 120, 4) if k != 61]
    assert (found.similarity[0, :29] == 1).all()
    rest = found.row[0, 29:]
    assert (np.diff(rest) == 4).all()


def test_where_fewer_are_allowed_rows_are_minus_one_and_similarities_nan():
    table = make_table()
    allowed = neighbours.of_subjects(table, ["s1"]) & (np.arange(120) < 42)
    found = neighbours.nearest(table, np.array([0, 41]), 3, allowed=allowed)
    assert sorted(found.row[0].tolist()) == [-1, 40, 41]
    assert found.row[1].tolist() == [40, -1, -1]
    assert np.isnan(found.similarity[1]).tolist() == [False, True, True]
    alone = neighbours.nearest(table, np.array([41]), 2, allowed=table.subject == 9)
    assert alone.row.tolist() == [[-1, -1]]


def test_lengths_do_not_count_and_zeros_are_similar_to_nothing():
    table = make_table()
    scaled = table.embedding * np.linspace(0.01, 1e18, 120, dtype=np.float32)[:, None]
    query = table.embedding[:3] * 7
    a = neighbours.nearest(table, query, 4)
    b = neighbours.nearest(table._replace(embedding=scaled), query, 4)
    np.testing.assert_array_equal(a.row, b.row)
    zero = neighbours.nearest(table, np.zeros((1, 6)), 4)
    assert zero.row.tolist() == [[0, 1, 2, 3]]
    assert (zero.similarity == 0).all()


def test_a_centre_is_the_mean_direction():
    table = make_table()
    x = table.embedding[[2, 5]].astype(np.float64)
    expected = (x[0] / np.linalg.norm(x[0]) + x[1] / np.linalg.norm(x[1])) / 2
    found = neighbours.centre(table, np.array([2, 5]))
    np.testing.assert_allclose(found, expected[None], rtol=1e-12)
    with pytest.raises(errors.ConfigError, match="rows: none"):
        neighbours.centre(table, np.zeros(120, bool))


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (np.array([120]), {}, r"row 120; expected 0\.\.119"),
        (np.array([-1]), {}, "row -1"),
        (np.array([0.0]), {}, r"float64 \(1,\)"),
        (np.zeros((2, 5)), {}, r"embeddings \(q, 6\)"),
        (np.array([0]), {"n": 0}, "n = 0"),
        (np.zeros((1, 6)), {"other_brains": True}, "of no subject"),
        (np.array([0]), {"allowed": np.ones(7, bool)}, r"a mask \(120,\)"),
    ],
)
def test_what_cannot_be_asked_is_refused(query, options, message):
    with pytest.raises(errors.ConfigError, match=message):
        neighbours.nearest(make_table(), query, **options)


def test_embeddings_that_are_not_finite_and_unknown_subjects_are_refused():
    table = make_table()
    table.embedding[77, 0] = np.nan
    with pytest.raises(errors.InputError, match="not finite"):
        neighbours.nearest(table, np.array([0]))
    with pytest.raises(
        errors.ConfigError, match="no subject 's9'; expected some of s0"
    ):
        neighbours.of_subjects(table, ["s1", "s9"])


def placed(position):
    """A table of one subject whose voxels lie at these places."""
    position = np.array(position, np.int32)
    table = make_table((len(position),))
    return table._replace(position=position)


def test_a_voxel_is_found_by_its_place_and_the_nearest_one_is_named():
    table = placed([[1, 2, 3], [4, 5, 6], [4, 5, 8]])
    assert neighbours.at_position(table, "s0", [4, 5, 6]) == 1
    with pytest.raises(
        errors.ConfigError, match=r"voxel 2 at 4,5,8 is nearest, 1\.4 voxels away"
    ):
        neighbours.at_position(table, "s0", [4, 6, 9])
    # As near as each other: the first.
    with pytest.raises(errors.ConfigError, match="voxel 1 at 4,5,6"):
        neighbours.at_position(table, "s0", [4, 5, 7])


def test_a_vertex_is_found_by_hemisphere_and_number():
    table = placed([[0, 7, -1], [1, 7, -1], [1, 900, -1]])
    assert neighbours.at_position(table, "s0", [1, 7]) == 1
    assert neighbours.at_position(table, "s0", [1, 900, -1]) == 2
    with pytest.raises(errors.ConfigError, match=r"no voxel at 1,8.*its 3 vertices"):
        neighbours.at_position(table, "s0", [1, 8])


@pytest.mark.parametrize(
    ("position", "asked", "message"),
    [
        ([[-1, -1, -1]], [0, 0, 0], "no position is known"),
        ([[1, 2, 3]], [1, 2], r"1,2; expected i,j,k"),
        ([[1, 2, 3]], [1.5, 2, 3], "whole numbers"),
        ([[1, 2, 3]], [[1, 2, 3]], "i,j,k"),
    ],
)
def test_places_that_cannot_be_are_refused(position, asked, message):
    with pytest.raises(errors.ConfigError, match=message):
        neighbours.at_position(placed(position), "s0", asked)
