"""Late interaction equals a slow loop, in values and gradients, however it is cut into blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hada.fuse.network import maxsim
from hada.fuse.network.maxsim import NodeSet, node_scores


def nodes(lengths: list[int], width: int = 6, seed: int = 0) -> NodeSet:
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(sum(lengths), width, dtype=torch.float64, generator=draw)
    logits = torch.randn(sum(lengths), dtype=torch.float64, generator=draw)
    weights = torch.cat([part.softmax(0) for part in logits.split(lengths)])
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return NodeSet(unit.requires_grad_(), weights.requires_grad_(), tuple(lengths))


def slow(image: NodeSet, caption: NodeSet, mirror: float) -> torch.Tensor:
    """The two sums as they are written, pair by pair."""
    rows = []
    for b in range(len(image)):
        one, row = image.part(b, b + 1), []
        for t in range(len(caption)):
            other = caption.part(t, t + 1)
            products = other.vectors_SD @ one.vectors_SD.T
            by_caption = (other.weights_S * products.max(dim=1).values).sum()
            by_image = (one.weights_S * products.max(dim=0).values).sum()
            row.append((1 - mirror) * by_caption + mirror * by_image)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def gradients(scores: torch.Tensor, *sides: NodeSet) -> list[torch.Tensor]:
    factors = torch.linspace(-1, 2, scores.numel(), dtype=torch.float64).view_as(scores)
    inputs = [x for side in sides for x in (side.vectors_SD, side.weights_S)]
    found = torch.autograd.grad((scores * factors).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([1, 40, 1 << 18]),
    st.sampled_from([0, 1 << 25]),
    st.sampled_from([1, 2, 64]),
)
def test_equal_to_the_slow_loop(
    images: list[int], captions: list[int], mirror: float, numbers: int, kept: int, most: int
) -> None:
    image, caption = nodes(images), nodes(captions, seed=1)
    limits = (maxsim.BLOCK_NUMBERS, maxsim.KEPT_NUMBERS, maxsim.BLOCK_IMAGES)
    before = [dict(limit) for limit in limits]
    try:
        for limit, value in zip(limits, (numbers, kept, most), strict=True):
            limit["cpu"] = value
        fast, plain = node_scores(image, caption, mirror), slow(image, caption, mirror)
        torch.testing.assert_close(fast, plain, rtol=0, atol=1e-12)
        pairs = zip(gradients(fast, image, caption), gradients(plain, image, caption), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    finally:
        for limit, values in zip(limits, before, strict=True):
            limit.update(values)


def test_kept_products_are_those_that_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, over several blocks of images and groups of captions, and a second time."""
    image, caption = nodes([2, 3, 1, 3]), nodes([4, 1, 2], seed=1)
    monkeypatch.setitem(maxsim.BLOCK_NUMBERS, "cpu", 24)
    found = []
    for most in (0, 1 << 25):
        monkeypatch.setitem(maxsim.KEPT_NUMBERS, "cpu", most)
        scores = node_scores(image, caption, 0.3)
        inputs = (image.vectors_SD, image.weights_S, caption.vectors_SD, caption.weights_S)
        total = (scores * torch.linspace(-1, 2, 12).view_as(scores)).sum()
        found += [torch.autograd.grad(total, inputs, retain_graph=True) for _ in range(2)]
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_gradients_equal_differences() -> None:
    image, caption = nodes([3, 1, 2]), nodes([2, 4], seed=1)

    def scores(*tensors: torch.Tensor) -> Any:
        one = NodeSet(tensors[0], tensors[1], image.lengths)
        other = NodeSet(tensors[2], tensors[3], caption.lengths)
        return node_scores(one, other, 0.4)

    inputs = (image.vectors_SD, image.weights_S, caption.vectors_SD, caption.weights_S)
    assert torch.autograd.gradcheck(scores, inputs)


def test_nodes_that_tie_share_the_gradient() -> None:
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    image = NodeSet(same, torch.full((3,), 1 / 3), (3,))
    caption = NodeSet(torch.tensor([[1.0, 0.0]]), torch.ones(1), (1,))
    node_scores(image, caption, 0.0).sum().backward()  # type: ignore[no-untyped-call]
    assert same.grad is not None
    assert same.grad[:, 0].tolist() == [0.5, 0.5, 0.0]


def test_padding_never_wins() -> None:
    """All true products are negative here, and a padded vector's would be 0."""
    image = NodeSet(torch.tensor([[-1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]), torch.ones(3), (1, 2))
    caption = NodeSet(torch.tensor([[1.0, 0.0]]), torch.ones(1), (1,))
    assert node_scores(image, caption, 0.0).tolist() == [[-1.0], [-1.0]]


@pytest.mark.parametrize("first", range(3))
def test_a_part_is_what_it_says(first: int) -> None:
    whole = nodes([2, 1, 3])
    part = whole.part(first, first + 1)
    start = sum(whole.lengths[:first])
    assert part.lengths == whole.lengths[first : first + 1]
    torch.testing.assert_close(part.vectors_SD, whole.vectors_SD[start : start + part.lengths[0]])
