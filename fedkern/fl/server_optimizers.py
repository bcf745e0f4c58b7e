"""What the server makes of a round's mean model (Reddi et al., arXiv 2003.00295, Algorithm 2).

With x the global model before the round and Delta the mean of the clients' models minus x:

    avg     x + lr Delta
    avgm    m <- b1 m + Delta                    x + lr m
    adam    m <- b1 m + (1 - b1) Delta           x + lr m / (sqrt(v) + tau)
            v <- b2 v + (1 - b2) Delta^2
    yogi    as adam, but v <- v - (1 - b2) Delta^2 sign(v - Delta^2)

m starts at 0 and v at tau^2; there is no bias correction. Buffers (batch norm's statistics) are the
mean's. All is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .config import setting
from .errors import ConfigError, check_positive
from .flat import State

SERVER_LR_HELP = "learning rate of the server (default avg, avgm: 1; adam, yogi: 0.03)"
SERVER_MOMENTUM_HELP = "momentum of avgm; beta1 of adam and yogi"
Memory = dict[str, Any]  # of the server, from round to round


class ServerOptimizer(Protocol):
    """A step of the server, with its options: a frozen dataclass."""

    def step(self, before: State, mean: State, memory: Memory) -> State:
        """The new global state.

        Args:
            before: the global state before the round.
            mean: of the clients' models.
            memory: `Server.state`, where it keeps what it needs in later rounds.
        """


@dataclass(frozen=True)
class ServerAverage(ServerOptimizer):
    """The clients' mean, or a part of the way to it.

    Attributes:
        server_lr: which part; 1 is FedAvg.
    """

    server_lr: float = setting(1.0, SERVER_LR_HELP)

    def __post_init__(self) -> None:
        check_positive("server_lr", self.server_lr)

    def step(self, before: State, mean: State, memory: Memory) -> State:
        """See `ServerOptimizer`."""
        if self.server_lr == 1:  # to the bit
            return mean
        return _moved(before, mean, _delta(before, mean), self.server_lr)


@dataclass(frozen=True)
class ServerMomentum(ServerOptimizer):
    """FedAvgM: gradient descent with momentum.

    Attributes:
        server_lr: the learning rate.
        server_momentum: b1 above; 0 is FedAvg.
    """

    server_lr: float = setting(1.0, SERVER_LR_HELP)
    server_momentum: float = setting(0.9, SERVER_MOMENTUM_HELP)

    def __post_init__(self) -> None:
        check_positive("server_lr", self.server_lr)
        _check_decay("server_momentum", self.server_momentum)

    def step(self, before: State, mean: State, memory: Memory) -> State:
        """See `ServerOptimizer`; keeps m."""
        delta = _delta(before, mean)
        m = memory.get("m")
        memory["m"] = m = delta if m is None else self.server_momentum * m + delta
        if self.server_momentum == 0 and self.server_lr == 1:  # to the bit
            return mean
        return _moved(before, mean, m, self.server_lr)


@dataclass(frozen=True)
class ServerAdam(ServerOptimizer):
    """FedAdam.

    Attributes:
        server_lr: the learning rate; published ones were tuned for each data set, from 0.001 to 1.
        server_momentum, server_beta2: b1 and b2 above.
        server_tau: how adaptive it is.
    """

    server_lr: float = setting(0.03, SERVER_LR_HELP)
    server_momentum: float = setting(0.9, SERVER_MOMENTUM_HELP)
    server_beta2: float = setting(0.99, "beta2 of adam and yogi on the server")
    server_tau: float = setting(1e-3, "tau of adam and yogi on the server; smaller adapts more")

    def __post_init__(self) -> None:
        check_positive("server_lr", self.server_lr)
        _check_decay("server_momentum", self.server_momentum)
        _check_decay("server_beta2", self.server_beta2)
        check_positive("server_tau", self.server_tau)

    def step(self, before: State, mean: State, memory: Memory) -> State:
        """See `ServerOptimizer`; keeps m and v."""
        delta = _delta(before, mean)
        m = memory.get("m", torch.zeros_like(delta))
        v = memory.get("v", torch.full_like(delta, self.server_tau**2))
        memory["m"] = m = self.server_momentum * m + (1 - self.server_momentum) * delta
        memory["v"] = v = self.second_moment(v, delta**2)
        return _moved(before, mean, m / (v.sqrt() + self.server_tau), self.server_lr)

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """v after a round whose Delta^2 is `squared`."""
        return self.server_beta2 * v + (1 - self.server_beta2) * squared


@dataclass(frozen=True)
class ServerYogi(ServerAdam):
    """FedYogi: the second moment falls more slowly than Adam's."""

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """v after a round whose Delta^2 is `squared`."""
        return v - (1 - self.server_beta2) * squared * (v - squared).sign()


def _delta(before: State, mean: State) -> Tensor:
    return mean.values.double() - before.values.double()


def _moved(before: State, mean: State, direction: Tensor, lr: float) -> State:
    return State(before.values.double() + lr * direction, mean.buffers)


def _check_decay(name: str, value: float) -> None:
    """Refuses what is not in [0, 1)."""
    if not 0 <= value < 1:
        raise ConfigError(f"{name}: wanted a number in [0, 1), got {value}")


# Their fields are options on the command line.
SERVER_OPTIMIZERS: dict[str, type[Any]] = {
    "avg": ServerAverage,
    "avgm": ServerMomentum,
    "adam": ServerAdam,
    "yogi": ServerYogi,
}
