"""Forward and backward of not_true_distillation beside what does the same, as a training step does.

    fedkern          fedkern.not_true_distillation
    published        what the authors' code does: gather the C - 1 other logits of both, log_softmax
                     and softmax, KLDivLoss
    masked           plain PyTorch without the gather: the label's logits as low as can be
    <name>_compiled  the loss of that name under torch.compile (inductor)
    copy             the floor: a copy of the student's logits. The loss reads two such tensors and
                     writes one, a copy reads one and writes one

`make bench` runs it; ARGS="-k cuda" chooses what runs on a GPU.
"""

from collections.abc import Callable

import pytest
import timing
import torch
from losses import can_compile
from torch import Tensor
from torch.nn import functional as F

import fedkern

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

TAU = 1.0  # as they train
SHAPES = [(64, 10), (64, 100), (256, 1000), (1024, 32000)]
COMPILE_FROM = 256 * 1000  # logits: what a smaller step costs is not its arithmetic


def published(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return _divergence(_others(student, target), _others(teacher, target))


def _others(logits: Tensor, target: Tensor) -> Tensor:
    rows, num_classes = logits.shape
    classes = torch.arange(num_classes, device=logits.device).repeat(rows, 1)
    places = classes[classes != target.view(-1, 1)].view(-1, num_classes - 1)
    return torch.gather(logits, 1, places)


def masked(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return _divergence(_without(student, target), _without(teacher, target))


def _without(logits: Tensor, target: Tensor) -> Tensor:
    """The label's logit so low that its q is 0, but finite: 0 * -inf would be nan."""
    return logits.scatter(1, target[:, None], torch.finfo(logits.dtype).min)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    log_p = F.log_softmax(student / TAU, dim=1)
    with torch.no_grad():
        q = F.softmax(teacher / TAU, dim=1)
    return TAU**2 * F.kl_div(log_p, q, reduction="batchmean")


def fused(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    return fedkern.not_true_distillation(student, teacher, target, tau=TAU)


LOSSES: dict[str, Loss] = {
    "fedkern": fused,
    "published": published,
    "masked": masked,
}


@timing.everywhere
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch.")
)
def test_forward_backward(
    shape: tuple[int, int], dtype: torch.dtype, device: str, threads: int
) -> None:
    torch.compiler.reset()
    generator = torch.Generator(device).manual_seed(0)
    student, teacher = torch.randn(2, *shape, generator=generator, device=device).to(dtype)
    student = student.clone().requires_grad_()
    target = torch.randint(shape[1], shape[:1], generator=generator, device=device)

    def step_of(loss: Loss) -> timing.Step:
        def step() -> None:
            loss(student, teacher, target).backward()
            student.grad = None  # each variant frees its own gradient

        return step

    losses = dict(LOSSES)
    if shape[0] * shape[1] >= COMPILE_FROM and can_compile(device):
        losses["masked_compiled"] = torch.compile(masked, dynamic=False)
    detached = student.detach()
    steps = {name: step_of(loss) for name, loss in losses.items()}
    steps["copy"] = lambda: detached.clone()
    with timing.torch_threads(threads):
        times = timing.interleaved(steps, timing.clock_of(device))
    setting = {"shape": shape, "dtype": str(dtype), "threads": threads, "device": device}
    timing.report("not_true_distillation", setting, times)
