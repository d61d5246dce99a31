"""What ends a run from outside its loop: signals, and a watchdog when it is stuck.

SIGTERM or SIGINT: the loop finishes its step, saves, and the command ends with
EXIT_RESTART; a second one, 2 s later or more, ends it at once. Outside of the loop
there is nothing to save, so the first one does. A thread hears them, since the main
thread may be inside a collective for as long as another process lets it wait.

A process has one set of signal handlers and one watchdog, hence the state here.
"""

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ubrain_jax import errors, sharding

_asked = threading.Event()
_in_loop = threading.Event()
_progress: list = [time.monotonic(), "starting"]


class StoppedError(Exception):
    """A signal asked to stop, and the state is saved."""

    exit_code = errors.EXIT_RESTART


def catch_signals() -> None:
    """Handles SIGTERM and SIGINT from here on; to be called in the main thread."""
    hear, tell = socket.socketpair()
    tell.setblocking(False)
    # Python's own handlers run in the main thread, when that comes back to Python.
    # What is written here is written at once.
    signal.set_wakeup_fd(tell.detach(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_listen, args=(hear,), daemon=True).start()


# srun, timeout and systemd may deliver one request to stop as several signals.
REPEAT_SECONDS = 2.0


def _listen(hear: socket.socket) -> None:
    first = 0.0
    while number := hear.recv(1):
        name = signal.Signals(number[0]).name
        now = time.monotonic()
        if _in_loop.is_set() and _asked.is_set() and now - first < REPEAT_SECONDS:
            continue
        if _in_loop.is_set() and not _asked.is_set():
            first = now
            _asked.set()
            _tell(f"{name}: saving after this step; once more ends at once")
            continue
        again = "the same command goes on from the newest checkpoint"
        if number[0] == signal.SIGINT and not _asked.is_set():
            _tell(f"error: interrupted; {again}")
            os._exit(errors.EXIT_INTERRUPT)
        _tell(f"{name}: ended at once; {again}")
        os._exit(errors.EXIT_RESTART)


def _tell(text: str) -> None:
    # Standard error may be closed by whoever ends us.
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def loop() -> Iterator[None]:
    """Inside, a first signal is for `StopSign` to see."""
    _in_loop.set()
    try:
        yield
    finally:
        _in_loop.clear()


class StopSign:
    """Whether any process of a run was asked to stop: the same answer on all.

    With several processes the answer travels in a collective of its own beside each
    step, and is read one step late, as the loss is, so no step waits for it.

    Args:
        mesh: Over the devices of all processes.
    """

    def __init__(self, mesh: jax.sharding.Mesh):
        self._before: jax.Array | None = None
        self._any = None
        every = PartitionSpec(mesh.axis_names)
        if not sharding.place(mesh, every).is_fully_addressable:
            self._signs = [
                sharding.put(mesh, every, np.full(mesh.size, value, np.int32))
                for value in (0, 1)
            ]
            nowhere = sharding.place(mesh, sharding.REPLICATED)
            self._any = jax.jit(jnp.max, out_shardings=nowhere)

    def seen(self) -> bool:
        """To be called once in each step, by all processes."""
        if self._any is None:
            return _asked.is_set()
        before, self._before = self._before, self._any(self._signs[_asked.is_set()])
        return before is not None and bool(before)


def alive(doing: str) -> None:
    """Tells the watchdog that something was finished, and what comes now."""
    _progress[:] = time.monotonic(), doing


def start_watchdog(seconds: float) -> None:
    """Ends the process with EXIT_WATCHDOG when `alive` is not called for so long.

    The stacks of all threads go to standard error. 0: no watchdog.
    """
    if seconds > 0:
        alive("starting")
        threading.Thread(target=_guard, args=(seconds,), daemon=True).start()


def _guard(seconds: float) -> None:
    while (left := _progress[0] + seconds - time.monotonic()) > 0:
        time.sleep(min(left + 0.01, 60))
    _tell(
        f"error: nothing finished for {seconds:g} s while {_progress[1]}; the stacks "
        "follow. The same command goes on from the newest checkpoint; "
        "train.watchdog_seconds allows more."
    )
    with contextlib.suppress(OSError, ValueError, AttributeError):
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
    os._exit(errors.EXIT_WATCHDOG)
