"""Signals and the watchdog, in real processes."""

import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from ubrain_jax import errors, sharding, watch

SIGNALS = """
import sys, time
from ubrain_jax import watch
watch.catch_signals()
with watch.loop():
    print("in the loop", flush=True)
    while not (sys.argv[1] == "polite" and watch._asked.is_set()):
        time.sleep(0.01)
print("after it", flush=True)
time.sleep(60)
"""
# A main thread that never comes back to Python, as in a collective.
DEAF = """
import ctypes
from ubrain_jax import watch
watch.catch_signals()
with watch.loop():
    print("in the loop", flush=True)
    ctypes.CDLL(None).usleep.restype = None
    while True: ctypes.CDLL(None).sleep(60)
"""
STUCK = """
import threading, time
from ubrain_jax import watch
watch.start_watchdog(0.5)
for step in range(4):
    time.sleep(0.3)
    watch.alive(f"step {step}")
print("alive", flush=True)
def waits_for_ever(): time.sleep(600)
waits_for_ever()
"""


def start(code, *words):
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )


def send(process, number, said):
    """A signal, and what is said of it."""
    process.send_signal(number)
    line = process.stderr.readline()
    assert said in line


@pytest.mark.parametrize("code", [SIGNALS, DEAF])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(code, number):
    with start(code, "deaf") as process:
        assert process.stdout.readline() == "in the loop\n"
        send(process, number, f"{number.name}: saving after this step")
        process.send_signal(number)  # one request, delivered twice
        time.sleep(2.2)
        assert process.poll() is None
        send(process, signal.SIGTERM, "SIGTERM: ended at once")
        assert process.wait(10) == errors.EXIT_RESTART


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, errors.EXIT_RESTART), (signal.SIGINT, errors.EXIT_INTERRUPT)],
)
def test_outside_of_the_loop_one_is_enough(number, code):
    with start(SIGNALS, "polite") as process:
        assert process.stdout.readline() == "in the loop\n"
        send(process, signal.SIGTERM, "SIGTERM: saving after this step")
        assert process.stdout.readline() == "after it\n"
        process.send_signal(number)
        # The first one was answered: this one is the second.
        assert process.wait(10) == errors.EXIT_RESTART
    with start(SIGNALS.replace("with watch.loop():", "if True:"), "deaf") as process:
        assert process.stdout.readline() == "in the loop\n"
        process.send_signal(number)
        assert process.wait(10) == code


def test_the_watchdog_waits_for_what_moves_and_tells_where_it_is_stuck():
    with start(STUCK) as process:
        out, told = process.communicate(timeout=30)
    assert process.returncode == errors.EXIT_WATCHDOG
    assert out == "alive\n"
    assert "nothing finished for 0.5 s while step 3" in told
    assert "in waits_for_ever" in told


def test_no_watchdog_is_started_for_0_seconds(monkeypatch):
    monkeypatch.setattr("threading.Thread", lambda **_: pytest.fail("started"))
    watch.start_watchdog(0)


def test_one_process_sees_its_own_signal_only(monkeypatch):
    mesh = sharding.make_mesh(2, 4, stripes=8, batch_images=8)
    sign = watch.StopSign(mesh)
    assert [sign.seen() for _ in range(3)] == [False] * 3
    watch._asked.set()
    try:
        assert sign.seen()
    finally:
        watch._asked.clear()
    assert jax.device_count() == 8
