"""Splits by shares are stable, and lists of ids are exact."""

from __future__ import annotations

from pathlib import Path

import layouts
import numpy as np
import pytest

from hada.extract.common.errors import HadaError
from hada.extract.datasets.named import dataset_at
from hada.extract.datasets.read import read_splits
from hada.extract.datasets.splits import share_of

SHARES = (("train", 0.8), ("val", 0.1), ("test", 0.1))


def test_shares_are_kept_within_what_chance_allows() -> None:
    ids = [f"folder/{k}.jpg" for k in range(20000)]
    counts = {name: 0 for name, _ in SHARES}
    for id_ in ids:
        counts[share_of(id_, SHARES)] += 1
    for name, share in SHARES:
        spread = np.sqrt(len(ids) * share * (1 - share))
        assert abs(counts[name] - len(ids) * share) < 4 * spread, name


def test_an_image_stays_in_its_split_when_others_come_and_go(tmp_path: Path) -> None:
    sample = layouts.make_sample(tmp_path / "photos", images=40)

    def splits() -> dict[str, str]:
        entry = dataset_at(tmp_path / "photos", split_by="0.5,0.25,0.25")
        return {id_: data.split for data in read_splits(entry) for id_ in data.image_ids}

    before = splits()
    assert set(before.values()) == {"train", "val", "test"}
    (tmp_path / "photos" / sample.names[0]).unlink()
    layouts.make_sample(tmp_path / "photos" / "more", images=20, seed=1)
    after = splits()
    assert len(after) == 59
    assert all(after[id_] == split for id_, split in before.items() if id_ in after)


def test_lists_of_ids_say_the_splits(tmp_path: Path) -> None:
    sample = layouts.make_sample(tmp_path / "photos", images=6)
    (tmp_path / "a.txt").write_text(f"{sample.names[0]}\n{sample.names[3]}\n\n")
    (tmp_path / "b.txt").write_text(f"{Path(sample.names[4]).stem}\r\n")
    entry = dataset_at(
        tmp_path / "photos",
        split_ids={"train": str(tmp_path / "a.txt"), "val": str(tmp_path / "b.txt")},
    )
    train, val = read_splits(entry)
    assert train.image_ids == (sample.names[0], sample.names[3])
    assert val.image_ids == (sample.names[4],)
    (tmp_path / "b.txt").write_text(f"{sample.names[3]}\n")
    with pytest.raises(HadaError, match=r"b.txt, line 1: .* is in split 'train', too"):
        read_splits(entry)


def test_a_list_cannot_name_one_of_two_images_of_a_name(tmp_path: Path) -> None:
    for folder in ("cats", "dogs"):
        layouts.make_sample(tmp_path / "photos" / folder, images=1)
    ids = tmp_path / "ids.txt"
    ids.write_text("picture_000.jpg\n")
    entry = dataset_at(tmp_path / "photos", split_ids={"val": str(ids)})
    with pytest.raises(HadaError, match="names several images: list it by its path"):
        read_splits(entry)
    ids.write_text("dogs/picture_000.jpg\n")
    assert read_splits(entry)[0].image_ids == ("dogs/picture_000.jpg",)


def test_images_of_two_splits_are_told(tmp_path: Path) -> None:
    sample = layouts.make_sample(tmp_path / "drawn", images=4)
    arguments = layouts.lavis(
        layouts.Sample(sample.folder, sample.names, sample.captions, ["train"] * 4), tmp_path / "d"
    )
    text = (tmp_path / "d" / "flickr30k_train.json").read_text()
    for split in ("val", "test"):
        (tmp_path / "d" / f"flickr30k_{split}.json").write_text(text)
    from hada.extract.datasets.table import read_table

    notes = read_table(dataset_at(arguments[1])).notes
    assert any("4 images are in both" in note for note in notes)
    assert [len(d.image_ids) for d in read_splits(dataset_at(arguments[1]))] == [4, 4, 4]
