"""A browser for the tests that look at a page as a person does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium that keeps what its console and its network saw."""
    from browser import browser

    yield from browser(tmp_path_factory.mktemp("profile"))
