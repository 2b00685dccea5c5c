"""Names that others wrote are no formulas of a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from importlib import resources
from typing import Any

import pytest

from hada.evaluate.results.export import as_table
from hada.fuse.ranking.ranks import KS

FORMULAS = ("=1+2", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1+2", '=HYPERLINK("x","y")')
TEXTS = ("clip", "mean of cosines", "a=b", "'=1", "")


def a_result(name: str) -> dict[str, Any]:
    figures = {f"{way}_R@{k}": -1.5 for way in ("i2t", "t2i") for k in KS}
    figures |= {f"{way}_{kind}": 1.0 for way in ("i2t", "t2i") for kind in ("medr", "meanr")}
    data = {"dataset": name, "split": name, "images": 1, "captions": 5, "folds": 1}
    method = {"name": name, "kind": "model", "metrics": {**figures, "rsum": 3.0}}
    return {"protocol": data, "methods": [method]}


@pytest.mark.parametrize("name", [*FORMULAS, *TEXTS])
def test_a_text_that_would_be_a_formula_has_a_mark_in_front(name: str) -> None:
    (row,) = csv.DictReader(io.StringIO(as_table([a_result(name)], "csv"), newline=""))
    want = (f"'{name}" if name in FORMULAS else name).replace("\r", " ")
    assert [row[key] for key in ("dataset", "split", "score")] == [want] * 3
    assert row["i2t_R@1"] == "-1.5", "a number stays one"


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_pages_script_says_the_same() -> None:
    text = (resources.files("hada.evaluate.pages") / "templates/table.js").read_text("utf-8")
    function = text[text.index("function csvCell") : text.index("const CSV")]
    values = json.dumps([*FORMULAS, *TEXTS, -1.5])
    code = f"{function}; console.log(JSON.stringify({values}.map(csvCell)))"
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    cells = [next(iter(csv.reader([cell], strict=True)), [""]) for cell in json.loads(done.stdout)]
    read = [cell[0] if cell else "" for cell in cells]
    assert read == [f"'{name}" for name in FORMULAS] + [*TEXTS, "-1.5"]
