"""Every layout of captions that people have ends in the same stores as Karpathy's JSON."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
from click.testing import CliRunner

from hada.extract.cli import extract
from hada.extract.common.errors import HadaError
from hada.extract.datasets.named import dataset_at
from hada.extract.datasets.read import read_splits
from hada.extract.manifest import load_manifest
from hada.extract.store import open_store

MODEL = ["--model", "clip=clip:builtin:scenes/clip", "--device", "cpu", "--batch-size", "8"]


def run(arguments: list[str], folder: Path) -> str:
    """`hada-extract` as typed in a folder; its stores lie in FOLDER/stores."""
    outcome = CliRunner().invoke(extract, [*arguments, "--root", f"stores={folder}/stores"])
    assert outcome.exit_code == 0, outcome.output + outcome.stderr
    return outcome.output


def payload(store: Path) -> dict[str, bytes]:
    """All files of a store's arrays, without ids and the records that name them."""
    features = store / "features.zarr"
    return {
        str(file.relative_to(features)): file.read_bytes()
        for file in sorted(features.rglob("*"))
        if file.is_file() and "/ids" not in str(file) and file.name != "zarr.json"
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The stores of Karpathy's JSON, by the number of captions an image and whether it is split."""
    made: dict[tuple[int, bool], tuple[layouts.Sample, Path]] = {}

    def of(captions: int, split: bool) -> tuple[layouts.Sample, Path]:
        if (captions, split) not in made:
            folder = tmp_path_factory.mktemp("plain")
            sample = layouts.make_sample(folder / "drawn", captions=captions)
            if not split:
                sample = layouts.Sample(sample.folder, sample.names, sample.captions, ["all"] * 12)
            run([*layouts.karpathy(sample, folder / "data"), *MODEL], folder)
            made[captions, split] = sample, folder / "stores" / "data"
        return made[captions, split]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_each_layout_gives_the_stores_of_karpathys_json(
    name: str, tmp_path: Path, plain: Any
) -> None:
    if "parquet" in name:
        pytest.importorskip("pyarrow", reason="needs the extra parquet")
    captions = 1 if name in layouts.SINGLE else 2
    sample, expected = plain(captions, name in layouts.SPLIT)
    arguments = layouts.LAYOUTS[name](sample, tmp_path / "given")
    arguments[1] = f"given={arguments[1]}"
    described = run([*arguments, "--describe"], tmp_path)
    assert not (tmp_path / "stores").exists(), "--describe writes nothing"
    run([*arguments, *MODEL], tmp_path)
    stores = tmp_path / "stores" / "given"
    splits = ("train", "val", "test") if name in layouts.SPLIT else ("all",)
    assert {path.name for path in stores.iterdir() if path.is_dir()} == set(splits)
    for split in splits:
        got, wanted = payload(stores / split / "clip"), payload(expected / split / "clip")
        assert len(got) > 5
        assert got == wanted, f"{split} differs"
        store = open_store(stores / split / "clip")
        assert f"{split}" in described
        assert all(not id_.startswith("/") for id_ in store.image.ids)
    # What was understood is remembered: the dataset's name is enough from now on.
    again = run(["--dataset", "given", "--split", splits[0], "--model", "clip"], tmp_path)
    assert "complete already" in again, again


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_what_is_read_of_each_layout_is_the_same(name: str, tmp_path: Path) -> None:
    if "parquet" in name:
        pytest.importorskip("pyarrow", reason="needs the extra parquet")
    sample = layouts.make_sample(tmp_path / "drawn", captions=1 if name in layouts.SINGLE else 3)
    arguments = layouts.LAYOUTS[name](sample, tmp_path / "given")
    entry = dataset_at(arguments[1], captions=arguments[3] if len(arguments) > 2 else None)
    data = read_splits(entry)
    assert [d.split for d in data] == (
        ["train", "val", "test"] if name in layouts.SPLIT else ["all"]
    )
    for part in data:
        wanted = sample.only(part.split) if part.split != "all" else sample
        assert list(part.captions) == [text for _, text in wanted.pairs()]
        counts = [len(texts) for texts in wanted.captions]
        np.testing.assert_array_equal(
            part.caption_to_image, np.repeat(np.arange(len(counts)), counts)
        )
        for file, name_ in zip(part.image_paths, wanted.names, strict=True):
            assert file.read_bytes() == (sample.folder / name_).read_bytes()
        assert len(set(part.image_ids)) == len(part.image_ids)


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    """A webdataset's tar: key -> suffix -> bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for suffix, data in members.items():
                layouts.add_to_tar(tar, f"{key}.{suffix}", data)


def test_keys_that_begin_anew_in_each_tar_are_images_of_their_own(tmp_path: Path) -> None:
    sample = layouts.make_sample(tmp_path / "drawn", images=3)
    pictures = [(sample.folder / name).read_bytes() for name in sample.names]
    places = ("00000/0.jpg", "00001/0.jpg", "7/00000/0.jpg")
    for place, picture in zip(places, pictures, strict=True):
        tar = (tmp_path / "given" / place).parent.with_suffix(".tar")
        write_tar(tar, {"0": {"jpg": picture, "txt": place.encode()}})
    (data,) = read_splits(dataset_at(tmp_path / "given"))
    assert data.image_ids == data.captions == places
    assert [file.read_bytes() for file in data.image_paths] == pictures


def test_a_caption_of_json_is_one_and_lines_of_text_are_several(tmp_path: Path) -> None:
    sample = layouts.make_sample(tmp_path / "drawn", images=1)
    picture = (sample.folder / sample.names[0]).read_bytes()
    text = "two dogs\non a beach"
    record, no_caption = ({key: text} for key in ("caption", "url"))
    samples = {
        "both": {"txt": text.encode(), "json": json.dumps(record).encode()},
        "text": {"txt": text.encode()},
        "none": {"txt": text.encode(), "json": json.dumps(no_caption).encode()},
    }
    write_tar(
        tmp_path / "given" / "0.tar", {key: {"jpg": picture} | s for key, s in samples.items()}
    )
    (data,) = read_splits(dataset_at(tmp_path / "given"))
    assert data.image_ids == ("0/both.jpg", "0/text.jpg", "0/none.jpg")
    assert data.captions == (text, *text.splitlines(), *text.splitlines())
    assert data.caption_to_image.tolist() == [0, 1, 1, 2, 2]


def test_an_entry_of_a_manifest_reads_what_the_command_line_read(tmp_path: Path) -> None:
    sample = layouts.make_sample(tmp_path / "drawn")
    for name in ("coco", "flickr8k", "lavis", "csv, several columns"):
        arguments = layouts.LAYOUTS[name](sample, tmp_path / name[:4])
        described = run([*arguments, "--describe"], tmp_path).splitlines()
        at = next(n for n, line in enumerate(described) if line.startswith("entry for a"))
        entry = "\n".join(described[at + 1 :])
        manifest = tmp_path / "data_manifest.yaml"
        key = entry.strip().partition(":")[0]
        manifest.write_text(
            f"schema: 1\ndefaults: {{dataset: {key}, models: []}}\ndatasets:\n{entry}\n"
        )
        by_manifest = read_splits(load_manifest(manifest).dataset())
        by_hand = read_splits(
            dataset_at(arguments[1], captions=arguments[3] if len(arguments) > 2 else None)
        )
        assert [d.digest() for d in by_manifest] == [d.digest() for d in by_hand], name


@pytest.mark.parametrize("form", ["sideways", "nested"])
def test_equal_names_in_two_folders_are_two_images(tmp_path: Path, form: str) -> None:
    sample = layouts.make_sample(tmp_path / "drawn", images=4)
    for folder, name in (("cats", 0), ("dogs", 1)):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        data = (sample.folder / sample.names[name]).read_bytes()
        (tmp_path / "photos" / folder / "001.jpg").write_bytes(data)
    named = "cats/001.jpg,one\ndogs/001.jpg,two\n"
    if form == "nested":  # as they were called on the author's machine
        named = "".join(f"/author/photos/{line}\n" for line in named.splitlines())
    (tmp_path / "captions.csv").write_text("image,caption\n" + named)
    (data,) = read_splits(dataset_at(tmp_path / "photos", captions=tmp_path / "captions.csv"))
    assert data.image_ids == ("cats/001.jpg", "dogs/001.jpg")
    assert data.image_paths[0].read_bytes() != data.image_paths[1].read_bytes()


def test_names_that_fit_several_folders_are_refused(tmp_path: Path) -> None:
    sample = layouts.make_sample(tmp_path / "drawn", images=1)
    for folder in ("cats", "dogs"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        data = (sample.folder / sample.names[0]).read_bytes()
        (tmp_path / "photos" / folder / "001.jpg").write_bytes(data)
    (tmp_path / "captions.csv").write_text("image,caption\n001.jpg,one\n")
    with pytest.raises(HadaError, match=r"several folders.*'cats', 'dogs'.*--images FOLDER"):
        read_splits(dataset_at(tmp_path / "photos", captions=tmp_path / "captions.csv"))
    (data,) = read_splits(
        dataset_at(
            tmp_path / "photos", captions=tmp_path / "captions.csv", images=tmp_path / "photos/dogs"
        )
    )
    assert data.image_ids == ("001.jpg",)


PLUGIN = '''
"""Captions of a lab: `name: caption`, a line each."""

from hada.extract.datasets.annotations import Row, read_text

LAYOUT = "the lab's notes, NAME: caption"


def recognises(sample):
    return sample.text.startswith("# notes of the lab")


def read(path, options):
    for number, line in enumerate(read_text(path).splitlines()[1:], start=2):
        name, _, caption = line.partition(": ")
        yield Row(name, [caption], f"{path}, line {number}")
'''


def test_an_installed_package_brings_a_layout_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "lab_notes-1.0.dist-info").mkdir(parents=True)
    (site / "lab_notes-1.0.dist-info" / "METADATA").write_text("Name: lab-notes\nVersion: 1.0\n")
    (site / "lab_notes-1.0.dist-info" / "entry_points.txt").write_text(
        "[hada.datasets]\nlab = lab_notes\n"
    )
    (site / "lab_notes.py").write_text(PLUGIN)
    sample = layouts.make_sample(tmp_path / "photos", images=2)
    notes = tmp_path / "notes.txt"
    notes.write_text("# notes of the lab\n" + "".join(f"{n}: seen in {n}\n" for n in sample.names))
    asked = ["--data", f"{tmp_path}/photos", "--captions", str(notes), "--describe"]
    without = CliRunner().invoke(extract, asked)
    assert without.exit_code == 2
    assert "plain text, or texts without images (--reader texts)" in without.stderr
    monkeypatch.syspath_prepend(str(site))
    described = run(asked, tmp_path)
    assert "the lab's notes" in described
    for reader in ("auto", "lab"):
        (data,) = read_splits(dataset_at(tmp_path / "photos", captions=notes, reader=reader))
        assert data.captions == tuple(f"seen in {name}" for name in sample.names)
