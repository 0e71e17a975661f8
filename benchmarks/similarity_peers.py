"""Per-sample Jacobians and sketches by other people's tools, those that are installed; none is needed.

All of them see one plain network of convolutions with zero padding, which every one of them can differentiate, and
give the same (n, d, p) in the order of its parameters. Tools that know gradients of one number a sample go through it d
times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call

from regnet.similarity.readouts import forward
from regnet.similarity.reference import reference_jacobians

Way = Callable[[Tensor], Tensor]


def make_network() -> nn.Sequential:
    """About 0.4 M parameters, from an image of four channels to two numbers."""
    torch.manual_seed(0)
    widths = [4, 32, 64, 96, 96, 128]
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=1 if place % 2 == 0 else 2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(128, 128, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(128, 2)).eval()


def opacus() -> Way:
    from opacus import GradSampleModule

    model = GradSampleModule(make_network().train(), loss_reduction="sum")  # it watches in train mode only

    def work(x: Tensor) -> Tensor:
        rows = []
        for output in range(2):
            model.zero_grad()
            model(x)[:, output].sum().backward()
            rows.append(torch.cat([value.grad_sample.flatten(1) for value in model.parameters()], 1))
        return torch.stack(rows, 1)

    return work


def backpack() -> Way:
    from backpack import backpack as watched
    from backpack import extend
    from backpack.extensions import BatchGrad

    model = extend(make_network())

    def work(x: Tensor) -> Tensor:
        rows = []
        for output in range(2):
            model.zero_grad()
            with watched(BatchGrad()):
                model(x)[:, output].sum().backward()
            rows.append(torch.cat([value.grad_batch.flatten(1) for value in model.parameters()], 1))
        return torch.stack(rows, 1)

    return work


def nngeometry() -> Way:
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.layercollection import LayerCollection

    model = make_network()
    layers = LayerCollection.from_model(model)
    backend = TorchHooksJacobianBackend(model, function=lambda x: model(x), layer_collection=layers)

    def work(x: Tensor) -> Tensor:
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=len(x))
        jacobian: Tensor = backend.get_jacobian(data)
        return jacobian.transpose(0, 1)

    return work


def captum() -> Way:
    from captum._utils.gradient import _compute_jacobian_wrt_params_with_sample_wise_trick as jacobians

    model = make_network()

    def work(x: Tensor) -> Tensor:
        rows = []
        for output in range(2):
            parts = jacobians(model, (x,), x, lambda values, _, k=output: values[:, k].sum())
            rows.append(torch.cat([part.flatten(1) for part in parts], 1))
        return torch.stack(rows, 1)

    return work


def dattri() -> Way:
    from dattri.task import AttributionTask

    model = make_network()

    def target(output: int) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
        return lambda parameters, x: functional_call(model, parameters, x[None])[0, output]

    tasks = [AttributionTask(target(k), model, model.state_dict()) for k in range(2)]
    gradients = [task.get_grad_target_func(in_dims=(None, 0)) for task in tasks]
    flat = torch.cat([value.detach().flatten() for value in model.parameters()])
    return lambda x: torch.stack([gradient(flat, x) for gradient in gradients], 1)


def torch_func() -> Way:
    model = make_network()
    names = [name for name, _ in model.named_parameters()]

    def work(x: Tensor) -> Tensor:
        parts = reference_jacobians(model, forward, names, [x])
        return torch.cat([parts[name].flatten(2) for name in names], 2)

    return work


WAYS = {
    "torch": torch_func,
    "opacus": opacus,
    "backpack": backpack,
    "nngeometry": nngeometry,
    "captum": captum,
    "dattri": dattri,
}


def installed() -> Iterator[tuple[str, Way]]:
    """The tools that can be imported, by their packages' names, ready to work; `torch` stands for its `torch.func`."""
    for name, make in WAYS.items():
        if find_spec(name):
            yield name, make()


def trak_sketch(rows: Tensor, floats: int) -> Tensor:
    """TRAK's random projection of normalised Jacobians (n, d, p) to (n, d, floats / d)."""
    from trak.projectors import BasicProjector, ProjectionType

    n, d, p = rows.shape
    projector = BasicProjector(p, floats // d, 0, ProjectionType.rademacher, "cpu", dtype=torch.float32, block_size=64)
    return projector.project(rows.flatten(0, 1), model_id=0).reshape(n, d, -1) / (floats // d) ** 0.5
