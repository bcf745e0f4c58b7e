"""Sharing a training set out to clients, and the test set with it.

Of one size, but for rounding: `dirichlet` is the scheme of FedGA's experiments (arXiv 2412.16582),
`fold` the five-fold scheme of Floco's (arXiv 2403.03333), `shards` that of federated averaging
(arXiv 1602.05629), `iid` deals the shuffled samples out evenly. Of different sizes:
`dirichlet_by_class` is Floco's other scheme, `natural` keeps data with the writers they come from.

A client's local test samples have the label distribution of its training samples
(`local_test_indices`) or are its writer's own (`natural`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedkern import class_counts

from .data import Dataset
from .errors import ConfigError, unknown_name
from .seeding import generator

if TYPE_CHECKING:
    from .config import RunConfig  # which imports PARTITIONS

# How often `dirichlet_by_class` draws before it fills clients up: 0.1 s for 10 classes. With 100
# clients of CIFAR-10 and at least 10 samples each, 113 of 400 draws succeed at alpha 0.1, none at
# 0.05; with 20 clients of digits 90 and 5.
MAX_DRAWS = 100


@dataclass(frozen=True)
class Partition:
    """Which samples each client holds; no sample belongs to two clients.

    Attributes:
        indices: for each client an int64 tensor [n_k] of sample positions; may be empty.
        discarded: how many samples no client holds.
        test_indices: for each client an int64 tensor of the positions of its local test samples;
            may be empty. None if the test set was not shared out.
    """

    indices: list[Tensor]
    discarded: int
    test_indices: list[Tensor] | None = None

    @property
    def sizes(self) -> list[int]:
        """The number of samples of each client."""
        return [len(index) for index in self.indices]

    @property
    def clients_without_data(self) -> list[int]:
        """The clients that hold no sample: they keep weight 0 in every round."""
        return [client for client, size in enumerate(self.sizes) if size == 0]

    def label_counts(self, targets: Tensor, num_classes: int) -> Tensor:
        """How often each client holds each class: int64 [clients, num_classes]."""
        return torch.stack([class_counts(targets[index], num_classes) for index in self.indices])


def dirichlet(targets: Tensor, clients: int, alpha: float, seed: int) -> Partition:
    """Label-skewed clients of the same expected size.

    Each client draws class proportions from Dirichlet(alpha, ..., alpha) over the classes that
    occur. All proportions are scaled by the largest factor for which no class runs out, and each
    class is cut accordingly. What then remains of the other classes is discarded; the smaller
    alpha, the more. There is no rejection, so this ends for every alpha > 0.

    Args:
        targets: class indices, int64 [n], on the CPU.
        clients: how many clients, at least 1.
        alpha: concentration, > 0: small gives clients of few classes, large near-IID ones.
        seed: of the run; client k's proportions depend on (seed, k) only.

    Raises:
        ConfigError: `clients` or `alpha` is not positive.
    """
    _check_positive("clients", clients)
    _check_alpha(alpha)
    classes, counts = torch.unique(targets, return_counts=True)
    proportions = torch.stack(
        [
            _dirichlet_draw(len(classes), alpha, generator(seed, "partition proportions", client))
            for client in range(clients)
        ]
    )
    return _deal(targets, classes, _equal_cuts(proportions, counts), seed)


def dirichlet_by_class(
    targets: Tensor, clients: int, alpha: float, seed: int, least_samples: int = 10
) -> Partition:
    """Clients skewed in labels and in size, none too small; every sample is used.

    The scheme of Floco's experiments (arXiv 2403.03333), from FL-bench: class after class, the
    proportions of the clients are drawn from Dirichlet(alpha, ..., alpha), and the class is cut
    accordingly; clients that already hold their equal share of all samples get nothing more. All
    is drawn anew while a client holds fewer than `least_samples`, at most `MAX_DRAWS` times: then
    random samples of the largest clients fill the others up (the published code draws on, for ever
    if alpha is small).

    Args:
        targets: class indices, int64 [n], on the CPU.
        clients: how many clients, at least 1.
        alpha: concentration, > 0: small gives clients of few classes, large near-IID ones.
        seed: of the run.
        least_samples: how many samples each client holds at least; 0 for no such bound.

    Raises:
        ConfigError: `clients` or `alpha` is not positive, `least_samples` is negative or more than
            n / clients.
    """
    _check_positive("clients", clients)
    _check_alpha(alpha)
    if not 0 <= least_samples * clients <= len(targets):
        raise ConfigError(
            f"least_samples: wanted 0 to {len(targets) // clients} for {len(targets)} samples and "
            f"{clients} clients, got {least_samples}"
        )
    classes, counts = torch.unique(targets, return_counts=True)
    for draw in range(MAX_DRAWS):
        draws = generator(seed, "partition proportions by class", draw)
        cuts = _cuts_by_class(counts, clients, alpha, draws)
        if int(_sizes(cuts.sum(1)).min()) >= least_samples:
            return _deal(targets, classes, cuts, seed)
    partition = _deal(targets, classes, cuts, seed)
    draws = generator(seed, "partition filling up")
    return Partition(_fill_up(partition.indices, least_samples, draws), discarded=0)


def fold(targets: Tensor, clients: int, seed: int, folds: int = 5, share: float = 0.8) -> Partition:
    """Groups of clients that mostly hold the classes of their group; all of the same size.

    The five-fold scheme of Floco's experiments (arXiv 2403.03333). Clients and classes that occur
    are divided, in order and as evenly as possible, among `folds` groups. Each client draws `share`
    of its samples evenly from its group's classes and the rest evenly from the others. As in
    `dirichlet`, clients are as large as the scarcest class allows, and what remains is discarded:
    nothing if the classes are of one size, and their number and `clients` are multiples of `folds`.

    Args:
        targets: class indices, int64 [n], on the CPU.
        clients: how many clients, at least 1.
        seed: of the run.
        folds: how many groups. With 1, all classes are the group's own, whatever `share` is.
        share: of a client's samples that are of its group's classes, in [0, 1].

    Raises:
        ConfigError: `clients` is not positive, `folds` is not in 1 to the number of clients and of
            classes, or `share` is not in [0, 1].
    """
    _check_positive("clients", clients)
    classes, counts = torch.unique(targets, return_counts=True)
    if not 1 <= folds <= min(clients, len(classes)):
        raise ConfigError(
            f"folds: wanted 1 to {min(clients, len(classes))} for {clients} clients and "
            f"{len(classes)} classes, got {folds}"
        )
    if not 0 <= share <= 1:
        raise ConfigError(f"share: wanted a number in [0, 1], got {share}")
    if folds == 1:
        share = 1.0
    own = _groups(clients, folds).unsqueeze(1) == _groups(len(classes), folds)
    own_classes = own.sum(1, keepdim=True, dtype=torch.float64)
    other_classes = len(classes) - own_classes
    proportions = torch.where(own, share / own_classes, (1 - share) / other_classes)
    cuts = _equal_cuts(proportions, counts, _staggered(len(classes)))
    return _deal(targets, classes, cuts, seed)


def shards(targets: Tensor, clients: int, seed: int, shards: int = 2) -> Partition:
    """Clients of few classes: each gets some shards of the samples sorted by label.

    The pathological non-IID scheme of federated averaging (McMahan et al., arXiv 1602.05629,
    section 3). Shards differ in size by at most one sample; nothing is discarded.

    Args:
        targets: class indices, int64 [n], on the CPU.
        clients: how many clients, at least 1.
        seed: of the run.
        shards: how many each client gets, at least 1. If all clients' are more than n, some are
            empty.

    Raises:
        ConfigError: `clients` or `shards` is not positive.
    """
    _check_positive("clients", clients)
    _check_positive("shards", shards)
    by_label = torch.cat(_shuffled(targets, torch.unique(targets), seed, "partition samples"))
    pieces = by_label.tensor_split(clients * shards)
    order = torch.randperm(len(pieces), generator=generator(seed, "partition shards"))
    chosen = order.view(clients, shards).tolist()
    return Partition([torch.cat([pieces[shard] for shard in row]) for row in chosen], discarded=0)


def iid(targets: Tensor, clients: int, seed: int) -> Partition:
    """Clients whose samples are drawn alike; sizes differ by at most one, nothing is discarded.

    Args:
        targets: class indices, int64 [n], on the CPU; only their number matters.
        clients: how many clients, at least 1.
        seed: of the run.

    Raises:
        ConfigError: `clients` is not positive.
    """
    _check_positive("clients", clients)
    order = torch.randperm(len(targets), generator=generator(seed, "partition samples"))
    return Partition(list(order.tensor_split(clients)), discarded=0)


def natural(
    writers: Tensor, clients: int, seed: int, test_writers: Tensor | None = None
) -> Partition:
    """Clients that the data come with: each is a writer, drawn at random, with all its samples.

    For data such as FEMNIST. The samples of the writers that are not drawn are discarded; the
    clients are in increasing order of writer.

    Args:
        writers: the writer of each training sample, int64 [n], on the CPU.
        clients: how many writers are drawn, at least 1.
        seed: of the run.
        test_writers: the writer of each test sample, int64 [n_test]: a client's local test samples
            are its writer's. Those of writers that are not drawn belong to no client.

    Raises:
        ConfigError: `clients` is not positive, or there are fewer writers of training samples.
    """
    present = torch.unique(writers)
    if not 1 <= clients <= len(present):
        raise ConfigError(
            f"clients: wanted 1 to {len(present)}, the number of writers, got {clients}"
        )
    order = torch.randperm(len(present), generator=generator(seed, "partition writers"))
    chosen = present[order[:clients]].sort().values
    indices = _positions(writers, chosen)
    return Partition(
        indices,
        discarded=len(writers) - sum(map(len, indices)),
        test_indices=None if test_writers is None else _positions(test_writers, chosen),
    )


def local_test_indices(
    partition: Partition, y_train: Tensor, y_test: Tensor, seed: int
) -> list[Tensor]:
    """Test samples for each client, with the label distribution of its training samples.

    Of each class's test samples a client gets the share that it holds of the class's training
    samples, rounded up or down. Which ones is random, and no sample belongs to two clients.

    Args:
        partition: the clients' training samples.
        y_train: class indices of the training samples, int64 [n_train], on the CPU.
        y_test: class indices of the test samples, int64 [n_test], on the CPU. Those of a class
            without training samples belong to no client.
        seed: of the run.

    Returns:
        For each client an int64 tensor of positions in `y_test`; may be empty.
    """
    classes, counts = torch.unique(y_train, return_counts=True)
    held = partition.label_counts(y_train, int(classes[-1]) + 1)[:, classes]
    samples = _shuffled(y_test, classes, seed, "local test samples")
    test_counts = torch.tensor([len(positions) for positions in samples])
    # In integers: where all training samples of a class are held, so are all its test samples.
    rounding = (_staggered(len(classes)) * counts).long()
    return _cut(samples, (held.cumsum(0) * test_counts + rounding) // counts)


def make_partition(dataset: Dataset, config: RunConfig) -> Partition:
    """The partition of `dataset` that `config` names, with local test samples.

    Args:
        dataset: on the CPU.
        config: partition, clients, seed, and the settings of that partition.

    Raises:
        ConfigError: an unknown name, a setting that does not fit the data, or a natural partition
            of data that do not come with their writers.
    """
    if config.partition not in _SCHEMES:
        raise unknown_name("partition", config.partition, PARTITIONS)
    partition = _SCHEMES[config.partition](dataset, config)
    if partition.test_indices is not None:
        return partition
    tests = local_test_indices(partition, dataset.y_train, dataset.y_test, config.seed)
    return replace(partition, test_indices=tests)


def _natural(dataset: Dataset, config: RunConfig) -> Partition:
    if dataset.train_writers is None:
        raise ConfigError(
            "partition: wanted for natural a data set that comes with its clients (femnist), got "
            f"{dataset.name}"
        )
    return natural(dataset.train_writers, config.clients, config.seed, dataset.test_writers)


_SCHEMES: dict[str, Callable[[Dataset, RunConfig], Partition]] = {
    "dirichlet": lambda data, c: dirichlet(data.y_train, c.clients, c.alpha, c.seed),
    "dirichlet-by-class": lambda data, c: dirichlet_by_class(
        data.y_train, c.clients, c.alpha, c.seed, c.least_samples
    ),
    "fold": lambda data, c: fold(data.y_train, c.clients, c.seed, c.folds, c.fold_share),
    "shards": lambda data, c: shards(data.y_train, c.clients, c.seed, c.shards),
    "iid": lambda data, c: iid(data.y_train, c.clients, c.seed),
    "natural": _natural,
}
PARTITIONS = tuple(_SCHEMES)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name}: wanted at least 1, got {value}")


def _check_alpha(alpha: float) -> None:
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ConfigError(f"alpha: wanted a finite number > 0, got {alpha}")


# ---- cuts [clients, classes]: client k's samples of class c end at cuts[k, c] --------------------


def _equal_cuts(proportions: Tensor, counts: Tensor, rounding: Tensor | float = 0.0) -> Tensor:
    """Cuts by `proportions` [clients, classes], scaled until one class is used up."""
    # Cumulative shares, so that rounding neither loses nor repeats a sample of a class.
    taken = proportions.cumsum(0)
    return _whole(taken * (counts / taken[-1]).min(), counts, rounding)


def _cuts_by_class(counts: Tensor, clients: int, alpha: float, draws: torch.Generator) -> Tensor:
    """One draw of the cuts of `dirichlet_by_class`."""
    held = torch.zeros(clients, dtype=torch.int64)
    cuts = []
    for count in counts:
        # A Dirichlet's proportions of some clients, normalised, are a Dirichlet over those.
        wanting = held * clients < counts.sum()
        proportions = torch.zeros(clients, dtype=torch.float64)
        proportions[wanting] = _dirichlet_draw(int(wanting.sum()), alpha, draws)
        taken = proportions.cumsum(0)
        cuts.append(_whole(taken * (count / taken[-1]), count))
        held += _sizes(cuts[-1])
    return torch.stack(cuts, dim=1)


def _whole(taken: Tensor, counts: Tensor, rounding: Tensor | float = 0.0) -> Tensor:
    """Cuts at the real numbers `taken`: plus `rounding` in [0, 1), rounded down."""
    # The tiny factor keeps the scarcest class whole where the product rounds just below its count.
    return (taken * (1 + 1e-12) + rounding).floor().long().minimum(counts)


def _staggered(classes: int) -> Tensor:
    """What is added to each class's cuts before they are rounded down, float64 [classes].

    Without it a client with the same share of many classes would gain or lose the fraction of a
    sample in all of them at once. Successive multiples of the golden ratio, modulo 1, are spread
    evenly over [0, 1): what a client loses in some classes it gains in others.
    """
    golden_ratio = (1 + math.sqrt(5)) / 2
    return torch.arange(classes, dtype=torch.float64) * golden_ratio % 1


def _sizes(cuts: Tensor) -> Tensor:
    """How many samples each client gets, by cuts [clients] of one class or summed over all."""
    return cuts.diff(prepend=cuts.new_zeros(1))


def _groups(size: int, groups: int) -> Tensor:
    """Which of `groups` contiguous groups each of `size` things is in, int64 [size]."""
    return torch.arange(size) * groups // size


# ---- samples -------------------------------------------------------------------------------------


def _positions(labels: Tensor, values: Tensor) -> list[Tensor]:
    """For each of `values` its positions in `labels`, in increasing order."""
    ordered, positions = labels.sort(stable=True)
    starts = torch.searchsorted(ordered, values)
    ends = torch.searchsorted(ordered, values, right=True)
    return [positions[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def _shuffled(targets: Tensor, classes: Tensor, seed: int, purpose: str) -> list[Tensor]:
    """The positions of each class's samples in random order."""
    return [
        samples[torch.randperm(len(samples), generator=generator(seed, purpose, label))]
        for label, samples in zip(classes.tolist(), _positions(targets, classes), strict=True)
    ]


def _cut(samples: list[Tensor], cuts: Tensor) -> list[Tensor]:
    """Each client's `samples` by `cuts` [clients, classes], class after class."""
    pieces = [of.tensor_split(at) for of, at in zip(samples, cuts.T, strict=True)]
    return [torch.cat(piece) for piece in zip(*pieces, strict=True)][:-1]  # the last is no client's


def _deal(targets: Tensor, classes: Tensor, cuts: Tensor, seed: int) -> Partition:
    """Random samples of each class by `cuts` [clients, classes]."""
    samples = _shuffled(targets, classes, seed, "partition samples")
    return Partition(_cut(samples, cuts), discarded=len(targets) - int(cuts[-1].sum()))


def _fill_up(indices: list[Tensor], least: int, draws: torch.Generator) -> list[Tensor]:
    """Moves random samples from the largest clients to those with fewer than `least`."""
    samples = [index[torch.randperm(len(index), generator=draws)].tolist() for index in indices]
    largest = [(-len(held), client) for client, held in enumerate(samples)]
    heapify(largest)
    for held in samples:
        while len(held) < least:
            size, client = largest[0]
            held.append(samples[client].pop())
            heapreplace(largest, (size + 1, client))
    return [torch.tensor(held, dtype=torch.int64) for held in samples]


def _dirichlet_draw(size: int, alpha: float, draws: torch.Generator) -> Tensor:
    """One draw of Dirichlet(alpha, ..., alpha), float64 [size].

    In logarithms, by Gamma(alpha) = Gamma(alpha + 1) U^(1 / alpha): with alpha = 0.01 ordinary
    gamma variates underflow to 0, and where all of them do their proportions would be nan.
    """
    gamma = torch._standard_gamma(
        torch.full((size,), alpha + 1, dtype=torch.float64), generator=draws
    )
    uniform = 1 - torch.rand(size, dtype=torch.float64, generator=draws)  # in (0, 1]
    return (gamma.log() + uniform.log() / alpha).softmax(0)
