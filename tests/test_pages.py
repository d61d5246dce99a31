"""Every Python block of every page runs, in the order of its page.

The blocks of a page are one program, in a folder that has what `make demo` leaves (in
small), and the encoders and subjects that pages speak of. A ```text block right after
a Python block is what that block prints, exactly. Of shell commands (fences without a
word) every flag must be known to its command; ```console is a run's output, which
differs from machine to machine, ```pycon a doctest, which pytest runs where it stands.
"""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from tests import prepared
from ubrain_jax import config, evaluate, experiments, export, train
from ubrain_jax.datasets import simulated, simulated_god
from ubrain_jax.model import bundle

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
# Pages whose blocks need files of their own, and the tests that run them.
ELSEWHERE = {
    "own_data.md": "test_own_data_page.py",
    "predict.md": "test_predict.py",
    "similar.md": "test_similar.py",
}
FENCES = {"", "console", "csv", "pycon", "python", "text"}


def blocks_of(page: pathlib.Path) -> list[tuple[str, str]]:
    """(word behind the fence, text) of each block of a page."""
    return re.findall(r"```(\w*)\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def python_pages() -> list[pathlib.Path]:
    found = [p for p in PAGES if any(k == "python" for k, _ in blocks_of(p))]
    return [p for p in found if p.name not in ELSEWHERE]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What `make demo` leaves, with small pictures, few voxels and hardly trained."""
    root = tmp_path_factory.mktemp("pages")
    folder = root / "demo"
    sizes = {"num_shared": 12, "num_own": 28, "trials_per_session": 40}
    simulated.write(folder / "nsd", num_subjects=2, num_voxels=40, image_px=56, **sizes)
    store = folder / "nsd.zarr"
    source = f"--source={folder / 'nsd'}"
    prepared.run(
        *("--dataset=nsd", source, "--space=func1pt8mm", "--image_px=56"),
        f"--out={store}",
    )
    spec = importlib.util.spec_from_file_location("demo", ROOT / "configs/demo.py")
    file = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(file)
    given = file.get_config()
    given.data.crowd = (str(store),)
    given.data.voxels_per_image = 80
    given.data.batch_images, given.backbone.image_px = 8, 56
    given.train.steps, given.train.eval_every_steps, given.optim.warmup_steps = 4, 0, 0
    run = experiments.prepare_run(config.parse(given, "demo.py"), jax.devices()[:1])
    state = train.train(run, str(folder / "run"))
    result = evaluate.evaluate(run, state.params, str(folder / "run"), 4)
    export.write(run, folder / "run", result)
    return root


@pytest.fixture(scope="module")
def person(demo):
    """The store of a simulated person that the encoder has never seen."""
    sizes = {"num_train": 16, "num_test": 4, "num_voxels": 40, "image_px": 112}
    simulated_god.write(demo / "god", num_subjects=1, seed=7, **sizes)
    prepared.run(
        *("--dataset=god", f"--source={demo / 'god'}", "--image_px=56"),
        *(f"--images={demo / 'god/images'}", "--val_fraction=0.1"),
        f"--out={demo / 'new.zarr'}",
    )


@pytest.fixture(scope="module")
def surface(demo, person):
    """An encoder whose subject's voxels are vertices of fsaverage."""
    found = bundle.read(demo / "demo/run/encoder")
    subject = found.subjects[0]
    count = len(subject.embedding)
    position = np.full((count, 3), -1, np.int32)
    position[:, 0] = np.arange(count) % 2
    position[:, 1] = np.arange(count) // 2 * 7
    attrs = {"dataset": "nsd", "space": "fsaverage", "simulated": True}
    moved = subject._replace(position=position, attrs=attrs)
    whole = found._replace(subjects=(moved, *found.subjects[1:]))
    bundle.write(demo / "runs/nsd8/encoder", whole)
    return demo


@pytest.fixture
def place(surface, tmp_path):
    """A folder of its own for a page, with links to what there is."""
    for name in ("demo", "runs"):
        (tmp_path / name).symlink_to(surface / name)
    (tmp_path / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 60, 70, 3), np.uint8)
    for k, picture in enumerate(noise):
        Image.fromarray(picture).save(tmp_path / f"pictures/{k}.png")
    # What `score --write_pictures` leaves, and somebody's model (baselines.md).
    (tmp_path / "theirs/pictures").mkdir(parents=True)
    np.save(tmp_path / "theirs/pictures/images.npy", np.stack([*noise]))
    (tmp_path / "theirs/pictures/ids.txt").write_text("nsd/00000\nnsd/00001\n")
    model = "def my_model(image):\n    return image.mean((0, 1))\n"
    (tmp_path / "mine.py").write_text(model)
    (tmp_path / "new.zarr").symlink_to(surface / "new.zarr")
    (tmp_path / "nsd.zarr").symlink_to(surface / "demo/nsd.zarr")
    return tmp_path


def run_python(code: str, folder: pathlib.Path) -> str:
    """What a program prints; it must end well and complain of nothing."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={
            **{k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
            "PYTHONPATH": str(ROOT),
            "MPLBACKEND": "Agg",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = [x for x in done.stderr.splitlines() if "cpu_aot_loader" not in x]  # XLA
    assert (done.returncode, said) == (0, []), done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=() if p.name == "README.md" else pytest.mark.slow)
        for p in python_pages()
    ],
    ids=lambda p: p.name,
)
def test_the_python_of_a_page_runs_and_prints_what_the_page_shows(page, place):
    mark, code, shown = "\x00", "", []
    blocks = blocks_of(page)
    for k, (kind, text) in enumerate(blocks):
        if kind == "python":
            code += f"{text}\nprint({mark!r}, end='', flush=True)\n"
            follows = blocks[k + 1] if k + 1 < len(blocks) else ("", "")
            shown.append(follows[1] if follows[0] == "text" else None)
    printed = run_python(code, place).split(mark)[:-1]
    assert len(printed) == len(shown) > 0
    for found, expected in zip(printed, shown, strict=True):
        assert expected in (None, found)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_is_of_a_kind_that_the_tests_know(page):
    assert {kind for kind, _ in blocks_of(page)} <= FENCES
    assert page.read_text(encoding="utf-8").count("```") == 2 * len(blocks_of(page))
    if page.name in ELSEWHERE:
        text = (ROOT / "tests" / ELSEWHERE[page.name]).read_text(encoding="utf-8")
        assert f"docs/{page.name}" in text


def flags_by_command() -> dict[str, set[str]]:
    """Names of the flags that the pages give to each command."""
    found: dict[str, set[str]] = {}
    for page in PAGES:
        for kind, text in blocks_of(page):
            for line in text.replace("\\\n", " ").splitlines() if kind == "" else ():
                if match := re.match(r"python -m ubrain_jax\.(\w+)(.*)", line):
                    names = re.findall(r"--(\w+)", match[2])
                    found.setdefault(match[1], set()).update(names)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(flags_by_command()))
def test_commands_know_the_flags_that_pages_give_them(command):
    done = subprocess.run(
        [sys.executable, "-m", f"ubrain_jax.{command}", "--helpfull"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    known = set(re.findall(r"^ +--(?:\[no\])?(\w+)", done.stdout, re.MULTILINE))
    assert flags_by_command()[command] - known == set()
