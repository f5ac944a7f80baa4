"""Networks of the suite: ``features`` and a linear ``head``."""

from __future__ import annotations

from torch import Tensor, nn


class Network(nn.Module):
    """A classifier whose last layer can be looked behind."""

    def __init__(self, features: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _pooled() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


class _Skip(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def digits_network() -> Network:
    """For 8×8 images: two hidden layers, a fraction of a second for a run."""
    layers = [nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    return Network(nn.Sequential(*layers), 128, 10)


def small_network(width: int = 16) -> Network:
    """For 16×16 images on a processor: five convolutions, the first with stride 2, one of them
    around a skip."""
    layers = [
        *_conv(3, width, 4, 2),
        *_conv(width, 2 * width),
        nn.MaxPool2d(2),
        *_conv(2 * width, 4 * width),
        _Skip(4 * width),
        nn.MaxPool2d(2),
        *_conv(4 * width, 8 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
    ]
    return Network(nn.Sequential(*layers), 8 * width, 10)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(inputs, outputs, 3, stride),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.body(x) + self.skip(x))


def resnet9(width: int = 64) -> Network:
    """For full CIFAR-10 on a GPU, in seconds."""

    def pooled(inputs: int, outputs: int) -> list[nn.Module]:
        return [*_conv(inputs, outputs), nn.MaxPool2d(2)]

    layers = [
        *_conv(3, width),
        *pooled(width, 2 * width),
        _Block(2 * width, 2 * width, 1),
        *pooled(2 * width, 4 * width),
        *pooled(4 * width, 8 * width),
        _Block(8 * width, 8 * width, 1),
        *_pooled(),
    ]
    return Network(nn.Sequential(*layers), 8 * width, 10)


def resnet18() -> Network:
    """The ResNet-18 for 32×32 images: no pooling at the start."""
    layers: list[nn.Module] = _conv(3, 64)
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_Block(inputs, outputs, stride), _Block(outputs, outputs, 1)]
        inputs = outputs
    return Network(nn.Sequential(*layers, *_pooled()), 512, 10)


NETWORKS = {
    "digits": digits_network,
    "small": small_network,
    "resnet9": resnet9,
    "resnet18": resnet18,
}
