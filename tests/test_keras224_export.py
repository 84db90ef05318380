"""The exporter, in a live model built as the original's is: tf_keras stands in for Keras 2.2.4."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from weight_cases import SMALL, draw_tensors, same

from denet_torch import load
from denet_torch.architecture import ATTENTION
from tools import keras224_export
from tools.weights.convert import convert

SOURCE = Path(keras224_export.__file__).read_text()


def test_is_python_3_5_and_needs_only_numpy():
    tree = ast.parse(SOURCE, feature_version=(3, 5))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert imported == ["json", "numpy"]
    newer = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.ImportFrom, ast.Match, ast.TryStar)
    assert not [node for node in ast.walk(tree) if isinstance(node, newer)]
    arguments = [node for node in ast.walk(tree) if isinstance(node, ast.arguments)]
    assert not [a for a in arguments if a.posonlyargs]
    constants = [ast.get_source_segment(SOURCE, n) for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    assert not [text for text in constants if isinstance(text, str) and text[:1].isdigit() and "_" in text]


@pytest.mark.parametrize("newer", ["f'{x}'", "x: int = 1", "1_000", "async def f():\n    return [x async for x in y]"])
def test_that_check_knows_newer_syntax(newer):
    with pytest.raises(SyntaxError):
        ast.parse(newer, feature_version=(3, 5))


def original_model(
    before_pooling=True,
    dropout=0.3,
    samples=300,
    sr=16000,
    seq_len=4,
    classes=3,
    head="softmax",
    registered=False,
    sizes=(5, 3, 5, 6),
    seed=0,
):
    """The published `get_denet`, layer by layer, its DELayer hiding the attention network from Keras as there."""
    filters, units, *dense = sizes
    import tf_keras
    from tf_keras import layers

    tf_keras.utils.set_random_seed(seed)  # of 45 draws of its weights one was off by 3.6e-7: a rare one may be by 1e-6

    import reference_tf.layers as reference

    class SincConv1D(reference.SincConv1D):
        def __init__(self, filters, taps, fs):
            super().__init__(filters, taps, fs)
            self.fs = fs

    class LayerNorm(reference.LayerNorm):
        pass

    class DELayer(layers.Layer):
        def build(self, shape):
            super().build(shape)
            network = tf_keras.Sequential(
                [
                    layers.Conv1D(30, 7, strides=2, activation="relu", input_shape=(shape[1], 1)),
                    layers.Conv1D(30, 7, strides=3, activation="relu"),
                    layers.Conv1D(10, 7, strides=3, activation="relu"),
                    layers.Flatten(),
                    layers.Dense(128, activation="relu"),
                    layers.Dense(64, activation="relu"),
                    layers.Dense(1),
                ]
            )
            if registered:
                self._mlp = network
            else:
                object.__setattr__(self, "_mlp", network)

        def call(self, x):
            import tensorflow as tf

            scores = [self._mlp(x[:, :, band : band + 1]) for band in range(x.shape[2])]
            return tf.reduce_sum(x * tf.nn.softmax(tf.concat(scores, axis=1))[:, None, :], axis=2, keepdims=True)

    wrap = layers.TimeDistributed
    x = inputs = layers.Input((seq_len, samples, 1))
    x = wrap(SincConv1D(filters, 251, sr))(x)
    if before_pooling:
        x = wrap(DELayer())(x)
    x = wrap(layers.LeakyReLU())(wrap(layers.MaxPooling1D(3))(x))
    if dropout:
        x = wrap(layers.SpatialDropout1D(dropout))(x)
    if not before_pooling:
        x = wrap(DELayer())(x)
    for _ in range(2):
        x = wrap(LayerNorm())(wrap(layers.MaxPooling1D(3))(wrap(layers.Conv1D(60, 5))(x)))
        x = wrap(layers.LeakyReLU())(x)
        if dropout:
            x = wrap(layers.SpatialDropout1D(dropout))(x)
    x = wrap(layers.Flatten())(x)
    gru = layers.GRU(
        units, reset_after=False, recurrent_activation=reference.hard_sigmoid, dropout=dropout, return_sequences=True
    )
    x = layers.Bidirectional(gru, merge_mode="sum")(x)
    for units in dense:
        x = wrap(layers.LeakyReLU())(wrap(layers.BatchNormalization())(wrap(layers.Dense(units))(x)))
        if dropout:
            x = wrap(layers.Dropout(dropout))(x)
    return tf_keras.Model(inputs, wrap(layers.Dense(classes, activation=head))(x))


@pytest.mark.parametrize("before_pooling, dropout", [(True, 0.3), (False, 0.0)])
def test_every_way_out_of_a_live_model(tmp_path, before_pooling, dropout):
    import tf_keras

    model = original_model(before_pooling, dropout)
    x = np.random.default_rng(0).standard_normal((2, 4, 300, 1), dtype="float32")
    y = model.predict(x, verbose=0)

    def predicts_the_same(path):
        np.testing.assert_allclose(load(path).predict_proba(torch.from_numpy(x)), y, rtol=0, atol=1e-6)

    keras224_export.export(model, str(tmp_path / "all.npz"))
    weights, config, notes = convert(tmp_path / "all.npz", tmp_path / "a.safetensors")
    assert not notes and weights.recorded[1].shape == (2, 4, 3)
    expected = {"input_shape": [4, 300, 1], "before_pooling": before_pooling, "dropout": dropout, "n_filters": 5}
    assert config == SMALL | expected
    predicts_the_same(tmp_path / "a.safetensors")
    x_recorded, y_recorded = weights.recorded
    y_loaded = load(tmp_path / "a.safetensors").predict_proba(torch.tensor(x_recorded))
    np.testing.assert_allclose(y_loaded, y_recorded, rtol=0, atol=1e-6)

    # what Keras's own files hold: the weights but the attention's, with `save` also its position and the optimizer's state
    model.save_weights(str(tmp_path / "weights.h5"))
    convert(tmp_path / "weights.h5", tmp_path / "b.safetensors", str(tmp_path / "all.npz"))
    predicts_the_same(tmp_path / "b.safetensors")
    with open(tmp_path / "attention.npz", "wb") as file:
        with np.load(tmp_path / "all.npz") as arrays:
            np.savez(file, **{name: arrays[name] for name in arrays if name.startswith("attention/")})
    model.compile(tf_keras.optimizers.Adam(), "categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    for target, include_optimizer in (("with.h5", True), ("without.h5", False)):
        model.save(str(tmp_path / target), include_optimizer=include_optimizer)
        weights, config, notes = convert(tmp_path / target, tmp_path / "c.safetensors", str(tmp_path / "attention.npz"))
        assert config == SMALL | expected
        assert ("the optimizer's state is left out" in notes) == include_optimizer
        assert weights.known["before_pooling"] == before_pooling
        predicts_the_same(tmp_path / "c.safetensors")


def test_restore_puts_a_trained_model_into_a_live_one(tmp_path):
    model = original_model(True, 0.3)
    config = SMALL | {"input_shape": [4, 300, 1], "n_filters": 5}
    from tools.weights.npz import write_npz
    from tools.weights.safetensors_file import write_safetensors

    tensors = draw_tensors(config, seed=4)
    write_safetensors(tensors, config, tmp_path / "a.safetensors")
    write_npz(tensors, config, tmp_path / "all.npz")
    keras224_export.restore(model, str(tmp_path / "all.npz"))
    x = np.random.default_rng(0).standard_normal((2, 4, 300, 1), dtype="float32")
    expected = load(tmp_path / "a.safetensors").predict_proba(torch.from_numpy(x))
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=0, atol=1e-6)
    keras224_export.export(model, str(tmp_path / "again.npz"), sr=16000)
    weights, _, _ = convert(tmp_path / "again.npz", tmp_path / "b.safetensors")
    assert same(weights.tensors, tensors)

    # and the .h5 for the original goes in by its own means, all but the attention
    convert(tmp_path / "a.safetensors", tmp_path / "a.h5")
    other = original_model(True, 0.3, seed=1)
    other.load_weights(str(tmp_path / "a.h5"))
    mine = keras224_export._named_layers(model)
    theirs = keras224_export._named_layers(other)
    for (a, _), (b, _) in zip(mine, theirs, strict=True):
        assert all(np.array_equal(p, q) for p, q in zip(a.get_weights(), b.get_weights(), strict=True))


def test_a_model_within_a_model(tmp_path):
    import tf_keras

    model = original_model(True, 0.3)
    outer = tf_keras.Sequential([model])
    keras224_export.export(outer, str(tmp_path / "all.npz"))
    with np.load(tmp_path / "all.npz") as arrays:
        assert json.loads(str(arrays["config"]))["before_pooling"] is True
        assert sum(name.startswith("attention/") for name in arrays) == len(ATTENTION)


def test_what_is_no_denet(tmp_path):
    import tf_keras

    with pytest.raises(ValueError, match="no DENet"):
        keras224_export.export(tf_keras.Sequential([tf_keras.layers.Dense(1, input_shape=(2,))]), str(tmp_path / "a.npz"))
    assert not list(tmp_path.iterdir())


def test_variable_length_wrapped_frozen_and_refitted(tmp_path):
    import tf_keras

    model = original_model(seq_len=None)
    x = np.random.default_rng(0).standard_normal((2, 6, 300, 1), dtype="float32")
    for layer in model.layers[:9]:
        layer.trainable = False
    model.compile(tf_keras.optimizers.SGD(0.01), "categorical_crossentropy")
    model.fit(x, np.eye(3)[np.zeros((2, 6), int)], verbose=0)
    outer = tf_keras.Model(inner := tf_keras.layers.Input((None, 300, 1)), model(inner))
    for name, live in (("plain", model), ("wrapped", outer), ("sequential", tf_keras.Sequential([model]))):
        keras224_export.export(live, str(tmp_path / f"{name}.npz"))
        weights, config, _ = convert(tmp_path / f"{name}.npz", tmp_path / "a.safetensors")
        assert config["input_shape"] == [10, 300, 1]
        y = load(tmp_path / "a.safetensors").predict_proba(torch.from_numpy(x))
        np.testing.assert_allclose(y, model.predict(x, verbose=0), rtol=0, atol=1e-6)
        live.save_weights(str(tmp_path / f"{name}.h5"))
        live.save(str(tmp_path / f"{name}_full.h5"))
        for source in (f"{name}.h5", f"{name}_full.h5"):
            found, *_ = convert(tmp_path / source, tmp_path / "b.safetensors", str(tmp_path / "plain.npz"))
            assert same(found.tensors, weights.tensors)


def test_changed_heads_are_refused(tmp_path):
    import tf_keras

    softmax = original_model()
    behind = tf_keras.Model(softmax.input, tf_keras.layers.Lambda(lambda y: y[:, -1:])(softmax.output))
    apart = original_model(head="linear")
    apart = tf_keras.Model(apart.input, tf_keras.layers.Activation("softmax")(apart.output))
    keras224_export.export(softmax, str(tmp_path / "all.npz"))
    for model, refused in ((original_model(head="sigmoid"), "sigmoid"), (behind, "softmax, Lambda"), (apart, None)):
        model.save(str(tmp_path / "full.h5"))
        if refused is None:
            keras224_export.export(model, str(tmp_path / "b.npz"))
            convert(tmp_path / "full.h5", tmp_path / "a.safetensors", str(tmp_path / "b.npz"))
            continue
        with pytest.raises(ValueError, match=f"last dense layer it has {refused} where"):
            keras224_export.export(model, str(tmp_path / "b.npz"))
        with pytest.raises(ValueError, match=f"the model has {refused} where"):
            convert(tmp_path / "full.h5", tmp_path / "a.safetensors", str(tmp_path / "all.npz"))
        assert not (tmp_path / "b.npz").exists()


@pytest.mark.parametrize(
    "changes, message", [({"sr": 8000}, "sr is 16000, in the model 8000"), ({"classes": 2}, r"dense3/kernel is \(6, 3\)")]
)
def test_restore_checks_all_before_it_writes(tmp_path, changes, message):
    keras224_export.export(original_model(), str(tmp_path / "all.npz"))
    other = original_model(**changes, seed=1)
    before = other.get_weights()
    with pytest.raises(ValueError, match=message):
        keras224_export.restore(other, str(tmp_path / "all.npz"))
    assert all(np.array_equal(a, b) for a, b in zip(before, other.get_weights(), strict=True))


@pytest.mark.parametrize("size", ["small", "original"])
def test_tf_keras_checkpoints_hold_the_attention_where_it_is_registered(tmp_path, size):
    large = {"samples": 400, "sizes": (80, 2048, 1024, 512)} if size == "original" else {}
    model = original_model(registered=True, sr=8000, **large)
    x = np.random.default_rng(0).standard_normal((1, 4, large.get("samples", 300), 1), dtype="float32")
    y = model.predict(x, verbose=0)
    model.save_weights(str(tmp_path / "run"), save_format="tf")
    for source in (tmp_path / "run", tmp_path / "run.index"):
        _, config, _ = convert(source, tmp_path / "a.safetensors")
        assert config["sr"] == 8000
        np.testing.assert_allclose(load(tmp_path / "a.safetensors").predict_proba(torch.from_numpy(x)), y, rtol=0, atol=1e-6)
