"""What each setting of the objective does, against plain formulas on tiny batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_batches import tiny, tiny_batch

from hada.fuse.network.fuser import Fuser
from hada.fuse.settings import LossSettings
from hada.fuse.training import losses
from hada.fuse.training.objective import Objective


def encoded(objective, batch, slow=False):
    fuser = objective.slow if slow else objective.fuser
    return fuser.encode("image", batch.image), fuser.encode("caption", batch.caption)


def apart(objective):
    """Slow encoders that say something else than the fast ones."""
    torch.manual_seed(5)
    for parameter in objective.slow.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    return objective.eval()


def test_the_total_is_the_weighted_sum_of_the_losses():
    objective = tiny(weight_nce=0.3, weight_itm=0.7, weight_hinge=2.0).eval()
    found = objective(tiny_batch())
    assert all(float(found[name].detach()) > 0.01 for name in ("nce", "itm", "hinge"))
    want = 0.3 * found["nce"] + 0.7 * found["itm"] + 2.0 * found["hinge"]
    torch.testing.assert_close(found["total"], want)
    alone = tiny(weight_itm=0.0)
    assert alone.discriminator is None
    assert set(alone(tiny_batch())) == {"i2t", "t2i", "nce", "total"}


def test_the_contrastive_loss_weighs_its_directions_by_image_share():
    objective = tiny(image_share=0.25, temperature=0.2, weight_itm=0.0).eval()
    batch = tiny_batch(3, 2)
    image, caption = encoded(objective, batch)
    logits = image @ caption.T / 0.2
    i2t = sum(torch.logsumexp(logits[i], 0) - logits[i, 2 * i : 2 * i + 2].mean() for i in range(3))
    t2i = F.cross_entropy(logits.T, batch.caption_to_image_T)
    found = objective(batch)
    torch.testing.assert_close(found["i2t"], i2t / 3)
    torch.testing.assert_close(found["t2i"], t2i)
    torch.testing.assert_close(found["nce"], 0.25 * i2t / 3 + 0.75 * t2i)


def test_the_hinge_sees_similarities_over_the_temperature_and_no_repeated_image():
    objective = tiny(weight_hinge=1.0, weight_itm=0.0, temperature=0.2, margin=0.4).eval()
    batch = tiny_batch(3, 2, ids=[4, 5, 4])
    image, caption = encoded(objective, batch)
    scores, ids = image @ caption.T / 0.2, batch.ids_B.tolist()
    want = 0.0
    for j, i in enumerate(batch.caption_to_image_T.tolist()):
        others = [k for k in range(3) if ids[k] != ids[i]]
        strangers = [k for k in range(6) if ids[batch.caption_to_image_T[k]] != ids[i]]
        for rivals in (scores[others, j], scores[i, strangers]):
            want += (0.4 + rivals.max() - scores[i, j]).clamp_min(0) / 6
    torch.testing.assert_close(objective(batch)["hinge"], want)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_hard_negatives_come_from_each_querys_own_similarities(momentum, monkeypatch):
    """Captions ask the (slow) images, images the (slow) captions; no mate of one image answers."""
    objective = tiny(momentum=momentum, temperature=0.5)
    if momentum:
        apart(objective)
    seen, real = [], losses.draw_negatives
    monkeypatch.setattr(losses, "draw_negatives", lambda *x: seen.append(x) or real(*x))
    batch = tiny_batch(3, 2, ids=[4, 5, 4])
    objective.eval()(batch)
    image, caption = encoded(objective, batch)
    slow_image, slow_caption = (
        encoded(objective, batch, slow=True) if momentum else (image, caption)
    )
    ids = batch.ids_B[batch.caption_to_image_T]
    (near_images, same_images), (near_captions, same_captions) = seen
    torch.testing.assert_close(near_images, caption @ slow_image.T / 0.5)
    torch.testing.assert_close(
        near_captions, (image @ slow_caption.T / 0.5)[batch.caption_to_image_T]
    )
    assert torch.equal(same_images, ids[:, None] == batch.ids_B)
    assert torch.equal(same_captions, ids[:, None] == ids)


def test_the_matching_loss_is_the_cross_entropy_of_three_kinds_of_pairs():
    objective = tiny().eval()
    batch = tiny_batch(3, 2)
    image, caption = encoded(objective, batch)
    other_image, other_caption = torch.tensor([1, 2, 0, 2, 1, 0]), torch.tensor([3, 2, 5, 0, 1, 2])
    want = 0.0
    for j, i in enumerate(batch.caption_to_image_T.tolist()):
        for a, b, truth in ((i, j, 1.0), (other_image[j], j, 0.0), (i, other_caption[j], 0.0)):
            x, y = image[a], caption[b]
            pair = torch.cat([x, y, (x - y).abs(), x * y])
            logit = objective.discriminator.head(pair[None])[0, 0]
            want += F.binary_cross_entropy_with_logits(logit, torch.tensor(truth)) / 18
    found = objective(batch, negatives=(other_image, other_caption))
    torch.testing.assert_close(found["itm"], want)


def test_learned_score_weights_stay_in_the_published_bounds():
    for mode, given, kept in (
        ("first", (0.02,), [0.1]),
        ("first", (0.97,), [0.9]),
        ("all", (0.02, 0.02, 0.001), [0.1, 0.1, 0.01]),
        ("all", (3.0, 0.5, 0.05), [3.0, 0.5, 0.05]),
    ):
        objective = tiny(scores=mode, score_weights=given, learn_scores=True)
        objective.eval()(tiny_batch())
        values = [float(v.detach()) for v in objective.mix.values]
        assert values == pytest.approx(kept)
        fixed = tiny(scores=mode, score_weights=given, learn_scores=False)
        fixed.eval()(tiny_batch())
        assert [float(v) for v in fixed.mix.values] == pytest.approx(given)


@pytest.mark.parametrize(("low", "kept"), [(0.001, 0.002), (0.05, 0.05)])
def test_the_temperature_has_a_lowest_value(low, kept):
    objective = tiny(temperature=0.002, temperature_low=low)
    objective.eval()(tiny_batch())
    assert float(objective.temperature.detach()) == pytest.approx(kept)


@pytest.mark.parametrize(
    ("norm", "drop_logit", "share"),
    [("batch", False, 0.0), ("batch", True, 0.5), ("none", False, 0.0), ("layer", True, 0.5)],
)
def test_the_matching_logit_is_dropped_only_where_it_is_asked_for(norm, drop_logit, share):
    branch = replace(tiny().fuser.image.config, norm=norm)
    settings = LossSettings(weight_itm=1.0, dropout_match=0.5, drop_logit=drop_logit)
    head = Objective(Fuser(branch, branch), settings).train().discriminator
    logits = head(torch.randn(400, 5), torch.randn(400, 5))
    assert float((logits == 0).float().mean()) == pytest.approx(share, abs=0.1)
    # With no norm the published place is in front of the linear layer, in training alone.
    assert head.head.dropout == (0.5 if norm == "none" or drop_logit else 0.0)


@pytest.mark.parametrize("noisy", [True, False])
def test_slow_encoders_are_noisy_only_where_it_is_asked_for(noisy):
    objective = tiny(momentum=0.9, momentum_dropout=noisy)
    assert objective.train().slow.training == noisy
    assert objective.fuser.training
    assert not objective.eval().slow.training


def test_slow_encoders_follow_with_the_momentum_and_in_training_alone():
    objective = apart(tiny(momentum=0.75))
    before = [p.detach().clone() for p in objective.slow.parameters()]
    objective(tiny_batch())
    assert all(torch.equal(a, b) for a, b in zip(before, objective.slow.parameters(), strict=True))
    objective.train()(tiny_batch())
    for a, slow, fast in zip(
        before, objective.slow.parameters(), objective.fuser.parameters(), strict=True
    ):
        torch.testing.assert_close(slow.detach(), 0.75 * a + 0.25 * fast.detach())


def test_the_teacher_is_the_slow_encoder_in_both_directions():
    objective = apart(tiny(momentum=0.9, temperature=0.5, weight_itm=0.0))
    batch = tiny_batch(3, 2)
    image, caption = encoded(objective, batch)
    slow_image, slow_caption = encoded(objective, batch, slow=True)
    own = (batch.caption_to_image_T[None] == torch.arange(3)[:, None]).float()
    for name, query, key, teacher, hard in (
        ("i2t", image, slow_caption, slow_image, own / 2),
        ("t2i", caption, slow_image, slow_caption, own.T),
    ):
        soft = 0.4 * torch.softmax(teacher @ key.T / 0.5, 1) + 0.6 * hard
        want = -(soft * torch.log_softmax(query @ key.T / 0.5, 1)).sum(1).mean()
        torch.testing.assert_close(objective(batch, distill=0.4)[name], want)


@pytest.mark.parametrize(
    ("scores", "weights", "shares"),
    [("first", (0.3,), (0.7, 0.3, 0.0)), ("all", (3.0, 2.0, 5.0), (0.3, 0.2, 0.5))],
)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_loss_sees_the_score_of_retrieval(scores, weights, shares, momentum):
    """Fused and own cosines over the temperature, of the batch and of the queue behind it."""
    objective = tiny(
        scores=scores, score_weights=weights, momentum=momentum, queue=9, temperature=0.5,
        weight_itm=0.0,
    )  # fmt: skip
    if momentum:
        apart(objective)
    objective.eval()
    first, second = tiny_batch(3, 2, ids=[7, 8, 9]), tiny_batch(3, 2, ids=[7, 5, 4])
    for features in (first.image, first.caption):
        for x in (*features.nodes, *features.embeddings):
            x.add_(torch.randn(x.shape))
    objective(first)
    found = objective(second)
    (image, caption) = encoded(objective, second)
    sides = [encoded(objective, b, slow=bool(momentum)) for b in (second, first)]
    cosine = shares[0] * image @ torch.cat([side[1] for side in sides]).T
    back = shares[0] * caption @ torch.cat([side[0] for side in sides]).T
    for model in (0, 1):
        own = [
            [F.normalize(x.embeddings[model], dim=1) for x in (b.image, b.caption)]
            for b in (second, first)
        ]
        cosine = cosine + shares[1 + model] * own[0][0] @ torch.cat([own[0][1], own[1][1]]).T
        back = back + shares[1 + model] * own[0][1] @ torch.cat([own[0][0], own[1][0]]).T
    image_ids = torch.cat([second.ids_B, first.ids_B])
    caption_ids = torch.cat(
        [second.ids_B[second.caption_to_image_T], first.ids_B[first.caption_to_image_T]]
    )
    for name, logits, ids, keys in (
        ("i2t", cosine / 0.5, second.ids_B, caption_ids),
        ("t2i", back / 0.5, second.ids_B[second.caption_to_image_T], image_ids),
    ):
        want = losses.soft_cross_entropy(logits, losses.positive_targets(ids, keys))
        torch.testing.assert_close(found[name], want, atol=1e-5, rtol=1e-5)


def test_a_score_that_is_not_trained_on_leaves_the_loss_alone():
    found = []
    for scores in ("fused", "all"):
        objective = tiny(scores=scores, train_on_scores=False, weight_itm=0.0).eval()
        found.append(float(objective(tiny_batch())["nce"].detach()))
    assert found[0] == found[1]


def test_noise_in_the_queue_is_never_a_match():
    """Image 0 of the data set is a match of its own key alone."""
    objective = tiny(queue=6, queue_noise=True, momentum=0.5, weight_itm=0.0).eval()
    known = torch.cat([torch.tensor([0]), objective.image_queue.known_ids()])
    assert losses.positive_targets(torch.tensor([0]), known).tolist() == [[1.0] + [0.0] * 6]


def test_a_batch_enters_the_queue_once():
    """The trainer asks for it after the backward pass, and the next forward pass looks again."""
    objective = tiny(queue=12, momentum=0.5)
    for _ in range(2):
        objective.train()(tiny_batch(3, 2))["total"].backward()
        objective.remember()
    assert objective.image_queue.known_ids().tolist() == [0, 1, 2, 0, 1, 2]
    assert len(objective.caption_queue.known_ids()) == 12
