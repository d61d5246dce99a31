"""Writes a simulated crowd of brains in the files of a real dataset.

    python -m ubrain_jax.simulate --out=DIR [--dataset=nsd --seed=0 --subjects=3 ...]
    python -m ubrain_jax.simulate --dataset=god --out=DIR [--noise=1,1,3 ...]
    python -m ubrain_jax.simulate --dataset=vim1 --out=DIR

What is planted, and how, is in `ubrain_jax.datasets.planted`; the files of each
dataset, and the defaults, in `simulated`, `simulated_god` and `simulated_vim1` there.
"""

from absl import flags

from ubrain_jax import errors
from ubrain_jax.datasets import simulated, simulated_god, simulated_vim1, truth

_WRITE = {
    "nsd": simulated.write,
    "god": simulated_god.write,
    "vim1": simulated_vim1.write,
}
# What a flag is called where it is used; a dataset that is absent does not know it.
_ALL = tuple(_WRITE)
_ARGUMENTS = {
    "subjects": dict.fromkeys(_ALL, "num_subjects"),
    "voxels": dict.fromkeys(_ALL, "num_voxels"),
    "image_px": dict.fromkeys(_ALL, "image_px"),
    "seed": dict.fromkeys(_ALL, "seed"),
    "images": {"nsd": "num_own", "god": "num_train", "vim1": "num_train"},
    "shared": {"nsd": "num_shared"},
    "trials_per_session": {"nsd": "trials_per_session"},
    "test_images": {"god": "num_test", "vim1": "num_test"},
    "repeats": {"god": "num_repeats"},
    "encoding": {"god": "encoding"},
    "single_trials": {"vim1": "single_trials"},
}


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
    given = {name: values[name].value for name in _ARGUMENTS}
    given = {name: value for name, value in given.items() if value is not None}
    strange = [name for name in given if values.dataset not in _ARGUMENTS[name]]
    if strange:
        known = [f"--{n}" for n, where in _ARGUMENTS.items() if values.dataset in where]
        raise errors.ConfigError(
            "command line",
            "",
            f"{', '.join(f'--{name}' for name in strange)} given for {values.dataset}",
            f"of {', '.join(known)}, --noise",
            "Leave it out.",
        )
    arguments = {_ARGUMENTS[n][values.dataset]: value for n, value in given.items()}
    told = _WRITE[values.dataset](
        values.out,
        **arguments,
        noise=_noise(values.noise),
        overwrite=values.overwrite,
    )
    for line in truth.summary(told):
        print(line)
    print(values.out)


def _noise(texts: list[str]) -> list[float] | None:
    """The factors of --noise; None if it was not given."""
    try:
        return [float(text) for text in texts] or None
    except ValueError:
        raise errors.ConfigError(
            "--noise",
            "",
            ",".join(texts),
            "numbers, for example 1,1,3",
            "Write numbers with commas between them, one for each subject.",
        ) from None


if __name__ == "__main__":
    flags.DEFINE_enum("dataset", "nsd", list(_WRITE), "Whose files to imitate.")
    flags.DEFINE_string("out", None, "Folder to make.")
    flags.DEFINE_integer("seed", None, "Everything follows from it. Default: 0.")
    flags.DEFINE_integer(
        "subjects",
        None,
        "Subjects: nsd 1 to 8 (default 3), god 1 to 5 (3), vim1 1 or 2 (2).",
    )
    flags.DEFINE_integer("shared", None, "nsd: pictures that all subjects see (125).")
    flags.DEFINE_integer(
        "images",
        None,
        "nsd: further pictures of each subject (875); god, vim1: training pictures "
        "(400, 300).",
    )
    flags.DEFINE_integer("test_images", None, "god, vim1: test pictures (50, 60).")
    flags.DEFINE_integer("repeats", None, "god: showings of a test picture (35).")
    flags.DEFINE_integer(
        "voxels", None, "Tuned voxels of each subject (nsd 600, god and vim1 300)."
    )
    flags.DEFINE_integer(
        "image_px",
        None,
        "Shorter side of the pictures, a multiple of 28 or at least 112 (nsd and god "
        "112, vim1 128).",
    )
    flags.DEFINE_integer("trials_per_session", None, "nsd: trials in a session (750).")
    flags.DEFINE_enum(
        "encoding", None, list(simulated_god.ENCODINGS), "god: kind of file (h5)."
    )
    flags.DEFINE_bool(
        "single_trials", None, "vim1: also write every presentation (yes)."
    )
    flags.DEFINE_list(
        "noise", [], "For each subject a factor of its noise, for example 1,1,3."
    )
    flags.DEFINE_bool("overwrite", False, "Replace the folder if it exists.")
    errors.run_command(main)
