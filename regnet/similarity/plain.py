"""Parameters that no layer owns: gains, temperatures and biases that a module uses in its own forward.

Where such a parameter, or something computed from such parameters alone, meets the data in a pointwise operation, it is
repeated along the batch first. The gradient at the repeated copy is the gradient of every sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_POINTWISE = frozenset(
    f"{prefix}{name}{suffix}"
    for name in ("add", "sub", "mul", "div", "truediv", "pow")
    for prefix, suffix in (("", ""), ("__", "__"), ("__r", "__"))
) | {"true_divide", "multiply", "subtract", "divide", "maximum", "minimum", "rsub"}


@dataclass(frozen=True)
class PlainUse:
    """One meeting of `value`, computed from `parameters` alone, with the data."""

    value: Tensor
    parameters: Mapping[str, Tensor]


class PlainParameters(TorchFunctionMode):
    """Watch some parameters while a model runs, and report every meeting with the data.

    Args:
        parameters: by name.
        report: gets the use and the repeated copy (rows, ...).
    """

    def __init__(self, parameters: Mapping[str, Tensor], report: Callable[[PlainUse, Tensor], None]) -> None:
        super().__init__()
        self._report = report
        self._watched: dict[int, PlainUse] = {}
        for name, value in parameters.items():
            self._watched[id(value)] = PlainUse(value, {name: value})

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Repeat watched values before they meet the data, and watch what is computed from them alone."""
        tensors = [value for value in args if isinstance(value, Tensor)]
        uses = [self._watched[id(value)] for value in tensors if id(value) in self._watched]
        if not uses:
            return func(*args, **(kwargs or {}))
        data = [value for value in tensors if id(value) not in self._watched]
        if not data:
            return self._watch(func(*args, **(kwargs or {})), uses)
        if func.__name__ in _POINTWISE:
            args = tuple(self._repeated(value, data) for value in args)
        return func(*args, **(kwargs or {}))

    def _watch(self, result: Any, uses: list[PlainUse]) -> Any:
        parameters = {name: value for use in uses for name, value in use.parameters.items()}
        if isinstance(result, Tensor):
            if result.requires_grad:
                self._watched[id(result)] = PlainUse(result, parameters)
            return result
        if isinstance(result, tuple | list):
            return type(result)(self._watch(item, uses) for item in result)
        return iter([self._watch(item, uses) for item in result]) if hasattr(result, "__next__") else result

    def _repeated(self, value: Any, data: list[Tensor]) -> Any:
        if not isinstance(value, Tensor) or id(value) not in self._watched:
            return value
        ndim = max(tensor.ndim for tensor in (*data, value))
        rows = max((tensor.shape[0] for tensor in data if tensor.ndim == ndim), default=0)
        shape = (1,) * (ndim - value.ndim) + tuple(value.shape)
        if rows == 0 or shape[0] != 1:
            return value
        copy = value.reshape(shape).expand(rows, *shape[1:])
        self._report(self._watched[id(value)], copy)
        return copy


def plain_gradients(use: PlainUse, _: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Per-sample gradients (n, d, *parameter.shape) of a use's parameters, from those at its copy (n, d, ...)."""
    n, d = g.shape[:2]
    if len(use.parameters) == 1 and use.value is next(iter(use.parameters.values())):
        return {name: g.reshape(n, d, *use.value.shape) for name in use.parameters}
    pulled = torch.autograd.grad(
        use.value,
        list(use.parameters.values()),
        g.reshape(n * d, *use.value.shape),
        retain_graph=True,
        is_grads_batched=True,
    )
    shaped = (gradient.reshape(n, d, *gradient.shape[1:]) for gradient in pulled)
    return dict(zip(use.parameters, shaped, strict=True))
