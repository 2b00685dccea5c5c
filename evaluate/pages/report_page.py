"""The page of a run, put together: views behind tabs, one style, no file beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hada.evaluate.pages import charts, page, views
from hada.evaluate.pages.cases import Case
from hada.evaluate.pages.choose import WAYS, counted
from hada.evaluate.pages.document import document
from hada.evaluate.pages.heat import SCALE, heat
from hada.evaluate.pages.look import LEVELS
from hada.evaluate.pages.provenance import provenance
from hada.evaluate.pages.rendering import CHART_SCRIPTS, asset
from hada.evaluate.pages.views import Parts
from hada.evaluate.results.export import as_table
from hada.evaluate.results.paired import paired_differences
from hada.evaluate.results.text import marked

TITLES = {"i2t": "Image query, captions ranked", "t2i": "Caption query, images ranked"}
REASONS = {
    "extreme": "largest changes",
    "drawn": "drawn from wins or losses",
    "any": "random sample",
}
TABS = {
    "comparison": "Comparison",
    "cases": "Cases",
    "changes": "Changes",
    "curves": "Curves",
    "hubs": "Hubs",
    "map": "Map",
}
SCRIPTS = ("view", "charts", "table", "cases")


def assemble(parts: Parts) -> str:
    """The whole page."""
    result, protocol, name = parts.result, parts.result["protocol"], parts.run.name
    trained = views.training_curves(parts.folder)
    changed = {way: views.changes(parts, way) for way in WAYS}
    corrected = views.hub_views(parts)
    maps, map_notes = views.maps(parts)
    anyway = not protocol["p_values"].startswith("withheld")
    data = {
        "fusion": name,
        "models": [model.name for model in parts.models],
        "methods": [
            {
                "name": line["name"],
                "shown": marked(line, protocol),
                "rsum": line["metrics"]["rsum"],
                "fusion": line["kind"] == "hada",
            }
            for line in result["methods"]
        ],
        "differences": rounded(
            paired_differences(
                result,
                resamples=result["resamples"],
                seed=result["seed"],
                p_values_anyway=anyway,
            )
        ),
        "csv": as_table([result], "csv"),
        "outcomes": {str(value): label for value, label in charts.OUTCOME_NAMES.items()},
        "cases": [
            {
                "way": case.way,
                "how": case.how,
                "places": case.places,
                "text": " ".join([case.caption, *case.captions]).lower(),
            }
            for case in parts.cases
        ],
        "charts": {
            "differences": charts.differences(),
            **{f"recall-{way}": spec for way, spec in views.recall_curves(parts).items()},
            **trained,
            **{f"changes-{way}": views.outcome_chart(changed[way]) for way in WAYS},
            **{f"hubs-{n}": spec for n, (_, spec) in enumerate(corrected)},
            **maps,
        },
    }
    return document(
        "report.html",
        title=f"{name} on {protocol['dataset']}/{protocol['split']}",
        style=asset("templates/base.css") + asset("templates/report.css") + _levels(),
        scripts=[
            *map(asset, CHART_SCRIPTS),
            "".join(asset(f"templates/{script}.js") for script in SCRIPTS),
        ],
        headline=page.headline(result, name),
        compared=page.compared(result),
        comparison=page.comparison(result),
        tabs=list(TABS.items()),
        fusion=name,
        cases=parts.cases,
        missing=parts.missing,
        tally=_tally(parts),
        reasons=REASONS,
        against=[method.name for method in (*parts.models, *parts.others)],
        scale=[(f"{t} x", round(LEVELS * float(heat(np.array([t]))[0]))) for t in SCALE],
        meaning=_meaning(parts.cases),
        ways=TITLES,
        outcomes=charts.OUTCOME_NAMES,
        changes=changed,
        trained=trained,
        hubs=[shown for shown, _ in corrected],
        map_notes=map_notes,
        provenance=provenance(parts.folder, result, parts.command, parts.sample_seed),
        data=data,
        pictures=parts.pictures.uris,
    )


def rounded(value: Any, digits: int = 4) -> Any:
    """Plain values with their floats to so many digits behind the point."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, Mapping):
        return {name: rounded(part, digits) for name, part in value.items()}
    return value


def _levels() -> str:
    """The classes of heat on words; full heat lets the word be read."""
    return "".join(
        f".w{level} {{ background: rgb(var(--heat) / {60 * level // LEVELS}%); }}\n"
        for level in range(LEVELS + 1)
    )


def _tally(parts: Parts) -> str:
    """How many queries of the split were won and lost, in one sentence."""
    run = parts.ranks[parts.run.name]
    members = [parts.ranks[model.name] for model in parts.models]
    if not members:
        return ""
    said = []
    for way, counts in counted(run, members).items():
        what = "image queries" if way == "i2t" else "caption queries"
        won, lost = (
            sum(count for outcome, count in counts.items() if sign * outcome > 0)
            for sign in (1, -1)
        )
        said.append(f"of {sum(counts.values()):,} {what} {won:,} were won and {lost:,} lost")
    return f"On the whole split, {'; '.join(said)}."


def _meaning(cases: Sequence[Case]) -> str:
    """What the heat of words and patches is made of; "" where there is none."""
    if not any(case.shown.words or case.shown.heats for case in cases):
        return ""
    matched = any(
        "answered by" in word.tip
        for case in cases
        for words in case.shown.words.values()
        for word in words
    )
    return (
        "a word's is its weight in node matching (a tap says which patch answered it), a patch's "
        "the weight of the words that it answered."
        if matched
        else "the attention of the fusion's global nodes on each model's words and patches."
    )
