"""The views of a run's page, each made of its part of the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery, Method
from hada.evaluate.pages import charts
from hada.evaluate.pages.cases import Case, Material, Scored
from hada.evaluate.pages.choose import OUTCOMES, SAME, WAYS, outcomes, places
from hada.evaluate.pages.hubs import Hubs, hub_bars, hubs
from hada.evaluate.pages.space import POINTS, fused_space, project
from hada.evaluate.pages.thumbnails import Pictures
from hada.fuse.ranking.ranks import Ranks
from hada.fuse.run_folder import RunFolder
from hada.fuse.untrained import skewness

MOST_K = 50
MOST_HUBS = 12
# Letters of a caption in a chart's tip.
MOST_TEXT = 90
ALL_MODELS = "the best single model of each query"


@dataclass(frozen=True)
class Parts:
    """What a page is made of; `material` is None where images or captions are missing."""

    result: dict[str, Any]
    gallery: Gallery
    folder: RunFolder
    methods: Sequence[Method]
    ranks: dict[str, Ranks]
    run: Scored
    models: Sequence[EmbeddingMethod]
    others: Sequence[EmbeddingMethod]
    cases: Sequence[Case]
    missing: str
    material: Material | None
    pictures: Pictures
    command: str
    sample_seed: int


def recall_curve(ranks: Ranks, way: str, ks: Sequence[int]) -> NDArray[np.float64]:
    """Recall in percent at each K."""
    hits = ranks.i2t_hits if way == "i2t" else ranks.t2i_hits
    return np.array([100 * float(hits(k).mean()) for k in ks])


def recall_curves(parts: Parts) -> dict[str, charts.Spec]:
    """Recall at K of the models, the simple combination that is shown, and the run."""
    curves = {}
    shown = [*parts.models, *parts.others, parts.run]
    for way in WAYS:
        gallery = len(parts.gallery.caption_rows if way == "i2t" else parts.gallery.image_rows)
        ks = list(range(1, min(MOST_K, gallery) + 1))
        lines = [
            charts.Line(
                method.name,
                ks,
                recall_curve(parts.ranks[method.name], way, ks).tolist(),
                fusion=method is parts.run,
            )
            for method in shown
        ]
        curves[way] = charts.line_chart(
            lines, x_label="K, places looked at (log scale)", y_label="recall@K, %", log_x=True
        )
    return curves


def training_curves(folder: RunFolder) -> dict[str, charts.Spec]:
    """The loss and the validation's RSum, epoch by epoch; none where nothing was logged."""
    logged = folder.metrics()
    epochs = [line["epoch"] for line in logged]
    if not epochs:
        return {}
    losses = [
        charts.Line(name, epochs, [line["loss"][name] for line in logged], name == "total")
        for name in ("total", "i2t", "t2i")
        if all(name in line["loss"] for line in logged)
    ]
    sums = [charts.Line("whole score", epochs, [line["val"]["rsum"] for line in logged], True)]
    if all("fused_rsum" in line["val"] for line in logged):
        alone = [line["val"]["fused_rsum"] for line in logged]
        sums.append(charts.Line("fused embedding alone", epochs, alone))
    return {
        "loss": charts.line_chart(losses, x_label="epoch", y_label="loss, nats", digits=3),
        "validation": charts.line_chart(sums, x_label="epoch", y_label="RSum, % points"),
    }


def changes(parts: Parts, way: str) -> dict[str, dict[str, Any]]:
    """For all that the run is compared with, how many queries have which outcome.

    Returns:
        Name -> `outcomes`, counts in the order of `OUTCOMES`; and how many queries rank `better`,
        the `same` and `worse`.
    """
    run, rows = parts.ranks[parts.run.name], {}
    for name, members in _against(parts).items():
        found = outcomes(run, members, way)
        # Of several models, each query's best.
        before = np.min([getattr(one, way) for one in members], axis=0)
        now = getattr(run, way)
        rows[name] = {
            "outcomes": [int((found == outcome).sum()) for outcome in OUTCOMES],
            "better": int((now < before).sum()),
            "same": int((now == before).sum()),
            "worse": int((now > before).sum()),
        }
    return rows


def outcome_chart(rows: dict[str, dict[str, Any]]) -> charts.Spec:
    """The outcomes of `changes` as bars."""
    return charts.outcome_bars(
        {name: dict(zip(OUTCOMES, row["outcomes"], strict=True)) for name, row in rows.items()}
    )


def hub_views(parts: Parts) -> list[tuple[dict[str, Any], charts.Spec]]:
    """The hubs of the run and of the best corrected score beside it: rows, images and a chart."""
    views = []
    corrected = [
        method
        for method in parts.methods
        if isinstance(method, EmbeddingMethod) and method.kind == "corrected"
    ]
    rsums = {line["name"]: line["metrics"]["rsum"] for line in parts.result["methods"]}
    best = sorted(corrected, key=lambda method: -rsums[method.name])[:1]
    for method in (parts.run, *best):
        found = hubs(method)
        if found is not None:
            views.append((_hub_view(parts, found), hub_bars(found)))
    return views


def _hub_view(parts: Parts, found: Hubs) -> dict[str, Any]:
    both = (found.before, found.after)
    figures = [
        [f"{skewness(counts):.2f}" for counts in both],
        [f"{counts.max():,.0f}" for counts in both],
        [f"{int((counts == 0).sum()):,}" for counts in both],
    ]
    own = np.bincount(parts.gallery.caption_to_image, minlength=len(found.before))
    most = np.argsort(own - found.before, kind="stable")[:MOST_HUBS].tolist()
    largest = [
        {
            "picture": parts.material.picture(image),
            "before": f"{found.before[image]:,.0f}",
            "after": f"{found.after[image]:,.0f}",
            "own": int(own[image]),
        }
        for image in most
        if parts.material is not None and found.before[image] > own[image]
    ]
    return {"method": found.method, "figures": figures, "largest": largest}


def maps(parts: Parts) -> tuple[dict[str, charts.Spec], dict[str, str]]:
    """The map of each direction's queries, and what its axes keep; both together in bounds."""
    run, specs, notes = parts.ranks[parts.run.name], {}, {}
    members = [parts.ranks[model.name] for model in parts.models]
    pair = fused_space(parts.run)
    images = min(len(pair[0]), POINTS // 2)
    for way, values, points in zip(WAYS, pair, (images, POINTS - images), strict=True):
        found = project(values, points=points, seed=parts.sample_seed)
        outcome = outcomes(run, members or [run], way)
        low = places(run, way)[0]
        best = np.min([places(one, way)[0] for one in members or [run]], axis=0)
        rows = [
            {
                "x": round(float(x), 4),
                "y": round(float(y), 4),
                "outcome": int(outcome[item]),
                "text": _named(parts, way, item),
                "rank": int(low[item]) + 1,
                "best": int(best[item]) + 1,
            }
            for item, (x, y) in zip(found.items.tolist(), found.points, strict=True)
        ]
        # What changed lies above what did not.
        rows.sort(key=lambda row: row["outcome"] != SAME)
        specs[f"map-{way}"] = charts.scatter(rows, fusion=parts.run.name)
        drawn = "" if len(rows) == len(values) else f" {len(rows):,} of {len(values):,}, drawn."
        notes[way] = f"{100 * found.kept:.0f} % of the variance on two axes.{drawn}"
    return specs, notes


def _named(parts: Parts, way: str, item: int) -> str:
    """A query in words: a caption, or an image by its first caption; ids where there is no text."""
    if parts.material is None:
        store = parts.gallery.stores[0]
        side, rows = (
            (store.image, parts.gallery.image_rows)
            if way == "i2t"
            else (store.caption, parts.gallery.caption_rows)
        )
        return side.ids[int(rows[item])][:MOST_TEXT]
    if way == "t2i":
        return parts.material.text(item)[:MOST_TEXT]
    first = int(np.argmax(parts.gallery.caption_to_image == item))
    return f"image of: {parts.material.text(first)[:MOST_TEXT]}"


def _against(parts: Parts) -> dict[str, list[Ranks]]:
    """What the run is compared with, query by query."""
    singles = [parts.ranks[model.name] for model in parts.models]
    best = {ALL_MODELS: singles} if len(singles) > 1 else {}
    shown = (*parts.models, *parts.others)
    return best | {method.name: [parts.ranks[method.name]] for method in shown}
