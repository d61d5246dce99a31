"""How bad input stops a command: one family of errors, one line, one exit code.

Every message says the file, the place in it, what was found, what was expected and
what to do. Commands run through `run_command`, which prints that line without a
traceback and exits with the code of the error (the sysexits numbers, so that a
supervisor knows whether a restart can help).
"""

import difflib
import os
import sys
from collections.abc import Callable, Iterable

EXIT_USAGE = 64
EXIT_BAD_DATA = 65
EXIT_MISSING_INPUT = 66
EXIT_OUTPUT = 73
EXIT_CONFIG = 78


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


class ConfigError(InputError):
    """A config key or flag is unknown, mistyped or out of range."""

    exit_code = EXIT_CONFIG


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


def run_command(main: Callable[[list[str]], int | None]) -> None:
    """Runs `main(argv)` under absl flags; input errors become one line and a code.

    Set UBRAIN_DEBUG=1 to see the traceback of an input error.
    """
    from absl import app, flags

    def parse_flags(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv, known_only=False)
        except flags.Error as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(EXIT_USAGE)
        except (AttributeError, KeyError) as error:  # a --config.x.y that is unknown
            text = " ".join(str(error).replace("\\n", " ").split()).strip("\"'")
            print(f"error: --config: unknown key {text}", file=sys.stderr)
            sys.exit(EXIT_CONFIG)

    def guarded(argv: list[str]) -> None:
        try:
            code = main(argv)
        except InputError as error:
            if os.environ.get("UBRAIN_DEBUG"):
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.exit_code)
        except BrokenPipeError:  # `| head` closed our standard output
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        sys.exit(code or 0)

    app.run(guarded, flags_parser=parse_flags)
