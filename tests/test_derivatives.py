"""Maps as a BIDS derivative: each value at its voxel, each label with its name."""

import json
import re
import xml.etree.ElementTree as ElementTree

import nibabel as nib
import nilearn.image
import nilearn.surface
import numpy as np
import pytest

from ubrain_jax import errors
from ubrain_jax.maps import derivatives
from ubrain_jax.model import bundle

GRID = (5, 7, 4)
AFFINE = [[-2.0, 0, 0.1, 9], [0, 1.5, 0, -4], [0.2, 0, 3, 7], [0, 0, 0, 1]]
NAMES = ["V1 <&>", "c02", "Über"]
COLOURS = ["#0072b2", "#d55e00", "#0072b2"]
# Left and right differ in number, place and order.
LEFT, RIGHT = [10241, 5, 0, 9], [2, 10240, 5]


def make_subject(position, name="nsd-subj01", **attrs):
    position = np.asarray(position, np.int32)
    num = len(position)
    rng = np.random.default_rng(0)
    return bundle.Subject(
        name,
        rng.standard_normal((num, 4)).astype(np.float32),
        position,
        rng.random((num, 1)) < 0.5,
        ("V1",),
        np.ones(num, np.float32),
        {"dataset": "t", **attrs},
        {},
    )


def on_surface(space="fsaverage5", **changes):
    position = [[0, v, -1] for v in LEFT] + [[1, v, -1] for v in RIGHT]
    return make_subject(position, space=space, **changes)


@pytest.fixture
def in_volume():
    place = np.argwhere(np.random.default_rng(1).random(GRID) < 0.3)
    return make_subject(place, space="func1pt8mm", grid=list(GRID), affine=AFFINE)


def some(subject):
    """A map with NaN and labels with none."""
    num = len(subject.position)
    values = np.random.default_rng(2).standard_normal(num)
    values[1] = np.nan
    return {"noise r": values}, {"clusters": (np.arange(num) % 4 - 1, NAMES, COLOURS)}


def the(files, ending):
    [found] = [f for f in files if f.name.endswith(ending)]
    return found


def test_a_volume_has_each_value_at_its_voxel(in_volume, tmp_path):
    maps, labels = some(in_volume)
    files = derivatives.write(tmp_path / "d", in_volume, maps, labels, desc="r")
    image = nilearn.image.load_img(str(the(files, "statmap.nii.gz")))
    np.testing.assert_allclose(image.affine, AFFINE, rtol=1e-6)
    data, where = image.get_fdata(), tuple(in_volume.position.T)
    np.testing.assert_array_equal(data[where], maps["noise r"].astype(np.float32))
    assert np.isfinite(data).sum() == len(in_volume.position) - 1
    keys = nib.load(the(files, "dseg.nii.gz"))
    assert np.issubdtype(keys.get_data_dtype(), np.integer)
    assert keys.header.get_intent()[0] == "label"
    expected = np.zeros(GRID)
    for number, (i, j, k) in enumerate(in_volume.position):
        expected[i, j, k] = number % 4
    np.testing.assert_array_equal(np.asarray(keys.dataobj), expected)


def test_names_are_those_of_bids(in_volume, tmp_path):
    files = derivatives.write(
        tmp_path / "d", in_volume, *some(in_volume), desc="my maps"
    )
    told = sorted(str(f.relative_to(tmp_path / "d")) for f in files)
    begin = "sub-nsdsubj01_space-func1pt8mm"
    label = f"sub-nsdsubj01/anat/{begin}_seg-clusters_desc-mymaps_dseg"
    number = f"sub-nsdsubj01/func/{begin}_stat-noiser_desc-mymaps_statmap"
    endings = ["ctab", "json", "nii.gz", "tsv"]
    expected = [f"{label}.{e}" for e in endings]
    assert told == [*expected, f"{number}.json", f"{number}.nii.gz"]
    about = json.loads((tmp_path / "d/dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative"
    assert about["GeneratedBy"][0]["Name"] == "ubrain_jax"
    side = json.loads(the(files, "statmap.json").read_text())
    assert (side["Map"], side["Subject"]) == ("noise r", "nsd-subj01")
    assert (side["Desc"], side["SpatialReference"]) == ("my maps", "func1pt8mm")


def test_the_same_maps_are_the_same_bytes(in_volume, tmp_path):
    maps = some(in_volume)
    one = derivatives.write(tmp_path / "a", in_volume, *maps)
    two = derivatives.write(tmp_path / "b", in_volume, *maps)
    assert [f.read_bytes() for f in one] == [f.read_bytes() for f in two]


def test_tables_name_and_colour_every_key(in_volume, tmp_path):
    _, labels = some(in_volume)
    names = ["V1 <&>", "two\twords\n", "Über"]
    labels = {"clusters": (labels["clusters"][0], names, COLOURS)}
    files = derivatives.write(tmp_path / "d", in_volume, labels=labels)
    lines = the(files, "dseg.tsv").read_text().splitlines()
    assert [line.split("\t") for line in lines] == [
        ["index", "name", "color"],
        ["0", "Background", "#ffffff"],
        ["1", "V1 <&>", "#0072b2"],
        ["2", "two words", "#d55e00"],
        ["3", "Über", "#0072b3"],
    ]
    lut = the(files, "dseg.ctab").read_text().splitlines()
    assert lut[0] == "0 ??? 0 0 0 0"
    assert lut[1:] == [
        "1 V1_<&> 0 114 178 0",
        "2 two_words 213 94 0 0",
        "3 Über 0 114 179 0",
    ]


@pytest.mark.parametrize("space", ["fsaverage5", "fsaverage", "fsLR32k"])
def test_gifti_has_each_value_at_its_vertex_of_its_side(tmp_path, space):
    subject = on_surface(space)
    maps, labels = some(subject)
    files = derivatives.write(tmp_path, subject, maps, labels)
    count = {"fsaverage5": 10242, "fsaverage": 163842, "fsLR32k": 32492}[space]
    for side, (letter, vertex) in enumerate(zip("LR", (LEFT, RIGHT), strict=True)):
        [values] = [f for f in files if re.search(f"hemi-{letter}.*func.gii", f.name)]
        data = nilearn.surface.load_surf_data(str(values))
        here = subject.position[:, 0] == side
        assert data.shape == (count,)
        np.testing.assert_array_equal(data[vertex], np.float32(maps["noise r"][here]))
        assert np.isfinite(data).sum() == np.isfinite(maps["noise r"][here]).sum()
        [keys] = [f for f in files if re.search(f"hemi-{letter}.*label.gii", f.name)]
        expected = np.zeros(count)
        expected[vertex] = labels["clusters"][0][here] + 1
        found = nilearn.surface.load_surf_data(str(keys))
        np.testing.assert_array_equal(found, expected)
        primary = nib.load(keys).meta["AnatomicalStructurePrimary"]
        assert primary == {"L": "CortexLeft", "R": "CortexRight"}[letter]


def test_the_label_table_is_as_workbench_and_freesurfer_want_it(tmp_path):
    """Neither program is here: the structure that their formats ask for is checked."""
    subject = on_surface()
    files = derivatives.write(tmp_path, subject, *some(subject))
    [path] = [f for f in files if "hemi-R" in f.name and f.name.endswith("label.gii")]
    root = ElementTree.parse(path).getroot()  # noqa: S314  (ours)
    found = root.findall("LabelTable/Label")
    assert [x.get("Key") for x in found] == ["0", "1", "2", "3"]
    assert [x.text for x in found] == ["???", *NAMES]
    colour = [[float(x.get(c)) for c in ("Red", "Green", "Blue")] for x in found[1:]]
    for rgb, text in zip(colour, ("0072b2", "d55e00", "0072b3"), strict=True):
        assert bytes(np.rint(np.array(rgb) * 255).astype(np.uint8)).hex() == text
    assert [float(x.get("Alpha")) for x in found] == [0, 1, 1, 1]
    array = root.find("DataArray")
    assert array.get("Intent") == "NIFTI_INTENT_LABEL"
    assert array.get("DataType") == "NIFTI_TYPE_INT32"
    # Between label.gii and its table nothing is lost in nibabel either.
    assert nib.load(path).labeltable.get_labels_as_dict()[1] == "V1 <&>"


def test_cifti_of_a_surface_has_both_hemispheres(tmp_path):
    subject = on_surface("fsLR32k")
    maps, labels = some(subject)
    files = derivatives.write(tmp_path, subject, maps, labels)
    for ending in ("dscalar.nii", "dlabel.nii"):
        image = nib.load(the(files, ending))
        axis = image.header.get_axis(1)
        expected = np.concatenate([np.sort(LEFT), np.sort(RIGHT)])
        np.testing.assert_array_equal(axis.vertex, expected)
        assert set(axis.nvertices.values()) == {32492}
        data = image.get_fdata()[0]
        for number, (side, vertex, _) in enumerate(subject.position):
            name = f"CIFTI_STRUCTURE_CORTEX_{('LEFT', 'RIGHT')[side]}"
            [row] = np.flatnonzero((axis.name == name) & (axis.vertex == vertex))
            given = maps["noise r"] if "scalar" in ending else np.arange(7) % 4
            np.testing.assert_equal(data[row], np.float32(given[number]))
    image = nib.load(the(files, "dlabel.nii"))
    table = image.header.get_axis(0).label[0]
    assert table[0] == ("???", (1, 1, 1, 0))
    assert [table[k][0] for k in (1, 2, 3)] == NAMES
    assert image.nifti_header.get_intent()[0] == "ConnDenseLabel"
    name = "sub-nsdsubj01_space-fsLR_seg-clusters_den-32k_desc-ubrain_dseg.dlabel.nii"
    assert the(files, "dlabel.nii").name == name


def test_grayordinates_keep_what_is_below_the_cortex(tmp_path):
    axis = nib.cifti2.BrainModelAxis.from_surface(np.arange(29696), 32492, "CortexLeft")
    axis += nib.cifti2.BrainModelAxis.from_surface(
        np.arange(29716) + 7, 32492, "CortexRight"
    )
    rest = 91282 - len(axis)
    below = np.stack(np.unravel_index(np.arange(rest), (40, 40, 40)), 1)
    axis += nib.cifti2.BrainModelAxis(
        "thalamus_left", voxel=below, affine=np.eye(4), volume_shape=(40, 40, 40)
    )
    scalar = nib.cifti2.ScalarAxis(["x"])
    template = nib.Cifti2Image(np.zeros((1, 91282), np.float32), (scalar, axis))
    template.to_filename(tmp_path / "t.dscalar.nii")
    position = [[0, 3, -1], [0, 29696 + 4, -1], [0, 91281, -1]]
    subject = make_subject(position, space="fsLR32k")
    subject = subject._replace(attrs={**subject.attrs, "dataset": "mosaic"})
    maps = {"r": np.array([1.0, 2, 3])}
    with pytest.raises(errors.InputError, match="template"):
        derivatives.write(tmp_path / "d", subject, maps)
    files = derivatives.write(
        tmp_path / "d", subject, maps, template=tmp_path / "t.dscalar.nii"
    )
    image = nib.load(the(files, "dscalar.nii"))
    assert image.header.get_axis(1) == axis
    data = image.get_fdata()[0]
    np.testing.assert_array_equal(data[[3, 29700, 91281]], [1, 2, 3])
    assert np.isfinite(data).sum() == 3
    [right] = [f for f in files if "hemi-R" in f.name]
    assert nilearn.surface.load_surf_data(str(right))[11] == 2
    assert json.loads(the(files, "statmap.json").read_text())["NotOnCortex"] == 1


def test_a_name_of_markup_and_slashes_stays_inside(tmp_path):
    subject = on_surface(name="../<b>é/x</b>")
    files = derivatives.write(tmp_path / "d", subject, {"../../r": np.ones(7)})
    assert {f.parent.parent.name for f in files} == {"sub-bexb"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d"]
    told = json.loads(the(files, ".json").read_text())
    assert (told["Subject"], told["Map"]) == ("../<b>é/x</b>", "../../r")


def test_a_space_that_is_a_sentence_is_in_the_sidecar_alone(tmp_path):
    subject = make_subject([[0, 1, 2]], space="own, 4 x 4 x 4", grid=[4, 4, 4])
    files = derivatives.write(tmp_path, subject, {"r": np.ones(1)})
    assert "_space-individual_" in the(files, "nii.gz").name
    told = json.loads(the(files, ".json").read_text())
    assert told["SpatialReference"] == "own, 4 x 4 x 4"
    assert told["Millimetres"] == "not known"
    header = nib.load(the(files, "nii.gz")).header
    assert (header["sform_code"], header["qform_code"]) == (0, 0)


def test_maps_of_several_calls_and_subjects_stand_side_by_side(in_volume, tmp_path):
    maps, labels = some(in_volume)
    one = derivatives.write(tmp_path / "d", in_volume, maps)
    two = derivatives.write(tmp_path / "d", in_volume, labels=labels)
    other = in_volume._replace(name="b")
    three = derivatives.write(tmp_path / "d", other, maps)
    assert all(f.is_file() for f in [*one, *two, *three])
    with pytest.raises(errors.OutputError, match="exists"):
        derivatives.write(tmp_path / "d", in_volume, maps)
    changed = {"noise r": np.zeros(len(in_volume.position))}
    again = derivatives.write(tmp_path / "d", in_volume, changed, overwrite=True)
    assert np.nansum(nib.load(the(again, "nii.gz")).get_fdata()) == 0
    assert all(f.is_file() for f in two)
    alike = in_volume._replace(name="nsd_subj01")
    with pytest.raises(errors.OutputError, match="'nsd-subj01', not of 'nsd_subj01'"):
        derivatives.write(tmp_path / "d", alike, changed, overwrite=True)


def test_what_is_not_ours_is_left_alone(in_volume, tmp_path):
    maps, _ = some(in_volume)
    (tmp_path / "dataset_description.json").write_text('{"Name": "theirs"}')
    for where in (tmp_path, tmp_path / "dataset_description.json"):
        with pytest.raises(errors.OutputError):
            derivatives.write(where, in_volume, maps, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["dataset_description.json"]


def test_nothing_is_left_of_a_write_that_fails(in_volume, tmp_path, monkeypatch):
    maps, _ = some(in_volume)

    def fail(*_):
        raise OSError(28, "No space left on device")

    derivatives.write(tmp_path / "d", in_volume, maps)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(derivatives, "_fill", fail)
    for folder, desc in ((tmp_path / "d", "b"), (tmp_path / "e", "c")):
        with pytest.raises(errors.OutputError, match="No space left"):
            derivatives.write(folder, in_volume, maps, desc=desc)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("maps", "labels", "message"),
    [
        ({}, {}, "no maps"),
        ({"r": np.ones(3)}, {}, "one a voxel"),
        ({"r": np.full(7, np.inf)}, {}, "infinite"),
        ({"r": np.array(["x"] * 7)}, {}, "numbers"),
        ({"///": np.ones(7)}, {}, "no letter"),
        ({"a b": np.ones(7), "A-B": np.ones(7)}, {}, "one file"),
        ({}, {"c": (np.full(7, 3), NAMES, COLOURS)}, "of no name"),
        ({}, {"c": (np.full(7, 0.5), NAMES, COLOURS)}, "whole numbers"),
        ({}, {"c": (np.zeros(7), ["a", "a"], None)}, "named twice"),
        ({}, {"c": (np.zeros(7), ["a"], ["#12"])}, "no colours"),
    ],
)
def test_maps_that_are_none_are_refused(tmp_path, maps, labels, message):
    with pytest.raises(errors.InputError, match=message):
        derivatives.write(tmp_path / "d", on_surface(), maps, labels)
    assert not (tmp_path / "d").exists()


def test_a_subject_of_no_space_is_refused(tmp_path):
    with pytest.raises(errors.InputError, match="no grid and no vertices"):
        derivatives.write(tmp_path, make_subject([[0, 1, 2]]), {"r": np.ones(1)})
