"""Figures, colours, pictures and numbers of the report, against separate counts."""

from __future__ import annotations

import base64
import io
import math
import re
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from adapruner.report import figures, style, values
from adapruner.report.style import NothingToShow
from adapruner.report.thumbnails import SIDE, thumbnail
from adapruner.results.result import PruneResult

N = 500


def make(classes=7, **changes):
    rng = np.random.default_rng(11)
    logits = rng.normal(size=N).astype(np.float32)
    logits[:3] = -np.inf
    losses = rng.lognormal(-1, 2, size=N).astype(np.float32)
    losses[:4] = [np.nan, np.nan, np.inf, 0]
    epochs = range(1, 7)
    decisions = ["warm-up", "warm-up", "advance", "pause", "back off", "advance"]
    history = [
        {
            "epoch": epoch,
            "phase": "warm-up" if epoch < 3 else "prune",
            "kept": N - 10 * epoch,
            "keep_ratio": 1 - epoch / 50,
            "slope": 0.1 * epoch,
            "mean_gate": 0.5 + epoch / 100,
            "open_share": 1 - epoch / 10,
            "training_loss": 1 / epoch,
            "validation_loss": None if epoch == 1 else 2 / epoch,
            "decision": decisions[epoch - 1],
        }
        for epoch in epochs
    ]
    fields = {
        "indices": torch.from_numpy(np.sort(rng.permutation(N)[:200])),
        "gate_logits": torch.from_numpy(logits),
        "keep_ratio": 0.4,
        "fingerprint": "",
        "history": history,
        "selected_epoch": 5,
        "sample_losses": torch.from_numpy(losses),
        "targets": torch.from_numpy(rng.integers(0, classes, N)),
    }
    return PruneResult(**{**fields, **changes})


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def test_bars_per_class():
    result = make(dataset={"class_names": [f"name {i}" for i in range(7)]})
    axes = figures.kept_per_class(result).axes[0]
    totals = Counter(result.targets.tolist())
    kept = Counter(result.targets[result.indices].tolist())
    for container, expected in zip(axes.containers, (totals, kept), strict=True):
        assert [bar.get_width() for bar in container] == [expected[c] for c in range(7)]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"name {i}" for i in range(7)]
    shares = [f"{100 * kept[c] / totals[c]:.0f}\u202f%" for c in range(7)]
    assert [text.get_text() for text in axes.texts] == shares
    assert axes.yaxis_inverted()


def test_a_curve_for_many_classes():
    result = make(classes=120)
    totals = Counter(result.targets.tolist())
    kept = Counter(result.targets[result.indices].tolist())
    drawn = lines(figures.kept_per_class(result).axes[0])
    expected = sorted(kept[c] / totals[c] for c in totals)
    assert drawn["one class"].get_ydata() == pytest.approx(expected)
    assert drawn["all classes together"].get_ydata() == pytest.approx([0.4, 0.4])


@pytest.mark.parametrize("classes", [figures.MOST_BARS, figures.MOST_BARS + 1])
def test_bars_up_to_the_limit(classes):
    result = make(targets=torch.arange(N) % classes)
    assert bool(figures.kept_per_class(result).axes[0].containers) == (classes == 40)


def histogram(axes):
    """The outlines (not the fills) of kept and pruned: name -> (counts, edges)."""
    outlines = [patch for patch in axes.patches if not patch.get_fill()]
    return {patch.get_label().split()[0]: patch.get_data()[:2] for patch in outlines}


@pytest.mark.parametrize("name", ["gate_logits", "sample_losses"])
def test_histograms(name):
    result = make()
    axes = getattr(figures, name)(result).axes[0]
    kept = set(result.indices.tolist())
    values_of = getattr(result, name).double().tolist()
    for label, (counts, edges) in histogram(axes).items():
        mine = [v for i, v in enumerate(values_of) if (i in kept) == (label == "kept")]
        mine = [max(v, edges[0]) for v in mine if math.isfinite(v)]
        inside = [
            sum(low <= v < high for v in mine)
            for low, high in zip(edges[:-1], [*edges[1:-1], math.inf], strict=True)
        ]
        assert counts.tolist() == inside
        assert counts.sum() == len(mine)
    assert set(histogram(axes)) == {"kept", "pruned"}
    assert axes.get_xscale() == ("log" if name == "sample_losses" else "linear")


def test_samples_without_any_finite_loss_do_not_stretch_the_axis():
    logits = make().gate_logits
    logits[5] = -1000
    axes = figures.gate_logits(make(gate_logits=logits)).axes[0]
    assert axes.get_xlim()[0] > -6
    assert sum(counts.sum() for counts, _ in histogram(axes).values()) == N - 4


def test_missing_losses_are_counted():
    assert "(3 without a loss)" in figures.sample_losses(make()).axes[0].get_xlabel()


def test_keep_ratio_over_epochs():
    drawn = lines(figures.keep_ratio(make()).axes[0])
    epochs = np.arange(1, 7)
    assert drawn["kept"].get_xdata() == pytest.approx(epochs)
    assert drawn["kept"].get_ydata() == pytest.approx((N - 10 * epochs) / N)
    assert drawn["scheduled"].get_ydata() == pytest.approx(1 - epochs / 50)
    assert drawn["asked for"].get_ydata() == pytest.approx([0.4, 0.4])
    assert list(drawn["selected"].get_xdata()) == [5, 5]


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_axis_of_epochs_has_whole_numbers(count):
    axes = figures.keep_ratio(make(history=make().history[:count])).axes[0]
    least, most = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if least <= tick <= most]
    assert shown
    assert all(tick == round(tick) for tick in shown)


def test_gates_over_epochs():
    above, below = figures.gates(make()).axes
    epochs = np.arange(1, 7)
    assert lines(above)["mean gate"].get_ydata() == pytest.approx(0.5 + epochs / 100)
    assert lines(above)["gates with m > 0"].get_ydata() == pytest.approx(1 - epochs / 10)
    assert lines(below)["slope"].get_ydata() == pytest.approx(0.1 * epochs)
    shaded = next(patch for patch in above.patches if patch.get_label() == "_warm-up")
    assert shaded.get_extents().transformed(above.transData.inverted()).intervalx == pytest.approx(
        [0.5, 2.5]
    )


def test_losses_and_decisions_over_epochs():
    above, below = figures.losses(make()).axes
    epochs = np.arange(1, 7)
    assert lines(above)["training"].get_ydata() == pytest.approx(1 / epochs)
    held_out = lines(above)["held out"].get_ydata()
    assert np.isnan(held_out[0])
    assert held_out[1:] == pytest.approx(2 / epochs[1:])
    rows = [label.get_text() for label in below.get_yticklabels()]
    assert rows == ["warm-up", "advance", "pause", "back off"]
    marks = {
        (rows[int(y)], int(x)) for dots in below.collections for x, y in dots.get_offsets().tolist()
    }
    assert marks == {
        ("warm-up", 1),
        ("warm-up", 2),
        ("advance", 3),
        ("pause", 4),
        ("back off", 5),
        ("advance", 6),
    }


@pytest.mark.parametrize(
    ("draw", "changes", "reason"),
    [
        (figures.kept_per_class, {"targets": None}, "classes"),
        (
            figures.gate_logits,
            {"gate_logits": torch.full((N,), -math.inf)},
            "no sample was read",
        ),
        (figures.sample_losses, {"sample_losses": None}, "no finite loss"),
        (figures.sample_losses, {"sample_losses": torch.full((N,), math.nan)}, "no finite loss"),
        (figures.keep_ratio, {"history": []}, "no history"),
        (figures.gates, {"history": [{"epoch": 1}]}, "no mean gate or slope"),
        (figures.losses, {"history": [{"training_loss": None}]}, "no training loss"),
    ],
)
def test_nothing_to_show(draw, changes, reason):
    with pytest.raises(NothingToShow, match=reason):
        draw(make(**changes))


def settings(rc_params):
    return {key: rc_params[key] for key in rc_params if key != "backend"}  # reading it picks one


def random_states():
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global one is meant
    return numpy_state, torch.get_rng_state().tolist()


def test_users_settings_neither_reach_the_figures_nor_change(monkeypatch):
    import matplotlib

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import would raise
    with matplotlib.rc_context({"text.usetex": True, "font.size": 40, "svg.fonttype": "path"}):
        before = settings(matplotlib.rcParams)
        states = random_states()
        drawn = [style.to_svg(f.draw(make()), f.name, "label") for f in figures.FIGURES]
        assert settings(matplotlib.rcParams) == before
    assert random_states() == states
    assert drawn == [style.to_svg(f.draw(make()), f.name, "label") for f in figures.FIGURES]


def test_svg_takes_all_its_colours_from_the_page():
    for entry in figures.FIGURES:
        svg = style.to_svg(entry.draw(make()), entry.name, 'a "label"')
        assert not re.findall(r"#[0-9a-f]{6}", svg)
        assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(style.PALETTE)
        assert 'aria-label="a &quot;label&quot;"' in svg
        assert "DejaVu" not in svg


def test_names_in_any_script_pass_without_a_warning(recwarn):
    names = ["\u72ac\u732b", "$5 \\frac", "a" * 50 + "z", "", "\x00\udcff", "\u0645", "7"]
    figure = figures.kept_per_class(make(dataset={"class_names": names}))
    svg = style.to_svg(figure, "classes", "label")
    assert all(f">{name}<" in svg for name in ("\u72ac\u732b", "$5 \\frac", "\ufffd\ufffd"))
    assert f">{'a' * 10}…aaaaaaz<" in svg
    assert not recwarn.list


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    ("name", "least"), [("ink", 7), ("muted", 4.5), ("kept", 3), ("pruned", 3), ("third", 3)]
)
def test_contrast(name, least, dark):
    shades = {key: pair[dark] for key, pair in style.PALETTE.items()}
    for ground in ("page", "card", "warm"):
        low, high = sorted(luminance(shades[key]) for key in (name, ground))
        assert (high + 0.05) / (low + 0.05) >= least
    assert len(set(shades.values())) == len(shades)


def decoded(image):
    from PIL import Image

    address = thumbnail(image)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))


RED = np.zeros((2, 5, 3), np.uint8) + np.array([255, 0, 0], np.uint8)


@pytest.mark.parametrize(
    "image",
    [
        RED,
        RED / 255,
        RED.astype(bool),
        (RED / 255).astype(np.float16),
        RED.astype(np.int64) * 900 - 7,
        RED.transpose(2, 0, 1),
        torch.from_numpy(RED),
        torch.from_numpy(RED).permute(2, 0, 1),
        torch.from_numpy(RED / 255).bfloat16().permute(2, 0, 1).requires_grad_(),
        np.concatenate([RED, np.full((2, 5, 1), 255, np.uint8)], axis=2),
    ],
)
def test_thumbnail_of_each_layout(image):
    pixels = decoded(image)
    assert pixels.shape == (2 * 25, 5 * 25, 3)
    assert (pixels == [255, 0, 0]).all()


def test_thumbnail_where_both_layouts_fit():
    image = np.zeros((3, 5, 3), np.uint8)
    image[0] = 255
    assert (decoded(image)[:25] == 255).all()  # an array: the first row
    assert (decoded(torch.from_numpy(image)) == [255, 0, 0]).all()  # a tensor: the first channel


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I", "I;16", "F"])
def test_thumbnail_of_each_mode(mode):
    from PIL import Image

    image = Image.new("L", (300, 150), 0)
    image.paste(255, (150, 0, 300, 150))
    image = image.convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    pixels = decoded(image)
    assert pixels.shape == (SIDE // 2, SIDE, 3)
    assert pixels[:, :60].max() < 10
    assert pixels[:, -60:].min() > 245
    assert image.size == (300, 150)  # the image of the source does not change


def test_thumbnail_shows_what_is_transparent_as_white():
    assert (decoded(np.zeros((4, 4, 4), np.uint8)) == 255).all()


def test_thumbnail_stretches_other_values_and_bears_what_is_not_finite():
    ramp = np.array([[-2.0, 0.0], [2.0, np.nan]])
    assert decoded(ramp)[::64, ::64, 0].tolist() == [[0, 128], [255, 128]]
    assert (decoded(np.full((2, 2), 9.0)) == 0).all()


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (np.zeros(3), ValueError),
        (np.zeros((2, 5, 5)), ValueError),
        (np.zeros((0, 5)), ValueError),
        (np.zeros((1, 2, 3, 3)), ValueError),
        ("a path", TypeError),
    ],
)
def test_thumbnail_refuses(image, error):
    with pytest.raises(error):
        thumbnail(image)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (values.share(1, 3), "33.3\u202f%"),
        (values.share(999_999, 1_000_000), "99.9999\u202f%"),
        (values.share(0, 0), "—"),
        (values.size(999), "999\u202fbytes"),
        (values.size(1_000_000), "1\u202fMB"),
        (values.size(5e15), "5\u202fPB"),
        (values.duration(59.97), "1\u202fmin 00\u202fs"),
        (values.duration(7261), "2\u202fh 01\u202fmin"),
        (values.duration(float("inf")), "∞"),
        (values.compared(120, 100), "20.0\u202f% more than"),
        (values.compared(5, 5), "as much as"),
        (values.number(-2.5), "−2.500"),
        (values.number(12345.6), "1.235e+04"),
        (values.number(1234), "1,234"),
        (values.number(float("-inf")), "−∞"),
    ],
)
def test_numbers_as_text(text, expected):
    assert text == expected
