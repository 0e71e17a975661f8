"""The study `paper_enforced_similarity`: does the similarity term make training faster?

Source: Charpiat et al. 2019, on enforcing similarity: there it does on MNIST, and not on every data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm import tqdm

from regnet.files import inherited, next_folder, whole_path, write_figure, write_json, write_stamp
from regnet.models import ModelOptions
from regnet.options import recipe
from regnet.tiles.store import TileStore
from regnet.training.digits import train_digits
from regnet.training.fit import LOG, Fit
from regnet.training.options import EnforcedSimilarityOptions, TrainingOptions

PLAIN, WITH = "without", "with"
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Targets are the errors that the trainings without the term have, on average, after these shares of their epochs."""
TITLES = {
    "digits": "digits: share told wrongly",
    "registration": "registration: validation error, px",
}
COLOURS = {PLAIN: "#0072B2", WITH: "#D55E00"}


def run_enforced_similarity(
    store: TileStore,
    model_options: ModelOptions,
    training: TrainingOptions,
    options: EnforcedSimilarityOptions,
    folder: Path,
) -> None:
    """Train with and without the similarity term, and count the epochs until a validation error is reached.

    Writes `curves.csv` (a row an epoch), `epochs.csv` (a row a target), `enforced.png` and `summary.json`, beside one
    folder for each training of the registration network; those that are whole are not repeated. What stood in `folder`
    before stays until all of it is there, as with `train_rounds`.

    Raises:
        InputError: scikit-learn is not installed, or as `train` does.
    """
    with next_folder(folder) as place:
        curves = _curves(store, model_options, training, options, place, folder)
        table = pd.DataFrame([row for task in TITLES for row in epochs_table(curves, task)])
        for name, data in (("curves", curves), ("epochs", table)):
            with whole_path(place / f"{name}.csv") as partial:
                data.to_csv(partial, index=False, float_format="%.4g")
        _draw(curves, place / "enforced.png")
        summary = {
            "epochs": table.to_dict("records"),
            "seconds_ratio": {task: _seconds_ratio(curves, task) for task in TITLES},
            "kc_digits": curves[curves["task"] == "digits"].groupby("kind")["kc"].last().to_dict(),
            "settings": asdict(options),
        }
        write_json(place / "summary.json", summary)


def _curves(
    store: TileStore,
    model_options: ModelOptions,
    training: TrainingOptions,
    options: EnforcedSimilarityOptions,
    folder: Path,
    earlier: Path,
) -> pd.DataFrame:
    """Errors of all trainings, a row an epoch; those that an earlier study had alike are taken from its folder."""
    rows: list[dict[str, Any]] = []
    for seed in tqdm(options.seeds, desc="seeds"):
        for kind in (PLAIN, WITH):
            weight = options.digits.weight if kind == WITH else 0.0
            own = train_digits(options.digits, weight, seed)
            rows += [{"task": "digits", "kind": kind, "seed": seed, **row} for row in own]
            settings = _settings(training, options.weight if kind == WITH else 0.0, seed)
            place = folder / f"{kind}_{seed}"
            own = _register(store, model_options, settings, place, earlier / place.name)
            rows += [{"task": "registration", "kind": kind, "seed": seed, **row} for row in own]
    return pd.DataFrame(rows)


def _settings(training: TrainingOptions, weight: float, seed: int) -> TrainingOptions:
    """One training of the registration network, which never stops early."""
    alike = replace(training.alike, weight=weight)
    return replace(training, seed=seed, patience=training.epochs, alike=alike, familiarity_tiles=0)


def _register(
    store: TileStore, model_options: ModelOptions, training: TrainingOptions, folder: Path, earlier: Path
) -> list[dict[str, Any]]:
    stamp = {"model": asdict(model_options), "training": recipe(training), "tiles": store.manifest}
    if not inherited(folder, earlier, stamp):
        Fit(store, model_options, training, folder).run()
        write_stamp(folder, stamp)
    log = pd.read_csv(folder / LOG)
    columns = {"epoch": log["epoch"] + 1, "error": log["validation_epe_px"], "seconds": log["step_seconds"].cumsum()}
    rows: list[dict[str, Any]] = pd.DataFrame(columns).to_dict("records")
    return rows


def epochs_table(curves: pd.DataFrame, task: str) -> list[dict[str, Any]]:
    """Epochs and seconds until each target error of a task, with the term and without; NaN counts as never.

    Args:
        curves: columns task, kind, seed, epoch, error, seconds.
        task: which task.
    """
    own = curves[curves["task"] == task]
    plain = own[own["kind"] == PLAIN].groupby("epoch")["error"].mean().cummin()
    rows = []
    for share in SHARES:
        target = float(plain.iloc[max(1, round(share * len(plain))) - 1])
        row: dict[str, Any] = {"task": task, "error": target}
        for kind in (PLAIN, WITH):
            single = [curve for _, curve in own[own["kind"] == kind].groupby("seed")]
            epochs = np.array([epochs_to_reach(curve["error"].to_numpy(), target) for curve in single])
            reached = epochs[np.isfinite(epochs)]
            row[f"epochs_{kind}"] = float(reached.mean()) if len(reached) else float("nan")
            row[f"spread_{kind}"] = float(reached.std(ddof=1)) if len(reached) > 1 else float("nan")
            row[f"reached_{kind}"] = len(reached)
        row["ratio"] = row[f"epochs_{WITH}"] / row[f"epochs_{PLAIN}"]
        rows.append(row)
    return rows


def epochs_to_reach(errors: Sequence[float] | NDArray[np.floating], target: float) -> float:
    """Epochs (from 1, linear between them) until the least error so far is at most the target; NaN if it never is."""
    least = np.minimum.accumulate(np.asarray(errors, dtype=np.float64))
    after = int(np.searchsorted(-least, -target))
    if after == len(least):
        return float("nan")
    if after == 0:
        return 1.0
    return after + float((least[after - 1] - target) / (least[after - 1] - least[after]))


def _seconds_ratio(curves: pd.DataFrame, task: str) -> float:
    """Time of an epoch with the term over one without."""
    last = curves[curves["task"] == task].groupby(["kind", "seed"])["seconds"].max().groupby("kind").mean()
    return float(last[WITH] / last[PLAIN])


def _draw(curves: pd.DataFrame, path: Path) -> None:
    """Validation errors over the epochs: every training thin, their means thick."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, (task, title) in zip(figure.subplots(1, 2), TITLES.items(), strict=True):
        for kind, colour in COLOURS.items():
            own = curves[(curves["task"] == task) & (curves["kind"] == kind)]
            for _, single in own.groupby("seed"):
                axes.plot(single["epoch"], single["error"], color=colour, linewidth=0.6, alpha=0.5)
            mean = own.groupby("epoch")["error"].mean()
            axes.plot(mean.index, mean, color=colour, linewidth=2, label=f"{kind} the similarity term")
        axes.set(xlabel="epoch", title=title, yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(which="both", labelsize=8)
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False, fontsize=8)
    write_figure(path, figure)
