"""What the benchmark times: each contender builds its model from the port's weights and returns two functions.

A contender is a function of (config, weights, threads) that returns (predict, train): `predict(x)` gives probabilities as numpy,
`train(x)` does forward and backward in training mode, without dropout, for the loss mean(logits^2); None where it cannot.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Weights = dict[str, np.ndarray]
Functions = tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], None] | None]


def port_model(config: dict[str, Any], weights: Weights, threads: int):
    import torch

    from denet_torch import DENet

    torch.set_num_threads(threads)
    with torch.device("meta"):
        model = DENet(**config)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, assign=True)
    return model


def port(config: dict[str, Any], weights: Weights, threads: int, bfloat16: bool = False) -> Functions:
    import torch

    model = port_model(config, weights, threads)

    def predict(x):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return model.predict_proba(torch.from_numpy(x)).float().numpy()

    def train(x):
        model.train()
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(torch.from_numpy(x))
        logits.float().square().mean().backward()

    return predict, train


def port_bfloat16(config: dict[str, Any], weights: Weights, threads: int) -> Functions:
    return port(config, weights, threads, bfloat16=True)


def tensorflow_graph(config: dict[str, Any], weights: Weights, threads: int, xla: bool = False) -> Functions:
    import tensorflow as tf

    import reference_tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    model = reference_tf.DENet(**config)
    for name, array in weights.items():
        if name.endswith("local_step"):
            continue
        variable = model
        for part in name.split("."):
            variable = getattr(variable, "kernel" if part == "weight" else part)
        variable.assign(array.transpose() if name.endswith("weight") else array)

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


CONTENDERS: dict[str, Callable[..., Functions]] = {
    "port": port,
    "port, bfloat16": port_bfloat16,
    "TensorFlow graph": tensorflow_graph,
    "TensorFlow XLA": tensorflow_xla,
    "onnxruntime": onnxruntime,
}
