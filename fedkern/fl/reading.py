"""How stored inputs become the batches that models see.

Inputs are stored as uint8 where they come so (a quarter of the memory, and of what a batch reads),
and images in channels-last memory: there a sample is contiguous, so that a batch is copied sample
by sample, and convolutions get the layout in which they are fastest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedkern import _library


def sample_contiguous(inputs: Tensor) -> Tensor:
    """The same inputs, images channels last in memory; copied if they lie otherwise."""
    if inputs.ndim != 4:
        return inputs.contiguous()
    return inputs.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def scaled(stored: Tensor) -> Tensor:
    """What models see of stored inputs: uint8 divided by 255, floating point as it is.

    Args:
        stored: uint8 or floating point, any shape.

    Returns:
        New float32 in the memory format of `stored`, or `stored` itself if it is floating point.
    """
    if stored.dtype != torch.uint8:
        return stored
    return torch.div(stored, _divisor(stored.device))


def _divisor(device: torch.device) -> Tensor:
    """255 as a tensor: by a number, CUDA would multiply with 1 / 255, which rounds twice."""
    return torch.full((), 255.0, dtype=torch.float32, device=device)


class Reader:
    """Reads batches of stored inputs into memory that it keeps: valid until the next call.

    On CUDA nothing waits for the device.
    """

    def __init__(self, stored: Tensor) -> None:
        """Prepares to read from a data set's inputs.

        Args:
            stored: images [n, C, H, W] or features [n, d], uint8 or floating point; as a `Dataset`
                holds them. What lies otherwise in memory is copied, all of it.
        """
        rows = sample_contiguous(stored)
        self._stored = rows.permute(0, 2, 3, 1) if rows.ndim == 4 else rows
        self._divisor = _divisor(stored.device)
        self._is_bytes = stored.dtype == torch.uint8
        self._reserve(0)

    def _reserve(self, samples: int) -> None:
        shape = (samples, *self._stored.shape[1:])
        dtype = torch.float32 if self._is_bytes else self._stored.dtype
        self._inputs = self._stored.new_empty(shape, dtype=dtype)
        # By the number of samples: where they are put, and what is handed out.
        self._views: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, indices: Tensor) -> Tensor:
        """The inputs at some positions.

        Args:
            indices: int64 [b], on the device of the stored inputs.

        Returns:
            [b, C, H, W] in channels-last memory, or [b, d]: float32 of uint8, else as stored.
        """
        samples = indices.shape[0]
        if samples > self._inputs.shape[0]:
            self._reserve(samples)
        if samples not in self._views:
            inputs = self._inputs[:samples]
            shown = inputs.permute(0, 3, 1, 2) if inputs.ndim == 4 else inputs
            self._views[samples] = inputs, shown
        inputs, shown = self._views[samples]
        if not self._is_bytes:
            torch.index_select(self._stored, 0, indices, out=inputs)
        elif self._stored.is_cpu:
            _library.read_batch(self._stored, indices, inputs)
        else:
            inputs.copy_(self._stored.index_select(0, indices)).div_(self._divisor)
        return shown


def sent(host: Tensor, device: torch.device) -> Tensor:
    """A new tensor of the host on a device, without waiting for what the device has to do."""
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)
