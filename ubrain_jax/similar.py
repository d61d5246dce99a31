"""Finds voxels of other brains that are most like a voxel or a region.

    python -m ubrain_jax.similar --encoder=runs/nsd8 --subject=nsd-subj01 \\
        --voxel=1234 [--n=10] [--among=nsd-subj02,nsd-subj05] [--out=similar.csv]

--roi=V1v or --position=i,j,k instead of --voxel; docs/similar.md says more.
"""

import csv
import io
import os
import pathlib

import xarray
from absl import flags

from ubrain_jax import cluster, errors, universal, whole
from ubrain_jax.maps import pages

HEAD = ("neighbour", "subject", "voxel", "similarity", "position", "regions")


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    cluster.refuse_several("python -m ubrain_jax.similar")
    values = flags.FLAGS
    errors.check_flags(argv, values["encoder"], values["subject"])
    if values.out:
        check_out(values.out, values.overwrite)
    encoder = universal.UniversalEncoder.load(values.encoder)
    found = encoder.similar(
        values.subject,
        voxel=values.voxel,
        roi=values.roi or None,
        position=whole_numbers(values.position) if values.position else None,
        n=values.n,
        among=values.among or None,
        other_brains=not values.own_brain,
    )
    rows = table(found)
    print(aligned(rows))
    if values.out:
        write_csv(values.out, rows)
        print(f"wrote {values.out}")
    return 0


def table(found: xarray.Dataset) -> list[tuple[str, ...]]:
    """What `UniversalEncoder.similar` found, as cells; the first row is `HEAD`.

    Example:
        >>> import xarray
        >>> found = xarray.Dataset({"subject": ("neighbour", ["a"]),
        ...     "voxel": ("neighbour", [7]), "similarity": ("neighbour", [0.5]),
        ...     "position": (("neighbour", "axis"), [[1, 2, -1]]),
        ...     "regions": ("neighbour", ["V1v, V1"])}, {"neighbour": [1]})
        >>> table(found)[1]
        ('1', 'a', '7', '0.5000', '1,2,-1', 'V1v, V1')
    """
    columns = (
        found.neighbour.values.astype(str),
        found.subject.values.astype(str),
        found.voxel.values.astype(str),
        [f"{value:.4f}" for value in found.similarity.values],
        [",".join(map(str, place)) for place in found.position.values.tolist()],
        found.regions.values.astype(str),
    )
    return [HEAD, *(tuple(map(str, row)) for row in zip(*columns, strict=True))]


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Cells in columns, as a terminal can show them."""
    shown = [[pages.printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in shown
    )
    return "\n".join(line.rstrip() for line in lines)


def check_out(out: str | os.PathLike, overwrite: bool) -> None:
    """Refuses a name that is no .csv, or is taken.

    Raises:
        errors.ConfigError: If it is no .csv.
        errors.OutputError: If it exists.
    """
    path = pathlib.Path(out)
    if path.suffix.lower() != ".csv":
        raise errors.ConfigError(
            out, "", "another ending", "NAME.csv", "Choose such a name for --out."
        )
    if path.exists() and (path.is_dir() or not overwrite):
        raise errors.OutputError(
            out, "", "it exists", "a new name", "Choose another, or pass --overwrite."
        )


def write_csv(out: str | os.PathLike, rows: list[tuple[str, ...]]) -> None:
    """Writes cells as CSV (RFC 4180), whole or not at all.

    Raises:
        errors.OutputError: If it cannot be written.
    """
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    whole.write_text(out, text.getvalue())


def whole_numbers(words: list[str]) -> list[int]:
    """Of --position.

    Raises:
        errors.ConfigError: If one is no whole number.

    Example:
        >>> whole_numbers(["12", " 3", "-1"])
        [12, 3, -1]
    """
    try:
        return [int(word) for word in words]
    except ValueError:
        raise errors.ConfigError(
            "--position",
            "",
            ",".join(words),
            "whole numbers: i,j,k, or hemisphere,vertex",
            "Write --position=40,21,33, for example.",
        ) from None


def define_flags() -> None:
    """Flags of this command."""
    flags.DEFINE_string(
        "encoder", None, "Folder of a bundle, workdir of a run, or hub id (OWNER/NAME)."
    )
    flags.DEFINE_string("subject", None, "Whose voxel or region it is.")
    flags.DEFINE_integer("voxel", None, "Its number in the subject.")
    flags.DEFINE_list(
        "roi", [], "A region, for example V1v: the mean of its voxels' embeddings."
    )
    flags.DEFINE_list(
        "position", [], "Of a voxel: i,j,k, or on a surface hemisphere,vertex."
    )
    flags.DEFINE_list("among", [], "Subjects to search. Default: all others.")
    flags.DEFINE_bool("own_brain", False, "Search the subject's own voxels too.")
    flags.DEFINE_integer("n", 10, "Number of neighbours.", lower_bound=1)
    flags.DEFINE_string("out", None, "NAME.csv to write besides.")
    flags.DEFINE_bool("overwrite", False, "Replace a file that exists.")


if __name__ == "__main__":
    define_flags()
    errors.run_command(main)
