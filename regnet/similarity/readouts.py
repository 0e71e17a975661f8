"""Readouts: what of a network's output is differentiated, one row of d numbers a tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from regnet import models

Readout = Callable[..., Tensor]


def centre_offset(model: nn.Module, fixed: Tensor, moving: Tensor) -> Tensor:
    """Displacement at the tile's centre pixel, (n, 2) px: the default."""
    offset: Tensor = models.centre_offset(model, fixed, moving)
    return offset


def mean_offset(model: nn.Module, fixed: Tensor, moving: Tensor) -> Tensor:
    """Mean displacement over the tile, (n, 2) px."""
    offset: Tensor = model(fixed, moving).displacement.mean((2, 3))
    return offset


def sum_offset(model: nn.Module, fixed: Tensor, moving: Tensor) -> Tensor:
    """Sum of the whole field of displacements, (n, 2) px: what the paper's authors differentiate."""
    offset: Tensor = model(fixed, moving).displacement.sum((2, 3))
    return offset


def forward(model: nn.Module, *inputs: Any) -> Tensor:
    """All the outputs of a model that returns a tensor, flattened to (n, d): for regression, and for logits."""
    return _rows(model(*inputs))


def log_probabilities(model: nn.Module, *inputs: Any) -> Tensor:
    """Log-probabilities of the classes, (n, classes), from a model that returns logits."""
    return torch.log_softmax(_rows(model(*inputs)), dim=1)


def binary(model: nn.Module, *inputs: Any) -> Tensor:
    """The paper's binary view of a classifier: log-odds of the predicted class against all the others, (n, 1).

    Source: Charpiat et al. 2019, section 2 (one output suffices where only the decision matters).
    """
    logits = _rows(model(*inputs))
    predicted = logits.detach().argmax(1, keepdim=True)
    rest = logits.scatter(1, predicted, -torch.inf).logsumexp(1, keepdim=True)
    return logits.gather(1, predicted) - rest


def fisher(model: nn.Module, *inputs: Any) -> Tensor:
    """Logits in the Fisher metric, F^1/2 z with F = diag(p) - p p^T, (n, classes).

    The scalar product of two tiles' Jacobians is then Tr(F^1/2 J J'^T F'^1/2). F is taken as a constant.
    """
    logits = _rows(model(*inputs))
    probabilities = torch.softmax(logits.detach().double(), dim=1)
    metric = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]
    values, vectors = torch.linalg.eigh(metric)
    root = (vectors * values.clamp(min=0).sqrt()[:, None]) @ vectors.mT
    weighted: Tensor = root.to(logits.dtype) @ logits[:, :, None]
    return weighted[:, :, 0]


def _rows(outputs: Tensor) -> Tensor:
    return outputs.flatten(1) if outputs.ndim > 1 else outputs[:, None]


READOUTS: dict[str, Readout] = {
    "centre_offset": centre_offset,
    "mean_offset": mean_offset,
    "sum_offset": sum_offset,
    "forward": forward,
    "log_probabilities": log_probabilities,
    "binary": binary,
    "fisher": fisher,
}
