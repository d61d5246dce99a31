"""Real processes killed at random moments: nothing lost, the same numbers after."""

import json
import os
import pathlib
import random
import signal
import subprocess
import time

import numpy as np
import pytest

from tests import states
from tests.several import command, write_config
from ubrain_jax import whole

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
def test_killed_at_random_and_restarted_equals_unbroken(tmp_path, tiny_dict):
    """SIGKILL three times at random steps; weights and optimiser equal, bit for bit."""
    settings = tiny_dict(
        train={"steps": 40, "checkpoint_every_steps": 3, "log_every_steps": 1},
        mesh={"data": 1, "voxel": 1},
    )
    config = tmp_path / "tiny.py"
    write_config(config, settings)
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(
        command(config, whole), check=True, env=env, capture_output=True, timeout=300
    )
    rng = random.Random(time.time_ns())
    kills = []
    for _ in range(3):
        process = subprocess.Popen(
            command(config, broken),
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        target = rng.randrange(max([1, *kills]), 36)
        log = broken / "metrics.jsonl"
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            done = log.read_text().count("\n") if log.exists() else 0
            if done >= target:
                break
            time.sleep(0.002)
        assert process.poll() is None, "ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills.append(target)
    result = subprocess.run(
        command(config, broken), check=True, env=env, capture_output=True, timeout=300
    )
    assert b"resuming at step" in result.stdout
    print(f"killed at steps {kills}; {result.stdout.splitlines()[1].decode()}")
    a, b = (states.leaves_of(w / "checkpoints") for w in (whole, broken))
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    logs = [
        [json.loads(x) for x in (w / "metrics.jsonl").read_text().splitlines()]
        for w in (whole, broken)
    ]
    assert [x["loss"] for x in logs[0]] == [x["loss"] for x in logs[1]]
    scores = [json.loads((w / "metrics.json").read_text()) for w in (whole, broken)]
    assert scores[0]["subjects"] == scores[1]["subjects"]


@pytest.mark.slow
def test_second_run_in_a_workdir_is_refused_and_evaluation_stands_alone(
    tmp_path, tiny_dict
):
    config, workdir = tmp_path / "tiny.py", tmp_path / "run"
    write_config(config, tiny_dict(mesh={"data": 1, "voxel": 1}))
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}

    def run(*more):
        return subprocess.run(
            [*command(config, workdir), *more],
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )

    workdir.mkdir()
    with whole.locked(workdir):
        second = run()
    assert second.returncode == 73
    assert "another process works in it" in second.stderr
    nothing = run("--mode=evaluate")
    assert nothing.returncode == 66
    assert "no checkpoint" in nothing.stderr
    assert run().returncode == 0
    first = json.loads((workdir / "metrics.json").read_text())
    (workdir / "metrics.json").unlink()
    with (workdir / "metrics.jsonl").open("a") as log:
        log.write('{"step": 9, "lo')  # cut by a kill
    again = run("--mode=evaluate")
    assert again.returncode == 0, again.stderr
    assert (
        json.loads((workdir / "metrics.json").read_text())["subjects"]
        == (first["subjects"])
    )
