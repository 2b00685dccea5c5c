"""One whole published iteration, and the batches the published code trips over."""

from __future__ import annotations

import pytest
import torch
from fuse_golden import load_safetensors
from golden_steps import FILES, gradients, state, up_to_the_step
from small_batches import tiny, tiny_batch

from hada.extract.common.errors import UsageError


@pytest.mark.parametrize("name", FILES)
def test_golden_iteration(name):
    """Losses, gradients, slow encoders, queues, and the weights after one AdamW step."""
    tensors = load_safetensors(f"{name}.safetensors")
    objective, optimizer, result = up_to_the_step(name, tensors)
    parameters = objective.trainable()
    for ours, theirs in (("nce", "loss_nll"), ("itm", "loss_itm"), ("total", "loss_all")):
        want = tensors[f"out.{theirs}"]
        torch.testing.assert_close(result[ours].detach(), want, atol=1e-5, rtol=1e-5)
    wanted = gradients(tensors)
    for key, parameter in parameters.items():
        if key not in wanted:
            assert key.startswith("mix."), key
            continue
        want = wanted[key].view_as(parameter)
        # Biases in front of a BatchNorm have gradient 0: rounding of the larger ones remains.
        scale = max(float(want.norm()), 1e-2)
        assert float((parameter.grad - want).abs().max()) <= 3e-4 * scale, key
    optimizer.step()
    after = state(tensors, "after", objective)
    for key, value in objective.state_dict().items():
        # AdamW's first step is lr * sign(gradient): where the gradient is 0 (a shift in front of
        # a BatchNorm) both sides hold rounding, and its sign is chance.
        error = (value - after[key]).abs()
        if key in parameters and key in wanted:
            error[wanted[key].view_as(value).abs() < 1e-5] -= 2.1 * optimizer.defaults["lr"]
        assert float(error.max()) <= 2e-5, key


def test_golden_sampling_weights_and_hinge():
    from hada.fuse.training import losses

    tensors = load_safetensors("loss_hada_m_distill_on.safetensors")
    ids = tensors["in.img_id"][:, 0]
    same = ids[:, None] == ids
    for way in ("t2i", "i2t"):
        want = tensors[f"itm.weights_{way}"]
        logits = tensors[f"out.sim_{way}"][:, :8].masked_fill(same, -1e30)
        torch.testing.assert_close(
            torch.softmax(logits, 1), want / want.sum(1, keepdim=True), atol=1e-5, rtol=1e-4
        )
    scores = tensors["out.img_enc"] @ tensors["out.cap_enc"].T / tensors["before.temp_para"]
    got = losses.hardest_hinge(scores, torch.arange(8), None, 0.3)
    torch.testing.assert_close(got, tensors["out.loss_emb"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scores", ["fused", "first", "all"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_image_major_batches_keep_one_copy_per_image(scores, momentum):
    learn = scores != "fused"
    objective = tiny(
        momentum=momentum, queue=7, scores=scores, weight_hinge=0.5, learn_scores=learn
    )
    for _ in range(3):
        result = objective.train()(tiny_batch(), distill=0.4)
        result["total"].backward()
    objective.remember()
    assert all(torch.isfinite(v) for v in result.values())
    # Nine images went through a ring of seven: 1, 2 of the second round and all of the third.
    assert objective.image_queue.known_ids().tolist() == [1, 2, 2, 0, 1, 2, 0]
    assert int(objective.image_queue.start) == 2
    assert int(objective.caption_queue.start) == 4


@pytest.mark.parametrize("ids", [[4], [4, 4]])
def test_a_batch_of_one_image_does_not_crash(ids):
    objective = tiny(weight_hinge=1.0)
    result = objective.train()(tiny_batch(len(ids), 1, ids))
    result["total"].backward()
    assert torch.isfinite(result["total"])


def test_shares():
    assert tiny().mix.shares().tolist() == [1, 0, 0]
    assert tiny(scores="first").mix.shares().tolist() == [0.5, 0.5, 0]
    torch.testing.assert_close(tiny(scores="all").mix.shares(), torch.ones(3) / 3)
    torch.testing.assert_close(
        tiny(scores="all", score_weights=(1, 1, 2)).mix.shares(), torch.tensor([0.25, 0.25, 0.5])
    )
    with pytest.raises(UsageError, match="takes 3 numbers"):
        tiny(scores="all", score_weights=(1.0,))


def test_temperature_is_clamped_before_use():
    objective = tiny(temperature=3.0)
    objective.train()(tiny_batch())
    assert float(objective.temperature.detach()) == 0.5
