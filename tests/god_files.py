"""Writes miniature BData tables in the four encodings that circulate.

Shares no code with the package: what it writes is what h5py and scipy make of the
published description. Everything random follows from a seed.
"""

import pathlib

import h5py
import numpy as np
import scipy.io
from PIL import Image

ENCODINGS = ("v5", "v7.3", "capital", "lower", "vlen")
ENDINGS = {"v5": ".mat", "v7.3": ".mat"}


def write_table(path, table, metadata, encoding):
    """`table` is (samples, columns); `metadata` gives (columns,) for each key."""
    path = pathlib.Path(path)
    keys = list(metadata)
    texts = [f"1 = {key}" for key in keys]
    value = np.stack(list(metadata.values()))
    if encoding == "v5":
        struct = {"key": cells(keys), "description": cells(texts), "value": value}
        scipy.io.savemat(
            path, {"dataSet": table, "metaData": struct}, do_compression=True
        )
    elif encoding == "v7.3":
        _write_mat73(path, table, keys, texts, value)
    else:
        names = ("dataset", "metadata") if encoding == "lower" else None
        data, meta = names or ("dataSet", "metaData")
        kind = h5py.string_dtype() if encoding == "vlen" else "S"
        with h5py.File(path, "w") as file:
            file[data] = table
            group = file.create_group(meta)
            group["key"] = np.array(keys, dtype=kind)
            group["description"] = np.array(texts, dtype=kind)
            group["value"] = value
            if encoding == "lower":
                file["header/ctime"] = "2018-11-21"
                file["vmap/Label/1443537.022563"] = "n01443537_22563"


def cells(texts):
    """A 1 x K cell array of character arrays."""
    cell = np.empty((1, len(texts)), object)
    cell[0] = texts
    return cell


def _write_mat73(path, table, keys, texts, value):
    """HDF5 behind 512 bytes, axes reversed, a cell is an array of references."""
    with h5py.File(path, "w", userblock_size=512) as file:
        made = file.create_dataset("dataSet", data=np.ascontiguousarray(table.T))
        made.attrs["MATLAB_class"] = np.bytes_("double")
        group = file.create_group("metaData")
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        made = group.create_dataset("value", data=np.ascontiguousarray(value.T))
        made.attrs["MATLAB_class"] = np.bytes_("double")
        for name, column in (("key", keys), ("description", texts)):
            references = np.empty((len(column), 1), h5py.ref_dtype)
            for row, text in enumerate(column):
                codes = np.frombuffer(text.encode("utf-16-le"), np.uint16)[:, None]
                target = file.create_dataset(f"#refs#/{name}{row}", data=codes)
                target.attrs["MATLAB_class"] = np.bytes_("char")
                target.attrs["MATLAB_int_decode"] = np.int32(2)
                references[row, 0] = target.ref
            made = group.create_dataset(name, data=references)
            made.attrs["MATLAB_class"] = np.bytes_("cell")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116))
        file.seek(124)
        file.write(b"\x00\x02IM")


# ---------------------------------------------------------------- fMRI-on-ImageNet

NUM_VOXELS = 24
# Two categories; the pictures of one are 1e-6 apart. The last is used for the test.
TRAIN = [(1443537, n) for n in (22563, 22564, 22565, 7)]
TRAIN += [(15075141, n) for n in (10042, 9, 30001, 30002)]
TEST = [(1518878, 10042), (2071294, 46212), (15075141, 5)]
REPEATS = 4


def names_of(pairs):
    return [f"n{wnid:08d}_{number}" for wnid, number in pairs]


def make_subject(seed, num_voxels=NUM_VOXELS, label="stimulus_id"):
    """A table and its metadata, as float64, with the design columns in the middle.

    Two training runs, one test run a repeat, and an imagery run; raw values have
    another mean and scale in each run.
    """
    rng = np.random.default_rng(seed)
    rows = []  # DataType, Run, id
    order = rng.permutation(len(TRAIN))
    for place, k in enumerate(order):
        wnid, number = TRAIN[k]
        rows.append((1, 1 + place // 4, wnid + number * 1e-6))
    for run in range(REPEATS):
        for k in rng.permutation(len(TEST)):
            rows.append((2, run + 1, TEST[k][0] + TEST[k][1] * 1e-6))
    rows += [(3, 1, 1443537.0), (3, 1, 15075141.0)]
    design = np.array(rows)
    signal = {i: rng.normal(size=num_voxels) for i in np.unique(design[:, 2])}
    betas = np.stack([signal[i] for i in design[:, 2]])
    betas += rng.normal(size=betas.shape) * np.linspace(0.1, 2, num_voxels)
    for kind, run in {(k, r) for k, r, _ in rows}:
        here = (design[:, 0] == kind) & (design[:, 1] == run)
        betas[here] = betas[here] * rng.uniform(1, 9) + rng.normal() * 50
    half = num_voxels // 2
    table = np.hstack([betas[:, :half], design, betas[:, half:]])
    voxel = np.ones(table.shape[1], bool)
    voxel[half : half + 3] = False
    metadata = {}
    place = np.full(table.shape[1], np.nan)
    metadata["VoxelData"] = np.where(voxel, 1.0, np.nan)
    for k, key in enumerate(("DataType", "Run", label)):
        metadata[key] = place.copy()
        metadata[key][half + k] = 1
    number = np.cumsum(voxel) - 1
    for key, axis in (("voxel_x", 0), ("voxel_y", 1), ("voxel_z", 2)):
        step, size = (-3.0, 3.0, 3.5)[axis], (4, 3, 100)[axis]
        index = number // (1, 4, 12)[axis] % size
        metadata[key] = np.where(voxel, 10.25 + step * index, np.nan)
    for key, inside in (
        ("ROI_V1", number < 5),
        ("ROI_FFA", (number >= 5) & (number < 9)),
        ("ROI_VC", (number % 6 != 5) & (number < 30)),
    ):
        # One key has NaN for "no", another 0.
        metadata[key] = np.where(voxel & inside, 1.0, 0 if key == "ROI_V1" else np.nan)
    return table, metadata


def write_pictures(folder):
    """One picture for each stimulus, as the lab's archive orders them."""
    for part, pairs in (("training", TRAIN), ("test", TEST)):
        (folder / part).mkdir(parents=True)
        for name in names_of(pairs):
            picture(name).save(folder / part / f"{name}.JPEG")


def picture(name):
    """Colours that follow from the name; wide, so that JPEG is nearly exact."""
    rng = np.random.default_rng([*name.encode()])
    colours = rng.integers(0, 256, (1, 3, 3), np.uint8)
    return Image.fromarray(np.repeat(np.repeat(colours, 16, 0), 8, 1))
