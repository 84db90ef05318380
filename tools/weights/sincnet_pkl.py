"""`model_raw.pkl`, the weight file of mravanelli/SincNet: three state dicts that torch.save wrote. Nothing in it is executed."""

import pickle
import re
from pathlib import Path

import numpy as np
import torch

from denet_torch import checkpoint
from denet_torch.architecture import is_variance
from denet_torch.pickles import check_archive
from denet_torch.schema import architecture, shown
from denet_torch.sincnet import SincNet

from . import WeightsError
from .files import existing, line
from .torch_files import plain

PARTS = ("CNN_model_par", "DNN1_model_par", "DNN2_model_par")
NAMES = (  # name in the file -> the port's
    (r"CNN_model_par/conv\.0\.(low|band)_hz_", r"sinc.\1_hz"),
    (r"CNN_model_par/conv\.([1-9][0-9]{0,2})\.(weight|bias)", lambda found: f"convs.{int(found[1]) - 1}.{found[2]}"),
    (r"CNN_model_par/ln0\.(gamma|beta)", r"input_norm.\1"),
    (r"CNN_model_par/ln\.(\d+)\.(gamma|beta)", r"norms.\1.\2"),
    (r"DNN1_model_par/ln0\.(gamma|beta)", r"features_norm.\1"),
    (r"DNN1_model_par/wx\.(\d+)\.(weight|bias)", r"hidden.\1.\2"),
    (r"DNN1_model_par/bn\.(\d+)\.(weight|bias|running_mean|running_var)", r"batch_norms.\1.\2"),
    (r"DNN2_model_par/wx\.0\.(weight|bias)", r"output.\1"),
)
# Modules that the original builds whatever its configuration says, and that its published ones leave unused.
UNUSED = re.compile(
    r"CNN_model_par/bn\.\d+\.\w+|DNN[12]_model_par/ln\.\d+\.(gamma|beta)|DNN2_model_par/bn\.\d+\.\w+|.*\.num_batches_tracked"
)


def port_name(name: str) -> str | None:
    """The port's name of the weight "PART/NAME" of the original, None for one that it has and never uses.

    Raises KeyError for anything else.
    """
    for pattern, ours in NAMES:
        if found := re.fullmatch(pattern, name):
            return found.expand(ours) if isinstance(ours, str) else ours(found)
    if UNUSED.fullmatch(name):
        return None
    raise KeyError(name)


def convert_sincnet(source: Path, target: Path, sr: int | None) -> tuple[SincNet, dict[str, str], list[str]]:
    """Write the SincNet of `source` to `target`; the model, each weight's name in the file, and what the user should know.

    Raises WeightsError; `target` is then as it was.
    """
    if target.suffix != ".safetensors":
        raise WeightsError(f"{target}: weights of a SincNet are written as .safetensors")
    if not target.absolute().parent.is_dir():
        raise WeightsError(f"{target}: there is no folder {target.parent}")
    model, unused = read_sincnet(source, sr or 16000)
    try:
        checkpoint.save(model, target)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({line(error)})") from None
    notes = [] if sr else ["sr = 16000, which the file does not tell; say --sr if it is another"]
    notes.append(f"a chunk of {model.chunk} samples every {model.samples}")
    taps = model.config["taps"][0]
    notes.append(f"sinc filters of {taps} taps: the file tells them up to the pooling's rounding, and the window is not in it")
    notes.append("leaky ReLU after every layer, as in cfg/SincNet_TIMIT.cfg: the file does not tell")
    notes.append(f"{len(unused)} tensors that the original owns and never uses are left out")
    origin = {}
    for part, weights in original_parts(model).items():
        origin |= {port_name(f"{part}/{name}"): f"{part}/{name}" for name in weights}
    return model, origin, notes


def read_sincnet(path: Path, sr: int) -> tuple[SincNet, list[str]]:
    """The SincNet of a `model_raw.pkl`, in evaluation mode, and the weights that it never uses and leaves out.

    The file tells all sizes but the sampling rate `sr` (Hz). A hop is 10 ms, or what is nearest to that and divides a chunk.
    Raises WeightsError.
    """
    state, unused = _tensors(path)
    try:
        chunk = len(state["input_norm.gamma"])
        hidden = [len(tensor) for name, tensor in state.items() if re.fullmatch(r"hidden\.\d+\.bias", name)]
        convs = {name: tensor for name, tensor in state.items() if re.fullmatch(r"convs\.\d+\.weight", name)}
        filters = [len(state["sinc.low_hz"]), *(len(tensor) for tensor in convs.values())]
        # The sinc filters' length is not saved: steps of the norm behind them tell it up to the pooling's rounding.
        steps = state["norms.0.gamma"].shape[1]
        taps = [_odd_taps(path, chunk, steps), *(tensor.shape[2] for tensor in convs.values())]
        n_classes = len(state["output.bias"])
        hop = nearest_hop(chunk, sr)
        with torch.device("meta"):
            model = SincNet((chunk // hop, hop), n_classes, sr, n_filters=filters, taps=taps, hidden=hidden)
        architecture(model.config, model.name)
    except KeyError as error:
        raise WeightsError(f"{path}: {error.args[0]} is missing; is it a model_raw.pkl of SincNet?") from None
    except (ValueError, IndexError, TypeError) as error:  # TypeError: len() of a single number
        raise error if isinstance(error, WeightsError) else WeightsError(f"{path}: {line(error)}") from None
    expected = model.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        if name not in state:
            raise WeightsError(f"{path}: {name} is missing: its configuration is none of the published ones")
        if name not in expected:
            raise WeightsError(f"{path}: {name} is no weight of a SincNet")
        if state[name].shape != expected[name].shape:
            raise WeightsError(f"{path}: {name} is {tuple(state[name].shape)}, {tuple(expected[name].shape)} expected")
        if not torch.isfinite(state[name]).all():
            raise WeightsError(f"{path}: {name} holds values that are not finite numbers")
        if is_variance(name) and (state[name] < 0).any():
            raise WeightsError(f"{path}: {name} holds negative numbers, which no variance is")
    model.load_state_dict(state, assign=True)
    return model.eval(), unused


def nearest_hop(chunk: int, sr: int) -> int:
    """The divisor of `chunk` nearest to 10 ms, the smaller of equals."""
    return min((n for n in range(1, chunk + 1) if chunk % n == 0), key=lambda n: (abs(n - sr / 100), n))


def _odd_taps(path: Path, chunk: int, steps: int) -> int:
    """251, the published length, if it fits, else the shortest odd one that does."""
    fits = [taps for taps in range(1, chunk, 2) if (chunk - taps + 1) // 3 == steps]
    if not fits:
        raise WeightsError(f"{path}: no sinc filter leaves {steps} steps of a chunk of {chunk} samples")
    return 251 if 251 in fits else fits[0]


def _tensors(path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    try:
        check_archive(existing(path))
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # PyTorch's message advises to execute it
        raise WeightsError(f"{path}: holds something else than tensors, or is damaged; nothing in it was executed") from None
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, EOFError, IndexError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: is no file of tensors, or damaged ({line(error)})") from None
    if not isinstance(saved, dict) or set(saved) != set(PARTS) or not all(isinstance(saved[part], dict) for part in PARTS):
        raise WeightsError(f"{path}: is no model_raw.pkl; it should hold {', '.join(PARTS)}")
    state, unused, size = {}, [], path.stat().st_size
    for part in PARTS:
        for name, tensor in saved[part].items():
            name = f"{part}/{name if isinstance(name, str) else shown(name)}"
            if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
                raise WeightsError(f"{path}: {name} is no tensor")
            if tensor.numel() * tensor.element_size() > size:
                raise WeightsError(f"{path}: {name} is {tuple(tensor.shape)}, more than the file holds")
            try:
                ours = port_name(name)
            except KeyError:
                raise WeightsError(f"{path}: {name} is no weight of a SincNet") from None
            if ours is None:
                unused.append(name)
                continue
            if tensor.dtype not in (torch.float32, torch.float64):
                raise WeightsError(f"{path}: {name} is {tensor.dtype}; expected float32 or float64")
            state[ours] = plain(tensor).flatten() if ours.startswith("sinc.") else plain(tensor)
    if len({tensor.dtype for tensor in state.values()}) > 1:
        raise WeightsError(f"{path}: float32 and float64 weights in one file")
    return state, unused


def original_parts(model: SincNet) -> dict[str, dict[str, np.ndarray]]:
    """What the original's three parts hold of this model's weights, by their names there."""
    parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in PARTS}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        module, _, leaf = name.partition(".")
        if module == "sinc":
            parts["CNN_model_par"][f"conv.0.{leaf}_"] = values[:, None]
        elif module == "convs":
            number, _, kind = leaf.partition(".")
            parts["CNN_model_par"][f"conv.{int(number) + 1}.{kind}"] = values
        elif module in ("input_norm", "norms"):
            parts["CNN_model_par"]["ln0." + leaf if module == "input_norm" else "ln." + leaf] = values
        elif module == "output":
            parts["DNN2_model_par"]["wx.0." + leaf] = values
        else:
            prefix = {"features_norm": "ln0.", "hidden": "wx.", "batch_norms": "bn."}[module]
            parts["DNN1_model_par"][prefix + leaf] = values
    return parts
