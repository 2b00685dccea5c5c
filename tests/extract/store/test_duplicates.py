"""Near copies of images across splits are found, and neighbours that look alike are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from hada.extract.cli import extract, store
from hada.extract.spec import ModelSpec, StoreSpec
from hada.extract.store import open_store, write_store
from hada.extract.store.duplicates import near_duplicates


def write(path: Path, embeddings: NDArray[Any], start: str) -> None:
    """A store of images alone."""
    model = ModelSpec(
        name=path.name,
        family="fake",
        weights_digest="a",
        embedding_width=embeddings.shape[1],
        normalized=False,
        image=None,
        caption=None,
    )
    spec = StoreSpec(
        model=model, dataset="d", split=path.parent.name, dataset_digest="0", dtype="float32"
    )
    write_store(
        path,
        spec,
        ids={"image": [f"{start}{k}" for k in range(len(embeddings))], "caption": []},
        caption_to_image=np.zeros(0, np.int64),
        embeddings={"image": embeddings, "caption": np.zeros((0, embeddings.shape[1]), "f4")},
    )


def make(tmp_path: Path, cone: float, copies: int = 1) -> None:
    """Two models, 60 and 30 images; b3, b7 and b11 are near copies of a0, a1 and a2.

    `cone`: how much all embeddings have in common, as those of trained models have.
    """
    for seed, model in enumerate(("one", "two")):
        random = np.random.default_rng(seed)
        common = cone * random.standard_normal(32)
        a = common + random.standard_normal((60, 32))
        b = common + random.standard_normal((30, 32))
        for copy in range(1, copies):
            a[20 + copy] = a[0] + 0.1 * random.standard_normal(32)
        for number, row in enumerate((3, 7, 11)):
            b[row] = a[number] + 0.15 * random.standard_normal(32)
        b[20] = a[9] if model == "one" else b[20]  # one model alone thinks so
        write(tmp_path / "train" / model, a.astype(np.float32), "a")
        write(tmp_path / "test" / model, 3 * b.astype(np.float32), "b")


@pytest.mark.parametrize("cone", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("copies", [1, 3])
def test_copies_are_found_whatever_cosines_a_model_has(
    tmp_path: Path, cone: float, copies: int
) -> None:
    make(tmp_path, cone, copies)
    result = CliRunner().invoke(store, ["duplicates", f"{tmp_path}/test", f"{tmp_path}/train"])
    assert result.exit_code == 0, result.stderr
    found = {line.split()[1] for line in result.output.splitlines()[:-1]}
    assert found == {"b3", "b7", "b11"}
    assert "3 images of" in result.output


def test_one_block_or_many_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, 1.0)
    stores = [
        [open_store(tmp_path / split / model) for model in ("one", "two")]
        for split in ("test", "train")
    ]
    whole = near_duplicates(*stores)
    monkeypatch.setattr("hada.extract.store.duplicates._BLOCK_NUMBERS", 100)
    parts = near_duplicates(*stores)
    assert [(p.image, p.other) for p in parts] == [(p.image, p.other) for p in whole]
    np.testing.assert_allclose([p.ratio for p in parts], [p.ratio for p in whole], rtol=1e-4)
    assert len(whole) == 3


def test_few_images_are_not_searched(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        write(tmp_path / split / "one", random.standard_normal((20, 8)).astype(np.float32), split)
    stores = [[open_store(tmp_path / split / "one")] for split in ("test", "train")]
    assert near_duplicates(*stores) == []


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    make(tmp_path, 0.0)
    (tmp_path / "empty").mkdir()
    for other, message in (("empty", "no store of one model in both"), ("nowhere", "no such")):
        result = CliRunner().invoke(
            store, ["duplicates", f"{tmp_path}/test", f"{tmp_path}/{other}"]
        )
        assert result.exit_code == 1
        assert message in result.stderr


@pytest.mark.slow
def test_extraction_tells_of_copies_between_splits(tmp_path: Path) -> None:
    sample = layouts.make_sample(tmp_path / "photos" / "a", images=60)
    names = [f"a/{name}" for name in sample.names]
    copy = tmp_path / "photos" / "b" / "copy.png"
    copy.parent.mkdir()
    random = np.random.default_rng(0)
    for number in range(60):  # no two alike, as the colours of the sample are
        pixels = random.integers(0, 255, (4, 4, 3), np.uint8)
        image = Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC)
        image.save(tmp_path / "photos" / names[number])
    Image.open(tmp_path / "photos" / names[4]).resize((60, 60)).save(copy)
    (tmp_path / "train.txt").write_text("\n".join(names))
    (tmp_path / "test.txt").write_text("b/copy.png\n")
    result = CliRunner().invoke(
        extract,
        [
            *("--data", f"{tmp_path}/photos", "--model", "clip=clip:builtin:scenes/clip"),
            *("--split-ids", f"train={tmp_path}/train.txt", "--device", "cpu"),
            *("--split-ids", f"test={tmp_path}/test.txt", "--root", f"stores={tmp_path}/stores"),
        ],
    )
    assert result.exit_code == 0, result.stderr
    assert "1 images of test are nearly images of train, such as b/copy.png" in result.stderr
