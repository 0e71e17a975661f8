"""The study `denoising_validation`: estimators of the denoising, and similarities of all kinds, against replicas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from regnet.baselines.perceptual import load_network
from regnet.denoising.blunders import audit_blunders
from regnet.denoising.contest import (
    OWN_LABEL,
    Contest,
    Contestant,
    by_weights,
    contestants_by,
    hold_contest,
    own_label,
)
from regnet.denoising.contest_maps import write_contest_maps
from regnet.denoising.estimators import CONSTANT
from regnet.denoising.operators import similarities
from regnet.denoising.options import DenoisingValidationOptions
from regnet.denoising.study import Study, compare_estimators, summarise
from regnet.draw import STYLE, save
from regnet.errors import ConfigError
from regnet.evaluation.neighbours import GRADIENT, Similarity, by_other_eyes, check_neighbours
from regnet.evaluation.options import NeighbourOptions
from regnet.files import whole_path, write_json
from regnet.models import ModelOptions
from regnet.models.checkpoint import load_checkpoint
from regnet.report.contest import contest_figure, transfer_maps_figure
from regnet.report.neighbours import offsets, side_by_side_figure
from regnet.report.study import report_study
from regnet.similarity.neighbours import nearest_others
from regnet.tiles.store import TileStore

FOLDER = "contest"
_DPI, _QUERIES, _NEAREST = 110, 3, 6


def run_denoising_validation(
    store: TileStore,
    model_options: ModelOptions,
    options: DenoisingValidationOptions,
    neighbours: NeighbourOptions,
    folder: Path,
) -> None:
    """Train replicas; compare what estimators predict and whose noise similarities say was averaged; try the audit.

    Writes what `compare_estimators` writes, and in `contest/`: `table.csv` (a row for each of the weights), `tiles.csv`
    and `regions.csv` (noise transfer of the weights by tile and by region), `noise_transfer_<pair>.tif` with a QGIS
    style and the same for neighbours alone in `others/`, `scores.png`, `maps.png`, `neighbours.png`; `summary.json`,
    and `report.html`, which shows it all. A killed study goes on behind the last replica.

    Args:
        store: the prepared tiles.
        model_options: network.
        options: replicas and their training.
        neighbours: the ImageNet networks that gradients are compared with.
        folder: where to write.

    Raises:
        ConfigError: no ImageNet network, one that cannot be compared, or regions that no cell is large enough for.
        InputError: too few tiles, or the weights of an ImageNet network are missing.
    """
    _check_networks(neighbours, store)
    study = compare_estimators(store, model_options, options, folder)
    seen = _similarities(study, neighbours)
    offset = study.tiles.offset.double().numpy()
    replicas = study.replicas
    contest = hold_contest(_entered(study, seen), replicas.predictions, replicas.noise, study.regions.tolist(), offset)
    _write(contest, study, store, seen, folder / FOLDER)
    found = audit_blunders(study.tiles, model_options, options, folder / "blunders")
    write_json(folder / "summary.json", {**summarise(study), "contest": _summary(contest), "audit": found})
    report_study(folder, {"denoising_validation": asdict(options), "model": asdict(model_options)})


def _check_networks(options: NeighbourOptions, store: TileStore) -> None:
    """Refuse before the first training what would fail after the last."""
    if not options.networks:
        raise ConfigError("evaluate.neighbours.networks=[]: gradients are to be held against one; name a network")
    check_neighbours(options, store)
    for network in options.networks:
        load_network(network)


def _similarities(study: Study, options: NeighbourOptions) -> list[Similarity]:
    tiles, trail = study.tiles, study.replicas.trail
    model = load_checkpoint(trail.path(trail.points()[-1].name))
    gradients = [
        Similarity("gradient", f"{GRADIENT}, {name}", similarities(kernel)) for name, kernel in study.kernels.items()
    ]
    others = by_other_eyes(lambda part: (tiles.fixed[part], tiles.moving[part]), len(tiles.offset), options, model)
    return [*gradients, *others]


def _entered(study: Study, seen: Sequence[Similarity]) -> Iterator[Contestant]:
    yield own_label(len(study.tiles.offset))
    for estimate in study.estimates:
        if estimate.weights is not None:
            kind = "control" if estimate.name == CONSTANT else "gradient"
            yield from by_weights(estimate.name, kind, estimate.weights)
    for one in seen:
        yield from contestants_by(one.name, one.kind, one.values)


def _summary(contest: Contest) -> dict[str, Any]:
    scores = contest.table.set_index("name")["noise_transfer"]
    return {
        "with_own_label": contest.duel(own=True),
        "without_own_label": contest.duel(own=False),
        "own_label_alone": scores[OWN_LABEL],
        "outputs_apart_px": contest.outputs_apart_px,
    }


def _write(contest: Contest, study: Study, store: TileStore, seen: Sequence[Similarity], folder: Path) -> None:
    rows = study.tiles.rows
    tables = {
        "table": contest.table,
        "tiles": pd.concat([rows[["tile_id", "pair", "row", "col"]], contest.tiles], axis=1),
        "regions": contest.regions.rename_axis("region").reset_index(),
    }
    for name, table in tables.items():
        with whole_path(folder / f"{name}.csv") as partial:
            table.to_csv(partial, index=False, float_format="%.4g")
    scenes = {pair: store.scene(pair) for pair in store.pairs}
    for own, place in ((True, folder), (False, folder / "others")):
        write_contest_maps(contest, rows, scenes, store.tile_px, store.tile_px, place, own)
    pair = rows["pair"].value_counts().index[0]
    here = (rows["pair"] == pair).to_numpy()
    transfer = {kind: contest.tiles[contest.best(kind)].to_numpy()[here] for kind in ("gradient", "perceptual")}
    with mpl.rc_context(STYLE):
        save(contest_figure(contest.table), folder / "scores.png", _DPI)
        save(transfer_maps_figure(store.scene(pair), rows[here], transfer, store.tile_px), folder / "maps.png", _DPI)
        save(_side_by_side(study, seen), folder / "neighbours.png", _DPI)


def _side_by_side(study: Study, seen: Sequence[Similarity]) -> Figure:
    """Nearest tiles by the gradients the network was trained with, and by each of the other eyes on both images."""
    shown = [one for one in seen if one.kind != "gradient" and one.name.endswith("both")]
    shown.insert(0, [one for one in seen if one.kind == "gradient"][-1])
    n = len(study.tiles.offset)
    return side_by_side_figure(
        study.tiles.fixed.numpy(),
        {one.name: nearest_others(one.values, _NEAREST) for one in shown},
        np.unique(np.linspace(0, n - 1, _QUERIES).round().astype(int)).tolist(),
        titles=dict.fromkeys((one.name for one in shown), offsets(study.replicas.predictions[0])),
    )
