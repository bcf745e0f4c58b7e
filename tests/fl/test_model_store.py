"""The clients' models in a file: what was written is what is read, and what a table names stays."""

import errno
import gc
import os
import random

import pytest
import torch

from fedkern import fl
from fedkern.fl.flat import State
from fedkern.fl.model_store import ClientModels, ModelStore


def state(number, size=5):
    """Values that tell it from others, and buffers of other types and shapes."""
    values = torch.full((size,), float(number))
    return State(values, [torch.tensor(number), torch.full((2, 3), number / 2).double()])


def same(found, expected):
    tensors = zip([found.values, *found.buffers], [expected.values, *expected.buffers], strict=True)
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in tensors)


@pytest.fixture(params=["file", "temporary"])
def store(request, tmp_path):
    return ModelStore(tmp_path / "new" / "models" if request.param == "file" else None)


def test_what_was_written_is_read(store):
    for client in range(40):
        store.write(client, "personal", state(client, size=1 + client))
        store.write(client, "buffers", State(torch.empty(0), [torch.tensor(client)]))
    for client in range(40):
        assert same(store.read(client, "personal"), state(client, size=1 + client))
        assert store.read(client, "buffers").values.shape == (0,)
    with pytest.raises(KeyError):
        store.read(40, "personal")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.bool])
def test_all_dtypes_and_layouts(store, dtype):
    values = (torch.arange(24).view(4, 6) % 3).to(dtype).t()[::2]
    store.write(0, "a", State(values, []))
    assert same(store.read(0, "a"), State(values, []))


def test_what_is_read_is_a_copy(store):
    store.write(0, "a", state(1))
    store.read(0, "a").values.zero_()
    early = store.read(0, "a")
    for number in range(50):
        store.write(0, "a", state(number))
    assert same(early, state(1))


def test_a_client_s_models_are_a_mapping(store):
    first, second = ClientModels(store, 0), ClientModels(store, 1)
    assert not first
    first["a"] = state(1)
    second["b"] = state(2)
    assert ([*first], [*second], len(first), "a" in first, "a" in second) == (
        ["a"],
        ["b"],
        1,
        True,
        False,
    )
    assert first.get("b") is None
    del first["a"]
    assert not first


def test_nothing_is_written_over_what_a_table_names(tmp_path):
    """Random writes, with tables that come and go; each is checked against a plain dict."""
    draws = random.Random(0)
    store, now, tables = ModelStore(tmp_path / "models"), {}, []
    for step in range(2000):
        client, name = draws.randrange(6), draws.choice("ab")
        new = state(step, size=draws.randrange(1, 60))
        store.write(client, name, new)
        now[client, name] = new
        if draws.random() < 0.1:
            tables.append((store.table(), dict(now)))
        if len(tables) > 3:
            del tables[draws.randrange(len(tables))]
        if step % 200 == 199:
            for table, expected in [*tables, (store.table(), now)]:
                opened = ModelStore(tmp_path / "models", [table])
                assert all(same(opened.read(*key), expected[key]) for key in expected)
    # Twelve states of at most 384 bytes: those of now, and those of four tables; a quarter more, or
    # 16 states; and what is left between them, for sizes differ.
    assert (tmp_path / "models").stat().st_size < 2 * 384 * (5 * 12 + 16)


def test_a_store_goes_on_from_a_table(tmp_path):
    first = ModelStore(tmp_path / "models")
    for client in range(4):
        first.write(client, "a", state(client))
    older, expected = first.table(), [state(client) for client in range(4)]
    first.write(2, "a", state(20))
    newer = first.table()
    first.write(3, "a", state(30))  # in no table: as if it had never been
    second = ModelStore(tmp_path / "models", [newer, older])
    expected[2] = state(20)
    for number in range(100):
        second.write(0, "a", state(100 + number))
    assert [same(second.read(k, "a"), expected[k]) for k in range(1, 4)] == [True] * 3
    third = ModelStore(tmp_path / "models", [older])
    assert all(same(third.read(k, "a"), state(k)) for k in range(4))


def test_checksums_tell_damage(tmp_path):
    store = ModelStore(tmp_path / "models")
    store.write(0, "a", state(1, size=1000))
    (record,) = store.table().records.values()
    before = store.checksum(record)
    with (tmp_path / "models").open("r+b") as file:
        file.seek(2000)
        file.write(b"x")
    assert ModelStore(tmp_path / "models").checksum(record) != before
    os.truncate(tmp_path / "models", 3000)
    with pytest.raises(OSError, match=r"wanted 4160 bytes in .*models, got 3000"):
        ModelStore(tmp_path / "models").checksum(record)


def test_a_full_disk_is_an_error_of_the_run(tmp_path, monkeypatch):
    store = ModelStore(tmp_path / "models")
    store.write(0, "a", state(1))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        fl.RunError, match=r"^models of clients: wanted room .*models, got: No space"
    ):
        store.write(0, "a", state(2))
    assert same(store.read(0, "a"), state(1))


def test_many_clients_models_take_no_memory(tmp_path):
    """A gigabyte of them: memory that belongs to the process alone does not grow with it."""

    def anonymous():
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))

    store = ModelStore(tmp_path / "models")
    model = State(torch.zeros(250_000), [])
    store.write(0, "personal", model)
    store.read(0, "personal")
    gc.collect()
    before = anonymous()
    for client in range(1000):
        store.write(client, "personal", State(model.values + client, []))
    assert all(store.read(k, "personal").values[-1] == k for k in range(0, 1000, 7))
    assert anonymous() - before < 20_000  # KiB
