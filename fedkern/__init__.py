"""Fused CPU and CUDA kernels for federated learning.

`calibrated_ce` is FedGA's loss (arXiv 2412.16582), a drop-in for
`torch.nn.functional.cross_entropy`; `logit_adjusted_ce` is cross entropy with a constant per class
added to the logits, `not_true_distillation` FedNTD's loss (arXiv 2106.03097). `fedkern.simplex` has
the kernels of Floco (arXiv 2403.03333): sampling, projecting, interpolating and assigning on a
simplex of models. `fedkern.optim` has local SGD, clipping and proximal term included, as one
operator. `fedkern.fl` trains federated models; `fedkern --help` does so from the command line.

Importing fedkern loads its compiled operators (`torch.ops.fedkern`). It does not initialise CUDA.
"""

from fedkern import nn, optim, simplex
from fedkern._library import __version__, build_info
from fedkern.losses import (
    CalibratedCrossEntropyLoss,
    calibrated_ce,
    class_counts,
    logit_adjusted_ce,
    not_true_distillation,
)

__all__ = [
    "CalibratedCrossEntropyLoss",
    "__version__",
    "build_info",
    "calibrated_ce",
    "class_counts",
    "logit_adjusted_ce",
    "nn",
    "not_true_distillation",
    "optim",
    "simplex",
]
