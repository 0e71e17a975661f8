"""Per-sample Jacobians by general and slow ways: for what the fast route does not cover, and to test it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from regnet.similarity.readouts import Readout


class _Whole(nn.Module):
    """A model and its readout as one module, so that torch.func can swap the parameters."""

    def __init__(self, model: nn.Module, readout: Readout) -> None:
        super().__init__()
        self.model, self.readout = model, readout

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.readout(self.model, *inputs)


def looped_jacobians(
    model: nn.Module, readout: Readout, names: Sequence[str], inputs: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Jacobians in the named parameters by d backward passes a sample, for models that vmap cannot run.

    Takes and gives what `reference_jacobians` does.
    """
    named = dict(model.named_parameters())
    rows = []
    for sample in range(len(inputs[0])):
        with torch.enable_grad():
            values = readout(model, *(x[sample : sample + 1] for x in inputs))[0]
        wanted = [named[name] for name in names]
        parts = [torch.autograd.grad(value, wanted, retain_graph=True, materialize_grads=True) for value in values]
        rows.append([torch.stack(part) for part in zip(*parts, strict=True)])
    return {name: torch.stack([row[place] for row in rows]) for place, name in enumerate(names)}


def reference_jacobians(
    model: nn.Module, readout: Readout, names: Sequence[str], inputs: Sequence[Tensor], differentiable: bool = False
) -> dict[str, Tensor]:
    """Jacobians in the named parameters by vmap(jacrev): slow, general, and the reference of the fast route.

    Args:
        model: in eval mode.
        readout: (model, *inputs) -> (n, d).
        names: parameter names.
        inputs: (n, ...) each.
        differentiable: keep the graph to all parameters of the model, as a loss made of Jacobians needs it. What the
            model draws at random is then one draw for all samples.

    Returns:
        (n, d, *parameter.shape) by name.
    """
    named = dict(model.named_parameters())
    whole = _Whole(model, readout)

    def one_sample(parameters: dict[str, Tensor], *sample: Tensor) -> Tensor:
        swapped = {f"model.{name}": value for name, value in parameters.items()}
        values: Tensor = functional_call(whole, swapped, tuple(x[None] for x in sample))
        return values[0]

    chosen = {name: named[name] if differentiable else named[name].detach() for name in names}
    one: Callable[..., Any] = jacrev(one_sample)
    random = "same" if differentiable else "error"
    gradients: dict[str, Tensor] = vmap(one, in_dims=(None, *(0 for _ in inputs)), randomness=random)(chosen, *inputs)
    return gradients if differentiable else {name: gradient.detach() for name, gradient in gradients.items()}
