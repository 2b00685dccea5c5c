"""Several results as one table to paste: Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from hada.evaluate.results.flattery import flattered
from hada.evaluate.results.text import MARK, MEANING, marked
from hada.extract.common.terminal import in_line
from hada.fuse.ranking.ranks import KS

_FIGURES = [f"{way}_R@{k}" for way in ("i2t", "t2i") for k in KS]
# What a text begins with that spreadsheets compute; full-width signs count for some.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def as_table(results: Sequence[dict[str, Any]], form: str) -> str:
    """One row per method, result after result.

    Args:
        results: As `hada.evaluate.results.read.read_result` returns them.
        form: `md`, `csv` or `latex`. CSV is not rounded and has median and mean ranks too.

    Returns:
        The table. A method that saw its split is marked, with the reason below; CSV has a column.
    """
    rows = [(result["protocol"], method) for result in results for method in result["methods"]]
    return {"md": _markdown, "csv": _csv, "latex": _latex}[form](rows)


def _where(protocol: dict[str, Any]) -> str:
    folds = f", {protocol['folds']} folds" if protocol["folds"] > 1 else ""
    return f"{protocol['dataset']} {protocol['split']}{folds}"


def _cells(method: dict[str, Any]) -> list[str]:
    figures = method["metrics"]
    spread = method["rsum_interval"]["half_width"]
    return [f"{figures[name]:.1f}" for name in _FIGURES] + [f"{figures['rsum']:.1f} ± {spread:.1f}"]


def _markdown(rows: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    head = ["data", "score", *(name.replace("_", " ") for name in _FIGURES), "RSum"]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for protocol, method in rows:
        name = marked(method, protocol).replace("|", "\\|")
        bold = "**" if method["kind"] == "hada" else ""
        lines.append([_where(protocol), f"{bold}{name}{bold}", *_cells(method)])
    footer = ["", f"{MARK} {_reasons(rows)}"] if _reasons(rows) else []
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *footer])


def _reasons(rows: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """The line below a table, "" where no method is marked."""
    reasons = {
        f"{method['name']} on {_where(protocol)}: {why}"
        for protocol, method in rows
        for why in [flattered(method, protocol)]
        if why
    }
    return in_line(f"{MEANING} ({'; '.join(sorted(reasons))})") if reasons else ""


def _csv(rows: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    text = io.StringIO()
    names = [*_FIGURES, "i2t_medr", "i2t_meanr", "t2i_medr", "t2i_meanr", "rsum"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["dataset", "split", "images", "captions", "folds", "score", "kind", *names, "flattered"]
    )
    for protocol, method in rows:
        data = [protocol[name] for name in ("dataset", "split", "images", "captions", "folds")]
        figures = (method["metrics"][n] for n in names)
        why = flattered(method, protocol)
        row = [*data, method["name"], method["kind"], *figures, why]
        writer.writerow([as_cell(value) if isinstance(value, str) else value for value in row])
    return text.getvalue().rstrip("\n")


def as_cell(text: str) -> str:
    """A text that a spreadsheet takes for a text: one that would be a formula has a mark in front.

    A carriage return, which the writer does not quote, becomes a space.

    >>> as_cell("=1+2"), as_cell("clip"), as_cell("-")
    ("'=1+2", 'clip', "'-")
    """
    return ("'" if text.startswith(_FORMULA) else "") + text.replace("\r", " ")


def _latex(rows: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{llrrrrrrr}",
        r"\toprule",
        r"& & \multicolumn{3}{c}{image to text} & \multicolumn{3}{c}{text to image} & \\",
        rf"data & score & {' & '.join(f'R@{k}' for _ in range(2) for k in KS)} & RSum \\",
        r"\midrule",
    ]
    for protocol, method in rows:
        *figures, rsum = _cells(method)
        cells = [*figures, rsum.replace("±", r"$\pm$")]
        name = _escaped(method["name"])
        name = rf"\textbf{{{name}}}" if method["kind"] == "hada" else name
        name += r"$^\dagger$" if flattered(method, protocol) else ""
        lines.append(rf"{_escaped(_where(protocol))} & {name} & {' & '.join(cells)} \\")
    reasons = _escaped(_reasons(rows))
    # Inside the tabular, so that it goes where the table goes.
    cell = r"\multicolumn{9}{p{0.95\linewidth}}"
    footer = [rf"{cell}{{\footnotesize $^\dagger$ {reasons}}} \\"] if reasons else []
    return "\n".join([*lines, r"\bottomrule", *footer, r"\end{tabular}"])


def _escaped(text: str) -> str:
    for character in "\\&%$#_{}":
        text = text.replace(
            character, r"\textbackslash " if character == "\\" else f"\\{character}"
        )
    return text
