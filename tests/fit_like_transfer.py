"""The command `transfer` and `fit_subject` on the same 100 pictures.

    python -m tests.fit_like_transfer RUN STORE SUBJECT

RUN is a workdir without SUBJECT, who is in STORE. Both fit, from twins, and score the
subject's test pictures; differences are printed.
"""

import subprocess
import sys
import tempfile

import numpy as np

import ubrain_jax
from ubrain_jax import crowd
from ubrain_jax.model import bundle


def main(run: str, store: str, name: str) -> None:
    """Fits twice and compares."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ubrain_jax.transfer", f"--encoder={run}"]
        command += [f"--crowd={store}", f"--subject={name}", f"--workdir={folder}"]
        subprocess.run([*command, "--num_images=100", "--init=twin"], check=True)
        enc = ubrain_jax.UniversalEncoder.load(run)
        path = f"{folder}/subjects/{name}.safetensors"
        theirs = bundle.read_subject(path, enc.sha256)

    opened = crowd.open_crowd((store,), (name,))
    [subject] = crowd.with_images(opened, 100, seed=0).subjects
    used = np.flatnonzero(np.isin(subject.split, ("train", "val")))
    told = enc.fit_subject(
        crowd.read_pictures(opened, subject.image[used]),
        crowd.read_responses(subject, used),
        name=name,
        image_id=[opened.image_id[i] for i in subject.image[used]],
        init="twin",
    )
    test = subject.samples("test")
    shown = crowd.read_pictures(opened, subject.image[test])
    measured = crowd.read_responses(subject, test)
    ours = enc.score(shown, measured, subject=name, metric="pearson")
    other = ubrain_jax.UniversalEncoder.load(run)
    other.take_in(theirs)
    command_score = other.score(shown, measured, subject=name, metric="pearson")
    far = np.abs(enc.subject(name).embedding - theirs.embedding).max()
    print(
        f"step kept {told['step']} and {theirs.provenance['step']}; median r "
        f"{float(ours.median()):.4f} and {float(command_score.median()):.4f}; largest "
        f"difference of an embedding {far:.1e} (its deviation "
        f"{theirs.embedding.std():.1e}), of a score "
        f"{float(np.abs(ours - command_score).max()):.1e}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
