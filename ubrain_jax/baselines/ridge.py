"""Ridge regression from pooled features to every voxel, plain or banded.

Features of all layers are z-scored by the training pictures. Plain ridge has one
penalty for each voxel, by cross-validation over training pictures; banded ridge also
has a weight of its own for each layer and voxel, by random search. How far the grids
are pooled is chosen for each voxel by the validation pictures. Both are solved in
their kernel form, since features outnumber pictures.

References:
    Dupré la Tour, Eickenberg, Nunez-Elizalde & Gallant, 2022, Feature-space
    selection with banded ridge regression, NeuroImage 264 (himalaya).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from himalaya import kernel_ridge

from ubrain_jax.baselines import features, fitting

ALPHAS = tuple(np.logspace(-4, 5, 19))
SIDES = (1, 2, 4)
FOLDS = 5
# Weights of layers that banded ridge tries: equal ones, each layer alone, and random
# ones, spread and sparse.
RANDOM_BANDS = 20


class _Model(NamedTuple):
    """A solved kernel regression at one pooling.

    Attributes:
        side: Cells on a side.
        scale: Mean and deviation of each layer's features.
        train: Scaled features of each band (n, D).
        dual: (n, V) weights of training pictures.
        bands: (K, V) weight of each band's kernel.
    """

    side: int
    scale: list[tuple[np.ndarray, np.ndarray]]
    train: list[np.ndarray]
    dual: np.ndarray
    bands: np.ndarray

    def predict(self, layers: Sequence[np.ndarray], voxels: np.ndarray) -> np.ndarray:
        """(M, len(voxels)) without the mean response."""
        out = np.zeros((len(layers[0]), len(voxels)))
        bands = _bands(_scaled(features.flat(layers, self.side), self.scale), self)
        for band, train, weight in zip(bands, self.train, self.bands, strict=True):
            kernel = band @ train.T / train.shape[1]
            out += (kernel @ self.dual[:, voxels]) * weight[voxels]
        return out


def fit(
    train: fitting.Data,
    val: fitting.Data,
    *,
    banded: bool = False,
    sides: Sequence[int] = SIDES,
    alphas: Sequence[float] = ALPHAS,
    folds: int = FOLDS,
    random_bands: int = RANDOM_BANDS,
    seed: int = 0,
) -> fitting.Fitted:
    """Fits one ridge regression for each voxel of a subject.

    Args:
        train: Training pictures.
        val: Validation pictures, by which the pooling is chosen.
        banded: Whether each layer has a weight of its own.
        sides: Cells on a side to which layers are pooled; larger ones than there are
            count once.
        alphas: Penalties, of kernels that are divided by their number of features.
        folds: Of the cross-validation.
        random_bands: Random weights of layers, for `banded`.
        seed: Of those.

    Returns:
        `fitting.Fitted`, with told: alpha, side and, if banded, layers.
    """
    largest = max(layer.shape[1] for layer in train.layers)
    chosen = sorted({min(side, largest) for side in sides})
    mean = train.responses.mean(0, dtype=np.float64)
    models, alpha, error = [], [], []
    everyone = np.arange(train.responses.shape[1])
    for side in chosen:
        model, best = _solve(
            train, mean, side, banded, alphas, folds, random_bands, seed
        )
        predicted = model.predict(val.layers, everyone) + mean
        models.append(model)
        alpha.append(best)
        error.append(fitting.squared_error(val.responses, predicted))
    which = np.argmin(error, 0)  # (V,)

    def predict(layers: Sequence[np.ndarray]) -> np.ndarray:
        out = np.empty((len(layers[0]), len(mean)), np.float32)
        for k, model in enumerate(models):
            voxels = np.flatnonzero(which == k)
            if len(voxels):
                out[:, voxels] = model.predict(layers, voxels) + mean[voxels]
        return out

    told: dict[str, Any] = {
        "alpha": fitting.spread(np.choose(which, alpha)),
        "at_smallest_alpha": float(np.mean(np.choose(which, alpha) <= min(alphas))),
        "at_largest_alpha": float(np.mean(np.choose(which, alpha) >= max(alphas))),
        "voxels_by_side": {
            str(side): int(np.sum(which == k)) for k, side in enumerate(chosen)
        },
    }
    if banded:
        weights = np.stack([m.bands / m.bands.sum(0) for m in models])
        own = weights[which, :, everyone]  # (V, K)
        told["mean_weight_of_layers"] = own.mean(0).round(4).tolist()
    return fitting.Fitted(predict, told)


def _solve(
    train: fitting.Data,
    mean: np.ndarray,
    side: int,
    banded: bool,
    alphas: Sequence[float],
    folds: int,
    random_bands: int,
    seed: int,
) -> tuple[_Model, np.ndarray]:
    """The regression at one pooling, and the penalty (V,) of each voxel."""
    raw = features.flat(train.layers, side)
    scale = [features.scaling(x) for x in raw]
    bands = _scaled(raw, scale)
    if not banded:
        bands = [np.concatenate(bands, 1)]
    kernels = np.stack([x @ x.T / x.shape[1] for x in bands])
    centred = train.responses - mean
    if banded:
        search: Any = kernel_ridge.MultipleKernelRidgeCV(
            kernels="precomputed",
            solver="random_search",
            solver_params={
                "n_iter": band_weights(len(kernels), random_bands, seed),
                "alphas": np.asarray(alphas, np.float64),
                "progress_bar": False,
                "n_targets_batch": 4096,
                "n_alphas_batch": 4,
            },
            cv=folds,
            random_state=seed,
        )
        with np.errstate(divide="ignore"):  # log of a layer's weight of 0
            solved: Any = search.fit(kernels, centred)
        weights = np.exp(np.asarray(solved.deltas_, np.float64))
        # himalaya keeps the penalty inside the weights: 1 / alpha in all of them.
        alpha = 1 / weights.sum(0)
    else:
        solved = kernel_ridge.KernelRidgeCV(
            alphas=np.asarray(alphas, np.float64),
            kernel="precomputed",
            solver_params={"n_targets_batch": 4096},
            cv=folds,
        ).fit(kernels[0], centred)
        weights = np.ones((1, len(mean)))
        alpha = np.asarray(solved.best_alphas_)
    model = _Model(side, scale, bands, np.asarray(solved.dual_coef_), weights)
    return model, alpha


def band_weights(num_bands: int, random_bands: int, seed: int) -> np.ndarray:
    """Weights of bands to try, (T, K); each row sums to 1.

    Example:
        >>> band_weights(2, 0, 0)
        array([[0.5, 0.5],
               [1. , 0. ],
               [0. , 1. ]])
    """
    rng = np.random.default_rng(seed)
    spread = rng.dirichlet(np.ones(num_bands), (random_bands + 1) // 2)
    sparse = rng.dirichlet(np.full(num_bands, 0.1), random_bands // 2)
    equal = np.full((1, num_bands), 1 / num_bands)
    return np.concatenate([equal, np.eye(num_bands), spread, sparse])


def _scaled(
    layers: Sequence[np.ndarray], scale: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[np.ndarray]:
    """Layers (M, D) z-scored by the training pictures, float64."""
    return [
        (layer - mean) / deviation
        for layer, (mean, deviation) in zip(layers, scale, strict=True)
    ]


def _bands(layers: list[np.ndarray], model: _Model) -> list[np.ndarray]:
    """One band for each layer, or all in one."""
    return layers if len(model.train) > 1 else [np.concatenate(layers, 1)]
