import math

import pytest
import torch

from fedkern import fl


def test_defaults_of_the_data_sets():
    def shape(config):
        return config.clients, config.clients_per_round, config.batch_size, config.rounds

    assert shape(fl.RunConfig()) == shape(fl.RunConfig.for_dataset("digits")) == (20, 5, 32, 50)
    assert shape(fl.RunConfig.for_dataset("mnist")) == (100, 10, 64, 100)
    assert shape(fl.RunConfig.for_dataset("fashion-mnist")) == (100, 10, 64, 100)
    for name in ("cifar10", "cifar100", "svhn", "tiny-imagenet"):
        assert shape(fl.RunConfig.for_dataset(name)) == (100, 10, 64, 200)
    assert shape(fl.RunConfig.for_dataset("femnist")) == (100, 30, 50, 500)
    assert fl.RunConfig.for_dataset("femnist").partition == "natural"
    assert fl.RunConfig.for_dataset("tiny-imagenet").model == "resnet20"
    config = fl.RunConfig.for_dataset("cifar10")
    assert (config.local_epochs, config.lr, config.clip, config.alpha) == (2, 0.1, 5.0, 0.1)


def test_given_values_win_over_defaults_and_none_does_not():
    config = fl.RunConfig.for_dataset("mnist", rounds=7, clients=None, momentum=0.0)
    assert (config.dataset, config.rounds, config.clients) == ("mnist", 7, 100)


@pytest.mark.parametrize(
    "name",
    [
        "clients",
        "clients_per_round",
        "rounds",
        "local_epochs",
        "batch_size",
        "eval_every",
        "threads",
        "workers",
        "folds",
        "shards",
    ],
)
@pytest.mark.parametrize("value", [0, -3])
def test_counts_must_be_positive(name, value):
    with pytest.raises(fl.ConfigError, match=f"^{name}: wanted an integer >= 1, got {value}$"):
        fl.RunConfig(**{name: value})


@pytest.mark.parametrize("name", ["alpha", "lr"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_rates_must_be_positive(name, value):
    with pytest.raises(fl.ConfigError, match=f"^{name}: wanted a finite number > 0, got {value}$"):
        fl.RunConfig(**{name: value})


@pytest.mark.parametrize("name", ["momentum", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_momentum_and_decay_must_not_be_negative(name, value):
    with pytest.raises(fl.ConfigError, match=f"^{name}: wanted a finite number >= 0, got {value}$"):
        fl.RunConfig(**{name: value})


@pytest.mark.parametrize("value", [0.0, -5.0, math.nan])
def test_clip_must_be_positive(value):
    with pytest.raises(fl.ConfigError, match=f"^clip: wanted a number > 0 .*, got {value}$"):
        fl.RunConfig(clip=value)
    fl.RunConfig(clip=math.inf)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clients_per_round": 21}, "^clients_per_round: wanted at most clients = 20, got 21$"),
        ({"min_clients": 6}, "^min_clients: wanted at most clients_per_round = 5, got 6$"),
        ({"fail_rate": 1.0}, r"^fail_rate: wanted a number in \[0, 1\), got 1.0$"),
        ({"fail_rate": -0.1}, r"^fail_rate: wanted a number in \[0, 1\), got -0.1$"),
        ({"fail_rate": math.nan}, r"^fail_rate: wanted a number in \[0, 1\), got nan$"),
        ({"model": "lenett"}, "^model: wanted one of .*, got 'lenett' .did you mean 'lenet'?"),
        ({"partition": "idd"}, "^partition: wanted one of .*, got 'idd' .did you mean 'iid'?"),
        ({"buffers": "keep"}, "^buffers: wanted one of aggregate, frozen, local, got 'keep'"),
        ({"engine": "serail"}, "^engine: wanted one of auto, serial, vmap, got 'serail' .did you"),
        ({"layers": "slow"}, "^layers: wanted one of fast, plain, got 'slow'$"),
        (
            {"engine": "vmap", "compile": True},
            "^compile: wanted engine serial or auto, got vmap$",
        ),
        ({"augment": "crop,crop"}, "^augment: wanted each name once, got 'crop,crop'$"),
        ({"augment": "rotate"}, "^augment: wanted one of crop, flip, got 'rotate'"),
        ({"least_samples": -1}, "^least_samples: wanted an integer >= 0, got -1$"),
        ({"fold_share": 1.5}, r"^fold_share: wanted a number in \[0, 1\], got 1.5$"),
        ({"fold_share": math.nan}, r"^fold_share: wanted a number in \[0, 1\], got nan$"),
        ({"device": "gpu"}, "^device: wanted auto, cpu, cuda or cuda:N, got 'gpu'$"),
        ({"device": "meta"}, "^device: wanted auto, cpu, cuda or cuda:N, got 'meta'$"),
        ({"device": "cuda:99"}, "^device: wanted .* got 'cuda:99', but PyTorch sees"),
    ],
)
def test_other_bad_settings(settings, message):
    with pytest.raises(fl.ConfigError, match=message) as caught:
        fl.RunConfig(**settings)
    assert "\n" not in str(caught.value)


def test_engines():
    defaults = fl.RunConfig()
    assert (defaults.engine, defaults.layers, defaults.compile) == ("serial", "fast", False)
    assert (defaults.workers, defaults.threads) == (None, 1)
    assert fl.RunConfig.for_dataset("mnist", workers=3, engine="auto", compile=True).workers == 3


def test_device():
    assert fl.RunConfig(device="cpu").torch_device() == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert fl.RunConfig().torch_device() == torch.device(expected)


def test_augmentations():
    assert fl.RunConfig().augmentations == ()
    assert fl.RunConfig(augment="flip, crop").augmentations == ("flip", "crop")
