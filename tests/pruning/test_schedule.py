"""The pace of the controller: it rises, pauses, backs off and recovers."""

from __future__ import annotations

import json
import math

import pytest

from adapruner.pruning.schedule import Controller
from adapruner.pruning.selection import keep_count

SLOPE = (0.1, 5.0)


def paces(controller: Controller, losses: list[float | None]) -> list[tuple[float, float, str]]:
    """Slope and ratio of each epoch, and the decision at its end."""
    result = []
    for epoch, loss in enumerate(losses):
        slope, ratio = controller.slope_now, controller.ratio_now
        result.append((slope, ratio, controller.step(epoch, loss)))
    return result


@pytest.mark.parametrize(
    ("epochs", "warmup", "slopes", "ratios"),
    [
        (1, 0, [0.1], [1.0]),
        (2, 0, [0.1, 5.0], [1.0, 0.7]),
        (2, 1, [0.1, 0.1], [1.0, 1.0]),
        (3, 1, [0.1, 0.1, 5.0], [1.0, 1.0, 0.7]),
        (3, 0, [0.1, 2.55, 5.0], [1.0, 0.7, 0.7]),
        (5, 0, [0.1, 1.325, 2.55, 3.775, 5.0], [1.0, 0.85, 0.7, 0.7, 0.7]),
    ],
)
@pytest.mark.parametrize("loss", [None, 1.0])
def test_pace_of_short_runs(
    epochs: int, warmup: int, slopes: list[float], ratios: list[float], loss: float | None
) -> None:
    met = paces(Controller(epochs, warmup, 0.7, SLOPE), [loss] * epochs)
    assert [slope for slope, _, _ in met] == pytest.approx(slopes)
    assert [ratio for _, ratio, _ in met] == pytest.approx(ratios)
    assert [word for _, _, word in met] == ["warm-up"] * warmup + ["advance"] * (epochs - warmup)


def test_pace_of_a_long_run() -> None:
    met = paces(Controller(20, 2, 0.4, SLOPE), [None] * 20)
    steps = [max(epoch - 2, 0) / 17 for epoch in range(20)]
    assert [slope for slope, _, _ in met] == pytest.approx([0.1 + 4.9 * step for step in steps])
    assert [ratio for _, ratio, _ in met] == pytest.approx(
        [1 - 0.6 * min(1.0, 2 * step) for step in steps]
    )
    assert [ratio for _, ratio, _ in met].count(0.4) == 9  # half of the 18 epochs after warm-up


def test_ratio_wanted_is_reached_to_the_last_bit() -> None:
    # 1 − (1 − 0.1) is not 0.1: it keeps one sample fewer of 15.
    for percent in range(1, 100):
        ratio = percent / 100
        for epochs in (3, 4, 6, 7, 8, 15, 20, 51):
            controller = Controller(epochs, 1, ratio, SLOPE)
            halfway = 1 + math.ceil((epochs - 2) / 2)
            for epoch in range(epochs):
                if epoch >= halfway:
                    assert controller.ratio_now == ratio
                    assert keep_count(controller.ratio_now, 15) == keep_count(ratio, 15)
                else:
                    assert controller.ratio_now > ratio
                controller.step(epoch, None)


def test_pause_back_off_and_recovery() -> None:
    # The run has five strides. A loss is behind if it is more than a tenth above the best loss.
    losses = [1.0, 0.8, 0.87, 0.89, 0.9, 0.95, 0.85, 0.7]
    controller = Controller(7, 1, 0.5, SLOPE)
    words, progress = [], []
    for epoch, loss in enumerate(losses[:-1]):
        words.append(controller.step(epoch, loss))
        progress.append(controller.progress)
    assert words == ["warm-up", "advance", "advance", "pause", "back off", "back off", "advance"]
    assert progress == pytest.approx([0, 0.2, 0.4, 0.4, 0.2, 0, 0.2])
    assert controller.best == 0.8


def test_never_backs_off_beyond_the_start() -> None:
    controller = Controller(10, 0, 0.5, SLOPE)
    words = [controller.step(epoch, 1.0 + epoch) for epoch in range(5)]
    assert words == ["advance", "pause", "back off", "back off", "back off"]
    assert controller.progress == 0
    assert (controller.slope_now, controller.ratio_now) == (0.1, 1.0)


def test_second_pause_starts_anew_after_a_recovery() -> None:
    controller = Controller(20, 0, 0.5, SLOPE)
    words = [controller.step(epoch, loss) for epoch, loss in enumerate([1, 2, 1, 2, 2, 1])]
    assert words == ["advance", "pause", "advance", "pause", "back off", "advance"]


def test_warm_up_notes_the_best_and_whether_it_is_behind() -> None:
    controller = Controller(10, 2, 0.5, SLOPE)
    assert [controller.step(epoch, loss) for epoch, loss in enumerate([1.0, 2.0, 2.0])] == [
        "warm-up",
        "warm-up",
        "back off",
    ]
    assert controller.best == 1.0
    assert controller.progress == 0


@pytest.mark.parametrize(
    ("loss", "error", "word"),
    [
        (1.10, 0.0, "advance"),  # not more than a tenth
        (1.11, 0.0, "pause"),
        (1.11, 0.06, "advance"),  # within two standard errors
        (1.13, 0.06, "pause"),
        (0.5, 0.0, "advance"),
    ],
)
def test_tolerance(loss: float, error: float, word: str) -> None:
    controller = Controller(10, 0, 0.5, SLOPE)
    controller.step(0, 1.0)
    assert controller.step(1, loss, error) == word


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("first", [None, 1.0])
def test_held_out_loss_that_is_not_finite_is_behind(loss: float, first: float | None) -> None:
    controller = Controller(10, 0, 0.5, SLOPE)
    controller.step(0, first)
    assert controller.step(1, loss) == "pause"
    assert controller.step(2, loss) == "back off"
    assert controller.best == first
    assert controller.step(3, 0.9) == "advance"
    assert controller.best == 0.9


def test_state_goes_round_and_on() -> None:
    losses = [1.0, 0.8, 0.7, 0.9, 0.9, 0.7, 0.6, 0.9, 0.5, 0.4]
    whole = Controller(10, 1, 0.5, SLOPE)
    expected = paces(whole, losses)
    for stop in range(10):
        first = Controller(10, 1, 0.5, SLOPE)
        paces(first, losses[:stop])
        second = Controller(10, 1, 0.5, SLOPE)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for epoch in range(stop, 10):
            met = (second.slope_now, second.ratio_now, second.step(epoch, losses[epoch]))
            assert met == expected[epoch]
