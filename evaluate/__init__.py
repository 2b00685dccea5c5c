"""Embeddings in, figures and pages out.

`recall` and `report` are what the commands of `hada-evaluate` call. They are imported on first use,
so importing this package loads neither NumPy nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hada.evaluate.pages.report import report
    from hada.evaluate.results.recall import recall

__all__ = ["recall", "report"]
_DEFINED_IN = {
    "recall": "hada.evaluate.results.recall",
    "report": "hada.evaluate.pages.report",
}


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_DEFINED_IN[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
