"""How exact a kernel must be: as exact as the plain formula in the same dtype."""

import torch
from torch import Tensor

# What kernels compute with; float64 first, which is as good as the truth.
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def assert_as_accurate(kernel: Tensor, naive: Tensor, truth: Tensor, what: str) -> None:
    """The kernel may err 1.5 times as much as plain PyTorch in its dtype, and 2 ulp more."""
    ulp = torch.finfo(kernel.dtype).eps * float(truth.abs().max())
    error, naive_error = (float((x.double() - truth).abs().max()) for x in (kernel, naive))
    if naive_error != naive_error:  # plain PyTorch has no answer where the kernel has one
        naive_error = 0.0
    worst = int((kernel.double() - truth).abs().argmax())
    assert error <= 1.5 * naive_error + 2 * ulp, (
        f"{what}: kernel errs by {error:.3g}, plain PyTorch by {naive_error:.3g}, an ulp is "
        f"{ulp:.3g}; at {worst} kernel {kernel.flatten()[worst]}, truth {truth.flatten()[worst]}, "
        f"plain PyTorch {naive.flatten()[worst]}"
    )
