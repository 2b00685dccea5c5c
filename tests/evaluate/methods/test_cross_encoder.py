"""Re-ranking by a cross-encoder of sentence-transformers, against its own `predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
import tiny_sentence as tiny
import torch
from click.testing import CliRunner
from PIL import Image

from hada.evaluate.cli import evaluate as command
from hada.evaluate.methods.build import build
from hada.evaluate.methods.request import Request
from hada.extract.backbones.cross_encoder import CrossEncoder
from hada.extract.cli import extract
from hada.extract.common.errors import CheckpointError
from hada.extract.datasets.read import read_dataset
from hada.extract.manifest import load_manifest

pytestmark = pytest.mark.slow
st = tiny.library()
IMAGES, DEPTH = 6, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cross")
    tiny.cross_encoder(folder / "cross")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        makers.make_project(folder, splits={"val": [2] * IMAGES})
        manifest = folder / "data_manifest.yaml"
        manifest.write_text(manifest.read_text().replace("      train: {}\n", ""))
        done = CliRunner().invoke(extract, ["--split", "val", "--model", "one"])
        assert done.exit_code == 0, done.output
    return folder


def request(folder: Path, **more: Any) -> Request:
    return Request(
        dataset="tiny", split="val", models=("one",), quick=True, rerank=DEPTH, device="cpu",
        rerank_with=f"cross-encoder:{folder / 'cross' / 'model'}", **more,
    )  # fmt: skip


def test_it_equals_a_loop_over_the_librarys_predict(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    manifest = load_manifest()
    gallery, methods = build(manifest, request(made))
    assert [method.name for method in methods] == ["one", "one + cross-encoder model"]
    first, second = methods
    found = second.ranks(gallery.caption_to_image)
    data = read_dataset(manifest.dataset("tiny"), "val")
    model = st.CrossEncoder(str(made / "cross" / "model"), device="cpu")
    images = [Image.open(path).convert("RGB") for path in data.image_paths]
    scores = np.array(
        [
            model.predict(
                [(text, image) for text in data.captions],
                activation_fn=torch.nn.Identity(), show_progress_bar=False,
            )
            for image in images
        ]
    )  # fmt: skip
    cosines = first.pair[0] @ first.pair[1].T
    before = first.ranks(gallery.caption_to_image)
    for caption, own in enumerate(gallery.caption_to_image):
        places = np.argsort(-cosines[:, caption], kind="stable")[:DEPTH]
        if own in places:
            better = sum(scores[i, caption] > scores[own, caption] + 1e-6 for i in places)
            assert found.t2i_lo[caption] == better
        else:
            assert found.t2i_lo[caption] == max(before.t2i_lo[caption], DEPTH)
    for image in range(IMAGES):
        places = np.argsort(-cosines[image], kind="stable")[:DEPTH]
        own = [t for t in places if gallery.caption_to_image[t] == image]
        if own:
            best = max(scores[image, t] for t in own)
            others = [t for t in places if t not in own]
            assert found.i2t_lo[image] == sum(scores[image, t] > best + 1e-6 for t in others)
        else:
            assert found.i2t_lo[image] == max(before.i2t_lo[image], DEPTH)
    # What the method keeps are the library's scores.
    rows = np.arange(len(data.captions))
    kept = second.head.logits(gallery.caption_to_image, rows)
    np.testing.assert_allclose(kept, scores[gallery.caption_to_image, rows], atol=2e-6)


def test_the_command_tells_the_cost_and_scores_no_pair_twice(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    words = [
        *("recall", "--split", "val", "--model", "one", "--quick", "--rerank", str(DEPTH)),
        *("--rerank-with", f"cross-encoder:{made / 'cross' / 'model'}", "--device", "cpu"),
        *("--resamples", "100", "--json"),
    ]
    results = []
    scored: list[int] = []
    original = CrossEncoder.scores

    def counted(self: Any, captions: Any, images: Any) -> Any:
        scored.append(len(captions))
        return original(self, captions, images)

    monkeypatch.setattr(CrossEncoder, "scores", counted)
    for file in Path("runs").rglob("cross-encoder-*.npz"):
        file.unlink()
    for _ in range(2):
        done = CliRunner().invoke(command, words)
        assert done.exit_code == 0, done.output
        results.append(json.loads(done.stdout))
    pairs = sum(scored)
    # Both directions' candidates, each pair once; the second run scores none.
    assert IMAGES * DEPTH < pairs <= 3 * IMAGES * DEPTH
    assert results[0]["methods"] == results[1]["methods"]
    (own,) = [m for m in results[0]["methods"] if "cross-encoder" in m["name"]]
    assert own["stages"][-1] == f"cross-encoder on the first {DEPTH}"
    assert own["second_stage"]["pairs_per_query"] == {"i2t": DEPTH, "t2i": DEPTH}
    assert own["second_stage"]["milliseconds_per_query"] > 0
    (file,) = Path("runs/tiny").glob("cross-encoder-val-*.npz")
    file.write_bytes(file.read_bytes()[:100])
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    assert "Its pairs are scored anew" in done.stderr
    assert sum(scored) == 2 * pairs


def test_an_interrupted_scoring_goes_on(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    for file in Path("runs").rglob("cross-encoder-*.npz"):
        file.unlink()
    original, calls = CrossEncoder.scores, []

    def stopped(self: Any, captions: Any, images: Any) -> Any:
        calls.append(len(captions))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, captions, images)

    monkeypatch.setattr(CrossEncoder, "scores", stopped)
    gallery, methods = build(load_manifest(), request(made))
    with pytest.raises(KeyboardInterrupt):
        methods[-1].ranks(gallery.caption_to_image)
    kept = len(methods[-1].head.cache.pairs_n)
    assert kept == calls[0] > 0
    again = build(load_manifest(), request(made))[1][-1]
    assert len(again.head.cache.pairs_n) == kept
    again.ranks(gallery.caption_to_image)
    assert sum(calls[2:]) + kept == len(again.head.cache.pairs_n)


def test_what_is_no_cross_encoder_of_images_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match=r"is no cross-encoder of images and captions"):
        CrossEncoder(str(tiny.text_embedder(tmp_path / "text")), "cpu")
    with pytest.raises(CheckpointError, match=r"is a cross-encoder of text.*an image and a text"):
        CrossEncoder(str(tiny.text_cross_encoder(tmp_path / "texts")), "cpu")
    monkeypatch.chdir(made)
    words = ["recall", "--split", "val", "--model", "one", "--rerank", "3", "--rerank-with"]
    done = CliRunner().invoke(command, [*words, "cross-encoder:nowhere"])
    assert done.exit_code == 2
    assert "no model folder at 'nowhere'" in done.output
