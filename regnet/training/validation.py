"""The error by which a training is judged: on validation tiles, under displacements that never change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnet.errors import InputError
from regnet.models.base import device_of
from regnet.models.matcher import Matcher
from regnet.models.unet import UNet
from regnet.training.options import TrainingOptions
from regnet.training.samples import TileCache, draw_batches

VALIDATION_STEP_PX = 4
"""Validation errors are smooth: one pixel in so many rows and columns is looked at."""


@torch.no_grad()
def validation_epe(
    model: Matcher | UNet,
    cache: TileCache,
    positions: NDArray[np.integer],
    options: TrainingOptions,
    beside_shifts: bool = False,
) -> float:
    """Mean end-point error against the labels, px, under one fixed draw of displacements and no augmentation.

    With `beside_shifts` the labels of a pair may all be off alike: its median error is not counted.

    Raises:
        InputError: no pixel of the tiles is valid in both images.
    """
    plain = replace(options, flips=False, photometric=0.0)
    model.eval()
    errors: dict[str, list[Tensor]] = {}
    steps = -(-len(positions) // options.batch)
    for batch in draw_batches(cache, positions, plain, steps, (options.seed, 1_000_003), device=device_of(model)):
        predicted: Tensor = model(batch.fixed, batch.moving, batch.fixed_valid, batch.moving_valid).displacement
        for pair, error, known in zip(batch.pairs, predicted - batch.target, batch.target_valid[:, 0], strict=True):
            every = np.s_[..., ::VALIDATION_STEP_PX, ::VALIDATION_STEP_PX]
            errors.setdefault(pair, []).append(error[every][:, known[every]])
    of_pairs = [error for error in (torch.cat(parts, 1) for parts in errors.values()) if error.numel()]
    if not of_pairs:
        raise InputError(
            f"validation: none of {len(positions)} tiles has a pixel that is valid in both images once moving is "
            "displaced; raise prepare.min_valid, or lower training.shift_px and training.peak_px"
        )
    if beside_shifts:
        of_pairs = [error - error.median(1, keepdim=True).values for error in of_pairs]
    return float(torch.cat(of_pairs, 1).norm(dim=0).mean())
