"""Per-sample parameter gradients of single layers, from a layer's input and the gradients at its output.

Shapes: n samples, d outputs of the readout, `x` the layer's input (n, ...), `g` the gradients of the d outputs with
respect to the layer's output, (n, d, ...). Every rule returns one tensor (n, d, *parameter.shape) a parameter. A layer
may have several routes to the same numbers; which is quickest depends on its shape, so the caller measures them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

Gradients = dict[str, Tensor]
Route = Callable[[Any, Tensor, Tensor], Gradients]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def routes_of(module: nn.Module) -> Mapping[str, Route]:
    """List the routes to a layer's per-sample gradients, by name.

    A subclass of a known layer may compute something else, so only the exact types are known; any other module without
    children is differentiated by torch.func under vmap, or sample by sample where vmap does not know its operations.
    """
    kind = type(module)
    if kind in _CONVOLUTIONS:
        routes: dict[str, Route] = {
            "grouped": _convolution_grouped,
            "samplewise": _convolution_samplewise,
            "local": _convolution_local,
        }
        return {"matmul": _convolution_pointwise, **routes} if _is_pointwise(module) else routes
    if kind in _TRANSPOSED:
        return {"grouped": _transposed_grouped, "samplewise": _transposed_samplewise}
    if kind is nn.Linear:
        return {"matmul": _linear}
    if kind in (nn.GroupNorm, nn.LayerNorm) or (kind in _BATCH_NORMS and module.running_mean is not None):
        return {"sums": _normalisation}
    if kind is nn.Embedding and module.max_norm is None and not module.scale_grad_by_freq:
        return {"scatter": _embedding}
    if kind is nn.PReLU:
        return {"sums": _prelu}
    return {"torch.func": _functional, "sample by sample": _looped} if not list(module.children()) else {}


def _is_pointwise(module: Any) -> bool:
    return (
        all(size == 1 for size in module.kernel_size)
        and all(step == 1 for step in module.stride)
        and (module.groups == 1 and (module.padding == "valid" or all(pad == 0 for pad in module.padding)))
    )


def _convolution_grouped(module: Any, x: Tensor, g: Tensor) -> Gradients:
    x, padding = _padded(module, x)
    weight = _correlate(x, g, module.kernel_size, module.stride, padding, module.dilation, module.groups)
    return _with_bias(module, weight, g)


def _convolution_samplewise(module: Any, x: Tensor, g: Tensor) -> Gradients:
    x, padding = _padded(module, x)
    settings = (module.kernel_size, module.stride, padding, module.dilation, module.groups)
    weight = torch.cat([_correlate(x[i : i + 1], g[i : i + 1], *settings) for i in range(len(x))])
    return _with_bias(module, weight, g)


def _convolution_local(module: Any, x: Tensor, g: Tensor) -> Gradients:
    """Only where the output gradient is not zero: behind a readout of one pixel that is a small part of the tile."""
    axes = len(module.kernel_size)
    outputs = _support(g, axes)
    padding = module._reversed_padding_repeated_twice  # of the last axis first, before and after
    before = [padding[2 * (axes - 1 - axis)] for axis in range(axes)]
    inputs = [
        slice(span.start * step - pad, (span.stop - 1) * step - pad + dilation * (size - 1) + 1)
        for span, step, pad, dilation, size in zip(
            outputs, module.stride, before, module.dilation, module.kernel_size, strict=True
        )
    ]
    if any(part.start < 0 or part.stop > size for part, size in zip(inputs, x.shape[2:], strict=True)):
        x = F.pad(x, padding, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
        inputs = [slice(part.start + pad, part.stop + pad) for part, pad in zip(inputs, before, strict=True)]
    kept: tuple[Any, ...] = (..., *outputs)
    seen: tuple[Any, ...] = (..., *inputs)
    settings = (module.kernel_size, module.stride, (0,) * axes, module.dilation, module.groups)
    return _with_bias(module, _correlate(x[seen], g[kept], *settings), g[kept])


def _support(g: Tensor, axes: int) -> list[slice]:
    """Smallest box of the last axes that holds all that is not zero.

    It looks at a random combination of all the rest, which is zero only where all of it is, at a tenth of the time.
    """
    rows = g.reshape(math.prod(g.shape[:-axes]), -1)
    weights = torch.rand(len(rows), dtype=g.dtype, generator=torch.Generator().manual_seed(0)).to(g.device)
    found = (weights @ rows).reshape(g.shape[-axes:]).nonzero()
    if not len(found):
        return [slice(0, 1)] * axes
    first, last = found.amin(0).tolist(), found.amax(0).tolist()
    return [slice(start, stop + 1) for start, stop in zip(first, last, strict=True)]


def _convolution_pointwise(module: Any, x: Tensor, g: Tensor) -> Gradients:
    n, d, channels = g.shape[:3]
    weight = g.reshape(n, d * channels, -1) @ x.flatten(2).transpose(1, 2)
    return _with_bias(module, weight.reshape(n, d, *module.weight.shape), g)


def _transposed_grouped(module: Any, x: Tensor, g: Tensor) -> Gradients:
    """Use that the weight gradient of a transposed convolution is that of the convolution with both ends swapped."""
    n, d = g.shape[:2]
    image, gradient = g.flatten(0, 1), x.repeat_interleave(d, 0)[:, None]
    settings = (module.kernel_size, module.stride, module.padding, module.dilation, module.groups)
    weight = _correlate(image, gradient, *settings)
    return _with_bias(module, weight.reshape(n, d, *module.weight.shape), g)


def _transposed_samplewise(module: Any, x: Tensor, g: Tensor) -> Gradients:
    parts = [_transposed_grouped(module, x[i : i + 1], g[i : i + 1]) for i in range(len(x))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _padded(module: Any, x: Tensor) -> tuple[Tensor, Any]:
    """Pad explicitly where the layer does so itself ('same', reflect, ...); otherwise leave it to the correlation."""
    if module.padding == "valid":
        return x, (0,) * len(module.kernel_size)
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return x, module.padding
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, module._reversed_padding_repeated_twice, mode=mode), (0,) * len(module.kernel_size)


def _correlate(x: Tensor, g: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    """Weight gradient of every sample and output by one convolution with n x groups groups.

    From x (n, Ci, *size) and g (n, d, Co, *out) to (n, d, Co, Ci / groups, *kernel).
    """
    n, d, channels = g.shape[:3]
    inner = x.shape[1] // groups
    g = g.reshape(n, d, groups, channels // groups, *g.shape[3:]).transpose(1, 2)
    shape = (n * d * channels, inner, *kernel)
    weight = torch.ops.aten.convolution_backward(
        g.reshape(1, n * d * channels, *g.shape[4:]),
        x.reshape(1, n * x.shape[1], *x.shape[2:]),
        x.new_empty(1).expand(shape),
        None,
        stride,
        padding,
        dilation,
        False,
        [0] * len(kernel),
        n * groups,
        [False, True, False],
    )[1]
    weight = weight.reshape(n, groups, d, channels // groups, inner, *kernel).transpose(1, 2)
    result: Tensor = weight.reshape(n, d, channels, inner, *kernel)
    return result


def _with_bias(module: Any, weight: Tensor, g: Tensor) -> Gradients:
    return {"weight": weight} if module.bias is None else {"weight": weight, "bias": g.flatten(3).sum(-1)}


def _linear(module: Any, x: Tensor, g: Tensor) -> Gradients:
    n, d, out = g.shape[0], g.shape[1], g.shape[-1]
    g = g.reshape(n, d, -1, out)
    gradients = {"weight": g.transpose(2, 3) @ x.reshape(n, 1, -1, x.shape[-1])}
    return gradients if module.bias is None else {**gradients, "bias": g.sum(2)}


def _normalisation(module: Any, x: Tensor, g: Tensor) -> Gradients:
    """Scale and shift of GroupNorm, LayerNorm and BatchNorm in eval mode."""
    if isinstance(module, nn.GroupNorm):
        normal, axes = F.group_norm(x, module.num_groups, None, None, module.eps), range(3, g.ndim)
    elif isinstance(module, nn.LayerNorm):
        normal = F.layer_norm(x, module.normalized_shape, None, None, module.eps)
        axes = range(2, g.ndim - len(module.normalized_shape))
    else:
        normal = F.batch_norm(x, module.running_mean, module.running_var, None, None, False, 0.0, module.eps)
        axes = range(3, g.ndim)
    summed = tuple(axes)
    scaled = g * normal[:, None]
    gradients = {"weight": scaled.sum(summed) if summed else scaled}
    return gradients if module.bias is None else {**gradients, "bias": g.sum(summed) if summed else g}


def _embedding(module: Any, x: Tensor, g: Tensor) -> Gradients:
    n, d, width = g.shape[0], g.shape[1], g.shape[-1]
    words = x.reshape(n, 1, -1, 1).expand(n, d, math.prod(x.shape[1:]), width)
    weight = g.new_zeros(n, d, *module.weight.shape).scatter_add_(2, words, g.reshape(n, d, -1, width))
    if module.padding_idx is not None:
        weight[:, :, module.padding_idx] = 0
    return {"weight": weight}


def _prelu(module: Any, x: Tensor, g: Tensor) -> Gradients:
    negative = (g * x.clamp(max=0)[:, None]).flatten(3) if x.ndim > 2 else (g * x.clamp(max=0)[:, None])[..., None]
    summed = negative.sum(-1)
    return {"weight": summed.sum(-1, keepdim=True) if module.num_parameters == 1 else summed}


def _functional(module: Any, x: Tensor, g: Tensor) -> Gradients:
    """Any module of one input and one output, by torch.func: a vector-Jacobian product for each sample and output."""
    parameters = dict(module.named_parameters(recurse=False))

    def one_sample(sample: Tensor, cotangents: Tensor) -> Gradients:
        pull = vjp(lambda values: functional_call(module, values, (sample[None],))[0], parameters)[1]
        pulled: Gradients = vmap(lambda cotangent: pull(cotangent)[0])(cotangents)
        return pulled

    gradients: Gradients = vmap(one_sample)(x, g)
    return gradients


def _looped(module: Any, x: Tensor, g: Tensor) -> Gradients:
    """Any module of one input and one output, by one backward pass for each sample and output."""
    parameters = dict(module.named_parameters(recurse=False))
    rows = []
    for sample, cotangents in zip(x, g, strict=True):
        with torch.enable_grad():
            output = module(sample[None])[0]
        for cotangent in cotangents:
            rows.append(torch.autograd.grad(output, list(parameters.values()), cotangent, retain_graph=True))
    n, d = g.shape[:2]
    return {
        name: torch.stack([row[place] for row in rows]).reshape(n, d, *value.shape)
        for place, (name, value) in enumerate(parameters.items())
    }
