"""The command that turns a dataset as distributed into a store."""

import inspect
import subprocess
import sys

import h5py
import numpy as np
import pytest

from tests import nsd_files, prepared
from tests import test_algonauts as algonauts_files
from tests import test_released as released_files
from ubrain_jax import batches, config, crowd, errors, prepare
from ubrain_jax.datasets import (
    algonauts,
    nsd,
    pictures,
    released,
    vim1,
)

VOLUME = ("--dataset=nsd", "--space=func1pt8mm", "--image_px=28")


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return nsd_files.write(tmp_path_factory.mktemp("nsd") / "nsd", surface=True)


# Every dataset, to the store and back


def test_nsd_volumes(truth, tmp_path):
    out = tmp_path / "nsd.zarr"
    printed = prepared.run(*VOLUME, f"--source={truth.root}", f"--out={out}")
    opened = prepared.assert_holds(
        out, nsd.open_dataset(truth.root, space="func1pt8mm")
    )
    # And what was planted, by loops that share no code with the reader.
    first = opened.subjects[0]
    x, y, z = np.nonzero(truth.rois[1, "nsdgeneral"] == 1)
    sessions = [truth.betas[1, s][:, x, y, z] for s in (1, 2, 3)]
    order = truth.lists[0, truth.order - 1] - 1
    values, _ = nsd_files.expected_responses(sessions, order.reshape(3, -1))
    stored = crowd.read_responses(first, np.arange(len(values)))
    for row, image in enumerate(first.image):
        number = int(opened.image_id[image].removeprefix("nsd/"))
        np.testing.assert_allclose(stored[row], values[number], atol=1e-6)
        picture = crowd.read_pictures(opened, np.array([image]))[0]
        expected = pictures.fit(truth.bricks[number], 28)
        np.testing.assert_array_equal(picture, expected)
    assert f"wrote {out}: {len(opened.image_id)} pictures" in printed
    assert f"nsd-subj01: {len(x)} voxels, " in printed
    for line in opened.attrs[0]["report"]:
        assert line in printed


def test_nsd_surfaces_with_what_the_flags_choose(truth, tmp_path):
    out = tmp_path / "nsd.zarr"
    prepared.run(
        "--dataset=nsd",
        f"--source={truth.root}",
        f"--out={out}",
        "--subjects=subj02",
        "--sessions=1,2",
        "--val_fraction=0.4",
        "--seed=3",
        "--image_px=42",
    )
    dataset = nsd.open_dataset(
        truth.root,
        space="fsaverage",
        subjects=("subj02",),
        sessions=(1, 2),
        val_fraction=0.4,
        seed=3,
    )
    opened = prepared.assert_holds(out, dataset, image_px=42)
    assert (opened.subjects[0].split == "val").sum() > 0


def test_nsd_pictures_from_elsewhere(truth, tmp_path):
    brick = tmp_path / "stimuli.hdf5"
    nsd_files.write_hdf5(brick, "imgBrick", 255 - truth.bricks)
    out = tmp_path / "nsd.zarr"
    prepared.run(*VOLUME, f"--source={truth.root}", f"--out={out}", f"--images={brick}")
    opened = crowd.open_crowd((str(out),))
    number = int(opened.image_id[0].removeprefix("nsd/"))
    np.testing.assert_array_equal(
        crowd.read_pictures(opened, np.array([0]))[0],
        pictures.fit(255 - truth.bricks[number], 28),
    )


@pytest.mark.parametrize("shares", [{}, {"test_fraction": 0.4, "val_fraction": 0.3}])
def test_algonauts(tmp_path, shares):
    source, out = tmp_path / "algonauts", tmp_path / "a.zarr"
    for number in (1, 2):
        train = [*range(0, 40), *range(100 * number, 100 * number + 20)]
        algonauts_files.write_subject(
            source, f"subj0{number}", train, [900, 901], seed=number
        )
    named = ("--dataset=algonauts", f"--source={source}", f"--out={out}")
    given = (*named, "--image_px=28", *prepared.as_flags(shares))
    assert prepared.run(*given, "--check").endswith("\nALL GOOD\n")
    prepared.run(*given)
    dataset = algonauts.open_dataset(source, **shares)
    tested = prepared.assert_holds(out, dataset).subjects[0].samples("test")
    assert len(tested) > (10 if shares else 0)


@pytest.mark.parametrize("share", [None, 0.3])
def test_released_takes_the_files_validation_rows_unless_told(tmp_path, share):
    arrays = released_files.make(0)
    source, out = released_files.write(tmp_path, arrays), tmp_path / "r.zarr"
    given = [] if share is None else [f"--val_fraction={share}"]
    named = ("--dataset=released", f"--source={source}", f"--out={out}")
    checked = prepared.run(*named, "--image_px=28", *given, "--check")
    assert checked.endswith("\nALL GOOD\n")
    prepared.run(*named, "--image_px=28", *given)
    opened = prepared.assert_holds(
        out, released.open_dataset(source, val_fraction=share)
    )
    val = {
        opened.image_id[row]
        for s in opened.subjects
        for row in s.image[s.samples("val")]
    }
    rows = {f"nsd/{i:05d}" for i in arrays["val_global_ind"]}
    assert (val == rows) == (share is None)


def test_a_prepared_store_gives_batches(truth, tmp_path):
    out = tmp_path / "nsd.zarr"
    prepared.run(*VOLUME, f"--source={truth.root}", f"--out={out}")
    stores = crowd.open_crowd((str(out),))
    settings = config.Data(batch_images=4, voxels_per_image=16, stripes=4)
    batch = batches.dataset(stores, settings, 0)[0]
    assert batch.weight.all()
    assert np.isfinite(batch.response).all()


# --check


def test_check_reads_everything_and_writes_nothing(truth, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = prepared.run(
        *VOLUME, f"--source={truth.root}", "--check", "--out=nsd.zarr"
    )
    assert list(tmp_path.iterdir()) == []
    count = len({i for s in nsd.open_dataset(truth.root).subjects for i in s.image_id})
    assert printed.endswith(f"{count} pictures; nothing was written\nALL GOOD\n")
    for name in ("nsd-subj01", "nsd-subj02"):
        assert f"{name}: " in printed


def test_check_needs_no_output(truth):
    prepared.run(*VOLUME, f"--source={truth.root}", "--check")


def twin(truth, tmp_path):
    """A copy in which a picture of the test split is shown again under another id."""
    broken = nsd_files.copy(truth, tmp_path / "broken")
    test, train = truth.lists[0, 0] - 1, truth.lists[0, -1] - 1
    with h5py.File(nsd_files.brick_path(broken.root), "r+") as file:
        file["imgBrick"][train] = file["imgBrick"][test]
    return broken.root, f"nsd/{test:05d}", f"nsd/{train:05d}"


@pytest.mark.parametrize("mode", ["--check", "--out"])
def test_check_finds_what_writing_would_refuse(truth, tmp_path, mode):
    source, test, train = twin(truth, tmp_path)
    out = tmp_path / "nsd.zarr"
    mode = f"--out={out}" if mode == "--out" else mode
    with pytest.raises(errors.InputError, match="train and test") as caught:
        prepared.run(*VOLUME, f"--source={source}", mode)
    assert {test, train} <= set(str(caught.value).replace(";", " ").split())
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


# What is refused


def test_an_output_that_exists_is_refused_before_the_source_is_read(store, monkeypatch):
    monkeypatch.setattr(nsd, "open_dataset", None)
    with pytest.raises(errors.OutputError, match="exists") as caught:
        prepared.run("--dataset=nsd", "--source=absent", f"--out={store}")
    assert caught.value.exit_code == 73


def test_overwrite_replaces_a_store_and_nothing_else(truth, tmp_path):
    out = tmp_path / "nsd.zarr"
    given = (*VOLUME, f"--source={truth.root}", f"--out={out}")
    prepared.run(*given)
    prepared.run(*given, "--overwrite", "--subjects=subj02")
    names = [s.name for s in crowd.open_crowd((str(out),)).subjects]
    assert names == ["nsd-subj02"]
    assert [p.name for p in tmp_path.iterdir()] == ["nsd.zarr"]
    with pytest.raises(errors.OutputError, match="is no store"):
        prepared.run(
            *VOLUME, f"--source={truth.root}", f"--out={truth.root}", "--overwrite"
        )
    assert nsd_files.brick_path(truth.root).exists()


def test_an_absent_source_leaves_nothing(tmp_path):
    with pytest.raises(errors.MissingInputError) as caught:
        prepared.run(
            *VOLUME, f"--source={tmp_path / 'no'}", f"--out={tmp_path / 'o.zarr'}"
        )
    assert str(tmp_path / "no") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_damage_found_while_reading_leaves_nothing(truth, tmp_path):
    broken = nsd_files.copy(truth, tmp_path / "broken")
    folder = nsd_files.betas_folder(broken.root, 2)
    file = folder / "betas_session02.hdf5"
    nsd_files.write_volume_betas(folder, 2, truth.betas[2, 1])  # session 1 once more
    out = tmp_path / "o.zarr"
    with pytest.raises(errors.InputError, match=file.name):
        prepared.run(*VOLUME, f"--source={broken.root}", f"--out={out}")
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


BASE = {"dataset": "nsd", "source": "s", "out": "o.zarr"}
TABLE = {"dataset": "table", "source": None, "name": "a", "betas": "b.npy"}
TABLE |= {"trials": "t.csv", "images": "p"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": None}, "--dataset: not given"),
        ({"source": None}, "--source: not given"),
        ({"out": None}, "--out: not given"),
        ({"source": None, "out": None}, "--source, --out: not given"),
        ({"dataset": "god"}, "--images: not given"),
        ({"dataset": "mosaic", "source": None}, "--source, --images: not given"),
        (TABLE | {"name": None}, "--name: not given"),
        (
            {"dataset": "table", "source": None},
            "--name, --betas, --trials, --images: not given",
        ),
        ({"val_fraction": 1.0}, "--val_fraction: 1.0; expected 0 <= x < 1"),
        ({"val_fraction": -0.1}, "--val_fraction: -0.1"),
        ({"val_fraction": "nan"}, "--val_fraction: nan"),
        (TABLE | {"test_fraction": 1}, "--test_fraction: 1.0; expected 0 <= x < 1"),
        (
            TABLE | {"test_fraction": 0.6, "val_fraction": 0.6},
            "val_fraction+test_fraction: is 1.2",
        ),
        ({"image_px": 225}, "--image_px: 225; expected a multiple of the patch, 14"),
        ({"image_px": 0}, "--image_px: 0"),
        ({"image_px": -14}, "--image_px: -14"),
        ({"sessions": "1,b"}, "--sessions: 1,b; expected numbers"),
        ({"dataset": "vim1", "grey": "0,white"}, "--grey: 0,white; expected numbers"),
        ({"dataset": "vim1", "grey": "1,0"}, "grey: is (1.0, 0.0)"),
        ({"dataset": "vim1", "grey": "0.5"}, "grey: is (0.5,)"),
        ({"dataset": "vim1", "num_voxels": 0}, "num_voxels: is 0"),
        ({"dataset": "vim1", "voxels": "srn"}, "voxels: is 'srn'"),
        ({"dataset": "mosaic", "images": "p", "overlap": "x"}, "overlap: is 'x'"),
        (TABLE | {"zscore": "sessions"}, "zscore: is 'sessions'"),
        (TABLE | {"background": "grey"}, "background: is 'grey'"),
        (TABLE | {"orientation": "yes"}, "orientation: is 'yes'"),
        (TABLE | {"name": "a/b"}, "name: is 'a/b'"),
        (TABLE | {"stimuli": "a/b"}, "stimuli: is 'a/b'"),
        ({"space": "fsavrage"}, "space: is 'fsavrage'"),
        ({"mask": ""}, "--mask: is empty"),
        (TABLE | {"roi": ""}, "--roi: is empty"),
        (BASE | TABLE | {"source": "s"}, "--source: given for table"),
        ({"dataset": "algonauts", "sessions": "1"}, "--sessions: given for algonauts"),
        ({"dataset": "algonauts", "images": "x"}, "--images: given for algonauts"),
        ({"dataset": "released", "mask": "V1"}, "--mask: given for released"),
        ({"dataset": "released", "space": "fsaverage"}, "--space: given for released"),
    ],
)
def test_flags_that_cannot_be_used_are_named(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    given = {k: v for k, v in (BASE | changes).items() if v is not None}
    with pytest.raises(errors.ConfigError) as caught:
        prepared.run(*(f"--{k}={v}" for k, v in given.items()))
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


# Flags that not every dataset knows.
KNOWN_BY = {
    "source": "nsd algonauts god vim1 released mosaic",
    "subjects": "nsd algonauts god vim1 released mosaic",
    "images": "nsd god vim1 released mosaic table",
    "test_fraction": "algonauts table",
    "space": "nsd table",
    "betas": "nsd table",
    "mask": "nsd mosaic table",
    "sessions": "nsd",
    "roi": "god table",
    **dict.fromkeys(("voxels", "num_voxels", "grey"), "vim1"),
    **dict.fromkeys(("overlap", "artificial"), "mosaic"),
    **dict.fromkeys(("name", "trials", "stimuli", "position", "ncsnr"), "table"),
    **dict.fromkeys(("zscore", "background", "orientation"), "table"),
}
VALUES = {"test_fraction": "0.1", "num_voxels": "3", "artificial": "true"}


@pytest.mark.parametrize("dataset", prepare.READERS)
def test_flags_that_the_dataset_does_not_know_are_refused(dataset):
    for flag, known in KNOWN_BY.items():
        if dataset in known.split():
            continue
        message = f"--{flag}: given for {dataset}; expected it only with --dataset="
        with pytest.raises(errors.ConfigError) as caught:
            prepared.run(f"--dataset={dataset}", f"--{flag}={VALUES.get(flag, '1')}")
        assert str(caught.value) == (
            f"{message}{known.replace(' ', ' or ')}. Leave it out."
        )


SHARES = {"val_fraction": 0.2, "seed": 3}
SOURCE = {"source": "s", **SHARES}
# What is given, and with what the reader is called where that differs.
GIVEN = {
    "nsd": (
        SOURCE
        | {"space": "func1pt8mm", "betas": "b", "mask": "V1"}
        | {"subjects": "subj01,subj02", "sessions": "1,2", "images": "i"},
        {"subjects": ["subj01", "subj02"], "sessions": (1, 2), "stimuli": "i"},
    ),
    "algonauts": (
        SOURCE | {"subjects": "subj01", "test_fraction": 0.3},
        {"subjects": ["subj01"]},
    ),
    "god": (
        SOURCE | {"subjects": "subject1", "images": "i", "roi": "ROI_V1,ROI_V2"},
        {"subjects": ["subject1"], "roi": ["ROI_V1", "ROI_V2"]},
    ),
    "vim1": (
        SOURCE
        | {"subjects": "s1,s2", "images": "i", "voxels": "snr", "num_voxels": 5}
        | {"grey": "-0.5,0.5"},
        {"subjects": ["s1", "s2"], "grey": (-0.5, 0.5)},
    ),
    "released": (
        SOURCE | {"subjects": "subj01", "images": "i"},
        {"subjects": ["subj01"]},
    ),
    "mosaic": (
        SOURCE
        | {"subjects": "sub-01_NSD", "images": "i", "mask": "all"}
        | {"overlap": "drop", "artificial": True},
        {"subjects": ["sub-01_NSD"]},
    ),
    "table": (
        SHARES
        | {"name": "n", "betas": "a.npy,b.mat:x", "trials": "t", "images": "i"}
        | {"roi": "r", "position": "p", "mask": "m", "ncsnr": "c", "space": "fs"}
        | {"zscore": "run", "background": "white", "orientation": "apply"}
        | {"stimuli": "u", "test_fraction": 0.3},
        {"betas": ["a.npy", "b.mat:x"]},
    ),
}


@pytest.mark.parametrize("dataset", GIVEN)
def test_every_flag_reaches_its_reader(dataset, monkeypatch):
    given, changes = GIVEN[dataset]
    expected = {k: v for k, v in given.items() if k != "images" or dataset != "nsd"}
    arguments = set(inspect.signature(prepare.READERS[dataset].open_dataset).parameters)
    monkeypatch.setattr(
        prepare.READERS[dataset], "open_dataset", lambda **called: called
    )
    called = prepared.opened(f"--dataset={dataset}", *prepared.as_flags(given))
    assert called == expected | changes
    # The masks of `released` have a place of their own beside the file.
    assert arguments - called.keys() == ({"masks"} if dataset == "released" else set())


@pytest.mark.parametrize("dataset", prepare.READERS)
def test_what_is_not_given_is_left_to_the_reader(dataset, monkeypatch):
    monkeypatch.setattr(
        prepare.READERS[dataset], "open_dataset", lambda **called: called
    )
    given = {"betas": "b"} if dataset == "table" else {"source": "s"}
    expected = {"betas": ["b"]} if dataset == "table" else given
    if dataset == "nsd":
        expected = given | {"space": "fsaverage"}
    called = prepared.opened(f"--dataset={dataset}", *prepared.as_flags(given))
    assert called == expected | {"seed": 0}


def test_a_file_that_cannot_be_opened_is_no_traceback(monkeypatch):
    def fail(**_):
        raise PermissionError(13, "Permission denied", "/data/S1data.mat")

    monkeypatch.setattr(vim1, "open_dataset", fail)
    with pytest.raises(errors.InputError, match=r"/data/S1data\.mat: cannot be"):
        prepared.run("--dataset=vim1", "--source=s", "--check")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--subjects=subj1", "Did you mean subj0"),
        ("--sessions=9", "9"),
        ("--mask=nsdgeneraly", "nsdgeneral"),
        ("--betas=betas_b2", "betas_b2"),
    ],
)
def test_names_that_the_folder_does_not_have_are_refused(
    truth, tmp_path, given, message
):
    with pytest.raises(errors.InputError, match=message):
        prepared.run(
            *VOLUME, f"--source={truth.root}", f"--out={tmp_path / 'o.zarr'}", given
        )
    assert list(tmp_path.iterdir()) == []


def test_an_argument_without_dashes_is_refused():
    with pytest.raises(errors.ConfigError, match="nsd: an argument without --"):
        prepare.main(["prepare", "nsd"])


# As a process

INTERRUPT = """
import os, signal
from ubrain_jax import errors, prepare
from ubrain_jax.datasets import nsd

# A shell that starts the tests in the background has them ignore the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
opened = nsd.open_dataset

def open_dataset(*args, **keywords):
    dataset = opened(*args, **keywords)
    def read_images(ids):
        yield from list(dataset.read_images(ids[:3]))
        os.kill(os.getpid(), signal.SIGINT)
        yield from dataset.read_images(ids)
    return dataset._replace(read_images=read_images)

nsd.open_dataset = open_dataset
errors.run_command(prepare.main)
"""


def test_control_c_leaves_nothing(truth, tmp_path):
    out = tmp_path / "nsd.zarr"
    done = subprocess.run(
        [
            *(sys.executable, "-c", INTERRUPT, *VOLUME),
            *(f"--source={truth.root}", f"--out={out}"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_makes_no_traceback(truth):
    with prepared.start(*VOLUME, f"--source={truth.root}", "--check") as child:
        child.stdout.close()
        assert "Traceback" not in child.stderr.read()
        assert child.wait(60) == 141


def test_excluded_pictures_are_in_no_sample(make_dataset):
    whole = list(make_dataset().subjects)
    dataset = prepare.without_pictures(make_dataset(), {"t/0001", "t/1003"})
    first, second = dataset.subjects
    assert len(first.image_id) == len(whole[0].image_id) - 2
    assert len(second.image_id) == len(whole[1].image_id) - 1
    assert not {"t/0001", "t/1003"} & {*first.image_id, *second.image_id}
    kept = [i not in ("t/0001", "t/1003") for i in whole[0].image_id]
    np.testing.assert_array_equal(first.responses, whole[0].responses[kept])
    assert dataset.report == [
        "t-subj01: 2 pictures left out by --exclude",
        "t-subj02: 1 pictures left out by --exclude",
    ]
    with pytest.raises(errors.ConfigError, match="t/9 seen by no subject"):
        list(prepare.without_pictures(make_dataset(), {"t/9"}).subjects)
