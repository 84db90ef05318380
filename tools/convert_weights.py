"""Convert DENet's weights between PyTorch, Keras, TensorFlow, numpy and ONNX files.

    denet convert original.h5 model.safetensors --attention attention.npz

SOURCE can be HDF5 of any Keras, .keras, .npz, .safetensors, .pt, a TensorFlow checkpoint, SavedModel or frozen graph: its
contents tell, whatever its name. TARGET's ending tells what is written. Everything that the weights determine is
inferred and checked against the options given. Keras 2.2.4 never saves the attention branch in .h5: give it with
--attention. Neither TensorFlow nor PyTorch is needed for HDF5, .keras, .npz and .safetensors.
A model_raw.pkl of SincNet becomes a .safetensors: its weights are read, nothing in it is executed.
"""

import sys
from pathlib import Path

import denet_program
from tools.weights import Weights, WeightsError
from tools.weights.convert import WRITERS, convert
from training.options import Parser, show, tell

POSITIONS = {"before": True, "after": False}
NOT_VOUCHED_FOR = 3  # exit code of --verify


def parser(prog: str = "python -m tools.convert_weights") -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file or folder to read")
    parser.add_argument("target", type=Path, metavar="TARGET", help=f"file to write: {' '.join(WRITERS)}")
    parser.add_argument("--attention", metavar="FILE|init", help="the attention weights that SOURCE lacks")
    parser.add_argument("--attention-position", choices=POSITIONS, help="attention before or after the first pooling")
    parser.add_argument("--classes", type=int, metavar="N", help="number of classes, checked")
    parser.add_argument("--samples", type=int, metavar="N", help="frame length; weights tell it up to the pooling's rounding")
    parser.add_argument("--seq-len", type=int, metavar="N", help="frames in a sequence (default 10)")
    parser.add_argument("--sr", type=int, metavar="HZ", help="sampling rate (default: what the filters tell, else 16000)")
    parser.add_argument("--dropout", type=float, metavar="RATE", help="rate for training on (default 0.3)")
    compare = "run both and print the largest difference (exit code 1 if it is no rounding, 3 if it rests on an assumption)"
    parser.add_argument("--verify", action="store_true", help=compare)
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m tools.convert_weights") -> int:
    options = parser(prog).parse_args(arguments)
    if options.source.suffix == ".pkl":
        return convert_sincnet(options.source, options.target, options.sr)
    asked = {
        "n_classes": options.classes,
        "sr": options.sr,
        "seq_len": options.seq_len,
        "samples": options.samples,
        "before_pooling": POSITIONS.get(options.attention_position),
        "dropout": options.dropout,
    }
    try:
        weights, config, notes = convert(
            options.source, options.target, options.attention, {key: value for key, value in asked.items() if value is not None}
        )
    except WeightsError as error:
        tell("error", error)
        return 2
    for name, tensor in weights.tensors.items():
        show(f"{name:34} {str(tensor.shape):14} {weights.origin[name]}")
    print("architecture: " + ", ".join(f"{key}={value}" for key, value in config.items()))
    for note in notes:
        show(f"note: {note}")
    show(f"wrote {options.target}")
    return verify(weights, config, options.target) if options.verify else 0


def convert_sincnet(source: Path, target: Path, sr: int | None) -> int:
    """Convert a model_raw.pkl; print where each weight came from and what was assumed."""
    from tools.weights.sincnet_pkl import convert_sincnet as convert  # PyTorch takes seconds

    try:
        model, origin, notes = convert(source, target, sr)
    except WeightsError as error:
        tell("error", error)
        return 2
    for name, tensor in model.state_dict().items():
        show(f"{name:34} {str(tuple(tensor.shape)):14} {origin[name]}")
    print("architecture: SincNet, " + ", ".join(f"{key}={value}" for key, value in model.config.items()))
    for note in notes:
        show(f"note: {note}")
    show(f"wrote {target}")
    return 0


def verify(weights: Weights, config: dict, target: Path) -> int:
    """Print how far `target` is from each reference; 1 if any is farther than rounding, 3 if all rests on an assumption."""
    from tools.weights.verify import TOLERANCE, differences  # PyTorch takes seconds

    found = differences(weights, config, target)
    for reference, difference in found.items():
        show(f"largest difference of a probability from {reference}: {difference:.1e}")
    if not max(found.values()) <= TOLERANCE:
        tell("error", f"{target}: differs by more than rounding ({TOLERANCE:.0e})")
        return 1
    unconfirmed = [] if weights.recorded else weights.assumed  # recorded predictions are the original's own
    for assumption in unconfirmed:
        print(f"not vouched for: {assumption}", file=sys.stderr)
    return NOT_VOUCHED_FOR if unconfirmed else 0


if __name__ == "__main__":
    denet_program.run(main)
