"""Losses against slow loops; schedules against the golden rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fuse_golden import load_npz

from hada.fuse.training import losses
from hada.fuse.training.momentum import NOBODY, MomentumQueue, follow
from hada.fuse.training.schedule import learning_rate_cosine, learning_rate_restarts


def test_soft_cross_entropy_equals_a_loop():
    torch.manual_seed(0)
    logits = torch.randn(4, 7, dtype=torch.float64)
    queries, keys = torch.tensor([5, 6, 6, 8]), torch.tensor([5, 6, 6, 8, 6, -100, 5])
    targets = losses.positive_targets(queries, keys)
    total = 0.0
    for q in range(4):
        mates = [k for k in range(7) if keys[k] == queries[q]]
        norm = math.log(sum(math.exp(v) for v in logits[q]))
        for k in mates:
            assert targets[q, k] == pytest.approx(1 / len(mates))
            total += (norm - float(logits[q, k])) / len(mates)
    assert float(losses.soft_cross_entropy(logits, targets)) == pytest.approx(total / 4)


def test_hinge_equals_a_loop():
    torch.manual_seed(1)
    scores, owner = torch.randn(3, 5, dtype=torch.float64), torch.tensor([0, 0, 1, 2, 2])
    same = torch.arange(3)[:, None] == owner
    want = 0.0
    for j, i in enumerate(owner.tolist()):
        rows = [float(scores[k, j]) for k in range(3) if k != i]
        columns = [float(scores[i, k]) for k in range(5) if owner[k] != i]
        for rivals in (rows, columns):
            want += max(0.0, 0.3 + max(rivals) - float(scores[i, j])) / 5
    assert float(losses.hardest_hinge(scores, owner, same, 0.3)) == pytest.approx(want)
    alone = losses.hardest_hinge(scores[:1, :1], owner[:1], same[:1, :1], 0.3)
    assert float(alone) == 0.0


def test_negatives_are_never_of_the_same_image_and_follow_the_softmax():
    torch.manual_seed(2)
    logits = torch.tensor([[9.0, 0.0, 1.0, -1.0]]).expand(20000, 4)
    same = torch.tensor([[True, False, False, False]]).expand(20000, 4)
    drawn, found = losses.draw_negatives(logits, same)
    share = torch.bincount(drawn, minlength=4) / 20000
    want = torch.softmax(torch.tensor([0.0, 1.0, -1.0]), 0)
    assert found.all()
    assert share[0] == 0
    torch.testing.assert_close(share[1:], want, atol=0.02, rtol=0)


def test_negatives_survive_underflow_and_one_image():
    same = torch.eye(2, dtype=torch.bool)
    drawn, found = losses.draw_negatives(torch.tensor([[200.0, -200.0], [-1e30, 1e30]]), same)
    assert drawn.tolist() == [1, 0]
    assert found.all()
    _, found = losses.draw_negatives(torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool))
    assert not found.any()


def test_distillation_ramp():
    ramp = [losses.distillation_weight(0.4, 0, step, 4) for step in range(4)]
    assert ramp == pytest.approx([0, 0.1, 0.2, 0.3])
    assert losses.distillation_weight(0.4, 1, 0, 4) == 0.4
    targets = torch.tensor([[1.0, 0.0]])
    mixed = losses.distilled(targets, torch.zeros(1, 2), 0.4)
    torch.testing.assert_close(mixed, torch.tensor([[0.8, 0.2]]))


def test_queue_is_a_ring_of_any_batch_size():
    queue = MomentumQueue(5, [2], noise=False)
    assert queue.values().shape == (0, 2)
    rows = torch.arange(16.0).view(8, 2)
    queue.push([rows[:3]], torch.tensor([1, 2, 3]))
    assert queue.known_ids().tolist() == [1, 2, 3]
    queue.push([rows[3:6]], torch.tensor([4, 5, 6]))
    assert queue.known_ids().tolist() == [6, 2, 3, 4, 5]
    assert int(queue.start) == 1
    assert queue.values()[0].tolist() == rows[5].tolist()
    queue.push([rows], torch.arange(10, 18))
    kept = zip(queue.known_ids().tolist(), queue.values().tolist(), strict=True)
    assert dict(kept) == {10 + k: rows[k].tolist() for k in range(3, 8)}
    noisy = MomentumQueue(4, [3], noise=True)
    assert noisy.known_ids().tolist() == [NOBODY] * 4
    torch.testing.assert_close(noisy.values().norm(dim=1), torch.ones(4))


def test_slow_copies_follow():
    slow, fast = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    want = 0.9 * slow.weight.detach() + 0.1 * fast.weight.detach()
    follow(slow, fast, 0.9)
    torch.testing.assert_close(slow.weight.detach(), want)


@pytest.mark.parametrize(
    ("case", "base", "lowest", "first"),
    [
        ("hada_m_C5.n_iters4.epochs60", 1e-4, 5e-6, 50),
        ("hada_m_extend_C5.n_iters4.epochs40", 5e-5, 5e-6, 30),
        ("lavis_C1.n_iters4.epochs40", 1e-4, 1e-5, 30),
    ],
)
def test_golden_schedules(case, base, lowest, first):
    want = load_npz("lr_schedules.npz")[case]
    got = [learning_rate_restarts(step, 4, base, lowest, first) for step in range(len(want))]
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_cosine_rises_and_falls():
    rates = [learning_rate_cosine(s, 20, 1.0, 0.1, 4) for s in range(21)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
