"""The sweep over label noise: one level written down, several gathered, and the experiment through the console."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from regnet.errors import InputError
from regnet.files import read_json, write_json, write_stamp
from regnet.training.sweep import gather_sweep, sweep_level, sweep_markdown


class Store:
    """As much of a tile store as a level looks at."""

    def __init__(self, **noise):
        self.manifest = {"options": {"noise": noise}}


def one_round(number, labels, corrected, model, systematic=0.1):
    errors = {"labels": labels, "corrected": corrected, "model": model}
    row = {f"{name}_epe_mean_px": value for name, value in errors.items()}
    row |= {f"{name}_systematic_px": systematic for name in errors}
    return {"round": number, **row, "model_epe_median_px": model, "moved_px": 1.0, "trusted_share": 0.5}


def level(folder, name, rounds, **noise):
    write_json(folder / name / "train" / "summary.json", {"rounds": rounds})
    place = folder / name / "noise_sweep"
    sweep_level(Store(**noise), folder / name / "train", place)
    write_stamp(place, {})
    return place


def test_levels_are_gathered_by_their_noise(tmp_path):
    level(tmp_path, "0", [one_round(1, 5.0, 1.5, 1.4), one_round(2, 1.5, 1.1, 1.0)], kind="tile", sigma_px=4.0)
    level(tmp_path, "1", [one_round(1, 0.0, 0.3, 0.2)], kind="none", sigma_px=4.0)
    shift = {"shift_dx_px": 3.0, "shift_dy_px": -4.0}
    place = level(tmp_path, "2", [one_round(1, 7.0, 5.1, 5.0, 4.5)], kind="tile", sigma_px=4.0, **shift)
    level(tmp_path, "3", [one_round(1, 9.0, 9.0, 9.0)], kind="tile", sigma_px=9.0)
    (tmp_path / "3" / "noise_sweep" / "stamp.json").unlink()  # was cut short
    gather_sweep(tmp_path)
    table = pd.read_csv(tmp_path / "noise_sweep.csv")
    assert table["run"].tolist() == [1, 0, 0, 2]
    assert table["noise_sigma_px"].tolist() == [0, 4, 4, 4]
    assert table["shift_px"].tolist() == [0, 0, 0, 5]
    assert table["model_epe_mean_px"].tolist() == [0.2, 1.4, 1.0, 5.0]
    assert read_json(place / "summary.json")["shift_dy_px"] == -4
    text = (tmp_path / "noise_sweep.md").read_text()
    assert "| 4 | 0 | 2 | 1.5 |" in text
    assert "A shift of 5.00 px that all labels share is not removable by averaging: after round 1 the model" in text
    assert "keeps 90% of it" in text
    with Image.open(tmp_path / "noise_sweep.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_without_a_shift_nothing_is_said_of_one(tmp_path):
    level(tmp_path, "0", [one_round(1, 5.0, 1.5, 1.4)], kind="tile", sigma_px=4.0)
    gather_sweep(tmp_path)
    assert "removable" not in sweep_markdown(pd.read_csv(tmp_path / "noise_sweep.csv"))


def test_what_cannot_be_gathered_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no whole run of noise_sweep"):
        gather_sweep(tmp_path)
    write_json(tmp_path / "train" / "summary.json", {"epochs": 3})
    with pytest.raises(InputError, match=r"training\.rounds=1: corrects no labels"):
        sweep_level(Store(kind="tile"), tmp_path / "train", tmp_path / "noise_sweep")


def test_the_experiment_through_the_console(here, mini_settings, tmp_path):
    result = here(
        "run",
        "experiment=noise_sweep",
        *(setting for setting in mini_settings if setting.startswith(("prepare.pairs", "model", "prepare.split"))),
        "prepare.min_structure=0.1",
        "prepare.stride_px=80",
        "prepare.noise={sigma_px: 0},{sigma_px: 2, shift_dx_px: 30}",
        "training={rounds: 2, epochs: 1, steps: 1, batch: 2, learning_rate: 1e-5, settled_px: 0, familiarity_tiles: 2}",
        "output_dir=sweep",
    )
    assert result.returncode == 0, result.stderr
    assert "noise_sweep: see" in result.stdout
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == [
        "0",
        "1",
        "multirun.yaml",
        "noise_sweep.csv",
        "noise_sweep.md",
        "noise_sweep.png",
    ]
    table = pd.read_csv(tmp_path / "sweep" / "noise_sweep.csv")
    assert table[["noise_sigma_px", "shift_px", "round"]].to_numpy().tolist() == [
        [0, 0, 1],
        [0, 0, 2],
        [2, 30, 1],
        [2, 30, 2],
    ]
    assert table["labels_epe_mean_px"].iloc[0] == 0
    assert table["labels_systematic_px"].iloc[2] == pytest.approx(30, abs=3)
    assert read_json(tmp_path / "sweep" / "1" / "summary.json")["noise_sweep"]["shift_px"] == 30
