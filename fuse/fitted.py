"""The data that a run's parameters were fitted on, as plain values that travel with its figures.

A figure on data that fitted a method is flattered. Whoever reports one has to know; the run's
configuration does, and its embeddings, written as a store, say it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRAINED, CHOSEN = "trained on", "epoch and shares chosen on"
# Of a run whose past is not recorded, such as published weights.
UNRECORDED: dict[str, Any] = {
    "how": "trained elsewhere",
    "dataset": None,
    "split": None,
    "dataset_digest": None,
}


def fitted_on(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry a split: `how`, `dataset`, `split` and `dataset_digest`.

    Those of the run that this one began with (`--init`) are among them. All but `how` are None
    where the splits are not recorded.

    >>> fitted_on({"imported": {}})[0]["how"]
    'trained elsewhere'
    """
    found = []
    for how, field in ((TRAINED, "train_split"), (CHOSEN, "val_split")):
        split = config.get(field)
        if split is not None:
            known = config.get("stores", {}).get(split, {})
            found.append(
                {
                    "how": how,
                    "dataset": config.get("dataset"),
                    "split": split,
                    "dataset_digest": known.get("dataset_digest"),
                }
            )
    if not found:
        return [dict(UNRECORDED)]
    if "init" in config:
        before = config.get("init_fitted") or [dict(UNRECORDED)]
        found += [entry for entry in before if entry not in found]
    return found
