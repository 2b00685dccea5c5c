"""What each family does to images and captions: every line of the docs' table, tested.

A line is compared with the family's own library; those of official code (ALBEF, BLIP, LAVIS) with
what that code gave for the golden captions and pictures.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_layouts as make
import numpy as np
import open_clip
import pytest
import tiny_sentence
import transformers
from golden_ids import bert_vocabulary
from PIL import Image
from places import ROOT
from tiny_clip import TEXT, VIT, make_folder

from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.backbones.lower_case import ADDED, BY_TOKENIZER, OFF
from hada.extract.common.errors import UsageError
from hada.extract.testing.backbone_contract import pictures

CAPTIONS = [
    "A dog.",
    "Two PEOPLE in red shirts, on a bench -- &amp; look!",
    "a   man's white/brown BIKE #5",
    "İSTANBUL ΣΑΣ Ünïcode <EOS> a dog",
    "a dog in the park " * 20,
    "",
]
GALLERY = pictures([(131, 97), (80, 150), (33, 20)])


def load(family: str, place: Path | str, **options: Any) -> Any:
    return load_backbone(
        BackboneRequest(name="m", family=family, weights=str(place), options=options)
    )


def same_pixels(backbone: Any, theirs: Callable[[Image.Image], Any]) -> None:
    for image in GALLERY:
        own = backbone.preprocess(image)
        np.testing.assert_allclose(own, np.asarray(theirs(image)).reshape(own.shape), atol=1e-6)


def same_ids(backbone: Any, padded: Any, *, pooled_at_end: bool = True) -> None:
    """Our rows are the library's without the padding behind them."""
    rows = backbone.tokenize(CAPTIONS)
    for row, theirs in zip(rows, np.asarray(padded).tolist(), strict=True):
        assert row == theirs[: len(row)]
        assert len(set(theirs[len(row) :])) <= 1, "more than padding was left out"
        assert not pooled_at_end or row[-1] == theirs[len(row) - 1]


def open_clips(folder: Path) -> Any:
    """open_clip's own transform and tokenizer for a folder, compared with ours."""
    backbone = load("clip", folder)
    theirs = open_clip.create_model_and_transforms(f"local-dir:{folder}")[2]
    same_pixels(backbone, theirs)
    return backbone


def clip(folder: Path, _golden: Path) -> None:
    backbone = open_clips(make_folder(folder, VIT, TEXT))
    same_ids(backbone, open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS))


def clip_with_another_tokenizer(folder: Path, _golden: Path) -> None:
    for cleaning in ("whitespace", "lower", "canonicalize"):
        text = {**TEXT, "vocab_size": 64, "hf_tokenizer_name": "local"}
        text["tokenizer_kwargs"] = {"clean": cleaning}
        backbone = open_clips(make_folder(folder / cleaning, VIT, text))
        assert "lower_case" not in backbone.spec.preprocessing
        place = f"local-dir:{folder / cleaning}"
        same_ids(backbone, open_clip.get_tokenizer(place)(CAPTIONS))


def clip_siglip(folder: Path, _golden: Path) -> None:
    """With the published cleaning as open_clip does it, without it lower-cased all the same."""
    for cleaning, how in (("canonicalize", BY_TOKENIZER), ("whitespace", ADDED)):
        text = {
            **TEXT,
            "vocab_size": 410,
            "context_length": 64,
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2",
            "tokenizer_kwargs": {"clean": cleaning},
            "no_causal_mask": True,
            "pool_type": "last",
            "pad_id": 0,
        }
        place = make_folder(folder / cleaning, VIT, text)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (place / file).unlink()
        make.gemma(place)
        backbone = open_clips(place)
        assert backbone.spec.preprocessing["lower_case"] == how
        theirs = open_clip.get_tokenizer(f"local-dir:{place}")
        if how == ADDED:  # the tokenizer that transformers has for it by now
            theirs.tokenizer = transformers.Siglip2Tokenizer.from_pretrained(place)
        same_ids(backbone, theirs(CAPTIONS))
        assert backbone.reader.length == 64


def dual(folder: Path, _golden: Path) -> None:
    for number, maker in enumerate((make.dual("CLIP", projection_dim=12), make.vit_bert)):
        place = folder / str(number)
        place.mkdir()
        backbone = load("dual", maker(place))
        theirs = transformers.AutoImageProcessor.from_pretrained(place, backend="pil")
        same_pixels(backbone, lambda image, own=theirs: own(images=image)["pixel_values"][0])
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        padded = tokenizer(CAPTIONS, padding=True, truncation=True, max_length=16)
        same_ids(backbone, padded["input_ids"])


def siglip_folder(folder: Path, **text: Any) -> Path:
    words = {**make.WORDS, "vocab_size": 410, "max_position_embeddings": 64, **text}
    make.dual("Siglip", words=words)(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    return folder


def siglip_2(folder: Path, _golden: Path) -> None:
    make.gemma(siglip_folder(folder))
    backbone = load("dual", folder)
    assert backbone.spec.preprocessing["tokenizer"] == "GemmaTokenizer"
    assert backbone.spec.preprocessing["lower_case"] == ADDED
    theirs = transformers.Siglip2Tokenizer.from_pretrained(folder)
    padded = theirs(CAPTIONS, padding="max_length", truncation=True, max_length=64)["input_ids"]
    same_ids(backbone, padded)
    assert backbone.tokenize(["A DOG"]) == backbone.tokenize(["a dog"])
    full, _ = backbone.pad(backbone.tokenize(CAPTIONS), backbone.pad_id, backbone.max_tokens)
    np.testing.assert_array_equal(full, padded)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    same_pixels(backbone, lambda image: processor(images=image)["pixel_values"][0])
    # What is lower-cased already is not changed, and who says no is left alone.
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for change, how in (({"tokenizer_class": "Siglip2Tokenizer"}, BY_TOKENIZER),
                        ({"do_lower_case": False}, OFF)):  # fmt: skip
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, **change}))
        other = load("dual", folder)
        assert other.spec.preprocessing["lower_case"] == how
        assert (other.tokenize(CAPTIONS) == backbone.tokenize(CAPTIONS)) == (how == BY_TOKENIZER)


def naflex(folder: Path, _golden: Path) -> None:
    make.naflex(folder)
    backbone = load("dual", folder)
    processor = transformers.Siglip2ImageProcessorPil.from_pretrained(folder)
    for image in GALLERY:
        found = processor(images=image, return_tensors="np")
        packed = backbone.preprocess(image)
        np.testing.assert_array_equal(packed[0, :2], found["spatial_shapes"][0])
        np.testing.assert_array_equal(packed[1:], found["pixel_values"][0])
    assert backbone.spec.preprocessing["lower_case"] == BY_TOKENIZER
    theirs = transformers.Siglip2Tokenizer.from_pretrained(folder)
    padded = theirs(CAPTIONS, padding="max_length", truncation=True, max_length=16)["input_ids"]
    same_ids(backbone, padded)


def sentence(folder: Path, _golden: Path) -> None:
    library = tiny_sentence.library()
    place = tiny_sentence.chat_embedder(folder)
    backbone = load("sentence", place)
    model = library.SentenceTransformer(str(place), device="cpu")
    found = backbone.encode_captions(backbone.tokenize(CAPTIONS))
    np.testing.assert_allclose(found.embeddings, model.encode_query(CAPTIONS), atol=1e-6)
    images = backbone.encode_images([backbone.preprocess(image) for image in GALLERY])
    np.testing.assert_allclose(images.embeddings, model.encode_document(GALLERY), atol=1e-6)
    assert backbone.truncated == 1
    assert found.lengths.max() == backbone.spec.preprocessing["max_tokens"]
    prompted = model.encode(CAPTIONS, prompt="Find: ")
    np.testing.assert_allclose(found.embeddings, prompted, atol=1e-6)


def sentence_multi_vector(folder: Path, _golden: Path) -> None:
    """With ColBERT's query expansion: as many rows of every short caption."""
    library = tiny_sentence.library()
    (folder / "base").mkdir()
    model = library.MultiVectorEncoder(str(tiny_sentence.colpali(folder / "base")), device="cpu")
    model[0].query_expansion = {"strategy": "min", "attend": True, "length": 60, "token": "<eos>"}
    backbone = load("sentence", tiny_sentence.save(model, folder / "model"))
    ids = backbone.tokenize(CAPTIONS)
    found = backbone.encode_captions(ids)
    np.testing.assert_array_equal(backbone.caption_rows(ids), found.lengths)
    assert found.lengths.min() == 61
    assert found.lengths.max() > 61
    rows = np.split(found.values, np.cumsum(found.lengths)[:-1])
    for own, theirs in zip(rows, model.encode_query(CAPTIONS), strict=True):
        np.testing.assert_allclose(own[1:], theirs, atol=1e-6)


def sentencepiece_model(folder: Path) -> None:
    """A small model in the layout of SigLIP 1's checkpoints: pad and end token are one."""
    trainer = pytest.importorskip("sentencepiece")
    (folder / "text").write_text("\n".join(["a dog in the park", "two people on a bench"] * 9))
    trainer.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "spiece"), vocab_size=32,
        pad_id=-1, eos_id=1, unk_id=2, bos_id=0, bos_piece="<pad>", minloglevel=9,
        hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "eos_token": "</s>",
                "pad_token": "</s>", "unk_token": "<unk>", "model_max_length": 16,
            }
        )
    )  # fmt: skip


def siglip_1(folder: Path, _golden: Path) -> None:
    sentencepiece_model(siglip_folder(folder, max_position_embeddings=16))
    backbone = load("dual", folder)
    assert backbone.spec.preprocessing["tokenizer"] == "SiglipTokenizer"
    assert backbone.spec.preprocessing["lower_case"] == BY_TOKENIZER
    theirs = transformers.SiglipTokenizer.from_pretrained(folder)
    padded = theirs(CAPTIONS, padding="max_length", truncation=True, max_length=16)["input_ids"]
    same_ids(backbone, padded)
    full, _ = backbone.pad(backbone.tokenize(CAPTIONS), backbone.pad_id, backbone.max_tokens)
    np.testing.assert_array_equal(full, padded)
    assert backbone.tokenize(["A DOG, IN"]) == backbone.tokenize(["a dog in"])
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    same_pixels(backbone, lambda image: processor(images=image)["pixel_values"][0])


def official(backbone: Any, golden: Path, texts: Path) -> None:
    """Ids and pixels as the official code gave them."""
    expected = json.loads(texts.read_text())
    rows = backbone.tokenize(expected["raw"])
    for row, theirs in zip(rows, expected["input_ids"], strict=True):
        assert row == theirs[: len(row)]
        assert not any(theirs[len(row) :])
    square(backbone, golden)


def square(backbone: Any, golden: Path) -> None:
    size = backbone.image_size
    with np.load(golden / "preproc" / "golden.npz") as known:
        names = [name for name in known if name.endswith("_square64")]
        for name in names if size == 64 else ():
            image = Image.open(golden / "preproc" / f"{name.partition('_')[0]}.png")
            np.testing.assert_allclose(backbone.preprocess(image), known[name], atol=1e-6)
    # BLIP-2's tiny model has another size: the same class.
    assert size == 64 or type(backbone.preprocessor).__name__ == "Squash"


def blip(folder: Path, golden: Path) -> None:
    place = make.golden("blip_base/model_base_retrieval_flickr.pth")(folder)
    backbone = load("blip", place)
    assert (backbone.max_words, backbone.max_tokens) == (30, 35)
    official(backbone, golden, golden / "blip_base" / "texts.json")


def blip2(folder: Path, golden: Path) -> None:
    vocabulary = golden / "blip_base" / "vocab.txt"
    backbone = load("blip2", golden / "blip2" / "model", tokenizer=str(vocabulary))
    assert (backbone.max_words, backbone.max_tokens) == (50, 32)
    expected = json.loads((golden / "blip_base" / "texts.json").read_text())
    for row, theirs in zip(backbone.tokenize(expected["raw"]), expected["input_ids"], strict=True):
        assert row[:31] == theirs[: len(row)][:31] or len(row) == 32
    square(backbone, golden)


def albef(folder: Path, golden: Path) -> None:
    backbone = load("albef", make.golden("albef/flickr30k.pth")(folder))
    assert (backbone.max_words, backbone.max_tokens) == (30, 30)
    official(backbone, golden, golden / "albef" / "texts.json")
    assert all(row[-1] != backbone.tokenizer.sep_token_id for row in backbone.tokenize(CAPTIONS))


def albef_of_lavis(folder: Path, golden: Path) -> None:
    backbone = load("albef", make.golden("albef/albef_flickr_retrieval_lavis.pt")(folder))
    assert (backbone.max_words, backbone.max_tokens) == (50, 35)
    official(backbone, golden, golden / "albef" / "texts_lavis.json")


def regions(family: str, file: str) -> Callable[[Path, Path], None]:
    def check(folder: Path, _golden: Path) -> None:
        place = make.golden(file)(folder)
        bert_vocabulary(folder / "vocab.txt", 200)
        backbone = load(family, place, regions="regions")
        assert backbone.spec.preprocessing["region_threshold"] == 0.2
        assert backbone.spec.preprocessing["regions"] == [10, 100]
        theirs = transformers.BertTokenizer(str(folder / "vocab.txt"), do_lower_case=False)
        captions = ["word7, word8!", "WORD7 -- word8", "Word9"]
        for row, expected in zip(
            backbone.tokenize(captions), theirs(captions)["input_ids"], strict=True
        ):
            assert row == expected
        assert backbone.tokenize(["Word9"]) != backbone.tokenize(["word9"])

    return check


# The first cell of a line of the table -> what checks the line.
LINES: dict[str, Callable[[Path, Path], None]] = {
    "`clip`": clip,
    "`clip` with a tokenizer of transformers": clip_with_another_tokenizer,
    "`clip`, SigLIP": clip_siglip,
    "`dual`": dual,
    "`dual`, SigLIP 1": siglip_1,
    "`dual`, SigLIP 2": siglip_2,
    "`dual`, SigLIP 2 NaFlex": naflex,
    "`sentence`": sentence,
    "`sentence`, multi-vector": sentence_multi_vector,
    "`blip`": blip,
    "`blip2`": blip2,
    "`albef`": albef,
    "`albef`, LAVIS's": albef_of_lavis,
    "`uniter`": regions("uniter", "uniter/uniter-base.pt"),
    "`lightningdot`": regions("lightningdot", "lightningdot/flickr-ft.pt"),
}


def documented() -> list[list[str]]:
    text = (ROOT / "docs" / "extraction.md").read_text()
    table = text.partition("| model | images | captions |")[2].partition("\n\n")[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines() if "| `" in line[:4]]


def test_every_line_of_the_docs_has_its_check() -> None:
    assert [line[0] for line in documented()] == list(LINES)


@pytest.mark.parametrize("line", LINES)
def test_preparation(line: str, tmp_path: Path, golden_root: Path) -> None:
    LINES[line](tmp_path, golden_root / "backbones")


@pytest.mark.parametrize("line", ["`blip`", "`blip2`", "`albef`", "`albef`, LAVIS's"])
def test_the_numbers_in_the_docs_are_the_backbones(
    line: str, tmp_path: Path, golden_root: Path
) -> None:
    (text,) = [cells[2] for cells in documented() if cells[0] == line]
    words, tokens = map(int, re.findall(r"(\d+) (?:words|tokens)", text))
    source = (LINES[line].__code__.co_consts,)
    assert (words, tokens) in source[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SiglipTokenizer", "T5Tokenizer", "GemmaTokenizer", "open_clip"])
def test_a_tokenizer_without_sentencepiece_is_one_line(kind: str, tmp_path: Path) -> None:
    """In a process that finds no such package, whether this environment has it or not."""
    family = "clip" if kind == "open_clip" else "dual"
    if family == "clip":
        text = {**TEXT, "vocab_size": 64, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}
        make_folder(tmp_path, VIT, text)
        (tmp_path / "tokenizer.json").unlink()
        kind = "T5Tokenizer"
    else:
        siglip_folder(tmp_path, max_position_embeddings=16)
    config = {"tokenizer_class": kind, "model_max_length": 16}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "spiece.model").write_bytes(b"")
    code = f"""
import importlib.util as machinery
find = machinery.find_spec
machinery.find_spec = lambda name, *rest: (
    None if name.partition(".")[0] == "sentencepiece" else find(name, *rest))
from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.common.errors import UsageError
try:
    load_backbone(
        BackboneRequest(name="m", family={family!r}, weights={str(tmp_path)!r}, options={{}})
    )
except UsageError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"refused: model 'm' (family {family!r}) needs the package 'sentencepiece', which is not "
        "installed: pip install sentencepiece\n"
    )


def test_an_empty_caption_keeps_its_end_token(tmp_path: Path) -> None:
    make.gemma(siglip_folder(tmp_path))
    assert load("dual", tmp_path).tokenize([""]) == [[1]]
    with pytest.raises(UsageError):
        load("dual", tmp_path, nothing=1)
