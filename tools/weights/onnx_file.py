"""ONNX: the whole model as a graph that onnxruntime runs, any batch and sequence length."""

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import onnxscript  # noqa: F401 (torch.onnx needs it: better missed now than there)
import torch
from torch import Tensor, nn

from denet_torch.layers import Bidirectional

from .torch_files import model

OPSET = 20


def write_onnx(tensors: dict[str, np.ndarray], config: dict, path: Path, detection: str = "") -> None:
    """Input "waveform" (batch, frames, samples), output "logits" (batch, frames, n_classes); `config` in the metadata."""
    net = model(tensors, config)
    net.gru = OnnxGRU(net.gru)
    example = torch.zeros(2, 3, net.samples, dtype=net.conv1.weight.dtype)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it speaks of other people's operators
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["waveform"],
            output_names=["logits"],
            dynamic_shapes={"x": {0: "batch", 1: "frames"}},
            verbose=False,
        )
    program.model.metadata_props.update({"denet": json.dumps(config), "detection": detection})
    program.save(path, external_data=False)


class OnnxGRU(nn.Module):
    """The bidirectional GRU as ONNX's own operator, which also resets before the product: a loop over any number of frames."""

    def __init__(self, gru: Bidirectional):
        super().__init__()
        self.forward_gru, self.backward_gru = gru.forward_gru, gru.backward_gru

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        both = self.forward_gru, self.backward_gru
        kernels = torch.stack([gru.kernel.T for gru in both])  # (directions, 3 * units, in), gates z, r, h
        recurrent = torch.stack([gru.recurrent_kernel.T for gru in both])
        bias = torch.stack([torch.cat([gru.bias, torch.zeros_like(gru.bias)]) for gru in both])  # its second bias is not used
        y = torch.onnx.ops.symbolic(
            "GRU",
            (x.transpose(0, 1), kernels, recurrent, bias),
            {
                "hidden_size": both[0].units,
                "direction": "bidirectional",
                "linear_before_reset": 0,
                "activations": ["HardSigmoid", "Tanh"] * 2,
                "activation_alpha": [0.2] * 2,  # hard_sigmoid is clip(0.2 x + 0.5, 0, 1)
                "activation_beta": [0.5] * 2,
            },
            dtype=x.dtype,
            shape=(steps, 2, batch, both[0].units),
            version=OPSET,
        )
        return y.sum(dim=1).transpose(0, 1)
