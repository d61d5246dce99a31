"""An experiment made ready: stores and weights opened, the initial encoder built."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ubrain_jax import cluster, config, crowd, errors, sharding
from ubrain_jax.backbone import dinov2, weights
from ubrain_jax.model import encoder


class Network(NamedTuple):
    """A frozen backbone and where it is from."""

    backbone: dinov2.Dinov2
    provenance: weights.Provenance


class Run(NamedTuple):
    """An experiment made ready: data, encoder, mesh and where its weights are from."""

    experiment: config.Experiment
    stores: crowd.Crowd
    parts: encoder.Parts
    mesh: jax.sharding.Mesh
    provenance: weights.Provenance


def prepare_run(
    experiment: config.Experiment,
    devices: list[Any] | None = None,
    *,
    stores: crowd.Crowd | None = None,
    network: Network | None = None,
) -> Run:
    """Opens stores and weights and builds the initial encoder.

    Args:
        experiment: All settings.
        devices: Of the mesh; default: all.
        stores: The crowd, where it is open already.
        network: The backbone, where it is loaded already.
    """
    data = experiment.data
    stores = open_stores(experiment, stores)
    mesh = sharding.make_mesh(
        experiment.mesh.data,
        experiment.mesh.voxel,
        stripes=data.stripes,
        batch_images=data.batch_images,
        devices=devices,
    )
    backbone, provenance = network or load_network(experiment.backbone)
    # Before programs are run together that depend on them.
    cluster.agree(
        {
            "fingerprint of the crowd": stores.fingerprint,
            "sha256 of the backbone": provenance.sha256,
        }
    )
    parts = encoder.build(experiment, backbone, stores.num_voxels, mesh)
    return Run(experiment, stores, parts, mesh, provenance)


def open_stores(
    experiment: config.Experiment, stores: crowd.Crowd | None = None
) -> crowd.Crowd:
    """The crowd with the pictures that an experiment uses.

    Args:
        experiment: All settings.
        stores: The crowd, where it is open already.

    Raises:
        errors.ConfigError: If its pictures are of another size.
    """
    data, settings = experiment.data, experiment.backbone
    stores = stores or crowd.open_crowd(data.crowd, data.subjects)
    stores = crowd.with_images(stores, data.num_images, experiment.train.seed)
    if stores.image_px != settings.image_px:
        raise errors.ConfigError(
            "backbone.image_px",
            "",
            f"{settings.image_px}, with pictures of {stores.image_px} pixels",
            "the size of the stores' pictures",
            f"Set it to {stores.image_px}, or prepare with --image_px.",
        )
    return stores


def load_network(settings: config.Backbone) -> Network:
    """Reads the backbone up to the last tap."""
    loaded = weights.load(
        settings.weights,
        settings.taps[-1],
        settings.image_px,
        jnp.dtype(settings.dtype),
        # A bundled or local network brings its own geometry.
        geometry=settings.name or None,
    )
    return Network(*loaded)
