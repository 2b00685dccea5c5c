"""`from hada.evaluate import recall, report`: what the commands call, light until it is used."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from places import ROOT

import hada.evaluate
from hada.evaluate.cli import evaluate as command
from hada.extract.common.errors import UsageError
from hada.extract.manifest import load_manifest


def test_importing_costs_nothing_until_a_name_is_used() -> None:
    code = (
        "import sys, hada.evaluate\n"
        "heavy = {'torch', 'numpy', 'click', 'PIL', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert {'recall', 'report'} <= set(dir(hada.evaluate)) & set(hada.evaluate.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_modules_of_the_same_names_do_not_take_the_functions_place() -> None:
    """Importing a submodule sets its name in the package."""
    for name, module in (("recall", "results.recall"), ("report", "pages.report")):
        importlib.import_module(f"hada.evaluate.{module}")
        assert callable(getattr(hada.evaluate, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        hada.evaluate.nothing  # noqa: B018


@pytest.mark.parametrize("name", hada.evaluate.__all__)
def test_every_argument_is_documented(name: str) -> None:
    function = getattr(hada.evaluate, name)
    text = inspect.getdoc(function) or ""
    assert "Returns:" in text
    assert "Raises:" in text
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^    {parameter}: [`\w]", text, re.MULTILINE), parameter


def test_the_function_returns_what_the_command_writes(
    report_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(report_project)
    words = ["recall", "--split", "val", "--resamples", "100", "-o", "by-command.json"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    result = hada.evaluate.recall(load_manifest(None), split="val", resamples=100)
    assert json.loads(json.dumps(result)) == json.loads(Path("by-command.json").read_text())
    alone = hada.evaluate.recall(
        load_manifest(None), split="val", runs=(), quick=True, resamples=100
    )
    assert "hada" not in {method["kind"] for method in alone["methods"]}
    with pytest.raises(UsageError, match="needs --rerank"):
        hada.evaluate.recall(load_manifest(None), split="val", rerank_with="one")


def test_the_example_of_the_docs_runs(
    report_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(report_project)
    text = (ROOT / "docs/evaluation.md").read_text()
    code, *_ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    exec(code.replace("runs/flickr8k/mine", "runs/tiny/mine"), names)
    printed = capsys.readouterr().out
    assert re.search(r"^HADA mine +RSum \d", printed, re.MULTILINE)
    assert Path(str(names["page"])).read_text().startswith("<!doctype html>")
