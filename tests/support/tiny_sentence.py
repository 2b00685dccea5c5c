"""Tiny models of sentence-transformers and of its kind in transformers, in their real layouts.

Random weights from the libraries' own classes; a tokenizer of single bytes.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from model_layouts import Maker, dual
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

MISSING = "needs sentence-transformers: pip install '.[sentence]'"
MARKS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
]
# As Qwen2-VL's own, without its numbering of images.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 2}  # fmt: skip
PROMPTS = {"query": "Find: ", "document": "", "short": "Of: "}


def library() -> Any:
    """sentence-transformers, or a skip that says why."""
    return pytest.importorskip("sentence_transformers", minversion="6.0", reason=MISSING)


def byte_tokenizer(*marks: str, **tokens: str) -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *marks]
    tokenizer = Tokenizer(models.BPE({name: k for k, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(marks))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=96, extra_special_tokens=list(marks), **tokens
    )


def qwen_parts() -> tuple[Any, Any, Any]:
    """Configuration, tokenizer and image processor of a tiny Qwen2-VL."""
    tokenizer = byte_tokenizer(*MARKS, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = dict(zip(MARKS, tokenizer.convert_tokens_to_ids(MARKS), strict=True))
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    config = transformers.Qwen2VLConfig(
        text_config={
            **SIZES, "num_key_value_heads": 1, "vocab_size": len(tokenizer),
            "rope_parameters": rope, "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
            "patch_size": 14,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    images = transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28 * 16)
    return config, tokenizer, images


def qwen(folder: Path) -> Path:
    """A Qwen2-VL of transformers with its chat template, as people begin with."""
    torch.manual_seed(0)
    config, tokenizer, images = qwen_parts()
    transformers.Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    transformers.Qwen2VLProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def save(model: Any, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the model's card
        model.save_pretrained(str(folder))
    return folder


def chat_embedder(
    folder: Path, *, pooling: str = "lasttoken", dense: int | None = None, **more: Any
) -> Path:
    """A pooled embedder with a chat template, in Qwen2-VL's layout."""
    library()
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(1)
    parts = [Transformer(str(qwen(folder / "base"))), Pooling(32, pooling)]
    if dense is not None:
        parts.append(Dense(32, dense, activation_function=torch.nn.Identity()))
    model = SentenceTransformer(
        modules=[*parts, Normalize()], prompts=PROMPTS, device="cpu", **more
    )
    return save(model, folder / "model")


def clip_pooled(folder: Path) -> Path:
    """A CLIP as sentence-transformers saves it by now, with a layer of its own behind."""
    library()
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer

    (folder / "base").mkdir(parents=True)
    first = Transformer(str(dual("CLIP", projection_dim=12)(folder / "base")))
    torch.manual_seed(1)
    model = SentenceTransformer(
        modules=[first, Dense(12, 8, activation_function=torch.nn.Identity())], device="cpu"
    )
    return save(model, folder / "model")


def clip_alone(folder: Path) -> Path:
    """A CLIP as sentence-transformers saves it by now, with nothing behind it."""
    library()
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer

    (folder / "base").mkdir(parents=True)
    first = Transformer(str(dual("CLIP", projection_dim=12)(folder / "base")))
    model = SentenceTransformer(modules=[first, Normalize()], device="cpu")
    return save(model, folder / "model")


def inside(make: Maker) -> Maker:
    """The same, where a folder of the library's is asked for that may need the library."""

    def made(folder: Path) -> Path | str:
        library()
        return make(folder)

    return made


def sparse_encoder(folder: Path) -> Path:
    """A SPLADE."""
    library()
    from sentence_transformers import SparseEncoder

    sizes = {**SIZES, "vocab_size": 300, "max_position_embeddings": 96}
    model = transformers.BertForMaskedLM(transformers.BertConfig(**sizes))
    model.save_pretrained(folder / "base")
    byte_tokenizer("[PAD]", pad_token="[PAD]").save_pretrained(folder / "base")
    return save(SparseEncoder(str(folder / "base"), device="cpu"), folder / "model")


def colqwen(folder: Path) -> Path:
    """A ColQwen2 of transformers: ragged vectors of images and captions."""
    torch.manual_seed(0)
    base, tokenizer, images = qwen_parts()
    config = transformers.ColQwen2Config(vlm_config=base.to_dict(), embedding_dim=16)
    transformers.ColQwen2ForRetrieval(config).save_pretrained(folder)
    transformers.ColQwen2Processor(
        image_processor=images, tokenizer=tokenizer, chat_template=TEMPLATE
    ).save_pretrained(folder)
    return folder


def colpali(folder: Path) -> Path:
    """A ColPali of transformers: as many vectors of every image."""
    torch.manual_seed(0)
    names = ["<pad>", "<eos>", "<bos>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {name: k for k, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        unk_token="<unk>", model_max_length=96, padding_side="right",
    )  # fmt: skip
    images = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = transformers.ColPaliProcessor(image_processor=images, tokenizer=fast)
    text = {**SIZES, "model_type": "gemma", "num_key_value_heads": 1, "head_dim": 16}
    sight = {**SIZES, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8,
             "projection_dim": 32, "vision_use_head": False}  # fmt: skip
    config = transformers.PaliGemmaConfig(
        text_config={**text, "vocab_size": len(fast)},
        vision_config=sight,
        image_token_index=fast.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    transformers.ColPaliForRetrieval(
        transformers.ColPaliConfig(vlm_config=config, embedding_dim=16)
    ).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def multi_vector(folder: Path, *modules: Any) -> Path:
    """A ColQwen2 as sentence-transformers saves it."""
    library()
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(colqwen(folder / "base")), prompts=PROMPTS, device="cpu")
    for module in modules:
        model.append(module)
    return save(model, folder / "model")


def text_embedder(folder: Path) -> Path:
    """A BERT with mean pooling, as most models of sentence-transformers are."""
    library()
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    sizes = {**SIZES, "vocab_size": 300, "max_position_embeddings": 96}
    base = folder / "base"
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(base)
    byte_tokenizer("[PAD]", pad_token="[PAD]").save_pretrained(base)
    modules = [Transformer(str(base)), Pooling(32, "mean")]
    return save(SentenceTransformer(modules=modules, device="cpu"), folder / "model")


def cross_encoder(folder: Path) -> Path:
    """A cross-encoder on images and captions: a Qwen2-VL that is asked for yes or no."""
    library()
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    first = Transformer(str(qwen(folder / "base")), transformer_task="any-to-any")
    yes, no = first.tokenizer.convert_tokens_to_ids(["y", "n"])
    model = CrossEncoder(modules=[first, LogitScore(yes, no)], device="cpu")
    return save(model, folder / "model")


def text_cross_encoder(folder: Path) -> Path:
    """A BERT that scores two texts, as most cross-encoders are."""
    library()
    from sentence_transformers import CrossEncoder

    sizes = {**SIZES, "vocab_size": 300, "max_position_embeddings": 96, "num_labels": 1}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
    model.save_pretrained(folder / "base")
    byte_tokenizer("[PAD]", pad_token="[PAD]").save_pretrained(folder / "base")
    return save(CrossEncoder(str(folder / "base"), device="cpu"), folder / "model")
