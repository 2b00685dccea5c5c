"""Crops: where they lie, what is stored, and the command from extraction to figures."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from hada.evaluate.cli import evaluate as command
from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.cli import extract
from hada.extract.common.errors import UsageError
from hada.extract.datasets.images import open_image
from hada.extract.store import open_store
from hada.extract.variants.crops import CropPlan, expanded

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (43, 64, 3), dtype=np.uint8))


def test_expansions_are_the_specifications(golden_root: Path) -> None:
    golden = np.load(golden_root / "wca" / "lgca_inferred_small.npz")
    size = int(golden["geom_W"]), int(golden["geom_H"])
    for boxes in golden["geom_boxes_xys"]:
        for before, after in itertools.pairwise(boxes):
            found = expanded(tuple(before), size, float(golden["geom_eta"]))
            np.testing.assert_allclose(found, after, atol=1e-9)


def test_boxes_lie_inside_hold_their_parents_and_are_reproducible() -> None:
    plan = CropPlan(name="lgca", count=30, rounds=3)
    rounds = plan.boxes(PICTURE)
    assert plan.renderings == 1 + 30 * 4
    for boxes in rounds:
        for left, top, side in boxes:
            assert left >= 0
            assert top >= 0
            assert left + side <= 64 + 1e-9
            assert top + side <= 43 + 1e-9
    for before, after in itertools.pairwise(rounds):
        for (x, y, s), (left, top, side) in zip(before, after, strict=True):
            assert left <= x + 1e-9
            assert top <= y + 1e-9
            assert left + side >= x + s - 1e-9
            assert top + side >= y + s - 1e-9
    sides = [side / 43 for _, _, side in rounds[0]]
    assert 0.45 < min(sides) < max(sides) <= 0.9
    assert plan.boxes(PICTURE.copy()) == rounds
    assert CropPlan(name="lgca", count=30, rounds=3, seed=1).boxes(PICTURE) != rounds


@pytest.mark.parametrize(
    "text", ["rca", "wca:count", "wca:count=0", "lgca:expand=1", "wca:low=0.9,high=0.2", "wca:x=1"]
)
def test_wrong_plans_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--crops"):
        CropPlan.parse(text)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    makers.make_project(tmp_path)
    result = CliRunner().invoke(
        extract,
        ["-m", "one", "-s", "val", "--crops", "lgca:count=6,rounds=2", "--store-dtype", "float32"],
    )
    assert result.exit_code == 0, result.output
    return tmp_path


def run(*words: str) -> Any:
    options = ["--model", "one", "--split", "val", "--resamples", "200"]
    return CliRunner().invoke(command, ["zeroshot", *options, *words])


def test_what_is_stored_are_the_embeddings_of_the_crops(project: Path) -> None:
    store = open_store("stores/tiny/val/one@crops-lgca")
    request = BackboneRequest(name="one", family="fake", weights="a", options={})
    backbone: Any = load_backbone(request)
    plan = CropPlan.parse("lgca:count=6,rounds=2")
    picture = open_image("data/images/val_002.jpg")
    rows = store.image.tokens(np.array([2]))
    assert rows.shape[0] == plan.renderings
    left, top, side = plan.boxes(picture)[1][3]  # the first expansion of the fourth crop
    part = picture.crop(tuple(map(round, (left, top, left + side, top + side))))
    expected = backbone.encode_images(backbone.preprocess(part)[None]).embeddings[0]
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(rows[1 + 6 + 3], expected, atol=1e-5)
    again = CliRunner().invoke(
        extract,
        ["-m", "one", "-s", "val", "--crops", "lgca:count=6,rounds=2", "--store-dtype", "float32"],
    )
    assert "complete already" in again.output


def test_retrieval_with_crops(project: Path) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    written = json.loads((project / "runs/tiny/zeroshot-one-val.json").read_text())
    names = [method["name"] for method in written["methods"]]
    assert names == [
        "one",
        "WCA (lgca crops)",
        "LGCA (lgca crops, 1 expansion)",
        "LGCA (lgca crops, 2 expansions)",
    ]
    run("--whole", "1")
    whole = json.loads((project / "runs/tiny/zeroshot-one-val.json").read_text())
    for method in whole["methods"][1:]:  # nothing but the whole picture: the model alone
        assert method["metrics"] == pytest.approx(whole["methods"][0]["metrics"])


def test_classification_with_crops(project: Path) -> None:
    words = ("red", "green", "blue", "yellow", "purple", "black")
    Path("classes.json").write_text(json.dumps({w: [f"{w} above", f"a {w} one"] for w in words}))
    ids = open_store("stores/tiny/val/one").image.ids
    Path("labels.json").write_text(json.dumps(dict.fromkeys(ids, "red")))
    result = run("--classes", "classes.json", "--labels", "labels.json")
    assert result.exit_code == 0, result.output
    written = json.loads((project / "runs/tiny/zeroshot-one-val.json").read_text())
    assert [line["name"] for line in written["methods"]][:2] == [
        "CLIP (prompt)",
        "CuPL (mean of descriptions)",
    ]
    assert written["protocol"]["classes"] == 6
    plain = written["methods"][0]
    assert (plain["gain"], plain["gain_interval"]) == (0, {"low": 0, "high": 0})
    assert "the gain over CLIP: paired bootstrap" in result.stdout
    Path("labels.json").write_text(json.dumps({id_: list(words) for id_ in ids}))
    assert run("--classes", "classes.json", "--labels", "labels.json").exit_code == 0
    written = json.loads((project / "runs/tiny/zeroshot-one-val.json").read_text())
    assert {line["top1"] for line in written["methods"]} == {100}  # any of them is right
    Path("labels.json").write_text(json.dumps(dict.fromkeys(ids, "mauve")))
    for words_, says in (
        (("--classes", "classes.json"), "belong together"),
        (("--classes", "classes.json", "--labels", "labels.json"), "class 'mauve' is not among"),
        (("--classes", "no.json", "--labels", "labels.json"), "no.json: no such file"),
    ):
        refused = run(*words_)
        assert refused.exit_code == 2
        assert says in refused.stderr


def test_without_crops_it_says_how_to_make_them(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    assert CliRunner().invoke(extract, ["-m", "one", "-s", "val"]).exit_code == 0
    result = run()
    assert result.exit_code == 1
    assert "hada-extract --dataset tiny --model one --split val --crops lgca" in result.stderr
