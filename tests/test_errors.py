"""Errors: one line that says where and what to do, and an exit code, no traceback."""

import os
import pathlib
import subprocess
import sys

import pytest

from ubrain_jax import errors

CONFIG = """
from ubrain_jax import config

def get_config():
    c = config.default()
    c.data.crowd = ("{crowd}",)
    c.train.steps = {steps}
    return c
"""

# A command of few imports; what it does is the text that --then names.
COMMAND = """
import sys
from absl import flags
from ml_collections import config_flags
from ubrain_jax import config, errors

CONFIG = config_flags.DEFINE_config_file("config", None, "")
THEN = flags.DEFINE_string("then", "", "")
flags.DEFINE_bool("check", False, "")

def main(argv):
    then = THEN.value
    if then == "config":
        print(config.parse(CONFIG.value, "--config").train.steps)
    if then == "input":
        raise errors.InputError("a.mat", "trial 7", "value\\n-1", "1..3", "Mend it.")
    if then == "interrupt":
        raise KeyboardInterrupt
    if then == "bug":
        raise RuntimeError("a bug of ours")
    if then == "code":
        return 5
    if then == "print":
        for line in range(3):
            print("line", line)
    if then == "print much":
        for line in range(100_000):
            print("line", line)

errors.run_command(main, is_check=lambda: flags.FLAGS["check"].value)
"""


# Of a plain shell: one device, and output that waits in a buffer.
ENVIRONMENT = {
    key: value
    for key, value in os.environ.items()
    if key not in ("XLA_FLAGS", "PYTHONUNBUFFERED", "UBRAIN_DEBUG")
}


def run(*command, **changes):
    """Runs Python; (exit code, standard output, standard error)."""
    environment = ENVIRONMENT | changes
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    return done.returncode, done.stdout, done.stderr


def train(tmp_path, *flags):
    """Runs the training command on a config of its own, whose store is absent."""
    file = tmp_path / "c.py"
    file.write_text(CONFIG.format(crowd="absent.zarr", steps=3))
    module = ("-m", "ubrain_jax.main")
    return run(*module, f"--config={file}", f"--workdir={tmp_path / 'w'}", *flags)


def one_line(stderr: str) -> str:
    """The error line; nothing beside it."""
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    return lines[0]


# The messages


def test_a_message_says_file_place_found_expected_and_action():
    error = errors.InputError(
        pathlib.Path("x/expdesign.mat"),
        "masterordering",
        "value 10001",
        "1..10000",
        "Copy the file again.",
    )
    assert str(error) == (
        "x/expdesign.mat:masterordering: value 10001; expected 1..10000. "
        "Copy the file again."
    )
    assert str(errors.InputError("f", "", "a", "b", "C.")) == "f: a; expected b. C."


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.InputError, 65),
        (errors.MissingInputError, 66),
        (errors.OutputError, 73),
        (errors.ConfigError, 78),
    ],
)
def test_each_kind_has_its_exit_code_and_is_a_value_error(kind, code):
    error = kind("f", "", "a", "b", "C.")
    assert error.exit_code == code
    assert isinstance(error, errors.InputError)
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("name", "known", "sentence"),
    [
        ("V1V", ["V1v", "V2v"], "Did you mean V1v, V2v?"),
        ("v1", ["V1v", "V1d", "hV4"], "Did you mean V1v, V1d?"),
        ("zzz", ["a", "b"], "Known: a, b."),
        ("", ["a"], "Known: a."),
        ("subj9", ["subj01", "subj02"], "Did you mean subj02, subj01?"),
    ],
)
def test_the_nearest_names_are_given_as_they_are_spelt(name, known, sentence):
    assert errors.nearest(name, known) == sentence


# Any command


@pytest.mark.parametrize(
    ("then", "code", "message"),
    [
        ("input", 65, "a.mat:trial 7: value -1; expected 1..3. Mend it."),
        ("interrupt", 130, "interrupted"),
    ],
)
def test_a_command_stops_with_one_line_and_the_code(then, code, message):
    found, out, err = run("-c", COMMAND, f"--then={then}")
    assert (found, out, one_line(err)) == (code, "", f"error: {message}")


def test_a_check_tells_a_problem_on_standard_output():
    found, out, err = run("-c", COMMAND, "--then=input", "--check")
    message = "a.mat:trial 7: value -1; expected 1..3. Mend it."
    assert (found, out, err) == (65, f"PROBLEM: {message}\n", "")
    found, out, err = run("-c", COMMAND, "--then=interrupt", "--check")
    assert (found, out, one_line(err)) == (130, "", "error: interrupted")


def test_a_bug_of_ours_shows_its_traceback():
    code, _, err = run("-c", COMMAND, "--then=bug")
    assert code == 1
    assert "Traceback" in err
    assert "a bug of ours" in err


def test_the_traceback_of_an_input_error_shows_on_request():
    code, _, err = run("-c", COMMAND, "--then=input", UBRAIN_DEBUG="1")
    assert code == 1
    assert "Traceback" in err


def test_the_code_that_main_returns_is_the_exit_code():
    assert run("-c", COMMAND, "--then=code") == (5, "", "")
    assert run("-c", COMMAND) == (0, "", "")


@pytest.mark.parametrize("then", ["print", "print much", "input"])
def test_a_reader_that_closes_the_pipe_makes_no_traceback(then):
    """What is short is lost when Python exits, what is long while it prints."""
    command = [sys.executable, "-c", COMMAND, f"--then={then}", "--check"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as child:
        child.stdout.close()
        assert child.stderr.read() == ""
        assert child.wait(60) == 141


def test_an_unknown_flag_is_a_usage_error_with_the_nearest_name():
    code, _, err = run("-c", COMMAND, "--thn=x")
    assert code == 64
    assert "'thn'. Did you mean: then" in one_line(err)


# A config on the command line


def configure(tmp_path, *flags, steps="3"):
    """Parses a config of its own with a command of few imports."""
    file = tmp_path / "c.py"
    file.write_text(CONFIG.format(crowd="a.zarr", steps=steps))
    return run("-c", COMMAND, "--then=config", f"--config={file}", *flags)


def test_a_config_is_changed_by_the_command_line(tmp_path):
    assert configure(tmp_path) == (0, "3\n", "")
    assert configure(tmp_path, "--config.train.steps=7") == (0, "7\n", "")
    flags = ("--config.train.steps=0", "--config.train.epochs=2")
    assert configure(tmp_path, *flags) == (0, "None\n", "")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.trian.steps=3", "unknown key trian. Did you mean train?"),
        ("--config.train.zzz=3", "unknown key zzz"),
        ("--config.train.steps=abc", "flag --config.train.steps=abc: invalid literal"),
        ("--config.data.stripes=7", "data.voxels_per_image is 5000, not a multiple of"),
    ],
)
def test_a_bad_value_on_the_command_line_is_a_config_error(tmp_path, flag, message):
    code, out, err = configure(tmp_path, flag)
    assert (code, out) == (78, "")
    assert message in one_line(err)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("'3'", "TypeError: Could not override field 'steps'"),
        ("3\n    c.train.stepz = 3", "unknown key stepz. Did you mean steps?"),
        ("3\n    return None", "get_config: returns NoneType"),
    ],
)
def test_a_bad_config_file_is_a_config_error(tmp_path, steps, message):
    code, out, err = configure(tmp_path, steps=steps)
    assert (code, out) == (78, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize("more", [(), ("--config.train.steps=3",)])
def test_an_absent_config_file_is_missing_input(tmp_path, more):
    file = tmp_path / "no.py"
    code, _, err = run("-c", COMMAND, "--then=config", f"--config={file}", *more)
    assert code == 66
    assert str(file) in one_line(err)


# The training command


def test_an_unknown_key_on_the_command_line_has_the_nearest_name(tmp_path):
    code, out, err = train(tmp_path, "--config.train.stepz=3")
    assert (code, out) == (78, "")
    assert one_line(err) == ("error: --config: unknown key stepz. Did you mean steps?")
    assert not (tmp_path / "w").exists()


def test_an_absent_store_is_missing_input(tmp_path):
    code, _, err = train(tmp_path)
    assert code == 66
    assert "absent.zarr: not found" in one_line(err)
