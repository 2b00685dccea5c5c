"""Which model's stored tokens are the second stage of a fusion: chosen on validation.

Nothing here is trained but the map of tokens to a joint space, by least squares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hada.extract.common.errors import UsageError
from hada.extract.spec import ModelSpec
from hada.fuse.scores.embedded import Embedded
from hada.fuse.scores.heads import with_tokens
from hada.fuse.scores.shares import ScoreTable, fit
from hada.fuse.scores.stored_tokens import TokenSpace, check_tokens, trained_for_it
from hada.fuse.tokens.split import Split

MIRRORS = (0.0, 0.5)


def choose_late(
    asked: str, train: Split, val: Split, found: Embedded, report: Callable[[str], None]
) -> TokenSpace | None:
    """The tokens, and their mirror, that make right matches of `val` most likely, beside the rest.

    Args:
        asked: `ScoreSettings.late`.
        train: Fits the maps of tokens.
        val: Chooses among models and mirrors.
        found: The scores beside them, on `val`.
        report: Is called with one line.

    Raises:
        UsageError: The model that was asked for is not among those that are fused, or its tokens
            cannot be matched.
    """
    spaces = [TokenSpace.of(store) for store in train.stores if _taken(asked, store.spec.model)]
    if asked not in ("auto", "all") and not spaces:
        names = ", ".join(store.spec.model.name for store in train.stores)
        raise UsageError(f"late={asked}: expected none, auto, all or one of the models: {names}")
    if not spaces:
        if asked == "all":
            report("late: left out: no model has tokens of both sides that could be matched")
        return None
    candidates = [replace(space, mirror=mirror) for space in spaces for mirror in MIRRORS]
    best = min(candidates, key=lambda one: fit(ScoreTable.of(with_tokens(found, val, one)))[1])
    report(
        f"late: the tokens of {best.model}, mirror {best.mirror:g}"
        + ("" if best.projections is None else ", mapped to its joint space by least squares")
    )
    return best


def _taken(asked: str, model: ModelSpec) -> bool:
    if asked == "auto":
        return trained_for_it(model)
    if asked == model.name:
        check_tokens(model)
        return True
    if asked != "all":
        return False
    try:
        check_tokens(model)
    except UsageError:
        return False
    return True
