"""Real images that agree well: how exactly a displacement that was put in comes out, without training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from regnet.displacement import random_field
from regnet.models import matcher as module
from regnet.models.matcher import Matcher
from regnet.models.options import ModelOptions
from regnet.tiles.options import PairOptions
from regnet.tiles.pair import PairReader
from regnet.tiles.patch import Patch, displaced

pytestmark = pytest.mark.real
SIDE, MARGIN = 384, 80


def read(scene: Path, fixed: tuple[str, ...], moving: str, row: int, col: int) -> Patch:
    pair = PairOptions(
        "pair", "|".join(str(scene / f"s2_{band}.jp2") for band in fixed), str(scene / f"s2_{moving}.jp2")
    )
    with PairReader(pair) as reader:
        return reader.read(row - MARGIN, col - MARGIN, SIDE + 2 * MARGIN, SIDE + 2 * MARGIN)


def error_px(patch: Patch, sigma_px: float, seed: int = 1) -> float:
    """Mean end-point error beside the median shift where there is structure, under a displacement of 8 px."""
    true = random_field(patch.structure.shape, 8.0, sigma_px, np.random.default_rng(seed))
    moved, inner = displaced(patch, true), slice(MARGIN, -MARGIN)
    fixed, moving = (torch.from_numpy(image[:, inner, inner].copy())[None] for image in (moved.fixed, moved.moving))
    matcher = Matcher(ModelOptions(descriptor="mind"), fixed.shape[1], moving.shape[1]).eval()
    with torch.inference_mode():
        apart = matcher(fixed, moving).displacement[0].numpy() - true[:, inner, inner]
    apart = apart[:, patch.structure[inner, inner]]
    return float(np.hypot(*(apart - np.median(apart, axis=1, keepdims=True))).mean())


@pytest.mark.parametrize(("row", "col"), [(300, 300), (900, 900)])
def test_an_image_and_its_negative_come_together(sample_scene: Path, row: int, col: int) -> None:
    """Nothing is between them but the displacement."""
    patch = read(sample_scene, ("B04",), "B04", row, col)
    assert error_px(replace(patch, moving=-patch.moving), 80.0) < 0.1


@pytest.mark.parametrize(("row", "col"), [(300, 300), (900, 900)])
def test_near_infrared_comes_onto_visible_bands(sample_scene: Path, row: int, col: int) -> None:
    assert error_px(read(sample_scene, ("B02", "B03", "B04"), "B08", row, col), 80.0) < 0.14


def test_bands_of_larger_pixels_gain_by_blurring_and_others_stay_as_they_are(
    sample_scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = []
    for blurring in (True, False):
        if not blurring:
            monkeypatch.setattr(module, "well_blurred", lambda fixed, moving, _: (fixed[0], moving[0]))
        errors.append(
            [error_px(read(sample_scene, ("B02", "B03", "B04"), band, 300, 300), 20.0) for band in ("B11", "B08")]
        )
    (coarse, fine), (coarse_before, fine_before) = errors
    assert coarse < 0.95 * coarse_before
    assert fine == pytest.approx(fine_before, rel=0.02)
