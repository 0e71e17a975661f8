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


def test_the_slope_of_a_power_law():
    x = np.array([1.0, 2, 4])
    assert slope(x, 3 * x**-0.7) == pytest.approx(-0.7)
    assert np.isnan(slope(x[:1], x[:1]))


def test_options_are_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"toy\.steps=0 is out of range"):
        run_paper_toy(PaperToyOptions(steps=0), tmp_path)
