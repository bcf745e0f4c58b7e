import pytest
import torch

from fedkern import fl
from fedkern.fl.flat import State


def test_clients_hold_their_samples(blobs):
    partition = fl.Partition([torch.tensor([4, 0, 9]), torch.tensor([], dtype=torch.int64)], 237)
    first, second = fl.make_clients(blobs, partition)
    assert (first.number, len(first), len(second)) == (0, 3, 0)
    assert first.class_counts().tolist() == [2, 1, 0, 0]  # labels are 0, 0 and 1
    assert len(first.test_indices) == 0
    draws = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(20):
        order = first.order(draws)
        assert order.dtype == torch.int64
        assert sorted(order.tolist()) == [0, 4, 9]
        seen.add(tuple(order.tolist()))
    assert len(seen) == 6  # any order; each is missing in 20 with probability 0.026
    assert second.order(draws).shape == (0,)


def test_order_is_the_generators_next_permutation(blobs):
    (client,) = fl.make_clients(blobs, fl.Partition([torch.arange(240).flip(0)], 0))
    draws, again = (fl.generator(0, "batches") for _ in range(2))
    for _ in range(2):
        expected = client.indices[torch.randperm(240, generator=again)]
        assert torch.equal(client.order(draws), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_order_on_cuda_waits_for_nothing(blobs):
    partition = fl.iid(blobs.y_train, 2, 0)
    host, device = (fl.make_clients(blobs.to(to), partition)[0] for to in ("cpu", "cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        order = device.order(fl.generator(0, "batches"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(order.cpu(), host.order(fl.generator(0, "batches")))


def test_states_are_not_shared(blobs):
    partition = fl.iid(blobs.y_train, 2, 0)
    first, second = fl.make_clients(blobs, partition)
    first.state["a"] = 1
    assert second.state == fl.make_clients(blobs, partition)[0].state == {}
    first.models["a"] = State(torch.ones(2), [])
    assert not second.models
    assert not fl.make_clients(blobs, partition)[0].models
    alone = [fl.Client(0, blobs, torch.arange(2), torch.arange(0)) for _ in range(2)]
    alone[0].models["a"] = State(torch.ones(2), [])
    assert not alone[1].models


def test_local_test_samples_are_the_partitions(blobs):
    config = fl.RunConfig(clients=4, clients_per_round=2, partition="shards")
    partition = fl.make_partition(blobs, config)
    clients = fl.make_clients(blobs, partition)
    for client, expected in zip(clients, partition.test_indices, strict=True):
        assert torch.equal(client.test_indices, expected)
        held = set(blobs.y_train[client.indices].tolist())
        assert set(blobs.y_test[client.test_indices].tolist()) <= held
