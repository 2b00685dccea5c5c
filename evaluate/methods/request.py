"""What to compare on one split; light, so that a study's jobs can carry it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to compare.

    Attributes:
        dataset: Name of the data set.
        split: The split to evaluate.
        runs: Folders of trained runs.
        models: Models beside those of the runs; the manifest's where there is neither.
        train_split: Trains "concatenation + linear".
        val_split: Tunes "weighted sum" and stops "concatenation + linear".
        quick: Leave out the methods that sort, or that need the stores of the other splits.
        device: Where runs are applied: `auto`, `cpu`, `cuda` or `cuda:N`.
        rerank: Add a two-stage method for every run, which reorders this many first results by
            the run's match head; 0 adds none.
        correct: `auto` adds the simple methods with their hubs corrected and the closed-form head.
        transductive: Add simple methods whose correction looks at all queries of the split.
        rerank_with: Use the match head of this frozen model, and re-rank the model itself too;
            `late:MODEL`, or a multi-vector model, is late interaction over its stored tokens, which
            re-ranks the mean of cosines, too; "cross-encoder:PLACE" re-ranks every run, or every
            model where there is no run.
        late: Models whose late interaction is a method, beside those that were trained for it.
    """

    dataset: str
    split: str
    runs: tuple[Path, ...] = ()
    models: tuple[str, ...] = ()
    train_split: str = "train"
    val_split: str = "val"
    quick: bool = False
    device: str = "auto"
    rerank: int = 0
    rerank_with: str | None = None
    late: tuple[str, ...] = ()
    correct: Literal["auto", "none"] = "auto"
    transductive: bool = False
