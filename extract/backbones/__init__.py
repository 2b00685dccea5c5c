"""The families of backbones by name, imported on first use.

A family is a callable that takes a `BackboneRequest` and returns a `Backbone`. It is named by a
built-in word ("clip"), by an entry point of the group `hada.backbones` in an installed package,
or by `module:attribute` (a function, or a class whose constructor takes the request).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from hada.extract.backbones.base import (
    Backbone,
    BackboneRequest,
    Encoded,
    MatchingBackbone,
    RegionBackbone,
    completed,
)
from hada.extract.common.errors import (
    UsageError,
    unknown,
)

__all__ = [
    "ENTRY_POINTS",
    "FAMILIES",
    "REGION_FAMILIES",
    "Backbone",
    "BackboneRequest",
    "Encoded",
    "Loader",
    "MatchingBackbone",
    "RegionBackbone",
    "families",
    "load_backbone",
]

Loader = Callable[[BackboneRequest], Backbone | RegionBackbone]

FAMILIES: dict[str, str] = {
    "albef": "hada.extract.backbones.albef:load",
    "blip": "hada.extract.backbones.blip:load",
    "blip2": "hada.extract.backbones.blip2:load",
    "clip": "hada.extract.backbones.clip:load",
    "dual": "hada.extract.backbones.dual:load",
    "fake": "hada.extract.backbones.fake:load",
    "lightningdot": "hada.extract.backbones.lightningdot:load",
    "sentence": "hada.extract.backbones.sentence:load",
    "uniter": "hada.extract.backbones.uniter:load",
}
# These never look at a picture, so none needs to be there.
REGION_FAMILIES = frozenset({"lightningdot", "uniter"})
ENTRY_POINTS = "hada.backbones"

# Import name -> what pip calls it, where the two differ.
_PIP_NAMES = {
    "PIL": "pillow",
    "open_clip": "open_clip_torch",
    "huggingface_hub": "huggingface-hub",
    "sentence_transformers": "sentence-transformers",
}


def families() -> list[str]:
    """All names `load_backbone` knows without a module path, sorted; imports nothing."""
    return sorted({*FAMILIES, *_third_party()})


def load_backbone(request: BackboneRequest) -> Backbone | RegionBackbone:
    """The backbone that `request` asks for, frozen and on its device.

    Raises `UnknownNameError` for an unknown family, `UsageError` with the pip line where a
    package is missing, and whatever the family raises for bad weights (`CheckpointError`). Where
    the weights are another family's, the message says whose.
    """
    try:
        return completed(_loader(request.family)(request))
    except ImportError as error:
        package = _missing_package(error)
        if package is None or package == "hada":
            raise
        raise UsageError(
            f"model {request.name!r} (family {request.family!r}) needs the package {package!r}, "
            f"which is not installed: pip install {_PIP_NAMES.get(package, package)}"
        ) from error
    except UsageError as error:
        from hada.extract.backbones.recognise import hint

        more = hint(request.family, request.weights)
        if not more or more in str(error):
            raise
        raise type(error)(f"{str(error).removesuffix('.')}. {more}") from error


def _missing_package(error: ImportError) -> str | None:
    """The package that is not installed, None where the error is another one."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.partition(".")[0]
    # transformers puts such errors into words, some lines of them.
    found = re.search(r"requires the (\w+) library but it was not found", str(error))
    return found.group(1).lower() if found else None


def _loader(family: str) -> Loader:
    """Built-in names win over entry points, so that no package can take one over silently."""
    if family in FAMILIES:
        return _attribute(FAMILIES[family])
    plugins = _third_party()
    if family in plugins:
        return cast(Loader, plugins[family].load())
    if ":" in family:
        return _attribute(family)
    raise unknown("family", family, families())


def _third_party() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def _attribute(dotted: str) -> Loader:
    """What `module:attribute` names."""
    module_name, _, attribute = dotted.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"family {dotted!r}: expected module:attribute, as in my_package:MyModel")
    module = importlib.import_module(module_name)
    loader = getattr(module, attribute, None)
    if loader is None:
        known = [name for name in vars(module) if not name.startswith("_")]
        raise unknown(f"attribute of module {module_name}", attribute, known)
    if not callable(loader):
        raise UsageError(f"family {dotted!r}: expected a function or a class, got {loader!r}")
    return cast(Loader, loader)
