"""Models for images of any size, their weights, and the transforms."""

from __future__ import annotations

import math
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.pictures import make_pictures, picture
from torch import nn

from adapruner import as_source
from adapruner.vision import (
    MEAN,
    STD,
    create_model,
    evaluation_transform,
    guess_image_size,
    to_tensor,
    training_transform,
)

pytest.importorskip("timm")
pytest.importorskip("torchvision")
Image = pytest.importorskip("PIL.Image")

# Families with different stems: a single convolution, a deep stem, patches of 4 (ConvNeXt),
# standardised weights, pooling with another name, parallel branches, a strided layer that is not
# the first layer, no strided layer before the blocks.
CONVOLUTIONAL = [
    "test_resnet",
    "resnet10t",
    "test_efficientnet",
    "test_convnext",
    "test_nfnet",
    "mobileone_s0",
    "dla46_c",
    "mobilenetv3_small_050",
]


def sizes_after_convolutions(model: nn.Module, image_size: int) -> list[int]:
    """The height of the output of each convolution, in the order of the forward pass."""
    heights: list[int] = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, output: heights.append(output.shape[2]))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, image_size, image_size))
    return heights


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_small_images_keep_their_size_in_the_stem(name: str) -> None:
    model = create_model(name, 5, image_size=32)
    assert model.training
    with torch.no_grad():
        assert model.eval()(torch.randn(3, 3, 32, 32)).shape == (3, 5)
    assert sizes_after_convolutions(model, 32)[0] >= 29  # ConvNeXt's kernel of 4 has no padding


@pytest.mark.parametrize(
    ("name", "pooling"), [("resnet18", "maxpool"), ("densenet121", "features.pool0")]
)
def test_pooling_of_the_stem_goes(name: str, pooling: str) -> None:
    assert isinstance(create_model(name, 5, image_size=32).get_submodule(pooling), nn.Identity)
    assert isinstance(create_model(name, 5, image_size=96).get_submodule(pooling), nn.MaxPool2d)


def test_resnet18_becomes_the_cifar_variant() -> None:
    model = create_model("resnet18", 10, image_size=32)
    stem = model.conv1
    assert isinstance(stem, nn.Conv2d)
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
    assert sizes_after_convolutions(model, 32)[-1] == 4
    # timm's ResNet initialises a 3x3 kernel with a normal distribution, by fan-out.
    assert stem.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.1)


@pytest.mark.parametrize(("image_size", "small_images"), [(65, None), (128, None), (32, False)])
def test_large_images_leave_the_model_as_it_is(image_size: int, small_images: bool | None) -> None:
    model = create_model("resnet18", 10, image_size=image_size, small_images=small_images)
    stem = model.conv1
    assert isinstance(stem, nn.Conv2d)
    assert (stem.kernel_size, stem.stride) == ((7, 7), (2, 2))


def test_adapting_can_be_forced() -> None:
    model = create_model("test_resnet", 10, image_size=96, small_images=True)
    assert sizes_after_convolutions(model, 96)[0] == 96


def test_channels() -> None:
    model = create_model("resnet18", 4, image_size=16, in_chans=1)
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 4)


@pytest.mark.parametrize("image_size", [32, 96, 160])
def test_transformers_are_made_for_the_size(image_size: int) -> None:
    model = create_model("test_vit", 5, image_size=image_size)
    assert model(torch.zeros(2, 3, image_size, image_size)).shape == (2, 5)


def test_patches_cannot_be_adapted_by_force() -> None:
    message = r"test_vit cannot be adapted .* patches of 16x16; use .*--image-size 160"
    with pytest.raises(ValueError, match=message):
        create_model("test_vit", 5, image_size=32, small_images=True)


def test_patches_larger_than_the_image_are_refused() -> None:
    message = r"patches of 16x16; use image_size=160 .* or a convolutional network"
    with pytest.raises(ValueError, match=message):
        create_model("test_vit", 5, image_size=8)


def test_a_size_that_a_model_cannot_take() -> None:
    message = r"test_vit cannot take images of 70 pixels: .*divisible.*--image-size 160"
    with pytest.raises(ValueError, match=message):
        create_model("test_vit", 5, image_size=70)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", r"no model 'resnet81'; did you mean .*resnet18"),
        ("qqqq", "timm.list_models"),
        ("resnet18.a1_in1k", "without downloaded weights; found .*: use resnet18"),
        ("hf-hub:timm/resnet18.a1_in1k", "no model"),
        ("local-dir:/tmp", "no model"),
    ],
)
def test_unknown_models(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, 5, image_size=32)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"num_classes": 0}, ValueError),
        ({"num_classes": 2.0}, TypeError),
        ({"image_size": 0}, ValueError),
        ({"image_size": True}, TypeError),
        ({"in_chans": -1}, ValueError),
    ],
)
def test_numbers_are_checked(changed: dict[str, Any], error: type[Exception]) -> None:
    settings: dict[str, Any] = {"num_classes": 5, "image_size": 32, "in_chans": 3} | changed
    with pytest.raises(error, match=next(iter(changed))):
        create_model("test_resnet", **settings)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"adapruner\[vision\]"):
        create_model("test_resnet", 5, image_size=32)


class TestWeights:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> tuple[dict[str, torch.Tensor], Path]:
        state = dict(create_model("test_resnet", 5, image_size=32).state_dict())
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
        return state, path

    def test_all_are_taken(self, saved: tuple[dict[str, torch.Tensor], Path]) -> None:
        state, path = saved
        loaded = create_model("test_resnet", 5, image_size=32, weights=path).state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], state[key]) for key in state)

    def test_a_head_of_another_shape_keeps_its_initial_weights(
        self, saved: tuple[dict[str, torch.Tensor], Path]
    ) -> None:
        state, path = saved
        with pytest.warns(UserWarning, match=r"no head that fits \(fc.bias, fc.weight\)"):
            model = create_model("test_resnet", 7, image_size=32, weights=path)
        loaded = model.state_dict()
        assert loaded["fc.weight"].shape[0] == 7
        assert loaded["fc.weight"].abs().sum() > 0
        same = [torch.equal(loaded[key], state[key]) for key in state if key[:3] != "fc."]
        assert all(same)

    def test_a_missing_head_keeps_its_initial_weights(
        self, saved: tuple[dict[str, torch.Tensor], Path]
    ) -> None:
        state, path = saved
        save_file({key: value for key, value in state.items() if key[:3] != "fc."}, path)
        with pytest.warns(UserWarning, match="no head"):
            create_model("test_resnet", 5, image_size=32, weights=path)

    def test_weights_that_do_not_fit_are_named(
        self, saved: tuple[dict[str, torch.Tensor], Path]
    ) -> None:
        state, path = saved
        del state["bn1.bias"]
        state["bn1.weight"] = torch.ones(3)
        state["extra"] = torch.ones(1)
        save_file(state, path)
        message = (
            r"bn1.bias is missing, bn1.weight must have shape \[\d+\], found \[3\], "
            r"extra is not in the model"
        )
        with pytest.raises(ValueError, match=message):
            create_model("test_resnet", 5, image_size=32, weights=path)

    def test_weights_of_the_large_stem(self, tmp_path: Path) -> None:
        path = tmp_path / "large.safetensors"
        save_file(dict(create_model("resnet18", 2, image_size=65).state_dict()), path)
        with pytest.raises(ValueError, match=r"conv1.weight must have shape .*--no-small-images"):
            create_model("resnet18", 2, image_size=32, weights=path)
        create_model("resnet18", 2, image_size=32, weights=path, small_images=False)

    def test_pickles_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        torch.save(create_model("test_resnet", 5, image_size=32).state_dict(), path)
        with pytest.raises(ValueError, match=r"not a safetensors file .* pickles .* run code"):
            create_model("test_resnet", 5, image_size=32, weights=path)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
            create_model("test_resnet", 5, image_size=32, weights=tmp_path / "nothing.safetensors")


def denormalised(tensor: torch.Tensor) -> np.ndarray:
    """The uint8 pixels ``[H, W, 3]`` of a normalised tensor."""
    values = tensor.numpy().transpose(1, 2, 0).astype(np.float64) * STD + MEAN
    assert np.abs(values * 255 - np.round(values * 255)).max() < 1e-3
    return np.round(values * 255).astype(np.uint8)


def test_small_images_are_evaluated_without_a_change() -> None:
    array = picture(3, 32, 32)
    tensor = evaluation_transform(32)(Image.fromarray(array))
    assert tensor.dtype == torch.float32
    assert type(tensor) is torch.Tensor
    assert np.array_equal(denormalised(tensor), array)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I;16", "I;16B"]
)
def test_a_picture_of_any_mode_is_that_of_a_file(mode: str, tmp_path: Path) -> None:
    """As a folder has it: converted to RGB, and 16 bits scaled to 8."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode.startswith("I;16"):
        wide = pixels[..., 0].astype(np.uint16) * 257
        image = Image.frombytes(mode, (32, 32), wide.astype(">u2" if mode[-1] == "B" else "<u2"))
        expected = np.repeat(pixels[..., :1], 3, 2)
    else:
        image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
        expected = np.asarray(image.convert("RGB"))
    wanted = torch.from_numpy(expected).permute(2, 0, 1) / 255 - torch.tensor(MEAN)[:, None, None]
    wanted /= torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(evaluation_transform(32)(image), wanted)


def test_the_middle_of_a_wide_small_image() -> None:
    array = picture(3, 48, 32)
    tensor = evaluation_transform(32)(Image.fromarray(array))
    assert np.array_equal(denormalised(tensor), array[:, 8:40])


def test_small_images_are_cropped_from_a_margin_and_flipped() -> None:
    array = picture(4, 32, 32)
    padded = np.pad(array, ((4, 4), (4, 4), (0, 0)))
    crops = {
        padded[y : y + 32, x : x + 32][:, ::step].tobytes(): (y, x, step)
        for y in range(9)
        for x in range(9)
        for step in (1, -1)
    }
    transform = training_transform(32)
    image = Image.fromarray(array)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        found = [crops[denormalised(transform(image)).tobytes()] for _ in range(40)]
    assert len(set(found)) > 20
    assert {step for _, _, step in found} == {1, -1}


@pytest.mark.parametrize("make", [training_transform, evaluation_transform])
@pytest.mark.parametrize(
    ("size", "image"), [(32, (100, 70)), (32, (9, 20)), (64, (64, 64)), (96, (50, 200))]
)
def test_transforms_give_the_size_and_can_be_pickled(
    make: Any, size: int, image: tuple[int, int]
) -> None:
    transform = pickle.loads(pickle.dumps(make(size)))
    tensor = transform(Image.fromarray(picture(0, *image)))
    assert tensor.shape == (3, size, size)
    assert type(tensor) is torch.Tensor


@pytest.mark.parametrize("make", [training_transform, evaluation_transform])
def test_transforms_check_the_size(make: Any) -> None:
    with pytest.raises(ValueError, match="image_size must be at least 1"):
        make(0)
    with pytest.raises(TypeError, match="image_size"):
        make("32")


@pytest.mark.parametrize(
    ("array", "mode", "expected"),
    [
        (picture(0, 5, 4), "RGB", picture(0, 5, 4).transpose(2, 0, 1) / 255),
        (picture(0, 5, 4)[..., 0], "L", picture(0, 5, 4)[None, ..., 0] / 255),
        (np.array([[True, False]]), "1", np.array([[[1.0, 0.0]]])),
        (np.array([[0, 513, 65535]], np.uint16), "I;16", np.array([[[0, 513 / 65535, 1]]])),
        (picture(0, 5, 4)[..., [0, 1, 2, 0]], "RGBA", None),
    ],
    ids=["rgb", "grey", "bits", "16 bits", "alpha"],
)
def test_to_tensor(array: np.ndarray, mode: str, expected: np.ndarray | None) -> None:
    image = Image.fromarray(array)
    assert image.mode == mode
    tensor = to_tensor(image)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    wanted = array.transpose(2, 0, 1) / 255 if expected is None else expected
    np.testing.assert_allclose(tensor.numpy(), wanted, rtol=1e-6)


def test_to_tensor_of_a_palette() -> None:
    image = Image.fromarray(np.full((2, 3, 3), (10, 20, 30), np.uint8))
    tensor = to_tensor(image.convert("P", palette=1))
    assert tensor.shape == (3, 2, 3)
    np.testing.assert_allclose(tensor[:, 0, 0] * 255, [10, 20, 30], atol=0.01)


def test_to_tensor_refuses_modes_without_a_range() -> None:
    with pytest.raises(ValueError, match="mode F"):
        to_tensor(Image.fromarray(np.zeros((2, 2), np.float32)))


def test_to_tensor_leaves_other_values_unchanged() -> None:
    tensor = torch.zeros(2)
    assert to_tensor(tensor) is tensor


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(28, 28)], 28),
        ([(20, 29), (10, 10)], 32),
        ([(64, 64)], 64),
        ([(65, 10)], 224),
        ([(32, 32), (300, 200)], 224),
    ],
)
def test_guessed_size(tmp_path: Path, sizes: list[tuple[int, int]], expected: int) -> None:
    for number, size in enumerate(sizes):
        make_pictures(tmp_path, (1,), size, (f"class{number}",))
    assert guess_image_size(as_source(tmp_path)) == expected


def test_guessed_size_without_the_unreadable(tmp_path: Path) -> None:
    make_pictures(tmp_path, (3,), (24, 24))
    (tmp_path / "cat" / "000.png").write_text("no image")
    assert guess_image_size(as_source(tmp_path)) == 24
    for path in (tmp_path / "cat").iterdir():
        path.write_text("no image")
    assert guess_image_size(as_source(tmp_path)) == 224


def test_guessed_size_looks_at_few(tmp_path: Path) -> None:
    source = as_source(make_pictures(tmp_path, (40,), (8, 8)))
    looked_at: list[int] = []
    read = source.image
    source.image = lambda index: looked_at.append(index) or read(index)  # type: ignore[method-assign, func-returns-value]
    assert guess_image_size(source) == 8
    assert len(looked_at) == len(set(looked_at)) == 16
    assert (min(looked_at), max(looked_at)) == (0, 39)
