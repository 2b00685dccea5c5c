"""Matching of ids with names: the documented rule, against a slow reading of it and by cases."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hada.extract.common.errors import DatasetError
from hada.extract.datasets.matching import Source, match, require_all
from hada.extract.datasets.name_keys import files_below, keys_of


def rows(wanted: Sequence[str], names: Sequence[str], **more: bool) -> list[int]:
    return match(wanted, Source(names=names, where="here", **more)).rows.tolist()


@pytest.mark.parametrize(
    ("wanted", "names", "expected"),
    [
        # other leading folders, suffixes and separators, in any order
        (["cats/1.png", "dogs/1.png"], ["/p/dogs/1.png", "/p/cats/1.png"], [1, 0]),
        (["cats/1.png", "dogs/1.png"], ["dogs/1", "cats/1.npz"], [1, 0]),
        (["cats/1.png", "dogs/1.png"], ["C:\\p\\dogs\\1.JPG", "C:\\p\\cats\\1.JPG"], [1, 0]),
        (["val/a.jpg", "val/b.jpg"], ["b", "a"], [1, 0]),
        (["a.jpg", "b.jpg"], ["00001/b", "00000/a.jpg"], [1, 0]),
        (["a.b.jpg", "a.jpg"], ["a", "a.b"], [1, 0]),
        (["a.jpg"], ["./x//a.jpg.npz"], [0]),
        # BOM, blanks, ends of lines, bytes as text, decomposed characters
        (["a.jpg", "b.jpg"], ["\ufeffa.jpg\r", " b.jpg "], [0, 1]),
        (["a.jpg"], ["b'x/a.jpg'"], [0]),
        (["caf\u00e9.jpg"], ["cafe\u0301.jpg"], [0]),
        # what is equal to the letter comes first
        (["a.jpg", "a.jpg "], ["a.jpg ", "a.jpg"], [1, 0]),
        (["1.png", "c/1.png"], ["c/1.png", "1.png"], [1, 0]),
        (["a.png", "a.jpg"], ["/p/a.jpg", "/p/a.png"], [1, 0]),
        # ids with and without folders below one folder
        (["1.png", "c/1.png"], ["/p/c/1.png", "/p/1.png"], [1, 0]),
        (["1.png", "2.png"], ["/p/1.jpg", "/p/2.jpg", "/p/c/1.png"], [0, 1]),
        # missing: absent, of contradicting folders, or better matched by another id
        (["a.jpg", "b.jpg"], ["a.jpg"], [0, -1]),
        (["cats/1", "dogs/1"], ["p/cats/1", "p/birds/1"], [0, -1]),
        (["cats/1", "dogs/1"], ["cats/1", "birds/1"], [0, -1]),
        (["cats/1", "dogs/1"], ["x/cats/1"], [0, -1]),
        (["cats/2", "dogs/1"], ["cats/2", "birds/1", "fish/1"], [0, -1]),
        ([], ["a"], []),
        (["a.jpg"], [], [-1]),
        (["a.jpg"], ["", "/", " "], [-1]),
        # numbers
        (["COCO_val2014_000000000042.jpg", "x/7.jpg"], ["7", "42"], [1, 0]),
        (["val2014/COCO_val2014_000000000042.jpg"], ["000042"], [0]),
        (["n42.jpg", "a_x42.jpg"], ["42"], [-1, -1]),
        (["a_42.jpg", "42.jpg"], ["42"], [-1, 0]),
        (["0.jpg", "a_000.jpg"], ["a_000", "0"], [1, 0]),
        (["a_\u0664\u0662.jpg"], ["42", "\u0664\u0662"], [-1]),
    ],
)
def test_cases(wanted: list[str], names: list[str], expected: list[int]) -> None:
    assert rows(wanted, names) == expected


@pytest.mark.parametrize(
    ("wanted", "names", "message"),
    [
        (["cats/1.png", "dogs/1.png"], ["1.png"], "images 'cats/1.png' and 'dogs/1.png' both"),
        (["a.jpg", "a.png"], ["a"], "'a.jpg' and 'a.png' both match 'a': one row"),
        (["1.png"], ["/p/a/1.png", "/p/b/1.png"], "'1.png' fits 2 names equally well, such as"),
        (["1.png"], ["/p/1.png", "/p/cats/1.png"], "'/p/1.png' and '/p/cats/1.png'"),
        (["a/1.png"], ["b/1.png", "c/1.png"], "such as 'b/1.png' and 'c/1.png'"),
        (["a.jpg"], ["a.webp", "a.png"], "such as 'a.webp' and 'a.png'"),
        (["a.jpg"], ["a.jpg", "b", "a.jpg"], "an id appears twice, 'a.jpg' in rows 0 and 2"),
        (["a.jpg"], ["/p/a.jpg", "/p/a.jpg"], "an id appears twice, '/p/a.jpg' in rows 0 and 1"),
        (["a_001.png", "b_001.png", "c_002.png"], ["1", "2"], "'a_001.png' and 'b_001.png' both"),
        (["a_001.png"], ["1", "001"], "such as '1' and '001'"),
        (["a_001.png", "b_001.png"], ["a_001", "1"], "both have the number 1"),
    ],
)
def test_what_is_ambiguous_is_refused(wanted: list[str], names: list[str], message: str) -> None:
    with pytest.raises(DatasetError) as refused:
        rows(wanted, names)
    assert message in str(refused.value)
    assert str(refused.value).startswith("here: ")


def test_captions_have_no_suffixes_and_no_numbers() -> None:
    assert rows(["a.jpg#0", "a.jpg#1"], ["a.jpg#1", "a.jpg#0"], files=False) == [1, 0]
    assert rows(["a.txt", "7"], ["a", "07"], files=False) == [-1, -1]
    assert rows(["x/a.jpg#0"], ["a.jpg#0"], files=False) == [0]


def test_further_names_are_for_what_is_not_found() -> None:
    source = Source(names=["coco_7", "a"], where="here")
    assert match(["A.jpg", "COCO_7.jpg"], source, ["a", "coco_7"]).rows.tolist() == [1, 0]
    assert match(["A.jpg", "a.jpg"], source, ["a", "a"]).rows.tolist() == [-1, 1]
    with pytest.raises(DatasetError, match=r"'A\.jpg' and 'á\.jpg' both match 'a'"):
        match(["A.jpg", "á.jpg"], source, ["a", "a"])
    # Whether or not one of the two is found by its own path.
    with pytest.raises(DatasetError, match=r"'b_1\.jpg' and 'a_1\.jpg' both match 'x_1'"):
        match(["b_1.jpg", "a_1.jpg"], Source(names=["b_1", "x_1"], where="x"), ["x_1", "x_1"])
    # Evidence of folders is kept: birds are no dogs under a further name either.
    source = Source(names=["p/cats/1", "p/birds/1"], where="here")
    assert match(["cats/1.x", "cats/1", "dogs/1.x"], source, ["", "", "dogs/1"]).rows.tolist() == [
        -1,
        0,
        -1,
    ]


def test_notes_and_missing_ids() -> None:
    found = match(["val/a.jpg"], Source(names=["/data/images/a.jpg"], where="here"))
    assert found.note == (
        "here: 1 of 1 images match by file name, though the folders differ, such as 'val/a.jpg' "
        "with '/data/images/a.jpg'"
    )
    assert match(["cats/a.jpg"], Source(names=["/data/cats/a.jpg"], where="here")).note == ""
    source = Source(names=["7", "8"], where="here")
    assert "by number alone, such as 'x_007.jpg' with '7'" in match(["x_007.jpg"], source).note
    with pytest.raises(DatasetError, match=r"^1 of 2 images .* here, the first is 'b\.jpg'"):
        require_all(match(["7.jpg", "b.jpg"], source), ["7.jpg", "b.jpg"], source)


def slow(wanted: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """The rule as its module states it (without numbers), pair by pair; None where it refuses."""
    keys, own = keys_of(names), keys_of(wanted)

    def shared(one: str, other: str) -> int:
        count = 0
        for a, b in zip(one.split("/")[::-1], other.split("/")[::-1], strict=False):
            if a != b:
                break
            count += 1
        return count

    def last(name: str) -> str:
        return name.split("/")[-1]

    tops = [
        top
        for top in {key[: len(key) - len(own[0])] for key in keys if key.endswith(own[0])}
        if (not top or top.endswith("/")) and all(top + key in keys for key in own)
    ]
    deepest = [max((shared(key, name) for name in keys), default=0) for key in own]
    evidence = any(
        "/" in id_ and (id_ in names or depth == key.count("/") + 1)
        for id_, key, depth in zip(wanted, own, deepest, strict=True)
    )
    chosen: dict[int, int] = {}
    for index, (id_, key) in enumerate(zip(wanted, own, strict=True)):
        fits = [row for row, name in enumerate(names) if name == id_]
        if not fits:
            depth = deepest[index]
            whole = depth == key.count("/") + 1
            fits = [row for row, name in enumerate(keys) if depth and shared(key, name) == depth]
            if evidence and not whole:
                fits = [row for row in fits if keys[row].count("/") < depth]
            if any(keys[row] == key for row in fits):
                fits = [row for row in fits if keys[row] == key]
            elif len({keys[row] for row in fits}) > 1 and whole and len(tops) == 1:
                fits = [row for row in fits if keys[row] == tops[0] + key]
            if len({keys[row] for row in fits}) == 1:
                fits = [row for row in fits if last(names[row]) == last(id_)] or fits
        if len(fits) > 1:
            return None
        if fits:
            chosen[index] = fits[0]
    result = [-1] * len(wanted)
    for row in set(chosen.values()):

        def strength(index: int, row: int = row) -> tuple[bool, int, bool, bool]:
            return (
                wanted[index] == names[row],
                shared(own[index], keys[row]),
                own[index] == keys[row],
                last(wanted[index]) == last(names[row]),
            )

        claims = sorted((i for i in chosen if chosen[i] == row), key=strength)
        if len(claims) > 1 and strength(claims[-1]) == strength(claims[-2]):
            return None
        result[claims[-1]] = row
    return result


def test_random_folders_agree_with_the_slow_rule() -> None:
    dice = random.Random(0)
    outcomes = {"refused": 0, "whole": 0, "missing": 0}
    for _ in range(4000):
        depth, variety = dice.randint(1, 4), dice.choice(["ab", "ab", "abc", "abcdefgh"])
        suffixes = dice.choice([("",), (".jpg",), ("", ".jpg"), (".jpg", ".png", ".npz")])

        def path(variety: str = variety, depth: int = depth) -> str:
            return "/".join(dice.choice(variety) for _ in range(dice.randint(1, depth)))

        wanted = list({path() + dice.choice(suffixes) for _ in range(dice.randint(1, 5))})
        top = dice.choice(["", "p/", "a/", "p/q/"])
        names = [top + id_ for id_ in wanted if dice.random() < 0.8]
        names = [name.split(".")[0] + dice.choice(suffixes) for name in names]
        names += [path() + dice.choice(suffixes) for _ in range(dice.randint(0, 4))]
        dice.shuffle(names)
        expected = slow(wanted, names)
        try:
            got: list[int] | None = rows(wanted, names)
        except DatasetError:
            got = None
        assert got == expected, (wanted, names)
        outcomes["refused" if got is None else "missing" if -1 in got else "whole"] += 1
        if got is not None:
            used = [row for row in got if row >= 0]
            assert len(used) == len(set(used))
    assert min(outcomes.values()) > 500, outcomes


def test_random_trees_moved_elsewhere_are_found_in_whole() -> None:
    """The features of one tree, whatever its folders: below another root and with any suffix."""
    dice = random.Random(1)
    for _ in range(500):
        wanted = sorted(
            {
                "/".join(dice.choice("abc") for _ in range(dice.randint(1, 4))) + ".jpg"
                for _ in range(dice.randint(1, 30))
            }
        )
        order = dice.sample(range(len(wanted)), len(wanted))
        top, suffix = dice.choice(["", "/mnt/x/", "C:\\x\\"]), dice.choice([".jpg", "", ".npz"])
        names = [top + wanted[row].removesuffix(".jpg") + suffix for row in order]
        found = rows(wanted, names)
        assert [order[row] for row in found] == list(range(len(wanted)))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["equal", "flat", "folders", "numbers", "ambiguous", "absent"])
def test_a_million_names_take_seconds(layout: str) -> None:
    count = 1_000_000
    wanted, names = {
        "equal": ("{:07d}.jpg", "{:07d}.jpg"),
        "flat": ("{:07d}.jpg", "/data/x/{:07d}"),
        "folders": ("{}/0.jpg", "/data/y/{}/0.png"),
        "numbers": ("COCO_{:012d}.jpg", "{}"),
        "ambiguous": ("w{}/0.jpg", "s{}/0.jpg"),
        "absent": ("w{}/0.jpg", "w{}/0.jpg"),
    }[layout]
    order = np.random.default_rng(0).permutation(count)
    source = [names.format(row) for row in order.tolist()]
    if layout == "absent":  # half of them, and as many that no id wants
        source[count // 2 :] = [f"s{row}/0.jpg" for row in range(count // 2)]
    ids = [wanted.format(row) for row in range(count)]
    start = time.process_time()
    if layout == "ambiguous":
        with pytest.raises(DatasetError, match="fits 1,000,000 names equally well"):
            rows(ids, source)
    else:
        found = np.array(rows(ids, source))
        there = found >= 0
        np.testing.assert_array_equal(order[found[there]], np.flatnonzero(there))
        assert there.sum() == (count // 2 if layout == "absent" else count)
    # 3 to 15 seconds on a slow core; a loop over pairs would take days.
    assert time.process_time() - start < 120


def test_files_below_follows_links_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("x.npz", "a/y.npz", "a/b/z.npz"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "other").symlink_to(tmp_path / "a" / "b")
    found = files_below(tmp_path)
    assert sorted(name.rpartition("/")[2] for name in found) == ["x.npz", "y.npz", "z.npz"]
    assert files_below(tmp_path / "nowhere") == []
