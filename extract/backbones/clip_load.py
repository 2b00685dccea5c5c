"""Finds and loads open_clip models: folders, hub ids, tags and files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import (
    download_pretrained,
    download_pretrained_from_hf,
    get_pretrained_cfg,
    list_pretrained_tags_by_model,
)
from safetensors.torch import save_file

from hada.extract.backbones import hub, lower_case, weights
from hada.extract.backbones.clip_shapes import named
from hada.extract.common.errors import CheckpointError, UsageError, unknown

LOCAL, HUB = "local-dir:", "hf-hub:"
CONFIG_NAME = "open_clip_config.json"
# Numbers that OpenAI's archives have beside their weights; a state dict saved from one has them.
_ATTRIBUTES = ("input_resolution", "context_length", "vocab_size")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model")


@dataclass
class Source:
    """One model as open_clip wants to be asked for it.

    name: the first argument of `create_model`.
    pretrained: a tag or a file, None where `name` says it all.
    files: all that decides the weights, for the digest.
    quick_gelu: the activation these weights were trained with, None to take the config's.
    tokenizer: the first argument of `get_tokenizer`, None where it is `name`.
    """

    name: str
    pretrained: str | None
    files: list[Path]
    quick_gelu: bool | None = None
    tokenizer: str | None = None


def find(text: str, options: dict[str, Any]) -> Source:
    """Where `weights` and the options point to; fetches what is not local."""
    path = Path(text.removeprefix(LOCAL)).expanduser()
    if text.startswith(LOCAL) or path.is_dir():
        return _folder(path)
    if text.startswith(HUB):
        return _hub(text)
    if path.is_file():
        if options["architecture"] is None:
            raise UsageError(
                f"{path} is a file: set the option `architecture` to the open_clip architecture "
                f"of these weights, write ARCH/{path}, or give a folder with an {CONFIG_NAME}"
            )
        return _file(path, options)
    return _named(text, options)


def _folder(folder: Path) -> Source:
    if not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(f"no {CONFIG_NAME} in {folder}: not an open_clip model folder")
    return Source(f"{LOCAL}{folder}", None, weights.folder_files(folder))


def _hub(text: str) -> Source:
    name, revision = hub.parsed(text.removeprefix(HUB))
    folder = hub.resolve_folder(
        text.removeprefix(HUB), kinds=(*hub.OPEN_CLIP_WEIGHTS, *hub.WEIGHTS)
    )
    if not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(f"{name!r} on the hub has no {CONFIG_NAME}: not an open_clip model")
    config = folder / CONFIG_NAME
    if revision is None:
        return Source(text, None, [config, Path(download_pretrained_from_hf(name))])
    # open_clip itself knows no revisions. Tokenizers of other repositories are not pinned.
    kinds = (*hub.OPEN_CLIP_WEIGHTS, *hub.WEIGHTS)
    file = next(file for kind in kinds for file in sorted(folder.glob(kind)))
    own = any((folder / part).is_file() for part in _TOKENIZER_FILES)
    tokenizer = f"{LOCAL}{folder}" if own else f"{HUB}{name}"
    return Source(f"{LOCAL}{folder}", None, [config, file], tokenizer=tokenizer)


def _file(path: Path, options: dict[str, Any]) -> Source:
    architecture = _architecture(options["architecture"])
    return Source(architecture, str(path), [path], options["quick_gelu"])


def _named(text: str, options: dict[str, Any]) -> Source:
    """`ARCH/TAG`, `ARCH/FILE`, or `ARCH` with the option `pretrained` (a tag or a file)."""
    known = open_clip.list_models()
    tag = options["pretrained"]
    name = text
    if text not in known and "/" in text:
        # The last part is the tag of an architecture that nobody knows.
        name, in_name = named(text) or text.rsplit("/", 1)
        if tag is not None and tag != in_name:
            raise UsageError(f"weights {text!r} name a tag, the option `pretrained` says {tag!r}")
        tag = in_name
    architecture = _architecture(name)
    tags = list_pretrained_tags_by_model(architecture)
    if tag is None:
        raise UsageError(
            f"weights {text!r} name no pretrained weights: write ARCH/TAG or set the option "
            f"`pretrained`. Known tags of {architecture}: {', '.join(sorted(tags))}"
        )
    file = Path(tag).expanduser()
    if file.is_file():
        return _file(file, {**options, "architecture": architecture})
    if "/" in tag or file.suffix in weights.WEIGHT_SUFFIXES:
        raise CheckpointError(f"no checkpoint file at {tag!r} for the architecture {architecture}")
    config = get_pretrained_cfg(architecture, tag)
    if not config:
        raise unknown(f"pretrained tag of {architecture}", tag, tags)
    return Source(
        architecture,
        tag,
        [_download(config, f"{architecture}/{tag}")],
        _gelu(architecture, tag, bool(config.get("quick_gelu", False))),
    )


def _download(config: dict[str, Any], name: str) -> Path:
    """The weights of a tag, from the Hugging Face hub or from the address that the tag has."""
    repository = os.path.split(config.get("hf_hub", ""))[0]
    address = config.get("url", "")
    kept = Path("~/.cache/clip").expanduser() / os.path.basename(address)
    if not repository and hub.offline() and not kept.is_file():
        raise CheckpointError(
            f"the weights {name} are not in the cache {kept.parent}, and the network is switched "
            f"off (HF_HUB_OFFLINE). Where there is one: `curl -L --create-dirs -o {kept} {address}`"
        )
    try:
        return Path(download_pretrained(config))
    except Exception as error:  # network, HTTP and cache errors of several packages
        if repository:
            raise hub.unreachable(repository, error) from error
        raise CheckpointError(
            f"the weights {name} could not be fetched from {address} ({type(error).__name__}: "
            f"{error}); check the network, or put the file at {kept}"
        ) from error


def _gelu(architecture: str, tag: str, trained_with: bool) -> bool:
    """Whether to switch QuickGELU on for a tag.

    OpenAI's weights need it though their architecture's name does not say so: open_clip only
    warns, and the features are wrong. The other way round cannot be switched, so it is refused.
    """
    config = open_clip.get_model_config(architecture) or {}
    if config.get("quick_gelu", False) and not trained_with:
        plain = architecture.removesuffix("-quickgelu")
        raise UsageError(
            f"{architecture} computes QuickGELU, the weights {tag!r} were trained without; "
            f"use {plain}/{tag}"
        )
    return trained_with


def _architecture(name: str) -> str:
    known = open_clip.list_models()
    if name not in known:
        raise unknown("open_clip architecture", name, known)
    return name


@contextmanager
def _readable(source: Source) -> Iterator[Source]:
    """The source with local weights freed from a prefix or a wrapping.

    open_clip itself opens `state_dict` and removes `module.` only. Files that need it are written
    anew, for as long as the model is being made.
    """
    folder = Path(source.name.removeprefix(LOCAL)) if source.name.startswith(LOCAL) else None
    local = source.files if folder or source.pretrained == str(source.files[0]) else []
    own = [file for file in local if file.suffix in weights.WEIGHT_SUFFIXES]
    states = {file: weights.cleaned_state([file], _ATTRIBUTES) for file in own}
    freed = {file: state for file, state in states.items() if state is not None}
    if not freed:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="hada-") as place:
        for file in folder.iterdir() if folder else own:
            if file not in freed:
                Path(place, file.name).symlink_to(file.resolve())
        for file, state in freed.items():
            save: Any = save_file if file.suffix == ".safetensors" else torch.save
            save(state, Path(place, file.name))
        if folder:
            yield replace(source, name=f"{LOCAL}{place}")
        else:
            yield replace(source, pretrained=str(Path(place, own[0].name)))


def create(source: Source) -> tuple[Any, Any]:
    """The model and its tokenizer; raises `CheckpointError` where weights do not fit."""
    place = source.files[-1] if source.pretrained else source.files[0].parent
    with weights.explained(place, "clip"), _readable(source) as readable:
        model = open_clip.create_model(
            readable.name,
            pretrained=readable.pretrained,
            force_quick_gelu=bool(source.quick_gelu),
            pretrained_text=False,
            require_pretrained=True,  # without it, missing weights are replaced by noise
            weights_only=True,
        )
    weights.check_finite(model, place)
    if source.name.startswith(LOCAL):
        weights.require_sentencepiece(Path(source.name.removeprefix(LOCAL)))
    try:
        tokenizer = open_clip.get_tokenizer(source.tokenizer or source.name)
    except ImportError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer of {source.name} could not be loaded "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); for a local "
            "folder, save the tokenizer's files into it"
        ) from error
    return model, tokenizer


def lower_cased(name: str, tokenizer: Any) -> dict[str, str]:
    """What a store's spec says of a SigLIP's lower-casing, which is added where it is missing.

    Empty for models that are no SigLIP.
    """
    config = open_clip.get_model_config(name) or {}
    text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
    # Of a path only the model's own names count.
    own = "" if name.startswith(LOCAL) else name
    names = (own, text.get("hf_tokenizer_name"), vision.get("timm_model_name"))
    inner, clean = getattr(tokenizer, "tokenizer", None), getattr(tokenizer, "clean_fn", None)
    if not lower_case.is_siglip(*names) or inner is None:
        return {}
    if clean is None or clean("A") == "a":  # open_clip's own class for SigLIP always cleans
        return {"lower_case": lower_case.BY_TOKENIZER}
    return {"lower_case": lower_case.ensure(inner)}
