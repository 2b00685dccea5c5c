"""What a method needs to answer a query: whose items it knows, its stages, its multiply-adds.

Two methods with the same recall are not the same: one may know all queries in advance, one may cost
a thousand times as much. Shape letters: I images, T captions, E embedding width.
"""

from __future__ import annotations

from typing import Any

from hada.evaluate.methods.gallery import EmbeddingMethod, Method
from hada.evaluate.methods.late import NodeMethod
from hada.evaluate.methods.rank_fusion import RankFusion
from hada.evaluate.methods.rerank import Reranked

ONE_PRODUCT = "inner product"
EXHAUSTIVE = "inner product and late interaction of all pairs"


def effort(method: Method, images: int, captions: int) -> dict[str, Any]:
    """What a method's entry in a result says of it, beside its figures.

    Args:
        method: The method.
        images: I, the gallery of a caption.
        captions: T, the gallery of an image.

    Returns:
        `class`: "inductive" (a query and an item are all that its score depends on), "bank" (also
        on fixed items of the training split) or "transductive" (also on all other queries).
        `stages`: what each stage computes. `multiply_adds_per_query`: `i2t` and `t2i`, means over
        the queries, those of a match head not counted.
    """
    per_query = {"i2t": _of_gallery(method, captions), "t2i": _of_gallery(method, images)}
    if isinstance(method, NodeMethod):
        matched = _matched(method)
        per_query = {
            "i2t": per_query["i2t"] + matched // images,
            "t2i": per_query["t2i"] + matched // captions,
        }
    return {
        "class": _class(method),
        "stages": _stages(method),
        "multiply_adds_per_query": per_query,
    }


def _class(method: Method) -> str:
    if method.kind == "transductive":
        return "transductive"
    pays = method.details.get("correction", {})
    acts = pays.get("alpha_image") or pays.get("alpha_caption") or method.details.get("corrected")
    return "bank" if acts else "inductive"


def _stages(method: Method) -> list[str]:
    if isinstance(method, Reranked):
        return [*_stages(method.first), f"{method.head.stage} on the first {method.depth}"]
    if isinstance(method, RankFusion):
        return ["ranks by the inner product of every model"]
    return [EXHAUSTIVE if isinstance(method, NodeMethod) else ONE_PRODUCT]


def _of_gallery(method: Method, items: int) -> int:
    """Multiply-adds of a query's inner products with a gallery."""
    if isinstance(method, Reranked):
        return _of_gallery(method.first, items)
    if isinstance(method, RankFusion):
        return sum(_of_gallery(model, items) for model in method.models)
    if isinstance(method, NodeMethod):
        return items * int(method.embedded.cosines()[0].shape[1])
    assert isinstance(method, EmbeddingMethod)
    return items * int(method.pair[0].shape[1])


def _matched(method: NodeMethod) -> int:
    """Multiply-adds of all image nodes with all caption nodes."""
    assert method.embedded.nodes is not None
    image, caption = method.embedded.nodes
    return len(image.vectors_SW) * len(caption.vectors_SW) * int(image.vectors_SW.shape[1])
