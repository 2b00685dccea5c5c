"""The comparison of all methods as a page shows it: a verdict, rows, what their columns mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hada.evaluate.pages.rendering import render
from hada.evaluate.results.flattery import flattered
from hada.evaluate.results.paired import FIGURES
from hada.evaluate.results.text import (
    MARK,
    MEANING,
    any_flattered,
    marked,
    notes,
    standing,
    verdicts,
)

COLUMNS = {
    **{
        f"i2t_R@{k}": (
            f"i2t R@{k}",
            f"Image query, captions ranked: percent of the images that have one of their captions "
            f"{'in the first place' if k == 1 else f'among the first {k}'}.",
        )
        for k in (1, 5, 10)
    },
    **{
        f"t2i_R@{k}": (
            f"t2i R@{k}",
            f"Caption query, images ranked: percent of the captions that have their image "
            f"{'in the first place' if k == 1 else f'among the first {k}'}.",
        )
        for k in (1, 5, 10)
    },
    "rsum": (
        "RSum",
        "The sum of the six recalls, in percent points, with half of its 95 % interval.",
    ),
}
GAIN = (
    "gain",
    "RSum minus that of the baseline chosen above, with its 95 % interval. Both are measured on "
    "the same images, so this interval is narrower than those of the two sums: it decides, not "
    "whether the sums' own intervals overlap.",
)
_KINDS = (
    ("frozen model", "frozen models", ("model",)),
    ("simple combination", "simple combinations", ("mean", "weighted", "rrf", "linear", "cca")),
    ("late interaction of stored tokens", "late interactions of stored tokens", ("late",)),
    ("corrected score", "corrected scores", ("corrected", "transductive")),
    ("score of fusions", "scores of fusions", ("hada",)),
    ("re-ranked score", "re-ranked scores", ("itm",)),
)


def comparison(result: Mapping[str, Any]) -> str:
    """The methods of a result as rows of figures, their columns explained, and notes."""
    protocol = result["protocol"]
    return render(
        "comparison.html",
        columns=COLUMNS,
        gain=GAIN,
        rows=[
            {
                "name": marked(method, protocol),
                "plain": method["name"],
                "kind": method["kind"],
                "note": method["note"],
                "class": method.get("class", ""),
                "flattered": flattered(method, protocol),
                "metrics": {name: method["metrics"][name] for name in FIGURES},
                "half_width": method["rsum_interval"]["half_width"],
            }
            for method in result["methods"]
        ],
        baselines=[method["name"] for method in result["methods"]],
        chosen=protocol.get("compared_with") or result["methods"][0]["name"],
        protocol=protocol,
        flattery=f"{MARK} {MEANING}." if any_flattered(dict(result)) else "",
        verdicts=verdicts(dict(result)),
        notes=notes(dict(result)),
    )


def headline(result: Mapping[str, Any], fusion: str) -> str:
    """The verdict on a fusion in one sentence."""
    method = next(one for one in result["methods"] if one["name"] == fusion)
    parts: list[str] = []
    reasons: dict[str, None] = {}
    for gain, what in (
        (method["gain_over_simple"], "the best simple combination"),
        (method["gain"], "the best single model"),
    ):
        if gain is None:
            continue
        spread = f"{gain['low']:+.1f} to {gain['high']:+.1f}"
        figures = f"{gain['rsum']:+.1f} RSum, 95 % interval {spread}"
        place = standing(gain)
        if gain["p"] is None:
            place, reasons = (
                "not judged against",
                reasons | dict.fromkeys(gain["withheld"].split("; ")),
            )
        parts.append(f"{place} {what}, {gain['over']} ({figures})")
    if not parts:
        return f"{fusion} has nothing to be compared with."
    end = f". Flattered on this split: {'; '.join(reasons)}" if reasons else ""
    return f"{fusion} is {' and '.join(parts)}{end}."


def compared(result: Mapping[str, Any]) -> str:
    """What was compared on what, in one sentence."""
    protocol, kinds = result["protocol"], [method["kind"] for method in result["methods"]]
    counts = []
    for one, several, names in _KINDS:
        count = sum(kind in names for kind in kinds)
        if count:
            counts.append(f"{count} {one if count == 1 else several}")
    others = len(kinds) - sum(kind in names for *_, names in _KINDS for kind in kinds)
    counts += [f"{others} others"] if others else []
    return (
        f"Compared on {protocol['dataset']}/{protocol['split']}, {protocol['images']:,} images and "
        f"{protocol['captions']:,} captions: {', '.join(counts)}."
    )
