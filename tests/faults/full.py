"""A disk that is full, or refuses a large file, in the middle of a run.

    python -m tests.faults.full

The run must end at the save that failed, with exit code 74 and the bytes, and the last
whole step must load. A small tmpfs is used where it can be mounted (root), and a limit
on the size of a file anywhere.
"""

import contextlib
import pathlib
import re
import resource
import subprocess
import sys
import tempfile

from tests.faults import kill, tiny_run
from ubrain_jax import errors

EVERY, KILOBYTES = 5, 2048


def start(folder: pathlib.Path, steps: int, limit: int | None = None):
    """The saver, in a process that may write no file above a size."""

    def bound() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "tests.faults.saver", str(folder)]
    command += map(str, (steps, EVERY, KILOBYTES))
    return subprocess.Popen(
        command,
        env=kill.ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=bound,
    )


def ended(
    process: subprocess.Popen,
    folder: pathlib.Path,
    before: int,
    filler: pathlib.Path | None = None,
) -> str:
    """Checks how it ended, and that a step before is whole; what it did.

    Args:
        process: The saver.
        folder: Its workdir.
        before: A step that it had saved before.
        filler: What to delete, so that the run can go on.
    """
    out, err = process.communicate(timeout=120)
    assert process.returncode == errors.EXIT_IO, (process.returncode, err)
    line = [x for x in err.splitlines() if x.startswith("error:")][-1]
    assert re.search(r"[\d,]+ bytes free", line), line
    newest = kill.whole_steps(folder / "checkpoints")[-1]
    assert newest >= before
    failed = re.search(r"checkpoints(?::step (\d+))?: ", line)
    assert failed, line
    done = [int(x.split()[1]) for x in out.splitlines() if x.startswith("step ")]
    # It is the next save that failed, and the run went on for no other one.
    assert int(failed[1] or newest + EVERY) == newest + EVERY, line
    assert max(done, default=0) <= newest + 2 * EVERY, line
    if filler:
        filler.unlink()
    again = start(folder, newest + 1)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert out.startswith(f"begins {newest}\n"), out
    return f"exit {errors.EXIT_IO} at the save after step {newest}, which is good"


def with_limit(folder: pathlib.Path) -> str:
    """A run goes on under a limit on the size of a file, as quotas have it."""
    first = start(folder, 10)
    first.communicate(timeout=120)
    return ended(start(folder, 1000, 1 << 20), folder, 10)


def on_small_disk(folder: pathlib.Path) -> str:
    """Something else fills the disk while the run is saving."""
    process = start(folder, 10**6)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("save 20"):
            break
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    return ended(process, folder, 10, filler)


def before_the_start(folder: pathlib.Path) -> str:
    """The real command on a disk that cannot hold its checkpoints."""
    with tempfile.TemporaryDirectory() as name:
        config = tiny_run.write(pathlib.Path(name), steps=5, save_every=5)
        command = [sys.executable, "-m", "ubrain_jax.main", f"--config={config}"]
        command += [f"--workdir={folder / 'run'}"]
        result = subprocess.run(
            command, env=kill.ENV, capture_output=True, text=True, timeout=120
        )
    assert result.returncode == errors.EXIT_IO, result.stderr
    assert "compiling" not in result.stdout
    assert "train.keep_checkpoints" in result.stderr
    return f"exit {errors.EXIT_IO} before anything was compiled"


def main() -> None:
    """Fills disks, and prints what the runs did."""
    with tempfile.TemporaryDirectory() as name:
        print(f"full: limit on the size of a file: {with_limit(pathlib.Path(name))}")
    with tempfile.TemporaryDirectory() as name:
        for size, what in (("24m", on_small_disk), ("1m", before_the_start)):
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", name]
            if subprocess.run(mount, capture_output=True).returncode:
                print("full: a small disk: not tried (needs root to mount one)")
                continue
            try:
                print(f"full: a disk of {size}: {what(pathlib.Path(name))}")
            finally:
                subprocess.run(["umount", name], check=True)


if __name__ == "__main__":
    main()
