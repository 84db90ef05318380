"""Losses of logits, frame by frame; masked frames never count.

A loss takes logits (..., n_classes) and labels (...) int64, IGNORE in masked frames, and returns the loss of each frame (...), 0
where masked. The mean over a batch is the sum over its frames divided by the sum of their weights, `frame_weights`; so
a batch may be cut into parts, for several devices or to accumulate gradients, and keeps its mean.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .labels import IGNORE


def frame_weights(labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Weight of each frame (...): 0 where masked, otherwise that of its class, (n_classes,), or 1."""
    seen = labels != IGNORE
    return seen.float() if class_weights is None else seen * class_weights[labels.where(seen, 0)]


def cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross entropy."""
    return -frame_weights(labels, class_weights) * _log_probability(logits, labels)


def focal(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, gamma: float = 2.0) -> Tensor:
    """Focal loss -(1 - p)^gamma log p of the right class's probability p (Lin et al., ICCV 2017): easy frames count less."""
    log_p = _log_probability(logits, labels)
    return -frame_weights(labels, class_weights) * (1 - log_p.exp()) ** gamma * log_p


def _log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision is too coarse for a sum over frames
    log_p = F.log_softmax(logits, dim=-1)
    return log_p.gather(-1, labels.where(labels != IGNORE, 0)[..., None])[..., 0]
