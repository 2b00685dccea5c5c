"""Why a figure may be better than it would be on new data, in words, from a result alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Kinds of methods that have parameters, so that an old result may hide what they saw.
FITTED_KINDS = ("weighted", "linear", "hada", "itm")
NO_RECORD = "what it was fitted on is not recorded"


def flattered(method: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """Why a method's figures may be better than on new data, in words.

    Args:
        method: One of the `methods` of a result.
        protocol: The result's `protocol`.

    Returns:
        The reason, or "" if nothing is known against the figures. Old results do not record
        `saw_split`: their fitted methods count as flattered on every split that is not called
        test, and so do runs whose training is not recorded.
    """
    seen = method.get("saw_split")
    if seen:
        return ", ".join(_words(line, protocol) for line in seen)
    old = seen is None and method.get("kind") in FITTED_KINDS
    unknown = old or any(entry["split"] is None for entry in method.get("fitted_on", ()))
    return NO_RECORD if unknown and protocol["split"] != "test" else ""


def _words(line: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    where = line["split"]
    if line["dataset"] != protocol["dataset"]:
        where = f"{line['dataset']}/{where}"
    if line["images"] is not None and line["images"] < protocol["images"]:
        where += f", which has {line['images']:,} of these images"
    elif line["split"] != protocol["split"]:
        where += ", which has these images"
    return f"{line['how']} {where}"
