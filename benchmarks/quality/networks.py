"""Networks of the suite: ``features`` and a linear ``head``."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from .others import WORD_NUMBERS


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


def letter_network() -> Network:
    """For 16 features: two hidden layers."""
    layers = [nn.Flatten(), nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    return Network(nn.Sequential(*layers), 256, 26)


def shallow_network(width: int = 1024) -> Network:
    """For 16 features: one hidden layer, four times as wide as those of :func:`letter_network`."""
    return Network(nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU()), width, 26)


class _LinearSkip(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers = nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        self.body = nn.Sequential(nn.LayerNorm(width), *layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def deep_network(width: int = 96, depth: int = 4) -> Network:
    """For 16 features: blocks of two linear layers around skips, normalised."""
    layers = [nn.Flatten(), nn.Linear(16, width), *(_LinearSkip(width) for _ in range(depth))]
    return Network(nn.Sequential(*layers, nn.LayerNorm(width)), width, 26)


class _Words(nn.Module):
    """The mean of the vectors of a text's words. Words are numbers, and 0 is not a word."""

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.EmbeddingBag(numbers, width, mode="mean", padding_idx=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.vectors(x.flatten(1).long())


def text_network(width: int = 32) -> Network:
    """For texts: a bag of embeddings and one hidden layer."""
    layers = [_Words(WORD_NUMBERS, width), nn.Linear(width, width), nn.ReLU()]
    return Network(nn.Sequential(*layers), width, 2)


def small_network(width: int = 16, classes: int = 10) -> Network:
    """For images of 16×16 or 32×32 pixels on a processor: five convolutions, the first with stride
    2, one of them around a skip."""
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
    return Network(nn.Sequential(*layers), 8 * width, classes)


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


def _group(inputs: int, outputs: int) -> list[nn.Module]:
    """Two convolutions; the first one's output is pooled before anything else looks at it."""
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(outputs),
        nn.GELU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.GELU(),
    ]


def fast_network(width: int = 64) -> Network:
    """For full CIFAR-10 on a GPU, in a few seconds: 150 million multiplications an image.

    Depth and widths are those of airbench94 (Jordan, 2024). Its whitened first layer, identity
    initialisation, scaled head and frozen scales are left out.
    """
    first = 3 * width // 8
    layers = [
        nn.Conv2d(3, first, 3, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.GELU(),
        *_group(first, width),
        *_group(width, 4 * width),
        *_group(4 * width, 4 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
    ]
    return Network(nn.Sequential(*layers), 4 * width, 10)


def residual_network(width: int = 16, classes: int = 10) -> Network:
    """For 16×16 or 32×32 images: a narrow residual network."""
    layers = [
        *_conv(3, width, 4, 2),
        _Block(width, 2 * width, 2),
        _Block(2 * width, 4 * width, 2),
        *_pooled(),
    ]
    return Network(nn.Sequential(*layers), 4 * width, classes)


def _separable(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """A convolution of each channel by itself, then one across them."""
    apart = nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False)
    across = nn.Conv2d(inputs, outputs, 1, bias=False)
    return [apart, nn.BatchNorm2d(inputs), across, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def separable_network(width: int = 16, classes: int = 10) -> Network:
    """For 16×16 or 32×32 images: depthwise separable convolutions, as in MobileNet."""
    layers = [
        *_conv(3, width, 4, 2),
        *_separable(width, 2 * width),
        *_separable(2 * width, 4 * width, 2),
        *_separable(4 * width, 4 * width),
        *_separable(4 * width, 8 * width, 2),
        *_pooled(),
    ]
    return Network(nn.Sequential(*layers), 8 * width, classes)


class _Mixing(nn.Module):
    """A layer of a mixer: two linear layers across the tokens, then two along each of them."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.across = self._two_layers(tokens)
        self.along = nn.Sequential(nn.LayerNorm(width), *self._two_layers(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.along(x)

    @staticmethod
    def _two_layers(width: int) -> nn.Sequential:
        layers = nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        return nn.Sequential(*layers)


class _Mixer(nn.Module):
    """Layers over the 4×4 patches of a 16×16 image, then the mean of the patches."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.layers = nn.Sequential(*(_Mixing(16, width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.norm(self.layers(tokens)).mean(1)


def mixer(width: int = 64, depth: int = 2) -> Network:
    """For 16×16 images: linear layers only, after Tolstikhin et al., NeurIPS 2021."""
    return Network(_Mixer(width, depth), width, 10)


NETWORKS = {
    "digits": digits_network,
    "letter": letter_network,
    "shallow": shallow_network,
    "deep": deep_network,
    "text": text_network,
    "traffic": partial(small_network, classes=43),
    "traffic residual": partial(residual_network, classes=43),
    "traffic separable": partial(separable_network, classes=43),
    "small": small_network,
    "residual": residual_network,
    "separable": separable_network,
    "mixer": mixer,
    "fast": fast_network,
    "fast, width 8": partial(fast_network, 8),
}
