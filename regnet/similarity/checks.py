"""What the similarity engine refuses, and how it leaves a model as it came."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from regnet.errors import InputError


def check_inputs(inputs: Sequence[Tensor], labels: Sequence[object] | None = None) -> None:
    """Refuse a batch with non-finite numbers.

    Args:
        inputs: (n, ...) each.
        labels: how to name the n tiles in the message; their position if not given.

    Raises:
        InputError: naming the first such tile.
    """
    for position, values in enumerate(inputs):
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            row = int((~torch.isfinite(values)).flatten(1).any(1).nonzero()[0, 0])
            tile = row if labels is None else labels[row]
            raise InputError(f"tile {tile}: input {position} holds NaN or infinite values; mask or leave out this tile")


def is_chosen(name: str, patterns: Sequence[str]) -> bool:
    """Whether a parameter's name matches one of the glob patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def chosen_parameters(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """List the parameters whose names match a glob pattern.

    Raises:
        InputError: none does, or one is in half precision or not finite; or the model was compiled to TorchScript.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("model: TorchScript lets nobody watch its layers; pass the module that it was made from")
    names = []
    for name, value in model.named_parameters():
        if not is_chosen(name, patterns):
            continue
        if value.dtype not in (torch.float32, torch.float64):
            kind = str(value.dtype).removeprefix("torch.")
            raise InputError(
                f"model: parameter {name} is {kind}; similarity needs float32 or float64, call model.float()"
            )
        if not bool(torch.isfinite(value).all()):
            raise InputError(
                f"model: parameter {name} holds NaN or infinite values; train again or load another checkpoint"
            )
        names.append(name)
    if not names:
        raise InputError(
            f"model: no parameter matches {', '.join(patterns)}; similarity needs a model that was trained"
        )
    return names


@contextmanager
def prepared(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Set eval mode and the gradients' flags, and put everything back."""
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    chosen = set(names)
    try:
        model.eval()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


def check_readout(values: Any, n: int) -> None:
    """Refuse a readout that is not a finite tensor (n, d) depending on the parameters.

    Raises:
        InputError: naming what it is instead.
    """
    shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != n:
        raise InputError(f"readout: gives {shape} for {n} tiles; it must give a tensor ({n}, d), one row a tile")
    if not values.requires_grad:
        raise InputError("readout: does not depend on the chosen parameters; choose others or another readout")
    if not bool(torch.isfinite(values).all()):
        raise InputError("readout: gives NaN or infinite values; check the model's weights and the tiles")
