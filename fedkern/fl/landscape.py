"""Where the clients' subregions lie on the simplex, and the loss along it: for a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkern.nn import subregion
from fedkern.simplex import project

from .client import Client
from .evaluation import predict
from .methods.floco import CENTER
from .reading import Reader
from .seeding import generator

POINTS = 15  # of the grid, in each direction
SAMPLES = 500  # of the test data, for the loss at a point


@dataclass(frozen=True)
class Landscape:
    """A plane through the simplex of a model: the first two principal components of the centres.

    Attributes:
        centers: of the clients' subregions, float64 [K, 2].
        classes: the most frequent class in each client's training data, int64 [K].
        middle: the centre of the simplex, float64 [2].
        x, y: the grid's coordinates, float64 [POINTS].
        loss: cross entropy of the global model at the grid's points, float64 [POINTS, POINTS], rows
            along y. Points outside the simplex stand for the nearest ones on it.
    """

    centers: Tensor
    classes: Tensor
    middle: Tensor
    x: Tensor
    y: Tensor
    loss: Tensor


def landscape(model: nn.Module, clients: Sequence[Client], seed: int) -> Landscape | None:
    """The plane of the clients' subregions; None where fewer than two clients have one.

    Args:
        model: the global model.
        clients: whose states hold their centres.
        seed: of the run; chooses the test samples.
    """
    placed = [client for client in clients if CENTER in client.state]
    if len(placed) < 2:
        return None
    points = torch.stack([client.state[CENTER] for client in placed]).double().cpu()
    mean = points.mean(0)
    # A single endpoint has but one direction.
    directions = torch.linalg.svd(points - mean).Vh[:2]
    directions = F.pad(directions, (0, 0, 0, 2 - len(directions)))
    centers = (points - mean) @ directions.T
    middle = (1 / len(mean) - mean) @ directions.T
    shown = torch.cat([centers, middle.unsqueeze(0)])
    low, high = shown.min(0).values, shown.max(0).values
    margin = 0.15 * (high - low).max().clamp(min=1e-3)
    x, y = (
        torch.linspace(a - margin, b + margin, POINTS).double()
        for a, b in zip(low, high, strict=True)
    )
    grid = torch.stack([g.flatten() for g in torch.meshgrid(x, y, indexing="xy")], 1)
    alphas = project(mean + grid @ directions)

    dataset = clients[0].dataset
    chosen = torch.randperm(len(dataset.y_test), generator=generator(seed, "landscape"))[:SAMPLES]
    chosen = chosen.to(dataset.y_test.device)
    inputs, targets = Reader(dataset.x_test)(chosen), dataset.y_test[chosen].cpu()
    losses = []
    for alpha in alphas:
        with subregion(model, alpha):
            losses.append(F.cross_entropy(predict(model, inputs).double(), targets))
    classes = torch.stack([client.class_counts() for client in placed]).argmax(1).cpu()
    return Landscape(centers, classes, middle, x, y, torch.stack(losses).view(POINTS, POINTS))
