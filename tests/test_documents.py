"""The code of the README and of the tutorials runs, on small data made here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s:#]+)(?:#[^)]*)?\)")
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
# The tutorials name runs of a useful length; two epochs show that the code runs.
EPOCHS = ("epochs = 20", "epochs = 2")
WORDS_OF_README = 1000
Names = dict[str, Any]


def blocks(document: Path) -> Iterator[tuple[int, str, str]]:
    """Line, kind and text of each block of Python, or of a change to Python."""
    text = document.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        yield text[: block.start(2)].count("\n"), block[1], block[2]


def side_of(diff: str, sign: str) -> str:
    """The lines before a change ("-") or after it ("+")."""
    lines = diff.splitlines(keepends=True)
    return "".join(line[1:] for line in lines if line[0] in (sign, " "))


def run(document: Path, names: Names) -> Names:
    """Run the blocks of a document one after another, with ``names`` and with each other's."""
    ran = 0
    for line, kind, text in blocks(document):
        for code in [side_of(text, sign) for sign in "-+"] if kind == "diff" else [text]:
            # Blank lines before it, so that a traceback has the line of the document.
            exec(compile("\n" * line + code.replace(*EPOCHS), str(document), "exec"), names)
            ran += 1
    assert ran > 0
    return names


def names_of_the_readme() -> Names:
    """The names that a reader of the README has already."""
    dataset = TensorDataset(torch.randn(40, 6), torch.randint(0, 3, (40,)))
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    known = {"dataset": dataset, "model": model, "optimizer": optimizer}
    return known | {"DataLoader": DataLoader, "F": F}


def images() -> Names:
    image = pytest.importorskip("PIL.Image")
    for package in ("timm", "torchvision", "matplotlib", "jinja2"):
        pytest.importorskip(package)
    rng = np.random.default_rng(0)
    for i in range(24):
        path = Path("photos", ["cat", "dog"][i % 2], f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return {}


def text_of_shakespeare() -> Names:
    Path("input.txt").write_text("To be, or not to be: that is the question. " * 60)
    return {}


def images_with_boxes() -> Names:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    corners = "<xmin>8</xmin><ymin>9</ymin><xmax>40</xmax><ymax>30</ymax>"
    for folder in ("JPEGImages", "Annotations"):
        Path("bccd", folder).mkdir(parents=True)
    for i in range(5):
        image.new("RGB", (64, 48), (40 * i, 0, 0)).save(f"bccd/JPEGImages/{i}.jpg")
        cell = f"<object><name>WBC</name><bndbox>{corners}</bndbox></object>"
        Path(f"bccd/Annotations/{i}.xml").write_text(f"<annotation>{cell}</annotation>")
    return {}


def frameworks() -> Names:
    for package in ("lightning", "datasets", "transformers", "trl", "accelerate", "timm"):
        pytest.importorskip(package, reason=f"needs {package}")
    return {}


# Document: what makes its data and names, the samples of its result, the keep ratio.
CASES = {
    "README.md": (names_of_the_readme, 40, 0.7),
    "docs/tutorials/images.md": (images, 24, 0.7),
    "docs/tutorials/own-loop.md": (dict, 256, 0.7),
    "docs/tutorials/language-model.md": (text_of_shakespeare, 40, 0.7),
    "docs/tutorials/frameworks.md": (frameworks, 40, 0.7),
    "docs/tutorials/detection.md": (images_with_boxes, 5, 0.8),
    "docs/tutorials/recipes.md": (dict, 40, 0.7),
    "docs/answers.md": (names_of_the_readme, 40, 0.7),
}


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("name", CASES)
def test_its_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, samples, ratio = CASES[name]
    monkeypatch.chdir(tmp_path)
    result = run(ROOT / name, prepare())["result"]
    assert result.num_samples == samples
    assert len(result.indices) == math.floor(ratio * samples + 0.5)


def test_every_tutorial_is_run() -> None:
    tutorials = (ROOT / "docs" / "tutorials").glob("*.md")
    assert {path.relative_to(ROOT).as_posix() for path in tutorials} < CASES.keys()


def test_a_block_that_fails_names_its_line(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("# Page\n\n```diff\n-a = 1\n+a = 2\n b = a\n+c = 1 / 0\n```\n")
    names: Names = {}
    with pytest.raises(ZeroDivisionError) as error:
        run(document, names)
    assert names["b"] == 2
    assert error.traceback[-1].path == document
    assert error.traceback[-1].lineno + 1 == 6  # of the lines after the change


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_its_links_lead_to_files(document: Path) -> None:
    for target in LINK.findall(document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= WORDS_OF_README


def test_the_site_leads_to_every_page() -> None:
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    pages |= {f"examples/{path.stem}.md" for path in (ROOT / "examples").glob("*.py")}
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert pages - listed == set()
