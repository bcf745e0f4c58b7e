import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedkern import fl
from fedkern.fl.partition import _dirichlet_draw

labels = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(torch.tensor)
alphas = st.floats(-4, 2).map(lambda exponent: 10**exponent)
seeds = st.integers(0, 2**32)


def check(partition, samples, clients):
    """What holds of every partition of so many samples."""
    held = torch.cat(partition.indices)
    assert len(partition.indices) == clients
    assert all(index.dtype == torch.int64 for index in partition.indices)
    assert len(held.unique()) == len(held), "a sample belongs to two clients"
    assert ((held >= 0) & (held < samples)).all()
    assert len(held) + partition.discarded == samples


def same(first, second):
    """Whether two lists of tensors are equal."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@settings(max_examples=150, deadline=None)
@given(labels, st.integers(1, 40), alphas, seeds)
@example(torch.arange(1000) % 10, 20, 0.01, 0)
def test_dirichlet_shares_samples_out_once(targets, clients, alpha, seed):
    partition = fl.dirichlet(targets, clients, alpha, seed)
    check(partition, len(targets), clients)
    held = torch.cat(partition.indices)
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
@given(labels, st.integers(1, 40), seeds)
def test_iid_uses_every_sample_once(targets, clients, seed):
    partition = fl.iid(targets, clients, seed)
    check(partition, len(targets), clients)
    assert max(partition.sizes) - min(partition.sizes) <= 1
    assert partition.discarded == 0


@settings(max_examples=50, deadline=None)
@given(labels, st.integers(1, 40), alphas, seeds, st.data())
@example(torch.arange(1000) % 10, 20, 1e-4, 0, None)  # each class to one client: 10 are filled up
def test_by_class_uses_every_sample_once_and_none_has_too_few(targets, clients, alpha, seed, data):
    most = len(targets) // clients
    least = data.draw(st.integers(0, most)) if data else most
    partition = fl.dirichlet_by_class(targets, clients, alpha, seed, least)
    check(partition, len(targets), clients)
    assert partition.discarded == 0
    assert min(partition.sizes) >= least


def test_by_class_takes_the_first_draw_that_leaves_no_client_too_small(monkeypatch):
    # Of 200 samples in 2 classes, with alpha 1, 3 draws in 4 give each of 8 clients 5 or more.
    targets = torch.arange(200) % 2

    def make(seed, least, draws):
        monkeypatch.setattr("fedkern.fl.partition.MAX_DRAWS", draws)
        return fl.dirichlet_by_class(targets, 8, 1.0, seed, least)

    redrawn = 0
    for seed in range(40):
        drawn, first = make(seed, 5, draws=100), make(seed, 0, draws=100)
        if min(first.sizes) >= 5:
            assert same(drawn.indices, first.indices)
        else:
            redrawn += 1
            filled = make(seed, 5, draws=1)
            assert min(filled.sizes) == 5
            assert not same(drawn.indices, filled.indices)
        assert same(first.indices, make(seed, 0, draws=1).indices)
    assert 0 < redrawn < 40


def test_by_class_fills_up_from_the_largest():
    # With alpha 1e-4 each of the 3 classes goes to one client whole: to three clients, as a class
    # is more than the equal share. They give each of the 9 others 20 samples, taking turns.
    targets = torch.arange(300) % 3
    partition = fl.dirichlet_by_class(targets, 12, 1e-4, seed=0, least_samples=20)
    assert sorted(partition.sizes) == [20] * 9 + [40] * 3
    filled = [k for k, size in enumerate(partition.sizes) if size == 20]
    assert (partition.label_counts(targets, 3)[filled] > 0).all()


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_by_class_proportions_have_the_moments_of_a_dirichlet_over_the_clients(alpha):
    # With one class a client's share is Beta(alpha, (K - 1) alpha); that 10^4 samples are whole is
    # nothing beside its spread.
    samples, clients, runs = 10**4, 4, 500
    targets = torch.zeros(samples, dtype=torch.int64)
    sizes = [fl.dirichlet_by_class(targets, clients, alpha, seed, 0).sizes for seed in range(runs)]
    shares = torch.tensor(sizes).double() / samples
    mean = 1 / clients
    variance = mean * (1 - mean) / (clients * alpha + 1)
    assert (shares.mean(0) - mean).abs().max() < 5 * math.sqrt(variance / runs)
    deviations = (shares - mean) ** 2
    error = 5 * deviations.std(0) / math.sqrt(runs)
    assert ((deviations.mean(0) - variance).abs() < error).all()


def test_by_class_gives_a_client_at_its_equal_share_no_more():
    targets = torch.arange(600) % 6
    closed = 0
    for seed in range(20):
        partition = fl.dirichlet_by_class(targets, 5, 0.2, seed, least_samples=0)
        held = partition.label_counts(targets, 6)
        before = held.cumsum(1) - held
        assert (held[before >= 600 / 5] == 0).all()
        closed += int((before >= 600 / 5).sum())
    assert closed > 0


@pytest.mark.parametrize("least", [-1, 6])
def test_by_class_least_samples_must_fit(least):
    message = rf"^least_samples: wanted 0 to 5 for 50 samples and 10 clients, got {least}$"
    with pytest.raises(fl.ConfigError, match=message):
        fl.dirichlet_by_class(torch.arange(50) % 2, 10, 1.0, 0, least)


@settings(max_examples=100, deadline=None)
@given(labels, st.integers(1, 40), seeds, st.data())
def test_fold_holds_its_proportions_within_rounding(targets, clients, seed, data):
    classes, counts = targets.unique(return_counts=True)
    folds = data.draw(st.integers(1, min(clients, len(classes))))
    share = data.draw(st.floats(0, 1))
    partition = fl.fold(targets, clients, seed, folds, share)
    check(partition, len(targets), clients)

    proportions = torch.zeros(clients, len(classes), dtype=torch.float64)
    for client, row in enumerate(proportions):
        group = client * folds // clients
        own = torch.arange(len(classes)) * folds // len(classes) == group
        row[own] = share / own.sum() if folds > 1 else 1 / len(classes)
        row[~own] = (1 - share) / (~own).sum()
    size = (counts / proportions.sum(0)).min()
    held = partition.label_counts(targets, 7)[:, classes]
    assert ((held - size * proportions).abs() < 1 + 1e-6).all()
    assert (held.sum(0) == counts).any(), "no class is used up"


@pytest.mark.parametrize("classes", [10, 100])
def test_five_folds_of_balanced_classes(classes):
    # A client's 500 samples: of 10 classes 200 of each own and 12.5 of each other one, of 100
    # classes 20 and 1.25. Rounded alike in all classes, clients would be up to 4 and 60 off.
    targets = torch.arange(50_000) % classes
    partition = fl.fold(targets, 100, seed=0)
    assert partition.discarded == 0
    assert all(abs(size - 500) <= 3 for size in partition.sizes)
    held = partition.label_counts(targets, classes).view(5, 20, 5, classes // 5)
    own = torch.stack([held[group, :, group] for group in range(5)])
    assert ((own - 2000 // classes).abs() <= 1).all()
    assert ((own.sum(2) - 400).abs() <= 1).all()


@pytest.mark.parametrize(
    ("folds", "share", "message"),
    [
        (0, 0.8, "folds: wanted 1 to 3 for 6 clients and 3 classes, got 0"),
        (4, 0.8, "folds: wanted 1 to 3 for 6 clients and 3 classes, got 4"),
        (3, 1.1, r"share: wanted a number in \[0, 1\], got 1.1"),
        (3, math.nan, r"share: wanted a number in \[0, 1\], got nan"),
    ],
)
def test_fold_settings_must_fit(folds, share, message):
    with pytest.raises(fl.ConfigError, match=f"^{message}$"):
        fl.fold(torch.tensor([0, 2, 5] * 4), 6, 0, folds, share)


def test_no_more_folds_than_clients():
    message = r"^folds: wanted 1 to 2 for 2 clients and 3 classes, got 3$"
    with pytest.raises(fl.ConfigError, match=message):
        fl.fold(torch.tensor([0, 1, 2] * 4), 2, 0, folds=3)


@settings(max_examples=50, deadline=None)
@given(labels, st.integers(1, 40), st.integers(1, 4), seeds)
def test_shards_uses_every_sample_once(targets, clients, shards, seed):
    partition = fl.shards(targets, clients, seed, shards)
    check(partition, len(targets), clients)
    assert partition.discarded == 0
    assert max(partition.sizes) - min(partition.sizes) <= shards
    # A shard is a stretch of the sorted samples: all cuts between labels fall into some shard, so
    # they add at most one class each to the one that every shard begins with.
    held = partition.label_counts(targets, 7) > 0
    assert held.sum() <= clients * shards + len(targets.unique()) - 1


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_of_balanced_classes_are_of_one_class_each(shards):
    targets = torch.arange(6000) % 10
    partition = fl.shards(targets, 20, seed=0, shards=shards)  # 10 divides 20 shards
    held = partition.label_counts(targets, 10)
    assert (held.sum(1) == 300).all()
    assert (held % (300 // shards) == 0).all()
    assert ((held > 0).sum(1) <= shards).all()
    assert shards == 1 or ((held > 0).sum(1) > 1).any(), "shards were dealt in order"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=60).map(torch.tensor),
    st.lists(st.integers(-1, 9), max_size=60).map(lambda w: torch.tensor(w, dtype=torch.int64)),
    seeds,
    st.data(),
)
def test_natural_clients_are_writers(writers, test_writers, seed, data):
    clients = data.draw(st.integers(1, len(writers.unique())))
    partition = fl.natural(writers, clients, seed, test_writers)
    check(partition, len(writers), clients)
    chosen = [int(writers[index[0]]) for index in partition.indices]
    assert chosen == sorted(set(chosen))
    for index, test_index, writer in zip(
        partition.indices, partition.test_indices, chosen, strict=True
    ):
        assert torch.equal(index, (writers == writer).nonzero().flatten())
        assert torch.equal(test_index, (test_writers == writer).nonzero().flatten())


def test_natural_draws_writers_evenly():
    # Of 6 writers, the most prolific is no likelier: each is drawn in a third of 600 runs, +-5
    # standard deviations.
    writers = torch.tensor([0, 1, 2, 3, 4] + [5] * 95)
    drawn = torch.zeros(6)
    for seed in range(600):
        partition = fl.natural(writers, 2, seed)
        drawn[[int(writers[index[0]]) for index in partition.indices]] += 1
    assert (drawn - 200).abs().max() < 5 * math.sqrt(600 * (1 / 3) * (2 / 3))
    assert partition.test_indices is None


@pytest.mark.parametrize("clients", [0, 3])
def test_natural_wants_as_many_writers_as_clients(clients):
    message = rf"^clients: wanted 1 to 2, the number of writers, got {clients}$"
    with pytest.raises(fl.ConfigError, match=message):
        fl.natural(torch.tensor([4, 4, 9]), clients, 0)


@settings(max_examples=100, deadline=None)
@given(
    labels,
    st.lists(st.integers(0, 8), max_size=100).map(lambda y: torch.tensor(y, dtype=torch.int64)),
    st.integers(1, 40),
    st.sampled_from(["dirichlet", "dirichlet-by-class", "iid"]),
    seeds,
)
def test_local_test_samples_have_the_labels_of_the_training_samples(
    y_train, y_test, clients, kind, seed
):
    partition = {
        "dirichlet": lambda: fl.dirichlet(y_train, clients, 0.3, seed),  # discards samples
        "dirichlet-by-class": lambda: fl.dirichlet_by_class(y_train, clients, 0.3, seed, 0),
        "iid": lambda: fl.iid(y_train, clients, seed),
    }[kind]()
    tests = fl.local_test_indices(partition, y_train, y_test, seed)
    dealt = sum(map(len, tests))
    check(fl.Partition(tests, len(y_test) - dealt), len(y_test), clients)

    counts = torch.bincount(y_train, minlength=9)
    test_counts = torch.bincount(y_test, minlength=9)
    held = partition.label_counts(y_train, 9)
    wanted = held * test_counts / counts.clamp(min=1)
    received = fl.Partition(tests, 0).label_counts(y_test, 9)
    assert ((received - wanted).abs() < 1).all()
    assert (received[held == 0] == 0).all()
    used_up = (held.sum(0) == counts) & (counts > 0)
    assert torch.equal(received.sum(0)[used_up], test_counts[used_up])


def test_local_test_sizes_are_proportional_where_shares_are_alike():
    # Of each class's test samples half a one is a client's. Rounded alike in all 20 classes, every
    # other client would have none, and the others 20.
    y_train, y_test = torch.arange(4000) % 20, torch.arange(200) % 20
    partition = fl.Partition(
        [torch.arange(200) + 200 * client for client in range(20)], discarded=0
    )
    sizes = [len(index) for index in fl.local_test_indices(partition, y_train, y_test, seed=0)]
    assert sum(sizes) == 200
    assert max(abs(size - 10) for size in sizes) <= 2


def test_clients_without_training_data_get_no_test_data():
    empty = torch.tensor([], dtype=torch.int64)
    partition = fl.Partition([empty, torch.tensor([0, 1]), empty], discarded=0)
    tests = fl.local_test_indices(partition, torch.tensor([1, 1]), torch.tensor([0, 1, 1]), seed=0)
    assert [sorted(index.tolist()) for index in tests] == [[], [1, 2], []]


def configured(partition, **settings):
    defaults = {
        "clients": 10,
        "alpha": 0.5,
        "seed": 0,
        "least_samples": 3,
        "folds": 2,
        "fold_share": 0.75,
        "shards": 3,
    }
    return SimpleNamespace(partition=partition, **{**defaults, **settings})


def written():
    """A data set of 12 writers; the test samples of one more never train."""
    return SimpleNamespace(
        name="written",
        y_train=torch.arange(600) % 4,
        y_test=torch.arange(130) % 4,
        train_writers=torch.arange(600) % 12,
        test_writers=torch.arange(130) % 13,
    )


@pytest.mark.parametrize("kind", fl.PARTITIONS)
def test_make_partition_shares_both_sets_out_by_seed_alone(kind):
    data = written()
    before = torch.get_rng_state()
    first, again = (fl.make_partition(data, configured(kind)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    other = fl.make_partition(data, configured(kind, seed=1))
    check(first, 600, 10)
    check(fl.Partition(first.test_indices, 130 - sum(map(len, first.test_indices))), 130, 10)
    assert same(first.indices + first.test_indices, again.indices + again.test_indices)
    assert not same(first.indices, other.indices)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("dirichlet", lambda y: fl.dirichlet(y, 10, 0.5, 0)),
        ("dirichlet-by-class", lambda y: fl.dirichlet_by_class(y, 10, 0.5, 0, 3)),
        ("fold", lambda y: fl.fold(y, 10, 0, 2, 0.75)),
        ("shards", lambda y: fl.shards(y, 10, 0, 3)),
        ("iid", lambda y: fl.iid(y, 10, 0)),
    ],
)
def test_make_partition_passes_the_settings_on(kind, make):
    data, made = written(), make(written().y_train)
    partition = fl.make_partition(data, configured(kind))
    assert same(partition.indices, made.indices)
    tests = fl.local_test_indices(made, data.y_train, data.y_test, seed=0)
    assert same(partition.test_indices, tests)


def test_natural_partition_has_the_writers_own_test_samples():
    data = written()
    partition = fl.make_partition(data, configured("natural", clients=12))
    for writer, index in enumerate(partition.test_indices):
        assert index.tolist() == list(range(writer, 130, 13))


def test_natural_wants_writers():
    data = written()
    data.train_writers = data.test_writers = None
    message = r"^partition: wanted for natural a data set .* \(femnist\), got written$"
    with pytest.raises(fl.ConfigError, match=message):
        fl.make_partition(data, configured("natural"))


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
    assert same(first.indices, again.indices)
    assert not same(first.indices, other.indices)


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
@pytest.mark.parametrize("make", [fl.dirichlet, fl.dirichlet_by_class])
def test_alpha_must_be_positive(make, alpha):
    with pytest.raises(fl.ConfigError, match=rf"^alpha: wanted a finite number > 0, got {alpha}$"):
        make(torch.tensor([0, 1]), 2, alpha, seed=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda targets: fl.dirichlet(targets, 0, 1.0, 0),
        lambda targets: fl.dirichlet_by_class(targets, 0, 1.0, 0),
        lambda targets: fl.fold(targets, 0, 0),
        lambda targets: fl.shards(targets, 0, 0),
        lambda targets: fl.iid(targets, 0, 0),
    ],
)
def test_clients_must_be_positive(make):
    with pytest.raises(fl.ConfigError, match=r"^clients: wanted at least 1, got 0$"):
        make(torch.tensor([0]))


def test_shards_must_be_positive():
    with pytest.raises(fl.ConfigError, match=r"^shards: wanted at least 1, got 0$"):
        fl.shards(torch.tensor([0]), 1, 0, shards=0)


def test_unknown_partition_names_the_nearest():
    with pytest.raises(fl.ConfigError, match="did you mean 'dirichlet'"):
        fl.make_partition(written(), configured("dirichlit"))
