"""How familiar the ground of a pair is to the model that registers it, at places all over the pair."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from regnet.registration.windows import Reader
from regnet.similarity.familiarity import FAMILIARITY, Familiarity, FamiliarityMeter

SPACING_PX, MOST_PLACES = 768, 36
"""Least distance of the places that are looked at, and about how many there are at most."""
LEAST_VALID = 0.9
"""Places with a smaller share of data are left out: training sees few of them."""
UNKNOWN = "how familiar the pair is to {} is not known: nothing about its training lies beside it; train it again"


@dataclass(frozen=True)
class Familiar:
    """How familiar a pair is, place by place.

    Attributes:
        similarity: (rows, cols) of equal parts of the pair: mean kC of a tile in their middle to the tiles that the
            model was trained on, -1 to 1; NaN where there is too little data.
        shape: (H, W) of the pair, px.
        known: what is remembered of the training.
    """

    similarity: NDArray[np.float64]
    shape: tuple[int, int]
    known: Familiarity

    def at(self, rows: NDArray[np.integer], cols: NDArray[np.integer]) -> NDArray[np.float64]:
        """What the nearest place says of some pixels, (n,)."""
        parts = (
            np.minimum(places * count // side, count - 1)
            for places, count, side in zip((rows, cols), self.similarity.shape, self.shape, strict=True)
        )
        return np.asarray(self.similarity[tuple(parts)])

    def onto(self, ties: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
        """Tie points with a column `familiarity`."""
        return ties.assign(familiarity=self.at(ties["row"].to_numpy(), ties["col"].to_numpy()))

    def summary(self) -> dict[str, Any]:
        """What summary.json says of it."""
        told = self.similarity[np.isfinite(self.similarity)]
        own = self.known.own.double().numpy()
        median = float(np.median(told)) if told.size else float("nan")
        return {
            "places": told.size,
            "similarity_median": median,
            "n_soft_median": median * self.known.trained,
            "training_similarity_median": float(np.median(own)),
            "training_tiles": self.known.trained,
            "stranger_share": float((told < own.min()).mean()) if told.size else float("nan"),
        }


def look_familiar(model: nn.Module, model_path: Path, read: Reader, shape: tuple[int, int]) -> Familiar | None:
    """Look at places on a regular grid all over a pair.

    Args:
        model: that registers it.
        model_path: its file, beside which lies what is remembered of its training.
        read: `read(row, col, height, width)` gives a window of the pair.
        shape: (H, W) of the pair, px.

    Returns:
        What was found; None if nothing lies there.

    Raises:
        InputError: what lies there is damaged, or is of another model.
    """
    path = model_path.with_name(FAMILIARITY)
    if not path.is_file():
        return None
    known = Familiarity.load(path)
    meter = FamiliarityMeter(model, known)
    spacing = max(SPACING_PX, math.sqrt(shape[0] * shape[1] / MOST_PLACES))
    counts = [max(1, round(side / spacing)) for side in shape]
    similarity = np.full(counts, np.nan)
    for place in np.ndindex(*counts):
        row, col = (
            int((index + 0.5) * side / count) - known.side_px // 2
            for index, side, count in zip(place, shape, counts, strict=True)
        )
        patch = read(row, col, known.side_px, known.side_px)
        if (patch.fixed_valid & patch.moving_valid).mean() >= LEAST_VALID:
            similarity[place] = meter(torch.from_numpy(patch.fixed)[None], torch.from_numpy(patch.moving)[None])[0]
    return Familiar(similarity, shape, known)
