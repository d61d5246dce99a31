"""A torch module of the released architecture and its conversion predict the same.

The module is built at the released sizes, saved by torch.save in each form, read by
the command's own steps, and compared over 1,000 voxels. Printed with pytest -s.
"""

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests import released_files
from ubrain_jax import convert
from ubrain_jax.backbone import images, weights
from ubrain_jax.model import attached, released, released_names, released_numpy

# width, blocks, taps
SMALL = (384, 12, (1, 3, 6, 9, 12))
LARGE = (1024, 24, (1, 6, 12, 18, 24))
TOLERANCE = 1e-4  # of the standard deviation of the output

pytestmark = pytest.mark.parity


def build(size):
    """The torch encoder at the released sizes with random weights that all matter."""
    import torch

    from tests import torch_encoder

    width, depth, taps = size
    vit = released_files.backbone(width=width, depth=depth, registers=4, side=37)
    own = released_files.weights(
        width=width,
        depth=depth,
        taps=taps,
        embed=256,
        channels=128,
        rank=7,
        tokens=257,
        adapter=(1024 / width) ** 0.25,
    )
    table = released_files.table(voxels=1000, embed=256) * np.float32(0.3)
    with torch.device("meta"):
        model = torch_encoder.Encoder(
            torch_encoder.Vit(width, depth, 4, 37),
            voxels=1000,
            taps=taps,
            embed=256,
            channels=128,
            rank=7,
            alpha=0.01,
            tokens=257,
        )
    state = {"voxel_embed": table, **own}
    state |= {f"embed_model.{name}": array for name, array in vit.items()}
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    model.load_state_dict(tensors, assign=True)
    return model.eval(), vit


def pictures(count):
    rng = np.random.default_rng(4)
    coarse = np.repeat(
        np.repeat(rng.integers(0, 256, (count, 16, 16, 3)), 14, 1), 14, 2
    )
    fine = rng.integers(-30, 31, (count, 224, 224, 3))
    return np.clip(coarse + fine, 0, 255).astype(np.uint8)


def by_torch(model, shown, drop="registers", scale=1.0):
    """Predictions (B, N) of the torch module."""
    import torch

    x = np.asarray(images.normalise(shown)).transpose(0, 3, 1, 2)
    kept, model.drop = model.lora_scale, drop
    model.lora_scale = kept * scale
    with torch.no_grad():
        found = model(torch.from_numpy(x.copy()), model.voxel_embed)
    model.lora_scale = kept
    return found.numpy()


def compare(size, folder, drops, count, record_property):
    """Converts both forms; differences in standard deviations of torch's output."""
    import torch

    model, vit = build(size)
    shown, (width, *_) = pictures(count), size
    save_file(vit, folder / "vit.safetensors")
    torch.save(model, folder / "whole.pth")
    state = model.state_dict()
    shared = {n: t for n, t in state.items() if not n.startswith("embed_model.")}
    table = shared.pop("voxel_embed")
    told = {
        "select_layers": model.select_layers,
        "r": 7,
        "alpha": 0.01,
        "include_reg_tokens": False,
        "num_reg_tokens": 4,
    }
    torch.save({"config": told, "shared": shared}, folder / "base.pt")
    torch.save({"voxel_embed": table}, folder / "table.pt")
    expected = {drop: by_torch(model, shown, drop) for drop in drops}
    without = by_torch(model, shown, scale=0)
    del model, state, shared
    whole = released.open_encoder(folder / "whole.pth")
    base = released.open_encoder(folder / "base.pt")
    rows, _ = released.open_table(folder / "table.pt", base.settings)
    network, _ = weights.load(folder / "vit.safetensors", size[1], 224)
    geometry = network.geometry
    convert.check_backbone("vit", geometry, whole.settings)
    assert convert.compare_backbone(whole.backbone, network, "vit", "whole") == 0
    ours = released_names.trainable(whole.weights, whole.settings)
    assert attached.tree_sha256(ours) == attached.tree_sha256(
        released_names.trainable(base.weights, base.settings)
    )
    np.testing.assert_array_equal(rows, whole.table)
    for drop in drops:
        wanted = expected[drop]
        experiment = released.experiment(whole.settings, geometry, "vit", drop=drop)
        found = convert.predict(experiment, network, ours, shown, rows)
        slow = released_numpy.predict(
            whole.weights,
            whole.backbone,
            shown,
            rows,
            taps=whole.settings.taps,
            alpha=whole.settings.alpha,
            drop=drop,
        )
        scale = wanted.std()
        difference = float(np.abs(found - wanted).max() / scale)
        exact = [float(np.abs(x - slow).max() / scale) for x in (found, wanted)]
        record_property(f"{width} {drop}", difference)
        print(
            f"\nwidth {width}, drop {drop}: ours - torch {difference:.2e}, ours - "
            f"float64 {exact[0]:.2e}, torch - float64 {exact[1]:.2e}; output's std "
            f"{scale:.3g}"
        )
        assert difference < TOLERANCE
        assert max(exact) < TOLERANCE
        # The comparison sees the adapter and the choice of tokens.
        assert np.abs(wanted - without).max() > 100 * TOLERANCE * scale
        for other in set(drops) - {drop}:
            assert np.abs(wanted - expected[other]).max() > 100 * TOLERANCE * scale


def test_small_geometry_equals_torch(tmp_path, record_property):
    compare(SMALL, tmp_path, released.DROPS, 2, record_property)


@pytest.mark.slow
def test_large_geometry_equals_torch(tmp_path, record_property):
    compare(LARGE, tmp_path, released.DROPS, 1, record_property)
