"""Losses against PyTorch's and by hand; masked frames never count; lookup by name."""

import math

import pytest
import torch
import torch.nn.functional as F

from denet_torch import get_denet
from training.config import TrainingError
from training.labels import IGNORE
from training.losses import cross_entropy, focal, frame_weights
from training.registry import get_loss, get_model, get_optimizer, get_schedule

LOGITS = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[0, 1, 2, 3, 0], [1, 1, IGNORE, 2, 0], [IGNORE] * 5])
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0])


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_pytorchs(weights):
    ours = cross_entropy(LOGITS, LABELS, weights).sum() / frame_weights(LABELS, weights).sum()
    theirs = F.cross_entropy(LOGITS.flatten(0, 1), LABELS.flatten(), weights, ignore_index=IGNORE)
    torch.testing.assert_close(ours, theirs)


def test_focal_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]])  # p of the right class 1/2 and 3/4
    expected = torch.tensor([0.25 * math.log(2), 0.0625 * math.log(4 / 3)])
    torch.testing.assert_close(focal(logits, torch.tensor([0, 1])), expected)
    torch.testing.assert_close(focal(LOGITS, LABELS, gamma=0.0), cross_entropy(LOGITS, LABELS))


@pytest.mark.parametrize("loss", [cross_entropy, focal])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_masked_frames_never_count(loss, weights):
    logits = LOGITS.clone().requires_grad_()
    loss(logits, LABELS, weights).sum().backward()
    masked = LABELS == IGNORE
    assert (logits.grad[masked] == 0).all()
    assert (logits.grad[~masked] != 0).any(dim=-1).all()
    assert (loss(LOGITS, LABELS, weights)[masked] == 0).all()
    assert (frame_weights(LABELS, weights)[masked] == 0).all()


@pytest.mark.parametrize("loss", [cross_entropy, focal])
def test_losses_are_computed_in_float32(loss):
    exact = loss(LOGITS.bfloat16().float(), LABELS)
    torch.testing.assert_close(loss(LOGITS.bfloat16(), LABELS), exact)


def test_names_that_do_not_exist_list_those_that_do():
    with pytest.raises(TrainingError, match="no loss is called 'hinge'; there are cross_entropy, focal"):
        get_loss("hinge")
    with pytest.raises(TrainingError, match="no optimizer is called 'lion'; there are adam, adamw, rmsprop, sgd"):
        get_optimizer("lion", torch.nn.Linear(1, 1), 0.1, 1.0)
    with pytest.raises(TrainingError, match="no model is called 'sinknet'; there are boxes, denet, sincnet"):
        get_model("sinknet", None, 2)
    with pytest.raises(TrainingError, match="no schedule is called 'step'; there are constant, cosine, linear"):
        get_schedule("step", None, 0, 1)


def test_wide_layers_and_filters_learn_at_the_rate_the_rest_at_its_multiple():
    model = get_denet((2, 800), 2, n_filters=4, gru_units=8, dense_units=(8, 8), train_attention=False)
    optimizer = get_optimizer("adam", model, 0.1, 4.0)
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    found = {name: rate.get(id(parameter)) for name, parameter in model.named_parameters()}
    slow = {name for name in found if name.split(".")[0] in ("sinc", "gru", "dense1")}
    frozen = {name for name in found if name.startswith("attention.")}
    assert len(slow) == 2 + 6 + 2 and len(frozen) == 12
    assert found == {name: 0.1 if name in slow else None if name in frozen else 0.4 for name in found}


@pytest.mark.parametrize("name, end", [("constant", 1.0), ("cosine", 0.0), ("linear", 0.0)])
def test_learning_rate_rises_then_takes_its_course(name, end):
    optimizer = torch.optim.Adam(torch.nn.Linear(1, 1).parameters(), 0.1)
    schedule = get_schedule(name, optimizer, warmup_steps=4, steps=24)
    rates = []
    for _ in range(25):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[-1] == pytest.approx(0.1 * end)
    assert rates[4:] == sorted(rates[4:], reverse=True)
