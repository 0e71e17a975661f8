"""The paper's toy problem: how many neighbours a network gives a point follows from how fast its target varies.

Source: Charpiat et al. 2019, section 4: a network is fitted to a sinusoid on a line. The faster the target, the more
inputs it has to tell apart, and the fewer neighbours N_S each of them is left with. The line is closed to a circle, so
that it has no ends and every point is like any other.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from regnet.errors import ConfigError
from regnet.files import whole_path, write_figure, write_json
from regnet.options import check_options
from regnet.similarity.gradients import Jacobians
from regnet.similarity.linear import SoftCounter
from regnet.similarity.options import PaperToyOptions
from regnet.similarity.readouts import forward


def run_paper_toy(options: PaperToyOptions, folder: Path) -> None:
    """Fit networks to sinusoids, count neighbours, and write `toy.csv`, `toy.png` and `summary.json`.

    Raises:
        ConfigError: an option out of range, or no frequencies.
        OutputError: the folder cannot be written.
    """
    check_options(options, "paper_toy.")
    if not options.frequencies:
        raise ConfigError("paper_toy.frequencies is empty; give some, such as [1,2,4]")
    rows = []
    for frequency in tqdm(options.frequencies, desc="frequencies"):
        for replica in range(options.replicas):
            rows.append(fit_and_count(frequency, options, options.seed + replica))
    table = pd.DataFrame(rows)
    with whole_path(folder / "toy.csv") as partial:
        table.to_csv(partial, index=False)
    means = table.groupby("frequency")[["density", "density_before", "rms_error"]].mean()
    draw_toy(table, folder / "toy.png")
    write_json(
        folder / "summary.json",
        {
            "frequencies": means.index.tolist(),
            **{name: means[name].tolist() for name in means},
            "slope_loglog": slope(means.index.to_numpy(dtype=float), means["density"].to_numpy()),
            "slope_loglog_before": slope(means.index.to_numpy(dtype=float), means["density_before"].to_numpy()),
        },
    )


def fit_and_count(frequency: float, options: PaperToyOptions, seed: int) -> dict[str, Any]:
    """Fit one network to `sin(frequency angle)` on the circle; neighbour density N_S / n before and after the fit."""
    torch.manual_seed(seed)
    model = make_network(options)
    angle = 2 * torch.pi * torch.arange(options.points)[:, None] / options.points
    x, target = torch.cat((angle.cos(), angle.sin()), 1), torch.sin(frequency * angle)
    before = density(model, x)
    optimiser = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.steps)
    for _ in range(options.steps):
        loss = (model(x) - target).square().mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        error = float((model(x) - target).square().mean().sqrt())
    return {
        "frequency": frequency,
        "seed": seed,
        "density_before": float(before.mean()),
        "density": float(density(model, x).mean()),
        "rms_error": error,
    }


def make_network(options: PaperToyOptions) -> nn.Sequential:
    """A plain network from a point of the circle to a number."""
    sizes = [2] + [options.width] * options.layers
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(options.width, 1))


def density(model: nn.Module, x: Tensor) -> Tensor:
    """N_S / n of every point, (n,)."""
    _, jacobians = Jacobians(model, forward)(x)
    counter = SoftCounter()
    counter.add(jacobians)
    return counter.count(jacobians) / len(x)


def slope(frequencies: np.ndarray, densities: np.ndarray) -> float:
    """Exponent b of `density ~ frequency^b`; NaN if there is one frequency only."""
    if len(frequencies) < 2:
        return float("nan")
    return float(np.polyfit(np.log(frequencies), np.log(np.maximum(densities, 1e-12)), 1)[0])


def draw_toy(table: pd.DataFrame, path: Path) -> None:
    """Draw the neighbour density of every network against its frequency."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.loglog(table["frequency"], table["density_before"], ".", color="tab:gray", label="before training")
    axes.loglog(table["frequency"], table["density"], ".", color="tab:blue", label="after training")
    means = table.groupby("frequency")["density"].mean()
    axes.loglog(means.index, means, color="tab:blue")
    axes.set_xlabel("frequency of the target (periods on the closed line)")
    axes.set_ylabel("neighbour density N_S / n")
    axes.set_xticks(means.index, [f"{frequency:g}" for frequency in means.index])
    axes.yaxis.set_major_formatter("{x:.2g}")
    axes.minorticks_off()
    axes.set_yticks([share for share in (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1) if share >= means.min() / 2])
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    write_figure(path, figure)
