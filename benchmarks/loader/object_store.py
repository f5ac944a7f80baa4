"""A stand-in for an object store on this machine: files over HTTP, with a latency and a bandwidth.

    python -m benchmarks.loader.object_store FOLDER

prints its port. It answers ranges, with ETags, as aiohttp's own server of files does.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

LATENCY = 0.02  # seconds before each answer
BANDWIDTH = 50e6  # bytes a second of each connection
ROOT = Path(__file__).resolve().parents[2]


class Running(NamedTuple):
    """The address of the store."""

    address: str

    def bytes_sent(self) -> int:
        """Bytes of all answers so far."""
        with urllib.request.urlopen(f"{self.address}/sent") as answer:
            return int(answer.read())


@contextmanager
def object_store(folder: str | Path) -> Iterator[Running]:
    """The store of the files in ``folder``, as a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loader.object_store", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Running(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.terminate()
        process.wait()


async def serve(folder: str) -> None:
    from aiohttp import web

    sent = 0

    async def file(request: Any) -> Any:
        nonlocal sent
        path = Path(folder) / request.match_info["name"]
        if not path.is_file():
            raise web.HTTPNotFound
        count = 0
        if request.method == "GET":
            span = request.http_range
            count = len(range(*span.indices(path.stat().st_size)))
        sent += count
        await asyncio.sleep(LATENCY + count / BANDWIDTH)
        return web.FileResponse(path)

    async def total(_: Any) -> Any:
        return web.Response(text=str(sent))

    app = web.Application()
    app.router.add_get("/sent", total)
    app.router.add_get("/{name}", file)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
