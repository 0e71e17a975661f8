"""The study of the similarity term: epochs are counted right, the term does what it says, and the experiment runs."""

import numpy as np
import pandas as pd
import pytest
import torch

from regnet.errors import InputError
from regnet.files import read_json
from regnet.training import digits, enforced
from regnet.training.digits import label_log_odds, train_digits
from regnet.training.enforced import PLAIN, WITH, epochs_table, epochs_to_reach
from regnet.training.options import DigitsOptions

BRIEF = DigitsOptions(images=300, epochs=3, width=32, learning_rate=5e-3)


def test_epochs_until_an_error_is_reached():
    errors = [4.0, 2.0, 3.0, 1.0]
    assert epochs_to_reach(errors, 5.0) == 1
    assert epochs_to_reach(errors, 3.0) == pytest.approx(1.5)
    assert epochs_to_reach(errors, 2.0) == pytest.approx(2)
    assert epochs_to_reach(errors, 1.5) == pytest.approx(3.5)  # 3 is no step back: the least so far counts
    assert np.isnan(epochs_to_reach(errors, 0.5))


def test_twice_as_fast_is_a_ratio_of_one_half():
    rows = []
    for kind, pace in ((PLAIN, 1), (WITH, 2)):
        for seed in (0, 1):
            for epoch in range(1, 9):
                error = 10.0 - pace * (epoch - 1)
                rows.append({"task": "digits", "kind": kind, "seed": seed, "epoch": epoch, "error": error})
    table = pd.DataFrame(epochs_table(pd.DataFrame(rows), "digits"))
    assert table["error"].tolist() == [9, 7, 5, 3]
    assert table[f"epochs_{PLAIN}"].tolist() == [2, 4, 6, 8]
    assert table[f"epochs_{WITH}"].tolist() == [1.5, 2.5, 3.5, 4.5]
    assert table["ratio"].iloc[-1] == pytest.approx(4.5 / 8)
    assert (table[f"reached_{WITH}"] == 2).all()


def test_the_term_makes_digits_of_a_class_more_alike():
    plain, again, enforced = (train_digits(BRIEF, weight, 1) for weight in (0.0, 0.0, 2.0))
    assert plain[-1]["error"] < 0.45 < plain[0]["error"]
    assert [row["error"] for row in plain] == [row["error"] for row in again]
    assert enforced[-1]["kc"] > plain[-1]["kc"] + 0.02


def test_log_odds_of_the_own_class():
    logits, classes = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    share = torch.softmax(logits, 1)[torch.arange(5), classes]
    found = label_log_odds(torch.nn.Identity(), logits, classes)
    assert torch.allclose(found[:, 0], torch.log(share / (1 - share)), atol=1e-5)


def test_digits_need_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"pip install regnet\[digits\]"):
        digits.load_images()


def test_the_experiment_through_the_console(here, mini_settings, tmp_path, monkeypatch):
    command = (
        "run",
        "experiment=paper_enforced_similarity",
        *(setting for setting in mini_settings if setting.startswith(("prepare.pairs", "prepare.split"))),
        "prepare.min_structure=0.1",
        "model={width: 8, descriptor_channels: 4}",
        "training={epochs: 2, steps: 1, batch: 2}",
        "paper_enforced_similarity={seeds: [3], digits: {images: 64, epochs: 1, width: 8}}",
        "output_dir=enforced",
    )
    result = here(*command)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "enforced" / "paper_enforced_similarity"
    curves, epochs = (pd.read_csv(folder / f"{name}.csv") for name in ("curves", "epochs"))
    assert set(curves["seed"]) == {3}
    assert curves.groupby(["task", "kind"]).size().to_dict() == {
        (task, kind): count for task, count in (("digits", 1), ("registration", 2)) for kind in (PLAIN, WITH)
    }
    assert set(epochs["task"]) == {"digits", "registration"}
    assert (folder / "enforced.png").stat().st_size > 1000
    assert read_json(folder / "summary.json")["seconds_ratio"]["registration"] > 0
    # With other settings and killed, what was there is still whole, and the trainings that are alike are not repeated.
    monkeypatch.setattr(enforced, "train_digits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert here(*command, "paper_enforced_similarity.digits.epochs=2").returncode == 130
    assert here(*command).stdout.count("skipped") == 2
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(enforced, "Fit", None)
    assert here(*command, "paper_enforced_similarity.digits.epochs=2").returncode == 0
    assert len(pd.read_csv(folder / "curves.csv")) == len(curves) + 2
