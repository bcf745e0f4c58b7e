"""Methods with Flower's messages: equal to our own loop, whatever clients do."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("flwr", reason="needs Flower: pip install '.[flower]'")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping
from local_grid import LocalGrid, federation

from fedkern import fl
from fedkern.integrations.flower import MethodStrategy

DIGITS = fl.load_dataset("digits")
CONFIG = fl.RunConfig(clients=6, clients_per_round=4, rounds=4, seed=3, workers=1)
PARTITION = fl.make_partition(DIGITS, CONFIG)
ELSEWHERE = [
    "fedavg",
    "fedga",
    "floco",
    "floco+",
    "ditto",
    "fedprox",
    "fedntd",
    "balanced_softmax",
    "fedlc",
]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What Flower's log has."""
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "flwr")
    yield caplog
    logger.removeHandler(caplog.handler)


def method_of(name: str) -> fl.Method:
    return fl.build_method(name, tau=3, endpoints=4)


def clients() -> list[fl.Client]:
    return fl.make_clients(DIGITS, PARTITION)


def mlp() -> nn.Module:
    return fl.build_model("mlp", DIGITS, fl.generator(0, "model"))


def with_batch_norm() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    return nn.Sequential(*layers)


@dataclass
class Federation:
    """A strategy, its model and its nodes."""

    strategy: MethodStrategy
    model: nn.Module
    grid: LocalGrid

    @classmethod
    def of(
        cls,
        method: fl.Method,
        config: fl.RunConfig = CONFIG,
        new_model: Callable[[], nn.Module] = mlp,
        grid: LocalGrid | None = None,
        **options: object,
    ) -> Federation:
        model = new_model()
        strategy = MethodStrategy(method, model, config, **options)
        return cls(strategy, model, grid or federation(clients(), new_model))

    def failures(self) -> list[tuple[int, int, str]]:
        """Round, client, cause."""
        return [(r.number, *f[:2]) for r in self.strategy.rounds for f in r.failures]


def simulated(
    method: fl.Method, config: fl.RunConfig = CONFIG, new_model: Callable[[], nn.Module] = mlp
) -> tuple[list[fl.Round], nn.Module]:
    model = new_model()
    return list(fl.simulate(method, model, clients(), config)), model


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-6, atol=1e-7, msg=name)


# ---- what our own loop does ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_run_is_that_of_our_own_loop(name):
    rounds, model = simulated(method_of(name))
    there = Federation.of(method_of(name))
    result = there.strategy.start(there.grid)
    assert_same(model, there.model)
    for ours, theirs in zip(rounds, there.strategy.rounds, strict=True):
        assert theirs.train_loss == pytest.approx(ours.train_loss, rel=1e-6)
        assert (theirs.number, theirs.clients) == (ours.number, 4)
        figures = result.evaluate_metrics_clientapp[ours.number]
        for prefix, own in (("", ours.global_on_local), ("personal-", ours.personal_on_local)):
            if own is None:
                assert f"{prefix}accuracy" not in figures
                continue
            of_clients = {
                f"{prefix}accuracy": own.pooled_accuracy,
                f"{prefix}loss": own.cross_entropy,
                f"mean-{prefix}accuracy": own.mean_accuracy,
                f"worst-{prefix}accuracy": own.worst_accuracy,
                f"lowest-tenth-{prefix}accuracy": own.lowest_tenth_accuracy,
                f"std-{prefix}accuracy": own.std_accuracy,
            }
            assert {k: figures[k] for k in of_clients} == pytest.approx(of_clients, abs=1e-5)


def test_convolutions_in_their_own_memory_format():
    def model() -> nn.Module:
        torch.manual_seed(0)
        layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten())
        made = nn.Sequential(*layers, nn.Linear(96, 10))
        return made.to(memory_format=torch.channels_last)

    _, ours = simulated(fl.FedAvg(), new_model=model)
    there = Federation.of(fl.FedAvg(), new_model=model)
    there.strategy.start(there.grid)
    assert_same(ours, there.model)


@pytest.mark.parametrize("buffers", ["aggregate", "local", "frozen"])
@pytest.mark.parametrize("name", ["fedga", "floco+"])
def test_batch_norm(name, buffers):
    config = replace(CONFIG, buffers=buffers)
    _, model = simulated(method_of(name), config, with_batch_norm)
    there = Federation.of(method_of(name), config, with_batch_norm)
    there.strategy.start(there.grid)
    assert_same(model, there.model)


@pytest.mark.parametrize(
    "options",
    [
        {"aggregation": "median"},
        {"aggregation": "clipped_mean", "weighting": "samples"},
        {"server_optimizer": "adam"},
        {"compat": "fedga"},
        {"loss": "calibrated_ce", "counts": "client", "calibration": "gradient"},
    ],
    ids=lambda options: next(iter(options.values())),
)
def test_options_reach_the_clients(options):
    config = replace(CONFIG, momentum=0.5, weight_decay=1e-3, batch_size=20, local_epochs=1)
    method = fl.build_method("fedavg", **options)
    _, model = simulated(method, config)
    there = Federation.of(method, config)
    there.strategy.start(there.grid)
    assert_same(model, there.model)


@dataclass(frozen=True)
class Own(fl.FedAvg):
    """A method that fedkern has not."""

    def local_work(self, client):
        (work,) = super().local_work(client)
        return [replace(work, pull=0.5)]


def test_a_method_of_ones_own():
    _, model = simulated(Own())
    there = Federation.of(Own(), grid=federation(clients(), mlp, Own()))
    there.strategy.start(there.grid)
    assert_same(model, there.model)


def test_a_method_of_ones_own_that_clients_are_not_given():
    there = Federation.of(Own())
    with pytest.raises(fl.RunError, match=r"^round 1: wanted .*'method: wanted the strategy's own"):
        there.strategy.start(there.grid)


@pytest.mark.parametrize("name", sorted({*fl.METHODS} - {*ELSEWHERE}))
def test_methods_that_need_more_than_messages_are_refused(name):
    with pytest.raises(fl.ConfigError, match=r"^method: wanted one for clients elsewhere, got "):
        MethodStrategy(fl.build_method(name), mlp(), CONFIG)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_available_nodes": 0}, "min_available_nodes: wanted an integer >= 1, got 0"),
        ({"fraction_evaluate": 1.5}, r"fraction_evaluate: wanted a number in \[0, 1\], got 1.5"),
        ({"method": fl.Floco()}, "clients: wanted at least 10 with data"),
        ({"model": mlp().bfloat16()}, "model: wanted parameters of a type that NumPy has"),
    ],
    ids=["min_available_nodes", "fraction_evaluate", "method", "model"],
)
def test_bad_arguments(options, message):
    given = {"method": fl.FedAvg(), "model": mlp(), "config": CONFIG, **options}
    with pytest.raises(fl.ConfigError, match=f"^{message}"):
        MethodStrategy(**given)


# ---- what travels --------------------------------------------------------------------------------


def test_only_what_is_trained_travels_by_its_name():
    there = Federation.of(method_of("floco"), new_model=with_batch_norm)
    there.grid = federation(clients(), with_batch_norm)
    there.strategy.start(there.grid)
    names = {*dict(there.model.named_parameters()), *dict(there.model.named_buffers())}
    assert "4.endpoints" in names
    assert "4.weight" not in names
    for kind, _, content, reply in there.grid.log:
        if kind == "train":
            assert {*content["arrays"]} == {*reply.content["arrays"]} == names


def test_frozen_parameters_stay():
    def model() -> nn.Module:
        made = mlp()
        next(made.parameters()).requires_grad_(False)
        return made

    _, ours = simulated(fl.FedAvg(), new_model=model)
    there = Federation.of(fl.FedAvg(), new_model=model)
    there.strategy.start(there.grid)
    assert_same(ours, there.model)
    _, *trained = dict(there.model.named_parameters())
    for kind, _, content, _ in there.grid.log:
        if kind == "train":
            assert [*content["arrays"]] == trained


def test_what_a_client_sends():
    there = Federation.of(fl.FedGA())
    there.strategy.start(there.grid)
    for kind, node, _, reply in there.grid.log:
        sent = {key: {*record} for key, record in reply.content.items()}
        client = clients()[(1000 - node) // 7]
        if kind == "query.join":
            assert sent == {"config": {"number", "samples", "test-samples"}}
            assert reply.content["config"]["samples"] == len(client)
        elif kind == "train":
            metrics = {"num-examples", "train-loss"}
            assert sent == {"arrays": sent["arrays"], "metrics": metrics, "config": {"had", "has"}}
        else:
            assert kind == "evaluate"
            assert sent == {"metrics": {"num-examples", "accuracy", "loss"}}


@pytest.mark.parametrize("name", ["floco", "floco+"])
def test_statistics_travel_once(name):
    there = Federation.of(method_of(name))
    there.strategy.start(there.grid)
    asked = [(kind, node) for kind, node, *_ in there.grid.log if kind == "train.statistics"]
    assert sorted(node for _, node in asked) == sorted(there.grid.nodes)
    place = [kind for kind, *_ in there.grid.log if kind != "evaluate"].index("train.statistics")
    assert place == 6 + 2 * 4  # after six have joined and two rounds of four
    for kind, _, _, reply in there.grid.log:
        if kind == "train.statistics":
            (answer,) = reply.content["arrays"].values()
            assert {*reply.content} == {"arrays"}
            assert answer.shape == (
                4
                * 10
                * dict(there.model.named_parameters())[
                    next(n for n in dict(there.model.named_parameters()) if "endpoints" in n)
                ].shape[-1],
            )


def test_personal_models_stay_with_the_node():
    there = Federation.of(fl.Ditto())
    there.strategy.start(there.grid)
    kept = [
        node
        for node in there.grid.nodes.values()
        if "fedkern.models.personal" in node.context.state
    ]
    assert kept
    for kind, _, content, reply in there.grid.log:
        if kind == "train":
            assert {*content["arrays"]} == {*reply.content["arrays"]}
            assert len(reply.content.array_records) == 1


def test_a_users_own_records_travel_too():
    there = Federation.of(fl.FedAvg(), replace(CONFIG, rounds=1))
    there.strategy.start(
        there.grid,
        train_config=ConfigRecord({"mine": 1}),
        evaluate_config=ConfigRecord({"yours": 2}),
    )
    found = {kind: content.get("config") for kind, _, content, _ in there.grid.log}
    for kind, own in (("train", {"mine": 1}), ("evaluate", {"yours": 2})):
        theirs = {k: v for k, v in found[kind].items() if not k.startswith("fedkern.")}
        assert theirs == {**own, "server-round": 1}


# ---- bad replies ---------------------------------------------------------------------------------


def arrays_with(change: Callable[[dict[str, Array]], object]) -> Callable[[RecordDict], None]:
    def changed(content: RecordDict) -> None:
        arrays = dict(content["arrays"])
        change(arrays)
        content["arrays"] = ArrayRecord(arrays)

    return changed


def numbers_with(
    change: Callable[[np.ndarray], np.ndarray], which: int = 0
) -> Callable[[RecordDict], None]:
    def changed(arrays: dict[str, Array]) -> None:
        name = [*arrays][which]
        arrays[name] = Array(change(arrays[name].numpy().copy()))

    return arrays_with(changed)


def put(value: float) -> Callable[[RecordDict], None]:
    def changed(array: np.ndarray) -> np.ndarray:
        array.flat[-1] = value
        return array

    return numbers_with(changed)


def rewritten(**values: object) -> Callable[[RecordDict], None]:
    """The first array's fields are others than its bytes say."""

    def changed(arrays: dict[str, Array]) -> None:
        name = next(iter(arrays))
        own = arrays[name]
        fields = {"dtype": own.dtype, "shape": own.shape, "stype": own.stype, "data": own.data}
        arrays[name] = Array(**{**fields, **values})

    return arrays_with(changed)


def liar(shape: tuple[int, ...]) -> bytes:
    """The beginning of an array of many numbers, and none of them."""
    whole = Array(np.zeros(1, np.float32)).data
    return whole.replace(b"(1,), }", f"{shape}, }}".encode())


def metrics_with(**values: object) -> Callable[[RecordDict], None]:
    def changed(content: RecordDict) -> None:
        given = {**content["metrics"], **{k.replace("_", "-"): v for k, v in values.items()}}
        content["metrics"] = MetricRecord({k: v for k, v in given.items() if v is not None})

    return changed


def without(key: str) -> Callable[[RecordDict], None]:
    return lambda content: content.pop(key)


BAD = {
    "a name is missing": (arrays_with(lambda a: a.pop(next(iter(a)))), "refused"),
    "a name too many": (arrays_with(lambda a: a.update(extra=next(iter(a.values())))), "refused"),
    "another name": (
        arrays_with(lambda a: a.update(extra=a.pop(next(iter(a))))),
        "refused",
    ),
    "no arrays": (arrays_with(dict.clear), "refused"),
    "shape": (numbers_with(lambda a: a[:-1]), "refused"),
    "transposed": (numbers_with(lambda a: a.T.copy()), "refused"),
    "dtype": (numbers_with(lambda a: a.astype(np.float64)), "refused"),
    "half": (numbers_with(lambda a: a.astype(np.float16)), "refused"),
    "integers": (numbers_with(lambda a: a.astype(np.int32)), "refused"),
    "complex": (numbers_with(lambda a: a.astype(np.complex64)), "refused"),
    "text": (numbers_with(lambda a: a.astype(str)), "refused"),
    "nan": (put(math.nan), "not finite"),
    "infinity": (put(math.inf), "not finite"),
    "garbage": (rewritten(data=b"\x93NUMPY garbage"), "refused"),
    "no bytes": (rewritten(data=b""), "refused"),
    "another format": (rewritten(stype="pickle"), "refused"),
    "a lie about shape": (rewritten(data=Array(np.zeros(3, np.float32)).data), "refused"),
    "a lie about much": (rewritten(data=liar((2**45,))), "refused"),
    "no loss": (metrics_with(train_loss=None), "refused"),
    "loss nan": (metrics_with(train_loss=math.nan), "not finite"),
    "losses": (metrics_with(train_loss=[1.0, 2.0]), "refused"),
    "no samples": (metrics_with(num_examples=0), "refused"),
    "fewer than no samples": (metrics_with(num_examples=-3), "refused"),
    "half a sample": (metrics_with(num_examples=0.5), "refused"),
    "too many samples": (metrics_with(num_examples=2**62), "refused"),
    "no metrics": (without("metrics"), "refused"),
    "no model": (without("arrays"), "refused"),
    "no word": (without("config"), "refused"),
    "nothing": (RecordDict.clear, "refused"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_reply_is_refused_and_never_averaged(what):
    change, cause = BAD[what]
    config = replace(CONFIG, clients_per_round=6, rounds=2)

    def tampered(asked: Message, reply: Message) -> Message:
        if asked.metadata.message_type == "train":
            change(reply.content)
        return reply

    there = Federation.of(fl.FedAvg(), config)
    there.grid.nodes[1000 - 7 * 2].tamper = tampered
    there.strategy.start(there.grid)
    assert there.failures() == [(1, 2, cause), (2, 2, cause)]
    assert [round.clients for round in there.strategy.rounds] == [5, 5]
    # As if the client had raised an error.
    again = Federation.of(fl.FedAvg(), config)
    again.grid.nodes[1000 - 7 * 2].tamper = raising
    again.strategy.start(again.grid)
    assert_same(again.model, there.model)


def raising(asked: Message, reply: Message) -> Message:
    if not asked.metadata.message_type.startswith("train"):
        return reply
    return Message(Error(2, "<class 'OSError'>:<'disk'>\nmore"), reply_to=asked)


def silent(asked: Message, reply: Message) -> Message | None:
    return None if asked.metadata.message_type.startswith("train") else reply


def test_a_failure_says_what_was_wanted_and_what_came(said):
    there = Federation.of(fl.FedAvg(), replace(CONFIG, clients_per_round=6, rounds=1))
    (name, *_) = dict(there.model.named_parameters())
    for number, tamper in enumerate(
        (
            raising,
            silent,
            lambda asked, reply: changed(asked, reply, BAD["shape"][0]),
            lambda asked, reply: changed(asked, reply, BAD["dtype"][0]),
            lambda asked, reply: changed(asked, reply, BAD["a name too many"][0]),
        )
    ):
        there.grid.nodes[1000 - 7 * number].tamper = tamper
    there.strategy.start(there.grid, timeout=5)
    messages = {f.client: f.message for f in there.strategy.rounds[0].failures}
    assert messages[0] == "<class 'OSError'>:<'disk'>"
    assert messages[1] == "none within 5 s"
    shape = (*dict(there.model.named_parameters())[name].shape,)
    wanted = f"arrays: wanted {name} of torch.float32, shape {shape}, got "
    assert messages[2] == f"{wanted}shape {(shape[0] - 1, shape[1])}"
    assert messages[3] == f"{wanted}torch.float64, shape {shape}"
    assert messages[4].endswith("got a difference: extra, which was there, too")
    for number in range(5):
        assert f"client {number} was left out" in said.text


def changed(asked: Message, reply: Message, change: Callable[[RecordDict], None]) -> Message:
    if asked.metadata.message_type == "train":
        change(reply.content)
    return reply


@pytest.mark.parametrize(
    "change",
    [
        arrays_with(lambda a: a.update(extra=a["answer"])),
        arrays_with(dict.clear),
        numbers_with(lambda a: a[:-1]),
        numbers_with(lambda a: a.astype(np.float64)),
        without("arrays"),
        put(math.nan),
    ],
    ids=["extra", "none", "shape", "dtype", "nothing", "nan"],
)
def test_bad_statistics_are_left_out(change):
    def tampered(asked: Message, reply: Message) -> Message:
        if asked.metadata.message_type == "train.statistics":
            change(reply.content)
        return reply

    there = Federation.of(method_of("floco"))
    there.grid.nodes[1000].tamper = tampered
    there.strategy.start(there.grid)
    placed = [c.number for c in there.strategy._server.clients if "center" in c.state]
    assert placed == [1, 2, 3, 4, 5]
    assert [(r.clients, r.failed) for r in there.strategy.rounds] == [(4, 0)] * 4


def test_too_few_replies_end_the_run_and_it_can_go_on(tmp_path):
    there = Federation.of(fl.FedAvg(), checkpoints=checkpoints(tmp_path, CONFIG))
    strategy, grid = there.strategy, there.grid

    def stop_in_round_3(asked: Message, reply: Message) -> Message:
        rounds = len(strategy.rounds)
        return raising(asked, reply) if rounds == 2 else reply

    for node in grid.nodes.values():
        node.tamper = stop_in_round_3
    with pytest.raises(fl.RunError, match=r"^round 3: wanted at least min_clients = 1 .* got 0;"):
        strategy.start(grid)
    again = Federation.of(fl.FedAvg(), checkpoints=checkpoints(tmp_path, CONFIG))
    again.strategy.start(again.grid)
    assert_same(simulated(fl.FedAvg())[1], again.model)


def test_with_min_clients_0_a_round_may_pass_without_anybody():
    there = Federation.of(fl.FedAvg(), replace(CONFIG, min_clients=0, rounds=2))
    before = [p.clone() for p in there.model.parameters()]
    for node in there.grid.nodes.values():
        node.tamper = silent
    there.strategy.start(there.grid, timeout=1)
    assert [(r.clients, r.failed) for r in there.strategy.rounds] == [(0, 4), (0, 4)]
    assert all(map(torch.equal, before, there.model.parameters()))


# ---- nodes that come and go ----------------------------------------------------------------------


def without_node(number: int) -> tuple[LocalGrid, Callable[[], None]]:
    """A federation in which a client's node is not there yet; brings it."""
    grid = federation(clients(), mlp)
    late = grid.nodes.pop(1000 - 7 * number)
    return grid, lambda: grid.nodes.update({5000 + number: late})


def test_a_late_client_takes_part_from_then_on():
    grid, bring = without_node(2)
    there = Federation.of(
        method_of("floco"),
        replace(CONFIG, clients_per_round=6),
        grid=grid,
        min_available_nodes=5,
    )

    def evaluate(round: int, arrays: ArrayRecord) -> None:
        if round == 3:
            bring()

    there.strategy.start(grid, evaluate_fn=evaluate)
    assert [round.clients for round in there.strategy.rounds] == [5, 5, 5, 6]
    placed = [c.number for c in there.strategy._server.clients if "center" in c.state]
    assert placed == [0, 1, 3, 4, 5]  # tau has passed: it has the whole simplex


def test_it_waits_for_nodes(monkeypatch, said):
    grid, bring = without_node(2)
    monkeypatch.setattr("fedkern.integrations.flower.nodes.sleep", lambda _: bring())
    there = Federation.of(fl.FedAvg(), grid=grid)
    there.strategy.start(grid)
    assert "waiting for 6 clients, 5 are there" in said.text or "0 are there" in said.text
    assert_same(simulated(fl.FedAvg())[1], there.model)


def test_a_client_that_is_back_on_another_node_is_the_one_it_was(said):
    method = fl.build_method("floco+", tau=1, endpoints=4)
    config = replace(CONFIG, clients_per_round=6)
    grid = federation(clients(), mlp)
    there = Federation.of(method, config, grid=grid)

    def evaluate(round: int, arrays: ArrayRecord) -> None:
        if round == 2:  # the node is started anew: with another id, without what it kept
            node = grid.nodes.pop(1000 - 7 * 4)
            node.context.state = RecordDict()
            grid.nodes[77] = node

    there.strategy.start(grid, evaluate_fn=evaluate)
    assert [round.clients for round in there.strategy.rounds] == [6, 6, 6, 6]
    assert "client 4 is on node 77 now, no longer on 972" in said.text
    lost = "client 4 came without what it had kept, and starts anew with it: personal"
    assert lost in said.text
    sent = [content for kind, node, content, _ in grid.log if (kind, node) == ("train", 77)]
    assert all(
        "fedkern.state.center" in content["config"] for content in sent
    )  # the server keeps it


def test_two_nodes_that_say_they_are_the_same_client():
    grid = federation(clients(), mlp)
    grid.nodes[1] = grid.nodes[1000]  # both are client 0
    there = Federation.of(fl.FedAvg(), replace(CONFIG, clients_per_round=6), grid=grid)
    there.strategy.start(grid)
    assert_same(simulated(fl.FedAvg(), replace(CONFIG, clients_per_round=6))[1], there.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.update(number=-1), "number: wanted an integer from 0 to 5, got -1"),
        (lambda about: about.update(number=6), "number: wanted an integer from 0 to 5, got 6"),
        (lambda about: about.update(number=2**62), "number: wanted an integer from 0 to 5"),
        (lambda about: about.update(samples="many"), "samples: wanted an integer from 0"),
        (lambda about: about.pop("number"), "number: wanted an integer from 0"),
    ],
)
def test_a_node_that_does_not_say_who_it_is_is_not_let_in(change, message, said):

    def tampered(asked: Message, reply: Message) -> Message:
        if asked.metadata.message_type == "query.join":
            change(reply.content["config"])
        return reply

    there = Federation.of(fl.FedAvg(), replace(CONFIG, clients_per_round=6), min_available_nodes=5)
    there.grid.nodes[1000].tamper = tampered
    there.strategy.start(there.grid)
    assert [round.clients for round in there.strategy.rounds] == [5] * 4
    assert len([m for m in said.messages if "not let in" in m]) == 2  # and its copy


def test_clients_without_data_are_not_asked():
    partition = replace(PARTITION, indices=[PARTITION.indices[0][:0], *PARTITION.indices[1:]])
    own = fl.make_clients(DIGITS, partition)
    there = Federation.of(fl.FedAvg(), grid=federation(own, mlp))
    there.strategy.start(there.grid)
    ours = mlp()
    rounds = list(fl.simulate(fl.FedAvg(), ours, fl.make_clients(DIGITS, partition), CONFIG))
    assert_same(ours, there.model)
    assert [r.failures for r in rounds] == [r.failures for r in there.strategy.rounds]
    counts = [[(r.clients, r.failed) for r in of] for of in (rounds, there.strategy.rounds)]
    assert counts[0] == counts[1]
    assert ("train", 1000) not in [(kind, node) for kind, node, *_ in there.grid.log]


# ---- going on ------------------------------------------------------------------------------------


def checkpoints(folder, config: fl.RunConfig, every: int = 1) -> fl.Checkpoints:
    found = fl.Checkpoints(folder, {"settings": {"seed": config.seed}}, every, config.rounds, print)
    found.resume()
    return found


@pytest.mark.parametrize("name", ["fedga", "floco", "fedavg --server-optimizer adam"])
@pytest.mark.parametrize("done", [1, 3])
def test_a_server_goes_on_from_its_checkpoint(tmp_path, name, done):
    ((method),) = fl.build_methods(
        [name], **({"tau": 3, "endpoints": 4} if "floco" in name else {})
    ).values()
    first = Federation.of(method, checkpoints=checkpoints(tmp_path, CONFIG, every=2))
    first.strategy.start(first.grid, num_rounds=done)
    evaluated = []
    then = Federation.of(method, checkpoints=checkpoints(tmp_path, CONFIG, every=2))
    result = then.strategy.start(then.grid, evaluate_fn=lambda n, arrays: evaluated.append(n))
    assert_same(simulated(method)[1], then.model)
    assert [round.number for round in then.strategy.rounds] == [1, 2, 3, 4]
    assert evaluated == [*range(done, 5)]
    assert [*result.train_metrics_clientapp] == [*range(done + 1, 5)]
    assert [*result.evaluate_metrics_clientapp] == [*range(done + 1, 5)]


def test_a_restarted_server_says_which_personal_models_are_lost(tmp_path, said):
    config = replace(CONFIG, clients_per_round=6)
    method = method_of("floco+")
    first = Federation.of(method, config, checkpoints=checkpoints(tmp_path, config))
    first.strategy.start(first.grid, num_rounds=3)
    assert "came without" not in said.text
    then = Federation.of(method, config, checkpoints=checkpoints(tmp_path, config))
    then.strategy.start(then.grid)  # new nodes, which have kept nothing
    for number in range(6):
        assert f"client {number} came without what it had kept" in said.text
    # The global model and the subregions are what they would have been.
    assert_same(simulated(method, config)[1], then.model)


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    first = Federation.of(fl.FedAvg(), checkpoints=checkpoints(tmp_path, CONFIG))
    first.strategy.start(first.grid)
    then = Federation.of(fl.FedAvg(), checkpoints=checkpoints(tmp_path, CONFIG))
    result = then.strategy.start(then.grid)
    assert then.grid.log == []
    assert_same(first.model, then.model)
    assert {*result.arrays} == {name for name, _ in then.model.named_parameters()}


def test_initial_arrays(tmp_path):
    start = {name: p.detach() * 0.5 for name, p in mlp().named_parameters()}

    def halved() -> nn.Module:
        model = mlp()
        model.load_state_dict(start)
        return model

    there = Federation.of(fl.FedAvg(), checkpoints=checkpoints(tmp_path, CONFIG))
    there.strategy.start(there.grid, ArrayRecord(start))
    assert_same(simulated(fl.FedAvg(), new_model=halved)[1], there.model)
    again = Federation.of(fl.FedAvg(), checkpoints=checkpoints(tmp_path, CONFIG))
    with pytest.raises(fl.ConfigError, match=r"^initial_arrays: wanted none to go on"):
        again.strategy.start(again.grid, ArrayRecord(start))
    with pytest.raises(fl.ConfigError, match=r"^arrays: wanted .* got a difference: "):
        Federation.of(fl.FedAvg()).strategy.start(LocalGrid(), ArrayRecord({"x": torch.zeros(1)}))


# ---- with what Flower has ------------------------------------------------------------------------


def test_flowers_differential_privacy_goes_around_it():
    norm = 1e-3
    grid = federation(clients(), mlp, mods=[fixedclipping_mod])
    model = mlp()
    inner = MethodStrategy(method_of("floco"), model, CONFIG)
    strategy = DifferentialPrivacyClientSideFixedClipping(inner, 1e-6, norm, 4)
    arrays = ArrayRecord({name: p.detach() for name, p in model.named_parameters()})
    result = strategy.start(grid, arrays, num_rounds=4)
    assert [round.clients for round in inner.rounds] == [4] * 4
    assert [kind for kind, *_ in grid.log].count("train.statistics") == 6
    moved = [torch.from_numpy(result.arrays[k].numpy() - arrays[k].numpy()) for k in arrays]
    # Clipped in every round.
    assert 0 < torch.cat([part.flatten() for part in moved]).norm() <= 4 * norm * 1.01


def test_evaluation_by_some_of_the_clients():
    config = replace(CONFIG, eval_every=3)
    there = Federation.of(fl.FedAvg(), config, fraction_evaluate=0.5)
    result = there.strategy.start(there.grid)
    assert {n: m["clients"] for n, m in result.evaluate_metrics_clientapp.items()} == {3: 3, 4: 3}
    nobody = Federation.of(fl.FedAvg(), config, fraction_evaluate=0.0)
    assert nobody.strategy.start(nobody.grid).evaluate_metrics_clientapp == {}


def test_a_client_that_evaluates_badly_is_left_out(said):

    def tampered(value: object, asked: Message, reply: Message) -> Message:
        if asked.metadata.message_type == "evaluate":
            reply.content["metrics"]["accuracy"] = value
        return reply

    there = Federation.of(fl.FedAvg(), replace(CONFIG, rounds=1))
    there.grid.nodes[1000].tamper = partial(tampered, math.nan)
    there.grid.nodes[993].tamper = partial(tampered, [1.0])
    there.grid.nodes[986].tamper = lambda asked, reply: (
        (raising(asked, reply) if asked.metadata.message_type == "train" else None)
        if asked.metadata.message_type == "evaluate"
        else reply
    )
    result = there.strategy.start(there.grid)
    assert result.evaluate_metrics_clientapp[1]["clients"] == 3
    for number in range(3):
        assert f"evaluation: client {number} was left out" in said.text
