import torch

from fedkern import fl


def first_numbers(*key):
    return torch.rand(8, generator=fl.generator(*key)).tolist()


def test_same_key_gives_the_same_numbers():
    assert first_numbers(0, "batches", 3, 7) == first_numbers(0, "batches", 3, 7)


def test_every_part_of_the_key_counts():
    keys = [
        (0, "batches"),
        (1, "batches"),
        (-1, "batches"),
        (2**70, "batches"),
        (0, "clients"),
        (0, "batches", 0),
        (0, "batches", 1, 12),
        (0, "batches", 11, 2),
        (0, "batches", 2, 11),
    ]
    assert len({tuple(first_numbers(*key)) for key in keys}) == len(keys)


def test_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    first_numbers(0, "batches")
    assert torch.equal(before, torch.random.get_rng_state())


def test_draws_of_a_client_in_a_round():
    draws = fl.Draws(5, 3, 7)
    assert torch.rand(8, generator=draws("batches")).tolist() == first_numbers(5, "batches", 3, 7)
    own = fl.Draws(5, 3, 7, work="personal")
    expected = first_numbers(5, "personal batches", 3, 7)
    assert torch.rand(8, generator=own("batches")).tolist() == expected
