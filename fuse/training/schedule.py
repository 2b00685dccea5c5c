"""Learning rates as pure functions of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math


def learning_rate_restarts(step: int, steps: int, base: float, lowest: float, first: int) -> float:
    """Cosine with warm restarts, periods of first, 2 * first, 4 * first ... epochs.

    `steps` is the number of steps of an epoch. The rate lags one step behind, because the
    authors step their schedule after the optimiser.

    >>> learning_rate_restarts(0, 4, 1.0, 0.0, 50) == learning_rate_restarts(1, 4, 1.0, 0.0, 50)
    True
    """
    epoch, period = max(step - 1, 0) / steps, float(first)
    while epoch >= period:
        epoch, period = epoch - period, period * 2
    return lowest + (base - lowest) * (1 + math.cos(math.pi * epoch / period)) / 2


def learning_rate_cosine(step: int, total: int, base: float, lowest: float, warmup: int) -> float:
    """Linear warm-up over `warmup` steps, then one cosine down to `lowest` at `total` steps.

    >>> learning_rate_cosine(0, 100, 1.0, 0.0, 10), learning_rate_cosine(100, 100, 1.0, 0.0, 10)
    (0.1, 0.0)
    """
    if step < warmup:
        return base * (step + 1) / warmup
    way = min((step - warmup) / max(total - warmup, 1), 1.0)
    return lowest + (base - lowest) * (1 + math.cos(math.pi * way)) / 2
