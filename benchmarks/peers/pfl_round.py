"""Rounds of FedAvg with Apple's pfl-research, as its own image classification benchmark runs them.

The one difference in what is computed: pfl takes a client's data in the same order in every epoch,
so here they are shuffled once, before the first round.
"""

import os
from importlib.metadata import version
from time import perf_counter

import task
import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from fedkern import fl


class Classifier(nn.Module):
    """The task's network with what pfl asks of a model: `loss` and `metrics`."""

    def __init__(self) -> None:
        super().__init__()
        self.network = task.new_model()

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.network(inputs), targets)

    @torch.no_grad()
    def metrics(self, inputs: Tensor, targets: Tensor) -> dict[str, Weighted]:
        correct = (self.network(inputs).argmax(1) == targets).sum().item()
        return {"accuracy": Weighted(correct, len(targets))}


class Clock(TrainingProcessCallback):
    """Notes when each round ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.ends.append(perf_counter())
        return False, Metrics()


def federated_dataset(rounds: int) -> FederatedDataset:
    """The clients' data, each in a random order; the clients of all rounds, one after the other."""
    seed = task.CONFIG.seed
    users = [task.shuffled(c, fl.generator(seed, "pfl", c.number)) for c in task.clients()]
    order = (user for number in range(1, rounds + 1) for user in task.sampled(number))
    return FederatedDataset.from_slices(users, lambda: next(order))


def main() -> None:
    options = task.arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    os.environ["PFL_PYTORCH_DEVICE"] = "cpu"  # it would take a GPU where there is one
    total = options.warm_up + options.rounds
    config = task.CONFIG
    classifier, clock = Classifier(), Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=total,
            evaluation_frequency=total,  # the first round only, which is never timed
            train_cohort_size=config.clients_per_round,
            val_cohort_size=None,
        ),
        SimulatedBackend(
            training_data=federated_dataset(total),
            val_data=None,
            postprocessors=[WeightByUser()],
        ),
        PyTorchModel(
            classifier,
            local_optimizer_create=torch.optim.SGD,
            # The mean of the clients' changes is its gradient, so at rate 1 it takes their mean.
            central_optimizer=torch.optim.SGD(classifier.parameters(), lr=1.0),
        ),
        NNTrainHyperParams(
            local_batch_size=config.batch_size,
            local_num_epochs=config.local_epochs,
            local_learning_rate=config.lr,
            local_max_grad_norm=config.clip,
        ),
        callbacks=[clock],
        send_metrics_to_platform=False,  # which would print them
    )
    task.report("pfl", version("pfl"), clock.ends, options.warm_up, classifier.network)


if __name__ == "__main__":
    main()
