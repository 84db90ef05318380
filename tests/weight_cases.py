"""Architectures and weights for the tests of the weight files: small, and drawn by hypothesis."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from denet_torch.architecture import attention_steps, shapes

SMALL = {  # a few hundred kilobytes
    "input_shape": [4, 100, 1],
    "n_classes": 3,
    "sr": 16000,
    "before_pooling": True,
    "dropout": 0.3,
    "train_attention": True,
    "attention_dropout": False,
    "n_filters": 4,
    "gru_units": 3,
    "dense_units": [5, 6],
}


FORMATS = (".safetensors", ".npz", ".keras", ".weights.h5", ".h5")


@st.composite
def configs(draw) -> dict:
    before_pooling = draw(st.booleans())
    shortest = next(n for n in range(75, 400) if attention_steps(n if before_pooling else n // 3) >= 1)
    return {
        "input_shape": [draw(st.integers(1, 12)), draw(st.integers(shortest, shortest + 300)), 1],
        "n_classes": draw(st.integers(1, 5)),
        "sr": draw(st.sampled_from([8000, 16000, 250000])),
        "before_pooling": before_pooling,
        "dropout": draw(st.sampled_from([0.0, 0.1, 0.3])),
        "train_attention": draw(st.booleans()),
        "attention_dropout": draw(st.booleans()),
        "n_filters": draw(st.integers(1, 6)),
        "gru_units": draw(st.integers(1, 5)),
        "dense_units": [draw(st.integers(1, 6)), draw(st.integers(1, 6))],
    }


def asked(config: dict) -> dict:
    """What a user says who knows everything about a model."""
    seq_len, samples, _ = config["input_shape"]
    keys = ("n_classes", "sr", "before_pooling", "dropout")
    return {"seq_len": seq_len, "samples": samples} | {key: config[key] for key in keys}


def draw_tensors(config: dict, seed: int = 0, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Random weights for DENet(**config), variances positive."""
    rng = np.random.default_rng(seed)
    tensors = {name: (0.3 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes(config).items()}
    return {name: abs(tensor) + 0.5 if name.endswith("variance") else tensor for name, tensor in tensors.items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """True if both hold the same names with arrays equal in every bit."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and a[name].tobytes() == b[name].tobytes() for name in a
    )


def whole_files() -> dict[str, bytes]:
    """A whole file of each format that needs neither PyTorch nor TensorFlow, by its ending."""
    from tools.weights.convert import WRITERS

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for ending in FORMATS:
            WRITERS[ending](draw_tensors(SMALL), SMALL, Path(folder) / "a")
            found[ending] = (Path(folder) / "a").read_bytes()
    return found
