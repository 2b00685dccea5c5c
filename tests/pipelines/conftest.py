"""What the tests of pipelines share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import slurm_node


@pytest.fixture(scope="session")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of Slurm's commands; skips with a reason where it cannot start."""
    yield from slurm_node.brought_up()
