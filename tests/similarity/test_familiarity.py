"""Familiarity against the kernel of all pairs, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regnet.errors import InputError
from regnet.models import Prediction
from regnet.similarity.exact import kc
from regnet.similarity.familiarity import MOST_PX, Familiarity, FamiliarityMeter, centred, remember
from regnet.similarity.gradients import Jacobians
from regnet.similarity.tiles import read_batch


class Products(nn.Module):
    """A network that tells tiles apart: what it says of one is the product of what it sees in both images."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed, self.moving = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, fixed: Tensor, moving: Tensor) -> Prediction:
        displacement = self.fixed(fixed) * self.moving(moving)
        return Prediction(displacement, torch.ones_like(displacement[:, :1]))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Products()


@pytest.fixture(scope="module")
def tiles(scene):
    return read_batch(scene, np.arange(14))


@pytest.fixture(scope="module")
def known(model, tiles):
    """Ten tiles in batches of unequal size."""
    return remember(model, [[images[part] for images in tiles] for part in (slice(0, 6), slice(6, 10))], trained=40)


def test_it_is_the_mean_similarity_to_the_tiles_of_the_training(model, tiles, known, tmp_path):
    pairs = kc(Jacobians(model)(*tiles)[1]).numpy()
    own = (pairs[:10, :10].sum(1) - 1) / 9
    assert known.own.numpy() == pytest.approx(own, abs=2e-3)
    assert np.ptp(own) > 0.1
    known.save(tmp_path / "familiarity.safetensors")
    meter = FamiliarityMeter(model, Familiarity.load(tmp_path / "familiarity.safetensors"))
    new = meter(*(images[10:] for images in tiles))
    assert new == pytest.approx(pairs[10:, :10].mean(1), abs=2e-3)
    assert meter(*(images[12:13] for images in tiles)) == pytest.approx(new[2:3], abs=1e-4)


def test_what_is_kept_comes_back(known, tmp_path):
    known.save(tmp_path / "familiarity.safetensors")
    back = Familiarity.load(tmp_path / "familiarity.safetensors")
    assert torch.equal(back.own, known.own)
    assert (back.trained, back.side_px, back.digest) == (40, 16, known.digest)
    assert (tmp_path / "familiarity.safetensors").stat().st_size < 2.2 * known.total.numel() + 2000


def test_of_another_model_or_damaged_it_is_refused(model, known, tmp_path):
    with pytest.raises(InputError, match=r"familiarity\.safetensors: is of other weights"):
        FamiliarityMeter(model, replace(known, digest="0"))
    path = tmp_path / "familiarity.safetensors"
    known.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"familiarity\.safetensors: damaged"):
        Familiarity.load(path)


def test_large_tiles_are_cut_around_their_centre():
    images = torch.arange(160.0).expand(1, 1, 160, 160)
    assert centred(images).shape == (1, 1, MOST_PX, MOST_PX)
    assert centred(images)[0, 0, 0, MOST_PX // 2] == images[0, 0, 0, 80]
    assert centred(images[..., :20, :20]).shape == (1, 1, 20, 20)
