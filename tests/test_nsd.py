"""The NSD reader against a slow independent computation on a miniature folder."""

import numpy as np
import pytest

from tests import nsd_files
from ubrain_jax import errors
from ubrain_jax.datasets import nsd


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return nsd_files.write(tmp_path_factory.mktemp("nsd") / "nsd", surface=True)


@pytest.fixture(scope="module")
def volume(truth):
    dataset = nsd.open_dataset(truth.root)
    return {s.name: s for s in dataset.subjects}, dataset


@pytest.fixture(scope="module")
def surface(truth):
    dataset = nsd.open_dataset(truth.root, space="fsaverage")
    return {s.name: s for s in dataset.subjects}, dataset


def shown(truth, subject, sessions):
    """0-based pictures of each session, from the design."""
    pictures = truth.lists[subject - 1, truth.order - 1] - 1
    return [
        pictures[(s - 1) * nsd_files.TRIALS :][: nsd_files.TRIALS] for s in sessions
    ]


def check_responses(subject, sessions, pictures):
    """Compares a subject read with loops over what was written."""
    values, count = nsd_files.expected_responses(sessions, pictures)
    assert list(subject.image_id) == [f"nsd/{p:05d}" for p in sorted(values)]
    expected = np.array([values[p] for p in sorted(values)])
    assert subject.responses.dtype == np.float32
    np.testing.assert_allclose(subject.responses, expected, rtol=1e-6, atol=1e-6)
    assert subject.repeats.tolist() == [count[p] for p in sorted(values)]
    assert subject.repeats.dtype == np.uint8


@pytest.mark.parametrize("number", [1, 2])
def test_volume_responses_equal_the_slow_computation(truth, volume, number):
    used = range(1, nsd_files.SESSIONS[number] + 1)
    x, y, z = np.nonzero(truth.rois[number, "nsdgeneral"] == 1)
    sessions = [truth.betas[number, s][:, x, y, z] for s in used]
    subject = volume[0][f"nsd-subj{number:02d}"]
    check_responses(subject, sessions, shown(truth, number, used))
    assert subject.position.tolist() == np.stack([x, y, z], 1).tolist()
    assert subject.attrs["grid"] == list(nsd_files.GRIDS[number])
    expected = truth.ncsnr[number][x, y, z]
    np.testing.assert_array_equal(subject.ncsnr, expected)


@pytest.mark.parametrize("number", [1, 2])
def test_surface_responses_equal_the_slow_computation(truth, surface, number):
    used = range(1, nsd_files.SESSIONS[number] + 1)
    rois = truth.rois
    mask = rois["fsaverage", "nsdgeneral"] + rois["fsaverage", "nsdgeneralRSC"] > 0
    dropped = [3] if number == 1 else []
    mask[dropped] = False
    sessions = [truth.surface[number, s][:, mask] for s in used]
    subject = surface[0][f"nsd-subj{number:02d}"]
    check_responses(subject, sessions, shown(truth, number, used))
    left = nsd_files.VERTICES[0]
    expected = [
        [int(v >= left), v - left * (v >= left), -1] for v in np.flatnonzero(mask)
    ]
    assert subject.position.tolist() == expected
    assert subject.attrs["vertices"] == list(nsd_files.VERTICES)
    expected = truth.ncsnr["fsaverage", number][mask]
    np.testing.assert_array_equal(subject.ncsnr, expected)


def test_invalid_and_constant_vertices_are_counted(surface):
    subjects, dataset = surface
    attrs = subjects["nsd-subj01"].attrs
    reason = "NaN in all trials of a session"
    assert attrs["dropped"] == [{"reason": reason, "count": 1, "sessions": {"2": 1}}]
    assert subjects["nsd-subj02"].attrs["dropped"] == []
    # Vertex 10 is 0.1 throughout: float32 gives it an SD that is not 0.
    assert attrs["constant_in_session"] == {"1": 1, "2": 1, "3": 1}
    assert attrs["constant_in_all_sessions"] == 1
    text = "\n".join(dataset.report)
    assert "subj01: 1 vertices dropped, NaN in all trials of a session" in text
    assert "3 times a voxel is constant in a session and counts as 0" in text
    assert "nsdgeneral and nsdgeneralRSC" in text


def test_voxel_zero_for_a_session_counts_as_zero_there(truth, volume):
    subject = volume[0]["nsd-subj01"]
    assert subject.attrs["constant_in_session"] == {"2": 1}
    place = np.argwhere(truth.rois[1, "nsdgeneral"] == 1)[7]
    column = subject.position.tolist().index(place.tolist())
    only = shown(truth, 1, [2])[0]
    others = np.concatenate(shown(truth, 1, [1, 3]))
    rows = [i for i, p in enumerate(subject.image_id) if int(p[4:]) not in others]
    assert set(only) >= {int(subject.image_id[r][4:]) for r in rows}
    assert (subject.responses[rows, column] == 0).all()
    assert np.abs(subject.responses[:, column]).max() > 0


@pytest.mark.parametrize("ending", ["nii.gz", "nii", "mat"])
def test_every_volume_format_gives_the_same_table(tmp_path, truth, volume, ending):
    """Also the trap of voxel order: HDF5 shows the axes reversed."""
    broken = nsd_files.copy(truth, tmp_path / "nsd")
    folder = nsd_files.betas_folder(broken.root, 1)
    for path in folder.glob("betas_*"):
        path.unlink()
    for session in (1, 2, 3):
        betas = truth.betas[1, session]
        nsd_files.write_volume_betas(folder, session, betas, ending)
    [other] = nsd.open_dataset(broken.root, subjects=["subj01"]).subjects
    subject = volume[0]["nsd-subj01"]
    np.testing.assert_array_equal(other.responses, subject.responses)
    np.testing.assert_array_equal(other.position, subject.position)


def test_regions_are_named_by_atlas_and_label(truth, volume):
    subject = volume[0]["nsd-subj01"]
    names = list(subject.roi_names)
    assert {"nsdgeneral", "V1v", "FFA-1", "streams:ventral", "thalamus:2"} <= set(names)
    assert not any(name.strip() != name or "\t" in name for name in names)
    x, y, z = subject.position.T
    for name, atlas, label in (
        ("V2d", "prf-visualrois", 4),
        ("streams:ventral", "streams", 5),
        ("FFA-1", "floc-faces", 2),
        ("thalamus:1", "thalamus", 1),
    ):
        expected = truth.rois[1, atlas][x, y, z] == label
        assert expected.any()
        np.testing.assert_array_equal(subject.roi[:, names.index(name)], expected)
    assert "hV4" not in names
    assert "hV4" in subject.attrs["regions_without_voxels"]
    assert any("have no voxel in the mask" in line for line in volume[1].report)


def test_shared_pictures_are_the_test_split(truth, volume):
    shared = {f"nsd/{p - 1:05d}" for p in truth.lists[0, :6]}
    for subject in volume[0].values():
        test = {
            i
            for i, s in zip(subject.image_id, subject.split, strict=True)
            if s == "test"
        }
        assert test == shared & set(subject.image_id)


def test_validation_split_depends_on_the_picture_alone(truth):
    def splits(**options):
        dataset = nsd.open_dataset(truth.root, val_fraction=0.3, **options)
        return [
            dict(zip(s.image_id, s.split.tolist(), strict=True))
            for s in dataset.subjects
        ]

    both = splits()
    [alone] = splits(subjects=["subj02"])
    assert alone == both[1]
    [part] = splits(subjects=["subj01"], sessions=[2])
    assert all(both[0][i] == split for i, split in part.items())
    values = list(both[0].values())
    assert values.count("val") in range(1, 15)
    assert splits(seed=1)[0] != both[0]


def test_sessions_are_chosen_and_reported(truth):
    dataset = nsd.open_dataset(truth.root, subjects=["subj01"], sessions=[3, 1])
    [subject] = dataset.subjects
    x, y, z = np.nonzero(truth.rois[1, "nsdgeneral"] == 1)
    sessions = [truth.betas[1, s][:, x, y, z] for s in (1, 3)]
    check_responses(subject, sessions, shown(truth, 1, [1, 3]))
    assert subject.attrs["sessions"] == [1, 3]
    assert subject.attrs["trials"] == 48
    assert "subj01: sessions 1, 3 of 3" in dataset.report


def test_sessions_are_in_order_of_number(tmp_path, truth, volume):
    copied = nsd_files.copy(truth, tmp_path / "nsd")
    folder = nsd_files.betas_folder(copied.root, 1)
    (folder / "betas_session02.hdf5").rename(folder / "betas_session2.hdf5")
    (folder / "betas_session03.hdf5").rename(folder / "betas_session003.hdf5")
    [subject] = nsd.open_dataset(copied.root, subjects=["subj01"]).subjects
    expected = volume[0]["nsd-subj01"].responses
    np.testing.assert_array_equal(subject.responses, expected)


@pytest.mark.parametrize(
    ("mask", "atlas", "labels"),
    [
        ("V1v", "prf-visualrois", [1]),
        ("streams", "streams", [5]),
        ("streams:ventral", "streams", [5]),
        ("prf-visualrois", "prf-visualrois", range(1, 8)),
    ],
)
def test_mask_is_an_atlas_or_a_region(truth, mask, atlas, labels):
    [subject] = nsd.open_dataset(truth.root, subjects=["subj01"], mask=mask).subjects
    expected = np.argwhere(np.isin(truth.rois[1, atlas], list(labels)))
    assert subject.position.tolist() == expected.tolist()
    assert subject.attrs["mask"] == mask


def test_mask_is_a_nifti_file(tmp_path, truth):
    wanted = np.random.default_rng(3).random(nsd_files.GRIDS[1]) < 0.2
    path = tmp_path / "mask.nii.gz"
    nsd_files.write_nifti(path, wanted.astype(np.uint8))
    [subject] = nsd.open_dataset(truth.root, subjects=["subj01"], mask=path).subjects
    assert subject.position.tolist() == np.argwhere(wanted).tolist()


def test_nsdgeneral_by_name_leaves_rsc_out(truth):
    dataset = nsd.open_dataset(
        truth.root, subjects=["subj02"], space="fsaverage", mask="nsdgeneral"
    )
    [subject] = dataset.subjects
    expected = int(truth.rois["fsaverage", "nsdgeneral"].sum())
    assert subject.responses.shape[1] == expected


def test_pictures_come_in_the_order_asked_for(truth, volume):
    wanted = [150, 3, 77, 3]
    read = volume[1].read_images([f"nsd/{i:05d}" for i in wanted])
    for number, picture in zip(wanted, read, strict=True):
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, truth.bricks[number])


@pytest.mark.parametrize("name", ["nsd/00160", "nsd/-0001", "nsd/99999999999", "7"])
def test_unknown_picture_is_refused_by_name(volume, name):
    with pytest.raises(errors.InputError, match=r"imgBrick: no picture .*nsd/00159"):
        next(volume[1].read_images([name]))


def test_stimuli_may_lie_elsewhere(tmp_path, truth):
    copied = nsd_files.copy(truth, tmp_path / "nsd")
    nsd_files.brick_path(copied.root).rename(tmp_path / "nsd_stimuli.hdf5")
    dataset = nsd.open_dataset(copied.root, stimuli=tmp_path / "nsd_stimuli.hdf5")
    [picture] = dataset.read_images(["nsd/00009"])
    np.testing.assert_array_equal(picture, truth.bricks[9])


def test_absent_extras_are_reported(tmp_path, truth):
    copied = nsd_files.copy(truth, tmp_path / "nsd")
    (nsd_files.betas_folder(copied.root, 1) / "ncsnr.nii.gz").unlink()
    (nsd_files.experiment(copied.root) / "nsd_stim_info_merged.csv").unlink()
    for path in nsd_files.label_folder(copied.root, "subj01").iterdir():
        path.unlink()
    dataset = nsd.open_dataset(copied.root, subjects=["subj01"])
    [subject] = dataset.subjects
    assert np.isnan(subject.ncsnr).all()
    text = "\n".join(dataset.report)
    assert "ncsnr is not on disk" in text
    assert "nsd_stim_info_merged.csv is not on disk" in text
    assert "V1v" in subject.roi_names  # from the built-in table


def test_sources_name_every_file_with_its_hash(volume):
    names = [entry["file"] for entry in volume[1].sources]
    assert "nsddata/experiments/nsd/nsd_expdesign.mat" in names
    assert (
        f"nsddata_betas/ppdata/subj02/func1pt8mm/{nsd_files.BETAS}/ncsnr.nii.gz"
        in names
    )
    assert sum("betas_session" in name for name in names) == 5
    assert len(set(names)) == len(names)
    assert all(len(entry["sha256"]) == 64 for entry in volume[1].sources)


def test_scale_of_the_betas_does_not_matter():
    rng = np.random.default_rng(0)
    betas = rng.integers(-900, 900, (30, 6)).astype(np.int16)
    row, skip = np.arange(30) % 10, np.zeros(6, bool)
    one, other = np.zeros((10, 6), np.float32), np.zeros((10, 6), np.float32)
    nsd.add_z_scores(betas, row, one, skip)
    nsd.add_z_scores(betas / 300 + 7, row, other, skip)
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_float32_constant_counts_as_constant():
    betas = np.full((750, 3), 0.1, np.float32)
    betas[:, 1] = np.random.default_rng(0).normal(0, 1e-3, 750) + 1000
    total = np.zeros((750, 3), np.float32)
    none = np.zeros(3, bool)
    constant = nsd.add_z_scores(betas, np.arange(750), total, none)
    assert constant.tolist() == [True, False, True]
    assert (total[:, [0, 2]] == 0).all()
    assert total[:, 1].std() == pytest.approx(1, abs=1e-4)
