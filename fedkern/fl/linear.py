"""Who computes the products of a chain's linear layers: measured for each shape, once a run."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedkern import _library

Products = _library.Products

LARGEST = 256  # samples: who is the fastest for so many is taken to be so for more
MARGIN = 1.25  # by which others must be faster: what is close must not depend on the day's noise


class Shape(NamedTuple):
    """Of a layer and its batches, and on how many threads."""

    batch: int
    outputs: int
    inputs: int
    dtype: torch.dtype
    threads: int


# Workers that come at once must not measure beside each other, nor choose otherwise.
_MEASURING = Lock()
_chosen: dict[Shape, Any] = {}


def choose_products(x: Tensor, weight: Tensor) -> Any:
    """Who is to compute the products of a layer: OURS, TORCH or ONEDNN.

    Args:
        x: inputs, [n, in].
        weight: [out, in].
    """
    ours = x.is_cpu and x.dtype in (torch.float32, torch.float64) and weight.is_contiguous()
    if not ours:
        return Products.TORCH
    # An epoch's last batch may have any size.
    batch = min(LARGEST, 1 << (x.shape[0] - 1).bit_length())
    outputs, inputs = weight.shape
    shape = Shape(batch, outputs, inputs, x.dtype, torch.get_num_threads())
    with _MEASURING:
        if shape not in _chosen:
            _chosen[shape] = _fastest_products(shape)
        return _chosen[shape]


def chosen() -> dict[Shape, str]:
    """What has been chosen in this process: another one that does not choose has the same bits."""
    return {shape: products.name for shape, products in _chosen.items()}


def choose_as(before: Mapping[Shape, str]) -> None:
    """Takes over what another process has chosen.

    Raises:
        KeyError: a name that is none.
    """
    _chosen.update({shape: Products.__members__[name] for shape, name in before.items()})


def _fastest_products(shape: Shape) -> Any:
    """Ours, unless others are faster by the margin."""
    others = [Products.TORCH]
    if torch._C._has_mkldnn and shape.dtype == torch.float32:
        others.append(Products.ONEDNN)
    seconds = {products: _seconds_with(products, shape) for products in (Products.OURS, *others)}
    best = min(others, key=lambda products: seconds[products])
    return best if seconds[Products.OURS] > MARGIN * seconds[best] else Products.OURS


def _seconds_with(products: Any, shape: Shape) -> float:
    """The least time of a layer's passes, of ten or as many as fit into a tenth of a second."""
    batch, outputs, inputs, dtype, _ = shape
    weight, bias = torch.zeros(outputs, inputs, dtype=dtype), torch.zeros(outputs, dtype=dtype)
    parameters = _library.Parameters(weight, weight.clone(), bias, bias.clone())
    layer = _library.Linear(parameters, lambda *_: products)
    x = torch.zeros(batch, inputs, dtype=dtype)
    times: list[float] = []
    while len(times) < 2 or (len(times) < 11 and sum(times) < 0.1):
        before = perf_counter()
        layer.backward(layer.forward(x), True)
        times.append(perf_counter() - before)
    return min(times[1:])  # the first one prepares what is kept
