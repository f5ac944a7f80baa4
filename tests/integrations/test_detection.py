"""Losses of images from the detection integration, against torchvision's losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adapruner import Pruner

torchvision = pytest.importorskip("torchvision")

from torchvision.models import detection  # noqa: E402
from torchvision.models.detection.anchor_utils import AnchorGenerator  # noqa: E402

from adapruner.integrations.detection import collate, image_losses  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded")
SIZE = 64


class TwoLevels(nn.Module):
    """Features of strides 8 and 16, without statistics over the batch."""

    out_channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Conv2d(3, 32, 8, 8), nn.Conv2d(32, 32, 2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        near = self.near(x)
        return {"near": near, "far": self.far(near)}


def make(kind: str, backbone: nn.Module | None = None) -> nn.Module:
    sizes = ((8,), (16,))
    if isinstance(backbone, nn.Conv2d):
        sizes = ((8,),)
    anchors = AnchorGenerator(sizes, ((1.0,),) * len(sizes))
    return getattr(detection, kind)(
        backbone or TwoLevels(), 4, min_size=SIZE, max_size=2 * SIZE, anchor_generator=anchors
    )


def image(width: int = SIZE) -> Tensor:
    return torch.rand(3, SIZE, width)


def target(*boxes: tuple[float, float, float, float]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(len(boxes)) % 4,
    }


TARGETS = [
    target((2, 3, 30, 40), (20, 20, 60, 44)),
    target((5, 5, 12, 13)),
    target(),  # no object
    target((0, 0, 64, 64), (1, 1, 9, 9), (40, 2, 50, 12), (30, 30, 44, 60), (8, 40, 30, 63)),
]


@pytest.mark.parametrize("kind", ["FCOS", "RetinaNet"])
@pytest.mark.parametrize("training", [True, False])
def test_each_image_has_the_loss_of_a_batch_of_its_own(kind: str, training: bool) -> None:
    model = make(kind)
    images = [image() for _ in TARGETS]
    alone = torch.stack(
        [sum(model([x], [y]).values()) for x, y in zip(images, TARGETS, strict=True)]
    )
    found = image_losses(model.train(training), images, TARGETS)
    assert found.shape == (4,)
    assert model.training == training
    torch.testing.assert_close(found, alone)


def test_the_mean_is_the_loss_of_the_batch_and_so_is_its_gradient() -> None:
    model = make("RetinaNet")  # its loss of a batch is a mean over images
    images = [image(), image(96), image(80), image()]  # padded to one size
    whole = sum(model(images, TARGETS).values())
    wanted = torch.autograd.grad(whole, list(model.parameters()))
    found = image_losses(model, images, TARGETS).mean()
    torch.testing.assert_close(found, whole)
    for one, other in zip(
        torch.autograd.grad(found, list(model.parameters())), wanted, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_images_of_different_sizes_are_scaled_with_their_boxes() -> None:
    model = make("FCOS")
    x, y = image(), target((2, 3, 30, 40))
    large = nn.functional.interpolate(x[None], scale_factor=2, mode="nearest")[0]
    found = image_losses(model, [large], [{**y, "boxes": y["boxes"] * 2}])
    seen = sum(model([large], [{**y, "boxes": y["boxes"] * 2}]).values())
    torch.testing.assert_close(found[0], seen)


def test_a_backbone_may_give_one_tensor() -> None:
    backbone = nn.Conv2d(3, 32, 8, 8)
    backbone.__dict__["out_channels"] = 32
    model = make("FCOS", backbone)
    x = image()
    torch.testing.assert_close(
        image_losses(model, [x], TARGETS[:1])[0], sum(model([x], TARGETS[:1]).values())
    )


def test_what_it_is_given_stays_as_it_was() -> None:
    images, targets = [image(96)], [target((2, 3, 30, 40))]
    before = images[0].clone(), targets[0]["boxes"].clone()
    image_losses(make("FCOS"), images, targets)
    assert torch.equal(images[0], before[0])
    assert torch.equal(targets[0]["boxes"], before[1])


def test_a_pruner_weighs_them() -> None:
    class Pictures(torch.utils.data.Dataset):
        images = torch.rand(12, 3, SIZE, SIZE)

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
            return self.images[index], TARGETS[index % 4]

    model = make("FCOS")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = Pruner(12, keep_ratio=0.5, epochs=3, explore=0, normalize_loss=True)
    loader = pruner.loader(Pictures(), 4, collate_fn=collate)
    for _ in range(3):
        for images, targets, ids in loader:
            expected = [TARGETS[index % 4] for index in ids.tolist()]
            assert all(a is b for a, b in zip(targets, expected, strict=True))
            loss = pruner.weigh(image_losses(model, images, targets), ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        pruner.step()
    assert len(pruner.result().indices) == 6
    assert pruner.result().sample_losses.isfinite().all()


def test_other_models_are_refused() -> None:
    with pytest.raises(TypeError, match=r"FCOS or RetinaNet.*found Linear"):
        image_losses(nn.Linear(2, 2), [image()], [target()])


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (2, [target()], "found 2 images and 1 targets"),
        (0, [], "found 0 images and 0 targets"),
        (2, [target(), target((1, 1, 4, 4), (3, 2, 3, 9))], r"box 1 of target 1 .*\[3.0, 2.0, 3.0"),
        (1, [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(2)}], r"\[2, 4\].*found \[1, 4\]"),
        (1, [target((float("nan"), 1, 4, 4))], "box 0 of target 0"),
    ],
)
def test_what_is_wrong_is_said(images: int, targets: list[dict[str, Tensor]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_losses(make("FCOS"), [image() for _ in range(images)], targets)
