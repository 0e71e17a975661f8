import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from regnet.displacement import gaussian, invert, random_field, warp
from regnet.errors import ConfigError, InputError
from regnet.models import (
    ModelOptions,
    build_model,
    centre_offset,
    check_channels,
    load_checkpoint,
    save_checkpoint,
)
from regnet.models.descriptors import mind, ngf, structure

SMALL = {"width": 16, "descriptor_channels": 4, "levels": 2}
TRAINED = [
    ModelOptions(descriptor="learned", **SMALL),
    ModelOptions(descriptor="mind+learned", **SMALL),
    ModelOptions(descriptor="ngf+learned", **SMALL),
    ModelOptions(name="unet", **SMALL),
]


def names(options):
    return options.name if options.name == "unet" else options.descriptor


def texture(side=192, seed=0):
    noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))
    image = gaussian(noise, 1.5) + 2 * gaussian(noise.flip(1), 5.0)
    return image / image.std()


@pytest.mark.parametrize("descriptor", ["mind", "ngf"])
def test_training_free_matcher_recovers_a_smooth_displacement_across_contrasts(descriptor):
    fixed = texture()
    moving = -fixed[:, :1] - 0.5 * fixed[:, 1:2]
    true = torch.from_numpy(random_field((192, 192), 6.0, 60.0, np.random.default_rng(1)))[None]
    model = build_model(ModelOptions(descriptor=descriptor), 3, 1).eval()
    with torch.no_grad():
        found = model((fixed[:, :1] + 0.5 * fixed[:, 1:2]).expand(1, 3, -1, -1), warp(moving, invert(true), "bicubic"))
    error = (found.displacement - true).norm(dim=1)[:, 20:-20, 20:-20]
    assert true.norm(dim=1).mean() > 2
    assert error.mean() < 0.3


@pytest.mark.parametrize("options", TRAINED, ids=names)
def test_an_untrained_network_has_the_shapes_of_the_contract(options):
    model = build_model(options, 3, 2).eval()
    fixed, moving = torch.rand(2, 3, 70, 83), torch.rand(2, 2, 70, 83)
    prediction = model(fixed, moving)
    assert prediction.displacement.shape == (2, 2, 70, 83)
    assert prediction.confidence.shape == (2, 1, 70, 83)
    assert bool(((prediction.confidence >= 0) & (prediction.confidence <= 1)).all())
    centre = centre_offset(model, fixed, moving)
    assert torch.allclose(centre, prediction.displacement[:, :, 35, 41])


@pytest.mark.parametrize("options", TRAINED, ids=names)
def test_a_pair_does_not_depend_on_the_others_of_its_batch(options):
    torch.manual_seed(0)
    model = build_model(options, 3, 1).eval().double()
    fixed, moving = torch.rand(3, 3, 64, 64).double(), torch.rand(3, 1, 64, 64).double()
    together, alone = model(fixed, moving).displacement[1], model(fixed[1:2], moving[1:2]).displacement[0]
    assert torch.allclose(together, alone, atol=1e-9)


def test_invalid_pixels_do_not_matter():
    model = build_model(ModelOptions(descriptor="mind", levels=1), 3, 1).eval()
    fixed, moving = texture(96), texture(96)[:, :1]
    valid = torch.ones(1, 1, 96, 96, dtype=torch.bool)
    valid[..., 24:72, 24:72] = False
    spoilt = moving.clone()
    spoilt[..., 44:52, 44:52] = 50.0  # far enough inside that no valid descriptor sees it
    with torch.no_grad():
        first, second = (model(fixed, m, valid, valid).displacement for m in (moving, spoilt))
    assert torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("options", TRAINED, ids=names)
def test_checkpoint_gives_the_same_model_back(options, tmp_path):
    torch.manual_seed(0)
    model = build_model(options, 3, 1).eval()
    save_checkpoint(tmp_path / "m.safetensors", model)
    loaded = load_checkpoint(tmp_path / "m.safetensors")
    fixed, moving = torch.rand(1, 3, 64, 64), torch.rand(1, 1, 64, 64)
    assert torch.equal(loaded(fixed, moving).displacement, model(fixed, moving).displacement)
    assert not loaded.training


def test_checkpoint_cut_short_or_strange_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, build_model(TRAINED[0], 3, 1))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cut short or not a regnet model"):
        load_checkpoint(path)
    path.write_bytes(b"not a model at all")
    with pytest.raises(InputError, match="cut short or not a regnet model"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="no such model file"):
        load_checkpoint(tmp_path / "absent.safetensors")


def test_other_bands_than_the_model_was_made_for_are_refused():
    with pytest.raises(ConfigError, match="made for 3 fixed and 1 moving bands, but the pair has 4 and 1"):
        check_channels(build_model(TRAINED[0], 3, 1), 4, 1)


def test_mind_is_the_formula():
    """Equations 3 to 5 with scipy's Gaussians, neighbour by neighbour; then centred and scaled to half of a unit."""
    image = gaussian_filter(np.random.default_rng(0).normal(size=(3, 60, 70)), (0, 1, 1))
    half = [(0, 1), (1, -1), (1, 0), (1, 1)]
    parts = []
    for step in (1, 2):
        distances = []
        for dy, dx in [*half, *((-dy, -dx) for dy, dx in half)]:
            moved = np.roll(image, (-step * dy, -step * dx), (1, 2))
            distances.append(gaussian_filter(np.square(moved - image).sum(0), 0.5 * step, truncate=3.5))
        similar = np.exp(-np.array(distances) / np.mean(distances, 0))
        centred = similar - similar.mean(0)
        parts.append(centred / np.sqrt(2 * (np.square(centred).sum(0) + 1e-6)))
    inner = (slice(None), slice(12, -12), slice(12, -12))
    found = mind(torch.from_numpy(image)[None])[0].numpy()
    np.testing.assert_allclose(found[inner], np.concatenate(parts)[inner], atol=1e-5)


def test_structure_is_a_ring_of_neighbours_and_the_lengths_of_the_gradient_along_four_directions():
    image = gaussian_filter(np.random.default_rng(0).normal(size=(3, 60, 70)), (0, 1, 1))
    half = [(0, 2), (1, -1), (2, 0), (1, 1)]
    distances = []
    for dy, dx in [*half, *((-dy, -dx) for dy, dx in half)]:
        moved = np.roll(image, (-dy, -dx), (1, 2))
        distances.append(gaussian_filter(np.square(moved - image).sum(0), 0.4, truncate=4))
    similar = np.exp(-np.array(distances) / (np.mean(distances, 0) + 0.003))
    down, along = np.gradient(gaussian_filter(image, (0, 0.4, 0.4), truncate=4), axis=(1, 2))
    turns = np.arange(4) * np.pi / 4
    lengths = [np.sqrt(np.square(np.cos(turn) * along + np.sin(turn) * down).sum(0)) for turn in turns]
    parts = []
    for values, share in ((similar, 0.55), (np.array(lengths), 0.45)):
        centred = values - values.mean(0)
        parts.append(centred * np.sqrt(share / (np.square(centred).sum(0) + 1e-6)))
    inner = (slice(None), slice(12, -12), slice(12, -12))
    found = structure(torch.from_numpy(image)[None])[0].numpy()
    np.testing.assert_allclose(found[inner], np.concatenate(parts)[inner], atol=1e-5)


@pytest.mark.parametrize("describe", [mind, structure])
def test_the_descriptors_of_an_image_are_those_of_its_parts(describe):
    """The image has more rows than are described at once; a part must not see its own border."""
    image = torch.rand(1, 2, 300, 400)
    part = describe(image[..., 60:260, 100:300])
    assert torch.allclose(describe(image)[..., 80:240, 120:280], part[..., 20:-20, 20:-20], atol=1e-6)


def test_structure_does_not_see_the_sign_of_contrast():
    image = texture(64)
    assert torch.allclose(structure(image), structure(3 - image), atol=1e-4)


@pytest.mark.parametrize("gain", [3.0, 0.2])
def test_mind_does_not_see_gain_and_offset(gain):
    image = texture(64)
    assert torch.allclose(mind(image), mind(image * gain + 7), atol=2e-3)


def test_ngf_does_not_see_the_sign_of_contrast():
    image = texture(64)
    assert torch.allclose(ngf(image), ngf(-image), atol=1e-5)
    assert ngf(image).norm(dim=1).max() <= 1 + 1e-5


def test_flat_ground_has_no_descriptor():
    flat = torch.full((1, 1, 32, 32), 4.0)
    assert mind(flat).abs().max() < 1e-3
    assert structure(flat).abs().max() < 1e-3
    assert ngf(flat).abs().max() < 1e-3


def test_the_readout_is_differentiated_through_every_level():
    model = build_model(TRAINED[1], 3, 1).eval()
    described = []
    model.describe_moving.register_forward_hook(lambda module, inputs, output: described.append(output))
    image = texture(96)
    prediction = model(image, torch.roll(image[:, :1], (2, 3), (2, 3)))
    gradients = torch.autograd.grad(prediction.displacement[0, 0, 48, 48], described)
    assert len(gradients) == 2
    assert all(gradient.abs().max() > 1e-6 for gradient in gradients)
