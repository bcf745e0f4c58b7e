import torch

from fedkern import fl


def test_clients_hold_their_samples(blobs):
    partition = fl.Partition([torch.tensor([4, 0, 9]), torch.tensor([], dtype=torch.int64)], 237)
    first, second = fl.make_clients(blobs, partition)
    assert (first.number, len(first), len(second)) == (0, 3, 0)
    assert first.class_counts().tolist() == [2, 1, 0, 0]  # labels are 0, 0 and 1
    assert len(first.test_indices) == 0
    draws = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(20):
        inputs, targets = first.shuffled(draws)
        for x, y in zip(inputs, targets, strict=True):
            position = next(i for i in (4, 0, 9) if torch.equal(x, blobs.x_train[i]))
            assert y == blobs.y_train[position]
        seen.add(tuple(targets.tolist()))
    assert len(seen) > 1


def test_states_are_not_shared(blobs):
    partition = fl.iid(blobs.y_train, 2, 0)
    first, second = fl.make_clients(blobs, partition)
    first.state["a"] = 1
    assert second.state == fl.make_clients(blobs, partition)[0].state == {}


def test_local_test_samples_are_the_partitions(blobs):
    config = fl.RunConfig(clients=4, clients_per_round=2, partition="shards")
    partition = fl.make_partition(blobs, config)
    clients = fl.make_clients(blobs, partition)
    for client, expected in zip(clients, partition.test_indices, strict=True):
        assert torch.equal(client.test_indices, expected)
        held = set(blobs.y_train[client.indices].tolist())
        assert set(blobs.y_test[client.test_indices].tolist()) <= held
