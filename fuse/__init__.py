"""Feature stores in, a trained fusion out. Only the small graph network trains here.

The public names below are imported on first use, so importing this package loads neither NumPy nor
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hada.extract.common.lazy import imported_on_use

if TYPE_CHECKING:
    from hada.fuse.commands import embed, train
    from hada.fuse.exchange.hub import HadaModel

__all__ = ["HadaModel", "embed", "train"]
_DEFINED_IN = {
    "HadaModel": "hada.fuse.exchange.hub",
    "embed": "hada.fuse.commands",
    "train": "hada.fuse.commands",
}
__getattr__, __dir__ = imported_on_use(__name__, _DEFINED_IN)
