"""Models and folders as people have them: real layouts with random weights, and what is none."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import timm
import torch
import transformers
from tiny_clip import TEXT as OPEN_TEXT
from tiny_clip import VIT, make_folder
from tiny_dual import (
    SIZE,
    TEXT,
    VISION,
    make_clip,
    make_vit_bert,
    save_model,
    save_tokenizer,
)
from torch import nn

from hada.extract.backbones import weights

Maker = Callable[[Path], Path | str]
WORDS = {**TEXT, "eos_token_id": 10, "bos_token_id": 2, "pad_token_id": 0}
SQUARE = {"height": 32, "width": 32}


def dual(kind: str, *, words: Any = WORDS, sight: Any = VISION, **more: Any) -> Maker:
    """A dual encoder of transformers with tokenizer and processor, as `save_pretrained` writes."""

    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(
            text_config=words, vision_config=sight, **more
        )
        save_model(getattr(transformers, f"{kind}Model")(config), folder)
        save_tokenizer(folder, "<s> $A </s>", bos_token="<s>", eos_token="</s>")
        save_processor(folder)
        return folder

    return make


def save_processor(folder: Path) -> None:
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=SQUARE
    ).save_pretrained(folder)


def gemma(folder: Path) -> None:
    """A small Gemma tokenizer, in the files of the published SigLIP 2 checkpoints."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = [chr(number) for number in range(33, 127)] + ["▁"]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces += [f"<0x{number:02X}>" for number in range(256)] + letters
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("d", "o"), ("do", "g"), ("D", "O"), ("▁", "a")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "GemmaTokenizer", "do_lower_case": True, "bos_token": "<bos>",
                "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
                "model_max_length": 64, "padding_side": "right", "add_bos_token": False,
                "add_eos_token": True,
            }
        )
    )  # fmt: skip


def naflex(folder: Path) -> Path:
    """A SigLIP 2 whose images keep their shape, in at most 24 patches."""
    words = {**WORDS, "vocab_size": 410}
    dual("Siglip2", words=words, sight={**SIZE, "patch_size": 8, "num_patches": 16})(folder)
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    gemma(folder)
    transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=24).save_pretrained(folder)
    return folder


def vit_bert(folder: Path) -> Path:
    make_vit_bert(folder)
    save_processor(folder)
    return folder


def save_vocabulary(folder: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "two", "people", "in"]
    (folder / "vocab.txt").write_text("\n".join(words))


def blip(name: str) -> Maker:
    """A BLIP of transformers; only BlipForImageTextRetrieval can retrieve."""

    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        text = {**WORDS, "vocab_size": 20, "encoder_hidden_size": 32, "sep_token_id": 3}
        config = transformers.BlipConfig(
            text_config=text, vision_config=VISION, image_text_hidden_size=12, projection_dim=12
        )
        save_model(getattr(transformers, name)(config), folder)
        save_vocabulary(folder)
        return folder

    return make


def alone(name: str, config: str, sizes: dict[str, Any]) -> Maker:
    """A model of transformers with one config."""

    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        model = getattr(transformers, name)(getattr(transformers, config)(**sizes))
        model.save_pretrained(folder)
        return folder

    return make


def only_config(**config: Any) -> Maker:
    """What is too large to make: its config, as the library writes it."""

    def make(folder: Path) -> Path:
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(b"")
        return folder

    return make


def with_prefix(make: Maker, prefix: str, wrap: str | None = None) -> Maker:
    """The same folder, the names of its tensors with a prefix, as training code saves them."""

    def changed(folder: Path) -> Path:
        make(folder)
        (file,) = [item for item in folder.iterdir() if item.suffix in (".safetensors", ".bin")]
        state = {f"{prefix}{key}": value for key, value in weights.read_state_dict(file).items()}
        file.unlink()
        file = file if file.suffix == ".bin" else folder / "pytorch_model.bin"
        torch.save({wrap: state} if wrap else state, file)
        return folder

    return changed


def open_folder(vision: dict[str, Any], text: dict[str, Any], **extra: Any) -> Maker:
    return lambda folder: make_folder(folder, vision, text, **extra)


def sentence(inner: str, make: Maker) -> Maker:
    """A folder of sentence-transformers around another model."""

    def made(folder: Path) -> Path:
        (folder / inner).mkdir()
        make(folder / inner)
        kind = "CLIPModel" if "CLIP" in inner else "Transformer"
        kind = f"sentence_transformers.models.{kind}"
        module = {"idx": 0, "name": "0", "path": inner, "type": kind}
        (folder / "modules.json").write_text(json.dumps([module]))
        return folder

    return made


def state(file: str, *names: str, wrap: str | None = None) -> Maker:
    """A checkpoint whose tensors have these names."""

    def make(folder: Path) -> Path:
        tensors = {name: torch.ones(2) for name in names}
        if file.endswith(".safetensors"):
            safetensors.torch.save_file(tensors, folder / file)
        else:
            torch.save({wrap: tensors} if wrap else tensors, folder / file)
        return folder / file

    return make


def text_file(name: str, text: str, *, whole_folder: bool = False) -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder if whole_folder else folder / name

    return make


def torchscript(name: str) -> Maker:
    def make(folder: Path) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch would rather export
            torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), folder / name)
        return folder / name

    return make


def timm_folder(folder: Path) -> Path:
    model = timm.create_model("resnet10t", num_classes=3)
    timm.models.save_for_hf(model, folder)
    return folder


def timm_file(folder: Path) -> Path:
    torch.save(timm.create_model("test_vit").state_dict(), folder / "vit.pth")
    return folder / "vit.pth"


def open_clip_file(architecture: str) -> Maker:
    """A bare checkpoint of an architecture that open_clip knows (see `tiny_architectures`)."""

    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        model = open_clip.create_model(architecture, pretrained_text=False)
        torch.save({"epoch": 3, "state_dict": model.state_dict()}, folder / "epoch_3.pt")
        return folder / "epoch_3.pt"

    return make


def tiny_architectures(folder: Path) -> None:
    """Small architectures beside open_clip's own: one that is alone, and two of the same shapes."""
    config = {"embed_dim": 20, "vision_cfg": VIT, "text_cfg": OPEN_TEXT}
    other = {**config, "embed_dim": 24}
    for name, value in (
        ("tiny-alone", config),
        ("tiny-two", other),
        ("tiny-two-quickgelu", {**other, "quick_gelu": True}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(value))
    open_clip.add_model_config(folder)


def golden(place: str) -> Maker:
    """A copy of a folder of the golden vectors, and one file in it."""

    def make(folder: Path) -> Path:
        import golden_files

        root = golden_files.golden_root() / "backbones"
        source = (root / place).parent
        for file in source.iterdir():
            if file.is_file():
                shutil.copy(file, folder / file.name)
                (folder / file.name).chmod(0o644)
        return folder / Path(place).name

    return make


def family_of_folders(folder: Path) -> Path:
    make_clip(folder / "one")
    make_clip(folder / "two")
    return folder


def several(folder: Path) -> Path:
    for name in ("a.pth", "b.pth"):
        state(name, "visual_encoder.cls_token")(folder)
    return folder


def without_weights(folder: Path) -> Path:
    make_clip(folder)
    (folder / "model.safetensors").unlink()
    return folder


def flax(folder: Path) -> Path:
    without_weights(folder)
    (folder / "flax_model.msgpack").write_bytes(b"\x80")
    return folder


def pointer(folder: Path) -> Path:
    make_clip(folder)
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
    )
    return folder


BERT_SIZES = {**SIZE, "vocab_size": 20, "max_position_embeddings": 16}
BERT_NAMES = ("embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.weight")
