"""Both passes of a linear layer in a chain (fedkern.fl.chain), by who computes the products.

The layers of MNIST's MLP, of LeNet and of Floco's CNN with the batches of their experiments, and a
large one. The variants:

    fedkern   our kernels
    torch     torch's, that is MKL's or OpenBLAS's
    onednn    oneDNN's
    autograd  torch.nn.functional.linear and torch.autograd.grad
    square    one product of square matrices with as many multiply-adds: what the BLAS does best

The gradient of the input is wanted but for the MLP's first layer. `make bench
ARGS="-k linear"` runs it.
"""

import pytest
import timing
import torch

from fedkern import _library
from fedkern.fl.linear import Products

# Samples, outputs, inputs.
LAYERS = {
    "MLP, first": (64, 128, 784),
    "MLP, last": (64, 10, 128),
    "LeNet, first": (64, 120, 400),
    "LeNet, second": (64, 84, 120),
    "Floco's CNN, first": (50, 128, 2304),
    "large": (128, 1024, 1024),
}


@timing.on_cpu
@pytest.mark.parametrize("layer", LAYERS)
def test_linear(layer: str, threads: int) -> None:
    samples, outputs, inputs = LAYERS[layer]
    wanted = layer != "MLP, first"
    draws = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draws)

    x, gradient = drawn(samples, inputs), drawn(samples, outputs)

    def passes(products: Products) -> timing.Step:
        weight, bias = drawn(outputs, inputs), drawn(outputs)
        parameters = _library.Parameters(weight, weight.clone(), bias, bias.clone())
        linear = _library.Linear(parameters, lambda *_: products)

        def step() -> None:
            linear.forward(x)
            linear.backward(gradient, wanted)

        return step

    module = torch.nn.Linear(inputs, outputs)
    leaf = x.clone().requires_grad_(wanted)
    leaves = [*module.parameters(), *([leaf] if wanted else [])]
    multiply_adds = (3 if wanted else 2) * samples * outputs * inputs
    side = round(multiply_adds ** (1 / 3))
    left, right, product = drawn(side, side), drawn(side, side), drawn(side, side)
    steps: dict[str, timing.Step] = {
        "fedkern": passes(Products.OURS),
        "torch": passes(Products.TORCH),
        "autograd": lambda: torch.autograd.grad(module(leaf), leaves, gradient),
        "square": lambda: torch.mm(left, right, out=product),
    }
    if torch._C._has_mkldnn:
        steps["onednn"] = passes(Products.ONEDNN)
    with timing.torch_threads(threads):
        times = timing.interleaved(steps, timing.wall_clock)
    setting = {
        "measure": "both passes",
        "shape": (samples, outputs, inputs),
        "kind": layer,
        "dtype": "torch.float32",
        "threads": threads,
        "device": "cpu",
    }
    timing.report("linear", setting, times)
