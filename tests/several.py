"""Starts the real command as several processes on this machine, for tests."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent


def environment(devices):
    """Of a process with so many CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def write_config(path, settings):
    """A config file with the tiny settings, for the real command."""
    lines = ["from ubrain_jax import config", "def get_config():"]
    lines.append("    c = config.default()")
    for section, values in settings.items():
        for key, value in values.items():
            lines.append(f"    c.{section}.{key} = {value!r}")
    path.write_text("\n".join([*lines, "    return c", ""]))


def command(config, workdir, *more, module=("-m", "ubrain_jax.main")):
    return [
        sys.executable,
        *map(str, module),
        f"--config={config}",
        f"--workdir={workdir}",
        *more,
    ]


class Started:
    """Processes of one run and what they print.

    Args:
        commands: One for each process; the flags that make them one run are added.
        folder: For their output.
        devices: Of each process; 0: one process that is not told of others.
        first: Number of the first process.
    """

    def __init__(self, commands, folder, devices=4, first=0):
        self.folder, port = folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.processes = []
        for k, words in enumerate(commands):
            joined = [
                f"--coordinator=localhost:{port}",
                f"--num_processes={max(2, len(commands))}",
                f"--process_id={k + first}",
            ]
            with (
                self._file(k, "out").open("w") as out,
                self._file(k, "err").open("w") as err,
            ):
                self.processes.append(
                    subprocess.Popen(
                        [*words, *(joined if devices else [])],
                        env=environment(devices or 1),
                        stdout=out,
                        stderr=err,
                        start_new_session=True,
                    )
                )

    def _file(self, k, kind):
        return self.folder / f"{k}.{kind}"

    def out(self, k):
        return self._file(k, "out").read_text()

    def err(self, k):
        return self._file(k, "err").read_text()

    def told(self):
        """Everything, for the message of a failed assertion."""
        return "\n".join(
            f"== {k}\n{self.out(k)[-1500:]}\n{self.err(k)[-3000:]}"
            for k in range(len(self.processes))
        )

    def codes(self, timeout=150):
        """Exit codes of all; what still runs then is killed and fails the test."""
        end = time.monotonic() + timeout
        try:
            return [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.told()}") from None
        finally:
            self.kill()

    def kill(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()


def wait_for_lines(path, count, started, timeout=150):
    """Returns when a log has so many lines."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        gone = [p.poll() for p in started.processes if p.poll() is not None]
        assert not gone, started.told()
        time.sleep(0.01)
    raise AssertionError(f"{path} has not {count} lines\n{started.told()}")
