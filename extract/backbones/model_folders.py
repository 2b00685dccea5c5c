"""What the config files of a model's folder tell: who wrote it, and which family reads it.

Only JSON is read; nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hada.extract.common.documents import read_json
from hada.extract.common.errors import CheckpointError
from hada.extract.common.shapes import conform

OPEN_CLIP, TRANSFORMERS, SENTENCE = "open_clip_config.json", "config.json", "modules.json"
SENTENCE_CONFIG = "config_sentence_transformers.json"
ADAPTER, DIFFUSERS = "adapter_config.json", "model_index.json"
# All that tells what a model on a hub is, and all of it small.
CONFIGS = (OPEN_CLIP, TRANSFORMERS, SENTENCE, ADAPTER, DIFFUSERS)
FETCHED = (*CONFIGS, SENTENCE_CONFIG)

OWN = "a class of your own can use it (docs/own_backbone.md)"
_RETRIEVAL = {"blip": "Salesforce/blip-itm-base-coco", "blip-2": "Salesforce/blip2-itm-vit-g"}
_NO_PROJECTION = "which has no projection into a joint space"

# model_type in transformers -> its name for people, of the dual encoders that `dual` reads.
DUAL = {
    "aimv2": "AIMv2",
    "align": "ALIGN",
    "altclip": "AltCLIP",
    "chinese_clip": "Chinese CLIP",
    "clip": "CLIP",
    "clipseg": "CLIPSeg",
    "groupvit": "GroupViT",
    "metaclip_2": "MetaCLIP 2",
    "owlv2": "OWLv2",
    "owlvit": "OWL-ViT",
    "siglip": "SigLIP",
    "siglip2": "SigLIP 2 NaFlex",
    "tipsv2": "TIPS 2",
    "vision-text-dual-encoder": "VisionTextDualEncoder",
}
# model_type -> class, family and name of the other two kinds of transformers that a family reads.
_BLIP = {
    "blip": ("BlipForImageTextRetrieval", "blip", "BLIP"),
    "blip-2": ("Blip2ForImageTextRetrieval", "blip2", "BLIP-2"),
}
# Parts of a class's name -> what such a BLIP is for.
_TASKS = {
    "ConditionalGeneration": "captioning",
    "QuestionAnswering": "question answering",
}
# model_type -> what it is, of those that people try and no family reads.
_OTHERS = {
    "flava": "a FLAVA model",
    "bridgetower": "a BridgeTower model, which scores pairs only",
    "vilt": "a ViLT model, which scores pairs only",
    "xclip": "an X-CLIP model of videos",
    "clap": "a CLAP model of sounds",
    "clvp": "a CLVP model of speech",
}
_LATE = ("colpali", "colqwen", "colsmol", "colmodernvbert", "colidefics")
_ONE_SIDED = {"vision": "text", "text": "image"}
_TEXT_MODELS = ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "t5", "mt5", "gpt2",
                "modernbert", "electra", "albert", "deberta-v2")  # fmt: skip
_IMAGE_MODELS = ("vit", "deit", "beit", "dinov2", "dinov3_vit", "dinov2_with_registers", "swin",
                 "convnext", "convnextv2", "resnet", "mlcd", "ijepa", "timm_wrapper")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a place holds.

    what: In words, with its article: "a transformers CLIP folder".
    family: The family that reads it, None where none does.
    weights: What to give that family; it may be another place than was looked at.
    advice: What to do instead, where no family reads it.
    options: The family's options that the place tells.
    """

    what: str
    family: str | None = None
    weights: str = ""
    advice: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


def of_configs(folder: Path, weights: str, where: str = "folder") -> Found | None:
    """What the configs in a folder say, None where it has none.

    Args:
        folder: Where the configs lie.
        weights: What a family is to be given for it.
        where: What the place is called in words: "folder" or "model".

    Raises:
        CheckpointError: A config is damaged.
    """
    if (folder / OPEN_CLIP).is_file() and not _only_transformers(folder):
        return Found(what=f"an open_clip {where}", family="clip", weights=weights)
    if (folder / SENTENCE).is_file():
        return _sentence(folder, weights, where)
    if (folder / ADAPTER).is_file():
        return Found(
            what="an adapter (PEFT), not a model",
            advice="merge it into its model (merge_and_unload), save that and give its folder",
        )
    if (folder / DIFFUSERS).is_file():
        return Found(what="a pipeline of diffusers, which generates images", advice=OWN)
    if (folder / TRANSFORMERS).is_file():
        return _transformers(_read(folder / TRANSFORMERS), weights, where)
    return None


def _only_transformers(folder: Path) -> bool:
    """Whether the weights beside both libraries' configs have transformers' file names only."""
    own = [*folder.glob("open_clip*.safetensors"), *folder.glob("open_clip*.bin")]
    others = [*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]
    return (folder / TRANSFORMERS).is_file() and bool(others) and not own


def _read(path: Path) -> dict[str, Any]:
    value = read_json(path, CheckpointError)
    result: dict[str, Any] = conform(value, dict[str, Any], str(path), CheckpointError)
    return result


def sentence_modules(folder: Path) -> list[Mapping[str, Any]]:
    """The modules that a folder of sentence-transformers lists.

    Raises `CheckpointError` where the list is none.
    """
    modules = read_json(folder / SENTENCE, CheckpointError)
    if not isinstance(modules, list) or not all(isinstance(m, Mapping) for m in modules):
        raise CheckpointError(f"{folder / SENTENCE}: expected a list of modules")
    return modules


def sentence_kind(folder: Path) -> str:
    """The class that sentence-transformers has for a folder with modules."""
    file = folder / SENTENCE_CONFIG
    kind = _read(file).get("model_type") if file.is_file() else None
    # PyLate's name; models of earlier versions have none.
    return "MultiVectorEncoder" if kind == "ColBERT" else str(kind or "SentenceTransformer")


def _sentence(folder: Path, weights: str, where: str) -> Found:
    """A folder of sentence-transformers; one that is only a CLIP inside is read as that."""
    kind, modules = sentence_kind(folder), sentence_modules(folder)
    if kind == "CrossEncoder":
        return Found(
            what=f"a cross-encoder {where} of sentence-transformers, which scores pairs only",
            advice="re-rank with it: hada-evaluate recall --rerank 20 --rerank-with "
            f"cross-encoder:{weights}",
        )
    if kind not in ("SentenceTransformer", "MultiVectorEncoder"):
        return Found(what=f"a {kind} {where} of sentence-transformers", advice=OWN)
    many = "multi-vector " if kind == "MultiVectorEncoder" else ""
    what = f"a {many}sentence-transformers {where}"
    first = modules[0] if modules else {}
    own, inner = str(first.get("type", "")).rpartition(".")[2], str(first.get("path", ""))
    alone = all(str(module.get("type", "")).endswith(".Normalize") for module in modules[1:])
    config = folder / inner / TRANSFORMERS
    inside = _read(config) if config.is_file() and ".." not in Path(inner).parts else {}
    model = str(inside.get("model_type", ""))
    if own == "CLIPModel" or (alone and model in DUAL):
        if inside:
            found = _transformers(inside, str(folder / inner) if inner else weights, "model")
            return replace(found, what=f"{what} of a {DUAL.get(model, 'CLIP')}")
        return Found(
            what=f"{what} of a CLIP in its folder {inner!r}",
            advice=f"fetch it (hf download {weights} --local-dir FOLDER) and give FOLDER/{inner}",
        )
    if model in _TEXT_MODELS or model.endswith(("_text_model", "_text")):
        return Found(
            what=f"{what} of text alone ({model}): it has no image side",
            advice="give one that encodes images, too",
        )
    return Found(what=what, family="sentence", weights=weights)


def _transformers(config: Mapping[str, Any], weights: str, where: str) -> Found:
    kind = str(config.get("model_type", ""))
    names = config.get("architectures")
    made_by = str(names[0]) if isinstance(names, list) and names else ""
    if kind in DUAL:
        return _dual(DUAL[kind], made_by, weights, where)
    if kind in _BLIP:
        return _blip(kind, made_by, weights, where)
    if kind in _OTHERS:
        return Found(what=_OTHERS[kind], advice=OWN)
    if made_by.endswith("ForRetrieval"):
        what = f"a late-interaction model of transformers ({made_by})"
        return Found(what=what, family="sentence", weights=weights)
    if kind.startswith(_LATE) or made_by.lower().startswith(_LATE):
        return Found(
            what=f"a late-interaction model of colpali-engine ({made_by or kind})",
            advice="use its form for transformers (the name often ends in -hf), or one that "
            "sentence-transformers saved",
        )
    for side, other in _ONE_SIDED.items():
        models = _IMAGE_MODELS if side == "vision" else _TEXT_MODELS
        if kind.endswith((f"{side}_model", f"_{side}")) or kind in models:
            half = "image" if side == "vision" else "text"
            return Found(
                what=f"{_article(half)} {half} encoder alone ({made_by or kind})",
                advice=f"give a model that has {_article(other)} {other} side, too",
            )
    if "pretrained_cfg" in config and not kind:
        return Found(
            what=f"an image encoder of timm alone ({config.get('architecture', 'unknown')})",
            advice="give a model that has a text side, too",
        )
    if not kind:
        return Found(what="a folder whose config.json names no model_type", advice=OWN)
    named = made_by or kind
    return Found(
        what=f"{_article(named)} {named} of transformers, which no family reads", advice=OWN
    )


def _dual(name: str, made_by: str, weights: str, where: str) -> Found:
    """A dual encoder, unless its class says that it is a half or has another task."""
    for part, half, other in (("VisionModel", "image", "text"), ("TextModel", "text", "image")):
        if part in made_by:
            return Found(
                what=f"the {half} half of a {name} ({made_by})",
                advice=f"give the whole model, which has its {other} side, too",
            )
    if "ForImageClassification" in made_by:
        return Found(
            what=f"a {name} for classification ({made_by})", advice="give the model it began as"
        )
    return Found(what=f"a transformers {name} {where}", family="dual", weights=weights)


def _blip(kind: str, made_by: str, weights: str, where: str) -> Found:
    right, family, name = _BLIP[kind]
    if made_by in ("", right):
        return Found(what=f"a transformers {name} {where}", family=family, weights=weights)
    task = next((task for part, task in _TASKS.items() if part in made_by), None)
    return Found(
        what=f"a {name} {task} checkpoint, {_NO_PROJECTION} ({made_by})"
        if task
        else f"a {name} without its retrieval heads ({made_by})",
        advice=f"use {family}:{_RETRIEVAL[kind]} or another {right}",
    )


def _article(word: str) -> str:
    return "an" if word[:1].lower() in "aeiou" else "a"
