"""The twin of `torch.ops.fedkern.sgd_step_`."""

import torch
from torch import Tensor


def sgd_step(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    anchor: Tensor | None,
    alpha: Tensor | None,
    active: Tensor | None,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
    pull: float = 0.0,
    zero_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a step of SGD with clipping makes of `param`, `grad` and `momentum_buffer`.

    Nothing is written to; csrc/ops/sgd_step.h says what the arguments are.
    """
    dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
    p, d = param.to(dtype), grad.to(dtype)
    if alpha is not None and alpha.shape[-1] > 1:
        d = _of_endpoints(d, alpha, param.shape[-1])
    if anchor is not None:
        d = d + pull * (p - anchor.to(dtype))
    if max_norm is not None and max_norm != torch.inf:
        norm = torch.linalg.vector_norm(d, dim=-1, keepdim=True)
        d = d * torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    if weight_decay:
        d = d + weight_decay * p
    if momentum_buffer is not None:
        d = momentum * momentum_buffer.to(dtype) + d
    new_param, new_buffer = (p - lr * d).to(param.dtype), d.to(param.dtype)
    if active is not None:
        new_param = torch.where(active.unsqueeze(-1), new_param, param)
        if momentum_buffer is not None:
            new_buffer = torch.where(active.unsqueeze(-1), new_buffer, momentum_buffer)
    return (
        new_param,
        torch.zeros_like(grad) if zero_grad else grad,
        None if momentum_buffer is None else new_buffer,
    )


def _of_endpoints(grad: Tensor, alpha: Tensor, length: int) -> Tensor:
    """The gradient with alpha_m g for each endpoint in the place of g."""
    endpoints = alpha.shape[-1]
    size = (length - grad.shape[-1]) // (endpoints - 1)
    plain, g = grad[..., :-size], grad[..., -size:]
    of_endpoints = alpha.unsqueeze(-1) * g.unsqueeze(-2)
    return torch.cat([plain, of_endpoints.flatten(-2)], dim=-1)
