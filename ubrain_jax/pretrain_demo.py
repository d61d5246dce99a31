"""Trains the small bundled backbone on simulated pictures: what is where.

    python -m ubrain_jax.pretrain_demo --out=DIR [--seed=0 --pictures=16000 --steps=N]

A network of DINOv2's architecture (6 blocks, patch 14, 112-pixel pictures) learns to
tell, for each quarter of a patch, which object covers how much of it, its oriented
energies and its mean colour; and the scene of the picture. It never sees a response.
Early blocks are asked for energy and colour, late blocks for objects, so that taps
along the network hold both. The read-outs are thrown away; written are

    DIR/config.json         readable by transformers.Dinov2Config
    DIR/model.safetensors   float16, names as on the Hugging Face hub
    DIR/README.md           card: data, accuracy, command, seed, sha256

The weights are saved every few minutes, so that an interrupted run leaves the last
state. Half an hour to an hour on one core.
"""

import functools
import hashlib
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax import nnx
from safetensors import numpy as safetensors_numpy

from ubrain_jax import errors
from ubrain_jax.backbone import dinov2, images
from ubrain_jax.datasets import drawing, planted

GEOMETRY = dinov2.Geometry(160, 6, 5, "gelu", 640, image_px=112)
PX = GEOMETRY.image_px
SIDE = 2 * PX // GEOMETRY.patch  # labels are for quarters of patches
LOW_TAPS, OBJECT_TAPS = (2, 6), (4, 6)
TAPS = (2, 4, 6)
NUM_ENERGY = len(planted.FREQUENCIES) * planted.NUM_ORIENTATIONS
NUM_CLASSES = len(drawing.CATEGORIES) + 1  # the last is: no object
_PRETRAIN_PICTURES = 100  # random stream, apart from those of simulated.write


def pictures_with_labels(seed: int, first: int, count: int) -> dict[str, np.ndarray]:
    """Draws pictures and says what is where in them.

    Args:
        seed: Seed of the run.
        first: Number of the first picture of the endless sequence.
        count: M.

    Returns:
        pictures (M, H, W, 3) uint8; energy (M, SIDE, SIDE, 18), rgb (M, SIDE, SIDE, 3)
        and covered (M, SIDE, SIDE, 7), fractions that sum to 1, float16; scene (M,).
    """
    out = {
        "pictures": np.empty((count, PX, PX, 3), np.uint8),
        "energy": np.empty((count, SIDE, SIDE, NUM_ENERGY), np.float16),
        "rgb": np.empty((count, SIDE, SIDE, 3), np.float16),
        "covered": np.empty((count, SIDE, SIDE, NUM_CLASSES), np.float16),
        "scene": np.empty(count, np.int32),
    }
    block = PX // SIDE
    for start in range(0, count, 50):
        rows = np.arange(start, min(start + 50, count))
        drawn = [
            drawing.draw(
                np.random.default_rng([seed, _PRETRAIN_PICTURES, first + int(i)]), PX
            )
            for i in rows
        ]
        pictures = np.stack([picture for picture, _ in drawn])
        category = np.stack([scene.category for _, scene in drawn])
        scene = np.array([scene.scene for _, scene in drawn])
        maps = planted.feature_maps(pictures, category, scene)
        energy = planted.pool(maps[:, :NUM_ENERGY], SIDE)
        out["energy"][rows] = np.moveaxis(energy, 1, -1)
        tiles = (len(rows), SIDE, block, SIDE, block)
        out["rgb"][rows] = pictures.reshape(*tiles, 3).mean(axis=(2, 4)) / 255
        shown = np.where(category < 0, NUM_CLASSES - 1, category)
        onehot = shown[..., None] == np.arange(NUM_CLASSES)
        out["covered"][rows] = onehot.reshape(*tiles, -1).mean(axis=(2, 4))
        out["pictures"][rows] = pictures
        out["scene"][rows] = scene
    return out


def _init_heads(seed: int) -> dict[str, Any]:
    """Linear read-outs of the taps, to be thrown away."""
    rng = np.random.default_rng([seed, 1])

    def linear(size: int) -> dict[str, jax.Array]:
        kernel = rng.normal(0, 0.02, (GEOMETRY.width, size)).astype(np.float32)
        return {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(size)}

    heads = {f"energy{t}": linear(4 * NUM_ENERGY) for t in LOW_TAPS}
    heads |= {f"rgb{t}": linear(4 * 3) for t in LOW_TAPS}
    heads |= {f"covered{t}": linear(4 * NUM_CLASSES) for t in OBJECT_TAPS}
    return heads | {"scene": linear(len(drawing.SCENES))}


def _read(head: dict[str, jax.Array], tokens: jax.Array) -> jax.Array:
    """Normalises tokens (..., width) and reads them out linearly."""
    centred = tokens - tokens.mean(-1, keepdims=True)
    sd = jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-6)
    return centred / sd @ head["kernel"] + head["bias"]


def _quarters(read: jax.Array) -> jax.Array:
    """(B, P, 4 K) of patches -> (B, SIDE, SIDE, K) of their quarters."""
    side = SIDE // 2
    cells = read.reshape(len(read), side, side, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return cells.reshape(len(read), SIDE, SIDE, -1)


def read_out(
    backbone: dinov2.Dinov2, heads: dict[str, Any], pictures: jax.Array
) -> dict[str, jax.Array]:
    """What the network says about pictures (B, H, W, 3) uint8.

    Returns:
        For each head: (B, SIDE, SIDE, K), for "scene" (B, 5) logits.
    """
    taps = backbone(images.normalise(pictures), TAPS, remat="none")
    tokens: dict[int, jax.Array] = dict(zip(TAPS, backbone.patches(taps), strict=True))
    said = {}
    for name, head in heads.items():
        if name == "scene":
            said[name] = _read(head, tokens[TAPS[-1]]).mean(1)
        else:
            said[name] = _quarters(_read(head, tokens[int(name[-1])]))
    return said


def _loss(
    said: dict[str, jax.Array], batch: dict[str, jax.Array], scale: dict[str, Any]
) -> jax.Array:
    """Sum of the tasks; energies and colours in units of their variance."""
    total = jnp.zeros(())
    for tap, weight in zip(LOW_TAPS, (0.5, 0.25), strict=True):
        for name in ("energy", "rgb"):
            off = said[f"{name}{tap}"] - (batch[name] - scale[name][0]) / scale[name][1]
            total += weight * jnp.mean(off**2)
    for tap, weight in zip(OBJECT_TAPS, (1.0, 2.0), strict=True):
        log_p = jax.nn.log_softmax(said[f"covered{tap}"])
        total -= weight * jnp.mean(jnp.sum(batch["covered"] * log_p, -1))
    log_p = jax.nn.log_softmax(said["scene"])
    chosen = jnp.take_along_axis(log_p, batch["scene"][:, None], axis=1)
    return total - 0.2 * chosen.mean()


def _augment(batch: dict[str, jax.Array], choice: jax.Array) -> dict[str, jax.Array]:
    """One of the 12 changes under which labels stay exact: mirror x order of RGB.

    Luminance here is the plain mean of R, G and B, so energies do not change with
    their order; in a mirror image an orientation becomes its negative.
    """
    orders = jnp.array(
        [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    )
    order, mirror = orders[choice // 2], choice % 2 == 1
    n = planted.NUM_ORIENTATIONS
    negative = np.concatenate(
        [f * n + (-np.arange(n)) % n for f in range(len(planted.FREQUENCIES))]
    )
    flipped = {
        k: v if k == "scene" else v[:, :, ::-1]
        for k, v in (batch | {"energy": batch["energy"][..., negative]}).items()
    }
    out = jax.tree.map(lambda a, b: jnp.where(mirror, b, a), batch, flipped)
    for name in ("pictures", "rgb"):
        out[name] = out[name][..., order]
    return out


def hub_tensors(backbone: dinov2.Dinov2) -> dict[str, np.ndarray]:
    """Weights under the names of the Hugging Face hub, float16.

    The final LayerNorm and the mask token exist in that format; the network was
    trained without them: identity and zeros.
    """
    width, patch = GEOMETRY.width, GEOMETRY.patch
    kernel = np.asarray(backbone.patch_kernel[...]).reshape(patch, patch, 3, width)
    out = {
        "embeddings.cls_token": np.asarray(backbone.cls[...])[None, None],
        "embeddings.mask_token": np.zeros((1, width)),
        "embeddings.position_embeddings": np.asarray(backbone.position[...])[None],
        "embeddings.patch_embeddings.projection.weight": kernel.transpose(3, 2, 0, 1),
        "embeddings.patch_embeddings.projection.bias": backbone.patch_bias[...],
        "layernorm.weight": np.ones(width),
        "layernorm.bias": np.zeros(width),
    }
    names = {"out": "attention.output.dense", "up": "mlp.fc1", "down": "mlp.fc2"}
    blocks = {
        n: np.asarray(getattr(backbone.blocks, n)[...]) for n in backbone.block_names
    }
    for i in range(backbone.num_blocks):
        at = f"encoder.layer.{i}."
        for k in (1, 2):
            out[f"{at}norm{k}.weight"] = blocks[f"norm{k}_scale"][i]
            out[f"{at}norm{k}.bias"] = blocks[f"norm{k}_bias"][i]
            out[f"{at}layer_scale{k}.lambda1"] = blocks[f"scale{k}"][i]
        for part, name in enumerate(("query", "key", "value")):
            columns = np.s_[part * width : (part + 1) * width]
            kernel = blocks["qkv_kernel"][i][:, columns]
            out[f"{at}attention.attention.{name}.weight"] = kernel.T
            out[f"{at}attention.attention.{name}.bias"] = blocks["qkv_bias"][i][columns]
        for ours, theirs in names.items():
            out[f"{at}{theirs}.weight"] = blocks[f"{ours}_kernel"][i].T
            out[f"{at}{theirs}.bias"] = blocks[f"{ours}_bias"][i]
    return {k: np.ascontiguousarray(v, np.float16) for k, v in out.items()}


def hub_config() -> dict[str, Any]:
    """config.json of the network."""
    return {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": GEOMETRY.width,
        "num_hidden_layers": GEOMETRY.depth,
        "num_attention_heads": GEOMETRY.heads,
        "mlp_ratio": GEOMETRY.mlp_width // GEOMETRY.width,
        "hidden_act": "gelu",
        "use_swiglu_ffn": False,
        "qkv_bias": True,
        "patch_size": GEOMETRY.patch,
        "image_size": GEOMETRY.image_px,
        "num_channels": 3,
        "layer_norm_eps": GEOMETRY.eps,
        "layerscale_value": 1.0,
        "initializer_range": 0.02,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "torch_dtype": "float16",
    }


CARD = """\
---
license: apache-2.0
library_name: ubrain_jax
---
# A small DINOv2-shaped backbone for simulated pictures

For the demo and the tests of ubrain_jax; of no use for photographs.

* Architecture: DINOv2, {depth} blocks, width {width}, {heads} heads, patch 14, images
  of 112 pixels; {million:.2f} million parameters in float16. The final LayerNorm is the
  identity and the mask token zero: neither was trained.
* Trained on {pictures} pictures of `ubrain_jax.datasets.drawing.draw` (mirrored, RGB
  exchanged), {steps} steps of {batch}, AdamW, supervised: object coverage, oriented
  energy and mean colour of each quarter of a patch, scene of the picture. Never on
  responses, real or simulated; no photograph, no other network. The pictures of the
  simulated crowd come from another random stream.
* Input: pixels / 255, normalised with the ImageNet mean and standard deviation.
* Command: `{command}` (seed {seed}; {minutes:.0f} minutes on one core).
* Licence: Apache-2.0, like the code.

Read linearly from the patch tokens, on {held_out} pictures not trained on:

| what | score |
|---|---|
{scores}

sha256 of model.safetensors: `{sha256}`
"""


def save(out: pathlib.Path, backbone: dinov2.Dinov2, card: dict[str, Any]) -> None:
    """Writes config.json, model.safetensors and README.md, each whole or not at all."""
    tensors = hub_tensors(backbone)
    raw = safetensors_numpy.save(tensors, {"format": "np"})
    card = card | {
        "sha256": hashlib.sha256(raw).hexdigest(),
        "million": sum(v.size for v in tensors.values()) / 1e6,
        "depth": GEOMETRY.depth,
        "width": GEOMETRY.width,
        "heads": GEOMETRY.heads,
    }
    files = {
        "model.safetensors": raw,
        "config.json": (json.dumps(hub_config(), indent=2) + "\n").encode(),
        "README.md": CARD.format(**card).encode(),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / f".{name}").write_bytes(content)
        (out / f".{name}").replace(out / name)


def evaluate(
    graph: Any, state: Any, heads: Any, data: dict[str, np.ndarray], scale: Any
) -> dict[str, float]:
    """Scores of the read-outs on held-out pictures (M a multiple of 50).

    Objects: share of quarter patches that show mostly one object, for which that
    object is named. Scene: share of pictures. Energy and colour: Pearson correlation
    over quarter patches, mean over channels.
    """

    @jax.jit
    def run(state: Any, heads: Any, pictures: jax.Array) -> dict[str, jax.Array]:
        return read_out(nnx.merge(graph, state), heads, pictures)

    parts = [
        run(state, heads, data["pictures"][i : i + 50])
        for i in range(0, len(data["pictures"]), 50)
    ]
    said = {k: np.concatenate([np.asarray(p[k]) for p in parts]) for k in parts[0]}
    covered = data["covered"].astype(np.float32)
    clear = covered[..., :-1].max(-1) > 0.5
    right = covered.argmax(-1)[clear]
    scores = {
        f"object, block {t}": float(
            (said[f"covered{t}"].argmax(-1)[clear] == right).mean()
        )
        for t in OBJECT_TAPS
    }
    scores["scene, block 6"] = float((said["scene"].argmax(-1) == data["scene"]).mean())
    for name, label in (("energy", "oriented energy"), ("rgb", "mean colour")):
        want = data[name].astype(np.float32)
        for tap in LOW_TAPS:
            a, b = (v.reshape(-1, v.shape[-1]) for v in (said[f"{name}{tap}"], want))
            r = [np.corrcoef(a[:, k], b[:, k])[0, 1] for k in range(a.shape[1])]
            scores[f"{label}, block {tap} (correlation)"] = float(np.mean(r))
    return scores


def train(
    out: pathlib.Path,
    *,
    seed: int,
    num_pictures: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    num_held_out: int = 500,
    save_seconds: float = 180.0,
) -> dict[str, float]:
    """Trains and saves the backbone; returns its scores on held-out pictures."""
    start = time.time()
    held_out = pictures_with_labels(seed, num_pictures, num_held_out)
    data = pictures_with_labels(seed, 0, num_pictures)
    print(
        f"drew {num_pictures + num_held_out} pictures in {time.time() - start:.0f} s",
        flush=True,
    )
    scale = {
        k: (
            data[k].astype(np.float32).mean((0, 1, 2)),
            data[k].astype(np.float32).std((0, 1, 2)),
        )
        for k in ("energy", "rgb")
    }
    network = dinov2.random(GEOMETRY, GEOMETRY.depth, PX, seed)
    graph, state = nnx.split(network)
    heads = _init_heads(seed)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, min(300, steps // 5), steps
    )

    # Only products decay; norms, biases, scales and positions do not.
    def decays(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "kernel" in jax.tree_util.keystr(path), params
        )

    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=0.05, mask=decays),
    )
    params = (state, heads)
    opt_state = optimiser.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt_state: Any, batch: Any, choice: jax.Array) -> Any:
        batch = _augment(batch, choice)

        def loss(params: Any) -> jax.Array:
            said = read_out(nnx.merge(graph, params[0]), params[1], batch["pictures"])
            return _loss(said, batch, scale)

        value, grad = jax.value_and_grad(loss)(params)
        updates, opt_state = optimiser.update(grad, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    command = (
        f"python -m ubrain_jax.pretrain_demo --out=DIR --seed={seed} "
        f"--pictures={num_pictures} --steps={steps} --batch={batch_size} "
        f"--learning_rate={learning_rate}"
    )

    def finish(done: int) -> dict[str, float]:
        scores = evaluate(graph, params[0], params[1], held_out, scale)
        rows = "\n".join(f"| {k} | {v:.3f} |" for k, v in scores.items())
        card = {
            "pictures": num_pictures,
            "steps": done if done == steps else f"{done} of {steps}",
            "batch": batch_size,
            "command": command,
            "seed": seed,
            "minutes": (time.time() - start) / 60,
            "held_out": len(held_out["scene"]),
            "scores": rows,
        }
        save(out, nnx.merge(graph, params[0]), card)
        return scores

    rng = np.random.default_rng([seed, 2])
    saved, losses = time.time(), []
    order = np.empty(0, int)
    for i in range(steps):
        if len(order) < batch_size:
            order = np.concatenate([order, rng.permutation(num_pictures)])
        rows, order = np.sort(order[:batch_size]), order[batch_size:]
        batch = {k: v[rows] for k, v in data.items()}
        params, opt_state, value = step(params, opt_state, batch, rng.integers(12))
        losses.append(value)
        if (i + 1) % 100 == 0:
            print(
                f"step {i + 1}/{steps}  loss {np.mean(losses[-100:]):.4f}  "
                f"{time.time() - start:.0f} s",
                flush=True,
            )
        if time.time() - saved > save_seconds:
            scores = finish(i + 1)
            print({k: round(v, 3) for k, v in scores.items()}, flush=True)
            saved = time.time()
    return finish(steps)


def main(argv: list[str]) -> None:
    """Reads the flags, trains, prints the scores."""
    del argv
    values = flags.FLAGS
    if not values.out:
        raise errors.ConfigError(
            "--out", "", "no folder", "a folder to write into", "Pass --out=DIR."
        )
    wrong = [
        f"--{name}={getattr(values, name)}"
        for name in ("pictures", "steps", "batch", "learning_rate")
        if getattr(values, name) <= 0
    ]
    if wrong or values.batch > values.pictures:
        raise errors.ConfigError(
            "command line",
            "",
            " ".join(wrong) or f"--batch={values.batch} of {values.pictures} pictures",
            "numbers above 0, and a batch no larger than --pictures",
            "Change the flags.",
        )
    out = pathlib.Path(values.out)
    try:  # before the half hour, not after
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.OutputError(
            out, "", str(error), "a folder that can be made", "Choose another."
        ) from error
    scores = train(
        out,
        seed=values.seed,
        num_pictures=values.pictures,
        steps=values.steps,
        batch_size=values.batch,
        learning_rate=values.learning_rate,
    )
    for name, value in scores.items():
        print(f"{name}: {value:.3f}")
    print(out)


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder for the weights.")
    flags.DEFINE_integer("seed", 0, "Seed of pictures and training.")
    flags.DEFINE_integer("pictures", 16000, "Pictures to draw.")
    flags.DEFINE_integer("steps", 3600, "Steps of training.")
    flags.DEFINE_integer("batch", 32, "Pictures a step.")
    flags.DEFINE_float("learning_rate", 1e-3, "Peak learning rate.")
    errors.run_command(main)
