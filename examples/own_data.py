"""Federated training on data of your own, from an .npz file.

    python examples/own_data.py [FILE.npz]

Without a file it writes one that stands for yours, my_data.npz: handwritten digits as uint8 images
[n, height, width], with integer labels [n]. Colour images [n, height, width, channels] or floating
features [n, d] do as well. From the command line:

    fedkern compare fedavg fedga --dataset my_data.npz --alpha 0.1 --seeds 1
"""

import sys

import numpy as np

from fedkern import fl


def write_file(path: str) -> None:
    """The four arrays of a data set, by the names that they must have."""
    digits = fl.load_dataset("digits")
    np.savez_compressed(
        path,
        x_train=digits.x_train[:, 0].numpy(),
        y_train=digits.y_train.numpy(),
        x_test=digits.x_test[:, 0].numpy(),
        y_test=digits.y_test.numpy(),
    )


def main(path: str = "") -> None:
    if not path:
        path = "my_data.npz"
        write_file(path)
    config = fl.RunConfig(dataset=path, alpha=0.1)
    dataset = fl.load_dataset(config.dataset)
    partition = fl.make_partition(dataset, config)
    print(f"{len(dataset.y_train)} training samples, {partition.discarded} in no client's hands")
    for method in (fl.FedAvg(), fl.FedGA()):
        model = fl.build_model("auto", dataset, fl.generator(config.seed, "model"))
        *_, last = fl.simulate(method, model, fl.make_clients(dataset, partition), config)
        print(f"{type(method).__name__}: test accuracy {last.evaluation.accuracy:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
