"""UNITER and LightningDOT: golden features from official files, through code and command."""

from __future__ import annotations

import dataclasses
import json
import shutil
from base64 import b64encode
from pathlib import Path
from typing import Any

import golden_ids
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from golden_files import ids_of

from hada.extract.backbones import BackboneRequest, RegionBackbone, load_backbone
from hada.extract.cli import extract
from hada.extract.common.errors import CheckpointError, UsageError
from hada.extract.datasets.region_sources import open_regions
from hada.extract.datasets.regions import RegionRules, Regions
from hada.extract.store import open_store
from hada.extract.testing.backbone_contract import CAPTIONS, ODD_CAPTIONS, split

IDS = [f"100009279{n}.jpg" for n in (5, 6, 7, 8)]
FILES = [
    ("uniter", "uniter-base.pt"),
    ("uniter", "model_step_5000.pt"),
    ("lightningdot", "flickr-ft.pt"),
    ("lightningdot", "LightningDot.pt"),
]
PLACES = [
    "uniter/npz/flickr30k",
    "uniter/img_db/flickr30k/feat_th0.2_max100_min10",
    "uniter/img_db/flickr30k/feat_th0.2_max100_min10_compressed",
]


@pytest.fixture(scope="session")
def golden(golden_root: Path) -> Path:
    return golden_root / "backbones"


@pytest.fixture(scope="session")
def load(golden: Path) -> Any:
    """Loads a family's file with the small vocabulary and the golden regions."""

    def call(family: str, path: Path | str, **options: Any) -> Any:
        given = {
            "tokenizer": str(golden / "albef" / "vocab.txt"),
            "regions": str(golden / PLACES[0]),
            **options,
        }
        return load_backbone(
            BackboneRequest(name="m", family=family, weights=str(path), options=given)
        )

    return call


@pytest.fixture(scope="session")
def regions(golden: Path) -> list[Regions]:
    source = open_regions(RegionRules(place=str(golden / PLACES[0])), "flickr30k", "test")
    return [source.read(id_) for id_ in IDS]


@pytest.fixture(params=FILES, ids=[file for _, file in FILES])
def backbone(request: pytest.FixtureRequest, golden: Path, load: Any) -> Any:
    family, file = request.param
    return load(family, golden / family / file)


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("file", ["uniter-base.pt", "model_step_5000.pt"])
def test_golden_uniter(golden: Path, load: Any, regions: list[Regions], file: str) -> None:
    uniter = load("uniter", golden / "uniter" / file)
    with np.load(golden / "uniter" / "golden.npz") as expected:
        ids, mask = ids_of(expected, "text_mask")
        images = split(uniter.encode_regions(regions))
        tokens = np.concatenate([rows[1:] for rows in images])
        close(tokens, expected["image_only_feat"][expected["img_mask"] > 0])
        close(np.stack([rows[0] for rows in images]), expected["image_only_pooled"])
        close(uniter.encode_captions(ids).values, expected["text_only_feat"][mask])
        pairs = uniter.pair_scores(regions, ids)
        close(pairs["pooled"].swapaxes(0, 1), expected["pair_pooled"])
        close(pairs["itm"].swapaxes(0, 1), expected["itm_logits_pretrained"])
        assert ("rank" in pairs) == (file == "model_step_5000.pt")
        if "rank" in pairs:
            close(pairs["rank"].T, expected["rank_scores_finetuned"])


@pytest.mark.parametrize("file", ["flickr-ft.pt", "LightningDot.pt"])
def test_golden_lightningdot(golden: Path, load: Any, regions: list[Regions], file: str) -> None:
    dot = load("lightningdot", golden / "lightningdot" / file)
    with np.load(golden / "lightningdot" / "golden.npz") as expected:
        ids, mask = ids_of(expected, "text_mask")
        images, captions = dot.encode_regions(regions), dot.encode_captions(ids)
        close(images.values, expected["image_feat"][expected["img_mask_with_cls"] > 0])
        close(images.embeddings, expected["image_embed"])
        close(captions.values, expected["text_feat"][mask])
        close(captions.embeddings, expected["text_embed"])
        close(captions.embeddings @ images.embeddings.T, expected["sim_text_by_image"])
        hada = RegionRules(place=str(golden / "lightningdot" / "hada_npz"))
        encoded = dot.encode_regions([open_regions(hada, "flickr30k", "test").read(IDS[0])])
        close(encoded.values, expected["hada_image_feat"][0])
        close(encoded.embeddings, expected["hada_image_embed"])


def test_a_batch_equals_its_items(backbone: Any, regions: list[Regions]) -> None:
    assert isinstance(backbone, RegionBackbone)
    whole = backbone.encode_regions(regions)
    assert whole.lengths.tolist() == [15, 11, 13, 101]
    for index, item in enumerate(regions):
        alone = backbone.encode_regions([item])
        np.testing.assert_allclose(split(whole)[index], alone.values, atol=3e-6)
        if whole.embeddings is not None:
            np.testing.assert_allclose(whole.embeddings[index], alone.embeddings[0], atol=3e-6)
    captions = backbone.tokenize(CAPTIONS)
    together = split(backbone.encode_captions(captions))
    for rows, ids in zip(together, captions, strict=True):
        np.testing.assert_allclose(rows, backbone.encode_captions([ids]).values, atol=3e-6)


def test_the_spec(backbone: Any) -> None:
    spec = backbone.spec
    values = dataclasses.asdict(spec)
    assert json.loads(json.dumps(values)) == values
    assert spec.image.count is None
    if spec.family == "uniter":
        assert spec.embedding_width is None
        assert spec.image.global_source == "pooled"
        assert "there is no CLS" in spec.preprocessing["image_global"]
    else:
        assert spec.embedding_width == 24
        assert spec.image.global_source == "token"
    assert not spec.normalized
    assert not backbone.model.training


def test_captions(backbone: Any, golden: Path, load: Any) -> None:
    ids = backbone.tokenize(ODD_CAPTIONS)
    assert all(row[0] == 101 and row[-1] == 102 for row in ids)
    assert np.isfinite(backbone.encode_captions(ids).values).all()
    before = backbone.truncated
    (long,) = backbone.tokenize(["dog " * 1000])
    assert (len(long), long[-1], backbone.truncated) == (40, 102, before + 1)
    assert backbone.tokenize([]) == []


def test_case_is_kept(golden: Path, load: Any) -> None:
    file = golden / "uniter" / "uniter-base.pt"
    cased, cleaned = load("uniter", file), load("uniter", file, caption_cleaning="albef")
    dog = cased.tokenize(["dog"])
    assert cased.tokenize(["Dog"]) != dog  # the vocabulary has no capital letters
    assert cleaned.tokenize(["Dog!"]) == dog
    assert cased.spec.preprocessing["lower_case"] is False
    with pytest.raises(UsageError, match="Known: albef, none"):
        load("uniter", file, caption_cleaning="blip")


def test_regions_must_be_named(golden: Path, load: Any) -> None:
    file = golden / "uniter" / "uniter-base.pt"
    with pytest.raises(UsageError, match="sees region features, not pictures"):
        load_backbone(BackboneRequest(name="m", family="uniter", weights=str(file), options={}))
    with pytest.raises(UsageError, match="regions_at_least 10 is more than regions_at_most 5"):
        load("uniter", file, regions_at_most=5)


@pytest.fixture(params=[FILES[1], FILES[2]], ids=["uniter", "lightningdot"])
def copied(request: pytest.FixtureRequest, golden: Path, tmp_path: Path) -> tuple[str, Path]:
    family, file = request.param
    for source in (golden / family).iterdir():
        if source.name == file or source.suffix == ".json":
            shutil.copy(source, tmp_path / source.name)
            (tmp_path / source.name).chmod(0o644)
    return family, tmp_path / file


def test_heads_are_never_guessed(copied: tuple[str, Path], load: Any) -> None:
    family, file = copied
    for config in file.parent.glob("*.json"):
        config.unlink()
    with pytest.raises(CheckpointError, match="number of text attention heads is unknown"):
        load(family, file)
    with pytest.raises(CheckpointError, match="5 text heads do not divide the width 48"):
        load(family, file, heads=5)
    assert set(load(family, file, heads=4).spec.preprocessing["heads"]) == {4}


def test_damage(copied: tuple[str, Path], load: Any) -> None:
    family, file = copied
    loaded = torch.load(file)
    state = loaded.get("model_dict", loaded)
    name = next(key for key in state if key.endswith("layer.1.output.dense.bias"))
    state[name] = torch.full_like(state[name], torch.nan)
    torch.save(loaded, file)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        load(family, file)
    del state[name]
    torch.save(loaded, file)
    with pytest.raises(CheckpointError, match=r"1 missing keys \(.*layer\.1\.output\.dense\.bias"):
        load(family, file)
    for key in [key for key in state if "img_linear" in key]:
        del state[key]
    torch.save(loaded, file)
    with pytest.raises(CheckpointError, match=r"no tensor 'img_embeddings\.img_linear\.weight'"):
        load(family, file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="truncated"):
        load(family, file)


def test_old_names_of_norms(copied: tuple[str, Path], load: Any, regions: list[Regions]) -> None:
    family, file = copied
    before = load(family, file).encode_regions(regions).values
    loaded = torch.load(file)
    state = loaded.get("model_dict", loaded)
    for key in [key for key in state if "LayerNorm" in key]:
        old = key.replace(".weight", ".gamma").replace(".bias", ".beta")
        state[old] = state.pop(key)
    torch.save(loaded, file)
    np.testing.assert_array_equal(load(family, file).encode_regions(regions).values, before)


@pytest.mark.parametrize(
    ("family", "file", "other"),
    [
        ("uniter", "lightningdot/flickr-ft.pt", "lightningdot"),
        ("uniter", "albef/flickr30k.pth", "albef"),
        ("lightningdot", "uniter/uniter-base.pt", "uniter"),
        ("lightningdot", "blip_base/model_base_retrieval_flickr.pth", "blip"),
    ],
)
def test_other_families(golden: Path, load: Any, family: str, file: str, other: str) -> None:
    with pytest.raises(CheckpointError, match=f"set `family: {other}`"):
        load(family, golden / file)


MANIFEST = """\
schema: 1
defaults: {{dataset: flickr30k, models: [m]}}
stores: stores
datasets:
  flickr30k:
    reader: karpathy
    root: data
    annotations: golden.json
    splits: {{test: {{}}}}
models:
  m:
    family: {family}
    weights: {weights}
    options: {{tokenizer: {tokenizer}, regions: "{regions}"}}
"""


def make_project(
    golden: Path,
    family: str,
    file: str,
    regions: str,
    ids: list[str],
    captions: list[list[str]] | None = None,
    tokenizer: Path | None = None,
) -> None:
    """Annotations without a single picture: these models need none."""
    captions = captions or [CAPTIONS] * len(ids)
    Path("data").mkdir()
    records = [
        {
            "filename": id_,
            "split": "test",
            "sentences": [
                {"raw": caption, "sentid": f"{id_}-{n}"} for n, caption in enumerate(sentences)
            ],
        }
        for id_, sentences in zip(ids, captions, strict=True)
    ]
    Path("data/golden.json").write_text(json.dumps({"images": records}))
    tokenizer = tokenizer or golden / "albef" / "vocab.txt"
    Path("data_manifest.yaml").write_text(
        MANIFEST.format(
            family=family,
            weights=golden / family / file,
            tokenizer=tokenizer,
            regions=regions.replace("flickr30k", "{dataset}"),
        )
    )


def command(*more: str) -> Any:
    arguments = ["--split", "test", "--store-dtype", "float32", "--batch-size", "3", *more]
    return CliRunner().invoke(extract, arguments)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("family", "file"), FILES)
def test_golden_through_the_command(
    golden: Path, tmp_path: Path, family: str, file: str, place: str
) -> None:
    with np.load(golden / family / "golden.npz") as expected:
        words = golden_ids.captions(expected["input_ids"], expected["text_mask"])
    vocabulary = golden_ids.bert_vocabulary(tmp_path / "vocab.txt", 200)
    captions = [[caption] for caption in words]
    make_project(golden, family, file, str(golden / place), IDS, captions, vocabulary)
    result = command("--shard-size", "2")
    assert result.exit_code == 0, result.output
    store = open_store("stores/flickr30k/test/m")
    tokens = store.image.tokens(slice(None))
    assert store.image.lengths.tolist() == [15, 11, 13, 101]
    with np.load(golden / family / "golden.npz") as expected:
        words = expected["text_only_feat" if family == "uniter" else "text_feat"]
        close(store.caption.tokens(slice(None)), words[expected["text_mask"] > 0])
        if family == "uniter":
            assert store.image.embeddings() is None
            starts = np.cumsum([0, 15, 11, 13])
            close(tokens[starts], expected["image_only_pooled"])
            rest = np.delete(tokens, starts, axis=0)
            close(rest, expected["image_only_feat"][expected["img_mask"] > 0])
        else:
            close(tokens, expected["image_feat"][expected["img_mask_with_cls"] > 0])
            close(store.image.embeddings(), expected["image_embed"])
            close(store.caption.embeddings(), expected["text_embed"])
    again = command("--shard-size", "2")
    assert "complete already" in again.output


def test_a_missing_file_is_one_failed_item(golden: Path) -> None:
    make_project(
        golden, "lightningdot", "flickr-ft.pt", str(golden / PLACES[0]), [*IDS[:2], "5.jpg", IDS[2]]
    )
    result = command()
    assert result.exit_code == 0, result.output
    assert "no regions of '5.jpg'" in result.stderr
    store = open_store("stores/flickr30k/test/m")
    assert store.image.failed.tolist() == [False, False, True, False]
    assert store.image.lengths.tolist() == [15, 11, 1, 13]
    assert np.isfinite(store.image.tokens(np.array([0, 1, 3]))).all()
    assert command("--max-errors", "0").exit_code == 1


def test_regions_by_bare_numbers_that_two_images_have(golden: Path, tmp_path: Path) -> None:
    line = b"\t".join(
        [b"96\t72\t2", b64encode(bytes(32)), b64encode(np.ones((2, 24)).astype("<f4"))]
    )
    (tmp_path / "r.tsv").write_bytes(b"1\t" + line + b"\n2\t" + line + b"\n")
    images = ["a_001.png", "b_001.png", "c_002.png"]
    make_project(golden, "uniter", "uniter-base.pt", str(tmp_path / "r.tsv"), images)
    result = command()
    assert result.exit_code == 2
    assert "the images 'a_001.png' and 'b_001.png' both have the number 1" in result.stderr
    assert "Name the regions by the images' paths" in result.stderr
    assert not list(tmp_path.rglob("*.zarr"))


def test_no_regions_at_all(golden: Path, tmp_path: Path) -> None:
    make_project(golden, "uniter", "uniter-base.pt", str(tmp_path / "nowhere"), IDS)
    result = command()
    assert result.exit_code == 2
    assert "no region features at" in result.stderr


def test_hadas_own_region_files_through_the_command(golden: Path) -> None:
    folder = golden / "lightningdot" / "hada_npz"
    make_project(golden, "lightningdot", "flickr-ft.pt", str(folder), IDS[:1])
    assert command().exit_code == 0
    store = open_store("stores/flickr30k/test/m")
    with np.load(golden / "lightningdot" / "golden.npz") as expected:
        close(store.image.tokens(slice(None)), expected["hada_image_feat"][0])
        close(store.image.embeddings(), expected["hada_image_embed"])


def test_regions_have_no_views(golden: Path) -> None:
    make_project(golden, "uniter", "uniter-base.pt", str(golden / PLACES[0]), IDS)
    result = command("--views", "1")
    assert result.exit_code == 2
    assert "sees regions, not pictures: no --views" in result.stderr
