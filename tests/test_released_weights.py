"""The authors' files become our weights, and both forms of the encoder agree."""

import numpy as np
import pytest
import scipy.special

from tests import released_files, torch_files
from ubrain_jax import convert, errors
from ubrain_jax.backbone import weights
from ubrain_jax.model import encoder, released, released_numpy


def message(call, *arguments, **options) -> str:
    with pytest.raises(errors.InputError) as caught:
        call(*arguments, **options)
    return str(caught.value)


@pytest.fixture
def export(tmp_path):
    return released.open_encoder(released_files.write_export(tmp_path / "base.pt"))


def test_both_forms_of_the_file_hold_the_same_encoder(tmp_path, export):
    path = released_files.write_module(tmp_path / "whole.pth")
    whole = released.open_encoder(path)
    assert whole.weights.keys() == export.weights.keys()
    for name, array in released_files.weights().items():
        np.testing.assert_array_equal(whole.weights[name], array)
        np.testing.assert_array_equal(export.weights[name], array)
    assert whole.settings._replace(alpha=0.2) == export.settings
    assert whole.settings.alpha == pytest.approx(0.2)
    assert export.settings.assumed == ()
    np.testing.assert_array_equal(whole.table, released_files.table())
    assert whole.backbone.keys() == released_files.backbone().keys()
    assert export.table is None
    assert export.backbone == {}
    wrapped = torch_files.module(
        {f"module.{n}": a for n, a in released_files.weights().items()},
        **released_files.config(),
    )
    path = torch_files.write(tmp_path / "parallel.pth", wrapped)
    assert released.open_encoder(path).weights.keys() == export.weights.keys()


def test_every_tensor_has_its_place(export):
    theirs = released_files.weights()
    ours = released.trainable(export)
    adapter, head = ours["adapter"], ours["head"]
    # x + A(B(x)): B is applied first. The adapter after the last tap is unused.
    assert adapter["a"].shape == (3, 64, 2)
    assert adapter["b"].shape == (3, 2, 64)
    np.testing.assert_array_equal(adapter["a"][2], theirs["lora_B.2.weight"].T)
    np.testing.assert_array_equal(adapter["b"][2], theirs["lora_A.2.weight"].T)
    for name, source in (
        ("in_kernel", "in_project.1.weight"),
        ("query_kernel", "map_att.1.project.weight"),
        ("key_kernel", "map_att.1.project_x.weight"),
        ("fc1_kernel", "mlp.1.fc1.weight"),
        ("fc2_kernel", "mlp.1.fc2.weight"),
    ):
        np.testing.assert_array_equal(head[name][1], theirs[source].T)
    functional = head["functional"]  # (L, E, C) of (E, L C)
    np.testing.assert_array_equal(functional[1, 5], theirs["feat_embed"][5, 4:8])
    np.testing.assert_array_equal(head["position"], theirs["pos_embed"])
    assert set(export.unused) == {
        "layer_embed",
        "map_att.0.project_x.bias",
        "map_att.1.project_x.bias",
        "lora_A.3.weight",
        "lora_B.3.weight",
    }


def test_converted_names_and_shapes_are_those_of_the_encoder(tmp_path, export):
    path = released_files.write_backbone(tmp_path / "vit")
    network, _ = weights.load(path, 3, 28)
    experiment = released.experiment(export.settings, network.geometry, str(path))
    wanted = encoder.shared_shapes(experiment, network.geometry)
    found = encoder.by_name(released.trainable(export))
    assert {n: a.shape for n, a in found.items()} == wanted
    assert experiment.adapter.kind == "residual"
    assert experiment.backbone.keep_cls
    assert experiment.adapter.alpha == 0.2
    assert experiment.adapter.rank == 2
    assert experiment.loss.kind == "released"
    assert experiment.backbone.name == ""
    assert experiment.head.dtype == experiment.backbone.dtype == "float32"


def test_a_network_gives_back_its_original_names(tmp_path):
    theirs = released_files.backbone(side=2)
    path = released_files.write_backbone(tmp_path / "vit", theirs)
    network, _ = weights.load(path, 3, 28)
    found = released.original_backbone(network)
    for name, array in found.items():
        np.testing.assert_array_equal(array, theirs[name])
    left = theirs.keys() - found.keys()
    beside = {"mask_token", "norm.weight", "norm.bias"}
    assert {name for name in left if "blocks.3" not in name} == beside


def test_positions_of_the_numpy_form_equal_the_loaders():
    rng = np.random.default_rng(0)
    for side, grid in ((37, 16), (5, 2), (8, 8)):
        stored = rng.standard_normal((1, 1 + side**2, 6))
        found = released_numpy.positions(stored, grid, np.float64)
        wanted = weights.resize_positions(stored[0], grid, "antialias")
        np.testing.assert_allclose(found[0], wanted, rtol=0, atol=1e-12)


def test_one_tap_of_the_numpy_form_equals_loops():
    """A voxel and a picture at a time, in the letters of the paper."""
    w = {n: a.astype(np.float64) for n, a in released_files.weights().items()}
    rng = np.random.default_rng(3)
    tokens, embeddings = rng.standard_normal((2, 5, 64)), rng.standard_normal((3, 8))
    found = released_numpy.one_tap(w, 1, tokens, embeddings)

    def norm(x, name):
        x = (x - np.mean(x)) / np.sqrt(np.var(x) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def affine(x, name):
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    for b in range(2):
        f = [affine(norm(t, "norm_in.1"), "in_project.1") for t in tokens[b]]
        keys = [
            affine(f[p], "map_att.1.project_x") + w["pos_embed"][p] for p in range(5)
        ]
        for n in range(3):
            q = affine(embeddings[n], "map_att.1.project")
            logits = np.array([k @ q for k in keys])
            a = np.exp(logits - scipy.special.logsumexp(logits))
            u = norm(sum(a[p] * f[p] for p in range(5)), "norm.1")
            hidden = affine(u, "mlp.1.fc1")
            hidden = hidden * scipy.special.ndtr(hidden)
            wanted = u + affine(hidden, "mlp.1.fc2")
            np.testing.assert_allclose(found[b, n], wanted, rtol=1e-10)


def changed(name, array):
    """The tiny weights with one tensor set, or taken out."""
    content = released_files.weights()
    if array is None:
        del content[name]
    else:
        content[name] = array
    return content


def test_all_faults_of_the_tensors_are_told_at_once(tmp_path):
    content = released_files.weights()
    del content["mlp.1.fc2.bias"], content["norm.0.weight"]
    content["norm_in.0.bias"] = np.zeros(63, np.float32)
    content["pos_embed_2"] = np.zeros(3, np.float32)
    content["mlp.0.fc2.bias"] = np.zeros(4, np.int64)
    path = released_files.write_export(tmp_path / "a.pt", content)
    found = message(released.open_encoder, path)
    assert "2 missing: norm.0.weight, mlp.1.fc2.bias" in found
    assert "1 unknown: pos_embed_2" in found
    assert "norm_in.0.bias (63,), expected (64,)" in found
    assert "mlp.0.fc2.bias int64" in found


@pytest.mark.parametrize(
    ("content", "changes", "found"),
    [
        (changed("feat_embed", None), {}, "feat_embed: absent"),
        (changed("lora_A.3.weight", None), {}, "select_layers is"),
        (changed("feat_embed", np.zeros((8, 9), "f4")), {}, "(8, 9), expected (8, 8)"),
        (None, {"select_layers": [3, 1]}, "select_layers is [3, 1]"),
        (None, {"select_layers": [0, 3]}, "select_layers is [0, 3]"),
        (None, {"select_layers": [1, 5]}, "select_layers is [1, 5]"),
        (None, {"select_layers": [1, 2, 3]}, "with 2 projections"),
        (None, {"r": 7}, "r is 7, the tensors have 2"),
        (None, {"param": {"inner_ch": 128}}, "inner_ch is 128, the tensors have 4"),
        (None, {"include_reg_tokens": True}, "registers as tokens of the head"),
        (None, {"alpha": "0.1"}, "alpha is '0.1'"),
        (None, {"alpha": torch_files.Call("os system", ("true",))}, "os.system"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, content, changes, found):
    if content is not None and "lora_A.3.weight" not in content:
        changes = {"select_layers": [1, 4]}
    path = released_files.write_export(tmp_path / "a.pt", content, **changes)
    assert found in message(released.open_encoder, path)


def test_what_a_file_does_not_tell_is_assumed_and_said(tmp_path):
    content = released_files.weights(depth=24, taps=[1, 6, 12, 18, 24])
    path = torch_files.write(tmp_path / "state.pt", content)
    found = released.open_encoder(path).settings
    assert found.taps == (1, 6, 12, 18, 24)
    assert found.alpha == 0.01
    assert found.registers == 4
    assert found.image_px == 224
    told = " ".join(found.assumed)
    assert "select_layers" in told
    assert "alpha 0.01" in told
    assert "img_len 224" in told


def test_files_given_in_each_others_place_are_refused(tmp_path, export):
    whole = released_files.write_module(tmp_path / "whole.pth")
    base = released_files.write_export(tmp_path / "b.pt")
    own = {"voxel_embed": released_files.table(), "base": "b.pt"}
    fitted = torch_files.write(tmp_path / "f.pt", own)
    assert "--voxel_embed" in message(released.open_encoder, fitted)
    assert "--released" in message(released.open_table, whole, export.settings)
    assert "--released" in message(released.open_table, base, export.settings)
    state = torch_files.write(tmp_path / "vit.pth", released_files.backbone())
    assert "in_project.0.weight: absent" in message(released.open_encoder, state)
    table, told = released.open_table(fitted, export.settings)
    np.testing.assert_array_equal(table, released_files.table())
    assert told == "b.pt"
    for value, found in (
        (released_files.table(embed=9), "embeddings of 9 numbers"),
        (np.zeros(8, "f4"), "float32 (8,)"),
        (np.zeros((3, 8), np.int64), "int64 (3, 8)"),
        (np.zeros((0, 8), "f4"), "(0, 8)"),
    ):
        path = torch_files.write(tmp_path / "t.pt", {"voxel_embed": value})
        assert found in message(released.open_table, path, export.settings)


@pytest.mark.parametrize(
    ("text", "rows", "found"),
    [
        ("a:3,b:4", 8, "7 rows in 2 subjects"),
        ("a:3,a:4", 7, "'a:4'"),
        ("a:3,../b:4", 7, "'../b:4'"),
        ("a:3,", 3, "''"),
        ("a=7", 7, "'a=7'"),
        ("a:0,b:7", 7, "'a:0'"),
    ],
)
def test_subjects_that_cannot_be_read_are_refused(text, rows, found):
    assert found in message(convert.parse_subjects, text, rows)
