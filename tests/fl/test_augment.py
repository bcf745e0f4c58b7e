import pytest
import torch

from fedkern import fl
from fedkern.fl.augment import augment, check_augment, parse_augment

# Not square, and every window of the padded image is another one, flipped or not.
HEIGHT, WIDTH = 6, 7


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


def test_no_kinds_give_the_inputs_themselves():
    images, draws = some_images(3), fl.generator(0, "augment")
    before = draws.get_state()
    assert augment(images, (), draws) is images
    assert torch.equal(draws.get_state(), before)


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
    host, device = (
        augment(images.to(where), ("crop", "flip"), fl.generator(0, "augment"))
        for where in ("cpu", "cuda")
    )
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
