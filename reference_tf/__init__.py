"""DENet (Greco et al. 2021) on today's TensorFlow: what `denet_torch` is proven against. Mirrors `denet_torch/__init__.py`."""

import tensorflow as tf
import tf_keras

from .layers import (
    BatchNorm,
    Bidirectional,
    Conv1D,
    DELayer,
    Dense,
    Dropout,
    LayerNorm,
    SincConv1D,
    SpatialDropout1D,
    leaky_relu,
    max_pool,
    softmax,
)

__all__ = ["DENet", "get_denet"]


@tf_keras.saving.register_keras_serializable("reference_tf")
class DENet(tf_keras.Model):
    """The whole network, with the arguments of `denet_torch.DENet` and the numeric type `dtype`.

    `train_attention=False` leaves the attention branch unregistered, as the original does: it computes, but is not among the
    model's weights, is not trained and not saved.
    """

    def __init__(
        self,
        input_shape,
        n_classes,
        sr=16000,
        before_pooling=True,
        dropout=0.3,
        *,
        train_attention=True,
        attention_dropout=False,
        n_filters=80,
        gru_units=2048,
        dense_units=(1024, 512),
        dtype="float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        self.seq_len, self.samples = input_shape[:2]
        self.before_pooling = before_pooling
        self.config = {
            "input_shape": [self.seq_len, self.samples, 1],
            "n_classes": n_classes,
            "sr": sr,
            "before_pooling": before_pooling,
            "dropout": dropout,
            "train_attention": train_attention,
            "attention_dropout": attention_dropout,
            "n_filters": n_filters,
            "gru_units": gru_units,
            "dense_units": list(dense_units),
        }
        self.sinc = SincConv1D(n_filters, 251, sr, dtype=dtype)
        attention = DELayer(rate=dropout if attention_dropout else 0.0, dtype=dtype)
        if train_attention:
            self.attention = attention
        else:
            object.__setattr__(self, "attention", attention)  # past Keras's attribute tracking
        self.conv1 = Conv1D(60, 5, dtype=dtype)
        self.norm1 = LayerNorm(dtype=dtype)
        self.conv2 = Conv1D(60, 5, dtype=dtype)
        self.norm2 = LayerNorm(dtype=dtype)
        self.spatial_dropout = SpatialDropout1D(dropout, dtype=dtype)
        self.gru = Bidirectional(gru_units, dropout, dtype=dtype)
        self.dense1 = Dense(dense_units[0], dtype=dtype)
        self.batch_norm1 = BatchNorm(dtype=dtype)
        self.dense2 = Dense(dense_units[1], dtype=dtype)
        self.batch_norm2 = BatchNorm(dtype=dtype)
        self.dense3 = Dense(n_classes, dtype=dtype)
        self.dropout = Dropout(dropout, dtype=dtype)
        self(tf.zeros((1, self.seq_len, self.samples), dtype))  # creates the weights

    def get_config(self):
        return {**self.config, "dtype": self.dtype, "name": self.name}

    def call(self, x, training=False):
        """Logits (batch, seq_len, n_classes) of waveforms (batch, seq_len, samples) or (batch, seq_len, samples, 1)."""
        seq_len = x.shape[1]
        x = tf.reshape(x, (-1, self.samples, 1))  # each frame on its own
        x = self.sinc(x)  # (B * T, samples, filters)
        if self.before_pooling:
            x = self.attention(x, training=training)  # (B * T, samples, 1)
        x = self.spatial_dropout(leaky_relu(max_pool(x)), training=training)
        if not self.before_pooling:
            x = self.attention(x, training=training)  # (B * T, samples // 3, 1)
        x = self.spatial_dropout(leaky_relu(self.norm1(max_pool(self.conv1(x)))), training=training)
        x = self.spatial_dropout(leaky_relu(self.norm2(max_pool(self.conv2(x)))), training=training)
        x = tf.reshape(x, (-1, seq_len, x.shape[1] * x.shape[2]))  # steps outer, channels inner
        x = self.gru(x, training=training)  # (B, T, units)
        x = self.dropout(leaky_relu(self.batch_norm1(self.dense1(x), training=training)), training=training)
        x = self.dropout(leaky_relu(self.batch_norm2(self.dense2(x), training=training)), training=training)
        return self.dense3(x)

    def predict_proba(self, x):
        """Class probabilities (batch, seq_len, n_classes) in evaluation mode, what the original's `predict` returns."""
        return softmax(self(x, training=False))


def get_denet(input_shape, n_classes, sr=16000, before_pooling=True, dropout=0.3, **switches):
    """Build a fresh DENet; the original's signature and defaults. `switches`: the keyword-only arguments of `DENet`."""
    return DENet(input_shape, n_classes, sr, before_pooling, dropout, **switches)
