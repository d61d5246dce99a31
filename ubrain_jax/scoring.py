"""One subject's entry of metrics.json: scores with their intervals and tests.

Scores per voxel come back as columns, whole; what is summarised says over how many
voxels or pictures. Any program's predictions are scored alike: nothing here knows
what made them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import bootstrap, ceilings, metrics, significance

# What the pools of `shared_pools` are, by name.
POOLS = {
    "shared": "test pictures that all subjects of the store saw",
    "shared_full": "of those, the pictures that all saw the full number of times",
}
# Scores with an interval of their median, and the limits of each.
_LIMITS = {
    "pearson": (-1.0, 1.0),
    "noise_normalised": (-np.inf, np.inf),
    "r2": (-np.inf, 1.0),
}


class Shown(NamedTuple):
    """What a subject was tested with.

    Attributes:
        store: Number of its store.
        image: (M,) rows of pictures.
        repeats: (M,) presentations averaged.
    """

    store: int
    image: np.ndarray
    repeats: np.ndarray


def voxels(
    measured: np.ndarray,
    predicted: np.ndarray,
    ceiling: np.ndarray,
    regions: Mapping[str, np.ndarray],
    bootstraps: int = 0,
    permutations: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Scores of every voxel, and their summaries for all voxels and each region.

    Args:
        measured: (M, V) responses, repeats averaged.
        predicted: (M, V) predictions for the same images and voxels.
        ceiling: (V,) noise ceiling of R2; NaN where unknown.
        regions: (V,) bool by name; empty ones are left out of the summary.
        bootstraps: Draws of pictures, for `ci`, the 95 % interval of the median; the
            ceiling is held fixed. 0: no ci.
        permutations: At least, for the columns p and q and for `significant`. 0: none.

    Returns:
        Columns (V,); and the summary, with regions under `roi`.
    """
    r = metrics.pearson(measured, predicted)
    columns = {
        "pearson": r,
        "r2": metrics.r2(measured, predicted),
        "explained_variance": metrics.explained_variance(measured, predicted),
        "noise_normalised": metrics.noise_normalised(r, ceiling),
        "noise_normalised_r2": ceilings.noise_normalised_r2(r, ceiling),
    }
    regions = {name: inside for name, inside in regions.items() if inside.any()}
    groups = np.stack([np.ones(len(r), bool), *regions.values()], axis=1)
    medians = tested = None
    if bootstraps:
        counts = bootstrap.draws(len(measured), bootstraps)
        medians = bootstrap.medians(measured, predicted, counts, ceiling, groups)
    if permutations:
        tested = significance.permutation_test(measured, predicted, permutations)
    entries = []
    for g, inside in enumerate(groups.T):
        entry: dict[str, Any] = {
            name: metrics.quartiles(values[inside]) for name, values in columns.items()
        }
        if medians:
            for name, limits in _LIMITS.items():
                of_draws = getattr(medians, name)[:, g]
                score = entry[name]["median"]
                entry[name]["ci"] = bootstrap.interval(of_draws, score, limits)
        if tested:
            entry["significant"] = significance.share_significant(tested, inside)
        entries.append(entry)
    whole, *others = entries
    if tested:
        columns |= {"p": tested.p, "q": tested.q}
        whole["significant"] |= {
            "test": significance.in_words(tested),
            "permutations": tested.permutations,
        }
    if medians:
        whole["bootstrap"] = {
            "draws": bootstraps,
            "level": bootstrap.LEVEL,
            "over": f"{len(measured)} test pictures, with replacement",
        }
    whole["roi"] = {
        name: {**entry, "num_voxels": int(inside.sum())}
        for (name, inside), entry in zip(regions.items(), others, strict=True)
    }
    return columns, whole


def patterns(
    similarity: metrics.Similarity,
    bootstraps: int = 0,
    pools: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Retrieval in both directions and forced choice, each with its pool.

    Args:
        similarity: Of the M test pictures.
        bootstraps: Draws of pictures, for `ci`; 0: none.
        pools: Some of the pictures, (M,) bool, by a name of `POOLS`.

    Returns:
        retrieval (measured patterns ask, predictions are ranked),
        retrieval_of_responses (the other way), two_afc, and retrieval_pools, where
        there are some: entries like retrieval, in which only pictures of the pool ask
        and are ranked.
    """
    retrieval, choice = _directions(similarity, bootstraps)
    entries = {**retrieval, "two_afc": choice}
    entries["retrieval"]["of"] = "all test pictures of the subject"
    if pools:
        entries["retrieval_pools"] = {}
        for name, kept in pools.items():
            found, _ = _directions(metrics.within(similarity, kept), bootstraps)
            entry = {**found["retrieval"], "of": POOLS[name]}
            entries["retrieval_pools"][name] = entry
    return entries


def _directions(
    similarity: metrics.Similarity, bootstraps: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both retrievals, and forced choice."""
    choice = metrics.two_afc_in(similarity)
    two_afc: dict[str, Any] = {
        "pool": choice.pool,
        "mean": choice.mean,
        "reverse_mean": choice.reverse_mean,
    }
    if bootstraps:
        counts = bootstrap.draws(choice.pool, bootstraps)
    entries, of_choice = {}, {}
    for name, mean, asked in (
        ("retrieval", "mean", similarity),
        ("retrieval_of_responses", "reverse_mean", metrics.reversed_in(similarity)),
    ):
        ranks = metrics.retrieval_in(asked)
        entries[name] = {
            "pool": ranks.pool,
            "top1": ranks.top1,
            "top5": ranks.top5,
            "mean_rank": ranks.mean_rank,
            "median_rank": ranks.median_rank,
            "num_voxels": ranks.num_voxels,
            "undefined_voxels": ranks.undefined,
        }
        if bootstraps:
            found = bootstrap.found_in(asked, counts)
            ends = {
                key: bootstrap.share_interval(
                    getattr(found, key), found.all[key], found.pool
                )
                for key in found.all
            }
            of_choice[mean] = ends.pop("two_afc")
            entries[name]["ci"] = ends
    if of_choice:
        two_afc["ci"] = of_choice
    return entries, two_afc


def shared_pools(shown: Sequence[Shown]) -> list[dict[str, np.ndarray]]:
    """Pools in which subjects of one store can be compared: the same pictures for all.

    Where subjects were tested with different pictures, their own pools differ in size
    and their top-1 say little about each other.

    Args:
        shown: Of each subject.

    Returns:
        For each subject the pools of `POOLS` that it has, (M,) bool. A pool that is
        below 3 pictures, or all of every subject's, or that of another name, is none.
    """
    found: list[dict[str, np.ndarray]] = [{} for _ in shown]
    for store in dict.fromkeys(s.store for s in shown):
        members = [k for k, s in enumerate(shown) if s.store == store]
        members = [k for k in members if len(shown[k].image)]
        if not members:
            continue
        full = min(int(shown[k].repeats.max()) for k in members)
        sets = [set(shown[k].image.tolist()) for k in members]
        shared = set.intersection(*sets)
        fully = shared.intersection(
            *(shown[k].image[shown[k].repeats >= full].tolist() for k in members)
        )
        own = any(s != shared for s in sets)  # a picture that not all saw
        for name, pool, new in (
            ("shared", shared, own),
            ("shared_full", fully, len(fully) < len(shared)),
        ):
            if new and len(pool) >= 3:
                for k in members:
                    found[k][name] = np.isin(shown[k].image, list(pool))
    return found
