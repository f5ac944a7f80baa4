"""What the command prints does not command the terminal, whatever files and classes are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command_line import Run, runner

ESCAPE = "\x1b]0;owned\x07\x1b[31m"
TURNED = "abc\u202egpj.exe"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return runner(capfd)


@pytest.mark.parametrize("name", [ESCAPE, TURNED, "\x9b2J"])
@pytest.mark.parametrize(
    "words",
    [
        ("report", "{}", "--out", "x.html"),
        ("prune", "{}", "--out", "x"),
        ("index", "{}.tar"),
        ("info", "{}"),  # an argument too many, which the parser of arguments prints
        ("report", "--{}"),
    ],
)
def test_a_hostile_name_is_shown_with_escapes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(*(word.format(name) for word in words))
    assert outcome.code in (1, 2)
    printed = outcome.out + outcome.err
    assert not set(printed) & set("\x1b\x07\x9b\r\u202e")
    shown = name.encode("unicode_escape").decode()
    assert shown in printed or repr(name) in printed or words[-1] == "--{}"


def test_classes_with_escapes_in_their_names(run: Run, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("timm")
    (tmp_path / "images" / ESCAPE).mkdir(parents=True)
    image.new("RGB", (4, 4)).save(tmp_path / "images" / ESCAPE / "a.png")
    outcome = run("prune", tmp_path / "images", "--out", tmp_path / "x")
    assert outcome.code == 1
    assert "at least two classes of images; found one, \\x1b]0;owned\\x07\\x1b[31m" in outcome.err
