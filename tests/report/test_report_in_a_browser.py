"""A report of a hostile result, opened in a browser: nothing runs, nothing is loaded."""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from adapruner import PruneResult

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Listener(http.server.BaseHTTPRequestHandler):
    """Notes every address that is asked for."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Listener.asked.clear()
    with http.server.HTTPServer(("127.0.0.1", 0), Listener) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def attacks(address: str) -> list[str]:
    """Names that would run a script or load something if any of them were markup."""
    script = "document.title = 'owned'"
    return [
        f"<script>{script}</script>",
        f'<img src=x onerror="{script}">',
        f'"><svg onload="{script}">',
        f"' onmouseover='{script}' autofocus onfocus='{script}",
        f"</title></style></svg><script>{script}</script>",
        f"<img src='{address}/image'><link rel=stylesheet href='{address}/style'>",
        f"<base href='{address}/'><meta http-equiv=refresh content='0;url={address}/refresh'>",
        f"<iframe src='{address}/frame'></iframe><form action='{address}/form'><input></form>",
        "{{ 7 * 7 }} {% include '/etc/passwd' %}",
        "]]><!--<script>",
        "\x1b[31m\x00\u202e",
    ]


def hostile(address: str) -> PruneResult:
    names = attacks(address)
    count = 4 * len(names)
    entry = {"epoch": 0, "phase": names[0], "decision": names[1], "kept": count, "keep_ratio": 1.0}
    return PruneResult(
        indices=torch.arange(count // 2),
        gate_logits=torch.linspace(-1, 1, count),
        keep_ratio=0.5,
        fingerprint=names[2],
        config={name: name for name in names},
        dataset={"kind": names[3], "root": names[4], "class_names": names, "more": {"x": names}},
        history=[entry, entry | {"epoch": 1, "phase": "prune"}],
        targets=torch.arange(count) % len(names),
        sample_losses=torch.rand(count, generator=torch.Generator().manual_seed(0)),
        unreadable=[(index, name) for index, name in enumerate(names)],
        not_finite=list(range(len(names))),
        versions={name: name for name in names},
    )


@pytest.fixture
def page(tmp_path: Path, address: str) -> Path:
    hostile(address).save(tmp_path / "result")
    path = tmp_path / "report.html"
    PruneResult.load(tmp_path / "result").report(path)
    return path


def test_the_names_are_text_and_scripts_are_forbidden(page: Path) -> None:
    text = page.read_text()
    assert "<script" not in text.lower()
    assert not re.search(r"<[^>]*\son\w+\s*=", text)
    assert "{{ 7 * 7 }}" in text
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome")
def test_a_browser_runs_and_loads_nothing(page: Path, address: str) -> None:
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    command = [
        BROWSER,
        *flags,
        "--virtual-time-budget=2000",
        f"--user-data-dir={page.parent / 'b'}",
    ]

    def dom(of: Path) -> str:
        done = subprocess.run(
            [*command, of.as_uri()], capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout

    # The browser does run scripts and load images where nothing forbids it.
    control = page.with_name("control.html")
    control.write_text(
        f"<title>mine</title>{attacks(address)[0]}<img src='{address}/control'><p>whole</p>"
    )
    assert "<title>owned</title>" in dom(control)
    assert Listener.asked == ["/control"]
    Listener.asked.clear()

    shown = dom(page)
    assert "<title>Kept 22 of 44 samples</title>" in shown
    assert "It loads nothing and runs no script" in shown
    assert Listener.asked == []
