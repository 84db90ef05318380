"""Devices and precision of a run, and what is read from a device in a step: once, when all is done but the weights."""

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import Tensor

from .bfloat16 import cpu_has
from .config import Config, TrainingError

SKIPS_IN_A_ROW = 50  # more steps left out one after another than this end the run


def get_fabric(config: Config) -> Fabric:
    """Devices and precision as the configuration says."""
    on_gpu = config.accelerator == "gpu" or config.accelerator == "auto" and torch.cuda.is_available()
    if on_gpu and not torch.cuda.is_available():
        raise TrainingError("--accelerator gpu: PyTorch sees no GPU on this machine")
    if on_gpu and config.devices > (there := torch.cuda.device_count()):
        raise TrainingError(f"--devices {config.devices}: PyTorch sees {there} on this machine (CUDA_VISIBLE_DEVICES hides some)")
    if not config.amp:
        dtype = "float32"
    elif config.amp_dtype == "auto":
        dtype = "float16" if on_gpu else "bfloat16" if cpu_has("bf16") else "float32"
    else:
        dtype = config.amp_dtype
    device = "cuda" if on_gpu else "cpu"
    mixed = {"float16": "16-mixed", "bfloat16": "bf16-mixed", "float32": None}[dtype]
    if on_gpu and mixed:
        torch.set_float32_matmul_precision("high")  # TF32, as exact as float16, for what stays float32 because of its range
    plugins = Mixed(mixed, device) if mixed else None
    return Fabric(accelerator=device, devices=config.devices, num_nodes=config.nodes, plugins=plugins)


class Mixed(MixedPrecision):
    """Fabric's mixed precision for a caller that looks whether gradients are finite before it steps.

    What the model is given is not rounded: bfloat16 would leave a waveform 8 bits. Fabric's `GradScaler.step` would look again,
    and wait for the device again, and have a fused optimizer unscale the gradients after they were clipped.
    """

    def convert_input(self, data):
        return data

    def unscale_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def optimizer_step(self, optimizer: torch.optim.Optimizer, **kwargs):
        """The step of gradients that were unscaled (clipping does it) and are finite."""
        result = optimizer.step(**kwargs)
        if self.scaler is not None:
            self.scaler.update()
        return result

    def leave_out(self) -> bool:
        """After unscaled gradients that are not finite: lower the scale. False where there is none to lower."""
        if self.scaler is not None:
            self.scaler.update()
        return self.scaler is not None


def read_numbers(*numbers: Tensor) -> list[float]:
    """Numbers of a device, by one copy to the host, which waits for all that they are made of."""
    return torch.stack([number.detach() for number in numbers]).cpu().tolist()
