"""A model in one file: weights, architecture and a checksum, in the safetensors format."""

import hashlib
import json
import socket
import urllib.parse
import urllib.request
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .architecture import checksum as arrays_checksum
from .architecture import is_variance
from .boxes import Boxes  # noqa: F401  # MODELS has a model once it is imported
from .card import model_card
from .files import UserError, printable, reason, replacing, write_safetensors
from .model import DENet  # noqa: F401
from .models import MODELS, Model
from .schema import MAX_ARCHITECTURE, MAX_DETECTION, Detection, architecture, shown
from .sincnet import SincNet  # noqa: F401

MAX_WEIGHTS = 1000  # arrays in a file; DENet has 36
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"  # the names that huggingface_hub's model mixin uses
CARD_FILE = "README.md"
RUNS_WEIGHTS = "weights.safetensors"  # in the folder of a run


class CheckpointError(UserError):
    """A weight file that cannot be used or written; the message is one line that begins with the path."""


def save(model: Model, path: str | Path) -> None:
    """Write `model` to the .safetensors file `path`, from which `load` rebuilds it with no other argument.

    The metadata holds `model.config` under the model's name ("denet"), `model.detection` where there is one, and a checksum
    over these and every weight ("sha256"). `local_step`, training state and no weight, is left out. `path` is replaced in one
    step, so that it is never half a file, and equal models give equal bytes. Raises CheckpointError.
    """
    path = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    config = json.dumps(model.config)
    detection = json.dumps(model.detection.as_dict()) if model.detection else ""
    metadata = {"format": "pt", model.name: config, "sha256": checksum(config + detection, tensors)}
    if detection:
        metadata["detection"] = detection
    try:
        with replacing(path) as partial:
            write_safetensors({name: tensor.numpy() for name, tensor in tensors.items()}, metadata, partial)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({reason(error)})") from None


def load(path: str | Path, sha256: str | None = None) -> Model:
    """Rebuild the model that `save` or `tools.convert_weights` wrote to `path`: on the CPU, in evaluation mode, in its dtype.

    `path` may also be the folder of a run, or one that `save_pretrained` wrote.
    `sha256`: digest of the whole file, hexadecimal, as its publisher states it. Raises CheckpointError, whose message is one
    line of at most 300 characters, if the file is missing, cut short, altered, another than `sha256` says, or of no model in
    `MODELS`.
    """
    path = weight_file(path)
    kind, config, detection, tensors = _read(path, sha256)
    try:
        config = architecture(config, kind.name)
        with torch.device("meta"):  # no memory and no time for initial weights
            model = kind(**config)
    except ImportError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path}: its architecture is not a {kind.__name__}'s ({reason(error)})") from None
    expected = model.state_dict()
    if odd := sorted(expected.keys() ^ tensors.keys()):
        wrong = "missing" if odd[0] in expected else f"no weight of a {kind.__name__}"
        raise CheckpointError(f"{path}: {printable(odd[0], 80)} is {wrong}")
    dtype = next(iter(tensors.values())).dtype
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            found, right = shown(tuple(tensor.shape)), tuple(expected[name].shape)
            raise CheckpointError(f"{path}: {name} is {found}, its architecture has {right}")
        if tensor.dtype not in (torch.float32, torch.float64) or tensor.dtype != dtype:
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}; expected float32 or float64, the same for every weight")
        if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():  # a tenth of the time of looking at each
            raise CheckpointError(f"{path}: {name} holds values that are not finite numbers")
        if is_variance(name) and tensor.min() < 0:
            raise CheckpointError(f"{path}: {name} holds negative numbers, which no variance is")
    model.load_state_dict(tensors, assign=True)
    try:
        model.detection = None if detection is None else Detection.from_dict(detection, model.n_classes)
    except ValueError as error:
        raise CheckpointError(f"{path}: its labels and decoding cannot be used ({reason(error)})") from None
    return model.eval()


def weight_file(path: str | Path) -> Path:
    """`path`, or of a folder the weights in it, where it has any."""
    found = [file for name in (RUNS_WEIGHTS, WEIGHTS_FILE) if (file := Path(path) / name).is_file()]
    return found[0] if found else Path(path)


def save_pretrained(model: Model, folder: str | Path, run: str | Path | None = None) -> None:
    """Write `model` to `folder` as model.safetensors and config.json, as the Hugging Face Hub has them, and README.md.

    `run`: the folder of the run that made it, whose scores and provenance README.md then has. A README.md that is there stays.
    `hf upload NAME FOLDER` publishes the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder / WEIGHTS_FILE)
    if not (folder / CARD_FILE).exists():  # a person may have written more there
        (folder / CARD_FILE).write_text(model_card(model, run), encoding="utf-8")
    (folder / CONFIG_FILE).write_text(json.dumps(model.config, indent=2) + "\n")


def from_pretrained(name_or_folder: str | Path, revision: str | None = None, cache_dir: str | None = None) -> Model:
    """Load what `save_pretrained` wrote, from a folder, or, if there is none of that name, from that repository of the Hub.

    `revision` (a branch, tag or commit) and `cache_dir` are `huggingface_hub.hf_hub_download`'s. Raises CheckpointError.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        return load(folder / WEIGHTS_FILE)
    from huggingface_hub import hf_hub_download  # only those who download need it
    from huggingface_hub.constants import ENDPOINT as HF_ENDPOINT
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # huggingface_hub tries for half a minute to reach a Hub that is not there, for a folder's name with a typing error too.
    cached_only = {"local_files_only": True} if _out_of_reach(HF_ENDPOINT) else {}
    try:
        path = hf_hub_download(str(name_or_folder), WEIGHTS_FILE, revision=revision, cache_dir=cache_dir, **cached_only)
        return load(path)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise CheckpointError(f"{name_or_folder}: no such folder, and not to be had from the Hub ({reason(error)})") from None


def _out_of_reach(url: str) -> bool:
    """Whether the host of `url` has no address here; a proxy, where there is one, may know it."""
    if urllib.request.getproxies():
        return False
    try:
        return not socket.getaddrinfo(urllib.parse.urlsplit(url).hostname, None)
    except OSError:
        return True


def checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """`denet_torch.architecture.checksum` of tensors on the CPU."""
    return arrays_checksum(text, tensors, lambda tensor: tensor.reshape(-1).view(torch.uint8).numpy())


def _read(path: Path, sha256: str | None) -> tuple[type[Model], dict, dict | None, dict[str, Tensor]]:
    if not path.is_file():
        folder = f"is a folder without {RUNS_WEIGHTS} or {WEIGHTS_FILE}"
        raise CheckpointError(f"{path}: {folder if path.is_dir() else 'no such file'}")
    try:
        if sha256 is not None:
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256.strip().lower():
                raise CheckpointError(f"{path}: is another file than asked for: its SHA-256 is {found}, not {shown(sha256, 80)}")
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            name = next((name for name in MODELS if name in metadata), None)
            if name is None or "sha256" not in metadata:
                help = "see python -m tools.convert_weights --help"
                raise CheckpointError(f"{path}: has no DENet architecture or other model's in its metadata ({help})")
            if len(names) > MAX_WEIGHTS:
                raise CheckpointError(f"{path}: holds {len(names)} arrays, which no model has")
            for key, limit in ((name, MAX_ARCHITECTURE), ("detection", MAX_DETECTION)):
                if len(metadata.get(key, "")) > limit:
                    raise CheckpointError(f"{path}: states its {key} in more than {limit} characters, as none of ours does")
            # Copies begin at whole cache lines; weights in a file do not, and vectors that cross two lines are slower to read.
            tensors = {key: file.get_tensor(key).clone() for key in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({reason(error)})") from None
    if checksum(metadata[name] + metadata.get("detection", ""), tensors) != metadata["sha256"]:
        raise CheckpointError(f"{path}: damaged, its checksum does not match")
    try:
        config = json.loads(metadata[name])
        detection = json.loads(metadata.get("detection", "null"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its architecture cannot be read ({reason(error)})") from None
    return MODELS[name], config, detection, tensors
