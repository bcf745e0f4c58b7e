"""Federated training on arrays of your own: FedAvg and FedGA on the same skewed clients.

    python examples/own_data.py

From the command line the same works with an .npz file that holds the four arrays:
`fedkern compare fedavg fedga --dataset my_data.npz`.
"""

import numpy as np

from fedkern import fl


def my_arrays(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stands for your data: features [n, 20] and integer labels [n] of five classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, samples)
    return rng.normal(size=(samples, 20)) + np.eye(5, 20)[labels] * 3, labels


dataset = fl.Dataset.from_arrays("mine", *my_arrays(2000, seed=0), *my_arrays(500, seed=1))
config = fl.RunConfig(clients=20, clients_per_round=5, rounds=20, alpha=0.1)
partition = fl.make_partition(dataset, config)
print(f"{partition.discarded} of {len(dataset.y_train)} training samples are in no client's hands")

for method in (fl.FedAvg(), fl.FedGA()):
    model = fl.build_model("mlp", dataset, fl.generator(config.seed, "model"))
    *_, last = fl.simulate(method, model, fl.make_clients(dataset, partition), config)
    print(f"{type(method).__name__}: test accuracy {last.evaluation.accuracy:.3f}")
