"""The paper's toy problem: its claim, its files and its options."""

import numpy as np
import pandas as pd
import pytest

from regnet.errors import ConfigError
from regnet.files import read_json
from regnet.similarity.options import PaperToyOptions
from regnet.similarity.toy import run_paper_toy, slope


def test_faster_targets_leave_fewer_neighbours(tmp_path):
    options = PaperToyOptions(frequencies=[1.0, 3.0, 6.0], replicas=1, points=96, width=48, layers=3, steps=350)
    run_paper_toy(options, tmp_path)
    table, summary = pd.read_csv(tmp_path / "toy.csv"), read_json(tmp_path / "summary.json")
    assert (table["rms_error"] < 0.1).all()  # they fit, so that the frequency is what differs
    assert (np.diff(table["density"]) < 0).all()
    assert summary["slope_loglog"] < -0.15
    assert abs(summary["slope_loglog_before"]) < 1e-6  # untrained, they are the same network
    assert summary["density"] == pytest.approx(table["density"].tolist())
    assert (tmp_path / "toy.png").stat().st_size > 1000


def test_the_experiment_through_the_console(regnet, here, tmp_path):
    sizes = "paper_toy={frequencies: [1, 4], replicas: 1, points: 32, width: 8, layers: 1, steps: 5}"
    command = ("run", "experiment=paper_toy", sizes, "output_dir=toy", "seed=3")
    result = regnet(*command, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.rstrip().endswith("paper_toy: see toy/paper_toy")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    table = pd.read_csv(tmp_path / "toy" / "paper_toy" / "toy.csv")
    assert table["frequency"].tolist() == [1, 4]
    assert set(table["seed"]) == {3}
    assert read_json(tmp_path / "toy" / "summary.json")["paper_toy"]["density"] == pytest.approx(table["density"])
    assert "paper_toy: skipped" in here(*command).stdout


def test_the_slope_of_a_power_law():
    x = np.array([1.0, 2, 4])
    assert slope(x, 3 * x**-0.7) == pytest.approx(-0.7)
    assert np.isnan(slope(x[:1], x[:1]))


def test_options_are_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"paper_toy\.steps=0 is out of range"):
        run_paper_toy(PaperToyOptions(steps=0), tmp_path)
    with pytest.raises(ConfigError, match=r"paper_toy\.frequencies is empty"):
        run_paper_toy(PaperToyOptions(frequencies=[]), tmp_path)
