"""Several processes share the tiles of each step of a training."""

import shutil

import pandas as pd
import pytest
import torch

from regnet.errors import ConfigError
from regnet.files import read_json
from regnet.models import ModelOptions, load_checkpoint
from regnet.ranks import Ranks
from regnet.training.fit import MOST_NORM, Fit
from regnet.training.loss import supervised_loss
from regnet.training.options import TrainingOptions
from regnet.training.samples import draw_batches

MODEL = ModelOptions(descriptor="mind+learned", width=8, levels=2, descriptor_channels=4)
OPTIONS = TrainingOptions(epochs=1, steps=1, batch=3, checkpoints=1, peak_px=3.0, familiarity_tiles=0, seed=4)
WORK = """
import sys
from pathlib import Path
from regnet.models import ModelOptions
from regnet.ranks import FabricOptions, launch
from regnet.similarity.store import model_digest
from regnet.tiles.store import TileStore
from regnet.training.fit import Fit
from regnet.training.options import AlikeOptions, TrainingOptions

store, folder = map(Path, sys.argv[1:])
fit = Fit(TileStore.open(store), {model}, {options}, folder, ranks=launch(FabricOptions(devices=2)))
fit.run()
print("weights", model_digest(fit.model))
"""


@pytest.mark.slow
def test_a_step_of_two_processes_is_one_of_all_their_tiles(store, tmp_path, torchrun):
    (tmp_path / "work.py").write_text(WORK.format(model=MODEL, options=OPTIONS))
    result = torchrun("work.py", str(store.folder), str(tmp_path / "two"), folder=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    said = [line for line in result.stdout.splitlines() if line.startswith("weights")]
    assert len(said) == 2
    assert len(set(said)) == 1
    found = load_checkpoint(tmp_path / "two" / "checkpoints" / "epoch_000.safetensors").state_dict()
    fit = Fit(store, MODEL, OPTIONS, tmp_path / "hand")
    before = {name: value.clone() for name, value in fit.model.state_dict().items()}
    (batch,) = draw_batches(fit.cache, fit.train_tiles, OPTIONS, 1, (OPTIONS.seed, 0), fit.shifts.corrected)
    fit.model.train()
    for rank, tiles in enumerate((2, 1)):
        torch.manual_seed(OPTIONS.seed * 1_000_003 + rank * 1_000_000_007)
        own = batch.part(slice(rank, None, 2))
        prediction = fit.model(own.fixed, own.moving, own.fixed_valid, own.moving_valid)
        torch.autograd.backward(supervised_loss(prediction, own, OPTIONS) * tiles / 3)
    torch.nn.utils.clip_grad_norm_(fit.model.parameters(), MOST_NORM)
    fit.optimiser.step()
    moved = 0.0
    for name, value in fit.model.state_dict().items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)
        moved += float((value.float() - before[name].float()).abs().sum())
    assert moved > 1e-2


@pytest.mark.slow
def test_two_processes_train_in_rounds_through_the_console(mini_run, mini_settings, tmp_path, torchrun):
    shutil.copytree(mini_run[0] / "prepare", tmp_path / "mini" / "prepare")
    settings = [setting for setting in mini_settings if not setting.startswith("training")]
    training = "training={epochs: 2, steps: 2, batch: 2, rounds: 2, settled_px: 0, familiarity_tiles: 4}"
    command = ("train", *settings, training, "output_dir=mini", "fabric.devices=2")
    result = torchrun(*command, folder=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("train: writing") == 1
    folder = tmp_path / "mini" / "train"
    assert pd.read_csv(folder / "rounds.csv")["round"].tolist() == [1, 2]
    assert read_json(folder / "summary.json")["epochs"] == 2
    assert {"model.safetensors", "familiarity.safetensors", "round_1", "round_2"} <= {x.name for x in folder.iterdir()}
    assert not list((tmp_path / "mini").glob(".next-*"))
    again = torchrun(*command, folder=tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "train: skipped" in again.stdout


def test_more_processes_than_tiles_a_step_are_refused(store, tmp_path):
    many = Ranks()
    many.size = 4
    with pytest.raises(ConfigError, match=r"training\.batch=3: 4 processes share it; make it as large"):
        Fit(store, MODEL, OPTIONS, tmp_path, ranks=many)
