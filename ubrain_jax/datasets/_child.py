"""Reads HDF5 and MATLAB files for `files`, in a process of its own.

Both libraries are C code that a damaged file can crash, and HDF5 can be made to read
other files of the machine. So this script is started by path under `python -I`, with
an empty environment, limits its own memory, time and files, and answers with plain
bytes. Nothing of ubrain_jax is imported here.

Standard input holds one JSON line: {"limits": {...}, "jobs": [...]}. For each job the
answer on standard output is any number of frames and then {"done": true}. A frame is
a JSON line, followed by the bytes of an array (C order) if it names a "shape". A job
that cannot be done answers {"fault": [where, found, expected, action]} instead.
"""

import json
import math
import resource
import sys

# Bytes that a file may declare: 200 times its size, and at least this.
LEAST_LIMIT = 1 << 30
MOST_RATIO = 200
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
DAMAGED = "The file is damaged: download it again."


class Fault(ValueError):
    """What is wrong with the file: where, found, expected, action."""


def main():
    """Answers the request on standard input."""
    sys.excepthook = _report_exception
    request = json.loads(sys.stdin.buffer.readline())
    # Imported before the limits: libraries open files and map memory.
    import h5py
    import numpy as np

    mat = [job["path"] for job in request["jobs"] if job["do"] in ("mat", "whos")]
    if not all(_is_hdf5(path) for path in mat):
        import scipy.io  # noqa: F401
    for name, value in request["limits"].items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(number, (value, value))
    for job in request["jobs"]:
        try:
            if job["do"] == "layout":
                with h5py.File(job["path"], "r") as file:
                    dataset = _dataset(h5py, file, job)
                    shape, dtype = list(dataset.shape), dataset.dtype.str
                    _send({"layout": shape, "dtype": dtype})
            elif job["do"] == "blocks":
                _send_blocks(h5py, np, job)
            elif job["do"] == "whos":
                _send_layouts(h5py, job["path"])
            else:
                _send_variables(h5py, np, job)
        except Fault as fault:
            _send({"fault": list(fault.args)})
        except OSError as error:  # h5py: no HDF5, truncated, failed filter
            found = f"cannot be read ({_brief(error)})"
            where = job.get("name", "")
            _send({"fault": [where, found, "an undamaged file", DAMAGED]})
        _send({"done": True})


def _report_exception(kind, error, trace):
    """An exception nobody expected becomes the last line of the answer."""
    _send({"failed": f"{kind.__name__}: {_brief(error)}"})


def _send(header, array=None):
    """Writes one frame."""
    out = sys.stdout.buffer
    out.write(json.dumps(header).encode() + b"\n")
    if array is not None:
        out.write(array.data)
    out.flush()


def _send_array(np, array, **header):
    """Writes a frame with an array of numbers or text."""
    array = np.ascontiguousarray(array)
    if array.dtype.kind not in "biufcSU":
        raise TypeError(f"an array of {array.dtype}")
    header |= {"shape": list(array.shape), "dtype": array.dtype.str}
    _send(header, array.reshape(-1).view(np.uint8))


def _brief(error):
    """One printable line of at most 200 characters."""
    text = " ".join(str(error).split())
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def _names(found):
    """Names in the file, at most 20, safe to print."""
    found = [_brief(name)[:40] for name in found]
    more = f" and {len(found) - 20} more" if len(found) > 20 else ""
    return (", ".join(found[:20]) or "nothing") + more


def _check_size(where, declared, path):
    """Refuses to unpack what a small file blows up to; returns the file's size."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
    if declared > max(LEAST_LIMIT, MOST_RATIO * size):
        raise Fault(
            where,
            f"declares {declared:,} bytes in a file of {size:,}",
            f"at most {MOST_RATIO} times the size of the file",
            DAMAGED,
        )
    return size


def _dataset(h5py, file, job):
    """The dataset `job["name"]`, which must lie in this file, whole.

    HDF5 would follow links and external storage to other files, and read what was
    never written as zeros.
    """
    name, path, where = job["name"], job["path"], "/" + job["name"]
    place = file
    for part in name.split("/"):
        link = place.get(part, getlink=True) if isinstance(place, h5py.Group) else None
        if link is None:
            raise Fault(
                where,
                f"no such dataset (found: {_names(place)})",
                f"a dataset {name}",
                "Check that this is the right file.",
            )
        if not isinstance(link, h5py.HardLink):
            target = _brief(getattr(link, "filename", "") + ":" + link.path)
            raise Fault(
                where,
                f"is a link to {target}",
                "data inside the file",
                "Links are refused: copy the data into one file.",
            )
        place = place[part]
    if not isinstance(place, h5py.Dataset):
        raise Fault(
            where,
            f"is a group (holds: {_names(place)})",
            "a dataset",
            "Check that this is the right file.",
        )
    if place.is_virtual or place.external:
        other = place.external[0][0] if place.external else "other files"
        raise Fault(
            where,
            f"points outside the file ({_brief(other)})",
            "data inside the file",
            "Refused: copy the data into one file.",
        )
    if place.dtype.kind not in "biuf":
        raise Fault(
            where,
            f"holds {_brief(place.dtype)}",
            "numbers",
            "Check that this is the right file.",
        )
    if place.shape is None:
        raise Fault(where, "is empty", "an array of numbers", DAMAGED)
    size = _check_size(where, place.nbytes, path)
    if place.chunks:
        pairs = zip(place.shape, place.chunks, strict=True)
        expected, unit = math.prod(-(-n // c) for n, c in pairs), "chunks"
        written = expected
        packed = place.id.get_create_plist().get_nfilters()
        # Counting reads the index, 700,000 entries in NSD: where only the layout is
        # asked for, only if the file is too small.
        if job["do"] != "layout" or (not packed and size < place.nbytes):
            written = place.id.get_num_chunks()
    else:
        expected, unit = place.nbytes, "bytes"
        written = place.id.get_storage_size()
    if written < expected:
        raise Fault(
            where,
            f"has {written} of {expected} {unit}",
            "all of them (HDF5 would read the others as 0)",
            "The file is incomplete: download it again.",
        )
    return place


def _send_blocks(h5py, np, job):
    """One frame for each block [[start, stop], ...], one pair an axis."""
    with h5py.File(job["path"], "r") as file:
        dataset = _dataset(h5py, file, job)
        shape = list(dataset.shape)
        for block in job["blocks"]:
            if len(block) == len(shape):  # a stop of null is the end of the axis
                pairs = zip(block, shape, strict=True)
                block = [(a, n if b is None else b) for (a, b), n in pairs]
            inside = len(block) == len(shape) and all(
                0 <= a <= b <= n for (a, b), n in zip(block, shape, strict=True)
            )
            if not inside:
                raise Fault(
                    "/" + job["name"],
                    f"shape {shape} has no block {block}",
                    "the shape it had when it was opened",
                    "Do not change files while they are read.",
                )
            _send_array(np, dataset[tuple(slice(a, b) for a, b in block)])


def _is_hdf5(path):
    """Whether a MATLAB file is of version 7.3, HDF5 behind 512 bytes or none."""
    with open(path, "rb") as file:
        head = file.read(520)
    return HDF5_MAGIC in (head[:8], head[512:])


def _send_layouts(h5py, path):
    """One frame for each MATLAB variable of numbers: name, shape, type."""
    if _is_hdf5(path):
        with h5py.File(path, "r") as file:
            for name in file:
                link = file.get(name, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    continue
                place = file[name]
                shape = getattr(place, "shape", None)  # none in a group, or if empty
                if shape is not None and place.dtype.kind in "biuf":
                    layout, dtype = list(shape[::-1]), place.dtype.str
                    _send({"name": _brief(name), "layout": layout, "dtype": dtype})
        return

    import scipy.io

    dtypes = {"single": "float32", "double": "float64", "logical": "bool"}
    integers = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    dtypes |= {name: name for name in integers}
    for name, shape, kind in scipy.io.whosmat(path):
        if kind in dtypes:
            shape = [int(n) for n in shape]
            _send({"name": _brief(name), "layout": shape, "dtype": dtypes[kind]})


def _send_variables(h5py, np, job):
    """One frame for each MATLAB variable, of version 5, 7 or 7.3."""
    path, wanted = job["path"], job["names"]
    if _is_hdf5(path):
        with h5py.File(path, "r") as file:
            found = [n for n in file if not n.startswith("#")]
            _check_found(found, wanted)
            for name in wanted:
                dataset = _dataset(h5py, file, job | {"name": name})
                if dataset.attrs.get("MATLAB_empty", 0):
                    array = np.zeros([int(n) for n in dataset[...]])
                else:  # MATLAB stores columns first
                    array = dataset[...].T
                _send_array(np, array, name=name)
        return

    import scipy.io

    table = scipy.io.whosmat(path)
    found = [name for name, *_ in table if name]
    _check_found(found, wanted)
    sizes = {"int8": 1, "uint8": 1, "char": 4, "logical": 1}
    sizes |= {"int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "single": 4}
    for name, shape, kind in table:
        if name in wanted:
            _check_size(name, math.prod(shape) * sizes.get(kind, 8), path)
    content = scipy.io.loadmat(path, variable_names=wanted)
    for name in wanted:
        array = content[name]
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufcU":
            raise Fault(
                name,
                f"holds {_brief(getattr(array, 'dtype', type(array).__name__))}",
                "an array of numbers or text",
                "Check that this is the right file.",
            )
        _send_array(np, array, name=name)


def _check_found(found, wanted):
    """Names every variable that is missing, and what is there."""
    lacking = [name for name in wanted if name not in found]
    if not found:
        raise Fault("", "no variables found", ", ".join(wanted), DAMAGED)
    if lacking:
        raise Fault(
            "",
            f"lacks {', '.join(lacking)} (found: {_names(found)})",
            ", ".join(wanted),
            "Check that this is the right file.",
        )


if __name__ == "__main__":
    main()
