"""Damage done to the files of a checkpoint: none may load without a word.

    python -m tests.faults.flip --flips=1000

Single bits are flipped, half of them in files chosen by size, half in files chosen
alike; then every file is cut, emptied, deleted, and one is added. Orbax writes two
files after the manifest: one that nobody reads, and in the other the time of the end.
A flip there must change nothing that is loaded.
"""

import argparse
import contextlib
import io
import pathlib
import random
import tempfile

import jax
import numpy as np

from tests.faults import saver
from ubrain_jax import checkpoint, errors

STEP = 5


def outcome(folder: pathlib.Path, state: dict) -> str:
    """What reading the newest step gives: refused, same, or silent and wrong."""
    try:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            params, _, _ = checkpoint.read_params(str(folder))
    except errors.InputError as error:
        return "refused" if str(folder) in str(error) else f"unclear: {error}"
    assert "damaged" not in said.getvalue()
    same = np.array_equal(params["weights"], state["weights"])
    return "same" if same else "silent and wrong"


def flip(path: pathlib.Path, bit: int) -> None:
    """Flips one bit of a file, in place."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


def flips(folder: pathlib.Path, state: dict, count: int, seed: int) -> dict[str, int]:
    """Outcomes of so many flips, each undone."""
    step = folder / "checkpoints" / str(STEP)
    files = sorted(p for p in step.rglob("*") if p.is_file() and p.stat().st_size)
    sizes = [p.stat().st_size for p in files]
    rng = random.Random(seed)
    told: dict[str, int] = {}
    for number in range(count):
        (path,) = rng.choices(files, sizes if number % 2 else None)
        bit = rng.randrange(path.stat().st_size * 8)
        flip(path, bit)
        found = outcome(folder, state)
        flip(path, bit)
        unsealed = path.parent == step and path.name in checkpoint.UNSEALED
        assert found == "refused" or (found == "same" and unsealed), (path, bit, found)
        key = "same numbers (a time or a text that nobody reads)"
        key = "refused" if found == "refused" else key
        told[key] = told.get(key, 0) + 1
    assert outcome(folder, state) == "same"
    return told


def breakages(folder: pathlib.Path, state: dict) -> int:
    """Cuts, empties and deletes each file that is read; adds one. How many it did."""
    step = folder / "checkpoints" / str(STEP)
    done = 0
    for path in sorted(p for p in step.rglob("*") if p.is_file()):
        if path.parent == step and path.name == "commit_success.txt":
            continue
        content = path.read_bytes()
        for broken in (content[: len(content) // 2], b"", None):
            if broken == content:
                continue
            path.unlink() if broken is None else path.write_bytes(broken)
            assert outcome(folder, state) == "refused", (path, broken and len(broken))
            path.write_bytes(content)
            done += 1
    (step / "state" / "more").write_bytes(b"x")
    assert outcome(folder, state) == "refused"
    (step / "state" / "more").unlink()
    assert outcome(folder, state) == "same"
    return done + 1


def main(argv: list[str] | None = None) -> None:
    """Damages, and prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        state = saver.initial(64)
        tree = {"params": jax.tree.map(lambda a: a + 1, state)}
        with contextlib.closing(checkpoint.open_manager(name, 3)) as manager:
            manager.save(STEP, tree, {})
            manager.wait_until_finished()
        told = flips(folder, tree["params"], given.flips, given.seed)
        text = ", ".join(f"{k} {v}" for k, v in told.items())
        print(f"flip: {given.flips} bits: {text}; silent and wrong 0")
        count = breakages(folder, tree["params"])
        print(f"flip: {count} files cut, emptied, deleted or added: refused {count}")


if __name__ == "__main__":
    main()
