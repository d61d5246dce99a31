"""VGG-19 up to its fourth block, in the layers that Gaziv et al. read.

Weights are torchvision's `vgg19`, as the .pth it distributes (read by torch in a
child process, tensors only) or as .safetensors with the same names. Names, shapes
and values are checked before anything is computed.

References:
    Simonyan & Zisserman, 2015, Very deep convolutional networks for large-scale image
    recognition, ICLR.
"""

import contextlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ubrain_jax import errors, sealed
from ubrain_jax.backbone import weights

# Output channels of the convolutions of each block; a pooling ends a block.
BLOCKS = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
# Blocks whose last convolution, after its ReLU, is given: conv1_2 to conv4_4.
LAYERS = ("conv1_2", "conv2_2", "conv3_4", "conv4_4")


class Vgg(NamedTuple):
    """A network and where its weights are from.

    Attributes:
        params: (kernel (3, 3, in, out), bias (out,)) of each convolution in order.
        sha256: Digest of the weight file by its name.
    """

    params: tuple[tuple[np.ndarray, np.ndarray], ...]
    sha256: dict[str, str]


def numbers() -> dict[int, tuple[int, int]]:
    """Number in torchvision's `features` -> channels in and out, as far as conv4_4.

    Example:
        >>> list(numbers())
        [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25]
    """
    found, number, before = {}, 0, 3
    for block in BLOCKS[: len(LAYERS)]:
        for channels in block:
            found[number] = before, channels
            number, before = number + 2, channels  # a ReLU follows
        number += 1  # and a pooling
    return found


def of_tensors(tensors: Mapping[str, np.ndarray], source: str) -> Vgg:
    """A network from tensors by torchvision's names.

    Args:
        tensors: features.N.weight (out, in, 3, 3) and features.N.bias (out,); later
            convolutions and classifier.* are left out.
        source: For messages.

    Raises:
        errors.InputError: Listing what is missing, unknown, of another shape or not
            finite.
    """
    needed = {}
    for number, (before, after) in numbers().items():
        needed[f"features.{number}.weight"] = (after, before, 3, 3)
        needed[f"features.{number}.bias"] = (after,)
    later = (*(f"features.{n}." for n in (28, 30, 32, 34)), "classifier.")
    faults = [f"{name} is missing" for name in needed if name not in tensors]
    faults += [
        f"{name} is unknown"
        for name in tensors
        if name not in needed and not name.startswith(later)
    ]
    for name in needed.keys() & tensors.keys():
        value = tensors[name]
        if value.shape != needed[name]:
            faults.append(f"{name} is {value.shape}, not {needed[name]}")
        elif value.dtype.kind != "f" or not np.isfinite(value).all():
            faults.append(f"{name} is {value.dtype} with values that are no numbers")
    if faults:
        raise errors.InputError(
            source,
            "",
            "; ".join(sorted(faults)[:20]),
            "the state dict of torchvision's vgg19",
            "Take vgg19-dcbd9e9d.pth of torchvision; vgg19_bn is another network.",
        )
    params = []
    for number in numbers():
        kernel = tensors[f"features.{number}.weight"].transpose(2, 3, 1, 0)
        bias = tensors[f"features.{number}.bias"]
        params.append((kernel.astype(np.float32), bias.astype(np.float32)))
    return Vgg(tuple(params), {})


def load(path: str | os.PathLike) -> Vgg:
    """Reads a weight file.

    Args:
        path: .pth or .safetensors.

    Raises:
        errors.MissingInputError: If it is absent.
        errors.InputError: If it is damaged or of another network.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise errors.MissingInputError(
            path,
            "",
            "no such file",
            "weights of VGG-19",
            "See third_party/README.md on how to obtain them.",
        )
    with contextlib.ExitStack() as stack:
        tensors = weights.read_tensors(file, stack)
        found = of_tensors({k: v.read() for k, v in tensors.items()}, str(file))
    return found._replace(sha256={file.name: sealed.sha256_of(file)})


def layers(params: Any, images: jax.Array) -> list[jax.Array]:
    """Outputs of `LAYERS`, after their ReLU.

    Args:
        params: Of a `Vgg`.
        images: (B, H, W, 3) float32, normalised; H and W multiples of 8.

    Returns:
        (B, H, W, 64), (B, H/2, W/2, 128), (B, H/4, W/4, 256), (B, H/8, W/8, 512).
    """
    x, found, used = images, [], 0
    for k, block in enumerate(BLOCKS[: len(LAYERS)]):
        if k:
            x = jax.lax.reduce_window(
                x, -np.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
            )
        for _ in block:
            kernel, bias = params[used]
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + bias)
            used += 1
        found.append(x)
    return found
