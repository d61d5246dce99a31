"""Ridge, banded ridge and receptive fields against slow loops; features and cache."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from ubrain_jax import crowd, errors, experiments
from ubrain_jax.backbone import images
from ubrain_jax.baselines import features, fitting, fwrf, ridge

ALPHAS = (0.01, 1.0, 100.0)


def made(count, channels=(3, 5), side=4, voxels=7, seed=0, noise=1.0):
    """Pictures whose responses are linear in single cells of the layers."""
    rng = np.random.default_rng(seed)
    layers = [
        rng.standard_normal((count, side, side, c)).astype(np.float32) * (k + 1) + k
        for k, c in enumerate(channels)
    ]
    weight = np.random.default_rng(99).standard_normal((channels[-1], voxels))
    cell = layers[-1][:, side - 1, 0] - (len(channels) - 1)  # low left corner
    responses = cell @ weight + noise * rng.standard_normal((count, voxels)) + 3
    return fitting.Data(layers, responses.astype(np.float32))


def flat_scaled(train, layers, side):
    """Pooled layers, z-scored by training pictures, with a plain loop over blocks."""
    out = []
    for own, layer in zip(train.layers, layers, strict=True):
        step = own.shape[1] // side
        both = []
        for x in (own, layer):
            blocks = [
                x[:, step * i : step * (i + 1), step * j : step * (j + 1)].mean((1, 2))
                for i in range(side)
                for j in range(side)
            ]
            both.append(np.concatenate(blocks, 1).astype(np.float64))
        out.append((both[1] - both[0].mean(0)) / both[0].std(0))
    return out


def slow_ridge(train, val, bands, sides):
    """Every choice by its definition, one voxel, fold, penalty and pooling a time."""
    best = {}
    y = train.responses - train.responses.mean(0, dtype=np.float64)
    for voxel in range(y.shape[1]):
        for side in sides:
            xs = flat_scaled(train, train.layers, side)
            vs = flat_scaled(train, val.layers, side)
            found = []
            for gamma in bands:
                for alpha in ALPHAS:

                    def model(xs, gamma=gamma):
                        if len(gamma) == 1:
                            xs = [np.concatenate(xs, 1)]
                        scaled = [
                            x * np.sqrt(g / x.shape[1])
                            for x, g in zip(xs, gamma, strict=True)
                        ]
                        return np.concatenate(scaled, 1)

                    x = model(xs)
                    scores = []
                    for a, b in KFold(5).split(x):
                        r = Ridge(alpha=alpha, fit_intercept=False)
                        r.fit(x[a], y[a, voxel])
                        scores.append(-np.mean((r.predict(x[b]) - y[b, voxel]) ** 2))
                    r = Ridge(alpha=alpha, fit_intercept=False).fit(x, y[:, voxel])
                    mean = train.responses[:, voxel].mean(dtype=np.float64)
                    found.append((np.mean(scores), r.predict(model(vs)) + mean))
            predicted = max(found, key=lambda f: f[0])[1]
            error = np.mean((predicted - val.responses[:, voxel]) ** 2)
            if voxel not in best or error < best[voxel][0]:
                best[voxel] = error, predicted
    return np.stack([best[v][1] for v in range(y.shape[1])], 1)


@pytest.mark.parametrize("banded", [False, True])
def test_ridge_equals_a_slow_loop_of_its_choices(banded):
    train, val = made(40), made(10, seed=1)
    bands = ridge.band_weights(2, 2, 5) if banded else np.ones((1, 1))
    fitted = ridge.fit(
        train,
        val,
        banded=banded,
        sides=(1, 2, 9),
        alphas=ALPHAS,
        random_bands=2,
        seed=5,
    )
    want = slow_ridge(train, val, bands, (1, 2, 4))
    np.testing.assert_allclose(fitted.predict(val.layers), want, atol=2e-5)
    assert sum(fitted.told["voxels_by_side"].values()) == 7
    assert list(fitted.told["voxels_by_side"]) == ["1", "2", "4"]
    json.dumps(fitted.told, allow_nan=False)


def test_banded_ridge_gives_the_layer_that_matters_its_weight():
    train, val = made(60, noise=0.3), made(20, seed=1, noise=0.3)
    told = ridge.fit(train, val, banded=True, sides=(4,)).told
    first, second = told["mean_weight_of_layers"]
    assert second > 0.8
    assert first + second == pytest.approx(1, abs=1e-3)


def slow_fields(train, val, sizes, alphas):
    """Ridge of scikit-learn at every candidate, one voxel a time."""
    mean = train.responses.mean(0, dtype=np.float64)
    best = [(np.inf, None, None)] * train.responses.shape[1]
    for field in fwrf.candidates(sizes):
        xs = []
        for data in (train, val):
            parts = []
            for layer in data.layers:
                side = layer.shape[1]
                weight = np.zeros((side, side))
                for i in range(side):
                    for j in range(side):
                        far = (j + 0.5) / side - field.x, (i + 0.5) / side - field.y
                        weight[i, j] = np.exp(
                            -np.sum(np.square(far)) / 2 / field.size**2
                        )
                weight /= weight.sum()
                parts.append(np.einsum("mijc,ij->mc", layer, weight))
            xs.append(np.concatenate(parts, 1))
        shift, scale = xs[0].mean(0), xs[0].std(0) * np.sqrt(xs[0].shape[1])
        x, vx = ((a - shift) / scale for a in xs)
        for alpha in alphas:
            r = Ridge(alpha=alpha, fit_intercept=False).fit(x, train.responses - mean)
            predicted = r.predict(vx) + mean
            error = np.mean((predicted - val.responses) ** 2, 0)
            for v, e in enumerate(error):
                if e < best[v][0]:
                    best[v] = e, predicted[:, v], field
    return np.stack([b[1] for b in best], 1), [b[2] for b in best]


@pytest.mark.parametrize("count", [40, 6])  # more pictures than features, and fewer
def test_receptive_fields_equal_a_slow_loop(count):
    train, val = made(count), made(10, seed=1)
    sizes, alphas = (0.2, 0.5), (0.1, 1.0)
    fitted = fwrf.fit(train, val, sizes=sizes, alphas=alphas)
    want, fields = slow_fields(train, val, sizes, alphas)
    np.testing.assert_allclose(fitted.predict(val.layers), want, atol=2e-4)
    counts = {f"{f.size}" for f in fields}
    told = fitted.told["voxels_by_size"]
    shown = {"inf" if k == "whole picture" else k for k, n in told.items() if n}
    assert shown == counts
    json.dumps(fitted.told, allow_nan=False)


def test_a_planted_receptive_field_is_found():
    train, val, test = (made(n, side=8, noise=0.5, seed=n) for n in (300, 60, 80))
    fitted = fwrf.fit(train, val)
    assert fitted.told["voxels_by_size"]["0.06"] == 7
    predicted = fitted.predict(test.layers)
    r = [np.corrcoef(predicted[:, v], test.responses[:, v])[0, 1] for v in range(7)]
    assert min(r) > 0.8


def test_wide_layers_are_read_in_their_principal_components():
    train, val = made(80, channels=(12,)), made(20, channels=(12,), seed=1)
    few = fwrf.fit(train, val, channels=4, sizes=(), alphas=(1.0,))
    cells = train.layers[0].reshape(-1, 12)
    pca = PCA(4).fit(cells)

    def reduced(data):
        layer = data.layers[0]
        values = pca.transform(layer.reshape(-1, 12)).reshape(*layer.shape[:3], 4)
        return fitting.Data([values.astype(np.float32)], data.responses)

    same = fwrf.fit(reduced(train), reduced(val), sizes=(), alphas=(1.0,))
    a, b = few.predict(val.layers), same.predict(reduced(val).layers)
    np.testing.assert_allclose(a, b, atol=1e-4)  # signs of components do not matter


def test_a_constant_feature_and_a_constant_voxel_do_no_harm():
    train, val = made(30), made(10, seed=1)
    for data in (train, val):
        data.layers[0][..., 0] = 0.1
        data.responses[:, 2] = 0.7
    for fit in (ridge.fit, fwrf.fit):
        predicted = fit(train, val).predict(val.layers)
        assert np.isfinite(predicted).all()
        np.testing.assert_allclose(predicted[:, 2], 0.7, atol=1e-5)


def test_pooling_by_area_keeps_the_mean_of_any_grid():
    rng = np.random.default_rng(0)
    cells = rng.standard_normal((2, 7, 7, 3)).astype(np.float32)
    for grid in (1, 2, 3, 5):
        found = features.pooled(cells, grid)
        assert found.shape == (2, grid, grid, 3)
        np.testing.assert_allclose(found.mean((1, 2)), cells.mean((1, 2)), atol=1e-6)
        np.testing.assert_allclose(
            features.pooled(jnp.asarray(cells), grid), found, atol=1e-6
        )
    assert features.pooled(cells, 9) is cells


@pytest.fixture
def opened(tiny):
    experiment = tiny()
    stores = experiments.open_stores(experiment)
    network = experiments.load_network(experiment.backbone)
    return stores, network, features.of_network(network, experiment.backbone, 2)


def test_features_are_the_taps_of_the_backbone(opened, tmp_path):
    stores, network, source = opened
    found = features.cached(stores, source, tmp_path, batch_images=3)
    rows = np.array([4, 0, 7])
    x = images.normalise(jnp.asarray(crowd.read_pictures(stores, rows)))
    graph, state = nnx.split(network.backbone)
    taps = nnx.merge(graph, state)(x, (1, 2), remat="none")
    want = np.asarray(taps[:, :, 1:]).reshape(2, 3, 2, 2, -1)
    for layer, tap in zip(found.of(rows), want, strict=True):
        np.testing.assert_allclose(layer, tap, atol=1e-4)
    with pytest.raises(KeyError, match="not computed"):
        found.of(np.array([10**6]))


def test_a_second_reading_computes_no_picture_and_a_damaged_file_is_made_again(
    opened, tmp_path, capsys
):
    stores, _, source = opened
    calls = []

    def counted(pictures):
        calls.append(len(pictures))
        return source.compute(pictures)

    watched = source._replace(compute=counted)
    first = features.cached(stores, watched, tmp_path, 4)
    before, calls[:] = [np.array(layer) for layer in first.layers], []
    features.cached(stores, watched, tmp_path, 4)
    assert calls == [1]  # one picture, for the shapes
    assert "features from" in capsys.readouterr().out
    [path, *_] = sorted(tmp_path.glob("*-0.features"))
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    again = features.cached(stores, watched, tmp_path, 4)
    assert "is damaged" in capsys.readouterr().out
    for old, new in zip(before, again.layers, strict=True):
        np.testing.assert_array_equal(old, new)
    other = features.cached(stores, source._replace(key="other"), tmp_path, 4)
    assert len(list(tmp_path.glob("*.features"))) == 4
    np.testing.assert_array_equal(other.rows, again.rows)


def test_features_that_are_not_finite_are_refused_and_leave_no_file(opened, tmp_path):
    stores, _, source = opened

    def broken(pictures):
        return [np.full((len(pictures), 1, 1, 2), np.nan, np.float32)]

    with pytest.raises(errors.InputError, match="not finite"):
        features.cached(stores, source._replace(compute=broken), tmp_path)
    assert not list(tmp_path.iterdir())
