"""A small crowd of planted voxels, whose answers follow from the pictures."""

import numpy as np

from ubrain_jax.datasets import drawing, planted, schema

PX = 56


def dataset(
    subjects: int = 2, train: int = 200, test: int = 60, voxels: int = 120
) -> schema.Dataset:
    """Subjects with `train` pictures of their own and `test` common ones.

    Responses are noisy: three repeats of voxels with the noise of NSD's.
    """
    ids = [f"shared/{i}" for i in range(test)]
    own = {k: [f"own{k}/{i}" for i in range(train)] for k in range(subjects)}
    everything = ids + [i for k in own for i in own[k]]
    drawn = [
        drawing.draw(np.random.default_rng([7, n]), PX) for n in range(len(everything))
    ]
    picture = dict(zip(everything, [p for p, _ in drawn], strict=True))
    maps = planted.feature_maps(
        np.stack([p for p, _ in drawn]),
        np.stack([s.category for _, s in drawn]),
        np.array([s.scene for _, s in drawn]),
    )
    row = {i: n for n, i in enumerate(everything)}

    def made():
        for k in range(subjects):
            rng = np.random.default_rng([8, k])
            brain = planted.ellipsoid((9, 10, 9))
            found = planted.plant(rng, brain, voxels)
            clean = planted.responses(planted.drives(maps, found), found)
            seen = ids + own[k]
            answer = clean[[row[i] for i in seen]]
            noise = rng.normal(size=answer.shape) / found.ncsnr / np.sqrt(3)
            answer = answer + noise
            answer = (answer - answer.mean(0)) / answer.std(0)
            yield schema.Subject(
                f"planted-{k}",
                answer.astype(np.float32),
                seen,
                np.array(["test"] * test + ["train"] * train),
                np.full(len(seen), 3, np.uint8),
                found.ncsnr.astype(np.float32),
                found.position.astype(np.int32),
                np.ones((voxels, 1), bool),
                ("all",),
                {"dataset": "planted", "space": "none", "simulated": True},
            )

    def read_images(asked):
        return (picture[i] for i in asked)

    return schema.Dataset("planted", made(), read_images, [], [])
