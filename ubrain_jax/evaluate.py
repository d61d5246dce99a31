"""Scores of a trained encoder: every voxel of every subject on its test pictures.

Features of a picture are computed once; voxels stream over them in chunks, so memory
is bounded by one subject's responses and the features of the pictures of one split.
Scores stay per voxel, on disk, until the last lines make medians of them.

With several processes each reads the pictures of its devices; predictions come back
to all, and process 0 alone scores and writes.
"""

import contextlib
import copy
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
import xarray

import ubrain_jax
from ubrain_jax import (
    cluster,
    config,
    controls,
    crowd,
    errors,
    experiments,
    metrics,
    ranks,
    results,
    scoring,
    sharding,
    watch,
    whole,
)
from ubrain_jax.maps import report
from ubrain_jax.model import encoder


class Predictor:
    """Compiled pieces that turn pictures and voxels into predicted responses.

    Args:
        run: The experiment.
    """

    def __init__(self, run: experiments.Run):
        settings = run.experiment.evaluate
        self.run = run
        self._batch = _round_up(settings.batch_images, run.mesh.size)
        self._chunk = _round_up(settings.chunk_voxels, run.mesh.shape["voxel"])
        self._programs = encoder.programs(run.parts.graph, run.mesh)

    def of(self, run: experiments.Run) -> "Predictor":
        """The same programs for a run with as many voxels and the same settings."""
        other = copy.copy(self)
        other.run = run
        return other

    def features(
        self, params: Any, rows: np.ndarray, *, quiet: bool = True
    ) -> np.ndarray:
        """Rows (M,) of `Crowd.image_id` -> features (M, L, P, C) float32."""
        run = self.run
        shape = (len(run.experiment.backbone.taps), 0, 0)
        out = np.empty((len(rows), *shape), np.float32)
        starts = range(0, len(rows), self._batch)
        (own,) = sharding.block(run.mesh, sharding.IMAGES, (self._batch,))

        def dispatched() -> Iterator[tuple[int, jax.Array]]:
            for start in tqdm.tqdm(starts, desc="features", disable=_hidden(quiet)):
                watch.alive("features of pictures")
                # One shape, compiled once.
                padded = np.resize(rows[start : start + self._batch], self._batch)
                pictures = crowd.read_pictures(run.stores, padded[own])
                shape = (self._batch, *pictures.shape[1:])
                placed = sharding.put_block(run.mesh, sharding.IMAGES, shape, pictures)
                yield start, self._programs.features(params, run.parts.frozen, placed)

        for start, block in sharding.fetched(dispatched()):
            if start == 0:
                out = np.empty((len(rows), *block.shape[1:]), np.float32)
            part = out[start : start + self._batch]
            part[...] = block[: len(part)]
        return out

    def responses(
        self,
        params: Any,
        features: np.ndarray,
        voxel: np.ndarray,
        *,
        quiet: bool = True,
    ) -> np.ndarray:
        """Features (M, L, P, C), global voxels (n,) -> predictions (M, n) float32."""
        run = self.run
        stripes = run.experiment.data.stripes
        where = encoder.table_rows(voxel, run.stores.num_voxels, stripes)
        return self._stream(self._programs.respond_rows, params, features, where, quiet)

    def of_embeddings(
        self, params: Any, features: np.ndarray, embeddings: np.ndarray
    ) -> np.ndarray:
        """Features (M, L, P, C), embeddings (n, E) -> predictions (M, n) float32.

        For voxels that are not in the table of `params`.
        """
        respond = self._programs.respond
        return self._stream(respond, params, features, (embeddings,), True)

    def _stream(
        self, respond: Any, params: Any, features: np.ndarray, columns: tuple, quiet
    ) -> np.ndarray:
        """Pictures by blocks, and for each the voxels of `columns` by chunks."""
        run, count = self.run, len(columns[0])
        chunk = min(self._chunk, _round_up(count, run.mesh.shape["voxel"]))
        out = np.empty((len(features), count), np.float32)
        starts = range(0, len(features), self._batch)

        def placed(first: int) -> list[jax.Array]:
            own = [sharding.padded(x[first : first + chunk], chunk) for x in columns]
            return [sharding.put(run.mesh, sharding.TABLE, x) for x in own]

        # Once for all pictures.
        chunks = [(first, placed(first)) for first in range(0, count, chunk)]

        def dispatched() -> Iterator[tuple[tuple[int, int], jax.Array]]:
            for start in tqdm.tqdm(starts, desc="voxels", disable=_hidden(quiet)):
                watch.alive("responses of voxels")
                part = np.asarray(features[start : start + self._batch])
                own = sharding.padded(part, self._batch)
                own = sharding.put(run.mesh, sharding.FEATURES, own)
                for first, voxels in chunks:
                    block = respond(params, run.parts.frozen, own, *voxels)
                    yield (start, first), block

        for (start, first), block in sharding.fetched(dispatched()):
            part = out[start : start + self._batch, first : first + chunk]
            part[...] = block[: len(part), : part.shape[1]]
        return out


def _hidden(quiet: bool) -> bool | None:
    """For tqdm: None hides the bar where there is no terminal."""
    return True if quiet or not cluster.is_first() else None


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def voxels_of(subject: crowd.SubjectRows) -> np.ndarray:
    """Global voxels of a subject, (V,)."""
    return np.arange(subject.offset, subject.offset + subject.num_voxels)


# Pictures of a subject below which its scores say nothing.
LEAST_PICTURES = 3


def validate(predictor: Predictor, params: Any) -> dict[str, float | None]:
    """Median correlation of each subject on a fixed choice of validation pictures.

    Returns:
        {"val_median_r/NAME": value, "val_undefined/NAME": voxels without a value},
        and "val_p75_r/NAME" where train.val_score is 'p75'; subjects with fewer than
        3 such pictures are left out, and a score of no voxel is None.
    """
    run, scores = predictor.run, {}
    rng = np.random.default_rng(run.experiment.train.seed)
    limit = run.experiment.evaluate.val_images
    for subject in run.stores.subjects:
        samples = subject.samples("val")
        if len(samples) > limit:
            samples = np.sort(rng.choice(samples, limit, replace=False))
        if len(samples) < LEAST_PICTURES:
            continue
        features = predictor.features(params, subject.image[samples])
        predicted = predictor.responses(params, features, voxels_of(subject))
        if not cluster.is_first():
            continue
        r = metrics.pearson(crowd.read_responses(subject, samples), predicted)
        found = metrics.null_for_nan(metrics.quartiles(r))
        for kind in dict.fromkeys(("median", run.experiment.train.val_score)):
            scores[f"val_{kind}_r/{subject.name}"] = found[kind]
        if found["undefined"]:
            scores[f"val_undefined/{subject.name}"] = found["undefined"]
    # Whether weights are kept depends on them, so all must have the same.
    return cluster.from_first(lambda: scores)


def score_subject(
    subject: crowd.SubjectRows,
    samples: np.ndarray,
    measured: np.ndarray,
    predicted: np.ndarray,
    *,
    bootstraps: int = 0,
    permutations: int = 0,
    pools: Mapping[str, np.ndarray] | None = None,
) -> tuple[xarray.Dataset, dict[str, Any], ranks.Ranks]:
    """Per-voxel table and its summary for one subject.

    Args:
        subject: The subject.
        samples: (M,) test samples.
        measured: (M, V) their responses.
        predicted: (M, V) predictions.
        bootstraps: Draws of pictures for the intervals; 0: none.
        permutations: For p and q of each voxel; 0: none.
        pools: Some of the pictures, (M,) bool, in which they are sought too.

    Returns:
        Table over voxels; the subject's entry of metrics.json; what each pattern found.
    """
    ceiling = metrics.noise_ceiling(subject.ncsnr, subject.repeats[samples])
    regions = dict(zip(subject.roi_names, subject.roi.T, strict=True))
    columns, summary = scoring.voxels(
        measured, predicted, ceiling, regions, bootstraps, permutations
    )
    similarity = metrics.similarity(measured, predicted)
    table = xarray.Dataset(
        {
            **{name: ("voxel", values) for name, values in columns.items()},
            "noise_ceiling": ("voxel", ceiling),
            "ncsnr": ("voxel", subject.ncsnr),
            "position": (("voxel", "axis"), subject.position),
            "roi": (("voxel", "roi_name"), subject.roi),
        },
        coords={"roi_name": np.asarray(subject.roi_names, object)},
        attrs={**subject.attrs, "subject": subject.name, "test_images": len(samples)},
    )
    summary |= {
        **scoring.patterns(similarity, bootstraps, pools or {}),
        "controls": controls.scores_in(similarity, measured, predicted),
        "num_test_images": len(samples),
        "num_train_images": len(subject.samples("train")),
        "num_val_images": len(subject.samples("val")),
        "num_voxels": subject.num_voxels,
        "dataset": subject.attrs.get("dataset"),
    }
    return table, summary, ranks.make(similarity)


class Job(NamedTuple):
    """What is scored, and what its readers are told.

    Attributes:
        stores: Measured responses and their splits.
        settings: How to score.
        marks: Keys of metrics.json and attributes of voxels/NAME.zarr: step and
            config_sha256, and for anything but a run `model`.
        warnings: What every reader must know first.
        shown: Settings that the report prints.
        provenance: Rows of the report: versions, weights, stores.
        title: Of the report.
    """

    stores: crowd.Crowd
    settings: config.Evaluate
    marks: dict[str, Any]
    warnings: list[str]
    shown: dict[str, Any]
    provenance: dict[str, str]
    title: str


# Predictions (M, V) of test samples (M,) of a subject.
Predict = Callable[[crowd.SubjectRows, np.ndarray], np.ndarray]


def evaluate(
    run: experiments.Run,
    params: Any,
    workdir: str,
    step: int,
    predictor: Predictor | None = None,
) -> dict[str, Any]:
    """Scores all subjects and writes metrics.json, voxels/*.zarr and report.html.

    Args:
        run: The experiment.
        params: Trainable weights.
        workdir: Where to write.
        step: Steps that the weights were trained for.
        predictor: Of a run with the same pictures and voxels, compiled before.

    Returns:
        The content of metrics.json; nothing on other processes than the first.
    """
    began = time.monotonic()
    predictor = predictor or Predictor(run)
    wanted = [s.image[s.samples("test")] for s in run.stores.subjects]
    pictures = np.unique(np.concatenate(wanted))
    features = predictor.features(params, pictures, quiet=False)

    def predict(subject: crowd.SubjectRows, samples: np.ndarray) -> np.ndarray:
        inside = np.searchsorted(pictures, subject.image[samples])
        voxels = voxels_of(subject)
        return predictor.responses(params, features[inside], voxels, quiet=False)

    return score_predictions(_job_of(run, step), predict, workdir, began)


def _job_of(run: experiments.Run, step: int) -> Job:
    """The job of a trained encoder."""
    marks = {"step": step, "config_sha256": config.sha256(run.experiment)}
    settings = config.without_folders(run.experiment)  # a report is passed on
    return Job(
        run.stores,
        run.experiment.evaluate,
        marks,
        warnings_of(run),
        settings,
        {
            **provenance_of(run.stores),
            "backbone": f"{settings['backbone']['weights']} ({run.provenance.origin})",
            **{f"sha256 of {k}": v for k, v in run.provenance.sha256.items()},
            "config sha256": marks["config_sha256"],
        },
        "Universal Brain Encoder: scores on test pictures",
    )


def score_predictions(
    job: Job, predict: Predict, workdir: str | os.PathLike, began: float | None = None
) -> dict[str, Any]:
    """Scores predictions from anywhere, and writes what every evaluation writes.

    Args:
        job: What is scored.
        predict: Called once for each subject with 3 test pictures or more, on every
            process.
        workdir: Where to write metrics.json, voxels/*.zarr and report.html.
        began: `time.monotonic()` at the beginning; None: now.

    Returns:
        The content of metrics.json; nothing on other processes than the first.

    Raises:
        errors.InputError: If no subject has 3 test pictures.
    """
    began = time.monotonic() if began is None else began
    out = pathlib.Path(workdir)
    tests = [subject.samples("test") for subject in job.stores.subjects]
    if not any(len(samples) >= LEAST_PICTURES for samples in tests):
        raise errors.InputError(
            ", ".join(job.stores.paths),
            "split",
            f"no subject has {LEAST_PICTURES} test pictures",
            "a test split",
            "Prepare a store with one; a run's weights are in its checkpoints.",
        )
    if cluster.is_first():
        (out / "voxels").mkdir(parents=True, exist_ok=True)
    summaries, scores, retrieved, warnings = {}, [], [], list(job.warnings)
    pools = scoring.shared_pools(
        [
            scoring.Shown(s.store, s.image[t], s.repeats[t])
            for s, t in zip(job.stores.subjects, tests, strict=True)
        ]
    )
    for subject, samples, some in zip(job.stores.subjects, tests, pools, strict=True):
        if len(samples) < LEAST_PICTURES:
            warnings.append(
                f"{subject.name} has {len(samples)} test pictures; scores need "
                f"{LEAST_PICTURES} or more, so it has none."
            )
            continue
        predicted = predict(subject, samples)
        if not cluster.is_first():
            continue
        watch.alive(f"scores of {subject.name}")
        measured = crowd.read_responses(subject, samples)
        table, summary, found = score_subject(
            subject,
            samples,
            measured,
            predicted,
            bootstraps=job.settings.bootstraps,
            permutations=job.settings.permutations,
            pools=some,
        )
        told = {k: v for k, v in job.marks.items() if k != "model"}
        table.attrs.update(told, warnings=job.warnings)
        crowd.write_xarray(table, out / "voxels" / f"{subject.name}.zarr")
        ids = [job.stores.image_id[row] for row in subject.image[samples]]
        ranks.write(out, subject.name, ids, found)
        summaries[subject.name] = summary
        warnings += [
            f"A control of {subject.name} is above chance, so its retrieval and "
            f"forced choice cannot be trusted: {line}."
            for line in controls.above_chance(summary["controls"])
        ]
        scores.append(
            report.SubjectScores(
                subject.name,
                table["pearson"].values,
                table["noise_ceiling"].values,
                table["noise_normalised"].values,
            )
        )
        if job.settings.report_queries:
            retrieved += _queries(job, subject, samples, measured, predicted, found)
    if not cluster.is_first():
        return {}
    watch.alive("writing the report")
    result = metrics.null_for_nan(
        {
            "subjects": summaries,
            **job.marks,
            "seconds": round(time.monotonic() - began, 2),
            "warnings": warnings,
        }
    )
    whole.write_text(out / "metrics.json", json.dumps(result, indent=1) + "\n")
    about = results.About(job.title, job.shown, job.provenance)
    results.write_about(out, about)
    report.write(
        out / "report.html",
        title=job.title,
        metrics=result,
        curves=read_log(out),
        subjects=scores,
        retrieved=retrieved,
        warnings=result["warnings"],
        config_text=json.dumps(job.shown, indent=1),
        provenance=job.provenance,
    )
    return result


def refuse_run(folder: str | os.PathLike, flag: str) -> None:
    """The scores of an encoder must not be replaced by those of something else.

    Raises:
        errors.OutputError: If the folder is of a training.
    """
    if (pathlib.Path(folder) / "checkpoints").exists():
        raise errors.OutputError(
            folder,
            "checkpoints",
            "the folder of a trained encoder",
            "a folder of its own",
            f"Choose another {flag}.",
        )


def provenance_of(stores: crowd.Crowd) -> dict[str, str]:
    """Rows of a report on versions and measured data."""
    return {
        "ubrain_jax": ubrain_jax.__version__,
        "jax": f"{jax.__version__} on {jax.device_count()} {jax.devices()[0].platform}",
        "stores": ", ".join(os.path.basename(p.rstrip("/")) for p in stores.paths),
        "crowd fingerprint": stores.fingerprint,
    }


def warnings_of(run: experiments.Run) -> list[str]:
    """What every reader of the results must know first."""
    return warnings_about(run.stores, random=run.provenance.random)


def warnings_about(stores: crowd.Crowd, *, random: bool) -> list[str]:
    """The same of measured data and a frozen network."""
    found = list(stores.notes)
    if random:
        found.append(
            "The backbone has random weights: scores say nothing of the method."
        )
    simulated = [
        s.name for s in stores.subjects if s.attrs.get("simulated") is not None
    ]
    if simulated:
        found.append(
            f"Simulated subjects: {', '.join(simulated)}. No brain was measured."
        )
    return found


def _queries(
    job: Job,
    subject: crowd.SubjectRows,
    samples: np.ndarray,
    measured: np.ndarray,
    predicted: np.ndarray,
    found: ranks.Ranks,
) -> list[report.Retrieved]:
    """Test pictures, evenly over the ranks from best to worst, and their matches."""
    count = min(job.settings.report_queries, len(samples))
    by_rank = np.argsort(found.rank, kind="stable")
    chosen = by_rank[np.linspace(0, len(by_rank) - 1, count).round().astype(int)]
    similar = metrics.pattern_correlation(measured[chosen], predicted)
    shown = []
    for query, r in zip(chosen, similar, strict=True):
        best = np.argsort(-np.nan_to_num(r, nan=-2.0), kind="stable")[:5]
        rows = subject.image[samples[[query, *best]]]
        pictures = crowd.read_pictures(job.stores, rows)
        ids = [job.stores.image_id[row] for row in rows]
        shown.append(
            report.Retrieved(
                subject.name,
                ids[0],
                pictures[0],
                ids[1:],
                list(pictures[1:]),
                [float(x) for x in r[best]],
                int(found.rank[query]),
                found.pool,
            )
        )
    return shown


def read_log(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Lines of a workdir's metrics.jsonl; one that a kill cut short is left out."""
    path, lines = pathlib.Path(workdir) / "metrics.jsonl", []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
    return lines
