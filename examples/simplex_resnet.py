"""Floco's simplex of models: a ResNet of torchvision in a training loop of your own.

    python examples/simplex_resnet.py

Two of four clients have the handwritten digits 0 to 4, two have 5 to 9. The last layer of their
network becomes a simplex. At first all clients train on all of it; from what that changes in the
endpoints each one gets a subregion, on which it goes on. At the end the averaged model is tested on
each client's own digits: at the centre of the simplex, then at the centres of all four subregions.
A client does well at its own and at that of the other one with the same classes, worse elsewhere.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.resnet import BasicBlock, ResNet

from fedkern import fl, nn, simplex

CLASSES = (range(5), range(5), range(5, 10), range(5, 10))  # each client's
ENDPOINTS = 3  # no more than clients
ROUNDS, TAU, RHO = 6, 4, 0.1  # from round TAU on there are subregions, of radius RHO
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Data = tuple[Tensor, Tensor]


def share_out(images: Tensor, labels: Tensor) -> list[Data]:
    """Images and labels of each client; those with the same classes get every other one."""
    shares = []
    for client, classes in enumerate(CLASSES):
        own = torch.isin(labels, torch.tensor(classes)).nonzero().flatten()[client % 2 :: 2]
        shares.append((fl.scaled(images[own]).to(DEVICE), labels[own].to(DEVICE)))
    return shares


def build_model() -> ResNet:
    """A ResNet-10 for images of 8 x 8 pixels, its last layer a simplex."""
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    model.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
    return nn.simplexify(model, num_endpoints=ENDPOINTS).to(DEVICE)


def train_epoch(model: ResNet, data: Data) -> None:
    """Plain SGD: the simplex layer itself draws a point for each batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    images, labels = data
    model.train()
    for batch in torch.randperm(len(labels)).to(DEVICE).split(32):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: ResNet, data: Data) -> float:
    """In eval mode the model is at its subregion's centre; without one, at the simplex centre."""
    model.eval()
    return (model(data[0]).argmax(1) == data[1]).float().mean().item()


@torch.no_grad()
def pseudo_gradient(model: ResNet, trained: ResNet) -> Tensor:
    """What a client has changed in the endpoints, global minus local: [D]."""
    pairs = zip(nn.endpoint_parameters(model), nn.endpoint_parameters(trained), strict=True)
    return torch.cat([(before - after).flatten() for before, after in pairs])


def average(models: Sequence[ResNet]) -> dict[str, Tensor]:
    states = [model.state_dict() for model in models]
    return {name: sum(state[name] for state in states) / len(states) for name in states[0]}


def main() -> None:
    torch.manual_seed(0)
    digits = fl.load_dataset("digits")
    train_data = share_out(digits.x_train, digits.y_train)
    test_data = share_out(digits.x_test, digits.y_test)
    model = build_model()
    regions = [(None, None) for _ in CLASSES]  # the whole simplex
    for number in range(1, ROUNDS + 1):
        trained = [copy.deepcopy(model) for _ in CLASSES]
        for local, data, region in zip(trained, train_data, regions, strict=True):
            with nn.subregion(local, *region):
                train_epoch(local, data)
        if number == TAU - 1:
            gradients = torch.stack([pseudo_gradient(model, local) for local in trained])
            regions = [(center, RHO) for center in simplex.assign_subregions(gradients, ENDPOINTS)]
        model.load_state_dict(average(trained))
        print(f"round {number} of {ROUNDS}")

    for client, (classes, data) in enumerate(zip(CLASSES, test_data, strict=True)):
        at_centers = []
        for center, _ in regions:
            with nn.subregion(model, center):
                at_centers.append(accuracy(model, data))
        point = ", ".join(f"{alpha:.2f}" for alpha in regions[client][0])
        print(f"client {client}, digits {classes[0]} to {classes[-1]}, subregion around ({point})")
        print(f"  accuracy at the centre of the simplex: {accuracy(model, data):.3f}")
        print("  at those of the subregions:", *(f"{value:.3f}" for value in at_centers))


if __name__ == "__main__":
    main()
