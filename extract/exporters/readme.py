"""The README of an export: what the rows are, by what they are compared, and code that loads them.

The code runs as it stands in the export's folder; a test runs it.
"""

from __future__ import annotations

from collections.abc import Mapping

from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.store import StoreReader

_TEXT = """\
# Embeddings of {model} on {dataset}/{split}

{images:,} images and {captions:,} captions, {width} numbers a row, written by `hada-store export`.
{order}

**Metric: {metric}.** {why}

{fused}```python
{code}```
"""
_READ_IDS = """\
image_ids = Path("image_ids.txt").read_text("utf-8").split("\\n")[:-1]
caption_ids = Path("caption_ids.txt").read_text("utf-8").split("\\n")[:-1]
"""
_BEST = """\
scores = images @ captions[0]  # of the first caption
best = scores.argsort()[::-1][:10]
print(caption_ids[0], [image_ids[row] for row in best])
"""
_CODE = {
    "npy": f"""\
from pathlib import Path

import numpy as np

images = np.load("image.npy", mmap_mode="r")
captions = np.load("caption.npy", mmap_mode="r")
{_READ_IDS}
{_BEST}""",
    "safetensors": f"""\
from pathlib import Path

from safetensors.numpy import load_file

images = load_file("image.safetensors")["embeddings"]
captions = load_file("caption.safetensors")["embeddings"]
{_READ_IDS}
{_BEST}""",
    "parquet": f"""\
import numpy as np
import pyarrow.parquet as pq

image_table, caption_table = pq.read_table("image.parquet"), pq.read_table("caption.parquet")
images = np.stack(image_table["embedding"].to_numpy())
captions = np.stack(caption_table["embedding"].to_numpy())
image_ids = image_table["id"].to_pylist()
caption_ids = caption_table["id"].to_pylist()

{_BEST}""",
    "faiss": f"""\
from pathlib import Path

import faiss

images, captions = faiss.read_index("image.faiss"), faiss.read_index("caption.faiss")
{_READ_IDS}
query = captions.reconstruct(0)[None]  # the first caption
scores, rows = images.search(query, min(10, images.ntotal))
print(caption_ids[0], [image_ids[row] for row in rows[0]])
""",
    "lancedb": """\
import lancedb

database = lancedb.connect(".")
images, captions = database.open_table("image"), database.open_table("caption")
query = captions.head(1).to_pylist()[0]  # the first caption
found = images.search(query["embedding"]).distance_type("METRIC").limit(10).to_list()
print(query["id"], [row["id"] for row in found])  # nearest first
""",
    "qdrant": """\
from qdrant_client import QdrantClient

client = QdrantClient(path=".")
query = client.retrieve("caption", ids=[0], with_vectors=True)[0]  # the first caption
found = client.query_points("image", query=query.vector, limit=10).points
print(query.payload["id"], [point.payload["id"] for point in found])
client.close()
""",
}
_LISTED = ("npy", "safetensors", "faiss")


def readme(
    store: StoreReader,
    form: str,
    *,
    unit: bool,
    rows: Mapping[str, int],
    data: CaptionDataset | None,
) -> str:
    """The text.

    Args:
        store: What is exported.
        form: The format.
        unit: Whether rows were brought to unit length.
        rows: How many there are, by side.
        data: The data set, where captions and files are in the export.
    """
    model = store.spec.model
    level = unit or model.normalized
    code = _CODE[form].replace("METRIC", "dot" if level else "cosine")
    if form in _LISTED:
        order = "Row k of a side is line k of its file of ids."
    else:
        columns = " with captions and files" if data is not None else ""
        order = f"Every row has the item's id{columns}."
    if data is None:
        order += " The captions are in the data set, not here."
    order += " Items that the model could not read are left out."
    return _TEXT.format(
        model=model.name,
        dataset=store.spec.dataset,
        split=store.spec.split,
        images=rows["image"],
        captions=rows["caption"],
        width=model.embedding_width,
        order=order,
        metric="inner product" if level else "cosine",
        why=_why(store, unit=unit),
        fused=_fused(store),
        code=code,
    )


def _why(store: StoreReader, *, unit: bool) -> str:
    model = store.spec.model
    if model.family == "hada":
        return (
            "Compare an image with a caption, or a caption with an image. The rows hold every part "
            "of the run's score side by side, with what each item pays for its popularity where "
            "the run corrects hubs; other ways of comparing them, and images with images, leave "
            "the correction undefined."
        )
    if unit and not model.normalized:
        return "The rows were brought to unit length, so it is the cosine."
    if model.normalized:
        return "The rows have unit length, so it is the cosine."
    return "The rows are as the model gives them, not of unit length."


def _fused(store: StoreReader) -> str:
    """What a fusion's rows need beside them."""
    facts = store.spec.model.preprocessing
    if store.spec.model.family != "hada":
        return ""
    parts = ", ".join(f"{share:.3f}" for share in facts.get("shares", ()))
    text = f"Shares of the cosines in the score, the fused one first: {parts}.\n"
    missing = 1 - sum(facts.get("shares", (1.0,)))
    if missing > 1e-3:
        text += (
            f"The run also matches nodes, with a share of {missing:.3f}, which no single vector "
            "holds: these rows bring the first results, and `hada-evaluate search` or `serve` "
            "orders them by the whole score.\n"
        )
    return f"{text}\n"
