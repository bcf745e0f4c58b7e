"""Engines: workers change no bit, auto takes what is faster."""

import gc
import os
from dataclasses import replace
from threading import Thread
from time import sleep

import pytest
import torch
from torch import nn
from whole_runs import SMALL, assert_same_bits, chain, convolutional, drawn, jobs_of, run

from fedkern import fl
from fedkern.fl import engine as engines
from fedkern.fl import heap, linear
from fedkern.fl.engine import AutoEngine, SerialEngine, make_engine
from fedkern.fl.flat import FlatModel, State
from fedkern.fl.training import LocalWork
from fedkern.fl.vmap import VmapEngine
from fedkern.fl.workers import _Forked, num_workers, thread_pool
from fedkern.nn import simplexify, subregion

CONFIG = replace(SMALL, momentum=0.5)
CPU = torch.device("cpu")


# ---- workers -------------------------------------------------------------------------------------

CASES = {
    "fedavg": (fl.FedAvg(), chain, {}),
    "aggregated buffers": (fl.FedGA(), convolutional, {"buffers": "aggregate"}),
    "local buffers": (fl.FedAvg("samples"), convolutional, {"buffers": "local"}),
    "personal models with buffers": (fl.Ditto(), convolutional, {"buffers": "local"}),
    "frozen buffers": (fl.FedAvg(), convolutional, {"buffers": "frozen"}),
    "floco across tau": (fl.Floco(endpoints=3, tau=2), chain, {}),
    "floco+ across tau": (fl.FlocoPlus(endpoints=2, tau=2), convolutional, {"buffers": "local"}),
    "augmentation": (fl.FedAvg(), chain, {"augment": "crop,flip"}),
    "a teacher": (fl.FedNTD(), chain, {"augment": "flip"}),
    "a teacher with buffers": (fl.FedNTD(), convolutional, {"buffers": "local"}),
    "weighted clients": (fl.Climb(dual_lr=9.0), chain, {}),
    "weighted classes": (fl.FedRL(), convolutional, {}),
    "a private layer": (fl.FedPer(), chain, {}),
    "two heads": (fl.FedRoD(), chain, {}),
    "two heads with buffers": (fl.FedRoD(), convolutional, {"buffers": "local"}),
    "published faults": (fl.FedProx(compat="fedga"), convolutional, {}),
    "a server optimizer": (fl.FedAvg(server_optimizer=fl.ServerYogi()), chain, {}),
    "plain layers": (fl.FedAvg(), chain, {"layers": "plain"}),
}


@pytest.mark.parametrize(("method", "build", "settings"), CASES.values(), ids=CASES)
def test_workers_change_no_bit(images, method, build, settings):
    config = replace(CONFIG, **settings)
    alone = run(images, config, method, build)
    # More than clients in a round (4), more than clients at tau (6).
    for workers in (2, 3, 5, 7):
        together = run(images, replace(config, workers=workers), method, build)
        assert_same_bits(alone, together)
        assert together.facts == {"engine": "serial", "workers": workers}


def test_resnet20_with_workers(images):
    config = replace(CONFIG, model="resnet20", clients_per_round=3, rounds=1, local_epochs=1)
    few = replace(images, x_train=images.x_train[:96], y_train=images.y_train[:96])

    def build():
        return fl.ResNet20(3, 8, 8, 4)

    alone = run(few, config, fl.FedAvg(), build)
    assert_same_bits(alone, run(few, replace(config, workers=2), fl.FedAvg(), build))


def trained(engine, jobs):
    return [result.state.values.clone() for result in engine.train(jobs, jobs[0].start.values)]


def test_results_that_no_one_asks_for_are_no_hindrance(blobs):
    engine = SerialEngine(FlatModel(drawn(nn.Linear(6, 4))), blobs, replace(CONFIG, workers=2))
    jobs = jobs_of(engine.model, blobs)
    results = engine.train(jobs, jobs[0].start.values)
    first = next(results).state.values.clone()
    results.close()
    assert torch.equal(trained(engine, jobs)[0], first)


def test_two_results_a_process_are_in_memory(blobs, monkeypatch):
    engine = SerialEngine(FlatModel(drawn(nn.Linear(6, 4))), blobs, replace(CONFIG, workers=2))
    jobs = jobs_of(engine.model, blobs, clients=24)
    received = []
    receive = _Forked.receive
    monkeypatch.setattr(_Forked, "receive", lambda self: received.append(1) or receive(self))
    for given, _ in enumerate(engine.train(jobs, jobs[0].start.values), 1):
        assert given <= len(received) <= given + 3


@pytest.mark.parametrize("own_start", [False, True])
def test_processes_start_from_what_they_are_given(blobs, own_start):
    """From the anchor, or a state of the client's own, which goes to the process with the job."""
    ends = []
    for workers in (1, 2):
        config = replace(CONFIG, workers=workers)
        engine = SerialEngine(FlatModel(drawn(nn.Linear(6, 4))), blobs, config)
        jobs = jobs_of(engine.model, blobs)
        anchor = jobs[0].start.values
        for k, job in enumerate(jobs):
            start = State(anchor + k, []) if own_start else State(anchor, [])
            jobs[k] = job._replace(start=start)
        ends.append([r.state.values.clone() for r in engine.train(jobs, anchor)])
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("batch_size", [1, 20, 64, 10**9])
def test_processes_have_the_choices_of_who_forked_them(blobs, monkeypatch, batch_size):
    """Each would measure by itself else, and might find another linear layer the faster one."""
    asked = []
    monkeypatch.setattr(linear, "_chosen", {})
    monkeypatch.setattr(
        linear, "_fastest_products", lambda shape: asked.append(shape) or linear.Products.TORCH
    )
    config = replace(CONFIG, workers=2, batch_size=batch_size)
    SerialEngine(FlatModel(drawn(nn.Linear(6, 4))), blobs, config)
    for batch in range(1, min(batch_size, 600) + 1):
        layer = torch.zeros(batch, 6), torch.zeros(4, 6)
        settled = set(asked)
        linear.choose_products(*layer)
        assert set(asked) == settled


class Slow(fl.CrossEntropy):
    """A loss that takes its time."""

    def gradient(self, logits, targets, class_counts):
        sleep(0.05)
        return super().gradient(logits, targets, class_counts)


def test_processes_that_are_left_at_work_end_quietly(blobs, capfd):
    engine = SerialEngine(FlatModel(drawn(nn.Linear(6, 4))), blobs, replace(CONFIG, workers=2))
    processes = [worker._process for worker in engine._workers._all]
    jobs = [job._replace(work=LocalWork(Slow())) for job in jobs_of(engine.model, blobs)]
    results = engine.train(jobs, jobs[0].start.values)
    next(results)
    results.close()
    del engine, results
    gc.collect()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert capfd.readouterr().err == ""


def test_processes_end_with_their_engine(blobs):
    engine = SerialEngine(FlatModel(drawn(nn.Linear(6, 4))), blobs, replace(CONFIG, workers=3))
    processes = [worker._process for worker in engine._workers._all]
    assert all(process.is_alive() for process in processes)
    del engine
    for process in processes:
        process.join(10)
        assert process.exitcode == 0


def test_two_results_a_thread_are_in_memory(blobs, monkeypatch):
    config = replace(CONFIG, workers=2, layers="plain")
    engine = SerialEngine(FlatModel(drawn(nn.Linear(6, 4))), blobs, config)
    jobs = jobs_of(engine.model, blobs, clients=24)
    made = []
    copy = State.copy
    monkeypatch.setattr(State, "copy", lambda state: made.append(copy(state)) or made[-1])
    results = engine.train(jobs, jobs[0].start.values)
    for given in range(24):
        next(results)
        expected = min(24, given + 4)  # what is given, and three that wait
        while len(made) < expected:
            sleep(0.001)
        sleep(0.002)  # would there be more?
        assert len(made) == expected


def test_a_worker_for_each_core_but_no_more_than_clients(monkeypatch):
    config = replace(CONFIG, workers=None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for threads, expected in ((1, 4), (2, 4), (3, 2), (8, 1), (16, 1)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert num_workers(config, CPU) == expected
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.delattr(os, "sched_getaffinity")
    for cores, expected in ((3, 3), (64, 4), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert num_workers(config, CPU) == expected
    assert num_workers(config, torch.device("cuda")) == 1
    assert num_workers(replace(config, workers=9), CPU) == 9
    assert num_workers(replace(config, workers=1), torch.device("cuda")) == 1
    with pytest.raises(fl.ConfigError, match=r"^workers: wanted 1 on a GPU .*, got 2$"):
        num_workers(replace(config, workers=2), torch.device("cuda"))


@pytest.mark.parametrize("threads", [1, 2])
def test_workers_have_as_many_threads_as_who_asks(threads):
    torch.set_num_threads(threads)
    other = Thread(target=torch.set_num_threads, args=(3,))  # new threads would have as many
    other.start()
    other.join()
    with thread_pool(2) as pool:
        assert list(pool.map(lambda _: torch.get_num_threads(), range(4))) == [threads] * 4


@pytest.mark.parametrize("on_simplex", [False, True])
def test_predictions_do_not_depend_on_workers(images, on_simplex):
    model = drawn(convolutional())
    if on_simplex:
        simplexify(model, num_endpoints=3, generator=torch.Generator().manual_seed(0))
    chosen = torch.randperm(240, generator=torch.Generator().manual_seed(0))[:95]

    def predicted(indices, workers):
        return fl.predict(model, images.x_train, indices, batch_size=20, workers=workers)

    with subregion(model, torch.tensor([0.7, 0.2, 0.1])) if on_simplex else torch.no_grad():
        # Twelve batches, and five with a smaller last one: fewer than workers.
        for indices in (None, chosen):
            alone = predicted(indices, 1)
            assert len(alone) == (240 if indices is None else 95)
            for workers in (2, 3, 7):
                assert torch.equal(predicted(indices, workers), alone)


# ---- auto ----------------------------------------------------------------------------------------


def prefer(monkeypatch, name):
    """Measures in earnest, and then finds the engine of this name the faster one."""
    measure, asked = engines._measure, []

    def measured(engine, jobs, anchor):
        asked.append(engine.facts["engine"])
        seconds, failures = measure(engine, jobs, anchor)
        assert seconds > 0
        return 1.0 if asked[-1] == name else 2.0, failures

    monkeypatch.setattr(engines, "_measure", measured)
    return asked


@pytest.mark.parametrize("name", ["serial", "vmap"])
@pytest.mark.parametrize(
    "method",
    [fl.FedAvg(), fl.Ditto(), fl.Floco(endpoints=3, tau=1), fl.FlocoPlus(endpoints=2, tau=2)],
)
def test_auto_is_the_engine_that_is_faster(images, monkeypatch, method, name):
    expected = run(images, replace(CONFIG, engine=name), method, chain)
    asked = prefer(monkeypatch, name)
    chosen = run(images, replace(CONFIG, engine="auto"), method, chain)
    assert_same_bits(chosen, expected)  # personal models too: measuring left no trace
    assert asked == ["serial", "vmap"]  # once a run
    seconds = {"serial_seconds": 2.0, "vmap_seconds": 2.0, f"{name}_seconds": 1.0}
    assert chosen.facts == {**expected.facts, **seconds}


def test_auto_measures_both(blobs):
    engine = AutoEngine(FlatModel(drawn(nn.Linear(6, 4))), blobs, CONFIG)
    assert engine.facts == {"engine": "auto"}
    jobs = jobs_of(engine.model, blobs)
    expected = trained(SerialEngine(FlatModel(drawn(nn.Linear(6, 4))), blobs, CONFIG), jobs)
    torch.testing.assert_close(trained(engine, jobs), expected)
    facts = engine.facts
    times = facts["serial_seconds"], facts["vmap_seconds"]
    assert min(times) > 0
    assert facts["engine"] == ("serial" if times[0] <= times[1] else "vmap")
    trained(engine, jobs)
    assert engine.facts is facts


def test_auto_is_serial_where_vmap_will_not_do(images):
    alone = run(images, CONFIG, fl.FedAvg(), convolutional)
    chosen = run(images, replace(CONFIG, engine="auto"), fl.FedAvg(), convolutional)
    assert_same_bits(chosen, alone)
    reason = chosen.facts.pop("reason")
    assert chosen.facts == alone.facts
    assert reason.startswith(
        "engine: wanted serial (or buffers=frozen) for a model with batch norm"
    )


class Branching(nn.Module):
    """Looks at its inputs, which torch.vmap cannot."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, inputs):
        return self.layer(inputs if inputs.sum() > 0 else -inputs)


class Counting(nn.Module):
    """Changes a buffer in training, of which torch.vmap has one for all clients."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, inputs):
        if self.training:
            self.batches += 1
        return self.layer(inputs)


@pytest.mark.parametrize("build", [Branching, Counting])
def test_auto_is_serial_where_vmap_fails(blobs, build):
    alone = run(blobs, CONFIG, fl.Ditto(), build)
    chosen = run(blobs, replace(CONFIG, engine="auto"), fl.Ditto(), build)
    assert_same_bits(chosen, alone)
    reason = chosen.facts.pop("reason")
    assert chosen.facts == alone.facts
    assert "vmap" in reason
    assert "\n" not in reason


def test_auto_hides_no_error_of_the_model(blobs):
    class Broken(nn.Linear):
        def forward(self, inputs):
            raise RuntimeError("broken")

    with pytest.raises(fl.RunError, match="RuntimeError: broken"):
        run(blobs, replace(CONFIG, engine="auto"), fl.FedAvg(), lambda: Broken(6, 4))


def test_engines_by_name(blobs):
    for name, kind in (("serial", SerialEngine), ("vmap", VmapEngine), ("auto", AutoEngine)):
        engine = make_engine(drawn(nn.Linear(6, 4)), blobs, replace(CONFIG, engine=name))
        assert type(engine) is kind


# ---- memory --------------------------------------------------------------------------------------


@pytest.fixture
def libraries(monkeypatch):
    """How often the C library has been asked for; what was done to malloc is then forgotten."""
    asked = []
    monkeypatch.setattr(heap.ctypes, "CDLL", asked.append)
    heap.keep_freed_memory.cache_clear()
    yield asked
    heap.keep_freed_memory.cache_clear()


def test_malloc_is_told_once(monkeypatch, libraries, blobs):
    told = []

    class Glibc:
        def mallopt(self, *setting):
            told.append(setting)

    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: libraries.append(name) or Glibc())
    for _ in range(2):
        make_engine(nn.Linear(6, 4), blobs, CONFIG)
    assert libraries == [None]
    # mallopt(3): M_TRIM_THRESHOLD is -1, M_MMAP_THRESHOLD -3, of at most HEAP_MAX_SIZE / 2.
    assert told == [(-1, 2**30), (-3, 2**25)]


def test_another_c_library_is_no_error(monkeypatch, libraries):
    heap.keep_freed_memory()  # what the fixture gives, None, has no mallopt
    assert libraries == [None]
    heap.keep_freed_memory.cache_clear()

    def missing(name):
        raise OSError("no such library")

    monkeypatch.setattr(heap.ctypes, "CDLL", missing)
    heap.keep_freed_memory()
