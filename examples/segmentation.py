"""Calibrated cross entropy in segmentation: a label for each pixel, void pixels, much background.

    python examples/segmentation.py [EPOCHS]

Scenes hold four handwritten digits in 4 x 4 cells. A pixel's class is that of its digit, or 10 for
background; the faint rim of a stroke is void and counts for nothing. Most pixels are background,
and zeros are thirty times as frequent as nines, but for the test scenes, in which all digits are
equally frequent. For each loss the same network is trained from the same initial values on the same
batches; the counts of the calibrated one are those of each batch's pixels.

The learning rate is about the best for either. At twice that the calibrated loss, whose gradients
for rare classes are larger, falls behind.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fedkern
from fedkern import fl

BACKGROUND, VOID = 10, 255
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_scenes(
    images: Tensor, labels: Tensor, weights: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """Images [number, 1, 32, 32] and targets [number, 32, 32]; `weights` are the digits', [10]."""
    digits = torch.multinomial(weights[labels], 4 * number, replacement=True)
    ink, labels = fl.scaled(images[digits, 0]), labels[digits, None, None]
    target = torch.where(ink > 0.5, labels, torch.where(ink == 0, BACKGROUND, VOID))
    cells = torch.rand(number, 16).topk(4).indices + 16 * torch.arange(number)[:, None]

    def arranged(parts: Tensor, blank: int) -> Tensor:
        scenes = parts.new_full((16 * number, 8, 8), blank)
        scenes[cells.flatten()] = parts
        return scenes.view(number, 4, 4, 8, 8).transpose(2, 3).reshape(number, 32, 32)

    return arranged(ink, 0).unsqueeze(1).to(DEVICE), arranged(target, BACKGROUND).to(DEVICE)


def build_model() -> nn.Module:
    """A small fully convolutional network, which sees the pixels in 4 x 4 patches."""
    return nn.Sequential(
        nn.PixelUnshuffle(4),
        nn.Conv2d(16, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 11 * 16, 1),
        nn.PixelShuffle(4),
    ).to(DEVICE, memory_format=torch.channels_last)


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
) -> None:
    for batch in torch.randperm(len(images)).to(DEVICE).split(20):
        optimizer.zero_grad()
        loss(model(images[batch]), targets[batch]).backward()  # [N, 11, 32, 32], [N, 32, 32]
        optimizer.step()


@torch.no_grad()
def accuracy_and_iou(model: nn.Module, images: Tensor, targets: Tensor) -> tuple[float, float]:
    """Pixel accuracy and mean intersection over union, without void pixels."""
    counts = partial(fedkern.class_counts, num_classes=11)
    counted = targets != VOID
    predicted, targets = model(images).argmax(1)[counted], targets[counted]
    both = counts(targets[predicted == targets])
    either = counts(predicted) + counts(targets) - both
    return (both.sum() / len(targets)).item(), (both / either).mean().item()


def main(epochs: str = "40") -> None:
    torch.set_num_threads(1)  # for so small a network
    torch.manual_seed(0)
    digits = fl.load_dataset("digits")
    frequencies = 30 ** -(torch.arange(10) / 9)
    train_scenes = make_scenes(digits.x_train, digits.y_train, frequencies, 500)
    test_scenes = make_scenes(digits.x_test, digits.y_test, torch.ones(10), 200)
    pixels = fedkern.class_counts(train_scenes[1], 11, ignore_index=VOID)
    print("training pixels of classes 0 to 10:", *pixels.tolist())
    for loss in (F.cross_entropy, fedkern.calibrated_ce):
        torch.manual_seed(0)
        model = build_model()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for epoch in range(1, int(epochs) + 1):
            train_epoch(model, optimizer, partial(loss, ignore_index=VOID), *train_scenes)
            if epoch % 10 == 0:
                accuracy, iou = accuracy_and_iou(model, *test_scenes)
                figures = f"pixel accuracy {accuracy:.3f}, mean IoU {iou:.3f}"
                print(f"{loss.__name__}, epoch {epoch}: {figures}")


if __name__ == "__main__":
    main(*sys.argv[1:])
