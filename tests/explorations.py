"""Explorations made of noise with known places, for tests of the page."""

import numpy as np

from ubrain_jax.maps import explorer

SIDE = 16


def pictures(num: int, px: int = 96, seed: int = 0) -> np.ndarray:
    """(num, px, px, 3) uint8: a patch of colour on a gradient, all different."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : px * 1j, 0 : 1 : px * 1j]
    made = []
    for _ in range(num):
        a, b = rng.integers(30, 226, (2, 3))
        cx, cy, r = rng.uniform(0.2, 0.8, 3)
        disc = (np.hypot(x - cx, y - cy) < 0.15 + 0.25 * r)[..., None]
        ground = a + (b - a) * (x + y)[..., None] / 2
        made.append(np.where(disc, 255 - ground[::-1], ground))
    return np.stack(made).astype(np.uint8)


def fields(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: np.ndarray):
    """(v, SIDE, SIDE) Gaussians at fractions of the picture, with some noise."""
    at = (np.arange(SIDE) + 0.5) / SIDE
    far = (at[None, None] - x[:, None, None]) ** 2
    far = far + (at[None, :, None] - y[:, None, None]) ** 2
    made = np.exp(-far / (2 * size[:, None, None] ** 2))
    made += 0.05 * rng.random(made.shape)
    return (made / made.sum((1, 2), keepdims=True)).astype(np.float32)


def shell(rng: np.random.Generator, num: int) -> np.ndarray:
    """(num, 3) places of a 2 mm grid near the back of two ellipsoids."""
    grid = np.stack(np.mgrid[-60:61:2, -95:-19:2, -40:41:2], -1).reshape(-1, 3)
    middle = np.where(grid[:, :1] > 0, 1, -1) * np.array([28, 0, 0]) + [0, -40, 0]
    far = np.sqrt((((grid - middle) / [26, 52, 36]) ** 2).sum(1))
    near = np.flatnonzero((far > 0.9) & (far < 1.03))
    return grid[np.sort(rng.permutation(near)[:num])].astype(np.float32)


def brain(
    name: str,
    num: int,
    *,
    num_pictures: int,
    num_clusters: int,
    num_rois: int,
    seed: int,
    kind: str = "volume",
    total: int = 0,
    num_top: int = 0,
    mesh: explorer.Mesh | None = None,
) -> explorer.Brain:
    """A brain whose clusters lie one behind the other and like certain pictures."""
    rng = np.random.default_rng(seed)
    if kind == "volume":
        position = shell(rng, num)
        depth = position[:, 1]
    else:
        assert mesh is not None
        both = np.concatenate(mesh.vertices)
        vertex = np.sort(np.argsort(both[:, 1])[:num])
        half = len(mesh.vertices[0])
        position = np.stack([vertex // half, vertex % half, 0 * vertex - 1], 1)
        depth = both[vertex, 1]
    num = len(position)
    cut = np.quantile(depth, np.linspace(0, 1, num_clusters + 1)[1:-1])
    cluster = np.searchsorted(cut, depth + rng.normal(0, 3, num)).astype(np.int16)
    cluster[rng.random(num) < 0.03] = -1
    x, y = rng.uniform(0.1, 0.9, (2, num))
    size = rng.uniform(0.05, 0.25, num)
    taste = np.random.default_rng(1).normal(size=(num_pictures, num_clusters + 1))
    predicted = taste[:, cluster] + 0.4 * rng.normal(size=(num_pictures, num))
    region = np.stack(
        [(cluster == k) & (rng.random(num) < 0.8) for k in range(num_rois)], 1
    ).reshape(num, num_rois)
    top = None
    if num_top:
        places = rng.uniform(0.1, 0.9, (num_top, 2, num))
        top = np.stack([fields(rng, *place, size) for place in places], 1)
    score = rng.uniform(-0.1, 0.9, num)
    score[::17] = np.nan
    return explorer.Brain(
        name=name,
        space="simulated, 2 mm" if kind == "volume" else "fsaverage5",
        kind=kind,
        position=position.astype(np.float32),
        voxel=np.arange(num) * 3,
        total=total or num,
        cluster=cluster,
        region=region,
        score=score.astype(np.float32),
        field=fields(rng, x, y, size),
        x=x.astype(np.float32),
        y=y.astype(np.float32),
        size=size.astype(np.float32),
        eccentricity=np.hypot(x - 0.5, y - 0.5).astype(np.float32),
        angle=np.arctan2(0.5 - y, x - 0.5).astype(np.float32),
        level=rng.uniform(1, 5, num).astype(np.float32),
        predicted=predicted.astype(np.float32),
        top_attention=top,
    )


def make(
    names=("sub-01", "sub-02"),
    *,
    num_voxels: int = 300,
    num_pictures: int = 12,
    num_clusters: int = 4,
    num_rois: int = 2,
    kinds: tuple[str, ...] = ("volume",),
    prefix: str = "",
    **about,
) -> explorer.Exploration:
    """Subjects of noise; kinds are taken in turn, `prefix` begins every text."""
    mesh = explorer.fsaverage5() if "surface" in kinds else None
    brains = [
        brain(
            prefix + name,
            num_voxels,
            num_pictures=num_pictures,
            num_clusters=num_clusters,
            num_rois=num_rois,
            seed=k,
            kind=kinds[k % len(kinds)],
            mesh=mesh,
            **about,
        )
        for k, name in enumerate(names)
    ]
    rng = np.random.default_rng(7)
    responses = np.concatenate([b.predicted for b in brains], 1)
    cluster = np.concatenate([b.cluster for b in brains])
    region = np.concatenate([b.region for b in brains])

    def group(name, kind, inside) -> explorer.Group:
        order = np.argsort(-responses[:, inside].mean(1), kind="stable").tolist()
        field = np.concatenate([b.field for b in brains])[inside].mean(0)
        attention = fields(rng, *rng.uniform(0.2, 0.8, (2, 6)), np.full(6, 0.15))
        head = ("region", "voxels", "enrichment", *(b.name for b in brains))
        rows = [
            (
                f"{prefix}roi {k}",
                str(k * 10),
                f"{1 + k / 3:.2f}",
                *("7" for _ in brains),
            )
            for k in range(4)
        ]
        facts = [
            ("voxels", f"{inside.sum():,}"),
            ("stability", "0.87 over 20 halves"),
            ("quoted", f"{prefix}text"),
        ]
        return explorer.Group(
            name=f"{prefix}{name}",
            about=facts,
            table=(head, rows),
            top=order[:6],
            top_measured=order[1:5],
            bottom=order[::-1][:4],
            top_attention=attention,
            field=field,
            kind=kind,
        )

    return explorer.Exploration(
        title=f"{prefix}Explorer of a simulated crowd",
        lead=f"{prefix}One encoder trained on {len(brains)} simulated subjects.",
        warnings=[f"{prefix}Simulated: these are not measured brains."],
        pictures=pictures(num_pictures),
        picture_ids=[f"{prefix}nsd/{k:05d}" for k in range(num_pictures)],
        roi_names=[f"{prefix}ROI{k}" for k in range(num_rois)],
        brains=brains,
        clusters=[
            group(f"cluster {k + 1}", "cluster", cluster == k)
            for k in range(num_clusters)
        ],
        regions=[group(f"ROI{k}", "region", region[:, k]) for k in range(num_rois)],
        mesh=mesh,
        provenance=[("encoder", "sha256 0123"), ("note", f"{prefix}made up")],
        score_name="noise-normalised r",
    )
