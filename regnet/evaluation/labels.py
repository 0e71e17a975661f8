"""The error of the training labels themselves: what a network that merely repeats its labels would reach."""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm import tqdm

from regnet import metrics
from regnet.evaluation.methods import LABELS
from regnet.evaluation.tables import PIXELS, STRUCTURE, Errors, over_each, summary_row
from regnet.tiles.store import TileStore

MAX_TILES = 2000
UNKNOWN = "the true offset of the training tiles is not known"
"""Status of the labels where there is nothing to hold them against, which no other try changes."""


def label_rows(store: TileStore, parts: list[str], families: list[str]) -> list[dict[str, Any]]:
    """Rows of the labels: the same in every part and family, since labels belong to the training tiles.

    At most 2000 training tiles, evenly spread over the index, are read.

    Args:
        store: the tiles with `label_offset` and, where known, `true_offset`.
        parts: to give rows for.
        families: to give rows for.

    Returns:
        Rows as `regnet.evaluation.tables.method_rows` gives them; their status says so if the truth is not known.
    """
    tiles = store.tiles("train")
    chosen = tiles[np.unique(np.linspace(0, len(tiles) - 1, min(MAX_TILES, len(tiles))).round().astype(int))]
    errors: dict[str, list[Errors]] = {within: [] for within in PIXELS}
    gsd_m = {pair: store.scene(pair).gsd_m for pair in store.pairs}
    for position in tqdm(chosen, desc="labels", unit="tile"):
        tile = store.tile(int(position))
        if tile.true_offset is None:
            continue
        valid = tile.fixed_valid & tile.moving_valid
        px = metrics.epe(tile.label_offset, tile.true_offset).astype(np.float32)
        gsd = gsd_m[store.index["pair"].iloc[int(position)]]
        for within, of_these in over_each(px[valid], tile.structure[valid]).items():
            errors[within].append(Errors(of_these, gsd))
    unknown = {} if errors[STRUCTURE] else {"status": UNKNOWN}
    return [
        {
            "part": part,
            "family": family,
            "method": LABELS,
            "within": within,
            **summary_row(errors[within], 0.0, [], 0),
            **unknown,
        }
        for part in parts
        for family in families
        for within in PIXELS
    ]
