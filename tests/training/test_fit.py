import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from regnet.errors import InputError, OutputError
from regnet.files import read_json
from regnet.models import ModelOptions, build_model, load_checkpoint
from regnet.similarity.familiarity import Familiarity
from regnet.similarity.store import model_digest
from regnet.tiles.options import NoiseOptions
from regnet.training import fit
from regnet.training.fit import Fit
from regnet.training.options import TrainingOptions
from regnet.training.trail import Trail
from regnet.training.validation import validation_epe
from tests.conftest import full_disk, killed_in_epoch

SMALL = ModelOptions(descriptor="mind+learned", width=8, levels=2, descriptor_channels=4)
BRIEF = TrainingOptions(epochs=3, steps=3, batch=2, checkpoints=2, peak_px=3.0, familiarity_tiles=4)


def train(store, model_options, options, folder):
    Fit(store, model_options, options, folder).run()


@pytest.fixture(scope="module")
def store(mini_store):
    return mini_store(tile_px=64, stride_px=64, noise=NoiseOptions(kind="tile", sigma_px=0.5))


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(store, SMALL, BRIEF, folder)
    return folder


def test_training_writes_what_the_contract_names(whole):
    assert {path.name for path in whole.iterdir()} == {
        "model.safetensors",
        "familiarity.safetensors",
        "log.csv",
        "loss.png",
        "summary.json",
        "checkpoints",
    }
    rows = list(csv.DictReader((whole / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [point.name for point in Trail(whole / "checkpoints").points()] == ["start", "epoch_001", "epoch_002"]
    assert not load_checkpoint(whole / "model.safetensors").training


def test_it_remembers_tiles_as_they_were_drawn_for_the_model_that_is_kept(store, whole):
    known = Familiarity.load(whole / "familiarity.safetensors")
    assert known.trained == len(store.tiles("train"))
    assert known.side_px == store.tile_px
    assert len(known.own) >= min(BRIEF.familiarity_tiles, known.trained)
    assert known.digest == model_digest(load_checkpoint(whole / "model.safetensors"))


@pytest.mark.parametrize("cache_mb", [BRIEF.cache_mb, 16])
def test_a_killed_run_goes_on_to_the_same_model(store, whole, tmp_path, monkeypatch, cache_mb):
    """Also with less memory, for want of which it may have been killed."""
    with killed_in_epoch(2):
        train(store, SMALL, BRIEF, tmp_path / "killed")
    assert (tmp_path / "killed" / fit.STATE).is_file()
    begun, epoch = [], Fit._epoch
    monkeypatch.setattr(Fit, "_epoch", lambda self, number: begun.append(number) or epoch(self, number))
    train(store, SMALL, replace(BRIEF, cache_mb=cache_mb), tmp_path / "killed")
    assert begun == [2]

    first, second = (load_checkpoint(path / "model.safetensors") for path in (whole, tmp_path / "killed"))
    for key, value in first.state_dict().items():
        assert torch.allclose(value, second.state_dict()[key], atol=1e-6), key


def test_state_of_other_settings_is_not_taken_up(store, tmp_path):
    stale = Fit(store, SMALL, TrainingOptions(epochs=2, steps=1, batch=2), tmp_path)
    stale._resume()
    stale._epoch(0)
    train(store, SMALL, BRIEF, tmp_path)
    assert len(list(csv.DictReader((tmp_path / "log.csv").open()))) == 3


def test_a_damaged_state_is_not_taken_up(store, tmp_path):
    (tmp_path / fit.STATE).write_bytes(b"PK\x03\x04 cut short")
    train(store, SMALL, BRIEF, tmp_path)
    assert len(list(csv.DictReader((tmp_path / "log.csv").open()))) == 3


@pytest.mark.parametrize("most_bytes", [2_000, 12_000])
def test_a_full_disk_is_told_from_a_defect(store, tmp_path, most_bytes):
    with full_disk(most_bytes), pytest.raises(OutputError, match="free some space"):
        train(store, SMALL, BRIEF, tmp_path)
    assert not list(tmp_path.rglob(".partial-*"))


def test_nothing_to_train_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="has nothing to train"):
        train(store, ModelOptions(descriptor="mind"), BRIEF, tmp_path)


def test_a_loss_that_is_not_finite_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "supervised_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(InputError, match="the loss is not finite"):
        train(store, SMALL, BRIEF, tmp_path)
    assert not (Path(tmp_path) / "model.safetensors").exists()


def test_validation_tiles_without_data_are_refused(store):
    positions = store.tiles("validation")
    blank = {position: np.zeros_like(store.tile(position).moving_valid) for position in positions}
    cache = {position: replace(store.tile(position), moving_valid=blank[position]) for position in positions}
    model = build_model(SMALL, len(store.fixed_channels), len(store.moving_channels))
    with pytest.raises(InputError, match=r"validation: none of \d+ tiles has a pixel that is valid.*min_valid"):
        validation_epe(model, cache, positions, BRIEF)


def test_a_training_that_stops_early_keeps_its_end_and_tells_of_the_model_that_is_kept(store, tmp_path, monkeypatch):
    """Of ten epochs every fifth would be kept; the error is that of the last one within the tolerance."""
    errors = iter([1.0, 1.004, 2.0, 2.0])
    monkeypatch.setattr(fit, "validation_epe", lambda *_: next(errors))
    train(store, SMALL, replace(BRIEF, epochs=10, steps=1, patience=2, tolerance=0.005), tmp_path)
    assert [(point.name, point.step) for point in Trail(tmp_path / "checkpoints").points()] == [
        ("start", 0),
        ("epoch_003", 4),
    ]
    summary = read_json(tmp_path / "summary.json")
    assert (summary["best_epoch"], summary["validation_epe_px"]) == (1, 1.004)


def test_a_run_that_was_killed_while_it_remembered_its_tiles_ends_where_it_had_stopped(store, tmp_path, monkeypatch):
    options = replace(BRIEF, epochs=4, patience=1, tolerance=0.0)
    errors = iter([1.0, 2.0, 0.5, 0.4])
    monkeypatch.setattr(fit, "validation_epe", lambda *_: next(errors))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "remember", killed)
    with pytest.raises(KeyboardInterrupt):
        train(store, SMALL, options, tmp_path)
    monkeypatch.undo()
    train(store, SMALL, options, tmp_path)
    assert [row["epoch"] for row in csv.DictReader((tmp_path / "log.csv").open())] == ["0", "1"]
    assert (tmp_path / "familiarity.safetensors").is_file()
    assert not (tmp_path / fit.STATE).exists()
