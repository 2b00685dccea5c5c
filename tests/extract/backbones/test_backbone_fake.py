"""The fake backbone, with and without tokens, and the registry that finds families."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hada.extract import backbones
from hada.extract.backbones import Backbone, BackboneRequest, load_backbone
from hada.extract.common.errors import UnknownNameError, UsageError
from hada.extract.testing.backbone_contract import BackboneContract


def request(family: str = "fake", **options: Any) -> BackboneRequest:
    return BackboneRequest(name="m", family=family, weights="seed", options=options)


class TestFake(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls) -> Backbone:
        return load_backbone(request())


class TestFakePooled(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls) -> Backbone:
        return load_backbone(request(pooled=True, width=5, caption_width=7, embedding_width=3))


class TestFakeEmbeddingsOnly(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls) -> Backbone:
        return load_backbone(request(tokens=False))


def test_a_pooled_vector_alone() -> None:
    backbone = load_backbone(request(image_tokens=0, pooled=True))
    pixels = backbone.preprocess(Image.new("RGB", (5, 5), "red"))[None]
    assert backbone.spec.image is not None
    assert backbone.spec.image.count == 1
    encoded = backbone.encode_images(pixels)
    assert encoded.values is not None
    assert encoded.values.shape == (1, 16)


def test_colours_are_found() -> None:
    backbone = load_backbone(request())
    colours = ["red", "green", "blue", "white", "black"]
    pixels = [backbone.preprocess(Image.new("RGB", (9, 7), colour)) for colour in colours]
    images = np.asarray(backbone.encode_images(np.stack(pixels)).embeddings)
    captions = np.asarray(backbone.encode_captions(backbone.tokenize(colours)).embeddings)
    distances = np.linalg.norm(images[:, None] - captions[None], axis=-1)
    # PIL's "green" is the dark one of HTML; it is still nearest to our green.
    assert distances.argmin(axis=1).tolist() == [0, 1, 2, 3, 4]


def test_weights_seed_the_fake() -> None:
    other = BackboneRequest(name="m", family="fake", weights="other", options={})
    ids = load_backbone(request()).tokenize(["a dog"])
    one = load_backbone(request()).encode_captions(ids).embeddings
    two = load_backbone(other).encode_captions(ids).embeddings
    assert not np.allclose(np.asarray(one), np.asarray(two))
    assert load_backbone(request()).spec.weights_digest != load_backbone(other).spec.weights_digest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widht": 3}, "Did you mean 'width'"),
        ({"width": "3"}, "expected int, got '3'"),
        ({"width": True}, "expected int, got True"),
        ({"width": 0}, "must be >= 1"),
        ({"image_tokens": -1}, "expected an integer >= 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_backbone(request(**options))


def test_an_unknown_family_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'clip'"):
        load_backbone(request("clipp"))


def test_module_and_class(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_models")

    class Mine:
        def __init__(self, request: BackboneRequest) -> None:
            self.request = request

    module.Mine = Mine  # type: ignore[attr-defined]
    module.number = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_models", module)
    backbone = load_backbone(request("my_models:Mine"))
    assert isinstance(backbone, Mine)
    assert backbone.request.weights == "seed"
    with pytest.raises(UnknownNameError, match="Did you mean 'Mine'"):
        load_backbone(request("my_models:Min"))
    with pytest.raises(UsageError, match="expected a function or a class"):
        load_backbone(request("my_models:number"))
    with pytest.raises(UsageError, match="expected module:attribute"):
        load_backbone(request("my_models:"))


def test_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = importlib.metadata.EntryPoint(
        name="theirs", value="hada.extract.backbones.fake:load", group=backbones.ENTRY_POINTS
    )
    monkeypatch.setattr(backbones, "entry_points", lambda group: [entry])
    assert "theirs" in backbones.families()
    assert load_backbone(request("theirs")).spec.family == "theirs"


def test_a_missing_package_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for name in [name for name in sys.modules if name.startswith("hada.extract.backbones.clip")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError, match="pip install open_clip_torch") as caught:
        load_backbone(request("clip"))
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_nothing_heavy_is_imported_until_named() -> None:
    code = (
        "import sys, hada.extract.backbones as b; b.families();"
        "print(sorted({'torch', 'transformers', 'open_clip', 'PIL'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
