import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedkern import fl
from fedkern.fl.partition import _dirichlet_draw

labels = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(torch.tensor)
alphas = st.floats(-3, 2).map(lambda exponent: 10**exponent)


@settings(max_examples=150, deadline=None)
@given(labels, st.integers(1, 40), alphas, st.integers(0, 2**32))
@example(torch.arange(1000) % 10, 20, 0.01, 0)
def test_dirichlet_shares_samples_out_once(targets, clients, alpha, seed):
    partition = fl.dirichlet(targets, clients, alpha, seed)
    held = torch.cat(partition.indices)
    assert len(partition.indices) == clients
    assert held.dtype == torch.int64
    assert len(held.unique()) == len(held), "a sample belongs to two clients"
    assert ((held >= 0) & (held < len(targets))).all()
    assert len(held) + partition.discarded == len(targets)
    # Scaled by the largest factor: some class is used up.
    left = torch.bincount(targets) - torch.bincount(targets[held], minlength=targets.max() + 1)
    assert (left[torch.bincount(targets) > 0] == 0).any()
    assert partition.clients_without_data == [k for k in range(clients) if partition.sizes[k] == 0]


@pytest.mark.parametrize("alpha", [0.05, 1.0])
def test_every_client_gets_one_size_times_its_proportions(alpha):
    targets = torch.tensor([0] * 50 + [2] * 300 + [3] * 120)  # class 1 does not occur
    proportions = torch.stack(
        [_dirichlet_draw(3, alpha, fl.generator(4, "partition proportions", k)) for k in range(12)]
    )
    size = (torch.tensor([50, 300, 120]) / proportions.sum(0)).min()
    partition = fl.dirichlet(targets, 12, alpha, seed=4)
    counts = partition.label_counts(targets, 4)[:, [0, 2, 3]]
    assert ((counts - size * proportions).abs() < 1).all()


@settings(max_examples=50, deadline=None)
@given(labels, st.integers(1, 40), st.integers(0, 2**32))
def test_iid_uses_every_sample_once(targets, clients, seed):
    partition = fl.iid(targets, clients, seed)
    assert sorted(torch.cat(partition.indices).tolist()) == list(range(len(targets)))
    assert max(partition.sizes) - min(partition.sizes) <= 1
    assert partition.discarded == 0


@pytest.mark.parametrize("alpha", [0.01, 1e-4, 1e6])
def test_extreme_alpha_ends_with_valid_proportions(alpha):
    for k in range(50):
        draw = _dirichlet_draw(10, alpha, fl.generator(0, "test", k))
        assert draw.isfinite().all()
        assert draw.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
def test_proportions_have_the_moments_of_a_dirichlet(alpha):
    draws, size = 4000, 5
    sample = torch.stack(
        [_dirichlet_draw(size, alpha, fl.generator(1, "test", k)) for k in range(draws)]
    )
    mean, variance = 1 / size, (1 / size) * (1 - 1 / size) / (size * alpha + 1)
    assert (sample.mean(0) - mean).abs().max() < 5 * math.sqrt(variance / draws)
    # The standard error of a variance, from the sample's own fourth moment.
    deviations = (sample - mean) ** 2
    error = 5 * deviations.std(0) / math.sqrt(draws)
    assert ((deviations.mean(0) - variance).abs() < error).all()


def test_small_alpha_is_more_skewed():
    targets = torch.arange(5000) % 10

    def largest_share(alpha):
        counts = fl.dirichlet(targets, 20, alpha, seed=0).label_counts(targets, 10).float()
        return (counts.amax(1) / counts.sum(1)).mean()

    assert largest_share(0.05) > 0.6 > 0.2 > largest_share(100.0)


def test_seed_decides():
    targets = torch.arange(500) % 10
    first, again, other = (fl.dirichlet(targets, 10, 0.5, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.indices, again.indices, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.indices, other.indices, strict=True))


def test_more_clients_than_samples_leaves_some_without_data():
    partition = fl.iid(torch.tensor([0, 1, 0]), 5, seed=0)
    assert partition.clients_without_data == [3, 4]
    partition = fl.dirichlet(torch.tensor([0, 1, 0]), 5, 0.01, seed=0)
    assert len(partition.clients_without_data) >= 2


def test_label_counts():
    partition = fl.Partition([torch.tensor([0, 3]), torch.tensor([], dtype=torch.int64)], 2)
    counts = partition.label_counts(torch.tensor([2, 0, 0, 2]), num_classes=4)
    assert counts.tolist() == [[0, 0, 2, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(fl.ConfigError, match=rf"^alpha: wanted a finite number > 0, got {alpha}$"):
        fl.dirichlet(torch.tensor([0, 1]), 2, alpha, seed=0)


def test_clients_must_be_positive():
    for make in (
        lambda: fl.iid(torch.tensor([0]), 0, 0),
        lambda: fl.dirichlet(torch.tensor([0]), 0, 1, 0),
    ):
        with pytest.raises(fl.ConfigError, match=r"^clients: wanted at least 1, got 0$"):
            make()


def test_unknown_partition_names_the_nearest():
    with pytest.raises(fl.ConfigError, match="did you mean 'dirichlet'"):
        fl.make_partition("dirichlit", torch.tensor([0]), 1, alpha=1.0, seed=0)
