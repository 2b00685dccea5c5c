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
from hada.evaluate.methods.token_matching import LateHead, TokenMethod
from hada.fuse.scores.item_nodes import ItemNodes

ONE_PRODUCT = "inner product"
LATE = "late interaction of all pairs"
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
        the queries; those of a match head are not counted, those of late interaction are.
    """
    per_query = {"i2t": _of_gallery(method, captions), "t2i": _of_gallery(method, images)}
    nodes = _nodes(method)
    if nodes is not None:
        matched = _matched(*nodes)
        if isinstance(method, Reranked):
            # The mean pair, as often as the second stage is asked for one.
            pair = matched // (len(nodes[0]) * len(nodes[1]))
            more = {
                "i2t": pair * min(method.depth, captions),
                "t2i": pair * min(method.depth, images),
            }
        else:
            more = {"i2t": matched // images, "t2i": matched // captions}
        per_query = {way: per_query[way] + more[way] for way in per_query}
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
    if isinstance(method, TokenMethod):
        return [LATE]
    return [EXHAUSTIVE if isinstance(method, NodeMethod) else ONE_PRODUCT]


def _of_gallery(method: Method, items: int) -> int:
    """Multiply-adds of a query's inner products with a gallery."""
    if isinstance(method, Reranked):
        return _of_gallery(method.first, items)
    if isinstance(method, RankFusion):
        return sum(_of_gallery(model, items) for model in method.models)
    if isinstance(method, NodeMethod):
        return items * int(method.embedded.cosines()[0].shape[1])
    if isinstance(method, TokenMethod):
        return 0
    assert isinstance(method, EmbeddingMethod)
    return items * int(method.pair[0].shape[1])


def _nodes(method: Method) -> tuple[ItemNodes, ItemNodes] | None:
    """What late interaction matches in a method; None where there is none."""
    if isinstance(method, TokenMethod):
        return method.nodes
    if isinstance(method, NodeMethod):
        return method.embedded.nodes
    if isinstance(method, Reranked) and isinstance(method.head, LateHead):
        return method.head.nodes
    return None


def _matched(image: ItemNodes, caption: ItemNodes) -> int:
    """Multiply-adds of all image nodes with all caption nodes."""
    return len(image.vectors_SW) * len(caption.vectors_SW) * int(image.vectors_SW.shape[1])
