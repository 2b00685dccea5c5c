"""What a page was made of: command, date, versions, digests, seeds, configuration."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from hada.evaluate.pages.choose import LEAST
from hada.fuse.run_folder import RunFolder, weights_digest

# As in vendor/README.md.
VEGA = "6.4.0"
VEGA_LITE = "6.5.0"
PACKAGES = ("torch", "Jinja2", "pillow")


def provenance(
    folder: RunFolder, result: Mapping[str, Any], command: str, sample_seed: int
) -> dict[str, Any]:
    """Sections of names and values, and the run's configuration as text.

    Args:
        folder: The run.
        result: What was measured.
        command: What was typed.
        sample_seed: Seed of the queries that were drawn.

    Returns:
        `sections`: title -> name -> value, all text; `config`: JSON, without the paths of this
        machine.
    """
    config = folder.config()
    protocol = result["protocol"]
    trained = config.get("environment", {})
    sections = {
        "Made": {
            "command": command,
            "date": dt.datetime.now(dt.UTC).isoformat(" ", "seconds"),
        },
        "Versions": {
            **{name: str(version) for name, version in result["environment"].items()},
            **{name: metadata.version(name) for name in PACKAGES},
            "Vega": VEGA,
            "Vega-Lite": VEGA_LITE,
        },
        "Trained with": {name: str(value) for name, value in sorted(trained.items())},
        "Digests": {
            f"data set {protocol['dataset']}/{protocol['split']}": protocol["dataset_digest"],
            "items ranked": result["items"]["digest"],
            "weights of the run": weights_digest(folder.path),
            **{f"store of {name}": digest for name, digest in result["stores"].items()},
        },
        "Seeds": {
            "training": str(config.get("seed")),
            "bootstrap": f"{result['seed']}, {result['resamples']:,} resamples",
            "queries drawn for this page": f"{sample_seed}, at least {LEAST} queries",
        },
        "Protocol": {
            name: str(protocol[name]) for name in ("score", "ties", "intervals", "p_values")
        },
    }
    shown = {name: value for name, value in config.items() if name not in ("paths", "environment")}
    return {
        "sections": {title: values for title, values in sections.items() if values},
        "config": json.dumps(shown, indent=1, sort_keys=True),
    }
