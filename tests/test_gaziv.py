"""The separable encoder against a slow loop and torch; VGG-19 against torch."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ubrain_jax import errors
from ubrain_jax.backbone import vgg
from ubrain_jax.baselines import features, fitting, gaziv

SHAPES = [(4, 4, 3), (2, 2, 5)]


def weights(seed=0, voxels=6, channels=4):
    """Weights of which none is at its initial value."""
    start = jax.jit(lambda key: gaziv.init(key, SHAPES, voxels, channels))
    params = start(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    moved = [x + 0.3 * rng.standard_normal(x.shape) for x in jax.tree.leaves(params)]
    leaves = [jnp.asarray(x, jnp.float32) for x in moved]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def pictures(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((count, *s)).astype(np.float32) for s in SHAPES]


def test_responses_equal_a_slow_loop():
    params, layers = weights(), pictures(2)
    found = np.asarray(jax.jit(gaziv.respond)(params, layers))
    p = jax.tree.map(np.asarray, params)
    for b in range(2):
        for v in range(6):
            total = p["bias"][v]
            for k, (side, _, _) in enumerate(SHAPES):
                padded = np.pad(layers[k][b], ((1, 1), (1, 1), (0, 0)))
                own = 0.0
                for i in range(side):
                    for j in range(side):
                        window = padded[i : i + 3, j : j + 3]
                        x = np.einsum("ijc,ijck->k", window, p["kernel"][k])
                        x = np.maximum(x + p["shift"][k], 0)
                        own += p["map"][k][v, i * side + j] * (x @ p["channel"][k][v])
                total += abs(p["mix"][v, k]) * own
            assert found[b, v] == pytest.approx(total, abs=1e-4)


@pytest.mark.parity
def test_responses_loss_and_gradient_equal_torch():
    import torch
    from torch.nn import functional

    params, layers = weights(), pictures(3)
    y = np.random.default_rng(5).standard_normal((3, 6)).astype(np.float32)
    value, grads = jax.jit(jax.value_and_grad(gaziv.loss))(params, layers, y, 0.3)
    t = jax.tree.map(lambda a: torch.tensor(np.array(a), requires_grad=True), params)
    out = t["bias"]
    for k, layer in enumerate(layers):
        x = functional.conv2d(
            torch.tensor(layer).permute(0, 3, 1, 2),
            t["kernel"][k].permute(3, 2, 0, 1),
            t["shift"][k],
            padding=1,
        )
        x = functional.relu(x).flatten(2)  # (B, K, P)
        own = ((x @ t["map"][k].T) * t["channel"][k].T).sum(1)
        out = out + own * t["mix"][:, k].abs()
    target = torch.tensor(y)
    cosine = functional.cosine_similarity(out, target, dim=1).mean()
    loss = functional.mse_loss(out, target) - 0.3 * cosine
    loss.backward()
    assert float(value) == pytest.approx(loss.item(), abs=1e-5)
    for name in ("kernel", "shift", "map", "channel"):
        for ours, theirs in zip(grads[name], t[name], strict=True):
            np.testing.assert_allclose(ours, theirs.grad, atol=2e-4)
    np.testing.assert_allclose(grads["mix"], t["mix"].grad, atol=2e-4)
    np.testing.assert_allclose(grads["bias"], t["bias"].grad, atol=2e-4)


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    params, layers = weights(channels=64), pictures(1)
    many = [np.repeat(layer, 400, 0) for layer in layers]
    respond = jax.jit(gaziv.respond)
    plain = respond(params, layers)[0]
    found = respond(params, many, 0.25, jax.random.key(3))
    spread = np.std(found, 0) / np.sqrt(400)
    assert (np.abs(np.mean(found, 0) - plain) < 4.5 * spread).all()
    assert (np.std(found, 0) > 0).all()


def planted(count, seed):
    """Voxels that see one cell of the second layer, half of them also noise."""
    layers = pictures(count, seed)
    weight = np.random.default_rng(7).standard_normal((5, 8))
    noise = np.random.default_rng(seed).standard_normal((count, 8)) * 0.5
    responses = np.maximum(layers[1][:, 0, 1] @ weight, 0) + noise
    return fitting.Data(layers, responses.astype(np.float32))


SMALL = gaziv.Settings(
    channels=8,
    dropout=0.0,
    batch_images=32,
    epochs=15,
    patience=4,
    learning_rates=(1e-2, 1e-9),
)


def test_planted_voxels_are_learned_and_the_better_rate_and_epoch_chosen():
    train, val, test = (planted(n, n) for n in (600, 100, 120))
    fitted = gaziv.fit(train, val, settings=SMALL)
    predicted = fitted.predict(test.layers)
    r = [np.corrcoef(predicted[:, v], test.responses[:, v])[0, 1] for v in range(8)]
    assert np.median(r) > 0.75
    assert fitted.told["learning_rate"] == 1e-2
    assert fitted.told["steps"] == 18 * fitted.told["epoch"]
    # What stays is the best epoch: its loss on val is what is told.
    found = fitted.predict(val.layers).astype(np.float64)
    mse = np.mean((found - val.responses) ** 2)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(val.responses, axis=1)
    cosine = np.mean(np.sum(found * val.responses, 1) / norms)
    assert fitted.told["val_loss"] == pytest.approx(mse - 0.1 * cosine, abs=1e-4)


def test_training_ends_when_validation_gets_no_better():
    train = planted(64, 1)
    noise = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    val = fitting.Data(pictures(40, 5), noise)  # nothing to learn for it
    settings = dataclasses.replace(
        SMALL, epochs=400, patience=2, learning_rates=(0.01,)
    )
    fitted = gaziv.fit(train, val, settings=settings)
    assert fitted.told["epoch"] < 50
    again = gaziv.fit(train, val, settings=settings)
    found = [f.predict(val.layers) for f in (fitted, again)]
    np.testing.assert_array_equal(*found)


def test_a_loss_that_explodes_and_a_bad_setting_are_refused():
    train, val = planted(64, 1), planted(10, 2)
    settings = dataclasses.replace(SMALL, epochs=2, learning_rates=(1e30,))
    with pytest.raises(errors.NonFiniteLossError, match="smaller"):
        gaziv.fit(train, val, settings=settings)
    with pytest.raises(errors.ConfigError, match="--epochs"):
        gaziv.fit(train, val, settings=dataclasses.replace(SMALL, epochs=0))


@pytest.fixture(scope="module")
def tensors():
    """A state dict of torchvision's vgg19 but for its classifier's size."""
    rng = np.random.default_rng(0)
    found, before, number = {}, 3, 0
    for block in ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4):
        for channels in block:
            scale = np.float32(np.sqrt(2 / (9 * before)))
            shape = (channels, before, 3, 3)
            kernel = rng.standard_normal(shape, np.float32) * scale
            found[f"features.{number}.weight"] = kernel
            found[f"features.{number}.bias"] = rng.standard_normal(channels, np.float32)
            before, number = channels, number + 2
        number += 1
    found["classifier.6.bias"] = np.zeros(1000, np.float32)
    return found


@pytest.mark.parity
def test_vgg_equals_torch(tensors):
    import torch
    from torch import nn

    modules, before = [], 3
    for size, count in ((64, 2), (128, 2), (256, 4), (512, 4)):
        for _ in range(count):
            modules += [nn.Conv2d(before, size, 3, padding=1), nn.ReLU()]
            before = size
        modules.append(nn.MaxPool2d(2, 2))
    net = nn.Sequential(*modules)
    state = {
        name.removeprefix("features."): torch.tensor(value)
        for name, value in tensors.items()
        if name.startswith("features.") and int(name.split(".")[1]) < 27
    }
    net.load_state_dict(state)
    x = np.random.default_rng(1).standard_normal((2, 32, 32, 3)).astype(np.float32)
    network = vgg.of_tensors(tensors, "test")
    ours = vgg.layers(network.params, jnp.asarray(x))
    y, theirs = torch.tensor(x).permute(0, 3, 1, 2), []
    with torch.no_grad():
        for k, module in enumerate(net):
            y = module(y)
            if k in (3, 8, 17, 26):
                theirs.append(y.permute(0, 2, 3, 1).numpy())
    assert len(ours) == len(theirs) == len(vgg.LAYERS)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_vgg_is_read_from_a_file(tensors, ending, tmp_path):
    path = tmp_path / f"vgg19.{ending}"
    if ending == "pth":
        if not importlib.util.find_spec("torch"):
            pytest.skip("reading a .pth needs torch: make parity")
        import torch

        torch.save({k: torch.tensor(v) for k, v in tensors.items()}, path)
    else:
        save_file(tensors, path)
    network = vgg.load(path)
    kernel, bias = network.params[2]
    np.testing.assert_array_equal(
        kernel[0, 2], tensors["features.5.weight"][:, :, 0, 2].T
    )
    np.testing.assert_array_equal(bias, tensors["features.5.bias"])
    assert list(network.sha256) == [path.name]
    source = features.of_vgg(network, 32, 8)
    blank = np.zeros((1, 32, 32, 3), np.uint8)
    shapes = [x.shape[1:] for x in source.compute(blank)]
    assert shapes == [(8, 8, 64), (8, 8, 128), (8, 8, 256), (4, 4, 512)]
    with pytest.raises(errors.ConfigError, match="multiple of 8"):
        features.of_vgg(network, 98, 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features.5.weight": None}, "features.5.weight is missing"),
        (
            {"features.1.weight": np.zeros(64, np.float32)},
            "features.1.weight is unknown",
        ),
        ({"features.7.bias": np.zeros(3, np.float32)}, r"features.7.bias is \(3,\)"),
        ({"features.0.bias": np.full(64, np.nan, np.float32)}, "features.0.bias is"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(tensors, change, words):
    wrong = {k: v for k, v in {**tensors, **change}.items() if v is not None}
    with pytest.raises(errors.InputError, match=words):
        vgg.of_tensors(wrong, "file")


def test_a_weight_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(errors.MissingInputError, match="no such file"):
        vgg.load(tmp_path / "vgg19.pth")
    cut = tmp_path / "vgg19.safetensors"
    cut.write_bytes(b"\xff" * 40)
    with pytest.raises(errors.InputError, match="header"):
        vgg.load(cut)
    other = tmp_path / "vgg19.h5"
    other.write_bytes(b"x")
    with pytest.raises(errors.InputError, match="the ending is"):
        vgg.load(other)
