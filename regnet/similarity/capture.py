"""Watch a forward pass: which layer was used on what, and where its outputs stand in the graph."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from regnet.similarity.layers import Route, routes_of
from regnet.similarity.plain import PlainParameters, PlainUse, plain_gradients

_TAKES = 3  # of the time of every route; the least one counts


@dataclass
class Call:
    """One use of one layer, or of plain parameters, within a forward pass."""

    owner: Any  # the layer, or a PlainUse
    routes: Mapping[str, Route]
    names: dict[str, list[str]]  # parameter of the owner -> its names among the chosen parameters
    x: Tensor
    edge: GradientEdge
    shape: torch.Size


@contextmanager
def recorded(model: nn.Module, names: Sequence[str], calls: list[Call]) -> Iterator[None]:
    """Append every use of the named parameters, by a layer or plainly, to `calls` while the block runs."""
    named = dict(model.named_parameters())
    chosen = {id(named[name]): name for name in names}
    owners: dict[nn.Module, dict[str, list[str]]] = {}
    plain = dict.fromkeys(names)
    for module in model.modules():
        own = {own: [chosen[id(value)]] for own, value in module._parameters.items() if id(value) in chosen}
        if own and routes_of(module):
            owners[module] = own
            for shared in own.values():
                plain.pop(shared[0], None)

    def record(module: nn.Module, args: Any, output: Any) -> None:
        if len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            return
        if output.requires_grad:
            x, edge = args[0].detach(), get_gradient_edge(output)
            calls.append(Call(module, routes_of(module), owners[module], x, edge, output.shape))

    def record_plain(use: PlainUse, copy: Tensor) -> None:
        shared = {name: [name] for name in use.parameters}
        edge = get_gradient_edge(copy)
        calls.append(Call(use, {"repeated": plain_gradients}, shared, copy.detach(), edge, copy.shape))

    handles = [module.register_forward_hook(record) for module in owners]
    try:
        with PlainParameters({name: named[name] for name in plain}, record_plain) if plain else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


def layouts_of(values: Tensor, calls: list[Call]) -> list[str]:
    """Find by the gradients of the first and the last sample which rows of every call belong to which sample.

    A module may see several rows a sample, as when both images of a pair go through one network stacked in the batch.
    """
    if not calls:
        return []
    n, edges = len(values), [call.edge for call in calls]
    first, last = (
        torch.autograd.grad(values[i].sum(), edges, retain_graph=True, allow_unused=True) for i in (0, n - 1)
    )
    layouts = []
    for call, gradient, other in zip(calls, first, last, strict=True):
        rows = call.shape[0] if call.shape else 0
        if rows == 0 or rows % n or call.x.shape[:1] != call.shape[:1]:
            layouts.append("unknown")
        else:
            layouts.append(_layout(_touched(gradient), _touched(other), n, rows // n))
    return layouts


def _touched(gradient: Tensor | None) -> set[int]:
    return set() if gradient is None else set(gradient.reshape(len(gradient), -1).ne(0).any(1).nonzero()[:, 0].tolist())


def _layout(first: set[int], last: set[int], n: int, uses: int) -> str:
    rows = n * uses
    if uses > 1 and not (first and last):
        return "unknown"
    if first <= set(range(0, rows, n)) and last <= set(range(n - 1, rows, n)):
        return "stacked"
    if first <= set(range(uses)) and last <= set(range(rows - uses, rows)):
        return "interleaved"
    return "unknown"


def uses_of(x: Tensor, g: Tensor, n: int, layout: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Split the rows of one call into uses of n samples each: input (n, ...) and output gradients (n, d, ...)."""
    uses = len(x) // n
    for use in range(uses if layout != "unknown" else 0):
        rows = slice(use * n, (use + 1) * n) if layout == "stacked" else slice(use, None, uses)
        yield x[rows], g[rows]


def quickest_route(call: Call, uses: list[tuple[Tensor, Tensor]]) -> tuple[str, Route]:
    """Time every route of a call on its own data and keep the quickest; one that torch cannot do is left out."""
    if len(call.routes) == 1 or not uses:
        return next(iter(call.routes.items()))
    # The time of one thread does not count the time that other processes took.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, float] = {}
    for _ in range(_TAKES):
        for name, route in call.routes.items():
            start = clock()
            try:
                route(call.owner, *uses[0])
            except RuntimeError:
                continue
            times[name] = min(clock() - start, times.get(name, float("inf")))
    name = min(times, key=times.__getitem__)
    return name, call.routes[name]
