"""Take every weight out of a live model of the original DENet, and put them back.

Copy this one file into the environment that the original runs in (Python 3.5 to 3.7, Keras 2.2.4, numpy):

    from keras224_export import export, restore
    export(model, "all.npz")     # every weight, the attention branch included, which Keras's own files lack
    restore(model, "all.npz")    # the way back, into a model of the same architecture

`python -m tools.convert_weights all.npz model.safetensors` takes it from there. The file also holds the architecture, two
drawn sequences "x" and what the live model predicts for them, "y", so that the conversion can be checked (--verify).
"""

# ruff: noqa: B905, UP032 (zip's `strict` and f-strings are younger than Python 3.5)

import json

import numpy as np

# Layers with weights in the order of the model, and their weights in the order of get_weights().
LAYERS = [
    ("SincConv1D", ["sinc/filt_b1", "sinc/filt_band"]),
    ("Conv1D", ["conv1/kernel", "conv1/bias"]),
    ("LayerNorm", ["norm1/scale", "norm1/bias"]),
    ("Conv1D", ["conv2/kernel", "conv2/bias"]),
    ("LayerNorm", ["norm2/scale", "norm2/bias"]),
    ("Bidirectional", [
        "gru/" + direction + "_gru/" + leaf
        for direction in ("forward", "backward")
        for leaf in ("kernel", "recurrent_kernel", "bias")
    ]),
    ("Dense", ["dense1/kernel", "dense1/bias"]),
    ("BatchNormalization", ["batch_norm1/" + leaf for leaf in ("gamma", "beta", "moving_mean", "moving_variance")]),
    ("Dense", ["dense2/kernel", "dense2/bias"]),
    ("BatchNormalization", ["batch_norm2/" + leaf for leaf in ("gamma", "beta", "moving_mean", "moving_variance")]),
    ("Dense", ["dense3/kernel", "dense3/bias"]),
]
ATTENTION = [
    "attention/" + layer + "/" + leaf
    for layer in ("conv1", "conv2", "conv3", "dense1", "dense2", "dense3")
    for leaf in ("kernel", "bias")
]


def export(model, path, sr=None):
    """Write every weight of `model`, its architecture and two predictions to the .npz file `path`.

    `sr`: sampling rate in Hz, needed only if the SincConv1D does not tell it. Raises ValueError if `model` is no DENet, or if
    what it computes from its last weights is not DENet's softmax.
    """
    _check_head(model)
    arrays = {}
    for layer, names in _named_layers(model):
        arrays.update(zip(names, layer.get_weights()))
    arrays.update(zip(ATTENTION, _attention(model).get_weights()))
    config = architecture(model, sr)
    seq_len, samples, _ = config["input_shape"]
    x = 0.1 * np.random.RandomState(0).standard_normal((2, seq_len or 10, samples, 1))
    x = x.astype(arrays["conv1/kernel"].dtype)
    y = model.predict(x)
    if y.shape != x.shape[:2] + (config["n_classes"],):
        raise ValueError("no DENet: of " + str(x.shape) + " it makes " + str(y.shape))
    np.savez(path, config=np.array(json.dumps(config)), x=x, y=y, **arrays)


def restore(model, path):
    """Put the weights in the .npz file `path` into `model`, attention branch included.

    Raises ValueError, before anything is written, if a shape, the sampling rate or the attention's place is another.
    """
    layers = _named_layers(model) + [(_attention(model), ATTENTION)]
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    for layer, names in layers:
        for name, old in zip(names, layer.get_weights()):
            if name not in arrays:
                raise ValueError(path + ": " + name + " is missing")
            if arrays[name].shape != old.shape:
                raise ValueError(path + ": " + name + " is " + str(arrays[name].shape) + ", in the model " + str(old.shape))
    stated = json.loads(str(arrays["config"])) if "config" in arrays else {}
    live = architecture(model, stated.get("sr") if _rate(model) is None else None)
    for key in ("sr", "before_pooling"):
        if stated.get(key, live[key]) != live[key]:
            raise ValueError(path + ": " + key + " is " + str(stated[key]) + ", in the model " + str(live[key]))
    samples = stated.get("input_shape", live["input_shape"])[1]
    if samples != live["input_shape"][1]:
        raise ValueError(path + ": frames of " + str(samples) + " samples, in the model " + str(live["input_shape"][1]))
    for layer, names in layers:
        layer.set_weights([arrays[name] for name in names])


def architecture(model, sr=None):
    """The arguments of denet_torch.DENet that `model` was built with, as a dict."""
    layers = _layers(model)
    kinds = [type(layer).__name__ for layer in layers]
    weights = {}
    for layer, names in _named_layers(model):
        weights.update(zip(names, layer.get_weights()))
    told = _rate(model)
    if sr is None:
        sr = told
    if sr is None:
        raise ValueError("the SincConv1D does not tell its sampling rate: say export(model, path, sr=16000)")
    if told is not None and told != sr:
        raise ValueError("sr is " + str(sr) + ", but the SincConv1D was made for " + str(told))
    shape = tuple(model.input_shape[1:]) if isinstance(model.input_shape, tuple) else ()
    if len(shape) != 3 or shape[1] is None or shape[2] != 1:
        raise ValueError("no DENet: its input is " + str(model.input_shape) + "; if it lies within this model, export that layer")
    dropouts = [layer.rate for layer in layers if type(layer).__name__ in ("SpatialDropout1D", "Dropout")]
    return {
        "input_shape": [None if n is None else int(n) for n in shape],  # None: sequences of any length
        "n_classes": int(weights["dense3/bias"].shape[0]),
        "sr": int(sr),
        "before_pooling": kinds.index("DELayer") < kinds.index("MaxPooling1D"),
        "dropout": float(dropouts[0]) if dropouts else 0.0,
        "train_attention": True,
        "attention_dropout": False,
        "n_filters": int(weights["sinc/filt_b1"].shape[0]),
        "gru_units": int(weights["gru/forward_gru/recurrent_kernel"].shape[0]),
        "dense_units": [int(weights["dense1/bias"].shape[0]), int(weights["dense2/bias"].shape[0])],
    }


def _rate(model):
    """The sampling rate that the SincConv1D of `model` was made for, None if it does not tell."""
    for layer in _layers(model):
        if type(layer).__name__ == "SincConv1D":
            for name in ("fs", "sr", "sample_rate"):
                if hasattr(layer, name):
                    return getattr(layer, name)
    return None


def _check_head(model):
    """Raise ValueError unless the last Dense has a softmax, and nothing but dropout comes behind it."""
    head = []
    for layer in _layers(model):
        if type(layer).__name__ == "Dense":
            head = []
        activation = getattr(getattr(layer, "activation", None), "__name__", "")
        head.append("softmax" if type(layer).__name__ == "Softmax" else activation or type(layer).__name__)
    head = [kind for kind in head if kind not in ("Dropout", "InputLayer")]
    if head not in (["softmax"], ["linear", "softmax"]):
        raise ValueError("no DENet: behind the last dense layer it has " + ", ".join(head) + " where DENet has a softmax")


def _layers(model):
    """The layers of `model`, out of their TimeDistributed wrappers and out of models within it."""
    result = []
    for layer in model.layers:
        while type(layer).__name__ == "TimeDistributed":
            layer = layer.layer
        result.extend(_layers(layer) if hasattr(layer, "layers") else [layer])
    return result


def _named_layers(model):
    """[(layer, names of its weights)], the attention left out."""
    layers = [layer for layer in _layers(model) if layer.get_weights() and type(layer).__name__ != "DELayer"]
    kinds = [type(layer).__name__ for layer in layers]
    if kinds != [kind for kind, _ in LAYERS]:
        raise ValueError("no DENet: its layers with weights are " + ", ".join(kinds))
    return [(layer, names) for layer, (_, names) in zip(layers, LAYERS)]


def _attention(model):
    """The small network inside of the DELayer, which is not registered with it."""
    found = [layer for layer in _layers(model) if type(layer).__name__ == "DELayer"]
    if len(found) != 1:
        raise ValueError("no DENet: it has " + str(len(found)) + " DELayers")
    for value in list(vars(found[0]).values()):
        if hasattr(value, "get_weights") and len(value.get_weights()) == len(ATTENTION):
            return value
    raise ValueError("the DELayer has no network of " + str(len(ATTENTION)) + " weights; has the model predicted yet?")
