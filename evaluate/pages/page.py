"""What HTML pages share: their style, and the comparison of all methods as a plot and a table.

No server, no network, no script: a page opens from a file, on a phone too, light or dark.
"""

from __future__ import annotations

import html
from typing import Any

from hada.evaluate.results.text import MARK, MEANING, any_flattered, marked, notes
from hada.fuse.ranking.ranks import KS

# Pixels of the drawing: narrow, with names above their whiskers, so that a phone shows it whole.
_ROW_HEIGHT, _PLOT_WIDTH = 44, 440

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --paper: #fff;
  --rule: #d1d9e0; --dot: #4a76a8; --hada: #1f6f43; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --paper: #0d1117;
  --rule: #3d444d; --dot: #7ba6d4; --hada: #3fa76d; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p, li, figcaption { color: var(--soft); } svg { width: 100%; height: auto; }
.plot svg { max-width: 38rem; }
.scroll { overflow-x: auto; } .flush { margin: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; } th:first-child, td:first-child { text-align: left; }
tr.hada td { font-weight: 600; } text { fill: var(--ink); font: 14px system-ui, sans-serif; }
.axis { stroke: var(--rule); } .tick { fill: var(--soft); font-size: 12px; }
.dot { fill: var(--dot); } .dot.hada { fill: var(--hada); }
.whisker { stroke: var(--soft); stroke-width: 2; }
@media (max-width: 40rem) { table { font-size: .85rem; } th, td { padding: .3rem .4rem; }
  td:first-child { white-space: normal; min-width: 5.5rem; position: sticky; left: 0;
  background: var(--paper); } }
"""


def comparison(result: dict[str, Any]) -> str:
    """The methods of a result as plot, table and notes, for the body of a page."""
    protocol = result["protocol"]
    facts = (
        f"{protocol['images']:,} images, {protocol['captions']:,} captions. "
        f"Score: {protocol['score']}. Intervals: {protocol['intervals']}. Ties: {protocol['ties']}."
    )
    flattery = f"<p>{MARK} {MEANING}.</p>" if any_flattered(result) else ""
    made = "".join(f"<li>{html.escape(line)}</li>" for line in notes(result))
    return f"""<p>{html.escape(facts)}</p>
<h2>RSum of every method</h2>
<figure class="flush"><div class="plot">{plot(result)}</div>
<figcaption>RSum: the sum of R@1, R@5 and R@10 in both directions, in percent points.
Whiskers: 95 % intervals.</figcaption></figure>
<h2>All figures</h2>
<div class="scroll" tabindex="0" role="region" aria-label="All figures">{_table(result)}</div>
{flattery}
<h2>How each was made</h2>
<ul>{made}</ul>
"""


def plot(result: dict[str, Any]) -> str:
    """The RSum of every method as an SVG: one dot each, with 95 % whiskers."""
    methods = result["methods"]
    low = min(method["rsum_interval"]["low"] for method in methods)
    high = max(method["rsum_interval"]["high"] for method in methods)
    room = max((high - low) * 0.15, 1.0)
    left = max(0.0, low - room)
    scale = (_PLOT_WIDTH - 60) / (high + room / 4 - left)

    def x(value: float) -> float:
        return float(4 + (value - left) * scale)

    height = _ROW_HEIGHT * len(methods) + 30
    parts = [_ticks(left, high, x, height - 26)]
    for number, method in enumerate(methods):
        middle = number * _ROW_HEIGHT + 29
        spread, value = method["rsum_interval"], method["metrics"]["rsum"]
        name = marked(method, result["protocol"])
        kind = " hada" if method["kind"] == "hada" else ""
        parts.append(
            f'<text x="0" y="{middle - 13}">{html.escape(_short(name, 48))}</text>'
            f'<line class="whisker" x1="{x(spread["low"]):.1f}" x2="{x(spread["high"]):.1f}" '
            f'y1="{middle}" y2="{middle}"/>'
            f'<circle class="dot{kind}" cx="{x(value):.1f}" cy="{middle}" r="7">'
            f"<title>{html.escape(method['name'])}: {value:.1f}, "
            f"{spread['low']:.1f} to {spread['high']:.1f}</title></circle>"
            f'<text x="{x(spread["high"]) + 6:.1f}" y="{middle + 5}">{value:.1f}</text>'
        )
    label = "RSum of every method with its 95 % interval"
    return (
        f'<svg viewBox="0 0 {_PLOT_WIDTH} {height}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _ticks(left: float, right: float, x: Any, bottom: int) -> str:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200) if (right - left) / s <= 8)
    first = int(left // step + 1) * step
    return "".join(
        f'<line class="axis" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="0" y2="{bottom}"/>'
        f'<text class="tick" x="{x(value):.1f}" y="{bottom + 18}" text-anchor="middle">{value}'
        "</text>"
        for value in range(first, int(right) + 1, step)
    )


def _table(result: dict[str, Any]) -> str:
    ways = [(way, k) for way in ("i2t", "t2i") for k in KS]
    head = "".join(f"<th>{way} R@{k}</th>" for way, k in ways)
    rows = []
    for method in result["methods"]:
        cells = "".join(f"<td>{method['metrics'][f'{way}_R@{k}']:.1f}</td>" for way, k in ways)
        gain = method["gain"]
        gain_text = "" if gain is None else f"{gain['rsum']:+.1f} ± {gain['half_width']:.1f}"
        rows.append(
            f'<tr class="{html.escape(method["kind"])}">'
            f"<td>{html.escape(marked(method, result['protocol']))}</td>{cells}"
            f"<td>{method['metrics']['rsum']:.1f} ± "
            f"{method['rsum_interval']['half_width']:.1f}</td>"
            f"<td>{gain_text}</td></tr>"
        )
    return (
        f"<table><thead><tr><th></th>{head}<th>RSum</th><th>gain</th></tr>"
        f"</thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _short(name: str, limit: int = 28) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
