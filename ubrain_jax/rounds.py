"""Processes that take turns at being timed, each with its own memory and threads.

A child reads a line of JSON with its settings, makes its steps ready and answers with
facts; each further line names a step and how often to run it, and is answered with
seconds. One child runs at a time, so what disturbs the machine disturbs all alike.
Nothing here needs JAX.
"""

import contextlib
import ctypes
import gc
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# What runs a step so often and returns what else is to be told of it.
Step = Callable[[int], dict[str, Any]]


class Ready(NamedTuple):
    """What a child has made of its settings.

    Attributes:
        steps: By name; each returns when the device has finished.
        facts: JSON-able.
        peak: Highest bytes in use on the device; None: those of the process count.
    """

    steps: Mapping[str, Step]
    facts: dict[str, Any]
    peak: Callable[[], int] | None = None


class Failed(RuntimeError):
    """A child ended, answered with an error, or took longer than it may."""


class Spread(NamedTuple):
    """Seconds of one step over repeats.

    Attributes:
        least: The fastest.
        median: The middle one.
        iqr: Between the quartiles.
        repeats: How many.
    """

    least: float
    median: float
    iqr: float
    repeats: int


def spread(values: Sequence[float]) -> Spread:
    """Summary of repeats.

    Example:
        >>> spread([3.0, 1.0, 2.0, 5.0])
        Spread(least=1.0, median=2.5, iqr=1.75, repeats=4)
    """
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Spread(float(min(values)), middle, high - low, len(values))


def serve(make: Callable[[dict[str, Any]], Ready]) -> None:
    """The child: answers on standard output until standard input ends.

    Args:
        make: Settings -> steps. Each is run once before facts are told.
    """
    # Whatever a library prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**told: Any) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    idle = resident()
    try:
        ready = make(json.loads(sys.stdin.readline()))
        first = {}
        for name, step in ready.steps.items():
            began = time.perf_counter()
            step(1)
            first[name] = time.perf_counter() - began
        highest = _highest()
        is_new = forget_peak()
        answer(facts={**ready.facts, "first_step_seconds": first})
        for line in sys.stdin:
            asked = json.loads(line)
            if "step" in asked:
                began, worked = time.perf_counter(), time.process_time()
                more = ready.steps[asked["step"]](asked["times"])
                seconds = time.perf_counter() - began
                worked = time.process_time() - worked
                answer(seconds=seconds, cpu_seconds=worked, **more)
            else:
                of_process = {
                    "idle": idle,
                    "starting": highest - idle,
                    "steps": _highest() - idle if is_new else None,
                }
                answer(
                    process_bytes=of_process,
                    peak_bytes=ready.peak() if ready.peak else None,
                )
    except Exception as error:  # whatever it is, the parent tells it
        answer(error=f"{type(error).__name__}: {error}")
        raise


class Child:
    """A process that runs steps when asked to.

    Args:
        module: Run with `python -m`.
        settings: Its first line, JSON-able.
        deadline: Of `time.monotonic()`, by which all its answers must have come.
        ready_by: By which its first answer must have come; None: the same.
        folder: Where it runs; None: here.
        env: Environment beside that of this process.

    Raises:
        Failed: If it does not get ready.
    """

    def __init__(
        self,
        module: str,
        settings: dict[str, Any],
        deadline: float,
        *,
        ready_by: float | None = None,
        folder: str | os.PathLike | None = None,
        env: Mapping[str, str] | None = None,
    ):
        self._deadline, self._module = ready_by or deadline, module
        self._errors = tempfile.TemporaryFile()
        # The package is found where it was found here.
        package = str(pathlib.Path(__file__).parent.parent)
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(env or {})},
            start_new_session=True,  # so that its own children end with it
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.facts: dict[str, Any] = self._ask(settings)["facts"]
        except BaseException:
            self.close()
            raise
        self._deadline = deadline

    def run(self, step: str, times: int) -> dict[str, Any]:
        """Runs a step so often; seconds, and what else the step tells."""
        return self._ask({"step": step, "times": times})

    def peak(self) -> dict[str, Any]:
        """Highest memory: peak_bytes of the device, process_bytes of the process."""
        return self._ask({})

    def close(self) -> None:
        """Ends it and what it started."""
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            try:
                if stream:
                    stream.close()
            except BrokenPipeError:
                pass

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None  # noqa: S101
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            left = max(0.0, self._deadline - time.monotonic())
            line = self._lines.get(timeout=left)
        except queue.Empty:
            raise Failed(f"{self._module} did not end in time") from None
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            code = self._process.returncode
            raise Failed(f"{self._module} ended with code {code}: {self._last_words()}")
        told = json.loads(line)
        if "error" in told:
            raise Failed(f"{self._module}: {' '.join(told['error'].split())[:500]}")
        return told

    def _last_words(self) -> str:
        """Last line of standard error."""
        self._errors.seek(0)
        text = self._errors.read().decode("utf-8", "replace").strip()
        return text.splitlines()[-1] if text else "without a word"


class Turn(NamedTuple):
    """Who runs what in each round.

    Attributes:
        name: For the results.
        child: Whose step it is.
        step: Name of the step.
    """

    name: str
    child: Child
    step: str


class Timed(NamedTuple):
    """Rounds of one step.

    Attributes:
        seconds: Of one step, for each round.
        cpu_seconds: Of all processors, which others on the machine hardly change.
        times: Steps in a round.
        told: What the step told beside, for each round.
    """

    seconds: list[float]
    cpu_seconds: list[float]
    times: int
    told: list[dict[str, Any]]


def alternate(
    turns: Sequence[Turn],
    repeats: int,
    seconds: float,
    steps: int | None = None,
    failed: Callable[[str, str], None] | None = None,
) -> dict[str, Timed]:
    """Times steps in turn, round by round.

    Args:
        turns: In order.
        repeats: Rounds.
        seconds: Of all rounds of one step, together, about.
        steps: Steps in a round; None: as many as fit in `seconds`.
        failed: Called with the name and the reason of one that ends; it is left out
            from then on, with the rounds that it has. None: its error is raised.

    Returns:
        By name.
    """
    found: dict[str, Timed] = {}
    gone: set[str] = set()

    def run(turn: Turn, times: int) -> dict[str, Any] | None:
        if turn.name in gone:
            return None
        try:
            return turn.child.run(turn.step, times)
        except Failed as error:
            if failed is None:
                raise
            gone.add(turn.name)
            failed(turn.name, str(error))
            return None

    for turn in turns:
        told = run(turn, 1)  # the first one may still compile
        told = run(turn, 1) if told and steps is None else told
        if told is None:
            continue
        fit = max(1, round(seconds / repeats / max(told["seconds"], 1e-9)))
        found[turn.name] = Timed([], [], steps or fit, [])
    for _ in range(repeats):
        for turn in turns:
            if turn.name not in found:
                continue
            timed = found[turn.name]
            told = run(turn, timed.times)
            if told is not None:
                timed.seconds.append(told.pop("seconds") / timed.times)
                timed.cpu_seconds.append(told.pop("cpu_seconds") / timed.times)
                timed.told.append(told)
    return {name: timed for name, timed in found.items() if timed.seconds}


def ratios(one: Timed, other: Timed) -> list[float]:
    """How many times longer `other` took, round by round."""
    pairs = zip(one.seconds, other.seconds, strict=False)
    return [b / a for a, b in pairs]


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _highest() -> int:
    """Highest `resident` of this process so far; 0 where it is not told."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            kilobytes = [line.split()[1] for line in file if line.startswith("VmHWM")]
        return int(kilobytes[0]) * 1024
    except (OSError, IndexError):
        return 0


def forget_peak() -> bool:
    """Lets the highest memory of this process begin anew; False if it cannot.

    What compiling left unused in the C heap is handed back first.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return True
