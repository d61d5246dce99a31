"""The whole encoder: frozen backbone, adapter, head, and one embedding per voxel.

Global voxel v of the crowd lives in row v // S of stripe v % S of the table
(S, rows, E), so the stripes of every subject are spread alike over the devices.
Modules define the weights and the mathematics; after `split` everything is plain JAX
over trees of arrays, which keeps the code independent of NNX's own transforms.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ubrain_jax import config, errors, sharding
from ubrain_jax.backbone import dinov2, images
from ubrain_jax.model import adapters, head


class VoxelEmbedding(nnx.Param):
    """The table: one row of E numbers for each voxel."""


class Encoder(nnx.Module):
    """Everything that predicts; see the module's first lines.

    Args:
        experiment: Sizes and choices.
        backbone: Frozen network, read up to the last tap.
        num_voxels: V over all subjects.
        key: For the initial values.
    """

    def __init__(
        self,
        experiment: config.Experiment,
        backbone: dinov2.Dinov2,
        num_voxels: int,
        key: jax.Array,
    ):
        adapter_key, head_key, table_key = jax.random.split(key, 3)
        settings = experiment.backbone
        width = backbone.geometry.width
        num_tokens = len(token_places(experiment, backbone.geometry))
        self.taps = settings.taps
        self.keep_cls = settings.keep_cls
        self.drop: Any = settings.drop
        self.backbone_remat: Any = settings.remat
        self.attention: Any = settings.attention
        self.backbone = backbone
        # An attribute that is None would be a leaf in some versions of flax.
        self.adapted = experiment.adapter.kind != "none"
        if self.adapted:
            self.adapter = adapters.LowRank(
                experiment.adapter, backbone.num_blocks, width, adapter_key
            )
        self.head = head.Head(
            experiment.head, len(self.taps), width, num_tokens, head_key
        )
        embed = experiment.head.embed_dim
        shape = table_shape(num_voxels, experiment.data.stripes, embed)
        self.table = VoxelEmbedding(initial_table(table_key, shape))

    def features(self, pictures: jax.Array) -> jax.Array:
        """uint8 pictures (B, y, x, 3) -> projected features (B, L, P, C) float32."""
        x = images.normalise(pictures, jnp.dtype(self.backbone.dtype))
        taps = self.backbone(
            x,
            self.taps,
            adapter=self.adapter() if self.adapted else None,
            remat=self.backbone_remat,
            attention=self.attention,
        )
        tokens = self.backbone.patches(taps, keep_cls=self.keep_cls, drop=self.drop)
        return jax.vmap(self.head.project, in_axes=1)(tokens)

    def embeddings(self, voxel: jax.Array) -> jax.Array:
        """Rows (B, S, n) inside their stripe -> embeddings (B, S, n, E)."""
        look_up = jax.vmap(lambda stripe, rows: stripe[rows], (0, 1), 1)
        return look_up(self.table[...], voxel)

    def respond(
        self, features: jax.Array, embeddings: jax.Array, keys: jax.Array | None
    ) -> jax.Array:
        """Features (B, L, P, C), embeddings (B, N, E) -> responses (B, N).

        `keys` (B,) turn dropout on; a voxel's own key comes from its place.
        """
        return self._respond(features, embeddings, keys, is_common=False)

    def respond_all(
        self, features: jax.Array, embeddings: jax.Array, keys: jax.Array | None
    ) -> jax.Array:
        """Features (B, L, P, C), the same voxels (N, E) for each -> (B, N).

        As `respond` with the embeddings repeated B times, but what depends on the
        voxel alone is computed once.
        """
        return self._respond(features, embeddings, keys, is_common=True)

    def _respond(
        self, features: jax.Array, embeddings: jax.Array, keys: Any, *, is_common: bool
    ) -> jax.Array:
        def image(features, embeddings, key):
            one = functools.partial(self.head.respond, features, is_common=is_common)
            if key is None:
                return jax.vmap(lambda e: one(e, None))(embeddings)
            return jax.vmap(one)(embeddings, jax.random.split(key, len(embeddings)))

        axes = 0, None if is_common else 0, None if keys is None else 0
        return jax.vmap(image, axes)(features, embeddings, keys)


def token_places(
    experiment: config.Experiment, geometry: dinov2.Geometry
) -> np.ndarray:
    """Where in the image each token of the head lies.

    Args:
        experiment: Of which backbone is read.
        geometry: Of the backbone.

    Returns:
        (P,) int: the patch, counted row by row, or -1 for CLS and registers.

    Example:
        >>> backbone = config.Backbone(image_px=42, keep_cls=True, drop="last_patches")
        >>> geometry = dinov2.GEOMETRIES["dinov2-with-registers-small"]
        >>> token_places(config.Experiment(backbone=backbone), geometry).tolist()
        [-1, -1, -1, -1, -1, 0, 1, 2, 3, 4]
    """
    settings, registers = experiment.backbone, geometry.registers
    patches = np.arange((settings.image_px // geometry.patch) ** 2)
    if not settings.keep_cls:
        return patches
    first = 1
    if settings.drop == "last_patches":
        first, patches = 1 + registers, patches[: len(patches) - registers]
    return np.concatenate([np.full(first, -1), patches])


def initial_table(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random embeddings: normal with deviation 0.1 / (2 sqrt E)."""
    deviation = 0.1 / (2 * math.sqrt(shape[-1]))
    return jax.random.normal(key, shape, jnp.float32) * deviation


def table_shape(num_voxels: int, stripes: int, embed_dim: int) -> tuple[int, int, int]:
    """(S, rows, E) with room for every voxel.

    Example:
        >>> table_shape(315_997, 8, 256)
        (8, 39500, 256)
    """
    return stripes, -(-num_voxels // stripes), embed_dim


def table_rows(voxel: np.ndarray, num_voxels: int, stripes: int) -> tuple:
    """Stripe and row in it of global voxels, checked: JAX would clamp or wrap.

    Raises:
        errors.InputError: If a voxel lies outside 0..V-1.
    """
    voxel = np.asarray(voxel)
    if voxel.size and (voxel.min() < 0 or voxel.max() >= num_voxels):
        bad = voxel[(voxel < 0) | (voxel >= num_voxels)][0]
        raise errors.InputError(
            "voxel",
            "",
            f"row {bad} for a table of {num_voxels} voxels",
            f"0..{num_voxels - 1}",
            "Check the subjects of the run (data.subjects) against the checkpoint.",
        )
    return voxel % stripes, voxel // stripes


def rows_of_table(table: np.ndarray, num_voxels: int) -> np.ndarray:
    """Table (S, rows, E) -> embeddings (V, E) in the order of global voxels.

    Example:
        >>> rows_of_table(np.arange(6).reshape(2, 3, 1), 5)[:, 0].tolist()
        [0, 3, 1, 4, 2]
    """
    return np.swapaxes(table, 0, 1).reshape(-1, table.shape[-1])[:num_voxels]


def table_of_rows(rows: np.ndarray, stripes: int) -> np.ndarray:
    """Embeddings (V, E) -> table (S, rows, E), zero where there is no voxel."""
    shape = table_shape(len(rows), stripes, rows.shape[-1])
    padded = np.zeros((shape[0] * shape[1], shape[2]), rows.dtype)
    padded[: len(rows)] = rows
    return np.swapaxes(padded.reshape(shape[1], shape[0], shape[2]), 0, 1)


class Parts(NamedTuple):
    """An encoder taken apart once; `nnx.merge(graph, trainable, frozen)` is whole."""

    graph: Any
    trainable: Any
    frozen: Any


def split(encoder: Encoder) -> Parts:
    """Trainable: adapter, head, table. Frozen: the backbone."""
    graph, trainable, frozen = nnx.split(encoder, nnx.Param, ...)
    return Parts(graph, nnx.as_pure(trainable), nnx.as_pure(frozen))


def build(
    experiment: config.Experiment,
    backbone: dinov2.Dinov2,
    num_voxels: int,
    mesh: jax.sharding.Mesh,
) -> Parts:
    """Initial encoder on the mesh: table striped over "voxel", the rest everywhere."""
    graph, backbone_state = nnx.split(backbone)
    frozen = jax.tree.map(
        lambda a: sharding.put(mesh, sharding.REPLICATED, a),
        nnx.as_pure(backbone_state),
    )

    def trainable(key):
        abstract = nnx.merge(graph, frozen)
        return split(Encoder(experiment, abstract, num_voxels, key)).trainable

    key = jax.random.key(experiment.train.seed)
    shapes = jax.eval_shape(trainable, key)
    places = placements(shapes, mesh)
    # One program, so that a large table is born in its stripes.
    values = jax.jit(trainable, out_shardings=places)(key)
    whole = nnx.eval_shape(
        lambda: Encoder(experiment, nnx.merge(graph, frozen), num_voxels, key)
    )
    parts = split(whole)
    frozen = {**parts.frozen, "backbone": frozen}
    return Parts(parts.graph, values, frozen)


def shared_shapes(
    experiment: config.Experiment, geometry: dinov2.Geometry
) -> dict[str, tuple[int, ...]]:
    """Shape of every trainable weight but the table, by name; nothing is computed.

    Example:
        >>> shapes = shared_shapes(
        ...     config.Experiment(), dinov2.GEOMETRIES["dinov2-giant"]
        ... )
        >>> shapes["adapter/a"], shapes["head/functional"], len(shapes)
        ((24, 1536, 16), (5, 256, 128), 17)
    """
    settings = experiment.backbone
    tokens = len(token_places(experiment, geometry))

    def make():
        key = jax.random.key(0)
        taps, width = len(settings.taps), geometry.width
        parts: dict[str, nnx.Module] = {
            "head": head.Head(experiment.head, taps, width, tokens, key)
        }
        if experiment.adapter.kind != "none":
            low_rank = adapters.LowRank(
                experiment.adapter, settings.taps[-1], width, key
            )
            parts["adapter"] = low_rank
        states = {k: nnx.as_pure(nnx.state(v, nnx.Param)) for k, v in parts.items()}
        return by_name(states)

    return {name: leaf.shape for name, leaf in jax.eval_shape(make).items()}


class Programs(NamedTuple):
    """Compiled pieces of an encoder, for predictions: no dropout, no gradient.

    Each takes trainable and frozen weights first; results are on all devices. What is
    never called is never compiled.

    Attributes:
        features: Pictures (B, H, W, 3) uint8 -> (B, L, P, C).
        respond: Features, embeddings (n, E) -> responses (B, n).
        respond_rows: Features, stripes and rows (n,) of the table -> (B, n).
        look: Features, embeddings (n, E) -> `head.Head.look` of each image and voxel.
        look_sums: Features, embeddings (n, E), weights of the images (B,) -> sums over
            images of attention (n, L, P), of contributions (n, L), of their products
            with each other (n, L, L).
    """

    features: Any
    respond: Any
    respond_rows: Any
    look: Any
    look_sums: Any


def programs(graph: Any, mesh: jax.sharding.Mesh) -> Programs:
    """Pieces of the encoder of `Parts.graph`, on a mesh."""

    def model(params: Any, frozen: Any) -> Encoder:
        return nnx.merge(graph, params, frozen)

    def features(params, frozen, pictures):
        return model(params, frozen).features(pictures)

    def respond(params, frozen, features, embeddings):
        return model(params, frozen).respond_all(features, embeddings, None)

    def respond_rows(params, frozen, features, stripe, row):
        rows = params["table"][stripe, row]  # (n, E)
        return respond(params, frozen, features, rows)

    def look(params, frozen, features, embeddings):
        one = model(params, frozen).head.look
        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(features, embeddings)

    def look_sums(params, frozen, features, embeddings, weight):
        one = model(params, frozen).head.look

        def add(total, image):
            features, weight = image
            seen, added = jax.vmap(one, (None, 0))(features, embeddings)
            pairs = added[:, :, None] * added[:, None, :]
            new = (seen, added, pairs)
            return jax.tree.map(lambda t, x: t + weight * x, total, new), None

        n, (_, taps, tokens, _) = len(embeddings), features.shape
        shapes = (n, taps, tokens), (n, taps), (n, taps, taps)
        start = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
        # In a scan: memory holds the maps of one image, not of B.
        return jax.lax.scan(add, start, (features, weight))[0]

    everywhere = sharding.place(mesh, sharding.REPLICATED)
    pieces = (features, respond, respond_rows, look, look_sums)
    return Programs(*(jax.jit(piece, out_shardings=everywhere) for piece in pieces))


def leaf_name(path: Any) -> str:
    """Name of a leaf from its path, as head/fc1_kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_name(tree: Any) -> dict[str, Any]:
    """Leaves by name: trees of other types, such as read from disk, compare so."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path): leaf for path, leaf in leaves}


def placements(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Sharding of every leaf of trainable weights or of their optimiser state."""

    def place(path, leaf):
        is_table = any(getattr(p, "key", None) == "table" for p in path)
        spec = sharding.TABLE if is_table and leaf.ndim else sharding.REPLICATED
        return sharding.place(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, tree)
