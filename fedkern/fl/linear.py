"""Who computes the products of a chain's linear layers: measured for each shape, once a process."""

from __future__ import annotations

from functools import cache
from threading import Lock
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from fedkern import _library

Products = _library.Products

LARGEST = 256  # samples: who is the fastest for so many is taken to be so for more
MARGIN = 1.25  # by which others must be faster: what is close must not depend on the day's noise

# Workers that come at once must not measure beside each other, nor choose otherwise.
_MEASURING = Lock()


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
    with _MEASURING:
        return _fastest_products(batch, *weight.shape, x.dtype, torch.get_num_threads())


@cache
def _fastest_products(batch: int, outputs: int, inputs: int, dtype: torch.dtype, _: int) -> Any:
    """Ours, unless others are faster by the margin; the last argument is the number of threads."""
    others = [Products.TORCH]
    if torch._C._has_mkldnn and dtype == torch.float32:
        others.append(Products.ONEDNN)
    seconds = {
        products: _seconds_with(products, batch, outputs, inputs, dtype)
        for products in (Products.OURS, *others)
    }
    best = min(others, key=lambda products: seconds[products])
    return best if seconds[Products.OURS] > MARGIN * seconds[best] else Products.OURS


def _seconds_with(
    products: Any, batch: int, outputs: int, inputs: int, dtype: torch.dtype
) -> float:
    """The least time of a layer's passes, of ten or as many as fit into a tenth of a second."""
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
