import numpy as np
import pytest
import torch
from skimage import data
from torch import nn

from regnet.baselines.options import NetworkOptions
from regnet.baselines.perceptual import Stretch, distance, features, load_network
from regnet.baselines.retrieval import (
    feature_distances,
    gaussian_similarities,
    penultimate,
    perceptual_distances,
    pixel_distances,
    squared_distances,
)
from regnet.errors import InputError
from regnet.models.checkpoint import build_model
from regnet.models.options import ModelOptions
from regnet.similarity.neighbours import count

SIDE = 64


@pytest.fixture(scope="module")
def tiles():
    """Two textures, four tiles each, in turns; fixed has three bands, moving is the negative of one."""
    pictures = [torch.from_numpy(getattr(data, name)()[:256, :256].astype(np.float32)) for name in ("brick", "grass")]
    crops = []
    for place in range(8):
        row, col = (96 * part for part in divmod(place // 2, 2))
        crops.append(pictures[place % 2][row : row + SIDE, col : col + SIDE])
    crop = torch.stack(crops)[:, None]
    return torch.cat([crop, 2 * crop, crop + 5], 1), 255 - crop


@pytest.fixture(scope="module")
def distances(tiles):
    model = build_model(ModelOptions(width=8, descriptor_channels=4, levels=1), 3, 1)

    def read(part):
        return tiles[0][part], tiles[1][part]

    found = [*perceptual_distances(read, 8, NetworkOptions()), *pixel_distances(read, 8)]
    return {one.name: one.squared for one in (*found, feature_distances(read, 8, model))}


def test_perceptual_distances_are_those_of_the_features(tiles, distances):
    network = load_network(NetworkOptions())
    images = tiles[0].numpy()
    valid = np.ones((8, SIDE, SIDE), bool)
    shown = Stretch.fit(images, valid)(images, valid)
    with torch.inference_mode():
        layers = features(network, shown)
    wanted = float(distance([layer[1:2] for layer in layers], [layer[6:7] for layer in layers]))
    assert distances["efficientnet_lite0 fixed"][1, 6] == pytest.approx(wanted, rel=1e-3)
    both = distances["efficientnet_lite0 fixed"] + distances["efficientnet_lite0 moving"]
    np.testing.assert_array_equal(distances["efficientnet_lite0 both"], both)
    moved = tiles[1][2] - tiles[1][5]
    assert distances["pixels moving"][2, 5] == pytest.approx(float(moved.square().mean()), rel=1e-4)


def test_the_network_sees_the_channels_that_are_asked_for(tiles):
    red, green, blue = (torch.roll(tiles[0][:, :1], shift, 0) for shift in range(3))

    def on_fixed(channels, rgb=()):
        fixed = torch.cat(channels, 1)
        return next(iter(perceptual_distances(lambda part: (fixed[part], tiles[1][part]), 8, NetworkOptions(), rgb)))

    wanted = on_fixed([red, green, blue]).squared
    np.testing.assert_allclose(on_fixed([blue, green, blue, red], [4, 2, 1]).squared, wanted, rtol=1e-5)
    assert not np.allclose(on_fixed([blue, green, red]).squared, wanted, rtol=0.01)
    with pytest.raises(InputError, match="fixed has 3 channels"):
        on_fixed([red, green, blue], [4, 2, 1])


def test_tiles_of_one_texture_are_nearest_to_each_other(distances):
    for name in ("efficientnet_lite0 fixed", "efficientnet_lite0 moving", "efficientnet_lite0 both"):
        found = count(gaussian_similarities(distances[name]), 0.5, 2.0, 3, np.arange(8))
        assert (found.nearest % 2 == np.arange(8)[:, None] % 2).all(), name
        assert (found.similarity[:, 0] <= 1).all()
        assert (found.n_soft > 1).all()


def test_every_distance_is_one_and_the_network_has_its_own(distances):
    assert set(distances) == {
        *(f"{name} {side}" for name in ("efficientnet_lite0", "pixels") for side in ("fixed", "moving", "both")),
        "features both",
    }
    for squared in distances.values():
        np.testing.assert_array_equal(squared, squared.T)
        assert not np.diag(squared).any()
        assert (squared[~np.eye(8, dtype=bool)] > 0).all()


def test_distances_in_small_batches_are_the_same():
    rows = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    asked = []

    def vectors(part):
        asked.append(part)
        return rows[part]

    slow = np.square(rows[:, None] - rows).sum(2)
    for memory_mb in (1, 4e-5 * 1.01):
        asked.clear()
        np.testing.assert_allclose(squared_distances(vectors, 7, memory_mb), slow, atol=1e-5)
    assert all(part.stop - part.start == 1 for part in asked)


def test_similarities_fall_with_distance_from_one():
    squared = np.array([[0.0, 2, 8], [2, 0, 2], [8, 2, 0]])
    similar = gaussian_similarities(squared)
    np.testing.assert_allclose(similar[0], [1, np.exp(-0.5), np.exp(-2)])
    assert gaussian_similarities(squared, 4.0)[0, 2] == pytest.approx(np.exp(-0.5))


class Small(nn.Module):
    """Its last layer sees the tiles' sum, at every pixel."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 1, 1)
        self.last = nn.Conv2d(1, 2, 1)

    def forward(self, fixed, moving):
        class Out:
            displacement = self.last(self.first(fixed) * 0 + fixed + moving)

        return Out


def test_own_features_are_what_the_last_layer_sees():
    fixed, moving = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8)
    found = penultimate(Small(), fixed, moving)
    torch.testing.assert_close(found, (fixed + moving)[:, :, 4, 4])
    with pytest.raises(InputError, match="no features"):
        penultimate(build_model(ModelOptions(descriptor="mind"), 1, 1), fixed, moving)
