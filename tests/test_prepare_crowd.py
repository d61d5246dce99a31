"""Small datasets and a lab's own data, through the command to stores and back."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import scipy.io
import zarr

from tests import folders, god_files, mosaic_files, nsd_files, prepared, table_files
from tests import test_god as slow_god
from tests import test_mosaic as slow_mosaic
from tests import vim1_files as vf
from ubrain_jax import batches, config, crowd, errors
from ubrain_jax.datasets import (
    god,
    mosaic,
    simulated_god,
    simulated_vim1,
    table,
    vim1,
)

PX = "--image_px=28"
OVERLAP = [("n01518878_10042.JPEG", "train", 2), ("n02071294_46212.JPEG", "train", 1)]
OVERLAP += [("n01443537_7.JPEG", "train", 1), ("n15075141_5.JPEG", "test", 2)]
GOD_LIKE = [("n01443537_22563.JPEG", "train", 1), ("n01443537_7.JPEG", "train", 1)]
GOD_LIKE += [("n01518878_10042.JPEG", "test", 2)]


@pytest.fixture(scope="module")
def god_root(tmp_path_factory):
    """Two subjects in each encoding, and the pictures beside them."""
    root = tmp_path_factory.mktemp("god")
    god_files.write_pictures(root / "images")
    tables = [god_files.make_subject(1), god_files.make_subject(2, 31)]
    for encoding in god_files.ENCODINGS:
        (root / encoding).mkdir()
        ending = god_files.ENDINGS.get(encoding, ".h5")
        for k, written in enumerate(tables):
            path = root / encoding / f"Subject{k + 1}{ending}"
            god_files.write_table(path, *written, encoding)
    return root, tables


@pytest.fixture(scope="module")
def vim1_root(tmp_path_factory):
    """The files of 2008 with pictures, those of 2013 without, the small copy."""
    root, truth = tmp_path_factory.mktemp("vim1"), vf.make()
    vf.write_2008(root / "2008", truth)
    vf.write_2013(root / "2013", truth, 1)
    vf.write_archive(root / "npz", vf.archive(truth))
    return root, truth


@pytest.fixture(scope="module")
def mosaic_root(tmp_path_factory):
    """Two subjects; a picture is test for one and train for the other."""
    root = tmp_path_factory.mktemp("mosaic")
    truth = mosaic_files.write_file(root, "sub-01_GOD", GOD_LIKE)
    mosaic_files.write_file(root, "sub-02_GOD", OVERLAP, seed=1)
    mosaic_files.write_pictures(root / "images", GOD_LIKE + OVERLAP)
    return root, truth


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A lab's subject with all that may be said of its voxels."""
    lab = table_files.write(tmp_path_factory.mktemp("lab"))
    num = table_files.VOXELS
    half = (np.arange(num) < num // 2).astype(int)
    lines = ["first,second", *(f"{h},{1 - h}" for h in half)]
    (lab.root / "roi.csv").write_text("\n".join(lines) + "\n")
    np.save(
        lab.root / "position.npy", np.stack([half, np.arange(num), 0 * half - 1], 1)
    )
    np.save(lab.root / "ncsnr.npy", np.linspace(0, 1, num))
    return lab


@pytest.fixture(scope="module")
def nsd_truth(tmp_path_factory):
    return nsd_files.write(tmp_path_factory.mktemp("nsd") / "nsd")


def lab_flags(lab, **changes):
    given = {k: v for k, v in (lab.arguments | changes).items() if v is not None}
    return "--dataset=table", PX, *prepared.as_flags(given)


def responses_of(path, name):
    """Everything of a subject's responses as it lies on disk, and its hash."""
    group = path / "subjects" / name
    attrs = json.loads((group / "zarr.json").read_text())["attributes"]
    return folders.digest(group / "responses"), attrs["responses_sha256"]


# fMRI-on-ImageNet


def test_every_encoding_of_god_becomes_the_same_bytes(god_root, tmp_path):
    root, tables = god_root
    found = []
    for encoding in god_files.ENCODINGS:
        out = tmp_path / f"{encoding}.zarr"
        source = ("--dataset=god", f"--source={root / encoding}")
        given = (f"--images={root / 'images'}", "--subjects=subject1", PX)
        prepared.run(*source, *given, f"--out={out}")
        found.append(responses_of(out, "god-subject1"))
    assert len(found) == 5
    assert len(found[0][0]) >= 2  # metadata and a shard
    assert found == found[:1] * 5
    opened = crowd.open_crowd((str(out),))
    [stored] = opened.subjects
    values = crowd.read_responses(stored, np.arange(len(stored.image)))
    assert hashlib.sha256(values.tobytes()).hexdigest() == found[0][1]
    averages, ncsnr = slow_god.slow(*tables[0])
    names = [opened.image_id[i].removeprefix("god/") for i in stored.image]
    expected = [averages[name] for name in names]
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stored.ncsnr, ncsnr, rtol=1e-5)


def test_god_with_what_the_flags_choose(god_root, tmp_path):
    root, _ = god_root
    given = {"images": root / "images", "val_fraction": 0.4, "seed": 3}
    out = tmp_path / "god.zarr"
    printed = prepared.run(
        "--dataset=god",
        f"--source={root / 'v5'}",
        f"--out={out}",
        "--subjects=subject2",
        "--roi=ROI_V1,ROI_FFA",
        PX,
        *prepared.as_flags(given),
    )
    dataset = god.open_dataset(
        root / "v5", subjects=["subject2"], roi=("ROI_V1", "ROI_FFA"), **given
    )
    [stored] = prepared.assert_holds(out, dataset).subjects
    assert stored.num_voxels == 9
    assert {"train", "val", "test"} == set(stored.split.tolist())
    assert "9 voxels in ROI_V1, ROI_FFA" in printed
    assert (
        "god-subject2: normalisation: z-scored per voxel in each run (ddof=0), then "
        "averaged over presentations; ncsnr: from the single presentations of the test "
        "pictures, median "
    ) in printed


# vim-1


@pytest.mark.parametrize(
    ("place", "given"),
    [
        ("2008", {"subjects": "s2", "voxels": "roi", "seed": 4, "val_fraction": 0.3}),
        ("2013", {"voxels": "snr", "num_voxels": 9, "grey": "-0.6,0.5"}),
        ("npz/kay_images.npz", {}),
    ],
)
def test_vim1(vim1_root, tmp_path, place, given):
    root, truth = vim1_root
    out = tmp_path / "vim1.zarr"
    if place == "2013":
        given = given | {"images": root / "2008"}
    source = ("--dataset=vim1", f"--source={root / place}", f"--out={out}", PX)
    printed = prepared.run(*source, *prepared.as_flags(given))
    arguments = dict(given)
    if "subjects" in given:
        arguments["subjects"] = [given["subjects"]]
    if "grey" in given:
        arguments["grey"] = (-0.6, 0.5)
    dataset = vim1.open_dataset(root / place, **arguments)
    first = prepared.assert_holds(out, dataset).subjects[0]
    assert first.num_voxels == given.get("num_voxels", first.num_voxels)
    # And what was planted: every stored voxel is one of the file, in its order.
    number = int(first.name[-1])
    planted = [truth.means(number, split) for split in vf.NUM]
    planted = np.concatenate(planted)[:, truth.finite(number)].astype(np.float32)
    stored = crowd.read_responses(first, np.arange(len(planted)))
    match = np.isclose(stored[:, :, None], planted[:, None], atol=1e-6).all(0)
    assert match.any(1).all()
    assert (np.diff(match.argmax(1)) > 0).all()
    assert "normalisation: z-scored for each voxel by the distributor" in printed
    known = "ncsnr: from the single trials" in printed
    assert known == (place == "2013")


# MOSAIC


def test_mosaic(mosaic_root, tmp_path):
    root, truth = mosaic_root
    out, mask = tmp_path / "mosaic.zarr", tmp_path / "mask.npy"
    columns = np.arange(5, 91282, 1000)
    np.save(mask, columns)
    printed = prepared.run(
        *("--dataset=mosaic", f"--source={root}", f"--images={root / 'images'}"),
        *(f"--mask={mask}", "--overlap=drop", f"--out={out}", PX),
    )
    given = {"images": root / "images", "mask": mask, "overlap": "drop"}
    opened = prepared.assert_holds(out, mosaic.open_dataset(root, **given))
    first = opened.subjects[0]
    ids, mean, ncsnr = slow_mosaic.reference(truth, columns)
    order = [opened.image_id.index(i.replace("mosaic/", "god/")) for i in ids]
    rows = np.asarray([first.image.tolist().index(i) for i in order])
    stored = crowd.read_responses(first, rows)
    np.testing.assert_allclose(stored, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(first.ncsnr, ncsnr, rtol=1e-4, atol=1e-4)
    assert "mosaic-god-sub02: 1 pictures (2 trials) left out of training" in printed
    assert "grayordinates of mask.npy; ncsnr: repeats of the test pictures" in printed


def test_mosaic_keeps_artificial_stimuli_and_all_grayordinates(tmp_path):
    stimuli = [*mosaic_files.NSD[:3], mosaic_files.NSD[-1], ("017.jpg", "test", 2)]
    mosaic_files.write_file(tmp_path, "sub-01_NSD", stimuli)
    mosaic_files.write_pictures(tmp_path / "p", stimuli)
    source = ("--dataset=mosaic", f"--source={tmp_path}", f"--images={tmp_path / 'p'}")
    for number, more in enumerate(([], ["--artificial", "--mask=all"])):
        out = tmp_path / f"{number}.zarr"
        prepared.run(*source, f"--out={out}", PX, *more)
        opened = crowd.open_crowd((str(out),))
        assert ("mosaic/017" in opened.image_id) == bool(more)
        assert opened.subjects[0].num_voxels == (91282 if more else 59412)


# A lab's own data


def as_mat(lab, folder):
    scipy.io.savemat(folder / "b.mat", {"x": lab.betas, "y": lab.betas.T})
    return f"{folder}/b.mat:x"


def as_zarr(lab, folder):
    zarr.create_array(folder / "b.zarr", data=lab.betas, chunks=(9, 24))
    return f"{folder}/b.zarr"


def as_two_files(lab, folder):
    for name, part in (("1", lab.betas[:30]), ("2", lab.betas[30:])):
        np.save(folder / f"{name}.npy", part)
    return f"{folder}/1.npy,{folder}/2.npy"


@pytest.mark.parametrize("form", [None, as_mat, as_zarr, as_two_files])
def test_a_table_is_the_same_from_every_file(lab, tmp_path, form):
    out = tmp_path / "own.zarr"
    betas = str(lab.root / "betas.npy") if form is None else form(lab, tmp_path)
    printed = prepared.run(*lab_flags(lab, betas=betas), f"--out={out}")
    dataset = table.open_dataset(**lab.arguments | {"betas": betas.split(",")})
    opened = prepared.assert_holds(out, dataset)
    expected = table_files.expected_responses(lab.betas, lab.session, lab.shown)
    [stored] = opened.subjects
    rows = np.arange(len(stored.image))
    names = [f"{i.removeprefix('lab-ann/')}.png" for i in opened.image_id]
    np.testing.assert_allclose(
        crowd.read_responses(stored, rows),
        [expected[names[i]] for i in stored.image],
        rtol=1e-5,
        atol=1e-5,
    )
    assert "lab-ann: normalisation: z-scored per voxel within each session" in printed
    assert "; ncsnr: from repeats, median " in printed


def test_a_table_with_what_the_flags_choose(lab, tmp_path):
    given = {name: lab.root / f"{name}.npy" for name in ("position", "ncsnr")}
    given |= {"roi": lab.root / "roi.csv", "space": "fsaverage", "zscore": "run"}
    given |= {"stimuli": "lab", "background": "white", "orientation": "apply"}
    given |= {"test_fraction": 0.3, "val_fraction": 0.2, "seed": 5}
    out = tmp_path / "own.zarr"
    printed = prepared.run(*lab_flags(lab, **given), f"--out={out}")
    opened = prepared.assert_holds(out, table.open_dataset(**lab.arguments | given))
    [stored] = opened.subjects
    assert stored.roi_names == ("first", "second")
    assert stored.attrs["space"] == "fsaverage"
    assert all(i.startswith("lab/") for i in opened.image_id)
    np.testing.assert_allclose(stored.ncsnr, np.linspace(0, 1, len(stored.ncsnr)))
    assert "within each run over its trials" in printed
    assert "; ncsnr: as given, median 0.500" in printed


# Together


def test_god_vim1_and_nsd_are_one_crowd(god_root, vim1_root, nsd_truth, tmp_path):
    sources = {
        "god": (f"--source={god_root[0] / 'v5'}", f"--images={god_root[0] / 'images'}"),
        "vim1": (f"--source={vim1_root[0] / '2008'}",),
        "nsd": (f"--source={nsd_truth.root}", "--space=func1pt8mm"),
    }
    paths = []
    for name, source in sources.items():
        paths.append(str(tmp_path / f"{name}.zarr"))
        prepared.run(f"--dataset={name}", *source, PX, f"--out={paths[-1]}")
    alone = [crowd.open_crowd((path,)) for path in paths]
    whole = crowd.open_crowd(tuple(paths))
    assert [s.name for s in whole.subjects] == [
        *("god-subject1", "god-subject2", "vim1-s1", "vim1-s2"),
        *("nsd-subj01", "nsd-subj02"),
    ]
    assert whole.num_voxels == sum(a.num_voxels for a in alone)
    assert set(whole.image_id) == {i for a in alone for i in a.image_id}
    singly = [s for a in alone for s in a.subjects]
    for one, together in zip(singly, whole.subjects, strict=True):
        rows = np.arange(len(one.image))
        np.testing.assert_array_equal(
            crowd.read_responses(together, rows), crowd.read_responses(one, rows)
        )
    settings = config.Data(batch_images=6, voxels_per_image=16, stripes=4)
    batch = batches.dataset(whole, settings, 0)[0]
    assert np.isfinite(batch.response).all()
    assert batch.weight.all()


@pytest.mark.parametrize("name", ["god", "vim1"])
def test_simulated_brains_are_marked_in_the_store(name, tmp_path):
    source, out = tmp_path / "made", tmp_path / "made.zarr"
    sizes = {"num_subjects": 1, "num_voxels": 20, "image_px": 56, "num_test": 4}
    if name == "god":
        simulated_god.write(source, num_train=16, num_repeats=3, **sizes)
    else:
        simulated_vim1.write(source, num_train=40, single_trials=False, **sizes)
    given = [f"--dataset={name}", PX]
    given += [f"--images={source / 'images'}"] if name == "god" else []
    line = "these files are simulated, no brain was measured"
    printed = prepared.run(*given, f"--source={source}", f"--out={out}")
    assert line in printed.splitlines()
    [subject] = crowd.open_crowd((str(out),)).subjects
    assert subject.attrs["simulated"] is True
    file = source / {"god": "Subject1.h5", "vim1": "EstimatedResponses.mat"}[name]
    assert line in prepared.opened(*given, f"--source={file}").report
    shutil.rmtree(source / "truth")
    dataset = prepared.opened(*given, f"--source={source}")
    [subject] = dataset.subjects
    assert line not in dataset.report
    assert "simulated" not in subject.attrs


# --check, and what is refused


def sound(name, god_root, vim1_root, mosaic_root, lab):
    """Flags that read one of the datasets."""
    source = {
        "god": god_root[0] / "capital",
        "vim1": vim1_root[0] / "2013",
        "mosaic": mosaic_root[0] / "sub-01_GOD.hdf5",
    }
    images = {
        "god": god_root[0] / "images",
        "vim1": vim1_root[0] / "2008",
        "mosaic": mosaic_root[0] / "images",
    }
    if name == "table":
        return lab_flags(lab)
    places = f"--source={source[name]}", f"--images={images[name]}"
    return f"--dataset={name}", *places, PX


NEW = ("god", "vim1", "mosaic", "table")


@pytest.mark.parametrize("name", NEW)
def test_a_check_of_good_files_ends_in_all_good(
    name, god_root, vim1_root, mosaic_root, lab, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flags = sound(name, god_root, vim1_root, mosaic_root, lab)
    printed = prepared.run(*flags, "--check", "--out=x.zarr").splitlines()
    assert printed[-1] == "ALL GOOD"
    num = sum("warning:" in line for line in printed)
    assert (num > 0) == (name == "table")  # it has few pictures
    if num:
        assert printed[-2] == f"warnings in the lines above: {num}"
    assert any("pictures; nothing was written" in line for line in printed[-3:-1])
    assert any("normalisation: " in line for line in printed)
    assert list(tmp_path.iterdir()) == []


def spoil_god(place, god_root, **_):
    """A picture that is not there."""
    shutil.copytree(god_root[0], place, dirs_exist_ok=True)
    (place / "images/training/n01443537_7.JPEG").unlink()
    source = ("--dataset=god", f"--source={place / 'v7.3'}", PX)
    return (*source, f"--images={place / 'images'}"), 66, "n01443537_7"


def spoil_vim1(place, vim1_root, **_):
    """Averages that are not those of the single trials, seen once they are read."""
    root, truth = vim1_root
    shutil.copytree(root / "2013", place, dirs_exist_ok=True)
    averages = {f"data{k}S1": truth.means(1, s).T for s, k in vf.SHORT.items()}
    averages["dataValS1"][20] += 1
    vf.save_v5(place / "S1data.mat", averages)
    source = ("--dataset=vim1", f"--source={place}", PX)
    return (*source, f"--images={root / '2008'}"), 65, "S1data.mat"


def spoil_mosaic(place, mosaic_root, **_):
    """A picture that is test for one subject and train for another."""
    root, _ = mosaic_root
    source = ("--dataset=mosaic", f"--source={root}", PX)
    return (*source, f"--images={root / 'images'}"), 65, "overlap 'drop'"


def spoil_table(place, lab, **_):
    """A picture that cannot be read, found after all responses."""
    shutil.copytree(lab.root, place, dirs_exist_ok=True)
    (place / "pictures" / lab.shown[0]).write_bytes(b"no picture")
    arguments = {k: place / lab.arguments[k].name for k in ("betas", "trials")}
    flags = lab_flags(lab, images=place / "pictures", **arguments)
    return flags, 65, lab.shown[0]


SPOILT = [spoil_god, spoil_vim1, spoil_mosaic, spoil_table]


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_check_of_bad_files_ends_in_problem(
    spoil, god_root, vim1_root, mosaic_root, lab, tmp_path
):
    made = {"god_root": god_root, "vim1_root": vim1_root}
    made |= {"mosaic_root": mosaic_root, "lab": lab}
    flags, code, text = spoil(tmp_path / "spoilt", **made)
    found, printed, complaints = prepared.process(*flags, "--check")
    assert (found, complaints) == (code, "")
    assert printed[-1].startswith("PROBLEM: ")
    assert text in printed[-1]
    assert "ALL GOOD" not in printed
    if spoil is spoil_table:  # what is known of the responses is said
        assert any("odd with even repeats" in line for line in printed[:-1])
    out = tmp_path / "x.zarr"
    with pytest.raises(errors.InputError) as caught:
        prepared.run(*flags, f"--out={out}")
    assert f"PROBLEM: {' '.join(str(caught.value).split())}" == printed[-1]
    assert {p.name for p in tmp_path.iterdir()} <= {"spoilt"}


@pytest.mark.parametrize(
    ("given", "code", "text"),
    [
        (["--dataset=table"], 78, "--name, --betas, --trials, --images: not given"),
        (["--dataset=vim1", "--nmu_voxels=3"], 64, "Did you mean: num_voxels"),
        (["--dataset=vim1", "--source=absent"], 66, "absent: no such"),
    ],
)
def test_a_check_with_wrong_flags_ends_in_problem(given, code, text):
    found, printed, complaints = prepared.process(*given, "--check")
    assert (found, len(printed), complaints) == (code, 1, "")
    assert printed[0].startswith("PROBLEM: ")
    assert text in printed[0]


def test_without_check_an_error_is_on_standard_error():
    found, printed, complaints = prepared.process("--dataset=vim1", "--source=absent")
    assert (found, printed) == (78, [])
    assert complaints == ("error: --out: not given; expected a value. Pass --out=...\n")
