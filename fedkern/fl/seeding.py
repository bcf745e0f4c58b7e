"""Random numbers that depend on what they are for, not on what was drawn before.

Every draw of a federated run takes its own generator, keyed by the run's seed, the purpose and,
where they matter, the round and the client. So a client's batches in round 7 are the same whatever
the other clients did, and PyTorch's global generator is never touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import torch


def generator(seed: int, purpose: str, *key: int) -> torch.Generator:
    """A CPU generator for one purpose of one run.

    Args:
        seed: the run's seed, any integer (0 is a seed like any other).
        purpose: what is drawn, e.g. ``"batches"``.
        key: further integers that tell draws apart, e.g. the round and the client.

    Returns:
        A new `torch.Generator` on the CPU, seeded with 64 bits of BLAKE2b of all arguments.
        (PyTorch's CPU generator uses the lower 32 of them.)
    """
    text = repr((int(seed), purpose, *map(int, key)))
    digest = blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class Draws:
    """The generators of one client's work in one round: `draws("batches")` is a new one.

    Attributes:
        seed: the run's.
        round: counted from 1.
        client: its number.
        work: what the client does beside its ordinary training, e.g. ``"personal"``; so the one
            does not change the other's draws.
    """

    seed: int
    round: int
    client: int
    work: str = ""

    def __call__(self, purpose: str) -> torch.Generator:
        return generator(self.seed, f"{self.work} {purpose}".strip(), self.round, self.client)
