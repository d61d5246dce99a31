"""The encoder from Python: load, predict, look, fit, score, save.

    >>> enc = UniversalEncoder.load("runs/nsd8")              # doctest: +SKIP
    >>> enc.predict("pictures/", subject="nsd-subj01", roi="V1v")  # doctest: +SKIP

Everything streams: pictures are read and their features computed a block at a time,
and for each block the voxels pass in chunks, so memory does not grow with either.
Results are xarray with coordinates; `.values` is the NumPy array.
"""

import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
import xarray

from ubrain_jax import (
    config,
    crowd,
    errors,
    experiments,
    fit,
    frozen,
    hub,
    metrics,
    sharding,
    subjects,
)
from ubrain_jax.atlas import neighbours, pooled
from ubrain_jax.datasets import given, schema
from ubrain_jax.model import bundle, card, encoder

# Pictures and voxels in one call of the network, unless the caller says otherwise.
BATCH_IMAGES, CHUNK_VOXELS = 32, 2048
SCORES = ("r2", "pearson", "noise_normalised")


class Block(NamedTuple):
    """Predictions for some pictures, in order.

    Attributes:
        ids: (n,) of the pictures.
        values: (n, V) float32.
    """

    ids: tuple[str, ...]
    values: np.ndarray


class Features(NamedTuple):
    """What the network makes of M pictures, so that it need not look again.

    `predict`, `predict_blocks`, `attention` and `mean_attention` take it in place of
    the pictures.

    Attributes:
        ids: (M,) of the pictures.
        values: (M, L, P, C) float32.
    """

    ids: tuple[str, ...]
    values: np.ndarray


class _Compiled(NamedTuple):
    """What is read and compiled once, when first needed."""

    network: experiments.Network
    mesh: jax.sharding.Mesh
    weights: tuple[Any, Any]  # trainable and frozen, on the mesh
    programs: encoder.Programs


class UniversalEncoder:
    """A trained encoder with the subjects that it knows.

    Made by `load`; `subjects`, `voxels`, `predict`, `attention`, `mean_attention`,
    `score`, `similar` and `fit_subject` are documented one by one. The frozen backbone
    is read when it is first needed, so that voxels can be looked at without it.

    Pictures, in every function: an array (N, H, W, 3) of uint8 or of floats in 0..1,
    grey or with alpha too, Pillow pictures, file names, a folder, a .npy file; see
    `ubrain_jax.datasets.given`. They are scaled and cut to squares as `prepare` does.

    Args:
        trained: The encoder as files.
        backbone: Folder, file or hub id of the frozen network; None: what the bundle
            names.
        batch_images: Pictures in one call of the network.
        chunk_voxels: Voxels in one call of the head.
        devices: To compute on; default: all.
    """

    def __init__(
        self,
        trained: bundle.Bundle,
        *,
        backbone: str | os.PathLike | None = None,
        batch_images: int = BATCH_IMAGES,
        chunk_voxels: int = CHUNK_VOXELS,
        devices: list[Any] | None = None,
    ):
        self._bundle = trained
        self._subjects = {s.name: s for s in trained.subjects}
        self._backbone = os.fspath(backbone) if backbone else trained.backbone.source
        self._devices = devices
        self._batch, self._chunk = batch_images, chunk_voxels
        self._compiled: _Compiled | None = None

    # 1. Files --------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        backbone: str | os.PathLike | None = None,
        cache_dir: str | None = None,
        **options: Any,
    ) -> "UniversalEncoder":
        """Reads an encoder and checks every file of it.

        Args:
            path: Folder of a bundle, workdir of a run, or a hub id (OWNER/NAME, with
                @REVISION if wanted), which is looked for in the cache where there is
                no network.
            backbone: Folder, file or hub id of the frozen network, where it is not
                what the bundle names.
            cache_dir: Of the hub; default: its own.
            **options: As the class: batch_images, chunk_voxels, devices.

        Raises:
            errors.MissingInputError: If there is no such encoder.
            errors.InputError: If a file is damaged, missing or too much.
        """
        found = hub.find(path, cache_dir)
        trained = bundle.read(found.folder, within=found.within)
        return cls(trained, backbone=backbone or found.backbone, **options)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a bundle with all subjects, which `load` reads bit for bit.

        Args:
            path: Folder; a bundle that is there is replaced, nothing else is.

        Raises:
            errors.OutputError: If it cannot be written.
        """
        bundle.write(path, self._bundle, card.text(self._bundle))

    def push_to_hub(
        self, repo_id: str, *, private: bool = True, token: str | None = None
    ) -> str:
        """Saves to the Hugging Face hub; needs the network and the right to write.

        Args:
            repo_id: OWNER/NAME.
            private: Of a repository that is made now.
            token: Of the hub; default: the one of `hf auth login`.

        Returns:
            Address of the commit.

        Raises:
            errors.OutputError: If the hub cannot be reached or refuses.
        """
        return hub.push(self.save, repo_id, private=private, token=token)

    # 2. What there is ------------------------------------------------------------

    @property
    def subjects(self) -> tuple[str, ...]:
        """Names of the subjects that it predicts."""
        return tuple(self._subjects)

    @property
    def provenance(self) -> dict[str, Any]:
        """Data, commit, seeds and scores of the training."""
        return self._bundle.provenance

    @property
    def shared(self) -> dict[str, Any]:
        """Weights that all voxels share, by part and name, as NumPy arrays."""
        return self._bundle.shared

    @property
    def sha256(self) -> str:
        """What a subject's file must have been fitted with."""
        return self._bundle.sha256

    @property
    def config(self) -> config.Experiment:
        """Settings of the training."""
        return self._bundle.experiment

    def voxels(self, subject: str) -> xarray.Dataset:
        """What the voxels of a subject are.

        Args:
            subject: One of `subjects`.

        Returns:
            Dataset over (voxel): position (voxel, axis), roi (voxel, roi_name) bool,
            ncsnr (NaN where unknown) and embedding (voxel, E); attrs: of the subject
            in its store, among them `space`.
        """
        s = self.subject(subject)
        return xarray.Dataset(
            {
                "position": (("voxel", "axis"), s.position),
                "roi": (("voxel", "roi_name"), s.roi),
                "ncsnr": ("voxel", s.ncsnr),
                "embedding": (("voxel", "embed"), s.embedding),
            },
            coords={
                "voxel": np.arange(len(s.embedding)),
                "roi_name": ("roi_name", np.array(s.roi_names, dtype=str)),
            },
            attrs={**s.attrs, "subject": s.name},
        )

    def subject(self, name: str) -> bundle.Subject:
        """A subject as its file holds it: embeddings, positions, provenance.

        Raises:
            errors.ConfigError: If it is none of `subjects`.
        """
        if name not in self._subjects:
            raise errors.ConfigError(
                "subject",
                "",
                f"no subject {name!r}",
                f"one of {', '.join(self.subjects)}",
                errors.nearest(name, self.subjects),
            )
        return self._subjects[name]

    def add_subject(self, path: str | os.PathLike) -> str:
        """Takes in subjects/NAME.safetensors of `transfer`; returns its name.

        Raises:
            errors.InputError: If it is damaged or was fitted with another encoder.
            errors.ConfigError: If there is a subject of that name.
        """
        subject = bundle.read_subject(path, self.sha256)
        self.take_in(subject)
        return subject.name

    def take_in(self, subject: bundle.Subject) -> None:
        """Takes in a subject that was fitted with this encoder.

        Raises:
            errors.ConfigError: If there is a subject of that name.
        """
        self._refuse_known(subject.name)
        self._subjects[subject.name] = subject
        self._bundle = self._bundle._replace(subjects=tuple(self._subjects.values()))

    # 3. Predictions --------------------------------------------------------------

    def features(self, images: Any, *, background: str | None = None) -> Features:
        """Runs the network on pictures, once for all that is then asked of them.

        Args:
            images: M pictures in any form that the class names.
            background: As in `predict`.

        Returns:
            Features in memory, L * P * C * 4 bytes a picture: 0.66 MB for the paper's
            encoder.
        """
        opened = self._open(images, background)
        blocks = [
            values[: len(ids)]
            for ids, values in sharding.fetched(self._features(opened))
        ]
        return Features(opened.ids, np.concatenate(blocks))

    def predict(
        self,
        images: Any,
        *,
        subject: str,
        roi: str | Sequence[str] | None = None,
        voxels: Any = None,
        background: str | None = None,
    ) -> xarray.DataArray:
        """Predicted responses of a subject's voxels to pictures.

        Args:
            images: M pictures in any form that the class names.
            subject: One of `subjects`.
            roi: Region or regions (their union); None: all voxels.
            voxels: Numbers of voxels or a mask over all of them, within `roi`.
            background: What shows through transparent pixels; None refuses them.

        Returns:
            (image, voxel) float32, in the units of the training's responses (z-scores
            within session), with coordinates image (id), voxel (number in the
            subject), ncsnr, x, y, z (position) and one per region, `roi_NAME`.
        """
        opened = self._take(images, background)
        return self._predict(opened, subject, self._choose(subject, roi, voxels))

    def _predict(
        self, opened: given.Given | Features, subject: str, chosen: np.ndarray
    ) -> xarray.DataArray:
        """As `predict`, of voxels by number."""
        out = np.empty((len(opened.ids), len(chosen)), np.float32)
        start = 0
        for block in self._blocks(opened, self.subject(subject).embedding[chosen]):
            out[start : start + len(block.ids)] = block.values
            start += len(block.ids)
        return xarray.DataArray(
            out,
            dims=("image", "voxel"),
            coords={"image": list(opened.ids), **self._coordinates(subject, chosen)},
            name="response",
            attrs={"units": "z-score", "subject": subject},
        )

    def predict_blocks(
        self,
        images: Any,
        *,
        subject: str,
        roi: str | Sequence[str] | None = None,
        voxels: Any = None,
        background: str | None = None,
    ) -> Iterator[Block]:
        """As `predict`, a block of pictures at a time, for results beyond memory."""
        opened = self._take(images, background)
        chosen = self._choose(subject, roi, voxels)
        return self._blocks(opened, self.subject(subject).embedding[chosen])

    def attention(
        self,
        images: Any,
        *,
        subject: str,
        roi: str | Sequence[str] | None = None,
        voxels: Any = None,
        background: str | None = None,
    ) -> xarray.Dataset:
        """Where voxels look in pictures, and at what.

        Args:
            images: M pictures, or one.
            subject: One of `subjects`.
            roi: As in `predict`.
            voxels: As in `predict`.
            background: As in `predict`.

        Returns:
            Dataset with spatial (image, voxel, tap, y, x): attention over the grid of
            patches, which sums to 1 with elsewhere (image, voxel, tap), the share of
            tokens without a place: CLS and registers, where the head sees them;
            contribution (image, voxel, tap), in z-scores, which sums over
            taps to the prediction; functional (voxel, tap, channel), signed weights,
            and share (voxel, tap, channel), their absolute values scaled to sum to 1.
            NaN in spatial: a patch that the head does not see.
        """
        opened = self._take(images, background)
        chosen = self._choose(subject, roi, voxels)
        rows = self.subject(subject).embedding[chosen]
        settings, geometry = self.config.backbone, self._bundle.backbone.geometry
        places = encoder.token_places(self.config, geometry)
        side, taps = settings.image_px // geometry.patch, len(settings.taps)
        shape = (len(opened.ids), len(rows), taps)
        grid = np.full((*shape, side * side), np.nan, np.float32)
        elsewhere, added = (np.empty(shape, np.float32) for _ in range(2))
        on_grid = places >= 0
        compiled = self._ready()
        done = 0
        for ids, features in self._features(opened):
            for some, part in self._chunks(rows):
                look = compiled.programs.look(*compiled.weights, features, part)
                weights, own = (np.asarray(x)[: len(ids)] for x in look)
                weights, own = weights[:, : len(rows[some])], own[:, : len(rows[some])]
                here = slice(done, done + len(ids))
                grid[here, some, :, places[on_grid]] = weights[..., on_grid]
                elsewhere[here, some] = weights[..., ~on_grid].sum(-1)
                added[here, some] = own
            done += len(ids)
        functional, share = self._functional(rows)
        return xarray.Dataset(
            {
                "spatial": (
                    ("image", "voxel", "tap", "y", "x"),
                    grid.reshape(*shape, side, side),
                ),
                "elsewhere": (("image", "voxel", "tap"), elsewhere),
                "contribution": (("image", "voxel", "tap"), added),
                "functional": (("voxel", "tap", "channel"), functional),
                "share": (("voxel", "tap", "channel"), share),
            },
            coords={
                "image": list(opened.ids),
                "tap": list(settings.taps),
                **self._coordinates(subject, chosen, position=False),
            },
            attrs={"subject": subject, "patch_px": geometry.patch},
        )

    def mean_attention(
        self,
        images: Any,
        *,
        subject: str,
        roi: str | Sequence[str] | None = None,
        voxels: Any = None,
        background: str | None = None,
    ) -> xarray.Dataset:
        """Where voxels look on average, and how much each tap says to them.

        `attention` averaged over pictures as it is computed, so that memory holds one
        map for each voxel and tap whatever the number of pictures.

        Args:
            images: M pictures, 2 or more.
            subject: One of `subjects`.
            roi: As in `predict`.
            voxels: As in `predict`.
            background: As in `predict`.

        Returns:
            Dataset with spatial (voxel, tap, y, x), elsewhere (voxel, tap) and
            contribution (voxel, tap): means over pictures of those of `attention`;
            covariance (voxel, tap, other_tap) of the contributions over pictures
            (z-score squared, divided by M), which sums to the variance of the
            prediction; share (voxel, tap): that of `attention`, summed over channels.
            NaN in spatial: a patch that the head does not see. attrs: num_images.

        Raises:
            errors.InputError: If there are fewer than 2 pictures.
        """
        opened = self._take(images, background)
        if len(opened.ids) < 2:
            raise errors.InputError(
                "images", "", f"{len(opened.ids)} picture", "2 or more", "Give more."
            )
        chosen = self._choose(subject, roi, voxels)
        rows = self.subject(subject).embedding[chosen]
        chunks = list(self._chunks(rows))
        compiled = self._ready()
        totals: list[Any] = [None] * len(chunks)
        add = jax.jit(lambda old, new: jax.tree.map(jax.numpy.add, old, new))
        for ids, features in self._features(opened):
            weight = (np.arange(len(features)) < len(ids)).astype(np.float32)
            for k, (_, part) in enumerate(chunks):
                new = compiled.programs.look_sums(
                    *compiled.weights, features, part, weight
                )
                totals[k] = new if totals[k] is None else add(totals[k], new)
        parts = [
            [np.asarray(x)[: len(rows[some])] / len(opened.ids) for x in total]
            for total, (some, _) in zip(totals, chunks, strict=True)
        ]
        weights, added, pairs = (np.concatenate(x) for x in zip(*parts, strict=True))
        settings, geometry = self.config.backbone, self._bundle.backbone.geometry
        places = encoder.token_places(self.config, geometry)
        side = settings.image_px // geometry.patch
        grid = np.full((*added.shape, side * side), np.nan, np.float32)
        grid[:, :, places[places >= 0]] = weights[..., places >= 0]
        taps = list(settings.taps)
        return xarray.Dataset(
            {
                "spatial": (
                    ("voxel", "tap", "y", "x"),
                    grid.reshape(*added.shape, side, side),
                ),
                "elsewhere": (("voxel", "tap"), weights[..., places < 0].sum(-1)),
                "contribution": (("voxel", "tap"), added),
                "covariance": (
                    ("voxel", "tap", "other_tap"),
                    pairs - added[:, :, None] * added[:, None, :],
                ),
                "share": (("voxel", "tap"), self._functional(rows)[1].sum(-1)),
            },
            coords={
                "tap": taps,
                "other_tap": taps,
                **self._coordinates(subject, chosen),
            },
            attrs={
                "subject": subject,
                "patch_px": geometry.patch,
                "num_images": len(opened.ids),
            },
        )

    def score(
        self,
        images: Any,
        responses: Any,
        *,
        subject: str,
        metric: str = "r2",
        roi: str | Sequence[str] | None = None,
        voxels: Any = None,
        repeats: Any = 1,
        background: str | None = None,
    ) -> xarray.DataArray:
        """How well measured responses are predicted: one value per voxel.

        Args:
            images: M pictures, 3 or more, that the encoder has not seen: a warning
                counts those that shaped its weights or the subject's embeddings.
            responses: (M, V) measured, z-scored as the training's; the voxels of
                `predict` with the same arguments.
            subject: One of `subjects`.
            metric: "r2", as scikit-learn's and himalaya's `score`; "pearson"; or
                "noise_normalised": pearson over its noise ceiling.
            roi: As in `predict`.
            voxels: As in `predict`.
            repeats: Presentations averaged in `responses`, one number or (M,); for
                the noise ceiling.
            background: As in `predict`.

        Returns:
            (voxel,) float64; NaN where it cannot be computed (constant voxels, no
            ncsnr). attrs: metric, num_images, seen_images (None: not known).
        """
        if metric not in SCORES:
            raise errors.ConfigError(
                "metric", "", repr(metric), ", ".join(SCORES), "Choose one."
            )
        opened = self._open(images, background)
        chosen = self._choose(subject, roi, voxels)
        measured = np.asarray(responses)
        shape = len(opened), len(chosen)
        if measured.shape != shape:
            raise errors.InputError(
                "responses",
                "",
                f"shape {measured.shape}",
                f"{shape}, pictures by voxels",
                "Give a row for each picture and a column for each predicted voxel.",
            )
        hashes: list[str] = []
        predicted = self._predict(_noting(opened, hashes), subject, chosen)
        seen = self._count_seen(hashes, subject)
        if seen:
            warnings.warn(
                f"{seen} of {len(measured)} pictures shaped the weights or {subject}'s "
                "embeddings: the score says nothing of new pictures",
                stacklevel=2,
            )
        if metric == "r2":
            values = metrics.r2(measured, predicted.values)
        else:
            values = metrics.pearson(measured, predicted.values)
        if metric == "noise_normalised":
            counts = np.broadcast_to(np.asarray(repeats), len(measured))
            ceiling = metrics.noise_ceiling(predicted.ncsnr.values, counts)
            values = metrics.noise_normalised(values, ceiling)
        score = predicted.isel(image=0, drop=True).copy(data=values)
        score.name = metric
        score.attrs = {
            "metric": metric,
            "num_images": len(measured),
            "seen_images": seen,
            "subject": subject,
        }
        return score

    def similar(
        self,
        subject: str,
        *,
        voxel: int | None = None,
        roi: str | Sequence[str] | None = None,
        position: Sequence[int] | None = None,
        n: int = 10,
        among: Sequence[str] | None = None,
        other_brains: bool = True,
    ) -> xarray.Dataset:
        """Voxels whose embeddings are nearest to that of a voxel or a region.

        All voxels are compared; neither the backbone nor a picture is needed.

        Args:
            subject: Whose voxel or region it is.
            voxel: Its number in the subject. Give one of voxel, roi, position.
            roi: Region or regions (their union), which stand for the mean of their
                voxels' embeddings, each scaled to length 1.
            position: Of a voxel: i, j, k, or hemisphere and vertex.
            n: Neighbours; fewer if there are fewer voxels.
            among: Subjects to search; default: all.
            other_brains: Whether the subject's own voxels are left out. If not, only
                those asked for are.

        Returns:
            Dataset over (neighbour), most similar first: subject, voxel (number in
            it), similarity (cosine, -1..1), position (neighbour, axis), regions
            (names with commas between).

        Raises:
            errors.ConfigError: If there is no such subject, region or voxel, or none
                to search.

        Example:
            >>> enc = UniversalEncoder.load("runs/nsd8")  # doctest: +SKIP
            >>> enc.similar("nsd-subj01", roi="PPA", n=5)  # doctest: +SKIP
        """
        if sum(x is not None for x in (voxel, roi, position)) != 1:
            raise errors.ConfigError(
                "voxel, roi, position",
                "",
                "none of them, or several",
                "one",
                "Say which voxel or region it is about.",
            )
        who = self.subject(subject)
        searched = self.subjects if among is None else tuple(among)
        parts = [self.subject(name) for name in dict.fromkeys((subject, *searched))]
        if position is not None:
            own = pooled.pool([who])
            voxel = neighbours.at_position(own, subject, position)
        chosen = self._choose(subject, roi, None if voxel is None else [voxel])
        table = pooled.pool(parts)  # the subject's own voxels come first
        allowed = neighbours.of_subjects(table, searched)
        if other_brains:
            allowed &= table.subject != 0
        allowed[chosen] = False
        if not allowed.any():
            raise errors.ConfigError(
                "among",
                "",
                f"no voxel but {subject}'s own to search",
                f"subjects of {', '.join(self.subjects)}",
                "Name others, or search the subject's own brain too.",
            )
        query = neighbours.centre(table, chosen)
        found = neighbours.nearest(
            table, query, min(n, int(allowed.sum())), allowed=allowed
        )
        near = table.take(found.row[0])
        return xarray.Dataset(
            {
                "subject": ("neighbour", np.array(near.names)[near.subject]),
                "voxel": ("neighbour", near.voxel),
                "similarity": ("neighbour", found.similarity[0]),
                "position": (("neighbour", "axis"), near.position),
                "regions": ("neighbour", _regions(near)),
            },
            coords={"neighbour": np.arange(1, len(near.voxel) + 1)},
            attrs={"subject": subject, "num_queried": len(chosen)},
        )

    # 4. A new subject ------------------------------------------------------------

    def fit_subject(
        self,
        images: Any,
        responses: Any,
        *,
        name: str,
        image_id: Sequence[str] | None = None,
        split: Sequence[str] | None = None,
        position: Any = None,
        roi: dict[str, Any] | None = None,
        ncsnr: Any = None,
        attrs: dict[str, Any] | None = None,
        background: str | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Learns embeddings for a new subject; nothing else of the encoder changes.

        The same as `python -m ubrain_jax.transfer`, from arrays: pictures with the
        same ids, the same seed and settings give the same embeddings.

        Args:
            images: M pictures, 4 or more, each once.
            responses: (M, V) float, z-scored within session or run, repeats averaged,
                finite.
            name: Of the new subject.
            image_id: (M,) ids, by which pictures are chosen for validation; default:
                NAME/00000, ...
            split: (M,) "train" or "val"; default: a tenth, 3 or more, for validation.
            position: (V, 3) voxel i, j, k or hemisphere, vertex, -1; default: unknown.
            roi: Mask (V,) of each region by name.
            ncsnr: (V,) noise-ceiling signal-to-noise ratio; default: unknown.
            attrs: Facts about the subject, JSON-able: space, affine, ...
            background: As in `predict`.
            **settings: Of `fit.Settings`: init ("random" or "twin"), steps, seed, ...

        Returns:
            How it was fitted: numbers of pictures, steps, val_mean_r, notes. The
            subject is one of `subjects` now.

        Raises:
            errors.ConfigError: If the name is taken or a setting is out of range.
            errors.InputError: If the arrays contradict each other, are not finite, or
                a picture occurs twice.
        """
        self._refuse_known(name)
        chosen = _settings(settings)
        opened = self._open(images, background)
        new = _subject_of(
            opened, responses, name, image_id, split, position, roi, ncsnr, attrs
        )
        px = self.config.backbone.image_px
        squares = np.empty((len(opened), px, px, 3), np.uint8)
        for some in _slices(len(opened), 256):
            squares[some] = opened.read(some)
        stores = crowd.in_memory(new, squares)
        count = len(opened) if split is None else None
        compiled = self._ready()
        ready = subjects.make_ready(
            frozen.of_bundle(self._bundle, "this encoder"),
            stores,
            name,
            num_images=count,
            seed=chosen.seed,
            network=compiled.network,
            devices=list(compiled.mesh.devices.flat),
        )
        fitted, log = subjects.fit_subject(ready, chosen, count)
        own = crowd.picture_hashes(stores)
        told = {**fitted.provenance, "log": log, "image_sha256": sorted(own)}
        self.take_in(fitted._replace(provenance=told))
        return {k: v for k, v in told.items() if k != "image_sha256"}

    # 5. Inside -------------------------------------------------------------------

    def _refuse_known(self, name: str) -> None:
        if name in self._subjects or not bundle.is_name(name):
            raise errors.ConfigError(
                "name",
                "",
                f"{name!r} is taken or no plain name",
                "a name of its own",
                "Choose another.",
            )

    def _open(self, images: Any, background: str | None) -> given.Given:
        if isinstance(images, Features):
            raise errors.InputError(
                "images", "", "features", "pictures", "Give the pictures themselves."
            )
        px = self.config.backbone.image_px
        return given.open_pictures(images, px, background=background)

    def _take(self, images: Any, background: str | None) -> given.Given | Features:
        """Pictures, or what the network made of them."""
        if isinstance(images, Features):
            return images
        return self._open(images, background)

    def _choose(self, subject: str, roi: Any, voxels: Any) -> np.ndarray:
        """Numbers of the voxels asked for, (n,)."""
        s = self.subject(subject)
        chosen = np.arange(len(s.embedding))
        if roi is not None:
            names = [roi] if isinstance(roi, str) else list(roi)
            for name in names:
                if name not in s.roi_names:
                    raise errors.ConfigError(
                        "roi",
                        "",
                        f"{subject} has no region {name!r}",
                        f"one of {', '.join(s.roi_names) or 'none: it has no regions'}",
                        errors.nearest(name, s.roi_names),
                    )
            inside = s.roi[:, [s.roi_names.index(n) for n in names]].any(1)
            chosen = chosen[inside]
        if voxels is not None:
            chosen = _within(chosen, np.atleast_1d(np.asarray(voxels)), len(s.roi))
        if not len(chosen):
            raise errors.ConfigError(
                "roi and voxels",
                "",
                "no voxel is left",
                "one or more",
                "Choose others.",
            )
        return chosen

    def _coordinates(
        self, subject: str, chosen: np.ndarray, *, position: bool = True
    ) -> dict[str, Any]:
        s = self.subject(subject)
        found: dict[str, Any] = {"voxel": chosen}
        if position:
            found["ncsnr"] = ("voxel", s.ncsnr[chosen])
            for k, axis in enumerate("xyz"):
                found[axis] = ("voxel", s.position[chosen, k])
            for k, name in enumerate(s.roi_names):
                found[f"roi_{name}"] = ("voxel", s.roi[chosen, k])
        return found

    def _functional(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Signed weights (n, L, C), and their absolute values scaled to sum to 1."""
        weights = np.asarray(self._bundle.shared["head"]["functional"])
        if weights.ndim == 2:  # the same for all voxels (head.functional 'shared')
            functional = np.repeat(weights[None], len(rows), axis=0)
        else:
            functional = np.einsum("ve,lec->vlc", rows, weights)
        total = np.abs(functional).sum((1, 2), keepdims=True)
        share = np.divide(
            np.abs(functional), total, out=np.zeros_like(functional), where=total > 0
        )
        return functional, share

    def _blocks(
        self, opened: given.Given | Features, rows: np.ndarray
    ) -> Iterator[Block]:
        """Predictions of embeddings (n, E), a block of pictures at a time."""
        compiled = self._ready()
        chunks = list(self._chunks(rows))

        def dispatched() -> Iterator[tuple[tuple[Any, slice], jax.Array]]:
            for ids, features in self._features(opened):
                for some, part in chunks:
                    block = compiled.programs.respond(*compiled.weights, features, part)
                    yield (ids, some), block

        values = np.empty((0, len(rows)), np.float32)
        for (ids, some), block in sharding.fetched(dispatched()):
            if some.start == 0:
                values = np.empty((len(ids), len(rows)), np.float32)
            own = values[:, some]
            own[...] = block[: len(ids), : own.shape[1]]
            if some.stop >= len(rows):
                yield Block(ids, values)

    def _features(
        self, opened: given.Given | Features
    ) -> Iterator[tuple[tuple[str, ...], Any]]:
        """Ids and features (size, L, P, C) of blocks of pictures, on the devices."""
        compiled = self._ready()
        mesh, count = compiled.mesh, len(opened.ids)
        size = _bucket(count, self._batch, mesh.size)
        bar = tqdm.tqdm(total=count, desc="pictures", disable=None, delay=2)
        with bar:
            for some in _slices(count, size):
                if isinstance(opened, Features):
                    own = sharding.padded(opened.values[some], size)
                    features = sharding.put(mesh, sharding.REPLICATED, own)
                else:
                    own = sharding.padded(opened.read(some), size)
                    placed = sharding.put(mesh, sharding.IMAGES, own)
                    features = compiled.programs.features(*compiled.weights, placed)
                yield opened.ids[some], features
                bar.update(len(opened.ids[some]))

    def _chunks(self, rows: np.ndarray) -> Iterator[tuple[slice, jax.Array]]:
        """Embeddings (n, E) in chunks of one size, on the devices."""
        mesh = self._ready().mesh
        size = _bucket(len(rows), self._chunk, mesh.shape["voxel"])
        for some in _slices(len(rows), size):
            own = sharding.padded(rows[some], size)
            yield some, sharding.put(mesh, sharding.TABLE, own)

    def _count_seen(self, hashes: Sequence[str], subject: str) -> int | None:
        """How many pictures shaped what predicts them; None where that is not known."""
        own = self.subject(subject).provenance.get("image_sha256", [])
        if self._bundle.seen is None:
            return None
        known = set(self._bundle.seen) | set(own)
        return sum(digest in known for digest in hashes)

    def _ready(self) -> _Compiled:
        """Reads the backbone and compiles, once."""
        if self._compiled is None:
            self._compiled = _compile(self._bundle, self._backbone, self._devices)
        return self._compiled


def _compile(
    trained: bundle.Bundle, backbone: str, devices: list[Any] | None
) -> _Compiled:
    """The backbone that the bundle names, and the programs around it."""
    experiment = trained.experiment
    settings = dataclasses.replace(experiment.backbone, weights=backbone)
    network = experiments.load_network(settings)
    found = network.provenance.sha256
    if found != trained.backbone.sha256:
        raise errors.InputError(
            backbone,
            "",
            f"a backbone with sha256 {found or 'of nothing: random weights'}",
            f"{trained.backbone.source}, {trained.backbone.sha256 or 'random weights'}",
            "Give the folder of that network with backbone=.",
        )
    devices = list(jax.devices()) if devices is None else devices
    data = experiment.data
    mesh = sharding.make_mesh(
        None, None, stripes=data.stripes, batch_images=len(devices), devices=devices
    )
    parts = encoder.build(experiment, network.backbone, data.stripes, mesh)
    everywhere = sharding.place(mesh, sharding.REPLICATED)
    shared = jax.tree.map(lambda a: jax.device_put(a, everywhere), trained.shared)
    params = {**shared, "table": parts.trainable["table"]}
    programs = encoder.programs(parts.graph, mesh)
    return _Compiled(network, mesh, (params, parts.frozen), programs)


def _noting(opened: given.Given, hashes: list[str]) -> given.Given:
    """The same pictures, whose hashes are noted when they are read, which is once."""

    def read(some: slice) -> np.ndarray:
        block = opened.read(some)
        hashes.extend(map(crowd.picture_sha256, block))
        return block

    return given.Given(opened.ids, read)


def _regions(near: pooled.Pooled) -> np.ndarray:
    """Names of the regions of each voxel, with commas between."""
    names = np.array(near.roi_names, dtype=str)
    return np.array([", ".join(names[inside]) for inside in near.roi], dtype=str)


def _bucket(count: int, most: int, multiple: int) -> int:
    """Size of a padded block: few sizes, so few programs, for any count.

    Example:
        >>> [_bucket(n, 32, 1) for n in (1, 3, 17, 40)]
        [1, 4, 32, 32]
    """
    size = 1
    while size < min(count, most):
        size *= 2
    return -(-min(size, most) // multiple) * multiple


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(k, min(k + size, count)) for k in range(0, count, size))


def _within(chosen: np.ndarray, voxels: np.ndarray, count: int) -> np.ndarray:
    """Voxels by number or mask, among those chosen."""
    if voxels.dtype == bool and voxels.shape == (count,):
        return chosen[voxels[chosen]]
    if voxels.dtype.kind not in "iu" or voxels.ndim != 1:
        raise errors.ConfigError(
            "voxels",
            "",
            f"{voxels.dtype} {voxels.shape}",
            f"numbers of voxels, or a mask ({count},)",
            "Give one of the two.",
        )
    missing = voxels[~np.isin(voxels, chosen)]
    if len(missing):
        raise errors.ConfigError(
            "voxels",
            "",
            f"voxel {missing[0]} is not there",
            f"0..{count - 1}, inside the region if one is given",
            "Change the numbers.",
        )
    return voxels.astype(np.int64)


def _settings(values: dict[str, Any]) -> fit.Settings:
    """Settings of a fit, unknown ones refused by name."""
    known = {f.name for f in dataclasses.fields(fit.Settings)}
    for name in values:
        if name not in known:
            raise errors.ConfigError(
                name, "", "no such setting", "one of them", errors.nearest(name, known)
            )
    settings = fit.Settings(**values)
    fit.check(settings)
    return settings


def _check_scale(measured: np.ndarray) -> None:
    """Raw betas are fitted and predicted badly: refused. NaN are refused later."""
    center = float(np.median(np.abs(measured.mean(0))))
    spread = float(np.median(measured.std(0)))
    if center > 1 or spread > 3:
        raise errors.InputError(
            "responses",
            "",
            f"median over voxels of |mean| {center:.3g} and of deviation {spread:.3g}",
            "z-scores: means near 0, deviations near 1 or below",
            "z-score each voxel within session or run, then average repeats.",
        )


def _subject_of(
    opened: given.Given,
    responses: Any,
    name: str,
    image_id: Sequence[str] | None,
    split: Sequence[str] | None,
    position: Any,
    roi: dict[str, Any] | None,
    ncsnr: Any,
    attrs: dict[str, Any] | None,
) -> schema.Subject:
    """A user's arrays as the subject of a store."""
    measured = np.asarray(responses, np.float32)
    if measured.ndim != 2 or len(measured) != len(opened) or len(measured) < 4:
        raise errors.InputError(
            "responses",
            "",
            f"shape {measured.shape} for {len(opened)} pictures",
            "(M, V), a row for each of 4 or more pictures",
            "Give pictures and responses in one order.",
        )
    _check_scale(measured)
    m, v = measured.shape
    masks = [np.asarray(mask, bool) for mask in (roi or {}).values()]
    for region, mask in zip(roi or {}, masks, strict=True):
        if mask.shape != (v,):
            raise errors.InputError(
                "roi", region, f"shape {mask.shape}", f"({v},)", "Give a mask."
            )
    if split is not None and set(map(str, split)) - {"train", "val"}:
        raise errors.InputError(
            "split", "", str(sorted(set(map(str, split)))), "train or val", "Mend it."
        )
    ids = [f"{name}/{k:05d}" for k in range(m)] if image_id is None else image_id
    return schema.Subject(
        name,
        measured,
        [str(i) for i in ids],
        np.asarray(["train"] * m if split is None else [str(s) for s in split]),
        np.ones(m, np.uint8),
        np.full(v, np.nan, np.float32) if ncsnr is None else np.asarray(ncsnr),
        np.full((v, 3), -1, np.int32) if position is None else np.asarray(position),
        np.stack(masks, 1) if masks else np.zeros((v, 0), bool),
        tuple(roi or {}),
        {"dataset": "given from Python", "space": "not told", **(attrs or {})},
    )
