"""How bad input stops a command: one family of errors, one line, one exit code.

Every message says the file, the place in it, what was found, what was expected and
what to do. Commands run through `run_command`, which prints that line without a
traceback and exits with the code of the error (the sysexits numbers, so that a
supervisor knows whether a restart can help).
"""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

EXIT_USAGE = 64
EXIT_BAD_DATA = 65
EXIT_MISSING_INPUT = 66
EXIT_INTERNAL = 70
EXIT_OUTPUT = 73
EXIT_IO = 74
EXIT_RESTART = 75  # saved, or a peer is gone: the same command goes on
EXIT_WATCHDOG = 76  # stuck: the same
EXIT_CONFIG = 78
EXIT_INTERRUPT = 130
EXIT_PIPE = 141


class InputError(ValueError):
    """Something the user gave cannot be used.

    Args:
        file: File, folder, flag or config key at fault.
        where: Place inside it (dataset, line, trial); may be empty.
        found: What is there, with names and numbers.
        expected: What should be there.
        action: What the user can do about it, a full sentence.
    """

    exit_code = EXIT_BAD_DATA

    def __init__(
        self,
        file: str | os.PathLike,
        where: str,
        found: str,
        expected: str,
        action: str,
    ):
        place = f"{os.fspath(file)}:{where}" if where else os.fspath(file)
        super().__init__(f"{place}: {found}; expected {expected}. {action}")


class MissingInputError(InputError):
    """A file or folder that is needed is absent."""

    exit_code = EXIT_MISSING_INPUT


class OutputError(InputError):
    """The output cannot be created."""

    exit_code = EXIT_OUTPUT


class DiskError(InputError):
    """The disk is full, or what was being written cannot be."""

    exit_code = EXIT_IO


class ConfigError(InputError):
    """A config key or flag is unknown, mistyped or out of range."""

    exit_code = EXIT_CONFIG


class NonFiniteLossError(RuntimeError):
    """The loss or a weight is NaN or infinite; what was saved before stays."""

    exit_code = EXIT_INTERNAL


def nearest(name: str, known: Iterable[str]) -> str:
    """Sentence that names the closest known names, or all of them.

    Example:
        >>> nearest("lerning_rate", ["learning_rate", "steps"])
        'Did you mean learning_rate?'
        >>> nearest("x", ["V1v", "V2v"])
        'Known: V1v, V2v.'
    """
    known = list(known)
    lowered = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)
    if not close:  # 'v1' should find V1v and V1d
        close = [k for k in lowered if name and k.startswith(name.lower())][:6]
    if close:
        return f"Did you mean {', '.join(lowered[k] for k in close)}?"
    return f"Known: {', '.join(known)}."


def check_flags(argv: list[str], *needed: Any) -> None:
    """Refuses words without -- and absent flags.

    Args:
        argv: What `run_command` passes on.
        needed: Holders of absl flags that must have a value.

    Raises:
        ConfigError: Naming a word without --, or all flags that are absent.
    """
    if len(argv) > 1:
        raise ConfigError(
            argv[1], "", "an argument without --", "flags only", "Write --flag=value."
        )
    absent = [f"--{flag.name}" for flag in needed if not flag.value]
    if absent:
        raise ConfigError(
            ", ".join(absent),
            "",
            "not given",
            "a value" if len(absent) == 1 else "a value for each",
            f"Pass {' '.join(f'{flag}=...' for flag in absent)}",
        )


def run_command(
    main: Callable[[list[str]], int | None], is_check: Callable[[], bool] = bool
) -> None:
    """Runs `main(argv)` under absl flags; input errors become one line and a code.

    Set UBRAIN_DEBUG=1 to see the traceback of an input error.

    Args:
        main: Called with what absl leaves of the command line.
        is_check: Whether the command was asked for a verdict on its input. Then the
            line is the last of standard output and starts with "PROBLEM: "; else it
            is on standard error and starts with "error: ". Also asked where flags
            cannot be parsed.
    """
    from absl import app, flags, logging

    def stop(message: str, code: int) -> None:
        text = " ".join(message.split())
        if is_check():
            try:
                print(f"PROBLEM: {text}", flush=True)
            except BrokenPipeError:
                drop_output()
        else:
            print(f"error: {text}", file=sys.stderr)
        sys.exit(code)

    def drop_output() -> None:
        # `| head` closed our standard output; Python would complain of it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_PIPE)

    def parse_flags(argv: list[str]) -> list[str]:
        argv = [part for word in argv for part in repeated(word)]
        try:
            rest = flags.FLAGS(argv, known_only=False)
            for name in flags.FLAGS:  # an absent config file shows when it is used
                hasattr(flags.FLAGS[name].value, "is_locked")
        except flags.Error as error:
            text = _without_traceback(str(error))
            config = text.startswith("flag --config")
            stop(text, EXIT_CONFIG if config else EXIT_USAGE)
        except OSError as error:
            text = str(error).strip().splitlines()[-1]
            stop(f"--config: {text}", EXIT_MISSING_INPUT)
        except (AttributeError, KeyError) as error:  # a --config.x.y that is unknown
            text = str(error).strip("\"'")
            close = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
            if close:
                text = f"unknown key {close[2]}. Did you mean {close[1]}?"
            elif text.isidentifier():
                text = f"unknown key {text}"
            stop(f"--config: {text}", EXIT_CONFIG)
        return rest

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells every save
        try:
            code = main(argv)
            sys.stdout.flush()  # here, where a closed pipe can be caught
        except (InputError, NonFiniteLossError) as error:
            if os.environ.get("UBRAIN_DEBUG"):
                raise
            stop(str(error), error.exit_code)
        except BrokenPipeError:
            drop_output()
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            sys.exit(EXIT_INTERRUPT)
        sys.exit(code or 0)

    app.run(guarded, flags_parser=parse_flags)


def repeated(word: str) -> list[str]:
    """`--config.x=/a,/b` as one flag for each path: ml_collections takes no such list.

    Example:
        >>> repeated("--config.data.crowd=/d/nsd.zarr,/d/god.zarr")
        ['--config.data.crowd=/d/nsd.zarr', '--config.data.crowd=/d/god.zarr']
        >>> repeated("--config.backbone.taps=(1,2)")
        ['--config.backbone.taps=(1,2)']
    """
    found = re.fullmatch(r"(--config\.[\w.]+=)([^'\"(\[]*/[^'\"(\[]*)", word)
    if not found:
        return [word]
    return [found[1] + part.strip() for part in found[2].split(",") if part.strip()]


def _without_traceback(text: str) -> str:
    """First and last line of a message that holds a traceback."""
    if "Traceback (most recent call last)" not in text or os.environ.get(
        "UBRAIN_DEBUG"
    ):
        return text
    lines = [line for line in text.splitlines() if line.strip()]
    return f"{lines[0]} {lines[-1]}"
