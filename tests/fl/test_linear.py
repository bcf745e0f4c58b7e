"""Linear layers of chains: their products, and who computes them."""

import copy
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from time import sleep

import pytest
import torch
from cpu_capabilities import CAPABILITIES, run_tests_with
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from whole_runs import drawn

from fedkern import _library
from fedkern.fl import linear
from fedkern.fl.chain import chain_of
from fedkern.fl.flat import FlatModel
from fedkern.fl.linear import Products, Shape

OURS, TORCH, ONEDNN = Products.OURS, Products.TORCH, Products.ONEDNN
needs_mkldnn = pytest.mark.skipif(not torch._C._has_mkldnn, reason="torch has no oneDNN")
OTHERS = [TORCH, pytest.param(ONEDNN, marks=needs_mkldnn)]


def passes(products, x, weight, bias, gradient):
    """The output of a linear layer, and the gradients of input, weight and bias."""
    of_weight = torch.full_like(weight, math.nan)
    of_bias = None if bias is None else torch.full_like(bias, math.nan)
    parameters = _library.Parameters(weight, of_weight, bias, of_bias)
    layer = _library.Linear(parameters, lambda *_: products)
    output = layer.forward(x)
    return output, layer.backward(gradient, True), of_weight, of_bias


def operands(samples, outputs, inputs, dtype, has_bias=True):
    draws = torch.Generator().manual_seed(samples + 100 * outputs + 10_000 * inputs)
    shapes = (samples, inputs), (outputs, inputs), (outputs,), (samples, outputs)
    x, weight, bias, gradient = (torch.randn(s, generator=draws).to(dtype) for s in shapes)
    return x, weight, bias if has_bias else None, gradient


def check_passes(products, x, weight, bias, gradient):
    """Against float64, to the rounding of sums of that many products."""
    found = passes(products, x, weight, bias, gradient)
    wide = (None if t is None else t.double() for t in (x, weight, bias, gradient))
    expected = passes(TORCH, *wide)
    epsilon = torch.finfo(x.dtype).eps
    depths = weight.shape[1], weight.shape[0], len(x), len(x)
    for one, other, depth in zip(found, expected, depths, strict=True):
        if other is None:
            assert one is None
            continue
        assert one.dtype == x.dtype
        # A product of two normal numbers has the standard deviation 1.
        torch.testing.assert_close(
            one.double(), other, rtol=0, atol=8 * epsilon * (1 + math.sqrt(depth)) ** 2
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", range(1, 10))
@pytest.mark.parametrize("inputs", [1, 7, 15, 16, 17, 40, 48, 103])
def test_products_of_all_sizes_of_tiles(samples, inputs, dtype):
    for outputs in [*range(1, 14), 50]:
        check_passes(OURS, *operands(samples, outputs, inputs, dtype, has_bias=outputs % 2 > 0))


@pytest.mark.parametrize("products", [OURS, *OTHERS])
@pytest.mark.parametrize("sizes", [(64, 128, 784), (64, 10, 128), (33, 65, 129), (300, 7, 1000)])
def test_products_of_real_layers(products, sizes):
    check_passes(products, *operands(*sizes, torch.float32))


@settings(deadline=None)
@given(
    samples=st.integers(0, 70),
    outputs=st.integers(0, 70),
    inputs=st.integers(0, 70),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    has_bias=st.booleans(),
)
def test_products_of_any_size(samples, outputs, inputs, dtype, has_bias):
    check_passes(OURS, *operands(samples, outputs, inputs, dtype, has_bias))


def test_products_of_what_is_not_contiguous():
    x, weight, bias, gradient = operands(20, 30, 40, torch.float32)
    check_passes(OURS, x.t().contiguous().t(), weight, bias, gradient.t().contiguous().t())
    check_passes(OURS, x[::2, 1:], weight[:, 1:].contiguous(), bias, gradient[1::2])


def test_the_bits_of_products_do_not_depend_on_the_threads():
    values = operands(130, 300, 1030, torch.float32)
    torch.set_num_threads(1)
    expected = passes(OURS, *values)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for one, other in zip(passes(OURS, *values), expected, strict=True):
            assert torch.equal(one, other)


def test_products_of_shapes_that_do_not_fit():
    x, weight, bias, gradient = operands(6, 9, 20, torch.float32)
    with pytest.raises(RuntimeError, match="wanted inputs of 20 features, got 19"):
        passes(OURS, x[:, 1:], weight, bias, gradient)
    for wrong in (gradient[1:], gradient[:, 1:]):
        with pytest.raises(RuntimeError, match=r"wanted a gradient of shape \[6, 9\], got"):
            passes(OURS, x, weight, bias, wrong)
    with pytest.raises(RuntimeError, match="expected scalar type Double but found Float"):
        passes(OURS, x.double(), weight, bias, gradient)


def test_products_of_numbers_that_are_none():
    """Every number goes into its sums, and into no other."""
    x, weight, bias, gradient = operands(6, 9, 20, torch.float32)
    x[1, 2], gradient[4, 3] = math.inf, math.nan
    found = passes(OURS, x, weight, bias, gradient)
    expected = passes(TORCH, x, weight, bias, gradient)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())
        assert torch.equal(one.isnan(), other.isnan())


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_products_with_every_capability(capability):
    run_tests_with(capability, __file__, "products and not capability")


# ---- the choice of a linear layer's products -----------------------------------------------------


@needs_mkldnn
@pytest.mark.parametrize("shape", [(1, 6), (7, 6), (7, 3, 6)])
@pytest.mark.parametrize("products", [OURS, TORCH, ONEDNN])
def test_every_choice_gives_the_same_but_for_rounding(monkeypatch, products, shape):
    monkeypatch.setattr(linear, "_chosen", {})
    monkeypatch.setattr(linear, "_fastest_products", lambda _: products)
    module = drawn(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False)))
    twin = copy.deepcopy(module)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = FlatModel(module)
    found = chain_of(model)
    logits = found.forward(inputs)
    expected = twin(inputs)
    # Sums of at most 21 products of numbers around 1.
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    expected.square().sum().backward()
    found.backward(2 * logits)
    for name, gradient in model.layout.plain(model.gradients).items():
        torch.testing.assert_close(gradient, twin.get_parameter(name).grad, rtol=1e-5, atol=1e-5)


@needs_mkldnn
@pytest.mark.parametrize(
    ("ours", "theirs", "onednn", "expected"),
    [
        (1.0, 1.0, 1.0, OURS),
        (1.2, 1.0, 1.0, OURS),
        (1.3, 1.0, 1.1, TORCH),
        (1.3, 1.1, 1.0, ONEDNN),
        (1.3, 1.1, 1.2, OURS),
    ],
)
def test_others_must_be_faster_by_the_margin(monkeypatch, ours, theirs, onednn, expected):
    seconds = {OURS: ours, TORCH: theirs, ONEDNN: onednn}
    monkeypatch.setattr(linear, "_seconds_with", lambda products, *_: seconds[products])
    shape = Shape(8, 5, 6, torch.float32, 1)
    assert linear._fastest_products(shape) == expected
    # oneDNN has no float64.
    shape = shape._replace(dtype=torch.float64)
    assert linear._fastest_products(shape) == (TORCH if ours > 1.25 * theirs else OURS)


def test_a_measurement_takes_no_longer_than_it_must(monkeypatch):
    clock = itertools.count(step=0.06)
    monkeypatch.setattr(linear, "perf_counter", lambda: next(clock))
    assert linear._seconds_with(OURS, Shape(8, 5, 6, torch.float32, 1)) == pytest.approx(0.06)
    assert next(clock) == pytest.approx(4 * 0.06)  # a first pass, then one


def test_a_choice_is_made_once_for_a_shape(monkeypatch):
    asked = []
    monkeypatch.setattr(linear, "_chosen", {})
    monkeypatch.setattr(linear, "_fastest_products", lambda shape: asked.append(shape[:3]))
    weight = torch.zeros(5, 6)
    for batch in (1, 2, 3, 4, 5, 64, 65, 256, 257, 5000):
        linear.choose_products(torch.zeros(batch, 6), weight)
    assert asked == [(size, 5, 6) for size in (1, 2, 4, 8, 64, 128, 256)]


def test_another_process_s_choices_are_taken_over(monkeypatch):
    monkeypatch.setattr(linear, "_chosen", {})
    monkeypatch.setattr(linear, "_fastest_products", lambda _: TORCH)
    layer = torch.zeros(3, 6), torch.zeros(5, 6)
    assert linear.choose_products(*layer) == TORCH
    (shape,) = linear.chosen()
    assert linear.chosen() == {shape: "TORCH"}
    linear.choose_as({shape: "OURS"})
    assert linear.choose_products(*layer) == OURS
    with pytest.raises(KeyError, match="theirs"):
        linear.choose_as({shape: "theirs"})


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.zeros(8, 6, dtype=torch.float16), torch.zeros(5, 6, dtype=torch.float16)),
        (torch.zeros(8, 6), torch.zeros(6, 5).t()),
        (torch.zeros(8, 6, device="meta"), torch.zeros(5, 6, device="meta")),
    ],
    ids=["half", "transposed weight", "another device"],
)
def test_what_is_left_to_torch(x, weight):
    assert linear.choose_products(x, weight) == TORCH


def test_workers_that_ask_at_once_get_one_choice(monkeypatch):
    """Else they would not train the same bits."""
    together = Barrier(4)
    choices = []

    def measured(_):
        choices.append(object())
        sleep(0.05)  # the others come meanwhile
        return choices[-1]

    def ask(_):
        together.wait()
        return linear.choose_products(torch.zeros(8, 6), torch.zeros(5, 6))

    monkeypatch.setattr(linear, "_chosen", {})
    monkeypatch.setattr(linear, "_fastest_products", measured)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(4)))) == len(choices) == 1
