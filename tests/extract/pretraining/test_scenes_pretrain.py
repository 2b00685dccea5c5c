"""The small models: a few steps of training, and back through their libraries' own loaders."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from places import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
open_clip = pytest.importorskip("open_clip")

from hada.extract.backbones.preprocessing import MEAN, STD  # noqa: E402
from hada.extract.common.device import choose_device  # noqa: E402
from hada.extract.common.errors import NonFiniteError, UsageError  # noqa: E402
from hada.extract.pretraining.build import build, load  # noqa: E402
from hada.extract.pretraining.corpus import (  # noqa: E402
    VALUES,
    Corpus,
    patch_things,
    tag_count,
    tag_numbers,
    to_input,
)
from hada.extract.pretraining.figures import cosines, recalls, table  # noqa: E402
from hada.extract.pretraining.learner import Learner  # noqa: E402
from hada.extract.pretraining.pretrain import main, pretrain, save  # noqa: E402
from hada.extract.pretraining.recipes import BLIP, CLIP, RECIPES, PretrainingPlan, Recipe  # noqa: E402
from hada.extract.pretraining.towers import Towers  # noqa: E402
from hada.extract.scenes.draw import PALETTE, SIDE, render  # noqa: E402
from hada.extract.scenes.world import sample_scene  # noqa: E402

pytestmark = pytest.mark.slow

WEIGHTS = ROOT / "extract" / "scenes" / "weights"
CAPTIONS = ["A red star to the left of a big ring.", "Two shapes, one of them blue", "a zebra"]


def tiny(name: str) -> Recipe:
    return dataclasses.replace(
        RECIPES[name],
        width=32,
        joint=16,
        heads=2,
        image_layers=1,
        text_layers=1,
        feedforward=32,
        batch=8,
    )


@pytest.fixture(scope="module", params=["blip", "clip"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models") / request.param
    towers = pretrain(
        tiny(request.param), PretrainingPlan(steps=4, scenes=40, save_every=2), folder
    )
    return towers, folder


def _pixels(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.stack([render(sample_scene(0, "test", index)) for index in range(count)])


def _pictures(count: int) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(PALETTE[pixels]) for pixels in _pixels(count)]


def _reloaded(name: str, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of two pictures and of CAPTIONS, through the library alone."""
    if name == "blip":
        from transformers import AutoTokenizer, BlipForImageTextRetrieval, BlipProcessor

        model = BlipForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32).eval()
        processor = BlipProcessor.from_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder)("a star").input_ids[0] == 2  # [CLS]
        images = processor(images=_pictures(2), return_tensors="pt")["pixel_values"]
        texts = processor(text=CAPTIONS, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            seen = model.vision_model(pixel_values=images).last_hidden_state[:, 0]
            read = model.text_encoder(
                input_ids=texts["input_ids"], attention_mask=texts["attention_mask"]
            ).last_hidden_state[:, 0]
            return model.vision_proj(seen), model.text_proj(read)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.inference_mode():
        images = torch.stack([transform(picture) for picture in _pictures(2)])
        return model.eval().encode_image(images), model.encode_text(tokenizer(CAPTIONS))


def test_the_libraries_load_what_was_saved(trained: tuple[Towers, Path]) -> None:
    towers, folder = trained
    towers.model.eval()
    with torch.inference_mode():
        _, seen = towers.see(towers.images(_pixels(2)))
        read = towers.read(CAPTIONS)
    images, texts = _reloaded(towers.recipe.name, folder)
    assert torch.isfinite(images).all()
    assert torch.isfinite(texts).all()
    # float16 weights, and a resize done in whole numbers on the library's side
    torch.testing.assert_close(images, seen, rtol=0, atol=0.03)
    torch.testing.assert_close(texts, read, rtol=0, atol=0.01)


def test_weights_are_half_precision_safetensors(trained: tuple[Towers, Path]) -> None:
    from safetensors.torch import load_file

    _, folder = trained
    (file,) = folder.glob("*.safetensors")
    floats = [value for value in load_file(file).values() if value.is_floating_point()]
    assert floats
    assert all(value.dtype == torch.float16 for value in floats)
    assert not list(folder.parent.glob(".*"))


def test_weights_come_back_as_saved(trained: tuple[Towers, Path]) -> None:
    towers, folder = trained
    again = load(towers.recipe, folder)
    pairs = zip(towers.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a.half().float(), b) for a, b in pairs)


def test_reading_in_groups_keeps_the_order(trained: tuple[Towers, Path]) -> None:
    towers, _ = trained
    captions = CAPTIONS * 3
    with torch.inference_mode():
        together = towers.read(captions)
        alone = torch.cat([towers.read([caption]) for caption in captions])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["blip", "clip"])
def test_training_makes_the_loss_fall(name: str) -> None:
    torch.manual_seed(0)
    recipe = tiny(name)
    corpus = Corpus(recipe, 40, seed=3)
    learner = Learner(build(recipe), PretrainingPlan(), corpus.tag_share)
    batch = corpus.batch(8, 1, 0)
    losses = [learner.step(batch, 0.0, 1.0)["loss"] for _ in range(12)]
    assert losses[-1] < losses[0] - 1


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    recipe = tiny("clip")
    corpus = Corpus(recipe, 20, seed=3)
    learner = Learner(build(recipe), PretrainingPlan(), corpus.tag_share)
    with torch.no_grad():
        next(iter(learner.towers.model.parameters())).fill_(torch.nan)
    with pytest.raises(NonFiniteError):
        learner.step(corpus.batch(4, 1, 0), 0.0, 1.0)


def test_a_batch_is_a_function_of_its_step() -> None:
    corpus, again = Corpus(tiny("blip"), 80, seed=1), Corpus(tiny("blip"), 80, seed=1)
    first, second = corpus.batch(8, 2, 5), again.batch(8, 2, 5)
    assert first.captions == second.captions
    assert len(first.captions) == 16
    assert np.array_equal(first.pixels, second.pixels)
    assert corpus.batch(8, 2, 6).captions != first.captions
    assert first.tags.shape == (8, tag_count(BLIP))
    assert first.hints["shape"].shape == (8, 9)


def test_hints_name_the_thing_in_the_patch() -> None:
    scene = sample_scene(0, "test", 0)
    owners = np.zeros((SIDE, SIDE), dtype=np.uint8)
    owners[:32, 32:64] = 2
    owners[64:, 64:68] = 1  # an eighth of its patch
    owners[32:64, :2] = 1  # a sixteenth: too little
    assert patch_things(owners, 3).tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 1]
    assert set(VALUES) == {name for name, _ in BLIP.hints}
    assert len(tag_numbers(CLIP, scene)) == len(CLIP.tags) * len(scene.things)


def test_the_input_is_what_the_library_makes_of_the_picture() -> None:
    made = to_input(_pixels(2), 72, MEAN, STD, torch.device("cpu"))
    config = open_clip.transform.PreprocessCfg(size=72, mean=MEAN, std=STD)
    theirs = open_clip.transform.image_transform_v2(config, is_train=False)
    expected = torch.stack([theirs(picture) for picture in _pictures(2)])
    assert (made - expected).abs().mean() < 0.01


def test_an_interrupted_save_leaves_the_last_complete_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    towers = build(tiny("clip"))
    save(towers, tmp_path / "model")
    before = (tmp_path / "model" / "open_clip_model.safetensors").read_bytes()

    def half(folder: Path) -> None:
        folder.mkdir()
        (folder / "open_clip_model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(towers, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save(towers, tmp_path / "model")
    assert (tmp_path / "model" / "open_clip_model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_recalls_against_a_slow_reference_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, size=(6, 12)).astype(np.float32)
    found = recalls(scores)
    for k in (1, 5, 10):
        i2t = t2i = 0
        for image in range(6):
            own = [2 * image, 2 * image + 1]
            best = max(scores[image, j] for j in own)
            i2t += sum(scores[image, j] >= best for j in range(12) if j not in own) < k
        for caption in range(12):
            right = scores[caption // 2, caption]
            t2i += sum(scores[i, caption] >= right for i in range(6) if i != caption // 2) < k
        assert found[f"i2t R@{k}"] == pytest.approx(100 * i2t / 6, abs=0.01)
        assert found[f"t2i R@{k}"] == pytest.approx(100 * t2i / 12, abs=0.01)
    assert "| x | " in table([("x", found)])


def test_a_constant_scorer_gets_nothing() -> None:
    assert set(recalls(np.zeros((20, 100), dtype=np.float32)).values()) == {0.0}


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    missing = CliRunner().invoke(main, ["--model", "nothing", "--output", str(tmp_path / "x")])
    assert missing.exit_code == 2
    assert not (tmp_path / "x").exists()
    with pytest.raises(UsageError, match="not usable here"):
        choose_device("cuda:77")
    with pytest.raises(UsageError, match="at least 1"):
        PretrainingPlan(steps=0)


@pytest.fixture
def shipped(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    source = WEIGHTS / request.param
    assert source.is_dir(), "the shipped weights are part of the project"
    return Path(shutil.copytree(source, tmp_path / request.param))


@pytest.mark.parametrize("shipped", ["blip", "clip"], indirect=True)
def test_shipped_weights_load_and_retrieve(shipped: Path) -> None:
    name = shipped.name
    images, texts = _reloaded(name, shipped)
    recipe = RECIPES[name]
    assert images.shape == (2, recipe.joint)
    assert texts.shape == (3, recipe.joint)
    assert torch.isfinite(images).all()
    assert torch.isfinite(texts).all()
    card = (shipped / "README.md").read_text(encoding="utf-8")
    assert "apache-2.0" in card
    assert "hada.extract.pretraining.pretrain" in card


def test_shipped_weights_are_small() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) < 5_000_000
    assert sum(path.stat().st_size for path in files) < 12_000_000
    config = json.loads((WEIGHTS / "clip" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["embed_dim"] == CLIP.joint


def test_cosines_have_one_row_per_picture() -> None:
    scores = cosines(build(tiny("blip")), count=4)
    assert scores.shape == (4, 20)
    assert np.abs(scores).max() <= 1.001
