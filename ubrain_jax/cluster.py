"""Several processes of one run: how they join, agree and end.

JAX's own service (`jax.distributed`) carries everything. One process is the same code:
nothing here waits, and process 0 is the only one. Signals and the watchdog are in
`watch`; what each process reads of a batch is in `sharding`.
"""

import contextlib
import ctypes
import glob
import importlib.util
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from ubrain_jax import errors

# A process that sends no sign of life for so long is dead to the others.
HEARTBEAT_SECONDS = 10
# Waiting for the others at the end: process 0 writes scores and report meanwhile.
SHUTDOWN_SECONDS = 1800
# How long process 0 stays after an error.
LINGER_SECONDS = 2
# How the runtime says that a peer went away, in collectives and at barriers.
_LOST = re.compile(
    r"gloo|nccl|unavailable|deadline_exceeded|heartbeat|barrier|coordination"
    r"|connection (closed|reset)|socket closed",
    re.IGNORECASE,
)
Value = TypeVar("Value")


class RefusedError(errors.InputError):
    """Process 0 could not begin, and said why; the others end with its code."""

    def __init__(self, code: int):
        self.exit_code = code
        super().__init__(
            "process 0",
            "",
            "stopped before the run began",
            "a run that can begin",
            "Its output says why.",
        )


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    join_seconds: int = 300,
) -> None:
    """Joins the other processes of the run, if there are any.

    Must come before anything else uses JAX's devices. Without arguments the
    environment decides (`detect`); --num_processes=1 alone overrules it. A process
    that waits for others longer than `join_seconds` ends with EXIT_RESTART.

    Args:
        coordinator: HOST:PORT on which process 0 listens.
        num_processes: How many there are.
        process_id: Which one this is, from 0.
        join_seconds: How long to wait for all of them.

    Raises:
        errors.ConfigError: If the arguments are incomplete or out of range, or the
            cluster of the environment cannot be read.
    """
    given = (coordinator, num_processes, process_id)
    _check_flags(*given, join_seconds)
    where = detect(os.environ) or ("TPU" if _has_tpu() else "")
    if given == (None, 1, None) or (given == (None,) * 3 and not where):
        return
    # Its handler would swallow SIGTERM; `watch` has one.
    jax.config.update("jax_enable_preemption_service", False)
    _abort_means_restart()
    timer = threading.Timer(join_seconds, _not_joined, (*given, join_seconds))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # The timer comes first: at its own timeout JAX aborts.
            initialization_timeout=join_seconds + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise errors.ConfigError(
            coordinator or where,
            "",
            f"cannot be joined ({' '.join(str(error).split())[:300]})",
            "an address on which process 0 can listen and that the others reach",
            "Give --coordinator, --num_processes and --process_id, or "
            "--num_processes=1 to run alone.",
        ) from error
    finally:
        timer.cancel()


def detect(environ: Mapping[str, str]) -> str:
    """The cluster whose job this process is one of several of; "" for none.

    JAX reads the details. This only tells whether to ask it: a job of one process
    starts without a cluster, and a plain machine without a query over the network.

    Example:
        >>> slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]",
        ...          "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
        >>> [detect({**slurm, "SLURM_NTASKS": n}) for n in ("2", "1")]
        ['Slurm', '']
    """
    if environ.get("SLURM_JOB_ID") and all(
        f"SLURM_{name}" in environ for name in ("STEP_NODELIST", "PROCID", "LOCALID")
    ):
        return "Slurm" if _several(environ.get("SLURM_NTASKS")) else ""
    if "OMPI_MCA_orte_hnp_uri" in environ:
        return "Open MPI" if _several(environ.get("OMPI_COMM_WORLD_SIZE")) else ""
    if "TPU_WORKER_HOSTNAMES" in environ or "TPU_PROCESS_ADDRESSES" in environ:
        hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ["TPU_WORKER_HOSTNAMES"]
        # One host of several slices is one of several, too.
        slices = environ.get("MEGASCALE_NUM_SLICES")
        return "TPU" if "," in hosts or _several(slices) else ""
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        # JAX asks the API server through this package; without it, no cluster.
        return "Kubernetes" if importlib.util.find_spec("kubernetes") else ""
    return ""


def _has_tpu() -> bool:
    """Whether this may be a host of a pod: JAX asks its metadata for the others."""
    devices = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def _several(number: str | None) -> bool:
    return number is not None and number.isdigit() and int(number) > 1


def _check_flags(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    join_seconds: int,
) -> None:
    """Refuses flags that do not name one process of several."""
    flags = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    absent = [name for name, value in flags.items() if value is None]
    alone = num_processes == 1 and absent == ["--coordinator", "--process_id"]
    found = expected = ""
    if 0 < len(absent) < 3 and not alone:
        found, expected = f"without {', '.join(absent)}", "all three or none"
    elif num_processes is not None and num_processes < 1:
        found, expected = f"--num_processes={num_processes}", "1 or more"
    elif (
        process_id is not None
        and num_processes is not None
        and not 0 <= process_id < num_processes
    ):
        found = f"--process_id={process_id} of {num_processes} processes"
        expected = f"0..{num_processes - 1}"
    elif coordinator is not None and not re.fullmatch(r".+:\d{1,5}", coordinator):
        found, expected = f"--coordinator={coordinator}", "HOST:PORT"
    elif join_seconds < 1:
        found, expected = f"--join_seconds={join_seconds}", "1 or more"
    if found:
        raise errors.ConfigError(
            ", ".join(name for name in flags if name not in absent) or "--join_seconds",
            "",
            found,
            expected,
            "Start each process with the same --coordinator=HOST:PORT and "
            "--num_processes=N, and a --process_id from 0 to N - 1.",
        )


def _not_joined(
    coordinator: str | None, num: int | None, process: int | None, seconds: int
) -> None:
    """Ends a process that waited too long for the others."""
    if process and coordinator and not _answers(coordinator):
        found = f"no coordinator answers at {coordinator}"
    elif num == 2:
        found = "1 of 2 processes joined"
    else:
        found = f"fewer than {num or 'all'} processes joined"
    end(
        f"error: {found} in {seconds} s. Start the others, or give them longer with "
        "--join_seconds.",
        errors.EXIT_RESTART,
    )


def _answers(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 2):
        return True
    return False


def _abort_means_restart() -> None:
    """The runtime aborts when a peer is gone: with a code that says to start again.

    JAX's callback for that cannot be written in Python (it fails with bad_cast), and
    a handler of `signal` would only run after the process is dead.
    """
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    handler = kind(lambda _: os._exit(errors.EXIT_RESTART))
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, kind]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, handler)
    _KEPT.append(handler)


_KEPT: list[Any] = []  # ctypes frees what Python forgets


def is_first() -> bool:
    """Whether this process writes and prints for all."""
    return jax.process_index() == 0


def refuse_several(command: str) -> None:
    """Stops a command that works in one process when it is one of several.

    Raises:
        errors.ConfigError: Saying so.
    """
    where = detect(os.environ)
    # The pods of a Kubernetes job may be independent of each other.
    if where in ("Slurm", "Open MPI", "TPU") or jax.process_count() > 1:
        raise errors.ConfigError(
            command,
            "",
            f"started as one of several processes ({where or 'TPU'})",
            "one process",
            "Start it once, on one machine; only ubrain_jax.main runs on several.",
        )


def gather(text: str) -> list[str]:
    """A text of every process, in the order of the processes, for all of them."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(own)))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: len(own)] = own
    rows = multihost_utils.process_allgather(padded)
    return [
        bytes(row[:size]).decode() for row, size in zip(rows, sizes.flat, strict=True)
    ]


def from_first(make: Callable[[], Value]) -> Value:
    """What `make` returns on process 0, as JSON carries it; it runs only there."""
    if jax.process_count() == 1:
        return make()
    return json.loads(gather(json.dumps(make()) if is_first() else "")[0])


def agree(facts: Mapping[str, Any]) -> None:
    """Refuses to go on when processes were started with different things.

    Args:
        facts: Name -> value, as JSON has it.

    Raises:
        errors.ConfigError: On every process, naming what differs and where.
    """
    if jax.process_count() == 1:
        return
    given = [json.loads(text) for text in gather(json.dumps(facts))]
    faults = disagreements(given)
    if faults:
        raise errors.ConfigError(
            "processes",
            "",
            "; ".join(faults[:10]),
            "the same on all",
            "Start every process with the same command, code and data.",
        )


def disagreements(given: list[dict[str, Any]]) -> list[str]:
    """What differs between the facts of processes 0, 1, ...

    Example:
        >>> disagreements([{"seed": 0, "jax": "1"}] * 2 + [{"seed": 3, "jax": "1"}])
        ['seed is 0 on process 0, 1 and 3 on process 2']
    """
    faults = []
    for name in sorted(set().union(*given)):
        holders: dict[str, list[int]] = {}
        for process, facts in enumerate(given):
            text = json.dumps(facts.get(name), sort_keys=True)
            holders.setdefault(text[:80], []).append(process)
        if len(holders) > 1:
            told = [
                f"{value} on process {', '.join(map(str, who[:8]))}"
                + (f" and {len(who) - 8} more" if len(who) > 8 else "")
                for value, who in holders.items()
            ]
            faults.append(f"{name} is {' and '.join(told)}")
    return faults


def first_enters(
    stack: contextlib.ExitStack, context: contextlib.AbstractContextManager
) -> None:
    """Process 0 enters a context, such as a lock, and the others wait until it has.

    Raises:
        errors.InputError: What entering raised on process 0.
        RefusedError: Then on the others.
    """
    refused, code = None, 0
    if is_first():
        try:
            stack.enter_context(context)
        except errors.InputError as error:
            refused, code = error, error.exit_code
    code = int(gather(str(code))[0])
    if refused is not None:
        raise refused
    if code:
        raise RefusedError(code)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """An error in one of several processes ends it at once, and so the others.

    With one process the error passes. With several it is told here and the process
    ends without cleaning up: JAX's own would wait for the others, who wait for this
    one. What is written is whole at any moment, so nothing is lost by that.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        # JAX's service ends with process 0, and then aborts the others: they may be
        # about to tell the same error.
        end(*explain(error), LINGER_SECONDS if is_first() else 0)


def explain(error: BaseException) -> tuple[str, int]:
    """What to print of an error that ends one of several processes, and its code."""
    debug = bool(os.environ.get("UBRAIN_DEBUG"))
    trace = "".join(traceback.format_exception(error))
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return (trace if debug else f"error: {' '.join(str(error).split())}"), code
    if isinstance(error, SystemExit):
        return "", error.code if isinstance(error.code, int) else 1
    if is_lost_peer(error):
        line = " ".join(str(error).split())[:200]
        text = f"error: another process of this run is gone ({line}). Start it again."
        return (trace + text if debug else text), errors.EXIT_RESTART
    return trace, errors.EXIT_INTERNAL


def is_lost_peer(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is the runtime missing a process."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def end(text: str, code: int, linger: float = 0) -> None:
    """Prints to standard error and ends this process, without any cleaning up."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        if text:
            print(text, file=sys.stderr, flush=True)
    time.sleep(linger)
    os._exit(code)


def leave() -> None:
    """Parts from the others; returns when all have come to this point."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()
