"""The `scenes` data set: the same bytes for the same seed, whole on disk or not there at all."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scene_entries import scene_entry

from hada.extract.common.errors import DatasetError, UsageError
from hada.extract.pretraining.recipes import RECIPES
from hada.extract.scenes import write_scenes
from hada.extract.scenes.classes import CLASSES, LABELS
from hada.extract.scenes.draw import PALETTE, SIDE, encode_png, render, render_with_owners
from hada.extract.scenes.grammar import PEOPLE, write_captions
from hada.extract.scenes.words import tokens, vocabulary
from hada.extract.scenes.world import (
    FAMILY_SIZE,
    PATTERNS,
    SHAPES,
    SIZES,
    Dice,
    Scene,
    Thing,
    sample_scene,
)
from hada.extract.scenes.write import ANNOTATIONS, IMAGES, MARKER

SMALL = {"train": 24, "val": 5, "test": 11}
# Raise write.GENERATOR with it: whoever has a data set on disk must learn that it is another one.
PINNED = "dc5aaf46a5e59bab7031d6318a2cbaa72e7ab041ea7a5f4ee1986285e3cf9c87"


def test_the_same_seed_gives_the_pinned_bytes(tmp_path: Path) -> None:
    summary = write_scenes(tmp_path / "scenes", **SMALL)
    assert summary.images == SMALL
    assert summary.captions == 200
    assert not summary.kept
    content = hashlib.sha256((tmp_path / "scenes" / ANNOTATIONS).read_bytes())
    pictures = hashlib.sha256()
    for row in json.loads((tmp_path / "scenes" / ANNOTATIONS).read_text())["images"]:
        pictures.update((tmp_path / "scenes" / IMAGES / row["filename"]).read_bytes())
    content.update(pictures.digest())
    assert summary.digest == content.hexdigest() == PINNED


def test_classes_and_labels_are_true_of_the_pictures(tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    write_scenes(root, **SMALL)
    classes, labels = (json.loads((root / name).read_text()) for name in (CLASSES, LABELS))
    assert len(classes) == 100
    assert "A crimson disc." in classes["red circle"]
    rows = json.loads((root / ANNOTATIONS).read_text())["images"]
    assert set(labels) == {row["filename"] for row in rows}
    things = sample_scene(0, "val", 3).things
    assert set(labels["val_000003.png"]) == {f"{t.colour} {t.shape}" for t in things}
    assert {name for names in labels.values() for name in names} <= set(classes)
    (root / LABELS).unlink()  # as in a set of before there were labels
    assert write_scenes(root, **SMALL).kept
    assert json.loads((root / LABELS).read_text()) == labels


def test_order_and_processes_change_nothing() -> None:
    numbers = list(range(45))
    alone = [scene_entry(number) for number in numbers]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        shared = list(pool.map(scene_entry, reversed(numbers), chunksize=4))
    assert sorted(shared) == alone


def test_a_larger_set_holds_the_smaller_one(tmp_path: Path) -> None:
    write_scenes(tmp_path / "a", train=0, val=0, test=3)
    write_scenes(tmp_path / "b", train=0, val=0, test=6)
    for index in range(3):
        name = f"{IMAGES}/test_{index:06d}.png"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_seed_and_another_split_give_other_scenes() -> None:
    assert len({sample_scene(seed, split, 3) for seed in (0, 1) for split in ("val", "test")}) == 4


def test_the_json_is_karpathys(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", **SMALL)
    data = json.loads((tmp_path / "scenes" / ANNOTATIONS).read_text())
    assert data["dataset"] == "scenes"
    assert len(data["images"]) == 40
    sentids = [sentid for row in data["images"] for sentid in row["sentids"]]
    assert sentids == list(range(200))
    for imgid, row in enumerate(data["images"]):
        assert row["imgid"] == imgid
        assert (tmp_path / "scenes" / IMAGES / row["filename"]).is_file()
        assert [s["sentid"] for s in row["sentences"]] == row["sentids"]
        assert len({s["raw"] for s in row["sentences"]}) == 5
        for sentence in row["sentences"]:
            assert sentence["imgid"] == imgid
            assert sentence["tokens"] == tokens(sentence["raw"])


def test_pictures_decode_to_what_was_drawn() -> None:
    for index in range(5):
        pixels = render(sample_scene(0, "test", index))
        with Image.open(io.BytesIO(encode_png(pixels))) as picture:
            picture.verify()
        with Image.open(io.BytesIO(encode_png(pixels))) as picture:
            assert picture.size == (SIDE, SIDE)
            assert np.array_equal(np.asarray(picture.convert("RGB")), PALETTE[pixels])


def test_every_thing_is_visible_and_distinct() -> None:
    seen = {}
    for shape in SHAPES:
        for size in SIZES:
            for pattern in PATTERNS:
                thing = Thing(
                    shape=shape, colour="red", size=size, pattern=pattern, column=1, row=1
                )
                scene = Scene(things=(thing,), ground="grey", texture="plain")
                pixels, owners = render_with_owners(scene)
                assert (owners == 1).sum() > 50
                seen[pixels.tobytes()] = (shape, size, pattern)
    assert len(seen) == len(SHAPES) * len(SIZES) * len(PATTERNS)


def test_a_family_shares_most_of_its_attributes() -> None:
    def attributes(scene: Scene) -> set[tuple[str, str, int, int]]:
        return {(t.shape, t.colour, t.column, t.row) for t in scene.things}

    shared_in, shared_out = [], []
    for index in range(0, 40 * FAMILY_SIZE, FAMILY_SIZE):
        first = attributes(sample_scene(0, "test", index))
        sibling = attributes(sample_scene(0, "test", index + 1))
        stranger = attributes(sample_scene(0, "test", index + FAMILY_SIZE))
        shared_in.append(len(first & sibling) / len(first))
        shared_out.append(len(first & stranger) / len(first))
    assert np.mean(shared_in) > 0.25 > 10 * np.mean(shared_out)


def test_scenes_keep_their_bounds() -> None:
    for index in range(400):
        scene = sample_scene(3, "train", index)
        cells = {(t.column, t.row) for t in scene.things}
        assert 2 <= len(scene.things) <= 5
        assert len(cells) == len(scene.things)
        assert cells <= {(x, y) for x in range(3) for y in range(3)}


def test_captions_are_true_to_what_they_count_and_place() -> None:
    numbers = {"two": 2, "three": 3, "four": 4, "five": 5}
    counted = 0
    for index in range(200):
        scene = sample_scene(1, "test", index)
        for caption in write_captions(scene, PEOPLE, Dice(1, index)):
            words = tokens(caption)
            if words[0] in numbers and words[1] in ("shapes", "figures", "things"):
                assert numbers[words[0]] == len(scene.things)
                counted += 1
            if "red" in words or "crimson" in words:
                assert any(t.colour == "red" for t in scene.things)
            if "star" in words:
                assert any(t.shape == "star" for t in scene.things)
    assert counted > 20


def test_the_vocabulary_is_what_captions_use() -> None:
    used: set[str] = set()
    longest = 0
    voices = [PEOPLE, *(recipe.voice for recipe in RECIPES.values())]
    for index in range(1500):
        scene = sample_scene(2, "train", index)
        for voice in voices:
            for caption in write_captions(scene, voice, Dice(2, index)):
                words = tokens(caption)
                used.update(words)
                longest = max(longest, len(words) + caption.count(",") + caption.count("."))
    assert used == set(vocabulary())
    assert longest + 2 <= min(recipe.context for recipe in RECIPES.values())


def test_a_complete_set_is_kept(tmp_path: Path) -> None:
    first = write_scenes(tmp_path / "scenes", **SMALL)
    before = (tmp_path / "scenes" / ANNOTATIONS).stat().st_mtime_ns
    again = write_scenes(tmp_path / "scenes", **SMALL)
    assert again.kept
    assert again.digest == first.digest
    assert again.images == first.images
    assert (tmp_path / "scenes" / ANNOTATIONS).stat().st_mtime_ns == before


def test_an_interrupted_call_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "scenes", **SMALL, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_call_left_is_cleared(tmp_path: Path) -> None:
    leftover = tmp_path / ".scenes.tmp-999999999"
    (leftover / IMAGES).mkdir(parents=True)
    write_scenes(tmp_path / "scenes", **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_other_parameters_and_damage_are_refused_and_mended_on_request(tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    write_scenes(root, **SMALL)
    with pytest.raises(DatasetError, match="made with seed 0, not 1"):
        write_scenes(root, **SMALL, seed=1)
    (root / IMAGES / "test_000003.png").unlink()
    with pytest.raises(DatasetError, match="expected 40 pictures"):
        write_scenes(root, **SMALL)
    assert not write_scenes(root, **SMALL, fresh=True).kept
    assert write_scenes(root, **SMALL).kept


def test_a_foreign_folder_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(DatasetError, match="no `scenes` data set"):
            write_scenes(tmp_path, **SMALL, fresh=fresh)
    assert (tmp_path / "holiday.txt").read_text() == "mine"
    assert not (tmp_path / MARKER).exists()


def test_making_a_data_set_needs_nothing_but_numpy() -> None:
    heavy = ["torch", "transformers", "open_clip", "PIL", "rich"]
    code = (
        "import sys, hada.extract; assert 'numpy' not in sys.modules\n"
        "import hada.extract.scenes\n"
        f"loaded = [name for name in {heavy} if name in sys.modules]\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sizes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not all 0"):
        write_scenes(tmp_path / "scenes", train=0, val=0, test=0)
    with pytest.raises(UsageError, match="0 or more"):
        write_scenes(tmp_path / "scenes", train=-1)
