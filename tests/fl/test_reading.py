import pytest
import torch
import torch.nn.functional as F
from cpu_capabilities import CAPABILITIES, run_tests_with
from torch import nn

from fedkern import fl

DRAWS = torch.Generator().manual_seed(0)
SHAPES = [(100, 3, 6, 5), (100, 1, 6, 5), (100, 7)]
DTYPES = [torch.uint8, torch.float32, torch.float64]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def stored_inputs(shape, dtype, layout=torch.contiguous_format):
    inputs = torch.randint(256, shape, generator=DRAWS).to(dtype)
    return inputs.contiguous(memory_format=layout) if len(shape) == 4 else inputs


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_batches_have_the_bits_of_the_whole(shape, dtype, layout):
    stored = stored_inputs(shape, dtype, layout)
    whole = stored.float() / 255 if dtype == torch.uint8 else stored
    before = stored.clone()
    read = fl.Reader(stored)
    # A first batch, a smaller one, one of a single sample, none, and a larger one than any.
    for size in (30, 20, 1, 0, 31):
        indices = torch.randint(100, (size,), generator=DRAWS)
        batch = read(indices)
        assert batch.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
        assert torch.equal(batch, whole[indices])
        if batch.ndim == 4:
            assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(stored, before)


@pytest.mark.parametrize("features", [1, 256])
def test_all_bytes_are_divided_as_floats_are(features):
    every = torch.arange(256, dtype=torch.uint8).view(-1, features)
    expected = every.float() / 255
    assert torch.equal(fl.scaled(every), expected)
    assert torch.equal(fl.Reader(every)(torch.arange(len(every))), expected)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_bytes_with_every_capability(capability):
    run_tests_with(capability, __file__, "batches_have_the_bits or all_bytes")


def test_samples_of_any_size():
    for size in range(1, 140):
        stored = stored_inputs((20, size), torch.uint8)
        indices = torch.randint(20, (13,), generator=DRAWS)
        assert torch.equal(fl.Reader(stored)(indices), (stored.float() / 255)[indices])


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_a_batch(threads):
    stored = stored_inputs((300, 3, 32, 32), torch.uint8)
    indices = torch.randint(300, (211,), generator=DRAWS)
    torch.set_num_threads(threads)
    assert torch.equal(fl.Reader(stored)(indices), (stored.float() / 255)[indices])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [-1, 100])
def test_samples_that_are_not_there(dtype, index):
    read = fl.Reader(stored_inputs((100, 7), dtype))
    with pytest.raises(IndexError, match="out of range"):
        read(torch.tensor([3, index]))


def test_indices_that_are_not_contiguous():
    stored = stored_inputs((100, 7), torch.uint8)
    indices = torch.randint(100, (40,), generator=DRAWS)[::2]
    assert torch.equal(fl.Reader(stored)(indices), (stored.float() / 255)[indices])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_are_seen_as_they_are(dtype):
    stored = stored_inputs((4, 7), dtype)
    assert fl.scaled(stored) is stored


def test_scaled_keeps_the_layout():
    images = stored_inputs((4, 3, 6, 5), torch.uint8, torch.channels_last)
    assert fl.scaled(images).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_memory_is_kept(dtype):
    read = fl.Reader(stored_inputs((100, 3, 6, 5), dtype))
    place = read(torch.arange(50)).data_ptr()
    assert read(torch.arange(7)).data_ptr() == place
    assert read(torch.arange(50)).data_ptr() == place


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_models_do_to_a_batch_stays_out_of_the_stored_inputs(dtype):
    stored = stored_inputs((100, 3, 6, 5), dtype)
    before = stored.clone()
    read = fl.Reader(stored)
    first = read(torch.arange(10)).clone()
    F.relu(read(torch.arange(10)).sub_(0.5), inplace=True)
    assert torch.equal(stored, before)
    assert torch.equal(read(torch.arange(10)), first)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_predictions_that_are_views_of_the_inputs(dtype):
    """Batches share memory; what a model gives back of one must outlive the next."""
    stored = stored_inputs((100, 3, 2, 2), dtype)
    expected = fl.scaled(stored).flatten(1)
    assert torch.equal(fl.predict(nn.Flatten(), stored, batch_size=7), expected)
    chosen = torch.randperm(100, generator=DRAWS)[:20]
    assert torch.equal(fl.predict(nn.Flatten(), stored, chosen, batch_size=7), expected[chosen])
    features = stored_inputs((100, 4), dtype)
    logits = fl.predict(nn.Identity(), features, batch_size=7)
    assert torch.equal(logits, fl.scaled(features))


@CUDA
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cuda_reads_the_same_bits_and_waits_for_nothing(dtype):
    stored = stored_inputs((256, 3, 6, 5), dtype)
    indices = torch.randperm(256, generator=DRAWS)
    device, on_device = stored.cuda(), indices.cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = fl.Reader(device)(on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(batch.cpu(), fl.Reader(stored)(indices))
    assert torch.equal(fl.scaled(device).cpu(), fl.scaled(stored))
