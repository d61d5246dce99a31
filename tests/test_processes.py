"""Two real processes with four devices each: the numbers of one, and every end.

The folder of compiled programs is shared, so a run that comes later starts faster.
"""

import json
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import xarray

from tests.several import Started, command, environment, wait_for_lines, write_config
from ubrain_jax import checkpoint, errors, whole

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_dict):
    """Ten steps, each logged and saved, on eight stripes."""
    settings = tiny_dict(
        data={"stripes": 8},
        backbone={"taps": (1,)},
        train={
            "steps": 10,
            "eval_every_steps": 5,
            "checkpoint_every_steps": 1,
            "log_every_steps": 1,
            "select": "best",
        },
    )
    del settings["mesh"]
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    write_config(path, settings)
    return path


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        x["loss"] for x in map(json.loads, lines) if "val_median_r/t-subj01" not in x
    ]


def scores(workdir):
    """Correlation and R2 of every voxel of both subjects."""
    found = []
    for name in ("t-subj01", "t-subj02"):
        with xarray.open_zarr(workdir / "voxels" / f"{name}.zarr") as table:
            found += [table.pearson.values, table.r2.values]
    return np.concatenate(found)


def steps_of(workdir):
    return checkpoint.steps_in(workdir / "checkpoints")


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """A run of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    with Started([command(config, workdir)], workdir / "told", devices=0) as run:
        assert run.codes() == [0], run.told()
    return workdir


def pair(config, workdir, *more, **options):
    words = command(config, workdir, *more, **options)
    return Started([words, words], workdir.parent / f"told-{time.monotonic_ns()}")


def on_mesh(data, voxel):
    return f"--config.mesh.data={data}", f"--config.mesh.voxel={voxel}"


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """Finished runs of two processes, by mesh."""
    done = {}

    def make(data, voxel):
        if (data, voxel) not in done:
            workdir = tmp_path_factory.mktemp("whole") / "run"
            # Stopped and resumed below: saved as often as those it is compared with.
            every = 1 if (data, voxel) == (2, 4) else 10
            often = f"--config.train.checkpoint_every_steps={every}"
            with pair(config, workdir, often, *on_mesh(data, voxel)) as run:
                assert run.codes() == [0, 0], run.told()
            assert "report: " in run.out(0)
            assert f"mesh {{'data': {data}, 'voxel': {voxel}}}" in run.out(0)
            # The runtime prints on all; this program on the first alone.
            assert not [
                x for x in ("mesh {", "note:", "step", "r / ceil") if x in run.out(1)
            ]
            done[data, voxel] = workdir
        return done[data, voxel]

    return make


@pytest.mark.parametrize(("data", "voxel"), [(2, 4), (1, 8), (8, 1)])
def test_two_processes_give_the_losses_and_scores_of_one(alone, finished, data, voxel):
    workdir = finished(data, voxel)
    assert len(losses(alone)) == 10
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores(workdir), scores(alone), rtol=0, atol=1e-5)
    written = {p.name for p in workdir.iterdir()} - {"told"}
    assert written == {p.name for p in alone.iterdir()} - {"told"}


def test_two_processes_keep_pictures_and_responses_on_their_devices(
    config, tmp_path, finished
):
    """Each reads its own part; what is picked is what they read without."""
    workdir = tmp_path / "run"
    often = "--config.train.checkpoint_every_steps=1"
    kept = "--config.data.on_device=on"
    with pair(config, workdir, often, kept, *on_mesh(2, 4)) as run:
        assert run.codes() == [0, 0], run.told()
    assert "pictures and responses go onto the devices" in run.out(0)
    assert losses(workdir) == losses(finished(2, 4))
    np.testing.assert_array_equal(scores(workdir), scores(finished(2, 4)))


def test_a_signal_to_one_and_the_death_of_another_lose_no_number(
    config, tmp_path, finished
):
    """SIGTERM to process 1, then SIGKILL of process 0, then to the end."""
    workdir = tmp_path / "run"
    log = workdir / "metrics.jsonl"
    with pair(config, workdir, *on_mesh(2, 4)) as run:
        wait_for_lines(log, 2, run)
        run.processes[1].send_signal(signal.SIGTERM)
        assert run.codes(60) == [errors.EXIT_RESTART] * 2, run.told()
        assert "SIGTERM: saving after this step" in run.err(1)
    saved = max(steps_of(workdir))
    assert 2 <= saved < 10
    assert f"saved step {saved} of 10; the same command goes on" in run.out(0)
    with pair(config, workdir, *on_mesh(2, 4)) as run:
        wait_for_lines(log, log.read_text().count("\n") + 1, run)
        began = time.monotonic()
        run.processes[0].kill()
        code = run.processes[1].wait(30)
        took = time.monotonic() - began
        assert code == errors.EXIT_RESTART, run.told()
        assert took < 15
    print(f"stopped at {saved}; the other ended {took:.1f} s after the death")
    assert f"resuming at step {saved} of 10" in run.out(0)
    with pair(config, workdir, *on_mesh(2, 4)) as run:
        assert run.codes() == [0, 0], run.told()
    unbroken = finished(2, 4)
    assert losses(workdir) == losses(unbroken)
    np.testing.assert_array_equal(scores(workdir), scores(unbroken))


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("raise", errors.EXIT_INTERNAL, "ValueError: a planted fault"),
        ("stuck", errors.EXIT_WATCHDOG, "in faulty"),
    ],
)
def test_a_fault_in_one_process_is_told_there_and_ends_the_other(
    config, tmp_path, monkeypatch, fault, code, said
):
    monkeypatch.setenv("FAULT", fault)
    monkeypatch.setenv("FAULT_CALL", "5")
    main = ("-m", "tests.faulty_main")
    with pair(config, tmp_path / "run", *on_mesh(2, 4), module=main) as run:
        assert run.processes[1].wait(120) == code, run.told()
        began = time.monotonic()
        assert run.processes[0].wait(30) == errors.EXIT_RESTART, run.told()
        took = time.monotonic() - began
    assert took < 15
    print(f"{fault}: the other ended {took:.1f} s later")
    assert said in run.err(1)
    assert "another process of this run is gone" in run.err(0)


def test_processes_that_disagree_or_find_a_taken_workdir_do_not_begin(config, tmp_path):
    workdir = tmp_path / "run"
    words = [command(config, workdir, f"--config.train.seed={k}") for k in (0, 1)]
    with Started(words, tmp_path / "seeds") as run:
        workdir.mkdir()
        with whole.locked(workdir), pair(config, workdir) as second:
            assert second.codes(90) == [errors.EXIT_OUTPUT] * 2, second.told()
        assert run.codes(90) == [errors.EXIT_CONFIG] * 2, run.told()
    for k in (0, 1):
        assert "train.seed is 0 on process 0 and 1 on process 1" in run.err(k)
    assert "another process works in it" in second.err(0)
    assert "process 0: stopped before the run began" in second.err(1)
    assert not (workdir / "checkpoints").exists()


@pytest.mark.parametrize(
    ("process", "said"),
    [(0, "1 of 2 processes joined in 3 s"), (1, "no coordinator answers at localhost")],
)
def test_a_process_that_waits_in_vain_ends(config, tmp_path, process, said):
    words = command(config, tmp_path / "run", "--join_seconds=3")
    with Started([words], tmp_path / "told", first=process) as run:
        assert run.codes(60) == [errors.EXIT_RESTART], run.told()
    assert said in run.err(0)
    assert "Traceback" not in run.err(0)
    assert not (tmp_path / "run").exists()


def test_one_process_saves_on_a_signal_and_goes_on(config, tmp_path, alone):
    workdir = tmp_path / "run"
    with Started([command(config, workdir)], tmp_path / "told", devices=0) as run:
        wait_for_lines(workdir / "metrics.jsonl", 2, run)
        run.processes[0].send_signal(signal.SIGINT)
        assert run.codes(60) == [errors.EXIT_RESTART], run.told()
    assert f"saved step {max(steps_of(workdir))} of 10" in run.out(0)
    with Started([command(config, workdir)], tmp_path / "told", devices=0) as run:
        assert run.codes() == [0], run.told()
    assert losses(workdir) == losses(alone)


@pytest.mark.parametrize(("devices", "mesh"), [(1, (1, 1)), (8, (1, 8))])
def test_what_two_processes_saved_goes_on_in_one(
    config, finished, alone, tmp_path, devices, mesh
):
    """The newest step is taken away, so that two are left to do again."""
    workdir = tmp_path / "run"
    shutil.copytree(finished(2, 4), workdir)
    for step in sorted(steps_of(workdir))[1:]:
        shutil.rmtree(workdir / "checkpoints" / str(step))
    (first,) = steps_of(workdir)
    result = subprocess.run(
        command(config, workdir, *on_mesh(*mesh)),
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    assert f"resuming at step {first} of 10" in result.stdout
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=0, atol=1e-5)
