"""The optimiser: Adam over trainable weights only, so frozen ones have no state."""

import optax

from ubrain_jax import config


def learning_rate(settings: config.Optim, steps: int) -> optax.Schedule:
    """Step -> learning rate, for a run of `steps` steps.

    Example:
        >>> rate = learning_rate(config.Optim(warmup_steps=10), 100)
        >>> float(rate(0)), round(float(rate(10)), 6)
        (0.0, 0.001)
    """
    peak = settings.learning_rate
    if settings.schedule == "cosine":
        rest = max(1, steps - settings.warmup_steps)
        after = optax.cosine_decay_schedule(peak, rest, alpha=0.01)
    else:
        after = optax.constant_schedule(peak)
    if not settings.warmup_steps:
        return after
    before = optax.linear_schedule(0.0, peak, settings.warmup_steps)
    return optax.join_schedules([before, after], [settings.warmup_steps])


def make(settings: config.Optim, steps: int) -> optax.GradientTransformation:
    """Adam as in the paper: beta 0.9 and 0.999, no decay, no clipping."""
    return optax.adam(learning_rate(settings, steps))
