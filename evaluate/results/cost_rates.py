"""How long a recall will take, from what a small piece of the same work takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from hada.evaluate.methods.rank_fusion import ranks_of_scores
from hada.evaluate.results.cost import CostPlan
from hada.extract.common.arrays import unit_rows
from hada.fuse.ranking.ranks import rank_positives

# What is measured: images and captions of a ranking, scores of a sort, draws of a bootstrap.
SAMPLE = (1000, 10_000)
SAMPLE_SORTED = 1 << 19
SAMPLE_DRAWS = 1 << 20


def seconds(plan: CostPlan, device: str) -> dict[str, float]:
    """How long each method and the bootstrap will take, from what a small piece takes here.

    Args:
        plan: What will be computed.
        device: Where the small piece is computed.

    Returns:
        Name of a method, or "bootstrap" -> seconds.
    """
    times = {}
    of_width: dict[int, float] = {}
    for method in plan.methods:
        if method.sorts:
            gallery = max(1, min(plan.captions // plan.folds, SAMPLE_SORTED))
            rows = max(1, SAMPLE_SORTED // gallery)
            scores = np.random.default_rng(0).random((rows, gallery), np.float32)
            one = _fastest(lambda scores=scores: ranks_of_scores(scores)) / scores.size  # type: ignore[misc]
            product = of_width.get(method.width) or _per_pair(method.width, device)
            times[method.name] = 2 * plan.pairs * (method.sorts * one + product)
            continue
        if method.width not in of_width:
            of_width[method.width] = _per_pair(method.width, device)
        times[method.name] = plan.pairs * of_width[method.width]
        if method.nodes is not None:
            times[method.name] += plan.pairs * _per_match(method.nodes, device)
    times["bootstrap"] = plan.images * plan.resamples * _per_draw(len(plan.methods))
    return times


def _per_pair(width: int, device: str) -> float:
    """Seconds of ranking for each pair of an image and a caption."""
    images, captions = SAMPLE
    random = np.random.default_rng(0)
    caption_to_image = np.arange(captions) % images
    image = unit_rows(random.standard_normal((images, width), np.float32))
    # Captions near their images, as in a real set: few scores lie close to a threshold.
    caption = random.standard_normal((captions, width), np.float32)
    caption = unit_rows(caption / np.float32(width**0.5) + 0.5 * image[caption_to_image])
    return _fastest(lambda: rank_positives(image, caption, caption_to_image, device=device)) / (
        images * captions
    )


def _per_match(nodes: tuple[int, int, int], device: str) -> float:
    """Seconds of node matching for each pair of an image and a caption."""
    import torch

    from hada.fuse.network.maxsim import NodeSet, node_scores

    of_image, of_caption, width = nodes
    images, captions = 64, 64

    def made(items: int, count: int) -> NodeSet:
        vectors = torch.randn(items * count, width, device=device)
        weights = torch.full((items * count,), 1 / count, device=device)
        return NodeSet(torch.nn.functional.normalize(vectors), weights, (count,) * items)

    pair = made(images, of_image), made(captions, of_caption)
    return _fastest(lambda: node_scores(*pair).cpu()) / (images * captions)


def _per_draw(methods: int) -> float:
    """Seconds of the bootstrap for each image drawn."""
    from hada.evaluate.results.significance import Hits, bootstrap_rsums

    images, resamples = SAMPLE_DRAWS // 256, 256
    values = np.random.default_rng(0).random((images, 3))
    hits = [Hits(values, values, np.ones(images))] * methods
    return _fastest(lambda: bootstrap_rsums(hits, resamples=resamples)) / SAMPLE_DRAWS


def _fastest(work: Callable[[], Any]) -> float:
    """The shorter of two runs; the first also warms the machine up."""
    times = []
    for _ in range(2):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
