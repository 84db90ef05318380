"""The layers of DENet on today's TensorFlow (tf_keras), equal to the published Keras 2.2.4 code.

Arrays are channels last everywhere, (batch, steps, channels), as in the original. `denet_torch/layers.py` holds the
same names in the same order for PyTorch: read the two side by side.
"""

import math

import numpy as np
import tensorflow as tf
from tf_keras import layers

LEAKY_SLOPE = 0.3  # Keras's default


def dropout_mask(shape, rate, like):
    """Draw a mask of `shape`, 0 with probability `rate` and 1 / (1 - rate) elsewhere.

    Every dropout of the model draws here, so that a test can feed both sides the same masks.
    """
    keep = tf.random.uniform(shape) >= rate
    return tf.cast(keep, like.dtype) / (1 - rate)


def hard_sigmoid(x):
    """Keras 2's clip(0.2 x + 0.5, 0, 1)."""
    return tf.clip_by_value(0.2 * x + 0.5, 0, 1)


def leaky_relu(x):
    return tf.where(x > 0, x, LEAKY_SLOPE * x)  # tf.nn.leaky_relu rounds its slope to float32, in float64 too


def max_pool(x, size=3):
    """Maximum of each `size` steps, (batch, steps, channels) -> (batch, steps // size, channels)."""
    return tf.nn.max_pool1d(x, size, size, padding="VALID")


def softmax(x):
    return tf.nn.softmax(x, axis=-1)


def mel_to_hz(mel):
    return 700 * (10 ** (mel / 2595) - 1)


def hz_to_mel(hz):
    return 2595 * math.log10(1 + hz / 700)


def sinc_filters(filt_b1, filt_band, sr, taps=251):
    """Band-pass filters (filters, taps) between the cuts |b1| + 50/sr and low + |band| + 50/sr, in cycles per sample."""
    t = tf.constant(np.arange(1, taps // 2 + 1) / sr, filt_b1.dtype)  # s
    n = np.linspace(0, taps, taps)
    window = tf.constant(0.54 - 0.46 * np.cos(2 * math.pi * n / taps), filt_b1.dtype)

    def low_pass(cut):  # (filters, 1) -> (filters, taps)
        angle = 2 * math.pi * (cut * sr) * t
        right = tf.sin(angle) / angle
        return 2 * cut * tf.concat([tf.reverse(right, [1]), tf.ones_like(cut), right], axis=1)

    low = tf.abs(filt_b1)[:, None] + 50 / sr
    high = low + (tf.abs(filt_band)[:, None] + 50 / sr)
    band_pass = low_pass(high) - low_pass(low)
    return band_pass / tf.reduce_max(band_pass, axis=1, keepdims=True) * window


class SincConv1D(layers.Layer):
    """Convolution of a waveform with learned band-pass filters, (batch, steps, 1) -> (batch, steps, filters)."""

    def __init__(self, filters, taps, sr, low_freq_mel=80, high_freq_mel=None, **kwargs):
        super().__init__(**kwargs)
        self.taps, self.sr = taps, float(sr)
        if high_freq_mel is None:
            high_freq_mel = hz_to_mel(sr / 2)
        cuts = mel_to_hz(np.linspace(low_freq_mel, high_freq_mel, filters))
        b1, b2 = np.roll(cuts, 1), np.roll(cuts, -1)
        b1[0], b2[-1] = 30, sr / 2 - 100
        self.filt_b1 = self.add_weight("filt_b1", (filters,), initializer=lambda *_, **__: b1 / sr)
        self.filt_band = self.add_weight("filt_band", (filters,), initializer=lambda *_, **__: (b2 - b1) / sr)

    def call(self, x):
        filters = sinc_filters(self.filt_b1, self.filt_band, self.sr, self.taps)
        return tf.nn.conv1d(x, tf.transpose(filters)[:, None], stride=1, padding="SAME")


class Dense(layers.Dense):
    """Keras's Dense: glorot uniform kernel, zero bias."""


class Conv1D(layers.Conv1D):
    """Keras's Conv1D: "valid", channels last, glorot uniform kernel, zero bias."""


class LayerNorm(layers.Layer):
    """Layer normalisation over the channels of one step: (x - mean) / (std + 1e-6) * scale + bias, population std.

    On a step whose channels are all equal the original's gradient is NaN; here such a step passes no gradient to its input.
    """

    def build(self, shape):
        self.scale = self.add_weight("scale", (shape[-1],), initializer="ones")
        self.bias = self.add_weight("bias", (shape[-1],), initializer="zeros")

    def call(self, x):
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        constant = variance == 0
        std = tf.sqrt(tf.where(constant, tf.ones_like(variance), variance))  # sqrt has no gradient at 0
        centred = tf.where(constant, tf.zeros_like(centred), centred)
        return centred / (tf.where(constant, tf.zeros_like(std), std) + 1e-6) * self.scale + self.bias


class SpatialDropout1D(layers.Layer):
    """Dropout of whole channels of a frame: one mask entry per (batch, channel), held over the steps."""

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, x, training=False):
        if not training or self.rate == 0:
            return x
        return x * dropout_mask((tf.shape(x)[0], 1, x.shape[2]), self.rate, like=x)


class Dropout(layers.Layer):
    """Elementwise dropout."""

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, x, training=False):
        if not training or self.rate == 0:
            return x
        return x * dropout_mask(tf.shape(x), self.rate, like=x)


class DELayer(layers.Layer):
    """Denoising-enhancement layer: attention over the bands of a frame, (batch, steps, bands) -> (batch, steps, 1)."""

    def __init__(self, rate=0.0, **kwargs):
        super().__init__(**kwargs)
        self.conv1 = Conv1D(30, 7, strides=2, dtype=self.dtype)
        self.conv2 = Conv1D(30, 7, strides=3, dtype=self.dtype)
        self.conv3 = Conv1D(10, 7, strides=3, dtype=self.dtype)
        self.dense1 = Dense(128, dtype=self.dtype)
        self.dense2 = Dense(64, dtype=self.dtype)
        self.dense3 = Dense(1, dtype=self.dtype)
        self.dropout = Dropout(rate, dtype=self.dtype)

    def attention(self, x):
        """Attention weights (batch, bands) of x (batch, steps, bands); each row sums to 1."""
        _, steps, bands = x.shape
        h = tf.reshape(tf.transpose(x, (0, 2, 1)), (-1, steps, 1))  # (batch * bands, steps, 1)
        h = tf.nn.relu(self.conv1(h))
        h = tf.nn.relu(self.conv2(h))
        h = tf.nn.relu(self.conv3(h))
        h = tf.reshape(h, (-1, h.shape[1] * h.shape[2]))
        h = tf.nn.relu(self.dense1(h))
        h = tf.nn.relu(self.dense2(h))
        return softmax(tf.reshape(self.dense3(h), (-1, bands)))

    def call(self, x, training=False):
        weights = self.dropout(self.attention(x), training=training)
        return tf.reduce_sum(x * weights[:, None, :], axis=2, keepdims=True)


class GRU(layers.Layer):
    """Gated recurrent unit with the reset gate before the recurrent product, (batch, steps, in) -> (batch, steps, units)."""

    def __init__(self, units, dropout=0.0, go_backwards=False, **kwargs):
        super().__init__(**kwargs)
        self.units, self.dropout, self.go_backwards = units, dropout, go_backwards

    def build(self, shape):
        self.kernel = self.add_weight("kernel", (shape[-1], 3 * self.units), initializer="glorot_uniform")
        self.recurrent_kernel = self.add_weight(
            "recurrent_kernel", (self.units, 3 * self.units), initializer="orthogonal"
        )
        self.bias = self.add_weight("bias", (3 * self.units,), initializer="zeros")

    def call(self, x, training=False):
        _, steps, features = x.shape
        batch = tf.shape(x)[0]
        if training and self.dropout > 0:
            masks = [dropout_mask((batch, 1, features), self.dropout, like=x) for _ in "zrh"]
            kernels = tf.split(self.kernel, 3, axis=1)
            inputs = tf.concat([(x * m) @ k for m, k in zip(masks, kernels, strict=True)], axis=2)
        else:
            inputs = x @ self.kernel
        inputs = inputs + self.bias  # (batch, steps, 3 * units)
        recurrent_zr, recurrent_h = tf.split(self.recurrent_kernel, [2 * self.units, self.units], axis=1)
        h = tf.zeros((batch, self.units), x.dtype)
        outputs = []
        for step in reversed(range(steps)) if self.go_backwards else range(steps):
            inputs_zr, inputs_h = tf.split(inputs[:, step], [2 * self.units, self.units], axis=1)
            z, r = tf.split(hard_sigmoid(inputs_zr + h @ recurrent_zr), 2, axis=1)
            hh = tf.tanh(inputs_h + (r * h) @ recurrent_h)
            h = z * h + (1 - z) * hh
            outputs.append(h)
        if self.go_backwards:
            outputs.reverse()  # Keras's Bidirectional hands the backward outputs on in the order of time
        return tf.stack(outputs, axis=1)


class Bidirectional(layers.Layer):
    """Sum of a GRU that reads forwards and one that reads backwards, each with its own weights and dropout masks."""

    def __init__(self, units, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.forward_gru = GRU(units, dropout, dtype=self.dtype)
        self.backward_gru = GRU(units, dropout, go_backwards=True, dtype=self.dtype)

    def call(self, x, training=False):
        return self.forward_gru(x, training=training) + self.backward_gru(x, training=training)


class BatchNorm(layers.Layer):
    """Batch normalisation over all axes but the last, running statistics as TensorFlow 1's zero-debiased moving average.

    The averages are kept as TensorFlow 1 keeps them: a biased average that starts at 0, divided by 1 - momentum^local_step. They
    are no weights: the original does not save them.
    """

    def __init__(self, momentum=0.99, epsilon=1e-3, **kwargs):
        super().__init__(**kwargs)
        self.momentum, self.epsilon = momentum, epsilon

    def build(self, shape):
        channels = (shape[-1],)
        self.gamma = self.add_weight("gamma", channels, initializer="ones")
        self.beta = self.add_weight("beta", channels, initializer="zeros")
        self.moving_mean = self.add_weight("moving_mean", channels, initializer="zeros", trainable=False)
        self.moving_variance = self.add_weight("moving_variance", channels, initializer="ones", trainable=False)
        slots = {  # set past Keras's attribute tracking, so that they are not saved
            "biased_mean": tf.Variable(tf.zeros(channels, self.dtype), trainable=False),
            "biased_variance": tf.Variable(tf.zeros(channels, self.dtype), trainable=False),
            "local_step": tf.Variable(tf.zeros((), self.dtype), trainable=False),
        }
        for name, variable in slots.items():
            object.__setattr__(self, name, variable)
            self._track_trackable(variable, name)  # tf.saved_model.save finds what its functions use

    def call(self, x, training=False):
        mean, variance = self.moving_mean, self.moving_variance
        if training:
            axes = list(range(len(x.shape) - 1))
            mean, variance = tf.nn.moments(x, axes)
            self.update(mean, variance, n=tf.cast(tf.size(x) / x.shape[-1], self.dtype))
        return (x - mean) * (self.gamma * tf.math.rsqrt(variance + self.epsilon)) + self.beta

    def update(self, mean, variance, n):
        """Average in the statistics of a batch of `n` frames."""
        self.local_step.assign_add(1)
        self.biased_mean.assign_sub((1 - self.momentum) * (self.biased_mean - mean))
        self.biased_variance.assign_sub((1 - self.momentum) * (self.biased_variance - variance * (n / (n - 1.001))))
        unbias = 1 - tf.constant(self.momentum, self.dtype) ** self.local_step
        self.moving_mean.assign(self.biased_mean / unbias)
        self.moving_variance.assign(self.biased_variance / unbias)
