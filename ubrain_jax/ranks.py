"""Which pictures each measured pattern found: a small file beside the scores.

retrieval/NAME.zarr of a workdir holds, for the M test pictures of a subject in the
order of the store: image_id (M,), rank (M,) (1 = found first), and of the K pictures
whose predicted patterns fit best, best first: best (M, K), their places among the M
or -1, and correlation (M, K). Figures of retrieved pictures are made from it, with the
store for the pixels.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray

from ubrain_jax import crowd, errors, metrics

BEST = 5
_BLOCK = 256  # pictures that ask at once


class Ranks(NamedTuple):
    """What the measured patterns of a subject found among M test pictures.

    Attributes:
        image_id: (M,) the pictures; empty until they are written.
        rank: (M,) int, 1 = found first.
        best: (M, K) places of the best fits, best first; -1 where fewer correlations
            are defined.
        correlation: (M, K) of measured and predicted pattern; NaN there.
    """

    image_id: list[str]
    rank: np.ndarray
    best: np.ndarray
    correlation: np.ndarray

    @property
    def pool(self) -> int:
        """Pictures ranked."""
        return len(self.rank)


def make(found: metrics.Similarity) -> Ranks:
    """Ranks and best fits of all test pictures; of equal fits the earlier first."""
    correlation, _ = metrics.with_true(found.correlation)
    shown = min(BEST, len(correlation))
    best = np.empty((len(correlation), shown), np.int32)
    for start in range(0, len(correlation), _BLOCK):
        block = slice(start, start + _BLOCK)
        order = np.argsort(-correlation[block], axis=1, kind="stable")
        best[block] = order[:, :shown]
    values = np.take_along_axis(found.correlation, best, axis=1)
    best[~np.isfinite(values)] = -1
    return Ranks([], metrics.retrieval_in(found).rank, best, values)


def path_of(workdir: str | os.PathLike, subject: str) -> pathlib.Path:
    """Where a workdir has them."""
    return pathlib.Path(workdir) / "retrieval" / f"{subject}.zarr"


def write(
    workdir: str | os.PathLike, subject: str, image_id: Sequence[str], ranks: Ranks
) -> None:
    """retrieval/NAME.zarr of a workdir, whole or not at all."""
    table = xarray.Dataset(
        {
            "image_id": ("image", np.asarray(image_id, object)),
            "rank": ("image", ranks.rank.astype(np.int32)),
            "best": (("image", "place"), ranks.best),
            "correlation": (("image", "place"), ranks.correlation.astype(np.float32)),
        },
        attrs={"subject": subject, "pool": ranks.pool},
    )
    path = path_of(workdir, subject)
    path.parent.mkdir(parents=True, exist_ok=True)
    crowd.write_xarray(table, path)


def read(workdir: str | os.PathLike, subject: str) -> Ranks:
    """What `write` wrote.

    Raises:
        errors.MissingInputError: If the workdir has none.
        errors.InputError: If it is damaged.
    """
    path = path_of(workdir, subject)
    if not path.exists():
        raise errors.MissingInputError(
            path,
            "",
            "not found",
            "what an evaluation leaves beside its scores",
            "Run python -m ubrain_jax.main --mode=evaluate again; one that is older "
            "than this file has none.",
        )
    try:
        with xarray.open_zarr(path) as stored:
            table = stored.load()
        ranks = Ranks(
            [str(x) for x in table["image_id"].values],
            np.asarray(table["rank"].values),
            np.asarray(table["best"].values),
            np.asarray(table["correlation"].values, np.float64),
        )
        sizes = {len(part) for part in ranks}
        size = int(table.attrs["pool"])
        if sizes != {size} or ranks.best.min() < -1 or ranks.best.max() >= size:
            raise ValueError(f"{size} pictures, lengths {sizes}")
    except (OSError, ValueError, KeyError) as error:
        raise errors.InputError(
            path,
            "",
            f"cannot be read ({error!r})",
            "what an evaluation leaves beside its scores",
            "Run python -m ubrain_jax.main --mode=evaluate again.",
        ) from error
    return ranks
