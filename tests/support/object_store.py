"""A server of ranges of bytes on this machine, with the faults that object stores have.

It serves its own objects, or stands before another server and passes requests on.
"""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

_STATUSES = {"500": 500, "gone": 404, "401": 401, "403": 403}
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class Request(NamedTuple):
    """A request as the server saw it: method, path, and first and last byte or None."""

    method: str
    path: str
    range: tuple[int, int] | None


@dataclass
class ObjectServer:
    """A running server.

    Attributes:
        objects: contents by path, such as "/train/0.tar".
        fault: called for each request; "", "500", "cut" (half an answer), "slow" (no answer for
            ``pause`` seconds), "whole" (the range is ignored), "gone", "401" or "403".
        etags: whether answers have an ETag.
        date: the Last-Modified of answers, or nothing.
        behind: address of the server to pass requests on to, or None.
        requests: all requests so far.
        sent: bytes of all bodies that were sent.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    fault: Callable[[Request], str] = lambda request: ""
    etags: bool = True
    date: str = ""
    behind: str | None = None
    pause: float = 2.0
    address: str = ""
    requests: list[Request] = field(default_factory=list)
    sent: int = 0

    def answer(self, request: Request, headers: Any) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a request without a fault."""
        if self.behind is not None:
            return self._pass_on(request, headers)
        content = self.objects.get(request.path)
        if content is None:
            return self._listing(request.path)
        told = {"Accept-Ranges": "bytes"}
        if self.etags:
            told["ETag"] = f'"{hashlib.md5(content).hexdigest()}"'
        if self.date:
            told["Last-Modified"] = self.date
        if request.range is None:
            return 200, told, content
        first, last = request.range
        if first >= len(content):
            return 416, told, b""
        part = content[first : last + 1]
        told["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        return 206, told, part

    def _listing(self, path: str) -> tuple[int, dict[str, str], bytes]:
        folder = path.rstrip("/") + "/"
        inside = [name for name in self.objects if name.startswith(folder)]
        links = "".join(f'<a href="{name}">{name}</a>' for name in inside)
        return (200, {"Content-Type": "text/html"}, links.encode()) if inside else (404, {}, b"")

    def _pass_on(self, request: Request, headers: Any) -> tuple[int, dict[str, str], bytes]:
        assert self.behind is not None
        passed = {name: value for name, value in headers.items() if name.lower() != "host"}
        forward = urllib.request.Request(
            self.behind + request.path, headers=passed, method=request.method
        )
        try:
            with urllib.request.urlopen(forward) as found:
                return found.status, dict(found.headers), found.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()


@contextmanager
def object_server(**settings: Any) -> Iterator[ObjectServer]:
    """An :class:`ObjectServer` on a free port of 127.0.0.1."""
    store = ObjectServer(**settings)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            match = _RANGE.fullmatch(self.headers.get("Range", ""))
            span = None if match is None else (int(match[1]), int(match[2]))
            request = Request(self.command, self.path, span)
            with lock:
                store.requests.append(request)
                fault = store.fault(request)
            if fault == "slow":
                time.sleep(store.pause)
            if fault in _STATUSES:
                self._send(_STATUSES[fault], {}, b"")
                return
            status, headers, body = store.answer(
                request._replace(range=None) if fault == "whole" else request, self.headers
            )
            self._send(status, headers, body, cut=fault == "cut")

        do_HEAD = do_GET

        def _send(
            self, status: int, headers: dict[str, str], body: bytes, cut: bool = False
        ) -> None:
            head = self.command == "HEAD"
            length = headers.get("Content-Length", "") if head and store.behind else len(body)
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in (
                    "content-length",
                    "connection",
                    "date",
                    "server",
                    "transfer-encoding",
                ):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            if head:
                return
            try:
                self.wfile.write(body[: len(body) // 2] if cut else body)
            except OSError:  # the client has given up
                self.close_connection = True
                return
            with lock:
                store.sent += len(body)
            if cut:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    store.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
