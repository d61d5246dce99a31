"""Predictions in files: each value at its voxel, for the programs of the field."""

import json
import resource
import signal

import nibabel as nib
import nilearn.image
import nilearn.maskers
import nilearn.surface
import numpy as np
import pytest
import xarray

from ubrain_jax import errors
from ubrain_jax.maps import brain, sheets, surface
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
        assert table.response.dims == ("image", "voxel")
        np.testing.assert_array_equal(table.response.sel(image="x"), values[2])
        np.testing.assert_array_equal(table.y, subject.position[:, 1])
        np.testing.assert_array_equal(table.ncsnr, subject.ncsnr)
        np.testing.assert_array_equal(table.coords["roi_V1v"], subject.roi[:, 0])
        assert table.attrs["Encoder"] == "e"


def test_a_hundred_volumes_take_the_memory_of_one(in_volume, tmp_path):
    """Each image is asked for only when the one before is written."""
    subject, values = in_volume
    asked = []

    def blocks():
        for number in range(100):
            asked.append(number)
            yield [number], values[:1] + number

    ids = [str(k) for k in range(100)]
    output = brain.check(tmp_path / "p.nii", ids, subject)
    written = []
    rows = sheets.rows_of(blocks(), ids, values.shape[1])
    [sheet] = output.sheets

    def watched(number, row):
        written.append(len(asked))
        return sheet.image(number, row)

    sheets.write([sheet._replace(image=watched)], rows, tmp_path / "p.json", "{}")
    assert written == list(range(1, 101))
    assert (tmp_path / "p.nii").stat().st_size == 352 + 100 * 4 * np.prod(GRID)


def test_more_images_than_nifti_1_counts_become_nifti_2(tmp_path):
    subject = make_subject([[0, 1, 2]], grid=[1, 2, 3], affine=np.eye(4).tolist())
    values = np.arange(40000, dtype=np.float32)[:, None]
    ids = [str(k) for k in range(40000)]
    brain.write(tmp_path / "p.nii.gz", [(slice(None), values)], ids, subject)
    image = nib.load(tmp_path / "p.nii.gz")
    assert isinstance(image, nib.Nifti2Image)
    np.testing.assert_array_equal(image.get_fdata()[0, 1, 2], values[:, 0])
    np.testing.assert_array_equal(image.affine, np.eye(4))


def test_unknown_millimetres_are_said_to_be_unknown(in_volume, tmp_path):
    subject, values = in_volume
    subject = subject._replace(attrs={"grid": list(GRID), "affine": "not in the files"})
    output = put(tmp_path / "p.nii", subject, values)
    header = nib.load(tmp_path / "p.nii").header
    assert (header["sform_code"], header["qform_code"]) == (0, 0)
    assert header.get_xyzt_units()[0] == "unknown"
    assert "millimetres of s1 are not known" in output.notes[0]


def test_some_voxels_keep_their_places(in_volume, tmp_path):
    subject, values = in_volume
    inside = subject.roi[:, 1]
    voxels = np.flatnonzero(inside)
    put(tmp_path / "p.nii", subject, values[:, inside], voxels=voxels)
    data = nib.load(tmp_path / "p.nii").get_fdata()
    for v in voxels:
        np.testing.assert_array_equal(data[tuple(subject.position[v])], values[:, v])
    assert np.isfinite(data).sum() == 3 * inside.sum()


def write_template(path, *, count=91282, left=29696, right=29716):
    """A CIFTI file whose cortex leaves out every eleventh vertex and the last ones."""
    kept = [v for v in range(32492) if v % 11]
    axis = nib.cifti2.BrainModelAxis
    models = [
        axis.from_surface(kept[:left], 32492, "CORTEX_LEFT"),
        axis.from_surface(range(32492 - right, 32492), 32492, "CORTEX_RIGHT"),
        axis(
            "CIFTI_STRUCTURE_THALAMUS_LEFT",
            voxel=np.argwhere(np.ones((count, 1, 1)))[: count - left - right],
            affine=np.eye(4),
            volume_shape=(count, 1, 1),
        ),
    ]
    models = models[0] + models[1] + models[2]
    header = nib.Cifti2Header.from_axes((nib.cifti2.ScalarAxis(["a"]), models))
    nib.Cifti2Image(np.zeros((1, count), np.float32), header).to_filename(path)
    return kept


def test_grayordinates_find_their_vertices_in_a_template(tmp_path):
    kept = write_template(tmp_path / "t.dscalar.nii", left=29000, right=30412)
    position = [[0, 0, -1], [0, 28999, -1], [1, 29000, -1], [1, 59411, -1]]
    position += [[2, 59412, -1], [2, 91281, -1]]
    subject = make_subject(position, dataset="mosaic", space="fsLR32k")
    values = np.arange(18, dtype=np.float32).reshape(3, 6)
    path = tmp_path / "p.func.gii"
    output = put(path, subject, values, template=tmp_path / "t.dscalar.nii")
    assert output.notes == ["2 voxels are on no hemisphere and left out"]
    left, right = (
        nilearn.surface.load_surf_data(str(file)) for file in surface.paths(path)
    )
    assert left.shape == right.shape == (32492, 3)
    np.testing.assert_array_equal(left[[kept[0], kept[28999]]], values[:, :2].T)
    np.testing.assert_array_equal(right[[32492 - 30412, 32491]], values[:, 2:4].T)
    assert np.isfinite(left).sum() == np.isfinite(right).sum() == 6
    with pytest.raises(errors.InputError, match=r"medial wall.*--template"):
        put(tmp_path / "q.func.gii", subject, values)


@pytest.mark.parametrize("content", ["nifti", "text", "short", "absent"])
def test_what_is_no_template_is_refused(tmp_path, content):
    path = tmp_path / "t.dscalar.nii"
    if content == "nifti":
        nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)).to_filename(path)
    elif content == "text":
        path.write_text("x")
    elif content == "short":
        write_template(path, count=60000, left=20, right=30)
    subject = make_subject([[0, 0, -1]], dataset="mosaic", space="fsLR32k")
    with pytest.raises(errors.InputError, match=r"t\.dscalar\.nii.*dscalar"):
        put(tmp_path / "p.mgz", subject, np.zeros((3, 1)), template=path)
    assert not [p for p in tmp_path.iterdir() if p != path]


def never():
    """Blocks that must not be asked for."""
    raise AssertionError("computed before it was checked")
    yield


VOXEL, VERTEX = [[1, 2, 0]], [[1, 7, -1]]
IN_GRID, ON_FSAVERAGE = {"grid": [5, 7, 3]}, {"space": "fsaverage"}


@pytest.mark.parametrize(
    ("name", "position", "attrs", "message"),
    [
        ("p.txt", VOXEL, IN_GRID, r"another ending.*\.npy, \.zarr, \.nii"),
        ("p", VOXEL, IN_GRID, "no ending"),
        (".nii", VOXEL, IN_GRID, "ending"),
        ("p.gii", VERTEX, ON_FSAVERAGE, r"\.func\.gii"),
        ("p.func.gii", VOXEL, IN_GRID, r"surface is asked for.*in a volume"),
        ("p.nii.gz", VERTEX, ON_FSAVERAGE, r"volume is asked for.*in a surface"),
        ("p.nii", VOXEL, {"space": "func1pt8mm"}, "no grid and no vertices"),
        ("p.mgh", VOXEL, {}, "no grid and no vertices.*Prepare"),
        ("p.nii", [[1, 7, 0]], IN_GRID, "1 voxels outside of its grid"),
        ("p.nii", [[-1, -1, -1]], IN_GRID, "1 voxels outside of its grid"),
        ("p.nii", VOXEL * 2, IN_GRID, "1 voxels at the place of another"),
        ("p.nii", VOXEL, {"grid": [5, 7]}, "sides of its volume"),
        ("p.nii", VOXEL, {**IN_GRID, "affine": [[1]]}, "4 x 4 numbers"),
        ("p.nii", VOXEL, {**IN_GRID, "affine": [[0] * 4] * 4}, "singular"),
        ("p.mgh", [[1, -1, -1]], ON_FSAVERAGE, "not known.*--masks"),
        ("p.mgh", [[2, 1, -1]], ON_FSAVERAGE, "outside"),
        ("p.mgh", [[0, 163842, -1]], ON_FSAVERAGE, "outside of 163842 and 163842"),
        ("p.mgh", [[1, 6, -1]], {"vertices": [9, 6]}, "outside of 9 and 6"),
        ("p.mgz", VERTEX * 2, ON_FSAVERAGE, "1 voxels at the place of another"),
        ("p.mgh", VERTEX, {"space": "fsLR32k", "dataset": "mosaic"}, "medial wall"),
        ("no/p.npy/x.npy", VOXEL, IN_GRID, "is no folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_computing(
    tmp_path, name, position, attrs, message
):
    (tmp_path / "no").write_text("a file")
    with pytest.raises(errors.InputError, match=message):
        brain.write(tmp_path / name, never(), IDS, make_subject(position, **attrs))
    assert [p.name for p in tmp_path.iterdir()] == ["no"]


@pytest.mark.parametrize("name", ["p.npy", "p.zarr", "p.nii.gz"])
def test_a_full_disk_is_refused_before_computing(tmp_path, monkeypatch, name):
    real = sheets.os.statvfs

    class Full:
        f_bavail, f_frsize = 1, 1

    monkeypatch.setattr(sheets.os, "statvfs", lambda path: real(path) and Full)
    with pytest.raises(errors.OutputError, match=r"takes about .* GB are free"):
        brain.write(tmp_path / name, never(), IDS, make_subject(VOXEL, **IN_GRID))


@pytest.mark.parametrize("name", ["p.npy", "p.zarr", "p.nii.gz"])
def test_existing_files_are_replaced_only_on_request(in_volume, tmp_path, name):
    subject, values = in_volume
    put(tmp_path / name, subject, values)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(errors.OutputError, match=r"exist.*--overwrite"):
        brain.write(tmp_path / name, never(), IDS, subject)
    put(tmp_path / name, subject, values * 2, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    if name == "p.npy":
        np.testing.assert_array_equal(np.load(tmp_path / name), values * 2)


@pytest.mark.parametrize("name", ["p.npy", "p.zarr", "p.nii"])
def test_a_folder_that_is_no_prediction_stays(in_volume, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("x")
    with pytest.raises(errors.OutputError, match="is no"):
        put(tmp_path / name, *in_volume, overwrite=True)
    assert (tmp_path / name / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize("ending", ["npy", "zarr", "nii", "nii.gz"])
@pytest.mark.parametrize(
    ("blocks", "error"),
    [
        (lambda v: [(slice(0, 2), v[:2])], "2 of 3 images came"),
        (lambda v: [(slice(1, 3), v[1:])], "in order"),
        (lambda v: [(slice(0, 3), v[:2])], "block"),
        (lambda v: [(slice(0, 3), v[:, 1:])], "block"),
        (lambda v: [([0], v[:1]), ([1, 2], v[1:] * np.inf)], "2 images are not finite"),
    ],
)
def test_wrong_blocks_leave_nothing(in_volume, tmp_path, ending, blocks, error):
    subject, values = in_volume
    with pytest.raises(ValueError, match=error):
        brain.write(tmp_path / f"p.{ending}", blocks(values), IDS, subject)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["p.npy", "p.zarr", "p.nii.gz", "p.func.gii", "p.mgz"])
def test_a_disk_that_fills_while_writing_leaves_nothing(tmp_path, name):
    """A limit on the size of files stands for the disk: writes fail with EFBIG."""
    flat = name in ("p.npy", "p.zarr", "p.nii.gz")
    rng = np.random.default_rng(0)
    position = np.argwhere(np.ones((40, 50, 30)))
    attrs = {"grid": [40, 50, 30]}
    if not flat:
        vertex = np.arange(60000)
        position = np.stack([vertex % 2, vertex, np.full(60000, -1)], 1)
        attrs = {"space": "fsaverage"}
    values = rng.standard_normal((3, 60000)).astype(np.float32)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    try:
        with pytest.raises(errors.OutputError, match="cannot be written"):
            put(tmp_path / name, make_subject(position, **attrs), values)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(tmp_path.iterdir())
