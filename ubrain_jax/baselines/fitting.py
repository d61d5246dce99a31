"""What every baseline is given, and what it gives: one subject, never a test picture.

Weights are fitted on the pictures of the train split; whatever is chosen (a penalty,
a pooling, a step) is chosen by the train and the val split. Test pictures are
predicted once, from their features, by whoever called the fit.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ubrain_jax import crowd, errors
from ubrain_jax.baselines import features

# Validation pictures below which nothing can be chosen by them.
LEAST_VAL = 3


class Data(NamedTuple):
    """The pictures of one split of a subject.

    Attributes:
        layers: Features of each layer, (M, g, g, C) float32.
        responses: (M, V) float32.
    """

    layers: Sequence[np.ndarray]
    responses: np.ndarray


class Fitted(NamedTuple):
    """A fitted baseline.

    Attributes:
        predict: Layers (M, g, g, C) -> responses (M, V) float32.
        told: What was chosen, JSON-able.
    """

    predict: Callable[[Sequence[np.ndarray]], np.ndarray]
    told: dict[str, Any]


def check(subject: crowd.SubjectRows) -> None:
    """Refuses a subject with too few pictures to fit or to choose by.

    Raises:
        errors.InputError: Saying how many it has.
    """
    least = {"train": 2 * LEAST_VAL, "val": LEAST_VAL}
    counts = {split: len(subject.samples(split)) for split in least}
    if any(counts[split] < few for split, few in least.items()):
        raise errors.InputError(
            f"subjects/{subject.name}",
            "split",
            ", ".join(f"{n} {split} pictures" for split, n in counts.items()),
            ", ".join(f"{n} or more {split}" for split, n in least.items()),
            "Prepare the store with --val_fraction, or leave the subject out with "
            "--config.data.subjects.",
        )


def read(subject: crowd.SubjectRows, found: features.Features, split: str) -> Data:
    """Features and responses of one split."""
    samples = subject.samples(split)
    responses = crowd.read_responses(subject, samples)
    return Data(found.of(subject.image[samples]), responses)


def squared_error(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean squared error over pictures of each voxel: (M, V), (M, V) -> (V,)."""
    difference = np.asarray(measured, np.float64) - predicted
    return np.mean(np.square(difference), 0)


def spread(values: np.ndarray) -> dict[str, float]:
    """Least, median and largest of what was chosen for the voxels."""
    low, median, high = np.percentile(values, [0, 50, 100])
    return {"least": float(low), "median": float(median), "largest": float(high)}
