"""Family `sentence`: what the command stores is what sentence-transformers' own encode gives."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
import tiny_sentence as tiny
from click.testing import CliRunner
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from hada.evaluate.cli import evaluate
from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.backbones.recognise import recognise
from hada.extract.cli import extract
from hada.extract.common.errors import CheckpointError, HadaError, UsageError
from hada.extract.datasets.read import read_dataset
from hada.extract.manifest import load_manifest
from hada.extract.store import open_store
from hada.extract.testing.backbone_contract import (
    CAPTIONS,
    ODD_CAPTIONS,
    BackboneContract,
    pictures,
)

pytestmark = pytest.mark.slow
st = tiny.library()

SIZES = [(32, 24), (24, 32), (90, 60), (60, 90), (40, 20)]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name in ("colqwen", "colpali"):
        (root / name).mkdir()
    return {
        "chat": tiny.chat_embedder(root / "chat"),
        "mean": tiny.chat_embedder(root / "mean", pooling="mean", dense=24),
        "clip": tiny.clip_pooled(root / "clip"),
        "multi": tiny.multi_vector(root / "multi"),
        "colqwen": tiny.colqwen(root / "colqwen"),
        "colpali": tiny.colpali(root / "colpali"),
        "text": tiny.text_embedder(root / "text"),
        "cross": tiny.cross_encoder(root / "cross"),
    }


def load(place: Path, **options: Any) -> Any:
    return load_backbone(
        BackboneRequest(name="m", family="sentence", weights=str(place), options=options)
    )


def project(folder: Path, model: str) -> None:
    """A data set whose images differ in size, one of them turned by EXIF, one of them broken."""
    makers.make_project(folder, splits={"val": [2, 1, 3, 2, 2, 1]})
    random = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 3 else 1
        image.save(folder / "data" / "images" / f"val_{number:03d}.jpg", exif=exif)
    (folder / "data" / "images" / "val_005.jpg").write_bytes(b"no image")
    manifest = folder / "data_manifest.yaml"
    text = manifest.read_text().replace(
        "splits:\n      train: {}\n      val: {}", "splits: {val: {}}"
    )
    manifest.write_text(f"{text}  m: {model}\n")


def run(*words: str) -> Any:
    return CliRunner().invoke(extract, ["--split", "val", "--model", "m", *words])


KINDS = ["chat", "mean", "clip", "multi", "colqwen", "colpali"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_stores_what_the_librarys_encode_gives(
    kind: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    project(tmp_path, f"{{family: sentence, weights: {places[kind]}}}")
    done = run("--batch-size", "4", "--store-dtype", "float32")
    assert done.exit_code == 0, done.output
    store = open_store("stores/tiny/val/m")
    data = read_dataset(load_manifest().dataset("tiny"), "val")
    images = [_upright(path) for path in data.image_paths[:5]]
    multi = kind in ("multi", "colqwen", "colpali")
    model = (st.MultiVectorEncoder if multi else st.SentenceTransformer)(
        str(places[kind]), device="cpu"
    )
    spec = store.spec.model
    whole = {"output_value": None, "show_progress_bar": False}
    for side, rows, theirs, found in (
        (store.caption, range(len(data.captions)), model.encode_query(data.captions),
         model.encode_query(data.captions, **whole)),
        (store.image, range(5), model.encode_document(images),
         model.encode_document(images, **whole)),
    ):  # fmt: skip
        tokens = spec.caption if side is store.caption else spec.image
        if spec.embedding_width is not None:
            np.testing.assert_allclose(side.embeddings(list(rows)), theirs, atol=1e-6)
        for row in rows if tokens is not None else ():
            stored = side.tokens([row])
            item = found[row]
            own = item["token_embeddings"][item["attention_mask"].bool()].numpy()
            if multi:
                np.testing.assert_array_equal(own, theirs[row].numpy())
            if tokens.global_source == "pooled":
                np.testing.assert_allclose(stored[0], own.mean(axis=0), atol=1e-6)
                stored = stored[1:]
            np.testing.assert_allclose(stored, own, atol=2e-6)
    assert (spec.image is None) == (kind == "clip")
    assert (spec.embedding_width is None) == multi
    ragged = spec.image is not None and spec.image.count is None
    assert ragged == (kind in ("chat", "mean", "multi", "colqwen"))
    if ragged:
        counts = {len(store.image.tokens([row])) for row in range(5)}
        assert len(counts) > 1
    assert "could not decode val_005.jpg" in done.output
    # Again: nothing is left to do, and what was stored is not another model's.
    assert run("--store-dtype", "float32").exit_code == 0


def _upright(path: Any) -> Image.Image:
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_counts(kind: str, places: dict[str, Path]) -> None:
    backbone = load(places[kind])
    captions = [*CAPTIONS, *ODD_CAPTIONS]
    ids = backbone.tokenize(captions)
    whole = backbone.encode_captions(ids)
    gallery = pictures([(131, 97), (80, 150), (33, 20)])
    images = backbone.encode_images([backbone.preprocess(item) for item in gallery])
    if backbone.spec.caption is not None:
        np.testing.assert_array_equal(whole.lengths, backbone.caption_rows(ids))
    if backbone.spec.image is not None:
        assert images.lengths.tolist() == [backbone.image_rows(*item.size) for item in gallery]
    for index, row in enumerate(ids):
        _same(whole, backbone.encode_captions([row]), index)
    for index, image in enumerate(gallery):
        _same(images, backbone.encode_images([image]), index)
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert json.loads(json.dumps(backbone.spec.preprocessing)) == backbone.spec.preprocessing


def _same(whole: Any, single: Any, index: int) -> None:
    if whole.values is not None:
        rows = np.split(whole.values, np.cumsum(whole.lengths)[:-1])[index]
        np.testing.assert_allclose(rows, single.values, atol=2e-6)
    if whole.embeddings is not None:
        np.testing.assert_allclose(whole.embeddings[index], single.embeddings[0], atol=2e-6)


def test_long_captions_are_counted(places: dict[str, Path]) -> None:
    for kind in ("chat", "colpali", "clip"):
        backbone = load(places[kind])
        backbone.tokenize(["a dog", "b" * 40 if kind != "clip" else "a"])
        assert backbone.truncated == 0, kind
        ids = backbone.tokenize(["dog " * 100, "a dog"])
        assert backbone.truncated == 1, kind
        assert np.isfinite(backbone.encode_captions(ids).lengths if kind != "clip" else 0).all()


def test_prompts_and_tasks(places: dict[str, Path]) -> None:
    model = st.SentenceTransformer(str(places["chat"]), device="cpu")
    for options, theirs in (
        ({}, model.encode_query(CAPTIONS)),
        ({"caption_prompt": "short"}, model.encode_query(CAPTIONS, prompt_name="short")),
        ({"caption_task": "document"}, model.encode_document(CAPTIONS)),
    ):
        backbone = load(places["chat"], **options)
        found = backbone.encode_captions(backbone.tokenize(CAPTIONS))
        np.testing.assert_allclose(found.embeddings, theirs, atol=1e-6)
    assert load(places["chat"]).spec.preprocessing["caption_prompt"] == "Find: "
    (image,) = pictures([(60, 40)])
    backbone = load(places["chat"], image_prompt="short")
    np.testing.assert_allclose(
        backbone.encode_images([image]).embeddings,
        model.encode_document([image], prompt_name="short"),
        atol=1e-6,
    )
    assert np.abs(backbone.encode_images([image]).embeddings
                  - model.encode_document([image])).max() > 1e-3  # fmt: skip


def test_a_matryoshka_width_is_the_librarys_truncate_dim(places: dict[str, Path]) -> None:
    backbone = load(places["mean"], truncate_dim=10)
    model = st.SentenceTransformer(str(places["mean"]), device="cpu", truncate_dim=10)
    found = backbone.encode_captions(backbone.tokenize(CAPTIONS)).embeddings
    assert (backbone.spec.embedding_width, backbone.spec.normalized) == (10, False)
    np.testing.assert_allclose(found, model.encode_query(CAPTIONS), atol=1e-6)
    # A width in the model's own config counts, too.
    file = places["mean"] / "config_sentence_transformers.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps({**json.loads(before), "truncate_dim": 7}))
        assert load(places["mean"]).spec.embedding_width == 7
        assert load(places["mean"], truncate_dim=24).spec.normalized
    finally:
        file.write_text(before)


def test_a_first_stage_for_vectors_is_their_mean_if_asked_for(places: dict[str, Path]) -> None:
    backbone = load(places["colqwen"], mean_embedding=True)
    found = backbone.encode_captions(backbone.tokenize(CAPTIONS))
    assert (backbone.spec.embedding_width, backbone.spec.normalized) == (16, True)
    rows = np.split(found.values, np.cumsum(found.lengths)[:-1])
    means = np.stack([row[1:].mean(axis=0) for row in rows])
    expected = means / np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(found.embeddings, expected, atol=1e-6)


WRONG = {
    "unknown prompt": (
        "chat",
        "caption_prompt: passage",
        r"option caption_prompt\).*'passage'.*short",
    ),
    "unknown task": ("chat", "image_task: docs", r"image_task.*'docs'.*document"),
    "too wide": ("mean", "truncate_dim: 25", r"24 wide, expected 1 to 24, got 25"),
    "no width": ("mean", "truncate_dim: 0", r"must be >= 1, got 0"),
    "width of vectors": ("multi", "truncate_dim: 8", r"only pooled models have it"),
    "unknown option": ("chat", "prompt: short", r"unknown option of model 'm' 'prompt'"),
    "mean of a pooled model": ("chat", "mean_embedding: true", r"embeddings of its own"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_option_is_one_error(
    name: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, option, message = WRONG[name]
    monkeypatch.chdir(tmp_path)
    project(tmp_path, f"{{family: sentence, weights: {places[kind]}, options: {{{option}}}}}")
    done = run()
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.output.splitlines() if line.startswith("error")]
    assert re.search(message, line), line
    assert not Path("stores/tiny").exists()


def test_what_is_recognised_and_what_is_refused(places: dict[str, Path]) -> None:
    for kind, what in (
        ("chat", "a sentence-transformers folder"),
        ("multi", "a multi-vector sentence-transformers folder"),
        ("colqwen", "a late-interaction model of transformers (ColQwen2ForRetrieval)"),
        ("clip", "a sentence-transformers folder"),
    ):
        found = recognise(str(places[kind]))
        assert (found.what, found.family, found.weights) == (what, "sentence", str(places[kind]))
    for kind, message in (
        ("text", r"of text alone \(bert\): it has no image side; give one that encodes images"),
        ("cross", r"scores pairs only; re-rank with it: .* --rerank-with cross-encoder:"),
    ):
        found = recognise(str(places[kind]))
        assert found.family is None
        with pytest.raises(HadaError, match=message):
            load(places[kind])


def test_damage_and_strangers(places: dict[str, Path], tmp_path: Path) -> None:
    def copied(name: str, kind: str = "chat") -> Path:
        return Path(shutil.copytree(places[kind], tmp_path / name))

    odd = copied("code")
    modules = json.loads((odd / "modules.json").read_text())
    modules[1]["type"] = "custom_st.Pooling"
    (odd / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=r"needs code of its own \(custom_st.Pooling in mod"):
        load(odd)
    (odd / "modules.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"modules.json: expected a list of modules"):
        load(odd)
    (odd / "modules.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no modules.json, so nothing says how"):
        load(odd)
    lost = copied("lost")
    state = load_file(lost / "model.safetensors")
    name = next(key for key in state if key.endswith("mlp.up_proj.weight"))
    del state[name]
    save_file(state, lost / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing keys \(.*up_proj"):
        load(lost)
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

    pooled = tiny.multi_vector(tmp_path / "pooled", HierarchicalTokenPooling(pool_factor=2))
    with pytest.raises(CheckpointError, match=r"pools its vectors \(HierarchicalTokenPooling\)"):
        load(pooled)
    (image,) = pictures([(30, 20)])
    backbone = load(places["chat"])
    with pytest.raises(ValueError, match=r"aspect ratio"):
        backbone.preprocess(image.resize((900, 2)))


def test_views_and_crops_are_refused(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    project(tmp_path, f"{{family: sentence, weights: {places['chat']}}}")
    for words in (["--views", "1"], ["--crops", "wca"]):
        done = run(*words)
        assert done.exit_code == 2, done.output
        assert f"takes pictures of varying size: no {words[0]}" in done.output


def test_the_digest_is_of_all_modules(places: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(places["mean"], tmp_path / "copy"))
    first = load(folder).spec.weights_digest
    assert load(places["mean"]).spec.weights_digest == first
    for file in (folder / "chat_template.jinja", folder / "2_Dense" / "config.json"):
        file.write_text(file.read_text() + "\n")
        assert load(folder).spec.weights_digest != first
        first = load(folder).spec.weights_digest


def test_a_wrong_family_is_told_this_one(places: dict[str, Path]) -> None:
    request = BackboneRequest(name="m", family="dual", weights=str(places["multi"]), options={})
    with pytest.raises(UsageError, match=rf"multi-vector .*: sentence:{places['multi']}"):
        load_backbone(request)


class TestContract(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, places: dict[str, Path]) -> Any:
        return load(places["mean"])


def test_vectors_alone_cannot_be_searched(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    project(tmp_path, f"{{family: sentence, weights: {places['colqwen']}}}")
    assert run().exit_code == 0
    words = ["search", "--split", "val", "--model", "m", "a dog"]
    done = CliRunner().invoke(evaluate, words)
    assert done.exit_code == 2, done.output
    assert "model 'm' has no joint space of one vector an item" in done.output
