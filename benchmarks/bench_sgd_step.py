"""A step of SGD with gradient-norm clipping, of a model whose gradients are there.

MLPs of 784 inputs and 10 classes with about 100 thousand and a million parameters, in 4 and 10
tensors. The kinds: clipping alone, which leaves these gradients as they are (the work is the same);
and all of momentum, weight decay and a pull to an anchor. The variants:

    fedkern         optim.sgd_step_ on flat tensors
    fedkern_module  optim.FlatSGD, on the model's own parameters
    foreach         torch.optim.SGD(foreach=True) and clip_grad_norm_, a pull by torch._foreach_*
    fused           torch.optim.SGD(fused=True), else the same
    compiled        the twin of sgd_step_ on flat tensors, compiled, and a copy of its results
    copy            a copy of as many bytes as the update reads and writes, halved: the floor

No gradient is zeroed. `make bench ARGS="-k sgd_step"` runs it.
"""

import itertools

import pytest
import timing
import torch
from torch import Tensor, nn

from fedkern import optim, reference

LAYERS = {"100k": [784, 128, 10], "1M": [784, 640, 384, 320, 256, 10]}
LR, MAX_NORM = 1e-6, 10.0
EVERYTHING = {"momentum": 0.5, "weight_decay": 1e-5, "pull": 0.1}


def make_parameters(model: str, device: str) -> list[nn.Parameter]:
    """With gradients whose norm is less than MAX_NORM."""
    generator = torch.Generator(device).manual_seed(0)
    widths = LAYERS[model]
    parameters = []
    for inputs, outputs in itertools.pairwise(widths):
        for shape in ((outputs, inputs), (outputs,)):
            parameter = nn.Parameter(torch.randn(shape, generator=generator, device=device))
            parameter.grad = torch.randn(shape, generator=generator, device=device) * 1e-3
            parameters.append(parameter)
    return parameters


def flat_step(flat: list[Tensor], options: dict[str, float]) -> timing.Step:
    param, grad, momentum_buffer, anchor = flat
    if not options:
        return lambda: optim.sgd_step_(param, grad, lr=LR, max_norm=MAX_NORM)
    return lambda: optim.sgd_step_(
        param,
        grad,
        lr=LR,
        momentum_buffer=momentum_buffer,
        anchor=anchor,
        max_norm=MAX_NORM,
        **options,
    )


def module_step(parameters: list[nn.Parameter], options: dict[str, float]) -> timing.Step:
    return optim.FlatSGD(parameters, LR, max_norm=MAX_NORM, **options).step


def torch_step(
    parameters: list[nn.Parameter], options: dict[str, float], implementation: str
) -> timing.Step:
    rest = {name: value for name, value in options.items() if name != "pull"}
    optimizer = torch.optim.SGD(parameters, LR, **rest, **{implementation: True})
    gradients = [p.grad for p in parameters]
    anchors = [p.detach().clone() for p in parameters]

    def step() -> None:
        if "pull" in options:
            with torch.no_grad():
                distances = torch._foreach_sub(parameters, anchors)
                torch._foreach_add_(gradients, distances, alpha=options["pull"])
        nn.utils.clip_grad_norm_(parameters, MAX_NORM, foreach=True)
        optimizer.step()

    return step


def compiled_step(flat: list[Tensor], options: dict[str, float]) -> timing.Step:
    param, grad, momentum_buffer, anchor = flat
    tensors = (momentum_buffer, anchor) if options else (None, None)
    numbers = {"momentum": 0.0, "weight_decay": 0.0, "pull": 0.0} | options

    def step() -> None:
        new_param, _, new_buffer = reference.sgd_step(
            param, grad, *tensors, None, None, LR, max_norm=MAX_NORM, **numbers
        )
        param.copy_(new_param)
        if new_buffer is not None:
            momentum_buffer.copy_(new_buffer)

    return torch.compile(step)


@timing.everywhere
@pytest.mark.parametrize("model", LAYERS)
@pytest.mark.parametrize("kind", ["clipping", "momentum, decay, pull"])
def test_sgd_step(kind: str, model: str, device: str, threads: int) -> None:
    options = {} if kind == "clipping" else EVERYTHING
    parameters = make_parameters(model, device)
    size = sum(p.numel() for p in parameters)

    def flat() -> list[Tensor]:
        values = torch.cat([p.detach().flatten() for p in parameters])
        gradients = torch.cat([p.grad.flatten() for p in parameters])
        return [values, gradients, torch.zeros_like(values), values.clone()]

    # the update: param and grad read, param written; momentum_buffer read and written, anchor read
    bytes_moved = (6 if options else 3) * size * 4
    source, target = torch.randn(2, bytes_moved // 8, device=device)
    with timing.torch_threads(threads):
        steps: dict[str, timing.Step] = {
            "fedkern": flat_step(flat(), options),
            "fedkern_module": module_step(make_parameters(model, device), options),
            "foreach": torch_step(make_parameters(model, device), options, "foreach"),
            "fused": torch_step(make_parameters(model, device), options, "fused"),
            "compiled": compiled_step(flat(), options),
            "copy": lambda: target.copy_(source),
        }
        times = timing.interleaved(steps, timing.clock_of(device))
    setting = {
        "measure": "step",
        "shape": (size,),
        "kind": kind,
        "dtype": "torch.float32",
        "tensors": f"{len(parameters)} tensor(s)",
        "threads": threads,
        "device": device,
    }
    timing.report("sgd_step", setting, times)
