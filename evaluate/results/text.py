"""A result for people: one row a rung, both directions, what is within noise said in words."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from hada.extract.common.terminal import console, in_line
from hada.fuse.ranking.ranks import KS

WAYS = ("i2t", "t2i")


def render(result: dict[str, Any], *, width: int | None = None, colour: bool = False) -> str:
    """The ladder as text, with its protocol above, the notes and verdicts below."""
    from rich.table import Table

    protocol = result["protocol"]
    table = Table(
        title=f"{in_line(protocol['dataset'])}/{in_line(protocol['split'])}: "
        f"{protocol['images']:,} images, {protocol['captions']:,} captions, cosine"
        + (f", mean of {protocol['folds']} folds" if protocol["folds"] > 1 else ""),
        caption="R@K in percent; i2t: image query, captions ranked; t2i: the other way. "
        "[95 % interval], gain over the best single model: paired bootstrap by image.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("", overflow="fold")
    for way in WAYS:
        for k in KS:
            table.add_column(f"{way}\nR@{k}", justify="right", no_wrap=True)
        table.add_column(f"{way}\nmedian", justify="right", no_wrap=True)
        table.add_column(f"{way}\nmean", justify="right", no_wrap=True)
    table.add_column("RSum", justify="right", no_wrap=True)
    table.add_column("gain", justify="right", no_wrap=True)
    for rung in result["rungs"]:
        table.add_row(*_row(rung), style="bold" if rung["kind"] == "hada" else None)
    text = io.StringIO()
    console(file=text, width=width or 132, force_terminal=colour).print(table)
    told = [*notes(result), *verdicts(result)]
    return "\n".join([text.getvalue().rstrip(), *(f"  {in_line(line)}" for line in told)])


def notes(result: dict[str, Any]) -> list[str]:
    """How each rung was made, and what was left out."""
    lines = [f"{rung['name']}: {rung['note']}" for rung in result["rungs"] if rung["note"]]
    if result["protocol"]["left_out_images"]:
        lines.append(f"{result['protocol']['left_out_images']} images could not be read: left out")
    return lines


def verdicts(result: dict[str, Any]) -> list[str]:
    """What the table means: two sentences for every fusion."""
    lines = []
    for rung in result["rungs"]:
        if rung["kind"] != "hada":
            continue
        for gain, what in (
            (rung["gain"], "the best single model"),
            (rung["gain_over_simple"], "the best simple combination"),
        ):
            if gain is not None:
                lines.append(f"{rung['name']} is {_against(gain, what)}")
    return lines


def standing(gain: Mapping[str, Any]) -> str:
    """The verdict on a difference, from its interval (`low`, `high`) alone.

    >>> standing({"low": 0.4, "high": 5.7}), standing({"low": -0.1, "high": 4.0})
    ('above', 'within noise of')
    """
    return "above" if gain["low"] > 0 else "below" if gain["high"] < 0 else "within noise of"


def _against(gain: dict[str, Any], what: str) -> str:
    return (
        f"{standing(gain)} {what}, {gain['over']}: {gain['rsum']:+.1f} RSum, "
        f"95 % interval {gain['low']:+.1f} to {gain['high']:+.1f}, p = {gain['p']:.2g}"
    )


def _row(rung: dict[str, Any]) -> list[str]:
    figures, spread, gain = rung["metrics"], rung["rsum_interval"], rung["gain"]
    cells = [in_line(rung["name"])]
    for way in WAYS:
        cells += [f"{figures[f'{way}_R@{k}']:.1f}" for k in KS]
        cells += [f"{figures[f'{way}_medr']:.0f}", f"{figures[f'{way}_meanr']:.1f}"]
    cells.append(f"{figures['rsum']:.1f} ±{spread['half_width']:.1f}")
    cells.append("" if gain is None else f"{gain['rsum']:+.1f} ±{gain['half_width']:.1f}")
    return cells
