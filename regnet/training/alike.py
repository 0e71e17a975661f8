"""The similarity term: what is known to be alike is to be alike to the network, too.

Source: Charpiat et al. 2019, section 2 on enforcing similarity: `-kC(x, x')` in the loss for pairs that are known to
be alike, such as an input and its augmentation. It takes gradients of gradients, and K(x, x)^-1/2 in closed form,
since the derivative of an eigendecomposition fails where eigenvalues are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from regnet.errors import ConfigError
from regnet.similarity.checks import chosen_parameters, is_chosen
from regnet.similarity.kernel import FLOOR
from regnet.similarity.readouts import Readout
from regnet.similarity.reference import reference_jacobians
from regnet.training.options import TrainingOptions
from regnet.training.samples import Batch, Turn, recolour

_DEAD = 1e-30  # K(x, x) of a smaller trace is that of a tile without gradient


def inverse_root(kernels: Tensor) -> Tensor:
    """K^-1/2 of symmetric positive K, (n, d, d) with d of 1 or 2, in closed form.

    For d = 2, with `s = sqrt(det K)` and `t = sqrt(Tr K + 2 s)`, Cayley and Hamilton give `K^1/2 = (K + s I) / t` and
    so `K^-1/2 = (adj K + s I) / (s t)`, where `adj K = Tr K I - K`. A smaller eigenvalue below `FLOOR` of the larger
    one is raised to it.
    """
    size = kernels.diagonal(dim1=1, dim2=2).sum(1).clamp_min(_DEAD)[:, None, None]
    if kernels.shape[-1] == 1:
        return size.rsqrt()
    unit = kernels / size
    # Of a unit trace the smaller eigenvalue, if it is tiny, is the determinant.
    short = (FLOOR - torch.linalg.det(unit)).clamp_min(0)
    eye = torch.eye(2, dtype=kernels.dtype, device=kernels.device)
    raised = unit + short[:, None, None] * eye
    s = torch.linalg.det(raised).sqrt()[:, None, None]
    trace = raised.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    root: Tensor = (trace * eye - raised + s * eye) / (s * (trace + 2 * s).sqrt() * size.sqrt())
    return root


def similarity_of_pairs(jacobians: Tensor, others: Tensor) -> Tensor:
    """Give kC of n pairs, (n,), differentiable in both (n, d, p) with d of 1 or 2; 0 where a gradient is zero."""
    a, b = jacobians.double(), others.double()
    roots, other_roots = inverse_root(a @ a.mT), inverse_root(b @ b.mT)
    correlation = roots @ (a @ b.mT) @ other_roots
    mean: Tensor = correlation.diagonal(dim1=1, dim2=2).mean(1)
    return mean


def similarity_in_training(
    model: nn.Module, readout: Readout, names: Sequence[str], inputs: Sequence[Tensor]
) -> Tensor:
    """Give kC of the first half of a batch with the second, (n,), differentiable in all parameters of the model.

    Args:
        model: as it is trained.
        readout: (model, *inputs) -> (2 n, d).
        names: of the parameters that the kernel is taken in.
        inputs: (2 n, ...) each; sample i is alike to sample n + i.
    """
    gradients = reference_jacobians(model, readout, names, inputs, differentiable=True)
    jacobians = torch.cat([gradients[name].flatten(2) for name in names], 2)
    return similarity_of_pairs(*jacobians.chunk(2))


def turned_back(
    model: nn.Module, fixed: Tensor, moving: Tensor, fixed_valid: Tensor, moving_valid: Tensor, back: Tensor
) -> Tensor:
    """Displacement in the middle of each tile as `back` (n, 2, 2) turns it, (n, 2) px.

    It is read at the model's last step, behind which warps follow that torch cannot differentiate twice.
    """
    field = model(fixed, moving, fixed_valid, moving_valid).levels[-1].displacement
    # One pixel, or four of an even side: what stays in the middle when the tile is turned.
    rows, cols = (slice((side - 1) // 2, side // 2 + 1) for side in field.shape[-2:])
    middle: Tensor = back @ field[..., rows, cols].mean((2, 3))[..., None]
    return middle[..., 0]


class SimilarityTerm:
    """`-weight kC(x, x')`, the mean over some tiles x of a batch and x' made of them as augmentation would.

    Raises:
        ConfigError: nothing is augmented, or no parameter matches.
    """

    def __init__(self, model: nn.Module, options: TrainingOptions) -> None:
        if options.photometric == 0 and not options.flips:
            raise ConfigError("training.alike: nothing is alike; set training.photometric above 0 or training.flips")
        self.model, self.options = model, options
        patterns, known = list(options.alike.parameters), [name for name, _ in model.named_parameters()]
        if not any(is_chosen(name, patterns) for name in known):
            last = ", ".join(known[-3:])
            raise ConfigError(
                f"training.alike.parameters={patterns}: the model has no such parameter; its last are called {last}"
            )
        self.names = chosen_parameters(model, patterns)

    def __call__(self, batch: Batch, generator: np.random.Generator) -> Tensor:
        """One draw of the term for a batch; what the model draws at random stays as it would have been without."""
        count = min(self.options.alike.pairs, len(batch.fixed))
        turn = Turn.draw(generator, self.options.flips)
        masks = [mask[:count] for mask in (batch.fixed_valid, batch.moving_valid)]
        images = [image[:count] for image in (batch.fixed, batch.moving)]
        others = [recolour(image, self.options.photometric, generator) for image in images]
        back = torch.stack((torch.eye(2), turn.matrix().T)).repeat_interleave(count, 0).to(batch.fixed)
        both = [torch.cat((one, turn.image(other))) for one, other in zip(images + masks, others + masks, strict=True)]
        with torch.random.fork_rng([batch.fixed.device] if batch.fixed.is_cuda else []):
            found = similarity_in_training(self.model, turned_back, self.names, [*both, back])
        return -self.options.alike.weight * found.mean()
