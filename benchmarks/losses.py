"""The losses that bench_calibrated_ce compares. Each takes logits and class indices.

fedkern                 fedkern.calibrated_ce, counts of the batch
published               the published formula in eager PyTorch: counts, softmax, a dense label
cross_entropy           torch's own loss: it does not calibrate
liger                   Liger-Kernel's cross entropy, which writes its gradient over the logits
<name>_compiled         the loss of that name under torch.compile (inductor)

With an adjustment added to the logits (`adjusted_by`):

fedkern                 fedkern.logit_adjusted_ce
unadjusted              the same kernel without the adjustment
cross_entropy           torch's own loss of the sum
"""

import functools
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

import fedkern

Loss = Callable[[Tensor, Tensor], Tensor]


def published(logits: Tensor, target: Tensor) -> Tensor:
    """What the authors' code does: a dense calibrated label, given to cross_entropy."""
    num_classes = logits.shape[1]
    counts = torch.bincount(target.flatten(), minlength=num_classes).to(logits.dtype)
    one_hot = F.one_hot(target, num_classes).movedim(-1, 1).to(logits.dtype)
    counts_by_class = counts.view(-1, *[1] * (logits.dim() - 2))
    calibration = 1 - counts_by_class / counts[target].unsqueeze(1)
    label = one_hot + logits.detach().softmax(1) * calibration
    return F.cross_entropy(logits, label)


EAGER: dict[str, Loss] = {
    "fedkern": fedkern.calibrated_ce,
    "published": published,
    "cross_entropy": F.cross_entropy,
}


def adjusted_by(logit_adjustment: Tensor) -> dict[str, Loss]:
    """Losses of logits plus an adjustment, [C], of their dtype."""
    equal_counts = torch.ones_like(logit_adjustment)
    return {
        "fedkern": lambda z, y: fedkern.logit_adjusted_ce(z, y, logit_adjustment),
        "unadjusted": lambda z, y: fedkern.calibrated_ce(z, y, class_counts=equal_counts),
        "cross_entropy": lambda z, y: F.cross_entropy(z + logit_adjustment, y),
    }


def available(
    names: Iterable[str], device: str, eager: Mapping[str, Loss] = EAGER
) -> dict[str, Loss]:
    """The losses of these names, without those that this machine cannot run."""
    losses = {}
    for name in names:
        if name.endswith("_compiled"):
            if can_compile(device):
                losses[name] = torch.compile(eager[name.removesuffix("_compiled")], dynamic=False)
        elif name == "liger":
            if liger := _liger():
                losses[name] = liger
        else:
            losses[name] = eager[name]
    return losses


@functools.cache
def can_compile(device: str) -> bool:
    """Whether inductor finds the compilers that it needs."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except Exception as error:
        print(f"\ntorch.compile does not work here on {device}, left out: {error}")
        return False
    return True


def _liger() -> Loss | None:
    try:
        from liger_kernel.transformers.cross_entropy import LigerCrossEntropyLoss
    except ImportError:
        return None
    return LigerCrossEntropyLoss()
