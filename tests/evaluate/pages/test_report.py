"""The page of a run: what it holds and that it needs nothing else."""

from __future__ import annotations

import hashlib
import html as html_module
import html.parser
import json
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from hada.evaluate.cli import evaluate as command
from hada.evaluate.methods.build import build
from hada.evaluate.methods.request import Request
from hada.evaluate.pages import attention, charts
from hada.evaluate.pages.look import words_of
from hada.evaluate.pages.rendering import CHART_SCRIPTS, asset
from hada.evaluate.pages.report import write_page
from hada.evaluate.pages.views import recall_curve
from hada.evaluate.results.measure import measure
from hada.extract.manifest import load_manifest
from hada.extract.store import open_store
from hada.fuse.cli import fuse
from hada.fuse.ranking.ranks import rank_positives, recalls
from hada.fuse.run_folder import RunFolder
from hada.fuse.tokens.split import Split

MODELS = ("one", "two")


@pytest.fixture
def project(report_project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(report_project)
    return report_project


class Reader(html.parser.HTMLParser):
    """Counts tags, and collects what they point to."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.blocks: dict[str, Any] = {}

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        values = dict(attrs)
        self.links += [values[name] for name in ("src", "href") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        assert not [name for name in values if name.startswith("on") or name == "style"]
        if tag == "img":
            assert "alt" in values
        if tag not in ("img", "meta", "link", "br", "input"):
            self.open.append(tag)
        self.json = values.get("id", "") if values.get("type") == "application/json" else ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.json and self.open[-1] == "script":
            self.blocks[self.json] = json.loads(data)
        elif self.open and self.open[-1] in self.inside:
            self.inside[self.open[-1]].append(data)


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text())
    return reader


def test_the_page_is_whole_and_needs_nothing_else(report_page: Path) -> None:
    text = report_page.read_text()
    reader = read(report_page)
    assert reader.open == []
    assert len(set(reader.ids)) == len(reader.ids)
    pictures = reader.blocks["page-pictures"]
    assert reader.links
    assert pictures
    assert all(link.startswith("data:image/") for link in (*reader.links, *pictures))
    libraries = [asset(name) for name in CHART_SCRIPTS]
    assert reader.inside["script"][:3] == libraries
    rest = text
    for library in libraries:
        rest = rest.replace(library, "")
    assert "http:" not in rest
    assert "https:" not in rest
    assert {"comparison", "cases", "changes", "curves", "hubs", "map"} <= set(reader.ids)
    assert "Training loss" in text
    without = len(text) - sum(map(len, pictures))
    assert without < 1_500_000


def test_a_case_is_the_truth_of_the_ranks(report_page: Path) -> None:
    """Every win's first result is right where the win is one of the first place, and so on."""
    data = read(report_page).blocks["page-data"]
    run, models = data["fusion"], data["models"]
    assert len(data["cases"]) == 60  # all queries of the split
    assert {case["way"] for case in data["cases"]} == {"i2t", "t2i"}
    cards = report_page.read_text().split('<article class="card"')[1:]
    for case, card in zip(data["cases"], cards, strict=True):
        for name in (run, *models):
            low, high = case["places"][name]
            assert 1 <= low <= high
            said = f"{name}: right" if case["way"] == "t2i" else f"✓ {name}:"
            wrong = f"{name}: wrong" if case["way"] == "t2i" else f"✗ {name}, wrong:"
            if high == 1:
                assert said in card
            if low > 1:
                assert wrong in card


def test_the_figures_of_the_page_are_those_of_the_result(report_page: Path) -> None:
    data = read(report_page).blocks["page-data"]
    assert set(data["differences"]) == {method["name"] for method in data["methods"]}
    rsums = {method["name"]: method["rsum"] for method in data["methods"]}
    for base, gaps in data["differences"].items():
        for name, gap in gaps.items():
            assert gap["rsum"]["value"] == pytest.approx(rsums[name] - rsums[base], abs=1e-3)
            assert gap["rsum"]["low"] <= gap["rsum"]["high"]
            parts = sum(part["value"] for figure, part in gap.items() if figure != "rsum")
            assert parts == pytest.approx(gap["rsum"]["value"], abs=1e-2)
    assert data["csv"].splitlines()[0].startswith("dataset,split")
    assert len(data["csv"].splitlines()) == 1 + len(data["methods"])


def test_provenance_names_the_command_the_digests_and_the_seeds(
    report_project: Path, report_page: Path
) -> None:
    text = report_page.read_text()
    drawer = html_module.unescape(text[text.index('<dialog id="provenance"') :])
    assert "hada-evaluate report runs/tiny/mine --split val --seed 0 --resamples 200" in drawer
    assert open_store(report_project / "stores/tiny/val/one").spec.digest() in drawer
    weights = report_project / "runs/tiny/mine/best.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in drawer
    assert '"heads": 1' in drawer
    assert str(report_project) not in text  # no path of this machine


def test_without_the_pictures_the_page_says_so(project: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "page.html"
    (project / "data").rename(project / "data-gone")
    try:
        words = ["report", "runs/tiny/mine", "--split", "val", "--quick", "--resamples", "200"]
        result = CliRunner().invoke(command, [*words, "-o", str(elsewhere)])
    finally:
        (project / "data-gone").rename(project / "data")
    assert result.exit_code == 0, result.output
    assert "No images: dataset &#39;tiny&#39;: its folder" in elsewhere.read_text()


def test_a_run_with_nothing_beside_it_has_a_page_too(project: Path, tmp_path: Path) -> None:
    """As where no model has a joint space: nothing to compare with, no case, no hub."""
    manifest, run = load_manifest(None), RunFolder("runs/tiny/mine")
    request = Request(dataset="tiny", split="val", runs=(run.path,), quick=True)
    gallery, methods = build(manifest, request)
    alone = [method for method in methods if method.kind == "hada"][-1:]
    result = measure(gallery, alone, resamples=100)
    page = write_page(
        tmp_path / "page.html", manifest, run, gallery, alone, result, command="hada <b>"
    )
    text = page.read_text()
    assert "HADA mine has nothing to be compared with." in text
    assert "No model of this run has a score of its own to compare with." in text
    assert "hada &lt;b&gt;" in text
    data = read(page).blocks["page-data"]
    assert data["differences"] == {"HADA mine": {}}
    assert data["cases"] == []
    assert "map-t2i" in data["charts"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    result = CliRunner().invoke(command, ["report", "nowhere", "--split", "val"])
    assert result.exit_code == 2
    assert "no training run there" in result.stderr


def test_attention_is_what_the_graph_gives(project: Path, tmp_path: Path) -> None:
    words = ("train", "--recipe", "pooled", "--epochs", "1", "--set", "heads=1")
    assert CliRunner().invoke(fuse, [*words, "--run", str(tmp_path / "run")]).exit_code == 0
    stores = [open_store(f"stores/tiny/val/{name}") for name in MODELS]
    split = Split(stores)
    fuser, _ = RunFolder(tmp_path / "run").load_best()
    items = np.array([3, 0, 5])
    for side, branch in (("image", fuser.image), ("caption", fuser.caption)):
        found = attention.attention(fuser, split, side, items)  # type: ignore[arg-type]
        features = split.features(side, items).to("cpu")  # type: ignore[arg-type]
        nodes = branch.nodes(features)
        with torch.no_grad():
            whole = branch.graph.attention(nodes, features.layouts)  # type: ignore[union-attr]
        for item in range(len(items)):
            assert sum(part.sum() for part in found[item]) == pytest.approx(1, abs=1e-5)
        # By hand from weights and keys: with one head, the mean over the global nodes.
        keys = [branch.graph.attention.lin_l(x) for x in nodes]  # type: ignore[union-attr]
        starts = [np.cumsum(la.lengths_B.numpy()) - la.lengths_B.numpy() for la in features.layouts]
        for item in range(len(items)):
            total = sum(
                torch.from_numpy(part).float() @ key[starts[m][item] : starts[m][item] + len(part)]
                for m, (part, key) in enumerate(zip(found[item], keys, strict=True))
            )
            expected = whole[item].mean(0) - branch.graph.attention.bias  # type: ignore[union-attr]
            torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-4)


def test_words_take_the_weight_of_their_tokens() -> None:
    class Pieces:
        """Three letters a token, with a mark on both sides."""

        class spec:  # noqa: N801
            caption = None

        @staticmethod
        def tokenize(captions: list[str]) -> list[list[int]]:
            return [
                [0, *(1 for w in c.split() for _ in range(-(-len(w) // 3))), 2] for c in captions
            ]

    weights = np.array([0.1, 0.2, 0.05, 0.05, 0.3, 0.3])
    spans = attention.word_spans("red triangle", 6, Pieces)
    assert spans == [("red", 1, 2), ("triangle", 2, 5)]
    assert attention.word_spans("red", 6, Pieces) is None
    words = words_of(spans, weights)
    # 0.2 and 0.4 of 0.6, of which one token and three are due 0.15 and 0.45.
    assert [word.tip for word in words] == ["1.3 times uniform", "0.9 times uniform"]
    assert [word.text for word in words] == ["red", "triangle"]
    assert words[0].level > 0
    assert words[1].level == 0


def test_a_curve_is_that_of_the_ranks() -> None:
    random = np.random.default_rng(0)
    caption_to_image = np.repeat(np.arange(20), 2)
    image, caption = random.normal(size=(20, 4)), random.normal(size=(40, 4))
    two = rank_positives(image, caption + image[caption_to_image], caption_to_image)
    curve = recall_curve(two, "t2i", [1, 5, 20])
    assert curve[0] == pytest.approx(recalls(two)["t2i_R@1"])
    assert curve[2] == 100


def test_a_map_of_5000_points_with_long_texts_fits_in_the_page() -> None:
    row = {"x": -0.1234, "y": 0.1234, "outcome": -2, "text": "長" * 90, "rank": 9999, "best": 9999}
    spec = charts.scatter([row] * 5000, fusion="f")
    size = len(json.dumps(spec, ensure_ascii=False, separators=(",", ":")).encode())
    others = 400_000 + sum(len(asset(name)) for name in CHART_SCRIPTS)
    assert size + others < 3_000_000
    assert spec["data"]["columns"]["rank"] == [9999] * 5000


def test_a_chart_holds_its_points_and_shows_names_as_they_are() -> None:
    lines = [
        charts.Line("a < b", [1, 10], [0.0, 50.0]),
        charts.Line("$hada", [1, 10], [1.0, 51.0], fusion=True),
    ]
    spec = charts.line_chart(lines, x_label="K", y_label="%", log_x=True)
    rows = spec["data"]["values"]
    assert [(row["name"], row["x"], row["y"]) for row in rows] == [
        ("a < b", 1, 0.0), ("a < b", 10, 50.0), ("$hada", 1, 1.0), ("$hada", 10, 51.0),
    ]  # fmt: skip
    assert spec["encoding"]["x"]["scale"]["type"] == "log"
    assert spec["encoding"]["color"]["scale"]["range"] == ["$c0", "$hada"]
