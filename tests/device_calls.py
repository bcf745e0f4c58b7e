"""Counts the operators that reach a device."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class DeviceCalls(TorchDispatchMode):
    """While it is active; `ours()` says which of fedkern's were called, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self._made: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._made[str(func)] += 1
        return func(*args, **(kwargs or {}))

    def ours(self) -> dict[str, int]:
        return {
            name.split(".")[1]: n for name, n in self._made.items() if name.startswith("fedkern")
        }
