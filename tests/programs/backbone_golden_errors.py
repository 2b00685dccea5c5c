"""How far each family's features are from the official code: the largest error of each file.

    python tests/programs/backbone_golden_errors.py

prints the table of docs/golden.md. Errors are absolute, in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from golden_files import golden_root

from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.datasets.region_sources import open_regions
from hada.extract.datasets.regions import RegionRules

GOLDEN = golden_root() / "backbones"
REGIONS = GOLDEN / "uniter" / "npz" / "flickr30k"
REGION_IDS = [f"100009279{n}.jpg" for n in (5, 6, 7, 8)]
VOCABULARY = str(GOLDEN / "albef" / "vocab.txt")
Errors = dict[str, float]
Golden = dict[str, Any]


def gap(ours: Any, wanted: Any) -> float:
    """Largest absolute difference; arrays of another shape are infinitely far."""
    ours, wanted = np.asarray(ours), np.asarray(wanted)
    if ours.size != wanted.size:
        return float("inf")
    return float(np.abs(ours.reshape(wanted.shape) - wanted).max())


def load(family: str, file: str, **options: Any) -> Any:
    """A backbone from a file or folder of `GOLDEN`."""
    request = BackboneRequest(
        name="golden", family=family, weights=str(GOLDEN / file), options=options
    )
    return load_backbone(request)


def arrays(file: str) -> Golden:
    """A golden .npz as a dict."""
    with np.load(GOLDEN / file) as loaded:
        return {key: loaded[key] for key in loaded.files}


def rows(golden: Golden, mask: Any) -> list[list[int]]:
    """The real ids of each golden caption."""
    return [ids[real].tolist() for ids, real in zip(golden["input_ids"], mask, strict=True)]


def unit(rows: Any) -> Any:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def salesforce(family: str, file: str, suffix: str = "") -> Errors:
    """ALBEF and BLIP: features of both sides, and the logits of matching."""
    backbone, golden = load(family, file), arrays(f"{Path(file).parent}/golden{suffix}.npz")
    mask, pixels = golden["attention_mask"] > 0, golden["pixel_values"]
    ids = rows(golden, mask)
    images, captions = backbone.encode_images(pixels), backbone.encode_captions(ids)
    logits = {"itm_logits": {}, "itm_logits_enc": {"demo": False}, "itm_logits_cls": {"demo": True}}
    return {
        "image tokens": gap(images.values, golden["image_feat"]),
        "caption tokens": gap(captions.values, golden["text_feat"][mask]),
        "embeddings": max(
            gap(unit(images.embeddings), golden["image_embed"]),
            gap(images.embeddings, golden.get("image_proj_unnorm", images.embeddings)),
            gap(captions.embeddings, golden["text_proj_unnorm"]),
        ),
        "logits": max(
            gap(backbone.match_logits(pixels, ids, **options), golden[name])
            for name, options in logits.items()
            if name in golden
        ),
    }


def blip2() -> Errors:
    """The query outputs, and every query's projection (`image_tokens: embeddings`)."""
    golden = arrays("blip2/golden.npz")
    mask, pixels = golden["attention_mask"] > 0, golden["pixel_values"]
    ids = rows(golden, mask)
    backbone = load("blip2", "blip2/model", tokenizer=VOCABULARY)
    units = load("blip2", "blip2/model", tokenizer=VOCABULARY, image_tokens="embeddings")
    count = len(pixels)
    # The first row is the mean of the queries, which stands in for the global token.
    queries = backbone.encode_images(pixels).values.reshape(count, -1, 48)[:, 1:]
    projected = units.encode_images(pixels).values.reshape(count, -1, 16)[:, 1:]
    captions = backbone.encode_captions(ids)
    return {
        "image tokens": gap(queries, golden["image_feat"]),
        "caption tokens": gap(captions.values, golden["text_feat"][mask]),
        "embeddings": max(
            gap(projected, golden["image_embed"]), gap(captions.embeddings, golden["text_embed"])
        ),
        "logits": gap(backbone.match_logits(pixels, ids), golden["itm_logits"]),
    }


def clip() -> Errors:
    """open_clip's own outputs, not normalised."""
    golden = arrays("openclip/golden.npz")
    mask, backbone = golden["text_mask"] > 0, load("clip", "openclip")
    images = backbone.encode_images(golden["pixel_values"])
    captions = backbone.encode_captions(rows(golden, mask))
    return {
        "image tokens": gap(images.values, golden["image_feat"]),
        "caption tokens": gap(captions.values, golden["text_feat"][mask]),
        "embeddings": max(
            gap(images.embeddings, golden["image_proj_unnorm"]),
            gap(captions.embeddings, golden["text_proj_unnorm"]),
        ),
    }


def uniter(file: str) -> Errors:
    """Regions and text alone, and pairs: pooled vectors and the heads' scores."""
    golden = arrays("uniter/golden.npz")
    mask, boxes = golden["text_mask"] > 0, golden["img_mask"] > 0
    backbone = load("uniter", file, tokenizer=VOCABULARY, regions=str(REGIONS))
    source = open_regions(RegionRules(place=str(REGIONS)), "flickr30k", "test")
    regions = [source.read(id_) for id_ in REGION_IDS]
    ids = rows(golden, mask)
    images = backbone.encode_regions(regions)
    starts = np.cumsum(images.lengths) - images.lengths
    pairs = backbone.pair_scores(regions, ids)
    logits = [
        gap(pairs["pooled"].swapaxes(0, 1), golden["pair_pooled"]),
        gap(pairs["itm"].swapaxes(0, 1), golden["itm_logits_pretrained"]),
    ]
    if "rank" in pairs:
        logits.append(gap(pairs["rank"].T, golden["rank_scores_finetuned"]))
    return {
        "image tokens": max(
            gap(np.delete(images.values, starts, axis=0), golden["image_only_feat"][boxes]),
            gap(images.values[starts], golden["image_only_pooled"]),
        ),
        "caption tokens": gap(backbone.encode_captions(ids).values, golden["text_only_feat"][mask]),
        "logits": max(logits),
    }


def lightningdot(file: str) -> Errors:
    """Both encoders, from UNITER's region files and from HADA's."""
    golden = arrays("lightningdot/golden.npz")
    mask = golden["text_mask"] > 0
    backbone = load("lightningdot", file, tokenizer=VOCABULARY, regions=str(REGIONS))
    source = open_regions(RegionRules(place=str(REGIONS)), "flickr30k", "test")
    images = backbone.encode_regions([source.read(id_) for id_ in REGION_IDS])
    hada = RegionRules(place=str(GOLDEN / "lightningdot" / "hada_npz"))
    other = backbone.encode_regions([open_regions(hada, "flickr30k", "test").read(REGION_IDS[0])])
    captions = backbone.encode_captions(rows(golden, mask))
    return {
        "image tokens": max(
            gap(images.values, golden["image_feat"][golden["img_mask_with_cls"] > 0]),
            gap(other.values, golden["hada_image_feat"]),
        ),
        "caption tokens": gap(captions.values, golden["text_feat"][mask]),
        "embeddings": max(
            gap(images.embeddings, golden["image_embed"]),
            gap(other.embeddings, golden["hada_image_embed"]),
            gap(captions.embeddings, golden["text_embed"]),
        ),
    }


TABLE: dict[str, Callable[[], Errors]] = {
    **{
        f"albef/{name}": partial(salesforce, "albef", f"albef/{name}")
        for name in ("flickr30k.pth", "checkpoint_best.pth", "ALBEF_pretrain.pth")
    },
    "albef/albef_flickr_retrieval_lavis.pt": partial(
        salesforce, "albef", "albef/albef_flickr_retrieval_lavis.pt", "_lavis"
    ),
    **{
        f"{name}/model_base_retrieval_flickr.pth": partial(
            salesforce, "blip", f"{name}/model_base_retrieval_flickr.pth"
        )
        for name in ("blip_base", "blip_large_like")
    },
    "blip2/model": blip2,
    "openclip/open_clip_pytorch_model.bin": clip,
    **{
        f"uniter/{name}": partial(uniter, f"uniter/{name}")
        for name in ("uniter-base.pt", "model_step_5000.pt")
    },
    **{
        f"lightningdot/{name}": partial(lightningdot, f"lightningdot/{name}")
        for name in ("flickr-ft.pt", "LightningDot.pt")
    },
}
COLUMNS = ("image tokens", "caption tokens", "embeddings", "logits")


def main() -> None:
    """Print the table."""
    sys.stdout.write(f"| checkpoint | {' | '.join(COLUMNS)} |\n")
    sys.stdout.write("| --- " + "| ---: " * len(COLUMNS) + "|\n")
    for name, errors in TABLE.items():
        if not (GOLDEN / name).exists():
            sys.stdout.write(f"| {name} | not at hand: too large for the project |\n")
            continue
        found = errors()
        cells = [f"{found[column]:.1e}" if column in found else "" for column in COLUMNS]
        sys.stdout.write(f"| {name} | {' | '.join(cells)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
