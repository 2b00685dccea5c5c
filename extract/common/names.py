"""Names that become folders: datasets, splits, models."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
NO_NAME = "cannot be a name: it becomes a folder. Use letters, digits, '.', '_', '+' and '-'."


def is_name(text: str) -> bool:
    """Whether a text can name a dataset, split or model: it becomes a folder."""
    return _NAME.fullmatch(text) is not None
