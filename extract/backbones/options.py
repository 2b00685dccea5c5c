"""A family's own options, checked once: unknown keys and wrong types are errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hada.extract.backbones.base import BackboneRequest
from hada.extract.common.errors import UsageError, unknown


def read_options(request: BackboneRequest, known: Mapping[str, type]) -> dict[str, Any]:
    """The options of `request`, every key of `known` present, None where it was not given.

    Raises `UnknownNameError` for a key that is not known and `UsageError` for a value of another
    type or a number below 1 (no option of ours may be zero or negative unless it is a `float`).

    >>> request = BackboneRequest(name="m", family="clip", weights="w", options={"revision": "v1"})
    >>> read_options(request, {"revision": str, "heads": int})
    {'revision': 'v1', 'heads': None}
    """
    for key, value in request.options.items():
        if key not in known:
            raise unknown(f"option of model {request.name!r}", key, known)
        wanted = known[key]
        # bool is an int to Python, not to a user who wrote `heads: yes`.
        fits = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
        if value is not None and not fits:
            raise UsageError(
                f"model {request.name!r}, option {key!r}: expected {wanted.__name__}, got {value!r}"
            )
        if wanted is int and value is not None and value < 1:
            raise UsageError(f"model {request.name!r}, option {key!r}: must be >= 1, got {value}")
    return {key: request.options.get(key) for key in known}
