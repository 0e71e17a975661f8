"""Per-sample Jacobians of a readout in the parameters of any torch module.

One forward and d backward passes a batch: forward hooks keep the input of every layer and the place of its output in
the graph, the backward passes stop at those outputs, and the rules of `layers` turn both into per-sample gradients.
Parameters that these rules do not cover go through torch.func. On a few samples of the first batch everything is
checked against their ordinary gradient, and each layer's quickest route is found by measuring.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from regnet.errors import InputError
from regnet.similarity.capture import Call, layouts_of, quickest_route, recorded, uses_of
from regnet.similarity.checks import check_inputs, check_readout, chosen_parameters, prepared
from regnet.similarity.layers import Route
from regnet.similarity.readouts import Readout, centre_offset
from regnet.similarity.reference import looped_jacobians, reference_jacobians

_WHOLE = "whole model by torch.func"
_LOOPED = "whole model, sample by sample"
_FEW = 4  # samples to plan by


@dataclass
class _Plan:
    """What the first samples taught: how the rows of every call belong to samples, and which route is quickest."""

    layouts: list[str] = field(default_factory=list)  # of every call in order: "stacked" or "interleaved"
    routes: list[tuple[str, Route]] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)  # parameters left to a general way on the whole model
    general: str = _WHOLE


class Jacobians:
    """Compute J(x), (n, d, p), for batches of tiles; the model is put in eval mode meanwhile and left as it came.

    Args:
        model: any torch module; its prediction for a sample must not depend on the rest of the batch.
        readout: (model, *inputs) -> (n, d).
        parameters: glob patterns of the parameter names to differentiate in.

    Raises:
        InputError: no such parameter, half precision or non-finite weights.

    Example:
        >>> engine = Jacobians(nn.Linear(3, 2), readout=forward)
        >>> values, jacobians = engine(torch.randn(5, 3))
        >>> jacobians.shape
        torch.Size([5, 2, 8])
    """

    def __init__(self, model: nn.Module, readout: Readout = centre_offset, parameters: Sequence[str] = ("*",)) -> None:
        self.model, self.readout = model, readout
        self.names = chosen_parameters(model, parameters)
        self.slices: dict[str, slice] = {}
        start = 0
        named = dict(model.named_parameters())
        for name in self.names:
            self.slices[name] = slice(start, start + named[name].numel())
            start += named[name].numel()
        self.size = start
        self._plans: dict[bool, _Plan] = {}
        self._route_names: dict[str, str] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Give the readout (n, d) and its Jacobians (n, d, p) of one batch, both detached.

        Raises:
            InputError: a non-finite input (named), a readout of the wrong shape or without gradient, or samples that
                depend on each other.
        """
        check_inputs(inputs)
        several = len(inputs[0]) > 1
        with prepared(self.model, self.names):
            if several not in self._plans:
                few = tuple(x[:_FEW] for x in inputs)
                self._plans[several] = self._make_plan(*self._watched(few), few)
            values, calls = self._watched(inputs)
            if len(self._plans[several].layouts) != len(calls):  # how often layers are used depends on the batch
                self._plans[several] = self._make_plan(values, calls, inputs)
            plan = self._plans[several]
            jacobians = self._assemble(values, calls, plan)
            self._add_rest(jacobians, inputs, plan)
        return values.detach(), jacobians

    def routes(self) -> dict[str, str]:
        """Tell which route each parameter takes, once a batch has been seen."""
        return dict(self._route_names)

    def _watched(self, inputs: Sequence[Tensor]) -> tuple[Tensor, list[Call]]:
        """The readout of a batch, and how layers and plain parameters were used for it."""
        calls: list[Call] = []
        with recorded(self.model, self.names, calls), torch.enable_grad():
            values = self.readout(self.model, *inputs)
        check_readout(values, len(inputs[0]))
        return values, calls

    def _check_alone(self, values: Tensor, inputs: tuple[Tensor, ...]) -> None:
        """Refuse models that mix the samples of a batch."""
        with torch.no_grad():
            alone = self.readout(self.model, *(x[:1] for x in inputs))
        if not torch.allclose(
            alone, values[:1].detach(), rtol=0, atol=1e-3 * float(values.detach().abs().max()) + 1e-6
        ):
            raise InputError("model: the prediction for a tile depends on the rest of its batch; normalise each alone")

    def _assemble(self, values: Tensor, calls: list[Call], plan: _Plan, keep: bool = False) -> Tensor:
        """Put the Jacobians together; the graph is freed meanwhile unless it is to be kept."""
        n, d = values.shape
        jacobians = values.new_empty(n, d, self.size).detach()
        empty = set(self.names)
        for call, layout, (_, route), gradients in zip(
            calls, plan.layouts, plan.routes, self._output_gradients(values, calls, keep), strict=True
        ):
            if gradients is None or layout == "unknown":
                continue
            for x, g in uses_of(call.x, gradients, n, layout):
                for own, gradient in route(call.owner, x, g).items():
                    for name in call.names.get(own, []):
                        rows, part = jacobians[:, :, self.slices[name]], gradient.reshape(n, d, -1)
                        if name in empty:
                            empty.remove(name)
                            rows.copy_(part)
                        else:
                            rows.add_(part)
        for name in empty:
            jacobians[:, :, self.slices[name]] = 0
        return jacobians

    def _output_gradients(self, values: Tensor, calls: list[Call], keep: bool) -> Iterator[Tensor | None]:
        """Gradients of the d outputs, summed over samples, at the output of every call: (rows, d, ...)."""
        if not calls:
            return
        edges = [call.edge for call in calls]
        d = values.shape[1]
        passes: list[list[Tensor | None]] = []
        for k in range(d):
            kept = keep or k < d - 1
            passes.append(list(torch.autograd.grad(values[:, k].sum(), edges, retain_graph=kept, allow_unused=True)))
        for position in range(len(calls)):
            parts = [single[position] for single in passes]
            for single in passes:
                single[position] = None
            zero = next((torch.zeros_like(part) for part in parts if part is not None), None)
            yield None if zero is None else torch.stack([zero if part is None else part for part in parts], 1)

    def _make_plan(self, values: Tensor, calls: list[Call], inputs: tuple[Tensor, ...]) -> _Plan:
        self._check_alone(values, inputs)
        plan = _Plan(layouts=layouts_of(values, calls))
        quickest: dict[tuple[int, torch.Size], tuple[str, Route]] = {}
        for call, layout, gradients in zip(
            calls, plan.layouts, self._output_gradients(values, calls, True), strict=True
        ):
            key = (id(call.owner), call.shape)
            if key not in quickest:
                uses = [] if gradients is None else list(uses_of(call.x, gradients, len(values), layout))
                quickest[key] = quickest_route(call, uses[:1])
            plan.routes.append(quickest[key])
        plan.rest = self._uncovered(values, calls, plan)
        if plan.rest:
            try:
                reference_jacobians(self.model, self.readout, plan.rest, [x[:1] for x in inputs])
            except RuntimeError:
                plan.general = _LOOPED
        self._route_names = {
            name: route[0]
            for call, route in zip(calls, plan.routes, strict=True)
            for x in call.names.values()
            for name in x
        } | dict.fromkeys(plan.rest, plan.general)
        return plan

    def _uncovered(self, values: Tensor, calls: list[Call], plan: _Plan) -> list[str]:
        """Find the parameters whose per-sample gradients do not add up to the gradient of the batch."""
        jacobians = self._assemble(values, calls, plan, keep=True)
        named = dict(self.model.named_parameters())
        unknown = [call for call, layout in zip(calls, plan.layouts, strict=True) if layout == "unknown"]
        wrong = {name for call in unknown for shared in call.names.values() for name in shared}
        for k in range(values.shape[1]):
            total = torch.autograd.grad(
                values[:, k].sum(), [named[name] for name in self.names], retain_graph=True, allow_unused=True
            )
            for name, gradient in zip(self.names, total, strict=True):
                rows = jacobians[:, k, self.slices[name]].detach()
                expected = torch.zeros_like(rows[0]) if gradient is None else gradient.flatten()
                scale = max(float(rows.norm()), float(expected.norm()))
                if float((rows.sum(0) - expected).norm()) > 1e-3 * scale:
                    wrong.add(name)
        return [name for name in self.names if name in wrong]

    def _add_rest(self, jacobians: Tensor, inputs: tuple[Tensor, ...], plan: _Plan) -> None:
        if not plan.rest:
            return
        way = reference_jacobians if plan.general == _WHOLE else looped_jacobians
        gradients = way(self.model, self.readout, plan.rest, inputs)
        for name, gradient in gradients.items():
            jacobians[:, :, self.slices[name]] = gradient.reshape(*gradient.shape[:2], -1)
