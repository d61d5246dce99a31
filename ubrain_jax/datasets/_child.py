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

import hashlib
import json
import math
import resource
import sys

# Bytes that a file may declare: 200 times its size, and at least this.
LEAST_LIMIT = 1 << 30
MOST_RATIO = 200
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
DAMAGED = "The file is damaged: download it again."
CHANGED = (
    "the shape it had when it was opened",
    "Do not change files while they are read.",
)
ANOTHER = "Check that this is the right file."
# Names that the two parts of a BData table go by.
TABLES = (("dataSet", "metaData"), ("dataset", "metadata"))
MOST_KEYS, MOST_CHARACTERS = 1000, 100_000  # of the metadata of a table
# Bytes of an element of the classes of MATLAB 5.
SIZES = {"int8": 1, "uint8": 1, "char": 4, "logical": 1, "double": 8, "single": 4}
SIZES |= {"int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8}
LONGEST_TEXT = 500  # characters of a name or an attribute
MEMBERS = 128  # in one frame: a line must stay below the parent's limit


class Fault(ValueError):
    """What is wrong with the file: where, found, expected, action."""


def main():
    """Answers the request on standard input."""
    sys.excepthook = _report_exception
    request = json.loads(sys.stdin.buffer.readline())
    # Imported before the limits: libraries open files and map memory.
    import h5py
    import numpy as np

    matlab = ("mat", "whos", "table", "columns")
    of_matlab = [job["path"] for job in request["jobs"] if job["do"] in matlab]
    if not all(_is_hdf5(path) for path in of_matlab):
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
            elif job["do"] == "table":
                _send_table(h5py, np, job["path"])
            elif job["do"] == "columns":
                _send_columns(h5py, np, job)
            elif job["do"] == "whos":
                _send_layouts(h5py, job["path"])
            elif job["do"] == "members":
                _send_members(h5py, np, job)
            elif job["do"] == "rows":
                _send_rows(h5py, np, job)
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


def _dataset(h5py, file, job, kinds="biuf"):
    """The dataset `job["name"]`, which must lie in this file, whole."""
    name, where = job["name"], "/" + job["name"]
    place = file
    for part in name.split("/"):
        link = place.get(part, getlink=True) if isinstance(place, h5py.Group) else None
        if link is None:
            raise Fault(
                where,
                f"no such dataset (found: {_names(place)})",
                f"a dataset {name}",
                ANOTHER,
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
    return _whole(h5py, place, where, job, kinds)


def _whole(h5py, place, where, job, kinds="biuf"):
    """The object, if it is a dataset of the kinds, inside its file and complete.

    HDF5 would follow external storage to other files, and read what was never written
    as zeros.
    """
    if not isinstance(place, h5py.Dataset):
        raise Fault(
            where,
            f"is a group (holds: {_names(place)})",
            "a dataset",
            ANOTHER,
        )
    if place.is_virtual or place.external:
        other = place.external[0][0] if place.external else "other files"
        raise Fault(
            where,
            f"points outside the file ({_brief(other)})",
            "data inside the file",
            "Refused: copy the data into one file.",
        )
    wanted = "numbers" if kinds == "biuf" else "text"
    if place.dtype.kind not in kinds:
        raise Fault(where, f"holds {_brief(place.dtype)}", wanted, ANOTHER)
    if place.shape is None:
        raise Fault(where, "is empty", f"an array of {wanted}", DAMAGED)
    size = _check_size(where, place.nbytes, job["path"])
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
                    "/" + job["name"], f"shape {shape} has no block {block}", *CHANGED
                )
            _send_array(np, dataset[tuple(slice(a, b) for a, b in block)])


def _is_hdf5(path):
    """Whether a file is HDF5, bare or behind the 512 bytes of MATLAB."""
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
                text = place.attrs.get("MATLAB_class", b"") == b"char"
                if shape is not None and place.dtype.kind in "biuf" and not text:
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


def _send_members(h5py, np, job):
    """What groups hold: names, shapes, types and some attributes; no arrays.

    A first frame tells about the file itself, then come frames of members, and for
    the file and each group the distinct numbers in attributes `job["numbers"]` (two
    names: of the file, where it may be an array; of members).
    """
    wanted, (of_file, numbers) = job["attributes"], job["numbers"]
    with h5py.File(job["path"], "r") as file:
        names = [_plain("/", name) for name in file]
        _send({"attributes": _attributes(h5py, file, wanted), "names": names[:1000]})
        found = []
        if of_file in file:
            array = _dataset(
                h5py, file, {"path": job["path"], "do": "", "name": of_file}
            )
            found.append(array[...].reshape(-1))
        elif of_file in file.attrs:
            found.append(_number_list(np, file, of_file))
        _send_array(np, _distinct(np, found), group="")
        for name in job["groups"]:
            link = file.get(name, getlink=True)
            if link is None:
                continue
            kind = type(link)
            if kind is h5py.HardLink:
                kind = type(file[name])
            if kind is not h5py.Group:
                raise Fault(
                    "/" + name,
                    f"is a {kind.__name__}",
                    "a group",
                    "Check that this is the right file; links are refused.",
                )
            group, rows, found, seen = file[name], [], [], set()
            for member in group:
                place = f"{name}/{_plain('/' + name, member)}"
                part = {"do": "layout", "path": job["path"], "name": place}
                dataset = _dataset(h5py, file, part)
                row = [member, list(dataset.shape), dataset.dtype.str]
                rows.append([*row, _attributes(h5py, dataset, wanted)])
                if numbers in dataset.attrs:
                    array = _number_list(np, dataset, numbers)
                    digest = hashlib.sha256(array.tobytes()).digest()
                    if digest not in seen:  # most members have the same ones
                        seen.add(digest)
                        found.append(array)
                if len(rows) == MEMBERS:
                    _send({"group": name, "members": rows})
                    rows = []
                if len(found) == MEMBERS:
                    found = [_distinct(np, found)]
            _send({"group": name, "members": rows})
            _send_array(np, _distinct(np, found), group=name)


def _plain(where, text):
    """A name or text that can be printed; others are refused."""
    if not text.isprintable() or len(text) > LONGEST_TEXT:
        raise Fault(
            where,
            f"holds a text of {len(text)} characters, {_brief(text)[:40]!r}",
            f"at most {LONGEST_TEXT} that can be printed",
            DAMAGED,
        )
    return text


def _attributes(h5py, place, wanted):
    """Attributes of an object that are one text or one number."""
    found = {}
    for name in wanted:
        if name not in place.attrs:
            continue
        value = place.attrs[name]
        if getattr(value, "size", 0) == 1 and value.shape:
            value = value.reshape(-1)[0]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str):
            found[name] = _plain(place.name, str(value))
        elif getattr(value, "shape", None) == () and value.dtype.kind in "biuf":
            found[name] = value.item()
        elif not isinstance(value, h5py.Empty):
            raise Fault(
                _brief(place.name),
                f"attribute {name} is {_brief(value)[:40]}",
                "one text or number",
                "Check that this is the right file.",
            )
    return found


def _number_list(np, place, name):
    """An attribute that is a list of numbers, perhaps none."""
    value = np.asarray(place.attrs[name])
    if value.dtype.kind not in "biuf":
        raise Fault(
            _brief(place.name),
            f"attribute {name} holds {_brief(value.dtype)}",
            "numbers",
            "Check that this is the right file.",
        )
    return value.reshape(-1)


def _distinct(np, arrays):
    """Sorted distinct numbers of several arrays, float64."""
    return np.unique(np.concatenate([np.zeros(0), *arrays]).astype(np.float64))


def _send_rows(h5py, np, job):
    """One frame for each list of names: some elements of each dataset, a row each."""
    runs, dtype = job["runs"], np.dtype(job["dtype"])
    first, last = runs[0][0], runs[-1][1]
    columns = None
    if len(runs) > 1:
        columns = np.concatenate([np.arange(a, b) for a, b in runs]) - first
    num = sum(b - a for a, b in runs)
    with h5py.File(job["path"], "r") as file:
        for names in job["lists"]:
            rows = np.empty((len(names), num), dtype)
            for row, name in enumerate(names):
                dataset = _dataset(h5py, file, job | {"name": name})
                if not dataset.shape or dataset.shape[0] < last or dataset.ndim > 2:
                    raise Fault(
                        "/" + name,
                        f"shape {list(dataset.shape)} has no element {last - 1}",
                        "the shape it had when it was opened",
                        "Do not change files while they are read.",
                    )
                values = dataset[first:last].reshape(last - first, -1)[:, 0]
                rows[row] = values if columns is None else values[columns]
            _send_array(np, rows)


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
    for name, shape, kind in table:
        if name in wanted:
            _check_size(name, math.prod(shape) * SIZES.get(kind, 8), path)
    content = scipy.io.loadmat(path, variable_names=wanted)
    for name in wanted:
        array = content[name]
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufcU":
            raise Fault(
                name,
                f"holds {_brief(getattr(array, 'dtype', type(array).__name__))}",
                "an array of numbers or text",
                ANOTHER,
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
            ANOTHER,
        )


# ---------------------------------------------------------------- BData tables


def _send_table(h5py, np, path):
    """One frame: names, shape and type of a table, keys; then values (keys, columns).

    MATLAB 7.3 stores columns first; it is told by keys that are references.
    """
    if not _is_hdf5(path):
        _send_table_of_version_5(np, path)
        return
    with h5py.File(path, "r") as file:
        name, meta = _table_names(list(file))
        job = {"do": "table", "path": path}
        data = _dataset(h5py, file, job | {"name": name})
        key = _dataset(h5py, file, job | {"name": f"{meta}/key"}, kinds="OS")
        value = _dataset(h5py, file, job | {"name": f"{meta}/value"})
        _check_axes(f"/{name}", data.shape)
        _check_axes(f"/{meta}/value", value.shape)
        keys, turned = _texts(h5py, file, key, job), _holds_references(h5py, key)
        values = np.asarray(value[...], np.float64)
        _send_array(
            np,
            values.T if turned else values,
            encoding="MATLAB 7.3" if turned else "HDF5",
            name=name,
            keys=keys,
            table=list(data.shape)[:: -1 if turned else 1],
            type=data.dtype.str,
        )


def _table_names(found):
    """The two names of a table among those in the file."""
    for pair in TABLES:
        if set(pair) <= set(found):
            return pair
    raise Fault(
        "",
        f"no table (found: {_names(found)})",
        " or ".join(" and ".join(pair) for pair in TABLES),
        "Check that this is the right file, and whole.",
    )


def _check_axes(where, shape):
    """Refuses what is no table."""
    if len(shape) != 2 or 0 in shape:
        raise Fault(where, f"shape {list(shape)}", "rows and columns", ANOTHER)


def _check_texts(where, texts):
    """Refuses more text than metadata has; returns it printable."""
    if sum(map(len, texts)) > MOST_CHARACTERS:
        raise Fault(where, "long texts", f"{MOST_CHARACTERS} characters", DAMAGED)
    return ["".join(c if c.isprintable() else "?" for c in text) for text in texts]


def _holds_references(h5py, dataset):
    """Whether the elements are references to other objects, as MATLAB's cells are."""
    return h5py.check_ref_dtype(dataset.dtype) is h5py.Reference


def _texts(h5py, file, dataset, job):
    """Texts of fixed or any length, or of MATLAB's character arrays."""
    where = dataset.name
    if dataset.size > MOST_KEYS:
        raise Fault(where, f"{dataset.size} texts", f"at most {MOST_KEYS}", ANOTHER)
    if _holds_references(h5py, dataset):
        texts = [
            _characters(h5py, file, reference, f"{where}, text {k + 1}", job)
            for k, reference in enumerate(dataset[...].ravel())
        ]
    elif h5py.check_string_dtype(dataset.dtype):
        texts = [t.decode("utf-8", "replace") for t in dataset[...].ravel().tolist()]
    else:
        raise Fault(where, f"holds {_brief(dataset.dtype)}", "text", ANOTHER)
    return _check_texts(where, texts)


def _characters(h5py, file, reference, where, job):
    """The text of a MATLAB character array, stored as UTF-16."""
    if not reference:
        raise Fault(where, "refers to nothing", "text", DAMAGED)
    place = _whole(h5py, file[reference], where, job, kinds="u")
    if place.attrs.get("MATLAB_empty", 0):
        return ""
    if place.size > MOST_CHARACTERS:
        raise Fault(where, f"{place.size} characters", "a short text", DAMAGED)
    codes = place[...].T.ravel()
    return codes.astype("<u2").tobytes().decode("utf-16-le", "replace")


def _send_table_of_version_5(np, path):
    """The frame of `_send_table` for a MATLAB file of version 5."""
    import scipy.io

    found = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(path)}
    name, meta = _table_names([n for n in found if n])
    shape, kind = found[name]
    if kind not in SIZES or kind in ("char", "logical"):
        raise Fault(name, f"holds {_brief(kind)}", "numbers", ANOTHER)
    _check_axes(name, shape)
    _check_size(name, math.prod(shape) * SIZES[kind], path)
    struct = scipy.io.loadmat(path, variable_names=[meta], mat_dtype=True)[meta]
    fields = struct.dtype.names or ()
    if struct.size != 1 or not {"key", "value"} <= set(fields):
        raise Fault(
            meta,
            f"shape {list(struct.shape)}, fields: {_names(fields)}",
            "one struct with key and value",
            ANOTHER,
        )
    cell, value = struct["key"].item(), struct["value"].item()
    if value.dtype.kind not in "biuf":
        raise Fault(f"{meta}.value", f"holds {_brief(value.dtype)}", "numbers", ANOTHER)
    _check_axes(f"{meta}.value", value.shape)
    entries = [np.asarray(entry) for entry in cell.ravel()[: MOST_KEYS + 1]]
    if len(entries) > MOST_KEYS or any(e.dtype.kind != "U" for e in entries):
        raise Fault(
            f"{meta}.key", f"{cell.size} entries", f"at most {MOST_KEYS} texts", ANOTHER
        )
    texts = ["".join(entry.ravel().tolist()).rstrip() for entry in entries]
    _send_array(
        np,
        np.asarray(value, np.float64),
        encoding="MATLAB 5",
        name=name,
        keys=_check_texts(f"{meta}.key", texts),
        table=list(shape),
        type={"double": "<f8", "single": "<f4"}.get(kind, kind),
    )


def _send_columns(h5py, np, job):
    """Chosen columns of a table, in frames of some rows or, turned, some columns."""
    columns = np.array(job["columns"], np.int64)
    shape = job["shape"][:: -1 if job["turned"] else 1]
    if not _is_hdf5(job["path"]):
        import scipy.io

        name = job["name"]
        table = scipy.io.loadmat(job["path"], variable_names=[name])[name]
        if table.dtype.kind not in "biuf":
            raise Fault(name, f"holds {_brief(table.dtype)}", "numbers", ANOTHER)
        _check_shape(name, table.shape, shape)
        _send_turned(np, table.T, columns, _step(table.T, 1, job))
        return
    with h5py.File(job["path"], "r") as file:
        table = _dataset(h5py, file, job)
        _check_shape(table.name, table.shape, shape)
        step = _step(table, table.chunks[0] if table.chunks else 1, job)
        if job["turned"]:
            _send_turned(np, table, columns, step)
            return
        for start in range(0, len(table), step):
            block = table[start : start + step][:, columns]
            _send_array(np, block, start=start, turned=False)


def _check_shape(where, found, expected):
    """Refuses a table that is another one than when it was opened."""
    if list(found) != list(expected):
        raise Fault(where, f"shape {list(found)}, not {list(expected)}", *CHANGED)


def _send_turned(np, table, columns, step):
    """Rows `columns` (ascending) of a table that stores them as rows."""
    for start in range(0, len(table), step):
        first, last = np.searchsorted(columns, [start, start + step])
        if first < last:
            block = table[start : start + step][columns[first:last] - start]
            _send_array(np, block, start=int(first), turned=True)


def _step(table, whole, job):
    """Rows to read at once: about `job["block"]` bytes, a multiple of `whole`."""
    row = math.prod(table.shape[1:]) * table.dtype.itemsize
    return max(1, job["block"] // row // whole) * whole


if __name__ == "__main__":
    main()
