"""Predicts a subject's responses to pictures, in a file that its programs open.

    python -m ubrain_jax.predict --encoder=runs/nsd8 --subject=nsd-subj01 \\
        --images=pictures/ --out=subj01.nii.gz [--roi=V1v]

The ending of --out says what is written; docs/predict.md has each of them.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from ubrain_jax import cluster, compile_cache, errors, universal
from ubrain_jax.datasets import given
from ubrain_jax.maps import brain


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    cluster.refuse_several("python -m ubrain_jax.predict")
    values = flags.FLAGS
    needed = ("encoder", "subject", "images", "out")
    errors.check_flags(argv, *(values[name] for name in needed))
    brain.ending(values.out)
    compile_cache.begin()
    began = time.monotonic()
    encoder = universal.UniversalEncoder.load(values.encoder, backbone=values.backbone)
    output = to_file(
        encoder,
        values.images,
        values.out,
        subject=values.subject,
        roi=values.roi,
        background=values.background,
        template=values.template,
        overwrite=values.overwrite,
        about={"Encoder": values.encoder, "ImageSource": values.images},
    )
    print(f"{output.size}, {time.monotonic() - began:.1f} s")
    for note in output.notes:
        print(f"note: {note}")
    for file in output.files:
        print(f"wrote {file}")
    return 0


def to_file(
    encoder: universal.UniversalEncoder,
    images: Any,
    out: str | os.PathLike,
    *,
    subject: str,
    roi: Sequence[str] = (),
    background: str | None = None,
    template: str | os.PathLike | None = None,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
) -> brain.Output:
    """Predicts and writes, a block of pictures at a time.

    Args:
        encoder: The encoder.
        images: M pictures in any form that it takes.
        out: File; its ending is one of `brain.ENDINGS`.
        subject: One of the encoder's.
        roi: Regions whose voxels are predicted (their union); none: all voxels.
        background: What shows through transparent pixels; None refuses them.
        template: See `maps.surface.sides`.
        overwrite: Whether files that exist are replaced.
        about: What else the files should say of themselves.

    Returns:
        What was written.

    Raises:
        errors.InputError: If something given cannot be used; all that can be seen
            without computing is refused before.
        errors.OutputError: If it cannot be written; nothing is left then.
    """
    brain.ending(out)
    # This refuses pictures and regions that are not there; it computes nothing yet.
    blocks = encoder.predict_blocks(
        images, subject=subject, roi=list(roi) or None, background=background
    )
    who, voxels = encoder.subject(subject), None
    if roi:
        columns = [who.roi_names.index(name) for name in roi]
        voxels = np.flatnonzero(who.roi[:, columns].any(1))
    px = encoder.config.backbone.image_px
    ids = given.open_pictures(images, px, background=background).ids
    return brain.write(
        out,
        in_rows(blocks, ids),
        ids,
        who,
        voxels=voxels,
        about={**(about or {}), "Regions": list(roi) or "all"},
        template=template,
        overwrite=overwrite,
    )


def in_rows(
    blocks: Iterator[universal.Block], ids: tuple[str, ...]
) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks with the numbers of their pictures, which must still be those listed.

    Raises:
        errors.InputError: If the folder of pictures changed meanwhile.
    """
    done = 0
    for block in blocks:
        here = slice(done, done + len(block.ids))
        if tuple(block.ids) != tuple(ids[here]):
            raise errors.InputError(
                "images",
                "",
                f"{', '.join(block.ids)} where {', '.join(ids[here])} was listed",
                "pictures that stay as they are",
                "Start again; nothing was written.",
            )
        yield here, block.values
        done = here.stop


def define_flags() -> None:
    """Flags of this command."""
    for name, text in {
        "encoder": "Folder of a bundle, workdir of a run, or hub id (OWNER/NAME).",
        "subject": "One of the encoder's subjects.",
        "images": "Folder of pictures, one picture, or a .npy (N, H, W, 3).",
        "out": f"File to write, by its ending: {', '.join(brain.ENDINGS)}.",
        "backbone": "Folder, file or hub id of the frozen network, if not where the "
        "encoder says.",
        "template": "For MOSAIC's grayordinates on a surface: a .dscalar.nii that "
        "tells their vertices.",
    }.items():
        flags.DEFINE_string(name, None, text)
    flags.DEFINE_list("roi", [], "Only the voxels of these regions, for example V1v.")
    flags.DEFINE_enum(
        "background",
        None,
        ["white", "black"],
        "What shows through transparent pixels. Default: such pictures are refused.",
    )
    flags.DEFINE_bool("overwrite", False, "Replace files that exist.")


if __name__ == "__main__":
    define_flags()
    errors.run_command(main)
