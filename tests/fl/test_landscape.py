import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedkern import fl, simplex
from fedkern.fl.landscape import POINTS, landscape
from fedkern.nn import simplexify, subregion


def model_and_clients(dataset, num_endpoints, centers):
    model = nn.Sequential(nn.Linear(6, 4))
    simplexify(model, num_endpoints=num_endpoints, generator=torch.Generator().manual_seed(0))
    partition = fl.Partition(list(torch.arange(240).split(240 // len(centers))), 0)
    clients = fl.make_clients(dataset, partition)
    for client, center in zip(clients, centers, strict=True):
        if center is not None:
            client.state["center"] = torch.tensor(center)
    return model, clients


def test_a_triangle_keeps_its_distances(blobs):
    """Three endpoints span a plane, so two components show all of it."""
    centers = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6], [0.5, 0.25, 0.25]]
    model, clients = model_and_clients(blobs, 3, [*centers, None, None])
    shown = landscape(model, clients, seed=0)
    expected = torch.cdist(torch.tensor(centers).double(), torch.tensor(centers).double())
    torch.testing.assert_close(torch.cdist(shown.centers, shown.centers), expected)
    to_middle = (torch.tensor(centers).double() - 1 / 3).norm(dim=1)
    torch.testing.assert_close((shown.centers - shown.middle).norm(dim=1), to_middle)
    counts = [torch.bincount(blobs.y_train[client.indices]).argmax() for client in clients[:4]]
    assert shown.classes.tolist() == torch.stack(counts).tolist()
    assert shown.x[0] < shown.centers[:, 0].min() < shown.centers[:, 0].max() < shown.x[-1]


def test_the_loss_is_that_of_the_nearest_point_of_the_simplex(blobs):
    centers = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6], [0.5, 0.25, 0.25]]
    model, clients = model_and_clients(blobs, 3, centers)
    shown = landscape(model, clients, seed=0)
    points = torch.tensor(centers).double()
    # The plane's two axes, from where it puts the centres.
    offsets = points - points.mean(0)
    axes = torch.linalg.lstsq(shown.centers, offsets).solution
    for row, column in [(0, 0), (7, 7), (3, 12), (POINTS - 1, 2)]:
        place = torch.stack([shown.x[column], shown.y[row]])
        alpha = simplex.project(points.mean(0) + place @ axes)
        with subregion(model.eval(), alpha.float()), torch.no_grad():
            expected = F.cross_entropy(model(blobs.x_test), blobs.y_test).item()
        assert shown.loss[row, column].item() == pytest.approx(expected, rel=1e-4)


def test_two_endpoints_lie_on_a_line(blobs):
    centers = [[1.0, 0.0], [0.3, 0.7], [0.0, 1.0]]
    model, clients = model_and_clients(blobs, 2, centers)
    shown = landscape(model, clients, seed=0)
    assert (shown.centers[:, 1].abs() < 1e-12).all()
    assert shown.loss.isfinite().all()


def test_one_endpoint_is_a_point(blobs):
    model, clients = model_and_clients(blobs, 1, [[1.0], [1.0]])
    shown = landscape(model, clients, seed=0)
    assert (shown.centers == 0).all()
    assert shown.loss.isfinite().all()


def test_nothing_to_show(blobs):
    model, clients = model_and_clients(blobs, 2, [None, [0.5, 0.5], None])
    assert landscape(model, clients, seed=0) is None
    plain = nn.Linear(6, 4)
    assert landscape(plain, fl.make_clients(blobs, fl.iid(blobs.y_train, 3, 0)), seed=0) is None
