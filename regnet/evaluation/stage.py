"""The evaluate stage: every method on every block of the held-out parts, with tables and maps."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import geopandas as gpd
import torch
from tqdm import tqdm

from regnet import files
from regnet.baselines.registry import Method
from regnet.errors import ConfigError, InputError, StoreError
from regnet.evaluation.cases import Case, CaseMaker, list_cases
from regnet.evaluation.check_points import FAMILY, read_check_points
from regnet.evaluation.labels import label_rows
from regnet.evaluation.maps import write_difference_map, write_error_map
from regnet.evaluation.methods import LABELS, check_methods, make_solver, method_settings, weights_digest
from regnet.evaluation.neighbours import NEAREST, TABLE, check_neighbours, compare_neighbours
from regnet.evaluation.options import EvaluateOptions
from regnet.evaluation.predictions import predict_all, read_outcomes
from regnet.evaluation.tables import frame, markdown, method_rows, summary_tree
from regnet.models.base import CPU
from regnet.options import check_names
from regnet.report.tables import unknown_text
from regnet.tiles.store import TileStore

# Methods whose map is shown as the difference to the model's too.
RIVALS = ("perceptual", "matcher_mind")
NEIGHBOURS = "neighbours.json"


def evaluate_stage(
    store: TileStore,
    model_path: Path | None,
    options: EvaluateOptions,
    folder: Path,
    seed: int = 0,
    similarity_folder: Path | None = None,
    device: torch.device = CPU,
) -> dict[str, Any]:
    """Compare methods on the store's held-out parts under random displacements that are known, or at check points.

    Predictions are kept in `folder/predictions` and used again as long as the store, the families, the seed, the
    context, the check points and the method's own settings stay the same, so adding a method runs that method alone,
    and adding a metric none; so is what neighbours were found, as long as the similarities stay the same. What a method
    failed on is tried again.

    Args:
        store: prepared tiles and scenes.
        model_path: checkpoint of the trained model; None if there is none.
        options: families, parts, methods.
        folder: gets table.csv, table.md, summary.json, regions.parquet, maps/ and predictions/.
        seed: of the random displacements.
        similarity_folder: what the similarity stage found; then neighbours are compared too
            (`regnet.evaluation.neighbours`).
        device: where networks are evaluated.

    Returns:
        What summary.json holds: `evaluation.<family>.<method>.<metric>` and the same for the other parts, and
        `neighbours`.

    Raises:
        ConfigError: a method does not exist, or something that neighbours are to be compared by; families cannot be
            told apart, or there are none and no check points.
        InputError: the store has no block in any of the parts, the check points cannot be used, or the model is damaged
            or another's.
    """
    check_methods(options.methods)
    _check_families(options)
    check_neighbours(options.neighbours, store)
    # What methods see beside a block lies in the gap: never in another part.
    margin_px = min(options.context_px, int(store.manifest["options"]["split"]["gap_px"]))
    points = {} if options.check_points is None else read_check_points(Path(options.check_points), store)
    cases = list_cases(store, options.parts, options.families, options.draws, margin_px, points)
    named = ", ".join(options.parts)
    if points and not any(case.family.name == FAMILY for case in cases):
        raise InputError(
            f"evaluate.check_points={options.check_points}: no point lies in the parts {named}; set evaluate.parts"
        )
    if not cases:
        raise InputError(f"the prepared tiles have no block in the parts {named}; check the split")
    predictions = _predictions_folder(store, model_path, options, folder, seed)
    solvers = _solvers(store, model_path, options, device)
    predict_all(cases, CaseMaker(store, seed), solvers, predictions)
    rows, regions = _tables(cases, list(solvers), predictions, store)
    if LABELS in options.methods:
        parts = list(dict.fromkeys(case.part for case in cases))
        rows += label_rows(store, parts, [family.name for family in options.families])
    order = {name: position for position, name in enumerate(options.methods)}
    families = [*(family.name for family in options.families), FAMILY]
    rows.sort(key=lambda row: (options.parts.index(row["part"]), families.index(row["family"]), order[row["method"]]))
    _write_maps(cases, list(solvers), predictions, store, folder / "maps")
    summary = summary_tree(rows)
    if model_path is not None and similarity_folder is not None:
        summary["neighbours"] = _neighbours(store, model_path, similarity_folder, options, folder)
    _write_tables(rows, regions, store, folder)
    files.write_json(folder / "summary.json", summary)
    return summary


def _check_families(options: EvaluateOptions) -> None:
    names = [family.name for family in options.families]
    check_names([*names, FAMILY], "evaluate.families")
    if not names and options.check_points is None:
        raise ConfigError("evaluate.families is empty, and there are no evaluate.check_points; name a family")


def _neighbours(
    store: TileStore, model_path: Path, similarity_folder: Path, options: EvaluateOptions, folder: Path
) -> dict[str, Any]:
    """What the comparison of neighbours found, now or before on the same similarities, or why there is none."""
    stamp, kept = similarity_folder / files.STAMP, folder / NEIGHBOURS
    weights = [weights_digest(network) for network in options.neighbours.networks]
    made_with = files.digest([stamp.is_file() and files.file_digest(stamp), asdict(options.neighbours), weights])
    if not (kept.is_file() and stamp.is_file() and files.read_json(kept)["made_with"] == made_with):
        for name in (TABLE, NEAREST, NEIGHBOURS):
            files.remove(folder / name)
        try:
            found = compare_neighbours(store, model_path, similarity_folder, options.neighbours, folder)
        except (InputError, StoreError) as error:
            tqdm.write(f"evaluate: neighbours are not compared: {error}", file=sys.stderr)
            return {"status": str(error)}
        files.write_json(kept, {"made_with": made_with, "found": found})
    return dict(files.read_json(kept)["found"])


def _predictions_folder(
    store: TileStore, model_path: Path | None, options: EvaluateOptions, folder: Path, seed: int
) -> Path:
    """Folder of the cached predictions, emptied of those that were made with other settings."""
    settings = {
        "store": [store.manifest, *(store.scene(pair).attributes for pair in store.pairs)],
        "families": [asdict(family) for family in options.families],
        "context_px": options.context_px,
        "check_points": options.check_points and files.file_digest(Path(options.check_points)),
        "seed": seed,
    }
    predictions = folder / "predictions"
    _keep_only(predictions, settings)
    for name in options.methods:
        if name != LABELS:
            _keep_only(predictions / name, method_settings(name, model_path, options))
    return predictions


def _keep_only(folder: Path, settings: dict[str, Any]) -> None:
    """Empty a folder that was not made with these settings, and stamp it with them."""
    if not files.is_stamped(folder, settings):
        files.remove(folder)
        folder.mkdir(parents=True)
        files.write_stamp(folder, settings)


def _solvers(
    store: TileStore, model_path: Path | None, options: EvaluateOptions, device: torch.device
) -> dict[str, Method | str]:
    """The methods by name; one that cannot even start is there with the reason instead."""
    solvers: dict[str, Method | str] = {}
    for name in options.methods:
        if name != LABELS:
            try:
                solvers[name] = make_solver(name, store, model_path, options, device)
            except InputError as error:
                if name == "model" and model_path is not None and model_path.is_file():
                    raise
                solvers[name] = str(error)
    return solvers


def _tables(
    cases: list[Case], methods: list[str], predictions: Path, store: TileStore
) -> tuple[list[dict[str, Any]], list[Any]]:
    gsd_m = {pair: store.scene(pair).gsd_m for pair in store.pairs}
    rows: list[dict[str, Any]] = []
    regions: list[Any] = []
    for part, family in dict.fromkeys((case.part, case.family.name) for case in cases):
        here = [case for case in cases if (case.part, case.family.name) == (part, family)]
        for method in methods:
            whole, by_region = method_rows(read_outcomes(here, method, predictions), gsd_m)
            rows += whole
            regions += by_region
    return rows, regions


def _write_maps(cases: list[Case], methods: list[str], predictions: Path, store: TileStore, folder: Path) -> None:
    files.remove(folder)
    for pair, family in dict.fromkeys((case.block.pair, case.family.name) for case in cases):
        here = [case for case in cases if (case.block.pair, case.family.name) == (pair, family)]
        outcomes = {method: partial(read_outcomes, here, method, predictions) for method in methods}
        for method in methods:
            write_error_map(folder / f"{pair}_{family}_{method}.tif", outcomes[method](), store, pair)
        for other in (name for name in RIVALS if name in methods and "model" in methods):
            path = folder / f"{pair}_{family}_model_minus_{other}.tif"
            write_difference_map(path, outcomes["model"](), outcomes[other](), store, pair)


def _write_tables(rows: list[dict[str, Any]], regions: list[Any], store: TileStore, folder: Path) -> None:
    with files.whole_path(folder / "table.csv") as partial:
        frame(rows).to_csv(partial, index=False)
    note = unknown_text(store.unknown_pairs)
    files.write_text(folder / "table.md", markdown(rows) + (f"\n{note}\n" if note else ""))
    # Labels alone have no regions.
    table = gpd.GeoDataFrame(regions or {"geometry": []}, geometry="geometry", crs=store.blocks.crs)
    with files.whole_path(folder / "regions.parquet") as partial:
        table.to_parquet(partial)
