"""FedRL: classes weigh more whose gradients are weak (Wang et al., "Addressing class imbalance in
federated learning", arXiv 2008.06217).

The server has one auxiliary sample of each class. Before a round G_c [C, d] is the gradient of
class c's sample by the last weight matrix under the global model. An entry (j, k) belongs to class
i if i alone has G_i[j, k] >= 0.8 max_c G_c[j, k]. With A_i[c] the sum of G_c over i's entries,

    R_i = (C - 1) |A_i[i] / sum_{c != i} A_i[c]|       nan becomes 10, more than 5000 becomes 5000

tells how frequent class i is, and clients minimise cross entropy with class weights alpha + beta R.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

import fedkern

from ..client import Client
from ..config import setting
from ..errors import ConfigError, check_not_negative
from ..heads import last_layer
from ..losses import CrossEntropy, fused_gradient
from ..reading import Reader
from ..server import Server
from ..training import LocalWork
from .fedavg import FedAvg

WEIGHTS = "class weights"  # in a client's state: of this round, [C]
LARGEST = 5000.0  # ratio
SAMPLES = "auxiliary samples"  # in the server's state: their positions in the training data


@dataclass(frozen=True)
class WeightedCE(CrossEntropy):
    """Cross entropy with class weights, which come last."""

    def __call__(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The mean over samples, weighted as in `torch.nn.functional.cross_entropy`."""
        counts, weight = constants
        return fedkern.calibrated_ce(logits, targets, weight, class_counts=counts)

    def gradient(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The gradient for the logits."""
        counts, weight = constants
        return fused_gradient(logits, targets, class_counts=counts, weight=weight)


@dataclass(frozen=True)
class FedRL(FedAvg):
    """FedAvg with the ratio loss.

    Attributes:
        ratio_alpha, ratio_beta: alpha and beta above; with beta 0 it is FedAvg.
    """

    ratio_alpha: float = setting(1.0, "fedrl: class weights are alpha + beta R")
    ratio_beta: float = setting(0.1, "fedrl: class weights are alpha + beta R")

    paper: ClassVar[str] = "arXiv 2008.06217"
    keeps: ClassVar[str] = "the server: which samples are the auxiliary ones"
    faults: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative("ratio_alpha", self.ratio_alpha)
        check_not_negative("ratio_beta", self.ratio_beta)
        if self.ratio_alpha == self.ratio_beta == 0:
            raise ConfigError("ratio_alpha: wanted a number > 0 where ratio_beta is 0, got 0")
        if self.loss != CrossEntropy():
            raise ConfigError("loss: wanted cross_entropy for fedrl, which has class weights")

    def begin_round(self, server: Server) -> None:
        """Estimates how frequent the classes are; the weights go to the round's clients."""
        super().begin_round(server)
        if self.ratio_beta == 0:
            return
        if SAMPLES not in server.state:
            server.state[SAMPLES] = one_of_each_class(server)
        ratios = ratio_of_classes(server)
        for client in server.active:
            client.state[WEIGHTS] = self.ratio_alpha + self.ratio_beta * ratios

    def local_work(self, client: Client) -> Sequence[LocalWork]:
        """SGD on the weighted cross entropy."""
        works = super().local_work(client)
        if self.ratio_beta == 0:  # equal weights are none
            return works
        constants = (client.state[WEIGHTS],)
        return [replace(work, loss=WeightedCE(), constants=constants) for work in works]


def one_of_each_class(server: Server) -> Tensor:
    """Positions of a random training sample of each class that has some, int64."""
    targets = server.clients[0].dataset.y_train
    order = torch.randperm(len(targets), generator=server.draws("auxiliary")).to(targets.device)
    shuffled = targets[order]
    classes = torch.bincount(targets).nonzero()
    return torch.stack([order[(shuffled == label).nonzero()[0, 0]] for label in classes])


def ratio_of_classes(server: Server) -> Tensor:
    """R [C] under the global model."""
    dataset, module = server.clients[0].dataset, server.model.module
    samples: Tensor = server.state[SAMPLES]
    weight = last_layer(module).weight
    module.eval()
    logits = module(Reader(dataset.x_train)(samples))
    labels = dataset.y_train[samples]
    losses = F.cross_entropy(logits, labels, reduction="none")
    gradients = weight.new_zeros(dataset.num_classes, *weight.shape)
    for label, loss in zip(labels.tolist(), losses, strict=True):
        gradients[label] = torch.autograd.grad(loss, weight, retain_graph=True)[0]
    return ratios(gradients.flatten(1))


def ratios(gradients: Tensor) -> Tensor:
    """R [C] of the classes' gradients, [C, entries]."""
    belongs = gradients >= 0.8 * gradients.max(0).values
    belongs &= belongs.sum(0) == 1
    sums = belongs.to(gradients.dtype) @ gradients.T  # A, [i, c]
    own = sums.diagonal()
    others = sums.sum(1) - own
    found = (len(sums) - 1) * (own / others).abs()
    return found.nan_to_num(nan=10.0, posinf=LARGEST).clamp(max=LARGEST)
