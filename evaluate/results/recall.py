"""`recall`: every method that the stores and runs of a split allow, measured and compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from hada.evaluate.methods.build import build, finished_runs
from hada.evaluate.methods.request import Request
from hada.evaluate.results import eccv as eccv_caption
from hada.evaluate.results.measure import measure
from hada.extract.common.device import choose_device
from hada.extract.common.errors import UsageError
from hada.extract.manifest import Manifest


def recall(
    manifest: Manifest,
    *,
    dataset: str | None = None,
    split: str = "test",
    runs: Sequence[Path | str] | None = None,
    models: Sequence[str] = (),
    train_split: str = "train",
    val_split: str = "val",
    quick: bool = False,
    folds: int = 1,
    rerank: int = 0,
    rerank_with: str | None = None,
    late: Sequence[str] = (),
    correct: Literal["auto", "none"] = "auto",
    transductive: bool = False,
    eccv: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
    p_values_anyway: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Recall of frozen models, simple combinations of them, and trained fusions.

    This is the command `hada-evaluate recall`, without its output: nothing is printed but progress
    and notices on stderr, and nothing is written.

    Args:
        manifest: Where data sets, stores and runs are (`hada.extract.manifest.load_manifest`).
        dataset: A dataset of the manifest; None takes the manifest's default.
        split: The split to evaluate; it is recorded in the result.
        runs: Folders of trained runs. None takes all finished runs of the dataset, `()` none.
        models: Models to compare beside those of the runs. Where there is no model at all, the
            manifest's defaults are taken.
        train_split: Trains the method "concatenation + linear".
        val_split: Tunes "weighted sum" and stops the training of "concatenation + linear".
        quick: Leave out the methods that sort, or that need the other two splits.
        folds: Number of galleries of consecutive images; figures are means over them.
        rerank: Reorder this many first results of every run by its match head; 0 for no re-ranking.
        rerank_with: Re-rank by the match head of this frozen model instead; needs `rerank`. As
            `late:MODEL`, and for multi-vector models, by late interaction over stored tokens.
        late: Models whose late interaction is a method of its own; multi-vector models' always is.
        correct: `auto` adds every simple method with its hubs corrected, and the closed-form head;
            they need the stores of the other two splits.
        transductive: Add, set apart and in no verdict, the simple methods whose correction looks at
            all queries of the split at once; needs what `correct="auto"` needs.
        eccv: Add ECCV Caption and CxC (COCO's test split and the extra `eccv` only).
        resamples: Resamples of the bootstrap over images.
        seed: Seed of the bootstrap.
        p_values_anyway: Give p-values also where a method's parameters saw images of the split.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; ranks are the same on each.

    Returns:
        Plain values, ready for JSON, as described in `hada.evaluate.results.measure.measure`.
        `result["methods"]` has one entry for every method; its `metrics` are `i2t_R@1`, `i2t_R@5`,
        `i2t_R@10`, `t2i_R@1` and so on in percent, `rsum` (their sum, 0 to 600) and the median and
        mean ranks (`i2t_medr`, `i2t_meanr`; from 1).

    Raises:
        UsageError: An argument is wrong, or names no dataset, split or model.
        StoreError: A store is missing or damaged, or no method can be made.
        RunError: A run is missing, or does not fit the stores.

    An example that runs is in docs/evaluation.md, "In Python".
    """
    if rerank_with and not rerank:
        raise UsageError("--rerank-with needs --rerank K: the number of first results to reorder")
    if transductive and (quick or correct == "none"):
        raise UsageError(
            "--transductive corrects simple methods: it needs --correct auto, without --quick"
        )
    request = make_request(
        manifest,
        dataset=dataset,
        split=split,
        runs=runs,
        models=tuple(models),
        train_split=train_split,
        val_split=val_split,
        quick=quick,
        device=device,
        rerank=rerank,
        rerank_with=rerank_with,
        late=tuple(late),
        correct=correct,
        transductive=transductive,
    )
    if eccv:
        eccv_caption.metrics()  # refuses a missing package before the work
    gallery, methods = build(manifest, request)
    result = measure(
        gallery,
        methods,
        resamples=resamples,
        seed=seed,
        folds=folds,
        device=choose_device(device),
        p_values_anyway=p_values_anyway,
    )
    if eccv:
        eccv_caption.add(result, methods, gallery)
    return result


def make_request(
    manifest: Manifest,
    *,
    dataset: str | None,
    split: str,
    runs: Sequence[Path | str] | None,
    **options: Any,
) -> Request:
    """What to compare, with the manifest's default data set and all of its finished runs.

    Args:
        manifest: Where data sets, stores and runs are.
        dataset: As in `recall`.
        split: As in `recall`.
        runs: As in `recall`.
        options: The other fields of `Request`.

    Raises:
        UsageError: The manifest has no such dataset, or the dataset no such split.
    """
    entry = manifest.dataset(dataset)
    entry.split(split)
    if runs is None:
        runs = finished_runs(Path(manifest.runs) / entry.name)
    folders = tuple(Path(run) for run in runs)
    return Request(dataset=entry.name, split=split, runs=folders, **options)
