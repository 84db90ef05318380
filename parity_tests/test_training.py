"""Training on both sides in float64: five SGD steps with the same dropout masks, and what the original's faults become."""

import numpy as np
import pytest
import tensorflow as tf
import torch

import denet_torch
import reference_tf
from parity_tests import sides, weights
from parity_tests.port_side import Case, error

# A step multiplies the difference of the two sides by what the sinc cuts' large gradients make of it: a hundredfold at a rate of
# 0.01, which is chaos, and little at this one. Seen after five steps: at most 6e-13.
STEPS, RATE = 5, 1e-4
TRAJECTORY_BAR = 1e-10
SMALL = {"n_filters": 6, "gru_units": 10, "dense_units": (12, 9)}
ZERO_GRADIENTS = ("dense1.bias", "dense2.bias", "attention.dense3.bias")  # each step moves these by nothing but rounding


def small_case(before_pooling, dropout, **switches) -> Case:
    samples = 100 if before_pooling else 250
    arguments = {"input_shape": (4, samples), "n_classes": 3, "before_pooling": before_pooling, "dropout": dropout}
    arguments |= {**SMALL, **switches}
    return Case(
        arguments,
        lambda: denet_torch.get_denet(**arguments),
        lambda dtype: reference_tf.get_denet(**arguments, dtype=dtype),
        (2, 4, samples),
        training=True,
        warmup=STEPS,  # one input more than steps: the last is predicted
    )


def train_port(case, numbers, targets):
    model = sides.build_port(case)
    model.load_state_dict({k: torch.tensor(v) for k, v in numbers.state.items()}, strict=False)
    model.double().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    losses = []
    with sides.fed_masks(numbers.seed):
        for x, target in zip(numbers.inputs, targets, strict=False):
            loss = torch.nn.functional.cross_entropy(model(torch.tensor(x).double()).flatten(0, 1), torch.tensor(target.ravel()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, sides.compared_state(model), model.predict_proba(torch.tensor(numbers.inputs[-1]).double()).numpy()


def train_reference(case, numbers, targets):
    model = sides.build_reference(case, numbers, "float64")
    losses = []
    with sides.feed_reference(numbers.seed):
        for x, target in zip(numbers.inputs, targets, strict=False):
            with tf.GradientTape() as tape:
                log_proba = tf.nn.log_softmax(model(x.astype("float64"), training=True))
                loss = -tf.reduce_mean(tf.reduce_sum(tf.one_hot(target, 3, dtype="float64") * log_proba, axis=-1))
            variables = model.trainable_variables
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign_sub(RATE * gradient)
            losses.append(float(loss))
    state = {name: weights.from_keras(name, weights.variable(model, name).numpy()) for name in numbers.state}
    return losses, state, model.predict_proba(numbers.inputs[-1].astype("float64")).numpy()


@pytest.mark.parametrize(
    "switches", [{}, {"train_attention": False}, {"attention_dropout": True}], ids=["default", "frozen", "drop"]
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("before_pooling", [True, False], ids=["before", "after"])
def test_five_steps(before_pooling, dropout, switches, report):
    """Losses, every weight, the running statistics and a prediction after five steps on five batches."""
    case = small_case(before_pooling, dropout, **switches)
    numbers = sides.draw(case, sides.compared_state(sides.build_port(case)), seed=5)
    targets = np.random.RandomState(6).randint(0, 3, (STEPS, 2, 4))
    losses, state, proba = train_port(case, numbers, targets)
    reference_losses, reference_state, reference_proba = train_reference(case, numbers, targets)

    assert error(losses, reference_losses) <= TRAJECTORY_BAR
    assert error(proba, reference_proba) <= TRAJECTORY_BAR
    for name, start in numbers.state.items():
        value = error(state[name], reference_state[name])
        report.add("DENet", "forward float64", value)
        assert value <= TRAJECTORY_BAR, f"DENet: {name} is off by {value:.1e} after five steps"
        still = name.startswith("attention.") and not case.port().config["train_attention"]
        if name not in ZERO_GRADIENTS:
            assert np.array_equal(state[name], start.astype("float64")) == still


def test_unregistered_attention():
    """As in the original: no weight of the attention branch is the model's, so none is counted, trained or saved."""
    case = small_case(True, 0.0, train_attention=False)
    model, whole = case.reference("float32"), small_case(True, 0.0).reference("float32")
    attention = {id(variable) for variable in model.attention.variables}
    assert len(attention) == 12
    assert not attention & {id(variable) for variable in model.weights}
    assert len(model.weights) == len(whole.weights) - 12


@pytest.mark.parametrize("side", ["port", "reference"])
@pytest.mark.parametrize("silence", [True, False], ids=["silence", "noise"])
def test_trains_with_default_arguments(side, silence):
    """A fresh model with the original's defaults (dropout 0.3 empties whole frames): finite after each of five steps.

    The original has NaN weights after the first.
    """
    torch.manual_seed(0)
    tf.random.set_seed(0)
    x = np.zeros((2, 6, 100), "float32") if silence else sides.normal(np.random.RandomState(0), (2, 6, 100))
    if side == "port":
        model = denet_torch.get_denet((6, 100), 3, **SMALL).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for _ in range(5):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(torch.tensor(x)).flatten(0, 1), torch.arange(12) % 3).backward()
            assert all(p.grad.isfinite().all() for p in model.parameters())
            optimizer.step()
        assert all(value.isfinite().all() for value in model.state_dict().values())
    else:
        model = reference_tf.get_denet((6, 100), 3, **SMALL)
        target = tf.one_hot(np.arange(12).reshape(2, 6) % 3, 3)
        for _ in range(5):
            with tf.GradientTape() as tape:
                loss = -tf.reduce_mean(target * tf.nn.log_softmax(model(x, training=True)))
            for variable, gradient in zip(model.trainable_variables, tape.gradient(loss, model.trainable_variables), strict=True):
                assert np.isfinite(gradient).all()
                variable.assign_sub(RATE * gradient)
        assert all(np.isfinite(variable).all() for variable in model.variables)
