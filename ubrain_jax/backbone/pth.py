"""Turns a .pth file of DINOv2 into safetensors, as a script in a child process.

A .pth is a pickle: only tensors are read from it (`weights_only=True`), and never in
the process that trains. Nothing of the package is imported here, so that the child
starts fast and holds nothing. `weights.load` is the caller.
"""

import json
import os
import pathlib
import pickle
import re
import resource
import sys
import zipfile

REFUSED = 65
OLDEST_TORCH = (2, 10)


class Refused(ValueError):
    """The file cannot be used; the text says why, then what to do."""


def convert(source: pathlib.Path, target: pathlib.Path) -> None:
    """Writes the tensors of `source` (.pth) to `target` (.safetensors), names kept.

    The file holds a dict of tensors, or one under "teacher", as training writes it.

    Raises:
        Refused: If torch is absent or too old, or the file holds anything else.
    """
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        raise Refused(
            f"reading a .pth needs torch, which is not installed ({error}). Use the "
            "safetensors form of the weights (facebook/dinov2-... on the Hugging Face "
            "hub) or pip install 'ubrain_jax[parity]'."
        ) from None
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        raise Refused(
            f"torch {torch.__version__} cannot read a .pth safely; 2.10 or later is "
            "needed. Upgrade torch or use the safetensors form of the weights."
        )
    try:
        state = torch.load(
            source,
            map_location="cpu",
            weights_only=True,
            mmap=zipfile.is_zipfile(source),
        )
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        what = f"wants {wanted[1]}" if wanted else "is no plain dict of tensors"
        raise Refused(
            f"the pickle {what}; only tensors are read. Do not trust the file, or "
            "save its state dict as safetensors where it was made."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise Refused(
            f"damaged or not a torch file ({str(error).splitlines()[0][:120]}). "
            "Copy or download it again."
        ) from None
    if isinstance(state, dict) and isinstance(state.get("teacher"), dict):
        state = state["teacher"]
    tensors = {}
    for name, value in state.items() if isinstance(state, dict) else ():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise Refused(
                f"entry {str(name)[:80]!r} is {type(value).__name__}, not a tensor. "
                "Save the state dict of the backbone alone."
            )
        tensors[name] = value.clone().contiguous()
    if not tensors:
        raise Refused(
            f"holds {type(state).__name__} without tensors. Save the state dict of "
            "the backbone."
        )
    save_file(tensors, target)


def main(source: str, target: str) -> int:
    """Converts under limits; a refusal goes to stdout as one JSON line."""
    size = os.path.getsize(source)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (900, 900))
    largest = 2 * size + 2**20
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        convert(pathlib.Path(source), pathlib.Path(target))
    except Refused as error:
        print(json.dumps({"refused": str(error)}))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
