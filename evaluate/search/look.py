"""What a run looks at in a query and a result: heat on patches, and which answered which word."""

from __future__ import annotations

from typing import Any

import numpy as np

from hada.evaluate.pages.look import Shown, shown, weights_of
from hada.evaluate.search.searcher import Searcher
from hada.extract.common.errors import UsageError
from hada.extract.spec import SideName


def look_at(searcher: Searcher, kind: SideName, source: Any, id_: str) -> Shown:
    """The heat of a query and an item of the other side.

    Args:
        searcher: The split that has the item.
        kind: What the query is: a `caption` (a text) or an `image`.
        source: The text, or the decoded image.
        id_: Of the image or caption to look at.

    Raises:
        UsageError: A single model matches nothing; the split has no such item; or the run has
            nothing to show.
        StoreError: A store is damaged.
    """
    encoder = searcher.encoder
    if searcher.run is None or encoder.fuser is None:
        raise UsageError("a single model matches no patches with words: serve a run")
    other: SideName = "image" if kind == "caption" else "caption"
    row = searcher.stored_row(other, id_)
    if row is None:
        raise UsageError(f"no {other} of that id here")
    text = source
    if kind == "image":
        text = searcher.text_of(id_) or ""
    split = encoder.pair(kind, source, searcher.stores, row)
    fuser = encoder.fuser.to("cpu").eval()
    (weights,) = weights_of(fuser, split, np.array([0]), np.array([0]))
    specs = [store.spec.model for store in searcher.stores]
    return shown(specs, weights, text, encoder.tokenizers if text else {})
