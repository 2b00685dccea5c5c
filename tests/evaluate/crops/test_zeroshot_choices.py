"""Rules reach the figures of crops: weights, lengths, texts and labels, against loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import galleries
import makers
import numpy as np
import pytest
from click.testing import CliRunner

from hada.evaluate.cli import evaluate as command
from hada.evaluate.crops.classification import (
    ClassTexts,
    classification,
    encode_classes,
    expected_hits,
)
from hada.evaluate.crops.open import Crops, open_crops
from hada.evaluate.crops.weighting import Rules
from hada.evaluate.crops.zeroshot import retrieval
from hada.evaluate.methods.combinations import single_models
from hada.evaluate.methods.gallery import Gallery
from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.cli import extract
from hada.extract.common.arrays import unit_rows
from hada.extract.common.errors import StoreMismatchError
from hada.extract.manifest import load_manifest
from hada.extract.store import open_store
from hada.fuse.ranking.ranks import rank_positives, recalls


def crops_of(images: int, width: int, seed: int = 0) -> Crops:
    random = np.random.default_rng(seed)
    whole = unit_rows(random.normal(size=(images, width)))
    ladder = unit_rows(whole[:, None, None] + 0.8 * random.normal(size=(images, 2, 6, width)))
    return Crops("lgca", whole.astype(np.float32), ladder.astype(np.float32))


def looked(crops: Crops, row: int, scale: float, whole: float, normalize: str) -> Any:
    """An image's vector by WCA: no expansions."""
    image, ladder = crops.image_IE[row].astype(float), crops.crops_IRNE[row, 0].astype(float)
    weights = np.exp(scale * (ladder @ image - 1))
    total = weights @ ladder / weights.sum()
    length = np.linalg.norm(total) if normalize == "official" else 1.0
    return whole * image + (1 - whole) * total / length


def test_images_are_ranked_at_unit_length() -> None:
    gallery = galleries.make_gallery("stores", {"a": 0.6}, images=20)
    crops = crops_of(20, galleries.WIDTH)
    rules = Rules(whole=0.5, normalize="none")
    result = retrieval(gallery, {"WCA": (crops, rules)}, resamples=20, seed=0, device="cpu")
    caption = single_models(gallery)[0].pair[1]
    plain = np.stack([looked(crops, k, rules.crop_scale, 0.5, "none") for k in range(20)])
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    want = recalls(rank_positives(plain / lengths, caption, gallery.caption_to_image))
    assert result["methods"][1]["metrics"] == pytest.approx(want)
    assert want != pytest.approx(recalls(rank_positives(plain, caption, gallery.caption_to_image)))


def test_classes_are_predicted_by_each_methods_own_texts() -> None:
    """CLIP's prompt, CuPL's mean of descriptions, and the rules' weights, one image at a time."""
    gallery = galleries.make_gallery("stores", {"a": 0.6}, images=150, per=1)
    random, crops = np.random.default_rng(3), crops_of(150, 6, seed=2)
    label = unit_rows(random.normal(size=(5, 6)))
    lines = unit_rows(label[:, None] + 0.9 * random.normal(size=(5, 4, 6)))
    mask = np.arange(4) < np.array([4, 2, 3, 1, 4])[:, None]
    names = ["a", "b", "c", "d", "e"]
    truth = [[names[int(k)] for k in random.choice(5, 2, replace=False)] for _ in range(150)]
    text = ClassTexts(names, label.astype("f4"), (lines * mask[..., None]).astype("f4"), mask)
    rules = Rules(whole=0.2, text_scale=9.0)
    result = classification(gallery, {"WCA": (crops, rules)}, text, truth, resamples=20, seed=0)

    def texts(scale: float) -> Any:
        found = []
        for c in range(5):
            own = lines[c][mask[c]]
            weights = np.exp(scale * own @ label[c])
            total = weights @ own / weights.sum()
            found.append(total / np.linalg.norm(total))
        return np.stack(found)

    images = crops.image_IE.astype(float)
    seen = np.stack([looked(crops, k, rules.crop_scale, 0.2, "official") for k in range(150)])
    figures = []
    for scores in (images @ label.T, images @ texts(0.0).T, seen @ texts(9.0).T):
        hits = [names[int(s.argmax())] in t for s, t in zip(scores, truth, strict=True)]
        figures.append(100 * float(np.mean(hits)))
    assert [line["top1"] for line in result["methods"]] == pytest.approx(figures)
    gains = [figure - figures[0] for figure in figures]
    assert [line["gain"] for line in result["methods"]] == pytest.approx(gains)
    for scores in (images @ texts(9.0).T, seen @ texts(0.0).T):  # what a mix-up would say
        hits = [names[int(s.argmax())] in t for s, t in zip(scores, truth, strict=True)]
        assert 100 * float(np.mean(hits)) not in figures


@pytest.fixture
def project(tmp_path: Path) -> Path:
    makers.make_project(tmp_path)
    words = ["-s", "val"]
    plan = ["--crops", "lgca:count=6,rounds=2"]
    for more in (["-m", "one", *plan], ["-m", "one"], ["-m", "two"]):
        assert CliRunner().invoke(extract, [*words, *more]).exit_code == 0
    return tmp_path


def run(*words: str) -> Any:
    options = ["--model", "one", "--split", "val", "--resamples", "100"]
    done = CliRunner().invoke(command, ["zeroshot", *options, *words])
    assert done.exit_code == 0, done.output
    return json.loads(Path("runs/tiny/zeroshot-one-val.json").read_text())["methods"]


def test_every_option_reaches_its_rule(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a ranked vector is the whole picture, unless it is said otherwise."""
    seen: list[Rules] = []

    def listen(gallery: Any, rules: Any, **options: Any) -> Any:
        seen.append([r for _, r in rules.values()][-1])
        return retrieval(gallery, rules, **options)

    monkeypatch.setattr("hada.evaluate.crops.zeroshot.retrieval", listen)
    run()
    run("--whole", "0.25", "--keep", "0.7", "--normalize", "none")
    assert seen == [
        Rules(rounds=2, keep=0.5, whole=0.5),
        Rules(rounds=2, keep=0.7, whole=0.25, normalize="none"),
    ]


def test_crops_have_unit_length_and_are_the_models_own(project: Path) -> None:
    one = Gallery.of([open_store("stores/tiny/val/one")])
    crops = open_crops("stores/tiny/val/one@crops-lgca", one)
    assert crops.crops_IRNE.shape[1:3] == (3, 6)
    np.testing.assert_allclose(np.linalg.norm(crops.image_IE, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(crops.crops_IRNE, axis=-1), 1, atol=1e-6)
    # The store holds them rounded to float16.
    stored = open_store("stores/tiny/val/one@crops-lgca").image.tokens(np.array([0]))
    lengths = np.linalg.norm(stored.astype(np.float64), axis=-1)
    assert not np.allclose(lengths, 1, atol=1e-5)
    two = Gallery.of([open_store("stores/tiny/val/two")])
    with pytest.raises(StoreMismatchError, match="another model"):
        open_crops("stores/tiny/val/one@crops-lgca", two)


def test_texts_of_classes_have_unit_length_and_no_underscores(project: Path) -> None:
    store = open_store("stores/tiny/val/one")
    classes = {"red_above": ["red", "a red one"], "green": ["green"]}
    found = encode_classes(load_manifest(None), store, classes, "a {} here", "cpu")
    request = BackboneRequest(name="one", family="fake", weights="a", options={})
    backbone: Any = load_backbone(request)

    def encoded(*texts: str) -> Any:
        own = backbone.encode_captions(backbone.tokenize(list(texts))).embeddings
        return own / np.linalg.norm(own, axis=1, keepdims=True)

    prompts = encoded("a red above here", "a green here")
    np.testing.assert_allclose(found.label_CE, prompts, atol=1e-6)
    assert found.mask_CD.tolist() == [[True, True], [True, False]]
    np.testing.assert_allclose(found.description_CDE[0], encoded("red", "a red one"), atol=1e-6)
    np.testing.assert_allclose(found.description_CDE[1, 0], encoded("green")[0], atol=1e-6)


def test_classes_with_equal_scores_share_the_hit() -> None:
    scores = np.array([[2.0, 2.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
    right = np.array([[True, False, True], [True, True, False], [False, False, True]])
    assert expected_hits(scores, right).tolist() == pytest.approx([1 / 2, 2 / 3, 1.0])
