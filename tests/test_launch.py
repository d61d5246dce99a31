"""The launchers: what they would run, and what they do with exit codes and signals.

There is no cluster here: srun, scontrol, gcloud and kubectl are stubs that note their
arguments and answer as told. Only local.sh starts real processes.
"""

import json
import os
import pathlib
import re
import shlex
import signal
import stat
import subprocess
import sys
import time

import pytest
import yaml

from ubrain_jax import errors

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = ["local.sh", "slurm.sbatch", "kubernetes.sh", "tpu_pod.sh"]
RUN = {"CONFIG": "configs/a b.py", "WORKDIR": "/d/my runs/x"}
POD = {
    "PROJECT": "p",
    "ZONE": "z",
    "TYPE": "v5litepod-32",
    "VERSION": "v2",
    "REPO": "https://example.org/u",
    "NFS": "10.0.0.2:/share",
    "MOUNT": "/d",
    "WAIT": "0",
}
JOB = {"IMAGE": "r/u:1", "DISK": "/d"}
MORE = '--config.data.crowd=/d/it\'s $(x) & "y".zarr'
SETTINGS = {"local.sh": RUN, "slurm.sbatch": RUN}
SETTINGS["kubernetes.sh"] = RUN | JOB
SETTINGS["tpu_pod.sh"] = RUN | POD

STUB = """#!{python}
import json, pathlib, sys
me = pathlib.Path(__file__)
with me.with_name("calls").open("a") as file:
    file.write(json.dumps([me.name, *sys.argv[1:]]) + "\\n")
answers = me.with_name(me.name + ".json")
plan = json.loads(answers.read_text())
for part, answer in plan.items():
    if part in " ".join(sys.argv):
        out, err, code = answer.pop(0) if len(answer) > 1 else answer[0]
        answers.write_text(json.dumps(plan))
        print(out, flush=True)
        print(err, file=sys.stderr, flush=True)
        sys.exit(code)
"""

# Stands in for ubrain_jax.main: attempt k of process i does PLAN[k][i].
PROCESS = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(os.environ["FOLDER"])
me = next(w.split("=")[1] for w in sys.argv if w.startswith("--process_id="))
attempt = len(list(folder.glob(f"*-{me}.json")))
note = folder / f"{attempt}-{me}.json"
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
signal.alarm(60)  # whatever happens to the test
keys = ("CUDA_VISIBLE_DEVICES", "XLA_FLAGS", "JAX_PLATFORMS")
note.write_text(json.dumps([sys.argv[1:], {k: os.environ.get(k) for k in keys}]))
what = json.loads(os.environ["PLAN"])[attempt][int(me)]
print("process", me, "attempt", attempt, flush=True)
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "wait":
    while not heard:
        time.sleep(0.02)
    time.sleep(0.7)  # as if it saved; a second signal would be counted
    (folder / f"signals-{me}").write_text(str(len(heard)))
    what = 75
sys.exit(what)
"""


def clean(**variables):
    """This environment without what a launcher reads, and with `variables`."""
    ours = r"SLURM|JAX|XLA|HF_|CUDA|" + "|".join(map(re.escape, SETTINGS["tpu_pod.sh"]))
    env = {k: v for k, v in os.environ.items() if not re.match(ours, k)}
    return env | variables


def start(script, *arguments, **variables):
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        env=clean(**variables),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def dry(script, *arguments, **variables):
    """The commands that a dry run prints, pasted into a shell, as lists of words."""
    result = start(script, "--dry_run", *arguments, **variables)
    assert result.returncode == 0, result.stderr
    note = '{ printf "%s\\0" "${FUNCNAME[0]}" "$@"; printf "\\0"; }; '
    paste = "".join(f"{name}() {note}" for name in ("env", "gcloud", "kubectl"))
    pasted = subprocess.run(
        ["bash", "-ec", paste + "\n" + result.stdout],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    return [words.split("\0") for words in pasted.stdout.split("\0\0")[:-1]]


@pytest.fixture
def stubs(tmp_path):
    """Programs on PATH; `stubs(name={part of the arguments: answers})`."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def make(**plans):
        for name, plan in plans.items():
            path = folder / name
            path.write_text(STUB.format(python=sys.executable))
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
            (folder / f"{name}.json").write_text(json.dumps(plan))
        return f"{folder}:{os.environ['PATH']}"

    def calls():
        path = folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    make.calls = calls
    return make


@pytest.fixture
def processes(tmp_path):
    """Settings of local.sh under which its processes follow a plan."""
    folder = tmp_path / "my notes"
    folder.mkdir()
    (folder / "process.py").write_text(PROCESS)
    python = folder / "python"
    real, stub = (shlex.quote(str(x)) for x in (sys.executable, folder / "process.py"))
    python.write_text(
        f'#!/bin/bash\n[ "$1" = -c ] && exec {real} "$@"\nexec {real} {stub} "$@"\n'
    )
    python.chmod(0o755)

    def make(plan):
        return {
            "CONFIG": "configs/demo.py",
            "WORKDIR": str(tmp_path / "my run"),
            "PYTHON": str(python),
            "FOLDER": str(folder),
            "PLAN": json.dumps(plan),
            "PROCESSES": str(len(plan[0])),
        }

    make.folder = folder
    return make


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_variable_that_the_launcher_reads(script):
    result = start(script, "--help")
    assert result.returncode == 0
    text = (LAUNCH / script).read_text()
    read = set(re.findall(r"\bneed(?:_folder|_number)? ([A-Z_]+)\b", text))
    assert {"CONFIG", "WORKDIR"} <= read
    assert read <= set(re.findall(r"[A-Z_]+", result.stdout))
    assert "SBATCH" not in result.stdout


ACTIONS = {"kubernetes.sh": ["start"], "tpu_pod.sh": ["resume"]}
NEEDED = {"local.sh": [*RUN], "slurm.sbatch": [*RUN]}
NEEDED["kubernetes.sh"] = [*RUN, "IMAGE"]
NEEDED["tpu_pod.sh"] = [*RUN, "PROJECT", "ZONE", "TYPE", "VERSION", "REPO", "NFS"]


@pytest.mark.parametrize(
    ("script", "name"), [(s, name) for s in SCRIPTS for name in NEEDED[s]]
)
def test_a_missing_variable_is_named_with_an_example(script, name):
    settings = {k: v for k, v in SETTINGS[script].items() if k != name}
    result = start(script, "--dry_run", *ACTIONS.get(script, []), **settings)
    assert result.returncode == 64
    assert re.fullmatch(
        rf"error: {name} is not set; for example: export {name}='.+'\n", result.stderr
    )
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("script", "changes", "arguments", "message"),
    [
        *((s, {"WORKDIR": "gs://b/x"}, [], "WORKDIR is gs://b/x") for s in SCRIPTS),
        ("local.sh", {"PROCESSES": "two"}, [], "PROCESSES is two"),
        ("local.sh", {"DEVICES_PER_PROCESS": "0"}, [], "DEVICES_PER_PROCESS is 0"),
        ("local.sh", {"CUDA_VISIBLE_DEVICES": "3"}, [], "expected 2 GPUs"),
        ("local.sh", {}, ["--restarts=-1"], "--restarts is -1"),
        ("slurm.sbatch", {"MAX_RESTARTS": "x"}, [], "MAX_RESTARTS is x"),
        ("kubernetes.sh", {"WORKDIR": "/elsewhere/x"}, [], "below DISK (/d)"),
        ("kubernetes.sh", {"NAME": "My_run"}, [], "NAME is My_run"),
        ("kubernetes.sh", {"IMAGE": "a b"}, [], "IMAGE is a b"),
        ("kubernetes.sh", {}, ["stop"], "two actions: start and stop"),
        ("tpu_pod.sh", {"WORKDIR": "/elsewhere/x"}, [], "below MOUNT (/d)"),
        ("tpu_pod.sh", {}, ["again"], "two actions: resume and again"),
    ],
)
def test_a_wrong_value_is_refused(script, changes, arguments, message):
    words = [*ACTIONS.get(script, []), *arguments]
    result = start(script, "--dry_run", *words, **SETTINGS[script] | changes)
    assert result.returncode == 64
    assert message in result.stderr
    assert result.stdout == ""


MAIN = ["-m", "ubrain_jax.main", *(f"--{k.lower()}={v}" for k, v in RUN.items())]


def test_local_would_give_each_process_a_gpu_or_cpu_devices():
    def joined(i):
        return [
            "--coordinator=127.0.0.1:PORT",
            "--num_processes=2",
            f"--process_id={i}",
        ]

    gpu = [
        ["env", f"CUDA_VISIBLE_DEVICES={i}", "python3", *MAIN, *joined(i), MORE]
        for i in (0, 1)
    ]
    assert dry("local.sh", MORE, **RUN) == gpu
    some = dry("local.sh", CUDA_VISIBLE_DEVICES="5,2,7", **RUN)
    assert [words[1] for words in some] == [f"CUDA_VISIBLE_DEVICES={i}" for i in (5, 2)]
    settings = {"DEVICES_PER_PROCESS": "2", "XLA_FLAGS": "--a --b", "PYTHON": "/v e/py"}
    flags = "XLA_FLAGS=--a --b --xla_force_host_platform_device_count=2"
    cpu = [
        ["env", "JAX_PLATFORMS=cpu", flags, "/v e/py", *MAIN, *joined(i), MORE]
        for i in (0, 1)
    ]
    assert dry("local.sh", MORE, **RUN, **settings) == cpu


def test_slurm_would_start_python_under_srun_and_look_for_nothing_online():
    settings = [
        "HF_HUB_OFFLINE=1",
        f"JAX_COMPILATION_CACHE_DIR={RUN['WORKDIR']}.compiled",
    ]
    srun = ["srun", "--gpu-bind=none", "--kill-on-bad-exit=0", "python3"]
    assert dry("slurm.sbatch", MORE, **RUN) == [["env", *settings, *srun, *MAIN, MORE]]
    given = {"HF_HUB_CACHE": "/h f", "HF_HUB_OFFLINE": "0", "SLURM_CPUS_PER_TASK": "8"}
    more = ["HF_HUB_CACHE=/h f", "SRUN_CPUS_PER_TASK=8"]
    asked = dry("slurm.sbatch", **given, **RUN)
    assert asked == [["env", "HF_HUB_OFFLINE=0", settings[1], *more, *srun, *MAIN]]


def test_slurm_asks_for_a_task_per_gpu_a_signal_to_the_tasks_and_requeuing():
    text = (LAUNCH / "slurm.sbatch").read_text()
    head = text[: text.index("\nset -e")]
    options = dict(
        (line.removeprefix("#SBATCH --") + "=").split("=")[:2]
        for line in head.splitlines()
        if line.startswith("#SBATCH")
    )
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["signal"] == "TERM@120"
    assert options["open-mode"] == "append"
    assert "requeue" in options
    # sbatch stops reading options at the first line that is no comment.
    assert all(line.startswith("#") for line in head.splitlines())


PLACE = ["--zone=z", "--project=p"]


def test_tpu_would_create_install_and_run_on_all_hosts():
    tpus = ["gcloud", "compute", "tpus"]
    result = dry("tpu_pod.sh", "resume", MORE, SPOT="1", REF="v1", **RUN, **POD)
    create, install, run = result
    kind = ["--accelerator-type=v5litepod-32", "--runtime-version=v2", "--spot"]
    named = ["queued-resources", "create", "ubrain", "--node-id=ubrain"]
    assert create == [*tpus, *named, *PLACE, *kind]
    ssh = [*tpus, "tpu-vm", "ssh", "ubrain", *PLACE, "--worker=all"]
    assert install[:-1] == run[:-1] == ssh
    remote = install[-1].removeprefix("--command=").splitlines()
    assert remote[0] == "set -e"
    assert "mountpoint -q /d || sudo mount -t nfs -o hard 10.0.0.2:/share /d" in remote
    assert "git -C ubrain_jax fetch -q origin v1" in remote
    there, command = run[-1].removeprefix("--command=").split(" && exec ", 1)
    assert there == "cd ubrain_jax"
    caches = ["HF_HUB_CACHE=/d/huggingface", "JAX_COMPILATION_CACHE_DIR=/d/compiled"]
    python = "../ubrain/bin/python"
    assert shlex.split(command) == ["env", *caches, python, *MAIN, MORE]
    delete = dry("tpu_pod.sh", "delete", **POD)
    assert delete == [
        [*tpus, "queued-resources", "delete", "ubrain", *PLACE, "--force", "--quiet"]
    ]


def test_tpu_fetches_all_but_checkpoints(stubs, tmp_path):
    """The command for the host runs here, in a folder with a space."""
    workdir, out = tmp_path / "a run", tmp_path / "to here"
    for name in ("checkpoints/7/x", "best/7/x", "encoder/encoder.json", "metrics.json"):
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        (workdir / name).write_text(name)
    settings = POD | {"CONFIG": "c", "WORKDIR": str(workdir), "MOUNT": str(tmp_path)}
    path = stubs(gcloud={})
    gcloud = tmp_path / "bin/gcloud"
    gcloud.write_text('#!/bin/bash\nlast=${!#}\nexec bash -c "${last#--command=}"\n')
    result = start("tpu_pod.sh", "fetch", OUT=str(out), PATH=path, **settings)
    assert result.returncode == 0, result.stderr
    files = {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()}
    assert files == {"encoder/encoder.json", "metrics.json"}


def rendered(*arguments, **settings):
    """The objects of a rendered run, and the command that reads them."""
    result = start("kubernetes.sh", "start", "--dry_run", *arguments, **settings)
    assert result.returncode == 0, result.stderr
    text, command = result.stdout.rstrip("\n").rsplit("\n", 1)
    return list(yaml.safe_load_all(text)), command


def test_kubernetes_would_apply_an_indexed_job_with_a_name_for_pod_0():
    settings = RUN | JOB | {"NAME": "mine", "PODS": "4", "GPUS": "2", "CLAIM": "disk"}
    (service, job), command = rendered(MORE, **settings, RESTARTS="5")
    assert command == "kubectl apply -f -"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"]) == ("Indexed", 4)
    assert (spec["parallelism"], spec["backoffLimit"]) == (4, 20)
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"] == "mine"
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 60
    (container,) = pod["containers"]
    assert container["command"] == ["python3", "-m", "ubrain_jax.main"]
    assert container["args"] == [
        "--coordinator=mine-0.mine:8476",
        "--num_processes=4",
        "--process_id=$(JOB_COMPLETION_INDEX)",
        "--join_seconds=1800",
        *MAIN[2:],
        MORE.replace("$(", "$$("),
    ]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert container["volumeMounts"] == [
        {"name": "disk", "mountPath": "/d"},
        {"name": "memory", "mountPath": "/dev/shm"},  # noqa: S108
    ]
    memory, volume = pod["volumes"]
    assert memory["emptyDir"] == {"medium": "Memory"}
    assert volume["persistentVolumeClaim"] == {"claimName": "disk"}
    environment = {e["name"]: e["value"] for e in container["env"]}
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_kubernetes_fails_a_job_at_any_code_that_a_restart_does_not_help():
    (_, job), _ = rendered(**RUN, **JOB)
    first, second = job["spec"]["podFailurePolicy"]["rules"]
    assert first["action"] == "Ignore"
    condition = {"type": "DisruptionTarget", "status": "True"}
    assert first["onPodConditions"] == [condition]
    assert second["action"] == "FailJob"
    codes = second["onExitCodes"]
    assert codes["operator"] == "NotIn"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert codes["containerName"] == container["name"]
    again = {code for code in range(1, 256) if code in codes["values"]}
    assert again == {75, 76, 128 + signal.SIGKILL, 128 + signal.SIGTERM}
    assert 0 not in codes["values"], "Kubernetes refuses 0 with NotIn"


def test_kubernetes_keeps_the_disk_apart_from_the_run(stubs):
    result = start("kubernetes.sh", "disk", "--dry_run", STORAGE_CLASS="nfs", CLAIM="d")
    assert result.returncode == 0, result.stderr
    claim = yaml.safe_load(result.stdout.rsplit("\n", 2)[0])
    assert claim["metadata"]["name"] == "d"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert claim["spec"]["storageClassName"] == "nfs"
    path = stubs(kubectl={"": [["", "", 0]]})
    assert start("kubernetes.sh", "delete", PATH=path).returncode == 0
    assert start("kubernetes.sh", "logs", PATH=path).returncode == 0
    pod = "job-name=ubrain,batch.kubernetes.io/job-completion-index=0"
    assert stubs.calls() == [
        ["kubectl", "delete", "job/ubrain", "service/ubrain"],
        ["kubectl", "logs", "--follow", "--selector", pod],
    ]


def test_every_flag_for_main_is_one_of_its_flags():
    (_, job), _ = rendered(**RUN, **JOB)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    remote = dry("tpu_pod.sh", "run", **RUN, **POD)[0][-1]
    commands = [
        *dry("local.sh", **RUN),
        *dry("slurm.sbatch", **RUN),
        [*container["command"], *container["args"]],
        shlex.split(remote),
    ]
    passed = set()
    for words in commands:
        after = words[words.index("ubrain_jax.main") + 1 :]
        passed |= {word.split("=")[0].removeprefix("--") for word in after}
    source = (ROOT / "ubrain_jax/main.py").read_text()
    known = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source))
    processes = {"coordinator", "num_processes", "process_id", "join_seconds"}
    assert passed == {"config", "workdir"} | processes
    assert passed - {"config"} <= known


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([], 0),
        ([0, 0], 0),
        ([0, 75], 75),
        ([75, 76], 75),
        ([75, 65, 75], 65),
        ([76, 78], 78),
        ([137, 75], 75),
        ([75, 137], 75),
        ([137, 0], 137),
        ([255, 75], 75),
        ([75, 130], 130),
        ([70, 66], 70),
    ],
)
def test_a_fault_comes_before_a_restart_and_a_restart_before_a_kill(codes, expected):
    line = f"source {shlex.quote(str(LAUNCH / 'common.sh'))}; outcome "
    result = subprocess.run(
        ["bash", "-c", line + " ".join(map(str, codes))],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert int(result.stdout) == expected


@pytest.mark.parametrize(
    ("srun", "restarts", "expected", "queued"),
    [
        (["", 0], 0, 0, False),
        (["", 75], 0, 75, True),
        (["", 76], 99, 76, True),
        (["", 75], 100, 75, False),
        (["", 70], 0, 70, False),
        (["", 137], 0, 137, False),
        # srun returns the highest code: that of the tasks that missed the failed one.
        (["srun: error: n1: task 3: Exited with exit code 65", 75], 0, 65, False),
        (["srun: error: n1: tasks 0-2: Exited with exit code 75", 137], 0, 75, True),
    ],
)
def test_slurm_queues_again_only_what_a_restart_helps(
    stubs, srun, restarts, expected, queued
):
    path = stubs(srun={"": [["step 1", *srun]]}, scontrol={"": [["", "", 0]]})
    slurm = {"SLURM_JOB_ID": "42", "SLURM_RESTART_COUNT": str(restarts)}
    slurm["SLURM_SUBMIT_DIR"] = str(ROOT)
    result = start("slurm.sbatch", MORE, PATH=path, **RUN, **slurm)
    assert result.returncode == expected
    options = ["--gpu-bind=none", "--kill-on-bad-exit=0", "python3"]
    calls = [["srun", *options, *MAIN, MORE]]
    assert stubs.calls() == calls + [["scontrol", "requeue", "42"]] * queued
    assert "step 1" in result.stdout
    assert srun[0] in result.stderr


def test_slurm_does_not_queue_again_what_slurm_is_ending(stubs, tmp_path):
    """SIGTERM to the batch script: scancel, or a preemption that requeues by itself."""
    path = stubs(srun={}, scontrol={"": [["", "", 0]]})
    (tmp_path / "bin/srun").write_text('#!/bin/bash\nkill -TERM "$BATCH"\nexit 75\n')
    script = f"export BATCH=$$; exec bash {shlex.quote(str(LAUNCH / 'slurm.sbatch'))}"
    result = subprocess.run(
        ["bash", "-c", script],
        env=clean(PATH=path, SLURM_JOB_ID="42", SLURM_SUBMIT_DIR=str(ROOT), **RUN),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 75
    assert "ended by Slurm" in result.stdout
    assert stubs.calls() == []


def test_slurm_says_where_to_submit_from(tmp_path):
    result = start("slurm.sbatch", SLURM_SUBMIT_DIR=str(tmp_path), **RUN)
    assert result.returncode == 66
    assert "submit the job from the repository" in result.stderr


READY, PREEMPTED = ["READY", "", 0], ["PREEMPTED", "", 0]
ABSENT = ["", "ERROR: (gcloud) NOT_FOUND: no such node", 1]


def host_ended(code):
    line = (
        "##### Command execution on worker {} failed with exit status {}. Continuing."
    )
    return line.format(3, code)


@pytest.mark.parametrize(
    ("states", "runs", "expected", "events"),
    [
        # There is none yet.
        ([ABSENT, READY], [["", "", 0]], 0, "delete create install run"),
        # Stopped by the watchdog, while the slice is there.
        ([READY], [["", "", 76], ["", "", 0]], 0, "install run run"),
        # Taken away: ssh breaks.
        (
            [READY, PREEMPTED, PREEMPTED, READY],
            [["", "", 255], ["", "", 0]],
            0,
            "install run delete create install run",
        ),
        # Host 3 failed; gcloud gives the code of host 0, which missed it.
        ([READY], [["", host_ended(65), 75]], 65, "install run"),
        ([READY], [["", "", 75]] * 4, 75, "install run run run"),
        # No answer is no reason to delete.
        ([["", "timeout", 1], READY], [["", "", 78]], 78, "install run"),
    ],
)
def test_tpu_resumes_what_a_restart_helps(stubs, states, runs, expected, events):
    path = stubs(
        gcloud={
            "tpu-vm describe": states,
            "queued-resources describe": [["ACTIVE", "", 0]],
            "queued-resources": [["", "", 0]],
            "nfs-common": [["", "", 0]],
            "ubrain_jax.main": runs,
        }
    )
    result = start("tpu_pod.sh", "resume", PATH=path, RESTARTS="2", **RUN, **POD)
    assert result.returncode == expected, result.stderr
    names = {"create": "create", "delete": "delete", "nfs-common": "install"}
    names["ubrain_jax.main"] = "run"
    found = []
    for call in map(" ".join, stubs.calls()):
        if "describe" not in call:
            found += [name for part, name in names.items() if part in call][:1]
    assert found == events.split()


@pytest.mark.parametrize(
    ("states", "steps"),
    [([["", "", 1], ["", "", 0]], 1), ([["", "", 0], ["", "", 1]], 2)],
)
def test_tpu_stops_when_the_slice_cannot_be_had(stubs, states, steps):
    """gcloud create fails; then, install fails."""
    path = stubs(
        gcloud={
            "tpu-vm describe": [ABSENT, READY],
            "delete": [["", "", 1]],
            "create": [states[0]],
            "nfs-common": [states[1]],
            "ubrain_jax.main": [["", "", 0]],
        }
    )
    result = start("tpu_pod.sh", "resume", PATH=path, **RUN, **POD)
    assert result.returncode == 1
    made = [c for c in stubs.calls() if "describe" not in c and "delete" not in c]
    assert len(made) == steps


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ([[0, 0]], 0),
        ([[75, 75]], 75),
        ([[75, 65]], 65),
        ([["kill", 75]], 75),
        # The other one would wait for it: it is told to end.
        ([[70, "wait"]], 70),
        ([["wait", "kill"]], 75),
        ([[78]], 78),
    ],
)
def test_local_returns_the_code_that_tells_most(processes, plan, expected):
    assert start("local.sh", **processes(plan)).returncode == expected


def test_local_tells_each_process_who_it_is_and_keeps_its_output(processes, tmp_path):
    settings = processes([[0, 0]])
    result = start("local.sh", MORE, DEVICES_PER_PROCESS="2", **settings)
    assert result.returncode == 0, result.stderr
    notes = [json.loads((processes.folder / f"0-{i}.json").read_text()) for i in (0, 1)]
    ports = set()
    for i, (words, environment) in enumerate(notes):
        flags = dict(word.removeprefix("--").split("=", 1) for word in words[2:])
        assert words[:2] == ["-m", "ubrain_jax.main"]
        assert flags["workdir"] == settings["WORKDIR"]
        assert flags["config.data.crowd"] == MORE.split("=", 1)[1]
        assert (flags["num_processes"], flags["process_id"]) == ("2", str(i))
        host, port = flags["coordinator"].split(":")
        assert host == "127.0.0.1"
        ports.add(int(port))
        assert environment["JAX_PLATFORMS"] == "cpu"
        assert environment["XLA_FLAGS"].endswith("device_count=2")
        log = tmp_path / f"my run.logs/process-{i}.log"
        assert log.read_text() == f"process {i} attempt 0\n"
    (port,) = ports
    assert 1024 <= port < 65536


@pytest.mark.parametrize(
    ("plan", "restarts", "expected", "attempts"),
    [
        ([[75, 75], [76, 75], [0, 0]], 5, 0, 3),
        ([[75, 75], [76, 75], [0, 0]], 1, 76, 2),
        ([[75, 75], [65, 75], [0, 0]], 5, 65, 2),
        ([[75, 75], [0, 0]], 0, 75, 1),
    ],
)
def test_local_starts_again_as_often_as_allowed(
    processes, tmp_path, plan, restarts, expected, attempts
):
    result = start("local.sh", f"--restarts={restarts}", **processes(plan))
    assert result.returncode == expected
    assert len(list(processes.folder.glob("*-1.json"))) == attempts
    log = (tmp_path / "my run.logs/process-1.log").read_text()
    assert log.count("attempt") == attempts


def started(settings, *arguments):
    """local.sh in a session of its own, not waited for."""
    # Tests that a shell started in the background ignore it, which a child inherits
    # and bash then cannot trap.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        ["bash", str(LAUNCH / "local.sh"), *arguments],
        env=clean(**settings),
        cwd=ROOT,
        start_new_session=True,
    )


def wait_until(condition, seconds, process):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("send", "number"), [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT)]
)
def test_local_passes_a_signal_on_once_and_does_not_start_again(
    processes, send, number, tmp_path
):
    """SIGTERM to the launcher alone; Ctrl-C to its whole process group."""
    launcher = started(processes([["wait", "wait"], [0, 0]]), "--restarts=3")
    logs = [tmp_path / f"my run.logs/process-{i}.log" for i in (0, 1)]
    try:
        wait_until(
            lambda: all(x.exists() and x.read_text() for x in logs), 20, launcher
        )
        send(launcher.pid, number)
        assert launcher.wait(20) == 75
    finally:
        if launcher.poll() is None:
            launcher.kill()
    for i in (0, 1):
        assert (processes.folder / f"signals-{i}").read_text() == "1"
    assert len(list(processes.folder.glob("*-0.json"))) == 1


@pytest.mark.slow
def test_local_trains_with_two_processes_stops_at_sigterm_and_goes_on(
    tmp_path, tiny_dict
):
    """The real command: 2 processes of 2 CPU devices on localhost."""
    settings = {
        "CONFIG": str(ROOT / "configs/demo.py"),
        "WORKDIR": str(tmp_path / "my run"),
        "PYTHON": sys.executable,
        "DEVICES_PER_PROCESS": "2",
        "JAX_COMPILATION_CACHE_DIR": os.environ["JAX_COMPILATION_CACHE_DIR"],
    }
    sections = tiny_dict(
        train={"steps": 5000, "log_every_steps": 1, "checkpoint_every_steps": 5000},
        optim={"warmup_steps": 0, "schedule": "constant"},
    )
    del sections["mesh"]
    flags = [
        f"--config.{section}.{key}={value[0] if key == 'crowd' else value}"
        for section, values in sections.items()
        for key, value in values.items()
    ]
    log = pathlib.Path(settings["WORKDIR"]) / "metrics.jsonl"
    first = tmp_path / "my run.logs/process-0.log"
    launcher = started(settings, *flags)
    try:
        wait_until(
            lambda: log.exists() and log.read_text().count("\n") > 3, 300, launcher
        )
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(60) == 75, first.read_text()
    finally:
        if launcher.poll() is None:
            launcher.terminate()
            launcher.wait(60)
    saved = log.read_text().count("\n")
    assert saved < 5000
    again = subprocess.run(
        [
            "bash",
            str(LAUNCH / "local.sh"),
            *flags,
            f"--config.train.steps={saved + 3}",
        ],
        env=clean(**settings),
        cwd=ROOT,
        timeout=400,
    )
    text = first.read_text()
    assert again.returncode == 0, text
    # No checkpoint was due: the signal made it.
    assert f"resuming at step {saved}" in text
    mesh = re.search(r"mesh \{'data': (\d+), 'voxel': (\d+)\}", text)
    assert mesh
    assert int(mesh[1]) * int(mesh[2]) == 4
    assert (log.parent / "metrics.json").exists()


def test_the_page_names_every_launcher_and_every_exit_code():
    page = (ROOT / "docs/launch.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`launch/([\w.]+)`", page)) == set(SCRIPTS)
    rows = re.findall(r"^\| ([\d, ]+) \| .* \| (.+) \|$", page, re.MULTILINE)
    does = {int(code): what for codes, what in rows for code in codes.split(",")}
    codes = {v for k, v in vars(errors).items() if k.startswith("EXIT_")}
    assert codes <= set(does)
    again = {code for code, what in does.items() if what == "starts again"}
    assert again == {75, 76}
