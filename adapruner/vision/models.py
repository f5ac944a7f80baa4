"""timm models, adapted to small images."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from adapruner._util.checks import checked_whole
from adapruner._util.extras import require
from adapruner.vision.transforms import SMALL_IMAGE, USUAL_IMAGE


def create_model(
    name: str,
    num_classes: int,
    *,
    image_size: int,
    small_images: bool | None = None,
    weights: str | os.PathLike[str] | None = None,
    in_chans: int = 3,
) -> nn.Module:
    """A timm model with initial weights or the weights of a file. Nothing is downloaded.

    timm models are made for images of 224 pixels and more. Their first layers shrink an image to a
    quarter of its side. For small images the stem is adapted, as is usual for CIFAR: the first
    strided convolution has stride 1, a 7x7 kernel becomes 3x3, and the max-pooling after it is
    removed.

    Args:
        name: name of the model, as in ``timm.list_models()``.
        num_classes: C, the number of logits.
        image_size: height and width of the images, in pixels.
        small_images: whether to adapt the stem. None adapts it for images up to 64 pixels.
        weights: a safetensors file with a state dict of the (adapted) model. A head of another
            shape than ``[num_classes, ...]`` is not loaded.
        in_chans: channels of the images.

    Returns:
        The model, in training mode, from images ``[B, in_chans, image_size, image_size]`` to logits
        ``[B, num_classes]``.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such model, the model cannot be adapted to images of this size or
            does not take them, or ``weights`` are not of this model.
        FileNotFoundError: the file ``weights`` does not exist.

    Warns:
        UserWarning: the head keeps its initial weights, because the file has no head that fits.

    Example:
        >>> model = create_model("resnet18", 10, image_size=32)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    timm = require("timm", extra="vision")
    num_classes = checked_whole("num_classes", num_classes, 1)
    image_size = checked_whole("image_size", image_size, 1)
    in_chans = checked_whole("in_chans", in_chans, 1)
    _check_name(timm, name)
    probe = torch.zeros(2, in_chans, image_size, image_size)
    settings = {"num_classes": num_classes, "in_chans": in_chans}
    adapt = image_size <= SMALL_IMAGE if small_images is None else small_images
    model: nn.Module = timm.create_model(name, **settings)
    problem = _adapt_stem(model) if adapt else None
    problem = problem or _find_problem(model, probe, num_classes)
    if problem is not None:
        # Transformers and mixers are built for one image size.
        fitted = None if small_images else _create_for_size(timm, name, image_size, settings)
        if fitted is None or _find_problem(fitted, probe, num_classes) is not None:
            raise ValueError(_refusal(model, name, image_size, adapt, problem))
        model, adapt = fitted, False
    if weights is not None:
        _load_weights(model, Path(weights), adapted=adapt)
    return model.train()


def _check_name(timm: Any, name: str) -> None:
    known = timm.list_models()
    if name in known:
        return
    architecture, _, tag = name.partition(".")
    if tag and architecture in known:
        raise ValueError(
            f"expected a model without downloaded weights; found {name}: use {architecture}, and "
            "pass a file of weights if you need pretrained weights"
        )
    close = difflib.get_close_matches(name, known, n=5)
    hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
    raise ValueError(f"timm has no model {name!r}; {hint}")


def _create_for_size(
    timm: Any, name: str, image_size: int, settings: Mapping[str, Any]
) -> nn.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about empty layers
            model: nn.Module = timm.create_model(name, img_size=image_size, **settings)
    except Exception:  # a TypeError if img_size is unknown, other types if the size does not fit
        return None
    return model


def _find_problem(model: nn.Module, probe: Tensor, num_classes: int) -> str | None:
    """The reason why ``model`` has no logits ``[2, num_classes]`` for ``probe``, or None."""
    model.eval()
    try:
        with torch.no_grad():
            logits = model(probe)
    except Exception as error:  # layers raise many types for a wrong size
        lines = str(error).splitlines()
        return lines[0] if lines else type(error).__name__
    if isinstance(logits, Tensor) and list(logits.shape) == [2, num_classes]:
        return None
    found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    return f"expected logits [2, {num_classes}] for two images; found {found}"


def _refusal(model: nn.Module, name: str, image_size: int, adapted: bool, problem: str) -> str:
    expected = getattr(model, "default_cfg", {}).get("input_size", (3, USUAL_IMAGE))[-1]
    cannot = "be adapted to small images" if adapted else f"take images of {image_size} pixels"
    ways = [f"image_size={expected} (--image-size {expected})"] if expected != image_size else []
    if adapted:
        ways += ["small_images=False (--no-small-images)", "a convolutional network"]
    hint = f"; use {' or '.join(ways)}" if ways else ""
    return f"{name} cannot {cannot}: {problem.rstrip('.')}{hint}"


def _adapt_stem(model: nn.Module) -> str | None:
    """Make the first layers keep the image size. Return the reason if this is impossible."""
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)) and _stride(layer) > 1
    ]
    first = next((i for i, (_, layer) in enumerate(layers) if isinstance(layer, nn.Conv2d)), None)
    if first is None:
        return None  # only pooling between blocks shrinks the image, as in VGG
    name, convolution = layers[first]
    if convolution.kernel_size == convolution.stride and _stride(convolution) > 4:
        size = _stride(convolution)
        return f"its first layer cuts images into patches of {size}x{size}"
    for branch in {name, *_parallel_branches(model, name)}:
        _remove_stride(model, branch)
    if isinstance(getattr(model, "maxpool", None), nn.Module):
        model.maxpool = nn.Identity()
    elif len(layers) > first + 1 and isinstance(layers[first + 1][1], nn.MaxPool2d):
        pooling = layers[first + 1][0]
        holder = pooling.rpartition(".")[0]
        # The pooling is part of the stem if its parent module also holds the convolution.
        if not holder or name.startswith(f"{holder}."):
            model.set_submodule(pooling, nn.Identity())
    return None


def _stride(layer: nn.Module) -> int:
    stride = layer.stride
    return int(max(stride) if isinstance(stride, tuple) else stride)  # type: ignore[arg-type]


def _parallel_branches(model: nn.Module, name: str) -> list[str]:
    """The names of all convolutions that read the image, if ``name`` is in timm's list."""
    listed = getattr(model, "default_cfg", {}).get("first_conv") or ()
    names = [listed] if isinstance(listed, str) else list(listed)
    return names if name in names else []


def _remove_stride(model: nn.Module, name: str) -> None:
    """Set the stride of a convolution to 1. A standard 7x7 convolution becomes 3x3."""
    old = model.get_submodule(name)
    assert isinstance(old, nn.Conv2d)
    if type(old) is not nn.Conv2d or old.kernel_size != (7, 7):
        old.stride = (1, 1)  # subclasses that scale their weights depend on the kernel size
        return
    new = nn.Conv2d(
        old.in_channels,
        old.out_channels,
        3,
        padding=1,
        groups=old.groups,
        bias=old.bias is not None,
    )
    with torch.no_grad():
        # Take the middle of the old kernel. The standard deviation of initial weights falls with
        # the side of the kernel, so the factor makes them fit a 3x3 kernel.
        new.weight.copy_(old.weight[:, :, 2:5, 2:5] * (7 / 3))
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias)
    model.set_submodule(name, new)


def _load_weights(model: nn.Module, path: Path, adapted: bool) -> None:
    own, found = model.state_dict(), _read_weights(path)
    fits = {key for key in own if key in found and found[key].shape == own[key].shape}
    head = tuple(f"{name}." for name in _head_names(model))
    fresh = {key for key in own if key.startswith(head)}
    if fresh <= fits:
        fresh = set()
    wrong = sorted((own.keys() | found.keys()) - fits - fresh)
    if wrong:
        hint = "; weights from large images need --no-small-images" if adapted else ""
        raise ValueError(
            f"the weights in {path} are not for this model: {_differences(wrong, own, found)}{hint}"
        )
    model.load_state_dict({key: own[key] if key in fresh else found[key] for key in own})
    if fresh:
        warnings.warn(
            f"{path} has no head that fits ({', '.join(sorted(fresh))}): the head keeps its "
            "initial weights",
            stacklevel=3,  # the caller of create_model
        )


def _head_names(model: nn.Module) -> list[str]:
    listed = getattr(model, "default_cfg", {}).get("classifier") or ()
    return [listed] if isinstance(listed, str) else list(listed)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file of weights: {path}")
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}); pickles (.pth, .pt, .bin) can run code "
            "and are never loaded: convert them with safetensors.torch.save_file"
        ) from error
    return weights


def _differences(keys: list[str], own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    texts = []
    for key in keys[:3]:
        if key not in found:
            texts.append(f"{key} is missing")
        elif key not in own:
            texts.append(f"{key} is not in the model")
        else:
            texts.append(
                f"{key} must have shape {list(own[key].shape)}, found {list(found[key].shape)}"
            )
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(texts) + more
