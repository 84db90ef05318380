"""SincNet's convolutions of chunks without gradients, in a processor's tiles: the twin of `sincnet.conv_layers`.

A chunk goes through all layers before the next one, and what is between them stays in a core's cache: rows are steps, of as many
numbers as there are channels, filled up with zeros. So the lanes of the Fourier transforms are filters, and a window of a
convolution is a row of a matrix whose rows overlap.
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .amx import (
    BLOCK,
    DEEP,
    NUMBERS,
    PARTS,
    TILE,
    close_tiles,
    columns_in_parts,
    open_tiles,
    product_of_parts,
    split_normed,
)
from .fourier import filtered, spaced
from .product import aligned, compiled
from .sincnet import _signals, largest, largest_magnitude, plan, sinc_plan, spectra_of
from .threads import LANES, share_out

ROWS = 3 * BLOCK  # of a convolution, in one go: whole blocks and whole pools
_product = product_of_parts()


def conv_layers(x: Tensor, half: Tensor, slope: float, *weights: Tensor) -> Tensor:
    """`sincnet.conv_layers` of float32, for half of each filter and one convolution at least; the norms undo its bias."""
    first_gamma, first_beta, *others = (weight.detach() for weight in weights)
    convs = others[::4]
    norms = [(first_gamma, first_beta), *zip(others[2::4], others[3::4], strict=True)]
    gammas, betas = zip(*[[by_step(tensor) for tensor in norm] for norm in norms], strict=True)
    matrices = tuple(matrix_of(conv).numpy() for conv in convs)
    size, pools, pairs = plan(x.shape[1], half.shape[1])
    response, _, *of_blocks = sinc_plan(half.detach(), size, pools)
    y = x.new_empty(len(x), *norms[-1][0].shape)
    share_out(_layers, len(x), max(1, LANES // pairs), x.contiguous(), response, *of_blocks, matrices, gammas, betas, slope, y)
    return y


def by_step(tensor: Tensor) -> np.ndarray:
    """(channels, steps) as rows of channels, filled up to whole LANES, and a row of zeros."""
    return F.pad(tensor, (0, 1, 0, -len(tensor) % LANES)).T.contiguous().numpy()


def matrix_of(weight: Tensor) -> Tensor:
    """Weights (out, in, taps) for windows of taps * in, channels inner and filled up to whole LANES."""
    return columns_in_parts(F.pad(weight, (0, 0, 0, -weight.shape[1] % LANES)).permute(2, 1, 0).flatten(0, 1))


@compiled
def _layers(first, last, x, response, taps, pools, order, turns, matrices, gammas, betas, slope, y):
    size, steps, layers = response.shape[1], len(gammas[0]) - 1, len(matrices)
    pairs = -(-steps // (2 * pools))
    z, spectra = np.empty((size, 2, LANES), x.dtype), np.empty((LANES, size, 2), x.dtype)
    bands = aligned(spaced(size) * 2 * LANES, x).reshape((spaced(size), 2, LANES))
    sounds = [np.zeros(gamma.shape, x.dtype) for gamma in gammas]
    slope = x.dtype.type(slope)
    for chunk in range(first, last):
        for pair in range(pairs):
            signal = (chunk - first) * pairs + pair
            if signal % LANES == 0:
                _signals(x, first, signal, 3 * pools, pairs, order, turns, z)
                spectra_of(z, order, spectra)
            for group in range(len(response)):
                filtered(bands, spectra[signal % LANES], response[group], turns)
                for part in range(2):
                    step = (2 * pair + part) * pools
                    for j in range(min(pools, steps - step)):
                        to, at = (step + j) * sounds[0].shape[1] + group * LANES, taps - 1 + 3 * j
                        one, two, three = 2 * spaced(at) + part, 2 * spaced(at + 1) + part, 2 * spaced(at + 2) + part
                        largest_magnitude(sounds[0], None, to, bands, one * LANES, two * LANES, three * LANES)
        for layer in range(layers):
            _norm_conv_pool(sounds[layer], gammas[layer], betas[layer], slope, matrices[layer], sounds[layer + 1])
        _last_norm(sounds[layers], gammas[layers], betas[layers], slope, y[chunk])


@compiled
def _moments(sound, moments):
    """Mean of each column of all rows but the last, and one over its deviation and 1e-6, in the rows of `moments`: twice each."""
    steps, width = len(sound) - 1, sound.shape[1]
    total, part = np.zeros(width), np.empty(width, sound.dtype)
    middle, inverse = moments[0, :width], moments[1, :width]
    for start in range(0, steps, BLOCK):  # a sum of sums, which are rounded less often
        part[:] = 0
        for step in range(start, min(start + BLOCK, steps)):
            for i in range(width):
                part[i] += sound[step, i]
        for i in range(width):
            total[i] += part[i]
    for i in range(width):
        middle[i] = total[i] / steps
        total[i] = 0
    for start in range(0, steps, BLOCK):
        part[:] = 0
        for step in range(start, min(start + BLOCK, steps)):
            for i in range(width):
                part[i] += (sound[step, i] - middle[i]) ** 2
        for i in range(width):
            total[i] += part[i]
    for i in range(width):
        inverse[i] = 1 / (np.sqrt(total[i] / (steps - 1)) + 1e-6)
    moments[:, width:] = moments[:, :width]


@compiled
def _norm_conv_pool(sound, gamma, beta, slope, matrix, out):
    """Norm of `sound`, a convolution and its pool: (steps, channels) -> (steps, channels), both with a row more."""
    width, tiles, steps = sound.shape[1], matrix.shape[1], 3 * (len(out) - 1)
    window = -(-len(matrix) * DEEP // width)  # steps that it reaches into
    moments = np.empty((2, 2 * width), sound.dtype)
    _moments(sound, moments)
    columns = tiles * TILE
    room = -(-(ROWS + window) * width // DEEP) * DEEP
    parts, block = aligned(PARTS * room, matrix), np.empty((ROWS, columns), sound.dtype)
    open_tiles()
    for start in range(0, steps, ROWS):
        count = min(ROWS, steps - start)
        at = start * width
        for i in range(0, min((count + window) * width, (len(sound) - 1) * width - at), DEEP):
            split_normed(parts, i, room, sound, at + i, gamma, beta, moments, i % width, slope)
        for r in range(0, count, BLOCK):
            for tile in range(0, tiles, 2):
                c, a = (r * columns + tile * TILE, columns), (r * width, width, room)
                b = tile * PARTS * NUMBERS, tiles * PARTS * NUMBERS
                _product(block, c, parts, a, matrix, b, len(matrix), sound, (0, 0, 0))
        for j in range(count // 3):
            for i in range(0, out.shape[1], LANES):
                at = 3 * j * columns + i
                largest(out, None, (start // 3 + j) * out.shape[1] + i, block, at, at + columns, at + 2 * columns)
    close_tiles()


@compiled
def _last_norm(sound, gamma, beta, slope, y):
    """Norm of `sound` (steps, channels), with a row more, in y (channels, steps)."""
    moments = np.empty((2, 2 * sound.shape[1]), sound.dtype)
    _moments(sound, moments)
    for i in range(len(y)):
        for step in range(y.shape[1]):
            value = (sound[step, i] - moments[0, i]) * moments[1, i] * gamma[step, i] + beta[step, i]
            y[i, step] = value if value > 0 else value * slope
