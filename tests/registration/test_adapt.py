"""Training on the pair itself: what it writes, that it ends in time, is the same by seed, and goes on where it was."""

import json

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st

from regnet.errors import ConfigError, OutputError
from regnet.models import ModelOptions, load_checkpoint, model_for, save_checkpoint
from regnet.registration import adapt as module
from regnet.registration.adapt import adapt, learner, sample_tiles
from regnet.registration.arrays import register as register_arrays
from regnet.registration.options import AdaptOptions, RegisterOptions
from regnet.registration.register import register
from regnet.registration.windows import PatchReader
from regnet.tiles.options import PairOptions
from regnet.tiles.pair import PairReader
from regnet.training.fit import MODEL, STATE, Fit
from tests.conftest import killed_in_epoch
from tests.registration.conftest import TRUE, write_raster, write_shifted

SMALL = ModelOptions(descriptor="mind+learned", width=8, levels=2, descriptor_channels=4)
CHANNELS = (["fixed"], ["moving"])


@pytest.fixture(scope="module")
def small(tmp_path_factory, scene):
    """As `shifted`, in 160 x 160 px: four blocks with four tiles each."""
    return write_shifted(tmp_path_factory.mktemp("small"), scene, 160, 160)


@pytest.fixture
def pair(small):
    with PairReader(PairOptions("pair", *small)) as reader:
        yield reader


@pytest.fixture
def start():
    """A small matcher that can be trained, as a trained one is."""
    torch.manual_seed(1)
    return model_for(SMALL, *CHANNELS).eval()


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_through_the_console_its_model_is_kept_and_serves_again(tmp_path, small, start, regnet):
    save_checkpoint(tmp_path / "start.safetensors", start)
    arguments = [f"fixed={small[0]}", f"moving={small[1]}", "global_stage=false"]
    settings = ["model=start.safetensors", "adapt=true", "adapt.steps=2", "seed=4", "output_dir=out"]
    done = regnet("register", *arguments, *settings, folder=tmp_path)
    assert done.returncode in (0, 3), done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["adapt"]["tiles"], summary["adapt"]["epochs"]) == (16, 1)
    assert summary["settings"]["adapt"]["seed"] == 4
    assert "train" in done.stderr
    trained = tmp_path / "out" / "adapt" / "model.safetensors"
    assert not torch.equal(weights(load_checkpoint(trained)), weights(start))
    with pytest.raises(OutputError, match="is an input and would be overwritten"):
        register(RegisterOptions(*small, model=str(trained)), tmp_path / "out")
    register(RegisterOptions(*small, model=str(trained), global_stage=False), tmp_path / "two")
    assert not (tmp_path / "two" / "adapt").exists()


def test_the_same_seed_gives_the_same_model_and_another_one_another(tmp_path, pair, start):
    found = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        # In training mode the matcher draws at random, which must not get into the labels.
        start.train(name == "b")
        adapt(start, pair, AdaptOptions(steps=1, seed=seed), 1800, tmp_path / name)
        found.append(weights(load_checkpoint(tmp_path / name / MODEL)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_it_ends_in_time_and_says_so(tmp_path, pair, start, monkeypatch):
    """Epochs that claim to take a minute each: of three minutes two are used, or one on a very slow machine."""
    monkeypatch.setattr(module, "STEPS", 1)
    epoch = Fit._epoch

    def a_minute_long(self, number):
        row = epoch(self, number)
        row["seconds"] = 60.0
        return row

    monkeypatch.setattr(Fit, "_epoch", a_minute_long)
    _, told = adapt(start, pair, AdaptOptions(steps=50, minutes=3), 1800, tmp_path)
    assert told["epochs"] in (1, 2)
    assert told["reason"] == f"adapt.minutes were over after {told['epochs']} of 50 epochs"
    model, told = adapt(start, pair, AdaptOptions(minutes=0.0), 1800, tmp_path / "none")
    assert model is start
    assert told["reason"] == "adapt.minutes were over before any training"


def test_a_killed_training_goes_on_to_the_same_model(tmp_path, pair, start, monkeypatch):
    monkeypatch.setattr(module, "STEPS", 2)
    options = AdaptOptions(steps=6)
    whole, told = adapt(start, pair, options, 1800, tmp_path / "whole")
    epoch = Fit._epoch
    with killed_in_epoch(2):
        adapt(start, pair, options, 1800, tmp_path / "killed")
    assert (tmp_path / "killed" / STATE).is_file()
    begun = []
    monkeypatch.setattr(Fit, "_epoch", lambda self, number: begun.append(number) or epoch(self, number))
    resumed, _ = adapt(start, pair, options, 1800, tmp_path / "killed")
    assert begun == [2]
    assert torch.equal(weights(whole), weights(resumed))
    # Once done it is read, not made again.
    monkeypatch.setattr(module, "sample_tiles", None)
    again, told_again = adapt(start, pair, options, 1800, tmp_path / "whole")
    assert torch.equal(weights(again), weights(whole))
    assert told_again == told


def test_what_it_starts_from(pair):
    """A training-free matcher gets a learned part that says little yet; a trained one goes on, its shift as it was."""
    free = model_for(ModelOptions(descriptor="ngf", levels=3), *CHANNELS).eval()
    fresh = learner(free, CHANNELS, 0).eval()
    assert fresh.options.descriptor == "ngf+learned"
    patch = pair.read(0, 0, 160, 160)
    with torch.no_grad():
        before, after = (
            model(torch.from_numpy(patch.fixed)[None], torch.from_numpy(patch.moving)[None]).displacement
            for model in (free, fresh)
        )
    assert (before - after).norm(dim=1).mean() < 0.3
    trained = model_for(SMALL, *CHANNELS)
    torch.nn.init.normal_(trained.shift)
    further = learner(trained, CHANNELS, 0)
    assert torch.equal(weights(trained), weights(further))
    assert not further.shift.requires_grad
    unet = learner(model_for(ModelOptions(name="unet", width=8, levels=1), *CHANNELS), CHANNELS, 0)
    assert unet.options.name == "unet"


def test_a_worse_matcher_is_not_used(tmp_path, pair, start, monkeypatch):
    judged = iter([0.4, 0.5])
    monkeypatch.setattr(module, "disagreement", lambda *_: next(judged))
    model, told = adapt(start, pair, AdaptOptions(steps=1), 1800, tmp_path)
    assert model is start
    assert (told["used"], told["before_px"], told["after_px"]) == (False, 0.4, 0.5)
    assert (tmp_path / MODEL).is_file()


def test_too_little_ground_teaches_nothing(tmp_path, small, start):
    with rasterio.open(small[1]) as source:
        moving = source.read(1)
    moving[:, 40:] = 0
    sparse = write_raster(tmp_path / "sparse.tif", moving, nodata=0)
    with PairReader(PairOptions("pair", small[0], sparse)) as reader:
        model, told = adapt(start, reader, AdaptOptions(), 1800, tmp_path / "adapt")
    assert model is start
    assert "too little ground" in told["reason"]
    assert not (tmp_path / "adapt").exists()


@pytest.mark.parametrize("follows", [True, False])
def test_labels_are_what_the_start_says_where_it_follows_known_steps(pair, monkeypatch, follows):
    """Else the label is the present alignment."""

    def answers(patch, model, steps):
        said = torch.tensor(TRUE)[None, :, None, None].expand(len(steps), -1, *patch.structure.shape)
        return said if follows else said - 10 * steps[:, :, None, None]

    monkeypatch.setattr(module, "under_shifts", answers)
    patch = pair.read(0, 0, 160, 160)
    tiles, held_out, judges = sample_tiles(PatchReader(patch), (160, 160), None, 100.0, 0)
    assert len(tiles) == 16
    assert 0 < sum(held_out) < 16
    assert [judge.structure.shape for judge in judges] == [(160, 160)]
    for tile in tiles:
        wanted = np.array(TRUE if follows else (0, 0), np.float32)
        np.testing.assert_array_equal(tile.label_offset, np.broadcast_to(wanted[:, None, None], (2, 64, 64)))


@given(st.tuples(st.integers(64, 2000), st.integers(64, 2000)))
def test_every_block_of_a_pair_of_any_size_has_room_for_a_tile(shape):
    tile_px, blocks = module._blocks(shape)
    assert all(min(block.height, block.width) >= tile_px for block in blocks)


def test_memory_bounds_the_tiles(pair, start):
    patch = pair.read(0, 0, 160, 160)
    one = sum(array.nbytes for array in vars(patch).values()) * (64 / 160) ** 2 / 2**20
    tiles, *_ = sample_tiles(PatchReader(patch), (160, 160), start, 3 * one, 0)
    assert len(tiles) == 4


def test_from_python(small, tmp_path, start):
    with pytest.raises(ConfigError, match="minuts is not a setting"):
        register_arrays(*small, adapt={"minuts": 1})
    save_checkpoint(tmp_path / "start.safetensors", start)
    settings = {"model": str(tmp_path / "start.safetensors"), "global_stage": False}
    result = register_arrays(*small, adapt={"enabled": True, "steps": 1}, **settings)
    assert result.summary["adapt"]["tiles"] == 16
