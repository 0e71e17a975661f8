"""Does the audit find labels that are wrong? A training on labels among which some were moved far."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regnet.denoising.along import kernels_along, mean_kernel
from regnet.denoising.audit import audit
from regnet.denoising.operators import Array
from regnet.denoising.options import DenoiseOptions, DenoisingValidationOptions
from regnet.denoising.replicas import ShiftedTiles, train_once
from regnet.denoising.smoother import choose_smoother
from regnet.models import ModelOptions
from regnet.training.trail import Trail

RECALL = 0.6


def audit_blunders(
    tiles: ShiftedTiles, model_options: ModelOptions, options: DenoisingValidationOptions, folder: Path
) -> dict[str, float]:
    """Train on noisy labels of which some were moved, audit them, and count what was found.

    Args:
        tiles: what the network sees.
        model_options: network.
        options: noise, share and size of the blunders, training.
        folder: for the checkpoints.

    Returns:
        `precision_at_recall_60`, the share of moved labels among the most doubtful ones that hold 60 % of them;
        `precision` and `recall` of the labels that `denoise` would list as doubtful; and `suggested_error_px`, how far
        the suggested labels of the moved ones are from the truth on average.
    """
    generator = np.random.default_rng((options.seed, 4))
    n = len(tiles.offset)
    moved = generator.permutation(n)[: max(1, round(options.blunder_share * n))]
    noise = generator.normal(0, options.noise_sigma_px, (n, 2))
    direction = generator.uniform(0, 2 * np.pi, len(moved))
    noise[moved] += options.blunder_px * np.stack((np.cos(direction), np.sin(direction)), 1)
    truth = tiles.offset.double().numpy()
    labels, trail = truth + noise, Trail(folder)
    predictions = train_once(tiles, labels, model_options, options, trail)
    along = kernels_along(trail, tiles.batches, folder)
    start = along.values[0]
    found = choose_smoother(mean_kernel(along.adam, truth.shape[1]), labels - start, predictions - start)
    result = audit(found, labels, predictions)
    listed, wrong = result.score >= DenoiseOptions().audit_score, np.isin(np.arange(n), moved)
    return {
        "precision": float((listed & wrong).sum() / max(listed.sum(), 1)),
        "recall": float((listed & wrong).sum() / wrong.sum()),
        "precision_at_recall_60": precision_at_recall(result.order, moved, RECALL),
        "suggested_error_px": float(np.linalg.norm(result.suggested - truth, axis=1)[moved].mean()),
    }


def precision_at_recall(order: Array, wrong: NDArray[np.integer], recall: float) -> float:
    """Share of the wrong ones among the first of `order`, just so many as hold that share of all wrong ones."""
    hits = np.cumsum(np.isin(order, wrong))
    needed = int(np.ceil(recall * len(wrong)))
    return float(needed / (np.searchsorted(hits, needed) + 1))
