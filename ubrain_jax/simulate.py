"""Writes a simulated crowd of brains as a miniature NSD folder.

    python -m ubrain_jax.simulate --out=DIR [--seed=0 --subjects=3 --images=875 ...]

What is planted, and how, is in `ubrain_jax.datasets.simulated`.
"""

from absl import flags

from ubrain_jax import errors
from ubrain_jax.datasets import simulated, truth


def main(argv: list[str]) -> None:
    """Reads the flags, writes the folder, says what is in it."""
    values = flags.FLAGS
    if not values.out or argv[1:]:
        raise errors.ConfigError(
            "--out" if not values.out else "command line",
            "",
            " ".join(argv[1:]) or "no folder",
            "--out=DIR and flags only",
            "Pass the folder to write as --out=DIR.",
        )
    told = simulated.write(
        values.out,
        num_subjects=values.subjects,
        num_shared=values.shared,
        num_own=values.images,
        num_voxels=values.voxels,
        image_px=values.image_px,
        trials_per_session=values.trials_per_session,
        seed=values.seed,
        overwrite=values.overwrite,
    )
    for line in truth.summary(told):
        print(line)
    print(values.out)


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder to make.")
    flags.DEFINE_integer("seed", 0, "Everything follows from it.")
    flags.DEFINE_integer("subjects", 3, "Subjects, 1 to 8.")
    flags.DEFINE_integer("shared", 125, "Pictures that all subjects see.")
    flags.DEFINE_integer("images", 875, "Further pictures of each subject.")
    flags.DEFINE_integer("voxels", 600, "Voxels in nsdgeneral of each subject.")
    flags.DEFINE_integer("image_px", 112, "Side of the pictures, a multiple of 28.")
    flags.DEFINE_integer("trials_per_session", 750, "Trials in a session.")
    flags.DEFINE_bool("overwrite", False, "Replace the folder if it exists.")
    errors.run_command(main)
