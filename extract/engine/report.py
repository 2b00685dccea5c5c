"""The report on one extraction."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hada.extract.spec import SideName


@dataclass
class Report:
    """What one run did, for the person who started it and for tests.

    `images` and `captions` were encoded now, the rest of the totals lay there already. `seconds`
    is what the one loop did with its time: it waited for decoded pictures, for the model
    ("forward"), for arrays on their way to and from a device, for the writer. Decoding and
    writing that went on meanwhile cost it nothing.
    """

    store: Path
    total_images: int = 0
    total_captions: int = 0
    images: int = 0
    captions: int = 0
    busy_shards: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    wall_seconds: float = 0.0
    seconds: dict[str, float] = field(
        default_factory=lambda: {"decode": 0.0, "forward": 0.0, "transfer": 0.0, "write": 0.0}
    )
    side_seconds: dict[SideName, float] = field(
        default_factory=lambda: {"image": 0.0, "caption": 0.0}
    )
    bytes: int = 0
    batch_sizes: dict[SideName, int] = field(default_factory=dict)
    workers: int = 0
    on_gpu: bool = False
