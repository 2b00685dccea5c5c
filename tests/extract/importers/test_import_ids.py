"""hada-store import finds each row by an unambiguous id, or refuses; a row tells its number."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from hada.extract.cli import store
from hada.extract.store import open_store

IMAGES = ("cats/001.png", "dogs/001.png", "cats/002.png", "dogs/002.png")


def project(images: Sequence[str] = IMAGES, captions: int = 2) -> None:
    """Annotations of images in folders; an import needs no pictures."""
    Path("data/images").mkdir(parents=True)
    records = [
        {
            "filename": name,
            "split": "val",
            "sentences": [
                {"raw": f"caption {row} {n}", "sentid": captions * row + n} for n in range(captions)
            ],
        }
        for row, name in enumerate(images)
    ]
    Path("data/dataset_tiny.json").write_text(json.dumps({"images": records}))
    Path("data_manifest.yaml").write_text(makers.MANIFEST)


def run(kind: str, *arguments: str) -> Any:
    Path("stores").mkdir(exist_ok=True)
    return CliRunner().invoke(
        store,
        ["import", kind, "--model", "x", "--split", "val", "--store-dtype", "float32", *arguments],
    )


def refused(result: Any, *messages: str) -> None:
    """Exit code 2, one line, and nothing written."""
    assert result.exit_code == 2, result.output
    for message in messages:
        assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not any(Path("stores").rglob("*.json"))


def vector(number: int) -> np.ndarray:
    """A unit vector that tells which number it is of."""
    return np.array([np.cos(number / 50), np.sin(number / 50)], np.float32)


def check(result: Any, images: int, captions: int = 2) -> None:
    """Row i of either side has the vector of number i."""
    assert result.exit_code == 0, result.output
    found = open_store("stores/tiny/val/x")
    expected = np.stack([vector(number) for number in range(images)])
    np.testing.assert_array_equal(found.image.embeddings(), expected)
    expected = np.stack([vector(number) for number in range(images * captions)])
    np.testing.assert_array_equal(found.caption.embeddings(), expected)


def plain(names: Sequence[str], order: Sequence[int], images: int = len(IMAGES)) -> tuple[str, ...]:
    """Arrays in the order of `order`, whose ids `names` are."""
    np.save("i.npy", np.stack([vector(number) for number in order]))
    np.save("c.npy", np.stack([vector(number) for number in range(images * 2)]))
    Path("i.json").write_text(json.dumps(list(names)))
    Path("c.json").write_text(json.dumps([str(number) for number in range(images * 2)]))
    return (
        *("--images", "i.npy", "--image-ids", "i.json"),
        *("--captions", "c.npy", "--caption-ids", "c.json"),
    )


def pairs(folder: Path, names: Sequence[str], numbers: Sequence[int], **more: Any) -> None:
    """clip-retrieval's output in two parts: two captions of each image, in their order."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [(name, number, n) for name, number in zip(names, numbers, strict=True) for n in (0, 1)]
    for part, some in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
        for kind in ("img_emb", "text_emb", "metadata"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        images = np.stack([vector(number) for _, number, _ in some])
        captions = np.stack([vector(2 * number + n) for _, number, n in some])
        np.save(folder / f"img_emb/img_emb_{part}.npy", images)
        np.save(folder / f"text_emb/text_emb_{part}.npy", captions)
        table = {
            more.get("column", "image_path"): [name for name, _, _ in some],
            "caption": [f"caption {number}  {n}" for _, number, n in some],
        }
        parquet.write_table(arrow.table(table), folder / f"metadata/metadata_{part}.parquet")


ORDER = (3, 1, 0, 2)


def test_clip_retrieval_with_one_stem_in_two_folders() -> None:
    project()
    pairs(Path("cr"), [f"/data/photos/{IMAGES[number]}" for number in ORDER], ORDER)
    check(run("clip-retrieval", "--images", "cr"), 4)


@pytest.mark.parametrize(
    ("names", "messages"),
    [
        (["002", "001", "001", "002"], ["'cats/001.png' and 'dogs/001.png' both match '001'"]),
        (
            [f"/p/{IMAGES[number].replace('cats', 'birds')}" for number in ORDER],
            ["2 of 4 images of the dataset are not in cr, the first is 'cats/001.png'"],
        ),
        (["1", "2", "3", "4"], ["both have the number 1"]),
        ([None, "b", "c", "d"], ["4 of 4 images"]),
    ],
)
def test_clip_retrieval_that_is_ambiguous(names: list[str], messages: list[str]) -> None:
    project()
    pairs(Path("cr"), names, ORDER)
    refused(run("clip-retrieval", "--images", "cr"), *messages)


def test_clip_retrieval_where_one_key_names_two_images() -> None:
    """Keys that begin again in each tar are of several images: their embeddings tell."""
    project(("a.png", "b.png"))
    pairs(Path("cr"), ["a", "b", "a"], (0, 1, 40), column="key")
    refused(
        run("clip-retrieval", "--images", "cr"),
        "rows 0 and 4 (counted from 0) are both of 'a' and have different embeddings",
    )


def test_clip_retrieval_knows_an_image_again_in_another_batch() -> None:
    project(("a.png", "b.png"))
    pairs(Path("cr"), ["a", "b"], (0, 1), column="key")
    for part in (0, 1):
        file = Path(f"cr/img_emb/img_emb_{part}.npy")
        values = np.load(file)
        values[1] += 0.004  # as half precision gives it
        np.save(file, values)
    check(run("clip-retrieval", "--images", "cr"), 2)


def with_other(arguments: Sequence[str], old: str, new: Path | str) -> list[str]:
    """The arguments with another file of ids."""
    return [str(new) if argument == old else argument for argument in arguments]


def as_text(ids: Sequence[str], name: str) -> Path:
    file = Path(f"{name}.txt")
    file.write_bytes("".join(f"{id_}\n" for id_ in ids).encode())
    return file


def with_mark_and_crlf(ids: Sequence[str], name: str) -> Path:
    file = Path(f"{name}.txt")
    text = "\r\n".join(f" {id_}\t" for id_ in ids) + "\r\n\r\n"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    return file


def as_bytes(ids: Sequence[str], name: str) -> Path:
    np.save(f"{name}.npy", np.array([id_.encode() for id_ in ids]))
    return Path(f"{name}.npy")


def as_unicode(ids: Sequence[str], name: str) -> Path:
    np.save(f"{name}.npy", np.array(ids)[:, None])
    return Path(f"{name}.npy")


def as_texts_of_bytes(ids: Sequence[str], name: str) -> Path:
    file = Path(f"{name}.json")
    file.write_text(json.dumps([str(id_.encode()) for id_ in ids]))
    return file


def with_marks_within(ids: Sequence[str], name: str) -> Path:
    file = Path(f"{name}.json")
    file.write_text(json.dumps([f"\ufeff{id_}\0" for id_ in ids]))
    return file


@pytest.mark.parametrize("top", ["", "/mnt/photos/", "C:\\photos\\"])
@pytest.mark.parametrize(
    "write",
    [as_text, with_mark_and_crlf, as_bytes, as_unicode, as_texts_of_bytes, with_marks_within],
)
def test_ids_in_any_writing_are_read(write: Callable[[Sequence[str], str], Path], top: str) -> None:
    if write is as_texts_of_bytes and "\\" in top:
        pytest.skip("a backslash in such a text begins an escape")
    project()
    arguments: Sequence[str] = plain([], ORDER)
    names = [top + IMAGES[number] for number in ORDER]
    if "\\" in top:
        names = [name.replace("/", "\\") for name in names]
    arguments = with_other(arguments, "i.json", write(names, "image-ids"))
    captions = write([str(number) for number in range(8)], "caption-ids")
    check(run("npy", *with_other(arguments, "c.json", captions)), 4)


def test_whole_numbers_are_the_numbers_of_coco() -> None:
    project(("val2014/COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000007.jpg"))
    arguments = plain([], (1, 0), images=2)
    for ids in (np.array([7, 42]), np.array([[7], [42]], np.uint64)):
        np.save("i.ids.npy", ids)
        result = run("npy", *with_other(arguments, "i.json", "i.ids.npy"))
        assert "note: i.ids.npy: 2 of 2 images match by number alone, such as" in result.stderr
    check(result, 2)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["001.png", "002.png", "a", "b"],
            "'cats/001.png' and 'dogs/001.png' both match '001.png'",
        ),
        ([*IMAGES[:3], IMAGES[0]], "an id appears twice, 'cats/001.png' in rows 0 and 3"),
        ([f"/x/{id_}" for id_ in IMAGES[:3]] + ["/y/cats/001.png"], "fits 2 names equally well"),
        ([*IMAGES[:3], "birds/002.png"], "1 of 4 images of the dataset are not in i.json"),
        ([*IMAGES[:3], 1.5], "expected a whole number or text, got a number"),
        ([*IMAGES[:3], True], "expected a whole number or text, got true or false"),
        ([*IMAGES[:3], None], "expected a whole number or text, got nothing (null)"),
        (
            [*IMAGES, ""],
            "5 ids for 4 rows of embeddings; the id in row 4 (counted from 0) is blank",
        ),
        ([1, 2, 3, 4], "both have the number 1"),
        ({"a": 1}, "expected a list, got a mapping"),
    ],
)
def test_ids_that_are_ambiguous_or_none(names: Any, message: str) -> None:
    project()
    arguments = plain([], ORDER)
    Path("i.json").write_text(json.dumps(names))
    refused(run("npy", *arguments), message)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["a"], object), "pickled objects"),
        (np.zeros(4), "float64 of shape (4,), expected one id a row"),
        (np.array([["a", "b"]] * 4), "of shape (4, 2), expected one id a row"),
        (np.array([b"caf\xe9.jpg"] * 4), "is not UTF-8. Save the ids as text"),
        (np.array([True] * 4), "bool of shape (4,), expected one id a row"),
    ],
)
def test_arrays_that_hold_no_ids(array: np.ndarray, message: str) -> None:
    project()
    arguments = plain([], ORDER)
    np.save("i.ids.npy", array)
    refused(run("npy", *with_other(arguments, "i.json", "i.ids.npy")), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n".join(IMAGES).encode("utf-16"), "UTF-16 text, expected UTF-8"),
        ("\r".join(IMAGES).encode(), "lines end in a lone CR, expected LF or CRLF"),
        (b"caf\xe9\n" * 4, "line 1, column 4: not UTF-8 text"),
        (b"", "0 ids for 4 rows"),
        (b"a\n\nb\nc\nd", "5 ids for 4 rows of embeddings; the id in row 1"),
    ],
)
def test_text_that_holds_no_ids(text: bytes, message: str) -> None:
    project()
    arguments = plain([], ORDER)
    Path("i.txt").write_bytes(text)
    refused(run("npy", *with_other(arguments, "i.json", "i.txt")), message)


def test_a_line_separator_within_an_id_is_no_end_of_a_line() -> None:
    project(("a\u2028b.png", "c.png"))
    arguments = plain([], (1, 0), images=2)
    Path("i.txt").write_text("c.png\na\u2028b.png\n")
    check(run("npy", *with_other(arguments, "i.json", "i.txt")), 2)


def test_captions_are_found_by_their_own_ids_alone() -> None:
    project()
    arguments = plain(IMAGES, range(4))
    Path("c.json").write_text(json.dumps(["00", *map(str, range(1, 8))]))
    refused(run("npy", *arguments), "1 of 8 captions of the dataset are not in c.json")
    Path("c.json").write_text(json.dumps(["0", *map(str, range(7))]))
    refused(run("npy", *arguments), "an id appears twice, '0' in rows 0 and 1")


def test_safetensors_with_paths_of_another_machine() -> None:
    project()
    tensors = {
        "image_embeddings": np.stack([vector(number) for number in ORDER]),
        "caption_embeddings": np.stack([vector(number) for number in range(8)]),
    }
    ids = {
        "image_ids": json.dumps([f"/x/{IMAGES[number]}" for number in ORDER]),
        "caption_ids": json.dumps(list(range(8))),
    }
    safetensors.numpy.save_file(tensors, "f.safetensors", metadata=ids)
    check(run("safetensors", "--images", "f.safetensors"), 4)
    ids["image_ids"] = json.dumps(["001", "002", "003", "004"])
    safetensors.numpy.save_file(tensors, "g.safetensors", metadata=ids)
    refused_again = run("safetensors", "--images", "g.safetensors")
    assert refused_again.exit_code == 2
    assert "g.safetensors: image_ids: the images 'cats/001.png' and" in refused_again.stderr


def hada_folders(names: Sequence[str | None]) -> None:
    """HADA's files; `names` without suffix, in the order of the images, None for none."""
    for folder, captions in (("img", 1), ("txt", 2)):
        for number, name in enumerate(names):
            if name is None:
                continue
            file = Path(folder, f"{name}.npz")
            file.parent.mkdir(parents=True, exist_ok=True)
            if folder == "img":
                np.savez(file, feat=np.full((1, 3), number, np.float32), proj_embed=vector(number))
            else:
                feat = np.zeros((captions, 2, 3), np.float32)
                proj = np.stack([vector(2 * number), vector(2 * number + 1)])
                np.savez(file, feat=feat, att=np.ones((2, 2)), proj_embed=proj)


HADA = ("--images", "img", "--captions", "txt")


@pytest.mark.parametrize(
    "pattern", ["{stem}", "{stem}_0", "v_{stem}", "{stem}/{stem}", "x/{stem}/f"]
)
def test_hada_files_in_folders_as_the_images(pattern: str) -> None:
    project()
    names = []
    for id_ in IMAGES:
        folder, stem = id_.removesuffix(".png").split("/")
        nested = f"{folder}/{pattern.replace('{stem}', stem)}"
        names.append(f"x/{folder}/{stem}/f" if pattern.startswith("x/") else nested)
    hada_folders(names)
    Path("img/notes.txt").touch()
    more = ("--image-name", f"{pattern}.npz", "--caption-name", f"{pattern}.npz")
    check(run("hada", *HADA, *more), 4)
    assert open_store("stores/tiny/val/x").image.tokens(slice(None))[:, 0].tolist() == [0, 1, 2, 3]


def test_hada_files_whose_stem_is_of_two_images() -> None:
    project()
    hada_folders(["001", None, "002", None])
    refused(
        run("hada", *HADA), "img: the images 'cats/001.png' and 'dogs/001.png' both match '001'"
    )


def test_a_hada_file_that_is_missing_is_one_failed_image() -> None:
    project()
    hada_folders([id_.removesuffix(".png") for id_ in IMAGES])
    Path("img/dogs/001.npz").rename("img/birds_001.npz")
    result = run("hada", *HADA)
    assert result.exit_code == 0, result.output
    assert "img/dogs/001.npz: no such file" in result.stderr
    found = open_store("stores/tiny/val/x")
    assert found.image.failed.tolist() == [False, True, False, False]


def test_random_trees_are_imported_row_by_row_or_not_at_all() -> None:
    """Whatever the names are: an accepted import has each image's own row."""
    dice = random.Random(0)
    accepted = 0
    for trial in range(60):
        Path(f"t{trial}").mkdir()
        tree = {
            "/".join(dice.choice("abc") for _ in range(dice.randint(1, 3))) + ".png"
            for _ in range(dice.randint(1, 8))
        }
        images = sorted(tree)
        order = dice.sample(range(len(images)), len(images))
        cut = dice.random() < 0.4  # a program that keeps no more than some parts of the path
        parts = dice.randint(1, 3) if cut else 9
        names = ["/".join(images[row].split("/")[-parts:]) for row in order]
        names = (
            [dice.choice(["", "/d/"]) + name for name in names]
            if cut
            else [f"/d/{n}" for n in names]
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(f"t{trial}")
            project(images)
            result = run("npy", *plain(names, order, len(images)))
            if result.exit_code == 0:
                accepted += 1
                check(result, len(images))
            else:
                assert cut
                refused(result)
    assert 40 < accepted < 60
