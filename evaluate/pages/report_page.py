"""The report's HTML: views behind tabs, one style for light and dark, no file beside it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hada.evaluate.pages import page
from hada.evaluate.pages.cases import Case
from hada.evaluate.pages.charts import share_bar
from hada.evaluate.pages.document import document
from hada.evaluate.results.text import verdicts

WAYS = {"i2t": "image queries", "t2i": "caption queries"}

_STYLE = """
:root { --c0: #4a76a8; --c1: #b3561f; --c2: #7a58a8; --c3: #6b6b6b; --c4: #a83a6b; --c5: #2a8a8a;
  --better: #1f6f43; --same: #c3cad1; --worse: #b3361f; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --c0: #7ba6d4; --c1: #e8935e; --c2: #b195dd;
  --c3: #a5a5a5; --c4: #e07aa8; --c5: #5cc4c4; --better: #3fa76d; --same: #3d444d;
  --worse: #e5694f; --card: #161b22; } }
* { box-sizing: border-box; } body { margin-top: 1rem; }
[role=tablist] { display: flex; gap: .25rem; flex-wrap: wrap; border-bottom: 1px solid var(--rule);
  margin: 1rem 0; }
[role=tab] { font: inherit; color: var(--soft); background: none; border: 0; padding: .5rem .6rem;
  border-bottom: 3px solid transparent; cursor: pointer; min-height: 44px; }
[role=tab][aria-selected=true] { color: var(--ink); border-color: var(--hada); font-weight: 600; }
:focus-visible { outline: 3px solid var(--dot); outline-offset: 2px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1.5rem; } figure { margin: 0; } figcaption b { color: var(--ink); }
.legend { list-style: none; padding: 0; margin: .3rem 0; display: flex; flex-wrap: wrap;
  gap: .2rem 1rem; font-size: .9rem; } .key { display: inline-block; width: 1.4rem; height: 0;
  border-top: 3px solid; margin-right: .4rem; vertical-align: middle; }
.line { fill: none; stroke-width: 2; } .line.hada { stroke-width: 3; }
.line.c1, .line.c3 { stroke-dasharray: 7 3; } .line.c2, .line.c4 { stroke-dasharray: 2 3; }
.key.c1, .key.c3 { border-top-style: dashed; } .key.c2, .key.c4 { border-top-style: dotted; }
.hada.line, .hada.key { stroke: var(--hada); border-color: var(--hada); }
.bar { display: block; height: 1.3rem; border-radius: 4px; }
.bar .better { fill: var(--better); } .bar .same { fill: var(--same); }
.bar .worse { fill: var(--worse); } .changes { margin: .2rem 0 1.2rem; font-size: .95rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr));
  gap: 1rem; } .card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: .9rem; min-width: 0; } .card h3 { margin: 0 0 .4rem; font-size: 1.05rem; }
.card p { margin: .3rem 0; font-size: .92rem; }
.strip { display: flex; flex-wrap: wrap; gap: .6rem; margin: .5rem 0; }
.strip figure { width: min(6.6rem, calc((100% - 1.3rem) / 3)); font-size: .8rem; }
.strip figcaption { margin-top: .35rem; line-height: 1.25; overflow-wrap: anywhere; }
.shot { position: relative; aspect-ratio: 1; border-radius: 4px;
  background: var(--rule); overflow: hidden; display: grid; place-items: center; }
.shot.right { outline: 3px solid var(--better); } .shot.wrong { outline: 3px solid var(--worse); }
.shot img { width: 100%; height: 100%; object-fit: contain; display: block; }
.frame { position: relative; border-radius: 4px; overflow: hidden; }
.frame img { display: block; width: 100%; } .frame .heat { position: absolute; inset: 0;
  height: 100%; } .words span { padding: 0 .15em; border-radius: 3px; }
.words { color: var(--ink); }
@media (max-width: 40rem) { [role=tablist] { gap: 0; justify-content: space-between; }
  [role=tab] { font-size: .9rem; padding: .5rem .3rem; } }
"""

_SCRIPT = """
const tabs = [...document.querySelectorAll('[role=tab]')];
function show(tab, focus) {
  for (const other of tabs) {
    const on = other === tab;
    other.setAttribute('aria-selected', on);
    other.tabIndex = on ? 0 : -1;
    document.getElementById(other.getAttribute('aria-controls')).hidden = !on;
  }
  if (focus) tab.focus();
  history.replaceState(null, '', '#view-' + tab.getAttribute('aria-controls'));
}
for (const [number, tab] of tabs.entries()) {
  tab.addEventListener('click', () => show(tab, false));
  tab.addEventListener('keydown', event => {
    const step = {ArrowRight: 1, ArrowLeft: -1, Home: -number, End: tabs.length - 1 - number};
    if (!(event.key in step)) return;
    event.preventDefault();
    show(tabs[(number + step[event.key] + tabs.length) % tabs.length], true);
  });
}
const asked = tabs.find(tab => '#view-' + tab.getAttribute('aria-controls') === location.hash);
show(asked || tabs[0], false);
"""


@dataclass(frozen=True)
class Sections:
    """What the page shows beside the comparison. `changes`: model -> `report.rank_changes`."""

    recall_curves: Sequence[str]
    training_curves: Sequence[str]
    changes: Sequence[tuple[str, dict[str, dict[str, int]]]]
    wins: Sequence[Case]
    losses: Sequence[Case]
    missing: str
    fusion: str


def assemble(result: dict[str, Any], sections: Sections) -> str:
    """The whole page."""
    protocol = result["protocol"]
    title = f"{sections.fusion} on {protocol['dataset']}/{protocol['split']}"
    views = [
        ("comparison", "Comparison", page.comparison(result)),
        ("curves", "Curves", _curves(sections)),
        ("changes", "Changes", _changes(sections)),
        ("won", f"Won ({len(sections.wins)})", _cases(sections.wins, sections, won=True)),
        ("lost", f"Lost ({len(sections.losses)})", _cases(sections.losses, sections, won=False)),
    ]
    tabs = "".join(
        f'<button role="tab" id="tab-{name}" aria-controls="{name}" aria-selected="false">'
        f"{html.escape(label)}</button>"
        for name, label, _ in views
    )
    panels = "".join(
        f'<section role="tabpanel" id="{name}" aria-labelledby="tab-{name}">{body}</section>'
        for name, _, body in views
    )
    verdict_lines = "".join(f"<p>{html.escape(line)}.</p>" for line in verdicts(result))
    return document(
        title,
        style=f"{page.STYLE}{_STYLE}{_series()}",
        body=f"""<h1>{html.escape(title)}</h1>
{verdict_lines}
<div role="tablist" aria-label="Views">{tabs}</div>
{panels}""",
        script=_SCRIPT,
    )


def _series() -> str:
    return "".join(
        f".line.c{n} {{ stroke: var(--c{n}); }} .key.c{n} {{ border-color: var(--c{n}); }}\n"
        for n in range(6)
    ) + "".join(f".w{n} {{ background: rgb(255 96 0 / {n}%); }}\n" for n in range(61))


def _curves(sections: Sections) -> str:
    training = ""
    if sections.training_curves:
        training = f"<h2>Training</h2><div class=charts>{''.join(sections.training_curves)}</div>"
    return (
        f"<h2>Recall at K</h2><div class=charts>{''.join(sections.recall_curves)}</div>{training}"
    )


def _changes(sections: Sections) -> str:
    parts = [
        "<h2>Ranks that changed</h2><p>Every query, under the fusion against each model alone: "
        "how many find their match at a better, the same or a worse place.</p>"
    ]
    for model, ways in sections.changes:
        parts.append(f"<h3>Against {html.escape(model)}</h3>")
        for way, counts in ways.items():
            names = ("better", "same", "worse")
            bar = share_bar([(name, counts[name], name) for name in names])
            counted = ", ".join(f"{counts[name]:,} {name}" for name in names)
            parts.append(
                f"<b>{WAYS[way]}</b>{bar}<p class=changes>{counted}; {counts['into_first']:,} came "
                f"to the first place, {counts['out_of_first']:,} left it</p>"
            )
    return "".join(parts)


def _cases(cases: Sequence[Case], sections: Sections, *, won: bool) -> str:
    if not cases:
        return f"<p>{html.escape(sections.missing or 'None.')}</p>"
    what = "gained" if won else "lost"
    head = (
        f"<h2>Captions that {what} most</h2><p>Against the best single model, by the ratio of "
        "ranks. These are extremes, chosen to be looked at, not a sample. "
        f"{_HEAT[any(case.answers for case in cases)]}</p>"
    )
    return f"{head}<div class=cards>{''.join(map(_card, cases))}</div>"


# Whether nodes are matched -> what the colours mean.
_HEAT = {
    False: "Heat: attention of the fusion's global nodes on each model's patches and words, redder "
    "where there is more.",
    True: "Heat: node-to-node matching. A word is redder the more it weighs, a patch the more of "
    "the caption it answers; a word's title says which patch answered it.",
}


def _card(case: Case) -> str:
    ranks = ", ".join(f"{html.escape(name)} <b>{rank:,}</b>" for name, rank in case.ranks.items())
    first = "".join(
        f'<figure><div class="shot {"right" if right else "wrong"}"><img src="{uri}" '
        f'alt="Ranked first by {html.escape(name)}"></div><figcaption>{html.escape(name)}: '
        f"{'right' if right else 'wrong'}</figcaption></figure>"
        for name, uri, right in case.first
    )
    heats = "".join(
        f'<figure><div class=frame><img src="{heat.image}" alt=""><img class=heat '
        f'src="{heat.overlay}" alt="Heat on the patches of {html.escape(heat.model)}"></div>'
        f"<figcaption>{html.escape(heat.model)}'s patches</figcaption></figure>"
        for heat in case.heats
    )
    words = "".join(
        f"<p class=words>{html.escape(model)}: {_weighted_words(weights, case.answers.get(model))}"
        "</p>"
        for model, weights in case.words.items()
    )
    return (
        f"<article class=card><h3>{html.escape(case.caption)}</h3><p>Rank of its image: {ranks}"
        f'</p><div class=strip><figure><div class="shot"><img src="{case.image}" '
        f'alt="The caption\'s own image"></div><figcaption>its own image</figcaption></figure>'
        f"{heats}</div>{words}<p>Ranked first by</p><div class=strip>{first}</div></article>"
    )


def _weighted_words(
    words: Sequence[tuple[str, float]], answers: Sequence[str] | None = None
) -> str:
    most = max((weight for _, weight in words), default=0.0) or 1.0
    titles = [
        f"{100 * weight:.1f} % of the attention"
        if answers is None
        else f"{100 * weight:.1f} % of the weight, answered by {answers[number]}"
        for number, (_, weight) in enumerate(words)
    ]
    return " ".join(
        f'<span class="w{60 * max(weight, 0.0) / most:.0f}" '
        f'title="{html.escape(title)}">{html.escape(word)}</span>'
        for (word, weight), title in zip(words, titles, strict=True)
    )
