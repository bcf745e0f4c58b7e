"""An operator's entry, and small inputs for entries."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

Arguments = tuple[Any, ...]  # tensors, lists of tensors, options

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Operator:
    """Arguments are positional throughout, in the order of the operator's schema."""

    name: str  # torch.ops.fedkern.<name>
    stem: str  # names its files in csrc/ops, csrc/ops/cpu and csrc/ops/cuda
    family: str  # names its twin, its tests, its benchmark and its section in the docs
    documented: Callable[..., Any] | str  # the public function
    twin: Callable[..., Any]  # the same in plain PyTorch
    dtypes: tuple[torch.dtype, ...]  # of its first argument, or of what it makes
    samples: Callable[[torch.dtype], list[Arguments]]  # empty ones among them
    large: Callable[[torch.dtype], Arguments]  # work for several threads
    differentiable: tuple[int, ...] | str  # positions of arguments with derivatives
    vmap: str | None  # None: there is a rule, and a mapped call is one call
    offset: int | str  # an argument to whose rows (dimension 1) a constant may be added
    nonfinite: list[Arguments] | str  # nan, inf and -inf: the twin says what comes of them
    bad_inputs: list[tuple[type[Exception], str, Arguments]]
    result_dtype: torch.dtype | None = None  # if it is not its first argument's
    cuda_kernel: bool = True  # a kernel of ours; else there is an ATen function for it
    mutated: tuple[int, ...] = ()  # positions of the arguments it writes to
    strides: str | None = None  # None: any will do
    doubles: bool = True  # the twin gets float64; a draw would be another one

    @property
    def op(self) -> Any:
        return getattr(torch.ops.fedkern, self.name).default

    def call(self, arguments: Arguments) -> tuple[Tensor, ...]:
        """The results; of an operator that mutates arguments, changed copies of these."""
        if self.mutated:
            arguments = tuple(
                map_tensors(Tensor.clone, a) if i in self.mutated else a
                for i, a in enumerate(arguments)
            )
            self.op(*arguments)
            return tuple(tensors_of([arguments[i] for i in self.mutated]))
        return as_tuple(self.op(*arguments))

    def call_twin(self, arguments: Arguments) -> tuple[Tensor, ...]:
        if self.doubles:
            arguments = map_tensors(lambda a: a.double() if a.is_floating_point() else a, arguments)
        return as_tuple(self.twin(*arguments))


def as_tuple(results: Tensor | tuple[Tensor, ...] | list[Tensor]) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else tuple(results)


def tensors_of(arguments: Any) -> list[Tensor]:
    """The tensors of an argument or of all arguments, those in lists, too."""
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


def map_tensors(change: Callable[[Tensor], Tensor], arguments: Any) -> Any:
    """The same with each tensor changed."""
    return tree_map_only(Tensor, change, arguments)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed)).to(dtype)


def with_one(value: float, *shape: int) -> Tensor:
    """Random numbers, one of them this."""
    numbers = randn(*shape)
    numbers[shape[0] * 5 // 6, 1] = value
    return numbers


def labels(*shape: int, num_classes: int, seed: int = 1) -> Tensor:
    return torch.randint(num_classes, shape, generator=generator(seed))


def counts(*shape: int, seed: int = 2) -> Tensor:
    return torch.randint(1, 100, shape, generator=generator(seed))
