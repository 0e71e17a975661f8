"""Per-sample Jacobians: closed form, against torch.func layer by layer, and what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regnet.errors import InputError
from regnet.models import ModelOptions, build_model, centre_offset
from regnet.similarity.gradients import Jacobians
from regnet.similarity.layers import routes_of
from regnet.similarity.readouts import forward
from regnet.similarity.reference import looped_jacobians, reference_jacobians


class Scaled(nn.Module):
    """A layer of an unknown kind."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.scale)


class Plain(nn.Module):
    """Parameters used in the model's own forward: a scalar, a derived one, a list of gains, a broadcast bias, and
    one that meets a single number a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.log_gain = nn.Parameter(torch.tensor(0.3))
        self.gains = nn.Parameter(torch.randn(2))
        self.bias = nn.Parameter(torch.randn(1, 4))
        self.level = nn.Parameter(torch.tensor(0.8))

    def forward(self, x: Tensor) -> Tensor:
        level = self.level * x.mean(1)
        y = self.layer(x) * self.log_gain.exp() + self.bias + level[:, None]
        for gain in self.gains:
            y = torch.tanh(2 * gain * y) - y / (1 + gain**2)
        return y[:, :2]


class Pyramid(nn.Module):
    """One network for both images and two scales, both images stacked in the batch."""

    def __init__(self, interleaved: bool) -> None:
        super().__init__()
        self.describe = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 3))
        self.head = nn.Linear(3, 2)
        self.interleaved = interleaved

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        total = torch.zeros(())
        for step in (1, 2):
            a, b = F.avg_pool2d(fixed, step), F.avg_pool2d(moving, step)
            if self.interleaved:
                u, v = self.describe(torch.stack((a, b), 1).flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
            else:
                u, v = self.describe(torch.cat((a, b))).chunk(2)
            total = total + self.head((u * v).mean((2, 3)))
        return total


class Functional(nn.Module):
    """Weights used behind the layer's back, and tied ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.hidden = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.second(self.first(x)).relu(), self.hidden.weight) + self.hidden(x)


def pooled(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(2))


IMAGE, LINE, CUBE = (3, 4, 9, 8), (3, 4, 11), (3, 2, 5, 4, 6)
LAYERS = {
    "conv": (pooled(nn.Conv2d(4, 6, 3, padding=1)), IMAGE),
    "conv_stride_dilation": (pooled(nn.Conv2d(4, 6, (3, 2), stride=2, dilation=(1, 2), padding=(2, 1))), IMAGE),
    "conv_groups_no_bias": (pooled(nn.Conv2d(4, 6, 3, groups=2, bias=False)), IMAGE),
    "conv_same_reflect": (pooled(nn.Conv2d(4, 3, (3, 2), padding="same", padding_mode="reflect")), IMAGE),
    "conv_valid": (pooled(nn.Conv2d(4, 3, 1, padding="valid")), IMAGE),
    "conv_same_zeros": (pooled(nn.Conv2d(4, 3, 4, padding="same")), IMAGE),
    "conv_pointwise": (pooled(nn.Conv2d(4, 6, 1)), IMAGE),
    "conv_1d": (pooled(nn.Conv1d(4, 3, 3, stride=2)), LINE),
    "conv_3d": (pooled(nn.Conv3d(2, 3, 2, padding=1)), CUBE),
    "transposed": (pooled(nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1)), IMAGE),
    "transposed_groups": (pooled(nn.ConvTranspose2d(4, 6, 2, groups=2, dilation=2, bias=False)), IMAGE),
    "linear": (nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)), IMAGE),
    "group_norm": (pooled(nn.GroupNorm(2, 4), nn.Tanh(), nn.GroupNorm(4, 4, affine=False)), IMAGE),
    "layer_norm": (pooled(nn.LayerNorm((9, 8)), nn.Tanh(), nn.LayerNorm(8, bias=False)), IMAGE),
    "batch_norm": (pooled(nn.BatchNorm2d(4), nn.Tanh()), IMAGE),
    "unknown_leaf": (pooled(Scaled(8)), IMAGE),
    "instance_norm": (pooled(nn.InstanceNorm2d(4, affine=True)), IMAGE),
    "plain": (Plain(), (5, 4)),
    "functional": (Functional(), (5, 4)),
}


def full(model: nn.Module, engine: Jacobians, *inputs: Tensor, way=reference_jacobians) -> Tensor:
    """The reference, as one tensor in the engine's order."""
    gradients = way(model.eval(), engine.readout, engine.names, inputs)
    return torch.cat(
        [gradients[name].reshape(len(inputs[0]), -1, gradients[name][0, 0].numel()) for name in engine.names], 2
    )


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_agrees_with_torch_func(name):
    torch.manual_seed(0)
    model, shape = LAYERS[name]
    model = copy.deepcopy(model).double()
    x = torch.randn(shape, dtype=torch.float64)
    model.eval()(x)  # lazy layers take their shapes
    engine = Jacobians(model, forward)
    for batch in (x, x[:1], x[:2]):  # the plan of the first batch serves the others
        values, jacobians = engine(batch)
        torch.testing.assert_close(values, model(batch).detach())
        torch.testing.assert_close(jacobians, full(model, engine, batch), rtol=0, atol=1e-11)
    if name not in ("functional",):
        assert not any("whole model" in route for route in engine.routes().values())


CONVOLUTIONS = [name for name in LAYERS if name.startswith(("conv", "transposed"))]


@pytest.mark.parametrize("place", ["everywhere", "corner", "middle", "nowhere"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_route_of_a_convolution_gives_the_same(name, place):
    """The engine takes the quickest, so that a run alone would not see them all."""
    torch.manual_seed(0)
    model, shape = LAYERS[name]
    layer = copy.deepcopy(model[0]).double()
    x = torch.randn(shape, dtype=torch.float64)
    y = layer(x)
    g = torch.zeros(len(x), 2, *y.shape[1:], dtype=torch.float64)
    if place != "nowhere":
        parts = {"everywhere": slice(None), "corner": slice(0, 1), "middle": slice(1, 3)}
        inside = g[(..., *[parts[place]] * (x.ndim - 2))]
        inside.copy_(torch.randn(inside.shape))
    for route in routes_of(layer).values():
        found = route(layer, x, g)
        for sample in range(len(x)):
            for k in range(2):
                alone = layer(x[sample : sample + 1])
                expected = torch.autograd.grad(alone, list(layer.parameters()), g[sample, k][None])
                for (own, _), gradient in zip(layer.named_parameters(), expected, strict=True):
                    torch.testing.assert_close(found[own][sample, k], gradient, rtol=0, atol=1e-11)


class Branching(nn.Module):
    """What vmap cannot run: a branch that depends on the data, in a layer and in the model."""

    def __init__(self) -> None:
        super().__init__()
        self.leaf, self.odd = Turning(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(self.leaf(x), self.odd.weight)
        return y if float(x.detach().sum()) != 0 else -y


class Turning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return x.cos() * self.turn if float(x.detach().sum()) != 0 else x * self.turn


@pytest.mark.parametrize(
    "model", [pooled(nn.PReLU(4)), pooled(nn.PReLU()), Branching()], ids=["prelu_channels", "prelu", "branching"]
)
def test_what_torch_func_cannot_do_agrees_with_a_loop(model):
    torch.manual_seed(0)
    model = model.double()
    x = torch.randn((4, 3) if isinstance(model, Branching) else IMAGE, dtype=torch.float64)
    model.eval()(x)
    engine = Jacobians(model, forward)
    _, jacobians = engine(x)
    expected = full(model, engine, x, way=looped_jacobians)
    torch.testing.assert_close(jacobians, expected, rtol=0, atol=1e-12)
    if isinstance(model, Branching):
        assert engine.routes()["leaf.turn"] == "sample by sample"
        assert engine.routes()["odd.weight"] == "whole model, sample by sample"


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class TimeFirst(nn.Module):
    """A layer whose rows are not samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x.transpose(0, 1)).tanh().mean(0))


class OneByOne(nn.Module):
    """How often its layer is used depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.layer(row[None]).tanh() for row in x]))


ANYBODYS = {
    "one_by_one": (OneByOne(), (6, 4)),
    "recurrent": (Recurrent(), (3, 6, 4)),
    "time_first": (TimeFirst(), (3, 3, 4)),
    "attention": (pooled(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), (3, 5, 8)),
    "weight_norm": (pooled(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 3, 3)), nn.ReLU()), IMAGE),
    "bag": (nn.Sequential(nn.EmbeddingBag(10, 4), nn.Linear(4, 2)), None),
    "wrapped": (nn.DataParallel(pooled(nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Upsample(scale_factor=2))), IMAGE),
}


@pytest.mark.parametrize("name", ANYBODYS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_modules_that_know_nothing_of_us_agree_with_a_loop(name):
    torch.manual_seed(0)
    model, shape = ANYBODYS[name]
    model = model.double().eval()
    x = torch.randint(10, (3, 4)) if shape is None else torch.randn(shape, dtype=torch.float64)
    model(x)
    engine = Jacobians(model, forward)
    _, jacobians = engine(x)
    expected = full(model, engine, x, way=looped_jacobians)
    torch.testing.assert_close(jacobians, expected, rtol=0, atol=1e-12)


def test_embedding_agrees_with_torch_func():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 3, padding_idx=1), nn.Flatten(), nn.Linear(12, 2)).double()
    words = torch.tensor([[0, 1, 2, 2], [6, 6, 6, 6], [1, 1, 3, 0]])
    engine = Jacobians(model, forward)
    expected = full(model, engine, words)
    expected[:, :, 3:6] = 0  # the padding word is never trained; torch.func does not know that
    torch.testing.assert_close(engine(words)[1], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_network_used_several_times_adds_up(interleaved):
    torch.manual_seed(0)
    model = Pyramid(interleaved).double()
    fixed, moving = torch.randn(2, 4, 2, 12, 12, dtype=torch.float64)
    engine = Jacobians(model, forward)
    _, jacobians = engine(fixed, moving)
    torch.testing.assert_close(jacobians, full(model, engine, fixed, moving), rtol=0, atol=1e-12)
    assert not any("whole model" in route for route in engine.routes().values())


@pytest.mark.parametrize("name", ["matcher", "unet"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_the_default_readout_of_the_models_agrees_with_torch_func(name):
    torch.manual_seed(0)
    options = ModelOptions(name=name, width=8, levels=2, radius_px=2, descriptor_channels=4)
    model = build_model(options, 2, 1).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    fixed, moving = torch.randn(3, 2, 32, 32, dtype=torch.float64), torch.randn(3, 1, 32, 32, dtype=torch.float64)
    engine = Jacobians(model)
    _, jacobians = engine(fixed, moving)
    assert not any("whole model" in route for route in engine.routes().values())
    expected = full(model, engine, fixed, moving)
    torch.testing.assert_close(jacobians, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


def test_a_linear_model_has_its_closed_form():
    x = torch.randn(5, 3)
    engine = Jacobians(nn.Linear(3, 2), forward)
    _, jacobians = engine(x)
    expected = torch.zeros(5, 2, 8)
    for k in range(2):
        expected[:, k, 3 * k : 3 * k + 3] = x
        expected[:, k, 6 + k] = 1
    assert torch.equal(jacobians, expected)


def test_chosen_parameters_only():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    engine = Jacobians(model, forward, ["1.*"])
    assert engine.names == ["1.weight", "1.bias"]
    assert engine.size == 10
    x = torch.randn(4, 3)
    torch.testing.assert_close(engine(x)[1], full(model, engine, x))


def test_the_model_leaves_as_it_came():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(72, 2))
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[4].bias.grad = torch.ones(2)
    before = copy.deepcopy(model.state_dict())
    engine = Jacobians(model, forward)
    _, first = engine(torch.ones(2, 1, 8, 8))
    _, second = engine(torch.ones(2, 1, 8, 8))
    assert torch.equal(first, second)  # dropout is off
    assert [module.training for module in model] == [True, False, True, True, True]
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
    assert model[4].bias.grad.tolist() == [1, 1]
    assert model[0].weight.grad is None
    assert all(not module._forward_hooks for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_model_leaves_as_it_came_after_an_error():
    model = nn.Sequential(nn.Linear(3, 2)).train()
    engine = Jacobians(model, forward)
    with pytest.raises(InputError, match="tile 1: input 0 holds NaN"):
        engine(torch.tensor([[1.0, 2, 3], [float("nan"), 0, 0]]))
    with pytest.raises(RuntimeError):
        engine(torch.ones(2, 5))
    assert model.training
    assert not model[0]._forward_hooks


def test_half_precision_is_refused():
    with pytest.raises(InputError, match=r"parameter weight is float16.*model\.float"):
        Jacobians(nn.Linear(3, 2).half(), forward)


def test_bad_weights_are_refused():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.bias[1] = float("inf")
    with pytest.raises(InputError, match="parameter bias holds NaN or infinite"):
        Jacobians(model, forward)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scripted_model_is_refused():
    with pytest.raises(InputError, match="pass the module that it was made from"):
        Jacobians(torch.jit.script(nn.Linear(3, 2)), forward)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(InputError, match="no parameter matches"):
        Jacobians(nn.Identity(), forward)
    with pytest.raises(InputError, match="no parameter matches head"):
        Jacobians(nn.Linear(2, 2), forward, ["head*"])


@pytest.mark.parametrize(
    ("readout", "message"),
    [
        (lambda model, x: model(x).sum(), r"gives \(\) for 4 tiles"),
        (lambda model, x: model(x)[:2], r"gives \(2, 2\) for 4 tiles"),
        (lambda model, x: (model(x),), "gives tuple for 4 tiles"),
        (lambda model, x: x[:, :2], "does not depend on the chosen parameters"),
        (lambda model, x: model(x) / 0, "gives NaN or infinite"),
        (lambda model, x: model(x) - model(x).mean(0), "depends on the rest of its batch"),
    ],
)
def test_a_bad_readout_is_refused(readout, message):
    torch.manual_seed(0)
    with pytest.raises(InputError, match=message):
        Jacobians(nn.Linear(3, 2), readout)(torch.randn(4, 3))


def test_duplicates_one_tile_and_zero_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].bias.fill_(-1)
    engine = Jacobians(model, forward)
    x = torch.randn(1, 3) * 5
    _, twice = engine(torch.cat((x, x)))
    torch.testing.assert_close(twice[0], twice[1])
    _, dead = engine(torch.zeros(1, 3))
    assert not dead.any()
    torch.testing.assert_close(engine(x)[1], twice[:1])


def test_centre_offset_is_the_default():
    assert Jacobians(build_model(ModelOptions(width=8), 1, 1)).readout.__name__ == centre_offset.__name__
