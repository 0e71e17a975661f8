"""A training that the command refuses, or that is interrupted, leaves the model that was there, and goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from regnet.training.fit import STATE, Fit
from tests.test_cli import refused
from tests.training.test_replacement import contents


@pytest.fixture
def trained(mini_run, tmp_path):
    """A run's tiles and its finished model."""
    for name in ("prepare", "train"):
        shutil.copytree(mini_run[0] / name, tmp_path / "mini" / name)
    return tmp_path / "mini" / "train"


def test_a_refused_training_leaves_the_model_there_is(here, trained, mini_settings):
    before = contents(trained.parent)
    line = refused(here("train", *mini_settings, "model.descriptor=mind", "output_dir=mini"))
    assert line == "regnet: model.descriptor=mind: has nothing to train; choose learned"
    assert contents(trained.parent) == before
    assert here("train", *mini_settings, "output_dir=mini").stdout.startswith("train: skipped")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_training_leaves_the_model_there_is_and_goes_on(here, trained, mini_settings, monkeypatch, how):
    before = contents(trained)
    command = ("train", *mini_settings, "training.epochs=4", "output_dir=mini")
    script = Path(sys.executable).with_name("regnet")
    process = subprocess.Popen(
        [script, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # shells ignore it in the background
    )
    kept = trained.parent / ".next-train" / STATE
    for _ in range(6000):
        if kept.exists():
            break
        time.sleep(0.02)
    process.send_signal(how)
    told = process.communicate()[1]
    if how != signal.SIGKILL:
        said = "interrupted" if how == signal.SIGINT else "terminated"
        assert process.returncode == 128 + how
        assert told.splitlines()[-1] == f"regnet: {said}; the same command goes on from what is whole"
    assert contents(trained) == before
    assert kept.exists()
    epoch, done = Fit._epoch, []
    monkeypatch.setattr(Fit, "_epoch", lambda self, number: done.append(number) or epoch(self, number))
    result = here(*command)
    assert result.returncode == 0, result.stderr
    assert done == list(range(done[0], 4))
    assert done[0] > 0
    assert len((trained / "log.csv").read_text().splitlines()) == 5
    assert sorted(os.listdir("mini")) == ["config.yaml", "prepare", "summary.json", "train"]
