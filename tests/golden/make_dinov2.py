"""Makes dinov2_<kind>.npz beside it: taps of transformers' DINOv2 on tiny networks.

Run `python tests/golden/make_dinov2.py` where torch is installed. Each file holds a
config.json, the tensors as save_pretrained names them, pictures of two sizes, every
hidden state, and positions as torch resizes them. test_dinov2_parity.py reads them.
"""

import json
import pathlib
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).parent
KINDS = {
    "gelu": {},
    "swiglu": {"use_swiglu_ffn": True},
    "registers": {"num_register_tokens": 3},
}
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 70,
}
SIZES = (42, 70)  # a resized and the native grid of positions


def build(config: dict, seed: int = 1):
    """A torch model with nontrivial values in every parameter, exact in float16.

    The noise has variance 1 / width, which keeps kernels at their usual scale.
    """
    import torch
    import transformers

    if "num_register_tokens" in config:
        kind = transformers.Dinov2WithRegistersConfig
        model = transformers.Dinov2WithRegistersModel(kind(**config))
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**config))
    torch.manual_seed(seed)
    noise = config["hidden_size"] ** -0.5
    with torch.no_grad():
        for value in model.parameters():
            value.add_(noise * torch.randn_like(value))
            value.copy_(value.half().float())
    return model.eval()


def main() -> None:
    """Writes the three files."""
    import torch
    from safetensors.numpy import load_file

    rng = np.random.default_rng(0)
    for kind, options in KINDS.items():
        model = build(TINY | options)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            tensors = load_file(f"{folder}/model.safetensors")
            config = pathlib.Path(folder, "config.json").read_text()
        arrays = {"config": np.array(json.dumps(json.loads(config)))}
        for name, value in tensors.items():
            arrays[f"tensor/{name}"] = value.astype(np.float16)
        for px in SIZES:
            image = rng.standard_normal((2, px, px, 3)).astype(np.float16)
            with torch.no_grad():
                states = model(
                    torch.from_numpy(image.astype(np.float32).transpose(0, 3, 1, 2)),
                    output_hidden_states=True,
                ).hidden_states
            arrays[f"image/{px}"] = image
            arrays[f"taps/{px}"] = np.stack([s.numpy() for s in states[1:]])
        grid = tensors["embeddings.position_embeddings"][0, 1:].reshape(5, 5, -1)
        grid = torch.from_numpy(grid.transpose(2, 0, 1)[None])
        for rule, option in {
            "size": {"size": (3, 3)},
            "antialias": {"size": (3, 3), "antialias": True},
            "offset": {"scale_factor": (3.1 / 5, 3.1 / 5)},
        }.items():
            new = torch.nn.functional.interpolate(grid, mode="bicubic", **option)
            arrays[f"positions/{rule}"] = new[0].numpy().transpose(1, 2, 0)
        path = HERE / f"dinov2_{kind}.npz"
        np.savez_compressed(path, **arrays)
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
