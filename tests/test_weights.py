import dataclasses
import hashlib
import json
import os
import pickle
import re
import struct
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from ubrain_jax import errors
from ubrain_jax.backbone import dinov2, pth, weights

TINY = dinov2.Geometry(32, 3, 2, "gelu", 64, registers=2, image_px=70)
CONFIG = {
    "model_type": "dinov2_with_registers",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "image_size": 70,
    "patch_size": 14,
    "num_register_tokens": 2,
}


def tensors(dtype=np.float32, seed=0):
    """What save_pretrained would write for CONFIG, names spelled out."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embeddings.cls_token": (1, 1, 32),
        "embeddings.mask_token": (1, 32),
        "embeddings.position_embeddings": (1, 26, 32),
        "embeddings.register_tokens": (1, 2, 32),
        "embeddings.patch_embeddings.projection.weight": (32, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (32,),
        "layernorm.weight": (32,),
        "layernorm.bias": (32,),
    }
    for i in range(3):
        before = f"encoder.layer.{i}."
        for name in ("norm1", "norm2"):
            shapes |= {f"{before}{name}.{k}": (32,) for k in ("weight", "bias")}
        for name in ("query", "key", "value"):
            shapes[f"{before}attention.attention.{name}.weight"] = (32, 32)
            shapes[f"{before}attention.attention.{name}.bias"] = (32,)
        shapes[f"{before}attention.output.dense.weight"] = (32, 32)
        shapes[f"{before}attention.output.dense.bias"] = (32,)
        shapes[f"{before}layer_scale1.lambda1"] = (32,)
        shapes[f"{before}layer_scale2.lambda1"] = (32,)
        shapes[f"{before}mlp.fc1.weight"] = (64, 32)
        shapes[f"{before}mlp.fc1.bias"] = (64,)
        shapes[f"{before}mlp.fc2.weight"] = (32, 64)
        shapes[f"{before}mlp.fc2.bias"] = (32,)
    return {n: rng.standard_normal(s).astype(dtype) for n, s in shapes.items()}


def write(folder, content=None, **config):
    """A Hugging Face folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors() if content is None else content, folder / "model.safetensors")
    return folder


def message(kind, *arguments, **options):
    with pytest.raises(kind) as caught:
        weights.load(*arguments, **options)
    return str(caught.value)


def test_every_weight_has_its_place(tmp_path):
    content = tensors()
    net, provenance = weights.load(write(tmp_path / "m"), 2, 70)
    before = "encoder.layer.1."
    parts = [
        content[f"{before}attention.attention.{n}.weight"].T
        for n in ("query", "key", "value")
    ]
    blocks = net.blocks
    np.testing.assert_array_equal(blocks.qkv_kernel[...][1], np.concatenate(parts, 1))
    np.testing.assert_array_equal(
        blocks.up_kernel[...][1], content[f"{before}mlp.fc1.weight"].T
    )
    np.testing.assert_array_equal(
        blocks.scale2[...][1], content[f"{before}layer_scale2.lambda1"]
    )
    np.testing.assert_array_equal(
        net.position[...], content["embeddings.position_embeddings"][0]
    )
    patch = content["embeddings.patch_embeddings.projection.weight"]
    kernel = net.patch_kernel[...].reshape(14, 14, 3, 32)
    np.testing.assert_array_equal(kernel[3, 5, 1], patch[:, 1, 3, 5])
    assert blocks.out_bias[...].shape == (2, 32)
    assert provenance.geometry == TINY
    assert not provenance.random
    digest = hashlib.sha256((tmp_path / "m/model.safetensors").read_bytes())
    assert provenance.sha256 == {"model.safetensors": digest.hexdigest()}
    assert "embeddings.mask_token" in provenance.unneeded
    assert "encoder.layer.2.mlp.fc1.bias" in provenance.unneeded
    assert len(provenance.unneeded) == 3 + 18


def test_file_beside_its_config_and_shards_read_the_same(tmp_path):
    content = tensors()
    whole = write(tmp_path / "whole")
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    (sharded / "config.json").write_text(json.dumps(CONFIG))
    names = sorted(content)
    shards = {"a-1.safetensors": names[:20], "a-2.safetensors": names[20:]}
    for file, own in shards.items():
        save_file({n: content[n] for n in own}, sharded / file)
    index = {"weight_map": {n: f for f, own in shards.items() for n in own}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    nets = [
        weights.load(source, 3, 70)
        for source in (whole, whole / "model.safetensors", sharded)
    ]
    for net, _ in nets:
        np.testing.assert_array_equal(
            net.blocks.down_kernel[...], nets[0][0].blocks.down_kernel[...]
        )
    assert list(nets[2][1].sha256) == ["a-1.safetensors", "a-2.safetensors"]


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_other_floats_are_converted_once(stored, kept, tmp_path):
    content = tensors(stored)
    net, _ = weights.load(write(tmp_path / "m", content), 1, 70, kept)
    source = content["encoder.layer.0.mlp.fc2.weight"].T
    found = np.asarray(net.blocks.down_kernel[...][0])
    assert found.dtype == kept
    np.testing.assert_array_equal(found, source.astype(found.dtype))
    assert net.blocks.norm1_scale[...].dtype == jnp.float32


def test_positions_follow_the_origin_of_the_weights(tmp_path):
    content = tensors()
    plain = {k: v for k, v in content.items() if "register" not in k}
    without = write(tmp_path / "plain", plain, model_type="dinov2")
    positions = content["embeddings.position_embeddings"][0]
    for folder, rule in ((write(tmp_path / "reg"), "antialias"), (without, "size")):
        net, _ = weights.load(folder, 1, 42)
        expected = weights.resize_positions(positions, 3, rule)
        np.testing.assert_array_equal(net.position[...], expected)


def original(content):
    """Original names, of a file without registers."""
    renamed = {}
    for name, value in content.items():
        name = name.replace("encoder.layer.", "blocks.").replace(".lambda1", ".gamma")
        name = name.replace("layer_scale", "ls").replace("layernorm", "norm")
        name = name.replace("attention.output.dense", "attn.proj")
        name = name.replace(
            "embeddings.patch_embeddings.projection", "patch_embed.proj"
        )
        name = name.replace("embeddings.position_embeddings", "pos_embed")
        name = name.replace("embeddings.", "")
        if "register" not in name:
            renamed[name] = value
    for i in range(3):
        for kind in ("weight", "bias"):
            renamed[f"blocks.{i}.attn.qkv.{kind}"] = np.concatenate(
                [
                    renamed.pop(f"blocks.{i}.attention.attention.{part}.{kind}")
                    for part in ("query", "key", "value")
                ]
            )
    return renamed


def test_original_names_in_safetensors_need_no_config(tmp_path):
    path = tmp_path / "old.safetensors"
    save_file(original(tensors()), path)
    geometry = dataclasses.replace(TINY, registers=0)
    net, provenance = weights.load(path, 2, 42, geometry=geometry)
    assert provenance.origin == "original"
    assert provenance.geometry == geometry
    content = tensors()
    positions = content["embeddings.position_embeddings"][0]
    np.testing.assert_array_equal(
        net.position[...], weights.resize_positions(positions, 3, "offset")
    )
    value = content["encoder.layer.1.attention.attention.value.weight"]
    np.testing.assert_array_equal(net.blocks.qkv_kernel[...][1][:, 64:], value.T)


def test_bundled_weights_are_a_folder_of_the_package(tmp_path, monkeypatch):
    content = {n: v.astype(np.float16) for n, v in tensors().items()}
    monkeypatch.setattr(weights, "BUNDLED", write(tmp_path / "bundled", content))
    _, provenance = weights.load("bundled", 3, 42)
    assert (provenance.origin, provenance.random) == ("bundled", False)


def test_random_weights_must_be_asked_for_in_words():
    net, provenance = weights.load("random", 2, 28, geometry=TINY, seed=3)
    assert (provenance.origin, provenance.random) == ("random", True)
    same = dinov2.random(TINY, 2, 28, seed=3)
    np.testing.assert_array_equal(net.position[...], same.position[...])
    assert "no geometry" in message(errors.ConfigError, "random", 2, 28)
    assert "no such file" in message(errors.MissingInputError, "Random", 2, 28)
    text = message(errors.ConfigError, "random", 2, 28, geometry="dinov2-gigant")
    assert "Did you mean dinov2-giant" in text


def test_all_faults_of_a_file_are_told_at_once(tmp_path):
    content = tensors()
    del content["embeddings.cls_token"]
    content["head.weight"] = np.zeros((3, 3), np.float32)
    for i in range(3):
        content[f"encoder.layer.{i}.norm2.bias"] = np.zeros(31, np.float32)
    content["encoder.layer.1.mlp.fc1.bias"][7] = np.nan
    content["encoder.layer.0.norm1.weight"] = np.ones(32, np.int32)
    text = message(errors.InputError, write(tmp_path / "m", content), 3, 70)
    for part in (
        "1 missing: embeddings.cls_token",
        "1 unknown: head.weight",
        "3 of another shape: encoder.layer.[0-2].norm2.bias (31,), expected (32,)",
        "1 not floating point: encoder.layer.0.norm1.weight I32",
        "1 with non-finite values: encoder.layer.1.mlp.fc1.bias",
    ):
        assert part in text


def test_faults_after_the_last_tap_do_not_matter(tmp_path):
    content = tensors()
    del content["encoder.layer.2.mlp.fc1.bias"]
    folder = write(tmp_path / "m", content)
    weights.load(folder, 2, 70)
    assert "1 missing" in message(errors.InputError, folder, 3, 70)


def test_values_that_overflow_are_not_finite(tmp_path):
    content = tensors(np.float64)
    content["encoder.layer.0.norm1.bias"][0] = 1e300
    text = message(errors.InputError, write(tmp_path / "m", content), 1, 70)
    assert "1 with non-finite values: encoder.layer.0.norm1.bias" in text


def test_config_of_another_network_is_told_by_shapes(tmp_path):
    folder = write(tmp_path / "m", hidden_size=64, num_hidden_layers=4)
    text = message(errors.InputError, folder, 4, 70)
    assert "encoder.layer.[0-2].mlp.fc1.bias (64,), expected (128,)" in text
    assert "missing: encoder.layer.3" in text


def test_network_named_in_the_config_must_be_the_one_of_the_file(tmp_path):
    folder = write(tmp_path / "m")
    text = message(errors.InputError, folder, 1, 70, geometry="dinov2-small")
    assert "config.json: the weights have width 32, depth 3" in text
    assert "dinov2-small with width 384" in text


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model_type": "vit"}, "'vit'; expected dinov2 or dinov2_with_registers"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": 33}, "no multiple of num_attention_heads 2"),
        ({"patch_size": 0, "num_hidden_layers": 10**9}, "num_hidden_layers is 10000"),
        ({"hidden_act": "gelu_new", "qkv_bias": False}, "qkv_bias is False"),
        ({"num_channels": 1}, "num_channels is 1, expected 3"),
        ({"mlp_ratio": -1}, "mlp_ratio is -1"),
        ({"image_size": 71}, "no multiple of patch_size"),
    ],
)
def test_configurations_that_cannot_be_run_are_refused(change, part, tmp_path):
    assert part in message(errors.InputError, write(tmp_path / "m", **change), 1, 70)


def test_taps_and_sizes_must_fit_the_network(tmp_path):
    folder = write(tmp_path / "m")
    assert "the last tap is 4" in message(errors.ConfigError, folder, 4, 70)
    assert "a multiple of 14" in message(errors.ConfigError, folder, 1, 100)
    with pytest.raises(ValueError, match="expected float32 or bfloat16"):
        weights.load(folder, 1, 70, "float16")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "the file has 0 bytes"),
        (b"1234567", "the file has 7 bytes"),
        (struct.pack("<Q", 9_200_000_000) + b"{}", "says 9200000000 bytes in a file"),
        (struct.pack("<Q", 2) + b"{{", "damaged or truncated"),
        (b"not a tensor file at all", "bytes in a file of 24 bytes"),
    ],
)
def test_damaged_headers_are_refused(content, part, tmp_path):
    folder = write(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(content)
    assert part in message(errors.InputError, folder, 1, 70)


def test_truncated_tensors_are_refused(tmp_path):
    path = write(tmp_path / "m") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert "damaged or truncated" in message(errors.InputError, path.parent, 1, 70)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "..", "a/b.safetensors", "m.bin", ""]
)
def test_index_must_not_reach_outside_its_folder(name, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": name}})
    )
    save_file(tensors(), tmp_path / "x.safetensors")
    assert f"{name!r} refused" in message(errors.InputError, folder, 1, 70)


def test_absent_shards_and_tensors_in_two_shards_are_named(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(tensors(), folder / "1.safetensors")
    text = message(errors.MissingInputError, folder, 1, 70)
    assert "1 of 2 files are absent: 2.safetensors" in text
    save_file({"layernorm.bias": np.ones(32)}, folder / "2.safetensors")
    assert "in two files: layernorm.bias" in message(errors.InputError, folder, 1, 70)


def test_files_that_are_not_there_are_named(tmp_path):
    missing = errors.MissingInputError
    assert "no such file" in message(missing, tmp_path / "none", 1, 70)
    assert "config.json: no such file" in message(missing, tmp_path, 1, 70)
    save_file(tensors(), tmp_path / "model.safetensors")
    path = tmp_path / "model.safetensors"
    assert "config.json: no such file" in message(missing, path, 1, 70)
    path.unlink()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").touch()
    assert "found pytorch_model.bin" in message(missing, tmp_path, 1, 70)
    (tmp_path / "model.onnx").touch()
    assert "'.onnx'" in message(errors.InputError, tmp_path / "model.onnx", 1, 70)


@pytest.mark.parametrize(
    ("text", "part"),
    [("{", "not JSON"), ("[]", "a JSON list"), ("[" * 10**5, "not JSON")],
)
def test_json_that_is_none_is_refused(text, part, tmp_path):
    folder = write(tmp_path / "m")
    (folder / "config.json").write_text(text)
    assert part in message(errors.InputError, folder, 1, 70)
    (folder / "config.json").write_text(" " * (weights.MAX_JSON_BYTES + 1))
    assert "10 MB of JSON" in message(errors.InputError, folder, 1, 70)


def test_other_networks_are_told_apart(tmp_path):
    folder = write(tmp_path / "m", {"model.weight": np.ones(3, np.float32)})
    text = message(errors.InputError, folder, 1, 70)
    assert "no tensor of a DINOv2 among 1 (model.weight ...)" in text
    path = tmp_path / "old.safetensors"
    content = original(tensors())
    del content["blocks.0.mlp.fc2.weight"]
    save_file(content, path)
    assert "blocks.0.mlp.fc2.weight: absent" in message(errors.InputError, path, 1, 70)


def test_hub_id_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    text = message(errors.MissingInputError, "facebook/dinov2-giant", 24, 224)
    for part in (
        "facebook/dinov2-giant: not a folder here",
        f"not in the cache {tmp_path}",
        "offline mode is enabled",
        "hf download facebook/dinov2-giant config.json model.safetensors",
    ):
        assert part in text


def test_hub_cache_is_used_without_a_network(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--some--dinov2"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text("0" * 40)
    write_to = repo / "snapshots" / ("0" * 40)
    write_to.parent.mkdir()
    write(write_to)
    download = huggingface_hub.hf_hub_download
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda repo, name: download(repo, name, cache_dir=tmp_path),
    )
    _, provenance = weights.load("some/dinov2", 3, 70)
    assert provenance.geometry == TINY
    assert (provenance.source, provenance.origin) == ("some/dinov2", "hf")


def test_loading_holds_the_network_about_once(tmp_path):
    """Peak of numpy memory while filling, against the size of the result."""
    import tracemalloc

    width, depth = 128, 12
    geometry = dinov2.Geometry(width, depth, 2, "gelu", 4 * width, image_px=28)
    rng = np.random.default_rng(0)
    net = dinov2.random(geometry, depth, 28)
    config = CONFIG | {"model_type": "dinov2", "hidden_size": width, "mlp_ratio": 4}
    config |= {"num_hidden_layers": depth, "image_size": 28}
    layout, needs = weights._HF, {}
    for need in weights._needs(layout, geometry, depth):
        for name in need.sources:
            needs[name] = rng.standard_normal(need.shape).astype(np.float32)
    folder = write(tmp_path / "m", needs, **config)
    size = sum(v.nbytes for v in needs.values())
    weights.load(folder, 1, 28)  # imports are not counted
    tracemalloc.start()
    again, _ = weights.load(folder, depth, 28)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert again.num_blocks == net.num_blocks
    assert peak < 1.25 * size


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parity
def test_pickles_that_call_something_are_refused(tmp_path):
    import torch

    touched = tmp_path / "touched"
    for name, save in (("zip.pth", torch.save), ("bare.pth", pickle_to)):
        path = tmp_path / name
        save({"cls_token": Command(touched)}, path)
        text = message(errors.InputError, path, 1, 70)
        assert re.search(r"the pickle wants (posix|nt|os)\.system", text)
        assert not touched.exists()


def pickle_to(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parity
@pytest.mark.parametrize("fault", ["truncated", "text", "list", "nested", "module"])
def test_pth_files_without_tensors_are_refused(fault, tmp_path):
    import torch

    path = tmp_path / "w.pth"
    content = {
        "list": [torch.ones(3)],
        "nested": {"model": {"a": torch.ones(3)}, "epoch": 3},
        "module": torch.nn.Linear(2, 2),
    }.get(fault, {"cls_token": torch.ones(1000)})
    torch.save(content, path)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    if fault == "text":
        path.write_text("version https://git-lfs.example/spec/v1")
    expected = {
        "truncated": "damaged or not a torch file",
        "text": "damaged or not a torch file|no plain dict",
        "list": "holds list without tensors",
        "nested": "entry 'model' is dict, not a tensor",
        "module": r"the pickle wants torch\.nn\.modules\.linear\.Linear",
    }[fault]
    assert re.search(expected, message(errors.InputError, path, 1, 70))


def test_pth_needs_torch_and_a_new_one(tmp_path, monkeypatch, capsys):
    path = tmp_path / "w.pth"
    path.write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        pth.Refused, match=r"torch, which is not installed.*pip install"
    ):
        pth.convert(path, tmp_path / "out")
    monkeypatch.setattr(pth.resource, "setrlimit", lambda *_: None)
    assert pth.main(str(path), str(tmp_path / "out")) == pth.REFUSED
    assert "not installed" in json.loads(capsys.readouterr().out)["refused"]


@pytest.mark.parity
def test_old_torch_is_refused(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(pth.Refused, match=r"torch 2.5.1\+cpu cannot read .* 2.10"):
        pth.convert(tmp_path / "w.pth", tmp_path / "out")
