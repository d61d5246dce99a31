"""Pictures of the brain: what is seen is what is there, on the side where it is."""

import re
import socket

import numpy as np
import pytest
from nibabel.gifti import gifti
from PIL import Image
from scipy import spatial

from tests import test_derivatives
from ubrain_jax import errors
from ubrain_jax.maps import cortex, shades, slices

MARK = "#ff00ff"  # no colour map and no cortex has it
make_subject = test_derivatives.make_subject


def is_marked(path):
    """(y, x) where the picture has the colour of the mark."""
    pixel = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (pixel[:, :, 0] > 200) & (pixel[:, :, 1] < 60) & (pixel[:, :, 2] > 200)


def on_mesh(left, right, space="fsaverage5"):
    position = [[0, v, -1] for v in left] + [[1, v, -1] for v in right]
    return make_subject(position, space=space)


def mark(path, subject, **options):
    """Draws all its voxels in the colour of the mark."""
    label = np.zeros(len(subject.position), int)
    labels = (["mark"], [MARK])
    return cortex.draw(path, subject, label, kind="labels", labels=labels, **options)


def anterior(side, num=150):
    return np.argsort(cortex.bundled("inflated", side).point[:, 1])[-num:]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    cortex.bundled.cache_clear()


def test_the_meshes_come_along(no_network):
    for view in cortex.VIEWS:
        for side in range(2):
            mesh = cortex.bundled(view, side)
            assert len(mesh.point) == len(mesh.sulc) == 10242
            assert mesh.triangle.max() < 10242


def test_vertices_of_coarser_spheres_come_first():
    """Each later vertex is the middle of an edge: two neighbours are older.

    So is every icosahedron of FreeSurfer made, hence fsaverage from fsaverage5.
    """
    triangle = cortex.bundled("inflated", 0).triangle
    edge = np.concatenate([triangle[:, [0, 1]], triangle[:, [1, 2]]])
    edge = np.unique(np.sort(np.concatenate([edge, triangle[:, [2, 0]]]), 1), axis=0)
    crossing = edge[(edge[:, 0] < 2562) & (edge[:, 1] >= 2562)]
    young, older = np.unique(crossing[:, 1], return_counts=True)
    assert len(young) == 10242 - 2562
    assert (older == 2).all()
    assert ((edge < 2562).sum(1) < 2).all()


def test_a_pixel_sees_the_nearest_triangle_and_its_nearest_corner():
    """Against every pixel and triangle, one by one."""
    rng = np.random.default_rng(0)
    point = np.concatenate([rng.uniform(-3, 23, (30, 2)), rng.normal(size=(30, 1))], 1)
    triangle = np.array([rng.choice(30, 3, replace=False) for _ in range(25)])
    a, b, c = point[triangle].transpose(1, 0, 2)
    turned = np.cross(b - a, c - a)[:, 2] < 0
    triangle[turned] = triangle[turned][:, ::-1]
    seen = cortex.look(point, triangle, np.array([20, 16]))
    assert seen.vertex.shape == (16, 20)
    for y in range(16):
        for x in range(20):
            best, depth = -1, -np.inf
            for corners in triangle:
                edges = np.vstack([point[corners, :2].T, np.ones(3)])
                weight = np.linalg.solve(edges, [x + 0.5, y + 0.5, 1])
                if weight.min() >= 0 and weight @ point[corners, 2] > depth:
                    best = corners[weight.argmax()]
                    depth = weight @ point[corners, 2]
            assert seen.vertex[y, x] == best
            assert np.isclose(seen.depth[y, x], depth) or depth == -np.inf


def test_every_vertex_of_the_flat_map_is_seen():
    mesh = cortex.bundled("flat", 1)
    used = np.unique(mesh.triangle)
    low = mesh.point[used].min(0)
    at = (mesh.point - low) * [4, 4, 1]
    size = np.ptp(mesh.point[used], 0)[:2] * 4
    seen = cortex.look(at, mesh.triangle, size)
    assert len(np.intersect1d(seen.vertex, used)) > 0.995 * len(used)
    # A vertex is seen where it is: no farther than its triangle reaches.
    y, x = np.nonzero(seen.vertex >= 0)
    corner = at[mesh.triangle[seen.triangle[y, x]], :2]
    reach = np.linalg.norm(corner - np.roll(corner, 1, 1), axis=2).max(1)
    place = at[seen.vertex[y, x], :2] - np.stack([x, y], 1) - 0.5
    assert (np.linalg.norm(place, axis=1) <= reach).all()


def test_a_border_separates_a_region():
    x, y = np.meshgrid(np.arange(6.0), np.arange(5.0))
    point = np.stack([x.ravel(), y.ravel(), np.zeros(30)], 1)
    triangle = spatial.Delaunay(point[:, :2]).simplices
    lines = cortex.border(point, triangle, point[:, 0] <= 2)
    np.testing.assert_allclose(lines[:, :, 0], 2.5)
    assert np.isclose(np.abs(np.diff(lines[:, :, 1], axis=1)).sum(), 4)


@pytest.mark.parametrize("side", [0, 1])
def test_a_side_is_drawn_on_its_side(tmp_path, no_network, side):
    vertex = [np.arange(0, 10242, 3), []]
    notes = mark(tmp_path / "p.png", on_mesh(*vertex[:: 1 - 2 * side]), views="flat")
    flat = np.isin(vertex[0], cortex.bundled("flat", side).triangle).sum()
    assert 3000 < flat < 3300  # without the medial wall
    assert notes == [f"{flat:,} of 3,414 voxels shown", "on the mesh of fsaverage5"]
    found = is_marked(tmp_path / "p.png")
    middle = found.shape[1] * 0.45  # the legend takes the last seventh
    column = np.flatnonzero(found[:, : int(0.86 * found.shape[1])].any(0))
    assert len(column) > 200
    assert (column > middle).all() if side else (column < middle).all()


def test_the_front_is_where_it_belongs_in_every_view(tmp_path):
    """Left from outside looks left, from inside right; the right is its mirror."""
    mark(tmp_path / "p.png", on_mesh(anterior(0), anterior(1)), views="inflated")
    found = is_marked(tmp_path / "p.png")
    wide = found.shape[1] * 0.89 / 4  # the rest is the legend
    row = np.arange(len(found)) < len(found) / 2
    for panel, looks_left in enumerate((True, False, True, False)):
        part = found[row, int(panel * wide) : int((panel + 1) * wide)]
        column = np.nonzero(part)[1]
        assert len(column) > 20
        assert (column.mean() < wide / 2) == looks_left
    # From below the front is above; from behind it is not seen.
    below = found[~row, int(wide) : int(2 * wide)]
    assert np.nonzero(below)[0].mean() < len(found) / 4
    assert not found[~row, : int(wide)].any()


def test_a_finer_surface_shows_the_vertices_that_it_shares(tmp_path):
    subject = on_mesh([5, 10241, 10242, 163841], [7, 90000], "fsaverage")
    notes = mark(tmp_path / "p.png", subject, views=["flat"])
    assert notes[0] == "3 of 6 voxels shown"
    assert "the vertices that fsaverage5 shares" in notes[1]


def test_outlines_and_names_are_drawn(tmp_path):
    """What a region adds to a picture lies around it."""
    subject = on_mesh(np.arange(10242), [])
    point = cortex.bundled("flat", 0).point
    roi = (np.abs(point[:, 0]) < 40) & (np.abs(point[:, 1]) < 40)
    subject = subject._replace(roi=roi[:, None])
    values = np.full(10242, 0.5)
    for name, outlines in (("a", ()), ("b", ["V1"])):
        cortex.draw(
            tmp_path / f"{name}.png", subject, values, views=["flat"], outlines=outlines
        )
    a, b = (np.asarray(Image.open(tmp_path / f"{n}.png"))[..., :3] for n in "ab")
    y, x = np.nonzero((a != b).any(2))
    assert len(y) > 300
    assert x.max() < a.shape[1] / 2
    assert np.ptp(x) < 0.2 * a.shape[1]


def test_the_same_picture_is_the_same_bytes(tmp_path):
    subject = on_mesh(np.arange(0, 10242, 40), [])
    values = np.linspace(-1, 1, len(subject.position))
    for name in ("a.svg", "b.svg"):
        cortex.draw(tmp_path / name, subject, values, views="flat", name="r <&> $x$")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert "<script" not in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.svg", "b.svg"]


@pytest.mark.slow
def test_many_long_names_leave_room_for_the_brain(tmp_path):
    """Also text that would be mathematics, markup or another line."""
    subject = on_mesh(np.arange(750), [])._replace(name="<b>$x_$</b>\n")
    names = [f"a name that is far too long for a legend $_{k}$" for k in range(75)]
    label = np.arange(750) % 75
    labels = (names, [MARK] * 75)
    path = tmp_path / "p.png"
    cortex.draw(path, subject, label, name="$_", kind="labels", labels=labels)
    found = is_marked(path)
    assert found[: len(found) // 3, : found.shape[1] // 3].sum() > 1000


def test_own_meshes_are_drawn(tmp_path):
    files = []
    for side in range(2):
        mesh = cortex.bundled("inflated", side)
        arrays = [
            gifti.GiftiDataArray(
                np.float32(mesh.point[:5000]), intent="NIFTI_INTENT_POINTSET"
            ),
            gifti.GiftiDataArray(
                np.int32(mesh.triangle[(mesh.triangle < 5000).all(1)]),
                intent="NIFTI_INTENT_TRIANGLE",
                datatype="NIFTI_TYPE_INT32",
            ),
        ]
        files.append(tmp_path / f"{side}.surf.gii")
        gifti.GiftiImage(darrays=arrays).to_filename(files[-1])
    subject = on_mesh([4999, 3], [5], "native")
    with pytest.raises(errors.InputError, match="vertices"):
        mark(tmp_path / "p.png", subject, meshes=files)
    attrs = {"space": "native", "vertices": [5000, 5000]}
    subject = subject._replace(attrs=attrs)
    with pytest.raises(errors.ConfigError, match="no mesh of its surface"):
        mark(tmp_path / "p.png", subject)
    assert mark(tmp_path / "p.png", subject, meshes=files) == ["3 of 3 voxels shown"]
    assert is_marked(tmp_path / "p.png").any()
    larger = subject._replace(attrs={**attrs, "vertices": [5000, 5001]})
    with pytest.raises(errors.InputError, match="5,000 vertices; expected 5,001"):
        mark(tmp_path / "p.png", larger, meshes=files)


def in_volume(affine=None, **attrs):
    """A block of voxels in a volume, more of them where i is small."""
    place = np.argwhere(np.ones((8, 9, 7)))
    place = place[place[:, 0] + place[:, 1] < 9]
    told = {"grid": [12, 10, 11], **attrs}
    return make_subject(place, **told, **({"affine": affine} if affine else {}))


@pytest.mark.parametrize("flip", [1, -1])
def test_left_of_a_volume_is_on_the_left(tmp_path, flip):
    """The mark has the smallest x, whichever way i runs."""
    affine = np.diag([2.0 * flip, 2, 2, 1])
    subject = in_volume(affine.tolist())
    x = subject.position[:, 0] * flip
    label = np.where(x == x.min(), 0, -1)
    path = tmp_path / "p.png"
    cortex.draw(path, subject, label, kind="labels", labels=(["mark"], [MARK]))
    found = is_marked(path)
    # The first projection, below the slices, is axial.
    part = found[int(len(found) * 0.66) :, : int(found.shape[1] * 0.28)]
    column = np.flatnonzero(part.sum(0) > 20)
    assert len(column) > 10
    assert column.max() < 0.3 * part.shape[1]


def test_a_volume_says_what_is_known_of_its_directions(tmp_path):
    subject = in_volume(np.diag([2.0, 2, 2, 1]).tolist())
    values = np.linspace(0, 1, len(subject.position))
    values[3] = np.nan
    notes = cortex.draw(tmp_path / "p.png", subject, values, outlines=["V1"])
    assert notes[0].endswith("in its own volume of 12 x 10 x 11")
    assert notes[1:] == [
        "a projection shows the largest value of each line",
        "dark grey: 1 voxels without a value",
    ]
    notes = cortex.draw(tmp_path / "p.png", in_volume(), values)
    assert notes[1] == "left, right and millimetres are not known"
    turn = np.eye(4)
    turn[:3, :3] = spatial.transform.Rotation.from_euler(
        "z", 20, degrees=True
    ).as_matrix()
    notes = cortex.draw(tmp_path / "p.png", in_volume(turn.tolist()), values)
    assert "oblique" in notes[1]


@pytest.mark.parametrize("kind", ["continuous", "angle", "labels"])
def test_a_projection_takes_one_voxel_of_each_line(kind):
    """Against a loop over the lines."""
    rng = np.random.default_rng(0)
    place = np.argwhere(rng.random((5, 4, 6)) < 0.6)
    values = rng.normal(size=len(place))
    values[rng.random(len(place)) < 0.2] = np.nan
    names = (list("abc"), None)
    if kind == "labels":
        values = np.where(np.isnan(values), -1, rng.integers(0, 3, len(place)))
    used = shades.scale(values, "x", kind=kind, labels=names)
    found = slices.foremost(place, used)
    assert len(found) == len(np.unique(place[:, :2], axis=0))
    for voxel in found:
        line = np.flatnonzero((place[:, :2] == place[voxel, :2]).all(1))
        own = values[line]
        known = own[own >= 0] if kind == "labels" else own[np.isfinite(own)]
        if not len(known):
            continue
        if kind == "continuous":
            assert abs(values[voxel]) == np.abs(known).max()
        elif kind == "angle":
            assert place[voxel, 2] == place[line[np.isfinite(own)], 2].max()
        else:
            count = np.bincount(known.astype(int))
            assert count[int(values[voxel])] == count.max()


def test_colours_say_what_values_are():
    used = shades.scale(np.array([0.0, 0.5, 1, np.nan, 5]), "x", limits=(0, 1))
    assert used.extend == "max"
    assert used.colour[3, 3] == 0
    np.testing.assert_array_equal(used.colour[2], used.colour[4])
    assert used.bar.get_cmap().name == "viridis"
    signed = shades.scale(np.array([-2.0, 0, 1]), "x")
    assert signed.bar.get_cmap().name == "RdBu_r"
    low, high = signed.bar.get_clim()
    assert low == -high
    round_ = shades.scale(np.array([0.0, 360]), "x", kind="angle")
    np.testing.assert_allclose(round_.colour[0], round_.colour[1], atol=0.01)
    assert shades.scale(np.full(3, np.nan), "x").bar.get_clim() == (0, 1)
    assert shades.scale(np.full(3, 2.0), "x").bar.get_clim() == (2, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "p.gif"}, "another ending"),
        ({"values": np.ones(2)}, "one a voxel"),
        ({"values": np.array([1, np.inf, 0])}, "infinite"),
        ({"kind": "size"}, "continuous, angle, labels"),
        ({"kind": "labels"}, "names and colours"),
        ({"limits": (1, 1)}, "limits"),
        ({"views": ["round"]}, "views"),
        ({"outlines": ["V9"]}, "no region 'V9'"),
        ({"meshes": ["a"]}, "left and right"),
        ({"meshes": ["a", "b"]}, "no such file"),
        ({"space": "nowhere"}, "no grid and no vertices"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, changes, message):
    given = {
        "path": "p.png",
        "values": np.arange(3.0),
        "space": "fsaverage5",
        **changes,
    }
    subject = on_mesh([1, 2], [3], given.pop("space"))
    path = tmp_path / given.pop("path")
    with pytest.raises(errors.InputError, match=re.escape(message)):
        cortex.draw(path, subject, given.pop("values"), **given)
    assert not list(tmp_path.iterdir())
