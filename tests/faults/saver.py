"""A run that only saves: what the faults are done to when a whole run is too slow.

    python -m tests.faults.saver FOLDER STEPS EVERY KILOBYTES

Its state after a step depends on the one before, so a step lost or done twice shows.
Prints each step when it is done, and where it began.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from ubrain_jax import checkpoint, errors


def after(state):
    """The state one step later."""
    # It spreads, so that the numbers do not grow alike and compress to nothing.
    grown = jnp.mod(1.9 * state["weights"] + 0.37, 1)
    return {"weights": grown, "step": state["step"] + 1}


def initial(kilobytes: int):
    """The state before the first step."""
    weights = np.linspace(0, 1, kilobytes * 256, dtype=np.float32)
    return {"weights": jnp.asarray(weights), "step": jnp.zeros((), jnp.int32)}


def run(folder: str, steps: int, every: int, kilobytes: int) -> None:
    """Goes on from the newest whole step to the last."""
    with checkpoint.own_workdir(folder):
        manager = checkpoint.open_manager(folder, 3)
        state = initial(kilobytes)
        first = manager.latest_step() or 0
        if first:
            state = checkpoint.restore(manager, first, state)
            assert int(state["step"]) == first
        print(f"begins {first}", flush=True)
        step = jax.jit(after)
        for done in range(first + 1, steps + 1):
            state = jax.block_until_ready(step(state))
            manager.check()
            print(f"step {done}", flush=True)
            if done % every == 0 or done == steps:
                manager.wait_until_finished()
                print(f"save {done}", flush=True)
                manager.save(done, state, {"step": done})
        manager.wait_until_finished()
        manager.close()


def main(argv: list[str]) -> int:
    """Runs with the numbers of the command line; returns the exit code."""
    folder, *numbers = argv
    try:
        run(folder, *map(int, numbers))
    except errors.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
