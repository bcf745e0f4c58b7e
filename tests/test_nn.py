"""fedkern.nn against plain layers, and its points in every way that models are used."""

import contextlib
import copy
import io
import math
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from operators._entry import randn
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from fedkern import simplex
from fedkern.nn import (
    SimplexConv1d,
    SimplexConv2d,
    SimplexConv3d,
    SimplexLinear,
    endpoint_parameters,
    simplexify,
    subregion,
)

BETA = torch.tensor([0.6, 0.3, 0.1])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Probe(SimplexLinear):
    """Its result is the point at which it stands, [N, 3], whatever the input [N, 1]."""

    def __init__(self, num_endpoints: int = 3) -> None:
        super().__init__(1, num_endpoints, num_endpoints, bias=False, generator=seeded(0))
        with torch.no_grad():
            self.endpoints.copy_(torch.eye(num_endpoints).unsqueeze(2))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.ones_like(input))


class Twins(nn.Module):
    """The points of a layer that is used twice and of another one, [3, N, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Identity(), Probe())
        self.probe = Probe()

    def forward(self, input: Tensor) -> Tensor:
        return torch.stack([self.inner(input), self.probe(input), self.probe(input)])


def twins() -> Twins:
    """Its layers share their point; `simplexify` needs a layer to make a simplex."""
    model = Twins()
    model.inner[0] = nn.Linear(1, 1)
    simplexify(model, "inner.0", 3, generator=seeded(0))
    return model


INPUT = torch.ones(4, 1)


def points(model: nn.Module, input: Tensor = INPUT) -> Tensor:
    """The one point [3] of a pass: that of all layers and samples."""
    found = model(input).detach().reshape(-1, 3)
    assert torch.equal(found, found[:1].expand_as(found))
    return found[0]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# ---- layers -------------------------------------------------------------------------------------

Case = tuple[type[nn.Module], Callable[..., nn.Module], tuple[int, ...], dict[str, object]]
LAYERS: dict[str, Case] = {
    "linear": (SimplexLinear, nn.Linear, (5, 6), {}),
    "no bias": (SimplexLinear, nn.Linear, (5, 6), {"bias": False}),
    "conv1d": (SimplexConv1d, nn.Conv1d, (4, 6, 3), {"stride": 2, "padding": 1, "dilation": 2}),
    "conv2d": (SimplexConv2d, nn.Conv2d, (4, 6, 3), {"padding": "same"}),
    "conv3d": (SimplexConv3d, nn.Conv3d, (4, 6, 2), {"stride": (1, 2, 1), "bias": False}),
    "groups": (SimplexConv2d, nn.Conv2d, (4, 6, 3), {"groups": 2, "padding": (0, 2)}),
    "depthwise": (SimplexConv1d, nn.Conv1d, (4, 4, 3), {"groups": 4}),
    "reflect": (SimplexConv2d, nn.Conv2d, (4, 6, 3), {"padding": 1, "padding_mode": "reflect"}),
    "replicate": (SimplexConv3d, nn.Conv3d, (4, 6, 2), {"padding": 1, "padding_mode": "replicate"}),
    "circular": (
        SimplexConv1d,
        nn.Conv1d,
        (4, 6, 3),
        {"padding": 2, "padding_mode": "circular", "groups": 2},
    ),
}
INPUTS = {
    nn.Linear: (7, 5),
    nn.Conv1d: (7, 4, 9),
    nn.Conv2d: (7, 4, 6, 5),
    nn.Conv3d: (7, 4, *[4] * 3),
}


def layers_of(
    case: str, num_endpoints: int = 3, dtype: torch.dtype = torch.float64
) -> tuple[SimplexLinear, nn.Linear, Tensor]:
    """A simplex layer, the plain one with the same arguments and bias, and an input."""
    kind, plain_kind, args, options = LAYERS[case]
    layer = kind(*args, num_endpoints, **options, generator=seeded(1), dtype=dtype)
    plain = plain_kind(*args, **options, dtype=dtype)
    plain.load_state_dict({"bias": layer.bias} if layer.bias is not None else {}, strict=False)
    return layer, plain, randn(*INPUTS[plain_kind], dtype=dtype)


@pytest.mark.parametrize("case", LAYERS)
def test_one_point_is_the_plain_layer_with_the_combined_weight(case: str) -> None:
    layer, plain, input = layers_of(case)
    alpha = BETA.double()
    with torch.no_grad():
        plain.weight.copy_(torch.einsum("m,m...->...", alpha, layer.endpoints))
    with subregion(layer, alpha):
        actual = layer(input)
    expected = plain(input)
    torch.testing.assert_close(actual, expected)
    upstream = randn(*expected.shape, seed=2)
    torch.autograd.backward([actual, expected], [upstream, upstream])
    by_theta = torch.stack([a * plain.weight.grad for a in alpha])
    torch.testing.assert_close(layer.endpoints.grad, by_theta)
    if plain.bias is not None:
        torch.testing.assert_close(layer.bias.grad, plain.bias.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LAYERS)
def test_one_endpoint_is_the_plain_layer_to_the_bit(case: str, dtype: torch.dtype) -> None:
    layer, plain, input = layers_of(case, 1, dtype)
    with torch.no_grad():
        plain.weight.copy_(layer.endpoints[0])
    for radius in (None, 0.5):  # drawn from the whole simplex, from a ball
        with subregion(layer, None if radius is None else torch.ones(1), radius):
            actual, expected = layer(input), plain(input)
        assert torch.equal(actual, expected)
        upstream = randn(*expected.shape, dtype=dtype, seed=2)
        (by_theta,) = torch.autograd.grad(actual, layer.endpoints, upstream)
        (by_weight,) = torch.autograd.grad(expected, plain.weight, upstream)
        assert torch.equal(by_theta[0], by_weight)


@pytest.mark.parametrize("case", LAYERS)
def test_a_point_for_each_sample_is_a_loop_over_samples(case: str) -> None:
    layer, _, input = layers_of(case)
    alphas = randn(len(input), 3, seed=3).softmax(1)
    with subregion(layer, alphas):
        actual = layer(input)
    rows = []
    for sample, alpha in zip(input, alphas, strict=True):
        with subregion(layer, alpha / alpha.sum()):
            rows.append(layer(sample.unsqueeze(0)))
    expected = torch.cat(rows)
    torch.testing.assert_close(actual, expected)
    upstream = randn(*expected.shape, seed=2)
    parameters = list(layer.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(actual, parameters, upstream),
        torch.autograd.grad(expected, parameters, upstream),
    )


@given(batch=st.integers(0, 3), more=st.lists(st.integers(0, 3), max_size=2))
@settings(max_examples=30, deadline=None)
def test_linear_inputs_may_have_more_dimensions(batch: int, more: list[int]) -> None:
    layer = SimplexLinear(5, 6, 3, generator=seeded(0), dtype=torch.float64).eval()
    input, alphas = randn(batch, *more, 5), randn(batch, 3, seed=1).softmax(1)
    with subregion(layer, alphas):
        actual = layer(input)
    weights = torch.einsum("nm,moi->noi", alphas, layer.endpoints)
    expected = torch.einsum("noi,n...i->n...o", weights, input) + layer.bias
    torch.testing.assert_close(actual, expected)


def test_one_point_needs_no_batch() -> None:
    linear, conv = SimplexLinear(5, 6, 3), SimplexConv2d(4, 6, 3, 3)
    assert linear(randn(5).float()).shape == (6,)
    assert conv(randn(4, 5, 5).float()).shape == (6, 3, 3)
    for layer, input in ((linear, randn(5)), (conv, randn(4, 5, 5))):
        with (
            subregion(layer, BETA.expand(len(input), 3)),
            pytest.raises(ValueError, match=r"^Simplex.*: input must have \d samples"),
        ):
            layer(input.float())


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("case", ["linear", "groups"])
def test_autocast_is_that_of_the_plain_layer(case: str, per_sample: bool) -> None:
    layer, plain, input = layers_of(case, dtype=torch.float32)
    with torch.no_grad():
        plain.weight.copy_(layer.endpoints[1])
    alpha = torch.tensor([0.0, 1.0, 0.0])
    with torch.autocast("cpu", torch.bfloat16):
        with subregion(layer, alpha.expand(len(input), 3) if per_sample else alpha):
            actual = layer(input)
        expected = plain(input)
    assert actual.dtype == torch.bfloat16
    # A bias that is added afterwards: one more rounding of the result and one of the bias.
    ulp = torch.finfo(torch.bfloat16).eps * float(expected.abs().max().detach())
    torch.testing.assert_close(actual, expected, rtol=0, atol=2 * ulp if per_sample else 0)
    actual.sum().backward()
    assert layer.endpoints.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["linear", "conv1d", "conv2d", "conv3d"])
def test_layers_change_their_dtype(case: str, dtype: torch.dtype) -> None:
    layer, _, input = layers_of(case, dtype=torch.float32)
    values = layer.endpoints.detach().clone()
    layer.to(dtype)
    torch.testing.assert_close(layer.endpoints.detach(), values.to(dtype), rtol=0, atol=0)
    for center in (BETA, BETA.expand(7, 3)):
        with subregion(layer, center, 0.1):
            output = layer(input.to(dtype))
            output.sum().backward()
            assert output.dtype == layer.endpoints.grad.dtype == dtype


def test_a_memory_format_is_not_one_of_endpoints() -> None:
    model = nn.Sequential(SimplexConv2d(4, 6, 3, 3), SimplexConv1d(4, 6, 3, 3), nn.Conv2d(4, 6, 3))
    model.to(memory_format=torch.channels_last)
    assert model[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(theta.is_contiguous() for theta in endpoint_parameters(model))
    assert all(theta.is_shared() for theta in endpoint_parameters(model.share_memory()))


def test_layers_say_what_they_are() -> None:
    assert str(SimplexLinear(2, 3, 4)) == (
        "SimplexLinear(in_features=2, out_features=3, bias=True, num_endpoints=4)"
    )
    assert str(SimplexConv1d(2, 3, 5, 4, padding=1)) == (
        "SimplexConv1d(2, 3, kernel_size=(5,), stride=(1,), padding=(1,), num_endpoints=4)"
    )


# ---- initial values -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        SimplexLinear(300, 100, 4, generator=seeded(0)),
        SimplexConv1d(80, 40, 9, 4, generator=seeded(0)),
        SimplexConv2d(40, 80, 3, 4, groups=4, generator=seeded(0)),
        SimplexConv3d(20, 40, (1, 3, 3), 4, groups=2, generator=seeded(0)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_endpoints_start_xavier_normal_and_the_bias_as_plain(layer: SimplexLinear) -> None:
    for theta in layer.endpoints:
        out_channels, in_channels, *kernel = theta.shape
        std = math.sqrt(2 / ((out_channels + in_channels) * math.prod(kernel)))
        # Five standard errors of a normal sample's mean and standard deviation.
        assert abs(theta.mean().item()) < 5 * std / math.sqrt(theta.numel())
        assert theta.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * theta.numel()))
        assert theta.abs().max() > 2.5 * std  # normal; a uniform one ends at 1.8
    bound = theta[0].numel() ** -0.5
    # The largest of n uniform values: less than 0.6 of the bound with probability 0.6^n < 1e-8.
    assert 0.6 * bound < layer.bias.abs().max() <= bound


def test_an_endpoint_does_not_depend_on_the_others() -> None:
    few, many = (SimplexConv2d(4, 6, 3, m, generator=seeded(0)) for m in (2, 5))
    assert torch.equal(few.endpoints, many.endpoints[:2])
    assert torch.equal(few.bias, many.bias)
    assert len(many.endpoints.flatten(1).unique(dim=0)) == 5
    models = [
        simplexify(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)), ["0", "1"], m, generator=g)
        for m, g in ((2, seeded(0)), (5, seeded(0)))
    ]
    for a, b in zip(*map(endpoint_parameters, models), strict=True):
        assert torch.equal(a, b[:2])


def test_each_endpoint_has_a_generator_of_its_own() -> None:
    layer = SimplexLinear(5, 4, 3, bias=False, generator=seeded(0))
    seeds = torch.randint(2**63 - 1, (3,), generator=seeded(0)).tolist()
    for theta, seed in zip(layer.endpoints, seeds, strict=True):
        expected = nn.init.xavier_normal_(torch.empty(4, 5), generator=seeded(seed))
        assert torch.equal(theta, expected)


def test_initial_values_come_from_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    layers = [SimplexConv1d(3, 4, 2, 3, generator=seeded(seed)) for seed in (0, 0, 1)]
    plain = nn.Linear(3, 4, device="meta").to_empty(device="cpu")
    simplexify(plain, generator=seeded(0))
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b, c in zip(*(layer.parameters() for layer in layers), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    torch.manual_seed(5)
    first = SimplexLinear(3, 4, 2)
    torch.manual_seed(5)
    for a, b in zip(first.parameters(), SimplexLinear(3, 4, 2).parameters(), strict=True):
        assert torch.equal(a, b)


def test_parameters_can_be_drawn_anew() -> None:
    layer = SimplexLinear(3, 4, 2, generator=seeded(1))
    first = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    assert not torch.equal(layer.endpoints, first["endpoints"])
    layer.reset_parameters(seeded(1))
    torch.testing.assert_close(layer.state_dict(), first, rtol=0, atol=0)


def test_an_empty_layer_is_possible() -> None:
    assert SimplexLinear(0, 3, 2)(torch.zeros(5, 0)).shape == (5, 3)


@pytest.mark.parametrize("num_endpoints", [0, -1])
def test_there_is_at_least_one_endpoint(num_endpoints: int) -> None:
    message = f"num_endpoints must be at least 1, got {num_endpoints}"
    with pytest.raises(ValueError, match=f"^SimplexLinear: {message}"):
        SimplexLinear(2, 3, num_endpoints)
    with pytest.raises(ValueError, match=f"^simplexify: {message}"):
        simplexify(nn.Linear(2, 3), num_endpoints=num_endpoints)


# ---- draws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [twins, Twins, Probe])
def test_a_pass_takes_one_draw_of_the_kernels(make: Callable[[], nn.Module]) -> None:
    """So they are uniform, and in the subregion."""
    model = make()
    draws, expected = seeded(7), seeded(7)
    with subregion(model, generator=draws):
        for _ in range(3):
            torch.testing.assert_close(points(model), simplex.sample(3, generator=expected))
    with subregion(model, BETA, 0.2, generator=draws):
        for _ in range(3):
            alpha = points(model)
            torch.testing.assert_close(alpha, simplex.sample_ball(BETA, 0.2, generator=expected)[0])
            assert (alpha - BETA).abs().sum() <= 0.2 + 1e-6
    with subregion(model, radius=0.3, generator=draws):
        center = torch.full((3,), 1 / 3)
        torch.testing.assert_close(
            points(model), simplex.sample_ball(center, 0.3, generator=expected)[0]
        )
    assert torch.equal(draws.get_state(), expected.get_state())


def test_each_sample_takes_a_point_of_one_draw() -> None:
    model = twins()
    draws, expected = seeded(7), seeded(7)
    with subregion(model, per_sample=True, generator=draws):
        torch.testing.assert_close(
            model(INPUT), simplex.sample(3, [4], generator=expected).expand(3, 4, 3)
        )
    with subregion(model, BETA, 0.2, per_sample=True, generator=draws):
        torch.testing.assert_close(
            model(input=INPUT),
            simplex.sample_ball(BETA, 0.2, 4, generator=expected).expand(3, 4, 3),
        )
    centers = simplex.sample(3, [4], generator=seeded(0))
    for per_sample in (False, True):
        with subregion(model, centers, 0.2, per_sample=per_sample, generator=draws):
            alphas = simplex.sample_ball(centers, 0.2, generator=expected)[:, 0]
            torch.testing.assert_close(model(INPUT), alphas.expand(3, 4, 3))


def test_without_a_context_it_is_like_dropout() -> None:
    model = twins()
    state = torch.random.get_rng_state()
    first, second = points(model), points(model)
    assert not torch.equal(first, second)
    torch.random.set_rng_state(state)
    assert torch.equal(points(model), first)
    with subregion(model):
        assert torch.equal(points(model), second)
    model.eval()
    assert torch.equal(points(model), torch.full((3,), 1 / 3))


def test_eval_looks_at_the_center_and_draws_nothing() -> None:
    model = twins().eval()
    before, draws = torch.random.get_rng_state(), seeded(0)
    for radius in (None, 0.0, 0.3):
        with subregion(model, BETA, radius, generator=draws):
            assert torch.equal(points(model), BETA)
        centers = simplex.sample(3, [4], generator=seeded(0))
        with subregion(model, centers, radius, generator=draws):
            torch.testing.assert_close(model(INPUT), centers.expand(3, 4, 3), rtol=0, atol=0)
    for radius in (None, 0.3):
        with subregion(model, radius=radius, per_sample=True, generator=draws):
            assert torch.equal(points(model), torch.full((3,), 1 / 3))
    assert torch.equal(draws.get_state(), seeded(0).get_state())
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("radius", [None, 0, 0.0])
def test_radius_0_is_the_center_in_training_too(radius: float | None) -> None:
    model, draws = twins(), seeded(0)
    with subregion(model, BETA, radius, per_sample=True, generator=draws):
        assert torch.equal(points(model), BETA)
    assert torch.equal(draws.get_state(), seeded(0).get_state())


def test_radius_2_is_the_whole_simplex_around_any_center() -> None:
    model = twins()
    with subregion(model, BETA, 2.0, generator=seeded(1)):
        assert torch.equal(points(model), simplex.sample(3, generator=seeded(1)))
    centers = BETA.expand(4, 3)
    with subregion(model, centers, 2.5, generator=seeded(1)):
        found = model(INPUT).detach()
    expected = simplex.sample(3, [4], generator=seeded(1))
    torch.testing.assert_close(found, expected.expand(3, 4, 3), rtol=0, atol=0)


def test_a_centers_later_values_do_not_matter() -> None:
    model, center = twins(), BETA.clone()
    with subregion(model, center):
        center.fill_(math.nan)
        assert torch.equal(points(model), BETA)


def test_a_layers_own_mode_decides() -> None:
    """As for dropout: a frozen layer in a model that trains, points drawn in a model in eval."""
    model = twins()
    model.probe.eval()
    with subregion(model, BETA, 0.3):
        drawn, *centers = model(INPUT)
        assert not torch.equal(drawn[0], BETA)
        torch.testing.assert_close(torch.stack(centers), BETA.expand(2, 4, 3), rtol=0, atol=0)
    model.eval()
    for layer in (model.inner[1], model.probe):
        layer.train()
    first, second = points(model), points(model)
    assert not torch.equal(first, second)


def test_a_layer_outside_its_models_pass_draws_for_itself() -> None:
    model = twins()
    alone = [points(model.probe) for _ in range(2)]
    passed = points(model)
    again = points(model.probe)
    assert len({tuple(x.tolist()) for x in (*alone, passed, again)}) == 4
    with subregion(model, BETA, 0.1, generator=seeded(0)):
        assert (points(model.probe) - BETA).abs().sum() <= 0.1 + 1e-6


def test_a_model_in_a_larger_one_does_not_draw_again_where_that_is_asked() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = twins()

        def forward(self, input: Tensor) -> Tensor:
            return torch.cat([self.part(input), self.part(input)])

    model = Siamese()
    first, second = model(INPUT).chunk(2)
    assert not torch.equal(first, second)
    draws, expected = seeded(0), seeded(0)
    with subregion(model, generator=draws):
        torch.testing.assert_close(points(model), simplex.sample(3, generator=expected))
        points(model.part)
        simplex.sample(3, generator=expected)
    assert torch.equal(draws.get_state(), expected.get_state())
    with subregion(model.part, BETA):
        assert torch.equal(points(model), BETA)


def test_inputs_that_are_not_tensors() -> None:
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.probe = Probe()

        def forward(self, what: str, batch: list[Tensor]) -> Tensor:
            return self.probe(batch[0])

    model = Takes()
    with subregion(model):
        assert model("any", [INPUT]).shape == (4, 3)
        with (
            subregion(model, per_sample=True),
            pytest.raises(ValueError, match=r"^subregion: per_sample needs a model .* a tensor"),
        ):
            model("any", [INPUT])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_pass_is_over(error: type[BaseException]) -> None:
    class Fails(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            raise error

    model, expected = twins(), seeded(0)
    fine = model.inner[0]
    with subregion(model, generator=seeded(0)):
        model.inner[0] = Fails()
        with pytest.raises(error):
            model(INPUT)
        model.inner[0] = fine
        simplex.sample(3, generator=expected)
        if error is RuntimeError:  # torch calls no hook for the other
            torch.testing.assert_close(points(model.probe), simplex.sample(3, generator=expected))
        torch.testing.assert_close(points(model), simplex.sample(3, generator=expected))


# ---- contexts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [twins, Twins])
def test_contexts_nest_and_restore(make: Callable[[], Twins]) -> None:
    model = make().eval()
    hooks = len(model._forward_pre_hooks), len(model._forward_hooks)
    uniform = torch.full((3,), 1 / 3)
    with subregion(model, BETA) as same:
        assert same is model
        with subregion(model.inner, torch.eye(3)[0]):
            inner, *others = model(INPUT)
            assert torch.equal(inner[0], torch.eye(3)[0])
            assert all(torch.equal(other[0], BETA) for other in others)
        with pytest.raises(IndexError), subregion(model, torch.eye(3)[2]):
            model(INPUT)[3]
        assert torch.equal(points(model), BETA)
    assert torch.equal(points(model), uniform)
    assert hooks == (len(model._forward_pre_hooks), len(model._forward_hooks))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"center": torch.ones(4) / 4}, r"center must have shape \[3\] or \[N, 3\], got \[4\]"),
        ({"center": torch.ones(3, 4) / 4}, r"center must have shape .* got \[3, 4\]"),
        ({"center": torch.ones(1, 1, 3) / 3}, r"center must have shape .* got \[1, 1, 3\]"),
        ({"center": torch.tensor(1.0)}, r"center must have shape .* got \[\]"),
        ({"center": torch.tensor([0.5, 0.6, -0.1])}, r"center must be on the simplex .* got \[0.5"),
        ({"center": torch.tensor([0.5, 0.5, 0.002])}, "center must be on the simplex"),
        ({"center": torch.tensor([0.5, 0.5, math.nan])}, r"center must be .* nan\]$"),
        ({"center": torch.tensor([0.5, 0.5, math.inf])}, "center must be on the simplex"),
        (
            {"center": torch.tensor([[1.0, 0, 0], [1, 1, 0]])},
            r"center must be .* got \[1.0, 1.0, 0.0\]$",
        ),
        ({"radius": -0.1}, "radius must be finite and not negative, got -0.1"),
        ({"radius": math.nan}, "radius must be finite and not negative, got nan"),
        ({"radius": math.inf}, "radius must be finite and not negative, got inf"),
    ],
)
def test_regions_that_are_none(options: dict[str, object], message: str) -> None:
    model = twins()
    before = copy.deepcopy(model._forward_pre_hooks)
    with pytest.raises(ValueError, match=f"^subregion: {message}"), subregion(model, **options):
        pass
    assert len(model._forward_pre_hooks) == len(before)


def test_models_that_have_no_simplex_or_several() -> None:
    message = "^subregion: model must have simplex layers, all with as many endpoints, got "
    with pytest.raises(ValueError, match=message + "none$"), subregion(nn.Linear(2, 3)):
        pass
    mixed = nn.Sequential(Probe(3), Probe(2))
    with pytest.raises(ValueError, match=message + r"layers with \[2, 3\]$"), subregion(mixed):
        pass


def test_a_batch_of_another_size_than_the_points() -> None:
    model = twins()
    message = r"^Probe: input must have 2 samples, .* got the shape \[4, 1\]$"
    for mode in (True, False):
        with (
            subregion(model.train(mode), BETA.expand(2, 3), 0.1 if mode else None),
            pytest.raises(ValueError, match=message),
        ):
            model.probe(INPUT)


# ---- copies, checkpoints, transforms ------------------------------------------------------------


def through_a_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_a_file],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("make", [twins, Twins])
def test_copies_share_among_themselves(
    make: Callable[[], nn.Module], duplicate: Callable[[nn.Module], nn.Module]
) -> None:
    model = make()
    with subregion(model, BETA, 0.1, generator=seeded(0)):
        copied = duplicate(model)
        points(copied)  # one for all layers, and not the original's draw
        torch.testing.assert_close(
            points(model), simplex.sample_ball(BETA, 0.1, generator=seeded(0))[0]
        )
        # In no context: on the whole simplex, rarely that near to BETA thrice.
        assert any((points(copied) - BETA).abs().sum() > 0.2 for _ in range(3))
        assert torch.equal(points(copied.eval()), torch.full((3,), 1 / 3))
    again = duplicate(copied.train())
    with subregion(copied, BETA):
        assert not torch.equal(points(again), BETA)


def test_hooks_of_a_loaded_model_stay_beside_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch counts hooks up in each process: a new one may get the number of one from a file."""
    saved = pickle.dumps(twins())
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    loaded = pickle.loads(saved)
    for _ in range(1000):
        loaded.register_forward_pre_hook(lambda module, args: None)
        loaded.register_forward_hook(lambda module, args, output: None)
    assert not torch.equal(points(loaded), points(loaded))


def test_a_part_is_copied_alone() -> None:
    part = copy.deepcopy(twins().probe)
    assert not torch.equal(points(part), points(part))


def test_the_state_has_endpoints_and_biases_alone() -> None:
    model = simplexify(nn.Sequential(nn.Conv1d(2, 3, 2), nn.Linear(4, 5, bias=False)), ["0", "1"])
    assert {k: [*v.shape] for k, v in model.state_dict().items()} == {
        "0.bias": [3],
        "0.endpoints": [10, 3, 2, 2],
        "1.endpoints": [10, 5, 4],
    }
    other = simplexify(nn.Sequential(nn.Conv1d(2, 3, 2), nn.Linear(4, 5, bias=False)), ["0", "1"])
    other.load_state_dict(model.state_dict())
    input = randn(7, 2, 5).float()
    assert torch.equal(model.eval()(input), other.eval()(input))


def test_functional_call() -> None:
    model = twins()
    doubled = {name: 2 * value for name, value in model.named_parameters()}
    with subregion(model, BETA):
        torch.testing.assert_close(functional_call(model, doubled, INPUT), 2 * model(INPUT))


def test_no_grad_and_inference_mode() -> None:
    model = twins()
    with torch.inference_mode():
        center = BETA.clone()
        points(model)
    with subregion(model, center):  # which can't be saved for a backward pass
        model(INPUT).sum().backward()
    with torch.no_grad():
        assert not torch.equal(points(model), points(model))


class Recomputed(nn.Module):
    """Two layers and dropout after each; `how` each half is run, maybe with `checkpoint`."""

    def __init__(self, how: Callable[..., Tensor]) -> None:
        super().__init__()
        self.hidden = SimplexLinear(6, 8, 3, generator=seeded(0))
        self.last = SimplexLinear(8, 5, 3, generator=seeded(1))
        self.how = how

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.how(lambda x: F.dropout(self.hidden(x).tanh()), input)
        return self.how(lambda x: F.dropout(self.last(x)), hidden)


def run(function: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    return function(input)


def run_again(function: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    return checkpoint(function, input, use_reentrant=False)


def run_reentrantly(function: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    return checkpoint(function, input, use_reentrant=True)


def recomputed_gradients(
    whole: Callable[..., Tensor], halves: Callable[..., Tensor], options: dict[str, bool] | None
) -> list[Tensor]:
    """Of two steps with an evaluation before each backward pass; options are of the context."""
    torch.manual_seed(3)
    model, input = Recomputed(halves), randn(4, 6).float().requires_grad_()
    with contextlib.ExitStack() as stack:
        if options is not None:
            generator = seeded(4) if options["own generator"] else None
            per_sample = options["per sample"]
            stack.enter_context(
                subregion(model, BETA, 0.5, per_sample=per_sample, generator=generator)
            )
        for _ in range(2):
            loss = whole(model, input).square().sum()
            model.eval()
            model(input)
            model.train()
            loss.backward()
    return [input.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize(
    "options",
    [
        {"own generator": own, "per sample": per_sample}
        for own in (False, True)
        for per_sample in (False, True)
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "how", [(run, run_again), (run, run_reentrantly), (run_again, run), (run_reentrantly, run)]
)
def test_what_is_recomputed_is_at_the_same_point(
    how: tuple[Callable[..., Tensor], ...], options: dict[str, bool]
) -> None:
    """And has the same masks of dropout: no draw is left out there, none made in addition."""
    torch.testing.assert_close(
        recomputed_gradients(*how, options), recomputed_gradients(run, run, options)
    )


@pytest.mark.parametrize("how", [(run, run_again), (run, run_reentrantly)])
def test_layers_that_draw_for_themselves_may_be_recomputed(
    how: tuple[Callable[..., Tensor], ...],
) -> None:
    torch.testing.assert_close(
        recomputed_gradients(*how, None), recomputed_gradients(run, run, None)
    )


@pytest.mark.parametrize("per_sample", [False, True])
def test_compiled_models(per_sample: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv1d(2, 3, 3), nn.Linear(12, 5)

        def forward(self, input: Tensor) -> Tensor:
            return self.last(self.conv(input).tanh().flatten(1))

    model = simplexify(Net(), ["conv", "last"], 3, generator=seeded(0))
    input = randn(4, 2, 6).float()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for looked_at in (model, compiled):
        results = []
        for run in (model, compiled):
            generator = seeded(1)
            with subregion(looked_at, BETA, 0.3, per_sample=per_sample, generator=generator):
                for _ in range(2):
                    output = run.train()(input)
                    output.square().sum().backward()
                    results.append((output, model.last.endpoints.grad))
                    model.zero_grad()
                results.append((run.eval()(input), None))
        half = len(results) // 2
        assert not torch.equal(results[0][0], results[1][0])
        for (a, grad_a), (b, grad_b) in zip(results[:half], results[half:], strict=True):
            torch.testing.assert_close(a, b)
            if grad_a is not None:
                torch.testing.assert_close(grad_a, grad_b)
    compiled.train()
    assert not torch.equal(compiled(input), compiled(input))  # in no context


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("center", [None, BETA, BETA.expand(4, 3)])
def test_models_on_a_gpu(center: Tensor | None) -> None:
    results = []
    for device in ("cpu", "cuda"):
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 5))
        simplexify(model.to(device), ["0", "2"], 3, generator=seeded(0))
        with torch.no_grad():
            model[0].bias.zero_()
            model[2].bias.zero_()
        input = randn(4, 2, 5, 5).float().to(device)
        with subregion(model, center, 0.3, generator=seeded(0)):
            results.append([model(input).cpu(), model.eval()(input).cpu()])
        model.to("cpu")(input.cpu())
    # TF32's 10 bits for products of the convolution
    torch.testing.assert_close(results[0], results[1], rtol=1e-2, atol=1e-2)


# ---- simplexify ---------------------------------------------------------------------------------


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.Softmax(1))


def test_the_last_layer_unless_others_are_named() -> None:
    model = mlp()
    first, last = model[0], model[2]
    bias, values = last.bias, last.bias.detach().clone()
    assert simplexify(model, generator=seeded(0)) is model
    assert model[0] is first
    assert type(model[2]) is SimplexLinear
    assert endpoint_parameters(model) == [model[2].endpoints]
    assert model[2].endpoints.shape == (10, 3, 4)
    assert model[2].bias is bias
    assert torch.equal(bias, values)
    assert [*model.state_dict()] == ["0.weight", "0.bias", "2.endpoints", "2.bias"]
    assert type(simplexify(mlp(), "0", 2)[2]) is nn.Linear
    assert [type(x) for x in simplexify(mlp(), ["2", "0", "0"], 2)][::2] == [SimplexLinear] * 2


def test_a_layer_keeps_what_it_was() -> None:
    calls = []
    layer = nn.Conv2d(2, 4, 3, stride=2, groups=2, dtype=torch.float64).eval()
    layer.weight.requires_grad_(False)
    layer.register_forward_hook(lambda module, args, output: calls.append(module))
    model = nn.Sequential(layer)
    simplexify(model, num_endpoints=3)
    assert model[0] is layer
    assert type(layer) is SimplexConv2d
    assert not layer.training
    assert not layer.endpoints.requires_grad
    assert layer.bias.requires_grad
    assert layer.endpoints.dtype == layer.bias.dtype == torch.float64
    input = randn(5, 2, 7, 7)
    expected = F.conv2d(input, layer.endpoints.mean(0), layer.bias, stride=2, groups=2)
    torch.testing.assert_close(model(input), expected)
    assert calls == [layer]
    assert simplexify(nn.Linear(2, 3, device="meta")).endpoints.is_meta


def test_the_model_itself() -> None:
    layer = nn.Linear(5, 4)
    model = simplexify(layer, num_endpoints=3)
    assert type(model) is SimplexLinear
    assert model(randn(2, 5).float()).shape == (2, 4)
    assert not torch.equal(model(torch.ones(5)), model(torch.ones(5)))


def test_a_layer_under_several_names() -> None:
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(5, 5)), "z": nn.ReLU()})
    model["b"] = model["a"]
    simplexify(model, ["b.0", "a.0"], 3)
    assert type(model["a"][0]) is SimplexLinear
    assert len(endpoint_parameters(model)) == 1
    assert set(model.state_dict()) == {f"{x}.0.{y}" for x in "ab" for y in ("endpoints", "bias")}


def test_simplex_layers_join() -> None:
    model = Twins()
    assert torch.unique(model(INPUT)[:, 0], dim=0).shape[0] == 3  # each by itself
    model.inner[0] = nn.Linear(1, 1)
    simplexify(model, num_endpoints=3, layers="inner.0")
    points(model)
    model.more = nn.Linear(1, 1)
    simplexify(model, "more", 3)
    points(model)
    assert len(model._forward_pre_hooks) == 1


def test_a_torchvision_network() -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(weights=None, num_classes=10)
    names = [name for name, _ in model.named_parameters()]
    simplexify(model, num_endpoints=3)
    assert [name for name, _ in model.named_parameters()] == [
        *names[:-2],
        "fc.endpoints",
        "fc.bias",
    ]
    simplexify(model, ["conv1", "layer4.1.conv2"], 3)
    input, targets = randn(4, 3, 32, 32).float(), torch.arange(4)
    with subregion(model, BETA, 0.1, per_sample=True):
        F.cross_entropy(model(input), targets).backward()
    assert [[*theta.shape] for theta in endpoint_parameters(model)] == [
        [3, 64, 3, 7, 7],
        [3, 512, 512, 3, 3],
        [3, 10, 512],
    ]
    for theta in endpoint_parameters(model):
        assert all(by_theta.any() for by_theta in theta.grad)


def tied() -> nn.Module:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5)})
    model["head"].weight = model["embedding"].weight
    return model


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 5), parametrizations.weight_norm(nn.Linear(5, 5)))


def pruned() -> nn.Module:
    return prune.identity(nn.Linear(5, 5), "weight")


def biased() -> nn.Module:
    class Positive(nn.Module):
        def forward(self, bias: Tensor) -> Tensor:
            return bias.exp()

    model = mlp()
    nn.utils.parametrize.register_parametrization(model[2], "bias", Positive())
    return model


@pytest.mark.parametrize(
    ("make", "layers", "error", "message"),
    [
        (mlp, ["0", "4"], ValueError, "the model has no layer '4'$"),
        (twins, "iner.0", ValueError, r"'iner.0' \(did you mean 'inner.0'\?\)"),
        (mlp, ["0", "1"], TypeError, "layer '1' must be a Linear, Conv1d, .* got ReLU$"),
        (mlp, "", TypeError, "layer '' must be .* got Sequential$"),
        (lambda: nn.ConvTranspose1d(2, 3, 3), "", TypeError, "got ConvTranspose1d$"),
        (lambda: nn.LazyLinear(3), "", TypeError, "got LazyLinear$"),
        (lambda: nn.MultiheadAttention(4, 2), None, TypeError, "got NonDynamicallyQ.*Linear$"),
        (lambda: simplexify(mlp(), num_endpoints=3), "2", ValueError, "'2' is a simplex already$"),
        (lambda: simplexify(mlp(), num_endpoints=3), None, ValueError, "'2' is a simplex already$"),
        (lambda: simplexify(mlp(), num_endpoints=4), "0", ValueError, "layers, 4, got 3$"),
        (lambda: nn.Sequential(mlp(), Probe(2)), "0.0", ValueError, "num_endpoints must .* 2, got"),
        (weight_normed, ["0", "1"], ValueError, "layer '1' computes its parameters"),
        (pruned, "", ValueError, "layer '' computes its parameters"),
        (biased, ["0", "2"], ValueError, "layer '2' computes its parameters"),
        (tied, "head", ValueError, "'head' shares its weight with 'embedding.weight'$"),
        (mlp, [], ValueError, "wanted at least one Linear or Conv layer, got none$"),
        (nn.ReLU, None, ValueError, "wanted at least one Linear or Conv layer, got none$"),
    ],
)
def test_layers_that_are_refused(
    make: Callable[[], nn.Module], layers: object, error: type[Exception], message: str
) -> None:
    model, generator = make(), seeded(0)
    before = str(model), list(model.named_parameters()), list(model._forward_pre_hooks)
    with pytest.raises(error, match=f"^simplexify: .*{message}"):
        simplexify(model, layers, 3, generator=generator)
    assert str(model) == before[0]
    for (name, value), (other, same) in zip(model.named_parameters(), before[1], strict=True):
        assert name == other
        assert value is same
    assert list(model._forward_pre_hooks) == before[2]
    assert torch.equal(generator.get_state(), seeded(0).get_state())


def test_it_trains() -> None:
    """Floco's point: endpoints of clients with different labels for the same inputs differ."""
    model = simplexify(nn.Linear(4, 2), num_endpoints=2, generator=seeded(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    input = randn(64, 4).float()
    targets = (input[:, 0] > 0).long()
    clients = [(torch.tensor([0.9, 0.1]), targets), (torch.tensor([0.1, 0.9]), 1 - targets)]
    draws = seeded(1)
    for _ in range(100):
        for beta, labels in clients:
            with subregion(model.train(), beta, 0.1, generator=draws):
                optimizer.zero_grad()
                F.cross_entropy(model(input), labels).backward()
                optimizer.step()
    model.eval()
    for beta, labels in clients:
        with subregion(model, beta):
            assert (model(input).argmax(1) == labels).float().mean() > 0.9
    both = torch.cat([beta.expand(64, 2) for beta, _ in clients])
    with subregion(model, both):  # all clients in one pass
        hits = model(input.repeat(2, 1)).argmax(1) == torch.cat([y for _, y in clients])
        assert hits.float().mean() > 0.9
