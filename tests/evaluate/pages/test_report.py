"""The page of a run: what it holds and that it needs nothing else."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from hada.evaluate.cli import evaluate as command
from hada.evaluate.pages import attention, charts
from hada.evaluate.pages.report import rank_changes, recall_curve
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

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        values = dict(attrs)
        self.links += [values[name] for name in ("src", "href") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "img":
            assert "alt" in values
        if tag not in ("img", "meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(report_page: Path) -> None:
    text = report_page.read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert len(set(reader.ids)) == len(reader.ids)
    assert reader.links
    assert all(link.startswith("data:image/") for link in reader.links)
    assert "http:" not in text
    assert "https:" not in text
    assert {"comparison", "curves", "changes", "won", "lost"} <= set(reader.ids)
    assert "Training loss" in text
    assert len(text) < 2_000_000


def test_without_the_pictures_the_page_says_so(project: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "page.html"
    (project / "data").rename(project / "data-gone")
    try:
        words = ["report", "runs/tiny/mine", "--split", "val", "--quick", "--resamples", "200"]
        result = CliRunner().invoke(command, [*words, "-o", str(elsewhere)])
    finally:
        (project / "data-gone").rename(project / "data")
    assert result.exit_code == 0, result.output
    assert "No images: dataset &#x27;tiny&#x27;: its folder" in elsewhere.read_text()


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
    found = attention.by_word("red triangle", weights[:6], Pieces)
    assert found is not None
    assert [word for word, _ in found] == ["red", "triangle"]
    assert [weight for _, weight in found] == pytest.approx([0.2, 0.4])
    assert attention.by_word("red", weights, Pieces) is None


def test_curves_and_changes_are_those_of_the_ranks() -> None:
    random = np.random.default_rng(0)
    caption_to_image = np.repeat(np.arange(20), 2)
    image, caption = random.normal(size=(20, 4)), random.normal(size=(40, 4))
    one = rank_positives(image, caption, caption_to_image)
    two = rank_positives(image, caption + image[caption_to_image], caption_to_image)
    curve = recall_curve(two, "t2i", [1, 5, 20])
    assert curve[0] == pytest.approx(recalls(two)["t2i_R@1"])
    assert curve[2] == 100
    changes = rank_changes(two, one)["t2i"]
    assert changes["better"] + changes["same"] + changes["worse"] == 40
    gained = changes["into_first"] - changes["out_of_first"]
    assert 100 * gained / 40 == pytest.approx(recalls(two)["t2i_R@1"] - recalls(one)["t2i_R@1"])


def test_a_chart_places_its_points() -> None:
    line = charts.Line("a < b", [1, 10, 100], [0.0, 50.0, 100.0], "c0")
    text = charts.line_chart([line], title="t", x_label="K", y_label="%", log_x=True)
    (points,) = re.findall(r'points="([^"]+)"', text)
    xs, ys = zip(*(map(float, point.split(",")) for point in points.split()), strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)  # decades are as far apart
    assert ys[0] > ys[1] > ys[2]
    assert "a &lt; b" in text
