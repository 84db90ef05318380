"""What the benchmark times: each contender builds its model from the port's weights and returns two functions.

A contender is a function of (config, weights, threads) that returns (predict, train): `predict(x)` gives probabilities as numpy,
`train(x)` does forward and backward in training mode, without dropout, for the loss mean(logits^2); None where it cannot.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from denet_torch.architecture import keras_name, transposed

Weights = dict[str, np.ndarray]
Functions = tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], None] | None]


def port_model(config: dict[str, Any], weights: Weights, threads: int):
    import torch

    from denet_torch import DENet
    from denet_torch.memory import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()  # this and copies of the weights as `denet_torch.load` has them
    with torch.device("meta"):
        model = DENet(**config)
    model.load_state_dict({name: torch.from_numpy(weights.pop(name)).clone() for name in list(weights)}, assign=True)
    return model


def port(config: dict[str, Any], weights: Weights, threads: int, bfloat16: bool = False) -> Functions:
    import torch

    from denet_torch.memory import keep_freed_memory

    model = port_model(config, weights, threads)

    def predict(x):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return model.predict_proba(torch.from_numpy(x)).float().numpy()

    def train(x):
        keep_freed_memory(of_any_size=True)  # as the trainer has it
        model.train()
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(torch.from_numpy(x))
        logits.float().square().mean().backward()

    return predict, train


def port_bfloat16(config: dict[str, Any], weights: Weights, threads: int) -> Functions:
    return port(config, weights, threads, bfloat16=True)


def tensorflow_graph(config: dict[str, Any], weights: Weights, threads: int, xla: bool = False) -> Functions:
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # its default with AVX-512; without, it is several times slower by default
    import tensorflow as tf

    import reference_tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    model = reference_tf.DENet(**config)
    for name, array in weights.items():
        variable = model
        for part in keras_name(name).split("/"):
            variable = getattr(variable, part)
        variable.assign(transposed(name, array))

    @tf.function(jit_compile=xla)
    def forward(x):
        return model.predict_proba(x)

    @tf.function(jit_compile=xla)
    def gradients(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True)))
        return tape.gradient(loss, model.trainable_variables)

    def predict(x):
        return forward(tf.constant(x)).numpy()

    def train(x):
        for gradient in gradients(tf.constant(x)):
            gradient.numpy()  # waits for it

    return predict, train


def tensorflow_xla(config: dict[str, Any], weights: Weights, threads: int) -> Functions:
    return tensorflow_graph(config, weights, threads, xla=True)


def onnxruntime(config: dict[str, Any], weights: Weights, threads: int) -> Functions:
    import onnxruntime as ort

    from .weights.onnx_file import write_onnx

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(weights, config, Path(folder, "model.onnx"))
        session = ort.InferenceSession(Path(folder, "model.onnx"), options)
    name = session.get_inputs()[0].name

    def predict(x):
        logits = session.run(None, {name: x})[0]
        shifted = np.exp(logits - logits.max(-1, keepdims=True))
        return shifted / shifted.sum(-1, keepdims=True)

    return predict, None


def keras_torch(config: dict[str, Any], weights: Weights, threads: int) -> Functions:
    """The model out of Keras 3's own layers, on PyTorch; what Keras lacks is written with `keras.ops` or is the port's."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import torch
    from keras import layers, ops

    from denet_torch.layers import hard_sigmoid, sinc_filters

    torch.set_num_threads(threads)
    seq_len, samples, _ = config["input_shape"]
    sr, bands, units = config["sr"], config["n_filters"], config["gru_units"]

    class Sinc(layers.Layer):
        def build(self, _):
            self.b1, self.band = self.add_weight((bands,)), self.add_weight((bands,))

        def call(self, x):
            filters = sinc_filters(ops.convert_to_tensor(self.b1), ops.convert_to_tensor(self.band), sr)
            return ops.conv(x, ops.transpose(filters)[:, None], padding="same")

    class ChannelNorm(layers.Layer):
        def build(self, shape):
            self.scale, self.bias = self.add_weight((shape[-1],)), self.add_weight((shape[-1],))

        def call(self, x):
            std = ops.std(x, axis=-1, keepdims=True)
            return (x - ops.mean(x, axis=-1, keepdims=True)) / (std + 1e-6) * self.scale + self.bias

    def gru(**options):
        return layers.GRU(units, recurrent_activation=hard_sigmoid, reset_after=False, return_sequences=True, **options)

    def leaky_relu(x):
        return ops.leaky_relu(x, 0.3)

    named: dict[str, layers.Layer] = {}

    def layer(name, made):
        named[name] = made
        return made

    def attention(x):
        steps = x.shape[1]
        h = ops.reshape(ops.transpose(x, (0, 2, 1)), (-1, steps, 1))
        for number, (features, stride) in enumerate([(30, 2), (30, 3), (10, 3)], 1):
            h = layer(f"attention.conv{number}", layers.Conv1D(features, 7, stride, activation="relu"))(h)
        h = layers.Flatten()(h)
        for number, (features, activation) in enumerate([(128, "relu"), (64, "relu"), (1, None)], 1):
            h = layer(f"attention.dense{number}", layers.Dense(features, activation=activation))(h)
        share = ops.softmax(ops.reshape(h, (-1, bands)))
        return ops.sum(x * share[:, None], axis=2, keepdims=True)

    inputs = keras.Input((seq_len, samples))
    x = layer("sinc", Sinc())(ops.reshape(inputs, (-1, samples, 1)))
    if config["before_pooling"]:
        x = attention(x)
    x = leaky_relu(layers.MaxPooling1D(3)(x))
    if not config["before_pooling"]:
        x = attention(x)
    for number in (1, 2):
        x = layers.MaxPooling1D(3)(layer(f"conv{number}", layers.Conv1D(60, 5))(x))
        x = leaky_relu(layer(f"norm{number}", ChannelNorm())(x))
    x = ops.reshape(x, (-1, seq_len, x.shape[1] * x.shape[2]))
    forwards, backwards = layer("gru.forward_gru", gru()), layer("gru.backward_gru", gru(go_backwards=True))
    x = forwards(x) + ops.flip(backwards(x), axis=1)
    for number, features in enumerate(config["dense_units"], 1):
        x = layer(f"dense{number}", layers.Dense(features))(x)
        x = leaky_relu(layer(f"batch_norm{number}", layers.BatchNormalization(epsilon=1e-3))(x))
    model = keras.Model(inputs, layer("dense3", layers.Dense(config["n_classes"]))(x))
    for name, part in named.items():
        arrays = [weights[key] for key in weights if key.startswith(name + ".")]
        part.set_weights([array if name.startswith("gru") else array.T for array in arrays])

    def predict(x):
        with torch.no_grad():
            return ops.softmax(model(x, training=False)).cpu().numpy()

    def train(x):
        model.zero_grad()
        model(x, training=True).square().mean().backward()

    return predict, train


CONTENDERS: dict[str, Callable[..., Functions]] = {
    "port": port,
    "port, bfloat16": port_bfloat16,
    "TensorFlow graph": tensorflow_graph,
    "TensorFlow XLA": tensorflow_xla,
    "Keras 3 on PyTorch": keras_torch,
    "onnxruntime": onnxruntime,
}
