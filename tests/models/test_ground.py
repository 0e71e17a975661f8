"""What is like the ground that was seen, and what a network makes of it."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import mahalanobis

from regnet.models import ModelOptions, build_model, load_checkpoint
from regnet.models.ground import FADING, WINDOW_PX, Ground
from regnet.training.fit import Fit
from regnet.training.options import TrainingOptions

CELL, SIDE = 4, 256


def scene(bands=2, seed=0, brightness=0.0):
    rng = np.random.default_rng(seed)
    rough = rng.normal(size=(bands, SIDE, SIDE))
    kind = np.stack([gaussian_filter(part, 24.0) for part in rng.normal(size=(bands, SIDE, SIDE))])
    images = brightness + kind / kind.std() + rough * 0.2
    return torch.from_numpy(images.astype(np.float32))[None]


def everywhere(images):
    return torch.ones_like(images[:, :1], dtype=torch.bool)


@pytest.fixture(scope="module")
def seen():
    ground, images = Ground(2, CELL), scene()
    ground.see([(images, everywhere(images))])
    return ground, images


def test_before_anything_was_seen_all_ground_is_alike():
    images = scene()
    assert torch.equal(Ground(2, CELL)(images, everywhere(images)), torch.ones(1, 1, SIDE // CELL, SIDE // CELL))


def test_likeness_falls_with_the_squared_mahalanobis_distance(seen):
    ground, images = seen
    valid = everywhere(images)
    rows = ground.described(images, valid)[0].flatten(1).double().numpy()
    inverse = np.linalg.inv(np.cov(rows) + 0.05**2 * np.eye(len(rows)))
    other = scene(seed=1, brightness=0.7)
    described = ground.described(other, valid)[0].double().numpy()
    found = ground(other, valid)[0, 0].numpy()
    for place in [(0, 0), (20, 31), (63, 40)]:
        squared = mahalanobis(described[(slice(None), *place)], rows.mean(1), inverse) ** 2 / len(rows)
        assert found[place] == pytest.approx(min(1.0, np.exp(-FADING * (squared - 1))), rel=5e-3, abs=1e-6)


def test_what_describes_the_ground_is_mean_and_spread_within_a_gaussian_window():
    images = scene(bands=1)
    mean, spread = Ground(1, CELL).described(images, everywhere(images))[0, :, SIDE // 8, SIDE // 8].tolist()
    values = images[0, 0].double().numpy()
    window = np.zeros((SIDE, SIDE))
    window[SIDE // 2 : SIDE // 2 + CELL, SIDE // 2 : SIDE // 2 + CELL] = 1 / CELL**2
    window = gaussian_filter(window, WINDOW_PX, truncate=6)
    assert mean == pytest.approx((window * values).sum(), abs=0.01)
    assert spread == pytest.approx(np.log(np.sqrt((window * (values - mean) ** 2).sum())), abs=0.02)


def test_ground_that_was_seen_is_alike_and_brighter_ground_is_not(seen):
    ground, images = seen
    valid = everywhere(images)
    assert ground(images, valid).mean() > 0.6
    assert ground(images + 5, valid).max() < 0.01


def test_invalid_pixels_are_not_seen(seen):
    _, images = seen
    valid = everywhere(images)
    valid[..., :, SIDE // 2 :] = False
    spoilt = torch.where(valid, images, 30.0)
    grounds = [Ground(2, CELL) for _ in range(2)]
    for ground, values in zip(grounds, (images, spoilt), strict=True):
        ground.see([(values, valid)])
    torch.testing.assert_close(grounds[0].mean, grounds[1].mean)
    torch.testing.assert_close(grounds[0](images, valid), grounds[1](spoilt, valid))


def test_a_learned_shift_fades_where_the_ground_is_unlike_that_of_training():
    torch.manual_seed(0)
    model = build_model(ModelOptions(descriptor="mind+learned", levels=2, descriptor_channels=4), 1, 1).eval()
    images = scene()
    fixed, moving = images.split(1, 1)
    with torch.no_grad():
        without = model(fixed, moving).displacement
        model.shift.copy_(torch.tensor([3.0, -2.0]).reshape(2, 1, 1))
        unseen = model(fixed, moving).displacement - without
        model.ground.see([(images, everywhere(images))])
        at_home = model(fixed, moving).displacement - without
        abroad = model(fixed + 5, moving).displacement
        model.shift.zero_()
        torch.testing.assert_close(abroad, model(fixed + 5, moving).displacement, atol=0.01, rtol=0)
    torch.testing.assert_close(unseen, torch.tensor([3.0, -2.0]).reshape(1, 2, 1, 1).expand_as(unseen))
    share = at_home / unseen
    assert 0.6 < share.mean() <= share.max() <= 1.001


def test_training_sees_its_own_ground(mini_store, tmp_path):
    store = mini_store(tile_px=64, stride_px=64)
    options = TrainingOptions(epochs=1, steps=1, batch=2, peak_px=3.0, familiarity_tiles=0)
    Fit(store, ModelOptions(descriptor="mind+learned", levels=2, descriptor_channels=4), options, tmp_path).run()
    model = load_checkpoint(tmp_path / "model.safetensors")
    tiles = [store.tile(int(position)) for position in store.tiles("train")]
    likeness = []
    for tile in tiles:
        images = torch.from_numpy(np.concatenate((tile.fixed, tile.moving)))[None]
        valid = torch.from_numpy(tile.fixed_valid & tile.moving_valid)[None, None]
        likeness.append([float(model.ground(images + offset, valid).mean()) for offset in (0, 5)])
    own, other = np.mean(likeness, axis=0)
    assert own > 0.6
    assert other < 0.01
