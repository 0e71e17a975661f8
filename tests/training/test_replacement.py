"""A finished training stays whole until the next one is; that one goes on where it was killed."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zarr
from safetensors.torch import load_file

from regnet.errors import InputError, OutputError
from regnet.files import is_stamped, write_stamp
from regnet.models import ModelOptions
from regnet.training import rounds
from regnet.training.fit import STATE, Fit
from regnet.training.options import TrainingOptions
from regnet.training.rounds import train_rounds

SMALL = ModelOptions(descriptor="mind+learned", width=4, levels=1, descriptor_channels=2)
ONE = TrainingOptions(epochs=2, steps=1, batch=1, checkpoints=1, peak_px=2.0, shift_px=1.0, familiarity_tiles=0)
TWO = replace(ONE, rounds=2, settled_px=0.0)
RUN = {"settings": "of the run"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Labels are corrected by half of what they say, and nothing is measured: both take longer than the trainings."""

    def correct(store, model, options, path, shifts):
        labels = torch.stack([torch.from_numpy(store.tile(place).label_offset) for place in range(len(store))])
        zarr.save_array(path, labels.numpy() / 2)
        return {"moved_px": 1.0}

    monkeypatch.setattr(rounds, "correct", correct)
    monkeypatch.setattr(rounds, "held_out_errors", lambda *_: None)
    monkeypatch.setattr(rounds, "error_summary", lambda *_: {})


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    """A training in one round, stamped as a run does."""
    folder = tmp_path_factory.mktemp("finished")
    train_rounds(store, SMALL, replace(ONE, seed=7), folder / "train")
    write_stamp(folder / "train", RUN)
    return folder / "train"


@pytest.fixture
def folder(finished, tmp_path):
    """The finished training, to be trained anew."""
    return Path(shutil.copytree(finished, tmp_path / "train"))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_weights(one, other):
    names = [path.relative_to(one) for path in one.rglob("*.safetensors")]
    pairs = [(load_file(one / name), load_file(other / name)) for name in names]
    return bool(names) and all(torch.equal(a[key], b[key]) for a, b in pairs for key in a)


def train_and_kill(monkeypatch, place, *arguments):
    """Kill a training in the so-many-th of its epochs."""
    epoch, done = Fit._epoch, []

    def counted(self, number):
        if len(done) == place:
            raise KeyboardInterrupt
        done.append(number)
        return epoch(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(Fit, "_epoch", counted)
        with pytest.raises(KeyboardInterrupt):
            train_rounds(*arguments)


@pytest.mark.parametrize("options", [ONE, TWO], ids=["one round", "two rounds"])
def test_a_finished_training_stays_until_the_next_one_is_whole(store, folder, tmp_path, monkeypatch, options):
    """Killed in the last epoch of its last round; then it goes on there, to the weights of one that was not killed."""
    before, following = contents(folder), tmp_path / ".next-train"
    train_and_kill(monkeypatch, 2 * options.rounds - 1, store, SMALL, options, folder)
    assert contents(folder) == before
    assert is_stamped(folder, RUN)
    assert len(list(following.rglob(STATE))) == 1
    epoch, done = Fit._epoch, []
    monkeypatch.setattr(Fit, "_epoch", lambda self, number: done.append(number) or epoch(self, number))
    train_rounds(store, SMALL, options, folder)
    assert done == [1]
    assert not following.exists()
    train_rounds(store, SMALL, options, tmp_path / "whole")
    assert contents(folder).keys() == contents(tmp_path / "whole").keys()
    assert same_weights(folder, tmp_path / "whole")
    assert not is_stamped(folder, RUN)


@pytest.mark.parametrize("killed", [False, True])
def test_a_refused_training_leaves_the_finished_one(store, folder, monkeypatch, killed):
    before = contents(folder)
    if killed:
        train_and_kill(monkeypatch, 1, store, SMALL, ONE, folder)
    with pytest.raises(InputError, match="nothing to train"):
        train_rounds(store, ModelOptions(descriptor="mind"), ONE, folder)
    assert contents(folder) == before
    assert (folder.parent / ".next-train").exists() == killed


def test_a_training_whose_place_could_not_be_taken_is_not_repeated(store, folder, monkeypatch):
    put, before, following = os.replace, contents(folder), folder.parent / ".next-train"

    def full(source, target):
        if source == following:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        train_rounds(store, SMALL, ONE, folder)
    monkeypatch.setattr(os, "replace", put)
    assert contents(folder) == before
    made = contents(following)
    monkeypatch.setattr(rounds, "Fit", None)
    train_rounds(store, SMALL, ONE, folder)
    assert contents(folder) == made
    # Nor if the run was killed before it could stamp it.
    train_rounds(store, SMALL, ONE, folder)
    assert contents(folder) == made


@pytest.mark.parametrize(("first", "second"), [(ONE, TWO), (TWO, ONE)], ids=["more", "fewer"])
def test_nothing_of_a_killed_training_with_other_rounds_is_kept(store, tmp_path, monkeypatch, first, second):
    train_and_kill(monkeypatch, 2 * first.rounds - 1, store, SMALL, replace(first, seed=3), tmp_path / "train")
    for name in ("train", "whole"):
        train_rounds(store, SMALL, second, tmp_path / name)
    assert contents(tmp_path / "train").keys() == contents(tmp_path / "whole").keys()
    assert same_weights(tmp_path / "train", tmp_path / "whole")


def test_rounds_that_an_earlier_training_had_alike_are_taken_over(store, tmp_path, monkeypatch):
    train_rounds(store, SMALL, replace(TWO, settled_px=2.0), tmp_path / "train")
    first = contents(tmp_path / "train" / "round_1")
    epoch, done = Fit._epoch, []
    monkeypatch.setattr(Fit, "_epoch", lambda self, number: done.append(number) or epoch(self, number))
    train_rounds(store, SMALL, TWO, tmp_path / "train")
    assert done == [0, 1]
    assert contents(tmp_path / "train" / "round_1") == first
    assert (tmp_path / "train" / "round_2").is_dir()
