"""How familiar a pair is to its model: place by place, in the outputs, and where nobody knows."""

import geopandas as gpd
import numpy as np
import pytest
import torch

from regnet.files import read_json
from regnet.models import ModelOptions, build_model, load_checkpoint, save_checkpoint
from regnet.registration import familiar as module
from regnet.registration.familiar import Familiar, look_familiar
from regnet.registration.options import RegisterOptions
from regnet.registration.register import register
from regnet.similarity.familiarity import FAMILIARITY, Familiarity, remember
from regnet.tiles.options import PairOptions
from regnet.tiles.pair import PairReader
from tests.registration.conftest import texture, write_raster

SMALL = ModelOptions(width=4, levels=2, descriptor_channels=4)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory, shifted):
    """An untrained model that remembers tiles of the pair as its training's."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    torch.manual_seed(0)
    save_checkpoint(path, build_model(SMALL, 1, 1))
    with PairReader(PairOptions("pair", *shifted)) as reader:
        patches = [reader.read_images(row, col, 64, 64) for row in (20, 100, 180) for col in (20, 100, 200)]
    batch = [torch.from_numpy(np.stack([getattr(patch, side) for patch in patches])) for side in ("fixed", "moving")]
    remember(load_checkpoint(path), [batch], trained=90).save(path.with_name(FAMILIARITY))
    return path


def test_the_outputs_say_it(tmp_path, shifted, model_path):
    register(RegisterOptions(*shifted, model=str(model_path), global_stage=False, check_windows=0), tmp_path / "out")
    summary = read_json(tmp_path / "out" / "summary.json")
    told = summary["familiarity"]
    assert summary["notes"] == []
    assert (told["places"], told["training_tiles"]) == (1, 90)
    assert told["n_soft_median"] == pytest.approx(90 * told["similarity_median"])
    ties = gpd.read_file(tmp_path / "out" / "tie_points.gpkg")
    np.testing.assert_allclose(ties["familiarity"], told["similarity_median"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>Familiarity</h2>" in page
    assert f"<dd>{told['similarity_median']:.3g}</dd>" in page


def test_a_model_that_remembers_nothing_registers_too(tmp_path, shifted, model_path):
    alone = tmp_path / "model.safetensors"
    alone.write_bytes(model_path.read_bytes())
    register(RegisterOptions(*shifted, model=str(alone), global_stage=False, check_windows=0), tmp_path / "out")
    summary = read_json(tmp_path / "out" / "summary.json")
    assert summary["familiarity"] is None
    assert "is not known" in summary["notes"][0]
    assert str(alone) in summary["notes"][0]
    assert "familiarity" not in gpd.read_file(tmp_path / "out" / "tie_points.gpkg")
    assert "<h2>Familiarity</h2>" not in (tmp_path / "out" / "report.html").read_text()


def test_without_a_model_nothing_is_said(done):
    summary = read_json(done[0] / "summary.json")
    assert summary["familiarity"] is None
    assert summary["notes"] == []


def test_ground_of_the_training_is_more_familiar_than_other_ground(tmp_path, shifted, model_path, monkeypatch):
    monkeypatch.setattr(module, "SPACING_PX", 130)
    model, found = load_checkpoint(model_path), []
    moving = write_raster(tmp_path / "other.tif", texture((256, 288), seed=7))
    for pair in (PairOptions("own", *shifted), PairOptions("other", shifted[0], moving)):
        with PairReader(pair) as reader:
            found.append(look_familiar(model, model_path, reader.read_images, reader.shape))
    own, other = (one.similarity for one in found)
    assert own.shape == (2, 2)
    assert np.median(own) > np.median(other) + 0.02
    assert found[1].summary()["similarity_median"] == np.median(other)


def test_places_without_data_are_left_out_and_the_nearest_tells(tmp_path, shifted, model_path, monkeypatch):
    monkeypatch.setattr(module, "SPACING_PX", 90)
    values = texture((256, 288), seed=1)
    values[:, :120] = 0
    with PairReader(PairOptions("pair", shifted[0], write_raster(tmp_path / "half.tif", values, nodata=0))) as reader:
        found = look_familiar(load_checkpoint(model_path), model_path, reader.read_images, reader.shape)
    assert np.isnan(found.similarity[:, 0]).all()
    assert np.isfinite(found.similarity[:, 2]).all()
    at = found.at(np.array([0, 255, 130]), np.array([0, 287, 287]))
    np.testing.assert_array_equal(at, [np.nan, found.similarity[2, 2], found.similarity[1, 2]])


def test_strangers_are_places_less_alike_than_any_tile_of_the_training():
    known = Familiarity(torch.zeros(2, 1), torch.tensor([0.4, 0.5, 0.6]), 30, 64, "")
    told = Familiar(np.array([[0.1, 0.45], [0.39, np.nan]]), (100, 100), known).summary()
    assert told["stranger_share"] == pytest.approx(2 / 3)
    assert told["similarity_median"] == pytest.approx(0.39)
    assert told["n_soft_median"] == pytest.approx(0.39 * 30)
    assert told["training_similarity_median"] == pytest.approx(0.5)
