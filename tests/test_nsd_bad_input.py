"""Damaged, missing and disagreeing NSD files: each case names what is wrong.

A case breaks a good miniature folder in one way. The message must name the file, what
was found and what was expected, and end with what to do.
"""

import gzip
import re

import h5py
import numpy as np
import pytest

from tests import nsd_files as nf
from ubrain_jax import errors
from ubrain_jax.datasets import nsd


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return nf.write(tmp_path_factory.mktemp("nsd") / "nsd", surface=True)


@pytest.fixture
def folder(good, tmp_path):
    return nf.copy(good, tmp_path / "nsd")


@pytest.fixture(scope="module")
def design(good):
    return nsd.read_design(nf.experiment(good.root) / "nsd_expdesign.mat")


@pytest.fixture
def design_is_known(design, monkeypatch):
    """Spares cases about other files the start of a process for this one."""
    monkeypatch.setattr(nsd, "read_design", lambda path: design)


def betas_path(truth, session=1, subject=1):
    return nf.betas_folder(truth.root, subject) / f"betas_session{session:02d}.hdf5"


def lh_path(truth, session=1):
    name = f"lh.betas_session{session:02d}.mgh"
    return nf.betas_folder(truth.root, 1, "fsaverage") / name


def rewrite(truth, data, session=1, chunks=None):
    """Replaces the betas of a session; `data` is (T, Z, Y, X)."""
    nf.write_hdf5(betas_path(truth, session), "betas", data, chunks)


def stored(truth, session=1):
    return truth.betas[1, session].transpose(0, 3, 2, 1)


def rewrite_design(truth, **changes):
    nf.write_expdesign(truth.root, truth.lists, truth.order, **changes)


def edit_text(path, edit):
    path.write_text(edit(path.read_text()))


def edit_line(path, number, column, value, separator="\t"):
    """Replaces a cell; `number` is 1-based as an editor counts."""
    lines = path.read_text().split("\n")
    cells = lines[number - 1].split(separator)
    cells[column] = str(value)
    lines[number - 1] = separator.join(cells)
    path.write_text("\n".join(lines))


def responses(truth):
    return nf.responses_path(truth.root, 1)


def roi(truth, atlas="nsdgeneral"):
    return nf.roi_folder(truth.root, 1) / f"{atlas}.nii.gz"


def rewrite_roi(truth, change, atlas="streams"):
    volume = truth.rois[1, atlas].copy()
    nf.write_nifti(roi(truth, atlas), change(volume))


def rewrite_mgh(truth, change, session=1):
    left = nf.VERTICES[0]
    betas = truth.surface[1, session][:, :left].copy()
    nf.write_mgh(lh_path(truth, session), change(betas).T)


def set_at(array, place, value):
    array[place] = value
    return array


# ---------------------------------------------------------------- betas


def one_trial_less(t):
    rewrite(t, stored(t)[:-1])


def no_trials(t):
    rewrite(t, stored(t)[:0])


def other_grid_in_one_session(t):
    rewrite(t, stored(t, 2)[:, :, :, :-1], 2)


def other_grid_in_all_sessions(t):
    for session in (1, 2, 3):
        rewrite(t, stored(t, session)[:, :-1], session)


def axes_not_reversed(t):
    for session in (1, 2, 3):
        rewrite(t, t.betas[1, session].transpose(1, 2, 3, 0), session)


def grid_of_subj03(t):
    with h5py.File(betas_path(t), "w") as file:
        made = file.create_dataset("betas", (24, 82, 106, 81), "i1", chunks=True)
        made[...] = 1


def both_endings(t):
    folder = nf.betas_folder(t.root, 1)
    nf.write_volume_betas(folder, 2, t.betas[1, 2], "nii.gz")


def number_twice(t):
    betas_path(t).with_name("betas_session2.hdf5").write_bytes(b"x")


def more_sessions_than_responses(t):
    rewrite(t, stored(t, 3) + 1, 4)


def unwritten_chunks(t):
    with h5py.File(betas_path(t), "w") as file:
        made = file.create_dataset("betas", (24, 8, 9, 7), "i2", chunks=(24, 1, 1, 1))
        made[:, 0, 0, :5] = 1


def external_storage(t):
    outside = t.root / "secret.bin"
    outside.write_bytes(bytes(24 * 504 * 2))
    with h5py.File(betas_path(t), "w") as file:
        where = [(str(outside), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("betas", (24, 8, 9, 7), "i2", external=where)


def external_link(t):
    path = betas_path(t, 2)
    with h5py.File(betas_path(t), "w") as file:
        file["betas"] = h5py.ExternalLink(str(path), "/betas")


def virtual_dataset(t):
    layout = h5py.VirtualLayout((24, 8, 9, 7), "i2")
    layout[...] = h5py.VirtualSource(str(betas_path(t, 2)), "betas", (24, 8, 9, 7))
    with h5py.File(betas_path(t), "w") as file:
        file.create_virtual_dataset("betas", layout)


def sparse_bomb(t):
    with h5py.File(betas_path(t), "w") as file:
        file.create_dataset("betas", (24, 10**6, 10**6, 1), "i2", chunks=(24, 1, 1, 1))


def complex_betas(t):
    rewrite(t, stored(t).astype(np.complex64))


def wrong_name(t):
    nf.write_hdf5(betas_path(t), "beta", stored(t))


def cut_in_half(t):
    path = betas_path(t)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_file(t):
    betas_path(t).write_bytes(b"")


def html_page(t):
    betas_path(t).write_text("<html>403 Forbidden</html>")


def no_betas_in_folder(t):
    for path in nf.betas_folder(t.root, 1).glob("betas_*"):
        path.unlink()


def nifti_with_other_affine(t):
    folder = nf.betas_folder(t.root, 1)
    betas_path(t).unlink()
    affine = nf.affine_of(nf.GRIDS[1])
    affine[0, 3] += 1.8
    data = np.ascontiguousarray(t.betas[1, 1].transpose(1, 2, 3, 0))
    nf.write_nifti(folder / "betas_session01.nii.gz", data, affine)


def nifti_scaled_by_nan(t):
    folder = nf.betas_folder(t.root, 1)
    betas_path(t).unlink()
    data = np.ascontiguousarray(t.betas[1, 1].transpose(1, 2, 3, 0))
    nf.write_nifti(folder / "betas_session01.nii.gz", data, slope=np.nan)


def rh_missing(t):
    path = lh_path(t, 2)
    path.with_name(path.name.replace("lh.", "rh.")).unlink()


def mgh_cut_off(t):
    path = lh_path(t)
    path.write_bytes(path.read_bytes()[:-500])


def mgh_other_vertices(t):
    rewrite_mgh(t, lambda b: b[:, 1:], 2)


def mgh_is_something_else(t):
    raw = bytearray(lh_path(t).read_bytes())
    raw[3] = 2
    lh_path(t).write_bytes(raw)


def label_other_vertices(t):
    labels = t.rois["fsaverage", "streams"][: nf.VERTICES[0] - 1]
    nf.write_mgh(nf.label_folder(t.root, "fsaverage") / "lh.streams.mgz", labels)


def label_one_hemisphere(t):
    (nf.label_folder(t.root, "fsaverage") / "rh.streams.mgz").unlink()


def ncsnr_one_hemisphere(t):
    (nf.betas_folder(t.root, 1, "fsaverage") / "lh.ncsnr.mgh").unlink()


# ---------------------------------------------------------------- design


def zero_in_order(t):
    rewrite_design(t, masterordering=set_at(t.order.copy(), 5, 0)[None])


def index_behind_the_table(t):
    rewrite_design(t, masterordering=set_at(t.order.copy(), 5, 25)[None])


def seven_subjects(t):
    rewrite_design(t, subjectim=t.lists[:7])


def fractional_pictures(t):
    rewrite_design(t, subjectim=set_at(t.lists.astype(float), (0, 9), 3.9999999))


def zero_based_pictures(t):
    lists = t.lists - t.lists.min()
    rewrite_design(t, subjectim=lists, sharedix=lists[:1, :6])


def picture_twice(t):
    rewrite_design(t, subjectim=set_at(t.lists.copy(), (2, 9), t.lists[2, 10]))


def shared_not_first(t):
    rewrite_design(t, sharedix=t.lists[:1, 1:7])


def design_lacks_subjectim(t):
    rewrite_design(t, subjectim=None)


def design_is_zeros(t):
    path = nf.experiment(t.root) / "nsd_expdesign.mat"
    path.write_bytes(bytes(path.stat().st_size))


def design_missing(t):
    (nf.experiment(t.root) / "nsd_expdesign.mat").unlink()


def design_is_text(t):
    path = nf.experiment(t.root) / "nsd_expdesign.mat"
    path.write_text("masterordering = [1 2 3]\n" * 100)


def order_is_text(t):
    rewrite_design(t, masterordering="one two three")


def design_too_short(t):
    rewrite_design(t, masterordering=t.order[None, :60])


def one_line_differs(t):
    edit_line(responses(t), 14, 4, int(t.lists[0, t.order[12] - 1]) % 150 + 1)


def responses_zero_based(t):
    lines = responses(t).read_text().split("\n")
    for number, line in enumerate(lines[1:-1], 2):
        edit_line(responses(t), number, 4, int(line.split("\t")[4]) - 1)


def index_differs(t):
    edit_line(responses(t), 20, 5, int(t.order[18]) % 24 + 1)


def responses_of_other_subject(t):
    source = nf.responses_path(t.root, 2)
    responses(t).write_bytes(source.read_bytes())


def responses_with_spaces(t):
    edit_text(responses(t), lambda text: text.replace("\t", " "))


def responses_lack_a_column(t):
    edit_text(responses(t), lambda text: text.replace("73KID", "ID73K"))


def responses_lack_a_cell(t):
    lines = responses(t).read_text().split("\n")
    lines[6] = lines[6].rpartition("\t")[0]
    responses(t).write_text("\n".join(lines))


def responses_with_a_word(t):
    edit_line(responses(t), 8, 4, "cat")


def responses_session_jumps(t):
    edit_line(responses(t), 30, 1, 3)


def responses_in_latin1(t):
    responses(t).write_bytes(b"SUBJECT\tSESSION\xe9\n" + responses(t).read_bytes())


def responses_missing(t):
    responses(t).unlink()


# ---------------------------------------------------------------- pictures


def table_one_based(t):
    shared = set(t.lists[0, :6] - 1)
    nf.write_stim_info(t.root, t.lists, first=1, shared=shared)


def table_with_other_shared(t):
    shared = set(t.lists[0, :5] - 1)
    nf.write_stim_info(t.root, t.lists, shared=shared)


def table_too_short(t):
    nf.write_stim_info(t.root, t.lists, num=int(t.lists[0, :6].max()) + 1)
    rest = t.lists[0].max() > t.lists[0, :6].max()
    assert rest  # otherwise nothing is missing


def brick_too_short(t):
    nf.write_hdf5(nf.brick_path(t.root), "imgBrick", t.bricks[:50])


def brick_channels_first(t):
    bricks = t.bricks.transpose(0, 3, 1, 2)
    nf.write_hdf5(nf.brick_path(t.root), "imgBrick", bricks)


def brick_in_floats(t):
    nf.write_hdf5(nf.brick_path(t.root), "imgBrick", t.bricks / 255)


def brick_by_another_name(t):
    nf.write_hdf5(nf.brick_path(t.root), "images", t.bricks)


def brick_missing(t):
    nf.brick_path(t.root).unlink()


# ---------------------------------------------------------------- regions


def roi_other_grid(t):
    rewrite_roi(t, lambda v: v[:-1])


def roi_with_nan(t):
    rewrite_roi(t, lambda v: set_at(v, (0, 0, slice(0, 3)), np.nan))


def roi_below_minus_one(t):
    rewrite_roi(t, lambda v: v - 1)


def roi_other_affine(t):
    affine = nf.affine_of(nf.GRIDS[1])
    affine[2, 3] -= 0.9
    nf.write_nifti(roi(t, "streams"), t.rois[1, "streams"], affine)


def roi_affine_nan(t):
    affine = nf.affine_of(nf.GRIDS[1])
    affine[2, 3] = np.nan
    nf.write_nifti(roi(t, "streams"), t.rois[1, "streams"], affine)


def roi_bad_crc(t):
    raw = bytearray(roi(t).read_bytes())
    raw[-6] ^= 1
    roi(t).write_bytes(raw)


def roi_without_trailer(t):
    roi(t).write_bytes(roi(t).read_bytes()[:-8])


def roi_cut_inside(t):
    raw = gzip.decompress(roi(t).read_bytes())
    roi(t).write_bytes(gzip.compress(raw[:-100]))


def roi_one_hemisphere(t):
    (nf.roi_folder(t.root, 1) / "rh.floc-faces.nii.gz").unlink()


def no_regions(t):
    for path in nf.roi_folder(t.root, 1).iterdir():
        path.unlink()


def no_nsdgeneral(t):
    for path in nf.roi_folder(t.root, 1).glob("*nsdgeneral*"):
        path.unlink()


def general_is_empty(t):
    rewrite_roi(t, lambda v: np.minimum(v, 0), "nsdgeneral")


def bad_ctab(t):
    path = nf.label_folder(t.root, "subj01") / "nsdgeneral.mgz.ctab"
    path.write_text("0 Unknown\nnsdgeneral\n")


def ctab_with_control_characters(t):
    path = nf.label_folder(t.root, "subj01") / "nsdgeneral.mgz.ctab"
    path.write_text("0 Unknown\n1 \x1b[2Jgeneral\n")


def ncsnr_other_grid(t):
    path = nf.betas_folder(t.root, 1) / "ncsnr.nii.gz"
    nf.write_nifti(path, t.ncsnr[1][:, 1:])


def ncsnr_negative(t):
    path = nf.betas_folder(t.root, 1) / "ncsnr.nii.gz"
    nf.write_nifti(path, np.full(nf.GRIDS[1], -1, np.float32))


# Each: how to break it, what the message must match.
IN_DESIGN = [
    (zero_in_order, r"nsd_expdesign.mat:masterordering: contains 0; expected MATLAB"),
    (index_behind_the_table, r"masterordering: has 25; subjectim has 24 columns"),
    (seven_subjects, r"nsd_expdesign.mat:subjectim: is 7x24; expected 8 rows"),
    (fractional_pictures, r"subjectim: '3.9999999' in place 9 is no whole number"),
    (zero_based_pictures, r"subjectim: contains 0; expected MATLAB indices"),
    (picture_twice, r"subjectim row 3: 1 pictures stand there twice"),
    (shared_not_first, r"sharedix: is not the set in the first 6 columns of subjec"),
    (design_lacks_subjectim, r"nsd_expdesign.mat: lacks subjectim \(found: masterord"),
    (design_is_zeros, r"nsd_expdesign.mat: cannot be read \(.*corrupt"),
    (design_missing, r"nsd_expdesign.mat: no such file"),
    (design_is_text, r"nsd_expdesign.mat: cannot be read \(.*damaged"),
    (order_is_text, r"masterordering: .*no whole number"),
]
AT_OPEN = [
    (
        one_trial_less,
        r"session01.hdf5:/betas: session 1 has 23 trials; expected 24, as",
    ),
    (no_trials, r"session01.hdf5:/betas: session 1 has 0 trials"),
    (
        other_grid_in_one_session,
        r"session02.hdf5:/betas: session 2 is 6x9x8, session 1 is 7x9x8: another subj",
    ),
    (other_grid_in_all_sessions, r"hdf5:/betas: betas are 7x9x7, regions 7x9x8"),
    (axes_not_reversed, r"regions 7x9x8; the axes look reversed"),
    (grid_of_subj03, r"81x106x82 is subj03's grid; expected that of subj01\. Check"),
    (both_endings, r"session 2: is there as betas_session02.hdf5 and .*nii.gz; exp"),
    (number_twice, r"session 2: is there as betas_session02.hdf5 and betas_session2"),
    (more_sessions_than_responses, r"session 4 is on disk; responses.tsv ends with s"),
    (unwritten_chunks, r"session01.hdf5:/betas: has 5 of 504 chunks; .*incomplete"),
    (external_storage, r"/betas: points outside the file \(.*secret.bin\)"),
    (external_link, r"/betas: is a link to .*session02.hdf5:/betas; .*refused"),
    (virtual_dataset, r"/betas: points outside the file"),
    (sparse_bomb, r"declares 48,000,000,000,000 bytes in a file of [\d,]+;"),
    (complex_betas, r"session01.hdf5:/betas: holds complex64|holds \[\('r'"),
    (wrong_name, r"/betas: no such dataset \(found: beta\); expected a dataset betas"),
    (cut_in_half, r"session01.hdf5:betas: cannot be read \(.*truncated.*damaged"),
    (empty_file, r"betas_session01.hdf5: the file is empty; expected data\. Down"),
    (html_page, r"session01.hdf5:betas: cannot be read \(.*signature not found"),
    (no_betas_in_folder, r"no betas \(found: ncsnr.nii.gz\); expected betas_session01"),
    (nifti_with_other_affine, r"betas and regions differ by 1.8 mm in the affine"),
    (nifti_scaled_by_nan, r"session01.nii.gz: scl_slope is nan.*scaling unknown"),
    (one_line_differs, r"responses.tsv:line 14: 73KID is \d+ \(1 of 72 lines disagre"),
    (responses_zero_based, r"line 2: 73KID is \d+ \(72 of 72 .*all are one less"),
    (index_differs, r"responses.tsv:line 20: 10KID is \d+ \(1 of 72"),
    (responses_of_other_subject, r"responses.tsv:line 2: SUBJECT is 2; expected 1"),
    (responses_with_spaces, r"responses.tsv:line 1: no tab; expected columns SUBJECT"),
    (responses_lack_a_column, r"line 1: no column 73KID \(found: SUBJECT, SESSION"),
    (responses_lack_a_cell, r"responses.tsv:line 7: 18 cells; expected 19"),
    (responses_with_a_word, r"responses.tsv:73KID: 'cat' in line 8 is no whole number"),
    (responses_session_jumps, r"line 30: SESSION 3 follows session 2|line 31: SESSION"),
    (responses_in_latin1, r"responses.tsv: byte 15 is not UTF-8"),
    (responses_missing, r"responses.tsv: no such file"),
    (table_one_based, r"merged.csv:line \d+: shared1000 .*its numbers look 1-based"),
    (table_with_other_shared, r"merged.csv:line \d+: shared1000 of nsdId \d+ is False"),
    (table_too_short, r"merged.csv:nsdId: lacks \d+ pictures that subj01 saw, first"),
    (brick_too_short, r"imgBrick: has 50 pictures \(0..49\); subj01 saw picture \d+"),
    (brick_channels_first, r"imgBrick: uint8 \(160, 3, 10, 12\), looks channels-fir"),
    (brick_in_floats, r"imgBrick: float64 \(160, 10, 12, 3\); expected uint8"),
    (brick_by_another_name, r"stimuli.hdf5:/imgBrick: no such dataset \(found: images"),
    (brick_missing, r"nsd_stimuli.hdf5: no such file"),
    (roi_other_grid, r"streams.nii.gz: is 6x9x8; expected 7x9x8, as"),
    (roi_with_nan, r"streams.nii.gz: holds 3 NaN; expected labels"),
    (roi_below_minus_one, r"streams.nii.gz: holds -2..4; expected labels"),
    (roi_other_affine, r"streams.nii.gz:affine: this region and regions differ by 0.9"),
    (roi_affine_nan, r"streams.nii.gz: the affine holds NaN"),
    (roi_bad_crc, r"nsdgeneral.nii.gz: fails its gzip checks \(CRC"),
    (roi_without_trailer, r"nsdgeneral.nii.gz: fails its gzip checks"),
    (roi_cut_inside, r"nsdgeneral.nii.gz: ends after 4284 unpacked bytes; expected "),
    (roi_one_hemisphere, r"floc-faces: only lh.floc-faces.nii.gz; expected both hemi"),
    (no_regions, r"roi: no \*.nii.gz; expected regions"),
    (no_nsdgeneral, r"mask:subj01: no region 'nsdgeneral'"),
    (general_is_empty, r"mask:subj01: 'nsdgeneral' has 0 voxels"),
    (bad_ctab, r"nsdgeneral.mgz.ctab:line 2: is 'nsdgeneral'; expected a number and"),
    (ctab_with_control_characters, r"nsdgeneral.mgz.ctab:line 2: is '1 .x1b"),
    (ncsnr_other_grid, r"ncsnr.nii.gz: ncsnr is 7x8x8, regions 7x9x8"),
    (ncsnr_negative, r"ncsnr.nii.gz: \d+ values are negative or inf"),
]


def name_of(case):
    return getattr(case, "__name__", "")


def check_message(error, pattern):
    """File, what was found, what was expected, and a sentence of what to do."""
    message = str(error)
    assert re.search(pattern, message), message
    assert re.search(r"; expected .+\. .+[.?]$", message), message
    assert message.isprintable()
    kinds = {errors.MissingInputError: 66, errors.ConfigError: 78}
    assert error.exit_code == kinds.get(type(error), 65)


@pytest.mark.parametrize(("break_it", "pattern"), IN_DESIGN, ids=name_of)
def test_fault_in_the_design(folder, break_it, pattern):
    break_it(folder)
    with pytest.raises(errors.InputError) as caught:
        nsd.read_design(nf.experiment(folder.root) / "nsd_expdesign.mat")
    check_message(caught.value, pattern)


def test_fault_in_the_design_stops_opening(folder):
    design_too_short(folder)
    with pytest.raises(errors.InputError) as caught:
        nsd.open_dataset(folder.root, subjects=["subj01"])
    pattern = r"responses.tsv: 72 trials; masterordering .* has 60; expected"
    check_message(caught.value, pattern)


@pytest.mark.usefixtures("design_is_known")
@pytest.mark.parametrize(("break_it", "pattern"), AT_OPEN, ids=name_of)
def test_fault_in_a_volume_is_found_while_opening(folder, break_it, pattern):
    break_it(folder)
    with pytest.raises(errors.InputError) as caught:
        nsd.open_dataset(folder.root, subjects=["subj01"])
    check_message(caught.value, pattern)


SURFACE_AT_OPEN = [
    (
        rh_missing,
        r"fsaverage/\S+:session 2: no rh.betas_session02.mgh; expected both h",
    ),
    (
        mgh_cut_off,
        r"lh.betas_session01.mgh: the file has \d+ bytes; expected \d+, says",
    ),
    (mgh_other_vertices, r"session02.mgh: session 2 is 39, session 1 is 40: another s"),
    (mgh_is_something_else, r"lh.betas_session01.mgh: starts with 00 00 00 02, type 3"),
    (label_other_vertices, r"lh.streams.mgz: is 39; expected 40, as"),
    (label_one_hemisphere, r"label:streams: only lh.streams.mgz; expected both hemis"),
    (ncsnr_one_hemisphere, r"only rh.ncsnr.mgh; expected both hemispheres"),
]


@pytest.mark.usefixtures("design_is_known")
@pytest.mark.parametrize(("break_it", "pattern"), SURFACE_AT_OPEN, ids=name_of)
def test_fault_in_a_surface_is_found_while_opening(folder, break_it, pattern):
    break_it(folder)
    with pytest.raises(errors.InputError) as caught:
        nsd.open_dataset(folder.root, subjects=["subj01"], space="fsaverage")
    check_message(caught.value, pattern)


# ---------------------------------------------------------------- while reading


def same_session_twice(t):
    rewrite(t, stored(t, 1), 2)


def nan_in_a_voxel(t):
    betas = stored(t).astype(np.float32)
    x, y, z = np.argwhere(t.rois[1, "nsdgeneral"] == 1)[5]
    rewrite(t, set_at(betas, (slice(None), z, y, x), np.nan))


def inf_in_one_trial(t):
    betas = stored(t).astype(np.float32)
    x, y, z = np.argwhere(t.rois[1, "nsdgeneral"] == 1)[5]
    rewrite(t, set_at(betas, (9, z, y, x), np.inf))


def nan_in_a_whole_trial(t):
    rewrite(t, set_at(stored(t).astype(np.float64), 11, np.nan))


def packed_and_incomplete(t):
    with h5py.File(betas_path(t), "w") as file:
        made = file.create_dataset(
            "betas", (24, 8, 9, 7), "i2", chunks=(24, 1, 1, 1), compression="gzip"
        )
        made[:, :7] = 1


def swapped_bytes(t):
    betas = stored(t) / np.float32(300)
    swapped = betas.byteswap()
    rewrite(t, np.where(np.isfinite(swapped), swapped, 0))


def changed_bytes(t):
    """Checksums of HDF5 are compared when a chunk is read, not before."""
    with h5py.File(betas_path(t), "w") as file:
        file.create_dataset(
            "betas", data=stored(t), chunks=(24, 8, 9, 7), fletcher32=True
        )
    raw = bytearray(betas_path(t).read_bytes())
    raw[len(raw) // 2] ^= 4
    betas_path(t).write_bytes(raw)


def nifti_flipped_bit(t):
    folder = nf.betas_folder(t.root, 1)
    betas_path(t).unlink()
    path = nf.write_volume_betas(folder, 1, t.betas[1, 1], "nii.gz")
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 2
    path.write_bytes(raw)


WHILE_READING = [
    (same_session_twice, r"sessions 1 and 2 are identical arrays \(sha256 equal\)"),
    (nan_in_a_voxel, r":session 1: 1 of \d+ voxels hold NaN or inf, first nan in vox"),
    (inf_in_one_trial, r"first inf in voxel \(\d, \d, \d\) trial 9; expected finite"),
    (nan_in_a_whole_trial, r":session 1: trial 11 is NaN or inf in all voxels"),
    (swapped_bytes, r":session 1: \|max\| is \S+; wrong endianness\?"),
    (packed_and_incomplete, r"session01.hdf5:/betas: has 441 of 504 chunks; expected"),
    (changed_bytes, r"session01.hdf5:betas: cannot be read \("),
    (nifti_flipped_bit, r"session01.nii.gz: fails its gzip checks"),
]


@pytest.mark.usefixtures("design_is_known")
@pytest.mark.parametrize(("break_it", "pattern"), WHILE_READING, ids=name_of)
def test_fault_in_the_numbers_is_found_while_reading(folder, break_it, pattern):
    break_it(folder)
    dataset = nsd.open_dataset(folder.root, subjects=["subj01"])
    with pytest.raises(errors.InputError) as caught:
        next(dataset.subjects)
    check_message(caught.value, pattern)


def vertex_nan_in_one_trial(t):
    rewrite_mgh(t, lambda b: set_at(b, (7, 10), np.nan))


def vertex_inf(t):
    rewrite_mgh(t, lambda b: set_at(b, (7, 10), -np.inf))


def all_vertices_nan(t):
    left = nf.VERTICES[0]
    nothing = np.full((nf.TRIALS, left), np.nan, np.float32)
    nf.write_mgh(lh_path(t), nothing.T)
    right = np.full((nf.TRIALS, nf.VERTICES[1]), np.nan, np.float32)
    path = lh_path(t)
    nf.write_mgh(path.with_name(path.name.replace("lh.", "rh.")), right.T)


@pytest.mark.usefixtures("design_is_known")
@pytest.mark.parametrize(
    ("break_it", "pattern"),
    [
        (vertex_nan_in_one_trial, r"first nan in voxel \(0, 10, -1\) trial 7"),
        (vertex_inf, r"first -inf in voxel \(0, 10, -1\) trial 7"),
        (all_vertices_nan, r"every vertex is NaN in a session or another"),
    ],
    ids=name_of,
)
def test_fault_on_the_surface_is_found_while_reading(folder, break_it, pattern):
    break_it(folder)
    dataset = nsd.open_dataset(folder.root, subjects=["subj01"], space="fsaverage")
    with pytest.raises(errors.InputError) as caught:
        next(dataset.subjects)
    check_message(caught.value, pattern)


@pytest.mark.usefixtures("design_is_known")
def test_file_changed_after_opening_is_refused(folder):
    dataset = nsd.open_dataset(folder.root, subjects=["subj01"])
    rewrite(folder, stored(folder)[:, :3])
    with pytest.raises(errors.InputError, match=r"shape .* has no block"):
        next(dataset.subjects)


# ---------------------------------------------------------------- arguments


@pytest.mark.usefixtures("design_is_known")
@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"subjects": ["subj1"]}, r"no subject 'subj1'.*Did you mean subj01"),
        ({"subjects": []}, r"subjects: is empty"),
        ({"space": "fsavg"}, r"space: is 'fsavg'.*Did you mean fsaverage\?"),
        ({"betas": "b3"}, r"func1pt8mm/b3: no such folder \(found: fsaverage/betas_"),
        ({"sessions": [2, 7]}, r"no session 7 \(on disk: 1-3\); expected the sessions"),
        ({"sessions": [0]}, r"sessions: are \[0\]; expected numbers from 1"),
        ({"sessions": [1, 1]}, r"sessions: are \[1, 1\]; expected .* each once"),
        ({"mask": "v1"}, r"no region 'v1'; .*Did you mean V1v, V1d\?"),
        ({"mask": "nowhere.nii.gz"}, r"nowhere.nii.gz: no such file"),
        ({"mask": "hV4"}, r"no region 'hV4'"),
        ({"mask": "lost.nii.gz", "space": "fsaverage"}, r"no region 'lost.nii.gz'"),
        ({"val_fraction": 1.5}, r"val_fraction: is 1.5; expected 0 <= share < 1"),
    ],
)
def test_argument_is_refused(good, options, pattern):
    with pytest.raises(errors.InputError) as caught:
        nsd.open_dataset(good.root, **({"subjects": ["subj01"]} | options))
    check_message(caught.value, pattern)


@pytest.mark.usefixtures("design_is_known")
@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda m: m[:-1], r"mask 6x9x8, regions 7x9x8; expected one grid"),
        (lambda m: m * 0.3, r"mask holds \d+ partial values, 0..0.3"),
        (lambda m: m * 7, r"mask holds \{0, 7\}; expected 0 and 1"),
        (lambda m: m * 0, r"mask has 0 voxels"),
        (lambda m: set_at(m.copy(), (0, 0, 0), np.nan), r"mask holds 1 NaN"),
    ],
)
def test_mask_file_is_refused(good, tmp_path, change, pattern):
    path = tmp_path / "mask.nii.gz"
    mask = (good.rois[1, "nsdgeneral"] == 1).astype(np.float32)
    nf.write_nifti(path, change(mask))
    with pytest.raises(errors.InputError) as caught:
        nsd.open_dataset(good.root, subjects=["subj01"], mask=path)
    check_message(caught.value, pattern)


@pytest.mark.usefixtures("design_is_known")
def test_full_mask_is_reported(good, tmp_path):
    path = tmp_path / "mask.nii.gz"
    nf.write_nifti(path, np.ones(nf.GRIDS[1], np.uint8))
    dataset = nsd.open_dataset(good.root, subjects=["subj01"], mask=path, sessions=[1])
    [subject] = dataset.subjects
    assert subject.responses.shape[1] == np.prod(nf.GRIDS[1])
    assert any("keeps 100 % of the grid" in line for line in dataset.report)


def test_wrong_folder_is_refused_with_what_it_holds(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(errors.MissingInputError) as caught:
        nsd.open_dataset(tmp_path)
    check_message(caught.value, r"no folder nsddata, nsddata_betas \(found: pictures\)")


@pytest.mark.usefixtures("design_is_known")
def test_all_faults_are_listed_at_once(folder):
    one_trial_less(folder)
    roi_bad_crc(folder)
    one_line_differs(folder)
    betas_path(folder, 2, subject=2).write_bytes(b"")
    with pytest.raises(errors.InputError) as caught:
        nsd.open_dataset(folder.root)
    message = str(caught.value)
    check_message(caught.value, r"nsd: \d faults: \(1\) ")
    for text in ("fails its gzip", "line 14", "subj02/.*the file is empty"):
        assert re.search(text, message)


@pytest.mark.usefixtures("design_is_known")
def test_region_of_partial_values_is_left_out_and_reported(folder):
    rewrite_roi(folder, lambda v: np.maximum(v, 0) * 0.3)
    dataset = nsd.open_dataset(folder.root, subjects=["subj01"])
    [subject] = dataset.subjects
    assert not any(name.startswith("streams") for name in subject.roi_names)
    assert "subj01: streams.nii.gz holds partial values: left out" in dataset.report
