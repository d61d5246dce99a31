"""The small bundled backbone: its files, its use, and the script that trains it."""

import hashlib
import json
import pathlib

import jax
import numpy as np
import optax
import pytest
import safetensors
import transformers
from flax import nnx

from ubrain_jax import pretrain_demo
from ubrain_jax.backbone import dinov2, images, weights
from ubrain_jax.datasets import drawing, planted

BUNDLED = pathlib.Path(dinov2.__file__).parent / "bundled"
NUM_BLOCKS = pretrain_demo.GEOMETRY.depth
PX = pretrain_demo.PX


def _drawn(count: int, stream: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures, categories and scenes of a random stream of these tests."""
    drawn = [drawing.draw(np.random.default_rng([stream, i]), PX) for i in range(count)]
    return (
        np.stack([p for p, _ in drawn]),
        np.stack([s.category for _, s in drawn]),
        np.array([s.scene for _, s in drawn]),
    )


def _features(net: dinov2.Dinov2, pictures: np.ndarray, taps: tuple) -> np.ndarray:
    """(L, B, P, width)."""

    @jax.jit
    def run(some: jax.Array) -> jax.Array:
        return net.patches(net(images.normalise(some), taps))

    parts = [run(pictures[i : i + 50]) for i in range(0, len(pictures), 50)]
    return np.concatenate([np.asarray(p) for p in parts], axis=1)


def test_files_are_small_and_half_precision():
    path = BUNDLED / "model.safetensors"
    assert path.stat().st_size <= 5_000_000
    with safetensors.safe_open(path, "np") as file:
        for name in file.keys():
            tensor = file.get_tensor(name)
            assert tensor.dtype == np.float16
            assert np.isfinite(tensor).all(), name


def test_card_names_the_file_the_data_and_the_licence():
    card = (BUNDLED / "README.md").read_text()
    digest = hashlib.sha256((BUNDLED / "model.safetensors").read_bytes()).hexdigest()
    assert digest in card
    assert "license: apache-2.0" in card
    assert "Never on\n  responses" in card
    assert "python -m ubrain_jax.pretrain_demo" in card


def test_config_is_read_by_transformers():
    config = transformers.Dinov2Config.from_pretrained(BUNDLED)
    assert config.hidden_size == 160
    assert config.num_hidden_layers == NUM_BLOCKS == 6
    assert (config.patch_size, config.image_size) == (14, 112)
    assert config.mlp_ratio * config.hidden_size == pretrain_demo.GEOMETRY.mlp_width
    assert json.loads((BUNDLED / "config.json").read_text()) == (
        pretrain_demo.hub_config()
    )


def test_bundled_weights_load_by_name():
    net, provenance = weights.load("bundled", NUM_BLOCKS, PX)
    assert net.geometry == pretrain_demo.GEOMETRY
    assert not provenance.random
    taps = _features(net, _drawn(3, 50)[0], (1, 6))
    assert taps.shape == (2, 3, 64, 160)
    assert np.isfinite(taps).all()


def test_saved_tensors_give_the_same_network(tmp_path):
    net = dinov2.random(pretrain_demo.GEOMETRY, NUM_BLOCKS, PX, seed=4)
    graph, state = nnx.split(net)
    rng = np.random.default_rng(0)
    # Values float16 can hold, other ones everywhere, so that no exchange hides.
    state = jax.tree.map(
        lambda w: (w + 0.1 * rng.normal(size=w.shape)).astype("float16"), state
    )
    state = jax.tree.map(lambda w: w.astype("float32"), state)
    net = nnx.merge(graph, state)
    card = dict.fromkeys(
        ("pictures", "steps", "batch", "command", "seed", "held_out", "scores"), "-"
    )
    pretrain_demo.save(tmp_path, net, card | {"minutes": 1.0})
    again, _ = weights.load(tmp_path, NUM_BLOCKS, PX)
    pictures = _drawn(2, 51)[0]
    np.testing.assert_array_equal(
        _features(again, pictures, (1, 3, 6)), _features(net, pictures, (1, 3, 6))
    )


@pytest.mark.parity
def test_bundled_taps_equal_those_of_transformers():
    import torch

    model = transformers.Dinov2Model.from_pretrained(BUNDLED, dtype=torch.float32)
    net, _ = weights.load("bundled", NUM_BLOCKS, PX)
    pictures = _drawn(3, 52)[0]
    values = np.asarray(images.normalise(jax.numpy.asarray(pictures)))
    with torch.no_grad():
        want = model(
            torch.from_numpy(values.transpose(0, 3, 1, 2).copy()),
            output_hidden_states=True,
        ).hidden_states
    taps = _features(net, pictures, tuple(range(1, 7)))
    for tap, hidden in zip(taps, want[1:], strict=True):
        hidden = hidden.numpy()[:, 1:]
        assert np.abs(tap - hidden).max() < 1e-5 * np.abs(hidden).max()


def _ridge_correlation(x: np.ndarray, y: np.ndarray, num_train: int) -> np.ndarray:
    """Correlation, on the rows after num_train, of a ridge fit: one per column of y."""
    x = (x - x[:num_train].mean(0)) / (x[:num_train].std(0) + 1e-6)
    mean = y[:num_train].mean(0)
    a, b = x[:num_train], y[:num_train] - mean
    said = x[num_train:] @ np.linalg.solve(a.T @ a + 100 * np.eye(a.shape[1]), a.T @ b)
    want = y[num_train:]
    return np.array(
        [np.corrcoef(said[:, k], want[:, k])[0, 1] for k in range(y.shape[1])]
    )


@pytest.mark.slow
def test_objects_can_be_read_from_it_and_not_from_random_weights():
    pictures, category, scene = _drawn(500, 53)
    maps = planted.feature_maps(pictures, category, scene)
    first = planted.FEATURES.index("object-face")
    present = np.sqrt(maps[:, first : first + 6].mean(axis=(2, 3)))  # (B, 6)
    scores = {}
    for source in ("bundled", "random"):
        net, _ = weights.load(source, 6, PX, geometry=pretrain_demo.GEOMETRY)
        mean = _features(net, pictures, (6,))[0].mean(axis=1)
        scores[source] = np.median(_ridge_correlation(mean, present, 400))
    assert scores["bundled"] > 0.6, scores
    assert scores["random"] < 0.35, scores


def test_labels_against_a_loop():
    data = pretrain_demo.pictures_with_labels(7, 10, 2)
    again = pretrain_demo.pictures_with_labels(7, 11, 1)
    for name in data:  # picture 11, whatever came before
        np.testing.assert_array_equal(data[name][1:], again[name])
    rng = np.random.default_rng([7, 100, 11])
    picture, scene = drawing.draw(rng, PX)
    assert (data["pictures"][1] == picture).all()
    assert data["scene"][1] == scene.scene
    for row, column in ((0, 0), (5, 9), (15, 3)):
        tile = np.s_[7 * row : 7 * row + 7, 7 * column : 7 * column + 7]
        rgb = picture[tile].reshape(-1, 3).mean(0) / 255
        np.testing.assert_allclose(data["rgb"][1, row, column], rgb, atol=1e-3)
        for c in range(6):
            covered = (scene.category[tile] == c).mean()
            assert data["covered"][1, row, column, c] == pytest.approx(
                covered, abs=1e-3
            )
    np.testing.assert_allclose(data["covered"].sum(-1, dtype=float), 1, atol=2e-3)


def test_pooling_keeps_areas():
    maps = np.random.default_rng(0).random((2, planted.GRID, planted.GRID))
    pooled = planted.pool(maps, pretrain_demo.SIDE)
    assert pooled.shape == (2, pretrain_demo.SIDE, pretrain_demo.SIDE)
    np.testing.assert_allclose(pooled.mean((1, 2)), maps.mean((1, 2)), rtol=1e-5)
    # The second cell of 28 / 16 = 1.75 columns: a quarter of column 1, all of column
    # 2, half of column 3.
    ramp = np.tile(np.arange(planted.GRID, dtype=float), (planted.GRID, 1))
    want = (0.25 * 1 + 1 * 2 + 0.5 * 3) / 1.75
    assert planted.pool(ramp, pretrain_demo.SIDE)[0, 1] == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("choice", range(12))
def test_augmented_labels_are_those_of_the_augmented_picture(choice):
    data = pretrain_demo.pictures_with_labels(1, 0, 2)
    batch = {k: jax.numpy.asarray(v) for k, v in data.items()}
    out = jax.tree.map(np.asarray, pretrain_demo._augment(batch, choice))
    category = np.stack(
        [drawing.draw(np.random.default_rng([1, 100, i]))[1].category for i in (0, 1)]
    )
    if choice % 2:
        category = category[:, :, ::-1]
    maps = planted.feature_maps(out["pictures"], category, data["scene"])
    energy = np.moveaxis(planted.pool(maps[:, :18], pretrain_demo.SIDE), 1, -1)
    np.testing.assert_allclose(out["energy"], energy, atol=0.01)
    tiles = out["pictures"].reshape(2, 16, 7, 16, 7, 3).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(out["rgb"], tiles, atol=1e-3)
    shown = np.where(category < 0, 6, category)[..., None] == np.arange(7)
    covered = shown.reshape(2, 16, 7, 16, 7, 7).mean(axis=(2, 4))
    np.testing.assert_allclose(out["covered"], covered, atol=1e-3)


def test_quarters_lie_where_the_labels_are():
    # A read-out that says, for each quarter of each patch, its own row and column.
    row, column = np.mgrid[:16, :16]
    place = np.stack([row, column], axis=-1)  # (SIDE, SIDE, 2)
    patches = place.reshape(8, 2, 8, 2, 2).transpose(0, 2, 1, 3, 4).reshape(1, 64, 8)
    np.testing.assert_array_equal(pretrain_demo._quarters(patches)[0], place)


@pytest.mark.slow
def test_training_lowers_the_loss_and_writes_a_loadable_network(tmp_path, monkeypatch):
    tiny = dinov2.Geometry(32, 6, 2, "gelu", 64, image_px=112)
    monkeypatch.setattr(pretrain_demo, "GEOMETRY", tiny)
    scores = pretrain_demo.train(
        tmp_path / "net",
        seed=0,
        num_pictures=64,
        steps=60,
        batch_size=8,
        learning_rate=3e-3,
        num_held_out=50,
    )
    assert scores["mean colour, block 2 (correlation)"] > 0.6
    net, _ = weights.load(tmp_path / "net", 6, PX)
    assert net.geometry == tiny
    start = dinov2.random(tiny, 6, PX, 0)
    moved = optax.tree_utils.tree_norm(
        jax.tree.map(lambda a, b: a - b, nnx.state(net), nnx.state(start))
    )
    assert moved > 0.1
