"""Measured receptive fields: read as NSD writes them, compared as a loop would."""

import numpy as np
import pytest

from tests import nsd_files
from ubrain_jax import errors
from ubrain_jax.atlas import fields, prf
from ubrain_jax.model import bundle

GRID = (5, 6, 4)
QUANTITIES = ("angle", "eccentricity", "size", "R2")


def volume_values(seed=0):
    rng = np.random.default_rng(seed)
    values = {
        "angle": rng.uniform(0, 360, GRID),
        "eccentricity": rng.uniform(0, 4, GRID),
        "size": rng.uniform(0.2, 2, GRID),
        "R2": rng.uniform(0, 90, GRID),
    }
    values["angle"][0, 0, 0] = np.nan
    for value in values.values():
        value[4] = np.nan
    return values


def make_subject(position, **attrs):
    v = len(position)
    return bundle.Subject(
        "nsd-subj01",
        np.zeros((v, 4), np.float32),
        np.asarray(position, np.int32),
        np.zeros((v, 0), bool),
        (),
        np.zeros(v, np.float32),
        attrs,
        {},
    )


def in_volume():
    position = np.argwhere(np.ones(GRID))[::7]
    affine = nsd_files.affine_of(GRID).tolist()
    return make_subject(position, space="func1pt8mm", grid=list(GRID), affine=affine)


def write_volumes(root, values, **changes):
    folder = root / "nsddata/ppdata/subj01/func1pt8mm"
    for name, value in {**values, **changes}.items():
        nsd_files.write_nifti(folder / f"prf_{name}.nii.gz", value)
    return folder


def test_volumes_are_read_at_the_voxels_in_radians_and_shares(tmp_path):
    values, subject = volume_values(), in_volume()
    folder = write_volumes(tmp_path, values)
    assert prf.find(tmp_path, subject) == folder
    found = prf.read(folder, subject)
    assert len(found.files) == 4
    for k, (i, j, m) in enumerate(subject.position):
        angle = np.radians(values["angle"][i, j, m])
        np.testing.assert_allclose(
            np.exp(1j * found.angle[k]), np.exp(1j * angle), rtol=1e-6
        )
        assert found.eccentricity[k] == pytest.approx(
            values["eccentricity"][i, j, m], nan_ok=True
        )
        assert found.size[k] == pytest.approx(values["size"][i, j, m], nan_ok=True)
        assert found.r2[k] == pytest.approx(values["R2"][i, j, m] / 100, nan_ok=True)
    assert np.isnan(found.size).any()
    assert np.nanmax(np.abs(found.angle)) <= np.pi


def test_surfaces_are_read_left_then_right(tmp_path):
    rng = np.random.default_rng(1)
    position = [[0, 3, -1], [1, 3, -1], [1, 7, -1], [0, 0, -1]]
    subject = make_subject(position, space="fsaverage", vertices=[8, 9])
    sides = {}
    for side, num in (("lh", 8), ("rh", 9)):
        for name in QUANTITIES:
            sides[side, name] = rng.uniform(0, 4, num).astype(np.float32)
            nsd_files.write_mgh(tmp_path / f"{side}.prf{name}.mgz", sides[side, name])
    found = prf.read(tmp_path, subject)
    for k, (side, vertex, _) in enumerate(position):
        own = sides[("lh", "rh")[side], "eccentricity"][vertex]
        assert found.eccentricity[k] == own
    assert prf.find(tmp_path, subject) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"angle": np.full(GRID, 361.0)}, r"prf_angle.*value of 361.*at most 360"),
        ({"size": np.full(GRID, -1.0)}, r"prf_size.*value of -1"),
        ({"R2": np.zeros((5, 6, 5))}, r"prf_R2.*grid \(5, 6, 5\)"),
    ],
)
def test_files_of_another_unit_or_grid_are_refused(tmp_path, change, message):
    folder = write_volumes(tmp_path, volume_values(), **change)
    with pytest.raises(errors.InputError, match=message):
        prf.read(folder, in_volume())


def test_missing_moved_and_damaged_files_are_refused(tmp_path):
    subject, values = in_volume(), volume_values()
    folder = write_volumes(tmp_path, values)
    path = folder / "prf_size.nii.gz"
    moved = nsd_files.affine_of(GRID)
    moved[0, 3] += 0.5
    nsd_files.write_nifti(path, values["size"], affine=moved)
    with pytest.raises(errors.InputError, match=r"affine 0.5 mm off"):
        prf.read(folder, subject)
    whole = (folder / "prf_R2.nii.gz").read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(errors.InputError, match="prf_size"):
        prf.read(folder, subject)
    path.unlink()
    with pytest.raises(errors.MissingInputError, match="prf_size"):
        prf.read(folder, subject)


def test_a_name_cannot_lead_out_of_the_folder(tmp_path):
    subject = in_volume()._replace(name="nsd-../subj01")
    write_volumes(tmp_path, volume_values())
    assert prf.find(tmp_path, subject) is None


def planted(v=300, noise=0.0, seed=0):
    """Fields and what a scanner would have measured of them."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0.05, 0.95, (2, v))
    size = rng.uniform(0.03, 0.3, v)
    right, up = 8.4 * (x - 0.5), 8.4 * (0.5 - y)
    measured = prf.Measured(
        np.arctan2(up, right), np.hypot(right, up), 8.4 * size, np.ones(v), ()
    )
    x, y = np.stack([x, y]) + noise * rng.normal(size=(2, v))
    found = fields.Fields(
        x, y, size, np.hypot(x - 0.5, y - 0.5), np.arctan2(0.5 - y, x - 0.5),
        np.ones(v), np.ones(v), np.zeros((v, 2, 2)), 8.4,
    )  # fmt: skip
    return found, measured


def test_the_same_fields_agree_and_mirrored_ones_do_not():
    found, measured = planted()
    same = prf.compare(found, measured)
    assert same.num == 300
    np.testing.assert_allclose([same.angle, same.eccentricity, same.size], 1, rtol=1e-9)
    np.testing.assert_allclose([same.angle_error, same.distance], 0, atol=1e-9)
    upside_down = prf.compare(
        found._replace(angle=-found.angle, y=1 - found.y), measured
    )
    assert upside_down.angle < -0.9
    assert upside_down.angle_error > 60
    assert upside_down.distance > 2


def test_agreement_is_that_of_a_loop_over_voxels():
    found, measured = planted(noise=0.1)
    rng = np.random.default_rng(1)
    measured = measured._replace(r2=rng.uniform(0, 0.5, 300))
    measured.angle[5] = measured.size[6] = np.nan
    measured.eccentricity[7:12] = 7
    found.x[20:23] = np.nan
    kept = rng.random(300) < 0.8
    got = prf.compare(found, measured, least_r2=0.2, kept=kept)
    distances, turns, reasons = [], [], dict.fromkeys(("weak", "outside", "unfit"), 0)
    for k in np.flatnonzero(kept):
        place = measured.eccentricity[k] * np.exp(1j * measured.angle[k])
        if not measured.r2[k] >= 0.2 or np.isnan(place + measured.size[k]):
            reasons["weak"] += 1
        elif max(abs(place.real), abs(place.imag)) > 4.2:
            reasons["outside"] += 1
        elif np.isnan(found.x[k]):
            reasons["unfit"] += 1
        else:
            own = 8.4 * complex(found.x[k] - 0.5, 0.5 - found.y[k])
            distances.append(abs(own - place))
            turns.append(abs(np.angle(own / place, deg=True)))
    assert tuple(got[1:4]) == tuple(reasons.values())
    assert got.num == len(distances)
    assert got.distance == pytest.approx(np.median(distances))
    assert got.angle_error == pytest.approx(np.median(turns))
    assert min(reasons.values()) > 0


def test_correlation_of_angles_is_that_over_all_pairs():
    rng = np.random.default_rng(0)
    a = rng.uniform(-np.pi, np.pi, 40)
    b = a + rng.normal(0, 0.7, 40)
    above = left = right = 0.0
    for i in range(40):
        for j in range(i):
            one, two = np.sin(a[i] - a[j]), np.sin(b[i] - b[j])
            above, left, right = above + one * two, left + one**2, right + two**2
    expected = above / np.sqrt(left * right)
    assert prf.angle_correlation(a, b) == pytest.approx(expected)
    assert 0.2 < expected < 0.95
    assert np.isnan(prf.angle_correlation(a, np.zeros(40)))


def test_too_few_voxels_give_nan_and_a_picture_of_unknown_size_is_refused():
    found, measured = planted(v=5)
    weak = measured._replace(r2=np.array([1, 1, 0, 0, np.nan]))
    got = prf.compare(found, weak)
    assert (got.num, got.num_weak) == (2, 3)
    assert np.isnan(got[4:]).all()
    with pytest.raises(errors.InputError, match=r"degrees="):
        prf.compare(found._replace(degrees=np.nan), measured)
