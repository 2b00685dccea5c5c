"""The documented example, installed as a package of somebody else, through the command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import makers
import numpy as np
import pytest
from places import ROOT

from hada.extract.store import open_store

pytestmark = pytest.mark.slow

COMMAND = "from hada.extract.cli import extract; extract()"


def example() -> dict[str, str]:
    """File name -> text, from the page."""
    text = (ROOT / "docs" / "own_backbone.md").read_text()
    return dict(re.findall(r"^`([\w.]+)`\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it, as pip installs it."""
    source, target = tmp_path_factory.mktemp("hada-colour"), tmp_path_factory.mktemp("site")
    files = example()
    assert set(files) == {"pyproject.toml", "hada_colour.py", "test_colour.py"}
    for name, text in files.items():
        (source / name).write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    no_network = ["--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *no_network, "--target", str(target), str(source)], check=True)
    return target


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = [str(installed), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", COMMAND, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_through_the_command(installed: Path, tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    result = run(installed, "--model", "mine=colour:v1", "--split", "val")
    assert result.returncode == 0, result.stderr
    store = open_store("stores/tiny/val/mine")
    assert store.spec.model.family == "colour"
    assert store.image.tokens(slice(None)).shape == (5 * 17, 3)
    assert np.isfinite(store.caption.tokens(slice(None))).all()


def test_the_contract_suite_from_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "test_colour.py").write_text(example()["test_colour.py"])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_colour.py"],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= 8


def test_by_module_and_attribute(installed: Path, tmp_path: Path) -> None:
    manifest = makers.make_project(tmp_path)
    text = manifest.read_text().replace(
        "one: {family: fake, weights: a}", "one: {family: 'hada_colour:load', weights: v1}"
    )
    manifest.write_text(text)
    result = run(installed, "--model", "one", "--split", "val")
    assert result.returncode == 0, result.stderr
    assert open_store("stores/tiny/val/one").spec.model.embedding_width == 3


def test_the_error_names_it_among_the_known(installed: Path, tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    result = run(installed, "--model", "mine=color:v1", "--split", "val")
    assert result.returncode == 2
    assert "unknown family 'color'. Did you mean 'colour'? Known: albef, blip," in result.stderr
    assert "Traceback" not in result.stderr


def test_a_module_that_is_not_there(installed: Path, tmp_path: Path) -> None:
    manifest = makers.make_project(tmp_path)
    text = manifest.read_text().replace(
        "one: {family: fake, weights: a}", "one: {family: 'not_there:load', weights: v1}"
    )
    manifest.write_text(text)
    result = run(installed, "--model", "one", "--split", "val")
    assert result.returncode == 2
    assert "not_there" in result.stderr


def test_the_readmes_class(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r'^```python\n("""my_models\.py.*?)^```$', text, re.MULTILINE | re.DOTALL)
    (entry,) = re.findall(r"`mine: (\{family: .*?\})`", text)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "my_models.py").write_text(code)
    manifest = makers.make_project(tmp_path)
    manifest.write_text(f"{manifest.read_text()}  mine: {entry}\n")
    result = run(tmp_path / "path", "--model", "mine", "--split", "val")
    assert result.returncode == 0, result.stderr
    store = open_store("stores/tiny/val/mine")
    images, captions = store.image.embeddings(), store.caption.embeddings()
    assert images is not None
    assert captions is not None
    assert images.shape == (5, 3)
    assert np.isfinite(images).all()
    assert np.allclose(captions.sum(axis=1), 1)
