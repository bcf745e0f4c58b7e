"""fedkern.simplex.interpolate beside torch.einsum and a sum of products.

Ten endpoints of a million parameters, as one tensor and as the list of tensors that a small
convolutional network has; one point, and 16 at once. The measures:

    forward              theta(alpha)
    backward             forward, and the gradient by the endpoints: training at a given alpha
    backward_and_alpha   forward, and the gradients by the endpoints and by alpha

"copy" is the floor: a copy of half as many bytes as must be read and written, into memory that has
been written before; so it moves as many. The gradients go into fresh memory, which costs more.
`make bench ARGS="-k simplex_interpolate"` runs it.
"""

from collections.abc import Callable

import pytest
import timing
import torch
from torch import Tensor

from fedkern import simplex

ENDPOINTS = 10
MODELS = {
    "tensor": [(1_000_000,)],
    # 5 x 5 convolutions of 32 and 64 channels, then 600 hidden units; for 3 x 32 x 32 images
    "cnn": [(32, 3, 5, 5), (32,), (64, 32, 5, 5), (64,), (600, 1600), (600,), (10, 600), (10,)],
}

Interpolate = Callable[[list[Tensor], Tensor], list[Tensor]]


def einsum(endpoints: list[Tensor], alpha: Tensor) -> list[Tensor]:
    formula = "m,m...->..." if alpha.dim() == 1 else "gm,m...->g..."
    return [torch.einsum(formula, alpha, tensor) for tensor in endpoints]


def sum_of_products(endpoints: list[Tensor], alpha: Tensor) -> list[Tensor]:
    return [sum(a * theta for a, theta in zip(alpha, t, strict=True)) for t in endpoints]


def gradient_step(
    function: Interpolate, endpoints: list[Tensor], alpha: Tensor, by_alpha: bool
) -> timing.Step:
    endpoints = [tensor.clone().requires_grad_() for tensor in endpoints]
    alpha = alpha.clone().requires_grad_(by_alpha)
    upstream = [torch.randn_like(result) for result in function(endpoints, alpha)]
    leaves = [*endpoints, alpha] if by_alpha else endpoints
    return lambda: torch.autograd.grad(function(endpoints, alpha), leaves, upstream)


@timing.on_one_thread
@pytest.mark.parametrize("points", [1, 16])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("measure", ["forward", "backward", "backward_and_alpha"])
def test_interpolate(measure: str, model: str, points: int, device: str, threads: int) -> None:
    generator = torch.Generator(device).manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    endpoints = [randn(ENDPOINTS, *shape) for shape in MODELS[model]]
    size = sum(tensor[0].numel() for tensor in endpoints)
    alpha = randn(points, ENDPOINTS).softmax(1)
    functions: dict[str, Interpolate] = {"fedkern": simplex.interpolate, "einsum": einsum}
    if points == 1:
        alpha = alpha[0]
        functions["sum"] = sum_of_products

    steps: dict[str, timing.Step] = {}
    for name, function in functions.items():
        if measure == "forward":
            steps[name] = lambda function=function: function(endpoints, alpha)
        else:
            by_alpha = measure == "backward_and_alpha"
            steps[name] = gradient_step(function, endpoints, alpha, by_alpha)
    # In rows of `size` elements: endpoints and results; then the results' gradients and the
    # endpoints'; for alpha's the endpoints once more.
    rows = ENDPOINTS + points
    if measure != "forward":
        rows += points + ENDPOINTS
    if measure == "backward_and_alpha":
        rows += ENDPOINTS
    bytes_moved = rows * size * 4
    source, target = randn(bytes_moved // 8), torch.zeros(bytes_moved // 8, device=device)
    steps["copy"] = lambda: target.copy_(source)

    with timing.torch_threads(threads):
        times = timing.interleaved(steps, timing.clock_of(device))
    setting = {
        "measure": measure,
        "shape": (ENDPOINTS, size),
        "dtype": str(alpha.dtype),
        "tensors": f"{len(endpoints)} tensor(s)",
        "points": f"{points} point(s)",
        "threads": threads,
        "device": device,
    }
    timing.report("simplex_interpolate", setting, times, bytes_moved)
