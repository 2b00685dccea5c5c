"""What a path or an id is, and which family reads it: for `--model PATH-OR-ID` and for errors.

Told by config files, by the names of a checkpoint's tensors, or by the form of a name. What is
heavy is imported only where a checkpoint or a name needs it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from hada.extract.backbones import families, hub
from hada.extract.backbones.checkpoint_files import (
    WEIGHT_SUFFIXES,
    of_file,
    of_other_programs,
    pointer_of,
)
from hada.extract.backbones.model_folders import CONFIGS, FETCHED, Found, of_configs
from hada.extract.common.errors import CheckpointError, HadaError, UsageError
from hada.extract.manifest import Manifest, ModelEntry, is_name
from hada.extract.remembered import remembered_model

FORMS = (
    "a folder or file of weights, a Hugging Face id (ORG/NAME or ORG/NAME@REVISION), or "
    "ARCH/TAG (or ARCH/FILE) of open_clip"
)
_SCHEMES = {"hf-hub:": "clip", "local-dir:": "clip"}
_BUILTIN = "builtin:"


def described_model(manifest: Manifest, text: str, dataset: str | None = None) -> ModelEntry:
    """The model that `--model` names.

    Args:
        manifest: Its models are known by name alone.
        text: A model of the manifest, PATH-OR-ID or FAMILY:WEIGHTS; the latter two may have
            NAME= in front. Without it, the last part of the path or id is the name.
        dataset: A name that was described for it before means the same again.

    Raises:
        UnknownNameError: A single word that is no model of the manifest.
        UsageError: The text has none of these forms, or its name is the manifest's already.
        CheckpointError: No family reads what is there; the message says what it is.
    """
    name, equals, described = text.partition("=")
    known = text in manifest.models or (
        dataset is not None and remembered_model(manifest.stores, dataset, text) is not None
    )
    if known or not (equals or _is_place(text)):
        return manifest.model(text, dataset)
    if text and (not equals or Path(text).expanduser().exists()):
        name, described = "", text
    elif not described or not is_name(name):
        raise UsageError(
            f"--model {text!r}: expected NAME=PATH-OR-ID or NAME=FAMILY:WEIGHTS, e.g. "
            f"mine=folder/of/weights or mine=dual:folder/of/weights; PATH-OR-ID is {FORMS}"
        )
    family, weights = _split(described)
    found = Found(what="", family=family, weights=weights) if family else recognise(weights)
    if found.family is None:
        raise CheckpointError(f"{weights} is {found.what}; {found.advice}")
    if not name:
        name = _own_name(weights)
        if name in manifest.models:
            raise UsageError(
                f"--model {text!r} would be called {name!r}, which is a model of {manifest.path}; "
                f"name it: --model NAME={text}"
            )
    return ModelEntry(
        name=name,
        family=found.family,
        weights={"default": found.weights},
        precision=None,
        options=dict(found.options),
    )


def _is_place(text: str) -> bool:
    """Whether a text without `=` is a path, an id or FAMILY:WEIGHTS, not a model's name."""
    return not is_name(text) or Path(text).expanduser().exists()


def _split(described: str) -> tuple[str | None, str]:
    """Family and weights; the family is None where none is named."""
    family, colon, weights = described.partition(":")
    schemes = (*_SCHEMES, _BUILTIN)
    if not colon or described.startswith(schemes) or Path(described).expanduser().exists():
        return None, described
    module, attribute = family, weights.partition(":")
    if family not in families() and attribute[1]:  # a class of the user's own
        family, weights = f"{module}:{attribute[0]}", attribute[2]
    if not family or not weights:
        raise UsageError(f"--model {described!r}: expected FAMILY:WEIGHTS or {FORMS}")
    return family, weights


def _own_name(described: str) -> str:
    """A valid name from the last part of a path or an id."""
    text = described.rstrip("/")
    for scheme in (*_SCHEMES, _BUILTIN):
        text = text.removeprefix(scheme)
    last = text.rpartition("/")[2]
    if last in ("", ".", "..", "~"):
        last = Path(described).expanduser().resolve().name
    elif not last.endswith(WEIGHT_SUFFIXES) and not _local(text).exists() and _is_tag(text):
        last = text.replace("/", "-")  # a tag such as "openai" says nothing by itself
    last = last.partition("@")[0] or last
    stem = last.removesuffix(Path(last).suffix) if last.endswith(WEIGHT_SUFFIXES) else last
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", stem).strip("-._+")
    return name or "model"


def recognise(place: str) -> Found:
    """What a path or an id is; on a hub only its configs are fetched.

    Raises:
        UsageError: The text has no form that is known.
        CheckpointError: There is nothing, or it is damaged, or the hub cannot be reached.

    Example:
        >>> found = recognise("builtin:scenes/clip")
        >>> found.what, found.family
        ('an open_clip folder', 'clip')
    """
    for scheme, family in _SCHEMES.items():
        if place.startswith(scheme):
            return Found(what="an open_clip model", family=family, weights=place)
    path = _local(place)
    if path.is_dir():
        return _folder(path, place)
    if path.is_file():
        return of_file(path, place)
    if _is_tag(place):
        return Found(what="a pretrained tag of open_clip", family="clip", weights=place)
    if place.startswith((".", "/", "~", _BUILTIN)) or path.suffix in WEIGHT_SUFFIXES:
        raise CheckpointError(f"no file or folder at {place!r}: expected {FORMS}")
    if not hub.is_id(place):
        raise UsageError(f"{place!r} is no path that is there and no id: expected {FORMS}")
    return _on_hub(place)


def _local(place: str) -> Path:
    if place.startswith(_BUILTIN):
        entry = ModelEntry(name="", family="", weights={"default": place}, precision=None)
        return Path(entry.weights_for(""))
    return Path(place).expanduser()


def _is_tag(text: str) -> bool:
    """Whether a text is ARCH/TAG of open_clip; asked only for what looks like one."""
    if "/" not in text or text.startswith((".", "/", "~")):
        return False
    from hada.extract.backbones.clip_shapes import named

    return named(text) is not None


def _on_hub(id_: str, folder: Path | None = None) -> Found:
    folder = hub.fetch(id_, FETCHED) if folder is None else folder
    found = of_configs(folder, id_, "model")
    if found is None:
        raise CheckpointError(
            f"{id_!r} on the Hugging Face hub has none of {', '.join(CONFIGS)}: it is no model "
            f"that HADA knows; expected {FORMS}"
        )
    return replace(found, weights=f"hf-hub:{id_}") if found.family == "clip" else found


def _folder(folder: Path, place: str) -> Found:
    found = of_configs(folder, place)
    if found is not None:
        return _whole(folder, found)
    files = _weights_in(folder)
    if len(files) == 1:
        return of_file(files[0], str(files[0]))
    if files:
        names = ", ".join(file.name for file in files[:4])
        advice = f"name one of them: {names}"
        return Found(what="a folder of several checkpoints without a config.json", advice=advice)
    inner = [sub.name for sub in sorted(folder.iterdir()) if _has_config(sub)]
    if inner:
        advice = f"name one of them, e.g. {folder / inner[0]}"
        return Found(what=f"a folder of {len(inner)} model folders", advice=advice)
    if (foreign := of_other_programs(folder)) is not None:
        return foreign
    holds = ", ".join(sorted(item.name for item in folder.iterdir())[:4]) or "nothing"
    return Found(
        what="a folder without a config.json and without weights",
        advice=f"expected a model's folder; it holds {holds}",
    )


def _weights_in(folder: Path) -> list[Path]:
    found = (file for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES)
    return sorted(file for file in found if file.is_file())


def _has_config(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in CONFIGS)


def _whole(folder: Path, found: Found) -> Found:
    """The same, unless the weights beside the config are missing or are pointers to them."""
    place = Path(found.weights) if found.family and Path(found.weights).is_dir() else folder
    if found.family is None:
        return found
    files = _weights_in(place)
    if found.family == "sentence":  # those of its modules lie in folders of their own
        folders = [sub for sub in sorted(place.iterdir()) if sub.is_dir()]
        files += [file for sub in folders for file in _weights_in(sub)]
    for file in files:
        if (pointer := pointer_of(file)) is not None:
            return pointer
    if files:
        return found
    foreign = of_other_programs(place)
    return foreign or Found(
        what=f"{found.what} without its weights",
        advice="fetch model.safetensors into it, too (open_clip: open_clip_model.safetensors)",
    )


def hint(family: str, place: str) -> str:
    """What to add to the error of a family that could not load a place; may be empty.

    Of a model on the hub only what was fetched for the attempt is looked at.
    """
    id_ = place.removeprefix("hf-hub:")
    try:
        if _local(place).exists():
            found = recognise(place)
        elif hub.is_id(id_) and (folder := hub.cached(id_)) is not None:
            found = _on_hub(id_, folder)
        else:
            return ""
    except (HadaError, OSError):
        return ""
    if found.family is None:
        return f"It is {found.what}; {found.advice}"
    if (found.family, found.weights) == (family, place):
        return ""
    known = "" if family in families() else f" ({family!r} is no family)"
    return f"It is {found.what}{known}: {found.family}:{found.weights}"
