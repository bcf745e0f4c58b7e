"""A federated method of your own, beside FedAvg.

    python examples/own_method.py

Where clients' classes are skewed, the global model swings from round to round with those who take
part. The method evaluates a moving average of the global models instead (Polyak averaging); clients
and server go on from the latest one. Printed are the test accuracies of the last ten rounds, for
three seeds. A longer memory (decay 0.9) is worse here: the average lags behind.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from statistics import fmean

from fedkern import fl


@dataclass(frozen=True)
class MovingAverage(fl.FedAvg):
    """FedAvg; its global model is the exponential moving average of those of all rounds."""

    decay: float = 0.7

    def end_round(self, server: fl.Server) -> None:
        """Brings the average up to date; what is in `Server.state` lasts from round to round."""
        latest = server.model.values
        average = server.state.get("average", latest)
        server.state["average"] = average.lerp(latest, 1 - self.decay)

    def global_model(self, server: fl.Server) -> AbstractContextManager[None]:
        """What is evaluated: the average, with the latest model's buffers."""
        latest = server.model.state
        return server.model.holding(latest._replace(values=server.state["average"]))


def main() -> None:
    dataset = fl.load_dataset("digits")
    for seed in range(3):
        config = replace(fl.RunConfig.for_dataset("digits"), seed=seed)
        partition = fl.make_partition(dataset, config)
        for method in (fl.FedAvg(), MovingAverage()):
            model = fl.build_model("mlp", dataset, fl.generator(seed, "model"))
            rounds = fl.simulate(method, model, fl.make_clients(dataset, partition), config)
            last = [round.evaluation.accuracy for round in rounds][-10:]
            name, mean, lowest = type(method).__name__, fmean(last), min(last)
            print(f"seed {seed}, {name}: mean accuracy {mean:.3f}, lowest {lowest:.3f}")


if __name__ == "__main__":
    main()
