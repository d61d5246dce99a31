"""The contrastive terms against loops in numpy, torch, and themselves on meshes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from ubrain_jax import batches, config, experiments, losses, sharding, train


def example(seed, images=6, num=40, padded=0, noise=1.0):
    rng = np.random.default_rng(seed)
    response = rng.normal(size=(images, num)).astype(np.float32)
    predicted = 0.3 * response + noise * rng.normal(size=response.shape) + 0.2
    weight = np.ones((images, num), np.float32)
    weight[:, num - padded :] = 0
    return predicted.astype(np.float32), response, weight


def by_loops(predicted, response, temperature):
    """One pair of images at a time, in float64, without padding."""
    images = len(predicted)
    logits = np.empty((images, images))
    for i, j in itertools.product(range(images), repeat=2):
        r = np.corrcoef(predicted[i].astype(float), response[j].astype(float))[0, 1]
        logits[i, j] = r / temperature
    total, entropy = 0.0, 0.0
    for i in range(images):
        for row in (logits[i], logits[:, i]):
            total += np.log(sum(np.exp(x) for x in row)) - logits[i, i]
        other = [np.exp(logits[i, j]) for j in range(images) if j != i]
        share = np.array(other) / sum(other)
        entropy -= sum(p * np.log(p) for p in share)
    return total / (2 * images), entropy / images


@jax.jit
def terms(predicted, response, weight, temperature=0.1):
    similarity = losses.pattern_similarity(predicted, response, weight)
    return losses.contrast(similarity, temperature)


def loss_of(predicted, response, weight, group=6, entropy=0.1):
    return losses.contrast_loss(predicted, response, weight, group, 1, entropy, 0.1)


value_and_slope_of = jax.jit(jax.value_and_grad(loss_of), static_argnums=3)


@pytest.mark.parametrize(("images", "temperature"), [(2, 0.1), (3, 1.0), (7, 0.07)])
def test_terms_equal_loops_in_float64(images, temperature):
    predicted, response, weight = example(0, images)
    found = terms(predicted, response, weight, temperature)
    assert found.info_nce.dtype == found.entropy.dtype == jnp.float32
    want = by_loops(predicted, response, temperature)
    np.testing.assert_allclose(found, want, rtol=2e-5, atol=1e-6)


def test_the_loss_is_the_mean_over_groups_of_the_weighted_terms():
    predicted, response, weight = example(1, images=8)
    found = losses.contrast_loss(predicted, response, weight, 4, 2.0, 0.3, 0.2)
    want = []
    for rows in (slice(0, 4), slice(4, 8)):
        nce, entropy = by_loops(predicted[rows], response[rows], 0.2)
        want.append(2 * nce - 0.3 * entropy)
    np.testing.assert_allclose(found, np.mean(want), rtol=1e-5)


def test_it_is_low_where_patterns_find_their_images_and_log_of_their_number_else():
    _, response, weight = example(2, images=16, num=500)
    right = terms(response, response, weight).info_nce
    wrong = terms(np.roll(response, 1, 0), response, weight).info_nce
    alike = terms(np.tile(response[:1], (16, 1)), response, weight)
    assert right < 0.01
    assert wrong > 5
    # One prediction for all says nothing to those who look for their image in it.
    one_way = np.mean(np.log(np.exp(_row(response) / 0.1).sum()) - _row(response) / 0.1)
    np.testing.assert_allclose(alike.info_nce, (np.log(16) + one_way) / 2, rtol=1e-4)


def _row(response):
    return np.corrcoef(response.astype(float))[0]


def test_scale_and_offset_of_a_pattern_change_nothing():
    predicted, response, weight = example(3)
    changed = predicted * np.array([[3], [1e-6], [1], [1e6], [0.1], [7]]) + 2.0
    changed[1] -= 2.0
    changed = changed.astype(np.float32)
    np.testing.assert_allclose(
        terms(changed, response, weight), terms(predicted, response, weight), rtol=1e-4
    )


@pytest.mark.parametrize("filler", [0.0, 3.0, np.nan, np.inf])
def test_padding_changes_neither_value_nor_gradient(filler):
    predicted, response, weight = example(4)
    value, slope = value_and_slope_of(predicted, response, weight)
    padded = [
        np.concatenate([a, np.full((6, 9), f, np.float32)], 1)
        for a, f in ((predicted, filler), (response, -filler), (weight, 0))
    ]
    padded_value, padded_slope = value_and_slope_of(*padded)
    np.testing.assert_allclose(padded_value, value, rtol=1e-5)
    np.testing.assert_allclose(padded_slope[:, :40], slope, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(padded_slope[:, 40:], 0)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3e4])
@pytest.mark.parametrize("which", ["predicted", "response", "both"])
def test_constant_patterns_count_as_uncorrelated_and_give_no_gradient(which, constant):
    predicted, response, weight = example(5, num=4001)
    if which != "response":
        predicted[2] = constant
    if which != "predicted":
        response[2] = constant
    similarity = losses.pattern_similarity(predicted, response, weight)
    if which != "response":
        np.testing.assert_array_equal(similarity[2], 0)
    if which != "predicted":
        np.testing.assert_array_equal(similarity[:, 2], 0)
    value, slope = value_and_slope_of(predicted, response, weight)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
    assert np.abs(slope[0]).max() > 0
    if which != "response":
        np.testing.assert_array_equal(slope[2], 0)


def test_without_a_voxel_nothing_is_known_and_nothing_learned():
    predicted, response, weight = example(6)
    value, slope = value_and_slope_of(predicted, response, 0 * weight)
    np.testing.assert_allclose(value, np.log(6) - 0.1 * np.log(5), rtol=1e-6)
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("images", [2, 5])
def test_gradient_agrees_with_finite_differences(images):
    with jax.enable_x64(True):
        predicted, response, weight = (
            jnp.asarray(a, jnp.float64) for a in example(7, images, 17, padded=4)
        )
        check_grads(
            jax.jit(lambda p, y: loss_of(p, y, weight, images)),
            (predicted, response),
            order=1,
            modes=["fwd", "rev"],
            eps=1e-6,
            atol=1e-6,
            rtol=1e-6,
        )


def test_bfloat16_predictions_are_compared_in_float32():
    predicted, response, weight = example(8, num=3000)
    low = jnp.asarray(predicted, jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        found = terms(low, jnp.asarray(response), jnp.asarray(weight))
    want = by_loops(np.asarray(low, np.float32), response, 0.1)
    np.testing.assert_allclose(found, want, rtol=2e-5)


@pytest.mark.parity
@pytest.mark.parametrize("entropy", [0.0, 0.1])
def test_loss_and_gradient_equal_torch(entropy):
    import torch

    predicted, response, weight = example(9, images=12, num=300)
    value, slope = value_and_slope_of(predicted, response, weight, 12, entropy)
    p = torch.tensor(predicted, dtype=torch.float64, requires_grad=True)
    y = torch.tensor(response, dtype=torch.float64)
    similarity = torch.corrcoef(torch.cat([p, y]))[:12, 12:] / 0.1
    target = torch.arange(12)
    theirs = torch.nn.functional.cross_entropy(similarity, target) / 2
    theirs += torch.nn.functional.cross_entropy(similarity.T, target) / 2
    others = similarity[~torch.eye(12, dtype=torch.bool)].reshape(12, 11)
    theirs -= entropy * torch.distributions.Categorical(logits=others).entropy().mean()
    theirs.backward()
    np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
    np.testing.assert_allclose(slope, p.grad.numpy(), rtol=1e-4, atol=1e-6)


MESHES = [(2, 4), (8, 1), (1, 8)]


@pytest.mark.parametrize("shape", MESHES, ids=lambda m: f"{m[0]}x{m[1]}")
@pytest.mark.parametrize("group", [2, 8])
def test_groups_split_over_devices_have_the_terms_of_one(shape, group):
    values = example(10, images=8, num=64, padded=3)
    want, slope = value_and_slope_of(*values, group)
    mesh = sharding.make_mesh(*shape, stripes=8, batch_images=8)
    place = sharding.place(mesh, sharding.SAMPLES)
    split = [jax.device_put(a, place) for a in values]
    value, many = value_and_slope_of(*split, group)
    np.testing.assert_allclose(value, want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(many, slope, rtol=0, atol=1e-6)


# In the loss of a batch.

GROUPED = {"batch_images": 8, "group_images": 4, "voxels_per_image": 64, "stripes": 8}
LOSS = {"contrastive": 1.0, "entropy": 0.1, "temperature": 0.5}


def first_batch(tiny, mesh):
    """Experiment, run on a mesh, its first batch, and weights away from the start."""
    experiment = tiny(
        data=GROUPED,
        backbone={"taps": (1,)},
        mesh={"data": mesh[0], "voxel": mesh[1]},
        loss=LOSS,
    )
    run = experiments.prepare_run(experiment, jax.devices()[: mesh[0] * mesh[1]])
    batch = batches.dataset(run.stores, experiment.data, 0)[0]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: a + 0.1 * rng.standard_normal(a.shape).astype(np.float32),
        run.parts.trainable,
    )
    return run, train.put_batch(run.mesh, batch), params


def value_and_slope(tiny, mesh):
    run, batch, params = first_batch(tiny, mesh)

    def loss(params):
        model = nnx.merge(run.parts.graph, params, run.parts.frozen)
        settings = run.experiment.loss
        return train.loss_of_batch(
            model, batch, jax.random.key(1), run.mesh, settings, group_images=4
        )

    value, slope = jax.jit(jax.value_and_grad(loss))(params)
    return float(value), jax.tree.map(np.asarray, slope)


@pytest.fixture(scope="module")
def alone(tiny):
    return value_and_slope(tiny, (1, 1))


@pytest.mark.parametrize("mesh", MESHES, ids=lambda m: f"{m[0]}x{m[1]}")
def test_loss_and_gradient_on_any_mesh_are_those_of_one_device(tiny, alone, mesh):
    value, slope = value_and_slope(tiny, mesh)
    np.testing.assert_allclose(value, alone[0], rtol=0, atol=1e-5)
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(alone[1]),
        jax.tree.leaves(slope),
        strict=True,
    )
    for (path, one), many in pairs:
        size, name = np.abs(one).max(), jax.tree_util.keystr(path)
        assert size > 0, name
        np.testing.assert_allclose(many, one, rtol=0, atol=1e-5 * max(1, size))


def test_the_loss_of_a_batch_has_the_terms_of_its_groups(tiny):
    run, batch, params = first_batch(tiny, (1, 1))
    on, plain = run.experiment.loss, config.Loss()

    @jax.jit
    def losses_and_predicted(params):
        model = nnx.merge(run.parts.graph, params, run.parts.frozen)
        features = model.features(batch.image)
        e = model.embeddings(batch.voxel)
        predicted = model.respond(features, e.reshape(8, 64, -1), None)
        both = [
            train.loss_of_batch(model, batch, None, run.mesh, s, group_images=4)
            for s in (on, plain)
        ]
        return *both, predicted

    with_terms, without, predicted = losses_and_predicted(params)
    want = []
    for rows in (slice(0, 4), slice(4, 8)):
        used = np.asarray(batch.weight[rows][0]).ravel() > 0
        measured = np.asarray(batch.response[rows]).reshape(4, -1)[:, used]
        nce, entropy = by_loops(np.asarray(predicted[rows])[:, used], measured, 0.5)
        want.append(nce - 0.1 * entropy)
    np.testing.assert_allclose(with_terms - without, np.mean(want), rtol=1e-4)


@pytest.mark.parametrize(
    ("data", "loss", "words"),
    [
        ({"group_images": 1}, {"contrastive": 1.0}, "group_images is 1, not 2 or more"),
        ({"group_images": 3}, {}, r"a divisor of data.batch_images \(8\)"),
        ({"group_images": 0}, {}, "group_images is 0, not 1 or more"),
        ({"group_images": 4}, {"contrastive": -1.0}, "contrastive is -1.0"),
        ({"group_images": 4}, {"contrastive": float("nan")}, "contrastive is nan"),
        ({"group_images": 4}, {"temperature": 0.0}, "temperature is 0.0"),
        ({"group_images": 4}, {"entropy": 0.1}, "0 without loss.contrastive"),
        (
            {"group_images": 2},
            {"contrastive": 1.0, "entropy": 0.1},
            "group_images is 2, not 3 or more",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(tiny_dict, data, loss, words):
    with pytest.raises(config.errors.ConfigError, match=words):
        config.from_dict(tiny_dict(data=data, loss=loss), "test")
