"""Takes a new subject into a trained encoder: only its embeddings are learned.

    python -m ubrain_jax.transfer --encoder=runs/nsd7 --crowd=new.zarr \\
        --subject=nsd-subj01 --workdir=runs/subj01 --num_images=100 --init=twin

Writes subjects/NAME.safetensors, which attaches to that encoder alone, transfer.json
(how it was fitted), and the scores and report that every evaluation writes.
"""

import pathlib
import time

from absl import flags

from ubrain_jax import (
    checkpoint,
    cluster,
    compile_cache,
    errors,
    evaluate,
    frozen,
    subjects,
)
from ubrain_jax.maps import report
from ubrain_jax.model import bundle


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    cluster.refuse_several("python -m ubrain_jax.transfer")
    values = flags.FLAGS
    needed = ("encoder", "crowd", "subject", "workdir")
    errors.check_flags(argv, *(values[name] for name in needed))
    settings, num_images = subjects.read_settings(), values.num_images
    if num_images is not None and num_images < 4:
        raise errors.ConfigError(
            "--num_images", "", str(num_images), "4 or more", "Change it."
        )
    print(compile_cache.begin(), flush=True)
    began = time.monotonic()
    with checkpoint.own_workdir(values.workdir):
        trained = frozen.read_encoder(values.encoder)
        ready = subjects.make_ready(
            trained,
            values.crowd,
            values.subject,
            num_images=num_images,
            seed=settings.seed,
            backbone=values.backbone,
            cache=values.cache,
        )
        [subject] = ready.run.stores.subjects
        for line in evaluate.warnings_of(ready.run):
            print(f"note: {line}", flush=True)
        if trained.seen is None:
            print(
                "note: the encoder's run has no trained_on.json, so whether it has "
                "seen the test pictures is not known"
            )
        print(
            f"{subject.name}: {subject.num_voxels} voxels, features of "
            f"{len(ready.rows)} pictures after {time.monotonic() - began:.1f} s; "
            f"encoder of {len(trained.subjects)} subjects, step {trained.step}",
            flush=True,
        )
        result = subjects.transfer(ready, settings, num_images, values.workdir)
    fitted = pathlib.Path(values.workdir) / bundle.subject_file(subject.name)
    print(report.closing(result, values.workdir, subject=fitted))
    return 0


if __name__ == "__main__":
    flags.DEFINE_integer(
        "num_images",
        None,
        "Pictures to learn from, a tenth of them for validation; a choice by --seed. "
        "Default: all, in the store's splits.",
    )
    subjects.define_flags()
    subjects.define_settings()
    errors.run_command(main)
