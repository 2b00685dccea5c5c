"""ALBEF's match head through the command, against BERT's own layers run pair by pair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from golden_files import ids_of
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertLayer

from hada.evaluate.cli import evaluate as command
from hada.evaluate.frozen_model import load_frozen_model
from hada.evaluate.methods import model_head as model_heads
from hada.evaluate.methods.build import build
from hada.evaluate.methods.pair_cache import CachedHead
from hada.evaluate.methods.request import Request
from hada.evaluate.methods.rerank import Reranked
from hada.extract.cli import extract
from hada.extract.datasets.read import read_dataset
from hada.extract.manifest import load_manifest

DEPTH = 4


class Slow:
    """The official checkpoint in BERT's own classes: one caption, one image, no padding."""

    def __init__(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        words = state["text_encoder.embeddings.word_embeddings.weight"]
        sizes: dict[str, Any] = json.loads((path.parent / "config_bert.json").read_text())
        layers = {
            int(key.split(".")[3]) for key in state if key.startswith("text_encoder.encoder.layer.")
        }
        self.first = int(sizes["fusion_layer"])
        common = {
            "vocab_size": len(words),
            "hidden_size": words.shape[1],
            "intermediate_size": sizes["intermediate_size"],
            "num_attention_heads": sizes["num_attention_heads"],
            "max_position_embeddings": sizes["max_position_embeddings"],
            "layer_norm_eps": 1e-12,
            "attn_implementation": "eager",
        }
        self.text = BertModel(
            BertConfig(**common, num_hidden_layers=self.first), add_pooling_layer=False
        ).eval()
        own = {
            key.removeprefix("text_encoder."): value
            for key, value in state.items()
            if key.startswith("text_encoder.") and "position_ids" not in key
        }
        lower = {
            key: value
            for key, value in own.items()
            if not key.startswith("encoder.layer.") or int(key.split(".")[2]) < self.first
        }
        self.text.load_state_dict(lower)
        config = BertConfig(**common, is_decoder=True, add_cross_attention=True)
        self.fusion = []
        for number in range(self.first, max(layers) + 1):
            start = f"encoder.layer.{number}."
            layer = BertLayer(config).eval()
            layer.load_state_dict(
                {key.removeprefix(start): value for key, value in own.items() if start in key}
            )
            self.fusion.append(layer)
        self.head = torch.nn.functional.linear
        self.weight, self.bias = state["itm_head.weight"], state["itm_head.bias"]

    @torch.no_grad()
    def logit(self, image_ND: Any, ids: list[int]) -> float:
        """The logit of "match"."""
        hidden = self.text(input_ids=torch.tensor([ids])).last_hidden_state
        image = torch.from_numpy(np.asarray(image_ND, np.float32))[None]
        for layer in self.fusion:
            hidden = layer(hidden, None, image)
        return float(self.head(hidden[:, 0], self.weight, self.bias)[0, 1])


@pytest.fixture(scope="module")
def made(golden_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of the golden ALBEF on five images."""
    folder = tmp_path_factory.mktemp("albef")
    golden = golden_root / "backbones" / "albef"
    makers.make_project(folder, splits={"train": [1] * 2, "val": [2, 1, 3, 2, 2]})
    path = folder / "data_manifest.yaml"
    weights = golden / "flickr30k.pth"
    path.write_text(path.read_text() + f"  albef: {{family: albef, weights: {weights}}}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["--model", "albef", "--split", "val", "--store-dtype", "float32"]
        done = CliRunner().invoke(extract, words)
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    for file in made.glob("runs/tiny/*"):
        file.unlink()
    return made


def two_stages(depth: int) -> Request:
    """ALBEF's cosine, whose first results its match head reorders."""
    return Request(
        dataset="tiny", split="val", models=("albef",), quick=True, rerank=depth,
        rerank_with="albef", device="cpu",
    )  # fmt: skip


def slow_scores(folder: Path, golden_root: Path) -> tuple[Any, Any, Any]:
    """(I, T) logits, (I, T) cosines, and the image of each caption."""
    manifest = load_manifest(None)
    gallery, (first, _) = build(manifest, two_stages(DEPTH))
    store = gallery.stores[0]
    data = read_dataset(manifest.dataset("tiny"), "val")
    ids = load_frozen_model(manifest, store, "cpu").tokenize(data.captions)
    plain = Slow(golden_root / "backbones" / "albef" / "flickr30k.pth")
    images = [item.tokens for item in store.image]
    logits = np.array([[plain.logit(image, row) for row in ids] for image in images])
    assert len(plain.fusion) > 1
    return logits, first.pair[0] @ first.pair[1].T, gallery.caption_to_image  # type: ignore[attr-defined]


def test_the_command_ranks_as_bert_run_pair_by_pair(here: Path, golden_root: Path) -> None:
    logits, cosines, owner = slow_scores(here, golden_root)
    words = ["recall", "--split", "val", "--quick", "--model", "albef", "--resamples", "100"]
    done = CliRunner().invoke(
        command, [*words, "--rerank", str(DEPTH), "--rerank-with", "albef"]
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads((here / "runs/tiny/recall-val.json").read_text())
    second = result["methods"][-1]
    assert second["name"] == "albef + albef's match head"
    assert second["stages"] == ["inner product", f"match head on the first {DEPTH}"]
    assert second["second_stage"]["pairs_per_query"] == {"i2t": DEPTH, "t2i": DEPTH}
    assert second["second_stage"]["milliseconds_per_query"] > 0
    ranks = []
    for caption, image in enumerate(owner):
        best = np.argsort(-cosines[:, caption], kind="stable")[:DEPTH]
        above = (logits[best, caption] > logits[image, caption]).sum()
        ranks.append(above if image in best else DEPTH)
    for k in (1, 5):
        want = 100 * np.mean(np.array(ranks) < k)
        assert second["metrics"][f"t2i_R@{k}"] == pytest.approx(want)


def test_the_score_is_the_logit_alone(here: Path, golden_root: Path) -> None:
    """Unlike BLIP's, ALBEF's evaluation adds no cosine."""
    logits, _, _ = slow_scores(here, golden_root)
    manifest = load_manifest(None)
    second = build(manifest, two_stages(1))[1][-1]
    assert isinstance(second, Reranked)
    images, captions = np.divmod(np.arange(logits.size), logits.shape[1])
    found = second.head.logits(images, captions).reshape(logits.shape)
    np.testing.assert_allclose(found, logits, atol=2e-5)
    some = np.array([1, 3]), np.array([2, 6])
    part = second.head.part(*some).logits(np.array([1, 0]), np.array([0, 1]))
    np.testing.assert_allclose(part, logits[[3, 1], [2, 6]], atol=2e-5)


def test_golden_logits_from_stored_tokens(golden_root: Path) -> None:
    """The official code's own, for images and captions in pairs."""
    from hada.extract.backbones import BackboneRequest, load_backbone

    folder = golden_root / "backbones" / "albef"
    for file, golden in (
        ("flickr30k.pth", "golden.npz"),
        ("albef_flickr_retrieval_lavis.pt", "golden_lavis.npz"),
    ):
        request = BackboneRequest(name="m", family="albef", weights=str(folder / file), options={})
        backbone: Any = load_backbone(request)
        with np.load(folder / golden) as expected:
            ids, _ = ids_of(expected)
            wanted = expected["itm_logits"]
            images, captions = np.divmod(np.arange(wanted.shape[0] * wanted.shape[1]), len(ids))
            found = backbone.match_tokens(
                expected["image_feat"][images], [ids[t] for t in captions]
            )
            np.testing.assert_allclose(found, wanted.reshape(-1, 2), rtol=0, atol=1e-5)


def test_a_stopped_command_goes_on_with_what_it_has_scored(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load_manifest(None)
    request = two_stages(DEPTH)
    gallery, (_, whole) = build(manifest, request)
    expected = whole.ranks(gallery.caption_to_image)
    file = here / "runs/tiny/match-val-albef.npz"
    file.unlink()
    scored: list[int] = []
    plain = model_heads.ModelHead.logits

    def counted(self: Any, images: Any, captions: Any) -> Any:
        scored.append(len(images))
        if sum(scored) > limit:
            raise KeyboardInterrupt
        return plain(self, images, captions)

    monkeypatch.setattr(model_heads.ModelHead, "logits", counted)
    monkeypatch.setattr("hada.evaluate.methods.model_head.PAIRS_AT_ONCE", 3)
    limit = 8
    _, (_, second) = build(manifest, request)
    with pytest.raises(KeyboardInterrupt):
        second.ranks(gallery.caption_to_image)
    assert file.exists()
    limit, done = 10**6, sum(scored[:-1])
    scored.clear()
    _, (_, second) = build(manifest, request)
    assert isinstance(second, Reranked)
    assert isinstance(second.head, CachedHead)
    assert len(second.head.cache.pairs_n) == done
    found = second.ranks(gallery.caption_to_image)
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)
    assert sum(scored) == len(second.head.cache.pairs_n) - done  # no pair twice
    scored.clear()
    build(manifest, request)[1][1].ranks(gallery.caption_to_image)
    assert not scored
