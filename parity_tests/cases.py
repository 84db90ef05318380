"""The cases of each layer, drawn by hypothesis: both sides of a layer with the same arguments.

Sizes start where an array has some dozens of entries: the largest of a handful of rounding errors is luck, and the float32
errors of both sides are compared case by case. The whole model takes the smallest sizes (one class, two filters).
"""

from hypothesis import strategies as st

import denet_torch
import reference_tf
from denet_torch import layers as port
from parity_tests.port_side import Case
from reference_tf import layers as reference

RATES = st.sampled_from([8000, 16000, 44100, 192000, 250000])  # Hz
DROPOUT = st.sampled_from([0.0, 0.1, 0.3, 0.5])


@st.composite
def sinc(draw):
    sizes = {"filters": draw(st.integers(8, 40)), "taps": draw(st.sampled_from([31, 101, 251])), "sr": draw(RATES)}
    if draw(st.booleans()):
        sizes |= {"low_freq_mel": draw(st.integers(50, 300)), "high_freq_mel": draw(st.integers(1000, 2100))}
    shape = draw(st.integers(1, 3)), draw(st.integers(20, 400)), 1
    return Case(
        {**sizes, "shape": shape},
        lambda: port.SincConv1D(**sizes),
        lambda dtype: reference.SincConv1D(**sizes, dtype=dtype),
        shape,
        initial=("filt_b1", "filt_band"),
    )


@st.composite
def dense(draw):
    features, units = draw(st.integers(4, 64)), draw(st.integers(4, 64))
    shape = draw(st.integers(2, 4)), draw(st.integers(3, 8)), features
    return Case(
        {"units": units, "shape": shape},
        lambda: port.Dense(features, units),
        lambda dtype: reference.Dense(units, dtype=dtype),
        shape,
    )


@st.composite
def conv(draw):
    channels, filters = draw(st.integers(1, 30)), draw(st.integers(4, 60))
    taps, stride = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    shape = draw(st.integers(1, 4)), draw(st.integers(20, 60)), channels
    return Case(
        {"filters": filters, "taps": taps, "stride": stride, "shape": shape},
        lambda: port.Conv1D(channels, filters, taps, stride=stride),
        lambda dtype: reference.Conv1D(filters, taps, strides=stride, dtype=dtype),
        shape,
    )


@st.composite
def layer_norm(draw):
    shape = draw(st.integers(1, 4)), draw(st.integers(5, 30)), draw(st.integers(8, 80))
    return Case(
        {"shape": shape},
        lambda: port.LayerNorm(shape[-1]),
        lambda dtype: reference.LayerNorm(dtype=dtype),
        shape,
    )


@st.composite
def spatial_dropout(draw):
    rate, training = draw(DROPOUT), draw(st.booleans())
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 30)), draw(st.integers(1, 20))
    return Case(
        {"rate": rate, "training": training, "shape": shape},
        lambda: port.SpatialDropout1D(rate),
        lambda dtype: reference.SpatialDropout1D(rate, dtype=dtype),
        shape,
        training=training,
    )


@st.composite
def dropout(draw):
    rate, training = draw(DROPOUT), draw(st.booleans())
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 30)), draw(st.integers(1, 20))
    return Case(
        {"rate": rate, "training": training, "shape": shape},
        lambda: port.Dropout(rate),
        lambda dtype: reference.Dropout(rate, dtype=dtype),
        shape,
        training=training,
    )


@st.composite
def de_layer(draw):
    shape = draw(st.integers(1, 3)), draw(st.integers(79, 200)), draw(st.integers(2, 10))
    rate, training = draw(DROPOUT), draw(st.booleans())
    return Case(
        {"rate": rate, "training": training, "shape": shape},
        lambda: port.DELayer(shape[1], rate=rate),
        lambda dtype: reference.DELayer(rate=rate, dtype=dtype),
        shape,
        training=training,
        zero_gradients={"dense3.bias": "dense3.weight"},  # the softmax over the bands takes it out
    )


@st.composite
def gru(draw):
    shape = draw(st.integers(1, 4)), draw(st.integers(3, 10)), draw(st.integers(4, 40))
    units, rate, backwards, training = (
        draw(s) for s in (st.integers(8, 32), DROPOUT, st.booleans(), st.booleans())
    )
    return Case(
        {"units": units, "dropout": rate, "go_backwards": backwards, "training": training, "shape": shape},
        lambda: port.GRU(shape[2], units, rate, go_backwards=backwards),
        lambda dtype: reference.GRU(units, rate, go_backwards=backwards, dtype=dtype),
        shape,
        training=training,
    )


@st.composite
def bidirectional(draw):
    shape = draw(st.integers(1, 4)), draw(st.integers(3, 10)), draw(st.integers(4, 40))
    units, rate, training = draw(st.integers(8, 32)), draw(DROPOUT), draw(st.booleans())
    return Case(
        {"units": units, "dropout": rate, "training": training, "shape": shape},
        lambda: port.Bidirectional(shape[2], units, rate),
        lambda dtype: reference.Bidirectional(units, rate, dtype=dtype),
        shape,
        training=training,
    )


@st.composite
def batch_norm(draw):
    shape = draw(st.integers(2, 4)), draw(st.integers(2, 8)), draw(st.integers(8, 40))
    training = draw(st.booleans())
    warmup = draw(st.integers(0, 4)) if training else 0
    return Case(
        {"training": training, "warmup": warmup, "shape": shape},
        lambda: port.BatchNorm(shape[-1]),
        lambda dtype: reference.BatchNorm(dtype=dtype),
        shape,
        training=training,
        warmup=warmup,
    )


def function(name):
    """Cases of a layer without weights. Looked up by name at each use, so that a planted fault is what is tested."""

    @st.composite
    def cases(draw):
        shape = draw(st.integers(2, 4)), draw(st.integers(8, 40)), draw(st.integers(8, 40))
        return Case(
            {"shape": shape},
            lambda: lambda x: getattr(port, name)(4 * x),  # wide enough to saturate the hard sigmoid
            lambda dtype: lambda x: getattr(reference, name)(4 * x),
            shape,
        )

    return cases


@st.composite
def model(draw):
    before_pooling = draw(st.booleans())
    samples = draw(st.integers(79, 110) if before_pooling else st.integers(237, 300))
    arguments = {
        "input_shape": (draw(st.integers(1, 4)), samples, 1),
        "n_classes": draw(st.integers(1, 5)),
        "sr": draw(RATES),
        "before_pooling": before_pooling,
        "dropout": draw(DROPOUT),
        "train_attention": draw(st.booleans()),
        "attention_dropout": draw(st.booleans()),
        "n_filters": draw(st.integers(2, 6)),
        "gru_units": draw(st.integers(4, 16)),
        "dense_units": (draw(st.integers(4, 16)), draw(st.integers(4, 16))),
    }
    # at least four frames for the batch statistics; a sequence may be longer than the configured one
    shape = draw(st.integers(2, 3)), draw(st.integers(2, 3)), samples
    training = draw(st.booleans())
    warmup = draw(st.integers(0, 2)) if training else 0
    zero_gradients = {"attention.dense3.bias": "attention.dense3.weight"} if arguments["train_attention"] else {}
    if training:  # the batch's mean is subtracted
        zero_gradients |= {"dense1.bias": "dense1.weight", "dense2.bias": "dense2.weight"}
    return Case(
        {**arguments, "training": training, "warmup": warmup, "shape": shape},
        lambda: denet_torch.get_denet(**arguments),
        lambda dtype: reference_tf.get_denet(**arguments, dtype=dtype),
        shape,
        training=training,
        warmup=warmup,
        zero_gradients=zero_gradients,
    )


# In the order of `layers.py`; the whole model last.
CASES = {
    "hard_sigmoid": function("hard_sigmoid"),
    "leaky_relu": function("leaky_relu"),
    "max_pool": function("max_pool"),
    "softmax": function("softmax"),
    "SincConv1D": sinc,
    "Dense": dense,
    "Conv1D": conv,
    "LayerNorm": layer_norm,
    "SpatialDropout1D": spatial_dropout,
    "Dropout": dropout,
    "DELayer": de_layer,
    "GRU": gru,
    "Bidirectional": bidirectional,
    "BatchNorm": batch_norm,
    "DENet": model,
}
