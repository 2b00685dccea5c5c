"""Learning rates as pure functions of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math


def learning_rate_restarts(step: int, steps: int, base: float, lowest: float, first: int) -> float:
    """Cosine with warm restarts, periods of first, 2 * first, 4 * first ... epochs.

    The rate lags one step behind, because the
    authors step their schedule after the optimiser.

    Args:
        step: The step, counted from 0 over all epochs.
        steps: Steps of an epoch.
        base: The rate at the start of a period.
        lowest: The rate at its end.
        first: Epochs of the first period.

    >>> learning_rate_restarts(0, 4, 1.0, 0.0, 50) == learning_rate_restarts(1, 4, 1.0, 0.0, 50)
    True
    """
    epoch, period = max(step - 1, 0) / steps, float(first)
    while epoch >= period:
        epoch, period = epoch - period, period * 2
    return lowest + (base - lowest) * (1 + math.cos(math.pi * epoch / period)) / 2


def learning_rate_cosine(step: int, total: int, base: float, lowest: float, warmup: int) -> float:
    """Warm up linearly, then fall along one cosine.

    Args:
        step: The step, counted from 0 over all epochs.
        total: Steps of the whole training.
        base: The highest rate.
        lowest: The rate at the end.
        warmup: Steps of the warm-up.

    >>> learning_rate_cosine(0, 100, 1.0, 0.0, 10), learning_rate_cosine(100, 100, 1.0, 0.0, 10)
    (0.1, 0.0)
    """
    if step < warmup:
        return base * (step + 1) / warmup
    way = min((step - warmup) / max(total - warmup, 1), 1.0)
    return lowest + (base - lowest) * (1 + math.cos(math.pi * way)) / 2
