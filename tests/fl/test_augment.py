import pytest
import torch

from fedkern import fl
from fedkern.fl.augment import check_augment, draw_windows, parse_augment, through_windows

# Not square, and every window of the padded image is another one, flipped or not.
HEIGHT, WIDTH = 6, 7


def augment(images, kinds, draws):
    return through_windows(images, draw_windows(len(images), kinds, draws))


def windows(image, kinds):
    """All windows that the kinds allow of an image [channels, height, width], one by one."""
    padded = torch.zeros(len(image), HEIGHT + 8, WIDTH + 8)
    padded[:, 4:-4, 4:-4] = image
    offsets = range(9) if "crop" in kinds else (4,)
    for top in offsets:
        for left in offsets:
            window = padded[:, top : top + HEIGHT, left : left + WIDTH]
            yield window
            if "flip" in kinds:
                yield window.flip(2)


def some_images(n, channels=2):
    return torch.rand(n, channels, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) + 0.1


@pytest.mark.parametrize(
    ("kinds", "count"), [(("crop", "flip"), 162), (("crop",), 81), (("flip",), 2)]
)
def test_every_window_is_as_likely_as_any_other(kinds, count):
    image = some_images(1)
    possible = torch.stack(list(windows(image[0], kinds))).flatten(1)
    each = 40
    shown = augment(image.expand(count * each, -1, -1, -1), kinds, fl.generator(0, "augment"))
    assert shown.shape == (count * each, 2, HEIGHT, WIDTH)
    same = (shown.flatten(1)[:, None] == possible).all(2)
    assert (same.sum(1) == 1).all()  # each output is one of the windows
    frequencies = same.sum(0)
    assert (frequencies > 0).all()
    # Chi-square of count - 1 degrees of freedom: five standard deviations above its mean.
    chi_square = ((frequencies - each).square() / each).sum().item()
    assert chi_square < count - 1 + 5 * (2 * (count - 1)) ** 0.5


def test_offsets_and_flips_are_independent():
    image = some_images(1, channels=1)
    n = 10_000
    shown = augment(image.expand(n, -1, -1, -1), ("crop", "flip"), fl.generator(0, "augment"))
    possible = torch.stack(list(windows(image[0], ("crop", "flip")))).flatten(1)
    which = (shown.flatten(1)[:, None] == possible).all(2).long().argmax(1)
    top, left, flipped = which // 18, which // 2 % 9, which % 2
    correlation = torch.corrcoef(torch.stack([top, left, flipped]).double())
    # About 1 / sqrt(n) for independent draws; five times that.
    assert (correlation - torch.eye(3)).abs().max() < 5 / n**0.5


@pytest.mark.parametrize("kinds", [("crop", "flip"), ("crop",), ("flip",)])
def test_each_image_stays_in_its_place(kinds):
    images = some_images(50, channels=3)
    shown = augment(images, kinds, fl.generator(0, "augment"))
    for image, window in zip(images, shown, strict=True):
        assert any(torch.equal(window, possible) for possible in windows(image, kinds))


def test_no_kinds_draw_nothing_and_change_nothing():
    images, draws = some_images(3), fl.generator(0, "augment")
    before = draws.get_state()
    assert torch.equal(augment(images, (), draws), images)
    assert torch.equal(draws.get_state(), before)


@pytest.mark.parametrize("kinds", [("crop", "flip"), ("crop",), ("flip",)])
def test_windows_are_the_generators_next_draws(kinds):
    draws, again = fl.generator(0, "augment"), fl.generator(0, "augment")
    drawn = draw_windows(100, kinds, draws)
    assert drawn.dtype == torch.int64
    top = left = torch.full((100,), 4)
    flipped = torch.zeros(100, dtype=torch.int64)
    if "crop" in kinds:
        top, left = torch.randint(9, (2, 100), generator=again)
    if "flip" in kinds:
        flipped = torch.randint(2, (100,), generator=again)
    assert torch.equal(drawn, torch.stack([top, left, flipped], 1))
    assert torch.equal(draws.get_state(), again.get_state())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_each_image_through_its_window(channels, layout, dtype):
    images = (some_images(40, channels) * 100).to(dtype).contiguous(memory_format=layout)
    drawn = draw_windows(40, ("crop", "flip"), fl.generator(0, "augment"))
    shown = through_windows(images, drawn)
    assert shown.dtype == dtype
    assert shown.is_contiguous(memory_format=torch.channels_last)
    for image, window, (top, left, flipped) in zip(images, shown, drawn.tolist(), strict=True):
        possible = list(windows(image, ("crop", "flip")))
        assert torch.equal(window, possible[top * 18 + left * 2 + flipped].to(dtype))
    batches = zip(images.split(7), drawn.split(7), strict=True)
    assert torch.equal(torch.cat([through_windows(*batch) for batch in batches]), shown)


def test_draws_come_from_the_generator_alone():
    images = some_images(20)
    kept, state = images.clone(), torch.random.get_rng_state()
    first, again = (augment(images, ("crop", "flip"), fl.generator(0, "a")) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment(images, ("crop", "flip"), fl.generator(1, "a")))
    assert torch.equal(first, augment(images, ("flip", "crop"), fl.generator(0, "a")))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(images, kept)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (1, 1, 1, 1)])
def test_smallest_batches(shape):
    assert augment(torch.ones(shape), ("crop", "flip"), fl.generator(0, "augment")).shape == shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_shows_the_same_windows():
    images = some_images(20)
    drawn = draw_windows(20, ("crop", "flip"), fl.generator(0, "augment"))
    host, device = (through_windows(images.to(to), drawn.to(to)) for to in ("cpu", "cuda"))
    assert device.is_cuda
    assert torch.equal(device.cpu(), host)


def test_parse_augment():
    assert parse_augment("") == ()
    assert parse_augment("crop") == ("crop",)
    assert parse_augment("flip,crop") == ("flip", "crop")
    assert parse_augment("crop, flip") == ("crop", "flip")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crop,flop", "^augment: wanted one of crop, flip, got 'flop' .did you mean 'flip'"),
        ("crop,", "^augment: wanted one of crop, flip, got ''$"),
        ("flip,crop,flip", "^augment: wanted each name once, got 'flip,crop,flip'$"),
    ],
)
def test_parse_augment_refuses(text, message):
    with pytest.raises(fl.ConfigError, match=message):
        parse_augment(text)


def test_only_images_are_augmented():
    check_augment(("crop", "flip"), (3, 32, 32))
    check_augment((), (64,))
    with pytest.raises(
        fl.ConfigError,
        match=r"^augment: wanted image data for 'crop,flip', got samples of shape \(64,\)$",
    ):
        check_augment(("crop", "flip"), torch.Size([64]))
