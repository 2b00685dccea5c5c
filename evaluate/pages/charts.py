"""The charts of a page as Vega-Lite specifications: plain values, drawn by the page's script.

Colours are names of the style sheet's variables after a `$`, which the script replaces by their
values for light or dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hada.evaluate.pages.choose import INTO_TEN, OUT_OF_FIRST, OUT_OF_TEN, SAME, TO_FIRST

Spec = dict[str, Any]
OUTCOME_NAMES = {
    TO_FIRST: "to the first place",
    INTO_TEN: "into the first ten",
    SAME: "no such change",
    OUT_OF_TEN: "out of the first ten",
    OUT_OF_FIRST: "from the first place",
}
_OUTCOME_COLOURS = ("$better", "$better-soft", "$same", "$worse-soft", "$worse")
_SERIES = ("$c0", "$c1", "$c2", "$c3", "$c4", "$c5")
_DASHES = ([1, 0], [7, 3], [2, 3], [9, 3, 2, 3])
POINT = ("x", "y", "outcome", "text", "rank", "best")
# Pixels of a row that has its name above its mark, so that a phone shows both whole.
_ROW = 44


@dataclass(frozen=True)
class Line:
    """A named curve; the fusion's stands out."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    fusion: bool = False


def line_chart(
    lines: Sequence[Line], *, x_label: str, y_label: str, log_x: bool = False, digits: int = 1
) -> Spec:
    """Curves with their values on hover; a tap on a name in the legend shows it alone."""
    names = [line.name for line in lines]
    others = [line.name for line in lines if not line.fusion]
    colours = [
        "$hada" if line.fusion else _SERIES[others.index(line.name) % len(_SERIES)]
        for line in lines
    ]
    rows = [
        {"name": line.name, "x": x, "y": y}
        for line in lines
        for x, y in zip(line.xs, line.ys, strict=True)
    ]
    x: Spec = {"field": "x", "type": "quantitative", "title": x_label}
    x["axis"] = {"grid": False, "tickCount": 8, "format": "d"}
    if log_x:
        x["scale"] = {"type": "log", "nice": False}
        x["axis"] |= {"values": [1, 2, 5, 10, 20, 50]}
    scale = {"domain": names, "range": colours}
    dashes = [[1, 0] if line.fusion else _DASHES[n % len(_DASHES)] for n, line in enumerate(lines)]
    return {
        "width": "container",
        "height": 260,
        "data": {"values": rows},
        "encoding": {
            "x": x,
            "y": {
                "field": "y",
                "type": "quantitative",
                "title": y_label,
                "scale": {"zero": False},
                "axis": {"tickCount": 6},
            },
            "color": {"field": "name", "type": "nominal", "title": None, "scale": scale},
            "opacity": {"condition": {"param": "named", "value": 1}, "value": 0.12},
        },
        "layer": [
            {
                "params": [{"name": "named", "select": _by("name"), "bind": "legend"}],
                "mark": {"type": "line", "strokeWidth": 2.5},
                "encoding": {
                    "strokeDash": {
                        "field": "name",
                        "title": None,
                        "scale": {"domain": names, "range": dashes},
                    }
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 36},
                "encoding": {
                    "tooltip": [
                        {"field": "name", "title": "method"},
                        {"field": "x", "title": x_label.partition(",")[0]},
                        {"field": "y", "title": y_label, "format": f".{digits}f"},
                    ]
                },
            },
        ],
    }


def differences() -> Spec:
    """RSum of every method minus a baseline's, with intervals; the script puts in the rows.

    A row has `name`, `value`, `low`, `high`, `interval`, `rsum` and `fusion`.
    """
    return {
        "width": "container",
        "height": {"step": _ROW},
        "data": {"values": []},
        "encoding": {
            "y": {"field": "name", "type": "nominal", "sort": None, "axis": None},
            "color": {
                "field": "fusion",
                "type": "nominal",
                "legend": None,
                "scale": {"domain": [True, False], "range": ["$hada", "$dot"]},
            },
            "tooltip": [
                {"field": "name", "title": "method"},
                {"field": "value", "title": "difference in RSum", "format": "+.1f"},
                {"field": "interval", "title": "95 % interval"},
                {"field": "rsum", "title": "its RSum", "format": ".1f"},
            ],
        },
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {"x": {"datum": 0}, "color": {"value": "$soft"}, "y": None},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 2.5, "yOffset": 9},
                "encoding": {
                    "x": {
                        "field": "low",
                        "type": "quantitative",
                        "title": "difference in RSum, percent points",
                        "axis": {"format": "+d", "tickCount": 7},
                    },
                    "x2": {"field": "high"},
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 120, "yOffset": 9},
                "encoding": {"x": {"field": "value", "type": "quantitative"}},
            },
            _text("name", 2, "$ink"),
            _text("rsum", "width", "$soft", align="right", format=".1f"),
        ],
    }


def outcome_bars(counts: Mapping[str, Mapping[int, int]]) -> Spec:
    """Shares of queries by outcome, one bar for everything that the fusion is compared with."""
    order = {outcome: number for number, outcome in enumerate(OUTCOME_NAMES)}
    rows = [
        {"name": name, "outcome": OUTCOME_NAMES[outcome], "count": count, "order": order[outcome]}
        for name, by_outcome in counts.items()
        for outcome, count in by_outcome.items()
    ]
    return {
        "width": "container",
        "height": {"step": _ROW},
        "data": {"values": rows},
        "encoding": {"y": {"field": "name", "type": "nominal", "sort": None, "axis": None}},
        "layer": [
            {
                "params": [{"name": "named", "select": _by("outcome"), "bind": "legend"}],
                "mark": {"type": "bar", "height": 16, "yOffset": 9},
                "encoding": {
                    "x": {
                        "field": "count",
                        "type": "quantitative",
                        "stack": "normalize",
                        "title": "share of the queries",
                        "axis": {"format": "%", "tickCount": 5},
                    },
                    "order": {"field": "order"},
                    "color": _by_outcome(),
                    "opacity": {"condition": {"param": "named", "value": 1}, "value": 0.15},
                    "tooltip": [
                        {"field": "name", "title": "against"},
                        {"field": "outcome", "title": "the fusion brought a match"},
                        {"field": "count", "title": "queries", "format": ","},
                    ],
                },
            },
            {
                "transform": [{"filter": f"datum.order === {order[SAME]}"}],
                **_text("name", 2, "$ink"),
            },
        ],
    }


def scatter(rows: Sequence[Mapping[str, Any]], *, fusion: str) -> Spec:
    """Points of the fused space by outcome; a row has x, y, outcome, text, rank and best.

    There are thousands, so the data is columns, and an outcome its number; the script makes rows.
    """
    axis = {"labels": False, "ticks": False, "grid": False, "domain": False}
    shift = "[pointerdown[event.shiftKey], window:pointerup] > window:pointermove!"
    return {
        "width": "container",
        "height": 420,
        "data": {"columns": {name: [row[name] for row in rows] for name in POINT}},
        "params": [
            {"name": "named", "select": _by("outcome"), "bind": "legend"},
            # Without Shift, a wheel and a finger scroll the page.
            {
                "name": "view",
                "bind": "scales",
                "select": {
                    "type": "interval",
                    "zoom": "wheel![event.shiftKey]",
                    "translate": shift,
                },
            },
        ],
        "mark": {"type": "point", "filled": True},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": "first component", "axis": axis},
            "y": {"field": "y", "type": "quantitative", "title": "second component", "axis": axis},
            "color": _by_outcome(),
            "size": {
                "condition": {"test": f"datum.outcome !== '{OUTCOME_NAMES[SAME]}'", "value": 55},
                "value": 18,
            },
            "opacity": {"condition": {"param": "named", "value": 0.85}, "value": 0.05},
            "tooltip": [
                {"field": "text", "title": "query"},
                {"field": "rank", "title": f"rank under {fusion}", "format": ","},
                {"field": "best", "title": "best rank of a single model", "format": ","},
                {"field": "outcome", "title": "the fusion brought a match"},
            ],
        },
        "usermeta": {"renderer": "canvas"},
    }


def _text(field: str, x: int | str, colour: str, *, align: str = "left", **form: str) -> Spec:
    """A field above the mark of its row."""
    return {
        "mark": {"type": "text", "align": align, "baseline": "middle", "dy": -10},
        "encoding": {
            "x": {"value": x},
            "text": {"field": field, **form},
            "color": {"value": colour},
        },
    }


def _by(field: str) -> Spec:
    return {"type": "point", "fields": [field]}


def _by_outcome() -> Spec:
    return {
        "field": "outcome",
        "type": "nominal",
        "title": None,
        "scale": {"domain": [*OUTCOME_NAMES.values()], "range": [*_OUTCOME_COLOURS]},
    }
