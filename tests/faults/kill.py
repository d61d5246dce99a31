"""SIGKILL at random moments of runs that save often.

    python -m tests.faults.kill --kills=80 --real=20

Each restart must go on from a whole step; what is lost is the steps since the newest
save that was whole, so never a save that had ended; and the end must be that of an
unbroken run, bit for bit. --kills are of a process that only saves
(`tests.faults.saver`), --real of `python -m ubrain_jax.main` on a tiny network.
"""

import argparse
import contextlib
import io
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from tests import states
from tests.faults import saver, tiny_run
from ubrain_jax import checkpoint

ENV = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
EVERY, KILOBYTES = 5, 2048


def whole_steps(folder: pathlib.Path) -> list[int]:
    """Listed steps; raises if one of them is not as it was sealed."""
    steps = checkpoint.steps_in(folder)
    for step in steps:
        faults = checkpoint.faults_of(folder, step)
        assert not faults, f"step {step}: {faults}"
    return steps


def lines_until(process: subprocess.Popen, seconds: float) -> list[str]:
    """Kills a process so long after its first step; what it had printed."""
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step"):
            break
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.read().splitlines()
    process.wait()
    return [line.strip() for line in lines]


def of_saver(workdir: pathlib.Path, kills: int, rng: random.Random) -> dict[str, int]:
    """Kills the saver so many times, and lets it end."""
    folder = workdir / "checkpoints"
    numbers = (10**6, EVERY, KILOBYTES)
    told = {"kills": 0, "in a save": 0, "steps": 0, "most steps lost": 0}
    for _ in range(kills):
        command = [sys.executable, "-m", "tests.faults.saver", str(workdir)]
        command += map(str, numbers)
        process = subprocess.Popen(
            command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        lines = lines_until(process, rng.uniform(0.0, 0.8))
        done = [int(x.split()[1]) for x in lines if x.startswith("step ")]
        saves = [int(x.split()[1]) for x in lines if x.startswith("save ")]
        begun = int(lines[0].split()[1])
        steps = whole_steps(folder) if folder.exists() else []
        newest = steps[-1] if steps else 0
        # A save waits for the one before: all but the last of them had ended.
        assert newest >= max([begun, *saves[:-1]]), (newest, begun, saves)
        told["kills"] += 1
        told["in a save"] += bool(saves) and newest < saves[-1]
        told["most steps lost"] = max(told["most steps lost"], done[-1] - newest)
        told["steps"] = newest
    last = told["steps"] + 3
    state = saver.initial(KILOBYTES)
    for _ in range(last):
        state = saver.jax.jit(saver.after)(state)
    with contextlib.redirect_stdout(io.StringIO()):
        saver.run(str(workdir), last, EVERY, KILOBYTES)
    found = states.leaves_of(folder)
    np.testing.assert_array_equal(found["['weights']"], state["weights"])
    return told


def of_main(workdir: pathlib.Path, kills: int, rng: random.Random) -> dict[str, int]:
    """Kills the real command so many times, lets it end, compares with an unbroken."""
    every = 3
    config = tiny_run.write(workdir, steps=20 * kills + 20, save_every=every)
    broken, unbroken = workdir / "broken", workdir / "unbroken"
    command = [sys.executable, "-m", "ubrain_jax.main", f"--config={config}"]
    log, folder = broken / "metrics.jsonl", broken / "checkpoints"
    told = {"kills": 0, "most steps lost": 0}

    def logged() -> int:
        return log.read_text().count("\n") if log.exists() else 0

    for _ in range(kills):
        target = logged() + rng.randrange(2, 18)
        process = subprocess.Popen(
            [*command, f"--workdir={broken}"],
            env=ENV,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and logged() < target:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        assert process.poll() is None, "ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        steps = whole_steps(folder)
        newest = steps[-1] if steps else 0
        told["kills"] += 1
        told["most steps lost"] = max(told["most steps lost"], logged() - newest)
    for place in (broken, unbroken):
        subprocess.run(
            [*command, f"--workdir={place}"],
            env=ENV,
            check=True,
            capture_output=True,
            timeout=900,
        )
    a, b = (states.leaves_of(place / "checkpoints") for place in (broken, unbroken))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    return told


def main(argv: list[str] | None = None) -> None:
    """Kills, and prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=80)
    parser.add_argument("--real", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        for what, kill, count in (
            (f"saver, a save every {EVERY} steps", of_saver, given.kills),
            ("ubrain_jax.main, a save every 3 steps", of_main, given.real),
        ):
            if count:
                place = pathlib.Path(name) / kill.__name__
                place.mkdir()
                told = kill(place, count, rng)
                text = ", ".join(f"{k} {v}" for k, v in told.items())
                print(f"kill, {what}: {text}; steps not whole 0, end as unbroken")


if __name__ == "__main__":
    main()
