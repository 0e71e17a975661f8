"""The study `noise_sweep`: errors of labels and of the network after each round, against the noise of the labels.

Source: Charpiat et al. 2019, section 5, and Girard et al., IGARSS 2019: a network trained on noisy labels is better
than they are. The noise comes on top of the misalignment that the pair has by nature, which counts as no error here.
What all labels have in common is not averaged away, and the sweep shows it beside the rest.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regnet.errors import InputError
from regnet.files import STAMP, read_json, whole_path, write_figure, write_json, write_text
from regnet.tiles.labels import systematic_shift
from regnet.tiles.options import NoiseOptions
from regnet.tiles.store import TileStore

FOLDER, TABLE = "noise_sweep", "rounds.csv"
COLUMNS = {
    "noise_sigma_px": "noise, px a component",
    "shift_px": "systematic shift, px",
    "round": "round",
    "labels_epe_mean_px": "labels, mean px",
    "labels_systematic_px": "systematic",
    "corrected_epe_mean_px": "corrected, mean px",
    "corrected_systematic_px": "systematic",
    "model_epe_mean_px": "model, mean px",
    "model_epe_median_px": "median",
    "model_systematic_px": "systematic",
}
GREY, COLOURS = "#555555", ("#56B4E9", "#0072B2", "#D55E00", "#CC79A7")


def sweep_level(store: TileStore, train_folder: Path, folder: Path) -> None:
    """Write down one level of noise: `rounds.csv`, a row a round, and `summary.json`.

    Args:
        store: the tiles, with a note of the noise that `prepare` drew.
        train_folder: what the training in rounds left.
        folder: where to write.

    Raises:
        InputError: the training had no rounds.
    """
    rounds = read_json(train_folder / "summary.json").get("rounds")
    if rounds is None:
        raise InputError("training.rounds=1: corrects no labels; set training.rounds to 2 or more for noise_sweep")
    noise = NoiseOptions(**store.manifest["options"]["noise"])
    dx_px, dy_px = systematic_shift(noise)
    random = noise.kind not in ("none", "systematic")
    level = {
        "noise_kind": noise.kind,
        "noise_sigma_px": noise.sigma_px if random else 0.0,
        "shift_dx_px": dx_px,
        "shift_dy_px": dy_px,
        "shift_px": (dx_px**2 + dy_px**2) ** 0.5,
    }
    rows = [{**level, **row} for row in rounds]
    with whole_path(folder / TABLE) as partial:
        pd.DataFrame(rows).to_csv(partial, index=False)
    write_json(folder / "summary.json", {**level, "rounds": rows})


def gather_sweep(folder: Path) -> None:
    """Put the levels of a sweep together: `noise_sweep.csv`, `noise_sweep.md` and `noise_sweep.png` in its folder.

    Args:
        folder: of the sweep, with one run folder a level; runs that are not whole are left out.

    Raises:
        InputError: no run is whole.
    """
    places = [path for path in sorted(folder.glob(f"*/{FOLDER}/{TABLE}")) if (path.parent / STAMP).is_file()]
    if not places:
        raise InputError(f"{folder}: holds no whole run of noise_sweep; run `regnet run experiment=noise_sweep` first")
    parts = [pd.read_csv(path).assign(run=path.parent.parent.name) for path in places]
    table = pd.concat(parts).sort_values(["shift_px", "noise_sigma_px", "run", "round"], ignore_index=True)
    with whole_path(folder / "noise_sweep.csv") as partial:
        table.to_csv(partial, index=False)
    write_text(folder / "noise_sweep.md", sweep_markdown(table))
    draw_sweep(table, folder / "noise_sweep.png")


def sweep_markdown(table: pd.DataFrame) -> str:
    """The sweep as a Markdown table, and what it says of systematic shifts."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + " --- |" * len(COLUMNS)]
    for row in table[list(COLUMNS)].itertuples(index=False):
        lines.append("| " + " | ".join(f"{value:.3g}" for value in row) + " |")
    text = (
        "\nErrors against the kept true offsets: of the training tiles' labels before and after each round's "
        "correction, and of the model on held-out ground. `systematic` is the length of the mean error vector. The "
        "noise is drawn on top of the pair as it lies: what misaligns it by nature is part of the truth here.\n"
    )
    shifted = table[table["shift_px"] > 0]
    for _, rounds in shifted.groupby("run"):
        last = rounds.iloc[-1]
        kept = last["model_systematic_px"] / last["shift_px"]
        text += (
            f"\nA shift of {last['shift_px']:.2f} px that all labels share is not removable by averaging: after round "
            f"{last['round']:.0f} the model keeps {kept:.0%} of it.\n"
        )
    return "\n".join(lines) + "\n" + text


def draw_sweep(table: pd.DataFrame, path: Path) -> None:
    """Draw errors against the noise, one line a round, and beside them what is left where labels share a shift."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    shifted = table[table["shift_px"] > 0]
    widths = [3] if shifted.empty else [3, 2]
    parts = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    _draw_levels(parts[0], table[table["shift_px"] == 0])
    if not shifted.empty:
        _draw_shifted(parts[1], shifted[shifted["run"] == shifted["run"].iloc[0]])
    write_figure(path, figure)


def _draw_levels(axes: Axes, levels: pd.DataFrame) -> None:
    first = levels[levels["round"] == 1]
    axes.plot(first["noise_sigma_px"], first["labels_epe_mean_px"], "o-", color=GREY, label="labels as given")
    for number, rounds in levels.groupby("round"):
        colour = COLOURS[(int(number) - 1) % len(COLOURS)]
        labels = f"labels corrected by round {number}"
        x = rounds["noise_sigma_px"]
        axes.plot(x, rounds["corrected_epe_mean_px"], "s--", color=colour, markersize=4, label=labels)
        axes.plot(x, rounds["model_epe_mean_px"], "o-", color=colour, label=f"model of round {number}, held-out ground")
    axes.set(xlabel="label noise, px a component", ylabel="mean error against the truth, px", ylim=(0, None))
    axes.set_xticks(sorted(set(levels["noise_sigma_px"])))
    axes.set_title("Noise on top of the pair as it lies", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def _draw_shifted(axes: Axes, rounds: pd.DataFrame) -> None:
    names = ["labels", *(f"model {number}" for number in rounds["round"])]
    first = rounds.iloc[0]
    means = [first["labels_epe_mean_px"], *rounds["model_epe_mean_px"]]
    systematic = [first["labels_systematic_px"], *rounds["model_systematic_px"]]
    places = range(len(names))
    axes.bar(places, means, color=[GREY, *COLOURS[: len(rounds)]], alpha=0.5, label="mean error")
    axes.bar(places, systematic, width=0.35, color="black", label="of it systematic")
    axes.axhline(first["shift_px"], color="black", linewidth=1, linestyle=":", label="shift that all labels share")
    axes.set_xticks(places, names)
    noise = f"Noise of {first['noise_sigma_px']:g} px and a shift of {first['shift_px']:.2f} px"
    axes.set_title(f"{noise}:\nthe shift is not averaged away", fontsize=10)
    axes.set_ylabel("px")
    axes.legend(frameon=False, fontsize=8)
