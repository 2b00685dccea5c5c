"""A result as text: one row per method, both directions, and verdicts in words."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from hada.evaluate.results.flattery import flattered
from hada.extract.common.terminal import console, in_line
from hada.fuse.ranking.ranks import KS

WAYS = ("i2t", "t2i")
# Behind the name of a method that saw the split; what it means stands below every table.
MARK = "†"
MEANING = (
    "its parameters saw images of this split, or may have: its figures and intervals flatter it"
)


def render(result: dict[str, Any], *, width: int | None = None, colour: bool = False) -> str:
    """A result as text: its protocol and table, then the notes and verdicts.

    Args:
        result: As `hada.evaluate.recall` returns it.
        width: Columns of the table; None for 132.
        colour: Keep the terminal's codes for bold rows.
    """
    from rich.table import Table

    protocol = result["protocol"]
    table = Table(
        title=f"{in_line(protocol['dataset'])}/{in_line(protocol['split'])}: "
        f"{protocol['images']:,} images, {protocol['captions']:,} captions"
        + (f", mean of {protocol['folds']} folds" if protocol["folds"] > 1 else ""),
        caption="R@K in percent; i2t: image query, captions ranked; t2i: the other way. "
        "[95 % interval], gain over the best single model: paired bootstrap by image."
        + (f" {MARK} {MEANING}." if any_flattered(result) else ""),
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
    apart = False
    for method in result["methods"]:
        if method.get("class") == "transductive" and not apart:
            table.add_section()
            apart = True
        table.add_row(*_row(method, protocol), style="bold" if method["kind"] == "hada" else None)
    text = io.StringIO()
    console(file=text, width=width or 132, force_terminal=colour).print(table)
    lines = [*notes(result), *verdicts(result)]
    return "\n".join([text.getvalue().rstrip(), *(f"  {in_line(line)}" for line in lines)])


def notes(result: dict[str, Any]) -> list[str]:
    """How each method was made, which of them saw the split, and what was left out."""
    protocol = result["protocol"]
    lines = []
    for method in result["methods"]:
        why = flattered(method, protocol)
        parts = [method["note"], f"{MARK} flattered here: {why}" if why else ""]
        if any(parts):
            lines.append(f"{method['name']}: {'; '.join(part for part in parts if part)}")
    lines += efforts(result["methods"])
    # Results of before both were counted have only the images.
    left_out = {what: protocol.get(f"left_out_{what}", 0) for what in ("images", "captions")}
    lines += [
        f"{count} {what} left out: not readable for every model, or nothing readable to match"
        for what, count in left_out.items()
        if count
    ]
    return lines


def efforts(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which methods know more than a query and an item, and what a caption's query costs.

    >>> one = {"name": "x", "class": "bank", "multiply_adds_per_query": {"t2i": 64_000}}
    >>> efforts([one])
    ['class bank (fixed items of train are known, too): x', 'multiply-adds of a t2i query: x 64 k']
    """
    meanings = {
        "bank": "fixed items of train are known, too",
        "transductive": "all queries of the split are known, so it is in no verdict",
    }
    lines = []
    for kind, meaning in meanings.items():
        names = [method["name"] for method in methods if method.get("class") == kind]
        if names:
            lines.append(f"class {kind} ({meaning}): {', '.join(names)}")
    costs = [
        f"{method['name']} {_short(method['multiply_adds_per_query']['t2i'])}"
        for method in methods
        if "multiply_adds_per_query" in method  # results of before it was counted have none
    ]
    return lines + ([f"multiply-adds of a t2i query: {', '.join(costs)}"] if costs else [])


def _short(number: int) -> str:
    """A count with three digits.

    >>> _short(950), _short(64_000), _short(24_120_000)
    ('950', '64 k', '24.1 M')
    """
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def any_flattered(result: dict[str, Any]) -> bool:
    """Whether a method of the result saw its split."""
    return any(flattered(method, result["protocol"]) for method in result["methods"])


def marked(method: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """A method's name, with a mark where its figures are flattered.

    Args:
        method: A method of a result.
        protocol: The result's, which says what flatters.
    """
    name = in_line(method["name"])
    return f"{name} {MARK}" if flattered(method, protocol) else name


def verdicts(result: dict[str, Any]) -> list[str]:
    """What the table means: a sentence for every fusion and what it is compared with.

    There is no verdict where either side saw the split.
    """
    lines = []
    for method in result["methods"]:
        if method["kind"] != "hada":
            continue
        for gain, what in (
            (method["gain"], "the best single model"),
            (method["gain_over_simple"], "the best simple combination"),
        ):
            if gain is not None:
                lines.append(_against(result, method, gain, what))
    return lines


def standing(gain: Mapping[str, Any]) -> str:
    """The verdict on a difference, from its interval (`low`, `high`) alone.

    >>> standing({"low": 0.4, "high": 5.7}), standing({"low": -0.1, "high": 4.0})
    ('above', 'within noise of')
    """
    return "above" if gain["low"] > 0 else "below" if gain["high"] < 0 else "within noise of"


def judged(
    first: str, second: str, gap: Mapping[str, Any], why: Mapping[str, str], more: str = ""
) -> str:
    """A difference in words: a verdict, or why there is none.

    Args:
        first: What is compared.
        second: With what.
        gap: Its `rsum`, `low`, `high` and `p`; p is None where it was withheld.
        why: Name -> why that side is flattered, or "".
        more: What else belongs to the interval.
    """
    reasons = "; ".join(f"{name}: {reason}" for name, reason in why.items() if reason)
    figures = f"{gap['rsum']:+.1f} RSum, 95 % interval {gap['low']:+.1f} to {gap['high']:+.1f}"
    end = f" ({more})" if more else ""
    if gap["p"] is None:
        return (
            f"{first} is not judged against {second}: {figures}, p withheld{end}. Flattered: "
            f"{reasons}. Compare them on a split that neither saw"
        )
    flattery = f". Flattered, so this says little: {reasons}" if reasons else ""
    return f"{first} is {standing(gap)} {second}: {figures}, p = {gap['p']:.2g}{end}{flattery}"


def _against(
    result: dict[str, Any], method: dict[str, Any], gain: dict[str, Any], what: str
) -> str:
    sides = [one for one in result["methods"] if one["name"] in (method["name"], gain["over"])]
    why = {one["name"]: flattered(one, result["protocol"]) for one in sides}
    if any(why.values()) and "p_values" not in result["protocol"]:
        gain = gain | {"p": None}  # a result of before p-values were withheld
    return judged(method["name"], f"{what}, {gain['over']}", gain, why)


def _row(method: dict[str, Any], protocol: Mapping[str, Any]) -> list[str]:
    figures, spread, gain = method["metrics"], method["rsum_interval"], method["gain"]
    cells = [marked(method, protocol)]
    for way in WAYS:
        cells += [f"{figures[f'{way}_R@{k}']:.1f}" for k in KS]
        cells += [f"{figures[f'{way}_medr']:.0f}", f"{figures[f'{way}_meanr']:.1f}"]
    cells.append(f"{figures['rsum']:.1f} ±{spread['half_width']:.1f}")
    cells.append("" if gain is None else f"{gain['rsum']:+.1f} ±{gain['half_width']:.1f}")
    return cells
