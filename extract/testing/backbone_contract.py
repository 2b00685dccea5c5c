"""What every backbone must do; a family's test class inherits this and names its model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hada.extract.backbones import Backbone, Encoded
from hada.extract.backbones.base import completed

CAPTIONS = [
    "A dog.",
    "Two people in red shirts sit on a bench, in the park, and look at a lake.",
    "a man's bike",
]
ODD_CAPTIONS = ["", " ", "狗在跑", "собака бежит", "a\nb\tc", "🐕" * 5]
SHAPES = [(131, 97), (80, 150), (33, 20), (1, 1), (300, 2)]


def pictures(sizes: Sequence[tuple[int, int]] = SHAPES) -> list[Image.Image]:
    """Fixed noise in RGB, one picture per (width, height)."""
    generator = np.random.default_rng(0)
    return [
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in sizes
    ]


def split(encoded: Encoded) -> list[NDArray[np.float32]]:
    """The token rows of each item."""
    assert encoded.values is not None
    assert encoded.lengths is not None
    return np.split(encoded.values, np.cumsum(encoded.lengths)[:-1])


class BackboneContract:
    """Inherit, and override `backbone` with a fixture of scope "class".

    modes: Modes of PIL beside RGB that `preprocess` takes. HADA itself gives it RGB alone.
    """

    modes: Sequence[str] = ("L", "RGBA")

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls) -> Backbone:
        pytest.fail(f"{cls.__name__} names no backbone: override this fixture")

    def project(self, backbone: Any, side: str, row: NDArray[np.float32]) -> Any:
        """The embeddings that follow from (B, D) global rows, None where none can be computed."""
        return None

    @pytest.fixture(scope="class")
    @classmethod
    def pixels(cls, backbone: Backbone) -> Any:
        completed(backbone)
        inputs = [backbone.preprocess(picture) for picture in pictures()[:3]]
        return inputs if backbone.varying_input else np.stack(inputs)

    def check(self, encoded: Encoded, lengths: list[int], spec: Any, width: int | None) -> None:
        if spec is None:
            assert encoded.values is None
            assert encoded.lengths is None
        else:
            assert encoded.values is not None
            assert encoded.lengths is not None
            assert encoded.values.dtype == np.float32
            assert encoded.lengths.dtype == np.int64
            assert encoded.lengths.tolist() == lengths
            assert encoded.values.shape == (sum(lengths), spec.width)
            assert np.isfinite(encoded.values).all()
        if width is None:
            assert encoded.embeddings is None
        else:
            assert encoded.embeddings is not None
            assert encoded.embeddings.dtype == np.float32
            assert encoded.embeddings.shape == (len(lengths), width)
            assert np.isfinite(encoded.embeddings).all()

    def test_spec_travels_as_json(self, backbone: Backbone) -> None:
        values = dataclasses.asdict(backbone.spec)
        assert json.loads(json.dumps(values)) == values
        assert len(backbone.spec.weights_digest) == 64

    def test_images_are_as_declared(self, backbone: Backbone, pixels: Any) -> None:
        spec = backbone.spec
        if spec.image is not None and spec.image.count is None:
            assert backbone.image_rows is not None, "spec.image.count is None, so image_rows tells"
            lengths = [backbone.image_rows(*picture.size) for picture in pictures()[:3]]
        else:
            lengths = [spec.image.count or 0 if spec.image else 0] * 3
        self.check(backbone.encode_images(pixels), lengths, spec.image, spec.embedding_width)

    def test_captions_are_as_declared(self, backbone: Backbone) -> None:
        completed(backbone)
        spec = backbone.spec
        ids = backbone.tokenize(CAPTIONS)
        extra = int(spec.caption is not None and spec.caption.global_source == "pooled")
        lengths = [len(row) + extra for row in ids]
        if spec.caption is not None and backbone.caption_rows is not None:
            lengths = backbone.caption_rows(ids).tolist()
        self.check(backbone.encode_captions(ids), lengths, spec.caption, spec.embedding_width)

    @pytest.mark.parametrize("side", ["image", "caption"])
    def test_the_global_row_gives_the_embedding(
        self, backbone: Backbone, pixels: Any, side: Any
    ) -> None:
        encoded = (
            backbone.encode_images(pixels)
            if side == "image"
            else backbone.encode_captions(backbone.tokenize(CAPTIONS))
        )
        spec = backbone.spec.tokens(side)
        if spec is None:
            pytest.skip("this model keeps embeddings only")
        position = 0 if spec.global_token == "first" else -1
        expected = self.project(backbone, side, np.stack([r[position] for r in split(encoded)]))
        if expected is None:
            pytest.skip("this family's embedding does not follow from the global row alone")
        np.testing.assert_allclose(np.asarray(encoded.embeddings), expected, atol=2e-6, rtol=1e-5)

    def test_embeddings_have_unit_length_where_declared(
        self, backbone: Backbone, pixels: Any
    ) -> None:
        if backbone.spec.embedding_width is None:
            pytest.skip("this model has no joint space")
        lengths = np.linalg.norm(np.asarray(backbone.encode_images(pixels).embeddings), axis=1)
        assert np.allclose(lengths, 1, atol=1e-5) == backbone.spec.normalized

    def test_a_batch_of_images_equals_its_items(self, backbone: Backbone, pixels: Any) -> None:
        whole = backbone.encode_images(pixels)
        for index in range(len(pixels)):
            single = backbone.encode_images(pixels[index : index + 1])
            self.equal(whole, single, index)

    def test_padding_changes_no_caption(self, backbone: Backbone) -> None:
        ids = backbone.tokenize(CAPTIONS)
        whole = backbone.encode_captions(ids)
        for index, row in enumerate(ids):
            self.equal(whole, backbone.encode_captions([row]), index)

    def equal(self, whole: Encoded, single: Encoded, index: int) -> None:
        if whole.values is not None:
            np.testing.assert_allclose(
                split(whole)[index], np.asarray(single.values), atol=2e-6, rtol=2e-6
            )
        if whole.embeddings is not None and single.embeddings is not None:
            np.testing.assert_allclose(
                whole.embeddings[index], single.embeddings[0], atol=2e-6, rtol=2e-6
            )

    def test_deterministic(self, backbone: Backbone, pixels: Any) -> None:
        first, second = backbone.encode_images(pixels), backbone.encode_images(pixels)
        np.testing.assert_array_equal(first.embeddings, second.embeddings)
        ids = backbone.tokenize(CAPTIONS)
        assert ids == backbone.tokenize(CAPTIONS)
        first, second = backbone.encode_captions(ids), backbone.encode_captions(ids)
        np.testing.assert_array_equal(first.embeddings, second.embeddings)

    def test_preprocess_takes_any_shape_and_mode(self, backbone: Backbone, pixels: Any) -> None:
        others = [pictures()[0].convert(mode) for mode in self.modes]
        for picture in [*pictures(), *others]:
            values = backbone.preprocess(picture)
            if backbone.varying_input:
                assert backbone.encode_images([values]) is not None  # type: ignore[arg-type]
                continue
            assert values.shape == pixels.shape[1:]
            assert values.dtype == np.float32
            assert values.flags.c_contiguous

    def test_preprocess_from_threads(self, backbone: Backbone) -> None:
        serial = [backbone.preprocess(picture) for picture in pictures()] * 8
        with ThreadPoolExecutor(4) as pool:
            threaded = list(pool.map(backbone.preprocess, pictures() * 8))
        for one, other in zip(serial, threaded, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_frozen(self, backbone: Backbone) -> None:
        model = getattr(backbone, "model", None)
        if model is None:
            pytest.skip("no PyTorch model inside")
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())

    def test_long_captions_keep_their_end_and_are_counted(self, backbone: Any) -> None:
        short, middle = backbone.tokenize(["a dog", "dog " * 300])
        before = getattr(backbone, "truncated", 0)
        (longest,) = backbone.tokenize(["dog " * 1000])
        if len(longest) >= 1000:
            pytest.skip("this model takes captions of any length")
        assert backbone.truncated == before + 1
        assert backbone.tokenize(["a dog"]) == [short]
        assert backbone.truncated == before + 1
        assert longest == middle
        assert len(longest) < 600
        assert longest[-1] == short[-1]
        assert np.isfinite(backbone.encode_captions([longest]).embeddings).all()

    def test_odd_captions(self, backbone: Backbone) -> None:
        ids = backbone.tokenize(ODD_CAPTIONS)
        assert all(len(row) >= 1 for row in ids)
        encoded = backbone.encode_captions(ids)
        assert encoded.embeddings is not None
        assert np.isfinite(encoded.embeddings).all()
        assert backbone.tokenize([]) == []
