"""What one process can show of how several join, agree and end."""

import contextlib
import json
import os
import subprocess
import sys

import jax
import pytest

from ubrain_jax import cluster, compare, curves, errors, transfer

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
OMPI = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, ""),
        (SLURM, "Slurm"),
        ({**SLURM, "SLURM_NTASKS": "1"}, ""),
        # In a batch script, outside of srun, there is no step to join.
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, ""),
        (OMPI, "Open MPI"),
        ({**OMPI, "OMPI_COMM_WORLD_SIZE": "1"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "TPU"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),
    ],
)
def test_only_a_job_of_several_processes_is_a_cluster(environ, found):
    assert cluster.detect(environ) == found


def test_kubernetes_is_asked_where_its_package_is(monkeypatch):
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
    for package, found in ((None, ""), ("here", "Kubernetes")):
        monkeypatch.setattr("importlib.util.find_spec", lambda _, p=package: p)
        assert cluster.detect(environ) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("h:1", None, None), "without --num_processes, --process_id; expected all"),
        ((None, 2, 0), "without --coordinator; expected all three or none"),
        ((None, 2, None), "without --coordinator, --process_id"),
        (("h:1", 2, 2), r"--process_id=2 of 2 processes; expected 0\.\.1"),
        (("h:1", 2, -1), "--process_id=-1 of 2"),
        (("h:1", 0, 0), "--num_processes=0; expected 1 or more"),
        (("host", 2, 0), "--coordinator=host; expected HOST:PORT"),
        ((None, None, None, 0), "--join_seconds=0; expected 1 or more"),
    ],
)
def test_flags_that_do_not_name_one_of_several_are_refused(given, message):
    with pytest.raises(errors.ConfigError, match=message):
        cluster.start(*given)


@pytest.mark.parametrize("environ", [{}, {**SLURM, "SLURM_NTASKS": "1"}, SLURM])
def test_one_process_joins_nothing(monkeypatch, environ):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *a, **k: pytest.fail("joins")
    )
    several = environ.get("SLURM_NTASKS") == "2"
    cluster.start(num_processes=1 if several else None)
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize("command", [transfer, curves, compare])
def test_commands_of_one_process_say_so_in_a_cluster(monkeypatch, command):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(errors.ConfigError, match=r"one of several processes \(Slurm\)"):
        command.main([])


def test_alone_everything_is_agreed():
    assert cluster.is_first()
    assert cluster.gather("a") == ["a"]
    assert cluster.from_first(lambda: (1, 2)) == (1, 2)
    cluster.agree({"seed": 3})
    cluster.leave()
    with contextlib.ExitStack() as stack:
        cluster.first_enters(stack, contextlib.nullcontext())
    with pytest.raises(KeyError), cluster.ending_together():
        raise KeyError


@pytest.fixture
def three(monkeypatch):
    """This process as number 1 of three, of which the others say what is given."""

    def make(*others):
        def gather(text):
            return [text if o is None else o for o in (others[0], None, others[1])]

        monkeypatch.setattr(jax, "process_count", lambda: 3)
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        monkeypatch.setattr(cluster, "gather", gather)

    return make


def test_what_differs_is_named_with_its_processes(three):
    facts = {"train.seed": 0, "version of jax": "0.10.1"}
    three(json.dumps(facts), json.dumps(facts))
    cluster.agree(facts)
    with pytest.raises(errors.ConfigError) as caught:
        cluster.agree({"train.seed": 1, "more": None})
    text = str(caught.value)
    assert "train.seed is 0 on process 0, 2 and 1 on process 1" in text
    assert 'version of jax is "0.10.1" on process 0, 2 and null on process 1' in text
    assert "more is" not in text  # absent and None are one


def test_the_others_end_with_the_code_of_the_first(three):
    three("73", "0")
    entered = []
    with contextlib.ExitStack() as stack:

        @contextlib.contextmanager
        def lock():
            entered.append(1)
            yield

        with pytest.raises(cluster.RefusedError) as caught:
            cluster.first_enters(stack, lock())
    assert caught.value.exit_code == 73
    assert entered == []


def test_what_the_first_made_is_what_all_have(three):
    three('{"r": 0.25, "none": null}', "")
    found = cluster.from_first(lambda: pytest.fail("made on process 1"))
    assert found == {"r": 0.25, "none": None}


def chained(error, cause):
    error.__cause__ = cause
    return error


GLOO = jax.errors.JaxRuntimeError(
    "UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:35495"
)
MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (GLOO, 75, "another process of this run is gone (UNKNOWN: Gloo"),
        (chained(ValueError("save"), GLOO), 75, "another process of this run is gone"),
        (MEMORY, 70, "JaxRuntimeError: RESOURCE_EXHAUSTED"),
        (ValueError("a bug"), 70, "ValueError: a bug"),
        (errors.OutputError("w", "", "taken", "free", "Wait."), 73, "error: w: taken;"),
        (SystemExit(66), 66, ""),
    ],
)
def test_an_error_has_its_code_and_a_lost_peer_another(error, code, said):
    text, found = cluster.explain(error)
    assert found == code
    assert said in text
    if code == 75:
        assert "Traceback" not in text


def test_an_abort_of_the_runtime_says_to_start_again():
    code = (
        "import os\nfrom ubrain_jax import cluster\n"
        "cluster._abort_means_restart()\nos.abort()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=60, env={**os.environ, "XLA_FLAGS": ""}
    )
    assert done.returncode == errors.EXIT_RESTART
