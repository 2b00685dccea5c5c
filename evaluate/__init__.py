"""Embeddings in, figures and pages out.

`recall` and `report` are what the commands of `hada-evaluate` call. They are imported on first use,
so importing this package loads neither NumPy nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hada.extract.common.lazy import imported_on_use

if TYPE_CHECKING:
    from hada.evaluate.pages.report import report
    from hada.evaluate.results.recall import recall

__all__ = ["recall", "report"]
_DEFINED_IN = {
    "recall": "hada.evaluate.results.recall",
    "report": "hada.evaluate.pages.report",
}
__getattr__, __dir__ = imported_on_use(__name__, _DEFINED_IN)
