"""Extraction: images and captions in, feature stores out.

The public names below are imported on first use, so importing this package costs nothing but the
standard library; heavy packages are imported where they are used.
"""

import sys
from typing import TYPE_CHECKING

# pip refuses an old Python; this word is for those who start a checkout with one. Old syntax only.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        f"error: HADA needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. "
        "Make a virtual environment with a newer one: python3.11 -m venv .venv"
    )

from hada.extract.common.lazy import imported_on_use

if TYPE_CHECKING:
    from hada.extract.datasets.named import dataset_at
    from hada.extract.engine.options import ExtractOptions
    from hada.extract.job import extract
    from hada.extract.manifest import Manifest, load_manifest
    from hada.extract.store.reader import StoreReader, open_store

# The only place of the version: pyproject.toml reads it from here.
__version__ = "0.1.0"

__all__ = [
    "ExtractOptions",
    "Manifest",
    "StoreReader",
    "dataset_at",
    "extract",
    "load_manifest",
    "open_store",
]
_DEFINED_IN = {
    "ExtractOptions": "hada.extract.engine.options",
    "Manifest": "hada.extract.manifest",
    "StoreReader": "hada.extract.store.reader",
    "dataset_at": "hada.extract.datasets.named",
    "extract": "hada.extract.job",
    "load_manifest": "hada.extract.manifest",
    "open_store": "hada.extract.store.reader",
}
__getattr__, __dir__ = imported_on_use(__name__, _DEFINED_IN)
