"""Predictions in files: each value at its voxel, for the programs of the field."""

import json

import nibabel as nib
import nilearn.image
import nilearn.maskers
import nilearn.surface
import numpy as np
import pytest
import xarray

from ubrain_jax.maps import brain, surface
from ubrain_jax.model import bundle

GRID = (5, 7, 3)
AFFINE = [[-2.0, 0, 0.1, 9], [0, 1.5, 0, -4], [0.2, 0, 3, 7], [0, 0, 0, 1]]
IDS = ["nsd/00001", "own/é <&>.png", "x"]


def make_subject(position, **attrs):
    position = np.asarray(position, np.int32)
    count = len(position)
    rng = np.random.default_rng(3)
    return bundle.Subject(
        "s1",
        rng.standard_normal((count, 4)).astype(np.float32),
        position,
        rng.random((count, 2)) < 0.5,
        ("V1v", "FFA-1"),
        np.where(np.arange(count) % 3, 0.5, np.nan).astype(np.float32),
        {"dataset": "t", "normalisation": "z-scored", **attrs},
        {},
    )


@pytest.fixture
def in_volume():
    rng = np.random.default_rng(0)
    position = np.argwhere(rng.random(GRID) < 0.4)
    subject = make_subject(position, space="own", grid=list(GRID), affine=AFFINE)
    return subject, rng.standard_normal((3, len(position))).astype(np.float32)


@pytest.fixture
def on_surface():
    """Voxels 0..3 left of 163842 vertices, 4..6 right, in no order."""
    left, right = [163841, 5, 0, 9], [2, 163840, 5]
    position = [[0, v, -1] for v in left] + [[1, v, -1] for v in right]
    values = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
    return make_subject(position, space="fsaverage"), values


def in_blocks(values):
    return [(slice(0, 2), values[:2]), (np.array([2]), values[2:])]


def put(path, subject, values, ids=IDS, **options):
    return brain.write(path, in_blocks(values), ids, subject, **options)


@pytest.mark.parametrize("name", ["p.nii", "p.nii.gz"])
def test_each_voxel_of_a_volume_is_at_its_place(in_volume, tmp_path, name):
    subject, values = in_volume
    put(tmp_path / name, subject, values)
    image = nib.load(tmp_path / name)
    data = np.asarray(image.dataobj)
    assert data.shape == (*GRID, 3)
    assert data.dtype == np.float32
    for v, (i, j, k) in enumerate(subject.position):
        np.testing.assert_array_equal(data[i, j, k], values[:, v])
    assert np.isfinite(data).sum() == values.size
    np.testing.assert_allclose(image.affine, AFFINE, rtol=1e-6)
    assert (image.header["sform_code"], image.header["qform_code"]) == (2, 2)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert b"NaN: no voxel" in image.header["descrip"].item()
    told = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    assert (told["Images"], told["Files"]) == (IDS, [name])


def test_nilearn_finds_a_voxel_by_its_millimetres(in_volume, tmp_path):
    subject, values = in_volume
    put(tmp_path / "p.nii.gz", subject, values)
    image = nilearn.image.load_img(str(tmp_path / "p.nii.gz"))
    where = np.array(AFFINE)[:3, :3] @ subject.position[11] + np.array(AFFINE)[:3, 3]
    back = nilearn.image.coord_transform(*where, np.linalg.inv(image.affine))
    i, j, k = np.rint(back).astype(int)
    np.testing.assert_array_equal(image.get_fdata()[i, j, k], values[:, 11])
    inside = np.zeros(GRID, np.int8)
    inside[tuple(subject.position.T)] = 1
    masker = nilearn.maskers.NiftiMasker(
        nib.Nifti1Image(inside, image.affine), standardize=None
    )
    np.testing.assert_allclose(masker.fit_transform(image), values, rtol=1e-6)


@pytest.mark.parametrize("name", ["p.func.gii", "p.mgh", "p.mgz"])
def test_each_vertex_of_both_hemispheres_is_at_its_place(on_surface, tmp_path, name):
    subject, values = on_surface
    put(tmp_path / name, subject, values)
    files = surface.paths(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*(p.name for p in files), "p.json"]
    )
    for side, file in enumerate(files):
        if name.endswith(".mgh"):  # which nilearn does not take
            data = nib.MGHImage.from_bytes(file.read_bytes()).get_fdata()[:, 0, 0]
        else:
            data = nilearn.surface.load_surf_data(str(file))
        assert data.shape == (163842, 3)
        here = subject.position[:, 0] == side
        vertex = subject.position[here, 1]
        np.testing.assert_array_equal(data[vertex], values[:, here].T)
        assert np.isfinite(data).sum() == here.sum() * 3


def test_gifti_names_its_side_and_images(on_surface, tmp_path):
    put(tmp_path / "p.func.gii", *on_surface)
    for side, name in (("L", "CortexLeft"), ("R", "CortexRight")):
        image = nib.load(tmp_path / f"p_hemi-{side}.func.gii")
        assert image.meta["AnatomicalStructurePrimary"] == name
        assert [a.meta["Name"] for a in image.darrays] == IDS
        assert {a.intent for a in image.darrays} == {0}
        assert {a.encoding for a in image.darrays} == {3}


def test_npy_is_as_numpy_saves_it(in_volume, tmp_path):
    subject, values = in_volume
    put(tmp_path / "p.npy", subject, values)
    np.save(tmp_path / "q.npy", values)
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), values)
    assert (tmp_path / "p.npy").read_bytes() == (tmp_path / "q.npy").read_bytes()
    told = json.loads((tmp_path / "p.json").read_text())
    assert told["Voxels"]["position"] == subject.position.tolist()
    assert told["Voxels"]["roi"]["V1v"] == np.flatnonzero(subject.roi[:, 0]).tolist()
    assert told["Voxels"]["ncsnr"][:2] == [None, 0.5]


@pytest.mark.parametrize("chunk", [1, 8, 2**25])
def test_zarr_has_its_coordinates(in_volume, tmp_path, monkeypatch, chunk):
    subject, values = in_volume
    monkeypatch.setattr(brain, "_CHUNK", chunk * len(subject.position))
    put(tmp_path / "p.zarr", subject, values, about={"Encoder": "e"})
    with xarray.open_zarr(tmp_path / "p.zarr") as table:
        assert table.prediction.dims == ("image", "voxel")
        np.testing.assert_array_equal(table.prediction.sel(image="x"), values[2])
        np.testing.assert_array_equal(table.position, subject.position)
        np.testing.assert_array_equal(table.ncsnr, subject.ncsnr)
        np.testing.assert_array_equal(table.roi.sel(roi_name="V1v"), subject.roi[:, 0])
        assert table.attrs["Encoder"] == "e"
        assert set(table.coords) >= {"position", "ncsnr", "roi", "roi_name", "image"}
