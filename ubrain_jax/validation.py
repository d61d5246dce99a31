"""What a validation decides: which weights are kept, and how fast they go on.

The scores are those of `evaluate.validate`; one number is made of them here. The rule
of the rate, which is plain arithmetic, is `optim.judged`.
"""

from typing import Any

import numpy as np
import tqdm

from ubrain_jax import checkpoint, errors, evaluate, experiments, optim, sharding


def score_of(scores: dict[str, float | None], kind: str) -> float:
    """Mean over subjects of their score, as optim and train.select judge it.

    A subject without a defined score counts as 0, so that it is not better to have
    none.

    Args:
        scores: From `evaluate.validate`.
        kind: train.val_score, "median" or "p75".

    Returns:
        -inf where there is no subject.

    Example:
        >>> score_of({"val_median_r/a": 0.4, "val_median_r/b": None}, "median")
        0.2
    """
    found = [v for k, v in scores.items() if k.startswith(f"val_{kind}_r/")]
    return float(np.mean([v or 0.0 for v in found])) if found else -np.inf


def check(run: experiments.Run) -> None:
    """Refuses a schedule that waits for validations where there can be none.

    Raises:
        errors.InputError: If no subject has enough pictures in the val split.
    """
    sizes = {s.name: len(s.samples("val")) for s in run.stores.subjects}
    limit = run.experiment.evaluate.val_images
    if min(limit, max(sizes.values())) < evaluate.LEAST_PICTURES:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise errors.InputError(
            ", ".join(run.stores.paths),
            "split",
            f"pictures for validation: {listed}, of which evaluate.val_images "
            f"({limit}) are used",
            f"{evaluate.LEAST_PICTURES} or more of a subject, for optim.schedule "
            "'plateau'",
            "Prepare a store with a val split, or choose another schedule.",
        )


def judge(run: experiments.Run, state: Any, scores: dict[str, float | None]) -> Any:
    """A training state with the rate that a validation leaves it; says so if it falls.

    The state must be settled: rows of a sparse table have missed steps at one rate.
    """
    experiment, (adam, plateau, *last) = run.experiment, state.optimiser
    score = score_of(scores, experiment.train.val_score)
    new = optim.judged(experiment.optim, plateau, score)
    if new.scale != plateau.scale:
        rate = experiment.optim.learning_rate * float(new.scale)
        tqdm.tqdm.write(f"step {int(state.step)}: learning rate {rate:.3g}")
    placed = {
        name: sharding.put(run.mesh, sharding.REPLICATED, getattr(new, name))
        for name in ("scale", "best", "bad")
    }
    return state._replace(optimiser=(adam, plateau._replace(**placed), *last))


class Best:
    """best/: the weights of the highest validation score so far.

    Args:
        workdir: Of the run.
        kind: train.val_score.
    """

    def __init__(self, workdir: str, kind: str):
        self._kind = kind
        self._manager = checkpoint.open_manager(workdir, 1, "best")
        step = self._manager.latest_step()
        self._score = -np.inf
        if step is not None:
            told = checkpoint.read_meta(self._manager.directory, step)
            self._score = told["val_score"]

    def offer(
        self,
        scores: dict[str, float | None],
        step: int,
        params: Any,
        meta: dict[str, Any],
    ) -> None:
        """Keeps the weights of a step if their score is higher."""
        score = score_of(scores, self._kind)
        if score > self._score:
            self._score = score
            weights = {"params": params}
            self._manager.save(step, weights, {**meta, "val_score": score})

    def close(self) -> None:
        """Waits for a save and lets go of the folder."""
        self._manager.wait_until_finished()
        self._manager.close()
