"""Windows and flips are functions of (seed, epoch, index) with torchvision's distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapruner.vision.augmentation import Crop, Zoom, uniforms

IDS = np.array([5, 0, 2**40, 17])


def test_uniforms_belong_to_the_sample() -> None:
    drawn = uniforms(3, 2, IDS, 7)
    assert drawn.shape == (4, 7)
    assert ((drawn >= 0) & (drawn < 1)).all()
    for place, index in enumerate(IDS):
        assert np.array_equal(uniforms(3, 2, np.array([index]), 7)[0], drawn[place])
    for other in (uniforms(4, 2, IDS, 7), uniforms(3, 1, IDS, 7), uniforms(3, 2, IDS + 1, 7)):
        assert not (other == drawn).any()


def test_uniforms_are_uniform_and_independent() -> None:
    drawn = uniforms(0, 0, np.arange(20_000), 3)
    shares = np.histogram(drawn, 20, (0, 1))[0] / drawn.size
    assert np.abs(shares - 0.05).max() < 0.005  # nine standard errors
    columns = np.corrcoef(drawn.T)
    neighbours = np.corrcoef(drawn[:-1, 0], drawn[1:, 0])
    assert np.abs(columns - np.eye(3)).max() < 0.04
    assert abs(neighbours[0, 1]) < 0.04


@pytest.mark.parametrize("shape", [(300, 200), (64, 64), (1, 1), (1, 500), (7, 3), (2000, 30)])
def test_zoom_stays_within_the_image(shape: tuple[int, int]) -> None:
    zoom = Zoom(32)
    shapes = np.tile(shape, (500, 1))
    inputs = zoom.inputs(shapes, uniforms(0, 0, np.arange(500), zoom.draws))
    start, extent = inputs["start"], inputs["extent"]
    assert (start >= 0).all()
    assert (extent >= 1).all()
    assert (start + extent <= shapes).all()
    assert set(inputs["mirror"].tolist()) == {0, 1}


def test_zoom_draws_what_torchvision_draws() -> None:
    """Windows have the same means and spreads, on an image that many windows do not fit."""
    v2 = pytest.importorskip("torchvision.transforms.v2")
    count, height, width = 4000, 150, 260
    zoom = Zoom(32)
    shapes = np.tile((height, width), (count, 1))
    inputs = zoom.inputs(shapes, uniforms(1, 0, np.arange(count), zoom.draws))
    ours = np.concatenate([inputs["start"], inputs["extent"]], 1)
    transform, image = v2.RandomResizedCrop(32), torch.zeros(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        drawn = [transform.make_params([image]) for _ in range(count)]
    theirs = np.array([[d[name] for name in ("top", "left", "height", "width")] for d in drawn])
    error = theirs.std(0) / np.sqrt(count)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 5 * error).all()
    assert np.allclose(ours.std(0), theirs.std(0), rtol=0.06)


@pytest.mark.parametrize("shape", [(1000, 20), (20, 1000)])
def test_zoom_where_no_window_fits_takes_the_middle(shape: tuple[int, int]) -> None:
    zoom = Zoom(32, area=(0.9, 1.0))
    shapes = np.array([shape])
    inputs = zoom.inputs(shapes, uniforms(0, 0, np.array([0]), zoom.draws))
    extent = inputs["extent"][0].tolist()
    assert extent == ([27, 20] if shape[0] > shape[1] else [20, 27])  # 20 / (3/4), rounded
    assert inputs["start"][0].tolist() == [(s - e) // 2 for s, e in zip(shape, extent, strict=True)]


def test_crop_reaches_every_place_of_the_margin() -> None:
    crop = Crop(32, 32, margin=4)
    shapes = np.tile((32, 32), (3000, 1))
    inputs = crop.inputs(shapes, uniforms(0, 0, np.arange(3000), crop.draws))
    assert set(inputs) == {"start", "mirror"}
    for side in range(2):
        assert set(inputs["start"][:, side].tolist()) == set(range(-4, 5))
    assert 0.45 < inputs["mirror"].mean() < 0.55


def test_crop_of_the_middle_is_torchvisions() -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    crop = Crop(8, 8)
    for height in range(8, 20):
        image = torch.arange(height * 8.0).reshape(1, height, 8)
        start = crop.inputs(np.array([[height, 8]]), np.zeros((1, 3)))["start"][0].tolist()
        expected = functional.center_crop(image, [8, 8])
        assert torch.equal(image[:, start[0] : start[0] + 8, start[1] : start[1] + 8], expected)


def test_crop_resizes_only_where_it_has_to() -> None:
    crop = Crop(8, 8, margin=1)
    drawn = np.zeros((2, crop.draws))
    assert "resized" not in crop.inputs(np.array([[8, 8], [11, 8]]), drawn)
    resized = crop.inputs(np.array([[8, 8], [31, 17]]), drawn)["resized"]
    assert resized.tolist() == [[8, 8], [14, 8]]  # 31 · 8 // 17
