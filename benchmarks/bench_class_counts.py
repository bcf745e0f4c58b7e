"""fedkern.class_counts beside torch.bincount.

bincount lets labels beyond the last class pass, and makes room for them: on a GPU it waits to know
how much. The sizes: a batch, a segmentation, a long batch of many classes. `make bench` runs it.
"""

import pytest
import timing
import torch

import fedkern


@timing.everywhere
@pytest.mark.parametrize(("labels", "num_classes"), [(64, 10), (65536, 19), (32768, 1000)])
def test_class_counts(labels: int, num_classes: int, device: str, threads: int) -> None:
    generator = torch.Generator(device).manual_seed(0)
    target = torch.randint(num_classes, (labels,), generator=generator, device=device)
    steps = {
        "fedkern": lambda: fedkern.class_counts(target, num_classes),
        "bincount": lambda: torch.bincount(target, minlength=num_classes),
    }
    with timing.torch_threads(threads):
        times = timing.interleaved(steps, timing.clock_of(device))
    setting = {
        "shape": (labels,),
        "num_classes": num_classes,
        "dtype": str(target.dtype),
        "threads": threads,
        "device": device,
    }
    timing.report("class_counts", setting, times)
