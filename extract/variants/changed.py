"""One backbone, changed: the wrapper that fewer tokens, views and crops share."""

from __future__ import annotations

from typing import Any

from hada.extract.backbones.base import Backbone, RegionBackbone
from hada.extract.spec import ModelSpec


class ChangedBackbone:
    """A backbone under another spec; what a subclass does not change is the inner backbone's.

    Counters (`truncated`, `clock`) stay those of the inner backbone, which may be changed in
    several ways at once.
    """

    def __init__(self, inner: Backbone | RegionBackbone, spec: ModelSpec) -> None:
        self.inner, self.spec = inner, spec

    def __getattr__(self, name: str) -> Any:
        # Only what is not found here is asked for: all parts that are not changed. Python looks
        # for special methods, and for `inner` itself, before a copy of this has any attribute.
        if name == "inner" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)
