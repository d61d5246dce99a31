"""Voxels with the nearest embeddings, whoever's brain they lie in.

The similarity of two voxels is the cosine of their embeddings. The search is exact: all
rows are compared, a block at a time, so that memory does not grow with their number.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ubrain_jax import errors
from ubrain_jax.atlas import pooled

# Rows of the table and queries in one product: 64 MB of float64 at most.
BLOCK_ROWS, BLOCK_QUERIES = 8192, 1024


class Nearest(NamedTuple):
    """The n nearest rows of q queries, best first.

    Attributes:
        row: (q, n) int64 of the table; -1 where fewer than n are allowed.
        similarity: (q, n) float32 cosine in -1..1; NaN where row is -1.
    """

    row: np.ndarray
    similarity: np.ndarray


def nearest(
    table: pooled.Pooled,
    query: np.ndarray,
    n: int = 10,
    *,
    allowed: np.ndarray | None = None,
    other_brains: bool = False,
) -> Nearest:
    """Finds the rows whose embeddings are nearest by cosine.

    Products are of float64 and rounded to float32, so that equal embeddings tie; ties
    are in the order of the rows. An embedding of zeros has the cosine 0 with any.

    Args:
        table: V voxels.
        query: Rows of the table (q,), which are not their own neighbours, or
            embeddings (q, E).
        n: Neighbours of each.
        allowed: (V,) bool, rows that may be found; None: all.
        other_brains: Whether rows of the query's own subject are left out; the query
            must be rows then.

    Returns:
        Rows and similarities.

    Raises:
        errors.ConfigError: If n, the query or the mask cannot be used.
        errors.InputError: If an embedding is not finite.

    Example:
        >>> from ubrain_jax.atlas import pooled
        >>> from ubrain_jax.model import bundle
        >>> def subject(name, rows):
        ...     none = np.zeros((2, 0), bool)
        ...     place, ncsnr = np.zeros((2, 3), int), np.zeros(2)
        ...     rows = np.float32(rows)
        ...     return bundle.Subject(name, rows, place, none, (), ncsnr, {}, {})
        >>> a = subject("a", [[1, 0], [0, 1]])
        >>> both = pooled.pool([a, subject("b", [[2, 0], [3, 3]])])
        >>> nearest(both, np.array([0]), 2, other_brains=True).row.tolist()
        [[2, 3]]
    """
    rows, wanted = _queries(table, query)
    if n < 1:
        raise errors.ConfigError("n", "", f"n = {n}", "1 or more", "Ask for more.")
    if other_brains and rows is None:
        raise errors.ConfigError(
            "other_brains",
            "",
            "embeddings as the query, which are of no subject",
            "rows of the table",
            "Give rows, or a mask of the allowed ones.",
        )
    columns = (
        np.arange(len(table.subject))
        if allowed is None
        else _rows_of(allowed, len(table.subject))
    )
    found = Nearest(
        np.full((len(wanted), n), -1, np.int64),
        np.full((len(wanted), n), np.nan, np.float32),
    )
    for start in range(0, len(wanted), BLOCK_QUERIES):
        some = slice(start, start + BLOCK_QUERIES)
        own = None if rows is None else rows[some]
        best = _search(table, wanted[some], own, columns, n, other_brains)
        found.row[some], found.similarity[some] = best
    return found


def centre(table: pooled.Pooled, rows: np.ndarray) -> np.ndarray:
    """What a region or a cluster stands for: the mean of its unit embeddings, (1, E).

    Args:
        table: V voxels.
        rows: (q,) of the table, or a mask (V,); one or more.

    Raises:
        errors.ConfigError: If there is no row.
        errors.InputError: If an embedding is not finite.
    """
    chosen = table.embedding[rows]
    if not len(chosen):
        raise errors.ConfigError("rows", "", "none", "one or more", "Give some.")
    return unit(chosen).mean(0, keepdims=True)


def unit(embedding: np.ndarray) -> np.ndarray:
    """Embeddings (V, E) of length 1, float64; those of zeros stay zeros.

    Raises:
        errors.InputError: If one is not finite.

    Example:
        >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6, 0.8], [0.0, 0.0]]
    """
    values = np.asarray(embedding, np.float64)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(length))
    if len(bad):
        raise errors.InputError(
            "embedding",
            "",
            f"{len(bad)} of {len(values)} embeddings are not finite",
            "finite numbers",
            "Fit the subject again, or leave these voxels out.",
        )
    return np.divide(values, length, out=np.zeros_like(values), where=length > 0)


def of_subjects(table: pooled.Pooled, names: Sequence[str]) -> np.ndarray:
    """(V,) bool: voxels of these subjects.

    Raises:
        errors.ConfigError: If one is not in the table.
    """
    for name in names:
        if name not in table.names:
            raise errors.ConfigError(
                "among",
                "",
                f"no subject {name!r}",
                f"some of {', '.join(table.names)}",
                errors.nearest(name, table.names),
            )
    return np.isin(table.subject, [table.names.index(name) for name in names])


def at_position(
    table: pooled.Pooled, subject: str, position: Sequence[int] | np.ndarray
) -> int:
    """Row of the voxel of a subject at a place.

    Args:
        table: V voxels.
        subject: One of `table.names`.
        position: i, j, k on the subject's grid; on a surface hemisphere (0 left, 1
            right) and vertex.

    Raises:
        errors.ConfigError: If no voxel of the subject is there; in a volume the
            message names the nearest one.
    """
    rows = np.flatnonzero(of_subjects(table, [subject]))
    places = table.position[rows]
    on_surface = bool((places[:, 2] == -1).all())
    asked = np.asarray(position)
    told = ",".join(map(str, asked.ravel().tolist()))
    if (places[:, 1] == -1).all():
        raise errors.ConfigError(
            "position",
            "",
            f"no position is known of {subject}'s voxels",
            "a subject with positions",
            "Give a voxel by number.",
        )
    if on_surface and asked.shape == (2,):
        asked = np.append(asked, -1)
    if asked.shape != (3,) or asked.dtype.kind not in "iu":
        form = "hemisphere,vertex" if on_surface else "i,j,k"
        raise errors.ConfigError(
            "position", "", told, f"{form}: whole numbers", "Write it like that."
        )
    there = np.flatnonzero((places == asked).all(1))
    if len(there):
        return int(rows[there[0]])
    expected = f"one of its {len(rows):,} vertices"
    action = "Choose another, or give a voxel by number."
    if not on_surface:
        far = np.linalg.norm(places.astype(float) - asked, axis=1)
        k = int(far.argmin())
        place = ",".join(map(str, places[k].tolist()))
        expected = f"the place of one of its {len(rows):,} voxels"
        action = (
            f"Its voxel {table.voxel[rows[k]]} at {place} is nearest, "
            f"{far[k]:.1f} voxels away."
        )
    raise errors.ConfigError(
        "position", "", f"{subject} has no voxel at {told}", expected, action
    )


def _queries(
    table: pooled.Pooled, query: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray]:
    """Rows, if they are rows, and unit embeddings (q, E)."""
    query = np.asarray(query)
    size = table.embedding.shape[1]
    if query.ndim == 2 and query.shape[1] == size:
        return None, unit(query)
    if query.ndim != 1 or query.dtype.kind not in "iu":
        raise errors.ConfigError(
            "query",
            "",
            f"{query.dtype} {query.shape}",
            f"numbers of rows, or embeddings (q, {size})",
            "Give one of the two.",
        )
    count = len(table.subject)
    wrong = query[(query < 0) | (query >= count)]
    if len(wrong):
        raise errors.ConfigError(
            "query", "", f"row {wrong[0]}", f"0..{count - 1}", "Change the rows."
        )
    return query, unit(table.embedding[query])


def _rows_of(allowed: np.ndarray, count: int) -> np.ndarray:
    allowed = np.asarray(allowed)
    if allowed.dtype != bool or allowed.shape != (count,):
        raise errors.ConfigError(
            "allowed",
            "",
            f"{allowed.dtype} {allowed.shape}",
            f"a mask ({count},)",
            "Give bool, one for each row.",
        )
    return np.flatnonzero(allowed)


def _search(
    table: pooled.Pooled,
    wanted: np.ndarray,
    own: np.ndarray | None,
    columns: np.ndarray,
    n: int,
    other_brains: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The best n (q, n) of the rows `columns` for unit embeddings (q, E)."""
    best_row = np.full((len(wanted), n), -1, np.int64)
    best = np.full((len(wanted), n), -np.inf, np.float32)
    for start in range(0, len(columns), BLOCK_ROWS):
        block = columns[start : start + BLOCK_ROWS]
        cosine = wanted @ unit(table.embedding[block]).T  # (q, block)
        cosine = np.clip(cosine, -1, 1, out=cosine).astype(np.float32)
        if own is not None:
            cosine[own[:, None] == block] = -np.inf
            if other_brains:
                cosine[table.subject[own][:, None] == table.subject[block]] = -np.inf
        # What ties with the worst so far loses to it: its row is higher.
        better = cosine > best[:, -1:]
        if len(block) > n and better.mean() > 0.1:  # as in the first block
            nth = -np.partition(-cosine, n - 1, axis=1)[:, n - 1 : n]
            better &= cosine >= nth
        best_row, best = _merge(best_row, best, *np.nonzero(better), block, cosine)
    best_row[np.isneginf(best)] = -1
    best[np.isneginf(best)] = np.nan
    return best_row, best


def _merge(
    best_row: np.ndarray,
    best: np.ndarray,
    query: np.ndarray,
    column: np.ndarray,
    block: np.ndarray,
    cosine: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The best n (q, n) of those so far and some of a block."""
    count, n = best.shape
    of_query = np.concatenate([np.repeat(np.arange(count), n), query])
    rows = np.concatenate([best_row.ravel(), block[column]])
    values = np.concatenate([best.ravel(), cosine[query, column]])
    order = np.lexsort((rows, -values, of_query))
    first = np.searchsorted(of_query[order], np.arange(count))
    kept = order[first[:, None] + np.arange(n)]
    return rows[kept], values[kept]
