"""What a TensorFlow 1 session of the original leaves: variables by their names, the attention's among them, and others."""

import numpy as np
import pytest
from weight_cases import SMALL, draw_tensors, same

from denet_torch.architecture import ATTENTION, keras_name, transposed
from tools.weights import WeightsError
from tools.weights.convert import convert
from tools.weights.rate import initial_cuts
from tools.weights.verify import TOLERANCE, differences

LARGE = SMALL | {"input_shape": [10, 400, 1], "n_filters": 80, "gru_units": 2048, "dense_units": [1024, 512], "sr": 8000}
WRAPPED = {"sinc": 1, "conv1": 6, "norm1": 8, "conv2": 11, "norm2": 13, "dense1": 17, "batch_norm1": 18, "dense2": 21}
WRAPPED |= {"batch_norm2": 22, "dense3": 25}


def original_name(name: str, shift: int) -> str:
    """Name of a variable in Keras 2.2.4 on TensorFlow 1.13, in a process that has built `shift` layers before."""
    layer, leaf = keras_name(name).rsplit("/", 1)
    if name in ATTENTION:
        kind, number = layer.split("/")[1][:-1], layer[-1]
        return f"time_distributed_{2 + shift}/sequential_1/{kind.replace('conv', 'conv1d')}_{number}/{leaf}"
    if layer.startswith("gru/"):
        return f"bidirectional_1/{layer[4:]}_1/{leaf}"
    return f"time_distributed_{WRAPPED[layer] + shift}/" + (f"layer_norm_{layer[-1]}_{leaf}" if "norm" in layer[:4] else leaf)


@pytest.mark.parametrize("config, shift", [(SMALL, 0), (SMALL, 90), (LARGE, 0)], ids=["small", "later", "original"])
def test_checkpoint_saved_model_and_frozen_graph(tmp_path, config, shift):
    import tensorflow as tf

    v1, tensors = tf.compat.v1, draw_tensors(config)
    if config is LARGE:
        tensors = {name: tensor if name.endswith("variance") else 0.1 * tensor for name, tensor in tensors.items()}
        low, high = initial_cuts(8000, 80).reshape(2, 80).astype("float32")
        tensors |= {"sinc.filt_b1": low, "sinc.filt_band": high - low}
    with tf.Graph().as_default() as graph, v1.Session() as session:
        for name, tensor in tensors.items():
            stored = original_name(name, shift)
            array = transposed(name, tensor)
            place = v1.placeholder(tf.float32, array.shape)
            variable = v1.Variable(place, name=stored, use_resource=False)
            session.run(variable.initializer, {place: array})
        for name in (f"time_distributed_{1 + shift}/Variable", "training/Adam/Variable", "time_distributed_6/kernel/Adam"):
            session.run(v1.Variable(np.zeros(7, "float32"), name=name, use_resource=False).initializer)
        v1.train.Saver().save(session, str(tmp_path / "model.ckpt"))
        output = tf.add_n([tf.reduce_sum(v) for v in v1.global_variables()], name="y")
        x = v1.placeholder(tf.float32, [1])
        v1.saved_model.simple_save(session, str(tmp_path / "simple"), {"x": x}, {"y": output})
        frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["y"])
        (tmp_path / "frozen.pb").write_bytes(frozen.SerializeToString())
    seq_len, samples, _ = config["input_shape"]
    asked = {"seq_len": seq_len} | ({} if config is LARGE else {"samples": samples})
    for source in ("model.ckpt", "model.ckpt.index", "simple", "frozen.pb"):
        weights, found, _ = convert(tmp_path / source, tmp_path / "a.safetensors", asked=asked)
        assert same(weights.tensors, tensors), source
        assert found == config, source
    assert max(differences(weights, config, tmp_path / "a.safetensors").values()) <= TOLERANCE
    (tmp_path / "cut.pb").write_bytes((tmp_path / "frozen.pb").read_bytes()[:-9])
    with pytest.raises(WeightsError, match="cut.pb: cannot be read as a TensorFlow graph"):
        convert(tmp_path / "cut.pb", tmp_path / "b.safetensors")
