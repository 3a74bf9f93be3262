"""A web server on this machine that gives files, whole or from a byte on, and can fail."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class WebStandIn:
    """The state of the server, for tests to set and to look into.

    Attributes:
        files: name -> content; others are not found.
        breaks: name -> after how many bytes each of the next transfers breaks off.
        stalls: names whose broken transfers stay open and bring no more.
        etags: name -> the ETag to announce; None is none.
        whole: names that are sent from the beginning, whatever Range says.
        unsized: names whose size is not told.
        changed: headers to send instead, of answers with content.
        asked: (method, name, Range, If-Range) of every request.
        after_head: is called when a HEAD is as good as answered.
        over: is set when the server ends.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    breaks: dict[str, list[int]] = field(default_factory=dict)
    stalls: set[str] = field(default_factory=set)
    etags: dict[str, str | None] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    unsized: set[str] = field(default_factory=set)
    changed: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    after_head: Callable[[], object] = lambda: None
    url: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def ranges(self) -> list[str | None]:
        """Of the requests for content."""
        return [first for method, _, first, _ in self.asked if method == "GET"]

    def etag(self, name: str) -> str | None:
        made = f'"{hashlib.sha256(self.files[name]).hexdigest()[:8]}"'
        return self.etags.get(name, made)

    def __enter__(self) -> "WebStandIn":
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.web = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        serve = self._server.serve_forever
        threading.Thread(target=serve, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Keep quiet about clients that have heard enough."""


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        web: WebStandIn = self.server.web  # type: ignore[attr-defined]
        name = self.path.rpartition("/")[2]
        wanted, only_if = self.headers.get("Range"), self.headers.get("If-Range")
        web.asked.append((self.command, name, wanted, only_if))
        content = web.files.get(name)
        if content is None:
            self.send_error(404)
            return
        etag, size, first = web.etag(name), len(content), 0
        headers = {} if etag is None else {"ETag": etag}
        # RFC 9110, 13.1.5: without the same content the condition means all of it.
        if wanted and name not in web.whole and only_if in (None, etag):
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if first >= size:
                self.send_error(416)
                return
            headers["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
        if name not in web.unsized:
            headers["Content-Length"] = str(size - first)
        if self.command == "GET":
            headers |= web.changed
        else:
            web.after_head()  # before the client can go on
        self.send_response(206 if "Content-Range" in headers else 200)
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            left = web.breaks.get(name) or [size]
            sent = content[first : first + left[0]]
            web.breaks[name] = left[1:]
            self.wfile.write(sent)
            if name in web.stalls and len(sent) < size - first:
                web.over.wait(10)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""
