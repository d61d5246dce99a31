"""A headless Chromium that tests can ask: over a pipe, with nothing but the browser."""

import base64
import contextlib
import fcntl
import json
import os
import pathlib
import select
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Any

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
)


class Tab:
    """One tab; `said` collects what the browser logs: console, errors, violations."""

    def __init__(self, send: int, receive: int, seconds: float):
        self._send, self._receive, self._seconds = send, receive, seconds
        self._count, self._buffer, self._session = 0, b"", None
        self.said: list[str] = []
        self.fetched: list[str] = []
        self._loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + self._seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._receive], [], [], end - time.monotonic())
            assert ready, f"no answer in {self._seconds} s"
            data = os.read(self._receive, 2**20)
            assert data, "the browser is gone"
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Log.entryAdded":
            self.said.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.said.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.said.append(str(params["exceptionDetails"]))
        elif method == "Network.requestWillBeSent":
            self.fetched.append(params["request"]["url"])

    def open(self, page: pathlib.Path, width: int, height: int = 900) -> None:
        """Shows a file in a window of so many CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self._loaded = False
        self.call("Page.navigate", url=page.as_uri())
        while not self._loaded:
            self._note(self._read())

    def value(self, script: str) -> Any:
        """Of a JavaScript expression; the page's own policy does not hold for it."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def shot(self, path: pathlib.Path, height: int | None = None) -> None:
        """A picture of the page from its top, the whole of it by default."""
        size = self.value("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": size[0], "height": height or size[1]}
        found = self.call(
            "Page.captureScreenshot",
            clip={**clip, "scale": 1},
            captureBeyondViewport=True,
        )
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def tab(folder: pathlib.Path, seconds: float = 60) -> Iterator[Tab]:
    """Starts a browser with its profile in a folder, and ends it.

    Args:
        folder: For the profile.
        seconds: How long to wait for each answer.
    """
    # Above 4, so that they can become 3 and 4 in the child.
    child_in, send = map(_high, os.pipe())
    receive, child_out = map(_high, os.pipe())

    nothing = (os.devnull, os.O_RDWR, 0)
    # Not a fork of this process: it may have threads.
    pid = os.posix_spawn(
        CHROMIUM,
        [
            *(CHROMIUM, *FLAGS, "--remote-debugging-pipe"),
            f"--user-data-dir={folder / 'profile'}",
            "about:blank",
        ],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, child_in, 3),
            (os.POSIX_SPAWN_DUP2, child_out, 4),
            *((os.POSIX_SPAWN_OPEN, fd, *nothing) for fd in (0, 1, 2)),
        ],
        setpgroup=0,
    )
    try:
        os.close(child_in)
        os.close(child_out)
        yield Tab(send, receive, seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(send)
        os.close(receive)


def _high(fd: int) -> int:
    """The same pipe under another number."""
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(fd)
    return copy
