"""The page of a report: its values match the result, and the page is complete and harmless."""

from __future__ import annotations

import base64
import dataclasses
import importlib
import io
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.report_page import Page

from adapruner import fast_prune
from adapruner.data.sources.base import Source
from adapruner.data.sources.find import as_source
from adapruner.errors import DatasetMismatchError
from adapruner.report import content, write_report
from adapruner.results.result import PruneResult

NASTY = "<script>alert('x')</script> & \"$x_1$\""
N, K = 60, 42


class Pictures(Source):
    """Gray 4 x 5 pictures. Sample i has the value i, except in its first pixel."""

    def __init__(self, broken=(), paths=None, fingerprint="some pictures"):
        super().__init__(fingerprint=fingerprint)
        self.broken, self.paths, self.asked = broken, paths, []

    def __len__(self):
        return N

    def image(self, index):
        self.asked.append(index)
        if index in self.broken:
            raise SyntaxError("broken <PNG> file")
        picture = np.full((4, 5), index, dtype=np.uint8)
        picture[0, 0] = 255
        return picture


def make(**changes):
    rng = np.random.default_rng(3)
    logits = rng.normal(size=N).astype(np.float32)
    logits[[5, 17]] = -np.inf
    ranked = sorted(range(N), key=lambda i: (-logits[i], i))
    losses = rng.exponential(size=N).astype(np.float32)
    losses[[5, 9, 17]] = np.nan
    history = [
        {
            "epoch": epoch,
            "phase": "warm-up" if epoch < 2 else "prune",
            "samples_read": N,
            "kept": [60, 60, 50, 42][epoch],
            "explored": [0, 0, 1, 1][epoch],
            "keep_ratio": [1.0, 1.0, 0.85, 0.7][epoch],
            "slope": 0.1 + epoch,
            "mean_gate": 0.525,
            "open_share": 0.9,
            "training_loss": 2.0 / (epoch + 1),
            "validation_loss": None if epoch == 0 else 2.5 / (epoch + 1),
            "decision": ["warm-up", "warm-up", "advance", "pause"][epoch],
            "seconds": 12.25,
        }
        for epoch in range(4)
    ]
    fields = {
        "indices": torch.tensor(sorted(ranked[:K])),
        "gate_logits": torch.from_numpy(logits),
        "keep_ratio": 0.7,
        "fingerprint": Pictures().fingerprint(),
        "config": {"method": "published", "seed": None, "balance": True, "sizes": [1, 2]},
        "dataset": {"kind": "image folder", "root": "/no/such", "class_names": ["a", NASTY]},
        "history": history,
        "selected_epoch": 3,
        "sample_losses": torch.from_numpy(losses),
        "targets": torch.arange(N) % 2,
        "unreadable": [(5, "OSError: cut off <here>"), (17, "OSError: empty")],
        "not_finite": [9],
        "saved": {
            "samples": 18,
            "bytes": 2_345_678,
            "samples_read": 9000,
            "samples_read_full": 12000,
            "seconds": 49.0,
            "seconds_full": 70.0,
        },
        "versions": {"torch": "2.9.0"},
    }
    return PruneResult(**{**fields, **changes})


def write(tmp_path, result, source=None):
    write_report(result, tmp_path / "report.html", source=source)
    return Page(tmp_path / "report.html")


def test_page_is_whole_and_asks_for_nothing(tmp_path):
    page = write(tmp_path, make(), Pictures())
    ids = [e.attributes["id"] for e in page.root if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    assert not page.root.all("script")
    for element in page.root:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            address = element.attributes.get(name)
            if address is None:
                continue
            assert address.startswith(("#", "data:image/png;base64,"))
            assert address.startswith("data:") or address[1:] in ids
        clip = element.attributes.get("clip-path")
        assert clip is None or clip.removeprefix("url(#").removesuffix(")") in ids
    assert "http:" not in page.source
    assert "https:" not in page.source
    assert len(page.root.all("svg")) == 6
    assert all(svg.attributes["aria-label"] for svg in page.root.all("svg"))


def test_names_are_escaped_and_shown(tmp_path):
    page = write(tmp_path, make(), Pictures())
    assert "<script>alert" not in page.source
    captions = [e.text() for e in page.gallery("kept")]
    assert any(NASTY in caption for caption in captions)
    assert page.rows("unreadable") == [["5", "OSError: cut off <here>"], ["17", "OSError: empty"]]
    figure = next(e for e in page.root if e.attributes.get("id") == "figure-classes")
    assert "<script>al" in figure.text()


def test_names_that_utf8_cannot_hold(tmp_path):
    bad = "cl\udcffss \x00\x1b"
    result = make(
        dataset={"class_names": [bad, bad], "root": "/\udcff"}, unreadable=[(5, "no \udcff")]
    )
    page = write(tmp_path, result, Pictures(paths=[f"{bad}/{i}" for i in range(N)]))
    assert len(page.gallery("kept")) == 24


def test_headline(tmp_path):
    page = write(tmp_path, make(), Pictures())
    assert page.root.all("h1")[0].text() == "42 of 60 samples kept"
    assert page.root.all("title")[0].text() == "Kept 42 of 60 samples"
    facts = page.root.all("p", "facts")[0].text()
    assert "image folder · /no/such · 2 classes" in facts
    assert "0.7" in facts
    assert "epoch 3, counted from 0, chosen on held-out data" in facts
    assert page.root.all("div", "meter")[0].text() == "70.0 % kept 30.0 % pruned"
    tiles = page.tiles()
    assert tiles["Samples saved"] == ["18", "30.0 % of 60"]
    assert tiles["Disk saved"][0] == "2.35 MB"
    assert tiles["Samples read by the run"] == [
        "9,000",
        "25.0 % less than an ordinary run (12,000)",
    ]
    assert tiles["Time of the run"] == [
        "49.0 s",
        "30.0 % less than an ordinary run (estimated 1 min 10 s)",
    ]


def notes(tmp_path, result):
    page = write(tmp_path, result, Pictures())
    return [item.text() for box in page.root.all("div", "notice") for item in box.all("li")]


def test_a_result_without_faults_has_no_warnings(tmp_path):
    assert notes(tmp_path, make(unreadable=[], not_finite=[])) == []


def test_a_forced_result_says_so(tmp_path):
    result = make(forced=True, selected_epoch=None, unreadable=[], not_finite=[])
    (note,) = notes(tmp_path, result)
    assert "forced" in note
    assert "1 of 4 epochs" in note
    page = write(tmp_path, result, Pictures())
    assert "the last one" in page.root.all("p", "facts")[0].text()


def test_the_report_tells_how_much_the_model_has_fitted(tmp_path):
    told = [
        {"epoch": 0, "fitted": 0.25, "chance": 1.0},
        {"epoch": 1, "fitted": 0.5, "chance": 0.95},
    ]
    page = write(tmp_path, make(history=told), Pictures())
    facts = page.root.all("p", "facts")[0].text()
    assert "The model has fitted 50 % of the data. The selection is mostly chance." in facts
    assert [row[1:] for row in page.rows("history")] == [["0.250", "1.000"], ["0.500", "0.950"]]
    page = write(tmp_path, make(), Pictures())
    assert "fitted" not in page.root.all("p", "facts")[0].text()


def test_the_warnings_name_every_fault(tmp_path):
    result = make(
        indices=torch.arange(0, 40, 2), config={"run_keep_ratio": 0.5}, targets=torch.arange(N) % 2
    )
    text = "\n".join(notes(tmp_path, result))
    assert "taken from a run at keep ratio 0.5" in text
    assert "20 of 42" in text
    assert "1 sample had a loss that was not finite" in text
    assert "1 of 2 classes keep fewer than 5 samples, and 1 of them keep none: classes 1" in text


def test_a_partial_result_and_its_warnings_say_so(tmp_path):
    texts = ["the first doubt", "a <second> doubt"]
    result = make(partial=True, selected_epoch=None, warnings=texts)
    page = write(tmp_path, result, Pictures())
    assert notes(tmp_path, result)[:2] == ["The first doubt.", "A <second> doubt."]
    assert "by 4 epochs of the run, which had not ended" in page.root.all("p", "facts")[0].text()
    one = write(tmp_path, dataclasses.replace(result, history=result.history[:1]), Pictures())
    assert "by 1 epoch of the run" in one.root.all("p", "facts")[0].text()


def test_galleries_name_the_right_samples(tmp_path):
    generator = torch.Generator().manual_seed(4)
    relative = torch.rand(N, generator=generator)
    predicted = torch.randint(-1, 2, (N,), generator=generator, dtype=torch.int32)
    result = make(relative_losses=relative, predicted=predicted)
    page = write(tmp_path, result, Pictures(paths=[f"<{i}>.png" for i in range(N)]))
    kept = set(result.indices.tolist())
    pruned = [i for i in range(N) if i not in kept and i not in (5, 17)]
    middle = np.median(relative[sorted(kept)].numpy())
    by_loss = sorted(pruned, key=lambda i: relative[i].item())
    expected = {
        "easy": [i for i in by_loss if relative[i] <= middle],
        "does-not-fit": [i for i in reversed(by_loss) if relative[i] > middle],
        "suspects": result.suspects().indices.tolist(),
    }
    assert all(expected.values())
    for name, indices in expected.items():
        samples = page.gallery(name)
        assert [int(s.all("b")[0].text()[1:]) for s in samples] == indices[:24]
        for index, sample in zip(indices, samples, strict=False):
            assert sample.attributes["title"] == f"<{index}>.png"
            assert ("kept" in sample.classes) == (index in kept)
            shown = sample.text().replace("−", "-")
            assert f"<{index}>.png" in shown
            assert f"score {result.gate_logits[index]:.3f}" in shown
            names = ["a", NASTY]
            wrong = predicted[index] not in (-1, index % 2)
            assert (f"predicted {names[1 - index % 2]}" in shown) == wrong
            loss = float(result.sample_losses[index])
            assert float(shown.split("loss ")[1].split()[0].replace("—", "nan")) == pytest.approx(
                loss, rel=5e-3, nan_ok=True
            )
            address = sample.all("img")[0].attributes["src"]
            assert picture(address) == (index, (5 * 25, 4 * 25))
    shown = [int(s.all("b")[0].text()[1:]) for s in page.gallery("kept")]
    assert len(set(shown)) == 24
    assert set(shown) <= kept
    assert (shown[0], shown[-1]) == (min(kept), max(kept))


def test_equal_scores_are_named_once(tmp_path):
    page = write(tmp_path, make(gate_logits=torch.full((N,), 0.2), unreadable=[]), Pictures())
    assert "All of these have the score 0.200" in page.section("kept").text()
    assert not any("score" in sample.text() for sample in page.gallery("kept"))


def test_a_result_without_predictions_says_why_it_has_no_suspects(tmp_path):
    text = write(tmp_path, make(), Pictures()).section("suspects").text()
    assert "Absent: suspects need the classes that the model predicted" in text


def test_the_reasons_count_every_sample_once(tmp_path):
    rows = write(tmp_path, make(), Pictures()).rows("reasons")
    assert {row[0] for row in rows} == {"kept", "easy", "does not fit", "unreadable"}
    assert sum(int(row[1]) for row in rows) == N
    assert ["unreadable", "2", "3.3 %"] in [row[:3] for row in rows]


def picture(address):
    """(gray value, size) of a picture made by ``Pictures``, its first pixel checked."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
    pixels = np.asarray(image)
    assert (pixels[:25, :25] == 255).all()  # enlarged by a whole factor: no pixel is mixed
    rest = np.unique(pixels[25:])
    assert len(rest) == 1
    return int(rest[0]), image.size


def test_a_broken_sample_keeps_its_place(tmp_path):
    first = int(make().indices[0])
    samples = write(tmp_path, make(), Pictures(broken={first})).gallery("kept")
    assert not samples[0].all("img")
    assert "SyntaxError: broken <PNG> file" in samples[0].text()
    assert all(sample.all("img") for sample in samples[1:])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "the folder /no/such cannot be found"),
        (as_source((torch.arange(N), torch.arange(N) % 2)), "no pictures"),
        (Pictures(broken=range(N)), "SyntaxError: broken <PNG> file"),
    ],
)
def test_without_pictures_there_are_tables(tmp_path, source, reason):
    result = make(fingerprint=source.fingerprint() if source else "0" * 64)
    page = write(tmp_path, result, source)
    for name in ("kept", "easy", "does-not-fit"):
        assert not page.gallery(name)
        assert reason in page.section(name).text()
        for row in page.rows(name):
            assert row[3] == name.replace("-", " ")
            assert row[4] == f"{result.gate_logits[int(row[0])]:.3f}".replace("-", "−")


def test_source_is_found_again(tmp_path):
    from PIL import Image

    for index in range(6):
        folder = tmp_path / "data" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 3 + index), 40 * index).save(folder / f"{index}.png")
    source = as_source(tmp_path / "data")
    result = PruneResult(
        torch.arange(3), torch.arange(6.0), 0.5, source.fingerprint(), dataset={"root": source.root}
    )
    assert write(tmp_path, result).gallery("kept")[0].all("img")
    other = dataclasses.replace(result, fingerprint="0" * 64)
    assert "has changed, or is not" in write(tmp_path, other).section("kept").text()
    own = Pictures()
    assert write(tmp_path, make(source=own)).gallery("kept")[0].all("img")
    assert len(set(own.asked)) == 24 + 16  # kept and pruned samples, without the unreadable ones


def test_another_dataset_is_refused(tmp_path):
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(DatasetMismatchError, match="another dataset"):
        write(tmp_path, make(), Pictures(fingerprint="others"))
    with pytest.raises(DatasetMismatchError, match="number of samples 60, found 4"):
        write(tmp_path, make(fingerprint=""), (torch.zeros(4), torch.zeros(4)))
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def bare(n, indices, **changes):
    return PruneResult(torch.tensor(indices, dtype=torch.int64), torch.ones(n), 1.0, "", **changes)


@pytest.mark.parametrize(
    "result",
    [
        bare(1, [0]),
        bare(0, []),
        bare(7, range(7), targets=torch.zeros(7, dtype=torch.int64)),
        bare(3, [1], sample_losses=torch.full((3,), torch.nan), history=[{}, {"epoch": 1}]),
        bare(2, [0], sample_losses=torch.tensor([0.0, torch.inf]), targets=torch.tensor([-1, 9])),
        PruneResult(torch.zeros(0, dtype=torch.int64), torch.full((3,), -torch.inf), 0.1, ""),
        make(dataset={}, targets=None, sample_losses=None, history=[], config={}, versions={}),
        make(targets=torch.arange(N) * 1000, dataset={"class_names": [NASTY] * 1000}),
        make(history=[{"epoch": 0, "decision": NASTY, "training_loss": float("nan"), "kept": 60}]),
    ],
)
def test_whatever_is_absent(tmp_path, result):
    page = write(tmp_path, result)
    kept, total = result.indices.numel(), result.num_samples
    assert page.root.all("h1")[0].text() == f"{kept:,} of {total:,} samples kept"
    figures = page.root.all("figure")
    assert len(figures) == 6
    for figure in figures:
        assert bool(figure.all("svg")) != ("Absent: " in figure.text())
    if not result.history:
        assert "Absent" in page.section("history").text()


def test_tables(tmp_path):
    paths = [f"a/{i}.png" for i in range(N)]
    many = [(i % N, "gone") for i in range(content.MOST_ROWS + 5)]
    result = make(unreadable=many)
    page = write(tmp_path, result, Pictures(paths=paths))
    rows = page.rows("unreadable")
    assert len(rows) == content.MOST_ROWS
    assert rows[61] == ["1", "a/1.png", "gone"]
    assert "5 more are in the result" in page.section("unreadable").text()
    assert page.rows("not-finite")[0][:3] == ["9", "a/9.png", NASTY]
    history = page.rows("history")
    assert history[2][:6] == ["2", "prune", "50", "1", "60", "0.850"]
    assert history[0][10:] == ["—", "warm-up", "12.2"]
    settings = {tuple(row[:2]): row[2] for row in page.rows("settings")}
    assert settings["run", "balance"] == "yes"
    assert settings["run", "sizes"] == "[1, 2]"
    assert settings["run", "seed"] == "—"
    assert settings["dataset", "fingerprint"] == result.fingerprint
    assert settings["versions", "torch"] == "2.9.0"
    kept = [sum(i % 2 == c for i in result.indices.tolist()) for c in (0, 1)]
    table = page.root.all("details")[0].all("table")[0]
    shown = {tuple(cell.text() for cell in row.all("td")[:3]) for row in table.all("tr")[1:]}
    assert shown == {("a", str(kept[0]), "30"), (NASTY, str(kept[1]), "30")}


def test_saved_and_loaded_gives_the_same_page(tmp_path):
    make().save(tmp_path / "result.safetensors")
    loaded = PruneResult.load(tmp_path / "result.safetensors")
    first = write(tmp_path, make(), Pictures()).source
    assert write(tmp_path, loaded, Pictures()).source == first


@pytest.mark.parametrize("module", ["matplotlib.figure", "matplotlib.style", "jinja2", "PIL.Image"])
def test_missing_extra_is_named(tmp_path, monkeypatch, module):
    importlib.import_module("matplotlib.backends.backend_svg")  # which imports Pillow itself
    importlib.import_module("matplotlib.figure")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"adapruner\[report\]"):
        write(tmp_path, make(), Pictures())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_stays_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_report(make(), tmp_path / "none" / "report.html", source=Pictures())
    assert not list(tmp_path.iterdir())


def test_pictures_of_a_random_dataset_are_the_same_each_time(tmp_path: Path) -> None:
    class Noise(torch.utils.data.Dataset):
        targets = [0, 1] * 20

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            shade = random.random() * np.random.rand() * torch.rand(3, 8, 8)  # noqa: NPY002
            return shade, self.targets[index]

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    result = fast_prune(model, Noise(), 0.5, 3, progress=False)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    result.report(tmp_path / "one.html")
    result.report(tmp_path / "two.html")
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert b"data:image" in (tmp_path / "one.html").read_bytes()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert np.array_equal(before[2][1], after[2][1])
