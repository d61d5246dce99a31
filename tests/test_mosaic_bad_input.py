"""What the MOSAIC reader refuses, and what it takes as the format leaves it open."""

import gc
import os
import shutil

import h5py
import numpy as np
import pytest

from tests import mosaic_files
from tests.mosaic_files import NSD, NUM
from ubrain_jax import errors
from ubrain_jax.datasets import mosaic

SMALL = [NSD[0], NSD[1], (NSD[-1][0], "test", 2)]
FIRST = mosaic_files.member_name("sub-01_NSD", NSD[0][0], "train", 0)
TEST = mosaic_files.member_name("sub-01_NSD", NSD[-1][0], "test", 1)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    mosaic_files.write_file(root, stimuli=SMALL)
    mosaic_files.write_pictures(root / "p", SMALL)
    return root


def read_changed(small, folder, change, **options):
    """Opens and reads a copy of the small file after a change."""
    path = shutil.copy(small / "sub-01_NSD.hdf5", folder)
    with h5py.File(path, "a") as file:
        change(file)
    dataset = mosaic.open_dataset(folder, images=small / "p", **options)
    return list(dataset.subjects)


def replace(file, name, **arguments):
    """A trial with other data and the old attributes."""
    attributes = dict(file["betas"][name].attrs)
    del file["betas"][name]
    file["betas"].create_dataset(name, **arguments).attrs.update(attributes)


def set_attribute(name, key, value):
    return lambda f: f["betas"][name].attrs.__setitem__(key, value)


def rename(old, new):
    return lambda f: f["betas"].move(old, new)


CASES = {
    "length": (
        lambda f: replace(f, FIRST, data=np.zeros(NUM - 1, "f4")),
        [f"/betas/{FIRST}: shape (91281,); expected (91282,)"],
    ),
    "integers": (
        lambda f: replace(f, FIRST, data=np.zeros(NUM, "i2")),
        ["holds int16; expected float32 or float64"],
    ),
    "text": (lambda f: replace(f, FIRST, data="x"), ["holds object; expected numbers"]),
    "not written": (
        lambda f: replace(f, FIRST, shape=(NUM,), dtype="f4"),
        [f"/betas/{FIRST}: has 0 of 365128 bytes; expected all of them"],
    ),
    "soft link": (
        lambda f: f["betas"].__setitem__("x", h5py.SoftLink(f"/betas/{FIRST}")),
        ["/betas/x: is a link to :/betas/sub-01", "Links are refused"],
    ),
    "external link": (
        lambda f: f["betas"].__setitem__("x", h5py.ExternalLink("/etc/hosts", "/a")),
        ["/betas/x: is a link to /etc/hosts:/a"],
    ),
    "external data": (
        lambda f: f["betas"].create_dataset(
            "x", (NUM,), "u1", external=[("/etc/hosts", 0, NUM)]
        ),
        ["/betas/x: points outside the file (/etc/hosts)"],
    ),
    "linked group": (
        lambda f: (f.move("betas", "b"), f.__setitem__("betas", h5py.SoftLink("/b"))),
        ["/betas: is a SoftLink; expected a group"],
    ),
    "group in betas": (
        lambda f: f["betas"].create_group("x"),
        ["/betas/x: is a group"],
    ),
    "chunked merge": (
        lambda f: (f.__delitem__("betas"), f.__setitem__("betas", np.zeros((4, 9)))),
        ["/betas: is a Dataset; expected a group"],
    ),
    "merged": (
        lambda f: f.move("betas", "sub-01_NSD/betas"),
        ["no group betas (found: nan_indices_all, sub-01_NSD; a merged file)"],
    ),
    "empty": (
        lambda f: (f.__delitem__("betas"), f.create_group("betas")),
        ["an empty group betas (found: betas, nan_indices_all)"],
    ),
    "subject": (
        lambda f: f.attrs.__setitem__("subjectID", "sub-02"),
        ["subjectID is 'sub-02'; expected sub-01, as its name"],
    ),
    "dataset": (
        lambda f: f.attrs.__setitem__("dataset_name", "GenericObjectDecoding"),
        ["dataset_name is 'GenericObjectDecoding'; expected NSD or NaturalScenesDatas"],
    ),
    "trial of another": (
        rename(FIRST, FIRST.replace("sub-01_NSD", "sub-02_NSD")),
        ["is of sub-02_NSD; expected sub-01_NSD, as the file"],
    ),
    "phase differs": (
        set_attribute(FIRST, "phase", "test"),
        ["phase is 'test' in the attribute; expected 'train', as in the name"],
    ),
    "phase unknown": (
        lambda f: (
            set_attribute(FIRST, "phase", "rest")(f),
            rename(FIRST, FIRST.replace("train", "rest"))(f),
        ),
        ["phase is 'rest'; expected one of train, test, artificial"],
    ),
    "phase is a list": (
        set_attribute(FIRST, "phase", np.arange(3)),
        [f"/betas/{FIRST}: attribute phase is [0 1 2]; expected one text or number"],
    ),
    "no phase": (
        lambda f: (
            f["betas"][FIRST].attrs.__delitem__("phase"),
            rename(FIRST, "trial7")(f),
        ),
        ["/betas/trial7: no phase; expected an attribute phase, or it in the name"],
    ),
    "repetition differs": (
        set_attribute(FIRST, "repetition", 2),
        ["repetition is '2' in the attribute; expected '0'"],
    ),
    "stimulus differs": (
        set_attribute(FIRST, "presented_stimulus_filename", "000000000001.jpg"),
        ["presented_stimulus_filename is '000000000001.jpg'"],
    ),
    "stimulus is a path": (
        lambda f: (
            set_attribute(FIRST, "presented_stimulus_filename", "../p/x.jpg")(f),
            rename(FIRST, "trial7")(f),
        ),
        ["stimulus '../p/x.jpg', '' is a path"],
    ),
    "no stimulus": (
        lambda f: (
            f["betas"][FIRST].attrs.__delitem__("presented_stimulus_filename"),
            rename(FIRST, "trial7")(f),
        ),
        ["no presented_stimulus_filename; expected it, or a name like sub-01_NSD_sti"],
    ),
    "repetition twice": (
        lambda f: f["betas"].copy(TEST, TEST.replace("rep-1", "rep-01")),
        ["1 pictures have a repetition twice: mosaic/000000000902 repetition 1"],
    ),
    "two phases": (
        lambda f: (
            rename(TEST, TEST.replace("test", "train"))(f),
            set_attribute(TEST.replace("test", "train"), "phase", "train")(f),
        ),
        ["1 pictures are in two phases: mosaic/000000000902; expected each in one"],
    ),
    "no training": (
        lambda f: [f["betas"].__delitem__(n) for n in list(f["betas"]) if "train" in n],
        ["0 trials of phase train; expected two or more"],
    ),
    "nan_indices": (
        set_attribute(FIRST, "nan_indices", np.array([3, NUM, -1])),
        ["nan_indices hold -1, 91282; expected 0..91281"],
    ),
    "nan_indices are text": (
        set_attribute(FIRST, "nan_indices", "none"),
        ["attribute nan_indices holds <U4; expected numbers"],
    ),
    "unprintable": (
        lambda f: f["betas"].create_dataset("\x1b[2J", data=np.zeros(NUM, "f4")),
        ["/betas: holds a text of 4 characters", "that can be printed"],
    ),
    "trial of NaN": (
        lambda f: f["betas"][TEST].write_direct(np.full(NUM, np.nan, "f4")),
        [f"/betas/{TEST}: NaN or inf in all chosen grayordinates"],
    ),
    "swapped bytes": (
        lambda f: f["betas"][TEST].write_direct(f["betas"][TEST][...].byteswap()),
        [f"/betas/{TEST}: ", "wrong endianness?"],
    ),
    "all listed": (
        lambda f: (
            f.__delitem__("nan_indices_all"),
            f.__setitem__("nan_indices_all", np.arange(NUM)),
        ),
        ["NaN in all chosen grayordinates; expected some valid"],
    ),
    "each NaN somewhere": (
        lambda f: [
            f["betas"][n].write_direct(np.where(np.arange(NUM) % 2 == k, np.nan, 1.0))
            for k, n in enumerate((FIRST, TEST))
        ],
        ["59412 grayordinates hold NaN or inf, 0 are constant in training: none is"],
    ),
    "copies": (
        lambda f: f["betas"][TEST].write_direct(f["betas"][FIRST][...]),
        [f":betas: 1 trials are copies of others: {FIRST} and {TEST}"],
    ),
    "two ceilings": (
        lambda f: [
            f.create_dataset(f"noiseceilings/x_phase-test_n-1_{k}", data=np.zeros(NUM))
            for k in "ab"
        ],
        ["noise ceilings x_phase-test_n-1_a, x_phase-test_n-1_b; expected one"],
    ),
    "short ceiling": (
        lambda f: f.create_dataset(
            "noiseceilings/x_phase-test_n-1_a", data=np.zeros(64984)
        ),
        ["x_phase-test_n-1_a has shape (64984,); expected (91282,)"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refuses(small, tmp_path, case):
    change, parts = CASES[case]
    with np.errstate(all="ignore"), pytest.raises(errors.InputError) as caught:
        read_changed(small, tmp_path, change)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert "sub-01_NSD.hdf5" in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.exit_code == 65


TOLERATED = {
    "phase in the name alone": lambda f: f["betas"][FIRST].attrs.__delitem__("phase"),
    "attributes alone": rename(FIRST, "trial7"),
    "no stimulus attribute": lambda f: f["betas"][FIRST].attrs.__delitem__(
        "presented_stimulus_filename"
    ),
    "repetition is text": set_attribute(FIRST, "repetition", "0"),
    "repetition is a float": set_attribute(FIRST, "repetition", 0.0),
    "text is bytes": set_attribute(FIRST, "phase", np.bytes_("train")),
    "text in a list": set_attribute(FIRST, "phase", ["train"]),
    "no facts of the file": lambda f: [f.attrs.__delitem__(k) for k in list(f.attrs)],
    "no list of NaN": lambda f: f.__delitem__("nan_indices_all"),
    "short name of the dataset": lambda f: f.attrs.__setitem__("dataset_name", "NSD"),
    "packed": lambda f: replace(
        f, FIRST, data=f["betas"][FIRST][...], chunks=(4096,), compression="gzip"
    ),
    "big-endian": lambda f: replace(
        f, FIRST, data=f["betas"][FIRST][...].astype(">f4")
    ),
}


@pytest.mark.parametrize("case", TOLERATED)
def test_what_the_format_leaves_open_changes_nothing(small, tmp_path, case):
    [plain] = mosaic.open_dataset(small, images=small / "p").subjects
    [subject] = read_changed(small, tmp_path, TOLERATED[case])
    order = [list(subject.image_id).index(i) for i in plain.image_id]
    # Another first picture rounds otherwise.
    np.testing.assert_allclose(
        subject.responses[order], plain.responses, rtol=1e-6, atol=1e-6
    )
    np.testing.assert_array_equal(subject.repeats[order], plain.repeats)


def test_truncated_file_and_no_hdf5_are_refused(small, tmp_path):
    path = tmp_path / "sub-01_NSD.hdf5"
    for content in ((small / path.name).read_bytes()[:-70000], b"<html>"):
        path.write_bytes(content)
        with pytest.raises(errors.InputError, match=r"sub-01_NSD.hdf5: cannot be read"):
            mosaic.open_dataset(path, images=small / "p")


def test_all_faults_of_all_files_come_at_once(small, tmp_path):
    for name in ("sub-02_NSD", "sub-03_NSD"):
        mosaic_files.write_file(tmp_path, name, SMALL)
    (tmp_path / "sub-03_NSD.hdf5").write_bytes(b"<html>")
    with pytest.raises(errors.InputError) as caught:
        read_changed(
            small,
            tmp_path,
            lambda f: (
                set_attribute(FIRST, "phase", "test")(f),
                set_attribute(TEST, "repetition", 4)(f),
            ),
        )
    for part in ("3 problems: ", "sub-03_NSD.hdf5", FIRST, TEST):
        assert part in str(caught.value)


def test_picture_shown_too_often_for_a_byte_is_refused(small, tmp_path):
    def change(file):
        for name in (TEST, TEST.replace("rep-1", "rep-0")):
            del file["betas"][name].attrs["repetition"]
        for k in range(2, 256):  # hard links: no copy
            file["betas"][TEST.replace("rep-1", f"rep-{k}")] = file["betas"][TEST]

    pattern = r"1 pictures have too many trials: mosaic/000000000902: 256; expected at"
    with pytest.raises(errors.InputError, match=pattern):
        read_changed(small, tmp_path, change)


def test_files_that_are_none_of_a_subject(small, tmp_path):
    with pytest.raises(
        errors.MissingInputError, match=r"no subject's file \(found: no"
    ):
        mosaic.open_dataset(tmp_path, images=small / "p")
    shutil.copy(small / "sub-01_NSD.hdf5", tmp_path / "merged.hdf5")
    with pytest.raises(errors.MissingInputError, match=r"\(found: merged.hdf5\)"):
        mosaic.open_dataset(tmp_path, images=small / "p")
    with pytest.raises(errors.MissingInputError, match=r"no subject's file"):
        mosaic.open_dataset(tmp_path / "merged.hdf5", images=small / "p")
    with pytest.raises(errors.MissingInputError, match="no such file or folder"):
        mosaic.open_dataset(tmp_path / "nowhere", images=small / "p")
    shutil.copy(small / "sub-01_NSD.hdf5", tmp_path)
    dataset = mosaic.open_dataset(tmp_path, images=small / "p")
    assert dataset.report == ["1 other HDF5 files ignored: merged.hdf5"]
    shutil.copy(small / "sub-01_NSD.hdf5", tmp_path / "sub-01_NSD_crc32-0a.h5")
    with pytest.raises(errors.InputError, match=r"sub-01_NSD: 2 files \(sub-01_NSD"):
        mosaic.open_dataset(tmp_path, images=small / "p")


def test_wrong_arguments_are_refused(small):
    for options, pattern in (
        ({"subjects": []}, "is empty"),
        ({"val_fraction": 1.0}, "val_fraction: is 1.0"),
        ({"overlap": "keep"}, "overlap: is 'keep'; expected 'refuse' or 'drop'"),
    ):
        with pytest.raises(errors.ConfigError, match=pattern):
            mosaic.open_dataset(small, images=small / "p", **options)
    held_out = mosaic.open_dataset(small, images=small / "p", val_fraction=0.999999)
    with pytest.raises(errors.InputError, match="0 pictures in the training split"):
        list(held_out.subjects)


def children() -> set[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(file.read().split())


def test_a_fault_in_the_middle_leaves_no_process(small, tmp_path):
    before, (change, _) = children(), CASES["trial of NaN"]
    with pytest.raises(errors.InputError) as caught:
        read_changed(small, tmp_path, change)
    assert caught
    caught = None  # its traceback holds the stream
    gc.collect()
    assert children() <= before
