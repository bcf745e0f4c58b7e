"""The twin of `fedkern.simplex.project`: rows sorted, the threshold of each prefix tried."""

import torch
from torch import Tensor


def simplex_project(x: Tensor, z: Tensor | float = 1.0, dim: int = -1) -> Tensor:
    """The same value and derivatives as `fedkern.simplex.project`, for the same arguments.

    Computes in x's dtype (Held, Wolfe, Crowder, Math. Programming 6, 1974).
    """
    rows = x.movedim(dim, -1)
    z = torch.as_tensor(z, dtype=x.dtype, device=x.device).unsqueeze(-1)
    maximum = rows.detach().amax(-1, keepdim=True)  # nan if any element is
    d = (rows - maximum) * torch.where(maximum.isfinite(), 1.0, torch.nan).to(x.dtype)

    largest = d.sort(-1, descending=True).values
    sums = largest.cumsum(-1) - z
    k = torch.arange(1, d.shape[-1] + 1, dtype=x.dtype, device=x.device)
    size = (k * largest > sums).sum(-1, keepdim=True).clamp(min=1)  # of the support; 1 if nan
    tau = sums.gather(-1, size - 1) / size.to(x.dtype)
    return torch.where(d <= tau, 0, d - tau).movedim(-1, dim)
