"""Feature stores in, a trained fusion out. Only the small graph network trains here.

The public names below are imported on first use, so importing this package loads neither NumPy nor
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hada.fuse.commands import embed, train
    from hada.fuse.exchange.hub import HadaModel

__all__ = ["HadaModel", "embed", "train"]
_DEFINED_IN = {
    "HadaModel": "hada.fuse.exchange.hub",
    "embed": "hada.fuse.commands",
    "train": "hada.fuse.commands",
}


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_DEFINED_IN[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
