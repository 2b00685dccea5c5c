"""Region files in every layout: the same regions from each, and what is refused."""

from __future__ import annotations

import base64
import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hada.extract.common.errors import DatasetError, UsageError
from hada.extract.datasets.region_sources import open_regions
from hada.extract.datasets.regions import RegionError, RegionRules, Regions, region_names

IDS = [f"100009279{n}.jpg" for n in (5, 6, 7, 8)]
LMDB = "img_db/flickr30k/feat_th0.2_max100_min10"


def source(place: Path | str, **rules: Any) -> Any:
    return open_regions(RegionRules(place=str(place), **rules), "flickr30k", "test")


def raw(count: int = 12, seed: int = 0) -> dict[str, np.ndarray]:
    """Boxes in pixels, as the detectors' own files have them."""
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 100, (count, 2)).astype(np.float32)
    extent = random.uniform(10, 100, (count, 2)).astype(np.float32)
    return {
        "image_w": np.asarray(300),
        "image_h": np.asarray(200),
        "bbox": np.concatenate([corner, corner + extent], axis=1),
        "x": random.standard_normal((count, 16), dtype=np.float32),
        "num_bbox": np.asarray(count),
    }


def save_tsv(file: Path, images: dict[str, dict[str, np.ndarray]]) -> Path:
    lines = []
    for name, arrays in images.items():
        boxes, features = (base64.b64encode(arrays[k].tobytes()).decode() for k in ("bbox", "x"))
        head = [name, arrays["image_w"], arrays["image_h"], arrays["num_bbox"]]
        lines.append("\t".join(map(str, [*head, boxes, features])))
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="session")
def golden(golden_root: Path) -> Path:
    return golden_root / "backbones"


@pytest.mark.parametrize(
    "place", ["npz/flickr30k", LMDB, f"{LMDB}_compressed"], ids=["npz", "lmdb", "compressed"]
)
def test_golden_uniter(golden: Path, place: str) -> None:
    files = source(golden / "uniter" / place)
    with np.load(golden / "uniter" / "golden.npz") as expected:
        for row, id_ in enumerate(IDS):
            number = int(expected["num_bb"][row])
            regions = files.read(id_)
            assert files.count(id_) == len(regions) == number
            features = expected["img_feat_f16"][row, :number].astype(np.float32)
            np.testing.assert_array_equal(regions.features, features)
            boxes = expected["img_pos_feat"][row, :number]
            np.testing.assert_allclose(regions.boxes, boxes, rtol=0, atol=1e-7)


def test_golden_hada(golden: Path) -> None:
    folder = golden / "lightningdot" / "hada_npz"
    regions = source(folder).read(IDS[0])
    with (
        np.load(golden / "lightningdot" / "golden.npz") as expected,
        np.load(folder / "1000092795.npz") as file,
    ):
        assert source(folder).count(IDS[0]) == len(regions) == expected["hada_num_bb"]
        np.testing.assert_array_equal(regions.features, file["bbox_ft"][expected["hada_order"]])
        np.testing.assert_allclose(
            regions.boxes[None], expected["hada_img_pos_feat"], rtol=0, atol=1e-6
        )


def test_a_database_without_its_side_file(golden: Path, tmp_path: Path) -> None:
    place = tmp_path / "feat_th0.2_max100_min10"
    shutil.copytree(golden / "uniter" / LMDB, place)
    np.testing.assert_array_equal(
        source(place).read(IDS[0]).boxes, source(golden / "uniter" / LMDB).read(IDS[0]).boxes
    )
    assert source(place).count(IDS[1]) == 10
    (tmp_path / "nbb_th0.2_max100_min10.json").write_text("[1]")
    with pytest.raises(DatasetError, match="expected a mapping, got a list"):
        source(place)


def test_a_database_of_everything(tmp_path: Path) -> None:
    import lmdb
    import msgpack

    arrays = {
        "norm_bb": np.full((40, 6), 0.5, np.float16),
        "features": np.ones((40, 8), np.float16),
        "conf": np.linspace(0.9, 0.0, 40).astype(np.float16),
    }
    packed = {
        name: {
            b"nd": True,
            b"type": array.dtype.str,
            b"kind": b"",
            b"shape": array.shape,
            b"data": array.tobytes(),
        }
        for name, array in arrays.items()
    }
    place = tmp_path / "all"
    with (
        lmdb.open(str(place), map_size=1 << 20) as environment,
        environment.begin(write=True) as write,
    ):
        write.put(b"1.npz", msgpack.packb(packed, use_bin_type=True))
        write.put(b"2.npz", msgpack.packb(packed, use_bin_type=True)[:50])
        write.put(b"3.npz", msgpack.packb({"conf": {b"nd": True, b"type": "O", b"data": b""}}))
        write.put(b"4.npz", b"PK\x03\x04 nothing")
    files = source(place)
    assert files.count("1.jpg") == len(files.read("1.jpg")) == (arrays["conf"] > 0.2).sum()
    assert len(source(place, threshold=-1.0, most=36).read("1.jpg")) == 36
    for id_ in ("2", "3", "4"):
        with pytest.raises(RegionError, match=f"{id_}"):
            files.read(id_)


def test_pixel_layouts_agree(tmp_path: Path) -> None:
    arrays = raw()
    info = np.array({"objects_conf": [1]}, dtype=object)
    np.savez(tmp_path / "7.npz", **arrays, info=info)  # type: ignore[arg-type]
    from_npz = source(tmp_path).read("7.jpg")
    assert source(tmp_path).count("7.jpg") == 12
    tsv = save_tsv(tmp_path / "all.tsv", {"7": arrays, "391895": raw(5)})
    from_tsv = source(tsv).read("7.jpg")
    np.testing.assert_array_equal(from_npz.features, from_tsv.features)
    np.testing.assert_allclose(from_npz.boxes, from_tsv.boxes, rtol=0, atol=1e-6)
    expected = arrays["bbox"][:, 2:] - arrays["bbox"][:, :2]
    np.testing.assert_allclose(from_npz.boxes[:, 4:6], expected / [300, 200], rtol=1e-5)
    np.testing.assert_allclose(from_npz.boxes[:, 6], (expected / [300, 200]).prod(1), rtol=1e-5)
    assert len(source(tsv).read("COCO_val2014_000000391895.jpg")) == 5
    assert source(tsv, most=4).count("COCO_val2014_000000391895.jpg") == 4


def test_threads(golden: Path) -> None:
    for place in ("npz/flickr30k", LMDB):
        files = source(golden / "uniter" / place)
        with ThreadPoolExecutor(4) as pool:
            found: list[Regions] = list(pool.map(files.read, IDS * 4))
        for one, other in zip(found, found[4:], strict=False):
            np.testing.assert_array_equal(one.features, other.features)


def test_names() -> None:
    rules = RegionRules(place="x")
    coco = region_names(rules, "coco", "COCO_val2014_000000391895.jpg")
    assert "coco_val2014_000000391895.npz" in coco
    assert region_names(rules, "tiny", "a b.jpg") == ["a b.npz"]
    rules = RegionRules(place="x", name="{dataset}/{number:06d}.npz")
    assert region_names(rules, "tiny", "n12.jpg") == ["tiny/000012.npz"]
    with pytest.raises(UsageError, match=r"does not work for image 'a\.jpg' \(KeyError"):
        region_names(rules, "tiny", "a.jpg")
    with pytest.raises(UsageError, match="leaves the folder"):
        region_names(RegionRules(place="x", name="../{stem}.npz"), "tiny", "a.jpg")


def test_what_is_missing(golden: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="set the model's option `regions`"):
        source(tmp_path / "nowhere")
    with pytest.raises(RegionError, match=r"looked for 9\.npz and flickr30k_000000000009\.npz"):
        source(tmp_path).read("9.jpg")
    with pytest.raises(RegionError, match="no regions of '9"):
        source(golden / "uniter" / LMDB).count("9.jpg")
    with pytest.raises(RegionError, match="option `region_name`"):
        source(save_tsv(tmp_path / "a.tsv", {"7": raw()})).count("9.jpg")


def save_npz(place: Path, images: dict[str, dict[str, np.ndarray]]) -> Path:
    for name, arrays in images.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(place / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    return place


def save_lmdb(place: Path, images: dict[str, dict[str, np.ndarray]]) -> Path:
    import lmdb

    with lmdb.open(str(place), map_size=1 << 22) as database, database.begin(write=True) as write:
        for name, arrays in images.items():
            stream = io.BytesIO()
            np.savez(stream, **arrays)  # type: ignore[arg-type]
            write.put(f"{name}.npz".encode(), stream.getvalue())
    return place


CONTAINERS = {"r.tsv": save_tsv, "npz": save_npz, "lmdb": save_lmdb}
containers = pytest.mark.parametrize("name", CONTAINERS)


def opened(place: Path, ids: list[str], **rules: Any) -> Any:
    return open_regions(RegionRules(place=str(place), **rules), "x", "test", ids)


@containers
def test_one_stem_in_two_folders_is_two_images(tmp_path: Path, name: str) -> None:
    ids = ["cats/001.png", "dogs/001.png", "cats/002.png"]
    images = {id_.removesuffix(".png"): raw(12 + row, row) for row, id_ in enumerate(ids)}
    for top in ("", "photos/"):
        place = tmp_path / f"{top.strip('/')}{name}"
        shuffled = dict(reversed([(top + key, arrays) for key, arrays in images.items()]))
        files = opened(CONTAINERS[name](place, shuffled), ids)
        assert [files.count(id_) for id_ in ids] == [12, 13, 14]
        for id_, arrays in zip(ids, images.values(), strict=True):
            np.testing.assert_array_equal(files.read(id_).features, arrays["x"])
    with pytest.raises(RegionError, match=r"no regions of 'birds/001\.png'"):
        opened(place, [*ids, "birds/001.png"]).read("birds/001.png")


@containers
def test_regions_that_would_serve_two_images_are_refused(tmp_path: Path, name: str) -> None:
    place = CONTAINERS[name](tmp_path / name, {"001": raw(), "x_000000000007": raw()})
    with pytest.raises(
        DatasetError, match=r"images 'cats/001\.png' and 'dogs/001\.png' both match"
    ):
        opened(place, ["cats/001.png", "dogs/001.png"])
    with pytest.raises(DatasetError, match=r"'a7\.png' and 'b7\.png' both match 'x_000000000007"):
        opened(place, ["a7.png", "b7.png"])
    with pytest.raises(DatasetError, match=r"'c/001\.png' and 'd/001\.png' one name, '001"):
        opened(place, ["c/001.png", "d/001.png"], name="{stem}.npz")
    assert opened(place, ["c/001.png", "d/002.png"], name="{stem}.npz").count("c/001.png") == 12


@containers
def test_regions_of_which_two_fit_one_image_are_refused(tmp_path: Path, name: str) -> None:
    place = CONTAINERS[name](tmp_path / name, {"cats/001": raw(), "dogs/001": raw()})
    with pytest.raises(DatasetError, match=r"'001\.png' fits 2 names equally well, such as 'cats/"):
        opened(place, ["001.png", "002.png"])


def test_bare_numbers_of_two_images_are_refused(tmp_path: Path) -> None:
    place = save_tsv(tmp_path / "r.tsv", {"1": raw(11), "2": raw(12), "3": raw(13)})
    with pytest.raises(DatasetError, match=r"'a_001\.png' and 'b_001\.png' both have the number 1"):
        opened(place, ["a_001.png", "b_001.png", "c_002.png"])
    files = opened(place, ["a_001.png", "b_003.png", "c_002.png", "n3.png"])
    assert [files.count(id_) for id_ in ("a_001.png", "b_003.png", "c_002.png")] == [11, 13, 12]
    with pytest.raises(RegionError, match=r"no regions of 'n3\.png'"):
        files.count("n3.png")


def test_a_tsv_with_a_mark_blanks_crlf_and_repeated_ids(tmp_path: Path) -> None:
    place = save_tsv(tmp_path / "r.tsv", {" 1 ": raw(11), "2": raw(12), "3": raw(13)})
    lines = place.read_bytes().replace(b"\n", b"\r\n")
    place.write_bytes(b"\xef\xbb\xbf" + lines + b"\r\n")
    files = opened(place, ["1.jpg", "2.jpg"])
    assert [files.count("1.jpg"), len(files.read("2.jpg"))] == [11, 12]
    place.write_bytes(lines * 2)
    with pytest.raises(DatasetError, match="an id appears twice, '2' in rows 1 and 4"):
        opened(place, ["2.jpg"])


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_damage_and_pickles(tmp_path: Path) -> None:
    good = io.BytesIO()
    np.savez(good, **raw())  # type: ignore[arg-type]
    (tmp_path / "1.npz").write_bytes(good.getvalue()[:500])
    (tmp_path / "2.npz").write_bytes(b"<html>404</html>")
    np.savez(tmp_path / "3.npz", y=np.zeros(3))
    np.savez(tmp_path / "4.npz", **{**raw(), "x": np.array([Bomb(tmp_path / "touched")])})
    np.savez(tmp_path / "5.npz", **{**raw(), "x": np.full((12, 16), np.nan)})  # type: ignore[arg-type]
    np.savez(tmp_path / "6.npz", **{**raw(), "bbox": np.zeros((7, 4))})  # type: ignore[arg-type]
    np.savez(tmp_path / "7.npz", **raw(0))  # type: ignore[arg-type]
    messages = {
        "1": "truncated or not an",
        "2": "not an .npz file|pickled objects",
        "3": "its keys are 'y'; expected norm_bb, features, conf; or",
        "4": "pickled objects where arrays are expected",
        "5": "NaN or infinity",
        "6": r"features \(12, 16\) and boxes \(7, 6\)",
        "7": "0 regions, expected 1",
    }
    for id_, message in messages.items():
        with pytest.raises(RegionError, match=message):
            source(tmp_path).read(f"{id_}.jpg")
    assert not (tmp_path / "touched").exists()
    (tmp_path / "bad.tsv").write_text("7\t300\t200\n")
    with pytest.raises(DatasetError, match=r"bad\.tsv, line 1: expected tab-separated columns"):
        source(tmp_path / "bad.tsv")
    tsv = save_tsv(tmp_path / "cut.tsv", {"7": raw()})
    tsv.write_bytes(tsv.read_bytes()[:-40])
    with pytest.raises(RegionError, match="truncated or damaged line"):
        source(tsv).read("7.jpg")
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "data.mdb").write_bytes(b"nothing at all")
    with pytest.raises(DatasetError, match="not an LMDB"):
        source(tmp_path / "db")
