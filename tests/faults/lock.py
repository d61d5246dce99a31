"""Two runs on one workdir, and a holder of the lock that is killed.

python -m tests.faults.lock
"""

import pathlib
import signal
import tempfile
import time

from tests.faults import full
from ubrain_jax import checkpoint, errors


def main() -> None:
    """Starts the runs, and prints what became of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        holder = full.start(folder, 10**7)
        assert holder.stdout is not None
        assert holder.stdout.readline().startswith("begins 0")
        second = full.start(folder, 5)
        _, err = second.communicate(timeout=60)
        assert second.returncode == errors.EXIT_OUTPUT, err
        assert f"pid {holder.pid} on " in err, err
        began = time.monotonic()
        try:
            with checkpoint.own_workdir(name):
                raise AssertionError("two runs in one workdir")
        except errors.OutputError as error:
            told = str(error)
        seconds = time.monotonic() - began
        assert f"pid {holder.pid} on " in told
        assert seconds < 1
        assert holder.poll() is None  # undisturbed
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
        third = full.start(folder, 10**7)
        assert third.stdout is not None
        assert third.stdout.readline().startswith("begins ")
        third.kill()
        third.communicate()
    print(
        f"lock: the second run ended with {errors.EXIT_OUTPUT} and named the first "
        f"({seconds * 1000:.0f} ms); after SIGKILL of the first the next one began"
    )


if __name__ == "__main__":
    main()
